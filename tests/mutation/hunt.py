"""Run the tests against mutants: a forked child each, with the mutated module in memory and nothing on disk.

The parent has imported what tests need except the package under test, so a child is at its first test in a moment. A
first run over everything tells which lines each test runs and how long it takes; a mutant then meets only the tests
that run its lines, those that killed others first.
"""

from __future__ import annotations

import builtins
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
import types
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import attrs
import hypothesis
import pytest
import trio

from mutation.live import Kills, LiveJudge
from mutation.mutants import Mutant, noted

MOST_CPU = 5  # s for one test as it is, with notes of what it runs: the suite allows two
MOST_CPU_MUTATED = 1.5  # s for one test against a mutant: a loop that does not end costs all of it
MOST_TIME = 60  # s for one test, on a clock that others slow down
MOST_MEMORY = 4 << 30  # bytes of address space: a loop that does not end may also grow
# Rounds of Trio's loop in which no task takes a step. A clock that jumps would have jumped; what is left is a deadlock.
MOST_IDLE_ROUNDS = 1000
LONG_SLEEP = 60  # s
FIRST_TESTS = 10  # They notice most mutants, and a child imports only their files. The other tests follow.
MOST_SILENCE = 1  # s of such a sleep: a signal of Trio's to itself, or another thread's, comes at once

SURVIVED = 0  # pytest.ExitCode.OK
KILLED = 1  # pytest.ExitCode.TESTS_FAILED
HANGS = 100
BROKEN = 101


@attrs.frozen
class SurveyedTest:
    """What the first run learned about one test."""

    id: str  # empty: the imports, before the first test
    took: float  # s
    lines: frozenset[int]  # of the module that is mutated


@attrs.frozen
class Verdict:
    mutant: Mutant
    killed_by: str | None  # a test's id, or how it ended; None: it survived
    tests: int  # how many tests it met

    @property
    def survived(self) -> bool:
        return self.killed_by is None


@attrs.frozen
class Suite:
    """The tests that mutants meet.

    Attributes:
        options: Command line of pytest, without the tests.
        files: Where the tests are.
        root: Where pytest is run.
        path: Directories for `sys.path`, in the children alone.
    """

    files: Sequence[Path]
    root: Path
    options: Sequence[str] = ()
    path: Sequence[str] = ()


class _Loader(importlib.abc.Loader):
    def __init__(self, source: str, file: str) -> None:
        self.source, self.file = source, file

    def exec_module(self, module: types.ModuleType) -> None:
        exec(compile(self.source, self.file, "exec"), module.__dict__)


class _Finder(importlib.abc.MetaPathFinder):
    """Gives one module another source."""

    def __init__(self, module: str, source: str, file: str) -> None:
        self.module, self.loader = module, _Loader(source, file)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self.loader) if name == self.module else None


class _Deadlock(trio.abc.Instrument):
    """Ends the process when no task can ever run again."""

    def __init__(self) -> None:
        self.idle = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.idle = 0

    def before_io_wait(self, timeout: float) -> None:
        self.idle += 1
        if self.idle > MOST_IDLE_ROUNDS:
            os._exit(HANGS)
        if timeout > LONG_SLEEP:  # nothing in a test sleeps for that long in earnest
            signal.setitimer(signal.ITIMER_REAL, MOST_SILENCE)

    def after_io_wait(self, timeout: float) -> None:
        if timeout > LONG_SLEEP:
            signal.setitimer(signal.ITIMER_REAL, MOST_TIME)


