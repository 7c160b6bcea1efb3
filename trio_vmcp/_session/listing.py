"""What one backend offers, as it was listed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from trio_vmcp._known_results import Page
from trio_vmcp._protocol.methods import KINDS, LISTS, ListMethod
from trio_vmcp._session.pages import Weight, digest_in_steps
from trio_vmcp.errors import BackendError
from trio_vmcp.models import JSON
from trio_vmcp.routing import Offer

__all__ = ["BY_KIND", "FIELDS", "Listing"]


@attrs.frozen
class Listing:
    """What one backend offers: MCP's JSON objects by their key (a name, a URI or a template), in the backend's
    order.

    Attributes:
        tools: Those that the user lets through, as the user describes them.
        renamed: The names that the user gives to tools, by their own names.
        failures: Why an optional list is not here, or is as last seen: by the name of the field.
        weights: By the name of the field.
        pages: By the name of the field, of the lists whose pages all have a digest.
        digests: By the name of the field; an empty list has none. Of the list as received, entries that were dropped
            included, however they are cut into pages. That of a list in `pages` is made when such a list is compared:
            mostly, the digests of its pages are enough.
    """

    tools: dict[str, JSON] = attrs.field(factory=dict)
    resources: dict[str, JSON] = attrs.field(factory=dict)
    resource_templates: dict[str, JSON] = attrs.field(factory=dict)
    prompts: dict[str, JSON] = attrs.field(factory=dict)
    renamed: Mapping[str, str] = attrs.field(factory=dict)
    failures: dict[str, BackendError] = attrs.field(factory=dict, repr=False, eq=False)
    weights: dict[str, Weight] = attrs.field(factory=dict, repr=False)
    pages: dict[str, tuple[Page, ...]] = attrs.field(factory=dict, repr=False, eq=False)
    digests: dict[str, bytes] = attrs.field(factory=dict, repr=False, eq=False)
    _offers: dict[str, Offer] = attrs.field(factory=dict, init=False, repr=False, eq=False)  # by backend id

    def differs(self, other: Listing | None, kind: str) -> bool:
        """Whether a kind of capability ("resources": their templates, too) is not what the other says of it.

        By digest: `==` would take true for 1 and one order for another, and reads all of both lists.
        """
        return other is None or any(self.differs_in(other, each) for each in BY_KIND[kind])

    def differs_in(self, other: Listing, method: ListMethod) -> bool:
        """Whether one list is not that of the other."""
        if self._has_pages_of(other, method):
            return False
        for listing in self.to_be_hashed(other, method):
            for _ in listing.digest_in_steps(method):
                pass
        mine, others = getattr(self, method.kept_as), getattr(other, method.kept_as)
        return bool(mine) != bool(others) or self.digests.get(method.kept_as) != other.digests.get(method.kept_as)

    def _has_pages_of(self, other: Listing, method: ListMethod) -> bool:
        """The same bytes were received for both."""
        pages, others = self.pages.get(method.kept_as), other.pages.get(method.kept_as)
        return pages is not None and others is not None and [p.digest for p in pages] == [p.digest for p in others]

    def to_be_hashed(self, other: Listing, method: ListMethod) -> list[Listing]:
        """Those of the two that `differs_in` needs the digest of, and that do not have it yet."""
        field = method.kept_as
        if self._has_pages_of(other, method) or not getattr(self, field) or not getattr(other, field):
            return []
        return [each for each in (self, other) if field in each.pages and field not in each.digests]

    def digest_in_steps(self, method: ListMethod) -> Iterator[None]:
        """Put the digest of one list into `digests`."""
        self.digests[method.kept_as] = yield from digest_in_steps(self.pages[method.kept_as], method)

    def has_list(self, method: ListMethod) -> bool:
        """The backend has such a list; empty or not, it said something of it."""
        return method.kept_as in self.pages or bool(getattr(self, method.kept_as))

    def public_ttl(self, method: ListMethod) -> float | None:
        """ms for which one list may be kept and shown to any principal, by what all of its pages say; None: it may not
        be shared.
        """
        results = [page.result for page in self.pages.get(method.kept_as, ())]
        ttls = [result.get("ttlMs") for result in results if result.get("cacheScope") == "public"]
        known = [ttl for ttl in ttls if isinstance(ttl, int | float) and not isinstance(ttl, bool) and ttl >= 0]
        return min(known) if known and len(known) == len(results) else None

    def offer(self, backend_id: str) -> Offer:
        """The names alone: what routing decides on. The same object each time."""
        offer = self._offers.get(backend_id)
        if offer is None:
            offer = self._offers[backend_id] = Offer(
                backend_id=backend_id,
                tools=tuple(self.tools),
                prompts=tuple(self.prompts),
                resources=tuple(self.resources),
                templates=tuple(self.resource_templates),
                renamed=self.renamed,
            )
        return offer


FIELDS = tuple(method.kept_as for method in LISTS)
BY_KIND: dict[str, tuple[ListMethod, ...]] = {
    kind: tuple(method for method in LISTS if method.kind == kind) for kind in KINDS
}
