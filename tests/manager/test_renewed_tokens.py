"""A principal that comes back with a newer token: what its session does by itself carries that token from then on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from support.channels import CHANNELS, Channel
from support.endpoint import open_endpoint
from support.plain_connector import PlainClient, PlainConnector, plain_backends
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    Backend,
    BackendClient,
    BearerAuth,
    FactorySettings,
    Identity,
    Session,
    SessionManager,
    open_session_factory,
    open_session_manager,
)
from trio_vmcp.testing import ScriptedBackend

OPENER = Identity(issuer="https://issuer.test", subject="alice", token="opened")
RENEWED = attrs.evolve(OPENER, token="renewed")
SETTINGS = FactorySettings(reconnect_delay=0.1, reconnect_max_delay=0.1)
EVERY_HTTP_CHANNEL = pytest.mark.parametrize("channel", [c for c in CHANNELS if c.transport != "stdio"], ids=str)


def token_of(backend: Backend, identity: Identity | None) -> str | None:
    return None if identity is None else identity.token


@asynccontextmanager
async def open_renewed(channel: Channel) -> AsyncIterator[tuple[SessionManager, Backend, ScriptedBackend, Session]]:
    """A session that was made with one token, as its principal gets it with a newer one."""
    async with open_endpoint(channel, settings=SETTINGS, auth=BearerAuth(token_of)) as endpoint:
        backend = endpoint.backends[OPENER.subject]
        backend.listens = True
        configured = endpoint.configured(OPENER)
        async with open_session_manager(endpoint.factory, [configured]) as manager:
            made = await manager.create(identity=OPENER)
            await wait_all_tasks_blocked()
            assert () == made.failures
            yield manager, configured, backend, await manager.get(made.id, caller=RENEWED)


def tokens(backend: ScriptedBackend, since: int) -> dict[str, set[str]]:
    """The tokens of each kind of request: by method, or HTTP verb."""
    found: dict[str, set[str]] = {}
    for exchange in backend.exchanges[since:]:
        message = exchange.message if isinstance(exchange.message, dict) else {}
        token = exchange.headers["authorization"].removeprefix("Bearer ")
        found.setdefault(message.get("method", exchange.verb), set()).add(token)
    return found


def only_renewed(found: dict[str, set[str]]) -> bool:
    return {frozenset({RENEWED.token})} == {frozenset(each) for each in found.values()}


@EVERY_HTTP_CHANNEL
async def test_a_lost_session_is_opened_anew_with_it(channel: Channel, autojump_clock: MockClock) -> None:
    """The older token may have expired: with that, no call would ever reach the backend again."""
    async with open_renewed(channel) as (_, _, backend, session):
        backend.crash()
        since = len(backend.exchanges)
        backend.restart()
        await trio.sleep(5)
        await session.call_tool("b_echo")
        await wait_all_tasks_blocked()
        found = tokens(backend, since)
    assert "tools/call" in found
    assert only_renewed(found), found


@EVERY_HTTP_CHANNEL
async def test_what_a_connection_does_by_itself_carries_it(channel: Channel, autojump_clock: MockClock) -> None:
    """Lists that are read again, streams that are opened again, and the goodbye."""
    async with open_renewed(channel) as (manager, _, backend, session):
        since = len(backend.exchanges)
        backend.add_tool("new")
        backend.notify("notifications/tools/list_changed")
        await trio.sleep(5)
        assert "b_new" in [tool.name for tool in session.tools]
        backend.end_streams()
        await trio.sleep(5)
        await manager.terminate(session.id, caller=RENEWED)
        found = tokens(backend, since)
    wanted = {"http-legacy": {"GET", "DELETE"}, "http+sse-legacy": set(), "http-modern": {"subscriptions/listen"}}
    assert {"tools/list", *wanted[str(channel)]} <= found.keys()
    assert only_renewed(found), found


@EVERY_HTTP_CHANNEL
async def test_a_backend_that_joins_later_gets_it(channel: Channel, autojump_clock: MockClock) -> None:
    """As the others."""
    async with open_renewed(channel) as (manager, configured, backend, session):
        await manager.set_backends([])
        since = len(backend.exchanges)
        await manager.set_backends([configured])
        await session.call_tool("b_echo")
        found = tokens(backend, since)
    assert found
    assert only_renewed(found), found


async def test_a_client_of_ones_own_that_takes_no_token(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Its crash costs neither the request that has brought the token, nor the other backends theirs."""
    taken: list[str] = []

    class Own(PlainClient):
        def renew_identity(self, identity: Identity) -> None:
            taken.append(identity.token)
            if self.record.backend_id == "b0":
                raise RuntimeError(identity.token)

    async def connect(backend: Backend, **wanted: Any) -> BackendClient:
        plain = await PlainConnector()(backend, **wanted)
        return Own(plain.record, plain.server_capabilities)

    async with open_session_factory(connector=connect) as factory:
        async with open_session_manager(factory, plain_backends(2)) as manager:
            made = await manager.create(identity=OPENER)
            session = await manager.get(made.id, caller=RENEWED)
            await session.call_tool("b0_echo")
            await session.call_tool("b1_echo")
    assert ["renewed"] * 2 == taken
    assert "a client did not take a newer token: RuntimeError" in caplog.text
    assert "renewed" not in caplog.text


async def test_a_client_of_ones_own_need_not_take_tokens(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """No warning says so."""
    async with open_session_factory(connector=PlainConnector()) as factory:
        async with open_session_manager(factory, plain_backends(1)) as manager:
            made = await manager.create(identity=OPENER)
            session = await manager.get(made.id, caller=RENEWED)
            await session.call_tool("b0_echo")
    assert not caplog.records
