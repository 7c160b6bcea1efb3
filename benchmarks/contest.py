"""The words of a benchmark: contenders, bars, rows and questions, and the figures that the rounds bring."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Contender:
    """One column: a script with its arguments, in the environment that it needs.

    A `slow` one takes part in a row's `slow_rounds` only, does there what its `slow` says, and warms up once in a run.
    """

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    environment: str = "library"
    era: str = "legacy"
    slow: bool = False


HTTPX = Contender("httpx loop", "floor.py")
H11 = Contender("h11 floor", "h11_floor.py")
LIBRARY = Contender("trio_vmcp", "ours.py")
PROBING = Contender("+ probe", "ours.py", era="auto")
MCP_ASYNCIO = Contender("mcp, asyncio", "official.py", ("asyncio",), "official", slow=True)
MCP_TRIO = Contender("mcp, trio", "official.py", ("trio",), "official", slow=True)
FASTMCP = Contender("fastmcp", "fastmcp_config.py", environment="fastmcp", slow=True)
FLOORS = (HTTPX, H11)
OFFICIAL = (MCP_ASYNCIO, MCP_TRIO)
ALL = (*FLOORS, LIBRARY, PROBING, *OFFICIAL, FASTMCP)  # in the order of the table


@dataclass
class Figures:
    """What the rounds of one row measured: by measure ("wall" and "cpu", s, and what a workload adds), contender and
    round; and why a contender that may fail did.
    """

    measured: dict[str, dict[Contender, dict[int, float]]] = field(default_factory=dict)
    failed: dict[Contender, str] = field(default_factory=dict)

    def add(self, contender: Contender, turn: int, answer: Mapping[str, float]) -> None:
        for measure, value in answer.items():
            self.measured.setdefault(measure, {}).setdefault(contender, {})[turn] = value

    def of(self, measure: str, contender: Contender) -> dict[int, float]:
        return self.measured.get(measure, {}).get(contender, {})

    def median(self, measure: str, contender: Contender) -> float | None:
        """None: it did not take part, or failed."""
        values = self.of(measure, contender).values()
        return statistics.median(values) if values else None

    def ratio(self, measure: str, contender: Contender, to: Contender) -> float | None:
        """The median over the rounds that both were in, each compared with itself: what the machine does meanwhile
        hits both. None: there was no such round.
        """
        mine, theirs = self.of(measure, contender), self.of(measure, to)
        # Nothing over nothing is a tie; a figure over nothing is as bad as it gets.
        ratios = [
            mine[turn] / theirs[turn] if theirs[turn] else 1.0 if not mine[turn] else float("inf")
            for turn in mine.keys() & theirs.keys()
        ]
        return statistics.median(ratios) if ratios else None


class Bar(Protocol):
    """How good the library has to be in one row."""

    @property
    def most(self) -> float: ...

    def reached(self, figures: Figures) -> float | None:
        """What must not be above `most`; None: nothing was measured."""

    def __str__(self) -> str:
        """What `reached` is: "CPU / h11 floor"."""


@dataclass(frozen=True)
class Ratio:
    """The library's figure over that of `than`, by the clock or by CPU."""

    than: Contender
    most: float
    of: str = "wall"

    def reached(self, figures: Figures) -> float | None:
        return figures.ratio(self.of, LIBRARY, to=self.than)

    def __str__(self) -> str:
        return f"{self.of} / {self.than.name}"


def times_as_fast(speed: float, than: Contender, *, of: str = "wall") -> Ratio:
    return Ratio(than, 1 / speed, of)


@dataclass(frozen=True)
class Bound:
    """The library's figure itself, in units of `per`."""

    of: str
    most: float
    called: str
    per: float = 1.0

    def reached(self, figures: Figures) -> float | None:
        median = figures.median(self.of, LIBRARY)
        return None if median is None else median / self.per

    def __str__(self) -> str:
        return self.called


def ideal(seconds: float, *, within: float) -> Bound:
    """The time that nothing but waiting takes, and how far above it is good enough."""
    return Bound("wall", 1 + within, f"wall / ideal of {seconds * 1e3:.0f} ms", per=seconds)


def held(bar: Bar, figures: Figures) -> bool:
    """What was not measured is not held."""
    reached = bar.reached(figures)
    return reached is not None and reached <= bar.most  # nan is not, either


@dataclass(frozen=True)
class Shown:
    """A measure as the table prints it."""

    of: str
    unit: str
    scale: float = 1.0


MILLISECONDS = Shown("wall", "ms", 1e3)


@dataclass(frozen=True, eq=False)
class Row:
    """One workload: what is asked of every contender, and how good the library has to be.

    Attributes:
        command: The workload's name as "do", and its arguments.
        short: Replaces arguments of it when only a glimpse is wanted.
        slow: Replaces arguments of it for the slow contenders; what they measure must be per call or link then.
        shows: What is printed of it, a line each.
        rounds: Counted rounds; None: as many as the run has, and twice as many where a bar is missed.
        slow_rounds: Those of them that slow contenders are in.
        fresh: A process of its own for every answer, as memory is only then comparable; and no round that warms up.
        may_fail: Who is recorded as "fails" instead of ending the run.
        timeout: s, for one answer.
    """

    label: str
    backends: int
    path: str
    contenders: tuple[Contender, ...]
    command: dict[str, Any]
    short: dict[str, Any] = field(default_factory=dict)
    slow: dict[str, Any] = field(default_factory=dict)
    bars: tuple[Bar, ...] = ()
    shows: tuple[Shown, ...] = (MILLISECONDS,)
    rounds: int | None = None
    slow_rounds: int = 3
    fresh: bool = False
    may_fail: tuple[Contender, ...] = ()
    timeout: float = 120.0  # s; the slowest usual workload takes about 10

    def command_for(self, contender: Contender, *, short: bool) -> dict[str, Any]:
        return self.command | (self.slow if contender.slow else {}) | (self.short if short else {})


@dataclass(frozen=True, eq=False)
class Question:
    """One file, one block of the table."""

    name: str
    asks: str
    rows: tuple[Row, ...]

    @property
    def contenders(self) -> tuple[Contender, ...]:
        return tuple(dict.fromkeys(contender for row in self.rows for contender in row.contenders))
