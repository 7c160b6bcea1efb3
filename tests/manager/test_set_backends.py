"""`set_backends`: what changes in sessions that are live, open, or hibernate."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import attrs
import pytest
import trio
from support.harness import ALICE, BOB, echo_backend, slow_backend
from support.managers import SLEEP, Managed, managed
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import Backend, BackendSource, BackendUnavailable, Identity, Session, SessionState, ToolNotFound
from trio_vmcp.testing import Delay


def names(session: Session) -> list[str]:
    return [tool.name for tool in session.tools]


async def opened_during(world: Managed, given: BackendSource) -> Session:
    """A session that was opening while `set_backends` was called."""
    opened: list[Session] = []
    world.backend.fail("tools/list", Delay(5), times=1)

    async def open_one() -> None:
        opened.append(await world.manager.create(identity=ALICE))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_one)
        await wait_all_tasks_blocked()
        await world.manager.set_backends(given)
    return opened[0]


async def test_live_sessions_have_what_is_new_when_it_returns(autojump_clock: MockClock) -> None:
    """All sessions and backends side by side: it takes as long as the slowest backend does once. What cannot connect is
    in `failures`.
    """
    async with managed() as world:
        sessions = [await world.manager.create(identity=identity) for identity in (ALICE, ALICE, BOB, None)]
        slow, broken = echo_backend(), echo_backend()
        slow.fail("initialize", Delay(3))
        broken.fail("initialize", Delay(2))
        broken.fail("tools/list", Delay(1e6))
        added = (world.add_backend("b", slow), world.add_backend("c", broken))
        added = (added[0], attrs.evolve(added[1], init_timeout=3))
        began = trio.current_time()
        await world.manager.set_backends([*world.configured, *added])
        assert began + 3 == trio.current_time()
        for session in sessions:
            assert ["a_echo", "b_echo"] == names(session)
            assert ["c"] == [failure.backend_id for failure in session.failures]
        later = await world.manager.create()
        assert ["a_echo", "b_echo"] == names(later)


async def test_a_backend_that_is_taken_out_is_let_go_of(autojump_clock: MockClock) -> None:
    """Its calls drain without holding up the rest, and its names stay bound; an empty list is allowed."""
    async with managed(backends={"a": slow_backend(5), "b": echo_backend()}) as world:
        session = await world.make("live")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call_tool, "a_slow")
            await wait_all_tasks_blocked()
            began = trio.current_time()
            await world.manager.set_backends([])
            assert began == trio.current_time()
            assert [] == names(session)
            with pytest.raises(ToolNotFound):
                await session.call_tool("a_echo")
        assert began + 5 == trio.current_time()
        await trio.sleep(1)
        row = await world.row(session.id)
        assert row is not None
        assert () == row.backends
        assert {} == world.backends["a"].sessions == world.backends["b"].sessions


async def test_the_names_of_a_backend_that_is_taken_out_are_gone_when_it_returns(autojump_clock: MockClock) -> None:
    """Also where they are so many that it takes some steps."""
    large = echo_backend()
    for number in range(2000):
        large.add_tool(f"t{number}")
    async with managed(backends={"a": large, "b": large}) as world:
        session = await world.make("live")
        await world.manager.set_backends(world.configured[1:])
        assert {"b"} == {name.partition("_")[0] for name in names(session)}


async def test_a_session_that_closes_takes_nothing_over(autojump_clock: MockClock) -> None:
    """What it had is in the row that it leaves."""
    async with managed(backends={"a": slow_backend(5)}) as world:
        session = await world.make("live")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call_tool, "a_slow")
            await wait_all_tasks_blocked()
            nursery.start_soon(session.suspend)
            await wait_all_tasks_blocked()
            await world.manager.set_backends([])
            row = await world.row(session.id)
        assert row is not None
        assert row.backends
        assert row.backends == session.metadata.backends
        await world.manager.set_backends(world.configured)
        await world.manager.terminate(session.id, caller=ALICE)


async def test_a_cancelled_call_changes_nothing(autojump_clock: MockClock) -> None:
    """The source has answered in the step in which it was cancelled."""
    async with managed() as world:
        session = await world.make("live")
        with trio.CancelScope() as scope:

            async def source(identity: Identity | None) -> list[Backend]:
                scope.cancel()
                return []

            await world.manager.set_backends(source)
        assert scope.cancelled_caught
        assert ["a_echo"] == names(session) == names(await world.manager.create())


async def test_a_backend_whose_fields_differ_is_exchanged(autojump_clock: MockClock) -> None:
    """Removed and added, while those that are the same stay connected."""
    async with managed(backends={"a": echo_backend(), "b": echo_backend()}) as world:
        session = await world.make("live")
        first, second = world.configured
        await world.manager.set_backends([attrs.evolve(first, headers={"x-tenant": "one"}), second])
        await session.call_tool("a_echo")
        assert (2, 1) == tuple(len(backend.received("initialize")) for backend in world.backends.values())
        assert "one" == world.backend.received("tools/call")[0].headers["x-tenant"]
        await trio.sleep(1)
        assert 1 == len(world.backend.sessions)


@pytest.mark.parametrize("how", ["taken out", "exchanged"])
async def test_a_session_that_hibernates_gets_it_when_it_wakes(how: str, autojump_clock: MockClock) -> None:
    """A backend that was taken out has left its membership, and its session there has ended; an exchanged one is a new
    one. The others keep their sessions.
    """
    async with managed(backends={"a": echo_backend(), "b": echo_backend()}) as world:
        session = await world.make("asleep")
        first, second = world.configured
        moved = world.add_backend("c", echo_backend())
        await world.manager.set_backends(
            [second] if how == "taken out" else [attrs.evolve(first, url=moved.url), second]
        )
        requests = world.requests()
        await trio.sleep(1)
        assert requests == world.requests()
        woken = await world.manager.get(session.id, caller=ALICE)
        assert not (await woken.call_tool("b_echo")).backend_state_lost
        await trio.sleep(1)
        row = await world.row(session.id)
        assert row is not None
        assert {} == world.backend.sessions
        if how == "taken out":
            assert ["b"] == [record.backend_id for record in row.backends]
            assert () == woken.failures
            with pytest.raises(ToolNotFound):
                await woken.call_tool("a_echo")
        else:
            await woken.call_tool("a_echo")
            assert {"a", "b"} == {record.backend_id for record in row.backends}
            assert 1 == len(world.backends["c"].sessions)


async def test_a_backend_that_is_merely_not_passed_stays_a_member(autojump_clock: MockClock) -> None:
    """A manager that never had it restores the session: its names are unavailable, and it stays in the row."""
    async with managed(2, backends={"a": echo_backend(), "b": echo_backend()}) as world:
        session = await world.make("elsewhere")
        await session.suspend()
        await world.manager.set_backends(world.configured[:1])
        found = await world.manager.get(session.id, caller=ALICE)
        with pytest.raises(BackendUnavailable):
            await found.call_tool("b_echo")
        row = await world.row(session.id)
        assert row is not None
        assert {"a", "b"} == {record.backend_id for record in row.backends}
        await world.instances[1].manager.terminate(session.id, caller=ALICE)


async def test_each_call_goes_on_from_the_one_before(autojump_clock: MockClock) -> None:
    """What the second takes out or exchanges is what the first brought in."""
    async with managed() as world:
        session = await world.make("live")
        first, second = world.configured[0], world.add_backend("b", echo_backend())
        await world.manager.set_backends([second])
        assert ["b_echo"] == names(session)
        await world.manager.set_backends([first])
        assert ["a_echo"] == names(session)
        await world.manager.set_backends([attrs.evolve(first, headers={"x-tenant": "one"})])
        assert ["a_echo"] == names(session)
        await trio.sleep(1)
        assert (1, 3) == tuple(len(world.backends[name].received("initialize")) for name in "ba")


async def test_two_calls_take_effect_one_after_the_other(autojump_clock: MockClock) -> None:
    """The later one stays, although the source of the earlier one answers last."""
    async with managed() as world:
        session = await world.make("live")
        first, second = world.configured[0], world.add_backend("b", echo_backend())

        async def slow(identity: Identity | None) -> list[Backend]:
            await trio.sleep(5)
            return [first, second]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.manager.set_backends, slow)
            await wait_all_tasks_blocked()
            await world.manager.set_backends([second])
        assert ["b_echo"] == names(session) == names(await world.manager.create())


async def test_a_session_keeps_what_it_has_when_the_source_fails(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The source of a `set_backends` during its opening, which is asked once it is open. A log record says so, without
    the text of the error.
    """

    async def fail(identity: Identity | None) -> list[Backend]:
        raise OSError("secret")

    async with managed() as world:
        session = await opened_during(world, fail)
        await wait_all_tasks_blocked()
        assert ["a_echo"] == names(session)
    (record,) = [record for record in caplog.records if "keeps its backends" in record.getMessage()]
    assert record.getMessage().endswith("keeps its backends: OSError")


