"""Requests of clients of both eras: what holds over HTTP holds over stdio."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from support.front import LEGACY, MODERN, front_world, full_backend
from support.front_clients import (
    EVERY_BACKEND,
    EVERY_CARRIER,
    EVERY_ERA,
    front_client,
    shut_down,
    stdio_client,
)
from support.harness import echo_backend
from trio.testing import MockClock

from trio_vmcp import JSON
from trio_vmcp.testing import CallContext, Hang, RpcError, ScriptedBackend

META = "io.modelcontextprotocol/"
LEVELS: JSON = {"tools": {}, "logging": {}}


@EVERY_BACKEND
@EVERY_ERA
@EVERY_CARRIER
async def test_every_request_is_answered(carrier: str, era: str, backend_era: str, autojump_clock: MockClock) -> None:
    """Names are the advertised ones; results have what the era of the client demands."""
    async with front_client(carrier, era, full_backend(backend_era)) as client:
        tools = await client.result("tools/list", {}, 1)
        assert ["a_echo"] == [tool["name"] for tool in tools["tools"]]
        prompts = await client.result("prompts/list", {}, 2)
        assert ["a_greet"] == [prompt["name"] for prompt in prompts["prompts"]]
        resources = await client.result("resources/list", {}, 3)
        assert ["file:///a"] == [each["uri"] for each in resources["resources"]]
        templates = await client.result("resources/templates/list", {}, 4)
        assert ["file:///b/{name}"] == [each["uriTemplate"] for each in templates["resourceTemplates"]]
        called = await client.result("tools/call", {"name": "a_echo", "arguments": {"x": 1}}, "five")
        assert {"x": 1} == json.loads(called["content"][0]["text"])
        read = await client.result("resources/read", {"uri": "file:///a"}, 6)
        assert "text of a" == read["contents"][0]["text"]
        matched = await client.result("resources/read", {"uri": "file:///b/x"}, 7)
        assert "text of b" == matched["contents"][0]["text"]
        got = await client.result("prompts/get", {"name": "a_greet", "arguments": {"name": "eve"}}, 8)
        assert "hello eve" == got["messages"][0]["content"]["text"]
        asked = {"ref": {"type": "ref/prompt", "name": "a_greet"}, "argument": {"name": "name", "value": "an"}}
        completed = await client.result("completion/complete", asked, 9)
        assert ["ann", "anton"] == completed["completion"]["values"]
        if era == "legacy":
            assert {} == await client.result("ping", {}, 10)
            return
        discovered = await client.result("server/discover", {}, 10)
        assert MODERN == discovered["supportedVersions"][0]
        assert 1 == client.world.manager.statistics.created
        for result in (tools, called, read, matched, got, completed, discovered):
            assert "complete" == result["resultType"]
            assert "trio-vmcp" == result["_meta"][f"{META}serverInfo"]["name"]
        for result in (tools, prompts, resources, templates, read, discovered):
            assert (True, "private") == (result["ttlMs"] >= 0, result["cacheScope"])


@pytest.mark.parametrize(
    ("asked", "answered"),
    [("2025-11-25", "2025-11-25"), ("2025-06-18", "2025-06-18"), ("2025-03-26", "2025-03-26"), ("1999-01-01", LEGACY)],
)
@EVERY_CARRIER
async def test_initialize_answers_the_version_that_was_asked_for_or_the_newest(
    carrier: str, asked: str, answered: str, autojump_clock: MockClock
) -> None:
    """An unknown version is no error (2025-11-25, lifecycle)."""
    async with front_world() as world:
        answer = await initialize(world, carrier, {"protocolVersion": asked, "clientInfo": {"name": "t"}})
        result = answer["result"]
        assert ("x", answered) == (answer["id"], result["protocolVersion"])
        assert "trio-vmcp" == result["serverInfo"]["name"]
        assert {"tools", "prompts", "resources", "logging", "completions"} == set(result["capabilities"])


async def initialize(world: Any, carrier: str, params: JSON) -> Any:
    """The answer to such an `initialize`, with the id "x"."""
    message = {"jsonrpc": "2.0", "id": "x", "method": "initialize", "params": {"capabilities": {}, **params}}
    if carrier == "http":
        return (await world.post(message)).json
    async with stdio_client(world, opens=False) as client:
        await client.send(message)
        return await client.response("x")


@EVERY_CARRIER
async def test_initialize_without_a_version_is_refused(carrier: str, autojump_clock: MockClock) -> None:
    """The params need one (2025-11-25, lifecycle)."""
    async with front_world() as world:
        assert -32602 == (await initialize(world, carrier, {"protocolVersion": 1}))["error"]["code"]


@pytest.mark.parametrize(
    "capabilities", [{"roots": {"x": "\ud800"}}, {"sampling": {"\udfff": {}}}, {"elicitation": True}, {"roots": []}, 7]
)
@EVERY_CARRIER
async def test_capabilities_that_no_backend_can_be_told_are_refused(
    carrier: str, capabilities: Any, autojump_clock: MockClock
) -> None:
    """Else a session begins to which no backend can ever connect: `initialize` of each would hold half a surrogate."""
    async with front_world() as world:
        answer = await initialize(world, carrier, {"protocolVersion": LEGACY, "capabilities": capabilities})
        assert -32602 == answer["error"]["code"]
        assert 0 == world.manager.statistics.live


@pytest.mark.parametrize("capabilities", [None, {"sampling": None}, {"x": None, "tasks": True}, {}])
@EVERY_CARRIER
async def test_capabilities_without_use_here_are_ignored(
    carrier: str, capabilities: Any, autojump_clock: MockClock
) -> None:
    """A null is an absent member, and what later versions may add is not judged."""
    async with front_world() as world:
        answer = await initialize(world, carrier, {"protocolVersion": LEGACY, "capabilities": capabilities})
        assert "result" in answer


BAD_REQUESTS: list[tuple[str, Any, int, int]] = [  # the code in each era
    ("tools/call", {"name": "nobody"}, -32602, -32602),
    ("tools/call", {}, -32602, -32602),
    ("tools/call", {"name": "a_echo", "arguments": [1]}, -32602, -32602),
    ("tools/call", {"name": "a_echo", "arguments": 7}, -32602, -32602),
    ("prompts/get", {"name": "nobody"}, -32602, -32602),
    ("prompts/get", {"name": "nobody", "arguments": 1}, -32602, -32602),
    ("resources/read", {"uri": "file:///none"}, -32002, -32602),
    ("resources/read", {"uri": 1}, -32602, -32602),
    ("resources/subscribe", {"uri": "file:///none"}, -32002, -32601),
    ("resources/subscribe", {"uri": 1}, -32602, -32601),
    ("logging/setLevel", {"level": "loud"}, -32602, -32601),
    ("logging/setLevel", {"level": []}, -32602, -32601),
    ("tools/list", {"cursor": ""}, -32602, -32602),
    ("tools/list", {"cursor": "AAAA"}, -32602, -32602),
    ("completion/complete", {}, -32602, -32602),
    ("completion/complete", {"ref": {"type": "ref/none"}, "argument": {}}, -32602, -32602),
    ("subscriptions/listen", {}, -32601, -32602),
    ("subscriptions/listen", {"notifications": {"resourceSubscriptions": [1]}}, -32601, -32602),
    ("no/such", {}, -32601, -32601),
    ("tasks/get", {}, -32601, -32601),
]


NO_NAME = {("tools/call", "{}"), ("resources/read", '{"uri": 1}')}


EVERY_BAD_REQUEST = [
    pytest.param(era, method, params, code, id=f"{era} {method} {params}")
    for method, params, *codes in BAD_REQUESTS
    for era, code in zip(("legacy", "modern"), codes, strict=True)
] + [pytest.param("modern", "initialize", {"protocolVersion": LEGACY}, -32601, id="modern initialize")]


@pytest.mark.parametrize(("era", "method", "params", "code"), EVERY_BAD_REQUEST)
@EVERY_CARRIER
async def test_a_request_that_cannot_be_made_is_an_error_and_the_next_is_answered(
    carrier: str, era: str, method: str, params: JSON, code: int, autojump_clock: MockClock
) -> None:
    """Over HTTP an error of the handshake era has the status 200: a 404 would tell the client that its session is gone.
    The stateless era has headers there, of which one repeats the name.
    """
    if (carrier, era) == ("http", "modern") and (method, json.dumps(params)) in NO_NAME:
        code = -32020
    async with front_client(carrier, era) as client:
        await client.ask(method, params, "r")
        assert code == (await client.response("r"))["error"]["code"]
        assert await client.result("tools/list", {}, 2)


@pytest.mark.parametrize("code", [-31999, -32601, -32020, -32021, -32022, 7])
@EVERY_BACKEND
@EVERY_ERA
@EVERY_CARRIER
async def test_the_error_of_a_backend_passes_with_code_and_data(
    carrier: str, era: str, backend_era: str, code: int, autojump_clock: MockClock
) -> None:
    """Also with an unknown code, and with one that means something of the other era in HTTP 400 alone."""

    async def fail(arguments: JSON, context: CallContext) -> str:
        raise RpcError(code, "no such thing", {"why": [1.5, None]})

    backend = echo_backend(backend_era)
    backend.add_tool("fail", fail)
    async with front_client(carrier, era, backend) as client:
        await client.ask("tools/call", {"name": "a_fail"})
        expected = {"code": code, "message": "no such thing", "data": {"why": [1.5, None]}}
        assert expected == (await client.response())["error"]
        assert 1 == len(backend.received("initialize")) or backend_era == "modern"


@EVERY_ERA
@EVERY_CARRIER
async def test_a_backend_that_is_away_is_named_in_the_error(carrier: str, era: str, autojump_clock: MockClock) -> None:
    """Its tools stay listed."""
    async with front_client(carrier, era, echo_backend(), echo_backend()) as client:
        await client.result("tools/list", {}, 1)
        client.world.backends["b"].crash()
        await client.ask("tools/call", {"name": "b_echo"}, 2)
        error = (await client.response(2))["error"]
        assert (-32603, "b") == (error["code"], error["data"]["backend"])
        assert ["a_echo", "b_echo"] == [each["name"] for each in (await client.result("tools/list", {}, 3))["tools"]]
        assert await client.result("tools/call", {"name": "a_echo"}, 4)


@EVERY_BACKEND
@EVERY_ERA
@EVERY_CARRIER
async def test_pages_have_cursors_of_our_own(
    carrier: str, era: str, backend_era: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cursor of another list, or of an entry that is gone, is -32602."""
    monkeypatch.setattr("trio_vmcp.serve._lists.PAGE", 2)
    backend = full_backend(backend_era)
    for number in range(4):
        backend.add_tool(f"t{number}")
    async with front_client(carrier, era, backend) as client:
        names: list[list[str]] = []
        cursor = last = None
        while True:
            page = await client.result("tools/list", {"cursor": cursor} if cursor else {}, len(names))
            names.append([tool["name"] for tool in page["tools"]])
            last, cursor = cursor, page.get("nextCursor")
            if cursor is None:
                break
        assert [["a_echo", "a_t0"], ["a_t1", "a_t2"], ["a_t3"]] == names
        await client.ask("prompts/list", {"cursor": last}, "other")
        assert -32602 == (await client.response("other"))["error"]["code"]


