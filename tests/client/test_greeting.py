"""What both sides say of themselves before the first call. The same over every channel."""

from __future__ import annotations

import copy
import pickle

import pytest
from support.channels import (
    EVERY_ANSWER,
    EVERY_CHANNEL,
    EVERY_LEGACY_CHANNEL,
    EVERY_MODERN_ANSWER,
    EVERY_MODERN_CHANNEL,
    Channel,
)
from support.clients import ask, call, no_progress
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON, BackendProtocolError, BackendRejected, ClientHandlers, ServerRequest
from trio_vmcp.testing import CallContext, Error, Rewrite

META = "io.modelcontextprotocol/"
VERSION = "2026-07-28"


async def answer_nothing(request: ServerRequest) -> JSON:
    return {}


@EVERY_CHANNEL
async def test_equal_capabilities_are_held_once(channel: Channel, autojump_clock: MockClock) -> None:
    """By the clients of many sessions, as long as one of them has them; a copy is a plain dict."""
    async with channel.open_client(channel.backend()) as one, channel.open_client(channel.backend()) as two:
        declared = one.server_capabilities
        assert "tools" in declared
        assert declared is two.server_capabilities is two.record.server_capabilities
        for copied in (copy.copy(declared), copy.deepcopy(declared), pickle.loads(pickle.dumps(declared))):
            assert declared == copied
            assert dict is type(copied)
        more = channel.backend()
        more.add_prompt("ask")
        async with channel.open_client(more) as three:
            assert {"prompts", "tools"} <= three.server_capabilities.keys() > declared.keys()


# The handshake


@EVERY_LEGACY_CHANNEL
async def test_the_handshake_is_initialize_and_a_notification(channel: Channel, autojump_clock: MockClock) -> None:
    """MCP 2025-11-25, lifecycle, "Initialization": the client names its newest version, its capabilities and itself."""
    backend = channel.backend()
    async with channel.open_client(backend):
        await wait_all_tasks_blocked()
        initialize, notified = (exchange for exchange in backend.exchanges if exchange.method)
        assert ("initialize", 1) == (initialize.method, initialize.request_id)
        params = initialize.params
        assert ("2025-11-25", {}) == (params["protocolVersion"], params["capabilities"])
        assert "trio-vmcp" == params["clientInfo"]["name"]
        assert {"jsonrpc": "2.0", "method": "notifications/initialized"} == notified.message
        assert {} == initialize.meta


@EVERY_LEGACY_CHANNEL
@pytest.mark.parametrize("version", ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"])
async def test_an_older_version_is_accepted(channel: Channel, version: str, autojump_clock: MockClock) -> None:
    """The backend's version is the one that both speak from then on."""
    rewritten = Rewrite(lambda message: message | {"result": message["result"] | {"protocolVersion": version}})
    backend = channel.backend()
    backend.fail("initialize", rewritten)
    async with channel.open_client(backend) as client:
        assert version == client.record.protocol_version


@EVERY_LEGACY_CHANNEL
@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"protocolVersion": "1999-01-01"}, "answered 'initialize' with '1999-01-01'; we speak"),
        ({"protocolVersion": "2026-07-28"}, "'2026-07-28'; we speak"),
        ({"protocolVersion": "x" * 5000}, "'" + "x" * 40 + "'; we speak"),
        ({"protocolVersion": 20251125}, "no version; we speak"),
        ({"protocolVersion": ["2025-11-25"]}, "no version"),
        ({}, "no version"),
        ({"protocolVersion": "2025-11-25", "capabilities": []}, "capabilities that are no object"),
    ],
)
async def test_an_unknown_version_is_an_error_that_names_both(
    channel: Channel, fields: JSON, text: str, autojump_clock: MockClock
) -> None:
    """Nothing is left of the attempt: no backend session, connection or process."""
    backend = channel.backend()
    backend.fail("initialize", Rewrite(lambda message: message | {"result": fields}))
    async with channel.open_bench(backend) as bench:
        with pytest.raises(BackendProtocolError, match=text) as caught:
            await bench.connect()
        assert len(str(caught.value)) < 300


@EVERY_ANSWER
async def test_a_refused_greeting_says_how(channel: Channel, autojump_clock: MockClock) -> None:
    """With the code and the text of the backend, and at once; nothing is left of the attempt."""
    backend = channel.backend()
    greeting = "server/discover" if channel.is_modern else "initialize"
    backend.fail(greeting, Error(-32000, "not today"))
    async with channel.open_bench(backend) as bench:
        with pytest.raises(BackendRejected, match=f"rejected '{greeting}': 'not today'"):
            await bench.connect()


# What every request says


@EVERY_MODERN_ANSWER
async def test_every_modern_request_says_which_client_sends_it(channel: Channel, autojump_clock: MockClock) -> None:
    """In `_meta`, also of `server/discover`: version, capabilities and client. No request of the handshake is sent."""
    backend = channel.backend()
    backend.add_resource("mem://a", "text")
    backend.add_prompt("p", "text")
    async with channel.open_client(backend) as client:
        await call(client)
        await ask(client, "resources/read", {"uri": "mem://a"})
        await ask(client, "prompts/get", {"name": "p"})
        await ask(client, "tools/list")
        assert ({"tools": {}, "resources": {}, "prompts": {}}, VERSION, None) == (
            client.server_capabilities,
            client.record.protocol_version,
            client.record.session_id,
        )
    methods = ["server/discover", "tools/call", "resources/read", "prompts/get", "tools/list"]
    assert methods == [exchange.method for exchange in backend.exchanges]
    for exchange in backend.exchanges:
        assert {f"{META}protocolVersion", f"{META}clientCapabilities", f"{META}clientInfo"} == exchange.meta.keys()
        assert VERSION == exchange.meta[f"{META}protocolVersion"]
        assert {} == exchange.meta[f"{META}clientCapabilities"]
        assert "trio-vmcp" == exchange.meta[f"{META}clientInfo"]["name"]


