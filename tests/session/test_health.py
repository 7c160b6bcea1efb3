"""`session.backends`: state, counters and latencies of each backend, from its calls and without a probe."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.harness import echo_backend, open_world, slow_backend
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import BackendError, BackendState, BackendStatus, FactorySettings, FailureReason, Latency
from trio_vmcp._session.breaker import FAILURES_TO_OPEN
from trio_vmcp._session.health import LATENCIES_KEPT, Health, percentiles
from trio_vmcp.testing import CONNECT, Delay, Disconnect, Error, Fault, Refuse, Status

seconds = st.floats(0, 1000, allow_nan=False)


@given(st.lists(seconds, min_size=1, max_size=300))
def test_percentiles_are_by_nearest_rank(latencies: list[float]) -> None:
    """The smallest value that so many per cent of all do not exceed."""
    found = percentiles(latencies)
    assert found is not None
    for percent, value in ((50, found.p50), (90, found.p90), (99, found.p99)):
        assert value in latencies
        assert sum(other <= value for other in latencies) * 100 >= percent * len(latencies)
        smaller = [other for other in latencies if other < value]
        assert len(smaller) * 100 < percent * len(latencies)


def test_no_calls_have_no_percentiles() -> None:
    """None, not 0."""
    assert percentiles([]) is None


@given(st.lists(st.none() | seconds, max_size=400))
def test_health_is_computed_from_the_noted_calls(events: list[float | None]) -> None:
    """Counters count all calls, percentiles the latest answers."""
    health = Health()
    answers: list[float] = []
    failed = 0
    for event in events:
        if event is None:
            health.failed()
            failed += 1
        else:
            health.answered(event)
            answers.append(event)
    assert (len(answers) + failed, failed) == (health.calls, health.errors)
    assert percentiles(answers[-LATENCIES_KEPT:]) == health.latency


# In a session


@pytest.mark.parametrize(("era", "version"), [("legacy", "2025-11-25"), ("modern", "2026-07-28")])
async def test_the_status_of_a_healthy_backend(era: str, version: str, autojump_clock: MockClock) -> None:
    """State, era, version, counts and latencies."""
    async with open_world({"a": echo_backend(era, latency=0.25)}) as world:
        began = datetime.now(UTC)
        async with world.open_session() as session:
            status = session.backends["a"]
            assert abs(status.since - began) < timedelta(minutes=1)
            assert status.since.utcoffset() == timedelta(0)
            expected = BackendStatus(
                backend_id="a",
                state=BackendState.READY,
                since=status.since,
                era=era,  # type: ignore[arg-type]  # parametrized: plain str
                protocol_version=version,
                last_failure=None,
                in_flight=0,
                calls=0,
                errors=0,
                latency=None,
            )
            assert expected == status
            await session.call_tool("a_echo")
            world["a"].fail("tools/call", Error(-32602, "bad"), times=2)
            for _ in range(2):
                with pytest.raises(BackendError):
                    await session.call_tool("a_echo")
            assert attrs.evolve(expected, calls=3, errors=2, latency=Latency(0.25, 0.25, 0.25)) == session.backends["a"]
            assert attrs.evolve(expected) == status  # a snapshot
            with pytest.raises(TypeError):
                session.backends["b"] = status  # type: ignore[index]  # that is the point


@pytest.mark.parametrize(
    ("matches", "fault", "said", "reason"),
    [
        (CONNECT, Refuse(), "could not be reached", FailureReason.UNREACHABLE),
        ("POST", Disconnect(0), "closed the connection", FailureReason.UNREACHABLE),
        ("POST", Status(503, b"no backend", {"retry-after": "1"}), "HTTP 503", FailureReason.REJECTED),
    ],
    ids=["refused", "cut", "gateway"],
)
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_dead_backend_shows_with_the_first_call(
    era: str, matches: str, fault: Fault, said: str, reason: FailureReason, autojump_clock: MockClock
) -> None:
    """Before the circuit opens: why, and since when. An answer, an error too, ends that; the latest failure stays."""
    backend = echo_backend(era)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        if matches == CONNECT:
            backend.fail("POST", Disconnect(0), times=1)  # the connection that is kept alive
        backend.fail(matches, fault)
        since, last = None, None
        for count in range(1, FAILURES_TO_OPEN + 2):
            with pytest.raises(BackendError):
                await session.call_tool("a_echo")
            status = session.backends["a"]
            assert status.failing_since is not None
            assert status.failing_since == (since or status.failing_since)
            since = status.failing_since
            assert status.since <= since <= datetime.now(UTC) or count >= FAILURES_TO_OPEN
            last = status.last_failure
            assert last is not None
            assert said in last.detail or count == 1  # of the connection that was open
            expected = BackendState.READY if count < FAILURES_TO_OPEN else BackendState.DEGRADED
            assert (expected, count) == (status.state, status.errors)
            assert reason is last.reason
        backend.heal()
        backend.fail("tools/call", Error(-32602, "bad"))
        await trio.sleep(100)
        with pytest.raises(BackendError):
            await session.call_tool("a_echo")
        status = session.backends["a"]
        assert (BackendState.READY, None, last) == (status.state, status.failing_since, status.last_failure)


async def test_running_and_cancelled_calls_are_counted(autojump_clock: MockClock) -> None:
    """A call counts once it has ended, however it ended; a cancelled call is no error."""
    async with open_world({"a": slow_backend(5)}) as world, world.open_session() as session:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(session.call_tool, "a_slow")
            await wait_all_tasks_blocked()
            assert (3, 0) == (session.backends["a"].in_flight, session.backends["a"].calls)
        with trio.move_on_after(1):
            await session.call_tool("a_slow")
        status = session.backends["a"]
        assert (0, 4, 0) == (status.in_flight, status.calls, status.errors)
        assert Latency(5.0, 5.0, 5.0) == status.latency


async def test_calls_that_are_refused_at_once_are_errors(autojump_clock: MockClock) -> None:
    """Calls to a missing backend, and calls that the breaker refuses, count as errors."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world:
        await (await world.make_session(session_id="one")).suspend()
        backend.fail("POST", Status(500))
        async with await world.restore_session("one") as session:
            for count in range(1, 4):
                with pytest.raises(BackendError, match="is not connected"):
                    await session.call_tool("a_echo")
                assert (count, count) == (session.backends["a"].calls, session.backends["a"].errors)
            assert session.backends["a"].latency is None
        world.leaves_sessions = True  # without a connection no DELETE was sent


