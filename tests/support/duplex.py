"""A duplex client over memory streams, in virtual time, for the tests of `duplex`, `inbox` and `lines`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from support.clients import sole_error
from trio.testing import MemorySendStream, memory_stream_pair, wait_all_tasks_blocked

from trio_vmcp import JSON, BackendRecord, ClientHandlers
from trio_vmcp._client.channels.duplex import DuplexClient, Listens
from trio_vmcp._client.channels.inbox import Inbox, Loss
from trio_vmcp._client.channels.lines import LineLink
from trio_vmcp._client.handlers import Handling
from trio_vmcp._client.server_requests import ServerRequests
from trio_vmcp.testing import ScriptedBackend

LIMIT = 10_000


@attrs.define(eq=False)
class MemoryWire(LineLink):
    """Lines over one memory stream. The end of the stream is the end of the connection."""

    lifetime: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def serve(self, stream: trio.abc.Stream) -> None:
        with self.lifetime:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.write, stream)
                await self.read(stream)
                self.inbox.lose(Loss("closed its stream", "; for a reason"))
                nursery.cancel_scope.cancel()

    async def aclose(self) -> None:
        self.inbox.lose(Loss("was closed"))
        self.lifetime.cancel()


@attrs.define(eq=False)
class Raw:
    """The other end, on which a test writes any lines and reads the client's."""

    stream: trio.abc.Stream
    _rest: bytes = b""

    async def send(self, *messages: JSON | bytes) -> None:
        for message in messages:
            data = message if isinstance(message, bytes) else json.dumps(message).encode()
            await self.stream.send_all(data + b"\n")

    async def answer(self, request: JSON, **result: Any) -> None:
        await self.send({"jsonrpc": "2.0", "id": request["id"], "result": result})

    async def receive(self) -> JSON:
        while b"\n" not in self._rest:
            chunk = await self.stream.receive_some()
            if not chunk:
                raise EOFError
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        message: JSON = json.loads(line)
        return message


@attrs.define(eq=False)
class Pair:
    """Client and server."""

    client: DuplexClient
    wire: MemoryWire
    server: Raw
    nursery: trio.Nursery
    sends: MemorySendStream
    events: list[tuple[str, JSON]] = attrs.field(factory=list)

    async def clog(self) -> None:
        """From now on the pipe is full: a write that has begun does not end, and later writes wait."""
        self.sends.send_all_hook = trio.sleep_forever
        await self.wire.say(b"{}", None)
        await wait_all_tasks_blocked()

    async def close(self) -> None:
        await self.client.aclose(terminate=True)


@asynccontextmanager
async def open_pair(
    *,
    handlers: ClientHandlers | None = None,
    limit: int = LIMIT,
    backend: ScriptedBackend | None = None,
    listens: bool | None = None,
) -> AsyncIterator[Pair]:
    """A client that has not shaken hands, and a raw server; or, with `backend`, a scripted one.

    Args:
        listens: Whether the client listens, in the modern era; None: it cannot.
    """
    near, far = memory_stream_pair()
    inbox = Inbox(backend_id="b", max_message_bytes=limit, max_json_depth=128)
    wire = MemoryWire(inbox)
    events: list[tuple[str, JSON]] = []
    with sole_error():
        async with trio.open_nursery() as nursery:
            client = DuplexClient(
                record=BackendRecord("b", None, "legacy", "", {}, "digest"),
                events=lambda method, params: events.append((method, params)),
                inbox=inbox,
                wire=wire,
                requests=ServerRequests(Handling(handlers or ClientHandlers(), "s", "b"), nursery, 2 * limit),
                listens=None if listens is None else Listens(listens, nursery, (0.5, 60)),
            )
            nursery.start_soon(wire.serve, near)  # noqa: ASYNC113  # it needs no start: lines wait in the queue
            if backend is not None:
                nursery.start_soon(backend.serve_lines, far)
            yield Pair(client, wire, Raw(far), nursery, near.send_stream, events)
            await client.aclose(terminate=True)
            nursery.cancel_scope.cancel()
