"""Backends of the older HTTP transport (2024-11-05, "HTTP+SSE"): one event stream for all answers, and POSTs.

The GET of the configured url opens the stream. Its first event names the url to POST to, and everything that the server
ever says comes as events after that. The stream is the session: it has no id, cannot be resumed, and ends with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import attrs
import httpx
import trio

from trio_vmcp._client.channels.duplex import DuplexClient
from trio_vmcp._client.channels.inbox import Inbox, Loss, Waiter
from trio_vmcp._client.channels.streamable import HttpRefusal, refusal
from trio_vmcp._client.handshake import InitializeRefused
from trio_vmcp._client.http.link import Headers, HttpLink
from trio_vmcp._client.http.reply import Reply
from trio_vmcp._client.notices import Notices
from trio_vmcp._client.server_requests import ServerRequests
from trio_vmcp._nursery import start_clean
from trio_vmcp._protocol.sse import SseDecoder, SseEvent, SseLimit
from trio_vmcp.connector import EventSink
from trio_vmcp.errors import BackendError, BackendProtocolError, MessageTooLarge
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord, endpoint_digest
from trio_vmcp.models import Backend
from trio_vmcp.settings import FactorySettings

__all__ = ["connect_sse"]


MOST_ENDPOINT_BYTES = 8 * 1024  # what common servers take as a request line
MOST_DRAINED = 16  # chunks of a body that says nothing

MakeLink = Callable[[Backend], HttpLink]


async def connect_sse(
    backend: Backend,
    *,
    settings: FactorySettings,
    make_link: MakeLink,
    notice_timeout: float,
    endpoint_timeout: float,
    identity: Identity | None,
    nursery: trio.Nursery,
    events: EventSink,
    requests: ServerRequests,
) -> DuplexClient:
    """Open the backend's stream and shake hands.

    Args:
        make_link: A way to the backend's url; asked twice, since the messages go to another one.
        notice_timeout: s, for a message that nobody waits for.
        endpoint_timeout: s, until the stream has named that other url.
        identity: Whose credentials the stream carries.
        nursery: Owns the stream, whatever becomes of this call.
        requests: Answers what the backend asks.

    Raises:
        BackendError: There is no such stream, or what comes on it is not MCP.
    """
    # Another transport to the same url is another endpoint: a session that was restored over streamable HTTP would take
    # up a record of this one as a backend session without an id.
    digest = endpoint_digest(attrs.evolve(backend, transport="sse"))
    inbox = Inbox(
        backend_id=backend.id,
        max_message_bytes=settings.max_message_bytes,
        max_json_depth=settings.max_json_depth,
    )
    wire = _EventStream(
        backend=backend,
        link=make_link(backend),
        make_link=make_link,
        inbox=inbox,
        identity=identity,
        notices=Notices(nursery=nursery, timeout=notice_timeout),
        close_timeout=notice_timeout,
    )
    client = DuplexClient(
        record=BackendRecord(backend.id, None, "legacy", "", {}, digest),
        events=events,
        inbox=inbox,
        wire=wire,
        requests=requests,
    )
    start_clean(nursery, wire.serve)
    try:
        with trio.move_on_after(endpoint_timeout) as patience:
            await wire.ready.wait()
        if patience.cancelled_caught:
            raise BackendProtocolError(backend.id, f"named no endpoint on its event stream within {endpoint_timeout} s")
        wire.check()
        try:
            await client.initialize(identity)
        except InitializeRefused as refused:
            raise refusal(backend.id, "initialize", refused.outcome) from None
        wire.rely(client.record.protocol_version)
        return client
    except BaseException:
        requests.close()
        wire.abandon()
        raise


@attrs.define(eq=False, kw_only=True)
class _EventStream:
    """The `Wire`.

    Attributes:
        ready: Set when messages can be POSTed, or never will: then the inbox knows why.
    """

    backend: Backend
    link: HttpLink
    make_link: MakeLink
    inbox: Inbox
    identity: Identity | None = attrs.field(repr=False)
    notices: Notices
    close_timeout: float  # s
    ready: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _posts: HttpLink | None = attrs.field(default=None, init=False)
    _version: str = attrs.field(default="", init=False)
    _wanted: bool = attrs.field(default=False, init=False)  # somebody relies on it: its end is news
    _failure: BackendError | None = attrs.field(default=None, init=False)
    _life: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _gone: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)

    async def serve(self) -> None:
        """Read the stream to its end.

        Raises:
            BackendError: It ended by itself, and somebody relied on it.
        """
        loss = Loss("was closed")
        try:
            with self._life:
                try:
                    await self._listen()
                    loss = Loss("closed its event stream")
                except BackendError as error:
                    self._failure, loss = error, Loss(error.detail)
        finally:
            self.inbox.lose(loss)
            self.ready.set()
            self._gone.set()
        if self._wanted and not self._life.cancel_called:
            raise self._failure or loss.error(self.backend.id)

    def check(self) -> None:
        """
        Raises:
            BackendError: The stream has ended; this is why.
        """
        if self._failure is not None:
            raise self._failure
        if self.inbox.loss is not None:
            raise self.inbox.loss.error(self.backend.id)

    def rely(self, version: str) -> None:
        """From now on the stream's end is an error of `serve`.

        Args:
            version: The protocol version that was agreed on.

        Raises:
            BackendError: It has ended already.
        """
        self.check()
        self._version, self._wanted = version, True

    def abandon(self) -> None:
        """Nobody wants it any more."""
        self._life.cancel(reason="the attempt to connect was given up")
        self.notices.start(self._let_go)

    async def aclose(self) -> None:
        self._wanted = False
        try:
            await self.notices.aclose()
        finally:
            self._life.cancel(reason="the client was closed")
            await self._let_go()  # noqa: ASYNC102  # which is shielded, and bounded

    async def _let_go(self) -> None:
        with trio.move_on_after(self.close_timeout, shield=True):
            await self._gone.wait()
            for link in (self._posts, self.link):
                if link is not None:
                    await link.aclose()

    # --- what comes

    async def _listen(self) -> None:
        # Not limited: it would take the place of a call for as long as the session lasts.
        async with self.link.exchange("GET", [], identity=self.identity, is_stream=True) as reply:
            if not 200 <= reply.status < 300:
                challenge = reply.header("www-authenticate")
                raise refusal(self.backend.id, "GET", HttpRefusal(reply.status, challenge))
            if reply.media_type != "text/event-stream":
                raise BackendProtocolError(self.backend.id, "answered a GET with what is no event stream")
            reply.refuse_encoding()
            await self._read(reply)

    async def _read(self, reply: Reply) -> None:
        decoder = SseDecoder(max_event_bytes=self.inbox.max_message_bytes)
        while (chunk := await reply.receive()) is not None:
            try:
                events = decoder.feed(chunk)
            except SseLimit as exc:
                raise MessageTooLarge(self.backend.id, f"sent {exc} (max_message_bytes)") from exc
            for event in events:
                self._take(event)

    def _take(self, event: SseEvent) -> None:
        if self._posts is None:
            if event.event == "endpoint":
                self._posts = self.make_link(attrs.evolve(self.backend, url=self._resolve(bytes(event.data))))
                self.ready.set()
        elif event.event == "message" and event.data and not self.inbox.take(event.data):
            text = "backend %r: skipped an event of %d bytes that is not JSON"
            self.inbox.complaints.make(text, self.backend.id, len(event.data))

    def _resolve(self, endpoint: bytes) -> str:
        """Where to POST. Its query often holds the session's id, a bearer token: no text of ours shows it."""
        stream = httpx.URL(self.backend.url)
        try:
            if len(endpoint) > MOST_ENDPOINT_BYTES:
                raise ValueError("too long")
            target = stream.join(endpoint.decode())
        except (ValueError, httpx.InvalidURL):  # ValueError: UnicodeDecodeError, too
            raise BackendProtocolError(self.backend.id, "named an endpoint that is no URL") from None
        if (target.scheme, target.raw_host, target.port) != (stream.scheme, stream.raw_host, stream.port):
            # Headers of the user and what is in the messages would go along.
            raise BackendProtocolError(self.backend.id, "named an endpoint of another origin, which is not followed")
        return str(target.copy_with(userinfo=stream.userinfo, fragment=None))

    # --- what goes

    @asynccontextmanager
    async def sending(self, data: bytes, waiter: Waiter, identity: Identity | None) -> AsyncIterator[None]:
        """See `Wire`. Beside the wait: there are servers that end the POST only when the answer is on the stream."""
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, data, waiter, identity)
            try:
                yield
            except Exception as exc:  # noqa: BLE001  # raised below: the nursery would group it
                failure = exc
            nursery.cancel_scope.cancel(reason="the request is settled")
        if failure is not None:
            raise failure

    async def _send(self, data: bytes, waiter: Waiter, identity: Identity | None) -> None:
        try:
            refused = await self._post(data, identity, limited=True)
        except BackendError as error:
            waiter.settle(error)
        else:
            if refused is not None:
                waiter.settle(refused)

    async def say(self, data: bytes, identity: Identity | None) -> None:
        await self._post(data, identity, limited=False)  # any answer will do

    def say_soon(self, data: bytes, identity: Identity | None) -> None:
        whose = self.identity if identity is None else identity  # no caller's: the one that the stream was opened with
        self.notices.start(partial(self._post, data, whose, limited=False))

    async def answer(self, data: bytes) -> None:
        refused = await self._post(data, self.identity, limited=False)
        if refused is not None:
            text = "backend %r: answered our answer with HTTP %d"
            self.inbox.complaints.make(text, self.backend.id, refused.status)

    async def _post(self, data: bytes, identity: Identity | None, *, limited: bool) -> HttpRefusal | None:
        assert self._posts is not None
        headers: Headers = [(b"MCP-Protocol-Version", self._version.encode())] if self._version else []
        async with self._posts.exchange("POST", headers, data, identity=identity, limited=limited) as reply:
            refused = None
            if not 200 <= reply.status < 300:
                refused = HttpRefusal(reply.status, reply.header("www-authenticate"))
            for _ in range(MOST_DRAINED):  # to its end, so that the connection is used again
                if await reply.receive() is None:
                    break
            return refused
