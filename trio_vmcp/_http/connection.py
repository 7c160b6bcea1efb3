"""One HTTP/1.1 connection: a request at a time, its response as a head and pieces of a body."""

from __future__ import annotations

import attrs
import httpx
import trio

from trio_vmcp._http.dial import ConnectedStream
from trio_vmcp._http.response import BadResponse, Headers, ResponseParser

__all__ = ["Connection"]

# Larger pieces are fewer, which saves a sixth of a large body's time where memory costs nothing. But over 128 KiB the C
# library maps each of them anew, and where it does a large body takes a fifth longer.
READ_BYTES = 64 * 1024


@attrs.define(eq=False)
class Connection:
    """Made connected. Used by one task at a time; whoever breaks off in the middle cuts it.

    Attributes:
        idle_since: `trio.current_time()` of its last response's end.
    """

    _connected: ConnectedStream
    idle_since: float = attrs.field(default=0.0, init=False)
    _parser: ResponseParser = attrs.field(factory=ResponseParser, init=False, repr=False)
    _is_closed: bool = attrs.field(default=False, init=False)
    _takes_more: bool = attrs.field(default=True, init=False)  # no write has failed

    @property
    def is_ended(self) -> bool:
        """The response is here to its last byte, and all of it was taken."""
        return self._parser.is_ended and not self._parser.has_body

    @property
    def is_reusable(self) -> bool:
        """Another request may follow: the response is at its end, nothing came behind it, and nobody wants to close."""
        return self._parser.is_clean and self._takes_more and not self._is_closed

    @property
    def is_alive(self) -> bool:
        """An idle connection hears nothing. What it hears all the same is its end, or bytes that nobody asked for."""
        return not self._is_closed and not self._connected.has_news()

    def close(self) -> None:
        """Close the connection at once and for good. A task that waits for its bytes gets an error."""
        self._is_closed = True
        self._connected.close()

    async def send_request(self, verb: str, message: bytes) -> tuple[int, Headers]:
        """Write a request and read the head of its response: the status, and headers whose names are in lower case.

        Raises:
            httpx.TransportError: The connection broke, or what came is not HTTP/1.1.
        """
        parser = self._parser
        parser.begin()
        broken: trio.BrokenResourceError | None = None
        try:
            await self._connected.stream.send_all(message)
        except trio.BrokenResourceError as exc:
            broken, self._takes_more = exc, False  # a server that refuses a body it has not read has answered first
        except trio.ClosedResourceError as exc:
            raise httpx.WriteError("the connection was closed here") from exc
        try:
            while not parser.status:
                await self._read()
        except httpx.TransportError:
            if broken is not None:
                raise httpx.WriteError("the connection broke") from broken
            raise
        if verb == "HEAD":
            parser.end_without_body()
        return parser.status, parser.headers

    async def receive(self) -> bytes | None:
        """The next bytes of the body; None at its end.

        Raises:
            httpx.TransportError: It broke off.
        """
        parser = self._parser
        while not parser.has_body:
            if parser.is_ended:
                return None
            await self._read()
        return parser.take_body()

    async def _read(self) -> None:
        try:
            data = await self._connected.stream.receive_some(READ_BYTES)
        except trio.BrokenResourceError as exc:
            raise httpx.ReadError("the connection broke") from exc
        except trio.ClosedResourceError as exc:
            raise httpx.ReadError("the connection was closed here") from exc
        if data:
            try:
                self._parser.feed(data)
            except BadResponse as exc:
                raise httpx.RemoteProtocolError(str(exc)) from exc
        elif not self._parser.feed_eof():
            raise httpx.RemoteProtocolError("peer closed the connection before its response was whole")
