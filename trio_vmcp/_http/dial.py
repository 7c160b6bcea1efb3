"""Connections to origins: TCP as `trio.open_tcp_stream` makes them, and TLS with one context for all of them."""

from __future__ import annotations

import errno
import os
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
from trio_vmcp._http.proxy import Proxy
from trio_vmcp._http.tcp import TcpStream
from trio_vmcp._http.tls import TlsStream
from trio_vmcp._nursery import start_task

__all__ = ["ByteStream", "ConnectedStream", "Dial", "TcpDial"]

# s of silence before the first probe, s between probes, and how many: a dead peer is found after two minutes. Routers
# forget a silent connection after five and more (RFC 5382 §5: two hours).
PROBE_AFTER, PROBE_INTERVAL, PROBES = 60, 15, 4

_UNDER_WAY = frozenset([errno.EINPROGRESS, errno.EWOULDBLOCK])  # what a non-blocking connect says; the second: Windows


class ByteStream(Protocol):
    """The two methods of a stream that HTTP needs. Any `trio.abc.Stream` has them."""

    async def send_all(self, data: bytes) -> None: ...

    async def receive_some(self, max_bytes: int) -> bytes | bytearray: ...


@attrs.frozen(eq=False)
class ConnectedStream:
    """A stream over a connection that is made, TLS included.

    Attributes:
        has_unread: Whether bytes or an end have arrived that no read has taken. Never blocks.
        close: Closes the connection at once, without TLS's close_notify. Awaits nothing, so it works in a cancelled
            task, too.
        via: The proxy at its other end, which takes requests for origins of http (RFC 9112 §3.2.2); None: the origin
            is there, or at the end of a tunnel.
    """

    stream: ByteStream
    has_unread: Callable[[], bool]
    close: Callable[[], None]
    via: Proxy | None = None


Dial: TypeAlias = Callable[[Origin], Awaitable[ConnectedStream]]
"""Connects, TLS included. Raises OSError, ValueError (for a host that is no possible name),
`trio.BrokenResourceError` or `ProxyProblem`. When it is cancelled, it leaves no open socket behind.
"""


@attrs.define(eq=False)
class TcpDial:
    """Makes TCP connections, with TLS for https, and connections to unix sockets.

    Attributes:
        ssl_context: Used for every TLS connection. None: the first https connection builds one from the platform's
            trust store.
    """

    ssl_context: ssl.SSLContext | None = attrs.field(default=None, repr=False)
    _building: trio.Lock = attrs.field(factory=trio.Lock, init=False, repr=False)

    async def __call__(self, origin: Origin) -> ConnectedStream:
        if origin.scheme != "https":
            plain = await (_open_unix(origin.host) if origin.scheme == "unix" else _open_tcp(origin.host, origin.port))
            stream = TcpStream(plain)
            return ConnectedStream(stream, _readability(plain), stream.close)
        plain = await self._connect_and_prepare(origin)
        stream = TcpStream(plain)
        return await self.start_tls(ConnectedStream(stream, _readability(plain), stream.close), origin)

    async def start_tls(self, connected: ConnectedStream, origin: Origin) -> ConnectedStream:
        """TLS with `origin` over a connection that this class made: to the origin itself, or to a proxy that has made a
        tunnel to there. If it fails, the connection is closed.

        Raises: As `Dial`.
        """
        assert isinstance(connected.stream, TcpStream | TlsStream)
        try:
            tls = TlsStream(connected.stream, connected.has_unread)
            context = self.ssl_context or await self._build_context()
            await tls.do_handshake(context, origin.host.partition("%")[0])  # a certificate has no zones
        except BaseException:
            connected.close()
            raise
        return ConnectedStream(tls, tls.has_unread, connected.close)

    async def _connect_and_prepare(self, origin: Origin) -> socket.socket:
        """Connect; for the first https connection build the TLS context meanwhile, since neither needs the other."""
        if self.ssl_context is not None:
            return await _open_tcp(origin.host, origin.port)
        tcp: socket.socket | None = None
        failed: list[Exception] = []  # not raised in the nursery, which would wrap them in an ExceptionGroup

        async def prepare() -> None:
            try:
                await self._build_context()
            except (OSError, ValueError) as exc:
                failed.append(exc)

        try:
            async with trio.open_nursery() as both:
                start_task(both, prepare)
                try:
                    tcp = await _open_tcp(origin.host, origin.port)
                except (OSError, ValueError) as exc:
                    failed.append(exc)
            if failed:
                raise failed[0]
        except BaseException:
            if tcp is not None:
                tcp.close()
            raise
        assert tcp is not None
        return tcp

    async def _build_context(self) -> ssl.SSLContext:
        async with self._building:
            if self.ssl_context is None:
                # 20 ms and 830 KiB. In a thread: most of it is OpenSSL reading certificates, without the GIL.
                self.ssl_context = await trio.to_thread.run_sync(ssl.create_default_context)
            return self.ssl_context


