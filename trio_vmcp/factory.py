"""The factory: makes sessions, owns their tasks, and lets none of them outlive it."""

from __future__ import annotations

import logging
import os
import re
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Protocol, get_args

import attrs
import httpx
import trio

from trio_vmcp._client.built_in import BuiltInConnector
from trio_vmcp._http.proxy import choose_proxies
from trio_vmcp._interrupts import EXITS, closed_in_order, exit_in, protected_manager
from trio_vmcp._nursery import require_trio, start_clean
from trio_vmcp._session.connectors import Connectors, ForSession
from trio_vmcp._session.goodbyes import say_goodbyes
from trio_vmcp._session.life import Phase
from trio_vmcp._session.log_levels import LogLevel
from trio_vmcp._session.member import Member, new_member
from trio_vmcp._session.observing import Observers, SessionReporter
from trio_vmcp._session.owner import SessionOwner
from trio_vmcp._session.reconnects import Endpoints
from trio_vmcp._session.row import SessionRow, load_row, new_row
from trio_vmcp._session.row_storage import RowStorage
from trio_vmcp._session.shared_lists import SharedLists
from trio_vmcp.connector import BackendConnector, ClientHandlers, OutgoingAuth, PreferredEra
from trio_vmcp.default_session import DefaultSession
from trio_vmcp.errors import InvalidSessionId, SessionClosed, SessionExists, SessionNotFound, VmcpError, session_tag
from trio_vmcp.identity import Identity, bind, is_bound_to, process_keys
from trio_vmcp.metadata import BackendRecord, UnreadableMetadata, checked_attributes
from trio_vmcp.models import Backend
from trio_vmcp.observe import Observer
from trio_vmcp.routing import changed_names
from trio_vmcp.session import Session
from trio_vmcp.settings import FactorySettings
from trio_vmcp.storage import LocalStorage, NotifyingStorage, Storage

__all__ = ["DefaultSessionFactory", "SessionFactory", "open_session_factory"]

_logger = logging.getLogger("trio_vmcp.session")

_SESSION_ID = re.compile(r"[\x21-\x7e]{1,256}")
# s. However long `drain_timeout` is, a close that a cancel has caused must end soon.
MOST_CANCELLED_DRAIN = 10.0
REFUSAL_STEP = 0.02  # s; to read a large row takes a few ms
WAKING = 0.0015  # s by which a task may wake later than it asked for
_SHOWN_NAMES = 5
_SESSION_ID_BYTES = 32  # twice the 128 bits that the front's rule asks for


