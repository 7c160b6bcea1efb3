"""The limits of the front."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from trio_vmcp.settings import require

__all__ = ["ServeSettings"]


def _in_order(values: Iterable[str]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)


@attrs.frozen(kw_only=True)
class ServeSettings:
    """The limits of one front. Durations are seconds.

    Attributes:
        path: Of the MCP endpoint, with a leading slash; served with and without a trailing one.
        allowed_hosts: What the header `Host` may say, without port, compared without case. A request without one is
            refused. This keeps web pages from reaching a server on loopback by a name of their own ("DNS rebinding").
        allowed_origins: What the header `Origin` may say (scheme, host and port), beside the host and port of `Host`.
            Pages of these origins may send requests and read the replies (CORS).
        max_body_bytes: Of a request, counted while it arrives.
        keep_alive_interval: s without an event, after which an event stream carries a comment.
        abandoned_after: s that a call of a legacy client goes on after the client is gone. Within them the client may
            resume the stream (`Last-Event-ID`). Calls of modern clients are cancelled at once.
        stream_buffer: Events that are kept of each legacy stream for `Last-Event-ID`, and that wait for a slow reader.
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
        is_path = isinstance(self.path, str) and self.path.startswith("/") and not self.path[1:].endswith("/")
        require(is_path and not {"?", "#"} & set(self.path), "path", self.path, "a path such as /mcp")
        for name in ("allowed_hosts", "allowed_origins"):
            value = getattr(self, name)
            require(all(isinstance(each, str) and each for each in value), name, value, "several texts")
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
