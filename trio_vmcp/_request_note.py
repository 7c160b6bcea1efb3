"""A note on the request that the current task makes, readable after the client was cancelled.

A cancelled `await` returns nothing. But when a call is cut off, its error must say whether the call may have run, and
when an attempt runs out of time, its error must name the request that got no answer. So the session leaves a note in
the context of the task, and the client writes on the note.

The notes of nested calls are linked. A close that is asked for inside of a call or handler finds it by its note and
does not wait for it: each would wait for the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import attrs
import trio

from trio_vmcp.errors import BackendError
from trio_vmcp.models import JSON

__all__ = [
    "HandlerNote",
    "RequestNote",
    "Silence",
    "answering_on",
    "begin_request",
    "current_note",
    "is_inside_handler_of",
    "note_session_lost",
    "note_via",
    "note_written",
    "notes_of_current_task",
    "preparing",
]


@attrs.define(eq=False)
class Silence:
    """The time that a backend may let pass without progress of one request.

    Attributes:
        seconds: s.
        scope: Around the request; cancelled when that time has passed.
    """

    seconds: float
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _pauses: int = attrs.field(default=0, init=False)

    def begin(self) -> None:
        """Count from now: the request begins, or the backend has reported progress."""
        if not self._pauses:
            self.scope.deadline = trio.current_time() + self.seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what the backend waits for, or has to wait for: that is no silence of the backend's."""
        self._pauses += 1
        self.scope.deadline = math.inf
        try:
            yield
        finally:
            self._pauses -= 1
            self.begin()


@attrs.define(eq=False)
class RequestNote:
    """A note on the requests that one task makes, one after the other.

    Attributes:
        method: The method of the newest request; None before the first.
        knob: The setting that limits its time, for the error over it.
        written: Some bytes of that request may have reached the backend, and no answer proved that it did not run.
        is_reported: The client reports when a request is written. An application's own client may not, and then every
            request counts as written.
        session_lost: The backend no longer knows its session, so only a new connection helps.
        lost_by_words: `session_lost`, but only the words of a refusal say so.
        may_resend: Set with `lost_by_words`: the request did not run, or changes nothing.
        is_unreached: A gateway answered for a backend that is away.
        waited: s, for a place under the connection limit and for a lost connection to be replaced.
        call_name: The advertised name or URI that a caller of the session named; None: the task makes no call.
        call_meta: The `meta` of that call.
        hands_out_rounds: What the backend asks in an `input_required` result is for that caller, and not for handlers.
        silence: How long the backend may be silent now; None: until the request times out.
        via: Names the proxy that the request goes through, with the comma before it; empty: none.
        lists_follow: As soon as a handshake is over, the backend's lists are asked for.
        outer: The note of the call or handler that this one runs inside of.
    """

    method: str | None = None
    written: bool = False
    is_reported: bool = False
    session_lost: bool = False
    lost_by_words: bool = False
    may_resend: bool = False
    is_unreached: bool = False
    waited: float = 0.0
    call_name: str | None = None
    call_meta: JSON | None = attrs.field(default=None, repr=False)
    hands_out_rounds: bool = attrs.field(default=False, kw_only=True)
    knob: str = "request_timeout"
    silence: Silence | None = attrs.field(default=None, kw_only=True, repr=False)
    via: str = ""
    lists_follow: bool = attrs.field(default=False, kw_only=True)
    outer: RequestNote | None = attrs.field(default=None, kw_only=True)


@attrs.define(eq=False)
class HandlerNote(RequestNote):
    """The note of a handler for requests of a backend.

    Attributes:
        session_id: The session of that backend.
        running: The handler has not returned. Tasks that the handler started inherit the note and may outlive it.
    """

    session_id: str = attrs.field(kw_only=True, repr=False)
    running: bool = attrs.field(default=True, init=False)


current_note: ContextVar[RequestNote | None] = ContextVar("trio_vmcp_request_note", default=None)


def notes_of_current_task() -> Iterator[RequestNote]:
    """The notes of the calls and handlers that the current task runs in, or was started in; the innermost first."""
    note = current_note.get()
    while note is not None:
        yield note
        note = note.outer


def is_inside_handler_of(session_id: str) -> bool:
    """Whether the current task runs inside a handler for a backend of this session, however deep."""
    notes = notes_of_current_task()
    return any(isinstance(note, HandlerNote) and note.running and note.session_id == session_id for note in notes)


def begin_request(method: str) -> RequestNote:
    """Begin a request of this method on the current task's note, and return the note; make one if there is none."""
    note = current_note.get()
    if note is None:
        note = RequestNote()
        current_note.set(note)
    note.method, note.written, note.is_reported = method, False, True
    return note


def note_written(written: bool) -> None:
    """The request of the current task was written, or provably did not run."""
    note = current_note.get()
    if note is not None:
        note.written, note.is_reported = written, True


def note_via(via: str) -> None:
    """The requests of the current task go through a proxy."""
    note = current_note.get()
    if note is not None:
        note.via = via


def note_session_lost(*, by_words: bool = False, may_resend: bool = False) -> None:
    """The backend refused the request of the current task because it no longer knows the session."""
    note = current_note.get()
    if note is not None:
        note.session_lost, note.lost_by_words, note.may_resend = True, by_words, may_resend


@contextmanager
def answering_on(notes: Iterable[RequestNote]) -> Iterator[None]:
    """Around the answer to a question that a backend asks on one of these requests: the backend waits for it."""
    with ExitStack() as stack:
        for note in notes:
            if note.silence is not None:
                stack.enter_context(note.silence.paused())
        yield


@contextmanager
def preparing(method: str) -> Iterator[None]:
    """Around requests that must be made before a request of this method is sent again. The request provably did not run
    the first time, so an error of theirs must not say that it may have run.
    """
    try:
        yield
    except BackendError as error:
        error.may_have_executed = False
        raise
    finally:
        begin_request(method)