class SessionFactory(Protocol):
    """Makes sessions and owns their tasks: every session ends when its factory is left, or before.

    The sessions of one factory share warm connections of the built-in transport, the verdicts of probes, the pace of
    reconnecting to one endpoint (`FactorySettings.reconnect_delay`), and results that modern backends declare fresh
    (`ttlMs`, MCP 2026-07-28, caching): lists, resources and `server/discover`, for at most a day and 64 MiB. A result
    that is not `public` (`cacheScope`) is kept for the identity and the token that asked, and a backend with other
    headers has other results. With an `auth` that is none of this library's, only `public` results are kept. A change
    that the backend reports discards the results that it is about.
    """

    async def make_session(
        self,
        backends: Iterable[Backend],
        *,
        identity: Identity | None = None,
        session_id: str | None = None,
        attributes: Mapping[str, str] | None = None,
        handlers: ClientHandlers | None = None,
        prefer_era: PreferredEra | None = None,
    ) -> Session:
        """Open a session that lives until its `aclose()`; it may outlive the calling task, but not the factory.

        Args:
            backends: In the order in which they are connected, are listed, and get contested names.
            identity: Binds the session to its issuer and subject, not to its token; every call must then have this
                identity as `caller`. Its token is for requests that no caller made: opening, listing, closing.
            session_id: 1-256 characters of 0x21-0x7E; None: a random one. A bearer token: keep it secret.
            attributes: Of the application's own, for `session.metadata.attributes`, which the storage keeps; up to
                16 KiB in UTF-8, keys and values together. `Session.set_attributes` replaces them.
            handlers: In place of the factory's, for all backends of this session; `ClientHandlers()` answers nothing
                and declares nothing. None: the factory's. As those, of no effect on a `connector` that is passed.
            prefer_era: What is tried first to find out the era of a backend with `era="auto"`: "modern" for
                `server/discover`, "legacy" for `initialize`. None: "legacy" with handlers for sampling or elicitation,
                else "modern". The other one is tried where the first fails.

        Raises:
            InvalidSessionId: The id is of another form; no backend was contacted.
            SessionExists: The id is taken, or was terminated within the storage's `ttl`.
            NoBackends: Fewer than `min_backends` connected.
            StorageError: The metadata could not be written.
            ValueError: Two backends have one id; there is no connector for the transport of one; `attributes` are no
                mapping of str to str, or too large; `prefer_era` is neither of the two. No backend was contacted.
        """
        ...

    def open_session(
        self,
        backends: Iterable[Backend],
        *,
        identity: Identity | None = None,
        session_id: str | None = None,
        attributes: Mapping[str, str] | None = None,
        handlers: ClientHandlers | None = None,
        prefer_era: PreferredEra | None = None,
    ) -> AbstractAsyncContextManager[Session]:
        """`make_session` for the length of an `async with`. An error in its body comes out as itself."""
        ...

    async def restore_session(
        self,
        session_id: str,
        backends: Iterable[Backend],
        *,
        identity: Identity | None = None,
        handlers: ClientHandlers | None = None,
        prefer_era: PreferredEra | None = None,
    ) -> Session:
        """Open a session again from its metadata, after a `suspend`, or on another instance.

        A stored backend session is taken up without `initialize` if the backend's endpoint is the same as before; if
        the backend no longer knows it (404), a new one is opened. A stored backend that is not in `backends` stays a
        member of the session, and calls to its names fail with BackendUnavailable; a backend that is not stored joins.
        The attributes are those of the metadata.

        Args:
            handlers, prefer_era: As in `make_session`. Neither is stored. A stored backend session of the handshake era
                is taken up in that era, whatever is preferred, and goes by the capabilities that were declared when it
                began; what it asks goes to these handlers.

        Raises:
            InvalidSessionId: The id is of another form; neither storage nor backend was contacted.
            SessionNotFound: Unknown, expired, terminated, or bound to another identity: one answer, at the same cost.
            SessionExists: The session is live in this factory, or is being restored by it.
            StorageError, NoBackends, ValueError: As in `make_session`; the stored session stays as it was.
            UnreadableMetadata: The StorageError of a row that this release cannot read (`trio_vmcp.metadata`).
        """
        ...


