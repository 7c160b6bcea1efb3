"""Journeys: sessions that move between two and three instances over one storage, while instances freeze and die and the
storage is away, slow or without an answer. From a random generator of their own, so the rest of a seed's history stays
as it is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import partial
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
How: TypeAlias = Literal["fail", "lose", "silent", "slow", "late", "lie"]

SHARE = 0.4  # of histories
FAILED_WRITES = 0.6  # of journeys
SHORT = (0.0, 0.0, 0.001, 0.3, 1.0)  # s
SPARE = 3  # backends that sessions get on their way
AHEAD = (0.0, 0.0, 2.0, -2.0, 3600.0, -3600.0)  # s, of a wall clock


def draw_instances(history: History) -> History:
    """The same history; in some histories it is over when sessions go on journeys, which last longer."""
    chance = random.Random(f"{history.seed} instances")
    if chance.random() >= SHARE:
        return history
    return _with_failed_writes(_Draw(chance, history).history())


def _with_failed_writes(history: History) -> History:
    """In some histories the write of a restore fails, or one that names a backend is late. Also from a generator of
    its own.
    """
    chance = random.Random(f"{history.seed} failed writes")
    restores = [step for step in history.steps if isinstance(step, Restore)]
    if not restores or chance.random() >= FAILED_WRITES:
        return history
    restore = chance.choice(restores)
    if chance.random() < 0.4:
        return _with_steps(history, _failing_restore(chance, history, restore))
    # Longer ones are over when a touch is due, which is another reason to write.
    history = attrs.evolve(
        history,
        settings=attrs.evolve(history.settings, storage_timeout=0.5),
        backends=(*history.backends, BackendSpec(id="late", configured_era="legacy")),
    )
    return _with_steps(history, _retraction(chance, history, restore))


def _with_steps(history: History, steps: Sequence[Step]) -> History:
    """These stand before others of their moment."""
    return attrs.evolve(history, steps=tuple(sorted([*steps, *history.steps], key=lambda step: step.at)))


def _failing_restore(chance: random.Random, history: History, restore: Restore) -> list[Step]:
    """It is tried again, while the instance has the time."""
    how: How = chance.choice(("fail", "lose", "silent"))
    again = attrs.evolve(restore, at=restore.at + history.settings.storage_timeout + 0.3)
    fault = FailStorage(at=restore.at, operation="replace", instance=restore.instance, how=how)
    return [fault, again] if again.at < history.instances[restore.instance].at else [fault]


def _retraction(chance: random.Random, history: History, restore: Restore) -> list[Step]:
    """A backend comes and goes twice; the write that names it the second time lasts until it has gone. The instance is
    one that had the session before, and knows of the restore by then.
    """
    before = [
        step.instance
        for step in history.steps
        if isinstance(step, Open | Restore) and step.session == restore.session and step.at < restore.at
    ]
    session, here, backend = restore.session, chance.choice(before or [restore.instance]), len(history.backends) - 1
    add = partial(AddBackend, session=session, instance=here, backend=backend)
    remove = partial(RemoveBackend, session=session, instance=here, backend=backend, drain_timeout=0.0)
    at, timeout = restore.at + 0.4 * history.ttl + 0.1, history.settings.storage_timeout
    late_by = timeout + 0.3
    return [
        add(at=at),
        remove(at=at + 0.2),
        FailStorage(at=at + 0.4, operation="replace", instance=here, how="late", seconds=late_by),
        add(at=at + 0.4),
        remove(at=at + 0.4 + timeout + 0.1),
        Inspect(at=at + 0.4 + late_by + history.ttl / 3 + timeout + 0.2),
    ]


@attrs.define
class _Draw:
    random: random.Random
    before: History
    ttl: float = attrs.field(init=False)
    instances: int = attrs.field(init=False)
    backends: tuple[BackendSpec, ...] = attrs.field(init=False)
    is_bound: bool = attrs.field(init=False)

    def history(self) -> History:
        self.ttl = self.one_of(3.0, 3.0, 8.0, 20.0)
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
        clocks = random.Random(f"{self.before.seed} clocks")
        end = max(end, *(leaving.at for leaving in self.before.instances)) if own else end
        return attrs.evolve(
            self.before,
            backends=self.backends,
            instances=tuple(attrs.evolve(self.exit(end), ahead=clocks.choice(AHEAD)) for _ in range(self.instances)),
            ttl=self.ttl,
            settings=attrs.evolve(
                self.before.settings,
                idle_timeout=self.one_of(4.0, 2.5 * self.ttl, 1800.0, 1800.0, 1800.0),
                storage_timeout=self.one_of(self.before.settings.storage_timeout, 5.0),
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
        for _ in range(self.one_of(0, 0, 3, 5, 8)):
            at += self.wait()
            match self.one_of("move", "move", "move", "call", "change", "trouble", "trouble", "halt", "strand"):
                case "move":
                    there = self.one_of(*(number for number in range(self.instances) if number != here))
                    steps += self.move(session, at, here, there, been)
                    here = there
                    been.append(here)
                case "call":
                    steps += [self.call(session, at + self.one_of(*SHORT), self.one_of(here, None, *been[-2:]))]
                case "change":
                    steps += self.change(session, at, self.one_of(*been))
                case "strand":
                    there = self.one_of(*(number for number in range(self.instances) if number != here))
                    steps += self.strand(session, at, here, there)
                    here, at = there, max(step.at for step in steps)
                    been.append(here)
                case "trouble":
                    trouble = self.trouble(at, self.one_of(here, *range(self.instances)))
                    steps += trouble
                    at = self.one_of(at, trouble[-1].at)
                case _:
                    steps += self.halt(at, self.one_of(here, *been))
            if self.chance(0.5):
                steps.append(Inspect(at=at + self.one_of(0.5, self.ttl / 2)))
        if len(been) == 1:
            at, there = at + self.wait(), self.one_of(*(number for number in range(self.instances) if number != here))
            steps += self.move(session, at, here, there, been)
            here = there
        if self.chance(0.6):
            steps += self.termination(session, at + self.one_of(0.0, 0.5), here)
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
        seconds = self.before.settings.storage_timeout + self.random.uniform(0, 0.8 * self.ttl)
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
        how: How = self.one_of("fail", "fail", "lose", "silent", "slow", "late", "lie")
        if how == "lie":
            return [FailStorage(at=at, operation="load", instance=instance, how="lie", times=self.one_of(1, 3))]
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

    def strand(self, session: int, at: float, here: int, there: int) -> list[Step]:
        """An instance stands still, or cannot reach the storage, for over a TTL; the session is used on another."""
        over_at = at + self.one_of(1.2, 1.5, 2.5) * self.ttl
        steps = self.absence(at, over_at, here)
        at += 0.1
        steps.append(Restore(at=at, session=session, instance=there, backends=self.members()))
        while at < over_at + self.ttl:
            at += 0.3 * self.ttl
            steps.append(self.call(session, at, there))
        return [*steps, *self.change(session, self.one_of(over_at, at), there), *self.return_of(session, over_at, here)]

    def termination(self, session: int, at: float, here: int) -> list[Step]:
        """The instances that the session has left may hear of it late, when the tombstone has ended and the id is used
        again; or their attempt to create the row anew lasts until then.
        """
        reopened_at = at + 0.1 + 1.05 * self.ttl
        over_at = self.one_of(at + 0.5 * self.ttl, reopened_at + self.one_of(0.1, 0.3, 1.0) * self.ttl)
        steps: list[Step] = []
        for number in range(self.instances):
            if number == here or self.chance(0.1):
                continue
            if self.chance(0.3):
                over_at = reopened_at = at + 3.0 * self.ttl
                seconds = self.one_of(0.9, 1.2) * self.ttl
                steps.append(FailStorage(at=at, operation="create", instance=number, how="slow", seconds=seconds))
            else:
                steps += [*self.absence(at, over_at, number), *self.return_of(session, over_at, number)]
        steps.append(Close(at=at + 0.1, session=session, instance=here, terminate=True, drain_timeout=0.3))
        if self.chance(0.6):
            backends, bound = self.members(), self.is_bound
            steps.append(Open(at=reopened_at, session=session, instance=here, backends=backends, bound=bound))
        return [*steps, HealStorage(at=max(over_at, reopened_at) + 0.5 * self.ttl)]

    def absence(self, at: float, until: float, instance: int) -> list[Step]:
        if self.chance(0.5):
            return [Freeze(at=at, instance=instance, seconds=until - at)]
        away = FailStorage(at=at, operation=None, instance=instance, how="fail", times=math.inf)
        return [away, HealStorage(at=until, instance=instance)]

    def return_of(self, session: int, at: float, instance: int) -> list[Step]:
        """What an instance does first after an absence."""
        match self.one_of("nothing", "nothing", "change", "call", "close"):
            case "change":
                return self.change(session, at, instance)
            case "call":
                return [self.call(session, at, instance)]
            case "close":
                return [Close(at=at, session=session, instance=instance, terminate=self.chance(0.5))]
            case _:
                return []

    def wait(self) -> float:
        return self.one_of(*SHORT, 0.3 * self.ttl, 0.5 * self.ttl, self.ttl, 1.2 * self.ttl, 2.5 * self.ttl)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def one_of(self, *choices: T) -> T:
        return self.random.choice(choices)