@EVERY_BACKEND
@EVERY_ERA
@EVERY_CARRIER
async def test_meta_passes_but_for_what_belongs_to_one_hop(
    carrier: str, era: str, backend_era: str, autojump_clock: MockClock
) -> None:
    """Keys of MCP's own and the progress token stay here."""
    seen: list[JSON] = []

    async def look(arguments: JSON, context: CallContext) -> str:
        seen.append(context.meta)
        return ""

    backend = echo_backend(backend_era)
    backend.add_tool("look", look)
    async with front_client(carrier, era, backend) as client:
        meta = {"shop.example/cart": "7", "io.modelcontextprotocol/secret": 1, "traceparent": "00-1-2-01"}
        await client.result("tools/call", {"name": "a_look", "_meta": meta})
        (found,) = seen
        assert ("7", "00-1-2-01") == (found["shop.example/cart"], found["traceparent"])
        assert not any("secret" in key or "trio-vmcp" in key for key in found)


# Messages of a request


def with_token(era: str, token: Any) -> tuple[JSON, JSON]:
    """A progress token: in the params, and in `_meta` of the stateless era."""
    return ({}, {"progressToken": token}) if era == "modern" else ({"_meta": {"progressToken": token}}, {})


@pytest.mark.parametrize("token", ["mine", 5])
@EVERY_BACKEND
@EVERY_ERA
@EVERY_CARRIER
async def test_progress_has_the_token_of_the_client(
    carrier: str, era: str, backend_era: str, token: Any, autojump_clock: MockClock
) -> None:
    """Tokens are of one hop: the backend gets another one. Numbers pass as they are; the response comes last."""

    async def work(arguments: JSON, context: CallContext) -> str:
        assert token != context.meta["progressToken"]
        await context.progress(1, 3)
        await context.progress(1.5, None, "half")
        return "done"

    backend = echo_backend(backend_era, "sse")
    backend.add_tool("work", work)
    async with front_client(carrier, era, backend) as client:
        params, meta = with_token(era, token)
        result = await client.result("tools/call", {"name": "a_work", **params}, "r", **meta)
        assert "done" == result["content"][0]["text"]
        assert [
            {"progressToken": token, "progress": 1, "total": 3},
            {"progressToken": token, "progress": 1.5, "message": "half"},
        ] == client.told("notifications/progress")
        assert "r" == client.received[-1].get("id") or era == "legacy"


