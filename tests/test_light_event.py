"""A light event is a `trio.Event`, whether or not a task waits for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from trio_vmcp._light_event import LightEvent

EVENTS = pytest.mark.parametrize("make", [trio.Event, LightEvent])


@EVENTS
async def test_all_tasks_that_wait_are_woken(make: Callable[[], LightEvent]) -> None:
    """Those that waited before it was set, and those that come later, which still reach a checkpoint."""
    event, woken = make(), []

    async def wait(name: str) -> None:
        await event.wait()
        woken.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "first")
        nursery.start_soon(wait, "second")
        await wait_all_tasks_blocked()
        assert not event.is_set()
        assert [] == woken
        event.set()
        assert event.is_set()
        assert [] == woken
    with assert_checkpoints():
        await wait("late")
    event.set()
    assert event.is_set()
    assert ["first", "late", "second"] == sorted(woken)


@EVENTS
async def test_a_wait_is_cancelled(make: Callable[[], LightEvent]) -> None:
    """A cancelled wait leaves the event to the other tasks; in a cancelled scope even one that is set."""
    event = make()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(event.wait)
        with trio.CancelScope() as scope:
            scope.cancel()
            await event.wait()
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        event.set()
    with trio.CancelScope() as scope:
        scope.cancel()
        await event.wait()
    assert scope.cancelled_caught
