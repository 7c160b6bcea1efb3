"""The workload of `bench_change.py`: what a change costs a session of many backends.

At the connector seam, in virtual time: a connector hands over parsed lists, so the figures are CPU seconds of the
session alone, and no other library takes part.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import trio
from trio.testing import MockClock
from worker import Measures

from trio_vmcp import Backend, BackendRecord, BackendUnavailable, FactorySettings, open_session_factory
from trio_vmcp.connector import EventSink, OnProgress
from trio_vmcp.identity import Identity

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
    def __init__(self, tools: int) -> None:
        self.tools = tools
        self.clients: dict[str, Client] = {}
        self.answered = 0  # list requests, of all clients
        self._tools: dict[str, list[dict[str, Any]]] = {}

    def tools_of(self, backend_id: str) -> list[dict[str, Any]]:
        """Made once for each backend: the figures are of the session, and not of this connector."""
        if backend_id not in self._tools:
            self._tools[backend_id] = [
                {"name": f"t{n}", "description": "x", "inputSchema": {"type": "object"}} for n in range(self.tools)
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


CHANGES: dict[str, Callable[[Connector], None]] = {"description": describe_anew, "lost": lose_one, "all_lost": lose_all}


async def costs(backends: int, tools: int) -> Measures:
    """s of CPU for each change; the median of the rounds."""
    connector = Connector(tools)
    async with open_session_factory(connector=connector, settings=SETTINGS) as factory:
        configured = [Backend(id=f"b{n}", url=f"http://b{n}.test/") for n in range(backends)]
        async with factory.open_session(configured) as session:
            found: Measures = {}
            for name, change in CHANGES.items():
                took: list[float] = []
                for _ in range(ROUNDS):
                    await trio.sleep(120)
                    answered = connector.answered
                    begun = time.thread_time()
                    change(connector)
                    await trio.sleep(120)
                    took.append(time.thread_time() - begun)
                    assert not session.failures
                    assert connector.answered - answered >= (backends if change is lose_all else 1)
                found[name] = statistics.median(took)
            return found


def costs_and_growth(backends: int, fewer: int, tools: int) -> Measures:
    """Adds the exponents of the costs in the number of backends; of "all_lost", of the cost for each backend."""
    logging.disable(logging.CRITICAL)
    few, many = (trio.run(costs, number, tools, clock=MockClock(autojump_threshold=0)) for number in (fewer, backends))
    for name in CHANGES:
        each = backends / fewer if name == "all_lost" else 1.0
        many[f"{name}_growth"] = math.log(many[name] / (few[name] * each)) / math.log(backends / fewer)
    return many
