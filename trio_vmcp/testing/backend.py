"""A scripted MCP server of either era, as an HTTP application: what it offers, how it answers, what it saw."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import attrs
import trio

from trio_vmcp.models import JSON
from trio_vmcp.testing.catalog import Catalog
from trio_vmcp.testing.context import Answer, CallContext, InputRequired, Requests
from trio_vmcp.testing.exchange import Exchange, Outcome
from trio_vmcp.testing.faults import (
    Delay,
    Error,
    Fault,
    FaultRule,
    Hang,
    Raw,
    Refuse,
    Rewrite,
    Status,
    WireFault,
)
from trio_vmcp.testing.http import Reply, Request, serve_http
from trio_vmcp.testing.legacy import check_legacy, check_session
from trio_vmcp.testing.listening import EventLog, Listeners, wanted_by
from trio_vmcp.testing.modern import VERSION_KEY, check_modern, check_parameters
from trio_vmcp.testing.rounds import Rounds, check_inputs
from trio_vmcp.testing.rpc import (
    LEGACY_VERSIONS,
    MODERN_VERSION,
    SESSION_ERROR,
    RpcError,
    error_message,
    notification_message,
    result_message,
)
from trio_vmcp.testing.streams import reset

__all__ = ["ScriptedBackend"]

log: logging.Logger = logging.getLogger(__name__)

BackendEra: TypeAlias = Literal["legacy", "modern", "both"]

LISTS = ("tools/list", "resources/list", "resources/templates/list", "prompts/list")
CACHEABLE = ("server/discover", *LISTS, "resources/read")


@attrs.define(eq=False)
class _Question:
    """A request of ours that a client has yet to answer."""

    session_id: str | None
    answered: trio.Event = attrs.field(factory=trio.Event)
    response: JSON = attrs.field(factory=dict)

    async def answer(self) -> Any:
        """
        Raises:
            RpcError: The client refused.
        """
        await self.answered.wait()
        if "error" in self.response:
            error = self.response["error"]
            raise RpcError(error["code"], error["message"], error.get("data"))
        return self.response["result"]


def _server_info(backend: ScriptedBackend) -> JSON:
    return {"name": backend.name, "version": "1"}


@attrs.define(eq=False, kw_only=True)
class ScriptedBackend(Catalog):
    """An MCP server whose every answer the test decides. What it offers: see `Catalog`.

    Attributes:
        name: In `server_info` and at the beginning of session ids.
        era: Of the protocol it speaks; "both" decides for each request.
        answers: The form of a response: one JSON object, or a stream of events.
        resumable: Event streams of a legacy backend have ids, and a GET with `Last-Event-ID` resumes them.
        retry_ms: What a resumable stream tells clients to wait.
        listens: Offers the stream for notifications: GET, or `subscriptions/listen`; declares `listChanged`.
        latency: s, before each HTTP answer.
        session_ids: A legacy backend gives out session ids and insists on them.
        protocol_version: What `initialize` is answered with, whatever the client asks for.
        ttl_ms, cache_scope: What a modern backend says of cacheable results.

        exchanges: Every HTTP request received, in order.
        sessions: The live legacy sessions: id → the params of their `initialize`.
        deleted_sessions: Ids that clients have DELETEd, in order.
        errors: What broke in here; anything in it is a bug of the test or of this package.
    """

    name: str = "scripted"
    era: BackendEra = "legacy"
    answers: Literal["json", "sse"] = "json"
    resumable: bool = False
    retry_ms: int | None = None
    listens: bool = False
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
    errors: list[Exception] = attrs.field(factory=list, init=False)

    _logs: dict[str, EventLog] = attrs.field(factory=dict, init=False)
    _listeners: Listeners = attrs.field(factory=Listeners, init=False)
    _rules: list[FaultRule] = attrs.field(factory=list, init=False)
    _running: dict[Exchange, None] = attrs.field(factory=dict, init=False)
    _connections: dict[trio.abc.Stream, trio.CancelScope] = attrs.field(factory=dict, init=False)
    _questions: dict[int, _Question] = attrs.field(factory=dict, init=False)
    _question_ids: Iterator[int] = attrs.field(factory=itertools.count, init=False)  # from 0, as the official SDKs
    _rounds: Rounds = attrs.field(factory=Rounds, init=False)
    _session_numbers: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False)
    _crashed: bool = attrs.field(default=False, init=False)

    # What tests look at

    @property
    def in_flight(self) -> int:
        """HTTP requests that are not ended; a legacy one may outlive its connection."""
        return len(self._running)

    @property
    def listening(self) -> int:
        """Clients that have a stream for notifications open."""
        return len(self._listeners)

    @property
    def open_connections(self) -> int:
        """Connections whose end this backend has not seen."""
        return len(self._connections)

    @property
    def cancelled(self) -> Counter[str]:
        """How many calls of each tool the client took back."""
        calls = (e for e in self.exchanges if e.method == "tools/call" and e.outcome == "cancelled")
        return Counter(str(call.params.get("name")) for call in calls)

    def received(self, method: str) -> list[Exchange]:
        """The exchanges of one JSON-RPC method, or HTTP verb, in order."""
        return [exchange for exchange in self.exchanges if method in (exchange.method, exchange.verb)]

    # What tests do to it

    def fail(
        self, matches: str | Callable[[Exchange], bool], fault: Fault, *, times: float = float("inf"), skip: int = 0
    ) -> FaultRule:
        """Script a fault. Of several rules that match, the first one made strikes.

        Args:
            matches: A JSON-RPC method, an HTTP verb, `CONNECT`, or a predicate over the exchange.
            times: How often it strikes.
            skip: Matches that are let through first.
        """
        rule = FaultRule(matches, fault, times, skip)
        self._rules.append(rule)
        return rule

    def heal(self) -> None:
        """Forget every fault that was scripted. What hangs already goes on hanging."""
        self._rules.clear()

    def notify(self, method: str, params: JSON | None = None) -> None:
        """Tell every client that listens now, and in the modern era has subscribed to it."""
        self._listeners.tell(method, params or {})

    def crash(self) -> None:
        """Reset every connection, stop every handler, and refuse new connections until `restart`."""
        self._crashed = True
        for exchange in self._running:
            exchange.outcome = "aborted"
        for stream, lifetime in list(self._connections.items()):
            reset(stream)
            lifetime.cancel(reason="the backend crashed")

    def restart(self) -> None:
        """Accept connections again, as a new process: it knows no session."""
        self._crashed = False
        self.sessions.clear()
        self._logs.clear()

    # What a network does with it

    async def accept(self) -> None:
        """Decide on a connection attempt.

        Raises:
            ConnectionRefusedError: A fault, or the backend has crashed.
        """
        match self._fault_for(None):
            case Refuse():
                raise ConnectionRefusedError(f"backend {self.name!r} refuses connections")
            case Hang():
                await trio.sleep_forever()
            case Delay(seconds):
                await trio.sleep(seconds)
            case _:
                pass
        if self._crashed:
            raise ConnectionRefusedError(f"backend {self.name!r} has crashed")

    async def serve_connection(self, stream: trio.abc.Stream) -> None:
        """Serve one accepted connection to its end. Raises nothing: what breaks is in `errors`."""
        with trio.CancelScope() as lifetime:
            self._connections[stream] = lifetime
            try:
                await serve_http(stream, self._handle)
            except* Exception as group:  # a nursery within may have bundled them
                self.errors.extend(_leaves(group))
                log.error("scripted backend %r broke", self.name, exc_info=group)
            finally:
                self._connections.pop(stream, None)

    async def _handle(self, request: Request, reply: Reply) -> None:
        exchange = Exchange(request.verb, request.target, request.headers, request.body, trio.current_time())
        self.exchanges.append(exchange)
        self._running[exchange] = None
        is_modern = self._is_modern(exchange)
        # Legacy: "disconnection SHOULD NOT be interpreted as the client cancelling its request". Modern: that it is.
        reply.outlives_peer = not is_modern and request.verb != "GET"
        answer = Answer(reply, self.answers == "sse", self._log(is_modern), self.retry_ms)
        try:
            with exchange.scope:
                await self._script(exchange, answer, is_modern)
            if exchange.scope.cancelled_caught:
                exchange.outcome = "cancelled"
                await answer.drop()
        finally:
            del self._running[exchange]
            exchange.ended_at = trio.current_time()
            exchange.status = reply.status
            exchange.response_bytes = reply.written_bytes
            if exchange.outcome == "running":
                exchange.outcome = _outcome(reply, is_modern)

    def _log(self, is_modern: bool) -> EventLog | None:
        if not self.resumable or is_modern:
            return None
        log = EventLog(f"stream-{len(self.exchanges)}")
        self._logs[log.name] = log
        return log

    def _is_modern(self, exchange: Exchange) -> bool:
        if self.era != "both":
            return self.era == "modern"
        if exchange.method == "initialize":
            return False
        return VERSION_KEY in exchange.meta or exchange.headers.get("mcp-protocol-version") == MODERN_VERSION

    def _fault_for(self, exchange: Exchange | None) -> Fault | None:
        return next((rule.fault for rule in self._rules if rule.strikes(exchange)), None)

    async def _script(self, exchange: Exchange, answer: Answer, is_modern: bool) -> None:
        reply, fault = answer.reply, self._fault_for(exchange)
        match fault:
            case Hang(at="head"):
                await reply.hang()
                return
            case WireFault():
                reply.fault = fault
            case Delay(seconds):
                await trio.sleep(seconds)
            case Rewrite(change):
                answer.change = change
            case _:
                pass
        if self.latency > 0:
            await trio.sleep(self.latency)
        match fault:
            case Status(code, body, headers):
                await reply.respond(code, body, headers)
            case Raw(head, body):
                await reply.respond_raw(head + body)
            case _:
                await self._respond(exchange, answer, is_modern, fault)

    async def _respond(self, exchange: Exchange, answer: Answer, is_modern: bool, fault: Fault | None) -> None:
        try:
            if isinstance(fault, Error):
                raise RpcError(fault.code, fault.message, fault.data, fault.status)
            if exchange.verb == "DELETE" and not is_modern:
                await self._delete(exchange, answer.reply)
            elif exchange.verb == "GET" and not is_modern and (self.listens or self.resumable):
                await self._stream(exchange, answer)
            elif exchange.verb != "POST":
                allow = "POST" if is_modern else "POST, DELETE"
                await answer.reply.respond(405, headers=(("allow", allow),))
            elif is_modern:
                await self._modern(exchange, answer)
            else:
                await self._legacy(exchange, answer)
        except RpcError as error:
            await answer.finish(error_message(exchange.request_id, error), error.status)

    async def _delete(self, exchange: Exchange, reply: Reply) -> None:
        check_session(exchange, self.sessions)
        assert exchange.session_id is not None
        del self.sessions[exchange.session_id]
        self.deleted_sessions.append(exchange.session_id)
        await reply.respond(200)

    async def _stream(self, exchange: Exchange, answer: Answer) -> None:
        """The GET of the legacy era: the rest of an answer, or whatever the server has to say."""
        if self.session_ids:
            check_session(exchange, self.sessions)
        last_event_id = exchange.headers.get("last-event-id")
        if last_event_id is None and self.listens:
            answer.as_sse, answer.log = True, None
            await answer.open()
            async with self._listeners.listen() as notifications:
                async for notification in notifications:
                    await answer.notify(notification)
        log_name, _, count = str(last_event_id).partition("/")
        log = self._logs.get(log_name)
        if log is None or not count.isdecimal():
            raise RpcError(SESSION_ERROR, f"nothing to resume after {last_event_id!r}", status=400)
        answer.log = None
        await answer.open()
        sent = int(count)
        while events := await log.after(sent):
            sent += len(events)
            await answer.reply.send(b"".join(events))
        await answer.reply.end()

    async def _legacy(self, exchange: Exchange, answer: Answer) -> None:
        check_legacy(exchange, self.sessions if self.session_ids else None)
        if exchange.method == "initialize":
            result = self._initialize(exchange, answer)
        elif exchange.request_id is None or not exchange.method:
            self._take_notice(exchange)
            await answer.reply.respond(202)
            return
        elif exchange.method == "ping":
            result = {}
        else:
            result = await self.call(CallContext(exchange, False, answer, self._ask))
        await answer.finish(result_message(exchange.request_id, result))

    def _initialize(self, exchange: Exchange, answer: Answer) -> JSON:
        if self.session_ids:
            session_id = f"{self.name}-session-{next(self._session_numbers)}"
            self.sessions[session_id] = exchange.params
            answer.headers = (("mcp-session-id", session_id),)
        return {"protocolVersion": self.protocol_version, **self._introduction()}

    def _introduction(self) -> JSON:
        introduction: JSON = {"capabilities": self.declared_capabilities(), "serverInfo": self.server_info}
        return introduction if self.instructions is None else {**introduction, "instructions": self.instructions}

    def _take_notice(self, exchange: Exchange) -> None:
        """A notification, or the client's response to a request of ours."""
        if exchange.method == "notifications/cancelled":
            for running in self._running:
                if running.session_id == exchange.session_id and _same_id(running, exchange.params.get("requestId")):
                    running.scope.cancel(reason="notifications/cancelled")
        elif not exchange.method:
            question = self._questions.get(exchange.message.get("id"))
            if question is not None and question.session_id == exchange.session_id:
                question.response = exchange.message
                question.answered.set()

    async def _ask(self, context: CallContext, requests: Requests) -> dict[str, Any]:
        if context.is_modern:
            check_inputs(context.exchange, requests)
            raise InputRequired(requests)
        questions: dict[str, _Question] = {}
        ids: list[int] = []
        try:
            for key, (method, params) in requests.items():
                question_id = next(self._question_ids)
                ids.append(question_id)
                questions[key] = self._questions[question_id] = _Question(context.exchange.session_id)
                await context.send({"jsonrpc": "2.0", "id": question_id, "method": method, "params": params})
            return {key: await question.answer() for key, question in questions.items()}
        finally:
            for question_id in ids:
                del self._questions[question_id]

    async def _modern(self, exchange: Exchange, answer: Answer) -> None:
        served = (MODERN_VERSION,) if self.era == "modern" else (MODERN_VERSION, *reversed(LEGACY_VERSIONS))
        check_modern(exchange, served)
        if exchange.request_id is None:
            await answer.reply.respond(202)
            return
        if exchange.method == "tools/call":
            tool = next((tool for tool in self.tools if tool["name"] == exchange.params.get("name")), {})
            check_parameters(exchange, tool.get("inputSchema") or {})
        if exchange.method == "subscriptions/listen" and self.listens:
            await self._listen(exchange, answer)
        if exchange.method == "server/discover":
            result = {"supportedVersions": [MODERN_VERSION], **self._introduction()}
        else:
            answered = self._rounds.resume(exchange)
            try:
                result = await self.call(CallContext(exchange, True, answer, self._ask, answered))
            except InputRequired as question:
                result = self._rounds.suspend(exchange, question.requests, answered)
        extras: JSON = {"resultType": "complete"}
        if exchange.method in CACHEABLE:
            extras |= {"ttlMs": self.ttl_ms, "cacheScope": self.cache_scope}
        await answer.finish(result_message(exchange.request_id, extras | result))

    async def _listen(self, exchange: Exchange, answer: Answer) -> None:
        """Until the client closes the stream."""
        subscription = exchange.params.get("notifications") or {}
        tag = {"io.modelcontextprotocol/subscriptionId": exchange.request_id}
        acknowledged = {"notifications": subscription, "_meta": tag}
        answer.as_sse = True
        async with self._listeners.listen(wanted_by(subscription)) as notifications:
            await answer.notify(notification_message("notifications/subscriptions/acknowledged", acknowledged))
            async for notification in notifications:
                await answer.notify(notification | {"params": {**notification["params"], "_meta": tag}})

    def declared_capabilities(self) -> JSON:
        declared = super().declared_capabilities()
        if self.capabilities is not None or not self.listens:
            return declared
        return {name: {"listChanged": True} if name in ("tools", "resources", "prompts") else {} for name in declared}


def _same_id(exchange: Exchange, request_id: object) -> bool:
    """By type, too: 1 is not "1". `initialize` is never cancelled."""
    own = exchange.request_id
    return exchange.method != "initialize" and own is not None and type(own) is type(request_id) and own == request_id


def _outcome(reply: Reply, is_modern: bool) -> Outcome:
    if reply.complete:
        return "answered"
    if reply.cut:
        return "cut"
    if reply.peer_is_gone:
        return "cancelled" if is_modern else "disconnected"
    return "aborted"


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from _leaves(exc)
        else:
            yield exc
