"""The knobs of a scripted backend, the record that a test looks at, and the parts that both eras share."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import attrs
import trio

from trio_vmcp.models import JSON
from trio_vmcp.testing.catalog import Catalog
from trio_vmcp.testing.context import CallContext, InputRequired, Requests
from trio_vmcp.testing.exchange import Exchange
from trio_vmcp.testing.faults import Fault, FaultRule
from trio_vmcp.testing.listening import EventLog, HeldStreams, Listeners
from trio_vmcp.testing.questions import Questions
from trio_vmcp.testing.rounds import Rounds, check_inputs
from trio_vmcp.testing.rpc import LEGACY_VERSIONS

__all__ = ["BackendEra", "BackendTransport", "Script", "SessionStream"]

BackendEra: TypeAlias = Literal["legacy", "modern", "both"]
BackendTransport: TypeAlias = Literal["streamable-http", "sse"]


@attrs.define(eq=False)
class SessionStream:
    """The stream of one session over "sse"."""

    send: trio.MemorySendChannel[JSON | bytes]
    lifetime: trio.CancelScope = attrs.field(factory=trio.CancelScope)


def _server_info(backend: Script) -> JSON:
    return {"name": backend.name, "version": "1"}


@attrs.define(eq=False, kw_only=True)
class Script(Catalog):
    """The behaviour of a scripted backend, and its record. Its tools, resources and prompts: `Catalog`.

    Attributes:
        name: Stands in `server_info` and begins session ids.
        era: The era of the protocol that the backend speaks; "both" decides for each request.
        transport: The transport over HTTP. With "sse" (HTTP+SSE, MCP 2024-11-05) a GET opens a stream, all answers come
            on that stream, and `sessions` holds the open streams. Not over HTTP: see `serve_lines`.
        endpoint: The target for POSTs to an "sse" backend; any other target is answered 405.
        holds_posts: An "sse" backend answers a POST only after the answer is on the stream.
        answers: The form of a response: one JSON object, or a stream of events.
        resumable: Event streams of a legacy backend have ids, and a GET with `Last-Event-ID` resumes them.
        retry_ms: The `retry` of resumable streams: ms that a client waits before it reconnects.
        listens: The backend offers the stream for notifications (GET, or `subscriptions/listen`) and declares
            `listChanged`. With `resumable`, a client that comes back to a GET stream gets the notifications since its
            last id.
        stream_seconds: s after which the backend ends such a stream; 0: right after its head or acknowledgement; None:
            never.
        graceful: A modern stream ends with a result. False: it ends without one, and over lines with
            `notifications/cancelled`.
        honours: Returns the part of a subscription that is acknowledged and served.
        latency: s to wait before each HTTP answer.
        session_ids: A legacy backend gives out session ids and requires them.
        protocol_version: The version in the answer to `initialize`, whatever the client asks for.
        ttl_ms, cache_scope: Stand in cacheable results of a modern backend.

        exchanges: Every HTTP request received, in order.
        sessions: The live legacy sessions: id → the params of their `initialize`.
        deleted_sessions: Ids that clients have DELETEd, in order.
        subscriptions: The resources that legacy clients have subscribed to, by session.
        log_levels: The level that legacy clients have set, by session; a backend that declares `logging` takes it.
        errors: Exceptions of the backend itself: a bug of the test or of this package.
    """

    name: str = "scripted"
    era: BackendEra = "legacy"
    transport: BackendTransport = "streamable-http"
    endpoint: str = "/messages"
    holds_posts: bool = False
    answers: Literal["json", "sse"] = "json"
    resumable: bool = False
    retry_ms: int | None = None
    listens: bool = False
    stream_seconds: float | None = None
    graceful: bool = True
    honours: Callable[[JSON], JSON] = lambda subscription: subscription
    latency: float = 0.0
    session_ids: bool = True
    protocol_version: str = LEGACY_VERSIONS[-1]
    server_info: JSON = attrs.field(default=attrs.Factory(_server_info, takes_self=True))
    instructions: str | None = None
    ttl_ms: int = 0
    cache_scope: Literal["public", "private"] = "private"

    exchanges: list[Exchange] = attrs.field(factory=list, init=False)
    sessions: dict[str, JSON] = attrs.field(factory=dict, init=False)
    deleted_sessions: list[str] = attrs.field(factory=list, init=False)
    subscriptions: dict[str | None, set[str]] = attrs.field(factory=dict, init=False)
    log_levels: dict[str | None, str] = attrs.field(factory=dict, init=False)
    errors: list[Exception] = attrs.field(factory=list, init=False)

    _logs: dict[str, EventLog] = attrs.field(factory=dict, init=False)
    _listeners: Listeners = attrs.field(factory=Listeners, init=False)
    _streams: dict[str, SessionStream] = attrs.field(factory=dict, init=False)  # of "sse", by session id
    _held_streams: HeldStreams = attrs.field(factory=HeldStreams, init=False)
    _rules: list[FaultRule] = attrs.field(factory=list, init=False)
    _running: dict[Exchange, None] = attrs.field(factory=dict, init=False)
    _questions: Questions = attrs.field(factory=Questions, init=False)
    _rounds: Rounds = attrs.field(factory=Rounds, init=False)
    _session_numbers: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False)
    _connection_numbers: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False)

    # What tests look at

    @property
    def in_flight(self) -> int:
        """Number of HTTP requests that have not ended; a legacy request may outlive its connection."""
        return len(self._running)

    @property
    def listening(self) -> int:
        """Number of clients that have a stream for notifications open."""
        return len(self._held_streams)

    @property
    def cancelled(self) -> Counter[str]:
        """How many calls of each tool the client cancelled."""
        calls = (e for e in self.exchanges if e.method == "tools/call" and e.outcome == "cancelled")
        return Counter(str(call.params.get("name")) for call in calls)

    def received(self, method: str) -> list[Exchange]:
        """The exchanges of one JSON-RPC method, or HTTP verb, in order."""
        return [exchange for exchange in self.exchanges if method in (exchange.method, exchange.verb)]

    # What tests do to it

    def fail(
        self, matches: str | Callable[[Exchange], bool], fault: Fault, *, times: float = float("inf"), skip: int = 0
    ) -> FaultRule:
        """Script a fault. Of several rules that match, the oldest strikes.

        Args:
            matches: A JSON-RPC method, an HTTP verb, `CONNECT`, or a predicate over the exchange.
            times: How often the fault strikes.
            skip: Number of matches that are served normally first.
        """
        rule = FaultRule(matches, fault, times, skip)
        self._rules.append(rule)
        return rule

    def heal(self) -> None:
        """Remove all scripted faults. Requests that hang already go on hanging."""
        self._rules.clear()

    def notify(self, method: str, params: JSON | None = None) -> None:
        """Notify every client that listens now, and in the modern era has subscribed to it."""
        self._listeners.notify(method, params or {})

    def send(self, message: JSON | bytes) -> None:
        """Send any message to every client that listens, well-formed or not, subscribed to or not; bytes go out as
        they are.
        """
        self._listeners.send(message)

    async def ask(self, method: str, params: JSON) -> Any:
        """Send a request to the one legacy client that listens, outside of any call, and wait for the result.

        Raises:
            RpcError: The client answered with an error.
        """
        (session_id,) = self.sessions
        return (await self._questions.ask(session_id, self._listeners.send, {method: (method, params)}))[method]

    def end_session(self, session_id: str) -> None:
        """Remove a session, so that requests with its id are answered 404. Over "sse" its stream ends."""
        del self.sessions[session_id]
        stream = self._streams.pop(session_id, None)
        if stream is not None:
            stream.lifetime.cancel(reason="end_session")

    def end_streams(self) -> None:
        """End every stream for notifications, as `graceful` says."""
        self._held_streams.cancel_all()

    # What both eras of it need

    def _fault_for(self, exchange: Exchange | None) -> Fault | None:
        return next((rule.fault for rule in self._rules if rule.strikes(exchange)), None)

    def _introduction(self) -> JSON:
        introduction: JSON = {"capabilities": self.declared_capabilities(), "serverInfo": self.server_info}
        return introduction if self.instructions is None else {**introduction, "instructions": self.instructions}

    def declared_capabilities(self) -> JSON:
        declared = super().declared_capabilities()
        if self.capabilities is not None or not self.listens:
            return declared
        flags: dict[str, JSON] = {name: {"listChanged": True} for name in ("tools", "resources", "prompts")}
        flags["resources"]["subscribe"] = True
        return {name: flags.get(name, {}) for name in declared}

    def _take_notification(self, exchange: Exchange) -> None:
        """Take a notification, or the client's response to a request of the backend."""
        if exchange.method == "notifications/cancelled":
            for running in self._running:
                if running.session_id == exchange.session_id and _same_id(running, exchange.params.get("requestId")):
                    running.scope.cancel(reason="notifications/cancelled")
        elif not exchange.method:
            self._questions.take_response(exchange)

    async def _ask_within(self, context: CallContext, requests: Requests) -> dict[str, Any]:
        if context.is_modern:
            check_inputs(context.exchange, requests)
            raise InputRequired(requests)
        return await self._questions.ask(context.exchange.session_id, context.send, requests)


def _same_id(exchange: Exchange, request_id: object) -> bool:
    """Whether a cancel is for this exchange. Ids are compared with their types: 1 is not "1". `initialize` is never
    cancelled, nor is a response.
    """
    own = exchange.request_id
    return (
        exchange.method not in ("", "initialize")
        and own is not None
        and type(own) is type(request_id)
        and own == request_id
    )
