"""The handshake era over HTTP: which messages are sent, in which order, with which headers, and what each
answer means.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx
import pytest
import trio
from support.clients import (
    ALICE,
    Bench,
    Chunks,
    call,
    echo_backend,
    event,
    in_json,
    in_sse,
    message_of,
    open_bench,
    open_client,
    open_scripted,
    result,
)
from support.harness import open_world, slow_backend
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnauthorized,
    BackendUnavailable,
    FactorySettings,
)
from trio_vmcp._client.channels.pace import MESSAGES_AHEAD, MESSAGES_PER_SECOND, REQUEST_COST
from trio_vmcp._request_note import begin_request
from trio_vmcp.testing import CONNECT, CallContext, Delay, Disconnect, Error, Hang, Refuse, Reset, Status

VERSION = "mcp-protocol-version"
SESSION = "mcp-session-id"


class Server:
    """A legacy server as a function of the request; without a script it answers normally.

    Attributes:
        answers: By method or verb, in order; a callable gets the request.
    """

    def __init__(self, **answers: Any) -> None:
        self.answers = {name.replace("_", "/"): list(given) for name, given in answers.items()}
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        asked = message_of(request)
        name = asked.get("method", "response") if request.method == "POST" else request.method
        scripted = self.answers.get(name)
        if scripted:
            answer = scripted.pop(0)
            return answer(request) if callable(answer) else answer  # type: ignore[no-any-return]
        if name == "initialize":
            return in_json(result(asked["id"], protocolVersion="2025-11-25", capabilities={"tools": {}}))
        if "id" in asked and name != "response":
            return in_json(result(asked["id"], content=[]))
        return httpx.Response(202)

    def sent(self, *names: str) -> list[JSON]:
        return [m for m in map(message_of, self.requests) if m.get("method") in names]


def initialized(request: httpx.Request, headers: JSON) -> httpx.Response:
    fields = {"protocolVersion": "2025-11-25", "capabilities": {}}
    return in_json(result(message_of(request)["id"], **fields), headers=headers)


def assigning(session_id: str) -> Callable[[httpx.Request], httpx.Response]:
    return lambda request: initialized(request, headers={"Mcp-Session-Id": session_id})


def over(server: Server, **more: Any) -> Any:
    return open_bench(httpx.MockTransport(server), **{"era": "legacy", **more})


# The handshake


async def test_the_handshake_byte_by_byte() -> None:
    """`initialize` without a version header, then `initialized` with all headers, then requests."""
    server = Server(initialize=[assigning("s-1")])
    async with over(server) as bench:
        client = await bench.connect()
        await call(client)
    version = bench.clients[0].record.protocol_version
    initialize, notified, called, deleted = server.requests
    assert ["POST", "POST", "POST", "DELETE"] == [request.method for request in server.requests]
    assert {"jsonrpc": "2.0", "id": 1, "method": "initialize"} == {
        key: value for key, value in message_of(initialize).items() if key != "params"
    }
    params = message_of(initialize)["params"]
    assert ("2025-11-25", {}, "trio-vmcp") == (
        params["protocolVersion"],
        params["capabilities"],
        params["clientInfo"]["name"],
    )
    assert {"jsonrpc": "2.0", "method": "notifications/initialized"} == message_of(notified)
    assert {"name": "echo", "arguments": {}} == message_of(called)["params"]
    assert [None, version, version, version] == [request.headers.get(VERSION) for request in server.requests]
    assert [None, "s-1", "s-1", "s-1"] == [request.headers.get(SESSION) for request in server.requests]
    for request in (initialize, notified, called):
        assert "application/json" == request.headers["content-type"]
        assert "application/json, text/event-stream" == request.headers["accept"]
    assert b"" == deleted.content


async def test_a_failed_probe_leaves_no_header_behind() -> None:
    """Neither the modern version nor a session id on a 404 must be sent with `initialize`."""
    server = Server(**{"server/discover": [httpx.Response(404, headers={"Mcp-Session-Id": "stray"})]})
    async with over(server, era="auto") as bench:
        await call(await bench.connect())
    _, initialize, *rest = server.requests
    assert VERSION not in initialize.headers
    assert [] == [request for request in (initialize, *rest) if SESSION in request.headers]
    assert "DELETE" not in [request.method for request in server.requests]


async def test_the_session_id_is_taken_from_the_initialize_result_alone() -> None:
    """A session id on any other response changes nothing."""
    stray = httpx.Response(202, headers={"Mcp-Session-Id": "stray"})
    server = Server(initialize=[assigning("s-1")], **{"notifications/initialized": [stray]})
    async with over(server) as bench:
        client = await bench.connect()
        server.answers["tools/call"] = [
            lambda request: in_json(result(message_of(request)["id"]), headers={"Mcp-Session-Id": "stray"})
        ]
        await call(client)
        await call(client)
        assert "s-1" == client.record.session_id
    assert {"s-1"} == {request.headers[SESSION] for request in server.requests[1:]}


async def test_an_id_on_an_error_is_no_session() -> None:
    """A session id on a failed `initialize` is no session: no DELETE is sent."""

    def refuse(request: httpx.Request) -> httpx.Response:
        error = {"jsonrpc": "2.0", "id": message_of(request)["id"], "error": {"code": -32000, "message": "no"}}
        return in_json(error, headers={"Mcp-Session-Id": "stray"})

    server = Server(initialize=[refuse])
    async with over(server) as bench:
        with pytest.raises(BackendRejected, match="rejected 'initialize': 'no'"):
            await bench.connect()
    assert ["POST"] == [request.method for request in server.requests]


@pytest.mark.parametrize(
    "ids", [["one", "two"], ["one, two"], [""], ["x" * 257], ["caf\u00e9"], ["a b"], ["a\tb"], ["same", "same"]]
)
async def test_odd_session_ids_are_refused(ids: list[str]) -> None:
    """Repeated, empty, too long, or not visible ASCII: such an id could not be sent back."""

    def answer(request: httpx.Request) -> httpx.Response:
        fields = {"protocolVersion": "2025-11-25", "capabilities": {}}
        response = in_json(result(message_of(request)["id"], **fields))
        response.headers = httpx.Headers(
            [*response.headers.raw, *((b"mcp-session-id", value.encode()) for value in ids)]
        )
        return response

    async with over(Server(initialize=[answer])) as bench:
        with pytest.raises(BackendProtocolError, match="session id that is repeated, too long or not visible ASCII"):
            await bench.connect()


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(202),
        httpx.Response(204),
        httpx.Response(200, json={}),
        httpx.Response(200, text="thanks"),
        in_sse(b": hello\n\n"),
        httpx.Response(400, text="no session"),
        httpx.Response(500),
    ],
)
async def test_whatever_answers_initialized_is_fine(answer: httpx.Response) -> None:
    """MCP wants 202; any other answer is ignored."""
    async with over(Server(**{"notifications/initialized": [answer]})) as bench:
        assert {"content": []} == await call(await bench.connect())


async def test_the_first_request_waits_for_initialized(autojump_clock: MockClock) -> None:
    """Two POSTs have no order, and some servers refuse a request that overtakes `initialized`."""
    backend = echo_backend()
    backend.fail("notifications/initialized", Delay(3))
    async with open_client(backend) as client:
        await call(client)
    notified, called = backend.received("notifications/initialized")[0], backend.received("tools/call")[0]
    assert notified.ended_at is not None
    assert called.received_at >= notified.ended_at == notified.received_at + 3


@pytest.mark.parametrize("version", ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"])
async def test_an_older_version_is_accepted_and_spoken(version: str) -> None:
    """Every later request carries the version that the server chose."""
    answer = lambda request: in_json(result(message_of(request)["id"], protocolVersion=version))  # noqa: E731
    server = Server(initialize=[answer])
    async with over(server) as bench:
        client = await bench.connect()
        await call(client)
        assert (version, {}) == (client.record.protocol_version, client.server_capabilities)
    assert [version, version] == [request.headers[VERSION] for request in server.requests[1:]]


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (httpx.Response(401, headers={"www-authenticate": "Bearer"}), BackendUnauthorized, "'Bearer'"),
        (httpx.Response(403), BackendUnauthorized, "HTTP 403"),
        (httpx.Response(404), BackendRejected, "HTTP 404"),
        (httpx.Response(503, text="x" * 70_000), BackendRejected, "HTTP 503"),
        (in_sse(), BackendUnavailable, "closed the stream before it answered 'initialize'"),
        (httpx.Response(202), BackendProtocolError, "HTTP 202 and no content"),
        (httpx.Response(200, html="<p>"), BackendProtocolError, "text/html"),
    ],
)
async def test_a_handshake_that_fails_says_how(answer: httpx.Response, error: type[BackendError], text: str) -> None:
    """The error has the status; the client does not wait for a timeout."""
    async with over(Server(initialize=[answer])) as bench:
        with pytest.raises(error, match=text):
            await bench.connect()


# Cancellation


async def test_no_cancel_is_sent_over_a_lost_connection(autojump_clock: MockClock) -> None:
    """Over a lost connection no cancel is sent: the backend has noticed."""
    backend = echo_backend()
    async with open_client(backend) as client:
        backend.fail("tools/call", Reset(0), times=1)
        with pytest.raises(BackendUnavailable):
            await call(client)
        await wait_all_tasks_blocked()
    assert [] == backend.received("notifications/cancelled")


async def test_a_closing_client_sends_no_new_notifications(autojump_clock: MockClock) -> None:
    """The DELETE waits for notifications that were sent before it; later ones are dropped."""
    backend = echo_backend()
    async with open_client(backend) as client, trio.open_nursery() as nursery:
        nursery.start_soon(call, client, "hang")
        await wait_all_tasks_blocked()
        await client.aclose(terminate=False)
        nursery.cancel_scope.cancel()
    assert [] == backend.received("notifications/cancelled")


async def test_a_backend_that_refuses_the_report_is_let_be(autojump_clock: MockClock) -> None:
    """An error answer to a cancel is ignored: no call waits for it."""
    backend = echo_backend()
    backend.fail("notifications/cancelled", Reset(0))
    async with open_client(backend) as client:
        with trio.move_on_after(1):
            await call(client, "hang")
        await trio.sleep(1)
        await call(client)


# DELETE


@pytest.mark.parametrize("status", [200, 202, 204, 404, 405, 500, 307])
async def test_whatever_answers_delete_is_fine(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """Any answer to DELETE is accepted, and told at DEBUG without the id."""
    caplog.set_level("DEBUG", "trio_vmcp.client")
    server = Server(initialize=[assigning("s-1")], DELETE=[httpx.Response(status)])
    async with over(server) as bench:
        await bench.connect()
    assert "DELETE" == server.requests[-1].method
    (told,) = [message for message in caplog.messages if "DELETE of its session" in message]
    assert str(status) in told
    assert "s-1" not in caplog.text


async def test_a_hanging_delete_is_ended_by_the_deadline_of_the_close(autojump_clock: MockClock) -> None:
    """The teardown's deadline ends a DELETE that hangs; a reset counts as an answer."""
    backend = echo_backend()
    async with open_client(backend, leaves_sessions=True) as client:
        rule = backend.fail("DELETE", Hang(), times=1)
        backend.fail("DELETE", Reset(0), times=1)
        with trio.move_on_after(2):
            await client.aclose(terminate=True)
        assert 1 == rule.struck
    assert 2 == len(backend.received("DELETE"))


