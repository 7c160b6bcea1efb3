"""Trio's traps for a library like this one: one test each, by number. Other files go deeper."""

from __future__ import annotations

import gc
import inspect
import math
import time
import weakref
from contextvars import ContextVar
from functools import partial

import pytest
import trio
from support.harness import NO_RETRIES, echo_backend, library_tasks, open_world, slow_backend, state_of
from support.plain_connector import PlainConnector, plain_backends
from support.scripted_storage import ScriptedStorage
from trio.testing import MockClock, assert_no_checkpoints, wait_all_tasks_blocked

import trio_vmcp
from trio_vmcp import (
    BackendTimeout,
    FactorySettings,
    LocalStorage,
    Session,
    SessionClosed,
    SessionState,
    open_session_factory,
)
from trio_vmcp._session.admission import Admission
from trio_vmcp.testing import CallContext, Hang, ScriptedBackend

LONGEST_STEP = 0.05  # s of CPU time: meanwhile no other task runs and no deadline fires


async def _call_until_closed(session: Session, name: str = "b0_echo") -> float:
    with pytest.raises(SessionClosed):
        await session.call_tool(name)
    return trio.current_time()


async def test_t01_cancelling_a_session_ends_its_calls_and_not_their_callers(autojump_clock: MockClock) -> None:
    """Calls run in their callers' tasks: a close cuts a stuck call off at the drain, and the caller goes on."""
    connector = PlainConnector(on_request={"b0": trio.sleep_forever})
    ended: list[float] = []

    async def caller() -> None:
        with trio.CancelScope() as surroundings:
            ended.append(await _call_until_closed(session))
            await other.call_tool("b1_echo")
        assert not surroundings.cancel_called
        ended.append(trio.current_time())

    async with open_session_factory(connector=connector) as factory:
        session, other = await factory.make_session(plain_backends(1)), await factory.make_session(plain_backends(2))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller)
            await wait_all_tasks_blocked()
            await session.aclose(drain_timeout=1)
    assert [1.0, 1.0] == ended


async def test_t02_a_count_that_was_zero_before_lets_no_close_through(autojump_clock: MockClock) -> None:
    """Calls come and go; the close waits for the running call, and for one that ends as it begins."""
    connector = PlainConnector(on_request={"b0": partial(trio.sleep, 3)})
    async with open_session_factory(connector=connector) as factory:
        session = await factory.make_session(plain_backends(1))
        for _ in range(2):
            await session.call_tool("b0_echo")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call_tool, "b0_echo")
            await trio.sleep(1)
            nursery.start_soon(session.call_tool, "b0_echo")
            await trio.sleep(2)  # to the instant at which the first of the two ends
            await session.aclose()
            assert (SessionState.CLOSED, 0, 10.0) == (session.state, session.in_flight, trio.current_time())


async def test_t03_admission_has_no_checkpoint() -> None:
    """Check, count and `try` are one step, and the count goes down however the call ends."""
    admission = Admission()
    with assert_no_checkpoints():
        async with admission.admit():
            assert 1 == admission.in_flight
        with pytest.raises(ZeroDivisionError):
            async with admission.admit():
                raise ZeroDivisionError
    assert 0 == admission.in_flight


async def test_t04_closers_may_die(autojump_clock: MockClock) -> None:
    """One closer is cancelled before it waits, one while it waits, one task crashes beside it: the last returns."""
    connector = PlainConnector(on_request={"b0": partial(trio.sleep, 5)})
    async with open_session_factory(connector=connector) as factory, trio.open_nursery() as nursery:
        session = await factory.make_session(plain_backends(1))
        nursery.start_soon(session.call_tool, "b0_echo")
        await wait_all_tasks_blocked()
        with trio.CancelScope() as cancelled:
            cancelled.cancel()
            await session.aclose()
        with trio.move_on_after(1):
            await session.aclose()
        with pytest.RaisesGroup(ZeroDivisionError):
            async with trio.open_nursery() as closers:
                closers.start_soon(session.aclose)
                await trio.sleep(1)
                raise ZeroDivisionError
        assert SessionState.DRAINING is state_of(session)
        await session.aclose()
        assert (SessionState.CLOSED, 5.0) == (session.state, trio.current_time())


async def test_t05_goodbyes_are_said_under_a_cancelled_scope(autojump_clock: MockClock) -> None:
    """The DELETE is sent inside a cancelled scope, and a hanging backend costs the budget only."""
    backend = echo_backend()
    backend.fail("DELETE", Hang())
    async with open_world({"a": backend}) as world:
        world.leaves_sessions = True
        with trio.move_on_after(0.1):
            async with open_session_factory(transport=world.transport) as factory:
                async with factory.open_session(world.configured):
                    await trio.sleep_forever()
        assert 0.1 + FactorySettings().teardown_timeout == trio.current_time()
        assert 1 == len(backend.received("DELETE"))


