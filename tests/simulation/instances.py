"""Two and three instances over one storage: a session moves from one to the next, while the way of each instance
to the storage is cut, slow, frozen, or loses its answers.

A seed becomes a run in virtual time; its log has each operation that the storage has done. The checks look at the log.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

import attrs
import trio
from support.deterministic import seeded
from support.plain_connector import PlainConnector, plain_backends
from support.scripted_storage import ScriptedStorage
from trio.testing import MockClock

from trio_vmcp import (
    FactorySettings,
    LocalStorage,
    Session,
    SessionFactory,
    SessionMetadata,
    SessionNotFound,
    SessionState,
    StorageError,
    VmcpError,
    open_session_factory,
)

__all__ = ["run_instances"]

TTL = 60.0
MOST_STEPS = 14
OPERATIONS = ("create", "load", "replace", "touch", "delete")


@attrs.define(eq=False)
class Way(ScriptedStorage):
    """One instance's way to the storage."""

    number: int = 0
    world: Any = None

    async def create(self, metadata: SessionMetadata) -> None:
        await self._do("create", lambda: self._create(metadata))

    async def _create(self, metadata: SessionMetadata) -> None:
        await self.inner.create(metadata)
        self.world.note_written("create", self.number, metadata)

    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        await self._do("replace", lambda: self._replace(metadata, expected_version))

    async def _replace(self, metadata: SessionMetadata, expected_version: int) -> None:
        await self.inner.replace(metadata, expected_version=expected_version)
        self.world.note_written("replace", self.number, metadata)

    async def delete(self, session_id: str, *, expected_version: int | None = None) -> None:
        await self._do("delete", lambda: self._delete(session_id, expected_version))

    async def _delete(self, session_id: str, expected_version: int | None) -> None:
        had_row = await self.world.row() is not None
        await self.inner.delete(session_id, expected_version=expected_version)
        if had_row:
            self.world.note_deleted(self.number)


