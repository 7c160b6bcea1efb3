"""One case by itself, and the figures: how many cases each sweep went through."""

from __future__ import annotations

import pytest

from sweeps.report import EVERY

pytest.register_assert_rewrite("support.harness", "sweeps.cancel", "sweeps.bytewise")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--case", type=int, help="of each selected sweep, this case only")
    parser.addoption("--every-line", action="store_true", help="a Ctrl-C at every line: an hour, and not a minute")
    parser.addoption("--short", action="store_true", help=f"each {EVERY}th case, others every day")


@pytest.fixture
def only_case(request: pytest.FixtureRequest) -> int | None:
    case: int | None = request.config.getoption("--case")
    return case


@pytest.fixture
def every(request: pytest.FixtureRequest) -> int:
    """1: every case of a sweep; 3: every third."""
    return EVERY if request.config.getoption("--short") else 1


@pytest.fixture
def every_line(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--every-line"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    cases = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "cases"
    ]
    if cases:
        terminalreporter.line(f"{sum(cases)} cases in {len(cases)} sweeps found nothing")
