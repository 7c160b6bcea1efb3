"""A scripted MCP server of either era, over any transport: what it offers, how it answers, what it saw."""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, TypeAlias

import attrs
import httpx
import trio

from trio_vmcp.models import JSON
from trio_vmcp.testing._other_ways import LineAnswer, LineReply, PostedAnswer, read_lines
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
from trio_vmcp.testing.modern import VERSION_KEY, check_modern, check_parameters, check_stamp
from trio_vmcp.testing.rounds import Rounds, check_inputs
from trio_vmcp.testing.rpc import (
    LEGACY_VERSIONS,
    MODERN_VERSION,
    PARSE_ERROR,
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
BackendTransport: TypeAlias = Literal["streamable-http", "sse"]

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


@attrs.define(eq=False)
class _SessionStream:
    """The stream that an "sse" session is."""

    send: trio.MemorySendChannel[JSON]
    lifetime: trio.CancelScope = attrs.field(factory=trio.CancelScope)


def _server_info(backend: ScriptedBackend) -> JSON:
    return {"name": backend.name, "version": "1"}


@attrs.define(eq=False, kw_only=True)
class ScriptedBackend(Catalog):
    """An MCP server whose every answer the test decides. What it offers: see `Catalog`.

    Attributes:
        name: In `server_info` and at the beginning of session ids.
        era: Of the protocol it speaks; "both" decides for each request.
        transport: How it speaks HTTP. With "sse", the transport of 2024-11-05, a GET opens a stream on which all
            answers come, and `sessions` holds the open streams. Beside HTTP: see `serve_lines`.
        endpoint: Where an "sse" backend has messages POSTed to; it answers anywhere else as its like do, with 405.
        holds_posts: An "sse" backend ends a POST when its answer is on the stream, and not at once.
        answers: The form of a response: one JSON object, or a stream of events.
        resumable: Event streams of a legacy backend have ids, and a GET with `Last-Event-ID` resumes them.
        retry_ms: What a resumable stream tells clients to wait.
        listens: Offers the stream for notifications: GET, or `subscriptions/listen`; declares `listChanged`. With
            `resumable`, what is said meanwhile is kept for clients that come back to a GET stream with its last id.
        stream_seconds: After which the backend ends such a stream; 0: behind its head or acknowledgement; None: never.
        graceful: In the modern era it ends with a result, else without a word, and over lines with a `cancelled`.
        honours: What of a subscription is acknowledged, and told of.
        latency: s, before each HTTP answer.
        session_ids: A legacy backend gives out session ids and insists on them.
        protocol_version: What `initialize` is answered with, whatever the client asks for.
        ttl_ms, cache_scope: What a modern backend says of cacheable results.

        exchanges: Every HTTP request received, in order.
        sessions: The live legacy sessions: id → the params of their `initialize`.
        deleted_sessions: Ids that clients have DELETEd, in order.
        subscriptions: The resources that legacy clients have subscribed to, by session.
        errors: What broke in here; anything in it is a bug of the test or of this package.
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
    errors: list[Exception] = attrs.field(factory=list, init=False)

    _logs: dict[str, EventLog] = attrs.field(factory=dict, init=False)
    _listeners: Listeners = attrs.field(factory=Listeners, init=False)
    _streams: dict[str, _SessionStream] = attrs.field(factory=dict, init=False)  # of "sse", by session
    _held_streams: set[trio.CancelScope] = attrs.field(factory=set, init=False)  # that are held for notifications
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
        return len(self._held_streams)

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

    def send(self, message: JSON) -> None:
        """Send any message to every client that listens, well-formed or not, subscribed to or not."""
        self._listeners.send(message)

    async def ask(self, method: str, params: JSON) -> Any:
        """Ask the one legacy client that listens, outside of any call, and wait for what it answers.

        Raises:
            RpcError: The client answered with an error.
        """
        (session_id,) = self.sessions
        return (await self._ask(session_id, self._listeners.send, {method: (method, params)}))[method]

    def end_session(self, session_id: str) -> None:
        """Know a session no longer. One of an "sse" backend is its stream, which ends."""
        del self.sessions[session_id]
        stream = self._streams.pop(session_id, None)
        if stream is not None:
            stream.lifetime.cancel(reason="end_session")

    def end_streams(self) -> None:
        """End every stream for notifications, as `graceful` says."""
        for scope in self._held_streams:
            scope.cancel(reason="end_streams")

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
        for session_id in list(self._streams):
            self.end_session(session_id)
        self.sessions.clear()
        self.subscriptions.clear()
        self._logs.clear()
        self._listeners.logs.clear()

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

    async def serve_lines(self, stream: trio.abc.Stream) -> None:
        """Serve one connection as over stdio: one JSON-RPC message a line, either way. Raises nothing."""
        session_id = f"{self.name}-lines-{next(self._session_numbers)}"
        lock = trio.Lock()

        def begin(line: bytes) -> None:
            exchange = Exchange("", "", httpx.Headers({"mcp-session-id": session_id}), line, trio.current_time())
            self._begin(exchange)  # here, in the order of the lines
            reply = LineReply(stream, nursery.cancel_scope, lock)
            nursery.start_soon(self._run, exchange, LineAnswer(reply, True), self._is_modern(exchange))

        with trio.CancelScope() as lifetime:
            self._connections[stream] = lifetime
            try:
                async with trio.open_nursery() as nursery:
                    if self.listens and self.era == "legacy":
                        nursery.start_soon(self._tell_lines, LineReply(stream, nursery.cancel_scope, lock))
                    await read_lines(stream, begin)
                    nursery.cancel_scope.cancel(reason="the client closed the connection")
            except* Exception as group:  # a nursery within may have bundled them
                self.errors.extend(_leaves(group))
                log.error("scripted backend %r broke", self.name, exc_info=group)
            finally:
                self._connections.pop(stream, None)
                await trio.aclose_forcefully(stream)

    async def _tell_lines(self, reply: LineReply) -> None:
        async with self._listeners.listen() as notifications:
            async for notification in notifications:
                await LineAnswer(reply, True).notify(notification)

    async def _handle(self, request: Request, reply: Reply) -> None:
        exchange = Exchange(request.verb, request.target, request.headers, request.body, trio.current_time())
        self._begin(exchange)
        is_modern = self._is_modern(exchange)
        # Legacy: "disconnection SHOULD NOT be interpreted as the client cancelling its request". Modern: that it is.
        reply.outlives_peer = not is_modern and request.verb != "GET"
        await self._run(exchange, Answer(reply, self.answers == "sse", self._log(is_modern), self.retry_ms), is_modern)

    def _begin(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self._running[exchange] = None

    async def _run(self, exchange: Exchange, answer: Answer, is_modern: bool) -> None:
        reply = answer.reply
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
            if self.transport == "sse" and exchange.verb:
                await self._older(exchange, answer, fault)
            elif isinstance(fault, Error):
                raise RpcError(fault.code, fault.message, fault.data, fault.status)
            elif exchange.verb == "DELETE" and not is_modern:
                await self._delete(exchange, answer.reply)
            elif exchange.verb == "GET" and not is_modern and (self.listens or self.resumable):
                await self._stream(exchange, answer)
            elif exchange.verb not in ("POST", ""):
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
            answer.as_sse = True
            await answer.open()
            with self._held():
                if answer.log is None:
                    await self._tell_all(answer, exchange.session_id)
                else:
                    self._listeners.logs.append(answer.log)
                    await self._replay(answer.log, 1, answer.reply)  # the first has told it to come back
            await answer.reply.end()
            return
        log_name, _, count = str(last_event_id).partition("/")
        log = self._logs.get(log_name)
        if log is None or not count.isdecimal():
            raise RpcError(SESSION_ERROR, f"nothing to resume after {last_event_id!r}", status=400)
        answer.log = None
        await answer.open()
        if log in self._listeners.logs:
            with self._held():
                await self._replay(log, int(count), answer.reply)
        else:
            await self._replay(log, int(count), answer.reply)
        await answer.reply.end()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Around a stream for notifications, until this side ends it."""
        seconds = math.inf if self.stream_seconds is None else self.stream_seconds
        with trio.move_on_after(seconds) as scope:
            self._held_streams.add(scope)
            try:
                yield
            finally:
                self._held_streams.remove(scope)

    async def _tell_all(self, answer: Answer, session_id: str | None) -> None:
        def wants(method: str, params: JSON) -> bool:
            is_update = method == "notifications/resources/updated"
            return not is_update or params.get("uri") in self.subscriptions.get(session_id, ())

        async with self._listeners.listen(wants) as notifications:
            async for notification in notifications:
                await answer.notify(notification)

    @staticmethod
    async def _replay(log: EventLog, sent: int, reply: Reply) -> None:
        while events := await log.after(sent):
            sent += len(events)
            await reply.send(b"".join(events))

    async def _older(self, exchange: Exchange, answer: Answer, fault: Fault | None) -> None:
        """HTTP+SSE: the stream, or a message to the session that is the stream."""
        path, _, session_id = exchange.target.partition("?session=")
        if exchange.verb == "GET":
            await self._open_stream(answer)
        elif exchange.verb != "POST" or path.rpartition("/")[2] != self.endpoint.rpartition("/")[2]:
            await answer.reply.respond(405, b"Method Not Allowed", headers=(("allow", "GET"),))
        elif session_id not in self._streams:  # has ended, or never was
            await answer.reply.respond(404, b"Could not find session")
        elif not isinstance(exchange.message, dict):
            await answer.reply.respond(400, b"Could not parse message")
        else:
            exchange.headers["mcp-session-id"] = session_id
            stream = self._streams[session_id]
            posted = PostedAnswer(answer.reply, stream.send, self.holds_posts, answer.change)
            if exchange.request_id is not None and exchange.method:
                await posted.accept()
            try:
                if isinstance(fault, Error):
                    raise RpcError(fault.code, fault.message, fault.data)
                await self._legacy(exchange, posted)
            except RpcError as error:
                await posted.finish(error_message(exchange.request_id, error))

    async def _open_stream(self, answer: Answer) -> None:
        """Until either side ends it."""
        session_id = f"{self.name}-stream-{next(self._session_numbers)}"
        send, receive = trio.open_memory_channel[JSON](float("inf"))  # a test decides how much it sends
        answer.as_sse, answer.log = True, None
        stream = _SessionStream(send)
        self._streams[session_id], self.sessions[session_id] = stream, {}
        try:
            with stream.lifetime:
                await answer.open()
                await answer.reply.send(f"event: endpoint\ndata: {self.endpoint}?session={session_id}\n\n".encode())
                with self._listeners.also_tell(send) if self.listens else nullcontext():
                    async for message in receive:
                        await answer.notify(message)
        finally:  # a restart may have forgotten it first
            self._streams.pop(session_id, None)
            self.sessions.pop(session_id, None)
        if answer.reply.broken_off:
            await answer.reply.hang_up()
        else:
            await answer.reply.end()

    async def _legacy(self, exchange: Exchange, answer: Answer) -> None:
        if exchange.verb and self.transport == "streamable-http":
            check_legacy(exchange, self.sessions if self.session_ids else None)
        elif not isinstance(exchange.message, dict):
            raise RpcError(PARSE_ERROR, "the line is not a JSON object")
        if exchange.method == "initialize":
            result = self._initialize(exchange, answer)
        elif exchange.request_id is None or not exchange.method:
            self._take_notice(exchange)
            await answer.reply.respond(202)
            return
        elif exchange.method == "ping":
            result = {}
        elif exchange.method in ("resources/subscribe", "resources/unsubscribe") and self.listens:
            uris = self.subscriptions.setdefault(exchange.session_id, set())
            change = uris.add if exchange.method == "resources/subscribe" else uris.discard
            change(str(exchange.params.get("uri")))
            result = {}
        else:
            result = await self.call(CallContext(exchange, False, answer, self._ask_within))
        await answer.finish(result_message(exchange.request_id, result))

    def _initialize(self, exchange: Exchange, answer: Answer) -> JSON:
        if exchange.verb and self.transport == "streamable-http" and self.session_ids:
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

    async def _ask_within(self, context: CallContext, requests: Requests) -> dict[str, Any]:
        if context.is_modern:
            check_inputs(context.exchange, requests)
            raise InputRequired(requests)
        return await self._ask(context.exchange.session_id, context.send, requests)

    async def _ask(
        self, session_id: str | None, send: Callable[[JSON], Awaitable[None] | None], requests: Requests
    ) -> dict[str, Any]:
        questions: dict[str, _Question] = {}
        ids: list[int] = []
        try:
            for key, (method, params) in requests.items():
                question_id = next(self._question_ids)
                ids.append(question_id)
                questions[key] = self._questions[question_id] = _Question(session_id)
                sent = send({"jsonrpc": "2.0", "id": question_id, "method": method, "params": params})
                if sent is not None:
                    await sent
            return {key: await question.answer() for key, question in questions.items()}
        finally:
            for question_id in ids:
                del self._questions[question_id]

    async def _modern(self, exchange: Exchange, answer: Answer) -> None:
        served = (MODERN_VERSION,) if self.era == "modern" else (MODERN_VERSION, *reversed(LEGACY_VERSIONS))
        if exchange.verb:
            check_modern(exchange, served)
        else:
            check_stamp(exchange, served)
        if exchange.request_id is None:
            if not exchange.verb:  # over HTTP it is the end of the stream that cancels
                self._take_notice(exchange)
            await answer.reply.respond(202)
            return
        if exchange.method == "tools/call" and exchange.verb:
            tool = next((tool for tool in self.tools if tool["name"] == exchange.params.get("name")), {})
            check_parameters(exchange, tool.get("inputSchema") or {})
        if exchange.method == "subscriptions/listen" and self.listens:
            await self._listen(exchange, answer)
            return
        if exchange.method == "server/discover":
            result = {"supportedVersions": [MODERN_VERSION], **self._introduction()}
        else:
            answered = self._rounds.resume(exchange)
            try:
                result = await self.call(CallContext(exchange, True, answer, self._ask_within, answered))
            except InputRequired as question:
                result = self._rounds.suspend(exchange, question.requests, answered)
        extras: JSON = {"resultType": "complete"}
        if exchange.method in CACHEABLE:
            extras |= {"ttlMs": self.ttl_ms, "cacheScope": self.cache_scope}
        await answer.finish(result_message(exchange.request_id, extras | result))

    async def _listen(self, exchange: Exchange, answer: Answer) -> None:
        """Until either side ends the stream."""
        subscription = self.honours(exchange.params.get("notifications") or {})
        tag = {"io.modelcontextprotocol/subscriptionId": exchange.request_id}
        acknowledged = {"notifications": subscription, "_meta": tag}
        answer.as_sse = True
        async with self._listeners.listen(wanted_by(subscription)) as notifications:
            await answer.notify(notification_message("notifications/subscriptions/acknowledged", acknowledged))
            with self._held():
                async for message in notifications:
                    tagged = {"params": {**message["params"], "_meta": tag}} if "params" in message else {}
                    await answer.notify(message | tagged)
        if self.graceful:
            await answer.finish(result_message(exchange.request_id, {"resultType": "complete", "_meta": tag}))
        elif exchange.verb:
            await answer.reply.end()
        else:  # lines that others use do not end; this is the other word that the specification has for it
            taken_back = {"requestId": exchange.request_id}
            await answer.notify(notification_message("notifications/cancelled", taken_back))
            await answer.reply.respond(200)

    def declared_capabilities(self) -> JSON:
        declared = super().declared_capabilities()
        if self.capabilities is not None or not self.listens:
            return declared
        flags: dict[str, JSON] = {name: {"listChanged": True} for name in ("tools", "resources", "prompts")}
        flags["resources"]["subscribe"] = True
        return {name: flags.get(name, {}) for name in declared}


def _same_id(exchange: Exchange, request_id: object) -> bool:
    """By type, too: 1 is not "1". `initialize` is never cancelled, nor is the answer to a question of ours."""
    own = exchange.request_id
    return (
        exchange.method not in ("", "initialize")
        and own is not None
        and type(own) is type(request_id)
        and own == request_id
    )


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
