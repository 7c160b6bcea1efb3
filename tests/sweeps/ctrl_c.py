"""One real Ctrl-C at every line of the library that an operation executes, in whichever task.

A tracer raises SIGINT at the n-th line. Trio's handler decides as it does in a program: in a frame that is not
protected KeyboardInterrupt is raised on the spot, else the main task gets it at its next checkpoint. Either way the
program is to end in KeyboardInterrupt alone, within the bounds of a close, and nothing is to be left.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType, TracebackType
from typing import Any

import attrs
import trio
from support.channels import CHANNELS, Channel
from support.harness import Ledger, library_tasks
from support.plain_connector import PlainConnector
from support.scripted_storage import ScriptedStorage

import trio_vmcp
from sweeps.judge import judge
from sweeps.report import first_case
from trio_vmcp import (
    JSON,
    Backend,
    BackendConnector,
    FactorySettings,
    Session,
    SessionFactory,
    open_session_factory,
)
from trio_vmcp.testing import CallContext, ScriptedBackend, open_memory_network

__all__ = ["CASES", "SCENARIOS", "Scenario", "count_lines", "run_case", "some_lines"]

SETTINGS = FactorySettings(max_connections_per_backend=1)
BOUND = SETTINGS.drain_timeout + SETTINGS.teardown_timeout
HOME = os.path.dirname(trio_vmcp.__file__) + os.sep
TESTING = os.path.join(HOME, "testing") + os.sep
CASES = 12  # of one scenario, in the short form
STEPS = 5  # of the loop, within which Trio delivers a Ctrl-C to a main task that can be cancelled


@attrs.define(eq=False)
class CtrlC:
    """Strikes once, at the n-th line (from 0) that is executed inside of the block.

    Attributes:
        lines: How many there were, until it struck.
        place: Where it struck; None: the block had fewer lines.
        struck_at: By `trio.current_time()`.
    """

    line: int
    lines: int = attrs.field(default=0, init=False)
    place: str | None = attrs.field(default=None, init=False)
    struck_at: float = attrs.field(default=0.0, init=False)

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Callable[[FrameType, str, Any], Any] | None:
        name = frame.f_code.co_filename
        return self._look if name.startswith(HOME) and not name.startswith(TESTING) else None

    def _look(self, frame: FrameType, event: str, argument: Any) -> Callable[[FrameType, str, Any], Any]:
        if event == "line" and self.place is None:
            if self.lines == self.line:
                sys.settrace(None)
                name = frame.f_code.co_filename.removeprefix(HOME)
                self.place = f"{name}:{frame.f_lineno} in {trio.lowlevel.current_task().name}"
                self.struck_at = trio.current_time()
                signal.raise_signal(signal.SIGINT)
            self.lines += 1
        return self._look


@attrs.define(eq=False)
class Program:
    """What an operation works with.

    Attributes:
        ctrl_c: To be entered around what is swept.
        open_factory: The factory of the program.
        stays: The row and the backend session stay: the session is suspended.
    """

    ctrl_c: CtrlC
    backend: ScriptedBackend
    configured: list[Backend]
    storage: ScriptedStorage
    open_factory: Callable[[], Any]
    stays: bool = False


Operation = Callable[[Program, SessionFactory], Awaitable[None]]


@attrs.frozen
class Scenario:
    name: str
    channel: Channel
    operation: Operation


# The operations


async def opening(program: Program, factory: SessionFactory) -> None:
    with program.ctrl_c:
        await factory.make_session(program.configured)


async def calling(program: Program, factory: SessionFactory) -> None:
    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        await trio.lowlevel.checkpoint()

    async with factory.open_session(program.configured) as session:
        with program.ctrl_c:
            await session.call_tool("b_steps", on_progress=on_progress)


async def calling_beside(program: Program, factory: SessionFactory) -> None:
    """In another task than the main one."""

    async with factory.open_session(program.configured) as session:
        await _beside(program, session)


async def _beside(program: Program, session: Session) -> None:
    async def call() -> None:
        with program.ctrl_c:
            await session.call_tool("b_steps")

    with _alone():
        async with trio.open_nursery() as callers:  # noqa: ASYNC112  # a call beside the main task is the point
            callers.start_soon(call)


async def healing(program: Program, factory: SessionFactory) -> None:
    """The backend has restarted: its session, or its connection, is gone."""
    async with factory.open_session(program.configured) as session:
        program.backend.restart()
        with program.ctrl_c:
            await trio.sleep(2)
            await session.call_tool("b_echo")


async def hearing(program: Program, factory: SessionFactory) -> None:
    """A change of the list, and of the backends."""
    async with factory.open_session(program.configured) as session, session.changes() as changes:
        with program.ctrl_c:
            program.backend.add_tool("another")
            program.backend.notify("notifications/tools/list_changed")
            await changes.receive()
            await session.remove_backend("b")
            await session.add_backend(program.configured[0])


async def suspending(program: Program, factory: SessionFactory) -> None:
    session = await factory.make_session(program.configured)
    program.stays = True
    with program.ctrl_c:
        await session.suspend()


async def restoring(program: Program, factory: SessionFactory) -> None:
    session = await factory.make_session(program.configured)
    await session.suspend()
    program.stays = True
    with program.ctrl_c:
        restored = await factory.restore_session(session.id, program.configured)
        await restored.suspend()


async def closing(program: Program, factory: SessionFactory) -> None:
    session = await factory.make_session(program.configured)
    with program.ctrl_c:
        await session.aclose()


async def living(program: Program, factory: SessionFactory) -> None:
    """A program of its own, from its factory to the end of that."""
    with program.ctrl_c:
        async with program.open_factory() as own, own.open_session(program.configured) as session:
            await session.call_tool("b_echo")


@contextmanager
def _alone() -> Iterator[None]:
    """A nursery of the program's own groups what comes out of its tasks: the group is to hold one thing."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None  # noqa: ASYNC123  # it is judged alone
        raise


