"""What a backend may send, and when its streams are read on: the arithmetic, without any backend."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from support.paces import charge_messages, delay, messages_charged, spent
from trio.testing import MockClock

from trio_vmcp._client.channels.pace import (
    BYTES_AHEAD,
    BYTES_PER_SECOND,
    CRUMB,
    LINE_COST,
    LINES_AT_ONCE,
    MESSAGES_AHEAD,
    MESSAGES_AT_ONCE,
    MESSAGES_PER_SECOND,
    PIECE_COST,
    PIECES_AT_ONCE,
    REQUEST_COST,
    SMALL_PIECE,
    Pace,
    pieces,
)
from trio_vmcp._protocol.jsonrpc import Request


async def messages_of(charge: Callable[[Pace], object]) -> float:
    """What this costs, in messages, by the time until the streams are read on."""
    pace = await spent()
    charge(pace)
    return await messages_charged(pace)


async def test_the_figures() -> None:
    """At these, a flood of the shortest messages takes a tenth of a processor, and a call of a neighbour at most twice
    its time. At first nothing is due.
    """
    assert not Pace().is_due
    assert (2000.0, 500.0) == (MESSAGES_PER_SECOND, MESSAGES_AHEAD)
    assert (2.0**20, 2.0**24) == (BYTES_PER_SECOND, BYTES_AHEAD)
    assert (8.0, 0.0625, 0.5) == (REQUEST_COST, LINE_COST, PIECE_COST)
    assert (4096, 64, 16.0, 256, 4.0) == (SMALL_PIECE, CRUMB, MESSAGES_AT_ONCE, LINES_AT_ONCE, PIECES_AT_ONCE)


async def test_messages_come_at_their_rate_behind_the_allowance(autojump_clock: MockClock) -> None:
    """The allowance is free. Behind it a message more waits until a few may come, and the rest of a second is kept."""
    pace = await spent()
    charge_messages(pace, 1)
    assert (MESSAGES_AT_ONCE + 1) / MESSAGES_PER_SECOND == pytest.approx(await delay(pace))
    charge_messages(pace, MESSAGES_AT_ONCE)
    assert 0.0 == await delay(pace)
    await trio.sleep(0.1)
    charge_messages(pace, 0.1 * MESSAGES_PER_SECOND)
    assert 0.0 == await delay(pace)
    charge_messages(pace, 1)
    assert 0.0 < await delay(pace)


async def test_bytes_come_at_their_rate_behind_the_allowance(autojump_clock: MockClock) -> None:
    """Counted beside the messages; the longer of both times is waited."""
    pace = Pace()
    pace.charge_message(None, int(BYTES_AHEAD))
    assert not pace.is_due
    assert 0.0 == await delay(pace)
    pace.charge_message(None, int(BYTES_PER_SECOND))
    assert pace.is_due
    assert 1.0 == pytest.approx(await delay(pace))
    await trio.sleep(1)
    pace.charge_message(None, int(BYTES_PER_SECOND))
    assert 0.0 == await delay(pace)
    charge_messages(pace, MESSAGES_AHEAD + MESSAGES_PER_SECOND)
    pace.charge_message(None, 1000)
    assert await delay(pace) > 1.0


async def test_an_allowance_does_not_grow_over_itself(autojump_clock: MockClock) -> None:
    """However long nothing comes."""
    pace = Pace()
    await trio.sleep(3600)
    assert 0.0 == await delay(pace)
    charge_messages(pace, MESSAGES_AHEAD + 1)
    assert 0.0 < await delay(pace)
    await trio.sleep(3600)
    assert 0.0 == await delay(pace)
    pace.charge_message(None, int(BYTES_AHEAD) + 1024)
    assert 1024 / BYTES_PER_SECOND == pytest.approx(await delay(pace))


async def test_a_checkpoint_is_due_after_a_few_messages(autojump_clock: MockClock) -> None:
    """Whatever is left of the allowance, and anew behind each wait."""
    pace = Pace()
    for _ in range(2):
        charge_messages(pace, MESSAGES_AT_ONCE - 1)
        assert not pace.is_due
        charge_messages(pace, 1)
        assert pace.is_due
        await pace.wait()
        assert not pace.is_due


async def test_a_spent_allowance_is_due_at_once(autojump_clock: MockClock) -> None:
    """Before the next message of a flood is read."""
    pace = await spent()
    assert not pace.is_due
    pace.charge_message(None, 0)
    assert pace.is_due


@pytest.mark.parametrize(
    ("size", "cost", "counts"),
    [
        pytest.param(1, PIECE_COST, True, id="a byte"),
        pytest.param(SMALL_PIECE - 1, PIECE_COST, True, id="small"),
        pytest.param(SMALL_PIECE, 0.0, True, id="cut"),
        pytest.param(SMALL_PIECE + 1, 0.0, False, id="large"),
    ],
)
async def test_small_pieces_cost(size: int, cost: float, counts: bool, autojump_clock: MockClock) -> None:
    """By themselves; those that were cut from a larger one count for the checkpoint alone. Their bytes are free."""
    piece = bytes(size)
    assert cost == pytest.approx(await messages_of(lambda pace: pace.charge_piece(piece)))
    pace = Pace()
    for number in range(1, int(PIECES_AT_ONCE) + 1):
        pace.charge_piece(piece)
        assert pace.is_due is (counts and (number * (MESSAGES_AT_ONCE / PIECES_AT_ONCE + cost) >= MESSAGES_AT_ONCE))
    pace = Pace()
    pace.charge_message(None, int(BYTES_AHEAD))
    pace.charge_piece(piece)
    assert 0.0 == await delay(pace)


@pytest.mark.parametrize(("size", "cost"), [(16 * CRUMB - 1, 16 * LINE_COST), (16 * CRUMB, 0.0)])
async def test_crumbs_cost_what_lines_do(size: int, cost: float, autojump_clock: MockClock) -> None:
    """Chunks that are small on average. Their bytes are free."""
    assert cost == pytest.approx(await messages_of(lambda pace: pace.charge_crumbs(16, size)))
    pace = Pace()
    pace.charge_message(None, int(BYTES_AHEAD))
    pace.charge_crumbs(16, size)
    assert 0.0 == await delay(pace)


@pytest.mark.parametrize(("count", "cost"), [(0, 0.0), (1, LINE_COST), (64, 64 * LINE_COST)])
async def test_lines_of_no_message_cost(count: int, cost: float, autojump_clock: MockClock) -> None:
    """With their bytes, where there are any."""
    assert cost == pytest.approx(await messages_of(lambda pace: pace.charge_lines(count, 0)))
    pace = Pace()
    pace.charge_message(None, int(BYTES_AHEAD))
    pace.charge_lines(count, 1024)
    assert (1024 / BYTES_PER_SECOND if count else 0.0) == pytest.approx(await delay(pace))


async def test_a_request_of_a_backend_costs_its_answer(autojump_clock: MockClock) -> None:
    """And each line that a message came in costs beside the message."""
    request = Request(1, "ping", {})
    assert REQUEST_COST == pytest.approx(await messages_of(lambda pace: pace.charge_message(request, 0)))
    assert 1 + 8 * LINE_COST == pytest.approx(await messages_of(lambda pace: pace.charge_message(None, 0, 8)))


@pytest.mark.parametrize("end", [b"\n", b"\r"])
def test_a_chunk_of_many_lines_is_cut(end: bytes) -> None:
    """One that is short, or has few lines, stays whole."""
    few = bytes(SMALL_PIECE) + end * LINES_AT_ONCE + b"x"
    many = bytes(SMALL_PIECE) + end * (LINES_AT_ONCE + 1) + b"x" * SMALL_PIECE
    short = end * SMALL_PIECE
    assert [few] == pieces(few)
    assert [short] == pieces(short)
    assert many == b"".join(pieces(many))
    assert [SMALL_PIECE, SMALL_PIECE, LINES_AT_ONCE + 1] == [len(piece) for piece in pieces(many)]
