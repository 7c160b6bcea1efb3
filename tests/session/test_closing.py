"""Closing: refuse at once, let calls end, cut off stuck calls, say goodbye to every backend, and keep to the bounds."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
from support.harness import echo_backend, library_tasks, open_world, slow_backend, state_of
from support.plain_connector import PlainConnector, plain_backends
from support.scripted_storage import ScriptedStorage
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    BackendUnavailable,
    ClientHandlers,
    FactorySettings,
    ServerRequest,
    Session,
    SessionClosed,
    SessionState,
    open_session_factory,
)
from trio_vmcp.testing import CallContext, Delay, Hang, ScriptedBackend, Status

BOTH_ERAS = pytest.mark.parametrize("era", ["legacy", "modern"])


class Caller:
    """One call in a task of its own, and its outcome."""

    def __init__(self, session: Session, name: str = "a_slow") -> None:
        self.session = session
        self.name = name
        self.outcomes: list[tuple[str, float]] = []
        self.error: SessionClosed | None = None
        self.surroundings = trio.CancelScope()

    async def __call__(self) -> None:
        with self.surroundings:
            try:
                await self.session.call_tool(self.name)
            except SessionClosed as closed:
                self.error = closed
                self.outcomes.append(("closed", trio.current_time()))
            else:
                self.outcomes.append(("answered", trio.current_time()))
            await trio.lowlevel.checkpoint()
        if self.surroundings.cancelled_caught:
            self.outcomes.append(("cancelled", trio.current_time()))


# Waiting for calls


@BOTH_ERAS
@pytest.mark.parametrize("answers", ["json", "sse"])
async def test_close_waits_for_calls_in_flight(
    era: str, answers: str, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """A call that ends within the drain gets its answer; then the close ends, and nothing was torn down before."""
    backend = slow_backend(4, era, answers)
    async with open_world({"a": backend}) as world:
        async with world.open_session() as session:
            caller = Caller(session)
            nursery.start_soon(caller)
            await wait_all_tasks_blocked()
            assert 1 == session.in_flight
        assert 4.0 == trio.current_time()
        assert (SessionState.CLOSED, 0) == (session.state, session.in_flight)
        await wait_all_tasks_blocked()
    assert [("answered", 4.0)] == caller.outcomes
    assert {"answered"} == {e.outcome for e in backend.exchanges}


@BOTH_ERAS
async def test_a_stuck_call_is_cut_off_and_its_caller_lives_on(
    era: str, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """SessionClosed exactly `drain_timeout` later, naming the limit; the backend sees the cancellation."""
    backend = slow_backend(60, era)
    async with open_world({"a": backend}, settings=FactorySettings(drain_timeout=3)) as world:
        async with world.open_session() as session:
            caller = Caller(session)
            nursery.start_soon(caller)
            await trio.sleep(1)
        assert 4.0 == trio.current_time()
        assert (SessionState.CLOSED, 0) == (session.state, session.in_flight)
        await wait_all_tasks_blocked()
        assert [("closed", 4.0)] == caller.outcomes
        assert not caller.surroundings.cancel_called
        assert "the session closed under this call, after drain_timeout=3 s" == str(caller.error)
        assert caller.error is not None
        assert caller.error.may_have_executed
        assert 1 == backend.cancelled["slow"]


async def test_a_call_that_was_not_written_did_not_execute(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Cut off while it waits for a connection: `may_have_executed` is False."""
    backend = slow_backend(60)
    limits = FactorySettings(drain_timeout=3, max_connections_per_backend=1)
    async with open_world({"a": backend}, settings=limits) as world:
        async with world.open_session() as session:
            callers = [Caller(session), Caller(session)]
            nursery.start_soon(callers[0])
            await wait_all_tasks_blocked()
            nursery.start_soon(callers[1])
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
    assert [True, False] == [caller.error.may_have_executed for caller in callers if caller.error]
    assert 1 == backend.executed["slow"]


