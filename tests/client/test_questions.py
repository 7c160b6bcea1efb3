"""What a backend asks of its client: pings, and what handlers answer. The same over every channel."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
from support.channels import EVERY_CHANNEL, EVERY_LEGACY_CHANNEL, EVERY_MODERN_CHANNEL, Channel
from support.clients import SESSION_ID, call
from support.handlers import Handler
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON, BackendRejected, ClientHandlers, FactorySettings, ServerRequest
from trio_vmcp._client.server_requests import MOST_ANSWERS
from trio_vmcp.testing import CallContext, ScriptedBackend

ROOTS: JSON = {"roots": [{"uri": "file:///b"}]}


def question(request_id: object, method: str = "roots/list", **params: Any) -> JSON:
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


def answers(backend: ScriptedBackend) -> list[JSON]:
    """What the client has answered, in order."""
    sent = [e.message for e in backend.exchanges if isinstance(e.message, dict)]
    return [message for message in sent if "method" not in message]


# Without handlers


@EVERY_LEGACY_CHANNEL
async def test_a_ping_is_answered_while_a_call_runs(channel: Channel, autojump_clock: MockClock) -> None:
    """MCP 2025-11-25, utilities/ping. With one connection only, too."""

    async def ping(arguments: JSON, context: CallContext) -> str:
        return str(await context.request("ping", {}))

    backend = channel.backend()
    backend.add_tool("ping", ping)
    async with channel.open_client(backend, settings=FactorySettings(max_connections_per_backend=1)) as client:
        assert "{}" == (await call(client, "ping", timeout=5))["content"][0]["text"]


@EVERY_LEGACY_CHANNEL
async def test_a_ping_outside_of_calls_is_answered(channel: Channel, autojump_clock: MockClock) -> None:
    """It comes on the stream for notifications, or on the one that carries everything."""
    backend = channel.backend(listens=True)
    async with channel.open_client(backend):
        await wait_all_tasks_blocked()
        backend.send(question("p", "ping"))
        await wait_all_tasks_blocked()
        assert [{"jsonrpc": "2.0", "id": "p", "result": {}}] == answers(backend)


@EVERY_LEGACY_CHANNEL
@pytest.mark.parametrize("method", ["sampling/createMessage", "roots/list", "elicitation/create", "no/such"])
async def test_a_question_without_a_handler_is_refused(
    channel: Channel, method: str, autojump_clock: MockClock
) -> None:
    """JSON-RPC 2.0, section 5.1: -32601. It was not declared, also where other kinds have handlers."""

    async def asking(arguments: JSON, context: CallContext) -> str:
        await context.request(method, {})
        return "asked"

    backend = channel.backend()
    backend.add_tool("asking", asking)
    async with channel.open_client(backend) as client:
        with pytest.raises(BackendRejected, match="offers no such capability") as caught:
            await call(client, "asking", timeout=5)
        assert -32601 == caught.value.code


@EVERY_MODERN_CHANNEL
async def test_modern_backends_get_no_answer_to_a_request(
    channel: Channel, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """MCP 2026-07-28: "Servers MUST NOT send requests". It is ignored with a warning, and the call is answered."""

    async def asking(arguments: JSON, context: CallContext) -> str:
        await context.send(question(7, "ping"))
        await context.send(question(8))
        return "done"

    backend = channel.backend()
    backend.add_tool("asking", asking)
    handlers = ClientHandlers(roots=Handler(ROOTS))
    async with channel.open_client(backend, handlers=handlers) as client:
        assert "done" == (await call(client, "asking"))["content"][0]["text"]
        await wait_all_tasks_blocked()
    assert ["server/discover", "tools/call"] == [exchange.method for exchange in backend.exchanges]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.startswith("backend 'b': ignored a request")


# Handlers


@EVERY_CHANNEL
async def test_a_tool_may_ask_back(channel: Channel, autojump_clock: MockClock) -> None:
    """By a request of its own in one era, by a result that asks for another round in the other."""

    async def tool(arguments: JSON, context: CallContext) -> JSON:
        return {"content": [], "structuredContent": (await context.roots())[0]}

    backend = channel.backend()
    backend.add_tool("ask", tool)
    handler = Handler(ROOTS, seconds=1)
    async with channel.open_client(backend, handlers=ClientHandlers(roots=handler)) as client:
        assert {"uri": "file:///b"} == (await call(client, "ask"))["structuredContent"]
        assert 1 == trio.current_time()
    (asked,) = handler.requests
    assert (SESSION_ID, "b", {}) == (asked.session_id, asked.backend_id, asked.params)
    assert (2 if channel.is_modern else 1) == len(backend.received("tools/call"))


@EVERY_LEGACY_CHANNEL
async def test_a_slow_handler_holds_up_nothing(channel: Channel, autojump_clock: MockClock) -> None:
    """Neither the call during which its question came, nor other questions, nor progress."""

    async def asking(arguments: JSON, context: CallContext) -> str:
        for number in range(2):
            await context.send(question(number))
        await context.send(question(2, "ping"))
        await context.progress(1)
        return "done"

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(trio.current_time())

    heard: list[float] = []
    backend = channel.backend()
    backend.add_tool("asking", asking)
    handler = Handler(ROOTS, seconds=5)
    async with channel.open_client(backend, handlers=ClientHandlers(roots=handler)) as client:
        await call(client, "asking", on_progress=on_progress)
        assert [0] == heard
        assert 0 == trio.current_time()
        await wait_all_tasks_blocked()
        assert [{"jsonrpc": "2.0", "id": 2, "result": {}}] == answers(backend)
        await trio.sleep(5)
        await wait_all_tasks_blocked()
        expected = [{"jsonrpc": "2.0", "id": number, "result": ROOTS} for number in range(2)]
        assert expected == sorted(answers(backend)[1:], key=lambda message: message["id"])
        assert 2 == handler.most_running


@EVERY_LEGACY_CHANNEL
async def test_a_handler_that_fails_is_an_internal_error(
    channel: Channel, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """JSON-RPC 2.0, section 5.1: -32603. Neither the backend nor the log is told the text; the next call works."""

    async def sampling(request: ServerRequest) -> JSON:
        raise ZeroDivisionError("secret")

    async def tool(arguments: JSON, context: CallContext) -> JSON:
        return await context.sample("?")

    backend = channel.backend()
    backend.add_tool("ask", tool)
    async with channel.open_client(backend, handlers=ClientHandlers(sampling=sampling)) as client:
        with pytest.raises(BackendRejected) as caught:
            await call(client, "ask")
        assert (-32603, "the client failed to answer") == (caught.value.code, caught.value.message)
        await call(client)
    assert "raised ZeroDivisionError" in caplog.text
    assert "secret" not in caplog.text


@EVERY_LEGACY_CHANNEL
@pytest.mark.parametrize("request_id", [0, -1, 2, 2**60, "", "2", "0", "é"])
async def test_ids_of_questions_are_the_backends_own(
    channel: Channel, request_id: object, autojump_clock: MockClock
) -> None:
    """They come back as they are, also those that look like an id of the client, and falsy ones."""
    backend = channel.backend(listens=True)
    async with channel.open_client(backend, handlers=ClientHandlers(roots=Handler(ROOTS))):
        await wait_all_tasks_blocked()
        backend.send(question(request_id))
        await wait_all_tasks_blocked()
        assert [{"jsonrpc": "2.0", "id": request_id, "result": ROOTS}] == answers(backend)


@EVERY_LEGACY_CHANNEL
async def test_an_id_in_use_is_not_answered_twice(
    channel: Channel, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The second answer would pass for the first one's. 1 is not "1"; an id that was answered is free again."""
    backend = channel.backend(listens=True)
    handler = Handler(ROOTS, seconds=1)
    async with channel.open_client(backend, handlers=ClientHandlers(roots=handler)):
        await wait_all_tasks_blocked()
        for request_id in (1, 1, "1"):
            backend.send(question(request_id))
        await trio.sleep(2)
        backend.send(question(1))
        await trio.sleep(2)
        assert ["1", 1, 1] == sorted((answer["id"] for answer in answers(backend)), key=repr)
        assert 3 == len(handler.requests)
    assert ["backend 'b': ignored a request whose id is in use"] == caplog.messages


