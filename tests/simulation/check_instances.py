"""Checks of what several instances do to one row: a terminated session stays so, a session that is in use goes on, and
what one instance has written stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from simulation.case import MILLISECOND, Case, Operation, every
from simulation.history import AddBackend, Open, Restore
from simulation.trace import Closing, Removing, Sent, SessionIdRead, Settled, Stored

__all__ = ["INSTANCE_CHECKS"]

TOUCHES_PER_TTL = 3  # "touched at least every ttl/3"
MARKS_PER_LIFE = 4  # "at least every quarter of min(idle_timeout, ttl)"


def _no_terminated_session_comes_back(case: Case) -> Iterator[str]:
    for session, log in case.stored.items():
        deleted = dict[int, float]()  # rows, and when
        for position, stored in log:
            if stored.operation == "delete":
                rows = [stored.row] if stored.row is not None else _rows_of(case, session, stored.instance, position)
                deleted |= dict.fromkeys(rows, stored.at)
            elif stored.row in deleted and stored.operation != "load":
                yield f"session {session} was terminated at {deleted[stored.row]}, and comes back by {stored}"
    for restoring in case.ended("restore"):
        if restoring.outcome.kind == "ok" and _was_deleted(case, case.opened[restoring.began.op].row, restoring):
            yield f"{restoring} restored a terminated session"


def _rows_of(case: Case, session: int, instance: int, position: int) -> list[int]:
    """The rows of this instance's copies, so far."""
    return [
        opened.row
        for life, opened in case.opened.items()
        if opened.session == session
        and case.instance_of(life) == instance
        and case.operations[life].position < position
    ]


def _was_deleted(case: Case, row: int, before: Operation) -> bool:
    return any(
        stored.operation == "delete" and stored.row == row and position < before.position
        for log in case.stored.values()
        for position, stored in log
    )


def _no_live_session_is_ended_by_an_instance_that_it_left(case: Case) -> Iterator[str]:
    for session, log in case.stored.items():
        marked_by = dict[int, int]()
        for position, stored in log:
            if stored.operation != "load":
                marked_by.setdefault(stored.mark, stored.instance)
            if stored.operation != "delete" or stored.row is None or _is_asked_for(case, stored.row, position):
                continue
            if marked_by[stored.mark] != stored.instance:
                marker = marked_by[stored.mark]
                yield f"instance {stored.instance} ended session {session} at {stored.at}, marked last by {marker}"
            elif (user := _user_elsewhere(case, stored, position)) is not None:
                yield f"instance {stored.instance} ended session {session} at {stored.at}, which is used on {user}"
            elif _is_left(case, stored, position) and (other := _holder(case, log, stored, position)) is not None:
                yield f"instance {stored.instance} was left and ended session {session} at {stored.at}, {other} has it"


def _is_asked_for(case: Case, row: int, position: int) -> bool:
    """The end of the session was asked for, on any instance. The end of a block that holds the session asks for its
    own copy only.
    """
    return any(
        asked_at < position and closing.terminate and case.operations[closing.op].began.what != "hold"
        for life in case.lives_of(row)
        for asked_at, closing in case.closings[life]
    )


def _user_elsewhere(case: Case, deleted: Stored, position: int) -> int | None:
    """The instance with an open copy that was used last, not idle since, and long enough ago to have been marked."""
    assert deleted.row is not None
    settings = case.history.settings
    mark_every = min(settings.idle_timeout, case.history.ttl) / MARKS_PER_LIFE
    used = [
        (call.ended_at if call.ends and call.ends[0][0] < position else math.inf, life, call.began.at)
        for life in case.lives_of(deleted.row)
        for call in case.uses_of(life)
        if call.position < position
    ]
    lives = [life for life in case.lives_of(deleted.row) if case.operations[life].position < position]
    used += [(case.opened[life].at, life, case.opened[life].at) for life in lives]  # a restore is use, too
    if not used:
        return None
    used_at, life, began_at = max(used)
    user = case.instance_of(life)
    if user == deleted.instance or used_at + settings.idle_timeout <= deleted.at or not _goes_on(case, life, position):
        return None
    is_in_time = deleted.at > began_at + mark_every + settings.storage_timeout + MILLISECOND
    is_quiet = case.quiet_since(user, deleted.session, deleted.at) < case.opened[life].at
    return user if is_in_time and is_quiet else None


