"""The words of a benchmark: contenders, bars, rows and questions, and the figures that the rounds bring."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Contender:
    """One column: a script with its arguments, in the environment that it needs.

    A `slow` contender takes part in a row's `slow_rounds` only, with the arguments of the row's `slow`, and warms up
    once in a run.
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
# Gateways, as processes of their own; the library's is in the column of the library.
DIRECT = Contender("no gateway", "through_gateway.py", ("direct",))
RELAY = Contender("ASGI relay", "through_gateway.py", ("relay",))
MCP_PROXY = Contender("mcp-proxy", "through_gateway.py", ("mcp_proxy",), "mcp-proxy", slow=True)
MOUNTS = Contender("fastmcp mounts", "through_gateway.py", ("fastmcp_mounts",), "fastmcp", slow=True)
PROXY = Contender("fastmcp proxy", "through_gateway.py", ("fastmcp_proxy",), "fastmcp", slow=True)
GATEWAY_PEERS = (MCP_PROXY, MOUNTS, PROXY)
# In the order of the table.
CLIENTS = (*FLOORS, LIBRARY, PROBING, *OFFICIAL, FASTMCP)
ALL = (*FLOORS, DIRECT, RELAY, LIBRARY, PROBING, *OFFICIAL, FASTMCP, *GATEWAY_PEERS)


@dataclass
class Figures:
    """The figures of one row: by measure ("wall" and "cpu", s, and those that a workload adds), contender and round;
    and the reason of each contender that failed where it may.
    """

    measured: dict[str, dict[Contender, dict[int, float]]] = field(default_factory=dict)
    failed: dict[Contender, str] = field(default_factory=dict)

    def add(self, contender: Contender, turn: int, answer: Mapping[str, float]) -> None:
        for measure, value in answer.items():
            self.measured.setdefault(measure, {}).setdefault(contender, {})[turn] = value

    def of(self, measure: str, contender: Contender) -> dict[int, float]:
        return self.measured.get(measure, {}).get(contender, {})

    def median(self, measure: str, contender: Contender) -> float | None:
        """The median over all rounds; None: the contender did not take part, or failed."""
        values = self.of(measure, contender).values()
        return statistics.median(values) if values else None

    def ratio(self, measure: str, contender: Contender, to: Contender) -> float | None:
        """The median of the ratios of single rounds in which both took part, since other load of the machine slows
        both within a round. None: there was no such round.
        """
        mine, theirs = self.of(measure, contender), self.of(measure, to)
        # 0 / 0 is a tie; x / 0 is infinite.
        ratios = [
            mine[turn] / theirs[turn] if theirs[turn] else 1.0 if not mine[turn] else float("inf")
            for turn in mine.keys() & theirs.keys()
        ]
        return statistics.median(ratios) if ratios else None


class Bar(Protocol):
    """A limit that the library has to keep in one row."""

    @property
    def most(self) -> float: ...

    def reached(self, figures: Figures) -> float | None:
        """The value that must not be above `most`; None: nothing was measured."""

    def __str__(self) -> str:
        """A name for `reached`, such as "cpu / h11 floor"."""


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
    """A bar on the time over the time of waiting alone: at most 1 + `within`."""
    return Bound("wall", 1 + within, f"wall / ideal of {seconds * 1e3:.0f} ms", per=seconds)


def held(bar: Bar, figures: Figures) -> bool:
    """Whether the bar was kept; one that was not measured was not."""
    reached = bar.reached(figures)
    return reached is not None and reached <= bar.most  # false for nan


@dataclass(frozen=True)
class Shown:
    """A measure as the table prints it."""

    of: str
    unit: str
    scale: float = 1.0


MILLISECONDS = Shown("wall", "ms", 1e3)


@dataclass(frozen=True, eq=False)
class Row:
    """One workload for all contenders, and the bars of the library.

    Attributes:
        command: The workload's name as "do", and its arguments.
        short: Replaces arguments of `command` in a short run.
        slow: Replaces arguments of `command` for the slow contenders; the figures must then be per call or link.
        shows: The measures that are printed, a line each.
        rounds: Counted rounds; None: those of the run, and twice as many if a bar is missed.
        slow_rounds: The number of rounds in which slow contenders take part.
        fresh: Each answer comes from a new process, which makes memory comparable; no round warms up.
        may_fail: Contenders that are recorded as "fails" instead of ending the run.
        same: The methods of which the server must have seen as many requests from all contenders; None: all methods.
        leaving: Contenders that may leave sessions without a DELETE.
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
    same: tuple[str, ...] | None = None
    leaving: tuple[Contender, ...] = ()
    timeout: float = 120.0  # s; the slowest workload takes about 10

    def command_for(self, contender: Contender, *, short: bool) -> dict[str, Any]:
        return self.command | (self.slow if contender.slow else {}) | (self.short if short else {})


@dataclass(frozen=True, eq=False)
class Question:
    """The rows of one file, which are one block of the table; `apart`: of a table with other contenders."""

    name: str
    asks: str
    rows: tuple[Row, ...]
    apart: bool = False

    @property
    def contenders(self) -> tuple[Contender, ...]:
        return tuple(dict.fromkeys(contender for row in self.rows for contender in row.contenders))
