"""One backend and one client of it over each channel and era, so that a rule is tested once and holds everywhere.

```python
@EVERY_CHANNEL
async def test_…(channel: Channel, autojump_clock: MockClock) -> None:
    backend = channel.backend()
    async with channel.open_client(backend) as client:
        await call(client)
```

Nothing here is real: HTTP goes over an in-memory network, a child process is a task (`memory_processes`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import attrs
import pytest
import trio
from support.clients import Bench, echo_backend, open_bench
from support.memory_processes import MemoryProcess, ProcessTable, Program, memory_processes
from trio.testing import wait_all_tasks_blocked

from trio_vmcp import JSON, Backend, Identity, Session, open_session_factory
from trio_vmcp._http.dial import ConnectedStream
from trio_vmcp._http.origin import Origin
from trio_vmcp._http.transport import Http11Transport
from trio_vmcp.connector import BackendClient
from trio_vmcp.testing import MemoryNetwork, ScriptedBackend, open_memory_network

__all__ = [
    "ANSWERS",
    "CHANNELS",
    "EVERY_ANSWER",
    "EVERY_CHANNEL",
    "EVERY_LEGACY_CHANNEL",
    "EVERY_MODERN_ANSWER",
    "EVERY_MODERN_CHANNEL",
    "EVERY_SHARED_CHANNEL",
    "LEGACY_CHANNELS",
    "MODERN_CHANNELS",
    "SHARED_CHANNELS",
    "Channel",
    "Meter",
    "notification",
]

URL = "http://b.test/mcp"
COMMAND = "b"


@attrs.frozen
class Channel:
    """How messages get to a backend and back.

    Attributes:
        transport: The name in `Backend.transport`.
        answers: The form of a response over streamable HTTP. What a backend says beside an answer needs "sse".
    """

    transport: Literal["streamable-http", "sse", "stdio"]
    era: Literal["legacy", "modern"]
    answers: Literal["json", "sse"] = "sse"

    def __str__(self) -> str:
        form = "-json" if self.answers == "json" else ""
        name = {"streamable-http": f"http{form}", "sse": "http+sse", "stdio": "stdio"}[self.transport]
        return f"{name}-{self.era}"

    @property
    def is_modern(self) -> bool:
        return self.era == "modern"

    @property
    def closes_streams(self) -> bool:
        """A request is given up by the end of its response, and not by a notification."""
        return self.is_modern and self.transport == "streamable-http"

    def backend(self, **options: Any) -> ScriptedBackend:
        """A backend that speaks this way, with the tools of `echo_backend`."""
        transport = "sse" if self.transport == "sse" else "streamable-http"
        return echo_backend(self.era, self.answers, **{"transport": transport, **options})

    @asynccontextmanager
    async def open_client(
        self, backend: ScriptedBackend, *, identity: Identity | None = None, **options: Any
    ) -> AsyncIterator[BackendClient]:
        """One connected client; see `open_bench` for the options."""
        async with self.open_bench(backend, **options) as bench:
            yield await bench.connect(identity=identity)

    @asynccontextmanager
    async def open_bench(
        self, backend: ScriptedBackend, *, meter: Meter | None = None, **options: Any
    ) -> AsyncIterator[Bench]:
        """A connector for one scripted backend. At the end no connection, process or backend session is left, and
        nothing broke in the backend.

        Args:
            meter: Counts what the backend sends and the client takes in, and slows the backend down like a full pipe.
            options: As for `clients.open_bench`.
        """
        open_way = self._open_process if self.transport == "stdio" else self._open_network
        async with open_way(backend, meter) as (transport, configured):
            configured |= {"era": self.era, "transport_name": self.transport}
            async with open_bench(transport, **configured, **options) as bench:
                yield bench
        await wait_all_tasks_blocked()
        assert [] == backend.errors
        assert {} == backend.sessions

    @asynccontextmanager
    async def open_session(
        self, backend: ScriptedBackend, *, configured: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncIterator[Session]:
        """A session over this backend alone, with the id "b". At the end no connection, process or backend session is
        left.

        Args:
            configured: Further fields of its `Backend`.
            options: As for `open_session_factory`.
        """
        async with (
            self.open_way(backend, configured) as (transport, entry),
            open_session_factory(transport=transport, **options) as factory,
            factory.open_session([entry]) as session,
        ):
            yield session
        await wait_all_tasks_blocked()
        assert [] == backend.errors
        assert {} == backend.sessions

    @asynccontextmanager
    async def open_way(
        self, backend: ScriptedBackend, configured: Mapping[str, Any] | None = None
    ) -> AsyncIterator[tuple[Http11Transport | None, Backend]]:
        """The way to this backend: for `open_session_factory(transport=…)`, and for its `make_session`."""
        open_way = self._open_process if self.transport == "stdio" else self._open_network
        async with open_way(backend, None) as (transport, where):
            fields = {"transport": self.transport, "era": self.era, **where, **(configured or {})}
            yield transport, Backend("b", **fields)

    @asynccontextmanager
    async def _open_network(
        self, backend: ScriptedBackend, meter: Meter | None
    ) -> AsyncIterator[tuple[Http11Transport, dict[str, Any]]]:
        async with open_memory_network() as network:
            network.attach(URL, backend if meter is None else _MeteredServer(backend, meter))
            transport = Http11Transport(dial=network.dial if meter is None else _MeteredDial(network, meter))
            yield transport, {"url": URL}
            await transport.aclose()
            await wait_all_tasks_blocked()
            assert 0 == network.open_connections

    @asynccontextmanager
    async def _open_process(
        self, backend: ScriptedBackend, meter: Meter | None
    ) -> AsyncIterator[tuple[None, dict[str, Any]]]:
        async def main(process: MemoryProcess, pipes: trio.abc.Stream) -> int:
            await backend.serve_lines(pipes if meter is None else _Served(pipes, meter))
            return 0

        table = ProcessTable() if meter is None else _MeteredTable(meter=meter)
        program = Program(main=main, manners="polite", is_there=lambda: True, says=lambda env: "")
        table.programs[COMMAND] = program
        with memory_processes(table):
            async with table.running_in_virtual_time(on_end=lambda process: None):
                yield None, {"url": "", "command": COMMAND}
                await wait_all_tasks_blocked()
                assert () == table.alive


CHANNELS = (
    Channel("streamable-http", "legacy"),
    Channel("streamable-http", "modern"),
    Channel("sse", "legacy"),
    Channel("stdio", "legacy"),
    Channel("stdio", "modern"),
)
LEGACY_CHANNELS = tuple(channel for channel in CHANNELS if not channel.is_modern)
MODERN_CHANNELS = tuple(channel for channel in CHANNELS if channel.is_modern)
ANSWERS = (*CHANNELS, Channel("streamable-http", "legacy", "json"), Channel("streamable-http", "modern", "json"))

# Channels that have one stream for all answers.
SHARED_CHANNELS = tuple(channel for channel in CHANNELS if channel.transport != "streamable-http")

EVERY_CHANNEL = pytest.mark.parametrize("channel", CHANNELS, ids=str)
EVERY_ANSWER = pytest.mark.parametrize("channel", ANSWERS, ids=str)  # also those that are one JSON object
EVERY_MODERN_ANSWER = pytest.mark.parametrize("channel", [c for c in ANSWERS if c.is_modern], ids=str)
EVERY_LEGACY_CHANNEL = pytest.mark.parametrize("channel", LEGACY_CHANNELS, ids=str)
EVERY_MODERN_CHANNEL = pytest.mark.parametrize("channel", MODERN_CHANNELS, ids=str)
EVERY_SHARED_CHANNEL = pytest.mark.parametrize("channel", SHARED_CHANNELS, ids=str)


def notification(method: str, **params: Any) -> JSON:
    return {"jsonrpc": "2.0", "method": method, "params": params}


@attrs.define(eq=False)
class Meter:
    """Counts the bytes from a backend to its client, and holds the backend up while too many are on their way.

    Attributes:
        buffer_bytes: So much a backend may be ahead of its client: what a pipe of Linux holds.
        taken: Bytes that the client has read so far, over all connections.
    """

    buffer_bytes: int = 64 * 1024
    taken: int = attrs.field(default=0, init=False)
    _on_their_way: int = attrs.field(default=0, init=False)
    _held_up: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)

    async def sent(self, size: int) -> None:
        """Count what the backend has sent, and wait while the buffers are full."""
        self._on_their_way += size
        while self._on_their_way > self.buffer_bytes:
            await self._held_up.park()

    def read(self, size: int) -> None:
        """Count what the client has read."""
        self.taken += size
        self._on_their_way = max(self._on_their_way - size, 0)
        self._held_up.unpark_all()

    def closed(self) -> None:
        """A connection has ended: nothing of it is on its way any more."""
        self._on_their_way = 0
        self._held_up.unpark_all()


@attrs.define(eq=False)
class _Served(trio.abc.Stream):
    """The backend's end of a connection."""

    inner: trio.abc.Stream
    meter: Meter

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.inner.send_all(data)
        await self.meter.sent(len(data))

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.inner.aclose()


