"""httpx over any function that connects: httpcore's pool on our streams."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import attrs
import httpcore
import httpx
import trio

from trio_vmcp.testing.streams import MemoryStream

__all__ = ["MemoryTransport"]

Connect: TypeAlias = Callable[[str, int], Awaitable[trio.abc.Stream]]

ERRORS = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)


@contextmanager
def _httpx_errors() -> Iterator[None]:
    try:
        yield
    except ERRORS as exc:
        # httpx names its errors after httpcore's.
        raise getattr(httpx, type(exc).__name__)(str(exc)) from exc


def _seconds(timeout: float | None) -> float:
    return float("inf") if timeout is None else timeout


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            with trio.fail_after(_seconds(timeout)):
                return bytes(await self._stream.receive_some(max_bytes))
        except trio.TooSlowError as exc:
            raise httpcore.ReadTimeout from exc
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise httpcore.ReadError(str(exc)) from exc

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            with trio.fail_after(_seconds(timeout)):
                await self._stream.send_all(buffer)
        except trio.TooSlowError as exc:
            raise httpcore.WriteTimeout from exc
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise httpcore.WriteError(str(exc)) from exc

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return self  # in the clear

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable" and isinstance(self._stream, MemoryStream):
            return self._stream.peer_is_gone  # how the pool tells that a kept-alive connection has ended
        return None


@attrs.define(eq=False)
class _Network(httpcore.AsyncNetworkBackend):
    _connect: Connect

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            with trio.fail_after(_seconds(timeout)):
                return _Stream(await self._connect(host, port))
        except trio.TooSlowError as exc:
            raise httpcore.ConnectTimeout from exc
        except OSError as exc:
            raise httpcore.ConnectError(str(exc)) from exc

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


class _Body(httpx.AsyncByteStream):
    """A response body that can be left early: httpcore's generators are ended, not left to the garbage collector."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._parts: AsyncIterator[bytes] = stream.__aiter__()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        with _httpx_errors():
            return await anext(self._parts)

    async def aclose(self) -> None:
        # Closing the outermost generator would drop the ones inside it half-way, a ResourceWarning each. Cancelled at
        # their next read, they all unwind; what is buffered already needs no read and is thrown away.
        with trio.CancelScope() as leaving:
            leaving.cancel(reason="the response was closed early")
            with _httpx_errors():
                async for _ in self._parts:
                    pass
        await self._stream.aclose()


class MemoryTransport(httpx.AsyncBaseTransport):
    """httpcore's connection pool over `connect`.

    No limit on connections: a limited pool loses slots for good when waiting callers are cancelled (httpcore#1093).
    """

    def __init__(self, connect: Connect) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            # A context of our own, bare: the default one costs 20 ms, and nothing here is encrypted.
            ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            max_connections=None,
            max_keepalive_connections=None,
            keepalive_expiry=None,
            network_backend=_Network(connect),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        core_request = httpcore.Request(
            request.method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _httpx_errors():
            response = await self._pool.handle_async_request(core_request)
        return httpx.Response(
            response.status, headers=response.headers, stream=_Body(response.stream), extensions=response.extensions
        )

    async def aclose(self) -> None:
        await self._pool.aclose()
