"""A backend lost its session: one handshake for all calls, one retry of a call that did not run, nothing else."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support.harness import ALICE, NO_RETRIES, World, drained, echo_backend, open_world, slow_backend
from support.plain_connector import PlainConnector, plain_backends
from support.scripted_storage import ScriptedStorage
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    BackendError,
    BackendRejected,
    BackendState,
    BackendTimeout,
    BackendUnavailable,
    FactorySettings,
    Session,
    SessionChange,
    SessionClosed,
    SessionFactory,
    SessionState,
    StorageError,
    ToolResult,
    open_session_factory,
)
from trio_vmcp._request_note import note_session_lost
from trio_vmcp.testing import CONNECT, CallContext, Delay, Error, Exchange, Hang, Refuse, Rewrite, Status


def initialized(world: World, backend_id: str = "a") -> int:
    return len(world[backend_id].received("initialize"))


def calls(world: World, backend_id: str = "a") -> int:
    return len(world[backend_id].received("tools/call"))


def is_call_in(backend_session: str, exchange: Exchange) -> bool:
    return exchange.method == "tools/call" and exchange.session_id == backend_session


def status_of(session: Session, backend_id: str = "a") -> tuple[BackendState, int]:
    """A function, since mypy takes a property that was read before for unchanged."""
    status = session.backends[backend_id]
    return status.state, status.in_flight


# One call


async def test_a_lost_session_is_opened_anew_and_the_call_is_sent_again(autojump_clock: MockClock) -> None:
    """One retry with the new id, which the metadata have; the result says that the backend's state is lost."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        old = session.backend_sessions["a"]
        assert not (await session.call_tool("a_echo")).backend_state_lost
        world["a"].restart()
        result = await session.call_tool("a_echo", {"n": 1})
        assert '{"n": 1}' == result.content[0]["text"]
        assert result.backend_state_lost
        assert {"trio-vmcp/backend-state-lost": True} == result.meta
        new = session.backend_sessions["a"]
        assert (2, 2, 3) == (initialized(world), world["a"].executed["echo"], calls(world))
        assert [old, old, new] == [e.session_id for e in world["a"].received("tools/call")]
        await wait_all_tasks_blocked()
        (row,) = await world.storage.rows()
        assert [new] == [record.session_id for record in row.backends]
        assert row == session.metadata
        assert not (await session.call_tool("a_echo")).backend_state_lost
        assert () == session.failures


async def test_a_replacement_is_reported_as_a_change(autojump_clock: MockClock) -> None:
    """The backend, and then those of its lists that differ; names stay meanwhile."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        async with session.changes() as changes:
            world["a"].restart()
            world["a"].add_tool("new")
            await session.call_tool("a_echo")
            told = await drained(changes)
        assert ["backend", "tools"] == [change.kind for change in told]
        assert ["a_echo", "a_new"] == [tool.name for tool in session.tools]


@pytest.mark.parametrize(
    "fault",
    [
        Status(404),
        Status(404, b"<html>no route</html>", {"content-type": "text/html"}),
        Error(-32001, "Session not found", status=404),
        Error(-32000, "Bad Request: No valid session ID provided", status=400),
        Status(400, b"session expired"),
    ],
)
async def test_refusals_that_prove_that_nothing_ran(fault: Any, autojump_clock: MockClock) -> None:
    """404 in any form, and a 400 that names the session: the call is sent once more, and runs once."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        world["a"].fail("tools/call", fault, times=1)
        assert (await session.call_tool("a_echo")).backend_state_lost
        assert (2, 2, 1) == (initialized(world), calls(world), world["a"].executed["echo"])


async def test_a_late_503_of_the_old_connection_costs_the_new_one_nothing(autojump_clock: MockClock) -> None:
    """It says nothing about the new session: when that one is answered 503, it is replaced at once."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        old = session.backend_sessions["a"]
        backend.fail(partial(is_call_in, old), Status(503), times=2)

        async def call_in_vain() -> None:
            with pytest.raises(BackendRejected):
                await session.call_tool("a_echo")

        async with trio.open_nursery() as nursery:
            backend.latency = 100
            nursery.start_soon(call_in_vain)
            await wait_all_tasks_blocked()
            backend.latency = 0
            await call_in_vain()  # and the connection is replaced
        assert 100 == trio.current_time()
        backend.fail("tools/call", Status(503), times=1)
        await call_in_vain()
        await wait_all_tasks_blocked()
        assert 3 == initialized(world)


async def test_a_503_replaces_the_connection_but_sends_nothing_again(autojump_clock: MockClock) -> None:
    """HTTP 503 does not say whether the call ran, so it is not repeated. The old session gets its DELETE."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        old = session.backend_sessions["a"]
        world["a"].fail("tools/call", Status(503), times=1)
        with pytest.raises(BackendRejected, match="HTTP 503") as caught:
            await session.call_tool("a_echo")
        assert caught.value.may_have_executed
        await wait_all_tasks_blocked()
        assert (2, 1, 0) == (initialized(world), calls(world), world["a"].executed["echo"])
        assert [old] == world["a"].deleted_sessions
        await session.call_tool("a_echo")


