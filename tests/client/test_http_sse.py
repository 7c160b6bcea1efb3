"""HTTP+SSE (MCP 2024-11-05): one stream for all answers, POSTs beside it, and how the probe falls back to it."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
from support.clients import (
    ALICE,
    BOB,
    SESSION_ID,
    Bench,
    Chunks,
    ask,
    call,
    echo_backend,
    event,
    message_of,
    no_progress,
    open_bench,
    open_scripted,
    result,
)
from support.harness import open_world
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnauthorized,
    BackendUnavailable,
    ClientHandlers,
    FactorySettings,
    FailureReason,
    Identity,
    MessageTooLarge,
    OutgoingAuth,
    ServerRequest,
    SessionChange,
)
from trio_vmcp._protocol.eras import Verdict
from trio_vmcp.testing import CallContext, Disconnect, Error, Hang, ScriptedBackend, Stall, Status

SSE = {"content-type": "text/event-stream"}
BOTH_MANNERS = pytest.mark.parametrize("holds_posts", [False, True])


def sse_backend(**more: Any) -> ScriptedBackend:
    """As `echo_backend`, over HTTP+SSE."""
    return echo_backend(transport="sse", protocol_version="2024-11-05", **more)


@asynccontextmanager
async def open_sse(backend: ScriptedBackend, **options: Any) -> AsyncIterator[Bench]:
    """A world with the transport configured by name; at the end no stream, connection or request is left."""
    async with open_scripted(backend, **{"transport_name": "sse", "era": "auto", **options}) as bench:
        yield bench
    assert 0 == backend.in_flight


# Normal use


@BOTH_MANNERS
async def test_calls_go_by_post_and_come_by_stream(holds_posts: bool, autojump_clock: MockClock) -> None:
    """One GET for all answers; no session id, no DELETE; whether the server ends a POST at once or with the answer."""
    backend = sse_backend(holds_posts=holds_posts)
    async with open_sse(backend) as bench:
        client = await bench.connect()
        assert "echo" == (await ask(client, "tools/list"))["tools"][0]["name"]
        assert '{"a": 1}' == (await call(client, arguments={"a": 1}))["content"][0]["text"]
        assert ("legacy", "2024-11-05", None) == (
            client.record.era,
            client.record.protocol_version,
            client.record.session_id,
        )
    methods = ["", "initialize", "notifications/initialized", "tools/list", "tools/call"]
    assert methods == [exchange.method for exchange in backend.exchanges]
    assert ["GET", "POST"] == sorted({exchange.verb for exchange in backend.exchanges})
    assert "2024-11-05" == backend.exchanges[-1].headers["mcp-protocol-version"]
    assert "mcp-protocol-version" not in backend.exchanges[1].headers


class Feed(httpx.AsyncByteStream):
    """A body whose pieces are put in while the body is read; None is its end."""

    def __init__(self) -> None:
        self.put, self._pieces = trio.open_memory_channel[bytes | None](10)
        self.closed_at: float | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._pieces.receive()
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        self.closed_at = trio.current_time()


async def test_the_post_of_a_request_is_not_ended_before_its_answer(autojump_clock: MockClock) -> None:
    """Some servers cancel a request when its POST is disconnected, so an open body is left open until the answer."""
    stream, accepted = Feed(), Feed()
    stream.put.send_nowait(b"event: endpoint\ndata: /messages\n\n")

    async def handle(request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        if request.method == "GET":
            return httpx.Response(200, headers=SSE, stream=stream)
        message = message_of(request)
        if message["method"] == "initialize":
            answer = result(message["id"], protocolVersion="2024-11-05", capabilities={})
            stream.put.send_nowait(event(answer))
        elif message["method"] == "tools/call":
            called.append(message)
            return httpx.Response(202, stream=accepted)
        return httpx.Response(202)

    async def answer_later() -> None:
        await trio.sleep(1)
        stream.put.send_nowait(event(result(called[0]["id"], content=[])))

    called: list[JSON] = []
    async with open_bench(httpx.MockTransport(handle), transport_name="sse") as bench:
        client = await bench.connect()
        bench.nursery.start_soon(answer_later)
        assert {"content": []} == await call(client)
        assert 1 == trio.current_time() == accepted.closed_at


@BOTH_MANNERS
async def test_many_calls_share_the_stream(holds_posts: bool, autojump_clock: MockClock) -> None:
    """Each call gets its own answer, with its progress before it in order; the stream does not count under the
    connection limit.
    """
    settings = FactorySettings(max_connections_per_backend=1)

    async def caller(client: Any, number: int) -> None:
        heard: list[float] = []

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            heard.append(progress)

        await call(client, "steps", on_progress=on_progress)
        assert [1, 2, 3] == heard
        assert f'{{"n": {number}}}' == (await call(client, arguments={"n": number}))["content"][0]["text"]

    async with open_sse(sse_backend(holds_posts=holds_posts), settings=settings) as bench:
        client = await bench.connect()
        async with trio.open_nursery() as callers:
            for number in range(20):
                callers.start_soon(caller, client, number)


async def test_credentials_are_the_callers(autojump_clock: MockClock) -> None:
    """The stream is opened with the opener's credentials, each POST is sent with its caller's."""

    def auth(backend: Backend, identity: Identity | None) -> httpx.Auth:
        return httpx.BasicAuth(identity.subject if identity else "nobody", "")

    asked: OutgoingAuth = auth
    backend = sse_backend()
    async with open_sse(backend, auth=asked) as bench:
        client = await bench.connect(identity=ALICE)
        await call(client, identity=BOB)
    sent = [exchange.headers["authorization"] for exchange in backend.exchanges]
    alice, bob = (httpx.BasicAuth(name, "")._auth_header for name in ("alice", "bob"))
    assert [alice, alice, alice, bob] == sent


@BOTH_MANNERS
async def test_handlers_answer_with_the_openers_credentials(holds_posts: bool, autojump_clock: MockClock) -> None:
    """The handlers' capabilities are declared. A question on the stream names no call, so the answer has the opener's
    credentials; it does not need the call's place under the connection limit.
    """

    def auth(backend: Backend, identity: Identity | None) -> httpx.Auth:
        return httpx.BasicAuth(identity.subject if identity else "nobody", "")

    async def curious(arguments: JSON, context: Any) -> str:
        return str((await context.roots())[0]["uri"])

    asked: list[ServerRequest] = []

    async def roots(request: ServerRequest) -> JSON:
        asked.append(request)
        return {"roots": [{"uri": "file:///x"}]}

    backend = sse_backend(holds_posts=holds_posts)
    backend.add_tool("curious", curious)
    settings = FactorySettings(max_connections_per_backend=1)
    handlers = ClientHandlers(roots=roots)
    async with open_sse(backend, auth=auth, settings=settings, handlers=handlers) as bench:
        client = await bench.connect(identity=ALICE)
        assert "file:///x" == (await call(client, "curious", identity=BOB))["content"][0]["text"]
    assert {"roots": {}} == backend.received("initialize")[0].params["capabilities"]
    assert [ServerRequest(SESSION_ID, "b", None, {})] == asked
    (answer,) = [exchange for exchange in backend.exchanges if "result" in (exchange.message or {})]
    assert httpx.BasicAuth("alice", "")._auth_header == answer.headers["authorization"]


async def test_userinfo_of_the_url_goes_to_both(autojump_clock: MockClock) -> None:
    """The userinfo is sent as Basic credentials, to the stream and to its endpoint."""
    backend = sse_backend()
    async with open_sse(backend, url="http://u:p@b.test/sse?tenant=1") as bench:
        await call(await bench.connect())
    assert 1 == len({exchange.headers["authorization"] for exchange in backend.exchanges})


# The endpoint


@pytest.mark.parametrize(
    "endpoint",
    ["http://evil.test/messages", "//evil.test/messages", "https://b.test/messages", "http://b.test:81/messages"],
)
async def test_another_origin_is_refused(endpoint: str, autojump_clock: MockClock) -> None:
    """Nothing is sent to an endpoint of another origin, and no error shows the session in its query."""
    backend = sse_backend(endpoint=endpoint)
    async with open_sse(backend) as bench:
        with pytest.raises(BackendProtocolError, match="named an endpoint of another origin") as caught:
            await bench.connect()
        assert "session" not in str(caught.value)
    assert ["GET"] == [exchange.verb for exchange in backend.exchanges]


@pytest.mark.parametrize("endpoint", ["/messages", "messages", "http://b.test/messages", "http://b.test:80/messages"])
async def test_the_endpoint_is_resolved_against_the_stream(endpoint: str, autojump_clock: MockClock) -> None:
    """The endpoint may be relative to the stream's directory, to its host, or absolute."""
    backend = sse_backend(endpoint=endpoint)
    async with open_sse(backend, url="http://b.test/sse") as bench:
        await call(await bench.connect())


