"""One client of the front, over HTTP or over stdio, with the same methods: for rules that hold over both."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from support.front import LEGACY, FrontWorld, LegacyClient, Received, front_world, modern_request
from trio.testing import memory_stream_one_way_pair

from trio_vmcp import JSON
from trio_vmcp.serve import ServeSettings
from trio_vmcp.serve._stdio import serve_stdio
from trio_vmcp.testing import ScriptedBackend

__all__ = [
    "EVERY_BACKEND",
    "EVERY_CARRIER",
    "EVERY_ERA",
    "FrontClient",
    "Gate",
    "HttpClient",
    "StdioClient",
    "front_client",
    "shut_down",
    "stdio_client",
]

EVERY_CARRIER = pytest.mark.parametrize("carrier", ["http", "stdio"])
EVERY_ERA = pytest.mark.parametrize("era", ["legacy", "modern"])  # of the client
EVERY_BACKEND = pytest.mark.parametrize("backend_era", ["legacy", "modern"])
LOOK_INTERVAL = 0.01  # s of virtual time


@attrs.define(eq=False)
class FrontClient(ABC):
    """A client of one era."""

    world: FrontWorld
    era: str

    @property
    def received(self) -> list[Any]:
        """All messages that have come, in the order of each stream."""
        return [json.loads(written) for written in self.written]

    @property
    @abstractmethod
    def written(self) -> list[bytes]:
        """These messages, as they were written."""

    @abstractmethod
    async def send(self, message: object) -> None:
        """Send a message, or bytes, and wait for no response."""

    @abstractmethod
    def stop_reading(self) -> None:
        """From now on, until `go_on_reading`. Over HTTP: the replies that have begun."""

    @abstractmethod
    def go_on_reading(self) -> None: ...

    @abstractmethod
    async def withdraw(self, request_id: Any) -> None:
        """Withdraw a request, as the era has it."""

    async def ask(self, method: str, params: Any = None, request_id: Any = 1, **meta: Any) -> None:
        """Send a request in the client's era."""
        if self.era == "modern":
            message, _ = modern_request(method, params, request_id=request_id, **meta)
        else:
            message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params or {}}
        await self.send(message)

    @abstractmethod
    async def send_written(self, message: JSON, parts: Mapping[str, bytes]) -> None:
        """Send a message in which these texts stand for JSON that is written so."""

    async def notify(self, method: str, params: Any = None) -> None:
        await self.send({"jsonrpc": "2.0", "method": method, "params": params or {}})

    async def reply(self, request_id: Any, result: Any = None, error: Any = None) -> None:
        """Answer a question."""
        answer = {"error": error} if error is not None else {"result": result}
        await self.send({"jsonrpc": "2.0", "id": request_id, **answer})

    async def wait(self, fits: Callable[[Any], bool], count: int = 1) -> Any:
        """The first message that fits, or that many."""
        with trio.fail_after(60):
            while True:
                found = [message for message in self.received if fits(message)]
                if len(found) >= count:
                    return found[0] if count == 1 else found
                await self._wait_news()

    async def _wait_news(self) -> None:
        await trio.sleep(LOOK_INTERVAL)

    async def response(self, request_id: Any = 1) -> Any:
        return await self.wait(lambda message: "method" not in message and message.get("id") == request_id)

    async def result(self, method: str, params: Any = None, request_id: Any = 1, **meta: Any) -> Any:
        await self.ask(method, params, request_id, **meta)
        answer = await self.response(request_id)
        assert "result" in answer, answer
        return answer["result"]

    async def questions(self, count: int = 1) -> list[Any]:
        """The first requests to this client."""
        found = await self.wait(lambda message: "method" in message and "id" in message, count)
        return found if isinstance(found, list) else [found]

    def told(self, method: str) -> list[Any]:
        """The params of the notifications that have come."""
        return [message.get("params") for message in self.received if message.get("method") == method]


@attrs.define(eq=False)
class Gate(trio.abc.SendStream):
    """To a client that may stop reading: then the server waits in `send_all`."""

    stream: trio.abc.SendStream
    opened: trio.Event = attrs.field(factory=trio.Event)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.opened.wait()
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.opened.wait()

    async def aclose(self) -> None:
        await self.stream.aclose()


