"""A connection of a client: what is written together, and when it ends by itself."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from trio.testing import MockClock

from trio_vmcp.serve._connection import MOST_JOINED, Connection

KEEP_ALIVE = 20.0  # s
REQUEST = b"POST /mcp HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}"


class Recorded(trio.abc.HalfCloseableStream):
    """A socket's stream that keeps what is written, by writes."""

    def __init__(self, end: trio.socket.SocketType) -> None:
        self.socket = end  # as a SocketStream has
        self.written: list[bytes] = []
        self._stream = trio.SocketStream(end)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class App:
    """Answers with a body; or, of the path /stream, with a head and, once `go_on` is set, an event.

    `was_left`: it was told that the client is gone, before that event.
    """

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.go_on = trio.Event()
        self.was_left = False

    async def __call__(self, scope: Any, receive: Any, send: Any, *_: object) -> None:
        if scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, receive)
                await self.go_on.wait()
                nursery.cancel_scope.cancel()
            await send({"type": "http.response.body", "body": b"event"})
            return
        length = (b"content-length", b"%d" % len(self.body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": self.body})

    async def _watch(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.was_left = True


@asynccontextmanager
async def connected(app: App) -> AsyncIterator[tuple[trio.SocketStream, Recorded, Connection]]:
    config = Config()
    config.keep_alive_timeout = KEEP_ALIVE
    here, there = socket.socketpair()
    client = trio.SocketStream(trio.socket.from_stdlib_socket(here))
    recorded = Recorded(trio.socket.from_stdlib_socket(there))
    connection = Connection(app, config, WorkerContext(None), recorded)

    async def run() -> None:
        await connection

    async with client, recorded, trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield client, recorded, connection
        nursery.cancel_scope.cancel()


async def read_until(client: trio.SocketStream, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        piece = await client.receive_some()
        assert piece, data
        data += piece
    return data


@pytest.mark.parametrize(("body", "writes"), [(b"", 1), (b"{}", 1), (b"x" * (MOST_JOINED + 1), 2)])
async def test_a_response_is_written_at_once(autojump_clock: MockClock, body: bytes, writes: int) -> None:
    """Head and body are one write, on each request of a connection; a large body is not copied for that."""
    async with connected(App(body)) as (client, recorded, _):
        for number in (1, 2):
            await client.send_all(REQUEST)
            assert b"200" in await read_until(client, b"\r\n\r\n" + body)
            assert number * writes == len(recorded.written)


async def test_the_head_of_a_stream_is_written_before_its_events(autojump_clock: MockClock) -> None:
    """A response without `Content-Length` begins at once: its first event may come late."""
    app = App(b"")
    async with connected(app) as (client, recorded, _):
        await client.send_all(REQUEST.replace(b"/mcp", b"/stream"))
        assert b"200" in await read_until(client, b"\r\n\r\n")
        assert 1 == len(recorded.written)
        app.go_on.set()
        assert b"event" in await read_until(client, b"0\r\n\r\n")


@pytest.mark.parametrize("requests", [0, 2])
async def test_an_idle_connection_ends(autojump_clock: MockClock, requests: int) -> None:
    """`keep_alive_timeout` s after its last response, or after it was opened, and not before."""
    async with connected(App(b"{}")) as (client, _, _):
        for _ in range(requests):
            await trio.sleep(KEEP_ALIVE * 0.9)
            await client.send_all(REQUEST)
            await read_until(client, b"{}")
        begun_at = trio.current_time()
        assert b"" == await client.receive_some()
        assert math.isclose(KEEP_ALIVE, trio.current_time() - begun_at)


async def test_a_request_under_way_is_not_idle(autojump_clock: MockClock) -> None:
    """A stream without events outlives `keep_alive_timeout`, and the end of the server does not take it for idle."""
    app = App(b"")
    async with connected(app) as (client, _, connection):
        await client.send_all(REQUEST.replace(b"/mcp", b"/stream"))
        await trio.sleep(3 * KEEP_ALIVE)
        connection.end_if_idle()
        await trio.testing.wait_all_tasks_blocked()
        assert not app.was_left
        app.go_on.set()
        assert b"event" in await read_until(client, b"0\r\n\r\n")
        connection.end_if_idle()
        assert b"" == await client.receive_some()
