"""What tests/sweeps found wrong with the library, each as small as it gets."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import trio
from support.harness import echo_backend, open_world
from trio.testing import MockClock

from trio_vmcp import BackendProtocolError
from trio_vmcp._client.http.foreign import HttpxSource, RequestBody
from trio_vmcp._client.http.reply import Reply
from trio_vmcp._protocol import jsonrpc
from trio_vmcp.testing import WireFault


class ShortLength(WireFault):
    """The Content-Length lacks its first digit."""

    def steps(self, sent: int, data: bytes) -> Iterator[bytes]:
        yield re.sub(rb"(?<=content-length: )\d", b"", data)


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_the_rest_of_a_wrong_answer_is_not_the_next_one(era: str, autojump_clock: MockClock) -> None:
    """A connection whose answer was cut short by its own Content-Length is not used again."""
    backend = echo_backend(era)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("tools/call", ShortLength(), times=1)
        with pytest.raises(BackendProtocolError, match="not JSON"):
            await session.call_tool("a_echo")
        result = await session.call_tool("a_echo", {"after": "it"})
    assert '{"after": "it"}' == result.content[0]["text"]


def test_a_message_that_does_not_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a bad message like any other: what it would have taken is free again."""

    def out_of_memory(_: str) -> int:
        raise MemoryError

    monkeypatch.setattr(jsonrpc, "_decoder", json.JSONDecoder(parse_int=out_of_memory))
    with pytest.raises(jsonrpc.BadMessage, match="more memory"):
        jsonrpc.parse_message(b'{"jsonrpc":"2.0","id":1,"result":{}}', max_depth=128)


class Crumbs(httpx.AsyncByteStream):
    """A body in chunks of two bytes, all of them here at once."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return b"%02d" % (self.left % 100)


def reply(count: int) -> Reply:
    return Reply("a", 200, RequestBody(b""), [], HttpxSource("a", httpx.Response(200, stream=Crumbs(count))))


async def test_a_body_in_crumbs_takes_its_size() -> None:
    """At most twice the bytes of an answer are held, however small its chunks are."""
    tracemalloc.start()
    data = await reply(20_000).read(limit=1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 40_000 == len(data)
    assert peak < 4 * 40_000  # Trio's own included


async def test_a_body_in_crumbs_lets_others_run() -> None:
    """A backend whose answer is a great many chunks holds nobody up with them."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await reply(1600).read(limit=1 << 20)
        nursery.cancel_scope.cancel()
    assert turns >= 1600 // 32
