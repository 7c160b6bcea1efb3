"""A backend restarts while no call runs: its held stream is refused, and the session recovers without a call."""

from __future__ import annotations

import itertools
import math
from typing import Any

import attrs
import pytest
import trio
from support.harness import NO_RETRIES, World, drained, echo_backend, open_world
from support.plain_connector import PlainClient, PlainConnector, plain_backends
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendState,
    BackendUnavailable,
    EventSink,
    FactorySettings,
    Session,
    SessionChange,
    ToolResult,
    open_session_factory,
)
from trio_vmcp.testing import CallContext, Delay, Error, Exchange, Fault, ScriptedBackend, Status

HOUR = 3600.0
SOON = 5.0  # s: enough for the stream's next GET, its refusal, and the handshake


def listening_backend(seconds: float = 60, **more: Any) -> ScriptedBackend:
    """Tools "echo" and "slow", and a held stream for changes."""

    async def slow(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(seconds)
        return "rested"

    backend = echo_backend(listens=True, **more)
    backend.add_tool("slow", slow)
    return backend


def lose_sessions_silently(backend: ScriptedBackend) -> None:
    """Restart a backend so that only a request on the held stream can notice."""
    backend.restart()
    backend.end_streams()


def initialized(backend: ScriptedBackend) -> int:
    return len(backend.received("initialize"))


def state_of(session: Session, backend_id: str = "a") -> BackendState:
    """A function, since mypy takes a property that was read before for unchanged."""
    return session.backends[backend_id].state


@attrs.define(eq=False)
class AfterTheFirst:
    """Matches every GET of a backend session but its first."""

    seen: set[str | None] = attrs.field(factory=set)

    def __call__(self, exchange: Exchange) -> bool:
        if exchange.verb != "GET":
            return False
        known = exchange.session_id in self.seen
        self.seen.add(exchange.session_id)
        return known


# What recovers


@pytest.mark.parametrize("crashes", [False, True])
async def test_an_idle_backend_that_restarted_is_connected_anew(autojump_clock: MockClock, crashes: bool) -> None:
    """One handshake without a call: a new id in the metadata, lists fetched again, and a held stream."""
    backend = listening_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        await trio.sleep(SOON)
        old = session.backend_sessions["a"]
        if crashes:
            backend.crash()
            await trio.sleep(2)
        backend.add_tool("new")
        lose_sessions_silently(backend)
        told = await drained(changes, SOON)
        assert SessionChange("backend", "a") == told[0]
        assert SessionChange("tools", "a") in told
        assert ["a_echo", "a_slow", "a_new"] == [tool.name for tool in session.tools]
        new = session.backend_sessions["a"]
        assert new != old
        assert (2, 1, BackendState.READY) == (initialized(backend), backend.listening, state_of(session))
        (row,) = await world.storage.rows()
        assert [new] == [record.session_id for record in row.backends]
        assert ((), 0) == (session.failures, backend.executed["echo"])
        assert not (await session.call_tool("a_echo")).backend_state_lost  # no call had run in the session that is lost
        assert [new] == [exchange.session_id for exchange in backend.received("tools/call")]


@pytest.mark.parametrize(
    "fault",
    [
        Status(404, b"<html>no route</html>", {"content-type": "text/html"}),
        Error(-32001, "Session not found", status=404),
        Error(-32000, "Bad Request: No valid session ID provided", status=400),
        Status(400, b"Invalid or missing session ID"),
        Error(-32022, "Unsupported protocol version", {"supported": ["2026-07-28"]}, status=400),
    ],
)
async def test_a_refused_stream_that_was_open_means_a_lost_session(fault: Fault, autojump_clock: MockClock) -> None:
    """404 in any form, 400 that names the session, and the answer of a server of the other era. The session may live
    all the same, so it gets its DELETE.
    """
    backend = listening_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await trio.sleep(SOON)
        old = session.backend_sessions["a"]
        backend.fail("GET", fault, times=1)
        backend.end_streams()
        await trio.sleep(SOON)
        assert (2, 1, [old]) == (initialized(backend), backend.listening, backend.deleted_sessions)
        failure = session.backends["a"].last_failure
        assert failure is not None
        assert "no longer knows our session (HTTP 40" in failure.detail
        assert old is not None
        assert old not in failure.detail


async def test_a_stream_is_first_repeated_without_its_event_id(autojump_clock: MockClock) -> None:
    """A resumed stream may be refused for its `Last-Event-ID`; refused without one, the session is lost."""
    backend = listening_backend(resumable=True)
    async with open_world({"a": backend}) as world, world.open_session():
        await trio.sleep(SOON)
        before = len(backend.received("GET"))
        lose_sessions_silently(backend)
        await trio.sleep(SOON)
        resumed, plain, anew = backend.received("GET")[before:]
        assert [True, False, False] == ["last-event-id" in get.headers for get in (resumed, plain, anew)]
        assert (2, 1) == (initialized(backend), backend.listening)


# What does not


@pytest.mark.parametrize(
    "fault",
    [*map(Status, (405, 406, 501)), Status(400, b"no such stream"), Error(-32602, "bad session name", status=400)],
)
async def test_other_refusals_are_about_the_stream(fault: Fault, autojump_clock: MockClock) -> None:
    """After any other refusal the session has no stream; the session stays, and so do its calls."""
    backend = listening_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await trio.sleep(SOON)
        backend.fail("GET", fault)
        backend.end_streams()
        await trio.sleep(HOUR / 4)
        assert not (await session.call_tool("a_echo")).is_error
        assert (1, 2) == (initialized(backend), len(backend.received("GET")))


@pytest.mark.parametrize("status", [400, 404, 405, 406])
async def test_a_stream_that_was_never_accepted_proves_nothing(status: int, autojump_clock: MockClock) -> None:
    """Some working servers answer GET with 404, and say "session" in every text."""
    backend = listening_backend()
    backend.fail("GET", Status(status, b"no session here"))
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await trio.sleep(HOUR / 4)
        assert not (await session.call_tool("a_echo")).is_error
        assert (1, 1) == (initialized(backend), len(backend.received("GET")))


async def test_a_backend_that_refuses_each_second_stream_is_reconnected_at_the_backoff(
    autojump_clock: MockClock,
) -> None:
    """It accepts each session's first stream, ends it, and answers 404 from then on, though its calls work. Over a
    virtual hour handshakes keep to the backoff, and no call fails.
    """
    backend = listening_backend(stream_seconds=0)
    backend.fail(AfterTheFirst(), Status(404))
    async with open_world({"a": backend}) as world, world.open_session() as session:
        for _ in range(60):
            await trio.sleep(HOUR / 60)
            assert not (await session.call_tool("a_echo")).is_error
        times = [exchange.received_at for exchange in backend.received("initialize")]
        assert 55 <= len(times) <= 90  # one a minute, ±20 %, and the first ones
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert all(gap >= 0.8 * min(0.5 * 2**number, 60) for number, gap in enumerate(gaps))


async def test_a_connection_that_lasted_is_replaced_at_once(autojump_clock: MockClock) -> None:
    """The backoff applies to connections that are lost soon after they were made."""
    backend = listening_backend()
    async with open_world({"a": backend}) as world, world.open_session():
        for _ in range(5):
            await trio.sleep(100)
            lose_sessions_silently(backend)
            began = trio.current_time()
            await trio.sleep(SOON)
            assert 0.61 >= backend.received("initialize")[-1].received_at - began  # the stream's first delay, +20 %
        assert 6 == initialized(backend)


async def test_a_connection_that_lasted_resets_the_backoff(autojump_clock: MockClock) -> None:
    """Earlier losses no longer count: the next loss is followed by the first delay."""
    backend = listening_backend(stream_seconds=0)
    rule = backend.fail(AfterTheFirst(), Status(404))
    async with open_world({"a": backend}) as world, world.open_session():
        await trio.sleep(HOUR / 8)
        backend.stream_seconds, rule.times = None, 0
        await trio.sleep(HOUR / 8)
        for _ in range(2):
            before = initialized(backend)
            lose_sessions_silently(backend)
            await trio.sleep(SOON)
            assert before + 1 == initialized(backend)


async def test_without_retries_a_lost_stream_reconnects_nothing(autojump_clock: MockClock) -> None:
    """With endless delays only calls reconnect."""
    backend = listening_backend()
    settings = FactorySettings(reconnect_delay=math.inf, reconnect_max_delay=math.inf)
    async with open_world({"a": backend}, settings=settings) as world, world.open_session() as session:
        await trio.sleep(SOON)
        lose_sessions_silently(backend)
        await trio.sleep(HOUR / 4)
        assert 1 == initialized(backend)
        assert (await session.call_tool("a_echo")).backend_state_lost


async def test_a_stored_session_lost_during_its_listing_is_replaced_once(autojump_clock: MockClock) -> None:
    """The held stream notices first; the session that the listing then makes is not replaced for that."""
    backend = listening_backend()
    backend.add_resource("memo://one")
    async with open_world({"a": backend}) as world, trio.open_nursery() as nursery:
        session = await world.make_session()
        await trio.sleep(SOON)
        await session.suspend()
        backend.fail("resources/list", Delay(SOON), times=1)

        async def forget_meanwhile() -> None:
            await trio.sleep(1)
            lose_sessions_silently(backend)

        nursery.start_soon(forget_meanwhile)
        async with await world.restore_session(session.id):
            await trio.sleep(HOUR / 60)
            assert (2, 1) == (initialized(backend), backend.listening)


# Beside calls


async def test_a_call_in_flight_is_not_torn_down(autojump_clock: MockClock) -> None:
    """The old connection stays open for its running call; later calls use the new one."""
    backend = listening_backend(seconds=30)
    answers: list[ToolResult] = []
    async with open_world({"a": backend}) as world, world.open_session() as session, trio.open_nursery() as nursery:

        async def call() -> None:
            answers.append(await session.call_tool("a_slow"))

        await trio.sleep(SOON)
        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        lose_sessions_silently(backend)
        await trio.sleep(SOON)
        assert (2, 1, []) == (initialized(backend), session.backends["a"].in_flight, answers)
        await session.call_tool("a_echo")
        await trio.sleep(30)
        assert ["rested"] == [answer.content[0]["text"] for answer in answers]
        assert (2, 1) == (initialized(backend), backend.executed["slow"])


@pytest.mark.parametrize("call_first", [False, True])
async def test_a_call_and_the_stream_share_one_recovery(autojump_clock: MockClock, call_first: bool) -> None:
    """The first refusal begins the recovery; the call waits for it and is sent afterwards."""
    backend = listening_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await trio.sleep(SOON)
        lose_sessions_silently(backend)
        backend.fail("initialize", Delay(10), times=1)
        await trio.sleep(0 if call_first else 2)
        assert call_first is (state_of(session) is BackendState.READY)
        assert not (await session.call_tool("a_echo")).is_error
        assert SOON + 10 <= trio.current_time() <= SOON + 11
        await trio.sleep(SOON)
        assert (2, 1, 1) == (initialized(backend), backend.listening, backend.executed["echo"])


async def test_a_failed_recovery_leaves_the_backend_retryable(autojump_clock: MockClock) -> None:
    """The backend is missing with the reason, `changes` reports it, and the backend joins at its next attempt."""
    backend = listening_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await trio.sleep(SOON)
        rule = backend.fail("initialize", Status(503))
        lose_sessions_silently(backend)
        await trio.sleep(SOON)
        assert ["a"] == [failure.backend_id for failure in session.failures]
        assert BackendState.DEGRADED is state_of(session)
        with pytest.raises(BackendUnavailable):
            await session.call_tool("a_echo")
        rule.times = 0
        await trio.sleep(HOUR / 30)
        assert ((), BackendState.READY, 1) == (session.failures, state_of(session), backend.listening)


# While opening and closing


async def hold_open(session: Session, name: str) -> None:
    """A call that a close waits for."""
    await session.call_tool(name)


async def test_a_draining_session_reconnects_nothing(autojump_clock: MockClock) -> None:
    """The drain waits for a call to another backend; a backend that is lost meanwhile is not connected again."""
    backends = {"a": listening_backend(), "b": listening_backend(seconds=8)}
    async with open_world(backends) as world, trio.open_nursery() as nursery:
        session = await world.make_session()
        await trio.sleep(SOON)
        nursery.start_soon(hold_open, session, "b_slow")
        await wait_all_tasks_blocked()
        nursery.start_soon(session.aclose)
        await wait_all_tasks_blocked()
        lose_sessions_silently(backends["a"])
        await trio.sleep(20)
        assert [1, 1] == [initialized(backend) for backend in backends.values()]


async def test_a_delayed_reconnect_is_dropped_by_the_close(autojump_clock: MockClock) -> None:
    """The reconnect was put off by the backoff, and is not made after the close has begun."""
    backends = {"a": listening_backend(stream_seconds=0), "b": listening_backend(seconds=8)}
    backends["a"].fail(AfterTheFirst(), Status(404))
    async with open_world(backends) as world, trio.open_nursery() as nursery:
        session = await world.make_session()
        await trio.sleep(20)
        before = initialized(backends["a"])
        nursery.start_soon(hold_open, session, "b_slow")
        await wait_all_tasks_blocked()
        await session.aclose()
        assert before == initialized(backends["a"]) >= 4


async def test_a_removed_backend_is_not_connected_anew(autojump_clock: MockClock) -> None:
    """Also while its last call runs on a connection whose stream is refused."""
    backend = listening_backend(seconds=8)
    async with open_world({"a": backend}) as world, world.open_session() as session, trio.open_nursery() as nursery:
        await trio.sleep(SOON)
        nursery.start_soon(hold_open, session, "a_slow")
        await wait_all_tasks_blocked()
        nursery.start_soon(session.remove_backend, "a")
        await wait_all_tasks_blocked()
        lose_sessions_silently(backend)
        await trio.sleep(20)
        assert (1, 1) == (initialized(backend), backend.executed["slow"])


async def test_a_loss_during_the_opening_is_recovered_after_it(autojump_clock: MockClock) -> None:
    """Another backend is slow; the lost backend stays a member of the session all the while."""
    backends = {"a": listening_backend(), "b": echo_backend()}
    backends["b"].fail("initialize", Delay(20), times=1)
    async with open_world(backends) as world:
        opened: list[Session] = []

        async def open_it() -> None:
            opened.append(await world.make_session())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_it)
            await trio.sleep(SOON)
            lose_sessions_silently(backends["a"])
            await trio.sleep(SOON)
            assert 1 == initialized(backends["a"])
        (session,) = opened
        assert () == session.failures
        await trio.sleep(SOON)
        assert (2, 1) == (initialized(backends["a"]), backends["a"].listening)
        await session.aclose()


