"""What a JSON text costs to parse, counted before it is parsed, in slices. Sans-IO.

Time and memory of a parse go with the number of values, not of bytes: 16 MiB of `[],` take seconds and half a GiB. So a
text is limited in its values (members of objects and elements of arrays) and in the digits of its numbers. Brackets,
commas and digits inside strings do not count.

Two shortcuts prove at a tenth of the cost that most texts are within the limits. Few long strings are skipped one by
one. With many short strings, all commas, brackets and digits are counted, wherever they stand: an upper bound. A text
that may be over a limit by that is counted exactly. The count of invalid JSON (RFC 8259) is exact up to the first
error, where a parser stops.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Iterator
from typing import Any

import attrs

__all__ = [
    "MOST_DIGITS",
    "MOST_NUMBER_DIGITS",
    "MOST_VALUES",
    "JsonCost",
    "TooCostly",
    "check_cost",
    "is_cheap",
    "memory_size",
    "slices",
]

MOST_VALUES = 100_000  # by default

MOST_NUMBER_DIGITS = 4300  # in one number: the default of sys.set_int_max_str_digits, since int() takes quadratic time
MOST_DIGITS = 100_000  # in all numbers of one text
NODE_BYTES = 64  # of one Python object, roughly: a small message may take thirty times its bytes
SLICE = 256 * 1024  # characters; the exact count of one takes 1 ms, and 9 ms at most
_DIGITS = b"0123456789"
_OF_NUMBERS = _DIGITS + b"+-.eE"
_NOT_COUNTED = bytes(set(range(256)) - set(_DIGITS + b",[{"))
_MOST_OTHERS = 4  # characters of one number that are no digits: -0.1e+1
_EMPTY = re.compile(rb"[\[{][ \t\n\r]*[\]}]")
_NUMBER = re.compile(rb"[0-9+\-.eE]+")  # each run once: to look for long runs alone would try at every character


class TooCostly(ValueError):
    """The text is over a limit. The message completes the sentence "a message that …"."""


def is_cheap(text: str, max_values: float) -> bool:
    """Whether `text` needs no count, being too short for too many values or digits. It may hold one number of over
    MOST_NUMBER_DIGITS digits, which the parser refuses.
    """
    if len(text) > max_values or len(text) > MOST_DIGITS:
        return False
    return len(text) <= MOST_NUMBER_DIGITS or _parser_limits_numbers()


def _parser_limits_numbers() -> bool:
    """Whether `int` itself refuses a number of too many digits; an application can switch that off."""
    return 0 < sys.get_int_max_str_digits() <= MOST_NUMBER_DIGITS


def check_cost(text: str, max_values: float) -> Generator[None, None, int]:
    """Prove that a text is within the limits, with a step for each slice. Returns how many values it holds at most.

    Raises:
        TooCostly: It is over a limit.
    """
    cost = JsonCost(max_values)
    outside = _outside_few_strings(text)
    if outside is not None:
        cost.count_outside(outside)
        yield
        return cost.values
    bound = yield from _bound_within(text, min(max_values, MOST_DIGITS))
    if bound is not None:
        return bound
    yield from cost.count(text)
    return cost.values


def _outside_few_strings(text: str) -> str | None:
    """What stands outside of strings; None: that is too long for one step, or so are the strings too many.

    Most long texts are a few long strings, and `find` goes through 1 MiB in 0.02 ms.
    """
    outside: list[str] = []
    length = end = quotes = 0
    while (begin := text.find('"', end)) >= 0:
        outside.append(text[end : begin + 1])  # the quote stands for the string
        length += begin - end
        end = begin + 1
        while True:
            quotes += 1
            end = text.find('"', end) + 1
            if end == 0:
                return None  # no JSON
            if quotes > _FEW_QUOTES + end // _FAR_APART or length > SLICE:
                return None
            if text[end - 2] != "\\":
                break
            before = text[max(begin + 1, end - 1 - _MOST_BACKSLASHES) : end - 1]
            backslashes = len(before) - len(before.rstrip("\\"))
            if backslashes == _MOST_BACKSLASHES:
                return None
            if backslashes % 2 == 0:
                break
    outside.append(text[end:])
    return "".join(outside) if length + len(outside[-1]) <= SLICE else None


_FEW_QUOTES = 16
_FAR_APART = 1024  # characters from one quote to the next, on average
_MOST_BACKSLASHES = 64  # in front of a quote


def _bound_within(text: str, limit: float) -> Generator[None, None, int | None]:
    """The commas, opening brackets and digits of a text, those inside strings counted; None: they are over the limit.

    There are never more values than commas and opening brackets together.
    """
    if not _parser_limits_numbers():
        return None
    counted = 0
    for start in range(0, len(text), SLICE):
        data = text[start : start + SLICE].encode("ascii", "replace")
        counted += len(data.translate(None, _NOT_COUNTED))
        if counted > limit:
            return None
        yield
    return counted


@attrs.define(eq=False)
class JsonCost:
    """The count of one text.

    Attributes:
        max_values: Limit for members and elements together.
        values: Counted so far. A bracket that opens at the end of a slice counts as one value; if the next slice closes
            that array at once, the value is taken back.
        digits: Counted so far.
    """

    max_values: float
    values: int = attrs.field(default=0, init=False)
    digits: int = attrs.field(default=0, init=False)
    _is_inside: bool = attrs.field(default=False, init=False)  # of a string
    _last: bytes = attrs.field(default=b"", init=False)  # the last character outside of strings that is no white space
    _number: bytes = attrs.field(default=b"", init=False)  # at the end of the last slice: it may go on

    def count(self, text: str) -> Iterator[None]:
        """Count `text`, with a step for each slice.

        Raises:
            TooCostly: It is over a limit.
        """
        for piece in slices(text):
            self._count_slice(piece)
            yield

    def _count_slice(self, piece: str) -> None:
        if "\\" in piece:
            piece = piece.replace("\\\\", "").replace('\\"', "")
        parts = piece.split('"')
        outside = '"'.join(parts[self._is_inside :: 2])  # a quote is left for each string: `[""]` is not empty
        self._is_inside ^= len(parts) % 2 == 0
        if self._is_inside:
            outside += '"'
        if outside:
            self.count_outside(outside)

    def count_outside(self, text: str) -> None:
        """Count the next part of a text of which each string is replaced by a quote.

        Raises:
            TooCostly: It is over a limit.
        """
        data = text.encode("ascii", "replace")
        # An array or object that is not empty has one value more than commas.
        self.values += data.count(b",") + data.count(b"[") + data.count(b"{") - len(_EMPTY.findall(data))
        visible = data.strip(b" \t\n\r")
        if visible:
            if self._last in (b"[", b"{") and visible[:1] in (b"]", b"}"):
                self.values -= 1
            self._last = visible[-1:]
        if self.values - (self._last in (b"[", b"{")) > self.max_values:
            raise TooCostly(f"holds over {self.max_values} values (max_json_values)")
        self._count_digits(data)

    def _count_digits(self, data: bytes) -> None:
        self.digits += len(data) - len(data.translate(None, _DIGITS))
        if self.digits > MOST_DIGITS:
            raise TooCostly(f"holds numbers of over {MOST_DIGITS} digits together")
        data = self._number + data
        if self.digits > MOST_NUMBER_DIGITS:
            for found in _NUMBER.findall(data):
                if (
                    len(found) > MOST_NUMBER_DIGITS
                    and len(found) - len(found.translate(None, _DIGITS)) > MOST_NUMBER_DIGITS
                ):
                    raise TooCostly(f"holds a number of over {MOST_NUMBER_DIGITS} digits")
        self._number = data[len(data.rstrip(_OF_NUMBERS)) :][-(MOST_NUMBER_DIGITS + _MOST_OTHERS) :]


def slices(text: str) -> Iterator[str]:
    """A JSON text in pieces of `SLICE` characters, or one more where a piece would end within an escape."""
    start = 0
    while start < len(text):
        piece = text[start : start + SLICE]
        if (len(piece) - len(piece.rstrip("\\"))) % 2:
            piece += text[start + SLICE : start + SLICE + 1]
        start += len(piece)
        yield piece


def memory_size(value: Any, most: int) -> int:
    """Roughly the bytes of memory that a JSON value takes; over `most` the count stops."""
    total, waiting = 0, [value]
    while waiting and total <= most:
        node = waiting.pop()
        total += NODE_BYTES
        if isinstance(node, str):
            total += len(node)
        elif isinstance(node, dict | list | tuple):
            total += NODE_BYTES * len(node)
            if total > most:  # before a million children are put on the list
                break
            if isinstance(node, dict):
                total += sum(map(len, node))
                waiting.extend(node.values())
            else:
                waiting.extend(node)
    return total
