"""Which `Host` and `Origin` may reach the front. Pure functions.

A page of any site may send requests to a server on loopback, and by a host name of its own that it lets point there
("DNS rebinding"): "servers MUST validate the Origin header" (MCP 2025-11-25 and 2026-07-28, transports).
"""

from __future__ import annotations

import functools
from urllib.parse import urlsplit

__all__ = ["host_problem", "origin_problem"]

_DEFAULT_PORTS = {"http": 80, "https": 443}
_MOST_SHOWN = 128


@functools.lru_cache(maxsize=64)  # clients send the same few texts with every request
def host_problem(host: str | None, allowed: tuple[str, ...]) -> str | None:
    """Why a request for this `Host` is refused; None: it is not.

    Args:
        host: The header; None: absent, or repeated.
        allowed: Names, compared without port and case.
    """
    if host is None:
        return "a request needs one Host header"
    name = _without_port(host)
    if name.lower() in {_without_port(each).lower() for each in allowed}:
        return None
    return f"the host {name[:_MOST_SHOWN]!r} is not served here (allowed_hosts)"


def origin_problem(origin: str | None, host: str, allowed: tuple[str, ...]) -> str | None:
    """Why a request from this `Origin` is refused; None: it is not.

    Args:
        origin: The header; None: absent, as from programs.
        host: The header `Host`: pages of the same host and port may send requests. Where both leave out the port, it is
            the same, whatever the scheme is: a proxy may have ended TLS before us.
        allowed: Whole origins: scheme, host and port.
    """
    if origin is None or origin.lower() in {each.lower() for each in allowed}:
        return None
    problem = f"the origin {origin[:_MOST_SHOWN]!r} may not send requests (allowed_origins)"
    try:
        parts = urlsplit(origin)
        here = urlsplit(f"{parts.scheme}://{host}")
        same = parts.hostname == here.hostname and _port(parts.scheme, parts.port) == _port(here.scheme, here.port)
    except ValueError:
        return problem
    return None if same and parts.hostname and parts.scheme in _DEFAULT_PORTS else problem


def _port(scheme: str, port: int | None) -> int | None:
    return _DEFAULT_PORTS.get(scheme) if port is None else port


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    has_port = colon and port.isdigit() and (":" not in name or name.endswith("]"))
    return name if has_port else host
