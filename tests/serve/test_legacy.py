"""The front to clients of the handshake era."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
import trio
from support.front import BOTH, LEGACY, LegacyClient, Received, front_world, full_backend
from support.harness import ALICE, echo_backend, slow_backend
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON, FactorySettings, Identity, LocalStorage, ManagerSettings
from trio_vmcp.serve import ServeSettings, Unauthenticated
from trio_vmcp.serve._asgi import HttpRequest
from trio_vmcp.testing import CallContext, Hang, RpcError, ScriptedBackend

EVERY_ERA = pytest.mark.parametrize("era", ["legacy", "modern"])
SAMPLING: JSON = {"sampling": {}, "elicitation": {"form": {}}, "roots": {}}


# Requests


@EVERY_ERA
async def test_a_session_from_initialize_to_delete(era: str, autojump_clock: MockClock) -> None:
    """initialize gives a session id of visible ASCII, DELETE ends the session: 404 from then on."""
    async with front_world(full_backend(era)) as world:
        client = await world.initialize()
        assert client.session_id.isascii()
        assert {} == await client.result("ping")
        assert "result" in (await client.ask("tools/call", {"name": "a_echo", "arguments": {"x": 1}})).answer
        assert 204 == (await client.delete()).status
        assert 404 == (await client.ask("ping")).status
        assert 404 == (await client.delete()).status


async def test_an_id_in_use_is_refused_and_the_first_request_is_answered(autojump_clock: MockClock) -> None:
    """Two requests of one id could not be told apart."""
    async with front_world(slow_backend(5)) as world:
        client = await world.initialize()
        first = client.start("tools/call", {"name": "a_slow"}, request_id=7)
        await wait_all_tasks_blocked()
        second = await client.ask("ping", request_id=7)
        assert -32600 == second.json["error"]["code"]
        await first.done.wait()
        assert "rested" == first.answer["result"]["content"][0]["text"]


async def test_a_cancelled_request_ends_without_a_response(autojump_clock: MockClock) -> None:
    """`notifications/cancelled` reaches the backend, too (python-sdk#2480)."""
    async with front_world(slow_backend(60)) as world:
        client = await world.initialize()
        call = client.start("tools/call", {"name": "a_slow"}, request_id="c")
        await wait_all_tasks_blocked()
        await client.notify("notifications/cancelled", {"requestId": "other"})
        await client.notify("notifications/cancelled", {"requestId": "c"})
        await call.done.wait()
        assert (200, []) == (call.status, call.messages)
        assert trio.current_time() < 5
        await trio.sleep(1)
        assert {"notifications/cancelled"} <= {each.method for each in world.backends["a"].exchanges}
        assert {} == await client.result("ping")


# Questions of backends


async def ask_all(arguments: JSON, context: CallContext) -> Any:
    asked = await context.request_all(
        {
            "e": ("elicitation/create", {"message": "name?", "requestedSchema": {"type": "object", "properties": {}}}),
            "s": ("sampling/createMessage", {"messages": [], "maxTokens": 1}),
            "r": ("roots/list", {}),
        }
    )
    return json.dumps(asked, sort_keys=True)


ANSWERS: dict[str, JSON] = {
    "elicitation/create": {"action": "accept", "content": {"name": "eve"}},
    "sampling/createMessage": {"role": "assistant", "content": {"type": "text", "text": "hi"}, "model": "m"},
    "roots/list": {"roots": [{"uri": "file:///r"}]},
}


async def answer_questions(client: LegacyClient, stream: Received, count: int) -> None:
    for question in (await stream.wait_messages(count))[:count]:
        await client.reply(question["id"], ANSWERS[question["method"]])


def asking_backend(failed: list[RpcError]) -> ScriptedBackend:
    """With a tool that asks its client, and notes the error that the client answers with."""

    async def ask(arguments: JSON, context: CallContext) -> str:
        try:
            await context.elicit("name?")
        except RpcError as error:
            failed.append(error)
        return "over"

    backend = echo_backend("legacy", "sse")
    backend.add_tool("ask", ask)
    return backend


async def test_a_question_of_an_ended_session_is_answered_with_an_error(autojump_clock: MockClock) -> None:
    """DELETE answers at once; the call that asked drains behind it."""
    failed: list[RpcError] = []

    backend = asking_backend(failed)
    async with front_world(backend) as world:
        client = await world.initialize(SAMPLING)
        call = client.start("tools/call", {"name": "a_ask"})
        await call.wait_messages(1)
        assert 204 == (await client.delete()).status
        await call.done.wait()
        assert 1 == len(failed)
        assert "over" == call.answer["result"]["content"][0]["text"]


# Messages outside of requests


async def test_log_messages_come_by_the_stream_of_their_call(autojump_clock: MockClock) -> None:
    """And the level that the client sets reaches the backend."""

    async def log(arguments: JSON, context: CallContext) -> str:
        await context.notify("notifications/message", {"level": "warning", "data": {"n": 1}})
        return ""

    backend = echo_backend("legacy", "sse", capabilities={"tools": {}, "logging": {}})
    backend.add_tool("log", log)
    async with front_world(backend) as world:
        client = await world.initialize()
        assert {} == await client.result("logging/setLevel", {"level": "info"})
        assert ["info"] == [each.params["level"] for each in backend.received("logging/setLevel")]
        call = client.start("tools/call", {"name": "a_log"})
        await call.done.wait()
        told = [each for each in call.messages if each.get("method") == "notifications/message"]
        assert [{"level": "warning", "data": {"n": 1}}] == [each["params"] for each in told]


async def test_changed_lists_come_by_the_stream_outside_of_requests(autojump_clock: MockClock) -> None:
    """Also a change of the time before the stream was open."""
    backend = echo_backend("legacy", "sse", listens=True)
    async with front_world(backend) as world:
        client = await world.initialize()
        await trio.sleep(5)
        backend.add_tool("early")
        backend.notify("notifications/tools/list_changed")
        await trio.sleep(5)
        listening = client.listen()
        (first,) = await listening.wait_messages(1)
        assert "notifications/tools/list_changed" == first["method"]
        backend.add_tool("late")
        backend.notify("notifications/tools/list_changed")
        await listening.wait_messages(2)
        names = [tool["name"] for tool in (await client.result("tools/list"))["tools"]]
        assert ["a_echo", "a_early", "a_late"] == names
        await trio.sleep(10)
        assert 2 == len(listening.messages)


class LateAuthenticator:
    """Gives the principal `delay` s after the request has come."""

    def __init__(self) -> None:
        self.delay = 0.0

    async def authenticate(self, headers: Mapping[str, str]) -> Identity:
        await trio.sleep(self.delay)
        return ALICE


async def test_changes_are_told_to_a_client_that_comes_back_at_the_last_moment(autojump_clock: MockClock) -> None:
    """The moment in which the server stops to wait for it. Trio decides by lot which task is first."""
    for _ in range(8):
        backend, authenticator = echo_backend("legacy", "sse", listens=True), LateAuthenticator()
        async with front_world(
            backend, authenticator=authenticator, settings=ServeSettings(abandoned_after=10)
        ) as world:
            client = await world.initialize()
            first = client.listen()
            await trio.sleep(1)
            first.leave()
            await wait_all_tasks_blocked()
            authenticator.delay = 10
            second = client.listen()
            await trio.sleep(11)
            told = len(second.messages)
            backend.add_tool("new")
            backend.notify("notifications/tools/list_changed")
            await trio.sleep(5)
            assert ["notifications/tools/list_changed"] == [each["method"] for each in second.messages[told:]]


async def test_a_second_stream_takes_the_place_of_the_first(autojump_clock: MockClock) -> None:
    """The first may be a connection that has long been lost: each message goes by one stream."""
    backend = echo_backend("legacy", "sse", listens=True)
    async with front_world(backend) as world:
        client = await world.initialize()
        first = client.listen()
        await trio.sleep(2)
        second = client.listen()
        await first.done.wait()
        backend.add_tool("late")
        backend.notify("notifications/tools/list_changed")
        await second.wait_messages(1)
        assert [] == first.messages


# Clients that leave and come back


async def test_a_call_goes_on_without_its_client_and_is_resumed(autojump_clock: MockClock) -> None:
    """The stream begins with an id once the call takes long; `Last-Event-ID` brings the rest, result included."""
    async with front_world(slow_backend(20)) as world:
        client = await world.initialize()
        call = client.start("tools/call", {"name": "a_slow"}, request_id=5)
        await trio.sleep(1)
        ((first, none),) = call.events
        assert none is None
        assert first is not None
        call.leave()
        await trio.sleep(2)
        resumed = client.listen(first)
        await resumed.done.wait()
        assert (5, "rested") == (resumed.answer["id"], resumed.answer["result"]["content"][0]["text"])
        assert 1 == world.backends["a"].executed["slow"]


async def test_the_result_of_a_call_is_kept_for_a_client_that_comes_back_late(autojump_clock: MockClock) -> None:
    """For `abandoned_after`, and not longer."""
    settings = ServeSettings(abandoned_after=10)
    async with front_world(slow_backend(5), settings=settings) as world:
        client = await world.initialize()
        calls = [client.start("tools/call", {"name": "a_slow"}) for _ in range(2)]
        await trio.sleep(1)
        ids = [call.events[0][0] for call in calls]
        for call in calls:
            call.leave()
        await trio.sleep(8)
        assert "rested" in json.dumps((await _resumed(client, ids[0])).messages)
        await trio.sleep(20)
        assert [] == (await _resumed(client, ids[1])).messages


async def _resumed(client: LegacyClient, event_id: str | None) -> Received:
    resumed = client.listen(event_id)
    with trio.move_on_after(2):
        await resumed.done.wait()
    return resumed


@pytest.mark.parametrize("is_in_batch", [False, True], ids=["alone", "in a batch"])
async def test_an_abandoned_call_is_cancelled_in_time(is_in_batch: bool, autojump_clock: MockClock) -> None:
    """The backend hears of it."""
    async with front_world(slow_backend(1000), settings=ServeSettings(abandoned_after=10)) as world:
        client = await world.initialize(version="2025-03-26")
        request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "a_slow"}}
        call = world.start_post([request] if is_in_batch else request, client._headers())
        await trio.sleep(1)
        call.leave()
        await trio.sleep(5)
        assert 1 == world.backends["a"].in_flight
        await trio.sleep(10)
        assert 0 == world.backends["a"].in_flight


