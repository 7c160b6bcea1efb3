"""The embedded storage, beyond the contract of every storage: plain data only, and how it cleans up and closes."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
import trio
from support.stored import METADATA, plain_leaves
from trio.testing import MockClock, assert_checkpoints

from trio_vmcp.errors import SessionExists, SessionNotFound, StorageError
from trio_vmcp.metadata import BackendRecord, SessionMetadata
from trio_vmcp.storage import LocalStorage, Storage
from trio_vmcp.storage.local import _Row, _Tombstone

TTL = 10.0

Operation = Callable[[Storage], Awaitable[Any]]

ID = METADATA.session_id
NEXT = attrs.evolve(METADATA, version=METADATA.version + 1, updated_at=datetime(2027, 1, 1, tzinfo=UTC))

OPERATIONS: dict[str, Operation] = {
    "create": lambda storage: storage.create(attrs.evolve(METADATA, session_id="another")),
    "load": lambda storage: storage.load(ID),
    "replace": lambda storage: storage.replace(NEXT, expected_version=METADATA.version),
    "touch": lambda storage: storage.touch(ID),
    "delete": lambda storage: storage.delete(ID),
}
every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


async def storage_with_a_row() -> LocalStorage:
    storage = LocalStorage(TTL)
    await storage.create(METADATA)
    return storage


async def is_there(storage: Storage) -> bool:
    try:
        await storage.load(ID)
    except SessionNotFound:
        return False
    return True


def test_it_is_a_storage_made_outside_of_trio() -> None:
    """An application may build it before its loop runs. It is a `Storage`, and its default TTL is half an hour."""
    storage: Storage = LocalStorage()
    assert 1800.0 == storage.ttl
    with pytest.raises(AttributeError):
        storage.ttl = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("ttl", [0, -1.0, math.nan, True, "10", None])
def test_a_ttl_is_more_than_nothing(ttl: Any) -> None:
    """A TTL that is not over 0 is a ValueError that shows it."""
    with pytest.raises(ValueError, match=rf"ttl={ttl!r} is not more than 0 s"):
        LocalStorage(ttl)


async def test_a_row_comes_back_fresh(autojump_clock: MockClock) -> None:
    """Each load makes a new object: changes that a session makes to it do not reach the storage."""
    storage = await storage_with_a_row()
    first = await storage.load(ID)
    first.backends[0].server_capabilities["tools"] = "changed"
    assert METADATA == await storage.load(ID)


async def test_nothing_live_is_stored(autojump_clock: MockClock) -> None:
    """The storage holds plain data only, down to the last reference."""
    storage = await storage_with_a_row()
    await storage.replace(NEXT, expected_version=METADATA.version)
    await storage.delete("another")
    kept = list(plain_leaves(storage._entries, _Row, _Tombstone, SessionMetadata, BackendRecord))
    assert 2 + 3 + 1 == len(kept)  # two ids; a row's bytes, version and expiry; a tombstone's expiry


async def test_no_repr_shows_a_row(autojump_clock: MockClock) -> None:
    """Session ids stay out of logs, also those of deleted rows."""
    storage = await storage_with_a_row()
    await storage.delete("another-secret")
    assert "LocalStorage(_ttl=10.0)" == repr(storage)


@every_operation
async def test_a_cancelled_operation_has_not_happened(operation: Operation, autojump_clock: MockClock) -> None:
    """A cancelled operation changes neither the row nor its TTL nor another row."""
    storage = await storage_with_a_row()
    await trio.sleep(TTL - 1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await operation(storage)
    assert scope.cancelled_caught
    assert METADATA == await storage.load(ID)
    with pytest.raises(SessionNotFound):
        await storage.load("another")
    await trio.sleep(1)
    assert not await is_there(storage)


@every_operation
async def test_a_closed_storage_is_away(operation: Operation, autojump_clock: MockClock) -> None:
    """After `aclose` every operation is a StorageError, also one in flight; closing twice is fine."""
    storage = await storage_with_a_row()

    async def refused() -> None:
        with pytest.raises(StorageError, match="closed") as caught:
            await operation(storage)
        assert type(caught.value) is StorageError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused)
        await storage.aclose()
    await refused()
    with assert_checkpoints():
        await storage.aclose()


async def test_a_cancelled_close_closes(autojump_clock: MockClock) -> None:
    """A cancelled `aclose` closes, like that of Trio's resources."""
    storage = await storage_with_a_row()
    with trio.CancelScope() as scope:
        scope.cancel()
        await storage.aclose()
    assert scope.cancelled_caught
    with pytest.raises(StorageError, match="closed"):
        await storage.load(ID)


async def test_rows_without_an_end(autojump_clock: MockClock) -> None:
    """An infinite TTL keeps rows and tombstones for good."""
    storage = LocalStorage(math.inf)
    await storage.create(METADATA)
    await storage.delete("another")
    await trio.sleep(24 * 3600)
    assert await is_there(storage)
    with pytest.raises(SessionExists):
        await OPERATIONS["create"](storage)


async def test_the_dead_take_no_room(autojump_clock: MockClock) -> None:
    """Expired rows and tombstones are removed during other operations: none removes many at once, and soon all are
    gone.

    A row that lives on does not keep younger entries.
    """
    storage = await storage_with_a_row()
    for number in range(50):
        await storage.create(attrs.evolve(METADATA, session_id=f"row-{number}"))
        await storage.delete(f"tombstone-{number}")
    await trio.sleep(TTL - 1)
    await storage.touch(ID)
    await trio.sleep(1)
    await storage.touch(ID)
    assert 100 - 8 + 1 == len(storage._entries)
    for _ in range(100 // 8):
        await storage.touch(ID)
    assert [ID] == list(storage._entries)


async def test_the_dead_are_dead_before_they_are_dropped(autojump_clock: MockClock) -> None:
    """An expired entry that is not removed yet has no effect."""
    storage = LocalStorage(TTL)
    for number in range(50):
        await storage.delete(f"tombstone-{number}")
    await storage.create(METADATA)
    await trio.sleep(TTL)
    assert not await is_there(storage)
    await storage.create(attrs.evolve(METADATA, session_id="tombstone-49"))
    await storage.create(METADATA)
