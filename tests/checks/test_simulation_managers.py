"""The histories of managers notice broken libraries: each defect here breaks a promise in a history of a few steps."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import pytest
import trio
from simulation.managers import CHECK, SLOW, STORAGE, WRITES, History, lose_answers, slow_down
from support.harness import echo_backend
from support.instances import away
from support.managers import SLEEP, managed
from trio.testing import MockClock

from trio_vmcp import ManagerSettings, StorageError
from trio_vmcp._session.life import Cause
from trio_vmcp._session.owner import SessionOwner
from trio_vmcp._session.row import SessionRow

Steps: TypeAlias = Callable[[History], Awaitable[None]]
Plant: TypeAlias = Callable[[pytest.MonkeyPatch], None]


async def use_elsewhere_after_sleep(history: History) -> None:
    await history.create()
    await trio.sleep(SLEEP + 1)
    assert history.world.instances[0].manager.statistics.hibernated
    history.left.add(0)  # the step uses another instance
    await history.use()
    history.left.clear()


async def update_on_both(history: History) -> None:
    """The first copy has the attributes of before when it writes its next change."""
    await history.create()
    (story,) = history.stories
    await history.update_on(0, story)
    await trio.sleep(1)
    await history.update_on(1, story)
    session = await history.world.instances[0].manager.get(story.session.id, caller=story.owner)
    await session.add_backend(history.world.configured[1])
    await trio.sleep(1)
    await history.check_attributes(story)


async def die_in_an_update(history: History) -> None:
    await history.create()
    (story,) = history.stories
    slow_down(history.world.instances[0].way)
    async with trio.open_nursery() as updates:
        updates.start_soon(history.update_before_death, 0, story)
        await trio.sleep(SLOW / 2)
        history.left.add(0)
        await history.world.instances[0].die()
    await history.use()


async def lose_the_answer_to_an_opening(history: History) -> None:
    lose_answers(history.world.way, away, WRITES)
    with pytest.raises(StorageError):
        await history.create()
    history.world.way.after.clear()


async def steal_elsewhere(history: History) -> None:
    await history.create()
    history.left.add(0)  # the step uses another instance
    await history.steal()
    history.left.clear()


async def end_elsewhere(history: History) -> None:
    """Of three instances, two hear of it."""
    await history.create()
    (story,) = history.stories
    for instance in history.world.instances:
        await instance.manager.get(story.session.id, caller=story.owner)
    story.asked_to_end = True
    await history.world.instances[0].manager.terminate(story.session.id, caller=story.owner)
    await history.note_end(story)
    await trio.sleep(CHECK + 2 * STORAGE + 1)
    for _ in range(5):
        await history.use()


def keep_old_attributes(patch: pytest.MonkeyPatch) -> None:
    read = SessionRow._read

    async def read_all_but_attributes(self: SessionRow) -> bool:
        before = self._attributes
        found = await read(self)
        self._attributes = before
        return found

    patch.setattr(SessionRow, "_read", read_all_but_attributes)


def acknowledge_early(patch: pytest.MonkeyPatch) -> None:
    async def set_attributes(self: SessionRow, attributes: Mapping[str, str]) -> None:
        with trio.move_on_after(0):  # cancelled before it is on its way: not written
            await self._attribute_changes.wait_written(attributes, lambda: self._changed.set())

    patch.setattr(SessionRow, "set_attributes", set_attributes)


def leave_rows(patch: pytest.MonkeyPatch) -> None:
    async def delete_once(self: SessionRow) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(SessionRow, "_delete_once", delete_once)


def serve_strangers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("trio_vmcp.factory.is_bound_to", lambda *_: True)


def terminate_sleepers(patch: pytest.MonkeyPatch) -> None:
    request_close = SessionOwner.request_close

    def request_end(self: SessionOwner, *, cause: Cause = Cause.LEFT, terminate: bool, **options: Any) -> None:
        request_close(self, cause=cause, terminate=terminate or cause is Cause.HIBERNATION, **options)

    patch.setattr(SessionOwner, "request_close", request_end)


def ignore_ends(patch: pytest.MonkeyPatch) -> None:
    async def check(self: SessionRow) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(SessionRow, "_check", check)


DEFECTS: dict[str, tuple[Plant, Steps]] = {
    "hibernation ends the session": (terminate_sleepers, use_elsewhere_after_sleep),
    "a stale writer sets attributes of before": (keep_old_attributes, update_on_both),
    "an update is acknowledged before it is written": (acknowledge_early, die_in_an_update),
    "an opening without an answer leaves its row": (leave_rows, lose_the_answer_to_an_opening),
    "another caller gets a session": (serve_strangers, steal_elsewhere),
    "copies do not hear of an end elsewhere": (ignore_ends, end_elsewhere),
}


async def play(steps: Steps) -> None:
    """As `run_managers` does, over three instances; all steps begin on the first one, unless it was left."""
    limits = ManagerSettings(hibernate_after=SLEEP)
    backends = {"a": echo_backend(), "b": echo_backend()}
    fields: Any = {"idle_timeout": 1e5, "ttl": 1e5, "on_exit": "suspend", "storage_timeout": STORAGE}
    async with managed(3, backends, limits=limits, **fields) as world:
        await world.manager.set_backends(world.configured[:1])
        history = History(world, FirstChoice())
        await steps(history)
        for story in history.stories:
            story.asked_to_end = True
            await history.end(story)
        await trio.sleep(CHECK + STORAGE)
        world.leaves_sessions = history.has_died


class FirstChoice(random.Random):
    def choice(self, seq: Any) -> Any:
        return seq[0]


@pytest.mark.parametrize(("plant", "steps"), DEFECTS.values(), ids=DEFECTS)
def test_a_planted_defect_is_noticed(plant: Plant, steps: Steps) -> None:
    """And without it, the same history breaks no promise."""
    run = partial(trio.run, play, steps)
    run(clock=MockClock(autojump_threshold=0))
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.RaisesGroup(AssertionError, allow_unwrapped=True, flatten_subgroups=True):
            run(clock=MockClock(autojump_threshold=0))
