"""The embedded storage: the promises of every storage, on virtual time."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from support.stored import METADATA, plain_leaves
from trio.testing import MockClock, assert_checkpoints

from trio_vmcp.errors import MetadataConflict, SessionExists, SessionNotFound, StorageError, VmcpError
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
async def test_every_operation_is_a_checkpoint(operation: Operation, autojump_clock: MockClock) -> None:
    """Every operation is a checkpoint, so that code written for this storage is cancelled as with a networked one."""
    storage = await storage_with_a_row()
    with assert_checkpoints():
        await operation(storage)


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


@pytest.mark.parametrize("version", [METADATA.version, METADATA.version + 2, 0])
async def test_a_version_follows_its_predecessor(version: int, autojump_clock: MockClock) -> None:
    """A write with a wrong version is a ValueError, and the row stays."""
    storage = await storage_with_a_row()
    with pytest.raises(ValueError, match=f"version={version} is not expected_version=3 plus 1"):
        await storage.replace(attrs.evolve(METADATA, version=version), expected_version=METADATA.version)
    assert METADATA == await storage.load(ID)


async def test_of_two_writers_one_loses(autojump_clock: MockClock) -> None:
    """Of two writers from the same version exactly one succeeds, and the other gets MetadataConflict."""
    storage = await storage_with_a_row()
    outcomes: list[str] = []

    async def write(digest: str) -> None:
        record = attrs.evolve(METADATA.backends[0], endpoint_digest=digest)
        try:
            await storage.replace(attrs.evolve(NEXT, backends=(record,)), expected_version=METADATA.version)
        except MetadataConflict:
            outcomes.append("lost")
        else:
            outcomes.append(digest)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, "one")
        nursery.start_soon(write, "two")
    (winner,) = set(outcomes) - {"lost"}
    assert 2 == len(outcomes)
    assert winner == (await storage.load(ID)).backends[0].endpoint_digest


async def test_a_lost_row_may_be_created_anew_and_a_terminated_one_not(autojump_clock: MockClock) -> None:
    """After expiry the same id may be created again; after a delete it may not, also if the row had expired before."""
    storage = await storage_with_a_row()
    await trio.sleep(TTL)
    await storage.create(METADATA)
    await trio.sleep(TTL)
    await storage.delete(ID)
    with pytest.raises(SessionExists):
        await storage.create(METADATA)


async def test_a_second_delete_changes_nothing(autojump_clock: MockClock) -> None:
    """The tombstone lives for one TTL from the first delete."""
    storage = await storage_with_a_row()
    await storage.delete(ID)
    await trio.sleep(TTL - 1)
    await storage.delete(ID)
    await trio.sleep(1)
    await storage.create(METADATA)
    assert await is_there(storage)


@pytest.mark.parametrize("operation", ["touch", "delete"])
@pytest.mark.parametrize("version", [METADATA.version - 1, METADATA.version + 1, 0])
async def test_a_writer_that_has_seen_another_version_loses(
    operation: str, version: int, autojump_clock: MockClock
) -> None:
    """MetadataConflict: the row stays, and lives no longer than before. With the right version, or none, it is done."""
    storage = await storage_with_a_row()
    await trio.sleep(TTL / 2)
    with pytest.raises(MetadataConflict):
        await getattr(storage, operation)(ID, expected_version=version)
    assert METADATA == await storage.load(ID)
    await trio.sleep(TTL / 2)
    assert not await is_there(storage)
    for right in (METADATA.version, None):
        storage = await storage_with_a_row()
        await trio.sleep(TTL / 2)
        await getattr(storage, operation)(ID, expected_version=right)
        await trio.sleep(TTL / 2)
        assert (operation == "touch") is await is_there(storage)


async def test_where_there_is_no_row_a_version_makes_no_difference(autojump_clock: MockClock) -> None:
    """A touch finds none; a delete leaves a tombstone, once, which ends when it would have ended."""
    storage = LocalStorage(TTL)
    with pytest.raises(SessionNotFound):
        await storage.touch(ID, expected_version=7)
    await storage.delete(ID, expected_version=7)
    await trio.sleep(TTL / 2)
    await storage.delete(ID, expected_version=3)
    with pytest.raises(SessionExists):
        await storage.create(METADATA)
    await trio.sleep(TTL / 2)
    await storage.create(METADATA)


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


@attrs.define
class Model:
    """A model of the storage: for each id its expiry and version; None: deleted."""

    lives: dict[str, tuple[float, int | None]] = attrs.field(factory=dict)

    def apply(self, step: str, session_id: str, version: int, now: float) -> object:
        """The version that was read, None for an operation without a result, or the type of the error."""
        until, there = self.lives.get(session_id, (0.0, None))
        alive = now < until
        if step == "create":
            if alive:
                return SessionExists
            self.lives[session_id] = (now + TTL, version)
        elif step == "delete":
            if not alive or there is not None:
                self.lives[session_id] = (now + TTL, None)
        elif not alive or there is None:
            return SessionNotFound
        elif step == "load":
            return there
        elif step == "touch":
            self.lives[session_id] = (now + TTL, there)
        elif there != version:
            return MetadataConflict
        else:
            self.lives[session_id] = (now + TTL, version + 1)
        return None


async def perform(storage: Storage, step: str, session_id: str, version: int) -> object:
    """The same operation on a storage."""
    session = attrs.evolve(METADATA, session_id=session_id, version=version)
    try:
        if step == "create":
            await storage.create(session)
        elif step == "load":
            return (await storage.load(session_id)).version
        elif step == "replace":
            await storage.replace(attrs.evolve(session, version=version + 1), expected_version=version)
        elif step == "touch":
            await storage.touch(session_id)
        else:
            await storage.delete(session_id)
    except VmcpError as exc:
        return type(exc)
    return None


async def replay(script: list[tuple[str, str, int]]) -> None:
    """Every step of the script has the same outcome on model and storage."""
    storage, model, start = LocalStorage(TTL), Model(), trio.current_time()
    for step, session_id, number in script:
        if step == "sleep":
            await trio.sleep(number)
        else:
            now = trio.current_time() - start
            expected = model.apply(step, session_id, number, now)
            assert expected == await perform(storage, step, session_id, number), (step, session_id, number, now)


class StorageMachine(RuleBasedStateMachine):
    """Rules write a script; teardown replays it on a fresh, deterministic loop, so it shrinks."""

    def __init__(self) -> None:
        super().__init__()
        self.script: list[tuple[str, str, int]] = []

    @rule(
        step=st.sampled_from(["create", "load", "replace", "touch", "delete"]),
        session_id=st.sampled_from(["a", "b"]),
        version=st.integers(0, 2),
    )
    def operate(self, step: str, session_id: str, version: int) -> None:
        self.script.append((step, session_id, version))

    @rule(seconds=st.integers(1, int(TTL) + 1))
    def sleep(self, seconds: int) -> None:
        self.script.append(("sleep", "", seconds))

    def teardown(self) -> None:
        trio.run(replay, self.script, clock=MockClock(autojump_threshold=0))


TestStorageMachine = StorageMachine.TestCase
TestStorageMachine.settings = settings(max_examples=40, stateful_step_count=30)  # more would take over a second