# The end of a question


@EVERY_LEGACY_CHANNEL
async def test_a_backend_may_cancel_its_question(channel: Channel, autojump_clock: MockClock) -> None:
    """MCP 2025-11-25, utilities/cancellation: the handler ends without an answer. Other ids change nothing."""
    backend = channel.backend(listens=True)
    handler = Handler(ROOTS, seconds=100)
    async with channel.open_client(backend, handlers=ClientHandlers(roots=handler)):
        await wait_all_tasks_blocked()
        backend.send(question(1))
        others: list[object] = ["1", True, 2, 1.0, None, [1], {}]
        for wrong in others:
            backend.notify("notifications/cancelled", {"requestId": wrong})
        await wait_all_tasks_blocked()
        assert (1, 0) == (handler.running, handler.cancelled)
        backend.notify("notifications/cancelled", {"requestId": 1})
        await wait_all_tasks_blocked()
        assert (0, 1) == (handler.running, handler.cancelled)
        backend.send(question(1, "ping"))
        await wait_all_tasks_blocked()
        assert [{"jsonrpc": "2.0", "id": 1, "result": {}}] == answers(backend)


@EVERY_LEGACY_CHANNEL
async def test_a_close_ends_every_handler(channel: Channel, autojump_clock: MockClock) -> None:
    """At once, and nothing is answered any more."""
    backend = channel.backend(listens=True)
    handler = Handler(ROOTS, seconds=100)
    async with channel.open_client(backend, handlers=ClientHandlers(roots=handler)) as client:
        await wait_all_tasks_blocked()
        for number in range(3):
            backend.send(question(number))
        await wait_all_tasks_blocked()
        assert 3 == handler.running
        await client.aclose(terminate=True)
        await wait_all_tasks_blocked()
        assert (0, 3, 0) == (handler.running, handler.cancelled, trio.current_time())
    assert [] == answers(backend)


# Bounds


@EVERY_LEGACY_CHANNEL
@pytest.mark.parametrize("method", ["roots/list", "ping", "no/such"])
async def test_a_flood_of_questions_is_bounded(channel: Channel, method: str, autojump_clock: MockClock) -> None:
    """Sixteen handlers run at a time; the call during which they come is answered, and so is the next."""

    async def flood(arguments: JSON, context: CallContext) -> str:
        for number in range(300):
            await context.send(question(number, method))
        return "done"

    backend = channel.backend()
    backend.add_tool("flood", flood)
    handler = Handler(ROOTS, seconds=100)
    async with channel.open_client(backend, handlers=ClientHandlers(roots=handler)) as client:
        assert "done" == (await call(client, "flood", timeout=50))["content"][0]["text"]
        assert handler.most_running == (MOST_ANSWERS if method == "roots/list" else 0)
        await call(client, timeout=10)
