"""`list_changed`: the lists of a live session stay current, and a backend that announces without end costs little."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
from support.harness import announcing_backend, drained, echo_backend, open_world
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Bare,
    FactorySettings,
    NameConflict,
    Prefix,
    Priority,
    Session,
    SessionChange,
    ToolNotFound,
)
from trio_vmcp._session.directory import MOST_BOUND_BYTES
from trio_vmcp.testing import CallContext, Delay, Drip, Hang, Raw, ScriptedBackend, Status

KINDS = ("tools", "resources", "prompts")
METHODS = {
    "tools": ["tools/list"],
    "resources": ["resources/list", "resources/templates/list"],
    "prompts": ["prompts/list"],
}


async def announce(session: Session, *kinds: str, backend_id: str = "a") -> None:
    await session.call_tool(f"{backend_id}_announce", {"kinds": list(kinds)})


def listings(backend: ScriptedBackend) -> list[tuple[float, str]]:
    """Each list request with the time at which it arrived."""
    return [(e.received_at, e.method) for e in backend.exchanges if e.method.endswith("/list")]


def names(session: Session) -> list[str]:
    """A function, since mypy takes a property that was read before for unchanged."""
    return [tool.name for tool in session.tools]


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_list_that_changed_is_fetched_again_at_once(kind: str, era: str, autojump_clock: MockClock) -> None:
    """That kind alone (resources with their templates); the session has the new list and reports one change."""
    backend = announcing_backend(era)
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        before = len(listings(backend))
        backend.add_tool("new")
        backend.add_resource("file:///new")
        backend.add_prompt("new")
        await announce(session, kind)
        await wait_all_tasks_blocked()
        assert [(0.0, method) for method in METHODS[kind]] == listings(backend)[before:]
        sizes = {"tools": len(session.tools), "resources": len(session.resources), "prompts": len(session.prompts)}
        before_it = {"tools": 2, "resources": 1, "prompts": 1}
        assert before_it | {kind: before_it[kind] + 1} == sizes
        assert [SessionChange(kind, "a")] == await drained(changes)  # type: ignore[arg-type]  # parametrized: plain str


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_an_announced_change_is_reported_once_when_the_stream_opens_behind_it(
    era: str, autojump_clock: MockClock
) -> None:
    """A stream that opens makes the client list everything again: one refetch serves both, with one change reported."""
    backend = announcing_backend(era)
    backend.listens = True
    backend.fail("GET" if era == "legacy" else "subscriptions/listen", Delay(0.5))
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        backend.add_prompt("new")
        await announce(session, "prompts")
        backend.add_tool("new")
        await announce(session, "tools")
        assert [SessionChange("prompts", "a")] == await drained(changes, 0.4)
        before = len(listings(backend))
        assert [SessionChange("tools", "a")] == await drained(changes, 2)
        assert {METHODS[kind][0] for kind in KINDS} <= {method for _, method in listings(backend)[before:]}


def reverse(backend: ScriptedBackend) -> None:
    backend.tools.reverse()


def retype(backend: ScriptedBackend) -> None:
    backend.tools[0]["default"] = True


@pytest.mark.parametrize("change", [reverse, retype])
async def test_an_announced_list_is_a_change_if_it_differs(
    change: Callable[[ScriptedBackend], None], autojump_clock: MockClock
) -> None:
    """The same list again is reported to no subscriber, also over more pages. Another order differs, and so does true
    instead of 1.
    """
    backend = announcing_backend()
    backend.tools[0]["default"] = 1
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        before = session.tools
        backend.page_size = 1
        await announce(session, *KINDS)
        assert [] == await drained(changes, 2)
        assert before is session.tools
        change(backend)
        await announce(session, *KINDS)
        assert [SessionChange("tools", "a")] == await drained(changes, 2)
        assert [tool["name"] for tool in backend.tools] == [tool.backend_name for tool in session.tools]
        assert backend.tools[0].get("default") is session.tools[0].raw.get("default")


async def test_kinds_announced_during_a_failing_refetch_join_its_retry(autojump_clock: MockClock) -> None:
    """A second later one refetch lists the failed kind and the new one, and reports both."""
    backend = announcing_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        backend.add_tool("new")
        backend.add_resource("memo://new")
        backend.latency = 0.2
        backend.add_tool("new")
        backend.add_resource("file:///new")
        backend.fail("tools/list", Status(500), times=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(announce, session, "tools")
            await trio.sleep(0.1)
            nursery.start_soon(announce, session, "resources")  # arrives at 0.3 s, before HTTP 500 does
        await trio.sleep(2)
        assert [SessionChange(kind, "a") for kind in ("tools", "resources")] == await drained(changes)


def add_tool(backend: ScriptedBackend) -> None:
    backend.add_tool(f"new{len(backend.tools)}")


def change_nothing(backend: ScriptedBackend) -> None:
    """The backend announces what it had announced before."""


@pytest.mark.parametrize(
    ("change", "expected"),
    [(add_tool, list(range(30))), (change_nothing, [0, 1, 3, 7, 15, 31, 63, 123, 183])],
)
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_storm_slows_down_while_it_brings_nothing_new(
    change: Callable[[ScriptedBackend], None], expected: list[float], era: str, autojump_clock: MockClock
) -> None:
    """The first refetch begins at once. The next one begins a second later, and after lists that are as before the
    interval doubles, to a minute, however many announcements come.
    """
    backend = announcing_backend(era)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        before = len(listings(backend))
        for _ in range(150):
            change(backend)
            await announce(session, *["tools"] * 3)
            await trio.sleep(1)
        await trio.sleep(60)
        times = [time for time, _ in listings(backend)[before:]]
        assert expected == pytest.approx(times[: len(expected)], abs=0.05)
        assert change is add_tool or len(expected) == len(times)


async def test_a_changed_list_sets_the_pace_of_refetches_back(autojump_clock: MockClock) -> None:
    """After a storm that brought nothing new a change is seen within the interval, and the next one within a second."""
    backend = announcing_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        for _ in range(40):  # refetches after 0, 1, 3, 7, 15, 31 s; the next one is due after 63 s
            await announce(session, "tools")
            await trio.sleep(1)
        add_tool(backend)
        assert 2 == len(names(session))
        await trio.sleep(24)
        assert 3 == len(names(session))
        add_tool(backend)
        await announce(session, "tools")
        await trio.sleep(1)
        assert 4 == len(names(session))


async def test_refetches_of_one_backend_do_not_overlap(autojump_clock: MockClock) -> None:
    """While one runs, announced kinds are collected for the next; each list is current at the end."""
    backend = announcing_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        before = len(listings(backend))
        backend.fail("tools/list", Delay(3), times=1)
        await announce(session, "tools")
        await trio.sleep(1)
        backend.add_tool("late")
        for kind in ("prompts", "tools", "resources", "prompts"):
            await announce(session, kind)
        await trio.sleep(30)
        asked = listings(backend)[before:]
        assert [0.0, *[3.0] * 4] == [time for time, _ in asked]
        assert {"tools/list", "prompts/list", "resources/list", "resources/templates/list"} == {m for _, m in asked[1:]}
        assert "a_late" in names(session)


async def test_a_hanging_refetch_delays_no_other_backend(autojump_clock: MockClock) -> None:
    """The backend whose refetch hangs keeps its lists; another backend's lists are fetched meanwhile."""
    hung, other = announcing_backend(), announcing_backend()
    async with open_world({"a": hung, "b": other}) as world, world.open_session() as session:
        hung.fail("tools/list", Hang())
        await announce(session, "tools")
        other.add_tool("new")
        await announce(session, "tools", backend_id="b")
        await wait_all_tasks_blocked()
        assert 0.0 == trio.current_time()
        assert ["a_echo", "a_announce", "b_echo", "b_announce", "b_new"] == names(session)
        await session.call_tool("a_echo")


