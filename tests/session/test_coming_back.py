"""Retries in the background: late, failed and lost backends join again, within the backoff, and take no name of
another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.harness import ALICE, BOB, NO_RETRIES, World, drained, echo_backend, library_tasks, open_world
from support.plain_connector import PlainClient, PlainConnector, plain_backends
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    Backend,
    BackendState,
    BackendUnauthorized,
    BackendUnavailable,
    Bare,
    FactorySettings,
    FailureReason,
    Identity,
    Priority,
    Session,
    SessionChange,
    open_session_factory,
)
from trio_vmcp._request_note import note_session_lost
from trio_vmcp._session.reconnects import LEAST_DELAY, Backoff, Endpoints
from trio_vmcp.metadata import endpoint_digest
from trio_vmcp.testing import CONNECT, Delay, Disconnect, Error, FaultRule, Hang, Refuse, ScriptedBackend, Status

FOR_HOURS = FactorySettings(idle_timeout=math.inf)
ERAS = pytest.mark.parametrize("era", ["legacy", "modern"])


def failures_of(session: Session) -> dict[str, FailureReason]:
    """A function, since mypy takes a property that was read before for unchanged."""
    return {failure.backend_id: failure.reason for failure in session.failures}


def state_of_a(session: Session) -> BackendState:
    """A function, for the same reason."""
    return session.backends["a"].state


# Joining


@ERAS
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Refuse(), FailureReason.UNREACHABLE),
        (Hang(), FailureReason.TIMEOUT),
        (Status(401), FailureReason.UNAUTHORIZED),
        (Status(503), FailureReason.REJECTED),
        (Status(200, b"hello"), FailureReason.PROTOCOL),
    ],
)
async def test_a_failed_backend_is_tried_again_and_joins(
    era: str, fault: Any, reason: FailureReason, autojump_clock: MockClock
) -> None:
    """After any kind of failure: `failures` empties, the names and the metadata have the backend, and `changes` reports
    it.
    """
    backend = echo_backend(era)
    where = CONNECT if isinstance(fault, Refuse) else "POST"
    backend.fail(where, fault)
    limits = FactorySettings(backend_init_timeout=2)
    async with open_world({"a": backend, "b": echo_backend(era)}, settings=limits) as world:
        async with world.open_session() as session, session.changes() as changes:
            assert {"a": reason} == failures_of(session)
            assert BackendState.DEGRADED is state_of_a(session)
            await trio.sleep(60)
            assert {"a": reason} == failures_of(session)
            assert ["b_echo"] == [tool.name for tool in session.tools]
            assert [] == await drained(changes)
            backend.heal()
            await trio.sleep(80)
            assert {} == failures_of(session)
            assert ["a_echo", "b_echo"] == [tool.name for tool in session.tools]
            told = await drained(changes)
            assert {SessionChange(kind, "a") for kind in ("backend", "tools", "resources", "prompts")} == set(told)
            assert BackendState.READY is state_of_a(session)
            last = session.backends["a"].last_failure
            assert last is not None
            assert reason is last.reason
            await session.call_tool("a_echo")
            (row,) = await world.storage.rows()
            assert {"a", "b"} == {record.backend_id for record in row.backends}


async def test_a_late_backend_joins_and_is_reported(autojump_clock: MockClock) -> None:
    """At session_init_timeout it is PENDING; its first attempt goes on, and the backend joins."""
    backend = echo_backend()
    backend.fail("initialize", Delay(20))
    limits = FactorySettings(session_init_timeout=5)
    async with open_world({"a": backend}, settings=limits) as world, world.open_session() as session:
        assert {"a": FailureReason.PENDING} == failures_of(session)
        assert BackendState.CONNECTING is session.backends["a"].state
        async with session.changes() as changes:
            await trio.sleep(16)
            assert SessionChange("backend", "a") in await drained(changes)
        assert {} == failures_of(session)
        assert 1 == len(backend.received("initialize"))


@pytest.mark.parametrize("strategy", [Bare(), Priority("late", "early")])
async def test_a_late_joiner_takes_no_bound_name(strategy: Any, autojump_clock: MockClock) -> None:
    """Though first in the configured order: bound names stay, its own name is withheld and in the conflicts."""
    late, early = echo_backend(name="late"), echo_backend(name="early")
    late.add_tool("own")
    late.fail(CONNECT, Refuse())
    limits = FactorySettings(conflict_resolution=strategy)
    async with open_world({"late": late, "early": early}, settings=limits) as world:
        async with world.open_session() as session:
            await session.call_tool("echo")
            late.heal()
            await trio.sleep(60)
            assert {} == failures_of(session)
            await session.call_tool("echo")
            await session.call_tool("own")
            assert (0, 2, 1) == (late.executed["echo"], early.executed["echo"], late.executed["own"])
            (conflict,) = session.conflicts
            assert ("echo", ("late", "early"), "early") == (conflict.name, conflict.backend_ids, conflict.owner)


async def test_a_name_stays_with_a_backend_that_is_away(autojump_clock: MockClock) -> None:
    """Another backend that offers the same name does not get it; calls fail at once until the owner is back."""
    connector = PlainConnector()
    limits = FactorySettings(conflict_resolution=Bare())

    async def crash() -> None:
        await trio.sleep(5)
        connector.on_connect["b0"] = partial(trio.sleep, 20)
        connector.services.clear()
        raise ZeroDivisionError

    connector.services["b0"] = crash
    async with open_session_factory(connector=connector, settings=limits) as factory:
        async with factory.open_session(plain_backends(2)) as session:
            owner = (await session.call_tool("echo")).backend_id
            assert "b0" == owner
            await trio.sleep(6)
            assert ["echo"] == [tool.name for tool in session.tools]
            with pytest.raises(BackendUnavailable, match="backend 'b0' is not connected: it crashed"):
                await session.call_tool("echo")
            assert 6.0 == trio.current_time()
            await trio.sleep(30)
            assert "b0" == (await session.call_tool("echo")).backend_id


async def test_a_crash_in_the_opening_binds_no_names(autojump_clock: MockClock) -> None:
    """A backend that joined early and crashed gets no name before the backends configured ahead of it."""

    async def crash() -> None:
        await trio.sleep(1)
        raise ZeroDivisionError

    connector = PlainConnector(on_connect={"b0": partial(trio.sleep, 5)}, services={"b1": crash})
    limits = FactorySettings(conflict_resolution=Bare())
    async with open_session_factory(connector=connector, settings=limits) as factory:
        async with factory.open_session(plain_backends(2)) as session:
            assert "b0" == (await session.call_tool("echo")).backend_id


async def test_the_sessions_identity_connects_in_the_background(autojump_clock: MockClock) -> None:
    """A reconnect without a call uses the identity that opened the session."""
    asked: list[Identity | None] = []
    backend = echo_backend()
    backend.fail("POST", Status(503), times=1)

    def auth(_: Backend, identity: Identity | None) -> None:
        asked.append(identity)

    async with open_world({"a": backend}, auth=auth) as world, world.open_session(identity=ALICE) as session:
        asked.clear()
        await trio.sleep(5)
        assert {} == failures_of(session)
        assert {ALICE} == set(asked)


async def test_retries_can_be_switched_off(autojump_clock: MockClock) -> None:
    """`reconnect_delay=math.inf`: no failed or crashed backend is tried in the background. A call that is refused for a
    lost session still gets a new one.
    """
    for limits in (NO_RETRIES, FactorySettings(reconnect_delay=math.inf)):
        failed, lost = echo_backend(), echo_backend()
        failed.fail(CONNECT, Refuse(), times=1)
        async with open_world({"a": failed, "b": lost}, settings=limits) as world, world.open_session() as session:
            attempts = world.network.connection_attempts
            await trio.sleep(1000)
            assert attempts == world.network.connection_attempts
            assert {"a": FailureReason.UNREACHABLE} == failures_of(session)
            lost.restart()
            await session.call_tool("b_echo")
            lost.restart()
            await session.call_tool("b_echo")


# How often


@given(st.floats(0, 10), st.floats(0.05, 100) | st.just(math.inf), st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_delays_double_up_to_a_limit(first: float, longest: float, chances: list[float]) -> None:
    """Each delay is twice the last up to the longest, ±20 %, and never 0."""
    backoff = Backoff(first, longest)
    expected = max(first, LEAST_DELAY)
    for chance in chances:
        delay = backoff.next(chance)
        assert 0.8 * expected <= delay * 1.000001
        assert delay <= 1.2 * expected * 1.000001
        expected = max(min(expected * 2, longest), first, LEAST_DELAY)
    backoff.reset()
    assert backoff.next(0.5) == pytest.approx(max(first, LEAST_DELAY))


def attempts_at(world: World, backend: ScriptedBackend) -> list[float]:
    """The times of attempts; from now on every attempt is refused."""
    times: list[float] = []

    def note(exchange: object) -> bool:
        return False

    class Noted(FaultRule):
        def strikes(self, exchange: object) -> bool:
            if exchange is None:
                times.append(trio.current_time())
            return exchange is None

    backend._rules.append(Noted(note, Refuse()))
    return times


def most_attempts(seconds: float, delay: float = 0.5, longest: float = 60.0) -> int:
    """The most attempts at one endpoint: doubled delays at 80 %, from the first failure on."""
    count, at = 1, 0.0
    while at <= seconds:
        at += 0.8 * delay
        delay = min(delay * 2, longest)
        count += 1
    return count


async def test_a_dead_backend_is_asked_ever_less_often(autojump_clock: MockClock) -> None:
    """0.5, 1, 2 … 60 s between two attempts, ±20 %, without end."""
    backend = echo_backend()
    async with open_world({"a": backend}, settings=FOR_HOURS) as world:
        times = attempts_at(world, backend)
        async with world.open_session():
            await trio.sleep(3600)
        gaps = [after - before for before, after in pairwise(times)]
        delay = 0.5
        for gap in gaps:
            assert 0.8 * delay - 1e-9 <= gap <= 1.2 * delay + 1e-9
            delay = min(delay * 2, 60.0)
        assert len(gaps) >= 3600 / 72


async def test_forty_sessions_share_one_budget(autojump_clock: MockClock) -> None:
    """One attempt at a time over all sessions, and as many in an hour as one session would make. After a success the
    sessions connect at once, one after another.
    """
    backend = echo_backend(latency=0.01)
    async with open_world({"a": backend}, settings=FOR_HOURS) as world:
        rule = backend.fail(CONNECT, Refuse())
        sessions = [await world.make_session() for _ in range(40)]
        opened = world.network.connection_attempts
        assert 40 == opened
        await trio.sleep(3600)
        assert world.network.connection_attempts - opened <= most_attempts(3600)
        assert rule.struck - opened >= 3600 / 72 - 2
        backend.heal()
        await trio.sleep(72 + 40 * 4 * 0.01)
        assert [()] * 40 == [session.failures for session in sessions]


async def test_attempts_do_not_overlap(autojump_clock: MockClock) -> None:
    """Twenty sessions, whether attempts fail, hang or succeed: at most one at a time after the openings."""
    connector = PlainConnector(on_connect={"b0": partial(trio.sleep, 7)})

    async def refuse() -> None:
        await trio.sleep(3)
        raise OSError

    connector.on_connect["b0"] = refuse
    async with open_session_factory(connector=connector) as factory:
        sessions: list[Session] = []

        async def open_one() -> None:
            sessions.append(await factory.make_session(plain_backends(1)))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(open_one)
        assert 20 == connector.most_connecting
        connector.most_connecting = 0
        await trio.sleep(1000)
        connector.on_connect["b0"] = partial(trio.sleep, 2)
        await trio.sleep(200)
        assert 1 == connector.most_connecting
        assert [()] * 20 == [session.failures for session in sessions]


async def test_a_successful_opening_ends_the_backoff_of_other_sessions(autojump_clock: MockClock) -> None:
    """An opening that succeeds proves that the endpoint is reachable: waiting sessions connect at once."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world:
        backend.fail(CONNECT, Refuse())
        waiting = [await world.make_session() for _ in range(3)]
        await trio.sleep(600)
        backend.heal()
        await world.make_session()
        await trio.sleep(0.001)
        assert [()] * 3 == [session.failures for session in waiting]


