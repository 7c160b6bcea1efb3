"""MCP over WebSocket, as an application would add it: a connector on the public seam alone, and a small server.

One JSON-RPC message is one text message (RFC 6455 §5.6). The server speaks the handshake era.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from urllib.parse import urlsplit

import attrs
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from trio_vmcp import (
    JSON,
    Backend,
    BackendConnector,
    BackendError,
    BackendProtocolError,
    BackendRecord,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    EventSink,
    Identity,
    OnProgress,
    note_written,
)

__all__ = ["WebSocketConnector", "WebSocketServer"]

VERSION = "2025-11-25"
MOST_WAITING = 64  # progress notifications of one request that its caller has not taken
_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, LocalProtocolError, RemoteProtocolError)


@attrs.define(eq=False)
class JsonSocket:
    """JSON messages over one WebSocket, for either side. One task reads; any may write."""

    stream: trio.abc.Stream
    _protocol: WSConnection
    _writing: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _text: str = attrs.field(default="", init=False)
    _seen: list[Event] = attrs.field(factory=list, init=False)

    @classmethod
    def client(cls, stream: trio.abc.Stream) -> JsonSocket:
        return cls(stream, WSConnection(ConnectionType.CLIENT))

    @classmethod
    def server(cls, stream: trio.abc.Stream) -> JsonSocket:
        return cls(stream, WSConnection(ConnectionType.SERVER))

    async def next_event(self) -> Event | None:
        """None: the stream has ended. Raises one of `_BROKEN`."""
        while not self._seen:
            data = await self.stream.receive_some(65536)
            self._protocol.receive_data(bytes(data) or None)
            self._seen.extend(self._protocol.events())
            if not data and not self._seen:
                return None
        return self._seen.pop(0)

    async def write(self, event: Event) -> None:
        """Raises one of `_BROKEN`. Cancelled in the middle of a frame, it closes the stream."""
        async with self._writing:
            data = self._protocol.send(event)
            try:
                await self.stream.send_all(data)
            except BaseException:
                await trio.aclose_forcefully(self.stream)
                raise

    async def send(self, message: JSON) -> None:
        await self.write(TextMessage(json.dumps({"jsonrpc": "2.0"} | message)))

    async def receive(self) -> JSON | None:
        """The next message; None: the end, or the connection broke."""
        try:
            while (event := await self.next_event()) is not None:
                if isinstance(event, TextMessage):
                    self._text += event.data
                    if event.message_finished:
                        text, self._text = self._text, ""
                        return dict(json.loads(text))
                elif isinstance(event, Ping):
                    await self.write(event.response())
                elif isinstance(event, CloseConnection):
                    await self.write(event.response())
                    return None
        except _BROKEN:
            pass
        return None

    async def close(self) -> None:
        """With a close frame (RFC 6455 §7.1.2), for which the caller bounds the time."""
        try:
            await self.write(CloseConnection(code=1000))
        except _BROKEN:
            pass
        finally:
            await trio.aclose_forcefully(self.stream)


@attrs.define(eq=False)
class WebSocketClient:
    """A `BackendClient`."""

    backend: Backend
    socket: JsonSocket
    events: EventSink
    record: BackendRecord
    server_capabilities: JSON = attrs.field(factory=dict)
    _ids: count[int] = attrs.field(factory=lambda: count(1), init=False)
    _waiting: dict[object, trio.MemorySendChannel[JSON]] = attrs.field(factory=dict, init=False)
    _is_over: bool = attrs.field(default=False, init=False)
    _is_closing: bool = attrs.field(default=False, init=False)

    async def handshake(self) -> None:
        hello = {
            "protocolVersion": VERSION,
            "capabilities": {},
            "clientInfo": {"name": "websocket-test", "version": "1"},
        }
        result = await self.request("initialize", hello, identity=None, timeout=10, on_progress=None)
        self.server_capabilities = result["capabilities"]
        self.record = attrs.evolve(self.record, server_capabilities=result["capabilities"])
        await self.socket.send({"method": "notifications/initialized"})

    async def request(
        self, method: str, params: JSON, *, identity: Identity | None, timeout: float, on_progress: OnProgress | None
    ) -> JSON:
        number = next(self._ids)
        if on_progress is not None:
            params = params | {"_meta": params.get("_meta", {}) | {"progressToken": number}}
        self._waiting[number], answers = trio.open_memory_channel[JSON](MOST_WAITING)
        is_answered = False
        try:
            with trio.move_on_after(timeout):
                if self._is_over:
                    raise BackendUnavailable(self.backend.id, "has closed its WebSocket")
                note_written()
                try:
                    await self.socket.send({"id": number, "method": method, "params": params})
                except _BROKEN as exc:
                    raise self._lost() from exc
                async for message in answers:
                    if "method" not in message:
                        is_answered = True
                        return self._result(method, message)
                    if on_progress is not None:
                        heard = message["params"]
                        await on_progress(heard["progress"], heard.get("total"), heard.get("message"))
                is_answered = True
                raise self._lost()
            raise BackendTimeout(self.backend.id, f"did not answer {method!r} in time", may_have_executed=True)
        finally:
            del self._waiting[number]
            if not is_answered and not self._is_over:
                with trio.move_on_after(0.1, shield=True):
                    await self._cancel(number)

    def _result(self, method: str, message: JSON) -> JSON:
        if "result" in message:
            return dict(message["result"])
        error = message["error"]
        raise BackendRejected(
            self.backend.id, f"rejected {method!r}: {error['message']!r}", code=error["code"], message=error["message"]
        )

    def _lost(self) -> BackendError:
        return BackendUnavailable(self.backend.id, "closed its WebSocket", may_have_executed=True)

    async def _cancel(self, number: int) -> None:
        with suppress(*_BROKEN):
            await self.socket.send({"method": "notifications/cancelled", "params": {"requestId": number}})

    async def read(self) -> None:
        """Take messages until the connection ends, and report that end."""
        try:
            while (message := await self.socket.receive()) is not None:
                await self._take(message)
        finally:
            self._is_over = True
            for channel in self._waiting.values():
                channel.close()
        if not self._is_closing:
            self.events.session_lost(self._lost())

    async def _take(self, message: JSON) -> None:
        if "method" not in message:
            waiting = self._waiting.get(message.get("id"))
        elif "id" in message:
            await self.socket.send({"id": message["id"], "error": {"code": -32601, "message": "not answered here"}})
            return
        elif message["method"] == "notifications/progress":
            waiting = self._waiting.get(message["params"].get("progressToken"))
        else:
            self.events(message["method"], message.get("params", {}))
            return
        if waiting is not None:
            waiting.send_nowait(message)

    async def aclose(self, *, terminate: bool) -> None:
        self._is_closing = True
        await self.socket.close()

    async def drop(self, stream: trio.abc.Stream) -> None:
        """Close the connection at once; the client was handed to no caller."""
        self._is_closing = True
        with trio.CancelScope(shield=True):  # waits for nothing
            await trio.aclose_forcefully(stream)


@attrs.define(eq=False)
class WebSocketConnector:
    """A `BackendConnector` for "ws://host:port/path".

    Attributes:
        connect: Makes the connections.
        resumed: What it was asked to resume, in order.
    """

    connect: Callable[[str, int], Awaitable[trio.abc.Stream]] = trio.open_tcp_stream
    resumed: list[BackendRecord | None] = attrs.field(factory=list, init=False)

    async def __call__(
        self,
        backend: Backend,
        *,
        identity: Identity | None,
        resume: BackendRecord | None,
        nursery: trio.Nursery,
        events: EventSink,
    ) -> WebSocketClient:
        self.resumed.append(resume)  # a connection cannot be resumed: a new one is made
        parts = urlsplit(backend.url)
        try:
            stream = await self.connect(parts.hostname or "", parts.port or 80)
        except OSError as exc:
            raise BackendUnavailable(backend.id, f"could not be reached: {exc}") from exc
        socket = JsonSocket.client(stream)
        record = BackendRecord(backend.id, None, "legacy", VERSION, {}, "")
        client = WebSocketClient(backend, socket, events, record)
        try:
            credentials = [] if identity is None else [(b"Authorization", f"Bearer {identity.token}".encode())]
            await self._open(socket, Request(host=parts.netloc, target=parts.path or "/", extra_headers=credentials))
            nursery.start_soon(client.read)
            await client.handshake()
        except _BROKEN as exc:
            await client.drop(stream)  # noqa: ASYNC120  # shielded
            raise BackendProtocolError(backend.id, "does not speak WebSocket") from exc
        except BaseException:
            await client.drop(stream)  # noqa: ASYNC102  # shielded, waits for nothing
            raise
        return client

    async def _open(self, socket: JsonSocket, request: Request) -> None:
        await socket.write(request)
        event = await socket.next_event()
        if isinstance(event, RejectConnection):
            raise RemoteProtocolError(f"HTTP {event.status_code}")
        if not isinstance(event, AcceptConnection):
            raise RemoteProtocolError("no WebSocket")


def _is_connector(connector: WebSocketConnector) -> BackendConnector:  # for the type checker
    return connector


@attrs.define(eq=False)
class WebSocketServer:
    """A server of the handshake era with the tools "echo", "steps" (three times progress) and "hang". A `StreamServer`.

    Attributes:
        received: The method of each message, in order.
        credentials: What came with each connection.
        tools: Their names.
        sockets: The open connections.
        calls: How many of tools.
        is_away: No connection is accepted.
    """

    received: list[str] = attrs.field(factory=list, init=False)
    credentials: list[str] = attrs.field(factory=list, init=False)
    tools: list[str] = attrs.field(factory=lambda: ["echo", "steps", "hang"], init=False)
    sockets: set[JsonSocket] = attrs.field(factory=set, init=False)
    calls: int = attrs.field(default=0, init=False)
    is_away: bool = attrs.field(default=False, init=False)

    async def accept(self) -> None:
        if self.is_away:
            raise ConnectionRefusedError("nothing listens")
        await trio.lowlevel.checkpoint()

    async def serve_connection(self, stream: trio.abc.Stream) -> None:
        socket = JsonSocket.server(stream)
        self.sockets.add(socket)
        try:
            request = await socket.next_event()
            if not isinstance(request, Request):
                return
            self.credentials += [
                value.decode() for name, value in request.extra_headers if name.lower() == b"authorization"
            ]
            await socket.write(AcceptConnection())
            while (message := await socket.receive()) is not None:
                self.received.append(message.get("method", ""))
                if "id" in message:
                    await self._answer(socket, message)
        except _BROKEN:
            pass
        finally:
            self.sockets.discard(socket)
            await trio.aclose_forcefully(stream)

    async def _answer(self, socket: JsonSocket, message: JSON) -> None:
        result: JSON
        number, method, params = message["id"], message["method"], message.get("params", {})
        match method:
            case "initialize":
                info = {"name": "websocket-test", "version": "1"}
                declared = {"tools": {"listChanged": True}}
                result = {"protocolVersion": VERSION, "capabilities": declared, "serverInfo": info}
            case "tools/list":
                result = {"tools": [{"name": tool, "inputSchema": {"type": "object"}} for tool in self.tools]}
            case "tools/call" if params["name"] in self.tools:
                self.calls += 1
                if params["name"] == "hang":
                    return
                for step in range(3 if params["name"] == "steps" else 0):
                    heard = {"progressToken": params["_meta"]["progressToken"], "progress": step + 1}
                    await socket.send({"method": "notifications/progress", "params": heard})
                result = {"content": [], "structuredContent": params["arguments"]}
            case _:
                await socket.send({"id": number, "error": {"code": -32601, "message": f"no {method}"}})
                return
        await socket.send({"id": number, "result": result})

    async def tell(self, method: str) -> None:
        """Send a notification to all clients."""
        for socket in list(self.sockets):
            await socket.send({"method": method})

    async def kill(self) -> None:
        """Close all connections, without a close frame."""
        for socket in list(self.sockets):
            await trio.aclose_forcefully(socket.stream)
