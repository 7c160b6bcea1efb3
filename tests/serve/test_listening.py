"""`subscriptions/listen` at the front: bounds of its streams, and subscriptions that several streams share."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from support.front import FrontWorld, Received, front_world, full_backend, modern_request
from trio.testing import MockClock

from trio_vmcp import JSON
from trio_vmcp.serve._listening import ACKNOWLEDGED_WITHIN, MOST_STREAMS
from trio_vmcp.testing import Delay, Hang, ScriptedBackend

EVERY_ERA = pytest.mark.parametrize("era", ["legacy", "modern"])
UPDATED = "notifications/resources/updated"


def listen(world: FrontWorld, *uris: str, request_id: Any = 1, **kinds: bool) -> Received:
    wanted: JSON = {"notifications": {"resourceSubscriptions": list(uris), **kinds}}
    message, headers = modern_request("subscriptions/listen", wanted, request_id=request_id)
    return world.start_post(message, headers)


async def honoured(stream: Received) -> Any:
    return (await stream.wait_messages(1))[0]["params"]["notifications"]["resourceSubscriptions"]


def offering(era: str) -> ScriptedBackend:
    backend = full_backend(era)
    backend.listens = True
    return backend


@EVERY_ERA
async def test_a_backend_that_is_silent_does_not_keep_the_stream_from_beginning(
    era: str, autojump_clock: MockClock
) -> None:
    """What is not subscribed to in time is not acknowledged; resources of other backends are, and changes are told."""
    silent, other = offering(era), full_backend("legacy")
    silent.fail("resources/subscribe" if era == "legacy" else "subscriptions/listen", Hang())
    other.listens = True
    other.resources[0]["uri"] = "file:///other"
    async with front_world(silent, other) as world:
        stream = listen(world, *(f"file:///b/{number}" for number in range(40)), "file:///other", toolsListChanged=True)
        with trio.fail_after(ACKNOWLEDGED_WITHIN + 1):
            assert ["file:///other"] == await honoured(stream)
        other.notify(UPDATED, {"uri": "file:///other"})
        assert UPDATED == (await stream.wait_messages(2))[1]["method"]


async def test_the_end_of_a_stream_does_not_end_the_subscription_of_the_next(autojump_clock: MockClock) -> None:
    """It begins while the backend is told that the first one has ended."""
    backend = offering("legacy")
    backend.fail("resources/unsubscribe", Delay(0.5), times=1)
    async with front_world(backend) as world:
        first = listen(world, "file:///a")
        await first.wait_messages(1)
        first.leave()
        while not backend.received("resources/unsubscribe"):
            await trio.sleep(0.05)
            assert 10 > trio.current_time()
        second = listen(world, "file:///a")
        assert ["file:///a"] == await honoured(second)
        await trio.sleep(2)
        backend.notify(UPDATED, {"uri": "file:///a"})
        assert UPDATED == (await second.wait_messages(2))[1]["method"]


@EVERY_ERA
async def test_nothing_is_kept_of_streams_that_have_ended(era: str, autojump_clock: MockClock) -> None:
    """Nor of resources that are not offered, while another stream of the principal stays open."""
    async with front_world(offering(era)) as world:
        staying = listen(world, "file:///a")
        await staying.wait_messages(1)
        for number in range(3):
            stream = listen(world, "file:///a", f"file:///b/{number}", f"none:{number}", "\ud800")
            assert ["file:///a", f"file:///b/{number}"] == await honoured(stream)
            stream.leave()
            await trio.sleep(3)
        (interest,) = world.app._modern.stateless.listeners._interests.values()
        assert (1, ["file:///a"]) == (interest.streams, list(interest.resources))
        staying.leave()
        await trio.sleep(3)
        assert {} == world.app._modern.stateless.listeners._interests


async def test_one_stream_too_many_is_to_be_asked_for_later(autojump_clock: MockClock) -> None:
    """503 and Retry-After; the place of a stream that ends is free."""
    async with front_world() as world:
        streams = [listen(world, request_id=number, toolsListChanged=True) for number in range(MOST_STREAMS)]
        for stream in streams:
            await stream.wait_messages(1)
        refused = listen(world, request_id="r")
        await refused.done.wait()
        assert (503, "r") == (refused.status, refused.json["id"])
        assert 0 < int(refused.headers["retry-after"])
        streams[0].leave()
        await trio.sleep(2)
        assert "method" in (await listen(world).wait_messages(1))[0]
