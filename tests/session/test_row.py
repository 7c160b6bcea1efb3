"""The row of one session: what is written and when, and what is deleted when the outcome of a write is unknown."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import attrs
import pytest
import trio
from support.scripted_storage import ScriptedStorage
from trio.testing import MockClock

from trio_vmcp import (
    BackendRecord,
    LocalStorage,
    MetadataConflict,
    SessionClosed,
    SessionExists,
    SessionNotFound,
    StorageError,
)
from trio_vmcp._session.row import RowContents, SessionRow, load_row, new_row
from trio_vmcp._session.row_storage import RowStorage
from trio_vmcp.routing import Bindings

RECORD = BackendRecord("a", "sid", "legacy", "2025-11-25", {"tools": {}}, "digest")
FIRST: RowContents = ((RECORD,), Bindings({"a_x": "a"}))
SECOND: RowContents = ((attrs.evolve(RECORD, session_id="next"),), FIRST[1])
EQUAL: RowContents = ((attrs.evolve(RECORD),), Bindings({"a_x": "a"}))


def row_in(storage: ScriptedStorage, timeout: float = 5.0) -> SessionRow:
    return new_row("one", None, RowStorage(storage, timeout))


async def answers_late() -> None:
    await trio.sleep(60)


async def test_a_row_that_says_the_same_is_not_written(autojump_clock: MockClock) -> None:
    """A state change of a backend with the same session and the same names costs the storage nothing."""
    storage = ScriptedStorage()
    row = row_in(storage)
    for contents in (FIRST, FIRST, EQUAL, SECOND, SECOND):
        await row.write(contents)
    assert {"create": 1, "replace": 1} == storage.calls
    (stored,) = await storage.rows()
    assert (SECOND[0], 2) == (stored.backends, stored.version)
    assert stored == row.metadata


async def test_a_restored_row_is_always_written_once(autojump_clock: MockClock) -> None:
    """The new version is what an instance that had the session before runs into."""
    storage = ScriptedStorage()
    await row_in(storage).write(FIRST)
    restored = await load_row("one", RowStorage(storage, 5.0))
    await restored.write(FIRST)
    assert 2 == restored.metadata.version


@pytest.mark.parametrize("then", [FIRST, SECOND])
async def test_a_write_without_an_answer_is_no_conflict_with_the_next(
    then: RowContents, autojump_clock: MockClock
) -> None:
    """The storage took the row and answered too late; the next write goes on from there, also back to the old row."""
    storage = ScriptedStorage()
    row = row_in(storage)
    await row.write(FIRST)
    storage.after["replace"] = answers_late
    with pytest.raises(StorageError, match="storage_timeout"):
        await row.write(SECOND)
    del storage.after["replace"]
    await row.write(then)
    (stored,) = await storage.rows()
    assert (then[0], 3) == (stored.backends, stored.version)


@pytest.mark.parametrize(
    ("events", "deletes"),
    [
        ((), 0),  # nothing was sent
        (("late",), 1),  # the storage may have taken the row
        (("taken",), 0),  # the row belongs to another session
        (("late", "taken"), 0),
        (("written",), 1),
    ],
)
async def test_only_a_row_that_may_be_ours_is_deleted(
    events: tuple[str, ...], deletes: int, autojump_clock: MockClock
) -> None:
    """Nothing sent or the id taken: nothing to delete. A create of unknown outcome: delete."""
    storage = ScriptedStorage()
    row = row_in(storage)

    async def is_taken() -> None:
        raise SessionExists("one")

    for event in events:
        if event == "written":
            await row.write(FIRST)
            continue
        storage.before["create"] = {"late": answers_late, "taken": is_taken}[event]
        with pytest.raises((StorageError, SessionExists)):
            await row.write(FIRST)
    await row.delete()
    assert deletes == storage.calls["delete"]


async def test_a_row_that_comes_before_the_delete_stays(autojump_clock: MockClock) -> None:
    """A create had no answer, and there is no row at the close. Another session is given the same id just before the
    delete, which expects no row.
    """
    storage = ScriptedStorage()
    row = row_in(storage)
    storage.before["create"] = answers_late
    with pytest.raises(StorageError):
        await row.write(FIRST)
    other = new_row("one", None, RowStorage(storage.inner, 5.0))

    async def write_other() -> None:
        del storage.before["delete"]
        await other.write(SECOND)

    storage.before["delete"] = write_other
    await row.delete()
    assert (other.metadata,) == tuple(await storage.rows())


@pytest.mark.parametrize("operation", ["replace", "delete"])
async def test_a_row_that_others_write_all_the_time_is_a_conflict(operation: str, autojump_clock: MockClock) -> None:
    """After three attempts, each of which another instance was ahead of."""
    storage = ScriptedStorage()
    row = row_in(storage)
    await row.write(FIRST)

    async def be_ahead() -> None:
        stored = await storage.inner.load("one")
        newer = attrs.evolve(stored, version=stored.version + 1)
        await storage.inner.replace(newer, expected_version=stored.version)

    storage.before[operation] = be_ahead
    with pytest.raises(MetadataConflict):
        await (row.delete() if operation == "delete" else row.write(SECOND))
    assert 3 == storage.calls[operation]
    assert 1 == len(await storage.rows())


MISPLACED = [
    ("create", SessionNotFound("one")),
    ("create", MetadataConflict("one")),
    ("load", SessionExists("one")),
    ("load", MetadataConflict("one")),
    ("replace", SessionExists("one")),
    ("touch", SessionExists("one")),
    ("delete", SessionClosed("one")),
]


@pytest.mark.parametrize(
    ("operation", "error"), MISPLACED, ids=[f"{operation}-{type(error).__name__}" for operation, error in MISPLACED]
)
async def test_an_answer_that_belongs_to_another_operation_is_a_failure(
    operation: str, error: Exception, autojump_clock: MockClock
) -> None:
    """Of a storage of the user's: else what a caller of ours raises it for would be done."""
    storage = ScriptedStorage()
    bounded = RowStorage(storage, 5.0)
    row = new_row("one", None, bounded)
    if operation != "create":
        await row.write(FIRST)

    async def answer() -> None:
        raise error

    storage.before[operation] = answer
    operations: dict[str, Callable[[], Awaitable[object]]] = {
        "create": partial(row.write, FIRST),
        "load": partial(bounded.load, "one"),
        "replace": partial(row.write, SECOND),
        "touch": row.touch,
        "delete": row.delete,
    }
    with pytest.raises(StorageError, match=f"the storage failed to .* the session: {type(error).__name__}"):
        await operations[operation]()


