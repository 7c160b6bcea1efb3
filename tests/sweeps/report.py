"""Which cases of a sweep the short form takes, and a sweep's findings as text: each with what runs it again, alone."""

from __future__ import annotations

import time
from collections.abc import Mapping

__all__ = ["EVERY", "describe", "first_case"]

EVERY = 3  # The short form takes every third case. A byte has four faults, so that all kinds of them are among these.
MOST_SHOWN = 5
TODAY = int(time.time() // 86_400)


def first_case(step: int, scenario: int, *, day: int = TODAY) -> int:
    """Where every `step`-th case begins: elsewhere on the next day and in the next scenario; `step` days take all."""
    return (day + scenario * 7) % step


def describe(sweep: str, problems: Mapping[int, str | None]) -> str:
    """`problems` by the number of their case."""
    findings = [(case, problem) for case, problem in problems.items() if problem is not None]
    shown = [
        f"case {case}: {problem}\n  again: nox -s sweeps -- -k {sweep!r} --case {case}"
        for case, problem in findings[:MOST_SHOWN]
    ]
    return "\n".join([f"{len(findings)} findings in {sweep!r}", *shown])
