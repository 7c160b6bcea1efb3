"""A session's row in the storage: written when something changed, marked while the session is used, touched before its
TTL ends, deleted at the end.

While the storage is away the session goes on; the next turn of `keep` tries again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime

import attrs
import trio

from trio_vmcp._session.attribute_changes import AttributeChanges
from trio_vmcp._session.row_storage import RowStorage
from trio_vmcp._session.stored_row import MOST_ROUNDS, NOTHING, RowContents, StoredRow
from trio_vmcp.errors import (
    MetadataConflict,
    SessionExists,
    SessionNotFound,
    StorageError,
    VmcpError,
    session_tag,
)
from trio_vmcp.metadata import SCHEMA_VERSION, SessionMetadata

__all__ = ["RowContents", "SessionRow", "load_row", "new_row"]

logger = logging.getLogger("trio_vmcp.session")

TOUCHES_PER_TTL = 3  # "touched at least every ttl/3"


@attrs.define(eq=False)
class SessionRow(StoredRow):
    """The row of one live session, kept up to date; the only writer of it in this process."""

    _attribute_changes: AttributeChanges = attrs.field(factory=AttributeChanges, init=False, repr=False)
    _is_stale: bool = attrs.field(default=False, init=False)
    _is_check_due: bool = attrs.field(default=False, init=False)
    _is_away: bool = attrs.field(default=False, init=False)  # the latest operation of `keep` failed
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _keeping: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _kept: trio.Event | None = attrs.field(default=None, init=False, repr=False)  # None: `keep` was not started

    @property
    def is_saved(self) -> bool:
        """The storage has confirmed a row that says what there is to say, and is not away, as far as is known."""
        is_confirmed = self._held.version is not None and not self._held.sent
        return is_confirmed and not self._is_stale and not self._is_away

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
                        await self._do_due(contents, touches=touches, checks=is_check_due, marks=marks)
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

    async def _do_due(self, contents: Callable[[], RowContents], *, touches: bool, checks: bool, marks: bool) -> None:
        """
        Raises:
            SessionExists: The session was terminated elsewhere.
            SessionNotFound, StorageError: As each step does.
        """
        if touches:
            await self.touch()  # first: it creates a row that vanished
        elif checks:
            await self._check()
        if self._attribute_changes.are_due:
            await self._write_attributes(contents)
        await self._write_if_stale(contents, marks=marks)

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
        with suppress(StorageError):  # the callers get it
            await self._attribute_changes.write_latest(write)

    async def _check(self) -> None:
        """
        Raises:
            SessionNotFound, SessionExists: There is no row of this session.
        """
        try:
            await self._read()
            self._is_away = False
        except StorageError as error:  # away: what is to be written says so in a warning
            self._is_away = True
            logger.debug("%s: %s", session_tag(self.metadata.session_id), error)

    async def _write_if_stale(self, contents: Callable[[], RowContents], *, marks: bool = False) -> None:
        if self._is_stale or marks:
            self._is_stale = False  # before the write: changes during the write are not in it
            try:
                await self.write(contents(), marks=marks)
            except BaseException:
                self._is_stale = True
                raise

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
                with suppress(MetadataConflict):
                    await self._delete_once()
                    return True
                await self._read()
        except (SessionNotFound, SessionExists):  # no row of this session is left
            self._held = NOTHING
            return True
        except VmcpError as error:
            self._warn(error)
        return not self.is_needed_elsewhere(used_at, is_idle=is_idle)


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
