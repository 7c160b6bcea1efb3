"""What the sessions of one factory hold once: the lists of backends that are byte for byte the same, and what follows
from them.

Nothing is held for its own sake: an entry goes with the last session that has it. What differs for two principals
differs in bytes, so no session sees more than its backend told it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import attrs

from trio_vmcp._known_results import SharedPages
from trio_vmcp._protocol.methods import Kind
from trio_vmcp._routing.names import KnownClaims
from trio_vmcp._routing.table import Segment
from trio_vmcp._session.listing import FIELDS, Listing
from trio_vmcp.models import JSON, Backend
from trio_vmcp.routing import Offer, Router

__all__ = ["CommonKey", "FirstNames", "Part", "Scope", "SharedLists", "may_be_shared", "scope_of"]

# The same bytes mean the same listing only under the same filters and overrides, and read in the same era.
Scope: TypeAlias = tuple[object, ...]
# What all backends of a session list, in configured order: their ids, and the identities of the listings.
CommonKey: TypeAlias = tuple[tuple[str, int], ...]


@attrs.frozen(eq=False)
class Part:
    """The entries of one kind that stand at one backend's place, and what they were made from."""

    segment: Segment
    definitions: Mapping[str, JSON]
    entries: tuple[Any, ...]


@attrs.frozen(eq=False)
class FirstNames:
    """What the directory of a new session says once its backends are listed. Not changed any more: a session whose
    backends list something else goes on with a copy. What is put together when it is read is put together once.

    Attributes:
        listings, offers, parts, read: As in `Directory`.
    """

    router: Router
    listings: dict[str, Listing]
    offers: dict[str, Offer]
    parts: dict[tuple[Kind, str], Part]
    read: dict[str, tuple[Any, ...]]


@attrs.define(eq=False)
class SharedLists:
    """Of one factory.

    Attributes:
        first_names: By the identities of the listings, which they hold.
        claims: What the names of a backend are composed to.
        pages: Those of all listings, and those that are being parsed.
        parts: Entries as callers read them: by the identity of what they were made from, which they hold.
    """

    first_names: WeakValueDictionary[CommonKey, FirstNames] = attrs.field(factory=WeakValueDictionary, init=False)
    claims: KnownClaims = attrs.field(factory=WeakValueDictionary, init=False)
    pages: SharedPages = attrs.field(factory=SharedPages, init=False)
    parts: WeakValueDictionary[tuple[str, int, int], Part] = attrs.field(factory=WeakValueDictionary, init=False)
    _listings: WeakValueDictionary[tuple[Scope, str, bytes], Listing] = attrs.field(
        factory=WeakValueDictionary, init=False
    )  # by the field and the digest of the first page of each of its lists

    def find(self, scope: Scope, field: str, digest: bytes) -> Listing | None:
        """A listing in which the list of this field begins with the page of this digest."""
        return self._listings.get((scope, field, digest))

    def settle(self, scope: Scope, listing: Listing) -> Listing:
        """The listing that is held already and is byte for byte the same, or this one, which is held from now on."""
        if not may_be_shared(listing):
            return listing
        keys = [
            (scope, field, pages[0].digest)
            for field, pages in listing.pages.items()
            if pages and pages[0].digest is not None
        ]
        for key in keys:
            held = self._listings.get(key)
            if held is not None and _is_equal(held, listing):
                return held
        for key in keys:
            self._listings[key] = listing
        return listing


def may_be_shared(listing: Listing) -> bool:
    """Whether other sessions may get this very listing: some of it came in pages that have digests."""
    return bool(listing.pages) and not listing.failures


def scope_of(backend: Backend, era: str) -> Scope:
    return era, backend.allow_tools, backend.deny_tools, repr(backend.overrides) if backend.overrides else ""


def _is_equal(held: Listing, listing: Listing) -> bool:
    """Whether both hold the same objects, or came in the same bytes, or nothing came, field by field."""
    return all(
        getattr(held, field) is getattr(listing, field)
        or (field in held.pages and _digests(held, field) == _digests(listing, field))
        or not (getattr(held, field) or getattr(listing, field))
        for field in FIELDS
    )


def _digests(listing: Listing, field: str) -> list[bytes | None] | None:
    pages = listing.pages.get(field)
    return None if pages is None else [page.digest for page in pages]
