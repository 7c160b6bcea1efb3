"""Rounds over streamable HTTP, with a server that sends what a scripted backend does not."""

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
from support.handlers import Handler, everything
from trio.testing import MockClock

from trio_vmcp import (
    JSON,
    ClientHandlers,
)
from trio_vmcp.testing import CallContext

VERSION = "2026-07-28"
ACCEPT = {"action": "accept", "content": {"yes": True}}
FORM: JSON = {"message": "?", "requestedSchema": {"properties": {"yes": {"type": "boolean"}}}}
CONFIRM = {"confirm": {"method": "elicitation/create", "params": FORM}}


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


# What is declared


async def test_log_messages_are_told(autojump_clock: MockClock) -> None:
    """Log messages come on the response stream of a request that asked for them."""

    async def says(arguments: JSON, context: CallContext) -> str:
        for number in range(3):
            await context.notify("notifications/message", {"level": "info", "data": number})
        return "said"

    backend = echo_backend("modern", "sse")
    backend.add_tool("says", says)
    told = Handler(ACCEPT, seconds=1)
    async with open_scripted(backend, handlers=ClientHandlers(log=told)) as bench:
        await call(await bench.connect(), "says", identity=ALICE)
        await trio.sleep(5)
    assert [(ALICE, n) for n in range(3)] == [(asked.caller, asked.params["data"]) for asked in told.requests]


# Rounds that end well


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
    async with over(server, everything(Handler(ACCEPT))) as bench:
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
    async with over(server, everything(Handler(ACCEPT))) as bench:
        await call(await bench.connect())
    assert [state, state[::-1]] == [asked["params"]["requestState"] for asked in server.asked[1:]]


async def test_without_state_none_is_sent(autojump_clock: MockClock) -> None:
    """A round without `requestState` is answered without one, not with null; the state of an earlier round is
    not sent.
    """
    server = Server(question(), question(requestState="s"), question(requestState=None))
    async with over(server, everything(Handler(ACCEPT))) as bench:
        await call(await bench.connect())
    keys = [asked["params"].keys() - {"name", "arguments", "_meta"} for asked in server.asked]
    assert [set(), {"inputResponses"}, {"inputResponses", "requestState"}, {"inputResponses"}] == keys


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

    async with open_bench(httpx.MockTransport(note), era="modern", handlers=everything(Handler(ACCEPT))) as bench:
        await call(await bench.connect())
    pauses = [round(later - earlier, 6) for earlier, later in pairwise(at[1:])]
    assert [0.05, 0.1, 0, 0.2, 0.25, 0.25] == pauses
    assert "inputResponses" not in server.asked[1]["params"]


async def test_a_stale_schema_costs_a_listing_in_a_later_round_too(autojump_clock: MockClock) -> None:
    """After -32020 in a later round the tools are listed and the same round is sent again, with its answers and a new
    id.
    """

    def mismatch(asked: JSON) -> httpx.Response:
        return in_json({"jsonrpc": "2.0", "id": asked["id"], "error": {"code": -32020, "message": "?"}}, status=400)

    server = Server(question(requestState="s"), mismatch, {"tools": []})
    handler = Handler(ACCEPT)
    async with over(server, everything(handler)) as bench:
        await call(await bench.connect())
    assert ["tools/call", "tools/call", "tools/list", "tools/call"] == [asked["method"] for asked in server.asked]
    assert ["s", "s"] == [a["params"]["requestState"] for a in server.asked if "requestState" in a["params"]]
    assert [2, 3, 4, 5] == [asked["id"] for asked in server.asked]
    assert 1 == len(handler.requests)