async def test_a_backend_that_answers_503_is_reconnected_at_the_backoff(autojump_clock: MockClock) -> None:
    """It answers every other call with 503 and keeps its session. Handshakes keep to the backoff, and its other calls
    are answered.
    """
    backend = echo_backend(latency=0.01)
    numbers = itertools.count()
    backend.fail(lambda exchange: exchange.method == "tools/call" and bool(next(numbers) % 2), Status(503))
    outcomes: Counter[str] = Counter()

    async def keep_calling(session: Session) -> None:
        while True:
            try:
                await session.call_tool("a_echo")
                outcomes["answered"] += 1
            except BackendRejected:
                outcomes["refused"] += 1
            await trio.sleep(1)

    settings = FactorySettings(reconnect_max_delay=20)
    async with open_world({"a": backend}, settings=settings) as world, world.open_session() as session:
        with trio.move_on_after(200):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(keep_calling, session)
        assert 10 <= initialized(world) <= 20  # one every 20 s, ±20 %, and the first ones
    assert abs(outcomes["answered"] - outcomes["refused"]) <= 5
    assert outcomes.total() > 320


async def test_a_400_about_the_request_changes_nothing(autojump_clock: MockClock) -> None:
    """Such a 400 is the call's error; the session stays."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        world["a"].fail("tools/call", Error(-32602, "session_name is not a string", status=400), times=1)
        with pytest.raises(BackendRejected, match="session_name"):
            await session.call_tool("a_echo")
        assert 1 == initialized(world)


@pytest.mark.parametrize("fault", [Error(-32020, "no"), Error(-32022, "no", {"supported": ["2026-07-28"]})], ids=repr)
async def test_a_code_of_the_other_era_may_be_the_tool_s_own(fault: Error, autojump_clock: MockClock) -> None:
    """In HTTP 200 such a code says nothing about the session: it is the call's error."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        world["a"].fail("tools/call", fault, times=1)
        with pytest.raises(BackendRejected, match="no"):
            await session.call_tool("a_echo")
        await wait_all_tasks_blocked()
        assert 1 == initialized(world)


@pytest.mark.parametrize("fault", [Status(404), Status(400, b"no session")])
async def test_a_second_refusal_is_no_loop(fault: Status, autojump_clock: MockClock) -> None:
    """One handshake and one retry for one call; the next call has the same chance."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        world["a"].fail("tools/call", fault)
        for number in range(1, 4):
            with pytest.raises(BackendUnavailable, match="no longer knows our session") as caught:
                await session.call_tool("a_echo")
            assert not caught.value.may_have_executed
            await trio.sleep(600)
            assert (1 + number, 2 * number) == (initialized(world), calls(world))
        world["a"].heal()
        await session.call_tool("a_echo")


@pytest.mark.parametrize("meta", [None, [1], "x", {"mine": 1}])
async def test_the_meta_of_a_result_is_kept_beside_our_key(meta: Any, autojump_clock: MockClock) -> None:
    """Our key is added to the backend's `_meta`; a `_meta` that is no object is left as it is."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        world["a"].restart()
        world["a"].fail("tools/call", Rewrite(lambda m: m["result"].update(_meta=meta) or m), skip=1)
        result = await session.call_tool("a_echo")
        assert result.backend_state_lost
        assert meta != {"mine": 1} or result.meta["mine"] == 1


@pytest.mark.parametrize("kind", ["read_resource", "get_prompt", "complete"])
async def test_every_kind_of_call_recovers(kind: str, autojump_clock: MockClock) -> None:
    """Resources, prompts and completions as well as tools."""
    backend = echo_backend()
    backend.add_resource("file:///x", "text")
    backend.add_prompt("p")
    backend.completions = {"n": ["one"]}
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.restart()
        match kind:
            case "read_resource":
                assert "text" == (await session.read_resource("file:///x")).contents[0]["text"]
            case "get_prompt":
                assert 1 == len((await session.get_prompt("a_p")).messages)
            case _:
                ref = {"type": "ref/prompt", "name": "a_p"}
                assert ("one",) == (await session.complete(ref, {"name": "n", "value": ""})).values
        assert 2 == initialized(world)


async def test_the_sessions_identity_makes_the_handshake(autojump_clock: MockClock) -> None:
    """Whichever caller met the loss: handshake and lists use the session's identity, the repeated call its caller's."""
    asked: list[str | None] = []
    backend = echo_backend()
    async with open_world({"a": backend}, auth=lambda _, who: asked.append(who.subject if who else None)) as world:
        async with world.open_session(identity=ALICE) as session:
            asked.clear()
            backend.restart()
            await session.call_tool("a_echo", caller=attrs.evolve(ALICE, token="fresh"))
            assert {"alice"} == set(asked)


