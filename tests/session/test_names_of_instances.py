"""Names that are bound on one instance of a session are bound on the others."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import pytest
import trio
from support.instances import TTL, Instances, instances
from trio.testing import MockClock

from trio_vmcp import Bare, ConflictResolution, Priority, Session, ToolNotFound

EVERY_BINDING_STRATEGY = pytest.mark.parametrize("strategy", [Bare(), Priority("c", "b")], ids=["bare", "priority"])


async def copies_without_backends(world: Instances) -> tuple[Session, Session]:
    first = await world.factories[0].make_session([], session_id="one")
    return first, await world.factories[1].restore_session("one", [])


async def add(session: Session, world: Instances, backend_id: str) -> None:
    await session.add_backend(attrs.evolve(world.configured[0], id=backend_id))


def shown(session: Session) -> list[tuple[str, str]]:
    return [(tool.name, tool.backend_id) for tool in session.tools]


async def bound(world: Instances) -> Mapping[str, str]:
    row = await world.row()
    assert row is not None
    return row.bindings["tools"]


@EVERY_BINDING_STRATEGY
@pytest.mark.parametrize("is_listed_by", ["both", "one"])
async def test_a_name_that_another_instance_has_bound_is_not_free(
    strategy: ConflictResolution, is_listed_by: str, autojump_clock: MockClock
) -> None:
    """A backend that is added later on the other instance does not get it there either: a call that is meant for one
    backend would be executed by another, by the instance that it comes to.
    """
    async with instances(2, conflict_resolution=strategy) as world:
        first, second = await copies_without_backends(world)
        await add(first, world, "b")
        await trio.sleep(TTL / 3 + 1)  # the other instance reads the row
        await add(second, world, "c")
        assert [] == shown(second)
        with pytest.raises(ToolNotFound):
            await second.call_tool("echo")
        if is_listed_by == "both":
            await add(second, world, "b")
            assert [("echo", "b")] == shown(second)
        await trio.sleep(1)
        assert {"echo": "b"} == await bound(world)
        assert [("echo", "b")] == shown(first)


@EVERY_BINDING_STRATEGY
async def test_names_that_are_bound_here_stay(strategy: ConflictResolution, autojump_clock: MockClock) -> None:
    """Both instances bind names of their own; each learns of the other's, and loses none."""
    async with instances(2, conflict_resolution=strategy) as world:
        first, second = await copies_without_backends(world)
        world.backend.add_tool("more")
        await add(second, world, "b")
        await trio.sleep(TTL / 3 + 1)
        await add(first, world, "c")
        await trio.sleep(TTL / 3 + 1)
        await add(second, world, "d")
        assert {"echo": "b", "more": "b"} == await bound(world)
        assert [("echo", "b"), ("more", "b")] == shown(second)
        assert [] == shown(first)
