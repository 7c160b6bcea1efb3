"""An event for where there are many, and few are waited for."""

from __future__ import annotations

import attrs
import trio

__all__ = ["LightEvent"]


@attrs.define(eq=False)
class LightEvent:
    """A `trio.Event` for few waiting tasks: an empty set of them would be four fifths of its memory. It is set once,
    and stays so.
    """

    _is_set: bool = attrs.field(default=False, init=False)
    _waiting: tuple[trio.lowlevel.Task, ...] = attrs.field(default=(), init=False, repr=False)

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Wake all tasks that wait, and from now on let none wait."""
        self._is_set = True
        waiting, self._waiting = self._waiting, ()
        for task in waiting:
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        """Wait until it is set. A checkpoint in any case."""
        if self._is_set:
            await trio.lowlevel.checkpoint()
            return
        this = trio.lowlevel.current_task()
        self._waiting += (this,)

        await trio.lowlevel.wait_task_rescheduled(_Leave(self, this))

    def leave(self, task: trio.lowlevel.Task) -> None:
        """It was cancelled, and waits no more."""
        self._waiting = tuple(each for each in self._waiting if each is not task)


@attrs.frozen(eq=False)
class _Leave:
    """How a wait is cancelled. A function inside of `wait` would be four times as large."""

    event: LightEvent
    task: trio.lowlevel.Task

    def __call__(self, _: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        self.event.leave(self.task)
        return trio.lowlevel.Abort.SUCCEEDED
