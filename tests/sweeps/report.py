"""A sweep's findings as text: each with what runs it again, alone."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["describe"]

MOST_SHOWN = 5


def describe(sweep: str, problems: Sequence[str | None]) -> str:
    """`problems` by the number of their case."""
    findings = [(case, problem) for case, problem in enumerate(problems) if problem is not None]
    shown = [
        f"case {case}: {problem}\n  again: nox -s sweeps -- -k {sweep!r} --case {case}"
        for case, problem in findings[:MOST_SHOWN]
    ]
    return "\n".join([f"{len(findings)} findings in {sweep!r}", *shown])
