"""A cancel at any step of a recovery, of `add_backend` and `remove_backend`, of a refetch and of a reconnect."""

from __future__ import annotations

from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support.cancel_sweep import CancelAtStep, quarters, sweep_cancels
from support.harness import announcing_backend, assert_nothing_left, echo_backend, open_world, slow_backend
from trio.testing import wait_all_tasks_blocked

from trio_vmcp import BackendError, BackendState, Session, SessionClosed
from trio_vmcp.testing import CONNECT, Delay, Refuse, Status

ERAS = pytest.mark.parametrize("era", ["legacy", "modern"])


@quarters
@ERAS
def test_a_recovering_call_cancelled_at_any_step_leaves_the_session_whole(era: Any, first: int) -> None:
    """The call ran at most once; the next call succeeds, over this connection or a new one."""

    async def body(cancel: CancelAtStep) -> None:
        backend = echo_backend(era)
        async with open_world({"a": backend}) as world, world.open_session() as session:
            backend.fail("tools/call", Status(404), times=1)
            with cancel.scope:
                cancel.armed = True
                await session.call_tool("a_echo")
            cancel.armed = False
            assert backend.executed["echo"] <= 1
            await session.call_tool("a_echo")
            assert 0 == session.in_flight
            assert () == session.failures

    sweep_cancels(body, first, waits=6)


@quarters
@ERAS
def test_a_session_cancelled_at_any_step_of_a_recovery_leaves_nothing(era: Any, first: int) -> None:
    """A cancel of the call and of the session's block: the session is CLOSED, every backend session is DELETEd."""

    async def body(cancel: CancelAtStep) -> None:
        backend = echo_backend(era)
        async with open_world({"a": backend}) as world:
            with cancel.scope:
                async with world.open_session() as session:
                    backend.fail("tools/call", Status(404), times=1)
                    cancel.armed = True
                    await session.call_tool("a_echo")
                    await trio.sleep(1)
            cancel.armed = False
            await assert_nothing_left(world)
            assert backend.executed["echo"] <= 1

    sweep_cancels(body, first, waits=6)


@quarters
@pytest.mark.parametrize("closing", ["aclose", "suspend"])
def test_a_close_at_any_step_of_a_recovery_gives_every_call_its_outcome(closing: str, first: int) -> None:
    """A result or a typed error, and nothing is left; a suspended session can be restored."""

    async def body(cancel: CancelAtStep) -> None:
        backend = echo_backend()
        async with open_world({"a": backend}) as world:
            session = await world.make_session(session_id="one")
            backend.restart()
            ends: list[object] = []

            async def call() -> None:
                try:
                    ends.append(await session.call_tool("a_echo"))
                except (SessionClosed, BackendError) as error:
                    ends.append(error)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                nursery.start_soon(call)
                with cancel.scope:
                    cancel.armed = True
                    await trio.sleep(1)
                cancel.armed = False
                await getattr(session, closing)()
            assert 2 == len(ends)
            if closing == "suspend":
                async with await world.restore_session("one") as restored:
                    await restored.call_tool("a_echo")
            await assert_nothing_left(world)

    sweep_cancels(body, first, waits=6)


@quarters
@ERAS
def test_a_cancelled_add_backend_is_not_begun_or_completes(era: Any, first: int) -> None:
    """Cancelled at any step, `add_backend` leaves no trace, or the backend joins all the same."""

    async def body(cancel: CancelAtStep) -> None:
        async with open_world({"a": echo_backend(era), "b": echo_backend(era)}) as world:
            async with await world.factory.make_session(world.configured[:1]) as session:
                with cancel.scope:
                    cancel.armed = True
                    await session.add_backend(world.configured[1])
                cancel.armed = False
                await trio.sleep(2)
                if "b" in session.backends:
                    await session.call_tool("b_echo")
                else:
                    await session.add_backend(world.configured[1])
                await session.call_tool("a_echo")

    sweep_cancels(body, first, waits=6)


