"""A case: a history and the trace of its run, indexed for the checks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from typing import TypeVar

import attrs

from simulation.credential_index import CredentialIndex
from simulation.history import AddBackend, BackendSpec, Call, History, Open, Restore, brief
from simulation.trace import (
    Attempt,
    Attempted,
    Began,
    CallerCancelled,
    Closing,
    ConnectionClosed,
    Ended,
    Exiting,
    Frozen,
    HealthChanged,
    Killed,
    Opened,
    Outcome,
    ProgressSent,
    Removing,
    Shielded,
    StateChanged,
    StorageFailed,
    Stored,
    ToolExecuted,
    ToolsOffered,
    Trace,
)

__all__ = [
    "ADMITTED",
    "BACKEND_ERRORS",
    "CANCELLED_DRAIN",
    "LAST_BYTES",
    "MILLISECOND",
    "AttemptRecord",
    "Case",
    "Operation",
    "Violation",
    "every",
    "spec_of",
]

T = TypeVar("T")

MILLISECOND = 0.001  # tolerance in virtual time, in which computing takes no time at all
# s: after the answer of a call has arrived, the end of its stream is read for so long, even if the call is cancelled.
LAST_BYTES = 0.1
CANCELLED_DRAIN = 10.0  # s, the most that a cancelled close drains


ADMITTED = ("call", "subscribe", "level")  # operations that a session counts, and that a close lets end
BACKEND_ERRORS = {
    "BackendUnavailable",
    "BackendTimeout",
    "BackendProtocolError",
    "BackendRejected",
    "BackendUnauthorized",
    "MessageTooLarge",
}


@attrs.frozen
class Violation:
    """A promise of the design that this run broke."""

    check: str
    text: str

    def __str__(self) -> str:
        return f"{self.check}: {self.text}"


@attrs.define
class Operation:
    """One operation from beginning to end. A position is an index into the trace's events."""

    began: Began
    position: int
    ends: list[tuple[int, Ended]] = attrs.field(factory=list)
    cancelled: tuple[int, CallerCancelled] | None = None
    was_shielded: bool = False

    def __str__(self) -> str:
        return f"{self.began.what} {self.began.op} ({brief(self.began.step or self.began.instance)})"

    @property
    def outcome(self) -> Outcome:
        return self.ends[0][1].outcome

    @property
    def ended_at(self) -> float:
        return self.ends[0][1].at


@attrs.define
class AttemptRecord:
    """One attempt to connect, its end, and the end of the connection that it made."""

    attempt: Attempt
    position: int
    end: Attempted | None = None
    closed: ConnectionClosed | None = None

    @property
    def ended_at(self) -> float:
        return math.inf if self.end is None else self.end.at

    @property
    def was_refused(self) -> bool:
        """The backend refused the credentials of this session; those of other sessions may be good."""
        return self.end is not None and self.end.error == "BackendUnauthorized"

    def failed(self, limit: float) -> bool:
        """It raised, or ran into `backend_init_timeout`. Any other cancel is no failure of the backend."""
        if self.end is None:
            return False
        lasted = self.end.at - self.attempt.at
        return self.end.outcome == "error" or (self.end.outcome == "cancelled" and lasted > limit - MILLISECOND)


