"""A client over one stream of JSON-RPC messages in both directions: what HTTP+SSE and stdio have in common.

Calls wait in their callers' tasks (`_inbox`). How a message gets out, and how the connection ends, is the wire's
business: see `_wire`.
"""

from __future__ import annotations

import attrs
import trio

from trio_vmcp._client.carriers import DuplexCarrier
from trio_vmcp._client.channels.inbox import Inbox, Loss
from trio_vmcp._client.channels.streamable import HttpRefusal, OnOther, ignore_other, refusal
from trio_vmcp._client.channels.wire import Wire
from trio_vmcp._client.client import CLIENT_INFO, CallingClient, declared_capabilities, negotiated
from trio_vmcp._client.eras import LEGACY_VERSIONS, MODERN_VERSION
from trio_vmcp._client.handshake import InitializeRefused
from trio_vmcp._client.listening import SUBSCRIBE, UNSUBSCRIBE, Listening, listed_as_changing
from trio_vmcp._client.rounds import finish_rounds, is_complete
from trio_vmcp._client.stateless import reserved_meta
from trio_vmcp._client.subscriptions import Subscriptions
from trio_vmcp._protocol.jsonrpc import (
    ErrorReply,
    Notification,
    Request,
    Result,
    encode_notification,
    encode_request,
)
from trio_vmcp._request_note import begin_request, note_written
from trio_vmcp.errors import BackendError
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON

__all__ = ["DuplexClient", "Listens"]


@attrs.frozen
class Listens:
    """How a client of the modern era listens.

    Attributes:
        to_lists: To changes of lists, where they are declared (Backend.listen).
        nursery: For the tasks that do.
        retries: s, the first and the longest between two streams.
    """

    to_lists: bool
    nursery: trio.Nursery
    retries: tuple[float, float]


