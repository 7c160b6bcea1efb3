"""The end of a trace: which requests backends have received, and what remained when every factory had closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simulation.backends import SimulatedBackend
from simulation.outgoing_auth import read_stamp
from simulation.tokens import read_token
from simulation.trace import Audit, Remains, Seen
from trio_vmcp import SessionMetadata

__all__ = ["KEY", "number_of", "remains_of", "seen_by"]

VERSION_KEY = "io.modelcontextprotocol/protocolVersion"  # 2026-07-28, basic/index, "_meta"
LEVEL_KEY = "io.modelcontextprotocol/logLevel"
KEY = "simulation/key"  # in `_meta`, which the library forwards: the call that a request belongs to


def number_of(session_id: str) -> int:
    return int(session_id.rpartition("-")[2])


def seen_by(backends: Mapping[str, SimulatedBackend]) -> list[Seen]:
    scripted = {backend_id: backend.scripted for backend_id, backend in backends.items()}
    gates = [backend.gate for backend in backends.values() if backend.gate is not None]
    turned_away = {id(exchange) for gate in gates for exchange in gate.turned_away}
    return [
        Seen(
            at=exchange.received_at,
            backend_id=backend_id,
            verb=exchange.verb,
            method=exchange.method,
            key=exchange.meta.get(KEY),
            session_id=exchange.session_id,
            status=exchange.status,
            outcome=exchange.outcome,
            state=exchange.params.get("requestState"),
            name=str(exchange.params.get("name", "")),
            auth_call=auth_call,
            number=number,
            token=read_token(exchange.headers.get("authorization")),
            turned_away=id(exchange) in turned_away,
            is_modern=VERSION_KEY in exchange.meta,
            level=exchange.meta.get(LEVEL_KEY),
        )
        for backend_id, backend in scripted.items()
        for exchange in backend.exchanges
        for auth_call, number in (read_stamp(exchange.headers),)
    ]


def remains_of(
    audit: Audit,
    connections: int,
    rows: Sequence[SessionMetadata],
    sessions: tuple[tuple[int, str, int], ...],
    backends: Mapping[str, SimulatedBackend],
) -> Remains:
    """
    Args:
        sessions: As `Remains.sessions`.
    """
    scripted = {backend_id: backend.scripted for backend_id, backend in backends.items()}
    return Remains(
        audit=audit,
        connections=connections,
        rows=tuple(sorted(number_of(row.session_id) for row in rows)),
        stored_ids=tuple(
            sorted(record.session_id for row in rows for record in row.backends if record.session_id is not None)
        ),
        alive=tuple(
            (backend_id, session_id) for backend_id, backend in scripted.items() for session_id in backend.sessions
        ),
        sessions=sessions,
        broken=tuple(repr(exc) for backend in scripted.values() for exc in (*backend.errors, *backend.handler_errors)),
    )
