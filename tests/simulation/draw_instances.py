"""Journeys: sessions that move between two and three instances over one storage, while instances freeze and die and the
storage is away, slow or without an answer. From a random generator of their own, so the rest of a seed's history stays
as it is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Literal, TypeAlias, TypeVar

import attrs

from simulation.history import (
    AddBackend,
    BackendSpec,
    Call,
    Close,
    Exit,
    FailStorage,
    Freeze,
    HealStorage,
    History,
    Inspect,
    Kill,
    Open,
    Operation,
    RemoveBackend,
    Restore,
    Step,
)

__all__ = ["draw_instances"]

T = TypeVar("T")
How: TypeAlias = Literal["fail", "lose", "silent", "slow", "late"]

SHARE = 0.4  # of histories
SHORT = (0.0, 0.0, 0.001, 0.3, 1.0)  # s
SPARE = 3  # backends that sessions get on their way


def draw_instances(history: History) -> History:
    """The same history; in some histories it is over when sessions go on journeys, which last longer."""
    chance = random.Random(f"{history.seed} instances")
    if chance.random() >= SHARE:
        return history
    return _Draw(chance, history).history()


@attrs.define
class _Draw:
    random: random.Random
    before: History
    ttl: float = attrs.field(init=False)
    instances: int = attrs.field(init=False)
    backends: tuple[BackendSpec, ...] = attrs.field(init=False)
    is_bound: bool = attrs.field(init=False)

    def history(self) -> History:
        self.ttl = self.one_of(3.0, 8.0, 20.0)
        self.instances = self.one_of(2, 2, 3)
        spare = (BackendSpec(id=f"x{number}", configured_era="legacy") for number in range(SPARE))
        self.backends = (*self.before.backends, *spare)
        own = self.before.steps if self.chance(0.4) else ()
        sessions = {step.session for step in own if isinstance(step, Open)}
        bound = self.chance(0.3)
        begin = 0.0 if self.chance(0.5) else self.random.uniform(0, 10)
        number = self.one_of(*sessions, len(sessions))
        self.is_bound = next((step.bound for step in own if isinstance(step, Open) and step.session == number), bound)
        steps, end = self.journey(number, begin, is_open=number in sessions)
        end = max(end, *(leaving.at for leaving in self.before.instances)) if own else end
        return attrs.evolve(
            self.before,
            backends=self.backends,
            instances=tuple(self.exit(end) for _ in range(self.instances)),
            ttl=self.ttl,
            settings=attrs.evolve(
                self.before.settings,
                idle_timeout=self.one_of(4.0, self.ttl, 2.5 * self.ttl, 1800.0, 1800.0),
                on_exit=self.one_of("terminate", "terminate", "suspend"),
            ),
            steps=tuple(sorted([*own, *steps], key=lambda step: step.at)),
        )

    def exit(self, end: float) -> Exit:
        """Most instances stay to the end; one may be left on the way."""
        at = end + self.one_of(*SHORT) if self.chance(0.8) else self.random.uniform(end / 3, end)
        return Exit(at=at, cancelled_at=at + self.one_of(-1.0, 0.0, 0.5) if self.chance(0.2) else None)

    def journey(self, session: int, at: float, *, is_open: bool) -> tuple[list[Step], float]:
        """The steps of one session, and the time of its end."""
        here = self.random.randrange(self.instances)
        steps = [] if is_open else self.opening(session, at, here)
        been = [here]
        for _ in range(self.one_of(3, 4, 6, 8, 10)):
            at += self.wait()
            match self.one_of("move", "move", "move", "call", "change", "trouble", "trouble", "trouble", "halt"):
                case "move":
                    there = self.one_of(*(number for number in range(self.instances) if number != here))
                    steps += self.move(session, at, here, there, been)
                    here = there
                    been.append(here)
                case "call":
                    steps += [self.call(session, at + self.one_of(*SHORT), self.one_of(here, None, *been[-2:]))]
                case "change":
                    steps += self.change(session, at, self.one_of(*been))
                case "trouble":
                    trouble = self.trouble(at, self.one_of(here, *range(self.instances)))
                    steps += trouble
                    at = self.one_of(at, trouble[-1].at)
                case _:
                    steps += self.halt(at, self.one_of(here, *been))
            if self.chance(0.5):
                steps.append(Inspect(at=at + self.one_of(0.5, self.ttl / 2)))
        if self.chance(0.5):
            steps += self.termination(session, at, here)
            at = steps[-1].at
        steps.append(HealStorage(at=at))
        at += self.one_of(0.0, 0.0, 1.2 * self.ttl)
        return [*steps, Inspect(at=at)], at + 0.5

    def opening(self, session: int, at: float, here: int) -> list[Step]:
        """On one instance, or on two at once, of which one may not hear what became of its row."""
        opening = Open(
            at=at,
            session=session,
            instance=here,
            backends=self.members(),
            bound=self.is_bound,
            held=self.chance(0.1),
        )
        if self.chance(0.75):
            return [opening]
        how: How = self.one_of("lose", "silent", "late", "late", "slow")
        there = (here + 1) % self.instances
        seconds = self.random.uniform(0, self.ttl)
        return [
            FailStorage(at=at, operation="create", instance=here, how=how, seconds=seconds),
            opening,
            attrs.evolve(opening, at=at + self.one_of(*SHORT, 3.0), instance=there, held=False),
        ]

    def members(self) -> tuple[int, ...]:
        """Mostly the backends that no fault strikes."""
        count = len(self.backends)
        return self.one_of((count - 1,), (count - 1, count - 2), (0, count - 1), tuple(range(count)))

    def move(self, session: int, at: float, here: int, there: int, been: Sequence[int]) -> list[Step]:
        """To another instance: after a suspend, while the copy of before lives on, or by calls of a copy there."""
        how = self.one_of("suspend", "restore", "restore", "call")
        steps: list[Step] = []
        if how == "suspend":
            steps.append(Close(at=at, session=session, instance=here, terminate=False))
            at += self.one_of(*SHORT)
        if how != "call" or there not in been:
            steps.append(Restore(at=at, session=session, instance=there, backends=self.members()))
            at += self.one_of(0.0, 0.5)
        calls = [self.call(session, at + self.one_of(*SHORT, self.ttl / 3), there) for _ in range(self.one_of(0, 1, 3))]
        return [*steps, *calls]

    def call(self, session: int, at: float, instance: int | None) -> Call:
        seconds = self.one_of(0.0, 0.0, 0.3, self.ttl / 2)
        return Call(at=at, session=session, instance=instance, pick=self.random.randrange(12), seconds=seconds)

    def change(self, session: int, at: float, instance: int) -> list[Step]:
        backend = len(self.backends) - 1 - self.random.randrange(SPARE)
        if self.chance(0.2):
            return [RemoveBackend(at=at, session=session, instance=instance, backend=backend, drain_timeout=0.3)]
        return [AddBackend(at=at, session=session, instance=instance, backend=backend)]

    def trouble(self, at: float, instance: int) -> list[Step]:
        """The way of one instance to the storage; in most cases the steps contain the end of it, too."""
        how: How = self.one_of("fail", "fail", "lose", "silent", "slow", "late")
        if how == "late" or self.chance(0.4):
            operation: Operation = self.one_of("replace", "replace", "touch", "delete", "load")
            seconds, times = self.random.uniform(0, 2 * self.ttl), self.one_of(1, 2)
            return [FailStorage(at=at, operation=operation, instance=instance, how=how, seconds=seconds, times=times)]
        over = HealStorage(at=at + self.wait() + 0.5, instance=instance)
        seconds = self.one_of(0.3, 7.0)
        return [FailStorage(at=at, operation=None, instance=instance, how=how, seconds=seconds, times=math.inf), over]

    def halt(self, at: float, instance: int) -> list[Step]:
        if self.chance(0.3):
            return [Kill(at=at, instance=instance)]
        return [Freeze(at=at, instance=instance, seconds=self.wait() + 0.5)]

    def termination(self, session: int, at: float, here: int) -> list[Step]:
        """The instances that the session has left may not hear of it. Later the id may be used again."""
        others = [number for number in range(self.instances) if number != here]
        steps: list[Step] = []
        for number in others:
            if self.chance(0.5):
                steps.append(FailStorage(at=at, operation=None, instance=number, how="fail", times=math.inf))
            elif self.chance(0.3):
                steps.append(Freeze(at=at, instance=number, seconds=self.one_of(0.5, 1.2, 2.5) * self.ttl))
        at += 0.1
        steps.append(Close(at=at, session=session, instance=here, terminate=True, drain_timeout=0.3))
        at += self.one_of(0.5, 1.2, 2.5) * self.ttl
        if self.chance(0.4):
            there, bound = self.one_of(here, *others), self.is_bound
            steps.append(Open(at=at, session=session, instance=there, backends=self.members(), bound=bound))
            at += self.one_of(*SHORT)
        return [*steps, HealStorage(at=at)]

    def wait(self) -> float:
        return self.one_of(*SHORT, 0.3 * self.ttl, 0.5 * self.ttl, self.ttl, 1.2 * self.ttl, 2.5 * self.ttl)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def one_of(self, *choices: T) -> T:
        return self.random.choice(choices)
