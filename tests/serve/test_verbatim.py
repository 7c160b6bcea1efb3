"""Results, errors and lists reach clients as the backend wrote them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import pytest
import trio
from support.front import LEGACY, FrontWorld, front_world, full_backend, modern_request
from support.front_clients import EVERY_BACKEND, EVERY_CARRIER, FrontClient, front_client
from support.front_clients import EVERY_ERA as EVERY_CLIENT_ERA
from support.verbatim import Written, as_written, member, without_ours
from trio.testing import MockClock, memory_stream_one_way_pair

from trio_vmcp import JSON
from trio_vmcp.serve._stdio import serve_stdio
from trio_vmcp.testing import CallContext, Rewrite, ScriptedBackend

EVERY_CLIENT = pytest.mark.parametrize("client", ["legacy", "modern", "legacy by lines", "modern by lines"])
EVERY_ERA = pytest.mark.parametrize("era", ["legacy", "modern"])

# Members that a JSON library writes otherwise than they were written, and unknown ones.
NUMBERS = (
    '"price":1.50,"many":1e3,"minus":-0.0,"zero":-0,"tiny":1E-7,"far":1e308,"big":123456789012345678901234567890,'
    '"deep":[[1.0,1.00,{"\u00e9":0.10,"e\u0301":10E+2}]]'
)
TEXTS = r'"escapes":"\u00e9\/\ud83d\ude00\u2028\u0000\u007f\"\\","none":null,"":{}'
HALVES = r'"half":"a\ud800b","\udfff":[]'  # of surrogate pairs
ODD = {"numbers": NUMBERS, "texts": TEXTS, "halves": HALVES, "all": f"{NUMBERS},{TEXTS},{HALVES}"}
EVERY_ODDITY = pytest.mark.parametrize("odd", [pytest.param(odd, id=name) for name, odd in ODD.items()])

REQUESTS: dict[str, JSON] = {
    "tools/call": {"name": "a_echo", "arguments": {}},
    "resources/read": {"uri": "file:///a"},
    "prompts/get": {"name": "a_greet"},
    "completion/complete": {
        "ref": {"type": "ref/prompt", "name": "a_greet"},
        "argument": {"name": "name", "value": ""},
    },
}
RESULTS = {
    "tools/call": '{"odd":{ODD},"content":[{"text":"x","type":"text",ODD}],ODD,"structuredContent":{ODD}}',
    "resources/read": '{ODD,"contents":[{"text":"x",ODD,"uri":"file:///a"}]}',
    "prompts/get": '{"messages":[{"content":{"text":"x","type":"text",ODD},ODD,"role":"user"}],ODD}',
    "completion/complete": '{"completion":{ODD,"values":["b","a"],"total":2},ODD}',
}
LISTS = {
    "tools/list": ("tools", '[{"inputSchema":{ODD,"type":"object","x":{ODD}},"name":"echo",ODD}]'),
    "resources/list": ("resources", '[{"uri":"file:///a",ODD,"name":"a"}]'),
    "resources/templates/list": ("resourceTemplates", '[{ODD,"name":"b","uriTemplate":"file:///b/{name}"}]'),
    "prompts/list": ("prompts", '[{ODD,"name":"greet","arguments":[{ODD,"name":"x"}]}]'),
}


def writing(result: str) -> Rewrite:
    """The response of a backend, with this text for its result."""

    def change(response: JSON) -> bytes:
        return f'{{"jsonrpc":"2.0","id":{json.dumps(response["id"])},"result":{result}}}'.encode()

    return Rewrite(change)


def backend_writing(era: str, results: Mapping[str, str]) -> ScriptedBackend:
    backend = full_backend(era)
    for method, result in results.items():
        backend.fail(method, writing(result))
    return backend


async def ask(world: FrontWorld, client: str, method: str, params: JSON | None = None) -> Written:
    """The response to a request, as it is written."""
    era, _, channel = client.partition(" ")
    if channel:
        return await ask_by_lines(world, era, method, params)
    if era == "legacy":
        received = await (await world.initialize()).ask(method, params)
    else:
        message, headers = modern_request(method, params)
        received = await world.post(message, headers)
    assert 200 == received.status
    return as_written(received.body.rpartition(b"data: ")[2] if received.is_stream else received.body)


async def ask_by_lines(world: FrontWorld, era: str, method: str, params: JSON | None) -> Written:
    """The same over stdio."""
    to_server, receive = memory_stream_one_way_pair()
    send, from_server = memory_stream_one_way_pair()
    version = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    opening: JSON = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": version}
    message: JSON = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}
    asked = [opening, message] if era == "legacy" else [modern_request(method, params)[0]]
    line = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_stdio, world.manager, receive, send)
        for each in asked:
            await to_server.send_all(json.dumps(each).encode() + b"\n")
            line = b""
            while not line.endswith(b"\n"):
                line += bytes(await from_server.receive_some())
        await to_server.aclose()  # the server ends
    return as_written(line)


@EVERY_CLIENT
@EVERY_ERA
@EVERY_ODDITY
async def test_results_pass_as_they_were_written(odd: str, era: str, client: str, autojump_clock: MockClock) -> None:
    """Unknown members, the order of keys, 1.50 and 1e3, and halves of surrogate pairs."""
    results = {method: result.replace("ODD", odd) for method, result in RESULTS.items()}
    async with front_world(backend_writing(era, results)) as world:
        for method, params in REQUESTS.items():
            result = member(await ask(world, client, method, params), "result")
            assert as_written(results[method]) == without_ours(result), method


@EVERY_CLIENT
@EVERY_ERA
async def test_lists_pass_as_they_were_written(era: str, client: str, autojump_clock: MockClock) -> None:
    """Entries are the backend's to the last byte, but for the names of tools and prompts."""
    lists = {
        method: (array, entries.replace("ODD", f"{NUMBERS},{TEXTS}")) for method, (array, entries) in LISTS.items()
    }
    results = {method: f'{{"{array}":{entries}}}' for method, (array, entries) in lists.items()}
    async with front_world(backend_writing(era, results)) as world:
        for method, (array, entries) in lists.items():
            expected = re.sub('"name":"(echo|greet)"', r'"name":"a_\1"', entries)
            result = member(await ask(world, client, method), "result")
            assert as_written(expected) == member(result, array), method


