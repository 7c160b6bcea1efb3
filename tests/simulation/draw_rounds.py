"""Steps that hand questions out and answer them later, on another instance, too. From a random generator of their own:
the rest of a seed's history stays as it is.
"""

from __future__ import annotations

import random
from typing import Literal, TypeVar

import attrs

from simulation.history import BackendSpec, Call, CancelCaller, Given, History, Open, Step

__all__ = ["draw_rounds"]

T = TypeVar("T")

SHARE = 0.3  # of histories
SHORT = (0.0, 0.001, 0.05, 0.3, 1.0)  # s
KINDS: tuple[Literal["sampling", "elicitation", "roots"], ...] = ("sampling", "elicitation", "roots")


def draw_rounds(history: History) -> History:
    """The same history; in some histories backends of the modern era ask, and the questions are answered by other
    calls.
    """
    chance = random.Random(f"{history.seed} rounds")
    openings = [step for step in history.steps if isinstance(step, Open)]
    if chance.random() >= SHARE or not openings:
        return history
    return _Draw(chance, history).history(chance.choice(openings))


@attrs.define
class _Draw:
    random: random.Random
    before: History

    def history(self, opening: Open) -> History:
        given: tuple[Given, ...] = tuple(kind for kind in KINDS if kind in self.before.given) or (self.one_of(*KINDS),)
        asked = self.one_of(*given)
        assert asked != "log"
        backends = tuple(self.asking(spec, is_one=self.chance(0.85)) for spec in self.before.backends)
        end = max(leaving.at for leaving in self.before.instances)
        steps: list[Step] = []
        for _ in range(self.one_of(2, 3, 5)):
            at = opening.at + self.one_of(0.05, 0.5, 1.0, 2.0, self.random.uniform(0, end))
            steps.append(self.call(opening.session, at, asked))
            steps += [self.answer(opening.session, at, end) for _ in range(self.one_of(1, 1, 2, 3))]
        return attrs.evolve(
            self.before,
            backends=backends,
            given=tuple(dict.fromkeys((*self.before.given, asked))),
            steps=tuple(sorted([*self.before.steps, *steps], key=lambda step: step.at)),
        )

    def asking(self, spec: BackendSpec, *, is_one: bool) -> BackendSpec:
        """A backend of the modern era that can ask, if this is one."""
        if not is_one or spec.transport == "sse":
            return spec
        configured: Literal["auto", "modern"] = "auto" if spec.configured_era == "legacy" else "modern"
        return attrs.evolve(spec, era="modern", answers="sse", configured_era=self.one_of("auto", configured))

    def call(self, session: int, at: float, asked: Literal["sampling", "elicitation", "roots"]) -> Call:
        return Call(
            at=at,
            session=session,
            pick=self.random.randrange(12),
            seconds=self.one_of(0.0, 0.0, 0.3, 2.0),
            progress=self.one_of(0, 0, 1),
            logs=self.one_of(0, 0, 1),
            asks=self.one_of(1, 1, 2, 3),
            question=asked,
            rounds=self.one_of("hand out", "hand out", "hand out", "handlers"),
            timeout=self.one_of(None, None, 5.0, 0.3),
            cancel=self.cancel(0.1),
        )

    def answer(self, session: int, since: float, end: float) -> Call:
        return Call(
            at=since + self.one_of(*SHORT, 3.0, self.random.uniform(0, end)),
            session=session,
            instance=self.one_of(None, None, *range(len(self.before.instances))),
            rounds="answer",
            timeout=self.one_of(None, None, 5.0, 0.3),
            caller="wrong" if self.chance(0.05) else "right",
            cancel=self.cancel(0.1),
        )

    def cancel(self, chance: float) -> CancelCaller | None:
        if not self.chance(chance):
            return None
        return CancelCaller(self.one_of(*SHORT), self.one_of(0, 1, 2, 5, 20))

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def one_of(self, *choices: T) -> T:
        return self.random.choice(choices)
