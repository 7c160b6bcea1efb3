"""The events of one stream to a client: those that wait for a slow reader, and those that are kept for a resume."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import attrs
import trio

from trio_vmcp._protocol.sse import encode_event, encode_priming
from trio_vmcp.serve._asgi import ClientGone, HttpReply

__all__ = ["EVENT_STREAM", "RETRY", "EventStream"]

RETRY = 1000  # ms, after which a client opens a stream again that has ended
# Proxies must pass events on at once: nginx buffers replies, and others compress them, unless told otherwise.
EVENT_STREAM = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
_COMMENT = b": keep-alive\n\n"
_AT_ONCE = 256 * 1024  # bytes, written together
MOST_BYTES = 4 * 1024 * 1024  # of the events of one stream, beside those that must not be dropped and the newest


@attrs.frozen
class _Event:
    number: int
    data: bytes = attrs.field(repr=False)
    may_drop: bool


@attrs.define(eq=False)
class EventStream:
    """Messages to a client, in order. `put` never waits: the task that reads from a backend must not wait for a client.

    Over `capacity` events or `MOST_BYTES`, the oldest that were sent already are discarded, then the oldest that may be
    dropped: progress and log messages. Questions and results stay; their number is limited elsewhere.

    Attributes:
        name: Begins the ids of the events, which are unique in the session of the client; empty: the events have no
            ids, and are not kept once they are sent.
        is_finished: No event follows.
        size: Bytes of the events that are kept.
    """

    name: str
    capacity: int
    is_finished: bool = attrs.field(default=False, init=False)
    size: int = attrs.field(default=0, init=False)
    _events: deque[_Event] = attrs.field(factory=deque, init=False, repr=False)
    _last: int = attrs.field(default=0, init=False)  # the number of the newest event
    _sent: int = attrs.field(default=0, init=False)
    _news: trio.Event | None = attrs.field(default=None, init=False, repr=False)  # the writer waits for it
    _writing: trio.CancelScope | None = attrs.field(default=None, init=False, repr=False)
    _reader: HttpReply | None = attrs.field(default=None, init=False, repr=False)

    @property
    def is_read(self) -> bool:
        """It belongs to a connection."""
        return self._reader is not None

    def is_read_elsewhere(self, reply: HttpReply) -> bool:
        """It belongs to another connection than this one: the client has come back."""
        return self._reader is not None and self._reader is not reply

    @contextmanager
    def read_by(self, reply: HttpReply) -> Iterator[None]:
        """It belongs to this connection meanwhile, from before the head is written, and no longer to the one before."""
        self.detach()
        self._reader = reply
        try:
            yield
        finally:
            if self._reader is reply:
                self._reader = None

    def prime(self) -> None:
        """Give the client an id to resume from, before there is an event."""
        self._append(encode_priming(self._next_id(), RETRY), may_drop=True)

    def put(self, data: bytes, *, may_drop: bool) -> None:
        """Queue one message, as JSON."""
        self._append(encode_event(data, self._next_id() if self.name else None), may_drop=may_drop)

    def finish(self) -> None:
        self.is_finished = True
        self._wake()

    def detach(self) -> None:
        """The client is gone, or reads another stream."""
        if self._writing is not None:
            self._writing.cancel(reason="the client is gone")

    async def write_to(self, reply: HttpReply, *, after: int | None, keep_alive: float) -> bool:
        """Write the events to the connection that the stream belongs to, until the stream is finished.

        Args:
            after: The number of the last event that the client has, as it says; None: begin with what was not sent yet.
            keep_alive: s without an event, after which a comment is written.

        Returns:
            Whether the stream was written to its end; False: another connection reads it, or the client is gone.
        """
        if self._reader is not reply:  # the client came back once more while the head of this connection was written
            return False
        if after is not None:
            self._sent = min(after, self._last)
        with trio.CancelScope() as scope:
            self._writing = scope
            try:
                while True:
                    await self._write_waiting(reply)
                    if self.is_finished:
                        return True
                    self._news = trio.Event()
                    with trio.move_on_after(keep_alive) as silence:
                        await self._news.wait()
                    self._news = None
                    if silence.cancelled_caught:
                        await reply.write(_COMMENT)
            except ClientGone:
                pass
            finally:
                if self._writing is scope:
                    self._writing = None
        return False

    async def _write_waiting(self, reply: HttpReply) -> None:
        while self._sent < self._last:
            pieces, size = [], 0
            for event in self._events:
                if event.number > self._sent and size < _AT_ONCE:
                    pieces.append(event)
                    size += len(event.data)
            if not pieces:  # dropped
                break
            await reply.write(b"".join([event.data for event in pieces]))
            self._sent = pieces[-1].number
            if not self.name:
                while self._events and self._events[0].number <= self._sent:
                    self._discard(self._events[0])

    def _next_id(self) -> str:
        return f"{self.name}-{self._last + 1}"

    def _append(self, data: bytes, *, may_drop: bool) -> None:
        self._last += 1
        self._events.append(_Event(self._last, data, may_drop))
        self.size += len(data)
        while len(self._events) > self.capacity or self.size > MOST_BYTES:
            least = self._least_needed()
            if least is None:
                break
            self._discard(least)
        self._wake()

    def _least_needed(self) -> _Event | None:
        """An event that may go, but never the newest."""
        older = islice(self._events, len(self._events) - 1)
        return next((event for event in older if event.number <= self._sent or event.may_drop), None)

    def _discard(self, event: _Event) -> None:
        self._events.remove(event)
        self.size -= len(event.data)

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()
