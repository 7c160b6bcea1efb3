"""Judges a trace: `judge` is a pure function from a history and its trace to the promises that were broken.

Nothing is asserted while a history runs. Each check is one promise of the design, seen from the client and from the
backends. For each check a planted defect proves that the check can fail (tests/checks/test_simulation_checker.py).
"""

from __future__ import annotations

import math
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from simulation.case import (
    ADMITTED,
    BACKEND_ERRORS,
    CANCELLED_DRAIN,
    LAST_BYTES,
    MILLISECOND,
    Case,
    Operation,
    Violation,
    every,
    spec_of,
)
from simulation.check_attributes import ATTRIBUTE_CHECKS, may_fail_in_storage
from simulation.check_credentials import CREDENTIAL_CHECKS
from simulation.check_instances import INSTANCE_CHECKS
from simulation.check_levels import LEVEL_CHECKS
from simulation.check_observers import OBSERVER_CHECKS
from simulation.check_options import OPTION_CHECKS
from simulation.check_questions import QUESTION_CHECKS
from simulation.check_recovery import RECOVERY_CHECKS
from simulation.history import (
    AddBackend,
    Call,
    Disturb,
    ExpireSession,
    History,
    InjectFault,
    Open,
    RemoveBackend,
    Restore,
    brief,
)
from simulation.trace import (
    Audit,
    Crashed,
    Hung,
    Inspected,
    Names,
    Opened,
    ProcessEnded,
    ResourcesUpdated,
    SecretLeaked,
    Sent,
    SessionIdRead,
    Trace,
)
from trio_vmcp import Prefix, Priority

__all__ = ["CHECKS", "ERRORS", "Violation", "judge"]

NOT_FOUND = {"ToolNotFound", "ResourceNotFound", "PromptNotFound"}
ERRORS = {
    "call": {"SessionClosed", "UnauthorizedCaller", *NOT_FOUND, *BACKEND_ERRORS},
    "subscribe": {"SessionClosed", "ResourceNotFound", *BACKEND_ERRORS},
    "open": {"NoBackends", "SessionClosed", "SessionExists"},
    "restore": {"NoBackends", "SessionClosed", "SessionNotFound", "SessionExists"},
    "add": {"SessionClosed"},
    "remove": {"SessionClosed"},
    "attributes": {"SessionClosed"},
    "level": {"SessionClosed"},
    "watch": set[str](),
    "close": set[str](),
    "hold": set[str](),
    "exit": set[str](),
}
# The exit status of a process that was ended in the right order; 1: it could not start.
EXPECTED_STATUS = {
    "polite": {0, 1},
    "parent": {0, 1},
    "deaf": {-signal.SIGTERM, 1},
    "stubborn": {-signal.SIGKILL, 1},
}


def judge(history: History, trace: Trace) -> list[Violation]:
    """The violations in this trace; none: the run kept every promise."""
    case = Case(history, trace)
    return [Violation(name, text) for name, check in CHECKS.items() for text in check(case)]


def _nothing_hangs_or_crashes(case: Case) -> Iterator[str]:
    for event in case.trace.events:
        match event:
            case Hung():
                yield f"all tasks wait for ever since {event.at}"
            case Crashed():
                yield event.text
            case _:
                pass
    for text in case.trace.remains.broken if case.trace.remains else ():
        yield f"a scripted backend broke, which is a bug of the simulation: {text}"


def _no_secret_leaks(case: Case) -> Iterator[str]:
    for event in case.trace.events:
        if isinstance(event, SecretLeaked):
            yield f"{event.where}: {event.text!r}"


def _one_outcome_each(case: Case) -> Iterator[str]:
    for operation in case.operations.values():
        if len(operation.ends) > 1 or not (operation.ends or case.is_gone(operation)):
            yield f"{operation} has {len(operation.ends)} outcomes"


