"""A scripted MCP server: its connections, and the way of each request through faults to the era that answers it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

import attrs
import httpx
import trio

from trio_vmcp.testing.context import ScriptedAnswer
from trio_vmcp.testing.exchange import Exchange, Outcome
from trio_vmcp.testing.faults import Delay, Error, Fault, Hang, Raw, Refuse, Rewrite, Status, WireFault
from trio_vmcp.testing.http import Reply, Request, serve_http
from trio_vmcp.testing.http_sse import HttpSseServer
from trio_vmcp.testing.lines import LineAnswer, LineReply, read_lines
from trio_vmcp.testing.listening import EventLog
from trio_vmcp.testing.modern import VERSION_KEY
from trio_vmcp.testing.modern_server import ModernServer
from trio_vmcp.testing.rpc import MODERN_VERSION, RpcError, error_message
from trio_vmcp.testing.streams import reset

__all__ = ["ScriptedBackend"]

log: logging.Logger = logging.getLogger(__name__)


@attrs.define(eq=False, kw_only=True)
class ScriptedBackend(HttpSseServer, ModernServer):
    """An MCP server with answers that the test decides. Knobs and record: see `trio_vmcp.testing.script.Script`; tools,
    resources and prompts: `trio_vmcp.testing.catalog.Catalog`.
    """

    _connections: dict[trio.abc.Stream, trio.CancelScope] = attrs.field(factory=dict, init=False)
    _crashed: bool = attrs.field(default=False, init=False)

    @property
    def open_connections(self) -> int:
        """Number of connections that are open, as far as this backend knows."""
        return len(self._connections)

    def crash(self) -> None:
        """Reset every connection, stop every handler, and refuse new connections until `restart`. Over lines, the
        connection ends: `serve_lines` returns.
        """
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
        """Serve one accepted connection to its end. Raises nothing: `errors` collects what a handler raises."""
        handle = partial(self._handle_request, next(self._connection_numbers))
        with trio.CancelScope() as lifetime:
            self._connections[stream] = lifetime
            try:
                await serve_http(stream, handle)
            except* Exception as group:  # a nursery within may have bundled them
                self.errors.extend(_leaves(group))
                log.error("scripted backend %r broke", self.name, exc_info=group)
            finally:
                self._connections.pop(stream, None)

    async def serve_lines(self, stream: trio.abc.Stream) -> None:
        """Serve one connection as over stdio: one JSON-RPC message a line, either way. Raises nothing."""
        session_id = f"{self.name}-lines-{next(self._session_numbers)}"
        lock, connection = trio.Lock(), next(self._connection_numbers)

        def begin(line: bytes) -> None:
            headers = httpx.Headers({"mcp-session-id": session_id})
            exchange = Exchange("", "", headers, line, trio.current_time(), connection=connection)
            self._begin_exchange(exchange)  # here, in the order of the lines
            reply = LineReply(stream, nursery.cancel_scope, lock)
            nursery.start_soon(self._run_exchange, exchange, LineAnswer(reply, True), self._is_modern(exchange))

        with trio.CancelScope() as lifetime:
            self._connections[stream] = lifetime
            try:
                async with trio.open_nursery() as nursery:
                    if self.listens and self.era == "legacy":
                        nursery.start_soon(self._send_notification_lines, LineReply(stream, nursery.cancel_scope, lock))
                    await read_lines(stream, begin)
                    nursery.cancel_scope.cancel(reason="the client closed the connection")
            except* Exception as group:  # a nursery within may have bundled them
                self.errors.extend(_leaves(group))
                log.error("scripted backend %r broke", self.name, exc_info=group)
            finally:
                self._connections.pop(stream, None)
                await trio.aclose_forcefully(stream)

    async def _send_notification_lines(self, reply: LineReply) -> None:
        async with self._listeners.listen() as notifications:
            async for notification in notifications:
                await LineAnswer(reply, True).notify(notification)

    async def _handle_request(self, connection: int, request: Request, reply: Reply) -> None:
        now = trio.current_time()
        exchange = Exchange(request.verb, request.target, request.headers, request.body, now, connection=connection)
        self._begin_exchange(exchange)
        is_modern = self._is_modern(exchange)
        # Legacy: "disconnection SHOULD NOT be interpreted as the client cancelling its request". Modern: that it is.
        reply.outlives_peer = not is_modern and request.verb != "GET"
        answer = ScriptedAnswer(reply, self.answers == "sse", self._open_log(is_modern), self.retry_ms)
        await self._run_exchange(exchange, answer, is_modern)

    def _begin_exchange(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self._running[exchange] = None

    async def _run_exchange(self, exchange: Exchange, answer: ScriptedAnswer, is_modern: bool) -> None:
        reply = answer.reply
        try:
            with exchange.scope:
                await self._apply_fault(exchange, answer, is_modern)
            if exchange.scope.cancelled_caught:
                exchange.outcome = "cancelled"
                await answer.end_without_response()
        finally:
            del self._running[exchange]
            exchange.ended_at = trio.current_time()
            exchange.status = reply.status
            exchange.response_bytes = reply.written_bytes
            if exchange.outcome == "running":
                exchange.outcome = _outcome(reply, is_modern)

    def _open_log(self, is_modern: bool) -> EventLog | None:
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

    async def _apply_fault(self, exchange: Exchange, answer: ScriptedAnswer, is_modern: bool) -> None:
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
                await self._answer(exchange, answer, is_modern, fault)

    async def _answer(self, exchange: Exchange, answer: ScriptedAnswer, is_modern: bool, fault: Fault | None) -> None:
        try:
            if self.transport == "sse" and exchange.verb:
                await self._answer_http_sse(exchange, answer, fault)
            elif isinstance(fault, Error):
                raise RpcError(fault.code, fault.message, fault.data, fault.status)
            elif exchange.verb == "DELETE" and not is_modern:
                await self._delete_session(exchange, answer.reply)
            elif exchange.verb == "GET" and not is_modern and (self.listens or self.resumable):
                await self._serve_get(exchange, answer)
            elif exchange.verb not in ("POST", ""):
                allow = "POST" if is_modern else "POST, DELETE"
                await answer.reply.respond(405, headers=(("allow", allow),))
            elif is_modern:
                await self._answer_modern(exchange, answer)
            else:
                await self._answer_legacy(exchange, answer)
        except RpcError as error:
            await answer.finish(error_message(exchange.request_id, error), error.status)


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
