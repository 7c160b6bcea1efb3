"""The row of one session: what is written and when, and what is deleted when the outcome of a write is unknown."""

from __future__ import annotations

import math
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
from trio_vmcp._session.stored_row import MOST_ROUNDS, MOST_UNANSWERED
from trio_vmcp.routing import Bindings

RECORD = BackendRecord("a", "sid", "legacy", "2025-11-25", {"tools": {}}, "digest")
FIRST: RowContents = ((RECORD,), Bindings({"a_x": "a"}))
SECOND: RowContents = ((attrs.evolve(RECORD, session_id="next"),), FIRST[1])
EQUAL: RowContents = ((attrs.evolve(RECORD),), Bindings({"a_x": "a"}))


def row_in(storage: ScriptedStorage, timeout: float = 5.0) -> SessionRow:
    return new_row("one", None, RowStorage(storage, timeout))


async def be_ahead(storage: ScriptedStorage) -> None:
    """Another instance writes the row."""
    stored = await storage.inner.load("one")
    newer = attrs.evolve(stored, version=stored.version + 1)
    await storage.inner.replace(newer, expected_version=stored.version)


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


async def test_a_write_without_an_answer_is_known_after_a_long_outage(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The storage took a row and was then away for many writes: the row is no other instance's, and what has changed
    since is written.
    """
    storage = ScriptedStorage()
    row = row_in(storage)
    await row.write(FIRST)
    storage.after["replace"] = answers_late
    with pytest.raises(StorageError):
        await row.write(SECOND)
    storage.before = dict.fromkeys(("load", "replace"), answers_late)
    contents: RowContents = ((attrs.evolve(RECORD, session_id="third"),), FIRST[1])
    for _ in range(2 * MOST_UNANSWERED):
        with pytest.raises(StorageError):
            await row.write(contents)
    storage.before, storage.after = {}, {}
    await row.write(contents)
    (stored,) = await storage.rows()
    assert contents[0] == stored.backends
    assert "was taken over by another instance" not in caplog.text


@pytest.mark.parametrize(
    ("events", "loads", "deletes"),
    [
        ((), 0, 0),  # nothing was sent
        (("late",), 1, 1),  # the storage may have taken the row
        (("unanswered",), 1, 1),  # the storage has taken the row
        (("taken",), 0, 0),  # the row belongs to another session
        (("written",), 0, 1),
        (("written", "replaced"), 1, 2),  # by another instance: the first delete is refused
        (("written", "replaced", "unseen"), 2, 1),
        (("written", "lost", "unseen"), 1, 0),
    ],
)
async def test_only_a_row_that_may_be_ours_is_deleted(
    events: tuple[str, ...], loads: int, deletes: int, autojump_clock: MockClock
) -> None:
    """Nothing sent or the id taken: nothing to delete. A create of unknown outcome: delete."""
    storage = ScriptedStorage(LocalStorage(ttl=100))
    row = row_in(storage)

    async def is_taken() -> None:
        raise SessionExists("one")

    for event in events:
        if event == "written":
            await row.write(FIRST)
        elif event == "unseen":
            await trio.sleep(90)
        elif event == "replaced":
            await trio.sleep(10)
            await (await load_row("one", RowStorage(storage.inner, 5.0))).write(SECOND)
        elif event == "lost":
            await trio.sleep(10)
            storage.inner = LocalStorage(ttl=100)
        else:
            hooks = storage.after if event == "unanswered" else storage.before
            hooks["create"] = is_taken if event == "taken" else answers_late
            with pytest.raises((StorageError, SessionExists)):
                await row.write(FIRST)
    await row.delete()
    assert (loads, deletes) == (storage.calls["load"], storage.calls["delete"])
    assert not row.may_be_left
    assert [] == await storage.rows()


async def rows_of_one_id() -> tuple[ScriptedStorage, SessionRow, SessionRow]:
    """A row whose create had no answer and has not arrived, and one that another session may make before it does."""
    storage = ScriptedStorage()
    row = row_in(storage)
    storage.before["create"] = answers_late
    with pytest.raises(StorageError):
        await row.write(FIRST)
    return storage, row, new_row("one", None, RowStorage(storage.inner, 5.0))


async def test_a_row_of_another_session_stays(autojump_clock: MockClock) -> None:
    """A create had no answer, and another session was given the same id before it arrived."""
    storage, row, other = await rows_of_one_id()
    await other.write(SECOND)
    await row.delete()
    assert (0, False) == (storage.calls["delete"], row.may_be_left)
    assert (other.metadata,) == tuple(await storage.rows())


async def test_a_row_that_goes_during_a_delete_is_deleted_once(autojump_clock: MockClock) -> None:
    """The delete is refused, since another instance has written the row, and then there is none."""
    storage = ScriptedStorage()
    row = row_in(storage)
    await row.write(FIRST)
    await (await load_row("one", RowStorage(storage.inner, 5.0))).write(SECOND)

    async def lose_all() -> None:
        storage.inner = LocalStorage()

    storage.before["load"] = lose_all
    await row.delete()
    assert (1, False) == (storage.calls["delete"], row.may_be_left)


async def test_a_row_that_goes_in_the_last_round_of_a_delete_is_deleted(autojump_clock: MockClock) -> None:
    """Another instance has been ahead of each attempt, and what is read behind the last one is no row any more."""
    storage = ScriptedStorage()
    row = row_in(storage)
    await row.write(FIRST)

    async def lose_all() -> None:
        if storage.calls["delete"] == MOST_ROUNDS:
            storage.inner = LocalStorage()

    storage.before |= {"delete": partial(be_ahead, storage), "load": lose_all}
    await row.delete()
    assert (MOST_ROUNDS, False) == (storage.calls["delete"], row.may_be_left)


async def test_a_row_that_comes_before_the_delete_stays(autojump_clock: MockClock) -> None:
    """A create had no answer, and there is no row at the close. Another session is given the same id just before the
    delete, which expects no row.
    """
    storage, row, other = await rows_of_one_id()

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

    storage.before[operation] = partial(be_ahead, storage)
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
    assert (0, False) == (storage.calls["delete"], row.may_be_left)
    assert (other.metadata,) == tuple(await storage.rows())


@pytest.mark.parametrize("is_taken", [False, True])
@pytest.mark.parametrize("operation", ["touch", "write"])
async def test_a_session_that_may_have_been_terminated_leaves_no_row(
    operation: str, is_taken: bool, autojump_clock: MockClock
) -> None:
    """After a TTL without the storage there is no row, or one of another session: none is created, written or
    deleted.
    """
    storage = ScriptedStorage(LocalStorage(ttl=3))
    row, other = row_in(storage), row_in(storage)
    await row.write(FIRST)
    await trio.sleep(3)
    if is_taken:
        await other.write(FIRST)
    with pytest.raises(SessionExists):
        await (row.touch() if operation == "touch" else row.write(SECOND))
    assert not row.may_be_left
    await row.delete()
    assert {"create": 1 + is_taken, "load": 1} == storage.calls


@pytest.mark.parametrize("seen_by", ["create", "replace", "touch", "create anew"])
async def test_a_row_is_looked_for_a_ttl_after_it_was_seen(seen_by: str, autojump_clock: MockClock) -> None:
    """Every answer of the storage shows that the row is there. Within a TTL nothing has to be read before a step."""
    storage = ScriptedStorage(LocalStorage(ttl=3))
    row = row_in(storage)
    if seen_by != "create":
        await row.write(FIRST)
    await trio.sleep(2)
    if seen_by == "create anew":
        storage.inner = LocalStorage(ttl=3)
    await (row.write(SECOND) if seen_by in ("create", "replace") else row.touch())
    await trio.sleep(2)
    calls = storage.calls.copy()
    await row.touch()
    assert {"touch": 1} == storage.calls - calls
    await trio.sleep(2)
    await row.touch()
    await trio.sleep(2.5)
    await row.delete()
    assert [] == await storage.rows()
    assert 0 == storage.calls["load"]


async def test_a_vanished_row_is_created_anew_within_a_ttl(autojump_clock: MockClock) -> None:
    """Later the tombstone of a terminated session would refuse it no longer."""
    storage = ScriptedStorage(LocalStorage(ttl=3))
    row = row_in(storage, timeout=50)
    await row.write(FIRST)
    await trio.sleep(1)
    storage.inner = LocalStorage(ttl=3)
    storage.before["create"] = answers_late
    with pytest.raises(StorageError):
        await row.touch()
    assert 3 == trio.current_time()


async def test_a_write_that_may_still_arrive_is_written_over(autojump_clock: MockClock) -> None:
    """Also where the row says already what is to be said, in a session that another instance has, too."""
    storage = ScriptedStorage()
    row = row_in(storage)
    await row.write(FIRST)
    other = await load_row("one", RowStorage(storage.inner, 5.0))
    await other.write(FIRST)
    await row.write(((), FIRST[1]))
    await row.write(FIRST)
    storage.before["replace"] = answers_late
    with pytest.raises(StorageError):
        await row.write(SECOND)
    del storage.before["replace"]
    replaced = storage.calls["replace"]
    await row.write(FIRST)
    assert replaced + 1 == storage.calls["replace"]


async def test_an_instance_that_writes_last_is_told_of_another_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The row is another's until this one has written it, also if that write has had no answer. Each instance says once
    that the other has the session, too.
    """
    storage = ScriptedStorage()
    row = row_in(storage)
    await row.write(FIRST)
    other = await load_row("one", RowStorage(storage, 5.0))
    for answered in (True, False):
        await other.write(FIRST, marks=True)
        await row.touch()
        assert row.is_anothers
        if answered:
            await row.write(SECOND)
        else:
            storage.after["replace"] = answers_late
            with pytest.raises(StorageError):
                await row.write(FIRST)
            await row.touch()
        assert not row.is_anothers
    assert 2 == caplog.text.count("was taken over by another instance")  # once by each


async def test_a_mark_without_an_answer_is_found_in_the_row(autojump_clock: MockClock) -> None:
    """Use before it needs no other mark."""
    storage = ScriptedStorage()
    row = row_in(storage)
    row.marks.mark_each(40, math.inf)
    await row.write(FIRST, marks=True)
    await trio.sleep(10)
    used_at = trio.current_time()
    storage.after["replace"] = answers_late
    with pytest.raises(StorageError):
        await row.write(FIRST, marks=True)
    await row.touch()
    await trio.sleep(10)
    assert not row.marks.is_due(used_at, trio.current_time())
    assert row.marks.is_due(trio.current_time(), trio.current_time())


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
