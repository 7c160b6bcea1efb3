"""One connection to a backend, from its first byte to its goodbye, in a task of its own.

A new connection can be made while the last calls on the old one are still running. Each attempt is behind an error
boundary: what crashes in it, or in the tasks of its client, ends this connection and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import attrs
import trio

from trio_vmcp._interrupts import EXITS, exit_in, forwarding_exits
from trio_vmcp._light_event import LightEvent
from trio_vmcp._limits import SLOW_HANDSHAKE, TimeLimit, init_limit
from trio_vmcp._nursery import describe_crash, start_clean, start_if_open
from trio_vmcp._protocol.methods import KINDS, RESOURCE_UPDATED, Kind
from trio_vmcp._request_note import RequestNote, current_note
from trio_vmcp._session.connection import Connection, NoSubscriber
from trio_vmcp._session.life import Life, Phase
from trio_vmcp._session.lister import list_backend
from trio_vmcp._session.listing import Listing
from trio_vmcp._session.log_levels import LevelTeller, LogLevel
from trio_vmcp._session.member import Member, Publisher, reason_of
from trio_vmcp._session.observing import SessionReporter
from trio_vmcp._session.reconnects import tells_of_endpoint
from trio_vmcp._session.refresh import Refresher
from trio_vmcp._session.row import SessionRow
from trio_vmcp._session.shared_lists import SharedLists
from trio_vmcp._session.stopping import stop_when_unused
from trio_vmcp.connector import BackendClient, BackendConnector
from trio_vmcp.errors import BackendError, BackendUnavailable, session_tag
from trio_vmcp.metadata import BackendRecord
from trio_vmcp.models import JSON, Backend, FailureReason
from trio_vmcp.settings import FactorySettings

__all__ = ["Attempt", "SessionParts", "close_connection"]

logger = logging.getLogger("trio_vmcp.session")

# A program that is killed while it starts begins from nothing, again and again: `npx` discards a partial install.
MOST_STARTING = 10  # times `backend_init_timeout`, for a program that is alive
MOST_SUB_RESOURCE = (
    4096  # characters that a reported URI may be longer than the subscribed one: the backend makes it up
)


@attrs.frozen(eq=False)
class SessionParts:
    """What every attempt of one session needs of that session.

    Attributes:
        raise_exit: Takes a KeyboardInterrupt or SystemExit that came out of code of the user's.
        log_level: Which log messages the session wants.
        shared: What all sessions of the factory hold once.
        tag: The session's name in log records.
    """

    connector: BackendConnector = attrs.field(repr=False)  # bound to the session's id
    settings: FactorySettings
    row: SessionRow
    life: Life
    publisher: Publisher
    reporter: SessionReporter
    raise_exit: Callable[[BaseException], None]
    log_level: LogLevel
    shared: SharedLists
    tag: str = attrs.field(
        default=attrs.Factory(lambda parts: session_tag(parts.row.metadata.session_id), takes_self=True), init=False
    )


@attrs.frozen(eq=False)
class _Opened:
    """What an attempt has got, before it joins.

    Attributes:
        listing: None: as it was last seen.
    """

    client: BackendClient
    refresher: Refresher
    log_level: LevelTeller
    listing: Listing | None


@attrs.define(eq=False)
class Attempt:
    """One attempt to connect a member, and the connection that comes of it.

    Attributes:
        connection: The connection, once it has joined; None for ever if the attempt failed.
        reported: Set once nothing waits for the backend any more: it has joined, failed, or takes longer to start than
            its time.
        settled: Set once it has joined or failed.
    """

    _session: SessionParts
    _member: Member
    _backend: Backend
    _on_reported: Callable[[], None] | None = None
    connection: Connection | None = attrs.field(default=None, init=False)
    reported: LightEvent = attrs.field(factory=LightEvent, init=False)
    settled: LightEvent = attrs.field(factory=LightEvent, init=False)
    _connecting: trio.CancelScope | None = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _events: tuple[Events, ...] = attrs.field(default=(), init=False, repr=False)  # of each client that was asked for

    def __attrs_post_init__(self) -> None:
        self._member.attempts += (self,)

    @property
    def is_over(self) -> bool:
        """It takes no more calls; later messages of the backend are ignored."""
        return self.settled.is_set() if self.connection is None else self.connection.retired.is_set()

    @property
    def current_client(self) -> BackendClient | None:
        """The client that takes calls; None before it joined and once it takes no more."""
        return self._member.client if self.connection is self._member.connection else None

    def cancel(self, *, reason: str) -> None:
        """Do not connect any more. Without effect on a connection that has joined."""
        if self._connecting is not None:
            self._connecting.cancel(reason=reason)

    async def run(self) -> None:
        """Connect, hold the nursery that the client's services run in, and wait for the last calls."""
        try:
            crash = await self._hold()
            if crash is not None:
                await self._end(crash)
        finally:
            self._settle()
            self._member.discard_attempt(self, self.connection)
            self._let_go()

    def _let_go(self) -> None:
        """The connection is over, and its client takes no more part in the session: a client that refers to its session
        would keep it until the next run of the garbage collector, with all lists.
        """
        for events in self._events:
            events.close()
        if self.connection is not None:
            self.connection.subscriber = NoSubscriber()
            self.connection.log_level.close()

    async def _end(self, crash: BaseExceptionGroup[BaseException]) -> None:
        """It ended by itself."""
        detail, is_of_endpoint = describe_end(crash), self._is_of_endpoint(*crash.exceptions)
        if self.connection is None:
            self._fail(FailureReason.UNREACHABLE, detail, is_of_endpoint=is_of_endpoint)
            return
        if self._session.life.phase < Phase.PARTING:  # afterwards, a connection that breaks is not reported
            self._member.note_connection_ended(self.connection, detail, is_of_endpoint=is_of_endpoint)
        await self._close_in_time(self.connection)

    def _is_of_endpoint(self, *errors: BaseException) -> bool:
        """Whether other principals would meet the same. Of errors that are not `BackendError`, a connector of the
        user's may raise any: those of the operating system tell that the endpoint was not reached.
        """
        return any(
            tells_of_endpoint(error) if isinstance(error, BackendError) else isinstance(error, OSError)
            for error in errors
        )

    async def _hold(self) -> BaseExceptionGroup[BaseException] | None:
        """Returns why it ended; None if the member knows already."""
        ended: BaseExceptionGroup[BaseException] | None = None
        try:
            async with trio.open_nursery() as nursery:
                try:
                    await self._connect(nursery)
                    self._settle()  # also after a failure: nothing waits for messages that are still being handled
                    if self.connection is not None:
                        await self.connection.retired.wait()
                        verdict = partial(_removed_while_draining, self._backend.id)
                        await self.connection.drain(verdict, self._session.settings.teardown_timeout)
                        await self._close_in_time(self.connection)
                finally:
                    if self.connection is not None:
                        self.connection.retire()  # before the nursery closes: messages start tasks in it
                nursery.cancel_scope.cancel()  # tasks that say goodbye in it are shielded, with a time limit
        except* Exception as crash:  # noqa: BLE001  # the boundary of one backend: the others must not notice
            # Not `except Exception`: a nursery may raise a BaseExceptionGroup of a crash and a Cancelled.
            ended = None if self.settled.is_set() and self.connection is None else crash
        except* EXITS as group:  # not the connection's: it closes in order, with the session
            ended = None if self.settled.is_set() and self.connection is None else group
            self._session.raise_exit(exit_in(group) or group)
        return ended

    async def _connect(self, nursery: trio.Nursery) -> None:
        """Connect and list. At the end the member has joined, or has a failure."""
        self._member.begun_at = trio.current_time()
        limit = init_limit(self._backend, self._session.settings)
        # Over stdio, an attempt that has not ended has a program that is alive: the end of the program ends it.
        times = MOST_STARTING if self._backend.transport == "stdio" else 1
        connecting = self._connecting
        assert connecting is not None  # `run` is called once
        connecting.deadline = self._member.begun_at + times * limit.seconds
        if times > 1:
            start_clean(nursery, self._report_late, limit)
        note = RequestNote(lists_follow=self._member.listing is None)
        outer = current_note.set(note)  # in this task's own context
        retry_after: float | None = None
        is_of_endpoint = False
        client = None
        try:
            with connecting:
                await trio.lowlevel.checkpoint_if_cancelled()  # a removal may come before this task has begun
                opened = await self._resume_or_open(note, nursery)
                client = opened.client
                await opened.log_level.wait_told()
                # False: cancelled, but ready before the cancel took effect.
                if self._member.may_join(self._session.life):
                    self._join(opened, note, nursery)
                    return
        except BackendError as error:
            why, retry_after = (reason_of(error), error.detail), error.retry_after
            is_of_endpoint = self._is_of_endpoint(error)
        except Exception as crash:  # noqa: BLE001  # a connector of the user's may raise anything
            why = FailureReason.UNREACHABLE, f"could not be connected: {describe_crash(crash)}"
            is_of_endpoint = self._is_of_endpoint(crash)
        else:  # cancelled; if by a removal or a close, `_fail` does nothing
            step = f"did not answer {note.method!r}" if note.method else "was not ready"
            often = f"{times} times " if times > 1 else ""
            why = FailureReason.TIMEOUT, f"{step} within {often}{limit}{note.via}"
        finally:  # also if another task of this nursery crashed
            if client is not None and self.connection is None:  # connected, but not listed
                self._discard(client, nursery)
            current_note.reset(outer)  # a connection is held for long, the note of how it was made is not
            self._connecting = None
        self._fail(*why, retry_after, is_of_endpoint=is_of_endpoint)

    async def _resume_or_open(self, note: RequestNote, nursery: trio.Nursery) -> _Opened:
        """Go on with the stored backend session, or begin a new one."""
        resume = self._member.resume
        try:
            return await self._open(resume, nursery)
        except BackendError:
            if resume is None or not note.session_lost:
                raise
        # What was stored is gone: "start a new session by sending a new InitializeRequest" (2025-11-25, transports).
        return await self._open(None, nursery)

    def _join(self, opened: _Opened, note: RequestNote, nursery: trio.Nursery) -> None:
        """From now on calls go through this connection."""
        listing, known = opened.listing, self._member.listing
        new: tuple[Kind, ...] = tuple(kind for kind in KINDS if listing is not None and listing.differs(known, kind))
        self.connection = Connection(opened.client, new, opened.refresher, note.is_reported, opened.log_level)
        has_failures = listing is not None and (listing.failures or (known is not None and known.failures))
        self._member.join(self.connection, listing if new or has_failures else None)
        opened.log_level.start(nursery, self._member.identity)  # it may be another one by now
        stop_after = self._backend.stop_after
        if stop_after is not None:
            start_clean(nursery, stop_when_unused, self._member, self.connection, stop_after, self._session.life)

    async def _open(self, resume: BackendRecord | None, nursery: trio.Nursery) -> _Opened:
        """Connect, and list what is not known. If older lists are known, calls may begin at once, and the lists are
        read in the background.
        """
        begun_at = trio.current_time()
        session, member = self._session, self._member
        refresher = Refresher(
            *(member, self, self._backend, session.settings, nursery, session.publisher),
            session.shared,
        )
        events = Events(self, refresher, nursery)
        self._events += (events,)
        client = events.client = await session.connector(
            self._backend, identity=member.identity, resume=resume, nursery=nursery, events=events
        )
        try:
            teller = LevelTeller(session.log_level, client, member.backend_id, self, member.request_limit)
            teller.start(nursery, member.identity)
            if member.listing is not None and resume is None:
                refresher.subscribe_again()
                refresher.list_again()
                return _Opened(client, refresher, teller, None)
            listing = await list_backend(
                self._backend,
                client,
                identity=member.identity,
                settings=session.settings,
                shared=session.shared,
                overlap=trio.current_time() - begun_at > SLOW_HANDSHAKE,
                known=member.listing,
                is_resumed=resume is not None,
            )
            if member.listing is not None:  # the backend session of a crashed connection was resumed
                session.publisher.check_names(member, listing)
            refresher.subscribe_again()
            refresher.repeat_failed(listing)
        except BaseException as error:
            note = current_note.get()
            is_lost = note is not None and note.session_lost
            # A backend that says of a stored session that it is gone may be wrong, or say so to this instance alone:
            # a DELETE could then end a session that another instance uses.
            is_said = note is not None and (note.lost_by_words or isinstance(error, BackendUnavailable))
            self._discard(client, nursery, terminate=is_lost and not (is_said and resume is not None))
            raise
        return _Opened(client, refresher, teller, listing)

    def _fail(
        self, reason: FailureReason, detail: str, retry_after: float | None = None, *, is_of_endpoint: bool
    ) -> None:
        if self._member.may_join(self._session.life):  # else its state says already why it is missing
            self._member.fail(reason, detail, retry_after, is_of_endpoint=is_of_endpoint)

    async def _report_late(self, limit: TimeLimit) -> None:
        """A program that is alive after its time goes on starting, and nothing waits for it any longer."""
        with trio.move_on_after(limit.seconds):
            await self.settled.wait()
        if not self.settled.is_set():
            if self._member.may_join(self._session.life):  # else its state says already why it is missing
                self._member.start_longer(f"is still starting after {limit}")
            self._report()

    def _report(self) -> None:
        if not self.reported.is_set():
            self.reported.set()
            on_reported, self._on_reported = self._on_reported, None  # not kept as long as the connection
            if on_reported is not None:
                on_reported()

    def _settle(self) -> None:
        self.settled.set()
        self._report()

    # --- what the backend says

    def take_event(self, refresher: Refresher, method: str, params: JSON) -> None:
        """A notification. Those of a connection that was replaced are about lists that are no longer kept."""
        if self.is_over:
            return
        if method == RESOURCE_UPDATED:
            uri = _subscribed(params.get("uri"), self._member.subscriptions)
            if uri is not None:
                self._session.publisher.resource_updated(self._member, uri)
        else:
            refresher.note(method)

    async def replace(self, events: Events, error: BackendError) -> None:
        """A stream says that the session of the client with these `events` is gone, before any call has failed. Replace
        the connection now, so that the next call need not wait. If a call or a removal ends the connection first, this
        task ends with it.
        """
        life = self._session.life
        await life.reached(Phase.OPEN)
        await self.settled.wait()
        # The wait comes first, since the report may come while the client is still being made. If the connection has
        # another client, the one that reported was a resumed one and is replaced already.
        if self.connection is None or self.connection.client is not events.client:
            return
        await trio.sleep_until(self._member.reconnects.take_replacement_time())
        if life.phase is Phase.OPEN:
            self._member.replace_connection(self.connection, error)

    def note_stream(self, events: Events, error: BackendError | None) -> None:
        """See `Events.stream_reached`. Of the connection that takes calls, or none."""
        if events.client is not None and events.client is self.current_client:
            self._member.note_stream(error)

    # --- its goodbye

    def _discard(self, client: BackendClient, nursery: trio.Nursery, *, terminate: bool = False) -> None:
        """Close a client that takes no calls: in a task of its own, since the attempt may be out of time."""
        start_clean(nursery, self._close_client_in_time, client, terminate)

    async def _close_client_in_time(self, client: BackendClient, terminate: bool) -> None:
        with self._goodbye_scope():
            await _close_client(self._session, self._member, client, terminate=terminate)

    async def _close_in_time(self, connection: Connection) -> None:
        with self._goodbye_scope():
            await close_connection(self._session, self._member, connection)

    def _goodbye_scope(self) -> trio.CancelScope:
        """The time for one goodbye: `teardown_timeout`, and never past the end of the session's own close."""
        by = min(trio.current_time() + self._session.settings.teardown_timeout, self._session.life.close_by)
        return trio.CancelScope(deadline=by, shield=True)


