"""One loop for every stream that a client holds open for notifications, and the delays before the stream is reopened.

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

from trio_vmcp._protocol.headers import limited
from trio_vmcp._protocol.methods import LIST_CHANGED, RESOURCE_UPDATED, Kind
from trio_vmcp._protocol.outcomes import GATEWAY_STATUSES
from trio_vmcp.errors import BackendError, BackendRejected, BackendTimeout, BackendUnavailable
from trio_vmcp.models import JSON

__all__ = [
    "LEAST_RETRY",
    "MAX_SILENCE",
    "MOST_RETRY",
    "HeldStream",
    "Listening",
    "OnReached",
    "StreamBackoff",
    "report_missed",
]

logger = logging.getLogger("trio_vmcp.client")

Listening: TypeAlias = Literal["none", "open", "retrying", "ended"]
"""
none      no stream is needed, the backend offers none, or it has not answered yet
open      notifications are received
retrying  the stream broke or ended, and will be opened again
ended     the stream ended too often in a row and is not opened again; calls work as before
"""

OnReached: TypeAlias = Callable[[BackendError | None], None]
"""Called by an attempt to open a stream again that was open before: with None, the backend has answered; with an error,
the backend was not reached. Not called by an attempt that tells neither.
"""

LEAST_RETRY, MOST_RETRY = 0.1, 60.0  # s, whatever a backend asks for with `retry`
MOST_FRUITLESS = 10  # attempts in a row to open a stream that brings nothing
# s. A stream that was open for so long was of use, even if it brought nothing: proxies end idle streams, commonly after
# 55 s or more, and some platforms end every response after 10 to 29 s. One attempt in that time is no load for a
# backend.
HELD_LONG = 5.0
# s without a byte, comments included, after which a held stream over HTTP is no longer taken for open: a NAT, a
# balancer or a laptop that slept forgets a connection without telling either end. Pipes to a child process end with the
# process, so over stdio silence is no evidence.
MAX_SILENCE = 300.0
# 502 to 504: a gateway answers, and the backend behind it does not. 409, 429: the server has not noticed the end of the
# stream before (the official TypeScript SDK allows one at a time), or asks for a slower pace.
_FOR_NOW = frozenset({409, 429, 502, 503, 504})
_JITTER = 0.2


@attrs.define
class StreamBackoff:
    """The delays between attempts to open a stream, and the end of the attempts.

    Clean ends count, too: a server that closes every stream at once must not be asked for ever.

    Attributes:
        first, most: s, the first and the longest delay; doubled from one to the other, ±20 %.
        retry: s that the server asked for last: the delay before the first attempt, and the least before later ones.
    """

    first: float
    most: float
    retry: float | None = None
    _fruitless: int = attrs.field(default=0, init=False)
    _pause: float = attrs.field(default=0.0, init=False)  # s, that the last refusal asked for

    def note_use(self) -> None:
        """The stream was of use: the attempts before it no longer count."""
        self._fruitless = 0

    def note_error(self, error: BackendError) -> None:
        """An attempt failed with this error."""
        self.note_retry_after(error.retry_after)
        if isinstance(error, BackendUnavailable) and not error.may_have_executed:
            self.keep_trying()

    def note_status(self, status: int) -> None:
        """A stream that was open before was refused with this HTTP status."""
        if status in _FOR_NOW:
            self.keep_trying()

    def note_retry_after(self, seconds: float | None) -> None:
        """A refusal asked with `Retry-After` for this pause before the next attempt."""
        self._pause = max(self._pause, limited(seconds))

    def keep_trying(self) -> None:
        """The backend cannot be reached or does not offer the stream now, which is no verdict on the stream. Go on at
        the slowest pace without an end, or the stream would stay closed after the backend is back, and what was
        reported of the backend would stay as well.
        """
        self._fruitless = min(self._fruitless, MOST_FRUITLESS - 1)

    def next_delay(self) -> float | None:
        """s until the next attempt; None: there are no more attempts."""
        if self._fruitless >= MOST_FRUITLESS:
            return None
        backoff = min(self.first * 2.0**self._fruitless, self.most) * random.uniform(1 - _JITTER, 1 + _JITTER)
        asked = None if self.retry is None else min(max(self.retry, LEAST_RETRY), MOST_RETRY)
        self._fruitless += 1
        pause, self._pause = self._pause, 0.0
        if asked is None:
            return max(backoff, LEAST_RETRY, pause)
        return max(asked if self._fruitless == 1 else max(asked, backoff), pause)


@attrs.define(eq=False, kw_only=True)
class HeldStream(abc.ABC):
    """A task that holds a stream open for notifications, and opens it again when it ends.

    If the stream fails, no request fails: only the notifications are missing.

    Attributes:
        settled: Set when the first attempt to open the stream has succeeded or failed.
        is_running: Messages may still arrive by the stream.
        was_open: An attempt has succeeded.
    """

    backend_id: str
    backoff: StreamBackoff
    _on_reached: OnReached = attrs.field(alias="on_reached", repr=False)
    listening: Listening = attrs.field(default="none", init=False)
    settled: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    is_running: bool = attrs.field(default=True, init=False)
    was_open: bool = attrs.field(default=False, init=False)
    _is_away: bool = attrs.field(default=False, init=False)  # as was reported last
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)

    def close(self) -> None:
        """End the stream, without waiting."""
        self.listening = "none"
        self._scope.cancel(reason="the stream is not needed any more")

    async def run(self) -> None:
        """Hold the stream until it is closed, is not offered, or has ended too often."""
        try:
            with self._scope:
                await self._hold()
        finally:
            self.is_running = False
            self.settled.set()

    async def _hold(self) -> None:
        while await self.open_once():
            if self._is_away:
                self.backoff.keep_trying()
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
        """Open the stream and take its messages until it ends. Returns whether to open it again."""

    def note_attempt(self, asked_at: float, error: BackendError | None) -> None:
        """The outcome of an attempt that began at this time; None: the stream is open, or is not offered any more.

        A stream that was never open tells nothing: some backends that work have none, and take no connection for one.
        Some platforms end a response that has not begun after some seconds, as they end open streams.
        """
        if not self.was_open:
            return
        match error:
            case BackendRejected() if error.status in GATEWAY_STATUSES:
                self._report(error)
            case BackendUnavailable() if not error.may_have_executed or trio.current_time() < asked_at + HELD_LONG:
                self._report(error)
            case BackendUnavailable() | BackendTimeout():
                pass
            case _:
                self._report(None)

    def _report(self, error: BackendError | None) -> None:
        self._is_away = error is not None
        self._on_reached(error)

    def note_ended(self, opened_at: float) -> None:
        """A stream has ended that was opened at this time."""
        if trio.current_time() - opened_at >= HELD_LONG:
            self.backoff.note_use()


def report_missed(on_event: Callable[[str, JSON], None], kinds: tuple[Kind, ...], uris: tuple[str, ...]) -> None:
    """A server does not repeat notifications that it sent while no stream was open: report everything as changed."""
    for kind in kinds:
        on_event(LIST_CHANGED[kind], {})
    for uri in uris:
        on_event(RESOURCE_UPDATED, {"uri": uri})