@EVERY_MODERN_ANSWER
async def test_a_request_cannot_say_another_version_and_may_declare_capabilities_of_its_own(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """The rest of its `_meta` goes along with the progress token, and the given dict stays as it is. (A session passes
    on no reserved key of a caller's `meta`; the capabilities are its `client_capabilities`.)
    """
    backend = channel.backend()
    meta = {f"{META}protocolVersion": "1999-01-01", f"{META}clientCapabilities": {"roots": {}}, "traceparent": "00-1"}
    async with channel.open_client(backend) as client:
        params = {"name": "echo", "arguments": {}, "_meta": meta}
        await ask(client, "tools/call", params, on_progress=no_progress)
        assert {"name", "arguments", "_meta"} == params.keys()
        assert "1999-01-01" == meta[f"{META}protocolVersion"]
    sent = backend.received("tools/call")[0].meta
    assert (VERSION, {"roots": {}}, "00-1", 2) == (
        sent[f"{META}protocolVersion"],
        sent[f"{META}clientCapabilities"],
        sent["traceparent"],
        sent["progressToken"],
    )


@EVERY_CHANNEL
async def test_legacy_requests_say_nothing_of_the_client(channel: Channel, autojump_clock: MockClock) -> None:
    """`_meta` holds what the caller put there, and a progress token if there is a callback."""
    backend = channel.backend()
    async with channel.open_client(backend) as client:
        await call(client)
        await ask(client, "tools/call", {"name": "echo", "_meta": {"mine": 1}}, on_progress=no_progress)
    first, second = ({k: v for k, v in e.meta.items() if META not in k} for e in backend.received("tools/call"))
    assert {} == first
    assert {"mine": 1, "progressToken": 3} == second
    assert channel.is_modern == any(META in key for e in backend.exchanges for key in e.meta)


# What is declared


@EVERY_CHANNEL
async def test_handlers_are_declared(channel: Channel, autojump_clock: MockClock) -> None:
    """In the handshake of one era; with every request of the other, which asks for log messages as well."""
    backend = channel.backend()
    handlers = ClientHandlers(answer_nothing, answer_nothing, answer_nothing, answer_nothing)
    async with channel.open_client(backend, handlers=handlers) as client:
        await call(client)
    declared: JSON = {"sampling": {}, "elicitation": {"form": {}, "url": {}}, "roots": {}}
    if channel.is_modern:
        for exchange in backend.exchanges:
            assert declared == exchange.meta[f"{META}clientCapabilities"]
            assert "info" == exchange.meta[f"{META}logLevel"]
    else:
        (initialize,) = backend.received("initialize")
        assert declared == initialize.params["capabilities"]


@EVERY_CHANNEL
async def test_sampling_with_tools_is_declared_where_the_handler_takes_them(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """`sampling.tools` (2025-11-25, client/sampling). Requests with tools then reach the handler, as received."""
    asked: list[JSON] = []
    answer: JSON = {"role": "assistant", "model": "m", "content": {"type": "tool_use", "id": "1", "name": "now"}}

    async def sample(request: ServerRequest) -> JSON:
        asked.append(request.params)
        return answer

    async def think(arguments: JSON, context: CallContext) -> str:
        answered = await context.sample("?", tools=[{"name": "now"}], toolChoice={"mode": "required"})
        return str(answered["content"]["name"])

    backend = channel.backend()
    backend.add_tool("think", think)
    handlers = ClientHandlers(sample, sampling_tools=True)
    async with channel.open_client(backend, handlers=handlers) as client:
        result = await call(client, "think")
    assert "now" == result["content"][0]["text"]
    (params,) = asked
    assert ([{"name": "now"}], {"mode": "required"}) == (params["tools"], params["toolChoice"])
    told = [e.params.get("capabilities", e.meta.get(f"{META}clientCapabilities")) for e in backend.exchanges]
    assert [{"sampling": {"tools": {}}}] == [each for at, each in enumerate(told) if each and each not in told[:at]]


def test_tools_without_a_handler_for_sampling() -> None:
    """The flag says something of a handler that has to be there."""
    with pytest.raises(ValueError, match="sampling_tools"):
        ClientHandlers(elicitation=answer_nothing, sampling_tools=True)


@EVERY_MODERN_CHANNEL
async def test_a_backend_that_is_not_of_the_pinned_era_is_refused(channel: Channel, autojump_clock: MockClock) -> None:
    """The other era is not asked for."""
    backend = channel.backend()
    backend.fail("server/discover", Error(-32601, "no such method", status=404))
    async with channel.open_bench(backend) as bench:
        with pytest.raises(BackendRejected, match="rejected 'server/discover': 'no such method'"):
            await bench.connect()
    assert {"server/discover"} == {exchange.method for exchange in backend.exchanges}
