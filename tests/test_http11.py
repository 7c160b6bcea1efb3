"""The built-in transport: what is reused, what is let go, and what a cancel costs."""

from __future__ import annotations

from typing import Literal

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp.client.http11 import KEEPALIVE_EXPIRY, MOST_IDLE, Http11Transport
from trio_vmcp.testing import Hang, ScriptedBackend, open_memory_network

PING = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{}}}'


async def ask(transport: httpx.AsyncBaseTransport) -> int:
    """One request, its response read to the end and closed."""
    response = await transport.handle_async_request(ping())
    await response.aread()
    await response.aclose()
    return response.status_code


def ping() -> httpx.Request:
    headers = {"Content-Type": "application/json", "Accept": "*/*"}
    return httpx.Request("POST", "http://b.test/mcp", headers=headers, content=PING)


async def many(transport: Http11Transport, count: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(ask, transport)


async def test_a_connection_is_used_again() -> None:
    """One request after another takes one connection; requests side by side take one each."""
    async with open_memory_network() as network:
        network.attach("b.test", ScriptedBackend())
        transport = network.transport()
        for _ in range(3):
            assert 200 == await ask(transport)
        assert 1 == network.connection_attempts
        await many(transport, 4)
        assert 4 == network.connection_attempts == network.open_connections
        await transport.aclose()
        assert 0 == network.open_connections


async def test_idle_connections_are_few_and_young(autojump_clock: MockClock) -> None:
    """Over the limit they are closed at once; those that nobody used for a while go with the next request."""
    async with open_memory_network() as network:
        network.attach("b.test", ScriptedBackend(latency=0.5))
        transport = network.transport()
        await many(transport, MOST_IDLE + 5)
        assert MOST_IDLE == network.open_connections
        await trio.sleep(KEEPALIVE_EXPIRY)
        await ask(transport)
        assert 1 == network.open_connections
        await transport.aclose()


@pytest.mark.parametrize("at", ["head", "body"])
async def test_a_cancelled_request_costs_its_own_connection(
    at: Literal["head", "body"], autojump_clock: MockClock
) -> None:
    """The others stay, and the next request works."""
    backend = ScriptedBackend()
    async with open_memory_network() as network:
        network.attach("b.test", backend)
        transport = network.transport()
        await many(transport, 2)
        backend.fail("initialize", Hang(at=at), times=1)
        with trio.move_on_after(1) as patience:
            response = await transport.handle_async_request(ping())
            try:
                await response.aread()
            finally:
                with trio.CancelScope(shield=True):
                    await response.aclose()
        assert patience.cancelled_caught
        await wait_all_tasks_blocked()
        assert 1 == network.open_connections
        assert 200 == await ask(transport)
        assert 2 == network.connection_attempts
        await transport.aclose()


async def test_closing_takes_the_connections_of_running_requests_along() -> None:
    """A response that is let go after the transport was closed brings nothing back."""
    backend = ScriptedBackend()
    async with open_memory_network() as network:
        network.attach("b.test", backend)
        transport = network.transport()
        response = await transport.handle_async_request(ping())
        await transport.aclose()
        assert 0 == network.open_connections
        await response.aclose()
        await wait_all_tasks_blocked()
        assert 0 == network.open_connections


async def test_the_newest_idle_connection_is_used_first(autojump_clock: MockClock) -> None:
    """So those that nobody needs any more grow old, and are closed."""
    async with open_memory_network() as network:
        network.attach("b.test", ScriptedBackend(latency=1))
        transport = network.transport()
        await many(transport, 3)
        for _ in range(3):
            await ask(transport)
        assert 3 == network.connection_attempts == network.open_connections
        await trio.sleep(KEEPALIVE_EXPIRY - 2.5)
        await ask(transport)
        assert 1 == network.open_connections
        assert 3 == network.connection_attempts
        await transport.aclose()
