"""Lists that are byte for byte the same are parsed once per factory, and held once by all its sessions."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import attrs
import pytest
import trio
from support.channels import EVERY_ANSWER, Channel
from support.harness import ALICE, BOB, NO_RETRIES, echo_backend, open_world
from trio.testing import MockClock

from trio_vmcp import Backend, BackendState, Session, ToolOverride, open_session_factory
from trio_vmcp.testing import CallContext, Error, ScriptedBackend


def definitions(session: Session, kind: str = "tools") -> list[int]:
    """The identities of the JSON objects that a session lists."""
    return [id(entry.raw) for entry in getattr(session, kind)]


def offering_backend(**options: Any) -> ScriptedBackend:
    backend = echo_backend(**options)
    backend.add_tool("other")
    backend.add_prompt("ask")
    backend.add_resource("file:///a", "text")
    return backend


@EVERY_ANSWER
async def test_sessions_hold_equal_lists_once(channel: Channel, autojump_clock: MockClock) -> None:
    """Over every channel: two sessions of one factory list the very same objects, and a third factory has its own."""
    async with channel.open_way(channel.backend()) as (transport, entry):
        async with (
            open_session_factory(transport=transport) as factory,
            open_session_factory(transport=transport) as another,
            factory.open_session([entry]) as one,
            factory.open_session([entry]) as two,
            another.open_session([entry]) as three,
        ):
            assert definitions(one) == definitions(two) != definitions(three)
            assert [tool.name for tool in one.tools] == [tool.name for tool in three.tools]
            for session in (one, two):
                assert (await session.call_tool("b_echo", {"text": "x"})).content


@EVERY_ANSWER
async def test_lists_that_come_at_the_same_time_are_parsed_once(channel: Channel, autojump_clock: MockClock) -> None:
    """Over every channel: sessions that open side by side hold the same objects of a large list, each as filtered for
    itself.
    """
    backend = channel.backend()
    backend.add_tool("large", description="long " * 50_000)
    async with channel.open_way(backend) as (transport, entry), open_session_factory(transport=transport) as factory:
        sessions: list[Session] = []

        async def open_one(*denied: str) -> None:
            sessions.append(await factory.make_session([attrs.evolve(entry, deny_tools=denied)]))

        async with trio.open_nursery() as nursery:
            for denied in ([], ["echo"], []):
                nursery.start_soon(open_one, *denied)
        raws = [{tool.backend_name: tool.raw for tool in session.tools} for session in sessions]
        assert [False, True, True] == sorted("echo" in each for each in raws)
        assert all(each["large"] is raws[0]["large"] for each in raws)
        for session in sessions:
            await session.aclose()


async def test_every_kind_of_list_is_shared(autojump_clock: MockClock) -> None:
    """Tools, prompts and resources alike, whichever backend id they have in another session."""
    async with open_world({"a": offering_backend()}) as world:
        (entry,) = world.configured
        renamed = Backend("z", url=entry.url, era=entry.era)
        async with world.open_session() as one, world.open_session() as two:
            third = await world.factory.make_session([renamed])
            for kind in ("tools", "prompts", "resources"):
                assert definitions(one, kind) == definitions(two, kind) == definitions(third, kind) != []
            assert ["z_echo", "z_other"] == [tool.name for tool in third.tools]
            assert ["a_echo", "a_other"] == [tool.name for tool in one.tools]
            await third.aclose()


async def test_a_list_of_which_the_client_leaves_out_a_tool_is_shared(autojump_clock: MockClock) -> None:
    """A tool with an annotation that cannot be repeated in a header costs itself, and not the parse of its list."""
    backend = echo_backend(era="modern")
    schema = {"type": "object", "properties": {"x": {"type": "string", "x-mcp-header": "not a token"}}}
    backend.add_tool("bad", inputSchema=schema)
    async with open_world({"a": backend}) as world, world.open_session() as one, world.open_session() as two:
        assert ["a_echo"] == [tool.name for tool in one.tools]
        assert definitions(one) == definitions(two)


async def test_lists_that_differ_are_not_shared(autojump_clock: MockClock) -> None:
    """One byte that differs is another list: principals see what their backend told them."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world:
        async with world.open_session() as one:
            backend.tools[0] = {**backend.tools[0], "description": "for Bob"}
            async with world.factory.open_session(world.configured, identity=BOB) as two:
                assert definitions(one) != definitions(two)
                assert ["for Bob"] == [tool.description for tool in two.tools]
                async with world.factory.open_session(world.configured, identity=ALICE) as three:
                    assert definitions(two) == definitions(three)
            assert ["for Bob"] != [tool.description for tool in one.tools]


