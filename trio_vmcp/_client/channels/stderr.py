"""The stderr of a child process: written to our log within limits; the last lines are quoted when the process ends."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Mapping

import attrs
import trio

from trio_vmcp._protocol.words import blotted

__all__ = ["LastWords", "StderrLog"]

logger = logging.getLogger("trio_vmcp.client.stdio")

MOST_CHARACTERS = 1000  # of one line in the log
LINES_PER_SECOND = 50
MOST_LINES = 10_000  # of one process
SEARCHED_LINES = 60  # the last ones, among which an error looks for those that say why
LAST_LINES = 3  # that an error quotes:
MOST_QUOTED = 200  # characters of each of them
_MOST_LINE_BYTES = 8 * 1024  # of a line; the rest of the line is discarded
_MOST_JUDGED = 1000  # characters of a line that is kept


# What says where an error came from, and not what it was: frames, places, source lines, parts of a dumped object.
_FRAME = re.compile(
    r"""\s*(?:at\s|File\s".*",\sline\s\d|\d+:\s|\.{3}\s\d+\smore|[\w./*()-]+\(\S*\)\s*$|\S+:\d+(?::\d+)?(?:\s\+0x\w+)?$)""",
    re.VERBOSE,
)
_PART_OF_OBJECT = re.compile(r"\s+\w+: (?:['\"\[{].*|-?\d+|undefined|null|true|false),?$")
_NO_NEWS = re.compile(
    r"\W*$|Node\.js v\d|note: run with|stack backtrace:|goroutine \d|exit status \d|Traceback \(most recent|"
    r"npm (?:error|ERR!)(?: \d+)?$|npm (?:error|ERR!) A complete log"
)
_SAYS_WHY = re.compile(r"(?i:error|exception|fatal|panic|uncaught|unhandled|cannot|could not|failed|not found|missing)")


@attrs.define(eq=False)
class LastWords:
    """The end of a child's free text.

    Args:
        secrets: As `blotted` takes them.
    """

    _secrets: Mapping[str, str] = attrs.field(alias="secrets", repr=False)
    _lines: deque[str] = attrs.field(factory=lambda: deque(maxlen=SEARCHED_LINES), init=False, repr=False)

    def add(self, line: bytes | bytearray) -> str:
        """Take one line. Returns its text without secrets; empty: it holds none."""
        # Replaced before the text is cut, or a part of a secret could remain.
        text = blotted(line.decode(errors="replace").rstrip(), self._secrets)
        if text:
            self._lines.append(text[:_MOST_JUDGED])
        return text.strip()

    def quoted(self) -> str:
        """The last lines that say why, quoted; where none does, the last lines."""
        lines, in_frame = [], False
        for line in self._lines:
            is_frame = _FRAME.match(line) is not None
            is_source = in_frame and line.startswith((" ", "\t"))  # the source line of a frame
            if not (is_frame or is_source or _PART_OF_OBJECT.match(line) or _NO_NEWS.match(line.strip())):
                lines.append(line.strip())
            in_frame = is_frame
        said = lines[-LAST_LINES:] or [line.strip() for line in self._lines][-LAST_LINES:]
        if lines and not any(map(_SAYS_WHY.search, said)):
            earlier = [line for line in lines[:-LAST_LINES] if _SAYS_WHY.search(line)]
            said = [*earlier[-1:], *said[-2 if earlier else -LAST_LINES :]]
        return ", ".join(repr(line[:MOST_QUOTED]) for line in said)


@attrs.define(eq=False)
class StderrLog:
    """Lines of free text, without secrets: see `LastWords`."""

    backend_id: str
    _secrets: Mapping[str, str] = attrs.field(alias="secrets", repr=False)
    _line: bytearray = attrs.field(factory=bytearray, init=False, repr=False)
    _words: LastWords = attrs.field(init=False, repr=False)
    _lines: int = attrs.field(default=0, init=False)
    _second: float = attrs.field(default=0.0, init=False)  # when the current one began
    _lines_this_second: int = attrs.field(default=0, init=False)
    _withheld: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._words = LastWords(self._secrets)

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
        """The last lines that say why, quoted; empty when there was none."""
        return self._words.quoted()

    def _extend(self, piece: bytes | bytearray) -> None:
        self._line += piece[: _MOST_LINE_BYTES - len(self._line)]

    def _end_line(self) -> None:
        text = self._words.add(self._line)
        self._line = bytearray()
        if text:
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
