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
from support.clients import ask, call
from support.steps import counting_steps
from trio.testing import MockClock

from trio_vmcp import JSON
from trio_vmcp._client.channels.pace import MESSAGES_AT_ONCE
from trio_vmcp._protocol.headers import VALUES_AT_ONCE
from trio_vmcp._protocol.json_slices import SLICE
from trio_vmcp.testing import Rewrite

SIZE = 2 * 1024 * 1024
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
    assert many - one >= 3 * SIZE // SLICE // 2


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


def with_tool(fields: str, message: JSON) -> bytes:
    """The same list with one more tool, in whose schema these fields are, and with more fields of its own."""
    text = json.dumps(message)
    assert '"tools": [' in text
    schema, _, more = fields.partition(";")
    return text.replace(
        '"tools": [', f'{more}"tools": [{{"name":"x","inputSchema":{{"type":"object",{schema}}}}},', 1
    ).encode()


async def steps_of_listing(channel: Channel, fields: str) -> int:
    backend = channel.backend()
    backend.fail("tools/list", Rewrite(partial(with_tool, fields)), times=1)
    async with channel.open_client(backend) as client:
        with counting_steps() as steps:
            assert "x" == (await ask(client, "tools/list"))["tools"][0]["name"]
    return steps.count


@pytest.mark.parametrize("channel", [c for c in ANSWERS if c.is_modern and c.transport != "stdio"], ids=str)
@pytest.mark.parametrize("keyword", ["properties", "$defs", "allOf"])
async def test_a_large_schema_is_looked_through_in_steps(
    channel: Channel, keyword: str, autojump_clock: MockClock
) -> None:
    """For arguments that are mirrored in headers; what is no schema in it is not looked at."""
    schemas = json.dumps([{}] * 20_000 if keyword == "allOf" else {f"p{n:05}": {} for n in range(20_000)})
    data = await steps_of_listing(channel, f'"{"x" * len(keyword)}": {schemas};')
    assert await steps_of_listing(channel, f'"{keyword}": {schemas};') - data >= 10_000 // VALUES_AT_ONCE


@pytest.mark.parametrize("channel", [c for c in ANSWERS if c.is_modern and c.transport != "stdio"], ids=str)
async def test_the_schemas_of_many_tools_are_looked_through_in_steps(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """Each of them is short."""
    taken: list[int] = []
    for keyword in ("x" * len("properties"), "properties"):
        backend = channel.backend()
        for number in range(200):
            backend.add_tool(f"t{number}", inputSchema={"type": "object", keyword: {f"p{n}": {} for n in range(99)}})
        async with channel.open_client(backend) as client:
            with counting_steps() as steps:
                assert 200 <= len((await ask(client, "tools/list"))["tools"])
        taken.append(steps.count)
    assert taken[1] - taken[0] >= 10_000 // VALUES_AT_ONCE


@pytest.mark.parametrize("channel", [c for c in ANSWERS if c.is_modern and c.transport != "stdio"], ids=str)
async def test_a_long_result_is_cached_in_slices(channel: Channel, autojump_clock: MockClock) -> None:
    """A step for each slice that is encoded, and for each that is parsed when the result is found again."""
    value = json.dumps(["x" * 96] * (SIZE // 100))
    fresh = '"ttlMs": 60000, "cacheScope": "public", '
    once = await steps_of_listing(channel, f'"const": {value};"ttlMS": 60000, "cachescope": "public", ')
    kept = await steps_of_listing(channel, f'"const": {value};{fresh}')
    assert kept - once >= SIZE // SLICE
    backend = channel.backend()
    backend.fail("tools/list", Rewrite(partial(with_tool, f'"const": {value};{fresh}')), times=1)
    async with channel.open_client(backend) as client:
        first = await ask(client, "tools/list")
        with counting_steps() as steps:
            assert first == await ask(client, "tools/list")
        assert steps.count >= SIZE // SLICE
    assert 1 == len([each for each in backend.exchanges if each.method == "tools/list"])
