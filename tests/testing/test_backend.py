"""A scripted backend behaves like an MCP server of its era, and records its requests."""

from __future__ import annotations

import base64
import json
import re
from functools import partial
from typing import Any, Literal

import httpx
import pytest
import trio
from support.duplex import Raw
from support.harness import echo_backend, open_world
from support.raw_mcp import ACCEPT, RawClient, messages, open_client_on, open_raw_client
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from trio_vmcp import BackendTimeout, BackendUnavailable
from trio_vmcp.models import JSON
from trio_vmcp.testing import (
    CallContext,
    Delay,
    Disconnect,
    Drip,
    Fault,
    Rewrite,
    RpcError,
    ScriptedBackend,
    open_memory_network,
)
from trio_vmcp.testing import Raw as RawFault
from trio_vmcp.testing.modern import VERSION_KEY

Era = Literal["legacy", "modern"]
Answers = Literal["json", "sse"]

both_eras = pytest.mark.parametrize("era", ["legacy", "modern"])
both_forms = pytest.mark.parametrize("answers", ["json", "sse"])


async def sleep_long(arguments: JSON, context: CallContext) -> str:
    await trio.sleep(60)
    return "rested"


def slow_backend(era: Era, answers: Answers = "json") -> ScriptedBackend:
    backend = ScriptedBackend(era=era, answers=answers)
    backend.add_tool("slow", sleep_long)
    return backend


def full_backend(era: Era, answers: Answers = "json") -> ScriptedBackend:
    backend = ScriptedBackend(era=era, answers=answers, page_size=2, completions={"city": ["Oslo", "Osaka", "Rome"]})
    for name in "abcde":
        backend.add_tool(name, description=f"tool {name}")
    backend.add_resource("memo://one", "first", mimeType="text/plain")
    backend.add_resource_template("memo://day/{day}", "a day")
    backend.add_prompt("greet", "Hello, {who}!", arguments=[{"name": "who"}])
    return backend


# Handshakes


@both_forms
async def test_a_legacy_handshake_opens_a_session_and_delete_ends_it(answers: Answers) -> None:
    """`initialize` gives out a session id, DELETE ends the session, and requests with its id are then refused."""
    backend = full_backend("legacy", answers)
    async with open_memory_network() as network, open_client_on(network, backend) as client:
        introduction = await client.shake_hands()
        assert "2025-11-25" == introduction["protocolVersion"]
        assert {"name": "scripted", "version": "1"} == introduction["serverInfo"]
        assert {"tools": {}, "resources": {}, "prompts": {}, "completions": {}} == introduction["capabilities"]
        assert ["scripted-session-1"] == list(backend.sessions)
        assert {} == await client.result("ping")
        assert 200 == (await client.http.delete(client.url, headers=client.headers)).status_code
        assert [] == list(backend.sessions)
        assert ["scripted-session-1"] == backend.deleted_sessions
        assert 404 == (await client.http.delete(client.url, headers=client.headers)).status_code
        assert (404, -32000) == await client.error("tools/list")
    methods = ["initialize", "notifications/initialized", "ping", "", "", "tools/list"]
    assert methods == [exchange.method for exchange in backend.exchanges]
    assert 2 == len(backend.received("DELETE"))


@both_forms
async def test_a_modern_backend_introduces_itself_and_keeps_no_session(answers: Answers) -> None:
    """`server/discover` answers with version and capabilities; no session id is given out, and GET and DELETE are
    answered 405.
    """
    backend = full_backend("modern", answers)
    async with open_memory_network() as network, open_client_on(network, backend) as client:
        response = await client.request("server/discover")
        result = messages(response)[-1]["result"]
        assert ["2026-07-28"] == result["supportedVersions"]
        assert ("complete", 0, "private") == (result["resultType"], result["ttlMs"], result["cacheScope"])
        assert "mcp-session-id" not in response.headers
        for verb in "GET", "DELETE":
            refused = await client.http.request(verb, client.url)
            assert (405, "POST") == (refused.status_code, refused.headers["allow"])
    assert {} == backend.sessions


async def test_a_legacy_backend_turns_a_modern_probe_away() -> None:
    """`server/discover` without a session id is answered 400, from which a client learns the era."""
    async with open_memory_network() as network, open_client_on(network, ScriptedBackend()) as client:
        client.modern = True
        assert (400, -32000) == await client.error("server/discover")


async def test_a_modern_backend_names_its_versions_to_a_legacy_client() -> None:
    """`initialize` at a modern backend is answered -32022 with the versions that it serves."""
    async with open_memory_network() as network, open_client_on(network, ScriptedBackend(era="modern")) as client:
        client.modern = False
        response = await client.request("initialize", {"protocolVersion": "2025-11-25"})
    assert 400 == response.status_code
    (message,) = messages(response)
    assert {"supported": ["2026-07-28"], "requested": "2025-11-25"} == message["error"]["data"]


async def test_a_backend_of_both_eras_serves_each_client_in_its_own() -> None:
    """Era "both" decides for every request: legacy clients have sessions, modern ones have none."""
    backend = ScriptedBackend(era="both")
    backend.add_tool("now")
    for modern in True, False:
        async with open_raw_client(backend, modern=modern) as client:
            result = await client.result("tools/call", {"name": "now"})
            assert modern == ("resultType" in result)
    assert 1 == len(backend.sessions)


async def test_a_backend_without_session_ids_asks_for_none() -> None:
    """`session_ids=False`: ids are neither given out nor required."""
    backend = ScriptedBackend(session_ids=False, protocol_version="2025-03-26", instructions="be kind")
    backend.add_tool("now")
    async with open_memory_network() as network, open_client_on(network, backend) as client:
        introduction = await client.shake_hands()
        assert ("2025-03-26", "be kind") == (introduction["protocolVersion"], introduction["instructions"])
        assert "mcp-session-id" not in client.headers
        assert 1 == len((await client.result("tools/list"))["tools"])


