"""`add_backend` and `remove_backend` on a live session."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support.harness import World, assert_nothing_left, drained, echo_backend, library_tasks, open_world, slow_backend
from support.plain_connector import PlainClient, PlainConnector, plain_backends
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendState,
    BackendUnavailable,
    Bare,
    EventSink,
    FactorySettings,
    FailureReason,
    Session,
    SessionChange,
    SessionClosed,
    ToolNotFound,
    open_session_factory,
)
from trio_vmcp.default_session import DefaultSession
from trio_vmcp.testing import CONNECT, CallContext, Delay, Error, Fault, Hang, Refuse, ScriptedBackend, Status

ERAS = pytest.mark.parametrize("era", ["legacy", "modern"])
ALL_OF_A = {SessionChange(kind, "a") for kind in ("backend", "tools", "resources", "prompts")}


def states(session: Session) -> dict[str, BackendState]:
    """A function, since mypy takes a property that was read before for unchanged."""
    return {backend_id: status.state for backend_id, status in session.backends.items()}


def names(session: Session) -> list[str]:
    """A function, for the same reason."""
    return [tool.name for tool in session.tools]


async def stored_ids(world: World) -> list[str]:
    """The backends in the session's row."""
    await wait_all_tasks_blocked()
    (row,) = await world.storage.rows()
    return [record.backend_id for record in row.backends]


async def open_with(world: World, *backend_ids: str, **options: Any) -> Session:
    """Open a session over some of the backends of a world."""
    chosen = [backend for backend in world.configured if backend.id in backend_ids]
    return await world.factory.make_session(chosen, **options)


def configured(world: World, backend_id: str) -> Backend:
    return next(backend for backend in world.configured if backend.id == backend_id)


# Adding


@ERAS
async def test_a_backend_is_added(era: str, autojump_clock: MockClock) -> None:
    """It has joined when `add_backend` returns: names, metadata, changes, and calls."""
    async with open_world({"a": echo_backend(era), "b": echo_backend(era)}) as world:
        async with await open_with(world, "b") as session, session.changes() as changes:
            await session.add_backend(configured(world, "a"))
            assert ["b_echo", "a_echo"] == names(session)
            assert BackendState.READY is states(session)["a"]
            await session.call_tool("a_echo")
            assert ALL_OF_A == set(await drained(changes))
            assert ["b", "a"] == await stored_ids(world)


@pytest.mark.parametrize("fault", [Refuse(), Hang()])
async def test_an_added_backend_that_fails_is_in_failures_and_tried_again(
    fault: Any, autojump_clock: MockClock
) -> None:
    """`add_backend` returns within `backend_init_timeout` and does not raise; the backend joins later."""
    async with open_world({"a": echo_backend()}, settings=FactorySettings(backend_init_timeout=4)) as world:
        async with await open_with(world) as session:
            world["a"].fail(CONNECT, fault)
            await session.add_backend(configured(world, "a"))
            assert trio.current_time() <= 4
            assert ["a"] == [failure.backend_id for failure in session.failures]
            world["a"].heal()
            await trio.sleep(20)
            await session.call_tool("a_echo")
            assert () == session.failures


async def test_adding_a_member_is_a_value_error(autojump_clock: MockClock) -> None:
    """Connected or not: ValueError names the backend, and nothing changes."""
    async with open_world({"a": echo_backend(), "b": echo_backend()}) as world:
        world["b"].fail(CONNECT, Refuse())
        async with world.open_session() as session:
            for backend in world.configured:
                with pytest.raises(ValueError, match=f"id '{backend.id}' is in this session already"):
                    await session.add_backend(backend)
            await session.call_tool("a_echo")


async def test_an_added_backend_takes_no_bound_name(autojump_clock: MockClock) -> None:
    """A name that is bound stays with its owner, also under `Bare`."""
    limits = FactorySettings(conflict_resolution=Bare())
    async with open_world({"a": echo_backend(), "b": echo_backend()}, settings=limits) as world:
        async with await open_with(world, "b") as session:
            await session.add_backend(configured(world, "a"))
            assert "b" == (await session.call_tool("echo")).backend_id
            assert [("echo", "b")] == [(conflict.name, conflict.owner) for conflict in session.conflicts]


async def test_cancelling_add_backend_cancels_the_wait_alone(autojump_clock: MockClock) -> None:
    """The backend joins all the same."""
    async with open_world({"a": echo_backend()}) as world, await open_with(world) as session:
        world["a"].fail("initialize", Delay(5))
        with trio.move_on_after(1) as impatience:
            await session.add_backend(configured(world, "a"))
        assert impatience.cancelled_caught
        await trio.sleep(5)
        await session.call_tool("a_echo")


