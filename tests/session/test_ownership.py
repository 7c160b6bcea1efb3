"""Ownership: no task outlives its session, no session its factory, no crash or cancel leaves anything behind."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Literal

import pytest
import trio
from support.cancel_sweep import CancelAtStep, quarters, sweep_cancels
from support.harness import (
    NO_RETRIES,
    Ledger,
    World,
    assert_nothing_left,
    echo_backend,
    library_tasks,
    open_world,
    slow_backend,
    state_of,
)
from support.plain_connector import PlainConnector, plain_backends
from support.scripted_storage import ScriptedStorage
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    Backend,
    BackendUnavailable,
    FactorySettings,
    FailureReason,
    Session,
    SessionChange,
    SessionClosed,
    SessionFactory,
    SessionState,
    open_session_factory,
)
from trio_vmcp.testing import Hang, ScriptedBackend

Era = Literal["legacy", "modern", "both"]


# Cancelled at every step


@quarters
@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_an_opening_cancelled_at_any_step_leaves_nothing(era: Era, first: int) -> None:
    """No task, request or row; every backend session with a known id got its DELETE."""

    async def body(cancel: CancelAtStep) -> None:
        async with open_world({"a": echo_backend(era), "b": echo_backend(era, "sse")}) as world:
            session = None
            with cancel.scope:
                cancel.armed = True
                session = await world.make_session()
            cancel.armed = False
            if session is None:
                await assert_nothing_left(world)
            else:
                await session.call_tool("a_echo")

    sweep_cancels(body, first, waits=8 if era == "legacy" else 6)


@quarters
def test_a_session_block_cancelled_at_any_step_leaves_nothing(first: int) -> None:
    """Opening, a call and the close: wherever the cancel comes, the session is CLOSED when the block is left."""

    async def body(cancel: CancelAtStep) -> None:
        async with open_world({"a": echo_backend("legacy", "sse")}) as world:
            with cancel.scope:
                cancel.armed = True
                async with world.open_session() as session:
                    await session.call_tool("a_echo")
                    await trio.sleep(1)
            cancel.armed = False
            await assert_nothing_left(world)
            assert world["a"].executed["echo"] <= 1

    sweep_cancels(body, first, waits=6)


@quarters
@pytest.mark.parametrize("on_exit", ["terminate", "suspend"])
def test_a_factory_cancelled_at_any_step_leaves_what_it_promised(on_exit: str, first: int) -> None:
    """Nothing; or, with on_exit="suspend", the row and the backend session of a session that was handed over."""

    async def body(cancel: CancelAtStep) -> None:
        storage, backend, made = ScriptedStorage(), echo_backend(), False
        async with open_network_of(backend) as (transport, configured):
            settings = FactorySettings(on_exit=on_exit)
            with cancel.scope:
                cancel.armed = True
                async with open_session_factory(transport=transport, storage=storage, settings=settings) as factory:
                    await factory.make_session(configured)
                    made = True
                    await trio.sleep(1)
            cancel.armed = False
            await wait_all_tasks_blocked()
            assert [] == library_tasks()
            left = int(made and on_exit == "suspend")
            assert left == len(await storage.rows())
            assert left == len(transport.session_ids["a.test"] & backend.sessions.keys())

    sweep_cancels(body, first, waits=5)


@quarters
def test_a_restore_cancelled_at_any_step_loses_no_session(first: int) -> None:
    """The stored session stays as it was: the next restore gets it, with the same backend session."""

    async def body(cancel: CancelAtStep) -> None:
        async with open_world({"a": echo_backend()}) as world:
            suspended = await world.make_session(session_id="one")
            await suspended.suspend()
            restored = None
            with cancel.scope:
                cancel.armed = True
                restored = await world.restore_session("one")
            cancel.armed = False
            if restored is None:
                assert [] == library_tasks()
                assert 1 == len(await world.storage.rows())
                assert 0 == len(world["a"].deleted_sessions)
                restored = await world.restore_session("one")
            await restored.call_tool("a_echo")
            assert 1 == len(world["a"].received("initialize"))

    sweep_cancels(body, first, waits=4)


@quarters
@pytest.mark.parametrize("closing", ["aclose", "suspend"])
def test_a_closer_cancelled_at_any_step_does_not_undo_the_close(closing: str, first: int) -> None:
    """The session ends up CLOSED, in the way that the first closer asked for, and a second closer returns."""

    async def body(cancel: CancelAtStep) -> None:
        async with open_world({"a": slow_backend(1)}) as world, trio.open_nursery() as nursery:
            session = await world.make_session()
            nursery.start_soon(session.call_tool, "a_slow")
            await wait_all_tasks_blocked()
            with cancel.scope:
                cancel.armed = True
                await getattr(session, closing)()
            cancel.armed = False
            await session.aclose()
            assert SessionState.CLOSED is session.state
            world.leaves_rows = world.leaves_sessions = closing == "suspend"
            assert int(closing == "suspend") == len(await world.storage.rows())

    sweep_cancels(body, first, waits=3)


@asynccontextmanager
async def open_network_of(backend: ScriptedBackend) -> AsyncIterator[tuple[Ledger, tuple[Backend, ...]]]:
    """A network with one backend, without a factory."""
    async with open_world({"a": backend}) as world:
        world.leaves_sessions = True
        yield world.transport, world.configured


# Leaving


async def test_leaving_the_factory_closes_every_session_side_by_side(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """All drain at the same time, and all are CLOSED when the block is left."""
    sessions: list[Session] = []
    async with open_world({"a": slow_backend(6)}) as world:
        for _ in range(3):
            sessions.append(await world.make_session())
            nursery.start_soon(sessions[-1].call_tool, "a_slow")
        await wait_all_tasks_blocked()
    assert 6.0 == trio.current_time()
    assert [SessionState.CLOSED] * 3 == [session.state for session in sessions]


async def test_a_session_may_outlive_the_task_that_made_it(autojump_clock: MockClock) -> None:
    """Opened in one task, used in another, closed in a third."""
    sessions: list[Session] = []

    async def make(world: World) -> None:
        sessions.append(await world.make_session())

    async with open_world({"a": echo_backend()}) as world:
        for step in (partial(make, world), lambda: sessions[0].call_tool("a_echo"), lambda: sessions[0].aclose()):
            async with trio.open_nursery() as nursery:  # noqa: ASYNC112  # a task of its own is the point
                nursery.start_soon(step)
        await assert_nothing_left(world)


async def test_a_session_is_a_resource(autojump_clock: MockClock) -> None:
    """`async with session` closes it."""
    async with open_world({"a": echo_backend()}) as world:
        async with await world.make_session() as session:
            assert SessionState.OPEN is state_of(session)
        assert SessionState.CLOSED is state_of(session)


@pytest.mark.parametrize("drain_timeout", [3, 60, math.inf])
async def test_a_cancelled_block_drains_for_ten_seconds_at_most(
    drain_timeout: float, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """A close after a cancel waits for calls for min(drain_timeout, 10 s)."""
    limits = FactorySettings(drain_timeout=drain_timeout)
    async with open_world({"a": slow_backend(600)}, settings=limits) as world:
        with trio.move_on_after(1):
            async with world.open_session() as session:
                nursery.start_soon(expect_closed, session)
                await trio.sleep_forever()
        assert 1 + min(drain_timeout, 10) == trio.current_time()


async def test_a_cancelled_factory_drains_all_sessions_for_ten_seconds_at_most(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """One bound for all sessions together."""
    limits = FactorySettings(drain_timeout=math.inf)
    backend = slow_backend(600)
    async with open_world({"a": backend}, settings=limits) as outer:
        with trio.move_on_after(1):
            async with open_session_factory(transport=outer.transport, settings=limits) as factory:
                for _ in range(3):
                    nursery.start_soon(expect_closed, await factory.make_session(outer.configured))
                await trio.sleep_forever()
        assert 11.0 == trio.current_time()


async def test_a_cancel_during_the_close_shortens_the_drain(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """A block that is left normally waits without end for a call; cancelled then, it drains for 10 s more."""
    limits = FactorySettings(drain_timeout=math.inf)
    async with open_world({"a": slow_backend(600)}, settings=limits) as outer:
        with trio.move_on_after(20):
            async with open_session_factory(transport=outer.transport, settings=limits) as factory:
                for _ in range(2):
                    nursery.start_soon(expect_closed, await factory.make_session(outer.configured))
                await wait_all_tasks_blocked()
        assert 30.0 == trio.current_time()


async def expect_closed(session: Session) -> None:
    with pytest.raises(SessionClosed):
        await session.call_tool("a_slow")


async def test_a_cancelled_block_whose_backends_hang_is_left_in_time(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """The bound is the sum of drain and teardown."""
    limits = FactorySettings(drain_timeout=3, teardown_timeout=2)
    async with open_world({"a": slow_backend(600)}, settings=limits) as world:
        world.leaves_sessions = True
        with trio.move_on_after(1):
            async with world.open_session() as session:
                nursery.start_soon(expect_closed, session)
                world["a"].fail("DELETE", Hang())
                await trio.sleep_forever()
        assert 6.0 == trio.current_time()


async def test_one_cancel_for_session_and_callers_is_the_cancel_alone(autojump_clock: MockClock) -> None:
    """A nursery that holds both is cancelled: no caller sees SessionClosed."""
    async with open_world({"a": slow_backend(60)}) as world:
        with trio.move_on_after(1) as surroundings:
            async with trio.open_nursery() as nursery, world.open_session() as session:
                for _ in range(3):
                    nursery.start_soon(session.call_tool, "a_slow")  # noqa: ASYNC111  # that is what the test is about
                await trio.sleep_forever()
        assert surroundings.cancelled_caught


@pytest.mark.parametrize("on_exit", ["terminate", "suspend"])
async def test_a_factory_left_while_a_session_opens(
    on_exit: str, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """`make_session` raises SessionClosed, and nothing is left: the session was handed to no caller."""
    errors: list[SessionClosed] = []

    async def open_one(factory: SessionFactory) -> None:
        with pytest.raises(SessionClosed) as closed:
            await factory.make_session(outer.configured)
        errors.append(closed.value)

    storage = ScriptedStorage(after={"create": partial(trio.sleep, 1)})
    async with open_world({"a": echo_backend()}, storage=storage) as outer:
        settings = FactorySettings(on_exit=on_exit)
        async with open_session_factory(transport=outer.transport, storage=storage, settings=settings) as factory:
            nursery.start_soon(open_one, factory)
            await wait_all_tasks_blocked()
            assert 1 == len(await storage.rows())
        await assert_nothing_left(outer)
    assert ["the session was closed while it was opening"] == [str(error) for error in errors]


@pytest.mark.parametrize("on_exit", ["terminate", "suspend"])
async def test_a_factory_left_while_a_session_is_restored(
    on_exit: str, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """The stored session stays as it was."""

    async def restore_one(factory: SessionFactory) -> None:
        with pytest.raises(SessionClosed):
            await factory.restore_session("one", outer.configured)

    async with open_world({"a": echo_backend()}) as outer:
        await (await outer.make_session(session_id="one")).suspend()
        outer.storage.before["replace"] = partial(trio.sleep, 1)
        settings = FactorySettings(on_exit=on_exit)
        async with open_session_factory(transport=outer.transport, storage=outer.storage, settings=settings) as factory:
            nursery.start_soon(restore_one, factory)
            await wait_all_tasks_blocked()
        assert 1 == len(await outer.storage.rows())
        assert 1 == len(outer["a"].sessions)
        await (await outer.restore_session("one")).aclose()


async def test_a_factory_left_while_an_id_is_looked_up(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """The storage answers after the factory has closed: SessionClosed, and no backend is contacted."""

    async def open_one(factory: SessionFactory) -> None:
        with pytest.raises(SessionClosed, match="closed while the session was opening"):
            await factory.make_session(plain_backends(1), session_id="one")

    storage, connector = ScriptedStorage(before={"load": partial(trio.sleep, 1)}), PlainConnector()
    async with open_session_factory(storage=storage, connector=connector) as factory:
        nursery.start_soon(open_one, factory)
        await wait_all_tasks_blocked()
    assert 0.0 == trio.current_time()
    await trio.sleep(2)
    assert {} == connector.started


# Errors of the body


@pytest.mark.parametrize("close_fails", [False, True])
async def test_an_error_in_the_body_comes_out_as_itself(close_fails: bool, autojump_clock: MockClock) -> None:
    """Neither in a group nor replaced by an error of the close, with its context unchanged."""
    error = KeyError("mine")

    async def body(world: World) -> None:
        async with world.open_session():
            if close_fails:
                world["a"].fail("DELETE", Hang())
                world.storage.before["delete"] = trio.sleep_forever
                world.leaves_rows = world.leaves_sessions = True
            raise error

    async with open_world({"a": echo_backend()}) as world:
        with pytest.raises(KeyError) as caught:
            await body(world)
    assert error is caught.value
    assert error.__context__ is None
    assert error.__cause__ is None


async def test_an_error_in_the_factorys_body_comes_out_as_itself(autojump_clock: MockClock) -> None:
    """Also with a session open."""
    error = KeyError("mine")
    connector = PlainConnector()

    async def body() -> None:
        async with open_session_factory(connector=connector) as factory:
            await factory.make_session(plain_backends(1))
            raise error

    with pytest.raises(KeyError) as caught:
        await body()
    assert error is caught.value
    assert error.__context__ is None
    assert [True] == connector.clients["b0"].closed


@pytest.mark.parametrize("opener", ["session", "factory"])
async def test_a_body_error_wins_over_a_cancel_during_the_close(
    opener: str, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """The cancel comes while the block waits for a call; the body's error still comes out."""

    async def body(factory: SessionFactory, world: World) -> None:
        async with factory.open_session(world.configured) as session:
            nursery.start_soon(session.call_tool, "a_slow")
            await wait_all_tasks_blocked()
            raise KeyError("mine")

    async def factory_body(world: World) -> None:
        async with open_session_factory(transport=world.transport) as factory:
            session = await factory.make_session(world.configured)
            nursery.start_soon(session.call_tool, "a_slow")
            await wait_all_tasks_blocked()
            raise KeyError("mine")

    async with open_world({"a": slow_backend(5)}) as world:
        errors: list[str] = []
        with trio.move_on_after(1) as surroundings:
            try:
                await (body(world.factory, world) if opener == "session" else factory_body(world))
            except KeyError as error:
                errors += error.args
        assert surroundings.cancel_called
        assert 5.0 == trio.current_time()
        assert ["mine"] == errors