async def test_a_backend_through_its_states(autojump_clock: MockClock) -> None:
    """Connecting, degraded, recovering, ready, removed; `last_failure` stays after a recovery."""
    backend = echo_backend()
    limits = FactorySettings(session_init_timeout=1)
    backend.fail(CONNECT, Delay(2), times=1)
    async with open_world({"a": backend}, settings=limits) as world, world.open_session() as session:
        seen = [session.backends["a"].state]
        assert (None, None) == (session.backends["a"].era, session.backends["a"].protocol_version)
        await trio.sleep(2)
        seen.append(session.backends["a"].state)
        backend.restart()
        backend.fail("initialize", Delay(2), times=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call_tool, "a_echo")
            await trio.sleep(1)
            seen.append(session.backends["a"].state)
            assert "legacy" == session.backends["a"].era
            last = session.backends["a"].last_failure
            assert last is not None
            assert "no longer knows our session" in last.detail
        backend.restart()
        backend.fail("initialize", Status(503), times=1)
        with pytest.raises(BackendError):
            await session.call_tool("a_echo")
        seen.append(session.backends["a"].state)
        await trio.sleep(1)
        seen.append(session.backends["a"].state)
        last = session.backends["a"].last_failure
        assert last is not None
        assert FailureReason.REJECTED is last.reason
        await session.remove_backend("a")
        seen.append(session.backends["a"].state)
        assert (
            BackendState.CONNECTING,
            BackendState.READY,
            BackendState.RECOVERING,
            BackendState.DEGRADED,
            BackendState.READY,
            BackendState.REMOVED,
        ) == tuple(seen)


async def test_no_status_shows_a_secret(autojump_clock: MockClock) -> None:
    """Neither the backend session's id nor the url's."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        world["a"].restart()
        await session.call_tool("a_echo")
        shown = repr(session.backends)
        assert session.backend_sessions["a"] not in shown
        assert "scripted-session" not in shown
