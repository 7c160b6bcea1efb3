"""Several instances over one storage: each change of the row names the version that its instance has seen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support.instances import OPERATIONS, SETTINGS, TTL, away, call_for, cut, instances, stuck
from support.scripted_storage import ScriptedStorage
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    LocalStorage,
    Session,
    SessionMetadata,
    SessionNotFound,
    SessionState,
    Storage,
    StorageError,
    open_session_factory,
)
from trio_vmcp.metadata import UnreadableMetadata
from trio_vmcp.testing import CallContext


@pytest.mark.parametrize("ttl", [TTL, 100_000.0])
@pytest.mark.parametrize("end", ["idle", "exit", "suspend"])
async def test_an_instance_that_the_session_has_left_ends_its_copy_alone(
    end: str, ttl: float, autojump_clock: MockClock
) -> None:
    """Idle, left with its factory, or suspended: the row and the backend session that it names stay."""
    async with instances(ttl=ttl) as world:
        left = await world.make(1)
        session = await world.restore(0)
        await call_for(session, 100)
        if end == "idle":
            await call_for(session, 600)
        elif end == "exit":
            await world.exits[1].aclose()
        else:
            await left.suspend()
        await call_for(session, 300)
        assert SessionState.CLOSED is left.state
        assert SessionState.OPEN is session.state
        assert [] == world.backend.deleted_sessions
        assert session.metadata == await world.row()


async def test_a_close_ends_the_session_wherever_it_is(autojump_clock: MockClock) -> None:
    """`aclose` is a request for the end of this session: the row goes, and the other copy closes."""
    async with instances() as world:
        left = await world.make()
        session = await world.restore()
        await left.aclose()
        assert await world.row() is None
        await trio.sleep(TTL / 3 + 1)
        assert SessionState.CLOSED is session.state


@pytest.mark.parametrize("way", ["aclose", "suspend", "exit"])
async def test_a_close_during_an_exit_ends_the_session_wherever_it_is(way: str, autojump_clock: MockClock) -> None:
    """A block of `open_session` that is left ends its copy alone, but while that copy drains `aclose` still ends the
    session itself; `suspend`, and leaving the factory as well, change nothing.
    """

    async def be_slow(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(3)
        return "done"

    opened: list[Session] = []

    async def open_and_leave() -> None:
        async with world.factories[1].open_session(world.configured, session_id="one") as session:
            opened.append(session)
            await trio.sleep(1)
            nursery.start_soon(session.call_tool, "a_slow")
            await trio.sleep(1)

    async with trio.open_nursery() as nursery, instances() as world:
        world.backend.add_tool("slow", be_slow)
        nursery.start_soon(open_and_leave)
        await wait_all_tasks_blocked()
        session = await world.restore(0)
        (left,) = opened
        await trio.sleep(3)
        assert SessionState.DRAINING is left.state
        await (world.exits[1].aclose() if way == "exit" else getattr(left, way)())
        assert (way == "aclose") is (await world.row() is None)
        await trio.sleep(TTL / 3 + 1)
        assert (SessionState.CLOSED if way == "aclose" else SessionState.OPEN) is session.state


@pytest.mark.parametrize("seconds", [TTL + 1, 2 * TTL + 10, 10 * TTL])
async def test_a_terminated_session_stays_terminated_after_an_outage(seconds: float, autojump_clock: MockClock) -> None:
    """Once the storage is back, an instance that was cut off from it finds no row: it creates none, and closes."""
    async with instances(idle_timeout=100_000) as world:
        session = await world.make()
        cut(world.ways[0])
        await (await world.restore()).aclose()
        until = trio.current_time() + seconds
        while trio.current_time() < until:
            await trio.sleep(20)
            await session.call_tool("a_echo")
        world.ways[0].before.clear()
        await trio.sleep(TTL)
        assert SessionState.CLOSED is session.state
        assert await world.row() is None


@pytest.mark.parametrize("seconds", [2 * TTL, 10 * TTL])
async def test_another_session_of_the_same_id_is_left_alone(seconds: float, autojump_clock: MockClock) -> None:
    """The row expired during an outage and the id was taken again: equal versions do not make the row ours."""
    async with instances(idle_timeout=100_000) as world:
        session = await world.make()
        cut(world.ways[0])
        await trio.sleep(seconds)
        other = await world.make(1)
        world.ways[0].before.clear()
        await trio.sleep(TTL)
        assert SessionState.CLOSED is session.state
        assert SessionState.OPEN is other.state
        assert other.metadata == await world.row()
        await other.call_tool("a_echo")


@pytest.mark.parametrize("how", ["late", "stuck", "lost"])
@pytest.mark.parametrize("winner", [True, False])
async def test_a_create_of_unknown_outcome(how: str, winner: bool, autojump_clock: MockClock) -> None:
    """The row of another session stays. A row of its own is deleted, also if it arrives later."""
    async with instances() as world:
        way = world.ways[1]
        if how == "late":
            way.before["create"] = partial(trio.sleep, 20)
        elif how == "stuck":
            way.before["create"] = stuck
        else:
            way.after["create"] = away
            if winner:  # else the two instances race, and Trio starts tasks in any order
                way.before["create"] = partial(trio.sleep, 1)
        other = None
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                with pytest.raises(StorageError) if how != "lost" or not winner else suppress(Exception):
                    await world.make(1)

            nursery.start_soon(fail)
            if winner:
                other = await world.make(0)
        await trio.sleep(40)
        if other is None:
            assert await world.row() is None
        else:
            assert SessionState.OPEN is other.state
            assert other.metadata == await world.row()


@pytest.mark.parametrize("operation", OPERATIONS[1:])
@pytest.mark.parametrize("how", [away, trio.sleep_forever, stuck])
@pytest.mark.parametrize("end", ["aclose", "exit", "idle"])
async def test_no_storage_holds_up_a_goodbye(
    operation: str, how: Callable[[], Awaitable[object]], end: str, autojump_clock: MockClock
) -> None:
    """Away, hanging, or not to be cancelled, while the row is touched and afterwards: DELETE within the teardown."""
    async with instances(1) as world:
        session = await world.make()
        world.ways[0].before[operation] = how
        await trio.sleep(TTL / 3 + 1)  # the row is being touched
        if end == "idle":
            await trio.sleep_until(600 + SETTINGS.teardown_timeout + 0.1)
        else:
            began = trio.current_time()
            await (session.aclose() if end == "aclose" else world.exits[0].aclose())
            assert trio.current_time() - began <= SETTINGS.teardown_timeout
        assert SessionState.CLOSED is session.state
        assert 1 == len(world.backend.deleted_sessions)
        await trio.sleep(30)  # what was stuck has ended


@pytest.mark.parametrize("operation", ["create", "load"])
async def test_a_storage_that_cannot_be_cancelled_costs_an_opening_its_timeout(
    operation: str, autojump_clock: MockClock
) -> None:
    """Opening and restoring fail with StorageError in bounded time."""
    async with instances(1) as world:
        world.ways[0].before[operation] = stuck
        began = trio.current_time()
        with pytest.raises(StorageError, match="storage_timeout"):
            await (world.make() if operation == "create" else world.restore(0))
        assert trio.current_time() - began <= SETTINGS.storage_timeout + SETTINGS.teardown_timeout
        assert 0 == len(world.backend.sessions)
        await trio.sleep(30)  # what was stuck has ended


@pytest.mark.parametrize(
    ("lie", "text", "kind"),
    [
        (lambda row: attrs.evolve(row, session_id="two"), "another session", StorageError),
        (lambda row: attrs.evolve(row, schema_version=7), "schema_version=7", UnreadableMetadata),
        (lambda row: None, "no SessionMetadata", StorageError),
    ],
)
async def test_what_a_load_answers_is_what_was_asked(
    lie: Callable[[Any], Any], text: str, kind: type[StorageError], autojump_clock: MockClock
) -> None:
    """Another id or schema, or no metadata at all: StorageError, and no backend is contacted. Of a row that would be
    one of another release, the error says so.
    """

    class Liar(ScriptedStorage):
        async def load(self, session_id: str) -> SessionMetadata:
            row: SessionMetadata = lie(await self.inner.load(session_id))
            return row

    async with instances(1) as world:
        await (await world.make()).suspend()
        requests = len(world.backend.received("tools/list"))
        async with open_session_factory(storage=Liar(world.shared), settings=SETTINGS) as factory:
            with pytest.raises(StorageError, match=text) as caught:
                await factory.restore_session("one", world.configured)
        assert kind is type(caught.value)
        assert requests == len(world.backend.received("tools/list"))


class Older:
    """A storage written before `touch` and `delete` had a version."""

    def __init__(self, inner: LocalStorage) -> None:
        self.inner, self.ttl = inner, inner.ttl

    async def create(self, metadata: SessionMetadata) -> None:
        await self.inner.create(metadata)

    async def load(self, session_id: str) -> SessionMetadata:
        return await self.inner.load(session_id)

    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        await self.inner.replace(metadata, expected_version=expected_version)

    async def touch(self, session_id: str) -> None:
        await self.inner.touch(session_id)

    async def delete(self, session_id: str) -> None:
        await self.inner.delete(session_id)

    async def aclose(self) -> None:
        await self.inner.aclose()


async def test_a_storage_without_versions_for_touch_and_delete(autojump_clock: MockClock) -> None:
    """Sessions keep their rows and end; an instance that the session has left still reads the row and leaves it."""
    async with instances(1) as world:
        older: Any = Older(world.shared)
        storage: Storage = older
        async with open_session_factory(storage=storage, settings=SETTINGS) as factory:
            session = await factory.make_session([], session_id="two")
            await trio.sleep(3 * TTL)
            assert session.metadata == await world.shared.load("two")
            left = await factory.make_session([], session_id="three")
            moved = await world.factories[0].restore_session("three", [])
            await session.aclose()
        assert SessionState.CLOSED is left.state
        assert moved.metadata == await world.shared.load("three")
        with pytest.raises(SessionNotFound):
            await world.shared.load("two")


async def test_a_change_of_each_instance_is_in_the_row(autojump_clock: MockClock) -> None:
    """A backend added at each: the second writer reads the row and adds its own change to it."""
    async with instances(3) as world:
        copies = [await world.make(), await world.restore(1), await world.restore(2)]
        for number, copy in enumerate(copies):
            await copy.add_backend(attrs.evolve(world.configured[0], id=f"b{number}"))
        await trio.sleep(1)
        row = await world.row()
        assert row is not None
        assert ["a", "b0", "b1", "b2"] == sorted(record.backend_id for record in row.backends)
        assert {"a_echo", "b0_echo", "b1_echo", "b2_echo"} == row.bindings["tools"].keys()
        await copies[1].remove_backend("b1")
        await trio.sleep(1)
        row = await world.row()
        assert row is not None
        assert ["a", "b0", "b2"] == sorted(record.backend_id for record in row.backends)


async def test_a_backend_session_that_another_instance_uses_stays_in_the_row(autojump_clock: MockClock) -> None:
    """Both find their backend session lost: the first one writes its new id, the second keeps its own to itself."""
    async with instances() as world:
        copies = [await world.make(), await world.restore()]
        world.backend.sessions.clear()
        await copies[1].call_tool("a_echo")
        await trio.sleep(1)
        named = await world.row()
        await copies[0].call_tool("a_echo")
        await trio.sleep(1)
        assert named == await world.row()
        assert 2 == len(world.backend.sessions)