async def test_events_behind_the_last_id_alone_are_sent_again(autojump_clock: MockClock) -> None:
    """Ids are unique in the session: an event of one stream is never sent on another."""

    async def work(arguments: JSON, context: CallContext) -> str:
        for number in range(6):
            await context.progress(number)
            await trio.sleep(1)
        return "done"

    backend = echo_backend("legacy", "sse")
    backend.add_tool("work", work)
    async with front_world(backend) as world:
        client = await world.initialize()
        call = client.start("tools/call", {"name": "a_work", "_meta": {"progressToken": 1}})
        await trio.sleep(3.5)
        call.leave()
        seen = [each["params"]["progress"] for each in call.messages]
        resumed = client.listen(call.events[-1][0])
        await resumed.done.wait()
        rest = [each["params"]["progress"] for each in resumed.messages[:-1]]
        assert list(range(6)) == seen + rest
        assert "done" == resumed.answer["result"]["content"][0]["text"]


async def test_a_silent_stream_carries_comments(autojump_clock: MockClock) -> None:
    """Proxies close what is silent."""
    async with front_world(slow_backend(50), settings=ServeSettings(keep_alive_interval=15)) as world:
        client = await world.initialize()
        call = client.start("tools/call", {"name": "a_slow"})
        listening = client.listen()
        await call.done.wait()
        assert 3 == call.body.count(b": keep-alive")
        assert 3 == listening.body.count(b": keep-alive")
        assert "no" == call.headers["x-accel-buffering"]
        assert "no-cache, no-transform" == call.headers["cache-control"]


