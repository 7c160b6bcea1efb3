"""The built-in HTTP transport: httpx's own, used so that Trio's cancellation cannot wedge it.

- No pool that queues. httpcore's queue of waiting requests loses connections for good when Trio cancels a request
  (httpcore #830, #961, #1093). Here each httpx transport has one request at a time; how many there are at once is
  limited by a CapacityLimiter of ours in front (`_http.HttpLink`).
- Last in, first out. httpcore scans all connections of a pool on every request: with 64 requests in flight over ten
  backends a third of the CPU went there.
- One SSLContext for all: building one blocks the loop for 20 ms and keeps 830 KiB.
- Two faults of that stack stay until it is replaced: a TLS handshake cancelled half-way keeps its socket until garbage
  collection, and httpcore's DEBUG log prints response headers, a backend's session id among them. Keep `httpcore` above
  DEBUG in production.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable

import attrs
import httpx
import trio

__all__ = ["Transports"]

# s. Below the 5 s after which common servers (uvicorn, hypercorn, Node) close an idle connection, so that we let go
# first and no request is written into a connection that is just closing.
_KEEPALIVE_EXPIRY = 4.0
_MOST_IDLE = 20  # connections that one backend may keep open between calls
_CLOSE_TIMEOUT = 1.0  # s, to let go of one connection
_ONE_AT_A_TIME = httpx.Limits(max_connections=None, max_keepalive_connections=1, keepalive_expiry=_KEEPALIVE_EXPIRY)


@attrs.define(eq=False)
class Transports:
    """Makes a transport per backend, with one TLS context for all."""

    _context: ssl.SSLContext | None = attrs.field(default=None, init=False)
    _no_tls: ssl.SSLContext | None = attrs.field(default=None, init=False)

    def make(self, url: str) -> httpx.AsyncBaseTransport:
        context = self._tls() if url.lower().startswith("https:") else self._plain()
        return _Stack(lambda: httpx.AsyncHTTPTransport(verify=context, trust_env=False, limits=_ONE_AT_A_TIME))

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = ssl.create_default_context()  # the platform's trust store
        return self._context

    def _plain(self) -> ssl.SSLContext:
        """For http:// the transport wants a context, too, and would load the trust store into one that is never
        used.
        """
        if self._no_tls is None:
            self._no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return self._no_tls


class _Stack(httpx.AsyncBaseTransport):
    """Transports of one connection each. A request that fails or is cancelled costs its own, and no other."""

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport]) -> None:
        self._make = make
        self._idle: deque[tuple[httpx.AsyncBaseTransport, float]] = deque()  # the newest last, with when it came back
        self._busy: set[httpx.AsyncBaseTransport] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        one = self._idle.pop()[0] if self._idle else self._make()
        self._busy.add(one)
        try:
            response = await one.handle_async_request(request)
        except BaseException:
            await self.drop(one)  # noqa: ASYNC102  # which is shielded, and bounded
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Body(response.stream, self, one)
        return response

    async def take_back(self, one: httpx.AsyncBaseTransport) -> None:
        """Its response was read to the end and is closed, so the connection is good for another."""
        if one in self._busy:  # else the stack was closed meanwhile
            self._busy.discard(one)
            self._idle.append((one, trio.current_time()))
        while self._idle and (
            len(self._idle) > _MOST_IDLE or self._idle[0][1] < trio.current_time() - _KEEPALIVE_EXPIRY
        ):
            await self.drop(self._idle.popleft()[0])

    async def aclose(self) -> None:
        everything = [*self._busy, *(one for one, _ in self._idle)]
        self._idle.clear()
        for one in everything:
            await self.drop(one)

    async def drop(self, one: httpx.AsyncBaseTransport) -> None:
        """Close its connection."""
        self._busy.discard(one)
        with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            await one.aclose()


class _Body(httpx.AsyncByteStream):
    """A response body that gives its transport back when it is closed."""

    def __init__(self, body: httpx.AsyncByteStream, stack: _Stack, one: httpx.AsyncBaseTransport) -> None:
        self._body = body
        self._stack = stack
        self._one = one
        self._chunks: AsyncIterator[bytes] | None = None
        self._ended = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._chunks = self._body.__aiter__()
        return self

    async def __anext__(self) -> bytes:
        assert self._chunks is not None
        try:
            return await self._chunks.__anext__()
        except StopAsyncIteration:
            self._ended = True
            raise

    async def aclose(self) -> None:
        try:
            await self._body.aclose()
        except BaseException:
            await self._stack.drop(self._one)  # noqa: ASYNC102  # which is shielded, and bounded
            raise
        if self._ended:
            await self._stack.take_back(self._one)
        else:
            await self._stack.drop(self._one)
