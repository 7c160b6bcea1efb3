"""The backends of one session: connected side by side, each behind a boundary of its own, and connected anew when they
went away.

Each connection is a task of its own (`connecting.py`). While a backend is missing, it has one more task, which tries to
connect it again.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

from trio_vmcp._nursery import start_clean, start_task
from trio_vmcp._session.connecting import Attempt, SessionParts, close_connection
from trio_vmcp._session.directory import MOST_REMOVED
from trio_vmcp._session.life import Phase
from trio_vmcp._session.member import (
    Away,
    Connecting,
    Failing,
    Member,
    NoPublisher,
    Ready,
    Replacing,
    Retrying,
    State,
    Stopped,
    Unconfigured,
    Waking,
    ignore_transition,
    visible_changes,
)
from trio_vmcp._session.trial import try_until_answered
from trio_vmcp.errors import NoBackends, SessionClosed
from trio_vmcp.metadata import BackendRecord
from trio_vmcp.models import Backend, BackendFailure, BackendStatus

__all__ = ["Membership"]

logger = logging.getLogger("trio_vmcp.session")


@attrs.define(eq=False)
class Membership:
    """Which backends belong to a session.

    Attributes:
        members: By backend id, in configured order. A member that is missing stays a member.
        all_reported: Every backend of the opening has connected or failed, or takes longer to start than its time.
    """

    members: dict[str, Member]
    _session: SessionParts
    all_reported: trio.Event = attrs.field(factory=trio.Event, init=False)
    _unreported: int = attrs.field(init=False)
    _places: trio.CapacityLimiter = attrs.field(init=False)
    _connecting: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _removed: dict[str, Member] = attrs.field(factory=dict, init=False)  # the latest of each id, to be shown
    _leaving: set[Member] = attrs.field(factory=set, init=False)  # removed, and not yet gone
    _services: trio.Nursery | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        for member in self.members.values():
            member.listener = self._on_transition
        self._places = trio.CapacityLimiter(self._session.settings.max_backend_init_concurrency)
        self._unreported = sum(member.backend is not None for member in self.members.values())
        if not self._unreported:
            self.all_reported.set()

    @property
    def failures(self) -> tuple[BackendFailure, ...]:
        return tuple(member.failure for member in self.members.values() if member.failure is not None)

    @property
    def records(self) -> tuple[BackendRecord, ...]:
        return tuple(member.record for member in self.members.values() if member.record is not None)

    @property
    def statuses(self) -> dict[str, BackendStatus]:
        """By backend id; of those that were removed as well."""
        return {known.backend_id: known.status for known in (*self.members.values(), *self._removed.values())}

    # --- the session's phases

    async def connect_all(self, services: trio.Nursery) -> None:
        """Begin all attempts from one task, as places get free, in the caller's order: Trio starts tasks in any."""
        self._services = services
        with self._connecting:
            for member in list(self.members.values()):  # once the session is open, backends may come and go
                if member.backend is None:
                    continue
                await self._places.acquire_on_behalf_of(member)
                if member.is_removed:
                    self._note_reported(member)
                    continue
                self._begin(member, member.backend, partial(self._note_reported, member))

    def note_opening_over(self) -> None:
        """The opening is over: a backend that is not connected is missing, for a reason.

        Raises:
            NoBackends: Fewer than `min_backends` are connected.
        """
        settings = self._session.settings
        for member in self.members.values():
            if isinstance(member.state, Connecting) and member.failure is None:
                member.wait_longer(
                    f"is still connecting after {settings.session_init_timeout} s (session_init_timeout)"
                )
        connected = sum(member.connection is not None for member in self.members.values())
        if connected < settings.min_backends:
            raise NoBackends(self.failures, connected, settings.min_backends)

    def cancel_connecting(self) -> None:
        """The session drains: no backend joins any more, except where calls in flight wait for a new connection."""
        self._connecting.cancel(reason="session closed")
        for member in self.members.values():
            if not isinstance(member.state, Replacing | Waking):
                member.cancel_connecting("session closed")

    def cancel_replacing(self) -> None:
        """The session parts: no call is left that waits for a connection."""
        for member in self.members.values():
            member.cancel_connecting("session closed")

    async def close_connections(self) -> None:
        """Close every connection, side by side. Bounded by the caller's scope; raises for no backend."""
        async with trio.open_nursery() as goodbyes:
            for member in (*self.members.values(), *self._leaving):
                for connection in member.connections:
                    start_task(goodbyes, close_connection, self._session, member, connection)

    def close(self) -> None:
        """The session has closed: no waiter waits for a backend any longer."""
        self.cancel_replacing()
        for member in self._leaving:
            member.gone.set()
        # Let go of the session: what does not refer to itself is freed at once, and not by the garbage collector.
        self._session = attrs.evolve(self._session, publisher=NoPublisher())
        for member in (*self.members.values(), *self._removed.values(), *self._leaving):
            member.listener = ignore_transition

    # --- members that come and go

    async def add(self, member: Member, backend: Backend) -> None:
        """Take a backend in, and wait until it has joined or failed. Cancelled, the caller stops waiting.

        Raises:
            ValueError: There is one of this id.
            SessionClosed: The session closed first.
        """
        known = self.members.get(backend.id)
        if known is not None:
            if not isinstance(known.state, Unconfigured):
                raise ValueError(f"a backend with the id {backend.id!r} is in this session already")
            member.take_over(known)
        self._removed.pop(backend.id, None)
        self.members[backend.id] = member
        member.listener = self._on_transition
        reported = trio.Event()
        self._begin(member, backend, reported.set)
        await reported.wait()
        if self._session.life.is_closing:
            raise SessionClosed(f"the session closed before backend {backend.id!r} had joined it")

    def remove(self, backend_id: str, drain_timeout: float) -> Member:
        """Take no more calls for a backend, and close its connections once the calls that it has have ended.

        Raises:
            ValueError: There is none of this id.
        """
        member = self.members.pop(backend_id, None)
        if member is None:
            raise ValueError(f"no backend {backend_id!r} in this session")
        self._leaving = {leaving for leaving in self._leaving if not leaving.gone.is_set()} | {member}
        self._removed[backend_id] = member
        if len(self._removed) > MOST_REMOVED:
            del self._removed[next(iter(self._removed))]
        member.remove(trio.current_time() + drain_timeout)
        return member

    def _on_transition(self, member: Member, before: State, why: str) -> None:
        """What follows from a new state: one log record, the task that retries, and what callers are told."""
        state = member.state
        self._log_transition(member, before, why)
        self._session.reporter.report_state(member.backend_id, before.shown, state.shown, why, member.since)
        if isinstance(state, Away | Replacing):
            self._ensure_retrying(member)
        elif isinstance(state, Failing):
            self._start_trials(member, state)
        elif isinstance(state, Waking) and member.backend is not None:
            start_clean(self._nursery, self._wake, member, member.backend, state)
        changes = visible_changes(before, state)
        if changes or isinstance(state, Stopped) or isinstance(before, Waking):  # the row says which session it has
            self._session.publisher.member_changed(member, changes)

    def _log_transition(self, member: Member, before: State, why: str) -> None:
        state = member.state
        level, text = logging.DEBUG, f"goes from {type(before).__name__} to {type(state).__name__}: {why}"
        is_missing = isinstance(state, Connecting | Away | Retrying) and state.failure is not before.failure
        if is_missing and state.failure is not None:
            level, text = logging.WARNING, f"is missing ({state.failure.reason.value}): it {state.failure.detail}"
        elif isinstance(state, Failing | Replacing):
            level, text = logging.WARNING, f"is {state.shown.value}: it {state.cause.detail}"
        elif isinstance(state, Stopped) and state.cause is not None:
            level, text = logging.WARNING, f"was not connected for a call: it {state.cause.detail}"
        elif isinstance(state, Ready) and not isinstance(before, Connecting | Waking):
            level, text = logging.INFO, "is ready again"
        if not logger.isEnabledFor(level):
            return
        extra = {"session": self._session.tag, "backend_id": member.backend_id}
        logger.log(level, "%s: backend %r %s", self._session.tag, member.backend_id, text, extra=extra)

    def _note_reported(self, member: Member) -> None:
        """A backend of the opening has joined or failed, or takes longer to start than the opening waits."""
        self._places.release_on_behalf_of(member)
        self._unreported -= 1
        if not self._unreported:
            self.all_reported.set()

    # --- connecting, and connecting anew

    @property
    def _nursery(self) -> trio.Nursery:
        assert self._services is not None  # `connect_all` comes first
        return self._services

    def _begin(self, member: Member, backend: Backend, on_reported: Callable[[], None] | None = None) -> Attempt:
        """Begin to connect. Once the attempt has reported, the member has joined or has a failure."""
        attempt = Attempt(self._session, member, backend, on_reported)
        start_clean(self._nursery, attempt.run)
        return attempt

    async def _wake(self, member: Member, backend: Backend, waking: Waking) -> None:
        """Connect a stopped backend for the calls that wait, at once: with no place and in no line, in which what other
        backends and sessions take would be time of these calls.

        A program begins when the one before has ended, within `teardown_timeout`: both may use one file or port.
        """
        if backend.transport == "stdio":
            for connection in member.connections:
                await connection.closed.wait()
        if member.state is waking:  # else it was removed, or the session closes
            self._begin(member, backend)

    def _is_retried(self, member: Member) -> bool:
        """Whether it is to be connected without a call."""
        return member.may_join(self._session.life) and not isinstance(member.state, Waking)

    def _ensure_retrying(self, member: Member) -> None:
        """Have a missing backend tried again, unless the task that does so is running."""
        if member.retry is None and member.backend is not None and self._is_retried(member):
            member.retry = trio.CancelScope()
            start_clean(self._nursery, self._retry, member, member.backend, member.retry)

    def _start_trials(self, member: Member, failing: Failing) -> None:
        """Have a backend asked whose circuit is open. Each such state has a task of its own, which ends with it."""
        max_delay = self._session.settings.reconnect_max_delay
        start_clean(self._nursery, try_until_answered, member, failing, self._session.life, max_delay)

    async def _retry(self, member: Member, backend: Backend, scope: trio.CancelScope) -> None:
        """Until it has a connection, the session closes or the backend is removed."""
        life = self._session.life
        with scope:
            await life.reached(Phase.OPEN)
            await member.reconnects.wait_until_allowed()
            while self._is_retried(member):
                await self._connect_anew(member, backend)
        member.retry = None
        self._ensure_retrying(member)  # it joined, was cancelled, and has lost its session since

    async def _connect_anew(self, member: Member, backend: Backend) -> None:
        """One more attempt, or the wait for its time. If calls wait for a new connection and the next turn is not due,
        they fail now.
        """
        reconnects = member.reconnects
        # Place before line: all sessions share the line, so its holder must not wait for a place of one session.
        # The principal's line before the endpoint's, for the same reason: an attempt that hangs keeps it longer.
        attempt: Attempt | None = None
        async with self._place(member), reconnects.own_turns.line:
            async with reconnects.endpoint_turns.line:
                if not self._is_retried(member):
                    return  # removed, or its session closed, in the step in which the line was handed over
                if reconnects.is_due:
                    member.start_retrying()
                    attempt = self._begin(member, backend)
                    await reconnects.endpoint_turns.hold_line(attempt.reported)
                else:
                    member.fail_replacing()
            if attempt is not None:
                await attempt.reported.wait()  # what cancels this task cancels the attempt, too
        if attempt is not None:
            await attempt.settled.wait()  # a program that takes long to start holds up neither place nor line
        if member.connection is None:
            await reconnects.wait_turn()

    @asynccontextmanager
    async def _place(self, member: Member) -> AsyncIterator[None]:
        """One of `max_backend_init_concurrency` places. A replacement needs none: calls wait for it."""
        if isinstance(member.state, Replacing):
            yield
            return
        await self._places.acquire_on_behalf_of(member)
        try:
            yield
        finally:
            self._places.release_on_behalf_of(member)
