"""What runs the benchmarks: environments, child processes, rounds that interleave, the table, the bars.

Needs nothing but the standard library, and an index for pip once.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import threading
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE / ".env"
RESULTS = HERE / "results"
OFFICIAL = ("mcp==2.3.0", "trio==0.35.0")
MOST_BACKENDS = 50
ANSWER_TIMEOUT = 120.0  # s; the slowest workload takes about 5
LEGEND = "'vs' 3.00x (2.00x): trio_vmcp takes a third of that time (half of that CPU)."
ROUNDS, SHORT_ROUNDS = 11, 2


@dataclass(frozen=True)
class Contender:
    """One column: a script with its arguments, in the environment that it needs."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    environment: str = "library"
    era: str = "legacy"


LOOP = Contender("httpx loop", "floor.py")
LIBRARY = Contender("trio_vmcp", "ours.py")
PROBING = Contender("+ probe", "ours.py", era="auto")
MCP_ASYNCIO = Contender("mcp, asyncio", "official.py", ("asyncio",), "official")
MCP_TRIO = Contender("mcp, trio", "official.py", ("trio",), "official")


@dataclass(frozen=True)
class Bar:
    """The library must be `speed` times as fast as `than`."""

    than: Contender
    speed: float


@dataclass(frozen=True, eq=False)
class Row:
    """One workload: what is asked of every contender, and how good the library has to be.

    `short` replaces arguments of `command` when only a glimpse is wanted.
    """

    label: str
    backends: int
    path: str
    command: dict[str, Any]
    short: dict[str, Any]
    bars: tuple[Bar, ...]


@dataclass(frozen=True, eq=False)
class Question:
    """One file, one block of the table."""

    name: str
    asks: str
    unit: str
    scale: float
    contenders: tuple[Contender, ...]
    rows: tuple[Row, ...]


@dataclass
class Figures:
    """What the rounds of one row measured: per contender "wall" and "cpu", s, one entry a round."""

    wall: dict[Contender, list[float]] = field(default_factory=dict)
    cpu: dict[Contender, list[float]] = field(default_factory=dict)

    def add(self, contender: Contender, answer: dict[str, float]) -> None:
        self.wall.setdefault(contender, []).append(answer["wall"])
        self.cpu.setdefault(contender, []).append(answer["cpu"])

    def ratio(self, contender: Contender, to: Contender = LIBRARY, *, of: str = "wall") -> float:
        """The median over the rounds, each compared with itself: what the machine does meanwhile hits both."""
        figures: dict[Contender, list[float]] = getattr(self, of)
        ratios = (a / b for a, b in zip(figures[contender], figures[to], strict=True))
        return statistics.median(ratios)


class Failed(Exception):
    """The run cannot go on; the message is for the user."""


class Worker:
    """A contender's process. It lives as long as the run, and begins with a line that names its versions."""

    def __init__(self, contender: Contender, process: subprocess.Popen[str]) -> None:
        self.contender = contender
        self.process = process
        self.versions: dict[str, str] = json.loads(self._answer("start"))

    def ask(self, command: dict[str, Any]) -> dict[str, float]:
        assert self.process.stdin
        with suppress(BrokenPipeError):  # there will be no answer either
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        answer: dict[str, float] = json.loads(
            self._answer({key: value for key, value in command.items() if key != "urls"})
        )
        return answer

    def _answer(self, to: object) -> str:
        assert self.process.stdout
        hung = threading.Timer(ANSWER_TIMEOUT, self.process.kill)
        hung.start()
        line = self.process.stdout.readline()
        hung.cancel()
        if not line:
            raise Failed(f"{self.contender.name!r} died or gave no answer within {ANSWER_TIMEOUT} s to {to}")
        return line


@contextmanager
def child(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process of ours that ends when its stdin closes."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE)
    try:
        yield process
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # dead already, and whoever asked it has said so
            process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def make_environment(name: str, requirements: Sequence[str], *, fresh: bool = False) -> str:
    """The Python of a virtual environment with `requirements`; `fresh` installs them even if they are there."""
    home = ENVIRONMENTS / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = home / "complete"
    if fresh or not complete.exists() or complete.read_text() != "\n".join(requirements):
        print(f"installing {', '.join(requirements)} into {home.relative_to(HERE.parent)}", file=sys.stderr)
        if not python.exists():
            venv.create(home, with_pip=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements], check=True
        )
        complete.write_text("\n".join(requirements))
    return str(python)


def installed_here() -> str | None:
    """This Python, when it has the library: what nox calls has the wheel."""
    return sys.executable if importlib.util.find_spec("trio_vmcp") else None


