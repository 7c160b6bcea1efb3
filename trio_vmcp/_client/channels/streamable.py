"""One JSON-RPC message over streamable HTTP, the same in both eras: POST it, read JSON or SSE until its answer.

Everything that is not the answer goes to `on_other`, in the reading loop: progress and list changes need no task of
their own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from typing import TypeAlias

import attrs
import trio

from trio_vmcp._client.complaints import Complaints
from trio_vmcp._client.http.link import Exchange, Headers, HttpLink
from trio_vmcp._client.http.reply import Reply
from trio_vmcp._protocol.jsonrpc import (
    BadMessage,
    ErrorReply,
    Message,
    Notification,
    Request,
    Result,
    parse_message,
    parse_text,
    same_id,
    to_text,
)
from trio_vmcp._protocol.sse import SseDecoder, SseEvent, SseLimit, line_ends
from trio_vmcp._request_note import note_written
from trio_vmcp.errors import BackendError, BackendRejected, BackendUnauthorized, BackendUnavailable, MessageTooLarge
from trio_vmcp.identity import Identity

__all__ = [
    "Answer",
    "HttpRefusal",
    "Interrupted",
    "OnOther",
    "Outcome",
    "StreamableHttp",
    "ignore_other",
    "is_stream",
    "names_session",
    "refusal",
]


OnOther: TypeAlias = Callable[[Request | Notification], Awaitable[None]]

# An SSE answer is read to the end of its body, so that the connection is used again; s that a server may take to end
# it. One that keeps streams open gets this once.
DRAIN_TIMEOUT = 0.1
# Bytes of one exchange over all its messages, in messages of the largest size: nothing of it is kept, but it is parsed.
MESSAGES_PER_EXCHANGE = 4
LINE_BYTES = 128  # that a line of a stream counts for beside its own: a short one costs time, not bytes
# A stream that is held has no end, so it has a pace instead: bytes a second, counted like those of an exchange and with
# so much for every piece that arrives, once it has used up its allowance. Beyond that the backend has to wait for us.
PACE, ALLOWANCE, PIECE_BYTES = 1024 * 1024, 16 * 1024 * 1024, 1024
MOST_DRAINED = 16  # chunks after the answer
MOST_ERROR_BYTES = 64 * 1024  # of the body of an HTTP error, where a JSON-RPC error may be
MOST_QUOTED = 300  # characters of a backend's own error text in ours


async def ignore_other(message: Request | Notification) -> None:
    """For requests during which nothing but the answer is of use."""


@attrs.frozen
class HttpRefusal:
    """An HTTP error without a JSON-RPC error in it."""

    status: int
    www_authenticate: str | None
    names_session: bool = False  # its text does


@attrs.frozen
class Interrupted:
    """The stream ended before the answer. Without an event id there is no way back to it."""

    last_event_id: str | None
    retry: float | None  # s


Outcome: TypeAlias = Result | ErrorReply | HttpRefusal | Interrupted


@attrs.frozen
class Answer:
    """What became of a request, and the HTTP status that it came under."""

    outcome: Outcome
    status: int


@attrs.define(eq=False)
class StreamableHttp:
    """Messages to one backend."""

    link: HttpLink
    max_message_bytes: int
    max_json_depth: int
    complaints: Complaints = attrs.field(factory=Complaints, init=False, repr=False)
    _ends_streams: bool = attrs.field(default=True, init=False)

    @property
    def backend_id(self) -> str:
        return self.link.backend.id

    async def ask(
        self,
        message_id: int,
        data: bytes,
        headers: Headers,
        *,
        identity: Identity | None,
        on_other: OnOther,
        on_head: Callable[[Reply], None] | None = None,
    ) -> Answer:
        """POST a request and wait for its answer.

        Raises:
            BackendError: There is none, and there will be none.
        """
        async with self.link.exchange("POST", headers, data, identity=identity) as reply:
            if on_head is not None:
                on_head(reply)
            return Answer(await self._outcome(reply, message_id, on_other, None), reply.status)

    async def resume(
        self, message_id: int, last_event_id: str, headers: Headers, *, identity: Identity | None, on_other: OnOther
    ) -> Answer:
        """Go on with an interrupted stream. "Resumption is always via HTTP GET" (2025-11-25, transports)."""
        headers = [*headers, (b"Last-Event-ID", last_event_id.encode())]
        try:
            async with AsyncExitStack() as stack:
                try:
                    reply = await stack.enter_async_context(self.link.exchange("GET", headers, identity=identity))
                except BackendUnavailable:  # as if the stream had ended once more
                    return Answer(Interrupted(last_event_id, None), 0)
                except BackendError as error:
                    error.may_have_executed = True
                    raise
                reply.body.written = True
                return Answer(await self._outcome(reply, message_id, on_other, last_event_id), reply.status)
        finally:
            note_written(True)  # whatever became of this GET: the request that it is about was

    async def tell(self, data: bytes, headers: Headers, *, identity: Identity | None) -> int:
        """POST what has no answer: a notification, or our answer to a backend's request. Returns the HTTP status."""
        async with self.link.exchange("POST", headers, data, identity=identity, limited=False) as reply:
            await self.drain(reply)
            return reply.status

    async def delete(self, headers: Headers, *, identity: Identity | None) -> int:
        """End the backend's session. Returns the HTTP status."""
        async with self.link.exchange("DELETE", headers, identity=identity, limited=False) as reply:
            await self.drain(reply)
            return reply.status

    def hold(self, verb: str, headers: Headers, data: bytes = b"", *, identity: Identity | None) -> Exchange:
        """The exchange of a stream that stays open, which counts under no limit: it would keep a call's place for ever.
        What is in it is for `follow`, or for `plain_outcome` where it `is_stream` not.
        """
        return self.link.exchange(verb, headers, data, identity=identity, is_stream=True)

    async def follow(self, reply: Reply, decoder: SseDecoder, take: Callable[[Message], bool]) -> None:
        """Hand over every message of a stream that is held, until it ends or `take` wants no more of it.

        There is no limit to all of it together, only to its pace: whoever floods us fills his own buffers.

        Raises:
            BackendError: It broke, is over a limit, or is not MCP.
        """
        reply.refuse_encoding()
        allowance, counted_at = float(ALLOWANCE), trio.current_time()
        while (chunk := await reply.receive()) is not None:
            for message in self._messages(chunk, decoder, reply):
                if not take(message):  # what is left of it costs the connection: seldom, and it may have no end
                    return
            now = trio.current_time()
            allowance = min(allowance + (now - counted_at) * PACE, ALLOWANCE) - PIECE_BYTES - _weight(chunk)
            counted_at = now
            if allowance < 0:
                await trio.sleep(-allowance / PACE)

    async def _outcome(self, reply: Reply, message_id: int, on_other: OnOther, last_event_id: str | None) -> Outcome:
        if is_stream(reply):
            reply.refuse_encoding()
            return await self._streamed(reply, message_id, on_other, last_event_id)
        return await self.plain_outcome(reply, message_id)

    async def plain_outcome(self, reply: Reply, message_id: int) -> Result | ErrorReply | HttpRefusal:
        """What a response says that is no stream.

        Raises:
            BackendError: It is no answer to this request.
        """
        if not 200 <= reply.status < 300:
            return await self._refused(reply, message_id)
        kind = reply.media_type
        if kind == "application/json":
            text = self._text(await reply.read(self.max_message_bytes), reply)  # the bytes are gone by now
            return self._matching(self._parse(text, reply), message_id, reply)
        shown = repr(kind[:MOST_QUOTED]) if kind else "no content"
        raise reply.protocol_error(f"answered a request with HTTP {reply.status} and {shown}")

    async def _streamed(
        self, reply: Reply, message_id: int, on_other: OnOther, last_event_id: str | None
    ) -> Result | ErrorReply | Interrupted:
        decoder = SseDecoder(max_event_bytes=self.max_message_bytes)
        decoder.last_event_id = last_event_id
        budget = MESSAGES_PER_EXCHANGE * self.max_message_bytes
        while (chunk := await self._more(reply, decoder)) is not None:
            budget -= _weight(chunk)
            if budget < 0:
                raise MessageTooLarge(
                    self.backend_id,
                    f"sent over {MESSAGES_PER_EXCHANGE} x {self.max_message_bytes} bytes in one exchange, each line "
                    f"counted as {LINE_BYTES} more (max_message_bytes)",
                    may_have_executed=True,
                )
            for message in self._messages(chunk, decoder, reply):
                if isinstance(message, Request | Notification):
                    await on_other(message)
                elif same_id(message.id, message_id) or (isinstance(message, ErrorReply) and message.id is None):
                    await self.drain(reply)
                    return message
                else:
                    self.complaints.make(
                        "backend %r: dropped an answer to a request that is not waiting here", self.backend_id
                    )
        return Interrupted(decoder.last_event_id, decoder.retry)

    def _messages(self, chunk: bytes, decoder: SseDecoder, reply: Reply) -> Iterator[Message]:
        """The messages whose events end in `chunk`."""
        try:
            events = decoder.feed(chunk)
        except SseLimit as exc:
            raise MessageTooLarge(
                self.backend_id, f"sent an event over a limit (max_message_bytes): {exc}", may_have_executed=True
            ) from exc
        events.reverse()
        while events:
            text = self._text_of(events.pop(), reply)  # the bytes are gone by now
            if text is not None:
                yield self._parse(text, reply)

    def _text_of(self, event: SseEvent, reply: Reply) -> str | None:
        """The message in an event, if it is one."""
        # "Unknown event names are ignored"; an empty one only carries an id.
        return self._text(event.data, reply) if event.event == "message" and event.data else None

    async def _more(self, reply: Reply, decoder: SseDecoder) -> bytes | None:
        """The next bytes of a stream. One that breaks where it can be resumed has ended, like any other."""
        try:
            return await reply.receive()
        except BackendUnavailable:
            if decoder.last_event_id is None:
                raise
            return None

    async def refusal_in(self, reply: Reply) -> ErrorReply | HttpRefusal:
        """What an HTTP error says that answers no request; a JSON-RPC error in it may name any id."""
        return await self._refused(reply, None)

    async def _refused(self, reply: Reply, message_id: int | None) -> ErrorReply | HttpRefusal:
        """An HTTP error may have a JSON-RPC error in its body, whatever its Content-Type says."""
        data: bytes | bytearray = b""
        message: Message | None = None
        with suppress(BadMessage, BackendError):
            data = await reply.read(MOST_ERROR_BYTES)
            message = parse_message(data, max_depth=self.max_json_depth)
        if isinstance(message, ErrorReply) and (
            message.id is None or message_id is None or same_id(message.id, message_id)
        ):
            return message
        return HttpRefusal(reply.status, reply.header("www-authenticate"), b"session" in data.lower())

    def _text(self, data: bytes | bytearray, reply: Reply) -> str:
        try:
            return to_text(data)
        except BadMessage as exc:
            raise reply.protocol_error(f"sent a message that {exc}") from exc

    def _parse(self, text: str, reply: Reply) -> Message:
        try:
            return parse_text(text, max_depth=self.max_json_depth)
        except BadMessage as exc:
            raise reply.protocol_error(f"sent a message that {exc}") from exc

    def _matching(self, message: Message, message_id: int, reply: Reply) -> Result | ErrorReply:
        if isinstance(message, Request | Notification):
            raise reply.protocol_error("answered a request with a request or notification")
        if not same_id(message.id, message_id) and not (isinstance(message, ErrorReply) and message.id is None):
            raise reply.protocol_error("answered with the id of another request")
        return message

    async def drain(self, reply: Reply) -> None:
        if reply.is_ended or not self._ends_streams:
            return
        # Shielded, so that an answer that is already here is not lost to a deadline that ends just now; and only up to
        # that deadline, which is not to be missed for the sake of a connection.
        enough = trio.current_time() + DRAIN_TIMEOUT
        with trio.move_on_at(min(enough, trio.current_effective_deadline()), shield=True) as patience:
            try:
                for _ in range(MOST_DRAINED):
                    if await reply.receive() is None:
                        return
            except BackendError:
                return  # what was to come has come
        if patience.cancelled_caught and trio.current_time() >= enough:
            self._ends_streams = False


