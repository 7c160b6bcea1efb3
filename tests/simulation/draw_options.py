"""`stop_after`, `progress_timeout` and `overrides` of backends, and calls about them, from a random generator of their
own: the rest of a seed's history stays as it is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import attrs

from simulation.history import BackendSpec, Call, History, Inspect, Open, Step

__all__ = ["draw_options"]

SHARE = 0.4  # of histories
OTHER_NAMES = ("fetch", "tell")  # no tool of a backend is called so


def draw_options(history: History) -> History:
    """The same history; in some histories backends are stopped when unused, calls need progress, tools are renamed."""
    chance = random.Random(f"{history.seed} options")
    if chance.random() >= SHARE:
        return history
    backends = tuple(_with_options(chance, spec) for spec in history.backends)
    sessions = sorted({step.session for step in history.steps if isinstance(step, Open)})
    steps = [
        *history.steps,
        *(step for _ in range(chance.choice((1, 2, 4))) for step in _burst(chance, chance.choice(sessions), history)),
    ]
    return attrs.evolve(history, backends=backends, steps=tuple(sorted(steps, key=lambda step: step.at)))


def _with_options(chance: random.Random, spec: BackendSpec) -> BackendSpec:
    renamed = chance.sample(spec.tools, min(chance.choice((0, 1, 2)), len(spec.tools)))
    return attrs.evolve(
        spec,
        stop_after=chance.choice((None, 0.3, 1.0, 3.0)),
        progress_timeout=chance.choice((None, None, 0.4, 1.0, 2.5)),
        renamed=tuple(zip(renamed, chance.sample(OTHER_NAMES, len(renamed)), strict=True)),
    )


def _burst(chance: random.Random, session: int, history: History) -> Iterator[Step]:
    """Looks at a quiet session, and then several calls at one moment, with progress all the while."""
    at = chance.uniform(1.0, history.instances[0].at)
    yield Inspect(at=max(at - 0.01, 0.0))
    pick, moment = chance.randrange(12), chance.choice((0.0, 0.001))
    for number in range(chance.choice((1, 2, 5))):
        yield Call(
            at=at + number * moment,
            session=session,
            pick=pick if chance.random() < 0.7 else chance.randrange(12),
            seconds=chance.choice((0.0, 0.0, 0.3, 1.5)),
            progress=chance.choice((0, 2, 4)),
            pace=chance.choice((0.0, 0.3, 0.9)),
            hears_progress=chance.random() < 0.5,
            timeout=chance.choice((None, None, 0.5, 2.0)),
        )
    yield Inspect(at=at + chance.choice((0.2, 2.5, 5.0)))
