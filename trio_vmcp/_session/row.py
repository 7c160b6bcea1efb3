"""A session's row in the storage: written when something changed, marked while the session is used, touched before its
TTL ends, deleted at the end.

Every change of the row goes through `SessionRow`, and names the version of the row that this instance has seen: if
another instance has written the row since, the change is refused, and this instance reads the row before it decides
anew. While the storage is away the session goes on; the next turn of `keep` tries again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TypeAlias, TypeVar

import attrs
import trio

from trio_vmcp._session.attribute_changes import AttributeChanges
from trio_vmcp._session.foreign_names import ForeignNames
from trio_vmcp._session.row_storage import RowStorage
from trio_vmcp._session.use_marks import UseMarks
from trio_vmcp.errors import (
    MetadataConflict,
    SessionExists,
    SessionNotFound,
    StorageError,
    VmcpError,
    session_tag,
)
from trio_vmcp.metadata import SCHEMA_VERSION, BackendRecord, SessionMetadata
from trio_vmcp.routing import Bindings

__all__ = ["RowContents", "SessionRow", "load_row", "new_row"]

logger = logging.getLogger("trio_vmcp.session")

TOUCHES_PER_TTL = 3  # "touched at least every ttl/3"
MOST_ROUNDS = 3  # of reading the row and trying again, where other instances write it at the same time
MOST_UNANSWERED = 8  # rows to be recognised, of a storage that takes them late
NO_ROW = 0  # the version to expect where there must be no row: every row that is written has a higher one

T = TypeVar("T")
RowContents: TypeAlias = tuple[tuple[BackendRecord, ...], Bindings]


@attrs.frozen
class Sent:
    """A row that was sent, and what this instance wanted it to say: joined with another's, the row may say more."""

    row: SessionMetadata = attrs.field(repr=False)
    contents: RowContents | None = attrs.field(default=None, repr=False)


@attrs.frozen
class Held:
    """What the storage may hold of this session. Neither field set: nothing. `sent` alone: perhaps a row of ours.

    Attributes:
        version: The row is in the storage, and was at this version when it was last seen; None: no write was confirmed.
        sent: The outcome of these is unknown, the oldest first: the storage may hold any of them instead, or take it
            yet.
    """

    version: int | None = None
    sent: tuple[Sent, ...] = ()

    def after_sending(self, sent: Sent) -> Held:
        return Held(self.version, (*self.sent, sent)[-MOST_UNANSWERED:])


NOTHING = Held()


