"""An open session stays current: changes of lists and resources reach it, also those made while no stream was open."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support.harness import World, echo_backend, open_world
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
    """The changes reported within a second."""
    found: set[tuple[str, str | None]] = set()
    with trio.move_on_after(1):
        async for change in changes:
            found.add((change.kind, change.uri))
    return found


@both_eras
@pytest.mark.parametrize("ttl_ms", [0, 3_600_000])
async def test_a_new_tool_can_be_called_though_the_cached_list_is_fresh(
    autojump_clock: MockClock, era: str, ttl_ms: int
) -> None:
    """An announced change is fetched even while the cached list is fresh by its ttl."""
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
    """How often each list was requested."""
    return [len(backend.received(f"{kind}/list")) for kind in ("tools", "resources", "resources/templates", "prompts")]


@both_eras
@pytest.mark.parametrize("ttl_ms", [0, 3_600_000])
async def test_a_change_before_the_stream_is_open_is_reported(autojump_clock: MockClock, era: str, ttl_ms: int) -> None:
    """Lists are fetched again when the stream opens; a difference is reported without another announcement."""
    backend = changing(era, ttl_ms=ttl_ms)
    backend.fail(STREAM[era], Delay(0.5))
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        assert (["a_echo"], 0) == (names(session), backend.listening)
        backend.add_tool("new")
        backend.notify(TOOLS_CHANGED)  # no stream is open
        await trio.sleep(0.4)
        assert (["a_echo"], 0) == (names(session), backend.listening)
        await trio.sleep(1)
        assert {("tools", None)} == await heard(changes)
        assert (["a_echo", "a_new"], 1) == (names(session), backend.listening)
        assert [2, 2, 2, 0] == listed(backend)


@both_eras
async def test_an_unchanged_list_is_not_reported(autojump_clock: MockClock, era: str) -> None:
    """The refetch after the stream's opening costs one listing, and so does an announcement; neither is a change."""
    backend = changing(era)
    backend.fail(STREAM[era], Delay(0.5))
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        await trio.sleep(200)
        assert set() == await heard(changes)
        assert [2, 2, 2, 0] == listed(backend)
        backend.notify(TOOLS_CHANGED)
        assert set() == await heard(changes)
        assert [3, 2, 2, 0] == listed(backend)


@both_eras
async def test_a_page_that_changes_during_the_listing_is_fetched_again(autojump_clock: MockClock, era: str) -> None:
    """The stream opens between the first and the last page, so the first page may be outdated."""
    backend = changing(era, page_size=1)
    backend.add_tool("zzz")
    backend.fail(STREAM[era], Delay(0.2))
    backend.fail(lambda exchange: "cursor" in exchange.params, Delay(0.5), times=1)

    async def change() -> None:
        await trio.sleep(0.1)
        backend.tools[0]["description"] = "new"
        backend.notify(TOOLS_CHANGED)  # no stream is open

    async with open_world({"a": backend}) as world, trio.open_nursery() as nursery:
        nursery.start_soon(change)
        async with world.open_session() as session:
            assert ["a_echo", "a_zzz"] == names(session)
            await trio.sleep(1.1)
            assert "new" == session.tools[0].raw["description"]


@both_eras
async def test_a_change_during_the_opening_is_in_the_bound_names(autojump_clock: MockClock, era: str) -> None:
    """Names are bound from the lists at the end of the opening."""
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
async def test_a_backend_without_list_changed_is_not_listed_again(
    autojump_clock: MockClock, era: str, declared: str
) -> None:
    """Also if it holds a stream."""
    backend = changing(era, capabilities=NO_CHANGES[declared])
    async with open_world({"a": backend}) as world, world.open_session():
        await trio.sleep(600)
        assert [1, 1, 1, 0] == listed(backend)


@both_eras
async def test_only_lists_with_list_changed_are_fetched_again(autojump_clock: MockClock, era: str) -> None:
    """For the other kinds the backend declared no `listChanged`."""
    backend = changing(era, capabilities={"tools": {"listChanged": True}, "resources": {}})
    async with open_world({"a": backend}) as world, world.open_session():
        await trio.sleep(200)
        assert [2, 1, 1, 0] == listed(backend)


@both_eras
@pytest.mark.parametrize("case", ["refused", "not wanted"])
async def test_without_a_stream_nothing_is_listed_again(autojump_clock: MockClock, era: str, case: str) -> None:
    """Without a stream behind the listing there is no gap to close."""
    backend = changing(era)
    backend.fail(STREAM[era], Status(405))
    listen = case != "not wanted"
    configure = partial(attrs.evolve, listen=listen)
    async with open_world({"a": backend}, configure=configure) as world, world.open_session():
        await trio.sleep(600)
        assert ([1, 1, 1, 0], listen) == (listed(backend), bool(backend.received(STREAM[era])))


