"""A few of the simulation's histories of managers that share a storage; `nox -s simulation` runs more."""

from __future__ import annotations

import pytest
from simulation.command import run_manager_chunk
from simulation.managers import run_managers


@pytest.mark.parametrize("seed", range(8))
def test_what_callers_do_at_the_same_time_breaks_no_promise(seed: int) -> None:
    """Nothing acknowledged is lost, nothing terminated comes back, no stranger is served, and nothing is left."""
    assert 0 < run_managers(seed)


def test_a_history_that_fails_names_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its traceback; the seeds before it are counted."""

    def fail_at_one(seed: int) -> int:
        if seed:
            raise AssertionError("a promise")
        return 7

    monkeypatch.setattr("simulation.command.run_managers", fail_at_one)
    report = run_manager_chunk(range(3))
    assert report.failed is not None
    assert 1 == report.failed[0]
    assert "a promise" in report.failed[1]
    assert {"steps": 7, "histories": 1} == report.tally
