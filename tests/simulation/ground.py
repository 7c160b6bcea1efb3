"""What the parts of a running history share: its sessions, backends and instances, and the trace."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import Any

import attrs
import trio
from support.memory_processes import ProcessTable
from support.stopped_tasks import TaskGroups

from simulation.backends import CANARY, SimulatedBackend
from simulation.history import History, Open, Restore, Step
from simulation.questions import HandedOut
from simulation.seam import Seam
from simulation.storage import SharedStorage, StorageWay
from simulation.trace import Began, Closing, Ended, Event, Names, Outcome, Trace, What
from trio_vmcp import Backend, BackendState, Identity, Session, SessionFactory, SessionState
from trio_vmcp._client.http.connection_limit import Slots
from trio_vmcp._session.member import Incomplete
from trio_vmcp.default_session import DefaultSession
from trio_vmcp.errors import session_tag

__all__ = ["UNKNOWN_NAME", "Dead", "Ground", "Life", "names_of", "state_of"]

UNKNOWN_NAME = "nobody has this"


@attrs.define(eq=False)
class Dead:
    """The instances that are gone. Their tasks end when all others have ended, and what they do then is in no trace."""

    instances: set[int] = attrs.field(factory=set, init=False)
    tasks: TaskGroups = attrs.field(factory=TaskGroups, init=False)

    def holds_this_task(self) -> bool:
        if not self.instances or not trio.lowlevel.in_trio_task():
            return False
        return self.this_instance() in self.instances

    def this_instance(self) -> int | None:
        return self.tasks.of(trio.lowlevel.current_task())


@attrs.define(eq=False)
class Life:
    """A session of one opening or restoring; a session number may have several of these, in turn or at once."""

    op: int
    number: int
    instance: int
    identity: Identity | None
    session: Session
    is_gone: bool = attrs.field(default=False, init=False)  # with its instance

    @property
    def of_session(self) -> tuple[int, datetime]:
        """Equal for the lives of one session. Once a row has expired, the same number may open another session, to
        which the backends' questions to the first one do not belong.
        """
        return self.number, self.session.created_at

    @property
    def is_over(self) -> bool:
        return self.is_gone or self.session.state is SessionState.CLOSED


@attrs.define(eq=False)
class Ground:
    """
    Attributes:
        passed: By `id` of each backend passed to a session: the backend (kept alive, so that its id stays its own), and
            the operation.
        owners: The nurseries of the factories' tasks, by instance.
        callers: Nurseries inside the factories' blocks, by instance.
        handed_out: By session: questions that wait for a step that answers, the oldest first.
        opening: Numbers of the sessions that are being opened.
        shielded: Callbacks that shield themselves at the moment.
        over: Ends the blocks that hold a session.
        count: Operations so far.
        seams, ways: By instance: its requests, and its way to the storage.
    """

    history: History
    trace: Trace
    processes: ProcessTable
    dead: Dead
    backends: dict[str, SimulatedBackend] = attrs.field(factory=dict, init=False)
    storage: SharedStorage = attrs.field(init=False)
    passed: dict[int, tuple[Backend, int]] = attrs.field(factory=dict, init=False)
    factories: dict[int, SessionFactory] = attrs.field(factory=dict, init=False)
    owners: dict[int, trio.Nursery] = attrs.field(factory=dict, init=False)
    callers: dict[int, trio.Nursery] = attrs.field(factory=dict, init=False)
    every_life: list[Life] = attrs.field(factory=list, init=False)
    handed_out: dict[tuple[int, datetime], list[HandedOut]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    opening: list[int] = attrs.field(factory=list, init=False)
    shielded: int = attrs.field(default=0, init=False)
    over: trio.Event = attrs.field(factory=trio.Event, init=False)
    count: int = attrs.field(default=0, init=False)
    limiters: list[trio.CapacityLimiter | Slots] = attrs.field(factory=list, init=False)
    seams: list[Seam] = attrs.field(factory=list, init=False)
    ways: list[StorageWay] = attrs.field(factory=list, init=False)

    def note(self, event: Event) -> None:
        if not self.dead.holds_this_task():
            self.trace.events.append(event)

    def begin(self, what: What, **details: Any) -> Began:
        self.count += 1
        began = Began(at=trio.current_time(), op=self.count, what=what, **details)
        self.note(began)
        return began

    def end(self, op: int, outcome: Outcome) -> None:
        self.note(Ended(at=trio.current_time(), op=op, outcome=outcome))

    def ask_to_close(self, op: int, life: Life, terminate: bool, drain_timeout: float | None = None) -> None:
        limit = self.history.settings.drain_timeout if drain_timeout is None else drain_timeout
        self.note(
            Closing(
                at=trio.current_time(),
                op=op,
                life=life.op,
                terminate=terminate,
                drain_timeout=limit,
                found=life.session.state.name,
                in_flight=life.session.in_flight,
            )
        )

    def life_of(self, step: Step) -> Life | None:
        """The copy of the session that a step is about: the latest, of the step's instance if it names one."""
        number, instance = getattr(step, "session", None), getattr(step, "instance", None)
        if isinstance(step, Open | Restore):
            instance = None
        its = (life for life in reversed(self.every_life) if life.number == number and not life.is_gone)
        return next((life for life in its if instance in (None, life.instance)), None)

    def backend(self, index: int) -> SimulatedBackend:
        return self.backends[self.history.backends[index].id]

    def pass_on(self, index: int, op: int) -> Backend:
        """A copy of the backend for each operation, so that an attempt can be traced to its operation."""
        backend = attrs.evolve(self.backend(index).configured)
        self.passed[id(backend)] = backend, op
        return backend

    def passed_to(self, backend: Backend) -> int:
        return self.passed[id(backend)][1]

    def tags(self) -> dict[str, int]:
        numbers = {step.session for step in self.history.steps if isinstance(step, Open)}
        return {session_tag(self.session_id(number)): number for number in numbers}

    def session_id(self, number: int) -> str:
        return f"{CANARY}-{number}"  # `number_of` reads it


def state_of(session: Session, backend_id: str) -> str:
    """ "": the session does not have it, or no longer. "INCOMPLETE": DEGRADED for want of an optional list alone,
    so that calls go through as ever. What the public state does not tell apart, the judges must.
    """
    status = session.backends.get(backend_id)
    assert isinstance(session, DefaultSession)
    member = session._core.membership.members.get(backend_id)
    if member is not None and isinstance(member.state, Incomplete):
        return "INCOMPLETE"
    return "" if status is None or status.state is BackendState.REMOVED else status.state.name


def names_of(session: Session) -> Names:
    table = session.routing_table.tools
    return tuple((name, target.backend_id, target.name) for name, target in sorted(table.items()))
