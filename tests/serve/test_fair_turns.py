"""Bodies that take long to read: other clients have turns of the loop in proportion."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial

import pytest
import trio
from support.front import front_world
from support.front_clients import EVERY_CARRIER, EVERY_ERA, front_client
from trio.testing import MockClock, assert_no_checkpoints

from trio_vmcp import Identity
from trio_vmcp.serve._errors import Refusal
from trio_vmcp.serve._messages import COSTLY, read_message, split_batch

CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}


def call_with(argument: object) -> bytes:
    return json.dumps({**CALL, "params": {"name": "a_echo", "arguments": {"v": argument}}}).encode()


async def turns_during(work: Callable[[], Awaitable[object]]) -> int:
    """How often another task runs until this has ended."""
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        with suppress(Refusal):
            await work()
        nursery.cancel_scope.cancel()
    return turns


@pytest.mark.parametrize(
    ("read", "body"),
    [
        (read_message, call_with([1] * 90_000)),
        (read_message, call_with([{"a": 1} for _ in range(45_000)])),
        (read_message, call_with([[]] * 30_000)),
        (read_message, call_with([1] * 90_000)[:-1]),
        (split_batch, b"[" + call_with([1] * 40_000) + b"," + call_with([2] * 40_000) + b"]"),
    ],
    ids=["numbers", "objects", "arrays", "cut off", "batch"],
)
async def test_a_costly_body_leaves_turns_to_others(read: Callable[[bytes], Awaitable[object]], body: bytes) -> None:
    """A call of another client takes some seven turns, and must not meet a step of this body in each of them. To read
    one of these bodies takes 3 ms of a fast processor, in few steps.
    """
    assert 25 <= await turns_during(partial(read, body))


async def test_a_message_as_most_are_is_read_at_once() -> None:
    """To let others run would cost it more than its parse."""
    with assert_no_checkpoints():
        await read_message(call_with("x" * (COSTLY - 200)))


class Named:
    """The principal is the name that a request gives."""

    async def authenticate(self, headers: Mapping[str, str]) -> Identity:
        await trio.lowlevel.checkpoint()
        return Identity(issuer="test", subject=headers["authorization"], token=headers["x-token"])


async def turns_for(*names: str) -> int:
    """How many turns others have while these principals send one costly body each, all at once."""
    async with front_world(authenticator=Named()) as world:

        async def send() -> None:
            body = call_with([1] * 90_000)[:-1]
            replies = [
                world.start_post(body, {"authorization": name, "x-token": str(number)})
                for number, name in enumerate(names)
            ]
            for reply in replies:
                await reply.done.wait()
                assert 400 == reply.status

        return await turns_during(send)


async def test_many_costly_bodies_of_one_client_are_read_one_by_one(autojump_clock: MockClock) -> None:
    """Whatever token it has sent with each: four at a time would leave others a quarter of these turns. Another
    principal does not wait for them.
    """
    alone = await turns_for("alice")
    assert 2 * alone < await turns_for("alice", "alice", "alice", "alice")
    assert 2 * alone > await turns_for("alice", "bob")


@EVERY_CARRIER
@EVERY_ERA
async def test_costly_requests_are_answered(era: str, carrier: str, autojump_clock: MockClock) -> None:
    """Also several at a time."""
    values = [{"a": number} for number in range(20_000)]
    async with front_client(carrier, era) as client:
        for number in range(3):
            await client.ask("tools/call", {"name": "a_echo", "arguments": {"v": values}}, number)
        for number in range(3):
            assert "result" in await client.response(number)
