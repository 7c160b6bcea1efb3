"""Names in a whole session: an advertised name reaches its owner, whichever backends are up and however fast."""

from __future__ import annotations

from collections.abc import MutableMapping
from itertools import permutations
from typing import Any

import attrs
import pytest
import trio
from support.harness import echo_backend, open_world
from trio.testing import MockClock

from trio_vmcp import (
    JSON,
    Backend,
    Bare,
    ConflictResolution,
    FactorySettings,
    Manual,
    NameConflict,
    Prefix,
    Priority,
    Session,
    Target,
    ToolNotFound,
)
from trio_vmcp.testing import CONNECT, CallContext, Delay, Refuse, ScriptedBackend


def backends_of(**tools: str) -> dict[str, ScriptedBackend]:
    """Backends by id, each with the tools and prompts that are named, separated by spaces."""
    made: dict[str, ScriptedBackend] = {}
    for backend_id, names in tools.items():
        made[backend_id] = ScriptedBackend(name=backend_id)
        for name in names.split():
            made[backend_id].add_tool(name)
            made[backend_id].add_prompt(name)
    return made


def resolved_by(strategy: ConflictResolution, **more: Any) -> FactorySettings:
    return FactorySettings(conflict_resolution=strategy, **more)


def owners(session: Session) -> dict[str, tuple[str, str]]:
    """Advertised tool to backend and its own name, checked against the table and the prompts."""
    tools = {tool.name: (tool.backend_id, tool.backend_name) for tool in session.tools}
    assert {name: Target(*to) for name, to in tools.items()} == session.routing_table.tools
    assert tools == {prompt.name: (prompt.backend_id, prompt.backend_name) for prompt in session.prompts}
    return tools


@pytest.mark.parametrize(
    ("strategy", "expected", "conflicts"),
    [
        (
            Prefix(),
            {"a_x": ("a", "x"), "a_y": ("a", "y"), "b_x": ("b", "x"), "c_z": ("c", "z")},
            {},
        ),
        (
            Prefix("mcp.{backend}."),
            {"mcp.a.x": ("a", "x"), "mcp.a.y": ("a", "y"), "mcp.b.x": ("b", "x"), "mcp.c.z": ("c", "z")},
            {},
        ),
        (Bare(), {"x": ("a", "x"), "y": ("a", "y"), "z": ("c", "z")}, {"x": "a"}),
        (Priority("c", "b"), {"x": ("b", "x"), "y": ("a", "y"), "z": ("c", "z")}, {"x": "b"}),
        (
            Manual({"one": ("b", "x"), "two": ("a", "x"), "gone": ("z", "x")}),
            {"one": ("b", "x"), "two": ("a", "x")},
            {},
        ),
    ],
)
async def test_every_strategy_routes_to_its_owner(
    strategy: ConflictResolution,
    expected: dict[str, tuple[str, str]],
    conflicts: dict[str, str],
    autojump_clock: MockClock,
) -> None:
    """Each advertised name is executed by the backend that the session names as owner, and by no other."""
    backends = backends_of(a="x y", b="x", c="z")
    settings = resolved_by(strategy, names_for="mcp")  # dots stay
    async with open_world(backends, settings=settings) as world, world.open_session() as session:
        assert expected == owners(session)
        assert conflicts == {conflict.name: conflict.owner for conflict in session.conflicts if conflict.kind == "tool"}
        for name, (backend_id, own_name) in expected.items():
            before = backends[backend_id].executed[own_name]
            assert backend_id == (await session.call_tool(name)).backend_id
            assert before + 1 == backends[backend_id].executed[own_name]
            assert backend_id == (await session.get_prompt(name)).backend_id
        assert {name: to[0] for name, to in expected.items()} == session.metadata.bindings["tools"]


@pytest.mark.parametrize("order", list(permutations((0.0, 1.0, 2.0))))
@pytest.mark.parametrize("strategy", [Bare(), Priority("c")])
async def test_names_do_not_depend_on_the_order_of_connecting(
    strategy: ConflictResolution, order: tuple[float, ...], autojump_clock: MockClock
) -> None:
    """Names are bound when the opening ends, in configured order."""
    backends = backends_of(a="x", b="x", c="x")
    for backend, seconds in zip(backends.values(), order, strict=True):
        backend.fail(CONNECT, Delay(seconds), times=1)
    async with open_world(backends, settings=resolved_by(strategy)) as world, world.open_session() as session:
        assert {"x": ("c" if strategy == Priority("c") else "a", "x")} == owners(session)


