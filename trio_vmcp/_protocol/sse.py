"""Server-sent events from bytes, in any pieces. Sans-IO. Source: WHATWG HTML, §9.2.6 Interpreting an event stream.

Lines end at CR, LF or CRLF and nowhere else: `str.splitlines`, and httpx's `iter_lines` with it, would also cut JSON at
U+2028 and U+0085. An event counts once its blank line has arrived. There is no method for the end of a stream:
§9.2.6 discards an event that the stream cut off.

A decoder holds about twice its limit at most: the event so far, and one copy while the event is put together. Time is
linear in the bytes fed, however they are cut.
"""

from __future__ import annotations

import re

import attrs

from trio_vmcp._protocol.jsonrpc import BOM
from trio_vmcp._protocol.reading import MOST_SKIPPED, Oversized

__all__ = [
    "MAX_FIELD_BYTES",
    "MOST_DATA_LINES",
    "SseDecoder",
    "SseEvent",
    "SseLimit",
    "encode_event",
    "encode_priming",
    "line_ends",
]

# The longest id, event name or `retry`. Ids are sent back as Last-Event-ID, and many servers allow 8 KiB for all
# headers together.
MAX_FIELD_BYTES = 1024

MOST_DATA_LINES = 200_000  # of one event; JSON of 5 MiB has so many where each value is on a line of its own
_LONGEST_FIELD = len(b"event:")  # no field that the decoder reads has its colon further on
# What a header can carry to the last byte (RFC 9110 §5.5): no control character, and no space at an end.
_AS_HEADER = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")


class SseLimit(ValueError):
    """The stream is over a limit. The text completes the sentence "sent …"."""


@attrs.frozen
class SseEvent:
    """One dispatched event.

    Attributes:
        event: "message" unless the stream names another.
        data: The data lines joined with LF. Empty in the priming events of MCP 2025-11-25 (basic/transports), which
            carry an id and `retry` only.
        id: This event's own id; None: it has no id that could be sent back.
        oversized: The event was over the limit, and its data is empty; None: it is whole.
        more_lines: Lines of `data` beyond the first.
    """

    event: str
    data: bytes | bytearray = attrs.field(repr=False)
    id: str | None = attrs.field(repr=False)
    oversized: Oversized | None = None
    more_lines: int = attrs.field(default=0, eq=False)


