"""The circuit breaker: after five failures in a row calls fail at once, and one call at a time tries the backend."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, cast

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.harness import NO_RETRIES, echo_backend, open_world, slow_backend
from support.plain_connector import PlainConnector, plain_backends
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    BackendError,
    BackendRecord,
    BackendRejected,
    BackendState,
    BackendTimeout,
    BackendUnavailable,
    FactorySettings,
    Session,
    open_session_factory,
)
from trio_vmcp._request_note import note_session_lost
from trio_vmcp._session.breaker import FAILURES_TO_OPEN, Breaker
from trio_vmcp._session.reconnects import Backoff
from trio_vmcp.testing import CONNECT, CallContext, Delay, Disconnect, Error, Hang, Refuse, ScriptedBackend, Status

Event = Literal["begin", "succeed", "fail", "leave", "stream fails", "stream opens"]
EVENTS: list[Event] = ["begin", "succeed", "fail", "leave", "stream fails", "stream opens"]


async def refuse() -> None:
    """Of a backend that is not reached."""
    await trio.lowlevel.checkpoint()
    raise BackendUnavailable("b0", "could not be reached")


@attrs.define
class Model:
    """The promises of a breaker, computed from a log of outcomes."""

    failures: int = 0
    opened: int = 0  # how often it opened since it was last closed
    until: float = 0.0  # no trial before this time, with the smallest jitter
    trial: object = None
    stream_fails: bool = False


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 5)), max_size=120))
def test_a_breaker_keeps_its_promises(script: list[tuple[Event, int]]) -> None:
    """It opens after five failures in a row, admits one trial at a time, doubles the delay, and closes with the first
    answer. Calls that were admitted before it opened do not move it, nor does a stream.
    """
    breaker, model, now = Breaker(Backoff(1.0, 8.0)), Model(), 0.0
    running: list[tuple[object, bool]] = []
    for event, seconds in script:
        now += seconds
        if event == "begin":
            wait = breaker.admit(now)
            if model.failures < FAILURES_TO_OPEN:
                assert wait is None
            elif model.trial is not None or now < model.until:
                assert wait is not None
                assert 0 <= wait <= 8.0
            else:
                assert wait is None
            if wait is None:
                call = object()
                running.append((call, breaker.is_open))
                if breaker.is_open:
                    model.trial = call
        elif event == "stream fails":
            tells = breaker.fail_stream(was_sent=False)
            assert tells is (model.failures < FAILURES_TO_OPEN)
            model.stream_fails = model.stream_fails or tells
        elif event == "stream opens":
            breaker.succeed_stream()
            model.stream_fails = False
        elif running:
            call, is_trial = running.pop(seconds % len(running))
            assert is_trial == (model.trial is call) or model.trial is None
            if event == "succeed":
                assert breaker.succeed() is (model.failures >= FAILURES_TO_OPEN)
                model = Model()
            elif event == "leave":
                if is_trial:
                    breaker.cancel_trial()
                    model.trial = None
            elif is_trial or model.failures < FAILURES_TO_OPEN:
                opened = breaker.fail(now, 0.5, was_trial=is_trial)
                model.failures += 1
                assert opened is (model.failures == FAILURES_TO_OPEN)
                if model.failures >= FAILURES_TO_OPEN:
                    model.until, model.trial = now + min(2.0**model.opened, 8.0), None
                    model.opened += 1
            else:
                assert not breaker.fail(now, 0.5, was_trial=False)
        assert breaker.is_open is (model.failures >= FAILURES_TO_OPEN)
        assert breaker.is_failing is (model.failures > 0 or model.stream_fails)


def test_a_breaker_step_by_step() -> None:
    """Each promise once, with its exact times."""
    breaker = Breaker(Backoff(1.0, 8.0))

    def fail(now: float, was_trial: bool = False) -> bool:
        return breaker.fail(now, 0.5, was_trial=was_trial)

    for delay in (1.0, 1.0):  # an answer in between resets the delay
        assert [False] * 4 + [True] == [fail(10.0) for _ in range(5)]
        assert delay == breaker.admit(10.0)
        assert not fail(10.25)  # of a call that was let through before
        assert 0.5 == breaker.admit(10.5)
        assert breaker.admit(11.0) is None
        assert 0.0 == breaker.admit(11.0)  # the trial is under way
        assert 0.0 == breaker.admit(12.0)
        breaker.cancel_trial()
        assert breaker.admit(12.0) is None
        assert not fail(13.0)
        assert 0.0 == breaker.admit(13.0)  # as before: that was not the trial
        assert not fail(13.0, was_trial=True)
        assert 2.0 == breaker.admit(13.0)
        assert breaker.admit(15.0) is None
        assert breaker.succeed()
        assert breaker.admit(15.0) is None
        assert breaker.admit(15.0) is None
        assert not breaker.succeed()


def test_an_answer_outweighs_a_stream_that_is_refused() -> None:
    """Until the stream opens, what it is answered is about the stream alone; that nothing takes its connection is not.
    Where calls have failed as well, their answer says nothing of the stream.
    """
    breaker = Breaker(Backoff(1.0, 8.0))
    assert breaker.fail_stream(was_sent=True)
    breaker.succeed()
    assert not breaker.fail_stream(was_sent=True)
    assert not breaker.is_failing
    assert breaker.fail_stream(was_sent=False)
    breaker.succeed_stream()
    assert breaker.fail_stream(was_sent=True)
    breaker.fail(0.0, 0.5, was_trial=False)
    breaker.succeed()
    assert breaker.fail_stream(was_sent=True)
    breaker.succeed()
    breaker.fail(0.0, 0.5, was_trial=False)
    breaker.succeed()
    assert not breaker.fail_stream(was_sent=True)


def test_an_answer_before_the_stream_fails_outweighs_nothing() -> None:
    """The backend may have gone since."""
    breaker = Breaker(Backoff(1.0, 8.0))
    breaker.succeed()
    assert breaker.fail_stream(was_sent=True)
    assert breaker.is_failing


def test_a_stream_that_fails_tells_nothing_of_a_backend_whose_circuit_is_open() -> None:
    """That backend is failing already."""
    breaker = Breaker(Backoff(1.0, 8.0))
    for _ in range(FAILURES_TO_OPEN):
        breaker.fail(0.0, 0.5, was_trial=False)
    assert not breaker.fail_stream(was_sent=False)


def test_a_breaker_that_nothing_would_close_never_opens() -> None:
    """With `reconnect_delay=math.inf` there would be no trial, so calls always go on."""
    breaker = Breaker(Backoff(math.inf, 60.0))
    for _ in range(20):
        assert not breaker.fail(0.0, 0.5, was_trial=False)
    assert breaker.admit(0.0) is None


# In a session


def state_of(session: Session, backend_id: str = "a") -> BackendState:
    """A function, since mypy takes a property that was read before for unchanged."""
    return session.backends[backend_id].state


async def fail_calls(session: Session, count: int, name: str = "a_echo", **options: Any) -> list[str]:
    """The errors of so many calls, one after another."""
    told: list[str] = []
    for _ in range(count):
        with pytest.raises(BackendError) as caught:
            await session.call_tool(name, **options)
        told.append(str(caught.value))
    return told


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_circuit_opens_and_closes(era: str, autojump_clock: MockClock) -> None:
    """After five failures to connect, calls fail at once and the state is DEGRADED; then one trial is answered, and
    calls work.
    """
    backend = echo_backend(era)
    async with open_world({"a": backend, "b": echo_backend(era)}) as world, world.open_session() as session:
        backend.fail("POST", Disconnect(0), times=1)  # the connection that is kept alive
        backend.fail(CONNECT, Refuse())
        await fail_calls(session, 4)
        assert BackendState.READY is state_of(session)
        await fail_calls(session, 1)
        assert BackendState.DEGRADED is state_of(session)
        last = session.backends["a"].last_failure
        assert last is not None
        assert "could not be reached" in last.detail
        assert 0.0 == last.elapsed
        attempts = world.network.connection_attempts
        (told,) = await fail_calls(session, 1)
        assert "backend 'a' failed 5 times in a row to be reached, and is tried again in 0." in told
        assert "(reconnect_delay, reconnect_max_delay)" in told
        assert attempts == world.network.connection_attempts
        await session.call_tool("b_echo")
        assert () == session.failures
        assert ["a_echo", "b_echo"] == [tool.name for tool in session.tools]
        await trio.sleep(0.7)
        (told,) = await fail_calls(session, 1)  # the trial
        assert "could not be reached" in told
        (told,) = await fail_calls(session, 1)
        assert "tried again in" in told
        backend.heal()
        await trio.sleep(1.3)
        await session.call_tool("a_echo")
        assert BackendState.READY is state_of(session)
        await fail_calls_to_reopen(backend, session)


async def fail_calls_to_reopen(backend: Any, session: Session) -> None:
    """An answer has reset the count: four more failures do not open the circuit."""
    backend.fail("POST", Disconnect(0), times=4)
    for told in await fail_calls(session, 4):
        assert "tried again" not in told
    await session.call_tool("a_echo")


async def test_one_trial_at_a_time(autojump_clock: MockClock) -> None:
    """100 calls arrive when the delay is over: one is admitted, the others fail at once."""
    asked: list[float] = []
    connector = PlainConnector()

    async def refuse() -> None:
        asked.append(trio.current_time())
        await trio.sleep(2)
        raise BackendUnavailable("b0", "could not be reached")

    connector.on_request["b0"] = refuse
    async with open_session_factory(connector=connector) as factory:
        async with factory.open_session(plain_backends(1)) as session:
            await fail_calls(session, 5, "b0_echo")
            await trio.sleep(1)
            asked.clear()
            began, ends = trio.current_time(), []

            async def one() -> None:
                await fail_calls(session, 1, "b0_echo")
                ends.append(trio.current_time() - began)

            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(one)
            assert 1 == len(asked)
            assert [0.0] * 99 + [2.0] == ends


async def test_failures_of_one_moment_are_one_outage(autojump_clock: MockClock) -> None:
    """Calls that were on their way when the circuit opened do not double its delay."""
    connector = PlainConnector()

    async def refuse() -> None:
        await trio.sleep(1)
        raise BackendUnavailable("b0", "could not be reached")

    connector.on_request["b0"] = refuse
    async with open_session_factory(connector=connector) as factory:
        async with factory.open_session(plain_backends(1)) as session:
            async with trio.open_nursery() as nursery:
                for _ in range(12):
                    nursery.start_soon(fail_calls, session, 1, "b0_echo")
            connector.clients["b0"].on_request = trio.lowlevel.checkpoint
            await trio.sleep(0.61)
            await session.call_tool("b0_echo")


async def test_after_a_cancelled_trial_the_next_call_is_the_trial(autojump_clock: MockClock) -> None:
    """A cancelled trial neither closes the circuit nor blocks it."""
    asked: list[int] = []
    connector = PlainConnector()

    async def hang() -> None:
        asked.append(1)
        await trio.sleep_forever()

    connector.on_request["b0"] = refuse
    async with open_session_factory(connector=connector) as factory:
        async with factory.open_session(plain_backends(1)) as session, trio.open_nursery() as nursery:
            client = connector.clients["b0"]
            client.on_request = hang
            nursery.start_soon(session.call_tool, "b0_echo")  # let through while it is closed
            await wait_all_tasks_blocked()
            client.on_request = refuse
            await fail_calls(session, 5, "b0_echo")
            client.on_request = hang
            await trio.sleep(1)
            for count in (2, 3):
                with trio.move_on_after(1):
                    await session.call_tool("b0_echo")
                assert count == len(asked)
            refused: list[str] = []
            with trio.move_on_after(1):
                async with trio.open_nursery() as trial:
                    trial.start_soon(session.call_tool, "b0_echo")
                    await wait_all_tasks_blocked()
                    nursery.cancel_scope.cancel()  # the early one leaves: that is not the trial
                    await wait_all_tasks_blocked()
                    refused += await fail_calls(session, 1, "b0_echo")
            assert [True] == ["tried again" in told for told in refused]


@pytest.mark.parametrize(
    "fault", [Status(500), Status(401), Error(-32000, "no"), Status(200, b"?"), Error(-32602, "bad")]
)
async def test_error_answers_do_not_open_the_circuit(fault: Any, autojump_clock: MockClock) -> None:
    """An error answer, of whatever kind and however often, proves that the backend is reachable."""
    backend = echo_backend("modern")
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("tools/call", fault)
        for told in await fail_calls(session, 20):
            assert "tried again" not in told
        assert BackendState.READY is state_of(session)


async def test_slow_answers_and_impatient_callers_open_nothing(autojump_clock: MockClock) -> None:
    """A call that was written was received; a call with a tiny timeout proves nothing."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        for told in await fail_calls(session, 20, timeout=0):
            assert "tried again" not in told
        backend.fail("tools/call", Hang())
        for told in await fail_calls(session, 20, timeout=5):
            assert "tried again" not in told
        backend.heal()
        backend.crash()  # and what is kept alive ends
        backend.fail(CONNECT, Hang())
        for told in await fail_calls(session, 20, timeout=0.5):
            assert "tried again" not in told
        backend.restart()


