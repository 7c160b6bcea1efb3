"""Tell subscribers what changed: coalescing, bounded, and never waiting for a slow one."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import attrs
import trio

from trio_vmcp._interrupts import protected_manager
from trio_vmcp._nursery import start_clean
from trio_vmcp.models import SessionChange

__all__ = ["ChangeFeed"]

# Distinct changes that one subscriber may be behind before updates of single resources are told as "the resources of
# this backend". A backend chooses the URIs and could send ever new ones; of the other kinds it has one change each.
MOST_PENDING = 1024


@attrs.define(eq=False)
class _Subscriber:
    pending: dict[SessionChange, None] = attrs.field(factory=dict)  # an ordered set
    news: trio.Event = attrs.field(factory=trio.Event)
    subscribed: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def add(self, change: SessionChange) -> None:
        if change.kind == "resource_updated" and len(self.pending) >= MOST_PENDING:
            change = SessionChange("resources", change.backend_id)
        self.pending[change] = None
        self.news.set()

    async def feed(self, channel: trio.MemorySendChannel[SessionChange]) -> None:
        # BrokenResourceError: the subscriber has closed its channel, and hears no more.
        with self.subscribed, channel, suppress(trio.BrokenResourceError):
            while True:
                await self.news.wait()
                self.news = trio.Event()
                while self.pending:
                    change = next(iter(self.pending))
                    del self.pending[change]  # from now on the same change is a new one
                    await channel.send(change)


@attrs.define(eq=False)
class ChangeFeed:
    """Every subscriber of one session. Their feeders run in the session's nursery and end with it."""

    _subscribers: set[_Subscriber] = attrs.field(factory=set, init=False)
    _left_at: float = attrs.field(default=-math.inf, init=False)  # by a subscriber, the latest

    @property
    def read_at(self) -> float:
        """`trio.current_time()` when the latest subscriber left; now, while there is one; -inf: there was none."""
        return trio.current_time() if self._subscribers else self._left_at

    def publish(self, change: SessionChange) -> None:
        for subscriber in self._subscribers:
            subscriber.add(change)

    @protected_manager
    @asynccontextmanager
    async def subscribe(self, nursery: trio.Nursery | None) -> AsyncIterator[trio.MemoryReceiveChannel[SessionChange]]:
        """Changes from now on; `nursery` None: the session has closed, and so the channel has ended."""
        send, receive = trio.open_memory_channel[SessionChange](0)
        subscriber = _Subscriber()
        with receive:
            if nursery is None:
                send.close()
                yield receive
                return
            self._subscribers.add(subscriber)
            start_clean(nursery, subscriber.feed, send)
            try:
                yield receive
            finally:
                self._subscribers.discard(subscriber)
                self._left_at = trio.current_time()
                subscriber.subscribed.cancel()  # before the channel closes under a feeder that is sending
