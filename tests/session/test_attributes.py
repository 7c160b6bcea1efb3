"""The attributes of a session: strings of the application's own in the metadata."""

from __future__ import annotations

from typing import Any

import pytest
from support.harness import ALICE, NO_RETRIES, echo_backend, open_world
from support.instances import away, instances
from support.opened import MADE, open_by
from trio.testing import MockClock

from trio_vmcp import SessionNotFound, metadata_from_json, metadata_to_json
from trio_vmcp.metadata import MAX_ATTRIBUTES_BYTES

EVERY_MAKE = pytest.mark.parametrize("way", MADE)
FULL = {"ü" * 10: "€" * ((MAX_ATTRIBUTES_BYTES - 20) // 3) + "xx"}  # 2 and 3 bytes each
BAD: dict[str, Any] = {
    "a list": [("a", "b")],
    "a str": "a=b",
    "a value that is no str": {"a": 1},
    "None as a value": {"a": None},
    "a key that is no str": {1: "a"},
    "bytes": {"a": b"b"},
    "nested": {"a": {"b": "c"}},
    "too large": {**FULL, "x": ""},
    "many": {str(number): "x" * 10 for number in range(2000)},
}


def test_the_largest_attributes_are_full() -> None:
    """The limit counts bytes of UTF-8, of keys and values."""
    assert MAX_ATTRIBUTES_BYTES == sum(len(text.encode()) for item in FULL.items() for text in item)


@EVERY_MAKE
@pytest.mark.parametrize("given", [{}, {"user": "alice", "": ""}, FULL], ids=["none", "some", "full"])
async def test_attributes_are_in_the_metadata(way: str, given: dict[str, str], autojump_clock: MockClock) -> None:
    """From the beginning, in the row as well; read-only, and a copy."""
    async with open_world({"a": echo_backend()}) as world:
        passed = dict(given)
        async with open_by(way, world.factory, world.configured, attributes=passed) as session:
            passed["later"] = "x"
            assert given == session.metadata.attributes
            assert session.metadata == await world.storage.load(session.id)
            with pytest.raises(TypeError):
                session.metadata.attributes["x"] = "y"  # type: ignore[index]  # that is the test
            assert session.metadata == metadata_from_json(metadata_to_json(session.metadata))


async def test_attributes_outlive_their_instance(autojump_clock: MockClock) -> None:
    """They are there again after a restore elsewhere, and stay when that instance writes the row."""
    async with instances(2) as world:
        session = await world.factories[0].make_session([], session_id="one", attributes={"tenant": "t"})
        await session.suspend()
        restored = await world.restore(1)
        assert {"tenant": "t"} == restored.metadata.attributes
        await restored.suspend()
        row = await world.row()
        assert row is not None
        assert {"tenant": "t"} == row.attributes


@EVERY_MAKE
@pytest.mark.parametrize("given", BAD)
async def test_other_attributes_are_refused(way: str, given: str, autojump_clock: MockClock) -> None:
    """A ValueError before storage or backend is asked anything. It does not show what they hold."""
    backend = echo_backend()
    async with open_world({"a": backend}, settings=NO_RETRIES) as world:
        world.storage.before["load"] = away
        with pytest.raises(ValueError, match="attributes") as caught:
            async with open_by(way, world.factory, world.configured, session_id="s", attributes=BAD[given]):
                raise AssertionError
        assert "€" not in str(caught.value)
        assert [] == backend.exchanges
        world.storage.before.clear()
        with pytest.raises(SessionNotFound):
            await world.storage.load("s")
        await (await world.make_session(session_id="s", identity=ALICE)).aclose()
