"""Cancels at a chosen step, so that a test can sweep a cancel over all steps of a piece of work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock


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
    """Run `work` in this task with a cancel before its n-th step. Returns whether the cancel came before the end.

    Args:
        step: From 1; the first step is the one that follows the first wait.
        behind: Cancel after that step, while the task waits again.
    """
    with trio.CancelScope() as scope:
        # `behind` counts the current step, too: the end of this step is where the first wait begins.
        countdown = _Countdown(trio.lowlevel.current_task(), scope, step - behind, behind)
        trio.lowlevel.add_instrument(countdown)
        try:
            await work()
        finally:
            trio.lowlevel.remove_instrument(countdown)
    return scope.cancelled_caught


class CancelAtStep(trio.abc.Instrument):
    """Cancels `scope` after the n-th step of any task except those of scripted backends, counted while `armed`."""

    def __init__(self, step: int) -> None:
        self.scope = trio.CancelScope()
        self.steps_left = step
        self.armed = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.armed and "trio_vmcp.testing." not in task.name:
            self.steps_left -= 1
            if not self.steps_left:
                self.scope.cancel()


STRIDE = 4  # tests share the steps of one sweep


def sweep_cancels(body: Callable[[CancelAtStep], Awaitable[None]], first: int, *, waits: int) -> None:
    """Run `body` with a cancel at every fourth step, until it ends before the cancel.

    Args:
        first: The first step to cancel at; `quarters` gives a test each of 1 to 4, so that workers share the steps.
        waits: How often `body` waits for a connection, an answer or a storage at least. With fewer steps than that
            the cancels did not reach the work.
    """
    for runs, step in enumerate(range(first, 100_000, STRIDE)):
        cancel = CancelAtStep(step)
        trio.run(body, cancel, clock=MockClock(autojump_threshold=0), instruments=[cancel])
        if cancel.steps_left > 0:
            assert runs > waits / STRIDE
            return
    raise AssertionError("never ended")


quarters = pytest.mark.parametrize("first", range(1, STRIDE + 1))


def is_other_half(item: pytest.Item) -> bool:
    """Whether a test is one of the quarters that a short run leaves out."""
    return (
        isinstance(item, pytest.Function)
        and quarters.mark in item.own_markers
        and item.callspec.params["first"] in (2, 4)
    )


@attrs.define(eq=False)
class CancelAtMoment(trio.abc.Instrument):
    """Cancels its block at its n-th moment.

    There is a moment after each step of each task, and one before the first step after each wait of the loop: there, a
    deadline or an event has already woken a task that has not run yet.

    Attributes:
        moment: From 0.
        struck: The place at which the cancel came; None: the block ended before.
    """

    moment: int
    seen: int = attrs.field(default=0, init=False)
    struck: str | None = attrs.field(default=None, init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _woken: bool = attrs.field(default=False, init=False)

    @contextmanager
    def block(self) -> Iterator[None]:
        trio.lowlevel.add_instrument(self)
        try:
            with self._scope:
                yield
        finally:
            trio.lowlevel.remove_instrument(self)

    def after_io_wait(self, timeout: float) -> None:
        self._woken = True

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._woken:
            self._look(f"before a step of {task.name}")
        self._woken = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._look(f"behind a step of {task.name}")

    def _look(self, where: str) -> None:
        if self.seen == self.moment:
            self.struck = where
            self._scope.cancel(reason="the sweep")
        self.seen += 1
