"""A session's row in the storage: the one way from a live session to its metadata, bounded and with one kind of
error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import attrs
import trio

from trio_vmcp.errors import SessionExists, SessionNotFound, StorageError, VmcpError
from trio_vmcp.metadata import SCHEMA_VERSION, BackendRecord, SessionMetadata
from trio_vmcp.routing import Bindings
from trio_vmcp.storage import Storage

__all__ = ["Stored", "load_row", "new_row"]


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


@attrs.define(eq=False)
class Stored:
    """The row of one live session.

    Attributes:
        metadata: The row as last written.
        restored: It was there before this process opened the session.
    """

    metadata: SessionMetadata
    _storage: Storage = attrs.field(alias="storage", repr=False)
    _timeout: float = attrs.field(alias="timeout")
    restored: bool = False
    _written: bool = attrs.field(init=False)
    _may_be_ours: bool = attrs.field(init=False)
    _unsure: SessionMetadata | None = attrs.field(default=None, init=False, repr=False)  # a write of unknown outcome

    def __attrs_post_init__(self) -> None:
        self._written = self._may_be_ours = self.restored

    @property
    def ttl(self) -> float:
        return self._storage.ttl

    @property
    def bindings(self) -> Bindings:
        stored = self.metadata.bindings
        return Bindings(tools=stored.get("tools", {}), prompts=stored.get("prompts", {}))

    def record(self, backend_id: str) -> BackendRecord | None:
        return next((record for record in self.metadata.backends if record.backend_id == backend_id), None)

    async def write(self, backends: tuple[BackendRecord, ...], bindings: Bindings) -> None:
        """Make the row say this.

        Raises:
            SessionExists: On the first write: the id is taken.
            StorageError: Away, too slow, or (MetadataConflict) written by somebody else.
        """
        if self._unsure is not None:  # without this, one lost answer would be a conflict with ourselves for good
            with _storage_errors("load", self._timeout):
                stored = await self._storage.load(self.metadata.session_id)
            if stored == self._unsure:
                self.metadata = stored
        wanted = attrs.evolve(
            self.metadata,
            backends=backends,
            bindings={"tools": bindings.tools, "prompts": bindings.prompts},
            updated_at=datetime.now(UTC),
            version=self.metadata.version + 1,
        )
        if self._written:
            self._unsure = wanted
            with _storage_errors("update", self._timeout):
                await self._storage.replace(wanted, expected_version=self.metadata.version)
            self._unsure = None
        else:
            await self._create(wanted)
        self.metadata = wanted

    async def touch(self) -> None:
        """Put the TTL off; a row that vanished all the same is created anew.

        Raises:
            SessionExists: It cannot be: the session was terminated elsewhere.
            StorageError: Away or too slow.
        """
        try:
            with _storage_errors("touch", self._timeout):
                await self._storage.touch(self.metadata.session_id)
        except SessionNotFound:
            await self._create(self.metadata)

    async def delete(self) -> None:
        """Remove the row, if it may be there and is not somebody else's.

        Raises:
            StorageError: Away or too slow.
        """
        if self._may_be_ours:
            with _storage_errors("delete", self._timeout):
                await self._storage.delete(self.metadata.session_id)

    async def _create(self, row: SessionMetadata) -> None:
        self._may_be_ours = True  # from here on: a cancelled create may have happened
        try:
            with _storage_errors("store", self._timeout):
                await self._storage.create(row)
        except SessionExists:
            self._may_be_ours = self._written
            raise
        self._written = True


def new_row(session_id: str, binding: str | None, storage: Storage, timeout: float) -> Stored:
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
    return Stored(metadata, storage=storage, timeout=timeout)


async def load_row(session_id: str, storage: Storage, timeout: float) -> Stored:
    """The row of a session that is restored.

    Raises:
        SessionNotFound: There is none.
        StorageError: Away, too slow, or not to be read.
    """
    with _storage_errors("load", timeout):
        metadata = await storage.load(session_id)
    return Stored(metadata, storage=storage, timeout=timeout, restored=True)
