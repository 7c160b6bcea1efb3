"""What lets the pages of an allowed origin read our replies. Pure functions.

A browser asks before it sends a request with JSON or with headers of MCP ("CORS-preflight request", Fetch standard,
§3.3), and gives a page only what the reply allows. The request that asks has no credentials.
"""

from __future__ import annotations

from trio_vmcp.serve._asgi import HttpRequest

__all__ = ["cors_headers", "preflight_headers"]

_READABLE = b"Mcp-Session-Id, WWW-Authenticate, Retry-After"
_VERBS = b"GET, POST, DELETE"
_MOST_AGE = b"600"  # s that a browser may go on without asking again


def cors_headers(origin: str) -> list[tuple[bytes, bytes]]:
    """For every reply to a page of this origin, which is allowed."""
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", _READABLE),
        (b"vary", b"Origin"),
    ]


def preflight_headers(request: HttpRequest) -> list[tuple[bytes, bytes]] | None:
    """What the reply adds to a browser that asks whether it may send a request; None: this is no such question."""
    if request.verb != "OPTIONS" or "access-control-request-method" not in request.headers:
        return None
    headers = [(b"access-control-allow-methods", _VERBS), (b"access-control-max-age", _MOST_AGE)]
    wanted = request.headers.get("access-control-request-headers")
    if wanted:  # `Mcp-Param-*` has no end of names, and the checks of each request do not hang on them
        headers.append((b"access-control-allow-headers", wanted.encode("latin-1")))
    return headers
