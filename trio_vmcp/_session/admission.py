"""Admit calls, wait for them, cut them off. Trio switches tasks only at an await, so there is no lock."""

from __future__ import annotations

from contextvars import Token
from types import TracebackType

import attrs
import trio

from trio_vmcp._request_note import RequestNote, current_note, notes_of_current_task
from trio_vmcp._session.life import Life, Phase
from trio_vmcp.errors import BackendError, SessionClosed

__all__ = ["Admission", "Call"]


@attrs.define(eq=False)
class Call(RequestNote):
    """A call from admission to its end, as an async context manager. A class, since a manager made of a generator costs
    more than everything in here. Tasks started inside a call inherit the note: it counts only while the call is in
    flight.

    Attributes:
        is_sent_again: The request was sent once more, since the backend had lost the session.
        has_callback_failed: The error of the call is that of the caller's progress callback.
    """

    admission: Admission = attrs.field(kw_only=True)
    is_sent_again: bool = attrs.field(default=False, init=False)
    has_callback_failed: bool = attrs.field(default=False, init=False)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _verdict: SessionClosed | BackendError | None = attrs.field(default=None, init=False, repr=False)
    _token: Token[RequestNote | None] | None = attrs.field(default=None, init=False, repr=False)

    async def __aenter__(self) -> Call:
        await self.admission.add_call(self)
        self._token = current_note.set(self)
        self.scope.__enter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Awaits nothing, so it also runs to its end when cancelled.
        try:
            self.scope.__exit__(exc_type, exc, traceback)
        finally:
            assert self._token is not None
            current_note.reset(self._token)
            self.admission.remove_call(self)
        # False when the caller's own surroundings were cancelled, too: then the Cancelled goes past us, to them.
        if self.scope.cancelled_caught:
            assert self._verdict is not None  # only `cut_off` cancels the scope
            self._verdict.may_have_executed = self.written
            raise self._verdict

    def cut_off(self, verdict: SessionClosed | BackendError) -> None:
        """End it with this error; only the call's own scope is cancelled."""
        self._verdict = self._verdict or verdict
        self.scope.cancel(reason=str(verdict))


@attrs.define(eq=False)
class Admission:
    """The calls of one session: admitted, and not yet at their end."""

    _calls: set[Call] = attrs.field(factory=set, init=False, repr=False)
    _life: Life = attrs.field(alias="life", factory=Life, repr=False)
    # Set at most once, while refusing with nothing in flight; never cleared or replaced: an event for "count is zero
    # now" would be set after the very first call and let a later close through.
    drained: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)

    @property
    def in_flight(self) -> int:
        return len(self._calls)

    def admit(self) -> Call:
        """One call, to be entered with `async with`.

        Raises:
            SessionClosed: On entering, not admitted; on leaving, cut off.
        """
        return Call(admission=self, outer=current_note.get())

    async def add_call(self, call: Call) -> None:
        if self._life.is_closing:
            # One cancel may both close the session and hit this caller; it then surfaces as the cancel alone.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise SessionClosed("the session is closing or closed and admits no new calls")
        self._calls.add(call)

    def remove_call(self, call: Call) -> None:
        self._calls.discard(call)
        self._check_drained()

    def holds_current_task(self) -> bool:
        """Does the current task run inside one of these calls, however deep, or was it started there?"""
        return any(note in self._calls for note in notes_of_current_task())

    def refuse(self) -> None:
        """Admit no more, from this very moment: the session is DRAINING."""
        if not self._life.is_closing:
            self._life.to(Phase.DRAINING)
        self._check_drained()

    def cut_off(self, detail: str) -> None:
        """End what is still in flight with `SessionClosed(detail)`."""
        for call in self._calls:
            call.cut_off(SessionClosed(detail))

    def discard_calls(self) -> None:
        """Do not count calls that do not unwind: their callers are shielded, and a close cannot wait for ever."""
        self._calls.clear()
        self._check_drained()

    def _check_drained(self) -> None:
        if not self._calls and self._life.is_closing:
            self.drained.set()