@pytest.mark.parametrize("token", [None, 1.5, True, [], {}])
@EVERY_ERA
@EVERY_CARRIER
async def test_a_progress_token_that_is_none_asks_for_no_progress(
    carrier: str, era: str, token: Any, autojump_clock: MockClock
) -> None:
    """ "Progress tokens MUST be a string or integer value" (progress)."""

    async def work(arguments: JSON, context: CallContext) -> str:
        return str("progressToken" in context.meta)

    backend = echo_backend("legacy", "sse")
    backend.add_tool("work", work)
    async with front_client(carrier, era, backend) as client:
        params, meta = with_token(era, token)
        assert (
            "False" == (await client.result("tools/call", {"name": "a_work", **params}, **meta))["content"][0]["text"]
        )


@EVERY_BACKEND
@EVERY_ERA
@EVERY_CARRIER
async def test_log_messages_of_a_call(carrier: str, era: str, backend_era: str, autojump_clock: MockClock) -> None:
    """From the severity on that the client has set, or that the request asks for, also if the backend sends others; and
    none to a request of the stateless era that asks for none.
    """

    async def log(arguments: JSON, context: CallContext) -> str:
        await context.notify("notifications/message", {"level": "debug", "data": 0})
        await context.notify("notifications/message", {"level": "error", "data": {"n": 1}})
        return ""

    backend = echo_backend(backend_era, "sse", capabilities=LEVELS)
    backend.add_tool("log", log)
    async with front_client(carrier, era, backend) as client:
        if era == "legacy":
            assert {} == await client.result("logging/setLevel", {"level": "warning"}, "set")
            assert backend_era == "modern" or "warning" == backend.received("logging/setLevel")[-1].params["level"]
        else:
            await client.result("tools/call", {"name": "a_log"}, "silent")
            assert [] == client.told("notifications/message")
        meta = {"logLevel": "warning"} if era == "modern" else {}
        await client.result("tools/call", {"name": "a_log"}, "call", **meta)
        assert [{"level": "error", "data": {"n": 1}}] == client.told("notifications/message")


