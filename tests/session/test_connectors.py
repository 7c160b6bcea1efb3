"""`connectors=`: more transports beside the built-in ones. A WebSocket connector on the public seam proves that this
seam is enough: calls, progress, cancellation, list changes, loss, recovery, restore and close.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from support.harness import ALICE, echo_backend, library_tasks
from support.plain_connector import PlainConnector, plain_backends
from support.websocket import WebSocketConnector, WebSocketServer
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    Backend,
    BackendError,
    BackendState,
    BackendTimeout,
    BackendUnavailable,
    FactorySettings,
    FailureReason,
    LocalStorage,
    SessionFactory,
    open_session_factory,
)
from trio_vmcp.testing import open_loopback, open_memory_network

# Names


@asynccontextmanager
async def open_plain(**options: Any) -> AsyncIterator[SessionFactory]:
    async with open_session_factory(**options) as factory:
        yield factory


UNKNOWN = "backend 'x': unknown transport 'pigeon'; it is none of 'streamable-http', 'sse', 'stdio', 'ws'"
PIGEON = Backend(id="x", transport="pigeon", url="the roof")


@pytest.mark.parametrize("entry", ["make_session", "open_session", "restore_session", "add_backend"])
async def test_an_unknown_transport_is_a_value_error(entry: str, autojump_clock: MockClock) -> None:
    """When a session opens or adds the backend; no other backend was contacted, and the session stays as it was."""
    connector = PlainConnector()
    near = Backend(id="near", transport="ws")
    async with open_session_factory(connectors={"ws": connector}) as factory:
        session = await factory.make_session([near])
        await session.suspend()
        session = await factory.restore_session(session.id, [near])
        connector.started.clear()
        enter: dict[str, Callable[[], Awaitable[object]]] = {
            "make_session": lambda: factory.make_session([near, PIGEON]),
            "open_session": lambda: factory.open_session([near, PIGEON]).__aenter__(),
            "restore_session": lambda: factory.restore_session(session.id, [near, PIGEON]),
            "add_backend": lambda: session.add_backend(PIGEON),
        }
        with pytest.raises(ValueError, match="unknown transport") as caught:
            await enter[entry]()
        assert UNKNOWN == str(caught.value)
        assert {} == connector.started
        assert ["near"] == list(session.backends)
        await session.call_tool("near_echo")


@pytest.mark.parametrize("name", ["stdio", "sse", "streamable-http", "", 7])
async def test_the_name_of_a_built_in_transport_is_taken(name: Any) -> None:
    """A `ValueError`, as is what names no transport."""
    with pytest.raises(ValueError, match=f"^connectors: {name!r} is "):
        async with open_plain(connectors={name: PlainConnector()}):
            pass


async def test_what_is_no_connector_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"connectors\['ws'\] is str, not a BackendConnector"):
        async with open_plain(connectors={"ws": "ws://x"}):
            pass


async def test_a_connector_for_all_others(autojump_clock: MockClock) -> None:
    """`connector` makes the clients of all transports but those in `connectors`."""
    special, other = PlainConnector(), PlainConnector()
    backends = [Backend(id="ws", transport="ws"), *plain_backends(1), Backend(id="own", transport="pigeon")]
    async with open_session_factory(connector=other, connectors={"ws": special}) as factory:
        async with factory.open_session(backends) as session:
            assert () == session.failures
    assert (["ws"], ["b0", "own"]) == (list(special.started), list(other.started))


# WebSocket


@attrs.define(eq=False)
class Reach:
    """A WebSocket server and a connector to it."""

    server: WebSocketServer
    connector: WebSocketConnector
    backend: Backend

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(5):
            while not condition():  # noqa: ASYNC110  # real sockets: no event tells
                await trio.sleep(0.01)


@asynccontextmanager
async def open_reach(kind: str) -> AsyncIterator[Reach]:
    """At its end nothing is left on either side."""
    server = WebSocketServer()
    async with AsyncExitStack() as stack:
        if kind == "memory":
            network = await stack.enter_async_context(open_memory_network())
            network.attach("http://ws.test:80/", server)
            connector, url = WebSocketConnector(network.connect), "ws://ws.test:80/mcp"
        else:
            connector = WebSocketConnector()
            url = (await stack.enter_async_context(open_loopback(server))).replace("http", "ws")
        reach = Reach(server, connector, Backend(id="w", transport="ws", url=url))
        yield reach
        await reach.until(lambda: not server.sockets)
        await wait_all_tasks_blocked()
        assert [] == library_tasks()


kinds = pytest.mark.parametrize("kind", ["memory", "tcp"])
# Real sockets, too, so no delays: a lost connection is made again at once.
SETTINGS = FactorySettings(reconnect_delay=0.01, reconnect_max_delay=0.02)


@kinds
async def test_calls_go_beside_those_of_a_built_in_transport(kind: str) -> None:
    """Listing, calls, progress, refusals; the credentials are those of the session's identity."""
    heard: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    async with open_reach(kind) as reach, open_loopback(echo_backend()) as url:
        async with open_session_factory(connectors={"ws": reach.connector}, settings=SETTINGS) as factory:
            backends = [reach.backend, Backend(id="h", url=url)]
            async with factory.open_session(backends, identity=ALICE) as session:
                view = session.as_caller(ALICE)
                assert ["w_echo", "w_steps", "w_hang", "h_echo"] == [tool.name for tool in session.tools]
                assert {"a": 1} == (await view.call_tool("w_echo", {"a": 1})).structured_content
                await view.call_tool("h_echo")
                await view.call_tool("w_steps", on_progress=on_progress)
                reach.server.tools.remove("steps")
                with pytest.raises(BackendError, match="rejected 'tools/call': 'no tools/call'"):
                    await view.call_tool("w_steps", on_progress=on_progress)
    assert [1, 2, 3] == heard
    assert ["Bearer alice-token"] == reach.server.credentials


