"""The trace of a run: its events in order, the requests that backends received, and what remained at the end.

Two runs of one seed leave equal traces. Texts of errors are left out of the comparison: they may hold a session's tag,
which is made with a random key of the process.
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
    Operation,
    Question,
    RemoveBackend,
    Restore,
    SetAttributes,
    SetLogLevel,
    Subscribe,
    WatchChanges,
    brief,
)

__all__ = [
    "AnswerTaken",
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
    "Frozen",
    "HandlerCalled",
    "HandlerReturned",
    "HealthChanged",
    "Hung",
    "Inspected",
    "Killed",
    "LogReceived",
    "Names",
    "Opened",
    "Operated",
    "Outcome",
    "Principal",
    "ProcessEnded",
    "ProgressSent",
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
    "StateChanged",
    "StorageFailed",
    "Stored",
    "Token",
    "TokenFetched",
    "TokensRotated",
    "Told",
    "ToolExecuted",
    "ToolsOffered",
    "Trace",
    "What",
]

What: TypeAlias = Literal[
    "open", "restore", "call", "close", "add", "remove", "attributes", "level", "subscribe", "watch", "hold", "exit"
]
Operated: TypeAlias = (
    Open | Restore | Call | Close | AddBackend | RemoveBackend | SetAttributes | SetLogLevel | Subscribe | WatchChanges
)
"""The steps that are operations: they have an outcome."""

Principal: TypeAlias = Literal["anonymous", "opener", "caller", "stranger"]
"""Credentials are for the identity that opened the session, for that of a call, or for an anonymous session."""

Names: TypeAlias = tuple[tuple[str, str, str], ...]
"""Advertised tool, the backend that it belongs to, and its name there."""


@attrs.frozen(kw_only=True)
class Outcome:
    """How an operation ended.

    Attributes:
        error: The name of the exception's class.
        is_ours: The exception is a `VmcpError`.
        backend_id: The backend that the result or the error names.
        key: The call's key, as the answer repeats it.
        version: The version of the resource that was read.
        asked: The number of the question that was handed out; None: the call has an answer.
    """

    kind: Literal["ok", "error", "cancelled"]
    error: str = ""
    is_ours: bool = False
    may_have_executed: bool | None = None
    backend_id: str | None = None
    key: int | None = None
    version: int | None = None
    asked: int | None = None
    text: str = attrs.field(default="", eq=False)


@attrs.frozen(kw_only=True)
class Began:
    """An operation began: a step, the exit of an instance, or the end of a block that held a session.

    Attributes:
        life: The opening or restoring that the session came from, by its `op`.
        state: The session's state.
        name: The advertised name that is called.
        target: The backend id and own name that the session's routing table has for the name.
        nested: Made from inside a call of the same session.
        found: The state of the called, added or removed backend in the session; "": the session does not have it,
            "INCOMPLETE": DEGRADED for want of an optional list.
        answers: The call whose question this one answers, by its `op`.
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
    answers: int | None = None


@attrs.frozen(kw_only=True)
class Ended:
    at: float
    op: int
    outcome: Outcome


@attrs.frozen(kw_only=True)
class CallerCancelled:
    """The task that waits for the operation was cancelled."""

    at: float
    op: int


@attrs.frozen(kw_only=True)
class Shielded:
    """A call's progress callback shielded itself: the library cannot end the call at its deadline any more."""

    at: float
    op: int


@attrs.frozen(kw_only=True)
class Opened:
    """
    Attributes:
        row: The session's row, as `Stored` numbers it.
        connected: In configured order.
    """

    at: float
    op: int
    session: int
    row: int
    connected: tuple[str, ...]
    tools: Names


