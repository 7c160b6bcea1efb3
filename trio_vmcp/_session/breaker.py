"""A circuit breaker: a backend that was not reached several times in a row gets no calls for a while.

Pure: the time is passed in.
"""

from __future__ import annotations

import math

import attrs

from trio_vmcp._session.reconnects import Backoff

__all__ = ["FAILURES_TO_OPEN", "Breaker"]

FAILURES_TO_OPEN = 5  # connection failures in a row


@attrs.define(eq=False)
class Breaker:
    """Closed, it lets every call through. It opens after five connection failures in a row; once its delay is over, one
    call at a time is a trial: a success closes it, a failure doubles the delay. With a first delay of `math.inf` it
    never opens, for nothing would ever close it.

    Attributes:
        is_failing: The latest call that told anything had no connection, or a stream has failed since.
    """

    _backoff: Backoff
    is_failing: bool = attrs.field(default=False, init=False)
    _failures: int = attrs.field(default=0, init=False)  # in a row
    # An answer has come while the stream for changes failed: that may be about the stream alone.
    _is_stream_outweighed: bool = attrs.field(default=False, init=False)
    _trial_at: float | None = attrs.field(default=None, init=False)  # None: calls flow
    _on_trial: bool = attrs.field(default=False, init=False)

    @property
    def is_open(self) -> bool:
        return self._trial_at is not None

    def admit(self, now: float) -> float | None:
        """Whether a call may go ahead (None), or the s until the next trial, which may be under way.

        A call that goes ahead is reported with `succeed`, `fail` or `cancel_trial`; while `is_open` it is the trial.
        """
        if self._trial_at is None:
            return None
        if self._on_trial or now < self._trial_at:
            return max(self._trial_at - now, 0.0)
        self._on_trial = True
        return None

    def succeed(self) -> bool:
        """An answer came, a result or an error. Returns whether that closed the circuit."""
        if not self.is_failing:
            return False  # nearly every call comes here
        was_open = self.is_open
        self._is_stream_outweighed = self._is_stream_outweighed or not self._failures
        self.is_failing, self._failures, self._trial_at = False, 0, None
        self._backoff.reset()
        return was_open

    def fail(self, now: float, chance: float, *, was_trial: bool, at_least: float = 0.0) -> bool:
        """There was no connection. Returns whether that opened the circuit. A call that was let through before the
        circuit opened reports the same outage: its failure is not counted.
        """
        if self.is_open and not was_trial:
            return False
        self.is_failing = True
        self._failures += 1
        if self._failures < FAILURES_TO_OPEN or math.isinf(self._backoff.min_delay):
            return False
        was_open = self.is_open
        self._trial_at, self._on_trial = now + max(self._backoff.next(chance), at_least), False
        return not was_open

    def fail_stream(self, *, was_sent: bool) -> bool:
        """The stream for changes was not opened again. Returns whether that tells of the backend. It opens no circuit:
        calls may go another way than the stream.

        Args:
            was_sent: There was a connection, on which the request for the stream got no answer, or one of a gateway.
        """
        if self.is_open or (was_sent and self._is_stream_outweighed):
            return False
        self.is_failing = True
        return True

    def succeed_stream(self) -> None:
        """An attempt to open the stream for changes has been answered. It takes back what the stream said before; of
        calls it proves nothing.
        """
        self._is_stream_outweighed = False
        self.is_failing = self._failures > 0

    def cancel_trial(self) -> None:
        """The trial proved nothing, since its caller was cancelled, say: the next call is a trial."""
        self._on_trial = False
