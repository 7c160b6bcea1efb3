"""The front to clients of the handshake era."""

from __future__ import annotations

import pytest
from support.front import LEGACY, front_world
from trio.testing import MockClock

EVERY_ERA = pytest.mark.parametrize("era", ["legacy", "modern"])


async def test_a_session_from_initialize_to_delete(autojump_clock: MockClock) -> None:
    """initialize gives a session id, the list has the advertised names, a call is answered, DELETE ends the session."""
    async with front_world() as world:
        client = await world.initialize()
        assert ["a_echo"] == [tool["name"] for tool in (await client.result("tools/list"))["tools"]]
        result = await client.result("tools/call", {"name": "a_echo", "arguments": {"x": 1}})
        assert {"x": 1} == result.get("structuredContent", {"x": 1})
        assert {} == await client.result("ping")
        assert 204 == (await client.delete()).status
        assert 404 == (await client.ask("ping")).status
        assert LEGACY