async def test_refused_credentials_delay_no_other_identity(autojump_clock: MockClock) -> None:
    """Alice's are refused for ever and tried ever less often; Bob reconnects to the same endpoint at once."""
    backend = echo_backend()

    def from_alice(exchange: Any) -> bool:
        return bool(exchange.headers.get("x-who") == "alice")

    async with open_world({"a": backend}) as world:
        (configured,) = world.configured
        backend.fail(from_alice, Status(401))
        alices = [attrs.evolve(configured, headers={"x-who": "alice"})]
        alice = await world.factory.make_session(alices, identity=ALICE)
        bob = await world.make_session(identity=BOB)
        for number in range(20):
            await trio.sleep(30)
            backend.restart()
            began = trio.current_time()
            await bob.call_tool("a_echo", caller=BOB)
            assert began == trio.current_time()
            assert number + 1 == backend.executed["echo"]
        assert {"a": FailureReason.UNAUTHORIZED} == failures_of(alice)
        refused = [e for e in backend.exchanges if e.status == 401]
        assert 600 / 72 <= len(refused) <= most_attempts(600)


async def test_simultaneous_failures_count_once(autojump_clock: MockClock) -> None:
    """Twenty openings fail at the same moment: the next attempt comes after half a second, not after a minute."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world:
        backend.fail(CONNECT, Refuse(), times=20)
        sessions: list[Session] = []

        async def open_one() -> None:
            sessions.append(await world.make_session())

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(open_one)
        await trio.sleep(0.61)
        assert [()] * 20 == [session.failures for session in sessions]


async def test_a_long_connection_resets_the_backoff_once(autojump_clock: MockClock) -> None:
    """After a long connection the first delay is short; the delays of further failures double as ever."""
    connector = PlainConnector()
    attempts: list[float] = []

    async def refuse() -> None:
        attempts.append(trio.current_time())
        raise OSError

    async def live_long() -> None:
        await trio.sleep(500)
        connector.on_connect["b0"] = refuse
        raise ZeroDivisionError

    connector.services["b0"] = live_long
    async with open_session_factory(connector=connector) as factory:
        async with factory.open_session(plain_backends(1)):
            await trio.sleep(1100)
    assert len(attempts) <= most_attempts(600)


async def test_no_backend_is_tried_twice_before_the_opening_ends(autojump_clock: MockClock) -> None:
    """However early its first attempt failed."""
    connector = PlainConnector(on_connect={"b1": partial(trio.sleep, 20)})
    attempts: list[float] = []

    async def refuse() -> None:
        attempts.append(trio.current_time())
        raise OSError

    connector.on_connect["b0"] = refuse
    async with open_session_factory(connector=connector) as factory:
        async with factory.open_session(plain_backends(2)):
            assert 20.0 == trio.current_time()
            assert [0.0] == attempts
            await trio.sleep(1)
            assert 2 <= len(attempts)


async def test_a_retried_backend_is_recovering_during_its_attempts(autojump_clock: MockClock) -> None:
    """RECOVERING while an attempt runs, DEGRADED between attempts."""
    backend = echo_backend()
    limits = FactorySettings(backend_init_timeout=5, reconnect_delay=10)
    async with open_world({"a": backend}, settings=limits) as world:
        backend.fail(CONNECT, Refuse(), times=1)
        async with world.open_session() as session:
            assert BackendState.DEGRADED is state_of_a(session)
            backend.fail(CONNECT, Hang())
            await trio.sleep(12.5)
            assert BackendState.RECOVERING is state_of_a(session)
            await trio.sleep(5)
            assert BackendState.DEGRADED is state_of_a(session)


async def test_refused_credentials_are_asked_for_soon_once_they_were_good(autojump_clock: MockClock) -> None:
    """Each refusal in a row doubles the delay, from the first delay after a success."""
    attempts: list[float] = []
    refused = [True] * 4 + [False] + [True] * 2 + [False]
    connector = PlainConnector()

    async def judge() -> None:
        attempts.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if refused[len(attempts) - 1]:
            raise BackendUnauthorized("b0", "refused the credentials")

    async def crash() -> None:
        await trio.sleep(100)
        raise ZeroDivisionError

    connector.on_connect["b0"], connector.services["b0"] = judge, crash
    async with open_session_factory(connector=connector) as factory:
        async with factory.open_session(plain_backends(1)):
            await trio.sleep(190)
    gaps = [after - before for before, after in pairwise(attempts)]
    for expected, gap in zip((0.5, 1.0, 2.0, 4.0, 100.5, 0.5, 1.0), gaps, strict=True):
        assert gap == pytest.approx(expected, rel=0.21)


class Resuming(PlainConnector):
    """A connector that notes the records it gets to resume."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.resumed: list[bool] = []

    async def __call__(self, backend: Backend, **options: Any) -> PlainClient:
        self.resumed.append(options["resume"] is not None)
        client = await super().__call__(backend, **options)
        client.record = attrs.evolve(client.record, endpoint_digest=endpoint_digest(backend))
        return client


