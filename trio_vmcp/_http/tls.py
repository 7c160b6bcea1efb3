"""TLS over a connected socket, for one task at a time. Source of the loop: CPython's documentation of `ssl.SSLObject`.

`trio.SSLStream` does the same for anybody, and three things that a kept connection needs it does not do. What it has
received and not yet handed out it keeps to itself, so nobody can tell without waiting whether an idle connection has
heard something. TLS 1.3's session tickets, which nobody asks for, look to `poll` like such a thing. And after a write
that failed it refuses to read, although a server that will not take a body has answered before it closed.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, TypeVarTuple

import attrs
import trio

__all__ = ["TlsStream"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

READ_BYTES = 64 * 1024


@attrs.define(eq=False)
class TlsStream:
    """Made over a new connection; `do_handshake` comes first.

    Attributes:
        tcp: What it runs over. Closing that ends it.
        is_readable: Whether reading `tcp` would not wait.
    """

    tcp: trio.SocketStream
    is_readable: Callable[[], bool]
    _tls: ssl.SSLObject = attrs.field(init=False, repr=False)
    _incoming: ssl.MemoryBIO = attrs.field(factory=ssl.MemoryBIO, init=False, repr=False)
    _outgoing: ssl.MemoryBIO = attrs.field(factory=ssl.MemoryBIO, init=False, repr=False)
    _heard: bool = attrs.field(default=False, init=False)  # what `has_news` took is lost, and stays news

    async def do_handshake(self, context: ssl.SSLContext, host: str) -> None:
        """Once, before anything else.

        Raises:
            OSError: `ssl.SSLError`: the peer cannot show that it is `host`, refuses us, or does not speak TLS.
            ValueError: `host` cannot be the name of one.
            trio.BrokenResourceError: The connection broke.
        """
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        await self._until_done(self._tls.do_handshake)

    async def send_all(self, data: bytes) -> None:
        """Raises: trio.BrokenResourceError, trio.ClosedResourceError."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[await self._until_done(self._tls.write, rest) :]
        except ssl.SSLError as exc:
            raise trio.BrokenResourceError("TLS broke") from exc

    async def receive_some(self, max_bytes: int) -> bytes:
        """At least one byte, or none at the end, be it said by TLS or by TCP only: HTTP knows how long a body is.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: The connection broke, or was closed here.
        """
        try:
            first = await self._until_done(self._tls.read, max_bytes)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        except ssl.SSLError as exc:
            raise trio.BrokenResourceError("TLS broke") from exc
        pieces, left = [first], max_bytes - len(first)
        try:
            while left and (self._tls.pending() or self._incoming.pending):  # a record is 16 KiB at most
                pieces.append(self._tls.read(left))
                left -= len(pieces[-1])
        except ssl.SSLError:
            pass  # half a record; or the end, which the next read comes to
        return first if len(pieces) == 1 else b"".join(pieces)

    def has_news(self) -> bool:
        """Bytes or an end have arrived that nobody has read. What TLS says to itself is taken, and does not count.

        Whoever hears of news can only close: they are lost.
        """
        self._heard = self._heard or self._hears()
        return self._heard

    def _hears(self) -> bool:
        if self._tls.pending() or self._comes_out():
            return True
        if not self.is_readable():
            return False
        try:
            data = self._receive_nowait()
        except OSError:
            return True
        self._incoming.write(data)
        return not data or self._comes_out() or self.is_readable()  # what goes on and on is no session ticket

    def _comes_out(self) -> bool:
        """Whether what is here is of the application, or the end."""
        if not self._incoming.pending:
            return False
        try:
            self._tls.read(1)
        except ssl.SSLError as exc:
            return not isinstance(exc, ssl.SSLWantReadError)
        return True

    def _receive_nowait(self) -> bytes:
        ours = self.tcp.socket
        # Trio has no way to read without waiting, but its sockets are non-blocking.
        borrowed = socket.socket(ours.family, ours.type, ours.proto, fileno=ours.fileno())
        try:
            return borrowed.recv(READ_BYTES)
        finally:
            borrowed.detach()

    async def _until_done(self, step: Callable[[*Ts], T], *args: *Ts) -> T:
        """Repeat `step`, carrying bytes to and fro, until it needs no more of them."""
        while True:
            try:
                result = step(*args)
            except ssl.SSLWantReadError:
                await self._flush()
                data = await self.tcp.receive_some(READ_BYTES)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
                continue
            except ssl.SSLError as exc:
                refused = exc
            else:
                await self._flush()
                return result
            with suppress(trio.BrokenResourceError):
                await self._flush()  # an alert, which tells the peer why
            raise refused

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self.tcp.send_all(self._outgoing.read())