def what_was_asked(contender: Contender, port: int) -> dict[str, int]:
    """What the server was asked since the last time, without what only some clients try."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/seen", timeout=ANSWER_TIMEOUT) as response:
        seen = json.load(response)
    if seen["sessions"]:
        raise Failed(f"{contender.name!r} left {seen['sessions']} sessions without a DELETE")
    optional = ("GET", "server/discover")  # the official client asks for a stream, a probing one for the era
    return {method: count for method, count in seen["asked"].items() if method not in optional}


def measure(
    question: Question, row: Row, rounds: int, short: bool, workers: dict[Contender, Worker], ports: list[int]
) -> Figures:
    """Let the contenders take turns. The first round warms up and does not count; a missed bar doubles the rounds."""
    *usual, spare = (f"http://127.0.0.1:{port}{row.path}" for port in ports)
    command = row.command | {"urls": usual[: row.backends]} | (row.short if short else {})
    figures = Figures()
    turn, last = 0, rounds
    while turn <= last:
        progress(f"{question.name}: {row.label}", turn, last)
        first = turn % len(question.contenders)  # each round from another one on
        done: dict[str, tuple[object, object]] = {}
        for contender in question.contenders[first:] + question.contenders[:first]:
            extra = {"spare": spare, "era": contender.era} if row.command["do"] == "open" else {}
            answer = workers[contender].ask(command | extra)
            done[contender.name] = (answer.get("listed"), what_was_asked(contender, ports[0]))
            if turn:
                figures.add(contender, answer)
        if any(work != done[LOOP.name] for work in done.values()):
            raise Failed(f"{row.label}: the contenders did not do the same work: {done}")
        if turn == rounds and not short and missed(row, figures):
            last = 2 * rounds  # noise has to come twice
        turn += 1
    return figures


def progress(what: str, turn: int, rounds: int) -> None:
    """One line that is written over; in a log one line a row."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}, round {turn} of {rounds}", end="", file=sys.stderr, flush=True)
    elif turn == 0:
        print(what, file=sys.stderr, flush=True)


def table(question: Question, figures: Sequence[Figures]) -> str:
    """One block: median times, then how many times as fast the library is, wall (and CPU)."""
    others = [contender for contender in question.contenders if contender is not LIBRARY]
    head = [f"{question.asks} ({question.unit})"]
    head += [contender.name for contender in question.contenders]
    head += ["|", *(f"vs {contender.name}" for contender in others)]
    lines = [head]
    for row, one in zip(question.rows, figures, strict=True):
        line = [row.label]
        line += [f"{statistics.median(one.wall[contender]) * question.scale:.1f}" for contender in question.contenders]
        line += ["|", *(f"{one.ratio(other):.2f}x ({one.ratio(other, of='cpu'):.2f}x)" for other in others)]
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def missed(row: Row, figures: Figures) -> list[str]:
    """The bars of one row that were not reached, in words."""
    return [
        f"trio_vmcp is {figures.ratio(bar.than):.2f}x as fast as {bar.than.name!r}, the bar is {bar.speed:.2f}x"
        for bar in row.bars
        if figures.ratio(bar.than) < bar.speed
    ]


def write_results(measured: dict[Question, list[Figures]], workers: dict[Contender, Worker], rounds: int) -> Path:
    RESULTS.mkdir(exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    rows = [
        {
            "question": question.name,
            "row": row.label,
            "wall_s": {contender.name: values for contender, values in one.wall.items()},
            "cpu_s": {contender.name: values for contender, values in one.cpu.items()},
            "times_as_fast": {c.name: round(one.ratio(c), 3) for c in question.contenders if c is not LIBRARY},
        }
        for question, figures in measured.items()
        for row, one in zip(question.rows, figures, strict=True)
    ]
    report = {
        "at": now.isoformat(),
        "machine": platform.machine(),
        "rounds": rounds,
        "versions": {contender.name: worker.versions for contender, worker in workers.items()},
        "rows": rows,
    }
    path = RESULTS / f"{now:%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def run(questions: Sequence[Question], *, python: str | None, rounds: int, short: bool) -> list[str]:
    """Measure and print; the bars that were missed."""
    pythons = {
        "library": python or installed_here() or make_environment("library", [str(HERE.parent)], fresh=True),
        "official": make_environment("official", OFFICIAL),
    }
    measured: dict[Question, list[Figures]] = {}
    with ExitStack() as stack:
        server = stack.enter_context(child([pythons["library"], "backend_server.py", str(MOST_BACKENDS + 1)]))
        assert server.stdout
        ports = json.loads(server.stdout.readline())
        contenders = dict.fromkeys(contender for question in questions for contender in question.contenders)
        workers = {
            contender: Worker(
                contender,
                stack.enter_context(child([pythons[contender.environment], contender.script, *contender.arguments])),
            )
            for contender in contenders
        }
        for question in questions:
            measured[question] = [measure(question, row, rounds, short, workers, ports) for row in question.rows]
    print(f"\n\nMedians of {rounds} interleaved rounds. {LEGEND}\n")
    for question, figures in measured.items():
        print(table(question, figures), end="\n\n")
    print(f"all figures: {write_results(measured, workers, rounds).relative_to(HERE.parent)}")
    return [
        f"MISSED {question.name}, {row.label}: {line}"
        for question, figures in measured.items()
        for row, one in zip(question.rows, figures, strict=True)
        for line in missed(row, one)
    ]


def main(questions: Sequence[Question]) -> None:
    """Ask them, print one table, write all figures; exits with 1 and one line for every bar that was missed."""
    parser = argparse.ArgumentParser(
        description="Race trio_vmcp against a hand-written httpx loop and the official client."
    )
    parser.add_argument("--short", action="store_true", help="a glimpse: few rounds, and no bar is asserted")
    parser.add_argument("--rounds", type=int, help=f"counted rounds per row (default {ROUNDS}, short {SHORT_ROUNDS})")
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
        sys.exit(f"\n{failure}")
    print(*below, sep="\n")
    sys.exit(1 if below and not args.short else 0)
