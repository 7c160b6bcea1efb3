"""Results that a backend of the modern era allows to be kept (`ttlMs`, `cacheScope`), shared by a factory's sessions.

What is kept is JSON, as bytes: whoever finds it gets an object of his own, so that no session can change another's. A
result is found by who would have been given it: by the endpoint, what is sent along with every request there, the
request itself, and the principal that asks, unless the server calls the result public.

Source: MCP 2026-07-28, caching.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable
from typing import TypeAlias

import attrs
import trio

from trio_vmcp._protocol.methods import LIST_CHANGED, METHODS, READ_RESOURCE, RESOURCE_UPDATED, UNKNOWN, ListMethod
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import endpoint_digest
from trio_vmcp.models import JSON, Backend

__all__ = ["BackendCache", "Fetch", "ResponseCache"]

LONGEST = 24 * 60 * 60.0  # s, whatever a server says
# Bytes of JSON and of its keys, and results. One endpoint gets a part, so that a greedy one pushes out its own alone.
MOST_BYTES, MOST_RESULTS = 64 * 1024 * 1024, 4096
MOST_BYTES_EACH, MOST_RESULTS_EACH = 8 * 1024 * 1024, 512
_OVERHEAD_BYTES = 512  # of a result beside its text, roughly

_SALT = secrets.token_bytes(32)  # header values are secrets: what is kept of them is of no use outside of this process
_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_UTF8 = ("utf-8", "surrogatepass")  # half a surrogate pair is kept as it came
_canonical = json.JSONEncoder(separators=(",", ":"), sort_keys=True)

_Who: TypeAlias = tuple[str, str] | tuple[()] | None  # a principal; nobody; None: anybody
_Key: TypeAlias = tuple[bytes, str, str, _Who]  # variant, method, params, whose


@attrs.frozen
class _Entry:
    json: bytes = attrs.field(repr=False)
    expires_at: float  # by trio.current_time()
    size: int
    uri: str  # of a resource
    following: str | None  # the params of the next page of a list


@attrs.define(eq=False)
class Fetch:
    """A request on its way, whose result may be kept when it is here."""

    _cache: BackendCache = attrs.field(alias="cache")
    method: str
    params: str
    uri: str
    identity: Identity | None
    is_outdated: bool = attrs.field(default=False, init=False)  # something changed since it was sent

    def keep(self, result: JSON) -> None:
        """The result is here."""
        if not self.is_outdated:
            self._cache.keep_result(self, result)

    def close(self) -> None:
        """It is here, or will not come."""
        self._cache.close_fetch(self)


@attrs.define(eq=False)
class _Shelf:
    """What is kept of one endpoint, the oldest first."""

    entries: dict[_Key, _Entry] = attrs.field(factory=dict)
    fetches: set[Fetch] = attrs.field(factory=set)
    size: int = 0


@attrs.define(eq=False)
class ResponseCache:
    """One for a factory."""

    _shelves: dict[str, _Shelf] = attrs.field(factory=dict, init=False, repr=False)  # by endpoint
    _size: int = attrs.field(default=0, init=False)
    _count: int = attrs.field(default=0, init=False)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    def __len__(self) -> int:
        return self._count

    def of(self, backend: Backend, version: str) -> BackendCache:
        """What is kept of one backend, as its configuration sees it: other headers are other credentials."""
        variant = hashlib.blake2b(key=_SALT, digest_size=16)
        # The id, since credentials are asked for by backend.
        for part in (version, backend.id, *(text for pair in sorted(backend.headers.items()) for text in pair)):
            data = part.encode("utf-8", "surrogatepass")
            variant.update(len(data).to_bytes(8, "big") + data)
        return BackendCache(self, endpoint_digest(backend), variant.digest())

    def shelf(self, endpoint: str) -> _Shelf:
        return self._shelves.setdefault(endpoint, _Shelf())

    def find(self, endpoint: str, key: _Key) -> _Entry | None:
        shelf = self._shelves.get(endpoint)
        entry = None if shelf is None else shelf.entries.get(key)
        if shelf is None or entry is None:
            return None
        if entry.expires_at <= trio.current_time():
            self._remove(endpoint, shelf, key)
            return None
        return entry

    def put(self, endpoint: str, key: _Key, entry: _Entry) -> None:
        shelf = self.shelf(endpoint)
        if key in shelf.entries:
            self._remove(endpoint, shelf, key)
            shelf = self.shelf(endpoint)
        shelf.entries[key] = entry
        shelf.size += entry.size
        self._size += entry.size
        self._count += 1
        while shelf.size > MOST_BYTES_EACH or len(shelf.entries) > MOST_RESULTS_EACH:
            self._remove(endpoint, shelf, next(iter(shelf.entries)))
        while self._size > MOST_BYTES or self._count > MOST_RESULTS:
            largest = max(self._shelves, key=lambda name: (self._shelves[name].size, len(self._shelves[name].entries)))
            self._remove(largest, self._shelves[largest], next(iter(self._shelves[largest].entries)))

    def discard(self, endpoint: str, matches: Callable[[str, str], bool]) -> None:
        """Forget what matches by method and uri, also what is on its way."""
        shelf = self._shelves.get(endpoint)
        if shelf is None:
            return
        for fetch in shelf.fetches:
            fetch.is_outdated = fetch.is_outdated or matches(fetch.method, fetch.uri)
        for key in [key for key, entry in shelf.entries.items() if matches(key[1], entry.uri)]:
            self._remove(endpoint, shelf, key)

    def close_fetch(self, endpoint: str, fetch: Fetch) -> None:
        shelf = self._shelves[endpoint]
        shelf.fetches.remove(fetch)
        self._tidy(endpoint, shelf)

    def _remove(self, endpoint: str, shelf: _Shelf, key: _Key) -> None:
        entry = shelf.entries.pop(key)
        shelf.size -= entry.size
        self._size -= entry.size
        self._count -= 1
        self._tidy(endpoint, shelf)

    def _tidy(self, endpoint: str, shelf: _Shelf) -> None:
        if not shelf.entries and not shelf.fetches:
            self._shelves.pop(endpoint, None)


@attrs.frozen
class BackendCache:
    """What may be known of one backend without asking it."""

    _cache: ResponseCache = attrs.field(alias="cache", repr=False)
    _endpoint: str = attrs.field(alias="endpoint")
    _variant: bytes = attrs.field(alias="variant", repr=False)

    def find(self, method: str, params: JSON, identity: Identity | None) -> JSON | None:
        """A result that is still fresh, as if it had just come; None: ask.

        A page is found only with all that follow it: a cursor out of an old page may be dead, and who asks for the rest
        of a list with it would have to begin again.
        """
        text = _params_key(method, params)
        if text is None:
            return None
        entry = found = self._entry(method, text, identity)
        for _ in range(MOST_RESULTS_EACH):
            if entry is None or found is None:
                return None
            if entry.following is None:
                result: JSON = json.loads(found.json.decode(*_UTF8))
                return result
            entry = self._entry(method, entry.following, identity)
        return None  # cursors that go round in a circle

    def _entry(self, method: str, text: str, identity: Identity | None) -> _Entry | None:
        for whose in (_who(identity), None):
            entry = self._cache.find(self._endpoint, (self._variant, method, text, whose))
            if entry is not None:
                return entry
        return None

    def begin_fetch(self, method: str, params: JSON, identity: Identity | None) -> Fetch | None:
        """Say that this is asked for now: whatever changes meanwhile may not be in the result. None: it is not for
        keeping.
        """
        text = _params_key(method, params)
        if text is None:
            return None
        uri = params.get("uri") if method == READ_RESOURCE else None
        fetch = Fetch(self, method, text, uri if isinstance(uri, str) else "", identity)
        self._cache.shelf(self._endpoint).fetches.add(fetch)
        return fetch

    def keep_result(self, fetch: Fetch, result: JSON) -> None:
        seconds = _fresh_for(result)
        if seconds <= 0:
            return
        try:
            data = _encoder.encode(result).encode(*_UTF8)
        except RecursionError:  # it was parsed, so `max_json_depth` is near what the parser can do
            return
        cursor = result.get("nextCursor") if isinstance(METHODS[fetch.method], ListMethod) else None
        following = None if cursor is None else _canonical.encode({**json.loads(fetch.params), "cursor": cursor})
        size = len(data) + len(fetch.params) + len(following or "") + _OVERHEAD_BYTES
        if size <= MOST_BYTES_EACH:
            whose = None if result.get("cacheScope") == "public" else _who(fetch.identity)
            entry = _Entry(data, trio.current_time() + seconds, size, fetch.uri, following)
            self._cache.put(self._endpoint, (self._variant, fetch.method, fetch.params, whose), entry)

    def close_fetch(self, fetch: Fetch) -> None:
        self._cache.close_fetch(self._endpoint, fetch)

    def note_change(self, method: str, params: JSON) -> None:
        """The backend has sent this notification, to whomever: what it is about is not fresh any more."""
        if method == RESOURCE_UPDATED:
            uri = params.get("uri")
            # "A sub-resource of the one that the client subscribed to" is part of what is read there.
            self._cache.discard(
                self._endpoint,
                lambda kept, of: kept == READ_RESOURCE and (not isinstance(uri, str) or uri.startswith(of)),
            )
        elif method in LIST_CHANGED.values():
            self._cache.discard(self._endpoint, lambda kept, of: METHODS[kept].outdated_by == method)

    def discard_results(self, method: str) -> None:
        """Forget every result of this method, every page of a list."""
        self._cache.discard(self._endpoint, lambda kept, of: kept == method)

    def discard_all(self) -> None:
        self._cache.discard(self._endpoint, lambda kept, of: True)


def _params_key(method: str, params: JSON) -> str | None:
    """What of the params decides the result; None: the result is not for keeping."""
    if not METHODS.get(method, UNKNOWN).may_be_kept or "inputResponses" in params or "requestState" in params:
        return None
    if params.get("_meta", {}).keys() - {"progressToken"}:
        return None  # a caller's own, of which nobody knows what it does
    try:
        return _canonical.encode({name: value for name, value in params.items() if name != "_meta"})
    except (TypeError, ValueError, RecursionError):
        return None  # it cannot be sent either: whoever sends it says so


def _who(identity: Identity | None) -> _Who:
    return () if identity is None else (identity.issuer, identity.subject)


def _fresh_for(result: JSON) -> float:
    """s; 0: not at all."""
    ttl = result.get("ttlMs")
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not ttl > 0:  # `not >`: NaN is nothing
        return 0.0
    return ttl / 1000 if ttl < LONGEST * 1000 else LONGEST  # compared first: not every int is a float
