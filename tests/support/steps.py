"""How many steps the tasks of a run take: what is done in slices takes more of them, which no clock need tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

__all__ = ["StepCount", "counting_steps"]


@attrs.define(eq=False)
class StepCount(trio.abc.Instrument):
    """The number of steps, of all tasks with this text in their name."""

    name: str = ""
    count: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += self.name in task.name


@contextmanager
def counting_steps(name: str = "") -> Iterator[StepCount]:
    """Count the steps while the block lasts, of tasks with this text in their name."""
    steps = StepCount(name)
    trio.lowlevel.add_instrument(steps)
    try:
        yield steps
    finally:
        trio.lowlevel.remove_instrument(steps)
