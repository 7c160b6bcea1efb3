"""Modern requests in several rounds (`input_required`): what a retry carries, what it does not, and when the rounds
end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx
import pytest
import trio
from support.clients import (
    ALICE,
    SESSION_ID,
    ask,
    call,
    echo_backend,
    in_json,
    message_of,
    no_progress,
    open_bench,
    open_scripted,
    result,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    ClientHandlers,
    FactorySettings,
    ServerRequest,
)
from trio_vmcp._request_note import current_note
from trio_vmcp.testing import CallContext, Error, Raw, Reset, ScriptedBackend

VERSION = "2026-07-28"
ACCEPT = {"action": "accept", "content": {"yes": True}}
FORM: JSON = {"message": "?", "requestedSchema": {"properties": {"yes": {"type": "boolean"}}}}
CONFIRM = {"confirm": {"method": "elicitation/create", "params": FORM}}


class Handler:
    """Waits, then answers with a scripted answer or with the caller's subject."""

    def __init__(self, answer: Any = None, seconds: float = 0) -> None:
        self.answer = answer
        self.seconds = seconds
        self.requests: list[ServerRequest] = []
        self.cancelled = 0

    async def __call__(self, request: ServerRequest) -> Any:
        self.requests.append(request)
        try:
            await trio.sleep(self.seconds)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if isinstance(self.answer, Exception):
            raise self.answer
        return ACCEPT if self.answer is None else self.answer


def everything(handler: Handler) -> ClientHandlers:
    return ClientHandlers(sampling=handler, elicitation=handler, roots=handler)


class Server:
    """A modern server with scripted answers, in order, to anything but a discovery; afterwards it answers
    completely.
    """

    def __init__(self, *answers: JSON | Callable[[JSON], httpx.Response]) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        asked = message_of(request)
        if asked["method"] == "server/discover":
            return in_json(result(asked["id"], supportedVersions=[VERSION], capabilities={}))
        answer = self.answers.pop(0) if self.answers else {"resultType": "complete", "content": []}
        if callable(answer):
            return answer(asked)
        body = json.dumps(result(asked["id"], **answer))  # in ASCII: a lone surrogate has no UTF-8
        return httpx.Response(200, headers={"content-type": "application/json"}, text=body)

    @property
    def asked(self) -> list[JSON]:
        return [message_of(request) for request in self.requests[1:]]


def question(requests: Any = CONFIRM, **more: Any) -> JSON:
    return {"resultType": "input_required", "inputRequests": requests} | more


def over(server: Server, handlers: ClientHandlers, **more: Any) -> Any:
    return open_bench(httpx.MockTransport(server), **{"era": "modern", "handlers": handlers, **more})


def asking(*rounds: dict[str, tuple[str, JSON]], answers: str = "json", latency: float = 0) -> ScriptedBackend:
    """A tool "ask" that asks in rounds and returns the answers as JSON text."""

    async def asks(arguments: JSON, context: CallContext) -> str:
        return json.dumps([await context.request_all(requests) for requests in rounds])

    backend = echo_backend("modern", answers, latency=latency)
    backend.add_tool("ask", asks)
    return backend


ELICIT: tuple[str, JSON] = ("elicitation/create", FORM)


# What is declared


async def test_log_messages_are_told(autojump_clock: MockClock) -> None:
    """Log messages come on the response stream of a request that asked for them."""

    async def says(arguments: JSON, context: CallContext) -> str:
        for number in range(3):
            await context.notify("notifications/message", {"level": "info", "data": number})
        return "said"

    backend = echo_backend("modern", "sse")
    backend.add_tool("says", says)
    told = Handler(seconds=1)
    async with open_scripted(backend, handlers=ClientHandlers(log=told)) as bench:
        await call(await bench.connect(), "says", identity=ALICE)
        await trio.sleep(5)
    assert [(ALICE, n) for n in range(3)] == [(asked.caller, asked.params["data"]) for asked in told.requests]