def _only_listed_errors(case: Case) -> Iterator[str]:
    for operation in case.ended(*ERRORS):
        outcome, began = operation.outcome, operation.began
        allowed = ERRORS[began.what]
        if isinstance(began.step, Call) and began.step.on_progress == "raise":
            allowed = allowed | {"CallbackError"}
        if isinstance(began.step, AddBackend | RemoveBackend) and bool(began.found) is isinstance(
            began.step, AddBackend
        ):
            allowed = allowed | {"ValueError"}  # it is in the session already, or is not
        if isinstance(began.step, Open | Restore) and (
            case.storage_failures(operation) or case.pause(began.step.instance, began.at)
        ):
            allowed = allowed | {"StorageError"}
        if began.what == "attributes" and may_fail_in_storage(case, operation):
            allowed = allowed | {"StorageError", "MetadataConflict"}
        if outcome.kind == "error" and outcome.error not in allowed:
            yield f"{operation} ended in {outcome.error}: {outcome.text}"


def _nothing_admitted_while_closing(case: Case) -> Iterator[str]:
    requested = {seen.key for seen in case.trace.seen}
    for call in case.ended(*ADMITTED):
        life = call.began.life
        assert life is not None
        closing = [position for position, _ in case.closings[life]]
        closing += [position for position, left in case.exits[case.instance_of(life)] if not left.cancelled]
        if call.began.state == "OPEN" and not any(position < call.position for position in closing):
            continue
        outcome = call.outcome
        refused = outcome.error == "SessionClosed" and not outcome.may_have_executed
        if not refused and outcome.kind != "cancelled":
            yield f"{call} began while its session was closing and ended in {outcome}"
        if call.began.op in requested:
            yield f"{call} began while its session was closing and was sent to its backend"


def _calls_are_counted_once(case: Case) -> Iterator[str]:
    for life, closings in case.closings.items():
        for position, closing in closings:
            running = sum(1 for _ in case.running(life, position))
            if closing.in_flight > running:
                yield f"{closing.in_flight} in flight, while {running} calls run, at {closing}"


def _cancels_surface_alone(case: Case) -> Iterator[str]:
    for operation in case.ended(*ERRORS.keys() - {"hold", "exit"}):
        outcome, began = operation.outcome, operation.began
        causes = case.cancels_of(operation)
        if outcome.kind == "cancelled" and not causes and not began.nested:
            yield f"{operation} was cancelled, and not by its caller"
        if not causes:
            continue
        position, cause = min(causes, key=lambda cause: cause[0])
        paused = case.pause(case.instance_of_operation(operation), began.at)
        late = operation.ended_at > max(cause.at, began.at) + paused + LAST_BYTES + MILLISECOND
        if outcome.kind != "cancelled" and late and not operation.was_shielded:
            yield f"{operation} was cancelled at {cause.at} and ended at {operation.ended_at} in {outcome}"
        if began.what == "call" and outcome.error == "SessionClosed":
            assert began.life is not None
            earlier = [at for at, _ in (*case.closings[began.life], *case.exits[case.instance_of(began.life)])]
            if not any(at < position for at in earlier) and began.state == "OPEN" and not _may_be_idle(case):
                yield f"{operation} was cancelled before any close of the session, and ended in {outcome}"


def _may_be_idle(case: Case) -> bool:
    return case.history.settings.idle_timeout < 1000


def _executed_at_most_once(case: Case) -> Iterator[str]:
    for key, times in case.executed.items():
        if len(times) > 1:
            yield f"{case.operations[key]} was executed {len(times)} times"


def _executed_by_the_owner_alone(case: Case) -> Iterator[str]:
    for key, times in case.executed.items():
        call = case.operations[key].began
        for executed in times:
            if (executed.backend_id, executed.name) != call.target:
                yield f"{case.operations[key]} is for {call.target} and was executed by {executed}"
    for operation in case.ended("call"):
        outcome, began = operation.outcome, operation.began
        if outcome.kind != "ok":
            continue
        if began.target is None or outcome.backend_id != began.target[0]:
            yield f"{operation} is for {began.target} and was answered by {outcome.backend_id!r}"
        if outcome.key not in (None, case.asking(operation).began.op):
            yield f"{operation} got the answer to call {outcome.key}"


