"""One line for each backend of a server that starts: the first thing that became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

import attrs

from trio_vmcp._cli.texts import name_knobs
from trio_vmcp.errors import SessionClosed, VmcpError
from trio_vmcp.factory import DefaultSessionFactory, SessionFactory
from trio_vmcp.manager import SessionManager
from trio_vmcp.models import BackendFailure, BackendState, FailureReason
from trio_vmcp.observe import BackendStateChanged, Event, Observer
from trio_vmcp.serve.app import Front

__all__ = ["BackendLines", "announce"]


@attrs.define(eq=False)
class BackendLines(Observer):
    """Tells of each backend once: when it has connected, with what it offers, or when its first attempt has failed.

    Attributes:
        factory: Whose sessions it observes.
        ended: Nothing is told any more.
    """

    _tell: Callable[[str], object] = attrs.field(alias="tell", repr=False)
    factory: SessionFactory | None = attrs.field(default=None, init=False)
    ended: bool = attrs.field(default=False, init=False)
    _told: set[str] = attrs.field(factory=set, init=False)

    def on_event(self, event: Event) -> None:
        if isinstance(event, BackendStateChanged) and event.old is BackendState.CONNECTING and not self.ended:
            assert isinstance(self.factory, DefaultSessionFactory)
            owner = self.factory.find_by_tag(event.session)
            member = None if owner is None else owner.membership.members.get(event.backend_id)
            if member is None:
                return
            if event.new is BackendState.READY:
                tools = 0 if member.listing is None else len(member.listing.tools)
                self.tell_once(event.backend_id, f"connected ({member.status.era}, {tools} tools)")
            else:
                self.tell_once(event.backend_id, failure_text(member.last_failure))

    def tell_once(self, backend_id: str, text: str) -> None:
        if backend_id not in self._told:
            self._told.add(backend_id)
            self._tell(f"{backend_id}: {text}")


def failure_text(failure: BackendFailure | None) -> str:
    """Why a backend is missing; the text still needs a sanitizer."""
    if failure is None:
        return "disconnected"
    if failure.reason is FailureReason.PENDING:
        return "still connecting"
    return f"{failure.reason.value.upper()}: it {name_knobs(failure.detail)}"


async def announce(
    front: Front, manager: SessionManager, lines: BackendLines, backend_ids: Iterable[str], *, keep: bool
) -> None:
    """Connect the backends, and tell of each. Returns when all have connected, failed, or run out of time.

    Args:
        keep: The session in which that happens serves clients afterwards; False: it is ended.
    """
    try:
        session = await front.open_anonymous()
    except VmcpError as error:  # the storage is away, say; clients get the same error
        for backend_id in backend_ids:
            lines.tell_once(backend_id, str(error))
        return
    finally:
        lines.ended = True
    for backend_id, failure in {each.backend_id: each for each in session.failures}.items():
        lines.tell_once(backend_id, failure_text(failure))
    for backend_id in session.backends:
        lines.tell_once(backend_id, "connected")
    if not keep:
        with suppress(VmcpError, SessionClosed):
            await manager.terminate(session.id)
