"""An HTTP/1.1 server over any Trio stream.

The application gets a `Request` and writes to a `Reply`. While it runs, the server keeps reading: a client that closes
its connection cancels the application at once, unless the reply `outlives_peer`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from http.client import responses
from typing import TypeAlias

import attrs
import h11
import httpx
import trio

from trio_vmcp.testing.faults import Cut, WireFault
from trio_vmcp.testing.streams import reset

__all__ = ["Application", "Reply", "Request", "serve_http"]

READ_BYTES = 64 * 1024
MAX_BODY_BYTES = 16 * 1024 * 1024
ENDS = (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)

Headers: TypeAlias = Iterable[tuple[str, str]]


@attrs.frozen
class Request:
    """One whole HTTP request."""

    verb: str
    target: str
    headers: httpx.Headers
    body: bytes


Application: TypeAlias = Callable[[Request, "Reply"], Awaitable[None]]


@attrs.define(eq=False)
class Reply:
    """The response to one request; any number of tasks may write. Bytes written after the client has gone are dropped.

    Attributes:
        fault: Applied to the raw bytes before they are sent.
        outlives_peer: The application runs on when the client closes the connection; otherwise it is cancelled.
        status: The status of the response; None: its head is not written yet.
        written_bytes: Size of the raw response so far, before the fault.
        cut: The server closed the connection early, by a fault or by `hang_up`.
        ended: The response is over; nothing more may be written.
        complete: The whole response was handed to the connection.
        broken_off: A write was cancelled half-way, or wrote raw bytes: a client could not parse anything after it.
    """

    _http: h11.Connection = attrs.field(alias="http")
    _stream: trio.abc.Stream = attrs.field(alias="stream")
    _scope: trio.CancelScope = attrs.field(alias="scope")
    fault: WireFault | None = None
    outlives_peer: bool = False
    status: int | None = attrs.field(default=None, init=False)
    written_bytes: int = attrs.field(default=0, init=False)
    cut: bool = attrs.field(default=False, init=False)
    broken_off: bool = attrs.field(default=False, init=False)
    _lost: bool = attrs.field(default=False, init=False)  # some bytes were never sent
    _gone: trio.Event = attrs.field(factory=trio.Event, init=False)
    _writing: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    @property
    def peer_is_gone(self) -> bool:
        return self._gone.is_set()

    @property
    def ended(self) -> bool:
        return self._http.our_state in (*ENDS, h11.ERROR)

    @property
    def complete(self) -> bool:
        return not self.cut and not self._lost and self._http.our_state in ENDS

    async def start(self, status: int, headers: Headers = ()) -> None:
        """Send the head; without a content-length the body is chunked."""
        self._set_status(status)
        pairs = [(name.encode(), value.encode()) for name, value in headers]
        await self._write(h11.Response(status_code=status, headers=pairs, reason=responses.get(status, "").encode()))

    async def send(self, data: bytes) -> None:
        await self._write(h11.Data(data=data))

    async def end(self) -> None:
        await self._write(h11.EndOfMessage())

    async def respond(self, status: int, body: bytes = b"", headers: Headers = ()) -> None:
        """Send a whole response."""
        pairs = [*headers, ("content-length", str(len(body)))]
        await self.start(status, pairs)
        if body:
            await self.send(body)
        await self.end()

    async def respond_raw(self, data: bytes) -> None:
        """Send bytes that h11 refuses, and close the connection."""
        self._http.send_failed()
        self.broken_off = True
        await self._deliver(data)
        await self.hang_up()

    async def hang_up(self) -> None:
        """Close the connection in the middle of the response."""
        self.cut = True
        await trio.aclose_forcefully(self._stream)
        await self._lose_peer()

    async def hang(self) -> None:
        """Send nothing until the client closes the connection."""
        await self._gone.wait()
        self._scope.cancel(reason="the client gave up on a hanging reply")
        await trio.lowlevel.checkpoint()

    async def watch_peer(self, max_ahead_bytes: int) -> None:
        """Read until the client closes the connection, and buffer requests that it sends ahead."""
        ahead = 0
        while data := await _receive(self._stream):
            self._http.receive_data(data)
            ahead += len(data)
            if ahead > max_ahead_bytes:
                break
        await self._lose_peer()

    async def _lose_peer(self) -> None:
        self._gone.set()
        if not self.outlives_peer:
            self._scope.cancel(reason="the client closed the connection")
            await trio.lowlevel.checkpoint()

    def _set_status(self, status: int) -> None:
        self.status = status

    async def _write(self, event: h11.Event) -> None:
        # No checkpoint if the lock is free: cancelled there, a client would have an answer that its exchange lacks.
        try:
            self._writing.acquire_nowait()
        except trio.WouldBlock:
            await self._writing.acquire()
        try:
            if self._http.our_state is h11.ERROR:  # another task has broken it off meanwhile
                self._lost = True
                return
            data = self._http.send(event) or b""
            self.broken_off = True
            await self._deliver_with_fault(data)
            self.broken_off = False
        finally:
            self._writing.release()

    async def _deliver_with_fault(self, data: bytes) -> None:
        sent = self.written_bytes
        self.written_bytes += len(data)
        if self.fault is None:
            await self._deliver(data)
            return
        for step in self.fault.steps(sent, data):
            if self.cut:
                return
            match step:
                case bytes():
                    await self._deliver(step)
                case Cut.STALL:
                    await self.hang()
                case Cut.EOF:
                    await self.hang_up()
                case Cut.RESET:
                    self.cut = True
                    reset(self._stream)
                    await self._lose_peer()
                case seconds:
                    await trio.sleep(seconds)

    async def _deliver(self, data: bytes) -> None:
        if not data:
            return
        if self.peer_is_gone:
            self._lost = True
            await trio.lowlevel.checkpoint()  # so that a handler that sends without end can be cancelled
            return
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._lost = True
            await self._lose_peer()


async def serve_http(
    stream: trio.abc.Stream, application: Application, *, max_body_bytes: int = MAX_BODY_BYTES
) -> None:
    """Serve one connection until either side ends it. The stream is closed in any case.

    Args:
        max_body_bytes: Of one request; more is answered 413.
    """
    http = h11.Connection(h11.SERVER)
    try:
        while True:
            try:
                request = await _next_request(http, stream, max_body_bytes)
            except h11.RemoteProtocolError as exc:
                await _refuse(http, stream, exc.error_status_hint)
                return
            if request is None or not await _exchange(http, stream, application, request, max_body_bytes):
                return
            http.start_next_cycle()
    finally:
        await trio.aclose_forcefully(stream)


async def _exchange(
    http: h11.Connection, stream: trio.abc.Stream, application: Application, request: Request, max_ahead_bytes: int
) -> bool:
    """Answer one request; True if the connection can take another."""
    async with trio.open_nursery() as nursery:
        reply = Reply(http, stream, nursery.cancel_scope)
        nursery.start_soon(reply.watch_peer, max_ahead_bytes)
        await application(request, reply)
        nursery.cancel_scope.cancel(reason="answered")
    return not reply.peer_is_gone and http.our_state is h11.DONE and http.their_state is h11.DONE


async def _next_request(http: h11.Connection, stream: trio.abc.Stream, max_body_bytes: int) -> Request | None:
    """None: the client closed the connection."""
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await _receive(stream))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > max_body_bytes:
                raise h11.RemoteProtocolError(f"body over {max_body_bytes} bytes", error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            headers = httpx.Headers(list(head.headers))
            return Request(head.method.decode(), head.target.decode(), headers, bytes(body))
        else:
            return None


async def _refuse(http: h11.Connection, stream: trio.abc.Stream, status: int) -> None:
    """Answer 400 to a client that does not speak HTTP, unless it has closed the connection."""
    if http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    head = h11.Response(status_code=status, headers=[("content-length", "0"), ("connection", "close")])
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all((http.send(head) or b"") + (http.send(h11.EndOfMessage()) or b""))


async def _receive(stream: trio.abc.Stream) -> bytes:
    """Like `receive_some`; a broken connection counts as closed, since the server treats both alike."""
    try:
        return bytes(await stream.receive_some(READ_BYTES))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return b""