@pytest.mark.parametrize(
    "configured",
    [
        {"deny_tools": ["other"]},
        {"allow_tools": ["echo"]},
        {"overrides": {"echo": ToolOverride(description="mine")}},
        {"overrides": {"echo": ToolOverride(name="say")}},
    ],
    ids=["denied", "allowed", "described", "renamed"],
)
async def test_filters_and_overrides_hold_for_their_session_alone(
    configured: dict[str, Any], autojump_clock: MockClock
) -> None:
    """The same bytes under other filters or overrides are another list, in both orders of opening."""
    async with open_world({"a": offering_backend()}) as world:
        (entry,) = world.configured
        filtered = Backend("a", url=entry.url, era=entry.era, **configured)
        for first, second in ((entry, filtered), (filtered, entry)):
            async with world.factory.open_session([first]) as one, world.factory.open_session([second]) as two:
                shown = {
                    backend: [(tool.name, tool.description) for tool in session.tools]
                    for backend, session in ((id(first), one), (id(second), two))
                }
                assert [("a_echo", None), ("a_other", None)] == shown[id(entry)]
                assert shown[id(entry)] != shown[id(filtered)]


async def test_a_list_that_fails_is_not_taken_from_another_session(autojump_clock: MockClock) -> None:
    """A new session has never seen the list: it is empty there, whatever other sessions have seen."""
    backend = offering_backend()
    async with open_world({"a": backend}, settings=NO_RETRIES) as world, world.open_session() as one:
        backend.fail("prompts/list", Error(-32603, "no"), times=1)
        async with world.open_session() as two:
            assert 1 == len(one.prompts)
            assert () == two.prompts
            assert BackendState.DEGRADED is two.backends["a"].state
            assert definitions(one) == definitions(two)


async def test_a_list_that_fails_is_not_taken_for_an_empty_one(autojump_clock: MockClock) -> None:
    """Another session has seen that there are no prompts: the session where the list fails is DEGRADED all the same."""
    backend = echo_backend(capabilities={"tools": {}, "prompts": {}})
    async with open_world({"a": backend}, settings=NO_RETRIES) as world, world.open_session() as one:
        backend.fail("prompts/list", Error(-32603, "no"), times=1)
        async with world.open_session() as two:
            assert BackendState.READY is one.backends["a"].state
            assert BackendState.DEGRADED is two.backends["a"].state


@pytest.mark.parametrize("fewer_first", [True, False])
async def test_a_backend_with_some_of_the_lists_of_another_has_no_more(
    fewer_first: bool, autojump_clock: MockClock
) -> None:
    """Its tools are the other's, byte for byte, and there are no prompts and resources, whichever is listed first."""
    fewer = echo_backend()
    fewer.add_tool("other")
    async with open_world({"more": offering_backend(), "fewer": fewer}) as world:
        order = sorted(world.configured, key=lambda each: (each.id == "fewer") is not fewer_first)
        listed: dict[str, Session] = {}
        for entry in order:
            session = listed[entry.id] = await world.factory.make_session([entry])
            assert ["echo", "other"] == [tool.backend_name for tool in session.tools]
        assert definitions(listed["more"]) == definitions(listed["fewer"])
        for kind in ("prompts", "resources"):
            assert (1, 0) == tuple(len(getattr(listed[each], kind)) for each in ("more", "fewer"))
        for session in listed.values():
            await session.aclose()


async def test_pages_are_shared_up_to_where_they_differ(autojump_clock: MockClock) -> None:
    """Lists of many pages with the same beginning and another end are lists of their own, and whole."""
    backend = ScriptedBackend(page_size=2)
    for at in range(5):
        backend.add_tool(f"t{at}")
    async with open_world({"a": backend}) as world, world.open_session() as one:
        async with world.open_session() as two:
            assert definitions(one) == definitions(two)
        backend.add_tool("t5")
        async with world.open_session() as three:
            assert [f"a_t{at}" for at in range(6)] == [tool.name for tool in three.tools]
            assert definitions(one)[:4] == definitions(three)[:4], "two pages that are as before"
        assert 5 == len(one.tools)


