"""Groups of tasks that can be stopped in the middle of a run, as SIGSTOP stops a process.

A stopped task takes no step. What the task waits for may come meanwhile, and its deadlines pass; the task learns of
both when its group goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import attrs
import trio
import trio._core._run as scheduler  # the queue of tasks that can run has no public handle

__all__ = ["TaskGroups"]


@attrs.define(eq=False)
class TaskGroups(trio.abc.Instrument):
    """Which task belongs to which group, and which groups are stopped.

    A new task belongs to the group of the task that owns its nursery; a system task, to that of the spawning task.

    Attributes:
        stopped: Groups of which no task takes a step.
    """

    stopped: set[int] = attrs.field(factory=set, init=False)
    _groups: dict[trio.lowlevel.Task, int] = attrs.field(factory=dict, init=False)

    def watch_this_run(self) -> None:
        """From now on to the end of this run of Trio, know its tasks and stop those that are to be stopped."""
        runner = scheduler.GLOBAL_RUN_CONTEXT.runner
        runner.runq = _Queue(self, runner.runq)
        trio.lowlevel.add_instrument(self)

    def forget(self) -> None:
        """Drop all references to the run, so that one that hangs for ever can be collected."""
        self._groups.clear()

    def join(self, group: int) -> None:
        """The current task belongs to this group from now on, and so do the tasks of its nurseries."""
        self._groups[trio.lowlevel.current_task()] = group

    def of(self, task: trio.lowlevel.Task) -> int | None:
        return self._groups.get(task)

    def is_stopped(self, task: trio.lowlevel.Task) -> bool:
        return self._groups.get(task) in self.stopped

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """Trio calls this."""
        nursery = task.parent_nursery
        if nursery is None:
            return
        is_system = nursery is scheduler.GLOBAL_RUN_CONTEXT.runner.system_nursery
        group = self._groups.get(trio.lowlevel.current_task() if is_system else nursery.parent_task)
        if group is not None:
            self._groups[task] = group


class _Queue(deque[trio.lowlevel.Task]):
    """The tasks that can run, without those that are stopped; Trio's loop asks for the truth, iterates and clears."""

    def __init__(self, groups: TaskGroups, tasks: deque[trio.lowlevel.Task]) -> None:
        super().__init__(tasks)
        self.groups = groups

    def __bool__(self) -> bool:
        return any(True for _ in self) if self.groups.stopped else len(self) > 0

    def __iter__(self) -> Iterator[trio.lowlevel.Task]:
        every = super().__iter__()
        if not self.groups.stopped:
            return every
        return (task for task in every if not self.groups.is_stopped(task))

    def clear(self) -> None:
        stopped = [task for task in super().__iter__() if self.groups.is_stopped(task)]
        super().clear()
        self.extend(stopped)