@pytest.mark.parametrize("down", ["a", "b", "c"])
async def test_a_prefixed_name_does_not_depend_on_other_backends(down: str, autojump_clock: MockClock) -> None:
    """Whichever backends are missing, the names of others are called as ever."""
    backends = backends_of(a="x", b="x", c="x")
    backends[down].fail(CONNECT, Refuse())
    async with open_world(backends) as world, world.open_session() as session:
        assert {f"{name}_x": (name, "x") for name in "abc" if name != down} == owners(session)


async def test_a_name_belongs_to_the_longest_prefix(autojump_clock: MockClock) -> None:
    """ "a" + "_" + "_b" and "a_" + "_" + "b": the name begins with "a__", so it is that of "a_"; reported."""
    async with open_world(backends_of(a="_b x", a_="b x")) as world, world.open_session() as session:
        assert {"a_x": ("a", "x"), "a__x": ("a_", "x"), "a__b": ("a_", "b")} == owners(session)
        assert (
            NameConflict("tool", "a__b", ("a", "a_"), "a_"),
            NameConflict("prompt", "a__b", ("a", "a_"), "a_"),
        ) == session.conflicts
        assert "a_" == (await session.call_tool("a__b")).backend_id


async def test_a_name_inside_the_prefix_of_a_missing_backend_waits_for_it(autojump_clock: MockClock) -> None:
    """The backend is down when the session opens: the name is not given to the other, not even for a moment."""
    backends = backends_of(a="_b x", a_="b x")
    backends["a_"].fail(CONNECT, Refuse())
    async with open_world(backends) as world, world.open_session() as session:
        assert {"a_x": ("a", "x")} == owners(session)
        assert [("a__b", "a_")] == [(conflict.name, conflict.owner) for conflict in session.conflicts[:1]]
        with pytest.raises(ToolNotFound):
            await session.call_tool("a__b")
        backends["a_"].heal()
        await trio.sleep(10)
        assert "a_" == (await session.call_tool("a__b")).backend_id
        await session.remove_backend("a_")
        with pytest.raises(ToolNotFound):
            await session.call_tool("a__b")


async def test_a_late_joiner_takes_no_name(autojump_clock: MockClock) -> None:
    """What was bound when the opening ended stays bound; the joiner's own name is withheld and reported."""
    backends = backends_of(a="x y", b="x")
    backends["a"].fail(CONNECT, Delay(8), times=1)
    settings = resolved_by(Bare(), session_init_timeout=5)
    async with open_world(backends, settings=settings) as world, world.open_session() as session:
        assert {"x": ("b", "x")} == owners(session)
        await trio.sleep(5)
        assert {"y": ("a", "y"), "x": ("b", "x")} == owners(session)
        assert (
            NameConflict("tool", "x", ("a", "b"), "b"),
            NameConflict("prompt", "x", ("a", "b"), "b"),
        ) == session.conflicts
        assert "b" == (await session.call_tool("x")).backend_id
        assert {"x": "b", "y": "a"} == session.metadata.bindings["tools"]


@pytest.mark.parametrize(
    ("allow", "deny", "expected"),
    [
        (None, (), {"a_x", "a_y", "a_z"}),
        (("x", "nowhere"), (), {"a_x"}),
        ((), (), set()),
        (None, ("x", "nowhere"), {"a_y", "a_z"}),
        (("x", "y"), ("y",), {"a_x"}),
        (("X",), (), set()),
    ],
)
async def test_allow_and_deny(
    allow: tuple[str, ...] | None, deny: tuple[str, ...], expected: set[str], autojump_clock: MockClock
) -> None:
    """The backend's own names, tools only; deny wins; what is not advertised cannot be called."""

    def configure(backend: Backend) -> Backend:
        return attrs.evolve(backend, allow_tools=allow, deny_tools=deny)

    backends = backends_of(a="x y z")
    async with open_world(backends, configure=configure) as world, world.open_session() as session:
        assert expected == {tool.name for tool in session.tools}
        assert 3 == len(session.prompts)
        for hidden in {"a_x", "a_y", "a_z"} - expected:
            with pytest.raises(ToolNotFound):
                await session.call_tool(hidden)
        assert 0 == backends["a"].executed.total()


