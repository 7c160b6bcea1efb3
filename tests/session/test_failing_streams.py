"""A backend that is away shows with the stream for changes, too, before any call has failed to reach it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import attrs
import pytest
import trio
from support.harness import echo_backend, open_world
from support.plain_connector import PlainClient, PlainConnector, plain_backends
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    Backend,
    BackendError,
    BackendState,
    BackendUnavailable,
    FactorySettings,
    FailureReason,
    Session,
    open_session_factory,
)
from trio_vmcp._client.listening import HELD_LONG, MAX_SILENCE
from trio_vmcp._session.breaker import FAILURES_TO_OPEN
from trio_vmcp._session.connecting import Events
from trio_vmcp.testing import CONNECT, Disconnect, Exchange, Hang, Refuse, ScriptedBackend, Status
from trio_vmcp.testing.faults import Cut, Fault, Step, WireFault

AWAKE = FactorySettings(idle_timeout=float("inf"))
QUARTER = 900.0  # s
LONGEST = 1.2 * AWAKE.reconnect_max_delay + HELD_LONG + 1  # s, until a stream is open again and of use
BUSY = Status(503, b"no backend", {"retry-after": "1"})  # without a delay, the session might be lost
Held = Literal["GET", "subscriptions/listen"]
EVERY_HELD_STREAM = pytest.mark.parametrize("held", ["GET", "subscriptions/listen"])


@attrs.frozen
class CutBeforeHead(WireFault):
    """The connection ends before the response has begun."""

    seconds: float

    def steps(self, sent: int, data: bytes) -> Iterator[Step]:
        yield self.seconds
        yield Cut.EOF


def holding(held: Held, **more: Any) -> ScriptedBackend:
    return echo_backend("modern" if held == "subscriptions/listen" else "legacy", "sse", listens=True, **more)


def streams(backend: ScriptedBackend, held: Held) -> list[Exchange]:
    return backend.received(held)


def lose_stream(backend: ScriptedBackend, held: Held, matches: str, fault: Fault) -> None:
    """The stream ends, and this happens to each attempt to open it again."""
    if matches == CONNECT:
        backend.fail(held, Disconnect(0), times=1)  # the connection that is kept alive
    backend.fail(held if matches == "stream" else matches, fault)
    backend.end_streams()


async def never_failing(session: Session, seconds: float) -> None:
    for _ in range(round(seconds)):
        assert session.backends["a"].failing_since is None
        await trio.sleep(1)


EVERY_WAY_TO_BE_AWAY = pytest.mark.parametrize(
    ("matches", "fault", "said", "reason"),
    [
        (CONNECT, Refuse(), "could not be reached", FailureReason.UNREACHABLE),
        ("stream", Disconnect(0), "closed the connection", FailureReason.UNREACHABLE),
        ("stream", BUSY, "HTTP 503", FailureReason.REJECTED),
    ],
    ids=["refused", "cut", "gateway"],
)


@EVERY_HELD_STREAM
@EVERY_WAY_TO_BE_AWAY
async def test_a_dead_backend_shows_with_its_stream(
    held: Held, matches: str, fault: Fault, said: str, reason: FailureReason, autojump_clock: MockClock
) -> None:
    """Why, and since when, until the stream is open again. It opens no circuit, since calls may go another way: they
    are sent, and their answer ends that, too.
    """
    backend = holding(held)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        await trio.sleep(10)
        assert session.backends["a"].failing_since is None
        lose_stream(backend, held, matches, fault)
        await trio.sleep(5)
        since = session.backends["a"].failing_since
        assert since is not None
        await trio.sleep(60)
        status = session.backends["a"]
        assert (BackendState.READY, since, 0) == (status.state, status.failing_since, status.calls)
        assert status.last_failure is not None
        assert (reason, True) == (status.last_failure.reason, said in status.last_failure.detail)
        backend.heal()
        await trio.sleep(LONGEST)
        assert (None, status.last_failure) == (session.backends["a"].failing_since, session.backends["a"].last_failure)
        lose_stream(backend, held, matches, fault)
        await trio.sleep(5)
        assert session.backends["a"].failing_since not in (None, since)
        backend.heal()
        await session.call_tool("a_echo")
        assert session.backends["a"].failing_since is None


@EVERY_HELD_STREAM
@EVERY_WAY_TO_BE_AWAY
@pytest.mark.parametrize("then", [None, Hang(), CutBeforeHead(20.0)], ids=["for hours", "then hang", "then cut late"])
async def test_a_backend_that_shows_is_listened_to_again(
    held: Held,
    matches: str,
    fault: Fault,
    said: str,
    reason: FailureReason,
    then: Fault | None,
    autojump_clock: MockClock,
) -> None:
    """However long it is away, and whatever its stream has met since: else an idle session would show it as failing
    long after it is back. It is asked at the slowest pace.
    """
    backend = holding(held)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        await trio.sleep(10)
        lose_stream(backend, held, matches, fault)
        await trio.sleep(200)
        since = session.backends["a"].failing_since
        assert since is not None
        if then is not None:
            backend.heal()
            backend.fail(held, then)
        asked = len(streams(backend, held))
        await trio.sleep(4 * QUARTER)
        assert since == session.backends["a"].failing_since
        assert len(streams(backend, held)) - asked <= 4 * QUARTER / (0.8 * AWAKE.reconnect_max_delay) + 1
        backend.heal()
        await trio.sleep(MAX_SILENCE + LONGEST)
        status = session.backends["a"]
        assert status.failing_since is None  # until a stream was open


def elsewhere(request_id: int) -> Fault:
    return Status(302, headers={"location": "http://elsewhere.test/"})


def ending_at_once(request_id: int) -> Fault:
    body = {"jsonrpc": "2.0", "id": request_id, "result": {"resultType": "complete"}}
    return Status(200, json.dumps(body).encode(), {"content-type": "application/json"})


def acknowledging_nothing(request_id: int) -> Fault:
    params = {"notifications": {}, "_meta": {"io.modelcontextprotocol/subscriptionId": request_id}}
    event = {"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": params}
    return Status(200, b"data: %s\n\n" % json.dumps(event).encode(), {"content-type": "text/event-stream"})


@pytest.mark.parametrize(
    ("held", "answer"),
    [
        ("GET", elsewhere),
        ("subscriptions/listen", elsewhere),
        ("subscriptions/listen", ending_at_once),
        ("subscriptions/listen", acknowledging_nothing),
    ],
)
async def test_a_backend_that_takes_its_stream_away_has_answered(
    held: Held, answer: Callable[[int], Fault], autojump_clock: MockClock
) -> None:
    """It is not failing any more, and its stream is not asked for without an end."""
    backend = holding(held)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        await trio.sleep(10)
        lose_stream(backend, held, "stream", Disconnect(0))
        await trio.sleep(5)
        assert session.backends["a"].failing_since is not None
        backend.heal()
        (*_, last) = streams(backend, held)
        rule = backend.fail(held, answer(int(last.request_id or 0) + 1))
        await trio.sleep(5)
        status = session.backends["a"]
        assert (1, None) == (rule.struck, status.failing_since)
        await trio.sleep(QUARTER)
        asked = len(streams(backend, held))
        await trio.sleep(QUARTER)
        assert asked == len(streams(backend, held))


@EVERY_HELD_STREAM
async def test_a_backend_that_was_started_again_is_as_new(held: Held, autojump_clock: MockClock) -> None:
    """The stream finds it again without a call, in another session of its own if it has sessions."""
    backend = holding(held)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        await trio.sleep(10)
        backend.crash()
        await trio.sleep(120)
        assert session.backends["a"].failing_since is not None
        backend.restart()
        await trio.sleep(LONGEST)
        status = session.backends["a"]
        assert (BackendState.READY, None) == (status.state, status.failing_since)


@EVERY_HELD_STREAM
async def test_calls_that_fail_count_as_before(held: Held, autojump_clock: MockClock) -> None:
    """However often the stream has failed: the circuit opens with the fifth call."""
    backend = holding(held)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        await trio.sleep(10)
        lose_stream(backend, held, "stream", Status(503))
        await trio.sleep(300)
        backend.fail("tools/call", BUSY)
        since = session.backends["a"].failing_since
        assert since is not None
        for count in range(1, FAILURES_TO_OPEN):
            with pytest.raises(BackendError, match="HTTP 503"):
                await session.call_tool("a_echo")
            status = session.backends["a"]
            assert (BackendState.READY, since, count) == (status.state, status.failing_since, status.errors)
        with pytest.raises(BackendError, match="HTTP 503"):
            await session.call_tool("a_echo")
        assert BackendState.DEGRADED is session.backends["a"].state


@EVERY_HELD_STREAM
@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_stream_that_alone_is_refused_shows_once(held: Held, status: int, autojump_clock: MockClock) -> None:
    """Calls are answered while a gateway refuses the stream: then that is about the stream. Where nothing can be
    reached, the stream still shows it.
    """
    backend = holding(held)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        await trio.sleep(10)
        lose_stream(backend, held, "stream", Status(status))
        await trio.sleep(5)
        assert session.backends["a"].failing_since is not None
        await session.call_tool("a_echo")
        await never_failing(session, 300)
        backend.crash()
        await trio.sleep(LONGEST)
        assert session.backends["a"].failing_since is not None
        backend.heal()
        backend.restart()
        await trio.sleep(LONGEST)
        assert session.backends["a"].failing_since is None


@EVERY_HELD_STREAM
@pytest.mark.parametrize("status", [400, 401, 404, 405, 406, 409, 429, 500, 501])
async def test_a_backend_without_a_stream_is_not_failing(held: Held, status: int, autojump_clock: MockClock) -> None:
    """It has answered, be it that it has no stream any more."""
    backend = holding(held)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        await trio.sleep(10)
        lose_stream(backend, held, "stream", Status(status))
        await never_failing(session, 200)


@EVERY_HELD_STREAM
@pytest.mark.parametrize("fault", [Status(405), Status(503), Disconnect(0), Hang()], ids=["405", "503", "cut", "hang"])
async def test_a_stream_that_never_was_tells_nothing(held: Held, fault: Fault, autojump_clock: MockClock) -> None:
    """Some backends have none, and say so by all means."""
    backend = holding(held)
    backend.fail(held, fault)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        await never_failing(session, 400)
        assert streams(backend, held)


@EVERY_HELD_STREAM
@pytest.mark.parametrize("seconds", [1.0, 10.0, 29.0])
async def test_a_platform_that_cuts_streams_is_not_failing(
    held: Held, seconds: float, autojump_clock: MockClock
) -> None:
    """Serverless platforms end every response after some seconds."""
    backend = holding(held, stream_seconds=seconds)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        await never_failing(session, QUARTER)
        assert 10 <= len(streams(backend, held))


@EVERY_HELD_STREAM
async def test_a_platform_that_cuts_streams_before_they_begin_is_not_failing(
    held: Held, autojump_clock: MockClock
) -> None:
    """A response whose head waits for its first event is cut without one."""
    backend = holding(held)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        await trio.sleep(10)
        lose_stream(backend, held, "stream", CutBeforeHead(20.0))
        await never_failing(session, QUARTER)


@EVERY_HELD_STREAM
async def test_a_backend_that_takes_no_answer_for_a_stream_is_not_failing(
    held: Held, autojump_clock: MockClock
) -> None:
    """It was reached: a silence tells nothing."""
    backend = holding(held)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        await trio.sleep(10)
        lose_stream(backend, held, "stream", Hang())
        await never_failing(session, QUARTER)


class Listening(PlainConnector):
    """Keeps the sink of each of its clients."""

    sinks: ClassVar[list[Events]] = []

    async def __call__(self, backend: Backend, *, events: Any, **more: Any) -> PlainClient:
        self.sinks.append(events)
        return await super().__call__(backend, events=events, **more)


async def test_the_stream_of_a_connection_that_takes_no_more_calls_tells_nothing(autojump_clock: MockClock) -> None:
    """Calls on it may still run, and its stream may go on as long; nor does it tell of a connection that is closed."""
    seconds = 0.0

    async def request() -> None:
        await trio.sleep(seconds)

    connector = Listening(on_request={"b0": request})
    Listening.sinks.clear()
    lost = BackendUnavailable("b0", "no longer knows our session")
    async with open_session_factory(connector=connector) as factory:
        async with factory.open_session(plain_backends(1)) as session, trio.open_nursery() as nursery:
            (before,) = connector.sinks
            seconds = 60.0
            nursery.start_soon(session.call_tool, "b0_echo")
            await wait_all_tasks_blocked()
            seconds = 0.0
            before.session_lost(lost)
            await trio.sleep(10)
            _, now = connector.sinks
            before.stream_reached(lost)
            assert session.backends["b0"].failing_since is None
            now.stream_reached(lost)
            assert session.backends["b0"].failing_since is not None
            before.stream_reached(None)
            assert session.backends["b0"].failing_since is not None
            now.stream_reached(None)
            assert session.backends["b0"].failing_since is None
    now.stream_reached(lost)
