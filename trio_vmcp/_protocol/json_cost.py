"""What a JSON text costs to parse, counted before it is parsed, in slices. Sans-IO.

Time and memory of a parse go with the number of values, not of bytes: 16 MiB of `[],` take seconds and half a GiB. So a
text is limited in its values (members of objects and elements of arrays) and in the digits of its numbers. Brackets,
commas and digits inside strings do not count.

The count is exact for JSON (RFC 8259). For anything else it is exact up to the first character at which a parser stops.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import attrs

__all__ = ["MOST_DIGITS", "MOST_NUMBER_DIGITS", "MOST_VALUES", "JsonCost", "TooCostly", "is_cheap"]

MOST_VALUES = 100_000  # by default

MOST_NUMBER_DIGITS = 4300  # in one number: the default of sys.set_int_max_str_digits, since int() takes quadratic time
MOST_DIGITS = 100_000  # in all numbers of one text
SLICE = 256 * 1024  # characters; the count of one takes 1 ms, and 9 ms at most
_DIGITS = b"0123456789"
_OF_NUMBERS = _DIGITS + b"+-.eE"
_MOST_OTHERS = 4  # characters of one number that are no digits: -0.1e+1
_EMPTY = re.compile(rb"[\[{][ \t\n\r]*[\]}]")
_LONG_NUMBER = re.compile(rb"[0-9+\-.eE]{%d,}" % (MOST_NUMBER_DIGITS + 1))


class TooCostly(ValueError):
    """The text is over a limit. The message completes the sentence "a message that …"."""


def is_cheap(text: str, max_values: float) -> bool:
    """Whether `text` is too short to be over a limit. (`int` and `float` look for long numbers in it themselves.)"""
    if len(text) > max_values or len(text) > MOST_DIGITS:
        return False
    return len(text) <= MOST_NUMBER_DIGITS or 0 < sys.get_int_max_str_digits() <= MOST_NUMBER_DIGITS


@attrs.define(eq=False)
class JsonCost:
    """The count of one text.

    Attributes:
        max_values: Limit for members and elements together.
        values: Counted so far. An opening bracket at the very end counts as one until its array turns out to be empty.
        digits: Counted so far.
    """

    max_values: float
    values: int = attrs.field(default=0, init=False)
    digits: int = attrs.field(default=0, init=False)
    _is_inside: bool = attrs.field(default=False, init=False)  # of a string
    _last: bytes = attrs.field(default=b"", init=False)  # the last character outside of strings that is no white space
    _number: bytes = attrs.field(default=b"", init=False)  # that may go on in the next slice

    def count(self, text: str) -> Iterator[None]:
        """Count `text`, with a step for each slice.

        Raises:
            TooCostly: It is over a limit.
        """
        start = 0
        while start < len(text):
            piece = text[start : start + SLICE]
            if (len(piece) - len(piece.rstrip("\\"))) % 2:  # the slice ends within an escape
                piece += text[start + SLICE : start + SLICE + 1]
            start += len(piece)
            self._count_slice(piece)
            yield

    def _count_slice(self, piece: str) -> None:
        if "\\" in piece:
            piece = piece.replace("\\\\", "").replace('\\"', "")
        parts = piece.split('"')
        outside = '"'.join(parts[self._is_inside :: 2])  # the quote stands for a string
        self._is_inside ^= len(parts) % 2 == 0
        if self._is_inside:
            outside += '"'
        if outside:
            self._count_outside(outside.encode("ascii", "replace"))

    def _count_outside(self, data: bytes) -> None:
        # A bracket that is not empty has one value more than commas.
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
            for found in _LONG_NUMBER.findall(data):
                if len(found) - len(found.translate(None, _DIGITS)) > MOST_NUMBER_DIGITS:
                    raise TooCostly(f"holds a number of over {MOST_NUMBER_DIGITS} digits")
        self._number = data[len(data.rstrip(_OF_NUMBERS)) :][-(MOST_NUMBER_DIGITS + _MOST_OTHERS) :]
