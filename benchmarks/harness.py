"""The runner of the benchmarks: rounds in which contenders take turns, the check of equal work, the command line."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

from children import (
    PEERS,
    Failed,
    Server,
    Worker,
    make_environment,
    open_server,
    open_worker,
    python_with_library,
)
from contest import Contender, Figures, Question, Row, held
from report import LEGEND, Measured, bars, failures, table, write_results

MOST_BACKENDS = 50
ROUNDS, SHORT_ROUNDS = 11, 1


class Contest:
    """One run: the server, a process for each contender that lives as long as the run, and the rounds."""

    def __init__(self, server: Server, pythons: dict[str, str], *, rounds: int, short: bool) -> None:
        self.server = server
        self.pythons = pythons
        self.rounds = rounds
        self.short = short
        self.workers: dict[Contender, Worker] = {}
        self.warm: set[Contender] = set()
        self.began = time.monotonic()
        self.versions: dict[Contender, dict[str, str]] = {}

    def start(self, contenders: Sequence[Contender], stack: ExitStack) -> None:
        for contender in contenders:
            worker = stack.enter_context(open_worker(contender, self.pythons))
            self.workers[contender] = worker
            self.versions[contender] = worker.versions

    def measure(self, question: Question, row: Row) -> Figures:
        """Let the contenders take turns. The first round warms up and does not count. A missed bar doubles the number
        of rounds, unless the row sets it.
        """
        rounds = self._rounds(row)
        figures = Figures()
        turn = first = 1 if row.fresh else 0
        last = rounds
        while turn <= last:
            self._progress(f"{question.name}: {row.label}", turn, last, first=turn == first)
            self._round(row, turn, rounds, figures)
            asserted = row.rounds is None and not self.short
            if turn == rounds and asserted and not all(held(bar, figures) for bar in row.bars):
                last = 2 * rounds  # a bar missed by noise is then usually kept by the median
            turn += 1
        return figures

    def _progress(self, what: str, turn: int, rounds: int, *, first: bool) -> None:
        """One line that is overwritten; in a log, one line for each row."""
        passed = f"{time.monotonic() - self.began:4.0f} s"
        if sys.stderr.isatty():
            print(f"\r\033[K{passed}  {what}, round {turn} of {rounds}", end="", file=sys.stderr, flush=True)
        elif first:
            print(f"{passed}  {what}", file=sys.stderr, flush=True)

    def _rounds(self, row: Row) -> int:
        if self.short and row.fresh:
            return 1  # starting the processes takes most of the time
        return self.rounds if row.rounds is None else min(row.rounds, self.rounds)

    def _round(self, row: Row, turn: int, rounds: int, figures: Figures) -> None:
        first = turn % len(row.contenders)  # each round begins with another contender
        done: dict[bool, dict[str, object]] = {}  # apart, since slow contenders may have a smaller workload
        for contender in row.contenders[first:] + row.contenders[:first]:
            if contender in figures.failed or not self._takes_part(contender, row, turn, rounds):
                continue
            answer = self._ask(contender, row)
            self.warm.add(contender)
            seen = self.server.seen()
            if "fails" in answer:
                figures.failed[contender] = answer["fails"]
                continue
            if seen.sessions and contender not in row.leaving:
                raise Failed(f"{contender.name!r} left {seen.sessions} sessions without a DELETE")
            asked = {name: count for name, count in seen.asked.items() if row.same is None or name in row.same}
            work = (answer.pop("listed", None), asked)
            done.setdefault(contender.slow and bool(row.slow), {})[contender.name] = work
            if turn:
                figures.add(contender, turn, answer | {"connections": seen.connections})
        for group in done.values():
            if any(work != next(iter(group.values())) for work in group.values()):
                raise Failed(f"{row.label}: the contenders did not do the same work: {group}")

    def _takes_part(self, contender: Contender, row: Row, turn: int, rounds: int) -> bool:
        """Slow contenders take part in `slow_rounds` rounds, spread evenly over all."""
        if not contender.slow:
            return True
        every = -(-rounds // (1 if self.short else min(row.slow_rounds, rounds)))
        return (turn - 1) % every == 0 if turn else contender not in self.warm

    def _ask(self, contender: Contender, row: Row) -> dict[str, Any]:
        command = row.command_for(contender, short=self.short) | {
            "urls": [self.server.url(backend, row.path) for backend in range(row.backends)],
            "spare": self.server.url(MOST_BACKENDS, row.path),
            "may_fail": contender in row.may_fail,
        }
        command["terms"] = {"era": contender.era} | command.get("terms", {})
        if not row.fresh:
            return self.workers[contender].ask(command, row.timeout)
        with open_worker(contender, self.pythons) as worker:
            return worker.ask(command, row.timeout)


def run(questions: Sequence[Question], *, python: str | None, rounds: int, short: bool) -> list[str]:
    """Measure and print. Returns a line for each bar that was missed."""
    contenders = dict.fromkeys(contender for question in questions for contender in question.contenders)
    environments = {contender.environment for contender in contenders}
    pythons = {"library": python_with_library(python)}
    pythons |= {name: make_environment(name, packages) for name, packages in PEERS.items() if name in environments}
    living = dict.fromkeys(
        c for question in questions for row in question.rows if not row.fresh for c in row.contenders
    )
    with ExitStack() as stack:
        server = stack.enter_context(open_server(pythons["library"], MOST_BACKENDS + 1))
        contest = Contest(server, pythons, rounds=rounds, short=short)
        contest.start([*living], stack)
        measured = [
            Measured(question, row, contest.measure(question, row)) for question in questions for row in question.rows
        ]
    tables = [table([one for one in measured if one.question.apart is apart]) for apart in (False, True)]
    print("\n", LEGEND, "", *tables, "", *failures(measured), "", sep="\n")
    held_bars, missed_bars = bars(measured)
    print(*held_bars, sep="\n")
    path = write_results(measured, contest.versions, short=short)
    print(f"\nall figures: {path.relative_to(path.parents[2])}\n")
    return missed_bars


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _rounds(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return int(text)


def main(questions: Sequence[Question]) -> None:
    """Run the questions, print one table, write all figures. Exits with 1 and a line for each missed bar."""
    parser = _Parser(description="Race trio_vmcp against hand-written loops, the official client and FastMCP's.")
    parser.add_argument("--short", action="store_true", help="a glimpse: one round, and no bar is asserted")
    parser.add_argument(
        "--rounds", type=_rounds, help=f"counted rounds per row (default {ROUNDS}, short {SHORT_ROUNDS})"
    )
    parser.add_argument(
        "--python", help="a Python that has the library installed (default: this one if it has; else one is made)"
    )
    if len(questions) > 1:
        parser.add_argument("--only", choices=[question.name for question in questions], help="ask one question only")
    args = parser.parse_args()
    only = getattr(args, "only", None)
    try:
        below = run(
            [question for question in questions if only in (None, question.name)],
            python=args.python,
            rounds=args.rounds or (SHORT_ROUNDS if args.short else ROUNDS),
            short=args.short,
        )
    except Failed as failure:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # ends the line of `_progress`
        sys.exit(str(failure))
    print(*below, sep="\n")
    sys.exit(1 if below and not args.short else 0)
