"""A channel with one stream of messages in each direction, which all requests share, as over HTTP+SSE and stdio.

Requests wait in their callers' tasks (`inbox`). The subclasses send messages and end the connection.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager

import attrs
import trio

from trio_vmcp._client.channels.channel import Ask, Headers, MessageSink, Send, StreamWatcher, ignore_other
from trio_vmcp._client.channels.inbox import Inbox, PendingRequest, Settled
from trio_vmcp._client.channels.pace import Pace
from trio_vmcp._client.complaints import Complaints
from trio_vmcp._client.listening import Listening
from trio_vmcp._protocol.jsonrpc import Message, Notification, Request, encode_notification
from trio_vmcp._protocol.methods import CANCELLED, SUBSCRIPTION_ID
from trio_vmcp._protocol.outcomes import Answer, Loss, Refusal, RequestOutcome
from trio_vmcp._request_note import RequestNote
from trio_vmcp.errors import BackendError
from trio_vmcp.identity import Identity

__all__ = ["DuplexChannel"]


@attrs.define(eq=False)
class _HeldRequest:
    """One request that stays open.

    Attributes:
        scope: Around the wait for the answer. Cancelled when no more messages are wanted, or none will come.
        problem: The error that a message of this request caused.
        is_cancelled: The backend has cancelled the request, so it needs no cancel notice.
    """

    accept: Callable[[Message], bool]
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    problem: BackendError | None = None
    is_cancelled: bool = False

    def take_message(self, message: Notification) -> None:
        if self.scope.cancel_called:
            return
        self.is_cancelled = message.method == CANCELLED
        try:
            if self.accept(message):
                return
        except BackendError as error:  # it ends this request, and not the task that reads for all of them
            self.problem = error
        self.scope.cancel(reason="this stream has ended")


@attrs.define(eq=False, kw_only=True)
class DuplexChannel(abc.ABC):
    """A `SessionChannel`, which also carries the modern era. Its session is the connection, and has no id."""

    inbox: Inbox
    ids: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False, repr=False)
    _sink: MessageSink = attrs.field(init=False, repr=False)
    _held: dict[int, _HeldRequest] = attrs.field(factory=dict, init=False, repr=False)  # by request id
    _tells_tags: bool = attrs.field(default=False, init=False)  # a message with a tag is for a request that stays open

    def __attrs_post_init__(self) -> None:
        self.inbox.on_other = self._take_other

    @property
    def backend_id(self) -> str:
        return self.inbox.backend_id

    @property
    def complaints(self) -> Complaints:
        return self.inbox.complaints

    @property
    def pace(self) -> Pace:
        return self.inbox.pace

    @property
    def has_headers(self) -> bool:
        return False

    @property
    def notes_in_flight(self) -> frozenset[RequestNote]:
        return self.inbox.notes

    @property
    def is_lost(self) -> bool:
        return self.inbox.loss is not None

    @property
    def session_id(self) -> str | None:
        return None

    @property
    def listening(self) -> Listening:
        return "open"  # the one stream brings all messages

    def attach(self, sink: MessageSink) -> None:
        self._sink = sink

    def watch(self, watcher: StreamWatcher | None, *, is_asked: bool) -> None:  # noqa: B027  # empty on purpose
        """Nothing to do: the one stream brings all messages."""

    def expect_requests(self, count: int, *, and_stream: bool) -> None:  # noqa: B027  # empty on purpose
        """Nothing to do: requests share a connection. (Over HTTP+SSE each POST has its own. That transport is older
        than the fast way to open.)
        """

    async def wait_listening(self) -> None:
        await trio.lowlevel.checkpoint()

    def resume(self, session_id: str | None, version: str) -> None:
        raise AssertionError("a connection that is over cannot be resumed")

    @abc.abstractmethod
    def sending(self, ask: Ask, data: bytes, pending: PendingRequest) -> AbstractAsyncContextManager[None]:
        """Send a request while the block waits for its answer. If the block is left before the request is written, the
        request is not sent.

        If the request cannot be sent, `pending` is settled with the reason. `pending.note.written` becomes True as soon
        as some bytes of the request may have left, and not before.
        """

    @abc.abstractmethod
    async def tell(self, data: bytes, identity: Identity | None) -> None:
        """See `Channel`."""

    @abc.abstractmethod
    def tell_soon(self, data: bytes, identity: Identity | None) -> None:
        """Send a message that has no answer, without waiting. Dropped if too many are on their way."""

    @abc.abstractmethod
    def send_for(self, identity: Identity | None) -> Send:
        """See `Channel`."""

    @abc.abstractmethod
    def agree(self, version: str) -> None:
        """See `SessionChannel`."""

    def retire(self) -> None:  # noqa: B027  # empty on purpose
        """Nothing to do: a channel of one stream has no other streams."""

    @abc.abstractmethod
    async def aclose(self, *, terminate: bool) -> None:
        """See `Channel`."""

    async def greet(self, ask: Ask, data: bytes) -> RequestOutcome:
        return await self.exchange(ask, data, [])

    async def exchange(self, ask: Ask, data: bytes, headers: Headers) -> RequestOutcome:
        with self.inbox.pending(ask) as pending:
            async with self.sending(ask, data, pending):
                settled = await pending.wait(ask.on_other)
        if isinstance(settled, BackendError):
            settled.may_have_executed = ask.note.written
            raise settled
        return settled

    def blot(self, text: str) -> str:
        return self.inbox.blot(text)

    def cancel(self, ask: Ask, reason: str) -> None:
        # In both eras: the stream cannot be closed for one request, since others use it.
        self.tell_soon(encode_notification(CANCELLED, {"requestId": ask.id, "reason": reason}), ask.identity)

    async def hold(
        self,
        ask: Ask,
        data: bytes,
        headers: Headers,
        accept: Callable[[Message], bool],
        on_retry: Callable[[float], None],
    ) -> Answer | Refusal | None:
        held = _HeldRequest(accept)
        self._tells_tags = True
        settled: Settled | None = None
        ended = False
        with self.inbox.pending(ask, is_held=True) as pending:
            self._held[ask.id] = held
            try:
                async with self.sending(ask, data, pending):
                    with held.scope:
                        settled = await pending.wait(ignore_other)
                        ended = not isinstance(settled, BackendError)  # after which the request may still be open
            finally:
                del self._held[ask.id]
                if ask.note.written and not (ended or held.is_cancelled):
                    # "For stdio, the client cancels by sending `notifications/cancelled`" (2026-07-28, subscriptions).
                    self.cancel(ask, "its messages are not wanted any more")
        if held.problem is not None:
            raise held.problem
        if isinstance(settled, Loss):
            raise settled.error(self.backend_id)
        if isinstance(settled, BackendError):
            raise settled
        return settled

    def _take_other(self, message: Request | Notification) -> None:
        # The stream does not say which call a message belongs to, so handlers are told no caller.
        if isinstance(message, Request) or not (self._tells_tags and self._take_held(message)):
            self._sink.on_message(message)

    def _take_held(self, message: Notification) -> bool:
        """Hand a notification to the request that it is for. Returns whether it was for a request that stays open."""
        meta = message.params.get("_meta")
        is_tagged = isinstance(meta, dict) and SUBSCRIPTION_ID in meta
        tag: object = meta[SUBSCRIPTION_ID] if isinstance(meta, dict) and is_tagged else None
        if message.method == CANCELLED:
            tag = message.params.get("requestId")
        held = self._held.get(tag) if type(tag) is int else None
        if held is not None:
            held.take_message(message)
        return is_tagged or held is not None
