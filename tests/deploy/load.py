"""Calls of many sessions at a steady rate through a balancer, what became of them, and a picture of it."""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import Any

import attrs
import trio

from deploy.processes import Client, Instance

USERS = ("alice", "bob", "carol")


@attrs.frozen
class Call:
    """A call: when it began, by the time of the load; how long it took; the status, 0 for a broken connection."""

    at: float
    took: float
    status: int
    session_id: str


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
        return sum(call.status == 200 for call in self.calls)

    @property
    def unexpected(self) -> set[int]:
        """Statuses of calls that failed, and were not in flight on the instance that was killed: 502 and a broken
        connection are what a client sees of those.
        """
        in_flight = (0, 502)
        return {
            call.status
            for call in self.calls
            if call.status != 200
            and not (call.status in in_flight and call.at - 0.5 <= self.killed_at <= call.at + call.took + 0.5)
        }

    @property
    def slowest_move(self) -> float:
        """s of the slowest successful call after the kill: the first on the other instance restores the session."""
        return max((call.took for call in self.calls if call.status == 200 and call.at > self.killed_at), default=0.0)

    def told(self) -> str:
        times = sorted(call.took for call in self.calls if call.status == 200)
        middle, late = times[len(times) // 2], times[len(times) * 99 // 100]
        return (
            f"{len(self.calls)} calls, {len(self.calls) - self.ok} errors seen by clients; "
            f"median {1000 * middle:.1f} ms, 99 % under {1000 * late:.1f} ms, "
            f"slowest after the kill {1000 * self.slowest_move:.1f} ms; "
            f"{self.sessions_served_afterwards} sessions live on"
        )


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
        status = await self.client.call(self.url, self.sessions[session_id], session_id)
        self.calls.append(Call(began_at, self.now - began_at, status, session_id))
        return status == 200

    async def run(self, rate: float) -> None:
        """`rate` calls a second, however long each takes, until cancelled."""
        choices = random.Random(1)
        async with trio.open_nursery() as calls:
            while True:
                calls.start_soon(self.call, choices.choice(list(self.sessions)))
                await trio.sleep(1 / rate)


async def measure(
    load: Load, victim: Instance, nursery: trio.Nursery, *, rate: float, seconds: tuple[float, float, float]
) -> Report:
    """Calls for a while, then without the victim, then with it again; then one call of each session."""
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
    """Calls by the time at which they began and how long they took, as a PNG. Needs matplotlib."""
    importlib.import_module("matplotlib").use("agg")  # no display
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(9, 4))
    good = [call for call in report.calls if call.status == 200]
    bad = [call for call in report.calls if call.status != 200]
    axes.scatter([call.at for call in good], [1000 * call.took for call in good], s=6, label="answered")
    axes.scatter([call.at for call in bad], [1000 * call.took for call in bad], s=24, marker="x", label="failed")
    axes.axvspan(report.killed_at, report.back_at, alpha=0.15, label="one instance down")
    axes.set(xlabel="s", ylabel="ms", yscale="log", title="Calls through HAProxy to two instances")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
