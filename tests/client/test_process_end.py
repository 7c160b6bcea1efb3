"""How a child process is ended: the end of its stdin, SIGTERM, SIGKILL, and how long it has in between."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from support.clients import echo_backend
from support.memory_processes import Manners, MemoryProcess, ProcessTable, Program, memory_processes
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import Backend, FactorySettings, Session, VmcpError, open_session_factory

COMMAND = "b"
BACKEND = Backend("b", transport="stdio", command=COMMAND)


@attrs.define(eq=False)
class Signals(ProcessTable):
    """A process table that keeps which signals were sent, and when."""

    sent: list[tuple[float, int]] = attrs.field(factory=list, init=False)

    def killpg(self, pid: int, number: int) -> None:
        super().killpg(pid, number)
        self.sent.append((round(trio.current_time(), 3), number))


@asynccontextmanager
async def open_over(
    manners: Manners, on_the_way_out: float, *, settings: FactorySettings
) -> AsyncIterator[tuple[Session, Signals]]:
    """A session over one program, which takes so many seconds to exit once its stdin has ended."""
    backend = echo_backend()

    async def main(process: MemoryProcess, pipes: trio.abc.Stream) -> int:
        await backend.serve_lines(pipes)
        await trio.sleep(on_the_way_out)
        return 0

    table = Signals()
    table.programs[COMMAND] = Program(main, manners, lambda: True, lambda env: "")
    with memory_processes(table):
        async with table.running_in_virtual_time(on_end=lambda process: None):
            async with open_session_factory(settings=settings) as factory:
                async with factory.open_session([BACKEND]) as session:
                    await session.call_tool("b_echo")
                    yield session, table
            await wait_all_tasks_blocked()
            assert () == table.alive


async def close(session: Session) -> None:
    await session.aclose()


async def suspend(session: Session) -> None:
    await session.suspend()


async def remove(session: Session) -> None:
    await session.remove_backend("b")


WAYS = pytest.mark.parametrize("end", [close, suspend, remove])
End = Callable[[Session], Awaitable[None]]


@WAYS
@pytest.mark.parametrize("teardown_timeout", [2.0, 8.0])
async def test_a_program_on_its_way_out_is_not_cut_short(
    end: End, teardown_timeout: float, autojump_clock: MockClock
) -> None:
    """It has three quarters of the teardown time to exit after its stdin has ended."""
    takes = 0.74 * teardown_timeout
    settings = FactorySettings(teardown_timeout=teardown_timeout)
    async with open_over("polite", takes, settings=settings) as (session, signals):
        await end(session)
        assert takes == pytest.approx(trio.current_time())
        (process,) = signals.processes
        assert 0 == process.returncode
        assert signal.SIGTERM not in [number for _, number in signals.sent]


@WAYS
async def test_a_program_that_goes_on_is_asked_and_killed_in_time(end: End, autojump_clock: MockClock) -> None:
    """SIGTERM after three quarters of the teardown time, SIGKILL at its end."""
    async with open_over("stubborn", 0, settings=FactorySettings(teardown_timeout=4)) as (session, signals):
        await end(session)
        assert [(3.0, signal.SIGTERM), (4.0, signal.SIGKILL)] == signals.sent[:2]
        assert 4.0 == trio.current_time()


async def test_a_program_that_listens_to_sigterm_is_not_killed(autojump_clock: MockClock) -> None:
    """It has the last quarter to exit."""
    async with open_over("deaf", 0, settings=FactorySettings(teardown_timeout=4)) as (session, signals):
        await session.aclose()
        (process,) = signals.processes
        assert -signal.SIGTERM == process.returncode
        assert (3.0, signal.SIGTERM) == signals.sent[0]


async def test_what_a_close_has_spent_shortens_all_steps(autojump_clock: MockClock) -> None:
    """A caller that shields itself from the close leaves less for the program: SIGTERM still comes before SIGKILL."""

    async def shielded(progress: float, total: float | None, message: str | None) -> None:
        called.set()
        with trio.CancelScope(shield=True):
            await trio.sleep(3)

    async def call(session: Session) -> None:
        with pytest.raises(VmcpError):
            await session.call_tool("b_hang", on_progress=shielded)

    called = trio.Event()
    async with open_over("stubborn", 0, settings=FactorySettings(teardown_timeout=4)) as (session, signals):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, session)
            await called.wait()
            await session.aclose(drain_timeout=0)
            assert [(3.5, signal.SIGTERM), (4.0, signal.SIGKILL)] == signals.sent[:2]


async def test_a_long_teardown_time_is_not_used_up_by_one_program(autojump_clock: MockClock) -> None:
    """Ten seconds are the most that one has."""
    async with open_over("stubborn", 0, settings=FactorySettings(teardown_timeout=60)) as (session, signals):
        await session.aclose()
        assert [(7.5, signal.SIGTERM), (10.0, signal.SIGKILL)] == signals.sent[:2]
