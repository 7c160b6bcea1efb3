"""The simulation of several instances over one storage, and the proof that each of its checks can fail."""

from __future__ import annotations

import logging

import pytest
from simulation.instances import run_instances

from trio_vmcp import SessionMetadata, StorageError
from trio_vmcp._session import row as row_module
from trio_vmcp._session.row import RowContents, SessionRow
from trio_vmcp._session.row_storage import RowStorage

SEEDS = range(150)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def violations() -> str:
    """Those of the first run that breaks a promise."""
    return next(("; ".join(found) for seed in SEEDS if (found := run_instances(seed))), "")


@pytest.mark.parametrize("first", range(0, len(SEEDS), 50))
def test_several_instances_keep_their_promises(first: int) -> None:
    """No terminated session comes back, none is ended by an instance that it left, no write undoes another's."""
    for seed in range(first, first + 50):
        assert [] == run_instances(seed), f"seed {seed}"


def test_a_delete_without_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    async def delete(self: RowStorage, session_id: str, *, expected_version: int) -> None:
        try:
            await self._storage.delete(session_id)
        except Exception as error:
            raise StorageError("away") from error

    monkeypatch.setattr(RowStorage, "delete", delete)
    assert "which it left" in violations()


def test_a_missing_row_that_is_always_created_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async def create(self: RowStorage, row: SessionMetadata, *, within: float) -> None:
        await self._storage.create(row)

    monkeypatch.setattr(SessionRow, "_is_out_of_touch", property(lambda self: False))
    monkeypatch.setattr(RowStorage, "create", create)
    assert "comes back" in violations()


def test_a_writer_that_reads_the_version_and_not_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def join(ours: RowContents, base: RowContents, theirs: RowContents) -> RowContents:
        return ours

    monkeypatch.setattr(row_module, "_join", join)
    assert "undoes" in violations()
