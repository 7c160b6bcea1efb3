"""A start that takes longer than its time: a program that is alive goes on starting, and joins."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from support.channels import EVERY_CHANNEL, Channel
from support.clients import echo_backend
from support.memory_processes import MemoryProcess, ProcessTable, Program, memory_processes
from support.plain_connector import PlainConnector
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    Backend,
    BackendState,
    BackendUnavailable,
    FactorySettings,
    FailureReason,
    Session,
    SessionChange,
    open_session_factory,
)
from trio_vmcp._request_note import note_session_lost
from trio_vmcp.testing import Delay, Hang, ScriptedBackend

LIMITS = FactorySettings(backend_init_timeout=2, reconnect_delay=0.2, reconnect_max_delay=0.5)
ERAS = pytest.mark.parametrize("era", ["legacy", "modern"])
AWAKE_AFTER = 6.0  # s

Start = Callable[[], Awaitable[int | None]]


async def slowly() -> None:
    await trio.sleep(AWAKE_AFTER)


async def at_once() -> None:
    await trio.lowlevel.checkpoint()


async def never() -> None:
    await trio.sleep_forever()


async def exits_late() -> int:
    await trio.sleep(AWAKE_AFTER)
    return 3


@attrs.define(eq=False)
class Programs:
    """Scripted backends behind commands that are named like them.

    Attributes:
        on_start: What each start of a command does before it reads its stdin, in turn; the last one is repeated. A
            result is its exit status.
    """

    table: ProcessTable
    backends: dict[str, ScriptedBackend] = attrs.field(factory=dict)
    on_start: dict[str, list[Start]] = attrs.field(factory=dict)

    def add(self, name: str, *on_start: Start, era: str = "legacy") -> ScriptedBackend:
        backend = self.backends[name] = echo_backend(era)
        self.on_start[name] = list(on_start)

        async def main(process: MemoryProcess, pipes: trio.abc.Stream) -> int:
            scripts = self.on_start[name]
            status = await (scripts.pop(0) if len(scripts) > 1 else scripts[0])()
            if status is None:
                await backend.serve_lines(pipes)
            return status or 0

        self.table.programs[name] = Program(main, "polite", lambda: True, lambda env: "")
        return backend

    def configured(self, name: str, **more: object) -> Backend:
        fields = {"id": name, "transport": "stdio", "command": name, "era": self.backends[name].era}
        return Backend(**{**fields, **more})  # type: ignore[arg-type]  # by name, as a caller writes them

    def starts(self, name: str) -> int:
        return sum(process.command == name for process in self.table.processes)


@pytest.fixture
async def programs() -> AsyncIterator[Programs]:
    """At the end no process is left."""
    table = ProcessTable()
    with memory_processes(table):
        async with table.running_in_virtual_time(on_end=lambda process: None):
            yield Programs(table)
            await wait_all_tasks_blocked()
            assert () == table.alive


@asynccontextmanager
async def open_over(
    programs: Programs, *names: str, settings: FactorySettings = LIMITS, **more: object
) -> AsyncIterator[Session]:
    backends = [programs.configured(name, **more) for name in names]
    async with open_session_factory(settings=settings) as factory, factory.open_session(backends) as session:
        yield session


def reason(session: Session, backend_id: str = "slow") -> FailureReason | None:
    return next((each.reason for each in session.failures if each.backend_id == backend_id), None)


def detail(session: Session) -> str:
    (failure,) = session.failures
    return failure.detail


async def joined(session: Session, backend_id: str = "slow") -> float:
    """When it has joined."""
    with trio.fail_after(100):
        while session.backends[backend_id].state is not BackendState.READY:  # noqa: ASYNC110  # no event says it alone
            await trio.sleep(0.05)
    return trio.current_time()


# A program


@ERAS
@pytest.mark.parametrize("late", ["start", "greeting", "tools/list", "all"])
async def test_a_program_that_takes_long_to_start_joins(
    era: str, late: str, programs: Programs, autojump_clock: MockClock
) -> None:
    """Wherever it is slow: at its time it is PENDING, and the session opens without it. It joins when it is ready, and
    was started once.
    """
    backend = programs.add("slow", slowly if late in ("start", "all") else at_once, era=era)
    if late in ("greeting", "all"):
        backend.fail("server/discover" if era == "modern" else "initialize", Delay(AWAKE_AFTER))
    if late in ("tools/list", "all"):
        backend.fail("tools/list", Delay(AWAKE_AFTER))
    async with open_over(programs, "slow") as session, session.changes() as changes:
        assert 2.0 == trio.current_time()
        (failure,) = session.failures
        assert (FailureReason.PENDING, 2.0) == (failure.reason, failure.elapsed)
        assert "is still starting after 2 s (backend_init_timeout)" == failure.detail
        assert BackendState.CONNECTING is session.backends["slow"].state
        slow_steps = 3 if late == "all" else 1
        assert slow_steps * AWAKE_AFTER == pytest.approx(await joined(session), abs=0.1)
        assert () == session.failures
        assert SessionChange("backend", "slow") == await changes.receive()
        await session.call_tool("slow_echo")
        assert 1 == programs.starts("slow")


async def test_a_program_that_speaks_any_era_and_takes_long_joins(
    programs: Programs, autojump_clock: MockClock
) -> None:
    """The question for the era has been given up by the time at which the program reads it."""
    programs.add("slow", slowly)
    async with open_over(programs, "slow", era="auto") as session:
        assert FailureReason.PENDING is reason(session)
        await joined(session)
        await session.call_tool("slow_echo")
        assert 1 == programs.starts("slow")


async def test_a_slow_start_gives_its_place_back(programs: Programs, autojump_clock: MockClock) -> None:
    """With one place at a time the next backend connects while the first one still starts."""
    programs.add("slow", slowly)
    programs.add("quick", at_once)
    limits = attrs.evolve(LIMITS, max_backend_init_concurrency=1)
    async with open_over(programs, "slow", "quick", settings=limits) as session:
        assert 2.0 == trio.current_time()
        assert FailureReason.PENDING is reason(session)
        await session.call_tool("quick_echo")
        assert AWAKE_AFTER == pytest.approx(await joined(session), abs=0.1)


async def test_a_program_that_exits_while_it_is_pending_is_started_again(
    programs: Programs, autojump_clock: MockClock
) -> None:
    """Its exit is the failure then."""
    programs.add("slow", exits_late, slowly)
    async with open_over(programs, "slow") as session:
        assert FailureReason.PENDING is reason(session)
        await trio.sleep_until(AWAKE_AFTER + 0.1)
        assert FailureReason.UNREACHABLE is reason(session)
        assert "ended with status 3 before it answered 'initialize'" in detail(session)
        await joined(session)
        assert 2 == programs.starts("slow")


@pytest.mark.parametrize("knob", ["backend_init_timeout", "Backend.init_timeout"])
async def test_a_program_that_never_answers_is_given_up_after_ten_times(
    knob: str, programs: Programs, autojump_clock: MockClock
) -> None:
    """Then the failure is TIMEOUT and names the knob, and the program is started again."""
    programs.add("slow", never, slowly)
    own = {"init_timeout": 2} if knob == "Backend.init_timeout" else {}
    limits = LIMITS if not own else attrs.evolve(LIMITS, backend_init_timeout=30)
    async with open_over(programs, "slow", settings=limits, **own) as session:
        assert 2.0 == trio.current_time()
        await trio.sleep_until(19.9)
        assert FailureReason.PENDING is reason(session)
        await trio.sleep_until(20.05)
        assert FailureReason.TIMEOUT is reason(session)
        assert f"did not answer 'initialize' within 10 times 2 s ({knob})" == detail(session)
        await joined(session)
        assert 2 == programs.starts("slow")


@pytest.mark.parametrize("ends", ["close", "remove"])
async def test_a_program_that_is_pending_ends_with_its_session(
    ends: str, programs: Programs, autojump_clock: MockClock
) -> None:
    """And when its backend is removed: at the end of its stdin, within the teardown time."""
    programs.add("slow", never)
    async with open_over(programs, "slow") as session:
        began = trio.current_time()
        if ends == "remove":
            await session.remove_backend("slow")
            assert () == session.failures
        else:
            await session.aclose()
        assert trio.current_time() - began <= LIMITS.teardown_timeout


async def test_an_added_backend_that_starts_slowly_is_pending(programs: Programs, autojump_clock: MockClock) -> None:
    """`add_backend` returns at the end of its time, and the backend joins later."""
    programs.add("slow", slowly)
    async with open_over(programs) as session:
        await session.add_backend(programs.configured("slow"))
        assert 2.0 == trio.current_time()
        assert FailureReason.PENDING is reason(session)
        await joined(session)
        await session.call_tool("slow_echo")


async def test_a_slow_restart_is_pending_and_holds_no_other_session_up(
    programs: Programs, autojump_clock: MockClock
) -> None:
    """A program that ended and starts slowly: calls fail at once and say why, and another session with the same command
    gets its own program meanwhile.
    """
    programs.add("slow", at_once, at_once, slowly, at_once)
    backend = programs.configured("slow")
    async with open_session_factory(settings=LIMITS) as factory:
        async with factory.open_session([backend]) as session, factory.open_session([backend]) as other:
            first, second = programs.table.running("slow")
            first.end(1)
            await trio.sleep(1)
            began = trio.current_time()  # the restart is under way
            second.end(1)
            await trio.sleep(3)
            assert BackendState.RECOVERING is session.backends["slow"].state
            assert FailureReason.PENDING is reason(session)
            with pytest.raises(BackendUnavailable, match=r"it is still starting after 2 s \(backend_init_timeout\)"):
                await session.call_tool("slow_echo")
            await other.call_tool("slow_echo")
            assert trio.current_time() - began < 4
            await joined(session)
            assert 4 == programs.starts("slow")


async def test_calls_wait_for_a_slow_replacement_no_longer_than_its_time(autojump_clock: MockClock) -> None:
    """A program, behind a connector of the user's, that has lost its session, and the next one starts slowly."""

    async def lose() -> None:
        connector.on_connect["slow"], connector.on_request["slow"] = slowly, at_once
        note_session_lost()
        raise BackendUnavailable("slow", "has lost its session")

    connector = PlainConnector(on_request={"slow": lose})
    backend = Backend(id="slow", transport="stdio", command="slow")
    async with open_session_factory(connector=connector, settings=LIMITS) as factory:
        async with factory.open_session([backend]) as session, session.changes() as changes:
            with pytest.raises(BackendUnavailable, match="it is still starting after 2 s"):
                await session.call_tool("slow_echo")
            assert 2.0 == trio.current_time()
            assert FailureReason.PENDING is reason(session)
            assert SessionChange("backend", "slow") == await changes.receive()
            assert AWAKE_AFTER == pytest.approx(await joined(session), abs=0.1)
            await session.call_tool("slow_echo")


