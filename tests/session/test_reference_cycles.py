"""A session that has ended is freed at once, with all its lists, and not by a run of the garbage collector: such a run
stops all tasks, and takes 10 ms for 60,000 objects.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
from support.channels import EVERY_ANSWER, Channel
from support.garbage import keeping_garbage
from support.harness import NO_RETRIES, echo_backend, open_world
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import Session, ToolNotFound, open_session_factory
from trio_vmcp._client.http.connection_limit import ConnectionSlot
from trio_vmcp._nursery import start_task
from trio_vmcp._request_note import RequestNote
from trio_vmcp.testing import CONNECT, Refuse


async def _close(session: Session) -> None:
    await session.aclose()


async def _suspend(session: Session) -> None:
    await session.suspend()


async def _remove(session: Session) -> None:
    await session.remove_backend("b")
    await session.aclose()


async def _use(session: Session) -> None:
    assert "x" in str((await session.call_tool("b_echo", {"text": "x"})).content)
    with pytest.raises(ToolNotFound):
        await session.call_tool("b_nothing")


@EVERY_ANSWER
@pytest.mark.parametrize("end", [_close, _suspend, _remove], ids=["closed", "suspended", "removed"])
async def test_a_session_that_has_ended_leaves_no_reference_cycle(
    channel: Channel, end: Callable[[Session], Awaitable[None]], autojump_clock: MockClock
) -> None:
    """Connected, used and ended over every channel, a session leaves nothing to the garbage collector."""
    backend = channel.backend()
    with keeping_garbage() as garbage:
        async with channel.open_way(backend) as (transport, entry):
            async with open_session_factory(transport=transport) as factory:
                session = await factory.make_session([entry])
                await _use(session)
                await end(session)
                del session
        await wait_all_tasks_blocked()
    assert {} == garbage


@EVERY_ANSWER
async def test_an_idle_connection_keeps_nothing_of_how_it_was_made(channel: Channel, autojump_clock: MockClock) -> None:
    """A session may have many connections that wait for years: notes and slots of the requests that made them go."""
    kinds = (RequestNote, ConnectionSlot)
    async with channel.open_way(channel.backend()) as (transport, entry):
        async with open_session_factory(transport=transport) as factory:
            before = {id(each) for each in gc.get_objects() if type(each) in kinds}
            async with factory.open_session([entry]) as session:
                await _use(session)
                await wait_all_tasks_blocked()
                assert [] == [each for each in gc.get_objects() if type(each) in kinds and id(each) not in before]


async def test_a_task_that_runs_for_long_keeps_no_argument_that_it_is_done_with() -> None:
    """There are thousands of such tasks."""

    class Argument: ...

    async def run(argument: Argument) -> None:
        del argument
        await trio.sleep_forever()

    argument = Argument()
    kept = weakref.ref(argument)
    async with trio.open_nursery() as nursery:
        start_task(nursery, run, argument)
        del argument
        await wait_all_tasks_blocked()
        assert kept() is None
        nursery.cancel_scope.cancel()


async def test_tasks_of_one_function_have_one_name() -> None:
    """As Trio would call them, also where arguments are given beforehand: one text, since there are thousands."""

    async def run(*args: object) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        start_task(nursery, run, 1)
        start_task(nursery, partial(run, 2))
        start_task(nursery, partial(run, 3))
        one, *others = [task.name for task in nursery.child_tasks]
        assert f"{__name__}.{run.__qualname__}" == one
        assert all(other is one for other in others)
        nursery.cancel_scope.cancel()


async def test_connections_that_were_replaced_or_failed_leave_no_reference_cycle(autojump_clock: MockClock) -> None:
    """A backend that loses its sessions, and one that is away, leave nothing to the garbage collector either."""
    with keeping_garbage() as garbage:
        async with open_world({"b": echo_backend(), "away": echo_backend()}, settings=NO_RETRIES) as world:
            world["away"].fail(CONNECT, Refuse())
            session = await world.make_session()
            await _use(session)
            world["b"].sessions.clear()
            await _use(session)
            await session.aclose()
            del session
        del world
        await wait_all_tasks_blocked()
    assert {} == garbage


@EVERY_ANSWER
async def test_a_call_leaves_no_reference_cycle(channel: Channel, autojump_clock: MockClock) -> None:
    """Calls that are answered, and calls that time out, leave nothing to the garbage collector."""
    async with channel.open_session(channel.backend()) as session:
        await _use(session)
        with keeping_garbage() as garbage:
            await _use(session)
            with trio.move_on_after(0):
                await session.call_tool("b_echo", {"text": "x"})
            await wait_all_tasks_blocked()
    assert {} == garbage