@EVERY_CLIENT
@EVERY_ERA
@EVERY_ODDITY
@pytest.mark.parametrize("code", [-32000, 404])
async def test_errors_pass_as_they_were_written(
    code: int, odd: str, era: str, client: str, autojump_clock: MockClock
) -> None:
    """Code, text and data are the backend's; "other codes are free for applications" (JSON-RPC 2.0 §5.1)."""
    error = f'{{"code":{code},"message":"caf\\u00e9 \\ud83d","data":{{{odd}}}}}'

    def change(response: JSON) -> bytes:
        return f'{{"jsonrpc":"2.0","id":{json.dumps(response["id"])},"error":{error}}}'.encode()

    backend = full_backend(era)
    for method in REQUESTS:
        backend.fail(method, Rewrite(change))
    async with front_world(backend) as world:
        for method, params in REQUESTS.items():
            answer = await ask(world, client, method, params)
            assert as_written(error) == member(answer, "error"), method


@EVERY_BACKEND
@EVERY_CLIENT_ERA
@EVERY_CARRIER
async def test_arguments_reach_the_backend_as_they_were_written(
    carrier: str, era: str, backend_era: str, autojump_clock: MockClock
) -> None:
    """Numbers are spelled as the client spells them. Half a surrogate pair is refused: most parsers would refuse it."""
    arguments = f"{{{NUMBERS}}}".encode()
    async with front_client(carrier, era, full_backend(backend_era)) as client:
        if era == "legacy":
            message: JSON = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
            message["params"] = {"name": "a_echo", "arguments": "ARGUMENTS"}
        else:
            message, _ = modern_request("tools/call", {"name": "a_echo", "arguments": "ARGUMENTS"})
        await client.send_written(message, {"ARGUMENTS": arguments})
        assert "result" in await client.response()
        (exchange,) = client.world.backends["a"].received("tools/call")
        params = member(as_written(exchange.body), "params")
        assert as_written(arguments) == member(params, "arguments")


