"""Results that a backend of the modern era allows to be cached (`ttlMs`, `cacheScope`), shared by a factory's sessions.

Results are kept as encoded JSON: each session gets an object of its own, so no session can change the object of
another. The key of a result is all that the server may have used to make it: the endpoint, the headers of every request
to the backend, the capabilities that are declared to it, the request itself, and the authorization context of the
caller, unless the server says that the result is public. That context is the token and not only the principal: "a
different access token requires a different cache". An `auth` of the user's does not tell which token it will send, so
of its results only public ones are kept.

Source: MCP 2026-07-28, caching.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Generator, Iterator
from typing import TypeAlias

import attrs
import trio

from trio_vmcp._protocol.json_slices import decode_in_steps, encode_in_steps
from trio_vmcp._protocol.jsonrpc import MOST_AT_ONCE
from trio_vmcp._protocol.methods import LIST_CHANGED, METHODS, READ_RESOURCE, RESOURCE_UPDATED, UNKNOWN, ListMethod
from trio_vmcp.connector import ContextualAuth, OutgoingAuth
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import endpoint_digest
from trio_vmcp.models import JSON, Backend
from trio_vmcp.observe import TRACE_KEYS

__all__ = ["BackendCache", "Fetch", "ResponseCache"]

LONGEST = 24 * 60 * 60.0  # s, whatever a server says
# Bytes of JSON with its keys, and the number of results. Each endpoint has a limit of its own, so that one endpoint
# with many results discards only its own.
MOST_BYTES, MOST_RESULTS = 64 * 1024 * 1024, 4096
MOST_BYTES_EACH, MOST_RESULTS_EACH = 8 * 1024 * 1024, 512
_OVERHEAD_BYTES = 512  # of a result besides its text, roughly

_SALT = secrets.token_bytes(32)  # header values are secrets: their digests are of no use outside of this process
_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_decoder = json.JSONDecoder()
_UTF8 = ("utf-8", "surrogatepass")  # a lone surrogate is kept as received
_canonical = json.JSONEncoder(separators=(",", ":"), sort_keys=True)

# Keys of `_meta` that are different in each request and change no result: our own, and those of a trace (W3C Trace
# Context). A caller that is traced would find nothing in the cache otherwise.
_TELLS_NOTHING = frozenset({"progressToken", *TRACE_KEYS})

_PUBLIC = b""
_Key: TypeAlias = tuple[bytes, str, str, bytes]  # variant, method, params, a digest of the context or _PUBLIC


@attrs.frozen
class _Entry:
    json: bytes = attrs.field(repr=False)
    expires_at: float  # by trio.current_time()
    size: int
    uri: str  # of a resource; else empty
    following: str | None  # the params of the next page of a list; None: this is the last page


@attrs.define(eq=False)
class Fetch:
    """A request in flight. Its result may be kept when it arrives."""

    _cache: BackendCache = attrs.field(alias="cache")
    method: str
    params: str
    uri: str
    identity: Identity | None = attrs.field(repr=False)
    # The authorization context in which the request was sent; None: unknown.
    context: bytes | None = attrs.field(repr=False)
    # A notification since then says that the result may be old.
    is_outdated: bool = attrs.field(default=False, init=False)

    def keep_in_steps(self, result: JSON) -> Iterator[None]:
        """Keep the result, if nothing has changed since the request was sent; with a step for each slice of it."""
        return iter(()) if self.is_outdated else self._cache.keep_in_steps(self, result)

    def close(self) -> None:
        """The request has ended, with a result or without."""
        self._cache.close_fetch(self)


@attrs.define(eq=False)
class _Shelf:
    """The results of one endpoint, the oldest first, and its requests in flight."""

    entries: dict[_Key, _Entry] = attrs.field(factory=dict)
    fetches: set[Fetch] = attrs.field(factory=set)
    size: int = 0


@attrs.define(eq=False)
class ResponseCache:
    """The cache of one factory."""

    _shelves: dict[str, _Shelf] = attrs.field(factory=dict, init=False, repr=False)  # by endpoint
    _size: int = attrs.field(default=0, init=False)
    _count: int = attrs.field(default=0, init=False)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    def __len__(self) -> int:
        return self._count

    def of(
        self, backend: Backend, version: str, auth: OutgoingAuth | None = None, client_capabilities: JSON | None = None
    ) -> BackendCache:
        """The part of the cache for one backend configuration and what is declared to the backend: other headers may be
        other credentials, and a server may offer other tools to a client that answers its questions.
        """
        # With the id: `OutgoingAuth` may give another backend id other credentials.
        headers = (text for pair in sorted(backend.headers.items()) for text in pair)
        variant = _digest(version, backend.id, _canonical.encode(client_capabilities or {}), *headers)
        return BackendCache(self, endpoint_digest(backend), variant, backend, auth)

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
        """Discard the results that match by method and uri, those of requests in flight included."""
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
    """The cached results of one backend."""

    _cache: ResponseCache = attrs.field(alias="cache", repr=False)
    _endpoint: str = attrs.field(alias="endpoint")
    _variant: bytes = attrs.field(alias="variant", repr=False)
    _backend: Backend = attrs.field(alias="backend", repr=False)
    _auth: OutgoingAuth | None = attrs.field(alias="auth", repr=False)

    def find_in_steps(self, method: str, params: JSON, identity: Identity | None) -> Generator[None, None, JSON | None]:
        """A result that is still fresh, with a step for each slice of it; None: the backend must be asked.

        A page of a list is found only if all pages behind it are cached, too. The cursor in an old page may no longer
        be valid, and a listing that used it for the next page would fail.
        """
        text = _params_key(method, params)
        if text is None:
            return None
        context = self._context(identity)
        entry = found = self._entry(method, text, context)
        for _ in range(MOST_RESULTS_EACH):
            if entry is None or found is None:
                return None
            if entry.following is None:
                result: JSON = yield from _decode_in_steps(found.json.decode(*_UTF8))
                return result
            entry = self._entry(method, entry.following, context)
        return None  # the cursors form a circle

    def _entry(self, method: str, text: str, context: bytes | None) -> _Entry | None:
        for readers in (_PUBLIC,) if context is None else (context, _PUBLIC):
            entry = self._cache.find(self._endpoint, (self._variant, method, text, readers))
            if entry is not None:
                return entry
        return None

    def _context(self, identity: Identity | None) -> bytes | None:
        """A digest of all that makes the requests of this caller differ from those of another; None: unknown."""
        sent = self._credentials(identity)
        if sent is None:
            return None
        caller = () if identity is None else (identity.issuer, identity.subject, identity.token)
        return _digest(sent, *caller)

    def _credentials(self, identity: Identity | None) -> bytes | None:
        if self._auth is None:
            return b""
        if not isinstance(self._auth, ContextualAuth):
            return None
        try:
            return self._auth.authorization_context(self._backend, identity)
        except Exception:  # noqa: BLE001  # of a function of the user's, which the request itself asks again
            return None

    def begin_fetch(self, method: str, params: JSON, identity: Identity | None) -> Fetch | None:
        """A request is about to be sent. If a change is reported before its result arrives, the result is not kept.

        Returns:
            None: The result of such a request is never kept.
        """
        text = _params_key(method, params)
        if text is None:
            return None
        uri = params.get("uri") if method == READ_RESOURCE else None
        fetch = Fetch(self, method, text, uri if isinstance(uri, str) else "", identity, self._context(identity))
        self._cache.shelf(self._endpoint).fetches.add(fetch)
        return fetch

    def keep_in_steps(self, fetch: Fetch, result: JSON) -> Iterator[None]:
        seconds = _fresh_for(result)
        readers: bytes | None = _PUBLIC
        if seconds > 0 and result.get("cacheScope") != "public":
            readers = self._context(fetch.identity)
            if readers != fetch.context:  # the token was replaced while the request was in flight: sent with either
                readers = None
        if seconds <= 0 or readers is None:
            return
        data = yield from _encode_in_steps(result)
        if data is None or fetch.is_outdated:
            return
        cursor = result.get("nextCursor") if isinstance(METHODS[fetch.method], ListMethod) else None
        following = None if cursor is None else _canonical.encode({**json.loads(fetch.params), "cursor": cursor})
        size = len(data) + len(fetch.params) + len(following or "") + _OVERHEAD_BYTES
        if size <= MOST_BYTES_EACH:
            entry = _Entry(data, trio.current_time() + seconds, size, fetch.uri, following)
            self._cache.put(self._endpoint, (self._variant, fetch.method, fetch.params, readers), entry)

    def close_fetch(self, fetch: Fetch) -> None:
        self._cache.close_fetch(self._endpoint, fetch)

    def note_change(self, method: str, params: JSON) -> None:
        """The backend has sent this notification to some session: discard the results that it is about."""
        if method == RESOURCE_UPDATED:
            uri = params.get("uri")
            # The updated uri may be "a sub-resource of the one that the client subscribed to": discard its parents,
            # too.
            self._cache.discard(
                self._endpoint,
                lambda kept, of: kept == READ_RESOURCE and (not isinstance(uri, str) or uri.startswith(of)),
            )
        elif method in LIST_CHANGED.values():
            self._cache.discard(self._endpoint, lambda kept, of: METHODS[kept].outdated_by == method)

    def discard_results(self, method: str) -> None:
        """Discard every result of this method, so every page of a list."""
        self._cache.discard(self._endpoint, lambda kept, of: kept == method)

    def discard_all(self) -> None:
        self._cache.discard(self._endpoint, lambda kept, of: True)


def _encode_in_steps(result: JSON) -> Generator[None, None, bytes | None]:
    """As JSON; None: it is too large, or nested as deep as the parser goes, which is deeper than the encoder does."""
    pieces: list[bytes] = []
    size = 0
    try:
        for piece in encode_in_steps(_encoder, result):
            if size:
                yield
            pieces.append(piece.encode(*_UTF8))
            size += len(pieces[-1])
            if size > MOST_BYTES_EACH:
                return None
    except RecursionError:
        return None
    return b"".join(pieces)


def _decode_in_steps(text: str) -> Generator[None, None, JSON]:
    if len(text) <= MOST_AT_ONCE:
        whole: JSON = _decoder.decode(text)
        return whole
    result: JSON
    result, _ = yield from decode_in_steps(_decoder, text)
    return result


def _params_key(method: str, params: JSON) -> str | None:
    """The params that decide the result, as a key; None: the result is not kept."""
    if not METHODS.get(method, UNKNOWN).may_be_kept or "inputResponses" in params or "requestState" in params:
        return None
    if params.get("_meta", {}).keys() - _TELLS_NOTHING:
        return None  # the server may use what the caller put there
    try:
        return _canonical.encode({name: value for name, value in params.items() if name != "_meta"})
    except (TypeError, ValueError, RecursionError):
        return None  # params that cannot be encoded: sending them raises the error


def _digest(*parts: str | bytes) -> bytes:
    digest = hashlib.blake2b(key=_SALT, digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def _fresh_for(result: JSON) -> float:
    """s for which a result may be kept; 0: do not keep it."""
    ttl = result.get("ttlMs")
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not ttl > 0:  # `not >`: NaN, too
        return 0.0
    return ttl / 1000 if ttl < LONGEST * 1000 else LONGEST  # compared first: not every int is a float
