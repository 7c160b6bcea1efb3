"""A server that answers with any bytes that a test wants, valid HTTP or not: in memory, over TCP, over TLS."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Literal

import attrs
import httpx
import trio
import trustme

from trio_vmcp._http.origin import Origin, origin_of
from trio_vmcp._http.transport import Http11Transport, RawResponse
from trio_vmcp.testing import MemoryNetwork, open_loopback, open_memory_network
from trio_vmcp.testing._servers import open_servers
from trio_vmcp.testing.network import StreamServer
from trio_vmcp.testing.streams import reset

__all__ = [
    "CLOSE",
    "HANG",
    "OK",
    "RESET",
    "Kind",
    "RawServer",
    "Served",
    "answer",
    "authority",
    "client_context",
    "open_served",
    "open_tls_loopback",
    "server_context",
    "until",
]

Kind = Literal["memory", "tcp", "tls"]
CLOSE, RESET, HANG = "close", "reset", "hang"  # the last: nothing more is sent until the client closes
Piece = bytes | float | str | trio.Event  # float: a pause in s; event: waited for


def answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """A valid response."""
    head = b"\r\n".join([b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers])
    return head + b"\r\n\r\n" + body


OK = answer(b"ok")


@attrs.define(eq=False)
class RawServer:
    """A `StreamServer`.

    Attributes:
        answers: The pieces of one answer after the other, over any connection; the last one is repeated.
        requests: Head and body of each request.
        connections: How many were accepted.
        open_connections: How many are open.
        reads_bodies: False: the server answers as soon as it has a head.
    """

    answers: list[tuple[Piece, ...]]
    requests: list[tuple[bytes, bytes]] = attrs.field(factory=list, init=False)
    connections: int = attrs.field(default=0, init=False)
    open_connections: int = attrs.field(default=0, init=False)
    reads_bodies: bool = True

    async def accept(self) -> None:
        await trio.lowlevel.checkpoint()

    async def serve_connection(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        self.open_connections += 1
        try:
            while await self._serve_request(stream):
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.open_connections -= 1
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async def _serve_request(self, stream: trio.abc.Stream) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some(4096)
            if not more:
                return False
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length: ")
        left = int(length.split()[0]) if length and self.reads_bodies else 0
        while len(body) < left:
            body += await stream.receive_some(1 << 16)
        self.requests.append((head, body))
        pieces = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        for piece in pieces:
            if isinstance(piece, bytes):
                await stream.send_all(piece)
            elif isinstance(piece, float):
                await trio.sleep(piece)
            elif isinstance(piece, trio.Event):
                await piece.wait()
            elif piece == HANG:
                while await stream.receive_some(4096):
                    pass
                return False
            elif piece == RESET:
                reset(stream.transport_stream if isinstance(stream, trio.SSLStream) else stream)
                return False
            else:
                with trio.move_on_after(1):
                    await stream.aclose()  # with close_notify, over TLS
                return False
        return True


# Certificates take 0.1 s to make: one authority for the whole run.
authority = trustme.CA()


def server_context(*names: str) -> ssl.SSLContext:
    """A context with a certificate for these names, signed by the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or ("localhost", "127.0.0.1"))).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    """A context that trusts the authority only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


@asynccontextmanager
async def open_tls_loopback(server: StreamServer, context: ssl.SSLContext) -> AsyncIterator[str]:
    """The URL of `server` on this machine, while the block lasts."""

    async def serve(tcp: trio.SocketStream) -> None:
        stream = trio.SSLStream(tcp, context, server_side=True)
        try:
            await stream.do_handshake()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.aclose_forcefully(tcp)
        else:
            await server.serve_connection(stream)

    async with open_servers() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        await nursery.start(partial(trio.serve_listeners, serve, [listener]))
        yield f"https://localhost:{port}/mcp"


@attrs.define(eq=False)
class Served:
    """A transport, and a server behind it."""

    transport: Http11Transport
    server: RawServer
    url: str

    @property
    def origin(self) -> Origin:
        return origin_of(httpx.URL(self.url))

    async def send(self, verb: str = "POST", body: bytes = b"{}", *, may_repeat: bool = False) -> RawResponse:
        head = b"%s /mcp HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (verb.encode(), len(body))
        return await self.transport.send(self.origin, verb, head, body, lambda: None, may_repeat=may_repeat)

    async def ask(self, verb: str = "POST", body: bytes = b"{}") -> bytes:
        """The body of the answer; the response is closed."""
        response = await self.send(verb, body)
        try:
            return await read(response)
        finally:
            response.close()


async def read(response: RawResponse) -> bytes:
    pieces: list[bytes] = []
    while (piece := await response.receive()) is not None:
        assert piece
        pieces.append(piece)
    return b"".join(pieces)


@asynccontextmanager
async def open_served(kind: Kind, *answers: Piece | tuple[Piece, ...], **options: bool) -> AsyncIterator[Served]:
    """At its end the transport is closed, and no connection is left on either side."""
    server = RawServer([one if isinstance(one, tuple) else (one,) for one in answers], **options)
    async with AsyncExitStack() as stack:
        network: MemoryNetwork | None = None
        if kind == "memory":
            network = await stack.enter_async_context(open_memory_network())
            url, transport = network.attach("b.test", server), network.transport()
        elif kind == "tcp":
            url, transport = await stack.enter_async_context(open_loopback(server)), Http11Transport()
        else:
            url = await stack.enter_async_context(open_tls_loopback(server, server_context()))
            transport = Http11Transport(ssl_context=client_context())
        try:
            yield Served(transport, server, url)
        finally:
            transport.close()
        assert 0 == transport.busy_connections
        assert network is None or 0 == network.open_connections
        await until(lambda: not server.open_connections)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the other end of a real socket has noticed."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.001)
