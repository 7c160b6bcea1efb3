"""A storage as an application may write it: a table of sqlite, on the clock of Trio."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from trio_vmcp import MetadataConflict, SessionExists, SessionMetadata, SessionNotFound, StorageError

from trio_vmcp import metadata_from_json, metadata_to_json  # isort: skip

TABLE = "CREATE TABLE IF NOT EXISTS rows (id TEXT PRIMARY KEY, version INTEGER, data BLOB, expires_at REAL)"


class SqliteStorage:
    """Rows of metadata in a file of sqlite; a tombstone is a row without data. Every operation ends in one step."""

    def __init__(self, path: str, ttl: float) -> None:
        if not ttl > 0:
            raise ValueError(f"ttl={ttl!r} is not more than 0 s")
        self.ttl, self._database = ttl, sqlite3.connect(path, isolation_level=None)
        self._database.execute(TABLE)

    async def _find(self, session_id: str, expected_version: int | None = None) -> tuple[int, bytes | None] | None:
        await trio.lowlevel.checkpoint()
        try:
            self._database.execute("DELETE FROM rows WHERE expires_at <= ?", (trio.current_time(),))
            found = self._database.execute("SELECT version, data FROM rows WHERE id = ?", (session_id,)).fetchone()
        except sqlite3.Error as exc:
            raise StorageError(f"sqlite: {type(exc).__name__}") from exc
        if found and found[1] and expected_version not in (None, found[0]):
            raise MetadataConflict(session_id)
        return None if found is None else (found[0], found[1])

    def _put(self, session_id: str, version: int, data: bytes | None) -> None:
        values = (session_id, version, data, trio.current_time() + self.ttl)
        self._database.execute("REPLACE INTO rows VALUES (?, ?, ?, ?)", values)

    async def create(self, metadata: SessionMetadata) -> None:
        if await self._find(metadata.session_id):
            raise SessionExists(metadata.session_id)
        self._put(metadata.session_id, metadata.version, metadata_to_json(metadata))

    async def load(self, session_id: str) -> SessionMetadata:
        found = await self._find(session_id)
        if not found or found[1] is None:
            raise SessionNotFound(session_id)
        return metadata_from_json(found[1])

    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        if metadata.version != expected_version + 1:
            raise ValueError(f"version={metadata.version!r} is not expected_version={expected_version!r} plus 1")
        found = await self._find(metadata.session_id, expected_version)
        if not found or found[1] is None:
            raise SessionNotFound(metadata.session_id)
        self._put(metadata.session_id, metadata.version, metadata_to_json(metadata))

    async def touch(self, session_id: str, *, expected_version: int | None = None) -> None:
        found = await self._find(session_id, expected_version)
        if not found or found[1] is None:
            raise SessionNotFound(session_id)
        self._put(session_id, *found)

    async def delete(self, session_id: str, *, expected_version: int | None = None) -> None:
        found = await self._find(session_id, expected_version)
        if not found or found[1] is not None:
            self._put(session_id, 0, None)

    def close(self) -> None:
        self._database.close()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def open_sqlite_storage(ttl: float, path: str = ":memory:") -> AsyncIterator[SqliteStorage]:
    storage = SqliteStorage(path, ttl)
    try:
        yield storage
    finally:
        with trio.CancelScope(shield=True):
            await storage.aclose()