async def test_a_backend_removed_before_its_place_is_not_contacted(autojump_clock: MockClock) -> None:
    """The session is open while backends still wait for places: a backend that is removed then gets none."""
    connector = PlainConnector(on_connect={f"b{number}": partial(trio.sleep, 4) for number in range(6)})
    limits = FactorySettings(max_backend_init_concurrency=1, session_init_timeout=6)
    async with open_session_factory(connector=connector, settings=limits) as factory:
        async with factory.open_session(plain_backends(4)) as session:
            await session.remove_backend("b3")
            await session.add_backend(plain_backends(5)[4])
            assert 10.0 == trio.current_time()
            await session.remove_backend("b1")  # b1 holds the place
            await trio.sleep(20)
            assert {"b0", "b1", "b2", "b4"} == connector.started.keys()
            assert ["b0_echo", "b2_echo", "b4_echo"] == names(session)
            assert () == session.failures


async def test_a_member_of_a_restored_session_may_be_brought_in_later(autojump_clock: MockClock) -> None:
    """A backend of the row that was not passed to `restore_session` may be added: it resumes its session and has its
    names.
    """
    async with open_world({"a": echo_backend(), "b": echo_backend()}) as world:
        await (await world.make_session(session_id="one")).suspend()
        backends = [configured(world, "a")]
        async with await world.factory.restore_session("one", backends) as session:
            assert ["b"] == [failure.backend_id for failure in session.failures]
            await session.add_backend(configured(world, "b"))
            assert () == session.failures
            await session.call_tool("b_echo")
        assert 1 == len(world["b"].received("initialize"))


# Removing


@ERAS
async def test_a_backend_is_removed(era: str, autojump_clock: MockClock) -> None:
    """Its names, metadata and backend session are gone, its status is REMOVED, and other backends are not affected."""
    async with open_world({"a": echo_backend(era), "b": echo_backend(era)}) as world:
        async with world.open_session() as session, session.changes() as changes:
            await session.call_tool("a_echo")
            await session.remove_backend("a")
            assert ["b_echo"] == names(session)
            assert {"a": BackendState.REMOVED, "b": BackendState.READY} == states(session)
            assert 1 == session.backends["a"].calls
            with pytest.raises(ToolNotFound):
                await session.call_tool("a_echo")
            assert {} == world["a"].sessions
            assert ALL_OF_A == set(await drained(changes))
            assert ["b"] == await stored_ids(world)
            assert () == session.failures
            await session.call_tool("b_echo")
            await trio.sleep(600)
            assert 1 == world["a"].executed["echo"]


async def test_removing_a_backend_that_is_not_in_the_session_is_a_value_error(autojump_clock: MockClock) -> None:
    """Also a second time; and a negative timeout is refused first."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        for timeout in (-1, math.nan):
            with pytest.raises(ValueError, match="drain_timeout"):
                await session.remove_backend("a", drain_timeout=timeout)
        with pytest.raises(ValueError, match="no backend 'x' in this session"):
            await session.remove_backend("x")
        await session.remove_backend("a")
        with pytest.raises(ValueError, match="no backend 'a' in this session"):
            await session.remove_backend("a")


async def call_and_note(session: Session, name: str, ends: list[Any]) -> None:
    try:
        ends.append(await session.call_tool(name))
    except (BackendUnavailable, SessionClosed) as error:
        ends.append(error)


async def test_calls_may_end_before_their_backend_goes(autojump_clock: MockClock) -> None:
    """A leaving backend takes no more calls; running calls get their answers, and then `remove_backend` returns."""
    async with open_world({"a": slow_backend(5)}) as world, world.open_session() as session:
        ends: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_and_note, session, "a_slow", ends)
            await wait_all_tasks_blocked()
            nursery.start_soon(session.remove_backend, "a")
            await wait_all_tasks_blocked()
            with pytest.raises(ToolNotFound):
                await session.call_tool("a_echo")
            assert 1 == session.backends["a"].in_flight
            assert 1 == len(world["a"].sessions)
        assert 5.0 == trio.current_time()
        assert ["rested"] == [end.content[0]["text"] for end in ends]


async def test_calls_that_outlast_the_drain_are_cut_off(autojump_clock: MockClock) -> None:
    """Each gets an error of its own, with backend, knob and `may_have_executed`. Calls to other backends go on, and the
    callers' scopes are not cancelled.
    """
    limits = FactorySettings(drain_timeout=3)
    async with open_world({"a": slow_backend(60), "b": slow_backend(9)}, settings=limits) as world:
        async with world.open_session() as session:
            ends: list[Any] = []
            others: list[Any] = []
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(call_and_note, session, "a_slow", ends)
                nursery.start_soon(call_and_note, session, "b_slow", others)
                await wait_all_tasks_blocked()
                await session.remove_backend("a")
                assert 3.0 == trio.current_time()
            assert [True] * 3 == [end.may_have_executed for end in ends]
            assert 3 == len({id(end) for end in ends})
            assert "backend 'a' was removed from the session (drain_timeout)" == str(ends[0])
            assert ["rested"] == [end.content[0]["text"] for end in others]
            assert 3 == world["a"].cancelled["slow"]


async def test_calls_on_a_connection_that_was_replaced_are_cut_off_too(autojump_clock: MockClock) -> None:
    """A removal ends the calls on every connection of the backend."""
    async with open_world({"a": slow_backend(60)}) as world, world.open_session() as session:
        ends: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_and_note, session, "a_slow", ends)
            await wait_all_tasks_blocked()
            world["a"].fail("tools/call", Status(404), times=1)
            await session.call_tool("a_echo")
            await session.remove_backend("a", drain_timeout=2)
            assert 2.0 == trio.current_time()
        assert [BackendUnavailable] == [type(end) for end in ends]
        assert {} == world["a"].sessions


async def test_a_removal_after_a_recovery_waits_for_its_calls(autojump_clock: MockClock) -> None:
    """The close of an earlier connection does not end the removal's wait."""
    async with open_world({"a": slow_backend(5)}) as world, world.open_session() as session:
        world["a"].restart()
        await session.call_tool("a_echo")
        await trio.sleep(1)
        ends: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_and_note, session, "a_slow", ends)
            await wait_all_tasks_blocked()
            await session.remove_backend("a")
            assert 6.0 == trio.current_time()
        assert {} == world["a"].sessions


