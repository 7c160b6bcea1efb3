"""What a file of many programs costs of which few are in use: processes, and the memory of all of them."""

from __future__ import annotations

import sys
from pathlib import Path

import trio
from memory import resident, resident_of
from worker import Measures

from trio_vmcp import Backend, BackendState, FactorySettings, Session, open_session_factory

PROGRAM = ("-m", "trio_vmcp.testing.stdio", "add")
STOP_AFTER = 2.0  # s
PAUSE = 0.2  # s between two calls
TIMEOUT = 100.0  # s


async def stopped(urls: list[str], spare: str, terms: dict[str, object], programs: int, used: int) -> Measures:
    """Once the others are stopped. "processes": how many run. "bytes": what is resident of this process and of those;
    "held": over the same with `used` programs in the file.
    """
    few, _ = await _cost(used, used)
    many, processes = await _cost(programs, used)
    return {"processes": processes, "held": many / few, "bytes": many}


async def _cost(programs: int, used: int) -> tuple[float, int]:
    """Bytes and processes of a session with so many programs, after the unused ones were stopped."""
    entries = [
        Backend(f"b{at}", transport="stdio", command=sys.executable, args=PROGRAM, stop_after=STOP_AFTER)
        for at in range(programs)
    ]
    settings = FactorySettings(session_init_timeout=TIMEOUT)
    async with open_session_factory(settings=settings) as factory, factory.open_session(entries) as session:
        assert not session.failures, session.failures
        with trio.fail_after(TIMEOUT):
            await _use(session, programs - used)
        pids = _children()
        return resident() + sum(map(resident_of, pids)), len(pids)


async def _use(session: Session, unused: int) -> None:
    """Call the first backends until all others are stopped, and their processes are gone."""
    used = len(session.backends) - unused
    while True:
        for at in range(used):
            await session.call_tool(f"b{at}_add", {"a": 1, "b": 2})
        states = [status.state for status in session.backends.values()]
        if states.count(BackendState.STOPPED) == unused and len(_children()) <= used:
            return
        await trio.sleep(PAUSE)


def _children() -> list[int]:
    """The process ids of this process' children, from Linux' /proc; elsewhere none."""
    found: list[int] = []
    for tasks in Path("/proc/self/task").glob("*/children"):
        found += map(int, tasks.read_text().split())
    return found
