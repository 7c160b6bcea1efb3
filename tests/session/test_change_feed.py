"""`session.changes()`: reports changes, delays no publisher, and ends with the session."""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from support.harness import echo_backend, library_tasks, open_world
from support.plain_connector import PlainConnector, plain_backends
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import FactorySettings, SessionChange, open_session_factory
from trio_vmcp._session.change_feed import MOST_PENDING, ChangeFeed
from trio_vmcp.testing import CONNECT, Delay

JOINED = [SessionChange(kind, "a") for kind in ("backend", "tools", "resources", "prompts")]


# Through a session


async def test_a_late_joiner_is_reported(autojump_clock: MockClock) -> None:
    """The backend and the lists that it changed, once they are visible."""
    backends = {"a": echo_backend()}
    backends["a"].fail(CONNECT, Delay(8))
    async with open_world(backends, settings=FactorySettings(session_init_timeout=5)) as world:
        async with world.open_session() as session, session.changes() as changes:
            first = await changes.receive()
            assert 8.0 == trio.current_time()
            assert ["a_echo"] == [tool.name for tool in session.tools]
            assert JOINED == [first, *[await changes.receive() for _ in range(3)]]
            with pytest.raises(trio.WouldBlock):
                changes.receive_nowait()


async def test_changes_are_reported_from_the_subscription_on(autojump_clock: MockClock) -> None:
    """The backends of the opening are no changes."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        async with session.changes() as changes:
            await trio.sleep(1)
            with pytest.raises(trio.WouldBlock):
                changes.receive_nowait()


async def test_changes_end_with_the_session(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """EndOfChannel for a receiver that waits, for a subscriber during the drain, and for one after the close."""
    async with open_world({"a": echo_backend()}) as world:
        session = await world.make_session()
        async with session.changes() as one, session.as_caller(None).changes() as other:
            nursery.start_soon(session.aclose)
            assert [[], []] == [[change async for change in one], [change async for change in other]]
        async with session.changes() as late:
            assert [] == [change async for change in late]
        await wait_all_tasks_blocked()
        assert [] == library_tasks()


async def test_every_subscriber_gets_every_change(autojump_clock: MockClock) -> None:
    """One that has left gets none, and leaves no task behind."""
    connector = PlainConnector(on_connect={"b0": partial(trio.sleep, 8)})
    limits = FactorySettings(session_init_timeout=5)
    async with open_session_factory(connector=connector, settings=limits) as factory:
        async with factory.open_session(plain_backends(1)) as session:
            before = library_tasks()
            async with session.changes():
                assert len(before) + 1 == len(library_tasks())
            await wait_all_tasks_blocked()
            assert before == library_tasks()
            async with session.changes() as one, session.changes() as other:
                assert await one.receive() == await other.receive() == SessionChange("backend", "b0")


async def test_a_subscriber_may_close_its_channel(autojump_clock: MockClock) -> None:
    """Closing the channel early costs the subscriber its changes, and the session nothing."""
    backends = {"a": echo_backend()}
    backends["a"].fail(CONNECT, Delay(8))
    async with open_world(backends, settings=FactorySettings(session_init_timeout=5)) as world:
        async with world.open_session() as session, session.changes() as closed, session.changes() as other:
            await closed.aclose()
            assert JOINED == [await other.receive() for _ in range(4)]
            await session.call_tool("a_echo")


async def test_leaving_a_loop_over_changes_is_safe(autojump_clock: MockClock) -> None:
    """`break` in mid-iteration leaves nothing running; so does an error."""
    backends = {"a": echo_backend()}
    backends["a"].fail(CONNECT, Delay(8))
    async with open_world(backends, settings=FactorySettings(session_init_timeout=5)) as world:
        async with world.open_session() as session:
            async with session.changes() as changes:
                async for _ in changes:
                    break
            await wait_all_tasks_blocked()
            assert [] == [name for name in library_tasks() if "feed" in name]


# The feed alone


async def test_a_slow_subscriber_gets_each_change_once(autojump_clock: MockClock) -> None:
    """A change that is pending is not queued again; a change after its delivery is."""
    feed = ChangeFeed()
    tools, prompts = SessionChange("tools", "a"), SessionChange("prompts", "a")
    async with trio.open_nursery() as nursery, feed.subscribe(nursery) as changes:
        for change in (tools, prompts, tools, tools, prompts):
            feed.publish(change)
        assert [tools, prompts] == [await changes.receive(), await changes.receive()]
        feed.publish(tools)
        assert tools == await changes.receive()


async def test_a_subscriber_far_behind_gets_a_summary(autojump_clock: MockClock) -> None:
    """Beyond the bound, "the resources of this backend" stands for all of its URIs."""
    feed = ChangeFeed()
    async with trio.open_nursery() as nursery, feed.subscribe(nursery) as changes:
        for number in range(10 * MOST_PENDING):
            feed.publish(SessionChange("resource_updated", "a", f"memo://{number}"))
        received: list[SessionChange] = []
        with trio.move_on_after(1):
            while True:
                received.append(await changes.receive())
        assert MOST_PENDING + 1 == len(received)
        assert SessionChange("resources", "a") == received[-1]
        nursery.cancel_scope.cancel()


async def test_a_flood_of_one_backend_hides_no_change_of_another(autojump_clock: MockClock) -> None:
    """At the bound, resource updates are summarised; lists and backends are still reported one by one."""
    feed = ChangeFeed()
    others = [SessionChange(kind, backend_id) for kind in ("tools", "prompts", "backend") for backend_id in "bc"]
    async with trio.open_nursery() as nursery, feed.subscribe(nursery) as changes:
        for number in range(MOST_PENDING):
            feed.publish(SessionChange("resource_updated", "a", f"memo://{number}"))
        for change in others:
            feed.publish(change)
        feed.publish(SessionChange("resource_updated", "b", "memo://b"))
        received = [await changes.receive() for _ in range(MOST_PENDING + len(others) + 1)]
        assert [*others, SessionChange("resources", "b")] == received[MOST_PENDING:]
        nursery.cancel_scope.cancel()


async def test_a_closed_subscription_keeps_nothing(autojump_clock: MockClock) -> None:
    """A channel that is closed holds no change."""
    feed, change = ChangeFeed(), SessionChange("tools", "a")
    async with trio.open_nursery() as nursery, feed.subscribe(nursery):
        pass
    before = sys.getrefcount(change)
    feed.publish(change)
    assert before == sys.getrefcount(change)


@settings(max_examples=40)
@given(st.lists(st.one_of(st.integers(0, 3), st.just("receive")), max_size=30))
def test_nothing_is_lost_and_nothing_made_up(script: list[int | str]) -> None:
    """In every order of publishing and receiving: each published change is received afterwards, and no other."""

    async def replay() -> None:
        feed = ChangeFeed()
        published: list[SessionChange] = []
        unheard: set[SessionChange] = set()
        received: list[SessionChange] = []

        def hear(change: SessionChange) -> None:
            received.append(change)
            unheard.discard(change)

        async with trio.open_nursery() as nursery, feed.subscribe(nursery) as changes:
            for step in script:
                if isinstance(step, int):
                    published.append(SessionChange("tools", f"b{step}"))
                    unheard.add(published[-1])
                    feed.publish(published[-1])
                elif unheard:
                    hear(await changes.receive())
            with trio.move_on_after(1):
                async for change in changes:
                    hear(change)
            nursery.cancel_scope.cancel()
        assert set() == unheard
        assert Counter(received) <= Counter(published)

    trio.run(replay, clock=MockClock(autojump_threshold=0))
