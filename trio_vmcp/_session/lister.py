"""Ask one backend for everything it offers: only what it advertises, every page, and no more than the limits allow."""

from __future__ import annotations

import logging
import math
from collections.abc import Container, Iterable, Sequence
from typing import Any

import attrs
import trio

from trio_vmcp._known_results import KnownResults, Page, Pages, can_recall
from trio_vmcp._limits import init_limit
from trio_vmcp._nursery import crash_of_client, start_task
from trio_vmcp._protocol.json_cost import memory_size
from trio_vmcp._protocol.methods import KINDS, LISTS, MOST_STALE_PAGES, ListMethod, declares
from trio_vmcp._request_note import current_note
from trio_vmcp._session.listing import BY_KIND, FIELDS, Listing
from trio_vmcp._session.offered_tools import offered_tools
from trio_vmcp._session.pages import MOST_NAME_BYTES, ListPages, Weight
from trio_vmcp._session.shared_lists import Scope, SharedLists, scope_of
from trio_vmcp.connector import BackendClient
from trio_vmcp.errors import BackendError, BackendRejected, BackendTimeout, MessageTooLarge
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON, Backend
from trio_vmcp.settings import FactorySettings

__all__ = ["list_backend"]

logger = logging.getLogger("trio_vmcp.session")

METHOD_NOT_FOUND = -32601  # JSON-RPC 2.0
CLOSE_TO_FAIR = 0.9  # of a list's share of time: most lists come at once, and to set a deadline costs more than to ask
MOST_CURSOR = 256 * 1024  # bytes of memory: the next request holds the cursor, and is encoded in one step


async def list_backend(
    backend: Backend,
    client: BackendClient,
    *,
    identity: Identity | None,
    settings: FactorySettings,
    shared: SharedLists,
    overlap: bool = False,
    kinds: Iterable[str] = KINDS,
    fields: Container[str] | None = None,
    known: Listing | None = None,
    is_resumed: bool = False,
) -> Listing:
    """Every list of one backend, as far as it advertises them and the user allows them. An optional list that fails
    costs itself: `failures` says why, and what is `known` of it stays.

    Args:
        shared: What other sessions have listed: the same bytes are not read again, and the same lists are held once.
        overlap: Ask for all lists at once: a third of the round trips, for three times the connections.
        kinds: "tools", "resources" (their templates, too) and "prompts": of the others, what is `known` stays.
        fields: Of these kinds, only the lists that are kept in these fields; None: all of them.
        is_resumed: Whether the backend session is alive shows here: that it is lost is an error in any list.

    Raises:
        MessageTooLarge: Tools over `max_pages` or `max_items_per_backend`.
        BackendError: A subclass says what else went wrong.
    """
    if known is None and not any(declares(client.server_capabilities, (kind,)) for kind in KINDS):
        logger.warning("backend %r declares no tools, no resources and no prompts: it offers nothing", backend.id)
    known = known or Listing()
    asked = [each for kind in kinds for each in BY_KIND[kind] if fields is None or each.kept_as in fields]
    fields = {each.kept_as for each in asked}
    kept = {field: weight for field, weight in known.weights.items() if field not in fields}
    scope = scope_of(backend, _era_of(client))
    lister = _Lister(backend, client, identity, settings, kept, known, is_resumed, shared, scope)
    wanted = [each for each in asked if declares(client.server_capabilities, (each.kind,))]
    found = await (lister.fetch_together(wanted) if overlap else lister.fetch_in_turn(wanted))
    source = lister.source_of_all(wanted) if fields == set(FIELDS) else None
    if source is not None:
        return source
    new: dict[str, Any] = {each.kept_as: found.get(each, {}) for each in asked}
    new |= {field: getattr(known, field) for field in lister.failures}
    if "tools" in new and "tools" not in lister.sources:
        new["tools"] = await offered_tools(backend, new["tools"])
    if "tools" in new:
        new["renamed"] = backend.renamed_tools
    before = {field for field in FIELDS if field not in new or new[field] is getattr(known, field)}
    digests = {field: digest for field, digest in known.digests.items() if field in before}
    digests |= {field: digest for field, digest in lister.digests.items() if new[field]}
    pages = {field: of for field, of in known.pages.items() if field in before} | lister.pages
    failures = {field: error for field, error in known.failures.items() if field not in fields} | lister.failures
    listing = attrs.evolve(known, **new, failures=failures, weights=lister.weights, digests=digests, pages=pages)
    listing = await _with_what_is_known(listing, known, asked) if known.weights else listing
    return shared.settle(scope, listing)


