"""`list_changed`: the lists of a live session stay current, and a backend that cries for every change costs little."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
from support.harness import drained, echo_backend, open_world
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
from trio_vmcp._session.names import MOST_BOUND_BYTES
from trio_vmcp.testing import CallContext, Delay, Drip, Hang, ScriptedBackend, Status

KINDS = ("tools", "resources", "prompts")
METHODS = {
    "tools": ["tools/list"],
    "resources": ["resources/list", "resources/templates/list"],
    "prompts": ["prompts/list"],
}


def crying_backend(era: str = "legacy") -> ScriptedBackend:
    """A tool "cry" that sends a `list_changed` for each of `kinds`, on its own stream; and one of everything."""

    async def cry(arguments: JSON, context: CallContext) -> str:
        for kind in arguments["kinds"]:
            await context.notify(f"notifications/{kind}/list_changed", {})
        return "cried"

    backend = echo_backend(era, "sse")
    backend.add_tool("cry", cry)
    backend.add_resource("file:///x")
    backend.add_prompt("p")
    return backend


async def cry(session: Session, *kinds: str, backend_id: str = "a") -> None:
    await session.call_tool(f"{backend_id}_cry", {"kinds": list(kinds)})


def listings(backend: ScriptedBackend) -> list[tuple[float, str]]:
    """When which list was asked for."""
    return [(e.received_at, e.method) for e in backend.exchanges if e.method.endswith("/list")]


def names(session: Session) -> list[str]:
    """As a function, since a type checker takes a property that was looked at for what it then was."""
    return [tool.name for tool in session.tools]


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_list_that_changed_is_fetched_again_at_once(kind: str, era: str, autojump_clock: MockClock) -> None:
    """That kind alone (resources with their templates); the session has the new list, and one change is told."""
    backend = crying_backend(era)
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        before = len(listings(backend))
        backend.add_tool("new")
        backend.add_resource("file:///new")
        backend.add_prompt("new")
        await cry(session, kind)
        await wait_all_tasks_blocked()
        assert [(0.0, method) for method in METHODS[kind]] == listings(backend)[before:]
        sizes = {"tools": len(session.tools), "resources": len(session.resources), "prompts": len(session.prompts)}
        before_it = {"tools": 2, "resources": 1, "prompts": 1}
        assert before_it | {kind: before_it[kind] + 1} == sizes
        assert [SessionChange(kind, "a")] == await drained(changes)  # type: ignore[arg-type]  # parametrized: plain str


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_what_was_cried_about_stays_so_when_it_is_doubted(era: str, autojump_clock: MockClock) -> None:
    """The stream opens behind the cry: one refetch for both, and what was said to have changed is told, as it was."""
    backend = crying_backend(era)
    backend.listens = True
    backend.fail("GET" if era == "legacy" else "subscriptions/listen", Delay(0.5))
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        await cry(session, "prompts")
        await cry(session, "tools")
        assert [SessionChange("prompts", "a")] == await drained(changes, 0.4)
        before = len(listings(backend))
        assert [SessionChange("tools", "a")] == await drained(changes, 2)
        assert {METHODS[kind][0] for kind in KINDS} <= {method for _, method in listings(backend)[before:]}


async def test_a_refetch_that_fails_takes_along_what_came_meanwhile(autojump_clock: MockClock) -> None:
    """Both are fetched a second later, and both are told of."""
    backend = crying_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session, session.changes() as changes:
        backend.latency = 0.2
        backend.fail("tools/list", Status(500), times=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cry, session, "tools")
            await trio.sleep(0.1)
            nursery.start_soon(cry, session, "resources")  # heard at 0.3 s, between the question and its refusal
        await trio.sleep(2)
        assert [SessionChange(kind, "a") for kind in ("tools", "resources")] == await drained(changes)


async def test_a_storm_is_one_refetch_a_second(autojump_clock: MockClock) -> None:
    """The first at once; however often it cries meanwhile, the next begins a second after the one before."""
    backend = crying_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        before = len(listings(backend))
        for _ in range(50):  # for 5 s
            await cry(session, *["tools"] * 20)
            await trio.sleep(0.1)
        await trio.sleep(10)
        times = [time for time, _ in listings(backend)[before:]]
        assert [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] == pytest.approx(times)


async def test_refetches_of_one_backend_do_not_overlap(autojump_clock: MockClock) -> None:
    """One at a time, of all the kinds that were cried about meanwhile; each list is current at the end."""
    backend = crying_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        before = len(listings(backend))
        backend.fail("tools/list", Delay(3), times=1)
        await cry(session, "tools")
        await trio.sleep(1)
        backend.add_tool("late")
        for kind in ("prompts", "tools", "resources", "prompts"):
            await cry(session, kind)
        await trio.sleep(30)
        asked = listings(backend)[before:]
        assert [0.0, *[3.0] * 4] == [time for time, _ in asked]
        assert {"tools/list", "prompts/list", "resources/list", "resources/templates/list"} == {m for _, m in asked[1:]}
        assert "a_late" in names(session)


async def test_a_crying_backend_costs_the_others_nothing(autojump_clock: MockClock) -> None:
    """One whose refetch hangs keeps its own lists as they were; another one's are fetched meanwhile."""
    hung, other = crying_backend(), crying_backend()
    async with open_world({"a": hung, "b": other}) as world, world.open_session() as session:
        hung.fail("tools/list", Hang())
        await cry(session, "tools")
        other.add_tool("new")
        await cry(session, "tools", backend_id="b")
        await wait_all_tasks_blocked()
        assert 0.0 == trio.current_time()
        assert ["a_echo", "a_cry", "b_echo", "b_cry", "b_new"] == names(session)
        await session.call_tool("a_echo")


