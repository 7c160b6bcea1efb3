"""Messages to one client that wait until it reads them, and those that are kept for a client that comes back: bounded
in number and in bytes.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

import attrs

__all__ = ["AT_ONCE", "MOST_BYTES", "Backlog"]

AT_ONCE = 256 * 1024  # bytes, written together
MOST_BYTES = 4 * 1024 * 1024  # of one backlog, beside the messages that must not be dropped and the newest


@attrs.define
class _Message:
    number: int
    data: bytes = attrs.field(repr=False)
    may_drop: bool


@attrs.define(eq=False)
class Backlog:
    """Messages in order. `add` never waits: the task that reads from a backend must not wait for a client.

    Over `capacity` messages or `MOST_BYTES`, the oldest that were sent already are discarded, then the oldest that may
    be dropped: progress, log messages and changes. Questions and results stay; their number is limited elsewhere.

    Attributes:
        capacity: Messages.
        keeps_sent: Messages that were sent stay, while there is room.
        size: Bytes of the messages.
        last: The number of the newest; 0: there was none.
        sent: The number of the last that was sent.
    """

    capacity: int
    keeps_sent: bool = False
    size: int = attrs.field(default=0, init=False)
    last: int = attrs.field(default=0, init=False)
    sent: int = attrs.field(default=0, init=False)
    _messages: deque[_Message] = attrs.field(factory=deque, init=False, repr=False)

    @property
    def is_full(self) -> bool:
        """Over a limit: behind `add`, with messages that must not be dropped."""
        return len(self._messages) > self.capacity or self.size > MOST_BYTES

    def add(self, data: bytes, *, may_drop: bool) -> None:
        self.last += 1
        self._messages.append(_Message(self.last, data, may_drop))
        self.size += len(data)
        while self.is_full:
            least = self._least_needed()
            if least is None:
                break
            self._messages.remove(least)
            self.size -= len(least.data)

    def waiting(self) -> tuple[list[bytes], int]:
        """The next messages to send, about `AT_ONCE` bytes of them, and the number of the last one."""
        pieces: list[bytes] = []
        size, number = 0, self.sent
        for message in self._messages:
            if message.number > self.sent and size < AT_ONCE:
                pieces.append(message.data)
                size += len(message.data)
                number = message.number
        return pieces, number

    def mark_sent(self, number: int) -> None:
        """All messages up to this one were sent."""
        self.sent = number
        if not self.keeps_sent:
            while self._messages and self._messages[0].number <= number:
                self.size -= len(self._messages.popleft().data)

    def clear(self) -> None:
        self._messages.clear()
        self.size, self.sent = 0, self.last

    def _least_needed(self) -> _Message | None:
        """One that may go, but never the newest."""
        older = islice(self._messages, len(self._messages) - 1)
        return next((message for message in older if message.number <= self.sent or message.may_drop), None)
