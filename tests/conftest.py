"""Rules of the whole suite: the installed package is tested, no test is long, CI draws the same examples each time."""

from __future__ import annotations

import importlib.util
import os
import signal
import sysconfig
import time
from collections.abc import Generator
from pathlib import Path

import hypothesis
import hypothesis.strategies
import pytest
from support.cancel_sweep import is_other_half

# leaks: no test leaves a task or descriptor behind. cut_short: none passes before its end. pytester: for their tests.
pytest_plugins = ["support.leaks", "support.cut_short", "pytester"]

# No deadline, which a loaded machine would miss. CI draws the same examples every time, so failures can be repeated.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--installed-only", action="store_true", help="refuse a trio_vmcp that no wheel installed")
    parser.addoption("--max-seconds", type=float, help="fail a test that takes longer")
    parser.addoption(
        "--few-examples",
        action="store_true",
        help="of a property 25 examples, where its test sets no number; of a sweep over all steps every second step",
    )


@hypothesis.settings(max_examples=1, database=None)
@hypothesis.given(hypothesis.strategies.text())
def draw_one_text(_: str) -> None:
    """The first text takes Hypothesis about a second, for a table of Unicode that is then cached in a file."""


@pytest.fixture(scope="session", autouse=True)
def warm_hypothesis() -> None:
    draw_one_text()  # in a fixture, so that the time is not part of a test's duration


def library_home() -> Path:
    """The directory from which trio_vmcp is imported."""
    spec = importlib.util.find_spec("trio_vmcp")
    if spec is None or spec.origin is None:
        raise pytest.UsageError("trio_vmcp is not installed; `nox -s tests` installs it")
    return Path(spec.origin).parent.parent


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--few-examples"):
        hypothesis.settings.register_profile("few", hypothesis.settings(), max_examples=25)
        hypothesis.settings.load_profile("few")
    home = library_home()
    if config.getoption("--installed-only") and home != Path(sysconfig.get_path("purelib")):
        raise pytest.UsageError(f"trio_vmcp comes from {home}, not from an installed wheel")
    # The command uses the proxies of the environment, and the servers of the tests are not behind them.
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    # A job in the background of a shell, or under `nohup`, begins with these ignored, and so would its children.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--few-examples"):
        items[:] = [item for item in items if not is_other_half(item)]


def pytest_report_header() -> str:
    return f"trio_vmcp: from {library_home()}"


def starved_for() -> float:
    """s since its start that this thread waited for a CPU; 0 on systems that do not report it."""
    try:
        return (
            int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
        )  # Documentation/scheduler/sched-stats
    except OSError:
        return 0.0


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a passing test that took too long, computing or sleeping; time without a CPU is subtracted."""
    limit: float | None = item.config.getoption("--max-seconds")
    started = time.perf_counter() - starved_for()
    outcome = yield
    took = time.perf_counter() - starved_for() - started
    if limit is not None and took > limit:
        pytest.fail(f"took {took:.2f} s; --max-seconds={limit}", pytrace=False)
    return outcome