async def _open_unix(path: str) -> socket.socket:
    """A connected, non-blocking socket."""
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    return _detached(await trio.open_unix_socket(path))


async def _open_tcp(host: str, port: int) -> socket.socket:
    """A connected, non-blocking socket. For an address in place of a name, without the resolver and the race of
    addresses (RFC 8305) of `trio.open_tcp_stream`, and without the objects around its socket: they take twice as long
    as a connection to the same machine.
    """
    family = _family(host)
    tcp = _detached(await trio.open_tcp_stream(host, port)) if family is None else await _connect(family, host, port)
    for level, option, value in _PROBING:
        with suppress(OSError):  # a sandbox may refuse it, and the connection is of use all the same
            tcp.setsockopt(level, option, value)
    return tcp


async def _connect(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    tcp = socket.socket(family)
    try:
        tcp.setblocking(False)
        # A small request must not wait for the acknowledgment of the one before (RFC 9293 §3.7.4).
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await trio.lowlevel.checkpoint_if_cancelled()
        code = tcp.connect_ex((host, port))
        if code in _UNDER_WAY:
            await trio.lowlevel.wait_writable(tcp)
            code = tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        if code != 0:
            raise OSError(code, os.strerror(code))
    except BaseException:
        tcp.close()
        raise
    return tcp


def _probing() -> tuple[tuple[int, int, int], ...]:
    """Socket options by which the operating system asks a silent peer whether it is there (RFC 9293 §3.8.4). Without
    them a connection to a machine that has gone stays open for ever.
    """
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    values = {
        "TCP_KEEPIDLE": PROBE_AFTER,
        "TCP_KEEPALIVE": PROBE_AFTER,  # what macOS calls it
        "TCP_KEEPINTVL": PROBE_INTERVAL,
        "TCP_KEEPCNT": PROBES,
    }
    for name, value in values.items():
        option = getattr(socket, name, None)
        if option is not None:
            options.append((socket.IPPROTO_TCP, option, value))
    return tuple(options)


_PROBING = _probing()


def _family(host: str) -> socket.AddressFamily | None:
    """The family of a numeric address; None: the host is a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            socket.inet_pton(family, host)
            return family
    return None


def _detached(tcp: trio.SocketStream) -> socket.socket:
    """The socket without Trio's wrapping."""
    wrapped = tcp.socket
    plain = socket.socket(wrapped.family, wrapped.type, wrapped.proto, fileno=wrapped.detach())
    plain.setblocking(False)
    return plain


def _readability(connected: socket.socket | trio.socket.SocketType) -> Callable[[], bool]:
    """A function that tells whether a read would return at once, with bytes or with the end."""
    descriptor = connected.fileno()
    if sys.platform == "win32":  # no `poll`, and a `select` that takes any descriptor
        return lambda: bool(select.select([descriptor], [], [], 0)[0])
    # Not `select`, which fails for descriptors over 1023 (FD_SETSIZE). Closing the descriptor ends the registration.
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return lambda: bool(poll.poll(0))
