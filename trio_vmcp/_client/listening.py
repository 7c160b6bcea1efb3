"""One loop for every stream that a client holds open to hear of changes, and when it is opened again.

The GET of the handshake era and `subscriptions/listen` of the modern one are such streams.
"""

from __future__ import annotations

import abc
import logging
import random
from collections.abc import Callable
from typing import Literal, TypeAlias

import attrs
import trio

from trio_vmcp._protocol.methods import LIST_CHANGED, RESOURCE_UPDATED, Kind
from trio_vmcp.errors import BackendError, BackendUnavailable
from trio_vmcp.models import JSON

__all__ = [
    "LEAST_RETRY",
    "MOST_RETRY",
    "HeldStream",
    "Listening",
    "StreamBackoff",
    "report_missed",
]

logger = logging.getLogger("trio_vmcp.client")

Listening: TypeAlias = Literal["none", "open", "retrying", "ended"]
"""
none      nothing needs a stream, the backend offers none, or its first answer is not here yet
open      changes are heard of
retrying  the stream broke or ended, and is opened again
ended     the stream ended too often in a row: changes are no longer heard of, calls work as ever
"""

LEAST_RETRY, MOST_RETRY = 0.1, 60.0  # s, whatever a backend asks for with `retry`
MOST_FRUITLESS = 10  # reconnects in a row to a stream that brings nothing
# s. A stream that was held for so long did what it is for, though there was nothing to say: proxies end idle streams,
# commonly after 55 s and more. Opened again at this pace it is no storm.
HELD_LONG = 30.0
_AWAY = frozenset({502, 503, 504})  # a gateway answers for a backend that does not
_JITTER = 0.2


@attrs.define
class StreamBackoff:
    """When a stream that ended is opened again, and when no more.

    Every end counts, clean or not: a server that closes at once, for ever, must not be asked for ever.

    Attributes:
        first, most: s between two attempts; doubled from one to the other, ±20 %.
        retry: s, as the stream last asked; kept at the first attempt, and at least kept at the next ones.
    """

    first: float
    most: float
    retry: float | None = None
    _fruitless: int = attrs.field(default=0, init=False)

    def note_use(self) -> None:
        """The stream was of use: what went wrong before is forgotten."""
        self._fruitless = 0

    def note_error(self, error: BackendError) -> None:
        """An attempt ended in this error."""
        if isinstance(error, BackendUnavailable) and not error.may_have_executed:
            self._keep_trying()

    def note_status(self, status: int) -> None:
        """A stream that was open before was refused with this HTTP status."""
        if status in _AWAY:
            self._keep_trying()

    def _keep_trying(self) -> None:
        """A backend that cannot be reached says nothing about its streams: go on at the slowest pace, and never give
        up. Else nothing would find out that the backend is back.
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


@attrs.define(eq=False, kw_only=True)
class HeldStream(abc.ABC):
    """One task that holds a stream open, and opens it again for as long as there is backoff. No request fails with it:
    without the stream, changes are not heard of.

    Attributes:
        listening: Whether changes are heard of.
        settled: Set when the stream is open for the first time, or will not be open at once.
        is_running: Messages may still come by the stream.
    """

    backend_id: str
    backoff: StreamBackoff
    listening: Listening = attrs.field(default="none", init=False)
    settled: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    is_running: bool = attrs.field(default=True, init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)

    def close(self) -> None:
        """End the stream, without waiting."""
        self.listening = "none"
        self._scope.cancel(reason="nothing is heard by this stream any more")

    async def run(self) -> None:
        """Hold the stream, until it is closed, not offered, or given up."""
        try:
            with self._scope:
                await self._hold()
        finally:
            self.is_running = False
            self.settled.set()

    async def _hold(self) -> None:
        while await self.open_once():
            delay = self.backoff.next_delay()
            if delay is None:
                self.listening = "ended"
                logger.warning(
                    "backend %r: its stream for changes ended too often without use; not listening any more",
                    self.backend_id,
                )
                return
            self.listening = "retrying"
            await trio.sleep(delay)
        self.listening = "none"

    @abc.abstractmethod
    async def open_once(self) -> bool:
        """Open the stream and take what comes, to its end. Returns whether to open it again."""

    def note_ended(self, opened_at: float) -> None:
        """A stream that was opened then has ended."""
        if trio.current_time() - opened_at >= HELD_LONG:
            self.backoff.note_use()


def report_missed(on_event: Callable[[str, JSON], None], kinds: tuple[Kind, ...], uris: tuple[str, ...]) -> None:
    """Nothing is sent again of what a server said while no stream was open: report all of it as changed."""
    for kind in kinds:
        on_event(LIST_CHANGED[kind], {})
    for uri in uris:
        on_event(RESOURCE_UPDATED, {"uri": uri})
