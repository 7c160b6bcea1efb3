"""The state of the sessions and their backends, as a JSON object: what `/status` says.

It holds nothing that opens a door: no session id, identity, token, header or url. What a backend said of its failure is
in the words of `BackendFailure.detail`, which quote no credentials.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import attrs
import trio

from trio_vmcp.manager import SessionManager
from trio_vmcp.models import JSON, BackendStatus
from trio_vmcp.serve._version import SERVER_INFO
from trio_vmcp.serve._wanted import PROTOCOL_VERSION
from trio_vmcp.session import Session

__all__ = ["MOST_BACKENDS", "status_document"]

# Backends of all sessions together that one document shows, but for those of its first session: each takes up to 25 µs,
# and a page asks every 2 s.
MOST_BACKENDS = 1000


async def status_document(manager: SessionManager, front: Mapping[str, float], *, ready: bool, uptime: float) -> JSON:
    """
    ```
    {"name", "version", "at",             # `at`: now. Instants are ISO 8601 in UTC, durations seconds
     "ready", "uptime",                   # ready: takes requests (the storage is not asked)
     "manager": {…},                      # the counts of `ManagerStatistics`
     "front": {"in_flight", "refused"},   # requests of clients under way; refused before a session saw them
     "sessions": [{"tag", "client_era", "state", "created_at", "in_flight",
                   "backends": [{"id", "state", "since", "era", "protocol_version", "in_flight", "calls", "errors",
                                 "latency": {"p50", "p90", "p99"} or null,
                                 "last_failure": {"reason", "detail"} or null,
                                 "failing_since"}]}],   # there while calls or the stream do not reach the backend
     "sessions_omitted"}                  # the number of live sessions that are not shown
    ```

    The newest sessions are first. `client_era` is "legacy", "modern", or null where another part of the application
    has made the session. The other fields of a session and a backend are those of `Session` and `BackendStatus`.
    """
    live = manager.live_sessions[::-1]
    shared = {session.id for session in manager.shared_sessions}
    shown: list[JSON] = []
    backends = 0
    for session in live:
        statuses = session.backends
        backends += len(statuses)
        if shown and backends > MOST_BACKENDS:
            break
        shown.append(_session_document(session, statuses, is_shared=session.id in shared))
        await trio.lowlevel.checkpoint()
    return {
        **SERVER_INFO,
        "at": datetime.now(UTC).isoformat(),
        "ready": ready,
        "uptime": _seconds(uptime),
        "manager": attrs.asdict(manager.statistics),
        "front": dict(front),
        "sessions": shown,
        "sessions_omitted": len(live) - len(shown),
    }


def _session_document(session: Session, statuses: Mapping[str, BackendStatus], *, is_shared: bool) -> JSON:
    is_legacy = PROTOCOL_VERSION in session.metadata.attributes
    return {
        "tag": session.tag,
        "client_era": "legacy" if is_legacy else "modern" if is_shared else None,
        "state": session.state.value,
        "created_at": session.created_at.isoformat(),
        "in_flight": session.in_flight,
        "backends": [_backend_document(status) for status in statuses.values()],
    }


def _backend_document(status: BackendStatus) -> JSON:
    failure, latency = status.last_failure, status.latency
    failing = {} if status.failing_since is None else {"failing_since": status.failing_since.isoformat()}
    return {
        "id": status.backend_id,
        "state": status.state.value,
        "since": status.since.isoformat(),
        "era": status.era,
        "protocol_version": status.protocol_version,
        "in_flight": status.in_flight,
        "calls": status.calls,
        "errors": status.errors,
        "latency": latency and {name: _seconds(value) for name, value in attrs.asdict(latency).items()},
        "last_failure": failure and {"reason": failure.reason.value, "detail": failure.detail},
        **failing,
    }


def _seconds(value: float) -> float:
    return round(value, 6)