async def test_connections_that_hang_open_the_circuit(autojump_clock: MockClock) -> None:
    """Each call waits for its timeout until the circuit opens: from the sixth on, none does."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("POST", Disconnect(0), times=1)
        backend.fail(CONNECT, Hang())
        for _ in range(5):
            with pytest.raises((BackendTimeout, BackendUnavailable)):
                await session.call_tool("a_echo", timeout=30)
        began = trio.current_time()
        (told,) = await fail_calls(session, 1, timeout=30)
        assert "tried again in" in told
        assert began == trio.current_time()
        backend.heal()


async def test_a_second_without_a_connection_is_a_failure(autojump_clock: MockClock) -> None:
    """Exactly TELLING_TIMEOUT s."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.crash()
        backend.fail(CONNECT, Hang())
        await fail_calls(session, 5, timeout=1.0)
        (told,) = await fail_calls(session, 1, timeout=1.0)
        assert "tried again in" in told
        backend.restart()


async def test_an_error_answer_resets_the_count(autojump_clock: MockClock) -> None:
    """Four failures, one error answer, four failures: closed."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        for _ in range(3):
            backend.fail("tools/call", Disconnect(0), times=4)
            backend.fail("tools/call", Error(-32000, "no"), times=1)
            for told in await fail_calls(session, 5):
                assert "tried again" not in told
        await session.call_tool("a_echo")


async def test_an_old_answer_does_not_make_a_recovering_backend_ready(autojump_clock: MockClock) -> None:
    """An answer on the old connection closes the circuit, but the backend stays RECOVERING."""
    backend = slow_backend(5)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call_tool, "a_slow")
            await wait_all_tasks_blocked()
            backend.fail("tools/call", Disconnect(0), times=5)
            await fail_calls(session, 5)
            await trio.sleep(1)
            backend.fail("tools/call", Status(404), times=1)
            backend.fail("initialize", Delay(20), times=1)
            nursery.start_soon(session.call_tool, "a_echo")  # the trial
            await trio.sleep(5)
            assert BackendState.RECOVERING is state_of(session)
        assert BackendState.READY is state_of(session)


async def test_a_new_connection_closes_the_circuit(autojump_clock: MockClock) -> None:
    """After a reconnect calls wait neither for a trial nor for the lists."""
    connector = PlainConnector()
    crash = trio.Event()

    async def serve() -> None:
        await crash.wait()
        connector.services.clear()
        raise ZeroDivisionError

    connector.on_request["b0"], connector.services["b0"] = refuse, serve
    async with open_session_factory(connector=connector) as factory:
        async with factory.open_session(plain_backends(1)) as session:
            for _ in range(12):
                await fail_calls(session, 1, "b0_echo")
                await trio.sleep(10)
            await fail_calls(session, 1, "b0_echo")
            connector.on_request.clear()
            async with session.changes() as changes:
                crash.set()
                while state_of(session, "b0") is not BackendState.READY:
                    await changes.receive()
                await session.call_tool("b0_echo")


async def test_a_hung_trial_closes_nothing(autojump_clock: MockClock) -> None:
    """A trial that was written and not answered leaves the circuit open: the next call is the trial."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("POST", Disconnect(0), times=1)
        backend.fail(CONNECT, Refuse())
        await fail_calls(session, 5)
        backend.heal()
        backend.fail("tools/call", Hang())
        await trio.sleep(1)
        (told,) = await fail_calls(session, 1, timeout=9)
        assert "did not answer" in told
        assert BackendState.DEGRADED is state_of(session)
        backend.heal()
        await session.call_tool("a_echo")
        assert BackendState.READY is state_of(session)


