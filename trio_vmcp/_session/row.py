"""A session's row in the storage: written when something changed, touched before its TTL ends, deleted at the end.

Every change of the row goes through `SessionRow`, bounded by `storage_timeout` and with StorageError as its one kind of
error. While the storage is away the session goes on; the next turn of `keep` tries again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeAlias

import attrs
import trio

from trio_vmcp.errors import SessionExists, SessionNotFound, StorageError, VmcpError, session_tag
from trio_vmcp.metadata import SCHEMA_VERSION, BackendRecord, SessionMetadata
from trio_vmcp.routing import Bindings
from trio_vmcp.storage import Storage

__all__ = ["RowContents", "SessionRow", "load_row", "new_row"]

logger = logging.getLogger("trio_vmcp.session")

TOUCHES_PER_TTL = 3  # "touched at least every ttl/3"

RowContents: TypeAlias = tuple[tuple[BackendRecord, ...], Bindings]


@attrs.frozen
class Held:
    """What the storage may hold of this session. Neither field set: nothing. `sent` alone: perhaps a row of ours.

    Attributes:
        version: A row of ours is in the storage, at this version; None: no write was confirmed.
        sent: This row was sent and its outcome is unknown: the storage may hold this row instead.
    """

    version: int | None = None
    sent: SessionMetadata | None = attrs.field(default=None, repr=False)


NOTHING = Held()


@attrs.define(eq=False)
class SessionRow:
    """The row of one live session, and the only writer of it in this process.

    Attributes:
        metadata: The row as last written.
        restored: The row was there before this process opened the session.
    """

    metadata: SessionMetadata
    _storage: Storage = attrs.field(alias="storage", repr=False)
    _timeout: float = attrs.field(alias="timeout")
    restored: bool = False
    _held: Held = attrs.field(init=False)
    _written: RowContents | None = attrs.field(default=None, init=False, repr=False)  # by this process, latest
    _is_stale: bool = attrs.field(default=False, init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _keeping: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _kept: trio.Event | None = attrs.field(default=None, init=False, repr=False)  # None: `keep` was not started

    def __attrs_post_init__(self) -> None:
        self._held = Held(self.metadata.version) if self.restored else NOTHING

    @property
    def bindings(self) -> Bindings:
        stored = self.metadata.bindings
        return Bindings(tools=stored.get("tools", {}), prompts=stored.get("prompts", {}))

    def record(self, backend_id: str) -> BackendRecord | None:
        return next((record for record in self.metadata.backends if record.backend_id == backend_id), None)

    # --- while the session is open

    def note_change(self) -> None:
        """What the row should say may have changed: `keep` compares and writes."""
        self._is_stale = True
        self._changed.set()

    async def keep(self, contents: Callable[[], RowContents], on_terminated: Callable[[], None]) -> None:
        """Write changes and put the TTL off, until `stop_keeping`. Calls `on_terminated` and ends where the session
        turns out to be terminated elsewhere.
        """
        every = self._storage.ttl / TOUCHES_PER_TTL
        touch_at = trio.current_time() + every
        self._kept = trio.Event()
        try:
            with self._keeping:
                while True:
                    with trio.move_on_at(touch_at):
                        await self._changed.wait()
                    self._changed = trio.Event()
                    is_due = trio.current_time() >= touch_at
                    try:
                        if is_due:
                            await self.touch()  # first: it creates a row that vanished
                        await self._write_if_stale(contents)
                    except SessionExists:  # its tombstone
                        logger.warning("%s was terminated elsewhere", session_tag(self.metadata.session_id))
                        on_terminated()
                        return
                    except VmcpError as error:
                        self._warn(error)
                    if trio.current_time() >= touch_at:
                        touch_at = trio.current_time() + every
        finally:
            self._kept.set()

    async def stop_keeping(self) -> None:
        """Cancel what `keep` is at and wait for its end: of two writes at once one would be a conflict."""
        self._keeping.cancel(reason="session closed")
        if self._kept is not None:
            await self._kept.wait()

    # --- the last step of a session: one of these two. The TTL ends the row where the storage is away.

    async def write_last(self, contents: Callable[[], RowContents]) -> None:
        """Write what is not written yet. A failure is logged."""
        try:
            await self._write_if_stale(contents)
        except VmcpError as error:
            self._warn(error)

    async def discard(self) -> None:
        """Delete the row, if the storage may hold one of ours. A failure is logged."""
        try:
            await self.delete()
        except VmcpError as error:
            self._warn(error)

    # --- one step at a time

    async def write(self, contents: RowContents) -> None:
        """Make the row say this. Nothing is sent if the latest write has said the same.

        Raises:
            SessionExists: On the first write: the id is taken.
            StorageError: Away, too slow, or (MetadataConflict) another instance wrote the row.
        """
        if self._held.sent is None and contents == self._written:
            return
        await self._settle_sent()
        backends, bindings = contents
        wanted = attrs.evolve(
            self.metadata,
            backends=backends,
            bindings={"tools": bindings.tools, "prompts": bindings.prompts},
            updated_at=datetime.now(UTC),
            version=self.metadata.version + 1,
        )
        if self._held.version is None:
            await self._create(wanted)
        else:
            await self._replace(wanted, self._held.version)
        self.metadata, self._written = wanted, contents

    async def touch(self) -> None:
        """Put the TTL off; a row that vanished all the same is created anew.

        Raises:
            SessionExists: It cannot be: the session was terminated elsewhere.
            StorageError: Away or too slow.
        """
        # `Storage.touch` and `Storage.delete` take no expected_version yet. Once they do, `_held` says which versions
        # are ours, as `_replace` uses it; until then a row of another instance is touched and deleted alike.
        try:
            with _storage_errors("touch", self._timeout):
                await self._storage.touch(self.metadata.session_id)
        except SessionNotFound:
            await self._create(self.metadata)

    async def delete(self) -> None:
        """Remove the row, if the storage may hold one of ours.

        Raises:
            StorageError: Away or too slow.
        """
        if self._held != NOTHING:
            with _storage_errors("delete", self._timeout):
                await self._storage.delete(self.metadata.session_id)

    async def _write_if_stale(self, contents: Callable[[], RowContents]) -> None:
        if self._is_stale:
            self._is_stale = False  # before the write: changes during the write are not in it
            try:
                await self.write(contents())
            except BaseException:
                self._is_stale = True
                raise

    async def _settle_sent(self) -> None:
        """Find out what became of a replace without an answer: else the next one would be a conflict with our own."""
        if self._held.sent is None or self._held.version is None:
            return
        with _storage_errors("load", self._timeout):
            stored = await self._storage.load(self.metadata.session_id)
        if stored == self._held.sent:
            self.metadata = stored
            self._held = Held(stored.version)

    async def _create(self, row: SessionMetadata) -> None:
        if self._held.version is None:
            self._held = Held(sent=row)  # before the first await: a cancelled create may have happened
        try:
            with _storage_errors("store", self._timeout):
                await self._storage.create(row)
        except SessionExists:
            if self._held.version is None:
                self._held = NOTHING
            raise
        self._held = Held(row.version)

    async def _replace(self, row: SessionMetadata, expected_version: int) -> None:
        self._held = Held(expected_version, sent=row)
        with _storage_errors("update", self._timeout):
            await self._storage.replace(row, expected_version=expected_version)
        self._held = Held(row.version)

    def _warn(self, error: VmcpError) -> None:
        logger.warning("%s: %s", session_tag(self.metadata.session_id), error)


@contextmanager
def _storage_errors(step: str, timeout: float) -> Iterator[None]:
    try:
        with trio.move_on_after(timeout) as scope:
            yield
    except VmcpError:
        raise
    except Exception as exc:  # whatever the storage's own client raises
        raise StorageError(f"the storage failed to {step} the session: {type(exc).__name__}") from exc
    if scope.cancelled_caught:
        raise StorageError(f"the storage did not {step} the session within {timeout} s (storage_timeout)")


def new_row(session_id: str, binding: str | None, storage: Storage, timeout: float) -> SessionRow:
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
    )
    return SessionRow(metadata, storage=storage, timeout=timeout)


async def load_row(session_id: str, storage: Storage, timeout: float) -> SessionRow:
    """The row of a session that is restored.

    Raises:
        SessionNotFound: There is none.
        StorageError: Away, too slow, or not to be read.
    """
    with _storage_errors("load", timeout):
        metadata = await storage.load(session_id)
    return SessionRow(metadata, storage=storage, timeout=timeout, restored=True)
