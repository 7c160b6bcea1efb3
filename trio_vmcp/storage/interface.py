"""What a session asks of the place where its metadata lives."""

from __future__ import annotations

from typing import Protocol

from trio_vmcp.metadata import SessionMetadata

__all__ = ["Storage"]


class Storage(Protocol):
    """Rows of metadata by session id, each with a time to live.

    Every method is a checkpoint. Every method but `aclose` raises StorageError when the storage is away, closed, or
    holds what cannot be read; its own client's errors do not come through. One that is cancelled, or fails with
    StorageError, may have had its effect.
    """

    @property
    def ttl(self) -> float:
        """s that a row lives after it was created, replaced or touched, and a tombstone after its delete."""
        ...

    async def create(self, metadata: SessionMetadata) -> None:
        """Add a row, at whatever version it says.

        Raises:
            SessionExists: The id has a row, or a tombstone.
        """
        ...

    async def load(self, session_id: str) -> SessionMetadata:
        """Read a row. Does not extend its life: a stranger with a leaked id must not keep a session alive.

        Raises:
            SessionNotFound: The id has no row, or none any more.
        """
        ...

    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        """Write over a row that is still at `expected_version`; it then lives for another `ttl`.

        Args:
            metadata: Its version is `expected_version + 1`, and is stored as given.

        Raises:
            ValueError: It is not.
            MetadataConflict: The row is at another version: somebody else wrote it first.
            SessionNotFound: The id has no row, or none any more.
        """
        ...

    async def touch(self, session_id: str) -> None:
        """Let a row live for another `ttl` from now.

        Raises:
            SessionNotFound: The id has no row, or none any more.
        """
        ...

    async def delete(self, session_id: str) -> None:
        """Remove the row, if there is one, and leave a tombstone, on which `create` fails.

        The tombstone is left in either case: an instance that slept while the row expired must not bring it back. A
        second delete changes nothing.
        """
        ...

    async def aclose(self) -> None:
        """Let go of the connection. Rows outlive it, unless they live in this process. Idempotent."""
        ...
