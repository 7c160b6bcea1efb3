"""Instances: each is a factory, as in a process of its own, which may be left, frozen or killed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import attrs
import trio

from simulation.calls import Calls
from simulation.ground import Ground
from simulation.history import Exit, Freeze
from simulation.operations import Operations
from simulation.outgoing_auth import SimulatedAuth
from simulation.questions import Handlers
from simulation.recording_connector import RecordingConnector
from simulation.summary import number_of
from simulation.trace import Began, Exiting, Frozen, Killed, Outcome
from simulation.watchers import InstanceObserver
from trio_vmcp import open_session_factory
from trio_vmcp.factory import DefaultSessionFactory

__all__ = ["Instances"]


@attrs.define(eq=False)
class Instances:
    """
    Attributes:
        staying: Those that were neither left nor killed.
    """

    ground: Ground
    operations: Operations
    calls: Calls
    staying: set[int] = attrs.field(factory=set, init=False)
    all_left: trio.Event = attrs.field(factory=trio.Event, init=False)
    attempts: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False)
    auth_call_numbers: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False)

    async def freeze(self, step: Freeze) -> None:
        if step.instance in self.ground.dead.tasks.stopped:
            return
        self.ground.note(
            Frozen(at=trio.current_time(), instance=step.instance, until=trio.current_time() + step.seconds)
        )
        self.ground.dead.tasks.stopped.add(step.instance)
        await trio.sleep(step.seconds)
        if step.instance not in self.ground.dead.instances:
            self.ground.dead.tasks.stopped.discard(step.instance)

    def kill(self, instance: int) -> None:
        self.ground.note(Killed(at=trio.current_time(), instance=instance))
        self.ground.dead.instances.add(instance)
        self.ground.dead.tasks.stopped.add(instance)
        for life in self.ground.every_life:
            life.is_gone = life.is_gone or life.instance == instance
        self.ground.ways[instance].is_cut = True
        self.ground.seams[instance].cut()
        for process in self.ground.processes.processes:
            if self.ground.dead.tasks.of(process.opened_by) == instance:
                process.vanish()
        self._leave(instance)

    def _leave(self, instance: int) -> None:
        self.staying.discard(instance)
        if not self.staying:
            self.all_left.set()

    def bury(self) -> None:
        """Let the tasks of instances that are gone end, after all others."""
        for instance in self.ground.dead.instances:
            self.ground.dead.tasks.stopped.discard(instance)
            for scope in self.operations.scopes[instance]:
                scope.cancel()

    async def live(  # noqa: ASYNC114  # only ever started in a nursery
        self, number: int, leaving: Exit, step_nursery: trio.Nursery, *, task_status: trio.TaskStatus[None]
    ) -> None:
        outcome = Outcome(kind="cancelled")
        self.ground.dead.tasks.join(number)

        async def live(doing: list[Began]) -> Outcome:
            async with open_session_factory(
                transport=self.ground.seams[number],
                storage=self.ground.ways[number],
                settings=self.ground.history.settings,
                handlers=Handlers(self.ground.note, partial(self.calls.act, number), number_of).given(
                    self.ground.history.given
                ),
                auth=self._wallet(),
                observers=[InstanceObserver(number, self.ground.note, self.ground.tags())],
            ) as factory:
                assert isinstance(factory, DefaultSessionFactory)
                connector_for = factory._connector_for
                factory._connector_for = lambda *chosen: RecordingConnector(
                    connector_for(*chosen), number, self.ground.note, self.attempts, self.ground.passed_to
                )
                self.ground.factories[number] = factory
                (self.ground.owners[number],) = trio.lowlevel.current_task().child_nurseries
                try:
                    async with trio.open_nursery() as self.ground.callers[number]:
                        try:
                            task_status.started()
                            await trio.sleep_until(leaving.at)
                        finally:  # inside the nursery's body: a nursery that waits for its tasks may start no more
                            del self.ground.callers[number]
                finally:
                    doing.append(self.ground.begin("exit", instance=number))
                    self.ground.note(Exiting(at=trio.current_time(), instance=number, cancelled=False))
            return Outcome(kind="ok")

        doing: list[Began] = []
        with trio.CancelScope() as surroundings, self.operations.being_under_way(number, surroundings):
            if leaving.cancelled_at is not None:
                step_nursery.start_soon(self._cancel_instance, number, leaving.cancelled_at, surroundings)
            outcome = await self.operations.outcome_of(live, doing)
        self.ground.end(doing[-1].op, outcome)
        if number not in self.ground.dead.instances:
            self._leave(number)

    def _wallet(self) -> SimulatedAuth | None:
        """The `auth` of one factory; None: no backend is guarded."""
        gates = {
            backend_id: backend.gate for backend_id, backend in self.ground.backends.items() if backend.gate is not None
        }
        return SimulatedAuth(gates, self.ground.note, self.auth_call_numbers) if gates else None

    async def _cancel_instance(self, number: int, at: float, surroundings: trio.CancelScope) -> None:
        await trio.sleep_until(at)
        if number not in self.ground.dead.instances:
            self.ground.note(Exiting(at=trio.current_time(), instance=number, cancelled=True))
            surroundings.cancel()
