"""One request of a client on its way: where its messages go, when its stream opens, and what becomes of it once the
client is gone. Over HTTP here; over stdio all requests share one stream (`_stdio.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Protocol

import attrs
import trio

from trio_vmcp._protocol.jsonrpc import RequestId
from trio_vmcp._protocol.methods import PROGRESS
from trio_vmcp.connector import OnProgress
from trio_vmcp.models import JSON
from trio_vmcp.serve._asgi import ClientGone, HttpReply, HttpRequest
from trio_vmcp.serve._messages import encode_notice
from trio_vmcp.serve._streams import EVENT_STREAM, EventStream

__all__ = [
    "BODY_TIMEOUT",
    "JSON_BODY",
    "MOST_REPEATED",
    "Exchange",
    "Exchanges",
    "HttpExchange",
    "QuietExchange",
    "is_long",
    "notify",
    "progress_of",
]

JSON_BODY = (b"content-type", b"application/json")
# s between two looks for requests that take long. Most requests end before one, and cost no task that watches them.
LOOK_INTERVAL = 0.25
BODY_TIMEOUT = 60.0  # s for the whole body of a request, to the next look; 4 MiB at 560 kbit/s
MOST_REPEATED = 1024  # characters

StartTask = Callable[..., None]


class Exchange(Protocol):
    """What the code that answers a request needs of its way to the client.

    Attributes:
        mark: Names the request in this process.
        scope: Cancelled when the client withdraws the request.
        log_level: Log messages of the request are wanted from this severity on; None: none are.
        headers: Of the reply, beside the usual ones.
    """

    mark: str
    scope: trio.CancelScope
    log_level: str | None
    headers: tuple[tuple[bytes, bytes], ...]

    @property
    def takes_messages(self) -> bool:
        """Messages may be sent before the response."""
        ...

    def send(self, data: bytes, *, may_drop: bool) -> None:
        """Send a message that belongs to this request, before its response; never waits."""
        ...


def is_long(mark: object) -> bool:
    """Whether a text of a client is too long to be repeated in each message of a stream: of 4 MiB, each would take the
    event loop 30 ms, from all clients.
    """
    return isinstance(mark, str) and len(mark) > MOST_REPEATED


def notify(exchange: Exchange, method: str, params: JSON) -> None:
    """Send a notification that may get lost where the client is slow."""
    if exchange.takes_messages:
        exchange.send(encode_notice(method, params), may_drop=True)


def progress_of(exchange: Exchange, params: JSON) -> OnProgress | None:
    """Sends progress under the client's own token; None: the client gave none that may stand in each message, or takes
    no messages.
    """
    meta = params.get("_meta")
    token = meta.get("progressToken") if isinstance(meta, dict) else None
    if type(token) not in (int, str) or is_long(token) or not exchange.takes_messages:
        return None

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told: JSON = {"progressToken": token, "progress": progress}
        if total is not None:
            told["total"] = total
        if message is not None:
            told["message"] = message
        notify(exchange, PROGRESS, told)

    return on_progress


@attrs.define(eq=False)
class QuietExchange(Exchange):
    """A request that has a response and no stream: a part of a batch."""

    mark: str
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    log_level: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = attrs.field(default=(), repr=False)

    @property
    def takes_messages(self) -> bool:
        return False

    def send(self, data: bytes, *, may_drop: bool) -> None:
        raise RuntimeError("a request in a batch has no stream")


@attrs.define(eq=False)
class UnderWay:
    """Counts requests, each from its body to the end of its response (`with under_way:`): also those that have no
    exchange, such as `initialize` and a batch.
    """

    _count: int = attrs.field(default=0, init=False)
    _none_left: trio.Event | None = attrs.field(default=None, init=False, repr=False)

    def __enter__(self) -> None:
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if self._none_left is not None and not self._count:
            self._none_left.set()

    async def wait_none(self) -> None:
        if self._count:
            self._none_left = self._none_left or trio.Event()
            await self._none_left.wait()


@attrs.define(eq=False)
class Exchanges:
    """The requests that are under way, and the task that looks for those that take long.

    Attributes:
        under_way: Counts them, for the end of the server.
    """

    under_way: UnderWay = attrs.field(factory=UnderWay, init=False, repr=False)
    _start_task: StartTask = attrs.field(alias="start_task", repr=False)
    _by_mark: dict[str, HttpExchange] = attrs.field(factory=dict, init=False, repr=False)
    _reading: dict[HttpRequest, float] = attrs.field(factory=dict, init=False, repr=False)  # bodies, since when
    _marks: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1), init=False, repr=False)
    _is_looking: bool = attrs.field(default=False, init=False)
    # Begun so far. An exchange keeps the number of the latest, and reads no clock.
    _looks: int = attrs.field(default=0, init=False)

    def __len__(self) -> int:
        return len(self._by_mark)

    def find(self, mark: object) -> HttpExchange | None:
        return self._by_mark.get(mark) if isinstance(mark, str) else None

    def all(self) -> tuple[HttpExchange, ...]:
        return tuple(self._by_mark.values())

    def next_mark(self) -> str:
        return str(next(self._marks))

    def add(self, exchange: HttpExchange) -> None:
        exchange.mark, exchange.since = self.next_mark(), self._looks
        self._by_mark[exchange.mark] = exchange
        self._look_for_long()

    async def read_body(self, request: HttpRequest, most: int) -> bytes:
        """`HttpRequest.read_body`; the request is cancelled if that takes over `BODY_TIMEOUT`. A deadline of its scope
        would take longer to set than the body to read.

        Raises:
            SessionClosed: The manager has ended.
            BodyTooLarge, ClientGone: As `HttpRequest.read_body`.
        """
        self._look_for_long()
        self._reading[request] = trio.current_time()
        try:
            body = await request.read_body(most)
        finally:
            del self._reading[request]
        if request.is_late:  # cancelled in the step in which the body ended: end here, not in the middle of the work
            await trio.lowlevel.checkpoint()
        return body

    def discard(self, exchange: HttpExchange) -> None:
        del self._by_mark[exchange.mark]

    def _look_for_long(self) -> None:
        if not self._is_looking:
            self._start_task(self._look)
            self._is_looking = True

    async def _look(self) -> None:
        try:
            while self._by_mark or self._reading:
                self._looks += 1
                await trio.sleep(LOOK_INTERVAL)
                for exchange in self.all():
                    if exchange.since >= self._looks:
                        break  # they are in order
                    exchange.watch()
                latest = trio.current_time() - BODY_TIMEOUT  # not by a count of looks: on a busy loop each comes late
                for request, begun_at in self._reading.items():
                    if begun_at > latest:
                        break
                    request.is_late = True
                    request.scope.cancel(reason="the body takes too long")
        finally:
            self._is_looking = False


@attrs.define(eq=False)
class HttpExchange(Exchange):
    """A request over HTTP. Its response is one JSON object, or, from the first message before the response on, an event
    stream. After `keep_alive` s the stream opens without a message, so that proxies and clients see that the request is
    alive. The code that answers runs in the task of the ASGI server; a stream is written by a task of its own.

    Attributes:
        request_id: The client's own.
        method, params: Of the request.
        since: The latest look of `Exchanges` that had begun before it.
        stream: Its event stream; None: it is not open.
        on_gone: Called once with this exchange, if the client leaves before it has its response. A closure over the
            exchange would be a cycle, and keep the whole request until the garbage collector comes.
        resumable: The name of the stream, for a client that may resume it; empty: the stream cannot be resumed.
    """

    request_id: RequestId | None
    method: str
    params: JSON = attrs.field(repr=False)
    _request: HttpRequest = attrs.field(alias="request", repr=False)
    _reply: HttpReply = attrs.field(alias="reply", repr=False)
    _start_task: StartTask = attrs.field(alias="start_task", repr=False)
    _accepts_stream: bool = attrs.field(alias="accepts_stream")
    _keep_alive: float = attrs.field(alias="keep_alive")
    _capacity: int = attrs.field(alias="capacity")
    on_gone: Callable[[HttpExchange], None] = attrs.field(repr=False, kw_only=True)
    resumable: str = attrs.field(default="", kw_only=True)
    primes: bool = attrs.field(default=False, kw_only=True)
    log_level: str | None = attrs.field(default=None, kw_only=True)
    headers: tuple[tuple[bytes, bytes], ...] = attrs.field(default=(), kw_only=True, repr=False)
    mark: str = attrs.field(default="", init=False)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, kw_only=True, repr=False)
    since: int = attrs.field(default=0, init=False)
    stream: EventStream | None = attrs.field(default=None, init=False, repr=False)
    is_gone: bool = attrs.field(default=False, init=False)
    _is_answered: bool = attrs.field(default=False, init=False)  # its response is sent, or on its way
    _written: trio.Event | None = attrs.field(default=None, init=False, repr=False)
    _watching: trio.CancelScope | None = attrs.field(default=None, init=False, repr=False)

    @property
    def takes_messages(self) -> bool:
        return self._accepts_stream and not self._is_answered

    def send(self, data: bytes, *, may_drop: bool) -> None:
        if self.takes_messages:  # a message behind the response would be the head of a second one
            self.open_stream().put(data, may_drop=may_drop)

    def open_stream(self) -> EventStream:
        if self.stream is None:
            self.stream = EventStream(self.resumable, self._capacity)
            if self.primes:
                self.stream.prime()
            if not self.is_gone:
                self._written = trio.Event()
                self._start_task(self._write, self.stream, self._written)
        return self.stream

    async def respond(self, status: int, body: bytes) -> None:
        """Send the response. Returns when it is written, or the client is gone."""
        self._is_answered = True
        if self.stream is None:
            if not self.is_gone:
                await self._reply.respond(status, body, (JSON_BODY, *self.headers))
            return
        self.stream.put(body, may_drop=False)
        await self._end_stream(self.stream)

    async def respond_nothing(self) -> None:
        """End without a response: the client has withdrawn the request."""
        self._is_answered = True
        if self.stream is None and not self._accepts_stream:
            await self._reply.respond(202)
        else:
            await self._end_stream(self.open_stream())

    async def _end_stream(self, stream: EventStream) -> None:
        stream.finish()
        if self._written is not None:
            await self._written.wait()

    def stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel(reason="the request is answered")

    def watch(self) -> None:
        """The request takes long: from now on notice that the client leaves."""
        if self._watching is None:
            self._watching = trio.CancelScope()
            self._start_task(self._watch, self._watching)

    async def _watch(self, scope: trio.CancelScope) -> None:
        with scope:
            if self.primes and self.takes_messages:
                self.open_stream()
            with trio.move_on_after(self._keep_alive) as silence:
                await self._request.wait_gone()
            if silence.cancelled_caught:
                if self.takes_messages:
                    self.open_stream()
                await self._request.wait_gone()
            self.is_gone = True
            if self.stream is not None:
                if self.stream.is_read_elsewhere(self._reply):
                    return  # resumed before this connection was known to be dead: the client is not gone
                self.stream.detach()
            self.on_gone(self)

    async def _write(self, stream: EventStream, written: trio.Event) -> None:
        try:
            with stream.read_by(self._reply):
                await self._reply.start(200, (*EVENT_STREAM, *self.headers))
                if await stream.write_to(self._reply, after=None, keep_alive=self._keep_alive):
                    await self._reply.end()
        except ClientGone:
            pass
        finally:
            written.set()
