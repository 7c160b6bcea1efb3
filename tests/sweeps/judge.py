"""Runs one case in virtual time and says what is wrong with it: any error, any hang, anything left behind."""

from __future__ import annotations

import gc
import logging
import sys
import traceback
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import attrs
import trio
from support.leaks import LeakWatch
from trio._core import _run as scheduler
from trio.testing import MockClock

__all__ = ["judge"]

LONGEST = 1e6  # s, virtual; a case that ends takes minutes


def judge(case: Callable[[], Awaitable[object]]) -> str | None:
    """What is wrong with a case; None: nothing. Run twice, it takes the same steps in the same order."""
    problems: list[str] = []
    clock = _ending(MockClock(autojump_threshold=0))
    with _seeded(), _watched_garbage(problems), _watched_log(problems), _watched_leaks(problems):
        try:
            trio.run(case, clock=clock)
        except trio.TrioInternalError as exc:
            if not isinstance(exc.__cause__, _Hung):
                raise
            problems.append("it never ends")
        except (Exception, BaseExceptionGroup) as exc:  # noqa: BLE001  # whatever it is, it is the finding
            problems += [_brief(leaf) for leaf in _leaves(exc)]
    return "; ".join(problems) or None


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    else:
        yield exc


def _brief(exc: BaseException) -> str:
    at = traceback.extract_tb(exc.__traceback__)[-1]
    text = " ".join(f"{type(exc).__name__}: {exc}".split())
    return f"{text} (at {at.filename.rpartition('/')[2]}:{at.lineno}: {at.line})"


class _Hung(BaseException):
    """Raised in the run loop itself: what waits for ever may be shielded."""


def _ending(clock: MockClock) -> MockClock:
    def jump() -> None:
        ahead = trio.lowlevel.current_statistics().seconds_to_next_deadline
        if not clock.current_time() + ahead < LONGEST:
            raise _Hung
        clock.jump(max(0.0, ahead))

    clock._autojump = jump  # type: ignore[method-assign]
    return clock


@contextmanager
def _seeded() -> Iterator[None]:
    """Trio shuffles the tasks that are ready; with a seed, and sorted first, they come in the same order every time."""
    state = scheduler._r.getstate()
    scheduler._r.seed(0)
    with mock.patch.object(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True):
        yield
    scheduler._r.setstate(state)


@contextmanager
def _watched_garbage(problems: list[str]) -> Iterator[None]:
    """A ResourceWarning, or an error in a finalizer, counts for the case that made the garbage."""
    enabled, hook = gc.isenabled(), sys.unraisablehook
    gc.disable()
    sys.unraisablehook = lambda unraisable: problems.append(f"in a finalizer: {unraisable.exc_value!r}")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
            gc.collect()
        problems += [f"warned: {warning.message}" for warning in caught]
    finally:
        sys.unraisablehook = hook
        if enabled:
            gc.enable()


@attrs.define(eq=False)
class _Errors(logging.Handler):
    problems: list[str]

    def __attrs_post_init__(self) -> None:
        super().__init__(logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        self.problems.append(f"logged: {record.getMessage()}")


@contextmanager
def _watched_log(problems: list[str]) -> Iterator[None]:
    """The library logs an error only where it caught a bug of its own."""
    logger = logging.getLogger("trio_vmcp")
    handler, propagates = _Errors(problems), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False  # thousands of warnings that are as they should be
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


@contextmanager
def _watched_leaks(problems: list[str]) -> Iterator[None]:
    watch = LeakWatch()
    watch.begin()
    try:
        yield
    finally:
        watch.end()
        problems += [f"left behind: {what}" for what in watch.found]