def _a_name_means_one_backend(case: Case) -> Iterator[str]:
    """In each copy of a session, and as the row says of which it was restored."""
    bound: dict[int, dict[str, str]] = defaultdict(dict)
    for event in case.trace.events:
        match event:
            case Opened():
                opening = case.operations[event.op]
                if opening.began.what == "restore":
                    row = case.row_at(event.session, opening.position, opening.began.at)
                    bound[event.op] |= dict(row.tools) if row is not None and row.row == event.row else {}
                yield from _moved(event.session, event.tools, bound[event.op])
                # Names are bound before the row is written: with a slow storage a backend may have joined since.
                is_late = case.storage_failures(opening) or case.pause(case.instance_of(event.op), opening.began.at)
                if opening.began.what == "restore" or case.offers_changed(opening) or is_late:
                    continue
                for name, backend_id, _ in event.tools:
                    if (owner := _owner(case, event, name)) != backend_id:
                        yield f"{name!r} of session {event.session} is {owner!r}'s and was given to {backend_id!r}"
            case Inspected():
                yield from _moved(case.opened[event.life].session, event.tools, bound[event.life])
            case _:
                pass
    for call in case.operations.values():
        began = call.began
        if isinstance(began.step, Call) and began.step.kind == "tool" and began.target is not None:
            assert began.life is not None
            owner = bound[began.life].setdefault(began.name, began.target[0])
            if owner != began.target[0]:
                yield f"{call} means {owner!r} by {began.name!r} and is routed to {began.target[0]!r}"


def _moved(session: int, tools: Names, bound: dict[str, str]) -> Iterator[str]:
    for name, backend_id, _ in tools:
        if bound.setdefault(name, backend_id) != backend_id:
            yield f"{name!r} of session {session} went from {bound[name]!r} to {backend_id!r}"


def _owner(case: Case, opened: Opened, name: str) -> str | None:
    """The backend that must own a name when an opening ends."""
    strategy = case.history.settings.conflict_resolution
    in_order = list(_were_there(case, opened))
    if isinstance(strategy, Priority):
        in_order.sort(key=lambda backend_id: backend_id not in strategy.backend_ids)
    for backend_id in in_order:
        prefix = f"{backend_id}_" if isinstance(strategy, Prefix) else ""
        names = map(spec_of(case, backend_id).name_for, case.offer(backend_id, opened.at))
        if name in (f"{prefix}{shown}" for shown in names):
            return backend_id
    return None


def _were_there(case: Case, opened: Opened) -> Iterator[str]:
    """Backends that are connected, or were listed and lost again before the opening ended; in configured order."""
    opening = case.operations[opened.op].began
    assert isinstance(opening.step, Open | Restore)
    had_connected = {
        tried.attempt.backend_id
        for tried in case.attempts.values()
        if tried.attempt.op == opening.op and tried.end is not None and tried.end.outcome == "ok"
    }
    lost = had_connected & {backend_id for _, backend_id, _ in opened.tools}
    for index in opening.step.backends:
        backend_id = case.history.backends[index].id
        if backend_id in opened.connected or backend_id in lost:
            yield backend_id


def _no_false_claim_of_not_executed(case: Case) -> Iterator[str]:
    for call in case.ended("call"):
        if call.outcome.kind == "error" and call.outcome.may_have_executed is False and case.executed[call.began.op]:
            yield f"{call} was executed, and ended in {call.outcome}"


def _other_callers_get_nothing(case: Case) -> Iterator[str]:
    requested = {seen.key for seen in case.trace.seen}
    for call in case.ended("call"):
        if isinstance(call.began.step, Call) and call.began.step.caller == "wrong":
            if call.outcome.kind != "cancelled" and call.outcome.error not in ("UnauthorizedCaller", "SessionClosed"):
                yield f"{call} has another identity than the session, and ended in {call.outcome}"
            if call.began.op in requested:
                yield f"{call} has another identity than the session, and was sent to its backend"


def _calls_end_in_time(case: Case) -> Iterator[str]:
    for call in case.ended("call"):
        step, began = call.began.step, call.began
        assert isinstance(step, Call)
        assert began.life is not None
        if call.was_shielded:
            continue
        timeout = case.history.settings.request_timeout if step.timeout is None else step.timeout
        cancels = [case.drained_by(began.life), *(cause.at for _, cause in case.cancels_of(call))]
        paused = case.pause(case.instance_of(began.life), began.at)
        yield from _late(call, min(began.at + timeout, max(began.at, min(cancels)) + LAST_BYTES) + paused)


