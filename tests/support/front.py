"""A front in memory: its application over scripted backends, and clients of it that speak ASGI, without a server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import attrs
import trio
from support.harness import echo_backend

from trio_vmcp import (
    Backend,
    BackendConnector,
    ClientHandlers,
    FactorySettings,
    LocalStorage,
    ManagerSettings,
    SessionManager,
    Storage,
    open_session_factory,
    open_session_manager,
)
from trio_vmcp._http.transport import Http11Transport
from trio_vmcp.observe import Observer
from trio_vmcp.serve import Authenticator, ServeSettings, asgi_app
from trio_vmcp.serve.app import Front
from trio_vmcp.testing import MemoryNetwork, ScriptedBackend, open_memory_network

__all__ = [
    "BOTH",
    "LEGACY",
    "MODERN",
    "FrontWorld",
    "LegacyClient",
    "Received",
    "front_world",
    "full_backend",
    "modern_request",
]

LEGACY, MODERN = "2025-11-25", "2026-07-28"
BOTH = "application/json, text/event-stream"
META = "io.modelcontextprotocol/"
HeadersGiven: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]


@attrs.define(eq=False)
class Received:
    """The reply to one HTTP request, as far as it has come.

    Attributes:
        status: 0 before it began.
        done: Set at its end.
    """

    status: int = 0
    headers: dict[str, str] = attrs.field(factory=dict)
    body: bytes = b""
    done: trio.Event = attrs.field(factory=trio.Event)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _news: trio.Event = attrs.field(factory=trio.Event)
    gone: trio.Event = attrs.field(factory=trio.Event)
    blocked: trio.Event | None = None  # the client does not read until this is set

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type") == "text/event-stream"

    @property
    def json(self) -> Any:
        assert "application/json" == self.headers["content-type"], self
        return json.loads(self.body)

    @property
    def events(self) -> list[tuple[str | None, Any]]:
        """Id and message of each whole event; None for the message of a priming event."""
        found = []
        for block in self.body.decode().split("\n\n")[:-1]:
            fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
            if "data" in fields or "id" in fields:
                found.append((fields.get("id"), json.loads(fields["data"]) if fields.get("data") else None))
        return found

    @property
    def messages(self) -> list[Any]:
        return [message for _, message in self.events if message is not None]

    @property
    def answer(self) -> Any:
        """The response, in JSON or at the end of the stream."""
        return self.messages[-1] if self.is_stream else self.json

    async def wait_messages(self, count: int) -> list[Any]:
        while len(self.messages) < count:
            self._news = trio.Event()
            await self._news.wait()
        return self.messages

    def leave(self) -> None:
        """The client closes its connection."""
        self.gone.set()

    def take(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert 0 == self.status, "a second response"
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            assert self.status, "a body before its head"
            assert not self.done.is_set(), "bytes behind the end"
            self.body += message.get("body", b"")
            if not message.get("more_body"):
                self.done.set()
        self._news.set()


@attrs.define(eq=False)
class FrontWorld:
    """A front over a network of backends. The first of them is "a".

    Attributes:
        root_path: Where it is mounted, as a server says it from now on.
    """

    app: Front
    manager: SessionManager
    network: MemoryNetwork
    backends: dict[str, ScriptedBackend]
    nursery: trio.Nursery
    root_path: str = attrs.field(default="", init=False)

    def start(self, verb: str, body: bytes = b"", headers: HeadersGiven = (), path: str = "/mcp") -> Received:
        """Send a request, without waiting for its reply."""
        received = Received()
        self.nursery.start_soon(self._run, verb, path, body, headers, received)
        return received

    async def request(self, verb: str, body: bytes = b"", headers: HeadersGiven = (), path: str = "/mcp") -> Received:
        received = self.start(verb, body, headers, path)
        await received.done.wait()
        return received

    async def post(self, message: object, headers: Mapping[str, str] = {}) -> Received:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        return await self.request("POST", data, {"content-type": "application/json", "accept": BOTH, **headers})

    def start_post(self, message: object, headers: Mapping[str, str] = {}) -> Received:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        return self.start("POST", data, {"content-type": "application/json", "accept": BOTH, **headers})

    async def _run(self, verb: str, path: str, body: bytes, headers: Any, received: Received) -> None:
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        if not any(name == "host" for name, _ in pairs):
            pairs.append(("host", "localhost:8000"))
        scope = {
            "type": "http",
            "method": verb,
            "path": path,
            "root_path": self.root_path,
            "scheme": "http",
            "headers": [(name.encode(), value.encode()) for name, value in pairs],
        }
        pieces = [{"type": "http.request", "body": body}]

        async def receive() -> Mapping[str, Any]:
            await trio.lowlevel.checkpoint()
            if pieces:
                return pieces.pop()
            await received.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            await trio.lowlevel.checkpoint()
            if received.blocked is not None:
                await received.blocked.wait()
            if not received.gone.is_set():  # a server throws away what a client that is gone would have got
                received.take(message)

        with received.scope:
            await self.app(scope, receive, send)
        received.done.set()

    async def initialize(
        self, capabilities: Any = None, headers: Mapping[str, str] = {}, version: str = LEGACY
    ) -> LegacyClient:
        """A client of the handshake era."""
        params = {"protocolVersion": version, "capabilities": capabilities or {}, "clientInfo": {"name": "t"}}
        reply = await self.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}, headers)
        assert 200 == reply.status, reply.body
        client = LegacyClient(self, reply.headers["mcp-session-id"], dict(headers), version)
        await client.notify("notifications/initialized")
        return client


@attrs.define(eq=False)
class LegacyClient:
    """One client of the handshake era."""

    world: FrontWorld
    session_id: str
    headers: dict[str, str]
    version: str = LEGACY
    _id: int = 0

    def _headers(self) -> dict[str, str]:
        return {"mcp-session-id": self.session_id, "mcp-protocol-version": self.version, **self.headers}

    def start(self, method: str, params: Any = None, request_id: Any = None) -> Received:
        self._id += 1
        message = {"jsonrpc": "2.0", "id": self._id if request_id is None else request_id, "method": method}
        return self.world.start_post(message | ({} if params is None else {"params": params}), self._headers())

    async def ask(self, method: str, params: Any = None, request_id: Any = None) -> Received:
        received = self.start(method, params, request_id)
        await received.done.wait()
        return received

    async def result(self, method: str, params: Any = None) -> Any:
        answer = (await self.ask(method, params)).answer
        assert "result" in answer, answer
        return answer["result"]

    async def notify(self, method: str, params: Any = None) -> None:
        message = {"jsonrpc": "2.0", "method": method} | ({} if params is None else {"params": params})
        assert 202 == (await self.world.post(message, self._headers())).status

    async def reply(self, request_id: Any, result: Any = None, error: Any = None) -> None:
        answer = {"error": error} if error is not None else {"result": result}
        assert 202 == (await self.world.post({"jsonrpc": "2.0", "id": request_id, **answer}, self._headers())).status

    def listen(self, last_event_id: str | None = None) -> Received:
        """Open the GET stream."""
        more = {} if last_event_id is None else {"last-event-id": last_event_id}
        return self.world.start("GET", headers={"accept": "text/event-stream", **self._headers(), **more})

    async def delete(self) -> Received:
        return await self.world.request("DELETE", headers=self._headers())


def modern_request(
    method: str, params: Any = None, *, capabilities: Any = None, request_id: Any = 1, **meta: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """A request of the stateless era, and its headers."""
    params = dict(params or {})
    stamp = {
        f"{META}protocolVersion": MODERN,
        f"{META}clientCapabilities": capabilities or {},
        **{(key if key == "progressToken" else META + key): value for key, value in meta.items()},
    }
    params["_meta"] = {**params.get("_meta", {}), **stamp}
    headers = {"mcp-protocol-version": MODERN, "mcp-method": method}
    name = params.get("uri") if method == "resources/read" else params.get("name")
    if name is not None and method in ("tools/call", "prompts/get", "resources/read"):
        headers["mcp-name"] = name
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}, headers


def full_backend(era: str) -> ScriptedBackend:
    """A backend with something of everything."""
    backend = echo_backend(era, "sse")
    backend.add_resource("file:///a", "text of a")
    backend.add_resource_template("file:///b/{name}", "text of b")
    backend.add_prompt("greet", "hello {name}")
    backend.completions = {"name": ["ann", "anton", "bob"]}
    return backend


@asynccontextmanager
async def front_world(
    *backends: ScriptedBackend,
    settings: ServeSettings | None = None,
    limits: ManagerSettings | None = None,
    factory: FactorySettings | None = None,
    storage: Storage | None = None,
    authenticator: Authenticator | None = None,
    handlers: ClientHandlers | None = None,
    observers: Iterable[Observer] = (),
    connector: BackendConnector | None = None,
    configure: Callable[[str], Backend] = lambda name: Backend(name, f"http://{name}.test/mcp"),
) -> AsyncIterator[FrontWorld]:
    """A front over these backends, "a", "b" and so on; over one with the tool "echo", if none is given.

    Args:
        connector: Replaces the one of the library.
        configure: How a backend is configured, by its id; its host is "ID.test".
    """
    named = {chr(ord("a") + number): backend for number, backend in enumerate(backends or (echo_backend(),))}
    async with open_memory_network() as network:
        for name, backend in named.items():
            network.attach(f"http://{name}.test/mcp", backend)
        transport = Http11Transport(dial=network.dial)
        async with open_session_factory(
            storage=storage or LocalStorage(),
            transport=transport,
            settings=factory,
            handlers=handlers,
            observers=observers,
            connector=connector,
        ) as sessions:
            configured = [configure(name) for name in named]
            async with open_session_manager(sessions, configured, settings=limits) as manager:
                async with trio.open_nursery() as nursery:
                    app = asgi_app(manager, settings=settings, authenticator=authenticator)
                    yield FrontWorld(app, manager, network, named, nursery)
                    nursery.cancel_scope.cancel()
