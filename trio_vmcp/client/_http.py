"""HTTP to one backend: a connection limit, credentials per request, careful redirects, raw bytes, one kind of error.

Everything below `httpx.AsyncBaseTransport` is somebody else's; everything above sees `Reply` and `BackendError` only.
"""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TypeAlias
from urllib.parse import unquote

import attrs
import httpx
import trio

from trio_vmcp._outbound import note_written
from trio_vmcp.client._credentials import Body, Credentials
from trio_vmcp.client._headers import is_reserved_header, parse_media_type
from trio_vmcp.client.interface import OutgoingAuth
from trio_vmcp.errors import (
    BackendProtocolError,
    BackendRejected,
    BackendUnavailable,
    MessageTooLarge,
)
from trio_vmcp.identity import Identity
from trio_vmcp.models import Backend

__all__ = ["Headers", "HttpLink", "Reply"]

logger = logging.getLogger("trio_vmcp.client")

Headers: TypeAlias = list[tuple[bytes, bytes]]

MOST_REDIRECTS = 3
_REDIRECTS = (307, 308)  # the two that keep method and body
_SEE_OTHER = 303  # after the request was acted on
_CLOSE_TIMEOUT = 1.0  # s, to let go of one response
_EARLY_ENDS = ("Server disconnected", "peer closed", "peer unexpectedly closed")  # in httpcore's and h11's words
_CHUNKS_PER_STEP = 16  # of a body, before others have their turn: a chunk of one byte costs as much as one of 64 KiB
_CHUNKS_AFTER_STOP = 64  # that a transport may still have buffered when it is told to stop


