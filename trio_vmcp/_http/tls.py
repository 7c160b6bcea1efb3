"""TLS over a connected stream, for one task that reads and one that writes. Source of the loop: CPython's documentation
of `ssl.SSLObject`.

`trio.SSLStream` cannot do three things that a kept-alive HTTP connection needs:
- Say without waiting whether bytes have arrived on an idle connection: it does not show what it has buffered.
- Tell such bytes from the session tickets of TLS 1.3 (RFC 8446 §4.6.1), which servers send unasked after the
  handshake: `poll` reports both.
- Read after a failed write, although a server may answer and close before it has read the body (RFC 9112 §9.5).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar, TypeVarTuple

import attrs
import trio

__all__ = ["NowaitStream", "TlsStream"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

READ_BYTES = 64 * 1024
MOST_READS = 8  # in one look for unread bytes; the session tickets of a server fit into one or two


class NowaitStream(Protocol):
    """What TLS needs of the stream below: `TcpStream` has it, and `TlsStream`, for a tunnel through an https proxy."""

    async def send_all(self, data: bytes) -> None: ...

    async def receive_some(self, max_bytes: int) -> bytes: ...

    def receive_nowait(self, max_bytes: int) -> bytes: ...


@attrs.define(eq=False)
class TlsStream:
    """TLS over a new connection. Call `do_handshake` before anything else.

    Attributes:
        below: The stream that carries TLS. Closing its connection closes this stream.
        is_readable: Tells whether a read of `below` would return at once.
    """

    below: NowaitStream
    is_readable: Callable[[], bool]
    _tls: ssl.SSLObject = attrs.field(init=False, repr=False)
    _incoming: ssl.MemoryBIO = attrs.field(factory=ssl.MemoryBIO, init=False, repr=False)
    _outgoing: ssl.MemoryBIO = attrs.field(factory=ssl.MemoryBIO, init=False, repr=False)
    _is_sending: bool = attrs.field(default=False, init=False)  # a task is at it, or was cut off
    _found: bytes | None = attrs.field(default=None, init=False, repr=False)  # by `has_unread`; empty: the end

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
        if self._found is not None:
            await trio.lowlevel.checkpoint()
            return self._take_found(max_bytes)
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

    def receive_nowait(self, max_bytes: int) -> bytes:
        """Raises: `BlockingIOError`: nothing has arrived but messages of TLS itself."""
        if not self.has_unread():
            raise BlockingIOError
        return self._take_found(max_bytes)

    def has_unread(self) -> bool:
        """Whether application bytes or an end have arrived that no read has taken. Messages of TLS itself, such as
        session tickets, are processed and do not count.
        """
        if self._found is None:
            self._found = self._find_unread()
        return self._found is not None

    def _take_found(self, max_bytes: int) -> bytes:
        assert self._found is not None
        taken, rest = self._found[:max_bytes], self._found[max_bytes:]
        if taken:  # else the end, which stays
            self._found = rest or None
        return taken

    def _find_unread(self) -> bytes | None:
        """Application bytes that have arrived; empty: the end has, or the connection broke; None: neither."""
        found = self._read_buffered()
        for _ in range(MOST_READS):
            if found is not None or not self.is_readable():
                return found
            try:
                data = self.below.receive_nowait(READ_BYTES)
            except BlockingIOError:
                return None
            except OSError:
                return b""
            if not data:
                return b""
            self._incoming.write(data)
            found = self._read_buffered()
        return b"" if found is None else found  # a flood that is no data

    def _read_buffered(self) -> bytes | None:
        """Application bytes in the buffered records; empty: their end; None: there are none."""
        if not self._tls.pending() and not self._incoming.pending:
            return None
        try:
            return self._tls.read(READ_BYTES)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLError:
            return b""

    async def _run_step(self, step: Callable[[*Ts], T], *args: *Ts) -> T:
        """Repeat `step` until it succeeds; in between send what TLS has to say, and receive what it waits for."""
        while True:
            try:
                result = step(*args)
            except ssl.SSLWantReadError:
                await self._flush()
                data = await self.below.receive_some(READ_BYTES)
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
            await self.below.send_all(self._outgoing.read())
            self._is_sending = False