async def test_a_delete_waits_for_no_call(autojump_clock: MockClock) -> None:
    """A call that hangs has the only connection that calls may have."""
    backend = echo_backend()
    limit = FactorySettings(max_connections_per_backend=1)
    async with open_client(backend, settings=limit) as client, trio.open_nursery() as nursery:
        nursery.start_soon(call, client, "hang")
        await wait_all_tasks_blocked()
        await client.aclose(terminate=True)
        assert 1 == len(backend.deleted_sessions)
        nursery.cancel_scope.cancel()


async def test_the_answer_to_a_delete_is_read_to_its_end(autojump_clock: MockClock) -> None:
    """Else its connection could not be used again."""
    rest = Chunks(b"not ", 0.05, b"allowed")
    server = Server(initialize=[assigning("s-1")], DELETE=[httpx.Response(405, stream=rest)])
    async with over(server) as bench:
        await bench.connect()
    assert [] == list(rest.pieces)


async def test_suspending_sends_no_delete() -> None:
    """No DELETE when a session is suspended, since another instance may restore it, nor without a session id."""
    backend = echo_backend()
    async with open_scripted(backend, leaves_sessions=True) as bench:
        client = await bench.connect()
        await client.aclose(terminate=False)
        bench.clients.clear()
    assert [] == backend.received("DELETE")
    async with open_client(echo_backend(session_ids=False)) as client:
        assert None is client.record.session_id


