"""Origins (RFC 9110 §4.3.1): which of them a URL connects to, and how an error text may name one."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import httpx

__all__ = ["Origin", "host_header", "http_url", "origin_of", "shown_origin", "within_origin"]

MOST_PORT = 65535

_MOST_KNOWN = 256
_PORTS = {"http": 80, "https": 443}
# The end of the host in the URL of a unix socket, behind the path in hexadecimal: no such name exists (RFC 6761 §6.4),
# so another transport than this one connects to nothing.
_SOCKET = b".unix-socket.invalid"


class Origin(NamedTuple):
    """Scheme, host and port. Requests of one origin may share a connection. A tuple, since each request looks it up
    several times: the hash of one is made in C.

    Attributes:
        scheme: "http", "https", or "unix" for HTTP over a unix socket.
        host: As the resolver takes it, without the brackets of an IPv6 address, and with its zone: "fe80::1%eth0". The
            path of a unix socket.
    """

    scheme: str
    host: str
    port: int


@lru_cache(maxsize=_MOST_KNOWN)  # sessions of one process have the same backends; to parse a URL takes 50 µs
def http_url(url: str) -> httpx.URL:
    """The URL for requests. One of a unix socket, as VS Code writes it (`unix:///path/to/socket#/mcp`), becomes one of
    http with a host that stands for the socket; `origin_of` and the other functions here know it.

    Raises:
        httpx.InvalidURL: It is no URL.
    """
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return httpx.URL(url)
    path = os.fsencode(unquote(parts.path)).hex()
    return httpx.URL(f"http://{path}{_SOCKET.decode()}/{parts.fragment.removeprefix('/')}")


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
    socket = _socket_path(url)
    if socket:
        return _known("unix", socket, 0)
    address, zone = _without_zone(url.raw_host)
    if zone:  # "%25eth0" (RFC 6874 §2); "%eth0" is what people copy from other tools (§3)
        zone = b"%" + unquote(zone.removeprefix(b"%25").removeprefix(b"%").decode("ascii")).encode()
    return _known(scheme, (address + zone).decode(), port or _PORTS[scheme])


@lru_cache(maxsize=_MOST_KNOWN)
def _known(scheme: str, host: str, port: int) -> Origin:
    """The same object each time: what is looked up by origin, several times for each request, is found by identity."""
    return Origin(scheme, host, port)


def host_header(url: httpx.URL) -> bytes:
    """The value of `Host`, without the zone of an address, which means something on this machine only (RFC 6874 §4)."""
    if _socket_path(url):
        return b"localhost"
    address, zone = _without_zone(url.raw_host)
    return url.netloc.replace(address + zone, address) if zone else url.netloc


def within_origin(url: httpx.URL, reference: str) -> httpx.URL | None:
    """The URL that a server means by a reference in its answer to `url`; None: it is of another origin, where the
    headers of the user must not go (RFC 9110 §15.4). A server does not know the zone of its address, and on a unix
    socket it knows itself as the `Host` of the request.

    Raises:
        httpx.InvalidURL: It is no URL.
    """
    target = url.join(reference)
    # Not `host`, which decodes IDNA and raises UnicodeError where that fails.
    if (target.scheme, target.port) != (url.scheme, url.port):
        return None
    if target.raw_host == url.raw_host:
        return target
    address, zone = _without_zone(url.raw_host)
    is_meant = target.raw_host == (address if zone else host_header(url))  # the latter: on a unix socket
    return url.copy_with(raw_path=target.raw_path) if is_meant else None


def _socket_path(url: httpx.URL) -> str:
    """The path of the unix socket that a URL of `http_url` stands for; empty: it stands for none."""
    if not url.raw_host.endswith(_SOCKET):
        return ""
    try:
        return os.fsdecode(bytes.fromhex(url.raw_host.removesuffix(_SOCKET).decode()))
    except ValueError:
        return ""


def _without_zone(host: bytes) -> tuple[bytes, bytes]:
    """An IPv6 address and its zone, as they stand in a URL; no zone: empty. No other host has both signs."""
    address, sign, zone = host.partition(b"%")
    return (address, sign + zone) if sign and b":" in address else (host, b"")


def shown_origin(url: httpx.URL) -> str:
    """The URL's origin for an error text: without userinfo, path and query, which may hold secrets."""
    socket = _socket_path(url)
    return f"unix://{socket}" if socket else f"{url.scheme}://{url.netloc.decode('ascii')}"