async def test_a_change_is_parsed_by_the_first_session_that_hears_of_it(autojump_clock: MockClock) -> None:
    """After a `list_changed`, sessions share the new lists as they shared the old ones."""
    backend = offering_backend(answers="sse")

    async def announce(arguments: Any, context: CallContext) -> str:
        await context.notify("notifications/tools/list_changed", {})
        return ""

    backend.add_tool("announce", announce)
    async with open_world({"a": backend}) as world, world.open_session() as one, world.open_session() as two:
        async with one.changes() as first, two.changes() as second:
            backend.add_tool("new")
            for session in (one, two):
                await session.call_tool("a_announce")
            assert "tools" == (await first.receive()).kind == (await second.receive()).kind
        assert definitions(one) == definitions(two)
        assert 4 == len(one.tools)


async def test_a_list_that_becomes_that_of_another_backend_leaves_the_others(autojump_clock: MockClock) -> None:
    """A change of the tools alone, to what a backend without prompts lists, takes no prompts away."""
    backend, fewer = offering_backend(answers="sse"), echo_backend()

    async def announce(arguments: Any, context: CallContext) -> str:
        await context.notify("notifications/tools/list_changed", {})
        return ""

    for each in (backend, fewer):
        each.add_tool("announce", announce)
    async with open_world({"a": backend, "fewer": fewer}) as world, world.open_session() as session:
        async with session.changes() as changes:
            backend.tools[:] = fewer.tools
            await session.call_tool("a_announce")
            assert "tools" == (await changes.receive()).kind
        assert ["echo", "announce"] == [tool.backend_name for tool in session.tools if tool.backend_id == "a"]
        assert (1, 1) == (len(session.prompts), len(session.resources))


async def test_a_list_that_is_empty_elsewhere_is_here_what_it_is(autojump_clock: MockClock) -> None:
    """Equal tools do not make equal prompts."""
    backend = echo_backend(capabilities={"tools": {}, "prompts": {}})
    async with open_world({"a": backend}) as world, world.open_session() as one:
        backend.add_prompt("ask")
        async with world.open_session() as two:
            assert (0, 1) == (len(one.prompts), len(two.prompts))
            assert definitions(one) == definitions(two)


async def test_lists_go_with_the_last_session_that_has_them(autojump_clock: MockClock) -> None:
    """A factory keeps nothing that no session has."""
    async with open_world({"a": echo_backend()}) as world:
        session = await world.make_session()
        tool = weakref.ref(session.tools[0])
        two = await world.make_session()
        assert two.tools[0] is tool()
        await session.aclose()
        del session
        gc.collect()
        assert tool() is not None
        await two.aclose()
        del two
        gc.collect()
        assert tool() is None


CUT = "y" * 20 + "tool_" + "z" * 46  # cut to 64 characters with its digest, it begins with the prefix of `tool`


@pytest.mark.parametrize("is_alone_first", [True, False])
@pytest.mark.parametrize(
    ("ids", "name"), [(("git", "git_hub"), "hub_issue"), (("a", "tool"), CUT)], ids=["whole", "cut"]
)
async def test_names_are_shared_only_where_they_follow_from_the_list(
    ids: tuple[str, str], name: str, is_alone_first: bool, autojump_clock: MockClock
) -> None:
    """What a name is composed to may depend on the other backends of a session: each session has what it would have
    alone in a factory, whichever session was first.
    """
    git, hub = ScriptedBackend(), ScriptedBackend()
    git.add_tool(name)
    hub.add_tool("other")
    async with open_world(dict(zip(ids, (git, hub), strict=True))) as world:
        choices = [world.configured[:1], world.configured]
        shown = {}
        for backends in choices if is_alone_first else choices[::-1]:
            session = await world.factory.make_session(backends)
            shown[len(backends)] = session
        names = {count: [tool.name for tool in session.tools] for count, session in shown.items()}
        async with open_session_factory(transport=world.transport) as fresh:
            for count, backends in ((1, choices[0]), (2, choices[1])):
                async with fresh.open_session(backends) as alone:
                    assert [tool.name for tool in alone.tools] == names[count]
        for session in shown.values():
            await session.aclose()
        assert names[1] != names[2][: len(names[1])]
