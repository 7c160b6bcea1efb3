"""What is to be done with a session without a request, and when: decisions alone. Times are `trio.current_time()`."""

from __future__ import annotations

import enum
import math

import attrs

__all__ = ["Due", "Limits", "Step", "due_asleep", "due_live"]


class Step(enum.Enum):
    """If several are due at once, the first of them is done."""

    END_OLD = "over max_lifetime"
    END_IDLE = "over idle_timeout"
    HIBERNATE = "over hibernate_after"
    TOUCH = "its row's TTL is to be put off"
    CHECK = "it may have been terminated elsewhere"


@attrs.frozen
class Limits:
    """s from one time of a session to the next step.

    Attributes:
        idle_timeout, max_lifetime, hibernate_after: As in the settings.
        check_interval: From one check of a live session to the next; `math.inf`: no other instance has the storage.
        touch_interval: From one touch of the row of a session that hibernates to the next.
    """

    idle_timeout: float
    max_lifetime: float
    hibernate_after: float
    check_interval: float
    touch_interval: float


@attrs.frozen(order=False)
class Due:
    """The next step of a session."""

    at: float
    step: Step


def due_live(limits: Limits, *, born_at: float, worked_at: float, checked_at: float) -> Due:
    """The next step of a session that is open here. Its idle timeout is its own.

    Args:
        worked_at: The latest call, or what else keeps it awake, ended at this time; now, if it has not ended.
    """
    return _first(
        Due(born_at + limits.max_lifetime, Step.END_OLD),
        Due(worked_at + limits.hibernate_after, Step.HIBERNATE),
        Due(checked_at + limits.check_interval if limits.check_interval < math.inf else math.inf, Step.CHECK),
    )


def due_asleep(limits: Limits, *, born_at: float, used_at: float, touch_at: float) -> Due:
    """The next step of a session that hibernates.

    Args:
        used_at: The session was last used here at this time.
        touch_at: Its row is to be touched at this time.
    """
    return _first(
        Due(born_at + limits.max_lifetime, Step.END_OLD),
        Due(used_at + limits.idle_timeout, Step.END_IDLE),
        Due(touch_at, Step.TOUCH),
    )


def _first(*candidates: Due) -> Due:
    return min(candidates, key=lambda due: due.at)
