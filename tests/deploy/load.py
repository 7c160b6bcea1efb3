"""Calls of many sessions at a steady rate through a balancer, what became of them, and a picture of it."""

from __future__ import annotations

import importlib
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import trio

from deploy.processes import Client, Instance

USERS = ("alice", "bob", "carol")
BAR = 0.5  # s, of the picture


@attrs.frozen
class Call:
    """A call: when it began, by the time of the load; how long it took; the status, 0 for a broken connection; and
    which instance answered.
    """

    at: float
    took: float
    status: int
    session_id: str
    instance: str = ""

    @property
    def is_ok(self) -> bool:
        return self.status == 200

    @property
    def ended_at(self) -> float:
        return self.at + self.took


@attrs.define
class Report:
    """What clients saw.

    Attributes:
        killed_at, back_at: By the time of the load.
        sessions_served_afterwards: How many sessions answered a call after all that.
    """

    calls: list[Call]
    killed_at: float = 0.0
    back_at: float = 0.0
    sessions_served_afterwards: int = 0

    @property
    def ok(self) -> int:
        return sum(call.is_ok for call in self.calls)

    @property
    def failed(self) -> list[Call]:
        return [call for call in self.calls if not call.is_ok]

    @property
    def unexpected(self) -> set[int]:
        """Statuses of calls that failed, and were not in flight on the instance that was killed: 502 and a broken
        connection are what a client sees of those.
        """
        in_flight = (0, 502)
        return {
            call.status
            for call in self.failed
            if not (call.status in in_flight and call.at - 0.5 <= self.killed_at <= call.ended_at + 0.5)
        }

    @property
    def moves(self) -> list[Call]:
        """The first calls of sessions on another instance than before, which restores the session; at first, a session
        is on the instance that its id names.
        """
        moves, places = [], dict[str, str]()
        for call in sorted((call for call in self.calls if call.is_ok), key=lambda call: call.ended_at):
            before = places.get(call.session_id, call.session_id.partition(".")[0])
            if call.instance != before:
                moves.append(call)
            places[call.session_id] = call.instance
        return moves

    def told(self) -> str:
        statuses = Counter(call.status for call in self.failed)
        kinds = ", ".join(
            f"{count} of status {status}" if status else f"{count} broken connections"
            for status, count in sorted(statuses.items())
        )
        return (
            f"{len(self.calls)} calls: {_told_times(call for call in self.calls if call.is_ok)}\n"
            f"errors seen by clients: {kinds or 'none'}\n"
            f"{len(self.moves)} restores on another instance: {_told_times(self.moves)}\n"
            f"{self.sessions_served_afterwards} sessions live on"
        )


def _told_times(calls: Iterable[Call]) -> str:
    times = sorted(1000 * call.took for call in calls)
    if not times:
        return "none"
    middle, late = times[len(times) // 2], times[len(times) * 99 // 100]
    return f"p50 {middle:.1f} ms, p99 {late:.1f} ms"


@attrs.define(eq=False)
class Load:
    client: Client
    url: str
    sessions: dict[str, str] = attrs.field(factory=dict)
    calls: list[Call] = attrs.field(factory=list)
    begun_at: float = attrs.field(factory=trio.current_time)

    @property
    def now(self) -> float:
        return trio.current_time() - self.begun_at

    async def open_sessions(self, count: int) -> None:
        """The balancer takes a moment until it has found its instances."""
        with trio.fail_after(60):
            while len(self.sessions) < count:
                user = USERS[len(self.sessions) % len(USERS)]
                session_id = await self.client.create(self.url, user)
                if session_id is None:
                    await trio.sleep(0.05)  # another process: no event tells when the balancer is ready
                else:
                    self.sessions[session_id] = user

    async def call(self, session_id: str) -> bool:
        began_at = self.now
        status, instance = await self.client.call_and_place(self.url, self.sessions[session_id], session_id)
        self.calls.append(Call(began_at, self.now - began_at, status, session_id, instance))
        return self.calls[-1].is_ok

    async def run(self, rate: float) -> None:
        """`rate` calls a second, however long each takes, until cancelled."""
        choices = random.Random(1)
        async with trio.open_nursery() as calls:
            at = trio.current_time()
            while True:
                calls.start_soon(self.call, choices.choice(list(self.sessions)))
                at += 1 / rate
                await trio.sleep_until(at)


async def measure(
    load: Load, victim: Instance, nursery: trio.Nursery, *, rate: float, seconds: tuple[float, float, float]
) -> Report:
    """Calls for a while, then without the victim, then with it again; then one call of each session."""
    load.begun_at = trio.current_time()
    async with trio.open_nursery() as running:
        running.start_soon(load.run, rate)
        await trio.sleep(seconds[0])
        killed_at = load.now
        port = victim.port
        await victim.kill()
        await trio.sleep(seconds[1])
        await victim.start(nursery, port)
        back_at = load.now
        await trio.sleep(seconds[2])
        running.cancel_scope.cancel()
    calls = list(load.calls)
    served = [await load.call(session_id) for session_id in load.sessions]
    return Report(calls, killed_at, back_at, sum(served))


def plot(report: Report, path: Path) -> None:
    """Above, how long each call took; below, how many were answered by which instance. Needs matplotlib."""
    importlib.import_module("matplotlib").use("agg")  # no display
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, (times, counts) = pyplot.subplots(2, 1, figsize=(11, 7), sharex=True, height_ratios=(2, 1))
    moves = report.moves
    plain = [call for call in report.calls if call.is_ok and call not in set(moves)]
    _scatter(times, plain, f"{len(plain)} answered: {_told_times(plain)}", s=5, alpha=0.4)
    _scatter(times, moves, f"{len(moves)} restored first: {_told_times(moves)}", s=18)
    _scatter(times, report.failed, f"{len(report.failed)} failed", s=45, marker="x", color="tab:red")
    times.set(ylabel="time of a call, ms", yscale="log")
    figure.suptitle("Calls through HAProxy to two instances, one of which is killed and started again")
    end = max(call.at for call in report.calls)
    edges = [BAR * number for number in range(int(end / BAR) + 2)]
    kinds = {f"answered by {name}": [c for c in report.calls if c.is_ok and c.instance == name] for name in "ab"}
    kinds["failed"] = report.failed
    began = [[call.at for call in calls] for calls in kinds.values()]
    weights = [[1 / BAR] * len(calls) for calls in began]
    colors = ["tab:blue", "tab:cyan", "tab:red"]
    counts.hist(began, bins=edges, weights=weights, stacked=True, color=colors, label=list(kinds))
    counts.set(xlabel="s", ylabel="calls per s", xlim=(0, end))
    for axes in (times, counts):
        axes.axvspan(report.killed_at, report.back_at, color="0.9", zorder=0, label="a is down")
        axes.set_axisbelow(True)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, frameon=False)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def _scatter(axes: Any, calls: list[Call], label: str, **looks: Any) -> None:
    axes.scatter([call.at for call in calls], [1000 * call.took for call in calls], label=label, **looks)