def _era_of(client: BackendClient) -> str:
    """Only clients of ours are known to read lists by their era."""
    return client.record.era if can_recall(client) else ""


async def _with_what_is_known(listing: Listing, known: Listing, asked: Iterable[ListMethod]) -> Listing:
    """The same listing, with the very objects of before where nothing has changed. If that is everywhere: `known`."""
    same: dict[str, Any] = {}
    for each in asked:
        for part in listing.to_be_hashed(known, each):  # `differs` would do it in one step
            for _ in part.digest_in_steps(each):
                await trio.lowlevel.checkpoint()
        if not listing.differs_in(known, each):
            same[each.kept_as] = getattr(known, each.kept_as)
    listing = attrs.evolve(listing, **same)
    is_as_known = listing.weights.keys() == known.weights.keys() and listing.pages == known.pages
    if listing.failures or known.failures or not is_as_known:
        return listing
    return known if all(getattr(listing, field) is getattr(known, field) for field in FIELDS) else listing


@attrs.define
class _Lister:
    """Asks, and counts over all lists together: what is listed is kept, so pages must not add up without end."""

    backend: Backend
    client: BackendClient
    identity: Identity | None
    settings: FactorySettings
    weights: dict[str, Weight]
    known: Listing
    is_resumed: bool
    shared: SharedLists
    scope: Scope
    sources: dict[str, Listing] = attrs.field(factory=dict, init=False)  # of the lists that are those of a listing
    failures: dict[str, BackendError] = attrs.field(factory=dict, init=False)
    total: Weight = attrs.field(init=False)
    _kept: Weight = attrs.field(init=False)  # of the lists that are not asked for now
    _left: float = attrs.field(init=False)  # s that all optional lists together may still take
    # As in `Listing`, of the lists that were fetched.
    pages: dict[str, tuple[Page, ...]] = attrs.field(factory=dict, init=False)
    digests: dict[str, bytes] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.total = self._kept = sum(self.weights.values(), Weight())
        self._left = init_limit(self.backend, self.settings).seconds

    async def fetch_in_turn(self, wanted: Sequence[ListMethod]) -> dict[ListMethod, dict[str, JSON]]:
        found = {each: await self._fetch_pages(each) for each in wanted if not each.is_optional}
        waiting = [each for each in wanted if each.is_optional]
        ends_at, begun_at, share = trio.current_effective_deadline(), trio.current_time(), 0.0
        while waiting:
            with trio.CancelScope() as scope:  # one for all lists, until one of them takes longer than its share
                while waiting and not scope.cancel_called:
                    fair = self._share(begun_at, ends_at)
                    if not fair * CLOSE_TO_FAIR <= scope.deadline - begun_at <= fair:
                        scope.deadline = begun_at + fair
                    share = scope.deadline - begun_at
                    found[waiting[0]] = await self._fetch_optional(waiting[0])
                    begun_at = self._spend(begun_at)
                    del waiting[0]
            if scope.cancelled_caught:
                late = waiting.pop(0)
                found[late] = self._fail_late(late, share)
                begun_at = self._spend(begun_at)
        return found

    async def fetch_together(self, wanted: Sequence[ListMethod]) -> dict[ListMethod, dict[str, JSON]]:
        found: dict[ListMethod, dict[str, JSON]] = {}
        errors: list[BackendError] = []
        begun_at = trio.current_time()
        share = self._share(begun_at, trio.current_effective_deadline())

        async def fetch(each: ListMethod) -> None:
            try:
                if not each.is_optional:
                    found[each] = await self._fetch_pages(each)
                    return
                with trio.move_on_at(begun_at + share) as scope:
                    found[each] = await self._fetch_optional(each)
                if scope.cancelled_caught:
                    found[each] = self._fail_late(each, share)
            except BackendError as error:  # kept from the nursery, which would wrap it in a group
                errors.append(error)
                nursery.cancel_scope.cancel(reason="another list of this backend failed")

        async with trio.open_nursery() as nursery:
            for each in wanted:
                start_task(nursery, fetch, each)
        if errors:
            raise errors[0]
        self._keep_within_limits(found)
        return found

    def _share(self, now: float, ends_at: float) -> float:
        """s that an optional list may take: half of what is left of the time, since one list that never ends must not
        cost the others. Nor may it use up the time that a program has to start, which is longer.
        """
        return min(ends_at - now, self._left) / 2

    def _spend(self, begun_at: float) -> float:
        """The time since `begun_at` is spent on optional lists. Returns the time of now."""
        now = trio.current_time()
        self._left -= now - begun_at
        return now

    async def _fetch_optional(self, wanted: ListMethod) -> dict[str, JSON]:
        """One list; one that fails is in `failures`."""
        try:
            return await self._fetch_pages(wanted)
        except BackendError as error:
            note = current_note.get()
            if self.is_resumed and note is not None and note.session_lost:
                raise
            self._fail_list(wanted, error)
            return {}

    def _fail_late(self, wanted: ListMethod, share: float) -> dict[str, JSON]:
        knob = init_limit(self.backend, self.settings).knob
        detail = f"did not answer {wanted.name!r} within {share:.3g} s, its share of {knob}"
        self._fail_list(wanted, BackendTimeout(self.backend.id, detail))
        return {}

    def _fail_list(self, wanted: ListMethod, failure: BackendError) -> None:
        """What came of this list does not count any more; what was known of it does."""
        logger.warning("backend %r: %s costs that list: it %s", self.backend.id, wanted.name, failure.detail)
        field = wanted.kept_as
        self.failures[field] = failure
        self.digests.pop(field, None)
        self.pages.pop(field, None)
        self.weights.pop(field, None)
        if field in self.known.weights:
            self.weights[field] = self.known.weights[field]
        self.total = sum(self.weights.values(), Weight())

    async def _fetch_pages(self, wanted: ListMethod) -> dict[str, JSON]:
        """One list; the known one itself, if it comes in the pages of before."""
        field, source = wanted.kept_as, self.known
        pages = ListPages(self.backend.id, wanted, source.pages.get(field, ()), self._count)
        cursor: Any = None
        try:
            while len(pages.received) < self.settings.max_pages:
                if not pages.received:
                    first = _FirstPages(self, field)
                    page = await self._request(wanted, {}, first)
                    source = first.source or source
                    pages.known = source.pages.get(field, ())
                else:
                    of_digest = {known.digest: known for known in pages.known if known.digest is not None}
                    page = await self._request(wanted, {"cursor": cursor}, of_digest)
                await pages.add(page)
                cursor = self._cursor_of(page, wanted)
                # "only null/absent ends the list": "" is a cursor (protocol 2026-07-28, pagination).
                if cursor is None or pages.is_known:
                    return self._ended(pages, source)
                if pages.stale >= MOST_STALE_PAGES:
                    text = "backend %r: %s does not end: %d pages in a row brought nothing new. What came is kept"
                    logger.warning(text, self.backend.id, wanted.name, pages.stale)
                    return self._ended(pages, source)
        except BackendRejected as rejected:
            if not wanted.is_optional or rejected.code != METHOD_NOT_FOUND:
                raise
            logger.warning("backend %r advertises %s but answers that it is not there", self.backend.id, wanted.name)
            await pages.take_all()
            await pages.hash_all()  # the next page may come next time
            return self._ended(pages, source)
        raise MessageTooLarge(
            self.backend.id, f"has not ended {wanted.name!r} after {self.settings.max_pages} pages (max_pages)"
        )

    def _cursor_of(self, page: Page, wanted: ListMethod) -> Any:
        cursor = page.result.get("nextCursor")
        if cursor is not None and memory_size(cursor, MOST_CURSOR) > MOST_CURSOR:
            raise MessageTooLarge(
                self.backend.id, f"answered {wanted.name!r} with a cursor of over {MOST_CURSOR} bytes"
            )
        return cursor

    def source_of(self, field: str, digest: bytes) -> Listing | None:
        """The listing, of before or of another session, in which the list of a field begins with this page."""
        pages = self.known.pages.get(field)
        if pages and pages[0].digest == digest:
            return self.known
        return self.shared.find(self.scope, field, digest)

    def source_of_all(self, wanted: Sequence[ListMethod]) -> Listing | None:
        """The listing, of before or of another session, that says the same as all lists of the backend, which are
        `wanted`; None: there is none.
        """
        sources = [self.sources.get(each.kept_as) for each in wanted]
        source = sources[0] if sources else None
        if source is None or source.failures or any(other is not source for other in sources):
            return None
        has_more = any(getattr(source, field) for field in FIELDS if field not in self.sources)
        return None if has_more or source.pages.keys() != self.pages.keys() else source

    def _ended(self, pages: ListPages, source: Listing) -> dict[str, JSON]:
        """The entries of a list that has ended; those of `source`, if it came in the same pages."""
        field = pages.method.kept_as
        if pages.is_known:
            self._count(pages.method, source.weights[field])
            self.pages[field], self.sources[field] = source.pages[field], source
            known: dict[str, JSON] = getattr(source, field)
            return known
        if pages.hashed is None:
            self.pages[field] = tuple(pages.received)
        else:
            self.digests[field] = pages.hashed.digest()
        return pages.entries

    async def _request(self, wanted: ListMethod, params: JSON, known: Pages) -> Page:
        # Without a timeout: the caller has one for all lists together.
        method, client, identity = wanted.name, self.client, self.identity
        if not can_recall(client):
            try:
                result = await client.request(method, params, identity=identity, timeout=math.inf, on_progress=None)
            except BackendError:
                raise
            except Exception as crash:  # a client of the user's own may raise anything
                if not wanted.is_optional:
                    raise
                raise crash_of_client(self.backend.id, method, crash) from crash
            except BaseExceptionGroup as group:  # a task of the client's own nursery crashed as it was cancelled
                _, cancelled = group.split(Exception)
                raise cancelled or group from None
            return Page(result)
        results = KnownResults(known, self.shared.pages, client.record.era)
        result = await client.request(
            method, params, identity=identity, timeout=math.inf, on_progress=None, known=results
        )
        page = results.page
        if page is None:
            return Page(result)
        # The client may have left entries out, as each client of these bytes does.
        return page if page.result is result else Page(result, page.digest, page.size)

    def _count(self, wanted: ListMethod, more: Weight) -> None:
        self.total += more
        before = self.weights.get(wanted.kept_as)
        self.weights[wanted.kept_as] = own = more if before is None else before + more
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


@attrs.define
class _FirstPages:
    """The pages in which known lists of one field begin, by their digest.

    Attributes:
        source: The listing that was found; None: there was none.
    """

    _lister: _Lister
    _field: str
    source: Listing | None = attrs.field(default=None, init=False)

    def get(self, digest: bytes, /) -> Page | None:
        self.source = self._lister.source_of(self._field, digest)
        return None if self.source is None else self.source.pages[self._field][0]
