"""How a message is parsed, so that a large one does not stop all other tasks."""

from __future__ import annotations

import json

import pytest
import trio
from trio.testing import MockClock

from trio_vmcp._client.channels.parsing import split_batch

MESSAGES = ['{"jsonrpc":"2.0","method":"a"}', '{"jsonrpc":"2.0","method":"b"}']
BATCH = f"[{','.join(MESSAGES)}]"


@pytest.mark.parametrize("max_values", [4, 100])
async def test_a_batch_is_split(max_values: int, autojump_clock: MockClock) -> None:
    """Each message as it was written, whether or not the values are counted before."""
    assert MESSAGES == await split_batch(BATCH, max_values=max_values * 2)


@pytest.mark.parametrize(
    "text", [MESSAGES[0], f" {MESSAGES[0]}", "", "[]", "[1", BATCH[:-1], "x"], ids=lambda text: text[:9] or "nothing"
)
async def test_what_is_no_batch_stays_as_it_is(text: str, autojump_clock: MockClock) -> None:
    """What is wrong with it is for the parser to say."""
    assert [text] == await split_batch(text, max_values=100)


async def test_a_batch_of_too_many_values_stays_as_it_is(autojump_clock: MockClock) -> None:
    """It is not parsed at all: the time of a parse goes with the values."""
    text = json.dumps([{"x": 1}] * 10)
    assert 10 == len(await split_batch(text, max_values=20))
    assert [text] == await split_batch(text, max_values=19)


async def test_other_tasks_run_while_a_large_batch_is_counted(autojump_clock: MockClock) -> None:
    """A checkpoint after each slice of the count."""
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    text = json.dumps([{"x": "y" * 300} for _ in range(9000)])  # 2.7 MB: 11 slices
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        await split_batch(text, max_values=17_999)  # too many: it is counted, and not split
        nursery.cancel_scope.cancel()
    assert turns >= 10
