"""A Ctrl-C anywhere ends the program in KeyboardInterrupt, in bounded time, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sweeps.ctrl_c import CASES, SCENARIOS, Scenario, count_lines, run_case, some_lines
from sweeps.report import describe


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_ctrl_c_at_a_line(
    scenario: Scenario, only_case: int | None, every_line: bool, record_property: Callable[[str, object], None]
) -> None:
    """No task, process, connection, row or known backend session is left. With --every-line at every line, else at
    every n-th, beginning with another one every day.
    """
    if only_case is not None:
        problem, _ = run_case(scenario, only_case)
        assert problem is None, problem
        return
    total = count_lines(scenario)
    problems: dict[int, str | None] = {}
    for line in range(total) if every_line else some_lines(total, scenario):
        problem, ctrl_c = run_case(scenario, line)
        if ctrl_c.place is not None:
            problems[line] = problem
    record_property("cases", len(problems))
    assert not any(problems.values()), describe(scenario.name, problems)
    assert len(problems) >= CASES  # a sweep that strikes nothing finds nothing
