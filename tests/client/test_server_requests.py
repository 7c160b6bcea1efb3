"""Requests of a legacy backend to its client: which handler answers, how many at a time, and how calls and closes end
them.
"""

from __future__ import annotations

import itertools
import json
import logging
from contextvars import ContextVar
from typing import Any

import httpx
import pytest
import trio
from support.clients import (
    ALICE,
    SESSION_ID,
    call,
    echo_backend,
    event,
    in_json,
    in_sse,
    message_of,
    open_bench,
    open_scripted,
    result,
)
from support.handlers import Handler
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON, BackendRejected, BackendTimeout, ClientHandlers, FactorySettings, ServerRequest
from trio_vmcp._client.channels.pace import MESSAGES_AHEAD, MESSAGES_PER_SECOND, REQUEST_COST
from trio_vmcp._client.handlers import BoundHandlers
from trio_vmcp._client.server_requests import ServerRequests
from trio_vmcp._client.unawaited import UnawaitedMessages
from trio_vmcp._nursery import start_clean
from trio_vmcp._protocol.jsonrpc import Request
from trio_vmcp.testing import CallContext, Delay, Hang, Raw, ScriptedBackend, Status

NOTHING = {"action": "decline"}
ANSWER = event(result(2, content=["answered"]))


async def decline(request: ServerRequest) -> JSON:
    return NOTHING


async def never(request: ServerRequest) -> JSON:
    await trio.sleep_forever()
    raise AssertionError


def asking(*questions: tuple[str, JSON]) -> ScriptedBackend:
    """A tool "ask" that sends all requests at once and returns the answers as JSON text."""

    async def ask(arguments: JSON, context: CallContext) -> str:
        requests = {str(number): question for number, question in enumerate(questions)}
        return json.dumps(list((await context.request_all(requests)).values()))

    backend = echo_backend(answers="sse")
    backend.add_tool("ask", ask)
    return backend


def heard_by(answer: JSON) -> Any:
    return json.loads(answer["content"][0]["text"])


class Server:
    """A legacy server with a scripted stream for each `tools/call`, in order; it records the answers to its
    requests.
    """

    def __init__(self, *streams: Any) -> None:
        self.streams = list(streams)
        self.answers: list[JSON] = []
        self.requests: list[httpx.Request] = []
        self.sessions = itertools.count(1)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        asked = message_of(request)
        match asked.get("method"):
            case "initialize":
                session = {"mcp-session-id": f"session-{next(self.sessions)}"}
                return in_json(result(asked["id"], protocolVersion="2025-11-25", capabilities={}), headers=session)
            case "tools/call":
                stream = self.streams.pop(0)
                return stream if isinstance(stream, httpx.Response) else in_sse(*stream)
            case None if request.method == "POST":
                self.answers.append(asked)
        return httpx.Response(202)


def over(server: Any, handlers: ClientHandlers, **more: Any) -> Any:
    return open_bench(httpx.MockTransport(server), **{"era": "legacy", "handlers": handlers, **more})


def request(request_id: object, method: str = "elicitation/create", **params: Any) -> bytes:
    return event({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})


def cancelled(request_id: object) -> bytes:
    params = {"requestId": request_id, "reason": "why not"}
    return event({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})


# What is declared


@pytest.mark.parametrize(
    ("given_", "declared"),
    [
        ({}, {}),
        ({"sampling": decline}, {"sampling": {}}),
        ({"elicitation": decline}, {"elicitation": {"form": {}, "url": {}}}),
        ({"roots": decline}, {"roots": {}}),
        ({"log": decline}, {}),
    ],
)
async def test_only_what_is_given_is_declared(given_: dict[str, Any], declared: JSON) -> None:
    """Each capability is declared as an object, as the schema of every version wants it."""
    backend = echo_backend()
    async with open_scripted(backend, handlers=ClientHandlers(**given_)) as bench:
        await bench.connect()
    assert declared == backend.received("initialize")[0].params["capabilities"]