def _openings_end_in_time(case: Case) -> Iterator[str]:
    settings = case.history.settings
    for opening in case.ended("open", "restore"):
        step = opening.began.step
        assert isinstance(step, Open | Restore)
        rounds = math.ceil(len(step.backends) / settings.max_backend_init_concurrency)
        latest = opening.began.at + min(settings.session_init_timeout, rounds * settings.backend_init_timeout)
        for _, left in case.exits[step.instance]:
            if not left.cancelled:
                latest = min(latest, max(left.at, opening.began.at))
        # What is stored is looked for first, and written last.
        latest += settings.storage_timeout * case.storage_failures(opening)
        if opening.cancelled is not None:
            latest = min(latest, opening.cancelled[1].at)
        if opening.outcome.kind != "ok":
            latest += settings.teardown_timeout  # backends that were connected get their DELETEs
        yield from _late(opening, latest + case.pause(step.instance, opening.began.at))


def _closings_end_in_time(case: Case) -> Iterator[str]:
    settings = case.history.settings
    for closer in case.ended("close", "hold"):
        assert closer.began.life is not None
        ((position, asked),) = [entry for entry in case.closings[closer.began.life] if entry[1].op == closer.began.op]
        calls = list(case.running(closer.began.life, position))
        drained_by = case.drained_by(closer.began.life)
        if all(call.ends for call in calls):  # the drain ends with the last call
            drained_by = min(drained_by, max((call.ended_at for call in calls), default=asked.at))
        latest = max(asked.at, drained_by + settings.teardown_timeout)
        if closer.began.what == "close" and closer.cancelled is not None:
            latest = min(latest, closer.cancelled[1].at)
        if closer.began.nested:
            latest = asked.at
        yield from _late(closer, latest + case.pause(case.instance_of(closer.began.life), closer.began.at))
    for leaving in case.ended("exit"):
        assert leaving.began.instance is not None
        latest = leaving.began.at + settings.drain_timeout
        for _, exiting in case.exits[leaving.began.instance]:
            if exiting.cancelled:
                latest = min(latest, max(exiting.at, leaving.began.at) + CANCELLED_DRAIN)
        paused = case.pause(leaving.began.instance, leaving.began.at)
        yield from _late(leaving, latest + settings.teardown_timeout + paused)


def _late(operation: Operation, latest: float) -> Iterator[str]:
    if operation.ended_at > latest + MILLISECOND:
        yield f"{operation} ended at {operation.ended_at}, later than {latest}: {brief(operation.outcome)}"


def _nothing_is_left(case: Case) -> Iterator[str]:
    audits = [event for event in case.trace.events if isinstance(event, Audit)]
    remains = case.trace.remains
    for audit in [*audits, remains.audit] if remains else audits:
        for name in ("tasks", "processes", "responses", "tokens"):
            if getattr(audit, name):
                yield f"{name} left at {audit.at}, while no session was open: {getattr(audit, name)}"
    if remains is None:
        return
    if remains.connections:
        yield f"{remains.connections} connections left at the end"
    for life, state, in_flight in remains.sessions:
        if state != "CLOSED":
            yield f"session of {case.operations[life]} is left {state}"
        if in_flight:
            yield f"session of {case.operations[life]} is left with {in_flight} in flight"