async def test_cancelling_remove_backend_cancels_the_wait_alone(autojump_clock: MockClock) -> None:
    """Running calls keep their time, and then the connection is closed."""
    async with open_world({"a": slow_backend(5)}) as world, world.open_session() as session:
        ends: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_and_note, session, "a_slow", ends)
            await wait_all_tasks_blocked()
            with trio.move_on_after(1):
                await session.remove_backend("a")
            assert 1.0 == trio.current_time()
        assert ["rested"] == [end.content[0]["text"] for end in ends]
        await wait_all_tasks_blocked()
        assert {} == world["a"].sessions


async def shielded(*progress: Any) -> None:
    """A progress callback that no cancel reaches."""
    with trio.CancelScope(shield=True):
        await trio.sleep(100)


def stepping_backend() -> ScriptedBackend:
    """A tool "steps" that sends one progress notification and never returns."""

    async def steps(arguments: JSON, context: CallContext) -> str:
        await context.progress(1)
        await trio.sleep_forever()
        raise AssertionError

    backend = echo_backend(answers="sse")
    backend.add_tool("steps", steps)
    return backend


async def test_a_shielded_caller_does_not_hold_a_removal_up(autojump_clock: MockClock) -> None:
    """After drain and `teardown_timeout` the removal ends without the call; the backend session gets its DELETE."""
    backend = stepping_backend()
    limits = FactorySettings(teardown_timeout=2)
    async with open_world({"a": backend}, settings=limits) as world, world.open_session() as session:
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(BackendUnavailable):
                    await session.call_tool("a_steps", on_progress=shielded)

            nursery.start_soon(call)
            await wait_all_tasks_blocked()
            await session.remove_backend("a", drain_timeout=1)
            assert trio.current_time() <= 1 + 2 + 2
            assert {} == backend.sessions


async def test_a_removal_waits_for_its_calls_though_the_first_attempt_had_failed(autojump_clock: MockClock) -> None:
    """A time without a connection does not end the removal's wait for later calls."""
    backend = slow_backend(5)
    async with open_world({"a": backend}) as world:
        backend.fail(CONNECT, Refuse(), times=1)
        async with world.open_session() as session, trio.open_nursery() as nursery:
            await trio.sleep(1)
            nursery.start_soon(session.call_tool, "a_slow")
            await wait_all_tasks_blocked()
            await session.remove_backend("a")
            assert 6.0 == trio.current_time()
            assert {} == backend.sessions


