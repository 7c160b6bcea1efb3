"""One backend and one client of it, without a session around them, for the tests of `trio_vmcp._client`."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import attrs
import httpx
import trio
from trio.testing import wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendError,
    BackendRecord,
    ClientHandlers,
    FactorySettings,
    Identity,
    OnProgress,
    OutgoingAuth,
    ServerRequest,
)
from trio_vmcp._client.built_in import BuiltInConnector
from trio_vmcp._client.client import Client
from trio_vmcp.connector import BackendClient
from trio_vmcp.testing import CallContext, MemoryNetwork, Raw, ScriptedBackend, open_memory_network

ALICE = Identity(issuer="https://issuer.test", subject="alice", token="alice-token")
BOB = Identity(issuer="https://issuer.test", subject="bob", token="bob-token")
SESSION_ID = "the-session"

Handler = Callable[[httpx.Request], httpx.Response]


def echo_backend(era: str = "legacy", answers: str = "json", **more: Any) -> ScriptedBackend:
    """Tools "echo", "steps" (three progress notifications) and "hang"."""

    async def steps(arguments: JSON, context: CallContext) -> str:
        for step in range(1, 4):
            await context.progress(step, 3, f"step {step}")
        return "done"

    async def hang(arguments: JSON, context: CallContext) -> str:
        await context.progress(0)
        await trio.sleep_forever()
        raise AssertionError

    backend = ScriptedBackend(era=era, answers=answers, **more)  # type: ignore[arg-type]  # parametrized: plain str
    backend.add_tool("echo")
    backend.add_tool("steps", steps)
    backend.add_tool("hang", hang)
    return backend


@attrs.define(eq=False)
class HeardEvents:
    """An `EventSink` that keeps what it is told."""

    events: list[tuple[str, JSON]] = attrs.field(factory=list)
    lost: list[BackendError] = attrs.field(factory=list)

    def __call__(self, method: str, params: JSON, /) -> None:
        self.events.append((method, params))

    def session_lost(self, error: BackendError) -> None:
        self.lost.append(error)


@attrs.define(eq=False)
class Bench:
    """A connector over one transport, and the nursery that its clients use.

    Attributes:
        events: The backends' notifications, without progress.
    """

    connector: BuiltInConnector
    backend: Backend
    nursery: trio.Nursery
    events: list[tuple[str, JSON]] = attrs.field(factory=list)
    clients: list[BackendClient] = attrs.field(factory=list)
    sink: HeardEvents = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.sink = HeardEvents(self.events)

    async def connect(
        self, *, identity: Identity | None = None, resume: BackendRecord | None = None, backend: Backend | None = None
    ) -> BackendClient:
        client = await self.connector.for_session(SESSION_ID)(
            backend or self.backend,
            identity=identity,
            resume=resume,
            nursery=self.nursery,
            events=self.sink,
        )
        self.clients.append(client)
        return client


async def no_roots(request: ServerRequest) -> JSON:
    return {"roots": []}


ASKED = ClientHandlers(roots=no_roots)  # of a client that can answer requests of its backend


async def ask(
    client: BackendClient,
    method: str,
    params: JSON | None = None,
    *,
    identity: Identity | None = None,
    timeout: float = math.inf,
    on_progress: OnProgress | None = None,
) -> JSON:
    return await client.request(method, params or {}, identity=identity, timeout=timeout, on_progress=on_progress)


async def call(client: BackendClient, name: str = "echo", arguments: JSON | None = None, **more: Any) -> JSON:
    return await ask(client, "tools/call", {"name": name, "arguments": arguments or {}}, **more)


async def no_progress(progress: float, total: float | None, message: str | None) -> None:
    """A callback that only makes the client send a progress token."""


@asynccontextmanager
async def open_bench(
    transport: httpx.AsyncBaseTransport | None,
    *,
    settings: FactorySettings | None = None,
    auth: OutgoingAuth | None = None,
    handlers: ClientHandlers | None = None,
    transport_name: str = "streamable-http",
    **configured: Any,
) -> AsyncIterator[Bench]:
    """At its end the backend session of every client is ended, its tasks are awaited, and none is left."""
    connector = BuiltInConnector(
        settings or FactorySettings(), handlers=handlers or ClientHandlers(), auth=auth, transport=transport
    )
    backend = Backend(**{"id": "b", "url": "http://b.test/mcp", "transport": transport_name, **configured})
    with sole_error():
        async with trio.open_nursery() as nursery:
            bench = Bench(connector, backend, nursery)
            yield bench
            for client in bench.clients:
                await client.aclose(terminate=True)


@asynccontextmanager
async def open_client(
    backend: ScriptedBackend, *, identity: Identity | None = None, network: MemoryNetwork | None = None, **options: Any
) -> AsyncIterator[BackendClient]:
    """One connected client of a scripted backend, pinned to its era."""
    async with open_scripted(backend, network=network, **options) as bench:
        yield await bench.connect(identity=identity)


@asynccontextmanager
async def open_scripted(
    backend: ScriptedBackend, *, network: MemoryNetwork | None = None, leaves_sessions: bool = False, **options: Any
) -> AsyncIterator[Bench]:
    """At its end no connection and no backend session is left, and the backend has no errors."""
    async with open_memory_network() as own_network:
        network = network or own_network
        url = network.attach("b.test", backend)
        transport = network.transport()
        era = "auto" if backend.era == "both" else backend.era
        async with open_bench(transport, **{"url": url, "era": era, **options}) as bench:
            yield bench
        await transport.aclose()
        await wait_all_tasks_blocked()
        assert 0 == network.open_connections
        assert [] == backend.errors
        if not leaves_sessions:
            assert {} == backend.sessions


@contextmanager
def sole_error() -> Iterator[None]:
    """An exception of a test's body comes out as itself, not in a nursery's group."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) != 1:
            raise
        raise group.exceptions[0] from None  # noqa: ASYNC123  # a test looks at one error


class Chunks(httpx.AsyncByteStream):
    """A body of these pieces. A float is a pause in s; an exception is raised."""

    def __init__(self, *pieces: bytes | float | Exception) -> None:
        self.pieces = iter(pieces)
        self.closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, bytes):
                await trio.lowlevel.checkpoint()
                return piece
            await trio.sleep(piece)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed = True


def event(message: object) -> bytes:
    return b"data: " + json.dumps(message).encode() + b"\n\n"


def result(request_id: object, **fields: Any) -> JSON:
    return {"jsonrpc": "2.0", "id": request_id, "result": fields}


def in_json(message: object, status: int = 200, headers: Mapping[str, str] | None = None) -> httpx.Response:
    return httpx.Response(status, headers=headers, json=message)


def in_sse(*pieces: bytes | float | Exception) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Chunks(*pieces))


def message_of(request: httpx.Request) -> JSON:
    return json.loads(request.content) if request.content else {}


def listening(client: BackendClient) -> str:
    """The state of the client's stream for changes."""
    assert isinstance(client, Client)
    return client.listening


def listen_again(client: BackendClient) -> None:
    assert isinstance(client, Client)
    client.listen_again()


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def streamed(*pieces: bytes) -> Raw:
    """A whole stream of events, which then ends."""
    return Raw(STREAM_HEAD, b"".join(pieces))
