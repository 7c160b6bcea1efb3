"""Turns at connecting anew: one attempt at a time for each endpoint, over all sessions of a factory.

A thousand sessions that lost the same backend must not fall upon it together: they queue, whoever fails makes all of
them wait, and who succeeds lets the next one try at once.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from trio_vmcp._breaker import jittered

__all__ = ["Reconnects", "Turn"]

MOST_REMEMBERED = 4096  # endpoints that nobody waits for at the moment


@attrs.define(eq=False)
class Turn:
    """One endpoint's queue, and its patience."""

    min_delay: float
    max_delay: float
    line: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    interested: int = attrs.field(default=0, init=False)
    _delay: float = attrs.field(default=0.0, init=False)  # s after the latest failure
    _not_before: float = attrs.field(default=0.0, init=False)
    _succeeded_at: float | None = attrs.field(default=None, init=False)

    @property
    def wait(self) -> float:
        """s until the next attempt may begin."""
        return max(self._not_before - trio.current_time(), 0.0)

    def succeeded(self) -> None:
        """The others may try at once. How long a failure makes them wait is forgotten only once this has lasted: who
        is there for a moment at a time must not be asked ever faster.
        """
        self._not_before, self._succeeded_at = 0.0, trio.current_time()

    def failed(self) -> None:
        """An attempt failed, or a connection was lost. What others found out in the same moment counts once."""
        now = trio.current_time()
        if now < self._not_before:
            return
        if self._succeeded_at is not None and now - self._succeeded_at > self.max_delay:
            self._delay = 0.0
        self._succeeded_at = None
        self._delay = min(max(self._delay * 2, self.min_delay), self.max_delay)
        self._not_before = now + jittered(self._delay, random.random())


@attrs.define(eq=False)
class Reconnects:
    """The queues of one factory.

    Attributes:
        min_delay, max_delay: s between attempts, doubled from one to the other, ±20 %.
    """

    min_delay: float
    max_delay: float
    _turns: dict[str, Turn] = attrs.field(factory=dict, init=False, repr=False)

    def note_failure(self, endpoint: str) -> None:
        """Outside of the queue: a first attempt failed, or a connection was lost."""
        self._turn(endpoint).failed()

    @asynccontextmanager
    async def queue(self, endpoint: str) -> AsyncIterator[Turn]:
        """Stand in line. Inside: let `turn.wait` s pass, attempt, and say how it ended."""
        turn = self._turn(endpoint)
        turn.interested += 1
        try:
            async with turn.line:
                yield turn
        finally:
            turn.interested -= 1

    def _turn(self, endpoint: str) -> Turn:
        if endpoint not in self._turns and len(self._turns) >= MOST_REMEMBERED:
            self._turns = {known: turn for known, turn in self._turns.items() if turn.interested}
        return self._turns.setdefault(endpoint, Turn(self.min_delay, self.max_delay))
