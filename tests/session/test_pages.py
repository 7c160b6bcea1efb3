"""The entries of a page are hashed alike, however long they are and in however many steps."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from trio_vmcp._protocol.json_cost import SLICE
from trio_vmcp._session.pages import hash_in_steps

LONG = [{"name": "long", "inputSchema": {"x": ["x" * 90] * (SLICE // 20)}}, {"name": "é"}]
ENTRIES: dict[str, list[Any]] = {
    "short": [{"name": "x"}, {"name": "y"}],
    "long": LONG,
    "no text": [{"name": "\ud800"}, *LONG],
}


def hashed(some: list[Any], *, is_long: bool) -> tuple[str, int, list[str | None], int]:
    """The digest, the bytes, the problems, and the steps."""
    digest, steps = hashlib.blake2b(digest_size=16), 0
    problems: list[str | None] = [None] * len(some)
    hashing = hash_in_steps(some, problems, digest, is_long=is_long)
    while True:
        try:
            next(hashing)
        except StopIteration as end:
            return digest.hexdigest(), end.value, problems, steps
        steps += 1


@pytest.mark.parametrize("some", ENTRIES.values(), ids=list(ENTRIES))
def test_a_long_page_is_hashed_as_a_short_one(some: list[Any]) -> None:
    """Entries that are no text cost themselves."""
    assert hashed(some, is_long=False)[:3] == hashed(some, is_long=True)[:3]
    assert [each["name"] == "\ud800" for each in some] == [bool(p) for p in hashed(some, is_long=True)[2]]


def test_a_long_entry_is_hashed_in_steps() -> None:
    """One for each slice of its text."""
    assert hashed(LONG, is_long=True)[3] >= 4
    assert 0 == hashed(ENTRIES["short"], is_long=True)[3]
