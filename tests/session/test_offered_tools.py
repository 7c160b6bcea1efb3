"""Which tools a session offers and how they are described, as `Backend` says: over every channel, and over time."""

from __future__ import annotations

import re
from typing import Any

import attrs
import pytest
import trio
from support.channels import EVERY_CHANNEL, EVERY_SHARED_CHANNEL, Channel
from support.harness import ALICE, BOB, echo_backend, open_world
from support.steps import counting_steps
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendUnavailable,
    Bare,
    FactorySettings,
    Manual,
    NameConflict,
    Session,
    ToolNotFound,
    ToolOverride,
    UnauthorizedCaller,
    open_session_factory,
)
from trio_vmcp._session.offered_tools import AT_ONCE, offered_tools
from trio_vmcp._tool_patterns import tool_patterns
from trio_vmcp.testing import ScriptedBackend


def add_tools(backend: ScriptedBackend) -> ScriptedBackend:
    """Reading, writing and silent tools, beside "echo"."""
    backend.add_tool("get_item", annotations={"readOnlyHint": True, "openWorldHint": False})
    backend.add_tool("get_all", annotations={"readOnlyHint": True, "openWorldHint": True})
    backend.add_tool("delete_item", annotations={"destructiveHint": True, "idempotentHint": True})
    backend.add_tool("put_item", annotations={"readOnlyHint": False}, title="Put", description="Puts an item.")
    return backend


def listed(backend: ScriptedBackend, name: str) -> JSON:
    return next(tool for tool in backend.tools if tool["name"] == name)


async def announce(backend: ScriptedBackend) -> None:
    """Say that the tools changed, and wait until they were read again."""
    await trio.sleep(2)
    backend.notify("notifications/tools/list_changed")
    await trio.sleep(2)


def named(session: Session) -> list[str]:
    return [tool.name for tool in session.tools]


# Choosing


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (["get_item"], ["get_item"]),
        (["get_*"], ["get_item", "get_all"]),
        (["*_item"], ["get_item", "delete_item", "put_item"]),
        (["[dp]*_item"], ["delete_item", "put_item"]),
        (["[!g]??_item"], ["put_item"]),
        (["GET_*"], []),
        (["get"], []),
        (["*"], ["echo", "get_item", "get_all", "delete_item", "put_item"]),
        (["@readOnly"], ["get_item", "get_all"]),
        (["@destructive"], ["delete_item"]),
        (["@idempotent"], ["delete_item"]),
        (["@openWorld"], ["get_all"]),
        (["@openWorld", "@idempotent"], ["get_all", "delete_item"]),
        (["@destructive", "echo", "put*"], ["echo", "delete_item", "put_item"]),
        ([], []),
    ],
)
@pytest.mark.parametrize("key", ["allow_tools", "deny_tools"])
async def test_names_globs_and_hints_choose_tools(
    key: str, patterns: list[str], chosen: list[str], autojump_clock: MockClock
) -> None:
    """In both lists alike. A hint that a tool does not give is false. What is filtered out is not found."""

    def configure(backend: Backend) -> Backend:
        return attrs.evolve(backend, **{key: patterns})  # type: ignore[arg-type]  # the key is a parameter

    backend = add_tools(echo_backend())
    everything = [tool["name"] for tool in backend.tools]
    expected = [name for name in everything if (name in chosen) is (key == "allow_tools")]
    async with open_world({"b": backend}, configure=configure) as world, world.open_session() as session:
        assert [f"b_{name}" for name in expected] == named(session)
        for name in set(everything) - set(expected):
            with pytest.raises(ToolNotFound):
                await session.call_tool(f"b_{name}")
        assert 0 == backend.executed.total()


