"""Marks of use: `used_at` in a session's row tells its instances on which of them the session was used last.

Several instances may have a copy of one session. A copy that is idle must not end a session that is in use elsewhere,
so each instance that the session is used on sets `used_at` again and again. An instance knows its own marks, and
compares them with the row's for equality. Clocks are never compared: those of two machines differ.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import attrs

__all__ = ["UseMarks"]

MARKS_PER_LIFE = 4  # "at least every quarter of min(idle_timeout, ttl)"
SHORTEST = 0.01  # s between two marks, however short the timeouts are
_LATEST = datetime.max.replace(tzinfo=UTC)
_TICK = timedelta(microseconds=1)


@attrs.define(eq=False)
class UseMarks:
    """This instance's marks in the row of one session, and when the next one is due. Times are `trio.current_time()`.

    Attributes:
        every: s from one mark to the next while there is use; `math.inf`: no mark but the first.
        tried_at: The latest mark was sent at this time.
        marked_at: The latest mark that is known to have arrived was sent at this time: earlier use needs no other.
        overruled_at: The latest mark that takes the place of another instance's was sent at this time. Which of them
            was used later is not known: for the idle timeout the session counts as used here at this time, and if it
            was not used here since, only the idle timeout ends it. The mark of a restore is not meant.
    """

    every: float = math.inf
    tried_at: float = -math.inf
    marked_at: float = -math.inf
    overruled_at: float = -math.inf
    # When each was sent: the one that has arrived, and those sent since whose outcome is unknown: any may be the row's.
    _own: dict[datetime, float] = attrs.field(factory=dict, init=False)

    @property
    def due_at(self) -> float:
        """The session is marked at this time if it was used since the latest mark; later, at once when it is used."""
        return self.tried_at + self.every

    def mark_each(self, idle_timeout: float, ttl: float) -> None:
        self.every = max(SHORTEST, min(idle_timeout, ttl) / MARKS_PER_LIFE)

    def add_first(self, mark: datetime) -> None:
        """The mark of a row that was not sent yet."""
        self._own[mark] = -math.inf

    def is_due(self, used_at: float, now: float) -> bool:
        """Whether use at `used_at`, the latest, is to be marked now."""
        return now >= self.due_at and used_at > self.marked_at

    def is_own(self, mark: datetime) -> bool:
        return mark in self._own

    def draw(self, stored: datetime, now: float) -> datetime:
        """A mark to send now. It differs from the row's present one, and `used_at` never goes back, whatever this
        clock says.
        """
        if self._own and not self.is_own(stored):
            self.overruled_at = now
        mark = datetime.now(UTC)
        if mark <= stored < _LATEST:
            mark = stored + _TICK
        self._own[mark] = now
        return mark

    def note_stored(self, mark: datetime) -> None:
        """The row has this mark."""
        self.marked_at = max(self.marked_at, self._own.get(mark, self.marked_at))

    def note_written(self, mark: datetime) -> None:
        """The row has this mark of ours, and all that were sent before are refused by now."""
        self._own = {mark: self._own[mark]}
        self.note_stored(mark)