# Handlers


@pytest.mark.parametrize(
    ("kind", "method"),
    [("sampling", "sampling/createMessage"), ("elicitation", "elicitation/create"), ("roots", "roots/list")],
)
async def test_each_kind_has_its_handler(autojump_clock: MockClock, kind: str, method: str) -> None:
    """The handler is told the caller and gets the params as received; its return value is the result."""
    handler = Handler({"mine": [1, None, "é"]})
    backend = asking((method, {"deep": {"a": [1]}}))
    given: dict[str, Any] = {kind: handler}
    async with open_scripted(backend, handlers=ClientHandlers(**given)) as bench:
        client = await bench.connect()
        assert [{"mine": [1, None, "é"]}] == heard_by(await call(client, "ask", identity=ALICE))
    assert [ServerRequest(SESSION_ID, "b", ALICE, {"deep": {"a": [1]}})] == handler.requests


async def test_what_has_no_handler_is_refused(autojump_clock: MockClock) -> None:
    """A request without a handler is answered -32601, also beside handlers of other kinds; ping needs none."""
    backend = asking(("roots/list", {}))

    async def ping(arguments: JSON, context: CallContext) -> Any:
        return await context.request("ping", {})

    backend.add_tool("ping", ping)
    async with open_scripted(backend, handlers=ClientHandlers(sampling=decline, log=decline)) as bench:
        client = await bench.connect()
        assert {} == await call(client, "ping")
        with pytest.raises(BackendRejected, match="offers no such capability") as caught:
            await call(client, "ask")
        assert -32601 == caught.value.code


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("elicitation/create", {"mode": "voice"}),
        ("sampling/createMessage", {"messages": [], "tools": []}),
        ("sampling/createMessage", {"messages": [], "toolChoice": {}}),
    ],
)
async def test_what_was_not_declared_in_detail_is_refused(autojump_clock: MockClock, method: str, params: JSON) -> None:
    """MCP: "The client MUST return an error" for an unknown mode of elicitation, and for tools in sampling without
    `sampling.tools`.
    """
    handler = Handler(NOTHING)
    async with open_scripted(asking((method, params)), handlers=ClientHandlers(handler, handler)) as bench:
        client = await bench.connect()
        with pytest.raises(BackendRejected) as caught:
            await call(client, "ask")
        assert -32602 == caught.value.code
    assert [] == handler.requests


