"""Keeps what a backend lists up to date while it is connected.

A `list_changed` makes the session ask again: at once, then at most once in each interval of the backend, for all the
lists that notifications came about meanwhile. The interval is a second. Each refetch that brings nothing new doubles
it, up to a minute; a refetch that brings something new sets it back. Only a list that differs from the known one is a
change: a backend may announce what it had announced before, and a client sends a `list_changed` of its own where a list
may be older than its stream.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Container, Iterable, Sequence
from typing import Protocol

import attrs
import trio

from trio_vmcp._limits import init_limit
from trio_vmcp._nursery import start_clean, start_if_open
from trio_vmcp._protocol.headers import limited
from trio_vmcp._protocol.methods import KINDS, LIST_CHANGED, SUBSCRIBE, UNSUBSCRIBE, Kind
from trio_vmcp._request_note import RequestNote, current_note
from trio_vmcp._session.call import note_answer
from trio_vmcp._session.lister import list_backend
from trio_vmcp._session.listing import Listing
from trio_vmcp._session.member import Member, Publisher
from trio_vmcp._session.reconnects import Backoff
from trio_vmcp._session.shared_lists import SharedLists
from trio_vmcp.connector import BackendClient
from trio_vmcp.errors import BackendError, BackendRejected, MessageTooLarge
from trio_vmcp.models import Backend
from trio_vmcp.settings import FactorySettings

__all__ = ["Refresher"]

logger = logging.getLogger("trio_vmcp.session")

REFETCH_INTERVAL = 1.0  # s between the beginnings of two refetches of one backend
MOST_REFETCH_INTERVAL = 60.0  # s, after refetches that brought nothing new
MOST_TRIES = 3  # of a refetch that fails, one after the other; then ever more slowly, or after the next notification
LONGEST_DELAY = 600.0  # s

# JSON-RPC errors that say: no such method, no such resource (-32002: MCP 2025-11-25, resources, "Error Handling").
_NOT_THERE = frozenset({-32601, -32602, -32002})
_KINDS: dict[str, Kind] = {LIST_CHANGED[kind]: kind for kind in KINDS}


class ListedConnection(Protocol):
    """The connection that is kept up to date, as far as this needs it."""

    @property
    def is_over(self) -> bool:
        """It takes no more calls: its lists are no longer kept."""
        ...

    @property
    def current_client(self) -> BackendClient | None:
        """The client that takes calls; None before the connection joined and once it takes no more."""
        ...


@attrs.define(eq=False)
class Refresher:
    """Of one connection. Its task runs only while there is something to fetch."""

    _member: Member
    _connection: ListedConnection
    _backend: Backend
    _settings: FactorySettings
    _nursery: trio.Nursery
    _publisher: Publisher
    _shared: SharedLists
    _stale: dict[Kind, None] = attrs.field(factory=dict, init=False)  # what to fetch, in the order of the notifications
    _running: bool = attrs.field(default=False, init=False)
    _wanted: trio.Event | None = attrs.field(default=None, init=False, repr=False)  # set by the next notification
    _is_repeating: bool = attrs.field(default=False, init=False)
    # One fetch at a time, since each takes over what is known. None: there was none yet.
    _line: trio.Lock | None = attrs.field(default=None, init=False, repr=False)
    _interval: float = attrs.field(factory=lambda: REFETCH_INTERVAL, init=False)  # s
    _failures: dict[str, BackendError] = attrs.field(factory=dict, init=False, repr=False)  # of the last listing
    _asked_until: float = attrs.field(default=-math.inf, init=False)  # the backend asked to be left alone until then

    def note(self, method: str) -> None:
        """A notification came; only those about lists matter here."""
        if method in _KINDS:
            self._want(_KINDS[method])

    def list_again(self) -> None:
        """The connection is new: what is known is what was seen through the one before."""
        self._want(*KINDS)

    def subscribe_again(self) -> None:
        """Subscriptions ended with the connection before. Called once for each connection."""
        if self._member.subscriptions:
            start_clean(self._nursery, self._subscribe, sorted(self._member.subscriptions))

    def subscribe(self, uri: str) -> None:
        """A subscription has come from another backend."""
        start_if_open(self._nursery, self._subscribe, (uri,))

    def unsubscribe(self, uri: str) -> None:
        """A subscription has gone to another backend."""
        start_if_open(self._nursery, self._unsubscribe, uri)

    def repeat_failed(self, listing: Listing | None) -> None:
        """Have the lists that failed asked for again, each alone, unless a task does so already."""
        if listing is None:
            return
        for name, error in listing.failures.items():
            if self._failures.get(name) is not error:  # else it is an old one, of a list that was not fetched now
                self._note_retry_after(error)
        self._failures = dict(listing.failures)
        if listing.failures and not self._is_repeating:
            self._is_repeating = start_if_open(self._nursery, self._repeat)

    def _note_retry_after(self, error: BackendError) -> None:
        self._asked_until = max(self._asked_until, trio.current_time() + limited(error.retry_after))

    async def _wait_asked(self) -> None:
        """`Retry-After` is about this client, not about one of its requests (429, RFC 6585 §4; 503, RFC 9110 §15.6.4),
        so the next of any kind waits.
        """
        if trio.current_time() < self._asked_until:
            await trio.sleep_until(self._asked_until)

    def _want(self, *kinds: Kind) -> None:
        self._stale |= dict.fromkeys(kinds)
        if self._wanted is not None:
            self._wanted.set()
        if not self._running:
            self._running = start_if_open(self._nursery, self._refresh)

    async def _refresh(self) -> None:
        failures = 0
        while self._stale and not self._connection.is_over:
            await self._wait_asked()
            kinds = self._stale
            begun_at, interval = trio.current_time(), self._interval
            client = self._connection.current_client
            if client is not None:
                self._stale = {}
                failures = 0 if await self._fetch(client, kinds) else failures + 1
                if failures:
                    self._stale = kinds | self._stale
            if failures >= MOST_TRIES:
                await self._wait_long(self._settings.reconnect_max_delay * 2 ** min(failures - MOST_TRIES, 20))
            await trio.sleep_until(begun_at + min(interval, self._interval))
        self._running = False

    async def _wait_long(self, delay: float) -> None:
        """Until the next notification, or for so many s, LONGEST_DELAY at most."""
        self._wanted = trio.Event()
        with trio.move_on_after(min(delay, max(LONGEST_DELAY, self._settings.reconnect_max_delay))):
            await self._wanted.wait()
        self._wanted = None

    async def _repeat(self) -> None:
        """Ask for the lists that failed, ever more slowly. One that was over a limit will be so again: at the slowest
        pace.
        """
        backoff = Backoff(self._settings.reconnect_delay, self._settings.reconnect_max_delay)
        listing = self._member.listing
        while not self._connection.is_over and listing is not None and listing.failures:
            delay = backoff.next(random.random())
            for error in listing.failures.values():
                is_limit = isinstance(error, MessageTooLarge)
                delay = max(delay, backoff.max_delay if is_limit else 0.0)
            await trio.sleep(delay)
            await self._wait_asked()
            client, listing = self._connection.current_client, self._member.listing
            if client is not None and listing is not None and listing.failures:
                await self._fetch(client, KINDS, frozenset(listing.failures))
            listing = self._member.listing
        self._is_repeating = False

    async def _fetch(self, client: BackendClient, kinds: Iterable[Kind], fields: Container[str] | None = None) -> bool:
        if self._line is None:
            self._line = trio.Lock()
        async with self._line:
            return await self._fetch_now(client, kinds, fields)

    async def _fetch_now(self, client: BackendClient, kinds: Iterable[Kind], fields: Container[str] | None) -> bool:
        """Whether the lists were fetched. A backend session that turns out to be lost is left to the next call: else a
        `list_changed` followed by 404 would connect the backend anew for ever.
        """
        try:
            limit = init_limit(self._backend, self._settings)
            with trio.move_on_after(limit.seconds):
                listing = await list_backend(
                    self._backend,
                    client,
                    identity=self._member.identity,
                    settings=self._settings,
                    shared=self._shared,
                    kinds=kinds,
                    fields=fields,
                    known=self._member.listing,
                )
                if client is self._connection.current_client:
                    note_answer(self._member)
                    known = self._member.listing
                    changed: tuple[Kind, ...] = tuple(kind for kind in kinds if listing.differs(known, kind))
                    if fields is None:
                        self._interval = REFETCH_INTERVAL if changed else min(2 * self._interval, MOST_REFETCH_INTERVAL)
                    if changed:
                        self._publisher.check_names(self._member, listing)
                    self._member.listing = listing
                    if changed:
                        self._publisher.member_changed(self._member, changed)
                    self._member.note_listed()
                    self.repeat_failed(listing)
                return True
            why = f"did not answer within {limit}"
        except BackendError as error:
            self._note_retry_after(error)
            why = error.detail
        if not self._connection.is_over:  # a retired connection: its lists are no longer kept
            logger.warning("backend %r: its new %s could not be listed: it %s", self._backend.id, ", ".join(kinds), why)
        return False

    async def _subscribe(self, uris: Sequence[str]) -> None:
        """And tell of each: it may have been updated meanwhile. What fails is tried again for as long as the connection
        lasts, since the subscriber counts on it. A resource that the backend says is not there is given up.
        """
        backoff = Backoff(self._settings.reconnect_delay, self._settings.reconnect_max_delay)
        tries = 0
        while uris:
            tries += 1
            uris = [uri for uri in uris if await self._must_subscribe_again(uri, tries)]
            if uris:
                await trio.sleep(backoff.next(random.random()))

    async def _unsubscribe(self, uri: str) -> None:
        """Once, since updates that come all the same are not passed on."""
        await self._wait_asked()
        client = self._connection.current_client
        if client is None or uri in self._member.subscriptions:
            return
        limit = init_limit(self._backend, self._settings).seconds
        try:
            await client.request(
                UNSUBSCRIBE, {"uri": uri}, identity=self._member.identity, timeout=limit, on_progress=None
            )
        except BackendError as error:
            logger.debug("%s, when it was to be unsubscribed from", error)
        if uri in self._member.subscriptions and not self._connection.is_over:
            self.subscribe(uri)  # it has come back meanwhile, and the backend may have taken this request last

    async def _must_subscribe_again(self, uri: str, tries: int) -> bool:
        """Subscribe to one resource. Returns whether that failed and has to be tried again."""
        await self._wait_asked()
        client = self._connection.current_client
        if client is None or uri not in self._member.subscriptions:
            return False
        failed: BackendError | None = None
        limit = init_limit(self._backend, self._settings)
        current_note.set(RequestNote(knob=limit.knob))
        try:
            await client.request(
                SUBSCRIBE,
                {"uri": uri},
                identity=self._member.identity,
                timeout=limit.seconds,
                on_progress=None,
            )
        except BackendError as error:
            self._note_retry_after(error)
            failed = error
        if uri not in self._member.subscriptions or self._connection.is_over:
            if failed is None and not self._connection.is_over:
                await self._unsubscribe(uri)  # it was unsubscribed from meanwhile, or has moved on
            return False
        given_up = isinstance(failed, BackendRejected) and failed.code in _NOT_THERE and tries >= MOST_TRIES
        if failed is not None and (tries == 1 or given_up):
            then = "it is given up" if given_up else "it is tried again"
            logger.warning("%s, when it was to be subscribed to again: %s", failed, then)
        if failed is None or tries == 1:
            self._publisher.resource_updated(self._member, uri)
        return failed is not None and not given_up
