"""Connections to origins: TCP the way `trio.open_tcp_stream` does it, and TLS with one context for all of them."""

from __future__ import annotations

import select
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeAlias

import attrs
import trio

from trio_vmcp._http.origin import Origin
from trio_vmcp._http.tcp import TcpStream
from trio_vmcp._http.tls import TlsStream

__all__ = ["ByteStream", "ConnectedStream", "Dial", "TcpDial"]


class ByteStream(Protocol):
    """What a connection needs of a stream. Any `trio.abc.Stream` has it."""

    async def send_all(self, data: bytes) -> None: ...

    async def receive_some(self, max_bytes: int) -> bytes | bytearray: ...


@attrs.frozen(eq=False)
class ConnectedStream:
    """A stream whose connection is made, TLS included.

    Attributes:
        has_news: Whether bytes or an end have arrived that no read has taken. Never blocks.
        close: Closes the connection at once, without TLS's close_notify. Awaits nothing, so it works in a cancelled
            task, too.
    """

    stream: ByteStream
    has_news: Callable[[], bool]
    close: Callable[[], None]


Dial: TypeAlias = Callable[[Origin], Awaitable[ConnectedStream]]
"""Connects, TLS included. Raises OSError, ValueError (of a host that cannot be one) or `trio.BrokenResourceError`;
cancelled, it leaves no socket.
"""


@attrs.define(eq=False)
class TcpDial:
    """Real connections.

    Attributes:
        ssl_context: For every TLS connection; None until the first, which builds it from the platform's trust store.
    """

    ssl_context: ssl.SSLContext | None = attrs.field(default=None, repr=False)
    _building: trio.Lock = attrs.field(factory=trio.Lock, init=False, repr=False)

    async def __call__(self, origin: Origin) -> ConnectedStream:
        if origin.scheme != "https":
            tcp = await _open_tcp(origin.host, origin.port)
            plain = _detached(tcp)
            stream = TcpStream(plain)
            return ConnectedStream(stream, _readability(plain), stream.close)
        tcp, context = await self._connect_and_prepare(origin)
        try:
            tls = TlsStream(tcp, _readability(tcp.socket))
            await tls.do_handshake(context, origin.host)
        except BaseException:
            tcp.socket.close()
            raise
        return ConnectedStream(tls, tls.has_news, tcp.socket.close)

    async def _connect_and_prepare(self, origin: Origin) -> tuple[trio.SocketStream, ssl.SSLContext]:
        """TCP and, for the first of all, the context, side by side: neither needs the other."""
        if self.ssl_context is not None:
            return await _open_tcp(origin.host, origin.port), self.ssl_context
        tcp: trio.SocketStream | None = None
        failed: list[Exception] = []  # kept from the nursery, which would wrap them in a group

        async def prepare() -> None:
            try:
                await self._build_context()
            except (OSError, ValueError) as exc:
                failed.append(exc)

        try:
            async with trio.open_nursery() as both:
                both.start_soon(prepare)
                try:
                    tcp = await _open_tcp(origin.host, origin.port)
                except (OSError, ValueError) as exc:
                    failed.append(exc)
            if failed:
                raise failed[0]
        except BaseException:
            if tcp is not None:
                tcp.socket.close()
            raise
        assert tcp is not None
        assert self.ssl_context is not None
        return tcp, self.ssl_context

    async def _build_context(self) -> None:
        async with self._building:
            if self.ssl_context is None:
                # 20 ms and 830 KiB each. In a thread, since most of it is OpenSSL reading certificates without the GIL.
                self.ssl_context = await trio.to_thread.run_sync(ssl.create_default_context)


async def _open_tcp(host: str, port: int) -> trio.SocketStream:
    """`trio.open_tcp_stream`, but straight to an address: what resolves a name, and lets its addresses race, takes
    twice as long as a connection on the same host.
    """
    family = _family(host)
    if family is None:
        return await trio.open_tcp_stream(host, port)
    connecting = trio.socket.socket(family)
    try:
        await connecting.connect((host, port))
    except BaseException:
        connecting.close()
        raise
    return trio.SocketStream(connecting)


def _family(host: str) -> socket.AddressFamily | None:
    """Of an address; None: it is a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            socket.inet_pton(family, host)
            return family
    return None


def _detached(tcp: trio.SocketStream) -> socket.socket:
    """The socket without Trio's wrapping."""
    wrapped = tcp.socket
    family, kind, protocol = wrapped.family, wrapped.type, wrapped.proto
    plain = socket.socket(family, kind, protocol, fileno=wrapped.detach())
    plain.setblocking(False)
    return plain


def _readability(connected: socket.socket | trio.socket.SocketType) -> Callable[[], bool]:
    """Whether a read would not wait, be it for bytes or for an end."""
    descriptor = connected.fileno()
    if sys.platform == "win32":  # no `poll`, and a `select` that takes any descriptor
        return lambda: bool(select.select([descriptor], [], [], 0)[0])
    # Not `select`, which knows no descriptor over 1023. The registration ends with the descriptor.
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return lambda: bool(poll.poll(0))
