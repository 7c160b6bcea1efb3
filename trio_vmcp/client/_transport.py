"""The built-in HTTP transport: httpx's own, used so that Trio's cancellation cannot wedge it.

- No pool limit. httpcore's queue of waiting requests loses connections for good when Trio cancels a request (httpcore
#830, #961,
  #1093), so it must never queue: the limit is a CapacityLimiter of ours, in front of it (`_http.HttpLink`).
- A transport per backend: httpcore's pool scans all its connections on every request.
- One SSLContext for all: building one blocks the loop for 20 ms and keeps 830 KiB.
- Two faults of that stack stay until it is replaced: a TLS handshake cancelled half-way keeps its socket until garbage
collection,
  and httpcore's DEBUG log prints response headers, a backend's session id among them. Keep `httpcore` above DEBUG in
  production.
"""

from __future__ import annotations

import ssl

import attrs
import httpx  # httpx stays the public seam; its pool, which ASYNC127 is about, is never made to queue

__all__ = ["Transports"]

# s. Below the 5 s after which common servers (uvicorn, hypercorn, Node) close an idle connection, so that we let go
# first and no request is written into a connection that is just closing.
_KEEPALIVE_EXPIRY = 4.0
_MOST_IDLE = 20  # connections that one backend may keep open between calls


@attrs.define(eq=False)
class Transports:
    """Makes a transport per backend, with one TLS context for all."""

    _context: ssl.SSLContext | None = attrs.field(default=None, init=False)
    _no_tls: ssl.SSLContext | None = attrs.field(default=None, init=False)

    def make(self, url: str) -> httpx.AsyncBaseTransport:
        return httpx.AsyncHTTPTransport(
            verify=self._tls() if url.lower().startswith("https:") else self._plain(),
            trust_env=False,
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=_MOST_IDLE, keepalive_expiry=_KEEPALIVE_EXPIRY
            ),
        )

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
