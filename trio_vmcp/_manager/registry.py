"""The sessions that a manager knows, by id: how each gets live, falls asleep, ends and is counted; and the one task
that does with them what is due.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import attrs
import trio

from trio_vmcp._manager.agenda import Agenda
from trio_vmcp._manager.configuration import Configuration, Passed
from trio_vmcp._manager.due import Due, Limits, Step, due_asleep, due_live
from trio_vmcp._manager.ends import FIRST_DELAY, Fate, end_row
from trio_vmcp._manager.known import Asleep, Ending, Known, Live, Opening
from trio_vmcp._manager.places import Places, Principal
from trio_vmcp._nursery import describe_crash, start_clean, start_task
from trio_vmcp._session.life import Cause, Phase
from trio_vmcp._session.owner import SessionOwner
from trio_vmcp.errors import SessionNotFound, StorageError, session_tag
from trio_vmcp.factory import DefaultSessionFactory
from trio_vmcp.storage import NotifyingStorage

__all__ = ["Counts", "Registry", "age_of"]

logger = logging.getLogger("trio_vmcp.manager")

UNSAVED_DELAY = 1.0  # s until a session that is idle, but whose row is not written yet, is looked at again
UNTOUCHED_DELAY = 10.0  # s until a row is touched again that could not be touched


def age_of(created_at: datetime) -> float:
    """s by the wall clock; 0 where the clock of the instance that made the session is ahead of this one."""
    return max(0.0, (datetime.now(UTC) - created_at).total_seconds())


@attrs.define
class Counts:
    """Sessions, since the manager was opened."""

    created: int = 0
    restored: int = 0
    terminated: int = 0
    expired: int = 0


@attrs.define(eq=False)
class Registry:
    """The known sessions. Those that are made by a caller's task are known once they are live.

    Attributes:
        places: The caps. A session holds a place from the beginning of its opening until it is CLOSED.
        counts: What became of sessions.
        shared: The ids of the sessions that the stateless requests of a principal share.
    """

    _factory: DefaultSessionFactory = attrs.field(alias="factory")
    _nursery: trio.Nursery = attrs.field(alias="nursery")
    _configuration: Configuration = attrs.field(alias="configuration")
    limits: Limits
    places: Places
    counts: Counts = attrs.field(factory=Counts, init=False)
    # The tag of a session in notices of the storage; None: the storage gives none.
    _tag_of: Callable[[str], str] | None = attrs.field(default=None, alias="tag_of", kw_only=True, repr=False)
    shared: dict[Principal, str] = attrs.field(factory=dict, init=False, repr=False)
    _known: dict[str, Known] = attrs.field(factory=dict, init=False, repr=False)
    _by_tag: dict[str, Known] = attrs.field(factory=dict, init=False, repr=False)
    _agenda: Agenda[Known] = attrs.field(factory=Agenda, init=False, repr=False)
    _is_closing: bool = attrs.field(default=False, init=False)

    def find(self, session_id: str) -> Known | None:
        return self._known.get(session_id)

    def all(self) -> tuple[Known, ...]:
        return tuple(self._known.values())

    def live(self) -> tuple[tuple[Known, SessionOwner], ...]:
        return tuple((known, known.state.owner) for known in self._known.values() if isinstance(known.state, Live))

    def draining(self) -> Iterator[Principal]:
        """The principals of the live sessions that end."""
        return (known.principal for known, owner in self.live() if owner.life.is_closing)

    # --- the life of one

    def add(self, known: Known) -> None:
        self._known[known.session_id] = known
        if self._tag_of is not None and known.tag is None:
            try:
                known.tag = self._tag_of(known.session_id)
            except Exception as crash:  # noqa: BLE001  # of the user's storage; a hint is not worth a session
                logger.warning("no notices of the storage are heeded: it raises %s", describe_crash(crash))
                self._tag_of = None
        if known.tag is not None:
            self._by_tag[known.tag] = known

    def forget(self, known: Known) -> None:
        """The manager knows it no longer: it has ended, or it is another instance's."""
        if self._known.get(known.session_id) is known:
            del self._known[known.session_id]
            if known.tag is not None:
                self._by_tag.pop(known.tag, None)
        if self.shared.get(known.principal) == known.session_id:
            del self.shared[known.principal]
        self._agenda.discard(known)

    def enter(self, known: Known, owner: SessionOwner, passed: Passed) -> None:
        """It is open. The place that was taken for it is given back when it is CLOSED."""
        now = trio.current_time()
        known.state = Live(owner)
        known.backends, known.generation = passed.backends, passed.generation
        known.checked_at = now
        known.born_at = now - age_of(owner.row.metadata.created_at) if known.born_at is None else known.born_at
        self.add(known)
        owner.on_closed = lambda: self._note_closed(known, owner)
        if owner.life.phase is Phase.CLOSED:
            self._note_closed(known, owner)
        elif self._is_closing:
            owner.request_close(terminate=self._terminates)
        else:
            self._plan(known)

    def _note_closed(self, known: Known, owner: SessionOwner) -> None:
        self.places.give_back(known.principal)
        life, row = owner.life, owner.row
        if life.terminates and life.cause is Cause.ASKED:
            self.counts.terminated += 1
        elif life.terminates and life.cause in (Cause.IDLE, Cause.TOO_OLD):
            self.counts.expired += 1
        if life.cause is Cause.HIBERNATION:
            touch_at = trio.current_time() + self.limits.touch_interval
            known.log_level = owner.log_level
            known.state = Asleep(row.metadata.used_at, owner.calls.last_call_at, touch_at)
            self._plan(known)
        elif life.terminates and row.may_be_left and not self._is_closing:
            logger.warning("%s has ended, but its row is left", session_tag(known.session_id))
            mark = row.metadata.used_at if life.cause is Cause.IDLE else None
            known.state = Ending(mark, delay=FIRST_DELAY)
            known.state.tried.set()
            self._plan(known)
        else:
            self.forget(known)

    def end(self, known: Known, ending: Ending) -> None:
        """End one that is not live here, and remember it until its row is gone."""
        known.state = ending
        self.add(known)
        self._agenda.discard(known)
        start_clean(self._nursery, self._end, known, ending)

    async def _end(self, known: Known, ending: Ending) -> None:
        try:
            await self._try_end(known, ending)
        finally:
            ending.tried.set()

    async def _try_end(self, known: Known, ending: Ending) -> None:
        fate = await end_row(self._factory.row_storage(known.session_id), known, ending)
        if ending.count is not None and fate is not Fate.MOVED:
            setattr(self.counts, ending.count, getattr(self.counts, ending.count) + 1)
            ending.count = None
        # Without a mark the session was ended on purpose, wherever it is used: its backends need not wait for a storage
        # that does not delete its row.
        if fate is Fate.GONE or (fate is Fate.UNKNOWN and ending.mark is None):
            await self._say_goodbyes(known, ending)
        if fate is Fate.UNKNOWN:
            self._plan(known)
        else:
            self.forget(known)

    async def _say_goodbyes(self, known: Known, ending: Ending) -> None:
        records = ending.take_records()
        if not records:
            return
        backends = known.backends
        if not backends:  # it was never live here
            try:
                backends = (await self._configuration.ask(known.identity)).backends
            except Exception as crash:  # noqa: BLE001  # of the user's source
                logger.warning("%s ended without goodbyes: %s", session_tag(known.session_id), describe_crash(crash))
        await self._factory.say_goodbyes(known.session_id, records, backends, known.identity)

    def fall_back(self, known: Known, asleep: Asleep | None) -> None:
        """It was not opened: it sleeps on, or is unknown again."""
        if asleep is None:
            self.forget(known)
        else:
            asleep.used_at = trio.current_time()
            known.state = asleep
            self._plan(known)

    # --- what is due

    async def serve(self) -> None:
        """Do what is due, for all sessions, until cancelled."""
        while True:
            known = await self._agenda.next()
            match known.state:
                case Live(owner):
                    self._step_live(known, owner)
                case Asleep() as asleep:
                    self._step_asleep(known, asleep)
                case Ending() as ending:
                    start_clean(self._nursery, self._end, known, ending)
                case Opening():
                    pass  # planned once it is live

    async def heed(self, storage: NotifyingStorage) -> None:
        """Look at the row of each live session that another instance has written or deleted, until the storage is
        closed. One of the user's may raise anything: notices are hints, and rows are looked at without them, too.
        """
        try:
            async with storage.notices() as notices:
                async for tag in notices:
                    known = self._by_tag.get(tag)
                    if known is not None and isinstance(known.state, Live):
                        known.state.owner.row.check_soon()
        except* Exception as crash:  # noqa: BLE001  # the sessions must not end with it
            logger.warning("the notices of the storage have ended: it raises %s", describe_crash(crash))

    def _plan(self, known: Known) -> None:
        match known.state:
            case Live(owner):
                self._agenda.put(known, self._due_live(known, owner).at)
            case Asleep() as asleep:
                self._agenda.put(known, self._due_asleep(known, asleep).at)
            case Ending(delay=delay):
                self._agenda.put(known, trio.current_time() + delay)

    def _due_live(self, known: Known, owner: SessionOwner) -> Due:
        assert known.born_at is not None
        return due_live(self.limits, born_at=known.born_at, worked_at=owner.worked_at, checked_at=known.checked_at)

    def _due_asleep(self, known: Known, asleep: Asleep) -> Due:
        assert known.born_at is not None
        return due_asleep(self.limits, born_at=known.born_at, used_at=asleep.used_at, touch_at=asleep.touch_at)

    def _step_live(self, known: Known, owner: SessionOwner) -> None:
        if owner.life.is_closing:
            return
        now, due = trio.current_time(), self._due_live(known, owner)
        if due.at > now:
            self._plan(known)
        elif due.step is Step.END_OLD:
            logger.info("%s is over max_lifetime=%g s", session_tag(known.session_id), self.limits.max_lifetime)
            owner.request_close(terminate=True, everywhere=True, cause=Cause.TOO_OLD)
        elif due.step is Step.CHECK:
            known.checked_at = now
            owner.row.check_soon()
            self._plan(known)
        elif owner.row.is_saved:
            owner.request_close(terminate=False, drain_timeout=0, cause=Cause.HIBERNATION)
        else:
            owner.row.check_soon()
            self._agenda.put(known, now + UNSAVED_DELAY)

    def _step_asleep(self, known: Known, asleep: Asleep) -> None:
        now, due = trio.current_time(), self._due_asleep(known, asleep)
        if due.at > now:
            self._plan(known)
        elif due.step is Step.TOUCH:
            asleep.touch_at = now + self.limits.touch_interval
            start_clean(self._nursery, self._touch, known, asleep)
            self._plan(known)
        else:
            mark = asleep.mark if due.step is Step.END_IDLE else None
            self.end(known, Ending(mark, count="expired"))

    async def _touch(self, known: Known, asleep: Asleep) -> None:
        try:
            await self._factory.row_storage(known.session_id).touch(known.session_id, expected_version=None)
        except SessionNotFound:
            if known.state is asleep:  # terminated elsewhere
                self.forget(known)
        except StorageError as error:
            logger.warning("%s hibernates, and its row was not touched: %s", session_tag(known.session_id), error)
            asleep.touch_at = trio.current_time() + min(UNTOUCHED_DELAY, self.limits.touch_interval)
            if known.state is asleep:
                self._plan(known)

    # --- the end of the manager

    def request_close(self) -> None:
        """Ask all live sessions to close, as the factory's `on_exit` says, and those that get live from now on."""
        self._is_closing = True
        for _, owner in self.live():
            owner.request_close(terminate=self._terminates)

    def shorten_drains(self, limit: float) -> None:
        for _, owner in self.live():
            owner.shorten_drain(limit)

    async def end_all(self) -> None:
        """End all sessions that are known now, side by side, once `request_close` was called."""
        async with trio.open_nursery() as ends:
            start_task(ends, self._end_asleep)
            for _, owner in self.live():
                await owner.wait_closed()

    @property
    def _terminates(self) -> bool:
        return self._factory.settings.on_exit == "terminate"

    async def _end_asleep(self) -> None:
        """End those that hibernate and that no other instance uses, within `teardown_timeout`; also those that are
        about to end.
        """
        with trio.move_on_after(self._factory.settings.teardown_timeout, shield=True):  # noqa: ASYNC100  # the nursery
            async with trio.open_nursery() as ends:
                for known in self.all():
                    if isinstance(known.state, Asleep) and self._terminates:
                        known.state = Ending(known.state.mark)
                        start_task(ends, self._end, known, known.state)
                    elif isinstance(known.state, Ending):
                        start_task(ends, known.state.tried.wait)
