"""How many connections one backend may have: `FactorySettings.max_connections_per_backend`, and the slots below it."""

from __future__ import annotations

from contextvars import ContextVar

import attrs
import trio

from trio_vmcp._request_note import current_note

__all__ = ["MOST_ASIDE", "ConnectionLimit", "ConnectionSlot", "Slots", "calls_within", "current_slot"]

MOST_ASIDE = 4  # connections for requests that are no calls: notifications, answers, the DELETE of a session
LEAST_SHARED = 16  # the smallest connection limit that includes MOST_ASIDE


def calls_within(limit: float) -> float:
    """The part of a backend's connection limit that is for calls; `MOST_ASIDE` connections are for other requests.

    A limit under `LEAST_SHARED` is for calls alone, and the other requests come on top.
    """
    return limit - MOST_ASIDE if limit >= LEAST_SHARED else limit


@attrs.define(eq=False)
class ConnectionSlot:
    """A place under the connection limit of one backend.

    Requests from a progress callback share the slot of the call that they interrupt, and requests from a handler need
    none while the handler runs: a call waits for both, so with a limit of 1 they would wait for the call.

    Attributes:
        is_held: Requests that are made in this context need no slot of their own, of whatever backend.
    """

    is_held: bool = True


current_slot: ContextVar[ConnectionSlot | None] = ContextVar("trio_vmcp_slot", default=None)


@attrs.define(eq=False)
class Slots:
    """A `trio.CapacityLimiter` for links, which are many, and on few of which a request ever waits: it does not keep
    which request has a slot, and makes the line to wait in when it is needed. First come, first served.

    Attributes:
        most: The number of slots.
        borrowed_tokens: How many are taken.
    """

    most: float
    borrowed_tokens: int = attrs.field(default=0, init=False)
    _line: trio.lowlevel.ParkingLot | None = attrs.field(default=None, init=False, repr=False)

    def take_nowait(self) -> bool:
        """Take a slot. Returns whether there was one."""
        if self.borrowed_tokens >= self.most:
            return False
        self.borrowed_tokens += 1
        return True

    async def take(self) -> None:
        """Take the next slot that is given back. There must be none now."""
        if self._line is None:
            self._line = trio.lowlevel.ParkingLot()
        # `give_back` hands its slot over: a cancel comes before that, or at the task's next checkpoint.
        await self._line.park()

    def give_back(self) -> None:
        if self._line:  # a request waits
            self._line.unpark()
        else:
            self.borrowed_tokens -= 1


@attrs.define(eq=False)
class ConnectionLimit:
    """The slots of one backend of a session.

    Attributes:
        calls: The connections that calls may have at a time.
        aside: The connections that other requests may have at a time.
    """

    calls: Slots = attrs.field(converter=Slots)
    aside: Slots = attrs.field(factory=lambda: Slots(MOST_ASIDE), init=False, repr=False)

    async def acquire_slot(self, *, limited: bool) -> None:
        """Wait for a place under the connection limit, or among the connections beside it."""
        slots = self.calls if limited else self.aside
        if slots.take_nowait():
            return
        begun_at, note = trio.current_time(), current_note.get()
        try:
            await slots.take()
        finally:
            if note is not None:
                note.waited += trio.current_time() - begun_at

    def release_slot(self, slot: ConnectionSlot, *, limited: bool) -> None:
        slot.is_held = False  # a task that was started in this context must wait for a slot of its own
        (self.calls if limited else self.aside).give_back()
