"""JSON in slices: a long text is parsed, and a large value encoded, in many short steps. Sans-IO.

One call of the parser in C cannot be interrupted, and takes up to 60 ms for 16 MiB with many strings. So arrays and
objects that are longer than a window of the text are walked through here, member by member; whatever fits into the
window is left to C. A container is known to be too long when its parse fails in a window that ends within it. Then the
next window is half as long, so that containers which begin with each other cost no more than twice the longest. A long
string is read and written piece by piece: with one character beyond the BMP among 16 million, it takes 64 MiB.

The result is that of `json`: the last of duplicate keys counts, and what is no JSON (RFC 8259) is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import attrs

from trio_vmcp._protocol.json_cost import memory_size
from trio_vmcp.models import JSON

__all__ = ["decode_in_steps", "encode_in_steps", "split_in_steps"]

SLICE = 256 * 1024  # characters in one step
MEMBER = 128  # characters that a member which is not left to C counts for: some microseconds
_SHORTEST = 1024  # characters of a window, and of the first piece of a string
_ESCAPE, _UNICODE_ESCAPE = 2, 6  # characters: \\n, \\u000a

_BLANKS = re.compile(r"[ \t\n\r]*")
_BLANK = frozenset(" \t\n\r")
_LONG = object()  # in place of a value


def decode_in_steps(
    decoder: json.JSONDecoder, text: str, begin: int = 0, *, most: int = SLICE
) -> Generator[None, None, tuple[Any, int]]:
    """One value and where it ends with the blanks behind it, with a step for each slice.

    Args:
        decoder: Without hooks for objects.
        begin: Where the value begins, blanks included.
        most: Characters in one step.

    Raises:
        ValueError: As `decoder` raises it. The `pos` of a `JSONDecodeError` is that in `text`; its line is not told.
        RecursionError: It is nested too deeply for the parser in C.
    """
    reader = _Reader(decoder, text, most, begin)
    yield from reader.read()
    return reader.root[0], reader.at


def split_in_steps(decoder: json.JSONDecoder, text: str) -> Generator[None, None, list[str]]:
    """The elements of an array, each as its own text, with a step for each slice; empty: `text` is no array of JSON.

    Args:
        decoder: Without hooks for objects.
    """
    reader = _Reader(decoder, text, SLICE, 0)
    parts: list[str] = []
    yield from reader.skip_blanks()
    opening = "["
    while text[reader.at : reader.at + 1] == opening:
        reader.at += 1
        yield from reader.skip_blanks()
        begin = reader.at
        try:
            yield from reader.read()
        except (ValueError, RecursionError, MemoryError):
            return []
        parts.append(text[begin : reader.at])
        reader.root.clear()
        opening = ","
    is_closed = text[reader.at : reader.at + 1] == "]"
    reader.at += 1
    yield from reader.skip_blanks()
    return parts if is_closed and reader.at == len(text) else []


@attrs.define(eq=False)
class _Reader:
    """The state between two steps.

    Attributes:
        at: Where to go on in the text.
        root: Holds the value once it was read.
    """

    _decoder: json.JSONDecoder
    _text: str
    _most: int
    at: int
    root: list[Any] = attrs.field(factory=list, init=False)
    _open: list[list[Any] | dict[str, Any]] = attrs.field(factory=list, init=False)  # the innermost last
    _keys: list[str] = attrs.field(factory=list, init=False)  # of the members of open objects that are being read
    _known_keys: dict[str, str] = attrs.field(factory=dict, init=False)  # equal ones are kept once, as `json` does
    _window: str = attrs.field(default="", init=False)
    _window_at: int = attrs.field(default=0, init=False)
    _length: int = attrs.field(init=False)  # of the next window
    _spent: int = attrs.field(default=0, init=False)  # characters in this step

    def __attrs_post_init__(self) -> None:
        self._length = self._most

    def skip_blanks(self) -> Generator[None, None, None]:
        while self._has_blanks() or self._spent >= self._most:
            self._spent = 0
            yield

    def read(self) -> Generator[None, None, None]:
        """Read one value into `root`, and the blanks around it."""
        yield from self.skip_blanks()
        while True:
            if self._is_at_long_string():
                self._add_value((yield from self._read_string()))
            else:
                self._take_value()
            yield from self.skip_blanks()
            while self._open and self._has_closed():
                yield from self.skip_blanks()
            if not self._open:
                return
            yield from self.skip_blanks()
            if isinstance(self._open[-1], dict):
                yield from self._read_key()
                yield from self.skip_blanks()
                self._take_colon()
                yield from self.skip_blanks()

    def _has_blanks(self) -> bool:
        """Skip blanks; True: so many that the others have to be left to the next step."""
        if self._text[self.at : self.at + 1] not in _BLANK:
            return False
        begin = self.at
        self.at = _BLANKS.match(self._text, begin, begin + self._most).end()  # type: ignore[union-attr]  # it matches everywhere
        self._spent += self.at - begin
        return self.at - begin == self._most

    def _has_closed(self) -> bool:
        """Whether the innermost container ends here; if not, the next member does begin."""
        inside, mark = self._open[-1], self._text[self.at : self.at + 1]
        if mark == ("}" if isinstance(inside, dict) else "]"):
            self._open.pop()
            self.at += 1
            return True
        if inside:  # else this member is the first
            if mark != ",":
                raise _no_json("Expecting ',' delimiter", self.at)
            self.at += 1
        return False

    def _read_key(self) -> Generator[None, None, None]:
        begin = self.at
        if self._text[begin : begin + 1] != '"':
            raise _no_json("Expecting property name enclosed in double quotes", begin)
        if self._is_at_long_string():
            key = yield from self._read_string()
            yield  # its hash takes as long as a slice of many
        else:
            key, self.at = self._decoder.raw_decode(self._text, begin)
            self._spent += self.at - begin
        self._keys.append(self._known_keys.setdefault(key, key))

    def _take_colon(self) -> None:
        if self._text[self.at : self.at + 1] != ":":
            raise _no_json("Expecting ':' delimiter", self.at)
        self.at += 1

    def _take_value(self) -> None:
        """The value that begins here, or only the beginning of an array or object that is too long for a window."""
        begin, mark = self.at, self._text[self.at : self.at + 1]
        value: Any
        if mark not in ("{", "["):
            value, self.at = self._decoder.raw_decode(self._text, begin)
        else:
            value = _LONG
            if begin < self._window_at + len(self._window):
                value = self._value_in_window()
            if value is _LONG:
                self._window, self._window_at = self._text[begin : begin + self._length], begin
                value = self._value_in_window()
                self._spent += self._length
                length = self._length // 2 if value is _LONG else self._length * 2
                self._length = min(max(length, _SHORTEST), self._most)
                if value is _LONG:
                    self._window = ""  # what begins next will hardly end in it either
        is_long = value is _LONG
        if is_long:
            value = {} if mark == "{" else []
            self.at += 1
        self._spent += self.at - begin + MEMBER
        self._add_value(value)
        if is_long:
            self._open.append(value)

    def _add_value(self, value: Any) -> None:
        inside = self._open[-1] if self._open else self.root
        if isinstance(inside, dict):
            inside[self._keys.pop()] = value
        else:
            inside.append(value)

    def _is_at_long_string(self) -> bool:
        """Whether a string begins here that is longer than a slice, or may be: a quote inside of it is escaped."""
        if self._text[self.at : self.at + 1] != '"':
            return False
        end = self._text.find('"', self.at + 1, self.at + 1 + self._most)
        return end < 0 or self._text[end - 1] == "\\"

    def _read_string(self) -> Generator[None, None, str]:
        """The string that begins here, in pieces that each end where no escape is cut."""
        begin, self.at = self.at, self.at + 1
        parts: list[str] = []
        length, is_over = min(_SHORTEST, self._most), False
        while not is_over:
            stop = _behind_escape(self._text, self.at, self.at + length)
            piece = self._text[self.at : stop]
            quoted = f'"{piece}"' if stop < len(self._text) else f'"{piece}'
            try:
                part, end = self._decoder.raw_decode(quoted)
            except json.JSONDecodeError as error:
                raise _no_json(error.msg, self.at - 1 + error.pos if error.pos else begin) from None
            if parts and _begins_with_pair(parts[-1], part) and piece.startswith("\\"):
                part = _paired(parts[-1][-1] + part[0]) + part[1:]
                parts[-1] = parts[-1][:-1]
            parts.append(part)
            is_over = end <= len(piece) + 1  # at a quote of the text, not at ours
            self._spent += end + MEMBER
            self.at += end - 1 if is_over else len(piece)
            length = min(length * 2, self._most)
            if self._spent >= self._most and not is_over:
                self._spent = 0
                yield
        return "".join(parts)

    def _value_in_window(self) -> Any:
        """`_LONG`: it does not end in the window."""
        offset = self._window_at
        try:
            value, end = self._decoder.raw_decode(self._window, self.at - offset)
        except ValueError as error:
            if offset + len(self._window) < len(self._text):
                return _LONG  # also if it is an error of the text, which comes up again
            if isinstance(error, json.JSONDecodeError):
                raise _no_json(error.msg, offset + error.pos) from None
            raise
        self.at = offset + end
        return value


def _no_json(problem: str, at: int) -> json.JSONDecodeError:
    """Without the text, whose lines `json` counts for the error: 20 ms for 64 MiB."""
    error = json.JSONDecodeError(problem, "", 0)
    error.pos = at
    return error


def _behind_escape(text: str, begin: int, end: int) -> int:
    """`end`, or the end of the escape that it stands in. No escape is open at `begin`."""
    last = text.rfind("\\", max(begin, end - _UNICODE_ESCAPE + 1), end)
    if last < 0:
        return end
    before = text[begin : last + 1]
    if (len(before) - len(before.rstrip("\\"))) % 2 == 0:
        return end  # the backslash is the second of an escape
    return max(end, last + (_UNICODE_ESCAPE if text[last + 1 : last + 2] == "u" else _ESCAPE))


def _begins_with_pair(before: str, part: str) -> bool:
    """Whether the two surrogates of one character stand in two parts."""
    return "\ud800" <= before[-1:] <= "\udbff" and "\udc00" <= part[:1] <= "\udfff"


def _paired(surrogates: str) -> str:
    return surrogates.encode("utf-16", "surrogatepass").decode("utf-16")


def encode_in_steps(encoder: json.JSONEncoder, value: Any, *, most: int = SLICE) -> Iterator[str]:
    """The text that `encoder` makes of a value, in pieces of roughly `most` characters.

    Args:
        encoder: Without blanks behind its separators.
        value: Of dicts with str for keys, lists, and what else JSON has, as a parser makes it.
    """
    if memory_size(value, most) <= most or not isinstance(value, dict | list | str):
        yield encoder.encode(value)
        return
    if isinstance(value, str):
        yield '"'
        for start in range(0, len(value), most):
            yield encoder.encode(value[start : start + most])[1:-1]
        yield '"'
        return
    begin, end = "{}" if isinstance(value, dict) else "[]"
    yield begin
    separator = ""
    for some in _groups(value, most):
        if isinstance(some, dict) and len(some) == 1:
            ((key, member),) = some.items()
            yield separator
            yield from encode_in_steps(encoder, key, most=most)
            yield ":"
            yield from encode_in_steps(encoder, member, most=most)
        elif isinstance(some, list) and len(some) == 1:
            yield separator
            yield from encode_in_steps(encoder, some[0], most=most)
        else:
            yield separator + encoder.encode(some)[1:-1]
        separator = ","
    yield end


def _groups(value: JSON | list[Any], most: int) -> Iterator[JSON | list[Any]]:
    """The members of a container in containers of its kind: each is of `most` bytes of memory, or of one member."""
    new_group: Any = type(value)
    group, weight = new_group(), 0
    members: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
    for key, member in members:
        size = memory_size((key, member), most)
        weight += size
        if weight > most and group:
            yield group
            group, weight = new_group(), size
        if isinstance(value, dict):
            group[key] = member
        else:
            group.append(member)
    if group:
        yield group
