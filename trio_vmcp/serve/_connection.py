"""One connection of a client, by hypercorn's protocols, without two costs of theirs that are half of a request's, and
without requests that a client has left behind.

hypercorn (0.18, `trio/tcp_server.py`) writes a response in three pieces: head, body, and nothing; each takes the lock
and a system call, and the client may wake twice. And it starts a task after each request, which ends the connection
when it stays idle. Here head and body are written together, and idleness is a deadline.

A client may send requests ahead of the responses (RFC 9112 §9.3.2). hypercorn has the application answer them one after
another, also once the client is gone: each `initialize` among them would leave a session.
"""

from __future__ import annotations

import math
from typing import Any

import attrs
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

__all__ = ["Connection"]

MOST_JOINED = 64 * 1024  # bytes of a body; a larger one is not copied to be written together with its head


@attrs.define(eq=False)
class _IdleLimit:
    """Takes the place of hypercorn's task that ends an idle connection: cancels the reading from the client.

    Attributes:
        reading: What it cancels.
        seconds: That a connection may be idle.
    """

    seconds: float
    _context: WorkerContext = attrs.field(alias="context", repr=False)
    reading: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)

    async def restart(self, task_group: object, action: object) -> None:
        """The connection is idle from now on."""
        self.reading.deadline = trio.current_time() + self.seconds
        if self._context.terminated.is_set():
            self.end_if_idle()

    async def stop(self) -> None:
        """A request begins."""
        self.reading.deadline = math.inf

    def end_if_idle(self) -> None:
        if self.reading.deadline < math.inf:
            self.reading.cancel(reason="the server shuts down")


class Connection(TCPServer):
    """Await it to serve the connection to its end."""

    def __init__(self, app: Any, config: Config, context: WorkerContext, stream: Any) -> None:
        super().__init__(self._answer, config, context, ConnectionState({}), stream)
        self._application = app
        self._is_gone = False  # the client, as far as a write has shown
        self._head = b""  # of a response whose body comes next
        self.idle_task: Any = _IdleLimit(config.keep_alive_timeout, context)

    def end_if_idle(self) -> None:
        self.idle_task.end_if_idle()

    async def _answer(self, scope: Any, receive: Any, send: Any, sync_spawn: Any, call_soon: Any) -> None:
        if not self._is_gone:
            await self._application(scope, receive, send, sync_spawn, call_soon)

    async def protocol_send(self, event: Event) -> None:
        if not isinstance(event, RawData):
            self._is_gone |= isinstance(event, Closed)
            await super().protocol_send(event)
        elif _announces_body(event.data):
            self._head = event.data
        else:
            head, self._head = self._head, b""
            if len(event.data) <= MOST_JOINED:
                await self._write(head + event.data)
            else:
                await self._write(head)
                await self._write(event.data)

    async def _write(self, data: bytes) -> None:
        if not data or self._is_gone:
            return
        async with self.send_lock:
            try:
                with trio.CancelScope(shield=True):
                    await self.stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._is_gone = True
                await self.protocol.handle(Closed())

    async def _read_data(self) -> None:
        with self.idle_task.reading as reading:
            await super()._read_data()
        if reading.cancelled_caught:
            await self.protocol.handle(Closed())


def _announces_body(data: bytes) -> bool:
    """Whether these bytes are the head of a response with `Content-Length`: hypercorn writes more behind it at once, if
    only nothing. The head of a stream has none, and must not wait for its first event.
    """
    return data.startswith(b"HTTP/1.1 ") and b"\r\ncontent-length: " in data
