"""TCP for one task at a time: `trio.SocketStream` without its guards against use by several tasks.

A connection belongs to one request, so the guards never find a conflict. They are two context managers made of
generators for every read and write, a fourteenth of the time of a small call; the checkpoint between write and read
takes another fourteenth.
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
    """A stream over a connected, non-blocking socket."""

    _socket: socket.socket

    async def send_all(self, data: bytes) -> None:
        """Checks for cancellation, but lets other tasks run only if the socket is not writable: the read that follows a
        request is a checkpoint.

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
        await trio.lowlevel.checkpoint()  # before the read: meanwhile the bytes may arrive, which saves the wait
        while True:
            try:
                return self._socket.recv(max_bytes)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
            except OSError as exc:
                raise _broken(exc) from exc

    def receive_nowait(self, max_bytes: int) -> bytes:
        """Raises: OSError; `BlockingIOError`: nothing has arrived."""
        return self._socket.recv(max_bytes)

    def close(self) -> None:
        """Close the socket at once. A task that waits for it gets `trio.ClosedResourceError`."""
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()


def _broken(exc: OSError) -> trio.BrokenResourceError | trio.ClosedResourceError:
    if exc.errno in _CLOSED_HERE:
        return trio.ClosedResourceError("the socket was closed here")
    return trio.BrokenResourceError(f"the connection broke: {exc.strerror}")
