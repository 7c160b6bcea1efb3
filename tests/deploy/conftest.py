"""How many times an instance is killed or frozen: more than CI has time for, unless asked otherwise."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--points", type=int, default=200, help="how many times an instance is killed")


@pytest.fixture
def points(pytestconfig: pytest.Config) -> int:
    found: int = pytestconfig.getoption("--points")
    return found
