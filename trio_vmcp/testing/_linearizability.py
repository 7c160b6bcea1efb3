"""Whether a history of one row can have happened, each operation being one atomic step.

The search is that of Wing and Gong (Testing and Verifying Concurrent Objects, 1993): among the operations that may be
first, one is taken whose outcome fits the state, and the rest is judged in the state after it. Time to live is left
out: a history must be shorter than that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import attrs

from trio_vmcp.errors import MetadataConflict, SessionExists, SessionNotFound

__all__ = ["LOST", "Event", "Operation", "Outcome", "is_linearizable"]

Operation = Literal["create", "load", "replace", "touch", "delete"]
_Content = tuple[int, str]  # version and writer
_State = _Content | Literal["no row", "tombstone"]
# What a load read, the error that was raised, or None for an operation that was done.
Outcome = _Content | type[Exception] | None

LOST: Literal["lost"] = "lost"  # the answer did not arrive: the operation had its effect, will have it later, or never


@attrs.frozen
class Event:
    """One operation of a history.

    Attributes:
        version: Of `create`: the row's; of the others: the expected one, None for any.
        writer: Is stored with the row by `create` and `replace`, and tells rows of the same version apart.
        started, ended: Places in the history; an operation that is lost has no end.
        outcome: See `Outcome`, or LOST.
    """

    operation: Operation
    version: int | None
    writer: str
    started: int
    ended: float
    outcome: Outcome | Literal["lost"]


def is_linearizable(history: Sequence[Event]) -> bool:
    """Whether there is an order in which every outcome is the right one, and no operation comes before another that
    had ended when it started. The history begins without a row.
    """
    dead_ends: set[tuple[frozenset[int], _State]] = set()

    def fits(rest: frozenset[int], state: _State) -> bool:
        answered = [history[place].ended for place in rest if history[place].outcome != LOST]
        if not answered:
            return True
        if (rest, state) in dead_ends:
            return False
        for place in rest:
            event = history[place]
            if event.started < min(answered, default=math.inf):
                after, outcome = _apply(event, state)
                if event.outcome in (LOST, outcome) and fits(rest - {place}, after):
                    return True
        dead_ends.add((rest, state))
        return False

    return fits(frozenset(range(len(history))), "no row")


def _apply(event: Event, state: _State) -> tuple[_State, Outcome]:
    """The state after an operation, and its outcome."""
    if event.operation == "create":
        assert event.version is not None
        return ((event.version, event.writer), None) if state == "no row" else (state, SessionExists)
    if not isinstance(state, tuple):  # no row
        return ("tombstone", None) if event.operation == "delete" else (state, SessionNotFound)
    if event.operation == "load":
        return state, state
    if event.version not in (None, state[0]):
        return state, MetadataConflict
    if event.operation == "replace":
        return (state[0] + 1, event.writer), None
    return ("tombstone", None) if event.operation == "delete" else (state, None)
