"""One backend as a session sees it: one state, and explicit transitions.

Connecting ──► Ready ◄──► Failing          Failing: connected, but calls fail to reach it (the circuit is open)
    │           │  ▲         │
    │           ▼  └──────┐  ▼
    │        Replacing ───┼──►             Replacing: its backend session is gone, calls wait for a new connection
    ▼           ▼         │
   Away ◄──► Retrying ────┘                Away: missing until the next attempt is due

Ready ──► Stopped ◄──► Waking ──► Ready    it was not used for `Backend.stop_after`, until the next call

Connecting, Replacing, Retrying ──► Connecting, Retrying    its program takes longer to start than its time

Incomplete: Ready, but an optional list failed
Connecting, Replacing, Retrying, Waking ──► GivenUp     the session closes
every state ──► Removed                         it left the session
Unconfigured                                    restored without its backend: never connected
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import ClassVar, Literal, Protocol, TypeAlias

import attrs
import trio

from trio_vmcp._light_event import LightEvent
from trio_vmcp._limits import TimeLimit, progress_limit, request_limit
from trio_vmcp._protocol.headers import limited
from trio_vmcp._session.breaker import Breaker
from trio_vmcp._session.connection import Connection
from trio_vmcp._session.health import Health
from trio_vmcp._session.life import Life, Phase
from trio_vmcp._session.listing import Listing
from trio_vmcp._session.reconnects import Endpoints, Reconnects
from trio_vmcp._session.session_use import SessionUse, continues, restored_use
from trio_vmcp.connector import BackendClient
from trio_vmcp.errors import (
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnauthorized,
    BackendUnavailable,
    MessageTooLarge,
)
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord, endpoint_digest
from trio_vmcp.models import Backend, BackendFailure, BackendState, BackendStatus, FailureReason
from trio_vmcp.settings import FactorySettings

__all__ = [
    "EVERYTHING",
    "TRANSITIONS",
    "Away",
    "Change",
    "Connecting",
    "Failing",
    "GivenUp",
    "Incomplete",
    "Member",
    "NoPublisher",
    "Publisher",
    "Ready",
    "Removed",
    "Replacing",
    "Retrying",
    "State",
    "Stopped",
    "Unconfigured",
    "Waking",
    "ignore_transition",
    "new_member",
    "reason_of",
    "visible_changes",
]

# --- the states


@attrs.frozen(eq=False)
class _State:
    """What all states have.

    Attributes:
        shown: `session.backends` says this.
        connection: It takes calls; None: no call can be made now.
        failure: The entry in `session.failures`; None: there is none.
    """

    shown: ClassVar[BackendState]
    connection: Connection | None = attrs.field(default=None, init=False)
    failure: BackendFailure | None = attrs.field(default=None, init=False)


@attrs.frozen(eq=False)
class Connecting(_State):
    """The first attempt is under way, or waits for a place. `failure` is there (PENDING) once the opening is over, or
    once the backend's time to connect is.
    """

    shown = BackendState.CONNECTING
    failure: BackendFailure | None = None


@attrs.frozen(eq=False)
class Ready(_State):
    """Calls go through `connection`."""

    shown = BackendState.READY
    connection: Connection


@attrs.frozen(eq=False)
class Incomplete(Ready):
    """Ready, but an optional list failed: it is empty or as last seen, and is asked for again."""

    shown = BackendState.DEGRADED
    cause: BackendFailure


@attrs.frozen(eq=False)
class Failing(_State):
    """Calls fail to reach it, time after time, though its connection was not given up: the circuit is open."""

    shown = BackendState.DEGRADED
    connection: Connection
    cause: BackendFailure


@attrs.frozen(eq=False)
class Replacing(_State):
    """The backend no longer knows our session. One attempt replaces the connection, and calls wait for it.

    Attributes:
        over: Set when the attempt ended, well or not.
    """

    shown = BackendState.RECOVERING
    cause: BackendFailure
    over: trio.Event = attrs.field(factory=trio.Event, init=False)


@attrs.frozen(eq=False)
class Away(_State):
    """Missing, and no attempt is under way."""

    shown = BackendState.DEGRADED
    failure: BackendFailure


@attrs.frozen(eq=False)
class Retrying(_State):
    """Missing, and an attempt is under way in the background. Calls do not wait for it."""

    shown = BackendState.RECOVERING
    failure: BackendFailure


@attrs.frozen(eq=False)
class Stopped(_State):
    """It was not used for `Backend.stop_after`. The next call connects it.

    Attributes:
        cause: The latest call tried to, and failed; None: none has tried.
    """

    shown = BackendState.STOPPED
    cause: BackendFailure | None = None


@attrs.frozen(eq=False)
class Waking(_State):
    """It was stopped, and one attempt connects it. Calls wait for that.

    Attributes:
        over: Set when the attempt ended, well or not.
    """

    shown = BackendState.RECOVERING
    over: trio.Event = attrs.field(factory=trio.Event, init=False)


@attrs.frozen(eq=False)
class GivenUp(_State):
    """It was being connected when the session began to close."""

    shown = BackendState.DEGRADED
    failure: BackendFailure


@attrs.frozen(eq=False)
class Unconfigured(_State):
    """A member of a restored session, without a `Backend`: `restore_session` got none of this id."""

    shown = BackendState.DEGRADED
    failure: BackendFailure


@attrs.frozen(eq=False)
class Removed(_State):
    """It left the session. Calls that it had may still be answered."""

    shown = BackendState.REMOVED


State: TypeAlias = (
    Connecting
    | Ready
    | Incomplete
    | Failing
    | Replacing
    | Away
    | Retrying
    | Stopped
    | Waking
    | GivenUp
    | Unconfigured
    | Removed
)

TRANSITIONS: Mapping[type[State], frozenset[type[State]]] = {
    Connecting: frozenset({Connecting, Ready, Incomplete, Away, GivenUp, Removed}),
    Ready: frozenset({Incomplete, Failing, Replacing, Away, Stopped, Removed}),
    Incomplete: frozenset({Ready, Incomplete, Failing, Replacing, Away, Stopped, Removed}),
    Failing: frozenset({Ready, Incomplete, Replacing, Away, Removed}),
    Replacing: frozenset({Ready, Incomplete, Away, Retrying, GivenUp, Removed}),
    Away: frozenset({Retrying, Removed}),
    Retrying: frozenset({Ready, Incomplete, Away, Retrying, GivenUp, Removed}),
    Stopped: frozenset({Waking, Removed}),
    Waking: frozenset({Ready, Incomplete, Stopped, GivenUp, Removed}),
    GivenUp: frozenset({Removed}),
    Unconfigured: frozenset({Removed}),
    Removed: frozenset(),
}

# --- what a change of state is for the callers of the session

Change: TypeAlias = Literal["backend", "tools", "resources", "prompts"]
EVERYTHING: tuple[Change, ...] = ("backend", "tools", "resources", "prompts")


def visible_changes(before: State, state: State) -> tuple[Change, ...]:
    """What callers see of a transition. A backend that was missing and still is looks the same to them."""
    match state:
        case Removed():
            return EVERYTHING
        case Ready() if isinstance(before, Waking):
            return state.connection.new_lists
        case Ready() if not isinstance(before, Ready | Failing):
            return ("backend", *state.connection.new_lists)
        case Away() | Retrying() if isinstance(before, Ready | Failing | Replacing):
            return ("backend",)
        case _:
            return ()


class Publisher(Protocol):
    """What advertises, writes down and tells changes of a session's backends. Never waits."""

    def check_names(self, member: Member, listing: Listing) -> None:
        """
        Raises:
            MessageTooLarge: Names stay bound for the session's life, and this backend has had too many by now.
        """
        ...

    def member_changed(self, member: Member, changes: Sequence[Change]) -> None:
        """A backend joined, was lost, or lists something else. Before the opening is over, no subscriber is told."""
        ...

    def resource_updated(self, member: Member, uri: str) -> None:
        """A resource that was subscribed to has new content, or may have."""
        ...


