"""Runs a history: real sessions over an in-memory network, on a mock clock, with Trio's scheduler seeded."""

from __future__ import annotations

from functools import partial

import attrs
import trio
from support.deterministic import HangsForEver, ending, seeded
from support.memory_processes import MemoryProcess, memory_processes
from trio.testing import MockClock, wait_all_tasks_blocked

from simulation.backends import SimulatedBackend
from simulation.calls import Calls
from simulation.changes import Changes
from simulation.clocks import wall_clocks
from simulation.ground import Dead, Ground
from simulation.history import (
    AddBackend,
    Call,
    ChangeList,
    Close,
    Disturb,
    ExpireSession,
    FailStorage,
    Freeze,
    GrantTokens,
    HealStorage,
    History,
    InjectFault,
    Inspect,
    Kill,
    Open,
    RemoveBackend,
    Restore,
    RotateTokens,
    SetAttributes,
    SetLogLevel,
    Step,
    Subscribe,
    WatchChanges,
    WithholdTokens,
)
from simulation.inspections import Inspections
from simulation.instances import Instances
from simulation.openings import Openings
from simulation.operations import Operations
from simulation.outgoing_auth import RequestStamps
from simulation.seam import Seam
from simulation.storage import SharedStorage, StorageWay
from simulation.summary import number_of, remains_of, seen_by
from simulation.trace import Audit, Hung, ProcessEnded, Trace
from simulation.watchers import watched_garbage, watched_limiters, watched_log
from trio_vmcp.testing import open_memory_network

__all__ = ["run_history"]

LONGEST = 4000.0  # s, virtual; no history that ends takes half of it


def run_history(history: History) -> Trace:
    """Run a history. Faults of the library are in the trace; an exception is a bug of the simulation."""
    trace = Trace()
    clock = MockClock(autojump_threshold=0)
    dead = Dead()
    watches = watched_log(trace, clock, dead.holds_this_task), watched_garbage(trace)
    clocks = wall_clocks([leaving.ahead for leaving in history.instances], dead.this_instance)
    with seeded(history.seed), watches[0], watches[1], clocks, memory_processes() as processes:
        try:
            trio.run(_World(Ground(history, trace, processes, dead)).run, clock=ending(clock, longest=LONGEST))
        except trio.TrioInternalError as exc:
            if not isinstance(exc.__cause__, HangsForEver):
                raise
            trace.events.append(Hung(at=clock.current_time()))
        finally:
            dead.tasks.forget()
    return trace


