"""JSON as it was written: the order of keys, the spelling of numbers and repeated keys count, blanks do not."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, TypeAlias

__all__ = ["MODERN_FIELDS", "Written", "as_written", "member", "without_ours"]

Written: TypeAlias = Any
SERVER_INFO = "io.modelcontextprotocol/serverInfo"
# What the front adds to results for clients of the stateless era, where the backend has not said it.
MODERN_FIELDS = ("resultType", "ttlMs", "cacheScope")


def as_written(text: str | bytes) -> Written:
    """A value that is equal to another one only if both were written alike."""
    return json.loads(
        text,
        parse_float=lambda literal: ("number", literal),
        parse_int=lambda literal: ("number", literal),
        object_pairs_hook=lambda pairs: ("object", pairs),
    )


def member(written: Written, name: str) -> Written:
    """The only member of this name."""
    kind, pairs = written
    assert kind == "object"
    (found,) = [value for key, value in pairs if key == name]
    return found


def without_ours(result: Written, added: Collection[str] = MODERN_FIELDS) -> Written:
    """A result without the members of these names, and without the name of the server that wrote it."""
    kind, pairs = result
    assert kind == "object"
    left = []
    for key, value in pairs:
        if key == "_meta":
            foreign = [(name, each) for name, each in value[1] if name != SERVER_INFO]
            if foreign:
                left.append((key, ("object", foreign)))
        elif key not in added:
            left.append((key, value))
    return ("object", left)
