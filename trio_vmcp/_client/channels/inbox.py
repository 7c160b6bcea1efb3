"""Who waits for an answer on a stream that carries everybody's.

One task reads the stream and hands over what it reads (`take`); callers wait in their own tasks, each with a slot and
an event of its own. Nothing here waits for a caller: one who is cancelled or slow holds up nobody, and what comes for
him afterwards is dropped.
"""

from __future__ import annotations

import json
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import attrs
import trio

from trio_vmcp._client.channels.streamable import HttpRefusal, OnOther
from trio_vmcp._client.complaints import Complaints
from trio_vmcp._protocol.jsonrpc import (
    BadMessage,
    ErrorReply,
    Notification,
    Request,
    RequestId,
    Result,
    parse_message,
)
from trio_vmcp._request_note import RequestNote
from trio_vmcp.errors import BackendError, BackendProtocolError, BackendUnavailable, MessageTooLarge

__all__ = ["Inbox", "Loss", "Settled", "Waiter", "ignore"]

logger = logging.getLogger("trio_vmcp.client")

PROGRESS_COST = 1024  # bytes that one notification counts for beside its own: parsed, a short one takes as much


@attrs.frozen
class Loss:
    """Why a connection is over.

    Attributes:
        what: Completes the sentence "backend 'x' …", and "it …".
        why: Follows it, and begins with its own punctuation.
        kind: Of the error for who waits.
    """

    what: str
    why: str = ""
    kind: type[BackendError] = BackendUnavailable

    def error(self, backend_id: str) -> BackendError:
        return self.kind(backend_id, self.what + self.why)


Settled: TypeAlias = Result | ErrorReply | HttpRefusal | BackendError | Loss
"""What becomes of a request. A refusal over HTTP comes from the POST that carried it, not from the stream."""


@attrs.define(eq=False)
class Waiter:
    """One caller and his request."""

    id: int
    method: str
    note: RequestNote = attrs.field(repr=False)
    _most_bytes: int = attrs.field(alias="most_bytes")
    is_held: bool = False  # its answer is the end of what it asked for, and not what anybody else may take for his
    _settled: Settled | None = attrs.field(default=None, init=False, repr=False)
    _heard: deque[tuple[Notification, int]] = attrs.field(factory=deque, init=False, repr=False)
    _heard_bytes: int = attrs.field(default=0, init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)

    def settle(self, settled: Settled) -> None:
        """The first answer wins."""
        if self._settled is None:
            self._settled = settled
            self._changed.set()

    def hear(self, message: Notification, size: int) -> None:
        """Progress, for the caller's own task. When he falls behind too far, the oldest goes."""
        self._heard.append((message, size + PROGRESS_COST))
        self._heard_bytes += size + PROGRESS_COST
        while self._heard_bytes > self._most_bytes and len(self._heard) > 1:
            self._heard_bytes -= self._heard.popleft()[1]
        self._changed.set()

    async def wait(self, on_other: OnOther) -> Settled:
        """Pass on what is heard, in order, until the request is settled."""
        while True:
            while self._heard:
                message, size = self._heard.popleft()
                self._heard_bytes -= size
                await on_other(message)
            if self._settled is not None:
                return self._settled
            self._changed = trio.Event()
            await self._changed.wait()


def ignore(message: Request | Notification) -> None:
    """For a stream on which nothing but answers is of use."""


