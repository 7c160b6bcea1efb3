"""A change of very many names takes effect at once for all readers, although it is worked out in many steps."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from support.steps import counting_steps
from trio.testing import MockClock

from trio_vmcp import (
    JSON,
    Backend,
    BackendRecord,
    CapabilityNotFound,
    ConflictResolution,
    FactorySettings,
    Identity,
    OnProgress,
    Prefix,
    Session,
    SessionChange,
    open_session_factory,
)
from trio_vmcp._protocol.methods import Kind
from trio_vmcp._routing import names
from trio_vmcp._session import directory

LISTS = {"tools": "name", "prompts": "name", "resources": "uri", "resourceTemplates": "uriTemplate"}
FIELDS = {"resourceTemplates": "resource_templates"}  # of a session, where they are called otherwise
METHODS = {"resourceTemplates": "resources/templates/list"}
CAPABILITIES: JSON = {kind: {} for kind in ("tools", "prompts", "resources", "completions")}
MANY = 60  # with the limits of `few_at_once`
EVERY_LIST = pytest.mark.parametrize("what", list(LISTS))


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is many, and so is done in steps, is twenty."""
    monkeypatch.setattr(directory, "MOST_AT_ONCE", 20)
    monkeypatch.setattr(names, "AT_ONCE", 2)


@attrs.define(eq=False)
class Client:
    """A `BackendClient` with lists of its own."""

    record: BackendRecord
    events: Callable[[str, JSON], None]
    lists: dict[str, list[JSON]]
    server_capabilities: JSON = attrs.field(factory=lambda: CAPABILITIES)

    async def request(
        self, method: str, params: JSON, *, identity: Identity | None, timeout: float, on_progress: OnProgress | None
    ) -> JSON:
        await trio.lowlevel.checkpoint()
        for what in LISTS:
            if method == METHODS.get(what, f"{what}/list"):
                return {what: self.lists.get(what, [])}
        return {"content": [], "messages": [], "contents": [], "completion": {"values": []}}

    async def aclose(self, *, terminate: bool) -> None:
        await trio.lowlevel.checkpoint()

    def change(self, what: str, listed: list[JSON]) -> None:
        self.lists = {**self.lists, what: listed}
        self.events(f"notifications/{what.removesuffix('Templates')}{'s' if 'Temp' in what else ''}/list_changed", {})


def entries(what: str, mark: str, count: int = MANY) -> list[JSON]:
    form = "m://{}/{}/{{x}}" if what == "resourceTemplates" else "m://{}/{}" if what == "resources" else "{}{}"
    return [{LISTS[what]: form.format(mark, number), "name": f"{mark}{number}"} for number in range(count)]


@attrs.define(eq=False)
class World:
    """One session over backends that list what they are told to."""

    clients: dict[str, Client] = attrs.field(factory=dict)
    first: dict[str, dict[str, list[JSON]]] = attrs.field(factory=dict)  # by backend id

    async def connect(self, backend: Backend, *, events: Callable[[str, JSON], None], **_: Any) -> Client:
        await trio.lowlevel.checkpoint()
        record = BackendRecord(backend.id, None, "legacy", "2025-11-25", CAPABILITIES, "digest")
        client = self.clients[backend.id] = Client(record, events, self.first.get(backend.id, {}))
        return client

    @asynccontextmanager
    async def open_session(
        self, *backend_ids: str, strategy: ConflictResolution | None = None
    ) -> AsyncIterator[Session]:
        settings = FactorySettings(conflict_resolution=strategy or Prefix(), idle_timeout=math.inf)
        async with (
            open_session_factory(connector=self.connect, settings=settings) as factory,
            factory.open_session([backend(backend_id) for backend_id in backend_ids]) as session,
        ):
            await trio.sleep(120)
            yield session


def backend(backend_id: str) -> Backend:
    return Backend(backend_id, f"http://{backend_id}.test/")


def read(session: Session, what: str) -> list[str]:
    listed: tuple[Any, ...] = getattr(session, FIELDS.get(what, what))
    return [entry.raw["name"] for entry in listed]


def names_of(mark: str, count: int = MANY) -> list[str]:
    return [f"{mark}{number}" for number in range(count)]


