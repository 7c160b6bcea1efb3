"""`create`, `get` and `terminate`: whose session it is, at which cost, and what is counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
from support.harness import ALICE, BOB, slow_backend
from support.managers import SLEEP, STATES, Managed, State, managed
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    Identity,
    InvalidSessionId,
    ManagerSettings,
    NoBackends,
    Session,
    SessionLimitReached,
    SessionNotFound,
    SessionState,
    StorageError,
    VmcpError,
)
from trio_vmcp.factory import REFUSAL_STEP
from trio_vmcp.testing import Delay, Error

EVERY_STATE = pytest.mark.parametrize("state", STATES)


async def error_of(ask: Callable[[], Awaitable[object]]) -> VmcpError | None:
    try:
        await ask()
    except VmcpError as error:
        return error
    return None


# Whose session it is


@pytest.mark.parametrize("identity", [ALICE, None])
async def test_create_and_get_give_the_session_of_their_caller(
    identity: Identity | None, autojump_clock: MockClock
) -> None:
    """`caller` is filled in, and an id of the instance begins with its name."""
    async with managed(limits=ManagerSettings(instance="one")) as world:
        session = await world.manager.create(identity=identity, attributes={"plan": "free"})
        again = await world.manager.get(session.id, caller=identity)
        for view in (session, again):
            assert "a" == (await view.call_tool("a_echo")).backend_id
        assert session.id == again.id
        assert session.id.startswith("one.")
        assert {"plan": "free"} == dict(again.metadata.attributes)


@EVERY_STATE
@pytest.mark.parametrize("owner", [ALICE, None])
async def test_get_finds_a_session_wherever_it_is(
    owner: Identity | None, state: State, autojump_clock: MockClock
) -> None:
    """Live here at once; asleep or only in the storage: with the same sessions at the backends."""
    async with managed(2) as world:
        session = await world.make(state, identity=owner)
        found = await world.manager.get(session.id, caller=owner)
        assert not (await found.call_tool("a_echo")).backend_state_lost
        assert 1 == len(world.backend.sessions)
        assert (1, 0) == (world.manager.statistics.live, world.manager.statistics.hibernated)
        assert (0 if state == "live" else 1) == world.manager.statistics.restored
        await world.manager.terminate(session.id, caller=owner)


async def test_a_live_session_is_found_without_the_storage(autojump_clock: MockClock) -> None:
    """Its owner's `get` takes no time, also while the storage hangs."""
    async with managed() as world:
        session = await world.make("live")
        world.way.before["load"] = trio.sleep_forever
        loads, began = world.way.calls["load"], trio.current_time()
        await world.manager.get(session.id, caller=ALICE)
        assert (loads, began) == (world.way.calls["load"], trio.current_time())
        world.way.before.clear()


@pytest.mark.parametrize("session_id", ["", "x" * 257, "a b", "é"])
async def test_what_is_no_id_is_refused_without_the_storage(session_id: str, autojump_clock: MockClock) -> None:
    """`InvalidSessionId`, from `get` and `terminate`."""
    async with managed() as world:
        for ask in (world.manager.get, world.manager.terminate):
            with pytest.raises(InvalidSessionId):
                await ask(session_id)
        assert 0 == world.way.calls["load"]


# Strangers


@EVERY_STATE
@pytest.mark.parametrize("thief", [BOB, None])
@pytest.mark.parametrize("what", ["get", "terminate"])
async def test_a_stranger_changes_nothing(
    what: str, thief: Identity | None, state: State, autojump_clock: MockClock
) -> None:
    """An id of another's is as an unknown one: the same error after the same operations of the storage; no backend is
    asked, and neither the TTL nor a clock moves.
    """
    async with managed(2) as world:
        session = await world.make(state)
        before = world.way.calls.copy(), world.requests(), world.manager.statistics
        entry = world.storage._entries[session.id]  # the one place that knows when a row expires
        spent, took = [], []
        for session_id in (session.id, "unknown"):
            calls, began = world.way.calls.copy(), trio.current_time()
            with pytest.raises(SessionNotFound):
                await getattr(world.manager, what)(session_id, caller=thief)
            spent.append(world.way.calls - calls)
            took.append(trio.current_time() - began)
        assert [{"load": 1}, {"load": 1}] == spent
        assert [REFUSAL_STEP] * 2 == pytest.approx(took)
        assert before[1:] == (world.requests(), world.manager.statistics)
        assert entry is world.storage._entries[session.id]
        await world.instances[1 if state == "elsewhere" else 0].manager.terminate(session.id, caller=ALICE)