@attrs.define(eq=False)
class _World:
    """Begins each step of a history, and sums up at the end."""

    ground: Ground
    operations: Operations = attrs.field(init=False)
    inspections: Inspections = attrs.field(init=False)
    calls: Calls = attrs.field(init=False)
    openings: Openings = attrs.field(init=False)
    changes: Changes = attrs.field(init=False)
    instances: Instances = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.operations, self.inspections = Operations(self.ground), Inspections(self.ground)
        self.calls = Calls(self.ground, self.operations, self.inspections)
        self.openings, self.changes = Openings(self.ground), Changes(self.ground)
        self.instances = Instances(self.ground, self.operations, self.calls)

    async def run(self) -> None:
        ground = self.ground
        ground.storage = SharedStorage(ground.history.ttl, ground.note, number_of)
        ground.dead.tasks.watch_this_run()
        with watched_limiters() as ground.limiters:
            async with ground.processes.running_in_virtual_time(self._note_process), open_memory_network() as network:
                for spec in ground.history.backends:
                    ground.backends[spec.id] = SimulatedBackend(spec, network, ground.processes, ground.note)
                stamper = RequestStamps()
                for number in range(len(ground.history.instances)):
                    ground.seams.append(Seam(network, ground.note, ground.backends, number, stamper))
                    ground.ways.append(StorageWay(ground.storage, number))
                await self._live()
                await wait_all_tasks_blocked()
                remains = self.inspections.audit()
                for seam in ground.seams:
                    await seam.aclose()
                await wait_all_tasks_blocked()
                await self._sum_up(remains, network.open_connections)
                await trio.sleep_until(ground.storage.busy_until)
                await wait_all_tasks_blocked()

    async def _live(self) -> None:
        async with trio.open_nursery() as step_nursery:
            async with trio.open_nursery() as instances:
                for number, leaving in enumerate(self.ground.history.instances):
                    self.instances.staying.add(number)
                    self.operations.scopes[number] = set()
                    await instances.start(self.instances.live, number, leaving, step_nursery)
                for step in self.ground.history.steps:
                    await trio.sleep_until(step.at)
                    self.inspections.look()
                    self._start(step, step_nursery)
                await self.instances.all_left.wait()
                self.instances.bury()
            self.ground.over.set()

    def _note_process(self, process: MemoryProcess) -> None:
        (backend_id,) = (
            b for b, backend in self.ground.backends.items() if backend.configured.command == process.command
        )
        assert process.returncode is not None
        self.ground.note(
            ProcessEnded(
                at=trio.current_time(),
                backend_id=backend_id,
                pid=process.pid,
                manners=process.manners,
                status=process.returncode,
                by_itself=process.ended_by_itself,
            )
        )

    def _start(self, step: Step, step_nursery: trio.Nursery) -> None:
        """Begin a step; a step for a session that does not exist, or for an instance that is gone, is left out."""
        ground, start = self.ground, partial(self.operations.start, step_nursery)
        life = ground.life_of(step)
        match step:
            case Open() | Restore() if step.instance in ground.dead.instances:
                pass
            case Freeze() | Kill() if step.instance not in self.instances.staying:
                pass
            case Disturb():
                ground.backend(step.backend).disturb(step)
            case InjectFault():
                ground.backend(step.backend).inject_fault(step)
            case ExpireSession():
                ground.backend(step.backend).expire_session(step)
            case ChangeList():
                step_nursery.start_soon(ground.backend(step.backend).change_list, step)
            case RotateTokens() | WithholdTokens() | GrantTokens():
                ground.backend(step.backend).change_tokens(step)
            case FailStorage():
                ground.storage.fail(step)
            case HealStorage():
                ground.storage.heal(step)
            case Freeze():
                step_nursery.start_soon(self.instances.freeze, step)
            case Kill():
                self.instances.kill(step.instance)
            case Inspect():
                step_nursery.start_soon(self.inspections.look_closely)
            case Open():
                work = partial(self.openings.hold if step.held else self.openings.make, step)
                begin = partial(ground.begin, "open", step=step)
                start(step, step.instance, begin, work)
            case Restore():
                work, begin = partial(self.openings.restore, step), partial(self.openings.begin_restore, step)
                start(step, step.instance, begin, work)
            case Call(rounds="answer") if life is not None and not ground.handed_out[life.of_session]:
                pass
            case Call() if life is not None:
                nursery = ground.callers.get(life.instance, step_nursery) if step.inside else step_nursery
                answers = ground.handed_out[life.of_session].pop(0) if step.rounds == "answer" else None
                begin = partial(
                    self.calls.begin_call, step, life, is_inside=nursery is not step_nursery, answers=answers
                )
                work = partial(self.calls.call, step, life, answers=answers)
                nursery.start_soon(self.operations.operate, step, life.instance, begin, work, step_nursery)
            case Close() if life is not None:
                begin = partial(self.calls.begin_close, step, life)
                start(step, life.instance, begin, partial(self.calls.close, step, life))
            case AddBackend() if life is not None:
                begin = partial(self.changes.begin_member, "add", step, life)
                start(step, life.instance, begin, partial(self.changes.add, step, life))
            case RemoveBackend() if life is not None:
                begin = partial(self.changes.begin_member, "remove", step, life)
                start(step, life.instance, begin, partial(self.changes.remove, step, life))
            case SetAttributes() if life is not None:
                begin = partial(ground.begin, "attributes", step=step, life=life.op, state=life.session.state.name)
                start(step, life.instance, begin, partial(self.changes.set_attributes, life))
            case SetLogLevel() if life is not None:
                begin = partial(ground.begin, "level", step=step, life=life.op, state=life.session.state.name)
                start(step, life.instance, begin, partial(self.changes.set_level, step, life))
            case Subscribe() if life is not None:
                begin = partial(self.changes.begin_subscribe, step, life)
                start(step, life.instance, begin, partial(self.changes.subscribe, step, life))
            case WatchChanges() if life is not None:
                begin = partial(ground.begin, "watch", step=step, life=life.op, state=life.session.state.name)
                start(step, life.instance, begin, partial(self.changes.watch, step, life))
            case _ if life is None and hasattr(step, "session"):
                pass
            case _:
                raise TypeError(f"_start has no case for {type(step).__name__}")

    async def _sum_up(self, audit: Audit, connections: int) -> None:
        self.ground.trace.seen = seen_by(self.ground.backends)
        sessions = tuple((life.op, life.session.state.name, life.session.in_flight) for life in self.ground.every_life)
        rows = await self.ground.storage.rows()
        self.ground.trace.remains = remains_of(audit, connections, rows, sessions, self.ground.backends)