async def test_a_crashed_connection_is_resumed_and_a_lost_session_is_not(autojump_clock: MockClock) -> None:
    """A crash of the connection proves nothing about the backend session, so it is resumed; a lost session is not."""
    connector = Resuming()
    crash = trio.Event()

    async def serve() -> None:
        await crash.wait()
        raise ZeroDivisionError

    async def lose() -> None:
        await trio.lowlevel.checkpoint()
        note_session_lost()
        raise BackendUnavailable("b0", "no longer knows our session")

    connector.services["b0"] = serve
    async with open_session_factory(connector=connector) as factory:
        async with factory.open_session(plain_backends(1)) as session:
            for _ in range(2):
                connector.clients["b0"].on_request = lose
                await session.call_tool("b0_echo")
                crash.set()
                await trio.sleep(0.001)
                crash = trio.Event()
                await trio.sleep(10)
                await session.call_tool("b0_echo")
    assert [False, False, True, False, True] == connector.resumed


async def test_a_resumed_connection_reports_the_lists_that_differ(autojump_clock: MockClock) -> None:
    """It is listed before it joins: the same lists are no change, and what callers read stays the same object."""
    connector = Resuming()
    crash = trio.Event()

    async def serve() -> None:
        await crash.wait()
        raise ZeroDivisionError

    connector.services["b0"] = serve
    async with open_session_factory(connector=connector) as factory:
        async with factory.open_session(plain_backends(1)) as session, session.changes() as changes:
            before = session.tools
            for _ in range(2):
                crash.set()
                await trio.sleep(0.001)
                crash = trio.Event()
                assert [SessionChange("backend", "b0")] * 2 == await drained(changes, 10)  # away, and back
                assert before is session.tools
    assert [False, True, True] == connector.resumed


