"""Metrics of sessions for Prometheus, by `prometheus_client` (extra `prometheus`).

No label names a session: its counters go on after its end, and never fall. The labels are ids of backends, advertised
names of tools and prompts, states, MCP methods and types of errors. Backends may come and go, and list ever new names,
so there is a limit for each of the first two: what comes later is counted under `OTHER`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from trio_vmcp.observe import (
    BackendStateChanged,
    CallEnded,
    Event,
    ListChanged,
    OpeningFailed,
    Recovered,
    SessionClosed,
    SessionOpened,
    StorageFailed,
)

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ImportError as _error:
    if (_error.name or "").partition(".")[0] != "prometheus_client":
        raise
    text = "PrometheusObserver needs prometheus_client: pip install 'trio-vmcp[prometheus]'"
    raise ImportError(text, name="prometheus_client") from None

__all__ = ["MOST_BACKENDS", "MOST_NAMES", "OTHER", "PrometheusObserver"]

MOST_BACKENDS = 500  # ids that are labels
MOST_NAMES = 2000  # pairs of a backend and a name that are labels
OTHER = "(other)"  # no id and no name that fits model APIs may have parentheses

# s. A call within a data centre, and one that a person or a model is in.
_CALL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_OUTAGE_BUCKETS = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 43200.0)  # s


@attrs.define(eq=False)
class _Known:
    """The label values of one kind that were seen so far, up to a limit."""

    _most: int
    _values: set[Any] = attrs.field(factory=set, init=False)

    def admits(self, value: object) -> bool:
        if value in self._values:
            return True
        if len(self._values) >= self._most:
            return False
        self._values.add(value)
        return True


@attrs.define(eq=False)
class _Family:
    """The metrics of one name, by their label values: looking one up here costs less than `labels`."""

    _metric: Any
    _children: dict[tuple[str, ...], Any] = attrs.field(factory=dict, init=False)

    def of(self, *labels: str) -> Any:
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = self._metric.labels(*labels)
        return child


class PrometheusObserver:
    """An observer of one or more factories that counts in a registry: `open_session_factory(observers=[…])`.

    Metrics (a `backend` is its id):

    - `trio_vmcp_calls_total` (backend, method, name, outcome): calls that ended. `name`: of a tool or prompt, else "".
      `outcome`: as `CallEnded.outcome`. A call whose name no backend has: `backend` and `name` "".
    - `trio_vmcp_call_seconds` (backend, method): a histogram. `trio_vmcp_call_waiting_seconds_total` (backend): of
      these seconds, those of `CallEnded.waiting`.
    - `trio_vmcp_calls_retried_total` (backend): sent once more, since the backend had lost the session.
    - `trio_vmcp_backend_state_changes_total` (backend, old, new), `trio_vmcp_backend_outage_seconds` (backend):
      transitions; a histogram of outages that are over.
    - `trio_vmcp_list_changes_total` (backend, kind).
    - `trio_vmcp_sessions_opened_total`, `trio_vmcp_sessions_closed_total` (how), `trio_vmcp_sessions_failed_total`
      (outcome), `trio_vmcp_opening_seconds`: openings that succeeded, ended, failed; a histogram of the first.
    - `trio_vmcp_sessions`: a gauge of those that are open.
    - `trio_vmcp_storage_failures_total` (operation).

    Attributes:
        registry: Where they are.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """
        Raises:
            ValueError: The registry has these metrics already: one observer of it serves any number of factories.
        """

        def counter(name: str, help: str, *labels: str) -> _Family:
            return _Family(Counter(f"trio_vmcp_{name}", help, labels, registry=registry))

        def histogram(name: str, help: str, *labels: str, buckets: Sequence[float] = _CALL_BUCKETS) -> _Family:
            return _Family(Histogram(f"trio_vmcp_{name}", help, labels, registry=registry, buckets=buckets))

        self.registry = registry
        self._backends = _Known(MOST_BACKENDS)
        self._names = _Known(MOST_NAMES)
        self._calls = counter("calls", "Calls that ended.", "backend", "method", "name", "outcome")
        self._seconds = histogram("call_seconds", "From admission to the end of a call.", "backend", "method")
        self._waiting = counter("call_waiting_seconds", "For a place or a new connection.", "backend")
        self._retried = counter("calls_retried", "Calls that were sent once more.", "backend")
        self._changes = counter("backend_state_changes", "Transitions of backends.", "backend", "old", "new")
        self._outages = histogram("backend_outage_seconds", "Outages.", "backend", buckets=_OUTAGE_BUCKETS)
        self._lists = counter("list_changes", "Lists of backends that have changed.", "backend", "kind")
        self._opened = Counter("trio_vmcp_sessions_opened", "Sessions that were opened.", registry=registry)
        self._closed = counter("sessions_closed", "Sessions that were open and have closed.", "how")
        self._failed = counter("sessions_failed", "Sessions that could not be opened.", "outcome")
        self._opening = Histogram(
            "trio_vmcp_opening_seconds", "Openings of sessions.", registry=registry, buckets=_CALL_BUCKETS
        )
        self._open = Gauge("trio_vmcp_sessions", "Sessions that are open.", registry=registry)
        self._storage = counter("storage_failures", "Operations of the storage that failed.", "operation")

    def on_event(self, event: Event) -> None:
        match event:
            case CallEnded():
                self._count_call(event)
            case BackendStateChanged():
                self._changes.of(self._label(event.backend_id), event.old.value, event.new.value).inc()
            case Recovered():
                self._outages.of(self._label(event.backend_id)).observe(event.seconds)
            case ListChanged():
                self._lists.of(self._label(event.backend_id), event.kind).inc()
            case SessionOpened():
                self._opened.inc()
                self._open.inc()
                self._opening.observe(event.seconds)
            case SessionClosed():
                self._closed.of(event.how).inc()
                self._open.dec()
            case OpeningFailed():
                self._failed.of(event.outcome).inc()
            case StorageFailed():
                self._storage.of(event.operation).inc()
            case _:
                pass

    def _count_call(self, ended: CallEnded) -> None:
        backend = self._label(ended.backend_id)
        self._calls.of(backend, ended.method, self._name(ended, backend), ended.outcome).inc()
        self._seconds.of(backend, ended.method).observe(ended.seconds)
        if ended.waiting:
            self._waiting.of(backend).inc(ended.waiting)
        if ended.retried:
            self._retried.of(backend).inc()

    def _label(self, backend_id: str | None) -> str:
        if backend_id is None:
            return ""
        return backend_id if self._backends.admits(backend_id) else OTHER

    def _name(self, ended: CallEnded, backend: str) -> str:
        """A name that a backend has: any other is whatever the caller has made up."""
        if ended.backend_id is None or ended.method not in ("tools/call", "prompts/get"):
            return ""
        return ended.name if backend != OTHER and self._names.admits((backend, ended.name)) else OTHER
