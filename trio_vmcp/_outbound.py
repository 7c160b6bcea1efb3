"""What a client has sent for the current task, readable although the client was cancelled.

A cancelled `await` returns nothing, but whoever cut a call off must say whether it may have run, and whoever ran out of
time which request it was waiting for. So the caller leaves a note in its context, and the client writes on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import attrs

from trio_vmcp.errors import BackendError

__all__ = ["Outbound", "begin_request", "note_session_lost", "note_written", "outbound", "preparing"]


@attrs.define(eq=False)
class Outbound:
    """The note.

    Attributes:
        method: The request last begun; None before the first.
        written: Some of its bytes may have reached the backend, and no answer proved that it did not run.
        session_lost: The backend no longer knows what was agreed with it: only a new connection helps.
    """

    method: str | None = None
    written: bool = False
    session_lost: bool = False


outbound: ContextVar[Outbound | None] = ContextVar("trio_vmcp_outbound", default=None)


def begin_request(method: str) -> Outbound:
    """The current task's note, now about a request of this method; a fresh one where the caller left none."""
    note = outbound.get()
    if note is None:
        note = Outbound()
        outbound.set(note)
    note.method, note.written = method, False
    return note


def note_written(written: bool) -> None:
    """The request in the current task was written, or provably not."""
    note = outbound.get()
    if note is not None:
        note.written = written


def note_session_lost() -> None:
    """The request in the current task met a backend that no longer knows us."""
    note = outbound.get()
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
