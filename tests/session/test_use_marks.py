"""Used anywhere is alive everywhere: marks of use in the row, and idle copies of a session that is in use elsewhere."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import attrs
import pytest
import trio
from support.instances import SETTINGS, TTL, Instances, away, call_for, cut, instances
from trio.testing import MockClock

from trio_vmcp import JSON, Session, SessionState
from trio_vmcp._session.use_marks import UseMarks
from trio_vmcp.testing import CallContext

LONG = 100_000.0  # s, a TTL that ends nothing here
QUARTER = SETTINGS.idle_timeout / 4


async def states(world: Instances, *sessions: Session) -> tuple[object, ...]:
    """Of the copies; and whether the row is there."""
    return *(session.state.name for session in sessions), await world.row() is not None


@pytest.mark.parametrize(
    ("idle_timeout", "ttl", "every"), [(2.0, TTL, 0.5), (LONG, 2.0, 0.5), (0.0, TTL, 0.01), (math.inf, LONG, LONG / 4)]
)
def test_use_is_marked_each_quarter_of_the_shorter_timeout(idle_timeout: float, ttl: float, every: float) -> None:
    """At most a hundred times a second, however short the timeouts are."""
    marks = UseMarks()
    marks.mark_each(idle_timeout, ttl)
    assert every == marks.every


@pytest.mark.parametrize("ttl", [TTL, LONG])
async def test_a_session_that_came_back_is_not_ended_by_the_instance_between(
    ttl: float, autojump_clock: MockClock
) -> None:
    """First, second, first: the copy of the second is idle, and lets go. The row and its backend sessions stay; the
    backend session that only the idle copy had is ended.
    """
    async with instances(ttl=ttl) as world:
        session = await world.make()
        between = await world.restore()
        world.backend.sessions.clear()
        await session.call_tool("a_echo")  # a new backend session, which is in the row
        await trio.sleep(1)
        await between.call_tool("a_echo")  # a second one, which is not
        own = [known for known in world.backend.sessions if known not in session.backend_sessions.values()]
        await call_for(session, SETTINGS.idle_timeout + QUARTER)
        assert ("OPEN", "CLOSED", True) == await states(world, session, between)
        assert own == world.backend.deleted_sessions


async def test_an_idle_session_ends_everywhere(autojump_clock: MockClock) -> None:
    """Two copies, used by turns: `idle_timeout` after the last use anywhere the row and the backend session go."""
    async with instances(ttl=LONG) as world:
        copies = [await world.make(), await world.restore()]
        for turn in range(11):
            await trio.sleep(70)
            await copies[turn % 2].call_tool("a_echo")
        await trio.sleep(SETTINGS.idle_timeout - 1)
        assert await world.row() is not None
        await trio.sleep(2 * QUARTER + 2)
        assert ("CLOSED", "CLOSED", False) == await states(world, *copies)
        assert 1 == len(world.backend.deleted_sessions)


@pytest.mark.parametrize("ttl", [TTL, LONG])
@pytest.mark.parametrize("use", ["short calls", "a long call"])
async def test_use_is_noted_in_the_row(use: str, ttl: float, autojump_clock: MockClock) -> None:
    """While there is any, a running call included: each quarter of the shorter of `idle_timeout` and TTL has a mark."""
    every = min(SETTINGS.idle_timeout, ttl) / 4

    async def be_slow(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(5 * every)
        return "done"

    async with instances(1, ttl=ttl) as world, trio.open_nursery() as nursery:
        world.backend.add_tool("slow", be_slow)
        session = await world.make()
        if use == "a long call":
            nursery.start_soon(partial(session.call_tool, "a_slow", timeout=2000))
        else:
            nursery.start_soon(call_for, session, 5 * every, every / 3)
        seen = set()
        for turn in range(1, 5):
            await trio.sleep_until(turn * every + 0.5)
            row = await world.row()
            assert row is not None
            seen.add(row.used_at)
            assert turn <= len(seen) <= turn + 1


async def test_without_use_there_are_no_marks(autojump_clock: MockClock) -> None:
    """A restore writes one. From then on the TTL is put off by `touch`, which changes nothing else."""
    async with instances(ttl=TTL) as world:
        made = (await world.make()).metadata
        session = await world.restore()
        assert session.metadata.used_at > made.used_at
        await trio.sleep(510)
        assert session.metadata == await world.row()
        assert {"replace": 0, "touch": 26} == {name: world.ways[0].calls[name] for name in ("replace", "touch")}
        assert {"replace": 1, "touch": 25} == {name: world.ways[1].calls[name] for name in ("replace", "touch")}


USES: dict[str, Callable[[Session], Awaitable[object]]] = {
    "call": lambda session: session.call_tool("a_echo"),
    "log level": lambda session: session.set_log_level("error"),
    "roots": lambda session: session.tell_roots_changed(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("left", [0, 1])
async def test_the_first_use_after_a_pause_is_noted_at_once(left: int, use: str, autojump_clock: MockClock) -> None:
    """The session goes back to a copy that was idle, moments before the other copy is idle for too long."""
    async with instances(ttl=LONG) as world:
        copies = [await world.make(), await world.restore()]
        await trio.sleep(SETTINGS.idle_timeout - 10)
        await USES[use](copies[1 - left])
        await trio.sleep(20)
        assert SessionState.CLOSED is copies[left].state
        await trio.sleep(SETTINGS.idle_timeout - 30)
        assert (SessionState.OPEN, True) == (copies[1 - left].state, await world.row() is not None)
        await trio.sleep(30)
        assert (SessionState.CLOSED, False) == (copies[1 - left].state, await world.row() is not None)


async def test_a_late_mark_does_not_shorten_the_life_of_a_session(autojump_clock: MockClock) -> None:
    """A copy notes at 350 s that it was used at 210 s, while another one was used at 340 s: it waits from 350 s on."""
    async with instances(ttl=LONG) as world:
        copies = [await world.make(), await world.restore()]
        for at, copy in ((200, 0), (210, 0), (340, 1)):
            await trio.sleep_until(at)
            await copies[copy].call_tool("a_echo")
        await trio.sleep_until(339 + SETTINGS.idle_timeout)
        assert ("OPEN", "OPEN", True) == await states(world, *copies)
        await trio.sleep_until(353 + SETTINGS.idle_timeout)
        assert ("CLOSED", "CLOSED", False) == await states(world, *copies)


@pytest.mark.parametrize("operation", ["replace", "touch"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_marks_survive_a_storage_that_fails(moment: str, operation: str, autojump_clock: MockClock) -> None:
    """A mark that did not arrive, or arrived without an answer, is sent again; the copy knows its own marks, and ends
    its session when it is idle.
    """
    async with instances(1) as world:
        session = await world.make()
        getattr(world.ways[0], moment)[operation] = away
        await call_for(session, 100)
        before = await world.row()
        getattr(world.ways[0], moment).clear()
        await trio.sleep(TTL / 4 + 1)
        after = await world.row()
        assert before is not None
        assert after is not None
        assert after.used_at >= before.used_at
        assert (operation, moment) != ("replace", "before") or after.used_at > before.used_at
        await trio.sleep_until(100 + SETTINGS.idle_timeout + 1)
        assert ("CLOSED", False) == await states(world, session)
        assert 1 == len(world.backend.deleted_sessions)


@pytest.mark.parametrize("end", ["idle", "exit"])
async def test_an_instance_that_was_cut_off_ends_its_copy_alone(end: str, autojump_clock: MockClock) -> None:
    """For over a TTL it did not reach the storage, and the session is in use elsewhere: what it reads then is news."""
    async with instances(idle_timeout=200) as world:
        left = await world.make(1)
        session = await world.restore(0)
        cut(world.ways[1])
        await call_for(session, 170)
        world.ways[1].before.clear()
        world.ways[1].before["touch"] = away
        if end == "idle":
            await trio.sleep(30)
        else:
            await world.exits[1].aclose()
        assert ("OPEN", "CLOSED", True) == await states(world, session, left)
        assert [] == world.backend.deleted_sessions


async def test_a_session_that_another_instance_has_written_is_left_to_it(autojump_clock: MockClock) -> None:
    """At the exit of its factory an instance ends no session whose row another one has written last."""
    async with instances() as world:
        session = await world.make(1)
        other = await world.restore(0)
        await call_for(session, 60)
        await other.add_backend(attrs.evolve(world.configured[0], id="b"))
        await trio.sleep(1)
        await world.exits[1].aclose()
        assert ("CLOSED", "OPEN", True) == await states(world, session, other)


@pytest.mark.parametrize("later", [0, TTL / 4, TTL])
async def test_a_late_mark_does_not_let_an_exit_end_the_session(later: float, autojump_clock: MockClock) -> None:
    """A call, a move, and the exit of the instance that was left, whose mark of the call came after the move."""
    async with instances() as world:
        left = await world.make(1)
        await trio.sleep(1)
        await left.call_tool("a_echo")
        await trio.sleep(1)
        session = await world.restore(0)
        await trio.sleep(later)
        await world.exits[1].aclose()
        assert ("OPEN", "CLOSED", True) == await states(world, session, left)
        assert [] == world.backend.deleted_sessions


async def test_a_restored_session_that_is_never_used_ends_with_its_factory(autojump_clock: MockClock) -> None:
    """The mark of a restore takes the place of another instance's, and the session is here from then on."""
    async with instances() as world:
        await (await world.make()).suspend()
        await world.restore(1)
        await world.exits[1].aclose()
        assert await world.row() is None
        assert 1 == len(world.backend.deleted_sessions)


