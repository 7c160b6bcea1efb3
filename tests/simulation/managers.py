"""Histories of two and three managers over one storage: callers create sessions, find them elsewhere, call, set their
attributes, terminate and suspend, while storages are away, slow or lose their answers, backends change, and an instance
is left or dies, also in the middle of an update.

Nothing that was acknowledged is lost, nothing that was terminated comes back, no stranger is served, the last
attributes stand, caps hold, and at the end nothing is left: no task, no row, and no session of a backend.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

import attrs
import trio
from support.deterministic import ending, seeded
from support.harness import ALICE, BOB, echo_backend
from support.instances import OPERATIONS, away, cut, stuck
from support.managers import SLEEP, Managed, managed
from support.scripted_storage import ScriptedStorage
from trio.testing import MockClock

from trio_vmcp import (
    BackendError,
    Identity,
    ManagerSettings,
    Session,
    SessionClosed,
    SessionLimitReached,
    SessionNotFound,
    SessionState,
    StorageError,
)

__all__ = ["run_managers"]

CAP = 4
CHECK = 5.0  # s, storage_check_interval
STORAGE = 5.0  # s, storage_timeout
PAUSES = (0.0, 0.0, 0.1, 1.0, 4.0, 7.0, SLEEP + 1)
WRITES = tuple(operation for operation in OPERATIONS if operation != "load")
SLOW = 0.4  # s, of a slow storage before an operation and after it
CALLERS, STEPS = 4, 10


def lose_answers(way: ScriptedStorage, how: Callable[[], Awaitable[object]], operations: Sequence[str]) -> None:
    """The operations have their effect."""
    way.after.update(dict.fromkeys(operations, how))


def slow_down(way: ScriptedStorage) -> None:
    for hooks in (way.before, way.after):
        hooks.update(dict.fromkeys(OPERATIONS, partial(trio.sleep, SLOW)))


@attrs.define(eq=False)
class Write:
    """One `set_attributes`.

    Attributes:
        over_at: When it returned or failed.
    """

    value: str
    began_at: float
    over_at: float = math.inf
    is_acknowledged: bool = False


@attrs.define(eq=False)
class Story:
    """One session.

    Attributes:
        asked_to_end: Its end was asked for, at some instance, whether or not that has been heard.
        over_at: Its row was gone at this time, after its end was asked for.
        writes: Of its attributes; the first stands for the opening, with no attributes.
    """

    session: Session
    owner: Identity | None
    asked_to_end: bool = False
    over_at: float | None = None
    writes: list[Write] = attrs.field(factory=lambda: [Write("", -math.inf, -math.inf, is_acknowledged=True)])

    def may_have(self, value: str) -> bool:
        """Whether a row may have this value now: no acknowledged write has begun after that of the value was over."""
        (write,) = (write for write in self.writes if write.value == value)
        now = trio.current_time()
        return not any(
            other.is_acknowledged and other.began_at > write.over_at and other.over_at < now for other in self.writes
        )


@attrs.define(eq=False)
class History:
    """What several callers do at the same time. A broken promise is an AssertionError."""

    world: Managed
    chance: random.Random
    stories: list[Story] = attrs.field(factory=list)
    left: set[int] = attrs.field(factory=set)
    back_at: dict[int, float] = attrs.field(factory=lambda: defaultdict(lambda: -math.inf))  # the way to the storage
    has_died: bool = False
    has_lost_rows: bool = False
    done: int = 0

    async def run(self) -> None:
        async with trio.open_nursery() as callers:
            for _ in range(CALLERS):
                callers.start_soon(self.act)
        for way in (instance.way for instance in self.world.instances):
            way.before.clear()
            way.after.clear()
        await trio.sleep(70)  # what was remembered is tried again, and a storage that was stuck has its say
        for story in self.stories:
            await self.end(story)
        await trio.sleep(10)

    async def act(self) -> None:
        steps: list[Callable[[], Awaitable[object]]] = [
            *(self.create, self.create, self.use, self.use, self.use, self.use, self.steal),
            *(self.update, self.update, self.terminate, self.aclose, self.suspend),
            *(self.trouble, self.trouble, self.change, self.leave),
        ]
        for _ in range(STEPS):
            await trio.sleep(self.chance.choice(PAUSES))
            for instance in self.world.instances:
                statistics = instance.manager.statistics
                assert statistics.live + statistics.opening <= CAP
            with suppress(SessionLimitReached, StorageError):
                await self.chance.choice(steps)()
            self.done += 1

    # --- steps

    def story(self) -> Story | None:
        return self.chance.choice(self.stories) if self.stories else None

    def staying(self) -> int:
        return self.chance.choice([number for number in range(len(self.world.instances)) if number not in self.left])

    async def create(self) -> None:
        number, owner = self.staying(), self.chance.choice((ALICE, BOB, None))
        try:
            session = await self.world.instances[number].manager.create(identity=owner)
        except SessionClosed:
            assert number in self.left
        else:
            self.stories.append(Story(session, owner))

    async def use(self) -> None:
        """An owner finds its session wherever it asks, with the backend's state."""
        if (story := self.story()) is None:
            return
        number, began = self.staying(), trio.current_time()
        try:
            session = await self.world.instances[number].manager.get(story.session.id, caller=story.owner)
            assert story.over_at is None or began < max(story.over_at, self.back_at[number]) + CHECK + 2 * STORAGE
            result = await session.call_tool("a_echo")
        except SessionNotFound:
            assert story.asked_to_end
        except SessionClosed:  # it was closed, or the manager was left, in between
            return
        except BackendError:
            assert number in self.left
        else:
            assert story.asked_to_end or not result.backend_state_lost
            story.session = session
        await self.check_attributes(story)

    async def update(self) -> None:
        """Set the attributes of a session, on any instance. The latest ones stand."""
        if (story := self.story()) is not None:
            await self.update_on(self.staying(), story)

    async def update_on(self, number: int, story: Story) -> None:
        try:
            session = await self.world.instances[number].manager.get(story.session.id, caller=story.owner)
        except SessionNotFound:
            assert story.asked_to_end
            return
        except SessionClosed:
            assert number in self.left
            return
        write = Write(str(len(story.writes)), trio.current_time())
        story.writes.append(write)
        try:
            await session.set_attributes({"value": write.value})
            write.is_acknowledged = True
        except SessionClosed:
            return
        finally:
            write.over_at = trio.current_time()
        await self.check_attributes(story)

    async def check_attributes(self, story: Story) -> None:
        if (row := await self.world.row(story.session.id)) is not None:
            assert story.may_have(row.attributes.get("value", "")), (row.attributes, story.writes)

    async def steal(self) -> None:
        """No stranger gets a session, or keeps its owner from it."""
        if (story := self.story()) is None:
            return
        thief = self.chance.choice([identity for identity in (ALICE, BOB, None) if identity != story.owner])
        manager = self.world.instances[self.staying()].manager
        ask = self.chance.choice((manager.get, manager.terminate))
        try:
            await ask(story.session.id, caller=thief)
        except (SessionNotFound, StorageError, SessionClosed):
            return
        raise AssertionError(f"{thief} was served the session of {story.owner}")

    async def terminate(self) -> None:
        if (story := self.story()) is not None:
            story.asked_to_end = True
            await self.end(story)

    async def end(self, story: Story) -> None:
        """Terminate it where this is still possible."""
        try:
            await self.world.instances[self.staying()].manager.terminate(story.session.id, caller=story.owner)
        except (SessionNotFound, SessionClosed):
            assert story.asked_to_end or self.left
        await self.note_end(story)

    async def aclose(self) -> None:
        """Of what the latest `get` has given: it may be CLOSED by now, and then this ends nothing."""
        if (story := self.story()) is not None:
            story.asked_to_end = True
            await story.session.aclose()
            await self.note_end(story)

    async def note_end(self, story: Story) -> None:
        if story.over_at is None and await self.world.row(story.session.id) is None:
            story.over_at = trio.current_time()

    async def suspend(self) -> None:
        if (story := self.story()) is not None:
            session = story.session
            await session.suspend()
            assert SessionState.CLOSED is session.state

    async def trouble(self) -> None:
        """One instance loses its way to the storage for a while, or only the answers; or the storage is slow."""
        number = self.staying()
        way = self.world.instances[number].way
        self.back_at[number] = math.inf
        match self.chance.choice(("away", "answers", "slow")):
            case "away":
                cut(way, self.chance.choice((away, trio.sleep_forever, stuck)))
            case "answers":
                operations = self.chance.choice((WRITES, OPERATIONS))
                self.has_lost_rows |= operations is OPERATIONS
                lose_answers(way, self.chance.choice((away, trio.sleep_forever, stuck)), operations)
            case _:
                slow_down(way)
        await trio.sleep(self.chance.choice((0.5, 8.0, 40.0)))
        if number not in self.left:
            way.before.clear()
            way.after.clear()
        self.back_at[number] = trio.current_time() + 30  # for what is stuck

    async def change(self) -> None:
        """Another backend comes or goes; the one that is called stays."""
        manager = self.world.instances[self.staying()].manager
        try:
            await manager.set_backends(self.world.configured[: self.chance.choice((1, 2))])
        except SessionClosed:
            return

    async def leave(self) -> None:
        """At most one instance is left, and its sessions are suspended; or it dies."""
        if self.left or self.chance.random() >= 0.3:
            return
        number, how = self.staying(), self.chance.choice(("leave", "die", "die in an update"))
        self.left.add(number)
        instance = self.world.instances[number]
        if how == "leave":
            await instance.leave()
            return
        self.has_died = True
        story = self.story()
        if story is None or how == "die":
            await instance.die()
            return
        slow_down(instance.way)
        async with trio.open_nursery() as updates:
            updates.start_soon(self.update_before_death, number, story)
            await trio.sleep(self.chance.choice((0.0, 0.5, 1.0, 1.5)) * SLOW)
            await instance.die()

    async def update_before_death(self, number: int, story: Story) -> None:
        with suppress(SessionLimitReached, StorageError):
            await self.update_on(number, story)


def run_managers(seed: int) -> int:
    """Run the history of a seed, and return how many steps it had. A broken promise is an exception."""

    async def main() -> None:
        chance = random.Random(seed)
        limits = ManagerSettings(max_sessions=CAP, hibernate_after=chance.choice((SLEEP, 10.0, 1e5)))
        backends = {"a": echo_backend(chance.choice(("legacy", "modern"))), "b": echo_backend()}
        fields = {"idle_timeout": 1e5, "ttl": 1e5, "on_exit": "suspend", "storage_timeout": STORAGE}
        async with managed(chance.choice((2, 3)), backends, limits=limits, **fields) as world:  # type: ignore[arg-type]
            history = History(world, chance)
            await history.run()
            assert CALLERS * STEPS == history.done
            assert [] == [story for story in history.stories if await world.row(story.session.id) is not None]
            # Of openings: the process died, or heard neither of its create nor what there was then.
            world.leaves_rows = history.has_died or history.has_lost_rows
            world.leaves_sessions = True  # of "b", at managers that no longer have it
        assert history.has_died or {} == world.backend.sessions  # a process that dies may have begun one

    with seeded(seed):
        trio.run(main, clock=ending(MockClock(autojump_threshold=0), longest=1e5))
    return CALLERS * STEPS
