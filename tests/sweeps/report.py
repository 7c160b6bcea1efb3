"""A sweep's findings as text: each with what runs it again, alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["describe"]

MOST_SHOWN = 5


def describe(sweep: str, problems: Sequence[str | None] | Mapping[int, str | None]) -> str:
    """`problems` by the number of their case."""
    numbered = problems.items() if isinstance(problems, Mapping) else enumerate(problems)
    findings = [(case, problem) for case, problem in numbered if problem is not None]
    shown = [
        f"case {case}: {problem}\n  again: nox -s sweeps -- -k {sweep!r} --case {case}"
        for case, problem in findings[:MOST_SHOWN]
    ]
    return "\n".join([f"{len(findings)} findings in {sweep!r}", *shown])
