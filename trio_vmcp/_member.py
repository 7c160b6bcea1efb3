"""One backend as a session sees it: connecting, connected, or missing with a reason; and the way its calls take."""

from __future__ import annotations

import random

import attrs
import trio

from trio_vmcp._admission import Call
from trio_vmcp._breaker import FAILURES_TO_OPEN, Breaker
from trio_vmcp._health import Health
from trio_vmcp._incarnation import Incarnation
from trio_vmcp._listing import Listing
from trio_vmcp.client.interface import BackendClient, OnProgress
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

__all__ = ["Member", "new_member"]

_REASONS: dict[type[BackendError], FailureReason] = {
    BackendUnavailable: FailureReason.UNREACHABLE,
    BackendTimeout: FailureReason.TIMEOUT,
    BackendUnauthorized: FailureReason.UNAUTHORIZED,
    BackendProtocolError: FailureReason.PROTOCOL,
    BackendRejected: FailureReason.REJECTED,
    MessageTooLarge: FailureReason.LIMIT,
}


@attrs.define(eq=False)
class Member:
    """A backend of one session.

    Attributes:
        stored: Its record in the metadata, as of the restore or of the connection before.
        current: The connection that takes calls; None while it is missing.
        listing: What it offers, as last seen; None before the first time.
        failure: Why it is missing; None once it is connected.
        last_failure: The latest `failure`, also when it is connected again.
        attention: Set to wake whoever sees to its connection.
        recovery: While it is connected anew, and calls had better wait: set when that ended, well or not.
        subscriptions: URIs whose updates the session wants.
        supervision: Cancelled when nobody is to see to it any more.
        gone: Once it was removed: its connection was let go of.
    """

    backend_id: str
    backend: Backend | None  # None: a stored member whose backend was not passed to restore_session
    breaker: Breaker
    stored: BackendRecord | None = None
    current: Incarnation | None = attrs.field(default=None, init=False)
    listing: Listing | None = attrs.field(default=None, init=False)
    failure: BackendFailure | None = attrs.field(default=None, init=False)
    last_failure: BackendFailure | None = attrs.field(default=None, init=False)
    health: Health = attrs.field(factory=Health, init=False)
    attention: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    recovery: trio.Event | None = attrs.field(default=None, init=False, repr=False)
    subscriptions: set[str] = attrs.field(factory=set, init=False)
    supervision: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    gone: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    begun_at: float | None = attrs.field(default=None, init=False)

    @property
    def client(self) -> BackendClient | None:
        """The live connection; None while it is missing."""
        return None if self.current is None else self.current.client

    @property
    def record(self) -> BackendRecord | None:
        """What the metadata keeps of it. A member never leaves it because it is missing."""
        return self.client.record if self.client is not None else self.stored

    @property
    def resume(self) -> BackendRecord | None:
        """What a connector may take up again: a backend session's id goes to nobody but the endpoint that gave it."""
        if self.backend is None or self.stored is None or self.stored.endpoint_digest != endpoint_digest(self.backend):
            return None
        return self.stored

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
            in_flight=0 if self.current is None else self.current.in_flight,
            calls=health.calls,
            errors=health.errors,
            latency=health.latency,
        )

    def joined(self, incarnation: Incarnation, listing: Listing | None) -> None:
        self.current, self.failure = incarnation, None
        self.listing = listing or self.listing
        self.enter(BackendState.READY)

    def enter(self, state: BackendState) -> None:
        self.health.enter(state)

    def fail(self, reason: FailureReason, detail: str) -> BackendFailure:
        elapsed = 0.0 if self.begun_at is None else trio.current_time() - self.begun_at
        self.failure = self.last_failure = BackendFailure(self.backend_id, reason, detail, elapsed)
        return self.failure

    def fail_with(self, error: BackendError) -> BackendFailure:
        return self.fail(_REASONS.get(type(error), FailureReason.PROTOCOL), error.detail)

    def live_client(self) -> BackendClient:
        """The connection.

        Raises:
            BackendUnavailable: The backend is missing; nothing was sent.
        """
        if self.client is not None:
            return self.client
        why = f": it {self.failure.detail}" if self.failure else ""
        raise BackendUnavailable(self.backend_id, f"is not connected{why}")

    # --- calls

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
        self._pass_breaker(begun_at)
        try:
            raw = await self._ask(call, method, params, identity, begun_at + timeout, timeout, on_progress)
        except BackendError as error:
            self.health.failed()
            self._note_error(error)
            raise
        except BaseException:
            self.health.calls += 1
            self.breaker.give_up()
            raise
        self.health.answered(trio.current_time() - begun_at)
        self._note_connected()
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
        left = timeout
        if self.current is None and self.recovery is not None:
            await self._recovered(method, deadline, timeout)
            left = deadline - trio.current_time()
        self.live_client()
        first = self.current
        assert first is not None
        call.session_lost = False
        try:
            return await self._on(first, call, method, params, identity, left, on_progress)
        except BackendError as error:
            if not call.session_lost:
                raise
            self.lose_session(first, error)
            if error.may_have_executed:
                raise
        await self._recovered(method, deadline, timeout)
        self.live_client()
        second = self.current
        assert second is not None
        left = deadline - trio.current_time()
        raw = await self._on(second, call, method, params, identity, left, on_progress)
        return raw | {"_meta": (raw.get("_meta") or {}) | {STATE_LOST: True}}

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

    def lose_session(self, incarnation: Incarnation, error: BackendError) -> None:
        """The backend no longer knows this connection's session. Whoever notices it first has it replaced."""
        if self.current is not incarnation:
            return
        assert incarnation.client is not None
        # Its id is worth nothing any more; nobody is to take it up again.
        self.stored = attrs.evolve(incarnation.client.record, session_id=None)
        self.last_failure = BackendFailure(self.backend_id, FailureReason.REJECTED, error.detail, 0.0)
        self.current, self.recovery = None, trio.Event()
        incarnation.terminate = error.may_have_executed  # it was not said that the session is gone: let it go properly
        incarnation.end()
        self.enter(BackendState.RECOVERING)
        self.attention.set()

    async def _recovered(self, method: str, deadline: float, timeout: float) -> None:
        """Wait until the connection was made anew, or could not be: perhaps it was settled long ago."""
        with trio.move_on_at(deadline):
            if self.recovery is not None:
                await self.recovery.wait()
            return
        raise BackendTimeout(
            self.backend_id, f"was not connected anew for {method!r} within {timeout} s (request_timeout)"
        )

    def end_recovery(self) -> None:
        """Whoever waits for the connection looks at what came of it."""
        if self.recovery is not None:
            self.recovery.set()
            self.recovery = None

    def _pass_breaker(self, now: float) -> None:
        wait = self.breaker.admit(now)
        if wait is not None:
            raise BackendUnavailable(
                self.backend_id,
                f"failed {FAILURES_TO_OPEN} times in a row to be reached, and is tried again in {wait:.1f} s "
                "(reconnect_delay, reconnect_max_delay)",
            )

    def _note_error(self, error: BackendError) -> None:
        """Whoever answers, be it with an error, is there."""
        unreachable = isinstance(error, BackendUnavailable) or (
            isinstance(error, BackendTimeout) and not error.may_have_executed
        )
        if not unreachable:
            self._note_connected()
        elif self.breaker.fail(trio.current_time(), random.random()):
            self.fail_quietly(error)

    def fail_quietly(self, error: BackendError) -> None:
        """Its calls fail, though its connection was not given up."""
        self.last_failure = BackendFailure(self.backend_id, _REASONS[type(error)], error.detail, 0.0)
        if self.current is not None:
            self.enter(BackendState.DEGRADED)

    def _note_connected(self) -> None:
        if self.breaker.succeed() and self.current is not None:
            self.enter(BackendState.READY)


def new_member(
    backend_id: str, backend: Backend | None, settings: FactorySettings, stored: BackendRecord | None = None
) -> Member:
    """A backend that nobody has tried yet."""
    return Member(backend_id, backend, Breaker(settings.reconnect_delay, settings.reconnect_max_delay), stored)
