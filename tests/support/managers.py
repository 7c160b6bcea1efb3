"""Managers over one storage, each an instance with a factory and a way to the storage of its own."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

import attrs
import trio
from support.harness import ALICE, echo_backend, library_tasks
from support.instances import cut
from support.scripted_storage import ScriptedStorage
from trio.testing import wait_all_tasks_blocked

from trio_vmcp import (
    Backend,
    BackendSource,
    ClientHandlers,
    FactorySettings,
    Identity,
    LocalStorage,
    ManagerSettings,
    Session,
    SessionFactory,
    SessionManager,
    SessionMetadata,
    SessionNotFound,
    open_session_factory,
    open_session_manager,
)
from trio_vmcp._http.dial import ConnectedStream
from trio_vmcp._http.origin import Origin
from trio_vmcp._http.transport import Http11Transport
from trio_vmcp.testing import MemoryNetwork, ScriptedBackend, open_memory_network

__all__ = ["IDLE", "SLEEP", "STATES", "TTL", "Instance", "Managed", "State", "managed"]

TTL = 600.0  # s
IDLE = 1200.0  # s
SLEEP = 60.0  # s
State = Literal["live", "asleep", "elsewhere"]
STATES: tuple[State, ...] = ("live", "asleep", "elsewhere")


@attrs.define(eq=False)
class Line:
    """The connections of one process to all backends."""

    network: MemoryNetwork
    _streams: list[ConnectedStream] = attrs.field(factory=list, init=False)
    _is_cut: bool = attrs.field(default=False, init=False)

    async def dial(self, origin: Origin) -> ConnectedStream:
        stream = await self.network.dial(origin)
        self._streams.append(stream)
        if self._is_cut:
            stream.close()
            raise OSError("the process is gone")
        return stream

    def cut(self) -> None:
        self._is_cut = True
        for stream in self._streams:
            stream.close()


@attrs.define(eq=False)
class Instance:
    """One process: a factory and a manager, entered and left in a task of their own."""

    way: ScriptedStorage
    line: Line
    factory: SessionFactory
    manager: SessionManager
    leaving: trio.Event = attrs.field(factory=trio.Event, init=False)
    left: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def leave(self) -> None:
        self.leaving.set()
        await self.left.wait()

    async def die(self) -> None:
        """Gone without a word, as by SIGKILL: from now on it reaches neither the storage nor a backend."""
        cut(self.way)
        self.line.cut()
        await self.leave()


@attrs.define(eq=False)
class Managed:
    """Instances over one storage and the same backends.

    Attributes:
        configured: The backends of all managers that were opened without a source.
        leaves_rows, leaves_sessions: Set by a test that suspends; otherwise nothing may be left.
    """

    network: MemoryNetwork
    backends: dict[str, ScriptedBackend]
    configured: tuple[Backend, ...]
    storage: LocalStorage
    instances: list[Instance] = attrs.field(factory=list)
    leaves_rows: bool = False
    leaves_sessions: bool = False
    ids: set[str] = attrs.field(factory=set)

    @property
    def manager(self) -> SessionManager:
        return self.instances[0].manager

    @property
    def way(self) -> ScriptedStorage:
        return self.instances[0].way

    @property
    def backend(self) -> ScriptedBackend:
        return next(iter(self.backends.values()))

    def add_backend(self, backend_id: str, backend: ScriptedBackend) -> Backend:
        """One more on the network."""
        self.backends[backend_id] = backend
        era = "auto" if backend.era == "both" else backend.era
        return Backend(backend_id, self.network.attach(f"{backend_id}.test", backend), era=era)

    async def row(self, session_id: str) -> SessionMetadata | None:
        with suppress(SessionNotFound):
            return await self.storage.load(session_id)
        return None

    async def make(self, state: State, *, identity: Identity | None = ALICE) -> Session:
        """A session that is live on the first instance, hibernates there, or is live on the second one."""
        manager = self.instances[1 if state == "elsewhere" else 0].manager
        session = await manager.create(identity=identity)
        self.ids.add(session.id)
        if state == "asleep":
            await trio.sleep(SLEEP)
            await wait_all_tasks_blocked()
            assert 1 == manager.statistics.hibernated
        return session

    def requests(self) -> int:
        """How many requests all backends have received."""
        return sum(len(backend.exchanges) for backend in self.backends.values())


@asynccontextmanager
async def managed(
    count: int = 1,
    backends: dict[str, ScriptedBackend] | None = None,
    *,
    ttl: float = TTL,
    source: BackendSource | None = None,
    limits: ManagerSettings | None = None,
    own_storage: bool = False,
    handlers: ClientHandlers | None = None,
    **settings: Any,
) -> AsyncIterator[Managed]:
    """
    Args:
        limits: None: sessions hibernate after `SLEEP`.
        own_storage: The factory has no storage but its own.
        settings: Fields of `FactorySettings`.
    """
    limits = limits or ManagerSettings(hibernate_after=SLEEP)
    fields = {"identity_keys": (b"k" * 32,), "idle_timeout": IDLE, "reconnect_delay": math.inf, **settings}
    fields["reconnect_max_delay"] = fields["reconnect_delay"]
    async with open_memory_network() as network:
        world = Managed(network, {}, (), LocalStorage(ttl))
        given = {"a": echo_backend()} if backends is None else backends
        world.configured = tuple(world.add_backend(name, backend) for name, backend in given.items())

        async def run(task_status: trio.TaskStatus[Instance]) -> None:  # noqa: ASYNC114  # for `nursery.start` alone
            way, line = ScriptedStorage(world.storage), Line(network)
            async with (
                open_session_factory(
                    transport=Http11Transport(dial=line.dial),
                    storage=None if own_storage else way,
                    settings=FactorySettings(**fields),
                    handlers=handlers,
                ) as factory,
                open_session_manager(factory, source or world.configured, settings=limits) as manager,
            ):
                instance = Instance(way, line, factory, manager)
                task_status.started(instance)
                await instance.leaving.wait()
            instance.left.set()

        async with trio.open_nursery() as processes:
            for _ in range(count):
                world.instances.append(await processes.start(run))
            yield world
            for instance in world.instances:
                instance.leaving.set()
        await wait_all_tasks_blocked()
        assert [] == library_tasks()
        assert {} == {name: backend.errors for name, backend in world.backends.items() if backend.errors}
        if not world.leaves_sessions:
            assert [] == [session_id for backend in world.backends.values() for session_id in backend.sessions]
        if not world.leaves_rows:
            ids = set().union(*(instance.way.ids for instance in world.instances))
            assert [] == [session_id for session_id in ids if await world.row(session_id) is not None]