async def test_t06_a_close_inside_a_call_does_not_wait_for_the_call(autojump_clock: MockClock) -> None:
    """Also two sessions deep, and with a long drain."""
    inner_state: list[SessionState] = []

    async def close_outer() -> None:
        await outer.aclose()
        inner_state.append(outer.state)

    async def call_inner() -> None:
        await inner.call_tool("b1_echo")

    connector = PlainConnector(on_request={"b0": call_inner, "b1": close_outer})
    limits = FactorySettings(drain_timeout=1000)
    async with open_session_factory(connector=connector, settings=limits) as factory:
        outer, inner = await factory.make_session(plain_backends(1)), await factory.make_session(plain_backends(2))
        await outer.call_tool("b0_echo")
        await outer.aclose()
    assert [SessionState.DRAINING] == inner_state
    assert 0.0 == trio.current_time()


async def test_t07_a_crash_in_one_reader_leaves_its_siblings_alone(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Also a crash in one group with a Cancelled, which `except Exception` does not catch."""
    ticks = dict.fromkeys(range(10), 0)

    async def read(number: int) -> None:
        for tick in range(5):
            await trio.sleep(1)
            ticks[number] = tick + 1
            if (number, tick) == (0, 2):
                raise ValueError
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                if number == 1:
                    raise ValueError  # beside the Cancelled of its sibling

    connector = PlainConnector(services={f"b{number}": partial(read, number) for number in range(10)})
    async with open_session_factory(connector=connector, settings=NO_RETRIES) as factory:
        async with factory.open_session(plain_backends(10)) as session:
            await trio.sleep(6)
            assert ["b0"] == [failure.backend_id for failure in session.failures]
    assert [3, *[5] * 9] == [*ticks.values()]
    assert ["WARNING"] == [record.levelname for record in caplog.records]  # a session's own crash is an ERROR


async def test_t08_an_error_of_the_body_leaves_as_itself(autojump_clock: MockClock) -> None:
    """`except KeyError` works around session and factory, though there are nurseries between and a backend hangs."""
    backend = echo_backend()
    backend.fail("DELETE", Hang())
    caught: list[KeyError] = []
    async with open_world({"a": backend}) as world:
        world.leaves_sessions = True
        async with open_session_factory(transport=world.transport) as factory:
            try:
                async with factory.open_session(world.configured):
                    raise KeyError("mine")
            except KeyError as error:
                caught.append(error)
    assert ["mine"] == [error.args[0] for error in caught]
    assert [(None, None)] == [(error.__cause__, error.__context__) for error in caught]


async def test_t09_a_session_that_was_not_handed_over_is_closed(autojump_clock: MockClock) -> None:
    """The opening task is cancelled after the row was written: no session is left in the factory's nursery."""
    async with open_world({"a": echo_backend()}) as world:
        other = await world.make_session()
        world.storage.after["create"] = trio.sleep_forever
        with trio.move_on_after(1):
            await world.make_session()
        assert 1 == len(await world.storage.rows())
        assert 1 == len(world["a"].sessions)
        await other.call_tool("a_echo")
        await other.aclose()


@pytest.mark.parametrize("late", [-0.001, 0.0, 0.001])
async def test_t10_a_backend_ready_at_the_deadline_joins_or_is_closed(late: float, autojump_clock: MockClock) -> None:
    """A backend that is connected at the instant of its deadline has joined or was closed, not both."""
    limits = FactorySettings(backend_init_timeout=5, reconnect_delay=math.inf)
    backend = echo_backend()
    backend.fail("tools/list", trio_vmcp.testing.Delay(5 + late))
    async with open_world({"a": backend}, settings=limits) as world:
        async with world.open_session() as session:
            await trio.sleep(1)
            joined = not session.failures
            assert joined == bool(session.tools)
            assert joined == bool(backend.sessions)
            assert late == 0 or joined == (late < 0)


async def test_t11_a_deadline_that_passed_is_not_a_timeout(autojump_clock: MockClock) -> None:
    """Success at the instant of the limit counts; waiting for a place does not; a caller's own limit stays its own."""
    connector = PlainConnector(
        on_connect={f"b{number}": partial(trio.sleep, 1) for number in range(5)},
        on_request={"b0": partial(trio.sleep, 3)},
    )
    limits = FactorySettings(backend_init_timeout=1.5, max_backend_init_concurrency=1)
    async with open_session_factory(connector=connector, settings=limits) as factory:
        async with factory.open_session(plain_backends(5)) as session:
            assert (5.0, ()) == (trio.current_time(), session.failures)
            with pytest.raises(trio.TooSlowError), trio.fail_after(1):
                await session.call_tool("b0_echo")
    async with open_world({"a": slow_backend(60)}) as world, world.open_session() as session:
        with trio.fail_after(10), pytest.raises(BackendTimeout):
            await session.call_tool("a_slow", timeout=2)


async def test_t12_a_place_outlives_none_of_its_borrowers(autojump_clock: MockClock) -> None:
    """One place: an attempt that crashes, hangs or is cancelled frees it."""

    async def crash() -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    connector = PlainConnector(on_connect={"b0": crash, "b1": trio.sleep_forever, "b2": partial(trio.sleep, 1)})
    limits = FactorySettings(backend_init_timeout=2, max_backend_init_concurrency=1)
    async with open_session_factory(connector=connector, settings=limits) as factory:
        for _ in range(2):
            with trio.move_on_after(1):
                await factory.make_session(plain_backends(4))
        async with factory.open_session(plain_backends(4)) as session:
            assert ["b0", "b1"] == [failure.backend_id for failure in session.failures]
            assert {"b0": 2.0, "b1": 2.0, "b2": 4.0, "b3": 5.0} == connector.started


async def test_t13_no_generator_is_left_to_the_collector(autojump_clock: MockClock) -> None:
    """Nothing public is an async generator; a loop over changes may be left in any task."""
    public = [getattr(trio_vmcp, name) for name in trio_vmcp.__all__]
    methods = [method for cls in public if inspect.isclass(cls) for _, method in inspect.getmembers(cls)]
    assert [] == [found for found in [*public, *methods] if inspect.isasyncgenfunction(found)]

    async with open_world({"a": echo_backend()}) as world:
        session = await world.make_session()

        async def look_once() -> None:
            async with session.changes() as changes:
                async for _ in changes:
                    break

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_once)
            await wait_all_tasks_blocked()
            nursery.start_soon(session.aclose)
        gc.collect()
        await trio.sleep(1)


