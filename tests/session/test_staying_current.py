"""A session that is open stays true: what a backend changes, says and forgets reaches whoever holds the session."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support.harness import World, drained, echo_backend, open_world
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON, FactorySettings, Session, SessionChange
from trio_vmcp._client.listening import MOST_FRUITLESS
from trio_vmcp.testing import CONNECT, Delay, Refuse, ScriptedBackend, Status

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


# Between the first listing and the stream


STREAM = {"legacy": "GET", "modern": "subscriptions/listen"}


def listed(backend: ScriptedBackend) -> list[int]:
    """How often each list was asked for."""
    return [len(backend.received(f"{kind}/list")) for kind in ("tools", "resources", "resources/templates", "prompts")]


@both_eras
@pytest.mark.parametrize("ttl_ms", [0, 3_600_000])
async def test_what_changes_before_the_stream_is_open_is_seen(autojump_clock: MockClock, era: str, ttl_ms: int) -> None:
    """Without a further change, and told as one; what is as it was is not told."""
    backend = changing(era, ttl_ms=ttl_ms)
    backend.fail(STREAM[era], Delay(0.5))
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        assert (["a_echo"], 0) == (names(session), backend.listening)
        backend.add_tool("new")
        backend.notify(TOOLS_CHANGED)  # to nobody
        await trio.sleep(0.4)
        assert (["a_echo"], 0) == (names(session), backend.listening)
        await trio.sleep(1)
        assert {("tools", None)} == await heard(changes)
        assert (["a_echo", "a_new"], 1) == (names(session), backend.listening)
        assert [2, 2, 2, 0] == listed(backend)


@both_eras
async def test_what_is_as_it_was_is_not_told(autojump_clock: MockClock, era: str) -> None:
    """It costs one more listing, and then nothing; what the backend itself says has changed is told as ever."""
    backend = changing(era)
    backend.fail(STREAM[era], Delay(0.5))
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        await trio.sleep(600)
        assert set() == await heard(changes)
        assert [2, 2, 2, 0] == listed(backend)
        backend.notify(TOOLS_CHANGED)
        assert {("tools", None)} == await heard(changes)


@both_eras
async def test_what_the_backend_says_counts_beside_a_doubt(autojump_clock: MockClock, era: str) -> None:
    """One listing is for both; what it was said of is told, whatever the list says, and what was in doubt is not."""
    backend = changing(era)
    backend.fail(STREAM[era], Delay(0.2))
    backend.fail("tools/list", Delay(0.5), times=1)

    async def cry() -> None:
        await trio.sleep(0.3)
        assert 1 == backend.listening
        backend.notify("notifications/resources/list_changed")

    async with open_world({"b": echo_backend(era), "a": backend}) as world, trio.open_nursery() as nursery:
        async with world.factory.open_session(world.configured[:1]) as session, session.changes() as changes:
            nursery.start_soon(cry)
            await session.add_backend(world.configured[1])
            joined = await drained(changes, 0.1)
            assert {"backend", "tools", "resources", "prompts"} == {change.kind for change in joined}
            assert {("resources", None)} == await heard(changes)


@both_eras
async def test_a_page_that_changes_behind_us_is_seen(autojump_clock: MockClock, era: str) -> None:
    """The stream opens between the first page of a list and the last: what the first one said may be old."""
    backend = changing(era, page_size=1)
    backend.add_tool("zzz")
    backend.fail(STREAM[era], Delay(0.2))
    backend.fail(lambda exchange: "cursor" in exchange.params, Delay(0.5), times=1)

    async def change() -> None:
        await trio.sleep(0.1)
        backend.tools[0]["description"] = "new"
        backend.notify(TOOLS_CHANGED)  # to nobody

    async with open_world({"a": backend}) as world, trio.open_nursery() as nursery:
        nursery.start_soon(change)
        async with world.open_session() as session:
            assert ["a_echo", "a_zzz"] == names(session)
            await trio.sleep(1.1)
            assert "new" == session.tools[0].raw["description"]


@both_eras
async def test_a_change_while_others_still_connect_is_seen(autojump_clock: MockClock, era: str) -> None:
    """The names that are bound when the opening ends are those of then."""
    backend, late = changing(era), echo_backend(era)
    backend.fail(STREAM[era], Delay(0.5))
    late.fail("tools/list", Delay(5))

    async def change() -> None:
        await trio.sleep(0.3)
        backend.add_tool("new")

    async with open_world({"a": backend, "b": late}) as world, trio.open_nursery() as nursery:
        nursery.start_soon(change)
        async with world.open_session() as session:
            assert ["a_echo", "a_new", "b_echo"] == names(session)


NO_CHANGES: dict[str, JSON] = {
    "nothing": {"tools": {}, "resources": {}},
    "only updates": {"tools": {}, "resources": {"subscribe": True}},
    "only logs": {"tools": {}, "resources": {}, "logging": {}},
}


@both_eras
@pytest.mark.parametrize("declared", NO_CHANGES)
async def test_who_declares_no_changes_is_asked_nothing_more(
    autojump_clock: MockClock, era: str, declared: str
) -> None:
    """Whatever it has a stream for."""
    backend = changing(era, capabilities=NO_CHANGES[declared])
    async with open_world({"a": backend}) as world, world.open_session():
        await trio.sleep(600)
        assert [1, 1, 1, 0] == listed(backend)


@both_eras
async def test_only_what_is_told_of_is_listed_again(autojump_clock: MockClock, era: str) -> None:
    """The other lists have nobody who would say when they change, now or later."""
    backend = changing(era, capabilities={"tools": {"listChanged": True}, "resources": {}})
    async with open_world({"a": backend}) as world, world.open_session():
        await trio.sleep(600)
        assert [2, 1, 1, 0] == listed(backend)


@both_eras
@pytest.mark.parametrize("case", ["refused", "not wanted"])
async def test_without_a_stream_nothing_is_listed_again(autojump_clock: MockClock, era: str, case: str) -> None:
    """There is no gap where there is no stream behind it."""
    backend = changing(era)
    backend.fail(STREAM[era], Status(405))
    listen = case != "not wanted"
    configure = partial(attrs.evolve, listen=listen)
    async with open_world({"a": backend}, configure=configure) as world, world.open_session():
        await trio.sleep(600)
        assert ([1, 1, 1, 0], listen) == (listed(backend), bool(backend.received(STREAM[era])))


async def test_what_one_session_listed_may_be_old_for_the_next(autojump_clock: MockClock) -> None:
    """It is fresh by the backend's word, and changed while neither listened; the second opens without asking all the
    same, and looks when it listens.
    """
    backend = changing("modern", ttl_ms=3_600_000, cache_scope="public")
    async with open_world({"a": backend}) as world:
        async with world.open_session():
            await trio.sleep(5)
        before = listed(backend)
        backend.add_tool("new")
        async with world.open_session() as session:
            assert (["a_echo"], before) == (names(session), listed(backend))
            await trio.sleep(2)
            assert ["a_echo", "a_new"] == names(session)


@both_eras
async def test_a_restored_session_has_no_gap_either(autojump_clock: MockClock, era: str) -> None:
    """Its stream opens behind the answer that shows that the backend's session lives."""
    backend = changing(era)
    async with open_world({"a": backend}) as world:
        session = await world.make_session()
        await session.suspend()
        backend.fail(STREAM[era], Delay(0.5))
        restored = await world.restore_session(session.id)
        backend.add_tool("new")
        await trio.sleep(2)
        assert (["a_echo", "a_new"], 1) == (names(restored), backend.listening)
        await restored.aclose()


