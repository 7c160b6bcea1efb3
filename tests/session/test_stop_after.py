"""`Backend.stop_after`: a backend that is not used is stopped, its names stay, and the next call connects it again."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, cast

import attrs
import pytest
import trio
from support.channels import EVERY_CHANNEL, EVERY_LEGACY_CHANNEL, LEGACY_CHANNELS, Channel
from support.harness import drained, echo_backend, open_world
from support.memory_processes import MemoryProcess, ProcessTable, Program, memory_processes
from support.plain_connector import PlainConnector, plain_backends
from support.steps import counting_steps
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendState,
    BackendTimeout,
    BackendUnavailable,
    ClientHandlers,
    FactorySettings,
    ServerRequest,
    Session,
    SessionChange,
    SessionClosed,
    SessionState,
    ToolNotFound,
    open_session_factory,
)
from trio_vmcp.default_session import DefaultSession
from trio_vmcp.testing import CONNECT, CallContext, Delay, Error, Hang, Refuse, ScriptedBackend

STOPS: JSON = {"stop_after": 10}


async def rest(arguments: JSON, context: CallContext) -> str:
    await trio.sleep(arguments["seconds"])
    return "rested"


def resting(channel: Channel, **options: object) -> ScriptedBackend:
    backend = channel.backend(listens=True, **options)
    backend.add_tool("rest", rest)
    backend.add_resource("memo://text", "text")
    return backend


def state_of_b(session: Session) -> BackendState:
    return session.backends["b"].state


def is_gone(backend: ScriptedBackend) -> bool:
    """No process, stream or backend session is left. Over HTTP a connection without a request may be kept a while."""
    return not backend.in_flight and not backend.sessions and not backend.listening


@EVERY_CHANNEL
async def test_an_unused_backend_is_stopped(
    channel: Channel, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    """Exactly `stop_after` s after the opening, or after the end of the latest call, with its goodbye. That is no
    failure; what it offers stays listed; the next call connects it once more.
    """
    backend = resting(channel)
    async with channel.open_session(backend, configured=STOPS) as session:
        listed = session.tools, session.resources, session.routing_table
        for used_at in (0.0, 13.0):
            await trio.sleep_until(used_at + 9.9)
            assert BackendState.READY is state_of_b(session)
            await trio.sleep_until(used_at + 12)
            assert BackendState.STOPPED is state_of_b(session)
            assert is_gone(backend)
            assert ((), None, {}) == (session.failures, session.backends["b"].last_failure, session.backend_sessions)
            assert listed == (session.tools, session.resources, session.routing_table)
            await trio.sleep_until(used_at + 12.5)
            assert "rested" == (await session.call_tool("b_rest", {"seconds": 0.5})).content[0]["text"]
            assert BackendState.READY is state_of_b(session)
        assert {"rest": 2} == backend.executed
    assert [] == [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@EVERY_CHANNEL
async def test_the_next_result_says_that_the_state_is_lost(channel: Channel, autojump_clock: MockClock) -> None:
    """Once, and only where calls ran in a backend session that is gone. A stateless backend keeps nothing."""
    backend = resting(channel)
    async with channel.open_session(backend, configured=STOPS) as session:
        told: list[bool] = []
        for pause in (12, 12, 0, 12):
            await trio.sleep(pause)
            told.append((await session.call_tool("b_echo")).backend_state_lost)
        lost = not channel.is_modern
        assert [False, lost, False, lost] == told


@EVERY_CHANNEL
async def test_a_call_keeps_its_backend(channel: Channel, autojump_clock: MockClock) -> None:
    """However long it runs; the time counts from its end."""
    backend = resting(channel)
    async with channel.open_session(backend, configured=STOPS) as session:
        await session.call_tool("b_rest", {"seconds": 34})
        assert BackendState.READY is state_of_b(session)
        await trio.sleep(9.9)
        assert BackendState.READY is state_of_b(session)
        await trio.sleep(2)
        assert BackendState.STOPPED is state_of_b(session)
        assert {"rest": 1} == backend.executed


async def test_a_call_on_a_replaced_connection_keeps_its_backend(autojump_clock: MockClock) -> None:
    """It is a call of this backend all the same; the time counts from its end."""
    backend = echo_backend()
    backend.add_tool("rest", rest)

    def configure(entry: Backend) -> Backend:
        return Backend("b", entry.url, era="legacy", stop_after=10)

    async def call_long(session: Session) -> None:
        await session.call_tool("b_rest", {"seconds": 34})

    async with open_world({"b": backend}, configure=configure) as world, world.open_session() as session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_long, session)
            await trio.sleep(1)
            backend.end_session(session.backend_sessions["b"])
            await session.call_tool("b_echo")
            await trio.sleep(32)
            assert (BackendState.READY, 1) == (state_of_b(session), session.backends["b"].in_flight)
        await trio.sleep(9.9)
        assert BackendState.READY is state_of_b(session)
        await trio.sleep(2)
        assert BackendState.STOPPED is state_of_b(session)


@pytest.mark.parametrize(("stop_after", "most"), [(10.0, 4), (0.01, 35), (0.0, 35)])
async def test_a_backend_in_use_is_not_looked_at_all_the_time(
    stop_after: float, most: int, autojump_clock: MockClock
) -> None:
    """Once in `stop_after` s, and no more than ten times a second. The call is not cut off, however short that is."""
    channel = LEGACY_CHANNELS[0]
    backend = resting(channel)
    async with channel.open_session(backend, configured={"stop_after": stop_after}) as session:
        with counting_steps("stop_when_unused") as found:
            assert "rested" == (await session.call_tool("b_rest", {"seconds": 3})).content[0]["text"]
        assert found.count <= most
        ended_at = trio.current_time()
        with counting_steps("stop_when_unused") as found:
            await trio.sleep_until(ended_at + max(stop_after, 0.1) + 0.001)
            await wait_all_tasks_blocked()
        assert BackendState.STOPPED is state_of_b(session)
        assert 1 <= found.count <= 4


async def test_a_session_that_drains_stops_no_backend(autojump_clock: MockClock) -> None:
    """A restore finds its backend session."""
    backends = {"a": echo_backend(), "b": echo_backend()}
    backends["a"].add_tool("rest", rest)

    def configure(entry: Backend) -> Backend:
        return attrs.evolve(entry, stop_after=10)

    async def rest_long(session: Session) -> None:
        await session.call_tool("a_rest", {"seconds": 15})

    async with open_world(backends, configure=configure) as world:
        world.leaves_rows = world.leaves_sessions = True
        session = await world.make_session()
        own = session.backend_sessions["b"]
        await trio.sleep(8)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rest_long, session)
            await wait_all_tasks_blocked()
            await session.suspend(drain_timeout=20)
        assert 15 < trio.current_time()
        assert own in backends["b"].sessions


@EVERY_CHANNEL
async def test_a_subscription_keeps_its_backend(channel: Channel, autojump_clock: MockClock) -> None:
    """Until it is ended: its updates come by the connection."""
    backend = resting(channel)
    async with channel.open_session(backend, configured=STOPS) as session, session.changes() as changes:
        await session.subscribe_resource("memo://text")
        await trio.sleep(50)
        assert BackendState.READY is state_of_b(session)
        await drained(changes)
        backend.notify("notifications/resources/updated", {"uri": "memo://text"})
        assert [SessionChange("resource_updated", "b", "memo://text")] == await drained(changes)
        await session.unsubscribe_resource("memo://text")
        await trio.sleep(12)
        assert BackendState.STOPPED is state_of_b(session)


@EVERY_LEGACY_CHANNEL
async def test_a_question_keeps_its_backend(channel: Channel, autojump_clock: MockClock) -> None:
    """Also outside of a call, and for `stop_after` s after its answer."""

    async def answer(request: ServerRequest) -> JSON:
        await trio.sleep(25)
        return {"roots": []}

    backend = resting(channel)
    handlers = ClientHandlers(roots=answer)
    async with channel.open_session(backend, configured=STOPS, handlers=handlers) as session:
        await trio.sleep(3)
        backend.send({"jsonrpc": "2.0", "id": 1, "method": "roots/list", "params": {}})
        await trio.sleep(26)
        assert {"roots": []} in [exchange.message.get("result") for exchange in backend.exchanges[-1:]]
        assert BackendState.READY is state_of_b(session)
        await trio.sleep(8)
        assert BackendState.READY is state_of_b(session)
        await trio.sleep(12)
        assert BackendState.STOPPED is state_of_b(session)


@EVERY_CHANNEL
async def test_many_calls_connect_it_once(channel: Channel, autojump_clock: MockClock) -> None:
    """However many wait, and all are answered."""
    backend = resting(channel)
    async with channel.open_session(backend, configured=STOPS) as session:
        await trio.sleep(12)
        begun = len(backend.received("initialize")) + len(backend.received("server/discover"))
        async with trio.open_nursery() as nursery:
            for _ in range(9):
                nursery.start_soon(session.call_tool, "b_echo")
        assert {"echo": 9} == backend.executed
        more = len(backend.received("initialize")) + len(backend.received("server/discover")) - begun
        assert more == 1 or (channel.is_modern and more == 0)  # a result of `server/discover` may be kept


@EVERY_CHANNEL
async def test_the_lists_are_read_again_on_return(channel: Channel, autojump_clock: MockClock) -> None:
    """What changed meanwhile was not heard."""
    backend = resting(channel)
    async with channel.open_session(backend, configured=STOPS) as session:
        await trio.sleep(12)
        backend.add_tool("new")
        backend.notify("notifications/tools/list_changed")
        await trio.sleep(5)
        with pytest.raises(ToolNotFound):
            await session.call_tool("b_new")
        assert BackendState.STOPPED is state_of_b(session)
        async with session.changes() as changes:
            await session.call_tool("b_echo")
            assert SessionChange("tools", "b") in await drained(changes)
        await session.call_tool("b_new")


@pytest.mark.parametrize(
    ("fault", "error"),
    [(Refuse(), BackendUnavailable), (Error(-32000, "no room"), BackendUnavailable), (Hang(), BackendUnavailable)],
    ids=["refused", "rejected", "hangs"],
)
async def test_a_backend_that_does_not_come_back(
    fault: Refuse | Error | Hang,
    error: type[Exception],
    caplog: pytest.LogCaptureFixture,
    autojump_clock: MockClock,
) -> None:
    """The call gets the reason, each call tries, nothing tries without one, and the circuit stays closed."""
    backend = echo_backend()

    def configure(entry: Backend) -> Backend:
        return Backend("b", entry.url, era="legacy", stop_after=10, init_timeout=3)

    async with open_world({"b": backend}, configure=configure) as world, world.open_session() as session:
        await trio.sleep(90)  # no connection is kept for so long
        backend.fail(CONNECT if isinstance(fault, Refuse) else "initialize", fault)
        for _ in range(8):
            with pytest.raises(error, match=r"is not connected: it "):
                await session.call_tool("b_echo")
            assert BackendState.STOPPED is state_of_b(session)
            failure = session.backends["b"].last_failure
            assert failure is not None
            tried = len(backend.exchanges)
            await trio.sleep(90)
            assert tried == len(backend.exchanges)
        assert () == session.failures
        assert 8 == sum("was not connected for a call" in record.getMessage() for record in caplog.records)
        backend.heal()
        await session.call_tool("b_echo")
        assert {"echo": 1} == backend.executed


@EVERY_CHANNEL
async def test_a_call_waits_no_longer_than_its_own_timeout(channel: Channel, autojump_clock: MockClock) -> None:
    """It has not run then. The backend goes on connecting, for the next call."""
    backend = resting(channel)
    method = "server/discover" if channel.is_modern else "initialize"
    async with channel.open_session(backend, configured=STOPS) as session:
        await trio.sleep(12)
        backend.fail(method, Delay(5), times=1)
        backend.fail("tools/call", Delay(5), times=1)
        begun = trio.current_time()
        with pytest.raises(BackendTimeout) as caught:
            await session.call_tool("b_echo", timeout=3)
        assert 3 == trio.current_time() - begun
        if not caught.value.may_have_executed:  # else a kept result of `server/discover` connected it at once
            assert "was not connected anew for 'tools/call' within 3 s (timeout=)" == caught.value.detail
        await trio.sleep(6)
        assert BackendState.READY is state_of_b(session)


@EVERY_CHANNEL
async def test_closing_while_it_is_stopped_or_connected_again(channel: Channel, autojump_clock: MockClock) -> None:
    """Nothing waits, nothing is left; a call that waits for it is answered within the drain, or cut off."""
    for drain_timeout, ends in [(10.0, "answered"), (1.0, "cut off")]:
        backend = resting(channel)
        ended: list[str] = []

        async def call(session: Session, ended: list[str]) -> None:
            try:
                await session.call_tool("b_rest", {"seconds": 4})
                ended.append("answered")
            except SessionClosed:
                ended.append("cut off")

        async with channel.open_session(
            backend, configured=STOPS, settings=FactorySettings(drain_timeout=drain_timeout)
        ) as session:
            await trio.sleep(12)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, session, ended)
                await wait_all_tasks_blocked()
                await session.aclose()
        assert [ends] == ended
    backend = resting(channel)
    async with channel.open_session(backend, configured=STOPS) as session:
        await trio.sleep(12)
        begun = trio.current_time()
        await session.aclose()
        assert 0 == trio.current_time() - begun


@EVERY_LEGACY_CHANNEL
@pytest.mark.parametrize(("drain_timeout", "ends"), [(10.0, "answered"), (1.0, "cut off, may have executed: False")])
async def test_closing_lets_a_call_connect_it(
    channel: Channel, drain_timeout: float, ends: str, autojump_clock: MockClock
) -> None:
    """While the session drains: the call was admitted before."""
    backend = resting(channel)
    ended: list[str] = []

    async def call(session: Session) -> None:
        try:
            await session.call_tool("b_echo")
            ended.append("answered")
        except SessionClosed as closed:
            ended.append(f"cut off, may have executed: {closed.may_have_executed}")

    settings = FactorySettings(drain_timeout=drain_timeout)
    async with channel.open_session(backend, configured=STOPS, settings=settings) as session:
        await trio.sleep(12)
        backend.fail("initialize", Delay(3))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, session)
            await wait_all_tasks_blocked()
            assert BackendState.RECOVERING is state_of_b(session)
            await session.aclose()
    assert [ends] == ended


@attrs.define(eq=False)
class Programs:
    """A backend as a program that takes no hint to end, and gets SIGKILL in the end.

    Attributes:
        most: That ran at one time.
    """

    backend: ScriptedBackend
    table: ProcessTable = attrs.field(factory=ProcessTable, init=False)
    most: int = attrs.field(default=0, init=False)

    @property
    def running(self) -> int:
        return len(self.table.running("b"))

    @asynccontextmanager
    async def open_session(self, era: Literal["legacy", "modern"]) -> AsyncIterator[Session]:
        async def main(process: MemoryProcess, pipes: trio.abc.Stream) -> int:
            self.most = max(self.most, self.running)
            await self.backend.serve_lines(pipes)
            return 0

        program = Program(main=main, manners="stubborn", is_there=lambda: True, says=lambda env: "")
        self.table.programs["b"] = program
        entry = Backend("b", transport="stdio", command="b", era=era, stop_after=10)
        with memory_processes(self.table):
            async with (
                self.table.running_in_virtual_time(on_end=lambda process: None),
                open_session_factory() as factory,
                factory.open_session([entry]) as session,
            ):
                yield session


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("timeout", [5.0, 1.0])
async def test_a_program_begins_when_the_one_before_has_ended(
    era: Literal["legacy", "modern"], timeout: float, autojump_clock: MockClock
) -> None:
    """Within the call's own timeout: a call with less time than that takes has not run, and the next one finds the
    program.
    """
    programs = Programs(echo_backend(era))
    async with programs.open_session(era) as session:
        await trio.sleep(10.5)
        assert (BackendState.STOPPED, 1) == (state_of_b(session), programs.running)
        if timeout < 2:
            with pytest.raises(BackendTimeout, match=r"was not connected anew .* within 1\.0 s \(timeout=\)") as caught:
                await session.call_tool("b_echo", timeout=timeout)
            assert not caught.value.may_have_executed
            assert 1 == programs.running
            await trio.sleep(2)
        await session.call_tool("b_echo", timeout=timeout)
        assert 12.0 <= trio.current_time()  # `teardown_timeout` s after it was stopped
        assert (1, {"echo": 1}) == (programs.most, programs.backend.executed)


@pytest.mark.parametrize("end", ["close", "remove"])
async def test_an_end_while_the_program_before_ends(end: str, autojump_clock: MockClock) -> None:
    """The call that waits for it is cut off, no program begins, and nothing waits longer for that."""
    programs = Programs(echo_backend())

    async def call(session: Session) -> None:
        with pytest.raises(SessionClosed if end == "close" else BackendUnavailable):
            await session.call_tool("b_echo")

    async with programs.open_session("legacy") as session, trio.open_nursery() as nursery:
        await trio.sleep(10.5)
        nursery.start_soon(call, session)
        await wait_all_tasks_blocked()
        if end == "close":
            await session.aclose(drain_timeout=0)
        else:
            await session.remove_backend("b", drain_timeout=0)
        assert trio.current_time() <= 12.5
        await trio.sleep(3)
        assert 1 == len(programs.table.processes)


@EVERY_CHANNEL
async def test_it_waits_for_no_other_backend(channel: Channel, autojump_clock: MockClock) -> None:
    """Neither for the places that others hold which hang, nor for the turn of its endpoint: a call needs it now."""
    backend = resting(channel)
    settings = FactorySettings(max_backend_init_concurrency=1, session_init_timeout=1)
    async with (
        channel.open_way(backend, STOPS) as (transport, entry),
        open_session_factory(transport=transport, settings=settings) as factory,
        factory.open_session([entry]) as session,
    ):
        await trio.sleep(12)
        assert BackendState.STOPPED is state_of_b(session)
        core = cast("DefaultSession", session)._core
        places = core.membership._places
        await places.acquire_on_behalf_of("another backend that hangs")
        reconnects = core.membership.members["b"].reconnects
        async with reconnects.own_turns.line, reconnects.endpoint_turns.line:
            await session.call_tool("b_echo", timeout=1)
        places.release_on_behalf_of("another backend that hangs")


async def test_it_may_be_removed_and_added_while_it_is_stopped(autojump_clock: MockClock) -> None:
    """As any other."""
    backend = echo_backend()
    async with open_world({"b": backend}) as world, world.factory.open_session([]) as session:
        entry = Backend("b", world.configured[0].url, stop_after=10)
        for _ in range(2):
            await session.add_backend(entry)
            await trio.sleep(12)
            assert BackendState.STOPPED is state_of_b(session)
            await session.remove_backend("b")
            with pytest.raises(ToolNotFound):
                await session.call_tool("b_echo")


async def test_the_row_names_no_session_of_it(autojump_clock: MockClock) -> None:
    """A restore begins a new one; stopping tells no subscriber of changes, and moves no idle clock."""
    backend = echo_backend()
    settings = FactorySettings(idle_timeout=100, on_exit="suspend")

    def configure(entry: Backend) -> Backend:
        return Backend("b", entry.url, era="legacy", stop_after=10)

    async with open_world({"b": backend}, configure=configure, settings=settings) as world:
        session = await world.make_session(session_id="one")
        async with session.changes() as changes:
            assert [] == await drained(changes, 12)
        (row,) = await world.storage.rows()
        assert [None] == [record.session_id for record in session.metadata.backends]
        assert b"one" in str(row).encode()
        await session.suspend()
        restored = await world.restore_session("one")
        await restored.call_tool("b_echo")
        await trio.sleep(99)
        assert BackendState.STOPPED is state_of_b(restored)
        await trio.sleep(2)
        assert SessionState.CLOSED is restored.state


async def test_the_row_names_the_session_that_a_call_has_begun(autojump_clock: MockClock) -> None:
    """Else an instance that takes over begins one more, although the lists are those that were known."""
    backend = echo_backend()

    def configure(entry: Backend) -> Backend:
        return Backend("b", entry.url, era="legacy", stop_after=10)

    async with open_world({"b": backend}, configure=configure) as world:
        session = await world.make_session()
        await trio.sleep(12)
        await session.call_tool("b_echo")
        await trio.sleep(5)
        (row,) = await world.storage.rows()
        assert [*backend.sessions] == [record.session_id for record in row.backends]
        assert 1 == len(backend.sessions)
        await session.aclose()


async def test_away_is_not_unused(autojump_clock: MockClock) -> None:
    """A backend that is lost is connected in the background, and stopped when that is unused, too."""
    channel = Channel("sse", "legacy")
    backend = resting(channel)
    async with channel.open_session(backend, configured=STOPS) as session:
        backend.fail("initialize", Error(-32000, "busy"), times=3)
        await trio.sleep(8)
        backend.end_session(next(iter(backend.sessions)))
        await trio.sleep(2.5)
        assert BackendState.STOPPED is not state_of_b(session)
        assert 1 == len(session.failures)
        await trio.sleep(30)
        assert BackendState.STOPPED is state_of_b(session)
        assert not session.failures
        await session.call_tool("b_echo")


async def test_a_time_of_zero_still_serves_calls(autojump_clock: MockClock) -> None:
    """Each call connects, and the connection goes with it."""
    connector = PlainConnector()
    (entry,) = plain_backends(1)
    stops = Backend(entry.id, entry.url, stop_after=0)
    async with open_session_factory(connector=connector) as factory, factory.open_session([stops]) as session:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(session.call_tool, "b0_echo")
            await trio.sleep(1)
            assert BackendState.STOPPED is session.backends["b0"].state
            assert [True] == connector.clients["b0"].closed


async def test_a_backend_that_is_stopped_costs_nothing(autojump_clock: MockClock) -> None:
    """Of forty, those in use stay."""
    connector = PlainConnector()
    entries = [Backend(entry.id, entry.url, stop_after=10) for entry in plain_backends(40)]
    async with open_session_factory(connector=connector) as factory, factory.open_session(entries) as session:
        for _ in range(6):
            await trio.sleep(5)
            for used in ("b3", "b20", "b39"):
                await session.call_tool(f"{used}_echo")
        alive = [name for name, client in connector.clients.items() if not client.closed]
        assert ["b20", "b3", "b39"] == sorted(alive)
        assert 40 == len(session.tools)
        assert () == session.failures
