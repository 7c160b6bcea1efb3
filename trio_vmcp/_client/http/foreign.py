"""Adapters for any `httpx.AsyncBaseTransport`: a request body that tells whether it was read, and a response that can
be closed before its end.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import attrs
import httpx
import trio

from trio_vmcp._client.http.credentials import Body

__all__ = ["HttpxSource", "RequestBody"]

logger = logging.getLogger("trio_vmcp.client")

_CLOSE_TIMEOUT = 1.0  # s, to close one response
_CHUNKS_AFTER_STOP = 64  # chunks that a transport may still hand out of its buffer after it is cancelled


class RequestBody(Body):
    """A body of one chunk. `written` becomes true when the transport reads it: before that, the request was not sent.

    A class with `__anext__`, since Python warns when an async generator that a cancelled write left half-way is
    collected.

    Args:
        may_repeat: The request may be sent again if its connection was lost before a response.
    """

    def __init__(self, data: bytes, *, may_repeat: bool = False) -> None:
        self.data = data
        self.may_repeat = may_repeat
        self.written = False

    def mark_written(self) -> None:
        self.written = True

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
class HttpxSource:
    """The bytes of an `httpx.Response`: of a user's transport, or of a request with an `httpx.Auth`."""

    backend_id: str
    response: httpx.Response
    _chunks: AsyncIterator[bytes] = attrs.field(init=False)
    is_ended: bool = attrs.field(default=False, init=False)
    pieces: int = attrs.field(default=1, init=False)  # any transport hands out one at a time

    def __attrs_post_init__(self) -> None:
        stream = self.response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        self._chunks = stream.__aiter__()

    async def receive(self) -> bytes | None:
        try:
            return await self._chunks.__anext__()
        except StopAsyncIteration:
            self.is_ended = True
            return None

    async def aclose(self) -> None:
        with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            if not self.is_ended:
                await self._cancel_body()
            try:
                await self.response.aclose()
            except Exception as exc:  # noqa: BLE001  # a user's transport may raise anything
                logger.debug("backend %r: closing a response failed: %s", self.backend_id, type(exc).__name__)

    async def close_connection(self) -> None:
        stream = self.response.extensions.get("network_stream")
        # Requests of any other version (HTTP/2) share their connection.
        if stream is not None and self.response.extensions.get("http_version") == b"HTTP/1.1":
            with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                try:
                    await stream.aclose()
                except Exception as exc:  # noqa: BLE001  # a user's transport may raise anything
                    logger.debug("backend %r: closing a connection failed: %s", self.backend_id, type(exc).__name__)

    async def _cancel_body(self) -> None:
        # The body comes out of nested async generators of httpx and httpcore. Python warns when one that was left
        # half-way is collected; a cancel at the innermost read ends all of them in order.
        with trio.CancelScope() as scope:
            scope.cancel(reason="the rest of this response is not wanted")
            for _ in range(_CHUNKS_AFTER_STOP):
                try:
                    await self._chunks.__anext__()
                except StopAsyncIteration:
                    break
                except Exception:  # noqa: BLE001  # no task waits for this response any more
                    break