# Resumption


def broken_at(*, first: bytes, resumed: list[httpx.Response]) -> Server:
    return Server(initialize=[assigning("s-1")], tools_call=[in_sse(first)], GET=resumed)


ANSWER = event(result(2, content=["resumed"]))


async def test_a_primed_stream_is_resumed_after_retry(autojump_clock: MockClock) -> None:
    """The GET comes `retry` later, with the newest id, as often as there is progress (MCP 2025-11-25,
    basic/transports).
    """
    server = Server(
        initialize=[assigning("s-1")],
        tools_call=[in_sse(b"id: e-1\nretry: 2500\ndata: \n\n")],
        GET=[in_sse(b"id: e-2\ndata:\n\n"), in_sse(b"retry: 500\nid: e-3\ndata:\n\n"), in_sse(ANSWER)],
    )
    times: list[float] = []
    async with over(server) as bench:
        client = await bench.connect()
        original = server.__call__

        def timed(request: httpx.Request) -> httpx.Response:
            times.append(trio.current_time())
            return original(request)

        bench.connector._transport.handler = timed
        assert {"content": ["resumed"]} == await call(client)
    gets = [request for request in server.requests if request.method == "GET"]
    assert ["e-1", "e-2", "e-3"] == [request.headers["last-event-id"] for request in gets]
    assert {("s-1", "2025-11-25", "text/event-stream")} == {
        (request.headers[SESSION], request.headers[VERSION], request.headers["accept"]) for request in gets
    }
    assert [2.5, 2.5, 0.5] == pytest.approx([after - before for before, after in pairwise(times[:4])])
    assert 1 == len(server.sent("tools/call"))


