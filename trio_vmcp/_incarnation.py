"""One connection to a backend, from its making to the end of the last call on it."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from trio_vmcp._admission import Call
from trio_vmcp.client.interface import BackendClient
from trio_vmcp.errors import BackendError

__all__ = ["Incarnation"]


@attrs.define(eq=False)
class Incarnation:
    """A backend has one at a time that takes calls; those before it may still have some to end.

    Attributes:
        attempt: Cancelled to give the connecting up.
        client: The connection, once it is one.
        settled: It has joined, or failed.
        over: It takes no more calls, and is let go of once those on it have ended.
        drain_by: `trio.current_time()` at which calls on it are cut off, once it is over.
    """

    _on_settled: Callable[[], None]
    attempt: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    client: BackendClient | None = attrs.field(default=None, init=False)
    settled: trio.Event = attrs.field(factory=trio.Event, init=False)
    over: trio.Event = attrs.field(factory=trio.Event, init=False)
    drain_by: float = attrs.field(default=float("inf"), init=False)
    is_parting: bool = attrs.field(default=False, init=False)  # somebody is at closing it, or has
    terminate: bool = attrs.field(default=False, init=False)  # nobody will take its backend session up again
    _calls: set[Call] = attrs.field(factory=set, init=False, repr=False)
    _idle: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)  # set once, when over with no calls

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

    def end(self) -> None:
        """Take no more calls."""
        self.over.set()
        self._look_idle()

    async def drain(self, verdict: BackendError) -> None:
        """Wait for the calls on it, until `drain_by`; then cut the rest off with `verdict`, and wait for them."""
        with trio.move_on_at(self.drain_by):
            await self._idle.wait()
        for call in list(self._calls):
            call.cut_off(verdict)
        await self._idle.wait()

    def _look_idle(self) -> None:
        if self.over.is_set() and not self._calls:
            self._idle.set()
