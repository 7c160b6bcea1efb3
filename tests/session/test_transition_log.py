"""A backend that goes away and comes back leaves records in the log."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock

from trio_vmcp import Backend, BackendError, Identity, LocalStorage, open_session_factory
from trio_vmcp.settings import FactorySettings
from trio_vmcp.storage import Storage
from trio_vmcp.testing import ScriptedBackend, open_memory_network


async def test_an_outage_is_logged(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """WARNING when the backend leaves READY, INFO when it is back, with the session's tag and the backend's id."""
    caplog.set_level(logging.INFO, "trio_vmcp.session")
    backend = ScriptedBackend(era="modern")
    backend.add_tool("now")
    async with open_memory_network() as network, open_session_factory(transport=network.transport()) as factory:
        session = await factory.make_session([Backend(id="t", url=network.attach("t.test", backend))])
        caplog.clear()
        backend.crash()
        for _ in range(6):
            with pytest.raises(BackendError):
                await session.call_tool("t_now")
        backend.restart()
        await trio.sleep(2)
        await session.call_tool("t_now")
        records = [record for record in caplog.records if "'t'" in record.getMessage()]
    assert [logging.WARNING, logging.INFO] == [record.levelno for record in records]
    assert ["t", "t"] == [record.__dict__["backend_id"] for record in records]
    assert all(record.__dict__["session"] in record.getMessage() for record in records)


class _OfAUsers(LocalStorage):
    """A storage that may outlive the process, for all the factory knows."""


@pytest.mark.parametrize(
    ("storage", "keys", "subjects", "warnings"),
    [
        (_OfAUsers(), (), ("alice", "bob"), 1),
        (_OfAUsers(), (), (None,), 0),
        (_OfAUsers(), (b"k" * 32,), ("alice",), 0),
        (LocalStorage(), (), ("alice",), 0),
        (None, (), ("alice",), 0),
    ],
)
async def test_a_random_key_in_a_lasting_storage_is_warned_about_once(
    storage: Storage | None,
    keys: tuple[bytes, ...],
    subjects: tuple[str | None, ...],
    warnings: int,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without `identity_keys` no other process can restore a session with an identity: one warning says so."""
    async with open_session_factory(storage=storage, settings=FactorySettings(identity_keys=keys)) as factory:
        for subject in subjects:
            identity = None if subject is None else Identity(issuer="i", subject=subject)
            await factory.make_session([], identity=identity)
    assert warnings == len([message for message in caplog.messages if "identity_keys" in message])
