"""Every mutant of `targets`, and those that no test noticed."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import hypothesis
import hypothesis.strategies

from mutation.hunt import Suite, Verdict, hunt, source_of, survey
from mutation.mutants import mutants_of
from mutation.targets import CORE, CORE_TESTS, EQUIVALENT, TARGETS, TESTS

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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mutation", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants with this text in their name")
    parser.add_argument("--module", default="", metavar="TEXT", help="modules with this text in their name")
    parser.add_argument("--core", action="store_true", help="only the modules of CORE, judged by CORE_TESTS")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()

    for library in LIBRARIES:
        importlib.import_module(library)
    draw_one_text()

    started = time.perf_counter()
    names = CORE_TESTS if options.core else TESTS
    suite = Suite(files=[TESTS_HOME / f"{name}.py" for name in names], root=TESTS_HOME.parent)
    everything = [
        (module, mutant) for module, functions in TARGETS.items() for mutant in mutants_of(source_of(module), functions)
    ]
    mutants = [
        (module, mutant)
        for module, mutant in everything
        if options.only in mutant.name and options.module in module and (module in CORE or not options.core)
    ]
    surveyed = survey(suite, {module: TARGETS[module] for module, _ in mutants})
    say(f"{len(mutants)} mutants; what tests run is known after {time.perf_counter() - started:.0f} s")

    verdicts: list[Verdict] = []
    for verdict in hunt(suite, mutants, surveyed, workers=options.workers):
        verdicts.append(verdict)
        if verdict.survived and verdict.mutant.name not in EQUIVALENT:
            say(f"\rsurvived: {verdict.mutant.name} (line {verdict.mutant.line}, {verdict.tests} tests)")
        if sys.stdout.isatty():
            say(f"\r{len(verdicts)}/{len(mutants)}", end="")
        elif len(verdicts) % 25 == 0:
            say(f"{len(verdicts)}/{len(mutants)} after {time.perf_counter() - started:.0f} s")

    left_out = {mutant.name for _, mutant in everything} - {mutant.name for _, mutant in mutants}
    good, report = judge(verdicts, [name for name in EQUIVALENT if name not in left_out])
    say(f"\n{report}\n{time.perf_counter() - started:.0f} s in all")
    return 0 if good else 1
