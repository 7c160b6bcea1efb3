"""Checks of requests and log messages that backends send during a call: each reaches its handler once, with the right
session, backend and caller, and the right answer comes back.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from simulation.case import MILLISECOND, Case, Operation, every, spec_of
from simulation.history import Call, Disturb, Open
from simulation.trace import AnswerTaken, HandlerCalled, HandlerReturned, LogReceived, QuestionAsked

__all__ = ["QUESTION_CHECKS"]

ROOM = 1 << 20  # bytes; with a smaller `max_message_bytes` waiting requests may be refused for their size


def _questions_are_answered(case: Case) -> Iterator[str]:
    for asked in every(case, QuestionAsked):
        call = case.operations[asked.key]
        if not call.ends or call.outcome.kind != "ok" or not _is_healthy_throughout(case, call, asked.at):
            continue
        step = call.began.step
        assert isinstance(step, Call)
        if asked.kind == "ping":
            expected = "right"
        elif case.history.settings.max_message_bytes < ROOM:
            continue  # requests that wait at the same time may exceed the limit
        elif asked.kind not in case.history.given or (step.reply == "fail" and step.rounds == "handlers"):
            expected = "refused"
        elif step.reply == "right" or step.rounds == "hand out":
            expected = "right"
        else:
            continue
        if asked.outcome != expected:
            yield f"{call}: the backend asked for {asked.kind}, and the answer was {asked.outcome}, not {expected}"


def _given_handlers_are_declared(case: Case) -> Iterator[str]:
    for asked in every(case, QuestionAsked):
        if asked.kind != "ping" and asked.declared not in (None, asked.kind in case.history.given):
            yield f"{asked.kind} is {'' if asked.declared else 'not '}declared to {asked.backend_id!r}"


def _handlers_know_session_backend_and_caller(case: Case) -> Iterator[str]:
    tellings: list[HandlerCalled | LogReceived] = [*every(case, HandlerCalled), *every(case, LogReceived)]
    for told in tellings:
        call = case.operations[told.key]
        step, target = call.began.step, call.began.target
        assert isinstance(step, Call)
        assert target is not None
        if (told.session, told.backend_id) != (step.session, target[0]):
            yield f"{call} of {target[0]!r} came to a handler as {told}"
        # On a stream that all calls share, a request does not say to which call it belongs.
        unknown = [None] if spec_of(case, target[0]).transport != "streamable-http" else []
        if told.caller not in (_caller(case, step.session), *unknown):
            yield f"{call} came to a handler as {told.caller!r}'s"


def _a_question_is_asked_once(case: Case) -> Iterator[str]:
    for (key, number), times in Counter((told.key, told.number) for told in every(case, HandlerCalled)).items():
        if times > 1:
            yield f"question {number} of {case.operations[key]} came to a handler {times} times"


def _handlers_are_not_asked_what_is_handed_out(case: Case) -> Iterator[str]:
    for told in every(case, HandlerCalled):
        call = case.operations[told.key]
        assert isinstance(call.began.step, Call)
        if call.began.step.rounds == "hand out" and _is_always_modern(case, told.backend_id):
            yield f"question {told.number} of {call} was to be handed out, and came to a handler"


def _is_always_modern(case: Case, backend_id: str) -> bool:
    flips = (step.backend for step in case.history.steps if isinstance(step, Disturb) and step.what == "flip")
    return spec_of(case, backend_id).era == "modern" and all(
        case.history.backends[index].id != backend_id for index in flips
    )


def _answers_are_taken_once(case: Case) -> Iterator[str]:
    """By the backend that asked, from a caller of the session; and what was answered has an answer."""
    taken = defaultdict[tuple[int, int], list[AnswerTaken]](list)
    by: Counter[int] = Counter()
    for answer in every(case, AnswerTaken):
        taken[answer.key, answer.number].append(answer)
        by[answer.by] += 1
        call = case.operations[answer.by]
        assert isinstance(call.began.step, Call)
        asking = case.asking(call).began
        if (asking.op, asking.target and asking.target[0]) != (answer.key, answer.backend_id):
            yield f"{call} answers {asking.op} of {asking.target}, and its answer was taken as {answer}"
        if call.began.step.caller == "wrong":
            yield f"{call} has another identity than the session, and its answer was taken"
    for (key, number), answers in taken.items():
        if len(answers) > 1:
            yield f"the answer to question {number} of {case.operations[key]} was taken {len(answers)} times"
    for call in case.ended("call"):
        if call.began.answers is None:
            continue
        if call.outcome.kind == "ok" and not by[call.began.op]:
            yield f"{call} has an answer, and its backend did not get it"
        if call.outcome.kind == "error" and call.outcome.may_have_executed is False and by[call.began.op]:
            yield f"the answer of {call} was taken, and it ended in {call.outcome}"


def _handlers_end_with_their_calls(case: Case) -> Iterator[str]:
    ended = {(answered.key, answered.number): answered.at for answered in every(case, HandlerReturned)}
    for told in every(case, HandlerCalled):
        call = case.operations[told.key]
        at = ended.get((told.key, told.number))
        if at is None:
            yield f"question {told.number} of {call} never left its handler"
            continue
        was_given_up = bool(call.ends) and (call.outcome.kind == "cancelled" or call.outcome.error == "BackendTimeout")
        if spec_of(case, told.backend_id).transport == "streamable-http" and was_given_up:
            latest = max(call.ended_at, told.at) + MILLISECOND
            if at > latest:
                yield f"{call} was cancelled, and its handler was at question {told.number} until {at}"


def _log_messages_come_in_order(case: Case) -> Iterator[str]:
    heard = defaultdict[int, list[LogReceived]](list)
    for logged in every(case, LogReceived):
        heard[logged.key].append(logged)
    for call in case.ended("call"):
        step, began = call.began.step, call.began
        assert isinstance(step, Call)
        numbers = [logged.number for logged in heard[began.op]]
        if numbers != sorted(set(numbers)):
            yield f"{call} sent its log messages in order, and the handler got {numbers}"
        if not step.logs or step.kind != "tool" or began.target is None or call.outcome.kind != "ok":
            continue
        if call.outcome.asked is not None:
            continue  # a tool logs after its questions
        all_came = numbers == list(range(step.logs))
        should = "log" in case.history.given and spec_of(case, began.target[0]).can_ask
        if should and not all_came and _is_healthy_throughout(case, call, call.ended_at) and _is_left_open(case, call):
            yield f"{call} sent {step.logs} log messages, and the handler got {numbers}"


def _is_healthy_throughout(case: Case, call: Operation, at: float) -> bool:
    assert call.began.target is not None
    since = case.healthy_since(call.began.target[0], at)
    return since is not None and since <= call.began.at


def _is_left_open(case: Case, call: Operation) -> bool:
    """When the call ended, neither a close of the session nor a removal of its backend had begun."""
    life = call.began.life
    assert life is not None
    asked = [closing.at for _, closing in case.closings[life]]
    asked += [removing.at for _, removing in case.removals[life]]
    asked += [exiting.at for _, exiting in case.exits[case.instance_of(life)]]
    return all(at > call.ended_at + MILLISECOND for at in asked)


def _caller(case: Case, session: int) -> str | None:
    opened = next(step for step in case.history.steps if isinstance(step, Open) and step.session == session)
    return "alice" if opened.bound else None


QUESTION_CHECKS: tuple[Callable[[Case], Iterator[str]], ...] = (
    _questions_are_answered,
    _given_handlers_are_declared,
    _handlers_know_session_backend_and_caller,
    _a_question_is_asked_once,
    _handlers_are_not_asked_what_is_handed_out,
    _answers_are_taken_once,
    _handlers_end_with_their_calls,
    _log_messages_come_in_order,
)
