"""The front to clients of the stateless era."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
import trio
from support.front import BOTH, MODERN, FrontWorld, Received, front_world, modern_request
from support.harness import ALICE, BOB, echo_backend, slow_backend
from support.steps import counting_steps
from trio.testing import MockClock

from trio_vmcp import JSON, FactorySettings, Identity
from trio_vmcp._protocol.headers import VALUES_AT_ONCE, encode_header_value
from trio_vmcp.serve import ServeSettings
from trio_vmcp.testing import CallContext

EVERY_ERA = pytest.mark.parametrize("era", ["legacy", "modern"])
META = "io.modelcontextprotocol/"


async def ask(world: FrontWorld, method: str, params: Any = None, *, headers: Any = None, **more: Any) -> Received:
    message, own = modern_request(method, params, **more)
    return await world.post(message, {**own, **(headers or {})})


async def result_of(world: FrontWorld, method: str, params: Any = None, **more: Any) -> Any:
    answer = (await ask(world, method, params, **more)).answer
    assert "result" in answer, answer
    return answer["result"]


# Requests


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        (lambda m, h: h.pop("mcp-protocol-version"), 400, -32020),
        (lambda m, h: h.update({"mcp-protocol-version": "2025-11-25"}), 400, -32020),
        (lambda m, h: h.pop("mcp-method"), 400, -32020),
        (lambda m, h: h.update({"mcp-method": "tools/list"}), 400, -32020),
        (lambda m, h: h.pop("mcp-name"), 400, -32020),
        (lambda m, h: h.update({"mcp-name": "other"}), 400, -32020),
        (lambda m, h: h.update({"mcp-name": "=?base64?!?="}), 400, -32020),
        (lambda m, h: h.update({"mcp-name": "=?base64?YV9lY2hv?="}), 200, None),
        (lambda m, h: h.update({"mcp-name": " a_echo "}), 200, None),
        (lambda m, h: h.update({"mcp-session-id": "x", "last-event-id": "y"}), 200, None),
        (lambda m, h: m["params"]["_meta"].pop(f"{META}clientCapabilities"), 400, -32602),
        (lambda m, h: m["params"]["_meta"].update({f"{META}clientCapabilities": None}), 400, -32602),
        (lambda m, h: m["params"]["_meta"].pop(f"{META}protocolVersion"), 400, -32602),
        (lambda m, h: m["params"]["_meta"].update({f"{META}protocolVersion": 7}), 400, -32602),
        (lambda m, h: m["params"]["_meta"].update({f"{META}logLevel": "loud"}), 400, -32602),
        (lambda m, h: h.update({"accept": "application/json"}), 406, -32600),
        (lambda m, h: m["params"].update({"name": "a_none"}) or h.update({"mcp-name": "a_none"}), 200, -32602),
        (lambda m, h: m["params"].update({"arguments": 7}), 200, -32602),
        (lambda m, h: m["params"].update({"inputResponses": 7}), 200, -32602),
        (lambda m, h: m["params"].update({"requestState": 7}), 200, -32602),
        (lambda m, h: m["params"].update({"requestState": "AAAA"}), 200, -32602),
    ],
)
async def test_the_first_rule_that_does_not_hold_answers(
    change: Any, status: int, code: int | None, autojump_clock: MockClock
) -> None:
    """Under the request's own id."""
    async with front_world() as world:
        message, headers = modern_request("tools/call", {"name": "a_echo", "arguments": {}}, request_id="r")
        change(message, headers)
        reply = await world.post(message, headers)
        assert status == reply.status, reply.body
        assert "r" == reply.json["id"]
        assert code == reply.json.get("error", {}).get("code")


@pytest.mark.parametrize("uri", [" file:///x ", "\tfile:///x", "file:///\xa0", "file:///\u2028", "=?base64?eA==?="])
async def test_blanks_of_a_uri_are_part_of_it(uri: str, autojump_clock: MockClock) -> None:
    """In a header it is encoded; the blanks that may stand around a header are none of the URI's."""
    backend = echo_backend("modern")
    backend.add_resource(uri, "the text")
    async with front_world(backend) as world:
        named = {"mcp-name": f"  {encode_header_value(uri)} "}
        reply = await ask(world, "resources/read", {"uri": uri}, headers=named)
        assert 200 == reply.status, reply.body
        assert "the text" == reply.json["result"]["contents"][0]["text"]
        reply = await ask(world, "resources/read", {"uri": uri.strip() + "y"}, headers=named)
        assert (400, -32020) == (reply.status, reply.json["error"]["code"])


