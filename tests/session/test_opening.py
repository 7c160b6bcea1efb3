"""Opening: parallel, bounded per session, and a backend that fails is data, not an error."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from support.harness import assert_nothing_left, echo_backend, library_tasks, open_world
from support.plain_connector import PlainConnector, plain_backends
from support.scripted_storage import ScriptedStorage
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    Backend,
    BackendClient,
    BackendFailure,
    BackendState,
    BackendUnavailable,
    FactorySettings,
    FailureReason,
    InvalidSessionId,
    NoBackends,
    SessionClosed,
    SessionExists,
    SessionState,
    StorageError,
    ToolNotFound,
    open_session_factory,
)
from trio_vmcp.testing import CONNECT, Delay, Error, Fault, Hang, Raw, Refuse, Rewrite, ScriptedBackend, Status

KIB = 1024

LEGACY_AND_MODERN = pytest.mark.parametrize("era", ["legacy", "modern"])


def hanging_backend(era: str = "legacy") -> ScriptedBackend:
    """A backend that accepts every request and answers none."""
    backend = echo_backend(era)
    backend.fail("POST", Hang())
    return backend


def lasting(seconds: float) -> Callable[[], Awaitable[None]]:
    return partial(trio.sleep, seconds)


def reasons(failures: tuple[BackendFailure, ...]) -> dict[str, FailureReason]:
    return {failure.backend_id: failure.reason for failure in failures}


# Parallel and bounded


async def test_backends_are_connected_side_by_side(autojump_clock: MockClock) -> None:
    """Ten backends take as long as the slowest of them."""
    connector = PlainConnector(on_connect={f"b{number}": lasting(number) for number in range(10)})
    async with (
        open_session_factory(connector=connector) as factory,
        factory.open_session(plain_backends(10)) as session,
    ):
        assert 9.0 == trio.current_time()
        assert 10 == len(session.tools)


@settings(max_examples=60)
@given(
    backends=st.integers(0, 25),
    limit=st.integers(1, 12),
    backend_timeout=st.integers(1, 9),
    session_timeout=st.integers(1, 30),
)
def test_an_opening_ends_at_its_bound(backends: int, limit: int, backend_timeout: int, session_timeout: int) -> None:
    """Every backend hangs: the opening takes ceil(N / limit) x its timeout or the session's, the less."""
    connector = PlainConnector(on_connect={f"b{number}": trio.sleep_forever for number in range(backends)})
    limits = FactorySettings(
        max_backend_init_concurrency=limit,
        backend_init_timeout=backend_timeout,
        session_init_timeout=session_timeout,
    )

    async def main() -> None:
        begun = trio.current_time()
        async with open_session_factory(connector=connector, settings=limits) as factory:
            async with factory.open_session(plain_backends(backends)) as session:
                waves = math.ceil(backends / limit)
                assert min(session_timeout, waves * backend_timeout) == trio.current_time() - begun
                assert backends == len(session.failures)
                assert connector.most_connecting <= limit

    trio.run(main, clock=MockClock(autojump_threshold=0))


@LEGACY_AND_MODERN
async def test_one_hung_backend_among_thirty_costs_the_others_nothing(era: str, autojump_clock: MockClock) -> None:
    """The others are connected and listed at once; the hung one's attempt ends on time and closes its connection."""
    hung = hanging_backend(era)
    backends = {f"b{number}": hung if number == 3 else echo_backend(era) for number in range(30)}
    async with open_world(backends) as world, world.open_session() as session:
        assert 30.0 == trio.current_time()
        assert {0.0} == {b.received("tools/list")[0].ended_at for b in backends.values() if b is not hung}
        assert 29 == len(session.tools)
        assert {"b3": FailureReason.TIMEOUT} == reasons(session.failures)
        (failure,) = session.failures
        assert 30.0 == failure.elapsed
        assert "within 30.0 s (backend_init_timeout)" in failure.detail
        await wait_all_tasks_blocked()
        assert 0 == hung.open_connections
        await session.call_tool("b29_echo")


async def test_two_sessions_have_their_places_each(autojump_clock: MockClock) -> None:
    """The limit is per session: two that open at once connect to 20 backends at the same time, and never to more."""
    connector = PlainConnector(on_connect={f"b{number}": lasting(1) for number in range(30)})
    async with open_session_factory(connector=connector) as factory:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(factory.make_session, plain_backends(30))
        assert 3.0 == trio.current_time()
    assert 20 == connector.most_connecting