@attrs.define(eq=False)
class DefaultSessionFactory(SessionFactory):
    """Built by `open_session_factory` alone. Docstrings are inherited from `SessionFactory`."""

    _storage: Storage = attrs.field(alias="storage", repr=False)  # these two may be the user's, secrets and all
    _connector_for: ForSession = attrs.field(alias="connector_for", repr=False)
    _check_backend: Callable[[Backend], None] = attrs.field(alias="check_backend", repr=False)
    _settings: FactorySettings = attrs.field(alias="settings")
    _nursery: trio.Nursery = attrs.field(alias="nursery")
    _keys: tuple[bytes, ...] = attrs.field(alias="keys", repr=False)
    _warns_of_process_key: bool = attrs.field(alias="warns_of_process_key")
    shares_storage: bool  # other factories may have the storage, too
    _observers: Observers = attrs.field(alias="observers")
    _live: dict[str, SessionOwner | None] = attrs.field(
        factory=dict, init=False, repr=False
    )  # None: id taken, not opening yet
    _endpoints: Endpoints = attrs.field(init=False, repr=False)
    _shared: SharedLists = attrs.field(factory=SharedLists, init=False, repr=False)
    _closing: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._endpoints = Endpoints(self._settings.reconnect_delay, self._settings.reconnect_max_delay)

    async def make_session(
        self,
        backends: Iterable[Backend],
        *,
        identity: Identity | None = None,
        session_id: str | None = None,
        attributes: Mapping[str, str] | None = None,
        handlers: ClientHandlers | None = None,
        prefer_era: PreferredEra | None = None,
    ) -> Session:
        _, session = await self._make(backends, identity, session_id, attributes, handlers, prefer_era)
        return session

    @protected_manager
    @asynccontextmanager
    async def open_session(
        self,
        backends: Iterable[Backend],
        *,
        identity: Identity | None = None,
        session_id: str | None = None,
        attributes: Mapping[str, str] | None = None,
        handlers: ClientHandlers | None = None,
        prefer_era: PreferredEra | None = None,
    ) -> AsyncIterator[Session]:
        owner, session = await self._make(backends, identity, session_id, attributes, handlers, prefer_era)
        body_error: BaseException | None = None
        try:
            yield session
        except BaseException as exc:  # noqa: ASYNC103, BLE001  # raised below
            body_error = exc
        owner.request_close(terminate=True)
        if exit_in(body_error) is not None:
            owner.shorten_drain(MOST_CANCELLED_DRAIN)
        try:
            await wait_closed([owner])
        except EXITS as exc:
            body_error = exc  # a Ctrl-C while the session closed: it wins over all else
        finally:
            if body_error is not None:
                raise body_error  # it wins over a cancel that came while the session closed

    @trio.lowlevel.enable_ki_protection
    async def restore_session(
        self,
        session_id: str,
        backends: Iterable[Backend],
        *,
        identity: Identity | None = None,
        handlers: ClientHandlers | None = None,
        prefer_era: PreferredEra | None = None,
    ) -> Session:
        _require_preferred(prefer_era)
        configured = self._by_id(backends)
        require_valid(session_id)
        self._require_open()
        reporter = self._new_reporter(session_id)
        row = await self._load_for(session_id, identity, reporter, trio.current_time())
        _, session = await self._restore(row, configured, identity, handlers, prefer_era, reporter)
        return session

    async def _restore(
        self,
        row: SessionRow,
        configured: Mapping[str, Backend],
        identity: Identity | None,
        handlers: ClientHandlers | None,
        prefer_era: PreferredEra | None,
        reporter: SessionReporter,
        without: Container[str] = (),
        log_level: LogLevel | None = None,
    ) -> tuple[SessionOwner, DefaultSession]:
        """
        Args:
            without: Ids of stored backends whose records are not taken up: they are members only if configured.
        """
        session_id = row.metadata.session_id
        stored = {record.backend_id: record for record in row.metadata.backends if record.backend_id not in without}
        with self._claim(session_id):
            members = {
                backend.id: new_member(
                    backend.id, backend, self._settings, self._endpoints, stored.get(backend.id), identity=identity
                )
                for backend in configured.values()
            }
            for record in stored.values():
                absent = new_member(record.backend_id, None, self._settings, self._endpoints, record)
                members.setdefault(record.backend_id, absent)
            connector = self._connector_for(session_id, handlers, prefer_era)
            return await self._run(members, row, identity, connector, reporter, log_level)

    async def close(self, *, is_exit: bool) -> None:
        """End every session, all of them at once. Cancelled, it still stays to the end, with a shorter drain.

        Args:
            is_exit: The program ends: with the shorter drain from the start.
        """
        self._closing = True
        owners = [owner for owner in self._live.values() if owner is not None]
        for owner in owners:
            owner.request_close(terminate=self._settings.on_exit == "terminate")
            if is_exit:
                owner.shorten_drain(MOST_CANCELLED_DRAIN)
        await wait_closed(owners)

    # --- what a manager of sessions asks for (`manager.py`): owners and rows

    @property
    def settings(self) -> FactorySettings:
        return self._settings

    @property
    def observers(self) -> tuple[Observer, ...]:
        return self._observers.all()

    @property
    def storage_ttl(self) -> float:
        return self._storage.ttl

    @property
    def notifying_storage(self) -> NotifyingStorage | None:
        """The storage, if it tells of what other instances write."""
        return self._storage if isinstance(self._storage, NotifyingStorage) else None

    def check_backends(self, backends: Iterable[Backend]) -> tuple[Backend, ...]:
        """
        Raises:
            ValueError: Two have one id; there is no connector for the transport of one.
        """
        return tuple(self._by_id(backends).values())

    async def make_owned(
        self,
        session_id: str,
        backends: Iterable[Backend],
        identity: Identity | None,
        attributes: Mapping[str, str] | None,
        handlers: ClientHandlers | None,
        prefer_era: PreferredEra | None,
    ) -> SessionOwner:
        """`make_session` with an id that was drawn at random."""
        owner, _ = await self._make(backends, identity, session_id, attributes, handlers, prefer_era, is_random=True)
        return owner

    def find_live(self, session_id: str) -> SessionOwner | None:
        """The owner of a session that is not CLOSED, whatever made it."""
        owner = self._live.get(session_id)
        return None if owner is None or owner.life.phase is Phase.CLOSED else owner

    def find_by_tag(self, tag: str) -> SessionOwner | None:
        """The owner of a session that observers know by this tag, also while it opens."""
        owners = (owner for owner in self._live.values() if owner is not None)
        return next((owner for owner in owners if session_tag(owner.id) == tag), None)

    async def load_row(self, session_id: str, identity: Identity | None, asked_at: float) -> SessionRow:
        """The row of a session of this identity.

        Args:
            asked_at: By Trio's clock; a refusal takes a whole number of `REFUSAL_STEP` from then on.

        Raises:
            SessionNotFound: There is none, or it is another's: at the same cost.
            UnreadableMetadata: Likewise at that cost.
            StorageError: Away, or too slow.
        """
        return await self._load_for(session_id, identity, self._new_reporter(session_id), asked_at)

    async def restore_owned(
        self,
        row: SessionRow,
        backends: Iterable[Backend],
        identity: Identity | None,
        handlers: ClientHandlers | None,
        prefer_era: PreferredEra | None,
        log_level: LogLevel,
        *,
        without: Container[str],
    ) -> SessionOwner:
        """`restore_session` with a row that was loaded by `load_row` for this identity.

        Args:
            log_level: What the session had set, as far as this process knows.
            without: As in `_restore`.
        """
        _require_preferred(prefer_era)
        reporter = self._new_reporter(row.metadata.session_id)
        configured = self._by_id(backends)
        owner, _ = await self._restore(row, configured, identity, handlers, prefer_era, reporter, without, log_level)
        return owner

    def row_storage(self, session_id: str) -> RowStorage:
        """The storage, for the row of one session."""
        return self._bounded_storage(self._new_reporter(session_id))

    async def say_goodbyes(
        self,
        session_id: str,
        records: Iterable[BackendRecord],
        backends: Iterable[Backend],
        identity: Identity | None,
    ) -> None:
        """End the backends' sessions that the row of a session names, which is not open. At most `teardown_timeout`."""
        connector = self._connector_for(session_id, None, None)
        await say_goodbyes(records, backends, connector, identity, self._settings.teardown_timeout)

    @trio.lowlevel.enable_ki_protection
    async def _make(
        self,
        backends: Iterable[Backend],
        identity: Identity | None,
        session_id: str | None,
        attributes: Mapping[str, str] | None,
        handlers: ClientHandlers | None,
        prefer_era: PreferredEra | None,
        *,
        is_random: bool = False,
    ) -> tuple[SessionOwner, DefaultSession]:
        """
        Args:
            is_random: The id was drawn at random for this session: no other has it.
        """
        _require_preferred(prefer_era)
        configured = self._by_id(backends)
        kept = checked_attributes({} if attributes is None else attributes)
        if session_id is not None:
            require_valid(session_id)
        chosen = session_id or secrets.token_urlsafe(_SESSION_ID_BYTES)
        reporter = self._new_reporter(chosen)
        with self._claim(chosen):
            storage = self._bounded_storage(reporter)
            if session_id is not None and not is_random:
                await self._require_unknown(session_id, storage)
            self._warn_of_process_key(identity)
            row = new_row(chosen, bind(identity, self._keys), storage, kept)
            members = {
                backend_id: new_member(backend_id, backend, self._settings, self._endpoints, identity=identity)
                for backend_id, backend in configured.items()
            }
            connector = self._connector_for(chosen, handlers, prefer_era)
            return await self._run(members, row, identity, connector, reporter)

    def _by_id(self, backends: Iterable[Backend]) -> dict[str, Backend]:
        configured: dict[str, Backend] = {}
        for backend in backends:
            if backend.id in configured:
                raise ValueError(f"two backends have the id {backend.id!r}")
            self._check_backend(backend)
            configured[backend.id] = backend
        return configured

    def _warn_of_process_key(self, identity: Identity | None) -> None:
        """A storage that is passed may outlive the process, and the random key that binds the session does not."""
        if identity is None or not self._warns_of_process_key:
            return
        self._warns_of_process_key = False
        _logger.warning(
            "sessions with an identity are bound by a random key of this process, so no other process can restore them "
            "from the storage: set FactorySettings(identity_keys=…)"
        )

    def _require_open(self) -> None:
        if self._closing:
            raise SessionClosed("the session factory is closing or closed and opens no sessions")

    @contextmanager
    def _claim(self, session_id: str) -> Iterator[None]:
        """Reserve the id while a session opens under it. A session holds its id until it is CLOSED."""
        self._require_open()
        if session_id in self._live:
            owner = self._live[session_id]
            if owner is None or owner.life.phase is not Phase.CLOSED:
                raise SessionExists(session_id)
        self._live[session_id] = None
        try:
            yield
        finally:
            if self._live.get(session_id, self) is None:
                del self._live[session_id]

    async def _run(
        self,
        members: dict[str, Member],
        row: SessionRow,
        identity: Identity | None,
        connector: BackendConnector,
        reporter: SessionReporter,
        log_level: LogLevel | None = None,
    ) -> tuple[SessionOwner, DefaultSession]:
        if self._closing:  # since the id was claimed: the storage was asked in between
            raise SessionClosed("the session factory closed while the session was opening")
        owner = SessionOwner(
            members,
            row,
            identity,
            connector,
            self._settings,
            self._endpoints,
            reporter,
            self._raise_exit,
            self._check_backend,
            self._shared,
            log_level or LogLevel(),
        )
        self._live[owner.id] = owner
        session = DefaultSession(owner)
        start_clean(self._nursery, self._own, owner, session)
        try:
            await owner.wait_open()
        except BaseException:  # cancelled openings included: a session without a holder would run until `idle_timeout`
            owner.request_close(terminate=not row.restored, drain_timeout=0)
            with trio.CancelScope(shield=True):
                await owner.wait_closed()
            raise
        return owner, session

    async def _own(self, owner: SessionOwner, session: DefaultSession) -> None:
        """The owner task. Its frame holds `session`, or garbage collection would empty weak caches of open ones."""
        try:
            await owner.serve()
        finally:
            if self._live.get(owner.id) is owner:  # else: CLOSED for long, and its id is in use again
                del self._live[owner.id]

    def _raise_exit(self, error: BaseException) -> None:
        """A KeyboardInterrupt or SystemExit came out of code of the user's, in a task of a session: raise it here. The
        body is cancelled, all sessions close in order, and then it comes out of the factory.
        """

        async def raise_it() -> None:
            raise error

        start_clean(self._nursery, raise_it)

    def _new_reporter(self, session_id: str) -> SessionReporter:
        return SessionReporter(self._observers, session_tag(session_id), self._raise_exit)

    def _bounded_storage(self, reporter: SessionReporter) -> RowStorage:
        return RowStorage(self._storage, self._settings.storage_timeout, reporter.report_storage)

    async def _require_unknown(self, session_id: str, storage: RowStorage) -> None:
        try:
            await load_row(session_id, storage)
        except SessionNotFound:
            return
        raise SessionExists(session_id)

    async def _load_for(
        self, session_id: str, identity: Identity | None, reporter: SessionReporter, asked_at: float
    ) -> SessionRow:
        # Made here: behind the wait, a few us tell one reason from another.
        refusal: VmcpError = SessionNotFound(session_id)
        try:
            row = await load_row(session_id, self._bounded_storage(reporter))
            if is_bound_to(row.metadata.identity_binding, identity, self._keys):
                binding = bind(identity, self._keys)  # by today's first key
                row.metadata = attrs.evolve(row.metadata, identity_binding=binding)
                return row
        except SessionNotFound:
            pass
        except UnreadableMetadata as unreadable:
            refusal = unreadable
        await _wait_to_refuse(asked_at)
        raise refusal