async def test_a_row_that_is_not_found_too_late_is_not_created_anew(autojump_clock: MockClock) -> None:
    """A touch is answered a TTL after the row was seen: the session may have been terminated, and its tombstone may
    have ended. Nothing more is asked of the storage.
    """
    storage = ScriptedStorage(LocalStorage(ttl=3))
    row = row_in(storage)
    await row.write(FIRST)
    storage.inner = LocalStorage(ttl=3)
    storage.before["touch"] = partial(trio.sleep, 2)
    await trio.sleep(2)
    with pytest.raises(SessionExists):
        await row.touch()
    await row.delete()
    assert {"create": 1, "touch": 1} == storage.calls


async def test_a_row_of_another_session_is_not_deleted_after_an_outage(autojump_clock: MockClock) -> None:
    """The row expired, and another session was given the same id: its row has the version of ours."""
    storage = ScriptedStorage(LocalStorage(ttl=3))
    row, other = row_in(storage), row_in(storage)
    await row.write(FIRST)
    await trio.sleep(4)
    await other.write(FIRST)
    await row.delete()
    assert (other.metadata,) == tuple(await storage.rows())


async def test_a_vanished_row_that_another_instance_created_anew_is_taken_as_it_is(autojump_clock: MockClock) -> None:
    """The storage lost the row, and the other instance is faster: what is written next follows its version."""
    storage = ScriptedStorage()
    row = row_in(storage)
    await row.write(FIRST)
    other = await load_row("one", RowStorage(storage, 5.0))
    await other.write(SECOND)

    async def be_faster() -> None:
        del storage.before["create"]
        await other.touch()

    storage.inner = LocalStorage()
    storage.before["create"] = be_faster
    await row.touch()
    assert row.is_anothers
    await row.write(((RECORD, attrs.evolve(RECORD, backend_id="b")), FIRST[1]))
    (stored,) = await storage.rows()
    assert (3, {"a": "next", "b": "sid"}) == (
        stored.version,
        {record.backend_id: record.session_id for record in stored.backends},
    )


async def test_a_tombstone_does_not_make_a_written_row_foreign(autojump_clock: MockClock) -> None:
    """A touch that finds the row terminated elsewhere leaves the delete to be sent: tombstones take it twice."""
    storage = ScriptedStorage()
    row = row_in(storage)
    await row.write(FIRST)
    await storage.inner.delete("one")
    with pytest.raises(SessionExists):
        await row.touch()
    await row.delete()
    assert 1 == storage.calls["delete"]
