"""What a run of a history is held in: one clock, one seed for everything, and eyes on whatever tells nobody."""

from __future__ import annotations

import gc
import logging
import random
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import trio
import trio._core._run as scheduler  # its randomness has no public handle
from trio.testing import MockClock

from simulation.actors import CANARY
from simulation.trace import Canary, Crashed, Trace

__all__ = ["SECRET", "HangsForEver", "ending", "seeded", "watched_garbage", "watched_limiters", "watched_log"]

SECRET = re.compile(CANARY + r"|-session-\d")  # what a scripted backend's session ids look like
LONGEST = 4000.0  # s, virtual; no history that ends takes half of it


class HangsForEver(BaseException):
    """Raised in the run loop itself: what waits for ever may be shielded."""


def ending(clock: MockClock) -> MockClock:
    def jump() -> None:
        ahead = trio.lowlevel.current_statistics().seconds_to_next_deadline
        if not clock.current_time() + ahead < LONGEST:
            raise HangsForEver
        clock.jump(max(0.0, ahead))

    clock._autojump = jump  # type: ignore[method-assign]
    return clock


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """One seed, one order of everything. Trio then sorts each batch of tasks by their age before it shuffles them."""
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


@contextmanager
def watched_garbage(trace: Trace) -> Iterator[None]:
    """Collected at the end and not in between: finalizers would run at moments that no seed rules."""
    at_the_end = float("inf")
    was_enabled, hook = gc.isenabled(), sys.unraisablehook
    gc.collect()
    gc.disable()
    sys.unraisablehook = lambda unraisable: trace.events.append(
        Crashed(at=at_the_end, text=f"in a finalizer: {unraisable.exc_value!r}")
    )
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
            before = len(trace.events)
            gc.collect()
            if len(trace.events) > before:  # what a finalizer broke in was kept alive by that
                gc.collect()
        trace.events += [Crashed(at=at_the_end, text=f"warned: {warning.message}") for warning in caught]
    finally:
        sys.unraisablehook = hook
        if was_enabled:
            gc.enable()


@contextmanager
def watched_log(trace: Trace, clock: MockClock) -> Iterator[None]:
    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name.startswith("trio_vmcp.testing"):
                return
            text = self.format(record)  # with the traceback
            if SECRET.search(text):
                trace.events.append(Canary(at=clock.current_time(), where=f"log of {record.name}", text=text))
            if record.levelno >= logging.ERROR:
                trace.events.append(Crashed(at=clock.current_time(), text=text))

    logger, watch = logging.getLogger("trio_vmcp"), Watch()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(watch)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(watch)
        logger.setLevel(level)
        logger.propagate = propagate


@contextmanager
def watched_limiters() -> Iterator[list[trio.CapacityLimiter]]:
    """Every CapacityLimiter that is made meanwhile."""
    made: list[trio.CapacityLimiter] = []
    original = trio.CapacityLimiter

    def make(total_tokens: float) -> trio.CapacityLimiter:
        made.append(original(total_tokens))
        return made[-1]

    trio.CapacityLimiter = make  # type: ignore[misc, assignment]
    try:
        yield made
    finally:
        trio.CapacityLimiter = original  # type: ignore[misc]