# Many calls


async def gather(count: int, call: Any) -> list[Any]:
    """Results and errors of so many calls at once."""
    outcomes: list[Any] = []

    async def one() -> None:
        try:
            outcomes.append(await call())
        except BackendError as error:
            outcomes.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    return outcomes


async def test_a_stampede_shares_one_handshake(autojump_clock: MockClock) -> None:
    """100 calls meet the 404: at most two handshakes, and every call runs exactly once."""
    backend = echo_backend(latency=0.1)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.restart()
        outcomes = await gather(100, lambda: session.call_tool("a_echo"))
        assert 100 == sum(isinstance(outcome, ToolResult) for outcome in outcomes)
        assert all(outcome.backend_state_lost for outcome in outcomes)
        assert 100 == backend.executed["echo"]
        assert initialized(world) <= 3  # the first included


async def test_late_404s_of_the_old_connection_replace_nothing(autojump_clock: MockClock) -> None:
    """A call that is refused late goes to the connection that replaced its own."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.restart()
        backend.fail("tools/call", Delay(5), times=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call_tool, "a_echo")
            await wait_all_tasks_blocked()
            await session.call_tool("a_echo")
        assert (2, 2) == (initialized(world), backend.executed["echo"])


async def test_calls_that_come_meanwhile_wait_and_run_once(autojump_clock: MockClock) -> None:
    """Calls during the recovery are sent to the new session alone, and say so; none is counted twice."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session, trio.open_nursery() as nursery:
        backend.restart()
        backend.fail("initialize", Delay(3), times=1)
        nursery.start_soon(session.call_tool, "a_echo")
        await trio.sleep(1)
        assert (BackendState.RECOVERING, 0) == status_of(session)
        assert (await session.call_tool("a_echo")).backend_state_lost
        assert 3.0 == trio.current_time()
        await wait_all_tasks_blocked()
        assert (BackendState.READY, 0) == status_of(session)
        assert (2, 2, 3) == (initialized(world), backend.executed["echo"], calls(world))


