"""A storage that is away, frozen or back: what a manager says meanwhile, and what it remembers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
from support.harness import ALICE, state_of
from support.instances import away, cut, stuck
from support.managers import IDLE, SLEEP, TTL, State, managed
from support.scripted_storage import ScriptedStorage
from support.spoiled import spoil
from trio.testing import MockClock

from trio_vmcp import ManagerSettings, SessionNotFound, SessionState, StorageError
from trio_vmcp._manager.ends import MOST_DELAY

WAYS = pytest.mark.parametrize("how", [away, trio.sleep_forever, stuck])  # away, frozen, in a thread


def mend(way: ScriptedStorage) -> None:
    way.before.clear()


@WAYS
@pytest.mark.parametrize("what", ["create", "asleep", "elsewhere", "unknown"])
async def test_what_is_not_live_here_fails_in_bounded_time(
    what: str, how: Callable[[], Awaitable[object]], autojump_clock: MockClock
) -> None:
    """`StorageError` after `storage_timeout` at most, and nothing is lost to it: afterwards all is as before."""
    async with managed(2) as world:
        state: State = "asleep" if what == "asleep" else "elsewhere"
        session = await world.make(state)
        ask = partial(world.manager.get, "unknown" if what == "unknown" else session.id, caller=ALICE)
        cut(world.way, how)
        began = trio.current_time()
        with pytest.raises(StorageError):
            await (world.manager.create() if what == "create" else ask())
        assert trio.current_time() - began <= (7 if what == "create" else 5)  # a failed opening has its teardown
        mend(world.way)
        assert (0, 0) == (world.manager.statistics.live, world.manager.statistics.opening)
        found = await world.manager.get(session.id, caller=ALICE)
        assert not (await found.call_tool("a_echo")).backend_state_lost
        await world.manager.terminate(session.id, caller=ALICE)
        await trio.sleep(40)  # a frozen create may still arrive


@pytest.mark.parametrize("what", ["create", "asleep", "elsewhere", "unknown"])
async def test_the_log_says_what_the_storage_did(
    what: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a minute, however many requests fail, and the first failure, not what was tried after that."""

    async def full() -> None:
        raise StorageError("the disk is full")

    async with managed(2) as world:
        state: State = "asleep" if what == "asleep" else "elsewhere"
        session = await world.make(state)
        ask = partial(world.manager.get, "unknown" if what == "unknown" else session.id, caller=ALICE)
        cut(world.way, full)
        for seconds in (0, 1, 1, 61, 1):
            await trio.sleep(seconds)
            with pytest.raises(StorageError):
                await (world.manager.create() if what == "create" else ask())
        mend(world.way)
        await trio.sleep(40)
    records = [record for record in caplog.records if record.name == "trio_vmcp.manager"]
    told = [each.getMessage() for each in records if each.levelname == "WARNING"]
    verb = "made" if what == "create" else "found"
    assert [f"a session could not be {verb}: the disk is full"] * 2 == [text for text in told if verb in text]


