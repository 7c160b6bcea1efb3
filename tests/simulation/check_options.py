"""Checks of what a `Backend` says of time and names: `stop_after`, `progress_timeout` and `overrides`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from simulation.case import LAST_BYTES, MILLISECOND, Case, Operation, every, spec_of
from simulation.check_recovery import NO_PROGRESS, REFETCH, one_connecting, ready_since
from simulation.history import BackendSpec, Call
from simulation.trace import HandlerCalled, HandlerReturned, Inspected
from trio_vmcp import Prefix

__all__ = ["OPTION_CHECKS"]

LEAST_PAUSE = 0.1  # s between two looks at a backend that is in use


# --- stop_after


def _only_unused_backends_are_stopped(case: Case) -> Iterator[str]:
    requested = {seen.key for seen in case.trace.seen}
    for life, backend_id, at in _stops(case):
        stop_after = spec_of(case, backend_id).stop_after
        if stop_after is None:
            yield f"{backend_id!r} was stopped at {at} without `stop_after`"
            continue
        for call in _calls(case, life, backend_id):
            begun_at, ended_at = call.began.at, call.ended_at if call.ends else at
            is_use = begun_at < at - MILLISECOND and ended_at > at - stop_after + MILLISECOND
            if call.began.op in requested and is_use:
                yield f"{backend_id!r} was stopped at {at}, less than {stop_after} s after {call}"
        for called_at, returned_at in _handlers_at_work(case, life, backend_id):
            if called_at < at - MILLISECOND and returned_at > at - stop_after + MILLISECOND:
                yield f"{backend_id!r} was stopped at {at}, and a handler answered it from {called_at} to {returned_at}"


def _unused_backends_are_stopped_in_time(case: Case) -> Iterator[str]:
    """A handler that answers its backend is a use (`Backend.stop_after`), also where no call is in flight. Over
    HTTP+SSE and stdio a question may arrive after its call was given up; the stream does not say whose it is, so its
    handler ends only when it answers, when the backend cancels the question, or with the connection.
    """
    for looked in every(case, Inspected):
        for backend_id, state, _ in looked.members:
            stop_after = spec_of(case, backend_id).stop_after
            if stop_after is None or state != "READY":
                continue
            calls = list(_calls(case, looked.life, backend_id))
            if any(call.began.what == "subscribe" or not call.ends for call in calls):
                continue  # a subscription keeps its backend
            handlers = [each for each in _handlers_at_work(case, looked.life, backend_id) if each[0] <= looked.at]
            if any(returned_at >= looked.at for _, returned_at in handlers):
                continue
            since = max(
                case.opened[looked.life].at,
                *(change.at for change, _, _ in case.states_of(looked.life, backend_id) if change.at <= looked.at),
                *(call.ended_at for call in calls if call.began.at <= looked.at),
                *(returned_at for _, returned_at in handlers),
            )
            # A use that has not ended is looked at again after as long.
            latest = since + 2 * stop_after + LEAST_PAUSE + case.pause(case.instance_of(looked.life), since)
            if looked.at > latest + MILLISECOND:
                yield f"{backend_id!r} is not used since {since} and READY at {looked.at}, in session of {looked.life}"


def _a_stopped_backend_is_connected_once_for_its_calls(case: Case) -> Iterator[str]:
    """And for nothing else."""
    for life, backend_id in case.state_changes:
        for change, begun, over in case.states_of(life, backend_id):
            if "STOPPED" not in (change.old, change.new):
                continue
            is_stopped = change.new == "STOPPED"
            tried = [
                number
                for number in case.attempts_of(life)
                if case.attempts[number].attempt.backend_id == backend_id
                and begun < case.attempts[number].position < over
            ]
            if is_stopped and tried:
                yield f"{backend_id!r} was stopped at {change.at} and tried again without a call"
            if change.new == "RECOVERING" and len(tried) > 1:
                yield f"{backend_id!r} was connected {len(tried)} times for the calls of {change.at}"
            waiting = (call for call in _calls(case, life, backend_id) if call.position < begun)
            if change.new == "RECOVERING" and not any(not c.ends or begun < c.ends[0][0] for c in waiting):
                yield f"{backend_id!r} was connected at {change.at}, and no call needs it"


def _entries_of_a_stopped_backend_stay(case: Case) -> Iterator[str]:
    if not isinstance(case.history.settings.conflict_resolution, Prefix):
        return  # other strategies may withhold names
    for looked in every(case, Inspected):
        for backend_id, state, _ in looked.members:
            offers = case.tools_offered[backend_id]
            if state != "STOPPED" or len(offers) > 1:  # else it may have been stopped before its news was heard
                continue
            listed = {own_name for _, owner, own_name in looked.tools if owner == backend_id}
            if listed != set(offers[0].tools):
                yield f"{backend_id!r} is stopped and offers {sorted(offers[0].tools)}; listed are {sorted(listed)}"


def _lists_are_read_again_on_return(case: Case) -> Iterator[str]:
    if not isinstance(case.history.settings.conflict_resolution, Prefix):
        return
    for looked in every(case, Inspected):
        for backend_id, _, _ in looked.members:
            spec, life = spec_of(case, backend_id), looked.life
            if spec.stop_after is None or case.history.settings.max_message_bytes < 1 << 20:
                continue
            changes = [change for change, _, _ in case.states_of(life, backend_id) if change.at <= looked.at]
            if len(changes) < 2 or changes[-1].new != "READY" or changes[-2].old != "STOPPED":
                continue  # it is not just back
            back_at, offer = changes[-1].at, case.tools_offered[backend_id][-1]
            since = ready_since(case, life, backend_id, looked.at)
            enough = REFETCH + 2 * one_connecting(spec) + spec.ttl + MILLISECOND
            if since is None or since > changes[-2].at or offer.at >= back_at or looked.at <= back_at + enough:
                continue
            listed = {own_name for _, owner, own_name in looked.tools if owner == backend_id}
            if listed != set(offer.tools):
                yield f"{backend_id!r} is back since {back_at} with {sorted(offer.tools)}; listed are {sorted(listed)}"


def _stops(case: Case) -> Iterator[tuple[int, str, float]]:
    """Life, backend id and time of each time that a backend was stopped for want of calls."""
    for (life, backend_id), changes in case.state_changes.items():
        for _, change in changes:
            if change.new == "STOPPED" and change.old != "RECOVERING":
                yield life, backend_id, change.at


def _calls(case: Case, life: int, backend_id: str) -> Iterator[Operation]:
    for call in case.operations.values():
        began = call.began
        is_its = began.target is not None and (began.life, began.target[0]) == (life, backend_id)
        if is_its and began.what in ("call", "subscribe"):
            yield call


def _handlers_at_work(case: Case, life: int, backend_id: str) -> Iterator[tuple[float, float]]:
    """For each question of a backend to the session: when its handler was called, and when the handler returned."""
    returned = {(each.key, each.number): each.at for each in every(case, HandlerReturned)}
    for called in every(case, HandlerCalled):
        if (case.operations[called.key].began.life, called.backend_id) == (life, backend_id):
            yield called.at, returned.get((called.key, called.number), math.inf)


# --- progress_timeout


def _progress_keeps_a_call_alive(case: Case) -> Iterator[str]:
    """A call is given up once nothing has come for `progress_timeout`, and no earlier. (`calls_end_in_time`: progress
    never extends the whole.)
    """
    for call in case.ended("call"):
        if call.began.target is None or not _is_plain(case, call):
            continue
        spec = spec_of(case, call.began.target[0])
        is_given_up = NO_PROGRESS in call.outcome.text
        if spec.progress_timeout is None:
            if is_given_up:
                yield f"{call} was given up for want of progress, without `progress_timeout`"
            continue
        heard = [call.began.at, *(sent.at for sent in case.progress[call.began.op] if sent.at <= call.ended_at)]
        arrived = max(at for at in heard if at == heard[0] or at + spec.latency < call.ended_at - MILLISECOND)
        if is_given_up and call.ended_at < arrived + spec.progress_timeout - MILLISECOND:
            yield f"{call} was given up at {call.ended_at}, though it made progress at {arrived}"
        if not _is_undisturbed(case, call) or call.outcome.kind == "cancelled" or call.was_shielded:
            continue
        if spec.transport != "streamable-http" and _is_asked_meanwhile(case, call):
            continue  # on a channel that all calls share, a question may be of any of them
        silence = max(after - before for before, after in pairwise([*heard, call.ended_at]))
        if silence > spec.progress_timeout + 2 * one_connecting(spec) + LAST_BYTES + MILLISECOND:
            yield f"{call} was silent for {silence} s and ended in {call.outcome}"


def _is_asked_meanwhile(case: Case, call: Operation) -> bool:
    """A handler ran for the backend while the call did."""
    assert call.began.life is not None
    assert call.began.target is not None
    at_work = _handlers_at_work(case, call.began.life, call.began.target[0])
    return any(called_at < call.ended_at and returned_at > call.began.at for called_at, returned_at in at_work)


def _is_plain(case: Case, call: Operation) -> bool:
    """A tool call in which nothing but the tool takes time: time in which handlers and callbacks run does not count."""
    step, began = case.asking(call).began.step, call.began
    assert isinstance(step, Call)
    assert began.life is not None
    is_slowed = case.pause(case.instance_of(began.life), began.at) > 0
    return step.kind == "tool" and not step.asks and step.on_progress == "note" and not is_slowed


def _is_undisturbed(case: Case, call: Operation) -> bool:
    """The backend was there for it, and answered it the first time."""
    assert call.began.target is not None
    assert call.began.life is not None
    since = ready_since(case, call.began.life, call.began.target[0], call.ended_at)
    times_sent = sum(seen.key == call.began.op for seen in case.trace.seen)
    return since is not None and since <= call.began.at and call.began.found == "READY" and times_sent == 1


# --- overrides


def _calls_carry_the_own_name(case: Case) -> Iterator[str]:
    for seen in case.trace.seen:
        if seen.method == "tools/call" and seen.key is not None:
            own_names = {name for offer in case.tools_offered[seen.backend_id] for name in offer.tools}
            target = case.operations[seen.key].began.target
            if seen.name not in own_names or target != (seen.backend_id, seen.name):
                yield f"{case.operations[seen.key]} reached {seen.backend_id!r} with the name {seen.name!r}"


def _overridden_names_are_advertised(case: Case) -> Iterator[str]:
    is_prefixed = isinstance(case.history.settings.conflict_resolution, Prefix)
    for event in every(case, Inspected):
        for name, backend_id, own_name in event.tools:
            expected = _shown(spec_of(case, backend_id), own_name, is_prefixed)
            if name != expected:
                yield f"{own_name!r} of {backend_id!r} is advertised as {name!r}, and not as {expected!r}"


def _shown(spec: BackendSpec, own_name: str, is_prefixed: bool) -> str:
    return f"{spec.id}_{spec.name_for(own_name)}" if is_prefixed else spec.name_for(own_name)


OPTION_CHECKS: tuple[Callable[[Case], Iterator[str]], ...] = (
    _only_unused_backends_are_stopped,
    _unused_backends_are_stopped_in_time,
    _a_stopped_backend_is_connected_once_for_its_calls,
    _entries_of_a_stopped_backend_stay,
    _lists_are_read_again_on_return,
    _progress_keeps_a_call_alive,
    _calls_carry_the_own_name,
    _overridden_names_are_advertised,
)
