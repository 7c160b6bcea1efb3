"""Clients of both eras over one duplex channel of memory streams, in virtual time."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from support.clients import HeardEvents, sole_error
from trio.testing import MemorySendStream, memory_stream_pair, wait_all_tasks_blocked

from trio_vmcp import JSON, BackendRecord, ClientHandlers
from trio_vmcp._client.channels.inbox import Inbox
from trio_vmcp._client.channels.lines import LineChannel
from trio_vmcp._client.handlers import BoundHandlers
from trio_vmcp._client.handshake import HandshakeClient
from trio_vmcp._client.server_requests import ServerRequests
from trio_vmcp._client.stateless import StatelessClient
from trio_vmcp._protocol.jsonrpc import Result
from trio_vmcp._protocol.outcomes import Answer, Loss
from trio_vmcp.testing import ScriptedBackend

LIMIT = 10_000


@attrs.define(eq=False, kw_only=True)
class MemoryChannel(LineChannel):
    """Lines over one memory stream. The end of the stream is the end of the connection."""

    lifetime: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def serve(self, stream: trio.abc.Stream) -> None:
        with self.lifetime:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.write, stream)
                await self.read(stream)
                self.inbox.close(Loss("closed its stream", "; for a reason"))
                nursery.cancel_scope.cancel()

    async def aclose(self, *, terminate: bool) -> None:
        self.inbox.close(Loss("was closed"))
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
    """The two ends. `client` is the one of the handshake era until `greet` says otherwise."""

    handshake: HandshakeClient
    stateless: StatelessClient
    channel: MemoryChannel
    server: Raw
    nursery: trio.Nursery
    sends: MemorySendStream
    sink: HeardEvents
    client: HandshakeClient | StatelessClient = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.client = self.handshake

    @property
    def events(self) -> list[tuple[str, JSON]]:
        return self.sink.events

    async def greet(self, era: str) -> None:
        """Connect in this era, to a backend that speaks it."""
        if era == "legacy":
            await self.handshake.initialize(None)
            return
        outcome = await self.stateless.discover(None)
        assert isinstance(outcome, Answer)
        assert isinstance(outcome.reply, Result)
        self.adopt(outcome.reply.result)

    def adopt(self, result: JSON) -> None:
        """Speak the modern era from now on."""
        self.client = self.stateless
        self.stateless.adopt(result)

    async def clog(self) -> None:
        """From now on the pipe is full: a write that has begun does not end, and later writes wait."""
        self.sends.send_all_hook = trio.sleep_forever
        await self.channel.tell(b"{}", None)
        await wait_all_tasks_blocked()

    async def close(self) -> None:
        await self.client.aclose(terminate=True)


@asynccontextmanager
async def open_pair(
    *,
    handlers: ClientHandlers | None = None,
    limit: int = LIMIT,
    backend: ScriptedBackend | None = None,
    listens: bool = False,
) -> AsyncIterator[Pair]:
    """A client that has not shaken hands, and a raw server; or, with `backend`, a scripted one.

    Args:
        listens: Whether the client of the modern era listens to changes of lists.
    """
    near, far = memory_stream_pair()
    channel = MemoryChannel(
        inbox=Inbox(backend_id="b", max_message_bytes=limit, max_json_depth=128, max_json_values=100_000)
    )
    events = HeardEvents()
    with sole_error():
        async with trio.open_nursery() as nursery:
            requests = ServerRequests(BoundHandlers(handlers or ClientHandlers(), "s", "b"), nursery, 2 * limit)
            stateless = StatelessClient(
                record=BackendRecord("b", None, "modern", "", {}, "digest"),
                channel=channel,
                events=events,
                requests=requests,
                max_pages=100,
                max_tools=100,
                cache=None,
                identity=None,
                nursery=nursery,
                listens=listens,
                retries=(0.5, 60),
            )
            handshake = HandshakeClient(
                record=BackendRecord("b", None, "legacy", "", {}, "digest"),
                channel=channel,
                events=events,
                requests=requests,
                listens=True,
            )
            nursery.start_soon(channel.serve, near)  # noqa: ASYNC113  # it needs no start: what is queued waits for it
            if backend is not None:
                nursery.start_soon(backend.serve_lines, far)
            pair = Pair(handshake, stateless, channel, Raw(far), nursery, near.send_stream, events)
            yield pair
            await pair.close()
            nursery.cancel_scope.cancel()