# Rounds that end well


@pytest.mark.parametrize("answers", ["json", "sse"])
async def test_a_question_is_answered_and_the_request_sent_again(autojump_clock: MockClock, answers: str) -> None:
    """The caller gets the final result only. The scripted backend compares method, params, keys, state and ids of each
    retry.
    """
    handler = Handler()
    backend = asking({"a": ELICIT, "b": ("roots/list", {})}, {"c": ("sampling/createMessage", {})}, answers=answers)
    async with open_scripted(backend, handlers=everything(handler)) as bench:
        client = await bench.connect()
        answer = await call(client, "ask", {"x": 1}, identity=ALICE)
    assert [{"a": ACCEPT, "b": ACCEPT}, {"c": ACCEPT}] == json.loads(answer["content"][0]["text"])
    assert "inputRequests" not in answer
    assert {"ask": 1} == backend.executed
    expected = [ServerRequest(SESSION_ID, "b", ALICE, params) for params in (FORM, {}, {})]
    assert sorted(expected, key=repr) == sorted(handler.requests, key=repr)
    assert [2, 3, 4] == [exchange.request_id for exchange in backend.received("tools/call")]


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tools/call", {"name": "é", "arguments": {"a": 1}, "_meta": {"mine": 1}}),
        ("prompts/get", {"name": "p"}),
        ("resources/read", {"uri": "mem://a"}),
    ],
)
async def test_a_retry_is_the_same_request_with_the_answers(
    autojump_clock: MockClock, method: str, params: JSON
) -> None:
    """Same headers, same params, same progress token; a new id; the caller's own params are not changed."""
    server = Server(question(requestState="s"))
    before = json.dumps(params)
    async with over(server, everything(Handler())) as bench:
        await ask(await bench.connect(), method, params, on_progress=no_progress)
    first, second = server.asked
    assert {"inputResponses": {"confirm": ACCEPT}, "requestState": "s"} | first["params"] == second["params"]
    assert 2 == second["params"]["_meta"]["progressToken"]
    assert [2, 3] == [first["id"], second["id"]]
    assert before == json.dumps(params)
    varying = (b"content-length",)
    heads = [[pair for pair in sent.headers.raw if pair[0].lower() not in varying] for sent in server.requests[1:]]
    assert heads[0] == heads[1]


@pytest.mark.parametrize("state", ["", " ", '{"a" : 1.0, "é":"\\u00e9"}', "null", "\x00\u2028", "x" * 100_000])
async def test_state_comes_back_as_it_was(autojump_clock: MockClock, state: str) -> None:
    """`requestState` is sent back unchanged, since it is opaque."""
    server = Server(question(requestState=state), question(requestState=state[::-1]))
    async with over(server, everything(Handler())) as bench:
        await call(await bench.connect())
    assert [state, state[::-1]] == [asked["params"]["requestState"] for asked in server.asked[1:]]


async def test_without_state_none_is_sent(autojump_clock: MockClock) -> None:
    """A round without `requestState` is answered without one, not with null; the state of an earlier round is
    not sent.
    """
    server = Server(question(), question(requestState="s"), question(requestState=None))
    async with over(server, everything(Handler())) as bench:
        await call(await bench.connect())
    keys = [asked["params"].keys() - {"name", "arguments", "_meta"} for asked in server.asked]
    assert [set(), {"inputResponses"}, {"inputResponses", "requestState"}, {"inputResponses"}] == keys


async def test_rounds_leak_into_no_other_request(autojump_clock: MockClock) -> None:
    """Input of a round is in no other request of the client, and no request waits for another, also at the connection
    limit.
    """
    server = Server(question(requestState="s"))
    settings = FactorySettings(max_connections_per_backend=1)
    async with over(server, everything(Handler(seconds=5)), settings=settings) as bench:
        client = await bench.connect()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, client, "first")
            await wait_all_tasks_blocked()
            await call(client, "meanwhile", timeout=1)
            assert 0 == trio.current_time() - started
        assert 5 == trio.current_time() - started
        await call(client, "afterwards")
    by_name = [(asked["params"]["name"], "requestState" in asked["params"]) for asked in server.asked]
    assert [("first", False), ("meanwhile", False), ("first", True), ("afterwards", False)] == by_name


