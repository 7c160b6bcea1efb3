"""TCP without the guards of `trio.SocketStream`: whole writes, and errors as streams have them."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from trio_vmcp.client._tcp import TcpStream


@asynccontextmanager
async def open_pair() -> AsyncIterator[tuple[TcpStream, trio.socket.SocketType, trio.socket.SocketType]]:
    """A stream, its socket, and the socket at the other end, over loopback."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        client = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        async with client, await listener.accept() as served:
            yield TcpStream(client.socket), client.socket, served.socket


async def test_bytes_go_both_ways_and_end() -> None:
    """What was sent comes, and nothing once the other side has closed."""
    async with open_pair() as (stream, _, peer):
        await stream.send_all(b"there")
        assert b"there" == await peer.recv(100)
        await peer.send(b"and back")
        assert b"and" == await stream.receive_some(3)
        assert b" back" == await stream.receive_some(100)
        peer.close()
        assert b"" == await stream.receive_some(100)


async def test_more_than_the_kernel_takes_at_once_is_written_whole() -> None:
    """A write ends when all of it is on its way, however slowly the other side reads."""
    data = bytes(range(256)) * 64 * 1024
    received = bytearray()
    async with open_pair() as (stream, _, peer):

        async def read() -> None:
            while len(received) < len(data):
                received.extend(await peer.recv(64 * 1024))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await stream.send_all(data)
    assert data == bytes(received)


async def test_a_reset_is_a_broken_stream() -> None:
    """Reading and writing; with the system's word for it as the cause."""
    async with open_pair() as (stream, _, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some(1)
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x")


async def test_a_socket_that_was_closed_here_says_so() -> None:
    """Whether somebody waits on it or comes later."""
    async with open_pair() as (stream, own, _):

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            own.close()
        for use in (lambda: stream.receive_some(1), lambda: stream.send_all(b"x")):
            with pytest.raises(trio.ClosedResourceError):
                await use()