@pytest.mark.parametrize("how", ["terminated", "expired"])
async def test_a_session_that_sleeps_in_an_unreadable_row_is_ended_once(
    how: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """To ask the storage again would bring no other row: one warning, and the row ends by its TTL."""
    async with managed() as world:
        session = await world.make("asleep")
        world.leaves_sessions = True  # which ones they are is in the row
        spoil(world.storage, session.id, lambda data: b"{")
        if how == "terminated":
            await world.manager.terminate(session.id, caller=ALICE)
        else:
            await trio.sleep(IDLE)
        statistics = world.manager.statistics
        assert (0, 1) == (statistics.hibernated, getattr(statistics, how))
        loads = world.way.calls["load"]
        await trio.sleep(TTL)
        assert loads == world.way.calls["load"]
        with pytest.raises(SessionNotFound):
            await world.manager.get(session.id, caller=ALICE)
    assert 1 == sum("its row is left" in record.getMessage() for record in caplog.records)


@WAYS
async def test_live_sessions_keep_serving(how: Callable[[], Awaitable[object]], autojump_clock: MockClock) -> None:
    """Calls, and `get` by the owner, also until the TTL."""
    async with managed(ttl=60, idle_timeout=10_000, limits=ManagerSettings(hibernate_after=1e5)) as world:
        session = await world.make("live")
        cut(world.way, how)
        for _ in range(6):
            await trio.sleep(9)
            await (await world.manager.get(session.id, caller=ALICE)).call_tool("a_echo")
        mend(world.way)
        await trio.sleep(60)
        await session.call_tool("a_echo")


@WAYS
@pytest.mark.parametrize("state", ["live", "asleep"])
async def test_a_termination_that_the_storage_did_not_hear_of(
    state: State, how: Callable[[], Awaitable[object]], autojump_clock: MockClock
) -> None:
    """It is remembered until the row is gone, and tried again; this manager does not serve the id meanwhile."""
    async with managed() as world:
        session = await world.make(state)
        cut(world.way, how)
        await world.manager.terminate(session.id, caller=ALICE)
        mend(world.way)
        world.way.before["delete"] = away
        assert await world.row(session.id) is not None
        for ask in (world.manager.get, world.manager.terminate):
            with pytest.raises(SessionNotFound):
                await ask(session.id, caller=ALICE)
        mend(world.way)
        await trio.sleep(MOST_DELAY + 6)
        assert await world.row(session.id) is None
        assert {} == world.backend.sessions
        assert (1, 0) == (world.manager.statistics.terminated, world.manager.statistics.expired)


@WAYS
@pytest.mark.parametrize("state", ["live", "asleep", "elsewhere"])
async def test_a_termination_whose_row_cannot_be_deleted(
    state: State, how: Callable[[], Awaitable[object]], autojump_clock: MockClock
) -> None:
    """The backends hear of the end within the storage's timeout all the same; the row goes later, and then backends are
    told of what they may not have heard: another connection's.
    """
    async with managed(2) as world:
        session = await world.make(state)
        world.way.before["delete"] = how
        began = trio.current_time()
        await world.manager.terminate(session.id, caller=ALICE)
        assert trio.current_time() - began <= 5 + 2
        own = 1 if state == "elsewhere" else 0  # the other instance has noticed nothing yet
        told = [each for each in world.backend.exchanges if each.verb == "DELETE"]
        assert 1 == len(told)
        assert {} == world.backend.sessions
        assert own == world.instances[1].manager.statistics.live
        mend(world.way)
        await trio.sleep(MOST_DELAY + 6)
        assert await world.row(session.id) is None
        told = [each for each in world.backend.exchanges if each.verb == "DELETE"]
        assert (1 if state == "asleep" else 2) == len(told)


@WAYS
@pytest.mark.parametrize("state", ["live", "asleep"])
async def test_an_idle_session_that_expired_meanwhile(
    state: State, how: Callable[[], Awaitable[object]], autojump_clock: MockClock
) -> None:
    """It is over here at `idle_timeout`, and its row and backend sessions are ended once the storage is back."""
    limits = ManagerSettings(hibernate_after=SLEEP if state == "asleep" else 1e6)
    async with managed(limits=limits, ttl=1e5, idle_timeout=300) as world:
        session = await world.make(state)
        cut(world.way, how)
        await trio.sleep(400)
        mend(world.way)
        world.way.before["delete"] = away
        assert await world.row(session.id) is not None
        with pytest.raises(SessionNotFound):
            await world.manager.get(session.id, caller=ALICE)
        mend(world.way)
        await trio.sleep(MOST_DELAY + 6)
        assert await world.row(session.id) is None
        assert {} == world.backend.sessions
        assert (0, 0, 1) == (
            world.manager.statistics.live,
            world.manager.statistics.hibernated,
            world.manager.statistics.expired,
        )


async def test_a_failed_touch_is_tried_again(autojump_clock: MockClock) -> None:
    """A session that hibernates outlives an outage that is shorter than the TTL."""
    async with managed(ttl=90, idle_timeout=IDLE) as world:
        session = await world.make("asleep")
        for _ in range(4):
            cut(world.way)
            await trio.sleep(50)
            mend(world.way)
            await trio.sleep(20)
        found = await world.manager.get(session.id, caller=ALICE)
        assert not (await found.call_tool("a_echo")).backend_state_lost


async def test_no_session_hibernates_while_the_storage_is_away(autojump_clock: MockClock) -> None:
    """It could not be woken then. Once the storage is back, it hibernates."""
    async with managed(limits=ManagerSettings(hibernate_after=SLEEP)) as world:
        session = await world.make("live")
        await trio.sleep(SLEEP - 10)
        cut(world.way)
        await trio.sleep(100)
        assert SessionState.OPEN is state_of(session)
        mend(world.way)
        await trio.sleep(7)
        assert SessionState.CLOSED is state_of(session)
        assert 1 == world.manager.statistics.hibernated
