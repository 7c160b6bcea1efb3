"""stdin and stdout as streams of Trio."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from trio_vmcp._cli.standard_streams import _Input, _Output

PROGRAM = """
import trio
from trio_vmcp._cli.standard_streams import open_standard_streams

async def main():
    receive, send = open_standard_streams()
    print("said by accident", flush=True)
    async for chunk in receive:
        await send.send_all(chunk.upper())

trio.run(main)
"""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


async def wait_threads_ended() -> None:
    while trio.to_thread.current_default_thread_limiter().borrowed_tokens:  # noqa: ASYNC110  # nothing tells
        await trio.sleep(0.005)


def test_stdout_holds_messages_alone() -> None:
    """What else is printed goes to stderr; stdin may be a file, and its end is the end of the stream."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=b"a\nb\n", capture_output=True, timeout=30, check=True)
    assert (b"A\nB\n", b"said by accident\n") == (done.stdout, done.stderr)


async def test_much_is_written_whole(pipe: tuple[int, int], nursery: trio.Nursery) -> None:
    """A pipe takes 64 KiB at a time; the rest waits for the reader, and not the other tasks."""
    reader, writer = pipe
    data, received = os.urandom(300_000), bytearray()
    nursery.start_soon(_Output(writer).send_all, data)
    while len(received) < len(data):
        received += await _Input(reader).receive_some()
    assert data == received
    await wait_threads_ended()


async def test_an_input_that_cannot_be_read() -> None:
    """A directory, say. The server ends as at the end of the stream."""
    directory = os.open("/", os.O_RDONLY)
    with pytest.raises(trio.BrokenResourceError):
        await _Input(directory).receive_some()
    os.close(directory)
    await wait_threads_ended()


async def test_a_read_is_given_up_when_it_is_cancelled(pipe: tuple[int, int]) -> None:
    """A signal must not wait for the client's next line."""
    reader, writer = pipe
    with trio.move_on_after(0.01) as scope:
        await _Input(reader).receive_some()
    assert scope.cancelled_caught
    os.write(writer, b"x")
    await wait_threads_ended()


async def test_a_reader_that_is_gone() -> None:
    """BrokenResourceError, as of other streams."""
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(trio.BrokenResourceError):
        await _Output(writer).send_all(b"x")
    os.close(writer)