@attrs.define(eq=False)
class Events:
    """An `EventSink`, of one client; `client` is None until it has been made."""

    _attempt: Attempt | None  # these two: None once the connection is over
    _refresher: Refresher | None
    _nursery: trio.Nursery
    client: BackendClient | None = attrs.field(default=None, init=False)

    def __call__(self, method: str, params: JSON, /) -> None:
        if self._attempt is not None and self._refresher is not None:
            self._attempt.take_event(self._refresher, method, params)

    def session_lost(self, error: BackendError) -> None:
        # If the nursery is closed, the connection is ending anyway.
        if self._attempt is not None:
            start_if_open(self._nursery, self._attempt.replace, self, error)

    def stream_reached(self, error: BackendError | None) -> None:
        """The stream for changes, which was open before, was asked for again. None: the backend has answered; else it
        was not reached.
        """
        if self._attempt is not None:
            self._attempt.note_stream(self, error)

    def close(self) -> None:
        self._attempt = self._refresher = self.client = None


async def close_connection(session: SessionParts, member: Member, connection: Connection) -> None:
    """Close one connection, once; a second call waits for the first. Bounded by the caller's scope."""
    if connection.is_closing:
        await connection.closed.wait()
        return
    connection.is_closing = True
    connection.retire()  # now, so that its task can end while the backend is waited for
    try:
        await _close_client(session, member, connection.client, terminate=connection.terminate)
    finally:
        connection.closed.set()