async def test_a_listener_that_leaves_is_forgotten(autojump_clock: MockClock) -> None:
    """Closing the GET stream ends it at the backend, too."""
    backend = ScriptedBackend(listens=True)
    async with open_raw_client(backend) as client:
        with trio.move_on_after(1):
            await client.http.get(client.url, headers=client.headers)
        await wait_all_tasks_blocked()
        assert (0, 0) == (backend.listening, backend.in_flight)


# What is checked


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"accept": "application/json"}, 406),
        ({"content-type": "text/plain"}, 415),
        ({"mcp-session-id": None}, 400),
        ({"mcp-session-id": "somebody-else"}, 404),
        ({"mcp-protocol-version": "1999-01-01"}, 400),
    ],
)
async def test_a_legacy_backend_insists_on_headers(change: dict[str, str | None], status: int) -> None:
    """Each wrong header has the status that real servers answer."""
    backend = full_backend("legacy")
    async with open_raw_client(backend) as client:
        request = client.build("tools/list")
        for name, value in change.items():
            request.headers.pop(name, None)
            if value is not None:
                request.headers[name] = value
        assert status == (await client.http.send(request)).status_code


@pytest.mark.parametrize(
    ("header", "value", "code"),
    [
        ("mcp-method", None, -32020),
        ("mcp-method", "tools/list", -32020),
        ("mcp-name", None, -32020),
        ("mcp-name", "b", -32020),
        ("mcp-name", "=?base64?!?=", -32020),
        ("mcp-protocol-version", None, -32020),
        ("mcp-protocol-version", "2025-11-25", -32020),
        ("mcp-param-city", "Oslo", -32020),
        ("accept", "text/html", -32600),
    ],
)
async def test_a_modern_backend_insists_on_headers(header: str, value: str | None, code: int) -> None:
    """A header that is missing or differs from the body is answered -32020 (HeaderMismatch)."""
    backend = ScriptedBackend(era="modern")
    backend.add_tool("a", inputSchema={"type": "object", "properties": {"city": {"x-mcp-header": "City"}}})
    async with open_raw_client(backend) as client:
        request = client.build("tools/call", {"name": "a"})
        request.headers.pop(header, None)
        if value is not None:
            request.headers[header] = value
        response = await client.http.send(request)
    assert code == messages(response)[0]["error"]["code"]
    assert response.status_code in (400, 406)
    assert {} == backend.executed


@pytest.mark.parametrize(
    ("meta", "code"),
    [
        ({}, -32602),
        ({"protocolVersion": "2026-07-28"}, -32602),
        ({"protocolVersion": "2030-01-01", "clientCapabilities": {}}, -32022),
    ],
)
async def test_a_modern_backend_insists_on_meta(meta: JSON, code: int) -> None:
    """Version and capabilities are required in every request, and the version must be one that is served."""
    version = meta.get("protocolVersion", "2026-07-28")
    params = {"_meta": {f"io.modelcontextprotocol/{key}": value for key, value in meta.items()}}
    headers = {**ACCEPT, "mcp-protocol-version": version, "mcp-method": "tools/list"}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params}
    async with open_raw_client(ScriptedBackend(era="modern")) as client:
        response = await client.http.post(client.url, headers=headers, json=message)
    assert (400, code) == (response.status_code, messages(response)[0]["error"]["code"])


@pytest.mark.parametrize(("value", "header"), [("Århus", None), (7, "7"), (True, "true"), ("Oslo", "Oslo")])
async def test_mirrored_arguments_are_compared_after_decoding(value: Any, header: str | None) -> None:
    """`Mcp-Param-*` may be plain or Base64 of UTF-8."""
    backend = ScriptedBackend(era="modern")
    inner = {"type": "object", "properties": {"city": {"x-mcp-header": "City"}}}
    backend.add_tool("a", inputSchema={"type": "object", "properties": {"at": inner}})
    async with open_raw_client(backend) as client:
        request = client.build("tools/call", {"name": "a", "arguments": {"at": {"city": value}}})
        encoded = base64.b64encode(str(value).encode()).decode()
        request.headers["mcp-param-city"] = header or f"=?base64?{encoded}?="
        assert "result" in messages(await client.http.send(request))[0]
        request.headers["mcp-param-city"] = "elsewhere"
        assert -32020 == messages(await client.http.send(request))[0]["error"]["code"]


@both_eras
@pytest.mark.parametrize(("body", "code"), [(b"{", -32700), (b"[]", -32600), (b"[" * 100_000, -32700)])
async def test_what_is_not_json_rpc_is_refused(era: Era, body: bytes, code: int) -> None:
    """Text that is no JSON, and JSON that is no request, are answered 400 with a null id."""
    headers = {**ACCEPT, "content-type": "application/json"}
    async with open_raw_client(ScriptedBackend(era=era)) as client:
        response = await client.http.post(client.url, headers=headers, content=body)
    (message,) = messages(response)
    assert (400, None, code) == (response.status_code, message["id"], message["error"]["code"])


# What is offered


@both_eras
@both_forms
async def test_lists_come_in_pages(era: Era, answers: Answers) -> None:
    """Cursors lead through the whole list, in order; a cursor that was not given out is refused."""
    names: list[str] = []
    async with open_raw_client(full_backend(era, answers)) as client:
        page = await client.result("tools/list")
        while True:
            names += [tool["name"] for tool in page["tools"]]
            if "nextCursor" not in page:
                break
            page = await client.result("tools/list", {"cursor": page["nextCursor"]})
        assert [*"abcde"] == names
        assert (200, -32602) == await client.error("tools/list", {"cursor": "mine"})