async def _wait_to_refuse(asked_at: float) -> None:
    """Let a whole number of `REFUSAL_STEP` pass since `asked_at`, one at least. A row takes longer to read than no row,
    the longer the larger it is, and the time of the answer would tell which ids exist.
    """
    steps = 1 + (trio.current_time() - asked_at) // REFUSAL_STEP
    refused_at = asked_at + steps * REFUSAL_STEP
    # The kernel wakes a process a whole number of ms later (epoll_wait), so the fraction would still be told.
    await trio.sleep_until(refused_at - WAKING)
    while (now := trio.current_time()) < refused_at:
        await trio.lowlevel.checkpoint()
        if trio.current_time() == now:  # a clock of a test, which waits until all tasks sleep
            break
    await trio.sleep_until(refused_at)


async def wait_closed(owners: Sequence[SessionOwner]) -> None:
    """Until all of them are CLOSED. Cancelled, it still stays to the end, which is then bounded."""
    try:
        for owner in owners:
            await owner.wait_closed()
    finally:
        for owner in owners:  # all at once: their drains go on side by side
            owner.shorten_drain(MOST_CANCELLED_DRAIN)
        with trio.CancelScope(shield=True):
            for owner in owners:
                await owner.wait_closed()


def require_valid(session_id: str) -> None:
    if not isinstance(session_id, str) or not _SESSION_ID.fullmatch(session_id):
        shown = f"{len(session_id)} characters" if isinstance(session_id, str) else type(session_id).__name__
        raise InvalidSessionId(f"a session id is 1-256 characters of 0x21-0x7E; this one ({shown}) is not")


