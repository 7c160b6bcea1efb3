"""What a run of a history leaves behind: events in the order in which they happened, and what was left at the end.

Traces of two runs of one seed are equal. Texts of errors are not compared: they may hold a tag whose key is the
process's own.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

from simulation.history import Call, Close, Open, Restore, brief

__all__ = [
    "Audit",
    "Began",
    "Canary",
    "Closing",
    "Crashed",
    "Ended",
    "Event",
    "Executed",
    "Exiting",
    "GaveUp",
    "Hung",
    "IdRead",
    "Names",
    "Opened",
    "Outcome",
    "Remains",
    "Seen",
    "Sent",
    "Shielded",
    "Trace",
]

Names: TypeAlias = tuple[tuple[str, str, str], ...]
"""Advertised tool, the backend that it belongs to, and its name there."""


@attrs.frozen(kw_only=True)
class Outcome:
    """How an operation ended.

    Attributes:
        error: The name of the exception's class.
        is_ours: It is a `VmcpError`.
        backend_id: Of the result or the error.
        key: What the answer says that it answers.
    """

    kind: Literal["ok", "error", "cancelled"]
    error: str = ""
    is_ours: bool = False
    may_have_executed: bool | None = None
    backend_id: str | None = None
    key: int | None = None
    text: str = attrs.field(default="", eq=False)


@attrs.frozen(kw_only=True)
class Began:
    """An operation began: a step, an exit of an instance, or the end of a block that held a session.

    Attributes:
        life: The opening or restoring that the session came from.
        state: What the session said of itself then.
        name: What is called.
        target: Whose it is, by the session's routing table: backend id and the name there.
        nested: From inside a call of the same session.
    """

    at: float
    op: int
    what: Literal["open", "restore", "call", "close", "hold", "exit"]
    step: Open | Restore | Call | Close | None = None
    life: int | None = None
    instance: int | None = None
    state: str = ""
    name: str = ""
    target: tuple[str, str] | None = None
    nested: bool = False


@attrs.frozen(kw_only=True)
class Ended:
    at: float
    op: int
    outcome: Outcome


@attrs.frozen(kw_only=True)
class GaveUp:
    """Whoever waits for the operation was cancelled."""

    at: float
    op: int


@attrs.frozen(kw_only=True)
class Shielded:
    """A call's callback shielded itself: from here on its deadline is not the library's to keep."""

    at: float
    op: int


@attrs.frozen(kw_only=True)
class Opened:
    """
    Attributes:
        connected: In configured order.
    """

    at: float
    op: int
    session: int
    connected: tuple[str, ...]
    tools: Names


@attrs.frozen(kw_only=True)
class Closing:
    """A close is asked for in the very next step of this task.

    Attributes:
        found: The session's state just before; only who finds it OPEN decides what kind of close it is.
        drain_timeout: s, as the caller means it.
        in_flight: What the session counts just before.
    """

    at: float
    op: int
    life: int
    terminate: bool
    drain_timeout: float
    found: str
    in_flight: int


@attrs.frozen(kw_only=True)
class Exiting:
    """The block of a factory is left, or (`cancelled`) its surroundings were cancelled."""

    at: float
    instance: int
    cancelled: bool


@attrs.frozen(kw_only=True)
class Executed:
    """A backend began to run a tool."""

    at: float
    backend_id: str
    name: str
    key: int


@attrs.frozen(kw_only=True)
class Sent:
    """A request was handed to the transport."""

    at: float
    backend_id: str
    verb: str
    session_id: str | None


@attrs.frozen(kw_only=True)
class IdRead:
    """The transport handed over a head that assigns a backend session."""

    at: float
    backend_id: str
    session_id: str


@attrs.frozen(kw_only=True)
class Audit:
    """What is in use while no session is open.

    Attributes:
        tasks: In the nurseries of the factories.
        responses: That nobody has let go of.
        tokens: Borrowed from limiters of the library.
    """

    at: float
    tasks: tuple[str, ...]
    responses: int
    tokens: int


@attrs.frozen(kw_only=True)
class Canary:
    """A secret where none may be."""

    at: float
    where: str
    text: str = attrs.field(eq=False)


@attrs.frozen(kw_only=True)
class Crashed:
    """The library logged an error of its own, or left something to the garbage collector."""

    at: float
    text: str = attrs.field(eq=False)


@attrs.frozen(kw_only=True)
class Hung:
    """Everybody waits, and nothing will ever happen."""

    at: float


Event: TypeAlias = (
    Began
    | Ended
    | GaveUp
    | Shielded
    | Opened
    | Closing
    | Exiting
    | Executed
    | Sent
    | IdRead
    | Audit
    | Canary
    | Crashed
    | Hung
)


@attrs.frozen(kw_only=True)
class Seen:
    """One HTTP request that a backend received.

    Attributes:
        key: Of the call that it belongs to.
    """

    at: float
    backend_id: str
    verb: str
    method: str
    key: int | None
    session_id: str | None
    status: int | None
    outcome: str


@attrs.frozen(kw_only=True)
class Remains:
    """What was left when every factory had closed.

    Attributes:
        rows: Session numbers in the storage.
        stored_ids: Backend session ids in those rows.
        alive: Backend sessions that their backends still hold.
        sessions: Of every session that was opened: its life, state and calls in flight.
        broken: What broke in the scripted backends: a bug of the simulation.
    """

    audit: Audit
    connections: int
    rows: tuple[int, ...]
    stored_ids: tuple[str, ...]
    alive: tuple[tuple[str, str], ...]
    sessions: tuple[tuple[int, str, int], ...]
    broken: tuple[str, ...]


@attrs.define
class Trace:
    events: list[Event] = attrs.field(factory=list)
    seen: list[Seen] = attrs.field(factory=list)
    remains: Remains | None = None

    def __str__(self) -> str:
        return "\n".join(map(brief, [*self.events, *self.seen, self.remains]))
