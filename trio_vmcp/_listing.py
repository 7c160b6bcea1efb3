"""Ask one backend for everything it offers: only what it advertises, every page, and no more than the limits allow."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from typing import Any

import attrs

from trio_vmcp.client.interface import BackendClient
from trio_vmcp.errors import BackendProtocolError, BackendRejected, MessageTooLarge
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON, Backend
from trio_vmcp.routing import Offer
from trio_vmcp.settings import FactorySettings

__all__ = ["Listing", "list_backend"]

logger = logging.getLogger("trio_vmcp.session")

METHOD_NOT_FOUND = -32601  # JSON-RPC 2.0


@attrs.frozen
class Listing:
    """What one backend offers: MCP's JSON objects by their key (a name, a URI or a template), in the backend's
    order.
    """

    tools: dict[str, JSON] = attrs.field(factory=dict)
    resources: dict[str, JSON] = attrs.field(factory=dict)
    resource_templates: dict[str, JSON] = attrs.field(factory=dict)
    prompts: dict[str, JSON] = attrs.field(factory=dict)

    def offer(self, backend_id: str) -> Offer:
        """The names alone: what routing decides on."""
        return Offer(
            backend_id=backend_id,
            tools=tuple(self.tools),
            prompts=tuple(self.prompts),
            resources=tuple(self.resources),
            templates=tuple(self.resource_templates),
        )


async def list_backend(
    backend: Backend, client: BackendClient, *, identity: Identity | None, settings: FactorySettings
) -> Listing:
    """Every list of one backend, as far as it advertises them and the user allows them.

    Raises:
        MessageTooLarge: Over `max_pages` or `max_items_per_backend`.
        BackendError: A subclass says what else went wrong.
    """
    lister = _Lister(backend, client, identity, settings)
    offered = client.server_capabilities
    tools = await lister.fetch("tools/list", "tools", key="name") if "tools" in offered else {}
    resources, templates, prompts = {}, {}, {}
    if "resources" in offered:
        resources = await lister.fetch("resources/list", "resources", key="uri", optional=True)
        templates = await lister.fetch(
            "resources/templates/list", "resourceTemplates", key="uriTemplate", optional=True
        )
    if "prompts" in offered:
        prompts = await lister.fetch("prompts/list", "prompts", key="name", optional=True)
    allowed = {
        name: tool
        for name, tool in tools.items()
        if (backend.allow_tools is None or name in backend.allow_tools) and name not in backend.deny_tools
    }
    return Listing(allowed, resources, templates, prompts)


@attrs.define
class _Lister:
    backend: Backend
    client: BackendClient
    identity: Identity | None
    settings: FactorySettings
    items: int = 0

    async def fetch(self, method: str, field: str, *, key: str, optional: bool = False) -> dict[str, JSON]:
        found: dict[str, JSON] = {}
        try:
            cursor: Any = None
            for _ in range(self.settings.max_pages):
                page = await self._request(method, {} if cursor is None else {"cursor": cursor})
                for name, item in self._usable(page, method, field, key):
                    found.setdefault(name, item)
                cursor = page.get("nextCursor")
                # "only null/absent ends the list": "" is a cursor (protocol 2026-07-28, pagination).
                if cursor is None:
                    return found
        except BackendRejected as rejected:
            if not optional or rejected.code != METHOD_NOT_FOUND:
                raise
            logger.warning("backend %r advertises %s but answers that it is not there", self.backend.id, method)
            return found
        raise MessageTooLarge(
            self.backend.id, f"has not ended {method!r} after {self.settings.max_pages} pages (max_pages)"
        )

    async def _request(self, method: str, params: JSON) -> JSON:
        # No deadline of its own: whoever lists has one for all of it.
        return await self.client.request(method, params, identity=self.identity, timeout=math.inf, on_progress=None)

    def _usable(self, page: JSON, method: str, field: str, key: str) -> Iterator[tuple[str, JSON]]:
        items = page.get(field)
        if not isinstance(items, list):
            raise BackendProtocolError(self.backend.id, f"answered {method!r} without an array {field!r}")
        self.items += len(items)
        if self.items > self.settings.max_items_per_backend:
            raise MessageTooLarge(
                self.backend.id, f"lists over {self.settings.max_items_per_backend} items (max_items_per_backend)"
            )
        for position, item in enumerate(items):
            problem = _problem(item, key)
            if problem:  # one bad entry costs itself, not its list
                logger.warning("backend %r: %s: dropped entry %d: %s", self.backend.id, method, position, problem)
            else:
                yield item[key], item


_TEXT_FIELDS = ("title", "description")


def _problem(item: object, key: str) -> str | None:
    """Why an entry cannot be listed; None: it can."""
    if not isinstance(item, dict):
        return "it is not an object"
    name = item.get(key)
    if not isinstance(name, str) or not name:
        return f"its {key!r} is not a non-empty string"
    if key == "name" and not isinstance(item.get("inputSchema", {}), dict):
        return "its 'inputSchema' is not an object"
    for field in _TEXT_FIELDS:
        if not isinstance(item.get(field, ""), str | None):
            return f"its {field!r} is not a string"
    try:
        # A lone surrogate parses, but whoever sends the list on as UTF-8 would lose all of it.
        json.dumps(item, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "it holds half a surrogate pair, which is not text"
    return None