async def test_calls_on_the_old_connection_are_answered(autojump_clock: MockClock) -> None:
    """A slow call on the replaced connection gets its answer; then the old session gets its DELETE."""
    backend = slow_backend(30)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        old = session.backend_sessions["a"]
        results: list[ToolResult] = []

        async def slow() -> None:
            results.append(await session.call_tool("a_slow"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow)
            await wait_all_tasks_blocked()
            backend.fail("tools/call", Status(404), times=1)
            await session.call_tool("a_echo")
            await trio.sleep(1)
            assert [] == backend.deleted_sessions
            assert (BackendState.READY, 1) == status_of(session)
        assert 30.0 == trio.current_time()
        assert ["rested"] == [result.content[0]["text"] for result in results]
        assert not results[0].backend_state_lost
        await wait_all_tasks_blocked()
        assert [old] == backend.deleted_sessions
        assert 1 == backend.executed["slow"]


# Failed recoveries


@pytest.mark.parametrize("limit", [2.0, 0.0])
async def test_a_call_that_waits_for_a_recovery_keeps_its_timeout(limit: float, autojump_clock: MockClock) -> None:
    """BackendTimeout with the knob, and the call did not run. The recovery goes on."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session, trio.open_nursery() as nursery:
        backend.restart()
        backend.fail("initialize", Delay(9), times=1)
        nursery.start_soon(session.call_tool, "a_echo")
        await wait_all_tasks_blocked()
        with pytest.raises(BackendTimeout, match=rf"within {limit} s \(timeout=\)") as caught:
            await session.call_tool("a_echo", timeout=limit)
        assert not caught.value.may_have_executed
        assert limit == trio.current_time()
        nursery.cancel_scope.cancel()
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        world["a"].restart()
        world["a"].fail("initialize", Delay(9), times=1)
        with pytest.raises(BackendTimeout, match="was not connected anew for 'tools/call' within 2 s") as caught:
            await session.call_tool("a_echo", timeout=2)
        assert not caught.value.may_have_executed
        await trio.sleep(10)
        assert (BackendState.READY, 0) == status_of(session)
        assert 0 == world["a"].executed["echo"]


async def test_one_timeout_covers_both_tries(autojump_clock: MockClock) -> None:
    """The first try, the handshake and the second try share the timeout of the call."""
    backend = slow_backend(60)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.restart()
        backend.fail("initialize", Delay(3), times=1)
        with pytest.raises(BackendTimeout, match="did not answer 'tools/call' within 10 s") as caught:
            await session.call_tool("a_slow", timeout=10)
        assert 10.0 == trio.current_time()
        assert caught.value.may_have_executed


async def test_a_call_without_a_timeout_waits_for_the_recovery(autojump_clock: MockClock) -> None:
    """`math.inf` is no limit."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.restart()
        backend.fail("initialize", Delay(25), times=1)
        await session.call_tool("a_echo", timeout=math.inf)
        assert 25.0 == trio.current_time()


@pytest.mark.parametrize(
    "fault", [Status(503), Status(500), Hang(), Error(-32000, "no"), Rewrite(lambda m: {**m, "result": {}})]
)
async def test_a_failed_recovery_leaves_the_backend_retryable(fault: Any, autojump_clock: MockClock) -> None:
    """The call did not run. The backend is missing with the reason, is tried again, and joins."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.restart()
        world.leaves_sessions = True  # some of these faults come after the backend made a session
        backend.fail("initialize", fault, times=1)
        async with session.changes() as changes:
            with pytest.raises(BackendUnavailable, match="is not connected: it ") as caught:
                await session.call_tool("a_echo")
            assert [SessionChange("backend", "a")] == await drained(changes, 0.1)
        assert not caught.value.may_have_executed
        assert ["a"] == [failure.backend_id for failure in session.failures]
        assert BackendState.DEGRADED is session.backends["a"].state
        assert ["a_echo"] == [tool.name for tool in session.tools]
        began = trio.current_time()
        with pytest.raises(BackendUnavailable):  # at once, and not after a timeout
            await session.call_tool("a_echo")
        assert began == trio.current_time()
        await trio.sleep(1)
        assert () == session.failures
        assert session.backends["a"].last_failure is not None
        await session.call_tool("a_echo")
        assert 1 == backend.executed["echo"]
        assert None not in {e.session_id for e in backend.exchanges if e.method.endswith("/list")}


async def test_a_stampede_on_a_backend_that_stays_away_asks_once(autojump_clock: MockClock) -> None:
    """100 calls share one failed handshake; the next attempt keeps to the backoff."""
    backend = echo_backend(latency=0.1)
    async with open_world({"a": backend}, settings=NO_RETRIES) as world, world.open_session() as session:
        backend.restart()
        backend.fail("initialize", Status(503))
        outcomes = await gather(100, lambda: session.call_tool("a_echo"))
        assert {BackendUnavailable} == {type(outcome) for outcome in outcomes}
        assert 1 + 1 == initialized(world)
        await trio.sleep(3600)
        assert 1 + 1 == initialized(world)


async def test_a_completion_waits_for_the_recovery_like_any_call(autojump_clock: MockClock) -> None:
    """A completion needs the capability that the old connection had negotiated."""
    backend = echo_backend()
    backend.add_prompt("p")
    backend.completions = {"n": ["one"]}
    async with open_world({"a": backend}) as world, world.open_session() as session, trio.open_nursery() as nursery:
        backend.restart()
        backend.fail("initialize", Delay(3), times=1)
        nursery.start_soon(session.call_tool, "a_echo")
        await wait_all_tasks_blocked()
        ref = {"type": "ref/prompt", "name": "a_p"}
        assert ("one",) == (await session.complete(ref, {"name": "n", "value": ""})).values


# Eras


def era_of(session: Session) -> str | None:
    """A function, for the same reason as `status_of`."""
    return session.backends["a"].era


@pytest.mark.parametrize("was", ["legacy", "modern"])
@pytest.mark.parametrize("session_ids", [True, False])
@pytest.mark.parametrize("answers", ["json", "sse"])
async def test_a_backend_that_comes_back_in_the_other_era(
    was: Any, session_ids: bool, answers: str, autojump_clock: MockClock
) -> None:
    """Redeployed as modern, and back: the session goes on, and every call runs once."""
    backend = echo_backend(was, answers, session_ids=session_ids)
    becomes: Iterator[Any] = iter(["modern", "legacy", "modern"] if was == "legacy" else ["legacy", "modern", "legacy"])
    async with open_world({"a": backend}, configure=partial(attrs.evolve, era="auto")) as world:
        async with world.open_session() as session:
            for count, era in enumerate(becomes, start=1):
                backend.era = era
                backend.restart()
                result = await session.call_tool("a_echo", {"n": count})
                assert result.backend_state_lost
                assert era == era_of(session)
                assert count == backend.executed["echo"]
                await trio.sleep(2)
                assert () == session.failures
                (row,) = await world.storage.rows()
                assert [era] == [record.era for record in row.backends]


async def test_a_pinned_era_is_not_left(autojump_clock: MockClock) -> None:
    """A backend pinned to "legacy" is missing with that reason until it speaks legacy again."""
    backend = echo_backend("legacy")
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.era = "modern"
        backend.restart()
        with pytest.raises(BackendUnavailable):
            await session.call_tool("a_echo")
        assert ["a"] == [failure.backend_id for failure in session.failures]
        backend.era = "legacy"
        backend.restart()
        await trio.sleep(120)
        await session.call_tool("a_echo")


# Metadata


async def test_a_new_id_that_the_storage_did_not_take_is_written_later(autojump_clock: MockClock) -> None:
    """The call neither waits for the storage nor fails with it; the row is written once the storage is back."""
    storage = ScriptedStorage()

    async def away() -> None:
        raise StorageError("is away")

    async with open_world({"a": echo_backend()}, storage=storage) as world, world.open_session() as session:
        old = session.backend_sessions["a"]
        storage.before["replace"] = away
        world["a"].restart()
        await session.call_tool("a_echo")
        await wait_all_tasks_blocked()
        (row,) = await storage.rows()
        assert [old] == [record.session_id for record in row.backends]
        storage.before.clear()
        await trio.sleep(storage.ttl / 3 + 1)
        (row,) = await storage.rows()
        assert [session.backend_sessions["a"]] == [record.session_id for record in row.backends]


async def test_a_session_is_suspended_while_a_backend_is_recovering(autojump_clock: MockClock) -> None:
    """Its record stays; the restored session has the backend and its names, in a new backend session. No result speaks
    of a loss: the row says that no call had run in the session that is lost.
    """
    backend = echo_backend()
    async with open_world({"a": backend}) as world, trio.open_nursery() as nursery:
        session = await world.make_session(session_id="one")
        backend.restart()
        backend.fail("initialize", Delay(20), times=1)

        async def call() -> None:
            with pytest.raises(SessionClosed):
                await session.call_tool("a_echo")

        nursery.start_soon(call)
        await trio.sleep(1)
        await session.suspend(drain_timeout=1)
        (row,) = await world.storage.rows()
        assert ["a"] == [record.backend_id for record in row.backends]
        async with await world.restore_session("one") as restored:
            assert not (await restored.call_tool("a_echo")).backend_state_lost
            assert restored.backend_sessions["a"] in backend.sessions
        await trio.sleep(30)


async def test_a_suspended_session_keeps_the_id_that_a_recovery_brought(autojump_clock: MockClock) -> None:
    """It is restored without another handshake."""
    async with open_world({"a": echo_backend()}) as world:
        session = await world.make_session(session_id="one")
        world["a"].restart()
        await session.call_tool("a_echo")
        await session.suspend()
        async with await world.restore_session("one") as restored:
            await restored.call_tool("a_echo")
        assert 2 == initialized(world)


@pytest.mark.parametrize("latency", [0.0, 0.5])
async def test_a_restored_session_that_is_gone_is_initialised_once(latency: float, autojump_clock: MockClock) -> None:
    """Though all its lists are requested side by side and each meets the 404."""
    backend = echo_backend(latency=latency)
    backend.add_resource("file:///x")
    backend.add_prompt("p")
    async with open_world({"a": backend}) as world:
        await (await world.make_session(session_id="one")).suspend()
        backend.restart()
        async with await world.restore_session("one") as restored:
            await restored.call_tool("a_echo")
            assert () == restored.failures
        assert 2 == initialized(world)


# Closing


async def close_after_a_second_loss(factory: SessionFactory, answers: list[bool], ticks: int) -> None:
    """A session whose backend loses it, and is connected anew, and loses it again; closed so many steps after the call
    that meets that.
    """
    session = await factory.make_session(plain_backends(1))
    answers[:] = [False, True, False]

    async def call() -> None:
        with contextlib.suppress(BackendUnavailable, SessionClosed):  # a call is sent again once
            await session.call_tool("b0_echo")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        for state in (BackendState.RECOVERING, BackendState.READY):
            while session.backends["b0"].state is not state:  # noqa: ASYNC110  # the very step
                await trio.lowlevel.checkpoint()
        nursery.start_soon(call)
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        await session.aclose()


@pytest.mark.parametrize("ticks", [1, 2])
async def test_a_second_recovery_goes_on_though_a_close_has_ended_the_first(
    ticks: int, autojump_clock: MockClock
) -> None:
    """The close ends the task that has connected the backend anew, if that task has not ended yet. A call that then
    meets another loss does not wait for the end of the drain.
    """
    answers: list[bool] = []

    async def answer() -> None:
        await trio.lowlevel.checkpoint()
        if answers and not answers.pop(0):
            await trio.lowlevel.checkpoint()
            note_session_lost()
            raise BackendUnavailable("b0", "knows no such session")

    async with open_session_factory(connector=PlainConnector(on_request={"b0": answer})) as factory:
        for _ in range(15):  # Trio runs the tasks of one step in any order
            await close_after_a_second_loss(factory, answers, ticks)
    assert 0.0 == trio.current_time()


@pytest.mark.parametrize("closing", ["aclose", "suspend"])
async def test_a_close_lets_a_recovery_end_that_calls_wait_for(closing: str, autojump_clock: MockClock) -> None:
    """An admitted call that waits for the handshake gets its result."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, trio.open_nursery() as nursery:
        session = await world.make_session(session_id="one")
        results: list[ToolResult] = []

        async def call() -> None:
            results.append(await session.call_tool("a_echo"))

        backend.restart()
        backend.fail("initialize", Delay(3), times=1)
        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        await getattr(session, closing)()
        assert 3.0 == trio.current_time()
        assert [True] == [result.backend_state_lost for result in results]
        if closing == "suspend":
            async with await world.restore_session("one") as restored:
                await restored.call_tool("a_echo")
            assert 2 == initialized(world)


async def test_a_session_lost_while_it_drains_is_still_replaced(autojump_clock: MockClock) -> None:
    """The 404 may arrive after the close has begun."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, trio.open_nursery() as nursery:
        session = await world.make_session()
        backend.restart()
        backend.fail("tools/call", Delay(2), times=1)
        nursery.start_soon(session.call_tool, "a_echo")
        await wait_all_tasks_blocked()
        await session.aclose()
        assert 2.0 == trio.current_time()
        assert 1 == backend.executed["echo"]


@pytest.mark.parametrize("at", range(9))
@pytest.mark.parametrize("fault", [Hang(), Status(503), Delay(3)])
async def test_a_close_at_any_moment_of_a_recovery_is_bounded(at: int, fault: Any, autojump_clock: MockClock) -> None:
    """Drain and teardown are the bound, however the backend hangs, and though the call has no timeout."""
    backend = echo_backend(latency=0.5)
    limits = FactorySettings(drain_timeout=2, teardown_timeout=1, backend_init_timeout=5)
    async with open_world({"a": backend}, settings=limits) as world, trio.open_nursery() as nursery:
        session = await world.make_session()
        world.leaves_sessions = True  # a DELETE at the last moment may be cut off by the teardown's bound
        ends: list[type[BaseException] | None] = []

        async def call() -> None:
            try:
                await session.call_tool("a_echo", timeout=math.inf)
                ends.append(None)
            except (BackendUnavailable, SessionClosed) as error:
                ends.append(type(error))

        backend.restart()
        backend.fail("initialize", fault)
        nursery.start_soon(call)
        await trio.sleep(at * 0.5)
        began = trio.current_time()
        await session.aclose()
        assert trio.current_time() - began <= 3.0
        assert SessionState.CLOSED is session.state
        assert 1 == len(ends)


async def test_a_call_inside_a_callback_recovers_its_own_backend(autojump_clock: MockClock) -> None:
    """A progress callback calls another backend that lost its session: the outer call's backend is not affected."""

    async def steps(arguments: JSON, context: CallContext) -> str:
        await context.progress(1)
        return "done"

    outer = echo_backend(answers="sse")
    outer.add_tool("steps", steps)
    inner = echo_backend()
    async with open_world({"a": outer, "b": inner}) as world, world.open_session() as session:
        inner.restart()
        results: list[ToolResult] = []

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            results.append(await session.call_tool("b_echo"))

        assert not (await session.call_tool("a_steps", on_progress=on_progress)).backend_state_lost
        assert [True] == [result.backend_state_lost for result in results]
        assert (1, 2) == (initialized(world, "a"), initialized(world, "b"))


async def test_a_failed_inner_call_says_nothing_about_the_outer_backend(autojump_clock: MockClock) -> None:
    """An error of another backend that leaves a callback neither counts against the outer backend nor replaces its
    connection.
    """

    async def steps(arguments: JSON, context: CallContext) -> str:
        await context.progress(1)
        return "done"

    outer = echo_backend(answers="sse")
    outer.add_tool("steps", steps)
    dead = echo_backend()
    async with open_world({"a": outer, "b": dead}) as world, world.open_session() as session:
        dead.crash()
        dead.fail(CONNECT, Refuse())

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            await session.call_tool("b_echo")

        for _ in range(7):
            with pytest.raises(BackendUnavailable, match="backend 'b'"):
                await session.call_tool("a_steps", on_progress=on_progress)
        await session.call_tool("a_echo")
        assert 1 == initialized(world, "a")
        dead.restart()
        world.leaves_sessions = True


async def test_a_recovery_that_takes_the_whole_timeout_leaves_none_for_the_call(autojump_clock: MockClock) -> None:
    """The call ends at that moment, and is not sent."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.restart()
        backend.fail("initialize", Delay(2), times=1)
        with pytest.raises(BackendTimeout) as caught:
            await session.call_tool("a_echo", timeout=2)
        assert not caught.value.may_have_executed
        assert 2.0 == trio.current_time()
        assert 0 == backend.executed["echo"]


async def test_a_recovery_behind_another_sessions_attempt(autojump_clock: MockClock) -> None:
    """The state is RECOVERING while it waits for that attempt; if that fails, its callers get the failure at once."""
    backend = echo_backend()
    async with open_world({"a": backend}, settings=FactorySettings(backend_init_timeout=5)) as world:
        one, two = await world.make_session(), await world.make_session()
        world.leaves_sessions = True
        backend.restart()
        backend.fail("initialize", Hang())

        async def call(session: Session) -> None:
            with pytest.raises(BackendUnavailable):
                await session.call_tool("a_echo")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, one)
            await trio.sleep(1)
            nursery.start_soon(call, two)
            await trio.sleep(1)
            assert (BackendState.RECOVERING, 0) == status_of(two)
            last = two.backends["a"].last_failure
            assert last is not None
            assert 0.0 == last.elapsed
        assert 5.0 == trio.current_time()
        assert 2 + 1 == initialized(world)


async def test_a_connection_that_is_ready_after_the_drain_does_not_join(autojump_clock: MockClock) -> None:
    """Another backend is slow with its goodbye; the new backend session gets its DELETE, too."""
    limits = FactorySettings(drain_timeout=1)
    backend, slow = echo_backend(), echo_backend()
    async with open_world({"a": backend, "b": slow}, settings=limits) as world, trio.open_nursery() as nursery:
        session = await world.make_session()
        slow.fail("DELETE", Delay(1))
        backend.restart()
        backend.fail("notifications/initialized", Delay(1.5))

        async def call() -> None:
            with pytest.raises(SessionClosed):
                await session.call_tool("a_echo")

        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        await session.aclose()
        assert 2.0 == trio.current_time()
        assert {} == backend.sessions


async def test_an_id_that_the_row_never_learned_ends_with_a_suspend(autojump_clock: MockClock) -> None:
    """The storage was away: a backend session that no restore could find gets its DELETE."""
    storage = ScriptedStorage()

    async def away() -> None:
        raise StorageError("is away")

    async with open_world({"a": echo_backend()}, storage=storage) as world:
        session = await world.make_session(session_id="one")
        storage.before["replace"] = away
        world["a"].restart()
        await session.call_tool("a_echo")
        await session.suspend()
        assert {} == world["a"].sessions
        storage.before.clear()
        async with await world.restore_session("one") as restored:
            await restored.call_tool("a_echo")


async def test_a_recovery_counts_against_the_deadline_of_the_call(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """A call that waits for a recovery has that much less time for its answer."""
    backend = slow_backend(seconds=60.0)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.sessions.clear()
        backend.fail("initialize", Delay(0.6))

        async def notice() -> None:
            await session.call_tool("a_echo")

        nursery.start_soon(notice)
        await wait_all_tasks_blocked()
        began_at = trio.current_time()
        with pytest.raises(BackendTimeout):
            await session.call_tool("a_slow", timeout=1.0)
        assert 1.0 == pytest.approx(trio.current_time() - began_at)


async def test_a_call_refused_after_a_failed_recovery_carries_its_reason(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Of two calls that are refused for a lost session, the later one ends with the reason for which the recovery
    failed.
    """
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.sessions.clear()
        backend.fail("tools/call", Delay(1.0), times=1)
        backend.fail("initialize", Status(500))

        async def call() -> None:
            with pytest.raises(BackendUnavailable, match="is not connected: it answered 'initialize' with HTTP 500"):
                await session.call_tool("a_echo")

        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        await call()
        assert 0.0 == trio.current_time()  # and the first one has yet to be refused
        await trio.sleep(2.0)
        assert 0 == session.in_flight


# Words of a refusal that name the session

NOT_FOUND = b"Session not found"
IN_WORDS: list[tuple[Any, bool]] = [  # whether a tool call did not run
    (Status(400, b"Server not initialized"), True),
    (Status(401, NOT_FOUND), True),
    (Status(403, NOT_FOUND), False),
    (Status(409, b"session MISMATCH"), True),
    (Status(410, b"gone"), True),
    (Status(422, b"Expected initialize request"), True),
    (Status(500, NOT_FOUND), False),
    (Status(503, NOT_FOUND), False),
    (Error(-32001, "Session not found", status=401), True),
    (Error(-32001, "Session terminated", status=200), False),
    (Error(-32603, "unknown session", status=500), False),
]


@pytest.mark.parametrize(("fault", "did_not_run"), IN_WORDS, ids=repr)
async def test_a_session_that_is_lost_in_words_is_replaced(
    fault: Any, did_not_run: bool, autojump_clock: MockClock
) -> None:
    """One handshake. A tool call is sent again where the status proves that it did not run; else the caller gets the
    backend's error, and the next call meets the new session.
    """
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        old = session.backend_sessions["a"]
        world["a"].fail(lambda exchange: exchange.method == "tools/call" and exchange.session_id == old, fault)
        if did_not_run:
            assert (await session.call_tool("a_echo")).backend_state_lost
        else:
            with pytest.raises(BackendError):
                await session.call_tool("a_echo")
            await trio.sleep(0.1)
            await session.call_tool("a_echo")
        assert (2, 2, 1) == (initialized(world), calls(world), world["a"].executed["echo"])


@pytest.mark.parametrize(("fault", "did_not_run"), IN_WORDS, ids=repr)
async def test_a_read_is_sent_again_whatever_the_status(
    fault: Any, did_not_run: bool, autojump_clock: MockClock
) -> None:
    """It changes nothing."""
    backend = echo_backend()
    backend.add_resource("file:///x")
    async with open_world({"a": backend}) as world, world.open_session() as session:
        old = session.backend_sessions["a"]
        backend.fail(lambda exchange: exchange.method == "resources/read" and exchange.session_id == old, fault)
        await session.read_resource("file:///x")
        assert 2 == initialized(world)


@pytest.mark.parametrize(
    ("fault", "tries", "pauses"),
    [
        (Status(401, NOT_FOUND), 2, (0, 1, 1, 30, 200, 300)),
        (Status(401, NOT_FOUND), 2, (0, 61, 400)),  # the new session was told by the call that was sent again
        (Error(-32001, "Session not found"), 1, (0, 1, 1, 30, 200, 300)),
    ],
)
async def test_words_that_a_new_session_hears_too_are_not_about_the_session(
    fault: Any, tries: int, pauses: tuple[float, ...], autojump_clock: MockClock
) -> None:
    """The answer is passed on, and for ten minutes these words replace no session and have nothing sent again."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        world["a"].fail("tools/call", fault)
        for seconds in pauses:
            await trio.sleep(seconds)
            with pytest.raises(BackendError, match=r"401|Session not found"):
                await session.call_tool("a_echo")
        assert 2 == initialized(world)
        assert tries + len(pauses) - 1 == calls(world)
        world["a"].heal()
        await session.call_tool("a_echo")
        world["a"].fail("tools/call", fault, times=1)
        await trio.sleep(601)
        with contextlib.suppress(BackendError):
            await session.call_tool("a_echo")
        await session.call_tool("a_echo")
        assert 3 == initialized(world)


@pytest.mark.parametrize("fault", [fault for fault, did_not_run in IN_WORDS if did_not_run], ids=repr)
async def test_words_that_a_new_session_made_good_are_believed_again(fault: Any, autojump_clock: MockClock) -> None:
    """A server that restarts three times in a minute is back each time: the call that it refused in words was answered
    in the new session, so the words were about the session.
    """
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        for restarts in (1, 2, 3):
            old = session.backend_sessions["a"]
            world["a"].fail(partial(is_call_in, old), fault)
            assert (await session.call_tool("a_echo")).backend_state_lost
            assert (1 + restarts, restarts) == (initialized(world), world["a"].executed["echo"])
            await trio.sleep(10)


async def test_words_are_believed_again_after_the_backend_was_away(autojump_clock: MockClock) -> None:
    """A server that is down while its session is replaced did lose the session: the words were right."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        for restarts in (1, 2):
            old = session.backend_sessions["a"]
            fault = Error(-32000, "Bad Request: No valid session ID provided", status=400)
            world["a"].fail(partial(is_call_in, old), fault)
            world["a"].fail("initialize", Status(503), times=1)
            with pytest.raises(BackendUnavailable):
                await session.call_tool("a_echo")
            await trio.sleep(10)
            await session.call_tool("a_echo")
            assert restarts == world["a"].executed["echo"]


async def test_a_hundred_calls_that_hear_it_share_one_handshake(autojump_clock: MockClock) -> None:
    """Those that were on their way are sent again, too."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        old = session.backend_sessions["a"]
        world["a"].fail(
            lambda exchange: exchange.method == "tools/call" and exchange.session_id == old, Status(401, NOT_FOUND)
        )
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(session.call_tool, "a_echo")
        assert (2, 100) == (initialized(world), world["a"].executed["echo"])


@pytest.mark.parametrize("fault", [Status(404), Status(400, NOT_FOUND)], ids=repr)
async def test_an_error_of_the_new_session_leaves_the_words_their_meaning(
    fault: Any, autojump_clock: MockClock
) -> None:
    """The call is sent again and the tool fails: later the backend is believed when its words say the same again."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        world["a"].fail("tools/call", fault, times=1)
        world["a"].fail("tools/call", Error(-32000, "no"), times=1)
        with pytest.raises(BackendRejected, match="'no'"):
            await session.call_tool("a_echo")
        await trio.sleep(61)
        world["a"].fail("tools/call", Status(400, NOT_FOUND), times=1)
        assert (await session.call_tool("a_echo")).backend_state_lost
        assert 3 == initialized(world)
