"""The pending requests of a channel that has one stream for all answers.

One task reads the stream and hands over each message (`take_message`). Each caller waits for its answer in its own
task. The reading task never waits for a caller: a caller that is slow or cancelled holds up no other, and a message for
it that arrives later is dropped.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import attrs
import trio

from trio_vmcp._client.channels.channel import Ask, OnOther
from trio_vmcp._client.channels.pace import Pace
from trio_vmcp._client.channels.parsing import read, read_answer, split_batch
from trio_vmcp._client.complaints import Complaints
from trio_vmcp._known_results import KnownResults
from trio_vmcp._protocol.jsonrpc import ErrorReply, Message, Notification, Request, RequestId, Result, meant_id
from trio_vmcp._protocol.methods import PROGRESS
from trio_vmcp._protocol.outcomes import Answer, Loss, RequestOutcome
from trio_vmcp._protocol.reading import Oversized, Unreadable, decode, find_reply_id
from trio_vmcp._request_note import RequestNote
from trio_vmcp.errors import BackendError, BackendProtocolError, BackendUnavailable, MessageTooLarge
from trio_vmcp.models import Backend
from trio_vmcp.settings import FactorySettings

__all__ = ["Inbox", "PendingRequest", "Settled", "ignore", "new_inbox"]

logger = logging.getLogger("trio_vmcp.client")

MOST_GIVEN_UP = 100  # ids of requests whose late answers are no news
PROGRESS_COST = 1024  # bytes that each notification counts for, besides its own: a parsed one takes that much memory


Settled: TypeAlias = RequestOutcome | BackendError
"""How a request ends. A refusal comes from the POST that carried the request, not from the stream."""


@attrs.define(eq=False)
class PendingRequest:
    """One request that waits for its answer.

    Attributes:
        is_held: The request stays open, such as `subscriptions/listen`. An answer without an id is taken for the answer
            of a call, not of this request.
        known: As `Ask.known`.
    """

    id: int
    note: RequestNote = attrs.field(repr=False)
    _most_bytes: int = attrs.field(alias="most_bytes")
    is_held: bool
    known: KnownResults | None = attrs.field(default=None, repr=False)
    _settled: Settled | None = attrs.field(default=None, init=False, repr=False)
    _progress: deque[tuple[Notification, int]] = attrs.field(factory=deque, init=False, repr=False)
    _progress_bytes: int = attrs.field(default=0, init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)

    @property
    def is_settled(self) -> bool:
        return self._settled is not None

    def settle(self, settled: Settled) -> None:
        """End the wait. Only the first outcome counts."""
        if self._settled is None:
            self._settled = settled
            self._changed.set()

    def add_progress(self, message: Notification, size: int) -> None:
        """Queue a progress notification for the caller. If the caller is too slow, the oldest ones are dropped."""
        self._progress.append((message, size + PROGRESS_COST))
        self._progress_bytes += size + PROGRESS_COST
        while self._progress_bytes > self._most_bytes and len(self._progress) > 1:
            self._progress_bytes -= self._progress.popleft()[1]
        self._changed.set()

    async def wait(self, on_other: OnOther) -> Settled:
        """Hand over progress in order, until the request is settled."""
        while True:
            while self._progress:
                message, size = self._progress.popleft()
                self._progress_bytes -= size
                await on_other(message)
            if self._settled is not None:
                return self._settled
            self._changed = trio.Event()
            await self._changed.wait()


def ignore(message: Request | Notification) -> None:
    """For a stream of which only the answers are of use."""


@attrs.define(eq=False, kw_only=True)
class Inbox:
    """The pending requests of one connection.

    Attributes:
        on_other: Takes each message that is neither an answer nor progress of a request; never blocks.
        complaints: About messages of the backend.
        pace: Charged for every message but the answers that requests wait for.
        takes_batches: The negotiated version has JSON-RPC batches.
        loss: Set once the connection has ended: then no request can wait any more.
        blot: Takes the secrets that the backend was given out of a text of the backend.
    """

    backend_id: str
    max_message_bytes: int
    max_json_depth: int
    max_json_values: float
    on_other: Callable[[Request | Notification], None] = ignore
    blot: Callable[[str], str] = attrs.field(default=str, kw_only=True, repr=False)
    complaints: Complaints = attrs.field(factory=Complaints, init=False, repr=False)
    pace: Pace = attrs.field(factory=Pace, init=False, repr=False)
    takes_batches: bool = attrs.field(default=False, init=False)
    loss: Loss | None = attrs.field(default=None, init=False)
    _pending: dict[int, PendingRequest] = attrs.field(factory=dict, init=False, repr=False)  # by request id
    _given_up: deque[int] = attrs.field(factory=lambda: deque(maxlen=MOST_GIVEN_UP), init=False, repr=False)  # ids
    _by_token: dict[int | None, PendingRequest] = attrs.field(factory=dict, init=False, repr=False)  # by progress token

    @contextmanager
    def pending(self, ask: Ask, *, is_held: bool = False) -> Iterator[PendingRequest]:
        """Register a request while the block lasts.

        Args:
            is_held: See `PendingRequest`.

        Raises:
            BackendUnavailable: The connection has ended.
        """
        if self.loss is not None:
            raise BackendUnavailable(self.backend_id, f"is not connected: it {self.loss.what}{self.loss.why}")
        pending = PendingRequest(ask.id, ask.note, most_bytes=self.max_message_bytes, is_held=is_held, known=ask.known)
        self._pending[ask.id] = pending
        if ask.progress_token is not None:
            self._by_token[ask.progress_token] = pending
        try:
            yield pending
        finally:
            self._pending.pop(ask.id, None)
            self._by_token.pop(ask.progress_token, None)
            if not pending.is_settled:
                self._given_up.append(ask.id)

    @property
    def notes(self) -> frozenset[RequestNote]:
        """Of the calls that wait for their answers."""
        return frozenset(pending.note for pending in self._pending.values() if not pending.is_held)

    @property
    def is_waited_for(self) -> bool:
        """A call waits for its answer."""
        return any(not pending.is_held for pending in self._pending.values())

    async def take_message(self, data: bytes | bytearray, *, may_be_cut: bool = False) -> None:
        """Hand over one message, or each message of a batch, to the request or sink that it is for.

        Args:
            may_be_cut: The connection has ended behind these bytes. If they cannot be read, that end is what the
                requests hear of: an answer that was cut off is no bad answer.
        """
        text = decode(data)
        if self.takes_batches and isinstance(text, str):
            parts = await split_batch(text, max_values=self.max_json_values)
            if parts[0] is not text:
                for part in parts:
                    await self._take_text(part, part.encode(errors="surrogatepass"))
                    if self.pace.is_due:
                        await self.pace.wait()
                return
        await self._take_text(text, data, may_be_cut=may_be_cut)

    async def _take_text(self, text: str | Unreadable, data: bytes | bytearray, *, may_be_cut: bool = False) -> None:
        message = await self._read(text) if isinstance(text, str) else text
        if isinstance(message, Unreadable) and message.too_large is not None:
            self._skip_large(message.too_large, f"sent a message that {message.problem}", len(data))
            return
        if isinstance(message, Unreadable) and may_be_cut:
            return
        if isinstance(message, Result | ErrorReply | Unreadable) and self._settle_by(message):
            return
        self.pace.charge_message(message, len(data), data.count(b"\n"))
        match message:
            case Result() | ErrorReply() if self._is_late(message):
                # "The sender of the cancellation SHOULD ignore any response that arrives afterward" (2025-11-25).
                logger.debug("backend %r: answered a request that was given up", self.backend_id)
            case Result() | ErrorReply():
                text = "backend %r: dropped an answer to a request that is not waiting here"
                self.complaints.make(text, self.backend_id)
            case Unreadable(problem=problem):
                self.complaints.make("backend %r: skipped a message that %s", self.backend_id, problem)
            case Notification(method=method, params=params) if method == PROGRESS:
                token = params.get("progressToken")
                pending = self._by_token.get(token) if type(token) is int else None
                if pending is not None:
                    pending.add_progress(message, len(data))
            case _:
                self.on_other(message)

    async def _read(self, text: str) -> Message | Unreadable:
        for pending in list(self._pending.values()):
            if pending.known is not None and find_reply_id(text, pending.id) is not None:
                return await read_answer(text, pending.id, pending.known, self._parse)
        return await self._parse(text)

    async def _parse(self, text: str) -> Message | Unreadable:
        return await read(text, max_depth=self.max_json_depth, max_values=self.max_json_values)

    def take_oversized(self, message: Oversized) -> None:
        """A message over the limit was skipped. If its ends tell which request it answers, that one fails; else all
        that it may answer.
        """
        self._skip_large(message, f"sent a message of {message.size} bytes (max_message_bytes)", message.size)

    def _skip_large(self, message: Oversized, detail: str, size: int) -> None:
        if message.is_call:
            self.pace.charge_message(None, size)
            self.complaints.make("backend %r: %s; it was no answer", self.backend_id, detail)
            return
        ids = [pending.id for pending in self._likely()] if message.reply_id is None else [message.reply_id]
        settled = [self._settle(request_id, MessageTooLarge(self.backend_id, detail)) for request_id in ids]
        if not any(settled):
            self.pace.charge_message(None, size)

    def close(self, loss: Loss) -> None:
        """The connection has ended: settle every request."""
        if self.loss is None:
            self.loss = loss
            for pending in self._pending.values():
                pending.settle(loss)
            self._pending.clear()

    def _likely(self) -> list[PendingRequest]:
        """The requests that an answer without an id is for: the calls, if there are any. None once a request was given
        up: a late answer to that request must not end another.
        """
        if self._given_up:
            return []
        calls = [pending for pending in self._pending.values() if not pending.is_held]
        return calls or list(self._pending.values())

    def _pending_request(self, message_id: object) -> PendingRequest | None:
        # The type counts, too: `True == 1 == 1.0` in Python.
        return self._pending.get(message_id) if type(message_id) is int else None

    def _settle_by(self, reply: Result | ErrorReply | Unreadable) -> bool:
        """Returns whether a request was waiting for this. A bad answer is an error of the request that it answers."""
        if isinstance(reply, Unreadable):
            error = BackendProtocolError(self.backend_id, f"sent a message that {reply.problem}")
            return self._settle(reply.reply_id, error)
        reply_id: RequestId | None = reply.id
        # An error that does not tell what it answers has no id, or one that is none of ours, such as "server-error".
        is_untold = isinstance(reply, ErrorReply) and meant_id(reply_id) is None
        if is_untold and len(likely := self._likely()) == 1:
            reply_id = likely[0].id
        words = self.blot(reply.message) if isinstance(reply, ErrorReply) else None
        if self._settle(reply_id, Answer(reply, words=words)):
            return True
        problem = f"answered with the id {reply.id!r}, which is no integer"
        return self._settle(meant_id(reply.id), BackendProtocolError(self.backend_id, problem))

    def _is_late(self, reply: Result | ErrorReply) -> bool:
        """Whether this answers a request that was given up; each has one answer. While no request waits, an error that
        does not tell what it answers does so, too; while one waits, the error may be about either.
        """
        answered = meant_id(reply.id)
        if answered is None and isinstance(reply, ErrorReply) and self._given_up and not self._pending:
            answered = self._given_up[0]
        if answered is None or answered not in self._given_up:
            return False
        self._given_up.remove(answered)
        return True

    def _settle(self, message_id: RequestId | None, settled: Settled) -> bool:
        """Returns whether the request was waiting. A second answer to it is late, and False."""
        pending = self._pending_request(message_id)
        if pending is None:
            return False
        del self._pending[pending.id]
        pending.settle(settled)
        return True


def new_inbox(backend: Backend, settings: FactorySettings) -> Inbox:
    """Of one connection to this backend."""
    return Inbox(
        backend_id=backend.id,
        max_message_bytes=settings.max_message_bytes,
        max_json_depth=settings.max_json_depth,
        max_json_values=settings.max_json_values,
    )