# Edges of HTTP


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", {}, 400, -32700),
        (b"[]", {}, 400, -32600),
        (b"[1", {}, 400, -32700),
        (b"[ ]", {}, 400, -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', {}, 400, -32600),
        (b"[1]", {}, 400, -32600),
        (b'{"jsonrpc":"2.0"}', {}, 400, -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', {}, 400, -32600),
        (b"\xff", {}, 400, -32700),
        (b"[" * 200 + b"]" * 200, {}, 400, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"}', {"content-type": "text/plain"}, 415, -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"}', {"content-type": "Application/JSON ; a=b"}, 400, -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"}', {}, 400, -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"}', {"mcp-session-id": "no-such"}, 404, -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"}', {"mcp-session-id": "not an id"}, 404, -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"}', {"mcp-protocol-version": "2020-01-01"}, 400, -32600),
        (b" " * 5000, {}, 413, -32600),
    ],
)
async def test_a_message_that_is_not_taken_is_refused(
    body: bytes, headers: dict[str, str], status: int, code: int | None, autojump_clock: MockClock
) -> None:
    """With a JSON-RPC error, under the id of the request where the body tells it."""
    async with front_world(settings=ServeSettings(max_body_bytes=4000)) as world:
        reply = await world.post(body, headers)
        assert status == reply.status
        assert (1 if b'"2.0","id":1' in body and status != 415 else None) == reply.json["id"]
        assert code in (None, reply.json["error"]["code"])


