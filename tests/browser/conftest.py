"""Where the screenshots go."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--artefacts", type=Path, help="a directory for screenshots; else they are not kept")


@pytest.fixture
def artefacts(pytestconfig: pytest.Config, tmp_path: Path) -> Path:
    found: Path = pytestconfig.getoption("--artefacts") or tmp_path
    found.mkdir(parents=True, exist_ok=True)
    return found
