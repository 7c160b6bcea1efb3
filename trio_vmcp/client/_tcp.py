"""TCP for one task at a time: `trio.SocketStream` without what protects several tasks from each other.

A connection belongs to one request. Of what a small call costs, the guards of the general stream (two context managers
made of generators for every read and write) are a fourteenth.
"""

from __future__ import annotations

import errno

import attrs
import trio

__all__ = ["TcpStream"]

_CLOSED_HERE = frozenset([errno.EBADF, errno.ENOTSOCK])


@attrs.define(eq=False)
class TcpStream:
    """Made over a connected socket, which whoever made it closes."""

    _socket: trio.socket.SocketType

    async def send_all(self, data: bytes) -> None:
        """Raises: trio.BrokenResourceError, trio.ClosedResourceError."""
        try:
            sent = await self._socket.send(data)
            while sent < len(data):
                sent += await self._socket.send(memoryview(data)[sent:])
        except OSError as exc:
            raise _broken(exc) from exc

    async def receive_some(self, max_bytes: int) -> bytes:
        """Raises: trio.BrokenResourceError, trio.ClosedResourceError."""
        try:
            return await self._socket.recv(max_bytes)
        except OSError as exc:
            raise _broken(exc) from exc


def _broken(exc: OSError) -> trio.BrokenResourceError | trio.ClosedResourceError:
    if exc.errno in _CLOSED_HERE:
        return trio.ClosedResourceError("the socket was closed here")
    return trio.BrokenResourceError(f"the connection broke: {exc.strerror}")
