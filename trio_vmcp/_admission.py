"""Admit calls, wait for them, cut them off. Trio switches tasks only at an await, so there is no lock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from trio_vmcp._outbound import Outbound, outbound
from trio_vmcp.errors import SessionClosed

__all__ = ["Admission", "Call"]


@attrs.define(eq=False)
class Call(Outbound):
    """An admitted call. Tasks started inside it inherit the note, so it counts only while it is in flight."""

    admission: Admission = attrs.field(kw_only=True)
    outer: Outbound | None = attrs.field(kw_only=True)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)


@attrs.define(eq=False)
class Admission:
    """The calls of one session: admitted, and not yet at their end."""

    _calls: set[Call] = attrs.field(factory=set, init=False, repr=False)
    _refused: bool = attrs.field(default=False, init=False)
    _cut_off: str = attrs.field(default="", init=False)
    # Set at most once, while refusing with nothing in flight; never cleared or replaced: an event for "count is zero
    # now" would be set after the very first call and let a later close through.
    drained: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)

    @property
    def in_flight(self) -> int:
        return len(self._calls)

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[Call]:
        """One call, from admission to its end.

        Raises:
            SessionClosed: Not admitted, or cut off.
        """
        if self._refused:
            # One cancel may both close the session and hit this caller; it then surfaces as the cancel alone.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise SessionClosed("the session is closing or closed and admits no new calls")
        call = Call(admission=self, outer=outbound.get())
        self._calls.add(call)
        token = outbound.set(call)
        try:
            with call.scope:
                yield call
        finally:  # awaits nothing, so it also runs to its end when cancelled
            outbound.reset(token)
            self._calls.discard(call)
            self._look_drained()
        # False when the caller's own surroundings were cancelled, too: then the Cancelled went past us, to them.
        if call.scope.cancelled_caught:
            raise SessionClosed(self._cut_off, may_have_executed=call.written)

    def holds_current_task(self) -> bool:
        """Does the current task run inside one of these calls, however deep, or was it started there?"""
        note = outbound.get()
        while isinstance(note, Call):
            if note in self._calls:
                return True
            note = note.outer
        return False

    def refuse(self) -> None:
        """Admit no more, from this very moment."""
        self._refused = True
        self._look_drained()

    def cut_off(self, detail: str) -> None:
        """End what is still in flight with `SessionClosed(detail)`; only the calls' own scopes are cancelled."""
        self._cut_off = detail
        for call in self._calls:
            call.scope.cancel(reason=detail)

    def abandon(self) -> None:
        """Forget calls that do not unwind: their callers shielded themselves, and no close can wait for ever."""
        self._calls.clear()
        self._look_drained()

    def _look_drained(self) -> None:
        if self._refused and not self._calls:
            self.drained.set()