async def test_t14_no_callers_context_lives_on(autojump_clock: MockClock) -> None:
    """The task that touches the row does not run in the context of the request that opened the session."""
    user: ContextVar[str] = ContextVar("user", default="nobody")
    seen: list[str] = []

    async def look() -> None:
        await trio.lowlevel.checkpoint()
        seen.append(user.get())

    storage = ScriptedStorage(LocalStorage(ttl=3))
    storage.before["touch"] = look
    async with open_world({"a": echo_backend()}, storage=storage) as world:
        user.set("alice")
        async with world.open_session():
            user.set("bob")
            await trio.sleep(2.5)
    assert ["nobody"] * 2 == seen


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_t15_no_stream_waits_for_a_cancelled_reader(era: str, autojump_clock: MockClock) -> None:
    """A caller is cancelled between two events of its stream; the connection serves the next call."""

    async def work(arguments: object, context: CallContext) -> str:
        for step in range(100):
            await context.progress(step)
            await trio.sleep(1)
        return "done"

    async def leave(progress: float, total: float | None, message: str | None) -> None:
        await trio.lowlevel.checkpoint()
        if progress == 3:
            surroundings.cancel()

    backend = ScriptedBackend(era=era, answers="sse")  # type: ignore[arg-type]
    backend.add_tool("work", work)
    backend.add_tool("echo")
    async with open_world({"a": backend}, settings=FactorySettings(max_connections_per_backend=1)) as world:
        async with world.open_session() as session:
            for _ in range(2):
                with trio.CancelScope() as surroundings:
                    await session.call_tool("a_work", on_progress=leave)
                await session.call_tool("a_echo", timeout=1)
            assert 6.0 == trio.current_time()


async def test_t16_a_session_lives_until_it_is_closed_and_no_longer(autojump_clock: MockClock) -> None:
    """Garbage collection ends no open session, and nothing is left of a closed one."""
    async with open_world({"a": echo_backend()}) as world:
        session = await world.make_session()
        reference = weakref.ref(session)
        del session
        gc.collect()
        kept = reference()
        assert kept is not None
        await kept.call_tool("a_echo")
        await kept.aclose()
        del kept
        await wait_all_tasks_blocked()
        gc.collect()
        assert reference() is None
        assert [] == library_tasks()


class Steps(trio.abc.Instrument):
    """The longest CPU time of one step. CPU time, since a busy machine is no fault of the step."""

    def __init__(self) -> None:
        self.longest = (0.0, "")
        self.began = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, (time.thread_time() - self.began, task.name))


def test_t17_no_step_holds_the_loop_up() -> None:
    """Opening ten backends, a megabyte each way and the close: no step without a checkpoint takes over 50 ms."""

    async def live() -> None:
        async with open_world({f"b{number}": echo_backend() for number in range(10)}) as world:
            async with world.open_session() as session:
                await session.call_tool("b0_echo", {"text": "x" * 1_000_000})

    steps = Steps()
    trio.run(live, clock=MockClock(autojump_threshold=0), instruments=[steps])
    assert steps.longest[0] <= LONGEST_STEP, steps.longest[1]
    assert steps.longest[0] > 0