@pytest.mark.parametrize("verb", ["PUT", "PATCH", "OPTIONS"])
async def test_other_verbs_are_refused(verb: str, autojump_clock: MockClock) -> None:
    """405 names those that are taken (RFC 9110 §15.5.6)."""
    async with front_world() as world:
        reply = await world.request(verb)
        assert (405, "GET, POST, DELETE") == (reply.status, reply.headers["allow"])


@pytest.mark.parametrize("verb", ["GET", "POST", "DELETE"])
async def test_a_version_that_is_none_is_refused(verb: str, autojump_clock: MockClock) -> None:
    """ "MUST respond with 400 Bad Request" (2025-11-25, transports); a version of the other era has no GET: 405."""
    async with front_world() as world:
        client = await world.initialize()
        own = {"mcp-session-id": client.session_id, "content-type": "application/json"}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode() if verb == "POST" else b""
        for version in ("garbage", "1999-01-01", "", "2026-07-28x"):
            reply = await world.request(verb, body, {**own, "mcp-protocol-version": version})
            assert 400 == reply.status, version
        assert {} == await client.result("ping")


async def test_a_response_without_content_has_no_length(autojump_clock: MockClock) -> None:
    """ "MUST NOT send a Content-Length header field in any response with a status code of 204" (RFC 9110 §8.6)."""
    async with front_world() as world:
        client = await world.initialize()
        reply = await client.delete()
        assert (204, None) == (reply.status, reply.headers.get("content-length"))


PATHS = [
    ("/mcp", 400),
    ("/mcp/", 400),
    ("http://localhost:8000/mcp", 400),
    ("/", 404),
    ("/mcp/x", 404),
    ("http://[", 404),
]


async def test_a_path_with_a_slash_is_the_same_and_others_are_none(autojump_clock: MockClock) -> None:
    """No redirect, which clients do not follow with their body (python-sdk#732)."""
    async with front_world() as world:
        for path, status in PATHS:
            reply = await world.request("POST", b"{", {"content-type": "application/json", "accept": BOTH}, path)
            assert status == reply.status


