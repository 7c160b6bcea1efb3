"""Hibernation, idle ends and lifetimes: what happens to sessions without a request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support.harness import ALICE, echo_backend, library_tasks, slow_backend, state_of
from support.managers import IDLE, SLEEP, Managed, State, managed
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    ClientHandlers,
    ManagerSettings,
    ServerRequest,
    Session,
    SessionClosed,
    SessionNotFound,
    SessionState,
)
from trio_vmcp.testing import CallContext, Hang

LIFETIME = 4000.0  # s


# Asleep


async def test_what_was_handed_out_before_is_closed(autojump_clock: MockClock) -> None:
    """The next `get` gives another session of the same id, over the same sessions of the backends."""
    async with managed() as world:
        session = await world.make("asleep")
        assert SessionState.CLOSED is state_of(session)
        with pytest.raises(SessionClosed):
            await session.call_tool("a_echo")
        woken = await world.manager.get(session.id, caller=ALICE)
        assert not (await woken.call_tool("a_echo")).backend_state_lost
        assert (1, 0) == (len(world.backend.received("initialize")), len(world.backend.received("DELETE")))


@pytest.mark.parametrize("how", ["get", "call"])
async def test_use_moves_the_clock(how: str, autojump_clock: MockClock) -> None:
    """A call and an owner's `get` begin the time to hibernation anew; it is then kept to the second."""
    async with managed() as world:
        session = await world.make("live")
        for _ in range(5):
            await trio.sleep(SLEEP - 1)
            await (session.call_tool("a_echo") if how == "call" else world.manager.get(session.id, caller=ALICE))
        assert SessionState.OPEN is state_of(session)
        await trio.sleep(SLEEP - 0.5)
        assert 0 == world.manager.statistics.hibernated
        await trio.sleep(1)
        assert 1 == world.manager.statistics.hibernated


async def be_subscribed(world: Managed, session: Session, until: AsyncExitStack) -> None:
    await session.subscribe_resource("file:///x")
    until.push_async_callback(session.unsubscribe_resource, "file:///x")


async def read_changes(world: Managed, session: Session, until: AsyncExitStack) -> None:
    await until.enter_async_context(session.changes())


async def be_in_a_call(world: Managed, session: Session, until: AsyncExitStack) -> None:
    nursery = await until.enter_async_context(trio.open_nursery())
    until.callback(nursery.cancel_scope.cancel)
    nursery.start_soon(partial(session.call_tool, "a_slow", timeout=1e6))
    await wait_all_tasks_blocked()


async def be_asked(world: Managed, session: Session, until: AsyncExitStack) -> None:
    nursery = await until.enter_async_context(trio.open_nursery())
    until.callback(nursery.cancel_scope.cancel)

    async def ask() -> None:
        with suppress(Exception):
            await world.backend.ask("roots/list", {})

    nursery.start_soon(ask)
    await wait_all_tasks_blocked()


@pytest.mark.parametrize("work", [be_subscribed, read_changes, be_in_a_call, be_asked])
async def test_a_session_at_work_stays_awake(
    work: Callable[[Managed, Session, AsyncExitStack], Any], autojump_clock: MockClock
) -> None:
    """With a resource subscription, a reader of changes, a call or a handler at work; from its end it has the time."""
    ended = trio.Event()

    async def answer(request: ServerRequest) -> JSON:
        await ended.wait()
        return {"roots": []}

    backend = slow_backend(1e6, answers="sse", listens=True)
    backend.add_resource("file:///x")
    async with managed(backends={"a": backend}, idle_timeout=1e6) as world:
        session = await world.manager.create(handlers=ClientHandlers(roots=answer))
        async with AsyncExitStack() as until:
            await work(world, session, until)
            await trio.sleep(10 * SLEEP)
            assert SessionState.OPEN is state_of(session)
            ended.set()
        await trio.sleep(SLEEP - 1)
        assert SessionState.OPEN is state_of(session)
        await trio.sleep(2 * SLEEP)
        assert SessionState.CLOSED is state_of(session)
        assert 1 == world.manager.statistics.hibernated


async def test_it_wakes_with_the_handlers_that_it_had(autojump_clock: MockClock) -> None:
    """Without `handlers`, those of `create` or of an earlier `get`; else those of this `get`."""

    def naming(name: str) -> ClientHandlers:
        async def roots(request: ServerRequest) -> JSON:
            asked.append(name)
            return {"roots": []}

        return ClientHandlers(roots=roots)

    async def ask(arguments: JSON, context: CallContext) -> str:
        await context.roots()
        return "asked"

    asked: list[str] = []
    backend = echo_backend(answers="sse")
    backend.add_tool("ask", ask)
    async with managed(backends={"a": backend}) as world:
        session = await world.manager.create(handlers=naming("first"))
        for handlers in (None, None, naming("second"), None):
            await session.call_tool("a_ask")
            await trio.sleep(SLEEP + 1)
            session = await world.manager.get(session.id, handlers=handlers)
        await session.call_tool("a_ask")
    assert ["first", "first", "first", "second", "second"] == asked


async def test_its_row_is_touched_like_a_live_one(autojump_clock: MockClock) -> None:
    """A session that hibernates for many times the TTL can be woken."""
    async with managed(ttl=60, idle_timeout=5000) as world:
        session = await world.make("asleep")
        await trio.sleep(2000)
        assert 2000 / 60 * 4 >= world.way.calls["touch"] >= 2000 / 60
        woken = await world.manager.get(session.id, caller=ALICE)
        assert not (await woken.call_tool("a_echo")).backend_state_lost