class RequestBody(Body):
    """One chunk, and whether anybody has taken it: a request whose body never left was not executed.

    A class with `__anext__`, since a generator that a cancelled write leaves half-way warns at garbage collection.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.written = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _OneChunk(self)


class _OneChunk:
    def __init__(self, body: RequestBody) -> None:
        self._body: RequestBody | None = body

    def __aiter__(self) -> _OneChunk:
        return self

    async def __anext__(self) -> bytes:
        if self._body is None:
            raise StopAsyncIteration
        body, self._body = self._body, None
        body.written = True
        return body.data


@attrs.define(eq=False)
class Reply:
    """The head of a response, and its body as raw bytes."""

    backend_id: str
    status: int
    body: RequestBody
    response: httpx.Response = attrs.field(repr=False)
    _chunks: AsyncIterator[bytes] = attrs.field(init=False, repr=False)
    _ended: bool = attrs.field(default=False, init=False)
    _received: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        stream = self.response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        self._chunks = stream.__aiter__()

    def header(self, name: str) -> str | None:
        """One header's value, the values of repeated ones joined; None: absent."""
        value: str | None = self.response.headers.get(name)
        return value

    def header_values(self, name: str) -> list[str]:
        return self.response.headers.get_list(name)

    @property
    def media_type(self) -> str:
        return parse_media_type(self.response.headers.get("content-type"))

    def refuse_encoding(self) -> None:
        """Compressed bytes are refused, not inflated: 1 KiB can become 1 GiB, and we asked for identity."""
        encoding = self.response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise self.protocol_error("answered with a Content-Encoding although identity was asked for")

    async def receive(self) -> bytes | None:
        """The next bytes of the body; None at its end.

        Raises:
            BackendUnavailable, BackendProtocolError: The body broke off.
        """
        if self._ended:
            return None
        self._received += 1
        if self._received % _CHUNKS_PER_STEP == 0:  # what is buffered already needs no wait, and would have no end
            await trio.lowlevel.checkpoint()
        with _translated(self.backend_id, self.body):
            try:
                return await self._chunks.__anext__()
            except StopAsyncIteration:
                self._ended = True
                return None

    async def read(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            MessageTooLarge: Over `limit` bytes.
        """
        self.refuse_encoding()
        data: bytes | bytearray = b""
        while (chunk := await self.receive()) is not None:
            if len(data) + len(chunk) > limit:
                raise MessageTooLarge(
                    self.backend_id, f"sent an answer of over {limit} bytes (max_message_bytes)", may_have_executed=True
                )
            if not data:
                data = chunk  # all of it, as a rule
            else:  # one buffer: a list of chunks of a byte or two would take twenty times their size
                data = data if isinstance(data, bytearray) else bytearray(data)
                data += chunk
        return bytes(data)

    async def aclose(self) -> None:
        """Let go. A body that was not read to its end costs the connection."""
        with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            if not self._ended:
                await self._stop()
            try:
                await self.response.aclose()
            except Exception as exc:  # noqa: BLE001  # a transport of the user's may raise anything
                logger.debug("backend %r: letting go of a response failed: %s", self.backend_id, type(exc).__name__)

    async def disconnect(self) -> None:
        """Never use this connection again: who gets an answer wrong may get its length wrong, and what is left of it
        would be taken for the beginning of the next one.
        """
        stream = self.response.extensions.get("network_stream")
        # The connection of any other version is not this request's alone.
        if stream is not None and self.response.extensions.get("http_version") == b"HTTP/1.1":
            with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                await stream.aclose()

    async def _stop(self) -> None:
        # The body comes out of nested async generators that are not ours. Dropping them half-way warns at garbage
        # collection; a cancel at the innermost read ends every one of them in order.
        with trio.CancelScope() as stopping:
            stopping.cancel(reason="the rest of this response is not wanted")
            for _ in range(_CHUNKS_AFTER_STOP):
                try:
                    await self._chunks.__anext__()
                except StopAsyncIteration:
                    break
                except Exception:  # noqa: BLE001  # nobody waits for this response any more
                    break

    def protocol_error(self, detail: str) -> BackendProtocolError:
        return BackendProtocolError(self.backend_id, detail, may_have_executed=self.body.written)


@attrs.define(eq=False)
class _Slot:
    """One under the connection limit. What a progress callback asks for shares its task's slot, of whatever backend:
    with a slot of its own it could wait for itself.
    """

    held: bool = True


_slot: ContextVar[_Slot | None] = ContextVar("trio_vmcp_slot", default=None)


@attrs.define(eq=False)
class HttpLink:
    """One session's way to one backend."""

    backend: Backend
    transport: httpx.AsyncBaseTransport
    _auth: OutgoingAuth | None = attrs.field(alias="auth", repr=False)
    _slots: trio.CapacityLimiter = attrs.field(alias="slots", repr=False)
    _max_message_bytes: int = attrs.field(alias="max_message_bytes")
    _owns_transport: bool = attrs.field(alias="owns_transport")
    _url: httpx.URL = attrs.field(init=False, repr=False)
    _constant: Headers = attrs.field(init=False, repr=False)
    _credentials: Credentials[Reply, RequestBody] | None = attrs.field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        url = httpx.URL(self.backend.url)
        self._url = url.copy_with(userinfo=b"", fragment=None)
        self._constant = [(b"Host", url.netloc), (b"Accept-Encoding", b"identity")]
        own = {name: value for name, value in self.backend.headers.items() if not is_reserved_header(name)}
        given = [(name.encode(), value.encode()) for name, value in own.items()]
        self._constant += given
        if url.userinfo and not any(name.lower() == b"authorization" for name, _ in given):
            userinfo = unquote(url.userinfo.decode()).encode()
            self._constant.append((b"Authorization", b"Basic " + base64.b64encode(userinfo)))
        if self._auth is not None:
            self._credentials = Credentials(self.backend, self._auth, transmit=self._send, read=self._whole)

    @asynccontextmanager
    async def exchange(
        self, verb: str, headers: Headers, data: bytes = b"", *, identity: Identity | None, limited: bool = True
    ) -> AsyncIterator[Reply]:
        """Send one request and hold its response open.

        Args:
            limited: Counts under the connection limit. A notification must not queue behind the calls that it is about.

        Raises:
            BackendUnavailable: No connection, or it broke.
            BackendProtocolError: What came back is not HTTP, or redirects elsewhere.
            BackendUnauthorized: `auth` has no credentials to give.
        """
        async with self._under_limit(limited):
            body = RequestBody(data)
            try:
                reply = await self._follow(verb, headers, body, identity)
                try:
                    yield reply
                except BackendProtocolError:
                    await reply.disconnect()  # noqa: ASYNC120  # which is shielded, and bounded
                    raise
                finally:
                    await reply.aclose()
            finally:
                note_written(body.written)

    @asynccontextmanager
    async def _under_limit(self, limited: bool) -> AsyncIterator[None]:
        outer = _slot.get()
        if not limited or (outer is not None and outer.held):
            yield
            return
        slot = _Slot()
        try:
            self._slots.acquire_on_behalf_of_nowait(slot)
        except trio.WouldBlock:
            await self._slots.acquire_on_behalf_of(slot)
        _slot.set(slot)
        try:
            yield
        finally:
            slot.held = False  # whoever inherited this context queues again
            self._slots.release_on_behalf_of(slot)

    async def aclose(self) -> None:
        if self._owns_transport:
            await self.transport.aclose()

    async def _follow(self, verb: str, headers: Headers, body: RequestBody, identity: Identity | None) -> Reply:
        url = self._url
        for _ in range(MOST_REDIRECTS + 1):
            request = httpx.Request(
                verb,
                url,
                headers=[*self._constant, *headers, (b"Content-Length", b"%d" % len(body.data))],
                stream=body,
            )
            reply = await self._authenticated(request, body, identity)
            if not 300 <= reply.status < 400:
                return reply
            body.written = reply.status == _SEE_OTHER  # the others: it was not acted on here
            url = await self._redirected(url, reply)
        raise BackendProtocolError(self.backend.id, f"redirects more than {MOST_REDIRECTS} times")

    async def _redirected(self, url: httpx.URL, reply: Reply) -> httpx.URL:
        location = reply.header("location")
        await reply.aclose()
        if reply.status not in _REDIRECTS or location is None:
            raise BackendRejected(
                self.backend.id,
                f"answered with HTTP {reply.status}, which is not followed",
                code=reply.status,
                message="redirect",
                may_have_executed=reply.body.written,
            )
        try:
            target = url.join(location)
        except httpx.InvalidURL as exc:
            raise reply.protocol_error(f"redirects (HTTP {reply.status}) to what is no URL") from exc
        # Not `host`, which decodes IDNA and raises what is no error of httpx where there is nothing to decode.
        if (target.scheme, target.raw_host, target.port) != (url.scheme, url.raw_host, url.port):
            # Headers of the user and the backend's session id would go along.
            raise reply.protocol_error(f"redirects (HTTP {reply.status}) to another origin, which is not followed")
        return target.copy_with(userinfo=b"", fragment=None)

    async def _authenticated(self, request: httpx.Request, body: RequestBody, identity: Identity | None) -> Reply:
        if self._credentials is None:
            return (await self._send(request, body))[0]
        return await self._credentials.send(request, body, identity)

    async def _whole(self, reply: Reply, head: httpx.Response) -> tuple[Reply, httpx.Response]:
        """The same with its body. Not `aread`, which inflates what is compressed and knows no limit."""
        data = await reply.read(self._max_message_bytes)
        await reply.aclose()
        response = httpx.Response(reply.status, headers=head.headers, content=bytes(data), request=head.request)
        return Reply(self.backend.id, reply.status, reply.body, response), response

    async def _send(self, request: httpx.Request, body: RequestBody) -> tuple[Reply, httpx.Response]:
        with _translated(self.backend.id, body):
            response = await self.transport.handle_async_request(request)
        response.request = request  # an Auth may look at it
        return Reply(self.backend.id, response.status_code, body, response), response


@contextmanager
def _translated(backend_id: str, body: RequestBody) -> Iterator[None]:
    """Foreign errors end here. Their texts stay out of ours: they may quote what the backend sent."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol) as exc:
        raise BackendUnavailable(backend_id, f"could not be reached: {_kind(exc)}") from exc
    except httpx.LocalProtocolError:  # from None: it quotes the header, which may be a credential
        raise BackendUnavailable(
            backend_id, "has a url or a header that HTTP cannot carry", may_have_executed=body.written
        ) from None
    except (httpx.RemoteProtocolError, httpx.DecodingError) as exc:
        if str(exc).startswith(_EARLY_ENDS):
            raise BackendUnavailable(
                backend_id, "closed the connection before its answer was whole", may_have_executed=body.written
            ) from exc
        raise BackendProtocolError(
            backend_id, f"does not speak HTTP/1.1: {_kind(exc)}", may_have_executed=body.written
        ) from exc
    except Exception as exc:  # a transport of the user's may raise anything
        raise BackendUnavailable(
            backend_id, f"lost its connection: {_kind(exc)}", may_have_executed=body.written
        ) from exc


def _kind(exc: BaseException) -> str:
    """The operating system's word for it where there is one, else the kind of error."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, BaseExceptionGroup):  # an attempt for each address: the first stands for all
            cause = cause.exceptions[0]
        if isinstance(cause, OSError) and cause.errno:
            # Not `strerror`, in which Trio names the address, too; but of a resolver's own codes `os` knows nothing.
            return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)
        cause = cause.__cause__ or cause.__context__
    return type(exc).__name__
