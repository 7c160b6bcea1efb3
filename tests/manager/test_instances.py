"""Several managers over one storage: sessions that move, alternate, and end on one of them."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import trio
from support.harness import ALICE, echo_backend, state_of
from support.instances import cut
from support.managers import SLEEP, TTL, State, managed
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import BackendState, ManagerSettings, SessionNotFound, SessionState
from trio_vmcp._manager.ends import MOST_DELAY
from trio_vmcp.testing import Error, Exchange, Status


@pytest.mark.parametrize("how", ["terminate", "aclose", "too old"])
async def test_terminated_anywhere_is_over_everywhere(how: str, autojump_clock: MockClock) -> None:
    """A live copy elsewhere closes within `storage_check_interval`, and nothing brings the row back."""
    limits = ManagerSettings(max_lifetime=100 if how == "too old" else 1e6)
    async with managed(3, limits=limits) as world:
        first, second, third = (instance.manager for instance in world.instances)
        session = await first.create(identity=ALICE)
        await trio.sleep(10)
        copies = [await manager.get(session.id, caller=ALICE) for manager in (second, third)]
        if how == "terminate":
            await second.terminate(session.id, caller=ALICE)
        elif how == "aclose":
            await copies[0].aclose()
        else:
            await trio.sleep(89)
            assert SessionState.OPEN is state_of(copies[1])
        await trio.sleep(5.1)
        assert [SessionState.CLOSED] * 3 == [state_of(copy) for copy in (session, *copies)]
        assert await world.row(session.id) is None
        for manager in (first, second, third):
            with pytest.raises(SessionNotFound):
                await manager.get(session.id, caller=ALICE)
        assert 1 <= sum(
            manager.statistics.terminated + manager.statistics.expired for manager in (first, second, third)
        )
        await trio.sleep(2 * TTL)
        assert await world.row(session.id) is None


async def test_a_copy_that_hibernates_ends_with_the_session(autojump_clock: MockClock) -> None:
    """Asleep on one, terminated on the other: the first does not serve it, and forgets it at the next touch."""
    async with managed(2) as world:
        session = await world.make("asleep")
        await world.instances[1].manager.terminate(session.id, caller=ALICE)
        with pytest.raises(SessionNotFound):
            await world.manager.get(session.id, caller=ALICE)
        session = await world.make("asleep")
        await world.instances[1].manager.terminate(session.id, caller=ALICE)
        await trio.sleep(TTL / 3 + 1)
        assert 0 == world.manager.statistics.hibernated
        assert (0, 0) == (world.manager.statistics.terminated, world.manager.statistics.expired)


@pytest.mark.parametrize("state", ["live", "asleep"])
async def test_used_anywhere_is_alive_everywhere(state: State, autojump_clock: MockClock) -> None:
    """Idle on A, in use on B for twice the idle time: session and backend state live, and A counts nothing."""
    async with managed(
        2, idle_timeout=400, limits=ManagerSettings(hibernate_after=SLEEP if state == "asleep" else 1e6)
    ) as world:
        session = await world.make(state)
        other = world.instances[1].manager
        used = session
        for _ in range(20):
            await trio.sleep(40)
            used = await other.get(session.id, caller=ALICE)
            assert not (await used.call_tool("a_echo")).backend_state_lost
        statistics = world.manager.statistics
        assert (0, 0, 0, 0) == (statistics.live, statistics.hibernated, statistics.expired, statistics.terminated)
        assert [] == world.backend.received("DELETE")
        assert SessionState.OPEN is used.state
        back = await world.manager.get(session.id, caller=ALICE)
        assert not (await back.call_tool("a_echo")).backend_state_lost


@pytest.mark.parametrize("manners", ["resumes", "never resumes", "refuses once, too"])
async def test_requests_that_alternate_cost_one_initialize_an_instance(manners: str, autojump_clock: MockClock) -> None:
    """However often requests move, and whatever the backend thinks of resuming: membership is complete throughout, and
    the row is not fought over.
    """
    backend, limit = echo_backend(), 2
    listed: set[str] = set()

    def is_resumed(exchange: Exchange) -> bool:
        """The lists of a session are asked for once by the connection that began it, and then by those that resume."""
        session_id = exchange.headers.get("mcp-session-id", "")
        is_second = exchange.method == "tools/list" and session_id in listed
        listed.update({session_id} if exchange.method == "tools/list" else ())
        return is_second

    if manners == "never resumes":
        backend.fail(is_resumed, Status(404))
    elif manners == "refuses once, too":
        backend.fail(is_resumed, Status(404))
        backend.fail("initialize", Error(-32000, "not now"), times=1)
        limit = 3
    async with managed(2, backends={"a": backend, "b": echo_backend()}, reconnect_delay=0.5) as world:
        session = await world.make("live")
        await trio.sleep(2)
        for number in range(20):
            copy = await world.instances[number % 2].manager.get(session.id, caller=ALICE)
            assert {"a", "b"} == set(copy.backend_sessions)
            await copy.call_tool("a_echo")
            await copy.call_tool("b_echo")
            await trio.sleep(1)
        assert (limit if manners != "resumes" else 1) == len(backend.received("initialize"))
        row = await world.row(session.id)
        assert row is not None
        assert {"a", "b"} == {record.backend_id for record in row.backends}
        assert 8 >= sum(instance.way.calls["replace"] for instance in world.instances)
        await world.manager.terminate(session.id, caller=ALICE)
        await trio.sleep(6)


async def test_five_hundred_requests_that_alternate(autojump_clock: MockClock) -> None:
    """One backend never honours a resume, one refuses every third `initialize`: each instance begins one session at
    each backend, beyond the refusals, and the row is written a few times only.
    """
    forgetful, moody = echo_backend(), echo_backend()
    listed: set[str] = set()

    def is_resumed(exchange: Exchange) -> bool:
        session_id = exchange.headers.get("mcp-session-id", "")
        is_second = exchange.method == "tools/list" and session_id in listed
        listed.update({session_id} if exchange.method == "tools/list" else ())
        return is_second

    refused = itertools.count(1)
    forgetful.fail(is_resumed, Status(404))
    moody.fail(lambda exchange: exchange.method == "initialize" and next(refused) % 3 == 0, Error(-32000, "not now"))
    async with managed(2, backends={"a": forgetful, "b": moody}, reconnect_delay=0.5) as world:
        session = await world.make("live")
        await trio.sleep(2)
        for number in range(500):
            copy = await world.instances[number % 2].manager.get(session.id, caller=ALICE)
            assert {"a", "b"} == set(copy.backend_sessions)
            await copy.call_tool("a_echo" if number % 4 < 2 else "b_echo")
            await trio.sleep(0.1)
        assert 2 == len(forgetful.received("initialize"))
        assert 2 >= len(moody.received("initialize")) - next(refused) // 3
        row = await world.row(session.id)
        assert row is not None
        assert {"a", "b"} == {record.backend_id for record in row.backends}
        assert 8 >= sum(instance.way.calls["replace"] for instance in world.instances)
        await world.manager.terminate(session.id, caller=ALICE)
        await trio.sleep(6)


@pytest.mark.parametrize("state", ["live", "asleep"])
async def test_an_instance_that_dies_leaves_its_sessions_to_others(state: State, autojump_clock: MockClock) -> None:
    """A process that is gone without a word: another goes on with the session, and with those of the backends."""
    async with managed(2) as world:
        session = await world.make(state)
        await world.instances[0].die()
        found = await world.instances[1].manager.get(session.id, caller=ALICE)
        assert not (await found.call_tool("a_echo")).backend_state_lost
        await found.aclose()


async def test_a_moved_session_that_hibernates_twice_wakes_anywhere(autojump_clock: MockClock) -> None:
    """Asleep on A and on B: whichever is asked, the session goes on; membership never shrinks."""
    async with managed(2, backends={"a": echo_backend(), "b": echo_backend()}) as world:
        session = await world.make("asleep")
        for number in (1, 0, 1, 1, 0):
            found = await world.instances[number].manager.get(session.id, caller=ALICE)
            for name in ("a_echo", "b_echo"):
                assert not (await found.call_tool(name)).backend_state_lost
            await trio.sleep(SLEEP + 1)
        assert [1, 1] == [instance.manager.statistics.hibernated for instance in world.instances]
        assert [1, 1] == [len(backend.received("initialize")) for backend in world.backends.values()]


async def test_two_managers_may_restore_at_the_same_time(autojump_clock: MockClock) -> None:
    """Both get the session, and the row is whole."""
    async with managed(3) as world:
        session = await world.instances[2].manager.create(identity=ALICE)
        await session.suspend()

        async def use(number: int) -> None:
            found = await world.instances[number].manager.get(session.id, caller=ALICE)
            assert not (await found.call_tool("a_echo")).backend_state_lost
            assert BackendState.READY is found.backends["a"].state

        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(partial(use, number))
        await wait_all_tasks_blocked()
        await world.manager.terminate(session.id, caller=ALICE)
        await trio.sleep(6)
        assert [0, 0, 0] == [instance.manager.statistics.live for instance in world.instances]


async def test_what_another_instance_began_after_the_end_ends_too(autojump_clock: MockClock) -> None:
    """A terminates while it is cut off from the storage. B has not heard of it, begins a new session at the backend and
    suspends. Once A reaches the row, that session ends with it.
    """
    async with managed(2) as world:
        session = await world.make("live")
        copy = await world.instances[1].manager.get(session.id, caller=ALICE)
        cut(world.way)
        await world.manager.terminate(session.id, caller=ALICE)
        assert (await copy.call_tool("a_echo")).backend_state_lost
        await copy.suspend()
        assert 1 == len(world.backend.sessions)
        world.way.before.clear()
        await trio.sleep(MOST_DELAY + 1)
        assert {} == world.backend.sessions
        assert await world.row(session.id) is None