class NoPublisher(Publisher):
    """That of a session which is CLOSED."""

    def check_names(self, member: Member, listing: Listing) -> None:
        pass

    def member_changed(self, member: Member, changes: Sequence[Change]) -> None:
        pass

    def resource_updated(self, member: Member, uri: str) -> None:
        pass


class Cancellable(Protocol):
    """An attempt to connect a member."""

    def cancel(self, *, reason: str) -> None: ...


class StateListener(Protocol):
    """Is called after each transition, in the same task step."""

    def __call__(self, member: Member, before: State, why: str, /) -> None: ...


_REASONS: dict[type[BackendError], FailureReason] = {
    BackendUnavailable: FailureReason.UNREACHABLE,
    BackendTimeout: FailureReason.TIMEOUT,
    BackendUnauthorized: FailureReason.UNAUTHORIZED,
    BackendProtocolError: FailureReason.PROTOCOL,
    BackendRejected: FailureReason.REJECTED,
    MessageTooLarge: FailureReason.LIMIT,
}


def reason_of(error: BackendError) -> FailureReason:
    """Why a backend is missing that failed with this error."""
    return next((_REASONS[kind] for kind in type(error).__mro__ if kind in _REASONS), FailureReason.PROTOCOL)


def ignore_transition(member: Member, before: State, why: str, /) -> None: ...


