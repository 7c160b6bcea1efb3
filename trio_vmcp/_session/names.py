"""The names of one session: what is advertised, which backend owns what, and what is bound for the session's life."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs

from trio_vmcp._session.advertised import Advertised, advertise
from trio_vmcp._session.listing import MOST_NAME_BYTES, Listing
from trio_vmcp._session.member import Member
from trio_vmcp.errors import CapabilityNotFound, MessageTooLarge, ResourceNotFound
from trio_vmcp.routing import Bindings, Routing, RoutingTable, Target, build_routing
from trio_vmcp.settings import FactorySettings

__all__ = ["MOST_BOUND_BYTES", "Names", "new_names"]

# Of one backend: names stay bound, and are in the row, even when their backend no longer lists them. Twice what one
# listing may have, prefixes included.
MOST_BOUND_BYTES = 2 * MOST_NAME_BYTES


@attrs.define(eq=False)
class Names:
    """What the backends of one session offer under which names."""

    _settings: FactorySettings
    routing: Routing
    advertised: Advertised = attrs.field(factory=Advertised, init=False)

    @property
    def table(self) -> RoutingTable:
        return self.routing.table

    @property
    def bindings(self) -> Bindings:
        return self.routing.bindings

    def update(self, members: Iterable[Member]) -> None:
        """Names from scratch: a pure function of all offers, in configured order, and of what is bound."""
        listings = {member.backend_id: member.listing or Listing() for member in members}
        self.routing = build_routing(
            [listing.offer(backend_id) for backend_id, listing in listings.items()],
            self._settings.conflict_resolution,
            bindings=self.routing.bindings,
            max_name_length=self._settings.max_name_length,
        )
        self.advertised = advertise(self.routing, listings)

    def check(self, member: Member, listing: Listing) -> None:
        """
        Raises:
            MessageTooLarge: Names stay bound for the session's life, and this backend has had too many by now.
        """
        known, bindings = member.listing or Listing(), self.routing.bindings
        new = (listing.tools.keys() - known.tools.keys()) | (listing.prompts.keys() - known.prompts.keys())
        if not new:
            return
        bound = (bindings.tools, bindings.prompts)
        owned = (name for names in bound for name, owner in names.items() if owner == member.backend_id)
        if sum(len(name.encode()) for names in (owned, new) for name in names) > MOST_BOUND_BYTES:
            raise MessageTooLarge(
                member.backend_id,
                f"lists ever new names: over {MOST_BOUND_BYTES} bytes of them in the life of this session",
            )

    def owner_of(self, kind: Literal["tools", "prompts"], name: str) -> str | None:
        """The backend that a name is bound to, also while that backend does not list it."""
        owner: str | None = getattr(self.routing.bindings, kind).get(name)
        return owner

    def find(self, kind: Literal["tools", "prompts"], name: str) -> Target | None:
        target: Target | None = getattr(self.routing.table, kind).get(name)
        return target

    def not_found(
        self, kind: Literal["tools", "prompts"], name: str, error: type[CapabilityNotFound]
    ) -> CapabilityNotFound:
        return error(name, self.routing.table.closest(kind, name))

    def find_resource(self, uri: str) -> Target:
        """
        Raises:
            ResourceNotFound: No backend lists it, and no template matches it.
        """
        target = self.routing.table.find_resource(uri)
        if target is None:
            raise ResourceNotFound(uri, self.routing.table.closest("resources", uri))
        return target

    def find_template(self, uri: str) -> Target | None:
        return next((target for target in self.routing.table.templates if target.name == uri), None)


def new_names(bindings: Bindings, settings: FactorySettings) -> Names:
    """Of a session that has no backend yet; `bindings` are those of its row."""
    return Names(settings, build_routing((), settings.conflict_resolution, bindings=bindings))
