"""What counts as passing a scenario of the official suite; the scenarios themselves run in `nox -s conformance`."""

from __future__ import annotations

import pytest
from conformance.client import SCENARIOS as BUILT
from conformance.command import SCENARIOS as ASKED
from conformance.verdict import Check, judge

DONE: Check = {"id": "tool-add-numbers", "name": "ToolAddNumbers", "status": "SUCCESS"}
ON_THE_WIRE: Check = {"id": "wire-schema-valid", "name": "WireSchemaValid", "status": "SUCCESS"}
SEEN: Check = {"id": "incoming-request", "name": "IncomingRequest", "status": "INFO"}


def check(status: str, name: str = "Named") -> Check:
    return {"id": "some-id", "name": name, "status": status, "description": "does it", "errorMessage": "it does not"}


def test_success_passes() -> None:
    """One check that succeeded, notes beside it, and status 0."""
    verdict = judge(0, [SEEN, DONE, ON_THE_WIRE])
    assert verdict.passed
    assert 1 == verdict.succeeded


@pytest.mark.parametrize("checks", [[], [SEEN], [ON_THE_WIRE], [check("SKIPPED"), check("SKIPPED")]])
def test_nothing_checked_is_a_failure(checks: list[Check]) -> None:
    """The suite ends with 0 where it ran nothing, or skipped everything."""
    verdict = judge(0, checks)
    assert "no check of the scenario itself succeeded, so nothing was checked" in verdict.problems


@pytest.mark.parametrize("status", ["FAILURE", "WARNING", "SKIPPED"])
def test_every_blemish_is_a_failure(status: str) -> None:
    """It is named with its reason, whatever the exit status says of it."""
    verdict = judge(0, [DONE, check(status)])
    assert (f"{status} Named: it does not",) == verdict.problems


def test_the_exit_status_is_respected() -> None:
    """The client may have failed behind the last check."""
    assert ("the suite ended with status 1",) == judge(1, [DONE]).problems


def test_messages_of_the_other_era_may_be_skipped() -> None:
    """A client of 2026-07-28 sends no `initialize`, so its headers cannot be looked at."""
    skipped = ["ClientMcpMethodHeader_initialize", "ClientMcpMethodHeader_notifications_initialized"]
    assert judge(0, [DONE, *(check("SKIPPED", name) for name in skipped)]).passed


def test_the_client_knows_every_scenario() -> None:
    """And none that is not run."""
    assert {name for names in ASKED.values() for name in names} == set(BUILT)