@attrs.frozen
class _Limits:
    """A pytest plugin for children: a test that hangs is ended, and Hypothesis does not shrink what fails."""

    most_cpu: float

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self) -> None:
        hypothesis.settings.register_profile(
            "mutation",
            deadline=None,
            derandomize=True,
            database=None,
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        hypothesis.settings.load_profile("mutation")
        run = trio.run

        def watched(*args: Any, instruments: Sequence[trio.abc.Instrument] = (), **options: Any) -> Any:
            return run(*args, instruments=(*instruments, _Deadlock()), **options)

        trio.run = watched  # type: ignore[assignment]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, self.most_cpu)
        signal.setitimer(signal.ITIMER_REAL, MOST_TIME)


class _Notes:
    """A pytest plugin for children: what happened in each test, and which failed first."""

    def __init__(self) -> None:
        self.current = ""
        self.lines: defaultdict[tuple[str, str], set[int]] = defaultdict(set)  # by module and test
        self.took: defaultdict[str, float] = defaultdict(float)
        self.failed: str | None = None

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.current = nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.took[report.nodeid] += report.duration
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid or "collection"


def _fork(work: Callable[[], tuple[int, object]], *, aloud: bool = False) -> tuple[int, IO[bytes]]:
    """Do this in a child, which is silent unless `aloud`. Its result comes as JSON in the file."""
    result = tempfile.TemporaryFile()  # noqa: SIM115  # the reader closes it
    pid = os.fork()
    if pid:
        return pid, result
    status = BROKEN
    try:
        _limit(aloud=aloud)
        try:
            status, value = work()
        except Exception:  # noqa: BLE001  # the child ends here, whatever happened
            value = traceback.format_exc()
        result.write(json.dumps(value).encode())
        result.flush()
    finally:
        os._exit(status)


def _limit(*, aloud: bool = False) -> None:
    """Limit this process, a child, and turn its output off unless `aloud`."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in () if aloud else (0, 1, 2):
        os.dup2(nowhere, stream)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read(result: IO[bytes]) -> Any:
    with result:
        result.seek(0)
        return json.loads(result.read() or b"null")


def _run_pytest(
    suite: Suite, tests: Iterable[str], plugins: list[object], *, most_cpu: float = MOST_CPU_MUTATED
) -> int:
    os.chdir(suite.root)
    sys.path[:0] = suite.path
    # Hypothesis warns about what its users import before it: here that is on purpose, and once for all children.
    quiet = [
        "-W",
        "ignore::hypothesis.errors.HypothesisSideeffectWarning",
        "-p",
        "no:cacheprovider",
        "--tb=no",
        "-q",
        "-s",
    ]
    options = ["-x", "--assert=plain", "-p", "no:randomly", *quiet, *suite.options]
    return int(pytest.main([*options, *tests], plugins=[_Limits(most_cpu), *plugins]))


def survey(suite: Suite, modules: Mapping[str, Collection[str] | None]) -> dict[str, list[SurveyedTest]]:
    """Run everything once, unmutated: by module, the tests and which of its lines they run.

    Raises:
        RuntimeError: A test fails as it is; then it proves nothing about mutants.
    """

    def work() -> tuple[int, object]:
        sys.path[:0] = suite.path
        notes = _Notes()
        for module, functions in modules.items():
            note = f"_note_{module.replace('.', '_')}"
            setattr(builtins, note, lambda line, module=module: notes.lines[module, notes.current].add(line))
            source = noted(source_of(module), functions, note)
            sys.meta_path.insert(0, _Finder(module, source, _origin(module)))
        status = _run_pytest(suite, map(str, suite.files), [notes], most_cpu=MOST_CPU)
        return status, [
            notes.failed,
            {
                module: [[test, took, [*notes.lines[module, test]]] for test, took in {"": 0.0, **notes.took}.items()]
                for module in modules
            },
        ]

    pid, result = _fork(work, aloud=True)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    found = _read(result)
    if status == BROKEN:
        raise RuntimeError(f"the tests cannot be run: {found}")
    if status != SURVIVED:
        raise RuntimeError(f"the tests fail without any mutant: {found[0] if found else f'status {status}'}")
    return {
        module: [SurveyedTest(test, took, frozenset(lines)) for test, took, lines in tests]
        for module, tests in found[1].items()
    }


def hunt(
    suite: Suite, mutants: Sequence[tuple[str, Mutant]], surveyed: Mapping[str, Sequence[SurveyedTest]], *, workers: int
) -> Iterator[tuple[str, Verdict]]:
    """A verdict on each mutant, both with the name of the module; in no particular order.

    Args:
        surveyed: By module, the tests of the suite that are to judge it.
    """
    left = [(module, mutant) for module, mutant in mutants if not mutant.in_function]
    live = [(module, mutant) for module, mutant in mutants if mutant.in_function]
    for module, verdict, is_final in _hunt_live(suite, live, surveyed, workers):
        if is_final:
            yield module, verdict
        else:
            left.append((module, verdict.mutant))
    yield from _hunt_imported(suite, left, surveyed, workers)


def _hunt_live(
    suite: Suite, mutants: Sequence[tuple[str, Mutant]], surveyed: Mapping[str, Sequence[SurveyedTest]], workers: int
) -> Iterator[tuple[str, Verdict, bool]]:
    """By `LiveJudge`: a verdict, and whether it is final. That of a survivor is not if its line also runs while the
    package is imported, nor that of a fork that broke.
    """
    imported = {module: next(test.lines for test in tests if not test.id) for module, tests in surveyed.items()}
    judged = 0
    for number, status, killer in judge_live(suite, mutants, surveyed, workers) if mutants else ():
        judged += 1
        module, mutant = mutants[number]
        if status == HANGS or status in {-signal.SIGPROF, -signal.SIGALRM}:
            killer = "it hangs"
        verdict = Verdict(mutant, killer, len(_that_may_notice(surveyed, module, mutant, Kills())))
        is_final = killer is not None or (status == SURVIVED and mutant.line not in imported[module])
        yield module, verdict, is_final
    if judged != len(mutants):
        raise RuntimeError(f"only {judged} of {len(mutants)} mutants were judged")


def judge_live(
    suite: Suite, mutants: Sequence[tuple[str, Mutant]], surveyed: Mapping[str, Sequence[SurveyedTest]], workers: int
) -> Iterator[tuple[int, int, str | None]]:
    """By `LiveJudge`: the number of each mutant, the status of its fork, and the id of the test that failed or None."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            _limit()
            with os.fdopen(writing, "wb") as output:
                files = {module: _origin(module) for module, _ in mutants}
                judge = LiveJudge(files, mutants, partial(_that_may_notice, surveyed), workers, output)
                _run_pytest(suite, map(str, suite.files), [judge])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            number, status, killer = json.loads(line)
            yield number, status, killer
    os.waitpid(pid, 0)


def _hunt_imported(
    suite: Suite, mutants: Sequence[tuple[str, Mutant]], surveyed: Mapping[str, Sequence[SurveyedTest]], workers: int
) -> Iterator[tuple[str, Verdict]]:
    """Each in a process that imports the package with the mutant in it."""
    kills = Kills()
    running: dict[int, tuple[str, Mutant, int, IO[bytes]]] = {}
    waiting = list(reversed(mutants))
    while waiting or running:
        while waiting and len(running) < workers:
            module, mutant = waiting.pop()
            tests = _that_may_notice(surveyed, module, mutant, kills)
            if not tests:
                yield module, Verdict(mutant, None, 0)
                continue
            pid, result = _fork(lambda module=module, mutant=mutant, tests=tests: _try(suite, module, mutant, tests))  # type: ignore[misc]
            running[pid] = module, mutant, len(tests), result
        if not running:
            continue
        pid, wait_status = os.wait()
        module, mutant, count, result = running.pop(pid)
        status, killer = os.waitstatus_to_exitcode(wait_status), _read(result)
        if status == SURVIVED:
            yield module, Verdict(mutant, None, count)
        elif status == HANGS or status in {-signal.SIGPROF, -signal.SIGALRM}:
            yield module, Verdict(mutant, "it hangs", count)
        elif status == KILLED or killer:
            kills.note(module, mutant, killer)
            yield module, Verdict(mutant, killer, count)
        else:
            yield module, Verdict(mutant, f"pytest ends with status {status}", count)


def _that_may_notice(
    surveyed: Mapping[str, Iterable[SurveyedTest]], module: str, mutant: Mutant, kills: Kills
) -> list[str]:
    """In the order in which they are likely to notice: those that noticed most mutants of the same function, then those
    that noticed most of all, then the fastest.
    """
    # What is outside of functions runs when the module is imported; a test that runs no line of the module is no test
    # of it.
    those = [
        test
        for test in surveyed[module]
        if test.id and (mutant.line in test.lines if mutant.in_function else bool(test.lines))
    ]
    return [test.id for test in sorted(those, key=lambda test: (*kills.order(module, mutant, test.id), test.took))]


def _try(suite: Suite, module: str, mutant: Mutant, tests: Sequence[str]) -> tuple[int, object]:
    sys.path[:0] = suite.path
    sys.meta_path.insert(0, _Finder(module, mutant.source, _origin(module)))
    notes = _Notes()
    status = _run_pytest(suite, tests[:FIRST_TESTS], [notes])
    if status == SURVIVED and len(tests) > FIRST_TESTS:
        status = _run_pytest(suite, tests[FIRST_TESTS:], [notes])
    return status, notes.failed


def _origin(module: str) -> str:
    """Where the module's source is, found without importing it."""
    outermost, *inner = module.split(".")
    spec = importlib.machinery.PathFinder.find_spec(outermost)
    if spec is not None and not inner and spec.origin is not None:
        return spec.origin
    for home in (spec and spec.submodule_search_locations) or ():
        source = Path(home, *inner).with_suffix(".py")
        if source.is_file():
            return str(source)
    raise ModuleNotFoundError(module)


def source_of(module: str) -> str:
    return Path(_origin(module)).read_text(encoding="utf-8")
