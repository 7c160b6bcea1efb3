"""A storage that tells of other instances' writes: a session that was terminated elsewhere closes at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from support.harness import ALICE, echo_backend, state_of
from support.redis_server import serve_redis
from trio.testing import MockClock

from trio_vmcp import (
    Backend,
    FactorySettings,
    LocalStorage,
    SessionManager,
    SessionState,
    Storage,
    open_session_factory,
    open_session_manager,
)
from trio_vmcp.storage import NotifyingStorage
from trio_vmcp.storage.redis import open_redis_storage
from trio_vmcp.testing import open_memory_network

SETTINGS = FactorySettings(identity_keys=(b"k" * 32,), on_exit="suspend")


class TellingStorage(LocalStorage, NotifyingStorage):
    """Tells of every write at once, by the id."""

    def __init__(self, ttl: float) -> None:
        super().__init__(ttl)
        self.listeners: set[trio.MemorySendChannel[str]] = set()

    async def delete(self, session_id: str, *, expected_version: int | None = None) -> None:
        await super().delete(session_id, expected_version=expected_version)
        self.tell(session_id)

    def tell(self, session_id: str) -> None:
        for listener in self.listeners:
            listener.send_nowait(self.notice_tag(session_id))

    def notice_tag(self, session_id: str) -> str:
        return f"tag of {session_id}"

    @asynccontextmanager
    async def notices(self) -> AsyncIterator[trio.MemoryReceiveChannel[str]]:
        send, receive = trio.open_memory_channel[str](10)
        self.listeners.add(send)
        with send, receive:
            try:
                yield receive
            finally:
                self.listeners.discard(send)


@asynccontextmanager
async def manager_over(storage: Storage) -> AsyncIterator[SessionManager]:
    async with open_memory_network() as network:
        backends = [Backend(id="a", url=network.attach("a.test", echo_backend()), era="legacy")]
        async with open_session_factory(storage=storage, transport=network.transport(), settings=SETTINGS) as factory:
            async with open_session_manager(factory, backends) as manager:
                yield manager


async def test_a_session_terminated_elsewhere_closes_at_once(autojump_clock: MockClock) -> None:
    """With the storage's notice, and not at the next check."""
    storage = TellingStorage(60.0)
    async with manager_over(storage) as here, manager_over(storage) as there:
        session = await here.create(identity=ALICE)
        await there.get(session.id, caller=ALICE)
        began_at = trio.current_time()
        await there.terminate(session.id, caller=ALICE)
        await trio.testing.wait_all_tasks_blocked()
        assert SessionState.CLOSED is state_of(session)
        assert 0.5 > trio.current_time() - began_at


async def test_a_notice_alone_ends_nothing(autojump_clock: MockClock) -> None:
    """It is a hint: the row decides. Tags of sessions that are not live here are ignored."""
    storage = TellingStorage(60.0)
    async with manager_over(storage) as here:
        session = await here.create(identity=ALICE)
        storage.tell(session.id)
        storage.tell("another")
        await trio.sleep(10)
        assert SessionState.OPEN is state_of(session)
        await session.call_tool("a_echo")
        await session.aclose()
        storage.tell(session.id)
        await trio.sleep(10)
        assert 0 == here.statistics.live


class CrashingStorage(TellingStorage):
    """Raises at one place of the interface of notices."""

    def __init__(self, place: str) -> None:
        super().__init__(60.0)
        self.place = place

    def notice_tag(self, session_id: str) -> str:
        self.crash("a tag")
        return super().notice_tag(session_id)

    @asynccontextmanager
    async def notices(self) -> AsyncIterator[trio.MemoryReceiveChannel[str]]:
        self.crash("the beginning")
        async with super().notices() as receive, trio.open_nursery() as nursery:
            if self.place == "a task":
                nursery.start_soon(self.crash_later)
            if self.place == "the end":
                receive.close()
            try:
                yield receive
            except trio.ClosedResourceError:
                raise RuntimeError("secret-7") from None
            nursery.cancel_scope.cancel()

    async def crash_later(self) -> None:
        await trio.sleep(1)
        self.crash("a task")

    def crash(self, place: str) -> None:
        if self.place == place:
            raise RuntimeError("secret-7")


@pytest.mark.parametrize("place", ["a tag", "the beginning", "a task", "the end"])
async def test_a_storage_whose_notices_crash(
    place: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """That costs the notices alone: the next check of the row sees what they would have told."""
    storage = CrashingStorage(place)
    async with manager_over(storage) as here, manager_over(storage) as there:
        session = await here.create(identity=ALICE)
        await trio.sleep(2)
        await session.call_tool("a_echo")
        await there.terminate(session.id, caller=ALICE)
        await trio.sleep(6)
        assert SessionState.CLOSED is state_of(session)
        assert 0 == here.statistics.live
    assert "raises RuntimeError" in caplog.text
    assert "secret-7" not in caplog.text


async def test_over_redis(tmp_path: Path) -> None:
    """Within 0.5 s of real time."""
    with serve_redis(tmp_path) as server:
        async with open_redis_storage(server.url) as one, open_redis_storage(server.url) as two:
            async with manager_over(one) as here, manager_over(two) as there:
                session = await here.create(identity=ALICE)
                await there.get(session.id, caller=ALICE)
                while b":2" not in server.ask("PUBSUB", "NUMSUB", "trio_vmcp:session:notices"):  # noqa: ASYNC110
                    await trio.sleep(0.01)  # the other process sets no event
                with trio.fail_after(0.5):
                    await there.terminate(session.id, caller=ALICE)
                    while state_of(session) is not SessionState.CLOSED:  # noqa: ASYNC110
                        await trio.sleep(0.01)