@pytest.mark.parametrize(
    ("pieces", "error", "match"),
    [
        ([b"event: endpoint\ndata: http://b.test:x/\n\n"], BackendProtocolError, "named an endpoint that is no URL"),
        ([b"event: endpoint\ndata: /\xff\n\n"], BackendProtocolError, "named an endpoint that is no URL"),
        ([b"event: endpoint\ndata: /" + b"x" * 9000 + b"\n\n"], BackendProtocolError, "named an endpoint that is no"),
        ([event({}), b": hello\n\n"], BackendUnavailable, "closed its event stream"),
        ([100.0], BackendProtocolError, r"named no endpoint on its event stream within 30.0 s"),
        (
            [b"data: " + b"x" * 5000],
            MessageTooLarge,
            r"sent an SSE event of more than 4 x 1000 bytes \(max_message_bytes\)",
        ),
    ],
)
async def test_a_stream_that_does_not_begin_right_is_no_backend(
    pieces: list[Any], error: type[Exception], match: str, autojump_clock: MockClock
) -> None:
    """A stream that does not begin with a valid endpoint ends in a BackendError in bounded time."""

    def answer(request: httpx.Request) -> httpx.Response:
        assert "GET" == request.method
        return httpx.Response(200, headers=SSE, stream=Chunks(*pieces))

    settings = FactorySettings(max_message_bytes=1000 if error is MessageTooLarge else 10_000)
    async with open_bench(
        httpx.MockTransport(answer), settings=settings, url="http://b.test/sse", transport_name="sse"
    ) as bench:
        with pytest.raises(error, match=match):
            await bench.connect()