@pytest.mark.parametrize("seconds", [0.0, 0.003, 0.019, 0.021, 0.039])
async def test_the_time_of_a_refusal_does_not_tell_what_it_took(seconds: float, autojump_clock: MockClock) -> None:
    """A refusal comes a whole number of steps after the request, however long the row took to read."""
    async with managed() as world:
        world.way.before["load"] = partial(trio.sleep, seconds)
        with pytest.raises(SessionNotFound):
            await world.manager.get("unknown", caller=BOB)
        assert pytest.approx(REFUSAL_STEP * (1 if seconds < REFUSAL_STEP else 2)) == trio.current_time()
        world.way.before.clear()


@EVERY_STATE
async def test_an_outage_does_not_tell_a_stranger_which_ids_exist(state: State, autojump_clock: MockClock) -> None:
    """`StorageError`, for an id that is live here as for an unknown one."""

    async def away() -> None:
        raise StorageError("the storage is away")

    async with managed(2) as world:
        session = await world.make(state)
        world.way.before["load"] = away
        for session_id in (session.id, "unknown"):
            assert StorageError is type(await error_of(partial(world.manager.get, session_id, caller=BOB)))
        world.way.before.clear()
        await world.manager.terminate(session.id, caller=ALICE)


async def test_a_stranger_does_not_keep_a_session_alive(autojump_clock: MockClock) -> None:
    """However often a thief asks, an idle session ends; each time its owner asks, it has `idle_timeout` again."""
    async with managed(limits=ManagerSettings(), idle_timeout=100) as world:
        session, kept = await world.make("live"), await world.make("live")
        for _ in range(15):
            await trio.sleep(10)
            await world.manager.get(kept.id, caller=ALICE)
            for session_id in (session.id, kept.id):
                with pytest.raises(SessionNotFound):
                    await world.manager.get(session_id, caller=BOB)
        assert [SessionState.CLOSED, SessionState.OPEN] == [session.state, kept.state]
        assert 1 == world.manager.statistics.expired


async def test_a_stranger_does_not_join_a_restore(autojump_clock: MockClock) -> None:
    """While the owner's restore hangs, a thief is refused as for an unknown id, and the owner gets the session."""
    async with managed(2) as world:
        session = await world.make("elsewhere")
        world.backend.fail("tools/list", Delay(5), times=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(world.manager.get, session.id, caller=ALICE))
            await wait_all_tasks_blocked()
            began, requests = trio.current_time(), world.requests()
            with pytest.raises(SessionNotFound):
                await world.manager.get(session.id, caller=BOB)
            assert began + REFUSAL_STEP == trio.current_time()
            assert requests == world.requests()
        await world.manager.terminate(session.id, caller=ALICE)


# Restored once


