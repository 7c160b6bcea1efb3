"""Counts executed calls outside of the servers, since a killed server would take its count along.

A counted call makes its server fetch a page here that has the name of the call.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

__all__ = ["Ledger", "open_ledger"]

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 4\r\nConnection: close\r\n\r\nseen"
MOST_REQUEST_BYTES = 64 * 1024


@attrs.define(eq=False)
class Ledger:
    """How often each page was fetched.

    Attributes:
        visits: By the page's name.
    """

    visits: Counter[str] = attrs.field(factory=Counter[str], init=False)
    _origin: str = attrs.field(default="", init=False)
    _held: set[str] = attrs.field(factory=set, init=False)
    _visited: defaultdict[str, trio.Event] = attrs.field(factory=lambda: defaultdict(trio.Event), init=False)

    def url(self, name: str, *, held: bool = False) -> str:
        """The page's address.

        Args:
            held: The page is never answered, so that the server waits in this call until it is killed.
        """
        if held:
            self._held.add(name)
        return f"{self._origin}/{name}"

    async def visited(self, name: str) -> None:
        await self._visited[name].wait()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self._origin = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._answer, [listener])
            task_status.started()

    async def _answer(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                head = bytearray()
                while b"\r\n\r\n" not in head:
                    received = await stream.receive_some()
                    if not received or len(head) > MOST_REQUEST_BYTES:
                        return
                    head += received
                name = head.split(b" ", 2)[1].decode().removeprefix("/")
                self.visits[name] += 1
                self._visited[name].set()
                if name in self._held:
                    await stream.receive_some()  # the end, when the server dies
                else:
                    await stream.send_all(ANSWER)
            except trio.BrokenResourceError:
                return


@asynccontextmanager
async def open_ledger() -> AsyncIterator[Ledger]:
    ledger = Ledger()
    async with trio.open_nursery() as nursery:
        await nursery.start(ledger.serve)
        yield ledger
        nursery.cancel_scope.cancel()
