"""The stateless era over HTTP: what every request carries, and what each answer means."""

from __future__ import annotations

import base64
import itertools
import logging
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.clients import (
    ask,
    call,
    echo_backend,
    in_json,
    in_sse,
    message_of,
    open_bench,
    open_client,
    open_scripted,
    result,
)
from trio.testing import MockClock

from trio_vmcp import (
    JSON,
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendUnauthorized,
    BackendUnavailable,
    FactorySettings,
)
from trio_vmcp._protocol.headers import decode_header_value
from trio_vmcp._request_note import begin_request
from trio_vmcp.testing import CallContext, Error, Fault, Hang, Raw, Reset, Rewrite, ScriptedBackend, Status

VERSION = "2026-07-28"


def mirroring(**names: Any) -> JSON:
    """An input schema with mirrored properties: property=(header, type)."""
    properties = {key: {"type": kind, "x-mcp-header": header} for key, (header, kind) in names.items()}
    return {"type": "object", "properties": properties}


class Server:
    """A modern server as a function of the request, with scripted answers to `tools/call` and others, in order."""

    def __init__(self, *answers: Any, **discovered: Any) -> None:
        self.answers = list(answers)
        self.discovered = {"supportedVersions": [VERSION], "capabilities": {}, **discovered}
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        asked = message_of(request)
        if asked["method"] == "server/discover":
            return in_json(result(asked["id"], **self.discovered))
        if not self.answers:
            return in_json(result(asked["id"], content=[]))
        answer = self.answers.pop(0)
        return answer(asked) if callable(answer) else answer  # type: ignore[no-any-return]


def over(server: Server, **more: Any) -> Any:
    return open_bench(httpx.MockTransport(server), **{"era": "modern", **more})


# What every request says


async def test_every_request_names_its_method_and_version_in_headers() -> None:
    """Every request, `server/discover` included, has `Mcp-Method` and `MCP-Protocol-Version`, and no session id."""
    backend = echo_backend("modern")
    backend.add_resource("mem://a", "text")
    backend.add_prompt("p", "text")
    async with open_client(backend) as client:
        await call(client)
        await ask(client, "resources/read", {"uri": "mem://a"})
        await ask(client, "prompts/get", {"name": "p"})
        await ask(client, "tools/list")
    methods = ["server/discover", "tools/call", "resources/read", "prompts/get", "tools/list"]
    assert methods == [e.method for e in backend.exchanges]
    assert methods == [e.headers["mcp-method"] for e in backend.exchanges]
    assert [None, "echo", "mem://a", "p", None] == [e.headers.get("mcp-name") for e in backend.exchanges]
    for exchange in backend.exchanges:
        assert [VERSION] == exchange.headers.get_list("mcp-protocol-version")
        assert "mcp-session-id" not in exchange.headers


