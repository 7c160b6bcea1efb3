"""The handshake era over streamable HTTP (MCP 2025-03-26 to 2025-11-25): sessions of clients, POST, GET, DELETE.

A client that is gone does not cancel its requests ("disconnection SHOULD NOT be interpreted as the client cancelling
its request", transports): a call goes on for `abandoned_after`, and its stream can be resumed with `Last-Event-ID`.
"""

from __future__ import annotations

import itertools
import math
import re
import secrets
from collections import deque
from contextlib import suppress
from functools import partial

import attrs
import trio

from trio_vmcp._nursery import start_task
from trio_vmcp._protocol.eras import LEGACY_VERSIONS
from trio_vmcp._protocol.jsonrpc import ErrorReply, Message, Notification, Request, Result
from trio_vmcp._protocol.methods import INITIALIZE
from trio_vmcp.errors import VmcpError
from trio_vmcp.identity import Identity
from trio_vmcp.manager import SessionManager
from trio_vmcp.models import SessionState
from trio_vmcp.serve._accept import accepts
from trio_vmcp.serve._asgi import ClientGone, HttpReply, HttpRequest
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
from trio_vmcp.serve._exchange import JSON_BODY, Exchange, Exchanges, HttpExchange, QuietExchange
from trio_vmcp.serve._messages import encode_answer, encode_refusal
from trio_vmcp.serve._streams import EVENT_STREAM, EventStream
from trio_vmcp.serve._wanted import PROTOCOL_VERSION
from trio_vmcp.serve.settings import ServeSettings
from trio_vmcp.session import Session

__all__ = ["SESSION_ID", "LegacyFront"]

SESSION_ID = "mcp-session-id"
PRIMED_SINCE = "2025-11-25"  # clients of earlier versions take an event without data for a broken message
MOST_FINISHED = 16  # streams of one client, that are kept once their requests are answered
STANDALONE = ".0"  # ends the names of streams outside of requests, in every process
_EVENT_ID = re.compile(r"([0-9a-f]{8}\.\d{1,18})-(\d{1,18})", re.ASCII)


@attrs.define(eq=False)
class _Standalone(Outlet):
    """The GET stream of a client, and the task that tells of changes, which runs while the client listens."""

    stream: EventStream
    changes: trio.CancelScope | None = attrs.field(default=None, init=False, repr=False)

    @property
    def is_open(self) -> bool:
        return self.changes is not None

    def send(self, data: bytes, *, may_drop: bool) -> None:
        self.stream.put(data, may_drop=may_drop)


@attrs.define(eq=False)
class _HttpClient:
    """One client and its streams.

    Attributes:
        epoch: Begins the names of its streams: another one in each process, so that an event id of an earlier process
            names no stream of this one.
        exchanges: Its requests that are not answered, by the names of their streams.
        finished: Streams whose requests are answered, by name, while they may be resumed.
    """

    epoch: str
    state: ClientSession
    standalone: _Standalone
    exchanges: dict[str, HttpExchange] = attrs.field(factory=dict, init=False, repr=False)
    finished: dict[str, EventStream] = attrs.field(factory=dict, init=False, repr=False)
    _names: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1), init=False, repr=False)

    def next_name(self) -> str:
        return f"{self.epoch}.{next(self._names)}"