@both_eras
@both_forms
async def test_everything_offered_is_served(era: Era, answers: Answers) -> None:
    """Tools, resources, templates, prompts and completions answer as listed; unknown names are errors."""
    backend = full_backend(era, answers)
    async with open_raw_client(backend) as client:
        called = await client.result("tools/call", {"name": "a", "arguments": {"x": [1, None]}})
        assert [{"type": "text", "text": '{"x": [1, null]}'}] == called["content"]
        assert ["memo://one"] == [entry["uri"] for entry in (await client.result("resources/list"))["resources"]]
        templates = (await client.result("resources/templates/list"))["resourceTemplates"]
        assert ["memo://day/{day}"] == [entry["uriTemplate"] for entry in templates]
        for uri, text in ("memo://one", "first"), ("memo://day/monday", "a day"):
            (contents,) = (await client.result("resources/read", {"uri": uri}))["contents"]
            assert (uri, text) == (contents["uri"], contents["text"])
        assert ["greet"] == [entry["name"] for entry in (await client.result("prompts/list"))["prompts"]]
        prompt = await client.result("prompts/get", {"name": "greet", "arguments": {"who": "Ada"}})
        assert "Hello, Ada!" == prompt["messages"][0]["content"]["text"]
        reference = {"ref": {"type": "ref/prompt", "name": "greet"}, "argument": {"name": "city", "value": "Os"}}
        assert ["Oslo", "Osaka"] == (await client.result("completion/complete", reference))["completion"]["values"]

        assert (200, -32602) == await client.error("tools/call", {"name": "z"})
        assert (200, -32602) == await client.error("prompts/get", {"name": "z"})
        missing = -32602 if era == "modern" else -32002
        assert (200, missing) == await client.error("resources/read", {"uri": "memo://two"})
        assert (404 if era == "modern" else 200, -32601) == await client.error("tools/forget")
    assert {"a": 1} == backend.executed


async def test_what_is_not_declared_is_not_a_method() -> None:
    """`capabilities=` overrides the lists; methods of a capability that is not declared do not exist."""
    backend = ScriptedBackend(capabilities={"resources": {}}, tools=[{"name": "a"}])
    async with open_raw_client(backend) as client:
        assert (200, -32601) == await client.error("tools/list")
        assert [] == (await client.result("resources/list"))["resources"]


@both_eras
async def test_handlers_decide_what_a_call_answers(era: Era) -> None:
    """Content blocks and whole results are sent unchanged, RpcError as an error, any other exception as an `isError`
    result.
    """

    async def blocks(arguments: JSON, context: CallContext) -> list[JSON]:
        return [{"type": "image", "data": "", "mimeType": "image/png"}]

    async def whole(arguments: JSON, context: CallContext) -> JSON:
        return {"content": [], "structuredContent": {"n": 1}, "resultType": "odd"}

    async def refuse(arguments: JSON, context: CallContext) -> str:
        raise RpcError(-32042, "go there first", {"url": "x"})

    async def fall(arguments: JSON, context: CallContext) -> str:
        raise ValueError("ouch")

    backend = ScriptedBackend(era=era)
    for handler in blocks, whole, refuse, fall:
        backend.add_tool(handler.__name__, handler)
    async with open_raw_client(backend) as client:
        assert "image" == (await client.result("tools/call", {"name": "blocks"}))["content"][0]["type"]
        assert "odd" == (await client.result("tools/call", {"name": "whole"}))["resultType"]
        assert (200, -32042) == await client.error("tools/call", {"name": "refuse"})
        failed = await client.result("tools/call", {"name": "fall"})
        assert (True, "ValueError: ouch") == (failed["isError"], failed["content"][0]["text"])
    assert ["ouch"] == [str(error) for error in backend.handler_errors]


# What happens during a call


async def report_twice(arguments: JSON, context: CallContext) -> str:
    await context.progress(1, 2, "half")
    await context.progress(2)
    return "done"


@both_eras
async def test_progress_goes_to_the_token_of_the_call(era: Era) -> None:
    """Over SSE, progress comes before the response and carries the client's token; without a token there is none."""
    backend = ScriptedBackend(era=era, answers="sse")
    backend.add_tool("work", report_twice)
    async with open_raw_client(backend) as client:
        *reports, response = messages(await client.request("tools/call", {"name": "work"}, token="t"))
        assert [
            {"progressToken": "t", "progress": 1, "total": 2, "message": "half"},
            {"progressToken": "t", "progress": 2},
        ] == [report["params"] for report in reports]
        assert "done" == response["result"]["content"][0]["text"]
        assert 1 == len(messages(await client.request("tools/call", {"name": "work"})))


async def test_a_json_answer_has_no_room_for_progress() -> None:
    """With `answers="json"` messages before the response are dropped."""
    backend = ScriptedBackend()
    backend.add_tool("work", report_twice)
    async with open_raw_client(backend) as client:
        assert 1 == len(messages(await client.request("tools/call", {"name": "work"}, token="t")))


