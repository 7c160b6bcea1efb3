"""Steps about credentials, from a random generator of their own: the rest of a seed's history stays as it is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import attrs

from simulation.history import (
    BackendSpec,
    Call,
    GrantTokens,
    Guard,
    History,
    Inspect,
    RotateTokens,
    Step,
    WithholdTokens,
)

__all__ = ["draw_tokens"]

SHARE = 0.3  # of histories
SHORT = (0.0, 0.001, 0.05, 0.3, 1.0)  # s


def draw_tokens(history: History) -> History:
    """The same history; in some histories backends are guarded, and tokens are rotated and withheld."""
    chance = random.Random(f"{history.seed} guards")
    able = [index for index, spec in enumerate(history.backends) if _can_be(spec)]
    if chance.random() >= SHARE or not able:
        return history
    guarded = chance.sample(able, chance.randint(1, len(able)))
    backends = tuple(
        attrs.evolve(spec, guard=_guard(chance)) if index in guarded else spec
        for index, spec in enumerate(history.backends)
    )
    steps = list(history.steps)
    for _ in range(chance.choice((1, 1, 2, 3, 5))):
        steps += _trouble(chance, chance.choice(guarded), history)
    return attrs.evolve(history, backends=backends, steps=tuple(sorted(steps, key=lambda step: step.at)))


def _can_be(spec: BackendSpec) -> bool:
    """stdio has no HTTP requests to authorize."""
    return spec.transport != "stdio"


def _guard(chance: random.Random) -> Guard:
    return Guard(seconds=chance.choice((0.0, 0.0, 0.01, 0.3, 1.0)), reads_refusals=chance.random() < 0.3)


def _trouble(chance: random.Random, backend: int, history: History) -> list[Step]:
    """One or more rotations within a short time, and perhaps a time without good tokens."""
    end = history.instances[0].at
    at = chance.choice((0.0, chance.uniform(0, end), *(step.at for step in _calls(history))))
    steps: list[Step] = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        steps.append(RotateTokens(at=at, backend=backend))
        at += chance.choice((*SHORT, chance.uniform(0, end / 4)))
    if chance.random() < 0.4:
        how: Literal["refuse", "fail", "none"] = chance.choice(("refuse", "fail", "none"))
        steps.append(WithholdTokens(at=chance.choice((steps[0].at, at)), backend=backend, how=how))
        at += chance.choice((*SHORT, 5.0, chance.uniform(0, end / 3)))
        if chance.random() < 0.8:
            steps.append(GrantTokens(at=at, backend=backend))
    return [*steps, *_aftermath(chance, at, history)]


def _aftermath(chance: random.Random, since: float, history: History) -> list[Step]:
    """Calls at the same moment, after the tokens have changed."""
    sessions = sorted({step.session for step in _calls(history)})
    if not sessions:
        return []
    session, many = chance.choice(sessions), chance.choice((1, 2, 5))
    moments = [since + chance.choice((0.0, 0.001, 0.5, 3.0, 12.0)) for _ in range(chance.choice((1, 2)))]
    calls = [
        Call(at=at, session=session, pick=chance.randrange(12), seconds=chance.choice((0.0, 0.05, 1.0)), timeout=5.0)
        for at in moments
        for _ in range(many)
    ]
    return [*calls, Inspect(at=max(moments) + chance.choice((0.0, 3.0, 12.0)))]


def _calls(history: History) -> Sequence[Call]:
    return [step for step in history.steps if isinstance(step, Call)]