@attrs.frozen(kw_only=True)
class Closing:
    """A close is asked for in the very next step of this task.

    Attributes:
        found: The session's state just before; the close that finds OPEN decides between terminate and suspend.
        drain_timeout: s; the factory's where the caller gave none.
        in_flight: `Session.in_flight` just before.
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
    """`remove_backend` is called in the very next step of this task.

    Attributes:
        session_id: The id that the backend gave to its session, if it gave one.
    """

    at: float
    op: int
    life: int
    backend_id: str
    drain_timeout: float
    session_id: str | None


@attrs.frozen(kw_only=True)
class Exiting:
    """The block of a factory is left, or (`cancelled`) the scope around the block was cancelled."""

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
class ProgressSent:
    """A tool reported progress, if the backend can send during a call."""

    at: float
    backend_id: str
    key: int


@attrs.frozen(kw_only=True)
class QuestionAsked:
    """A tool's request to its client has ended. A modern backend's tool runs anew with each round, and notes it again.

    Attributes:
        number: The question's number within its call.
        declared: The client declared the capability for this method; None: the backend cannot know.
    """

    at: float
    backend_id: str
    key: int
    number: int
    kind: Question
    declared: bool | None
    outcome: Literal["right", "wrong", "refused", "silence"]


@attrs.frozen(kw_only=True)
class AnswerTaken:
    """A backend goes on with a call, since the question that was handed out has an answer.

    Attributes:
        key, number: The call that asked, and the question's number within the call.
        by: The operation that answered.
    """

    at: float
    backend_id: str
    key: int
    number: int
    by: int


@attrs.frozen(kw_only=True)
class HandlerCalled:
    """A handler was called.

    Attributes:
        session, backend_id, caller: From its `ServerRequest`: the session's number, the backend, the caller's subject.
        key, number: The call that the question belongs to, and the question's number within the call.
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
    """The handler returned, raised or was cancelled."""

    at: float
    key: int
    number: int


@attrs.frozen(kw_only=True)
class LogReceived:
    """The handler for log messages was called. The attributes are those of `HandlerCalled`."""

    at: float
    session: int
    backend_id: str
    caller: str | None
    key: int
    number: int


@attrs.frozen(kw_only=True)
class ProcessEnded:
    """A process ended.

    Attributes:
        status: Its exit status; below 0: the signal that ended it.
        by_itself: The library had not asked it to end.
    """

    at: float
    backend_id: str
    pid: int
    manners: Manners
    status: int
    by_itself: bool


@attrs.frozen(kw_only=True)
class HealthChanged:
    """From now on a backend is healthy, or is not. A fault may have ended a little before it is noticed here."""

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
    """The backend's resources have this version from now on; the first is 0."""

    at: float
    backend_id: str
    version: int


@attrs.frozen(kw_only=True)
class Attempt:
    """A connector was asked for a connection.

    Attributes:
        op: The opening, restoring or adding that the backend was passed to.
        resumed: The connector got the record of an earlier connection.
    """

    at: float
    number: int
    op: int
    instance: int
    backend_id: str
    resumed: bool


@attrs.frozen(kw_only=True)
class Attempted:
    """The connector returned or raised.

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
    """The state of an open session.

    Attributes:
        members: For each backend: its id, its state, and whether `failures` names it.
    """

    at: float
    life: int
    members: tuple[tuple[str, str, bool], ...]
    tools: Names


@attrs.frozen(kw_only=True)
class Settled:
    """An open session and its row in the storage, seen while all tasks wait.

    Attributes:
        row, said: Each connected backend's id and session id, in the row and in `Session.backend_sessions`.
        unbound: Advertised tools that the row binds to no backend, or to another.
        health: For each backend: its id, calls, errors and calls in flight.
        is_written: The row equals `Session.metadata`.
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
    """A fault struck an operation of an instance for a session."""

    at: float
    operation: Operation
    session: int
    instance: int


@attrs.frozen(kw_only=True)
class Stored:
    """The storage has done what an instance asked for; for a `load`, the row was read.

    Attributes:
        row: The number of the row. A later row of the same session id is another one: a session that was opened anew
            under an id that was terminated long before. None: there was no row to delete.
        mark: The number of its mark of use, which is another one for each `SessionMetadata.used_at`.
        records: Each stored backend, and its session id.
        tools: Each bound tool, and its backend.
        attributes: The number of the operation that has set them; 0: none has.
    """

    at: float
    instance: int
    operation: Operation
    session: int
    row: int | None
    version: int = 0
    mark: int = 0
    records: tuple[tuple[str, str | None], ...] = ()
    tools: tuple[tuple[str, str], ...] = ()
    attributes: int = 0


@attrs.frozen(kw_only=True)
class Told:
    """The observer of an instance was told of the end of a call, of an opening or of the end of a session.

    Attributes:
        outcome: Of a call as its operation's `Outcome` says, of a session how it ended.
    """

    at: float
    instance: int
    what: Literal["call", "opened", "closed"]
    outcome: str = ""


