"""Metadata in this process: the default, for one instance."""

from __future__ import annotations

from collections import OrderedDict

import attrs
import trio

from trio_vmcp._nursery import require_trio
from trio_vmcp.errors import MetadataConflict, SessionExists, SessionNotFound, StorageError
from trio_vmcp.metadata import SessionMetadata, metadata_from_json, metadata_to_json
from trio_vmcp.storage.interface import Storage

__all__ = ["LocalStorage"]

# Expired entries removed per operation: over 1, since an operation may add one, so that a backlog shrinks; few, so that
# no operation takes long.
_SWEPT_PER_OPERATION = 8


@attrs.frozen
class _Row:
    data: bytes = attrs.field(repr=False)
    version: int
    expires_at: float


@attrs.frozen
class _Tombstone:
    expires_at: float


def _check_ttl(_instance: object, _attribute: object, ttl: object) -> None:
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not ttl > 0:  # NaN is not > 0 either
        raise ValueError(f"ttl={ttl!r} is not more than 0 s")


def _check_version(session_id: str, row: _Row, expected_version: int | None) -> None:
    if expected_version is not None and row.version != expected_version:
        raise MetadataConflict(session_id)


@attrs.define(eq=False)
class LocalStorage(Storage):
    """A `Storage` of this process, for one run of Trio: its TTL is counted on `trio.current_time()`.

    Rows are kept as bytes, as in any other storage, so that no live object gets in and every load returns a new one.
    Each method takes its checkpoint first and then changes all or nothing: a cancelled method has had no effect.

    Args:
        ttl: s; `math.inf` keeps rows until they are deleted, and tombstones for good.

    Raises:
        ValueError: `ttl` is not more than 0.
    """

    _ttl: float = attrs.field(default=1800.0, alias="ttl", validator=_check_ttl)
    # In the order in which they expire: all have the same TTL, so the entry that is written last expires last.
    _entries: OrderedDict[str, _Row | _Tombstone] = attrs.field(factory=OrderedDict, init=False, repr=False)
    _closed: bool = attrs.field(default=False, init=False, repr=False)

    @property
    def ttl(self) -> float:
        return self._ttl

    async def create(self, metadata: SessionMetadata) -> None:
        data = metadata_to_json(metadata)
        await self._begin()
        if self._find(metadata.session_id) is not None:
            raise SessionExists(metadata.session_id)
        self._put(metadata.session_id, _Row(data, metadata.version, self._expiry()))

    async def load(self, session_id: str) -> SessionMetadata:
        await self._begin()
        return metadata_from_json(self._row(session_id).data)

    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        if metadata.version != expected_version + 1:
            raise ValueError(f"version={metadata.version!r} is not expected_version={expected_version!r} plus 1")
        data = metadata_to_json(metadata)
        await self._begin()
        _check_version(metadata.session_id, self._row(metadata.session_id), expected_version)
        self._put(metadata.session_id, _Row(data, metadata.version, self._expiry()))

    async def touch(self, session_id: str, *, expected_version: int | None = None) -> None:
        await self._begin()
        row = self._row(session_id)
        _check_version(session_id, row, expected_version)
        self._put(session_id, attrs.evolve(row, expires_at=self._expiry()))

    async def delete(self, session_id: str, *, expected_version: int | None = None) -> None:
        await self._begin()
        entry = self._find(session_id)
        if isinstance(entry, _Tombstone):
            return
        if entry is not None:
            _check_version(session_id, entry, expected_version)
        self._put(session_id, _Tombstone(self._expiry()))

    async def aclose(self) -> None:
        require_trio()
        self._closed = True  # before the checkpoint, so that a cancelled `aclose` closes, too
        self._entries.clear()
        await trio.lowlevel.checkpoint()

    async def _begin(self) -> None:
        require_trio()
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise StorageError("the local storage is closed")
        now = trio.current_time()
        for _ in range(_SWEPT_PER_OPERATION):
            if not self._entries or next(iter(self._entries.values())).expires_at > now:
                return
            self._entries.popitem(last=False)

    def _expiry(self) -> float:
        return trio.current_time() + self._ttl

    def _find(self, session_id: str) -> _Row | _Tombstone | None:
        entry = self._entries.get(session_id)
        return entry if entry is not None and entry.expires_at > trio.current_time() else None

    def _row(self, session_id: str) -> _Row:
        entry = self._find(session_id)
        if not isinstance(entry, _Row):
            raise SessionNotFound(session_id)
        return entry

    def _put(self, session_id: str, entry: _Row | _Tombstone) -> None:
        self._entries[session_id] = entry
        self._entries.move_to_end(session_id)
