"""Ask one backend for everything it offers: only what it advertises, every page, and no more than the limits allow."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import attrs
import trio

from trio_vmcp._limits import init_limit
from trio_vmcp._protocol.methods import KINDS, LISTS, ListMethod, declares
from trio_vmcp._request_note import current_note
from trio_vmcp.connector import BackendClient
from trio_vmcp.errors import BackendError, BackendProtocolError, BackendRejected, BackendTimeout, MessageTooLarge
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON, Backend
from trio_vmcp.routing import Offer
from trio_vmcp.settings import FactorySettings

__all__ = ["MOST_NAME_BYTES", "Listing", "list_backend"]

logger = logging.getLogger("trio_vmcp.session")

# Names go into the session's row, which has one limit for all backends: 10 000 of 50 bytes are within this, and five
# backends at this limit, with every character escaped, are within that of the row.
MOST_NAME_BYTES = 512 * 1024
METHOD_NOT_FOUND = -32601  # JSON-RPC 2.0
MOST_STALE_PAGES = 3  # in a row; a cursor that is stuck brings the same page for ever
AT_ONCE = 64  # entries that are written as JSON at a time


@attrs.frozen
class Weight:
    """What one list counts for under the limits of its backend: entries, bytes as JSON, bytes of names."""

    items: int = 0
    size: int = 0
    names: int = 0

    def __add__(self, more: Weight) -> Weight:
        return Weight(self.items + more.items, self.size + more.size, self.names + more.names)


@attrs.frozen
class Listing:
    """What one backend offers: MCP's JSON objects by their key (a name, a URI or a template), in the backend's
    order.

    Attributes:
        failures: Why an optional list is not here, or is as last seen: by the name of the field.
        weights, digests: By the name of the field. A digest is of the list as received, entries that were dropped
            included; an empty list has none.
    """

    tools: dict[str, JSON] = attrs.field(factory=dict)
    resources: dict[str, JSON] = attrs.field(factory=dict)
    resource_templates: dict[str, JSON] = attrs.field(factory=dict)
    prompts: dict[str, JSON] = attrs.field(factory=dict)
    failures: dict[str, BackendError] = attrs.field(factory=dict, repr=False, eq=False)
    weights: dict[str, Weight] = attrs.field(factory=dict, repr=False)
    digests: dict[str, bytes] = attrs.field(factory=dict, repr=False)

    def differs(self, other: Listing | None, kind: str) -> bool:
        """Whether a kind of capability ("resources": their templates, too) is not what the other says of it.

        By digest: `==` would take true for 1 and one order for another, and reads all of both lists.
        """
        fields = [each.kept_as for each in _BY_KIND[kind]]
        return other is None or any(self.digests.get(field) != other.digests.get(field) for field in fields)

    def offer(self, backend_id: str) -> Offer:
        """The names alone: what routing decides on."""
        return Offer(
            backend_id=backend_id,
            tools=tuple(self.tools),
            prompts=tuple(self.prompts),
            resources=tuple(self.resources),
            templates=tuple(self.resource_templates),
        )


_BY_KIND: dict[str, tuple[ListMethod, ...]] = {
    kind: tuple(method for method in LISTS if method.kind == kind) for kind in KINDS
}


async def list_backend(
    backend: Backend,
    client: BackendClient,
    *,
    identity: Identity | None,
    settings: FactorySettings,
    overlap: bool = False,
    kinds: Iterable[str] = KINDS,
    fields: Container[str] | None = None,
    known: Listing | None = None,
    is_resumed: bool = False,
) -> Listing:
    """Every list of one backend, as far as it advertises them and the user allows them. An optional list that fails
    costs itself: `failures` says why, and what is `known` of it stays.

    Args:
        overlap: Ask for all lists at once: a third of the round trips, for three times the connections.
        kinds: "tools", "resources" (their templates, too) and "prompts": of the others, what is `known` stays.
        fields: Of these kinds, only the lists that are kept in these fields; None: all of them.
        is_resumed: Whether the backend session is alive shows here: that it is lost is an error in any list.

    Raises:
        MessageTooLarge: Tools over `max_pages` or `max_items_per_backend`.
        BackendError: A subclass says what else went wrong.
    """
    known = known or Listing()
    asked = [each for kind in kinds for each in _BY_KIND[kind] if fields is None or each.kept_as in fields]
    fields = {each.kept_as for each in asked}
    kept = {field: weight for field, weight in known.weights.items() if field not in fields}
    lister = _Lister(backend, client, identity, settings, kept, known.weights, is_resumed)
    wanted = [each for each in asked if declares(client.server_capabilities, (each.kind,))]
    found = await (lister.fetch_together(wanted) if overlap else lister.fetch_in_turn(wanted))
    new: dict[str, Any] = {each.kept_as: found.get(each, {}) for each in asked}
    new |= {field: getattr(known, field) for field in lister.failures}
    if "tools" in new:
        new["tools"] = {
            name: tool
            for name, tool in new["tools"].items()
            if (backend.allow_tools is None or name in backend.allow_tools) and name not in backend.deny_tools
        }
    digests = {
        field: digest for field, digest in known.digests.items() if field not in fields or field in lister.failures
    }
    digests |= {field: hashed.digest() for field, hashed in lister.hashed.items() if new[field]}
    failures = {field: error for field, error in known.failures.items() if field not in fields} | lister.failures
    return attrs.evolve(known, **new, failures=failures, weights=lister.weights, digests=digests)


@attrs.define
class _Lister:
    """Asks, and counts over all lists together: what is listed is kept, so pages must not add up without end."""

    backend: Backend
    client: BackendClient
    identity: Identity | None
    settings: FactorySettings
    weights: dict[str, Weight]
    known_weights: Mapping[str, Weight]
    is_resumed: bool
    failures: dict[str, BackendError] = attrs.field(factory=dict, init=False)
    total: Weight = attrs.field(init=False)
    _kept: Weight = attrs.field(init=False)  # of the lists that are not asked for now
    hashed: dict[str, hashlib.blake2b] = attrs.field(factory=dict, init=False)  # each list so far, by its field
    _left: float = attrs.field(init=False)  # s that all optional lists together may still take

    def __attrs_post_init__(self) -> None:
        self.total = self._kept = sum(self.weights.values(), Weight())
        self._left = init_limit(self.backend, self.settings).seconds

    async def fetch_in_turn(self, wanted: Sequence[ListMethod]) -> dict[ListMethod, dict[str, JSON]]:
        return {each: await self._fetch(each) for each in wanted}

    async def fetch_together(self, wanted: Sequence[ListMethod]) -> dict[ListMethod, dict[str, JSON]]:
        found: dict[ListMethod, dict[str, JSON]] = {}
        errors: list[BackendError] = []

        async def fetch(each: ListMethod) -> None:
            try:
                found[each] = await self._fetch(each)
            except BackendError as error:  # kept from the nursery, which would wrap it in a group
                errors.append(error)
                nursery.cancel_scope.cancel(reason="another list of this backend failed")

        async with trio.open_nursery() as nursery:
            for each in wanted:
                nursery.start_soon(fetch, each)
        if errors:
            raise errors[0]
        self._keep_within_limits(found)
        return found

    async def _fetch(self, wanted: ListMethod) -> dict[str, JSON]:
        """One list; an optional one that fails is in `failures`."""
        if not wanted.is_optional:
            return await self._fetch_pages(wanted)
        begun_at = trio.current_time()
        # Half of what is left of the time: one list that never ends must not cost the others. Nor may it use up the
        # time that a program has to start, which is longer.
        share = min(trio.current_effective_deadline() - begun_at, self._left) / 2
        try:
            with trio.move_on_after(share) if share < math.inf else nullcontext():
                return await self._fetch_pages(wanted)
            knob = init_limit(self.backend, self.settings).knob
            detail = f"did not answer {wanted.name!r} within {share:.3g} s, its share of {knob}"
            failure: BackendError = BackendTimeout(self.backend.id, detail)
        except BackendError as error:
            note = current_note.get()
            if self.is_resumed and note is not None and note.session_lost:
                raise
            failure = error
        finally:
            self._left -= trio.current_time() - begun_at
        self._fail_list(wanted, failure)
        return {}

    def _fail_list(self, wanted: ListMethod, failure: BackendError) -> None:
        """What came of this list does not count any more; what was known of it does."""
        logger.warning("backend %r: %s costs that list: it %s", self.backend.id, wanted.name, failure.detail)
        field = wanted.kept_as
        self.failures[field] = failure
        self.hashed.pop(field, None)
        self.weights.pop(field, None)
        if field in self.known_weights:
            self.weights[field] = self.known_weights[field]
        self.total = sum(self.weights.values(), Weight())

    async def _fetch_pages(self, wanted: ListMethod) -> dict[str, JSON]:
        method = wanted.name
        found: dict[str, JSON] = {}
        try:
            cursor: Any = None
            pages = stale = 0
            while pages < self.settings.max_pages:
                pages += 1
                page = await self._request(method, {} if cursor is None else {"cursor": cursor})
                before = len(found)
                found |= {name: item for name, item in self._usable(page, wanted).items() if name not in found}
                cursor = page.get("nextCursor")
                # "only null/absent ends the list": "" is a cursor (protocol 2026-07-28, pagination).
                if cursor is None:
                    return found
                stale = stale + 1 if len(found) == before else 0
                if stale >= MOST_STALE_PAGES:
                    text = "backend %r: %s does not end: %d pages in a row brought nothing new. What came is kept"
                    logger.warning(text, self.backend.id, method, stale)
                    return found
        except BackendRejected as rejected:
            if not wanted.is_optional or rejected.code != METHOD_NOT_FOUND:
                raise
            logger.warning("backend %r advertises %s but answers that it is not there", self.backend.id, method)
            return found
        raise MessageTooLarge(
            self.backend.id, f"has not ended {method!r} after {self.settings.max_pages} pages (max_pages)"
        )

    async def _request(self, method: str, params: JSON) -> JSON:
        # Without a timeout: the caller has one for all lists together.
        return await self.client.request(method, params, identity=self.identity, timeout=math.inf, on_progress=None)

    def _usable(self, page: JSON, wanted: ListMethod) -> dict[str, JSON]:
        """The entries of a page by their key, without those that cannot be listed: one costs itself, not its list."""
        items = page.get(wanted.array)
        if not isinstance(items, list):
            raise BackendProtocolError(self.backend.id, f"answered {wanted.name!r} without an array {wanted.array!r}")
        hashed = self.hashed.setdefault(wanted.kept_as, hashlib.blake2b(digest_size=16))
        page_size = _page_size(items, hashed)
        size = page_size or 0
        usable: dict[str, JSON] = {}
        bad: list[str] = []
        for position, item in enumerate(items):
            problem = _problem(item, wanted.key)
            if problem is None and page_size is None:  # something on this page is no text
                text = _encoded(item)
                problem = "it holds half a surrogate pair, which is not text" if text is None else None
                size += len(text or b"")
                hashed.update(text or b"")
            if problem is None:
                usable.setdefault(item[wanted.key], item)
            else:
                bad.append(f"{position}: {problem}")
        names = len("".join(usable).encode()) if wanted.key == "name" else 0
        self._count(wanted, Weight(len(items), size, names))
        if bad:
            more = f", and {len(bad) - 1} more" if bad[1:] else ""
            logger.warning("backend %r: %s: dropped entry %s%s", self.backend.id, wanted.name, bad[0], more)
        return usable

    def _count(self, wanted: ListMethod, more: Weight) -> None:
        self.total += more
        self.weights[wanted.kept_as] = own = self.weights.get(wanted.kept_as, Weight()) + more
        # Optional lists that were faster must not cost the tools.
        error = self._limit_error(self.total if wanted.is_optional else self._kept + own)
        if error is not None:
            raise error

    def _limit_error(self, weight: Weight) -> MessageTooLarge | None:
        """The limit that this weight is over; None: it is within all of them."""
        settings = self.settings
        if weight.items > settings.max_items_per_backend:
            detail = f"lists over {settings.max_items_per_backend} items (max_items_per_backend)"
        elif weight.names > MOST_NAME_BYTES:
            detail = f"lists tools and prompts with over {MOST_NAME_BYTES} bytes of names"
        elif weight.size > settings.max_message_bytes:
            detail = f"lists more than {settings.max_message_bytes} bytes (max_message_bytes)"
        else:
            return None
        return MessageTooLarge(self.backend.id, detail)

    def _keep_within_limits(self, found: dict[ListMethod, dict[str, JSON]]) -> None:
        """The tools came last, and all lists together are over a limit: that costs optional ones."""
        for each in sorted(found, key=LISTS.index, reverse=True):
            error = self._limit_error(self.total)
            if error is not None and each.is_optional and found[each]:
                found[each] = {}
                self._fail_list(each, error)


_TEXT_FIELDS = ("title", "description")


def _problem(item: object, key: str) -> str | None:
    """Why an entry cannot be listed; None: it can."""
    if not isinstance(item, dict):
        return "it is not an object"
    name = item.get(key)
    if not isinstance(name, str) or not name:
        return f"its {key!r} is not a non-empty string"
    if key == "name" and not isinstance(item.get("inputSchema"), dict | None):
        return "its 'inputSchema' is not an object"
    for field in _TEXT_FIELDS:
        text = item.get(field)
        if text is not None and not isinstance(text, str):
            return f"its {field!r} is not a string"
    return None


# check_circular=False: what was parsed from JSON has no circles.
_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False)


def _page_size(items: list[Any], hashed: hashlib.blake2b) -> int | None:
    """Bytes as JSON, which are hashed, too; None: as in `_encoded`. In slices: what the encoder holds meanwhile is many
    times the text.
    """
    size = 1
    for start in range(0, len(items) or 1, AT_ONCE):
        part = _encoded(items[start : start + AT_ONCE])
        if part is None:
            return None
        size += len(part) - 1  # one bracket, or the comma to the next part
        hashed.update(part[1:-1] + b",")  # the same bytes for the same entries, however they are cut into pages
    return size


def _encoded(value: object) -> bytes | None:
    """As JSON. None: a lone surrogate parses, but a list that holds one cannot be sent on as UTF-8."""
    try:
        return _encoder.encode(value).encode()
    except UnicodeEncodeError:
        return None