@pytest.mark.parametrize(
    ("response", "error", "match"),
    [
        (httpx.Response(404), BackendRejected, "answered 'GET' with HTTP 404"),
        (httpx.Response(401), BackendUnauthorized, "refused 'GET' without credentials: HTTP 401"),
        (httpx.Response(200, json={}), BackendProtocolError, "answered a GET with what is no event stream"),
        (httpx.Response(200, headers={**SSE, "content-encoding": "br"}), BackendProtocolError, "Content-Encoding"),
    ],
)
async def test_what_is_no_stream_is_named(
    response: httpx.Response, error: type[Exception], match: str, autojump_clock: MockClock
) -> None:
    """The error names the status, or the media type of the answer."""
    async with open_bench(httpx.MockTransport(lambda _: response), transport_name="sse") as bench:
        with pytest.raises(error, match=match):
            await bench.connect()


# What goes wrong


@BOTH_MANNERS
async def test_a_timeout_and_a_cancel_tell_the_backend(holds_posts: bool, autojump_clock: MockClock) -> None:
    """The cancel is a notification of its own, even while the call's POST is open; the next call works."""
    backend = sse_backend(holds_posts=holds_posts)
    async with open_sse(backend) as bench:
        client = await bench.connect()
        with pytest.raises(BackendTimeout) as caught:
            await call(client, "hang", timeout=2)
        assert caught.value.may_have_executed
        with trio.move_on_after(3) as scope:
            await call(client, "hang", on_progress=no_progress)
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert {"hang": 2} == backend.cancelled
        await call(client)


