"""Checks of recovery: healthy backends are connected again, attempts keep to the backoff, lists and rows are right."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from simulation.case import BACKEND_ERRORS, LAST_BYTES, MILLISECOND, AttemptRecord, Case, Operation, every, spec_of
from simulation.history import AddBackend, BackendSpec, Call, ChangeList, Disturb, ExpireSession, Open, Restore, Step
from simulation.trace import Inspected, Removing, Seen, Sent, Settled
from trio_vmcp import Prefix

__all__ = ["NO_PROGRESS", "RECOVERY_CHECKS", "REFETCH", "one_connecting", "ready_since"]

JITTER = 0.2  # of a delay, either way
LONGEST_START = 10  # times `backend_init_timeout`, of a process that lives and says nothing
REFETCH = 1.0  # s between the beginnings of two refetches
ROUND_TRIPS = 20  # connecting and listing takes no more, with pages of one entry
RESENT = (400, 404)  # with these a request did not run, and may be sent once more
UNAUTHORIZED = 401
NO_PROGRESS = "reported no progress"  # the error of a call that was given up for that
BUSY = 100  # connections to one backend; no history needs as many, so that no call waits for one


def _a_healthy_backend_is_ready_again(case: Case) -> Iterator[str]:
    for looked in every(case, Inspected):
        for backend_id, state, is_missing in looked.members:
            patience = _patience(case, backend_id)
            since = ready_since(case, looked.life, backend_id, looked.at)
            if patience is None or since is None or looked.at <= since + patience or _is_closing(case, looked):
                continue
            # DEGRADED is allowed: the breaker stays open until a call has tried the backend.
            allowed = {"READY", "DEGRADED", "RECOVERING"}
            if spec_of(case, backend_id).stop_after is not None:
                allowed.add("STOPPED")
            if is_missing or state not in allowed:
                yield f"{backend_id!r} is healthy since {since} and {state} at {looked.at}, in session of {looked.life}"


def _calls_to_healthy_backends_succeed(case: Case) -> Iterator[str]:
    for call in case.ended("call"):
        if call.outcome.error not in BACKEND_ERRORS or not _is_ordinary(case, call):
            continue
        assert call.began.target is not None
        assert call.began.life is not None
        backend_id, _ = call.began.target
        patience = _patience(case, backend_id)
        since = ready_since(case, call.began.life, backend_id, call.ended_at)
        if patience is None or since is None or since > call.began.at:
            continue
        frozen = case.frozen[case.instance_of(call.began.life)]  # deadlines have passed unheard
        if any(each.at <= call.ended_at and call.began.at <= each.until + patience for each in frozen):
            continue
        settled = call.began.at > since + patience
        if not settled and not _was_healthy_throughout(case, call, since):
            continue
        its = case.attempts_of(call.began.life)
        if case.credentials.were_overtaken(its, backend_id, call.began.at, call.ended_at):
            continue
        if _had_too_little_time(case, call) or _is_behind_a_trial(case, call) or _is_the_first_to_notice(case, call):
            continue
        yield f"{call} to {backend_id!r}, which is healthy since {since}, ended in {call.outcome}"


def _attempts_keep_to_the_backoff(case: Case) -> Iterator[str]:
    limit = case.history.settings.backend_init_timeout
    for instance, _, attempts in _attempts_anew(case):
        failed = 0  # in a row
        for before, after in pairwise(attempts):
            if not before.failed(limit) or before.was_refused or _others_succeeded(case, before, after):
                failed = 0
                continue
            failed += 1
            if not _others_failed_before(case, before):  # failures of one outage count once
                yield from _too_early(case, before, after, failed, f"instance {instance}")
        by_member = defaultdict[int, list[AttemptRecord]](list)
        for tried in attempts:
            by_member[tried.attempt.op].append(tried)
        for op, its_attempts in by_member.items():
            refused = 0  # in a row
            for before, after in pairwise(its_attempts):
                refused = refused + 1 if before.was_refused else 0
                if refused:
                    yield from _too_early(case, before, after, refused, f"session of {op}")


def _too_early(case: Case, before: AttemptRecord, after: AttemptRecord, failed: int, where: str) -> Iterator[str]:
    settings = case.history.settings
    delay = min(settings.reconnect_delay * 2 ** (failed - 1), settings.reconnect_max_delay)
    earliest = before.ended_at + delay * (1 - JITTER)
    if after.attempt.at < earliest - MILLISECOND:
        yield (
            f"{where} tried {before.attempt.backend_id!r} again at {after.attempt.at}, before {earliest}: "
            f"{failed} attempts in a row had failed"
        )


def _one_attempt_at_a_time(case: Case) -> Iterator[str]:
    for instance, backend_id, attempts in _attempts_anew(case):
        for before, after in pairwise(attempts):
            # An attempt that was cancelled at this moment takes some more turns to clean up.
            is_given_up = before.end is not None and before.end.outcome == "cancelled"
            if is_given_up and before.ended_at == after.attempt.at:
                continue
            if after.position < _position_of_end(case, before):
                yield f"instance {instance} has two attempts at {backend_id!r} under way at {after.attempt.at}"


def _no_reconnect_without_a_reason(case: Case) -> Iterator[str]:
    """A freeze is a reason where it falls into the time to connect and to list (`backend_init_timeout` covers
    both): that time may be over when the instance goes on, so the attempt fails although its connection was made.
    """
    refused = defaultdict[str, list[float]](list)
    for seen in case.trace.seen:
        if _is_sent_with_another_token(case, seen):
            continue
        if seen.status is not None and seen.status >= 400 and seen.method != "server/discover":
            refused[seen.backend_id].append(seen.at)
    by_member = defaultdict[tuple[int, str], list[AttemptRecord]](list)
    for tried in case.attempts.values():
        by_member[tried.attempt.op, tried.attempt.backend_id].append(tried)
    for (_, backend_id), attempts in by_member.items():
        for before, after in pairwise(attempts):
            if before.end is None or before.end.outcome != "ok":
                continue
            since, again = before.attempt.at, after.attempt.at
            in_time = since + case.history.settings.backend_init_timeout
            frozen = case.frozen[before.attempt.instance]
            is_late = any(pause.at <= in_time and since <= pause.until for pause in frozen)
            if is_late or case.is_waking(after) or any(since <= at <= again for at in refused[backend_id]):
                continue
            if not _may_fail_to_list(case, backend_id, since, again):
                yield f"{backend_id!r} was connected at {before.ended_at} and again at {again}, without a reason"


def _connections_are_closed(case: Case) -> Iterator[str]:
    made = [tried for tried in case.attempts.values() if tried.end is not None and tried.end.outcome == "ok"]
    for tried in made if case.trace.remains is not None else ():
        instance = tried.attempt.instance  # a close that freezes in the middle may find its time over
        if tried.closed is None and not case.frozen[instance] and instance not in case.killed:
            yield f"the connection to {tried.attempt.backend_id!r}, made at {tried.ended_at}, was never closed"
    teardown = case.history.settings.teardown_timeout
    for settled in every(case, Settled):
        calls = (call for call in case.ended("call", "subscribe") if call.began.life == settled.life)
        if settled.in_flight or any(settled.at - teardown <= call.ended_at <= settled.at for call in calls):
            continue  # a call keeps its old connection until it ends; the goodbye of that connection comes then
        held = Counter(
            tried.attempt.backend_id
            for tried in made
            if case.life_of(tried.attempt.op) == settled.life
            and tried.ended_at < settled.at - teardown
            and (tried.closed is None or tried.closed.at > settled.at)
        )
        for backend_id, count in held.items():
            if count > 1 and not _is_settling(case, backend_id, settled.at):
                yield f"session of {settled.life} holds {count} connections to {backend_id!r} at {settled.at}"


def _sent_again_only_if_it_did_not_run(case: Case) -> Iterator[str]:
    sent = defaultdict[tuple[int, str | None], list[int | None]](list)
    for seen in case.trace.seen:
        if seen.key is not None and not _is_sent_with_another_token(case, seen):
            sent[seen.key, seen.state].append(seen.status)
    for (key, _), statuses in sent.items():
        if len(statuses) > 2 or any(status not in RESENT for status in statuses[:-1]):
            yield f"{case.operations[key]} was sent {len(statuses)} times, and answered with HTTP {statuses}"


def _is_sent_with_another_token(case: Case, seen: Seen) -> bool:
    """This request was refused with 401 and sent again with another token; the second answer counts."""
    received = [] if seen.number is None else case.credentials.seen[seen.number]
    return seen.status == UNAUTHORIZED and len(received) > 1 and seen is received[0]


def _rows_say_what_sessions_say(case: Case) -> Iterator[str]:
    for settled in every(case, Settled):
        session = case.opened[settled.life].session
        if any(failure.session == session and failure.at <= settled.at for failure in case.storage_failed):
            continue  # the change that failed is written with the next one
        if case.is_shared(settled.life, settled.at):
            continue  # `a_copy_knows_what_others_have_done`
        if not settled.is_written:
            yield f"the row of session {session} differs from its metadata, at {settled.at}"
        for (backend_id, stored), (_, said) in zip(settled.row, settled.said, strict=True):
            if stored != said:
                yield f"session {session} has {said!r} of {backend_id!r}, and its row {stored!r}, at {settled.at}"
        for name in settled.unbound:
            yield f"session {session} advertises {name!r}, which its row does not bind to the owner, at {settled.at}"


def _removed_backends_get_their_delete(case: Case) -> Iterator[str]:
    deletes = [sent for sent in every(case, Sent) if sent.verb == "DELETE"]
    disowned = {(seen.backend_id, seen.session_id) for seen in case.trace.seen if seen.status in RESENT}
    for removing in every(case, Removing):
        its = removing.backend_id, removing.session_id
        if removing.session_id is None or its in disowned or case.operations[removing.op].outcome.error:
            continue
        latest = removing.at + removing.drain_timeout + case.history.settings.teardown_timeout + LAST_BYTES
        paused = case.pause(case.instance_of(removing.life), removing.at)  # its time may be over meanwhile
        in_time = any(
            (sent.backend_id, sent.session_id) == its and removing.at <= sent.at <= latest for sent in deletes
        )
        without = case.credentials.had_no_way_in(removing.backend_id, removing.session_id)
        if not in_time and not without and not paused and not _holds_on(case, removing.life):
            yield f"{removing.backend_id!r} was removed at {removing.at}, and its session {its[1]!r} got no DELETE"


def _members_come_and_go_in_time(case: Case) -> Iterator[str]:
    settings = case.history.settings
    for removing in every(case, Removing):
        operation = case.operations[removing.op]
        latest = removing.at + removing.drain_timeout + LAST_BYTES + settings.teardown_timeout
        latest += case.pause(case.instance_of(removing.life), removing.at)
        if operation.ends and operation.ended_at > latest + MILLISECOND and not _holds_on(case, removing.life):
            yield f"{operation} ended at {operation.ended_at}, later than {latest}"
    for operation in case.ended("add"):
        assert isinstance(operation.began.step, AddBackend)
        assert operation.began.life is not None
        backend_id = case.history.backends[operation.began.step.backend].id
        latest = operation.began.at + settings.backend_init_timeout
        for position, removing in case.removals[operation.began.life]:
            if removing.backend_id == backend_id and position < operation.position:  # its removal has to end first
                gone_at = removing.at + removing.drain_timeout + LAST_BYTES + settings.teardown_timeout
                latest = max(latest, gone_at + settings.backend_init_timeout)
        latest += case.pause(case.instance_of(operation.began.life), operation.began.at)
        if operation.ended_at > latest + MILLISECOND and not _holds_on(case, operation.began.life):
            yield f"{operation} ended at {operation.ended_at}, later than {latest}"


def _announced_lists_are_fetched(case: Case) -> Iterator[str]:
    if not isinstance(case.history.settings.conflict_resolution, Prefix):
        return  # other strategies may withhold names
    told = _told_of_lists(case)
    for looked in every(case, Inspected):
        for backend_id, _, _ in looked.members:
            spec = spec_of(case, backend_id)
            changed_at = case.tools_offered[backend_id][-1].at
            heard_at = min((at for at in told[looked.life, backend_id] if at >= changed_at), default=None)
            since = ready_since(case, looked.life, backend_id, looked.at)
            patience = _patience(case, backend_id)
            if heard_at is None or since is None or patience is None or since > heard_at:
                continue
            if looked.at <= heard_at + REFETCH + 2 * one_connecting(spec) + MILLISECOND or looked.at < changed_at:
                continue
            listed = {own_name for _, owner, own_name in looked.tools if owner == backend_id}
            offers = set(case.tools_offered[backend_id][-1].tools)
            if listed != offers:
                yield f"{backend_id!r} offers {sorted(offers)}, announced at {heard_at}; listed are {sorted(listed)}"


def _a_missing_backend_costs_no_time(case: Case) -> Iterator[str]:
    """While a backend is DEGRADED, one call at a time tries it; others fail at once."""
    tried = defaultdict[tuple[int, str], list[Operation]](list)
    for call in case.ended("call", "subscribe"):
        owner, life = _owner(call), call.began.life
        if call.began.found == "DEGRADED" and call.ended_at > call.began.at + MILLISECOND and owner and life:
            tried[life, owner].append(call)
    for (_, backend_id), trials in tried.items():
        for before, after in pairwise(sorted(trials, key=lambda call: call.position)):
            if before.ends[0][0] > after.position and not _was_there_meanwhile(case, before, after):
                yield f"{after} waited for {backend_id!r}, while {before} was trying it already"


def _was_there_meanwhile(case: Case, before: Operation, after: Operation) -> bool:
    """Between the beginnings of the two calls, the backend answered another call or was connected anew."""
    backend_id = _owner(before)
    answered = any(
        _owner(call) == backend_id and before.position < call.ends[0][0] < after.position
        for call in case.ended("call", "subscribe")
        if call.outcome.error not in ("BackendUnavailable", "BackendTimeout")
    )
    return answered or any(
        tried.attempt.backend_id == backend_id and before.began.at <= tried.ended_at <= after.began.at
        for tried in case.attempts.values()
    )


def _health_counts_every_call(case: Case) -> Iterator[str]:
    for settled in every(case, Settled):
        calls = [call for call in case.ended("call", "subscribe") if call.began.life == settled.life]
        for backend_id, counted, errors, in_flight in settled.health:
            if any(step.backend_id == backend_id for _, step in case.removals[settled.life]):
                continue  # added again, a backend counts from 0
            its = [
                call for call in calls if call.ended_at <= settled.at and backend_id in (_owner(call), _sender(call))
            ]
            failed = sum(call.outcome.error in BACKEND_ERRORS and _sender(call) == backend_id for call in its)
            answered = sum(call.outcome.kind == "ok" and call.began.what == "call" for call in its)
            # A call may be cancelled before it counts, and a subscription may need no request.
            if not failed + answered <= counted <= len(its) or errors != failed:
                yield (
                    f"session of {settled.life} counts {counted} calls to {backend_id!r} and {errors} errors at "
                    f"{settled.at}, where {answered} were answered and {failed} failed of {len(its)}"
                )
            if in_flight > sum(_owner(call) in (backend_id, None) for call in _running(case, settled)):
                yield f"session of {settled.life} counts {in_flight} calls to {backend_id!r} under way at {settled.at}"


def _owner(call: Operation) -> str | None:
    return None if call.began.target is None else call.began.target[0]


def _sender(call: Operation) -> str | None:
    return call.outcome.backend_id


def _running(case: Case, settled: Settled) -> Iterator[Operation]:
    position = next(i for i, event in enumerate(case.trace.events) if event is settled)
    return case.running(settled.life, position)


# --- when a backend must work


def ready_since(case: Case, life: int, backend_id: str, at: float) -> float | None:
    """The time since which a backend is both healthy and in the session; None: it is not."""
    well = case.healthy_since(backend_id, at)
    step = case.operations[life].began.step
    assert isinstance(step, Open | Restore)
    joined: float | None = None
    if any(case.history.backends[index].id == backend_id for index in step.backends):
        joined = case.opened[life].at
    for operation in case.operations.values():
        added = operation.began.step
        if not isinstance(added, AddBackend) or operation.began.life != life or operation.began.at > at:
            continue
        if case.history.backends[added.backend].id == backend_id and not operation.began.found:
            joined = operation.began.at
    for _, removing in case.removals[life]:
        if removing.backend_id == backend_id and joined is not None and joined <= removing.at <= at:
            return None
    if well is None or joined is None:
        return None
    spec = spec_of(case, backend_id)
    relisted = [offer.at for offer in case.tools_offered[backend_id][1:] if offer.at <= at]
    if relisted and spec.page_size is not None:  # pages do not fit together while a list changes
        well = max(well, relisted[-1])
    return max(well, joined)


def _patience(case: Case, backend_id: str) -> float | None:
    """A healthy backend is READY within so many s, whatever happened before; None: there is no such bound."""
    settings, spec = case.history.settings, spec_of(case, backend_id)
    if one_connecting(spec) >= settings.backend_init_timeout or settings.max_message_bytes < 1 << 20:
        return None
    # A running attempt fails first, and its backoff follows; then the sessions connect one after another. Each session
    # tries at most `max_backend_init_concurrency` backends at a time.
    longest_wait = settings.reconnect_max_delay * (1 + JITTER)
    rounds = math.ceil(len(case.history.backends) / settings.max_backend_init_concurrency)
    if spec.transport == "stdio" and _was_silent(case, backend_id):  # a living process may still be starting
        rounds = max(rounds, LONGEST_START)
    return rounds * settings.backend_init_timeout + longest_wait + _turns(case, spec) + MILLISECOND


def _was_silent(case: Case, backend_id: str) -> bool:
    """An attempt at this backend took longer than `backend_init_timeout`."""
    its = (tried for tried in case.attempts.values() if tried.attempt.backend_id == backend_id)
    return any(tried.ended_at - tried.attempt.at > case.history.settings.backend_init_timeout for tried in its)


def _turns(case: Case, spec: BackendSpec) -> float:
    return len(case.opened) * one_connecting(spec)


def one_connecting(spec: BackendSpec) -> float:
    """s that one attempt takes, including two new tokens."""
    return ROUND_TRIPS * spec.latency + (0.0 if spec.guard is None else 2 * spec.guard.seconds)


def _is_settling(case: Case, backend_id: str, at: float) -> bool:
    """An attempt ended shortly before, so that an old connection may still be saying goodbye."""
    recently = at - case.history.settings.teardown_timeout - case.history.settings.backend_init_timeout
    return any(
        tried.attempt.at <= at and tried.ended_at > recently
        for tried in case.attempts.values()
        if tried.attempt.backend_id == backend_id
    )


def _is_closing(case: Case, looked: Inspected) -> bool:
    return any(closing.at <= looked.at for _, closing in case.closings[looked.life])


def _holds_on(case: Case, life: int) -> bool:
    """A shielded callback held up a call, and the session waits for that call."""
    return any(call.was_shielded and call.began.life == life for call in case.operations.values())


# --- when a call must succeed


def _is_ordinary(case: Case, call: Operation) -> bool:
    """Neither the call itself, nor a change of the name that it calls, makes it fail."""
    step, target = call.began.step, call.began.target
    assert isinstance(step, Call)
    assert call.began.life is not None
    if target is None or call.cancelled is not None or call.was_shielded or step.on_progress != "note":
        return False
    if step.asks and step.reply != "right":  # the error of a handler ends a modern call
        return False
    if _has_flipped_since(case, case.asking(call), call):  # a backend of the other era has no rounds to go on with
        return False
    exits = (exiting for _, exiting in case.exits[case.instance_of(call.began.life)])
    if any(exiting.at <= call.ended_at for exiting in exits):
        return False
    if step.kind != "tool":
        kind = "prompt" if step.kind == "completion" else step.kind
        changes = (s for s in case.history.steps if isinstance(s, ChangeList) and s.kind == kind)
        return all(change.at > call.ended_at for change in changes)
    backend_id, name = target
    during = [offer for offer in case.tools_offered[backend_id] if call.began.at <= offer.at <= call.ended_at]
    return name in case.offer(backend_id, call.began.at) and all(name in offer.tools for offer in during)


def _has_flipped_since(case: Case, asking: Operation, call: Operation) -> bool:
    assert call.began.target is not None
    flips = (s for s in _befalling(case, call.began.target[0]) if isinstance(s, Disturb) and s.what == "flip")
    return asking is not call and any(asking.began.at <= flip.at <= call.ended_at for flip in flips)


def _was_healthy_throughout(case: Case, call: Operation, since: float) -> bool:
    """The backend was connected when its session opened, and lost no session since."""
    assert call.began.target is not None
    assert call.began.life is not None
    backend_id, _ = call.began.target
    opening, opened = case.operations[call.began.life], case.opened[call.began.life]
    well = case.healthy_since(backend_id, call.ended_at)
    if well is None or well > opening.began.at or backend_id not in opened.connected or since > opened.at:
        return False
    return not any(opening.began.at <= at <= call.ended_at for at in _losses(case, backend_id))


def _losses(case: Case, backend_id: str) -> Iterator[float]:
    """The times at which a backend lost a session or was replaced."""
    for step in _befalling(case, backend_id):
        match step:
            case ExpireSession() | Disturb(what="return" | "restart" | "flip" | "lose_sessions"):
                yield step.at
            case _:
                pass


def _had_too_little_time(case: Case, call: Operation) -> bool:
    if call.outcome.error != "BackendTimeout":
        return False
    step, settings = case.asking(call).began.step, case.history.settings
    assert isinstance(step, Call)
    assert isinstance(call.began.step, Call)
    assert call.began.target is not None
    spec = spec_of(case, call.began.target[0])
    timeout = settings.request_timeout if call.began.step.timeout is None else call.began.step.timeout
    if spec.progress_timeout is not None and NO_PROGRESS in call.outcome.text:
        return True  # `progress_keeps_a_call_alive`
    work = step.seconds + step.progress * step.pace + step.asks * step.thinks if step.kind == "tool" else 0.0
    if spec.stop_after is not None:  # it may have to be connected first, once the program before it has ended
        work += one_connecting(spec) + (settings.teardown_timeout if spec.transport == "stdio" else 0.0)
    work += (2 + 2 * step.asks) * spec.latency
    work += case.credentials.fetching(spec.id, call.began.at, call.ended_at)
    work += 0.0 if spec.guard is None else spec.latency  # for a request that is refused
    return timeout <= work + _turns(case, spec) + MILLISECOND or settings.max_connections_per_backend < BUSY


def _is_behind_a_trial(case: Case, call: Operation) -> bool:
    """The breaker is open, and another call is trying the backend."""
    others = case.operations.values()
    return call.began.found == "DEGRADED" and any(
        other.began.life == call.began.life
        and other.began.target is not None
        and call.began.target is not None
        and other.began.target[0] == call.began.target[0]
        and other.position < call.ends[0][0]
        and (not other.ends or other.ends[0][0] > call.position)
        for other in others
        if other is not call
    )


def _is_the_first_to_notice(case: Case, call: Operation) -> bool:
    """The backend flipped its era, and this is the session's first call since: the call may fail."""
    assert call.began.target is not None
    assert call.began.life is not None
    backend_id = call.began.target[0]
    flips = [step.at for step in _befalling(case, backend_id) if isinstance(step, Disturb) and step.what == "flip"]
    flipped_at = max((at for at in flips if at <= call.ended_at), default=None)
    if flipped_at is None or flipped_at < case.opened[call.began.life].at:
        return False
    enough = _turns(case, spec_of(case, backend_id)) + MILLISECOND
    return not any(
        other.began.life == call.began.life
        and other.began.target is not None
        and other.began.target[0] == backend_id
        and other.began.at > flipped_at
        and bool(other.ends)
        and other.ended_at + enough < call.began.at
        for other in case.ended("call")
    )