@attrs.define(eq=False)
class SessionRow:
    """The row of one live session, and the only writer of it in this process.

    Attributes:
        metadata: The row as last written or read.
        restored: The row was there before this process opened the session.
        is_anothers: Another instance has written the row since this one did.
        marks: When this instance notes in the row that the session is used here.
        foreign_names: Those that other instances have bound since the row was loaded.
    """

    metadata: SessionMetadata
    _storage: RowStorage = attrs.field(alias="storage", repr=False)
    restored: bool = False
    is_anothers: bool = attrs.field(default=False, init=False)
    marks: UseMarks = attrs.field(factory=UseMarks, init=False, repr=False)
    foreign_names: ForeignNames = attrs.field(factory=ForeignNames, init=False, repr=False)
    _held: Held = attrs.field(init=False)
    _written: RowContents | None = attrs.field(default=None, init=False, repr=False)  # by this process, latest
    # Once another instance writes the row, too: what this instance has changed, it has changed from here.
    _base: RowContents = attrs.field(init=False, repr=False)
    # As of the latest `set_attributes` here or elsewhere. One that failed may have been written all the same, and does
    # not count: the next write puts these in its place.
    _attributes: Mapping[str, str] = attrs.field(init=False, repr=False)
    _attribute_changes: AttributeChanges = attrs.field(factory=AttributeChanges, init=False, repr=False)
    # By `trio.current_time()`: the row was in the storage at this time.
    _seen_at: float = attrs.field(factory=trio.current_time, alias="seen_at", repr=False)
    _is_stale: bool = attrs.field(default=False, init=False)
    _was_shared: bool = attrs.field(default=False, init=False)  # another instance has written the row at some time
    _is_check_due: bool = attrs.field(default=False, init=False)
    _is_away: bool = attrs.field(default=False, init=False)  # the latest operation of `keep` failed
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _keeping: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _kept: trio.Event | None = attrs.field(default=None, init=False, repr=False)  # None: `keep` was not started

    def __attrs_post_init__(self) -> None:
        self._held = Held(self.metadata.version) if self.restored else NOTHING
        self._base = contents_of(self.metadata)
        self._attributes = self.metadata.attributes
        if not self.restored:
            self.marks.add_first(self.metadata.used_at)

    @property
    def bindings(self) -> Bindings:
        return contents_of(self.metadata)[1]

    @property
    def is_saved(self) -> bool:
        """The storage has confirmed a row that says what there is to say, and is not away, as far as is known."""
        is_confirmed = self._held.version is not None and not self._held.sent
        return is_confirmed and not self._is_stale and not self._is_away

    @property
    def may_be_left(self) -> bool:
        """The storage may hold a row of this session."""
        return self._held != NOTHING

    def record(self, backend_id: str) -> BackendRecord | None:
        return next((record for record in self.metadata.backends if record.backend_id == backend_id), None)

    # --- while the session is open

    def note_change(self) -> None:
        """What the row should say may have changed: `keep` compares and writes."""
        self._is_stale = True
        self._changed.set()

    async def set_attributes(self, attributes: Mapping[str, str]) -> None:
        """Replace the attributes, and wait until the row has these. `keep` writes them.

        Raises:
            StorageError: The row has, or will have again, those before.
            SessionClosed: The session closed first.
        """
        await self._attribute_changes.wait_written(attributes, lambda: self._changed.set())

    def check_soon(self) -> None:
        """Have `keep` look now whether the session was terminated elsewhere."""
        self._is_check_due = True
        self._changed.set()

    def note_use(self, now: float) -> None:
        """The session is used: wake `keep` if that is to be marked at once. Every call asks, so this costs next to
        nothing.
        """
        if now >= self.marks.due_at:
            self._changed.set()

    async def keep(
        self,
        contents: Callable[[], RowContents],
        on_terminated: Callable[[], None],
        *,
        idle_timeout: float = math.inf,
        used_at: Callable[[], float] = lambda: -math.inf,
    ) -> None:
        """Write changes, mark use and put the TTL off, until `stop_keeping`. Calls `on_terminated` and ends where the
        session turns out to be terminated elsewhere.

        Args:
            used_at: `trio.current_time()` when the session was last used; now, while a call is in flight.
        """
        self.marks.mark_each(idle_timeout, self._storage.ttl)
        every = self._storage.ttl / TOUCHES_PER_TTL
        touch_at = trio.current_time() + every
        self._kept = trio.Event()
        try:
            with self._keeping:
                while True:
                    mark_at = self.marks.due_at  # in the past: `note_use` tells
                    with trio.move_on_at(touch_at if mark_at <= trio.current_time() else min(touch_at, mark_at)):
                        await self._changed.wait()
                    self._changed = trio.Event()
                    now = trio.current_time()
                    is_check_due, self._is_check_due = self._is_check_due, False
                    is_touch_due, marks = now >= touch_at, self.marks.is_due(used_at(), now)
                    touches = is_touch_due and not marks  # a mark puts the TTL off, too
                    try:
                        if touches:
                            await self.touch()  # first: it creates a row that vanished
                        elif is_check_due:
                            await self._check()
                        if self._attribute_changes.are_due:
                            await self._write_attributes(contents)
                        await self._write_if_stale(contents, marks=marks)
                    except SessionExists:  # its tombstone
                        logger.warning("%s was terminated elsewhere", session_tag(self.metadata.session_id))
                        on_terminated()
                        return
                    except VmcpError as error:
                        self._warn(error)
                        self._is_away = isinstance(error, StorageError)
                        if isinstance(error, SessionNotFound) and not touches:
                            touch_at = -math.inf  # at once: it finds out whether the session was terminated elsewhere
                            continue
                    else:
                        if touches or marks:
                            self._is_away = False
                        is_touch_due = is_touch_due or marks
                    if is_touch_due:
                        touch_at = trio.current_time() + every
        finally:
            self._attribute_changes.close()
            self._kept.set()

    async def _write_attributes(self, contents: Callable[[], RowContents]) -> None:
        """
        Raises:
            SessionExists: The session was terminated elsewhere.
        """

        async def write(attributes: Mapping[str, str]) -> None:
            try:
                await self.write(contents(), attributes=attributes)
            except SessionNotFound:
                await self.touch()  # creates a row that vanished
                await self.write(contents(), attributes=attributes)

        self._is_stale = True  # if this fails, the next write finds out what became of it
        try:
            await self._attribute_changes.write_latest(write)
        except StorageError as error:
            self._warn(error)

    async def _check(self) -> None:
        """
        Raises:
            SessionNotFound, SessionExists: There is no row of this session.
        """
        if self._held.version is None or self._held.sent:
            return  # the next write finds out what the storage has
        try:
            await self._read()
            self._is_away = False
        except StorageError as error:  # away: what is to be written says so in a warning
            self._is_away = True
            logger.debug("%s: %s", session_tag(self.metadata.session_id), error)

    async def stop_keeping(self) -> None:
        """Cancel what `keep` is at and wait for its end: of two writes at once one would be a conflict."""
        self._keeping.cancel(reason="session closed")
        if self._kept is not None:
            await self._kept.wait()

    # --- the last step of a session: one of these. The TTL ends the row where the storage is away.

    async def write_last(self, contents: Callable[[], RowContents]) -> None:
        """Write what is not written yet, also what is no reason to write before: that news was told. A failure is
        logged. A restore that failed has written nothing, and leaves the row as it was.
        """
        if self._written is None:
            return
        try:
            await self.write(contents())
        except VmcpError as error:
            self._warn(error)

    async def discard(self) -> None:
        """Delete the row, whichever instance wrote it last, if the storage may hold one of this session. A failure is
        logged.
        """
        try:
            await self.delete()
        except VmcpError as error:
            self._warn(error)

    def is_needed_elsewhere(self, used_at: float, *, is_idle: bool) -> bool:
        """Whether another instance uses the session, by the row as last seen.

        Args:
            used_at: `trio.current_time()` when the session was last used here.
            is_idle: That is `idle_timeout` ago: then the session belongs to the instance that has marked it last.
                Otherwise another instance may be about to use it, too, if it wrote anything after this one, or if the
                mark of this one took the place of its mark and the session was not used here since.
        """
        if not self.marks.is_own(self.metadata.used_at):
            return True
        return not is_idle and (self.is_anothers or used_at <= self.marks.overruled_at)

    async def discard_own(self, used_at: float, *, is_idle: bool) -> bool:
        """Delete the row, unless another instance uses the session. A failure is logged.

        Args:
            used_at, is_idle: As for `is_needed_elsewhere`.

        Returns:
            Whether the session may end. If not, the row was read once more: it names what the other instance uses.
        """
        try:
            for _ in range(MOST_ROUNDS):
                if self.is_needed_elsewhere(used_at, is_idle=is_idle):
                    await self._read()
                    return False
                try:
                    await self._delete_once()
                except MetadataConflict:
                    await self._read()
                else:
                    return True
        except (SessionNotFound, SessionExists):  # no row of this session is left
            self._held = NOTHING
            return True
        except VmcpError as error:
            self._warn(error)
        return not self.is_needed_elsewhere(used_at, is_idle=is_idle)

    # --- one step at a time

    async def write(
        self, contents: RowContents, *, marks: bool = False, attributes: Mapping[str, str] | None = None
    ) -> None:
        """Make the row say this. Nothing is sent if the latest write has said the same.

        Where another instance has written the row meanwhile, what has changed here is written into the row as it is.

        Args:
            marks: Also mark that the session is used here.
            attributes: Take the place of those that the row has, whichever instance has set them. None: they stay.

        Raises:
            SessionExists: On the first write: the id is taken. Later: the session was terminated elsewhere.
            StorageError: Away, too slow, or (MetadataConflict) other instances write all the time.
        """
        must_write = marks or attributes is not None
        if not self._held.sent and contents == self._written and not must_write:
            return
        if marks:
            self.marks.tried_at = trio.current_time()  # also if it fails: the next attempt has its time, too
        await self._settle()
        for _ in range(MOST_ROUNDS):
            joined = _join(contents, self._base, contents_of(self.metadata))
            wanted = self._attributes if attributes is None else attributes
            is_said = self._held == Held(self.metadata.version) and (*joined, wanted) == (
                *contents_of(self.metadata),
                self.metadata.attributes,
            )
            if is_said and self._was_shared and not must_write:
                break
            try:
                await self._send(joined, contents, wanted, marks=marks)
            except MetadataConflict:
                await self._read()
            else:
                break
        else:
            raise MetadataConflict(self.metadata.session_id)
        self._base = self._written = contents

    async def touch(self) -> None:
        """Put the TTL off; a row that vanished all the same is created anew.

        Raises:
            SessionExists: The session was terminated elsewhere, or may have been.
            StorageError: Away or too slow.
        """
        await self._require_seen()
        began = trio.current_time()
        for _ in range(MOST_ROUNDS):
            try:
                await self._storage.touch(self.metadata.session_id, expected_version=self._held_version)
            except MetadataConflict:
                await self._read()
            except SessionNotFound:
                if self._is_out_of_touch:
                    self._held = NOTHING
                    raise SessionExists(self.metadata.session_id) from None
                await self._create(self.metadata)
                return
            else:
                self._seen_at = began
                return

    async def delete(self) -> None:
        """Remove the row, if the storage may hold one of this session: also if another instance wrote it last.

        Raises:
            StorageError: Away, too slow, or (MetadataConflict) other instances write all the time.
        """
        for _ in range(MOST_ROUNDS):
            try:
                await self._delete_once()
            except MetadataConflict:
                try:
                    await self._read()
                except (SessionExists, SessionNotFound):  # it has gone, or is another session's
                    self._held = NOTHING
                    return
            else:
                return
        raise MetadataConflict(self.metadata.session_id)

    async def _delete_once(self) -> None:
        """
        Raises:
            MetadataConflict: Another instance has written the row since this one last saw it.
        """
        if self._held == NOTHING:
            return
        session_id = self.metadata.session_id
        is_news = False
        if self._held.version is None:
            # A create without an answer. There may be no row, a row of ours, or the row of another session of this id.
            try:
                is_news = await self._read()
            except SessionNotFound:
                # The tombstone stops a create that is still under way.
                await self._storage.delete(session_id, expected_version=NO_ROW)
                self._held = NOTHING
                return
            except SessionExists:
                return  # another session's
        elif self._is_out_of_touch:
            try:
                is_news = await self._read()
            except (SessionNotFound, SessionExists):  # none of this session is left
                self._held = NOTHING
                return
        if is_news:
            raise MetadataConflict(session_id)  # not to be deleted by its new version: it may belong elsewhere by now
        await self._storage.delete(session_id, expected_version=self._held_version)
        self._held = NOTHING

    async def _write_if_stale(self, contents: Callable[[], RowContents], *, marks: bool = False) -> None:
        if self._is_stale or marks:
            self._is_stale = False  # before the write: changes during the write are not in it
            try:
                await self.write(contents(), marks=marks)
            except BaseException:
                self._is_stale = True
                raise

    # --- what the storage holds

    @property
    def _held_version(self) -> int:
        return NO_ROW if self._held.version is None else self._held.version

    @property
    def _is_out_of_touch(self) -> bool:
        """The row was not seen for a TTL: it may have been terminated, and its tombstone may have ended since."""
        return trio.current_time() >= self._seen_at + self._storage.ttl

    async def _require_seen(self) -> None:
        """Where nothing can be told from a row that is missing, or from its version, look before anything else.

        Raises:
            SessionExists: There is no row: the session may have been terminated. Or there is one of another session.
        """
        if self._held.version is None or not self._is_out_of_touch:
            return
        try:
            await self._read()
        except SessionNotFound:
            self._held = NOTHING
            raise SessionExists(self.metadata.session_id) from None

    async def _read(self) -> bool:
        """Take the row as it is.

        Returns:
            Whether another instance has written it since this one last saw it.

        Raises:
            SessionNotFound: There is none.
            SessionExists: It is the row of another session that was given the same id.
            StorageError: Away, too slow, or not to be read.
        """
        began = trio.current_time()
        stored = await self._storage.load(self.metadata.session_id)
        if stored.created_at != self.metadata.created_at:
            self._held = NOTHING
            raise SessionExists(self.metadata.session_id)
        self._seen_at = began
        ours = next((sent for sent in self._held.sent if sent.row == stored), None)
        is_news = ours is None and stored.version != self._held.version
        if ours is not None:  # a write that was not answered
            self.metadata = stored
            self._base = ours.contents or self._base
            self.is_anothers = False
        elif is_news:
            if not self._was_shared:
                logger.warning("%s was taken over by another instance", session_tag(self.metadata.session_id))
            self.is_anothers = self._was_shared = True
            self.foreign_names.put(contents_of(stored)[1], self._base[1])
            self.metadata = stored
            self._attributes = stored.attributes
        # At the same version as before, what was sent did not get there yet, and may still do so.
        self._held = Held(stored.version, self._held.sent if stored.version == self._held.version else ())
        self.marks.note_stored(stored.used_at)
        return is_news

    async def _settle(self) -> None:
        """Find out what became of a replace without an answer: else the next one would be a conflict with our own."""
        await self._require_seen()
        if self._held.sent and self._held.version is not None:
            await self._read()

    async def _send(
        self, joined: RowContents, contents: RowContents, attributes: Mapping[str, str], *, marks: bool
    ) -> None:
        """Write the next version of the row: `contents` joined with what it says."""
        backends, bindings = joined
        used_at = self.metadata.used_at
        wanted = attrs.evolve(
            self.metadata,
            backends=backends,
            bindings={"tools": bindings.tools, "prompts": bindings.prompts},
            updated_at=datetime.now(UTC),
            used_at=self.marks.draw(used_at, trio.current_time()) if marks else used_at,
            version=self.metadata.version + 1,
            attributes=attributes,
        )
        if self._held.version is None:
            await self._create(wanted, contents)
        else:
            await self._replace(wanted, contents, self._held.version)
        self.metadata = wanted
        self._attributes = attributes
        self.is_anothers = False
        if marks:
            self.marks.note_written(wanted.used_at)

    async def _create(self, row: SessionMetadata, contents: RowContents | None = None) -> None:
        held = self._held
        began = trio.current_time()
        if held.version is None:
            within = math.inf
            self._held = held.after_sending(
                Sent(row, contents)
            )  # before the first await: a cancelled create may have happened
        else:
            # A row that vanished. Later than this, the tombstone of a terminated session would refuse it no longer.
            within = self._seen_at + self._storage.ttl - began
        try:
            await self._storage.create(row, within=within)
        except SessionExists:
            if held.version is None and not held.sent:
                self._held = NOTHING
                raise
            # Its tombstone; or a row: ours by a create without an answer, or one that another instance created anew.
            try:
                await self._read()
            except SessionNotFound:
                if held.version is None:
                    self._held = NOTHING
                raise SessionExists(row.session_id) from None
            return
        self._held = Held(row.version)
        self._seen_at = began

    async def _replace(self, row: SessionMetadata, contents: RowContents, expected_version: int) -> None:
        self._held = self._held.after_sending(Sent(row, contents))
        began = trio.current_time()
        await self._storage.replace(row, expected_version=expected_version)
        self._held = Held(row.version)
        self._seen_at = began

    def _warn(self, error: VmcpError) -> None:
        logger.warning("%s: %s", session_tag(self.metadata.session_id), error)


