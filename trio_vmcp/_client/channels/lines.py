"""A channel of lines, one JSON-RPC message in each, over any two Trio streams.

One task writes all messages, from a queue. If callers wrote in their own tasks, a cancelled caller could leave half a
line, and the next message would become part of that line.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import trio

from trio_vmcp._client.channels.channel import Ask, Send
from trio_vmcp._client.channels.duplex import DuplexChannel
from trio_vmcp._client.channels.inbox import PendingRequest
from trio_vmcp._client.channels.pace import pieces
from trio_vmcp._protocol.eras import BATCH_VERSION
from trio_vmcp._protocol.reading import MOST_SKIPPED, Oversized
from trio_vmcp._request_note import RequestNote
from trio_vmcp.identity import Identity

__all__ = ["LineChannel", "LineDecoder", "LineFlood"]

logger = logging.getLogger("trio_vmcp.client")

MOST_TEXT = 8 * 1024
MOST_NOTICES = 64  # in the queue; more are dropped, so that a backend that does not read costs limited memory


class LineFlood(ValueError):
    """A line does not end. The text completes the sentence "sent …"."""


@attrs.define(eq=False)
class LineDecoder:
    """Lines from bytes, in any pieces. Sans-IO. Only LF ends a line: JSON escapes the line ends in its strings. So does
    the end of the stream: a program may write its last message without LF, and exit.

    Attributes:
        max_line_bytes: Limit for one line without its end. A longer line is skipped.
        empty_lines: The number of empty lines so far.
    """

    max_line_bytes: int
    empty_lines: int = attrs.field(default=0, init=False)
    _line: bytearray = attrs.field(factory=bytearray, init=False, repr=False)  # the line so far
    _oversized: Oversized | None = attrs.field(default=None, init=False)  # in place of `_line`, once that is too long

    def feed(self, chunk: bytes | bytearray) -> list[bytes | bytearray | Oversized]:
        """Return the lines that end in `chunk`, empty ones left out.

        Raises:
            LineFlood: A line is longer than MOST_SKIPPED x `max_line_bytes`. The decoder is of no more use.
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

    def finish(self) -> list[bytes | bytearray | Oversized]:
        """Return the last line, if it has no LF. It may be cut off. The stream has ended: feed no more."""
        last = self._oversized or self._line
        return [last] if last else []

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


def _ignore_text(line: bytes | bytearray) -> None:
    """For lines that are no process's."""


@attrs.define(eq=False, kw_only=True)
class LineChannel(DuplexChannel):
    """A channel of lines. The owner of the connection runs `read` and `write` in tasks.

    Attributes:
        on_text: Takes each line that is no message but text, cut to MOST_TEXT bytes.
    """

    on_text: Callable[[bytes | bytearray], object] = attrs.field(default=_ignore_text, repr=False)
    _queue: deque[_Outgoing] = attrs.field(factory=deque, init=False, repr=False)
    _queued: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _is_retired: bool = attrs.field(default=False, init=False)

    @asynccontextmanager
    async def sending(self, ask: Ask, data: bytes, pending: PendingRequest) -> AsyncIterator[None]:
        outgoing = _Outgoing(data, pending.note)
        self._put(outgoing)
        try:
            yield
        finally:
            if outgoing in self._queue:  # not written yet
                self._queue.remove(outgoing)

    def renew_identity(self, identity: Identity) -> None:
        """Messages of a process carry no credentials."""

    async def tell(self, data: bytes, identity: Identity | None) -> None:
        """Queue the message: the queue keeps the order."""
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
        """Lines do not carry the version; it decides what they may hold."""
        self.inbox.takes_batches = version == BATCH_VERSION

    def retire_writer(self) -> None:
        """Queue no more messages; when those in the queue are written, `write` closes the stream."""
        self._is_retired = True
        self._queued.set()

    def _put(self, outgoing: _Outgoing) -> None:
        if not self._is_retired:
            self._queue.append(outgoing)
            self._queued.set()

    async def write(self, stream: trio.abc.SendStream) -> None:
        """Write queued messages until `retire_writer`.

        Raises:
            trio.BrokenResourceError: The other side has closed the stream.
        """
        try:
            while self._queue or not self._is_retired:
                if not self._queue:
                    self._queued = trio.Event()
                    await self._queued.wait()
                    continue
                await stream.send_all(self._take_line())
        finally:
            await trio.aclose_forcefully(stream)

    def _take_line(self) -> bytes:
        """The next message. In a local of `write` it would be kept until there is another one, with its note."""
        outgoing = self._queue.popleft()
        if outgoing.note is not None:
            outgoing.note.written = True
        return outgoing.data + b"\n"

    async def read(self, stream: trio.abc.ReceiveStream) -> None:
        """Read messages until the stream ends or breaks.

        Raises:
            LineFlood: A line does not end.
        """
        decoder = LineDecoder(self.inbox.max_message_bytes)
        try:
            while chunk := await stream.receive_some():
                for piece in pieces(bytes(chunk)):
                    await self._take_piece(piece, decoder)
            for line in decoder.finish():
                await self._take(line, may_be_cut=True)
        except trio.BrokenResourceError:
            return

    async def _take_piece(self, piece: bytes, decoder: LineDecoder) -> None:
        empty = decoder.empty_lines
        self.pace.charge_piece(piece)
        for line in decoder.feed(piece):
            await self._take(line)
            if self.pace.is_due:
                await self.pace.wait()
        self.pace.charge_lines(decoder.empty_lines - empty, decoder.empty_lines - empty)
        if self.pace.is_due:
            await self.pace.wait()

    async def _take(self, line: bytes | bytearray | Oversized, *, may_be_cut: bool = False) -> None:
        if isinstance(line, Oversized):
            self.inbox.take_oversized(line)
        elif line.isspace():
            self.pace.charge_lines(1, len(line))
        else:
            if not line.startswith(b"{") and not line.lstrip().startswith(b"{"):
                self.on_text(line[:MOST_TEXT])
            await self.inbox.take_message(line, may_be_cut=may_be_cut)