@attrs.define(eq=False)
class _Read(trio.abc.ReceiveStream):
    """The client's end of a connection, as far as it is read from."""

    inner: trio.abc.ReceiveStream
    meter: Meter

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self.inner.receive_some(max_bytes)
        self.meter.read(len(data))
        return data

    async def aclose(self) -> None:
        self.meter.closed()
        await self.inner.aclose()


@attrs.define(eq=False)
class _MeteredServer:
    """A backend on a network."""

    backend: ScriptedBackend
    meter: Meter

    async def accept(self) -> None:
        await self.backend.accept()

    async def serve_connection(self, stream: trio.abc.Stream) -> None:
        await self.backend.serve_connection(_Served(stream, self.meter))


@attrs.define(eq=False)
class _MeteredDial:
    """The way of a transport to that network."""

    network: MemoryNetwork
    meter: Meter

    async def __call__(self, origin: Origin) -> ConnectedStream:
        stream = await self.network.connect(origin.host, origin.port)

        def close() -> None:
            self.meter.closed()
            stream.close()

        return ConnectedStream(trio.StapledStream(stream, _Read(stream, self.meter)), lambda: stream.has_news, close)


@attrs.define(eq=False)
class _MeteredTable(ProcessTable):
    """A backend as a process."""

    meter: Meter = attrs.field(kw_only=True)

    async def open_process(self, command: Sequence[str], *, env: Mapping[str, str], **options: object) -> MemoryProcess:
        process = await super().open_process(command, env=env, **options)
        process.stdout = _Read(process.stdout, self.meter)
        return process
