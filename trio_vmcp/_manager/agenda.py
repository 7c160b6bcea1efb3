"""What is due, and when: one heap, so that one task waits for all sessions and no session needs a timer."""

from __future__ import annotations

import heapq
import math
from itertools import count
from typing import Generic, Protocol, TypeVar

import attrs
import trio

__all__ = ["Agenda", "Dated"]

FEWEST_STALE = 64  # entries that are worth a new heap


class Dated(Protocol):
    """An item of an agenda.

    Attributes:
        due_at: By `trio.current_time()`; `math.inf`: not in the agenda. Written by the agenda alone.
    """

    due_at: float


T = TypeVar("T", bound=Dated)


@attrs.define(eq=False)
class Agenda(Generic[T]):
    """Items by the time at which they are due. Each is in it once."""

    _heap: list[tuple[float, int, T]] = attrs.field(factory=list, init=False, repr=False)
    _numbers: count[int] = attrs.field(factory=count, init=False, repr=False)  # items themselves have no order
    _stale: int = attrs.field(default=0, init=False)  # entries of the heap whose item is due at another time
    _sooner: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)

    def __len__(self) -> int:
        return len(self._heap) - self._stale

    def put(self, item: T, due_at: float) -> None:
        """Have the item due at this time, instead of any other."""
        if due_at == item.due_at:
            return
        self.discard(item)
        if due_at == math.inf:
            return
        item.due_at = due_at
        heapq.heappush(self._heap, (due_at, next(self._numbers), item))
        if self._heap[0][2] is item:
            self._sooner.set()

    def discard(self, item: T) -> None:
        """The item is due no more."""
        if item.due_at == math.inf:
            return
        item.due_at = math.inf
        self._stale += 1
        if self._stale >= FEWEST_STALE and self._stale > len(self._heap) / 2:
            self._heap = [entry for entry in self._heap if entry[0] == entry[2].due_at]
            heapq.heapify(self._heap)
            self._stale = 0

    async def next(self) -> T:
        """Wait for the first item to be due, and take it out."""
        while True:
            while self._heap and self._heap[0][0] != self._heap[0][2].due_at:
                heapq.heappop(self._heap)
                self._stale -= 1
            due_at = self._heap[0][0] if self._heap else math.inf
            if due_at <= trio.current_time():
                item = heapq.heappop(self._heap)[2]
                item.due_at = math.inf
                await trio.lowlevel.checkpoint()
                return item
            self._sooner = trio.Event()
            with trio.move_on_at(due_at):
                await self._sooner.wait()
