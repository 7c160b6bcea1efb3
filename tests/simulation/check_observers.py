"""Promises about observers: what one is told of an instance agrees with what the trace says of it.

An instance that was killed or frozen for good is left out: its operations have no outcome.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from simulation.case import Case
from simulation.trace import Killed, Opened, Told

__all__ = ["OBSERVER_CHECKS"]


def _observers_are_told_of_every_call(case: Case) -> Iterator[str]:
    """One end for each call, with its outcome. A call that was refused or cancelled before it was admitted has none."""
    asked: dict[int, Counter[str]] = {}
    for operation in case.ended("call", "subscribe"):
        assert operation.began.life is not None
        instance = case.instance_of(operation.began.life)
        outcome = operation.outcome
        name = outcome.error or ("input_required" if outcome.asked is not None else outcome.kind)
        asked.setdefault(instance, Counter())[name] += 1
    told = _told(case, "call")
    for instance in asked.keys() | told.keys():
        if instance in _killed(case):
            continue
        of_trace, of_observer = asked.get(instance, Counter()), told.get(instance, Counter())
        for name in of_trace.keys() | of_observer.keys():
            is_maybe_unadmitted = name in ("SessionClosed", "cancelled")
            expected, got = of_trace[name], of_observer[name]
            if got > expected or (got < expected and not is_maybe_unadmitted):
                yield f"instance {instance}: {expected} calls ended in {name}, and its observer was told of {got}"


def _observers_are_told_of_every_session(case: Case) -> Iterator[str]:
    """Each opening that gave a session is told, and the end of each."""
    opened = Counter(case.instance_of(event.op) for event in case.trace.events if isinstance(event, Opened))
    told, closed = _told(case, "opened"), _told(case, "closed")
    for instance, expected in opened.items():
        if instance in _killed(case):
            continue
        counts = (sum(told.get(instance, Counter()).values()), sum(closed.get(instance, Counter()).values()))
        if counts[0] != counts[1] or counts[0] < expected:
            yield f"instance {instance}: {expected} sessions opened, and its observer was told of {counts}"


def _told(case: Case, what: str) -> dict[int, Counter[str]]:
    found: dict[int, Counter[str]] = {}
    for event in case.trace.events:
        if isinstance(event, Told) and event.what == what:
            found.setdefault(event.instance, Counter())[event.outcome] += 1
    return found


def _killed(case: Case) -> set[int]:
    return {event.instance for event in case.trace.events if isinstance(event, Killed)}


OBSERVER_CHECKS: tuple[Callable[[Case], Iterator[str]], ...] = (
    _observers_are_told_of_every_call,
    _observers_are_told_of_every_session,
)
