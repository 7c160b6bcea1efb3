"""The manager: many sessions by id. It opens them, finds them again, limits them, and ends them."""

from __future__ import annotations

import copy
import logging
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Protocol

import attrs
import trio

from trio_vmcp._interrupts import exit_in, protected_manager
from trio_vmcp._manager.configuration import BackendSource, Configuration, Given, Passed, difference
from trio_vmcp._manager.due import Limits
from trio_vmcp._manager.known import Asleep, Ending, Known, Live, Opening
from trio_vmcp._manager.places import Places, principal_of
from trio_vmcp._manager.registry import Registry, age_of
from trio_vmcp._nursery import describe_crash, require_trio, start_clean, start_task
from trio_vmcp._session.owner import SessionOwner
from trio_vmcp._session.row import TOUCHES_PER_TTL, SessionRow
from trio_vmcp.connector import ClientHandlers, PreferredEra
from trio_vmcp.default_session import DefaultSession
from trio_vmcp.errors import SessionClosed, SessionNotFound, VmcpError, session_tag
from trio_vmcp.factory import MOST_CANCELLED_DRAIN, DefaultSessionFactory, SessionFactory, require_valid
from trio_vmcp.identity import Identity
from trio_vmcp.models import Backend
from trio_vmcp.session import Session
from trio_vmcp.settings import ManagerSettings

__all__ = ["BackendSource", "ManagerStatistics", "SessionManager", "open_session_manager"]

logger = logging.getLogger("trio_vmcp.manager")

ID_BYTES = 32  # of a session id that is made here


@attrs.frozen(kw_only=True)
class ManagerStatistics:
    """Counts of sessions.

    Attributes:
        live: Open here, or closing.
        hibernated: Of which only the row is left, and which the next `get` wakes.
        opening: Being made, restored or woken.
        in_flight: Calls, in all live sessions.
        created: Since the manager was opened, as all that follow: made by `create` or `shared`.
        restored: Restored from the storage, or woken.
        terminated: Ended by `SessionManager.terminate` or `Session.aclose`.
        expired: Ended since they were not used for `idle_timeout`, or too old (`max_lifetime`).
        refused: How often a cap refused to open, restore or wake one.
    """

    live: int
    hibernated: int
    opening: int
    in_flight: int
    created: int
    restored: int
    terminated: int
    expired: int
    refused: int


class SessionManager(Protocol):
    """Many sessions by id, for servers: each request names its session and its caller.

    Every method may raise, besides what it says:

    Raises:
        SessionClosed: The manager is closing or closed.
        StorageError: The storage is away, for what is not live here. Nothing is lost; the request may be repeated.
    """

    async def create(
        self,
        *,
        identity: Identity | None = None,
        attributes: Mapping[str, str] | None = None,
        handlers: ClientHandlers | None = None,
        prefer_era: PreferredEra | None = None,
    ) -> Session:
        """Open a session of a new id, bound to `identity`, and give it with `caller` filled in (`Session.as_caller`).

        Args:
            attributes, handlers, prefer_era: As in `SessionFactory.make_session`.

        Raises:
            SessionLimitReached: A cap is reached; no backend was contacted, and nothing was stored.
            NoBackends, StorageError, ValueError: As in `SessionFactory.make_session`.
        """
        ...

    async def get(
        self,
        session_id: str,
        *,
        caller: Identity | None = None,
        handlers: ClientHandlers | None = None,
        prefer_era: PreferredEra | None = None,
    ) -> Session:
        """Find a session for its owner, and give it with `caller` filled in: at once if it is live here. Otherwise it
        is restored from its metadata, or woken; once, however many ask for it at the same time. The session counts as
        used now.

        Args:
            handlers, prefer_era: Where this restores or wakes the session, as in `SessionFactory.restore_session`;
                None, where it wakes: those that it had.

        Raises:
            InvalidSessionId: No session has an id of this form.
            SessionNotFound: Unknown, expired, terminated, or bound to another identity than `caller`: one answer, at
                the same cost.
            SessionLimitReached: To restore or wake it is over a cap; the session stays as it is.
            NoBackends, StorageError, ValueError: As in `SessionFactory.restore_session`; it stays as it is.
        """
        ...

    async def shared(self, identity: Identity | None = None) -> Session:
        """The one session that all stateless requests of a principal share on this instance; made when there is none.
        Its probes try `server/discover` first.

        Raises:
            SessionLimitReached, NoBackends, StorageError, ValueError: As in `create` and `get`.
        """
        ...

    async def terminate(self, session_id: str, *, caller: Identity | None = None) -> None:
        """End a session for good, live here or not, as `Session.aclose` does. It needs no place under a cap.

        If the storage does not take the end, that is remembered and tried again; the id is not served here any more.

        Raises:
            InvalidSessionId, SessionNotFound: As in `get`.
        """
        ...

    async def set_backends(self, backends: Iterable[Backend] | BackendSource) -> None:
        """Change the backends of all sessions. A backend whose fields differ is exchanged: removed and added.

        Returns when every live session has what is new, or has it in `Session.failures`; calls of removed backends may
        still drain. A source is asked again for every live session. Sessions that hibernate change when they wake.
        Other instances are told nothing.

        Raises:
            ValueError: Two backends have one id, or there is no connector for one; nothing has changed.
        """
        ...

    @property
    def statistics(self) -> ManagerStatistics:
        """Counts, as of now."""
        ...