@pytest.mark.parametrize(("retry", "waited"), [(b"", 1), (b"retry: 0\n", 0.1), (b"retry: 999999999999999\n", 60)])
async def test_retry_is_bounded(autojump_clock: MockClock, retry: bytes, waited: float) -> None:
    """`retry` has an upper bound; without it the pause is 1 s."""
    server = broken_at(first=retry + b"id: 1\ndata:\n\n", resumed=[in_sse(ANSWER)])
    async with over(server) as bench:
        client = await bench.connect()
        started = trio.current_time()
        await call(client)
        assert waited == pytest.approx(trio.current_time() - started)


async def test_a_scripted_backend_is_resumed(autojump_clock: MockClock) -> None:
    """Progress before and after the break arrives once and in order."""
    heard: list[float] = []

    async def detaching(arguments: JSON, context: CallContext) -> str:
        await context.progress(1)
        await context.detach()
        await context.progress(2)
        return "done"

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    backend = echo_backend(answers="sse", resumable=True, retry_ms=700)
    backend.add_tool("detaching", detaching)
    async with open_client(backend) as client:
        answer = await call(client, "detaching", on_progress=on_progress)
        assert "done" == answer["content"][0]["text"]
    assert [1, 2] == heard
    assert 1 == backend.executed["detaching"]