@pytest.mark.parametrize(
    ("annotations", "is_meant"),
    [
        ({"readOnlyHint": True}, True),
        ({"readOnlyHint": False}, False),
        ({"readOnlyHint": None}, False),
        ({"readOnlyHint": "true"}, False),
        ({"readOnlyHint": 1}, False),
        ({"ReadOnlyHint": True}, False),
        ({}, False),
        (None, False),
        ([], False),
        ("readOnlyHint", False),
    ],
)
def test_a_hint_is_true_and_nothing_else(annotations: object, is_meant: bool) -> None:
    """Only JSON's `true` is: a backend says whatever it likes."""
    assert is_meant is tool_patterns(["@readOnly"]).match("x", {"name": "x", "annotations": annotations})
    assert not tool_patterns(["@readOnly"]).match("x", {"name": "x"})


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        pytest.param("", "allow_tools: '' is empty", id="empty"),
        pytest.param("@read", "allow_tools: '@read' is none of @readOnly, @destructive, ", id="no hint"),
        pytest.param("@", "allow_tools: '@' is none of @readOnly", id="an at sign"),
        *(pytest.param(given, None, id=given) for given in ("@readOnly", "[@]read", "read@", "*", "[")),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(pattern: str, problem: str | None) -> None:
    """At construction, with the pattern and the ones that there are."""
    if problem is None:
        Backend(id="b", url="http://b.test/mcp", allow_tools=[pattern])
        return
    with pytest.raises(ValueError, match=re.escape(problem)):
        Backend(id="b", url="http://b.test/mcp", allow_tools=[pattern])


def test_a_name_with_a_bracket_is_a_name_too() -> None:
    """Nothing in MCP forbids `a[0]`, which as a glob means `a0`."""
    patterns = tool_patterns(["a[0]", "[@]x", "b?"])
    assert [True, True, True, False, True, False] == [
        patterns.match(name, {}) for name in ("a[0]", "a0", "@x", "a", "b1", "b")
    ]


@EVERY_CHANNEL
async def test_the_choice_holds_when_the_list_changes(channel: Channel, autojump_clock: MockClock) -> None:
    """A tool that comes, or that changes its hint, is chosen as at first."""
    backend = add_tools(channel.backend(listens=True))
    configured = {"allow_tools": ["@readOnly", "new_*"], "deny_tools": ["*_all"]}
    async with channel.open_session(backend, configured=configured) as session:
        assert ["b_get_item"] == named(session)
        backend.add_tool("new_one")
        backend.add_tool("new_all")
        listed(backend, "get_item")["annotations"] = {"readOnlyHint": False}
        listed(backend, "put_item")["annotations"] = {"readOnlyHint": True}
        await announce(backend)
        assert ["b_put_item", "b_new_one"] == named(session)
        with pytest.raises(ToolNotFound):
            await session.call_tool("b_get_item")
        await session.call_tool("b_new_one")
        assert {"new_one": 1} == backend.executed


READ_ONLY: JSON = {"get_item": ToolOverride(annotations={"readOnlyHint": True})}
LONG = "get_" + 80 * "x"


@pytest.mark.parametrize(
    ("chosen", "name", "is_known"),
    [
        ({"deny_tools": ["get_item"]}, "b_get_item", True),
        ({"deny_tools": ["get_*"]}, "b_get_item", True),
        ({"deny_tools": ["get_*"]}, "b_put_item", False),
        ({"allow_tools": ["put_*", "delete_item"]}, "b_get_item", True),
        ({"allow_tools": ["put_*"]}, "b_put_item", False),
        ({"allow_tools": []}, "b_put_item", True),
        ({"allow_tools": ["put_*", "@readOnly"]}, "b_get_item", False),  # the backend says whether it only reads
        ({"allow_tools": ["@readOnly"], "deny_tools": ["get_*"]}, "b_get_item", True),
        ({"deny_tools": ["@readOnly"]}, "b_get_item", False),
        ({"deny_tools": ["@readOnly"], "overrides": READ_ONLY}, "b_get_item", True),
        ({"overrides": {"get_item": ToolOverride(name="look_up")}}, "b_get_item", True),  # it is b_look_up now
        ({"overrides": {"get_item": ToolOverride(name="put_item")}, "deny_tools": ["get_*"]}, "b_put_item", False),
        ({"overrides": {"get_item": ToolOverride(name="put_item")}, "deny_tools": ["*_item"]}, "b_put_item", True),
        ({"deny_tools": ["get_*"]}, LONG, False),  # its name is cut: other tools may have it
    ],
)
async def test_what_is_filtered_out_is_not_found_while_its_backend_is_away(
    chosen: JSON, name: str, is_known: bool, autojump_clock: MockClock
) -> None:
    """After a restore, where the configuration alone says so; else the backend is unavailable."""
    backend = add_tools(echo_backend())
    backend.add_tool(LONG)
    async with open_world({"b": backend}) as world:
        session = await world.make_session(session_id="one", identity=ALICE)
        if name == LONG:
            (name,) = (tool.name for tool in session.tools if tool.backend_name == LONG)
        assert name in named(session)
        await session.suspend()
        backend.crash()
        entry = attrs.evolve(world.configured[0], **chosen)
        restored = (await world.factory.restore_session("one", [entry], identity=ALICE)).as_caller(ALICE)
        with pytest.raises(ToolNotFound if is_known else BackendUnavailable):
            await restored.call_tool(name)
        backend.restart()