async def test_places_are_given_in_the_order_of_the_backends(autojump_clock: MockClock) -> None:
    """With one place the backends connect one after the other, as they were passed."""
    connector = PlainConnector(on_connect={f"b{number}": lasting(1) for number in range(8)})
    limits = FactorySettings(max_backend_init_concurrency=1)
    async with open_session_factory(connector=connector, settings=limits) as factory:
        await factory.make_session(plain_backends(8))
    assert [(f"b{number}", float(number)) for number in range(8)] == list(connector.started.items())


async def test_a_backends_time_begins_with_its_place(autojump_clock: MockClock) -> None:
    """Waiting for a place does not count against `backend_init_timeout`."""
    connector = PlainConnector(on_connect={f"b{number}": lasting(4) for number in range(5)})
    limits = FactorySettings(max_backend_init_concurrency=1, backend_init_timeout=5)
    async with open_session_factory(connector=connector, settings=limits) as factory:
        async with factory.open_session(plain_backends(5)) as session:
            assert () == session.failures
            assert 20.0 == trio.current_time()


async def test_ready_at_the_very_deadline(autojump_clock: MockClock) -> None:
    """A backend that is ready at the instant of its deadline has either joined or failed."""
    connector = PlainConnector(on_connect={"b0": lasting(5)})
    async with (
        open_session_factory(connector=connector, settings=FactorySettings(backend_init_timeout=5)) as factory,
        factory.open_session(plain_backends(1)) as session,
    ):
        assert 5.0 == trio.current_time()
        assert 1 == len(session.tools) + len(session.failures)
    assert [client.closed for client in connector.clients.values()] in ([[True]], [])


async def test_the_row_is_created_once_when_the_opening_ends(autojump_clock: MockClock) -> None:
    """The row names the connected backends, and nothing is written before."""
    storage = ScriptedStorage()
    connector = PlainConnector(on_connect={"b1": lasting(5)})
    async with open_session_factory(storage=storage, connector=connector) as factory:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(factory.make_session, plain_backends(2))
            await trio.sleep(4)
            assert Counter() == storage.calls
        (row,) = await storage.rows()
        assert Counter(create=1) == storage.calls
        assert ["b0", "b1"] == [record.backend_id for record in row.backends]
        assert {"b0_echo": "b0", "b1_echo": "b1"} == row.bindings["tools"]


# Partial failure


def page_after_page(page: dict[str, Any]) -> dict[str, Any]:
    page["result"]["nextCursor"] = "after 0"
    page["result"]["tools"] = [{"name": f"t{page['id']}"}]  # a new one each time, or the list would end
    return page