async def test_several_errors_of_the_users_stay_a_group(autojump_clock: MockClock) -> None:
    """A group that the body raised is not unwrapped."""
    group = ExceptionGroup("mine", [KeyError(), ValueError()])

    async def body() -> None:
        async with open_session_factory() as factory, factory.open_session([]):
            raise group

    with pytest.RaisesGroup(KeyError, ValueError) as caught:
        await body()
    assert group is caught.value


# Crashes


async def crash_after(seconds: float) -> None:
    await trio.sleep(seconds)
    raise ZeroDivisionError("secret")


async def crash_in_a_group_after(seconds: float) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crash_after, seconds)
        nursery.start_soon(trio.sleep_forever)


@pytest.mark.parametrize("crash", [crash_after, crash_in_a_group_after])
async def test_a_crash_in_one_backends_service_costs_that_backend(
    crash: Callable[[float], Awaitable[None]], autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is missing with the reason until it reconnects, keeps its names, and its client is closed; nine other backends
    are not affected.
    """
    connector = PlainConnector(services={"b0": partial(crash, 3)})
    ticks: list[int] = []

    async def count() -> None:
        for tick in range(10):
            ticks.append(tick)
            await trio.sleep(1)

    connector.services |= {f"b{number}": count for number in range(1, 10)}
    async with open_session_factory(connector=connector, settings=NO_RETRIES) as factory:
        async with factory.open_session(plain_backends(10)) as session, session.changes() as changes:
            await session.call_tool("b0_echo")
            await trio.sleep(5)
            (failure,) = session.failures
            assert ("b0", FailureReason.UNREACHABLE) == (failure.backend_id, failure.reason)
            assert "crashed in its connection: ZeroDivisionError" == failure.detail
            assert SessionChange("backend", "b0") == await changes.receive()
            assert 10 == len(session.tools)
            with pytest.raises(BackendUnavailable, match="crashed in its connection: ZeroDivisionError"):
                await session.call_tool("b0_echo")
            assert 1 == len(connector.clients["b0"].closed)
            await session.call_tool("b9_echo")
            await trio.sleep(5)
    assert 90 == len(ticks)
    assert ["b0"] == [r.getMessage().split("'")[1] for r in caplog.records if r.levelno >= logging.WARNING]


async def test_a_crash_while_connecting_costs_that_backend(autojump_clock: MockClock) -> None:
    """A service crashes before its backend is listed: a failure, and the client is closed."""

    async def crash_at_once() -> None:
        raise ZeroDivisionError

    connector = PlainConnector(services={"b0": crash_at_once})
    async with open_session_factory(connector=connector) as factory:
        async with factory.open_session(plain_backends(2)) as session:
            await wait_all_tasks_blocked()
            assert ["b0"] == [failure.backend_id for failure in session.failures]
            await session.call_tool("b1_echo")
            assert 1 == len(connector.clients["b0"].closed)


async def test_a_bug_in_one_session_leaves_the_others_alone(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, nursery: trio.Nursery
) -> None:
    """An error that no boundary caught ends its session: closed, calls cut off, logged; the factory goes on."""

    class BadStorage(ScriptedStorage):
        @property
        def ttl(self) -> float:
            return "soon"  # type: ignore[return-value]

    backend = slow_backend(30)
    async with open_world({"a": backend}) as world:
        async with open_session_factory(transport=world.transport, storage=BadStorage()) as factory:
            session = await factory.make_session(world.configured)
            await wait_all_tasks_blocked()
            assert SessionState.CLOSED is session.state
            with pytest.raises(SessionClosed):
                await session.call_tool("a_echo")
            await session.aclose()
            await world.make_session()
            world.leaves_sessions = True
    assert 1 == sum("crashed: TypeError" in message for message in caplog.messages)


async def test_a_session_without_references_lives_on(autojump_clock: MockClock) -> None:
    """Its owner task holds it: garbage collection ends no session, idle time does."""
    async with open_world({"a": echo_backend()}, settings=FactorySettings(idle_timeout=10)) as world:
        await world.make_session()
        gc.collect()
        await trio.sleep(9)
        assert 1 == len(world["a"].sessions)
        await trio.sleep(2)
        await assert_nothing_left(world)


# Contexts


REQUEST: ContextVar[str] = ContextVar("REQUEST", default="nobody's")


async def test_no_requests_context_lives_on_in_a_long_lived_task(autojump_clock: MockClock) -> None:
    """Tasks that connect, serve and say goodbye have a context of their own, whichever task opened or closed the
    session.
    """
    seen: list[str] = []

    async def note() -> None:
        seen.append(REQUEST.get())
        await trio.lowlevel.checkpoint()

    connector = PlainConnector(on_connect={"b0": note}, on_close={"b0": note}, services={"b0": note})
    async with open_session_factory(connector=connector) as factory:
        REQUEST.set("alice's")
        session = await factory.make_session(plain_backends(1))
        REQUEST.set("bob's")
        await session.aclose()
    assert ["nobody's"] * 3 == seen


async def test_a_call_runs_in_its_callers_context(autojump_clock: MockClock) -> None:
    """Traces and log bindings of the caller hold during the call, and the library leaves none behind."""
    seen: list[str] = []

    async def note() -> None:
        seen.append(REQUEST.get())
        await trio.lowlevel.checkpoint()

    connector = PlainConnector(on_request={"b0": note})
    async with open_session_factory(connector=connector) as factory, factory.open_session(plain_backends(1)) as session:
        for who in ("alice's", "bob's"):
            REQUEST.set(who)
            await session.call_tool("b0_echo")
    assert ["alice's", "bob's"] == seen
