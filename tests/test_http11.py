"""The stack of one-connection transports: what is reused, what is let go, and what a cancel costs."""

from __future__ import annotations

from typing import Literal

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_vmcp.client._transport import _KEEPALIVE_EXPIRY, _MOST_IDLE, Transports, _Stack

from trio_vmcp.testing import Hang, MemoryNetwork, ScriptedBackend, open_memory_network

PING = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{}}}'


async def ask(stack: httpx.AsyncBaseTransport) -> int:
    """One request, its response read to the end and closed."""
    response = await stack.handle_async_request(ping())
    await response.aread()
    await response.aclose()
    return response.status_code


def ping() -> httpx.Request:
    headers = {"Content-Type": "application/json", "Accept": "*/*"}
    return httpx.Request("POST", "http://b.test/mcp", headers=headers, content=PING)


def stack_over(network: MemoryNetwork) -> _Stack:
    return _Stack(network.transport)


async def many(stack: _Stack, count: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(ask, stack)


async def test_a_connection_is_used_again() -> None:
    """One request after another takes one connection; requests side by side take one each."""
    async with open_memory_network() as network:
        network.attach("b.test", ScriptedBackend())
        stack = stack_over(network)
        for _ in range(3):
            assert 200 == await ask(stack)
        assert 1 == network.connection_attempts
        await many(stack, 4)
        assert 4 == network.connection_attempts == network.open_connections
        await stack.aclose()
        assert 0 == network.open_connections


async def test_idle_connections_are_few_and_young(autojump_clock: MockClock) -> None:
    """Over the limit they are closed at once; those that nobody used for a while go with the next request."""
    async with open_memory_network() as network:
        network.attach("b.test", ScriptedBackend(latency=0.5))
        stack = stack_over(network)
        await many(stack, _MOST_IDLE + 5)
        assert _MOST_IDLE == network.open_connections
        await trio.sleep(_KEEPALIVE_EXPIRY)
        await ask(stack)
        assert 1 == network.open_connections
        await stack.aclose()


@pytest.mark.parametrize("at", ["head", "body"])
async def test_a_cancelled_request_costs_its_own_connection(
    at: Literal["head", "body"], autojump_clock: MockClock
) -> None:
    """The others stay, and the next request works."""
    backend = ScriptedBackend()
    async with open_memory_network() as network:
        network.attach("b.test", backend)
        stack = stack_over(network)
        await many(stack, 2)
        backend.fail("initialize", Hang(at=at), times=1)
        with trio.move_on_after(1) as patience:
            response = await stack.handle_async_request(ping())
            try:
                await response.aread()
            finally:
                with trio.CancelScope(shield=True):
                    await response.aclose()
        assert patience.cancelled_caught
        await wait_all_tasks_blocked()
        assert 1 == network.open_connections
        assert 200 == await ask(stack)
        assert 2 == network.connection_attempts
        await stack.aclose()


async def test_closing_takes_the_connections_of_running_requests_along() -> None:
    """A response that is let go after the stack was closed brings nothing back."""
    backend = ScriptedBackend()
    async with open_memory_network() as network:
        network.attach("b.test", backend)
        stack = stack_over(network)
        response = await stack.handle_async_request(ping())
        await stack.aclose()
        assert 0 == network.open_connections
        await response.aclose()
        await wait_all_tasks_blocked()
        assert 0 == network.open_connections


def test_https_and_http_share_one_context_each() -> None:
    """Building a context with the trust store blocks the loop for 20 ms, so it is built once, and only for https."""
    transports = Transports()
    transports.make("http://a.test")
    assert transports._context is None
    transports.make("https://a.test")
    context = transports._context
    transports.make("https://b.test")
    assert context is transports._context is not None