async def test_calls_to_a_backend_that_is_missing_open_nothing(autojump_clock: MockClock) -> None:
    """Such calls carry the reason; once the backend is back, calls work at once."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.restart()
        backend.fail("initialize", Status(500))
        for told in await fail_calls(session, 20):
            assert "is not connected: it answered 'initialize' with HTTP 500" in told
        backend.heal()
        await trio.sleep(80)
        await session.call_tool("a_echo")


async def test_a_lost_session_is_an_answer(autojump_clock: MockClock) -> None:
    """A 404 on every call does not open the circuit."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("tools/call", Status(404))
        for told in await fail_calls(session, 12):
            assert "no longer knows our session" in told


async def test_a_trial_may_find_the_session_lost(autojump_clock: MockClock) -> None:
    """The backend was restarted meanwhile: the trial reconnects, and the circuit is closed."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("POST", Disconnect(0), times=1)
        backend.fail(CONNECT, Refuse())
        await fail_calls(session, 5)
        backend.heal()
        backend.restart()
        await trio.sleep(1)
        assert (await session.call_tool("a_echo")).backend_state_lost
        assert BackendState.READY is state_of(session)


async def test_without_retries_there_is_no_breaker(autojump_clock: MockClock) -> None:
    """`reconnect_delay=math.inf`: every call tries the backend."""
    backend = echo_backend()
    async with open_world({"a": backend}, settings=NO_RETRIES) as world, world.open_session() as session:
        backend.fail("POST", Disconnect(0), times=1)
        backend.fail(CONNECT, Refuse())
        for told in await fail_calls(session, 20):
            assert "tried again" not in told
        backend.heal()
        await session.call_tool("a_echo")


async def test_callers_own_errors_are_not_the_backends(autojump_clock: MockClock) -> None:
    """An error of a progress callback counts as a call, neither as an error nor as a failure."""

    async def steps(arguments: JSON, context: CallContext) -> str:
        await context.progress(1)
        return "done"

    async def raise_mine(*progress: Any) -> None:
        raise KeyError("mine")

    backend = echo_backend(answers="sse")
    backend.add_tool("steps", steps)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        for _ in range(7):
            with pytest.raises(KeyError, match="mine"):
                await session.call_tool("a_steps", on_progress=raise_mine)
        assert (7, 0) == (session.backends["a"].calls, session.backends["a"].errors)
        await session.call_tool("a_echo")


async def test_a_delay_has_its_limit(autojump_clock: MockClock) -> None:
    """However long an outage lasts: a trial every `reconnect_max_delay` s, ±20 %."""
    backend = echo_backend()
    limits = FactorySettings(reconnect_max_delay=4.0)
    async with open_world({"a": backend}, settings=limits) as world, world.open_session() as session:
        backend.fail("POST", Disconnect(0), times=1)
        rule = backend.fail(CONNECT, Refuse())
        for _ in range(1000):
            with pytest.raises((BackendUnavailable, BackendRejected)):
                await session.call_tool("a_echo")
            await trio.sleep(0.1)
        assert 100 / 4.8 <= rule.struck <= 10 + 100 / 3.2
        backend.heal()


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("body", [b"", b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"away"}}'])
@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_gateway_of_a_backend_that_is_away_opens_the_circuit(
    status: int, body: bytes, era: str, autojump_clock: MockClock
) -> None:
    """502 to 504 say that the backend was not reached. A trial waits as long as `Retry-After` asks."""
    backend = echo_backend(era)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("tools/call", Status(status, body, {"Retry-After": "100"}))
        for _ in range(5):
            with pytest.raises(BackendError) as caught:
                await session.call_tool("a_echo")
            assert 100 == caught.value.retry_after
        assert BackendState.DEGRADED is state_of(session)
        backend.heal()
        await trio.sleep(99)
        with pytest.raises(BackendUnavailable, match="in a row"):
            await session.call_tool("a_echo")
        await trio.sleep(2)
        await session.call_tool("a_echo")
        assert BackendState.READY is state_of(session)


# Without a call

BACK_WITHIN = 12.0  # s, with `reconnect_max_delay=10`: the longest delay of the circuit
SLOWEST = FactorySettings(reconnect_max_delay=10.0, idle_timeout=math.inf)


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_backend_that_is_back_is_ready_without_a_call(
    era: str, listens: bool, autojump_clock: MockClock
) -> None:
    """After the outage, however long, it is asked within `reconnect_max_delay`, 20 % more where a trial has just
    failed. A restarted backend has a new session then, and the next call does not meet the loss.
    """
    backend = echo_backend(era, "sse", listens=listens)
    async with open_world({"a": backend}, settings=SLOWEST) as world, world.open_session() as session:
        backend.crash()
        await fail_calls(session, 5)
        await trio.sleep(600)
        assert BackendState.DEGRADED is state_of(session)
        attempts = world.network.connection_attempts
        backend.restart()
        await trio.sleep(BACK_WITHIN + 1)
        assert BackendState.READY is state_of(session)
        assert world.network.connection_attempts <= attempts + 4
        calls = session.backends["a"].calls
        assert not (await session.call_tool("a_echo")).backend_state_lost
        assert calls + 1 == session.backends["a"].calls


@pytest.mark.parametrize("answer", [Error(-32601, "no such method"), Status(401), Status(418)], ids=str)
async def test_an_error_is_an_answer_to_a_trial_too(answer: Any, autojump_clock: MockClock) -> None:
    """The backend does not know `ping`, or does not take it from us: it was reached."""
    backend = echo_backend()
    backend.fail("ping", answer)
    async with open_world({"a": backend}, settings=SLOWEST) as world, world.open_session() as session:
        backend.fail("POST", Disconnect(0), times=1)
        refusing = backend.fail(CONNECT, Refuse())
        await fail_calls(session, 5)
        refusing.times = 0
        await trio.sleep(BACK_WITHIN)
        assert BackendState.READY is state_of(session)


@pytest.mark.parametrize("silence", [Hang(), Status(503), Status(502), Disconnect(0)], ids=str)
async def test_a_trial_without_an_answer_closes_nothing(silence: Any, autojump_clock: MockClock) -> None:
    """The trials go on at the slowest pace."""
    backend = echo_backend()
    asked = backend.fail("ping", silence)
    async with open_world({"a": backend}, settings=SLOWEST) as world, world.open_session() as session:
        backend.fail("POST", Disconnect(0), times=1)
        refusing = backend.fail(CONNECT, Refuse())
        await fail_calls(session, 5)
        refusing.times = 0
        await trio.sleep(300)
        assert BackendState.DEGRADED is state_of(session)
        assert 300 / 24 <= asked.struck <= 300 / 8
        backend.heal()
        await trio.sleep(2 * BACK_WITHIN)
        assert BackendState.READY is state_of(session)


async def test_a_trial_respects_retry_after(autojump_clock: MockClock) -> None:
    """A backend that asks for two minutes is left alone so long, whether it says so to a call or to a trial."""
    backend = echo_backend()
    async with open_world({"a": backend}, settings=SLOWEST) as world, world.open_session() as session:
        busy = backend.fail("tools/call", Status(502, headers={"retry-after": "120"}))
        await fail_calls(session, 5)
        assert 5 == busy.struck
        backend.fail("ping", Status(502, headers={"retry-after": "120"}), times=1)
        for asked, seconds in ((0, 119), (1, 105)):
            await trio.sleep(seconds)
            assert (BackendState.DEGRADED, asked) == (state_of(session), len(backend.received("ping")))
            await trio.sleep(15)
        assert (BackendState.READY, 2) == (state_of(session), len(backend.received("ping")))


async def test_a_client_that_crashes_in_a_trial_costs_nothing_else(autojump_clock: MockClock) -> None:
    """A connector of the user's may raise anything; the trials go on."""
    connector = PlainConnector()

    async def crash() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("x")

    async with open_session_factory(connector=connector, settings=SLOWEST) as factory:
        async with factory.open_session(plain_backends(1)) as session:
            client = connector.clients["b0"]
            client.on_request = refuse
            await fail_calls(session, 5, "b0_echo")
            client.on_request = crash
            await trio.sleep(100)
            assert BackendState.DEGRADED is state_of(session, "b0")
            client.on_request = trio.lowlevel.checkpoint
            await trio.sleep(2 * BACK_WITHIN)
            assert BackendState.READY is state_of(session, "b0")


