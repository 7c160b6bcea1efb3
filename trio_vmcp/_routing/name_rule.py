"""What an advertised name may look like, and how a name that does not fit is changed."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Collection
from functools import lru_cache
from typing import Literal, TypeAlias

import attrs

__all__ = ["AS_COMPOSED", "NameRule", "NamesFor", "name_rule"]

NamesFor: TypeAlias = Literal["models", "mcp"]

# "models": what the APIs of all large models take as the name of a tool. "mcp": MCP 2025-11-25, tools, "Tool Names".
_CHARACTERS: dict[NamesFor, str] = {"models": "A-Za-z0-9_-", "mcp": "A-Za-z0-9_.-"}
_MAX_LENGTH: dict[NamesFor, int] = {"models": 64, "mcp": 128}

_DIGEST_LENGTH = 12  # base32 characters, 60 bits: two of 10 000 names collide with a probability of 4e-11
_SEPARATOR = "_"
_DIGEST = re.compile(rf"{_SEPARATOR}[a-z2-7]{{{_DIGEST_LENGTH}}}\Z")


@attrs.frozen
class NameRule:
    """The characters and the length of advertised names."""

    max_length: float
    _fits: re.Pattern[str]
    _foreign: re.Pattern[str]

    def fit_all(self, names: Collection[str]) -> bool:
        """Whether `fit` leaves all of these as they are. For one after the other that takes four times as long."""
        return (
            "" not in names
            and len(max(names, key=len, default="")) <= self.max_length
            and self._foreign.search("".join(names)) is None
        )

    def legible(self, name: str) -> str:
        """The name with "_" in place of each foreign character."""
        return self._foreign.sub(_SEPARATOR, name)

    def cuts(self, name: str) -> bool:
        """Whether a name that does not fit loses its beginning."""
        return len(name) + len(_SEPARATOR) + _DIGEST_LENGTH > self.max_length

    def may_be_changed(self, name: str) -> bool:
        """Whether an advertised name ends as one that `fit` has changed."""
        return _DIGEST.search(name) is not None

    def fit(self, name: str) -> str:
        """The name itself if it fits. Else each foreign character becomes "_", and the name ends in a digest of what it
        was. A name that is too long is cut at its beginning, where the prefix stands: the tool's own name says more.

        A function of the composed name alone: two backends that compose one name still have one name, so that a binding
        keeps it from the other.
        """
        if self._fits.fullmatch(name):
            return name
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        tail = _SEPARATOR + base64.b32encode(digest).decode("ascii").lower()[:_DIGEST_LENGTH]
        legible = self.legible(name)
        too_long = len(legible) + len(tail) - self.max_length
        return (legible[int(too_long) :] if too_long > 0 else legible) + tail


# Any name fits, and no character is foreign: this pattern matches nothing, and a search for it takes little time.
AS_COMPOSED = NameRule(math.inf, re.compile(r"[\s\S]*"), re.compile(r"\0(?!)"))


@lru_cache(maxsize=16)  # all sessions of a factory have the same
def name_rule(names_for: NamesFor, max_length: float | None) -> NameRule:
    """The rule for these readers; `max_length` None: their own limit."""
    length = _MAX_LENGTH[names_for] if max_length is None else max_length
    characters, most = _CHARACTERS[names_for], "" if math.isinf(length) else int(length)
    return NameRule(length, re.compile(f"[{characters}]{{1,{most}}}"), re.compile(f"[^{characters}]"))