def _befalling(case: Case, backend_id: str) -> Iterator[Step]:
    for step in case.history.steps:
        index = getattr(step, "backend", None)
        if index is not None and case.history.backends[index].id == backend_id:
            yield step


# --- attempts


def _attempts_anew(case: Case) -> Iterator[tuple[int, str, list[AttemptRecord]]]:
    """For each instance, backend and principal: all attempts but the first of each opening, and those that connect a
    stopped backend for a call, in order. Sessions of one principal share the pace; what a backend answers to it delays
    no other.
    """
    first = set[tuple[int, str]]()
    found = defaultdict[tuple[int, str, bool], list[AttemptRecord]](list)
    resumed = dict[tuple[int, str], AttemptRecord]()
    for tried in case.attempts.values():
        attempt = tried.attempt
        its = attempt.op, attempt.backend_id
        if case.is_waking(tried):
            continue
        before = resumed.pop(its, None)
        if attempt.resumed:
            resumed[its] = tried
        if its not in first:
            first.add(its)
        elif before is None or attempt.resumed or attempt.at > before.ended_at + _longest_listing(case):
            found[attempt.instance, attempt.backend_id, _is_bound(case, attempt.op)].append(tried)
        # else: the stored backend session was gone, and the same attempt goes on with a new one
    for (instance, backend_id, _), attempts in found.items():
        yield instance, backend_id, attempts