def contents_of(row: SessionMetadata) -> RowContents:
    return row.backends, Bindings(tools=row.bindings.get("tools", {}), prompts=row.bindings.get("prompts", {}))


def _join(ours: RowContents, base: RowContents, theirs: RowContents) -> RowContents:
    """What has changed from `base` to `ours`, changed in `theirs`. What both have changed stays as in `theirs`: names
    never move, and a backend session that another instance uses stays in the row.
    """
    if theirs == base:
        return ours
    records = _join_each(*({record.backend_id: record for record in records} for records, _ in (ours, base, theirs)))
    tools = _join_each(ours[1].tools, base[1].tools, theirs[1].tools)
    prompts = _join_each(ours[1].prompts, base[1].prompts, theirs[1].prompts)
    return tuple(records.values()), Bindings(tools=tools, prompts=prompts)


def _join_each(ours: Mapping[str, T], base: Mapping[str, T], theirs: Mapping[str, T]) -> dict[str, T]:
    untouched = {key for key in ours.keys() | base.keys() if theirs.get(key) == base.get(key)}
    joined = {key: value for key, value in theirs.items() if key not in untouched}
    return joined | {key: value for key, value in ours.items() if key in untouched}


def new_row(
    session_id: str, binding: str | None, storage: RowStorage, attributes: Mapping[str, str] | None = None
) -> SessionRow:
    """A row that is written when the opening ends."""
    now = datetime.now(UTC)
    metadata = SessionMetadata(
        schema_version=SCHEMA_VERSION,
        session_id=session_id,
        created_at=now,
        updated_at=now,
        version=0,
        identity_binding=binding,
        backends=(),
        bindings={"tools": {}, "prompts": {}},
        attributes=attributes or {},
    )
    return SessionRow(metadata, storage=storage)


async def load_row(session_id: str, storage: RowStorage) -> SessionRow:
    """The row of a session that is restored.

    Raises:
        SessionNotFound: There is none.
        StorageError: Away, too slow, or not to be read.
    """
    seen_at = trio.current_time()
    metadata = await storage.load(session_id)
    return SessionRow(metadata, storage=storage, restored=True, seen_at=seen_at)