async def test_a_backend_that_is_leaving_gets_one_goodbye(autojump_clock: MockClock) -> None:
    """Also if the session closes while the DELETE is on its way."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world:
        session = await world.make_session()
        backend.fail("DELETE", Delay(1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.remove_backend, "a")
            await trio.sleep(0.5)
            await session.aclose()
        assert 1 == len(backend.received("DELETE"))
        assert {} == backend.sessions


async def test_a_leaving_backend_gets_its_goodbye_from_the_close(autojump_clock: MockClock) -> None:
    """Its last caller is shielded from the drain of the backend and from that of the session."""
    backend = stepping_backend()
    async with open_world({"a": backend}) as world, trio.open_nursery() as nursery:
        session = await world.make_session()

        async def call() -> None:
            with pytest.raises((SessionClosed, BackendUnavailable)):
                await session.call_tool("a_steps", on_progress=shielded)

        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        nursery.start_soon(partial(session.remove_backend, "a", drain_timeout=60))
        await wait_all_tasks_blocked()
        await session.aclose(drain_timeout=1)
        assert trio.current_time() <= 3
        assert {} == backend.sessions


@pytest.mark.parametrize("which", ["own", "other"])
async def test_removing_from_inside_a_call_asks_and_returns(which: str, autojump_clock: MockClock) -> None:
    """A removal from inside a call returns at once, since the removal waits for that call; the call is answered."""

    async def steps(arguments: JSON, context: CallContext) -> str:
        await context.progress(1)
        return "done"

    backend = echo_backend(answers="sse")
    backend.add_tool("steps", steps)
    async with open_world({"a": backend, "b": slow_backend(5)}) as world, world.open_session() as session:
        removed = {"own": "a", "other": "b"}[which]

        async def on_progress(*progress: Any) -> None:
            await session.remove_backend(removed)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call_tool, "b_slow")
            await wait_all_tasks_blocked()
            result = await session.call_tool("a_steps", on_progress=on_progress)
            assert 0.0 == trio.current_time()
            assert "done" == result.content[0]["text"]
            assert BackendState.REMOVED is states(session)[removed]
        await wait_all_tasks_blocked()
        assert {} == world[removed].sessions


async def test_adding_from_inside_a_call(autojump_clock: MockClock) -> None:
    """The adding call waits for the new backend, and a close meanwhile ends both."""

    async def steps(arguments: JSON, context: CallContext) -> str:
        await context.progress(1)
        return "done"

    backend = echo_backend(answers="sse")
    backend.add_tool("steps", steps)
    async with open_world({"a": backend, "b": echo_backend(), "c": echo_backend()}) as world:
        world["c"].fail(CONNECT, Hang())
        session = await open_with(world, "a")

        async def on_progress(*progress: Any) -> None:
            await session.add_backend(configured(world, "b"))
            with pytest.raises(SessionClosed, match="closed before backend 'c' had joined"):
                await session.add_backend(configured(world, "c"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(session.call_tool, "a_steps", on_progress=on_progress))
            await trio.sleep(1)
            assert ["a_echo", "a_steps", "b_echo"] == names(session)
            await session.aclose()
            assert 1.0 == trio.current_time()


# Removing what is not connected


async def test_removing_a_backend_that_is_connecting(autojump_clock: MockClock) -> None:
    """It is removed at once; its attempt joins nothing and reports no failure."""
    backend = echo_backend()
    backend.fail("initialize", Delay(8))
    limits = FactorySettings(session_init_timeout=1)
    async with open_world({"a": backend}, settings=limits) as world, world.open_session() as session:
        await session.remove_backend("a")
        assert 1.0 == trio.current_time()
        assert () == session.failures
        assert session.backends["a"].last_failure is not None
        assert FailureReason.PENDING is session.backends["a"].last_failure.reason
        await trio.sleep(100)
        assert [] == names(session)
        assert BackendState.REMOVED is states(session)["a"]
        world.leaves_sessions = True  # without its id there is no DELETE


@pytest.mark.parametrize("fault", [Refuse(), Hang()])
async def test_removing_a_backend_that_is_away(fault: Any, autojump_clock: MockClock) -> None:
    """It is no longer tried."""
    backend = echo_backend()
    backend.fail(CONNECT, fault)
    limits = FactorySettings(backend_init_timeout=2)
    async with open_world({"a": backend}, settings=limits) as world, world.open_session() as session:
        await trio.sleep(100)
        await session.remove_backend("a")
        await wait_all_tasks_blocked()
        assert [] == [name for name in library_tasks() if "_retry" in name or "Attempt" in name]
        assert () == session.failures
        attempts = world.network.connection_attempts
        await trio.sleep(1000)
        assert attempts == world.network.connection_attempts


async def test_removing_a_backend_that_is_recovering(autojump_clock: MockClock) -> None:
    """Calls that wait for the recovery fail at once."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.restart()
        backend.fail("initialize", Delay(8))
        ends: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_and_note, session, "a_echo", ends)
            await trio.sleep(1)
            nursery.start_soon(call_and_note, session, "a_echo", ends)
            await trio.sleep(1)
            await session.remove_backend("a")
            assert 2.0 == trio.current_time()
        assert ["backend 'a' was removed from the session"] * 2 == [str(end) for end in ends]
        assert [False] * 2 == [end.may_have_executed for end in ends]
        await trio.sleep(100)
        assert BackendState.REMOVED is states(session)["a"]
        world.leaves_sessions = True  # the cancelled handshake brought no id to DELETE


