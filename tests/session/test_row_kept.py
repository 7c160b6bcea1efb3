"""The row of one session while the session is open: what is written when, and what becomes of it at the end."""

from __future__ import annotations

import logging
import math
from functools import partial

import attrs
import pytest
import trio
from support.scripted_storage import ScriptedStorage
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import BackendRecord, LocalStorage, SessionClosed, StorageError
from trio_vmcp._session.row import RowContents, SessionRow, load_row, new_row
from trio_vmcp._session.row_storage import RowStorage
from trio_vmcp.routing import Bindings

TTL = 30.0  # s, so that the row is touched every 10 s, and use is marked every 7.5 s
RECORD = BackendRecord("a", "sid", "legacy", "2025-11-25", {"tools": {}}, "digest")
FIRST: RowContents = ((RECORD,), Bindings({"a_x": "a"}))
SECOND: RowContents = ((attrs.evolve(RECORD, session_id="next"),), FIRST[1])


async def away() -> None:
    await trio.lowlevel.checkpoint()
    raise StorageError("the storage is away")


@attrs.define(eq=False)
class Kept:
    """A row that a task keeps up to date.

    Attributes:
        contents: What it should say.
        used_at: When the session was last used.
        terminated: How often `keep` said that the session was terminated elsewhere.
        has_ended: `keep` has returned.
    """

    storage: ScriptedStorage
    row: SessionRow
    contents: RowContents = FIRST
    used_at: float = -math.inf
    terminated: int = 0
    has_ended: bool = False

    async def keep(self) -> None:
        def note_termination() -> None:
            self.terminated += 1

        await self.row.keep(lambda: self.contents, note_termination, used_at=lambda: self.used_at)
        self.has_ended = True

    def use(self) -> None:
        self.used_at = trio.current_time()
        self.row.note_use(self.used_at)

    async def change(self, contents: RowContents) -> None:
        """Returns once nothing more happens at this time."""
        self.contents = contents
        self.row.note_change()
        await wait_all_tasks_blocked()

    async def other(self) -> SessionRow:
        """The row as another instance has it."""
        return await load_row("one", RowStorage(self.storage.inner, 5.0))

    def lose(self) -> None:
        """The storage has no rows any more."""
        self.storage.inner = LocalStorage(TTL)


@pytest.fixture
async def kept(nursery: trio.Nursery) -> Kept:
    storage = ScriptedStorage(LocalStorage(TTL))
    kept = Kept(storage, new_row("one", None, RowStorage(storage, 5.0)))
    assert not kept.row.is_saved
    await kept.row.write(FIRST, marks=True)
    nursery.start_soon(kept.keep)
    await wait_all_tasks_blocked()
    return kept


async def test_a_row_is_saved_once_a_change_is_written(autojump_clock: MockClock, kept: Kept) -> None:
    """From the change on it is not, nor while it is being written, nor after a write without an answer."""
    assert kept.row.is_saved
    kept.storage.before["replace"] = partial(trio.sleep, 1)
    await kept.change(SECOND)
    assert not kept.row.is_saved
    await trio.sleep(2)
    assert kept.row.is_saved
    kept.row.note_change()
    assert not kept.row.is_saved
    await wait_all_tasks_blocked()
    assert kept.row.is_saved  # that was no change
    kept.storage.before["replace"] = partial(trio.sleep, 60)
    await kept.change(FIRST)
    await trio.sleep(6)
    assert not kept.row.is_saved


@pytest.mark.parametrize("proof", ["touch", "mark", "check"])
async def test_a_row_is_not_saved_while_the_storage_is_away(autojump_clock: MockClock, kept: Kept, proof: str) -> None:
    """An operation has failed. One that succeeds ends that; where there is nothing to do, nothing is proved."""
    kept.storage.before["touch"] = away
    await trio.sleep(11)
    assert not kept.row.is_saved
    await kept.change(FIRST)
    assert not kept.row.is_saved
    if proof == "touch":
        del kept.storage.before["touch"]
        await trio.sleep(10)
    elif proof == "mark":
        kept.use()
    else:
        kept.row.check_soon()
    await wait_all_tasks_blocked()
    assert kept.row.is_saved


