"""Whether calls ran in a backend session, and whether callers were told that the one before is gone.

A backend may keep what calls set up in the session that they ran in (MCP 2025-11-25, transports, session management).
When such a session is gone, one answer of the next session has to say so (`ToolResult.backend_state_lost`), whether a
call, a stream or the end of a process was first to notice. All callers of a session are one principal, so that one
answer tells them all. News that no answer has told yet stays in the row.
"""

from __future__ import annotations

import attrs

from trio_vmcp.metadata import BackendRecord, endpoint_digest
from trio_vmcp.models import Backend

__all__ = ["RESTORED", "SessionUse", "continues", "restored_use"]


@attrs.frozen
class SessionUse:
    """What is known of the calls in one backend session.

    Attributes:
        is_used: A call ran in it, or may have.
        is_loss_untold: An earlier backend session was used and is gone, and no answer has said so.
    """

    is_used: bool = False
    is_loss_untold: bool = False

    def after_loss(self) -> SessionUse:
        """The use of the session that comes after this one."""
        return SessionUse(is_loss_untold=self.is_used or self.is_loss_untold)


# Of a backend session that a restore found in the row: its calls ran in another process.
RESTORED = SessionUse(is_used=True)


def restored_use(stored: BackendRecord | None) -> SessionUse:
    """Of the backend session of a record in the row."""
    return RESTORED if stored is None else attrs.evolve(RESTORED, is_loss_untold=stored.is_loss_untold)


def continues(before: BackendRecord, now: BackendRecord, backend: Backend) -> bool:
    """Whether a new connection goes on where the one before was, as far as the protocol tells: it has resumed the
    backend session, or there was none to lose. A process and an HTTP+SSE stream are their own session, without an id.
    """
    if before.session_id is not None:
        return now.session_id == before.session_id
    # Over streamable HTTP a server need not assign an id, and has no sessions then. If the record is of another
    # endpoint, it may be that of HTTP+SSE to which the same url fell back.
    had_no_sessions = backend.transport == "streamable-http" and before.endpoint_digest == endpoint_digest(backend)
    return before.era == "modern" or had_no_sessions
