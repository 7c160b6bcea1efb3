"""A response that breaks anywhere, in whatever way, costs its own request at most."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sweeps.bytewise import SCENARIOS, Scenario, sweep
from sweeps.report import describe


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_broken_at_every_byte(
    scenario: Scenario, only_case: int | None, every: int, record_property: Callable[[str, object], None]
) -> None:
    """Success or a typed error inside the deadline, never half an answer; the next call, or session, works."""
    problems = dict(sweep(scenario, only_case, every))
    record_property("cases", len(problems))
    assert not any(problems.values()), describe(scenario.name, problems)
