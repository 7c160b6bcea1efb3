"""What a client has sent for the current task, readable although the client was cancelled.

A cancelled `await` returns nothing, but whoever cut a call off must say whether it may have run, and whoever ran out of
time which request it was waiting for. So the caller leaves a note in its context, and the client writes on it. The
notes also say what the current task runs inside of: a close must not wait for what waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import attrs

from trio_vmcp.errors import BackendError

__all__ = [
    "HandlerNote",
    "RequestNote",
    "begin_request",
    "current_note",
    "is_inside_handler_of",
    "note_session_lost",
    "note_written",
    "notes_of_current_task",
    "preparing",
]


@attrs.define(eq=False)
class RequestNote:
    """The note.

    Attributes:
        method: The request last begun; None before the first.
        written: Some of its bytes may have reached the backend, and no answer proved that it did not run.
        is_reported: The client says when a request is written. Clients of an application's own may not.
        session_lost: The backend no longer knows what was agreed with it: only a new connection helps.
        outer: The note that was there before.
    """

    method: str | None = None
    written: bool = False
    is_reported: bool = False
    session_lost: bool = False
    outer: RequestNote | None = attrs.field(default=None, kw_only=True)


@attrs.define(eq=False)
class HandlerNote(RequestNote):
    """Around a handler that answers a backend of this session. Tasks started inside it inherit the note, so it counts
    only while the handler runs.
    """

    session_id: str = attrs.field(kw_only=True, repr=False)
    running: bool = attrs.field(default=True, init=False)


current_note: ContextVar[RequestNote | None] = ContextVar("trio_vmcp_request_note", default=None)


def notes_of_current_task() -> Iterator[RequestNote]:
    """What the current task runs inside of, or was started in: the innermost first."""
    note = current_note.get()
    while note is not None:
        yield note
        note = note.outer


def is_inside_handler_of(session_id: str) -> bool:
    """Does the current task run inside a handler for a backend of this session, however deep?"""
    notes = notes_of_current_task()
    return any(isinstance(note, HandlerNote) and note.running and note.session_id == session_id for note in notes)


def begin_request(method: str) -> RequestNote:
    """The current task's note, now about a request of this method; a fresh one where the caller left none."""
    note = current_note.get()
    if note is None:
        note = RequestNote()
        current_note.set(note)
    note.method, note.written, note.is_reported = method, False, True
    return note


def note_written(written: bool) -> None:
    """The request in the current task was written, or provably not."""
    note = current_note.get()
    if note is not None:
        note.written, note.is_reported = written, True


def note_session_lost() -> None:
    """The request in the current task met a backend that no longer knows us."""
    note = current_note.get()
    if note is not None:
        note.session_lost = True


@contextmanager
def preparing(method: str) -> Iterator[None]:
    """Around the requests that one of this method, which provably did not run, has to wait for before it is sent again:
    whatever becomes of them, it has not run.
    """
    try:
        yield
    except BackendError as error:
        error.may_have_executed = False
        raise
    finally:
        begin_request(method)