@attrs.define(eq=False)
class LegacyFront(Clients):
    """All clients of this era whose sessions are, or were, live here."""

    _manager: SessionManager = attrs.field(alias="manager")
    _settings: ServeSettings = attrs.field(alias="settings")
    _exchanges: Exchanges = attrs.field(alias="exchanges")
    _clients: dict[str, _HttpClient] = attrs.field(factory=dict, init=False, repr=False)
    _arrivals: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False, repr=False)
    _most_before_pruning: int = attrs.field(default=64, init=False)
    _expiring: deque[tuple[float, _HttpClient, str]] = attrs.field(factory=deque, init=False, repr=False)

    def client_of(self, session_id: str) -> ClientSession | None:
        client = self._clients.get(session_id)
        return None if client is None else client.state

    async def wait_client(self, session_id: str) -> ClientSession | None:
        with trio.move_on_after(STREAM_PATIENCE):
            while session_id not in self._clients:
                await self._arrivals.park()
        return self.client_of(session_id)

    async def post(self, request: HttpRequest, reply: HttpReply, identity: Identity | None, message: Message) -> None:
        """
        Raises:
            Refusal, VmcpError: The message was not taken.
        """
        if isinstance(message, Request) and message.method == INITIALIZE:
            await self._initialize(request, reply, identity, message)
            return
        client = await self._client(request, identity)
        if isinstance(message, Request):
            await self._answer(client, request, reply, message)
        elif isinstance(message, Notification):
            await reply.respond(202)  # first: to tell backends of changed roots may take long
            await self._take(client, message)
        else:
            await self._take(client, message)
            await reply.respond(202)

    async def post_batch(
        self, request: HttpRequest, reply: HttpReply, identity: Identity | None, batch: list[bytes]
    ) -> None:
        """Several messages in one body, which 2025-03-26 has and no other version: one array of responses, without the
        messages that would precede them.

        Raises:
            Refusal, VmcpError: The client speaks another version, or the batch was not taken.
        """
        client = await self._client(request, identity)

        async def answer(message: Request) -> bytes | None:
            _, body = await self._outcome(client, QuietExchange(self._exchanges.next_mark()), message)
            return body

        responses: bytes | None = None
        refused: Refusal | None = None
        async with trio.open_nursery() as nursery:
            start_task(nursery, _cancel_when_gone, request, nursery.cancel_scope, self._settings.abandoned_after)
            try:
                responses = await answer_batch(batch, client.state.version, answer, partial(self._take, client))
            except Refusal as refusal:  # kept from the nursery, which would wrap it in a group
                refused = refusal
            nursery.cancel_scope.cancel(reason="all requests of the batch are answered")
        if refused is not None:
            raise refused
        if responses is None:
            await reply.respond(202)
        else:
            await reply.respond(200, responses, (JSON_BODY,))

    async def get(self, request: HttpRequest, reply: HttpReply, identity: Identity | None) -> None:
        """Open the stream for messages outside of requests, or resume a stream."""
        if not accepts(request, "text/event-stream"):
            raise Refusal(INVALID_REQUEST, "GET needs Accept: text/event-stream", status=406)
        client = await self._client(request, identity)
        name, after = _read_event_id(request.headers.get("last-event-id"))
        exchange = client.exchanges.get(name)
        finished = client.finished.get(name)
        if finished is not None and finished.has_after(after):
            await self._write(finished, request, reply, after)
        elif exchange is not None and exchange.stream is not None:
            await self._resume(exchange, exchange.stream, request, reply, after)
        elif name == client.standalone.stream.name:
            await self._listen(client, request, reply, after)
        elif not name or name.endswith(STANDALONE):
            await self._listen(client, request, reply, None)
        else:
            # On another stream the client would wait for a response that does not come. A stream that ends at once, as
            # that of a withdrawn request would, makes clients of the SDKs come back for ever.
            raise Refusal(INVALID_REQUEST, "the stream of this Last-Event-ID has ended, or is not kept", status=400)

    async def delete(self, request: HttpRequest, reply: HttpReply, identity: Identity | None) -> None:
        """End the session. The answer comes once it takes no more requests; what runs drains behind that."""
        _check_version(request)
        await self._terminate(_session_id(request), identity)
        await reply.respond(204)

    async def _terminate(self, session_id: str, identity: Identity | None) -> None:
        await self._manager.terminate(session_id, caller=identity, wait=False)
        client = self._clients.pop(session_id, None)
        if client is not None:
            self._end(client)

    def close(self) -> None:
        """The server shuts down: end the streams that would stay open."""
        for client in self._clients.values():
            client.standalone.stream.finish()

    # --- sessions

    async def _initialize(
        self, request: HttpRequest, reply: HttpReply, identity: Identity | None, message: Request
    ) -> None:
        version, capabilities = negotiate(message.params)
        attributes = attributes_of(version, capabilities)
        session: Session | None = None
        refused: Refusal | VmcpError | None = None
        async with trio.open_nursery() as nursery:
            # Without its answer the client cannot know the id, so no session is left for a client that leaves.
            start_task(nursery, _cancel_when_gone, request, nursery.cancel_scope, 0.0)
            try:
                opening = self._manager.create(
                    identity=identity,
                    attributes=attributes,
                    handlers=handlers_for(self, attributes),
                    prefer_era="legacy",
                )
                session = await opened(opening)
            except (Refusal, VmcpError) as error:  # kept from the nursery, which would wrap it in a group
                refused = error
            nursery.cancel_scope.cancel(reason="the session is there, or there is none")
        if refused is not None:
            raise refused
        if session is None:
            raise ClientGone
        self._adopt(session)
        headers = ((b"content-type", b"application/json"), (SESSION_ID.encode(), session.id.encode()))
        with suppress(ClientGone):
            await reply.respond(200, encode_answer(message.id, initialize_result(version)), headers)
            return
        await self._terminate(session.id, identity)
        raise ClientGone

    async def _client(self, request: HttpRequest, identity: Identity | None) -> _HttpClient:
        """The client that a request comes from.

        Raises:
            Refusal: There is no session id, or the version is none.
            VmcpError: As `SessionManager.get`.
        """
        _check_version(request)
        session_id = _session_id(request)
        getting = self._manager.get(
            session_id, caller=identity, handlers=partial(handlers_for, self), prefer_era="legacy"
        )
        session = await opened(getting)
        client = self._clients.get(session_id)
        if client is None:
            client = self._adopt(session)
            client.state.forget_seen()
            self._manager.start_task(client.state.tell_wanted)
            return client
        slept = client.state.session.state is SessionState.CLOSED
        client.state.session = session
        news = client.state.wanted.take_over(session.metadata.attributes)
        if slept:
            self._manager.start_task(client.state.tell_wanted)
        elif news is not None:  # the client has been on another instance meanwhile
            self._manager.start_task(client.state.tell_news, news)
        return client

    def _adopt(self, session: Session) -> _HttpClient:
        if len(self._clients) >= self._most_before_pruning:
            self._prune()
        version = session.metadata.attributes.get(PROTOCOL_VERSION, LEGACY_VERSIONS[-2])
        epoch = secrets.token_hex(4)
        standalone = _Standalone(EventStream(f"{epoch}{STANDALONE}", self._settings.stream_buffer))
        client = _HttpClient(epoch, ClientSession(session, version, standalone), standalone)
        self._clients[session.id] = client
        self._arrivals.unpark_all()
        return client

    def _prune(self) -> None:
        """Forget the clients whose sessions have ended. Rarely: a server with few sessions keeps few anyway."""
        live = {session.id for session in self._manager.live_sessions}
        for session_id, client in list(self._clients.items()):
            if session_id not in live and not client.state.is_busy and not client.standalone.is_open:
                del self._clients[session_id]
        self._most_before_pruning = max(64, 2 * len(self._clients))

    def _end(self, client: _HttpClient) -> None:
        client.state.end()
        client.standalone.stream.finish()
        if client.standalone.changes is not None:
            client.standalone.changes.cancel(reason="the session has ended")

    # --- messages

    async def _take(self, client: _HttpClient, message: Notification | Result | ErrorReply) -> None:
        if isinstance(message, Notification):
            await client.state.on_notification(message)
        else:
            client.state.on_reply(message)

    async def _answer(self, client: _HttpClient, request: HttpRequest, reply: HttpReply, message: Request) -> None:
        takes_json, takes_stream = accepts(request, "application/json"), accepts(request, "text/event-stream")
        if not (takes_json or takes_stream):
            raise Refusal(INVALID_REQUEST, "Accept takes neither application/json nor text/event-stream", status=406)
        exchange = HttpExchange(
            message.id,
            message.method,
            message.params,
            request,
            reply,
            self._manager.start_task,
            takes_stream,
            self._settings.keep_alive_interval,
            self._settings.stream_buffer,
            on_gone=self._abandon,
            resumable=client.next_name(),
            primes=takes_stream and client.state.version >= PRIMED_SINCE,
        )
        self._exchanges.add(exchange)
        client.exchanges[exchange.resumable] = exchange
        try:
            status, body = await self._outcome(client, exchange, message)
            if body is None:
                await exchange.respond_nothing()
            else:
                if not takes_json:
                    exchange.open_stream()
                await exchange.respond(status, body)
        finally:
            exchange.stop_watching()
            self._exchanges.discard(exchange)
            del client.exchanges[exchange.resumable]
            if exchange.stream is not None:
                self._keep(client, exchange.stream)

    async def _outcome(self, client: _HttpClient, exchange: Exchange, message: Request) -> tuple[int, bytes | None]:
        try:
            result = await client.state.answer(message.id, message.method, message.params, exchange)
        except Exception as error:  # noqa: BLE001  # `refusal_of` logs what is none of ours
            refusal = refusal_of(error, is_modern=False)
            # "MUST NOT" be 4xx: the session is alive, and a 404 would tell the client to open another one.
            status = refusal.status if refusal.status >= 500 else 200
            exchange.headers = refusal.headers
            return status, encode_refusal(message.id, refusal)
        return 200, None if result is None else encode_answer(message.id, result)

    def _abandon(self, exchange: HttpExchange) -> None:
        """The client is gone. Its call has some time to end, or to be resumed."""
        exchange.scope.deadline = trio.current_time() + self._settings.abandoned_after

    def _keep(self, client: _HttpClient, stream: EventStream) -> None:
        """Keep the events of an answered request for a client that may come back for them. The response is on its way
        then, but a connection may be dead long before the server hears of that.
        """
        client.finished[stream.name] = stream
        if len(client.finished) > MOST_FINISHED:
            del client.finished[next(iter(client.finished))]
        self._expiring.append((trio.current_time() + self._settings.abandoned_after, client, stream.name))
        if len(self._expiring) == 1:
            self._manager.start_task(self._expire)

    async def _expire(self) -> None:
        while self._expiring:
            expires_at, client, name = self._expiring[0]
            await trio.sleep_until(expires_at)
            client.finished.pop(name, None)
            self._expiring.popleft()

    async def _resume(
        self, exchange: HttpExchange, stream: EventStream, request: HttpRequest, reply: HttpReply, after: int | None
    ) -> None:
        exchange.scope.deadline = math.inf
        if exchange.primes and not stream.has_after(after):
            stream.prime()  # clients forget the id that they came with (typescript-sdk#2499)
        try:
            await self._write(stream, request, reply, after)
        finally:
            if not stream.is_read:
                self._abandon(exchange)

    # --- the stream outside of requests

    async def _listen(self, client: _HttpClient, request: HttpRequest, reply: HttpReply, after: int | None) -> None:
        standalone = client.standalone
        if standalone.changes is None or standalone.changes.cancel_called:  # the latter is about to end
            standalone.changes = trio.CancelScope()
            self._manager.start_task(self._tell_changes, client, standalone.changes)
            client.state.tell_missed()
        standalone.changes.deadline = math.inf
        try:
            await self._write(standalone.stream, request, reply, after)
        finally:
            if not standalone.stream.is_read and standalone.changes is not None:
                standalone.changes.deadline = trio.current_time() + self._settings.abandoned_after

    async def _tell_changes(self, client: _HttpClient, scope: trio.CancelScope) -> None:
        try:
            with scope:
                async with client.state.session.changes() as changes:
                    async for change in changes:
                        client.state.on_change(change)
                self._clients.pop(client.state.session.id, None)  # the session has ended
                self._end(client)
        finally:
            if client.standalone.changes is scope:
                client.standalone.changes = None

    async def _write(self, stream: EventStream, request: HttpRequest, reply: HttpReply, after: int | None) -> None:
        """Write a stream until it ends, or another connection reads it, or the client is gone."""
        with stream.read_by(reply):
            await reply.start(200, EVENT_STREAM)
            is_whole = False
            async with trio.open_nursery() as nursery:
                start_task(nursery, _detach_when_gone, request, reply, stream)
                is_whole = await stream.write_to(reply, after=after, keep_alive=self._settings.keep_alive_interval)
                nursery.cancel_scope.cancel(reason="the stream has ended")
            if is_whole:
                await reply.end()


