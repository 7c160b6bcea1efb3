"""Sessions over a real Redis that freezes, dies and comes back: they go on, and what was acknowledged is there."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from support.harness import ALICE, BOB, echo_backend, state_of
from support.redis_server import RedisServer, serve_redis
from support.stored import METADATA

from trio_vmcp import (
    Backend,
    FactorySettings,
    SessionExists,
    SessionFactory,
    SessionNotFound,
    SessionState,
    StorageError,
    open_session_factory,
)
from trio_vmcp.storage.redis import open_redis_storage
from trio_vmcp.testing import open_memory_network

# Redis writes to its file before it answers. With `everysec` it may put that off while a flush is slow.
ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")
SETTINGS = FactorySettings(identity_keys=(b"k" * 32,), on_exit="suspend", storage_timeout=5)


@attrs.frozen
class World:
    factory: SessionFactory
    backends: list[Backend]


@asynccontextmanager
async def factory_over(server: RedisServer, timeout: float = 5.0) -> AsyncIterator[World]:
    async with open_memory_network() as network, open_redis_storage(server.url, timeout=timeout) as storage:
        backends = [Backend(id="a", url=network.attach("a.test", echo_backend()), era="legacy")]
        async with open_session_factory(storage=storage, transport=network.transport(), settings=SETTINGS) as factory:
            yield World(factory, backends)


async def test_what_redis_has_acknowledged_survives_its_kill(tmp_path: Path) -> None:
    """With AOF on: rows and tombstones alike, at whatever moment Redis dies; only unacknowledged ones may be gone."""
    created, deleted, choices = set[str](), set[str](), random.Random(7)

    async def write(number: int) -> None:
        """Until the first error."""
        for count in range(10_000):
            session_id = f"{number}-{count}"
            try:
                await storage.create(attrs.evolve(METADATA, session_id=session_id))
                created.add(session_id)
                if count % 3 == 0:
                    created.discard(session_id)
                    await storage.delete(session_id)
                    deleted.add(session_id)
            except StorageError:
                return

    with serve_redis(tmp_path, *ALWAYS) as server:
        async with open_redis_storage(server.url) as storage:
            for life in range(2):
                async with trio.open_nursery() as nursery:
                    for number in range(4):
                        nursery.start_soon(write, 10 * life + number)
                    while len(created) < 3 * (life + 1):  # noqa: ASYNC110  # a flush takes as long as the disk does
                        await trio.sleep(0.005)
                    await trio.sleep(choices.uniform(0, 0.02))
                    server.kill()
                server.start()
            for session_id in created:
                assert session_id == (await storage.load(session_id)).session_id
            for session_id in deleted:
                with pytest.raises(SessionExists):
                    await storage.create(attrs.evolve(METADATA, session_id=session_id))
    assert created
    assert deleted


async def test_live_sessions_serve_while_redis_is_away(tmp_path: Path) -> None:
    """Frozen, and killed: calls go on; opening and restoring fail in bounded time; then all is as before."""
    with serve_redis(tmp_path, *ALWAYS) as server:
        async with factory_over(server, timeout=0.1) as here, factory_over(server) as there:
            session = await here.factory.make_session(here.backends, session_id="live", identity=ALICE)
            stored = await here.factory.make_session(here.backends, session_id="stored", identity=ALICE)
            await stored.suspend()
            with server.frozen():
                await session.call_tool("a_echo", caller=ALICE)
                with trio.fail_after(3), pytest.raises(StorageError):
                    await here.factory.make_session(here.backends)
                with trio.fail_after(3), pytest.raises(StorageError):
                    await here.factory.restore_session("stored", here.backends, identity=ALICE)
            server.kill()
            await session.call_tool("a_echo", caller=ALICE)
            with trio.fail_after(3), pytest.raises(StorageError):
                await here.factory.make_session(here.backends)
            with trio.fail_after(3), pytest.raises(StorageError):
                await there.factory.restore_session("live", there.backends, identity=ALICE)
            server.start()
            await session.call_tool("a_echo", caller=ALICE)
            with pytest.raises(SessionNotFound):
                await there.factory.restore_session("live", there.backends, identity=BOB)
            moved = await there.factory.restore_session("live", there.backends, identity=ALICE)
            assert not (await moved.call_tool("a_echo", caller=ALICE)).backend_state_lost
            found = await there.factory.restore_session("stored", there.backends, identity=ALICE)
            assert not (await found.call_tool("a_echo", caller=ALICE)).backend_state_lost
            await moved.aclose()
            with pytest.raises(SessionNotFound):
                await here.factory.restore_session("live", here.backends, identity=ALICE)
            server.restart()
            with pytest.raises(SessionNotFound):
                await there.factory.restore_session("live", there.backends, identity=ALICE)
            assert SessionState.CLOSED is state_of(moved)