async def test_removing_a_stored_backend_that_was_not_restored(autojump_clock: MockClock) -> None:
    """Its record leaves the metadata for good."""
    async with open_world({"a": echo_backend(), "b": echo_backend()}) as world:
        await (await world.make_session(session_id="one")).suspend()
        async with await world.factory.restore_session("one", [configured(world, "a")]) as session:
            await session.remove_backend("b")
            assert () == session.failures
            assert ["a"] == await stored_ids(world)
            with pytest.raises(ToolNotFound):
                await session.call_tool("b_echo")
        world.leaves_sessions = True  # without the Backend there is no url for a DELETE


# Adding again


@ERAS
async def test_a_removed_backend_is_added_again(era: str, autojump_clock: MockClock) -> None:
    """It gets its names back, since they stayed bound to it."""
    limits = FactorySettings(conflict_resolution=Bare())
    async with open_world({"a": echo_backend(era), "b": echo_backend(era)}, settings=limits) as world:
        async with world.open_session() as session:
            assert "a" == (await session.call_tool("echo")).backend_id
            for _ in range(3):
                await session.remove_backend("a")
                with pytest.raises(ToolNotFound):  # the name stays bound, although b offers it
                    await session.call_tool("echo")
                await session.add_backend(configured(world, "a"))
                assert "a" == (await session.call_tool("echo")).backend_id
            assert BackendState.READY is states(session)["a"]
            assert {"a", "b"} == set(await stored_ids(world))


async def test_adding_again_does_not_wait_for_the_last_calls(autojump_clock: MockClock) -> None:
    """Calls on the old connection run out beside the new connection."""
    async with open_world({"a": slow_backend(5)}) as world, world.open_session() as session:
        ends: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_and_note, session, "a_slow", ends)
            await wait_all_tasks_blocked()
            nursery.start_soon(session.remove_backend, "a")
            await wait_all_tasks_blocked()
            await session.add_backend(configured(world, "a"))
            await session.call_tool("a_echo")
            assert 0.0 == trio.current_time()
            assert 2 == len(world["a"].sessions)
        assert ["rested"] == [end.content[0]["text"] for end in ends]
        await wait_all_tasks_blocked()
        assert 1 == len(world["a"].sessions)
        await session.call_tool("a_echo")


async def test_an_attempt_from_before_the_removal_does_not_join(autojump_clock: MockClock) -> None:
    """An attempt that finishes after its backend was removed and added again is closed."""
    connector = PlainConnector()

    async def stubborn() -> None:
        connector.on_connect.clear()
        with trio.CancelScope(shield=True):
            await trio.sleep(5)

    connector.on_connect["b0"] = stubborn
    async with open_session_factory(connector=connector, settings=FactorySettings(session_init_timeout=1)) as factory:
        async with factory.open_session(plain_backends(1)) as session, trio.open_nursery() as nursery:
            nursery.start_soon(session.remove_backend, "b0")
            await wait_all_tasks_blocked()
            await session.add_backend(plain_backends(1)[0])
            second = connector.clients["b0"]
            await trio.sleep(10)
            assert connector.clients["b0"] is not second
            assert [True] == connector.clients["b0"].closed
            assert [] == second.closed
            await session.call_tool("b0_echo")


async def test_removed_backends_are_not_remembered_without_end(autojump_clock: MockClock) -> None:
    """The status of the last hundred stays; connections and lists are not kept."""
    connector = PlainConnector()
    async with open_session_factory(connector=connector) as factory, factory.open_session([]) as session:
        for number in range(130):
            backend = Backend(id=f"b{number}", url="http://b.test/mcp")
            await session.add_backend(backend)
            await session.remove_backend(backend.id)
        assert [f"b{number}" for number in range(30, 130)] == list(session.backends)
        assert () == session.tools
        assert isinstance(session, DefaultSession)
        membership = session._core.membership
        assert len(membership._leaving) <= 1
        assert {(None, None)} == {(member.listing, member.connection) for member in membership._removed.values()}


# Closing


@pytest.mark.parametrize("closing", ["aclose", "suspend"])
async def test_a_session_closes_while_a_backend_is_added(closing: str, autojump_clock: MockClock) -> None:
    """`add_backend` raises SessionClosed; nothing is left of the backend, and the row does not name it."""
    async with open_world({"a": echo_backend(), "b": echo_backend()}) as world:
        session = await open_with(world, "b", session_id="one")
        world["a"].fail("initialize", Delay(5))
        async with trio.open_nursery() as nursery:

            async def add() -> None:
                with pytest.raises(SessionClosed, match="closed before backend 'a' had joined"):
                    await session.add_backend(configured(world, "a"))

            nursery.start_soon(add)
            await trio.sleep(1)
            await getattr(session, closing)()
            assert 1.0 == trio.current_time()
        if closing == "suspend":
            assert ["b"] == await stored_ids(world)
            backends = [configured(world, "b")]
            await (await world.factory.restore_session("one", backends)).aclose()
        await trio.sleep(5)
        world["a"].sessions.clear()  # made after the client had closed, so that no client has its id


