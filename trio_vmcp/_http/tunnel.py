"""Connections through a proxy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

import attrs
import httpx
import trio

from trio_vmcp._http.connection import Connection
from trio_vmcp._http.dial import ConnectedStream, Dial
from trio_vmcp._http.origin import Origin
from trio_vmcp._http.proxy import Proxies, Proxy, ProxyProblem
from trio_vmcp._http.response import Headers

__all__ = ["PROXY_AUTHENTICATION_REQUIRED", "ProxiedDial", "StartTls", "refused_by"]

PROXY_AUTHENTICATION_REQUIRED = 407  # RFC 9110 §15.5.8: from the proxy, whatever the request is about
CONNECT_TIMEOUT = 20.0  # s; a proxy connects to the origin meanwhile
REFUSAL_PATIENCE, MOST_REFUSAL_BYTES = 1.0, 8 * 1024  # for the body of a refusal, which only explains it

StartTls: TypeAlias = Callable[[ConnectedStream, Origin], Awaitable[ConnectedStream]]


@attrs.define(eq=False)
class ProxiedDial:
    """A `Dial` through the proxies of a transport.

    Attributes:
        direct: Makes the connections to proxies, and to origins that have none.
        start_tls: TLS with an origin, over the tunnel to it.
    """

    direct: Dial
    proxies: Proxies
    start_tls: StartTls

    async def __call__(self, origin: Origin) -> ConnectedStream:
        proxy = self.proxies.of(origin)
        if proxy is None:
            return await self.direct(origin)
        try:
            connected = await self.direct(proxy.origin)
        except (OSError, ValueError, trio.BrokenResourceError) as exc:
            raise ProxyProblem(f"{proxy.name} could not be reached") from exc
        if origin.scheme == "http":
            return attrs.evolve(connected, via=proxy)
        try:
            with trio.move_on_after(CONNECT_TIMEOUT) as patience:
                await _open_tunnel(connected, proxy, origin)
            if patience.cancelled_caught:
                raise ProxyProblem(f"{proxy.name} did not answer 'CONNECT' within {CONNECT_TIMEOUT} s")
        except BaseException:
            connected.close()
            raise
        return await self.start_tls(connected, origin)


async def _open_tunnel(connected: ConnectedStream, proxy: Proxy, origin: Origin) -> None:
    connection = Connection(connected)
    try:
        status, headers = await connection.send_request("CONNECT", proxy.connect_request(origin))
    except httpx.TransportError as exc:
        raise ProxyProblem(f"{proxy.name} gave no answer to 'CONNECT'") from exc
    if not 200 <= status < 300:
        raise await refused_by(proxy, connection, "CONNECT", status, headers)
    if connection.has_body:  # the origin is silent until it is greeted, so they are not its bytes
        raise ProxyProblem(f"{proxy.name} sent a body with its answer to 'CONNECT'")


async def refused_by(proxy: Proxy, connection: Connection, verb: str, status: int, headers: Headers) -> ProxyProblem:
    """The error for an answer of the proxy's own, with the beginning of its body in it. Close the connection then."""
    body = bytearray()
    with trio.move_on_after(REFUSAL_PATIENCE), suppress(httpx.TransportError):
        while len(body) < MOST_REFUSAL_BYTES and (piece := await connection.receive()) is not None:
            body += piece
    media_type = dict(headers).get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
    return proxy.refusal(verb, status, media_type, bytes(body))
