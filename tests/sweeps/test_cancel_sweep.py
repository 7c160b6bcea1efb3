"""An operation that is cancelled anywhere ends in the cancel alone and leaves nothing; the next session works."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sweeps.cancel import SCENARIOS, Scenario, run_case, sweep
from sweeps.report import describe


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_cancelled_at_every_moment(
    scenario: Scenario, only_case: int | None, every: int, record_property: Callable[[str, object], None]
) -> None:
    """No task, request, connection, in-flight count, limiter token, row or known backend session is left."""
    if only_case is not None:
        problem, _ = run_case(scenario, only_case)
        assert problem is None, problem
        return
    problems = dict(sweep(scenario, every))
    record_property("cases", len(problems))
    assert not any(problems.values()), describe(scenario.name, problems)
    assert len(problems) * every > 20  # a sweep that strikes nothing finds nothing