async def test_all_handlers_of_a_round_run_side_by_side(autojump_clock: MockClock) -> None:
    """Sixteen handlers run side by side and take as long as one."""
    server = Server(question({str(number): CONFIRM["confirm"] for number in range(16)}))
    async with over(server, everything(Handler(seconds=3))) as bench:
        client = await bench.connect()
        started = trio.current_time()
        await call(client)
        assert 3 == trio.current_time() - started
    assert [str(number) for number in range(16)] == list(server.asked[1]["params"]["inputResponses"])


@pytest.mark.parametrize("requests", [None, {}])
async def test_a_round_without_a_question_waits_a_little(autojump_clock: MockClock, requests: Any) -> None:
    """A round without a question is retried after 50 ms, then 100, 200, and 250 from there on. A question resets the
    pause.
    """
    waiting = question(requests, requestState="s")
    server = Server(waiting, waiting, question(requestState="s"), waiting, waiting, waiting)
    at: list[float] = []

    def note(request: httpx.Request) -> httpx.Response:
        at.append(trio.current_time())
        return server(request)

    async with open_bench(httpx.MockTransport(note), era="modern", handlers=everything(Handler())) as bench:
        await call(await bench.connect())
    pauses = [round(later - earlier, 6) for earlier, later in pairwise(at[1:])]
    assert [0.05, 0.1, 0, 0.2, 0.25, 0.25] == pauses
    assert "inputResponses" not in server.asked[1]["params"]


async def test_forms_have_their_defaults(autojump_clock: MockClock) -> None:
    """Defaults of a form are filled in, as in the legacy era."""
    form = {"requestedSchema": {"properties": {"a": {"default": 1}, "b": {"default": 2}}}}
    server = Server(question({"f": {"method": "elicitation/create", "params": form}}))
    async with over(server, everything(Handler({"action": "accept", "content": {"b": 3}}))) as bench:
        await call(await bench.connect())
    filled = {"action": "accept", "content": {"a": 1, "b": 3}}
    assert {"f": filled} == server.asked[1]["params"]["inputResponses"]


async def test_a_stale_schema_costs_a_listing_in_a_later_round_too(autojump_clock: MockClock) -> None:
    """After -32020 in a later round the tools are listed and the same round is sent again, with its answers and a new
    id.
    """

    def mismatch(asked: JSON) -> httpx.Response:
        return in_json({"jsonrpc": "2.0", "id": asked["id"], "error": {"code": -32020, "message": "?"}}, status=400)

    server = Server(question(requestState="s"), mismatch, {"tools": []})
    handler = Handler()
    async with over(server, everything(handler)) as bench:
        await call(await bench.connect())
    assert ["tools/call", "tools/call", "tools/list", "tools/call"] == [asked["method"] for asked in server.asked]
    assert ["s", "s"] == [a["params"]["requestState"] for a in server.asked if "requestState" in a["params"]]
    assert [2, 3, 4, 5] == [asked["id"] for asked in server.asked]
    assert 1 == len(handler.requests)


# Rounds that do not


