"""A backend that restarts while nobody calls it: its stream finds out, and the session heals as for a call."""

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
    FactorySettings,
    Session,
    SessionChange,
    ToolResult,
    open_session_factory,
)
from trio_vmcp.connector import SessionSink
from trio_vmcp.testing import CallContext, Delay, Error, Exchange, Fault, ScriptedBackend, Status

HOUR = 3600.0
SOON = 5.0  # s: the stream is asked for again, refused, and the session is made anew


def telling(seconds: float = 60, **more: Any) -> ScriptedBackend:
    """Beside "echo" a tool "slow", which takes its time; it has a stream for changes."""

    async def slow(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(seconds)
        return "rested"

    backend = echo_backend(listens=True, **more)
    backend.add_tool("slow", slow)
    return backend


def forget(backend: ScriptedBackend) -> None:
    """A restart that no connection but the stream's notices."""
    backend.restart()
    backend.end_streams()


def initialized(backend: ScriptedBackend) -> int:
    return len(backend.received("initialize"))


def state_of(session: Session, backend_id: str = "a") -> BackendState:
    """As a function, since a type checker takes a property that was looked at for what it then was."""
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


# What heals


@pytest.mark.parametrize("crashes", [False, True])
async def test_an_idle_backend_that_restarted_is_connected_anew(autojump_clock: MockClock, crashes: bool) -> None:
    """Without a call: once, with a new id in the metadata, lists fetched anew, and a stream as before."""
    backend = telling()
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        await trio.sleep(SOON)
        old = session.backend_sessions["a"]
        if crashes:
            backend.crash()
            await trio.sleep(2)
        backend.add_tool("new")
        forget(backend)
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
        assert not (await session.call_tool("a_echo")).backend_state_lost  # it waited for nothing
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
async def test_refusals_of_a_stream_that_was_open_say_so(fault: Fault, autojump_clock: MockClock) -> None:
    """404 in any form, a 400 that names the session, and the answer of a server that has become one of the other era:
    as for a call. It may live all the same, so it gets its DELETE.
    """
    backend = telling()
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


async def test_an_event_id_is_doubted_first(autojump_clock: MockClock) -> None:
    """What a resumed stream is refused for may be the id of its last event; without it the answer is clear."""
    backend = telling(resumable=True)
    async with open_world({"a": backend}) as world, world.open_session():
        await trio.sleep(SOON)
        before = len(backend.received("GET"))
        forget(backend)
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
    """It is none any more; the session stays, and so do its calls."""
    backend = telling()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await trio.sleep(SOON)
        backend.fail("GET", fault)
        backend.end_streams()
        await trio.sleep(HOUR / 4)
        assert not (await session.call_tool("a_echo")).is_error
        assert (1, 2) == (initialized(backend), len(backend.received("GET")))


@pytest.mark.parametrize("status", [400, 404, 405, 406])
async def test_a_stream_that_never_was_says_nothing(status: int, autojump_clock: MockClock) -> None:
    """There are servers that answer 404 because they have none, and say "session" in every text."""
    backend = telling()
    backend.fail("GET", Status(status, b"no session here"))
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await trio.sleep(HOUR / 4)
        assert not (await session.call_tool("a_echo")).is_error
        assert (1, 1) == (initialized(backend), len(backend.received("GET")))


async def test_a_backend_that_knows_no_stream_twice_is_no_storm(autojump_clock: MockClock) -> None:
    """It opens each session's first stream, ends it, and answers 404 from then on, though its calls work. Over a
    virtual hour it is greeted at the pace of the backoff, and no call fails.
    """
    backend = telling(stream_seconds=0)
    backend.fail(AfterTheFirst(), Status(404))
    async with open_world({"a": backend}) as world, world.open_session() as session:
        for _ in range(60):
            await trio.sleep(HOUR / 60)
            assert not (await session.call_tool("a_echo")).is_error
        times = [exchange.received_at for exchange in backend.received("initialize")]
        assert 55 <= len(times) <= 90  # one a minute, ±20 %, and the first ones
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert all(gap >= 0.8 * min(0.5 * 2**number, 60) for number, gap in enumerate(gaps))


async def test_who_was_there_for_long_is_replaced_at_once(autojump_clock: MockClock) -> None:
    """The backoff is for what is gone soon after it was made, time after time."""
    backend = telling()
    async with open_world({"a": backend}) as world, world.open_session():
        for _ in range(5):
            await trio.sleep(100)
            forget(backend)
            began = trio.current_time()
            await trio.sleep(SOON)
            assert 0.61 >= backend.received("initialize")[-1].received_at - began  # the stream's first delay, +20 %
        assert 6 == initialized(backend)


async def test_what_has_lasted_is_trusted_again(autojump_clock: MockClock) -> None:
    """How often it was gone before is forgotten: the next time it is replaced at the first delays, not at the last."""
    backend = telling(stream_seconds=0)
    rule = backend.fail(AfterTheFirst(), Status(404))
    async with open_world({"a": backend}) as world, world.open_session():
        await trio.sleep(HOUR / 8)
        backend.stream_seconds, rule.times = None, 0
        await trio.sleep(HOUR / 8)
        for _ in range(2):
            before = initialized(backend)
            forget(backend)
            await trio.sleep(SOON)
            assert before + 1 == initialized(backend)


async def test_who_is_to_stay_away_does(autojump_clock: MockClock) -> None:
    """With endless delays nothing is tried again but what a call needs."""
    backend = telling()
    settings = FactorySettings(reconnect_delay=math.inf, reconnect_max_delay=math.inf)
    async with open_world({"a": backend}, settings=settings) as world, world.open_session() as session:
        await trio.sleep(SOON)
        forget(backend)
        await trio.sleep(HOUR / 4)
        assert 1 == initialized(backend)
        assert (await session.call_tool("a_echo")).backend_state_lost


async def test_what_was_stored_is_missed_once(autojump_clock: MockClock) -> None:
    """It is forgotten while it is listed, and the stream finds out first: the session that the listing then makes is
    not replaced for it.
    """
    backend = telling()
    backend.add_resource("memo://one")
    async with open_world({"a": backend}) as world, trio.open_nursery() as nursery:
        session = await world.make_session()
        await trio.sleep(SOON)
        await session.suspend()
        backend.fail("resources/list", Delay(SOON), times=1)

        async def forget_meanwhile() -> None:
            await trio.sleep(1)
            forget(backend)

        nursery.start_soon(forget_meanwhile)
        async with await world.restore_session(session.id):
            await trio.sleep(HOUR / 60)
            assert (2, 1) == (initialized(backend), backend.listening)


# Beside calls


async def test_a_call_in_flight_is_not_torn_down(autojump_clock: MockClock) -> None:
    """The connection that it is on ends behind it; what comes meanwhile goes to the new one."""
    backend = telling(seconds=30)
    answers: list[ToolResult] = []
    async with open_world({"a": backend}) as world, world.open_session() as session, trio.open_nursery() as nursery:

        async def call() -> None:
            answers.append(await session.call_tool("a_slow"))

        await trio.sleep(SOON)
        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        forget(backend)
        await trio.sleep(SOON)
        assert (2, 1, []) == (initialized(backend), session.backends["a"].in_flight, answers)
        await session.call_tool("a_echo")
        await trio.sleep(30)
        assert ["rested"] == [answer.content[0]["text"] for answer in answers]
        assert (2, 1) == (initialized(backend), backend.executed["slow"])


@pytest.mark.parametrize("call_first", [False, True])
async def test_a_call_and_the_stream_share_one_recovery(autojump_clock: MockClock, call_first: bool) -> None:
    """Whoever finds out first begins it; the call waits for it, and is sent once it is over."""
    backend = telling()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await trio.sleep(SOON)
        forget(backend)
        backend.fail("initialize", Delay(10), times=1)
        await trio.sleep(0 if call_first else 2)
        assert call_first is (state_of(session) is BackendState.READY)
        assert not (await session.call_tool("a_echo")).is_error
        assert SOON + 10 <= trio.current_time() <= SOON + 11
        await trio.sleep(SOON)
        assert (2, 1, 1) == (initialized(backend), backend.listening, backend.executed["echo"])


async def test_a_failed_recovery_leaves_the_backend_retryable(autojump_clock: MockClock) -> None:
    """It is missing with the reason, is told of, and is back at its time."""
    backend = telling()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await trio.sleep(SOON)
        rule = backend.fail("initialize", Status(503))
        forget(backend)
        await trio.sleep(SOON)
        assert ["a"] == [failure.backend_id for failure in session.failures]
        assert BackendState.DEGRADED is state_of(session)
        with pytest.raises(BackendUnavailable):
            await session.call_tool("a_echo")
        rule.times = 0
        await trio.sleep(HOUR / 30)
        assert ((), BackendState.READY, 1) == (session.failures, state_of(session), backend.listening)


# On the way in and out


async def hold_open(session: Session, name: str) -> None:
    """A call that a close waits for."""
    await session.call_tool(name)


async def test_a_closing_session_connects_nobody_anew(autojump_clock: MockClock) -> None:
    """The drain waits for a call to another backend; the one that is lost meanwhile is missed by nobody."""
    backends = {"a": telling(), "b": telling(seconds=8)}
    async with open_world(backends) as world, trio.open_nursery() as nursery:
        session = await world.make_session()
        await trio.sleep(SOON)
        nursery.start_soon(hold_open, session, "b_slow")
        await wait_all_tasks_blocked()
        nursery.start_soon(session.aclose)
        await wait_all_tasks_blocked()
        forget(backends["a"])
        await trio.sleep(20)
        assert [1, 1] == [initialized(backend) for backend in backends.values()]


async def test_one_that_was_due_when_the_close_began_is_not_made(autojump_clock: MockClock) -> None:
    """It was put off, for the one before was gone soon, too."""
    backends = {"a": telling(stream_seconds=0), "b": telling(seconds=8)}
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
    """Though its last call still runs, on a connection whose stream is refused."""
    backend = telling(seconds=8)
    async with open_world({"a": backend}) as world, world.open_session() as session, trio.open_nursery() as nursery:
        await trio.sleep(SOON)
        nursery.start_soon(hold_open, session, "a_slow")
        await wait_all_tasks_blocked()
        nursery.start_soon(session.remove_backend, "a")
        await wait_all_tasks_blocked()
        forget(backend)
        await trio.sleep(20)
        assert (1, 1) == (initialized(backend), backend.executed["slow"])


async def test_what_is_lost_before_the_opening_ends_is_replaced_behind_it(autojump_clock: MockClock) -> None:
    """Another backend takes its time. The one that was ready is a member of the session all the while."""
    backends = {"a": telling(), "b": echo_backend()}
    backends["b"].fail("initialize", Delay(20), times=1)
    async with open_world(backends) as world:
        opened: list[Session] = []

        async def open_it() -> None:
            opened.append(await world.make_session())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_it)
            await trio.sleep(SOON)
            forget(backends["a"])
            await trio.sleep(SOON)
            assert 1 == initialized(backends["a"])
        (session,) = opened
        assert () == session.failures
        await trio.sleep(SOON)
        assert (2, 1) == (initialized(backends["a"]), backends["a"].listening)
        await session.aclose()


async def test_each_session_of_a_restarted_backend_heals_once(autojump_clock: MockClock) -> None:
    """One after the other, as their calls would."""
    backend = telling()

    async def look(world: World, count: int) -> None:
        sessions = [await world.make_session() for _ in range(count)]
        await trio.sleep(SOON)
        forget(backend)
        await trio.sleep(SOON)
        assert (2 * count, count, count) == (initialized(backend), backend.listening, len(backend.sessions))
        for session in sessions:
            await session.aclose()

    async with open_world({"a": backend}) as world:
        await look(world, 20)


async def test_a_connector_may_tell_of_what_has_ended_already(autojump_clock: MockClock) -> None:
    """A client of the user's own need not know that its connection has crashed: what it finds out is no error."""
    sinks: list[SessionSink] = []

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
            sink.listed_too_early(("tools",))
            sink("notifications/tools/list_changed", {})
            await trio.sleep(2)
            assert BackendState.DEGRADED is session.backends["b0"].state
