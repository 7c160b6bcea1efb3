"""Storages on virtual time against a model of a few lines, in random scripts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import attrs
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from support.sqlite_storage import open_sqlite_storage
from support.stored import METADATA, open_local_storage
from trio.testing import MockClock

from trio_vmcp import MetadataConflict, SessionExists, SessionNotFound, Storage, VmcpError

TTL = 10.0

OpenStorage = Callable[[float], AbstractAsyncContextManager[Storage]]
Step = tuple[str, str, int, bool]  # operation, id, version, whether that is expected; or "sleep", "", s, False


@attrs.define
class Model:
    """A model of the storage: for each id its expiry and version; None: deleted."""

    lives: dict[str, tuple[float, int | None]] = attrs.field(factory=dict)

    def apply(self, step: str, session_id: str, version: int, fenced: bool, now: float) -> object:
        """The version that was read, None for an operation without a result, or the type of the error."""
        until, there = self.lives.get(session_id, (0.0, None))
        alive = now < until
        if step == "create":
            if alive:
                return SessionExists
            self.lives[session_id] = (now + TTL, version)
        elif step == "delete" and (not alive or there is None):
            if not alive:
                self.lives[session_id] = (now + TTL, None)
        elif not alive or there is None:
            return SessionNotFound
        elif step == "load":
            return there
        elif there != version and (fenced or step == "replace"):
            return MetadataConflict
        elif step == "delete":
            self.lives[session_id] = (now + TTL, None)
        else:
            self.lives[session_id] = (now + TTL, there + (step == "replace"))
        return None


async def perform(storage: Storage, step: str, session_id: str, version: int, fenced: bool) -> object:
    """The same operation on a storage."""
    session = attrs.evolve(METADATA, session_id=session_id, version=version)
    try:
        if step == "create":
            await storage.create(session)
        elif step == "load":
            return (await storage.load(session_id)).version
        elif step == "replace":
            await storage.replace(attrs.evolve(session, version=version + 1), expected_version=version)
        elif step == "touch":
            await storage.touch(session_id, expected_version=version if fenced else None)
        else:
            await storage.delete(session_id, expected_version=version if fenced else None)
    except VmcpError as exc:
        return type(exc)
    return None


async def replay(open_storage: OpenStorage, script: list[Step]) -> None:
    """Every step of the script has the same outcome on model and storage."""
    model, start = Model(), trio.current_time()
    async with open_storage(TTL) as storage:
        for step, session_id, number, fenced in script:
            if step == "sleep":
                await trio.sleep(number)
            else:
                now = trio.current_time() - start
                expected = model.apply(step, session_id, number, fenced, now)
                found = await perform(storage, step, session_id, number, fenced)
                assert expected == found, (step, session_id, number, fenced, now)


class StorageMachine(RuleBasedStateMachine):
    """Rules write a script; teardown replays it on a fresh, deterministic loop, so it shrinks."""

    def __init__(self) -> None:
        super().__init__()
        self.script: list[Step] = []

    @rule(
        step=st.sampled_from(["create", "load", "replace", "touch", "delete"]),
        session_id=st.sampled_from(["a", "b"]),
        version=st.integers(0, 2),
        fenced=st.booleans(),
    )
    def operate(self, step: str, session_id: str, version: int, fenced: bool) -> None:
        self.script.append((step, session_id, version, fenced))

    @rule(seconds=st.integers(1, int(TTL) + 1))
    def sleep(self, seconds: int) -> None:
        self.script.append(("sleep", "", seconds, False))

    def teardown(self) -> None:
        for open_storage in (open_local_storage, open_sqlite_storage):
            trio.run(replay, open_storage, self.script, clock=MockClock(autojump_threshold=0))


TestStorageMachine = StorageMachine.TestCase
TestStorageMachine.settings = settings(max_examples=15, stateful_step_count=25)  # more would take over a second
