"""TLS over a connected socket, for one task that reads and one that writes. Source of the loop: CPython's documentation
of `ssl.SSLObject`.

`trio.SSLStream` cannot do three things that a kept-alive HTTP connection needs:
- Say without waiting whether bytes have arrived on an idle connection: it does not show what it has buffered.
- Tell such bytes from the session tickets of TLS 1.3 (RFC 8446 §4.6.1), which servers send unasked after the
  handshake: `poll` reports both.
- Read after a failed write, although a server may answer and close before it has read the body (RFC 9112 §9.5).
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
    """TLS over a new connection. Call `do_handshake` before anything else.

    Attributes:
        tcp: The connection below. Closing it closes this stream.
        is_readable: Tells whether a read of `tcp` would return at once.
    """

    tcp: trio.SocketStream
    is_readable: Callable[[], bool]
    _tls: ssl.SSLObject = attrs.field(init=False, repr=False)
    _incoming: ssl.MemoryBIO = attrs.field(factory=ssl.MemoryBIO, init=False, repr=False)
    _outgoing: ssl.MemoryBIO = attrs.field(factory=ssl.MemoryBIO, init=False, repr=False)
    _is_sending: bool = attrs.field(default=False, init=False)  # a task is at it, or was cut off
    _found_unread: bool = attrs.field(default=False, init=False)  # and lost: the bytes that `has_unread` read

    async def do_handshake(self, context: ssl.SSLContext, host: str) -> None:
        """Call once, first.

        Raises:
            OSError: `ssl.SSLError`: the peer cannot prove that it is `host`, refuses us, or does not speak TLS.
            ValueError: `host` is no possible host name.
            trio.BrokenResourceError: The connection broke.
        """
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        await self._run_step(self._tls.do_handshake)

    async def send_all(self, data: bytes) -> None:
        """Raises: trio.BrokenResourceError, trio.ClosedResourceError."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[await self._run_step(self._tls.write, rest) :]
        except ssl.SSLError as exc:
            raise trio.BrokenResourceError("TLS broke") from exc

    async def receive_some(self, max_bytes: int) -> bytes:
        """At least one byte, or none at the end. An end of TCP without `close_notify` (RFC 8446 §6.1) counts as an end:
        the framing of HTTP tells whether a response is whole (RFC 9112 §9.8).

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: The connection broke, or was closed here.
        """
        try:
            first = await self._run_step(self._tls.read, max_bytes)
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
            pass  # half a record, or the end, which the next read reports
        return first if len(pieces) == 1 else b"".join(pieces)

    def has_unread(self) -> bool:
        """Whether application bytes or an end have arrived that no read has taken. Messages of TLS itself, such as
        session tickets, are processed and do not count.

        Close the stream when this is true: the bytes that were found are lost.
        """
        self._found_unread = self._found_unread or self._find_unread()
        return self._found_unread

    def _find_unread(self) -> bool:
        if self._tls.pending() or self._has_application_data():
            return True
        if not self.is_readable():
            return False
        try:
            data = self._receive_nowait()
        except OSError:
            return True
        self._incoming.write(data)
        return not data or self._has_application_data() or self.is_readable()  # tickets are less than READ_BYTES

    def _has_application_data(self) -> bool:
        """Whether the buffered records hold application bytes or the end."""
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

    async def _run_step(self, step: Callable[[*Ts], T], *args: *Ts) -> T:
        """Repeat `step` until it succeeds; in between send what TLS has to say, and receive what it waits for."""
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
                await self._flush()  # the alert that tells the peer why (RFC 8446 §6.2)
            raise refused

    async def _flush(self) -> None:
        """Send what TLS has to say. While one task writes, another may read, and a read may have something to say: the
        task that is sending sends that, too. After a write that was cut off, half a record is out, so nothing follows.
        """
        while self._outgoing.pending and not self._is_sending:
            self._is_sending = True
            await self.tcp.send_all(self._outgoing.read())
            self._is_sending = False