def of(method: Any = "elicitation/create", **more: Any) -> JSON:
    return {"k": {"method": method} | more}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (question(None), "named none"),
        (question({}), "named none"),
        ({"resultType": "input_required"}, "named none"),
        (question([], requestState="s"), "a form that is not MCP's"),
        (question(requestState=1), "a form that is not MCP's"),
        (question(requestState={"a": 1}), "a form that is not MCP's"),
        (question({"k": "elicitation/create"}), "a form that is not MCP's"),
        (question(of(7)), "a form that is not MCP's"),
        (question(of(params=[1])), "a form that is not MCP's"),
        (question(of(params=None)), "a form that is not MCP's"),
        (question(of("tools/call")), "for the input 'tools/call', which is not given: this client offers no such"),
        (question(of("roots/list")), "for the input 'roots/list', which is not given: this client offers no such"),
        (question(CONFIRM | of("roots/list")), "'roots/list', which is not given"),
        (question(of(params={"mode": "voice"})), "the modes 'form' and 'url'"),
        (question({str(n): of()["k"] for n in range(17)}), "for 17 inputs at once; 16 are the most"),
        (question({"\ud800": of()["k"]}), "cannot be sent back"),
        (question(requestState="\ud800"), "cannot be sent back"),
    ],
)
async def test_a_question_that_makes_no_sense_is_an_error(autojump_clock: MockClock, answer: JSON, text: str) -> None:
    """No handler runs and nothing is sent; the call may have run, and the next one works."""
    handler = Handler()
    server = Server(answer)
    async with over(server, ClientHandlers(elicitation=handler)) as bench:
        client = await bench.connect()
        with pytest.raises(BackendProtocolError, match=text) as caught:
            await call(client)
        assert caught.value.may_have_executed
        assert 1 == len(server.asked)
        await call(client)
    assert [] == handler.requests


@pytest.mark.parametrize("method", ["tools/list", "completion/complete"])
async def test_other_methods_have_no_rounds(autojump_clock: MockClock, method: str) -> None:
    """MCP: "Servers MUST NOT send InputRequiredResult responses on any other client requests"."""
    server = Server(question())
    async with over(server, everything(Handler())) as bench:
        client = await bench.connect()
        with pytest.raises(BackendProtocolError, match="no place for"):
            await ask(client, method)
    assert 1 == len(server.asked)


async def test_ten_rounds_are_enough(autojump_clock: MockClock) -> None:
    """The tenth answer may be the final one; an eleventh question is an error."""
    handler = Handler()
    server = Server(*([question(requestState="s")] * 10))
    async with over(server, everything(handler)) as bench:
        client = await bench.connect()
        await call(client)
        assert (11, 10) == (len(server.asked), len(handler.requests))
        server.answers = [question(requestState="s")] * 11
        with pytest.raises(BackendProtocolError, match="over 10 times") as caught:
            await call(client)
        assert caught.value.may_have_executed
    assert (22, 20) == (len(server.asked), len(handler.requests))


@pytest.mark.parametrize("answer", [ValueError("hunter2"), None, [1], {"a": float("nan")}, {"a": "\ud800"}])
async def test_a_handler_that_fails_ends_the_call(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    """The backend cannot be told. The other handlers of the round are cancelled, and the error shows no text of the
    exception.
    """
    slow = Handler(seconds=10)
    failing = Handler([] if answer is None else answer, seconds=1)
    server = Server(question(CONFIRM | {"r": {"method": "roots/list"}}))
    async with over(server, ClientHandlers(roots=slow, elicitation=failing)) as bench:
        client = await bench.connect()
        started = trio.current_time()
        with pytest.raises(BackendRejected, match="'elicitation/create' on 'tools/call', and the handler") as caught:
            await call(client)
        assert 1 == trio.current_time() - started
        assert (-32603, True) == (caught.value.code, caught.value.may_have_executed)
        await call(client)
    assert 1 == slow.cancelled
    assert 2 == len(server.asked)
    assert 1 == len(caplog.messages)
    assert "hunter2" not in caplog.text + str(caught.value)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Error(-32602, "no such state", status=400), BackendRejected),
        (Error(-32020, "mismatch", status=400), BackendRejected),
        (Reset(0), BackendUnavailable),
        (Raw(b"nonsense"), BackendProtocolError),
    ],
)
async def test_what_fails_in_a_later_round_may_have_run(
    autojump_clock: MockClock, fault: Any, error: type[BackendError]
) -> None:
    """Whatever the answer to this round proves, the rounds before it were executed."""
    backend = asking({"a": ELICIT})
    backend.fail("tools/call", fault, skip=1)
    async with open_scripted(backend, handlers=everything(Handler())) as bench:
        client = await bench.connect()
        with pytest.raises(error) as caught:
            await call(client, "ask")
        assert caught.value.may_have_executed
        note = current_note.get()
        assert note is not None
        assert note.written


