"""A group of tasks that is stopped stands still, and learns afterwards of all that has happened."""

from __future__ import annotations

from contextvars import Context

import trio
from support.stopped_tasks import TaskGroups
from trio.testing import MockClock


async def test_a_stopped_task_takes_no_step_and_learns_of_its_deadline_later(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """A deadline passes while the group is stopped; tasks of other groups go on."""
    woke_at: dict[str, float] = {}

    async def sleep(name: str, group: int) -> None:
        groups.join(group)
        with trio.move_on_after(2.0):
            await trio.sleep_forever()
        woke_at[name] = trio.current_time()

    groups = TaskGroups()
    groups.watch_this_run()
    nursery.start_soon(sleep, "stopped", 1)
    nursery.start_soon(sleep, "going", 2)
    await trio.sleep(1.0)
    groups.stopped.add(1)
    await trio.sleep(4.0)
    assert {"going": 2.0} == woke_at
    groups.stopped.discard(1)
    await trio.sleep(1.0)
    assert {"going": 2.0, "stopped": 5.0} == woke_at


async def test_tasks_belong_to_the_group_that_started_them(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Children belong to the owner of their nursery, and system tasks to the task that spawned them."""
    steps: list[str] = []

    async def note(name: str) -> None:
        await trio.sleep(1.0)
        steps.append(name)

    async def start(theirs: trio.Nursery) -> None:
        groups.join(1)
        theirs.start_soon(note, "another's child")
        trio.lowlevel.spawn_system_task(note, "system task", context=Context())
        async with trio.open_nursery() as own:  # noqa: ASYNC112  # a task of its own is the point
            own.start_soon(note, "own child")

    groups = TaskGroups()
    groups.watch_this_run()
    nursery.start_soon(start, nursery)
    await trio.sleep(0.5)
    groups.stopped.add(1)
    await trio.sleep(1.0)
    assert ["another's child"] == steps
    groups.stopped.clear()
    await trio.sleep(0.5)
    assert {"another's child", "system task", "own child"} == set(steps)
