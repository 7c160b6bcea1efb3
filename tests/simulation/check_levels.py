"""The check of `Session.set_log_level`: the requests of the stateless era say the level that callers have set."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from simulation.case import Case, Operation, spec_of
from simulation.history import SetLogLevel

__all__ = ["LEVEL_CHECKS"]

DEFAULT = "info"  # `ClientHandlers.log_level`


def _requests_say_the_level(case: Case) -> Iterator[str]:
    """A level holds at the latest when `set_log_level` has returned, for every backend that declares `logging`, and in
    the session of this life alone.
    """
    for seen in case.trace.seen:
        call = case.operations.get(seen.key or 0)
        if call is None or call.began.life is None or not seen.is_modern:
            continue
        allowed = _levels(case, call, seen.at) if spec_of(case, seen.backend_id).logs else {_unset(case)}
        if seen.level not in allowed:
            yield f"{call} reached {seen.backend_id!r} at {seen.at} with {seen.level!r}, and not with {allowed}"


def _unset(case: Case) -> str | None:
    return DEFAULT if "log" in case.history.given else None


def _levels(case: Case, call: Operation, sent_at: float) -> set[str | None]:
    """The level that held when the call began, and those that were being set until it was sent."""
    settings = [
        each for each in case.operations.values() if each.began.what == "level" and each.began.life == call.began.life
    ]
    done = [each for each in settings if each.ends and each.ends[0][0] < call.position and each.outcome.kind == "ok"]
    latest = max(done, key=lambda each: each.position, default=None)
    since = -1 if latest is None else latest.position
    later = [each for each in settings if each.position > since and each.began.at <= sent_at]
    levels: set[str | None] = {_unset(case) if latest is None else _level_of(latest)}
    return levels | {_level_of(each) for each in later}


def _level_of(operation: Operation) -> str:
    step = operation.began.step
    assert isinstance(step, SetLogLevel)
    return step.level


LEVEL_CHECKS: tuple[Callable[[Case], Iterator[str]], ...] = (_requests_say_the_level,)
