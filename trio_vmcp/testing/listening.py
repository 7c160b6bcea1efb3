"""Streams that outlive one answer: events that a client may resume, and notifications outside of any request."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeAlias

import attrs
import trio

from trio_vmcp.models import JSON
from trio_vmcp.testing.rpc import encode, notification_message

__all__ = ["EventLog", "HeldStreams", "Listeners", "message_event", "wanted_by"]

SUBSCRIPTION_KEYS = {
    "notifications/tools/list_changed": "toolsListChanged",
    "notifications/prompts/list_changed": "promptsListChanged",
    "notifications/resources/list_changed": "resourcesListChanged",
}

Wants: TypeAlias = Callable[[str, JSON], bool]
"""Whether a client is told of a notification of this method, with these params."""


def message_event(message: object) -> bytes:
    """A message as an event without an id."""
    return b"event: message\ndata: " + encode(message) + b"\n\n"


@attrs.define(eq=False)
class EventLog:
    """The events of one answer, kept so that a GET with `Last-Event-ID` can go on where a connection ended."""

    name: str
    ended: bool = attrs.field(default=False, init=False)
    _events: list[bytes] = attrs.field(factory=list, init=False)
    _grown: trio.Event = attrs.field(factory=trio.Event, init=False)

    def append(self, event: bytes) -> bytes:
        """Keep the event and return it with its id."""
        identified = f"id: {self.name}/{len(self._events) + 1}\n".encode() + event
        self._events.append(identified)
        self._wake()
        return identified

    def end(self) -> None:
        self.ended = True
        self._wake()

    async def after(self, count: int) -> list[bytes]:
        """The events after the first `count`: waits for at least one; empty: the log has ended."""
        while count >= len(self._events) and not self.ended:
            await self._grown.wait()
        return self._events[count:]

    def _wake(self) -> None:
        self._grown.set()
        self._grown = trio.Event()


def wanted_by(subscription: JSON) -> Wants:
    """Whether a notification is one that a modern client has subscribed to."""

    def wants(method: str, params: JSON) -> bool:
        if method == "notifications/resources/updated":
            return params.get("uri") in (subscription.get("resourceSubscriptions") or ())
        return subscription.get(SUBSCRIPTION_KEYS.get(method, "")) is True

    return wants


@attrs.define(eq=False)
class Listeners:
    """The clients that listen for notifications. A notification goes to the streams that are open at that moment, and
    into the logs, from which a client resumes an earlier stream.
    """

    logs: list[EventLog] = attrs.field(factory=list, init=False)
    _open: dict[trio.MemorySendChannel[JSON | bytes], Wants] = attrs.field(factory=dict, init=False)

    def notify(self, method: str, params: JSON) -> None:
        self._send(notification_message(method, params), lambda wants: wants(method, params))

    def send(self, message: JSON | bytes) -> None:
        """Send any message to all, subscribed to or not."""
        self._send(message, lambda wants: True)

    def _send(self, message: JSON | bytes, goes_to: Callable[[Wants], bool]) -> None:
        for channel, wants in self._open.items():
            if goes_to(wants):
                channel.send_nowait(message)
        for log in self.logs:
            log.append(message_event(message))

    @asynccontextmanager
    async def listen(
        self, wants: Wants = lambda method, params: True
    ) -> AsyncIterator[trio.MemoryReceiveChannel[JSON | bytes]]:
        send, receive = trio.open_memory_channel[JSON | bytes](float("inf"))  # a test decides how much it sends
        with send, receive, self.forward_to(send, wants):
            yield receive

    @contextmanager
    def forward_to(
        self, send: trio.MemorySendChannel[JSON | bytes], wants: Wants = lambda method, params: True
    ) -> Iterator[None]:
        """While the block runs, notifications also go into `send`. Its channel must have no limit."""
        self._open[send] = wants
        try:
            yield
        finally:
            del self._open[send]


@attrs.define(eq=False)
class HeldStreams:
    """The streams for notifications that clients have open."""

    _scopes: set[trio.CancelScope] = attrs.field(factory=set, init=False)

    def __len__(self) -> int:
        return len(self._scopes)

    @contextmanager
    def hold_stream(self, seconds: float | None) -> Iterator[None]:
        """Around the body of one stream: leaves the block after `seconds` (None: never) or at `cancel_all`."""
        with trio.move_on_after(math.inf if seconds is None else seconds) as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.remove(scope)

    def cancel_all(self) -> None:
        for scope in self._scopes:
            scope.cancel(reason="end_streams")