async def test_a_close_hands_out_no_more_places(autojump_clock: MockClock) -> None:
    """Backends that wait for a place when the close begins are not contacted during the drain."""
    connector = PlainConnector(on_connect={"b1": partial(trio.sleep, 8)}, on_request={"b0": partial(trio.sleep, 9)})
    limits = FactorySettings(max_backend_init_concurrency=1, session_init_timeout=2)
    async with open_session_factory(connector=connector, settings=limits) as factory:
        session = await factory.make_session(plain_backends(3))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call_tool, "b0_echo")
            await wait_all_tasks_blocked()
            await session.aclose()
        assert 11.0 == trio.current_time()
        assert {"b0", "b1"} == connector.started.keys()


@pytest.mark.parametrize("closing", ["aclose", "suspend"])
async def test_a_session_closes_while_a_backend_is_removed(closing: str, autojump_clock: MockClock) -> None:
    """Both wait for the same calls; the shorter drain cuts them off."""
    for first, second in ((2, 5), (5, 2)):
        async with open_world({"a": slow_backend(60), "b": echo_backend()}) as world:
            session = await world.make_session(session_id="one")
            began = trio.current_time()
            ends: list[Any] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call_and_note, session, "a_slow", ends)
                await wait_all_tasks_blocked()
                nursery.start_soon(partial(session.remove_backend, "a", drain_timeout=first))
                await wait_all_tasks_blocked()
                await getattr(session, closing)(drain_timeout=second)
                assert 2.0 == trio.current_time() - began
            assert [BackendUnavailable if first < second else SessionClosed] == [type(end) for end in ends]
            if closing == "suspend":
                assert ["b"] == await stored_ids(world)
                await (await world.restore_session("one")).aclose()
            await assert_nothing_left(world)


