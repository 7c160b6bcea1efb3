"""What happens in the sessions of a factory, as records: for metrics, traces and dashboards.

An observer is passed to `open_session_factory(observers=[…])` and gets each record at the moment it is about, in the
task step in which it happens. `trio_vmcp.observers` has two, for Prometheus and for OpenTelemetry.

No record holds a token, a header value, a session id, an argument or a result. `session` is the tag of a session, which
its log records have, too: a keyed digest, from which the id cannot be found.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Protocol, TypeAlias

import attrs

from trio_vmcp.models import BackendState

__all__ = [
    "TRACE_KEYS",
    "BackendStateChanged",
    "CallEnded",
    "CallStarted",
    "Event",
    "ListChanged",
    "Observer",
    "OpeningFailed",
    "Recovered",
    "SessionClosed",
    "SessionOpened",
    "StorageFailed",
]

# Of `_meta` (SEP-414): the W3C Trace Context of a request, without a prefix. `baggage` is left to callers, since it may
# hold anything.
TRACE_KEYS = ("traceparent", "tracestate")


@attrs.frozen(kw_only=True)
class SessionOpened:
    """A session was made or restored, and takes calls. Its backends have reported before.

    Attributes:
        seconds: The opening took so long.
        backends: So many belong to it.
        missing: So many of them are in `session.failures`.
        restored: The session was made by an earlier `make_session`, here or on another instance.
    """

    session: str
    seconds: float
    backends: int
    missing: int
    restored: bool


@attrs.frozen(kw_only=True)
class OpeningFailed:
    """A session could not be made or restored; it has no `SessionOpened` and no `SessionClosed`.

    Attributes:
        outcome: The name of the error's type, such as "NoBackends".
        seconds: The opening took so long.
    """

    session: str
    outcome: str
    seconds: float


@attrs.frozen(kw_only=True)
class SessionClosed:
    """A session that was opened is CLOSED. A call that does not unwind, since its caller shields itself, ends later.

    Attributes:
        how: "suspended": its row stays, and it may be restored; so may one that another instance has by now.
        seconds: It was open so long.
    """

    session: str
    how: Literal["terminated", "suspended"]
    seconds: float


@attrs.frozen(kw_only=True)
class BackendStateChanged:
    """`session.backends` shows another state of a backend.

    Attributes:
        why: A sentence to complete "backend 'x' …", or a few words. For people: it may quote the backend, bounded.
        since: When it began to show the new state, UTC.
    """

    session: str
    backend_id: str
    old: BackendState
    new: BackendState
    why: str
    since: datetime


@attrs.frozen(kw_only=True, slots=False)  # without slots: they make a frozen record slower to make, and calls make two
class CallStarted:
    """A call was admitted, its caller may call, and it was routed. It is told in the caller's task and context.

    Attributes:
        call: Pairs it with its `CallEnded`: a number that no other call of the process has.
        name, backend_id: As in `CallEnded`.
        trace: The W3C trace context that goes to the backend in `_meta`: what the caller gave in `meta`, if anything.
            An observer may replace it: only `TRACE_KEYS` are sent, and only strings.
    """

    session: str
    call: int
    method: str
    name: str
    backend_id: str | None
    trace: dict[str, str]


@attrs.frozen(kw_only=True, slots=False)
class CallEnded:
    """An admitted call has ended, however it did: there is one record for each.

    Attributes:
        call: Pairs it with its `CallStarted`; a call that was refused to its caller has none.
        method: Of MCP, such as "tools/call".
        name: The advertised name of a tool or prompt, as the caller named it. Of a resource that is listed its URI,
            without userinfo, query and fragment; of any other "", since such a URI is an argument.
        backend_id: The backend that the call was for; None: there is none of that name.
        outcome: "ok"; "tool_error" (`is_error`); "input_required", where the backend's question was handed out
            (`answer_rounds=False`): the call that answers is another one; "cancelled", by the caller; else the name of
            the error's type, such as "BackendTimeout".
        seconds: From admission to the end.
        waiting: Of these, for a place under `max_connections_per_backend` and for a lost connection to be replaced.
        at_backend: The rest of a call that had a backend.
        may_have_executed: The backend may have acted on it. True of every call that was answered.
        retried: It was sent once more, since the backend had lost the session.
    """

    session: str
    call: int
    method: str
    name: str
    backend_id: str | None
    outcome: str
    seconds: float
    waiting: float
    at_backend: float
    may_have_executed: bool
    retried: bool


@attrs.frozen(kw_only=True)
class ListChanged:
    """What a backend lists has changed, also by its joining with something else than before."""

    session: str
    backend_id: str
    kind: Literal["tools", "resources", "prompts"]


@attrs.frozen(kw_only=True)
class Recovered:
    """A backend is READY that was DEGRADED or RECOVERING, and not just woken up after `Backend.stop_after`.

    Attributes:
        seconds: It was not READY for so long.
    """

    session: str
    backend_id: str
    seconds: float


@attrs.frozen(kw_only=True)
class StorageFailed:
    """An operation of the storage failed or was late. That the row is at another version is no failure.

    Attributes:
        operation: "store", "load", "update", "touch" or "delete".
        detail: Names the knob or the type of the error.
    """

    session: str
    operation: str
    detail: str


Event: TypeAlias = (
    SessionOpened
    | OpeningFailed
    | SessionClosed
    | BackendStateChanged
    | CallStarted
    | CallEnded
    | ListChanged
    | Recovered
    | StorageFailed
)


class Observer(Protocol):
    """Is told what happens in the sessions of a factory."""

    def on_event(self, event: Event) -> None:
        """Take one record. Called synchronously, in the loop's thread: while it runs, nothing else does.

        Records of kinds that it does not know are to be ignored: there may be more in a later release. What it raises
        costs the observer this record alone, and is logged once for each observer; KeyboardInterrupt and SystemExit
        come out as themselves.
        """
        ...