def written_params(client: FrontClient, method: str) -> list[Written]:
    """Of the messages of this method, as they were written."""
    return [
        member(as_written(written), "params")
        for written, message in zip(client.written, client.received, strict=True)
        if message.get("method") == method
    ]


@EVERY_CARRIER
@EVERY_ODDITY
async def test_questions_and_log_messages_pass_as_they_were_written(
    odd: str, carrier: str, autojump_clock: MockClock
) -> None:
    """And the answer of the client reaches the backend as the client wrote it."""
    question = f'{{"messages":[{{"role":"user","content":{{{odd}}}}}],"maxTokens":10,{odd}}}'
    logged = f'{{"level":"info","data":{{{odd}}},{odd}}}'

    async def ask_model(_arguments: JSON, context: CallContext) -> str:
        await context.send(f'{{"jsonrpc":"2.0","method":"notifications/message","params":{logged}}}'.encode())
        asked = f'{{"jsonrpc":"2.0","id":"q","method":"sampling/createMessage","params":{question}}}'
        await context.send(asked.encode())
        await trio.sleep(1)
        return "asked"

    backend = ScriptedBackend(answers="sse", capabilities={"tools": {}, "logging": {}})
    backend.add_tool("ask", ask_model)
    async with front_client(carrier, "legacy", backend, capabilities={"sampling": {}}) as client:
        await client.ask("tools/call", {"name": "a_ask"})
        (asked,) = await client.questions()
        assert [as_written(logged)] == written_params(client, "notifications/message")
        assert [as_written(question)] == written_params(client, "sampling/createMessage")
        answer = {"jsonrpc": "2.0", "id": asked["id"], "result": "RESULT"}
        await client.send_written(answer, {"RESULT": f'{{"role":"assistant",{NUMBERS}}}'.encode()})
        assert "result" in await client.response()
        (reply,) = [exchange for exchange in backend.exchanges if b'"assistant"' in exchange.body]
        assert as_written(f'{{"role":"assistant",{NUMBERS}}}') == member(as_written(reply.body), "result")


@EVERY_CLIENT_ERA
@EVERY_CARRIER
async def test_progress_is_written_as_the_backend_writes_it(carrier: str, era: str, autojump_clock: MockClock) -> None:
    """Numbers and text; the token is the client's."""

    async def work(_arguments: JSON, context: CallContext) -> str:
        token = json.dumps(context.meta["progressToken"])
        for written in ('"progress":1.50,"total":1e1', '"progress":3', '"progress":4.0,"message":"\\ud800"'):
            params = f'{{"progressToken":{token},{written}}}'
            await context.send(f'{{"jsonrpc":"2.0","method":"notifications/progress","params":{params}}}'.encode())
        return "done"

    backend = ScriptedBackend(answers="sse")
    backend.add_tool("work", work)
    async with front_client(carrier, era, backend) as client:
        params = {"_meta": {"progressToken": "mine"}} if era == "legacy" else {}
        meta = {} if era == "legacy" else {"progressToken": "mine"}
        await client.result("tools/call", {"name": "a_work", **params}, **meta)
        first, second, third = [told for _, told in written_params(client, "notifications/progress")]
        assert [("progressToken", "mine"), ("progress", ("number", "1.50")), ("total", ("number", "1e1"))] == first
        assert [("progressToken", "mine"), ("progress", ("number", "3"))] == second
        assert [("progressToken", "mine"), ("progress", ("number", "4.0")), ("message", "\ud800")] == third
