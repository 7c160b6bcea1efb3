"""What does a change cost a session of many backends?

python benchmarks/bench_change.py        # exit code 1: a bar is missed

At the connector seam, in virtual time: a connector hands over parsed lists, so the figures are CPU seconds of the
session alone, and no other library takes part.
"""

from __future__ import annotations

import logging
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import trio
from trio.testing import MockClock

from trio_vmcp import Backend, BackendRecord, BackendUnavailable, FactorySettings, open_session_factory
from trio_vmcp.connector import EventSink, OnProgress
from trio_vmcp.identity import Identity

BACKENDS, TOOLS = 50, 1000
FEWER = 10  # backends, for the growth
MOST_MS = {"one description": 5.0, "one connection lost and back": 5.0, "all connections lost and back": 1000.0}
MOST_GROWTH = 0.2  # exponent of the cost in the number of backends; all connections: for each of them
ROUNDS = 5
SETTINGS = FactorySettings(idle_timeout=math.inf)  # the rounds last longer than the default
CHANGED = "notifications/tools/list_changed"


class Client:
    """A backend of tools."""

    def __init__(self, backend: Backend, events: EventSink, connector: Connector) -> None:
        self.connector = connector
        self.server_capabilities: dict[str, Any] = {"tools": {"listChanged": True}}
        self.record = BackendRecord(backend.id, "id", "legacy", "2025-11-25", self.server_capabilities, "digest")
        self.events = events
        self.lost = trio.Event()
        self.tools = connector.tools_of(backend.id)

    async def request(
        self,
        method: str,
        params: dict[str, Any],
        *,
        identity: Identity | None,
        timeout: float,
        on_progress: OnProgress | None,
    ) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self.connector.answered += 1
        return {"tools": self.tools} if method == "tools/list" else {"content": []}

    async def aclose(self, *, terminate: bool) -> None:
        await trio.lowlevel.checkpoint()

    async def live(self) -> None:
        await self.lost.wait()
        raise BackendUnavailable(self.record.backend_id, "ended")


class Connector:
    def __init__(self) -> None:
        self.clients: dict[str, Client] = {}
        self.answered = 0  # list requests, of all clients
        self._tools: dict[str, list[dict[str, Any]]] = {}

    def tools_of(self, backend_id: str) -> list[dict[str, Any]]:
        """Made once for each backend: the figures are of the session, and not of this connector."""
        if backend_id not in self._tools:
            self._tools[backend_id] = [
                {"name": f"t{n}", "description": "x", "inputSchema": {"type": "object"}} for n in range(TOOLS)
            ]
        return self._tools[backend_id]

    async def __call__(
        self,
        backend: Backend,
        *,
        identity: Identity | None,
        resume: BackendRecord | None,
        nursery: trio.Nursery,
        events: EventSink,
    ) -> Client:
        await trio.lowlevel.checkpoint()
        client = self.clients[backend.id] = Client(backend, events, self)
        nursery.start_soon(client.live)
        return client


def describe_anew(connector: Connector) -> None:
    client = connector.clients["b0"]
    client.tools[0] |= {"description": str(time.perf_counter_ns())}
    client.events(CHANGED, {})


def lose_one(connector: Connector) -> None:
    connector.clients["b0"].lost.set()


def lose_all(connector: Connector) -> None:
    for client in connector.clients.values():
        client.lost.set()


CHANGES: dict[str, Callable[[Connector], None]] = dict(zip(MOST_MS, (describe_anew, lose_one, lose_all), strict=True))


async def costs(backends: int) -> dict[str, float]:
    """ms of CPU for each change; the median of the rounds."""
    connector = Connector()
    async with open_session_factory(connector=connector, settings=SETTINGS) as factory:
        configured = [Backend(id=f"b{n}", url=f"http://b{n}.test/") for n in range(backends)]
        async with factory.open_session(configured) as session:
            found: dict[str, float] = {}
            for name, change in CHANGES.items():
                took: list[float] = []
                for _ in range(ROUNDS):
                    await trio.sleep(120)
                    answered = connector.answered
                    begun = time.thread_time()
                    change(connector)
                    await trio.sleep(120)
                    took.append((time.thread_time() - begun) * 1e3)
                    assert not session.failures
                    assert connector.answered - answered >= (backends if change is lose_all else 1)
                found[name] = statistics.median(took)
            return found


def main() -> int:
    logging.disable(logging.CRITICAL)
    few, many = (trio.run(costs, number, clock=MockClock(autojump_threshold=0)) for number in (FEWER, BACKENDS))
    missed = 0
    for name, most in MOST_MS.items():
        each = BACKENDS / FEWER if CHANGES[name] is lose_all else 1.0
        growth = math.log(many[name] / (few[name] * each)) / math.log(BACKENDS / FEWER)
        is_held = many[name] <= most and growth <= MOST_GROWTH
        missed += not is_held
        verdict = "held" if is_held else "MISSED"
        bars = f"at most {most:g} ms and {MOST_GROWTH}"
        print(
            f"{BACKENDS} x {TOOLS} tools, {name}: {many[name]:.1f} ms of CPU, growth {growth:.2f} ({bars}: {verdict})"
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
