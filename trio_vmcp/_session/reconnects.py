"""Turns at connecting anew: one attempt at a time for each endpoint, over all sessions of a factory.

A thousand sessions that lost the same backend must not fall upon it together: they stand in line, whoever fails makes
all of them wait, and who succeeds lets the next one try at once.
"""

from __future__ import annotations

import random
from weakref import WeakValueDictionary

import attrs
import trio

from trio_vmcp._session.backoff import Backoff

__all__ = ["Reconnects", "Turns"]


@attrs.define(eq=False)
class Turns:
    """One endpoint's line, and its patience.

    Attributes:
        line: Held by whoever is at connecting; first come, first served. Nobody holds it while waiting for `wait`.
    """

    _backoff: Backoff
    line: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _not_before: float = attrs.field(default=0.0, init=False)
    _reached: trio.Event = attrs.field(factory=trio.Event, init=False)  # set when it was, and replaced
    _succeeded_at: float | None = attrs.field(default=None, init=False)

    @property
    def wait(self) -> float:
        """s until the next attempt may begin."""
        return max(self._not_before - trio.current_time(), 0.0)

    async def pause(self) -> None:
        """Until then, or until somebody reached the endpoint."""
        with trio.move_on_at(self._not_before):
            await self._reached.wait()

    def succeeded(self) -> None:
        """The others may try at once. How long a failure makes them wait is forgotten only once this has lasted: who
        is there for a moment at a time must not be asked ever faster.
        """
        self._not_before, self._succeeded_at = 0.0, trio.current_time()
        self._reached.set()
        self._reached = trio.Event()

    def failed(self) -> None:
        """An attempt failed, or a connection was lost. What others found out in the same moment counts once."""
        now = trio.current_time()
        if now < self._not_before:
            return
        if self._succeeded_at is not None and now - self._succeeded_at > self._backoff.max_delay:
            self._backoff.reset()
        self._succeeded_at = None
        self._not_before = now + self._backoff.next(random.random())


@attrs.define(eq=False)
class Reconnects:
    """The endpoints of one factory, each for as long as somebody has its turns.

    Attributes:
        min_delay, max_delay: s between attempts, doubled from one to the other, ±20 %.
    """

    min_delay: float
    max_delay: float
    _turns: WeakValueDictionary[str, Turns] = attrs.field(factory=WeakValueDictionary, init=False, repr=False)

    def turns(self, endpoint: str) -> Turns:
        """Those of one endpoint. Keep them: they are forgotten with whoever was the last to."""
        turns = self._turns.get(endpoint)
        if turns is None:
            turns = self._turns[endpoint] = Turns(Backoff(self.min_delay, self.max_delay))
        return turns
