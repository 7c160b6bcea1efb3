"""Numbers that are written again as they were read: 1.50 and 1e3 stay, where `json` would write 1.5 and 1000.0.

JSON leaves the spelling of numbers open (RFC 8259 §6), but a server between two others must not change it: "1.50" may
be a price that is signed or compared as text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

__all__ = ["SpelledFloat", "encode_spelled", "holds_spelled", "keep_spelling"]


class SpelledFloat(float):
    """A float that Python would write differently from how it was read. It behaves like a float everywhere else.

    Attributes:
        spelling: As it was read.
    """

    __slots__ = ("spelling",)
    spelling: str

    def __reduce__(self) -> tuple[Callable[[str], float], tuple[str]]:
        return keep_spelling, (self.spelling,)


class _Made:
    """Whether this process has read such a number at all: most never do, and then no value need be searched."""

    any = False


def keep_spelling(literal: str, value: float | None = None) -> float:
    """The number of a literal. `value`, if it is known already, saves reading it twice."""
    number = float(literal) if value is None else value
    if repr(number) == literal:
        return number
    spelled = SpelledFloat(number)
    spelled.spelling = literal
    _Made.any = True
    return spelled


def holds_spelled(value: Any) -> bool:
    """Whether a JSON value holds a number that needs its spelling."""
    if not _Made.any:
        return False
    waiting = [value]
    while waiting:
        node = waiting.pop()
        kind = type(node)
        if kind is dict:
            waiting += node.values()
        elif kind is list or kind is tuple:
            waiting += node
        elif kind is SpelledFloat:
            return True
    return False


def encode_spelled(value: Any) -> str:
    """JSON without blanks, in which numbers have their spelling. Slower than `json`, by a factor of about ten.

    Raises:
        ValueError, TypeError: As `json.dumps`.
    """
    # The encoder in C has no place for this; the one in Python takes a function for floats.
    pieces: list[str] = []
    _write(value, pieces.append)
    return "".join(pieces)


_plain = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _write(value: Any, put: Callable[[str], None]) -> None:
    if not holds_spelled(value):
        put(_plain(value))
    elif type(value) is SpelledFloat:
        put(value.spelling)
    elif isinstance(value, dict):
        separator = "{"
        for key, member in value.items():
            put(f"{separator}{_plain(key)}:")
            _write(member, put)
            separator = ","
        put("}")
    else:
        separator = "["
        for element in value:
            put(separator)
            _write(element, put)
            separator = ","
        put("]")
