"""A transport of httpx's, or of the user's, as this library needs one: a body that tells whether it was taken, and a
response that can be let go of half-way.
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

_CLOSE_TIMEOUT = 1.0  # s, to let go of one response
_CHUNKS_AFTER_STOP = 64  # that a transport may still have buffered when it is told to stop


class RequestBody(Body):
    """One chunk, and whether anybody has taken it: a request whose body never left was not executed.

    A class with `__anext__`, since a generator that a cancelled write leaves half-way warns at garbage collection.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
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
    """A response of a transport that was passed in, or that an `httpx.Auth` has seen."""

    backend_id: str
    response: httpx.Response
    _chunks: AsyncIterator[bytes] = attrs.field(init=False)
    is_ended: bool = attrs.field(default=False, init=False)

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
                await self._stop()
            try:
                await self.response.aclose()
            except Exception as exc:  # noqa: BLE001  # a transport of the user's may raise anything
                logger.debug("backend %r: letting go of a response failed: %s", self.backend_id, type(exc).__name__)

    async def close_connection(self) -> None:
        stream = self.response.extensions.get("network_stream")
        # The connection of any other version is not this request's alone.
        if stream is not None and self.response.extensions.get("http_version") == b"HTTP/1.1":
            with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                try:
                    await stream.aclose()
                except Exception as exc:  # noqa: BLE001  # a transport of the user's may raise anything
                    logger.debug("backend %r: disconnecting failed: %s", self.backend_id, type(exc).__name__)

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
