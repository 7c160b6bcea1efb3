"""One run, one order: Trio's scheduler and the clock under a seed, and an end for a run in which every task waits."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import trio
import trio._core._run as scheduler  # its randomness has no public handle
from trio.testing import MockClock

__all__ = ["HangsForEver", "ending", "seeded"]


class HangsForEver(BaseException):
    """Raised in the run loop itself, since tasks that wait for ever may be shielded from a cancel."""


def ending(clock: MockClock, *, longest: float) -> MockClock:
    """Make the clock raise HangsForEver when there is no deadline to jump to, or only one after `longest` s."""

    def jump() -> None:
        ahead = trio.lowlevel.current_statistics().seconds_to_next_deadline
        if not clock.current_time() + ahead < longest:
            raise HangsForEver
        clock.jump(max(0.0, ahead))

    clock._autojump = jump  # type: ignore[method-assign]
    return clock


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Trio's scheduler and `random`. Trio then sorts each batch of tasks by age before it shuffles the batch."""
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    states = scheduler._r.getstate(), random.getstate()
    scheduler._r.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]
        scheduler._r.setstate(states[0])
        random.setstate(states[1])
