"""Whether each operation of a storage works, or fails."""

from __future__ import annotations

from functools import partial

import attrs
import pytest
import trio
from support.stored import METADATA

from trio_vmcp import SessionNotFound, Storage, StorageError

NEXT = attrs.evolve(METADATA, version=METADATA.version + 1)


async def fails(storage: Storage, within: float, match: str) -> None:
    """Every operation is a StorageError, no later than that."""
    session_id = METADATA.session_id
    with trio.fail_after(within):
        for operate in (
            partial(storage.create, METADATA),
            partial(storage.load, session_id),
            partial(storage.replace, NEXT, expected_version=METADATA.version),
            partial(storage.touch, session_id),
            partial(storage.delete, session_id),
        ):
            with pytest.raises(StorageError, match=match) as caught:
                await operate()
            assert type(caught.value) is StorageError


async def works(storage: Storage, session_id: str) -> None:
    row = attrs.evolve(METADATA, session_id=session_id)
    await storage.create(row)
    assert row == await storage.load(session_id)
    await storage.touch(session_id)
    await storage.delete(session_id)
    with pytest.raises(SessionNotFound):
        await storage.load(session_id)
