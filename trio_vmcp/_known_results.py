"""Results that a caller knows already, so that an answer of equal bytes need not be parsed again.

A backend may announce changes of its lists without end. Each of them is fetched again, and mostly it is what it was.
The id of an answer is another one each time, so an answer is known by the digest of all that stands around its id.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator
from typing import ClassVar, Protocol, TypeGuard

import attrs

from trio_vmcp._protocol.reading import find_reply_id
from trio_vmcp.connector import BackendClient, OnProgress
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord
from trio_vmcp.models import JSON

__all__ = ["KnownResults", "RecallingClient", "Results", "can_recall"]

SLICE = 1024 * 1024  # characters; a digest takes 1 ms for one, and the search for surrogates 3 ms at most


class Results(Protocol):
    """Results by the digest of the answers that they came in; such as a dict."""

    def get(self, digest: bytes, /) -> JSON | None: ...


@attrs.define(eq=False)
class KnownResults:
    """Travels with one request, to where its answer is read.

    Attributes:
        results: By digest. What is found here is the result itself: the caller must not change it.
        digest: Of the answer; None: the id does not stand at one of its ends, or it holds escapes of surrogates, which
            may be no text.
        size: Of the answer without its id, in bytes.
    """

    results: Results = attrs.field(repr=False)
    digest: bytes | None = attrs.field(default=None, init=False)
    size: int = attrs.field(default=0, init=False)

    def recall(self, text: str, request_id: int) -> Generator[None, None, JSON | None]:
        """The result in an answer to this request, with a step for each further slice; None: it is not known, or
        `text` is no such answer.
        """
        found = find_reply_id(text, request_id)
        if found is None:
            return None
        if len(text) <= SLICE:  # most of them
            # A search for one character takes a tenth of the time of one for two.
            if "\\" in text and "\\u" in text and _ESCAPED_SURROGATE.search(text):
                return None
            before, after = text[: found[0]].encode(), text[found[1] :].encode()
            hashed = hashlib.sha256(before)
            hashed.update(after)
            self.digest, self.size = hashed.digest(), len(before) + len(after)
            return self.results.get(self.digest)
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
        self.digest, self.size = hashed.digest(), size
        return self.results.get(self.digest)


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