async def test_the_answer_is_a_post_of_its_own_while_the_stream_is_read(autojump_clock: MockClock) -> None:
    """The answer has the session's headers and the caller's credentials; progress goes on meanwhile."""
    heard: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(trio.current_time() - started)

    async def ask(arguments: JSON, context: CallContext) -> str:
        async def tick() -> None:
            for step in range(1, 3):
                await trio.sleep(1)
                await context.progress(step)
            await trio.sleep(1)

        await context.progress(0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            answers.append(await context.roots())
        return "done"

    def auth(backend: object, identity: object) -> httpx.Auth:
        return httpx.BasicAuth("alice" if identity == ALICE else "nobody", "")

    answers: list[Any] = []
    backend = echo_backend(answers="sse")
    backend.add_tool("ask", ask)
    handlers = ClientHandlers(roots=Handler({"roots": [{"uri": "file:///a"}]}, seconds=2))
    async with open_scripted(backend, handlers=handlers, auth=auth) as bench:
        client = await bench.connect(identity=ALICE)
        started = trio.current_time()
        await call(client, "ask", identity=ALICE, on_progress=on_progress)
        assert 3 == trio.current_time() - started
    assert [0, 1, 2] == heard
    assert [[{"uri": "file:///a"}]] == answers
    (answer,) = [e for e in backend.exchanges if e.verb == "POST" and not e.method]
    assert 202 == answer.status
    assert {"jsonrpc": "2.0", "id": 0, "result": {"roots": [{"uri": "file:///a"}]}} == answer.message
    (asked,) = backend.received("tools/call")
    for name in ("mcp-session-id", "mcp-protocol-version", "authorization"):
        assert asked.headers[name] == answer.headers[name]


async def test_answers_outside_a_call_have_the_openers_credentials(autojump_clock: MockClock) -> None:
    """The handler is told that there is no caller."""
    asked_for: list[object] = []

    def auth(backend: object, identity: object) -> None:
        asked_for.append(identity)

    handler = Handler(NOTHING)
    server = Server()
    async with over(server, ClientHandlers(elicitation=handler), auth=auth) as bench:
        client: Any = await bench.connect(identity=ALICE)
        await wait_all_tasks_blocked()  # the GET stream is requested
        asked_for.clear()
        client.on_request(Request("x", "elicitation/create", {}), None)
        await wait_all_tasks_blocked()
        assert [{"jsonrpc": "2.0", "id": "x", "result": NOTHING}] == server.answers
        assert [ALICE] == asked_for
    assert [None] == [asked.caller for asked in handler.requests]


# Handlers that fail


class Secret(Exception):
    """An exception with a text that must not be shown."""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Secret("hunter2"), "raised Secret"),
        (ExceptionGroup("hunter2", [Secret("hunter2"), ValueError("hunter2")]), "raised Secret, ValueError"),
        (None, "returned NoneType, not a JSON object"),
        ([NOTHING], "returned list, not a JSON object"),
        ("hunter2", "returned str, not a JSON object"),
        ({"hunter": {2}}, "returned what is not JSON: the result cannot be sent as JSON: result.hunter is set"),
        ({"hunter": float("nan")}, "returned what is not JSON"),
        ({"hunter": "\ud800"}, "returned what is not JSON"),
    ],
)
async def test_a_handler_that_fails_is_an_internal_error(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, answer: Any, said: str
) -> None:
    """The backend gets -32603 without details, the log the kind of the exception, and neither gets the text. The
    connection stays.
    """
    backend = asking(("elicitation/create", {}))
    async with open_scripted(backend, handlers=ClientHandlers(elicitation=Handler(answer))) as bench:
        client = await bench.connect()
        with pytest.raises(BackendRejected) as caught:
            await call(client, "ask")
        assert (-32603, "the client failed to answer") == (caught.value.code, caught.value.message)
        await call(client)
    (line,) = caplog.messages
    assert line.startswith(f"backend 'b': the elicitation handler {said}")
    assert "hunter2" not in caplog.text


async def test_what_is_no_handler_at_all_is_an_internal_error(autojump_clock: MockClock) -> None:
    """A plain function instead of an async one, for example."""

    def forgot_async(request: ServerRequest) -> JSON:
        return NOTHING

    handlers = ClientHandlers(elicitation=forgot_async)  # type: ignore[arg-type]  # a mistake that users make
    async with open_scripted(asking(("elicitation/create", {})), handlers=handlers) as bench:
        client = await bench.connect()
        with pytest.raises(BackendRejected, match="failed to answer"):
            await call(client, "ask")


async def test_a_handler_that_fails_while_it_is_cancelled_answers_nothing(autojump_clock: MockClock) -> None:
    """A handler that raises while it is cancelled, a group with Cancelled included, costs nothing else."""

    async def handler(request: ServerRequest) -> JSON:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise Secret("hunter2")

    server = Server([request(7), 1.0, cancelled(7), 1.0, ANSWER], [ANSWER.replace(b"2", b"3", 1)])
    async with over(server, ClientHandlers(elicitation=handler)) as bench:
        client = await bench.connect()
        await call(client)
        server.streams = [[event(result(3, content=[]))]]
        await call(client)
    assert [] == server.answers


# Handlers with a call that has ended