@both_eras
async def test_what_was_listed_by_an_open_stream_is_not_in_doubt(autojump_clock: MockClock, era: str) -> None:
    """In the modern era every subscription opens another stream, and misses nothing: the lists stay as they are."""
    backend = changing(era)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await trio.sleep(5)
        before = listed(backend)
        await session.subscribe_resource("memo://one")
        await trio.sleep(5)
        assert before == listed(backend)


@both_eras
async def test_a_subscription_made_in_a_gap_does_not_hide_it(autojump_clock: MockClock, era: str) -> None:
    """The stream broke, and before it is back another one is opened for the new set: what was missed is found out."""
    backend = changing(era)
    backend.add_resource("memo://two", "text")
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        await session.subscribe_resource("memo://one")
        await trio.sleep(5)
        backend.end_streams()
        backend.add_tool("new")
        await wait_all_tasks_blocked()
        assert 0 == backend.listening
        await session.subscribe_resource("memo://two")
        await trio.sleep(2)
        assert {("tools", None), ("resource_updated", "memo://one")} <= await heard(changes)
        assert ["a_echo", "a_new"] == names(session)


# Later


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
@pytest.mark.parametrize("is_late", [False, True])
async def test_who_gives_up_a_subscription_takes_it_from_nobody(
    autojump_clock: MockClock, era: str, is_late: bool
) -> None:
    """Two ask for the same. The first leaves, before or after the second has it."""
    backend = changing(era)
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        await trio.sleep(1)
        backend.fail("resources/subscribe" if era == "legacy" else "subscriptions/listen", Delay(5), times=2 - is_late)

        async def ask(leaves_after: float) -> None:
            with trio.move_on_after(leaves_after):
                await session.subscribe_resource("memo://one")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 3)
            await trio.sleep(1)
            nursery.start_soon(ask, math.inf)
        await heard(changes)
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
@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_backend_whose_gateway_answers_for_it_is_listened_to_again(
    autojump_clock: MockClock, era: str, status: int
) -> None:
    """For hours, as if it could not be reached: it had a stream before."""
    backend = changing(era)
    settings = FactorySettings(idle_timeout=math.inf)
    async with open_world({"a": backend}, settings=settings) as world, world.open_session() as session:
        await trio.sleep(1)
        asked = backend.fail(STREAM[era], Status(status))
        backend.end_streams()
        await trio.sleep(5 * 3600)
        assert 5 * 3600 / 72 - 5 <= asked.struck <= 5 * 3600 / 48 + 10
        backend.add_tool("new")
        backend.heal()
        await trio.sleep(80)
        assert (["a_echo", "a_new"], 1) == (names(session), backend.listening)


@both_eras
async def test_a_stream_that_never_was_is_given_up(autojump_clock: MockClock, era: str) -> None:
    """Though it is a gateway that says so: perhaps it lets no stream through."""
    backend = changing(era)
    refused = backend.fail(STREAM[era], Status(503))
    settings = FactorySettings(idle_timeout=math.inf)
    async with open_world({"a": backend}, settings=settings) as world, world.open_session():
        await trio.sleep(5 * 3600)
        assert 1 + MOST_FRUITLESS == refused.struck


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
