"""A session's row as the storage holds it, as far as this instance knows, and each single step that changes it.

Every change names the version of the row that this instance has seen: if another instance has written the row since,
the change is refused, and this instance reads the row before it decides anew.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypeAlias, TypeVar

import attrs
import trio

from trio_vmcp._session.foreign_names import ForeignNames
from trio_vmcp._session.row_storage import RowStorage
from trio_vmcp._session.use_marks import UseMarks
from trio_vmcp.errors import (
    MetadataConflict,
    SessionExists,
    SessionNotFound,
    VmcpError,
    session_tag,
)
from trio_vmcp.metadata import BackendRecord, SessionMetadata
from trio_vmcp.routing import Bindings

__all__ = ["MOST_ROUNDS", "NOTHING", "Held", "RowContents", "Sent", "StoredRow", "contents_of"]

logger = logging.getLogger("trio_vmcp.session")

MOST_ROUNDS = 3  # of reading the row and trying again, where other instances write it at the same time
MOST_UNANSWERED = 8  # rows to be recognised, of a storage that takes them late
NO_ROW = 0  # the version to expect where there must be no row: every row that is written has a higher one

T = TypeVar("T")
RowContents: TypeAlias = tuple[tuple[BackendRecord, ...], Bindings]


@attrs.frozen
class Sent:
    """A row that was sent, and what this instance wanted it to say: joined with another's, the row may say more."""

    row: SessionMetadata = attrs.field(repr=False)
    contents: RowContents = attrs.field(repr=False)


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
class StoredRow:
    """The row of one live session.

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
    # By `trio.current_time()`: the row was in the storage at this time.
    _seen_at: float = attrs.field(factory=trio.current_time, alias="seen_at", repr=False)
    _was_shared: bool = attrs.field(default=False, init=False)  # another instance has written the row at some time

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
    def may_be_left(self) -> bool:
        """The storage may hold a row of this session."""
        return self._held != NOTHING

    def record(self, backend_id: str) -> BackendRecord | None:
        return next((record for record in self.metadata.backends if record.backend_id == backend_id), None)

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
        await self._require_seen()
        if self._held.sent:
            # Each write into an outage adds one to those without an answer, and of these the oldest are forgotten: the
            # row that the storage did take would be another instance's. So nothing is sent before the storage answers.
            await self._read()
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
                await self._create_anew()
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
            self._base = ours.contents
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

    async def _create(self, row: SessionMetadata, contents: RowContents) -> None:
        """The first write. If it fails, there is no other: the opening of the session fails, too."""
        self._held = self._held.after_sending(Sent(row, contents))  # now: a cancelled create may have happened
        began = trio.current_time()
        try:
            await self._storage.create(row, within=math.inf)
        except SessionExists:
            self._held = NOTHING
            raise
        self._held, self._seen_at = Held(row.version), began

    async def _create_anew(self) -> None:
        """The row has vanished."""
        began = trio.current_time()
        # Later than this, the tombstone of a terminated session would refuse it no longer.
        within = self._seen_at + self._storage.ttl - began
        try:
            await self._storage.create(self.metadata, within=within)
        except SessionExists:  # its tombstone, or a row that another instance created anew
            try:
                await self._read()
            except SessionNotFound:
                raise SessionExists(self.metadata.session_id) from None
        else:
            self._held, self._seen_at = Held(self.metadata.version), began

    async def _replace(self, row: SessionMetadata, contents: RowContents, expected_version: int) -> None:
        self._held = self._held.after_sending(Sent(row, contents))
        began = trio.current_time()
        await self._storage.replace(row, expected_version=expected_version)
        self._held, self._seen_at = Held(row.version), began

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
