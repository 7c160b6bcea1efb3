"""When a backend may be connected anew, by itself: exact times, with the delays in the middle of their spread."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from trio_vmcp import Backend, FailureReason, Identity
from trio_vmcp._light_event import LightEvent
from trio_vmcp._session.reconnects import Backoff, Endpoints, Reconnects, Turns

BOB = Identity(issuer="https://issuer.test", subject="bob")
FIRST, LONGEST = 0.5, 60.0  # s between attempts


@pytest.fixture(autouse=True)
def _no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.5)


def new_reconnects(endpoints: Endpoints | None = None, identity: Identity | None = None) -> Reconnects:
    endpoints = Endpoints(FIRST, LONGEST) if endpoints is None else endpoints
    return endpoints.reconnects(Backend(id="b", url="http://b.test/mcp"), identity)


async def test_attempts_that_hang_hold_the_line_for_a_second_together(autojump_clock: MockClock) -> None:
    """Each for half as long as the one before; at least a hundredth of a second. A report begins anew."""
    turns = Turns(Backoff(FIRST, LONGEST))
    reported = LightEvent()
    reported.set()
    for _ in range(2):
        held: list[float] = []
        for _ in range(8):
            begun_at = trio.current_time()
            await turns.hold_line(LightEvent())
            held.append(trio.current_time() - begun_at)
        assert [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.01, 0.01] == pytest.approx(held)
        await turns.hold_line(reported)


@pytest.mark.parametrize("is_of_endpoint", [False, True])
async def test_a_first_failure_waits_the_first_delay(is_of_endpoint: bool, autojump_clock: MockClock) -> None:
    """The turn is due then, and not before; that of another principal likewise, if the failure is the endpoint's."""
    endpoints = Endpoints(FIRST, LONGEST)
    own, other = new_reconnects(endpoints, BOB), new_reconnects(endpoints)
    assert own.is_due
    own.note_failure(FailureReason.UNREACHABLE, is_of_endpoint=is_of_endpoint)
    assert (False, not is_of_endpoint) == (own.is_due, other.is_due)
    await own.wait_turn()
    assert own.is_due
    assert other.is_due
    assert trio.current_time() == FIRST


async def test_an_endpoint_that_is_reached_ends_no_wait_for_another_reason(autojump_clock: MockClock) -> None:
    """The latest failure of a principal counts: that was not the endpoint's."""
    endpoints = Endpoints(FIRST, LONGEST)
    own, other = new_reconnects(endpoints, BOB), new_reconnects(endpoints)
    own.note_failure(FailureReason.UNREACHABLE, is_of_endpoint=True)
    await own.wait_turn()
    own.note_failure(FailureReason.REJECTED)
    other.note_joined()
    assert not own.is_due


@pytest.mark.parametrize(
    ("reason", "asked", "waited"),
    [
        (FailureReason.UNREACHABLE, None, 0.0),
        (FailureReason.UNREACHABLE, 30.0, 30.0),
        (FailureReason.UNAUTHORIZED, None, FIRST),
        (FailureReason.LIMIT, None, LONGEST),
        (FailureReason.LIMIT, 30.0, LONGEST),
        (FailureReason.LIMIT, 90.0, 90.0),
    ],
)
async def test_a_session_waits_as_long_as_it_is_told(
    reason: FailureReason, asked: float | None, waited: float, autojump_clock: MockClock
) -> None:
    """By `Retry-After`. What is over a limit will be so again, and waits the longest delay."""
    await trio.sleep(100)
    reconnects = new_reconnects()
    reconnects.note_failure(reason, asked)
    await reconnects.wait_until_allowed()
    assert 100 + waited == trio.current_time()


async def test_words_are_believed_once_a_minute_and_then_doubted_for_ten(autojump_clock: MockClock) -> None:
    """Unless they have proved true."""
    reconnects = new_reconnects()
    believed: list[tuple[float, bool]] = []

    async def at(time: float) -> None:
        await trio.sleep_until(time)
        believed.append((time, reconnects.try_words()))

    for time in (0, 60, 119.9, 719.8, 719.9, 779.9):
        await at(time)
    reconnects.confirm_words()
    await at(780)
    assert [True, True, False, False, True, True, True] == [told for _, told in believed]


async def test_a_connection_is_replaced_no_more_often_than_the_backoff_says(autojump_clock: MockClock) -> None:
    """The delay doubles with each replacement, and is the first one again after the longest without any."""
    reconnects = new_reconnects()
    replaced: list[float] = []
    # 67.5 is the longest delay after 7.5, when the next one was allowed, and not longer; 152 is longer after 91.5.
    for time in (0, 0.4, 0.5, 1.4, 1.5, 3.4, 3.5, 67.5, 75.4, 75.5, 152, 152.4, 152.5):
        await trio.sleep_until(time)
        if reconnects.try_to_replace():
            replaced.append(time)
    assert [0, 0.5, 1.5, 3.5, 67.5, 75.5, 152, 152.5] == replaced


async def test_a_stream_has_its_connection_replaced_once_that_has_lasted(autojump_clock: MockClock) -> None:
    """As long as the delay, which doubles; one that lasts longer than the longest begins anew."""
    reconnects = new_reconnects()
    await trio.sleep(10)
    reconnects.note_joined()
    assert [10.5, 11.0, 12.0] == [reconnects.take_replacement_time() for _ in range(3)]
    await trio.sleep(LONGEST)
    assert 14.0 == reconnects.take_replacement_time()
    await trio.sleep(0.1)
    assert 10.5 == reconnects.take_replacement_time()