@quarters
@ERAS
def test_a_cancelled_remove_backend_is_not_begun_or_completes(era: Any, first: int) -> None:
    """Cancelled at any step, `remove_backend` keeps the backend, or it is gone for good; running calls are answered."""

    async def body(cancel: CancelAtStep) -> None:
        async with open_world({"a": slow_backend(1, era), "b": echo_backend(era)}) as world:
            async with world.open_session() as session, trio.open_nursery() as nursery:
                nursery.start_soon(session.call_tool, "a_slow")
                await wait_all_tasks_blocked()
                with cancel.scope:
                    cancel.armed = True
                    await session.remove_backend("a")
                cancel.armed = False
                if session.backends["a"].state is not BackendState.REMOVED:
                    await session.remove_backend("a")
                await trio.sleep(2)
                assert {} == world["a"].sessions
                assert ["b_echo"] == [tool.name for tool in session.tools]

    sweep_cancels(body, first, waits=2)


@quarters
@ERAS
def test_a_session_cancelled_at_any_step_of_a_refetch_leaves_nothing(era: Any, first: int) -> None:
    """The session's block is cancelled while lists are fetched again."""

    async def body(cancel: CancelAtStep) -> None:
        backend = announcing_backend(era)
        async with open_world({"a": backend}) as world:
            with cancel.scope:
                async with world.open_session() as session:
                    cancel.armed = True
                    await session.call_tool("a_announce", {"kinds": ["tools", "resources", "prompts"]})
                    await trio.sleep(3)
            cancel.armed = False
            await assert_nothing_left(world)

    sweep_cancels(body, first, waits=6)


@quarters
@pytest.mark.parametrize("fault", [Refuse(), Delay(0.3)])
def test_a_session_cancelled_while_a_backend_is_tried_again_leaves_nothing(fault: Any, first: int) -> None:
    """The session's block is cancelled at any step of refused, slow and successful reconnects."""

    async def body(cancel: CancelAtStep) -> None:
        backend = echo_backend()
        async with open_world({"a": backend, "b": echo_backend()}) as world:
            backend.fail(CONNECT, Refuse(), times=1)
            with cancel.scope:
                async with world.open_session():
                    backend.fail(CONNECT, fault, times=2)
                    cancel.armed = True
                    await trio.sleep(10)
            cancel.armed = False
            await assert_nothing_left(world)

    sweep_cancels(body, first, waits=6)


@quarters
def test_a_session_cancelled_in_its_endpoint_turn_frees_the_turn(first: int) -> None:
    """Two sessions wait for turns at one endpoint: wherever the first is cancelled, the second connects."""

    async def body(cancel: CancelAtStep) -> None:
        backend = echo_backend()
        async with open_world({"a": backend}) as world:
            backend.fail(CONNECT, Refuse(), times=4)
            other = await world.make_session()
            with cancel.scope:
                async with world.open_session():
                    cancel.armed = True
                    await trio.sleep(20)
            cancel.armed = False
            await trio.sleep(20)
            await other.call_tool("a_echo")
            await other.aclose()
            await assert_nothing_left(world)

    sweep_cancels(body, first, waits=6)


@quarters
def test_a_probe_after_an_era_change_can_be_cancelled_at_any_step(first: int) -> None:
    """Recoveries share one probe: when the call that runs it is cancelled, the next call probes again."""

    async def body(cancel: CancelAtStep) -> None:
        backend = echo_backend("legacy")
        async with open_world({"a": backend}, configure=partial(attrs.evolve, era="auto")) as world:
            async with world.open_session() as session:
                backend.era = "modern"
                backend.restart()
                with cancel.scope:
                    cancel.armed = True
                    await session.call_tool("a_echo")
                cancel.armed = False
                assert backend.executed["echo"] <= 1
                await session.call_tool("a_echo")
                assert "modern" == era_of(session)

    sweep_cancels(body, first, waits=6)


def era_of(session: Session) -> str | None:
    return session.backends["a"].era
