"""`session.changes()`: tells what changed, waits for nobody, and ends with the session."""

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
from trio_vmcp._session.changes import MOST_PENDING, ChangeFeed
from trio_vmcp.testing import CONNECT, Delay

JOINED = [SessionChange(kind, "a") for kind in ("backend", "tools", "resources", "prompts")]


# Through a session


async def test_a_late_joiner_is_told(autojump_clock: MockClock) -> None:
    """The backend and the lists that it changed, once they can be seen."""
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


async def test_what_was_there_at_the_opening_is_no_change(autojump_clock: MockClock) -> None:
    """Changes are told from the subscription on."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        async with session.changes() as changes:
            await trio.sleep(1)
            with pytest.raises(trio.WouldBlock):
                changes.receive_nowait()


async def test_changes_end_with_the_session(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """EndOfChannel, for whoever waits, for whoever subscribes while it drains, and for whoever comes afterwards."""
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
    """Coalescing: what is pending already is not told twice; what came after it was told is new."""
    feed = ChangeFeed()
    tools, prompts = SessionChange("tools", "a"), SessionChange("prompts", "a")
    async with trio.open_nursery() as nursery, feed.subscribe(nursery) as changes:
        for change in (tools, prompts, tools, tools, prompts):
            feed.publish(change)
        assert [tools, prompts] == [await changes.receive(), await changes.receive()]
        feed.publish(tools)
        assert tools == await changes.receive()


async def test_a_subscriber_that_is_far_behind_is_told_in_short(autojump_clock: MockClock) -> None:
    """Bounded: beyond the limit, "the resources of this backend" stands for all of its URIs."""
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
    """At the bound, updates of resources are told in short; lists and backends are told as what they are."""
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


async def test_nothing_is_kept_for_who_has_left(autojump_clock: MockClock) -> None:
    """A subscriber that is gone holds no change."""
    feed, change = ChangeFeed(), SessionChange("tools", "a")
    async with trio.open_nursery() as nursery, feed.subscribe(nursery):
        pass
    before = sys.getrefcount(change)
    feed.publish(change)
    assert before == sys.getrefcount(change)


@settings(max_examples=40)
@given(st.lists(st.one_of(st.integers(0, 3), st.just("receive")), max_size=30))
def test_nothing_is_lost_and_nothing_made_up(script: list[int | str]) -> None:
    """However publishing and receiving interleave: what was published is received after that, and no more often."""

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
