"""How many connections one backend may have: `FactorySettings.max_connections_per_backend`, and the slots below it."""

from __future__ import annotations

from contextvars import ContextVar

import attrs
import trio

from trio_vmcp._request_note import current_note

__all__ = ["MOST_ASIDE", "ConnectionLimit", "ConnectionSlot", "calls_within", "current_slot"]

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
class ConnectionLimit:
    """The slots of one backend of a session.

    Attributes:
        calls: The connections that calls may have at a time.
    """

    calls: trio.CapacityLimiter
    _aside: trio.CapacityLimiter | None = attrs.field(default=None, init=False, repr=False)

    @property
    def aside(self) -> trio.CapacityLimiter:
        """The connections that other requests may have at a time; kept only while there are such requests."""
        if self._aside is None:
            self._aside = trio.CapacityLimiter(MOST_ASIDE)
        return self._aside

    async def acquire_slot(self, slot: ConnectionSlot, *, limited: bool) -> None:
        """Wait for a place under the connection limit, or among the connections beside it."""
        limiter = self.calls if limited else self.aside
        try:
            limiter.acquire_on_behalf_of_nowait(slot)
        except trio.WouldBlock:
            begun_at, note = trio.current_time(), current_note.get()
            try:
                await limiter.acquire_on_behalf_of(slot)
            finally:
                if note is not None:
                    note.waited += trio.current_time() - begun_at

    def release_slot(self, slot: ConnectionSlot, *, limited: bool) -> None:
        slot.is_held = False  # a task that was started in this context must wait for a slot of its own
        if limited:
            self.calls.release_on_behalf_of(slot)
            return
        self.aside.release_on_behalf_of(slot)
        if not self.aside.borrowed_tokens:  # nor does a request wait: it would have got the slot
            self._aside = None