@pytest.mark.parametrize("fault", [Reset, Disconnect])
async def test_a_stream_that_breaks_is_resumed_like_one_that_ends(autojump_clock: MockClock, fault: Any) -> None:
    """Proxies cut connections without ending the body. Wherever the stream is cut, the call is answered or fails with a
    BackendError.
    """
    backend = echo_backend(answers="sse", resumable=True)
    async with open_client(backend) as client:
        await call(client)
        whole = backend.received("tools/call")[0].response_bytes
        resumed, lost = 0, list[bool]()
        for cut in range(1, whole, 7):
            backend.fail("tools/call", fault(cut), times=1)
            try:
                await call(client)
            except BackendUnavailable as error:
                lost.append(error.may_have_executed)
                assert 0 == resumed  # after the first event the stream can be resumed, so the call is answered
            else:
                resumed += 1
    assert {True} == {*lost}
    assert resumed > 10
    assert len(backend.received("tools/call")) == backend.executed["echo"]


@pytest.mark.parametrize(
    ("resumed", "attempts"),
    [
        ([in_sse(b"id: e\ndata:\n\n")] * 9, 5),
        ([in_sse(b"id: f\ndata:\n\n")] * 9, 1 + 5),
        ([in_sse()] * 9, 5),
        ([in_sse(httpx.ReadError("x"))] * 9, 5),
        ([httpx.Response(405)], 1),
        ([httpx.Response(404)], 1),
        ([httpx.Response(401)], 1),
        ([in_json({"jsonrpc": "2.0", "id": 2, "error": {"code": 1, "message": "x"}}, 400)], 1),
    ],
)
async def test_resumption_ends_without_progress(
    autojump_clock: MockClock, resumed: list[httpx.Response], attempts: int
) -> None:
    """Five attempts on one id, or one if the server has no such stream; the call may have run, and is not sent
    again.
    """
    server = broken_at(first=b"id: e\ndata:\n\n", resumed=[*resumed])
    async with over(server) as bench:
        with pytest.raises(BackendUnavailable, match="closed the stream before it answered 'tools/call'") as caught:
            await call(await bench.connect())
        assert caught.value.may_have_executed
    assert attempts == len([r for r in server.requests if r.method == "GET"])
    assert 1 == len(server.sent("tools/call"))


async def test_resumption_survives_refused_connections(autojump_clock: MockClock) -> None:
    """The server restarts behind its proxy; the call may have run meanwhile."""

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    server = broken_at(first=b"id: e\ndata:\n\n", resumed=[refuse, refuse, in_sse(ANSWER)])  # type: ignore[list-item]
    async with over(server) as bench:
        assert {"content": ["resumed"]} == await call(await bench.connect())
    server = broken_at(first=b"id: e\ndata:\n\n", resumed=[refuse] * 9)  # type: ignore[list-item]
    async with over(server) as bench:
        with pytest.raises(BackendUnavailable, match="closed the stream") as caught:
            await call(await bench.connect())
        assert caught.value.may_have_executed
    server = broken_at(first=b"id: e\ndata:\n\n", resumed=[refuse] * 9)  # type: ignore[list-item]
    async with over(server) as bench:
        with pytest.raises(BackendTimeout) as timeout:
            await call(await bench.connect(), timeout=2.5)
        assert timeout.value.may_have_executed
    assert 1 == len(server.sent("notifications/cancelled"))


