"""One HTTP/1.1 connection: a request at a time, its response as a head and pieces of a body. h11 keeps the state.

Requests come as bytes that were made beforehand. h11, which has to know what was asked to read what is answered, is
told of a request of the same verb without headers; that halves what it costs.
"""

from __future__ import annotations

from functools import cache

import attrs
import h11
import httpx
import trio

from trio_vmcp.client._dial import Wire

__all__ = ["Connection", "Headers", "encode_head", "encode_headers"]

Headers = list[tuple[bytes, bytes]]

READ_BYTES = 64 * 1024
# A body of known length goes past h11 from here on, in larger pieces: it would be copied twice more on the way.
LARGE_BODY = 256 * 1024
LARGE_READ_BYTES = 256 * 1024
# h11 refuses what it has collected and cannot use yet: a status line, the headers of a response, a chunk's head.
MAX_HEAD_BYTES = 64 * 1024
MOST_INFORMATIONAL = 16  # 1xx responses before the real one: each is cheap to send, and costs us a parse
PIECES_AT_ONCE = 64  # chunks of a body that are handed on together, be they of one byte

_DONE = h11.EndOfMessage()


@cache
def _stand_in(verb: str) -> h11.Request:
    return h11.Request(method=verb, target="/", headers=[("Host", "h")])


def encode_head(verb: str, target: bytes, headers: Headers) -> bytes:
    """The request line and headers, without the empty line behind them.

    Raises:
        httpx.LocalProtocolError: HTTP cannot carry one of them; the text does not quote it.
    """
    try:
        head = h11.Connection(h11.CLIENT).send(h11.Request(method=verb, target=target, headers=headers))
    except h11.LocalProtocolError:
        raise httpx.LocalProtocolError("a header or the url cannot be carried by HTTP/1.1") from None
    assert head is not None
    return head[:-2]


def encode_headers(headers: Headers) -> bytes:
    """More lines for a head: headers of our own making, which need no look at every character.

    Raises:
        httpx.LocalProtocolError: A value would be more than a line.
    """
    lines = b"".join([b"%s: %s\r\n" % pair for pair in headers])
    if lines.count(b"\n") != len(headers):
        raise httpx.LocalProtocolError("a header holds a line break")
    return lines


