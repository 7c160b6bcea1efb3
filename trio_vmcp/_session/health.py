"""What a session knows of a backend from its calls: counted for each call, summed up when they are read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from functools import partial

import attrs

from trio_vmcp.models import Latency

__all__ = ["Health", "percentiles"]

LATENCIES_KEPT = 128  # of the latest calls, a float each


@attrs.define(eq=False)
class Health:
    """Counters of one backend."""

    calls: int = attrs.field(default=0, init=False)
    errors: int = attrs.field(default=0, init=False)
    _latencies: deque[float] = attrs.field(factory=partial(deque, maxlen=LATENCIES_KEPT), init=False, repr=False)

    @property
    def latency(self) -> Latency | None:
        return percentiles(self._latencies)

    def answered(self, seconds: float) -> None:
        self.calls += 1
        self._latencies.append(seconds)

    def failed(self) -> None:
        self.calls += 1
        self.errors += 1


def percentiles(latencies: Iterable[float]) -> Latency | None:
    """By nearest rank; None: no calls yet."""
    ranked = sorted(latencies)
    if not ranked:
        return None

    def rank(percent: int) -> float:
        return ranked[-(-len(ranked) * percent // 100) - 1]

    return Latency(rank(50), rank(90), rank(99))