async def test_a_look_that_fails_is_no_warning(
    autojump_clock: MockClock, kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    """It is made once, and what has to be written is written all the same."""
    caplog.set_level(logging.DEBUG, "trio_vmcp.session")
    kept.storage.before["load"] = away
    kept.row.check_soon()
    await kept.change(SECOND)
    assert not kept.row.is_saved
    assert [(logging.DEBUG, True)] == [(each.levelno, "is away" in each.getMessage()) for each in caplog.records]
    await kept.change(FIRST)
    assert {"create": 1, "load": 1, "replace": 2} == kept.storage.calls


async def test_a_mark_puts_the_ttl_off(autojump_clock: MockClock, kept: Kept) -> None:
    """The next touch comes a third of a TTL later."""
    await trio.sleep(5)
    kept.use()
    await trio.sleep(12)
    assert {"create": 1, "replace": 1} == kept.storage.calls
    await trio.sleep(1)
    assert 1 == kept.storage.calls["touch"]


async def test_use_in_the_moment_in_which_a_mark_is_due_is_marked(autojump_clock: MockClock, kept: Kept) -> None:
    """The session was not used before."""
    await trio.sleep(TTL / 4)
    await wait_all_tasks_blocked()
    assert 0 == kept.storage.calls["replace"]
    kept.use()
    await wait_all_tasks_blocked()
    assert TTL / 4 == trio.current_time()
    assert {"create": 1, "replace": 1} == kept.storage.calls


@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_mark_takes_the_place_of_a_touch(autojump_clock: MockClock, kept: Kept, is_lost: bool) -> None:
    """Both are due, since the storage was slow. A row that vanished is touched at once, which creates it."""
    await trio.sleep(7)
    kept.storage.after["replace"] = partial(trio.sleep, 4)
    await kept.change(SECOND)
    await trio.sleep(3)
    kept.use()
    if is_lost:
        kept.lose()
    del kept.storage.after["replace"]
    await trio.sleep(2)
    assert (int(is_lost), 1 + is_lost) == (kept.storage.calls["touch"], kept.storage.calls["create"])
    (row,) = await kept.storage.rows()
    assert (SECOND[0], kept.row.metadata) == (row.backends, row)


@pytest.mark.parametrize("due", ["change", "mark"])
async def test_a_row_that_vanished_is_created_at_once(autojump_clock: MockClock, kept: Kept, due: str) -> None:
    """If a write does not find it. What is to be written follows."""
    await trio.sleep(8)
    now = trio.current_time()
    kept.lose()
    if due == "change":
        await kept.change(SECOND)
    else:
        kept.use()
    await wait_all_tasks_blocked()
    assert now == trio.current_time()
    (row,) = await kept.storage.rows()
    assert row == kept.row.metadata
    assert (2, kept.contents[0]) == (kept.storage.calls["create"], row.backends)
    assert kept.row.is_saved


async def test_a_storage_that_loses_all_rows_is_asked_now_and_then(autojump_clock: MockClock, kept: Kept) -> None:
    """Else a row would be created anew for ever."""

    async def lose() -> None:
        kept.lose()

    kept.storage.after["create"] = lose
    kept.lose()
    await kept.change(SECOND)
    await trio.sleep(15)
    assert kept.storage.calls.total() < 12


async def test_a_write_that_fails_is_repeated_in_time(autojump_clock: MockClock, kept: Kept) -> None:
    """Not at once, since the storage is away."""
    kept.storage.before["replace"] = away
    await kept.change(SECOND)
    del kept.storage.before["replace"]
    await trio.sleep(7)
    assert {"create": 1, "replace": 1} == kept.storage.calls
    await trio.sleep(4)
    assert kept.row.is_saved
    assert {"create": 1, "replace": 2, "touch": 1, "load": 1} == kept.storage.calls


async def test_a_session_that_is_terminated_elsewhere_is_kept_no_more(autojump_clock: MockClock, kept: Kept) -> None:
    """That is told once."""
    await kept.storage.inner.delete("one")
    await trio.sleep(3 * TTL)
    assert (1, True) == (kept.terminated, kept.has_ended)


async def test_attributes_are_not_set_after_the_end(autojump_clock: MockClock, kept: Kept) -> None:
    """Those that wait fail, too."""
    await kept.row.stop_keeping()
    with pytest.raises(SessionClosed):
        await kept.row.set_attributes({"a": "b"})
    assert 0 == kept.storage.calls["replace"]


async def test_the_end_waits_for_a_write(autojump_clock: MockClock, kept: Kept) -> None:
    """It is cancelled: of two writes at the same time one would be a conflict."""
    kept.storage.before["replace"] = partial(trio.sleep, 60)
    await kept.change(SECOND)
    assert not kept.has_ended
    await kept.row.stop_keeping()
    assert kept.has_ended
    assert 0 == trio.current_time()


@pytest.mark.parametrize("step", ["write_last", "discard", "discard_own"])
async def test_a_last_step_that_fails_is_logged(
    autojump_clock: MockClock, kept: Kept, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The session closes all the same, and the TTL ends the row."""
    await kept.row.stop_keeping()
    kept.storage.before["replace"] = kept.storage.before["delete"] = away
    if step == "write_last":
        await kept.row.write_last(lambda: SECOND)
    elif step == "discard":
        await kept.row.discard()
    else:
        assert await kept.row.discard_own(0, is_idle=True)
    assert ["the storage is away"] == [record.getMessage().partition(": ")[2] for record in caplog.records]


async def test_an_idle_session_takes_its_row_along(autojump_clock: MockClock, kept: Kept) -> None:
    """Also where another instance has written the row since, and has not used the session. Nothing more is asked."""
    await kept.row.stop_keeping()
    for changes in (False, True):
        if changes:
            kept.row = new_row("one", None, RowStorage(kept.storage, 5.0))
            kept.lose()
            await kept.row.write(FIRST, marks=True)
            await (await kept.other()).write(SECOND)
        calls = kept.storage.calls.copy()
        assert await kept.row.discard_own(0, is_idle=True)
        assert {"delete": 1 + changes, "load": int(changes)} == {"load": 0} | (kept.storage.calls - calls)
        assert [] == await kept.storage.rows()


async def test_a_session_that_is_gone_elsewhere_leaves_nothing_to_discard(
    autojump_clock: MockClock, kept: Kept
) -> None:
    """Another instance was the last to use it, and has terminated it since."""
    await kept.row.stop_keeping()
    await (await kept.other()).write(FIRST, marks=True)
    await kept.row.touch()
    assert kept.row.is_needed_elsewhere(0, is_idle=True)
    kept.lose()
    assert await kept.row.discard_own(0, is_idle=True)
    assert (0, False) == (kept.storage.calls["delete"], kept.row.may_be_left)


async def test_a_mark_over_that_of_another_instance_proves_use_only_with_a_later_one(
    autojump_clock: MockClock, kept: Kept
) -> None:
    """Which of the two was used last is not known."""
    await kept.row.stop_keeping()
    await (await kept.other()).write(FIRST, marks=True)
    await trio.sleep(5)
    await kept.row.write(FIRST, marks=True)
    assert kept.row.is_needed_elsewhere(5.0, is_idle=False)
    assert not kept.row.is_needed_elsewhere(5.1, is_idle=False)
    assert not kept.row.is_needed_elsewhere(5.0, is_idle=True)
