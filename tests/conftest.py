"""What holds for the whole suite: it tests what is installed, no test is long, and CI draws no examples of its own."""

from __future__ import annotations

import importlib.util
import os
import sysconfig
import time
from collections.abc import Generator
from pathlib import Path

import hypothesis
import hypothesis.strategies
import pytest

# No deadline: a loaded machine is no bug. CI draws the same examples every time: what fails there fails here.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")

BUSY_MACHINE = 3  # a test may take this many times its CPU limit of wall time, where others use the CPU as well


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--installed-only", action="store_true", help="refuse a trio_vmcp that no wheel installed")
    parser.addoption("--max-seconds", type=float, help="fail a test that computes for longer")


@hypothesis.settings(max_examples=1, database=None)
@hypothesis.given(hypothesis.strategies.text())
def draw_one_text(_: str) -> None:
    """The first text of all takes Hypothesis about a second, for a table of Unicode that it then keeps in a file."""


@pytest.fixture(scope="session", autouse=True)
def warm_hypothesis() -> None:
    draw_one_text()  # in a fixture: it counts for no test's duration


def library_home() -> Path:
    """The directory that trio_vmcp is imported from."""
    spec = importlib.util.find_spec("trio_vmcp")
    if spec is None or spec.origin is None:
        raise pytest.UsageError("trio_vmcp is not installed; `nox -s tests` installs it")
    return Path(spec.origin).parent.parent


def pytest_configure(config: pytest.Config) -> None:
    home = library_home()
    if config.getoption("--installed-only") and home != Path(sysconfig.get_path("purelib")):
        raise pytest.UsageError(f"trio_vmcp comes from {home}, not from an installed wheel")


def pytest_report_header() -> str:
    return f"trio_vmcp: from {library_home()}"


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Fail a passing test that took too long.

    CPU time decides, which a busy machine hardly stretches; wall time has a margin, and catches a test that sleeps.
    """
    limit: float | None = pyfuncitem.config.getoption("--max-seconds")
    cpu_start, wall_start = time.process_time(), time.perf_counter()
    outcome = yield
    cpu, wall = time.process_time() - cpu_start, time.perf_counter() - wall_start
    if limit is not None and (cpu > limit or wall > BUSY_MACHINE * limit):
        pytest.fail(f"took {cpu:.2f} s of CPU time, {wall:.2f} s in all; --max-seconds={limit}", pytrace=False)
    return outcome
