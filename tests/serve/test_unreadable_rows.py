"""Clients whose sessions are stored in rows that this release cannot read: they hear what clients of unknown sessions
hear, and open others. Where the row cannot be fetched they keep their sessions, and try again.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing

import pytest
import trio
from support.front import LegacyClient, front_world
from support.front_clients import EVERY_CARRIER, front_client
from support.harness import echo_backend
from support.scripted_storage import ScriptedStorage
from support.spoiled import EVERY_SPOILED, Spoil, spoil
from support.sqlite_storage import SqliteStorage
from trio.testing import MockClock

from trio_vmcp import (
    FactorySettings,
    LocalStorage,
    ManagerSettings,
    SessionManager,
    Storage,
    StorageError,
    metadata_from_json,
)

SHARED = FactorySettings(identity_keys=(b"k" * 32,), on_exit="suspend")
SLEEPY = ManagerSettings(hibernate_after=60)
ECHO = {"name": "a_echo", "arguments": {}}


@pytest.fixture(params=["local", "sqlite"])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    """Empty."""
    if request.param == "local":
        yield LocalStorage(1800.0)
        return
    with closing(SqliteStorage(":memory:", 1800.0)) as found:
        yield found


@asynccontextmanager
async def moved(storage: Storage, spoiled: Spoil) -> AsyncIterator[LegacyClient]:
    """A client whose session was suspended by another process, and whose row was spoiled then."""
    backend = echo_backend()
    async with front_world(backend, storage=storage, factory=SHARED) as one:
        client = await one.initialize()
    spoil(storage, client.session_id, spoiled)
    async with front_world(backend, storage=storage, factory=SHARED) as two:
        yield LegacyClient(two, client.session_id, {})


@EVERY_SPOILED
async def test_a_client_opens_another_session(
    spoiled: Spoil, storage: Storage, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """404 (2025-11-25, transports, session management), for each verb, as for an unknown id, and after the same time.
    The log says once why, without the id.
    """
    with caplog.at_level(logging.WARNING):
        async with moved(storage, spoiled) as client:
            unknown = LegacyClient(client.world, "unknown", {})
            began = trio.current_time()
            expected = await unknown.ask("ping")
            took = trio.current_time() - began
            for _ in range(3):
                began = trio.current_time()
                refused = await client.ask("ping")
                assert (404, expected.answer["error"]) == (refused.status, refused.answer["error"])
                assert took == pytest.approx(trio.current_time() - began)
            listening = client.listen()
            await listening.done.wait()
            assert [404, 404] == [listening.status, (await client.delete()).status]
            another = await client.world.initialize()
            assert "result" in (await another.ask("tools/call", ECHO)).answer
    told = [record.getMessage() for record in caplog.records if "stored row" in record.getMessage()]
    assert 1 == len(told), told
    assert client.session_id not in caplog.text


@pytest.mark.parametrize("how", [StorageError("away"), OSError("no route")], ids=["StorageError", "OSError"])
async def test_a_client_keeps_a_session_whose_row_cannot_be_fetched(
    how: Exception, storage: Storage, autojump_clock: MockClock
) -> None:
    """503, and the same session once the storage is back."""

    async def fail() -> None:
        raise how

    scripted = ScriptedStorage(storage)
    async with front_world(storage=scripted, factory=SHARED) as one:
        client = await one.initialize()
    async with front_world(storage=scripted, factory=SHARED) as two:
        client = LegacyClient(two, client.session_id, {})
        scripted.before["load"] = fail
        assert 503 == (await client.ask("ping")).status
        scripted.before.clear()
        assert 200 == (await client.ask("ping")).status


@pytest.mark.parametrize("error", [StorageError("bad row"), KeyError("row")], ids=["StorageError", "KeyError"])
@pytest.mark.parametrize("is_caused", [True, False], ids=["caused", "not caused"])
async def test_a_storage_with_an_error_of_its_own_for_such_a_row(
    error: Exception, is_caused: bool, autojump_clock: MockClock
) -> None:
    """404, if it was raised from the error of `metadata_from_json`. From the error alone it cannot be told that the
    storage is not away: 503.
    """

    async def fail() -> None:
        try:
            metadata_from_json(b"{")
        except StorageError as unreadable:
            raise error from (unreadable if is_caused else None)

    scripted = ScriptedStorage()
    async with front_world(storage=scripted, factory=SHARED) as one:
        client = await one.initialize()
    async with front_world(storage=scripted, factory=SHARED) as two:
        client = LegacyClient(two, client.session_id, {})
        scripted.before["load"] = fail
        assert (404 if is_caused else 503) == (await client.ask("ping")).status


async def test_a_session_that_sleeps_in_such_a_row_does_not_wake(storage: Storage, autojump_clock: MockClock) -> None:
    """Its client of the handshake era opens another. Over stdio such a session does not sleep."""
    async with front_world(storage=storage, limits=SLEEPY, factory=SHARED) as world:
        client = await world.initialize()
        await spoil_asleep(world.manager, storage)
        assert 404 == (await client.ask("ping")).status
        assert {} == await (await world.initialize()).result("ping")


@EVERY_CARRIER
async def test_requests_that_name_no_session_run_on_another(
    carrier: str, storage: Storage, autojump_clock: MockClock
) -> None:
    """The session that clients of the stateless era share sleeps in such a row: a new one is made, once."""
    async with front_client(carrier, "modern", storage=storage, limits=SLEEPY, factory=SHARED) as client:
        await client.result("tools/call", ECHO)
        await spoil_asleep(client.world.manager, storage)
        for number in range(2, 5):
            await client.ask("tools/call", ECHO, number)
        for number in range(2, 5):
            assert "result" in await client.response(number)
        assert 1 == len(client.world.manager.live_sessions)


async def spoil_asleep(manager: SessionManager, storage: Storage) -> None:
    """Spoil the row of the only session, once it sleeps."""
    (session,) = manager.live_sessions
    await trio.sleep(120)
    assert 1 == manager.statistics.hibernated
    spoil(storage, session.id, lambda data: b"{")