async def test_no_prompt_is_filtered_out(autojump_clock: MockClock) -> None:
    """Of a backend that is away, although its tools of this name are: it is bound, and so it is unavailable."""
    backend = add_tools(echo_backend())
    backend.add_prompt("get_item")
    async with open_world({"b": backend}) as world:
        session = await world.make_session(session_id="one", identity=ALICE)
        await session.suspend()
        backend.crash()
        entry = attrs.evolve(world.configured[0], deny_tools=["get_*"])
        restored = (await world.factory.restore_session("one", [entry], identity=ALICE)).as_caller(ALICE)
        with pytest.raises(BackendUnavailable):
            await restored.get_prompt("b_get_item")
        backend.restart()


@EVERY_SHARED_CHANNEL
async def test_what_the_last_list_leaves_out_is_not_found_while_its_backend_is_away(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """Its hints say so, as last seen. What was listed is unavailable."""
    backend = add_tools(channel.backend(listens=True))
    async with channel.open_session(backend, configured={"deny_tools": ["@destructive"]}) as session:
        await session.call_tool("b_put_item")
        listed(backend, "put_item")["annotations"] = {"destructiveHint": True}
        await announce(backend)
        backend.crash()
        await wait_all_tasks_blocked()
        assert session.failures
        with pytest.raises(ToolNotFound):
            await session.call_tool("b_put_item")
        with pytest.raises(BackendUnavailable):
            await session.call_tool("b_get_item")
        backend.restart()


@pytest.mark.parametrize(("own_name", "is_known"), [("get_all", True), ("get_item", False)])
async def test_what_manual_leaves_out_is_not_found_while_its_backend_is_away(
    own_name: str, is_known: bool, autojump_clock: MockClock
) -> None:
    """As what is filtered out: the names of `Manual` are all that there are."""
    backend = add_tools(echo_backend())
    names = {"one": ("b", "get_item"), "all": ("b", "get_all")}
    async with open_world({"b": backend}, settings=FactorySettings(conflict_resolution=Manual(names))) as world:
        session = await world.make_session(session_id="one")
        assert ["one", "all"] == named(session)
        await session.suspend()
        backend.crash()
        entry = attrs.evolve(world.configured[0], deny_tools=["get_all"])
        restored = await world.factory.restore_session("one", [entry])
        (name,) = (name for name, (_, own) in names.items() if own == own_name)
        with pytest.raises(ToolNotFound if is_known else BackendUnavailable):
            await restored.call_tool(name)
        backend.restart()


async def test_what_another_strategy_advertised_is_not_found_while_its_backend_is_away(
    autojump_clock: MockClock,
) -> None:
    """The row binds a name that no tool has under the strategy of now, whatever the backend lists when it is back."""
    backend = add_tools(echo_backend())
    bare = FactorySettings(conflict_resolution=Bare())
    async with open_world({"b": backend}, settings=bare) as world:
        await (await world.make_session(session_id="one")).suspend()
        backend.crash()
        async with open_session_factory(transport=world.transport, storage=world.storage) as factory:
            restored = await factory.restore_session("one", world.configured)
            assert "b" == restored.metadata.bindings["tools"]["get_item"]
            with pytest.raises(ToolNotFound):
                await restored.call_tool("get_item")
            with pytest.raises(ToolNotFound):
                await restored.call_tool("b_get_item")
            await restored.aclose()
        backend.restart()


async def test_another_choice_after_a_restore(autojump_clock: MockClock) -> None:
    """The row binds names and knows no choice: the configuration of the restore decides."""
    backend = add_tools(echo_backend())
    async with open_world({"b": backend}) as world:
        session = await world.make_session(session_id="one", identity=ALICE)
        assert 5 == len(session.tools)
        await session.suspend()
        (entry,) = world.configured
        chosen = Backend(
            entry.id, entry.url, deny_tools=["delete_*"], overrides={"get_item": ToolOverride(name="look_up")}
        )
        restored = await world.factory.restore_session("one", [chosen], identity=ALICE)
        assert ["b_echo", "b_look_up", "b_get_all", "b_put_item"] == named(restored)
        for name in ("b_delete_item", "b_get_item"):
            with pytest.raises(ToolNotFound):
                await restored.call_tool(name, caller=ALICE)
        await restored.as_caller(ALICE).call_tool("b_look_up")
        assert {"get_item": 1} == backend.executed
        with pytest.raises(UnauthorizedCaller):
            restored.as_caller(BOB)
        await restored.aclose()


@pytest.mark.parametrize(("pauses", "less"), [(1, 1), (1, 0), (3, 0)])
async def test_many_tools_are_chosen_in_steps(pauses: int, less: int, autojump_clock: MockClock) -> None:
    """Other tasks run meanwhile; without a choice the list stays the very same."""
    known: dict[str, JSON] = {f"t{number}": {"name": f"t{number}"} for number in range(pauses * AT_ONCE - less)}
    with counting_steps() as steps:
        offered = await offered_tools(Backend("b", "http://b.test", deny_tools=["*7"]), known)
    assert pauses - less == steps.count
    assert [name for name in known if not name.endswith("7")] == list(offered)
    assert known is await offered_tools(Backend("b", "http://b.test"), known)


# Describing


def overridden(**overrides: ToolOverride) -> dict[str, Any]:
    return {"configured": {"overrides": overrides}}


@EVERY_CHANNEL
async def test_a_tool_is_described_as_the_user_says(channel: Channel, autojump_clock: MockClock) -> None:
    """Single fields, at first and after a change of the list; a call carries the backend's own name."""
    backend = add_tools(channel.backend(listens=True))
    override = ToolOverride(name="store", description="Keeps it.", annotations={"destructiveHint": True})
    async with channel.open_session(backend, **overridden(put_item=override, gone=ToolOverride(name="x"))) as session:
        for description in ("Puts an item.", "Puts it."):
            listed(backend, "put_item")["description"] = description
            await announce(backend)
            (tool,) = (tool for tool in session.tools if tool.backend_name == "put_item")
            assert ("b_store", "Put", "Keeps it.") == (tool.name, tool.title, tool.description)
            assert {"readOnlyHint": False, "destructiveHint": True} == tool.annotations
            assert ("put_item", {"type": "object"}) == (tool.raw["name"], tool.input_schema)
        with pytest.raises(ToolNotFound):
            await session.call_tool("b_put_item")
        await session.call_tool("b_store")
        assert {"put_item": 1} == backend.executed
        assert () == session.conflicts


async def test_a_field_that_is_none_stays(autojump_clock: MockClock) -> None:
    """Also where the backend says nothing, or null; an empty text is a text."""
    backend = echo_backend()
    backend.add_tool("x", title=None)
    backend.add_tool("y", title="Y", description="Why")
    said = {"x": ToolOverride(annotations={"title": "T"}), "y": ToolOverride(title="", annotations={})}

    def configure(entry: Backend) -> Backend:
        return Backend(entry.id, entry.url, era=entry.era, overrides=said)

    async with open_world({"b": backend}, configure=configure) as world, world.open_session() as session:
        _, x, y = session.tools
        assert {"name": "x", "inputSchema": {"type": "object"}, "title": None, "annotations": {"title": "T"}} == x.raw
        assert listed(backend, "y") | {"title": ""} == y.raw


@pytest.mark.parametrize(
    ("hints", "chosen"), [({"readOnlyHint": True}, ["b_x"]), ({"readOnlyHint": False}, []), ({}, ["b_x"])]
)
async def test_a_hint_that_is_overridden_decides(hints: JSON, chosen: list[str], autojump_clock: MockClock) -> None:
    """The user knows better; the name that the user gives is not what the patterns go by."""
    backend = ScriptedBackend()
    backend.add_tool("x", annotations={} if hints.get("readOnlyHint") else {"readOnlyHint": True})
    backend.add_tool("y")

    def configure(entry: Backend) -> Backend:
        said = {"x": ToolOverride(annotations=hints), "y": ToolOverride(name="z")}
        return Backend(entry.id, entry.url, era=entry.era, allow_tools=["@readOnly", "z"], overrides=said)

    async with open_world({"b": backend}, configure=configure) as world, world.open_session() as session:
        assert chosen == named(session)


async def test_a_given_name_is_withheld_while_a_tool_has_it(autojump_clock: MockClock) -> None:
    """The other tool may come and go; a denied one takes no name."""
    backend = add_tools(echo_backend(listens=True))

    def configure(entry: Backend) -> Backend:
        said = {"get_item": ToolOverride(name="late"), "get_all": ToolOverride(name="delete_item")}
        return Backend(entry.id, entry.url, era=entry.era, deny_tools=["@destructive"], overrides=said)

    async with open_world({"b": backend}, configure=configure) as world, world.open_session() as session:
        assert ["b_echo", "b_late", "b_delete_item", "b_put_item"] == named(session)
        backend.add_tool("late")
        await announce(backend)
        assert (NameConflict("tool", "b_late", ("b",), "b"),) == session.conflicts
        await session.call_tool("b_late")
        await session.call_tool("b_delete_item")
        assert {"late": 1, "get_all": 1} == backend.executed
        del backend.tools[-1]
        await announce(backend)
        assert not session.conflicts
        await session.call_tool("b_late")
        assert {"late": 1, "get_all": 1, "get_item": 1} == backend.executed


async def test_manual_goes_by_own_names(autojump_clock: MockClock) -> None:
    """And decides alone what a tool is called; the description is the user's."""
    backend = add_tools(echo_backend())

    def configure(entry: Backend) -> Backend:
        said = {"put_item": ToolOverride(name="store", title="Store")}
        return Backend(entry.id, entry.url, era=entry.era, overrides=said)

    manual = FactorySettings(conflict_resolution=Manual({"p": ("b", "put_item"), "s": ("b", "store")}))
    async with open_world({"b": backend}, configure=configure, settings=manual) as world:
        async with world.open_session() as session:
            assert [("p", "Store")] == [(tool.name, tool.title) for tool in session.tools]


async def test_a_backend_that_comes_back_in_other_words(autojump_clock: MockClock) -> None:
    """Removed and added with other overrides: the new ones hold, and what was filtered out may be called."""
    backend = add_tools(echo_backend())
    async with open_world({"b": backend}) as world, world.factory.open_session([]) as session:
        (entry,) = world.configured
        for given, names in [("one", {"b_one"}), ("two", {"b_two"}), (None, {"b_put_item"})]:
            said = {} if given is None else {"put_item": ToolOverride(name=given)}
            await session.add_backend(Backend("b", entry.url, allow_tools=["put_*"], overrides=said))
            assert names == {tool.name for tool in session.tools}
            await session.call_tool(names.pop())
            await session.remove_backend("b")
        await wait_all_tasks_blocked()
        assert {"put_item": 3} == backend.executed
