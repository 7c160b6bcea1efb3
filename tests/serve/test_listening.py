"""`subscriptions/listen` at the front: bounds of its streams, and subscriptions that several streams share."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from support.front import FrontWorld, Received, front_world, full_backend, modern_request
from trio.testing import MockClock

from trio_vmcp import JSON
from trio_vmcp.testing import ScriptedBackend

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