@pytest.mark.parametrize("fault", [Status(500), Status(404), Hang(), Status(200, b"{}")])
async def test_a_refetch_that_fails_leaves_the_list_as_it_was(
    fault: Any, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried three times; then the next cry tries again. Nothing is taken from the session for that."""
    backend = crying_backend()
    limits = FactorySettings(backend_init_timeout=2)
    async with open_world({"a": backend}, settings=limits) as world, world.open_session() as session:
        before = len(listings(backend))
        rule = backend.fail("tools/list", fault)
        backend.add_tool("new")
        await cry(session, "tools")
        await trio.sleep(60)
        assert 3 == rule.struck == len(listings(backend)) - before
        assert ["a_echo", "a_cry"] == names(session)
        assert 3 == sum("its new tools could not be listed" in record.getMessage() for record in caplog.records)
        assert () == session.failures
        backend.heal()
        await cry(session, "tools")
        await trio.sleep(2)
        assert ["a_echo", "a_cry", "a_new"] == names(session)


async def test_a_refetch_that_recovers_needs_no_further_cry(autojump_clock: MockClock) -> None:
    """The second try has it."""
    backend = crying_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("tools/list", Status(500), times=1)
        backend.add_tool("new")
        await cry(session, "tools")
        await trio.sleep(2)
        assert "a_new" in names(session)


async def test_limits_count_over_all_lists(autojump_clock: MockClock) -> None:
    """A refetch of one kind is refused where it and what is kept of the others are over the limit together."""
    backend = crying_backend()
    limits = FactorySettings(max_items_per_backend=6)
    async with open_world({"a": backend}, settings=limits) as world, world.open_session() as session:
        backend.add_tool("five")
        backend.add_tool("six")
        await cry(session, "tools")
        await trio.sleep(2)
        assert ["a_echo", "a_cry", "a_five", "a_six"] == names(session)
        backend.add_tool("seven")
        await cry(session, "tools")
        await trio.sleep(10)
        assert "a_seven" not in names(session)
        del backend.tools[2]
        await cry(session, "tools")
        await trio.sleep(2)
        assert ["a_echo", "a_cry", "a_six", "a_seven"] == names(session)


@pytest.mark.parametrize("strategy", [Prefix(), Bare(), Priority("b", "a")])
async def test_names_that_go_stay_bound_and_come_back(strategy: Any, autojump_clock: MockClock) -> None:
    """What is no longer listed is unknown; nobody else gets its name, and its owner has it again."""
    backend, other = crying_backend(), crying_backend()
    prefix = isinstance(strategy, Prefix)
    limits = FactorySettings(conflict_resolution=strategy)
    async with open_world({"a": backend, "b": other}, settings=limits) as world, world.open_session() as session:
        owner = (await session.call_tool("a_echo" if prefix else "echo")).backend_id
        owns, name = world[owner], "a_echo" if prefix else "echo"
        tool = owns.tools.pop(0)
        crier = f"{owner}_cry" if prefix else "cry"
        await session.call_tool(crier, {"kinds": ["tools"]})
        await trio.sleep(2)
        with pytest.raises(ToolNotFound):
            await session.call_tool(name)
        (row,) = await world.storage.rows()
        assert owner == row.bindings["tools"][name]
        owns.tools.append(tool)
        await session.call_tool(crier, {"kinds": ["tools"]})
        await trio.sleep(2)
        assert owner == (await session.call_tool(name)).backend_id


async def test_a_name_that_comes_late_is_bound_then(autojump_clock: MockClock) -> None:
    """Under `Bare`, whoever lists it first in the session's life has it for good; the other's is a conflict."""
    first, second = crying_backend(), echo_backend("legacy", "sse")
    second.add_tool("cry_too", first.handlers["cry"])
    limits = FactorySettings(conflict_resolution=Bare())
    async with open_world({"a": first, "b": second}, settings=limits) as world, world.open_session() as session:
        for backend, crier in ((second, "cry_too"), (first, "cry")):
            backend.add_tool("late")
            await session.call_tool(crier, {"kinds": ["tools"]})
            await trio.sleep(2)
            assert "b" == (await session.call_tool("late")).backend_id
        assert NameConflict("tool", "late", ("a", "b"), "b") in session.conflicts


async def test_ever_new_names_come_to_an_end(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Names stay bound, in memory and in the row, so a backend cannot have new ones for ever: then its list stays."""
    backend = crying_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        for generation in range(8):
            del backend.tools[2:]
            for number in range(MOST_BOUND_BYTES // 500):
                backend.add_tool(f"{generation}-{number}-" + "x" * 88)
            await cry(session, "tools")
            await trio.sleep(5)
        bound = session.metadata.bindings["tools"]
        assert sum(len(name) for name in bound) <= MOST_BOUND_BYTES
        assert any("ever new names" in record.getMessage() for record in caplog.records)
        await session.call_tool("a_echo")
        backend.tools[2:] = []
        await cry(session, "tools")  # fewer are always welcome
        await trio.sleep(2)
        assert ["a_echo", "a_cry"] == names(session)


async def test_a_replaced_connection_does_not_overwrite_newer_lists(autojump_clock: MockClock) -> None:
    """A refetch that is still under way on the old one when the new one has been listed."""

    async def slow(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(30)
        return "rested"

    backend = crying_backend()
    backend.add_tool("slow", slow)
    async with open_world({"a": backend}) as world, world.open_session() as session, trio.open_nursery() as nursery:
        nursery.start_soon(session.call_tool, "a_slow")  # keeps the old connection's services alive
        await wait_all_tasks_blocked()
        old_tools = list(backend.tools)
        backend.fail("tools/list", Delay(10), times=1)
        await cry(session, "tools")
        await trio.sleep(1)
        backend.fail("tools/call", Status(404), times=1)
        backend.add_tool("new")
        await session.call_tool("a_echo")
        await trio.sleep(2)
        assert "a_new" in names(session)
        backend.tools[:] = old_tools  # what the old connection's refetch gets to see
        await trio.sleep(10)
        assert "a_new" in names(session)
        nursery.cancel_scope.cancel()


async def test_nothing_is_fetched_once_the_session_has_closed(autojump_clock: MockClock) -> None:
    """A cry in the last call: the close waits for no list."""
    backend = crying_backend()
    async with open_world({"a": backend}) as world:
        session = await world.make_session()
        backend.fail("tools/list", Hang())
        await cry(session, "tools")
        await trio.sleep(1)
        await session.aclose()
        assert 1.0 == trio.current_time()


async def test_notifications_of_no_concern_are_ignored(autojump_clock: MockClock) -> None:
    """Unknown methods, and kinds that the backend does not have."""

    async def noise(arguments: JSON, context: CallContext) -> str:
        for method in ("notifications/x", "notifications/tools/list_changed/x", "notifications/message"):
            await context.notify(method, {})
        return "done"

    backend = crying_backend()
    backend.add_tool("noise", noise)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        before = len(listings(backend))
        await session.call_tool("a_noise")
        await trio.sleep(5)
        assert before == len(listings(backend))


async def test_a_list_changed_reaches_the_row(autojump_clock: MockClock) -> None:
    """New names are bound in the metadata before long."""
    backend = crying_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.add_tool("new")
        await cry(session, "tools")
        await wait_all_tasks_blocked()
        (row,) = await world.storage.rows()
        assert "a" == row.bindings["tools"]["a_new"]
        assert row == session.metadata


async def many(session: Session, count: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(partial(cry, session, *KINDS))


async def test_many_criers_at_once_are_one_refetch(autojump_clock: MockClock) -> None:
    """A hundred calls, three cries each: each list once now, and once more for what came meanwhile."""
    backend = crying_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        before = len(listings(backend))
        await many(session, 100)
        await trio.sleep(10)
        assert len(listings(backend)) - before <= 2 * 4


# By the streams that clients hold open


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_change_is_heard_of_without_a_call(era: str, autojump_clock: MockClock) -> None:
    """Also by the connection that replaced another: what changed in between was not missed."""
    backend = crying_backend(era)
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
async def test_an_update_is_heard_of_without_a_call(era: str, autojump_clock: MockClock) -> None:
    """Before and behind a lost session, and not once nobody wants it."""
    backend = crying_backend(era)
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
    """They are bound when it ends, in configured order: a fast backend whose list changes is not the first for that."""
    slow, fast = echo_backend(), crying_backend()
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


async def test_a_refetch_that_is_overtaken_by_the_close_is_no_news(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The backend session that it asks for a list has just got its DELETE: nobody wants that list any more."""
    backend = echo_backend(answers="sse", listens=True)
    async with open_world({"a": backend}) as world:
        session = await world.make_session()
        await trio.sleep(2)  # the stream is open, and what it may have missed is listed
        backend.fail("tools/list", Delay(1.0))
        backend.fail("DELETE", Drip(8, 0.5))  # it is done, and its answer is late
        backend.notify("notifications/tools/list_changed")
        await wait_all_tasks_blocked()
        await session.aclose()
        assert 404 == backend.received("tools/list")[-1].status
    assert not [message for message in caplog.messages if "could not be listed" in message]
