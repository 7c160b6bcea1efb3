"""How deep the arrays and objects of a JSON text nest. Sans-IO.

Asked of the text, and not of what is parsed: a list of 1000 tools is 4000 objects all over the memory, and 14 KB of
brackets.
"""

from __future__ import annotations

from collections.abc import Generator

from trio_vmcp._protocol.json_cost import slices

__all__ = ["BRACKETS_AT_ONCE", "is_deeper"]

BRACKETS_AT_ONCE = 64 * 1024  # looked at one by one, in 3 ms
_ROUNDS = 8  # after which most messages have no bracket left

_TO_BRACES = bytes.maketrans(b"[]", b"{}")
_OTHERS = bytes(set(range(256)) - set(b'[]{}"'))


def is_deeper(text: str, most: int) -> Generator[None, None, bool]:
    """Whether the brackets of `text` nest deeper than `most`, with a step for some of them each. Of a text that is no
    JSON the answer means nothing.
    """
    pieces: list[bytes] = []
    for piece in slices(text):
        if "\\" in piece:
            piece = piece.replace("\\\\", "").replace('\\"', "")
        pieces.append(piece.encode("utf-8", "surrogatepass").translate(_TO_BRACES, _OTHERS))
        yield
    braces = _outside_strings(b"".join(pieces))
    for _ in range(min(most, _ROUNDS)):
        braces = braces.replace(b"{}", b"")  # the innermost of all branches: one level less
    depth, most = 0, most - min(most, _ROUNDS)
    for start in range(0, len(braces), BRACKETS_AT_ONCE):
        yield
        for brace in braces[start : start + BRACKETS_AT_ONCE]:
            depth += 1 if brace == _OPENING else -1
            if depth > most:
                return True
    return False


_OPENING = ord("{")


def _outside_strings(braces: bytes) -> bytes:
    """The braces among braces and quotes that stand outside of strings."""
    if 2 * braces.count(b'""') == braces.count(b'"'):  # no string holds any; what follows takes twice as long
        return braces.translate(None, b'"')
    braces = braces.replace(b'""', b"")  # strings without brackets, which are nearly all, and gaps of others
    return b"".join(braces.split(b'"')[::2])