@attrs.frozen(kw_only=True)
class StateChanged:
    """The observer of an instance was told that a session shows another state of a backend."""

    at: float
    instance: int
    session: int
    backend_id: str
    old: str
    new: str


@attrs.frozen(kw_only=True)
class Frozen:
    """None of the tasks of this instance takes a step until then."""

    at: float
    instance: int
    until: float


@attrs.frozen(kw_only=True)
class Killed:
    """The process of this instance is gone. Its operations have no outcome."""

    at: float
    instance: int


@attrs.frozen
class Token:
    """A token for a guarded backend.

    Attributes:
        generation: Counts the rotations, from 1.
    """

    backend_id: str
    principal: Principal
    generation: int


@attrs.frozen(kw_only=True)
class TokensRotated:
    """A guarded backend accepts no older generation from now on."""

    at: float
    backend_id: str
    generation: int


@attrs.frozen(kw_only=True)
class AuthCalled:
    """The factory's `auth` was called for the credentials of a request.

    Attributes:
        number: Identifies this call of `auth`; other events name it as `auth_call`.
        attempt: The attempt that made the connection of the request.
        gives: `auth` returned credentials, not None.
        after: The call of `auth` before, in the same task, if its request was refused with HTTP 401.
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
    """Fetching a new token has ended; without a token if there was none, or if the request was cancelled.

    Attributes:
        since: The fetching began at this time.
    """

    at: float
    since: float
    auth_call: int
    token: Token | None


@attrs.frozen(kw_only=True)
class RequestSigned:
    """A request got its token, and is about to be sent."""

    at: float
    auth_call: int
    token: Token


@attrs.frozen(kw_only=True)
class Sent:
    """A request was handed to the transport.

    Attributes:
        auth_call: The call of `auth` for this request; None: there was none.
        number: The request's number, the same when it is sent again; None: the factory has no `auth`.
    """

    at: float
    backend_id: str
    verb: str
    session_id: str | None
    instance: int = 0
    auth_call: int | None = None
    number: int | None = None


@attrs.frozen(kw_only=True)
class SessionIdRead:
    """The transport returned a response head with `Mcp-Session-Id`."""

    at: float
    backend_id: str
    session_id: str
    instance: int = 0
    auth_call: int | None = None


@attrs.frozen(kw_only=True)
class Audit:
    """Resources in use while no session is open.

    Attributes:
        tasks: Tasks in the nurseries of the factories.
        processes: Processes that run, are zombies, or have left a helper running.
        responses: Responses that are not closed.
        tokens: Tokens borrowed from limiters of the library.
    """

    at: float
    tasks: tuple[str, ...]
    processes: tuple[int, ...]
    responses: int
    tokens: int


@attrs.frozen(kw_only=True)
class SecretLeaked:
    """A secret in a log record or in an error's text or repr."""

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
    """All tasks wait, and no deadline will wake one."""

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
    | ProgressSent
    | QuestionAsked
    | AnswerTaken
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
    | Stored
    | Told
    | StateChanged
    | Frozen
    | Killed
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
    """One HTTP request or stdio line that a backend received.

    Attributes:
        verb: The HTTP method; "" for a line.
        key: The call that it belongs to.
        state: The `requestState` of a later round; None: the first request of its call.
        name: The tool or prompt that it names.
        auth_call, number: As in `Sent`.
        token: The token in its Authorization header.
        turned_away: The backend answered 401 since the token was not good.
        is_modern: It is a request of the stateless era.
        level: The level of log messages that it asks for.
    """

    at: float
    backend_id: str
    verb: str
    method: str
    key: int | None
    session_id: str | None
    status: int | None
    outcome: str
    state: str | None = None
    name: str = ""
    auth_call: int | None = None
    number: int | None = None
    token: Token | None = None
    turned_away: bool = False
    is_modern: bool = False
    level: str | None = None


@attrs.frozen(kw_only=True)
class Remains:
    """The state when every factory had closed.

    Attributes:
        rows: Numbers of the sessions in the storage.
        stored_ids: Backend session ids in those rows.
        alive: Backend sessions that their backends still hold.
        sessions: For each session that was opened: its life, state and calls in flight.
        broken: Exceptions in scripted backends; each is a bug of the simulation.
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