@asynccontextmanager
async def open_away(backend: ScriptedBackend, max_delay: float, **options: Any) -> AsyncIterator[tuple[Session, Any]]:
    """A session that has just found its backend away, and the fault that says so. There is no chance: the first trial
    is due after half a second, and the task looks after 0.9 `max_delay`.
    """
    settings = FactorySettings(reconnect_max_delay=max_delay, idle_timeout=math.inf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "random", lambda: 0.5)
        async with open_world({"a": backend, **options}, settings=settings) as world, world.open_session() as session:
            backend.fail("POST", Disconnect(0), times=1)
            refusing = backend.fail(CONNECT, Refuse())
            await fail_calls(session, 5)
            yield session, refusing


def pinged_at(backend: ScriptedBackend) -> list[float]:
    return [exchange.received_at for exchange in backend.received("ping")]


async def test_trials_without_a_call_keep_to_the_circuit(autojump_clock: MockClock) -> None:
    """A trial that is not due yet is made when it is; the next one comes a whole pause later, however short the delays
    of the circuit are.
    """
    backend = echo_backend()
    async with open_away(backend, 100) as (session, refusing):
        await trio.sleep_until(53.8)
        await fail_calls(session, 1)  # a trial: the next one is due a second later
        refusing.times = 0
        backend.fail("ping", Status(502))
        await trio.sleep_until(110)
        assert pytest.approx([54.8, 54.8 + 54]) == pinged_at(backend)
        backend.heal()


