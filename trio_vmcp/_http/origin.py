"""Origins (RFC 9110 §4.3.1): which of them a URL connects to, and how an error text may name one."""

from __future__ import annotations

import attrs
import httpx

__all__ = ["Origin", "origin_of", "shown_origin"]

MOST_PORT = 65535

_PORTS = {"http": 80, "https": 443}


@attrs.frozen(cache_hash=True)
class Origin:
    """Scheme, host and port. Requests of one origin may share a connection.

    Attributes:
        host: As DNS takes it, without the brackets of an IPv6 address.
    """

    scheme: str
    host: str
    port: int


def origin_of(url: httpx.URL) -> Origin:
    """Where to connect for a URL.

    Raises:
        httpx.UnsupportedProtocol: It is neither http nor https.
        httpx.InvalidURL: There is no such port.
    """
    scheme, port = url.scheme, url.port
    if scheme not in _PORTS:
        raise httpx.UnsupportedProtocol(f"{scheme!r} is neither 'http' nor 'https'")
    if port is not None and not 0 < port <= MOST_PORT:  # the resolver would take it modulo 65536
        raise httpx.InvalidURL(f"port {port} is not in 1–{MOST_PORT}")
    return Origin(scheme, url.raw_host.decode("ascii"), port or _PORTS[scheme])


def shown_origin(url: httpx.URL) -> str:
    """The URL's origin for an error text: without userinfo, path and query, which may hold secrets."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"
