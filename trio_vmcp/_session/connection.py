"""One connection to a backend, from its making to the end of the last call on it."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
import trio

from trio_vmcp._session.admission import Call
from trio_vmcp.connector import BackendClient
from trio_vmcp.errors import BackendError

__all__ = ["Incarnation"]


@attrs.define(eq=False)
class Incarnation:
    """A backend has one at a time that takes calls; those before it may still have some to end.

    Attributes:
        attempt: Cancelled to give the connecting up.
        client: The connection, once it has joined.
        is_listed: What it offers was seen through this very connection when it joined.
        settled: It has joined, or failed.
        over: It takes no more calls, and is let go of once those on it have ended.
        terminate: Nobody will take its backend session up again.
        parted: Set once it was closed; None while nobody is at it.
    """

    _on_settled: Callable[[], None] = lambda: None
    attempt: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    client: BackendClient | None = attrs.field(default=None, init=False)
    is_listed: bool = attrs.field(default=False, init=False)
    settled: trio.Event = attrs.field(factory=trio.Event, init=False)
    over: trio.Event = attrs.field(factory=trio.Event, init=False)
    terminate: bool = attrs.field(default=False, init=False)
    parted: trio.Event | None = attrs.field(default=None, init=False)
    _calls: set[Call] = attrs.field(factory=set, init=False, repr=False)
    _idle: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)  # set once, when over with no calls
    _patience: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)

    @property
    def in_flight(self) -> int:
        return len(self._calls)

    def settle(self) -> None:
        """Connecting is over, well or not."""
        if not self.settled.is_set():
            self.settled.set()
            self._on_settled()

    def enter(self, call: Call) -> None:
        self._calls.add(call)

    def leave(self, call: Call) -> None:
        self._calls.discard(call)
        self._look_idle()

    def end(self, drain_by: float = math.inf) -> None:
        """Take no more calls. Those on it are cut off at `drain_by`, by `trio.current_time()`."""
        self._patience.deadline = min(self._patience.deadline, drain_by)
        self.over.set()
        self._look_idle()

    async def drain(self, verdict: Callable[[], BackendError], unwind_timeout: float) -> None:
        """Once it is over: wait for the calls on it, until they are to be cut off. Then end each with a `verdict` of
        its own, and give them `unwind_timeout` s: a caller who shields himself must not hold up the rest.
        """
        if not self._calls:
            return
        with self._patience:
            await self._idle.wait()
        for call in list(self._calls):
            call.cut_off(verdict())
        with trio.move_on_after(unwind_timeout):
            await self._idle.wait()

    def _look_idle(self) -> None:
        if self.over.is_set() and not self._calls:
            self._idle.set()
