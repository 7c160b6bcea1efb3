"""TCP for one task at a time: `trio.SocketStream` without what protects several tasks from each other.

A connection belongs to one request. Of what a small call costs, the guards of the general stream (two context managers
made of generators for every read and write) are a fourteenth; and a turn for the others between the two, as much again.
"""

from __future__ import annotations

import errno
import socket

import attrs
import trio

__all__ = ["TcpStream"]

_CLOSED_HERE = frozenset([errno.EBADF, errno.ENOTSOCK])


@attrs.define(eq=False)
class TcpStream:
    """Made over a connected socket that does not block."""

    _socket: socket.socket

    async def send_all(self, data: bytes) -> None:
        """Others have their turn only if this has to wait: who sends a request goes on to read.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        left = memoryview(data)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)
            except OSError as exc:
                raise _broken(exc) from exc

    async def receive_some(self, max_bytes: int) -> bytes:
        """Raises: trio.BrokenResourceError, trio.ClosedResourceError."""
        await trio.lowlevel.checkpoint()  # before the read: by then it may be here, and nothing has to be polled
        while True:
            try:
                return self._socket.recv(max_bytes)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
            except OSError as exc:
                raise _broken(exc) from exc

    def close(self) -> None:
        """At once. Whoever waits on it gets an error."""
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()


def _broken(exc: OSError) -> trio.BrokenResourceError | trio.ClosedResourceError:
    if exc.errno in _CLOSED_HERE:
        return trio.ClosedResourceError("the socket was closed here")
    return trio.BrokenResourceError(f"the connection broke: {exc.strerror}")
