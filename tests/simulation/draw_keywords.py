"""What sessions take besides: the era that their probes prefer, and attributes that are set on one instance or several.
From a random generator of their own: the rest of a seed's history stays as it is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import attrs

from simulation.history import FailStorage, History, Open, Restore, SetAttributes, Step

__all__ = ["draw_keywords"]

SHARE = 0.4  # of histories, each
SHORT = (0.0, 0.0, 0.001, 0.05, 0.3, 1.0)  # s


def draw_keywords(history: History) -> History:
    """The same history; in some, sessions prefer an era, and in some, attributes are set."""
    chance = random.Random(f"{history.seed} keywords")
    steps = list(history.steps)
    if chance.random() < SHARE:
        steps = [
            attrs.evolve(step, prefer=chance.choice((None, "modern", "legacy")))
            if isinstance(step, Open | Restore)
            else step
            for step in steps
        ]
    if chance.random() < SHARE:
        steps += _changes(chance, history)
    return attrs.evolve(history, steps=tuple(sorted(steps, key=lambda step: step.at)))


def _changes(chance: random.Random, history: History) -> list[Step]:
    """Some alone, some at one moment, on any instance; and faults of the storage just before."""
    sessions = sorted({step.session for step in history.steps if isinstance(step, Open)})
    moments = _moments(history)
    steps: list[Step] = []
    for _ in range(chance.choice((1, 2, 4)) if sessions else 0):
        session, at = chance.choice(sessions), chance.choice(moments) + chance.choice(SHORT)
        for _ in range(chance.choice((1, 1, 2, 3))):
            instance = chance.choice((None, *range(len(history.instances))))
            steps.append(SetAttributes(at=at, session=session, instance=instance))
            at += chance.choice(SHORT)
        if chance.random() < 0.3:
            how: Literal["fail", "lose", "silent", "slow"] = chance.choice(("fail", "lose", "lose", "silent", "slow"))
            seconds, times = chance.choice((0.3, 7.0)), chance.choice((1, 1, 2))
            steps.append(FailStorage(at=steps[-1].at, operation="replace", how=how, seconds=seconds, times=times))
            steps.append(SetAttributes(at=steps[-1].at, session=session))
    return steps


def _moments(history: History) -> Sequence[float]:
    """When sessions are opened or come back, and a moment after."""
    return [step.at + later for step in history.steps if isinstance(step, Open | Restore) for later in (0.5, 2.0, 4.0)]
