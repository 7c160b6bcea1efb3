"""DefaultSessionManager: which session a request is about, and its owner. Its parts are in `_manager/`."""

from __future__ import annotations

import hmac
import logging
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

from trio_vmcp._interrupts import closed_in_order, protected_manager
from trio_vmcp._manager.changes import Changes
from trio_vmcp._manager.configuration import BackendSource, Configuration, Passed, difference
from trio_vmcp._manager.due import Limits
from trio_vmcp._manager.known import Asleep, Ending, Known, Live, Opening
from trio_vmcp._manager.openings import Openings, outcome
from trio_vmcp._manager.places import Places, principal_of
from trio_vmcp._manager.registry import Registry, age_of
from trio_vmcp._manager.storage_failures import StorageFailures
from trio_vmcp._nursery import describe_crash, require_trio, start_clean, start_if_open, start_task
from trio_vmcp._session.life import Cause
from trio_vmcp._session.owner import SessionOwner
from trio_vmcp._session.row import TOUCHES_PER_TTL, SessionRow
from trio_vmcp.connector import ClientHandlers, PreferredEra
from trio_vmcp.default_session import DefaultSession
from trio_vmcp.errors import SessionClosed, SessionNotFound
from trio_vmcp.factory import MOST_CANCELLED_DRAIN, DefaultSessionFactory, SessionFactory, require_valid
from trio_vmcp.identity import Identity
from trio_vmcp.manager import HandlersFor, ManagerStatistics, SessionManager
from trio_vmcp.metadata import UnreadableMetadata
from trio_vmcp.models import Backend
from trio_vmcp.observe import Observer
from trio_vmcp.session import Session
from trio_vmcp.settings import ManagerSettings

__all__ = ["DefaultSessionManager", "open_session_manager"]

_logger = logging.getLogger("trio_vmcp.manager")

ID_BYTES = 32  # of a session id that is made here


