"""The backends of one session: connected side by side, each behind a boundary of its own, connected anew when they
went away, let go all at once.

Each connection is a task of its own: a new one can be made while calls on the one before still end. Beside it there is
another task for a backend only as long as it is missing: that one tries it again.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

from trio_vmcp._nursery import describe_crash, start_clean, start_if_open
from trio_vmcp._request_note import RequestNote, current_note
from trio_vmcp._session.connection import Incarnation
from trio_vmcp._session.listing import Listing, list_backend
from trio_vmcp._session.member import Member, reason_of
from trio_vmcp._session.observer import EVERYTHING, Observer
from trio_vmcp._session.reconnects import Reconnects
from trio_vmcp._session.refresh import Refresher
from trio_vmcp._session.row import SessionRow
from trio_vmcp.connector import BackendClient, BackendConnector
from trio_vmcp.errors import BackendError, BackendUnavailable, NoBackends, SessionClosed, session_tag
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord, endpoint_digest
from trio_vmcp.models import JSON, Backend, BackendFailure, BackendState, BackendStatus, FailureReason
from trio_vmcp.settings import FactorySettings

__all__ = ["Membership"]

logger = logging.getLogger("trio_vmcp.session")

# s. Two answers that take longer come from afar: then round trips are what an opening waits for, and all lists at once
# save some. Nearby they would cost three connections more, and gain nothing.
SLOW_HANDSHAKE = 0.02
MOST_REMOVED = 100  # backends that `session.backends` still shows
MOST_SUB_RESOURCE = 4096  # characters of a URI beyond the one that was subscribed to: a backend chooses them


@attrs.define(eq=False)
class Membership:
    """Who belongs to a session, and who of them is connected.

    Attributes:
        members: By backend id, in configured order. Nobody leaves because they are missing.
        all_settled: Every backend of the opening has connected or failed.
    """

    members: dict[str, Member]
    _connector: BackendConnector
    _identity: Identity | None
    _row: SessionRow
    _settings: FactorySettings
    _reconnects: Reconnects
    _observer: Observer
    all_settled: trio.Event = attrs.field(factory=trio.Event, init=False)
    _unsettled: int = attrs.field(init=False)
    _slots: trio.CapacityLimiter = attrs.field(init=False)
    _opened: trio.Event = attrs.field(factory=trio.Event, init=False)
    _closing: bool = attrs.field(default=False, init=False)  # nobody joins but who was connected, and calls wait for
    _closed: bool = attrs.field(default=False, init=False)  # nobody at all
    _part_by: float = attrs.field(default=math.inf, init=False)
    _terminating: bool = attrs.field(default=False, init=False)
    _connecting: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _removed: dict[str, Member] = attrs.field(factory=dict, init=False)  # the latest of each id, to be shown
    _leaving: set[Member] = attrs.field(factory=set, init=False)  # removed, and not yet gone
    _services: trio.Nursery | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        for member in self.members.values():
            self._adopt(member)
        self._slots = trio.CapacityLimiter(self._settings.max_backend_init_concurrency)
        self._unsettled = sum(member.backend is not None for member in self.members.values())
        if not self._unsettled:
            self.all_settled.set()

    @property
    def is_opened(self) -> bool:
        """The opening is over: whatever happens now is a change."""
        return self._opened.is_set()

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

    async def connect_all(self, services: trio.Nursery) -> None:
        """Hand the slots out, one task for all of them: their order is the caller's, and Trio starts tasks in any."""
        self._services = services
        with self._connecting:
            for member in list(self.members.values()):  # once the session is open, backends may come and go
                if member.backend is None:
                    continue
                await self._slots.acquire_on_behalf_of(member)
                if member.is_removed:
                    self._settled(member)
                    continue
                self._try_first(member, member.backend, partial(self._settled, member))

    def end_opening(self) -> None:
        """The opening is over: who is not here is missing, for a reason. Who comes later is a change.

        Raises:
            NoBackends: Fewer than `min_backends` are connected.
        """
        self._opened.set()
        for member in self.members.values():
            if member.backend is None:
                member.fail(FailureReason.UNREACHABLE, "was not among the backends that the session was restored with")
                member.enter(BackendState.DEGRADED)
            elif member.client is None and member.failure is None:
                limit = self._settings.session_init_timeout
                detail = f"is still connecting after {limit} s (session_init_timeout)"
                self._warn(member.fail(FailureReason.PENDING, detail))
        connected = sum(member.client is not None for member in self.members.values())
        if connected < self._settings.min_backends:
            raise NoBackends(self.failures, connected, self._settings.min_backends)

    def stop_connecting(self) -> None:
        """The session drains: nobody joins any more. Only what calls in flight wait for is still connected anew."""
        self._closing = True
        self._connecting.cancel(reason="session closed")
        for member in self.members.values():
            if member.recovery is None:
                member.give_up("session closed")

    def stop_recovering(self, part_by: float) -> None:
        """No call is left that waits for a connection. Each is let go of by then, by `trio.current_time()`."""
        self._closed, self._part_by = True, min(part_by, self._part_by)
        for member in self.members.values():
            member.give_up("session closed")

    async def say_goodbye(self, *, terminate: bool) -> None:
        """Let every connection go, side by side. Bounded by whoever calls; raises for nobody."""
        self._terminating = terminate
        async with trio.open_nursery() as goodbyes:
            for member in (*self.members.values(), *self._leaving):
                for incarnation in member.connections:
                    if incarnation.client is not None:
                        goodbyes.start_soon(self._part, member, incarnation, incarnation.client)

    def abandon(self) -> None:
        """The session has closed: nobody waits here any more."""
        self.stop_recovering(math.inf)
        for member in self._leaving:
            member.gone.set()

    # --- members that come and go

    async def add(self, member: Member, backend: Backend) -> None:
        """Take a backend in, and wait until it has joined or failed. Cancelled, the caller stops waiting.

        Raises:
            ValueError: There is one of this id.
            SessionClosed: The session closed first.
        """
        known = self.members.get(backend.id)
        if known is not None:
            if known.backend is not None:
                raise ValueError(f"a backend with the id {backend.id!r} is in this session already")
            member.stored = known.stored  # of a restored session that was not told of it until now
        self._removed.pop(backend.id, None)
        self.members[backend.id] = member
        self._adopt(member)
        settled = trio.Event()
        self._try_first(member, backend, settled.set)
        await settled.wait()
        if self._closing:
            raise SessionClosed(f"the session closed before backend {backend.id!r} had joined it")

    def remove(self, backend_id: str, drain_timeout: float) -> Member:
        """Take no more calls for a backend, and let go of it once those that it has have ended.

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
        self._observer.member_changed(member, EVERYTHING)
        return member

    # --- one backend's tasks

    def _adopt(self, member: Member) -> None:
        member.on_missing = self._see_to
        if member.backend is not None:
            member.turns = self._reconnects.turns(endpoint_digest(member.backend))

    def _try_first(self, member: Member, backend: Backend, done: Callable[[], None]) -> None:
        """The first attempt. Calls `done` when it is over, well or not."""

        def settled() -> None:
            done()
            if self._may_join(member):
                self._note_attempt(member)
                if member.current is None:
                    self._note_missing(member)
                    self._see_to(member)

        self._begin(member, backend, settled)

    def _see_to(self, member: Member) -> None:
        """A backend is missing: have it tried again, unless somebody is at it."""
        if member.retrying is None:
            assert self._services is not None
            assert member.backend is not None
            member.retrying = trio.CancelScope()
            start_clean(self._services, self._retry, member, member.backend, member.retrying)

    async def _retry(self, member: Member, backend: Backend, scope: trio.CancelScope) -> None:
        """Until it has a connection, the session closes or the backend is removed."""
        with scope:
            await self._opened.wait()
            await trio.sleep_until(member.not_before)
            while member.current is None and self._may_join(member):
                await self._connect_anew(member, backend)
        member.retrying = None

    async def _connect_anew(self, member: Member, backend: Backend) -> None:
        """One more attempt, or the wait for its time. A recovery that would have to wait for that has failed."""
        turns = member.turns
        assert turns is not None
        # The slot first: whoever is in the line of an endpoint holds up other sessions, and must not wait for his own.
        async with self._slot(member), turns.line:
            too_early = turns.wait > 0
            if not too_early:
                member.enter(BackendState.RECOVERING)
                await self._begin(member, backend).settled.wait()  # whoever gives us up gives that up, too
                self._note_attempt(member)
        if member.current is None:
            self._note_missing(member)
            await trio.sleep_until(member.not_before)
            await turns.pause()

    @asynccontextmanager
    async def _slot(self, member: Member) -> AsyncIterator[None]:
        """One of those that the opening hands out. A recovery needs none: calls wait for it."""
        if member.recovery is not None:
            yield
            return
        await self._slots.acquire_on_behalf_of(member)
        try:
            yield
        finally:
            self._slots.release_on_behalf_of(member)

    def _begin(self, member: Member, backend: Backend, on_settled: Callable[[], None] = lambda: None) -> Incarnation:
        """Begin to connect. Once it has settled, the member has joined or has a failure."""
        assert self._services is not None
        incarnation = Incarnation(on_settled)
        member.connections.add(incarnation)
        start_clean(self._services, self._live, member, backend, incarnation)
        return incarnation

    async def _live(self, member: Member, backend: Backend, incarnation: Incarnation) -> None:
        """One connection's task: make it, hold the nursery that its services run in, see its last calls end."""
        try:
            ended = await self._hold(member, backend, incarnation)
            if ended and not self._closed:  # who breaks on the way out of a closing session is missed by nobody
                self._lose(member, incarnation, ended)
            if ended and incarnation.client is not None:
                await self._let_go(member, incarnation, incarnation.client)
        finally:
            incarnation.settle()
            member.let_go(incarnation)

    async def _hold(self, member: Member, backend: Backend, incarnation: Incarnation) -> str:
        """Returns what ended it, if that has yet to be told."""
        ended = ""
        try:
            async with trio.open_nursery() as nursery:
                try:
                    await self._connect(member, backend, incarnation, nursery)
                    incarnation.settle()  # who failed, too: what is still said on its way out holds nobody up
                    if incarnation.client is not None:
                        await incarnation.over.wait()
                        await incarnation.drain(partial(_cut_off, backend.id), self._settings.teardown_timeout)
                        await self._let_go(member, incarnation, incarnation.client)
                finally:
                    incarnation.end()  # while the nursery is open: what it hears until then starts tasks there
                nursery.cancel_scope.cancel()  # its goodbyes are shielded, and bounded
        except* Exception as crash:  # noqa: BLE001  # the boundary of one backend: the others must not notice
            # `except Exception` would not do: a nursery's group may mix a crash with Cancelled, and that slips past it.
            # A connection that ended by itself has told so whoever was connecting, too.
            told = incarnation.client is None and ended_by_itself(crash)
            ended = "" if told else describe_end(crash)
        return ended

    async def _connect(self, member: Member, backend: Backend, incarnation: Incarnation, nursery: trio.Nursery) -> None:
        """Connect and list. At the end the member has joined, or has a failure."""
        member.begun_at = trio.current_time()
        limit = self._settings.backend_init_timeout
        incarnation.attempt.deadline = member.begun_at + limit
        note = RequestNote()
        current_note.set(note)  # in this task's own context
        client, resume = None, member.resume
        try:
            with incarnation.attempt:
                try:
                    client, listing = await self._open(member, backend, incarnation, resume, nursery)
                except BackendError:
                    if resume is None or not note.session_lost:
                        raise
                    # What was stored is gone: "start a new session by sending a new InitializeRequest".
                    client, listing = await self._open(member, backend, incarnation, None, nursery)
                if self._may_join(member):  # else it got ready without noticing that it was given up
                    incarnation.client, incarnation.is_listed = client, listing is not None
                    member.joined(incarnation, listing)
                    return
        except BackendError as error:
            why = reason_of(error), error.detail
        except Exception as crash:  # noqa: BLE001  # a connector of the user's may raise anything
            why = FailureReason.UNREACHABLE, f"could not be connected: {describe_crash(crash)}"
        else:  # only a cancelled attempt comes here
            step = f"did not answer {note.method!r}" if note.method else "was not ready"
            why = FailureReason.TIMEOUT, f"{step} within {limit} s (backend_init_timeout)"
        finally:  # also where a crash beside us cancelled this nursery
            if client is not None and incarnation.client is None:  # connected, but not listed
                self._abandon(member, client, nursery)
        if self._may_join(member):
            self._warn(member.fail(*why))
        elif not member.is_removed:
            member.fail(FailureReason.PENDING, "was still connecting when the session closed")

    def _may_join(self, member: Member) -> bool:
        return not (member.is_removed or self._closed or (self._closing and member.recovery is None))

    async def _open(
        self,
        member: Member,
        backend: Backend,
        incarnation: Incarnation,
        resume: BackendRecord | None,
        nursery: trio.Nursery,
    ) -> tuple[BackendClient, Listing | None]:
        """A client, and what it lists; who is known already lists later, and takes calls at once."""
        begun_at = trio.current_time()
        refresher = Refresher(member, incarnation, backend, self._identity, self._settings, nursery, self._observer)
        ear = _Ear(
            partial(self._on_event, member, incarnation, refresher),
            partial(self._on_session_lost, member, incarnation, nursery),
            refresher.doubt,
        )
        client = ear.client = await self._connector(
            backend, identity=self._identity, resume=resume, nursery=nursery, events=ear
        )
        try:
            if member.listing is not None and resume is None:
                refresher.subscribe_again()
                refresher.list_again()
                return client, None
            listing = await list_backend(
                backend,
                client,
                identity=self._identity,
                settings=self._settings,
                overlap=trio.current_time() - begun_at > SLOW_HANDSHAKE,
            )
            if member.listing is not None:  # a connection that crashed was taken up again
                self._observer.check_names(member, listing)
            refresher.subscribe_again()
        except BaseException:
            note = current_note.get()
            self._abandon(member, client, nursery, terminate=note is not None and note.session_lost)
            raise
        return client, listing

    # --- what becomes of a connection

    def _on_event(
        self, member: Member, incarnation: Incarnation, refresher: Refresher, method: str, params: JSON
    ) -> None:
        """A notification of a backend. Those of a connection that was replaced are about lists that nobody keeps."""
        if incarnation.over.is_set():
            return
        if method == "notifications/resources/updated":
            uri = _subscribed(params.get("uri"), member.subscriptions)
            if uri is not None:
                self._observer.resource_updated(member, uri)
        else:
            refresher.note(method)

    def _on_session_lost(
        self, member: Member, incarnation: Incarnation, nursery: trio.Nursery, ear: _Ear, error: BackendError
    ) -> None:
        start_if_open(nursery, self._replace, member, incarnation, ear, error)  # ended: it is being replaced already

    async def _replace(self, member: Member, incarnation: Incarnation, ear: _Ear, error: BackendError) -> None:
        """Its session is gone, though no call has met that yet: what a call would begin begins now, so that the next
        one finds it done. Ends with the connection: who finds out meanwhile, or removes it, was faster.
        """
        await self._opened.wait()
        await incarnation.settled.wait()
        if incarnation.client is not ear.client:  # what was stored, and is replaced already
            return
        await trio.sleep_until(member.relapse())
        if not self._closing:
            member.lose_session(incarnation, error)

    def _settled(self, member: Member) -> None:
        self._slots.release_on_behalf_of(member)
        self._unsettled -= 1
        if not self._unsettled:
            self.all_settled.set()

    def _note_attempt(self, member: Member) -> None:
        """An attempt is over."""
        assert member.turns is not None
        if member.current is not None:
            member.turns.succeeded()
            member.end_recovery()
            self._observer.member_changed(member, EVERYTHING if member.current.is_listed else ("backend",))
        elif member.failure is not None and member.failure.reason is FailureReason.UNAUTHORIZED:
            # Which says nothing to other sessions.
            member.not_before = trio.current_time() + member.refused.next(random.random())
        else:
            member.turns.failed()

    def _note_missing(self, member: Member) -> None:
        member.enter(BackendState.DEGRADED)
        if member.recovery is not None:  # until now it was not missing, but being replaced
            if member.failure is None:
                why = member.last_failure.detail if member.last_failure else "lost our session"
                self._warn(member.fail(FailureReason.UNREACHABLE, why))
            member.end_recovery()
            self._observer.member_changed(member, ("backend",))

    def _lose(self, member: Member, incarnation: Incarnation, ended: str) -> None:
        """Its connection crashed or ended, before it had joined or behind it."""
        client = incarnation.client
        if (member.current is incarnation or not incarnation.settled.is_set()) and not member.is_removed:
            self._warn(member.fail(FailureReason.UNREACHABLE, ended))
        if member.current is incarnation and client is not None:
            member.stored = client.record  # it may be taken up again
            member.current = None
            member.enter(BackendState.DEGRADED)
            assert member.turns is not None  # or it would not have been connected
            member.turns.failed()
            self._see_to(member)
            self._observer.member_changed(member, ("backend",))

    def _warn(self, failure: BackendFailure) -> None:
        logger.warning(
            "%s: backend %r is missing (%s): it %s",
            session_tag(self._row.metadata.session_id),
            failure.backend_id,
            failure.reason.value,
            failure.detail,
        )

    def _abandon(
        self, member: Member, client: BackendClient, nursery: trio.Nursery, *, terminate: bool = False
    ) -> None:
        """Close a connection that takes no part: in a task of its own, since its attempt may be out of time."""
        outcast = Incarnation()
        outcast.terminate = terminate
        start_clean(nursery, self._let_go, member, outcast, client)

    async def _let_go(self, member: Member, incarnation: Incarnation, client: BackendClient) -> None:
        """Close one connection apart from the others: outside of a close nobody else bounds that."""
        by = min(trio.current_time() + self._settings.teardown_timeout, self._part_by)
        with trio.CancelScope(deadline=by, shield=True):
            await self._part(member, incarnation, client)

    async def _part(self, member: Member, incarnation: Incarnation, client: BackendClient) -> None:
        """Close one connection. Its backend session ends too, unless it is in the row and may be restored."""
        if incarnation.parted is not None:
            await incarnation.parted.wait()
            return
        incarnation.parted = trio.Event()
        incarnation.end()  # its task has time to come to its end while the backend takes its own
        try:
            stored = self._row.record(member.backend_id)
            kept = stored is not None and stored.session_id == client.record.session_id
            kept = kept and not (self._terminating or incarnation.terminate or member.is_removed)
            await client.aclose(terminate=not kept)
        except* Exception as crash:  # noqa: BLE001  # a close raises for no backend
            logger.warning(
                "%s: backend %r: goodbye failed: %s",
                session_tag(self._row.metadata.session_id),
                member.backend_id,
                describe_crash(crash),
            )
        finally:
            incarnation.parted.set()


