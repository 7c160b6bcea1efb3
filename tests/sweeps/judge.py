"""Runs one case in virtual time. Its problems are errors, hangs, and anything that is left behind."""

from __future__ import annotations

import gc
import logging
import sys
import traceback
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import attrs
import trio
from support.deterministic import HangsForEver, ending, seeded
from support.leaks import LeakWatch
from trio.testing import MockClock

__all__ = ["judge"]

LONGEST = 1e6  # s, virtual; a case that ends takes minutes


def judge(case: Callable[[], Awaitable[object]]) -> str | None:
    """Run a case; returns its problems, None without any. A case takes the same steps in the same order each time."""
    problems: list[str] = []
    clock = ending(MockClock(autojump_threshold=0), longest=LONGEST)
    with seeded(0), _watched_garbage(problems), _watched_log(problems), _watched_leaks(problems):
        try:
            trio.run(case, clock=clock)
        except trio.TrioInternalError as exc:
            if not isinstance(exc.__cause__, HangsForEver):
                raise
            problems.append("it never ends")
        except (Exception, BaseExceptionGroup) as exc:  # noqa: BLE001  # any error is a finding
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
    """An ERROR record of the library reports a bug of the library."""
    logger = logging.getLogger("trio_vmcp")
    handler, propagates = _Errors(problems), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False  # thousands of warnings are expected
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