@both_eras
async def test_bytes_go_out_as_they_are(era: Era, nursery: trio.Nursery) -> None:
    """Bytes are sent unchanged on the stream of a call, in place of its response, and on a stream for notifications."""

    async def babble(arguments: JSON, context: CallContext) -> str:
        await context.send(b"not JSON")
        return "done"

    backend = ScriptedBackend(era=era, answers="sse", listens=True)
    backend.add_tool("babble", babble)
    backend.fail("tools/call", Rewrite(lambda response: b"\xff"))
    async with open_raw_client(backend) as client:
        answer = await client.request("tools/call", {"name": "babble"})
        assert b"data: not JSON\n\n" in answer.content
        assert b"data: \xff\n\n" in answer.content
    near, far = memory_stream_pair()
    nursery.start_soon(backend.serve_lines, far)
    raw = Raw(near)
    asked = {"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen" if era == "modern" else "ping"}
    meta = {VERSION_KEY: "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
    await raw.send({**asked, "params": {"notifications": {}, "_meta": meta}})
    await raw.receive()
    backend.send(b'{"from": "bytes"}')
    assert {"from": "bytes"} == await raw.receive()
    await near.aclose()


async def test_a_resumable_stream_begins_with_an_id() -> None:
    """`resumable=True`: the first event has an id, no data and `retry`; every later event has an id."""
    async with open_raw_client(ScriptedBackend(answers="sse", resumable=True, retry_ms=500)) as client:
        text = (await client.request("ping")).text
    assert text.startswith("id: stream-3/1\nretry: 500\ndata: \n\nid: stream-3/2\nevent: message\ndata: {")


@pytest.mark.parametrize("fault", [None, Disconnect(200)])
async def test_what_a_broken_stream_owes_can_be_resumed(fault: Fault | None, autojump_clock: MockClock) -> None:
    """The handler goes on after its connection ended; a GET with the last id gets the missing events, also those that
    come later.
    """

    async def work(arguments: JSON, context: CallContext) -> str:
        if fault is None:
            await context.detach()
        await context.progress(1)
        await trio.sleep(10)
        return "done"

    backend = ScriptedBackend(answers="sse", resumable=True)
    backend.add_tool("work", work)
    async with open_raw_client(backend) as client:
        if fault is None:
            assert "id: stream-3/1\ndata: \n\n" == (await client.request("tools/call", {"name": "work"}, token=1)).text
        else:
            backend.fail("tools/call", fault)
            with pytest.raises(httpx.RemoteProtocolError):
                await client.request("tools/call", {"name": "work"}, token=1)
        resumed = await client.http.get(client.url, headers={**client.headers, "last-event-id": "stream-3/1"})
        progress, response = messages(resumed)
        assert ("notifications/progress", 2) == (progress["method"], response["id"])
        nothing = await client.http.get(client.url, headers={**client.headers, "last-event-id": "stream-9/1"})
        assert 400 == nothing.status_code
    assert 10.0 == backend.received("GET")[0].ended_at


@both_eras
async def test_clients_that_listen_hear_of_changes(era: Era, nursery: trio.Nursery) -> None:
    """GET in the legacy era, `subscriptions/listen` in the modern one: there only subscribed notifications come, with
    the subscription's tag.
    """
    backend = ScriptedBackend(era=era, listens=True)
    backend.add_tool("a")
    async with open_memory_network() as network, open_client_on(network, backend) as client:
        assert {"tools": {"listChanged": True}} == (await client.shake_hands())["capabilities"]
        if era == "modern":
            request = client.build("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        else:
            request = client.http.build_request("GET", client.url, headers=client.headers)
        response = await client.http.send(request, stream=True)
        lines = response.aiter_lines()
        if era == "modern":
            assert "notifications/subscriptions/acknowledged" in await next_data(lines)
        await wait_all_tasks_blocked()
        assert 1 == backend.listening
        if era == "modern":
            backend.notify("notifications/prompts/list_changed")
            backend.notify("notifications/resources/updated", {"uri": "memo://one"})
        backend.notify("notifications/tools/list_changed")
        heard = json.loads((await next_data(lines)).removeprefix("data: "))
        assert "notifications/tools/list_changed" == heard["method"]
        tag = {"io.modelcontextprotocol/subscriptionId": 2}
        assert ({"_meta": tag} if era == "modern" else {}) == heard["params"]
        backend.crash()
        with pytest.raises(httpx.ReadError):
            await next_data(lines)
        assert 0 == backend.listening


@both_eras
async def test_a_stream_for_notifications_is_ended_by_the_backend(era: Era, autojump_clock: MockClock) -> None:
    """The stream ends after `stream_seconds`, or at once; in the modern era with a result or without one."""
    backend = ScriptedBackend(era=era, listens=True, stream_seconds=5)
    backend.add_tool("a")
    async with open_memory_network() as network, open_client_on(network, backend) as client:
        await client.shake_hands()

        def request() -> httpx.Request:
            if era == "modern":
                return client.build("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
            return client.http.build_request("GET", client.url, headers=client.headers)

        graceful = await client.http.send(request())
        assert 5.0 == trio.current_time()
        assert (era == "modern") == ('"resultType":"complete"' in graceful.text)
        backend.graceful, backend.stream_seconds = False, None
        response = await client.http.send(request(), stream=True)
        await wait_all_tasks_blocked()
        assert 1 == backend.listening
        backend.end_streams()
        assert "resultType" not in (await response.aread()).decode()
        assert (0, 0) == (backend.listening, backend.in_flight)


async def test_a_modern_backend_honours_what_it_wants() -> None:
    """A notification that `honours` does not acknowledge is not sent either."""
    backend = ScriptedBackend(era="modern", listens=True, stream_seconds=0, honours=lambda wanted: {})
    backend.add_tool("a")
    async with open_memory_network() as network, open_client_on(network, backend) as client:
        response = await client.http.send(
            client.build("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        )
        assert '"notifications":{}' in response.text


async def test_what_a_listener_missed_is_kept_for_its_return(autojump_clock: MockClock) -> None:
    """With `resumable`, a GET with the last id of an earlier stream gets the notifications since then, and
    stays open.
    """
    backend = ScriptedBackend(listens=True, resumable=True, retry_ms=700, stream_seconds=1)
    backend.add_tool("a")
    async with open_memory_network() as network, open_client_on(network, backend) as client:
        await client.shake_hands()
        first = await client.http.get(client.url, headers=client.headers)
        assert "retry: 700" in first.text
        backend.notify("notifications/tools/list_changed")
        (last_id,) = re.findall("id: (.*)", first.text)
        second = await client.http.get(client.url, headers={**client.headers, "last-event-id": last_id})
        assert 1 == second.text.count("list_changed")
        assert 2.0 == trio.current_time()


async def test_a_legacy_backend_takes_subscriptions(nursery: trio.Nursery) -> None:
    """Each session is notified of its own subscriptions; a request outside of calls goes to the client that listens."""
    backend = ScriptedBackend(listens=True)
    backend.add_resource("memo://one")
    async with open_memory_network() as network, open_client_on(network, backend) as client:
        introduced = await client.shake_hands()
        assert {"listChanged": True, "subscribe": True} == introduced["capabilities"]["resources"]
        response = await client.http.send(
            client.http.build_request("GET", client.url, headers=client.headers), stream=True
        )
        lines = response.aiter_lines()
        await client.result("resources/subscribe", {"uri": "memo://one"})
        backend.notify("notifications/resources/updated", {"uri": "memo://two"})
        backend.notify("notifications/resources/updated", {"uri": "memo://one"})
        assert "memo://one" in await next_data(lines)
        await client.result("resources/unsubscribe", {"uri": "memo://one"})
        assert {client.headers["mcp-session-id"]: set()} == backend.subscriptions
        answers: list[object] = []

        async def asking() -> None:
            answers.append(await backend.ask("roots/list", {}))

        nursery.start_soon(asking)
        question = json.loads((await next_data(lines)).removeprefix("data: "))
        answer = {"jsonrpc": "2.0", "id": question["id"], "result": {"roots": []}}
        await client.http.post(client.url, headers=client.headers, json=answer)
        await wait_all_tasks_blocked()
        assert [{"roots": []}] == answers
        backend.crash()
        with pytest.raises(httpx.ReadError):
            await next_data(lines)


async def test_a_legacy_handler_can_ask_the_client() -> None:
    """A request of the backend is sent on the stream of the call; a POST of the client answers it, but only in the same
    session.
    """

    async def ask(arguments: JSON, context: CallContext) -> str:
        answer = await context.request("roots/list", {})
        try:
            await context.request("sampling/createMessage", {})
        except RpcError as error:
            return f"{answer['roots']} {error}"
        return "not refused"

    backend = ScriptedBackend(answers="sse")
    backend.add_tool("ask", ask)
    async with open_raw_client(backend) as client, open_other_session(client) as other:
        request = client.build("tools/call", {"name": "ask"})
        response = await client.http.send(request, stream=True)
        lines = response.aiter_lines()
        assert "roots/list" in await next_data(lines)
        assert 202 == (await other.post(id=0, result={"roots": ["forged"]})).status_code
        assert 202 == (await client.post(id=0, result={"roots": []})).status_code
        assert "sampling/createMessage" in await next_data(lines)
        assert 202 == (await client.post(id=1, error={"code": -32601, "message": "no"})).status_code
        assert "[] -32601: no" in await next_data(lines)
        assert [""] == [line async for line in lines]
        await response.aclose()
        assert 202 == (await client.post(id=1, result={})).status_code  # late: no handler waits for it


class open_other_session:  # noqa: N801  # used like a function
    def __init__(self, client: RawClient) -> None:
        self.other = RawClient(client.http, client.url, modern=False)

    async def __aenter__(self) -> RawClient:
        await self.other.shake_hands()
        return self.other

    async def __aexit__(self, *args: object) -> None:
        await self.other.http.delete(self.other.url, headers=self.other.headers)  # noqa: ASYNC102  # bounded by the in-memory network


async def next_data(lines: Any) -> str:
    while not (line := await anext(lines)).startswith("data: "):
        pass
    return str(line)


@pytest.mark.parametrize(("era", "answers"), [("modern", "sse"), ("legacy", "json")])
async def test_asking_the_client_without_a_way_is_the_handlers_error(era: Era, answers: Answers) -> None:
    """A modern backend cannot ask for this method, and a JSON answer cannot carry requests: both are errors of the
    handler.
    """

    async def ask(arguments: JSON, context: CallContext) -> str:
        return str(await context.request("ping", {}))

    backend = ScriptedBackend(era=era, answers=answers)
    backend.add_tool("ask", ask)
    async with open_raw_client(backend) as client:
        assert (await client.result("tools/call", {"name": "ask"}))["isError"]


CONFIRM = {"action": "accept", "content": {}}
SAMPLE = {"role": "assistant", "content": {"type": "text", "text": "hi"}, "model": "none"}


def curious_backend(answers: Answers = "json") -> ScriptedBackend:
    """A modern backend that asks twice before it answers."""

    async def ask(arguments: JSON, context: CallContext) -> str:
        action = (await context.elicit("sure?"))["action"]
        two: dict[str, tuple[str, JSON]] = {"roots": ("roots/list", {}), "sample": ("sampling/createMessage", {})}
        return f"{arguments} {action} {sorted(await context.request_all(two))}"

    backend = ScriptedBackend(era="modern", answers=answers)
    backend.add_tool("ask", ask)
    return backend


@both_forms
async def test_a_modern_handler_asks_by_answering(answers: Answers) -> None:
    """The handler runs again in every round, counts as one call, and gets the answers of all rounds so far."""
    backend = curious_backend(answers)
    call: JSON = {"name": "ask", "arguments": {"a": 1}}
    async with open_raw_client(backend) as client:
        client.capabilities = {"elicitation": {}, "roots": {}, "sampling": {}}
        first = await client.result("tools/call", call)
        params = {"message": "sure?", "requestedSchema": {"type": "object", "properties": {}}}
        inputs = {"elicitation/create": {"method": "elicitation/create", "params": params}}
        assert ("input_required", inputs) == (first["resultType"], first["inputRequests"])
        retry = {"requestState": first["requestState"], "inputResponses": {"elicitation/create": CONFIRM}}
        second = await client.result("tools/call", call | retry)
        assert {"roots", "sample"} == second["inputRequests"].keys()
        retry = {"requestState": second["requestState"], "inputResponses": {"roots": {"roots": []}, "sample": SAMPLE}}
        third = await client.result("tools/call", call | retry)
    assert "complete" == third["resultType"]
    assert "{'a': 1} accept ['roots', 'sample']" == third["content"][0]["text"]
    assert {"ask": 1} == backend.executed


@pytest.mark.parametrize(
    "wrong",
    [
        {"requestState": "another"},
        {"requestState": None},
        {"inputResponses": {}},
        {"inputResponses": None},
        {"inputResponses": {"elicitation/create": CONFIRM, "more": CONFIRM}},
        {"arguments": {"b": 2}},
    ],
)
async def test_a_retry_that_is_not_exact_is_refused(wrong: JSON) -> None:
    """State, keys and params must be those of the round before."""
    async with open_raw_client(curious_backend()) as client:
        client.capabilities = {"elicitation": {}}
        state = (await client.result("tools/call", {"name": "ask"}))["requestState"]
        right: JSON = {"name": "ask", "requestState": state, "inputResponses": {"elicitation/create": CONFIRM}}
        assert (400, -32602) == await client.error("tools/call", right | wrong)


async def test_a_retry_has_an_id_of_its_own_and_happens_once() -> None:
    """A state is good for one retry, and the retry needs a new request id."""
    async with open_raw_client(curious_backend()) as client:
        client.capabilities = {"elicitation": {}, "roots": {}, "sampling": {}}
        first = client.build("tools/call", {"name": "ask"})
        state = messages(await client.http.send(first))[-1]["result"]["requestState"]
        retry: JSON = {"requestState": state, "inputResponses": {"elicitation/create": CONFIRM}}
        client.ids = iter([json.loads(first.content)["id"], 7, 8, 9])
        assert (400, -32602) == await client.error("tools/call", {"name": "ask"} | retry)
        state = (await client.result("tools/call", {"name": "ask"}))["requestState"]
        assert (400, -32602) == await client.error("tools/list", retry | {"requestState": state})


async def test_a_client_is_not_asked_for_what_it_has_not_declared() -> None:
    """MCP: servers MUST NOT ask for a capability that the client has not declared; the error names it."""
    async with open_raw_client(curious_backend()) as client:
        response = await client.request("tools/call", {"name": "ask"})
        (message,) = messages(response)
    assert (400, -32021) == (response.status_code, message["error"]["code"])
    assert {"requiredCapabilities": {"elicitation": {}}} == message["error"]["data"]


async def test_a_legacy_handler_can_ask_several_things_at_once() -> None:
    """All requests are on the stream before the first is answered, and the answers may come in any order."""

    async def ask(arguments: JSON, context: CallContext) -> str:
        roots = await context.roots()
        sampled = (await context.sample("hello", maxTokens=5))["content"]
        both = await context.request_all({"a": ("ping", {}), "b": ("roots/list", {})})
        return f"{roots} {sampled['text']} {both}"

    backend = ScriptedBackend(answers="sse")
    backend.add_tool("ask", ask)
    async with open_raw_client(backend) as client:
        response = await client.http.send(client.build("tools/call", {"name": "ask"}), stream=True)
        lines = response.aiter_lines()
        assert '"id":0,"method":"roots/list"' in await next_data(lines)
        await client.post(id=0, result={"roots": []})
        assert '"maxTokens":5' in await next_data(lines)
        await client.post(id=1, result=SAMPLE)
        assert '"ping"' in await next_data(lines)
        assert "roots/list" in await next_data(lines)
        await client.post(id=3, result={"roots": [1]})
        await client.post(id=2, result={})
        assert "[] hi {'a': {}, 'b': {'roots': [1]}}" in await next_data(lines)
        assert [""] == [line async for line in lines]
        await response.aclose()


# Cancellation


@both_forms
async def test_a_legacy_call_is_cancelled_by_a_notification(
    answers: Answers, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """The handler stops at once and no response follows; ids are compared with their types, and within the session
    only.
    """
    backend = slow_backend("legacy", answers)

    async def call(client: RawClient) -> None:
        try:
            response = await client.request("tools/call", {"name": "slow"})
        except httpx.RemoteProtocolError:
            assert "json" == answers  # an answer in JSON cannot be empty: the connection ends instead
        else:
            assert "" == response.text

    async with open_raw_client(backend) as client, open_other_session(client) as other:
        nursery.start_soon(call, client)
        await wait_all_tasks_blocked()
        await client.post(method="notifications/cancelled", params={"requestId": "2"})
        await other.post(method="notifications/cancelled", params={"requestId": 2})
        assert 1 == backend.in_flight
        await client.post(method="notifications/cancelled", params={"requestId": 2})
        await wait_all_tasks_blocked()
    assert 0.0 == trio.current_time() - backend.exchanges[0].received_at
    assert {"slow": 1} == backend.executed == backend.cancelled
    (exchange,) = backend.received("tools/call")
    assert "cancelled" == exchange.outcome


async def test_a_legacy_initialize_is_never_cancelled(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """MCP (basic/utilities/cancellation): `initialize` MUST NOT be cancelled, so the notification changes nothing."""
    backend = ScriptedBackend(session_ids=False)
    backend.fail("initialize", Delay(1.0))
    async with open_memory_network() as network, open_client_on(network, backend) as client:
        nursery.start_soon(client.request, "initialize")
        await trio.sleep(0.5)
        await client.post(method="notifications/cancelled", params={"requestId": 1})
        await trio.sleep(1.0)
        assert "answered" == backend.received("initialize")[0].outcome


async def test_a_clients_answer_is_no_request_to_cancel(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """The id of a client's response is the backend's, and may equal the id of a call that is cancelled meanwhile."""
    backend = ScriptedBackend()
    backend.fail(lambda exchange: exchange.request_id == 7, Delay(1.0))
    async with open_raw_client(backend) as client:
        nursery.start_soon(partial(client.post, id=7, result={}))
        await trio.sleep(0.5)
        await client.post(method="notifications/cancelled", params={"requestId": 7})
        await trio.sleep(1.0)
        assert "answered" == next(e for e in backend.exchanges if e.request_id == 7).outcome


async def test_a_legacy_call_outlives_its_connection(autojump_clock: MockClock) -> None:
    """MCP: disconnection is no cancellation. The tool runs to its end, although its answer cannot be sent."""
    backend = slow_backend("legacy", "sse")
    async with open_memory_network() as network, open_client_on(network, backend) as client:
        await client.shake_hands()
        with trio.move_on_after(1):
            await client.request("tools/call", {"name": "slow"})
        await wait_all_tasks_blocked()
        assert (1, 0) == (backend.in_flight, network.open_connections)
        await trio.sleep(60)
        assert 0 == backend.in_flight
    (exchange,) = backend.received("tools/call")
    assert ("disconnected", 60.0) == (exchange.outcome, exchange.ended_at)
    assert {} == backend.cancelled


@both_forms
async def test_a_modern_call_is_cancelled_by_leaving(answers: Answers, autojump_clock: MockClock) -> None:
    """The client closes the connection, and the handler stops at that moment."""
    backend = slow_backend("modern", answers)
    async with open_raw_client(backend) as client:
        with trio.move_on_after(1):
            await client.request("tools/call", {"name": "slow"})
        await wait_all_tasks_blocked()
    (exchange,) = backend.received("tools/call")
    assert ("cancelled", 1.0) == (exchange.outcome, exchange.ended_at)
    assert {"slow": 1} == backend.cancelled


# Time, crashes


async def test_latency_precedes_every_answer(autojump_clock: MockClock) -> None:
    """`latency` is virtual and applies to each HTTP request."""
    backend = ScriptedBackend(latency=0.25)
    async with open_raw_client(backend) as client:
        await client.request("ping")
    assert [0.25, 0.5, 0.75] == [exchange.ended_at for exchange in backend.exchanges]


def test_the_same_script_takes_the_same_times() -> None:
    """Under a mock clock the record is a function of the script: times, outcomes and sizes."""

    async def history() -> list[tuple[object, ...]]:
        backend = slow_backend("legacy", "sse")
        backend.latency = 0.01
        backend.fail("ping", Delay(3.0), times=2)
        async with open_raw_client(backend) as client, trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(client.request, "ping")
            with trio.move_on_after(7):
                await client.request("tools/call", {"name": "slow"})
            await client.result("tools/list")
            await trio.sleep(60)
        seen = backend.exchanges
        return [*sorted((e.received_at, e.method, e.ended_at or -1, e.outcome, e.response_bytes) for e in seen)]

    first, *others = (trio.run(history, clock=MockClock(autojump_threshold=0)) for _ in range(5))
    assert [first] * 4 == others
    assert 7 == len(first)


async def test_a_crash_resets_everything_and_a_restart_knows_no_session(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Calls break off, new connections are refused, and after the restart old session ids are unknown."""
    backend = slow_backend("legacy")
    failures: list[Exception] = []

    async def call(client: RawClient) -> None:
        try:
            await client.request("tools/call", {"name": "slow"})
        except httpx.HTTPError as exc:
            failures.append(exc)

    async with open_memory_network() as network, open_client_on(network, backend) as client:
        await client.shake_hands()
        nursery.start_soon(call, client)
        await wait_all_tasks_blocked()
        backend.crash()
        await wait_all_tasks_blocked()
        assert [httpx.ReadError] == [type(failure) for failure in failures]
        assert (0, 0, 0) == (backend.in_flight, backend.open_connections, network.open_connections)
        with pytest.raises(httpx.ConnectError, match="has crashed"):
            await client.request("ping")
        backend.restart()
        assert (404, -32000) == await client.error("ping")
        await client.shake_hands()
        assert ["scripted-session-2"] == list(backend.sessions)
    assert "aborted" == backend.received("tools/call")[0].outcome


# Other ways than streamable HTTP


@pytest.mark.parametrize("era", ["legacy", "modern", "both"])
async def test_a_backend_speaks_over_lines(era: str, autojump_clock: MockClock) -> None:
    """One message a line, answered as over HTTP but without headers; a line that is no message gets an error, and the
    end of the stream cancels running requests.
    """
    backend = ScriptedBackend(era=era)  # type: ignore[arg-type]
    backend.add_tool("slow", sleep_long)
    stamp = {VERSION_KEY: "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
    near, far = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.serve_lines, far)
        client = Raw(near)
        if era != "modern":
            await client.send(rpc(1, "initialize", {"protocolVersion": "2025-11-25"}))
            assert "2025-11-25" == (await client.receive())["result"]["protocolVersion"]
        if era != "legacy":
            await client.send(rpc("d", "server/discover", {"_meta": stamp}))
            assert ["2026-07-28"] == (await client.receive())["result"]["supportedVersions"]
            await client.send(rpc(2, "server/discover", {"_meta": stamp | {VERSION_KEY: "2099-01-01"}}))
            assert -32022 == (await client.receive())["error"]["code"]
        if era == "modern":
            await client.send(rpc(3, "tools/list", {}))
            assert -32602 == (await client.receive())["error"]["code"]
        await client.send(b"not JSON")
        assert (None, -32700) == ((broken := await client.receive())["id"], broken["error"]["code"])
        meta = {"_meta": stamp} if era == "modern" else {}
        await client.send(rpc(4, "tools/call", {"name": "slow", **meta}))
        await client.send(rpc(5, "tools/call", {"name": "slow", **meta}))
        await client.send(rpc(None, "notifications/cancelled", {"requestId": 4, **meta}))
        await wait_all_tasks_blocked()
        assert {"slow": 1} == backend.cancelled
        assert 1 == backend.in_flight
        await near.aclose()
    assert 0 == backend.in_flight == backend.open_connections
    assert [] == backend.errors


def rpc(request_id: object, method: str, params: JSON) -> JSON:
    message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
    return {key: value for key, value in message.items() if value is not None}


async def test_faults_strike_over_lines(autojump_clock: MockClock) -> None:
    """Faults apply to the bytes of a line, or replace it; notifications are separate lines."""
    backend = ScriptedBackend(listens=True)
    near, far = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.serve_lines, far)
        client = Raw(near)
        backend.fail("ping", Delay(5), times=1)
        backend.fail("ping", RawFault(head=b"", body=b"garbage\n"), times=1)
        await client.send(rpc(1, "ping", {}))
        await wait_all_tasks_blocked()
        backend.notify("notifications/tools/list_changed")
        assert "notifications/tools/list_changed" == (await client.receive())["method"]
        assert (1, 5) == ((await client.receive())["id"], trio.current_time())
        await client.send(rpc(2, "ping", {}))
        with pytest.raises(json.JSONDecodeError):
            await client.receive()
        backend.fail("ping", Disconnect(5))
        await client.send(rpc(3, "ping", {}))
        with pytest.raises(EOFError):
            await client.receive()
    assert [] == backend.errors


@pytest.mark.parametrize("holds_posts", [False, True])
async def test_a_backend_speaks_the_older_transport(holds_posts: bool, autojump_clock: MockClock) -> None:
    """GET opens a stream, and its first event names the target for POSTs; 202 there, 405 and 404 elsewhere."""
    backend = ScriptedBackend(transport="sse", holds_posts=holds_posts, protocol_version="2024-11-05")
    backend.add_tool("slow", sleep_long)
    send, events = trio.open_memory_channel[str](10)

    async def listen(client: RawClient) -> None:
        async with client.http.stream("GET", client.url) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    await send.send(line.removeprefix("data: "))

    async with open_memory_network() as network, open_client_on(network, backend) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, client)
            endpoint = httpx.URL(client.url).join(await events.receive())
            assert ["scripted-stream-1"] == list(backend.sessions)
            for url, body, status in (
                (httpx.URL(client.url), "{}", 405),
                (endpoint.copy_with(query=b"session=other"), "{}", 404),
                (endpoint, "{", 400),
            ):
                assert status == (await client.http.post(url, content=body)).status_code
            assert 202 == (await client.http.post(endpoint, json=rpc(1, "initialize", {}))).status_code
            assert "2024-11-05" == json.loads(await events.receive())["result"]["protocolVersion"]
            began = trio.current_time()
            await client.http.post(endpoint, json=rpc(2, "tools/call", {"name": "slow"}))
            assert (60 if holds_posts else 0) == trio.current_time() - began
            assert "rested" == json.loads(await events.receive())["result"]["content"][0]["text"]
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert {} == backend.sessions
    assert [] == backend.errors


async def test_a_cancel_in_the_middle_of_an_answer_breaks_the_connection(autojump_clock: MockClock) -> None:
    """Half an answer cannot be undone: on a cancel the scripted backend closes the connection and records
    `cancelled`.
    """
    async with open_world({"a": echo_backend(answers="sse")}) as world, world.open_session() as session:
        world["a"].fail("tools/call", Drip(bytes_per_step=64, step_seconds=0.4), times=1)
        world["a"].latency = 0.3
        with pytest.raises(BackendTimeout):  # the answer is whole after 1.9 s, the stream after 2.3 s
            await session.call_tool("a_echo", timeout=1.8)
        await session.call_tool("a_echo")
        assert ["cancelled", "answered"] == [exchange.outcome for exchange in world["a"].received("tools/call")]


async def test_a_cancel_in_the_middle_of_raw_bytes_breaks_the_connection(autojump_clock: MockClock) -> None:
    """Raw bytes are half an answer, too: cancelled at any moment, the backend closes the connection and does not end a
    stream of events.
    """
    backend = echo_backend(answers="sse")
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("tools/call", RawFault(head=b""))
        backend.latency = 0.3  # for the answer and for the cancellation

        async def call(scope: trio.CancelScope) -> None:
            with scope, pytest.raises(BackendUnavailable):
                await session.call_tool("a_echo")

        for turns in range(30):
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()
                nursery.start_soon(call, scope)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
            await trio.sleep(1.0)
        assert [] == backend.errors


def not_async(arguments: JSON, context: CallContext) -> str:
    return "now"


async def of_one_argument(arguments: JSON) -> str:
    return "now"


@pytest.mark.parametrize(
    ("handler", "complaint"),
    [(not_async, "it is not async"), (of_one_argument, "too many positional arguments")],
)
def test_a_handler_of_another_form_is_refused_at_once(handler: Any, complaint: str) -> None:
    """The TypeError names the tool and the form; else each call would answer an `isError` result, and say less."""
    with pytest.raises(TypeError) as caught:
        ScriptedBackend().add_tool("now", handler)
    expected = f"the handler of tool 'now' is not async (arguments, context) -> text, blocks or result: {complaint}"
    assert expected == str(caught.value)
