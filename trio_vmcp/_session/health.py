"""What a session knows of a backend from its calls: counted for each call, summed up when they are read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import attrs

from trio_vmcp.models import Latency

__all__ = ["Health", "percentiles"]

LATENCIES_KEPT = 128  # of the latest calls, a float each


@attrs.define(eq=False)
class Health:
    """Counters of one backend."""

    calls: int = attrs.field(default=0, init=False)
    errors: int = attrs.field(default=0, init=False)
    _latencies: deque[float] | None = attrs.field(default=None, init=False, repr=False)  # None: no call was answered

    @property
    def latency(self) -> Latency | None:
        return percentiles(self._latencies or ())

    def answered(self, seconds: float) -> None:
        self.calls += 1
        if self._latencies is None:  # many backends are never called
            self._latencies = deque(maxlen=LATENCIES_KEPT)
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