@pytest.mark.parametrize("lives", [0.0, 0.2, 5.0])
async def test_a_backend_that_crashes_right_after_joining_is_not_hammered(
    lives: float, autojump_clock: MockClock
) -> None:
    """Each attempt succeeds and each connection crashes: the delays double all the same."""
    joined: list[float] = []

    async def crash() -> None:
        joined.append(trio.current_time())
        assert sum(name.endswith("._retry") for name in library_tasks()) <= 1
        await trio.sleep(lives)
        raise ZeroDivisionError

    connector = PlainConnector(services={"b0": crash})
    async with open_session_factory(connector=connector, settings=FOR_HOURS) as factory:
        async with factory.open_session(plain_backends(1)):
            await trio.sleep(3600)
    assert 3600 / (72 + lives) <= len(joined) <= most_attempts(3600) + 1


async def test_a_connection_that_lasted_is_replaced_soon(autojump_clock: MockClock) -> None:
    """After more than `reconnect_max_delay` s of service the delays begin anew."""
    lifetimes = iter([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 100.0])
    crashed_at, joined_at = [], []

    async def crash() -> None:
        joined_at.append(trio.current_time())
        await trio.sleep(next(lifetimes, math.inf))
        crashed_at.append(trio.current_time())
        raise ZeroDivisionError

    connector = PlainConnector(services={"b0": crash})
    async with open_session_factory(connector=connector) as factory:
        async with factory.open_session(plain_backends(1)):
            await trio.sleep(1000)
    assert joined_at[-1] - crashed_at[-1] <= 0.6
    assert joined_at[-2] - crashed_at[-2] >= 0.8 * 16