async def test_a_close_waits_for_what_is_on_its_way(autojump_clock: MockClock) -> None:
    """Closing the client right after a cancelled call still sends the cancel."""
    backend = sse_backend()
    async with open_sse(backend) as bench:
        client = await bench.connect()
        with pytest.raises(BackendTimeout):
            await call(client, "hang", timeout=2)
        backend.latency = 0.5
        await client.aclose(terminate=True)
        assert {"hang": 1} == backend.cancelled


@BOTH_MANNERS
async def test_a_callbacks_error_comes_out_as_itself(holds_posts: bool, autojump_clock: MockClock) -> None:
    """An exception of `on_progress` comes out without a group, and the call is cancelled at the backend."""

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        raise ZeroDivisionError

    backend = sse_backend(holds_posts=holds_posts)
    async with open_sse(backend) as bench:
        client = await bench.connect()
        with pytest.raises(ZeroDivisionError):
            await call(client, "hang", on_progress=on_progress)
        await wait_all_tasks_blocked()
        assert {"hang": 1} == backend.cancelled


@pytest.mark.parametrize(
    ("status", "error", "may_have_executed"),
    [
        (400, BackendRejected, False),
        (403, BackendUnauthorized, False),
        (404, BackendRejected, False),
        (500, BackendRejected, True),
    ],
)
async def test_a_refused_post_ends_its_call_alone(
    status: int, error: type[Any], may_have_executed: bool, autojump_clock: MockClock
) -> None:
    """A refused POST fails its call at once, with its status; the stream and other calls go on."""
    backend = sse_backend()
    backend.fail("tools/call", Status(status), times=1)
    async with open_sse(backend) as bench:
        client = await bench.connect()
        with pytest.raises(error, match=f"HTTP {status}") as caught:
            await call(client)
        assert may_have_executed is caught.value.may_have_executed
        assert 0 == trio.current_time()
        await call(client)


async def test_a_post_that_breaks_ends_its_call_alone(autojump_clock: MockClock) -> None:
    """The call may have run, and a later answer on the stream is dropped; the stream is another connection."""

    async def late(arguments: JSON, context: Any) -> str:
        await trio.sleep(1)
        return "late"

    backend = sse_backend()
    backend.add_tool("late", late)
    async with open_sse(backend) as bench:
        client = await bench.connect()
        backend.fail("tools/call", Disconnect(0), times=1)
        with pytest.raises(BackendUnavailable) as caught:
            await call(client, "late")
        assert caught.value.may_have_executed
        assert 0 == trio.current_time()
        assert "late" == (await call(client, "late"))["content"][0]["text"]


async def test_a_refused_handshake_leaves_no_stream(autojump_clock: MockClock) -> None:
    """No stream is left after a refused or cancelled handshake; `initialize` is not cancelled by a notification."""
    for fault in (Error(-32000, "not today"), Hang()):
        backend = sse_backend()
        backend.fail("initialize", fault)
        async with open_sse(backend) as bench:
            with trio.move_on_after(5), pytest.raises(BackendRejected, match="not today"):
                await bench.connect()
            await wait_all_tasks_blocked()
            assert {} == backend.sessions
        assert [] == backend.received("notifications/cancelled")


async def test_the_end_of_the_stream_fails_every_call(autojump_clock: MockClock) -> None:
    """All calls fail at once; the session reports the failure, and the next call is refused at once."""
    backend = sse_backend()
    async with (
        open_world({"b": backend}, configure=lambda b: Backend(id="b", url=b.url, transport="sse")) as world,
        world.open_session() as session,
    ):
        errors: list[BackendUnavailable] = []

        async def caller() -> None:
            with pytest.raises(BackendUnavailable) as caught:
                await session.call_tool("b_hang")
            errors.append(caught.value)

        async with session.changes() as changes:
            async with trio.open_nursery() as callers:
                callers.start_soon(caller)
                callers.start_soon(caller)
                await wait_all_tasks_blocked()
                backend.crash()
            assert 0 == trio.current_time()
            assert [True, True] == [error.may_have_executed for error in errors]
            assert SessionChange("backend", "b") == await changes.receive()
        (failure,) = session.failures
        assert FailureReason.UNREACHABLE is failure.reason
        with pytest.raises(BackendUnavailable, match="is not connected"):
            await session.call_tool("b_echo")