@kinds
async def test_a_call_that_is_given_up_reaches_the_server(kind: str) -> None:
    """By its timeout and by cancellation; the connection stays."""
    async with open_reach(kind) as reach:
        async with open_session_factory(connectors={"ws": reach.connector}, settings=SETTINGS) as factory:
            async with factory.open_session([reach.backend]) as session:
                with pytest.raises(BackendTimeout) as caught:
                    await session.call_tool("w_hang", timeout=0.05)
                assert caught.value.may_have_executed
                with trio.move_on_after(0.05):
                    await session.call_tool("w_hang")
                await reach.until(lambda: 2 == reach.server.received.count("notifications/cancelled"))
                await session.call_tool("w_echo")
    assert 1 == reach.server.received.count("initialize")


@kinds
async def test_a_list_that_changed_is_read_again(kind: str) -> None:
    """A notification of the server's goes through `events`."""
    async with open_reach(kind) as reach:
        async with open_session_factory(connectors={"ws": reach.connector}, settings=SETTINGS) as factory:
            async with factory.open_session([reach.backend]) as session, session.changes() as changes:
                reach.server.tools.append("fresh")
                await reach.server.tell("notifications/tools/list_changed")
                with trio.fail_after(5):
                    while "w_fresh" not in [tool.name for tool in session.tools]:
                        await changes.receive()


@kinds
async def test_a_connection_that_breaks_is_made_anew(kind: str) -> None:
    """Under a call: that call may have run and is not repeated; the next finds the new connection, and its result says
    that the backend's state is lost.
    """
    async with open_reach(kind) as reach:
        async with open_session_factory(connectors={"ws": reach.connector}, settings=SETTINGS) as factory:
            async with factory.open_session([reach.backend]) as session:
                await session.call_tool("w_echo")

                async def hang() -> None:
                    with pytest.raises(BackendUnavailable, match="closed its WebSocket") as caught:
                        await session.call_tool("w_hang")
                    assert caught.value.may_have_executed

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(hang)
                    await reach.until(lambda: 2 == reach.server.calls)
                    await reach.server.kill()
                await reach.until(lambda: 2 == reach.server.received.count("notifications/initialized"))
                await reach.until(lambda: session.backends["w"].state is BackendState.READY)
                assert (await session.call_tool("w_echo")).backend_state_lost
                assert not (await session.call_tool("w_echo")).backend_state_lost
    assert 4 == reach.server.calls
    assert 2 == reach.server.received.count("initialize") == len(reach.connector.resumed)


async def test_a_server_that_is_away_comes_back(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """At the opening and later: the failure says why, and the attempts in the background bring it back."""
    caplog.set_level(logging.WARNING)
    async with open_reach("memory") as reach:
        reach.server.is_away = True
        async with open_session_factory(connectors={"ws": reach.connector}) as factory:
            async with factory.open_session([reach.backend]) as session:
                (failure,) = session.failures
                assert FailureReason.UNREACHABLE is failure.reason
                assert "could not be reached: nothing listens" == failure.detail
                reach.server.is_away = False
                await trio.sleep(5)
                await session.call_tool("w_echo")
                reach.server.is_away = True
                await reach.server.kill()
                await trio.sleep(1)
                with pytest.raises(BackendUnavailable):
                    await session.call_tool("w_echo")
                reach.server.is_away = False
                await trio.sleep(60)
                await session.call_tool("w_echo")
                assert () == session.failures


@kinds
async def test_a_session_is_restored_over_it(kind: str) -> None:
    """The connector is given what was stored, and makes a new connection."""
    async with open_reach(kind) as reach:
        storage = LocalStorage()
        async with open_session_factory(connectors={"ws": reach.connector}, storage=storage) as factory:
            session = await factory.make_session([reach.backend])
            await session.suspend()
            await reach.until(lambda: not reach.server.sockets)
            session = await factory.restore_session(session.id, [reach.backend])
            assert () == session.failures
            await session.call_tool("w_echo")
            await session.aclose()
        await storage.aclose()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b"SSH-2.0\r\n\r\n", b""])
async def test_what_is_no_websocket_is_the_backends_failure(answer: bytes, autojump_clock: MockClock) -> None:
    """Nothing is left of the attempt."""

    class Other(WebSocketServer):
        async def serve_connection(self, stream: trio.abc.Stream) -> None:
            await stream.receive_some(4096)
            await stream.send_all(answer)
            await stream.aclose()

    async with open_memory_network() as network:
        network.attach("http://ws.test:80/", Other())
        connectors = {"ws": WebSocketConnector(network.connect)}
        async with open_session_factory(connectors=connectors) as factory:
            async with factory.open_session([Backend(id="w", transport="ws", url="ws://ws.test:80/mcp")]) as session:
                (failure,) = session.failures
                assert FailureReason.PROTOCOL is failure.reason
                assert "does not speak WebSocket" == failure.detail
                assert 0 == network.open_connections
