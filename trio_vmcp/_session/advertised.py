"""The capability objects of a session, made from what routing decided and what backends listed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from trio_vmcp._session.listing import Listing
from trio_vmcp.models import Prompt, Resource, ResourceTemplate, Tool
from trio_vmcp.routing import Routing

__all__ = ["Advertised", "advertise"]


@attrs.frozen
class Advertised:
    """What a session offers its callers, in the order of the routing table."""

    tools: tuple[Tool, ...] = ()
    resources: tuple[Resource, ...] = ()
    resource_templates: tuple[ResourceTemplate, ...] = ()
    prompts: tuple[Prompt, ...] = ()


def advertise(routing: Routing, listings: Mapping[str, Listing]) -> Advertised:
    """Every name of the table with its definition from the backend that owns it."""
    table = routing.table
    return Advertised(
        tools=tuple(
            Tool(name, to.backend_id, to.name, listings[to.backend_id].tools[to.name])
            for name, to in table.tools.items()
        ),
        resources=tuple(
            Resource(uri, to.backend_id, listings[to.backend_id].resources[to.name])
            for uri, to in table.resources.items()
        ),
        # Not by the table, which leaves out templates that it cannot match: what is listed stays listed.
        resource_templates=tuple(_templates(listings)),
        prompts=tuple(
            Prompt(name, to.backend_id, to.name, listings[to.backend_id].prompts[to.name])
            for name, to in table.prompts.items()
        ),
    )


def _templates(listings: Mapping[str, Listing]) -> Iterator[ResourceTemplate]:
    seen: set[str] = set()
    for backend_id, listing in listings.items():
        for template, raw in listing.resource_templates.items():
            if template not in seen:  # the first backend in configured order serves one
                seen.add(template)
                yield ResourceTemplate(template, backend_id, raw)