async def test_a_handler_that_shields_itself_answers_nothing_all_the_same(autojump_clock: MockClock) -> None:
    """A shielded handler ends later and its answer is dropped. Its id may be used again at once."""

    async def handler(asked: ServerRequest) -> JSON:
        with trio.CancelScope(shield=True):
            await trio.sleep(asked.params["seconds"])
        return asked.params

    stream = [request(1, seconds=5), 1.0, cancelled(1), request(1, seconds=1), 2.0, request(1, seconds=9)]
    # the last request comes after the first handler has ended
    server = Server([*stream, 5.0, cancelled(1), 8.0, ANSWER])
    async with over(server, ClientHandlers(elicitation=handler)) as bench:
        await call(await bench.connect())
    assert [{"jsonrpc": "2.0", "id": 1, "result": {"seconds": 1}}] == server.answers


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_call_that_is_given_up_takes_its_handlers_along(autojump_clock: MockClock, how: str) -> None:
    """The call is cancelled at the backend, and its handlers are cancelled; handlers of other calls go on."""
    handler = Handler(NOTHING, seconds=10)
    backend = asking(("elicitation/create", {}), ("elicitation/create", {}))
    async with open_scripted(backend, handlers=ClientHandlers(elicitation=handler)) as bench:
        client = await bench.connect()
        async with trio.open_nursery() as nursery:
            start_clean(nursery, call, client, "ask")  # as the calls of a session, each has a note of its own
            await trio.sleep(1)

            async def give_up() -> None:
                if how == "timeout":
                    with pytest.raises(BackendTimeout):
                        await call(client, "ask", timeout=2)
                else:
                    with trio.move_on_after(2):
                        await call(client, "ask")

            start_clean(nursery, give_up)
            await trio.sleep(1)
            assert 4 == handler.running
            await trio.sleep(2)
            assert (2, 2) == (handler.running, handler.cancelled)
    answers = [e.message for e in backend.exchanges if e.verb == "POST" and not e.method]
    assert {"the call that this belongs to was given up"} == {a["error"]["message"] for a in answers if "error" in a}
    assert [0, 1] == sorted(a["id"] for a in answers if "result" in a)


async def test_a_new_session_of_the_backend_knows_no_old_request(autojump_clock: MockClock) -> None:
    """After a new handshake, request ids start again, and no answer to a request of the old session is sent."""
    server = Server([request(0, old=True), 1.0, b""])
    handler = Handler(NOTHING, seconds=10)
    async with over(server, ClientHandlers(elicitation=handler)) as bench:
        client: Any = await bench.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_broken, client)
            await trio.sleep(0.5)
            await client.initialize(None)
            await wait_all_tasks_blocked()
            assert 1 == handler.cancelled
            server.streams = [[request(0, old=False), 12.0, event(result(4, content=[]))]]
            await call(client)
    assert [0] == [answer["id"] for answer in server.answers]
    (sent,) = [r for r in server.requests if "result" in message_of(r) and r.method == "POST"]
    assert "session-2" == sent.headers["mcp-session-id"]


async def _broken(client: Any) -> None:
    with pytest.raises(Exception, match="closed the stream"):
        await call(client)


async def test_closing_ends_every_handler_and_answers_nothing(autojump_clock: MockClock) -> None:
    """All handlers end at once, those of log messages included, and do not delay the DELETE."""
    handler, told = Handler(NOTHING, seconds=100), Handler(NOTHING, seconds=100)
    stream = [request(1), event({"jsonrpc": "2.0", "method": "notifications/message", "params": {}}), request(2)]
    server = Server([*stream, ANSWER])
    async with over(server, ClientHandlers(elicitation=handler, log=told)) as bench:
        client: Any = await bench.connect()
        await call(client)
        await trio.sleep(1)
        started = trio.current_time()
        await client.aclose(terminate=True)
        await wait_all_tasks_blocked()
        assert 0 == trio.current_time() - started
        assert (2, 1) == (handler.cancelled, told.cancelled)
        client._requests.put_notice("notifications/message", {}, None)
        client.on_request(message_to(3), None)
        await wait_all_tasks_blocked()
    assert [] == server.answers
    assert (2, 1) == (len(handler.requests), len(told.requests))


