"""A client over one stream of JSON-RPC messages in both directions: what HTTP+SSE and stdio have in common.

Calls wait in their callers' tasks (`_inbox`). How a message gets out, and how the connection ends, is the wire's
business: see `Wire`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

import attrs
import trio

from trio_vmcp._nursery import describe_crash, start_clean
from trio_vmcp._outbound import begin_request, note_written
from trio_vmcp.client._client import CLIENT_INFO, CallingClient, declared_capabilities, negotiated
from trio_vmcp.client._era import LEGACY_VERSIONS, MODERN_VERSION
from trio_vmcp.client._inbox import Inbox, Loss, Waiter
from trio_vmcp.client._jsonrpc import (
    ErrorReply,
    Notification,
    Request,
    RequestId,
    Result,
    encode_error,
    encode_notification,
    encode_request,
    encode_result,
)
from trio_vmcp.client._legacy import METHOD_NOT_FOUND, MOST_ANSWERS, InitializeRefused
from trio_vmcp.client._modern import RESERVED_META, completed
from trio_vmcp.client._streamable import HttpRefusal, OnOther, ignore_other, refusal
from trio_vmcp.errors import BackendError
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON

__all__ = ["DuplexClient", "OnRequest", "Wire", "refuse_request"]

logger = logging.getLogger("trio_vmcp.client")

INTERNAL_ERROR = -32603

OnRequest: TypeAlias = Callable[[Request, Identity | None], Awaitable[bytes | None]]
"""Answers a request of the backend's, other than `ping`: the encoded JSON-RPC answer, or None for no answer at all.

It runs in a task of its own, in a clean context, beside the reading of the stream; at most MOST_ANSWERS of one
connection at a time, more are dropped. The backend's `notifications/cancelled` cancels it. The identity is None: such a
stream does not say to which call a request belongs. What it raises is logged by its kind and answered as an internal
error.
"""


async def refuse_request(message: Request, identity: Identity | None) -> bytes:
    """For a client that declares nothing."""
    return encode_error(message.id, METHOD_NOT_FOUND, "this client offers no such capability")


class Wire(Protocol):
    """The way out of a connection, and its end."""

    def sending(self, data: bytes, waiter: Waiter, identity: Identity | None) -> AbstractAsyncContextManager[None]:
        """Send a request while the block waits for its answer; leaving the block early takes back what can be.

        What keeps the request from being sent settles the waiter. As soon as some of it may be out, and not before,
        `waiter.note.written` is True.
        """
        ...

    async def say(self, data: bytes, identity: Identity | None) -> None:
        """Send what has no answer, so that whatever is sent afterwards comes behind it.

        Raises:
            BackendError: It could not be sent.
        """
        ...

    def say_soon(self, data: bytes, identity: Identity | None) -> None:
        """The same without waiting. It may get lost, and does so when too much is on its way already."""
        ...

    async def aclose(self) -> None:
        """End the connection. Cancelled, it is over at once all the same."""
        ...


@attrs.define(eq=False, kw_only=True)
class DuplexClient(CallingClient):
    """A `BackendClient` over one stream, of the era that its record names; the legacy one until `adopt`."""

    _inbox: Inbox = attrs.field(alias="inbox", repr=False)
    _wire: Wire = attrs.field(alias="wire", repr=False)
    _nursery: trio.Nursery = attrs.field(alias="nursery", repr=False)
    _answer_request: OnRequest = attrs.field(default=refuse_request, alias="on_request", repr=False)
    _capabilities: JSON = attrs.field(factory=dict, alias="capabilities", repr=False)  # what is declared to the backend
    _answering: dict[RequestId, trio.CancelScope] = attrs.field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._inbox.on_other = self._take_other

    @property
    def loss(self) -> Loss | None:
        """Why nothing will ever be answered again; None while the connection lives."""
        return self._inbox.loss

    async def initialize(self, identity: Identity | None) -> None:
        """The handshake of the legacy era.

        Raises:
            InitializeRefused: The backend answered with an error.
            BackendError: It did not answer, or not with MCP.
        """
        params = {"protocolVersion": LEGACY_VERSIONS[0], "capabilities": self._capabilities, "clientInfo": CLIENT_INFO}
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
        """Speak the modern era from now on, and take over what the server declared.

        Raises:
            BackendProtocolError, MessageTooLarge: Its capabilities cannot be kept.
        """
        capabilities = declared_capabilities(self.record.backend_id, "server/discover", result)
        self.record = attrs.evolve(
            self.record, era="modern", protocol_version=MODERN_VERSION, server_capabilities=capabilities
        )

    async def aclose(self, *, terminate: bool) -> None:
        # Nobody is to be told of the end: the backend's session is the connection.
        await self._wire.aclose()

    async def _ask(self, method: str, params: JSON, identity: Identity | None) -> Result | ErrorReply | HttpRefusal:
        message_id = next(self._ids)
        return await self._settled(message_id, method, params, identity, ignore_other)

    async def _exchange(
        self, message_id: int, method: str, params: JSON, identity: Identity | None, on_other: OnOther
    ) -> JSON:
        modern = self.record.era == "modern"
        outcome = await self._settled(
            message_id, method, self._stamped(params) if modern else params, identity, on_other
        )
        if isinstance(outcome, Result):
            return completed(self.record.backend_id, method, outcome.result) if modern else outcome.result
        note_written(False)
        raise refusal(self.record.backend_id, method, outcome)

    def _stamped(self, params: JSON) -> JSON:
        own = RESERVED_META | {"io.modelcontextprotocol/clientCapabilities": self._capabilities}
        return params | {"_meta": params.get("_meta", {}) | own}

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
        match message:
            case Request():
                self._on_request(message, None)
            case Notification(method="notifications/cancelled", params={"requestId": int() | str() as request_id}):
                scope = self._answering.get(request_id)
                if scope is not None and not isinstance(request_id, bool):
                    scope.cancel(reason="notifications/cancelled")
            case _:
                self._events(message.method, message.params)

    def _on_request(self, message: Request, identity: Identity | None) -> None:
        backend_id = self.record.backend_id
        if self.record.era == "modern":
            logger.warning("backend %r: ignored a request, which this era's servers do not send", backend_id)
        elif message.method == "ping":
            self._wire.say_soon(encode_result(message.id, {}), identity)
        elif message.id in self._answering or len(self._answering) >= MOST_ANSWERS:
            logger.debug("backend %r: dropped a request: %d are being answered", backend_id, len(self._answering))
        else:
            self._answering[message.id] = trio.CancelScope()
            start_clean(self._nursery, self._answer, message, identity)

    async def _answer(self, message: Request, identity: Identity | None) -> None:
        answer: bytes | None = None
        try:
            with self._answering[message.id]:
                answer = await self._answer_request(message, identity)
        except Exception as crash:  # noqa: BLE001  # a handler is the user's, and may raise anything
            backend_id, kind = self.record.backend_id, describe_crash(crash)
            logger.warning("backend %r: %r could not be answered: %s", backend_id, message.method[:128], kind)
            answer = encode_error(message.id, INTERNAL_ERROR, "the client failed to answer")
        finally:
            del self._answering[message.id]
        if answer is not None:
            self._wire.say_soon(answer, identity)