async def test_a_stream_that_ends_while_it_is_listed_is_one_failure(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of the stream during the first listing is reported once."""
    backend = sse_backend()
    backend.fail("GET", Disconnect(600))
    for number in range(50):
        backend.add_tool(f"tool{number}")
    async with (
        open_world({"b": backend}, configure=lambda b: Backend(id="b", url=b.url, transport="sse")) as world,
        world.open_session() as session,
    ):
        (failure,) = session.failures
        assert FailureReason.UNREACHABLE is failure.reason
    assert 1 == sum("is missing" in message for message in caplog.messages)


async def test_a_silent_stream_costs_each_call_its_timeout(autojump_clock: MockClock) -> None:
    """Calls time out, since nothing shows that the stream is dead, and closing is not delayed."""
    backend = sse_backend()
    backend.fail("GET", Stall(1000))
    async with open_sse(backend) as bench:
        client = await bench.connect()
        await call(client)
        late = 0
        for _ in range(20):
            try:
                await call(client, timeout=1)
            except BackendTimeout:
                late += 1
        assert late > 5
    assert late == trio.current_time()


async def test_an_event_that_is_not_json_is_skipped(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An event that is no JSON could answer any call: it is skipped, its text is not shown, and other kinds of events
    are ignored.
    """

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, headers=SSE, stream=Chunks(*stream))
        return httpx.Response(202)

    hello = result(1, protocolVersion="2024-11-05", capabilities={})
    stream: list[bytes | float] = [
        b"event: endpoint\ndata: /messages\n\n",
        0.1,
        b"data: secret, not JSON\n\nevent: other\ndata: x\n\nevent: endpoint\ndata: http://evil.test/\n\n",
        event(hello),
        1000.0,
    ]
    async with open_bench(httpx.MockTransport(answer), transport_name="sse") as bench:
        await bench.connect()
    assert "backend 'b': skipped a message that is not JSON at character 0" in caplog.messages
    assert "secret" not in caplog.text


# The probe


@pytest.mark.parametrize("status", [400, 404, 405])
async def test_the_probe_falls_back_to_the_older_transport(status: int, autojump_clock: MockClock) -> None:
    """If `initialize` is refused with one of the statuses of HTTP+SSE servers, the GET stream is tried, and the verdict
    is cached.
    """
    backend = sse_backend()
    backend.fail(lambda e: e.verb == "POST" and "session" not in e.target, Status(status))
    async with open_scripted(backend, era="auto") as bench:
        client = await bench.connect()
        assert "2024-11-05" == client.record.protocol_version
        await call(client)
        assert ["POST", "POST", "GET"] == [exchange.verb for exchange in backend.exchanges][:3]
        seen = len(backend.exchanges)
        assert "2024-11-05" == (await bench.connect()).record.protocol_version
        assert ["GET", "POST", "POST"] == [exchange.verb for exchange in backend.exchanges][seen:]


async def elicit(request: ServerRequest) -> JSON:
    return {"action": "decline"}


BOTH_ORDERS = pytest.mark.parametrize(
    "handlers", [ClientHandlers(), ClientHandlers(elicitation=elicit)], ids=["modern first", "handshake first"]
)