async def test_a_crash_during_a_reconnect_is_a_failure(autojump_clock: MockClock) -> None:
    """Each service crashes before its backend is listed: the delays double."""
    began: list[float] = []

    async def crash() -> None:
        began.append(trio.current_time())
        raise ZeroDivisionError

    connector = PlainConnector(services={"b0": crash})
    async with open_session_factory(connector=connector) as factory:
        async with factory.open_session(plain_backends(2)) as session:
            await trio.sleep(600)
            assert {"b0": FailureReason.UNREACHABLE} == failures_of(session)
            await session.call_tool("b1_echo")
    assert len(began) <= most_attempts(600)


async def test_retries_share_the_places_of_the_opening(autojump_clock: MockClock) -> None:
    """`max_backend_init_concurrency` holds for retries, too; a recovery for a call waits for no place."""
    hang: dict[str, Callable[[], Any]] = {f"b{number}": trio.sleep_forever for number in range(8)}
    connector = PlainConnector(on_connect=hang)
    limits = FactorySettings(max_backend_init_concurrency=2, backend_init_timeout=5, session_init_timeout=6)
    async with open_session_factory(connector=connector, settings=limits) as factory:
        async with factory.open_session(plain_backends(8)):
            await trio.sleep(300)
        assert 2 == connector.most_connecting
        assert 0 == connector.connecting
    backends = {f"b{number}": echo_backend() for number in range(4)}
    async with open_world(backends, settings=limits) as world:
        for number in range(3):
            backends[f"b{number}"].fail("POST", Hang())
        async with world.open_session() as session:
            await trio.sleep(2)
            backends["b3"].restart()
            began = trio.current_time()
            await session.call_tool("b3_echo")
            assert began == trio.current_time()


