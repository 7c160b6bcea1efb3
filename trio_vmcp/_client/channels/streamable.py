"""The channel of streamable HTTP: each request is a POST, and its answer is the response: JSON, or a stream of events.

The reading loop hands other messages on that stream to `Ask.on_other`, so progress and list changes need no task of
their own. Source: MCP 2025-11-25 and 2026-07-28, basic/transports, "Streamable HTTP".
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

import attrs
import trio

from trio_vmcp._client.channels.channel import Ask, Headers, MessageSink, Send
from trio_vmcp._client.channels.event_reader import EventReader, texts_of
from trio_vmcp._client.channels.pace import Pace
from trio_vmcp._client.channels.parsing import parse, read_answer, split_batch
from trio_vmcp._client.complaints import Complaints
from trio_vmcp._client.http.link import HttpExchange, HttpLink
from trio_vmcp._client.http.reply import HttpReply
from trio_vmcp._client.listening import MAX_SILENCE
from trio_vmcp._protocol.jsonrpc import (
    BadMessage,
    ErrorReply,
    Message,
    Notification,
    Request,
    Result,
    meant_id,
    parse_message,
    same_id,
    to_text,
)
from trio_vmcp._protocol.outcomes import (
    MOST_QUOTED,
    Answer,
    Loss,
    Refusal,
    RequestOutcome,
)
from trio_vmcp._protocol.reading import Oversized, Unreadable
from trio_vmcp._protocol.sse import SseDecoder, SseEvent, line_ends
from trio_vmcp._protocol.words import quoted
from trio_vmcp._request_note import RequestNote
from trio_vmcp.errors import BackendUnavailable, MessageTooLarge
from trio_vmcp.identity import Identity

__all__ = ["Streamable", "is_stream"]

logger = logging.getLogger("trio_vmcp.client")

# The limit for all messages of one exchange together, in messages of the largest size: parsing them takes time.
MESSAGES_PER_EXCHANGE = 4
LINE_BYTES = 128  # that each line counts for besides its own: many short lines take time
SILENCE_STEP = 1.0  # s; to move a deadline costs more than to read a chunk, so that of a silence moves in steps
_MEMBER = '"jsonrpc"'  # of every message; a text without it comes from something else, such as a gateway, and is quoted
_MOST_SHOWN = 8 * 1024  # characters of such a text, in which words are looked for


@attrs.define(eq=False)
class Streamable:
    """A `Channel`.

    Attributes:
        ids: Of its requests, from those of before on.
    """

    link: HttpLink
    max_message_bytes: int
    max_json_depth: int
    max_json_values: float
    ids: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), repr=False)
    complaints: Complaints = attrs.field(factory=Complaints, init=False, repr=False)
    pace: Pace = attrs.field(factory=Pace, init=False, repr=False)
    _reader: EventReader = attrs.field(init=False, repr=False)
    takes_batches: bool = attrs.field(default=False, init=False)  # the negotiated version has JSON-RPC batches

    def __attrs_post_init__(self) -> None:
        self._reader = EventReader(
            self.backend_id,
            self.max_message_bytes,
            self.max_json_depth,
            self.max_json_values,
            self.complaints,
            self.pace,
        )

    @property
    def backend_id(self) -> str:
        return self.link.backend.id

    @property
    def has_headers(self) -> bool:
        return True

    @property
    def notes_in_flight(self) -> frozenset[RequestNote]:
        return frozenset()

    @property
    def is_lost(self) -> bool:
        return False  # the next POST may reach the backend again

    def attach(self, sink: MessageSink) -> None:
        """Nothing to do: in the modern era every message belongs to a request."""

    async def exchange(self, ask: Ask, data: bytes, headers: Headers) -> RequestOutcome:
        async with self.ask(ask, data, headers) as reply:
            return await self.outcome(reply, ask, None)

    async def tell(self, data: bytes, identity: Identity | None) -> None:
        await self.post(data, [], identity)

    def send_for(self, identity: Identity | None) -> Send:
        raise AssertionError("servers of the modern era send no requests")

    def cancel(self, ask: Ask, reason: str) -> None:
        """Nothing is sent: "closing the response stream is the cancellation" (2026-07-28, cancellation)."""

    async def hold(
        self,
        ask: Ask,
        data: bytes,
        headers: Headers,
        accept: Callable[[Message], bool],
        on_retry: Callable[[float], None],
    ) -> Answer | Refusal | None:
        async with self.open_stream("POST", headers, data, identity=ask.identity) as reply:
            if not is_stream(reply):
                return await self.plain_outcome(reply, ask)
            decoder = SseDecoder(max_event_bytes=self.max_message_bytes)
            answer: Answer | None = None

            def take(message: Message) -> bool:
                nonlocal answer
                if isinstance(message, Result | ErrorReply) and _is_reply_to(message, ask):
                    answer = self._answer(message, reply)
                    return False
                return accept(message)

            try:
                await self.follow(reply, decoder, take)
            finally:
                if decoder.retry is not None:
                    on_retry(decoder.retry)
        return answer

    def blot(self, text: str) -> str:
        return self.link.given.blot(text, [])

    def retire(self) -> None:
        """Nothing to do: every exchange belongs to the task that made it."""

    async def aclose(self, *, terminate: bool) -> None:
        await self.link.aclose()

    # --- also for the channel of a session

    def ask(self, ask: Ask, data: bytes, headers: Headers) -> HttpExchange:
        """The exchange for a request."""
        return self.link.exchange("POST", headers, data, identity=ask.identity, may_repeat=ask.may_repeat)

    async def post(self, data: bytes, headers: Headers, identity: Identity | None) -> int:
        """POST a notification, or our answer to a request of the backend. Returns the HTTP status. Both do no more if
        they arrive twice: an answer is to one request, which has one answer.
        """
        exchange = self.link.exchange("POST", headers, data, identity=identity, may_repeat=True, limited=False)
        async with exchange as reply:
            await self.link.drain(reply)
            return reply.status

    def open_stream(self, verb: str, headers: Headers, data: bytes = b"", *, identity: Identity | None) -> HttpExchange:
        """The exchange for a stream that stays open. It counts under no connection limit: it would keep the slot of a
        call as long as the connection lasts.
        """
        return self.link.exchange(verb, headers, data, identity=identity, may_repeat=True, is_stream=True)

    async def follow(self, reply: HttpReply, decoder: SseDecoder, accept: Callable[[Message], bool]) -> None:
        """Hand over every message of a held stream, until the stream ends, is silent for `MAX_SILENCE` s, or `accept`
        returns False.

        Raises:
            BackendError: The stream broke, or is over a limit.
        """
        reply.refuse_encoding()
        with trio.CancelScope(deadline=trio.current_time() + MAX_SILENCE) as silence:
            await self._follow(reply, decoder, accept, silence)
        if silence.cancelled_caught:
            logger.debug("backend %r: said nothing for %s s on a stream; opening another", self.backend_id, MAX_SILENCE)

    async def _follow(
        self, reply: HttpReply, decoder: SseDecoder, accept: Callable[[Message], bool], silence: trio.CancelScope
    ) -> None:
        while (chunk := await reply.receive()) is not None:
            deadline = trio.current_time() + MAX_SILENCE
            if deadline - silence.deadline >= SILENCE_STEP:
                silence.deadline = deadline
            for text, size, more_lines in texts_of(await self._reader.events(chunk, decoder, reply)):
                parts = await self._parts(text)
                for part in parts:
                    message = await self._reader.read(part)
                    if isinstance(message, Unreadable | Oversized):
                        self._reader.complain_of(message)
                    elif message is not None and not accept(message):
                        return  # the connection is closed with the rest of the stream, which may have no end
                    self.pace.charge_message(message, size // len(parts), more_lines // len(parts))
                    if self.pace.is_due:
                        await self.pace.wait()

    async def outcome(self, reply: HttpReply, ask: Ask, last_event_id: str | None) -> RequestOutcome:
        """The outcome of a request, from its response.

        Args:
            last_event_id: The event after which the stream is resumed; None: the stream begins.

        Raises:
            BackendError: The response is no answer to this request.
        """
        if not is_stream(reply):
            return await self.plain_outcome(reply, ask)
        reply.refuse_encoding()
        decoder = SseDecoder(max_event_bytes=self.max_message_bytes)
        decoder.last_event_id = last_event_id
        strays: list[ErrorReply] = []
        budget, is_first = MESSAGES_PER_EXCHANGE * self.max_message_bytes, True
        while (chunk := await self._more(reply, decoder)) is not None:
            budget -= _charged_bytes(chunk)
            if budget < 0:
                raise MessageTooLarge(
                    self.backend_id,
                    f"sent over {MESSAGES_PER_EXCHANGE} x {self.max_message_bytes} bytes in one exchange, each line "
                    f"counted as {LINE_BYTES} more (max_message_bytes)",
                    may_have_executed=True,
                )
            events = await self._reader.events(chunk, decoder, reply, is_awaited=is_first)
            answer, is_first = await self._answer_in(events, reply, ask, strays), False
            if answer is not None:
                await self.link.drain(reply)
                return answer
        if strays and decoder.last_event_id is None:  # nothing else explains why there is no answer
            return self._answer(strays[-1], reply)
        return Loss("closed the stream", last_event_id=decoder.last_event_id, retry=decoder.retry)

    async def plain_outcome(self, reply: HttpReply, ask: Ask) -> Answer | Refusal:
        """The outcome of a request, from a response that is no stream.

        Raises:
            BackendError: The response is no answer to this request.
        """
        if not 200 <= reply.status < 300:
            return await self._refused(reply)
        kind = reply.media_type
        if kind == "application/json":
            text = self._text(await reply.read(self.max_message_bytes), reply)  # the bytes are gone by now
            if self.takes_batches:
                parts = await split_batch(text, max_values=self.max_json_values)
                if len(parts) > 1 or parts[0] is not text:
                    answer = await self._answer_in_batch(parts, reply, ask)
                    if answer is None:
                        raise reply.protocol_error("answered with a batch that holds no answer to the request")
                    return answer
            message = await read_answer(text, ask.id, ask.known, partial(self._parse, reply=reply))
            return self._answer(self._matching(message, ask.id, reply), reply)
        shown = repr(self.link.given.blot(kind, reply.sent)[:MOST_QUOTED]) if kind else "no content"
        words = await self.link.quote(reply)
        raise reply.protocol_error(f"answered a request with HTTP {reply.status} and {shown}{words}")

    async def refusal_in(self, reply: HttpReply) -> Answer | Refusal:
        """The outcome in an HTTP error to a GET. A JSON-RPC error in its body may have any id."""
        return await self._refused(reply)

    # --- streams

    async def _answer_in(
        self, events: list[SseEvent], reply: HttpReply, ask: Ask, strays: list[ErrorReply]
    ) -> Answer | None:
        """The answer to a request, if one of these events of its stream holds it.

        Args:
            strays: Takes the errors under the ids of other requests.
        """
        for text, size, more_lines in texts_of(events):
            if self.takes_batches and isinstance(text, str):
                parts = await split_batch(text, max_values=self.max_json_values)
                if len(parts) > 1 or parts[0] is not text:
                    self.pace.charge_lines(more_lines, 0)
                    answer = await self._answer_in_batch(parts, reply, ask)
                    if answer is not None:
                        return answer
                    continue
            message = (
                await read_answer(text, ask.id, ask.known, self._reader.read)
                if isinstance(text, str)
                else await self._reader.read(text)
            )
            if isinstance(message, Result | ErrorReply):
                if _is_reply_to(message, ask):
                    return self._answer(message, reply)
                if meant_id(message.id) == ask.id:
                    raise reply.protocol_error(f"answered with the id {message.id!r}, which is no integer")
                if isinstance(message, ErrorReply):
                    strays.append(message)
                self.complaints.make(
                    "backend %r: dropped an answer to a request that is not waiting here", self.backend_id
                )
            elif isinstance(message, Unreadable | Oversized):
                self._reader.fail_by(message, reply, ask)
                self._reader.complain_of(message)
            elif message is not None:
                await ask.on_other(message)
            self.pace.charge_message(message, size, more_lines)
            if self.pace.is_due:
                await self.pace.wait()
        return None

    async def _parts(self, text: str | Unreadable | Oversized | None) -> Sequence[str | Unreadable | Oversized | None]:
        if self.takes_batches and isinstance(text, str):
            return await split_batch(text, max_values=self.max_json_values)
        return (text,)

    async def _answer_in_batch(self, parts: list[str], reply: HttpReply, ask: Ask) -> Answer | None:
        """The answer to a request in a batch; the other messages of the batch are handed over first."""
        answer: Answer | None = None
        for part in parts:
            message = await self._reader.read(part)
            if isinstance(message, Result | ErrorReply):
                if _is_reply_to(message, ask) and answer is None:
                    answer = self._answer(message, reply)
                    continue
            elif isinstance(message, Unreadable | Oversized):
                self._reader.fail_by(message, reply, ask)
                self._reader.complain_of(message)
            elif message is not None:
                await ask.on_other(message)
            self.pace.charge_message(message, len(part))
            if self.pace.is_due:
                await self.pace.wait()
        return answer

    async def _more(self, reply: HttpReply, decoder: SseDecoder) -> bytes | None:
        """The next bytes of a stream. If a stream breaks that can be resumed, treat that as its end."""
        try:
            return await reply.receive()
        except BackendUnavailable:
            if decoder.last_event_id is None:
                raise
            return None

    # --- other responses

    def _answer(self, message: Result | ErrorReply, reply: HttpReply) -> Answer:
        if isinstance(message, Result):
            return Answer(message, reply.status)
        return Answer(message, reply.status, words=self.link.given.blot(message.message, reply.sent))

    async def _refused(self, reply: HttpReply) -> Answer | Refusal:
        """An HTTP error may have a JSON-RPC error in its body, whatever its Content-Type says."""
        message: Message | None = None
        data = await self.link.read_beginning(reply, patience=math.inf)
        with suppress(BadMessage):
            message = parse_message(data, max_depth=self.max_json_depth, max_values=self.max_json_values)
        if isinstance(message, ErrorReply):  # of whatever id: it can be about nothing but this request
            asked, challenge = self.link.given.challenge(reply)
            return Answer(
                message,
                reply.status,
                asked,
                reply.retry_after,
                is_signed=self.link.given.is_signed(reply),
                challenge=challenge,
                words=self.link.given.blot(message.message, reply.sent),
            )
        return self.link.refusal(reply, data)

    def _text(self, data: bytes | bytearray, reply: HttpReply) -> str:
        try:
            return to_text(data)
        except BadMessage as exc:
            raise reply.protocol_error(f"sent a message that {exc}") from exc

    async def _parse(self, text: str, reply: HttpReply) -> Message:
        try:
            return await parse(text, max_depth=self.max_json_depth, max_values=self.max_json_values)
        except BadMessage as exc:
            if exc.is_too_large:
                raise self._reader.too_large(str(exc)) from exc
            shown = text[:_MOST_SHOWN].lstrip()
            is_quoted = _MEMBER not in text and not shown.startswith("[")  # an array explains nothing
            words = quoted(self.link.given.words(reply, shown.encode(errors="replace"))) if is_quoted else ""
            raise reply.protocol_error(f"sent a message that {exc}{words}") from exc

    def _matching(self, message: Message, message_id: int, reply: HttpReply) -> Result | ErrorReply:
        if isinstance(message, Request | Notification):
            raise reply.protocol_error("answered a request with a request or notification")
        # An error under another id can be about nothing but this request: servers that could not read the id, or did
        # not care to, send one of their own ("server-error").
        if not same_id(message.id, message_id) and not isinstance(message, ErrorReply):
            raise reply.protocol_error("answered with the id of another request")
        return message


def _is_reply_to(message: Result | ErrorReply, ask: Ask) -> bool:
    """An error that does not tell what it answers can be about nothing but the request of its stream."""
    return same_id(message.id, ask.id) or (isinstance(message, ErrorReply) and meant_id(message.id) is None)


def is_stream(reply: HttpReply) -> bool:
    """Whether the response is a stream of events."""
    return 200 <= reply.status < 300 and reply.media_type == "text/event-stream"


def _charged_bytes(chunk: bytes) -> int:
    """The bytes that a chunk of an exchange counts for."""
    begin, end = line_ends(chunk)
    ends = chunk.count(b"\n", begin, end) + chunk.count(b"\r", begin, end)
    return len(chunk) + LINE_BYTES * ends
