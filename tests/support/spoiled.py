"""Rows that a release cannot read, in each storage that can hold them."""

from __future__ import annotations

import json
from collections.abc import Callable

import attrs
import pytest
from support.sqlite_storage import SqliteStorage

from trio_vmcp import LocalStorage, Storage
from trio_vmcp.storage.local import _Row

__all__ = ["EVERY_SPOILED", "Spoil", "spoil"]

Spoil = Callable[[bytes], bytes]


def _with(**fields: object) -> Spoil:
    return lambda data: json.dumps({**json.loads(data), **fields}).encode()


EVERY_SPOILED = pytest.mark.parametrize(
    "spoiled",
    [
        lambda data: data[:-1],
        lambda data: b"\xff",
        lambda data: b"",
        lambda data: b"[]",
        _with(schema_version=2),
        _with(schema_version="1"),
        _with(backends=None),
        _with(of_a_later_release=1),
    ],
    ids=["cut off", "no UTF-8", "empty", "no object", "later schema", "no schema", "bad field", "unknown field"],
)


def spoil(storage: Storage, session_id: str, spoiled: Spoil) -> None:
    """Change the bytes of a row, behind the back of the storage."""
    match storage:
        case LocalStorage():
            row = storage._entries[session_id]
            assert isinstance(row, _Row)
            storage._entries[session_id] = attrs.evolve(row, data=spoiled(row.data))
        case SqliteStorage():
            (data,) = storage._database.execute("SELECT data FROM rows WHERE id = ?", (session_id,)).fetchone()
            storage._database.execute("UPDATE rows SET data = ? WHERE id = ?", (spoiled(data), session_id))
        case _:
            raise TypeError(type(storage))