@pytest.mark.parametrize("version", ["2026-08-01", "2099-01-01"])
async def test_an_unknown_version_is_told_which_are_served(version: str, autojump_clock: MockClock) -> None:
    """Both eras are listed; also for initialize and notifications."""
    async with front_world() as world:
        for method in ("tools/list", "initialize"):
            message, headers = modern_request(method)
            message["params"]["_meta"][f"{META}protocolVersion"] = headers["mcp-protocol-version"] = version
            reply = await world.post(message, headers)
            assert (400, -32022) == (reply.status, reply.json["error"]["code"])
            data = reply.json["error"]["data"]
            assert version == data["requested"]
            assert {MODERN, "2025-11-25"} <= set(data["supported"])


@pytest.mark.parametrize("method", ["no/such", "ping", "initialize", "logging/setLevel", "resources/subscribe"])
async def test_an_unknown_or_removed_method_is_404(method: str, autojump_clock: MockClock) -> None:
    """With -32601 in the body, under the request's id."""
    async with front_world() as world:
        reply = await ask(world, method, request_id=9)
        assert (404, 9, -32601) == (reply.status, reply.json["id"], reply.json["error"]["code"])


async def test_verbs_and_repeated_headers(autojump_clock: MockClock) -> None:
    """GET and DELETE are of the other era; what is repeated may be read in two ways."""
    async with front_world() as world:
        for verb in ("GET", "DELETE"):
            reply = await world.request(verb, headers={"mcp-protocol-version": MODERN})
            assert (405, "POST") == (reply.status, reply.headers["allow"])
        message, headers = modern_request("tools/list")
        repeated = [*headers.items(), ("mcp-method", "tools/list"), ("accept", BOTH)]
        reply = await world.request(
            "POST", json.dumps(message).encode(), [*repeated, ("content-type", "application/json")]
        )
        assert (400, -32020) == (reply.status, reply.json["error"]["code"])


async def test_a_notification_is_taken_and_dropped(autojump_clock: MockClock) -> None:
    """202 without a body; a response belongs to no request of this era."""
    async with front_world() as world:
        notification = {
            "jsonrpc": "2.0",
            "method": "notifications/x",
            "params": {"_meta": {f"{META}protocolVersion": MODERN}},
        }
        reply = await world.post(notification, {"mcp-protocol-version": MODERN})
        assert (202, b"") == (reply.status, reply.body)
        reply = await world.post({"jsonrpc": "2.0", "id": 1, "result": {}}, {"mcp-protocol-version": MODERN})
        assert 400 == reply.status
        # Without `_meta`, the header says the version.
        reply = await world.post(
            {"jsonrpc": "2.0", "method": "notifications/x"}, {"mcp-protocol-version": "2027-01-01"}
        )
        assert (400, -32022) == (reply.status, reply.json["error"]["code"])


@pytest.mark.parametrize(
    ("argument", "header", "is_same"),
    [
        (42, "42.0", True),
        (42, "4.2e1", True),
        (-42, "-42", True),
        (42, "4_2", False),
        (42, "+42", False),
        (42, "nan", False),
        (9007199254740993, "9007199254740993.0", True),
        (9007199254740993, "9007199254740992", False),
    ],
)
async def test_integers_in_headers_are_compared_as_numbers(
    argument: int, header: str, is_same: bool, autojump_clock: MockClock
) -> None:
    """Exactly: two integers that differ may be one float."""
    backend = echo_backend("modern")
    properties = {"n": {"type": "integer", "x-mcp-header": "N"}}
    backend.add_tool("look", inputSchema={"type": "object", "properties": properties})
    async with front_world(backend) as world:
        call = {"name": "a_look", "arguments": {"n": argument}}
        reply = await ask(world, "tools/call", call, headers={"mcp-param-n": header})
        assert (200 if is_same else 400) == reply.status