@BOTH_ORDERS
@pytest.mark.parametrize("status", [400, 404, 405])
async def test_a_refused_handshake_waits_for_no_answer_of_the_other_era(
    handlers: ClientHandlers, status: int, autojump_clock: MockClock
) -> None:
    """`server/discover` is never answered: once `initialize` is refused, the stream is tried at once, and the silence
    costs no second wait.
    """
    backend = sse_backend()
    backend.fail("server/discover", Hang())
    backend.fail(lambda e: e.method == "initialize" and "session" not in e.target, Status(status))
    async with open_scripted(backend, era="auto", handlers=handlers) as bench:
        client = await bench.connect()
        silence = 0.0 if handlers.elicitation else 10.0  # what comes first
        assert silence == trio.current_time()
        await call(client)
        seen = len(backend.exchanges)
        await bench.connect()
        assert silence == trio.current_time()
        assert ["GET", "POST", "POST"] == [exchange.verb for exchange in backend.exchanges][seen:]


@BOTH_ORDERS
async def test_a_modern_server_may_be_slow_to_refuse_the_stream(
    handlers: ClientHandlers, autojump_clock: MockClock
) -> None:
    """`initialize` is refused as a server of HTTP+SSE does, and the GET is not answered: the first that works is taken,
    and nothing is left of the other.
    """
    backend = echo_backend("modern")
    if not handlers.elicitation:
        backend.fail("server/discover", Hang(), times=1)
    backend.fail("initialize", Status(404))
    backend.fail("GET", Hang())
    async with open_scripted(backend, era="auto", handlers=handlers) as bench:
        assert "modern" == (await bench.connect()).record.era
        assert (0.0 if handlers.elicitation else 10.0) == trio.current_time()
        assert 1 == len(backend.received("GET"))
        await wait_all_tasks_blocked()
        assert "running" not in [exchange.outcome for exchange in backend.received("GET")]


async def test_what_is_no_older_server_either_says_so(autojump_clock: MockClock) -> None:
    """If the GET fails, too, the error names both statuses."""
    backend = echo_backend("both")
    backend.fail("POST", Status(404))
    async with open_scripted(backend) as bench:
        with pytest.raises(
            BackendRejected, match=r"HTTP 404, and over HTTP\+SSE .* answered 'GET' with HTTP 405"
        ) as caught:
            await bench.connect()
        assert 404 == caught.value.code


async def test_a_stream_without_an_endpoint_is_not_waited_for_long(autojump_clock: MockClock) -> None:
    """A fallback waits for the endpoint a short time only: servers of streamable HTTP have a GET stream, too."""
    backend = echo_backend("both", listens=True, session_ids=False)
    backend.fail("POST", Status(405))
    async with open_scripted(backend) as bench:
        with pytest.raises(BackendRejected, match=r"named no endpoint on its event stream within 10\.0 s"):
            await bench.connect()


@pytest.mark.parametrize("status", [401, 403, 500, 503])
async def test_other_refusals_do_not_fall_back(status: int, autojump_clock: MockClock) -> None:
    """An outage, 401 or 403 proves nothing about the transport."""
    backend = sse_backend()
    backend.fail("POST", Status(status))
    async with open_scripted(backend, era="auto") as bench:
        with pytest.raises((BackendRejected, BackendUnauthorized), match=f"HTTP {status}"):
            await bench.connect()
    assert [] == backend.received("GET")


async def test_a_verdict_that_proves_wrong_is_corrected(autojump_clock: MockClock) -> None:
    """The server was replaced by one of streamable HTTP, and later back: both times the cached verdict is corrected."""
    backend = sse_backend()
    async with open_scripted(backend, era="auto") as bench:
        await bench.connect()
        (endpoint,) = bench.connector.verdicts._verdicts
        assert Verdict.SSE is bench.connector.verdicts._verdicts[endpoint]
        for client in bench.clients:
            await client.aclose(terminate=True)
        backend.transport, backend.protocol_version = "streamable-http", "2025-06-18"
        client = await bench.connect()
        assert client.record.session_id is not None
        await call(client)
        assert Verdict.LEGACY is bench.connector.verdicts._verdicts[endpoint]
        await client.aclose(terminate=True)
        backend.transport = "sse"
        await call(await bench.connect())
        assert Verdict.SSE is bench.connector.verdicts._verdicts[endpoint]


