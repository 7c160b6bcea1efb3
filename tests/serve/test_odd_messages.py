"""Messages of clients that are JSON-RPC, and yet not as MCP has them: found by the fuzzer, each by its rule."""

from __future__ import annotations

from typing import Any

import pytest
from support.front import LEGACY, front_world
from trio.testing import MockClock


def initialize(capabilities: Any) -> dict[str, Any]:
    params = {"protocolVersion": LEGACY, "capabilities": capabilities, "clientInfo": {"name": "t"}}
    return {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}


@pytest.mark.parametrize(
    "capabilities", [{"roots": {"x": "\ud800"}}, {"sampling": {"\udfff": {}}}, {"elicitation": True}, {"roots": []}]
)
async def test_capabilities_that_no_backend_can_be_told_are_refused(
    capabilities: Any, autojump_clock: MockClock
) -> None:
    """Else a session begins to which no backend can ever connect: `initialize` of each would hold half a surrogate."""
    async with front_world() as world:
        reply = await world.post(initialize(capabilities))
        assert -32602 == reply.json["error"]["code"]
        assert 0 == world.manager.statistics.live


@pytest.mark.parametrize("capabilities", [None, {"sampling": None}, {"x": None, "tasks": True}, {}])
async def test_capabilities_without_use_here_are_ignored(capabilities: Any, autojump_clock: MockClock) -> None:
    """A null is an absent member, and what later versions may add is not judged."""
    async with front_world() as world:
        assert 200 == (await world.post(initialize(capabilities))).status
