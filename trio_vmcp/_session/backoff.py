"""How long to leave alone what failed time after time. Pure: chance is passed in."""

from __future__ import annotations

import attrs

__all__ = ["Backoff"]

JITTER = 0.2  # of a delay, either way: who failed together must not come back together
LEAST_DELAY = 0.05  # s, whatever is configured: a delay of 0 would ask as fast as the machine can


@attrs.define(eq=False)
class Backoff:
    """Delays that double.

    Attributes:
        min_delay: s, the first; `math.inf`: for ever.
        max_delay: s, the longest, unless the first is longer.
    """

    min_delay: float
    max_delay: float
    _delay: float = attrs.field(default=0.0, init=False)

    def next(self, chance: float) -> float:
        """s to wait after one more failure in a row, ±20 % by a `chance` of 0 to 1."""
        self._delay = max(min(self._delay * 2, self.max_delay), self.min_delay, LEAST_DELAY)
        return self._delay * (1 - JITTER + 2 * JITTER * chance)

    def reset(self) -> None:
        """What comes next is the first failure again."""
        self._delay = 0.0
