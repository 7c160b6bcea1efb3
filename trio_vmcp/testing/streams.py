"""In-memory streams that can be reset, like TCP's."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import attrs
import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_pair

__all__ = ["MemoryStream", "memory_connection", "reset"]


@attrs.define(eq=False)
class _Link:
    """State that the two ends of a connection share."""

    was_reset: bool = False
    open_ends: int = 2
    unread: list[int] = attrs.field(factory=lambda: [0, 0])  # bytes sent by each end that the other has not read


@attrs.define(eq=False)
class MemoryStream(trio.abc.Stream):
    """One end of an in-memory connection. Buffers are unbounded: a send never waits for the other end to read."""

    _inner: trio.StapledStream[MemorySendStream, MemoryReceiveStream] = attrs.field(alias="inner", repr=False)
    _link: _Link = attrs.field(alias="link", repr=False)
    _end: int = attrs.field(alias="end", repr=False)  # 0 or 1: which of the two
    _on_close: Callable[[MemoryStream], None] | None = attrs.field(default=None, init=False, repr=False)
    _closed: bool = attrs.field(default=False, init=False)

    def on_close(self, hook: Callable[[MemoryStream], None]) -> None:
        """Call `hook` once, when this end is closed or reset by its owner."""
        self._on_close = hook

    @property
    def has_news(self) -> bool:
        """Whether the other end has sent bytes that were not read, or closed or reset the connection; for a socket,
        `poll` tells.
        """
        return self._link.was_reset or self._link.open_ends < 2 or self._link.unread[1 - self._end] > 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)
        self._link.unread[self._end] += len(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await self._inner.receive_some(max_bytes)
        self._link.unread[1 - self._end] -= len(data)
        if not data and self._link.was_reset:
            raise trio.BrokenResourceError("connection reset by peer")
        return bytes(data)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._link.open_ends -= 1
            self._inner.send_stream.close()
            self._inner.receive_stream.close()
            if self._on_close is not None:
                self._on_close(self)

    def reset(self) -> None:
        """Close this end as with a TCP reset: the other end reads the bytes sent so far, then its reads fail."""
        self._link.was_reset = True
        self.close()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


def memory_connection() -> tuple[MemoryStream, MemoryStream]:
    """The two ends of a new connection."""
    link = _Link()
    one, other = memory_stream_pair()
    return MemoryStream(one, link, 0), MemoryStream(other, link, 1)


def reset(stream: trio.abc.Stream) -> None:
    """Reset a connection, unless it is closed already. A pair of pipes has no reset: they end when they are closed.

    Raises:
        TypeError: The stream is neither in-memory nor TCP nor a pair of pipes.
    """
    if isinstance(stream, MemoryStream):
        stream.reset()
    elif isinstance(stream, trio.SocketStream):
        if stream.socket.fileno() >= 0:
            # A linger time of 0 makes close() send RST.
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()
    elif not isinstance(stream, trio.StapledStream):
        raise TypeError(f"cannot reset a {type(stream).__name__}")