@attrs.define
class Case:
    """A history and the trace of its run, indexed for the checks.

    Attributes:
        operations, opened, attempts: By their numbers.
        closings, removals: By `life`, the number of the opening or restoring that the session came from.
        exits, frozen, killed: By instance.
        stored: By session, what the storage has done.
        executed, progress: By the key of a call.
        state_changes: By life and backend id, with their positions.
        health_changes, tools_offered: By backend id.
    """

    history: History
    trace: Trace
    operations: dict[int, Operation] = attrs.field(factory=dict, init=False)
    opened: dict[int, Opened] = attrs.field(factory=dict, init=False)
    closings: dict[int, list[tuple[int, Closing]]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    exits: dict[int, list[tuple[int, Exiting]]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    executed: dict[int, list[ToolExecuted]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    progress: dict[int, list[ProgressSent]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    state_changes: dict[tuple[int, str], list[tuple[int, StateChanged]]] = attrs.field(
        factory=lambda: defaultdict(list), init=False
    )
    removals: dict[int, list[tuple[int, Removing]]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    health_changes: dict[str, list[HealthChanged]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    tools_offered: dict[str, list[ToolsOffered]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    attempts: dict[int, AttemptRecord] = attrs.field(factory=dict, init=False)
    stored: dict[int, list[tuple[int, Stored]]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    frozen: dict[int, list[Frozen]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    killed: dict[int, tuple[int, Killed]] = attrs.field(factory=dict, init=False)
    storage_failed: list[StorageFailed] = attrs.field(factory=list, init=False)
    credentials: CredentialIndex = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.credentials = CredentialIndex(self.history, self.trace)
        for position, event in enumerate(self.trace.events):
            match event:
                case Began():
                    self.operations[event.op] = Operation(event, position)
                case Ended():
                    self.operations[event.op].ends.append((position, event))
                case CallerCancelled():
                    self.operations[event.op].cancelled = position, event
                case Shielded():
                    self.operations[event.op].was_shielded = True
                case Opened():
                    self.opened[event.op] = event
                case Closing():
                    self.closings[event.life].append((position, event))
                case Exiting():
                    self.exits[event.instance].append((position, event))
                case ToolExecuted():
                    self.executed[event.key].append(event)
                case ProgressSent():
                    self.progress[event.key].append(event)
                case Removing():
                    self.removals[event.life].append((position, event))
                case HealthChanged():
                    self.health_changes[event.backend_id].append(event)
                case ToolsOffered():
                    self.tools_offered[event.backend_id].append(event)
                case Attempt():
                    self.attempts[event.number] = AttemptRecord(event, position)
                case Attempted():
                    self.attempts[event.number].end = event
                case ConnectionClosed():
                    self.attempts[event.number].closed = event
                case StorageFailed():
                    self.storage_failed.append(event)
                case Stored():
                    self.stored[event.session].append((position, event))
                case Frozen():
                    self.frozen[event.instance].append(event)
                case Killed():
                    self.killed[event.instance] = position, event
                case _:
                    pass
        for position, event in enumerate(self.trace.events):
            if isinstance(event, StateChanged) and (life := self._life_at(event, position)) is not None:
                self.state_changes[life, event.backend_id].append((position, event))

    def _life_at(self, changed: StateChanged, position: int) -> int | None:
        """The copy that was told of; None: an opening that failed, or that ended with the history."""
        its = (
            life
            for life, opened in self.opened.items()
            if (opened.session, self.instance_of(life)) == (changed.session, changed.instance)
            and self.operations[life].position < position
        )
        return max(its, default=None)

    def states_of(self, life: int, backend_id: str) -> Iterator[tuple[StateChanged, int, float]]:
        """The changes of state of a backend, each with its position and that of the next."""
        changes = self.state_changes.get((life, backend_id), [])
        for (begun, change), after in zip_longest(changes, changes[1:]):
            yield change, begun, math.inf if after is None else after[0]

    def is_waking(self, tried: AttemptRecord) -> bool:
        """This attempt connects a stopped backend for a call: at once, whatever the pace of other attempts is."""
        return any(
            (change.old, change.new) == ("STOPPED", "RECOVERING") and begun < tried.position < over
            for change, begun, over in self.states_of(self.life_of(tried.attempt.op), tried.attempt.backend_id)
        )

    def ended(self, *what: str) -> Iterator[Operation]:
        """Operations with an outcome."""
        return (operation for operation in self.operations.values() if operation.ends and operation.began.what in what)

    def asking(self, call: Operation) -> Operation:
        """The call whose question this one answers; any other: the call itself."""
        return call if call.began.answers is None else self.operations[call.began.answers]

    def instance_of(self, life: int) -> int:
        step = self.operations[life].began.step
        assert isinstance(step, Open | Restore)
        return step.instance

    def life_of(self, op: int) -> int:
        """The life of the session that an opening led to, or that a backend was added to."""
        return self.operations[op].began.life or op

    def attempts_of(self, life: int) -> set[int]:
        """The numbers of all attempts of this session."""
        return {number for number, tried in self.attempts.items() if self.life_of(tried.attempt.op) == life}

    def session_of(self, op: int) -> int:
        """The number of the session that an opening, restoring or adding is about."""
        step = self.operations[op].began.step
        assert isinstance(step, Open | Restore | AddBackend)
        return step.session

    def drained_by(self, life: int) -> float:
        """The time by which the last call of this session has ended; inf: no step closes the session."""
        settings = self.history.settings
        asked = [closing.at + closing.drain_timeout for _, closing in self.closings[life]]
        for _, exiting in self.exits[self.instance_of(life)]:
            if exiting.cancelled and not self._is_in_body(exiting):
                asked.append(exiting.at + CANCELLED_DRAIN)
            elif not exiting.cancelled:
                asked.append(exiting.at + settings.drain_timeout)
        for _, closing in self.closings[life]:
            held = self.operations[closing.op]
            if held.began.what == "hold" and held.cancelled is not None:
                asked.append(max(closing.at, held.cancelled[1].at) + CANCELLED_DRAIN)
        return min(asked, default=math.inf) + self.pause(self.instance_of(life), min(asked, default=math.inf))

    def running(self, life: int, position: int) -> Iterator[Operation]:
        """The calls of a session that had begun and not ended at this place in the trace."""
        for call in self.operations.values():
            has_ended = bool(call.ends) and call.ends[0][0] < position
            if call.began.what not in ADMITTED or has_ended:
                continue
            if call.began.life == life and call.position < position:
                yield call

    def storage_failures(self, operation: Operation) -> int:
        """How many storage operations of this opening failed."""
        step = operation.began.step
        assert isinstance(step, Open | Restore)
        return sum(
            event.session == step.session and operation.began.at <= event.at <= operation.ended_at
            for event in self.storage_failed
        )

    # --- several instances

    def lives_of(self, row: int) -> list[int]:
        """The copies, of all instances, that were opened or restored with this row."""
        return [life for life, opened in self.opened.items() if opened.row == row]

    def is_shared(self, life: int, at: float) -> bool:
        """Another instance has written the row of this copy by then, since the copy was opened or restored."""
        opened, instance = self.opened[life], self.instance_of(life)
        return any(
            stored.row == opened.row and stored.instance != instance and self.operations[life].position < position
            for position, stored in self.stored[opened.session]
            if stored.operation in ("create", "replace", "delete") and stored.at <= at
        )

    def uses_of(self, life: int) -> Iterator[Operation]:
        """What callers asked of this copy, and may ask."""
        for operation in self.operations.values():
            began = operation.began
            is_foreign = isinstance(began.step, Call) and began.step.caller == "wrong"
            if began.life == life and began.what in ADMITTED and began.state == "OPEN" and not is_foreign:
                yield operation

    def instance_of_operation(self, operation: Operation) -> int:
        began = operation.began
        if isinstance(began.step, Open | Restore):
            return began.step.instance
        if began.life is not None:
            return self.instance_of(began.life)
        assert began.instance is not None
        return began.instance

    def is_gone(self, operation: Operation) -> bool:
        """Its instance was killed."""
        return self.instance_of_operation(operation) in self.killed

    def pause(self, instance: int, since: float) -> float:
        """s for which the instance was frozen since this time; everything that was to end by then may end later by so
        much.
        """
        return sum(max(0.0, frozen.until - max(since, frozen.at)) for frozen in self.frozen[instance])

    def quiet_since(self, instance: int, session: int, at: float) -> float:
        """The time since which, at this time, the instance went on and the storage answered whatever it asked."""
        failed = [
            failure.at + self.history.settings.storage_timeout
            for failure in self.storage_failed
            if (failure.instance, failure.session) == (instance, session) and failure.at <= at
        ]
        return max([*failed, *(frozen.until for frozen in self.frozen[instance] if frozen.at <= at)], default=-math.inf)

    def row_at(self, session: int, position: int, at: float) -> Stored | None:
        """What is stored at this time; None: no row."""
        written = [s for p, s in self.stored[session] if p < position and s.operation != "load"]
        if not written or written[-1].operation == "delete" or at >= written[-1].at + self.history.ttl:
            return None
        return written[-1]

    def rows_during(self, session: int, operation: Operation) -> set[int | None]:
        """The rows that were stored at some time of the operation; None: there was a time without one."""
        first, (last, ended) = operation.position, operation.ends[0]
        rows = [self.row_at(session, first, operation.began.at), self.row_at(session, last, ended.at)]
        found = {None if row is None else row.row for row in rows}
        for position, stored in self.stored[session]:
            if first < position < last and stored.operation != "load":
                found.add(None if stored.operation == "delete" else stored.row)
        return found

    def offer(self, backend_id: str, at: float) -> tuple[str, ...]:
        """The tools that a backend lists at this time."""
        return next(offer.tools for offer in reversed(self.tools_offered[backend_id]) if offer.at <= at)

    def offers_changed(self, operation: Operation) -> bool:
        """A backend changed its tools during this operation, or so shortly before that a cached list may be used."""
        return any(
            operation.began.at - spec.ttl <= offer.at <= operation.ended_at
            for spec in self.history.backends
            for offer in self.tools_offered[spec.id][1:]
        )

    def healthy_since(self, backend_id: str, at: float) -> float | None:
        """The backend is healthy at this time and has been since the returned time; None: it is not healthy."""
        latest = next(
            (change for change in reversed(self.health_changes[backend_id]) if change.at <= at),
            None,
        )
        return latest.at if latest is not None and latest.well else None

    def cancels_of(self, operation: Operation) -> list[tuple[int, CallerCancelled | Exiting]]:
        """The cancels that reached the operation's task before the operation ended, with their positions."""
        causes: list[tuple[int, CallerCancelled | Exiting]] = (
            [] if operation.cancelled is None else [operation.cancelled]
        )
        if operation.began.instance is not None:
            causes += [entry for entry in self.exits[operation.began.instance] if entry[1].cancelled]
        return [cause for cause in causes if cause[0] < operation.ends[0][0]]

    def _is_in_body(self, cancelled: Exiting) -> bool:
        """The cancel came while the block's body ran, and the factory begins to close a moment later."""
        left = [exiting.at for _, exiting in self.exits[cancelled.instance] if not exiting.cancelled]
        return bool(left) and cancelled.at < left[0]


def every(case: Case, kind: type[T]) -> Iterator[T]:
    """The events of one kind, in order."""
    return (event for event in case.trace.events if isinstance(event, kind))


def spec_of(case: Case, backend_id: str) -> BackendSpec:
    return next(spec for spec in case.history.backends if spec.id == backend_id)
