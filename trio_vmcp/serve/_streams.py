"""The events of one stream to a client: those that wait for a slow reader, and those that are kept for a resume."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

from trio_vmcp._protocol.sse import encode_event, encode_priming
from trio_vmcp.serve._asgi import ClientGone, HttpReply
from trio_vmcp.serve._backlog import Backlog

__all__ = ["EVENT_STREAM", "RETRY", "EventStream"]

RETRY = 1000  # ms, after which a client opens a stream again that has ended
# Proxies must pass events on at once: nginx buffers replies, and others compress them, unless told otherwise.
EVENT_STREAM = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
_COMMENT = b": keep-alive\n\n"


@attrs.define(eq=False)
class EventStream:
    """Messages to a client, in order. `put` never waits.

    Attributes:
        name: Begins the ids of the events, which are unique in the session of the client; empty: the events have no
            ids, and are not kept once they are sent.
        capacity: Events that are kept (`Backlog`).
        is_finished: No event follows.
    """

    name: str
    capacity: int
    is_finished: bool = attrs.field(default=False, init=False)
    _events: Backlog = attrs.field(init=False, repr=False)
    _news: trio.Event | None = attrs.field(default=None, init=False, repr=False)  # the writer waits for it
    _writing: trio.CancelScope | None = attrs.field(default=None, init=False, repr=False)
    _reader: HttpReply | None = attrs.field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._events = Backlog(self.capacity, keeps_sent=bool(self.name))

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

    def has_after(self, number: int | None) -> bool:
        """Whether there is an event behind the one of this number; None: behind those that were sent."""
        return number is None or number < self._events.last

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
            self._events.mark_sent(min(after, self._events.last))
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
        while True:
            pieces, number = self._events.waiting()
            if not pieces:
                break
            await reply.write(b"".join(pieces))
            self._events.mark_sent(number)

    def _next_id(self) -> str:
        return f"{self.name}-{self._events.last + 1}"

    def _append(self, data: bytes, *, may_drop: bool) -> None:
        self._events.add(data, may_drop=may_drop)
        self._wake()

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()
