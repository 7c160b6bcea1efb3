"""`shared`: the one session of a principal on this instance."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from support.harness import ALICE, BOB, echo_backend, slow_backend
from support.managers import SLEEP, managed
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    ClientHandlers,
    Identity,
    ManagerSettings,
    NoBackends,
    ServerRequest,
    Session,
    SessionLimitReached,
    SessionNotFound,
    SessionState,
)
from trio_vmcp.testing import Delay, Error


async def test_a_principal_has_one_session(autojump_clock: MockClock) -> None:
    """Made once, however many ask at the same time; with another token it is the same. Others have their own."""
    newer = Identity(issuer=ALICE.issuer, subject=ALICE.subject, token="newer")
    found: list[tuple[Identity | None, Session]] = []
    async with managed() as world:
        world.backend.fail("initialize", Delay(1))

        async def ask(identity: Identity | None) -> None:
            found.append((identity, await world.manager.shared(identity)))

        async with trio.open_nursery() as nursery:
            for identity in (ALICE, newer, BOB, None, ALICE, None):
                nursery.start_soon(ask, identity)
        assert 3 == world.manager.statistics.created == len({session.id for _, session in found})
        for identity, session in found:
            await session.call_tool("a_echo")
            assert session.id == (await world.manager.shared(identity)).id


async def test_a_source_is_asked_for_it_with_its_newest_token(autojump_clock: MockClock) -> None:
    """The one that the session was last asked for with, though it is live."""
    newer = Identity(issuer=ALICE.issuer, subject=ALICE.subject, token="newer")
    asked: list[str] = []

    async def source(identity: Identity | None) -> list[Backend]:
        asked.append("" if identity is None else identity.token)
        return []

    async with managed() as world:
        for identity in (ALICE, newer):
            await world.manager.shared(identity)
        await world.manager.set_backends(source)
    assert ["newer"] == asked


async def test_its_probe_tries_discover_first(autojump_clock: MockClock) -> None:
    """A backend of both eras is spoken to as a modern one, also where handlers would have it greeted first."""

    async def sample(request: ServerRequest) -> JSON:
        raise AssertionError("this backend asks nothing")

    async with managed(backends={"a": echo_backend("both")}, handlers=ClientHandlers(sampling=sample)) as world:
        await world.manager.create()
        assert (1, 0) == (len(world.backend.received("initialize")), len(world.backend.received("server/discover")))
        await world.manager.shared()
        assert (1, 1) == (len(world.backend.received("initialize")), len(world.backend.received("server/discover")))


async def test_it_hibernates_and_wakes(autojump_clock: MockClock) -> None:
    """After hibernation it is the same session; it counts under the caps like any other."""
    async with managed(limits=ManagerSettings(max_sessions=1, hibernate_after=SLEEP)) as world:
        session = await world.manager.shared(ALICE)
        with pytest.raises(SessionLimitReached):
            await world.manager.shared(BOB)
        await trio.sleep(SLEEP + 1)
        assert 1 == world.manager.statistics.hibernated
        woken = await world.manager.shared(ALICE)
        assert session.id == woken.id
        assert not (await woken.call_tool("a_echo")).backend_state_lost


@pytest.mark.parametrize("how", ["aclose", "terminate", "suspend"])
async def test_it_is_never_one_that_drains(how: str, autojump_clock: MockClock) -> None:
    """While the session of before drains, a new one is made at once."""
    async with managed(backends={"a": slow_backend(5)}) as world:
        world.leaves_rows = world.leaves_sessions = how == "suspend"
        session = await world.manager.shared(ALICE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call_tool, "a_slow")
            await wait_all_tasks_blocked()
            if how == "terminate":
                nursery.start_soon(partial(world.manager.terminate, session.id, caller=ALICE))
            else:
                nursery.start_soon(getattr(session, how))
            await wait_all_tasks_blocked()
            assert SessionState.DRAINING is session.state
            began = trio.current_time()
            other = await world.manager.shared(ALICE)
            assert began == trio.current_time()
            await other.call_tool("a_echo")
            assert session.id != other.id
        assert other.id == (await world.manager.shared(ALICE)).id


async def test_one_that_failed_to_open_is_made_anew(autojump_clock: MockClock) -> None:
    """All that wait get the error, and the next one that asks tries again."""
    async with managed(min_backends=1) as world:
        world.backend.fail("tools/list", Error(-32000, "not now"))
        for _ in range(2):
            with pytest.raises(NoBackends):
                await world.manager.shared(ALICE)
        world.backend.heal()
        await world.manager.shared(ALICE)
        assert (1, 1, 0) == (
            world.manager.statistics.created,
            world.manager.statistics.live,
            world.manager.statistics.opening,
        )


async def test_a_source_that_knows_no_session_is_asked_once(autojump_clock: MockClock) -> None:
    """Its SessionNotFound is about a session of its own, and not about the one that is made."""
    asked: list[Identity | None] = []

    async def source(identity: Identity | None) -> list[Backend]:
        asked.append(identity)
        await trio.lowlevel.checkpoint()
        assert len(asked) < 10
        raise SessionNotFound("of the source")

    async with managed(source=source) as world:
        errors: list[SessionNotFound] = []

        async def ask() -> None:
            with pytest.raises(SessionNotFound) as caught:
                await world.manager.shared(ALICE)
            errors.append(caught.value)

        async with trio.open_nursery() as callers:
            for _ in range(2):
                callers.start_soon(ask)
        assert ["of the source"] * 2 == [error.session_id for error in errors]
        assert 2 >= len(asked)


async def test_the_shared_sessions_are_told_apart(autojump_clock: MockClock) -> None:
    """Of the live ones, those that `shared` gives; not those that are made for one client, or asleep."""
    async with managed() as world:
        await world.manager.create(identity=ALICE)
        shared = [await world.manager.shared(identity) for identity in (ALICE, None)]
        assert 3 == len(world.manager.live_sessions)
        assert {session.id for session in shared} == {session.id for session in world.manager.shared_sessions}
        await trio.sleep(2 * SLEEP)
        assert () == world.manager.shared_sessions