async def test_a_closing_session_takes_no_backend(autojump_clock: MockClock) -> None:
    """`add_backend` raises SessionClosed once the close has begun."""
    async with open_world({"a": slow_backend(3), "b": echo_backend()}) as world:
        session = await open_with(world, "a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call_tool, "a_slow")
            await wait_all_tasks_blocked()
            nursery.start_soon(session.aclose)
            await wait_all_tasks_blocked()
            for _ in range(2):
                with pytest.raises(SessionClosed):
                    await session.add_backend(configured(world, "b"))
                with pytest.raises(SessionClosed):
                    await session.remove_backend("a")
                await trio.sleep(4)
        with trio.CancelScope() as scope:
            scope.cancel()
            await session.add_backend(configured(world, "b"))
        assert scope.cancelled_caught


async def test_added_and_removed_backends_are_in_the_suspended_row(autojump_clock: MockClock) -> None:
    """One added, one removed: a restore has the names of the remaining backends."""
    async with open_world({"a": echo_backend(), "b": echo_backend()}) as world:
        session = await open_with(world, "a", session_id="one")
        await session.add_backend(configured(world, "b"))
        await session.remove_backend("a")
        await session.suspend()
        assert ["b"] == await stored_ids(world)
        async with await world.factory.restore_session("one", [configured(world, "b")]) as restored:
            assert ["b_echo"] == names(restored)
            assert () == restored.failures
        assert (1, 1) == (len(world["a"].deleted_sessions), len(world["b"].received("initialize")))


# Subscriptions


class SubscribableBackend(ScriptedBackend):
    """One tool, "echo", and one resource. It takes subscriptions, and sends no updates by itself."""

    async def call(self, context: CallContext) -> JSON:
        if context.method in ("resources/subscribe", "resources/unsubscribe"):
            return {}
        return await super().call(context)


def subscribable(**more: Any) -> ScriptedBackend:
    backend = SubscribableBackend(**more)
    backend.add_tool("echo")
    backend.add_resource("file:///x")
    backend.capabilities = {"tools": {}, "resources": {"subscribe": True}}
    return backend


def subscribed(backend: ScriptedBackend) -> list[tuple[str, str]]:
    """The uris of its subscribe requests, in order."""
    methods = ("resources/subscribe", "resources/unsubscribe")
    return [(e.method.removeprefix("resources/"), e.params["uri"]) for e in backend.exchanges if e.method in methods]


async def test_a_subscription_outlives_its_connection(autojump_clock: MockClock) -> None:
    """The new connection subscribes again and reports one update for each resource, since one may have been missed."""
    backend = subscribable()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await session.subscribe_resource("file:///x")
        async with session.changes() as changes:
            backend.restart()
            await session.call_tool("a_echo")
            assert SessionChange("resource_updated", "a", "file:///x") in await drained(changes)
        assert [("subscribe", "file:///x")] * 2 == subscribed(backend)
        await session.unsubscribe_resource("file:///x")
        async with session.changes() as changes:
            backend.restart()
            await session.call_tool("a_echo")
            assert "resource_updated" not in {change.kind for change in await drained(changes)}
        assert 3 == len(subscribed(backend))


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize(
    "fault", [Error(-32603, "busy"), Error(-32602, "?"), Status(429), Status(503), Hang()], ids=repr
)
async def test_a_subscription_that_fails_on_a_new_connection_is_tried_again(
    fault: Fault, times: int, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The subscriber counts on it: the session goes on until the new connection has it, and tells of the resource once
    more then. Only what the backend says is not there is given up, with a warning.
    """
    backend = subscribable()
    gives_up = times > 3 and fault == Error(-32602, "?")
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await session.subscribe_resource("file:///x")
        await trio.sleep(100)
        backend.fail("resources/subscribe", fault, times=times)
        backend.restart()
        async with session.changes() as changes:
            await session.call_tool("a_echo")
            heard = [change.uri for change in await drained(changes, 300) if change.kind == "resource_updated"]
        assert ["file:///x"] * (1 if gives_up else 2) == heard
        assert 1 + (3 if gives_up else times + 1) == len(subscribed(backend))
        assert gives_up == ("it is given up" in caplog.text)


async def test_a_subscription_is_tried_again_as_late_as_the_backend_asks(autojump_clock: MockClock) -> None:
    """`Retry-After` is about all of them: after the first refusal the others wait, too."""
    backend = subscribable()
    backend.add_resource("file:///y")
    async with open_world({"a": backend}) as world, world.open_session() as session:
        for uri in ("file:///x", "file:///y"):
            await session.subscribe_resource(uri)
        backend.fail("resources/subscribe", Status(429, headers={"Retry-After": "20"}), times=1)
        backend.restart()
        await session.call_tool("a_echo")
        await wait_all_tasks_blocked()
        restarted = trio.current_time()
        await trio.sleep(60)
    again = [e.received_at - restarted for e in backend.exchanges if e.method == "resources/subscribe"][2:]
    assert [0, 20, 20] == [pytest.approx(at, abs=2) for at in again]


async def test_what_was_unsubscribed_from_is_not_tried_again(autojump_clock: MockClock) -> None:
    """A subscription failed on the new connection, and its subscriber has left since."""
    backend = subscribable()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await session.subscribe_resource("file:///x")
        backend.fail("resources/subscribe", Status(503), times=1)
        backend.restart()
        await session.call_tool("a_echo")
        await trio.sleep(0.1)
        await session.unsubscribe_resource("file:///x")
        await trio.sleep(300)
        assert ["subscribe", "subscribe", "unsubscribe"] == [kind for kind, _ in subscribed(backend)]


async def test_a_subscription_that_fails_is_none(autojump_clock: MockClock) -> None:
    """A refused subscription is not repeated after a reconnect."""
    backend = subscribable()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("resources/subscribe", Status(500), times=1)
        with pytest.raises(Exception, match="HTTP 500"):
            await session.subscribe_resource("file:///x")
        backend.restart()
        await session.call_tool("a_echo")
        await trio.sleep(2)
        assert 1 == len(subscribed(backend))


async def test_a_subscription_that_is_given_up_takes_no_later_one_along(autojump_clock: MockClock) -> None:
    """The resource was unsubscribed from, and subscribed to again, while the first request had no answer."""
    backend = subscribable()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("resources/subscribe", Hang(), times=1)
        first = trio.CancelScope()

        async def subscribe_first() -> None:
            with first:
                await session.subscribe_resource("file:///x")

        async with trio.open_nursery() as callers:
            callers.start_soon(subscribe_first)
            await trio.sleep(1)
            await session.unsubscribe_resource("file:///x")
            await session.subscribe_resource("file:///x")
            first.cancel()
        backend.restart()
        await session.call_tool("a_echo")
        await trio.sleep(2)
        assert ["subscribe", "unsubscribe", "subscribe", "subscribe"] == [what for what, _ in subscribed(backend)]


async def test_unsubscribing_reaches_the_backend_of_the_subscription(autojump_clock: MockClock) -> None:
    """Also when the resource is no longer listed."""
    backend = subscribable()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await session.subscribe_resource("file:///x")
        backend.resources.clear()
        backend.restart()
        await session.call_tool("a_echo")
        await trio.sleep(2)
        assert () == session.resources
        await session.unsubscribe_resource("file:///x")
        assert ("unsubscribe", "file:///x") == subscribed(backend)[-1]


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("file:///x", "file:///x"),
        ("file:///x/part", "file:///x/part"),
        ("file:///x/" + "y" * 5000, "file:///x"),
        ("file:///other", None),
        (7, None),
    ],
)
async def test_updates_of_subscribed_resources_are_reported(
    uri: Any, told: str | None, autojump_clock: MockClock
) -> None:
    """Also of sub-resources, whose URIs the backend chooses; not of overlong URIs, nor of other resources."""

    async def steps(arguments: JSON, context: CallContext) -> str:
        await context.notify("notifications/resources/updated", {"uri": uri})
        return "done"

    backend = subscribable(answers="sse")
    backend.add_tool("steps", steps)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await session.subscribe_resource("file:///x")
        async with session.changes() as changes:
            await session.call_tool("a_steps")
            expected = [SessionChange("resource_updated", "a", told)] if told else []
            assert expected == await drained(changes)


async def test_a_removed_backend_has_no_subscriptions(autojump_clock: MockClock) -> None:
    """Not when it is added again either."""
    backend = subscribable()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await session.subscribe_resource("file:///x")
        await session.remove_backend("a")
        await session.add_backend(attrs.evolve(configured(world, "a")))
        await trio.sleep(2)
        assert 1 == len(subscribed(backend))


async def test_a_backend_removed_while_a_subscription_is_asked_for(autojump_clock: MockClock) -> None:
    """The answer comes in time: no error, and no subscription is left."""
    backend = subscribable()
    backend.fail("resources/subscribe", Delay(3))
    async with open_world({"a": backend}) as world, world.open_session() as session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.subscribe_resource, "file:///x")
            await trio.sleep(1)
            await session.remove_backend("a")
        assert 3.0 == trio.current_time()


async def test_backends_come_and_go_while_others_wait_for_a_place(autojump_clock: MockClock) -> None:
    """A backend that waits for a place when the opening ends keeps its turn, whatever is added or removed meanwhile."""
    settings = FactorySettings(max_backend_init_concurrency=1, backend_init_timeout=1.0, session_init_timeout=0.5)
    backends = {"a": echo_backend(), "b": echo_backend(), "c": echo_backend()}
    backends["a"].fail("POST", Hang())
    async with open_world(backends, settings=settings) as world:
        async with world.factory.open_session(world.configured[:2]) as session:
            await session.add_backend(world.configured[2])
            await session.remove_backend("a")
            await trio.sleep(1.0)
            assert ["b_echo", "c_echo"] == [tool.name for tool in session.tools]


async def test_a_session_closes_while_a_backend_is_added_again(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """`add_backend` of a removed id waits for the old connection's DELETE, and may find the session closed then. Ten
    sessions, so that some are closed exactly in between.
    """
    backend = echo_backend()
    backend.fail("DELETE", Delay(1.0))
    async with open_world({"a": backend}) as world:
        sessions = [await world.make_session() for _ in range(10)]
        for session in sessions:
            nursery.start_soon(session.remove_backend, "a")
        await wait_all_tasks_blocked()
        for session in sessions:
            nursery.start_soon(session.add_backend, world.configured[0])
        await wait_all_tasks_blocked()
        for session in sessions:
            nursery.start_soon(session.aclose)


@pytest.mark.parametrize("ticks", range(1, 5))
@pytest.mark.parametrize("again", range(4))  # Trio runs the tasks of one step in any order
async def test_a_removed_backend_is_not_connected_when_its_turn_comes(
    ticks: int, again: int, autojump_clock: MockClock
) -> None:
    """Sessions take turns at one endpoint. The turn may be handed over in the very step in which the backend leaves the
    session that waits: the connector is not called for that session any more.
    """
    sinks: list[EventSink] = []
    calls_after_removal: list[int] = []
    is_removed, joined, inner = False, trio.Event(), PlainConnector()

    async def connect(backend: Backend, **wanted: Any) -> PlainClient:
        number = len(sinks)
        sinks.append(wanted["events"])
        if is_removed:
            calls_after_removal.append(number)
        if number == 2:  # the first session connects anew, and the second one waits for its turn
            await trio.sleep(1)
            joined.set()
        return await inner(backend, **wanted)

    async with open_session_factory(connector=connect) as factory:
        _, waiting = [await factory.make_session(plain_backends(1)) for _ in range(2)]
        for number in range(2):
            sinks[number].session_lost(BackendUnavailable("b0", "has gone away"))
            await trio.sleep(0.7)  # more than `reconnect_delay`: so it is at connecting, or waits
        await joined.wait()
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        is_removed = True
        await waiting.remove_backend("b0")
        await trio.sleep(60)
    assert [] == calls_after_removal