@attrs.define(eq=False)
class Connection:
    """Made connected. Used by one task at a time; whoever breaks off in the middle cuts it.

    Attributes:
        idle_since: `trio.current_time()` of its last response's end.
    """

    _wire: Wire
    idle_since: float = attrs.field(default=0.0, init=False)
    _http: h11.Connection = attrs.field(init=False, repr=False)
    _left: int | None = attrs.field(default=None, init=False)  # bytes of a large body that h11 does not see
    _first: bytes = attrs.field(default=b"", init=False, repr=False)  # those of them that came with the head
    _ended: bool = attrs.field(default=True, init=False)  # the body is at its end, or there is none yet
    _may_stay: bool = attrs.field(default=True, init=False)  # the last response did not end the connection
    _is_cut: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._http = _new_http()

    @property
    def is_ended(self) -> bool:
        """The response is here to its last byte."""
        return self._ended

    @property
    def is_reusable(self) -> bool:
        """Another request may follow: the response is at its end, nothing came behind it, and nobody wants to close."""
        return self._ended and self._may_stay and not self._is_cut

    @property
    def is_alive(self) -> bool:
        """An idle connection hears nothing. What it hears all the same is its end, or bytes that nobody asked for."""
        return not self._is_cut and not self._wire.has_news()

    def cut(self) -> None:
        """Close, at once and for good. Whoever waits on it gets an error."""
        self._is_cut = True
        self._wire.cut()

    async def ask(self, verb: str, message: bytes) -> h11.Response:
        """Write a request and read the head of its response.

        Raises:
            httpx.TransportError: The connection broke, or what came is not HTTP/1.1.
        """
        self._ended = self._may_stay = False
        self._http.send(_stand_in(verb))
        self._http.send(_DONE)
        broken: trio.BrokenResourceError | None = None
        try:
            await self._wire.stream.send_all(message)
        except trio.BrokenResourceError as exc:
            broken = exc  # a server that refuses a body it has not read may have answered first
        except trio.ClosedResourceError as exc:
            raise httpx.WriteError("the connection was closed here") from exc
        try:
            return await self._head()
        except httpx.TransportError:
            if broken is not None:
                raise httpx.WriteError("the connection broke") from broken
            raise

    async def receive(self) -> bytes | bytearray | None:
        """The next bytes of the body; None at its end.

        Raises:
            httpx.TransportError: It broke off.
        """
        if self._ended:
            return None
        if self._left is not None:
            return await self._receive_directly()
        pieces: list[bytes | bytearray] = []
        while True:
            event = self._next_event()
            if type(event) is h11.Data:
                pieces.append(event.data)
                if len(pieces) == PIECES_AT_ONCE:
                    break
            elif type(event) is h11.EndOfMessage:
                self._end()
                break
            elif event is not h11.NEED_DATA:
                raise httpx.RemoteProtocolError("the peer broke HTTP/1.1")
            elif pieces:
                break
            else:
                self._http.receive_data(await self._read(READ_BYTES))
        if not pieces:
            return None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _head(self) -> h11.Response:
        for _ in range(MOST_INFORMATIONAL + 1):
            while (event := self._next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._read(READ_BYTES))
            if type(event) is h11.Response:
                self._left = _large_length(event)
                if self._left is not None:  # less than all of it can be here
                    self._first = self._http.trailing_data[0]
                return event
            if type(event) is not h11.InformationalResponse:
                break
            await trio.lowlevel.checkpoint()  # what is buffered already needs no wait, and would have no end
        raise httpx.RemoteProtocolError("the peer sent no response, or too much before it")

    async def _receive_directly(self) -> bytes | None:
        assert self._left is not None
        if not self._left:
            self._end()
            return None
        data, self._first = self._first, b""
        # No further than the body: what follows is not of it.
        data = data or await self._read(min(self._left, LARGE_READ_BYTES))
        if not data:
            raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")
        self._left -= len(data)
        return data

    def _end(self) -> None:
        self._ended = True
        http = self._http
        if self._left is not None:  # h11 waits for bytes that went past it
            self._may_stay = http.our_state is h11.DONE  # and not MUST_CLOSE
            self._left, self._http = None, _new_http()
        elif http.our_state is h11.DONE and http.their_state is h11.DONE and not http.trailing_data[0]:
            http.start_next_cycle()
            self._may_stay = True

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as exc:
            problem = str(exc)
        # Out here and without its cause, which quotes what came: a header may be a session id.
        early = problem.startswith("peer ")
        raise httpx.RemoteProtocolError("peer closed connection too early" if early else "the peer broke HTTP/1.1")

    async def _read(self, most: int) -> bytes:
        try:
            data = await self._wire.stream.receive_some(most)
        except trio.BrokenResourceError as exc:
            raise httpx.ReadError("the connection broke") from exc
        except trio.ClosedResourceError as exc:
            raise httpx.ReadError("the connection was closed here") from exc
        if not data and self._http.their_state is h11.SEND_RESPONSE:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response")
        return bytes(data)  # it is bytes already; only some streams in memory have bytearrays


def _new_http() -> h11.Connection:
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)


def _large_length(response: h11.Response) -> int | None:
    """Content-Length, which h11 has checked, where it decides and is large. The connection may be used again."""
    length: int | None = None
    for name, value in response.headers:
        if name == b"transfer-encoding":
            return None  # it wins (RFC 9112 §6.3)
        if name == b"content-length" and len(value) > 5 and int(value) >= LARGE_BODY:
            length = int(value)
    return length if response.http_version == b"1.1" and response.status_code not in (204, 304) else None
