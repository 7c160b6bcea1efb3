"""The pages of one list of a backend: the entries in them, what they weigh, and what tells them from other pages.

A client of ours tells the digest of the bytes of a page. A list that comes in the pages of before is not looked at any
further. Of other lists the entries decide: each is hashed as JSON, however the entries are cut into pages.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Generator, Sequence
from types import NoneType
from typing import Any

import attrs
import trio

from trio_vmcp._known_results import Page
from trio_vmcp._protocol.json_cost import SLICE, memory_size
from trio_vmcp._protocol.json_slices import encode_in_steps
from trio_vmcp._protocol.methods import ListMethod
from trio_vmcp._steps import take_steps
from trio_vmcp.errors import BackendProtocolError
from trio_vmcp.models import JSON

__all__ = ["MOST_NAME_BYTES", "ListPages", "Weight", "digest_in_steps"]

logger = logging.getLogger("trio_vmcp.session")

# Names go into the session's row, which has one limit for all backends: 10 000 of 50 bytes are within this, and five
# backends at this limit, with every character escaped, are within that of the row.
MOST_NAME_BYTES = 512 * 1024
# Characters of a name, a URI or a template. A longer one is hashed as a key in 40 ms.
MOST_KEY_LENGTH = 512 * 1024
LONG_PAGE = 1024 * 1024  # bytes of a page
AT_ONCE = 64  # entries in one step, where each is encoded
LOOKED_AT_ONCE = 1024  # entries in one step, where each is only looked at


@attrs.frozen
class Weight:
    """What one list counts for under the limits of its backend: entries, bytes as JSON, bytes of names."""

    items: int = 0
    size: int = 0
    names: int = 0

    def __add__(self, more: Weight) -> Weight:
        return Weight(self.items + more.items, self.size + more.size, self.names + more.names)


@attrs.define(eq=False)
class ListPages:
    """The pages of one list, as they come.

    Attributes:
        known: The pages of before; empty: it must be looked at in any case.
        count: Takes what a page weighs; raises where that is too much.
        received: So far.
        entries: Those of `received` by their key; empty as long as all pages are as known.
        stale: The newest pages in a row that brought nothing new.
        hashed: The entries so far, if the digests of pages cannot tell this list from another.
    """

    backend_id: str
    method: ListMethod
    known: Sequence[Page]
    count: Callable[[ListMethod, Weight], None]
    received: list[Page] = attrs.field(factory=list, init=False)
    entries: dict[str, JSON] = attrs.field(factory=dict, init=False)
    stale: int = attrs.field(default=0, init=False)
    hashed: hashlib.blake2b | None = attrs.field(default=None, init=False)
    _begins_as_known: bool = attrs.field(default=True, init=False)
    _taken: int = attrs.field(default=0, init=False)  # of `received`, for `entries`

    @property
    def is_known(self) -> bool:
        """The pages of before, and no other."""
        return self._begins_as_known and 0 < len(self.received) == len(self.known)

    async def add(self, page: Page) -> None:
        """
        Raises:
            BackendProtocolError: It is no page of this list.
        """
        at = len(self.received)
        self.received.append(page)
        if not (self._begins_as_known and at < len(self.known) and page.digest == self.known[at].digest):
            await self.take_all()

    async def take_all(self) -> None:
        """Take the entries of all pages that are here. From now on the list counts as another."""
        self._begins_as_known = False
        while self._taken < len(self.received):
            page = self.received[self._taken]
            if page.digest is None:
                await self.hash_all()
            usable = await self._usable(page)
            self._taken += 1
            new = usable if not self.entries else {key: item for key, item in usable.items() if key not in self.entries}
            self.entries |= new
            self.stale = 0 if new else self.stale + 1

    async def hash_all(self) -> None:
        """Have the digest of the list made of its entries, whether or not its pages have digests."""
        if self.hashed is None:
            self.hashed = _new_hash()
            for _ in _hash_pages(self.hashed, self.received[: self._taken], self.method):
                await trio.lowlevel.checkpoint()

    async def _usable(self, page: Page) -> dict[str, JSON]:
        """The entries of a page by their key, without those that cannot be listed: one costs itself, not its list."""
        key, name, items = self.method.key, self.method.name, page.result.get(self.method.array)
        if not isinstance(items, list):
            raise BackendProtocolError(self.backend_id, f"answered {name!r} without an array {self.method.array!r}")
        size = page.size
        usable: dict[str, JSON] = {}
        bad: list[str] = []
        at_once = LOOKED_AT_ONCE if self.hashed is None else AT_ONCE
        for start in range(0, len(items) or 1, at_once):
            if start:
                await trio.lowlevel.checkpoint()
            some = items[start : start + at_once]
            is_usual = _are_usual(some, key)
            problems = [None if is_usual else _problem(item, key) for item in some]
            if self.hashed is not None:
                steps = hash_in_steps(some, problems, self.hashed, is_long=_is_long(page))
                hashed_size = await take_steps(steps) + (start == 0)
                size += hashed_size if page.digest is None else 0
            if any(problems):
                bad += [f"{start + at}: {problem}" for at, problem in enumerate(problems) if problem is not None]
                some = [item for item, problem in zip(some, problems, strict=True) if problem is None]
            for item in some:
                usable.setdefault(item[key], item)
        names = _name_bytes(usable) if key == "name" else 0
        self.count(self.method, Weight(len(items), size, names))
        if bad:
            more = f", and {len(bad) - 1} more" if bad[1:] else ""
            logger.warning("backend %r: %s: dropped entry %s%s", self.backend_id, name, bad[0], more)
        return usable


def _name_bytes(names: Collection[str]) -> int:
    """Bytes of all names together; over the limit in characters, which are not more, these."""
    length = sum(map(len, names))
    return length if length > MOST_NAME_BYTES else len("".join(names).encode())


def digest_in_steps(pages: Sequence[Page], method: ListMethod) -> Generator[None, None, bytes]:
    """The digest of the entries of pages that have digests of their own, with a step for some entries each."""
    hashed = _new_hash()
    yield from _hash_pages(hashed, pages, method)
    return hashed.digest()


def _hash_pages(hashed: hashlib.blake2b, pages: Sequence[Page], method: ListMethod) -> Generator[None, None, None]:
    for page in pages:
        items = page.result[method.array]
        for start in range(0, len(items), AT_ONCE):
            some = items[start : start + AT_ONCE]
            yield from hash_in_steps(some, [None] * len(some), hashed, is_long=_is_long(page))
            yield


def _is_long(page: Page) -> bool:
    """Its entries may be too long to be hashed in one step, some of them together or one alone."""
    return page.digest is None or page.size > LONG_PAGE


def hash_in_steps(
    some: list[Any], problems: list[str | None], hashed: hashlib.blake2b, *, is_long: bool
) -> Generator[None, None, int]:
    """Hash some entries as JSON; returns the bytes, a comma for each included. Not all entries at once: what the
    encoder holds meanwhile is many times the text.

    Args:
        problems: Of these entries, in their order; those of entries that are no text are added.
        is_long: As of their page. In steps only then: to look costs as much as to encode what is short.
    """
    text = None
    if not is_long or memory_size(some, SLICE) <= SLICE:
        text = _encoded(some)
    if text is not None:
        hashed.update(text[1:-1] + b",")
        return len(text) - 1  # without one bracket; the other stands for the last comma
    size = 0
    for at, item in enumerate(some):
        pieces: list[bytes] = []
        try:
            for piece in encode_in_steps(_encoder, item):
                if pieces:
                    yield
                pieces.append(piece.encode())
        except UnicodeEncodeError:  # a lone surrogate parses, but a list that holds one cannot be sent on as UTF-8
            problems[at] = problems[at] or "it holds half a surrogate pair, which is not text"
            continue
        for data in (*pieces, b","):
            hashed.update(data)
            size += len(data)
    return size


# check_circular=False: what was parsed from JSON has no circles.
_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False)


def _encoded(value: object) -> bytes | None:
    """As JSON. None: a lone surrogate parses, but a list that holds one cannot be sent on as UTF-8."""
    try:
        return _encoder.encode(value).encode()
    except UnicodeEncodeError:
        return None


def _new_hash() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


_TEXT_FIELDS = ("title", "description")
_TEXTS = frozenset({str, NoneType})
_OBJECTS = frozenset({dict, NoneType})


def _are_usual(items: list[Any], key: str) -> bool:
    """Whether all entries can be listed and nothing about them is odd. Nearly all lists are so, and to ask for each
    entry by itself takes four times as long.
    """
    if {*map(type, items)} != {dict}:
        return False
    names = [item.get(key) for item in items]
    return (
        {*map(type, names)} == {str}
        and all(names)
        and max(map(len, names)) <= MOST_KEY_LENGTH
        and {type(item.get("inputSchema")) for item in items} <= _OBJECTS
        and all({type(item.get(field)) for item in items} <= _TEXTS for field in _TEXT_FIELDS)
    )


def _problem(item: object, key: str) -> str | None:
    """Why an entry cannot be listed; None: it can."""
    if not isinstance(item, dict):
        return "it is not an object"
    name = item.get(key)
    if not isinstance(name, str) or not name:
        return f"its {key!r} is not a non-empty string"
    if len(name) > MOST_KEY_LENGTH:
        return f"its {key!r} is over {MOST_KEY_LENGTH} characters"
    if key == "name" and not isinstance(item.get("inputSchema"), dict | None):
        return "its 'inputSchema' is not an object"
    for field in _TEXT_FIELDS:
        text = item.get(field)
        if text is not None and not isinstance(text, str):
            return f"its {field!r} is not a string"
    return None
