"""More than thirty real backends in one session: opened, killed one by one, healed, closed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import attrs
import trio
from interop.fleet import MORE_SERVERS, SERVERS, Running
from interop.programs import MORE_PROGRAMS, PROGRAMS
from support.processes import Children, marked_children, zombies

from trio_vmcp import (
    JSON,
    Backend,
    BackendState,
    BackendUnavailable,
    FactorySettings,
    Session,
    open_session_factory,
)

OWN = 12  # processes of a small server of ours, beside the 22 by other authors
STARTS_AT_ONCE = 3  # of processes: all of them together would take each one's time on a machine with few cores
SETTINGS = FactorySettings(
    max_backend_init_concurrency=6, session_init_timeout=90.0, reconnect_delay=0.1, reconnect_max_delay=1.0
)
PATIENCE = 90.0  # s, for everything to be there or back; real programs on a busy machine
RETRY_INTERVAL = 0.05  # s between looks or calls while a backend is away
MOST_LATE = 2.0  # s that a close may take beyond its bound, on a busy machine


@attrs.frozen(eq=False)
class Vessel:
    """One backend of the fleet.

    Attributes:
        tool, arguments: A call that is answered, with the tool's own name.
        kill: Ends it without a warning.
        start: Starts it again, and blocks until it listens; None: the session does.
    """

    backend: Backend
    tool: str
    arguments: JSON
    kill: Callable[[], None]
    start: Callable[[], None] | None = None

    async def call(self, session: Session) -> None:
        result = await session.call_tool(f"{self.backend.id}_{self.tool}", self.arguments, timeout=PATIENCE)
        assert result.content or not result.is_error

    async def until_answered(self, session: Session) -> None:
        while True:
            try:
                return await self.call(session)
            except BackendUnavailable:
                await trio.sleep(RETRY_INTERVAL)


def programs(stack: ExitStack, places: Path) -> list[Vessel]:
    vessels = []
    for program in (*PROGRAMS, *MORE_PROGRAMS):
        place = places / program.name
        place.mkdir()
        program.prepare(place)
        children = stack.enter_context(marked_children())
        tool, arguments = program.deed(place, "deed")
        vessels.append(Vessel(program.backend(program.name, place, children.mark), tool, arguments, children.kill_all))
    return vessels


def own_programs(stack: ExitStack) -> list[Vessel]:
    fleet = [stack.enter_context(marked_children()) for _ in range(OWN)]
    return [
        Vessel(each.backend(backend_id=f"own{number}"), "pid", {}, each.kill_all) for number, each in enumerate(fleet)
    ]


async def servers(stack: ExitStack, logs: Path) -> list[Vessel]:
    """All of them, started side by side."""
    limiter, vessels = trio.CapacityLimiter(STARTS_AT_ONCE), []

    async def start(it: Running) -> None:
        await trio.to_thread.run_sync(it.start, limiter=limiter)

    async with trio.open_nursery() as nursery:
        for server in (*SERVERS, *MORE_SERVERS):
            it = Running(server, logs / f"{server.name}.log")
            stack.callback(it.stop)
            nursery.start_soon(start, it)
            vessels.append(Vessel(it.backend(server.name), "echo", {"message": "hello"}, it.kill, it.start))
    return vessels


async def until_all_are_ready(session: Session) -> None:
    with trio.fail_after(PATIENCE):
        while any(status.state is not BackendState.READY for status in session.backends.values()):  # noqa: ASYNC110  # no event says all
            await trio.sleep(RETRY_INTERVAL)
    assert () == session.failures


async def kill_one_by_one(session: Session, fleet: list[Vessel]) -> None:
    """While a few are starting again, the others are killed; one that is not killed answers meanwhile."""
    starting = trio.CapacityLimiter(STARTS_AT_ONCE)

    async def heal(vessel: Vessel) -> None:
        try:
            if vessel.start is not None:
                await trio.to_thread.run_sync(vessel.start)
            await vessel.until_answered(session)
        finally:
            starting.release_on_behalf_of(vessel)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for number, vessel in enumerate(fleet):
                await starting.acquire_on_behalf_of(vessel)
                vessel.kill()
                nursery.start_soon(heal, vessel)
                untouched = fleet[(number + len(fleet) // 2) % len(fleet)]
                await untouched.until_answered(session)


async def test_a_fleet_is_killed_one_by_one(tmp_path: Path) -> None:
    """Every backend joins, and is back after it was killed, under its names; at the end no process is left."""
    with ExitStack() as stack:
        fleet = [*programs(stack, tmp_path), *own_programs(stack), *await servers(stack, tmp_path)]
        assert len(fleet) > 30
        async with open_session_factory(settings=SETTINGS) as factory:
            session = await factory.make_session([vessel.backend for vessel in fleet])
            await until_all_are_ready(session)
            names = [tool.name for tool in session.tools]
            assert {vessel.backend.id for vessel in fleet} == {tool.backend_id for tool in session.tools}
            await kill_one_by_one(session, fleet)
            await until_all_are_ready(session)
            assert names == [tool.name for tool in session.tools]
            began = trio.current_time()
            await session.aclose()
            assert trio.current_time() - began < SETTINGS.teardown_timeout + MOST_LATE
        assert [] == [vessel.backend.id for vessel in fleet if vessel.start is None and await is_left(vessel)]
        assert [] == zombies()


async def is_left(vessel: Vessel) -> bool:
    return not await Children(vessel.backend.env["TEST_MARK"]).all_gone()