def _require_preferred(prefer_era: PreferredEra | None) -> None:
    if prefer_era not in (None, *get_args(PreferredEra)):
        raise ValueError(f"prefer_era={prefer_era!r} is none of 'modern', 'legacy' and None")


def _warn_of_changed_names(settings: FactorySettings) -> None:
    """A name of a `Manual` is written to be found under just that name; one that does not fit is changed."""
    changed = changed_names(settings.conflict_resolution, settings.names_for, settings.max_name_length)
    if not changed:
        return
    shown = ", ".join(f"{name!r} as {fitted!r}" for name, fitted in list(changed.items())[:_SHOWN_NAMES])
    more = f" and {len(changed) - _SHOWN_NAMES} more" if len(changed) > _SHOWN_NAMES else ""
    _logger.warning(
        "names given in Manual do not fit (names_for=%r, max_name_length=%r) and are advertised changed: %s%s",
        settings.names_for,
        settings.max_name_length,
        shown,
        more,
    )


@protected_manager
@asynccontextmanager
async def open_session_factory(
    *,
    storage: Storage | None = None,
    connector: BackendConnector | None = None,
    settings: FactorySettings | None = None,
    handlers: ClientHandlers | None = None,
    auth: OutgoingAuth | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    ssl_context: ssl.SSLContext | None = None,
    proxy: str | None = None,
    observers: Iterable[Observer] = (),
    connectors: Mapping[str, BackendConnector] | None = None,
) -> AsyncIterator[SessionFactory]:
    """Open a factory for sessions. Leaving it ends every session that it made, as `settings.on_exit` says.

    KeyboardInterrupt and SystemExit end the sessions in the same order, with a drain of at most 10 s, and come out as
    themselves, also where code of the application's raises them in a task of a session.

    Args:
        storage: Keeps the metadata; None: a `LocalStorage` of this factory. A storage that is passed is not closed.
        connector: Makes the clients; None: the built-in one, which goes by `Backend.transport`.
        settings: Limits and durations; None: the defaults of `FactorySettings`.
        handlers: Answers to requests of backends; of no effect on a `connector` that is passed.
        auth: Called for the credentials of every HTTP request (`OutgoingAuth`); `HeaderAuth`, `BearerAuth`,
            `ClientCredentials` and `PerBackend` are ready-made. Of no effect on a `connector` that is passed.
        transport: Replaces the built-in HTTP/1.1 transport, for all sessions; not closed.
        ssl_context: For the built-in transport: private CAs, client certificates. None: the platform's trust store.
        proxy: For the built-in transport: "http://user:password@host:port", or https for TLS to the proxy itself;
            "env": as HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY say now, in upper or lower case. NO_PROXY holds
            hosts (which stand for all below them, too), addresses, networks ("10.0.0.0/8"), each with ":port" or
            without, or "*". None: direct connections, whatever the environment says.
        observers: Are told what happens in the sessions (`trio_vmcp.observe`), in this order.

        connectors: For more transports, by name, beside the built-in ones (or beside `connector`): a
            `Backend(transport="ws")` is connected by `connectors["ws"]`.

    Raises:
        ValueError: `proxy` is none of these; a name in `connectors` is that of a built-in transport.
    """
    require_trio()
    settings = settings or FactorySettings()
    proxies = choose_proxies(proxy, os.environ)
    _warn_of_changed_names(settings)
    store = LocalStorage() if storage is None else storage
    built_in = BuiltInConnector(
        settings,
        handlers=handlers or ClientHandlers(),
        auth=auth,
        transport=transport,
        ssl_context=ssl_context,
        proxies=proxies,
    )
    default_for = built_in.for_session if connector is None else lambda *_: connector
    chosen = Connectors(connectors, default_for, takes_any=connector is not None)

    def make(nursery: trio.Nursery) -> DefaultSessionFactory:
        if connector is None and transport is None:
            start_clean(nursery, built_in.tidy)
        return DefaultSessionFactory(
            storage=store,
            connector_for=chosen.for_session,
            check_backend=chosen.check,
            settings=settings,
            nursery=nursery,
            keys=settings.identity_keys or process_keys(),
            shares_storage=storage is not None,
            warns_of_process_key=not (settings.identity_keys or type(store) is LocalStorage),
            observers=Observers(tuple(observers)),
        )

    try:
        async with closed_in_order(make) as factory:
            yield factory
    finally:
        built_in.close()
        if storage is None:
            with trio.move_on_after(settings.teardown_timeout, shield=True):
                await store.aclose()
