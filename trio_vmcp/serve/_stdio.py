"""The front for one client over two streams, such as stdin and stdout: a JSON-RPC message in each line.

Both eras, told apart by each request (MCP 2025-11-25 and 2026-07-28, transports, stdio). In both of them
`notifications/cancelled` withdraws a request, and the end of the client's stream ends the server.
"""

from __future__ import annotations

import itertools
import logging
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import trio

from trio_vmcp._client.channels.lines import LineDecoder, LineFlood
from trio_vmcp._nursery import start_clean, start_task
from trio_vmcp._protocol.eras import BATCH_VERSION, is_modern_version
from trio_vmcp._protocol.jsonrpc import ErrorReply, Notification, Request, RequestId, Result
from trio_vmcp._protocol.methods import CANCELLED, INITIALIZE, INITIALIZED, LOG_LEVEL, PING
from trio_vmcp._protocol.reading import Oversized, ends_of
from trio_vmcp.errors import SessionClosed, VmcpError
from trio_vmcp.manager import SessionManager
from trio_vmcp.models import JSON
from trio_vmcp.serve._backlog import Backlog
from trio_vmcp.serve._batches import answer_batch
from trio_vmcp.serve._client_session import (
    STREAM_PATIENCE,
    Clients,
    ClientSession,
    Outlet,
    attributes_of,
    handlers_for,
    initialize_result,
    negotiate,
)
from trio_vmcp.serve._errors import INVALID_REQUEST, Refusal, opened, refusal_of
from trio_vmcp.serve._exchange import Exchange
from trio_vmcp.serve._messages import begins_batch, encode_answer, encode_refusal, read_message, split_batch
from trio_vmcp.serve._stateless import PROTOCOL_VERSION, Stateless, check_meta, check_offered, meta_of
from trio_vmcp.serve.settings import ServeSettings

__all__ = ["serve_stdio"]

logger = logging.getLogger("trio_vmcp.serve")

UNAVAILABLE = -32000  # from the range that JSON-RPC 2.0 §5.1 leaves to implementations
CHUNK = 64 * 1024
LINES_AT_ONCE = 16  # between two checkpoints: a piece of a stream may hold thousands of lines
FLUSH = 0.5  # s, for the client to read what is left when the server ends