@EVERY_LIST
async def test_readers_see_what_was_before_or_what_is_after(what: str, autojump_clock: MockClock) -> None:
    """In each step of a change of many names, by the lists and by the table; other tasks run in between."""
    world = World(first={"a": {what: entries(what, "old")}})
    async with world.open_session("a") as session:
        seen: list[list[str]] = [read(session, what)]
        world.clients["a"].change(what, entries(what, "new"))
        with counting_steps() as steps:
            while seen[-1] != names_of("new"):
                await trio.lowlevel.checkpoint()
                if (now := read(session, what)) != seen[-1]:
                    seen.append(now)
                if what in ("tools", "prompts", "resources"):
                    assert len(getattr(session.routing_table, what)) == MANY
        assert [names_of("old"), names_of("new")] == seen
        assert steps.count >= 2 * MANY // names.AT_ONCE


@EVERY_LIST
async def test_a_change_that_comes_meanwhile_has_its_turn(what: str, autojump_clock: MockClock) -> None:
    """Of another backend: neither is lost, and each is told once callers can read it."""
    world = World(first={"a": {what: entries(what, "old")}, "b": {}})
    kind: Kind = "tools" if what == "tools" else "prompts" if what == "prompts" else "resources"
    async with world.open_session("a", "b") as session, session.changes() as changes:
        world.clients["a"].change(what, entries(what, "new"))
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        assert names_of("old") == read(session, what)
        world.clients["b"].change(what, entries(what, "few", 3))
        assert SessionChange(kind, "a") == await changes.receive()
        assert names_of("new") == read(session, what)[:MANY]
        assert SessionChange(kind, "b") == await changes.receive()
        assert [*names_of("new"), *names_of("few", 3)] == read(session, what)


async def test_a_backend_that_is_added_has_its_names_when_it_has_joined(autojump_clock: MockClock) -> None:
    """However many; those of the others stay."""
    world = World(first={"a": {"tools": entries("tools", "x")}, "b": {"tools": entries("tools", "y")}})
    async with world.open_session("a") as session:
        await session.add_backend(backend("b"))
        assert [*names_of("x"), *names_of("y")] == read(session, "tools")
        await session.call_tool("b_y1")


async def ask(session: Session, what: str, backend_id: str, mark: str) -> None:
    """Make a call with one of its names."""
    (entry,) = entries(what, mark, 1)
    name = f"{backend_id}_{entry['name']}"
    match what:
        case "tools":
            await session.call_tool(name)
        case "prompts":
            await session.get_prompt(name)
        case "resources":
            await session.read_resource(entry["uri"])
        case _:
            await session.complete({"type": "ref/resource", "uri": entry["uriTemplate"]}, {"name": "x", "value": ""})


@EVERY_LIST
async def test_the_names_of_a_removed_backend_are_gone_at_once(what: str, autojump_clock: MockClock) -> None:
    """For calls, although lists are still to be updated; for lists when the removal returns."""
    world = World(first={"a": {what: entries(what, "x", 3)}, "b": {what: entries(what, "y")}})
    async with world.open_session("a", "b") as session, trio.open_nursery() as nursery:
        await ask(session, what, "b", "y")
        nursery.start_soon(session.remove_backend, "b")
        while "b" in {known for known, status in session.backends.items() if status.state.name != "REMOVED"}:  # noqa: ASYNC110
            await trio.lowlevel.checkpoint()
        with pytest.raises(CapabilityNotFound):
            await ask(session, what, "b", "y")
        assert [*names_of("x", 3), *names_of("y")] == read(session, what)
        await ask(session, what, "a", "x")
        nursery.cancel_scope.cancel()
        await trio.sleep(1)
        assert names_of("x", 3) == read(session, what)


async def test_a_session_can_be_closed_in_every_step_of_a_change(autojump_clock: MockClock) -> None:
    """And nothing of the change is told afterwards."""
    for step in range(0, 200, 7):
        world = World(first={"a": {"tools": entries("tools", "old")}})
        async with world.open_session("a") as session:
            world.clients["a"].change("tools", entries("tools", "new"))
            for _ in range(step):
                await trio.lowlevel.checkpoint()
            begun_at = trio.current_time()
            await session.aclose()
            assert begun_at == trio.current_time()
            assert read(session, "tools") in (names_of("old"), names_of("new"))