@ERAS
async def test_an_optional_list_that_never_ends_costs_that_list(
    era: str, programs: Programs, autojump_clock: MockClock
) -> None:
    """Though its program has ten times the time to start: all optional lists together have that time once."""
    backend = programs.add("slow", at_once, era=era)
    backend.add_resource("memo://slow", "text")
    backend.fail("resources/list", Hang())
    backend.fail("resources/templates/list", Hang())
    async with open_over(programs, "slow") as session:
        assert 1.5 == trio.current_time()
        assert () == session.failures
        assert BackendState.DEGRADED is session.backends["slow"].state
        await session.call_tool("slow_echo")


# Every transport


@EVERY_CHANNEL
async def test_the_time_of_a_backend_is_its_own(channel: Channel, autojump_clock: MockClock) -> None:
    """`Backend.init_timeout` wins over the factory's, and the failure names it. Over HTTP that is TIMEOUT, and the
    backend is tried again; a program is PENDING.
    """
    backend = channel.backend()
    greeting = "server/discover" if channel.is_modern else "initialize"
    is_program = channel.transport == "stdio"
    backend.fail(greeting, Delay(1.7) if is_program else Hang(), times=1)
    async with channel.open_session(backend, configured={"init_timeout": 1.5}) as session:
        assert 1.5 == trio.current_time()
        (failure,) = session.failures
        assert (FailureReason.PENDING if is_program else FailureReason.TIMEOUT) is failure.reason
        assert failure.detail.endswith("1.5 s (Backend.init_timeout)")
        await joined(session, "b")
        assert (1 if is_program else 2) == len(backend.received(greeting))


@EVERY_CHANNEL
async def test_a_longer_time_of_a_backend_wins(channel: Channel, autojump_clock: MockClock) -> None:
    """So does infinity."""
    backend = channel.backend()
    backend.fail("tools/list", Delay(5))
    limits = FactorySettings(backend_init_timeout=1)
    async with channel.open_session(backend, settings=limits, configured={"init_timeout": math.inf}) as session:
        assert 5.0 == trio.current_time()
        assert () == session.failures
