"""What a client of the handshake era wants of backends: log messages from some level on, and to hear of resources.

The attributes of its session hold that, for a later process, and for other instances that have the session, too.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping

import attrs

__all__ = ["PROTOCOL_VERSION", "SUBSCRIBED", "WANTED_LEVEL", "News", "Wanted"]

# Attributes of a session. The first is there from its beginning, the others once the client wants something.
PROTOCOL_VERSION, WANTED_LEVEL, SUBSCRIBED = "mcp.protocolVersion", "mcp.logLevel", "mcp.subscribed"
MOST_SUBSCRIBED = 6 * 1024  # bytes, as they are stored with each session. What is beyond that ends with the process
MOST_SENT = 4  # that may be on their way to the storage at the same time


@attrs.frozen
class _Stored:
    """What the attributes say, as they say it; None: nothing."""

    level: str | None
    subscribed: str | None

    @classmethod
    def of(cls, attributes: Mapping[str, str]) -> _Stored:
        return cls(attributes.get(WANTED_LEVEL), attributes.get(SUBSCRIBED))

    def uris(self) -> set[str]:
        return set(json.loads(self.subscribed or "[]"))


@attrs.frozen
class News:
    """What another instance was told by the client, and the backends of this one were not.

    Attributes:
        level: None: it is as before.
        added, removed: URIs.
    """

    level: str | None
    added: frozenset[str]
    removed: frozenset[str]


@attrs.define(eq=False)
class Wanted:
    """What one client wants, as this instance knows.

    Attributes:
        level: None: the client has not asked for one.
        subscribed: The resources that the client wants to hear of.
    """

    level: str | None = attrs.field(init=False)
    subscribed: set[str] = attrs.field(init=False)
    _seen: _Stored = attrs.field(alias="seen", repr=False)
    # The attributes that were looked at last: those of most requests.
    _looked_at: Mapping[str, str] | None = attrs.field(default=None, init=False, repr=False)
    _sent: deque[_Stored] = attrs.field(factory=lambda: deque(maxlen=MOST_SENT), init=False, repr=False)

    @classmethod
    def of(cls, attributes: Mapping[str, str]) -> Wanted:
        """What the attributes of the session say."""
        return cls(_Stored.of(attributes))

    def __attrs_post_init__(self) -> None:
        self.level, self.subscribed = self._seen.level, self._seen.uris()

    def put_into(self, attributes: Mapping[str, str]) -> dict[str, str]:
        """The attributes to be stored. Call this once for each time that they are."""
        wanted = {**attributes, SUBSCRIBED: _listed(self.subscribed)}
        if self.level is not None:
            wanted[WANTED_LEVEL] = self.level
        self._sent.append(_Stored.of(wanted))
        return wanted

    def note_stored(self, attributes: Mapping[str, str]) -> None:
        """The storage has taken these, of `put_into`."""
        self._seen = _Stored.of(attributes)
        self._arrived(self._seen)

    def take_over(self, attributes: Mapping[str, str]) -> News | None:
        """What another instance has stored since this one looked last becomes what the client wants here, too; None:
        there is no such thing. What could not be stored stays as it is.
        """
        if attributes is self._looked_at:
            return None
        self._looked_at = attributes
        stored, before = _Stored.of(attributes), self._seen
        if stored == before or PROTOCOL_VERSION not in attributes:  # without it, an application has set its own
            return None
        self._seen = stored
        if self._arrived(stored):
            return None
        now = stored.uris()
        news = News(
            stored.level if stored.level not in (None, self.level) else None,
            frozenset(now - self.subscribed),
            frozenset((before.uris() - now) & self.subscribed),
        )
        self.level = news.level or self.level
        self.subscribed = (self.subscribed | news.added) - news.removed
        return news

    def _arrived(self, stored: _Stored) -> bool:
        """Whether this instance has sent it. What was sent before has arrived, too, or never will: the same from now on
        is of another instance.
        """
        if stored not in self._sent:
            return False
        while self._sent.popleft() != stored:
            pass
        return True


def _listed(uris: Iterable[str]) -> str:
    """As many as fit."""
    kept: list[str] = []
    size = 2
    for uri in sorted(uris):
        size += len(json.dumps(uri)) + 2
        if size > MOST_SUBSCRIBED:
            break
        kept.append(uri)
    return json.dumps(kept)
