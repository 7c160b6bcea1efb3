"""The directory of one session: which names its backends offer, which backend has each, and what is bound for good.

Kept per backend: a backend that lists the same as before costs nothing, and one that lists something else costs its own
part. What callers read (`tools`, `table`, …) is put together when it is read and something has changed.

A change of very much is worked out beside what callers read, in steps (`update_in_steps`), and takes its place in the
last one: callers read what was before or what is after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from typing import Any, Literal

import attrs

from trio_vmcp._protocol.methods import KINDS, LISTS, Kind
from trio_vmcp._routing.name_rule import name_rule
from trio_vmcp._routing.table import Segment
from trio_vmcp._session.foreign_names import ForeignNames
from trio_vmcp._session.listing import FIELDS, Listing
from trio_vmcp._session.pages import MOST_NAME_BYTES
from trio_vmcp._session.shared_lists import CommonKey, FirstNames, Part, SharedLists, may_be_shared
from trio_vmcp.errors import CapabilityNotFound, MessageTooLarge, ResourceNotFound
from trio_vmcp.models import JSON, Backend, NameConflict, Prompt, Resource, ResourceTemplate, Tool
from trio_vmcp.routing import Bindings, Offer, Router, RoutingTable, Target
from trio_vmcp.settings import FactorySettings

__all__ = ["MOST_AT_ONCE", "MOST_BOUND_BYTES", "MOST_REMOVED", "Directory", "new_directory"]

# Of one backend: names stay bound, and are in the row, even when their backend no longer lists them. Twice what one
# listing may have, prefixes included.
MOST_BOUND_BYTES = 2 * MOST_NAME_BYTES

# Names or entries of a change that is made in one step; one that is contested takes 10 us.
MOST_AT_ONCE = 1000

MOST_REMOVED = 100  # backends that were removed, and whose names stay bound to them

_NOTHING = Listing()  # what a backend offers that was not listed yet


@attrs.define(eq=False)
class Directory:
    """What the backends of one session offer under which names."""

    _router: Router
    _shared: SharedLists = attrs.field(factory=SharedLists)
    _foreign: ForeignNames = attrs.field(factory=ForeignNames)
    _listings: dict[str, Listing] = attrs.field(factory=dict, init=False)  # by backend id, in configured order
    _offers: dict[str, Offer] = attrs.field(factory=dict, init=False)
    _parts: dict[tuple[Kind, str], Part] = attrs.field(factory=dict, init=False)
    _read: dict[str, tuple[Any, ...]] = attrs.field(factory=dict, init=False)  # put together since the latest change
    # Ids without a backend that had names bound to them, or may have: the latest removed is the last.
    _removed: dict[str, None] = attrs.field(init=False)
    # Other sessions may have all of this, too, so it is copied before a change; None: it is this session's alone.
    _common: FirstNames | None = attrs.field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        bindings = self._router.bindings  # of a session that is restored: some of the owners may have been removed
        self._removed = dict.fromkeys((*bindings.tools.values(), *bindings.prompts.values()))

    def is_long(self, listings: Mapping[str, Listing | None]) -> bool:
        """Whether an `update` with these listings takes too long for one step."""
        if not self._is_news(listings) or self._find_common(listings) is not None:
            return False
        pairs = [
            (getattr(listing or _NOTHING, field), getattr(self._listings.get(backend_id, _NOTHING), field))
            for backend_id, listing in listings.items()
            for field in FIELDS
        ]
        entries = sum(len(part) for part, before in pairs if part is not before)
        offers = self._offers_of(listings)
        return (
            entries + self._foreign.count > MOST_AT_ONCE
            or self._router.count_changes(list(offers.values())) > MOST_AT_ONCE
        )

    def update(self, listings: Mapping[str, Listing | None]) -> None:
        """Take over what all backends list now, in one step.

        Args:
            listings: By backend id, in configured order; None: not listed yet. A listing that is the same object as
                before has not changed.
        """
        if self._is_news(listings) and not self._adopt_common(listings):
            for _ in self._take_over(listings):
                pass

    def update_in_steps(self, listings: Mapping[str, Listing | None]) -> Iterator[None]:
        """`update` where it `is_long`, with a step for some names or entries each. There must be no other update
        meanwhile.
        """
        twin = copy(self)
        yield from twin._copy_in_steps()
        yield from twin._take_over(listings)
        yield from twin._read_in_steps()
        for field in attrs.fields(Directory):
            setattr(self, field.name, getattr(twin, field.name))

    def _is_news(self, listings: Mapping[str, Listing | None]) -> bool:
        is_same = all(
            self._listings[known] is (listings[known] or _NOTHING) for known in self._listings & listings.keys()
        )
        return not is_same or list(self._listings) != list(listings)

    def _offers_of(self, listings: Mapping[str, Listing | None]) -> dict[str, Offer]:
        """Those of before where a listing has not changed."""
        return {
            backend_id: self._offers[backend_id]
            if self._listings.get(backend_id) is (listing or _NOTHING)
            else Offer(backend_id)
            if listing is None  # `offer` would keep one for each backend that was ever added
            else listing.offer(backend_id)
            for backend_id, listing in listings.items()
        }

    def _take_over(self, listings: Mapping[str, Listing | None]) -> Iterator[None]:
        """What is read before the last step belongs to no state."""
        key = self._common_key(listings)
        if self._common is not None:
            yield from self._copy_in_steps()
        offers = self._offers_of(listings)
        if self._foreign.count:
            foreign = self._foreign.take()
            yield from self._router.adopt_in_steps(foreign)
            self._removed = self._removed | dict.fromkeys((*foreign.tools.values(), *foreign.prompts.values()))
        # Names stay bound to no more than `MOST_REMOVED` backends that were removed.
        gone = [
            backend_id for backend_id in dict.fromkeys((*self._removed, *self._listings)) if backend_id not in offers
        ]
        yield from self._router.update_in_steps(list(offers.values()), released=gone[:-MOST_REMOVED])
        for backend_id in self._listings.keys() - offers.keys():
            for kind in KINDS:
                self._parts.pop((kind, backend_id), None)
        self._removed = dict.fromkeys(gone[-MOST_REMOVED:])
        self._listings = {backend_id: listing or _NOTHING for backend_id, listing in listings.items()}
        self._offers = offers
        self._read.clear()
        if key is not None:
            self._share(key)

    def check_names(self, backend_id: str, known: Listing | None, listing: Listing) -> None:
        """
        Raises:
            MessageTooLarge: Names stay bound for the session's life, and this backend has had too many by now.
        """
        known = known or _NOTHING
        new = (listing.tools.keys() - known.tools.keys()) | (listing.prompts.keys() - known.prompts.keys())
        if new and self._router.bound_bytes(backend_id) + sum(len(name.encode()) for name in new) > MOST_BOUND_BYTES:
            raise MessageTooLarge(
                backend_id,
                f"lists ever new names: over {MOST_BOUND_BYTES} bytes of them in the life of this session",
            )

    # --- what sessions with the same lists hold once

    def _common_key(self, listings: Mapping[str, Listing | None]) -> CommonKey | None:
        """None: no other session has the same, since this one has had other lists or names, or a listing is its own."""
        if self._listings or self._removed or self._foreign.count:
            return None
        known = {backend_id: listing or _NOTHING for backend_id, listing in listings.items()}
        if not all(listing is _NOTHING or may_be_shared(listing) for listing in known.values()):
            return None
        return tuple([(backend_id, id(listing)) for backend_id, listing in known.items()])

    def _find_common(self, listings: Mapping[str, Listing | None]) -> FirstNames | None:
        key = self._common_key(listings)
        return None if key is None else self._shared.first_names.get(key)

    def _adopt_common(self, listings: Mapping[str, Listing | None]) -> bool:
        """Whether another session began with the same lists: then this one has what followed from them."""
        common = self._find_common(listings)
        if common is None:
            return False
        self._common, self._router, self._listings = common, common.router, common.listings
        self._offers, self._parts, self._read = common.offers, common.parts, common.read
        return True

    def _share(self, key: CommonKey) -> None:
        self._common = FirstNames(self._router, self._listings, self._offers, self._parts, self._read)
        self._shared.first_names[key] = self._common

    def _copy_in_steps(self) -> Iterator[None]:
        """From here on, what this directory changes is its own."""
        self._common, self._parts, self._read = None, dict(self._parts), {}
        self._router = yield from self._router.copy_in_steps()

    # --- what callers read

    @property
    def tools(self) -> tuple[Tool, ...]:
        return self._entries("tools")

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return self._entries("prompts")

    @property
    def resources(self) -> tuple[Resource, ...]:
        return self._entries("resources")

    @property
    def resource_templates(self) -> tuple[ResourceTemplate, ...]:
        """Those of the table, and those that cannot be matched: what is listed stays listed."""
        if _TEMPLATES not in self._read:
            for _ in self._put_templates_together():
                pass
        return self._read[_TEMPLATES]

    @property
    def table(self) -> RoutingTable:
        return self._router.table

    @property
    def conflicts(self) -> tuple[NameConflict, ...]:
        return self._router.conflicts

    @property
    def bindings(self) -> Bindings:
        return self._router.bindings

    # --- where a call goes

    def find(self, kind: Literal["tools", "prompts"], name: str) -> Target | None:
        """None: no backend has the name, or its owner does not list it."""
        return self._router.find(kind, name)

    def owner_of(self, kind: Literal["tools", "prompts"], name: str) -> str | None:
        """The backend that a name is bound to, also while that backend does not list it."""
        return self._router.owner_of(kind, name)

    def own_names(self, backend: Backend, name: str) -> tuple[str, ...] | None:
        """As `Router.own_names`."""
        return self._router.own_names(backend.id, name, backend.renamed_tools)

    def public_ttl(self, method: str) -> float | None:
        """See `Session.public_ttl`."""
        wanted = next(each for each in LISTS if each.name == method)
        ttls = [listing.public_ttl(wanted) for listing in self._listings.values() if listing.has_list(wanted)]
        known = [ttl for ttl in ttls if ttl is not None]
        return min(known) if known and len(known) == len(ttls) else None

    def has_listing_of(self, backend_id: str) -> bool:
        """Whether it is known what this backend offers."""
        return self._listings.get(backend_id, _NOTHING) is not _NOTHING

    def not_found(
        self, kind: Literal["tools", "prompts"], name: str, error: type[CapabilityNotFound]
    ) -> CapabilityNotFound:
        return error(name, self._router.closest(kind, name))

    def find_resource(self, uri: str) -> Target:
        """
        Raises:
            ResourceNotFound: No backend lists it, and no template matches it.
        """
        target = self.find_owner(uri)
        if target is None:
            raise ResourceNotFound(uri, self._router.closest("resources", uri))
        return target

    def find_owner(self, uri: str) -> Target | None:
        """As `find_resource`; None: it is not found."""
        return self._router.find_resource(uri)

    def offers(self, backend_id: str, uri: str) -> bool:
        """Whether a backend lists a resource or has a template that matches, whichever backend owns the URI."""
        listing = self._listings.get(backend_id, _NOTHING)
        return uri in listing.resources or self._router.has_template_for(backend_id, uri)

    def lists_resource(self, uri: str) -> bool:
        """Whether a backend lists this very URI."""
        return self._router.lists_resource(uri)

    def find_template(self, uri: str) -> Target | None:
        return next((target for target in self._router.templates if target.name == uri), None)

    # --- putting parts together

    def _read_in_steps(self) -> Iterator[None]:
        """Put together all that callers may read."""
        for kind in KINDS:
            yield from self._put_together(kind)
        yield from self._put_templates_together()
        yield from self._router.read_in_steps()

    def _entries(self, kind: Kind) -> tuple[Any, ...]:
        if kind not in self._read:
            for _ in self._put_together(kind):
                pass
        return self._read[kind]

    def _put_together(self, kind: Kind) -> Iterator[None]:
        entries: list[Any] = []
        for segment in self._router.segments(kind):
            yield
            entries.extend(self._entries_at(kind, segment))
        self._read[kind] = tuple(entries)

    def _entries_at(self, kind: Kind, segment: Segment) -> tuple[Any, ...]:
        """The entries at one backend's place: those of before, unless its names or its definitions have changed, or
        other definitions are among them.
        """
        part = self._parts.get((kind, segment.backend_id))
        definitions: Mapping[str, JSON] = getattr(self._listings[segment.backend_id], kind)
        if part is None or part.segment is not segment or part.definitions is not definitions or segment.elsewhere:
            key = (kind, id(segment), id(definitions))  # the part holds both
            part = self._shared.parts.get(key) or self._new_part(kind, segment, definitions)
            self._parts[kind, segment.backend_id] = part
        return part.entries

    def _new_part(self, kind: Kind, segment: Segment, definitions: Mapping[str, JSON]) -> Part:
        make, here, elsewhere = _MAKERS[kind], segment.backend_id, segment.elsewhere
        if not elsewhere:
            entries = tuple([make(name, here, own, definitions[own]) for name, own in segment.own.items()])
            part = self._shared.parts[kind, id(segment), id(definitions)] = Part(segment, definitions, entries)
            return part
        # The definitions of other backends are among them.
        of = {backend_id: getattr(self._listings[backend_id], kind) for backend_id in (here, *elsewhere.values())}
        owned = [(name, elsewhere.get(name, here), own) for name, own in segment.own.items()]
        return Part(segment, definitions, tuple([make(name, to, own, of[to][own]) for name, to, own in owned]))

    def _put_templates_together(self) -> Iterator[None]:
        found: dict[str, ResourceTemplate] = {}
        for backend_id, listing in self._listings.items():
            yield
            for template, raw in listing.resource_templates.items():
                if template not in found:  # the first backend in configured order serves one
                    found[template] = ResourceTemplate(template, backend_id, raw)
        self._read[_TEMPLATES] = tuple(found.values())


_TEMPLATES = "resource_templates"
# From the advertised name, the backend, its own name and the definition.
_MAKERS: dict[Kind, Callable[[str, str, str, JSON], object]] = {
    "tools": Tool,
    "prompts": Prompt,
    "resources": lambda uri, backend_id, _own, raw: Resource(uri, backend_id, raw),
}


def new_directory(
    bindings: Bindings,
    settings: FactorySettings,
    foreign: ForeignNames | None = None,
    shared: SharedLists | None = None,
) -> Directory:
    """Of a session that has no backend yet.

    Args:
        bindings: Those of its row.
        foreign: What other instances will have bound; None: there are none.
        shared: What all sessions of one factory hold once; None: the session is the only one.
    """
    shared = SharedLists() if shared is None else shared
    rule = name_rule(settings.names_for, settings.max_name_length)
    router = Router(settings.conflict_resolution, bindings, rule, shared.claims)
    return Directory(router, shared, ForeignNames() if foreign is None else foreign)
