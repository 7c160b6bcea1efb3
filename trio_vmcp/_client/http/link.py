"""HTTP to one backend: a slot and credentials for each request, careful redirects, raw bytes, one kind of error.

Callers of this module see `HttpReply` and `BackendError` only. Below it is any `httpx.AsyncBaseTransport`.
"""

from __future__ import annotations

import base64
import math
from contextlib import suppress
from contextvars import Token
from types import TracebackType
from urllib.parse import unquote
from weakref import WeakValueDictionary

import attrs
import httpx
import trio

from trio_vmcp._client.http.connection_limit import ConnectionLimit, ConnectionSlot, current_slot
from trio_vmcp._client.http.cookies import BackendCookies
from trio_vmcp._client.http.credentials import Body, Credentials, Renewals
from trio_vmcp._client.http.errors import cause_of, translated
from trio_vmcp._client.http.foreign import HttpxSource, RequestBody
from trio_vmcp._client.http.given import GivenSecrets
from trio_vmcp._client.http.reply import HttpReply
from trio_vmcp._http.origin import Origin, host_header, http_url, origin_of, shown_origin, within_origin
from trio_vmcp._http.response import Headers, encode_head, encode_headers
from trio_vmcp._http.transport import MAY_REPEAT, WITH_BODY, Http11Transport
from trio_vmcp._http.user_agent import USER_AGENT
from trio_vmcp._protocol.outcomes import Refusal, in_words_of_a_lost_session
from trio_vmcp._protocol.words import MOST_WORDS, quoted
from trio_vmcp._request_note import note_via, note_written
from trio_vmcp.connector import OutgoingAuth
from trio_vmcp.errors import BackendError, BackendProtocolError, BackendRejected
from trio_vmcp.identity import Identity
from trio_vmcp.models import Backend

__all__ = ["Headers", "HttpExchange", "HttpLink"]

MOST_REDIRECTS = 3
# s and chunks that a body of no use may take to end, so that its connection can be used again.
DRAIN_TIMEOUT, MOST_DRAINED = 0.1, 16
LEAST_PATIENCE = 0.001  # s; less is none
REFUSAL_PATIENCE, MOST_REFUSAL_BYTES = 1.0, 64 * 1024  # for the body of an HTTP error, which only explains it
_PERMANENT = 308
_REDIRECTS = (307, _PERMANENT)  # the only two that keep method and body (RFC 9110 §15.4.8, §15.4.9)
_SEE_OTHER = 303  # the request was applied; its result is elsewhere (RFC 9110 §15.4.4)

# Headers of every request of a verb (MCP 2025-11-25, basic/transports, "Sending Messages to the Server", "Listening for
# Messages from the Server").
_BY_VERB: dict[str, Headers] = {
    "POST": [(b"Accept", b"application/json, text/event-stream"), (b"Content-Type", b"application/json")],
    "GET": [(b"Accept", b"text/event-stream")],
    "DELETE": [],
}


@attrs.define(eq=False)
class HttpExchange:
    """One request and its reply, as an async context manager. A class, since a context manager made of a generator
    takes some per cent of a call's time.
    """

    _link: HttpLink
    _verb: str
    _headers: Headers = attrs.field(repr=False)  # the id of the backend session is there
    _body: RequestBody
    _identity: Identity | None = attrs.field(repr=False)
    _limited: bool
    _is_stream: bool  # held open, so it counts under no limit
    _slot: ConnectionSlot | None = attrs.field(default=None, init=False)
    _token: Token[ConnectionSlot | None] | None = attrs.field(default=None, init=False)
    _reply: HttpReply | None = attrs.field(default=None, init=False)

    async def __aenter__(self) -> HttpReply:
        if self._link.via:
            note_via(self._link.via)
        outer = current_slot.get()
        if not self._is_stream and (not self._limited or not (outer is not None and outer.is_held)):
            await self._link.limit.acquire_slot(limited=self._limited)
            self._slot = slot = ConnectionSlot()
            if self._limited:
                self._token = current_slot.set(slot)
        try:
            self._reply = await self._link.send(self._verb, self._headers, self._body, self._identity)
        except BaseException:
            self._close()
            raise
        return self._reply

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._reply is not None
        try:
            if isinstance(exc, BackendProtocolError):
                await self._reply.close_connection()  # noqa: ASYNC102  # shielded and bounded
            await self._link.aclose_reply(self._reply)  # noqa: ASYNC102  # shielded and bounded
        finally:
            self._close()

    def _close(self) -> None:
        note_written(self._body.written)
        if self._slot is not None:
            self._link.limit.release_slot(self._slot, limited=self._limited)
        if self._token is not None:  # else a task that goes on for long keeps the slot
            current_slot.reset(self._token)


