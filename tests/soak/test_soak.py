"""Twenty backends of both eras and every transport crash, hang, restart, lose sessions and change for a virtual hour,
under six sessions of two factories that call them all the time.

A backend counts as healthy when no fault has struck it for SETTLING s. Calls to a healthy backend succeed, each call
runs at most once, a backend that is down is tried no more often than the backoff allows, and in the end nothing is
left.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import attrs
import pytest
import trio
from support.harness import library_tasks
from support.memory_processes import Manners, MemoryProcess, ProcessTable, Program, memory_processes
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendError,
    FactorySettings,
    Session,
    SessionChange,
    open_session_factory,
)
from trio_vmcp._http.transport import Http11Transport
from trio_vmcp.testing import CallContext, Error, Hang, MemoryNetwork, ScriptedBackend, Status, open_memory_network

BACKENDS, FACTORIES, SESSIONS = 20, 2, 3  # sessions of each factory
OVER_SSE, PROGRAMS = 2, 4  # of the backends
HOUR = 3600.0  # s
SETTINGS = FactorySettings(
    backend_init_timeout=5, request_timeout=3, reconnect_delay=0.5, reconnect_max_delay=10, idle_timeout=2 * HOUR
)
# s from the end of a fault until calls must succeed: the longest delay (10 s, and 20 %) of an attempt and of the
# breaker, and for each session of a factory an attempt that began while the backend still hung.
SETTLING = 12 + 12 + SESSIONS * SETTINGS.backend_init_timeout
LEAST_DELAY = 8.0  # s: the longest delay less 20 %
HANDSHAKES = ("initialize", "server/discover")
MANNERS: tuple[Manners, ...] = ("polite", "deaf", "stubborn", "parent")
QUICK_ATTEMPTS = 7  # with delays from 0.5 s, doubled up to the longest; and an attempt that had just begun


@attrs.define(eq=False)
class SoakedBackend(ScriptedBackend):
    """A backend with a record of its faults and connections.

    Attributes:
        processes: Its processes, one for each session, if it is a stdio backend.
        well_since: The end of its last fault; infinity during a fault.
        dialled: Attempts to connect, refused ones included.
        executed_once: How often each call ran.
    """

    processes: ProcessTable | None = None
    well_since: float = 0.0
    dialled: int = 0
    executed_once: Counter[str] = attrs.field(factory=Counter)
    is_up: bool = True

    async def accept(self) -> None:
        self.dialled += 1
        await super().accept()

    async def run(self, process: MemoryProcess, pipes: trio.abc.Stream) -> int:
        """A process of this program."""
        self.dialled += 1
        if not self.is_up:
            return 1
        await self.serve_lines(pipes)
        return 0

    def go_down(self) -> None:
        self.is_up = False
        if self.processes is None:
            self.crash()
        self.lose_sessions()

    def come_up(self) -> None:
        self.is_up = True
        self.restart()

    def lose_sessions(self) -> None:
        """End every session; where the session is a stream or a process, that ends."""
        for session_id in list(self.sessions):
            self.end_session(session_id)
        for process in () if self.processes is None else self.processes.running(self.name):
            process.end(0)

    async def count(self, arguments: JSON, context: CallContext) -> str:
        self.executed_once[arguments["key"]] += 1
        await trio.sleep(arguments["seconds"])
        return str(arguments["key"])


@attrs.define(eq=False)
class Soak:
    """The record of a run.

    Attributes:
        answered, failed: Calls with a result, and with an error.
        wrong: Broken promises, in words.
        changes: Changes that sessions reported, by kind.
    """

    chance: random.Random
    backends: dict[str, SoakedBackend]
    answered: int = 0
    failed: int = 0
    outages: Counter[str] = attrs.field(factory=Counter)
    wrong: list[str] = attrs.field(factory=list)
    changes: Counter[str] = attrs.field(factory=Counter)

    async def trouble(self, backend: SoakedBackend) -> None:
        """One fault after another, with healthy times in between."""
        kinds = (self._crash, self._hang, self._restart, self._forget, self._shut_out, self._change)
        while True:
            await trio.sleep(self.chance.uniform(1, 4) * SETTLING)
            fault = self.chance.choice(kinds)
            self.outages[fault.__name__.strip("_")] += 1
            backend.well_since = float("inf")
            backend.dialled, began_at = 0, trio.current_time()
            backend.exchanges.clear()  # an hour of exchanges would take much memory
            await fault(backend)
            backend.well_since = trio.current_time()
            self._check_storm(backend, trio.current_time() - began_at)

    async def _crash(self, backend: SoakedBackend) -> None:
        backend.go_down()
        await trio.sleep(self.chance.uniform(1, 120))
        backend.come_up()

    async def _hang(self, backend: SoakedBackend) -> None:
        backend.fail(lambda exchange: exchange.verb != "GET", Hang())
        await trio.sleep(self.chance.uniform(1, 60))
        backend.heal()

    async def _restart(self, backend: SoakedBackend) -> None:
        backend.lose_sessions()
        backend.come_up()
        await trio.lowlevel.checkpoint()

    async def _forget(self, backend: SoakedBackend) -> None:
        backend.lose_sessions()
        await trio.lowlevel.checkpoint()

    async def _shut_out(self, backend: SoakedBackend) -> None:
        backend.lose_sessions()
        for handshake in HANDSHAKES:
            backend.fail(handshake, Status(503) if backend.processes is None else Error(-32603, "not now"))
        await trio.sleep(self.chance.uniform(1, 120))
        backend.heal()

    async def _change(self, backend: SoakedBackend) -> None:
        name = f"extra_{self.outages['change']}"
        backend.add_tool(name)
        backend.notify("notifications/tools/list_changed")
        await trio.sleep(10)
        backend.tools[:] = [tool for tool in backend.tools if tool["name"] != name]
        backend.notify("notifications/tools/list_changed")

    def _check_storm(self, backend: SoakedBackend, seconds: float) -> None:
        """A factory makes one attempt at a time, with at most three requests: one for each era, and one repeated. Calls
        dial, too: five of each session until its breaker opens, as many that were running, and then one trial at a
        time.
        """
        turns = QUICK_ATTEMPTS + seconds / LEAST_DELAY
        shaken = sum(len(backend.received(handshake)) for handshake in HANDSHAKES)
        for what, count, budget in (
            ("asked for a handshake", shaken, 3 * FACTORIES * turns),
            ("dialled", backend.dialled, FACTORIES * turns + FACTORIES * SESSIONS * (2 * 5 + turns)),
        ):
            if count > budget:
                self.wrong.append(f"{backend.name} was {what} {count} times in {seconds:.0f} s; {budget:.0f} allowed")

    async def call_on(self, session: Session, number: int) -> None:
        turn = 0
        while True:
            await trio.sleep(self.chance.uniform(0.5, 2.0))
            turn += 1
            backend = self.backends[self.chance.choice(list(self.backends))]
            key, began_at = f"{number}-{turn}", trio.current_time()
            arguments = {"key": key, "seconds": self.chance.choice([0.0, 0.0, 0.1, 1.0])}
            try:
                result = await session.call_tool(f"{backend.name}_count", arguments)
            except BackendError as error:
                self.failed += 1
                if backend.well_since + SETTLING < began_at:
                    self.wrong.append(
                        f"at {began_at:.1f} s, {trio.current_time() - backend.well_since:.1f} s well: {error}"
                    )
            else:
                self.answered += 1
                assert key == result.content[0]["text"]

    async def follow(self, session: Session) -> None:
        async with session.changes() as changes:
            async for change in changes:
                assert isinstance(change, SessionChange)
                self.changes[change.kind] += 1


def soaked_backends(network: MemoryNetwork, processes: ProcessTable) -> tuple[dict[str, SoakedBackend], list[Backend]]:
    """Half of the backends for each era and form of answer; some are resumable, and the last use other transports."""
    backends: dict[str, SoakedBackend] = {}
    configured: list[Backend] = []
    for number in range(BACKENDS):
        is_program = number >= BACKENDS - PROGRAMS
        is_older = not is_program and number >= BACKENDS - PROGRAMS - OVER_SSE
        backend = SoakedBackend(
            name=f"b{number}",
            era="modern" if number % 2 and not is_older else "legacy",
            transport="sse" if is_older else "streamable-http",
            answers="sse" if number % 4 > 1 else "json",
            resumable=number % 5 == 0 and not is_older,
            listens=number % 3 == 0,
            processes=processes if is_program else None,
        )
        backend.add_tool("count", backend.count)
        backends[backend.name] = backend
        if is_program:
            configured.append(Backend(id=backend.name, transport="stdio", command=backend.name))
            processes.programs[backend.name] = Program(
                main=backend.run,
                manners=MANNERS[number % len(MANNERS)],
                is_there=lambda: True,
                says=lambda env: "",
            )
        else:
            url = network.attach(f"{backend.name}.test", backend)
            configured.append(Backend(id=backend.name, url=url))  # the probe finds the transport
    return backends, configured


async def live(seed: int, processes: ProcessTable) -> Soak:
    async with processes.running_in_virtual_time(lambda process: None), open_memory_network() as network:
        backends, configured = soaked_backends(network, processes)
        soak = Soak(random.Random(seed), backends)
        transports = [network.transport() for _ in range(FACTORIES)]
        with trio.move_on_after(HOUR):
            async with trio.open_nursery() as everything:
                for number, transport in enumerate(transports):
                    everything.start_soon(run_factory, soak, configured, transport, number)
                for backend in backends.values():
                    everything.start_soon(soak.trouble, backend)
        await wait_all_tasks_blocked()
        assert [] == library_tasks()
        assert () == processes.alive
        assert [0] * FACTORIES == [transport.busy_connections for transport in transports]
        for transport in transports:
            await transport.aclose()
        await wait_all_tasks_blocked()
        assert 0 == network.open_connections
    return soak


async def run_factory(soak: Soak, configured: list[Backend], transport: Http11Transport, number: int) -> None:
    async with open_session_factory(transport=transport, settings=SETTINGS) as factory, trio.open_nursery() as nursery:
        for one in range(SESSIONS):
            session = await factory.make_session(configured)
            nursery.start_soon(soak.call_on, session, SESSIONS * number + one)
            nursery.start_soon(soak.follow, session)


@pytest.mark.parametrize("seed", [1])
def test_an_hour_of_trouble(seed: int, record_property: Callable[[str, object], None]) -> None:
    """No leak, no storm, no call twice, and every call to a healthy backend succeeds."""

    random.seed(seed)  # the jitter of the library
    with memory_processes() as processes:
        soak = trio.run(live, seed, processes, clock=MockClock(autojump_threshold=0))
    twice = [key for backend in soak.backends.values() for key, count in backend.executed_once.items() if count > 1]
    record_property("calls", f"{soak.answered} answered, {soak.failed} failed, {dict(soak.outages)}")
    assert [] == soak.wrong[:20]
    assert [] == twice
    assert soak.answered > 10_000
    assert soak.failed > 100  # the faults did strike
    assert set() == {"backend", "tools"} - soak.changes.keys()
