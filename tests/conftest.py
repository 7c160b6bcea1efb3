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

pytest_plugins = ["support.leaks", "pytester"]  # no test leaves anything behind; and that is tested by running pytest

# No deadline: a loaded machine is no bug. CI draws the same examples every time: what fails there fails here.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--installed-only", action="store_true", help="refuse a trio_vmcp that no wheel installed")
    parser.addoption("--max-seconds", type=float, help="fail a test that takes longer")


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


def starved_for() -> float:
    """s since its start that this thread could have run while others had the CPU; 0 where the system does not tell."""
    try:
        return (
            int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
        )  # Documentation/scheduler/sched-stats
    except OSError:
        return 0.0


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a passing test that took too long, computing or sleeping. That the machine was busy is not its fault."""
    limit: float | None = item.config.getoption("--max-seconds")
    started = time.perf_counter() - starved_for()
    outcome = yield
    took = time.perf_counter() - starved_for() - started
    if limit is not None and took > limit:
        pytest.fail(f"took {took:.2f} s; --max-seconds={limit}", pytrace=False)
    return outcome