@given(name=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_name_survives_its_header(name: str) -> None:
    """Printable ASCII is sent as it is, other text in Base64: `Mcp-Name` decodes to the name in the body."""
    server = Server()

    async def main() -> None:
        async with over(server) as bench:
            client = await bench.connect()
            await call(client, name)

    trio.run(main)
    request = server.requests[-1]
    (header,) = [value for key, value in request.headers.raw if key.lower() == b"mcp-name"]
    assert name == decode_header_value(header.decode("ascii"))
    assert name == message_of(request)["params"]["name"]


@pytest.mark.parametrize(
    ("value", "header"),
    [
        ("plain text", "plain text"),
        ("", ""),
        (" edge ", "=?base64?" + base64.b64encode(b" edge ").decode() + "?="),
        ("Grüße", "=?base64?" + base64.b64encode("Grüße".encode()).decode() + "?="),
        ("a\r\nEvil: yes", "=?base64?" + base64.b64encode(b"a\r\nEvil: yes").decode() + "?="),
        ("=?base64?eA==?=", "=?base64?" + base64.b64encode(b"=?base64?eA==?=").decode() + "?="),
        (True, "true"),
        (-7, "-7"),
        (5.0, "5"),
        (None, None),
        ({"not": "scalar"}, None),
    ],
)
async def test_arguments_are_mirrored_in_headers(value: Any, header: str | None) -> None:
    """The schema of the last listing decides; null and absent arguments have no header, and blanks are kept by
    Base64.
    """
    backend = echo_backend("modern", capabilities={"tools": {}})
    backend.add_tool("mirrored", inputSchema=mirroring(region=("Region", "string"), other=("Other", "integer")))
    async with open_client(backend) as client:
        await ask(client, "tools/list")
        backend.fail("tools/call", Status(204))  # the server's check of types is not the subject
        with pytest.raises(BackendProtocolError):
            await call(client, "mirrored", {"region": value})
        with pytest.raises(BackendProtocolError):
            await call(client, "echo", {"region": value})
    mirrored, plain = backend.received("tools/call")
    assert header == mirrored.headers.get("mcp-param-region")
    assert "mcp-param-other" not in mirrored.headers
    assert "mcp-param-region" not in plain.headers


async def test_mirrored_arguments_satisfy_a_strict_server() -> None:
    """The scripted backend compares every header with the body."""
    backend = echo_backend("modern")
    backend.add_tool("m", inputSchema=mirroring(a=("A", "string"), n=("N", "integer"), b=("B", "boolean")))
    async with open_client(backend) as client:
        await ask(client, "tools/list")
        await call(client, "m", {"a": "é", "n": 12, "b": False})
        await call(client, "m", {"a": ""})
        await call(client, "m")
        backend.tools[-1]["inputSchema"] = {"type": "object"}
        await ask(client, "tools/list")
        await call(client, "m", {"a": "x"})
    assert "mcp-param-a" not in backend.received("tools/call")[-1].headers
    assert 4 == backend.executed["m"]


@pytest.mark.parametrize(
    "where",
    [
        {"name": "\ud800", "arguments": {}},
        {"name": "m", "arguments": {"a": "\ud800"}},
        {"name": "m", "arguments": {"x": {1}}},
    ],
)
async def test_what_is_no_json_is_the_callers_error(where: JSON) -> None:
    """The error comes before any header is made, without the value, and nothing is sent."""
    backend = echo_backend("modern")
    backend.add_tool("m", inputSchema=mirroring(a=("A", "string")))
    async with open_client(backend) as client:
        await ask(client, "tools/list")
        with pytest.raises(ValueError, match="params of 'tools/call' cannot be sent"):
            await ask(client, "tools/call", where)
    assert [] == backend.received("tools/call")


# Tools that break the rules


@pytest.mark.parametrize(
    "schema",
    [
        mirroring(a=("", "string")),
        mirroring(a=("not a token", "string")),
        mirroring(a=(7, "string")),
        mirroring(a=("A", "number")),
        mirroring(a=("A", "object")),
        mirroring(a=("Same", "string"), b=("sAME", "string")),
        {"type": "object", "properties": {"a": {"items": {"type": "string", "x-mcp-header": "A"}}}},
        {"type": "object", "oneOf": [mirroring(a=("A", "string"))]},
        {"type": "object", "$defs": {"d": {"type": "string", "x-mcp-header": "A"}}},
    ],
)
async def test_a_tool_with_a_bad_header_is_dropped_and_the_others_stay(
    schema: JSON, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning names the tool: MCP forbids calling it."""
    backend = echo_backend("modern")
    backend.add_tool("bad", inputSchema=schema)
    backend.add_tool("good", inputSchema=mirroring(a=("A", "string")))
    async with open_client(backend) as client:
        page = await ask(client, "tools/list")
    assert ["echo", "steps", "hang", "good"] == [tool["name"] for tool in page["tools"]]
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "backend 'b': dropped tool 'bad': its input schema has" in warning.getMessage()


@pytest.mark.parametrize("tools", [None, {}, "x", [7, None, {"name": 7}, {"name": "x"}, {"inputSchema": {}}]])
async def test_what_is_wrong_otherwise_is_for_the_listing_to_say(tools: Any) -> None:
    """Other mistakes in a page are for the listing to report: the client returns it as received."""
    async with over(Server(lambda asked: in_json(result(asked["id"], tools=tools)))) as bench:
        assert tools == (await ask(await bench.connect(), "tools/list"))["tools"]


# Header mismatch


async def test_an_old_schema_is_fetched_again_and_the_call_sent_once_more() -> None:
    """-32020 (HeaderMismatch) proves that the call did not run. All pages are listed again, and the call has a
    new id.
    """
    backend = echo_backend("modern")
    backend.page_size = 2
    async with open_client(backend) as client:
        backend.add_tool("late", inputSchema=mirroring(a=("A", "string")))
        await call(client, "late", {"a": "x"})
    methods = ["server/discover", "tools/call", "tools/list", "tools/list", "tools/call"]
    assert methods == [e.method for e in backend.exchanges]
    assert [1, 2, 3, 4, 5] == [e.request_id for e in backend.exchanges]
    assert ["x"] == [e.headers["mcp-param-a"] for e in backend.exchanges if "mcp-param-a" in e.headers]
    assert 1 == backend.executed["late"]


async def test_a_mismatch_that_stays_is_an_error_after_one_retry() -> None:
    """There is one retry, and none for other methods or errors."""
    backend = echo_backend("modern")
    async with open_client(backend) as client:
        backend.fail("tools/call", Error(-32020, "mismatch", status=400), times=2)
        with pytest.raises(BackendRejected, match="mismatch") as caught:
            await call(client)
        assert (-32020, False) == (caught.value.code, caught.value.may_have_executed)
        assert (2, 1) == (len(backend.received("tools/call")), len(backend.received("tools/list")))
        backend.fail("prompts/get", Error(-32020, "mismatch", status=400))
        with pytest.raises(BackendRejected):
            await ask(client, "prompts/get", {"name": "p"})
        backend.fail("tools/call", Error(-32602, "bad", status=400), times=1)
        with pytest.raises(BackendRejected):
            await call(client)
        assert (3, 1) == (len(backend.received("tools/call")), len(backend.received("tools/list")))


@pytest.mark.parametrize("fault", [Reset(0), Status(500), Hang(), Raw(b"x"), Error(-32603, "broken")])
async def test_a_list_that_cannot_be_fetched_again_executed_nothing(autojump_clock: MockClock, fault: Any) -> None:
    """The call was refused, so it did not run, whatever happens to the listing."""
    backend = echo_backend("modern")
    async with open_client(backend) as client:
        backend.fail("tools/call", Error(-32020, "mismatch", status=400))
        backend.fail("tools/list", fault)
        with pytest.raises(BackendError) as caught:
            await call(client, timeout=5)
        assert not caught.value.may_have_executed


async def test_a_list_without_an_end_is_fetched_within_bounds() -> None:
    """At most `max_pages` are fetched, then the call is sent with the schemas known."""
    backend = echo_backend("modern")
    numbers = itertools.count()
    endless = Rewrite(
        lambda m: {**m, "result": {**m["result"], "tools": [tool(next(numbers))], "nextCursor": "after 0"}}
    )
    async with open_client(backend, settings=FactorySettings(max_pages=7)) as client:
        backend.fail("tools/call", Error(-32020, "mismatch", status=400), times=1)
        backend.fail("tools/list", endless)
        await call(client)
    assert 7 == len(backend.received("tools/list"))


def tool(number: int) -> JSON:
    return {"name": f"t{number}", "inputSchema": {"type": "object"}}


@pytest.mark.parametrize("tools", [[], None, [7, {"name": 7}], [tool(1), tool(1)]])
async def test_pages_that_bring_nothing_new_end_what_is_fetched_again(tools: Any) -> None:
    """After three in a row, as in any listing, the call is sent with the schemas known. A page with a new tool counts
    anew.
    """
    backend = echo_backend("modern")
    pages = itertools.count()

    def page(answer: JSON) -> JSON:
        number = next(pages)
        listed = [tool(number)] if number in (0, 3) else tools
        return {**answer, "result": {**answer["result"], "tools": listed, "nextCursor": "after 0"}}

    async with open_client(backend) as client:
        backend.fail("tools/call", Error(-32020, "mismatch", status=400), times=1)
        backend.fail("tools/list", Rewrite(page))
        await call(client)
    assert 7 == len(backend.received("tools/list"))


async def test_tools_over_the_limit_end_what_is_fetched_again() -> None:
    """`max_items_per_backend`: names that are all new are not collected without end."""
    backend = echo_backend("modern")
    pages = itertools.count()

    def page(answer: JSON) -> JSON:
        number = 5 * next(pages)
        listed = [tool(number + offset) for offset in range(5)]
        return {**answer, "result": {**answer["result"], "tools": listed, "nextCursor": "after 0"}}

    async with open_client(backend, settings=FactorySettings(max_items_per_backend=12)) as client:
        backend.fail("tools/call", Error(-32020, "mismatch", status=400), times=1)
        backend.fail("tools/list", Rewrite(page))
        await call(client)
    assert 3 == len(backend.received("tools/list"))


# Results


@pytest.mark.parametrize(
    ("status", "error"), [(401, BackendUnauthorized), (404, BackendRejected), (500, BackendRejected)]
)
async def test_http_errors_are_typed(status: int, error: type[BackendError]) -> None:
    """The same as in the legacy era; 404 does not mean a lost session, since there are no sessions."""
    async with over(Server(httpx.Response(status))) as bench:
        with pytest.raises(error, match=f"HTTP {status}"):
            await call(await bench.connect())


@pytest.mark.parametrize(
    ("fault", "is_lost"),
    [
        (Error(-32000, "Bad Request: Mcp-Session-Id header is required", status=400), True),
        (Error(-32000, "Bad Request: Unsupported protocol version: 2026-07-28", status=400), True),
        (Status(404, b"<html>"), True),
        (Status(405), False),
        (Status(400), True),
        (Error(-32601, "no such method", status=404), False),
        (Error(-32602, "'session' is not a string", status=400), False),
        (Error(-32020, "the session header differs", status=400), False),
        (Error(-32021, "roots", {"requiredCapabilities": {}}, status=400), False),
        (Status(503), False),
        (Error(-32000, "Unsupported protocol version", status=200), False),
    ],
)
async def test_which_refusals_are_those_of_another_server(fault: Fault, is_lost: bool) -> None:
    """A server that was replaced by one of the legacy era, or by a proxy's page, did not run the call."""
    backend = echo_backend("modern")
    async with open_client(backend) as client:
        backend.fail("tools/call", fault)
        note = begin_request("tools/call")
        with pytest.raises(BackendError) as caught:
            await call(client)
        assert is_lost == note.session_lost
        assert not (is_lost and caught.value.may_have_executed)


# Streams


@pytest.mark.parametrize("first", [b"", b"id: 1\ndata:\n\n", b": x\n\n"])
async def test_a_stream_that_ends_early_is_lost(first: bytes) -> None:
    """This era has no resumption, and the call is not sent again."""
    server = Server(in_sse(first))
    async with over(server) as bench:
        with pytest.raises(BackendUnavailable, match="closed the stream before it answered 'tools/call'") as caught:
            await call(await bench.connect())
        assert caught.value.may_have_executed
    assert 2 == len(server.requests)


# Discovery, pinned


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (Error(-32601, "no", status=404), BackendRejected, "rejected 'server/discover'"),
        (Error(-32022, "no", {"supported": ["2025-11-25"]}, status=400), BackendRejected, "rejected 'server/discover'"),
        (Status(401), BackendUnauthorized, "HTTP 401"),
        (Status(404), BackendRejected, "HTTP 404"),
        (Status(204), BackendProtocolError, "no content"),
        (Reset(0), BackendUnavailable, "lost its connection|whole"),
        (Status(200, headers={"content-type": "text/event-stream"}), BackendUnavailable, "closed the stream"),
        (
            Rewrite(lambda m: {**m, "result": {"supportedVersions": ["2025-11-25"]}}),
            BackendProtocolError,
            "does not list",
        ),
        (Rewrite(lambda m: {**m, "result": {}}), BackendProtocolError, "does not list"),
        (
            Rewrite(lambda m: {**m, "result": {"supportedVersions": [VERSION], "capabilities": 7}}),
            BackendProtocolError,
            "capabilities that are no object",
        ),
    ],
)
async def test_a_pinned_backend_that_is_not_modern_says_why(answer: Any, error: type[BackendError], text: str) -> None:
    """The error says what the backend answered, and the legacy era is not tried."""
    backend = echo_backend("modern")
    backend.fail("server/discover", answer)
    async with open_scripted(backend) as bench:
        with pytest.raises(error, match=text):
            await bench.connect()
    assert {"server/discover"} == {e.method for e in backend.exchanges}


async def test_unsupported_version_is_asked_about_once_more() -> None:
    """-32022 with our version in its list: the discovery is retried once."""
    backend = echo_backend("modern")
    rule = backend.fail("server/discover", Error(-32022, "no", {"supported": [VERSION]}, status=400), times=1)
    async with open_client(backend) as client:
        await call(client)
    assert 1 == rule.struck
    assert 2 == len(backend.received("server/discover"))


async def test_two_clients_with_the_same_ids_do_not_mix(autojump_clock: MockClock) -> None:
    """Each client counts its own ids, and an answer belongs to the exchange in which it comes."""

    async def slow(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(arguments["seconds"])
        return str(arguments["who"])

    backend = ScriptedBackend(era="modern")
    backend.add_tool("slow", slow)
    async with open_scripted(backend) as bench:
        clients = [await bench.connect(), await bench.connect()]
        heard: dict[int, str] = {}

        async def one(who: int) -> None:
            answer = await call(clients[who % 2], "slow", {"seconds": 10 - who, "who": who})
            heard[who] = answer["content"][0]["text"]

        async with trio.open_nursery() as nursery:
            for who in range(10):
                nursery.start_soon(one, who)
    assert {who: str(who) for who in range(10)} == heard
