"""What a backend sends is worked off in short steps, between which other tasks run (design: 50 ms at most). The same
over every channel. `benchmarks/bench_steps.py` measures how long they are.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
import trio
from support.channels import ANSWERS, EVERY_ANSWER, EVERY_LEGACY_CHANNEL, Channel
from support.clients import call
from support.steps import counting_steps
from trio.testing import MockClock

from trio_vmcp import JSON
from trio_vmcp._client.channels.pace import MESSAGES_AT_ONCE
from trio_vmcp._protocol.json_slices import SLICE
from trio_vmcp.testing import Rewrite

SIZE = 3 * 1024 * 1024
EVERY_ANSWER_OF_A_SESSION = pytest.mark.parametrize("channel", [c for c in ANSWERS if not c.is_modern], ids=str)
BATCHES = "2025-03-26"


def holding(value: str, message: JSON) -> bytes:
    """The same message with this JSON in its result."""
    text = json.dumps(message)
    return text.replace('"content":', f'"x": {value}, "content":', 1).encode()


async def steps_of_call(channel: Channel, value: str, *, is_batch: bool = False) -> int:
    """The steps from a call to its result, which holds this JSON."""
    backend = channel.backend(**({"protocol_version": BATCHES} if is_batch else {}))
    within = (lambda message: b"[%s]" % holding(value, message)) if is_batch else partial(holding, value)
    backend.fail("tools/call", Rewrite(within), times=1)
    async with channel.open_client(backend) as client:
        with counting_steps() as steps:
            assert "x" in await call(client)
    return steps.count


@EVERY_ANSWER
async def test_a_long_answer_is_parsed_in_slices(channel: Channel, autojump_clock: MockClock) -> None:
    """A step for each slice of the count, and one for each slice of the parse."""
    one = await steps_of_call(channel, json.dumps("x" * SIZE))
    many = await steps_of_call(channel, json.dumps(["x" * 96] * (SIZE // 100)))
    assert many - one >= 2 * SIZE // SLICE


@EVERY_ANSWER_OF_A_SESSION
async def test_a_long_answer_in_a_batch_is_parsed_in_slices(channel: Channel, autojump_clock: MockClock) -> None:
    """Both when the batch is split and when its messages are parsed."""
    one = await steps_of_call(channel, json.dumps("x" * SIZE), is_batch=True)
    many = await steps_of_call(channel, json.dumps(["x" * 96] * (SIZE // 100)), is_batch=True)
    assert many - one >= 4 * SIZE // SLICE


@EVERY_ANSWER_OF_A_SESSION
@pytest.mark.parametrize("part", ["7", '{"jsonrpc":"2.0","method":"notifications/x"}'], ids=["no message", "message"])
async def test_the_messages_of_a_batch_come_at_the_pace_of_a_stream(
    channel: Channel, part: str, autojump_clock: MockClock
) -> None:
    """Readable or not: a batch of many is no way around the pace."""
    parts = 3000
    backend = channel.backend(protocol_version=BATCHES)
    backend.fail("tools/call", Rewrite(lambda message: f"[{(part + ',') * parts}{json.dumps(message)}]".encode()))
    async with channel.open_client(backend) as client:
        begun_at = trio.current_time()
        with counting_steps() as steps:
            await call(client)
        assert trio.current_time() - begun_at > 1
    assert steps.count >= parts // MESSAGES_AT_ONCE


@EVERY_LEGACY_CHANNEL
async def test_the_messages_of_a_batch_on_a_held_stream(channel: Channel, autojump_clock: MockClock) -> None:
    """The same, outside of calls."""
    parts: list[Any] = [7] * 3000
    backend = channel.backend(protocol_version=BATCHES, listens=True)
    async with channel.open_bench(backend) as bench:
        await bench.connect()
        await trio.sleep(1)
        with counting_steps() as steps:
            backend.send(json.dumps(parts).encode())
            await trio.sleep(5)
        assert steps.count >= len(parts) // MESSAGES_AT_ONCE
