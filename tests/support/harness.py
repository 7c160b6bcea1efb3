"""A network of scripted backends with a factory over it, and the proof at its end that nothing of a session is left."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendConnector,
    BackendRecord,
    ClientHandlers,
    FactorySettings,
    Identity,
    LocalStorage,
    OnProgress,
    OutgoingAuth,
    Session,
    SessionChange,
    SessionFactory,
    SessionMetadata,
    SessionNotFound,
    SessionState,
    Storage,
    open_session_factory,
)
from trio_vmcp._http.origin import Origin
from trio_vmcp._http.transport import Http11Transport, RawResponse
from trio_vmcp._protocol.headers import check_session_id
from trio_vmcp.testing import CallContext, MemoryNetwork, ScriptedBackend, open_memory_network

# Who went away stays away: for what is not about coming back.
NO_RETRIES = FactorySettings(reconnect_delay=math.inf, reconnect_max_delay=math.inf)

ALICE = Identity(issuer="https://issuer.test", subject="alice", token="alice-token")
BOB = Identity(issuer="https://issuer.test", subject="bob")


def echo_backend(era: str = "legacy", answers: str = "json", **more: Any) -> ScriptedBackend:
    """One tool, "echo"."""
    backend = ScriptedBackend(era=era, answers=answers, **more)  # type: ignore[arg-type]  # parametrized: plain str
    backend.add_tool("echo")
    return backend


def slow_backend(seconds: float = 60, era: str = "legacy", answers: str = "json") -> ScriptedBackend:
    """Beside "echo" a tool "slow", which takes its time."""

    async def slow(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(seconds)
        return "rested"

    backend = echo_backend(era, answers)
    backend.add_tool("slow", slow)
    return backend


def state_of(session: Session) -> SessionState:
    """As a function, since a type checker takes a property that was looked at for what it then was."""
    return session.state


async def drained(changes: trio.MemoryReceiveChannel[SessionChange], seconds: float = 1) -> list[SessionChange]:
    """What changed until so many seconds from now."""
    found: list[SessionChange] = []
    with trio.move_on_after(seconds):
        while True:
            found.append(await changes.receive())
    return found


def library_tasks() -> list[str]:
    """The names of the tasks that belong to the library, and not to a scripted backend."""

    def names(task: trio.lowlevel.Task) -> Iterator[str]:
        yield task.name
        for nursery in task.child_nurseries:
            for child in nursery.child_tasks:
                yield from names(child)

    root = trio.lowlevel.current_root_task()
    assert root is not None
    own = (name for name in names(root) if name.startswith("trio_vmcp."))
    return sorted(name for name in own if not name.startswith("trio_vmcp.testing."))


class Ledger(Http11Transport):
    """The library's transport over a network. It notes the backend sessions whose ids have come through: of others the
    library cannot know.
    """

    def __init__(self, network: MemoryNetwork) -> None:
        super().__init__(dial=network.dial)
        self.session_ids: defaultdict[str, set[str]] = defaultdict(set)  # by host

    async def send(
        self, origin: Origin, verb: str, head: bytes, body: bytes, on_write: Callable[[], None]
    ) -> RawResponse:
        response = await super().send(origin, verb, head, body, on_write)  # no checkpoint from here to the library
        self.session_ids[origin.host].update(session_ids_in(response))
        return response

    @property
    def all_session_ids(self) -> set[str]:
        return set().union(*self.session_ids.values())


def session_ids_in(response: RawResponse) -> list[str]:
    """The one that the library may take from it, if there is one."""
    ids = [value.decode("latin-1") for name, value in response.headers if name == b"mcp-session-id"]
    return ids if 200 <= response.status < 300 and len(ids) == 1 and check_session_id(ids[0]) else []


@attrs.define(eq=False)
class ScriptedStorage:
    """A `Storage` that knows what was asked of it, and does what a test wants before or after it obeys.

    Attributes:
        before, after: By operation; may sleep, or raise in the storage's place.
        calls: How often each operation was asked for.
    """

    inner: Storage = attrs.field(factory=LocalStorage)
    before: dict[str, Callable[[], Awaitable[object]]] = attrs.field(factory=dict)
    after: dict[str, Callable[[], Awaitable[object]]] = attrs.field(factory=dict)
    calls: Counter[str] = attrs.field(factory=Counter)
    _ids: set[str] = attrs.field(factory=set)

    @property
    def ttl(self) -> float:
        return self.inner.ttl

    async def create(self, metadata: SessionMetadata) -> None:
        self._ids.add(metadata.session_id)
        await self._do("create", lambda: self.inner.create(metadata))

    async def load(self, session_id: str) -> SessionMetadata:
        row: SessionMetadata = await self._do("load", lambda: self.inner.load(session_id))
        return row

    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        await self._do("replace", lambda: self.inner.replace(metadata, expected_version=expected_version))

    async def touch(self, session_id: str) -> None:
        await self._do("touch", lambda: self.inner.touch(session_id))

    async def delete(self, session_id: str) -> None:
        await self._do("delete", lambda: self.inner.delete(session_id))

    async def aclose(self) -> None:
        await self._do("aclose", self.inner.aclose)

    async def rows(self) -> list[SessionMetadata]:
        """Every row that is there."""
        found: list[SessionMetadata] = []
        for session_id in sorted(self._ids):
            try:
                found.append(await self.inner.load(session_id))
            except SessionNotFound:
                continue
        return found

    async def _do(self, operation: str, obey: Callable[[], Awaitable[Any]]) -> Any:
        self.calls[operation] += 1
        if operation in self.before:
            await self.before[operation]()
        result = await obey()
        if operation in self.after:
            await self.after[operation]()
        return result


@attrs.define(eq=False)
class World:
    """Backends by id, and one factory over them.

    Attributes:
        configured: The backends as a user configures them, in order.
        leaves_rows, leaves_sessions: A test that suspends says so; otherwise nothing may be left.
    """

    network: MemoryNetwork
    backends: Mapping[str, ScriptedBackend]
    configured: tuple[Backend, ...]
    transport: Ledger
    storage: ScriptedStorage
    factory: SessionFactory
    leaves_rows: bool = False
    leaves_sessions: bool = False

    def __getitem__(self, backend_id: str) -> ScriptedBackend:
        return self.backends[backend_id]

    def open_session(self, **options: Any) -> AbstractAsyncContextManager[Session]:
        return self.factory.open_session(self.configured, **options)

    async def make_session(self, **options: Any) -> Session:
        return await self.factory.make_session(self.configured, **options)

    async def restore_session(self, session_id: str, **options: Any) -> Session:
        return await self.factory.restore_session(session_id, self.configured, **options)


@asynccontextmanager
async def open_world(
    backends: Mapping[str, ScriptedBackend],
    *,
    settings: FactorySettings | None = None,
    storage: ScriptedStorage | None = None,
    auth: OutgoingAuth | None = None,
    handlers: ClientHandlers | None = None,
    configure: Callable[[Backend], Backend] = lambda backend: backend,
) -> AsyncIterator[World]:
    """A world that is checked when it ends: no task, request, connection, backend session or row is left.

    Backends that speak one era are pinned to it, and to their transport; `configure` may change what a user would
    write.
    """
    storage = storage or ScriptedStorage()
    async with open_memory_network() as network:
        configured = tuple(
            configure(
                Backend(
                    id=backend_id,
                    url=network.attach(f"{backend_id}.test", backend),
                    era="auto" if backend.era == "both" else backend.era,
                    transport=backend.transport,
                )
            )
            for backend_id, backend in backends.items()
        )
        transport = Ledger(network)
        async with open_session_factory(
            transport=transport, storage=storage, settings=settings, auth=auth, handlers=handlers
        ) as factory:
            world = World(network, backends, configured, transport, storage, factory)
            yield world
        await assert_nothing_left(world)
        await transport.aclose()
        await wait_all_tasks_blocked()
        assert 0 == network.open_connections
        # A legacy backend works on what nobody told it to stop, and holds the connection for as long.
        held = {name: backend.open_connections for name, backend in backends.items() if not backend.in_flight}
        assert dict.fromkeys(held, 0) == held


async def assert_nothing_left(world: World) -> None:
    """No task of the library, no request, no response, no backend session, no row. The factory itself may be open."""
    await wait_all_tasks_blocked()
    assert [] == library_tasks()
    assert 0 == world.transport.busy_connections
    assert {} == {name: backend.errors for name, backend in world.backends.items() if backend.errors}
    if not world.leaves_sessions:
        ids = world.transport.session_ids
        known = [ids[f"{name}.test"] & backend.sessions.keys() for name, backend in world.backends.items()]
        assert set() == set().union(*known)
    if not world.leaves_rows:
        assert [] == await world.storage.rows()


Script = Callable[[], Awaitable[object]]


async def _at_once() -> None:
    await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class PlainClient:
    """A `BackendClient` without a network: it lists one tool, "echo", and answers calls with their params."""

    record: BackendRecord
    server_capabilities: JSON
    on_request: Script = _at_once
    on_close: Script = _at_once
    closed: list[bool] = attrs.field(factory=list)  # one `terminate` for every close

    async def request(
        self, method: str, params: JSON, *, identity: Identity | None, timeout: float, on_progress: OnProgress | None
    ) -> JSON:
        if method == "tools/list":
            await trio.lowlevel.checkpoint()
            return {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]}
        await self.on_request()
        return {"content": [], "structuredContent": params}

    async def aclose(self, *, terminate: bool) -> None:
        self.closed.append(terminate)
        await self.on_close()


@attrs.define(eq=False)
class PlainConnector:
    """A connector of a user's own.

    Attributes:
        on_connect: What it does before it has a client, by backend id.
        services: What it starts in the nursery that it is given, by backend id.
        started: When it was asked for each backend, in order.
    """

    on_connect: dict[str, Script] = attrs.field(factory=dict)
    on_request: dict[str, Script] = attrs.field(factory=dict)
    on_close: dict[str, Script] = attrs.field(factory=dict)
    services: dict[str, Script] = attrs.field(factory=dict)
    clients: dict[str, PlainClient] = attrs.field(factory=dict)
    started: dict[str, float] = attrs.field(factory=dict)
    connecting: int = 0
    most_connecting: int = 0

    async def __call__(
        self,
        backend: Backend,
        *,
        identity: Identity | None,
        resume: BackendRecord | None,
        nursery: trio.Nursery,
        events: Callable[[str, JSON], None],
    ) -> PlainClient:
        self.started[backend.id] = trio.current_time()
        self.connecting += 1
        self.most_connecting = max(self.most_connecting, self.connecting)
        try:
            await self.on_connect.get(backend.id, _at_once)()
        finally:
            self.connecting -= 1
        capabilities: JSON = {"tools": {}}
        client = PlainClient(
            BackendRecord(backend.id, None, "modern", "2026-07-28", capabilities, "digest"),
            capabilities,
            self.on_request.get(backend.id, _at_once),
            self.on_close.get(backend.id, _at_once),
        )
        self.clients[backend.id] = client
        if backend.id in self.services:
            nursery.start_soon(self.services[backend.id])
        return client


def _is_connector(connector: PlainConnector) -> BackendConnector:  # for the type checker
    return connector


def plain_backends(count: int) -> list[Backend]:
    return [Backend(id=f"b{number}", url=f"http://b{number}.test/mcp") for number in range(count)]
