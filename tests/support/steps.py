"""Cancels a piece of work at the n-th step of its task: just before it is taken, or behind it, when the task waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import trio

__all__ = ["cancel_at"]


@attrs.define(eq=False)
class _Countdown(trio.abc.Instrument):
    task: trio.lowlevel.Task
    scope: trio.CancelScope
    left: int
    behind: bool

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.left -= 1
            if self.left == 0 and not self.behind:
                self.scope.cancel()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task and self.left == 0 and self.behind:
            self.scope.cancel()


async def cancel_at(step: int, work: Callable[[], Awaitable[object]], *, behind: bool = False) -> bool:
    """Whether the cancel came before `work` had ended. The first step begins with the first wait of `work`."""
    with trio.CancelScope() as scope:
        # Behind the step in which we are is where the first wait begins.
        countdown = _Countdown(trio.lowlevel.current_task(), scope, step - behind, behind)
        trio.lowlevel.add_instrument(countdown)
        try:
            await work()
        finally:
            trio.lowlevel.remove_instrument(countdown)
    return scope.cancelled_caught
