"""Faults of a scripted backend, and when they strike.

A `WireFault` works on the raw bytes of an HTTP response, its head included, so that a test can sweep over every byte.
Faults are pure: `steps` says what to send, and the server sends it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import attrs

from trio_vmcp.models import JSON
from trio_vmcp.testing.exchange import Exchange

__all__ = [
    "CONNECT",
    "Cut",
    "Delay",
    "Disconnect",
    "Drip",
    "Error",
    "Fault",
    "FaultRule",
    "Flip",
    "Hang",
    "Raw",
    "Refuse",
    "Reset",
    "Rewrite",
    "Stall",
    "Status",
    "WireFault",
]

CONNECT = "connect"
"""Matches a connection attempt, which has no request yet: `backend.fail(CONNECT, Refuse())`."""

HEAD_END = b"\r\n\r\n"


class Cut(enum.Enum):
    """How the connection behaves when a response is cut."""

    EOF = "eof"
    RESET = "reset"
    STALL = "stall"  # nothing more is sent, until the client closes the connection


Step: TypeAlias = bytes | float | Cut
"""Send these bytes; wait so many seconds; end like this."""


class WireFault:
    """A fault of the raw response. The request itself is handled normally: a tool that is called has run."""

    __slots__ = ()

    def steps(self, sent: int, data: bytes) -> Iterator[Step]:
        """The steps for `data`, after `sent` bytes of the same response."""
        raise NotImplementedError


@attrs.frozen
class _CutAfter(WireFault):
    """The response is cut after some raw bytes; a shorter response is sent whole.

    Attributes:
        after_bytes: 0 to the `response_bytes` of a recorded exchange; 0 sends nothing.
    """

    after_bytes: int

    cut = Cut.EOF

    def steps(self, sent: int, data: bytes) -> Iterator[Step]:
        room = self.after_bytes - sent
        if room > len(data):
            yield data
        else:
            yield data[:room]
            yield self.cut


class Disconnect(_CutAfter):
    """The connection ends cleanly: end of file."""


class Reset(_CutAfter):
    """The connection is reset. What was sent before arrives, then the client's stream breaks."""

    cut = Cut.RESET


class Stall(_CutAfter):
    """Nothing more comes, on an open connection."""

    cut = Cut.STALL


@attrs.frozen
class Drip(WireFault):
    """A few bytes at a time.

    Attributes:
        step_seconds: s to wait before each step. Over 0 each step arrives by itself, also under a mock clock.
    """

    bytes_per_step: int = 1
    step_seconds: float = 0.001

    def steps(self, sent: int, data: bytes) -> Iterator[Step]:
        for start in range(0, len(data), self.bytes_per_step):
            yield self.step_seconds
            yield data[start : start + self.bytes_per_step]


@attrs.frozen
class Flip(WireFault):
    """One bit is wrong."""

    byte: int
    bit: int = 0

    def steps(self, sent: int, data: bytes) -> Iterator[Step]:
        at = self.byte - sent
        if 0 <= at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << self.bit)]) + data[at + 1 :]
        yield data


@attrs.frozen
class Hang(WireFault):
    """No answer, ever.

    Attributes:
        at: "head": the request is read and not handled. "body": it is handled, and only the head is sent.
    """

    at: Literal["head", "body"] = "head"

    def steps(self, sent: int, data: bytes) -> Iterator[Step]:
        if not sent:
            yield data[: data.index(HEAD_END) + len(HEAD_END)]  # h11 writes a head in one piece
        yield Cut.STALL


@attrs.frozen
class Refuse:
    """The connection is refused; on `CONNECT` only. Over TCP, which has accepted by then, it is reset at once."""


@attrs.frozen
class Delay:
    """The request is handled `seconds` later; on `CONNECT`, the connection is made so much later."""

    seconds: float


def _header_items(headers: Mapping[str, str] | Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(headers.items() if isinstance(headers, Mapping) else headers)


@attrs.frozen
class Status:
    """This HTTP response instead of handling the request. `headers` may be pairs, to repeat one."""

    code: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = attrs.field(default=(), converter=_header_items)


@attrs.frozen
class Raw:
    """These bytes instead of handling the request, HTTP or not; then end of file."""

    head: bytes = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
    body: bytes = b""


@attrs.frozen
class Error:
    """This JSON-RPC error instead of handling the request."""

    code: int
    message: str
    data: Any = None
    status: int = 200


@attrs.frozen
class Rewrite:
    """The request is handled, and what `change` makes of the JSON-RPC response is sent: JSON, or bytes as they are."""

    change: Callable[[JSON], object]


Fault: TypeAlias = WireFault | Refuse | Delay | Status | Raw | Error | Rewrite


@attrs.define(eq=False)
class FaultRule:
    """A fault and when it strikes.

    Attributes:
        matches: A JSON-RPC method, an HTTP verb, `CONNECT`, or a predicate over the exchange.
        times: How often it still strikes.
        skip: How many matches are still let through first.
        struck: How often it has struck.
    """

    matches: str | Callable[[Exchange], bool]
    fault: Fault
    times: float = math.inf
    skip: int = 0
    struck: int = 0

    def strikes(self, exchange: Exchange | None) -> bool:
        """Whether the fault strikes this exchange (None: a connection attempt); counts the match."""
        if self.times <= 0 or not self._fits(exchange):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        self.struck += 1
        return True

    def _fits(self, exchange: Exchange | None) -> bool:
        if exchange is None:
            return self.matches == CONNECT
        if isinstance(self.matches, str):
            return self.matches in (exchange.method, exchange.verb)
        return self.matches(exchange)