# The backend


async def _steps(arguments: JSON, context: CallContext) -> str:
    for step in range(2):
        await trio.sleep(0.5)
        await context.progress(step, 2)
    return "done"


@asynccontextmanager
async def _open_way(channel: Channel, backend: ScriptedBackend) -> AsyncIterator[tuple[Any, list[Backend]]]:
    if channel.transport == "stdio":
        async with channel.open_way(backend) as (transport, configured):
            yield transport, [configured]
        return
    async with open_memory_network() as network:
        url = network.attach("b.test", backend)
        transport = Ledger(network)
        yield transport, [Backend("b", url, transport=channel.transport, era=channel.era)]
        await transport.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert 0 == network.open_connections


def _plain_connector() -> BackendConnector:
    """One of the user's, whose connections break after a second."""

    async def broken() -> None:
        await trio.sleep(1)
        raise OSError

    return PlainConnector(services={"b": broken})


async def healing_plain(program: Program, factory: SessionFactory) -> None:
    async with open_session_factory(connector=_plain_connector(), storage=program.storage) as own:
        async with own.open_session(program.configured):
            with program.ctrl_c:
                await trio.sleep(4)


def _scenarios() -> Iterator[Scenario]:
    for channel in CHANNELS:
        for operation in (opening, calling, calling_beside, hearing, suspending, restoring, closing, living):
            yield Scenario(f"ctrl-c-{operation.__name__}-{channel}", channel, operation)
        if channel.transport != "stdio" and not channel.is_modern:
            yield Scenario(f"ctrl-c-healing-{channel}", channel, healing)
    yield Scenario("ctrl-c-healing-plain", CHANNELS[0], healing_plain)


SCENARIOS = tuple(_scenarios())


# The sweep


def run_case(scenario: Scenario, line: int) -> tuple[str | None, CtrlC]:
    """Run one case. Returns its problem, and the Ctrl-C."""
    ctrl_c = CtrlC(line)

    async def run() -> None:
        backend = scenario.channel.backend(listens=True, latency=0.01)
        backend.add_tool("steps", _steps)
        storage = ScriptedStorage()
        async with _open_way(scenario.channel, backend) as (transport, configured):

            def open_factory() -> Any:
                return open_session_factory(transport=transport, storage=storage, settings=SETTINGS)

            program = Program(ctrl_c, backend, configured, storage, open_factory)
            outcome: BaseException | None = None
            try:
                async with open_factory() as factory:
                    await scenario.operation(program, factory)
                for _ in range(STEPS):
                    await trio.lowlevel.checkpoint()
            except KeyboardInterrupt as error:
                outcome = error
            sys.settrace(None)
            if ctrl_c.place is None:
                return
            assert outcome is not None, "it went on as if nothing had happened"
            took = trio.current_time() - ctrl_c.struck_at
            assert took <= BOUND, f"it took {took} s"
            assert [] == library_tasks()
            if not program.stays:
                assert [] == await storage.rows()
                assert not isinstance(transport, Ledger) or not transport.all_session_ids & set(backend.sessions)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job it is ignored
    try:
        problem = judge(run)
    finally:
        sys.settrace(None)
        signal.signal(signal.SIGINT, before)
    return problem and f"struck {ctrl_c.place}: {problem}", ctrl_c


def count_lines(scenario: Scenario) -> int:
    """How many lines of the library the operation executes, once its caches are warm."""
    run_case(scenario, sys.maxsize)
    problem, ctrl_c = run_case(scenario, sys.maxsize)
    assert problem is None, problem
    return ctrl_c.lines


def some_lines(total: int, scenario: Scenario) -> range:
    """Every n-th line. The first of them is another one every day, and for every scenario."""
    step = max(total // CASES, 1)
    return range(first_case(step, SCENARIOS.index(scenario)), total, step)
