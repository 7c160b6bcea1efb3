"""stdin and stdout as streams of Trio, for a server of one client.

They are read and written in threads. Trio's own streams would make them non-blocking, for all processes that share the
open file, the shell included; and a file cannot be waited for (`epoll_ctl` of one is EPERM).
"""

from __future__ import annotations

import os
from typing import TypeAlias

import attrs
import trio

__all__ = ["Streams", "open_standard_streams"]

CHUNK = 64 * 1024
Streams: TypeAlias = tuple[trio.abc.ReceiveStream, trio.abc.SendStream]


@attrs.define(eq=False)
class _Input(trio.abc.ReceiveStream):
    _file: int

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        # A read that is abandoned goes on until the process ends.
        try:
            return await trio.to_thread.run_sync(os.read, self._file, max_bytes or CHUNK, abandon_on_cancel=True)
        except OSError as error:
            raise trio.BrokenResourceError("the client cannot be read") from error

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class _Output(trio.abc.SendStream):
    _file: int

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await trio.to_thread.run_sync(_write_all, self._file, bytes(data), abandon_on_cancel=True)
        except OSError as error:
            raise trio.BrokenResourceError("the client has closed its end") from error

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def open_standard_streams() -> Streams:
    """From the client, and to it. From now on, what else is written to stdout goes to stderr: a line that is no message
    would break the client ("The server MUST NOT write anything to its stdout that is not a valid MCP message", MCP
    2025-11-25, transports).
    """
    output = os.dup(1)
    os.dup2(2, 1)
    return _Input(0), _Output(output)


def _write_all(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