@pytest.mark.parametrize(
    ("root", "path", "rest"),
    [
        ("", "/mcp", "/mcp"),
        ("/api", "/api/mcp", "/mcp"),
        ("/api", "/mcp", "/mcp"),
        ("/api/", "/api/mcp", "/mcp"),
        ("/api", "http://localhost:8000/api/mcp", "/mcp"),
        ("/m", "/mcp", "/mcp"),
        ("/m", "/m/mcp", "/mcp"),
        ("/mcp", "/mcp/", "/"),
        ("/mcp", "/mcp", ""),
    ],
)
async def test_a_mounted_application_takes_the_whole_path_or_the_rest(root: str, path: str, rest: str) -> None:
    """Servers differ in what they pass on (ASGI 3.0, HTTP: `root_path`)."""

    async def receive() -> JSON:
        raise AssertionError

    scope = {"method": "POST", "path": path, "root_path": root, "headers": []}
    assert rest == HttpRequest.of(scope, receive).path


@pytest.mark.parametrize("headers", [[], [(b"a", b"1\nhost")], [(b"a\nb", b""), (b"host", b"\n\n")], [(b"a", b"\xff")]])
async def test_headers_are_what_the_server_passes_on(headers: list[tuple[bytes, bytes]]) -> None:
    """A line break in one, which a strict server refuses, begins no other header."""

    async def receive() -> JSON:
        raise AssertionError

    scope = {"method": "POST", "path": "/", "headers": iter(headers)}
    expected = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    assert expected == HttpRequest.of(scope, receive).headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("host", "localhost")], 400),
        ([("host", "LOCALHOST:1")], 400),
        ([("host", "[::1]:80")], 400),
        ([("host", "[::1]")], 400),
        ([("host", "evil.example")], 403),
        ([("host", "localhost.evil.example:80")], 403),
        ([("host", "localhost"), ("host", "evil.example")], 403),
        ([("host", "localhost:8000"), ("origin", "http://localhost:8000")], 400),
        ([("host", "localhost:8000"), ("origin", "http://localhost:8001")], 403),
        ([("host", "localhost"), ("origin", "http://localhost:80")], 400),
        ([("host", "localhost"), ("origin", "https://localhost")], 400),
        ([("host", "localhost:443"), ("origin", "https://localhost")], 400),
        ([("host", "localhost:80"), ("origin", "https://localhost")], 403),
        ([("host", "localhost"), ("origin", "ftp://localhost")], 403),
        ([("host", "localhost"), ("origin", "null")], 403),
        ([("host", "localhost"), ("origin", "https://evil.example")], 403),
        ([("host", "localhost"), ("origin", "https://app.example")], 400),
        ([("host", "localhost"), ("origin", "https://app.example:444")], 403),
        ([("host", "localhost"), ("origin", "http://[")], 403),
    ],
)
async def test_foreign_hosts_and_origins_are_refused(
    headers: list[tuple[str, str]], status: int, autojump_clock: MockClock
) -> None:
    """Before the body is read. 400: the request was let in, and its body is no JSON."""
    async with front_world(settings=ServeSettings(allowed_origins=("https://app.example",))) as world:
        reply = await world.request("POST", b"{", [("content-type", "application/json"), *headers])
        assert status == reply.status


async def test_a_client_that_takes_json_alone_gets_json(autojump_clock: MockClock) -> None:
    """Without what would precede the response."""

    async def work(arguments: JSON, context: CallContext) -> str:
        await context.progress(1)
        return "done"

    backend = echo_backend("legacy", "sse")
    backend.add_tool("work", work)
    async with front_world(backend) as world:
        client = await world.initialize()
        client.headers["accept"] = "application/json"
        reply = await client.ask("tools/call", {"name": "a_work", "_meta": {"progressToken": 1}})
        assert "done" == reply.json["result"]["content"][0]["text"]
        assert 406 == (await world.request("GET", headers=client._headers())).status