async def serve_stdio(
    manager: SessionManager,
    receive: trio.abc.ReceiveStream,
    send: trio.abc.SendStream,
    *,
    settings: ServeSettings | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve one client until its stream ends, or this is cancelled. Then requests that are under way are answered
    within `settings.shutdown_timeout` s.

    Args:
        manager: Its sessions should have no `idle_timeout`: a client of stdio cannot open another one.
        receive, send: From the client and to it. Not closed.
        settings: `max_body_bytes` limits a line, `stream_buffer` the messages that wait for the client to read, of
            which notifications may get lost. While more results wait, or 4 MiB of them, no request is read.
            `stream_buffer` also limits the requests that are under way; one more is refused, but for `ping`.
    """
    settings = settings or ServeSettings()
    lines = _Lines(send, Backlog(settings.stream_buffer))
    serving = trio.CancelScope(shield=True)  # the cancel that ends the server must not end what is under way
    async with trio.open_nursery() as nursery:
        client = _StdioClient(manager, settings, lines)
        start_clean(nursery, client.run, receive, serving)
        try:
            task_status.started()
            await client.gone.wait()
        finally:
            with trio.move_on_after(settings.shutdown_timeout, shield=True):
                await client.drain()
            with trio.move_on_after(FLUSH, shield=True):
                await lines.wait_written()
            serving.cancel(reason="the server has shut down")


@attrs.define(eq=False)
class _Lines(Outlet):
    """Messages to the client, in order. `send` never waits."""

    _stream: trio.abc.SendStream = attrs.field(alias="stream", repr=False)
    _backlog: Backlog = attrs.field(alias="backlog", repr=False)
    _news: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _written: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)  # of the next write
    _is_open: bool = attrs.field(default=True, init=False)

    @property
    def is_open(self) -> bool:
        return self._is_open

    def send(self, data: bytes, *, may_drop: bool) -> None:
        if self.is_open:
            self._backlog.add(data + b"\n", may_drop=may_drop)
            self._news.set()

    async def write(self) -> None:
        """Write what is sent, until this is cancelled or the client is gone."""
        try:
            while True:
                pieces, number = self._backlog.waiting()
                if not pieces:
                    await self._news.wait()
                    self._news = trio.Event()
                    continue
                await self._stream.send_all(b"".join(pieces))
                self._backlog.mark_sent(number)
                self._tell_written()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._is_open = False
            self._backlog.clear()
            self._tell_written()

    def _tell_written(self) -> None:
        self._written.set()
        self._written = trio.Event()

    async def wait_room(self) -> None:
        """While the client does not read what it has asked for, it should ask for no more."""
        while self._backlog.is_full:
            await self._written.wait()

    async def wait_written(self) -> None:
        """Until all that was sent so far is written, or the client is gone."""
        while self._backlog.size:
            await self._written.wait()


@attrs.define(eq=False)
class _StdioExchange(Exchange):
    """A request over stdio: its messages go where all go.

    Attributes:
        opens: It is the `initialize` that opens the session.
    """

    mark: str
    _lines: _Lines = attrs.field(alias="lines", repr=False)
    log_level: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    opens: bool = attrs.field(default=False, init=False)

    @property
    def takes_messages(self) -> bool:
        return True

    def send(self, data: bytes, *, may_drop: bool) -> None:
        self._lines.send(data, may_drop=may_drop)


@attrs.define(eq=False)
class _StdioClient(Clients):
    """The client, in both eras.

    Attributes:
        gone: Its stream has ended.
    """

    _manager: SessionManager = attrs.field(alias="manager")
    _settings: ServeSettings = attrs.field(alias="settings")
    _lines: _Lines = attrs.field(alias="lines", repr=False)
    gone: trio.Event = attrs.field(factory=trio.Event, init=False)
    _stateless: Stateless = attrs.field(init=False, repr=False)
    _state: ClientSession | None = attrs.field(default=None, init=False)  # of the handshake era, once initialized
    _opening: trio.Event | None = attrs.field(default=None, init=False)  # since `initialize` has come
    _initialized: trio.Event = attrs.field(factory=trio.Event, init=False)  # the client says so
    _is_draining: bool = attrs.field(default=False, init=False)
    _running: dict[RequestId, _StdioExchange] = attrs.field(factory=dict, init=False, repr=False)
    _by_mark: dict[object, _StdioExchange] = attrs.field(factory=dict, init=False, repr=False)
    _marks: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1), init=False, repr=False)
    _batches: int = attrs.field(default=0, init=False)  # under way
    _idle: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._stateless = Stateless(self._manager, self._by_mark.get)

    def client_of(self, session_id: str) -> ClientSession | None:
        state = self._state
        return state if state is not None and state.session.id == session_id else None

    async def wait_client(self, session_id: str) -> ClientSession | None:
        """ "The server SHOULD NOT send requests other than pings and logging before receiving the `initialized`
        notification" (2025-11-25, lifecycle), and backends like to ask as soon as they have theirs.
        """
        with trio.move_on_after(STREAM_PATIENCE):
            await self._initialized.wait()
        self._initialized.set()  # a client that never says so is waited for once
        return self.client_of(session_id)

    async def run(self, receive: trio.abc.ReceiveStream, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                start_task(nursery, self._write)
                await self._read(receive, nursery)
                self.gone.set()
                await trio.sleep_forever()  # what was asked may still be answered

    async def _write(self) -> None:
        await self._lines.write()
        self.gone.set()  # the client does not read any more

    async def drain(self) -> None:
        """Take no more requests, end the streams of changes, and return when no request is under way."""
        self._is_draining = True
        self._stateless.listeners.close()
        if self.gone.is_set() and self._state is not None:
            self._state.end()  # no answer to a question can come any more
        while self._running or self._batches:
            self._idle = trio.Event()
            await self._idle.wait()

    # --- lines

    async def _read(self, receive: trio.abc.ReceiveStream, nursery: trio.Nursery) -> None:
        decoder = LineDecoder(self._settings.max_body_bytes)
        try:
            while chunk := await receive.receive_some(CHUNK):
                await self._take_lines(decoder.feed(chunk), nursery)
            await self._take_lines(decoder.finish(), nursery)
        except LineFlood:
            self._refuse(Oversized(), Refusal(INVALID_REQUEST, "the line does not end"))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _take_lines(self, lines: list[bytes | bytearray | Oversized], nursery: trio.Nursery) -> None:
        for number, line in enumerate(lines, 1):
            await self._lines.wait_room()
            if isinstance(line, Oversized):
                most = self._settings.max_body_bytes
                self._refuse(line, Refusal(INVALID_REQUEST, f"the line is over {most} bytes (max_body_bytes)"))
            else:
                await self._take_line(bytes(line), nursery)
            if number % LINES_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()

    def _refuse(self, line: Oversized, refusal: Refusal) -> None:
        """Tell what is wrong with a line that cannot be read. Its request is answered, if the id can be found; an
        unreadable answer fails its question, which would wait for the deadline of its call.
        """
        request_id = line.request_id if line.request_id not in self._running else None
        self._lines.send(encode_refusal(request_id, refusal), may_drop=request_id is None)
        if line.reply_id is not None and self._state is not None:
            self._state.on_reply(ErrorReply(line.reply_id, refusal.code, refusal.message, None))

    async def _take_line(self, line: bytes, nursery: trio.Nursery) -> None:
        if not line.strip():
            return
        try:
            if begins_batch(line):
                batch = await split_batch(line)
                self._batches += 1
                start_task(nursery, self._answer_batch, batch, self._is_draining, nursery)
                return
            message = await read_message(line)
        except Refusal as refusal:
            self._refuse(ends_of(line), refusal)
            return
        if isinstance(message, Request):
            self._start(message, nursery)
        else:
            await self._take(message)

    async def _take(self, message: Notification | Result | ErrorReply) -> None:
        """What has no response. None of it waits for a backend: the next line waits meanwhile."""
        if isinstance(message, Notification) and message.method == CANCELLED:
            request_id: Any = message.params.get("requestId")
            if type(request_id) in (int, str) and request_id in self._running:
                self._running[request_id].scope.cancel(reason="the client has withdrawn the request")
        elif isinstance(message, Notification) and message.method == INITIALIZED:
            self._initialized.set()
        elif self._state is None:
            return
        elif isinstance(message, Notification):
            self._manager.start_task(self._state.on_notification, message)
        else:
            self._state.on_reply(message)

    # --- requests

    def _start(self, message: Request, nursery: trio.Nursery) -> None:
        """Answer it in a task of its own. From here on it can be withdrawn."""
        refusal = self._refusal_of(message, self._is_draining)
        if refusal is not None:
            self._lines.send(encode_refusal(message.id, refusal), may_drop=False)
        else:
            start_task(nursery, self._answer, message, self._enter(message), nursery)

    def _refusal_of(self, message: Request, is_late: bool) -> Refusal | None:
        if is_late:
            return Refusal(UNAVAILABLE, "the server shuts down")
        if message.id in self._running:
            return Refusal(INVALID_REQUEST, "the id of this request is in use by another request")
        most = self._settings.stream_buffer
        if len(self._running) >= most and message.method != PING:  # lines are read on: cancels and answers make room
            return Refusal(UNAVAILABLE, f"{most} requests are under way, and there may be no more (stream_buffer)")
        return None

    async def _answer(self, message: Request, exchange: _StdioExchange, nursery: trio.Nursery) -> None:
        body = await self._response(message, exchange, nursery)
        if body is not None:
            self._lines.send(body, may_drop=False)

    async def _answer_batch(self, batch: list[bytes], is_late: bool, nursery: trio.Nursery) -> None:
        """Answer it in one line. Late: the server has begun to shut down before the batch came."""

        async def answer(message: Request) -> bytes | None:
            refusal = self._refusal_of(message, is_late)
            if refusal is not None:
                return encode_refusal(message.id, refusal)
            return await self._response(message, self._enter(message), nursery)

        version = BATCH_VERSION if self._state is None else self._state.version
        try:
            body = await answer_batch(batch, version, answer, self._take)
        except Refusal as refusal:
            body = encode_refusal(None, refusal)
        if body is not None:
            self._lines.send(body, may_drop=False)
        self._batches -= 1
        self._idle.set()

    def _enter(self, message: Request) -> _StdioExchange:
        exchange = _StdioExchange(str(next(self._marks)), self._lines, meta_of(message.params).get(LOG_LEVEL))
        self._running[message.id] = self._by_mark[exchange.mark] = exchange
        if message.method == INITIALIZE and self._opening is None and not _is_of_modern_era(message):
            self._opening, exchange.opens = trio.Event(), True
        return exchange

    async def _response(self, message: Request, exchange: _StdioExchange, nursery: trio.Nursery) -> bytes | None:
        """The response to a request; None: the client has withdrawn it."""
        is_modern = _is_of_modern_era(message)
        try:
            result = await (self._modern if is_modern else self._legacy)(message, exchange, nursery)
            return None if result is None else encode_answer(message.id, result)
        except Exception as error:  # noqa: BLE001  # `refusal_of` logs what is none of ours
            return encode_refusal(message.id, refusal_of(error, is_modern=is_modern))
        finally:
            del self._running[message.id], self._by_mark[exchange.mark]
            self._idle.set()

    async def _modern(self, message: Request, exchange: _StdioExchange, nursery: trio.Nursery) -> JSON | None:
        check_offered(message, check_meta(message))
        with exchange.scope:
            return await self._stateless.answer(None, message, exchange)
        return None

    async def _legacy(self, message: Request, exchange: _StdioExchange, nursery: trio.Nursery) -> JSON | None:
        if exchange.opens and self._opening is not None:
            return await self._initialize(message, self._opening, nursery)
        if message.method == PING:
            return {}
        if self._state is None and self._opening is not None:  # some clients do not wait for the response
            await self._opening.wait()
        if self._state is None:
            raise Refusal(INVALID_REQUEST, "no request comes before initialize")
        handlers = partial(handlers_for, self)
        getting = self._manager.get(self._state.session.id, handlers=handlers, prefer_era="legacy")
        self._state.session = await opened(getting)
        return await self._state.answer(message.id, message.method, message.params, exchange)

    async def _initialize(self, message: Request, opening: trio.Event, nursery: trio.Nursery) -> JSON:
        """It is not withdrawn: "The `initialize` request MUST NOT be cancelled by clients" (cancellation)."""
        try:
            version, capabilities = negotiate(message.params)
            attributes = attributes_of(version, capabilities)
            handlers = handlers_for(self, attributes)
            session = await opened(self._manager.create(attributes=attributes, handlers=handlers, prefer_era="legacy"))
            self._state = ClientSession(session, version, self._lines)
        except (Refusal, VmcpError):
            self._opening = None  # the client may try again
            raise
        finally:
            opening.set()
        start_task(nursery, self._tell_changes, self._state)
        return initialize_result(version)

    async def _tell_changes(self, state: ClientSession) -> None:
        with suppress(SessionClosed):  # already
            async with state.session.changes() as changes:
                state.tell_changed_lists()  # since the session has opened
                async for change in changes:
                    state.on_change(change)
        state.end()


def _is_of_modern_era(message: Request) -> bool:
    version = meta_of(message.params).get(PROTOCOL_VERSION)
    return version is not None and (not isinstance(version, str) or is_modern_version(version))
