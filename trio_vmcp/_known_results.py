"""Pages of lists that are known already, so that an answer of equal bytes need not be parsed again.

A backend may announce changes of its lists without end. Each of them is fetched again, and mostly it is what it was.
Many sessions that open at the same time receive the same lists at the same time: one of them parses a page, and the
others wait for it. The id of an answer is another one each time, so an answer is known by the digest of all that stands
around its id.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator
from typing import ClassVar, Protocol, TypeAlias, TypeGuard
from weakref import WeakValueDictionary

import attrs
import trio

from trio_vmcp._protocol.reading import find_reply_id
from trio_vmcp.connector import BackendClient, OnProgress
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord
from trio_vmcp.models import JSON

__all__ = [
    "SLICE",
    "KnownResults",
    "Page",
    "Pages",
    "RecallingClient",
    "SharedPages",
    "answer_digest",
    "answer_digest_in_steps",
    "can_recall",
]

SLICE = 1024 * 1024  # characters; a digest takes 1 ms for one, and the search for surrogates 3 ms at most

_PageKey: TypeAlias = tuple[str, bytes]  # the era and the digest


@attrs.frozen(eq=False)
class Page:
    """One page of a list, as its client gave it.

    Attributes:
        digest: Of the bytes that were received; None: the client does not tell, or something in them may be no text.
        size: Of these bytes; 0 without a digest.
    """

    result: JSON = attrs.field(repr=False)
    digest: bytes | None = None
    size: int = 0


class Pages(Protocol):
    """Pages by their digest; such as a dict."""

    def get(self, digest: bytes, /) -> Page | None: ...


@attrs.define(eq=False)
class SharedPages:
    """The pages that lists of this process hold, and those that are being parsed."""

    _pages: WeakValueDictionary[_PageKey, Page] = attrs.field(factory=WeakValueDictionary, init=False)
    # Where the tasks wait that received the same page; one task parses it.
    _being_parsed: dict[_PageKey, trio.lowlevel.ParkingLot] = attrs.field(factory=dict, init=False)

    async def find(self, key: _PageKey) -> Page | None:
        """A page; None: there is none, and the caller parses it and must `end` that, whatever comes of it. Where
        another task parses it now, this waits: a parse waits for nothing.
        """
        while True:
            page = self._pages.get(key)
            if page is not None:
                return page
            waiting = self._being_parsed.get(key)
            if waiting is None:
                self._being_parsed[key] = trio.lowlevel.ParkingLot()
                return None
            await waiting.park()
            if self._being_parsed.get(key) is waiting:
                return None  # this task's turn

    def end(self, key: _PageKey, page: Page | None) -> None:
        """The page was parsed; None: that failed, or was cancelled, and the next task that waits parses it. If all of
        them woke up at each failure, n tasks would wake up n² / 2 times.
        """
        waiting = self._being_parsed[key]
        if page is None and waiting:
            waiting.unpark()
            return
        del self._being_parsed[key]
        if page is not None:
            self._pages[key] = page
            waiting.unpark_all()


@attrs.define(eq=False)
class KnownResults:
    """Travels with one request, to where its answer is read.

    Attributes:
        pages: The caller's own. What is found here, or among the shared ones, holds the result itself: the caller must
            not change it.
        shared: Those of all sessions of a factory.
        era: Of the backend: pages are shared within one.
        page: The answer, once it was read; None: its id does not stand at one of its ends, or it holds escapes of
            surrogates, which may be no text.
    """

    pages: Pages = attrs.field(repr=False)
    shared: SharedPages = attrs.field(factory=SharedPages, repr=False)
    era: str = ""
    page: Page | None = attrs.field(default=None, init=False, repr=False)

    async def find(self, digest: bytes) -> Page | None:
        """As `SharedPages.find`."""
        self.page = self.pages.get(digest) or await self.shared.find((self.era, digest))
        return self.page

    def end(self, digest: bytes, page: Page | None) -> None:
        """As `SharedPages.end`."""
        self.page = page
        self.shared.end((self.era, digest), page)


Digest: TypeAlias = tuple[bytes, int]  # and the size of what it is of, in bytes


def answer_digest(text: str, request_id: int) -> Digest | None:
    """The digest of an answer to this request without its id; None: `text` is no such answer, or it has no digest. One
    of more than `SLICE` characters takes several steps: `answer_digest_in_steps`.
    """
    found = find_reply_id(text, request_id)
    # A search for one character takes a tenth of the time of one for two.
    if found is None or ("\\" in text and "\\u" in text and _ESCAPED_SURROGATE.search(text)):
        return None
    before, after = text[: found[0]].encode(), text[found[1] :].encode()
    hashed = hashlib.sha256(before)
    hashed.update(after)
    return hashed.digest(), len(before) + len(after)


def answer_digest_in_steps(text: str, request_id: int) -> Generator[None, None, Digest | None]:
    """`answer_digest` with a step for each further slice."""
    found = find_reply_id(text, request_id)
    if found is None:
        return None
    hashed, size = hashlib.sha256(), 0
    for first, last in ((0, found[0]), (found[1], len(text))):
        for start in range(first, last, SLICE):
            stop = min(start + SLICE, last)
            if text.find("\\", start, stop) >= 0 and _ESCAPED_SURROGATE.search(text, start, stop + _REST):
                return None
            data = text[start:stop].encode()
            hashed.update(data)
            size += len(data)
            if stop < last:
                yield
    return hashed.digest(), size


_REST = 3  # characters of such an escape that may stand in the next slice
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class RecallingClient(Protocol):
    """A `BackendClient` that takes `KnownResults`."""

    recalls: ClassVar[bool]

    @property
    def record(self) -> BackendRecord: ...

    async def request(
        self,
        method: str,
        params: JSON,
        *,
        identity: Identity | None,
        timeout: float,
        on_progress: OnProgress | None,
        known: KnownResults | None = None,
    ) -> JSON: ...


def can_recall(client: BackendClient | RecallingClient) -> TypeGuard[RecallingClient]:
    """Whether a client is one of ours. One that wraps a client of ours may change its results, and one that it changed
    must not be given to it once more.
    """
    return getattr(type(client), "recalls", False)  # of the type: the instance may pass on what it has not itself
