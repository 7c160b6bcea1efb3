"""The workload of `bench_observers.py`: what an observer adds to a call.

At the connector seam, as in `changing.py`: the figures are CPU seconds of the session and its observer alone. Sessions
with and without an observer take turns, since other load of the machine slows both within a turn.
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from changing import Connector
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind
from prometheus_client import CollectorRegistry
from worker import Measures

from trio_vmcp import Backend, open_session_factory
from trio_vmcp._session import owner
from trio_vmcp._session.calls import Calls
from trio_vmcp._session.observing import Observers, SessionReporter
from trio_vmcp.observe import CallEnded, CallStarted, Event, Observer
from trio_vmcp.observers.opentelemetry import OpenTelemetryObserver
from trio_vmcp.observers.prometheus import PrometheusObserver

ATTRIBUTES = {"mcp.method.name": "tools/call", "gen_ai.tool.name": "b0_t0", "backend": "b0", "session": "session #0"}


class Idle:
    def on_event(self, event: Event) -> None: ...


class Spans:
    """What the SDK takes for the span of a call, where an observer asks for it: the first span after other code has run
    takes twice the time of one in a loop of spans.
    """

    def __init__(self) -> None:
        self._tracer = TracerProvider(shutdown_on_exit=False).get_tracer("benchmark")
        self._spans: list[Span] = []

    def on_event(self, event: Event) -> None:
        match event:
            case CallStarted():
                self._spans.append(self._tracer.start_span("tools/call b0_t0", None, SpanKind.CLIENT, dict(ATTRIBUTES)))
            case CallEnded():
                self._spans.pop().end()
            case _:
                pass


def make_tracing() -> OpenTelemetryObserver:
    return OpenTelemetryObserver(TracerProvider(shutdown_on_exit=False))


OBSERVERS: dict[str, Callable[[], Iterable[Observer]]] = {
    "none": lambda: (),
    "idle": lambda: (Idle(),),
    "prometheus": lambda: (PrometheusObserver(CollectorRegistry()),),
    "spans": lambda: (Spans(),),
    "opentelemetry": lambda: (make_tracing(),),
}


@contextmanager
def nothing_for_observers() -> Iterator[None]:
    """All that tells observers is replaced by nothing: the session that would be, had nothing been built for them."""
    kinds = (SessionReporter, Observers)
    methods = [(kind, name) for kind in kinds for name, _ in inspect.getmembers(kind, inspect.isfunction)]
    patches = [patch.object(kind, name, lambda *_, **__: None) for kind, name in methods if not name.startswith("__")]
    patches.append(patch.object(owner, "ObservedCalls", lambda *parts, reporter: Calls(*parts)))
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


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


async def observed(urls: list[str], spare: str, terms: dict[str, Any], calls: int, turns: int) -> Measures:
    """Medians over the turns: s of CPU of a call without observers, what each observer adds in the same turn, and the
    part of a call that it takes to have none.
    """
    measures = ("none", "least", "idle", "prometheus", "opentelemetry", "sdk")
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(turns):
        with nothing_for_observers():
            found["least"].append(await cost_of_calls((), calls))
        cost = {name: await cost_of_calls(make(), calls) for name, make in OBSERVERS.items()}
        sdk = cost["spans"] - cost["idle"]
        found["none"].append(cost["none"])
        found["idle"].append(cost["idle"] - cost["none"])
        found["prometheus"].append(cost["prometheus"] - cost["none"])
        found["opentelemetry"].append(cost["opentelemetry"] - cost["none"] - sdk)
        found["sdk"].append(sdk)
    # The least of each: what other load adds within a turn is more than the few per cent that this is about.
    absent = min(found["none"]) / min(found.pop("least")) - 1
    return {name: statistics.median(costs) for name, costs in found.items()} | {"absent": absent}