# The end of a request


@EVERY_BACKEND
@EVERY_ERA
@EVERY_CARRIER
async def test_a_withdrawn_request_has_no_response(
    carrier: str, era: str, backend_era: str, autojump_clock: MockClock
) -> None:
    """The backend hears of it (python-sdk#2480), and the next request is answered."""
    begun, cancelled = trio.Event(), trio.Event()

    async def wait(arguments: JSON, context: CallContext) -> str:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()
        return ""

    backend = echo_backend(backend_era, "sse")
    backend.add_tool("wait", wait)
    async with front_client(carrier, era, backend) as client:
        await client.ask("tools/call", {"name": "a_wait", "arguments": {}}, "w")
        await begun.wait()
        await client.withdraw("w")
        with trio.fail_after(1):
            await cancelled.wait()
        await trio.sleep(1)
        assert [] == [message for message in client.received if message.get("id") == "w"]
        assert await client.result("tools/call", {"name": "a_echo"}, 2)


@EVERY_CARRIER
async def test_a_drain_answers_what_is_under_way_and_refuses_what_is_new(
    carrier: str, autojump_clock: MockClock
) -> None:
    """-32000 to new requests; over HTTP with the status 503."""
    go_on = trio.Event()

    async def wait(arguments: JSON, context: CallContext) -> str:
        await go_on.wait()
        return "waited"

    backend = echo_backend()
    backend.add_tool("wait", wait)
    async with front_client(carrier, "modern", backend) as client:
        await client.ask("tools/call", {"name": "a_wait", "arguments": {}}, "w")
        await trio.sleep(1)
        await shut_down(client)
        await trio.sleep(1)
        await client.ask("tools/call", {"name": "a_echo", "arguments": {}}, "new")
        assert -32000 == (await client.response("new"))["error"]["code"]
        go_on.set()
        assert "waited" in str(await client.response("w"))


@EVERY_ERA
@EVERY_CARRIER
async def test_an_uncertain_call_says_so(carrier: str, era: str, autojump_clock: MockClock) -> None:
    """A backend that dies in the middle of a call may have made it."""
    backend = ScriptedBackend()
    backend.add_tool("echo")
    async with front_client(carrier, era, backend) as client:
        await client.result("tools/list", {}, 1)
        backend.fail("tools/call", Hang())
        await client.ask("tools/call", {"name": "a_echo"}, 2)
        await trio.sleep(1)
        backend.crash()
        data = (await client.response(2))["error"]["data"]
        assert ("a", True) == (data["backend"], data["mayHaveExecuted"])
