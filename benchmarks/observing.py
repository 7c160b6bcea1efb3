"""The workload of `bench_observers.py`: what an observer adds to a call.

At the connector seam, as in `changing.py`: the figures are CPU seconds of the session and its observer alone. Sessions
with and without an observer take turns, since other load of the machine slows both within a turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

from changing import Connector
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry
from worker import Measures

from trio_vmcp import Backend, open_session_factory
from trio_vmcp.observe import Event, Observer
from trio_vmcp.observers.opentelemetry import OpenTelemetryObserver
from trio_vmcp.observers.prometheus import PrometheusObserver

ATTRIBUTES = {"mcp.method.name": "tools/call", "gen_ai.tool.name": "b0_t0", "backend": "b0", "session": "session #0"}


class Idle:
    def on_event(self, event: Event) -> None: ...


def make_tracing() -> OpenTelemetryObserver:
    return OpenTelemetryObserver(TracerProvider(shutdown_on_exit=False))


OBSERVERS: dict[str, Callable[[], Iterable[Observer]]] = {
    "none": lambda: (),
    "idle": lambda: (Idle(),),
    "prometheus": lambda: (PrometheusObserver(CollectorRegistry()),),
    "opentelemetry": lambda: (make_tracing(),),
}


async def cost_of_calls(observers: Iterable[Observer], calls: int) -> float:
    async with (
        open_session_factory(connector=Connector(1), observers=observers) as factory,
        factory.open_session([Backend(id="b0", url="http://b0.test/")]) as session,
    ):
        for _ in range(100):
            await session.call_tool("b0_t0")
        begun = time.thread_time()
        for _ in range(calls):
            await session.call_tool("b0_t0")
        return (time.thread_time() - begun) / calls


def cost_of_spans(calls: int) -> float:
    """What the SDK takes for the span of a call, whatever asks for it."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("benchmark")
    begun = time.thread_time()
    for _ in range(calls):
        tracer.start_span("tools/call b0_t0", None, SpanKind.CLIENT, dict(ATTRIBUTES)).end()
    return (time.thread_time() - begun) / calls


async def observed(urls: list[str], spare: str, terms: dict[str, Any], calls: int, turns: int) -> Measures:
    """Medians over the turns: s of CPU of a call without observers, and what each observer adds in the same turn."""
    found: dict[str, list[float]] = {name: [] for name in (*OBSERVERS, "sdk")}
    for _ in range(turns):
        bare = 0.0
        sdk = cost_of_spans(calls)
        for name, make in OBSERVERS.items():
            cost = await cost_of_calls(make(), calls)
            bare = cost if name == "none" else bare
            found[name].append(cost if name == "none" else cost - bare - (sdk if name == "opentelemetry" else 0.0))
        found["sdk"].append(sdk)
    return {name: statistics.median(costs) for name, costs in found.items()}