def _is_left(case: Case, deleted: Stored, position: int) -> bool:
    """The end of the instance has ended its copy, which was not idle."""
    assert deleted.row is not None
    if not any(at < position for at, _ in case.exits[deleted.instance]):
        return False
    lives = [life for life in case.lives_of(deleted.row) if case.instance_of(life) == deleted.instance]
    return bool(lives) and not any(_is_idle(case, life, deleted.at) for life in lives)


def _is_idle(case: Case, life: int, at: float) -> bool:
    used = [case.opened[life].at, *(call.ended_at if call.ends else math.inf for call in case.uses_of(life))]
    return max(use for use in used if use <= at or use == math.inf) + case.history.settings.idle_timeout <= at


def _holder(case: Case, log: list[tuple[int, Stored]], deleted: Stored, position: int) -> int | None:
    """The other instance that has the session: it has written the row last; or the mark of the copy that was left has
    taken the place of its mark, and that copy was not used since.
    """
    row = [s for at, s in log if s.row == deleted.row and at < position and s.operation in ("create", "replace")]
    if row[-1].instance != deleted.instance:
        return row[-1].instance
    life = max(life for life in case.lives_of(row[-1].row or 0) if case.instance_of(life) == deleted.instance)
    marks = [(before, after) for before, after in pairwise(row) if before.mark != after.mark]
    if not marks:
        return None
    before, after = marks[-1]
    marker = next(stored.instance for stored in row if stored.mark == before.mark)
    sent_at = after.at - case.history.settings.storage_timeout
    is_used = any(not use.ends or use.ended_at > sent_at for use in case.uses_of(life))
    is_restore = after.at <= case.opened[life].at
    return None if is_used or is_restore or marker == deleted.instance else marker


def _goes_on(case: Case, life: int, position: int) -> bool:
    """Neither a close of this copy nor the end of its instance had begun."""
    instance = case.instance_of(life)
    ends = [at for at, _ in (*case.closings[life], *case.exits[instance])]
    ends += [case.killed[instance][0]] if instance in case.killed else []
    return all(at > position for at in ends)


def _no_write_undoes_anothers(case: Case) -> Iterator[str]:
    for session, log in case.stored.items():
        for position, stored in log:
            if stored.operation == "touch" and stored.row not in _rows_of(case, session, stored.instance, position):
                yield f"instance {stored.instance} touches a row of session {session} that is not its own: {stored}"
        written = [(position, stored) for position, stored in log if stored.operation not in ("load", "delete")]
        for (_, before), (position, after) in pairwise(written):
            if before.row != after.row:
                continue
            assert after.row is not None
            if after.operation == "replace" and after.version != before.version + 1:
                yield f"version {after.version} of session {session} follows {before.version}, at {after.at}"
            ids = dict(after.records)
            for backend_id, session_id in before.records:
                if backend_id not in ids and not _was_removed(case, after.row, backend_id, position):
                    yield f"instance {after.instance} drops {backend_id!r} from session {session}, at {after.at}"
                elif session_id != ids.get(backend_id, session_id) and not _is_known_to(
                    case, after.instance, backend_id, session_id, position
                ):
                    yield f"instance {after.instance} replaces {session_id!r} in session {session}, at {after.at}"
            bound = dict(after.tools)
            for name, owner in before.tools:
                if bound.get(name) != owner:
                    yield f"instance {after.instance} binds {name!r} of session {session} anew, at {after.at}"


def _a_removed_backend_leaves_the_row(case: Case) -> Iterator[str]:
    """It comes back only where a copy is given it anew: a write of before the removal may arrive late, and must not
    stand.
    """
    positions = {id(event): position for position, event in enumerate(case.trace.events)}
    for settled in every(case, Settled):
        instance, position = case.instance_of(settled.life), positions[id(settled)]
        removals = case.removals[settled.life]
        row, session = case.opened[settled.life].row, case.opened[settled.life].session
        log = [s for at, s in case.stored[session] if at < position and s.row == row]
        written = [s for s in log if s.operation in ("create", "replace", "delete")]
        if not removals or not _goes_on(case, settled.life, position):
            continue
        if not written or written[-1].operation == "delete":
            continue
        within = case.history.ttl / TOUCHES_PER_TTL + case.history.settings.storage_timeout + MILLISECOND
        quiet_since = max(case.quiet_since(instance, session, settled.at), written[-1].at)
        for removed_at, removing in removals:
            if settled.at <= max(quiet_since, removing.at) + within or removed_at > position:
                continue
            if removing.backend_id in dict(written[-1].records) and not _is_given(case, removing, removed_at):
                yield f"{removing.backend_id!r} was removed from session {session} at {removing.at}, and is in its row"


