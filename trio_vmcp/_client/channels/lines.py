"""One JSON-RPC message a line, both ways, over any two Trio streams.

What goes out is written by one task, from a queue: a caller that wrote in its own task and was cancelled half-way would
leave half a line, and whatever followed would be part of it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from trio_vmcp._client.channels.channel import Send
from trio_vmcp._client.channels.duplex import DuplexChannel
from trio_vmcp._client.channels.inbox import PendingRequest
from trio_vmcp._client.channels.pace import pieces
from trio_vmcp._protocol.reading import MOST_SKIPPED, Oversized
from trio_vmcp._request_note import RequestNote
from trio_vmcp.identity import Identity

__all__ = ["LineChannel", "LineDecoder", "LineFlood"]

logger = logging.getLogger("trio_vmcp.client")

MOST_NOTICES = 64  # on their way at once; a backend that does not read may not make us keep more


class LineFlood(ValueError):
    """A line does not end. The text completes the sentence "sent …"."""


@attrs.define(eq=False)
class LineDecoder:
    """Lines from bytes, in any pieces. Sans-IO. JSON escapes its line ends, so LF ends a message and nothing else does.

    Attributes:
        max_line_bytes: Of one line without its end. A longer one is skipped.
        empty_lines: How many came so far.
    """

    max_line_bytes: int
    empty_lines: int = attrs.field(default=0, init=False)
    _line: bytearray = attrs.field(factory=bytearray, init=False, repr=False)  # the line so far
    _oversized: Oversized | None = attrs.field(default=None, init=False)  # in place of `_line`, once that is too long

    def feed(self, chunk: bytes | bytearray) -> list[bytes | bytearray | Oversized]:
        """Return the lines that end in `chunk`, empty ones left out.

        Raises:
            LineFlood: A line goes on for over MOST_SKIPPED x `max_line_bytes`. The decoder is of no more use.
        """
        *ended, rest = chunk.split(b"\n")
        lines: list[bytes | bytearray | Oversized] = []
        self.empty_lines += sum(not piece for piece in ended)
        for piece in ended:
            if not self._line and self._oversized is None and len(piece) <= self.max_line_bytes:  # a whole line
                line: bytes | bytearray | Oversized = piece
            else:
                self._extend(piece)
                line = self._oversized or self._line
                self._line, self._oversized = bytearray(), None
            if isinstance(line, Oversized) or line:
                lines.append(line)
        self._extend(rest)
        return lines

    def _extend(self, piece: bytes | bytearray) -> None:
        if self._oversized is None:
            self._line += piece
            if len(self._line) <= self.max_line_bytes:
                return
            piece, self._line = self._line, bytearray()
            self._oversized = Oversized()
        self._oversized.add(piece)
        if self._oversized.size > MOST_SKIPPED * self.max_line_bytes:
            raise LineFlood(f"a line of over {MOST_SKIPPED} x {self.max_line_bytes} bytes (max_message_bytes)")


@attrs.define(eq=False)
class _Outgoing:
    data: bytes = attrs.field(repr=False)
    note: RequestNote | None  # None: a notice


@attrs.define(eq=False, kw_only=True)
class LineChannel(DuplexChannel):
    """A channel of lines. `read` and `write` run in tasks of the connection's owner."""

    _queue: deque[_Outgoing] = attrs.field(factory=deque, init=False, repr=False)
    _queued: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _is_retired: bool = attrs.field(default=False, init=False)

    @asynccontextmanager
    async def sending(self, data: bytes, pending: PendingRequest, identity: Identity | None) -> AsyncIterator[None]:
        outgoing = _Outgoing(data, pending.note)
        self._put(outgoing)
        try:
            yield
        finally:
            if outgoing in self._queue:  # nothing of it is out
                self._queue.remove(outgoing)

    async def tell(self, data: bytes, identity: Identity | None) -> None:
        """What is queued goes out in order."""
        if self.inbox.loss is not None:
            raise self.inbox.loss.error(self.backend_id)
        self._put(_Outgoing(data, None))
        await trio.lowlevel.checkpoint()

    def tell_soon(self, data: bytes, identity: Identity | None) -> None:
        if sum(outgoing.note is None for outgoing in self._queue) < MOST_NOTICES:
            self._put(_Outgoing(data, None))
        else:
            logger.debug("backend %r does not read: dropped a message to it", self.backend_id)

    def send_for(self, identity: Identity | None) -> Send:
        async def send(data: bytes) -> None:
            self.tell_soon(data, identity)
            await trio.lowlevel.checkpoint()

        return send

    def agree(self, version: str) -> None:
        """Lines do not say the version."""

    def retire_writer(self) -> None:
        """Nothing more goes out than what is queued; then the stream is closed."""
        self._is_retired = True
        self._queued.set()

    def _put(self, outgoing: _Outgoing) -> None:
        if not self._is_retired:
            self._queue.append(outgoing)
            self._queued.set()

    async def write(self, stream: trio.abc.SendStream) -> None:
        """Until `retire_writer`.

        Raises:
            trio.BrokenResourceError: The other side reads no more.
        """
        try:
            while self._queue or not self._is_retired:
                if not self._queue:
                    self._queued = trio.Event()
                    await self._queued.wait()
                    continue
                outgoing = self._queue.popleft()
                if outgoing.note is not None:
                    outgoing.note.written = True
                await stream.send_all(outgoing.data + b"\n")
        finally:
            await trio.aclose_forcefully(stream)

    async def read(self, stream: trio.abc.ReceiveStream) -> None:
        """Until the other side ends or breaks its stream.

        Raises:
            LineFlood: A line does not end.
        """
        decoder = LineDecoder(self.inbox.max_message_bytes)
        try:
            while chunk := await stream.receive_some():
                for piece in pieces(bytes(chunk)):
                    await self._take_piece(piece, decoder)
        except trio.BrokenResourceError:
            return

    async def _take_piece(self, piece: bytes, decoder: LineDecoder) -> None:
        empty = decoder.empty_lines
        self.pace.charge_piece(piece)
        for line in decoder.feed(piece):
            self._take(line)
            if self.pace.is_due:
                await self.pace.wait()
        self.pace.charge_lines(decoder.empty_lines - empty, decoder.empty_lines - empty)
        if self.pace.is_due:
            await self.pace.wait()

    def _take(self, line: bytes | bytearray | Oversized) -> None:
        if isinstance(line, Oversized):
            self.inbox.take_oversized(line)
        elif line.isspace():
            self.pace.charge_lines(1, len(line))
        else:
            self.inbox.take_message(line)