async def test_an_answer_that_is_out_of_date_changes_nothing(autojump_clock: MockClock) -> None:
    """A source was asked for a session that had just opened, and answers after another `set_backends`."""
    async with managed() as world:
        old, new = world.add_backend("b", echo_backend()), world.add_backend("c", echo_backend())

        async def slow(identity: Identity | None) -> list[Backend]:
            await trio.sleep(10)
            return [old]

        session = await opened_during(world, slow)
        await world.manager.set_backends([new])
        assert ["c_echo"] == names(session)
        await trio.sleep(11)
        assert ["c_echo"] == names(session)
        assert not world.backends["b"].received("initialize")


async def test_a_session_that_ends_meanwhile_holds_nothing_up(autojump_clock: MockClock) -> None:
    """Its new backend was connecting: the others get theirs, and the call returns."""
    async with managed() as world:
        ends, stays = await world.make("live"), await world.make("live")
        slow = echo_backend()
        slow.fail("tools/list", Delay(3))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.manager.set_backends, [*world.configured, world.add_backend("b", slow)])
            await trio.sleep(1)
            await world.manager.terminate(ends.id, caller=ALICE)
        assert ["a_echo", "b_echo"] == names(stays)


async def test_a_session_that_has_gone_its_own_way_takes_over_the_rest(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It has let go of a backend that is taken out, and was given another one with the id of one that comes."""
    async with managed() as world:
        session = await world.make("live")
        own, other = world.add_backend("b", echo_backend()), world.add_backend("c", echo_backend())
        await session.remove_backend("a")
        await session.add_backend(own)
        await world.manager.set_backends([attrs.evolve(own, headers={"x-tenant": "one"}), other])
        assert ["b_echo", "c_echo"] == names(session)
        assert 1 == len(world.backends["b"].received("initialize"))
    (record,) = [record for record in caplog.records if "did not take over" in record.getMessage()]
    assert "'b'" in record.getMessage()


@pytest.mark.parametrize("state", ["create", "restore"])
async def test_a_session_that_opens_gets_it_when_it_is_open(state: str, autojump_clock: MockClock) -> None:
    """`set_backends` does not wait for it, and it ends up with what is new."""
    async with managed(2) as world:
        session = await world.make("elsewhere" if state == "restore" else "live")
        world.backend.fail("tools/list", Delay(5), times=1)
        opened: list[Session] = []

        async def open_one() -> None:
            manager = world.manager
            opened.append(
                await (manager.get(session.id, caller=ALICE) if state == "restore" else manager.create(identity=ALICE))
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_one)
            await wait_all_tasks_blocked()
            began = trio.current_time()
            await world.manager.set_backends([world.add_backend("b", echo_backend())])
            assert began == trio.current_time()
        await trio.sleep(1)
        assert ["b_echo"] == names(opened[0])
        for instance in world.instances:
            await instance.manager.terminate(session.id, caller=ALICE)
            break


async def test_bad_backends_change_nothing(autojump_clock: MockClock) -> None:
    """An id that is there twice, or an unknown transport, is a ValueError, from a list and from a source."""
    async with managed() as world:
        session = await world.make("live")
        (first,) = world.configured
        other = world.add_backend("b", echo_backend())
        for bad in ([other, first, first], [Backend("c", "http://c.test", transport="pigeon")]):

            async def answer(identity: Identity | None, bad: list[Backend] = bad) -> Iterable[Backend]:
                return bad

            for given in (bad, answer):
                with pytest.raises(ValueError, match=r"'a'|pigeon"):
                    await world.manager.set_backends(given)
        assert ["a_echo"] == names(session) == names(await world.manager.create())


async def test_a_source_is_asked_for_each_session(autojump_clock: MockClock) -> None:
    """At every make, restore and wake, and again for every live session by `set_backends`; with the identity."""
    asked: list[str] = []
    offered: dict[str, list[Backend]] = {}

    async def source(identity: Identity | None) -> list[Backend]:
        asked.append("nobody" if identity is None else identity.subject)
        return offered[asked[-1]]

    async with managed(source=source) as world:
        first, second = world.configured[0], world.add_backend("b", echo_backend())
        offered |= {"alice": [first], "nobody": [second]}
        alice = await world.manager.create(identity=ALICE)
        anonymous = await world.manager.create()
        assert (["a_echo"], ["b_echo"]) == (names(alice), names(anonymous))
        offered |= {"alice": [first, second], "nobody": []}
        await world.manager.set_backends(source)
        assert (["a_echo", "b_echo"], []) == (names(alice), names(anonymous))
        assert ["alice", "alice", "nobody", "nobody"] == sorted(asked)
        await trio.sleep(SLEEP + 1)
        offered["alice"] = [second]
        assert ["b_echo"] == names(await world.manager.get(alice.id, caller=ALICE))


@pytest.mark.parametrize("where", ["create", "get", "set_backends"])
async def test_the_error_of_a_source_comes_out_as_itself(where: str, autojump_clock: MockClock) -> None:
    """Nothing is left of the opening; a session that sleeps can be woken later, and a live one keeps its backends."""
    fails = False

    async def source(identity: Identity | None) -> Iterable[Backend]:
        if fails:
            raise KeyError("tenant")
        return world.configured

    async with managed(source=source) as world:
        session = await world.make("asleep" if where == "get" else "live")
        fails = True
        asks: dict[str, Callable[[], Awaitable[object]]] = {
            "create": world.manager.create,
            "get": partial(world.manager.get, session.id, caller=ALICE),
            "set_backends": partial(world.manager.set_backends, source),
        }
        with pytest.raises(KeyError, match="tenant"):
            await asks[where]()
        fails = False
        assert 0 == world.manager.statistics.opening
        found = await world.manager.get(session.id, caller=ALICE)
        assert SessionState.OPEN is found.state
        assert ["a_echo"] == names(found)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=["ctrl-c", "sys.exit"])
async def test_an_exit_out_of_a_source_comes_out_as_itself(error: BaseException, autojump_clock: MockClock) -> None:
    """Nothing has changed, and the manager stays open: what the program does with the exit is its own affair."""

    async def source(identity: Identity | None) -> Iterable[Backend]:
        raise error

    async with managed() as world:
        session = await world.make("live")
        with pytest.raises(type(error)):
            await world.manager.set_backends(source)
        assert ["a_echo"] == names(session) == names(await world.manager.create())