async def test_a_cap_is_503_with_a_time(autojump_clock: MockClock) -> None:
    """`Retry-After` in whole seconds (RFC 9110 §10.2.3)."""
    async with front_world(limits=ManagerSettings(max_sessions=1)) as world:
        await world.initialize()
        params = {"protocolVersion": LEGACY, "capabilities": {}}
        reply = await world.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})
        assert 503 == reply.status
        assert 1 <= int(reply.headers["retry-after"])


async def test_a_client_that_ends_its_session_may_open_another_one_at_once(autojump_clock: MockClock) -> None:
    """At the cap, too, while a call of the old session drains."""
    async with front_world(slow_backend(8), limits=ManagerSettings(max_sessions=1)) as world:
        client = await world.initialize()
        call = client.start("tools/call", {"name": "a_slow"})
        await trio.sleep(1)
        assert 204 == (await client.delete()).status
        again = await world.initialize()
        assert {} == await again.result("ping")
        await call.done.wait()
        assert "rested" in json.dumps(call.answer)


@EVERY_ERA
async def test_a_session_that_slept_goes_on_with_its_client(era: str, autojump_clock: MockClock) -> None:
    """Questions still reach the client after the session has hibernated."""
    backend = echo_backend(era, "sse")
    backend.add_tool("ask", ask_all)
    async with front_world(backend, limits=ManagerSettings(hibernate_after=60)) as world:
        client = await world.initialize(SAMPLING)
        await trio.sleep(200)
        assert (0, 1) == (world.manager.statistics.live, world.manager.statistics.hibernated)
        call = client.start("tools/call", {"name": "a_ask"})
        await answer_questions(client, call, 3)
        await call.done.wait()
        assert "result" in call.answer
        assert math.isfinite(trio.current_time())


async def test_a_batch_is_of_the_version_that_has_batches(autojump_clock: MockClock) -> None:
    """2025-03-26: one array of responses; later versions: 400."""
    async with front_world() as world:
        for version in ("2025-03-26", "2025-06-18"):
            client = await world.initialize(version=version)
            call = {"method": "tools/call", "params": {"name": "a_echo", "arguments": {}}}
            batch: list[JSON | int] = [
                {"jsonrpc": "2.0", "id": "x", **call},
                {"jsonrpc": "2.0", "method": "notifications/x"},
                7,
                {"jsonrpc": "2.0", "id": 2, "method": "no/such"},
                {"jsonrpc": "2.0", "id": 3, "method": "ping", "params": []},
            ]
            reply = await world.post(batch, client._headers())
            if version == "2025-03-26":
                assert ["x", None, 2, 3] == [each["id"] for each in reply.json]
                assert [None, -32600, -32601, -32600] == [each.get("error", {}).get("code") for each in reply.json]
                assert 202 == (await world.post(batch[1:2], client._headers())).status
            else:
                assert (400, -32600) == (reply.status, reply.json["error"]["code"])


@pytest.mark.parametrize(
    ("accept", "status", "media_type"),
    [
        ("application/json", 200, "application/json"),
        ("text/event-stream", 200, "text/event-stream"),
        ("text/*", 200, "text/event-stream"),
        ("*/*", 200, "application/json"),
        ("Application/JSON;q=0.5, text/event-stream", 200, "application/json"),
        ("image/png", 406, "application/json"),
    ],
)
async def test_the_response_is_in_a_form_that_the_client_takes(
    accept: str, status: int, media_type: str, autojump_clock: MockClock
) -> None:
    """Parameters and case of media types do not count."""
    async with front_world() as world:
        client = await world.initialize()
        client.headers["accept"] = accept
        reply = await client.ask("ping")
        assert (status, media_type) == (reply.status, reply.headers["content-type"])


