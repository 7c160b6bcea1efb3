"""What the streams of both eras have in common that a client holds open to hear of changes. Without I/O."""

from __future__ import annotations

import random
from typing import Literal, TypeAlias

import attrs

from trio_vmcp.connector import EventSink, SessionSink
from trio_vmcp.errors import BackendError, BackendUnavailable, MessageTooLarge
from trio_vmcp.models import JSON

__all__ = [
    "HELD_LONG",
    "LEAST_RETRY",
    "LIST_CHANGED",
    "LIST_KEYS",
    "MOST_RETRY",
    "MOST_SUBSCRIPTIONS",
    "RESOURCE_UPDATED",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "USEFUL",
    "Listening",
    "Patience",
    "Unwatched",
    "declares_subscriptions",
    "listed_as_changing",
    "tell_missed",
    "tell_unwatched",
    "too_many_subscriptions",
]

Listening: TypeAlias = Literal["none", "open", "retrying", "given up"]
"""
none      nothing needs a stream, the backend offers none, or its first answer is not here yet
open      changes are heard of
retrying  it broke or ended, and is opened again
given up  it ended too often in a row: changes are no longer heard of, calls work as ever
"""

SUBSCRIBE, UNSUBSCRIBE = "resources/subscribe", "resources/unsubscribe"
RESOURCE_UPDATED = "notifications/resources/updated"
LIST_CHANGED = {kind: f"notifications/{kind}/list_changed" for kind in ("tools", "resources", "prompts")}
LIST_KEYS = {kind: f"{kind}ListChanged" for kind in LIST_CHANGED}  # in `subscriptions/listen`
# Notifications that are worth a stream. One that brings no other, and ends, has brought nothing.
USEFUL = frozenset(
    [*LIST_CHANGED.values(), RESOURCE_UPDATED, "notifications/message", "notifications/elicitation/complete"]
)

# Resource subscriptions to one backend: in the modern era all of them go out with each new stream, in the legacy era
# each one with each new session.
MOST_SUBSCRIPTIONS = 1000

LEAST_RETRY, MOST_RETRY = 0.1, 60.0  # s, whatever a backend asks for with `retry`
MOST_FRUITLESS = 10  # reconnects in a row to a stream that brings nothing
# s. A stream that was held for so long did what it is for, though there was nothing to say: proxies end what is idle,
# commonly after 55 s and more. Opened again at this pace it is no storm.
HELD_LONG = 30.0
_AWAY = frozenset({502, 503, 504})  # HTTP's ways to say that it is somebody else who does not answer
_JITTER = 0.2


@attrs.define
class Patience:
    """When a stream that ended is opened again, and when no more.

    Every end counts, clean or not: a server that closes at once, for ever, must not be asked for ever.

    Attributes:
        first, most: s, between two attempts; doubled from one to the other, ±20 %.
        retry: s, as the stream last asked for; kept at the first attempt, and at least kept at the next ones.
    """

    first: float
    most: float
    retry: float | None = None
    _fruitless: int = attrs.field(default=0, init=False)

    def reward(self) -> None:
        """The stream was of use: what went wrong before is forgotten."""
        self._fruitless = 0

    def note(self, error: BackendError) -> None:
        """Why there was no stream, or no more of it."""
        if isinstance(error, BackendUnavailable) and not error.may_have_executed:
            self._spare()

    def note_status(self, status: int) -> None:
        """How a stream was refused that was open before. A gateway speaks for who is away behind it."""
        if status in _AWAY:
            self._spare()

    def _spare(self) -> None:
        """Who cannot even be reached says nothing about streams, however long he is away: asked as seldom as ever, but
        not given up. Else nobody would find out that he is back.
        """
        self._fruitless = min(self._fruitless, MOST_FRUITLESS - 1)

    def next_delay(self) -> float | None:
        """s until the next attempt; None: there is none."""
        if self._fruitless >= MOST_FRUITLESS:
            return None
        backoff = min(self.first * 2.0**self._fruitless, self.most) * random.uniform(1 - _JITTER, 1 + _JITTER)
        asked = None if self.retry is None else min(max(self.retry, LEAST_RETRY), MOST_RETRY)
        self._fruitless += 1
        if asked is None:
            return max(backoff, LEAST_RETRY)
        return asked if self._fruitless == 1 else max(asked, backoff)


_LISTED_BY = {f"{kind}/list": kind for kind in LIST_CHANGED}  # a session asks for templates behind resources


@attrs.define
class Unwatched:
    """The kinds of lists that were asked for while no stream told of their changes. What changes between the question
    and the stream is told by nobody, so they are asked for once more when there is one. To have the stream first would
    cost every opening the time until it is there, and some servers send no head before they have something to say.
    """

    _kinds: set[str] = attrs.field(factory=set, init=False)

    def note(self, method: str, listening: Listening) -> None:
        """A request goes out. What is asked for while a stream is open is new enough, or the stream says so."""
        if method in _LISTED_BY and listening != "open":
            self._kinds.add(_LISTED_BY[method])

    def take(self, kinds: tuple[str, ...]) -> tuple[str, ...]:
        """Those of these kinds, which are told of from now on."""
        taken = tuple(kind for kind in kinds if kind in self._kinds)
        self._kinds.difference_update(taken)
        return taken


def listed_as_changing(capabilities: JSON) -> tuple[str, ...]:
    """The kinds of lists whose changes a server declares to tell of."""
    return tuple(kind for kind in LIST_CHANGED if _declared(capabilities, kind, "listChanged"))


def declares_subscriptions(capabilities: JSON) -> bool:
    return _declared(capabilities, "resources", "subscribe")


def _declared(capabilities: JSON, kind: str, flag: str) -> bool:
    declared = capabilities.get(kind)
    return isinstance(declared, dict) and declared.get(flag) is True


def tell_missed(events: EventSink, kinds: tuple[str, ...], uris: tuple[str, ...]) -> None:
    """Nothing is sent again of what a server said while nobody listened: as far as we know, all of it has changed."""
    for kind in kinds:
        events(LIST_CHANGED[kind], {})
    for uri in uris:
        events(RESOURCE_UPDATED, {"uri": uri})


def tell_unwatched(events: EventSink, kinds: tuple[str, ...]) -> None:
    """Lists were asked for before their changes were heard of. A sink that knows of changes alone is told of those."""
    if isinstance(events, SessionSink):
        events.listed_too_early(kinds)
    else:
        tell_missed(events, kinds, ())


def too_many_subscriptions(backend_id: str) -> MessageTooLarge:
    return MessageTooLarge(backend_id, f"has {MOST_SUBSCRIPTIONS} resource subscriptions, and there may be no more")
