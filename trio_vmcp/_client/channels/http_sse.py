"""The channel of the older HTTP transport "HTTP+SSE" (MCP 2024-11-05): one event stream, and POSTs.

A GET of the configured url opens the stream. Its first event names the url to POST to, and all messages of the server
are later events. The session is the stream: it has no id, cannot be resumed, and ends with the stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import attrs
import httpx
import trio

from trio_vmcp._client.channels.channel import Ask, Headers, Send, ignore_other
from trio_vmcp._client.channels.duplex import DuplexChannel
from trio_vmcp._client.channels.inbox import PendingRequest
from trio_vmcp._client.channels.pace import pieces
from trio_vmcp._client.http.link import HttpLink
from trio_vmcp._client.http.reply import HttpReply
from trio_vmcp._client.listening import MAX_SILENCE
from trio_vmcp._client.unawaited import UnawaitedMessages
from trio_vmcp._http.origin import http_url, within_origin
from trio_vmcp._nursery import start_task
from trio_vmcp._protocol.eras import BATCH_VERSION
from trio_vmcp._protocol.methods import PING
from trio_vmcp._protocol.outcomes import Loss, Refusal, rejection
from trio_vmcp._protocol.sse import SseDecoder, SseEvent, SseLimit
from trio_vmcp._request_note import RequestNote, note_via
from trio_vmcp.errors import BackendError, BackendProtocolError, MessageTooLarge
from trio_vmcp.identity import Identity
from trio_vmcp.models import Backend

__all__ = ["EventStream"]

MOST_ENDPOINT_BYTES = 8 * 1024  # what common servers take as a request line
MOST_POST_BYTES = 64 * 1024  # of a response that says nothing
# s for the answer to a ping on a silent stream. A server may answer nothing while a tool runs, so while calls wait, the
# ping has `MAX_SILENCE` s.
PING_TIMEOUT = 30.0

MakeLink = Callable[[Backend], HttpLink]


@attrs.define(eq=False, kw_only=True)
class EventStream(DuplexChannel):
    """The channel. `serve` runs in a task of its own; requests can be sent after `wait_endpoint`.

    Attributes:
        make_link: Makes the link to the url that the stream names.
        identity: The request for the stream carries its credentials.
        ready: Set when messages can be POSTed, or never will be; then `inbox.loss` has the reason.
    """

    backend: Backend
    link: HttpLink
    make_link: MakeLink
    identity: Identity | None = attrs.field(repr=False)
    unawaited: UnawaitedMessages
    close_timeout: float  # s
    ready: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _posts: HttpLink | None = attrs.field(default=None, init=False)
    _version: str = attrs.field(default="", init=False)
    _is_connected: bool = attrs.field(default=False, init=False)
    _heard_at: float = attrs.field(factory=trio.current_time, init=False)  # the newest bytes of the stream
    _failure: BackendError | None = attrs.field(default=None, init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _gone: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.inbox.blot = self._blot

    def _blot(self, text: str) -> str:
        text = self.link.given.blot(text, [])
        return text if self._posts is None else self._posts.given.blot(text, [])

    async def serve(self) -> None:
        """Read the stream to its end.

        Raises:
            BackendError: The stream ended by itself after the client was connected.
        """
        loss = Loss("was closed")
        try:
            with self._scope:
                loss = await self._listen_to_end()
        finally:
            self.inbox.close(loss)
            self.ready.set()
            self._gone.set()
        if self._is_connected and not self._scope.cancel_called:
            raise self._failure or loss.error(self.backend.id)

    async def wait_endpoint(self, timeout: float) -> None:
        """Wait until the stream has named the url to POST to.

        Raises:
            BackendError: There is no such stream, it has ended, or it named no url within `timeout` s.
        """
        note_via(self.link.via)  # the stream is opened in another task
        with trio.move_on_after(timeout) as patience:
            await self.ready.wait()
        if patience.cancelled_caught:
            detail = f"named no endpoint on its event stream within {timeout} s{self.link.via}"
            raise BackendProtocolError(self.backend.id, detail)
        self._check()

    def mark_connected(self) -> None:
        """The client is connected. From now on the end of the stream is an error of `serve`.

        Raises:
            BackendError: The stream has ended.
        """
        self._check()
        self._is_connected = True

    def agree(self, version: str) -> None:
        self._version = version
        self.inbox.takes_batches = version == BATCH_VERSION

    def close(self) -> None:
        """The attempt to connect has failed: end the stream, without waiting."""
        self._scope.cancel(reason="the attempt to connect was given up")
        self.unawaited.start(self._close_links)

    async def aclose(self, *, terminate: bool) -> None:
        self._is_connected = False
        try:
            await self.unawaited.aclose()
        finally:
            self._scope.cancel(reason="the client was closed")
            await self._close_links()  # noqa: ASYNC102  # which is shielded, and bounded

    async def _close_links(self) -> None:
        with trio.move_on_after(self.close_timeout, shield=True):
            await self._gone.wait()
            for link in (self._posts, self.link):
                if link is not None:
                    await link.aclose()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self.inbox.loss is not None:
            raise self.inbox.loss.error(self.backend.id)

    # --- messages from the backend

    async def _listen_to_end(self) -> Loss:
        """Read the stream until it ends, or is found to be dead."""
        loss = Loss(f"said nothing on its event stream for {MAX_SILENCE} s, and did not answer a ping")
        async with trio.open_nursery() as nursery:
            start_task(nursery, self._watch_silence, nursery.cancel_scope)
            try:
                await self._listen()
                loss = Loss("closed its event stream")
            except BackendError as error:
                self._failure, loss = error, Loss(error.detail)
            nursery.cancel_scope.cancel(reason="the stream has ended")
        return loss

    async def _watch_silence(self, stream: trio.CancelScope) -> None:
        """Whenever the stream was silent for `MAX_SILENCE` s, ping the server, whose answer must come by the stream.
        Without a byte in time, end the stream: its connection is forgotten (see `MAX_SILENCE`).
        """
        while True:
            await trio.sleep_until(self._heard_at + MAX_SILENCE)
            if trio.current_time() < self._heard_at + MAX_SILENCE:
                continue
            asked_at = trio.current_time()
            with trio.move_on_after(MAX_SILENCE if self.inbox.is_waited_for else PING_TIMEOUT):
                await self._ping()
            if self._heard_at < asked_at:
                stream.cancel(reason="the stream is dead")
                return

    async def _ping(self) -> None:
        """Send a ping, and wait for its answer. The ping is held, not waited for as a call: an answer without an id is
        for a call.
        """
        ask = Ask(next(self.ids), PING, {}, self.identity, ignore_other, RequestNote())
        with self.inbox.pending(ask, is_held=True) as pending:
            with suppress(BackendError):  # a refusal of the POST is no sign of life of the stream
                await self._post(ask.encode(), self.identity, limited=False)
            await pending.wait(ignore_other)

    async def _listen(self) -> None:
        # As a stream, under no connection limit: it would take the slot of a call as long as the session lasts.
        async with self.link.exchange("GET", [], identity=self.identity, is_stream=True) as reply:
            if not 200 <= reply.status < 300:
                raise rejection(self.backend.id, "GET", await self.link.read_refusal(reply))
            if reply.media_type != "text/event-stream":
                words = await self.link.quote(reply)
                raise BackendProtocolError(self.backend.id, f"answered a GET with what is no event stream{words}")
            reply.refuse_encoding()
            await self._read(reply)

    async def _read(self, reply: HttpReply) -> None:
        decoder = SseDecoder(max_event_bytes=self.inbox.max_message_bytes)
        while (chunk := await reply.receive()) is not None:
            self._heard_at = trio.current_time()
            self.pace.charge_crumbs(reply.pieces, len(chunk))
            for piece in pieces(chunk):
                lines, size = decoder.idle_lines, decoder.idle_bytes
                self.pace.charge_piece(piece)
                try:
                    events = decoder.feed(piece)
                except SseLimit as exc:
                    raise MessageTooLarge(self.backend.id, f"sent {exc} (max_message_bytes)") from exc
                self.pace.charge_lines(decoder.idle_lines - lines, decoder.idle_bytes - size)
                for event in events:
                    await self._take(event)
                    if self.pace.is_due:
                        await self.pace.wait()
                if self.pace.is_due:
                    await self.pace.wait()

    async def _take(self, event: SseEvent) -> None:
        if self._posts is None:
            if event.event == "endpoint":
                self._posts = self.make_link(attrs.evolve(self.backend, url=self._resolve(bytes(event.data))))
                self.ready.set()
        elif event.event == "message" and event.oversized is not None:
            self.inbox.take_oversized(event.oversized)
        elif event.event == "message" and event.data:
            await self.inbox.take_message(event.data)
        else:
            self.pace.charge_message(None, len(event.data), event.more_lines)

    def _resolve(self, endpoint: bytes) -> str:
        """The url to POST to. No error text shows it: its query often holds the id of the session, a bearer token."""
        stream = http_url(self.backend.url)
        try:
            if len(endpoint) > MOST_ENDPOINT_BYTES:
                raise ValueError("too long")
            target = within_origin(stream, endpoint.decode())
        except (ValueError, httpx.InvalidURL):  # ValueError: UnicodeDecodeError, too
            raise BackendProtocolError(self.backend.id, "named an endpoint that is no URL") from None
        if target is None:  # the headers of the user and all messages would be sent there
            raise BackendProtocolError(self.backend.id, "named an endpoint of another origin, which is not followed")
        return str(target.copy_with(userinfo=stream.userinfo, fragment=None))

    # --- messages to the backend

    @asynccontextmanager
    async def sending(self, ask: Ask, data: bytes, pending: PendingRequest) -> AsyncIterator[None]:
        """See `DuplexChannel`. The POST has a task: some servers end it only when the answer is on the stream."""
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            start_task(nursery, self._send, ask, data, pending)
            try:
                yield
            except Exception as exc:  # noqa: BLE001  # raised below: the nursery would group it
                failure = exc
            nursery.cancel_scope.cancel(reason="the request is settled")
        if failure is not None:
            raise failure

    async def _send(self, ask: Ask, data: bytes, pending: PendingRequest) -> None:
        try:
            refused = await self._post(data, ask.identity, limited=True, may_repeat=ask.may_repeat)
        except BackendError as error:
            pending.settle(error)
        else:
            if refused is not None:
                pending.settle(refused)

    def renew_identity(self, identity: Identity) -> None:
        self.identity = identity

    async def tell(self, data: bytes, identity: Identity | None) -> None:
        await self._post(data, identity, limited=False)  # any answer will do

    def tell_soon(self, data: bytes, identity: Identity | None) -> None:
        whose = self.identity if identity is None else identity  # None: no call's, so the identity of the stream
        self.unawaited.start(partial(self._post, data, whose, limited=False))

    def send_for(self, identity: Identity | None) -> Send:
        async def send(data: bytes) -> None:
            refused = await self._post(data, self.identity if identity is None else identity, limited=False)
            if refused is not None:
                text = "backend %r: answered our answer with HTTP %d"
                self.complaints.make(text, self.backend.id, refused.status)

        return send

    async def _post(
        self, data: bytes, identity: Identity | None, *, limited: bool, may_repeat: bool = True
    ) -> Refusal | None:
        assert self._posts is not None
        headers: Headers = [(b"MCP-Protocol-Version", self._version.encode())] if self._version else []
        exchange = self._posts.exchange(
            "POST", headers, data, identity=identity, may_repeat=may_repeat, limited=limited
        )
        async with exchange as reply:
            refused = None if 200 <= reply.status < 300 else await self._posts.read_refusal(reply)
            if limited:  # a request: its answer, on the stream, ends this wait
                with suppress(BackendError):
                    await reply.read(MOST_POST_BYTES)
            else:
                await self._posts.drain(reply)
            return refused
