"""The events of a stream of HTTP, read as messages at the pace of their backend."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from trio_vmcp._client.channels.channel import Ask
from trio_vmcp._client.channels.pace import Pace, pieces
from trio_vmcp._client.channels.parsing import read as read_message
from trio_vmcp._client.complaints import Complaints
from trio_vmcp._client.http.reply import HttpReply
from trio_vmcp._protocol.jsonrpc import Message
from trio_vmcp._protocol.reading import Oversized, Unreadable, decode
from trio_vmcp._protocol.sse import SseDecoder, SseEvent, SseLimit
from trio_vmcp.errors import MessageTooLarge

__all__ = ["EventReader", "texts_of"]


@attrs.define(eq=False)
class EventReader:
    """Reads the streams of one backend, within its limits."""

    backend_id: str
    max_message_bytes: int
    max_json_depth: int
    max_json_values: float
    complaints: Complaints = attrs.field(repr=False)
    pace: Pace = attrs.field(repr=False)

    async def events(
        self, chunk: bytes, decoder: SseDecoder, reply: HttpReply, *, is_awaited: bool = False
    ) -> list[SseEvent]:
        """The events that end in this chunk.

        Args:
            is_awaited: A request waited for the chunk, so its first piece costs nothing: most answers are one piece.
        """
        events: list[SseEvent] = []
        self.pace.charge_crumbs(reply.pieces, len(chunk))
        for piece in pieces(chunk):
            lines, size = decoder.idle_lines, decoder.idle_bytes
            if not is_awaited:
                self.pace.charge_piece(piece)
            is_awaited = False
            try:
                events += decoder.feed(piece)
            except SseLimit as exc:
                if events:  # the decoder raises again with the next chunk
                    break
                raise MessageTooLarge(
                    self.backend_id, f"sent an event over a limit (max_message_bytes): {exc}", may_have_executed=True
                ) from exc
            self.pace.charge_lines(decoder.idle_lines - lines, decoder.idle_bytes - size)
            if self.pace.is_due:
                await self.pace.wait()
        return events

    async def read(self, text: str | Unreadable | Oversized | None) -> Message | Unreadable | Oversized | None:
        if not isinstance(text, str):
            return text
        return await read_message(text, max_depth=self.max_json_depth, max_values=self.max_json_values)

    def complain_of(self, bad: Unreadable | Oversized) -> None:
        problem = bad.problem if isinstance(bad, Unreadable) else f"is over {self.max_message_bytes} bytes"
        self.complaints.make("backend %r: skipped a message that %s", self.backend_id, problem)

    def fail_by(self, bad: Unreadable | Oversized, reply: HttpReply, ask: Ask) -> None:
        """
        Raises:
            BackendError: The unreadable message is the answer to this request, or may be.
        """
        if isinstance(bad, Unreadable) and bad.too_large is not None:
            if not bad.too_large.is_call and bad.reply_id in (None, ask.id):
                raise self.too_large(bad.problem)
        elif isinstance(bad, Unreadable):
            if bad.reply_id == ask.id:
                raise reply.protocol_error(f"sent a message that {bad.problem}")
        elif not bad.is_call and bad.reply_id in (None, ask.id):
            raise MessageTooLarge(
                self.backend_id,
                f"sent an event over a limit (max_message_bytes): an SSE event of more than {self.max_message_bytes} "
                "bytes",
                may_have_executed=True,
            )

    def too_large(self, problem: str) -> MessageTooLarge:
        return MessageTooLarge(self.backend_id, f"sent a message that {problem}", may_have_executed=True)


def texts_of(events: list[SseEvent]) -> Iterator[tuple[str | Unreadable | Oversized | None, int, int]]:
    """The text of each event, its size, and its lines beyond the first; None: the event holds no message. Each
    event is freed on the way.
    """
    events.reverse()
    while events:
        oversized = events[-1].oversized
        size = len(events[-1].data) if oversized is None else oversized.size
        more_lines = events[-1].more_lines
        yield _text_of(events.pop()), size, more_lines  # the bytes are gone by now


def _text_of(event: SseEvent) -> str | Unreadable | Oversized | None:
    if event.event != "message":  # "unknown event names are ignored"
        return None
    return event.oversized or (decode(event.data) if event.data else None)  # one without data only carries an id
