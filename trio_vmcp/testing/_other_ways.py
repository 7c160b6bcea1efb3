"""Answers that are not the HTTP response to their request: over HTTP+SSE and over lines (stdio)."""

from __future__ import annotations

from collections.abc import Callable

import h11
import trio

from trio_vmcp.models import JSON
from trio_vmcp.testing.context import ScriptedAnswer
from trio_vmcp.testing.http import Headers, Reply
from trio_vmcp.testing.rpc import encode

__all__ = ["LineAnswer", "LineReply", "PostedAnswer", "read_lines"]


class PostedAnswer(ScriptedAnswer):
    """An answer to a message that was POSTed, on the stream of its session."""

    def __init__(
        self,
        reply: Reply,
        stream: trio.MemorySendChannel[JSON | bytes],
        holds_post: bool,
        change: Callable[[JSON], object] | None,
    ) -> None:
        super().__init__(reply, True, change=change)
        self._to_stream = stream
        self._holds_post = holds_post

    async def accept(self) -> None:
        """Acknowledge the POST (202). The connection is closed, since the handler goes on in its task."""
        if not self._holds_post:
            await self.reply.respond(202, headers=(("connection", "close"),))

    async def notify(self, message: JSON | bytes) -> None:
        self._to_stream.send_nowait(message)
        await trio.lowlevel.checkpoint()

    async def finish(self, response: JSON, status: int = 200) -> None:
        message = response if self.change is None else self.change(response)
        assert isinstance(message, dict | bytes)
        await self.notify(message)
        await self.drop()

    async def drop(self) -> None:
        if self.reply.status is None:
            await self.reply.respond(202)


class LineReply(Reply):
    """The `Reply` of a stream that all answers share, so that faults work on lines, too."""

    def __init__(self, stream: trio.abc.Stream, scope: trio.CancelScope, lock: trio.Lock) -> None:
        super().__init__(h11.Connection(h11.SERVER), stream, scope, outlives_peer=True)
        self._lock = lock

    @property
    def complete(self) -> bool:
        return self.status is not None and not self.cut and not self._lost

    async def respond(self, status: int, body: bytes = b"", headers: Headers = ()) -> None:
        self.status = status
        if body:
            await self.send(body)

    async def respond_raw(self, data: bytes) -> None:
        await self._deliver(data)

    async def send(self, data: bytes) -> None:
        line, sent = data + b"\n", self.written_bytes
        self.written_bytes += len(line)
        await self._deliver_with_fault(line, sent)

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

    async def drop(self) -> None:
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
