"""One request on its way through the front, whatever its era."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import trio
from support.front import FrontWorld, Received, front_world, modern_request
from support.garbage import keeping_garbage
from trio.testing import MockClock

from trio_vmcp.serve import ServeSettings
from trio_vmcp.serve._asgi import HttpRequest

EVERY_ERA = pytest.mark.parametrize("era", ["legacy", "modern"])
CALL = {"name": "a_echo", "arguments": {"x": 1}}
LONG = 40.0  # s, over every interval after which a request without an answer opens its stream


async def start_call(world: FrontWorld, era: str) -> Received:
    if era == "legacy":
        return (await world.initialize()).start("tools/call", CALL)
    return world.start_post(*modern_request("tools/call", CALL))


@EVERY_ERA
async def test_a_slow_reader_gets_one_response(
    autojump_clock: MockClock, era: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A response that is being sent stays the only one, however long the client takes to read it: no stream opens
    behind it.
    """
    async with front_world() as world:
        received = await start_call(world, era)
        received.blocked = trio.Event()
        await trio.sleep(LONG)
        received.blocked.set()
        await received.done.wait()
        assert 200 == received.status
        assert not received.is_stream
        assert "result" in received.answer
        await trio.sleep(LONG)
    assert [] == [record.getMessage() for record in caplog.records]  # a second head is an error in a task


@EVERY_ERA
async def test_a_request_leaves_no_reference_cycle(autojump_clock: MockClock, era: str) -> None:
    """A request that is answered is freed at once, and not by a run of the garbage collector, which stops all tasks."""
    async with front_world() as world:
        await (await start_call(world, era)).done.wait()  # what is made once
        client = await world.initialize()
        with keeping_garbage() as garbage:
            if era == "legacy":
                await client.result("tools/call", CALL)
            else:
                await world.post(*modern_request("tools/call", CALL))
        assert {} == garbage


@pytest.mark.parametrize(("then", "status"), [({"type": "http.disconnect"}, 0), ({"body": b"x" * 9}, 413)], ids=str)
async def test_a_body_that_does_not_come_whole_leaves_nothing(
    then: dict[str, Any], status: int, autojump_clock: MockClock
) -> None:
    """The client leaves, or sends too much: no task looks for this request any more, and nothing keeps it."""
    async with front_world(settings=ServeSettings(max_body_bytes=8)) as world:
        received, messages = Received(), [then, {"more_body": True}]

        async def receive() -> dict[str, Any]:
            await trio.lowlevel.checkpoint()
            return {"type": "http.request", **messages.pop()}

        async def send(message: dict[str, Any]) -> None:
            received.take(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        await world.app({"type": "http", "method": "POST", "path": "/mcp", "headers": headers}, receive, send)
        assert status == received.status
        assert [] == [each for each in gc.get_objects() if type(each) is HttpRequest]
