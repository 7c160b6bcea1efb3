"""An in-memory network: real HTTP/1.1 between clients and scripted backends, no sockets, ruled by a mock clock."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol
from urllib.parse import urlsplit

import attrs
import trio

from trio_vmcp._http.dial import ConnectedStream
from trio_vmcp._http.origin import Origin
from trio_vmcp._http.transport import Http11Transport
from trio_vmcp._nursery import start_clean
from trio_vmcp.testing._servers import open_servers
from trio_vmcp.testing.streams import MemoryStream, memory_connection

__all__ = ["MemoryNetwork", "StreamServer", "open_memory_network"]

DEFAULT_PORTS = {"http": 80, "https": 443}


class StreamServer(Protocol):
    """A server that can be attached to a network; `ScriptedBackend` is one."""

    async def accept(self) -> None:
        """Accept a connection, or raise an OSError."""
        ...

    async def serve_connection(self, stream: trio.abc.Stream) -> None:
        """Serve a connection until it ends. Raises nothing but Cancelled."""
        ...


@attrs.define(eq=False)
class MemoryNetwork:
    """Hosts and the connections to them. Made by `open_memory_network`.

    Attributes:
        connect_latency: s, for every connection attempt.
        connection_attempts: How many there were.
    """

    _nursery: trio.Nursery = attrs.field(alias="nursery", repr=False)
    connect_latency: float = 0.0
    connection_attempts: int = attrs.field(default=0, init=False)
    _servers: dict[tuple[str, int], StreamServer] = attrs.field(factory=dict, init=False, repr=False)
    _clients: set[MemoryStream] = attrs.field(factory=set, init=False, repr=False)

    @property
    def open_connections(self) -> int:
        """Number of connections that their client has not closed. A connection that its server closed or reset counts
        until then.
        """
        return len(self._clients)

    def attach(self, host_or_url: str, server: StreamServer) -> str:
        """Let connections to this host (port 80) or URL go to `server`, and return the URL of its endpoint.

        A server answers on all paths. https is served without TLS.
        """
        url = host_or_url if "://" in host_or_url else f"http://{host_or_url}/mcp"
        parts = urlsplit(url)
        self._servers[parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]] = server
        return url

    async def connect(self, host: str, port: int) -> MemoryStream:
        """A new connection, as a transport makes it.

        Raises:
            OSError: The host is unknown, or nothing accepts connections there.
        """
        self.connection_attempts += 1
        await trio.sleep(self.connect_latency)
        server = self._servers.get((host, port))
        if server is None and any(known == host for known, _ in self._servers):
            raise ConnectionRefusedError(f"nothing listens on port {port} of {host!r}")
        if server is None:
            raise socket.gaierror(socket.EAI_NONAME, f"no host {host!r} in this network")
        await server.accept()
        if self._nursery.cancel_scope.cancel_called:
            raise ConnectionRefusedError("the network is closed")
        # No checkpoint from here on: a client cancelled there would leave an open connection without an owner.
        client, served = memory_connection()
        self._clients.add(client)
        client.on_close(self._clients.discard)
        start_clean(self._nursery, server.serve_connection, served)  # a server does not share its client's contextvars
        return client

    async def dial(self, origin: Origin) -> ConnectedStream:
        """`connect` as the library's transport does it; https goes in the clear."""
        stream = await self.connect(origin.host, origin.port)
        return ConnectedStream(stream, lambda: stream.has_news, stream.close)

    def transport(self) -> Http11Transport:
        """The library's own transport over this network, also for httpx clients."""
        return Http11Transport(dial=self.dial)


@asynccontextmanager
async def open_memory_network(*, connect_latency: float = 0.0) -> AsyncIterator[MemoryNetwork]:
    """A network that lives as long as the block; leaving it cancels the servers' tasks.

    Args:
        connect_latency: s, for every connection attempt.
    """
    async with open_servers() as nursery:
        yield MemoryNetwork(nursery, connect_latency)
