"""An HTTP proxy: tunnels (CONNECT) and requests with a whole URL, with credentials or without."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import attrs
import trio
from support.raw_http import open_tls_loopback, server_context

from trio_vmcp.testing import open_loopback

__all__ = ["CREDENTIALS", "HttpProxy", "open_proxy"]

CREDENTIALS = "canary-user:canary-password"


@attrs.define(eq=False)
class HttpProxy:
    """A `StreamServer`. One connection leads to one origin.

    Attributes:
        connect: Makes the connections to origins.
        credentials: "user:password"; empty: none are needed.
        asked: The request line of each request.
    """

    connect: Callable[[str, int], Awaitable[trio.abc.Stream]] = trio.open_tcp_stream
    credentials: str = ""
    asked: list[str] = attrs.field(factory=list, init=False)

    async def accept(self) -> None:
        await trio.lowlevel.checkpoint()

    async def serve_connection(self, stream: trio.abc.Stream) -> None:
        try:
            async with stream:
                await self._serve(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _serve(self, stream: trio.abc.Stream) -> None:
        head, rest = await _read_head(stream)
        if not head or not await self._admit(stream, head):
            return
        verb, target, _ = head[0].split(" ")
        parts = urlsplit(f"//{target}" if verb == "CONNECT" else target)
        try:
            upstream = await self.connect(parts.hostname or "", parts.port or 80)
        except OSError:
            await stream.send_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 11\r\n\r\nnot reached")
            return
        async with upstream, trio.open_nursery() as nursery:
            if verb == "CONNECT":
                assert rest == b""
                await stream.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                nursery.start_soon(_pump, stream, upstream, nursery.cancel_scope)
            else:
                nursery.start_soon(self._forward, stream, upstream, head, rest, nursery.cancel_scope)
            await _pump(upstream, stream, nursery.cancel_scope)

    async def _admit(self, stream: trio.abc.Stream, head: list[str]) -> bool:
        self.asked.append(head[0])
        wanted = "Proxy-Authorization: Basic " + base64.b64encode(self.credentials.encode()).decode()
        if not self.credentials or wanted in head:
            return True
        refusal = "\n".join(["no such user"] + [line for line in head if line.startswith("Proxy-")]).encode()
        lines = (
            b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s"
        )
        await stream.send_all(lines % (len(refusal), refusal))
        return False

    async def _forward(
        self, stream: trio.abc.Stream, upstream: trio.abc.Stream, head: list[str], rest: bytes, over: trio.CancelScope
    ) -> None:
        try:
            while True:
                verb, target, version = head[0].split(" ")
                path = urlsplit(target)._replace(scheme="", netloc="").geturl()
                kept = [line for line in head[1:] if not line.startswith("Proxy-")]
                await upstream.send_all("\r\n".join([f"{verb} {path} {version}", *kept, "", ""]).encode())
                left = sum(int(line.split()[1]) for line in kept if line.lower().startswith("content-length:"))
                while left:
                    rest = rest or bytes(await stream.receive_some(65536))
                    await upstream.send_all(rest[:left])
                    left, rest = left - len(rest[:left]), rest[left:]
                head, rest = await _read_head(stream, rest)
                if not head or not await self._admit(stream, head):
                    break
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        over.cancel()


async def _read_head(stream: trio.abc.Stream, data: bytes = b"") -> tuple[list[str], bytes]:
    """The lines of a request's head, and the bytes behind it; no lines: the end."""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some(4096)
        if not more:
            return [], b""
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.decode().split("\r\n"), rest


async def _pump(source: trio.abc.Stream, target: trio.abc.Stream, over: trio.CancelScope) -> None:
    """Pass bytes on until one side ends, and then end the other."""
    try:
        async for data in source:
            await target.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    over.cancel()


@asynccontextmanager
async def open_proxy(scheme: str = "http", credentials: str = "") -> AsyncIterator[tuple[HttpProxy, str]]:
    """A proxy on this machine and its URL, with the credentials in it; of https: with TLS to the proxy itself."""
    proxy = HttpProxy(credentials=credentials)
    opened = open_loopback(proxy) if scheme == "http" else open_tls_loopback(proxy, server_context())
    async with opened as url:
        userinfo = f"{credentials}@" if credentials else ""
        yield proxy, f"{scheme}://{userinfo}{urlsplit(url).netloc}"