async def _cancel_when_gone(request: HttpRequest, scope: trio.CancelScope, patience: float) -> None:
    await request.wait_gone()
    await trio.sleep(patience)
    scope.cancel(reason="the client is gone")


async def _detach_when_gone(request: HttpRequest, reply: HttpReply, stream: EventStream) -> None:
    await request.wait_gone()
    if not stream.is_read_elsewhere(reply):
        stream.detach()


def _check_version(request: HttpRequest) -> None:
    version = request.headers.get("mcp-protocol-version")
    if version is not None and version not in LEGACY_VERSIONS:
        shown = ", ".join(LEGACY_VERSIONS)
        raise Refusal(INVALID_REQUEST, f"the MCP-Protocol-Version is none of {shown}", status=400)


def _session_id(request: HttpRequest) -> str:
    session_id = request.headers.get(SESSION_ID)
    if session_id is None or SESSION_ID in request.repeated:
        raise Refusal(INVALID_REQUEST, "one Mcp-Session-Id header is needed", status=400)
    return session_id


def _read_event_id(text: str | None) -> tuple[str, int | None]:
    """The stream of an event, and its number in it; without an id: no name.

    Raises:
        Refusal: The text is none of our ids.
    """
    if not text:
        return "", None
    found = _EVENT_ID.fullmatch(text)
    if found is None:
        raise Refusal(INVALID_REQUEST, "the Last-Event-ID is none of this server's", status=400)
    return found[1], int(found[2])