@attrs.define(eq=False)
class DefaultSessionManager(SessionManager):
    """Built by `open_session_manager` alone. Docstrings are inherited from `SessionManager`."""

    _factory: DefaultSessionFactory = attrs.field(alias="factory")
    _nursery: trio.Nursery = attrs.field(alias="nursery")
    _settings: ManagerSettings = attrs.field(alias="settings")
    _configuration: Configuration = attrs.field(alias="configuration")
    _registry: Registry = attrs.field(alias="registry")
    _openings: Openings = attrs.field(alias="openings")
    _changes: Changes = attrs.field(alias="changes")
    _failures: StorageFailures = attrs.field(factory=StorageFailures, init=False, repr=False)
    _is_closing: bool = attrs.field(default=False, init=False)
    _tasks: set[trio.CancelScope] = attrs.field(factory=set, init=False, repr=False)  # of `start_task`
    _has_ended: bool = attrs.field(default=False, init=False)  # and so have they

    @property
    def statistics(self) -> ManagerStatistics:
        known, counts = self._registry.all(), self._registry.counts
        live = self._registry.live()
        return ManagerStatistics(
            live=sum(not owner.life.is_closing for _, owner in live),
            hibernated=sum(isinstance(each.state, Asleep) for each in known),
            opening=self._openings.count,
            in_flight=sum(owner.admission.in_flight for _, owner in live),
            created=counts.created,
            restored=counts.restored,
            terminated=counts.terminated,
            expired=counts.expired,
            refused=self._registry.places.refused,
        )

    @property
    def live_sessions(self) -> tuple[Session, ...]:
        return tuple(DefaultSession(owner) for _, owner in self._registry.live())

    @property
    def shared_sessions(self) -> tuple[Session, ...]:
        shared = set(self._registry.shared.values())
        return tuple(DefaultSession(owner) for known, owner in self._registry.live() if known.session_id in shared)

    @property
    def observers(self) -> tuple[Observer, ...]:
        return self._factory.observers

    def start_task(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        if self._has_ended or not start_if_open(self._nursery, self._run_task, function, args):
            raise SessionClosed("the session manager has ended")

    async def _run_task(self, function: Callable[..., Awaitable[object]], args: tuple[object, ...]) -> None:
        # Shielded: if the code around a server is cancelled, calls that it has admitted drain, and their streams must
        # not end before them.
        with trio.CancelScope(shield=True) as scope:
            self._tasks.add(scope)
            if self._has_ended:
                scope.cancel(reason="the session manager has ended")
            try:
                await _run_isolated(function, args)
            finally:
                self._tasks.discard(scope)

    def derive_keys(self, purpose: str) -> tuple[bytes, ...]:
        label = b"trio_vmcp derived key\0" + purpose.encode()
        return tuple(hmac.digest(key, label, "sha256") for key in self._factory.settings.identity_keys)

    # --- requests

    @trio.lowlevel.enable_ki_protection
    async def create(
        self,
        *,
        identity: Identity | None = None,
        attributes: Mapping[str, str] | None = None,
        handlers: ClientHandlers | None = None,
        prefer_era: PreferredEra | None = None,
    ) -> Session:
        self._require_open()
        known = Known(self._new_id(), identity, Opening(), handlers, prefer_era)
        with self._openings.placed(known):
            owner = await self._make(known, attributes)
        return DefaultSession(owner).as_caller(identity)

    @trio.lowlevel.enable_ki_protection
    async def get(
        self,
        session_id: str,
        *,
        caller: Identity | None = None,
        handlers: ClientHandlers | HandlersFor | None = None,
        prefer_era: PreferredEra | None = None,
    ) -> Session:
        require_valid(session_id)
        while True:
            found = await self._find(session_id, caller)
            if isinstance(found, SessionRow):
                known, row = Known(session_id, caller, Opening()), found
                self._require_young(known, row)
                self._bring_back(known, row, handlers, prefer_era)
            else:
                known = found
                known.identity = caller  # its newest token
            match known.state:
                case Live(owner) if not owner.life.is_closing:
                    return _used(owner, caller)
                case Live(owner) if owner.life.terminates:
                    raise SessionNotFound(session_id)
                case Live(owner):  # suspended, or left to another instance: then it can be restored
                    await owner.wait_closed()
                case Asleep():
                    await outcome(self._bring_back(known, None, handlers, prefer_era))
                case Opening() as opening:
                    await outcome(opening)
                case Ending():  # `_find` gives none
                    raise SessionNotFound(session_id)

    @trio.lowlevel.enable_ki_protection
    async def shared(self, identity: Identity | None = None, *, handlers: ClientHandlers | None = None) -> Session:
        principal, ids = principal_of(identity), self._registry.shared
        while True:
            self._require_open()
            known = self._registry.find(ids.get(principal, ""))
            if known is not None and isinstance(known.state, Live) and not known.state.owner.life.is_closing:
                known.identity = identity  # its newest token
                return _used(known.state.owner, identity)
            if known is None or known.is_ending:
                known = Known(self._new_id(), identity, Opening(), handlers, "modern")
                ids[principal] = known.session_id
                await outcome(self._openings.start(known, partial(self._make, known, None)))
            try:
                if isinstance(known.state, Opening):
                    await outcome(known.state)
                return await self.get(known.session_id, caller=identity)
            except (SessionNotFound, UnreadableMetadata):  # it has ended meanwhile, or slept and cannot wake
                if ids.get(principal) == known.session_id:
                    del ids[principal]

    @trio.lowlevel.enable_ki_protection
    async def terminate(self, session_id: str, *, caller: Identity | None = None, wait: bool = True) -> None:
        require_valid(session_id)
        while True:
            found = await self._find(session_id, caller)
            known = Known(session_id, caller, Opening()) if isinstance(found, SessionRow) else found
            match known.state:
                case Live(owner) if not wait and not owner.life.is_closing:
                    owner.request_close(terminate=True, everywhere=True, cause=Cause.ASKED)
                    return
                case Live(owner) if not wait and owner.life.terminates:
                    raise SessionNotFound(session_id)
                case Live(owner):
                    await owner.close(terminate=True, drain_timeout=None)
                    if owner.life.terminates:
                        return
                case Opening() as opening if known is found:
                    await opening.done.wait()
                case _:
                    ending = Ending(None, count="terminated")
                    self._registry.end(known, ending)
                    await ending.tried.wait()
                    return

    @trio.lowlevel.enable_ki_protection
    async def set_backends(self, backends: Iterable[Backend] | BackendSource) -> None:
        self._require_open()
        given = backends if callable(backends) else self._factory.check_backends(backends)
        with self._openings.given_up():
            await self._changes.make(given)

    # --- which session

    def _require_open(self) -> None:
        if self._is_closing:
            raise SessionClosed("the session manager is closing or closed")

    async def _find(self, session_id: str, caller: Identity | None) -> Known | SessionRow:
        """What the manager knows of the session of this caller; its row, if it knows nothing.

        Raises:
            SessionNotFound: Unknown, ended, or another's: after the same operation of the storage in each case.
            StorageError: It is not known here, or is another's.
        """
        asked_at = trio.current_time()
        self._require_open()
        known = self._registry.find(session_id)
        if known is not None and known.is_for(caller):
            return known
        with self._failures.logged("found"):
            row = await self._factory.load_row(session_id, caller, asked_at)
        if known is not None:
            raise SessionNotFound(session_id)
        self._require_open()
        known = self._registry.find(session_id)
        if known is not None and not known.is_for(caller):
            raise SessionNotFound(session_id)
        owner = self._factory.find_live(session_id)
        if known is None and owner is not None:  # made by the factory itself, or by another manager of it
            return Known(session_id, caller, Live(owner))
        return row if known is None else known

    def _require_young(self, known: Known, row: SessionRow) -> None:
        if age_of(row.metadata.created_at) >= self._settings.max_lifetime:
            self._registry.end(known, Ending(None, count="expired"))
            raise SessionNotFound(known.session_id)

    def _new_id(self) -> str:
        prefix = f"{self._settings.instance}." if self._settings.instance else ""
        return prefix + secrets.token_urlsafe(ID_BYTES)

    # --- opening

    async def _make(self, known: Known, attributes: Mapping[str, str] | None) -> SessionOwner:
        passed = await self._configuration.ask(known.identity)
        with self._failures.logged("made"):
            owner = await self._factory.make_owned(
                known.session_id, passed.backends, known.identity, attributes, known.handlers, known.prefer_era
            )
        self._enter(known, owner, passed)
        self._registry.counts.created += 1
        return owner

    def _bring_back(
        self,
        known: Known,
        row: SessionRow | None,
        handlers: ClientHandlers | HandlersFor | None,
        prefer_era: PreferredEra | None,
    ) -> Opening:
        """Start to restore a session, or (`row` None) to wake it with what it had, where nothing else is given."""
        handlers, prefer_era = handlers or known.handlers, prefer_era or known.prefer_era
        return self._openings.start(known, partial(self._restore, known, row, handlers, prefer_era))

    async def _restore(
        self,
        known: Known,
        row: SessionRow | None,
        handlers: ClientHandlers | HandlersFor | None,
        prefer_era: PreferredEra | None,
    ) -> None:
        if row is None:
            with self._failures.logged("found"):
                row = await self._factory.load_row(known.session_id, known.identity, trio.current_time())
        handlers = handlers(row.metadata.attributes) if callable(handlers) else handlers
        passed = await self._configuration.ask(known.identity)
        old, records = known.backends, row.metadata.backends
        gone = difference(old, passed.backends).removed
        with self._failures.logged("restored"):
            owner = await self._factory.restore_owned(
                row, passed.backends, known.identity, handlers, prefer_era, known.log_level, without=gone
            )
        known.handlers, known.prefer_era = handlers, prefer_era
        self._enter(known, owner, passed)
        self._registry.counts.restored += 1
        ended = [record for record in records if record.backend_id in gone]
        if ended:
            start_clean(self._nursery, self._factory.say_goodbyes, known.session_id, ended, old, known.identity)

    def _enter(self, known: Known, owner: SessionOwner, passed: Passed) -> None:
        self._registry.enter(known, owner, passed)
        if passed.generation != self._configuration.generation:  # `set_backends` was called meanwhile
            start_clean(self._nursery, self._changes.take_over, known, owner)

    # --- the end

    async def close(self, *, is_exit: bool) -> None:
        """End all sessions, as the factory's `on_exit` says. Cancelled, it still stays to the end, with a shorter
        drain.

        Args:
            is_exit: The program ends: with the shorter drain from the start.
        """
        self._is_closing = True
        self._openings.give_up()
        self._registry.request_close()
        if is_exit:
            self._registry.shorten_drains(MOST_CANCELLED_DRAIN)
        try:
            await self._end_all()
        finally:
            self._registry.shorten_drains(MOST_CANCELLED_DRAIN)
            try:
                with trio.CancelScope(shield=True):
                    await self._end_all()
            finally:
                self._end_tasks()

    def _end_tasks(self) -> None:
        self._has_ended = True
        for scope in self._tasks:
            scope.cancel(reason="the session manager has ended")

    async def _end_all(self) -> None:
        async with trio.open_nursery() as ends:
            start_task(ends, self._registry.end_all)
            await self._openings.wait_given_up()
        await self._registry.end_all()  # those that opened, or fell asleep, meanwhile


def _used(owner: SessionOwner, caller: Identity | None) -> Session:
    """A view of a live session for a caller that asks for the session: a use by the newest token of its principal."""
    owner.note_use()
    owner.renew_identity(caller)
    owner.calls.check_caller(caller)
    return DefaultSession(owner, caller)


async def _run_isolated(function: Callable[..., Awaitable[object]], args: tuple[object, ...]) -> None:
    try:
        await function(*args)
    except* Exception as crash:  # noqa: BLE001  # the task is the user's, and the sessions must not end with it
        _logger.error("a task of the manager has crashed: %s", describe_crash(crash))


@protected_manager
@asynccontextmanager
async def open_session_manager(
    factory: SessionFactory, backends: Iterable[Backend] | BackendSource, *, settings: ManagerSettings | None = None
) -> AsyncIterator[SessionManager]:
    """Open a manager of sessions. Leaving it ends all of them, as the factory's `on_exit` says.

    Openings and restores that are under way are given up: an opening leaves nothing, a restore leaves the row as it
    was. Callers that wait for one get SessionClosed.

    Args:
        factory: One that `open_session_factory` made. It must outlive the manager.
        backends: Those of every session; or a function `async (identity) -> backends`, which is asked each time that a
            session is made, restored or woken.
        settings: Limits and durations; None: the defaults of `ManagerSettings`.

    Raises:
        ValueError: Two backends have one id, or there is no connector for one.
        TypeError: The factory is of another kind.
    """
    require_trio()
    settings = settings or ManagerSettings()
    if not isinstance(factory, DefaultSessionFactory):
        raise TypeError(f"factory is {type(factory).__name__}, and not one that open_session_factory made")
    given = backends if callable(backends) else factory.check_backends(backends)
    configuration = Configuration(factory.check_backends, given)
    limits = Limits(
        idle_timeout=factory.settings.idle_timeout,
        max_lifetime=settings.max_lifetime,
        hibernate_after=settings.hibernate_after,
        check_interval=settings.storage_check_interval if factory.shares_storage else math.inf,
        touch_interval=factory.storage_ttl / TOUCHES_PER_TTL,
    )
    places = Places(settings.max_sessions, settings.max_sessions_per_identity)

    def make(nursery: trio.Nursery) -> DefaultSessionManager:
        notifying = factory.notifying_storage
        tag_of = None if notifying is None else notifying.notice_tag
        registry = Registry(factory, nursery, configuration, limits, places, tag_of=tag_of)
        openings, changes = Openings(registry, nursery), Changes(registry, configuration)
        start_clean(nursery, registry.serve)
        if notifying is not None:
            start_clean(nursery, registry.heed, notifying)
        return DefaultSessionManager(factory, nursery, settings, configuration, registry, openings, changes)

    async with closed_in_order(make) as manager:
        yield manager