@pytest.mark.parametrize(
    ("when", "fault", "reason", "detail"),
    [
        (CONNECT, Refuse(), FailureReason.UNREACHABLE, "could not be reached"),
        (
            "initialize",
            Hang(),
            FailureReason.TIMEOUT,
            "did not answer 'initialize' within 30.0 s",
        ),
        (
            "tools/list",
            Hang(),
            FailureReason.TIMEOUT,
            "did not answer 'tools/list' within 30.0 s",
        ),
        ("initialize", Status(401), FailureReason.UNAUTHORIZED, "refused 'initialize' without credentials: HTTP 401"),
        ("tools/list", Status(403), FailureReason.UNAUTHORIZED, "refused 'tools/list' without credentials: HTTP 403"),
        (
            "initialize",
            Status(200, b"<html>", {"content-type": "text/html"}),
            FailureReason.PROTOCOL,
            "answered a request with HTTP 200 and 'text/html'",
        ),
        ("initialize", Raw(b"SSH-2.0-OpenSSH_9.7\r\n\r\n"), FailureReason.PROTOCOL, "does not speak HTTP/1.1"),
        ("initialize", Error(-32603, "out of order"), FailureReason.REJECTED, "'out of order' (-32603)"),
        ("tools/list", Error(-32601, "what?"), FailureReason.REJECTED, "'what?' (-32601)"),
        ("tools/list", Rewrite(page_after_page), FailureReason.LIMIT, "has not ended 'tools/list' after 20 pages"),
        (
            "tools/list",
            Rewrite(lambda page: {**page, "result": {"tools": "none"}}),
            FailureReason.PROTOCOL,
            "answered 'tools/list' without an array 'tools'",
        ),
        (
            "tools/list",
            Rewrite(lambda page: {**page, "result": {"tools": [{}] * 10_001}}),
            FailureReason.LIMIT,
            "lists over 10000 items (max_items_per_backend)",
        ),
        (
            "tools/list",
            Rewrite(lambda page: {**page, "result": {"tools": [{"name": "a", "x": [0] * 100_000}]}}),
            FailureReason.LIMIT,
            "sent a message that holds over 100000 values (max_json_values)",
        ),
    ],
)
async def test_a_failing_backend_is_data(
    when: str,
    fault: Fault,
    reason: FailureReason,
    detail: str,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The session opens without it; `failures` and one warning say which backend, why and after how long."""
    backends = {"good": echo_backend(), "bad": echo_backend()}
    backends["bad"].fail(when, fault)
    limits = FactorySettings(max_pages=20)
    async with open_world(backends, settings=limits) as world, world.open_session() as session:
        assert ["good_echo"] == [tool.name for tool in session.tools]
        (failure,) = session.failures
        assert ("bad", reason) == (failure.backend_id, failure.reason)
        assert detail in failure.detail
        assert trio.current_time() == failure.elapsed
    (warning,) = (r for r in caplog.records if r.levelno == logging.WARNING and "is missing" in r.getMessage())
    assert f"backend 'bad' is missing ({reason.value}): it {failure.detail}" in warning.getMessage()


async def test_hosts_that_are_not_there_are_failures(autojump_clock: MockClock) -> None:
    """An unknown host is unreachable, over the older transport as well; neither raises."""
    async with open_world({"good": echo_backend()}) as world:
        backends = [
            *world.configured,
            Backend(id="gone", url="http://gone.test/mcp"),
            Backend(id="old", url="http://gone.test/sse", transport="sse"),
        ]
        async with world.factory.open_session(backends) as session:
            unreachable = FailureReason.UNREACHABLE
            assert {"gone": unreachable, "old": unreachable} == reasons(session.failures)
            assert 1 == len(session.tools)


async def test_a_connector_may_raise_anything(autojump_clock: MockClock) -> None:
    """Any exception is a failure of that backend, and the detail says its type, not its text."""

    async def crash() -> None:
        raise ZeroDivisionError("secret")

    connector = PlainConnector(on_connect={"b0": crash})
    async with open_session_factory(connector=connector) as factory, factory.open_session(plain_backends(2)) as session:
        (failure,) = session.failures
        assert "could not be connected: ZeroDivisionError" == failure.detail
        assert FailureReason.UNREACHABLE is failure.reason
        assert ["b1_echo"] == [tool.name for tool in session.tools]


@LEGACY_AND_MODERN
async def test_all_backends_fail_and_the_session_is_usable(era: str, autojump_clock: MockClock) -> None:
    """It opens empty, every call ends in a typed error, and it closes."""
    backends = {name: echo_backend(era) for name in "abc"}
    for backend in backends.values():
        backend.fail(CONNECT, Refuse())
    async with open_world(backends) as world:
        async with world.open_session() as session:
            assert ((), (), (), ()) == (session.tools, session.resources, session.resource_templates, session.prompts)
            assert ["a", "b", "c"] == [failure.backend_id for failure in session.failures]
            with pytest.raises(ToolNotFound):
                await session.call_tool("a_echo")
        assert SessionState.CLOSED is session.state


async def test_no_backends_at_all_is_an_empty_session() -> None:
    """Nothing to wait for."""
    async with open_session_factory() as factory, factory.open_session([]) as session:
        assert ((), ()) == (session.tools, session.failures)


async def test_too_few_backends_is_no_session(autojump_clock: MockClock) -> None:
    """Fewer than `min_backends`: the error carries every failure, and nothing is left of connected backends."""
    backends = {name: echo_backend() for name in "abc"}
    backends["b"].fail(CONNECT, Refuse())
    backends["c"].fail("POST", Status(401))
    async with open_world(backends, settings=FactorySettings(min_backends=2)) as world:
        with pytest.raises(NoBackends, match=r"1 backends connected, 2 wanted \(min_backends\)") as too_few:
            await world.make_session()
        assert {"b": FailureReason.UNREACHABLE, "c": FailureReason.UNAUTHORIZED} == reasons(
            tuple(too_few.value.failures)
        )
        await assert_nothing_left(world)
        assert 1 == len(backends["a"].deleted_sessions)
        backends["b"].heal()
        async with world.open_session() as session:
            assert 2 == len(session.tools)


# Joining late


async def test_a_late_backend_joins_when_ready(autojump_clock: MockClock) -> None:
    """Still connecting at session_init_timeout: PENDING, later a member with its names, in the metadata, too."""
    backends = {"slow": echo_backend(), "fast": echo_backend()}
    backends["slow"].fail(CONNECT, Delay(8))
    async with open_world(backends, settings=FactorySettings(session_init_timeout=5)) as world:
        async with world.open_session() as session:
            assert 5.0 == trio.current_time()
            assert ["fast_echo"] == [tool.name for tool in session.tools]
            (failure,) = session.failures
            assert FailureReason.PENDING is failure.reason
            assert "is still connecting after 5 s (session_init_timeout)" == failure.detail
            assert 5.0 == failure.elapsed
            with pytest.raises(ToolNotFound):
                await session.call_tool("slow_echo")

            await trio.sleep(4)
            assert () == session.failures
            assert ["slow_echo", "fast_echo"] == [tool.name for tool in session.tools]
            assert "slow" == (await session.call_tool("slow_echo")).backend_id
            assert {"slow", "fast"} == set(session.backend_sessions)
            (row,) = await world.storage.rows()
            assert row == session.metadata
            assert ["slow", "fast"] == [record.backend_id for record in row.backends]
            assert {"slow_echo": "slow", "fast_echo": "fast"} == row.bindings["tools"]


async def test_a_backend_without_a_place_is_pending(autojump_clock: MockClock) -> None:
    """Without a place at session_init_timeout: PENDING with 0 s elapsed; the backend gets its place later."""
    connector = PlainConnector(on_connect={f"b{number}": lasting(4) for number in range(3)})
    limits = FactorySettings(max_backend_init_concurrency=1, session_init_timeout=6)
    async with open_session_factory(connector=connector, settings=limits) as factory:
        async with factory.open_session(plain_backends(3)) as session:
            assert [("b1", 2.0), ("b2", 0.0)] == [(f.backend_id, f.elapsed) for f in session.failures]
            await trio.sleep(7)
            assert () == session.failures
            assert 3 == len(session.tools)


async def test_joining_while_the_row_is_being_written(autojump_clock: MockClock) -> None:
    """A backend that is ready while the opening writes the row joins, and is written afterwards."""
    storage = ScriptedStorage(before={"create": lasting(3)})
    connector = PlainConnector(on_connect={"b1": lasting(6)})
    limits = FactorySettings(session_init_timeout=5)
    async with open_session_factory(storage=storage, connector=connector, settings=limits) as factory:
        async with factory.open_session(plain_backends(2)) as session:
            await trio.sleep(1)
            assert ["b0_echo", "b1_echo"] == [tool.name for tool in session.tools]
            (row,) = await storage.rows()
            assert ["b0", "b1"] == [record.backend_id for record in row.backends]


async def test_two_backends_that_join_during_one_write_are_both_written(autojump_clock: MockClock) -> None:
    """A change during a write is written next."""
    storage = ScriptedStorage(before={"replace": lasting(3)})
    connector = PlainConnector(on_connect={"b1": lasting(6), "b2": lasting(7)})
    limits = FactorySettings(session_init_timeout=5)
    async with open_session_factory(storage=storage, connector=connector, settings=limits) as factory:
        async with factory.open_session(plain_backends(3)):
            await trio.sleep(10)
            (row,) = await storage.rows()
            assert ["b0", "b1", "b2"] == [record.backend_id for record in row.backends]


async def test_a_late_backend_that_fails_has_a_reason(autojump_clock: MockClock) -> None:
    """PENDING is replaced by the reason of the failure."""
    backends = {"a": echo_backend()}
    backends["a"].fail("POST", Hang())
    limits = FactorySettings(session_init_timeout=5, backend_init_timeout=9)
    async with open_world(backends, settings=limits) as world, world.open_session() as session:
        assert {"a": FailureReason.PENDING} == reasons(session.failures)
        await trio.sleep(5)
        assert {"a": FailureReason.TIMEOUT} == reasons(session.failures)


# Ids


@pytest.mark.parametrize("session_id", ["", "x" * 257, "a b", "a\n", "\x7f", "é", "a\ud800", 7])
async def test_an_invalid_session_id_contacts_no_backend(session_id: Any) -> None:
    """InvalidSessionId, and neither a backend nor the storage was asked."""
    storage, connector = ScriptedStorage(), PlainConnector()
    async with open_session_factory(storage=storage, connector=connector) as factory:
        for opening in (
            partial(factory.make_session, plain_backends(1), session_id=session_id),
            partial(factory.restore_session, session_id, plain_backends(1)),
        ):
            with pytest.raises(InvalidSessionId, match="1-256 characters of 0x21-0x7E") as invalid:
                await opening()
            assert str(session_id) not in str(invalid.value) or session_id in ("", 7)
    assert {} == connector.started
    assert Counter() == storage.calls


async def test_a_session_has_the_id_that_was_asked_for() -> None:
    """Up to 256 visible characters; without one, a random id of 32 bytes."""
    session_id = "".join(map(chr, range(0x21, 0x7F)))
    async with open_session_factory() as factory:
        async with factory.open_session([], session_id=session_id) as session:
            assert session_id == session.id == session.metadata.session_id
        drawn = {(await factory.make_session([])).id for _ in range(20)}
        assert 20 == len(drawn)
        assert {43} == set(map(len, drawn))  # 32 bytes in base64


async def test_an_id_is_taken_while_its_session_lives_and_a_while_after(autojump_clock: MockClock) -> None:
    """SessionExists: for a session that is opening, live, suspended, or was terminated within the TTL."""
    connector = PlainConnector(on_connect={"b0": lasting(1)})
    storage = ScriptedStorage()
    async with open_session_factory(connector=connector, storage=storage) as factory:
        make = partial(factory.make_session, plain_backends(1), session_id="one")

        async def is_taken() -> bool:
            with pytest.raises(SessionExists):
                await make()
            return True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(make)
            await wait_all_tasks_blocked()
            assert await is_taken()
        assert await is_taken()
        with pytest.raises(SessionExists):
            await factory.restore_session("one", [])
        (row,) = await storage.rows()
        assert "one" == row.session_id

    async with open_session_factory(connector=connector, storage=storage.inner) as factory:
        session = await factory.make_session([], session_id="two")
        await session.suspend()
        with pytest.raises(SessionExists):
            await factory.make_session([], session_id="two")
        await (await factory.restore_session("two", [])).aclose()
        for terminated in ("one", "two"):
            with pytest.raises(SessionExists):
                await factory.make_session(plain_backends(1), session_id=terminated)
        assert {"b0": [True]} == {name: client.closed for name, client in connector.clients.items()}
        await trio.sleep(storage.ttl)
        await factory.make_session([], session_id="two")


async def test_an_id_is_taken_while_the_storage_is_asked_about_it(autojump_clock: MockClock) -> None:
    """A second opening with the same id raises SessionExists at once, without asking the storage."""
    storage = ScriptedStorage(before={"load": lasting(1)})
    async with open_session_factory(storage=storage) as factory, trio.open_nursery() as nursery:
        nursery.start_soon(partial(factory.make_session, [], session_id="one"))
        await wait_all_tasks_blocked()
        with pytest.raises(SessionExists):
            await factory.make_session([], session_id="one")
        assert 0.0 == trio.current_time()
        assert Counter(load=1) == storage.calls


async def test_two_backends_cannot_have_one_id() -> None:
    """ValueError names the id, and no backend is contacted."""
    connector = PlainConnector()
    async with open_session_factory(connector=connector) as factory:
        with pytest.raises(ValueError, match="two backends have the id 'b0'"):
            await factory.make_session([*plain_backends(1), *plain_backends(1)])
        with pytest.raises(ValueError, match="two backends have the id 'b0'"):
            await factory.restore_session("one", [*plain_backends(1), *plain_backends(1)])
    assert {} == connector.started


async def test_a_closed_factory_opens_nothing() -> None:
    """SessionClosed, whether it is closing or closed."""
    async with open_session_factory() as factory:
        pass
    with pytest.raises(SessionClosed, match="factory is closing or closed"):
        await factory.make_session([])
    with pytest.raises(SessionClosed, match="factory is closing or closed"):
        await factory.restore_session("one", [])


# Storage that fails


async def raise_os_error() -> None:
    raise OSError("connection to storage.test refused")


async def raise_storage_error() -> None:
    raise StorageError("the disk is full")


@LEGACY_AND_MODERN
@pytest.mark.parametrize(
    ("before", "seconds", "text"),
    [
        (trio.sleep_forever, 5.0, r"the storage did not store the session within 5.0 s \(storage_timeout\)"),
        (raise_os_error, 0.0, "the storage failed to store the session: OSError"),
        (raise_storage_error, 0.0, "the disk is full"),
    ],
)
async def test_without_storage_there_is_no_session(
    era: str,
    before: Callable[[], Awaitable[None]],
    seconds: float,
    text: str,
    autojump_clock: MockClock,
) -> None:
    """The opening fails in bounded time with StorageError; connected backends are closed."""
    storage = ScriptedStorage(before={"create": before})
    async with open_world({"a": echo_backend(era)}, storage=storage) as world:
        with pytest.raises(StorageError, match=text):
            await world.make_session()
        assert seconds == trio.current_time()
        await assert_nothing_left(world)


async def test_a_write_of_unknown_outcome_leaves_no_row(autojump_clock: MockClock) -> None:
    """The storage stored the row and did not answer: the failed opening deletes the row again."""
    storage = ScriptedStorage(after={"create": trio.sleep_forever})
    async with open_world({"a": echo_backend()}, storage=storage) as world:
        with pytest.raises(StorageError):
            await world.make_session()
        assert [] == await storage.rows()


async def test_a_row_of_another_factory_is_not_deleted() -> None:
    """The opening that loses the race for an id leaves the winner's row."""
    storage = ScriptedStorage()

    async def be_second() -> None:
        async with open_session_factory(storage=storage.inner, settings=FactorySettings(on_exit="suspend")) as other:
            await other.make_session([], session_id="one")

    storage.before["create"] = be_second
    async with open_world({"a": echo_backend()}, storage=storage) as world:
        world.leaves_rows = True
        with pytest.raises(SessionExists):
            await world.make_session(session_id="one")
    assert ["one"] == [row.session_id for row in await storage.rows()]


# Lists


async def test_only_what_is_advertised_is_listed(autojump_clock: MockClock) -> None:
    """A backend that declares no prompts is not asked for any."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        assert ["initialize", "notifications/initialized", "tools/list"] == [e.method for e in backend.exchanges]
        assert () == session.prompts


async def test_every_page_of_every_list_is_read(autojump_clock: MockClock) -> None:
    """Tools, resources, templates and prompts, in the backend's order; unknown fields stay in `raw`."""
    backend = ScriptedBackend(page_size=2)
    for number in range(5):
        backend.add_tool(f"t{number}", title=f"Tool {number}", future={"x": number})
        backend.add_resource(f"memo://{number}")
        backend.add_resource_template(f"memo://{number}/{{day}}")
        backend.add_prompt(f"p{number}")
    async with open_world({"a": backend}) as world, world.open_session() as session:
        assert [f"a_t{number}" for number in range(5)] == [tool.name for tool in session.tools]
        assert [f"t{number}" for number in range(5)] == [tool.backend_name for tool in session.tools]
        assert [{"x": number} for number in range(5)] == [tool.raw["future"] for tool in session.tools]
        assert [f"memo://{number}" for number in range(5)] == [resource.uri for resource in session.resources]
        assert 5 == len(session.resource_templates)
        assert [f"a_p{number}" for number in range(5)] == [prompt.name for prompt in session.prompts]
        lists = (session.tools, session.resources, session.resource_templates, session.prompts)
        assert {"a"} == {entry.backend_id for entries in lists for entry in entries}


async def test_an_empty_cursor_is_a_cursor(autojump_clock: MockClock) -> None:
    """Only null or a missing cursor ends a list (MCP 2026-07-28, pagination)."""
    backend = echo_backend()
    backend.fail("tools/list", Rewrite(lambda page: page["result"].update(nextCursor="") or page), times=1)
    last = {"tools": [{"name": "last"}], "nextCursor": None}
    backend.fail("tools/list", Rewrite(lambda page: {"jsonrpc": "2.0", "id": page["id"], "result": last}))
    async with open_world({"a": backend}) as world, world.open_session() as session:
        assert ["a_echo", "a_last"] == [tool.name for tool in session.tools]
    assert [{}, {"cursor": ""}] == [exchange.params for exchange in backend.received("tools/list")]


async def test_a_list_that_fails_does_not_wait_for_the_others(autojump_clock: MockClock) -> None:
    """A rejected list is the backend's failure at once, though another list hangs."""
    backend = echo_backend()
    backend.add_prompt("greet")
    backend.fail("tools/list", Error(-32603, "no tools today"))
    backend.fail("prompts/list", Hang())
    async with open_world({"a": backend}) as world, world.open_session() as session:
        (failure,) = session.failures
        assert "rejected 'tools/list': 'no tools today' (-32603)" == failure.detail
        assert 0.0 == trio.current_time()


async def test_a_list_that_is_not_there_after_all_is_empty(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """-32601 for advertised resources or prompts: an empty list and a warning; the tools stay."""
    backend = echo_backend(capabilities={"tools": {}, "resources": {}, "prompts": {}})
    for method in ("resources/list", "resources/templates/list", "prompts/list"):
        backend.fail(method, Error(-32601, "what?"))
    async with open_world({"a": backend}) as world, world.open_session() as session:
        assert () == session.failures
        assert 1 == len(session.tools)
    assert 3 == sum("answers that it is not there" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("no object", "it is not an object"),
        ({"inputSchema": {}}, "its 'name' is not a non-empty string"),
        ({"name": ""}, "its 'name' is not a non-empty string"),
        ({"name": 7}, "its 'name' is not a non-empty string"),
        ({"name": "x", "inputSchema": []}, "its 'inputSchema' is not an object"),
        ({"name": "x", "description": 7}, "its 'description' is not a string"),
        ({"name": "x", "description": "\ud800"}, "half a surrogate pair"),
    ],
)
async def test_one_malformed_tool_costs_itself(
    entry: Any, problem: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is dropped with a warning with place and reason; the rest of the list stays."""
    backend = echo_backend()
    backend.fail("tools/list", Rewrite(lambda page: {**page, "result": {"tools": [entry, *page["result"]["tools"]]}}))
    async with open_world({"a": backend}) as world, world.open_session() as session:
        assert ["a_echo"] == [tool.name for tool in session.tools]
    (warning,) = (record.getMessage() for record in caplog.records if "dropped entry" in record.getMessage())
    assert "backend 'a': tools/list: dropped entry 0: " in warning
    assert problem in warning


# What a factory is given


async def test_a_factory_closes_the_storage_that_it_made_and_no_other(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A given storage belongs to the application, and may serve several factories."""
    storage = ScriptedStorage()
    async with open_session_factory(storage=storage):
        pass
    assert Counter() == storage.calls
    monkeypatch.setattr("trio_vmcp.factory.LocalStorage", lambda: storage)
    async with open_session_factory():
        pass
    assert Counter(aclose=1) == storage.calls


async def test_sessions_of_one_factory_are_strangers_to_each_other(autojump_clock: MockClock) -> None:
    """Each has connections and backend sessions of its own; closing one leaves the other alone."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world:
        async with world.open_session() as one:
            async with world.open_session() as other:
                assert one.id != other.id
                both = [*one.backend_sessions.values(), *other.backend_sessions.values()]
                assert both == [*backend.sessions]
            assert both[1:] == backend.deleted_sessions
            assert both[:1] == [*backend.sessions]
            await one.call_tool("a_echo")
        assert [] == library_tasks()


@pytest.mark.parametrize("listens", [True, False])
@pytest.mark.parametrize(("most", "seconds"), [(16, 0.4), (2, 0.5), (1, 0.7)])
async def test_the_connections_for_lists_are_made_ahead(
    most: int, seconds: float, listens: bool, autojump_clock: MockClock
) -> None:
    """A backend that is far away is asked for all lists at once. The connections for them are made while the backend
    takes `notifications/initialized`, so they cost no time. There are no more of them than calls may have, and one for
    the stream.
    """
    backend = ScriptedBackend(latency=0.1, listens=listens)
    backend.add_tool("tool")
    backend.add_prompt("prompt")
    backend.add_resource("mem://1")
    backend.add_resource_template("mem://{x}")
    settings = FactorySettings(max_connections_per_backend=most)
    async with open_world({"a": backend}, settings=settings) as world:
        world.network.connect_latency = 0.1
        began_at = trio.current_time()
        async with world.open_session():
            assert seconds == pytest.approx(trio.current_time() - began_at)
            assert min(most, 4) + listens == world.network.connection_attempts


async def test_connections_that_are_idle_are_not_made_ahead(autojump_clock: MockClock) -> None:
    """A second session at the same backend opens with those of the first."""
    backend = echo_backend(latency=0.1)
    backend.add_prompt("prompt")
    backend.add_resource("mem://1")
    async with open_world({"a": backend}) as world:
        async with world.open_session():
            before = world.network.connection_attempts
            async with world.open_session():
                assert before == world.network.connection_attempts == 4


async def test_a_new_connection_makes_none_ahead(autojump_clock: MockClock) -> None:
    """Known lists are read again one after another: a backend that comes back is not met with a connection for each."""
    backend = echo_backend(latency=0.1)
    backend.add_prompt("prompt")
    backend.add_resource("mem://1")
    async with open_world({"a": backend}) as world:
        async with world.open_session() as session:
            await trio.sleep(600)  # until no connection is idle
            backend.sessions.clear()
            before = world.network.connection_attempts
            await session.call_tool("a_echo")
            await trio.sleep(5)
            assert before + 2 == world.network.connection_attempts  # the call, and the lists beside it


async def test_a_failure_reads_as_a_sentence(autojump_clock: MockClock) -> None:
    """A call to a bound name of a missing backend says why the backend is missing."""
    backends = {"a": echo_backend()}
    async with open_world(backends) as world:
        world.leaves_rows = world.leaves_sessions = True
        session = await world.make_session()
        await session.suspend()
        backends["a"].fail(CONNECT, Refuse())
        await world.transport.aclose()
        restored = await world.restore_session(session.id)
        with pytest.raises(BackendUnavailable) as unavailable:
            await restored.call_tool("a_echo")
        assert str(unavailable.value).startswith("backend 'a' is not connected: it could not be reached")
        assert not unavailable.value.may_have_executed
        assert attrs.evolve(restored.failures[0], elapsed=0.0) == restored.failures[0]


async def test_the_last_slow_backend_asks_for_all_its_lists_at_once(autojump_clock: MockClock) -> None:
    """While other backends connect, lists are requested one after the other; the last backend requests its lists side
    by side.
    """
    near, far = ScriptedBackend(), ScriptedBackend(latency=1.0)
    for backend in (near, far):
        backend.add_tool("t")
        backend.add_resource("file:///r")
        backend.add_prompt("p")
    async with open_world({"near": near, "far": far}) as world:
        started = trio.current_time()
        async with world.open_session() as session:
            assert 3.0 == trio.current_time() - started  # initialize, initialized, and four lists side by side
            assert 2 == len(session.tools)
            assert 2 == len(session.prompts)


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_capabilities_over_64_kib_fail_their_backend_alone(era: str, autojump_clock: MockClock) -> None:
    """Capabilities are stored in the session's row: a backend that declares over 64 KiB fails with LIMIT, alone."""
    greedy = echo_backend(era)
    greedy.capabilities = {"tools": {}, "experimental": {"x": "y" * 64 * KIB}}
    async with open_world({"greedy": greedy, "good": echo_backend(era)}) as world, world.open_session() as session:
        (failure,) = session.failures
        assert ["good_echo"] == [tool.name for tool in session.tools]
    assert ("greedy", FailureReason.LIMIT) == (failure.backend_id, failure.reason)
    assert "declares capabilities of over 65536 bytes" == failure.detail


async def test_a_crash_in_the_opening_is_an_error_of_make_session() -> None:
    """A session that crashes while it opens is not handed out: `make_session` raises SessionClosed."""

    class BadRecord(PlainConnector):
        async def __call__(self, *args: object, **options: object) -> object:  # type: ignore[override]
            client = await super().__call__(*args, **options)  # type: ignore[arg-type]
            client.record = {}  # type: ignore[assignment]
            return client

    async with open_session_factory(connector=BadRecord()) as factory:  # type: ignore[arg-type]
        with pytest.raises(SessionClosed, match="crashed"):
            await factory.make_session(plain_backends(1))


async def test_an_opening_does_not_wait_for_the_goodbyes_of_a_timed_out_attempt(autojump_clock: MockClock) -> None:
    """A backend that timed out may answer `notifications/cancelled` and DELETE slowly: its place is free, and the
    opening ends.
    """
    settings = FactorySettings(backend_init_timeout=1.0, max_backend_init_concurrency=1)
    backends = {"a": echo_backend(), "b": echo_backend()}
    for method in ("tools/list", "notifications/cancelled", "DELETE"):
        backends["a"].fail(method, Hang())
    async with open_world(backends, settings=settings) as world:
        world.leaves_sessions = True
        began_at = trio.current_time()
        async with world.open_session() as session:
            assert 1.0 == trio.current_time() - began_at
            assert ["a"] == [failure.backend_id for failure in session.failures]


async def test_a_client_that_ends_by_itself_while_it_is_made_says_why_it_is_missing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection's own task ends it before the backend has joined: its word for that is in `failures`."""

    async def connect(backend: Backend, *, nursery: trio.Nursery, **more: object) -> BackendClient:
        nursery.start_soon(end)
        await trio.sleep_forever()
        raise AssertionError

    async def end() -> None:
        raise BackendUnavailable("b0", "closed its end")

    settings = FactorySettings(reconnect_delay=math.inf)
    async with (
        open_session_factory(connector=connect, settings=settings) as factory,
        factory.open_session(plain_backends(1)) as session,
    ):
        (failure,) = session.failures
        assert (FailureReason.UNREACHABLE, "closed its end") == (failure.reason, failure.detail)
        assert BackendState.DEGRADED is session.backends["b0"].state
    assert "backend 'b0' is missing (unreachable): it closed its end" in caplog.text


@pytest.mark.parametrize("capabilities", [{}, {"logging": {}}, {"tools": None}], ids=str)
@pytest.mark.parametrize(
    ("era", "transport"), [(e, "streamable-http") for e in ("legacy", "modern")] + [("legacy", "sse")]
)
async def test_a_backend_that_offers_nothing_says_so(
    era: str, transport: str, capabilities: dict[str, Any], autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It declares no tools, resources or prompts, as a server that was started with the wrong option does: nothing
    fails, so a warning tells.
    """
    silent = echo_backend(era, transport=transport, capabilities=capabilities)
    async with open_world({"a": silent, "b": echo_backend(era)}) as world, world.open_session() as session:
        assert ["b_echo"] == [tool.name for tool in session.tools]
        assert () == session.failures
        text = "backend 'a' declares no tools, no resources and no prompts: it offers nothing"
        assert [text] == [record.message for record in caplog.records if record.levelname == "WARNING"]
