"""One backend as a session sees it: connecting, connected, or missing with a reason; and the way its calls take."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

import attrs
import trio

from trio_vmcp._session.admission import Call
from trio_vmcp._session.backoff import Backoff
from trio_vmcp._session.breaker import FAILURES_TO_OPEN, Breaker
from trio_vmcp._session.connection import Incarnation
from trio_vmcp._session.health import Health
from trio_vmcp._session.listing import Listing
from trio_vmcp._session.reconnects import Turns
from trio_vmcp.connector import BackendClient, OnProgress
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
from trio_vmcp.models import JSON, STATE_LOST, Backend, BackendFailure, BackendState, BackendStatus, FailureReason
from trio_vmcp.settings import FactorySettings

__all__ = ["Member", "new_member", "reason_of"]

# s. Whoever gives a backend less than this to be reached proves nothing about it.
TELLING_TIMEOUT = 1.0

_REASONS: dict[type[BackendError], FailureReason] = {
    BackendUnavailable: FailureReason.UNREACHABLE,
    BackendTimeout: FailureReason.TIMEOUT,
    BackendUnauthorized: FailureReason.UNAUTHORIZED,
    BackendProtocolError: FailureReason.PROTOCOL,
    BackendRejected: FailureReason.REJECTED,
    MessageTooLarge: FailureReason.LIMIT,
}


def reason_of(error: BackendError) -> FailureReason:
    """Why a backend is missing that failed so."""
    return next((_REASONS[kind] for kind in type(error).__mro__ if kind in _REASONS), FailureReason.PROTOCOL)


@attrs.define(eq=False)
class Member:
    """A backend of one session.

    Attributes:
        stored: Its record in the metadata, as of the restore or of the connection before.
        current: The connection that takes calls; None while it is missing.
        connections: Those that were begun and not yet let go of, `current` among them.
        listing: What it offers, as last seen; None before the first time.
        failure: Why it is missing; None once it is connected.
        last_failure: The latest `failure`, also when it is connected again.
        turns: At connecting to its endpoint, which all sessions share.
        retrying: Around the task that tries it again; None while there is no need.
        on_missing: Called when it has to be connected anew.
        recovery: While it is connected anew, and calls had better wait: set when that ended, well or not.
        subscriptions: URIs whose updates the session wants, and how many calls have asked for each and not failed.
        gone: It was removed, and all its connections were let go of.
        refused: How long it is left alone after it refused the credentials of this session, which says nothing about
            other sessions.
        relapses: How long a connection is kept at least though its stream says that its session is gone, or a 503 may
            say so: whoever says so of every session, and answers calls all the same, must not be greeted for ever.
        trusted_until: `trio.current_time()` until when a 503 says nothing about the session.
        not_before: `trio.current_time()` until when it is.
    """

    backend_id: str
    backend: Backend | None  # None: a stored member whose backend was not passed to restore_session
    breaker: Breaker
    refused: Backoff
    relapses: Backoff
    stored: BackendRecord | None = None
    current: Incarnation | None = attrs.field(default=None, init=False)
    connections: set[Incarnation] = attrs.field(factory=set, init=False)
    listing: Listing | None = attrs.field(default=None, init=False)
    failure: BackendFailure | None = attrs.field(default=None, init=False)
    last_failure: BackendFailure | None = attrs.field(default=None, init=False)
    health: Health = attrs.field(factory=Health, init=False)
    turns: Turns | None = attrs.field(default=None, init=False, repr=False)
    retrying: trio.CancelScope | None = attrs.field(default=None, init=False, repr=False)
    on_missing: Callable[[Member], None] = attrs.field(default=lambda member: None, init=False, repr=False)
    recovery: trio.Event | None = attrs.field(default=None, init=False, repr=False)
    subscriptions: Counter[str] = attrs.field(factory=Counter, init=False)
    gone: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    begun_at: float | None = attrs.field(default=None, init=False)
    joined_at: float = attrs.field(default=0.0, init=False)
    trusted_until: float = attrs.field(default=-math.inf, init=False)
    not_before: float = attrs.field(default=0.0, init=False)
    _lost: bool = attrs.field(default=False, init=False)  # what is stored is not to be taken up again

    @property
    def client(self) -> BackendClient | None:
        """The live connection; None while it is missing."""
        return None if self.current is None else self.current.client

    @property
    def is_removed(self) -> bool:
        return self.health.state is BackendState.REMOVED

    @property
    def record(self) -> BackendRecord | None:
        """What the metadata keeps of it. A member never leaves it because it is missing."""
        return self.client.record if self.client is not None else self.stored

    @property
    def resume(self) -> BackendRecord | None:
        """What a connector may take up again: a backend session's id goes to nobody but the endpoint that gave it."""
        if self._lost or self.backend is None or self.stored is None:
            return None
        return self.stored if self.stored.endpoint_digest == endpoint_digest(self.backend) else None

    @property
    def status(self) -> BackendStatus:
        record, health = self.record, self.health
        known = record is not None and record.protocol_version != ""
        return BackendStatus(
            backend_id=self.backend_id,
            state=health.state,
            since=health.since,
            era=record.era if record is not None and known else None,
            protocol_version=record.protocol_version if record is not None and known else None,
            last_failure=self.last_failure,
            in_flight=sum(incarnation.in_flight for incarnation in self.connections),
            calls=health.calls,
            errors=health.errors,
            latency=health.latency,
        )

    # --- what becomes of its connection

    def joined(self, incarnation: Incarnation, listing: Listing | None) -> None:
        self.current, self.failure, self._lost = incarnation, None, False
        self.joined_at = trio.current_time()
        self.listing = listing or self.listing
        self.breaker.succeed()
        self.refused.reset()
        self.enter(BackendState.READY)

    def enter(self, state: BackendState) -> None:
        if not self.is_removed:  # its last calls may still be answered
            self.health.enter(state)

    def fail(self, reason: FailureReason, detail: str) -> BackendFailure:
        elapsed = 0.0 if self.begun_at is None else trio.current_time() - self.begun_at
        self.failure = self.last_failure = BackendFailure(self.backend_id, reason, detail, elapsed)
        return self.failure

    def lose_session(self, incarnation: Incarnation, error: BackendError) -> None:
        """The backend no longer knows this connection's session. Whoever notices it first has it replaced."""
        if self.current is not incarnation:
            return
        assert incarnation.client is not None
        # Its id is worth nothing any more; nobody is to take it up again.
        self.stored, self._lost = attrs.evolve(incarnation.client.record, session_id=None), True
        self.last_failure = BackendFailure(self.backend_id, FailureReason.REJECTED, error.detail, 0.0)
        self.current, self.recovery = None, trio.Event()
        incarnation.terminate = True  # it may live all the same: a proxy's page says 404, too
        incarnation.end()
        self.enter(BackendState.RECOVERING)
        self.on_missing(self)

    def relapse(self) -> float:
        """Its session is said to be gone by what no call depends on. Returns from when on, by `trio.current_time()`,
        that may be acted on: at once, unless the one before was gone soon, too.
        """
        if trio.current_time() - self.joined_at > self.relapses.max_delay:
            self.relapses.reset()
        return self.joined_at + self.relapses.next(random.random())

    def _may_replace_on_suspicion(self) -> bool:
        """A call met what may say that its session is gone, or only that the backend is busy. At once, unless that was
        acted on soon before: who is busy and is greeted for every call he cannot take is kept busy.
        """
        now = trio.current_time()
        if now < self.trusted_until:
            return False
        if now - self.trusted_until > self.relapses.max_delay:
            self.relapses.reset()
        self.trusted_until = now + self.relapses.next(random.random())
        return True

    def end_recovery(self) -> None:
        """Whoever waits for the connection looks at what came of it."""
        if self.recovery is not None:
            self.recovery.set()
            self.recovery = None

    def give_up(self, why: str) -> None:
        """Nobody is to connect it any more."""
        for incarnation in self.connections:
            incarnation.attempt.cancel(reason=why)  # of no effect on those that have joined
        if self.retrying is not None:
            self.retrying.cancel(reason=why)
        self.end_recovery()

    def remove(self, drain_by: float) -> None:
        """Take no more calls, and connect no more."""
        self.enter(BackendState.REMOVED)
        self.current = self.failure = self.listing = None
        self.give_up("the backend was removed")
        for incarnation in self.connections:
            incarnation.end(drain_by)
        self._look_gone()

    def let_go(self, incarnation: Incarnation) -> None:
        """This connection is no more."""
        self.connections.discard(incarnation)
        self._look_gone()

    def _look_gone(self) -> None:
        if self.is_removed and not self.connections:
            self.gone.set()

    # --- calls

    def require_reachable(self) -> None:
        """
        Raises:
            BackendUnavailable: The backend is missing, and not just being replaced; nothing was sent.
        """
        if self.current is None and self.recovery is None:
            self.health.failed()
            raise self._missing()

    async def request(
        self,
        call: Call,
        method: str,
        params: JSON,
        identity: Identity | None,
        timeout: float,
        on_progress: OnProgress | None,
    ) -> JSON:
        """One call, in its caller's task. What provably did not run because the backend had lost our session is sent
        once more, on the connection that replaces it.

        Raises:
            BackendError: As the client says; at once where the circuit is open or the backend is missing.
        """
        begun_at = trio.current_time()
        is_trial = False
        try:
            is_trial = self._pass_breaker(begun_at)
            raw = await self._ask(call, method, params, identity, begun_at + timeout, timeout, on_progress)
        except BackendError as error:
            self.health.failed()
            self._note_error(error, trio.current_time() - begun_at, is_trial)
            raise
        except BaseException:
            self.health.calls += 1
            if is_trial:
                self.breaker.give_up()
            raise
        self.health.answered(trio.current_time() - begun_at)
        self._note_answer()
        return raw

    async def _ask(
        self,
        call: Call,
        method: str,
        params: JSON,
        identity: Identity | None,
        deadline: float,
        timeout: float,
        on_progress: OnProgress | None,
    ) -> JSON:
        if self.current is not None:
            incarnation = self.current
            try:
                return await self._on(incarnation, call, method, params, identity, timeout, on_progress)
            except BackendError as error:
                if not call.session_lost:
                    raise
                if not error.may_have_executed:
                    self.lose_session(incarnation, error)
                else:  # a 503, which heals nothing for this call
                    if self.current is incarnation and self._may_replace_on_suspicion():
                        self.lose_session(incarnation, error)
                    raise
        incarnation = await self._recovered(method, deadline, timeout)
        left = max(deadline - trio.current_time(), 0.0)
        try:
            raw = await self._on(incarnation, call, method, params, identity, left, on_progress)
        except BackendTimeout as error:
            error.detail = f"did not answer {method!r} within {timeout} s (request_timeout), connecting anew included"
            raise
        meta = raw.get("_meta")
        return raw | {"_meta": (meta if isinstance(meta, dict) else {}) | {STATE_LOST: True}}

    async def _on(
        self,
        incarnation: Incarnation,
        call: Call,
        method: str,
        params: JSON,
        identity: Identity | None,
        timeout: float,
        on_progress: OnProgress | None,
    ) -> JSON:
        assert incarnation.client is not None
        incarnation.enter(call)
        try:
            return await incarnation.client.request(
                method, params, identity=identity, timeout=timeout, on_progress=on_progress
            )
        finally:
            incarnation.leave(call)

    async def _recovered(self, method: str, deadline: float, timeout: float) -> Incarnation:
        """The connection, once it was made anew.

        Raises:
            BackendUnavailable: It could not be.
            BackendTimeout: Not by then.
        """
        with trio.move_on_at(deadline):
            while self.recovery is not None:
                await self.recovery.wait()
            if self.current is None:
                raise self._missing()
            return self.current
        raise BackendTimeout(
            self.backend_id, f"was not connected anew for {method!r} within {timeout} s (request_timeout)"
        )

    def _missing(self) -> BackendUnavailable:
        if self.is_removed:
            return BackendUnavailable(self.backend_id, "was removed from the session")
        why = f": it {self.failure.detail}" if self.failure else ""
        return BackendUnavailable(self.backend_id, f"is not connected{why}")

    # --- what calls tell about it

    def _pass_breaker(self, now: float) -> bool:
        """Whether this call is a trial.

        Raises:
            BackendUnavailable: The circuit is open.
        """
        wait = self.breaker.admit(now)
        if wait is not None:
            raise BackendUnavailable(
                self.backend_id,
                f"failed {FAILURES_TO_OPEN} times in a row to be reached, and is tried again in {wait:.1f} s "
                "(reconnect_delay, reconnect_max_delay)",
            )
        return self.breaker.is_open

    def _note_error(self, error: BackendError, waited: float, was_trial: bool) -> None:
        """Whoever answers, be it with an error, is there."""
        # Calls that never got to a connection tell nothing about it; nor do errors of a callback of the caller's.
        tells_nothing = self.current is None or error.backend_id != self.backend_id
        if isinstance(error, BackendTimeout) and (error.may_have_executed or waited < TELLING_TIMEOUT):
            tells_nothing = True  # it was reached and is slow, or nobody knows
        if tells_nothing:
            if was_trial:
                self.breaker.give_up()
        elif not isinstance(error, BackendUnavailable | BackendTimeout):
            self._note_answer()
        elif self.breaker.fail(trio.current_time(), random.random(), was_trial=was_trial):
            self.last_failure = BackendFailure(self.backend_id, reason_of(error), error.detail, 0.0)
            self.enter(BackendState.DEGRADED)  # its calls fail, though its connection was not given up

    def _note_answer(self) -> None:
        if self.breaker.succeed() and self.current is not None:
            self.enter(BackendState.READY)


def new_member(
    backend_id: str, backend: Backend | None, settings: FactorySettings, stored: BackendRecord | None = None
) -> Member:
    """A backend that nobody has tried yet."""
    delays = settings.reconnect_delay, settings.reconnect_max_delay
    return Member(backend_id, backend, Breaker(Backoff(*delays)), Backoff(*delays), Backoff(*delays), stored)
