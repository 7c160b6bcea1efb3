"""Connections to origins: TCP the way `trio.open_tcp_stream` does it, and TLS with one context for all of them."""

from __future__ import annotations

import select
import ssl
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import attrs
import trio

__all__ = ["Dial", "Origin", "TcpDial", "Wire"]


@attrs.frozen
class Origin:
    """Where connections go: what may share one. `host` is as DNS takes it, without brackets."""

    scheme: str
    host: str
    port: int


@attrs.frozen(eq=False)
class Wire:
    """A connected stream.

    Attributes:
        has_news: Bytes or an end have arrived that nobody has read. Never blocks.
        cut: Close it at once, saying nothing to the peer. Awaits nothing, so it works in a cancelled task as well.
    """

    stream: trio.abc.Stream
    has_news: Callable[[], bool]
    cut: Callable[[], None]


Dial: TypeAlias = Callable[[Origin], Awaitable[Wire]]
"""Connects, TLS included. Raises OSError or `trio.BrokenResourceError`; cancelled, it leaves no socket."""


@attrs.define(eq=False)
class TcpDial:
    """Real connections.

    Attributes:
        ssl_context: For every TLS connection; None until the first, which builds it from the platform's trust store.
    """

    ssl_context: ssl.SSLContext | None = attrs.field(default=None, repr=False)
    _building: trio.Lock = attrs.field(factory=trio.Lock, init=False, repr=False)

    async def __call__(self, origin: Origin) -> Wire:
        if origin.scheme != "https":
            return _wire_of(await trio.open_tcp_stream(origin.host, origin.port), None)
        tcp = await self._connect_and_prepare(origin)
        assert self.ssl_context is not None
        tls = trio.SSLStream(tcp, self.ssl_context, server_hostname=origin.host, https_compatible=True)
        try:
            await tls.do_handshake()
        except BaseException:
            tcp.socket.close()
            raise
        return _wire_of(tcp, tls)

    async def _connect_and_prepare(self, origin: Origin) -> trio.SocketStream:
        """TCP and, for the first of all, the context, side by side: neither needs the other."""
        if self.ssl_context is not None:
            return await trio.open_tcp_stream(origin.host, origin.port)
        tcp: trio.SocketStream | None = None
        refused: OSError | None = None
        try:
            async with trio.open_nursery() as both:
                both.start_soon(self._build_context)
                try:
                    tcp = await trio.open_tcp_stream(origin.host, origin.port)
                except OSError as exc:  # kept from the nursery, which would wrap it in a group
                    refused = exc
        except BaseException:
            if tcp is not None:
                tcp.socket.close()
            raise
        if tcp is None:
            assert refused is not None
            raise refused
        return tcp

    async def _build_context(self) -> None:
        async with self._building:
            if self.ssl_context is None:
                # 20 ms and 830 KiB each. In a thread, since most of it is OpenSSL reading certificates without the GIL.
                self.ssl_context = await trio.to_thread.run_sync(ssl.create_default_context)


def _wire_of(tcp: trio.SocketStream, tls: trio.SSLStream[trio.SocketStream] | None) -> Wire:
    # Not `select.select`, which knows no descriptor over 1023. The registration ends with the descriptor.
    poll = select.poll()
    poll.register(tcp.socket.fileno(), select.POLLIN)
    return Wire(tls or tcp, lambda: bool(poll.poll(0)), tcp.socket.close)