async def test_a_trial_without_a_call_comes_after_that_of_a_call(autojump_clock: MockClock) -> None:
    """The call has no answer, which proves nothing: within a second the backend is asked."""
    backend = echo_backend()
    async with open_away(backend, 100) as (session, refusing):
        await trio.sleep_until(53.8)
        refusing.times = 0
        backend.fail("tools/call", Hang())
        await fail_calls(session, 1, timeout=3)
        assert [] == pinged_at(backend)
        await trio.sleep(2)
        assert BackendState.READY is state_of(session)
        assert pytest.approx([57]) == pinged_at(backend)


async def test_a_session_that_drains_asks_nothing(autojump_clock: MockClock) -> None:
    """It takes no more calls."""
    backend, other = echo_backend(), slow_backend(60)
    async with open_away(backend, 10, b=other) as (session, refusing), trio.open_nursery() as nursery:
        refusing.times = 0
        nursery.start_soon(session.call_tool, "b_slow")
        await wait_all_tasks_blocked()
        await session.aclose(drain_timeout=100)
        assert [] == pinged_at(backend)
        assert 60 == trio.current_time()


@pytest.mark.parametrize(
    ("fault", "is_believed"),
    [(Status(404), True), (Error(-32001, "Session not found"), True), (Error(-32001, "unwilling"), False)],
    ids=str,
)
async def test_a_trial_without_a_call_may_find_the_session_lost(
    fault: Any, is_believed: bool, autojump_clock: MockClock
) -> None:
    """A call that comes meanwhile waits for the new connection, as ever."""
    backend = echo_backend()
    async with open_away(backend, 10) as (session, refusing):
        refusing.times = 0
        backend.fail("ping", fault, times=1)
        backend.fail("initialize", Delay(3), times=1)
        await trio.sleep(9.1)
        assert (BackendState.RECOVERING if is_believed else BackendState.READY) is state_of(session)
        assert is_believed is (await session.call_tool("a_echo")).backend_state_lost
        assert BackendState.READY is state_of(session)
        assert (1 + is_believed, 1) == (len(backend.received("initialize")), len(backend.received("ping")))


