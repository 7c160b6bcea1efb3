"""The simulation of several instances over one storage, and the proof that each of its checks can fail."""

from __future__ import annotations

import logging
from functools import partial

import attrs
import pytest
from simulation.instances import run_instances

from trio_vmcp import SessionMetadata
from trio_vmcp._session import row as row_module
from trio_vmcp._session.row import Held, RowContents, SessionRow
from trio_vmcp._session.row_storage import RowStorage

SEEDS = range(150)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def is_noticed(text: str, *, likely: int) -> bool:
    """Whether a run breaks the promise that has this text. The search begins at the likely seed."""
    seeds = (likely, *SEEDS)
    return any(text in violation for seed in seeds for violation in run_instances(seed))


@pytest.mark.parametrize("first", range(0, len(SEEDS), 25))
def test_several_instances_keep_their_promises(first: int) -> None:
    """No terminated session comes back, none is ended by an instance that it left, no write undoes another's; and a
    copy knows what the others have written.
    """
    for seed in range(first, first + 25):
        assert [] == run_instances(seed), f"seed {seed}"


def test_a_touch_without_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    async def touch(self: RowStorage, session_id: str, *, expected_version: int) -> None:
        await self._do("touch", partial(self._storage.touch, session_id))

    monkeypatch.setattr(RowStorage, "touch", touch)
    assert is_noticed("does not know what the row says", likely=17)


def test_a_replace_without_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    async def replace(self: RowStorage, row: SessionMetadata, *, expected_version: int) -> None:
        stored = await self.load(row.session_id)
        row = attrs.evolve(row, version=stored.version + 1)
        await self._do("update", partial(self._storage.replace, row, expected_version=stored.version))

    monkeypatch.setattr(RowStorage, "replace", replace)
    assert is_noticed("undoes", likely=4)


def test_a_delete_without_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    async def delete(self: RowStorage, session_id: str, *, expected_version: int) -> None:
        await self._do("delete", partial(self._storage.delete, session_id))

    monkeypatch.setattr(RowStorage, "delete", delete)
    assert is_noticed("which it left", likely=17)


def test_any_row_is_taken_for_ours_after_an_unknown_create(monkeypatch: pytest.MonkeyPatch) -> None:
    read = SessionRow._read

    async def mistake(self: SessionRow) -> bool:
        if self._held.version is None:
            self.metadata = await self._storage.load(self.metadata.session_id)
            self._held = Held(sent=self.metadata)
            self.marks.add_first(self.metadata.used_at)
        return await read(self)

    monkeypatch.setattr(SessionRow, "_read", mistake)
    assert is_noticed("which it left", likely=2)


def test_a_missing_row_that_is_always_created_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async def create(self: RowStorage, row: SessionMetadata, *, within: float) -> None:
        await self._storage.create(row)

    monkeypatch.setattr(SessionRow, "_is_out_of_touch", property(lambda self: False))
    monkeypatch.setattr(RowStorage, "create", create)
    assert is_noticed("comes back", likely=30)


def test_a_writer_that_reads_the_version_and_not_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def join(ours: RowContents, base: RowContents, theirs: RowContents) -> RowContents:
        return ours

    monkeypatch.setattr(row_module, "_join", join)
    assert is_noticed("undoes", likely=11)


def test_an_idle_instance_that_does_not_ask_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SessionRow, "is_needed_elsewhere", lambda self, used_at, *, is_idle: False)
    assert is_noticed("which it left", likely=2)