def _is_given(case: Case, removing: Removing, since: int) -> bool:
    """A copy of the session was given this backend, or may have been, other than the removed one."""

    def is_its(index: int) -> bool:
        return case.history.backends[index].id == removing.backend_id

    for operation in case.operations.values():
        step = operation.began.step
        is_over = bool(operation.ends) and operation.ends[0][0] < since
        if (
            isinstance(step, AddBackend)
            and is_its(step.backend)
            and not (is_over and operation.began.life == removing.life)
        ):
            return True
        if isinstance(step, Restore) and any(map(is_its, step.backends)) and operation.began.op != removing.life:
            return True
    return False


def _was_removed(case: Case, row: int, backend_id: str, position: int) -> bool:
    return any(
        removing.backend_id == backend_id and removed_at < position
        for life in case.lives_of(row)
        for removed_at, removing in case.removals[life]
    )


def _is_known_to(case: Case, instance: int, backend_id: str, session_id: str | None, position: int) -> bool:
    """The instance has used this backend session, so it can tell that the backend no longer has it."""
    return session_id is None or any(
        isinstance(event, Sent | SessionIdRead)
        and (event.instance, event.backend_id, event.session_id) == (instance, backend_id, session_id)
        for event in case.trace.events[:position]
    )


def _a_copy_knows_what_others_have_done(case: Case) -> Iterator[str]:
    """With the next touch at the latest."""
    within = case.history.ttl / TOUCHES_PER_TTL + case.history.settings.storage_timeout + MILLISECOND
    positions = {id(event): position for position, event in enumerate(case.trace.events)}
    for settled in every(case, Settled):
        session, row = case.opened[settled.life].session, case.opened[settled.life].row
        instance, position = case.instance_of(settled.life), positions[id(settled)]
        if not _goes_on(case, settled.life, position):
            continue
        done = [s for at, s in case.stored[session] if at < position and s.row == row and s.operation != "load"]
        news = [s for s in done if s.operation in ("create", "replace", "delete") and s.instance != instance]
        quiet_since = max(case.quiet_since(instance, session, settled.at), case.opened[settled.life].at)
        if not news or settled.at <= max(news[-1].at, quiet_since) + within:
            continue
        if any(s.operation == "delete" for s in news):
            yield f"the copy of {instance} is open at {settled.at}, after session {session} ended at {news[-1].at}"
        elif not settled.is_written and settled.at < done[-1].at + case.history.ttl:
            yield f"the copy of {instance} does not know at {settled.at} what {news[-1]} says"


def _rows_live_and_die_with_their_sessions(case: Case) -> Iterator[str]:
    yield from _rows_that_are_left(case)
    yield from _rows_that_come_late(case)
    opened = {step.session for step in case.history.steps if isinstance(step, Open)}
    for session, log in case.stored.items():
        if session not in opened:
            yield f"no step opens session {session}, and the storage has it: {log[0][1]}"
        for position, stored in log:
            if stored.operation == "delete" and stored.row is not None and not _has_reason(case, stored, position):
                yield f"instance {stored.instance} deleted the row of session {session} at {stored.at}, for no reason"
    for restoring in case.ended("restore"):
        step = restoring.began.step
        assert isinstance(step, Restore)
        found = list(case.rows_during(step.session, restoring))
        if restoring.outcome.kind == "ok" and case.opened[restoring.began.op].row not in found:
            yield f"{restoring} restored what is not stored"
        if restoring.outcome.error == "SessionNotFound" and None not in found and len(set(found)) == 1:
            yield f"{restoring} did not find a stored session"
        is_taken = restoring.began.state != "CLOSED" or _opens_meanwhile(case, restoring)
        if restoring.outcome.error == "SessionExists" and not is_taken and not _ends_elsewhere(case, step.session):
            yield f"{restoring} took a closed session for a live one"