@attrs.define(eq=False)
class SseDecoder:
    """Turns chunks into events.

    Attributes:
        idle_lines, idle_bytes: Lines so far that are no part of an event's data, such as comments and empty lines, and
            their bytes. Lines of an event beyond its first MOST_DATA_LINES count, too, and those of an event over the
            limit.
        max_event_bytes: Limit for all lines of one event together, comments and unknown fields included. Of an event
            over it only the ends are kept.
        last_event_id: The newest id, for Last-Event-ID; None: there is none, or an empty `id` field reset it. Ids over
            MAX_FIELD_BYTES are ignored, and so are those that no header could carry: with a control character other
            than a tab inside, or a space or tab at an end.
        retry: s to wait before a reconnect, from the `retry` field; not clamped, `inf` included. None: no such field.
    """

    max_event_bytes: int
    idle_lines: int = attrs.field(default=0, init=False)
    idle_bytes: int = attrs.field(default=0, init=False)
    last_event_id: str | None = attrs.field(default=None, init=False, repr=False)
    retry: float | None = attrs.field(default=None, init=False)

    # The line so far, in one buffer. A list of pieces would take its memory twice when they are joined; for a large
    # event the allocator then gives pages back between two events and fetches each anew, which costs more than copying.
    _line: bytearray = attrs.field(factory=bytearray, init=False, repr=False)
    _after_cr: bool = attrs.field(default=False, init=False)  # an LF that follows belongs to the same line end
    _at_start: bool = attrs.field(default=True, init=False)
    _broken: str | None = attrs.field(default=None, init=False)

    _oversized: Oversized | None = attrs.field(default=None, init=False)  # the event, once it is over the limit
    _event_bytes: int = attrs.field(default=0, init=False)
    _data_lines: int = attrs.field(default=0, init=False)  # of the event, beyond the first
    _event: bytes = attrs.field(default=b"", init=False, repr=False)
    _data: bytes | bytearray | None = attrs.field(default=None, init=False, repr=False)  # bytes: of one line so far
    _id: str | None = attrs.field(default=None, init=False, repr=False)

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Return the events that end in `chunk`.

        Raises:
            SseLimit: An event goes on for over MOST_SKIPPED x `max_event_bytes`. Events that ended before are returned
                first and the next `feed` raises, so the result does not depend on how the stream was cut. Every later
                `feed` raises, too.
        """
        events: list[SseEvent] = []
        try:
            self._feed(chunk, events)
        except SseLimit as exc:
            self._broken = str(exc)
            self._line, self._data, self._oversized = bytearray(), None, None
            if not events:
                raise
        return events

    def _feed(self, chunk: bytes, events: list[SseEvent]) -> None:
        if self._broken is not None:
            raise SseLimit(self._broken)
        if not chunk:
            return
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
        self._after_cr = chunk[-1:] == b"\r"
        begin, end = line_ends(chunk)
        if end == 0:  # a piece from the middle of a large line
            self._extend_line(chunk)
            return
        lines = chunk[begin:end].splitlines()  # bytes.splitlines cuts at CR, LF and CRLF alone
        lines[0] = chunk[:begin]
        for line in lines:
            if self._oversized is not None or not self._fits(len(self._line) + len(line)):
                self._end_skipped_line(line, events)
            elif self._line:
                self._extend_line(line)
                begun, self._line = self._line, bytearray()
                self._end_line(begun, events)
            else:
                self._end_line(line, events)
        self._extend_line(chunk[end:])

    def _extend_line(self, piece: bytes) -> None:
        if self._oversized is None and self._fits(len(self._line) + len(piece)):  # before the piece is stored
            self._line += piece
        elif piece:
            self._skip(piece)
            self._line = bytearray(b":")  # the line has begun; its content does not matter

    def _fits(self, line_bytes: int) -> bool:
        return self._event_bytes + line_bytes <= self.max_event_bytes

    def _skip(self, piece: bytes) -> None:
        """The event is over the limit: keep no more than its ends."""
        if self._oversized is None:
            self._oversized = self._begin_skipping()
            piece = bytes(self._line) + piece
            self._at_start = False
        self._oversized.add(piece)
        if self._oversized.size > MOST_SKIPPED * self.max_event_bytes:
            raise SseLimit(f"an SSE event of more than {MOST_SKIPPED} x {self.max_event_bytes} bytes")

    def _begin_skipping(self) -> Oversized:
        oversized = Oversized()
        oversized.add(self._data or b"")
        self._data = None
        return oversized

    def _end_skipped_line(self, line: bytes, events: list[SseEvent]) -> None:
        """The end of a line in an event that is over the limit, or that goes over it with this line."""
        is_blank = not line and not self._line
        self.idle_lines += 1  # the data is not kept, so its lines cannot be counted later
        if line or self._oversized is None:
            self._skip(line)
        if is_blank:
            self._dispatch(events)
        self._line = bytearray()

    def _end_line(self, line: bytes | bytearray, events: list[SseEvent]) -> None:
        self._event_bytes += len(line) + 1  # the end counts: each empty `data` line adds an LF to the data
        begin = 0
        if self._at_start:
            self._at_start = False
            begin = len(BOM) if line[: len(BOM)] == BOM else 0
        if len(line) > begin:
            self._take_field(line, begin)
        else:
            if self._data is None:
                self._count_idle(line)
            self._dispatch(events)

    def _count_idle(self, line: bytes | bytearray) -> None:
        self.idle_lines += 1
        self.idle_bytes += len(line) + 1

    def _take_field(self, line: bytes | bytearray, begin: int) -> None:
        colon = line.find(b":", begin, begin + _LONGEST_FIELD)  # at `begin`: a comment, with an empty field name
        end = len(line) if colon < 0 else colon
        start = end + 1
        if line[start : start + 1] == b" ":
            start += 1
        name, size = line[begin:end], max(len(line) - start, 0)
        if name == b"data":
            self._take_data(line, start)
            return
        self._count_idle(line)
        if name == b"event":
            self._event = bytes(line[start : start + MAX_FIELD_BYTES])  # no known name is longer
        elif name == b"id" and size <= MAX_FIELD_BYTES and _AS_HEADER.fullmatch(line, start):
            self._id = line[start:].decode(errors="replace")
        elif name == b"retry" and size <= MAX_FIELD_BYTES and line[start:].isdigit():
            self.retry = float(line[start:]) / 1000

    def _take_data(self, line: bytes | bytearray, start: int) -> None:
        if self._data is None and isinstance(line, bytearray):  # `_line`'s own buffer: keep it, without a copy
            del line[:start]  # moves no bytes
            self._data = line
            return
        value = memoryview(line)[start:]
        if self._data is None:
            self._data = bytes(value)
            return
        if isinstance(self._data, bytes):
            self._data = bytearray(self._data)  # one buffer: a list of short lines takes many times their size
        self._data += b"\n"
        self._data += value
        self._data_lines += 1
        if self._data_lines > MOST_DATA_LINES:
            self.idle_lines += 1

    def _dispatch(self, events: list[SseEvent]) -> None:
        # Not earlier: a stream that is resumed after the id of a truncated event would skip that event.
        if self._id is not None:
            self.last_event_id = self._id or None
        if self._oversized is not None:
            _strip_field_name(self._oversized)
        if self._data is not None or self._oversized is not None:
            name = self._event.decode(errors="replace") or "message"
            more_lines = self._data_lines if self._oversized is None else 0
            events.append(SseEvent(name, self._data or b"", self._id or None, self._oversized, more_lines))
        self._event_bytes, self._event, self._data, self._id, self._oversized = 0, b"", None, None, None
        self._data_lines = 0


def encode_event(data: bytes, event_id: str | None = None) -> bytes:
    """One event of the name "message".

    Args:
        data: Without CR and LF, as JSON of this library is.
        event_id: For `Last-Event-ID`; without CR, LF and NUL. None: the event cannot be resumed from.
    """
    if event_id is None:
        return b"event: message\ndata: " + data + b"\n\n"
    return b"event: message\nid: " + event_id.encode() + b"\ndata: " + data + b"\n\n"


def encode_priming(event_id: str, retry: int) -> bytes:
    """The first event of a stream that can be resumed: an id, and no data (MCP 2025-11-25, basic/transports).

    Args:
        retry: ms, after which the client opens the stream again once it has ended.
    """
    return b"id: " + event_id.encode() + b"\nretry: %d\ndata: \n\n" % retry


def _strip_field_name(oversized: Oversized) -> None:
    """Remove a BOM and `data:` from the head of an event. Not before its end: a stream may be cut within `data:`."""
    line = oversized.head.removeprefix(BOM)
    value = line.removeprefix(b"data:")
    if len(value) < len(line):
        value = value.removeprefix(b" ")
    oversized.size -= len(oversized.head) - len(value)
    oversized.head = value


def line_ends(chunk: bytes | bytearray) -> tuple[int, int]:
    """Where the first line end begins, and where the last line end is over; (-1, 0): there is none.

    Only the part between the two is split into lines: the rest is most of a large event, and splitting takes twenty
    times as long as finding.
    """
    lf, cr = chunk.find(b"\n"), chunk.find(b"\r")
    begin = max(lf, cr) if lf < 0 or cr < 0 else min(lf, cr)
    return begin, max(chunk.rfind(b"\n"), chunk.rfind(b"\r")) + 1