# Deadlines and cancels


async def test_the_deadline_holds_over_all_rounds(autojump_clock: MockClock) -> None:
    """The deadline includes the handlers: they are cancelled, and the error says that the call may have run."""
    handler = Handler(seconds=3)
    server = Server(*([question(requestState="s")] * 10))
    async with over(server, everything(handler)) as bench:
        client = await bench.connect()
        started = trio.current_time()
        with pytest.raises(BackendTimeout, match=r"within 10 s \(request_timeout\)") as caught:
            await call(client, timeout=10)
        assert 10 == trio.current_time() - started
        assert caught.value.may_have_executed
    assert (4, 1) == (len(handler.requests), handler.cancelled)


async def test_a_cancelled_call_cancels_its_handlers(autojump_clock: MockClock) -> None:
    """The handlers end at once, and nothing more is sent."""
    handler = Handler(seconds=10)
    server = Server(question(CONFIRM | {"r": {"method": "roots/list"}}, requestState="s"))
    async with over(server, everything(handler)) as bench:
        client = await bench.connect()
        with trio.move_on_after(1) as patience:
            await call(client)
        assert patience.cancelled_caught
        assert (2, 2) == (len(handler.requests), handler.cancelled)
        await trio.sleep(20)
    assert 1 == len(server.asked)


async def test_progress_comes_in_every_round(autojump_clock: MockClock) -> None:
    """Progress of every round has the token of the first."""
    heard: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    async def asks(arguments: JSON, context: CallContext) -> str:
        await context.progress(len(context.answered))
        await context.elicit("one")
        await context.elicit("two")
        return "done"

    backend = echo_backend("modern", "sse")
    backend.add_tool("ask", asks)
    async with open_scripted(backend, handlers=everything(Handler())) as bench:
        await call(await bench.connect(), "ask", on_progress=on_progress)
    assert [0, 1, 2] == heard


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_endless_progress_extends_no_deadline(autojump_clock: MockClock, era: str) -> None:
    """Progress does not extend the deadline, which is for the whole exchange."""
    heard: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    async def ticks(arguments: JSON, context: CallContext) -> str:
        for step in range(1000):
            await context.progress(step)
            await trio.sleep(1)
        return "never"

    backend = echo_backend(era, "sse")
    backend.add_tool("ticks", ticks)
    async with open_scripted(backend) as bench:
        client = await bench.connect()
        started = trio.current_time()
        with pytest.raises(BackendTimeout):
            await call(client, "ticks", timeout=7.5, on_progress=on_progress)
        assert 7.5 == trio.current_time() - started
    assert [0, 1, 2, 3, 4, 5, 6, 7] == heard


async def test_a_server_that_sends_requests_in_this_era_is_ignored(autojump_clock: MockClock) -> None:
    """With or without handlers, a request on a modern stream is ignored ("Servers MUST NOT"), and the call gets its
    answer.
    """

    async def asks(arguments: JSON, context: CallContext) -> str:
        await context.send({"jsonrpc": "2.0", "id": 1, "method": "roots/list"})
        return "answered"

    backend = echo_backend("modern", "sse")
    backend.add_tool("ask", asks)
    handler = Handler()
    async with open_scripted(backend, handlers=everything(handler)) as bench:
        await call(await bench.connect(), "ask")
    assert [] == handler.requests
    assert ["server/discover", "tools/call"] == [exchange.method for exchange in backend.exchanges]
