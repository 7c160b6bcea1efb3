"""The backends of one session: connected side by side, each behind a boundary of its own, connected anew when they
went away, let go all at once.

Each backend has a supervisor, a task that sees to its having a connection for as long as the session lives. Each
connection is a task of its own beside it: a new one can be made while calls on the one before still end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, Protocol, TypeAlias

import attrs
import trio

from trio_vmcp._incarnation import Incarnation
from trio_vmcp._listing import Listing, list_backend
from trio_vmcp._member import Member
from trio_vmcp._nursery import describe_crash, start_clean
from trio_vmcp._outbound import Outbound, outbound
from trio_vmcp._reconnects import Reconnects
from trio_vmcp._refresh import Refresher
from trio_vmcp._stored import Stored
from trio_vmcp.client.interface import BackendClient, BackendConnector
from trio_vmcp.errors import BackendError, BackendUnavailable, NoBackends, session_tag
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord, endpoint_digest
from trio_vmcp.models import JSON, Backend, BackendFailure, BackendState, FailureReason
from trio_vmcp.settings import FactorySettings

__all__ = ["Change", "Membership", "Observer"]

logger = logging.getLogger("trio_vmcp.session")

# s. Two answers that take longer come from afar: then round trips are what an opening waits for, and all lists at once
# save some. Nearby they would cost three connections more, and gain nothing.
SLOW_HANDSHAKE = 0.02

Change: TypeAlias = Literal["backend", "tools", "resources", "prompts"]


class Observer(Protocol):
    """Who advertises, writes down and tells what changes. Never waits."""

    def member_changed(self, member: Member, changes: Sequence[Change]) -> None:
        """After the opening: it joined, was lost, or lists something else."""
        ...

    def resource_updated(self, member: Member, uri: str) -> None:
        """A resource that was subscribed to has new content, or may have."""
        ...


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
    _row: Stored
    _settings: FactorySettings
    _reconnects: Reconnects
    _observer: Observer
    all_settled: trio.Event = attrs.field(factory=trio.Event, init=False)
    _unsettled: int = attrs.field(init=False)
    _opened: trio.Event = attrs.field(factory=trio.Event, init=False)
    _stopped: bool = attrs.field(default=False, init=False)
    _terminating: bool = attrs.field(default=False, init=False)
    _connecting: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _incarnations: dict[Incarnation, Member] = attrs.field(factory=dict, init=False)  # with a client not yet let go of
    _removed: dict[str, Member] = attrs.field(factory=dict, init=False)
    _services: trio.Nursery | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._unsettled = sum(member.backend is not None for member in self.members.values())
        if not self._unsettled:
            self.all_settled.set()

    @property
    def failures(self) -> tuple[BackendFailure, ...]:
        return tuple(member.failure for member in self.members.values() if member.failure is not None)

    @property
    def records(self) -> tuple[BackendRecord, ...]:
        return tuple(member.record for member in self.members.values() if member.record is not None)

    @property
    def everybody(self) -> tuple[Member, ...]:
        """Those who were removed as well."""
        return (*self.members.values(), *self._removed.values())

    async def connect_all(self, services: trio.Nursery) -> None:
        """Hand the slots out, one task for all of them: their order is the caller's, and Trio starts tasks in any."""
        self._services = services
        slots = trio.CapacityLimiter(self._settings.max_backend_init_concurrency)
        with self._connecting:
            for member in tuple(self.members.values()):  # who comes or goes meanwhile is in no need of a slot
                if member.backend is not None:
                    await slots.acquire_on_behalf_of(member)
                    services.start_soon(self._supervise, member, member.backend, partial(self._settled, member, slots))

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
        """Nobody joins any more."""
        self._stopped = True
        self._connecting.cancel(reason="session closed")
        for member in self.everybody:
            member.supervision.cancel(reason="session closed")
            member.end_recovery()

    async def say_goodbye(self, *, terminate: bool) -> None:
        """Let every connection go, side by side. Bounded by whoever calls; raises for nobody."""
        self._terminating = terminate
        async with trio.open_nursery() as goodbyes:
            for incarnation, member in list(self._incarnations.items()):
                goodbyes.start_soon(self._part, member, incarnation)

    def abandon(self) -> None:
        """The session has closed: nobody waits here any more."""
        for member in self.everybody:
            member.end_recovery()
            member.gone.set()

    # --- members that come and go

    async def add(self, member: Member, backend: Backend) -> None:
        """Take a backend in, and wait until it has joined or failed. Cancelled, the caller stops waiting."""
        if member.backend_id in self.members:
            raise ValueError(f"a backend with the id {member.backend_id!r} is in this session already")
        if self._services is None or self._stopped:
            return
        before = self._removed.pop(member.backend_id, None)
        self.members[member.backend_id] = member
        if before is not None:
            await before.gone.wait()
            if self._stopped:
                return
        settled = trio.Event()
        start_clean(self._services, self._supervise, member, backend, settled.set)
        await settled.wait()

    def remove(self, backend_id: str, drain_timeout: float) -> Member:
        """Take no more calls for a backend, and let go of it once those that it has have ended.

        Raises:
            KeyError: There is none of this id.
        """
        member = self.members.pop(backend_id)
        self._removed[backend_id] = member
        member.supervision.cancel(reason="the backend was removed")
        member.failure = None
        member.end_recovery()
        member.enter(BackendState.REMOVED)
        incarnation, member.current = member.current, None
        if incarnation is None:
            member.gone.set()
        else:
            incarnation.terminate, incarnation.drain_by = True, trio.current_time() + drain_timeout
            incarnation.end()
        self._observer.member_changed(member, ("backend", "tools", "resources", "prompts"))
        return member

    # --- one backend's tasks

    async def _supervise(self, member: Member, backend: Backend, done: Callable[[], None]) -> None:
        """See to its having a connection, until the session closes or the backend is removed."""
        with member.supervision:
            try:
                await self._attempt(member, backend, member.resume)
            finally:
                done()
            self._note_first(member, backend)
            await self._opened.wait()  # a second attempt takes no slot from anybody's first
            while True:
                member.attention = trio.Event()
                if member.current is None:
                    await self._connect_anew(member, backend)
                else:
                    await member.attention.wait()

    async def _connect_anew(self, member: Member, backend: Backend) -> None:
        """One more attempt, when its turn has come. A recovery that would have to wait for it has failed."""
        async with self._reconnects.queue(endpoint_digest(backend)) as turn:
            if turn.wait and member.recovery is not None:
                why = member.last_failure.detail if member.last_failure else "lost our session"
                self._warn(member.fail(FailureReason.UNREACHABLE, why))
                self._note_missing(member)
            await trio.sleep(turn.wait)
            member.enter(BackendState.RECOVERING)
            await self._attempt(member, backend, member.resume if member.recovery is None else None)
            if member.client is None:
                turn.failed()
            else:
                turn.succeeded()
        if member.client is None:
            self._note_missing(member)
        elif not self._stopped:
            self._note_returned(member)

    async def _attempt(self, member: Member, backend: Backend, resume: BackendRecord | None) -> None:
        """Connect once. At the end it has joined, or has a failure."""
        assert self._services is not None
        incarnation = Incarnation()
        try:
            self._services.start_soon(self._live, member, backend, incarnation, resume)
            await incarnation.settled.wait()
        except BaseException:
            incarnation.attempt.cancel(reason="given up")
            raise

    async def _live(
        self, member: Member, backend: Backend, incarnation: Incarnation, resume: BackendRecord | None
    ) -> None:
        """One connection's task: make it, hold the nursery that its services run in, see its last calls end."""
        detail = ""
        try:
            async with trio.open_nursery() as nursery:
                await self._connect(member, backend, incarnation, resume, nursery)
                incarnation.settled.set()  # who failed, too: what is still said on its way out holds nobody up
                if incarnation.client is not None:
                    await incarnation.over.wait()
                    await incarnation.drain(
                        BackendUnavailable(backend.id, "was removed from the session (drain_timeout)")
                    )
                    await self._let_go(member, incarnation)
                nursery.cancel_scope.cancel()  # its goodbyes are shielded, and bounded
        except* Exception as crash:  # noqa: BLE001  # the boundary of one backend: the others must not notice
            # `except Exception` would not do: a nursery's group may mix a crash with Cancelled, and that slips past it.
            detail = f"crashed in its connection: {describe_crash(crash)}"
        if detail:
            await self._lose(member, incarnation, detail)
        incarnation.settled.set()

    async def _connect(
        self,
        member: Member,
        backend: Backend,
        incarnation: Incarnation,
        resume: BackendRecord | None,
        nursery: trio.Nursery,
    ) -> None:
        """Connect and list. At the end the member has joined, or has a failure."""
        member.begun_at = trio.current_time()
        limit = self._settings.backend_init_timeout
        incarnation.attempt.deadline = member.begun_at + limit
        note = Outbound()
        outbound.set(note)  # in this task's own context
        client = None
        try:
            with incarnation.attempt:
                try:
                    client, listing = await self._open(member, backend, incarnation, resume, nursery)
                except BackendError:
                    if resume is None or not note.session_lost:
                        raise
                    # What was stored is gone: "start a new session by sending a new InitializeRequest".
                    client, listing = await self._open(member, backend, incarnation, None, nursery)
                if not self._stopped and member.backend_id not in self._removed:
                    # else it got ready without noticing that it was given up
                    incarnation.client = client
                    self._incarnations[incarnation] = member
                    member.joined(incarnation, listing)
                    return
        except BackendError as error:
            failure = member.fail_with(error)
        except Exception as crash:  # noqa: BLE001  # a connector of the user's may raise anything
            failure = member.fail(FailureReason.UNREACHABLE, f"could not be connected: {describe_crash(crash)}")
        else:  # only a cancelled attempt comes here
            step = f"did not answer {note.method!r}" if note.method else "was not ready"
            failure = member.fail(FailureReason.TIMEOUT, f"{step} within {limit} s (backend_init_timeout)")
        finally:  # also where a crash beside us cancelled this nursery
            if client is not None and incarnation.client is None:  # connected, but not listed
                self._abandon(member, client, nursery)
        if self._stopped:
            member.fail(FailureReason.PENDING, "was still connecting when the session closed")
        else:
            self._warn(failure)

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
        refresher = Refresher(member, backend, self._identity, self._settings, nursery, self._observer)
        client = await self._connector(
            backend,
            identity=self._identity,
            resume=resume,
            nursery=nursery,
            events=partial(self._on_event, member, incarnation, refresher),
        )
        refresher.client = client
        try:
            if member.listing is not None and resume is None:
                refresher.everything_is_stale()
                return client, None
            listing = await list_backend(
                backend,
                client,
                identity=self._identity,
                settings=self._settings,
                overlap=trio.current_time() - begun_at > SLOW_HANDSHAKE,
            )
        except BaseException as error:
            # A session that is not said to be gone, and is replaced all the same, ends properly.
            note = outbound.get()
            lost = note is not None and note.session_lost
            replaced = lost and isinstance(error, BackendError) and error.may_have_executed
            self._abandon(member, client, nursery, terminate=replaced)
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
            uri = params.get("uri")
            if isinstance(uri, str) and uri in member.subscriptions:
                self._observer.resource_updated(member, uri)
        else:
            refresher.note(method)

    def _settled(self, member: Member, slots: trio.CapacityLimiter) -> None:
        slots.release_on_behalf_of(member)
        self._unsettled -= 1
        if not self._unsettled:
            self.all_settled.set()

    def _note_first(self, member: Member, backend: Backend) -> None:
        """The first attempt is over, be it in the opening or behind it."""
        if member.client is None:
            member.enter(BackendState.DEGRADED)
            self._reconnects.note_failure(endpoint_digest(backend))
        elif self._opened.is_set() and not self._stopped:
            self._observer.member_changed(member, ("backend", "tools", "resources", "prompts"))

    def _note_returned(self, member: Member) -> None:
        member.end_recovery()
        member.breaker.succeed()
        self._observer.member_changed(member, ("backend", "tools", "resources", "prompts"))
        for uri in member.subscriptions:  # what was updated meanwhile was told to nobody
            self._observer.resource_updated(member, uri)

    def _note_missing(self, member: Member) -> None:
        member.enter(BackendState.DEGRADED)
        if member.recovery is not None:  # until now it was not missing, but being replaced
            member.end_recovery()
            self._observer.member_changed(member, ("backend",))

    async def _lose(self, member: Member, incarnation: Incarnation, detail: str) -> None:
        """Its connection crashed, before it had joined or behind it."""
        client = incarnation.client
        incarnation.end()
        if member.current is incarnation or not incarnation.settled.is_set():
            self._warn(member.fail(FailureReason.UNREACHABLE, detail))
        if member.current is incarnation and client is not None:
            member.stored = client.record  # it may be taken up again
            member.current = None
            member.enter(BackendState.DEGRADED)
            assert member.backend is not None  # or it would not have been connected
            self._reconnects.note_failure(endpoint_digest(member.backend))
            member.attention.set()
            self._observer.member_changed(member, ("backend",))
        if client is not None:
            await self._let_go(member, incarnation)

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
        incarnation = Incarnation()
        incarnation.client, incarnation.terminate = client, terminate
        self._incarnations[incarnation] = member
        start_clean(nursery, self._let_go, member, incarnation)

    async def _let_go(self, member: Member, incarnation: Incarnation) -> None:
        """Close one connection apart from the others: outside of a close nobody else bounds that."""
        with trio.move_on_after(self._settings.teardown_timeout, shield=True):
            await self._part(member, incarnation)

    async def _part(self, member: Member, incarnation: Incarnation) -> None:
        """Close one connection. Its backend session ends too, unless it is in the row and may be restored."""
        client = incarnation.client
        if client is None or incarnation.is_parting:
            return
        incarnation.is_parting = True
        stored = self._row.record(member.backend_id)
        kept = stored is not None and stored.session_id == client.record.session_id and not incarnation.terminate
        try:
            await client.aclose(terminate=self._terminating or not kept)
        except* Exception as crash:  # noqa: BLE001  # a close raises for no backend
            logger.warning(
                "%s: backend %r: goodbye failed: %s",
                session_tag(self._row.metadata.session_id),
                member.backend_id,
                describe_crash(crash),
            )
        finally:
            self._incarnations.pop(incarnation, None)
            member.gone.set()
