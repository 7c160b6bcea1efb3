"""Runs a history: real sessions over an in-memory network, on a mock clock, with Trio's scheduler seeded."""

from __future__ import annotations

import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any

import attrs
import trio
from support.deterministic import HangsForEver, ending, seeded
from support.memory_processes import MemoryProcess, ProcessTable, memory_processes
from support.stopped_tasks import TaskGroups
from trio.testing import MockClock, wait_all_tasks_blocked

from simulation.backends import CANARY, SimulatedBackend
from simulation.clocks import wall_clocks
from simulation.history import (
    AddBackend,
    Call,
    CancelCaller,
    ChangeList,
    Close,
    Disturb,
    Exit,
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
from simulation.identities import ALICE, BOB, identity_of_calls
from simulation.outgoing_auth import RequestStamps, SimulatedAuth
from simulation.questions import HandedOut, HandlerError, Handlers, Question, handed_out
from simulation.recording_connector import RecordingConnector
from simulation.seam import Seam
from simulation.storage import SET_BY, SharedStorage, StorageWay
from simulation.summary import KEY, number_of, remains_of, seen_by
from simulation.trace import (
    Audit,
    Began,
    CallerCancelled,
    Closing,
    Ended,
    Event,
    Exiting,
    Frozen,
    Hung,
    Inspected,
    Killed,
    Names,
    Opened,
    Operated,
    Outcome,
    ProcessEnded,
    Removing,
    SecretLeaked,
    Settled,
    Shielded,
    Trace,
    What,
)
from simulation.watchers import SECRET, InstanceObserver, watched_garbage, watched_limiters, watched_log
from trio_vmcp import (
    Backend,
    BackendState,
    Identity,
    Session,
    SessionFactory,
    SessionState,
    Target,
    VmcpError,
    open_session_factory,
)
from trio_vmcp._client.http.connection_limit import Slots
from trio_vmcp._session.member import Incomplete
from trio_vmcp.default_session import DefaultSession
from trio_vmcp.errors import session_tag
from trio_vmcp.factory import DefaultSessionFactory
from trio_vmcp.testing import open_memory_network

__all__ = ["run_history"]

SHIELDED = 2.0  # s
LONGEST = 4000.0  # s, virtual; no history that ends takes half of it
UNKNOWN_NAME = "nobody has this"


def run_history(history: History) -> Trace:
    """Run a history. Faults of the library are in the trace; an exception is a bug of the simulation."""
    trace = Trace()
    clock = MockClock(autojump_threshold=0)
    dead = _Dead()
    watches = watched_log(trace, clock, dead.holds_this_task), watched_garbage(trace)
    clocks = wall_clocks([leaving.ahead for leaving in history.instances], dead.this_instance)
    with seeded(history.seed), watches[0], watches[1], clocks, memory_processes() as processes:
        try:
            trio.run(_World(history, trace, processes, dead).run, clock=ending(clock, longest=LONGEST))
        except trio.TrioInternalError as exc:
            if not isinstance(exc.__cause__, HangsForEver):
                raise
            trace.events.append(Hung(at=clock.current_time()))
        finally:
            dead.tasks.forget()
    return trace


class CallbackError(Exception):
    """Raised by a caller's progress callback."""


@attrs.define(eq=False)
class _Dead:
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
class _Life:
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
class _World:
    history: History
    trace: Trace
    processes: ProcessTable
    dead: _Dead
    backends: dict[str, SimulatedBackend] = attrs.field(factory=dict, init=False)
    storage: SharedStorage = attrs.field(init=False)
    # By `id` of each backend passed to a session: the backend (kept alive, so that its id stays its own), and `op`.
    passed: dict[int, tuple[Backend, int]] = attrs.field(factory=dict, init=False)
    attempts: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False)
    auth_call_numbers: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False)
    factories: dict[int, SessionFactory] = attrs.field(factory=dict, init=False)
    owners: dict[int, trio.Nursery] = attrs.field(factory=dict, init=False)  # the nurseries of the factories' tasks
    callers: dict[int, trio.Nursery] = attrs.field(factory=dict, init=False)  # nurseries inside the factories' blocks
    scopes: dict[int, set[trio.CancelScope]] = attrs.field(factory=dict, init=False)  # of the tasks of each instance
    staying: set[int] = attrs.field(factory=set, init=False)  # instances that were neither left nor killed
    all_left: trio.Event = attrs.field(factory=trio.Event, init=False)
    every_life: list[_Life] = attrs.field(factory=list, init=False)
    # By session: questions that wait for a step that answers, the oldest first.
    handed_out: dict[tuple[int, datetime], list[HandedOut]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    opening: list[int] = attrs.field(factory=list, init=False)  # numbers of sessions
    shielded: int = attrs.field(default=0, init=False)  # callbacks that shield themselves at the moment
    over: trio.Event = attrs.field(factory=trio.Event, init=False)  # ends the blocks that hold a session
    operations: int = attrs.field(default=0, init=False)
    limiters: list[trio.CapacityLimiter | Slots] = attrs.field(factory=list, init=False)
    seams: list[Seam] = attrs.field(factory=list, init=False)  # by instance, as the next
    ways: list[StorageWay] = attrs.field(factory=list, init=False)

    async def run(self) -> None:
        self.storage = SharedStorage(self.history.ttl, self.note, number_of)
        self.dead.tasks.watch_this_run()
        with watched_limiters() as self.limiters:
            async with self.processes.running_in_virtual_time(self._note_process), open_memory_network() as network:
                for spec in self.history.backends:
                    self.backends[spec.id] = SimulatedBackend(spec, network, self.processes, self.note)
                stamper = RequestStamps()
                for number in range(len(self.history.instances)):
                    self.seams.append(Seam(network, self.note, self.backends, number, stamper))
                    self.ways.append(StorageWay(self.storage, number))
                await self._live()
                await wait_all_tasks_blocked()
                remains = self._audit()
                for seam in self.seams:
                    await seam.aclose()
                await wait_all_tasks_blocked()
                await self._sum_up(remains, network.open_connections)
                await trio.sleep_until(self.storage.busy_until)
                await wait_all_tasks_blocked()

    async def _live(self) -> None:
        async with trio.open_nursery() as step_nursery:
            async with trio.open_nursery() as instances:
                for number, leaving in enumerate(self.history.instances):
                    self.staying.add(number)
                    self.scopes[number] = set()
                    await instances.start(self._instance, number, leaving, step_nursery)
                for step in self.history.steps:
                    await trio.sleep_until(step.at)
                    self._look()
                    self._start(step, step_nursery)
                await self.all_left.wait()
                self._bury()
            self.over.set()

    def _note_process(self, process: MemoryProcess) -> None:
        (backend_id,) = (b for b, backend in self.backends.items() if backend.configured.command == process.command)
        assert process.returncode is not None
        self.note(
            ProcessEnded(
                at=trio.current_time(),
                backend_id=backend_id,
                pid=process.pid,
                manners=process.manners,
                status=process.returncode,
                by_itself=process.ended_by_itself,
            )
        )

    # --- operations

    def note(self, event: Event) -> None:
        if not self.dead.holds_this_task():
            self.trace.events.append(event)

    def _begin(self, what: What, **details: Any) -> Began:
        self.operations += 1
        began = Began(at=trio.current_time(), op=self.operations, what=what, **details)
        self.note(began)
        return began

    def _end(self, op: int, outcome: Outcome) -> None:
        self.note(Ended(at=trio.current_time(), op=op, outcome=outcome))

    def _ask_to_close(self, op: int, life: _Life, terminate: bool, drain_timeout: float | None = None) -> None:
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

    def _start(self, step: Step, step_nursery: trio.Nursery) -> None:
        """Begin a step; a step for a session that does not exist, or for an instance that is gone, is left out."""
        life = self._life_of(step)
        match step:
            case Open() | Restore() if step.instance in self.dead.instances:
                pass
            case Freeze() | Kill() if step.instance not in self.staying:
                pass
            case Disturb():
                self._backend(step.backend).disturb(step)
            case InjectFault():
                self._backend(step.backend).inject_fault(step)
            case ExpireSession():
                self._backend(step.backend).expire_session(step)
            case ChangeList():
                step_nursery.start_soon(self._backend(step.backend).change_list, step)
            case RotateTokens() | WithholdTokens() | GrantTokens():
                self._backend(step.backend).change_tokens(step)
            case FailStorage():
                self.storage.fail(step)
            case HealStorage():
                self.storage.heal(step)
            case Freeze():
                step_nursery.start_soon(self._freeze, step)
            case Kill():
                self._kill(step.instance)
            case Inspect():
                step_nursery.start_soon(self._look_closely)
            case Open():
                work = partial(self._hold if step.held else self._make, step)
                begin = partial(self._begin, "open", step=step)
                self._start_operation(step_nursery, step, step.instance, begin, work)
            case Restore():
                work, begin = partial(self._restore, step), partial(self._begin_restore, step)
                self._start_operation(step_nursery, step, step.instance, begin, work)
            case Call(rounds="answer") if life is not None and not self.handed_out[life.of_session]:
                pass
            case Call() if life is not None:
                nursery = self.callers.get(life.instance, step_nursery) if step.inside else step_nursery
                answers = self.handed_out[life.of_session].pop(0) if step.rounds == "answer" else None
                begin = partial(self._begin_call, step, life, is_inside=nursery is not step_nursery, answers=answers)
                work = partial(self._call, step, life, answers=answers)
                nursery.start_soon(self._operate, step, life.instance, begin, work, step_nursery)
            case Close() if life is not None:
                begin = partial(self._begin_close, step, life)
                self._start_operation(step_nursery, step, life.instance, begin, partial(self._close, step, life))
            case AddBackend() if life is not None:
                begin = partial(self._begin_member, "add", step, life)
                self._start_operation(step_nursery, step, life.instance, begin, partial(self._add, step, life))
            case RemoveBackend() if life is not None:
                begin = partial(self._begin_member, "remove", step, life)
                self._start_operation(step_nursery, step, life.instance, begin, partial(self._remove, step, life))
            case SetAttributes() if life is not None:
                begin = partial(self._begin, "attributes", step=step, life=life.op, state=life.session.state.name)
                self._start_operation(step_nursery, step, life.instance, begin, partial(self._set_attributes, life))
            case SetLogLevel() if life is not None:
                begin = partial(self._begin, "level", step=step, life=life.op, state=life.session.state.name)
                self._start_operation(step_nursery, step, life.instance, begin, partial(self._set_level, step, life))
            case Subscribe() if life is not None:
                begin = partial(self._begin_subscribe, step, life)
                self._start_operation(step_nursery, step, life.instance, begin, partial(self._subscribe, step, life))
            case WatchChanges() if life is not None:
                begin = partial(self._begin, "watch", step=step, life=life.op, state=life.session.state.name)
                self._start_operation(step_nursery, step, life.instance, begin, partial(self._watch, step, life))
            case _ if life is None and hasattr(step, "session"):
                pass
            case _:
                raise TypeError(f"_start has no case for {type(step).__name__}")

    def _life_of(self, step: Step) -> _Life | None:
        """The copy of the session that a step is about: the latest, of the step's instance if it names one."""
        number, instance = getattr(step, "session", None), getattr(step, "instance", None)
        if isinstance(step, Open | Restore):
            instance = None
        its = (life for life in reversed(self.every_life) if life.number == number and not life.is_gone)
        return next((life for life in its if instance in (None, life.instance)), None)

    def _start_operation(
        self,
        nursery: trio.Nursery,
        step: Operated,
        instance: int,
        begin: Callable[[], Began],
        work: Callable[[list[Began]], Awaitable[Outcome]],
    ) -> None:
        nursery.start_soon(self._operate, step, instance, begin, work, nursery)

    async def _operate(
        self,
        step: Operated,
        instance: int,
        begin: Callable[[], Began],
        work: Callable[[list[Began]], Awaitable[Outcome]],
        step_nursery: trio.Nursery,
    ) -> None:
        """The task of a step. `begin` runs in its first turn, so that earlier events do not count as during it."""
        self.dead.tasks.join(instance)
        if instance in self.dead.tasks.stopped:
            await trio.lowlevel.checkpoint()  # until the instance goes on
        if instance in self.dead.instances:
            return
        doing = [begin()]
        outcome = Outcome(kind="cancelled")
        try:
            with trio.CancelScope() as scope, self._being_under_way(instance, scope):
                if step.cancel is not None:
                    step_nursery.start_soon(self._give_up, scope, step.cancel, doing)
                outcome = await self._outcome_of(work, doing)
        finally:
            self._end(doing.pop().op, outcome)

    async def _outcome_of(self, work: Callable[[list[Began]], Awaitable[Outcome]], doing: list[Began]) -> Outcome:
        try:
            return await work(doing)
        except BaseException as exc:  # noqa: ASYNC103  # groups, too: the checks decide which errors are right
            if _is_cancel(exc):
                raise
            self._look_for_secrets(exc)
            return Outcome(  # noqa: ASYNC104  # a cancel was raised again above
                kind="error",
                error=type(exc).__name__,
                is_ours=isinstance(exc, VmcpError),
                may_have_executed=getattr(exc, "may_have_executed", None),
                backend_id=getattr(exc, "backend_id", None),
                text=str(exc),
            )

    def _look_for_secrets(self, exc: BaseException) -> None:
        seen: BaseException | None = exc
        while seen is not None:
            for text in (str(seen), repr(seen)):
                if SECRET.search(text):
                    self.note(SecretLeaked(at=trio.current_time(), where=f"text of {type(seen).__name__}", text=text))
            seen = seen.__cause__ or seen.__context__

    async def _give_up(self, scope: trio.CancelScope, cancel: CancelCaller, doing: list[Began]) -> None:
        await trio.sleep(cancel.after)
        for _ in range(cancel.checkpoints):
            await trio.lowlevel.checkpoint()
        if doing:
            self.note(CallerCancelled(at=trio.current_time(), op=doing[-1].op))
            scope.cancel()

    # --- instances

    @contextmanager
    def _being_under_way(self, instance: int, scope: trio.CancelScope) -> Iterator[None]:
        self.scopes[instance].add(scope)
        try:
            yield
        finally:
            self.scopes[instance].discard(scope)

    async def _freeze(self, step: Freeze) -> None:
        if step.instance in self.dead.tasks.stopped:
            return
        self.note(Frozen(at=trio.current_time(), instance=step.instance, until=trio.current_time() + step.seconds))
        self.dead.tasks.stopped.add(step.instance)
        await trio.sleep(step.seconds)
        if step.instance not in self.dead.instances:
            self.dead.tasks.stopped.discard(step.instance)

    def _kill(self, instance: int) -> None:
        self.note(Killed(at=trio.current_time(), instance=instance))
        self.dead.instances.add(instance)
        self.dead.tasks.stopped.add(instance)
        for life in self.every_life:
            life.is_gone = life.is_gone or life.instance == instance
        self.ways[instance].is_cut = True
        self.seams[instance].cut()
        for process in self.processes.processes:
            if self.dead.tasks.of(process.opened_by) == instance:
                process.vanish()
        self._leave(instance)

    def _leave(self, instance: int) -> None:
        self.staying.discard(instance)
        if not self.staying:
            self.all_left.set()

    def _bury(self) -> None:
        """Let the tasks of instances that are gone end, after all others."""
        for instance in self.dead.instances:
            self.dead.tasks.stopped.discard(instance)
            for scope in self.scopes[instance]:
                scope.cancel()

    # --- the work of each operation

    async def _make(self, step: Open, doing: list[Began]) -> Outcome:
        identity = ALICE if step.bound else None
        factory = self.factories[step.instance]
        with self._being_opened(step.session):
            session = await factory.make_session(
                self._members(step.backends, doing[-1].op),
                identity=identity,
                session_id=self._session_id(step.session),
                prefer_era=step.prefer,
            )
            self._opened(doing[-1].op, step, identity, session)
        return Outcome(kind="ok")

    async def _hold(self, step: Open, doing: list[Began]) -> Outcome:
        identity = ALICE if step.bound else None
        factory = self.factories[step.instance]
        opening = factory.open_session(
            self._members(step.backends, doing[-1].op),
            identity=identity,
            session_id=self._session_id(step.session),
            prefer_era=step.prefer,
        )
        with self._being_opened(step.session):
            session = await opening.__aenter__()
            life = self._opened(doing[-1].op, step, identity, session)
        self._end(doing.pop().op, Outcome(kind="ok"))
        doing.append(self._begin("hold", life=life.op))
        try:
            await self.over.wait()
        finally:
            self._ask_to_close(doing[-1].op, life, terminate=True)
            await opening.__aexit__(*sys.exc_info())  # noqa: ASYNC102  # bounded by the library: that is the test
        return Outcome(kind="ok")

    async def _restore(self, step: Restore, doing: list[Began]) -> Outcome:
        opened = (each for each in self.history.steps if isinstance(each, Open) and each.session == step.session)
        identity = ALICE if any(each.bound for each in opened) else None
        with self._being_opened(step.session):
            session = await self.factories[step.instance].restore_session(
                self._session_id(step.session),
                self._members(step.backends, doing[-1].op),
                identity=identity,
                prefer_era=step.prefer,
            )
            self._opened(doing[-1].op, step, identity, session)
        return Outcome(kind="ok")

    @contextmanager
    def _being_opened(self, number: int) -> Iterator[None]:
        self.opening.append(number)
        try:
            yield
        finally:
            self.opening.remove(number)

    def _backend(self, index: int) -> SimulatedBackend:
        return self.backends[self.history.backends[index].id]

    def _members(self, backends: tuple[int, ...], op: int) -> list[Backend]:
        return [self._pass(index, op) for index in backends]

    def _pass(self, index: int, op: int) -> Backend:
        """A copy of the backend for each operation, so that an attempt can be traced to its operation."""
        backend = attrs.evolve(self._backend(index).configured)
        self.passed[id(backend)] = backend, op
        return backend

    def _passed_to(self, backend: Backend) -> int:
        return self.passed[id(backend)][1]

    def _tags(self) -> dict[str, int]:
        numbers = {step.session for step in self.history.steps if isinstance(step, Open)}
        return {session_tag(self._session_id(number)): number for number in numbers}

    def _session_id(self, number: int) -> str:
        return f"{CANARY}-{number}"  # `number_of` reads it

    def _opened(self, op: int, step: Open | Restore, identity: Identity | None, session: Session) -> _Life:
        life = _Life(op, step.session, step.instance, identity, session)
        self.every_life.append(life)
        missing = {failure.backend_id for failure in session.failures}
        connected = (self.history.backends[index].id for index in step.backends)
        self.note(
            Opened(
                at=trio.current_time(),
                op=op,
                session=step.session,
                row=self.storage.row_number(session.id, session.created_at),
                connected=tuple(backend_id for backend_id in connected if backend_id not in missing),
                tools=_names(session),
            )
        )
        return life

    def _begin_restore(self, step: Restore) -> Began:
        its = (life for life in reversed(self.every_life) if life.number == step.session)
        life = next((life for life in its if life.instance == step.instance), None)
        return self._begin("restore", step=step, state="" if life is None else life.session.state.name)

    def _begin_close(self, step: Close, life: _Life, *, nested: bool = False) -> Began:
        return self._begin("close", step=step, life=life.op, state=life.session.state.name, nested=nested)

    def _begin_call(
        self, step: Call, life: _Life, *, is_inside: bool, nested: bool = False, answers: HandedOut | None = None
    ) -> Began:
        session, table = life.session, life.session.routing_table
        offered: Mapping[str, Target]
        match step.kind:
            case "tool":
                offered = table.tools
            case "resource":
                offered = table.resources
            case _:
                offered = table.prompts
        names = sorted(offered)
        name = UNKNOWN_NAME if step.pick is None or not names else names[step.pick % len(names)]
        if answers is not None:
            name = answers.name
        target = offered.get(name)
        found = "" if target is None else self._state_of(session, target.backend_id)
        return self._begin(
            "call",
            step=step,
            life=life.op,
            instance=life.instance if is_inside else None,
            state=session.state.name,
            name=name,
            target=None if target is None else (target.backend_id, target.name),
            nested=nested,
            found=found,
            answers=None if answers is None else answers.key,
        )

    def _begin_member(self, what: What, step: AddBackend | RemoveBackend, life: _Life) -> Began:
        found = self._state_of(life.session, self.history.backends[step.backend].id)
        return self._begin(what, step=step, life=life.op, state=life.session.state.name, found=found)

    def _begin_subscribe(self, step: Subscribe, life: _Life) -> Began:
        offered = life.session.routing_table.resources
        name = sorted(offered)[step.pick % len(offered)] if offered else UNKNOWN_NAME
        target = offered.get(name)
        return self._begin(
            "subscribe",
            step=step,
            life=life.op,
            state=life.session.state.name,
            name=name,
            target=None if target is None else (target.backend_id, target.name),
            found="" if target is None else self._state_of(life.session, target.backend_id),
        )

    @staticmethod
    def _state_of(session: Session, backend_id: str) -> str:
        """ "": the session does not have it, or no longer. "INCOMPLETE": DEGRADED for want of an optional list alone,
        so that calls go through as ever. What the public state does not tell apart, the judges must.
        """
        status = session.backends.get(backend_id)
        assert isinstance(session, DefaultSession)
        member = session._core.membership.members.get(backend_id)
        if member is not None and isinstance(member.state, Incomplete):
            return "INCOMPLETE"
        return "" if status is None or status.state is BackendState.REMOVED else status.state.name

    async def _call(self, step: Call, life: _Life, doing: list[Began], *, answers: HandedOut | None = None) -> Outcome:
        op, name = doing[-1].op, doing[-1].name
        acted = False

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            nonlocal acted
            if acted:
                return
            acted = True
            match step.on_progress:
                case "note":
                    await trio.lowlevel.checkpoint()
                case "raise":
                    raise CallbackError
                case "shield":
                    self.note(Shielded(at=trio.current_time(), op=op))
                    self.shielded += 1
                    with trio.CancelScope(shield=True):
                        await trio.sleep(SHIELDED)
                    self.shielded -= 1
                case closing:
                    await self._close_within(life, terminate=closing == "aclose")

        right = identity_of_calls(life.identity)
        caller = right if step.caller == "right" else BOB
        options: dict[str, Any] = {"caller": caller, "timeout": step.timeout}
        if step.kind != "resource" or not step.plain:
            options["meta"] = {KEY: op}
        if step.progress and step.hears_progress:
            options["on_progress"] = on_progress
        match step.kind:
            case "tool":
                asked = {"asks": step.asks, "question": step.question, "thinks": step.thinks, "reply": step.reply}
                said = {"progress": step.progress, "pace": step.pace, "logs": step.logs}
                arguments: dict[str, Any] = {"key": op, "seconds": step.seconds, **asked, **said}
                if answers is not None:
                    arguments, options["meta"] = answers.arguments, {KEY: answers.key}
                    options |= {"input_responses": answers.answers(op), "request_state": answers.state}
                options["answer_rounds"] = step.rounds == "handlers"
                called = await life.session.call_tool(name, arguments, **options)
                asks = handed_out(arguments["key"], name, arguments, called)
                if asks is not None:
                    self.handed_out[life.of_session].append(asks)
                    return Outcome(kind="ok", backend_id=called.backend_id, key=asks.key, asked=asks.number)
                texts = [block["text"] for block in called.content]
            case "resource":
                read = await life.session.read_resource(name, **options)
                texts = [content["text"] for content in read.contents]
            case "completion":
                options.pop("on_progress", None)
                ref = {"type": "ref/prompt", "name": name}
                completed = await life.session.complete(ref, {"name": "backend", "value": ""}, **options)
                texts = [json.dumps({"backend": value}) for value in completed.values]
            case _:
                prompt = await life.session.get_prompt(name, {"key": str(op)}, **options)
                texts = [message["content"]["text"] for message in prompt.messages]
        (answer,) = map(json.loads, texts)
        return Outcome(kind="ok", backend_id=answer["backend"], key=answer.get("key"), version=answer.get("version"))

    async def _act(self, instance: int, session_id: str, asked: Question, caller: Identity | None) -> None:
        """Call a tool of the same session, or close the session, from inside a handler."""
        its = (life for life in reversed(self.every_life) if life.number == number_of(session_id))
        life = next(life for life in its if life.instance == instance)
        if asked.reply == "close":
            await self._close_within(life, terminate=True)
            return
        step = Call(session=life.number, pick=asked.number)
        doing = [self._begin_call(step, life, is_inside=False, nested=True)]
        outcome = Outcome(kind="cancelled")
        try:
            outcome = await self._outcome_of(partial(self._call, step, life), doing)
        finally:
            self._end(doing[0].op, outcome)
        if outcome.kind == "error":
            raise HandlerError

    async def _close_within(self, life: _Life, *, terminate: bool) -> None:
        """Close the session from inside one of its own calls."""
        close = Close(session=life.number, terminate=terminate)
        inner = [self._begin_close(close, life, nested=True)]
        outcome = Outcome(kind="cancelled")
        try:
            outcome = await self._outcome_of(partial(self._close, close, life), inner)
        finally:
            self._end(inner[0].op, outcome)

    async def _close(self, step: Close, life: _Life, doing: list[Began]) -> Outcome:
        self._ask_to_close(doing[-1].op, life, step.terminate, step.drain_timeout)
        close = life.session.aclose if step.terminate else life.session.suspend
        await close(drain_timeout=step.drain_timeout)
        if not doing[-1].nested:
            await self._look_around()
        return Outcome(kind="ok")

    async def _add(self, step: AddBackend, life: _Life, doing: list[Began]) -> Outcome:
        await life.session.add_backend(self._pass(step.backend, doing[-1].op))
        return Outcome(kind="ok")

    async def _remove(self, step: RemoveBackend, life: _Life, doing: list[Began]) -> Outcome:
        backend_id = self.history.backends[step.backend].id
        if doing[-1].found and life.session.state is SessionState.OPEN:
            limit = self.history.settings.drain_timeout if step.drain_timeout is None else step.drain_timeout
            self.note(
                Removing(
                    at=trio.current_time(),
                    op=doing[-1].op,
                    life=life.op,
                    backend_id=backend_id,
                    drain_timeout=limit,
                    session_id=life.session.backend_sessions.get(backend_id),
                )
            )
        await life.session.remove_backend(backend_id, drain_timeout=step.drain_timeout)
        return Outcome(kind="ok")

    async def _set_attributes(self, life: _Life, doing: list[Began]) -> Outcome:
        await life.session.set_attributes({SET_BY: str(doing[-1].op)})
        return Outcome(kind="ok")

    async def _set_level(self, step: SetLogLevel, life: _Life, doing: list[Began]) -> Outcome:
        await life.session.set_log_level(step.level, caller=identity_of_calls(life.identity))
        return Outcome(kind="ok")

    async def _subscribe(self, step: Subscribe, life: _Life, doing: list[Began]) -> Outcome:
        ask = life.session.subscribe_resource if step.wanted else life.session.unsubscribe_resource
        await ask(doing[-1].name, caller=identity_of_calls(life.identity))
        return Outcome(kind="ok")

    async def _watch(self, step: WatchChanges, life: _Life, doing: list[Began]) -> Outcome:
        with trio.move_on_after(step.seconds):
            async with life.session.changes() as changes:
                async for _ in changes:
                    pass
        return Outcome(kind="ok")

    async def _instance(  # noqa: ASYNC114  # only ever started in a nursery
        self, number: int, leaving: Exit, step_nursery: trio.Nursery, *, task_status: trio.TaskStatus[None]
    ) -> None:
        outcome = Outcome(kind="cancelled")
        self.dead.tasks.join(number)

        async def live(doing: list[Began]) -> Outcome:
            async with open_session_factory(
                transport=self.seams[number],
                storage=self.ways[number],
                settings=self.history.settings,
                handlers=Handlers(self.note, partial(self._act, number), number_of).given(self.history.given),
                auth=self._wallet(),
                observers=[InstanceObserver(number, self.note, self._tags())],
            ) as factory:
                assert isinstance(factory, DefaultSessionFactory)
                connector_for = factory._connector_for
                factory._connector_for = lambda *chosen: RecordingConnector(
                    connector_for(*chosen), number, self.note, self.attempts, self._passed_to
                )
                self.factories[number] = factory
                (self.owners[number],) = trio.lowlevel.current_task().child_nurseries
                try:
                    async with trio.open_nursery() as self.callers[number]:
                        try:
                            task_status.started()
                            await trio.sleep_until(leaving.at)
                        finally:  # inside the nursery's body: a nursery that waits for its tasks may start no more
                            del self.callers[number]
                finally:
                    doing.append(self._begin("exit", instance=number))
                    self.note(Exiting(at=trio.current_time(), instance=number, cancelled=False))
            return Outcome(kind="ok")

        doing: list[Began] = []
        with trio.CancelScope() as surroundings, self._being_under_way(number, surroundings):
            if leaving.cancelled_at is not None:
                step_nursery.start_soon(self._cancel_instance, number, leaving.cancelled_at, surroundings)
            outcome = await self._outcome_of(live, doing)
        self._end(doing[-1].op, outcome)
        if number not in self.dead.instances:
            self._leave(number)

    def _wallet(self) -> SimulatedAuth | None:
        """The `auth` of one factory; None: no backend is guarded."""
        gates = {backend_id: backend.gate for backend_id, backend in self.backends.items() if backend.gate is not None}
        return SimulatedAuth(gates, self.note, self.auth_call_numbers) if gates else None

    async def _cancel_instance(self, number: int, at: float, surroundings: trio.CancelScope) -> None:
        await trio.sleep_until(at)
        if number not in self.dead.instances:
            self.note(Exiting(at=trio.current_time(), instance=number, cancelled=True))
            surroundings.cancel()

    # --- inspections

    def _look(self) -> None:
        for backend in self.backends.values():
            backend.note_health()
        for life in self._open_lives():
            members = tuple(self._members_of(life))
            self.note(Inspected(at=trio.current_time(), life=life.op, members=members, tools=_names(life.session)))

    @staticmethod
    def _members_of(life: _Life) -> Iterator[tuple[str, str, bool]]:
        missing = {failure.backend_id for failure in life.session.failures}
        for backend_id, status in life.session.backends.items():
            yield backend_id, status.state.name, backend_id in missing

    def _open_lives(self) -> list[_Life]:
        """Of instances that go on."""
        going = (life for life in self.every_life if life.instance not in self.dead.tasks.stopped)
        return [life for life in going if life.session.state is SessionState.OPEN]

    async def _look_closely(self) -> None:
        await wait_all_tasks_blocked()
        self._look()
        for life in self._open_lives():
            row = await self.storage.row(life.session.id)
            said = life.session.backend_sessions
            live = [b for b, state, missing in self._members_of(life) if state == "READY" and not missing]
            stored = {} if row is None else {record.backend_id: record.session_id for record in row.backends}
            bound = {} if row is None else row.bindings["tools"]
            self.note(
                Settled(
                    at=trio.current_time(),
                    life=life.op,
                    in_flight=life.session.in_flight,
                    row=tuple((backend_id, stored.get(backend_id)) for backend_id in live),
                    said=tuple((backend_id, said.get(backend_id)) for backend_id in live),
                    health=tuple(
                        (backend_id, status.calls, status.errors, status.in_flight)
                        for backend_id, status in life.session.backends.items()
                        if status.state is not BackendState.REMOVED
                    ),
                    unbound=tuple(name for name, owner, _ in _names(life.session) if bound.get(name) != owner),
                    is_written=row == life.session.metadata,
                )
            )

    # --- the end

    async def _look_around(self) -> None:
        """Record what is in use, if no session is open."""
        if self._is_quiet():
            await wait_all_tasks_blocked()
            if self._is_quiet():
                self.note(self._audit())

    def _is_quiet(self) -> bool:
        is_open = self.opening or self.shielded or not all(life.is_over for life in self.every_life)
        return not is_open and not self.dead.instances  # what is gone holds on to what it had

    def _audit(self) -> Audit:
        return Audit(
            at=trio.current_time(),
            tasks=tuple(sorted(task.name for owner in self.owners.values() for task in owner.child_tasks)),
            processes=self.processes.alive,
            responses=sum(seam.busy_connections for seam in self.seams),
            tokens=sum(limiter.borrowed_tokens for limiter in self.limiters),
        )

    async def _sum_up(self, audit: Audit, connections: int) -> None:
        self.trace.seen = seen_by(self.backends)
        sessions = tuple((life.op, life.session.state.name, life.session.in_flight) for life in self.every_life)
        rows = await self.storage.rows()
        self.trace.remains = remains_of(audit, connections, rows, sessions, self.backends)


def _is_cancel(exc: BaseException) -> bool:
    """Cancelled, or a group of only that: nurseries of the simulation bundle cancels."""
    return isinstance(exc, trio.Cancelled) or (
        isinstance(exc, BaseExceptionGroup) and all(_is_cancel(inner) for inner in exc.exceptions)
    )


def _names(session: Session) -> Names:
    table = session.routing_table.tools
    return tuple((name, target.backend_id, target.name) for name, target in sorted(table.items()))
