"""Checks of the attributes in a session's row: what was acknowledged is written, and is undone by nothing but the next.

Each `SetAttributes` sets a value of its own, the number of its operation; `Stored.attributes` says which one a row has,
0 for none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from simulation.case import Case, Operation
from simulation.history import SetAttributes
from simulation.trace import Stored

__all__ = ["ATTRIBUTE_CHECKS", "may_fail_in_storage"]


def may_fail_in_storage(case: Case, operation: Operation) -> bool:
    """The storage was in trouble on the way of this operation, its instance was frozen, or another one wrote, too."""
    step, life = operation.began.step, operation.began.life
    assert isinstance(step, SetAttributes)
    assert life is not None
    instance = case.instance_of(life)
    is_struck = any(
        (failed.instance, failed.session) == (instance, step.session)
        and operation.began.at <= failed.at <= operation.ended_at
        for failed in case.storage_failed
    )
    return is_struck or case.pause(instance, operation.began.at) > 0 or case.is_shared(life, operation.ended_at)


def _acknowledged_attributes_are_written(case: Case) -> Iterator[str]:
    """By the time that the caller is told: these, or those of a caller that waited at the same time."""
    for operation in case.ended("attributes"):
        step, life = operation.began.step, operation.began.life
        if operation.outcome.kind != "ok":
            continue
        assert isinstance(step, SetAttributes)
        assert life is not None
        end = operation.ends[0][0]
        beside = {other.began.op for other in _changes_of(case, life) if other.position < end}
        if not any(
            operation.position < position < end and stored.attributes in beside
            for position, stored in case.stored[step.session]
            if stored.operation in ("create", "replace") and stored.instance == case.instance_of(life)
        ):
            yield f"{operation} was acknowledged, and was not written"


def _no_write_undoes_attributes(case: Case) -> Iterator[str]:
    for session, log in case.stored.items():
        written = [(position, stored) for position, stored in log if stored.operation in ("create", "replace")]
        for (_, before), (position, after) in pairwise(written):
            is_same = before.row == after.row and before.attributes == after.attributes
            if after.operation == "create" or is_same or _is_being_set(case, after, position):
                continue
            if not _is_set_back(case, before, after):
                yield (
                    f"instance {after.instance} puts attributes {after.attributes} in the place of {before.attributes} "
                    f"in the row of session {session}, at {after.at}"
                )


def _is_being_set(case: Case, after: Stored, position: int) -> bool:
    """By an operation of the same instance that has not ended, or whose outcome is unknown to its caller."""
    setting = case.operations.get(after.attributes)
    if setting is None or case.instance_of_operation(setting) != after.instance or setting.position > position:
        return False
    return not setting.ends or setting.ends[0][0] > position or setting.outcome.kind != "ok"


def _is_set_back(case: Case, before: Stored, after: Stored) -> bool:
    """What the row had was written for a caller that was told of a failure, or is not waiting any more."""
    failed = case.operations.get(before.attributes)
    if failed is None or case.instance_of_operation(failed) != after.instance:
        return False
    return not failed.ends or failed.outcome.kind != "ok"


def _changes_of(case: Case, life: int) -> Iterator[Operation]:
    return (
        operation
        for operation in case.operations.values()
        if operation.began.what == "attributes" and operation.began.life == life
    )


ATTRIBUTE_CHECKS: tuple[Callable[[Case], Iterator[str]], ...] = (
    _acknowledged_attributes_are_written,
    _no_write_undoes_attributes,
)