def _is_bound(case: Case, op: int) -> bool:
    """The session that connects was opened with an identity: all of those have the same."""
    session = case.session_of(op)
    return any(step.bound for step in case.history.steps if isinstance(step, Open) and step.session == session)


def _others_failed_before(case: Case, tried: AttemptRecord) -> bool:
    """Another attempt failed within the longest backoff before this one did."""
    settings, attempt = case.history.settings, tried.attempt
    longest = settings.reconnect_max_delay * (1 + JITTER)
    return any(
        other.failed(settings.backend_init_timeout) and tried.ended_at - longest < other.ended_at <= tried.ended_at
        for other in case.attempts.values()
        if other is not tried
        and (other.attempt.instance, other.attempt.backend_id) == (attempt.instance, attempt.backend_id)
        and other.ended_at > attempt.at  # else this attempt was made after that backoff
    )


def _others_succeeded(case: Case, before: AttemptRecord, after: AttemptRecord) -> bool:
    """Another attempt succeeded, which ends the backoff; it counts when all is listed, so allow for that time."""
    since = before.attempt.at - case.history.settings.backend_init_timeout
    its = before.attempt.instance, before.attempt.backend_id
    return any(
        other.end is not None and other.end.outcome == "ok" and since <= other.end.at <= after.attempt.at
        for other in case.attempts.values()
        if (other.attempt.instance, other.attempt.backend_id) == its
    )


