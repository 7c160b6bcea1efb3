"""Servers by other authors are killed and started again, and the session goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import httpx
import pytest
import trio
from interop.fleet import MORE_SERVERS, SERVERS, Running, Server, running
from interop.ledger import Ledger, open_ledger
from interop.outcomes import Outcomes
from interop.plain_requests import ping
from interop.views import PATIENCE

from trio_vmcp import (
    BackendState,
    BackendUnavailable,
    FactorySettings,
    Session,
    ToolResult,
    open_session_factory,
)

EVERY_SERVER = [pytest.param(server, id=server.name) for server in SERVERS]
MORE_TOO = [pytest.param(server, id=server.name) for server in (*SERVERS, *MORE_SERVERS)]
RESTARTS = 2
CALLERS = 2  # for each backend, all the time
SETTINGS = FactorySettings(reconnect_delay=0.1, reconnect_max_delay=1.0)
# s after a server listens: the longest pause between two attempts with its jitter, and time for the attempt itself on a
# busy machine.
BACK_WITHIN = SETTINGS.reconnect_max_delay * 1.2 + 5.0
RETRY_INTERVAL = 0.05  # s between calls while the server is away


@attrs.define(eq=False)
class Callers:
    """Calls without a pause, each with a page of its own, and their outcomes."""

    session: Session
    server: Server
    ledger: Ledger
    outcomes: Outcomes = attrs.field(factory=Outcomes, init=False)
    stopped: bool = attrs.field(default=False, init=False)

    async def call(self, backend_id: str) -> ToolResult:
        return await self.visit(backend_id, self.outcomes.new_name(backend_id))

    async def visit(self, backend_id: str, name: str, *, held: bool = False) -> ToolResult:
        tool, argument = self.server.visit
        arguments = {argument: self.ledger.url(name, held=held)}
        with self.outcomes.of(name):
            result = await self.session.call_tool(f"{backend_id}_{tool}", arguments, timeout=PATIENCE)
        assert not result.is_error, result.content
        return result

    async def until_answered(self, backend_id: str) -> ToolResult:
        while True:
            try:
                return await self.call(backend_id)
            except BackendUnavailable:
                await trio.sleep(RETRY_INTERVAL)

    async def go_on(self, backend_id: str) -> None:
        while not self.stopped:
            await self.until_answered(backend_id)

    async def be_killed(self, backend_id: str, name: str) -> None:
        """A call during which the server is killed."""
        with pytest.raises(BackendUnavailable) as caught:
            await self.visit(backend_id, name, held=True)
        assert caught.value.may_have_executed


@pytest.mark.parametrize("server", MORE_TOO)
async def test_a_session_outlives_its_servers(server: Server, tmp_path: Path) -> None:
    """Killed in the middle of calls and started again, a server is back in the session, in every era: under its names,
    within the backoff, and without a call executed twice.
    """
    with running(server, tmp_path / "log") as it:
        backends = [it.backend(era, era) for era in server.eras]
        async with (
            open_ledger() as ledger,
            open_session_factory(settings=SETTINGS) as factory,
            factory.open_session(backends) as session,
        ):
            assert () == session.failures
            names, before = [tool.name for tool in session.tools], session.metadata
            callers = Callers(session, server, ledger)
            async with trio.open_nursery() as nursery:
                for era in server.eras:
                    for _ in range(CALLERS):
                        nursery.start_soon(callers.go_on, era)
                for _ in range(RESTARTS if server in SERVERS else 1):
                    await kill_and_start(it, session, callers)
                    assert names == [tool.name for tool in session.tools]
                    assert before.session_id == session.id == session.metadata.session_id
                    assert before.created_at == session.metadata.created_at
                callers.stopped = True
            callers.outcomes.check(ledger.visits)
            assert callers.outcomes.uncertain
            assigned = dict(session.backend_sessions)
        for backend_session in assigned.values():
            assert await ping(it.url, backend_session) in (httpx.codes.NOT_FOUND, httpx.codes.BAD_REQUEST)


@pytest.mark.parametrize("server", EVERY_SERVER)
async def test_a_restart_between_two_calls_costs_no_call(server: Server, tmp_path: Path) -> None:
    """The first call after a restart is answered; the answer says so if the restart lost a backend session."""
    with running(server, tmp_path / "log") as it:
        backends = [it.backend(era, era) for era in server.eras]
        async with (
            open_ledger() as ledger,
            open_session_factory(settings=SETTINGS) as factory,
            factory.open_session(backends) as session,
        ):
            callers = Callers(session, server, ledger)
            for restarted in (False, True):
                if restarted:
                    it.kill()
                    await trio.to_thread.run_sync(it.start)
                with trio.fail_after(BACK_WITHIN):
                    for era in server.eras:
                        lost = restarted and era == "legacy"
                        assert lost is (await callers.call(era)).backend_state_lost
            callers.outcomes.check(ledger.visits)
            assert not callers.outcomes.uncertain
            assert not callers.outcomes.refused


async def kill_and_start(it: Running, session: Session, callers: Callers) -> None:
    """Once, with a call in execution; at the end every backend is back."""
    eras = it.server.eras
    assigned = dict(session.backend_sessions)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE):
            for era in eras:
                name = callers.outcomes.new_name(era)
                nursery.start_soon(callers.be_killed, era, name)
                await callers.ledger.visited(name)
            it.kill()
            for era in eras:
                with pytest.raises(BackendUnavailable) as caught:
                    await callers.call(era)
                assert not caught.value.may_have_executed
            await trio.to_thread.run_sync(it.start)
        with trio.fail_after(BACK_WITHIN):
            for era in eras:
                await callers.until_answered(era)
            while not is_back(session, assigned):  # noqa: ASYNC110  # the row is written behind the calls
                await trio.sleep(RETRY_INTERVAL)


def is_back(session: Session, assigned: Mapping[str, str]) -> bool:
    """Every backend is READY; each that had assigned a session id has a new one, and the metadata has it, too."""
    now = {record.backend_id: record.session_id for record in session.metadata.backends if record.session_id}
    return (
        not session.failures
        and all(status.state is BackendState.READY for status in session.backends.values())
        and now == dict(session.backend_sessions)
        and assigned.keys() == now.keys()
        and all(now[key] != before for key, before in assigned.items())
    )