def message_to(request_id: int) -> Any:
    return Request(request_id, "elicitation/create", {})


# Bounds


async def test_a_backend_has_sixteen_handlers_at_a_time(autojump_clock: MockClock) -> None:
    """Further requests are refused at once until a handler has ended. The call gets its answer."""
    handler = Handler(NOTHING, seconds=2)
    stream = [*(request(number) for number in range(20)), 1.0, ANSWER]
    again = [*(request(number) for number in range(16)), 3.0, event(result(3, content=[]))]
    server = Server(stream, again)
    async with over(server, ClientHandlers(elicitation=handler)) as bench:
        client = await bench.connect()
        await call(client)
        assert [16, 17, 18, 19] == sorted(answer["id"] for answer in server.answers)
        for refused in server.answers:
            assert (-32000, "this client is answering 16 requests already") == tuple(refused["error"].values())
        await trio.sleep(5)
        server.answers.clear()
        await call(client)
        assert 16 == len([answer for answer in server.answers if "result" in answer])
    assert 16 == handler.most_running


async def test_a_flood_of_requests_is_dropped_and_said_so(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A thousand at once while sixteen handlers hang and the backend takes a second for each refusal: no more than
    sixteen refusals are on their way, the log says that requests are dropped, and then all is as before.
    """

    class Slow(Server):
        async def take(self, request: httpx.Request) -> httpx.Response:
            if "method" not in message_of(request):
                await trio.sleep(1)
            return self(request)

    flood = b"".join(request(number) for number in range(1000))
    server = Slow([flood, 30.0, request("later"), 30.0, flood, 30.0, ANSWER])
    async with over(server.take, ClientHandlers(elicitation=never)) as bench:
        await call(await bench.connect())
    ids = [answer["id"] for answer in server.answers]
    refused = ids.index("later")
    # Four refusals a second while the flood is read, and sixteen behind it.
    assert 16 <= refused <= 16 + 4 * ((1000 * REQUEST_COST - MESSAGES_AHEAD) / MESSAGES_PER_SECOND + 1)
    assert 16 <= len(ids) - refused - 1 <= 2 * refused
    assert ["backend 'b': drops requests: 16 answers are on their way"] * 2 == [
        message for message in caplog.messages if "in use" not in message
    ]


async def test_huge_requests_are_bounded_together(autojump_clock: MockClock) -> None:
    """Together at most twice the largest message in memory, whatever JSON they are; small requests still get a
    handler.
    """
    text = "x" * 15_000
    many: list[list[int]] = [[]] * 4_000
    stream = [request(1, a=text), request(2, a=text), request(3, a=many), request(4, a="small"), 1.0, ANSWER]
    server = Server(stream, [request(5, a=text), 3.0, event(result(3, content=[]))])
    handler = Handler(NOTHING, seconds=2)
    limits = FactorySettings(max_message_bytes=16_384)
    async with over(server, ClientHandlers(elicitation=handler), settings=limits) as bench:
        client = await bench.connect()
        await call(client)
        assert [3] == [answer["id"] for answer in server.answers if "error" in answer]
        assert "no room" in server.answers[0]["error"]["message"]
        await trio.sleep(2)
        await call(client)
        assert [1, 2, 4, 5] == sorted(answer["id"] for answer in server.answers if "result" in answer)


@pytest.mark.parametrize("fault", [Status(500), Status(404), Raw(b"nonsense"), Hang()])
async def test_an_answer_that_is_lost_is_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, fault: Any
) -> None:
    """An answer that cannot be sent is logged, since no caller waits for it. The connection stays, and the handler's
    place is free after 30 s at most.
    """
    backend = asking(("elicitation/create", {}))
    backend.fail(lambda exchange: exchange.verb == "POST" and not exchange.method, fault)
    async with open_scripted(backend, handlers=ClientHandlers(elicitation=decline)) as bench:
        client: Any = await bench.connect()
        with pytest.raises(BackendTimeout):
            await call(client, "ask", timeout=40)
        assert not client._requests._running
        await call(client)
    (line,) = caplog.messages
    assert line.startswith("backend 'b'")
    assert "answer" in line


async def test_a_slow_answer_delays_no_call(autojump_clock: MockClock) -> None:
    """An answer that takes five seconds to send arrives, and other calls go on."""
    backend = asking(("elicitation/create", {}))
    backend.fail(lambda exchange: exchange.verb == "POST" and not exchange.method, Delay(5))
    async with open_scripted(backend, handlers=ClientHandlers(elicitation=decline)) as bench:
        client = await bench.connect()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, client, "ask")
            await trio.sleep(1)
            await call(client)
            assert 1 == trio.current_time() - started
        assert 5 == trio.current_time() - started


# Forms

DEFAULTS: JSON = {
    "name": {"type": "string", "default": "John"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": ["on", "off"], "default": "on"},
    "verified": {"type": "boolean", "default": False},
    "none": {"type": "string"},
    "nothing": {"type": "string", "default": None},
    "odd": 7,
}
FILLED = {"name": "John", "age": 30, "score": 95.5, "status": "on", "verified": False}


@pytest.mark.parametrize(
    ("more", "answer", "filled"),
    [
        ({}, {"action": "accept"}, {"action": "accept", "content": FILLED}),
        ({}, {"action": "accept", "content": None}, {"action": "accept", "content": FILLED}),
        ({"mode": "form"}, {"action": "accept", "content": {}}, {"action": "accept", "content": FILLED}),
        ({"mode": None}, {"action": "accept", "content": {}}, {"action": "accept", "content": FILLED}),
        (
            {},
            {"action": "accept", "content": {"age": 0, "verified": None, "mine": 1}, "_meta": {}},
            {"action": "accept", "content": FILLED | {"age": 0, "verified": None, "mine": 1}, "_meta": {}},
        ),
        ({}, {"action": "accept", "content": [1]}, {"action": "accept", "content": [1]}),
        ({}, {"action": "decline"}, {"action": "decline"}),
        ({}, {"action": "cancel", "content": {}}, {"action": "cancel", "content": {}}),
        ({}, {"other": 1}, {"other": 1}),
        ({"mode": "url"}, {"action": "accept"}, {"action": "accept"}),
        ({"requestedSchema": None}, {"action": "accept"}, {"action": "accept"}),
        ({"requestedSchema": {"properties": [1]}}, {"action": "accept"}, {"action": "accept"}),
        ({"requestedSchema": {"properties": {}}}, {"action": "accept"}, {"action": "accept", "content": {}}),
    ],
)
async def test_an_accepted_form_has_its_defaults(
    autojump_clock: MockClock, more: JSON, answer: JSON, filled: JSON
) -> None:
    """Fields that were left out get their defaults; the object that the handler returned is not changed."""
    params = {"message": "?", "requestedSchema": {"type": "object", "properties": DEFAULTS}} | more
    before = json.dumps(answer)
    backend = asking(("elicitation/create", params))
    async with open_scripted(backend, handlers=ClientHandlers(elicitation=Handler(answer))) as bench:
        (received,) = heard_by(await call(await bench.connect(), "ask"))
    assert filled == received
    assert json.dumps(filled, sort_keys=True) == json.dumps(received, sort_keys=True)  # False is not 0
    assert before == json.dumps(answer)


async def test_a_default_that_cannot_be_sent_is_an_error(autojump_clock: MockClock) -> None:
    """A default with a lone surrogate cannot be sent, and is an error answer."""
    schema = {"properties": {"a": {"default": "\ud800"}}}
    server = Server([request(1, requestedSchema=schema), 1.0, ANSWER])
    async with over(server, ClientHandlers(elicitation=Handler({"action": "accept"}))) as bench:
        await call(await bench.connect())
    assert [-32603] == [answer["error"]["code"] for answer in server.answers]


async def test_a_url_is_shown_to_the_handler_and_not_opened(autojump_clock: MockClock) -> None:
    """The client sends nothing but the requests of a connection with one call, and the answer."""
    params = {"mode": "url", "url": "http://b.test/mcp?login", "elicitationId": "1", "message": "log in"}
    handler = Handler({"action": "accept"})
    server = Server([request(1, **params), 1.0, ANSWER])
    async with over(server, ClientHandlers(elicitation=handler)) as bench:
        await call(await bench.connect())
    assert [params] == [asked.params for asked in handler.requests]
    assert ["POST", "POST", "GET", "POST", "POST", "DELETE"] == [sent.method for sent in server.requests]
    assert {"http://b.test/mcp"} == {str(sent.url) for sent in server.requests}


# Log messages


def log_line(number: int, **more: Any) -> bytes:
    params = {"level": "info", "data": number} | more
    return event({"jsonrpc": "2.0", "method": "notifications/message", "params": params})


async def test_log_messages_come_in_order_one_at_a_time(autojump_clock: MockClock) -> None:
    """The stream does not wait for the log handler; the caller is named, and the connector's events get the messages,
    too.
    """
    told = Handler(NOTHING, seconds=1)
    server = Server([*(log_line(number) for number in range(5)), ANSWER])
    async with over(server, ClientHandlers(log=told)) as bench:
        client = await bench.connect()
        started = trio.current_time()
        await call(client, identity=ALICE)
        assert 0 == trio.current_time() - started
        await trio.sleep(10)
        assert 5 == len(bench.events)
    assert list(range(5)) == [asked.params["data"] for asked in told.requests]
    assert {ALICE} == {asked.caller for asked in told.requests}
    assert 1 == told.most_running


async def test_a_log_handler_that_fails_gets_the_next_message(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The kind of the exception is in our log; the backend is told nothing."""
    told = Handler(Secret("hunter2"))
    server = Server([log_line(0), log_line(1), ANSWER])
    async with over(server, ClientHandlers(log=told)) as bench:
        await call(await bench.connect())
        await trio.sleep(1)
    assert 2 == len(told.requests)
    assert ["backend 'b': the log handler raised Secret"] * 2 == caplog.messages
    assert [] == server.answers


@pytest.mark.parametrize(("size", "count", "kept"), [(0, 200, 101), (500_000, 30, 3)])
async def test_of_a_flood_of_log_messages_the_oldest_are_dropped(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, size: int, count: int, kept: int
) -> None:
    """A hundred messages or a MiB of them wait; over that, the oldest are dropped with one record in our log, written
    at once.
    """
    caplog.set_level(logging.INFO)
    told = Handler(NOTHING, seconds=1)
    server = Server([log_line(0), 0.1, *(log_line(number, text="x" * size) for number in range(1, count + 1)), ANSWER])
    limits = FactorySettings(max_message_bytes=64 * 1024 * 1024)
    async with over(server, ClientHandlers(log=told), settings=limits) as bench:
        await call(await bench.connect())
        await wait_all_tasks_blocked()
        assert [
            "backend 'b': drops log messages: over 100, or 1048576 bytes, wait for the log handler"
        ] == caplog.messages
        await trio.sleep(300)
    assert [0, *range(count + 2 - kept, count + 1)] == [asked.params["data"] for asked in told.requests]
    assert f"backend 'b': dropped {count + 1 - kept} log messages" == caplog.messages[-1]


async def test_a_quick_log_handler_misses_nothing(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Messages are dropped only while too many wait, whatever the total, and a new flood is logged again after
    a pause.
    """
    told = Handler(NOTHING)
    lines = [piece for number in range(10) for piece in (log_line(number, text="x" * 200_000), 0.1)]
    server = Server([*lines, ANSWER], [log_line(10), 1.0, event(result(3, content=[]))])
    async with over(server, ClientHandlers(log=told)) as bench:
        client = await bench.connect()
        await call(client)
        await call(client)
    assert list(range(11)) == [asked.params["data"] for asked in told.requests]
    assert [] == caplog.messages


async def test_without_a_log_handler_nothing_is_kept(autojump_clock: MockClock) -> None:
    """Without a log handler no message is stored and no task is started."""
    async with over(Server([log_line(0), ANSWER]), ClientHandlers()) as bench:
        client: Any = await bench.connect()
        await call(client)
        assert {} == client._requests._feeds


# Context variables and connections of handlers


async def test_a_handler_has_no_context_variables_of_a_call(autojump_clock: MockClock) -> None:
    """A handler runs without the context variables of the call in which it was asked."""
    trace: ContextVar[str] = ContextVar("trace", default="clean")
    seen: list[str] = []

    async def handler(asked: ServerRequest) -> JSON:
        seen.append(trace.get())
        return NOTHING

    backend = asking(("elicitation/create", {}))
    async with open_scripted(backend, handlers=ClientHandlers(elicitation=handler, log=handler)) as bench:
        client = await bench.connect()
        trace.set("alice")
        await call(client, "ask")
    assert ["clean"] == seen


async def test_what_a_handler_left_behind_waits_for_a_connection(autojump_clock: MockClock) -> None:
    """A task that the handler started must wait for a connection once the handler has ended."""

    async def later() -> None:
        await trio.sleep(1)
        with trio.move_on_after(5) as patience:
            await call(client)
        waited.append(patience.cancelled_caught)

    async def handler(asked: ServerRequest) -> JSON:
        nursery.start_soon(later)
        return NOTHING

    waited: list[bool] = []
    backend = asking(("elicitation/create", {}))
    limits = FactorySettings(max_connections_per_backend=1)
    handlers = ClientHandlers(elicitation=handler)
    async with open_scripted(backend, handlers=handlers, settings=limits) as bench:
        client = await bench.connect()
        async with trio.open_nursery() as nursery:
            await call(client, "ask")
            with trio.move_on_after(10):
                await call(client, "hang")
    assert [True] == waited


async def test_a_handler_may_call_at_the_connection_limit(autojump_clock: MockClock) -> None:
    """The call that waits for the handler holds the only connection, and the handler may call. Afterwards the limit
    holds again.
    """
    inner: list[JSON] = []

    async def handler(asked: ServerRequest) -> JSON:
        inner.append(await call(client, "echo", {"from": "handler"}, timeout=5))
        return NOTHING

    backend = asking(("elicitation/create", {}))
    limits = FactorySettings(max_connections_per_backend=1)
    handlers = ClientHandlers(elicitation=handler)
    async with open_scripted(backend, handlers=handlers, settings=limits) as bench:
        client = await bench.connect()
        assert [NOTHING] == heard_by(await call(client, "ask", timeout=10))
        assert 1 == len(inner)
        with trio.move_on_after(1) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, client, "hang")
                await wait_all_tasks_blocked()
                await call(client)
        assert patience.cancelled_caught


async def test_messages_for_a_broken_connection_are_dropped(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A caller may still read its own stream after the tasks of its connection have ended: requests, log messages and
    notices that arrive then start nothing.
    """

    async def never(request: ServerRequest) -> JSON:
        raise AssertionError

    async def send(data: bytes) -> None:
        raise AssertionError

    handlers = BoundHandlers(ClientHandlers(elicitation=never, log=never), "s", "b")
    async with trio.open_nursery() as nursery:
        requests = ServerRequests(handlers, nursery, 1000)
        notices = UnawaitedMessages(nursery=nursery, timeout=1.0)
    requests.start_answer(Request(1, "elicitation/create", {}), None, send)
    requests.start_answer(Request(2, "ping", {}), None, send)
    requests.put_notice("notifications/message", {"level": "info", "data": "?"}, None)
    notices.start(trio.sleep_forever)
    await notices.aclose()  # no notice was started