@attrs.define(eq=False)
class DefaultSessionManager(SessionManager):
    """Built by `open_session_manager` alone. Docstrings are inherited from `SessionManager`."""

    _factory: DefaultSessionFactory = attrs.field(alias="factory")
    _nursery: trio.Nursery = attrs.field(alias="nursery")
    _settings: ManagerSettings = attrs.field(alias="settings")
    _configuration: Configuration = attrs.field(alias="configuration")
    _registry: Registry = attrs.field(alias="registry")
    # Of openings, restores and changes of backends.
    _under_way: set[trio.CancelScope] = attrs.field(factory=set, init=False, repr=False)
    _opening: int = attrs.field(default=0, init=False)
    _is_closing: bool = attrs.field(default=False, init=False)
    _none_under_way: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)  # set once: while closing
    _changing: trio.Lock = attrs.field(factory=trio.Lock, init=False, repr=False)  # one `set_backends` after another

    @property
    def statistics(self) -> ManagerStatistics:
        known, counts = self._registry.all(), self._registry.counts
        live = self._registry.live()
        return ManagerStatistics(
            live=len(live),
            hibernated=sum(isinstance(each.state, Asleep) for each in known),
            opening=self._opening,
            in_flight=sum(owner.admission.in_flight for _, owner in live),
            created=counts.created,
            restored=counts.restored,
            terminated=counts.terminated,
            expired=counts.expired,
            refused=self._registry.places.refused,
        )

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
        with self._placed(known), self._given_up():
            owner = await self._make(known, attributes)
        return DefaultSession(owner).as_caller(identity)

    @trio.lowlevel.enable_ki_protection
    async def get(
        self,
        session_id: str,
        *,
        caller: Identity | None = None,
        handlers: ClientHandlers | None = None,
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
                    owner.note_use()
                    return DefaultSession(owner).as_caller(caller)
                case Live(owner) if owner.life.terminates:
                    raise SessionNotFound(session_id)
                case Live(owner):  # suspended, or left to another instance: then it can be restored
                    await owner.wait_closed()
                case Asleep():
                    await _outcome(self._bring_back(known, None, handlers, prefer_era))
                case Opening() as opening:
                    await _outcome(opening)
                case Ending():  # `_find` gives none
                    raise SessionNotFound(session_id)

    @trio.lowlevel.enable_ki_protection
    async def shared(self, identity: Identity | None = None) -> Session:
        principal, ids = principal_of(identity), self._registry.shared
        while True:
            self._require_open()
            known = self._registry.find(ids.get(principal, ""))
            if known is None or known.is_ending:
                known = Known(self._new_id(), identity, Opening(), None, "modern")
                self._registry.add(known)
                ids[principal] = known.session_id
                self._start(known, partial(self._make, known, None))
            if isinstance(known.state, Opening):
                await _outcome(known.state)
            try:
                return await self.get(known.session_id, caller=identity)
            except SessionNotFound:  # it has ended meanwhile
                if ids.get(principal) == known.session_id:
                    del ids[principal]

    @trio.lowlevel.enable_ki_protection
    async def terminate(self, session_id: str, *, caller: Identity | None = None) -> None:
        require_valid(session_id)
        while True:
            found = await self._find(session_id, caller)
            known = Known(session_id, caller, Opening()) if isinstance(found, SessionRow) else found
            match known.state:
                case Live(owner):
                    await owner.close(terminate=True, drain_timeout=None)
                    if owner.life.terminates:
                        return
                case Opening() as opening if known is found:
                    await opening.done.wait()
                case _:
                    ending = Ending(None, has_goodbyes=True, count="terminated")
                    self._registry.end(known, ending)
                    await ending.tried.wait()
                    return

    @trio.lowlevel.enable_ki_protection
    async def set_backends(self, backends: Iterable[Backend] | BackendSource) -> None:
        self._require_open()
        given = backends if callable(backends) else self._factory.check_backends(backends)
        with self._given_up():
            async with self._changing:
                asked = await self._ask_each(given)
                self._configuration.set(given)
                async with trio.open_nursery() as changes:
                    for known, owner in self._registry.live():
                        start_task(changes, self._change, known, owner, asked.get(known))

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
        self._require_open()
        known = self._registry.find(session_id)
        if known is not None and known.is_for(caller):
            return known
        row = await self._factory.load_row(session_id, caller)
        if known is not None:
            raise SessionNotFound(session_id)
        self._require_open()
        known = self._registry.find(session_id)
        if known is not None and not known.is_for(caller):
            raise SessionNotFound(session_id)
        return row if known is None else known

    def _require_young(self, known: Known, row: SessionRow) -> None:
        if age_of(row.metadata.created_at) >= self._settings.max_lifetime:
            self._registry.end(known, Ending(None, has_goodbyes=True, count="expired"))
            raise SessionNotFound(known.session_id)

    def _new_id(self) -> str:
        prefix = f"{self._settings.instance}." if self._settings.instance else ""
        return prefix + secrets.token_urlsafe(ID_BYTES)

    # --- opening

    @contextmanager
    def _placed(self, known: Known) -> Iterator[None]:
        """A place for a session that opens; it keeps the place if it gets live."""
        places = self._registry.places
        places.take(known.principal)
        self._opening += 1
        try:
            yield
        finally:
            self._opening -= 1
            if not isinstance(known.state, Live):
                places.give_back(known.principal)

    @contextmanager
    def _given_up(self) -> Iterator[None]:
        """Something that ends with SessionClosed when the manager is left."""
        with trio.CancelScope() as scope:
            self._under_way.add(scope)
            try:
                yield
            finally:
                self._under_way.discard(scope)
                self._check_under_way()
        if scope.cancelled_caught:
            raise SessionClosed("the session manager was closed meanwhile")

    async def _make(self, known: Known, attributes: Mapping[str, str] | None) -> SessionOwner:
        passed = await self._configuration.ask(known.identity)
        owner = await self._factory.make_owned(
            known.session_id, passed.backends, known.identity, attributes, known.handlers, known.prefer_era
        )
        self._enter(known, owner, passed)
        self._registry.counts.created += 1
        return owner

    def _bring_back(
        self, known: Known, row: SessionRow | None, handlers: ClientHandlers | None, prefer_era: PreferredEra | None
    ) -> Opening:
        """Start to restore it, or (`row` None) to wake it."""
        known.handlers = handlers or known.handlers
        known.prefer_era = prefer_era or known.prefer_era
        self._registry.add(known)
        return self._start(known, partial(self._restore, known, row))

    def _start(self, known: Known, open_it: Callable[[], Awaitable[object]]) -> Opening:
        before, opening = known.state, Opening()
        known.state = opening
        start_clean(self._nursery, self._open, known, opening, open_it, before if isinstance(before, Asleep) else None)
        return opening

    async def _open(
        self, known: Known, opening: Opening, open_it: Callable[[], Awaitable[object]], before: Asleep | None
    ) -> None:
        """Open a session that any number of callers wait for: none of them takes the opening along when it leaves."""
        try:
            with self._placed(known), self._given_up():
                await open_it()
        except Exception as error:  # noqa: BLE001  # for those that wait
            opening.error = error
        finally:
            if known.state is opening:
                opening.error = opening.error or SessionClosed("the session manager was closed meanwhile")
                self._registry.fall_back(known, None if isinstance(opening.error, SessionNotFound) else before)
            opening.done.set()

    async def _restore(self, known: Known, row: SessionRow | None) -> None:
        if row is None:
            row = await self._factory.load_row(known.session_id, known.identity)
        passed = await self._configuration.ask(known.identity)
        old, records = known.backends, row.metadata.backends
        gone = difference(old, passed.backends).removed
        owner = await self._factory.restore_owned(
            row, passed.backends, known.identity, known.handlers, known.prefer_era, without=gone
        )
        self._enter(known, owner, passed)
        self._registry.counts.restored += 1
        ended = [record for record in records if record.backend_id in gone]
        if ended:
            start_clean(self._nursery, self._factory.say_goodbyes, known.session_id, ended, old, known.identity)

    def _enter(self, known: Known, owner: SessionOwner, passed: Passed) -> None:
        self._registry.enter(known, owner, passed)
        if passed.generation != self._configuration.generation:  # `set_backends` was called meanwhile
            start_clean(self._nursery, self._change, known, owner, None)

    # --- other backends

    async def _ask_each(self, given: Given) -> dict[Known, tuple[Backend, ...]]:
        """The backends of each live session, before anything changes."""
        found: dict[Known, tuple[Backend, ...]] = {}
        errors: list[Exception] = []

        async def ask(known: Known) -> None:
            try:
                found[known] = await self._configuration.ask_of(given, known.identity)
            except Exception as error:  # noqa: BLE001  # raised below
                errors.append(error)

        async with trio.open_nursery() as asking:
            for known, _ in self._registry.live():
                start_task(asking, ask, known)
        if errors:
            raise errors[0]
        return found

    async def _change(self, known: Known, owner: SessionOwner, backends: tuple[Backend, ...] | None) -> None:
        """Give a live session its new backends; None: ask for them."""
        generation = self._configuration.generation
        if backends is None:
            try:
                passed = await self._configuration.ask(known.identity)
            except Exception as crash:  # noqa: BLE001  # of the user's source; the session keeps what it has
                logger.warning("%s keeps its backends: %s", session_tag(known.session_id), describe_crash(crash))
                return
            backends, generation = passed.backends, passed.generation
        if owner.life.is_closing or known.generation >= generation:
            return
        change = difference(known.backends, backends)
        known.backends, known.generation = backends, generation
        for backend_id in change.removed:
            with suppress(ValueError):  # the session has let go of it before
                owner.retire_backend(backend_id)
        async with trio.open_nursery() as joining:
            for backend in change.added:
                start_task(joining, _join, known, owner, backend)
        await owner.wait_advertised()

    # --- the end

    def _check_under_way(self) -> None:
        if self._is_closing and not self._under_way:
            self._none_under_way.set()

    async def close(self, *, is_exit: bool) -> None:
        """End all sessions, as the factory's `on_exit` says. Cancelled, it still stays to the end, with a shorter
        drain.

        Args:
            is_exit: The program ends: with the shorter drain from the start.
        """
        self._is_closing = True
        for scope in self._under_way:
            scope.cancel(reason="the session manager closes")
        self._check_under_way()
        self._registry.request_close()
        if is_exit:
            self._registry.shorten_drains(MOST_CANCELLED_DRAIN)
        try:
            await self._end_all()
        finally:
            self._registry.shorten_drains(MOST_CANCELLED_DRAIN)
            with trio.CancelScope(shield=True):
                await self._end_all()

    async def _end_all(self) -> None:
        async with trio.open_nursery() as ends:
            start_task(ends, self._registry.end_all)
            await self._none_under_way.wait()
        await self._registry.end_all()  # those that opened, or fell asleep, meanwhile


async def _outcome(opening: Opening) -> None:
    await opening.done.wait()
    if isinstance(opening.error, VmcpError):
        raise copy.copy(opening.error) from opening.error.__cause__  # several tasks raise it
    if opening.error is not None:
        raise opening.error


async def _join(known: Known, owner: SessionOwner, backend: Backend) -> None:
    try:
        await owner.add_backend(backend, None)
    except SessionClosed:
        pass
    except ValueError as error:  # the session was given one of this id on its own
        logger.warning("%s did not take over a backend: %s", session_tag(known.session_id), error)


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
    body_error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            registry = Registry(factory, nursery, configuration, limits, places)
            manager = DefaultSessionManager(factory, nursery, settings, configuration, registry)
            start_clean(nursery, registry.serve)
            try:
                yield manager
            except BaseException as exc:  # noqa: ASYNC103, BLE001  # raised below: the nursery would group it
                body_error = exc
            await manager.close(is_exit=exit_in(body_error) is not None)
            nursery.cancel_scope.cancel(reason="the session manager is closed")
    except BaseExceptionGroup as group:
        # An exit wins over what the body ended with, which may be the Cancelled that this exit has caused.
        body_error = exit_in(group) or body_error
        if body_error is None:
            raise
    finally:
        if body_error is not None:
            raise body_error  # it wins over a cancel that came while the sessions closed
