"""`subscriptions/listen` at the front: bounds of its streams, and subscriptions that several streams share."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
from support.front import FrontWorld, Received, front_world, full_backend, modern_request
from support.plain_connector import PlainClient, PlainConnector
from trio.testing import MockClock

from trio_vmcp import JSON, Backend, BackendClient, note_written
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


async def test_a_client_of_a_connector_that_crashes_costs_no_stream(autojump_clock: MockClock) -> None:
    """However it ends, a stream gives its place back."""

    class Crashing(PlainClient):
        async def request(self, method: str, params: JSON, **more: Any) -> JSON:
            if method == "resources/unsubscribe":
                raise ValueError("before anything is sent")
            note_written()
            if method == "resources/list":
                return {"resources": [{"uri": "file:///a", "name": "a"}]}
            return await super().request(method, params, **more)

    async def connect(backend: Backend, **wanted: Any) -> BackendClient:
        capabilities = {"tools": {}, "resources": {"subscribe": True}}
        plain = await PlainConnector()(backend, **wanted)
        return Crashing(attrs.evolve(plain.record, server_capabilities=capabilities), capabilities)

    async with front_world(connector=connect) as world:
        for _ in range(20):
            stream = listen(world, "file:///a")
            await trio.sleep(3)
            assert 200 == stream.status, stream.body
            assert ["file:///a"] == await honoured(stream)
            stream.leave()
            await trio.sleep(3)