@pytest.mark.parametrize("fault", [Status(500), Status(404), Hang(), Status(200, b"{}")])
async def test_a_refetch_that_fails_leaves_the_list_as_it_was(
    fault: Any, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """After three tries the next announcement begins anew. The old list stays, and the backend is no failure."""
    backend = announcing_backend()
    limits = FactorySettings(backend_init_timeout=2)
    async with open_world({"a": backend}, settings=limits) as world, world.open_session() as session:
        before = len(listings(backend))
        rule = backend.fail("tools/list", fault)
        backend.add_tool("new")
        await announce(session, "tools")
        await trio.sleep(60)
        assert 3 == rule.struck == len(listings(backend)) - before
        assert ["a_echo", "a_announce"] == names(session)
        assert 3 == sum("its new tools could not be listed" in record.getMessage() for record in caplog.records)
        assert () == session.failures
        backend.heal()
        await announce(session, "tools")
        await trio.sleep(2)
        assert ["a_echo", "a_announce", "a_new"] == names(session)


@pytest.mark.parametrize("fault", [Status(500), Status(503), Raw()], ids=str)
@pytest.mark.parametrize("away", [8.0, 600.0])
async def test_a_list_does_not_stay_stale(fault: Any, away: float, autojump_clock: MockClock) -> None:
    """After the three tries the list is asked for ever more slowly, at least every ten minutes."""
    backend = announcing_backend()
    async with open_world({"a": backend}, settings=FactorySettings(idle_timeout=math.inf)) as world:
        async with world.open_session() as session:
            rule = backend.fail("tools/list", fault)
            backend.add_tool("new")
            await announce(session, "tools")
            await trio.sleep(away)
            assert 3 <= rule.struck <= 7
            backend.heal()
            await trio.sleep(60 if away < 60 else 601)
            assert ["a_echo", "a_announce", "a_new"] == names(session)


async def test_a_refetch_is_retried_without_another_announcement(autojump_clock: MockClock) -> None:
    """A list request that fails once is repeated a second later."""
    backend = announcing_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("tools/list", Status(500), times=1)
        backend.add_tool("new")
        await announce(session, "tools")
        await trio.sleep(2)
        assert "a_new" in names(session)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_refetch_waits_as_long_as_the_backend_asks(era: str, status: int, autojump_clock: MockClock) -> None:
    """`Retry-After` delays the next refetch, also one of another kind that is announced meanwhile."""
    backend = announcing_backend(era)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await trio.sleep(5)
        before = len(listings(backend))
        backend.fail("tools/list", Status(status, headers={"Retry-After": "20"}), times=1)
        backend.add_tool("new")
        started = trio.current_time()
        await announce(session, "tools")
        await trio.sleep(10)
        await announce(session, "prompts")
        await trio.sleep(30)
        waited = [(at - started, method) for at, method in listings(backend)[before:]]
        assert [0, 20, 20] == [pytest.approx(at, abs=0.1) for at, _ in waited]
        assert ["tools/list", "tools/list", "prompts/list"] == [method for _, method in waited]
        assert "a_new" in names(session)


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_an_optional_list_that_asks_for_a_pause_gets_one(era: str, autojump_clock: MockClock) -> None:
    """Once, for the list that failed and for the others; its old failure asks for no further pause."""
    backend = announcing_backend(era)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await trio.sleep(5)
        before = len(listings(backend))
        backend.fail("prompts/list", Status(429, headers={"Retry-After": "20"}), times=1)
        started = trio.current_time()
        await announce(session, "prompts")
        for _ in range(5):
            await trio.sleep(11)
            await announce(session, "tools")
        await trio.sleep(30)
        asked: dict[str, list[float]] = {}
        for at, method in listings(backend)[before:]:
            asked.setdefault(method, []).append(at - started)
    assert [0, 20] == [pytest.approx(at, abs=0.2) for at in asked["prompts/list"]]
    assert [20, 22] == [pytest.approx(at, abs=0.2) for at in asked["tools/list"][:2]]


async def test_limits_count_over_all_lists(autojump_clock: MockClock) -> None:
    """A refetched list is refused when the new list and the kept lists of other kinds exceed the limit together."""
    backend = announcing_backend()
    limits = FactorySettings(max_items_per_backend=6)
    async with open_world({"a": backend}, settings=limits) as world, world.open_session() as session:
        backend.add_tool("five")
        backend.add_tool("six")
        await announce(session, "tools")
        await trio.sleep(2)
        assert ["a_echo", "a_announce", "a_five", "a_six"] == names(session)
        backend.add_tool("seven")
        await announce(session, "tools")
        await trio.sleep(10)
        assert "a_seven" not in names(session)
        del backend.tools[2]
        await announce(session, "tools")
        await trio.sleep(2)
        assert ["a_echo", "a_announce", "a_six", "a_seven"] == names(session)


@pytest.mark.parametrize("strategy", [Prefix(), Bare(), Priority("b", "a")])
async def test_a_name_that_is_no_longer_listed_stays_bound(strategy: Any, autojump_clock: MockClock) -> None:
    """A tool that is gone is ToolNotFound; no other backend gets the name, and the owner may list the tool again."""
    backend, other = announcing_backend(), announcing_backend()
    prefix = isinstance(strategy, Prefix)
    limits = FactorySettings(conflict_resolution=strategy)
    async with open_world({"a": backend, "b": other}, settings=limits) as world, world.open_session() as session:
        owner = (await session.call_tool("a_echo" if prefix else "echo")).backend_id
        owns, name = world[owner], "a_echo" if prefix else "echo"
        tool = owns.tools.pop(0)
        announce_tool = f"{owner}_announce" if prefix else "announce"
        await session.call_tool(announce_tool, {"kinds": ["tools"]})
        await trio.sleep(2)
        with pytest.raises(ToolNotFound):
            await session.call_tool(name)
        (row,) = await world.storage.rows()
        assert owner == row.bindings["tools"][name]
        owns.tools.append(tool)
        await session.call_tool(announce_tool, {"kinds": ["tools"]})
        await trio.sleep(2)
        assert owner == (await session.call_tool(name)).backend_id


async def test_a_name_is_bound_to_the_first_backend_that_lists_it(autojump_clock: MockClock) -> None:
    """Under `Bare` a new name belongs to the first backend that lists it, for good; a later one is a conflict."""
    first, second = announcing_backend(), echo_backend("legacy", "sse")
    second.add_tool("announce_too", first.handlers["announce"])
    limits = FactorySettings(conflict_resolution=Bare())
    async with open_world({"a": first, "b": second}, settings=limits) as world, world.open_session() as session:
        for backend, announce_tool in ((second, "announce_too"), (first, "announce")):
            backend.add_tool("late")
            await session.call_tool(announce_tool, {"kinds": ["tools"]})
            await trio.sleep(2)
            assert "b" == (await session.call_tool("late")).backend_id
        assert NameConflict("tool", "late", ("a", "b"), "b") in session.conflicts


async def test_the_names_bound_to_a_backend_are_bounded(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Names stay bound in memory and in the row. A list with names beyond the limit is refused."""
    backend = announcing_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        for generation in range(8):
            del backend.tools[2:]
            for number in range(MOST_BOUND_BYTES // 500):
                backend.add_tool(f"{generation}-{number}-" + "x" * 88)
            await announce(session, "tools")
            await trio.sleep(5)
        bound = session.metadata.bindings["tools"]
        assert sum(len(name) for name in bound) <= MOST_BOUND_BYTES
        assert any("ever new names" in record.getMessage() for record in caplog.records)
        await session.call_tool("a_echo")
        backend.tools[2:] = []
        await announce(session, "tools")  # a list without new names is accepted at the limit
        await trio.sleep(2)
        assert ["a_echo", "a_announce"] == names(session)


async def test_a_replaced_connection_does_not_overwrite_newer_lists(autojump_clock: MockClock) -> None:
    """A refetch on the old connection that ends after the new connection was listed changes nothing."""

    async def slow(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(30)
        return "rested"

    backend = announcing_backend()
    backend.add_tool("slow", slow)
    async with open_world({"a": backend}) as world, world.open_session() as session, trio.open_nursery() as nursery:
        nursery.start_soon(session.call_tool, "a_slow")  # keeps the old connection open
        await wait_all_tasks_blocked()
        old_tools = list(backend.tools)
        backend.fail("tools/list", Delay(10), times=1)
        await announce(session, "tools")
        await trio.sleep(1)
        backend.fail("tools/call", Status(404), times=1)
        backend.add_tool("new")
        await session.call_tool("a_echo")
        await trio.sleep(2)
        assert "a_new" in names(session)
        backend.tools[:] = old_tools  # for the refetch of the old connection
        await trio.sleep(10)
        assert "a_new" in names(session)
        nursery.cancel_scope.cancel()


async def test_a_replaced_connection_fetches_nothing_more(autojump_clock: MockClock) -> None:
    """Not through the connection that has replaced it either, which has lists of its own to fetch: a refetch that the
    backend had asked to come later is not made.
    """

    async def slow(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(30)
        return "rested"

    backend = announcing_backend()
    backend.add_tool("slow", slow)
    async with open_world({"a": backend}) as world, world.open_session() as session, trio.open_nursery() as nursery:
        nursery.start_soon(session.call_tool, "a_slow")  # keeps the old connection open
        backend.fail("tools/list", Status(503, headers={"Retry-After": "5"}), times=1)
        await announce(session, "tools")
        await trio.sleep(2)  # now the refetch waits to be made once more
        backend.fail("tools/call", Status(404), times=1)
        await session.call_tool("a_echo")
        await trio.sleep(1)
        fetched = len(backend.received("tools/list"))
        await trio.sleep(20)
        assert fetched == len(backend.received("tools/list"))
        nursery.cancel_scope.cancel()


async def test_a_close_waits_for_no_refetch(autojump_clock: MockClock) -> None:
    """A list request that hangs when the session closes is cancelled."""
    backend = announcing_backend()
    async with open_world({"a": backend}) as world:
        session = await world.make_session()
        backend.fail("tools/list", Hang())
        await announce(session, "tools")
        await trio.sleep(1)
        await session.aclose()
        assert 1.0 == trio.current_time()


async def test_unknown_notifications_cause_no_refetch(autojump_clock: MockClock) -> None:
    """Unknown methods, a method that only begins like `list_changed`, and a log message."""

    async def noise(arguments: JSON, context: CallContext) -> str:
        for method in ("notifications/x", "notifications/tools/list_changed/x", "notifications/message"):
            await context.notify(method, {})
        return "done"

    backend = announcing_backend()
    backend.add_tool("noise", noise)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        before = len(listings(backend))
        await session.call_tool("a_noise")
        await trio.sleep(5)
        assert before == len(listings(backend))


async def test_a_list_changed_reaches_the_row(autojump_clock: MockClock) -> None:
    """New names are bound in the stored metadata as soon as the list is there."""
    backend = announcing_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.add_tool("new")
        await announce(session, "tools")
        await wait_all_tasks_blocked()
        (row,) = await world.storage.rows()
        assert "a" == row.bindings["tools"]["a_new"]
        assert row == session.metadata


async def announce_often(session: Session, count: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(partial(announce, session, *KINDS))


async def test_announcements_at_one_time_share_a_refetch(autojump_clock: MockClock) -> None:
    """300 announcements in 100 calls: each list is fetched at once, and at most once more."""
    backend = announcing_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        before = len(listings(backend))
        await announce_often(session, 100)
        await trio.sleep(10)
        assert len(listings(backend)) - before <= 2 * 4


# Over streams that clients hold open


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_list_change_arrives_without_a_call(era: str, autojump_clock: MockClock) -> None:
    """The held stream brings it, also after the connection was replaced; a change in between is not missed."""
    backend = announcing_backend(era)
    backend.listens = True
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await wait_all_tasks_blocked()
        for number in range(3):
            backend.add_tool(f"new{number}")
            backend.notify("notifications/tools/list_changed")
            await trio.sleep(2)
            assert f"a_new{number}" == names(session)[-1]
            backend.restart()
            backend.fail("tools/call", Status(404), times=1)
            await session.call_tool("a_echo")
            await trio.sleep(2)
            assert 1 == backend.listening


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_resource_update_arrives_without_a_call(era: str, autojump_clock: MockClock) -> None:
    """Before and after a lost backend session; no longer after `unsubscribe_resource`."""
    backend = announcing_backend(era)
    backend.listens = True
    update = SessionChange("resource_updated", "a", "file:///x")
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        await session.subscribe_resource("file:///x")
        await trio.sleep(1)
        for _ in range(3):
            await drained(changes)
            backend.notify("notifications/resources/updated", {"uri": "file:///x"})
            assert [update] == await drained(changes)
            backend.restart()
            backend.fail("tools/call", Status(404), times=1)
            await session.call_tool("a_echo")
            await trio.sleep(2)
        await session.unsubscribe_resource("file:///x")
        await trio.sleep(1)
        await drained(changes)
        backend.notify("notifications/resources/updated", {"uri": "file:///x"})
        assert [] == await drained(changes)


async def test_a_change_in_the_opening_binds_no_names(autojump_clock: MockClock) -> None:
    """Names are bound when the opening ends, in configured order, even if a fast backend's list changed before."""
    slow, fast = echo_backend(), announcing_backend()
    slow.fail("initialize", Delay(5))
    fast.listens = True
    limits = FactorySettings(conflict_resolution=Bare())
    async with open_world({"a": slow, "b": fast}, settings=limits) as world, trio.open_nursery() as nursery:

        async def change() -> None:
            await trio.sleep(1)
            fast.add_tool("new")
            fast.notify("notifications/tools/list_changed")

        nursery.start_soon(change)
        async with world.open_session() as session:
            assert 5.0 == trio.current_time()
            assert "a" == (await session.call_tool("echo")).backend_id
            assert "b" == (await session.call_tool("new")).backend_id


async def test_a_refetch_refused_during_the_close_writes_no_warning(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The DELETE of the backend session is on its way, so 404 for a list request is expected."""
    backend = echo_backend(answers="sse", listens=True)
    async with open_world({"a": backend}) as world:
        session = await world.make_session()
        await trio.sleep(2)  # the stream is open, and the refetch that follows its opening is over
        backend.fail("tools/list", Delay(1.0))
        backend.fail("DELETE", Drip(8, 0.5))  # takes effect at once, and is answered late
        backend.notify("notifications/tools/list_changed")
        await wait_all_tasks_blocked()
        await session.aclose()
        assert 404 == backend.received("tools/list")[-1].status
    assert not [message for message in caplog.messages if "could not be listed" in message]
