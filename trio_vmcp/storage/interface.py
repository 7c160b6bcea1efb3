"""The interface between sessions and the storage of their metadata."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

import trio

from trio_vmcp.metadata import SessionMetadata

__all__ = ["NotifyingStorage", "Storage"]


class Storage(Protocol):
    """Rows of metadata by session id, each with a time to live.

    Every method is a checkpoint. Every method but `aclose` raises StorageError when the storage is unreachable, closed,
    or holds a row that cannot be read; errors of a storage's own client must not come through. A method that is
    cancelled, or fails with StorageError, may have had its effect.

    A row that cannot be read is UnreadableMetadata, the StorageError that `metadata_from_json` raises: let it through,
    or raise another error `from` it. After any other StorageError the storage counts as away, so that the front answers
    503 and clients come back to the same session, for ever if its row is the reason.

    Each operation is one atomic step: of two that expect the same version, one has its effect. A method should end soon
    when it is cancelled. One that cannot (a file or database in a thread) is left behind after `storage_timeout`, and
    may have its effect later. `trio_vmcp.testing.storage_contract` checks all of this.
    """

    @property
    def ttl(self) -> float:
        """s for which a row lives after it was created, replaced or touched, and a tombstone after its `delete`."""
        ...

    async def create(self, metadata: SessionMetadata) -> None:
        """Add a row, with the version that it has.

        Raises:
            SessionExists: The id has a row, or a tombstone.
        """
        ...

    async def load(self, session_id: str) -> SessionMetadata:
        """Read a row, without extending its life: a stranger with a leaked id must not keep a session alive.

        Raises:
            SessionNotFound: The id has no row, or no longer has one.
            UnreadableMetadata: The row is corrupt, or of another release (`trio_vmcp.metadata`).
        """
        ...

    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        """Write over a row that is still at `expected_version`; it then lives for another `ttl`.

        Args:
            metadata: Its version must be `expected_version + 1`, and is stored as given.

        Raises:
            ValueError: The version of `metadata` is another.
            MetadataConflict: The row is at another version: another writer was first.
            SessionNotFound: The id has no row, or no longer has one.
        """
        ...

    async def touch(self, session_id: str, *, expected_version: int | None = None) -> None:
        """Let a row live for another `ttl` from now.

        Args:
            expected_version: None: whatever the row's version is.

        Raises:
            SessionNotFound: The id has no row, or no longer has one.
            MetadataConflict: The row is at another version, and lives no longer than before.
        """
        ...

    async def delete(self, session_id: str, *, expected_version: int | None = None) -> None:
        """Remove the row, if there is one, and write a tombstone: `create` fails while the tombstone lives.

        The tombstone is written in either case: an instance that was suspended while the row expired must not create
        the row again. A second delete changes nothing, not even the end of the tombstone.

        Args:
            expected_version: None: whatever the row's version is. Where there is no row, it makes no difference.

        Raises:
            MetadataConflict: There is a row at another version, and it stays as it is.
        """
        ...

    async def aclose(self) -> None:
        """Close the connection to the storage. Rows stay, unless they live in this process. Idempotent."""
        ...


@runtime_checkable
class NotifyingStorage(Storage, Protocol):
    """A storage that also tells of rows that others have written or deleted. A notice is a hint: it comes soon, or
    never, and says nothing about the row; load to know. So a session that was terminated elsewhere is noticed at once
    instead of at the next check.
    """

    def notice_tag(self, session_id: str) -> str:
        """The name of a session in notices: a digest, from which the id cannot be found."""
        ...

    def notices(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[str]]:
        """The tags of rows that were replaced or deleted by another storage, from about now on.

        Entering does not wait for the storage. While the storage is away, or the reader is slow, notices are lost. The
        channel ends when the storage is closed.
        """
        ...