@attrs.define(eq=False, kw_only=True)
class DuplexClient(CallingClient):
    """A `BackendClient` over one stream, of the era that its record names; the legacy one until `adopt`."""

    _inbox: Inbox = attrs.field(alias="inbox", repr=False)
    _wire: Wire = attrs.field(alias="wire", repr=False)
    _listens: Listens | None = attrs.field(default=None, alias="listens", repr=False)  # None: it is not asked to
    _reserved: JSON = attrs.field(init=False, repr=False)
    _carrier: DuplexCarrier = attrs.field(init=False, repr=False)
    _subscriptions: Subscriptions | None = attrs.field(default=None, init=False, repr=False)  # of the modern era

    def __attrs_post_init__(self) -> None:
        self._inbox.on_other = self._take_other
        self._reserved = reserved_meta(self._requests)
        self._carrier = DuplexCarrier(self._inbox, self._wire, lambda params: (next(self._ids), self._stamped(params)))

    @property
    def loss(self) -> Loss | None:
        """Why nothing will ever be answered again; None while the connection lives."""
        return self._inbox.loss

    @property
    def listening(self) -> Listening:
        """Whether changes are heard of that have to be subscribed to."""
        return "none" if self._subscriptions is None else self._subscriptions.listening

    async def initialize(self, identity: Identity | None) -> None:
        """The handshake of the legacy era.

        Raises:
            InitializeRefused: The backend answered with an error.
            BackendError: It did not answer, or not with MCP.
        """
        params = {
            "protocolVersion": LEGACY_VERSIONS[0],
            "capabilities": self._requests.capabilities,
            "clientInfo": CLIENT_INFO,
        }
        outcome = await self._ask("initialize", params, identity)
        if not isinstance(outcome, Result):
            raise InitializeRefused(outcome, outcome.status if isinstance(outcome, HttpRefusal) else 200)
        version, capabilities = negotiated(self.record.backend_id, outcome.result)
        self.record = attrs.evolve(
            self.record, era="legacy", protocol_version=version, server_capabilities=capabilities
        )
        await self._wire.say(encode_notification("notifications/initialized", None), identity)

    async def discover(self, identity: Identity | None) -> Result | ErrorReply | HttpRefusal:
        """`server/discover`, whatever the answer; `adopt` takes a good one."""
        return await self._ask("server/discover", self._stamped({}), identity)

    def adopt(self, result: JSON) -> None:
        """Speak the modern era from now on, take over what the server declared, and listen to what it will tell of.

        Raises:
            BackendProtocolError, MessageTooLarge: Its capabilities cannot be kept.
        """
        capabilities = declared_capabilities(self.record.backend_id, "server/discover", result)
        self.record = attrs.evolve(
            self.record, era="modern", protocol_version=MODERN_VERSION, server_capabilities=capabilities
        )
        if self._listens is not None:
            self._subscriptions = Subscriptions(
                carrier=self._carrier,
                events=self._heard,
                watched=self._watched,
                nursery=self._listens.nursery,
                retries=self._listens.retries,
            )
            self._subscriptions.open(listed_as_changing(capabilities) if self._listens.to_lists else ())

    def abandon(self) -> None:
        """Nobody wants what it hears any more."""
        if self._subscriptions is not None:
            self._subscriptions.close()
        self._requests.close()

    async def aclose(self, *, terminate: bool) -> None:
        # Nobody is to be told of the end: the backend's session is the connection.
        self.abandon()
        await self._wire.aclose()

    async def _ask(self, method: str, params: JSON, identity: Identity | None) -> Result | ErrorReply | HttpRefusal:
        message_id = next(self._ids)
        return await self._settled(message_id, method, params, identity, ignore_other)

    async def _exchange(
        self, message_id: int, method: str, params: JSON, identity: Identity | None, on_other: OnOther
    ) -> JSON:
        if self.record.era == "legacy":
            return await self._result(message_id, method, params, identity, on_other)
        if self._subscriptions is not None:
            if method in (SUBSCRIBE, UNSUBSCRIBE):  # they change the set that `subscriptions/listen` names
                change = self._subscriptions.subscribe if method == SUBSCRIBE else self._subscriptions.unsubscribe
                await change(params["uri"])
                return {}
            self._unwatched.note(method, self.listening)

        async def ask_again(more: JSON) -> JSON:
            return await self._result(next(self._ids), method, self._stamped(more), identity, on_other)

        result = await self._result(message_id, method, self._stamped(params), identity, on_other)
        if is_complete(self.record.backend_id, method, result):
            return result
        return await finish_rounds(result, method, params, ask_again, self._requests.handling, identity)

    async def _result(
        self, message_id: int, method: str, params: JSON, identity: Identity | None, on_other: OnOther
    ) -> JSON:
        """One request, and its result as it came."""
        outcome = await self._settled(message_id, method, params, identity, on_other)
        if isinstance(outcome, Result):
            return outcome.result
        note_written(False)
        raise refusal(self.record.backend_id, method, outcome)

    def _stamped(self, params: JSON) -> JSON:
        return params | {"_meta": params.get("_meta", {}) | self._reserved}

    async def _settled(
        self, message_id: int, method: str, params: JSON, identity: Identity | None, on_other: OnOther
    ) -> Result | ErrorReply | HttpRefusal:
        data = encode_request(message_id, method, params)
        note = begin_request(method)
        with self._inbox.waiting(message_id, method, note) as waiter:
            async with self._wire.sending(data, waiter, identity):
                settled = await waiter.wait(on_other)
        if isinstance(settled, Loss):
            backend_id = self.record.backend_id
            settled = settled.kind(backend_id, f"{settled.what} before it answered {method!r}{settled.why}")
        if isinstance(settled, BackendError):
            settled.may_have_executed = note.written
            raise settled
        return settled

    def _give_up(self, message_id: int, identity: Identity | None, reason: str) -> None:
        # In both eras: a stream that others use cannot be closed to say it.
        notice = encode_notification("notifications/cancelled", {"requestId": message_id, "reason": reason})
        self._wire.say_soon(notice, identity)

    def _take_other(self, message: Request | Notification) -> None:
        # Nobody's: such a stream does not say to which call it belongs.
        if isinstance(message, Request):
            self._on_request(message, None)
        elif self._subscriptions is None or not self._carrier.hear(message):
            self._on_notification(message, None)

    def _on_request(self, message: Request, identity: Identity | None) -> None:
        if self.record.era == "modern":
            backend_id = self.record.backend_id
            self._inbox.complaints.make(
                "backend %r: ignored a request, which this era's servers do not send", backend_id
            )
        else:
            self._requests.take(message, identity, self._wire.answer)