@attrs.define(eq=False)
class StdioClient(FrontClient):
    """A client at the other ends of two streams.

    Attributes:
        ended: Set when the server has returned.
        stopped: Cancel it to stop the server, as a signal does.
    """

    to_server: trio.abc.SendStream
    from_server: trio.abc.ReceiveStream
    ended: trio.Event = attrs.field(factory=trio.Event)
    stopped: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    gate: Gate = attrs.field(kw_only=True)
    written: list[bytes] = attrs.field(factory=list)
    received: list[Any] = attrs.field(factory=list)
    _news: trio.Event = attrs.field(factory=trio.Event)

    async def serve(self, receive: trio.abc.ReceiveStream, send: trio.abc.SendStream, settings: ServeSettings) -> None:
        with self.stopped:
            await serve_stdio(self.world.manager, receive, send, settings=settings)
        self.ended.set()
        await send.aclose()

    async def read(self) -> None:
        rest = b""
        async for chunk in self.from_server:
            *lines, rest = (rest + chunk).split(b"\n")
            self.written += lines
            self.received += [json.loads(line) for line in lines]
            self._news.set()
        assert b"" == rest

    async def _wait_news(self) -> None:
        self._news = trio.Event()
        await self._news.wait()

    async def send(self, message: object) -> None:
        await self.to_server.send_all(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")

    async def send_written(self, message: JSON, parts: Mapping[str, bytes]) -> None:
        await self.send(_filled(message, parts) + b"\n")

    def stop_reading(self) -> None:
        self.gate.opened = trio.Event()

    def go_on_reading(self) -> None:
        self.gate.opened.set()

    async def withdraw(self, request_id: Any) -> None:
        await self.notify("notifications/cancelled", {"requestId": request_id})

    async def initialize(self, capabilities: Any = None, version: str = LEGACY) -> Any:
        params = {"protocolVersion": version, "capabilities": capabilities or {}, "clientInfo": {"name": "t"}}
        await self.send({"jsonrpc": "2.0", "id": "init", "method": "initialize", "params": params})
        await self.notify("notifications/initialized")
        return (await self.response("init"))["result"]


@attrs.define(eq=False)
class HttpClient(FrontClient):
    """A client over streamable HTTP. One of the handshake era has its stream outside of requests open.

    Attributes:
        legacy: Its session; None: it is of the stateless era.
        replies: To its requests, by their ids.
        streams: All replies that hold messages.
    """

    legacy: LegacyClient | None
    replies: dict[Any, Received] = attrs.field(factory=dict)
    streams: list[Received] = attrs.field(factory=list)

    @property
    def written(self) -> list[bytes]:
        for reply in self.replies.values():  # else the client would take the session for gone (transports)
            assert self.era == "modern" or reply.status in (0, 200), reply.body
        return [message for stream in self.streams for message in _messages(stream)]

    def start(self, message: Any, body: bytes | None = None) -> Received:
        headers: dict[str, str] = {}
        if self.legacy is not None:
            headers = self.legacy._headers()
        elif isinstance(message, dict) and "id" in message:
            _, given = modern_request(message["method"], message["params"])
            headers = {name: str(value) for name, value in given.items()}
        return self.world.start_post(message if body is None else body, headers)

    async def send_written(self, message: JSON, parts: Mapping[str, bytes]) -> None:
        await self.send(message, _filled(message, parts))

    async def send(self, message: object, body: bytes | None = None) -> None:
        reply = self.start(message, body)
        self.streams.append(reply)
        if isinstance(message, dict) and "method" in message and "id" in message:
            self.replies[message["id"]] = reply
        else:
            await reply.done.wait()

    def stop_reading(self) -> None:
        for stream in self.streams:
            stream.blocked = trio.Event()

    def go_on_reading(self) -> None:
        for stream in self.streams:
            if stream.blocked is not None:
                stream.blocked.set()

    async def withdraw(self, request_id: Any) -> None:
        if self.legacy is None:
            self.replies[request_id].leave()
        else:
            await self.notify("notifications/cancelled", {"requestId": request_id})


def _filled(message: JSON, parts: Mapping[str, bytes]) -> bytes:
    body = json.dumps(message).encode()
    for name, written in parts.items():
        body = body.replace(f'"{name}"'.encode(), written)
    return body


def _messages(reply: Received) -> list[bytes]:
    if reply.is_stream:
        *whole, _ = reply.body.split(b"\n\n")
        lines = [line for event in whole for line in event.split(b"\n")]
        return [line[len(b"data: ") :] for line in lines if line.startswith(b"data: ") and line != b"data: "]
    return [reply.body] if reply.done.is_set() and reply.body else []


@asynccontextmanager
async def front_client(
    carrier: str, era: str, *backends: ScriptedBackend, capabilities: Any = None, settings: Any = None, **world: Any
) -> AsyncIterator[FrontClient]:
    """A front over these backends, and a client, which has initialized if it is of the handshake era.

    Args:
        settings: Of `ServeSettings`.
        world: As `front_world`.
    """
    given = ServeSettings(**(settings or {}))
    async with front_world(*backends, settings=given, **world) as front:
        if carrier == "stdio":
            async with stdio_client(front, era, capabilities=capabilities, **(settings or {})) as client:
                yield client
            return
        legacy = await front.initialize(capabilities) if era == "legacy" else None
        http = HttpClient(front, era, legacy)
        if legacy is not None:
            http.streams.append(legacy.listen())
        yield http


async def shut_down(client: FrontClient) -> None:
    """Begin to shut the server down, as a signal does."""
    if isinstance(client, StdioClient):
        client.stopped.cancel()
    else:
        client.world.nursery.start_soon(client.world.app.drain)


@asynccontextmanager
async def stdio_client(
    world: FrontWorld, era: str = "legacy", *, capabilities: Any = None, opens: bool = True, **settings: Any
) -> AsyncIterator[StdioClient]:
    """A client, which has initialized if it is of the handshake era."""
    to_server, receive = memory_stream_one_way_pair()
    send, from_server = memory_stream_one_way_pair()
    client = StdioClient(world, era, to_server, from_server, gate=Gate(send))
    client.go_on_reading()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.read)
        nursery.start_soon(client.serve, receive, client.gate, ServeSettings(**settings))  # noqa: ASYNC113  # a test's own
        if era == "legacy" and opens:
            await client.initialize(capabilities)
        yield client
        nursery.cancel_scope.cancel()