async def test_a_call_in_a_session_that_was_gone_did_not_execute(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Cut off while the backend is connected anew for it: `may_have_executed` is False."""
    backend = slow_backend(60)
    async with open_world({"a": backend}, settings=FactorySettings(drain_timeout=3)) as world:
        async with world.open_session() as session:
            backend.restart()
            backend.fail("initialize", Hang())
            nursery.start_soon(caller := Caller(session))
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
    assert [("closed", 3.0)] == caller.outcomes
    assert caller.error is not None
    assert not caller.error.may_have_executed


@pytest.mark.parametrize("seconds", [2.9, 3.0, 3.1])
async def test_a_call_that_ends_about_the_deadline_has_one_outcome(
    seconds: float, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Before it: an answer. After it: SessionClosed. At the same instant: either, once."""
    async with open_world({"a": slow_backend(seconds)}, settings=FactorySettings(drain_timeout=3)) as world:
        async with world.open_session() as session:
            caller = Caller(session)
            nursery.start_soon(caller)
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
    outcomes = {2.9: [[("answered", 2.9)]], 3.0: [[("answered", 3.0)], [("closed", 3.0)]], 3.1: [[("closed", 3.0)]]}
    assert caller.outcomes in outcomes[seconds]


async def test_refusal_is_immediate(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Once a close is requested no call is admitted, whatever still runs."""
    async with open_world({"a": slow_backend(4)}) as world:
        session = await world.make_session()
        nursery.start_soon(Caller(session))
        await wait_all_tasks_blocked()

        with trio.CancelScope() as at_once:
            at_once.cancel()  # `aclose` is cancelled at its first checkpoint
            await session.aclose()
        assert SessionState.DRAINING is state_of(session)
        with trio.fail_after(1):
            await session.wait_draining()
        for refused in (
            partial(session.call_tool, "a_echo"),
            partial(session.read_resource, "memo://1"),
            partial(session.get_prompt, "a_greet"),
            partial(session.complete, {"type": "ref/prompt", "name": "a_greet"}, {"name": "who", "value": ""}),
        ):
            with pytest.raises(SessionClosed, match="closing or closed"):
                await refused()
        assert 1 == session.in_flight
        assert 1 == world["a"].in_flight


async def test_a_drain_without_end_waits_for_ever(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """`math.inf` is a drain_timeout."""
    async with open_world(
        {"a": slow_backend(86_400)}, settings=FactorySettings(drain_timeout=math.inf, request_timeout=math.inf)
    ) as world:
        async with world.open_session() as session:
            caller = Caller(session)
            nursery.start_soon(caller)
            await wait_all_tasks_blocked()
        assert 86_400.0 == trio.current_time()
        await wait_all_tasks_blocked()
    assert [("answered", 86_400.0)] == caller.outcomes


async def test_a_drain_of_nothing_cuts_off_at_once(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """0 is 0 s."""
    async with open_world({"a": slow_backend(60)}) as world:
        session = await world.make_session()
        caller = Caller(session)
        nursery.start_soon(caller)
        await wait_all_tasks_blocked()
        await session.aclose(drain_timeout=0)
        assert 0.0 == trio.current_time()
        await wait_all_tasks_blocked()
    assert [("closed", 0.0)] == caller.outcomes


@pytest.mark.parametrize("drain_timeout", [-1, math.nan])
async def test_a_drain_is_not_negative(drain_timeout: float) -> None:
    """ValueError names the value, and the session goes on."""
    async with open_session_factory() as factory, factory.open_session([]) as session:
        with pytest.raises(ValueError, match=f"drain_timeout={drain_timeout!r}"):
            await session.aclose(drain_timeout=drain_timeout)
        assert SessionState.OPEN is state_of(session)


# Several closers


@pytest.mark.parametrize("closers", [2, 3])
async def test_closers_return_together(closers: int, autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """However many closers come, and whenever: all return when the session is CLOSED, none before."""
    returned: list[tuple[float, SessionState]] = []

    async def close(after: float) -> None:
        await trio.sleep(after)
        await session.aclose()
        returned.append((trio.current_time(), session.state))

    async with open_world({"a": slow_backend(6)}) as world:
        session = await world.make_session()
        nursery.start_soon(Caller(session))
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as closing:
            for number in range(closers):
                closing.start_soon(close, 2 * number)
        assert [(6.0, SessionState.CLOSED)] * closers == returned
        await session.aclose()
        assert 6.0 == trio.current_time()
        assert 1 == len(world["a"].deleted_sessions)


async def test_a_cancelled_closer_does_not_undo_the_close(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Its wait ends; the session closes all the same, and the next closer waits for that."""
    async with open_world({"a": slow_backend(6)}) as world:
        session = await world.make_session()
        nursery.start_soon(Caller(session))
        await wait_all_tasks_blocked()
        with trio.move_on_after(1) as impatience:
            await session.aclose()
        assert impatience.cancelled_caught
        assert 1.0 == trio.current_time()
        assert SessionState.DRAINING is state_of(session)
        await session.aclose()
        assert 6.0 == trio.current_time()
        assert SessionState.CLOSED is state_of(session)


async def test_the_shorter_drain_wins(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """A later closer may shorten the drain, and cannot lengthen it."""
    async with open_world({"a": slow_backend(60)}) as world:
        session = await world.make_session()
        caller = Caller(session)
        nursery.start_soon(caller)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as closing:
            closing.start_soon(partial(session.aclose, drain_timeout=8))
            await trio.sleep(1)
            closing.start_soon(partial(session.aclose, drain_timeout=2))
            await trio.sleep(1)
            closing.start_soon(partial(session.aclose, drain_timeout=60))
        assert 3.0 == trio.current_time()
        await wait_all_tasks_blocked()
        assert "after drain_timeout=2 s" in str(caller.error)


@pytest.mark.parametrize("suspend_first", [True, False])
async def test_the_first_closer_decides(suspend_first: bool, autojump_clock: MockClock) -> None:
    """Suspend then terminate suspends; terminate then suspend terminates."""
    async with open_world({"a": echo_backend()}) as world:
        session = await world.make_session()
        first, second = (session.suspend, session.aclose) if suspend_first else (session.aclose, session.suspend)
        with trio.CancelScope() as at_once:
            at_once.cancel()
            await first()
        await second()
        world.leaves_rows = world.leaves_sessions = suspend_first
        assert int(suspend_first) == len(await world.storage.rows())
        assert int(suspend_first) == len(world["a"].sessions)


# From inside


async def test_closing_from_inside_a_call_does_not_wait_for_it(autojump_clock: MockClock) -> None:
    """`aclose` in a progress callback requests the close and returns at once; the call still gets its answer."""

    async def work(arguments: object, context: object) -> str:
        await context.progress(1)  # type: ignore[attr-defined]
        await trio.sleep(2)
        return "done"

    backend = ScriptedBackend(answers="sse")
    backend.add_tool("work", work)
    seen: list[tuple[float, SessionState]] = []

    async def close_it(progress: float, total: float | None, message: str | None) -> None:
        await session.aclose()
        seen.append((trio.current_time(), session.state))

    async with open_world({"a": backend}) as world:
        session = await world.make_session()
        result = await session.call_tool("a_work", on_progress=close_it)
        assert "done" == result.content[0]["text"]
        assert 2.0 == trio.current_time()
        await session.aclose()
    assert [(0.0, SessionState.DRAINING)] == seen


async def test_closing_from_a_task_that_a_call_started(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """A grandchild of a call does not wait for the close while the call runs; after the call it waits as any closer."""
    returned: list[tuple[str, float]] = []

    async def close_after(seconds: float, name: str) -> None:
        await trio.sleep(seconds)
        await session.aclose()
        returned.append((name, trio.current_time()))

    async def spawn(progress: float, total: float | None, message: str | None) -> None:
        nursery.start_soon(close_after, 1, "during")
        nursery.start_soon(close_after, 3, "afterwards")

    async def work(arguments: object, context: object) -> str:
        await context.progress(1)  # type: ignore[attr-defined]
        await trio.sleep(2)
        return "done"

    backend = slow_backend(6, "legacy", "sse")
    backend.add_tool("work", work)
    async with open_world({"a": backend}) as world:
        session = await world.make_session()
        nursery.start_soon(Caller(session))
        await session.call_tool("a_work", on_progress=spawn)
        await trio.sleep(5)
        await wait_all_tasks_blocked()
    assert [("during", 1.0), ("afterwards", 6.0)] == returned


# Goodbyes


async def test_every_backend_gets_its_goodbye_though_others_hang(autojump_clock: MockClock) -> None:
    """Every DELETE is sent, in parallel; the close ends within `teardown_timeout`."""
    backends = {name: echo_backend() for name in "abcdef"}
    backends["b"].fail("DELETE", Hang())
    backends["c"].fail("DELETE", Status(500))
    backends["d"].fail("DELETE", Delay(1))
    backends["e"].fail("DELETE", Status(405))
    async with open_world(backends) as world:
        world.leaves_sessions = True
        async with world.open_session():
            pass
        assert 2.0 == trio.current_time()
        assert [] == await world.storage.rows()
        assert [1] * 6 == [len(backend.received("DELETE")) for backend in backends.values()]
        assert {0.0} == {backend.received("DELETE")[0].received_at for backend in backends.values()}
        assert [1, 0, 0, 1, 0, 1] == [len(backend.deleted_sessions) for backend in backends.values()]


@pytest.mark.parametrize("shielded", [False, True])
@pytest.mark.parametrize("stuck", [False, True])
async def test_a_close_takes_no_longer_than_drain_and_teardown(
    stuck: bool, shielded: bool, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Every backend and the storage hang, and a caller is shielded: the bound still holds."""
    backends = {name: slow_backend(60) for name in "abc"}
    storage = ScriptedStorage()
    limits = FactorySettings(drain_timeout=3, teardown_timeout=2, storage_timeout=50)

    async def shielded_call() -> None:
        with trio.CancelScope(shield=True), pytest.raises(SessionClosed):
            await session.call_tool("a_slow", on_progress=None)

    async with open_world(backends, settings=limits, storage=storage) as world:
        world.leaves_rows = world.leaves_sessions = True
        async with world.open_session() as session:
            if stuck:
                nursery.start_soon(shielded_call if shielded else Caller(session))
                nursery.start_soon(Caller(session, "b_slow"))
                await wait_all_tasks_blocked()
            for backend in backends.values():
                backend.fail("notifications/cancelled", Hang())
                backend.fail("DELETE", Hang())
            storage.before["delete"] = trio.sleep_forever
        assert (5.0 if stuck else 2.0) == trio.current_time()
        assert SessionState.CLOSED is state_of(session)
        assert [] == library_tasks()


@BOTH_ERAS
@pytest.mark.parametrize("leaving", ["aclose", "suspend"])
async def test_a_handler_that_shields_itself_does_not_hold_the_close_up(
    era: str, leaving: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The session is CLOSED at the latest a second after `teardown_timeout`, and its id is free. The handler goes on:
    in the handshake era the end of the factory waits for it, and a warning says so; in the stateless era its call does.
    """
    ended = trio.Event()

    async def shielded(request: ServerRequest) -> JSON:
        with trio.CancelScope(shield=True):
            await trio.sleep(5000)
        ended.set()
        return {"action": "accept", "content": {}}

    async def ask_user(arguments: JSON, context: CallContext) -> str:
        return str((await context.elicit("?"))["action"])

    async def ask(session: Session) -> None:
        with pytest.raises(SessionClosed):
            await session.call_tool("a_ask")

    backend = echo_backend(era, "sse")
    backend.add_tool("ask", ask_user)
    handlers = ClientHandlers(elicitation=shielded)
    settings = FactorySettings(drain_timeout=3, teardown_timeout=2)
    async with (
        open_world({"a": backend}, settings=settings, handlers=handlers) as world,
        trio.open_nursery() as callers,
    ):
        world.leaves_sessions = leaving == "suspend"
        session = await world.make_session()
        callers.start_soon(ask, session)
        await wait_all_tasks_blocked()
        await getattr(session, leaving)()
        closed_at = trio.current_time()
        assert (3 + 2 + 1 if era == "legacy" else 3 + 2 / 2) == closed_at
        assert (era == "legacy") is ("a task of it that shields itself from cancellation goes on" in caplog.text)
        assert SessionState.CLOSED is state_of(session)
        with pytest.raises(SessionClosed):
            await session.call_tool("a_echo")
        if leaving == "suspend":
            again = await world.restore_session(session.id)
            assert SessionState.OPEN is state_of(again)
            await again.aclose()
        assert closed_at == trio.current_time()
        assert not ended.is_set()
    assert ended.is_set()


async def test_a_shielded_caller_does_not_hold_the_close_up(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Its clean-up is shielded and long: goodbyes are said without it, within the same bound."""
    limits = FactorySettings(drain_timeout=3, teardown_timeout=2)
    backends = {name: slow_backend(60, "legacy", "sse") for name in "ab"}

    async def chat(arguments: object, context: object) -> str:
        await context.progress(1)  # type: ignore[attr-defined]
        await trio.sleep(60)
        return "done"

    backends["a"].add_tool("chat", chat)

    async def linger(progress: float, total: float | None, message: str | None) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(30)

    async def stubborn_call() -> None:
        with pytest.raises(SessionClosed):
            await session.call_tool("a_chat", on_progress=linger)

    async with open_world(backends, settings=limits) as world:
        world.leaves_sessions = True
        async with trio.open_nursery() as stubborn:
            session = await world.make_session()
            stubborn.start_soon(stubborn_call)
            await wait_all_tasks_blocked()
            backends["a"].fail("DELETE", Hang())
            await session.aclose()
            assert 5.0 == trio.current_time()
            assert (SessionState.CLOSED, 0) == (session.state, session.in_flight)
            assert 1 == len(backends["b"].deleted_sessions)


async def test_closing_is_quick_when_nothing_is_in_the_way(autojump_clock: MockClock) -> None:
    """No calls, healthy backends: no time at all."""
    async with open_world({name: echo_backend() for name in "abc"}) as world:
        async with world.open_session():
            pass
        assert 0.0 == trio.current_time()


async def raise_value_error() -> None:
    raise ValueError("secret")


async def crash_in_a_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raise_value_error)
        nursery.start_soon(trio.sleep_forever)


@pytest.mark.parametrize("crash", [raise_value_error, crash_in_a_nursery])
async def test_a_close_raises_for_no_backend(
    crash: Callable[[], Awaitable[None]], autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that raises in its goodbye is a warning; other goodbyes are still said."""
    connector = PlainConnector(on_close={"b0": crash})
    async with open_session_factory(connector=connector) as factory:
        session = await factory.make_session(plain_backends(2))
        await session.aclose()
    assert [[True], [True]] == [client.closed for client in connector.clients.values()]
    (warning,) = caplog.messages
    assert warning.endswith("backend 'b0': goodbye failed: ValueError")


@pytest.mark.parametrize("terminate", [True, False])
async def test_a_close_raises_for_no_storage(
    terminate: bool, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The row stays until its TTL ends it; a warning says why."""
    storage = ScriptedStorage()
    connector = PlainConnector(on_connect={"b0": partial(trio.sleep, 2)})
    limits = FactorySettings(session_init_timeout=1)
    async with open_session_factory(storage=storage, connector=connector, settings=limits) as factory:
        session = await factory.make_session(plain_backends(1))
        storage.before["delete"] = storage.before["replace"] = raise_value_error
        await trio.sleep(2)  # a change that the row does not get
        caplog.clear()
        await (session.aclose() if terminate else session.suspend())
        assert SessionState.CLOSED is state_of(session)
    (warning,) = caplog.messages
    step = "delete" if terminate else "update"
    assert warning.endswith(f"the storage failed to {step} the session: ValueError")


async def test_a_close_cancels_attempts_that_still_run(autojump_clock: MockClock) -> None:
    """A close does not wait for a late backend; a backend session whose id was just read gets its DELETE."""
    backends = {"a": echo_backend(), "late": echo_backend(), "later": echo_backend()}
    backends["late"].fail("tools/list", Hang())
    backends["later"].fail("initialize", Hang())
    limits = FactorySettings(session_init_timeout=1)
    async with open_world(backends, settings=limits) as world:
        async with world.open_session() as session:
            assert 1 == len(backends["late"].sessions)
        assert 1.0 == trio.current_time()
        assert ["was still connecting when the session closed"] * 2 == [f.detail for f in session.failures]
        assert 1 == len(backends["late"].deleted_sessions)


# Leaving by itself


async def test_a_drain_begins_with_the_end_of_attempts(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """What still connects is given up at once, and not when the calls have ended; a call in flight goes on."""
    hanging = echo_backend()
    hanging.fail("initialize", Hang())
    async with open_world(
        {"a": slow_backend(4), "b": hanging}, settings=FactorySettings(session_init_timeout=1)
    ) as world:
        async with world.open_session() as session:
            caller = Caller(session)
            nursery.start_soon(caller)
            await wait_all_tasks_blocked()
            assert not session.failures[0].detail.startswith("was")
            nursery.start_soon(session.aclose)
            await wait_all_tasks_blocked()
            assert (SessionState.DRAINING, 1) == (session.state, session.in_flight)
            assert ["was still connecting when the session closed"] == [f.detail for f in session.failures]
        assert ["answered"] == [outcome for outcome, _ in caller.outcomes]


async def test_an_idle_session_terminates_itself(autojump_clock: MockClock) -> None:
    """`idle_timeout` after its last call has ended, and not while a call runs."""
    limits = FactorySettings(idle_timeout=10)
    async with open_world({"a": slow_backend(25)}, settings=limits) as world:
        session = await world.make_session()
        await trio.sleep(9)
        await session.call_tool("a_echo")
        await trio.sleep(9)
        await session.call_tool("a_slow")
        assert 43.0 == trio.current_time()
        await trio.sleep(9.9)
        assert SessionState.OPEN is state_of(session)
        await trio.sleep(0.2)
        assert SessionState.CLOSED is state_of(session)
        assert [] == await world.storage.rows()


async def test_a_failed_call_is_a_call(autojump_clock: MockClock) -> None:
    """The idle time begins when a call ends, however it ends."""
    limits = FactorySettings(idle_timeout=10)
    async with open_world({"a": slow_backend(60)}, settings=limits) as world:
        session = await world.make_session()
        with trio.move_on_after(15):
            await session.call_tool("a_slow")
        await trio.sleep(9.9)
        assert SessionState.OPEN is state_of(session)
        await trio.sleep(0.2)
        assert SessionState.CLOSED is state_of(session)


async def test_a_session_without_idle_timeout_stays(autojump_clock: MockClock) -> None:
    """`math.inf`: never idle."""
    async with open_world({"a": echo_backend()}, settings=FactorySettings(idle_timeout=math.inf)) as world:
        async with world.open_session() as session:
            await trio.sleep(80_000)
            assert SessionState.OPEN is state_of(session)


async def test_leaving_async_with_closes_the_session(autojump_clock: MockClock) -> None:
    """`async with` over a session of `make_session` closes the session at the end of the block, and type-checks."""

    async def close_behind(session: Session) -> None:
        async with session as same:
            assert session is same

    async with open_world({"a": echo_backend()}) as world:
        session = await world.make_session()
        await close_behind(session)
        with pytest.raises(SessionClosed):
            await session.call_tool("a_echo")


@pytest.mark.parametrize("moment", range(12))
async def test_a_connection_that_breaks_at_the_end_of_the_drain_is_closed_once(
    autojump_clock: MockClock, moment: int
) -> None:
    """The event that ends the last call may crash its connection, too: the client is still closed, exactly once."""
    broken = trio.Event()

    async def crash() -> None:
        await trio.sleep(3)
        broken.set()
        for _ in range(moment):
            await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    connector = PlainConnector(services={"b0": crash}, on_request={"b0": broken.wait})
    async with open_session_factory(connector=connector) as factory, trio.open_nursery() as nursery:
        session = await factory.make_session(plain_backends(1))
        nursery.start_soon(session.call_tool, "b0_echo")
        await wait_all_tasks_blocked()
        await session.aclose()
    assert 1 == len(connector.clients["b0"].closed)


async def test_a_connection_that_closes_itself_keeps_to_the_teardown(autojump_clock: MockClock) -> None:
    """A connection's own task may begin its goodbye before the session's teardown does: `teardown_timeout` bounds both,
    even after a shielded caller has used up half of that time.
    """

    async def hold_on() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(30)

    backends = plain_backends(8)  # several, since Trio starts tasks in any order: either side may be first
    connector = PlainConnector(on_close={each.id: trio.sleep_forever for each in backends}, on_request={"b0": hold_on})
    limits = FactorySettings(drain_timeout=0, teardown_timeout=2)
    async with open_session_factory(connector=connector, settings=limits) as factory, trio.open_nursery() as nursery:
        session = await factory.make_session(backends)
        nursery.start_soon(session.call_tool, "b0_echo")
        await wait_all_tasks_blocked()
        began_at = trio.current_time()
        await session.aclose()
        assert 2.0 == trio.current_time() - began_at
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("moment", range(12))
async def test_a_call_cut_off_while_its_connection_breaks_has_one_outcome(
    autojump_clock: MockClock, moment: int
) -> None:
    """SessionClosed or BackendUnavailable: the connection over which the cancel would be sent is gone, too."""
    backend = slow_backend()
    backend.transport = "sse"
    async with open_world({"a": backend}) as world, trio.open_nursery() as nursery:
        session = await world.make_session()

        async def call() -> None:
            with pytest.raises((SessionClosed, BackendUnavailable)):
                await session.call_tool("a_slow")

        async def crash() -> None:
            await trio.sleep(1.0)
            for _ in range(moment):
                await trio.lowlevel.checkpoint()
            backend.crash()

        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        nursery.start_soon(crash)
        await session.aclose(drain_timeout=1.0)
