"""Leaving a manager: all its sessions end, side by side, as `on_exit` says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
from support.harness import ALICE, echo_backend, slow_backend
from support.managers import State, managed
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    Backend,
    FactorySettings,
    Identity,
    Session,
    SessionClosed,
    SessionState,
    open_session_factory,
    open_session_manager,
)
from trio_vmcp.testing import Delay, Hang, open_memory_network


@pytest.mark.parametrize("on_exit", ["terminate", "suspend"])
@pytest.mark.parametrize("state", ["live", "asleep"])
async def test_all_sessions_end_as_on_exit_says(state: State, on_exit: str, autojump_clock: MockClock) -> None:
    """ "terminate": no row and no backend session is left. "suspend": another instance goes on with them."""
    async with managed(2, on_exit=on_exit) as world:
        sessions = [await world.manager.create(identity=ALICE) for _ in range(3)]
        if state == "asleep":
            await trio.sleep(100)
        await world.instances[0].leave()
        assert [SessionState.CLOSED] * 3 == [session.state for session in sessions]
        rows = [await world.row(session.id) for session in sessions]
        assert (on_exit == "terminate") is (rows == [None] * 3)
        assert (0 if on_exit == "terminate" else 3) == len(world.backend.sessions)
        if on_exit == "suspend":
            for session in sessions:
                found = await world.instances[1].manager.get(session.id, caller=ALICE)
                assert not (await found.call_tool("a_echo")).backend_state_lost
                await found.aclose()


@pytest.mark.parametrize("state", ["live", "asleep"])
async def test_a_session_that_another_instance_uses_is_only_let_go_of(state: State, autojump_clock: MockClock) -> None:
    """Its row was last written there: neither the row nor the backend session that the row names ends."""
    async with managed(2) as world:
        session = await world.make(state)
        found = await world.instances[1].manager.get(session.id, caller=ALICE)
        await found.call_tool("a_echo")
        await world.instances[0].leave()
        await trio.sleep(10)
        assert SessionState.OPEN is found.state
        assert not (await found.call_tool("a_echo")).backend_state_lost
        assert [] == world.backend.received("DELETE")


async def test_it_is_done_within_the_bounds_of_the_factory(autojump_clock: MockClock) -> None:
    """Sessions that are live, asleep or opening, at a backend that hangs: one drain and one teardown for all."""
    async with managed(backends={"a": slow_backend(100)}, drain_timeout=4, teardown_timeout=2) as world:
        world.leaves_sessions = True
        asleep = [await world.make("asleep")]
        live = [await world.manager.create() for _ in range(3)]
        assert 1 == world.manager.statistics.hibernated == len(asleep)
        async with trio.open_nursery() as nursery:

            async def call(session: Any) -> None:
                with pytest.raises(SessionClosed):
                    await session.call_tool("a_slow")

            async def create() -> None:
                with pytest.raises(SessionClosed):
                    await world.manager.create()

            for session in live:
                nursery.start_soon(call, session)
            await wait_all_tasks_blocked()
            world.backend.fail("tools/list", Hang())
            world.backend.fail("DELETE", Hang())
            nursery.start_soon(create)
            await wait_all_tasks_blocked()
            began = trio.current_time()
            await world.instances[0].leave()
            assert 6 >= trio.current_time() - began >= 4


async def test_tasks_of_a_server_outlive_the_drain(autojump_clock: MockClock) -> None:
    """If the code around a manager is cancelled, tasks of `start_task` go on until its sessions have ended: a call that
    drains may still write to a stream that such a task sends. None starts afterwards.
    """
    ends: list[float] = []

    async def stream() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ends.append(trio.current_time())

    async def call(session: Session) -> None:
        await session.call_tool("a_slow")

    async with open_memory_network() as network, trio.open_nursery() as nursery:
        backends = [Backend("a", network.attach("a.test", slow_backend(5)))]
        with trio.CancelScope() as scope:
            async with (
                open_session_factory(transport=network.transport()) as factory,
                open_session_manager(factory, backends) as manager,
            ):
                session = await manager.create()
                nursery.start_soon(call, session)
                manager.start_task(stream)
                await wait_all_tasks_blocked()
                began = trio.current_time()
                scope.cancel()
                await trio.sleep_forever()
        assert [5.0] == [pytest.approx(end - began, abs=0.5) for end in ends]
        with pytest.raises(SessionClosed):
            manager.start_task(stream)


@pytest.mark.parametrize("drain", [10.0, 1.0])
async def test_openings_go_on_while_a_server_drains(drain: float, autojump_clock: MockClock) -> None:
    """If the code around a manager is cancelled, what is opened for requests goes on until the manager is left."""
    outcomes: list[object] = []

    async def share() -> None:
        try:
            outcomes.append((await manager.shared()).tools[0].name)
        except SessionClosed:
            outcomes.append(SessionClosed)

    async with open_memory_network() as network, trio.open_nursery() as nursery:
        backends = [Backend("a", network.attach("a.test", echo_backend(latency=1.0)))]
        with trio.CancelScope() as scope:
            async with (
                open_session_factory(transport=network.transport()) as factory,
                open_session_manager(factory, backends) as manager,
            ):
                nursery.start_soon(share)
                await wait_all_tasks_blocked()
                scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.sleep(drain)
    assert ["a_echo" if drain > 1 else SessionClosed] == outcomes


@pytest.mark.parametrize("what", ["create", "get", "shared"])
async def test_what_is_under_way_is_given_up(what: str, autojump_clock: MockClock) -> None:
    """All that wait get SessionClosed. An opening leaves nothing, a restore leaves the row as it was."""
    async with managed(2) as world:
        manager = world.manager
        session = await world.make("elsewhere")
        before = await world.row(session.id)
        world.backend.fail("tools/list", Delay(20), times=1)
        ask = {
            "create": manager.create,
            "shared": manager.shared,
            "get": partial(manager.get, session.id, caller=ALICE),
        }
        outcomes = []

        async def wait() -> None:
            with pytest.raises(SessionClosed):
                await ask[what]()  # type: ignore[operator]  # three signatures
            outcomes.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            for _ in range(1 if what == "create" else 3):
                nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            await world.instances[0].leave()
        assert set(outcomes) == {trio.current_time()}
        assert before == await world.row(session.id)
        assert 1 == len(world.backend.sessions)
        with pytest.raises(SessionClosed):
            await session.aclose() or await ask[what]()  # type: ignore[operator, func-returns-value]  # None


@pytest.mark.parametrize("what", ["create", "get", "shared", "terminate", "set_backends"])
async def test_requests_afterwards_get_session_closed(what: str, autojump_clock: MockClock) -> None:
    """Also for ids that the manager had, and without a wait."""
    async with managed() as world:
        session = await world.make("live")
        arguments = {"get": (session.id,), "terminate": (session.id,), "set_backends": ([],)}
        await world.instances[0].leave()
        with pytest.raises(SessionClosed):
            await getattr(world.manager, what)(*arguments.get(what, ()))


@pytest.mark.parametrize("how", ["body", "outside", "exit"])
async def test_an_error_or_cancel_ends_all_in_the_same_way(how: str, autojump_clock: MockClock) -> None:
    """An error of the body comes out as itself. After a cancel or an exit the drain is at most 10 s."""
    backend = slow_backend(60)
    error = {"body": KeyError("mine"), "exit": KeyboardInterrupt()}.get(how)
    async with managed(0, backends={"a": backend}) as world:

        async def live() -> None:
            async with (
                open_session_factory(
                    transport=world.network.transport(), settings=FactorySettings(drain_timeout=30)
                ) as factory,
                open_session_manager(factory, world.configured) as manager,
            ):
                session = await manager.create()
                nursery.start_soon(call, session)
                await wait_all_tasks_blocked()
                if error is not None:
                    raise error
                scope.cancel()
                await trio.sleep_forever()

        async def call(session: Any) -> None:
            with pytest.raises(SessionClosed):
                await session.call_tool("a_slow")

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope, suppress(KeyError, KeyboardInterrupt):
                await live()
                assert error is None
        assert (30 if how == "body" else 10) == trio.current_time() - began


@pytest.mark.parametrize("what", ["create", "get", "shared", "set_backends"])
async def test_an_exit_in_a_source_ends_the_program(what: str, autojump_clock: MockClock) -> None:
    """A KeyboardInterrupt in code of the user's comes out of the manager as itself, and all sessions end in order."""
    raises = False

    async def source(identity: Identity | None) -> Iterable[Backend]:
        if raises:
            raise KeyboardInterrupt
        return world.configured

    async with managed(0) as world:
        sessions: list[Session] = []

        async def live() -> None:
            nonlocal raises
            async with (
                open_session_factory(transport=world.network.transport()) as factory,
                open_session_manager(factory, source) as manager,
            ):
                sessions.append(await manager.create())
                asks: dict[str, Callable[[], Awaitable[object]]] = {
                    "create": manager.create,
                    "get": partial(manager.get, sessions[0].id),
                    "shared": manager.shared,
                    "set_backends": partial(manager.set_backends, source),
                }
                if what == "get":
                    await sessions[0].suspend()
                raises = True
                await asks[what]()
                await trio.sleep_forever()

        with pytest.raises(KeyboardInterrupt):
            await live()
        assert SessionState.CLOSED is sessions[0].state
        world.leaves_sessions = what == "get"


async def test_a_factory_of_another_kind_is_refused(autojump_clock: MockClock) -> None:
    """A manager stands on a factory that `open_session_factory` made."""
    with pytest.raises(TypeError, match="open_session_factory"):
        async with open_session_manager(object(), []):  # type: ignore[arg-type]  # that is the point
            pass
