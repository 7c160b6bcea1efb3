"""A circuit breaker: who fails to connect time after time is not asked for a while. Pure: the time is passed in."""

from __future__ import annotations

import attrs

__all__ = ["FAILURES_TO_OPEN", "Breaker", "jittered"]

FAILURES_TO_OPEN = 5  # connection failures in a row
JITTER = 0.2  # of a delay, either way: who failed together must not come back together


def jittered(delay: float, chance: float) -> float:
    """`delay` ±20 %, by a `chance` of 0 to 1."""
    return delay * (1 - JITTER + 2 * JITTER * chance)


@attrs.define(eq=False)
class Breaker:
    """Closed, it lets every call through. It opens after five connection failures in a row; once its delay is over, one
    call at a time is a trial: a success closes it, a failure doubles the delay.

    Attributes:
        min_delay, max_delay: s that it stays open: at first, and at most.
    """

    min_delay: float
    max_delay: float
    _failures: int = attrs.field(default=0, init=False)  # in a row
    _delay: float = attrs.field(default=0.0, init=False)
    _trial_at: float | None = attrs.field(default=None, init=False)  # None: calls flow
    _on_trial: bool = attrs.field(default=False, init=False)

    @property
    def is_open(self) -> bool:
        return self._trial_at is not None

    def admit(self, now: float) -> float | None:
        """None: go ahead, and report what became of it. Else the s until the next trial."""
        if self._trial_at is None:
            return None
        if self._on_trial or now < self._trial_at:
            return max(self._trial_at - now, 0.0)
        self._on_trial = True
        return None

    def succeed(self) -> bool:
        """An answer came, whatever it says. Returns whether that closed the circuit."""
        was_open = self.is_open
        self._failures, self._delay, self._trial_at, self._on_trial = 0, 0.0, None, False
        return was_open

    def fail(self, now: float, chance: float) -> bool:
        """There was no connection. Returns whether that opened the circuit."""
        self._failures += 1
        if self._failures < FAILURES_TO_OPEN or (self.is_open and not self._on_trial):
            return False
        was_open = self.is_open
        self._on_trial = False
        self._delay = min(max(self._delay * 2, self.min_delay), self.max_delay)
        self._trial_at = now + jittered(self._delay, chance)
        return not was_open

    def give_up(self) -> None:
        """The call ended without telling anything: its caller left."""
        self._on_trial = False