def _longest_listing(case: Case) -> float:
    return case.history.settings.backend_init_timeout


def _position_of_end(case: Case, tried: AttemptRecord) -> float:
    events = case.trace.events
    return math.inf if tried.end is None else next(i for i, event in enumerate(events) if event is tried.end)


def _may_fail_to_list(case: Case, backend_id: str, since: float, until: float) -> bool:
    """Listing may have failed after the connection was made: the backend was not healthy, or its pages changed."""
    before = [change.well for change in case.health_changes[backend_id] if change.at < since]
    meanwhile = [change.well for change in case.health_changes[backend_id] if since <= change.at <= until]
    relisted = any(since <= offer.at <= until for offer in case.tools_offered[backend_id][1:])
    torn = relisted and spec_of(case, backend_id).page_size is not None  # pages of the old list and of the new one
    return torn or not all((*before[-1:], *meanwhile)) or _patience(case, backend_id) is None


def _told_of_lists(case: Case) -> dict[tuple[int, str], list[float]]:
    """By life and backend: the times at which a session heard of the backend's current list."""
    told = defaultdict[tuple[int, str], list[float]](list)
    relists = [step for step in case.history.steps if isinstance(step, ChangeList) and step.kind == "tool"]
    for call in case.ended("call"):
        step, began = call.began.step, call.began
        assert isinstance(step, Call)
        if step.kind != "tool" or call.outcome.kind != "ok" or began.target is None or began.life is None:
            continue
        backend_id = began.target[0]
        spec = spec_of(case, backend_id)
        if spec.stop_after is not None:  # stopped before it was asked again
            continue
        if spec.can_ask and any(case.history.backends[each.backend].id == backend_id for each in relists):
            # A tool announces earlier changes on the stream of its call, at its beginning.
            told[began.life, backend_id] += [run.at for run in case.executed[began.op]]
    for life in case.opened:
        for spec in case.history.backends:
            told[life, spec.id] += _heard_while_listening(case, life, spec)
    return told


def _heard_while_listening(case: Case, life: int, spec: BackendSpec) -> Iterator[float]:
    """The times of announcements on a held stream, once the session has had the time to open it (again)."""
    patience = _patience(case, spec.id)
    if not (spec.listens and spec.is_listened_to) or patience is None or spec.stop_after is not None:
        return  # a stopped backend is not heard: `lists_are_read_again_on_return`
    for offer in case.tools_offered[spec.id][1:]:
        since = ready_since(case, life, spec.id, offer.at)
        if since is not None and offer.at > since + 2 * patience:
            yield offer.at + spec.latency


RECOVERY_CHECKS: tuple[Callable[[Case], Iterator[str]], ...] = (
    _a_healthy_backend_is_ready_again,
    _calls_to_healthy_backends_succeed,
    _attempts_keep_to_the_backoff,
    _one_attempt_at_a_time,
    _no_reconnect_without_a_reason,
    _connections_are_closed,
    _sent_again_only_if_it_did_not_run,
    _rows_say_what_sessions_say,
    _removed_backends_get_their_delete,
    _members_come_and_go_in_time,
    _announced_lists_are_fetched,
    _a_missing_backend_costs_no_time,
    _health_counts_every_call,
)
