"""The stderr of a child process: written to our log within limits; the last lines are quoted when the process ends."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping

import attrs
import trio

__all__ = ["StderrLog"]

logger = logging.getLogger("trio_vmcp.client.stdio")

MOST_CHARACTERS = 1000  # of one line in the log
LINES_PER_SECOND = 50
MOST_LINES = 10_000  # of one process
LAST_LINES = 3  # that an error quotes:
MOST_QUOTED = 200  # characters of each of them
_MOST_LINE_BYTES = 8 * 1024  # of a line; the rest of the line is discarded
_SHORTEST_SECRET = 6  # characters; shorter values are no secrets, and may be parts of ordinary words


@attrs.define(eq=False)
class StderrLog:
    """Lines of free text. Values of the configured environment are replaced by their names."""

    backend_id: str
    environment: Mapping[str, str] = attrs.field(repr=False)
    _line: bytearray = attrs.field(factory=bytearray, init=False, repr=False)
    _last: deque[str] = attrs.field(factory=lambda: deque(maxlen=LAST_LINES), init=False, repr=False)
    _lines: int = attrs.field(default=0, init=False)
    _second: float = attrs.field(default=0.0, init=False)  # when the current one began
    _lines_this_second: int = attrs.field(default=0, init=False)
    _withheld: int = attrs.field(default=0, init=False)

    async def drain(self, stream: trio.abc.ReceiveStream) -> None:
        """Read until the stream ends: if stderr is not read, the child blocks when the pipe is full."""
        try:
            while chunk := await stream.receive_some():
                self.feed(chunk)
        except trio.BrokenResourceError:
            pass
        self._end_line()  # a last line without its end

    def feed(self, chunk: bytes | bytearray) -> None:
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            self._extend(piece)
            self._end_line()
        self._extend(rest)

    def last_words(self) -> str:
        """The last lines, quoted; empty when there was none."""
        return ", ".join(repr(line[:MOST_QUOTED]) for line in self._last)

    def _extend(self, piece: bytes | bytearray) -> None:
        self._line += piece[: _MOST_LINE_BYTES - len(self._line)]

    def _end_line(self) -> None:
        # Replaced before the text is cut, or a part of a secret could remain.
        text = self._line.decode(errors="replace").strip()
        self._line = bytearray()
        if not text:
            return
        for name, value in self.environment.items():
            if len(value) >= _SHORTEST_SECRET:
                text = text.replace(value, f"${name}")
        self._last.append(text)
        self._log(text)

    def _log(self, text: str) -> None:
        now = trio.current_time()
        if now - self._second >= 1:
            self._tell_withheld()
            self._second, self._lines_this_second = now, 0
        if self._lines >= MOST_LINES or self._lines_this_second >= LINES_PER_SECOND:
            self._withheld += 1
            return
        self._lines += 1
        self._lines_this_second += 1
        logger.debug("backend %r: %s", self.backend_id, _printable(text[:MOST_CHARACTERS]))
        if self._lines == MOST_LINES:
            logger.debug("backend %r: no more of its stderr is shown after %d lines", self.backend_id, MOST_LINES)

    def _tell_withheld(self) -> None:
        if self._withheld and self._lines < MOST_LINES:
            logger.debug("backend %r: %d lines of its stderr were not shown", self.backend_id, self._withheld)
        self._withheld = 0


def _printable(text: str) -> str:
    """Escape characters that could forge lines of a log or control a terminal."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