async def test_a_session_moves_to_another_instance_with_its_client(autojump_clock: MockClock) -> None:
    """Same id; the other instance declares the same to backends, and asks the same client."""
    backend = echo_backend("legacy", "sse")
    backend.add_tool("ask", ask_all)
    storage = LocalStorage()
    keys = FactorySettings(identity_keys=(b"k" * 32,), on_exit="suspend")
    async with front_world(backend, storage=storage, factory=keys) as one:
        session_id = (await one.initialize(SAMPLING)).session_id
    async with front_world(backend, storage=storage, factory=keys) as two:
        client = LegacyClient(two, session_id, {})
        call = client.start("tools/call", {"name": "a_ask"})
        await answer_questions(client, call, 3)
        await call.done.wait()
        assert "result" in call.answer
        assert 1 == len(backend.received("initialize"))


async def test_a_call_that_waits_for_an_answer_of_its_client_drains(autojump_clock: MockClock) -> None:
    """A server that shuts down takes answers and cancels, and no request."""
    backend = echo_backend("legacy", "sse")
    backend.add_tool("ask", ask_all)
    async with front_world(backend) as world:
        client = await world.initialize(SAMPLING)
        listening = client.listen()
        call = client.start("tools/call", {"name": "a_ask"})
        await call.wait_messages(3)
        world.nursery.start_soon(world.app.drain)
        await listening.done.wait()
        refused = await client.ask("ping")
        assert (503, "1") == (refused.status, refused.headers["retry-after"])
        await answer_questions(client, call, 3)
        await call.done.wait()
        assert "result" in call.answer


@pytest.mark.parametrize("step", [0.0, 0.1], ids=["idle", "busy"])
async def test_a_body_that_does_not_end_is_refused(step: float, autojump_clock: MockClock) -> None:
    """It would hold a connection for ever (RFC 9110 §15.5.9); and a length that is no number says nothing. After 60 s,
    also where each turn of the event loop takes long.
    """

    async def be_busy() -> None:
        while True:
            autojump_clock.jump(step)
            await trio.sleep(0.01)  # of virtual time, in which the rest takes its turns

    async with front_world() as world, trio.open_nursery() as nursery:
        if step:
            nursery.start_soon(be_busy)
        received = Received()
        pieces = [{"type": "http.request", "body": b"{", "more_body": True}]

        async def receive() -> JSON:
            if not pieces:
                await trio.sleep_forever()
            return pieces.pop()

        async def send(message: JSON) -> None:
            received.take(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"\xb2")]
        scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": headers}
        await world.app(scope, receive, send)
        assert 408 == received.status
        assert 60 <= trio.current_time() <= (61 if step else 60)
        nursery.cancel_scope.cancel()


async def test_a_body_that_ends_as_its_time_does_has_an_answer(autojump_clock: MockClock) -> None:
    """The last piece comes in the step in which the time is over, before or after it: no client is left without a
    response.
    """
    async with front_world() as world:
        replies = [Received() for _ in range(8)]  # tasks of one step run in any order
        params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "t"}}
        whole = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}).encode()
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": headers}

        async def post(received: Received) -> None:
            send_piece, pieces = trio.open_memory_channel[bytes](0)

            async def receive() -> JSON:
                piece = await pieces.receive()
                return {"type": "http.request", "body": piece, "more_body": not piece}

            async def send(message: JSON) -> None:
                received.take(message)

            world.nursery.start_soon(world.app, scope, receive, send)
            await send_piece.send(b"")
            await trio.sleep_until(60)
            with suppress(trio.WouldBlock):
                send_piece.send_nowait(whole)

        for received in replies:
            world.nursery.start_soon(post, received)
            await wait_all_tasks_blocked()
        await trio.sleep(61)
        assert {200, 408} >= {received.status for received in replies}
        world.nursery.cancel_scope.cancel()


async def test_requests_after_the_end_of_the_manager_are_refused(autojump_clock: MockClock) -> None:
    """Each one at once, also if its body does not end: there is no task that would look for that."""
    async with front_world() as world:
        app = world.app

    async def receive() -> JSON:
        await trio.sleep_forever()

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    for _ in range(2):
        received = Received()

        async def send(message: JSON, received: Received = received) -> None:
            received.take(message)

        await app({"type": "http", "method": "POST", "path": "/mcp", "headers": headers}, receive, send)
        assert 503 == received.status
    assert 0 == trio.current_time()


