"""Levels of log messages: which backends have them, and when callers set them. From a random generator of their own:
the rest of a seed's history stays as it is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import attrs

from simulation.history import Call, CancelCaller, History, Open, Restore, SetLogLevel, Step
from trio_vmcp._protocol.methods import LOG_LEVELS

__all__ = ["draw_levels"]

SHARE = 0.3  # of histories
SHORT = (0.0, 0.0, 0.001, 0.05, 0.3)  # s


def draw_levels(history: History) -> History:
    """The same history; in some histories, backends declare `logging` and callers set levels."""
    chance = random.Random(f"{history.seed} levels")
    if chance.random() >= SHARE:
        return history
    backends = tuple(attrs.evolve(spec, logs=chance.random() < 0.7) for spec in history.backends)
    steps = [*history.steps]
    for step in history.steps:
        if isinstance(step, Open | Restore) and chance.random() < 0.6:
            steps += _burst(chance, step.at + chance.choice((0.0, 0.5, 2.0, 4.0)), step.session, history)
    return attrs.evolve(history, backends=backends, steps=tuple(sorted(steps, key=lambda step: step.at)))


def _burst(chance: random.Random, at: float, session: int, history: History) -> Iterator[Step]:
    """Levels shortly one after another, on any instance, and calls in between."""
    for _ in range(chance.choice((1, 2, 3))):
        instance = chance.choice((None, *range(len(history.instances))))
        cancel = CancelCaller(checkpoints=chance.choice((0, 1, 3))) if chance.random() < 0.1 else None
        yield SetLogLevel(at=at, session=session, instance=instance, level=chance.choice(LOG_LEVELS), cancel=cancel)
        at += chance.choice(SHORT)
        yield Call(at=at, session=session, instance=instance, pick=chance.randrange(12))
        at += chance.choice(SHORT)