@attrs.define(eq=False)
class InstancesWorld:
    seed: int
    draw: random.Random = attrs.field(init=False)
    storage: LocalStorage = attrs.field(factory=lambda: LocalStorage(TTL), init=False)
    factories: list[SessionFactory] = attrs.field(factory=list, init=False)
    ways: list[Way] = attrs.field(factory=list, init=False)
    copies: dict[int, Session] = attrs.field(factory=dict, init=False)
    leaving: list[trio.Event] = attrs.field(factory=list, init=False)
    current: int = attrs.field(default=0, init=False)
    asked: bool = attrs.field(default=False, init=False)  # for the end of the session
    is_terminated: bool = attrs.field(default=False, init=False)
    used_at: float = attrs.field(default=0.0, init=False)
    is_unnoted: bool = attrs.field(default=False, init=False)  # the latest use may not have reached the storage
    mark: tuple[int, datetime] | None = attrs.field(default=None, init=False)  # the latest that arrived, and whose
    idle_timeout: float = attrs.field(init=False)  # s, of all instances
    known: frozenset[str] = attrs.field(default=frozenset(), init=False)  # the backends that the row has named
    added: int = attrs.field(default=0, init=False)
    violations: list[str] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.idle_timeout = self.draw.choice((100, 10_000))

    # --- checks

    def note_written(self, operation: str, instance: int, row: SessionMetadata) -> None:
        names = frozenset(record.backend_id for record in row.backends)
        if self.is_terminated:
            self.violations.append(f"a terminated session comes back, by {operation}, at {trio.current_time()}")
        if operation == "replace" and not self.known <= names:
            self.violations.append(f"a write undoes another's: {sorted(self.known - names)}, at {trio.current_time()}")
        self.known = names
        if self.mark is None or self.mark[1] != row.used_at:
            self.mark = instance, row.used_at

    def note_deleted(self, instance: int) -> None:
        self.is_terminated = True
        copy = self.copies.get(self.current)
        if instance == self.current or self.asked or copy is None or copy.state is not SessionState.OPEN:
            return
        assert self.mark is not None
        is_noted = not self.is_unnoted and trio.current_time() > self.used_at + TTL / 4
        if self.mark[0] != instance or is_noted:
            self.violations.append(f"a live session is ended by {instance}, which it left, at {trio.current_time()}")

    async def check_copies(self) -> None:
        """After all troubles: an open copy has the row as it is, and without a row there is none."""
        row = await self.row()
        for number, copy in self.copies.items():
            if copy.state is SessionState.OPEN and copy.metadata != row:
                self.violations.append(f"the copy of {number} does not know what the row says")

    async def row(self) -> SessionMetadata | None:
        with suppress(SessionNotFound):
            return await self.storage.load("one")
        return None

    # --- the run

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(self.draw.choice((2, 3))):
                await nursery.start(self._instance, number)
            if self.draw.random() < 0.2:
                await self._race()
            else:
                self.copies[0] = await self.factories[0].make_session(plain_backends(1), session_id="one")
            steps: list[Callable[[], Awaitable[None]]] = [
                self._call,
                self._call,
                self._move,
                self._move,
                self._trouble,
                self._trouble,
                self._add,
                self._add,
                self._leave,
                self._terminate,
            ]
            for _ in range(self.draw.randrange(3, MOST_STEPS) if self.copies else 0):
                with suppress(VmcpError, ValueError):
                    await self.draw.choice(steps)()
                await trio.sleep(self.draw.choice((0, 1, 10, 25, TTL, 2.5 * TTL)))
            if self.copies and self.draw.random() < 0.3:
                await self._terminate_during_outage()
            self._heal()
            await trio.sleep(2 * TTL)
            await self.check_copies()
            for leaving in self.leaving:
                leaving.set()

    async def _race(self) -> None:
        """Two instances open a session of this id at once, and one of them may not hear what became of its create."""
        self.ways[1].before["create"] = self.draw.choice((_slow, _frozen, trio.lowlevel.checkpoint))

        async def make(number: int) -> None:
            await trio.sleep(self.draw.choice((0, 1)))
            with suppress(VmcpError):
                self.copies[number] = await self.factories[number].make_session(plain_backends(1), session_id="one")
                self.current = number

        async with trio.open_nursery() as nursery:
            for number in (0, 1):
                nursery.start_soon(make, number)
        if len(self.copies) > 1:
            self.violations.append("two instances have opened a session of one id")

    async def _terminate_during_outage(self) -> None:
        """The instances that the session has left do not hear of its end, and its tombstone ends meanwhile."""
        self._heal()
        for number in self.copies.keys() - {self.current}:
            self.ways[number].before.update(dict.fromkeys(OPERATIONS, _cut))
        await self._terminate()
        await trio.sleep(self.draw.choice((0.5, 1.5, 2.5)) * TTL)

    def _heal(self) -> None:
        for way in self.ways:
            way.before.clear()
            way.after.clear()

    async def _instance(self, number: int, task_status: trio.TaskStatus[None]) -> None:
        way = Way(self.storage, number=number, world=self)
        settings = FactorySettings(
            identity_keys=(b"k",), idle_timeout=self.idle_timeout, drain_timeout=1, storage_timeout=5
        )
        async with open_session_factory(storage=way, connector=PlainConnector(), settings=settings) as factory:
            self.ways.append(way)
            self.factories.append(factory)
            self.leaving.append(trio.Event())
            task_status.started()
            await self.leaving[number].wait()

    async def _call(self) -> None:
        way = self.ways[self.current]
        self.used_at, self.is_unnoted = trio.current_time(), bool(way.before or way.after)
        await self.copies[self.current].call_tool("b0_echo")

    async def _add(self) -> None:
        """From any live copy, whichever the client uses."""
        self.added += 1
        copy = self.copies[self.draw.choice(sorted(self.copies))]
        (backend,) = plain_backends(1)
        await copy.add_backend(attrs.evolve(backend, id=f"x{self.added}"))

    async def _move(self) -> None:
        """To any instance: one that never had the session, one that has a live copy, one whose copy is closed."""
        others = [number for number, leaving in enumerate(self.leaving) if not leaving.is_set()]
        if self.asked or not (others := [number for number in others if number != self.current]):
            return
        number = self.draw.choice(others)
        copy = self.copies.get(number)
        if copy is None or copy.state is SessionState.CLOSED:
            self.copies[number] = await self.factories[number].restore_session("one", plain_backends(1))
            self.current, self.used_at, self.is_unnoted = number, trio.current_time(), False
        elif copy.state is SessionState.OPEN:
            self.current = number
            await self._call()

    async def _trouble(self) -> None:
        self._disturb(self.draw.choice(self.ways))

    def _disturb(self, way: Way) -> None:
        how = self.draw.choice(("cut", "slow", "frozen", "lost", "heal"))
        way.before.clear()
        way.after.clear()
        if how == "cut":
            way.before.update(dict.fromkeys(OPERATIONS, _cut))
        elif how == "slow":
            way.before.update(dict.fromkeys(OPERATIONS, _slow))
        elif how == "frozen":
            way.before.update(dict.fromkeys(OPERATIONS, _frozen))
        elif how == "lost":
            way.after.update(dict.fromkeys(("create", *OPERATIONS[2:]), _cut))

    async def _leave(self) -> None:
        """Leave the factory of an instance that the session has left."""
        left = [number for number in sorted(self.copies) if number != self.current]
        if left:
            self.leaving[self.draw.choice(left)].set()

    async def _terminate(self) -> None:
        self.asked = True
        await self.copies[self.current].aclose()


async def _cut() -> None:
    await trio.lowlevel.checkpoint()
    raise StorageError("the storage is away")


async def _slow() -> None:
    await trio.sleep(7)


async def _frozen() -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep(20)


def run_instances(seed: int) -> list[str]:
    """The promises that this run broke."""
    world = InstancesWorld(seed)
    with seeded(seed):
        trio.run(world.run, clock=MockClock(autojump_threshold=0))
    return world.violations