async def test_a_denied_tool_does_not_take_a_name(autojump_clock: MockClock) -> None:
    """A name that the first backend may not advertise goes to the next one, without a conflict."""

    def configure(backend: Backend) -> Backend:
        return attrs.evolve(backend, deny_tools={"x"}) if backend.id == "a" else backend

    backends = {"a": echo_backend(), "b": echo_backend()}
    for backend in backends.values():
        backend.add_tool("x")
    async with open_world(backends, settings=resolved_by(Bare()), configure=configure) as world:
        async with world.open_session() as session:
            assert "b" == (await session.call_tool("x")).backend_id
            assert ["echo"] == [conflict.name for conflict in session.conflicts]


async def test_a_long_name_is_shortened_and_still_calls(autojump_clock: MockClock) -> None:
    """At most `max_name_length`, deterministic, and two that begin alike stay apart."""
    backends = backends_of(a=f"{'x' * 100}1 {'x' * 100}2")
    settings = FactorySettings(max_name_length=64)
    seen: list[list[str]] = []
    async with open_world(backends, settings=settings) as world:
        for _ in range(2):
            async with world.open_session() as session:
                seen.append([tool.name for tool in session.tools])
                assert [64, 64] == [len(name) for name in seen[-1]]
                await session.call_tool(seen[-1][1])
                with pytest.raises(ToolNotFound):
                    await session.call_tool(f"a_{'x' * 100}1")
    assert seen[0] == seen[1]
    assert 2 == len(set(seen[0]))
    assert {"x" * 100 + "2": 2} == backends["a"].executed


async def test_the_first_backend_serves_a_resource(autojump_clock: MockClock) -> None:
    """URIs are never rewritten; of several that list one the first in configured order answers."""
    backends = backends_of(a="", b="")
    for mark, backend in backends.items():
        backend.add_resource("memo://shared", f"{mark}'s")
        backend.add_resource(f"memo://{mark}", f"{mark}'s")
        backend.add_resource_template("memo://shared/{day}", f"{mark}'s")
    async with open_world(backends) as world, world.open_session() as session:
        assert ["memo://shared", "memo://a", "memo://b"] == [resource.uri for resource in session.resources]
        assert ["a"] == [template.backend_id for template in session.resource_templates]
        assert (
            NameConflict("resource", "memo://shared", ("a", "b"), "a"),
            NameConflict("resource", "memo://shared/{day}", ("a", "b"), "a"),
        ) == session.conflicts
        for uri, owner in (("memo://shared", "a"), ("memo://b", "b"), ("memo://shared/monday", "a")):
            result = await session.read_resource(uri)
            assert (owner, f"{owner}'s") == (result.backend_id, result.contents[0]["text"])


async def test_a_catch_all_template_takes_no_uri_of_another(autojump_clock: MockClock) -> None:
    """A backend first in order begins to list `{+anything}` and then a template equal to another's: what only the other
    described stays there, and of the equal ones there is a conflict.
    """
    backends = {"a": ScriptedBackend(listens=True), "b": ScriptedBackend()}
    backends["a"].add_resource("memo://a", "a's")
    backends["b"].add_resource_template("db://{table}/{row}", "b's")
    async with open_world(backends) as world, world.open_session() as session:
        assert "b" == (await session.read_resource("db://users/7")).backend_id
        backends["a"].add_resource_template("{+anything}", "a's")
        await announce(backends["a"])
        assert "b" == (await session.read_resource("db://users/7")).backend_id
        assert Target("a", "x://y") == session.routing_table.find_resource("x://y")
        assert not session.conflicts
        backends["a"].add_resource_template("db://{table}/{row}", "a's")
        await announce(backends["a"])
        assert (NameConflict("resource", "db://{table}/{row}", ("a", "b"), "a"),) == session.conflicts