async def test_pages_of_an_allowed_origin_may_read_replies(autojump_clock: MockClock) -> None:
    """The browser asks first, without credentials; other origins, and programs, get no such headers."""

    class NoCredentials:
        async def authenticate(self, headers: Mapping[str, str]) -> Identity:
            raise Unauthenticated("no token")

    origin = "https://app.example"
    settings = ServeSettings(allowed_origins=(origin,))
    async with front_world(settings=settings, authenticator=NoCredentials()) as world:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type,mcp-param-x"}
        reply = await world.request("OPTIONS", headers={"origin": origin, **asked})
        assert 204 == reply.status
        assert origin == reply.headers["access-control-allow-origin"]
        assert "content-type,mcp-param-x" == reply.headers["access-control-allow-headers"]
        assert "POST" in reply.headers["access-control-allow-methods"]
        refused = await world.post({}, {"origin": origin})
        assert (401, origin) == (refused.status, refused.headers["access-control-allow-origin"])
        assert "WWW-Authenticate" in refused.headers["access-control-expose-headers"]
        for headers, status in (({"origin": "https://evil.example", **asked}, 403), ({}, 401)):
            reply = await world.request("OPTIONS", headers=headers)
            assert status == reply.status
            assert "access-control-allow-origin" not in reply.headers
    async with front_world(settings=settings) as world:
        client = await world.initialize(headers={"origin": origin})
        stream = client.listen()
        await wait_all_tasks_blocked()
        assert origin == stream.headers["access-control-allow-origin"]


async def test_a_client_that_leaves_during_initialize_leaves_no_session(autojump_clock: MockClock) -> None:
    """It never learns the id; and a server that shuts down does not wait for it."""
    hangs = echo_backend()
    hangs.fail("POST", Hang())
    async with front_world(hangs) as world:
        params = {"protocolVersion": LEGACY, "capabilities": {}}
        initialize = world.start_post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})
        await trio.sleep(1)
        assert 1 == world.manager.statistics.opening
        initialize.leave()
        await trio.sleep(3)
        assert (0, 0) == (world.manager.statistics.opening, world.manager.statistics.live)
        with trio.fail_after(1):
            await world.app.drain()


async def test_a_client_that_leaves_before_its_id_is_sent_leaves_no_session(autojump_clock: MockClock) -> None:
    """Where the server says so: `send` raises OSError (ASGI 3.0, HTTP)."""
    async with front_world() as world:
        params = {"protocolVersion": LEGACY, "capabilities": {}}
        body = json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}).encode()
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        pieces = [{"type": "http.request", "body": body}]

        async def receive() -> Mapping[str, Any]:
            return pieces.pop() if pieces else await trio.sleep_forever()

        async def send(message: dict[str, Any]) -> None:
            assert 1 == world.manager.statistics.live
            raise BrokenPipeError

        await world.app({"type": "http", "method": "POST", "path": "/mcp", "headers": headers}, receive, send)
        await trio.sleep(3)
        assert 0 == world.manager.statistics.live
        assert {} == world.backends["a"].sessions


async def test_a_server_that_repeats_the_body_holds_nothing_up(autojump_clock: MockClock) -> None:
    """Such as the `receive` of a simple test, which knows no disconnect and has no checkpoint."""
    async with front_world() as world:
        params = {"protocolVersion": LEGACY, "capabilities": {}}
        body = json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}).encode()
        received = Received()

        async def receive() -> JSON:
            return {"type": "http.request", "body": body}

        async def send(message: JSON) -> None:
            received.take(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        await world.app({"type": "http", "method": "POST", "path": "/mcp", "headers": headers}, receive, send)
        assert 200 == received.status
