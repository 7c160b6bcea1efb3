"""TCP without the guards of `trio.SocketStream`: whole writes, and the errors that Trio's streams raise."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from trio_vmcp._http.tcp import TcpStream

MORE_THAN_FITS = 64 * 1024 * 1024  # bytes; more than the kernel's buffers hold


@asynccontextmanager
async def open_pair() -> AsyncIterator[tuple[TcpStream, trio.socket.SocketType]]:
    """A stream over loopback, and the socket at the other end."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        own = socket.create_connection(listener.socket.getsockname())
        own.setblocking(False)
        stream = TcpStream(own)
        async with await listener.accept() as served:
            yield stream, served.socket
        stream.close()


async def test_bytes_go_both_ways_and_end() -> None:
    """Bytes arrive in both directions; after the other end has closed, reads return no bytes."""
    async with open_pair() as (stream, peer):
        await stream.send_all(b"there")
        assert b"there" == await peer.recv(100)
        await peer.send(b"and back")
        assert b"and" == await stream.receive_some(3)
        assert b" back" == await stream.receive_some(100)
        peer.close()
        assert b"" == await stream.receive_some(100)


async def test_more_than_the_kernel_takes_at_once_is_written_whole() -> None:
    """`send_all` ends when all bytes are sent, however slowly the other end reads."""
    data = bytes(range(256)) * 64 * 1024
    received = bytearray()
    async with open_pair() as (stream, peer):

        async def read() -> None:
            while len(received) < len(data):
                received.extend(await peer.recv(64 * 1024))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await stream.send_all(data)
    assert data == bytes(received)


async def test_a_reset_is_a_broken_stream() -> None:
    """After a reset, reads and writes raise BrokenResourceError with the operating system's text as the cause."""
    async with open_pair() as (stream, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some(1)
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x")


async def test_a_stream_that_was_closed_here_says_so() -> None:
    """After `close`, a read or write raises ClosedResourceError, whether it waits already or starts later."""
    async with open_pair() as (stream, _):

        async def wait(use: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await use()

        uses = (lambda: stream.receive_some(1), lambda: stream.send_all(bytes(MORE_THAN_FITS)))
        async with trio.open_nursery() as nursery:
            for use in uses:
                nursery.start_soon(wait, use)
            await trio.testing.wait_all_tasks_blocked()
            stream.close()
        for use in uses:
            await wait(use)
        stream.close()  # closing again changes nothing


async def test_a_cancelled_write_sends_nothing() -> None:
    """A write that is cancelled before its first step sends no bytes."""
    async with open_pair() as (stream, peer):
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.send_all(b"x")
        assert scope.cancelled_caught
        await stream.send_all(b"y")
        assert b"y" == await peer.recv(100)


async def test_a_cancelled_read_loses_nothing() -> None:
    """The bytes that a cancelled read would have returned are returned by the next read."""
    async with open_pair() as (stream, peer):
        await peer.send(b"x")
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.receive_some(1)
        assert scope.cancelled_caught
        assert b"x" == await stream.receive_some(1)


async def test_a_read_gives_others_their_turn() -> None:
    """Every read is a checkpoint, also if bytes are buffered: a backend that sends without end does not stop other
    tasks.
    """
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with open_pair() as (stream, peer):
        await peer.send(b"x" * 100)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            for _ in range(100):
                await stream.receive_some(1)
            nursery.cancel_scope.cancel()
    assert 90 < turns