@attrs.define(eq=False)
class _Ear:
    """A `SessionSink`, of one `client`; None while that is being made."""

    _take: Callable[[str, JSON], None]
    _lose: Callable[[_Ear, BackendError], None]
    _doubt: Callable[[tuple[str, ...]], None]
    client: BackendClient | None = attrs.field(default=None, init=False)

    def __call__(self, method: str, params: JSON, /) -> None:
        self._take(method, params)

    def session_lost(self, error: BackendError) -> None:
        self._lose(self, error)

    def listed_too_early(self, kinds: tuple[str, ...]) -> None:
        self._doubt(kinds)


def ended_by_itself(crash: BaseExceptionGroup[Exception]) -> bool:
    """Whether a client said that its connection is over, which is no crash."""
    return all(isinstance(error, BackendError) for error in crash.exceptions)


def describe_end(crash: BaseExceptionGroup[Exception]) -> str:
    """What ended a connection, to complete "backend 'x' …"; its own word for it, where it ended by itself."""
    if ended_by_itself(crash):
        return "; ".join(error.detail for error in crash.exceptions if isinstance(error, BackendError))
    return f"crashed in its connection: {describe_crash(crash)}"


def _cut_off(backend_id: str) -> BackendUnavailable:
    return BackendUnavailable(backend_id, "was removed from the session (drain_timeout)")


def _subscribed(uri: object, subscriptions: Iterable[str]) -> str | None:
    """Which resource to tell of. It "might be a sub-resource of the one that the client actually subscribed to" (MCP
    2025-11-25, resources); None: of none.
    """
    if not isinstance(uri, str):
        return None
    own = next((known for known in subscriptions if uri.startswith(known)), None)
    return own if own is None or len(uri) > len(own) + MOST_SUB_RESOURCE else uri