async def test_parameters_in_headers_are_checked_and_sent_on(autojump_clock: MockClock) -> None:
    """Against the schema of the called tool; the backend gets its own headers, made of its own schema."""
    seen: list[str | None] = []

    async def look(arguments: JSON, context: CallContext) -> str:
        seen.append(context.exchange.headers.get("mcp-param-region"))
        return ""

    backend = echo_backend("modern")
    properties = {"region": {"type": "string", "x-mcp-header": "Region"}, "n": {"type": "integer", "x-mcp-header": "N"}}
    backend.add_tool("look", look, inputSchema={"type": "object", "properties": properties})
    async with front_world(backend) as world:
        call = {"name": "a_look", "arguments": {"region": "eu", "n": 42}}
        good = {"mcp-param-region": "eu", "mcp-param-n": "42.0"}
        assert "result" in (await ask(world, "tools/call", call, headers=good)).json
        assert ["eu"] == seen
        for bad in (
            {},
            {"mcp-param-region": "us", "mcp-param-n": "42"},
            {"mcp-param-region": "eu"},
            {"mcp-param-region": "eu", "mcp-param-n": "43"},
            {"mcp-param-region": "=?base64?*?=", "mcp-param-n": "42"},
        ):
            reply = await ask(world, "tools/call", call, headers=bad)
            assert (400, -32020) == (reply.status, reply.json["error"]["code"])
        assert ["eu"] == seen


async def test_a_large_schema_is_looked_through_in_steps_and_once(autojump_clock: MockClock) -> None:
    """For parameters that are repeated in headers: other requests run in between, and calls that come meanwhile wait
    for what the first one finds.
    """
    values = 40 * VALUES_AT_ONCE
    backend = echo_backend("legacy")
    backend.add_tool("large", inputSchema={"type": "object", "allOf": [{}] * values})
    call = {"name": "a_large", "arguments": {}}
    async with front_world(backend, factory=FactorySettings(max_json_values=2 * values)) as world:
        assert "result" in (await ask(world, "tools/call", {"name": "a_echo", "arguments": {}})).json
        taken = []
        for _ in range(2):
            with counting_steps() as steps:
                async with trio.open_nursery() as nursery:
                    for _ in range(5):
                        nursery.start_soon(ask, world, "tools/call", call)
            taken.append(steps.count)
        assert 40 <= taken[0] - taken[1] < 80


@pytest.mark.parametrize(
    ("hints", "expected"),
    [
        ([(5000, "public"), (2000, "public")], (2000, "public")),
        ([(5000, "public"), (2000, "private")], (0, "private")),
        ([(5000, "public"), None], (0, "private")),
    ],
)
async def test_lists_are_public_if_every_backend_says_so(
    hints: list[tuple[int, Literal["public", "private"]] | None], expected: tuple[int, str], autojump_clock: MockClock
) -> None:
    """With the least time."""
    backends = []
    for hint in hints:
        backend = echo_backend("modern")
        if hint is not None:
            backend.ttl_ms, backend.cache_scope = hint
        backends.append(backend)
    async with front_world(*backends) as world:
        listed = await result_of(world, "tools/list")
        assert expected == (listed["ttlMs"], listed["cacheScope"])


# Streams


@EVERY_ERA
async def test_messages_before_the_response_make_a_stream(era: str, autojump_clock: MockClock) -> None:
    """Progress with the client's token; log messages from the severity on that the request asks for."""

    async def work(arguments: JSON, context: CallContext) -> str:
        await context.notify("notifications/message", {"level": "debug", "data": 0})
        await context.notify("notifications/message", {"level": "error", "data": 1})
        await context.progress(1, 2)
        return "done"

    backend = echo_backend(era, "sse", capabilities={"tools": {}, "logging": {}})
    backend.add_tool("work", work)
    async with front_world(backend) as world:
        reply = await ask(world, "tools/call", {"name": "a_work"}, progressToken=5, logLevel="warning")
        params = {each.get("method"): each.get("params") for each in reply.messages}
        assert {"progressToken": 5, "progress": 1, "total": 2} == params["notifications/progress"]
        assert {"level": "error", "data": 1} == params["notifications/message"]
        assert 3 == len(reply.messages)
        silent = await ask(world, "tools/call", {"name": "a_work"})
        assert not silent.is_stream
        assert "result" in silent.json


