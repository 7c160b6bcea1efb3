"""A session that is open stays true: what a backend changes, says and forgets reaches whoever holds the session."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from harness import World, echo_backend, open_world
from trio.testing import MockClock

from trio_vmcp import FactorySettings, Session, SessionChange
from trio_vmcp.testing import CONNECT, Refuse, ScriptedBackend

TOOLS_CHANGED, UPDATED = "notifications/tools/list_changed", "notifications/resources/updated"

both_eras = pytest.mark.parametrize("era", ["legacy", "modern"])


def changing(era: str, **more: Any) -> ScriptedBackend:
    backend = echo_backend(era, listens=True, **more)
    backend.add_resource("memo://one", "text")
    return backend


def names(session: Session) -> list[str]:
    return [tool.name for tool in session.tools]


async def heard(changes: trio.MemoryReceiveChannel[SessionChange]) -> set[tuple[str, str | None]]:
    """What there is to hear within a second."""
    found: set[tuple[str, str | None]] = set()
    with trio.move_on_after(1):
        async for change in changes:
            found.add((change.kind, change.uri))
    return found


@both_eras
@pytest.mark.parametrize("ttl_ms", [0, 3_600_000])
async def test_a_tool_that_is_new_can_be_called(autojump_clock: MockClock, era: str, ttl_ms: int) -> None:
    """However fresh the list was called that did not have it."""
    backend = changing(era, ttl_ms=ttl_ms)
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        await trio.sleep(1)
        backend.add_tool("new")
        backend.notify(TOOLS_CHANGED)
        assert {("tools", None)} == await heard(changes)
        assert ["a_echo", "a_new"] == names(session)
        assert not (await session.call_tool("a_new")).is_error


@both_eras
async def test_a_resource_that_was_subscribed_to_is_told_of(autojump_clock: MockClock, era: str) -> None:
    """And no more once it was unsubscribed from."""
    backend = changing(era)
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        await session.subscribe_resource("memo://one")
        await trio.sleep(1)
        backend.notify(UPDATED, {"uri": "memo://one"})
        assert {("resource_updated", "memo://one")} == await heard(changes)
        await session.unsubscribe_resource("memo://one")
        backend.notify(UPDATED, {"uri": "memo://one"})
        assert set() == await heard(changes)


@both_eras
async def test_what_changed_while_nobody_listened_is_found_out(autojump_clock: MockClock, era: str) -> None:
    """A stream that broke and came back had a gap: lists are fetched, and resources may have changed."""
    backend = changing(era, ttl_ms=3_600_000)
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        await session.subscribe_resource("memo://one")
        await trio.sleep(1)
        backend.end_streams()
        backend.add_tool("new")
        backend.notify(TOOLS_CHANGED)  # to nobody
        await trio.sleep(1)
        assert {("tools", None), ("resources", None), ("resource_updated", "memo://one")} <= await heard(changes)
        assert ["a_echo", "a_new"] == names(session)


@both_eras
async def test_a_restarted_backend_is_listened_to_again(autojump_clock: MockClock, era: str) -> None:
    """With its tools of now, and the subscriptions of then."""
    backend = changing(era, ttl_ms=3_600_000)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await session.subscribe_resource("memo://one")
        await trio.sleep(1)
        backend.crash()
        await trio.sleep(3)
        backend.add_tool("new")
        backend.restart()
        await trio.sleep(60)
        assert (["a_echo", "a_new"], 1) == (names(session), backend.listening)
        async with session.changes() as changes:
            backend.notify(UPDATED, {"uri": "memo://one"})
            assert ("resource_updated", "memo://one") in await heard(changes)


@both_eras
async def test_a_backend_that_was_away_for_hours_is_listened_to_again(autojump_clock: MockClock, era: str) -> None:
    """Without a call, at the longest delay: who cannot be reached is not given up, and asked no more often for that."""
    backend = changing(era)
    settings = FactorySettings(idle_timeout=math.inf)
    async with open_world({"a": backend}, settings=settings) as world, world.open_session() as session:
        await trio.sleep(1)
        asked = backend.fail(CONNECT, Refuse())
        backend.crash()
        await trio.sleep(5 * 3600)
        assert 5 * 3600 / 72 - 5 <= asked.struck <= 5 * 3600 / 48 + 10
        backend.add_tool("new")
        backend.heal()
        backend.restart()
        await trio.sleep(80)
        assert (["a_echo", "a_new"], 1, ()) == (names(session), backend.listening, session.failures)


@both_eras
async def test_a_backend_that_ends_every_stream_keeps_its_place(autojump_clock: MockClock, era: str) -> None:
    """Its calls work; over a virtual day it is asked eleven times, and its lists no more often."""
    backend = changing(era, stream_seconds=0)
    async with open_world({"a": backend, "b": echo_backend(era)}) as world, world.open_session() as session:
        for _ in range(24 * 60):
            await trio.sleep(60)
            assert not (await session.call_tool("a_echo")).is_error
        assert () == session.failures
    asked = [exchange for exchange in backend.exchanges if "GET" == exchange.verb or "listen" in exchange.method]
    assert 11 == len(asked)
    assert 12 >= len(backend.received("tools/list"))


async def test_two_sessions_share_what_is_fresh(autojump_clock: MockClock) -> None:
    """The second one of a factory opens without a question."""
    backend = echo_backend("modern", ttl_ms=60_000)

    async def questions(world: World) -> int:
        before = len(backend.exchanges)
        async with world.open_session() as session:
            assert ["a_echo"] == names(session)
        return len(backend.exchanges) - before

    async with open_world({"a": backend}) as world:
        assert [2, 0] == [await questions(world), await questions(world)]
        await trio.sleep(60)
        assert 2 == await questions(world)
