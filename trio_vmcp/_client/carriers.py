"""The two ways of a `subscriptions/listen`: a response of its own over HTTP, or a place on a stream that all share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import attrs
import trio

from trio_vmcp._client.channels.inbox import Inbox, Loss, Settled
from trio_vmcp._client.channels.streamable import StreamableHttp, ignore_other, is_stream
from trio_vmcp._client.channels.wire import Wire
from trio_vmcp._client.http.link import Headers
from trio_vmcp._client.subscriptions import LISTEN, SUBSCRIPTION_ID, Ear, Refused
from trio_vmcp._protocol.jsonrpc import Notification, encode_notification, encode_request
from trio_vmcp._protocol.sse import SseDecoder
from trio_vmcp._request_note import begin_request
from trio_vmcp.errors import BackendError
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON

__all__ = ["DuplexCarrier", "HttpCarrier"]

Compose: TypeAlias = Callable[[str, JSON], tuple[int, bytes, Headers]]
"""A request of this era: its id, its body and its headers."""


@attrs.define(eq=False)
class HttpCarrier:
    """A `Carrier`: a POST whose response stays open."""

    _http: StreamableHttp
    _compose: Compose = attrs.field(repr=False)
    _identity: Identity | None = attrs.field(repr=False)
    is_over: bool = attrs.field(default=False, init=False)  # the next POST may find the backend again

    @property
    def backend_id(self) -> str:
        return self._http.backend_id

    async def carry(self, params: JSON, ear: Ear) -> Refused | None:
        request_id, data, headers = self._compose(LISTEN, params)
        ear.begin(request_id)
        async with self._http.hold("POST", headers, data, identity=self._identity) as reply:
            if not is_stream(reply):
                return await self._http.plain_outcome(reply, request_id)
            decoder = SseDecoder(max_event_bytes=self._http.max_message_bytes)
            try:
                await self._http.follow(reply, decoder, ear.take)
            finally:
                if decoder.retry is not None:
                    ear.be_patient(decoder.retry)
        return None


@attrs.define(eq=False)
class _Held:
    """One request that is out.

    Attributes:
        scope: Around the wait for its answer; cancelled once nothing more of it is wanted, or is to come.
        problem: What was wrong with a message of it.
        taken_back: By the backend: it need not be told.
    """

    ear: Ear
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    problem: BackendError | None = None
    taken_back: bool = False

    def hear(self, message: Notification) -> None:
        if self.scope.cancel_called:
            return
        self.taken_back = message.method == "notifications/cancelled"
        try:
            if self.ear.take(message):
                return
        except BackendError as error:  # not of the task that reads for everybody
            self.problem = error
        self.scope.cancel(reason="this subscription has ended")


@attrs.define(eq=False)
class DuplexCarrier:
    """A `Carrier`: a request that is answered when it ends. What comes by it is told apart by its tag."""

    _inbox: Inbox
    _wire: Wire
    _compose: Callable[[JSON], tuple[int, JSON]] = attrs.field(repr=False)  # an id, and the params with their stamp
    _held: dict[int, _Held] = attrs.field(factory=dict, init=False, repr=False)  # by request id

    @property
    def backend_id(self) -> str:
        return self._inbox.backend_id

    @property
    def is_over(self) -> bool:
        return self._inbox.loss is not None

    async def carry(self, params: JSON, ear: Ear) -> Refused | None:
        request_id, params = self._compose(params)
        data = encode_request(request_id, LISTEN, params)
        note = begin_request(LISTEN)
        ear.begin(request_id)
        held = _Held(ear)
        settled: Settled | None = None
        ended = False
        with self._inbox.waiting(request_id, LISTEN, note, is_held=True) as waiter:
            self._held[request_id] = held
            try:
                async with self._wire.sending(data, waiter, None):
                    with held.scope:
                        settled = await waiter.wait(ignore_other)
                        ended = not isinstance(settled, BackendError)  # which says nothing about its answer
            finally:
                del self._held[request_id]
                if note.written and not (ended or held.taken_back):
                    # "For stdio, the client cancels by sending `notifications/cancelled`" (2026-07-28, subscriptions).
                    told = {"requestId": request_id, "reason": "nobody listens any more"}
                    self._wire.say_soon(encode_notification("notifications/cancelled", told), None)
        if held.problem is not None:
            raise held.problem
        if settled is None:
            return None
        if isinstance(settled, Loss):
            raise settled.error(self.backend_id)
        if isinstance(settled, BackendError):
            raise settled
        return settled

    def hear(self, message: Notification) -> bool:
        """A notification of nobody's request. Whether it was of a subscription: then it is nobody else's, either."""
        meta = message.params.get("_meta")
        is_tagged = isinstance(meta, dict) and SUBSCRIPTION_ID in meta
        tag: object = meta[SUBSCRIPTION_ID] if isinstance(meta, dict) and is_tagged else None
        if message.method == "notifications/cancelled":
            tag = message.params.get("requestId")
        held = self._held.get(tag) if type(tag) is int else None
        if held is not None:
            held.hear(message)
        return is_tagged or held is not None