async def test_a_cached_list_is_fetched_again_when_the_stream_opens(autojump_clock: MockClock) -> None:
    """The list is fresh by its ttl, but changed while no session listened: the second session opens from the cache, and
    fetches when its stream opens.
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
    """The stream of a restored session opens after the first answer, so lists are fetched again then."""
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
async def test_a_further_stream_causes_no_refetch(autojump_clock: MockClock, era: str) -> None:
    """In the modern era every subscription opens another stream; the first one misses nothing, so lists stay."""
    backend = changing(era)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await trio.sleep(5)
        before = listed(backend)
        await session.subscribe_resource("memo://one")
        await trio.sleep(5)
        assert before == listed(backend)


@both_eras
async def test_a_subscription_in_a_gap_does_not_suppress_the_refetch(autojump_clock: MockClock, era: str) -> None:
    """The stream broke, and a new one opens for a larger set of subscriptions first: lists are still fetched again."""
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
async def test_updates_are_reported_until_unsubscribed(autojump_clock: MockClock, era: str) -> None:
    """Updates of a subscribed resource are reported; after `unsubscribe_resource` no longer."""
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
async def test_a_cancelled_subscriber_ends_no_other_subscription(
    autojump_clock: MockClock, era: str, is_late: bool
) -> None:
    """Two callers subscribe to one resource. The first is cancelled, before or after the second is subscribed."""
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
async def test_a_stream_that_comes_back_reports_what_it_may_have_missed(autojump_clock: MockClock, era: str) -> None:
    """After a gap lists are fetched again, and subscribed resources are reported."""
    backend = changing(era, ttl_ms=3_600_000)
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        await session.subscribe_resource("memo://one")
        await trio.sleep(1)
        backend.end_streams()
        backend.add_tool("new")
        backend.notify(TOOLS_CHANGED)  # no stream is open
        await trio.sleep(1)
        assert {("tools", None), ("resource_updated", "memo://one")} == await heard(changes)
        assert ["a_echo", "a_new"] == names(session)


@both_eras
async def test_a_restarted_backend_is_listened_to_again(autojump_clock: MockClock, era: str) -> None:
    """With its new tools and the old subscriptions."""
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


HOURS = 2 * 3600  # s


@both_eras
async def test_a_backend_that_was_away_for_hours_is_listened_to_again(autojump_clock: MockClock, era: str) -> None:
    """Without a call: an unreachable backend is tried for its stream without end, at the longest delay."""
    backend = changing(era)
    settings = FactorySettings(idle_timeout=math.inf)
    async with open_world({"a": backend}, settings=settings) as world, world.open_session() as session:
        await trio.sleep(1)
        asked = backend.fail(CONNECT, Refuse())
        backend.crash()
        await trio.sleep(HOURS)
        assert HOURS / 72 - 5 <= asked.struck <= HOURS / 48 + 10
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
    """A gateway that answers 5xx for hours counts as unreachable, since there was a stream before."""
    backend = changing(era)
    settings = FactorySettings(idle_timeout=math.inf)
    async with open_world({"a": backend}, settings=settings) as world, world.open_session() as session:
        await trio.sleep(1)
        asked = backend.fail(STREAM[era], Status(status))
        backend.end_streams()
        await trio.sleep(HOURS)
        assert HOURS / 72 - 5 <= asked.struck <= HOURS / 48 + 10
        backend.add_tool("new")
        backend.heal()
        await trio.sleep(80)
        assert (["a_echo", "a_new"], 1) == (names(session), backend.listening)


@both_eras
async def test_a_stream_that_was_never_accepted_is_not_tried_for_ever(autojump_clock: MockClock, era: str) -> None:
    """Also if a gateway refuses it: the gateway may let no stream through."""
    backend = changing(era)
    refused = backend.fail(STREAM[era], Status(503))
    settings = FactorySettings(idle_timeout=math.inf)
    async with open_world({"a": backend}, settings=settings) as world, world.open_session():
        await trio.sleep(5 * 3600)
        assert 1 + MOST_FRUITLESS == refused.struck


@both_eras
async def test_a_backend_that_ends_every_stream_keeps_its_place(autojump_clock: MockClock, era: str) -> None:
    """Its calls work; in a virtual day its stream is opened eleven times, and its lists are fetched no more often."""
    backend = changing(era, stream_seconds=0)
    settings = FactorySettings(idle_timeout=math.inf)
    worlds = {"a": backend, "b": echo_backend(era)}
    async with open_world(worlds, settings=settings) as world, world.open_session() as session:
        for _ in range(24 * 4):
            await trio.sleep(900)
            assert not (await session.call_tool("a_echo")).is_error
        assert () == session.failures
    asked = [exchange for exchange in backend.exchanges if "GET" == exchange.verb or "listen" in exchange.method]
    assert 11 == len(asked)
    assert 12 >= len(backend.received("tools/list"))


async def test_two_sessions_share_fresh_lists(autojump_clock: MockClock) -> None:
    """The second session of a factory opens without a list request."""
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
