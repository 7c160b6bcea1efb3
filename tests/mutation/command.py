"""Every mutant of `targets`, and those that no test noticed."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import hypothesis
import hypothesis.strategies

from mutation.hunt import Suite, SurveyedTest, Verdict, hunt, source_of, survey
from mutation.mutants import Mutant, mutants_of
from mutation.targets import CORE, EQUIVALENT, TARGETS, Target

T = TypeVar("T")

LEAST_KILLED = 0.95  # of those that differ from the original
TESTS_HOME = Path(__file__).parent.parent
# What tests import, read once for all children. Not what is mutated, and nothing that imports it.
LIBRARIES = (
    *("pytest_trio.plugin", "httpx", "h11", "httptools", "trustme", "attrs", "cattrs.preconf.json"),
    "hypothesis.stateful",
)


@hypothesis.settings(max_examples=1, database=None)
@hypothesis.given(hypothesis.strategies.text())
def draw_one_text(_: str) -> None:
    """The first text of all makes Hypothesis read a table of Unicode."""


def say(text: str, *, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


def judge(verdicts: Sequence[Verdict], equivalent: Collection[str]) -> tuple[bool, str]:
    """Is that good enough, and the report. An entry of `equivalent` that did not survive is an error."""
    survivors = {verdict.mutant.name for verdict in verdicts if verdict.survived}
    missed = [verdict for verdict in verdicts if verdict.survived and verdict.mutant.name not in equivalent]
    stale = sorted(set(equivalent) - survivors)
    different = len(verdicts) - len(survivors & set(equivalent))
    killed = different - len(missed)
    report = [
        f"{killed} of {different} mutants killed ({killed / max(different, 1):.1%}), {len(survivors) - len(missed)}"
    ]
    report[0] += " more are equivalent"
    report += [
        f"SURVIVED  {verdict.tests} tests that run line {verdict.mutant.line}: {verdict.mutant.name}"
        for verdict in missed
    ]
    report += [f"STALE     in EQUIVALENT, but it was killed or does not exist: {name}" for name in stale]
    return not stale and killed >= LEAST_KILLED * different, "\n".join(report)


def some_of(mutants: Sequence[T], most: int, *, day: int) -> Sequence[T]:
    """Every n-th of them, at most `most`; the first is another one every day, so that n days take all."""
    step = max(-(-len(mutants) // most), 1)
    return mutants[day % step :: step]


def chosen(options: argparse.Namespace) -> tuple[dict[str, list[Mutant]], set[str]]:
    """The mutants that the command line asks for by module, and the names of the others."""
    everything = [
        (module, mutant)
        for module, target in TARGETS.items()
        for mutant in mutants_of(source_of(module), target.functions)
    ]
    meant = [
        (module, mutant)
        for module, mutant in everything
        if options.module in module and (module in CORE or not options.core) and options.only in mutant.name
    ]
    if options.sample:
        meant = [*some_of(meant, options.sample, day=int(time.time() // 86_400))]
    by_module: dict[str, list[Mutant]] = {}
    for module, mutant in meant:
        by_module.setdefault(module, []).append(mutant)
    return by_module, {mutant.name for _, mutant in everything} - {mutant.name for _, mutant in meant}


def judged(by_module: Mapping[str, Sequence[Mutant]], workers: int) -> dict[str, list[Verdict]]:
    """The verdicts on the mutants of each module by the tests of its target, telling how far it is. All modules share
    one survey and one collection of tests, which take a minute each.
    """
    started = time.perf_counter()
    names = dict.fromkeys(name for module in by_module for name in TARGETS[module].tests)
    suite = Suite(files=[TESTS_HOME / f"{name}.py" for name in names], root=TESTS_HOME.parent)
    surveyed = survey(suite, {module: TARGETS[module].functions for module in by_module})
    say(f"\nwhat tests run is known after {time.perf_counter() - started:.0f} s")
    judges = {module: judges_of(TARGETS[module], surveyed[module]) for module in by_module}
    mutants = [(module, mutant) for module, own in by_module.items() for mutant in own]
    verdicts: dict[str, list[Verdict]] = {module: [] for module in by_module}
    for count, (module, verdict) in enumerate(hunt(suite, mutants, judges, workers=workers), 1):
        verdicts[module].append(verdict)
        if verdict.survived and verdict.mutant.name not in EQUIVALENT:
            say(f"\rsurvived: {module} {verdict.mutant.name} (line {verdict.mutant.line}, {verdict.tests} tests)")
        if sys.stdout.isatty():
            say(f"\r{count}/{len(mutants)}", end="")
        elif count % 25 == 0:
            say(f"{count}/{len(mutants)} ({module}) after {time.perf_counter() - started:.0f} s")
    return verdicts


def judges_of(target: Target, tests: Sequence[SurveyedTest]) -> list[SurveyedTest]:
    """Those in the files of the target, and the imports."""
    files = tuple(f"{TESTS_HOME.name}/{name}.py::" for name in target.tests)
    return [test for test in tests if not test.id or test.id.startswith(files)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mutation", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants with this text in their name")
    parser.add_argument("--module", default="", metavar="TEXT", help="modules with this text in their name")
    parser.add_argument("--core", action="store_true", help="only the modules of CORE")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="at most N mutants, others every day")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()

    for library in LIBRARIES:
        importlib.import_module(library)
    draw_one_text()

    started = time.perf_counter()
    by_module, left_out = chosen(options)
    verdicts: list[Verdict] = []
    summary: list[str] = []
    for module, own in judged(by_module, options.workers).items():
        verdicts += own
        names = {mutant.name for mutant in by_module[module]}
        _, report = judge(own, [name for name in EQUIVALENT if name in names])
        summary.append(f"{module}: {report.splitlines()[0]}")

    good, report = judge(verdicts, [name for name in EQUIVALENT if name not in left_out])
    lines = "\n".join(summary)
    say(f"\n{lines}\n\nin all: {report}\n{time.perf_counter() - started:.0f} s")
    return 0 if good else 1
