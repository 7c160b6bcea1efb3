"""One HTTP/1.1 connection: one request after another, each response as a head and pieces of a body."""

from __future__ import annotations

import attrs
import httpx
import trio

from trio_vmcp._http.dial import ConnectedStream
from trio_vmcp._http.proxy import Proxy
from trio_vmcp._http.response import BadResponse, Headers, ResponseParser
from trio_vmcp._nursery import start_task

__all__ = ["Connection"]

# Larger reads save a sixth of a large body's time. But glibc maps every buffer over 128 KiB (M_MMAP_THRESHOLD) anew,
# and then a large body takes a fifth longer.
READ_BYTES = 64 * 1024
# A request of up to this size is written before its response is read. An idle connection takes it without a wait: send
# buffers are empty by then, and the smallest is 16 KiB (the default of `tcp_wmem` on Linux; more on other systems).
AT_ONCE_BYTES = 16 * 1024


@attrs.define(eq=False)
class Connection:
    """A connection that is made and open. One task at a time uses it.

    A task that is cancelled or fails between a request and the end of its response must close the connection: the rest
    of that response would be read as the response to the next request.

    Attributes:
        idle_since: `trio.current_time()` at the end of the last response.
        ended_unused: After an error of `send_request`: the connection was not closed here, it had answered requests
            before, and ended before the first byte of a response to this one. As a rule the server had closed it
            meanwhile, and has not read the request.
    """

    _connected: ConnectedStream
    idle_since: float = attrs.field(default=0.0, init=False)
    ended_unused: bool = attrs.field(default=False, init=False)
    _parser: ResponseParser = attrs.field(factory=ResponseParser, init=False, repr=False)
    _is_closed: bool = attrs.field(default=False, init=False)
    _is_used: bool = attrs.field(default=False, init=False)  # at least one response has begun
    _is_answering: bool = attrs.field(default=False, init=False)  # a byte has arrived since the last request
    _takes_more: bool = attrs.field(default=True, init=False)  # every request was written to its end

    @property
    def is_ended(self) -> bool:
        """The whole response has arrived, and `receive` has handed out all of its body."""
        return self._parser.is_ended and not self._parser.has_body

    @property
    def has_body(self) -> bool:
        """Bytes of the response's body have arrived, and `receive` has not handed them out."""
        return self._parser.has_body

    @property
    def via(self) -> Proxy | None:
        """The proxy that the requests of this connection are for; see `ConnectedStream`."""
        return self._connected.via

    @property
    def is_reusable(self) -> bool:
        """Another request may follow: the response ended, no byte came behind it, and neither side closes the
        connection (RFC 9112 §9.3).
        """
        return self._parser.is_clean and self._takes_more and not self._is_closed

    @property
    def is_alive(self) -> bool:
        """No byte and no end has arrived since the last response. Bytes on an idle connection answer no request, so
        they would be taken for the response to the next one.
        """
        return not self._is_closed and not self._connected.has_unread()

    @property
    def keep_alive(self) -> bytes | None:
        """The header `Keep-Alive` of the last response; None: it had none."""
        return self._parser.keep_alive

    @property
    def pieces(self) -> int:
        """How many pieces the bytes that `receive` returned last had arrived in."""
        return self._parser.pieces

    def close(self) -> None:
        """Close the connection at once and for good. A task that waits for its bytes gets an error."""
        self._is_closed = True
        self._connected.close()

    async def send_request(self, verb: str, message: bytes) -> tuple[int, Headers]:
        """Write a request and read the head of its response: the status, and the headers with names in lower case.

        Raises:
            httpx.TransportError: The connection broke, or what came is not HTTP/1.1.
        """
        parser = self._parser
        parser.begin()
        self._is_answering = False
        if len(message) <= AT_ONCE_BYTES:
            await self._write(message)
            await self._read_head()
        else:
            await self._read_while_writing(message)
        if verb == "HEAD":
            parser.end_without_body()
        return parser.status, parser.headers

    async def _read_while_writing(self, message: bytes) -> None:
        """Write a large request, and read its response meanwhile: a server may refuse a request before it has read all
        of the body, and then read no more (RFC 9112 §9.5). A final response ends the writing.
        """
        failure: httpx.TransportError | None = None
        async with trio.open_nursery() as nursery:
            start_task(nursery, self._write, message)
            try:
                await self._read_head()
            except httpx.TransportError as exc:  # raised below: the nursery would group it
                failure = exc
            nursery.cancel_scope.cancel(reason="the response is here, or will not come")
        if failure is not None:
            raise failure

    async def _write(self, message: bytes) -> None:
        """Write a request. That it cannot be written is told by `_read_head`: a server may answer and close before it
        has read the body (RFC 9112 §9.5), so its response is looked for first.
        """
        self._takes_more = False
        try:
            await self._connected.stream.send_all(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        self._takes_more = True

    async def _read_head(self) -> None:
        try:
            while not self._parser.status:
                await self._read()
            self._is_used = True
        except httpx.TransportError as exc:
            self.ended_unused = self._is_used and not self._is_answering and not self._is_closed
            if self._takes_more or isinstance(exc.__cause__, BadResponse):
                raise
            how = "the connection was closed here" if self._is_closed else "the connection broke"
            raise httpx.WriteError(how) from exc

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
            self._is_answering = True
            try:
                self._parser.feed(data)
            except BadResponse as exc:
                raise httpx.RemoteProtocolError(str(exc)) from exc
        elif not self._parser.feed_eof():
            raise httpx.RemoteProtocolError("peer closed the connection before its response was whole")