async def _close_client(session: SessionParts, member: Member, client: BackendClient, *, terminate: bool) -> None:
    """Its backend session ends too, unless it is in the row and may be restored. A failure is logged."""
    ends = session.life.terminates or terminate or member.is_removed
    with _surviving(session, member):
        ends = ends or not _is_stored(session, member, client)
    with _surviving(session, member):
        await client.aclose(terminate=ends)


def _is_stored(session: SessionParts, member: Member, client: BackendClient) -> bool:
    stored = session.row.record(member.backend_id)
    return stored is not None and stored.session_id == client.record.session_id


@contextmanager
def _surviving(session: SessionParts, member: Member) -> Iterator[None]:
    """Around code of a client at its goodbye, which may be the user's: no backend's error may stop a close."""
    try:
        with forwarding_exits(session.raise_exit):
            yield
    except* Exception as crash:  # noqa: BLE001  # likewise
        logger.warning("%s: backend %r: goodbye failed: %s", session.tag, member.backend_id, describe_crash(crash))


def describe_end(crash: BaseExceptionGroup[BaseException]) -> str:
    """What ended a connection, to complete "backend 'x' …". If it reported its own end, that is the error's text."""
    if all(isinstance(error, BackendError) for error in crash.exceptions):
        return "; ".join(error.detail for error in crash.exceptions if isinstance(error, BackendError))
    return f"crashed in its connection: {describe_crash(crash)}"


def _removed_while_draining(backend_id: str) -> BackendUnavailable:
    return BackendUnavailable(backend_id, "was removed from the session (drain_timeout)")


def _subscribed(uri: object, subscriptions: Iterable[str]) -> str | None:
    """The URI to report to subscribers; None: not subscribed to, or too long. It "might be a sub-resource of the one
    that the client actually subscribed to" (MCP 2025-11-25, resources).
    """
    if not isinstance(uri, str):
        return None
    own = next((known for known in subscriptions if uri.startswith(known)), None)
    return own if own is None or len(uri) > len(own) + MOST_SUB_RESOURCE else uri