@attrs.define(eq=False)
class HttpLink:
    """Sends the requests of one session to one backend.

    Attributes:
        given: Takes secrets out of what the backend says.
        via: Follows what an error says of an answer, or of none; names the proxy; empty: there is none.
    """

    backend: Backend
    transport: httpx.AsyncBaseTransport
    _auth: OutgoingAuth | None = attrs.field(alias="auth", repr=False)
    limit: ConnectionLimit = attrs.field(repr=False)
    _max_message_bytes: int = attrs.field(alias="max_message_bytes")
    _renewals: Renewals | None = attrs.field(alias="renewals", default=None, repr=False)
    via: str = attrs.field(default="", init=False)
    # The url of the backend, without userinfo, or where a 308 says that it is for good.
    _target: httpx.URL = attrs.field(init=False, repr=False)
    _constant: Headers = attrs.field(init=False, repr=False)
    _cookies: BackendCookies = attrs.field(init=False)
    given: GivenSecrets = attrs.field(init=False, repr=False)
    _credentials: Credentials[HttpReply, RequestBody] | None = attrs.field(default=None, init=False, repr=False)
    # Of the latest verb, for `_target`: nearly all requests are POST.
    _last_head: tuple[str, Origin, bytes] | None = attrs.field(default=None, init=False, repr=False)
    _last_headers: tuple[Headers, bytes] = attrs.field(factory=lambda: ([], b""), init=False, repr=False)
    # Replies that are not closed yet; None: there are none.
    _open: set[HttpReply] | None = attrs.field(default=None, init=False, repr=False)
    _patience: float = attrs.field(default=DRAIN_TIMEOUT, init=False)  # s, for the end of the next such body
    _late_at: float = attrs.field(default=-math.inf, init=False)  # when the latest of them was given up

    def __attrs_post_init__(self) -> None:
        url = http_url(self.backend.url)
        self._target = url.copy_with(userinfo=b"", fragment=None) if url.userinfo or url.fragment else url
        if isinstance(self.transport, Http11Transport) and (proxy := self.transport.proxy_of(origin_of(url))):
            self.via = f", through {proxy.name}"
        self._constant = [(b"Host", host_header(url)), (b"Accept-Encoding", b"identity")]
        given = [(name.encode(), value.encode()) for name, value in self.backend.headers.items()]
        self._constant += [pair for pair in given if pair[0].lower() != b"cookie"]
        self._cookies = BackendCookies(b"; ".join(value for name, value in given if name.lower() == b"cookie"))
        named = {name.lower() for name, _ in given}
        if b"user-agent" not in named:
            self._constant.append((b"User-Agent", USER_AGENT))
        if url.userinfo and b"authorization" not in named:
            userinfo = unquote(url.userinfo.decode()).encode()
            self._constant.append((b"Authorization", b"Basic " + base64.b64encode(userinfo)))
        self.given = GivenSecrets(self._constant, self._cookies, self._target)
        if self._auth is not None:
            renewals = WeakValueDictionary() if self._renewals is None else self._renewals
            self._credentials = Credentials(
                self.backend, self._auth, transmit=self._send, read=self._read_whole, renewals=renewals
            )

    def exchange(
        self,
        verb: str,
        headers: Headers,
        data: bytes = b"",
        *,
        identity: Identity | None,
        may_repeat: bool = False,
        limited: bool = True,
        is_stream: bool = False,
    ) -> HttpExchange:
        """`async with` it: send one request and hold its response, a `HttpReply`, open.

        Args:
            headers: Beside those that every request of this verb has. The list must not be changed afterwards: its
                encoding is kept for the next request.
            may_repeat: A POST that does no more if it is applied twice: the built-in transport sends it once more if it
                met a connection that the backend had closed.
            limited: The request counts under the connection limit. False: it has one of `MOST_ASIDE` other connections,
                since a notification must not queue behind the calls that it is about.
            is_stream: The response is held open while the backend is connected, so the request counts under no limit:
                it would keep its place for ever. The caller must not open more than one at a time.

        Raises:
            BackendUnavailable: No connection, or the connection broke.
            BackendProtocolError: The response is not HTTP, or redirects to another origin.
            BackendUnauthorized: `auth` gave no credentials.
        """
        return HttpExchange(self, verb, headers, RequestBody(data, may_repeat=may_repeat), identity, limited, is_stream)

    async def send(self, verb: str, headers: Headers, body: RequestBody, identity: Identity | None) -> HttpReply:
        """Send one request, and follow redirects within the origin. The next requests go where permanent ones lead
        (308, RFC 9110 §15.4.9).
        """
        url, is_permanent = self._target, True
        for _ in range(MOST_REDIRECTS + 1):
            cookies = self._cookies.headers(url)
            if self._auth is None and isinstance(self.transport, Http11Transport):
                try:  # without objects of httpx
                    origin, head = self._compose(verb, url, headers, cookies, len(body.data))
                    response = await self.transport.send(
                        origin, verb, head, body.data, body.mark_written, may_repeat=body.may_repeat
                    )
                except Exception as exc:  # noqa: BLE001  # translated, whatever it is
                    raise translated(exc, self.backend.id, written=body.written) from cause_of(exc)
                sent = [*headers, *cookies] if cookies else headers
                reply = HttpReply(self.backend.id, response.status, body, response.headers, response, sent)
                self._cookies.keep(url, reply.headers)
            else:
                everything = [*self._constant, *_BY_VERB[verb], *headers, *cookies]
                if verb in WITH_BODY:
                    everything.append((b"Content-Length", b"%d" % len(body.data)))
                extensions = {MAY_REPEAT: body.may_repeat}
                request = httpx.Request(verb, url, headers=everything, stream=body, extensions=extensions)
                reply = await self._authenticated(request, body, identity)
            if not 300 <= reply.status < 400:
                if self._open is None:
                    self._open = set()
                self._open.add(reply)
                return reply
            body.written = reply.status == _SEE_OTHER  # any other redirect: the request was not applied
            url = await self._redirected(url, reply)
            is_permanent = is_permanent and reply.status == _PERMANENT
            if is_permanent:
                self._target, self._last_head = url, None
                self.given.target = url
        raise BackendProtocolError(self.backend.id, f"redirects more than {MOST_REDIRECTS} times")

    def open_ahead(self, count: int, nursery: trio.Nursery, *, and_stream: bool) -> None:
        """Begin to make the connections that `count` requests and a stream need, which follow at once. Requests get no
        more than calls may have.
        """
        if isinstance(self.transport, Http11Transport):
            count = int(min(count, self.limit.calls.most)) + and_stream
            self.transport.open_ahead(origin_of(self._target), count, nursery)

    async def read_refusal(self, reply: HttpReply) -> Refusal:
        """The outcome in an HTTP error."""
        return self.refusal(reply, await self.read_beginning(reply))

    async def quote(self, reply: HttpReply) -> str:
        """What a response says that is no MCP, such as the login page of a gateway, to end an error text; empty:
        nothing.
        """
        return quoted(self.given.words(reply, await self.read_beginning(reply)))

    async def read_beginning(self, reply: HttpReply, *, patience: float = REFUSAL_PATIENCE) -> bytes | bytearray:
        """The beginning of a body that only explains something: `MOST_REFUSAL_BYTES` or a little more, or what comes
        within `patience` s, or before the connection breaks.
        """
        data = bytearray()
        with trio.move_on_after(patience), suppress(BackendError):
            reply.refuse_encoding()
            while len(data) < MOST_REFUSAL_BYTES and (chunk := await reply.receive()) is not None:
                data += chunk
        return data

    def refusal(self, reply: HttpReply, data: bytes | bytearray) -> Refusal:
        """The outcome in an HTTP error whose body, `data`, holds no JSON-RPC error."""
        text = data.decode(errors="replace")
        asked, challenge = self.given.challenge(reply)
        return Refusal(
            reply.status,
            asked,
            names_session="session" in text.lower(),
            tells_session_lost=in_words_of_a_lost_session(text),
            retry_after=reply.retry_after,
            words=self.given.words(reply, data),
            via=self.via,
            is_signed=self.given.is_signed(reply),
            challenge=challenge,
        )

    async def drain(self, reply: HttpReply) -> None:
        """Read a body that is of no use to its end, so that the connection can be used again. A late end costs its own
        connection, and halves the time for the next one, down to none: a backend may keep such bodies open, and then
        every call would wait for nothing. An end in time restores it.
        """
        if reply.is_ended or self._patience < LEAST_PATIENCE:
            return
        begun_at = trio.current_time()
        # Shielded: the answer is already here, and must not be lost if the deadline of the call passes meanwhile. But
        # not longer than that deadline, which the caller relies on.
        enough = begun_at + self._patience
        with trio.move_on_at(min(enough, trio.current_effective_deadline()), shield=True) as patience:
            try:
                for _ in range(MOST_DRAINED):
                    if await reply.receive() is None:
                        self._patience = DRAIN_TIMEOUT
                        return
            except BackendError:
                return  # the answer is complete without this body
        # Ends that are late at the same time have one reason: they count once.
        if patience.cancelled_caught and trio.current_time() >= enough and begun_at >= self._late_at:
            self._patience, self._late_at = self._patience / 2, trio.current_time()

    async def aclose_reply(self, reply: HttpReply) -> None:
        if self._open is not None:
            self._open.discard(reply)
            self._open = self._open or None
        await reply.aclose()

    async def aclose(self) -> None:
        """Close the connection of every open reply. Only callers that are shielded from the end of the session still
        have one.
        """
        for reply in list(self._open or ()):
            await reply.close_connection()

    def _compose(
        self, verb: str, url: httpx.URL, headers: Headers, cookies: Headers, size: int
    ) -> tuple[Origin, bytes]:
        """Where a request goes, and its head. The constant part of the latest one is kept."""
        prepared = self._last_head
        if prepared is None or prepared[0] != verb or url is not self._target:
            head = encode_head(verb, url.raw_path, [*self._constant, *_BY_VERB[verb]])
            prepared = verb, origin_of(url), head
            if url is self._target:
                self._last_head = prepared
        _, origin, constant = prepared
        if headers is not self._last_headers[0]:  # a list is never changed, so the same list has the same encoding
            self._last_headers = headers, encode_headers(headers)
        varying = self._last_headers[1] + encode_headers(cookies) if cookies else self._last_headers[1]
        if verb not in WITH_BODY:
            return origin, b"%s%s\r\n" % (constant, varying)
        return origin, b"%s%sContent-Length: %d\r\n\r\n" % (constant, varying, size)

    async def _redirected(self, url: httpx.URL, reply: HttpReply) -> httpx.URL:
        location = reply.header("location")
        await reply.aclose()
        if reply.status not in _REDIRECTS or location is None:
            where = "" if location is None else f" to {self._shown_target(url, location, reply.sent)!r}"
            raise BackendRejected(
                self.backend.id,
                f"answered with HTTP {reply.status}{where}, which is not followed",
                code=reply.status,
                status=reply.status,
                message="redirect",
                may_have_executed=reply.body.written,
            )
        try:
            target = within_origin(url, location)
        except httpx.InvalidURL as exc:
            raise reply.protocol_error(f"redirects (HTTP {reply.status}) to what is no URL") from exc
        if target is None:
            where = f"{self._shown_target(url, location, reply.sent)}, another origin"
            raise reply.protocol_error(f"redirects (HTTP {reply.status}) to {where}, which is not followed")
        return target.copy_with(userinfo=b"", fragment=None)

    def _shown_target(self, url: httpx.URL, location: str, sent: Headers) -> str:
        """Where a redirect leads, for an error text without secrets: of another origin nothing else is shown."""
        try:
            target = within_origin(url, location)
            shown = shown_origin(url.join(location)) if target is None else _without_query(target)
            return self.given.blot(shown, sent)[:MOST_WORDS]
        except (httpx.InvalidURL, ValueError):
            return "<unreadable url>"

    async def _authenticated(self, request: httpx.Request, body: RequestBody, identity: Identity | None) -> HttpReply:
        if self._credentials is None:
            return (await self._send(request, body))[0]
        return await self._credentials.send(request, body, identity)

    async def _read_whole(self, reply: HttpReply, head: httpx.Response) -> tuple[HttpReply, httpx.Response]:
        """The reply with its body read. Not by `aread`, which inflates compressed bodies and has no limit."""
        data = await reply.read(self._max_message_bytes)
        await reply.aclose()
        response = httpx.Response(reply.status, headers=head.headers, content=bytes(data), request=head.request)
        return self._reply(response, reply.body, reply.sent), response

    async def _send(self, request: httpx.Request, body: RequestBody) -> tuple[HttpReply, httpx.Response]:
        self.given.note_sent(request.headers.raw)
        try:
            response = await self.transport.handle_async_request(request)
        except Exception as exc:  # noqa: BLE001  # a user's transport may raise anything
            raise translated(exc, self.backend.id, written=body.written) from cause_of(exc)
        response.request = request  # an Auth may look at it
        reply = self._reply(response, body, request.headers.raw)
        self._cookies.keep(request.url, reply.headers)
        return reply, response

    def _reply(self, response: httpx.Response, body: Body, sent: Headers) -> HttpReply:
        headers = [(name.lower(), value) for name, value in response.headers.raw]
        source = HttpxSource(self.backend.id, response)
        return HttpReply(self.backend.id, response.status_code, body, headers, source, sent)


def _without_query(url: httpx.URL) -> str:
    return shown_origin(url) + url.raw_path.partition(b"?")[0].decode("ascii")
