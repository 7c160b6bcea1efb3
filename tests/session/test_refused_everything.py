"""A backend that lost our session and refuses everything without saying so: after three refusals it is asked with a
`ping`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trio
from support.clients import streamed
from support.harness import echo_backend, open_world
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import Backend, BackendError, BackendRejected, FactorySettings, Session, open_session_factory
from trio_vmcp.testing import Disconnect, Error, Exchange, Hang, Refuse, ScriptedBackend, Status

# What servers answer to requests of a session that they do not know; whether a tool call did not run then.
SILENT_ABOUT_IT: list[tuple[Any, bool]] = [
    (Status(400), True),
    (Status(409, b"try again"), True),
    (Status(422, b"unprocessable"), True),
    (Status(500), False),
    (Error(-32000, "bad request", status=400), True),
    (Error(-32603, "internal error"), False),
    (Error(-32602, "invalid params"), False),
]
TELLS_NOTHING = [*map(Status, (401, 403, 407, 413, 429, 502, 504)), Error(-32601, "no such method")]


def three_tools(**more: Any) -> ScriptedBackend:
    backend = echo_backend(**more)
    for name in ("second", "third", "fourth"):
        backend.add_tool(name)
    backend.add_resource("file:///x")
    backend.add_prompt("p")
    return backend


def in_session(session_id: str, but: str = "") -> Callable[[Exchange], bool]:
    """Requests of this backend session, but for one method."""
    return lambda exchange: exchange.verb == "POST" and exchange.session_id == session_id and exchange.method != but


async def refused(session: Session, *names: str, error: type[BackendError] = BackendError) -> None:
    for name in names:
        with pytest.raises(error):
            await session.call_tool(f"a_{name}")


def pings(backend: ScriptedBackend) -> int:
    return len(backend.received("ping"))


def initialized(backend: ScriptedBackend) -> int:
    return len(backend.received("initialize"))


@pytest.mark.parametrize(("fault", "did_not_run"), SILENT_ABOUT_IT, ids=str)
async def test_a_session_that_refuses_everything_is_replaced(
    fault: Any, did_not_run: bool, autojump_clock: MockClock
) -> None:
    """The third call is sent again where its status proves that it did not run; else the next one meets the new
    session.
    """
    backend = three_tools()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail(in_session(session.backend_sessions["a"]), fault)
        await refused(session, "echo", "second")
        assert (0, 1) == (pings(backend), initialized(backend))
        if did_not_run:
            assert (await session.call_tool("a_third")).backend_state_lost
        else:
            await refused(session, "third")
            await trio.sleep(0.1)
            await session.call_tool("a_third")
        assert (1, 2) == (pings(backend), initialized(backend))
        assert 1 == backend.executed["third"]


async def test_methods_count_like_tools(autojump_clock: MockClock) -> None:
    """A read, a prompt and a tool are three; the tool is sent again."""
    backend = three_tools()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail(in_session(session.backend_sessions["a"]), Status(400))
        with pytest.raises(BackendError):
            await session.read_resource("file:///x")
        with pytest.raises(BackendError):
            await session.get_prompt("a_p")
        assert (await session.call_tool("a_echo")).backend_state_lost
        assert (1, 2) == (pings(backend), initialized(backend))


async def test_one_tool_that_is_refused_proves_nothing(autojump_clock: MockClock) -> None:
    """However often, and beside another one; a result in between begins the count anew."""
    backend = three_tools()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail(lambda e: e.method == "tools/call" and e.params["name"] != "fourth", Error(-32000, "no"))
        await refused(session, *["echo", "second"] * 5)
        await session.call_tool("a_fourth")
        await refused(session, "third", "second")
        assert (0, 1) == (pings(backend), initialized(backend))


@pytest.mark.parametrize("answer", [None, *TELLS_NOTHING, Hang(), Disconnect(0), streamed()], ids=str)
async def test_a_ping_that_is_not_refused_leaves_the_session(answer: Any, autojump_clock: MockClock) -> None:
    """The tools are refused for another reason, which the calls end in. Three more refusals are asked about again."""
    backend = three_tools()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("tools/call", Error(-32000, "no"))
        if answer is not None:
            backend.fail("ping", answer)
        for asked in (1, 2):
            begun = trio.current_time()
            await refused(session, "echo", "second", "third", error=BackendRejected)
            assert (asked, 1) == (pings(backend), initialized(backend))
            assert 5.0 >= trio.current_time() - begun
        assert "a" in session.backend_sessions


async def test_a_ping_makes_no_timeout_of_a_refusal(autojump_clock: MockClock) -> None:
    """The refused call has a short timeout, and ends in what it was answered: the ping has half of what is left."""
    backend = three_tools()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("tools/call", Error(-32000, "no"))
        backend.fail("ping", Hang())
        await trio.sleep(100)
        await refused(session, "echo", "second")
        with pytest.raises(BackendRejected, match="no"):
            await session.call_tool("a_third", timeout=2)
        assert 101 == trio.current_time()
        assert 1 == pings(backend)


async def test_a_call_that_gives_up_as_it_is_refused_is_cancelled(autojump_clock: MockClock) -> None:
    """The third refusal comes in the step in which the caller is cancelled: there is no time left for a ping."""
    results = {
        "initialize": {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "a"}},
        "tools/list": {"tools": [{"name": name, "inputSchema": {}} for name in ("first", "second", "third")]},
    }
    scope = trio.CancelScope()

    def answer(request: httpx.Request) -> httpx.Response:
        message = json.loads(request.content or b"{}")
        if message.get("params", {}).get("name") == "third":
            scope.cancel()
        if message.get("method") not in results:
            return httpx.Response(400)
        reply = {"jsonrpc": "2.0", "id": message["id"], "result": results[message["method"]]}
        return httpx.Response(200, json=reply, headers={"mcp-session-id": "s"})

    configured = [Backend(id="a", url="http://a.test/mcp", era="legacy")]
    async with open_session_factory(transport=httpx.MockTransport(answer)) as factory:
        async with factory.open_session(configured) as session:
            await refused(session, "first", "second")
            with scope:
                await session.call_tool("a_third")
            assert scope.cancelled_caught


@pytest.mark.parametrize("fault", [*TELLS_NOTHING, Status(503), Refuse()], ids=str)
async def test_refusals_of_another_kind_are_not_counted(fault: Any, autojump_clock: MockClock) -> None:
    """Of the credentials, the size, the pace or the method; or from a gateway."""
    backend = three_tools()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("tools/call", fault if not isinstance(fault, Refuse) else Disconnect(0))
        await refused(session, "echo", "second", "third", "fourth")
        assert 0 == pings(backend)


async def test_a_backend_without_sessions_loses_none(autojump_clock: MockClock) -> None:
    """However many requests are refused."""
    backend = three_tools(session_ids=False)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("tools/call", Error(-32000, "no"))
        await refused(session, "echo", "second", "third")
        assert 0 == pings(backend)


async def test_a_session_that_is_known_to_be_gone_is_not_asked_for(autojump_clock: MockClock) -> None:
    """The status says so, to three calls at the same time."""
    backend = three_tools(latency=0.1)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.restart()
        async with trio.open_nursery() as nursery:
            for name in ("echo", "second", "third"):
                nursery.start_soon(session.call_tool, f"a_{name}")
        assert (0, 2) == (pings(backend), initialized(backend))


async def test_a_backend_is_asked_beside_its_calls(autojump_clock: MockClock) -> None:
    """A call that hangs has the only connection that calls may have."""
    backend = three_tools(latency=0.1)
    limit = FactorySettings(max_connections_per_backend=1)
    async with open_world({"a": backend}, settings=limit) as world, world.open_session() as session:
        backend.fail(lambda e: e.method == "tools/call" and e.params["name"] == "fourth", Hang())
        backend.fail(in_session(session.backend_sessions["a"]), Status(400))
        await refused(session, "echo", "second")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call_tool, "a_third")
            await wait_all_tasks_blocked()
            nursery.start_soon(session.call_tool, "a_fourth")
            await trio.sleep(2)
            assert (1, 2) == (pings(backend), initialized(backend))
            nursery.cancel_scope.cancel()


async def test_a_backend_that_refuses_every_session_is_greeted_once_a_minute(autojump_clock: MockClock) -> None:
    """A new session that refuses everything within a minute, too: it was not the session, for ten minutes."""
    backend = three_tools()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail(lambda e: e.method in ("tools/call", "ping"), Error(-32000, "no"))
        for _ in range(20):
            await refused(session, "echo", "second", "third")
            await trio.sleep(1)
        assert 2 == initialized(backend)
