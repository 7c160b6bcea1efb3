"""Metrics for Prometheus (extra `prometheus`): those that the observers of the sessions count, and the counts of the
manager and of the front.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import trio

from trio_vmcp.manager import SessionManager

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["metrics_text"]

# Name, whether it only grows, help.
_OF_MANAGER = (
    ("live", False, "Sessions that are open here."),
    ("hibernated", False, "Sessions of which only the row is left, and which the next request wakes."),
    ("opening", False, "Sessions that are being made, restored or woken."),
    ("in_flight", False, "Calls that run, in all sessions here."),
    ("created", True, "Sessions that were made here."),
    ("restored", True, "Sessions that were restored from the storage, or woken."),
    ("terminated", True, "Sessions that were ended on request."),
    ("expired", True, "Sessions that ended since they were not used, or too old."),
    ("refused", True, "Sessions that a cap refused to open, restore or wake."),
)
_OF_FRONT = (
    ("in_flight", False, "MCP requests of clients that are under way."),
    ("refused", True, "HTTP requests that were refused before a session saw them."),
)


async def metrics_text(manager: SessionManager, front: Mapping[str, float]) -> tuple[bytes, str]:
    """All metrics in the text format of Prometheus, and its media type.

    The registries are those of the `PrometheusObserver`s that the sessions have; without one, the registry that such an
    observer has by default.

    Raises:
        ImportError: prometheus_client is not installed; the text names the extra.
    """
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    pieces = []
    for metric in _all_metrics(manager, front):
        only: Any = _Only(metric)  # as a registry: nothing but `collect` is called
        pieces.append(generate_latest(only))
        await trio.lowlevel.checkpoint()  # a histogram of many backends takes some ms
    return b"".join(pieces), CONTENT_TYPE_LATEST


@attrs.frozen
class _Only:
    """A registry of one metric."""

    _metric: Metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


def _all_metrics(manager: SessionManager, front: Mapping[str, float]) -> Iterator[Metric]:
    for registry in _registries(manager):
        yield from registry.collect()
    statistics = attrs.asdict(manager.statistics)
    yield from (_metric("manager", *kind, statistics[kind[0]]) for kind in _OF_MANAGER)
    yield from (_metric("front", *kind, front[kind[0]]) for kind in _OF_FRONT)


def _registries(manager: SessionManager) -> list[Any]:
    from prometheus_client import REGISTRY

    from trio_vmcp.observers.prometheus import PrometheusObserver

    found = (each.registry for each in manager.observers if isinstance(each, PrometheusObserver))
    return list(dict.fromkeys(found)) or [REGISTRY]


def _metric(part: str, name: str, grows: bool, help: str, value: float) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kind = CounterMetricFamily if grows else GaugeMetricFamily
    return kind(f"trio_vmcp_{part}_{name}", help, value=value)
