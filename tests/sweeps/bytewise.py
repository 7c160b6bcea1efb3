"""Breaks each response of a session's life at every byte: end of file, reset, stall, a wrong bit, a byte at a time.

The faults work on the raw bytes, from the status line to the last chunk. Each request ends in success or in a typed
error inside its deadline, and the next request works.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal

import attrs
import trio
from support.harness import World, assert_nothing_left, echo_backend, open_world

from sweeps.judge import judge
from sweeps.report import first_case
from trio_vmcp import (
    Backend,
    BackendError,
    FactorySettings,
    FailureReason,
    Session,
    SessionFactory,
    VmcpError,
    open_session_factory,
)
from trio_vmcp.testing import Disconnect, Drip, Flip, Reset, ScriptedBackend, Stall, WireFault

__all__ = ["SCENARIOS", "Scenario", "sweep"]

SETTINGS = FactorySettings(max_connections_per_backend=1)
INEXACT = 1e-6  # s: rounding of floats
CHUNK = 25  # cases of one run; if the run has a problem, each case runs alone
ARGUMENTS = {"text": "ÿ…"}


@attrs.frozen
class Scenario:
    """The response that is broken.

    Attributes:
        step: The response is the first to this JSON-RPC method or HTTP verb.
        probed: The session probes for the era first.
        resumable: The backend gives its events ids.
    """

    era: Literal["legacy", "modern"]
    answers: Literal["json", "sse"]
    step: str
    probed: bool = False
    resumable: bool = False

    @property
    def name(self) -> str:
        more = ("-probed" if self.probed else "") + ("-resumable" if self.resumable else "")
        return f"{self.step.replace('/', '.')}-{self.era}-{self.answers}{more}"

    def configure(self, backend: Backend) -> Backend:
        return attrs.evolve(backend, era="auto") if self.probed else backend


def _scenarios() -> Iterator[Scenario]:
    for answers in ("json", "sse"):
        for step in ("initialize", "notifications/initialized", "tools/list", "tools/call", "DELETE"):
            yield Scenario("legacy", answers, step)
        for step in ("server/discover", "tools/list", "tools/call"):
            yield Scenario("modern", answers, step)
        yield Scenario("modern", answers, "server/discover", probed=True)
    yield Scenario("legacy", "json", "server/discover", probed=True)
    yield Scenario("legacy", "sse", "tools/call", resumable=True)


SCENARIOS = tuple(_scenarios())


def faults_of(size: int) -> list[WireFault]:
    """Every fault of a response of `size` bytes. Stalled behind its last byte, it would be the next one that stalls."""
    faults: list[WireFault] = [Drip(), Disconnect(size), Reset(size)]
    for byte in range(size):
        faults += [Disconnect(byte), Reset(byte), Stall(byte), Flip(byte, bit=byte % 8)]
    return faults


def sweep(scenario: Scenario, only: int | None = None, every: int = 1) -> Iterator[tuple[int, str | None]]:
    """The problem in each case, or in every n-th, with the number of the case."""
    cases = faults_of(_response_bytes(scenario))
    if only is not None:
        yield only, judge(partial(_run, scenario, [cases[only]]))
        return
    numbers = range(first_case(every, SCENARIOS.index(scenario)), len(cases), every)
    for start in range(0, len(numbers), CHUNK):
        chunk = numbers[start : start + CHUNK]
        problem = judge(partial(_run, scenario, [cases[number] for number in chunk]))
        if problem is None:
            yield from ((number, None) for number in chunk)
            continue
        alone = [judge(partial(_run, scenario, [cases[number]])) for number in chunk]
        if not any(alone):  # the problem needs the cases before
            alone[-1] = f"only with the {len(chunk) - 1} cases before it: {problem}"
        yield from zip(chunk, alone, strict=True)


def _response_bytes(scenario: Scenario) -> int:
    sizes: list[int] = []

    async def main() -> None:
        async with _open(scenario) as (world, scripted):
            async with world.open_session() as session:
                await _works(session)
            sizes.append(scripted.received(scenario.step)[0].response_bytes)

    problem = judge(main)
    assert problem is None, f"{scenario.name} without any fault: {problem}"
    return sizes[0]


@asynccontextmanager
async def _open(scenario: Scenario) -> AsyncIterator[tuple[World, ScriptedBackend]]:
    scripted = echo_backend(scenario.era, scenario.answers, resumable=scenario.resumable)
    async with open_world({"a": scripted}, settings=SETTINGS, configure=scenario.configure) as world:
        world.leaves_sessions = True  # without the id from the response, the client cannot send a DELETE
        yield world, scripted


async def _run(scenario: Scenario, faults: Sequence[WireFault]) -> None:
    async with _open(scenario) as (world, scripted):
        if scenario.step == "tools/call":
            async with world.open_session() as session:
                for one in faults:
                    await _break_a_call(scripted, session, one)
        else:
            for one in faults:
                # A new factory each time: a factory remembers a backend's era and does not probe again.
                async with open_session_factory(
                    transport=world.transport, storage=world.storage, settings=SETTINGS
                ) as factory:
                    await _break_an_opening(world, scripted, factory, scenario.step, one)
                await assert_nothing_left(world)
        assert world.transport.all_session_ids <= {str(exchange.session_id) for exchange in scripted.received("DELETE")}


async def _break_a_call(scripted: ScriptedBackend, session: Session, one: WireFault) -> None:
    before = scripted.executed["echo"]
    rule = scripted.fail("tools/call", one, times=1)
    begun = trio.current_time()
    error: BackendError | None = None
    try:
        await _works(session, exactly=not isinstance(one, Flip))
    except BackendError as exc:
        error = exc
    assert error is None or not isinstance(one, Drip)
    # A flipped bit may turn an answer into a refusal, which says that the call did not run.
    assert error is None or error.may_have_executed or isinstance(one, Flip)
    assert trio.current_time() - begun <= SETTINGS.request_timeout + INEXACT
    assert 1 == rule.struck
    assert 1 == scripted.executed["echo"] - before
    assert 0 == session.in_flight
    await _works(session)


async def _break_an_opening(
    world: World, scripted: ScriptedBackend, factory: SessionFactory, step: str, one: WireFault
) -> None:
    rule = scripted.fail(step, one, times=1)
    begun = trio.current_time()
    async with factory.open_session(world.configured) as session:
        assert trio.current_time() - begun <= SETTINGS.backend_init_timeout + INEXACT
        failures = session.failures
        for failure in failures:
            assert not isinstance(one, Drip), failure
            assert failure.reason is not FailureReason.PENDING
            assert "could not be connected" not in failure.detail, failure  # said of untranslated errors
        if not failures:
            try:
                await _works(session)
            except VmcpError:
                if not isinstance(one, Flip):
                    raise
                failures = session.failures
        leaving = trio.current_time()
    assert trio.current_time() - leaving <= SETTINGS.teardown_timeout + INEXACT
    assert 1 == rule.struck
    if failures or step == "DELETE" or isinstance(one, Flip):
        async with factory.open_session(world.configured) as session:
            await _works(session)


async def _works(session: Session, *, exactly: bool = True) -> None:
    result = await session.call_tool("a_echo", ARGUMENTS)
    if exactly:
        assert [{"type": "text", "text": '{"text": "\\u00ff\\u2026"}'}] == list(result.content)