class SubscribableBackend(ScriptedBackend):
    async def call(self, context: CallContext) -> JSON:
        if context.method in ("resources/subscribe", "resources/unsubscribe"):
            return {}
        return await super().call(context)


async def announce(backend: ScriptedBackend) -> None:
    backend.notify("notifications/resources/list_changed")
    await trio.sleep(2)


@pytest.mark.parametrize("new", [("resource", "db://users/7"), ("template", "db://{table}/7")])
async def test_a_subscription_and_the_reads_of_a_uri_go_to_one_owner(
    new: tuple[str, str], autojump_clock: MockClock
) -> None:
    """Another backend begins to list a URI that is subscribed to: reads stay with the subscription until it ends."""
    backends: dict[str, ScriptedBackend] = {"a": SubscribableBackend(listens=True), "b": SubscribableBackend()}
    backends["a"].add_resource("memo://a", "a's")
    backends["b"].add_resource_template("db://{table}/{row}", "b's")
    for backend in backends.values():
        backend.capabilities = {"resources": {"subscribe": True, "listChanged": True}}
    uri = "db://users/7"
    async with open_world(backends) as world, world.open_session() as session:
        await session.subscribe_resource(uri)
        kind, listed = new
        if kind == "resource":
            backends["a"].add_resource(listed, "a's")
        else:
            backends["a"].add_resource_template(listed, "a's")
        await announce(backends["a"])
        assert Target("a", uri) == session.routing_table.find_resource(uri)
        assert "b" == (await session.read_resource(uri)).backend_id
        await session.subscribe_resource(uri)
        asked = [len(backends[backend_id].received("resources/subscribe")) for backend_id in ("a", "b")]
        assert [0, 2] == asked
        await session.unsubscribe_resource(uri)
        assert 1 == len(backends["b"].received("resources/unsubscribe"))
        assert "a" == (await session.read_resource(uri)).backend_id


async def test_a_template_that_cannot_be_read_is_listed_and_matches_nothing(autojump_clock: MockClock) -> None:
    """One malformed template costs itself."""
    backends = backends_of(a="x")
    backends["a"].add_resource_template("memo://{")
    backends["a"].add_resource_template("memo://{day}", "a day")
    async with open_world(backends) as world, world.open_session() as session:
        assert ["memo://{", "memo://{day}"] == [template.uri_template for template in session.resource_templates]
        assert "a" == (await session.read_resource("memo://monday")).backend_id


async def test_the_table_is_read_only(autojump_clock: MockClock) -> None:
    """What a caller holds cannot change the session."""
    async with open_world(backends_of(a="x")) as world, world.open_session() as session:
        for mapping in (
            session.routing_table.tools,
            session.routing_table.prompts,
            session.routing_table.resources,
            session.backend_sessions,
            session.metadata.bindings["tools"],
        ):
            assert not isinstance(mapping, MutableMapping)


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        (FactorySettings(conflict_resolution=Manual({"time.now": ("a", "now"), "later": ("a", "then")})), 1),
        (FactorySettings(conflict_resolution=Manual({"x" * 65: ("a", "now")})), 1),
        (FactorySettings(conflict_resolution=Manual({"x" * 17: ("a", "now")}), max_name_length=16), 1),
        (FactorySettings(conflict_resolution=Manual({"time.now": ("a", "now")}), names_for="mcp"), 0),
        (FactorySettings(conflict_resolution=Manual({"time_now": ("a", "now")})), 0),
        (FactorySettings(conflict_resolution=Prefix("{backend}.")), 0),
    ],
)
async def test_given_names_that_are_changed_are_warned_about(
    settings: FactorySettings, changed: int, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A name in `Manual` is looked up as it was given: the warning says what it is advertised as instead."""
    async with open_world(backends_of(a="now then"), settings=settings) as world, world.open_session() as session:
        warnings = [message for message in caplog.messages if "Manual" in message]
        assert changed == len(warnings)
        strategy = settings.conflict_resolution
        given = strategy.names if isinstance(strategy, Manual) else {}
        shown = {tool.name for tool in session.tools} - given.keys() if changed else set()
        assert all(repr(name) in warnings[0] for name in shown)
        assert changed == len(shown)