@pytest.mark.parametrize(
    ("fault", "sessions"), [(Status(404), (2, 3)), (Error(-32001, "Session not found"), (2, 2))], ids=str
)
async def test_words_in_a_trial_are_believed_once_a_minute(
    fault: Any, sessions: tuple[int, ...], autojump_clock: MockClock
) -> None:
    """If they come again in the new session, the cause is something else. A status is always believed."""
    backend = echo_backend()
    async with open_away(backend, 10) as (session, refusing):
        backend.fail("ping", fault)
        for initialized in sessions:
            refusing.times = 0
            await trio.sleep(10)
            assert BackendState.READY is state_of(session)
            assert initialized == len(backend.received("initialize"))
            backend.fail("POST", Disconnect(0), times=1)
            refusing.times = math.inf
            await fail_calls(session, 5)
        refusing.times = 0


@pytest.mark.parametrize("era", ["legacy", "modern", None])
async def test_what_a_client_of_ones_own_is_asked(era: Any, autojump_clock: MockClock) -> None:
    """What changes nothing in its era; `ping` where it does not tell. It may raise anything, also where it says that
    its session is gone.
    """
    connector = PlainConnector()

    async def crash() -> None:
        await trio.lowlevel.checkpoint()
        note_session_lost()
        raise KeyError("x")

    async with open_session_factory(connector=connector, settings=SLOWEST) as factory:
        async with factory.open_session(plain_backends(1)) as session:
            client = connector.clients["b0"]
            client.on_request = refuse
            await fail_calls(session, 5, "b0_echo")
            client.on_request = crash
            client.record = cast("BackendRecord", None if era is None else attrs.evolve(client.record, era=era))
            client.methods.clear()
            await trio.sleep(BACK_WITHIN)
            assert BackendState.DEGRADED is state_of(session, "b0")
            assert {"server/discover" if era == "modern" else "ping"} == {*client.methods}
            client.on_request = trio.lowlevel.checkpoint
            await trio.sleep(2 * BACK_WITHIN)
            assert BackendState.READY is state_of(session, "b0")


async def test_a_list_that_is_read_closes_the_circuit(autojump_clock: MockClock) -> None:
    """The backend tells of a change on its stream, and answers the refetch: it was reached before a trial is due."""
    backend = echo_backend("legacy", "sse", listens=True)
    slow = FactorySettings(reconnect_delay=3000.0, reconnect_max_delay=3000.0, idle_timeout=math.inf)
    async with open_world({"a": backend}, settings=slow) as world, world.open_session() as session:
        await wait_all_tasks_blocked()
        backend.fail("POST", Disconnect(0), times=1)
        refusing = backend.fail(CONNECT, Refuse())
        await fail_calls(session, 5)
        refusing.times = 0
        backend.notify("notifications/tools/list_changed")
        await trio.sleep(2)
        assert BackendState.READY is state_of(session)
        assert [] == backend.received("ping")