async def test_a_restored_session_opens_another_stream(autojump_clock: MockClock) -> None:
    """The row has no session id of such a backend, so a new stream is opened and no stored session is used."""
    backend = sse_backend()
    async with open_world({"b": backend}, configure=lambda b: Backend(id="b", url=b.url)) as world:
        session = await world.make_session()
        await session.call_tool("b_echo")
        assert {} == dict(session.backend_sessions)
        await session.suspend()
        assert {} == backend.sessions
        session = await world.restore_session(session.id)
        await session.call_tool("b_echo")
        assert 1 == len(backend.sessions)
        await session.aclose()


async def test_a_restored_session_probes_anew_in_another_process(autojump_clock: MockClock) -> None:
    """Without a cached verdict, the stored one is for HTTP+SSE and is no hint for streamable HTTP."""
    backend = sse_backend()
    async with open_world({"b": backend}, configure=lambda b: Backend(id="b", url=b.url)) as world:
        session = await world.make_session()
        await session.suspend()
        world.factory._connector_for("").func.verdicts._verdicts.clear()  # type: ignore[attr-defined]
        session = await world.restore_session(session.id)
        assert () == session.failures
        await session.call_tool("b_echo")
        await session.aclose()


async def test_the_messages_themselves_are_plain(autojump_clock: MockClock) -> None:
    """One JSON-RPC object a POST, with its media type; no header or member of the modern era is sent."""
    posted: list[JSON] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            assert "text/event-stream" == request.headers["accept"]
            hello = result(1, protocolVersion="2024-11-05", capabilities={})
            pieces: list[bytes | float] = [b"event: endpoint\ndata: /m?s=1\n\n", 1.0, event(hello), 1000.0]
            return httpx.Response(200, headers=SSE, stream=Chunks(*pieces))
        assert ("application/json", "/m?s=1") == (request.headers["content-type"], request.url.raw_path.decode())
        posted.append(message_of(request))
        return httpx.Response(202)

    async with open_bench(httpx.MockTransport(answer), transport_name="sse") as bench:
        await bench.connect()
    assert ["initialize", "notifications/initialized"] == [message["method"] for message in posted]
    assert "_meta" not in posted[0]["params"]


async def test_nothing_secret_is_logged(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """The endpoint's query is a bearer token."""
    caplog.set_level(logging.DEBUG, "trio_vmcp")
    backend = sse_backend(name="canary")
    async with (
        open_world({"b": backend}, configure=lambda b: Backend(id="b", url=b.url, transport="sse")) as world,
        world.open_session() as session,
    ):
        await session.call_tool("b_echo")
        backend.crash()
        with pytest.raises(BackendUnavailable) as caught:
            await session.call_tool("b_echo")
        await wait_all_tasks_blocked()
        members = session._core.membership.members  # type: ignore[attr-defined]
        assert "canary" not in repr(members) + str(caught.value) + str(session.failures)
    assert "is missing" in caplog.text
    assert "canary" not in caplog.text


class SlowToken(httpx.Auth):
    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:  # noqa: ASYNC900  # httpx's interface
        await trio.sleep(2.0)
        yield request  # noqa: ASYNC119  # the credentials wrapper closes this generator


async def test_the_post_of_an_answer_may_take_its_time(autojump_clock: MockClock) -> None:
    """A backend waits for the answer to its request, so that POST has more time than a notification's."""

    async def ask(arguments: JSON, context: CallContext) -> str:
        return str((await context.elicit("?"))["action"])

    async def accept(request: ServerRequest) -> JSON:
        await trio.lowlevel.checkpoint()
        return {"action": "accept", "content": {}}

    backend = echo_backend(transport="sse")
    backend.add_tool("ask", ask)
    handlers = ClientHandlers(elicitation=accept)
    async with open_world({"a": backend}, handlers=handlers, auth=lambda *_: SlowToken()) as world:
        async with world.open_session() as session:
            result = await session.call_tool("a_ask")
    assert "accept" == result.content[0]["text"]