def _every_backend_session_gets_its_delete(case: Case) -> Iterator[str]:
    remains = case.trace.remains
    if remains is None:
        return
    read = {(event.backend_id, event.session_id) for event in case.trace.events if isinstance(event, SessionIdRead)}
    deletes = Counter[tuple[str, str | None]](
        (event.backend_id, event.session_id)
        for event in case.trace.events
        if isinstance(event, Sent) and event.verb == "DELETE"
    )
    disowned = {(seen.backend_id, seen.session_id) for seen in case.trace.seen if seen.status in (400, 404)}
    # A request of this session was refused so. The session may live all the same, and each instance may DELETE it.
    denied = {
        (seen.backend_id, seen.session_id)
        for seen in case.trace.seen
        if seen.status in (400, 404) and seen.verb != "DELETE"
    }
    trouble = (step for step in case.history.steps if isinstance(step, InjectFault | Disturb | ExpireSession))
    troubled = {case.history.backends[step.backend].id for step in trouble}
    restored = [opened for op, opened in case.opened.items() if case.operations[op].began.what == "restore"]
    in_other_hands = set(_in_other_hands(case))
    for alive in remains.alive:
        backend_id, session_id = alive
        if alive not in read or alive in disowned or alive in in_other_hands or session_id in remains.stored_ids:
            continue
        if any(backend_id not in opened.connected for opened in restored):
            continue  # a session restored without this backend cannot DELETE its backend session
        if case.credentials.had_no_way_in(backend_id, session_id):
            continue
        if not deletes[alive]:
            yield f"session {session_id!r} of backend {backend_id!r} is alive and was never sent a DELETE"
        elif backend_id not in troubled:
            yield f"session {session_id!r} of backend {backend_id!r} is alive in spite of its DELETE"
    for (backend_id, told), times in deletes.items():
        stale = any(failed.operation in ("delete", "replace") for failed in case.storage_failed)
        times -= case.credentials.sent_again(backend_id, told)
        if (backend_id, told) in in_other_hands:
            continue
        if times > 1 and (backend_id, told) not in denied and not stale:  # stale: a row may name what has ended
            yield f"session {told!r} of backend {backend_id!r} was sent {times} DELETEs"


def _in_other_hands(case: Case) -> Iterator[tuple[str, str | None]]:
    """Backend sessions that no instance alone is to end: rows of several instances name them, or a row that has
    expired; or their instance was killed or frozen.
    """
    for log in case.stored.values():
        writers = defaultdict[int | None, set[int]](set)
        for _, stored in log:
            writers[stored.row].add(stored.instance)
        deleted = {stored.row for _, stored in log if stored.operation == "delete"}
        for _, stored in log:
            if len(writers[stored.row]) > 1 or stored.row not in deleted:
                yield from stored.records
    for event in every(case, SessionIdRead):
        if event.instance in case.killed or case.frozen[event.instance]:
            yield event.backend_id, event.session_id


def _cached_reads_are_fresh(case: Case) -> Iterator[str]:
    for call in case.ended("call"):
        if call.outcome.version is None or call.began.target is None:
            continue
        backend_id, _ = call.began.target
        since = call.began.at - spec_of(case, backend_id).ttl
        updates = (update for update in every(case, ResourcesUpdated) if update.backend_id == backend_id)
        oldest = max((update.version for update in updates if update.at < since), default=0)
        if call.outcome.version < oldest:
            yield f"{call} read version {call.outcome.version}, where {oldest} is the oldest that may be kept"


def _processes_are_asked_before_they_are_killed(case: Case) -> Iterator[str]:
    for ended in every(case, ProcessEnded):
        if not ended.by_itself and ended.status not in EXPECTED_STATUS[ended.manners]:
            yield f"process {ended.pid} of {ended.backend_id!r} is {ended.manners}, and ended with {ended.status}"


CHECKS: dict[str, Callable[[Case], Iterator[str]]] = {
    check.__name__.removeprefix("_"): check
    for check in (
        _nothing_hangs_or_crashes,
        _no_secret_leaks,
        _one_outcome_each,
        _only_listed_errors,
        _nothing_admitted_while_closing,
        _calls_are_counted_once,
        _cancels_surface_alone,
        _executed_at_most_once,
        _executed_by_the_owner_alone,
        _a_name_means_one_backend,
        _no_false_claim_of_not_executed,
        _other_callers_get_nothing,
        _calls_end_in_time,
        _openings_end_in_time,
        _closings_end_in_time,
        _nothing_is_left,
        _every_backend_session_gets_its_delete,
        _cached_reads_are_fresh,
        _processes_are_asked_before_they_are_killed,
        *ATTRIBUTE_CHECKS,
        *INSTANCE_CHECKS,
        *OBSERVER_CHECKS,
        *RECOVERY_CHECKS,
        *QUESTION_CHECKS,
        *CREDENTIAL_CHECKS,
        *OPTION_CHECKS,
        *LEVEL_CHECKS,
    )
}