def _rows_that_come_late(case: Case) -> Iterator[str]:
    """A create that is under way when its opening fails has no effect any more. The opening sees to that with a delete,
    whose tombstone refuses the create; a tombstone lasts for a TTL (`Storage.delete`), so that a create which takes
    longer than that leaves a row, for a TTL.
    """
    for opening in case.ended("open"):
        step = opening.began.step
        assert isinstance(step, Open)
        struck = [
            failure.operation
            for failure in case.storage_failed
            if (failure.instance, failure.session) == (step.instance, step.session)
        ]
        if opening.outcome.error != "StorageError" or set(struck) != {"create"} or case.frozen[step.instance]:
            continue
        if case.row_at(step.session, opening.ends[0][0], opening.ended_at) is not None:
            continue  # another session has the id: a tombstone would end that one
        end = opening.ends[0][0]
        its = [(position, each) for position, each in case.stored[step.session] if each.instance == step.instance]
        deleted = (each.at for at, each in its if each.operation == "delete" and opening.position < at < end)
        protected_until = next(deleted, opening.ended_at) + case.history.ttl
        for position, stored in its:
            is_late = end < position and stored.at < protected_until
            if is_late and stored.operation == "create" and not case.lives_of(stored.row or 0):
                yield f"{opening} failed at {opening.ended_at}, and its row comes at {stored.at}"


def _rows_that_are_left(case: Case) -> Iterator[str]:
    remains = case.trace.remains
    for session in remains.rows if remains is not None else ():
        log = [stored for _, stored in case.stored[session] if stored.operation not in ("load", "delete")]
        row, creator = log[-1].row, log[-1].instance
        assert row is not None
        if not case.lives_of(row) and not _is_troubled(case, creator, session, 0.0):
            yield f"session {session} was never opened, and its metadata is left"
        for life in case.lives_of(row):
            asked = [closing for _, closing in case.closings[life] if _decides(closing)]
            if asked and not _is_troubled(case, case.instance_of(life), session, asked[0].at):
                yield f"session {session} was terminated, and its metadata is left"


def _decides(closing: Closing) -> bool:
    return closing.found == "OPEN" and closing.terminate


def _is_troubled(case: Case, instance: int, session: int, since: float) -> bool:
    """The instance may have failed to delete the row: it was gone or frozen, or the storage was away."""
    is_away = case.quiet_since(instance, session, math.inf) >= since
    return is_away or instance in case.killed or bool(case.frozen[instance])


def _has_reason(case: Case, deleted: Stored, position: int) -> bool:
    """The instance's copy of the session was terminated, was idle, or did not open."""
    settings, instance = case.history.settings, deleted.instance
    assert deleted.row is not None
    lives = [life for life in case.lives_of(deleted.row) if case.instance_of(life) == instance]
    if any(at < position and closing.terminate for life in lives for at, closing in case.closings[life]):
        return True
    if lives and settings.on_exit == "terminate" and any(at < position for at, _ in case.exits[instance]):
        return True
    if any(_is_idle(case, life, deleted.at) for life in lives):
        return True
    return any(
        operation.began.what == "open"
        and isinstance(step := operation.began.step, Open)
        and (step.session, step.instance) == (deleted.session, instance)
        and operation.position < position
        and not (operation.ends and operation.outcome.kind == "ok")
        for operation in case.operations.values()
    )


def _opens_meanwhile(case: Case, restoring: Operation) -> bool:
    """Another opening or restoring of this session was under way on the same instance."""
    step = restoring.began.step
    assert isinstance(step, Restore)
    return any(
        other is not restoring
        and other.began.what in ("open", "restore")
        and isinstance(its := other.began.step, Open | Restore)
        and (its.session, its.instance) == (step.session, step.instance)
        and other.position < restoring.ends[0][0]
        and not (other.ends and other.ends[0][0] < restoring.position)
        for other in case.operations.values()
    )


def _ends_elsewhere(case: Case, session: int) -> bool:
    """A restore notices a session that is terminated while it writes its mark."""
    return any(stored.operation == "delete" for _, stored in case.stored[session])


INSTANCE_CHECKS: tuple[Callable[[Case], Iterator[str]], ...] = (
    _no_terminated_session_comes_back,
    _no_live_session_is_ended_by_an_instance_that_it_left,
    _no_write_undoes_anothers,
    _a_removed_backend_leaves_the_row,
    _a_copy_knows_what_others_have_done,
    _rows_live_and_die_with_their_sessions,
)
