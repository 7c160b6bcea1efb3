"""`storage_contract`: every storage passes, and a defect is an AssertionError that names the broken rule."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from support.deterministic import seeded
from support.sqlite_storage import open_sqlite_storage
from trio.testing import MockClock

from trio_vmcp import LocalStorage, MetadataConflict, SessionMetadata, SessionNotFound, Storage, metadata_to_json
from trio_vmcp.storage.local import _check_version, _Row, _Tombstone
from trio_vmcp.testing import storage_contract


def opener(make: Callable[[float], Storage]) -> Callable[[float], AbstractAsyncContextManager[Storage]]:
    @asynccontextmanager
    async def open_storage(ttl: float) -> AsyncIterator[Storage]:
        yield make(ttl)

    return open_storage


@pytest.mark.parametrize("open_storage", [opener(LocalStorage), open_sqlite_storage], ids=["local", "sqlite"])
async def test_storages_keep_the_contract(
    open_storage: Callable[[float], AbstractAsyncContextManager[Storage]], autojump_clock: MockClock
) -> None:
    """The embedded storage, and one of forty lines as an application may write it."""
    await storage_contract(open_storage)


# Each of these breaks one rule.


class CreatesOverRows(LocalStorage):
    async def create(self, metadata: SessionMetadata) -> None:
        if isinstance(self._find(metadata.session_id), _Row):
            del self._entries[metadata.session_id]
        await super().create(metadata)


class CreatesOverTombstones(LocalStorage):
    async def create(self, metadata: SessionMetadata) -> None:
        if isinstance(self._find(metadata.session_id), _Tombstone):
            del self._entries[metadata.session_id]
        await super().create(metadata)


class CreatesAtVersionOne(LocalStorage):
    async def create(self, metadata: SessionMetadata) -> None:
        await super().create(attrs.evolve(metadata, version=1))


class RefusedCreateProlongs(LocalStorage):
    async def create(self, metadata: SessionMetadata) -> None:
        entry = self._find(metadata.session_id)
        if entry is not None:
            self._put(metadata.session_id, attrs.evolve(entry, expires_at=self._expiry()))
        await super().create(metadata)


class NeverForgetsTombstones(LocalStorage):
    def _put(self, session_id: str, entry: _Row | _Tombstone) -> None:
        if isinstance(entry, _Tombstone):
            entry = _Tombstone(entry.expires_at * 100)
        super()._put(session_id, entry)


class NeverForgetsRows(LocalStorage):
    def _put(self, session_id: str, entry: _Row | _Tombstone) -> None:
        if isinstance(entry, _Row):
            entry = attrs.evolve(entry, expires_at=entry.expires_at * 100)
        super()._put(session_id, entry)


class LoadProlongs(LocalStorage):
    async def load(self, session_id: str) -> SessionMetadata:
        await self.touch(session_id)
        return await super().load(session_id)


class LoadsOthers(LocalStorage):
    async def load(self, session_id: str) -> SessionMetadata:
        try:
            return await super().load(session_id)
        except SessionNotFound:
            for other in list(self._entries):
                return await super().load(other)  # noqa: ASYNC120  # a defect
            raise


class FoldsCase(LocalStorage):
    async def load(self, session_id: str) -> SessionMetadata:
        return await super().load(
            next(key for key in [*self._entries, session_id] if key.lower() == session_id.lower())
        )


class LoadsFromCache(LocalStorage):
    cache: dict[str, SessionMetadata] = {}  # noqa: RUF012  # that it is shared is part of the defect

    async def load(self, session_id: str) -> SessionMetadata:
        row = await super().load(session_id)
        return self.cache.setdefault(session_id, row)


class LoadRaisesKeyError(LocalStorage):
    async def load(self, session_id: str) -> SessionMetadata:
        try:
            return await super().load(session_id)
        except SessionNotFound:
            raise KeyError(session_id) from None


class LoadGivesNone(LocalStorage):
    async def load(self, session_id: str) -> Any:
        try:
            return await super().load(session_id)
        except SessionNotFound:
            return None


class ReplaceIgnoresVersion(LocalStorage):
    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        row = await self.load(metadata.session_id)
        if metadata.version != expected_version + 1:
            raise ValueError
        entry = self._row(row.session_id)
        self._put(row.session_id, attrs.evolve(entry, version=expected_version))
        await super().replace(metadata, expected_version=expected_version)


class ReplaceTakesAnyNext(LocalStorage):
    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        await super().replace(attrs.evolve(metadata, version=expected_version + 1), expected_version=expected_version)


class ReplaceCreates(LocalStorage):
    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        try:
            await super().replace(metadata, expected_version=expected_version)
        except SessionNotFound:
            if not isinstance(self._find(metadata.session_id), _Tombstone):
                await self.create(metadata)  # noqa: ASYNC120  # a defect
            raise


class ReplaceKeepsOldEnd(LocalStorage):
    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        until = entry.expires_at if (entry := self._find(metadata.session_id)) else 0.0
        await super().replace(metadata, expected_version=expected_version)
        self._put(metadata.session_id, attrs.evolve(self._row(metadata.session_id), expires_at=until))


class RefusedReplaceProlongs(LocalStorage):
    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        try:
            await super().replace(metadata, expected_version=expected_version)
        except MetadataConflict:
            await self.touch(metadata.session_id)  # noqa: ASYNC120  # a defect
            raise


class TouchWithoutFence(LocalStorage):
    async def touch(self, session_id: str, *, expected_version: int | None = None) -> None:
        await super().touch(session_id)


class TouchFenceIsTruthy(LocalStorage):
    async def touch(self, session_id: str, *, expected_version: int | None = None) -> None:
        await super().touch(session_id, expected_version=expected_version or None)


class TouchComparesFloats(LocalStorage):
    async def touch(self, session_id: str, *, expected_version: int | None = None) -> None:
        if isinstance(row := self._find(session_id), _Row) and float(row.version) == float(expected_version or 0):
            expected_version = None
        await super().touch(session_id, expected_version=expected_version)


class TouchDoesNothing(LocalStorage):
    async def touch(self, session_id: str, *, expected_version: int | None = None) -> None:
        if (await self.load(session_id)).version != expected_version is not None:
            raise MetadataConflict(session_id)


class TouchAdds(LocalStorage):
    async def touch(self, session_id: str, *, expected_version: int | None = None) -> None:
        until = entry.expires_at if (entry := self._find(session_id)) else 0.0
        await super().touch(session_id, expected_version=expected_version)
        self._put(session_id, attrs.evolve(self._row(session_id), expires_at=until + self.ttl))


class TouchOfNothingIsFine(LocalStorage):
    async def touch(self, session_id: str, *, expected_version: int | None = None) -> None:
        if self._find(session_id) is not None:
            await super().touch(session_id, expected_version=expected_version)


class RefusedTouchProlongs(LocalStorage):
    async def touch(self, session_id: str, *, expected_version: int | None = None) -> None:
        await super().touch(session_id)
        await super().touch(session_id, expected_version=expected_version)


class DeleteWithoutTombstone(LocalStorage):
    async def delete(self, session_id: str, *, expected_version: int | None = None) -> None:
        await super().delete(session_id, expected_version=expected_version)
        del self._entries[session_id]


class DeleteOfNothingLeavesNothing(LocalStorage):
    async def delete(self, session_id: str, *, expected_version: int | None = None) -> None:
        if self._find(session_id) is not None:
            await super().delete(session_id, expected_version=expected_version)


class DeleteWithoutFence(LocalStorage):
    async def delete(self, session_id: str, *, expected_version: int | None = None) -> None:
        await super().delete(session_id)


class DeleteFencesTombstones(LocalStorage):
    async def delete(self, session_id: str, *, expected_version: int | None = None) -> None:
        if isinstance(self._find(session_id), _Tombstone) and expected_version is not None:
            raise MetadataConflict(session_id)
        await super().delete(session_id, expected_version=expected_version)


class SecondDeleteProlongs(LocalStorage):
    async def delete(self, session_id: str, *, expected_version: int | None = None) -> None:
        await super().delete(session_id, expected_version=expected_version)
        self._put(session_id, _Tombstone(self._expiry()))


class TombstoneKeepsTheRowsEnd(LocalStorage):
    async def delete(self, session_id: str, *, expected_version: int | None = None) -> None:
        row = self._find(session_id)
        await super().delete(session_id, expected_version=expected_version)
        if isinstance(row, _Row):
            self._put(session_id, _Tombstone(row.expires_at))


class TouchProlongsTombstones(LocalStorage):
    async def touch(self, session_id: str, *, expected_version: int | None = None) -> None:
        if isinstance(self._find(session_id), _Tombstone):
            self._put(session_id, _Tombstone(self._expiry()))
        await super().touch(session_id, expected_version=expected_version)


class ChecksThenActs(LocalStorage):
    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        found = await self.load(metadata.session_id)
        if found.version != expected_version:
            raise MetadataConflict(metadata.session_id)
        if metadata.version != expected_version + 1:
            raise ValueError
        await trio.lowlevel.checkpoint()
        row = self._row(metadata.session_id)
        self._put(metadata.session_id, attrs.evolve(row, version=expected_version))
        await super().replace(metadata, expected_version=expected_version)


class CreateChecksThenActs(LocalStorage):
    async def create(self, metadata: SessionMetadata) -> None:
        there = self._find(metadata.session_id)
        await trio.lowlevel.checkpoint()
        if there is None:
            self._put(metadata.session_id, _Row(metadata_to_json(metadata), metadata.version, self._expiry()))
        else:
            await super().create(metadata)


class CancelledLosesRows(LocalStorage):
    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        entry = self._entries.get(metadata.session_id)
        if isinstance(entry, _Row) and entry.version == expected_version == metadata.version - 1:
            del self._entries[metadata.session_id]
            await trio.lowlevel.checkpoint()
            self._put(metadata.session_id, entry)
        await super().replace(metadata, expected_version=expected_version)


class NoCheckpoint(LocalStorage):
    async def touch(self, session_id: str, *, expected_version: int | None = None) -> None:
        _check_version(session_id, self._row(session_id), expected_version)
        self._put(session_id, attrs.evolve(self._row(session_id), expires_at=self._expiry()))


class StaysOpen(LocalStorage):
    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class ClosedIsNotFound(LocalStorage):
    async def load(self, session_id: str) -> SessionMetadata:
        if self._closed:
            raise SessionNotFound(session_id)
        return await super().load(session_id)


class ClosesOnce(LocalStorage):
    async def aclose(self) -> None:
        if self._closed:
            raise RuntimeError("closed")
        await super().aclose()


class AnyTtl(LocalStorage):
    def __init__(self, ttl: float) -> None:
        super().__init__(ttl if ttl > 0 else 1.0)


class TtlOfItsOwn(LocalStorage):
    def __init__(self, ttl: float) -> None:
        super().__init__(ttl * 2)


DEFECTS: dict[type[LocalStorage], str] = {
    CreatesOverRows: "create: SessionExists where the id has a row",
    CreatesOverTombstones: "delete: leaves a tombstone, at which create is SessionExists",
    CreatesAtVersionOne: "create: the row is stored as given, its version included|load: SessionNotFound where",
    RefusedCreateProlongs: "create: a refused one does not extend the ttl",
    NeverForgetsTombstones: "delete: the tombstone lives for one ttl|delete: a second one changes nothing",
    NeverForgetsRows: "create: the row lives for one ttl",
    LoadProlongs: "load: does not extend the ttl|create: the row lives for one ttl",
    LoadsOthers: "load: SessionNotFound where|replace: SessionNotFound where there is no row, and none is made: load",
    FoldsCase: "every id has a row of its own",
    LoadsFromCache: "replace: the row is stored as given",
    LoadRaisesKeyError: "load: SessionNotFound where there is no row",
    LoadGivesNone: "load: SessionNotFound where there is no row",
    ReplaceIgnoresVersion: "replace: MetadataConflict where the row is at another version",
    ReplaceTakesAnyNext: r"replace: ValueError where metadata.version is not expected_version \+ 1",
    ReplaceCreates: "replace: SessionNotFound where there is no row, and none is made",
    ReplaceKeepsOldEnd: "replace: the row lives for another ttl",
    RefusedReplaceProlongs: "replace: a refused one does not extend the ttl",
    TouchWithoutFence: "touch: MetadataConflict where the row is at another version",
    TouchFenceIsTruthy: "touch: MetadataConflict where the row is at another version",
    TouchComparesFloats: "versions are compared as whole numbers",
    TouchDoesNothing: "touch: the row lives for another ttl",
    TouchAdds: "touch: the row lives for another ttl from now",
    TouchOfNothingIsFine: "touch: SessionNotFound where there is no row",
    RefusedTouchProlongs: "touch: a refused one does not extend the ttl",
    DeleteWithoutTombstone: "delete: .*tombstone|delete: a row at expected_version is deleted",
    DeleteOfNothingLeavesNothing: "delete: leaves a tombstone also for an id that never was",
    DeleteWithoutFence: "delete: MetadataConflict where the row is at another version",
    DeleteFencesTombstones: "delete: idempotent, and expected_version makes no difference",
    SecondDeleteProlongs: "delete: a second one changes nothing, not even the end of the tombstone",
    TombstoneKeepsTheRowsEnd: "delete: the tombstone lives for one ttl from the delete",
    TouchProlongsTombstones: "delete: the tombstone lives no longer because of operations that it refuses",
    ChecksThenActs: "operations are atomic",
    CreateChecksThenActs: "operations are atomic",
    CancelledLosesRows: "operations are atomic",
    NoCheckpoint: "every operation is a checkpoint: touch",
    StaysOpen: "after aclose every operation is a StorageError",
    ClosedIsNotFound: "after aclose every operation is a StorageError: load",
    ClosesOnce: "aclose may come twice",
    AnyTtl: "ttl: ValueError where it is not over 0",
    TtlOfItsOwn: "ttl: the one that the storage was opened with",
}


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
async def test_a_defect_is_named(defect: type[LocalStorage], autojump_clock: MockClock) -> None:
    """The AssertionError says which rule was broken, by which operation."""
    with seeded(1), pytest.raises(AssertionError, match=f"storage contract: ({DEFECTS[defect]})"):
        await storage_contract(opener(defect))
