"""Cancels each operation of a session at every moment, in whichever task, and checks that nothing is left.

A moment is every point at which Trio can deliver a cancel: after each step of each task, and before the first step
after each wait of the loop, when a deadline has woken a task that has not run yet. So a cancel arrives while the
operation waits, and also when the awaited result is already there.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import attrs
import trio
from support.cancel_sweep import CancelAtMoment
from support.harness import World, assert_nothing_left, echo_backend, library_tasks, open_world

from sweeps.judge import judge
from sweeps.report import first_case
from trio_vmcp import JSON, Backend, FactorySettings, Session, SessionState, open_session_factory
from trio_vmcp.testing import CallContext, ScriptedBackend

__all__ = ["SCENARIOS", "Scenario", "run_case", "sweep"]

# One connection per backend: a token that a cancelled call keeps makes the next call wait for ever.
SETTINGS = FactorySettings(max_connections_per_backend=1)
BOUND = SETTINGS.drain_timeout + SETTINGS.teardown_timeout


Operation = Callable[[World, CancelAtMoment], Awaitable[None]]


@attrs.frozen
class Scenario:
    """An operation to cancel, and the backends of its session."""

    name: str
    operation: Operation
    backends: Callable[[], Mapping[str, ScriptedBackend]]
    probed: bool = False

    def configure(self, backend: Backend) -> Backend:
        return attrs.evolve(backend, era="auto", transport="streamable-http") if self.probed else backend


# The operations


async def opening(world: World, cut: CancelAtMoment) -> None:
    session: Session | None = None
    with cut.block():
        session = await world.make_session()
    if session is None:
        assert [] == library_tasks()  # at once: a cancelled opener has waited
    else:
        await session.aclose()


async def holding(world: World, cut: CancelAtMoment) -> None:
    """The whole block of a session."""
    with cut.block():
        async with world.open_session() as session:
            await session.call_tool("a_echo")
    assert [] == library_tasks()


async def living(world: World, cut: CancelAtMoment) -> None:
    """A factory from its opening to its end."""
    with cut.block():
        async with open_session_factory(transport=world.transport, storage=world.storage, settings=SETTINGS) as factory:
            async with factory.open_session(world.configured) as session:
                await session.call_tool("a_echo")
    assert [] == library_tasks()


async def calling(world: World, cut: CancelAtMoment) -> None:
    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        await trio.lowlevel.checkpoint()

    async with world.open_session() as session:
        with cut.block():
            await session.call_tool("a_steps", on_progress=on_progress)
        assert 0 == session.in_flight
        assert SessionState.OPEN is session.state
        await session.call_tool("a_echo")
    assert world["a"].executed["steps"] <= 1


async def hearing(world: World, cut: CancelAtMoment) -> None:
    """A `list_changed` on the held stream, and then the end of that stream."""
    world["a"].add_resource("memo://one")
    async with world.open_session() as session:
        with cut.block():
            await session.subscribe_resource("memo://one")
            world["a"].notify("notifications/tools/list_changed")
            await trio.sleep(1)
            world["a"].end_streams()
            await trio.sleep(2)
            await session.unsubscribe_resource("memo://one")
        assert 0 == session.in_flight
        await session.call_tool("a_echo")


async def closing(world: World, cut: CancelAtMoment) -> None:
    session = await world.make_session()
    with cut.block():
        await session.aclose()
    await _closes(session)


async def closing_in_use(world: World, cut: CancelAtMoment) -> None:
    """With a call in flight: the cancel of the close leaves the call's result as it is."""
    session = await world.make_session()
    answers: list[object] = []

    async def call() -> None:
        answers.append((await session.call_tool("a_steps")).is_error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        with cut.block():
            await session.aclose()
        await _closes(session)
    assert [False] == answers


async def suspending(world: World, cut: CancelAtMoment) -> None:
    session = await world.make_session()
    with cut.block():
        await session.suspend()
    await _closes(session)
    assert [session.id] == [row.session_id for row in await world.storage.rows()]
    await _restored(world, session.id)


async def restoring(world: World, cut: CancelAtMoment, *, gone: bool = False) -> None:
    """A cancelled restore leaves the row, and the backend session that it names, as they were."""
    suspended = await world.make_session()
    await suspended.suspend()
    if gone:
        world["a"].restart()
    session: Session | None = None
    with cut.block():
        session = await world.restore_session(suspended.id)
    if session is not None:
        await session.suspend()
    await _restored(world, suspended.id)
    if not gone:
        assert 1 >= len(world["a"].received("initialize"))


async def _closes(session: Session) -> None:
    """A cancelled closer does not undo the close: the next `aclose` returns when the session is CLOSED."""
    with trio.fail_after(BOUND):
        await session.aclose()
    assert SessionState.CLOSED is session.state
    assert 0 == session.in_flight


async def _restored(world: World, session_id: str) -> None:
    session = await world.restore_session(session_id)
    await session.call_tool("a_echo")
    await session.aclose()


# The backends


def backend(era: str, answers: str, **more: Any) -> ScriptedBackend:
    """With a tool "steps" that takes a second and sends progress."""

    async def steps(arguments: JSON, context: CallContext) -> str:
        for step in range(2):
            await trio.sleep(0.5)
            await context.progress(step, 2)
        return "done"

    scripted = echo_backend(era, answers, latency=0.01, **more)
    scripted.add_tool("steps", steps)
    return scripted


def one(era: str, answers: str) -> Callable[[], Mapping[str, ScriptedBackend]]:
    return lambda: {"a": backend(era, answers)}


def listening(era: str) -> Callable[[], Mapping[str, ScriptedBackend]]:
    """With a held stream for changes."""
    return lambda: {"a": backend(era, "sse", listens=True)}


def older() -> Mapping[str, ScriptedBackend]:
    """Over HTTP+SSE."""
    return {"a": backend("legacy", "json", transport="sse")}


def mixed() -> Mapping[str, ScriptedBackend]:
    """One backend of each era, and a slow one."""
    slow = backend("modern", "json")
    slow.latency = 1.0
    return {"a": backend("legacy", "sse"), "b": backend("modern", "json"), "c": slow}


def _scenarios() -> Iterator[Scenario]:
    kinds: list[tuple[Literal["legacy", "modern"], Literal["json", "sse"]]] = [
        ("legacy", "json"),
        ("legacy", "sse"),
        ("modern", "json"),
        ("modern", "sse"),
    ]
    for era, answers in kinds:
        for what in (opening, calling):
            yield Scenario(f"{what.__name__}-{era}-{answers}-pinned", what, one(era, answers))
            yield Scenario(f"{what.__name__}-{era}-{answers}-probed", what, one(era, answers), probed=True)
    for era, answers in (kinds[1], kinds[2]):
        for what in (holding, living, closing, closing_in_use, suspending, restoring):
            yield Scenario(f"{what.__name__}-{era}-{answers}", what, one(era, answers))
    for era in ("legacy", "modern"):
        for what in (opening, calling, holding, closing_in_use, suspending, hearing):
            yield Scenario(f"{what.__name__}-{era}-listening", what, listening(era))
    for answers in ("json", "sse"):
        yield Scenario(f"restoring-gone-{answers}", partial(restoring, gone=True), one("legacy", answers))
    for what in (opening, calling):
        yield Scenario(f"{what.__name__}-older-pinned", what, older)
        yield Scenario(f"{what.__name__}-older-probed", what, older, probed=True)
    for what in (holding, closing_in_use, suspending):
        yield Scenario(f"{what.__name__}-older", what, older)
    yield Scenario("restoring-older", partial(restoring, gone=True), older)  # an HTTP+SSE session ends with its stream
    yield Scenario("opening-three-backends", opening, mixed)
    yield Scenario("closing-three-backends", closing_in_use, mixed)


SCENARIOS = tuple(_scenarios())


# The sweep


def run_case(scenario: Scenario, moment: int) -> tuple[str | None, bool]:
    """Run one case; returns its problem, and whether the operation had this moment at all."""
    cut = CancelAtMoment(moment)

    async def run() -> None:
        async with open_world(scenario.backends(), settings=SETTINGS, configure=scenario.configure) as world:
            world.leaves_sessions = True  # without the id from the response, the client cannot send a DELETE
            await scenario.operation(world, cut)
            await assert_nothing_left(world)
            for scripted in world.backends.values():
                assert set() == world.transport.all_session_ids & set(scripted.sessions)
                assert scripted.transport != "sse" or {} == scripted.sessions  # an HTTP+SSE session is an open stream
            async with world.open_session() as session:
                assert () == session.failures
                await session.call_tool("a_echo")

    problem = judge(run)
    return problem and f"cancelled {cut.struck}: {problem}", cut.struck is not None


def sweep(scenario: Scenario, every: int = 1) -> Iterator[tuple[int, str | None]]:
    """The number and the problem of each moment of the scenario, or of every n-th; the last run has no cancel."""
    struck = True
    for moment in itertools.count(first_case(every, SCENARIOS.index(scenario)), every):
        if not struck:
            return
        problem, struck = run_case(scenario, moment)
        yield moment, problem