async def test_a_write_that_is_no_use_leaves_the_end_to_the_last_user(autojump_clock: MockClock) -> None:
    """The idle copy has written the row last. The other one, which was used last, ends the session when it is idle."""
    async with instances(ttl=LONG) as world:
        session = await world.make()
        other = await world.restore()
        await call_for(session, 200)
        await trio.sleep_until(400)
        await other.add_backend(attrs.evolve(world.configured[0], id="b"))
        await trio.sleep_until(SETTINGS.idle_timeout + 100)
        assert ("OPEN", "CLOSED", True) == await states(world, session, other)
        await trio.sleep(101)
        assert ("CLOSED", "CLOSED", False) == await states(world, session, other)


async def test_a_mark_finds_out_that_the_session_was_terminated_elsewhere(autojump_clock: MockClock) -> None:
    """It does not wait for the next touch, and brings no row back."""
    async with instances(ttl=LONG) as world:
        copies = [await world.make(), await world.restore()]
        await copies[1].aclose()
        await trio.sleep(QUARTER)
        await copies[0].call_tool("a_echo")
        await trio.sleep(1)
        assert ("CLOSED", "CLOSED", False) == await states(world, *copies)


async def test_a_row_keeps_its_attributes(autojump_clock: MockClock) -> None:
    """A restore and its marks change nothing that the user has put there."""
    async with instances() as world:
        await (await world.make()).suspend()
        row = await world.row()
        assert row is not None
        given = attrs.evolve(row, attributes={"tenant": "x"}, version=row.version + 1)
        await world.shared.replace(given, expected_version=row.version)
        session = await world.restore()
        await call_for(session, 100)
        assert {"tenant": "x"} == session.metadata.attributes
        assert session.metadata == await world.row()


@pytest.mark.parametrize("ahead", [timedelta(days=-1), timedelta(0), timedelta(days=1), timedelta(days=400_000)])
def test_a_mark_is_later_than_the_one_before(ahead: timedelta) -> None:
    """`used_at` never goes back, whatever the clock of another instance says."""
    marks, stored = UseMarks(), datetime.now(UTC) + ahead
    assert marks.draw(stored, 0.0) > stored


def test_marks_are_own_until_a_later_one_has_arrived() -> None:
    """Any of those that were sent may be in the row until then. Afterwards a row with an older one is of another copy,
    and no list of marks grows with the life of a session.
    """
    marks = UseMarks()
    first = marks.draw(datetime.now(UTC), 1.0)
    second = marks.draw(first, 2.0)
    assert marks.is_own(first)
    assert marks.is_own(second)
    marks.note_written(second)
    assert not marks.is_own(first)
    assert marks.is_own(second)


def test_the_last_mark_there_is() -> None:
    """A clock at its end stops no session: the mark still differs."""
    stored = datetime.max.replace(tzinfo=UTC)
    assert UseMarks().draw(stored, 0.0) != stored