def test_endpoints_are_discarded_with_their_last_session() -> None:
    """A factory that meets ever new endpoints keeps none of them."""
    endpoints = Endpoints(0.5, 60.0)
    kept = endpoints.turns("a")
    assert kept is endpoints.turns("a")
    for number in range(1000):
        endpoints.turns(f"endpoint {number}")
    assert ["a"] == list(endpoints._turns)


# When sessions end


@pytest.mark.parametrize("fault", [Refuse(), Hang(), Delay(1)])
@pytest.mark.parametrize("closing", ["aclose", "suspend"])
async def test_a_session_closes_while_a_backend_is_tried_again(
    closing: str, fault: Any, autojump_clock: MockClock
) -> None:
    """It closes at once and leaves nothing of the attempt; a stored record stays for a restore."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world:
        for _ in range(4):
            backend.fail(CONNECT, fault)
            session = await world.make_session(session_id="one")
            await trio.sleep(0.7)
            began = trio.current_time()
            await getattr(session, closing)()
            assert began == trio.current_time()
            backend.heal()
            if closing == "suspend":
                async with await world.restore_session("one") as restored:
                    await restored.call_tool("a_echo")
                world.storage.inner = type(world.storage.inner)()
            else:
                world.storage.inner = type(world.storage.inner)()


async def test_a_restored_session_resumes_a_backend_that_was_away(autojump_clock: MockClock) -> None:
    """The stored id is kept while the backend is away, and then used without a handshake."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world:
        await (await world.make_session(session_id="one")).suspend()
        backend.fail("POST", Disconnect(0))
        async with await world.restore_session("one") as restored:
            assert {"a": FailureReason.UNREACHABLE} == failures_of(restored)
            with pytest.raises(BackendUnavailable, match="is not connected"):
                await restored.call_tool("a_echo")
            await trio.sleep(10)
            backend.heal()
            await trio.sleep(20)
            assert not (await restored.call_tool("a_echo")).backend_state_lost
        assert 1 == len(backend.received("initialize"))


async def test_a_suspended_session_keeps_a_backend_that_never_came(autojump_clock: MockClock) -> None:
    """Restored, away all the time, suspended again: record and names are unchanged."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world:
        await (await world.make_session(session_id="one")).suspend()
        (before,) = await world.storage.rows()
        backend.fail("POST", Disconnect(0))
        restored = await world.restore_session("one")
        await trio.sleep(5)
        await restored.suspend()
        (after,) = await world.storage.rows()
        assert (before.backends, before.bindings) == (after.backends, after.bindings)
        backend.heal()
        async with await world.restore_session("one") as restored:
            await restored.call_tool("a_echo")
        assert 1 == len(backend.received("initialize"))


async def test_nothing_is_tried_once_a_session_has_closed(autojump_clock: MockClock) -> None:
    """A session that shares the endpoint makes its own attempts and no more."""
    backend = echo_backend()
    backend.fail(CONNECT, Refuse())
    async with open_world({"a": backend}) as world:
        for _ in range(5):
            await (await world.make_session()).aclose()
        await wait_all_tasks_blocked()
        attempts = world.network.connection_attempts
        await trio.sleep(600)
        assert attempts == world.network.connection_attempts


async def test_a_recovery_fails_at_once_while_its_endpoint_backs_off(autojump_clock: MockClock) -> None:
    """One session waits for its endpoint's next turn; a call of another session that needs a recovery there does not
    wait.
    """
    backend = echo_backend()
    async with open_world({"a": backend}) as world:
        two = await world.make_session()
        backend.fail("initialize", Error(-32000, "no"))
        await world.make_session()
        await trio.sleep(300)
        backend.restart()
        began = trio.current_time()
        with pytest.raises(BackendUnavailable, match="is not connected: it no longer knows our session"):
            await two.call_tool("a_echo")
        assert began == trio.current_time()
        backend.heal()
        await trio.sleep(73)
        await two.call_tool("a_echo")
