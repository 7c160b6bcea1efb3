"""What a backend has been charged, by the time until its streams are read on."""

from __future__ import annotations

import trio
import trio.testing

from trio_vmcp._client.channels.pace import MESSAGES_AHEAD, MESSAGES_AT_ONCE, MESSAGES_PER_SECOND, Pace

__all__ = ["charge_messages", "delay", "messages_charged", "spent"]


def charge_messages(pace: Pace, count: float) -> None:
    for _ in range(int(count)):
        pace.charge_message(None, 0)


async def delay(pace: Pace) -> float:
    """s that the streams of the backend are not read now."""
    begun_at = trio.current_time()
    with trio.testing.assert_checkpoints():
        await pace.wait()
    return trio.current_time() - begun_at


async def spent() -> Pace:
    """A pace whose allowance of messages is used up."""
    pace = Pace()
    charge_messages(pace, MESSAGES_AHEAD)
    assert 0.0 == await delay(pace)
    return pace


async def messages_charged(pace: Pace) -> float:
    """What a pace that was `spent` was charged since, in messages."""
    waited = await delay(pace)
    return waited * MESSAGES_PER_SECOND - MESSAGES_AT_ONCE if waited else 0.0
