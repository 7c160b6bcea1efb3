"""Several instances over one storage, each a factory with a way of its own to the storage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import attrs
import trio
from support.harness import echo_backend
from support.scripted_storage import ScriptedStorage

from trio_vmcp import (
    Backend,
    FactorySettings,
    LocalStorage,
    Session,
    SessionFactory,
    SessionMetadata,
    SessionNotFound,
    StorageError,
    open_session_factory,
)
from trio_vmcp.testing import ScriptedBackend, open_memory_network

TTL = 60.0
SETTINGS = FactorySettings(identity_keys=(b"k" * 32,), idle_timeout=600, storage_timeout=5)


@attrs.define(eq=False)
class Instances:
    """Factories over one storage, each with a way of its own to it."""

    backend: ScriptedBackend
    configured: list[Backend]
    shared: LocalStorage
    ways: list[ScriptedStorage]
    factories: list[SessionFactory]
    exits: list[AsyncExitStack]

    async def make(self, instance: int = 0) -> Session:
        return await self.factories[instance].make_session(self.configured, session_id="one")

    async def restore(self, instance: int = 1) -> Session:
        return await self.factories[instance].restore_session("one", self.configured)

    async def row(self) -> SessionMetadata | None:
        with suppress(SessionNotFound):
            return await self.shared.load("one")
        return None


@asynccontextmanager
async def instances(count: int = 2, ttl: float = TTL, **settings: Any) -> AsyncIterator[Instances]:
    shared = LocalStorage(ttl)
    backend = echo_backend()
    async with open_memory_network() as network, AsyncExitStack() as everything:
        configured = [Backend(id="a", url=network.attach("a.test", backend), era="legacy")]
        world = Instances(backend, configured, shared, [], [], [])
        for _ in range(count):
            way = ScriptedStorage(shared)
            leaving = await everything.enter_async_context(AsyncExitStack())
            factory = await leaving.enter_async_context(
                open_session_factory(
                    transport=network.transport(), storage=way, settings=attrs.evolve(SETTINGS, **settings)
                )
            )
            world.ways.append(way)
            world.factories.append(factory)
            world.exits.append(leaving)
        yield world


async def away() -> None:
    await trio.lowlevel.checkpoint()
    raise StorageError("the storage is away")


async def stuck() -> None:
    """As a thread: cannot be cancelled."""
    with trio.CancelScope(shield=True):
        await trio.sleep(30)


OPERATIONS = ("create", "load", "replace", "touch", "delete")


def cut(way: ScriptedStorage, how: Callable[[], Awaitable[object]] = away) -> None:
    way.before.update(dict.fromkeys(OPERATIONS, how))


async def call_for(session: Session, seconds: float, every: float = 20) -> None:
    """A call every so many s."""
    until = trio.current_time() + seconds
    while trio.current_time() < until:
        await trio.sleep(every)
        result = await session.call_tool("a_echo")
        assert not result.backend_state_lost
