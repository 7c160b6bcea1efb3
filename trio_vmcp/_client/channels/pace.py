"""The rate at which one backend may send, over all its streams together: a flood must not slow down other backends.

Each message, each line and each small piece of a stream costs time in this process. A backend has an allowance for
bursts, which refills at a fixed rate. When the allowance is used up, the backend's streams are not read for a while, so
the flood fills the backend's own buffers. The message that answers a request costs nothing, since requests are limited
in number; the small pieces that the message came in do.
"""

from __future__ import annotations

import attrs
import trio

from trio_vmcp._protocol.jsonrpc import Request
from trio_vmcp._protocol.sse import line_ends

__all__ = ["Pace", "pieces"]

# At this rate a flood of the shortest messages takes about a tenth of one processor.
MESSAGES_PER_SECOND, MESSAGES_AHEAD = 2000.0, 500.0
BYTES_PER_SECOND, BYTES_AHEAD = 1024.0 * 1024, 16.0 * 1024 * 1024
# Costs in messages. A backend's request must be answered, over HTTP with a POST. A line may belong to no message (an
# empty line, a comment). A piece is what one read returned, or SMALL_PIECE bytes cut from that; only smaller ones cost.
REQUEST_COST, LINE_COST, PIECE_COST = 8.0, 1 / 16, 1 / 2
SMALL_PIECE = 4 * 1024  # bytes
CRUMB = 64  # bytes; chunks of this size on average are no more work than the lines in them
MESSAGES_AT_ONCE = 16.0  # between two checkpoints
LINES_AT_ONCE = 256  # a chunk of at most so many lines is decoded in one go
PIECES_AT_ONCE = 4.0  # small ones, between two checkpoints: even 4 KiB may hold thousands of lines


@attrs.define(eq=False)
class Pace:
    """The allowance of one backend. Charge it for all that arrives, and `wait` it whenever it `is_due`."""

    _messages: float = attrs.field(default=MESSAGES_AHEAD, init=False)
    _bytes: float = attrs.field(default=BYTES_AHEAD, init=False)
    _counted_at: float = attrs.field(factory=trio.current_time, init=False)
    _since_checkpoint: float = attrs.field(default=0.0, init=False)

    def charge_piece(self, piece: bytes | bytearray) -> None:
        """A piece of a stream arrived. Its bytes are charged with the messages in it, unless those are awaited answers.
        A piece of SMALL_PIECE bytes was cut by `pieces`: it costs nothing, and counts for the next checkpoint.
        """
        if len(piece) < SMALL_PIECE:
            self._charge(PIECE_COST, 0)
        if len(piece) <= SMALL_PIECE:
            self._since_checkpoint += MESSAGES_AT_ONCE / PIECES_AT_ONCE

    def charge_crumbs(self, count: int, size: int) -> None:
        """`size` bytes of a stream arrived in `count` chunks (RFC 9112 §7.1), each of which takes as long as a line."""
        if size < count * CRUMB:
            self._charge(count * LINE_COST, 0)

    def charge_message(self, message: object, size: int, more_lines: int = 0) -> None:
        """A message of `size` bytes arrived that no request waits for, readable or not.

        Args:
            more_lines: The lines that the message came in, beyond the first.
        """
        self._charge((REQUEST_COST if isinstance(message, Request) else 1.0) + more_lines * LINE_COST, size)

    def charge_lines(self, count: int, size: int) -> None:
        """Lines arrived that belong to no message: `count` lines of `size` bytes together."""
        if count:
            self._charge(count * LINE_COST, size)

    @property
    def is_due(self) -> bool:
        """Whether `wait` has something to do."""
        return self._since_checkpoint >= MESSAGES_AT_ONCE or self._messages < 0 or self._bytes < 0

    async def wait(self) -> None:
        """Wait until the streams of the backend may be read on; at least one checkpoint."""
        self._since_checkpoint = 0.0
        now = trio.current_time()
        passed, self._counted_at = now - self._counted_at, now
        self._messages = min(self._messages + passed * MESSAGES_PER_SECOND, MESSAGES_AHEAD)
        self._bytes = min(self._bytes + passed * BYTES_PER_SECOND, BYTES_AHEAD)
        delay = 0.0
        if self._messages < 0:  # until MESSAGES_AT_ONCE may come: a timer for each message would cost more
            delay = (MESSAGES_AT_ONCE - self._messages) / MESSAGES_PER_SECOND
        if self._bytes < 0:
            delay = max(delay, -self._bytes / BYTES_PER_SECOND)
        if delay:
            await trio.sleep(delay)
        else:
            await trio.lowlevel.checkpoint()

    def _charge(self, messages: float, size: int) -> None:
        self._messages -= messages
        self._bytes -= size
        self._since_checkpoint += messages


def pieces(chunk: bytes) -> list[bytes]:
    """Cut a chunk of a stream into pieces that are each decoded in a short time. A chunk of many short lines is cut,
    and a chunk of few long lines stays whole.
    """
    if len(chunk) <= SMALL_PIECE:
        return [chunk]
    begin, end = line_ends(chunk)
    if chunk.count(b"\n", begin, end) + chunk.count(b"\r", begin, end) <= LINES_AT_ONCE:
        return [chunk]
    return [chunk[start : start + SMALL_PIECE] for start in range(0, len(chunk), SMALL_PIECE)]