@attrs.define(eq=False, kw_only=True)
class Inbox:
    """The callers of one connection.

    Attributes:
        on_other: Takes what is neither an answer nor the progress of a request; never blocks.
        complaints: About what comes.
        loss: Set once the connection is over; nobody can wait any more.
    """

    backend_id: str
    max_message_bytes: int
    max_json_depth: int
    on_other: Callable[[Request | Notification], None] = ignore
    complaints: Complaints = attrs.field(factory=Complaints, init=False, repr=False)
    loss: Loss | None = attrs.field(default=None, init=False)
    _waiting: dict[int, Waiter] = attrs.field(factory=dict, init=False, repr=False)

    @contextmanager
    def waiting(self, message_id: int, method: str, note: RequestNote, *, is_held: bool = False) -> Iterator[Waiter]:
        """A place for the answer to one request, as long as the block lasts.

        Args:
            is_held: The request stays open; what cannot be told whose answer it is, is a call's.

        Raises:
            BackendUnavailable: The connection is over.
        """
        if self.loss is not None:
            raise BackendUnavailable(self.backend_id, f"is not connected: it {self.loss.what}{self.loss.why}")
        waiter = Waiter(message_id, method, note, most_bytes=self.max_message_bytes, is_held=is_held)
        self._waiting[message_id] = waiter
        try:
            yield waiter
        finally:
            self._waiting.pop(message_id, None)

    def take(self, data: bytes | bytearray) -> bool:
        """Hand one message over. False: it was not even JSON, and no loss to anybody."""
        try:
            message = parse_message(data, max_depth=self.max_json_depth)
        except BadMessage as bad:
            return self._take_bad(data, bad)
        match message:
            case Result() | ErrorReply():
                self._answer(message.id, message)
            case Notification(method="notifications/progress", params=params):
                waiter = self._waiter(params.get("progressToken"))
                if waiter is not None:
                    waiter.hear(message, len(data))
            case _:
                self.on_other(message)
        return True

    def take_too_long(self, head: bytes, tail: bytes, size: int) -> None:
        """A message over the limit went by. Its request fails, if the two ends tell whose it was, else every one."""
        error = MessageTooLarge(self.backend_id, f"sent a message of {size} bytes (max_message_bytes)")
        if _CALL.match(head):
            self.complaints.make("%s; it was no answer", error)
            return
        found = _ID_FIRST.match(head) or (_ANSWER.match(head) and _ID_LAST.search(tail))
        if found:
            self._answer(int(found[1]), error)
        else:
            for waiter in self._likely():
                self._answer(waiter.id, MessageTooLarge(self.backend_id, error.detail))

    def lose(self, loss: Loss) -> None:
        """The connection is over: so is everybody's wait."""
        if self.loss is None:
            self.loss = loss
            for waiter in self._waiting.values():
                waiter.settle(loss)
            self._waiting.clear()

    def _likely(self) -> list[Waiter]:
        """Who may be meant by what does not say whom it answers: the calls, if there are any."""
        waiters = list(self._waiting.values())
        return [waiter for waiter in waiters if not waiter.is_held] or waiters

    def _waiter(self, message_id: object) -> Waiter | None:
        # By type, too: `True == 1 == 1.0`.
        return self._waiting.get(message_id) if type(message_id) is int else None

    def _answer(self, message_id: RequestId | None, settled: Settled) -> None:
        if message_id is None and len(likely := self._likely()) == 1:  # an error that could not tell whose it is
            message_id = likely[0].id
        waiter = self._waiter(message_id)
        if waiter is None:
            logger.debug("backend %r: dropped an answer that nobody waits for", self.backend_id)
            return
        del self._waiting[waiter.id]  # what comes after the first is late
        waiter.settle(settled)

    def _take_bad(self, data: bytes | bytearray, bad: BadMessage) -> bool:
        """It may still name its request, which then need not wait for its deadline."""
        try:
            message = json.loads(data)
        except (ValueError, RecursionError, MemoryError):
            return False
        waiter = None
        if isinstance(message, dict) and "method" not in message:
            waiter = self._waiter(message.get("id"))
        if waiter is None:
            self.complaints.make("backend %r: dropped a message that %s", self.backend_id, bad)
        else:
            self._answer(waiter.id, BackendProtocolError(self.backend_id, f"sent a message that {bad}"))
        return True


# The id of an answer whose middle is not known: where it cannot be anything else. Serializers write it right at the
# beginning, or right at the end.
_BEGIN = rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?'
_ID = rb'"id"\s*:\s*(\d{1,18})\s*'
_CALL = re.compile(_BEGIN + rb'(?:"id"\s*:\s*[^,]{1,64},\s*)?"(?:method|params)"\s*:')
_ANSWER = re.compile(_BEGIN + rb'"(?:result|error)"\s*:')
_ID_FIRST = re.compile(_BEGIN + _ID + rb',\s*"(?:result|error)"\s*:')
_ID_LAST = re.compile(rb',\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?' + _ID + rb'(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*\Z')