async def test_a_client_that_leaves_cancels_its_request(autojump_clock: MockClock) -> None:
    """ "Closing the response stream is cancelling" (2026-07-28, cancellation). It is no refusal of the front's."""
    async with front_world(slow_backend(1000, "modern")) as world:
        message, headers = modern_request("tools/call", {"name": "a_slow"})
        call = world.start_post(message, headers)
        await trio.sleep(2)
        assert 1 == world.backends["a"].in_flight
        call.leave()
        await trio.sleep(2)
        assert 0 == world.backends["a"].in_flight
        assert 0 == world.app._state().refused


async def test_a_long_call_becomes_a_stream(autojump_clock: MockClock) -> None:
    """After `keep_alive_interval`, with comments; events have no ids, since nothing can be resumed."""
    async with front_world(slow_backend(40, "modern"), settings=ServeSettings(keep_alive_interval=15)) as world:
        reply = await ask(world, "tools/call", {"name": "a_slow"})
        assert reply.is_stream
        assert [None] == [event_id for event_id, _ in reply.events]
        assert 1 == reply.body.count(b": keep-alive")


# Questions


async def ask_twice(arguments: JSON, context: CallContext) -> str:
    first = await context.elicit("name?")
    second = await context.elicit("age?")
    return f"{first['content']['x']} {second['content']['x']}"


async def test_a_state_is_good_for_its_request_and_principal_alone(autojump_clock: MockClock) -> None:
    """Other arguments, another tool, another principal, a changed text: -32602, and the backend is not asked."""
    backend = echo_backend("modern")
    backend.add_tool("ask", ask_twice)
    backend.add_tool("ask2", ask_twice)

    class Tokens:
        async def authenticate(self, headers: Any) -> Identity:
            return {"alice": ALICE, "bob": BOB}[headers["authorization"]]

    async with front_world(backend, authenticator=Tokens()) as world:
        alice, bob = {"authorization": "alice"}, {"authorization": "bob"}
        more: JSON = {"capabilities": {"elicitation": {}}}
        call = {"name": "a_ask", "arguments": {"n": 1}}
        result = (await ask(world, "tools/call", call, headers=alice, **more)).answer["result"]
        state = result["requestState"]
        answers = {key: {"action": "accept", "content": {"x": "y"}} for key in result["inputRequests"]}
        before = len(backend.received("tools/call"))
        for params, headers in (
            ({**call, "arguments": {"n": 2}}, alice),
            ({**call, "name": "a_ask2"}, alice),
            (call, bob),
            ({**call, "requestState": state[:-2] + ("AA" if state[-2:] != "AA" else "BB")}, alice),
        ):
            tried = {"inputResponses": answers, "requestState": state, **params}
            reply = await ask(world, "tools/call", tried, headers=headers, **more)
            assert -32602 == reply.answer["error"]["code"], params
        assert before == len(backend.received("tools/call"))


# Subscriptions


# Which era a request is of


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'])
async def test_the_forms_that_a_client_takes_come_before_its_body(body: bytes, autojump_clock: MockClock) -> None:
    """The ladder has 406 before 400."""
    async with front_world() as world:
        reply = await world.post(body, {"mcp-protocol-version": MODERN, "accept": "application/json"})
        assert 406 == reply.status


@pytest.mark.parametrize(
    ("method", "params", "version", "code"),
    [
        ("initialize", {"protocolVersion": "2025-11-25"}, MODERN, None),
        ("initialize", {"_meta": {f"{META}protocolVersion": MODERN}}, None, -32602),
        ("ping", {"_meta": {f"{META}clientInfo": {}}}, "2025-11-25", -32600),
        ("ping", {}, MODERN, -32602),
        ("ping", {"_meta": {f"{META}protocolVersion": "2025-06-18"}}, None, -32600),
        ("ping", {"_meta": {f"{META}protocolVersion": "2025-06-18", f"{META}clientCapabilities": {}}}, MODERN, -32020),
        ("initialize", {"protocolVersion": "2025-11-25", "_meta": {f"{META}protocolVersion": "x"}}, MODERN, -32602),
    ],
)
async def test_the_era_of_a_request(
    method: str, params: JSON, version: str | None, code: int | None, autojump_clock: MockClock
) -> None:
    """A version in `_meta` decides first; then `initialize` is of the handshake era; then the header."""
    async with front_world() as world:
        headers = {} if version is None else {"mcp-protocol-version": version}
        reply = await world.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}, headers)
        assert code == reply.json.get("error", {}).get("code"), reply.json
