"""What a run must not do unseen: write secrets or errors to the log, leave garbage, keep tokens of a limiter; and what
an instance tells its observers.
"""

from __future__ import annotations

import gc
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import trio
from trio.testing import MockClock

from simulation.backends import CANARY
from simulation.trace import Crashed, Event, SecretLeaked, StateChanged, Told, Trace
from trio_vmcp import observe
from trio_vmcp._client.http.connection_limit import Slots

__all__ = ["SECRET", "InstanceObserver", "watched_garbage", "watched_limiters", "watched_log"]

SECRET = re.compile(CANARY + r"|-session-\d")  # what a scripted backend's session ids look like


@contextmanager
def watched_garbage(trace: Trace) -> Iterator[None]:
    """Collect garbage at the end only: in between, finalizers would run at moments that the seed does not decide."""
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
            if len(trace.events) > before:  # a finalizer raised, and its traceback kept objects alive
                gc.collect()
        trace.events += [Crashed(at=at_the_end, text=f"warned: {warning.message}") for warning in caught]
    finally:
        sys.unraisablehook = hook
        if was_enabled:
            gc.enable()


@contextmanager
def watched_log(trace: Trace, clock: MockClock, is_muted: Callable[[], bool]) -> Iterator[None]:
    """Look at every record of the library, but those of tasks that are muted."""

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name.startswith("trio_vmcp.testing") or is_muted():
                return
            text = self.format(record)  # with the traceback
            if SECRET.search(text):
                trace.events.append(SecretLeaked(at=clock.current_time(), where=f"log of {record.name}", text=text))
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
def watched_limiters() -> Iterator[list[trio.CapacityLimiter | Slots]]:
    """Every limiter that is made inside the block."""
    made: list[trio.CapacityLimiter | Slots] = []
    kinds: tuple[Any, ...] = (trio.CapacityLimiter, Slots)
    inits = [kind.__init__ for kind in kinds]

    def watched(init: Any) -> Any:
        def note(limiter: Any, total_tokens: float) -> None:
            init(limiter, total_tokens)
            made.append(limiter)

        return note

    for kind, init in zip(kinds, inits, strict=True):
        kind.__init__ = watched(init)
    try:
        yield made
    finally:
        for kind, init in zip(kinds, inits, strict=True):
            kind.__init__ = init


@attrs.define(eq=False)
class InstanceObserver:
    """Notes what an instance tells its observers."""

    instance: int
    note: Callable[[Event], None]
    numbers: Mapping[str, int]  # of sessions, by their tags

    def on_event(self, event: observe.Event) -> None:
        now = trio.current_time()
        match event:
            case observe.CallEnded():
                outcome = "ok" if event.outcome == "tool_error" else event.outcome
                self.note(Told(at=now, instance=self.instance, what="call", outcome=outcome))
            case observe.SessionOpened():
                self.note(Told(at=now, instance=self.instance, what="opened"))
            case observe.SessionClosed():
                self.note(Told(at=now, instance=self.instance, what="closed", outcome=event.how))
            case observe.BackendStateChanged():
                self.note(
                    StateChanged(
                        at=now,
                        instance=self.instance,
                        session=self.numbers[event.session],
                        backend_id=event.backend_id,
                        old=event.old.name,
                        new=event.new.name,
                    )
                )
            case _:
                pass
