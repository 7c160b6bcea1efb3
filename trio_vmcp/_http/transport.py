"""The built-in HTTP transport: HTTP/1.1 on Trio, connections kept alive per origin, the newest idle one used first.

It is an `httpx.AsyncBaseTransport`, and can be used as one. The library itself calls `send`, which makes no httpx
objects on the way.

- There is no queue: a request takes an idle connection or makes one. A `CapacityLimiter` in front of the transport
  limits how many there are. (httpcore's queue of waiting requests loses connections for good when Trio cancels a
  request: httpcore #830, #961, #1093. And it looks at every connection for every request.)
- A request that changes nothing is sent once more if the connection that it used again had been closed meanwhile, which
  shows in an end before the first byte of a response (RFC 9112 §9.3.1). Any other might run twice.
- A request owns its connection. A request that is cancelled or fails, at any step, costs that connection and no other.
- Credentials are in requests, not in connections, so all sessions share the connections.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import attrs
import httpx
import trio

from trio_vmcp._http.connection import Connection
from trio_vmcp._http.dial import ConnectedStream, Dial, TcpDial
from trio_vmcp._http.keep_alive import ASSUMED_EXPIRY, LEAST_FOUND, KeepAlive
from trio_vmcp._http.origin import Origin, origin_of
from trio_vmcp._http.proxy import Proxies, Proxy, ProxyProblem
from trio_vmcp._http.response import BadHead, Headers, encode_head
from trio_vmcp._http.tunnel import PROXY_AUTHENTICATION_REQUIRED, ProxiedDial, refused_by
from trio_vmcp._nursery import start_task

__all__ = ["MAY_REPEAT", "WITH_BODY", "Http11Transport", "RawResponse"]

MOST_IDLE = 20  # connections to one origin that are kept between requests
AT_ONCE = 1.0  # s; the longest way of a request and of the news that its connection had been closed already

# May be sent again if their connection was lost (RFC 9110 §9.2.2). A POST may be if this extension of its request says
# so, an extension in the sense of httpx.
_IDEMPOTENT = frozenset(["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
MAY_REPEAT = "trio_vmcp_may_repeat"

_FRAMING = (b"content-length", b"transfer-encoding")  # set by the transport: a body goes out in one piece
# An empty body needs `Content-Length: 0` here (RFC 9110 §8.6). DELETE: some servers wait for a body without it.
WITH_BODY = frozenset(["POST", "PUT", "PATCH", "DELETE"])


@attrs.define(eq=False)
class RawResponse:
    """A response that holds its connection until it is closed, read to its end or not.

    Attributes:
        status: The HTTP status.
        headers: The headers, with names in lower case.
    """

    status: int
    headers: Headers = attrs.field(repr=False)
    _connection: Connection = attrs.field(alias="connection", repr=False)
    _return_connection: Callable[[Connection], None] = attrs.field(alias="return_connection", repr=False)
    _held: bool = attrs.field(default=True, init=False)

    @property
    def is_ended(self) -> bool:
        return self._connection.is_ended

    @property
    def pieces(self) -> int:
        """How many pieces the bytes that `receive` returned last had arrived in."""
        return self._connection.pieces

    def receive(self) -> Coroutine[Any, Any, bytes | None]:
        """The next bytes of the body; None at its end.

        Raises:
            httpx.TransportError: It broke off.
        """
        return self._connection.receive()

    def close(self) -> None:
        """Give the connection back, without waiting. If the response was not read to its end, close the connection."""
        if self._held:
            self._held = False
            self._return_connection(self._connection)

    async def aclose(self) -> None:
        self.close()

    async def close_connection(self) -> None:
        """Never use this connection again."""
        if self._held:  # else another request may use it by now
            self._connection.close()


class Http11Transport(httpx.AsyncBaseTransport):
    """Requests to any number of origins.

    Args:
        ssl_context: For https. None: the platform's trust store, loaded once, at the first https request. Pass one for
            private CAs and client certificates; it is used as it is.
        dial: Makes the connections; None: TCP, and TLS by `ssl_context`.
        proxies: Which connections go through which proxy; None: none. With a `dial`, tunnels are used without TLS.

    The timeouts that an `httpx.AsyncClient` puts into a request hold: `connect` for a connection, TLS included, `write`
    and `read` together from the first byte that is written to the response's head, `read` for each piece of its body.
    `pool` has no meaning, since there is no queue. The library's own deadlines are cancel scopes of Trio.

    A response's extensions hold "http_version", and a "network_stream": its `aclose` closes the connection for good.
    """

    def __init__(
        self, *, ssl_context: ssl.SSLContext | None = None, dial: Dial | None = None, proxies: Proxies | None = None
    ) -> None:
        tcp = TcpDial(ssl_context)
        self._dial: Dial = dial or tcp
        self._proxies = proxies
        if proxies is not None:
            self._dial = ProxiedDial(self._dial, proxies, tcp.start_tls if dial is None else _stay_in_the_clear)
        self._idle: dict[Origin, list[Connection]] = {}  # of each the newest last
        self._keep_alives: dict[Origin, KeepAlive] = {}
        self._busy: dict[Connection, Origin] = {}
        self._some_idle = trio.Event()
        # Of each origin, those that `open_ahead` is making and that no request waits for.
        self._ahead: dict[Origin, list[trio.Event]] = {}
        self._closed = False

    @property
    def busy_connections(self) -> int:
        """Number of connections that a request or its response holds."""
        return len(self._busy)

    @property
    def idle_connections(self) -> int:
        return sum(map(len, self._idle.values()))

    def proxy_of(self, origin: Origin) -> Proxy | None:
        """The proxy that connections to an origin go through; None: they are direct, or cannot be made."""
        try:
            return None if self._proxies is None else self._proxies.of(origin)
        except ProxyProblem:
            return None

    async def send(
        self,
        origin: Origin,
        verb: str,
        head: bytes,
        body: bytes,
        on_write: Callable[[], None],
        *,
        may_repeat: bool = False,
    ) -> RawResponse:
        """Send one request and wait for the head of its response.

        Args:
            head: From `encode_head`, any more header lines, Content-Length, and an empty line.
            on_write: Called before the first byte may leave.
            may_repeat: The request does no more if it is applied twice, whatever its verb says.

        Raises:
            httpx.ConnectError: No connection; nothing was written.
            httpx.ProxyError: The proxy made no connection, or did not take the request.
            httpx.TransportError: It broke, or what came is not HTTP/1.1.
        """
        connection = await self._ready_connection(origin)
        if connection is None:
            return await self._send_over(await self._connect(origin), origin, verb, head + body, on_write)
        begun_at = trio.current_time()
        age = begun_at - connection.idle_since
        try:
            response = await self._send_over(connection, origin, verb, head + body, on_write)
        except httpx.TransportError:
            if not connection.ended_unused:
                raise
            if trio.current_time() - begun_at <= AT_ONCE:
                self._keep_alive(origin).note_ended(age, begun_at)
            if not may_repeat and verb not in _IDEMPOTENT:
                raise
        else:
            if age >= LEAST_FOUND:
                self._keep_alive(origin).note_survived(age)
            return response
        return await self._send_over(await self._connect(origin), origin, verb, head + body, on_write)

    async def _send_over(
        self, connection: Connection, origin: Origin, verb: str, message: bytes, on_write: Callable[[], None]
    ) -> RawResponse:
        self._busy[connection] = origin
        try:
            on_write()
            proxy = connection.via
            if proxy is not None:
                message = proxy.forwarded(message, origin)
            status, headers = await connection.send_request(verb, message)
            if proxy is not None and status == PROXY_AUTHENTICATION_REQUIRED:
                problem = await refused_by(proxy, connection, verb, status, headers)
                raise httpx.ProxyError(str(problem)) from problem
        except BaseException:
            del self._busy[connection]
            connection.close()
            raise
        return RawResponse(status, headers, connection, self._return_connection)

    async def connect(self, origin: Origin) -> None:
        """Make an idle connection, unless there is one.

        Raises:
            httpx.ConnectError, httpx.ProxyError: No connection.
        """
        connection = await self._ready_connection(origin) or await self._connect(origin)
        self._keep_idle(connection, origin)

    def open_ahead(self, origin: Origin, count: int, nursery: trio.Nursery) -> None:
        """Begin to make what is missing to `count` connections, for requests that follow in a moment: each of these
        waits for one of them in place of making its own. One that cannot be made is no error: its request tries again.
        """
        there = len(self._idle.get(origin, ())) + len(self._ahead.get(origin, ()))
        for _ in range(count - there):
            ended = trio.Event()
            self._ahead.setdefault(origin, []).append(ended)
            start_task(nursery, self._connect_ahead, origin, ended)

    async def tidy(self) -> None:
        """Close connections that were idle for too long. Runs until it is cancelled.

        Without this task, an expired connection stays open until the next request to its origin.
        """
        while True:
            await self._some_idle.wait()
            self._some_idle = trio.Event()
            while self._idle:
                now = trio.current_time()
                first = min(self._idle[origin][0].idle_since + self._expiry(origin, now) for origin in self._idle)
                # Connections to other origins may become idle meanwhile, and expire first.
                await trio.sleep_until(min(first, now + ASSUMED_EXPIRY))
                for origin in list(self._idle):
                    self._close_expired(origin)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        origin = origin_of(request.url)
        headers = [pair for pair in request.headers.raw if pair[0].lower() not in _FRAMING]
        try:
            head = encode_head(request.method, request.url.raw_path, headers)
        except BadHead as exc:
            raise httpx.LocalProtocolError(str(exc), request=request) from None
        timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
        connect, write, read = (_seconds(timeouts.get(step)) for step in ("connect", "write", "read"))
        written = False

        def on_write() -> None:
            nonlocal written
            written, patience.deadline = True, trio.current_time() + write + read

        with trio.CancelScope(deadline=trio.current_time() + connect) as patience:
            # Connect before the body is read: a request with an unread body provably did not run, and may be retried.
            await self.connect(origin)
            patience.deadline = math.inf
            body = b"".join([chunk async for chunk in request.stream])
            if body or request.method in WITH_BODY:
                head += b"Content-Length: %d\r\n" % len(body)
            patience.deadline = trio.current_time() + connect
            may_repeat = bool(request.extensions.get(MAY_REPEAT))
            response = await self.send(origin, request.method, head + b"\r\n", body, on_write, may_repeat=may_repeat)
            return httpx.Response(
                response.status,
                headers=response.headers,
                stream=_Body(response, read),
                extensions={"http_version": b"HTTP/1.1", "network_stream": _NetworkStream(response)},
            )
        if written:
            raise httpx.ReadTimeout(f"no response within {write + read} s (write + read)", request=request)
        raise httpx.ConnectTimeout(f"no connection within {connect} s (connect)", request=request)

    def close(self) -> None:
        """Close every connection for good, those in use included: their requests fail with `httpx.TransportError`."""
        self._closed = True
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()
        for connection in self._busy:
            connection.close()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    async def _ready_connection(self, origin: Origin) -> Connection | None:
        """An idle connection, or one that `open_ahead` is making; None: there is neither."""
        connection = self._idle_connection(origin)
        ahead = self._ahead.get(origin)
        if connection is not None or not ahead:
            return connection
        await ahead.pop(0).wait()
        return self._idle_connection(origin)

    async def _connect_ahead(self, origin: Origin, ended: trio.Event) -> None:
        try:
            self._keep_idle(await self._connect(origin), origin)
        except (httpx.ConnectError, httpx.ProxyError):
            pass  # the request tries again, and tells why
        finally:
            ended.set()
            left = [each for each in self._ahead.pop(origin, []) if each is not ended]
            if left:
                self._ahead[origin] = left

    def _idle_connection(self, origin: Origin) -> Connection | None:
        self._close_expired(origin)
        connections = self._idle.get(origin)
        if connections is None:
            return None
        alive: Connection | None = None
        youngest: Connection | None = None  # of those that are found closed
        while connections and alive is None:
            connection = connections.pop()
            if connection.is_alive:
                alive = connection
            else:
                connection.close()
                youngest = youngest or connection
        if not connections:
            del self._idle[origin]
        if youngest is not None:  # one reason for all of them
            now = trio.current_time()
            self._keep_alive(origin).note_ended(now - youngest.idle_since, now)
        return alive

    def _keep_alive(self, origin: Origin) -> KeepAlive:
        keep_alive = self._keep_alives.get(origin)
        if keep_alive is None:
            keep_alive = self._keep_alives[origin] = KeepAlive()
        return keep_alive

    def _expiry(self, origin: Origin, now: float) -> float:
        keep_alive = self._keep_alives.get(origin)
        return ASSUMED_EXPIRY if keep_alive is None else keep_alive.expiry(now)

    async def _connect(self, origin: Origin) -> Connection:
        if self._closed:
            raise httpx.ConnectError("the transport is closed")
        try:
            connection = Connection(await self._dial(origin))
        except (OSError, ValueError, trio.BrokenResourceError) as exc:  # ValueError: the host is no possible name
            raise httpx.ConnectError(str(exc)) from exc
        except ProxyProblem as exc:
            raise httpx.ProxyError(str(exc)) from exc
        if self._closed:
            connection.close()
            raise httpx.ConnectError("the transport was closed meanwhile")
        return connection

    def _return_connection(self, connection: Connection) -> None:
        origin = self._busy.pop(connection)
        if connection.is_reusable:
            self._keep_idle(connection, origin)
        else:
            connection.close()

    def _keep_idle(self, connection: Connection, origin: Origin) -> None:
        if connection.keep_alive is not None:
            self._keep_alive(origin).note_header(connection.keep_alive)
        connection.idle_since = trio.current_time()
        connections = self._idle.setdefault(origin, [])
        connections.append(connection)
        if len(connections) > MOST_IDLE:
            connections.pop(0).close()
        self._some_idle.set()

    def _close_expired(self, origin: Origin) -> None:
        connections = self._idle.get(origin)
        if not connections:
            return
        now = trio.current_time()
        oldest = now - self._expiry(origin, now)
        while connections and connections[0].idle_since <= oldest:
            connections.pop(0).close()
        if not connections:
            del self._idle[origin]


async def _stay_in_the_clear(connected: ConnectedStream, origin: Origin) -> ConnectedStream:
    return connected


class _Body(httpx.AsyncByteStream):
    """A response's body as httpx reads one. A class, since Python warns when an async generator that was left half-way
    is collected.
    """

    def __init__(self, response: RawResponse, patience: float) -> None:
        self._response = response
        self._patience = patience  # s, for each piece

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        with trio.CancelScope(deadline=trio.current_time() + self._patience):
            data = await self._response.receive()
            if data is None:
                raise StopAsyncIteration
            return data
        raise httpx.ReadTimeout(f"no more of the body within {self._patience} s (read)")

    async def aclose(self) -> None:
        self._response.close()
        await trio.lowlevel.checkpoint()


class _NetworkStream:
    """The "network_stream" of a response's extensions. It can close the connection, but neither read nor write."""

    def __init__(self, response: RawResponse) -> None:
        self._response = response

    async def aclose(self) -> None:
        await self._response.close_connection()


def _seconds(timeout: float | None) -> float:
    return math.inf if timeout is None else timeout