async def test_a_resumption_without_a_connection_forgets_nothing(autojump_clock: MockClock) -> None:
    """The GET was never written, but the call was, and may have run."""
    backend = echo_backend(answers="sse", resumable=True)
    async with open_client(backend) as client:
        await call(client)
        whole = backend.received("tools/call")[0].response_bytes
        backend.fail("tools/call", Disconnect(whole - 20), times=1)
        refusing = backend.fail(CONNECT, Refuse(), times=3)
        with pytest.raises(BackendTimeout) as caught:
            await call(client, timeout=3.5)
        assert caught.value.may_have_executed
        assert 3 == refusing.struck
        await wait_all_tasks_blocked()
    assert 1 == len(backend.received("notifications/cancelled"))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(307, headers={"location": "http://other.test/"}), BackendProtocolError),
        (in_sse(b"data: {\n\n"), BackendProtocolError),
        (httpx.Response(200, text="x"), BackendProtocolError),
    ],
)
async def test_a_resumption_that_fails_otherwise_may_have_executed(
    autojump_clock: MockClock, answer: httpx.Response, error: type[BackendError]
) -> None:
    """The GET was refused, but the call may have run."""
    async with over(broken_at(first=b"id: e\ndata:\n\n", resumed=[answer])) as bench:
        with pytest.raises(error) as caught:
            await call(await bench.connect())
        assert caught.value.may_have_executed