def is_stream(reply: Reply) -> bool:
    """Events come in it, or are to come."""
    return 200 <= reply.status < 300 and reply.media_type == "text/event-stream"


def _weight(chunk: bytes) -> int:
    """What a piece of a stream counts for."""
    begin, end = line_ends(chunk)
    ends = chunk.count(b"\n", begin, end) + chunk.count(b"\r", begin, end)
    return len(chunk) + LINE_BYTES * ends


# JSON-RPC and MCP errors that say: this was not run.
_NOT_RUN = frozenset({-32700, -32600, -32601, -32602, -32020, -32021, -32022})


# JSON-RPC errors that are about what was asked, or about what came of it.
_ABOUT_THE_REQUEST = frozenset({-32602, -32603})


def names_session(outcome: Outcome) -> bool:
    """Whether a refusal is about the session, and not about what was asked in it: restarted servers answer so."""
    if isinstance(outcome, ErrorReply):
        return "session" in outcome.message.lower() and outcome.code not in _ABOUT_THE_REQUEST
    return isinstance(outcome, HttpRefusal) and outcome.names_session


def refusal(backend_id: str, method: str, outcome: ErrorReply | HttpRefusal) -> BackendError:
    """The error for a request that was answered with one."""
    if isinstance(outcome, ErrorReply):
        text = outcome.message[:MOST_QUOTED]
        return BackendRejected(
            backend_id,
            f"rejected {method!r}: {text!r} ({outcome.code})",
            code=outcome.code,
            message=outcome.message,
            data=outcome.data,
            may_have_executed=outcome.code not in _NOT_RUN,
        )
    status = outcome.status
    if status in (401, 403):
        challenge = f" ({outcome.www_authenticate[:MOST_QUOTED]!r})" if outcome.www_authenticate else ""
        return BackendUnauthorized(backend_id, f"refused the credentials for {method!r}: HTTP {status}{challenge}")
    return BackendRejected(
        backend_id,
        f"answered {method!r} with HTTP {status}",
        code=status,
        message=f"HTTP {status}",
        may_have_executed=status >= 500 or status == 408,  # the other 4xx say that it was not taken
    )
