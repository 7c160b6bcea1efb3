"""The limits of the front."""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

from trio_vmcp.settings import require

__all__ = ["OPERATOR_PATHS", "ServeSettings"]

# At these paths operators ask; at two of them without the authenticator.
OPERATOR_PATHS = ("/healthz", "/readyz", "/status", "/status.css", "/status.js", "/metrics")
_PATH = re.compile(r"/|(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]+)+", re.ASCII)  # RFC 3986 §3.3, nothing percent-encoded
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%[^\s\]]+)?\]|[^/?#@\[\]:*]+)(?::[0-9]+)?")
_ORIGIN = re.compile(r"null|[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#@*]+")  # RFC 6454 §6.2


def _in_order(values: Iterable[str]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)


@attrs.frozen(kw_only=True)
class ServeSettings:
    """The limits of one front. Durations are seconds.

    Attributes:
        path: Of the MCP endpoint, with a leading slash; served with and without a trailing one. The paths for operators
            (`asgi_app`) are taken.
        allowed_hosts: What the header `Host` may say, compared without port and case. A request without one is
            refused. This keeps web pages from reaching a server on loopback by a name of their own ("DNS rebinding").
        allowed_origins: What the header `Origin` may say (scheme, host and port), beside the host and port of `Host`.
            Pages of these origins may send requests and read the replies (CORS).
        max_body_bytes: Of a request, counted while it arrives.
        keep_alive_interval: s without an event, after which an event stream carries a comment.
        abandoned_after: s that a call of a legacy client goes on after the client is gone. Within them the client may
            resume the stream (`Last-Event-ID`). Calls of modern clients are cancelled at once.
        stream_buffer: Events that are kept of each legacy stream for `Last-Event-ID`, and that wait for a slow reader.
            Over stdio also the requests of the client that may be under way at the same time.
        shutdown_timeout: s that requests have to end once the server shuts down.

    Raises:
        ValueError: Names the setting and the value.
    """

    path: str = "/mcp"
    allowed_hosts: tuple[str, ...] = attrs.field(default=("localhost", "127.0.0.1", "[::1]"), converter=_in_order)
    allowed_origins: tuple[str, ...] = attrs.field(default=(), converter=_in_order)
    max_body_bytes: int = 4 * 1024 * 1024
    keep_alive_interval: float = 15.0
    abandoned_after: float = 30.0
    stream_buffer: int = 256
    shutdown_timeout: float = 10.0

    def __attrs_post_init__(self) -> None:
        path = self.path
        is_path = isinstance(path, str) and _PATH.fullmatch(path) is not None and path not in OPERATOR_PATHS
        require(is_path, "path", path, "a path such as /mcp, and none of an operator's")
        for host in self.allowed_hosts:
            fits = isinstance(host, str) and _HOST.fullmatch(host) is not None
            require(fits, "allowed_hosts", host, "a host such as example.com or [::1]")
        for origin in self.allowed_origins:
            fits = isinstance(origin, str) and _ORIGIN.fullmatch(origin) is not None
            require(fits, "allowed_origins", origin, "an origin such as https://example.com, without a path")
        for name in ("max_body_bytes", "stream_buffer"):
            value = getattr(self, name)
            require(type(value) is int and value >= 1, name, value, "a whole number, 1 or more")
        require(
            _is_seconds(self.keep_alive_interval) and self.keep_alive_interval > 0,
            "keep_alive_interval",
            self.keep_alive_interval,
            "more than 0 s",
        )
        for name in ("abandoned_after", "shutdown_timeout"):
            value = getattr(self, name)
            require(_is_seconds(value) and value >= 0, name, value, "0 s or more")


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