class _ReadsPostsOnly(httpx.AsyncBaseTransport):
    """A transport that does not ask for the body of a GET, which is empty."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            request = httpx.Request("GET", request.url, headers=request.headers)
        return await httpx.MockTransport(self.server).handle_async_request(request)


async def test_a_resumption_that_fails_may_have_executed_over_any_transport(autojump_clock: MockClock) -> None:
    """Also over one that never looks at the body of the GET."""
    server = broken_at(first=b"id: e\ndata:\n\n", resumed=[httpx.Response(200, text="x")])
    async with open_bench(_ReadsPostsOnly(server), era="legacy") as bench:
        with pytest.raises(BackendProtocolError) as caught:
            await call(await bench.connect())
        assert caught.value.may_have_executed


async def test_an_error_of_the_callback_ends_a_resumed_stream(autojump_clock: MockClock) -> None:
    """An exception of `on_progress` comes out as itself, not as a lost connection."""

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        raise BackendUnavailable("other", "is away")

    progress = event(
        {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 2, "progress": 1}}
    )
    server = broken_at(first=b"id: e\ndata:\n\n", resumed=[in_sse(progress), in_sse(ANSWER)])
    async with over(server) as bench:
        with pytest.raises(BackendUnavailable, match="backend 'other' is away"):
            await call(await bench.connect(), on_progress=on_progress)
        await wait_all_tasks_blocked()
    assert 1 == len(server.sent("notifications/cancelled"))


async def test_without_an_event_id_there_is_nothing_to_resume() -> None:
    """Without an id the call fails as soon as the stream ends. An empty `id` field resets the id."""
    for first in (b"data:\n\n", b": x\n\n", b"", b"id: 1\ndata:\n\nid:\ndata:\n\n"):
        server = broken_at(first=first, resumed=[])
        async with over(server) as bench:
            with pytest.raises(BackendUnavailable, match="closed the stream") as caught:
                await call(await bench.connect())
            assert caught.value.may_have_executed
        assert [] == [request for request in server.requests if request.method == "GET"]


# Requests of the backend


@pytest.mark.parametrize("method", ["ping", "roots/list"])
async def test_a_flood_of_requests_is_bounded(autojump_clock: MockClock, method: str) -> None:
    """A backend that asks a thousand times is read at a pace, and its call is answered behind the questions."""
    flood = b"".join(event({"jsonrpc": "2.0", "id": n, "method": method}) for n in range(1000))
    server = Server(tools_call=[in_sse(flood, ANSWER)])
    async with over(server) as bench:
        client = await bench.connect()
        started = trio.current_time()
        assert {"content": ["resumed"]} == await call(client)
        assert trio.current_time() - started >= (1000 * REQUEST_COST - MESSAGES_AHEAD) / MESSAGES_PER_SECOND
        await trio.sleep(2)
    assert 1000 >= len([r for r in server.requests if "method" not in message_of(r) and r.method == "POST"])


# Errors


async def test_a_404_with_a_session_id_means_that_the_session_is_gone() -> None:
    """With a session id, 404 means that the session is gone and the call did not run; without one it is a refusal (MCP,
    "Session Management").
    """
    backend = echo_backend()
    async with open_client(backend) as client:
        backend.sessions.clear()
        with pytest.raises(BackendUnavailable, match="no longer knows our session") as caught:
            await call(client)
        assert not caught.value.may_have_executed
        assert str(client.record.session_id) not in str(caught.value)
    async with over(Server(tools_call=[httpx.Response(404)])) as bench:
        with pytest.raises(BackendRejected, match="answered 'tools/call' with HTTP 404") as refused:
            await call(await bench.connect())
        assert (404, False) == (refused.value.code, refused.value.may_have_executed)


@pytest.mark.parametrize("status", [200, 400, 404, 422, 500, 503])
@pytest.mark.parametrize("same_id", [True, False])
async def test_a_json_rpc_error_is_read_whatever_carries_it(status: int, same_id: bool) -> None:
    """Code, message and data of a JSON-RPC error are kept, whatever the HTTP status."""

    def answer(request: httpx.Request) -> httpx.Response:
        request_id = message_of(request)["id"] if same_id else None
        error = {"code": -32602, "message": "bad arguments", "data": {"field": "x"}}
        body = {"jsonrpc": "2.0", "id": request_id, "error": error}
        return in_json(body, status, {} if status == 200 else {"content-type": "text/plain"})

    async with over(Server(tools_call=[answer])) as bench:
        with pytest.raises(BackendRejected, match=r"rejected 'tools/call': 'bad arguments' \(-32602\)") as caught:
            await call(await bench.connect())
        error = caught.value
        assert (-32602, "bad arguments", {"field": "x"}) == (error.code, error.message, error.data)
        assert not error.may_have_executed


@pytest.mark.parametrize(
    ("status", "error", "executed"),
    [
        (401, BackendUnauthorized, False),
        (403, BackendUnauthorized, False),
        (400, BackendRejected, False),
        (408, BackendRejected, True),
        (413, BackendRejected, False),
        (429, BackendRejected, False),
        (500, BackendRejected, True),
        (502, BackendRejected, True),
        (504, BackendRejected, True),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>", b"the disk is full"])
async def test_http_errors_keep_their_status(
    status: int, error: type[BackendError], executed: bool, body: bytes
) -> None:
    """A status is no timeout."""
    backend = echo_backend()
    async with open_client(backend) as client:
        backend.fail("tools/call", Status(status, body), times=1)
        with pytest.raises(error, match=f"HTTP {status}") as caught:
            await call(client)
        assert executed is caught.value.may_have_executed
        assert ("the disk is full" in caught.value.detail) is (body == b"the disk is full")
        await call(client)


# Ids


@pytest.mark.parametrize("other", [1, 3, "3", True, -2, None])
@pytest.mark.parametrize("form", ["json", "sse"])
async def test_an_answer_to_another_request_is_not_ours(other: Any, form: str) -> None:
    """In JSON it is an error, in a stream it is dropped."""
    stray = result(other, content=["stray"])

    def answer(request: httpx.Request) -> httpx.Response:
        assert 2 == message_of(request)["id"]
        return in_json(stray) if form == "json" else in_sse(event(stray), ANSWER, event(result(2, content=["late"])))

    async with over(Server(tools_call=[answer])) as bench:
        client = await bench.connect()
        if form == "json":
            with pytest.raises(BackendProtocolError) as caught:
                await call(client)
            assert caught.value.may_have_executed
        else:
            assert {"content": ["resumed"]} == await call(client)
        assert {"content": []} == await call(client)


# Stored sessions


async def stored(bench: Bench) -> Any:
    client = await bench.connect()
    await client.aclose(terminate=False)
    bench.clients.clear()
    return client.record


async def test_a_stored_session_is_used_without_a_handshake() -> None:
    """Id and version are sent as stored, and there is no handshake."""
    backend = echo_backend()
    async with open_scripted(backend) as bench:
        record = await stored(bench)
        client = await bench.connect(resume=record, identity=ALICE)
        await call(client)
        assert record == client.record
    assert 1 == len(backend.received("initialize"))
    assert record.protocol_version == backend.received("tools/call")[0].headers[VERSION]


@pytest.mark.parametrize("forgets", ["404", "400"])
async def test_a_stored_session_that_is_gone_is_said_to_be(forgets: str) -> None:
    """The call did not run, and the client does not repeat it: the session has to make another client."""
    backend = echo_backend()
    async with open_scripted(backend) as bench:
        record = await stored(bench)
        backend.restart()
        if forgets == "400":
            backend.fail("tools/call", Status(400, b"try again"), times=1)
        client = await bench.connect(resume=record)
        with pytest.raises(BackendUnavailable, match=f"no longer knows our session .HTTP {forgets}") as caught:
            await call(client)
        assert not caught.value.may_have_executed
    assert 1 == len(backend.received("initialize"))
    assert [record.session_id] == [e.session_id for e in backend.received("tools/call")]


@pytest.mark.parametrize(
    ("fault", "is_lost"),
    [
        (Error(-32000, "Bad Request: No valid session ID provided", status=400), True),
        (Status(400, b"<html>unknown Session</html>"), True),
        (Status(401, b"Unauthorized: Session not found"), True),
        (Error(-32000, "Bad Request: Server not initialized", status=400), True),
        (Error(-32000, "Session mismatch", status=409), True),
        (Status(410), True),
        (Status(422, b"Expected initialize request"), True),
        (Status(404), True),
        (Error(-32601, "no such thing", status=404), True),
        (Error(-32020, "0 Mcp-Method headers, not one", status=400), True),
        (Error(-32022, "too old", {"supported": ["2026-07-28"], "requested": "2025-11-25"}, status=400), True),
        (Error(-32602, "'session' is not a string", status=400), False),
        (Error(-32603, "the session of the browser broke", status=400), False),
        (Error(-32000, "Session limit", status=200), False),
        (Status(400, b"what?"), False),
        (Status(503), True),
        (Status(500), False),
        (Status(429), False),
    ],
)
async def test_which_refusals_say_that_the_session_is_lost(fault: Any, is_lost: bool) -> None:
    """404, a 400 about the session, 503 and an answer of the other era; all but 503 prove that the call did not run."""
    backend = echo_backend()
    async with open_client(backend) as client:
        backend.fail("tools/call", fault, times=1)
        note = begin_request("tools/call")
        with pytest.raises(BackendError) as caught:
            await call(client)
        assert is_lost == note.session_lost
        if is_lost and fault != Status(503):
            assert not caught.value.may_have_executed
        await call(client)  # the client stays: the session decides to replace it


async def test_no_secret_is_shown() -> None:
    """A backend's session id is a bearer token."""
    async with open_client(echo_backend()) as client:
        assert str(client.record.session_id) not in repr(client)


async def test_without_a_session_id_no_cancel_is_sent(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Without `Mcp-Session-Id` a backend cannot tell clients apart, and both number requests from 1: a cancel could end
    another client's call.
    """
    backend = slow_backend(seconds=2.0)
    backend.session_ids = False
    async with open_world({"a": backend}) as world, world.open_session() as mine, world.open_session() as another:

        async def call() -> None:
            await another.call_tool("a_slow")

        nursery.start_soon(call)
        with pytest.raises(BackendTimeout):
            await mine.call_tool("a_slow", timeout=1.0)
        await trio.sleep(2.0)
        assert 0 == another.in_flight
        assert [] == backend.received("notifications/cancelled")
