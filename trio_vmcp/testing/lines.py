"""One JSON-RPC message a line, as over stdio: answers and replies of a scripted backend on a stream that all share."""

from __future__ import annotations

from collections.abc import Callable

import h11
import trio

from trio_vmcp.models import JSON
from trio_vmcp.testing.context import ScriptedAnswer
from trio_vmcp.testing.http import Headers, Reply
from trio_vmcp.testing.rpc import encode

__all__ = ["LineAnswer", "LineReply", "read_lines"]


class LineReply(Reply):
    """The `Reply` of a stream that all answers share, so that faults work on lines, too."""

    def __init__(self, stream: trio.abc.Stream, scope: trio.CancelScope, lock: trio.Lock) -> None:
        super().__init__(h11.Connection(h11.SERVER), stream, scope, outlives_peer=True)
        self._lock = lock

    @property
    def complete(self) -> bool:
        return self.status is not None and not self.cut and not self._lost

    async def respond(self, status: int, body: bytes = b"", headers: Headers = ()) -> None:
        self._set_status(status)
        if body:
            await self.send(body)

    async def respond_raw(self, data: bytes) -> None:
        await self._deliver(data)

    async def send(self, data: bytes) -> None:
        await self._deliver_with_fault(data + b"\n")

    async def hang(self) -> None:
        await trio.sleep_forever()

    async def _deliver(self, data: bytes) -> None:
        async with self._lock:
            await super()._deliver(data)


class LineAnswer(ScriptedAnswer):
    """An answer in one line; each notification ahead of it is one line, too."""

    async def notify(self, message: JSON | bytes) -> None:
        await self.reply.send(encode(message))

    async def finish(self, response: JSON, status: int = 200) -> None:
        message = response if self.change is None else self.change(response)
        await self.reply.respond(status, encode(message))

    async def end_without_response(self) -> None:
        await trio.lowlevel.checkpoint()


async def read_lines(stream: trio.abc.ReceiveStream, take: Callable[[bytes], None]) -> None:
    """Pass each line to `take`, until the other end closes the stream."""
    line = bytearray()
    try:
        while chunk := await stream.receive_some():
            *ended, rest = chunk.split(b"\n")
            for piece in ended:
                line += piece
                take(bytes(line))
                line = bytearray()
            line += rest
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return
