"""What a run of a history leaves behind: events in the order in which they happened, and what was left at the end.

Traces of two runs of one seed are equal. Texts of errors are not compared: they may hold a tag whose key is the
process's own.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs
from support.memory_processes import Manners

from simulation.history import (
    AddBackend,
    Call,
    Close,
    Open,
    Question,
    RemoveBackend,
    Restore,
    Subscribe,
    WatchChanges,
    brief,
)

__all__ = [
    "Attempt",
    "Attempted",
    "Audit",
    "AuthCalled",
    "Began",
    "CallerCancelled",
    "Closing",
    "ConnectionClosed",
    "Crashed",
    "Ended",
    "Event",
    "Exiting",
    "HandlerCalled",
    "HandlerReturned",
    "HealthChanged",
    "Hung",
    "Inspected",
    "LogReceived",
    "Names",
    "Opened",
    "Operated",
    "Outcome",
    "Principal",
    "ProcessEnded",
    "QuestionAsked",
    "Remains",
    "Removing",
    "RequestSigned",
    "ResourcesUpdated",
    "SecretLeaked",
    "Seen",
    "Sent",
    "SessionIdRead",
    "Settled",
    "Shielded",
    "StorageFailed",
    "Token",
    "TokenFetched",
    "TokensRotated",
    "ToolExecuted",
    "ToolsOffered",
    "Trace",
    "What",
]

What: TypeAlias = Literal["open", "restore", "call", "close", "add", "remove", "subscribe", "watch", "hold", "exit"]
Operated: TypeAlias = Open | Restore | Call | Close | AddBackend | RemoveBackend | Subscribe | WatchChanges
"""The steps that are operations: they have an outcome."""

Principal: TypeAlias = Literal["anonymous", "opener", "caller", "stranger"]
"""Who credentials are for: who opened the session, who calls, or, where it is open to anybody, nobody."""

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
        version: Of what was read.
    """

    kind: Literal["ok", "error", "cancelled"]
    error: str = ""
    is_ours: bool = False
    may_have_executed: bool | None = None
    backend_id: str | None = None
    key: int | None = None
    version: int | None = None
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
        found: What the session said just before of the backend that is called, added or removed; "" if nothing.
    """

    at: float
    op: int
    what: What
    step: Operated | None = None
    life: int | None = None
    instance: int | None = None
    state: str = ""
    name: str = ""
    target: tuple[str, str] | None = None
    nested: bool = False
    found: str = ""


@attrs.frozen(kw_only=True)
class Ended:
    at: float
    op: int
    outcome: Outcome


@attrs.frozen(kw_only=True)
class CallerCancelled:
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
class Removing:
    """A backend is to be let go of in the very next step of this task.

    Attributes:
        session_id: Of the backend's session, if it has assigned one.
    """

    at: float
    op: int
    life: int
    backend_id: str
    drain_timeout: float
    session_id: str | None


@attrs.frozen(kw_only=True)
class Exiting:
    """The block of a factory is left, or (`cancelled`) its surroundings were cancelled."""

    at: float
    instance: int
    cancelled: bool


@attrs.frozen(kw_only=True)
class ToolExecuted:
    """A backend began to run a tool."""

    at: float
    backend_id: str
    name: str
    key: int


@attrs.frozen(kw_only=True)
class QuestionAsked:
    """A tool asked its client something, and was answered or gave up. A modern one is told again with every answer.

    Attributes:
        number: Of the question among those of its call.
        declared: That client has said that it can answer this; None: not to be known.
    """

    at: float
    backend_id: str
    key: int
    number: int
    kind: Question
    declared: bool | None
    outcome: Literal["right", "wrong", "refused", "silence"]


@attrs.frozen(kw_only=True)
class HandlerCalled:
    """A handler was asked something.

    Attributes:
        session, backend_id, caller: Whom it was told of: the session's number, and the subject of an identity.
        key, number: The question.
    """

    at: float
    session: int
    backend_id: str
    caller: str | None
    key: int
    number: int
    kind: Question


@attrs.frozen(kw_only=True)
class HandlerReturned:
    """That handler came to its end, with an answer or without."""

    at: float
    key: int
    number: int


@attrs.frozen(kw_only=True)
class LogReceived:
    """The handler for log messages was told of one. Attributes: as in `Handled`."""

    at: float
    session: int
    backend_id: str
    caller: str | None
    key: int
    number: int


@attrs.frozen(kw_only=True)
class ProcessEnded:
    """A program came to its end.

    Attributes:
        status: Below 0, the signal that ended it.
        by_itself: Nobody asked it to.
    """

    at: float
    backend_id: str
    pid: int
    manners: Manners
    status: int
    by_itself: bool


@attrs.frozen(kw_only=True)
class HealthChanged:
    """A backend is well from now on, or no longer. What made it ill may have lost its effect a little earlier."""

    at: float
    backend_id: str
    well: bool


@attrs.frozen(kw_only=True)
class ToolsOffered:
    """A backend lists these tools from now on."""

    at: float
    backend_id: str
    tools: tuple[str, ...]


@attrs.frozen(kw_only=True)
class ResourcesUpdated:
    """What is read of a backend is of this version from now on; the first one is 0."""

    at: float
    backend_id: str
    version: int


@attrs.frozen(kw_only=True)
class Attempt:
    """A connector was asked for a connection.

    Attributes:
        op: The opening, restoring or adding that the backend was passed to.
        resumed: With the record of an earlier connection.
    """

    at: float
    number: int
    op: int
    instance: int
    backend_id: str
    resumed: bool


@attrs.frozen(kw_only=True)
class Attempted:
    """It has answered.

    Attributes:
        error: The name of the exception's class.
    """

    at: float
    number: int
    outcome: Literal["ok", "error", "cancelled"]
    error: str = ""


@attrs.frozen(kw_only=True)
class ConnectionClosed:
    """The connection that an attempt had led to is closed."""

    at: float
    number: int


@attrs.frozen(kw_only=True)
class Inspected:
    """How an open session is.

    Attributes:
        members: Backend id, state, and whether it is among the failures.
    """

    at: float
    life: int
    members: tuple[tuple[str, str, bool], ...]
    tools: Names


@attrs.frozen(kw_only=True)
class Settled:
    """What the storage holds of an open session, and what the session says, when nobody has anything to do right now.

    Attributes:
        row, said: Backend id and the id of its session, of every backend that is connected.
        unbound: Advertised tools that the row gives to nobody, or to another.
        health: Of every backend: its id, calls, errors and calls in flight.
        is_written: The row is what the session takes it for.
    """

    at: float
    life: int
    in_flight: int
    row: tuple[tuple[str, str | None], ...]
    said: tuple[tuple[str, str | None], ...]
    health: tuple[tuple[str, int, int, int], ...]
    unbound: tuple[str, ...]
    is_written: bool


@attrs.frozen(kw_only=True)
class StorageFailed:
    """The storage did not do what it should about a session."""

    at: float
    operation: str
    session: int


@attrs.frozen
class Token:
    """What a guarded backend wants to see.

    Attributes:
        generation: One more with every rotation.
    """

    backend_id: str
    principal: Principal
    generation: int


@attrs.frozen(kw_only=True)
class TokensRotated:
    """A guarded backend takes no older tokens from now on."""

    at: float
    backend_id: str
    generation: int


@attrs.frozen(kw_only=True)
class AuthCalled:
    """The factory's `auth` was asked for credentials.

    Attributes:
        attempt: That made the connection that they are for.
        gives: There are some.
        after: The asking whose credentials, or lack of them, were refused just before, in the same task.
    """

    at: float
    number: int
    attempt: int
    backend_id: str
    principal: Principal
    gives: bool
    after: int | None


@attrs.frozen(kw_only=True)
class TokenFetched:
    """A new token was there, or (None) could not be had, or nobody waited for it any more.

    Attributes:
        since: When it was begun.
    """

    at: float
    since: float
    auth_call: int
    token: Token | None


@attrs.frozen(kw_only=True)
class RequestSigned:
    """A request was given a token, and may be sent."""

    at: float
    auth_call: int
    token: Token


@attrs.frozen(kw_only=True)
class Sent:
    """A request was handed to the transport.

    Attributes:
        asking: Where its credentials are from; None: nobody was asked for any.
        number: The same for what is sent again. Only where there are credentials.
    """

    at: float
    backend_id: str
    verb: str
    session_id: str | None
    auth_call: int | None = None
    number: int | None = None


@attrs.frozen(kw_only=True)
class SessionIdRead:
    """The transport handed over a head that assigns a backend session."""

    at: float
    backend_id: str
    session_id: str
    auth_call: int | None = None


@attrs.frozen(kw_only=True)
class Audit:
    """What is in use while no session is open.

    Attributes:
        tasks: In the nurseries of the factories.
        processes: That run, or that nobody has waited for, or that have left something running.
        responses: That nobody has let go of.
        tokens: Borrowed from limiters of the library.
    """

    at: float
    tasks: tuple[str, ...]
    processes: tuple[int, ...]
    responses: int
    tokens: int


@attrs.frozen(kw_only=True)
class SecretLeaked:
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
    | CallerCancelled
    | Shielded
    | Opened
    | Closing
    | Removing
    | Exiting
    | ToolExecuted
    | QuestionAsked
    | HandlerCalled
    | HandlerReturned
    | LogReceived
    | ProcessEnded
    | HealthChanged
    | ToolsOffered
    | ResourcesUpdated
    | Attempt
    | Attempted
    | ConnectionClosed
    | Inspected
    | Settled
    | StorageFailed
    | TokensRotated
    | AuthCalled
    | TokenFetched
    | RequestSigned
    | Sent
    | SessionIdRead
    | Audit
    | SecretLeaked
    | Crashed
    | Hung
)


@attrs.frozen(kw_only=True)
class Seen:
    """One HTTP request that a backend received, or one line.

    Attributes:
        verb: "" of a line.
        key: Of the call that it belongs to.
        is_retry: It is a later round of a modern request, which the backend had asked for input.
        asking, number: As it was sent.
        token: That it showed.
        turned_away: For want of a good one.
    """

    at: float
    backend_id: str
    verb: str
    method: str
    key: int | None
    session_id: str | None
    status: int | None
    outcome: str
    is_retry: bool = False
    auth_call: int | None = None
    number: int | None = None
    token: Token | None = None
    turned_away: bool = False


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