async def test_each_session_of_a_restarted_backend_recovers_once(autojump_clock: MockClock) -> None:
    """The sessions recover one after the other, as their calls would."""
    backend = listening_backend()

    async def look(world: World, count: int) -> None:
        sessions = [await world.make_session() for _ in range(count)]
        await trio.sleep(SOON)
        lose_sessions_silently(backend)
        await trio.sleep(SOON)
        assert (2 * count, count, count) == (initialized(backend), backend.listening, len(backend.sessions))
        for session in sessions:
            await session.aclose()

    async with open_world({"a": backend}) as world:
        await look(world, 20)


async def test_a_connector_may_report_a_connection_that_has_crashed(autojump_clock: MockClock) -> None:
    """A client of an application's own need not know that its connection has crashed: its report is no error."""
    sinks: list[EventSink] = []

    async def crash() -> None:
        await trio.sleep(1)
        raise ZeroDivisionError

    inner = PlainConnector(services={"b0": crash})

    async def connector(backend: Backend, **wanted: Any) -> PlainClient:
        sinks.append(wanted["events"])
        return await inner(backend, **wanted)

    async with open_session_factory(connector=connector, settings=NO_RETRIES) as factory:
        async with factory.open_session(plain_backends(1)) as session:
            await trio.sleep(2)
            (sink,) = sinks
            sink.session_lost(BackendUnavailable("b0", "no longer knows us"))
            sink("notifications/tools/list_changed", {})
            await trio.sleep(2)
            assert BackendState.DEGRADED is session.backends["b0"].state