@attrs.define(eq=False)
class Member:
    """A backend of one session.

    Attributes:
        backend: Its configuration; None: it is Unconfigured.
        identity: Its handshakes, lists and streams carry this identity's credentials.
        request_limit: Of a call that has no timeout of its own.
        progress_limit: Of the time without progress of a call; None: none.
        stored: Its record in the metadata, as of the restore or of the connection before.
        state: Written by `to` alone.
        since: When `session.backends` last began to show another state, UTC.
        last_failure: The latest failure, also once the backend is connected again.
        attempts: Those whose tasks have not ended. Cancelling one has no effect once its connection has joined.
        connections: Those that joined and are not closed yet.
        retry: The cancel scope of the background task that connects it anew; None: no such task is running.
        listing: What it offers, as last seen; None before the first time.
        subscriptions: The session wants updates of these URIs; the count is that of `subscribe_resource` calls.
        gone: Set once it was removed and all its connections are closed.
        begun_at: `trio.current_time()` when the latest attempt began; None: there was none.
        waiting: Calls that wait for it to be connected anew.
        listener: Is called after each transition.
    """

    backend_id: str
    backend: Backend | None
    request_limit: TimeLimit
    progress_limit: TimeLimit | None
    breaker: Breaker
    reconnects: Reconnects
    state: State
    identity: Identity | None = attrs.field(default=None, repr=False)
    stored: BackendRecord | None = None
    since: datetime = attrs.field(factory=lambda: datetime.now(UTC), init=False)
    last_failure: BackendFailure | None = attrs.field(init=False)
    health: Health = attrs.field(factory=Health, init=False)
    _failing_since: datetime | None = attrs.field(default=None, init=False)  # of use while calls fail
    attempts: tuple[Cancellable, ...] = attrs.field(default=(), init=False, repr=False)
    connections: tuple[Connection, ...] = attrs.field(default=(), init=False)
    retry: trio.CancelScope | None = attrs.field(default=None, init=False, repr=False)
    listing: Listing | None = attrs.field(default=None, init=False)
    subscriptions: Counter[str] = attrs.field(factory=Counter, init=False)
    gone: LightEvent = attrs.field(factory=LightEvent, init=False, repr=False)
    begun_at: float | None = attrs.field(default=None, init=False)
    waiting: int = attrs.field(default=0, init=False)
    listener: StateListener = attrs.field(default=ignore_transition, init=False, repr=False)
    _used_at: float = attrs.field(default=-math.inf, init=False)  # of connections that are closed
    _may_resume: bool = attrs.field(default=True, init=False)  # False: the stored backend session is known to be gone
    _use: SessionUse = attrs.field(init=False)  # of the backend session that `stored` is about

    def __attrs_post_init__(self) -> None:
        self._use = restored_use(self.stored)
        self.last_failure = self.state.failure

    def renew_identity(self, identity: Identity) -> None:
        """See `SessionOwner.renew_identity`."""
        self.identity = identity
        if self.connection is not None:
            self.connection.renew_identity(identity)

    @property
    def connection(self) -> Connection | None:
        """The connection that takes calls; None while it is missing."""
        return self.state.connection

    @property
    def client(self) -> BackendClient | None:
        """The live connection; None while it is missing."""
        connection = self.state.connection
        return None if connection is None else connection.client

    @property
    def failure(self) -> BackendFailure | None:
        """Why it is missing; None once it is connected."""
        return self.state.failure

    @property
    def is_removed(self) -> bool:
        return isinstance(self.state, Removed)

    @property
    def record(self) -> BackendRecord | None:
        """What the metadata keeps of it. A member never leaves the metadata because it is missing."""
        connection = self.connection
        record, use = (self.stored, self._use) if connection is None else (connection.record, connection.use)
        if record is None or record.is_loss_untold == use.is_loss_untold:
            return record
        return attrs.evolve(record, is_loss_untold=use.is_loss_untold)

    def take_over(self, unconfigured: Member) -> None:
        """It is in the row, and was not passed to the restore: go on from its record."""
        self.stored, self._use = unconfigured.stored, restored_use(unconfigured.stored)

    @property
    def resume(self) -> BackendRecord | None:
        """What a connector may resume: a backend session's id is sent to the endpoint that gave it, and to no other."""
        if not self._may_resume or self.backend is None or self.stored is None:
            return None
        return self.stored if self.stored.endpoint_digest == endpoint_digest(self.backend) else None

    @property
    def status(self) -> BackendStatus:
        record, health = self.record, self.health
        known = record is not None and record.protocol_version != ""
        return BackendStatus(
            backend_id=self.backend_id,
            state=self.state.shown,
            since=self.since,
            era=record.era if record is not None and known else None,
            protocol_version=record.protocol_version if record is not None and known else None,
            last_failure=self.last_failure,
            in_flight=sum(connection.in_flight for connection in self.connections),
            calls=health.calls,
            errors=health.errors,
            latency=health.latency,
            failing_since=self._failing_since if self.breaker.is_failing else None,
        )

    # --- its state

    def to(self, state: State, why: str) -> None:
        """Enter a state: the one place that says what becomes of a backend.

        Raises:
            RuntimeError: There is no such transition, which is a bug of ours.
        """
        before = self.state
        if type(state) not in TRANSITIONS[type(before)]:
            raise RuntimeError(
                f"backend {self.backend_id!r} does not go from {type(before).__name__} to {type(state).__name__}: {why}"
            )
        self.state = state
        if state.shown is not before.shown:
            self.since = datetime.now(UTC)
        if isinstance(state, Incomplete | Failing | Replacing | Stopped):
            self.last_failure = state.cause or self.last_failure
        elif state.failure is not None:
            self.last_failure = state.failure
        if isinstance(before, Replacing | Waking):
            before.over.set()
        self.listener(self, before, why)

    def may_join(self, life: Life) -> bool:
        """Whether a connection that gets ready now takes calls. While the session drains, only one that admitted calls
        wait for may still join.
        """
        match self.state:
            case Replacing() | Waking():
                return life.phase <= Phase.DRAINING
            case Connecting() | Away() | Retrying():
                return life.phase <= Phase.OPEN
            case _:
                return False

    def join(self, connection: Connection, listing: Listing | None) -> None:
        """An attempt has succeeded. `listing`: what was listed through it; None: what is known stays."""
        self.connections += (connection,)
        connection.used_at = trio.current_time()
        record = connection.record
        if self.stored is not None and self.backend is not None:  # else it is the first connection ever
            is_same = record is not None and continues(self.stored, record, self.backend)
            connection.use = self._use if is_same else self._use.after_loss()
        self._may_resume = True
        self.listing = listing or self.listing
        self.breaker.succeed()
        self.reconnects.note_joined()
        self.become_ready(connection, "connected")

    def become_ready(self, connection: Connection, why: str) -> None:
        """Calls go through this connection, and the lists are as `listing` says."""
        failures = {} if self.listing is None else self.listing.failures
        if failures:
            reason, detail = reason_of(next(iter(failures.values()))), "; it ".join(e.detail for e in failures.values())
            self.to(Incomplete(connection, self._new_failure(reason, detail)), detail)
        else:
            self.to(Ready(connection), why)

    def note_listed(self) -> None:
        """The lists were asked for again while it is connected."""
        if isinstance(self.state, Ready):
            failed = self.listing is not None and bool(self.listing.failures)
            if failed or isinstance(self.state, Incomplete):
                self.become_ready(self.state.connection, "its lists are complete")

    def fail(
        self, reason: FailureReason, detail: str, retry_after: float | None = None, *, is_of_endpoint: bool = False
    ) -> None:
        """An attempt has failed. The other arguments: see `Reconnects.note_failure`."""
        if isinstance(self.state, Waking):  # calls alone connect it
            self.to(Stopped(self._new_failure(reason, detail)), detail)
            return
        self.reconnects.note_failure(reason, retry_after, is_of_endpoint=is_of_endpoint)
        self.to(Away(self._new_failure(reason, detail)), detail)

    def note_unreached(self, error: BackendError, now: float, chance: float, *, was_trial: bool) -> None:
        """A request has failed to reach it. What `session.backends` says of that does not wait for the circuit to open.

        Args:
            chance: In [0, 1): of the delay until the next trial.
        """
        if self.breaker.is_open and not was_trial:
            return  # the circuit has refused it, or it was let through before: nothing new
        failure = self._note_failing(error, was_failing=self.breaker.is_failing)
        opened = self.breaker.fail(now, chance, was_trial=was_trial, at_least=limited(error.retry_after))
        if opened and isinstance(self.state, Ready):
            self.to(Failing(self.state.connection, failure), error.detail)

    def note_stream(self, error: BackendError | None) -> None:
        """The stream for changes was asked for again, which was open before. None: the backend has answered."""
        if error is None:
            self.breaker.succeed_stream()
            return
        was_failing = self.breaker.is_failing
        was_sent = error.may_have_executed or isinstance(error, BackendRejected)
        if self.breaker.fail_stream(was_sent=was_sent):
            self._note_failing(error, was_failing=was_failing)

    def _note_failing(self, error: BackendError, *, was_failing: bool) -> BackendFailure:
        if not was_failing:
            self._failing_since = datetime.now(UTC)
        failure = self.last_failure = BackendFailure(self.backend_id, reason_of(error), error.detail, 0.0)
        return failure

    def wait_longer(self, detail: str) -> None:
        """The opening is over, and the first attempt is not: the backend joins later."""
        self.to(Connecting(self._new_failure(FailureReason.PENDING, detail)), detail)

    def start_longer(self, detail: str) -> None:
        """Its program is alive, and takes longer to start than its time: the backend joins later. Calls that waited for
        a new connection wait no longer; those that wait for one that was stopped have a time of their own.
        """
        if isinstance(self.state, Waking):
            return
        pending = self._new_failure(FailureReason.PENDING, detail)
        self.to(Connecting(pending) if isinstance(self.state, Connecting) else Retrying(pending), detail)

    def start_retrying(self) -> None:
        """The next attempt begins. Where calls wait for it, they go on waiting."""
        if isinstance(self.state, Away):
            self.to(Retrying(self.state.failure), "its turn has come")

    def fail_replacing(self) -> None:
        """The endpoint's next turn is not due: calls do not wait for it."""
        if isinstance(self.state, Replacing):
            detail = self.state.cause.detail
            self.to(Away(self._new_failure(FailureReason.UNREACHABLE, detail)), detail)

    def note_connection_ended(self, connection: Connection, detail: str, *, is_of_endpoint: bool = False) -> None:
        """A connection ended by itself or crashed. Its backend session may still be there."""
        if self.connection is not connection:
            return
        self.stored, self._use = connection.record, connection.use_so_far
        self.fail(FailureReason.UNREACHABLE, detail, is_of_endpoint=is_of_endpoint)

    def replace_connection(self, connection: Connection, error: BackendError) -> None:
        """The backend no longer knows this connection's session. The first to report that has it replaced."""
        if self.connection is not connection:
            return
        self._discard_session_id(connection.record)
        self._use = connection.use_so_far.after_loss()
        connection.terminate = True  # it may live all the same: a proxy's page says 404, too
        connection.retire()
        cause = BackendFailure(self.backend_id, FailureReason.REJECTED, error.detail, 0.0)
        self.to(Replacing(cause), error.detail)

    def _discard_session_id(self, record: BackendRecord | None) -> None:
        """The backend session of this record is over, and its id is worth nothing any more."""
        self.stored, self._may_resume = None if record is None else attrs.evolve(record, session_id=None), False

    @property
    def used_at(self) -> float:
        """`trio.current_time()` when the latest call ended, also on a connection that was replaced since, or when the
        backend last joined; -inf before that.
        """
        return max([self._used_at, *(connection.used_at for connection in self.connections)])

    def is_in_use(self, connection: Connection) -> bool:
        """Whether it must not be stopped now, as far as the session knows."""
        is_ready = isinstance(self.state, Ready) and self.connection is connection
        has_calls = any(each.in_flight for each in self.connections)
        return not is_ready or has_calls or bool(self.waiting or self.subscriptions)

    def stop(self, connection: Connection, why: str) -> None:
        """Let go of a connection that is not in use. Its backend session ends with it."""
        record = connection.record
        self._discard_session_id(record)
        assert self.backend is not None
        is_stateless = self.stored is not None and record is not None and continues(record, self.stored, self.backend)
        self._use = connection.use_so_far if is_stateless else connection.use_so_far.after_loss()
        connection.terminate = True
        connection.retire()
        self.to(Stopped(), why)

    def wake(self) -> None:
        """A call needs it."""
        if isinstance(self.state, Stopped):
            self.to(Waking(), "a call needs it")

    def cancel_connecting(self, why: str) -> None:
        """The session closes: do not connect it any more."""
        if isinstance(self.state, Connecting | Replacing | Retrying | Waking):
            detail = "was still connecting when the session closed"
            self.to(GivenUp(self._new_failure(FailureReason.PENDING, detail)), why)
        self._cancel_attempts(why)

    def remove(self, drain_by: float) -> None:
        """Take no more calls, and connect no more. Calls that it has are cut off at `drain_by`."""
        why = "the backend was removed"
        self.listing = None
        self.to(Removed(), why)
        self._cancel_attempts(why)
        for connection in self.connections:
            connection.retire(drain_by)
        self._check_gone()

    def discard_attempt(self, attempt: Cancellable, connection: Connection | None) -> None:
        """The task of an attempt has ended, and its connection is closed."""
        self.attempts = tuple(each for each in self.attempts if each is not attempt)
        if connection is not None:
            self._used_at = self.used_at
            self.connections = tuple(each for each in self.connections if each is not connection)
        self._check_gone()

    def _cancel_attempts(self, why: str) -> None:
        for attempt in self.attempts:
            attempt.cancel(reason=why)
        if self.retry is not None:
            self.retry.cancel(reason=why)

    def _check_gone(self) -> None:
        if self.is_removed and not self.attempts:
            self.gone.set()

    def _new_failure(self, reason: FailureReason, detail: str) -> BackendFailure:
        elapsed = 0.0 if self.begun_at is None else trio.current_time() - self.begun_at
        return BackendFailure(self.backend_id, reason, detail, elapsed)

    # --- calls that cannot be made

    def require_reachable(self) -> None:
        """
        Raises:
            BackendUnavailable: The backend is missing, and not just being replaced; nothing was sent.
        """
        if self.connection is None and not isinstance(self.state, Replacing | Stopped | Waking):
            self.health.failed()
            raise self.missing()

    def missing(self) -> BackendUnavailable:
        """The error of a call that has no connection."""
        if self.is_removed:
            return BackendUnavailable(self.backend_id, "was removed from the session")
        cause = self.state.cause if isinstance(self.state, Stopped) else self.failure
        why = f": it {cause.detail}" if cause else ""
        return BackendUnavailable(self.backend_id, f"is not connected{why}")


def new_member(
    backend_id: str,
    backend: Backend | None,
    settings: FactorySettings,
    endpoints: Endpoints,
    stored: BackendRecord | None = None,
    *,
    identity: Identity | None = None,
) -> Member:
    """A backend that was not connected yet. `backend` None: it is in the row, and was not passed to the restore."""
    state: State
    if backend is None:
        detail = "was not among the backends that the session was restored with"
        state = Unconfigured(BackendFailure(backend_id, FailureReason.UNREACHABLE, detail, 0.0))
        reconnects = endpoints.no_reconnects()
    else:
        state = Connecting()
        reconnects = endpoints.reconnects(backend, identity)
    return Member(
        backend_id,
        backend,
        request_limit=request_limit(backend, settings),
        progress_limit=progress_limit(backend, settings),
        breaker=Breaker(endpoints.new_backoff()),
        reconnects=reconnects,
        state=state,
        identity=identity,
        stored=stored,
    )