@pytest.mark.parametrize("state", ["asleep", "elsewhere"])
async def test_a_session_is_restored_once_however_many_ask(state: State, autojump_clock: MockClock) -> None:
    """A waiter that is cancelled takes neither the restore nor the others along."""
    found: list[Session] = []

    async def ask(world: Managed, session_id: str) -> None:
        found.append(await world.manager.get(session_id, caller=ALICE))

    async with managed(2) as world:
        session = await world.make(state)
        world.backend.fail("tools/list", Delay(5), times=1)
        first = trio.CancelScope()

        async def leave() -> None:
            with first:
                await ask(world, session.id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            await wait_all_tasks_blocked()
            for _ in range(9):
                nursery.start_soon(ask, world, session.id)
            await wait_all_tasks_blocked()
            first.cancel()
        assert 9 == len(found)
        assert {session.id} == {each.id for each in found}
        assert 1 == world.manager.statistics.restored
        await found[0].call_tool("a_echo")
        await world.manager.terminate(session.id, caller=ALICE)


@pytest.mark.parametrize("state", ["asleep", "elsewhere"])
async def test_a_failed_restore_is_not_remembered(state: State, autojump_clock: MockClock) -> None:
    """All waiters get the error; the session stays as it was, and the next `get` restores it."""
    async with managed(2, min_backends=1) as world:
        session = await world.make(state)
        statistics = world.manager.statistics
        world.backend.fail("tools/list", Error(-32000, "not now"))
        errors: list[type] = []
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                errors.append(type(await error_of(partial(world.manager.get, session.id, caller=ALICE))))

            for _ in range(3):
                nursery.start_soon(ask)
        assert [NoBackends] * 3 == errors
        assert statistics == world.manager.statistics
        world.backend.heal()
        found = await world.manager.get(session.id, caller=ALICE)
        assert not (await found.call_tool("a_echo")).backend_state_lost
        await world.manager.terminate(session.id, caller=ALICE)


# Caps


async def test_a_cap_holds_under_a_thousand_creates_at_once(autojump_clock: MockClock) -> None:
    """What is over it is refused at once: no backend is contacted, and nothing is stored."""
    outcomes: Counter[str] = Counter()
    async with managed(limits=ManagerSettings(max_sessions=5)) as world:
        world.backend.latency = 1.0
        began = trio.current_time()

        async def create() -> None:
            error = await error_of(world.manager.create)
            if error is not None:
                assert isinstance(error, SessionLimitReached)
                assert error.retry_after > 0
                assert began == trio.current_time()
            outcomes[type(error).__name__] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(create)
            await wait_all_tasks_blocked()
            assert 5 == world.manager.statistics.opening
        assert {"SessionLimitReached": 995, "NoneType": 5} == outcomes
        assert (5, 995) == (world.way.calls["create"], world.manager.statistics.refused)
        assert 5 == len(world.backend.sessions)


async def test_the_cap_of_an_identity_is_its_own(autojump_clock: MockClock) -> None:
    """Alice at her cap keeps neither Bob nor anonymous callers out; her other token is the same Alice."""
    async with managed(limits=ManagerSettings(max_sessions=9, max_sessions_per_identity=2)) as world:
        for identity in (ALICE, ALICE, BOB, None, None, None):
            await world.manager.create(identity=identity)
        with pytest.raises(SessionLimitReached):
            await world.manager.create(identity=Identity(issuer=ALICE.issuer, subject=ALICE.subject, token="newer"))


@pytest.mark.parametrize("state", ["asleep", "elsewhere"])
async def test_a_cap_holds_for_restores_and_wakes(state: State, autojump_clock: MockClock) -> None:
    """Nothing is lost: once there is a place, the session is restored. `terminate` needs none."""
    async with managed(2, limits=ManagerSettings(max_sessions=1, hibernate_after=SLEEP)) as world:
        session = await world.make(state)
        other = await world.manager.create()
        requests = world.requests()
        with pytest.raises(SessionLimitReached):
            await world.manager.get(session.id, caller=ALICE)
        assert requests == world.requests()
        await other.aclose()
        found = await world.manager.get(session.id, caller=ALICE)
        assert not (await found.call_tool("a_echo")).backend_state_lost
        await world.manager.terminate(session.id, caller=ALICE)


@EVERY_STATE
async def test_terminate_needs_no_place(state: State, autojump_clock: MockClock) -> None:
    """The session ends for good where it is asleep or live elsewhere, with all places taken."""
    async with managed(2, limits=ManagerSettings(max_sessions=1, hibernate_after=SLEEP)) as world:
        session = await world.make(state)
        if state != "live":
            await world.manager.create()
        await world.manager.terminate(session.id, caller=ALICE)
        assert await world.row(session.id) is None
        assert 1 == world.manager.statistics.terminated


@pytest.mark.parametrize("limits", [ManagerSettings(max_sessions=2), ManagerSettings(max_sessions_per_identity=2)])
async def test_a_session_that_drains_makes_room_for_another_one(
    limits: ManagerSettings, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A caller that ends its session and opens another one at once is not refused. As many may drain as may be live:
    else it could have ever more, each with a call that goes on.
    """
    async with managed(backends={"a": slow_backend(60)}, limits=limits) as world:
        manager = world.manager

        async def begin() -> Session:
            session = await manager.create(identity=ALICE)
            nursery.start_soon(error_of, partial(session.call_tool, "a_slow"))
            await wait_all_tasks_blocked()
            return session

        sessions = [await begin(), await begin()]
        for number in range(2):
            with pytest.raises(SessionLimitReached):
                await manager.create(identity=ALICE)
            await manager.terminate(sessions[number].id, caller=ALICE, wait=False)
            sessions.append(await begin())
        assert (2, 4) == (manager.statistics.live, len(manager.live_sessions))
        await manager.terminate(sessions[2].id, caller=ALICE, wait=False)
        with pytest.raises(SessionLimitReached):
            await manager.create(identity=ALICE)
        await trio.sleep(30)
        assert (1, 1) == (manager.statistics.live, len(manager.live_sessions))
        await manager.create(identity=ALICE)


@pytest.mark.parametrize("how", ["error", "cancelled"])
async def test_a_failed_opening_gives_its_place_back(how: str, autojump_clock: MockClock) -> None:
    """An opening that fails or is cancelled leaves neither a place nor a row."""
    async with managed(limits=ManagerSettings(max_sessions=1), min_backends=1) as world:
        world.backend.fail("tools/list", Error(-32000, "not now") if how == "error" else Delay(20), times=1)
        if how == "error":
            with pytest.raises(NoBackends):
                await world.manager.create()
        else:
            with trio.move_on_after(1):
                await world.manager.create()
        assert (0, 0) == (world.manager.statistics.opening, world.manager.statistics.live)
        await world.manager.create()


async def test_a_session_that_hibernates_holds_no_place(autojump_clock: MockClock) -> None:
    """With a cap of one, many sessions take turns."""
    async with managed(limits=ManagerSettings(max_sessions=1, hibernate_after=SLEEP)) as world:
        for _ in range(3):
            await world.manager.create()
            await trio.sleep(SLEEP + 1)
        assert 3 == world.manager.statistics.hibernated


# Ended on request


@EVERY_STATE
async def test_terminate_ends_a_session_for_good(state: State, autojump_clock: MockClock) -> None:
    """The backends get their goodbyes, the row goes, and no manager serves the id again."""
    async with managed(2) as world:
        session = await world.make(state)
        await world.manager.terminate(session.id, caller=ALICE)
        assert [] == list(world.backend.sessions)
        assert 1 == len(world.backend.received("DELETE"))
        for instance in world.instances:
            await trio.sleep(6)  # over storage_check_interval
            for ask in (instance.manager.get, instance.manager.terminate):
                with pytest.raises(SessionNotFound):
                    await ask(session.id, caller=ALICE)
        assert (1, 0) == (world.manager.statistics.terminated, world.manager.statistics.live)


async def test_while_a_termination_drains_the_session_is_gone(autojump_clock: MockClock) -> None:
    """`get` says SessionNotFound at once; the call in flight ends."""
    async with managed(backends={"a": slow_backend(5)}) as world:
        session = await world.make("live")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call_tool, "a_slow")
            await wait_all_tasks_blocked()
            nursery.start_soon(partial(world.manager.terminate, session.id, caller=ALICE))
            await wait_all_tasks_blocked()
            began = trio.current_time()
            with pytest.raises(SessionNotFound):
                await world.manager.get(session.id, caller=ALICE)
            assert began == trio.current_time()
            assert 1 == world.manager.statistics.in_flight
        assert began + 5 == trio.current_time()
        assert 1 == world.manager.statistics.terminated


async def test_what_a_close_counts_as(autojump_clock: MockClock) -> None:
    """`aclose` is a termination; a session that was suspended counts as nothing, and can be restored."""
    async with managed() as world:
        closed, suspended = await world.make("live"), await world.make("live")
        await closed.aclose()
        await suspended.suspend()
        statistics = world.manager.statistics
        assert (2, 0, 1, 0) == (statistics.created, statistics.live, statistics.terminated, statistics.expired)
        await (await world.manager.get(suspended.id, caller=ALICE)).call_tool("a_echo")
        assert 1 == world.manager.statistics.restored


async def test_a_session_of_the_factory_is_found_too(autojump_clock: MockClock) -> None:
    """One that `make_session` has made on the same factory is live here: for its owner alone."""
    async with managed() as world:
        session = await world.instances[0].factory.make_session(world.configured, identity=ALICE)
        found = await world.manager.get(session.id, caller=ALICE)
        await found.call_tool("a_echo")
        with pytest.raises(SessionNotFound):
            await world.manager.get(session.id, caller=BOB)
        assert 1 == len(world.backend.sessions)
        await world.manager.terminate(session.id, caller=ALICE)
        assert SessionState.CLOSED is session.state


@pytest.mark.parametrize(
    "options",
    [
        {"attributes": {"k": "x" * 16_384}},
        {"attributes": {"k": 1}},
        {"prefer_era": "ancient"},
    ],
)
async def test_what_cannot_be_opened_contacts_no_backend(options: dict[str, Any], autojump_clock: MockClock) -> None:
    """Attributes that do not fit, or another era, are a ValueError; nothing is left of it."""
    async with managed() as world:
        with pytest.raises(ValueError, match=r"attributes|prefer_era"):
            await world.manager.create(**options)
        assert (0, 0) == (world.requests(), world.way.calls["create"])
        assert (0, 0) == (world.manager.statistics.opening, world.manager.statistics.live)


async def test_a_bad_wake_is_not_remembered(autojump_clock: MockClock) -> None:
    """A `get` with a bad era fails, and the next one wakes the session with what it had."""
    async with managed() as world:
        session = await world.make("asleep")
        with pytest.raises(ValueError, match="prefer_era"):
            await world.manager.get(session.id, caller=ALICE, prefer_era="ancient")  # type: ignore[arg-type]
        await (await world.manager.get(session.id, caller=ALICE)).call_tool("a_echo")


@pytest.mark.parametrize(
    "field", ["max_sessions", "max_sessions_per_identity", "max_lifetime", "hibernate_after", "storage_check_interval"]
)
@pytest.mark.parametrize("value", [0, -1, math.nan, True, "5"])
def test_limits_that_are_none_are_refused(field: str, value: Any) -> None:
    """The error names the setting and the value."""
    with pytest.raises(ValueError, match=f"{field}="):
        ManagerSettings(**{field: value})


@pytest.mark.parametrize("name", ["a.b", "x" * 33, "é", "a b"])
def test_an_instance_has_a_short_plain_name(name: str) -> None:
    """A balancer finds it in front of the dot."""
    with pytest.raises(ValueError, match="instance="):
        ManagerSettings(instance=name)