# The end


@pytest.mark.parametrize("state", ["live", "asleep"])
async def test_an_idle_session_ends_for_good(state: State, autojump_clock: MockClock) -> None:
    """After `idle_timeout` without use, without any request: the backends get their goodbyes, and the row goes."""
    limits = ManagerSettings(hibernate_after=SLEEP if state == "asleep" else IDLE * 2)
    async with managed(limits=limits) as world:
        session = await world.make(state)
        await trio.sleep(IDLE + 1)
        assert {} == world.backend.sessions
        assert await world.row(session.id) is None
        assert (0, 0, 1) == counts(world)
        with pytest.raises(SessionNotFound):
            await world.manager.get(session.id, caller=ALICE)
        assert 1 == len(world.backend.received("DELETE"))


@pytest.mark.parametrize("state", ["live", "asleep"])
async def test_a_session_that_is_too_old_ends_for_good(state: State, autojump_clock: MockClock) -> None:
    """After `max_lifetime`, in use or not; counted from `create`, over any number of wakes."""
    limits = ManagerSettings(hibernate_after=SLEEP, max_lifetime=LIFETIME)
    async with managed(limits=limits) as world:
        session = await world.make("live")
        while trio.current_time() < LIFETIME - 1000:
            await trio.sleep(900)
            session = await world.manager.get(session.id, caller=ALICE)
        if state == "live":
            await trio.sleep(LIFETIME - trio.current_time() - 1)
            await (await world.manager.get(session.id, caller=ALICE)).call_tool("a_echo")
        await trio.sleep(LIFETIME - trio.current_time() + 1)
        assert {} == world.backend.sessions
        assert await world.row(session.id) is None
        assert (0, 0, 1) == counts(world)


async def test_the_calls_of_a_session_that_is_too_old_drain(autojump_clock: MockClock) -> None:
    """A call in flight at `max_lifetime` has `drain_timeout`; no other is admitted."""
    async with managed(backends={"a": slow_backend(8)}, limits=ManagerSettings(max_lifetime=100)) as world:
        session = await world.make("live")
        await trio.sleep(95)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call_tool, "a_slow")
            await trio.sleep(6)
            with pytest.raises(SessionNotFound):
                await world.manager.get(session.id, caller=ALICE)
        await session.wait_closed()
        assert (0, 0, 1) == counts(world)


async def test_a_row_that_is_too_old_is_ended_when_it_is_asked_for(autojump_clock: MockClock) -> None:
    """A `get` of a session in the storage that was made too long ago, by the wall clock, ends it for good."""
    async with managed(2, limits=ManagerSettings(max_lifetime=LIFETIME)) as world:
        session = await world.make("elsewhere")
        await session.suspend()
        row = await world.storage.load(session.id)
        old = row.created_at - timedelta(seconds=LIFETIME)
        await world.storage.replace(
            attrs.evolve(row, created_at=old, version=row.version + 1), expected_version=row.version
        )
        with pytest.raises(SessionNotFound):
            await world.manager.get(session.id, caller=ALICE)
        await wait_all_tasks_blocked()
        assert await world.row(session.id) is None
        assert {} == world.backend.sessions
        assert (0, 0, 1) == counts(world)


async def test_ending_a_session_waits_for_no_other(autojump_clock: MockClock) -> None:
    """Ten sessions that hibernate, at a backend whose goodbyes hang, end in the time of one."""
    async with managed(teardown_timeout=3) as world:
        for _ in range(10):
            await world.manager.create()
        await trio.sleep(SLEEP + 1)
        assert 10 == world.manager.statistics.hibernated
        world.backend.fail("DELETE", Hang())
        await trio.sleep(IDLE - SLEEP + 4)
        assert (0, 0, 10) == counts(world)
        world.leaves_sessions = True


def counts(world: Managed) -> tuple[int, int, int]:
    """Live, hibernated, expired."""
    statistics = world.manager.statistics
    return statistics.live, statistics.hibernated, statistics.expired


@pytest.mark.parametrize("state", ["live", "asleep"])
async def test_an_idle_session_has_no_task_and_no_timer_of_the_manager(state: State, autojump_clock: MockClock) -> None:
    """The manager has one task for all sessions, and Trio has one deadline more: also where fifty are idle."""
    fields: dict[str, Any] = {"idle_timeout": 1e6, "ttl": 1e6}
    counted = []
    limits = ManagerSettings(hibernate_after=SLEEP if state == "asleep" else 1e5, max_lifetime=1e6)
    async with managed(backends={}, limits=limits, own_storage=True, **fields) as world:
        empty = tasks_and_deadlines()
        for _ in range(50):
            await world.manager.create()
        await trio.sleep(SLEEP + 1)
        await wait_all_tasks_blocked()
        counted.append(tasks_and_deadlines() - empty)
        assert 50 == (world.manager.statistics.hibernated if state == "asleep" else world.manager.statistics.live)
    if state == "asleep":
        assert Counter(deadlines=1) == counted[0]
        return
    async with managed(backends={}, own_storage=True, **fields) as world:
        empty = tasks_and_deadlines()
        for _ in range(50):
            await world.instances[0].factory.make_session([])
        await wait_all_tasks_blocked()
        assert tasks_and_deadlines() - empty + Counter(deadlines=1) == counted[0]


def tasks_and_deadlines() -> Counter[str]:
    runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
    return Counter({"tasks": len(library_tasks()), "deadlines": runner.deadlines._active})
