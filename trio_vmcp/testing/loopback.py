"""Scripted backends over real TCP on 127.0.0.1, for demonstrations and for clients in other processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from trio_vmcp.testing._servers import open_servers
from trio_vmcp.testing.network import StreamServer
from trio_vmcp.testing.streams import reset

__all__ = ["open_loopback", "serve_loopback"]

HOST = "127.0.0.1"


async def serve_loopback(
    server: StreamServer, *, port: int = 0, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled; reports the URL of the endpoint.

    Args:
        port: 0: any free one.
    """

    async def serve(stream: trio.SocketStream) -> None:
        try:
            await server.accept()
        except OSError:
            reset(stream)  # TCP has accepted already: the nearest thing to a refusal
        else:
            await server.serve_connection(stream)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host=HOST)
        bound_port = listeners[0].socket.getsockname()[1]
        await nursery.start(partial(trio.serve_listeners, serve, listeners))
        task_status.started(f"http://{HOST}:{bound_port}/mcp")


@asynccontextmanager
async def open_loopback(server: StreamServer, *, port: int = 0) -> AsyncIterator[str]:
    """The URL of `server` on this machine, as long as the block lasts."""
    async with open_servers() as nursery:
        yield await nursery.start(partial(serve_loopback, server, port=port))
