"""Rounds that the caller answers: a question comes back in the result, and another call takes the answer."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import math
import pickle
import re
from collections.abc import Awaitable, Callable
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import pytest
import trio
from support.channels import (
    EVERY_CHANNEL,
    EVERY_LEGACY_CHANNEL,
    EVERY_MODERN_ANSWER,
    EVERY_MODERN_CHANNEL,
    MODERN_CHANNELS,
    Channel,
)
from support.clients import ALICE, BOB
from trio.testing import MockClock

from trio_vmcp import (
    JSON,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    ClientHandlers,
    FactorySettings,
    Identity,
    MessageTooLarge,
    NilCaller,
    PromptResult,
    ResourceResult,
    ServerRequest,
    Session,
    SessionState,
    ToolResult,
    UnauthorizedCaller,
    open_session_factory,
)
from trio_vmcp.observe import CallEnded, Event
from trio_vmcp.testing import CallContext, Error, Hang, Reset, Rewrite, ScriptedBackend, Status

CAPABILITIES, LOG_LEVEL = "io.modelcontextprotocol/clientCapabilities", "io.modelcontextprotocol/logLevel"
FORM: JSON = {"message": "?", "requestedSchema": {"type": "object", "properties": {}}}
CONFIRM = {"elicitation/create": {"method": "elicitation/create", "params": FORM}}
ACCEPT = {"elicitation/create": {"action": "accept", "content": {}}}
ELICITS: JSON = {"elicitation": {}}
URI = "memo://1"
Answer = ToolResult | ResourceResult | PromptResult
Ask = Callable[..., Awaitable[Answer]]


class Asking(ScriptedBackend):
    """Asks so many times before it answers a tool call, a read or a prompt."""

    times = 1

    async def call(self, context: CallContext) -> JSON:
        if context.method in METHOD_OF.values():
            for _ in range(self.times):
                await context.elicit("?")
        return await super().call(context)


METHOD_OF = {"tool": "tools/call", "resource": "resources/read", "prompt": "prompts/get"}
EVERY_KIND = pytest.mark.parametrize("kind", METHOD_OF)
EVERY_ENTRY = pytest.mark.parametrize("entry", ["session", "view"])


async def confirm(arguments: JSON, context: CallContext) -> str:
    return str((await context.elicit("?"))["action"])


def asking(channel: Channel, times: int = 1, **options: Any) -> Asking:
    transport: Literal["sse", "streamable-http"] = "sse" if channel.transport == "sse" else "streamable-http"
    backend = Asking(era=channel.era, answers=channel.answers, transport=transport, **options)
    backend.times = times
    backend.add_tool("echo")
    backend.add_resource(URI, "text")
    backend.add_prompt("greet", "Hello {name}")
    return backend


def caller_of(session: Session, kind: str) -> Ask:
    match kind:
        case "tool":
            return partial(session.call_tool, "b_echo", {"x": 1})
        case "resource":
            return partial(session.read_resource, URI)
        case _:
            return partial(session.get_prompt, "b_greet", {"name": "x"})


def content_of(answer: Answer) -> Any:
    match answer:
        case ToolResult():
            return answer.content
        case ResourceResult():
            return answer.contents
        case _:
            return answer.messages


def question(requests: Any = CONFIRM, **more: Any) -> Rewrite:
    """A result that asks for input."""
    fields = {"resultType": "input_required", "inputRequests": requests} | more
    return Rewrite(lambda message: {"jsonrpc": "2.0", "id": message["id"], "result": fields})


async def refuse(request: ServerRequest) -> JSON:
    raise AssertionError("no handler may be asked")


# Questions that are handed out, and answers that are taken


@EVERY_MODERN_ANSWER
@EVERY_KIND
@EVERY_ENTRY
async def test_a_question_is_handed_out_and_answered_later(
    channel: Channel, kind: str, entry: str, autojump_clock: MockClock
) -> None:
    """From another session of another factory, a day later; no handler is asked, and each call is one request."""
    backend = asking(channel)

    async def ask(session: Session, **keywords: Any) -> Answer:
        view = session if entry == "session" else session.as_caller(None)
        return await caller_of(view, kind)(answer_rounds=False, **keywords)

    async with channel.open_session(backend, handlers=ClientHandlers(elicitation=refuse)) as session:
        first = await ask(session)
        assert (CONFIRM, "b") == (first.input_required, first.backend_id)
        assert isinstance(first.request_state, str)
        assert () == content_of(first)
    await trio.sleep(86_400)
    async with channel.open_session(backend, handlers=ClientHandlers(elicitation=refuse)) as session:
        last = await ask(session, input_responses=ACCEPT, request_state=first.request_state)
    assert (None, None) == (last.input_required, last.request_state)
    assert 1 == len(content_of(last))
    sent = backend.received(METHOD_OF[kind])
    assert [False, True] == ["requestState" in exchange.params for exchange in sent]
    assert (first.request_state, ACCEPT) == (sent[1].params["requestState"], sent[1].params["inputResponses"])


@EVERY_MODERN_ANSWER
async def test_an_answer_has_another_id_than_its_question(channel: Channel, autojump_clock: MockClock) -> None:
    """Also where another client sends it, over the same connection: the backend was stopped meanwhile. No two requests
    of a connection have one id.
    """
    backend = asking(channel)
    stops: JSON = {"stop_after": 1, "era": "modern"}
    async with channel.open_session(backend, configured=stops) as session:
        asked = await session.call_tool("b_echo", {"x": 1}, answer_rounds=False, client_capabilities=ELICITS)
        await trio.sleep(3)
        answers: JSON = {"input_responses": ACCEPT, "request_state": asked.request_state}
        assert (await session.call_tool("b_echo", {"x": 1}, client_capabilities=ELICITS, **answers)).content
        ids = [(each.connection, each.request_id) for each in backend.exchanges]
        assert len(ids) == len(set(ids))


@EVERY_MODERN_CHANNEL
@EVERY_KIND
async def test_each_round_is_handed_out(channel: Channel, kind: str, autojump_clock: MockClock) -> None:
    """Also more of them than handlers would answer for one call: the caller counts."""
    backend = asking(channel, times=12)
    async with channel.open_session(backend, handlers=ClientHandlers(elicitation=refuse)) as session:
        ask = partial(caller_of(session, kind), answer_rounds=False)
        answer, rounds = await ask(), 0
        while answer.input_required is not None:
            answer, rounds = await ask(input_responses=ACCEPT, request_state=answer.request_state), rounds + 1
    assert (12, 13) == (rounds, len(backend.received(METHOD_OF[kind])))


@EVERY_MODERN_CHANNEL
@EVERY_KIND
async def test_handlers_may_answer_the_rest(channel: Channel, kind: str, autojump_clock: MockClock) -> None:
    """With `answer_rounds=True` a call that begins with an answer goes on with handlers; each state goes back once."""
    backend = asking(channel, times=3)
    asked: list[ServerRequest] = []

    async def accept(request: ServerRequest) -> JSON:
        asked.append(request)
        return {"action": "accept", "content": {}}

    async with channel.open_session(backend, handlers=ClientHandlers(elicitation=accept)) as session:
        ask = caller_of(session, kind)
        first = await ask(answer_rounds=False)
        last = await ask(input_responses=ACCEPT, request_state=first.request_state)
    assert last.input_required is None
    assert 2 == len(asked)
    states = [exchange.params.get("requestState") for exchange in backend.received(METHOD_OF[kind])]
    assert 4 == len(set(states))


@EVERY_MODERN_CHANNEL
async def test_a_state_of_before_goes_into_no_later_round(channel: Channel, autojump_clock: MockClock) -> None:
    """Sent back "if and only if" the latest question has one (2026-07-28, multi round-trip requests)."""

    def without_state(message: JSON) -> JSON:
        return message | {"result": {key: message["result"][key] for key in ("resultType", "inputRequests")}}

    async def accept(request: ServerRequest) -> JSON:
        return {"action": "accept", "content": {}}

    backend = asking(channel, times=2)
    backend.fail("tools/call", Rewrite(without_state), skip=1, times=1)
    async with channel.open_session(backend, handlers=ClientHandlers(elicitation=accept)) as session:
        first = await session.call_tool("b_echo", answer_rounds=False)
        with pytest.raises(BackendRejected, match="no request waits for None"):
            await session.call_tool("b_echo", request_state=first.request_state, input_responses=ACCEPT)
    sent = [exchange.params for exchange in backend.received("tools/call")]
    assert [None, first.request_state, None] == [params.get("requestState") for params in sent]
    assert [None, ACCEPT, ACCEPT] == [params.get("inputResponses") for params in sent]


@EVERY_MODERN_CHANNEL
async def test_a_state_alone_is_handed_out_too(channel: Channel, autojump_clock: MockClock) -> None:
    """Such a result asks nothing and is not complete: `{}` is not None. It goes back as it came."""
    state = ' {"a": 1.0}\u00e9 '
    backend = asking(channel, times=0)
    backend.fail("tools/call", question(None, requestState=state), times=1)
    backend.fail("tools/call", Error(-32602, "enough"))
    async with channel.open_session(backend) as session:
        answer = await session.call_tool("b_echo", answer_rounds=False)
        assert ({}, state) == (answer.input_required, answer.request_state)
        assert 0 == trio.current_time()
        with pytest.raises(BackendRejected, match="enough"):
            await session.call_tool("b_echo", request_state=answer.request_state)
    params = backend.received("tools/call")[1].params
    assert (state, False) == (params["requestState"], "inputResponses" in params)


@EVERY_LEGACY_CHANNEL
@EVERY_KIND
async def test_the_handshake_era_asks_as_ever(channel: Channel, kind: str, autojump_clock: MockClock) -> None:
    """Its questions are requests of its own, so the handlers answer; it gets neither capabilities nor a log level."""
    asked: list[ServerRequest] = []

    async def accept(request: ServerRequest) -> JSON:
        asked.append(request)
        return {"action": "accept", "content": {}}

    backend = asking(channel)
    async with channel.open_session(backend, handlers=ClientHandlers(elicitation=accept)) as session:
        ask = caller_of(session, kind)
        answer = await ask(answer_rounds=False, client_capabilities={"sampling": {}}, log_level="debug")
    assert (None, 1) == (answer.input_required, len(asked))
    (exchange,) = backend.received(METHOD_OF[kind])
    assert not exchange.meta.keys() & {CAPABILITIES, LOG_LEVEL}


@EVERY_LEGACY_CHANNEL
@EVERY_KIND
@pytest.mark.parametrize("keywords", [{"input_responses": ACCEPT}, {"request_state": "s"}], ids=str)
async def test_the_handshake_era_has_no_rounds_to_go_on_with(
    channel: Channel, kind: str, keywords: JSON, autojump_clock: MockClock
) -> None:
    """Without its input the call would begin anew, so it is an error. Nothing was sent; the next call works."""
    backend = asking(channel, times=0)
    async with channel.open_session(backend) as session:
        with pytest.raises(BackendRejected, match="handshake era") as caught:
            await caller_of(session, kind)(**keywords)
        assert (-32602, False) == (caught.value.code, caught.value.may_have_executed)
        assert [] == backend.received(METHOD_OF[kind])
        await caller_of(session, kind)()


# What the backend is told


@EVERY_MODERN_ANSWER
@EVERY_KIND
async def test_capabilities_and_log_level_are_of_one_request(
    channel: Channel, kind: str, autojump_clock: MockClock
) -> None:
    """They replace what the handlers imply, in this request alone. `meta` cannot say either."""
    backend = asking(channel, times=0)
    handlers = ClientHandlers(sampling=refuse, log=refuse)
    async with channel.open_session(backend, handlers=handlers) as session:
        ask = caller_of(session, kind)
        await ask(meta={"mine": 1}, client_capabilities=ELICITS, log_level="debug")
        await ask(meta={"mine": 1, CAPABILITIES: ELICITS, LOG_LEVEL: "debug"})
        await ask(client_capabilities={})
        await ask(log_level="emergency", meta={})
        await ask()
    implied: JSON = {"sampling": {}}
    told = [(exchange.meta[CAPABILITIES], exchange.meta[LOG_LEVEL]) for exchange in backend.received(METHOD_OF[kind])]
    expected = [(ELICITS, "debug"), (implied, "info"), ({}, "info"), (implied, "emergency"), (implied, "info")]
    assert expected == told
    assert [1, 1] == [exchange.meta.get("mine") for exchange in backend.received(METHOD_OF[kind])[:2]]


@EVERY_MODERN_CHANNEL
async def test_without_a_log_handler_a_log_level_is_sent_all_the_same(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """In the calls that ask for it, and in no other: "absent" means that the server must not log."""
    backend = asking(channel, times=0)
    async with channel.open_session(backend) as session:
        await session.call_tool("b_echo", log_level="warning")
        await session.call_tool("b_echo")
    assert ["warning", None] == [exchange.meta.get(LOG_LEVEL) for exchange in backend.received("tools/call")]


@EVERY_MODERN_CHANNEL
async def test_a_log_level_of_a_call_is_not_the_sessions(channel: Channel, autojump_clock: MockClock) -> None:
    """It takes the place of what `set_log_level` says, once."""
    backend = asking(channel, times=0, capabilities={"tools": {}, "logging": {}})
    async with channel.open_session(backend) as session:
        await session.set_log_level("error")
        await session.call_tool("b_echo", log_level="debug")
        await session.call_tool("b_echo")
    assert ["debug", "error"] == [exchange.meta[LOG_LEVEL] for exchange in backend.received("tools/call")]


@EVERY_MODERN_CHANNEL
async def test_a_question_of_a_client_that_has_no_handlers(channel: Channel, autojump_clock: MockClock) -> None:
    """What a call declares is enough: it need not have handlers. Without it the backend refuses, and says why."""
    backend = asking(channel)
    async with channel.open_session(backend) as session:
        with pytest.raises(BackendRejected) as caught:
            await session.call_tool("b_echo", answer_rounds=False)
        assert (-32021, {"requiredCapabilities": ELICITS}) == (caught.value.code, caught.value.data)
        answer = await session.call_tool("b_echo", answer_rounds=False, client_capabilities=ELICITS)
    assert CONFIRM == answer.input_required


def of(method: Any = "elicitation/create", **more: Any) -> JSON:
    return {"k": {"method": method} | more}


@EVERY_MODERN_CHANNEL
@EVERY_KIND
@pytest.mark.parametrize(
    ("declared", "asked"),
    [
        ({}, of()),
        ({"elicitation": None}, of()),
        ({"elicitation": {"url": {}}}, of(params={"mode": "form"})),
        ({"elicitation": {}}, of(params={"mode": "url"})),
        ({"elicitation": {"form": {}}}, of(params={"mode": ["url"]})),
        ({"elicitation": {}}, of("sampling/createMessage")),
        ({"sampling": {}}, of("sampling/createMessage", params={"tools": []})),
        ({"sampling": {}}, of("sampling/createMessage", params={"toolChoice": {}})),
        ({"elicitation": {}}, of("roots/list")),
        ({"elicitation": {}, "tools/call": {}}, of("tools/call")),
        (None, of("roots/list")),
    ],
)
async def test_a_question_that_was_not_declared_is_not_handed_out(
    channel: Channel, kind: str, declared: JSON | None, asked: JSON, autojump_clock: MockClock
) -> None:
    """As no handler would get it: a caller may pass on what it gets, to a person or model that agreed to less."""
    backend = asking(channel, times=0)
    backend.fail(METHOD_OF[kind], question(asked), times=1)
    async with channel.open_session(backend, handlers=ClientHandlers(elicitation=refuse)) as session:
        ask = caller_of(session, kind)
        with pytest.raises(BackendProtocolError, match="did not declare") as caught:
            await ask(answer_rounds=False, client_capabilities=declared)
        assert caught.value.may_have_executed
        await ask()


@EVERY_MODERN_CHANNEL
@pytest.mark.parametrize(
    ("declared", "asked"),
    [
        (ELICITS, of()),
        (ELICITS, of(params={"mode": "form"})),
        ({"elicitation": {"url": {}}}, of(params={"mode": "url", "url": "http://u.test"})),
        ({"elicitation": {"form": {}, "url": {}}}, of(params={"mode": "url"})),
        ({"sampling": {}}, of("sampling/createMessage", params={"maxTokens": 1})),
        ({"sampling": {"tools": {}}}, of("sampling/createMessage", params={"tools": []})),
        ({"roots": {}}, of("roots/list", params=None)),
    ],
)
async def test_a_question_that_was_declared_is_handed_out(
    channel: Channel, declared: JSON, asked: JSON, autojump_clock: MockClock
) -> None:
    """With params in any case."""
    backend = asking(channel, times=0)
    backend.fail("tools/call", question(asked))
    async with channel.open_session(backend) as session:
        answer = await session.call_tool("b_echo", answer_rounds=False, client_capabilities=declared)
    assert {"k": {"method": asked["k"]["method"], "params": asked["k"].get("params") or {}}} == answer.input_required


@EVERY_MODERN_CHANNEL
async def test_handlers_are_not_asked_what_a_call_does_not_declare(channel: Channel, autojump_clock: MockClock) -> None:
    """`client_capabilities` is in place of what they imply, also where they answer the rounds."""
    backend = asking(channel, times=0)
    backend.fail("tools/call", question())
    async with channel.open_session(backend, handlers=ClientHandlers(elicitation=refuse)) as session:
        with pytest.raises(BackendProtocolError, match="did not declare"):
            await session.call_tool("b_echo", client_capabilities={"sampling": {}})


@EVERY_MODERN_CHANNEL
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (question({}), "named none"),
        (question([], requestState="s"), "a form that is not MCP's"),
        (question({"k": "elicitation/create"}), "a form that is not MCP's"),
        (question({str(n): CONFIRM["elicitation/create"] for n in range(17)}), "for 17 inputs at once"),
        (question(requestState="\ud800"), "cannot be sent back"),
        (question(requestState=1), "a form that is not MCP's"),
    ],
)
async def test_a_question_that_makes_no_sense_is_not_handed_out(
    channel: Channel, answer: Rewrite, text: str, autojump_clock: MockClock
) -> None:
    """No caller has to check what it gets."""
    backend = asking(channel, times=0)
    backend.fail("tools/call", answer, times=1)
    async with channel.open_session(backend) as session:
        with pytest.raises(BackendProtocolError, match=text):
            await session.call_tool("b_echo", answer_rounds=False, client_capabilities=ELICITS)
        await session.call_tool("b_echo")


# Values that cannot be sent; all of them: test_call_options.py


@EVERY_CHANNEL
@EVERY_KIND
async def test_a_value_that_cannot_be_sent_is_an_error(channel: Channel, kind: str, autojump_clock: MockClock) -> None:
    """Nothing is sent, whatever the era, and no call was admitted."""
    backend = asking(channel, times=0)
    async with channel.open_session(backend) as session:
        ask = caller_of(session, kind)
        with pytest.raises(TypeError, match="input_responses"):
            await ask(input_responses={"k": "yes"})
        with pytest.raises(TypeError, match="request_state"):
            await ask(request_state=b"state")
        with pytest.raises(ValueError, match="log_level"):
            await ask(log_level="loud")
        with pytest.raises(ValueError, match="client_capabilities"):
            await ask(client_capabilities={"x": math.nan})
        with pytest.raises(TypeError, match="answer_rounds"):
            await ask(answer_rounds=0)
        assert (0, 0) == (session.in_flight, session.backends["b"].calls)
    assert [] == backend.received(METHOD_OF[kind])


@EVERY_MODERN_CHANNEL
async def test_any_mapping_will_do(channel: Channel, autojump_clock: MockClock) -> None:
    """A caller may hand over what it must not change."""
    backend = asking(channel)
    async with channel.open_session(backend) as session:
        ask = partial(session.call_tool, "b_echo", client_capabilities=MappingProxyType(ELICITS))
        first = await ask(answer_rounds=False)
        last = await ask(request_state=first.request_state, input_responses=MappingProxyType(ACCEPT))
    assert last.input_required is None
    assert [ELICITS, ELICITS] == [exchange.meta[CAPABILITIES] for exchange in backend.received("tools/call")]


# What it means for the rest of a call


@pytest.mark.parametrize("channel", [c for c in MODERN_CHANNELS if c.transport == "streamable-http"], ids=str)
async def test_neither_a_question_nor_its_answer_is_kept(channel: Channel, autojump_clock: MockClock) -> None:
    """MCP 2026-07-28, caching: "MUST NOT cache" retries and results that ask. What was read alone is kept."""
    backend = asking(channel, ttl_ms=60_000, cache_scope="public")
    async with channel.open_session(backend, handlers=ClientHandlers(elicitation=refuse)) as session:
        ask = partial(session.read_resource, URI, answer_rounds=False)
        for _ in range(2):
            first = await ask()
            assert CONFIRM == first.input_required
            answer: JSON = {"input_responses": ACCEPT, "request_state": first.request_state}
            assert (await ask(**answer)).input_required is None
            with pytest.raises(BackendRejected):  # the backend is asked, and the state was good once
                await ask(**answer)
        assert 6 == len(backend.received("resources/read"))
        backend.times = 0
        for _ in range(2):
            await ask()
        assert 7 == len(backend.received("resources/read"))
        with pytest.raises(BackendRejected):
            await ask(input_responses=ACCEPT, request_state="s")
    assert 8 == len(backend.received("resources/read"))


@pytest.mark.parametrize("channel", MODERN_CHANNELS, ids=str)
@pytest.mark.parametrize("count", [2])
async def test_answers_are_never_joined(channel: Channel, count: int, autojump_clock: MockClock) -> None:
    """Two calls with the same state and answer are two requests, also at the same time: the backend decides."""
    backend = asking(channel)
    outcomes: list[str] = []

    async def answer(session: Session, state: str | None) -> None:
        try:
            await session.read_resource(URI, input_responses=ACCEPT, request_state=state, client_capabilities=ELICITS)
            outcomes.append("ok")
        except BackendRejected:
            outcomes.append("rejected")

    async with channel.open_session(backend) as session:
        first = await session.read_resource(URI, answer_rounds=False, client_capabilities=ELICITS)
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(answer, session, first.request_state)
    assert ["ok", "rejected"] == sorted(outcomes)
    assert 3 == len(backend.received("resources/read"))


@pytest.mark.parametrize("channel", [c for c in MODERN_CHANNELS if c.transport == "streamable-http"], ids=str)
@EVERY_KIND
@pytest.mark.parametrize(
    ("fault", "error"),
    [(Reset(0), BackendUnavailable), (Status(503), BackendRejected), (Hang(), BackendTimeout)],
    ids=["reset", "503", "hang"],
)
async def test_an_answer_that_may_have_arrived_is_not_sent_again(
    channel: Channel, kind: str, fault: Any, error: type[Exception], autojump_clock: MockClock
) -> None:
    """Of a read and a prompt, too: the state is good for one request, and the caller decides."""
    backend = asking(channel)
    async with channel.open_session(backend) as session:
        ask = partial(caller_of(session, kind), answer_rounds=False, client_capabilities=ELICITS, timeout=5)
        first = await ask()
        backend.fail(METHOD_OF[kind], fault, times=1)
        with pytest.raises(error) as caught:
            await ask(input_responses=ACCEPT, request_state=first.request_state)
        assert caught.value.may_have_executed  # type: ignore[attr-defined]  # of each of these errors
        assert 2 == len(backend.received(METHOD_OF[kind]))


@pytest.mark.parametrize("channel", [c for c in MODERN_CHANNELS if c.transport == "streamable-http"], ids=str)
@EVERY_KIND
async def test_an_answer_that_provably_did_not_run_is_sent_again(
    channel: Channel, kind: str, autojump_clock: MockClock
) -> None:
    """Where the backend is told in words of another era that it was replaced, a new connection takes the same answer,
    byte by byte.
    """
    backend = asking(channel)
    async with channel.open_session(backend) as session:
        ask = partial(caller_of(session, kind), answer_rounds=False, client_capabilities=ELICITS)
        first = await ask()
        backend.fail(METHOD_OF[kind], Status(404), times=1)
        last = await ask(input_responses=ACCEPT, request_state=first.request_state)
        assert last.input_required is None
    before, again = backend.received(METHOD_OF[kind])[1:]
    ours = ("inputResponses", "requestState")
    assert [before.params[key] for key in ours] == [again.params[key] for key in ours]
    assert before.meta[CAPABILITIES] == again.meta[CAPABILITIES]


async def test_a_backend_that_changed_its_era_does_not_get_an_answer(autojump_clock: MockClock) -> None:
    """It was replaced by a server of the handshake era, which would run the call anew."""
    backend = ScriptedBackend(era="modern")
    backend.add_tool("ask", confirm)
    channel = MODERN_CHANNELS[0]
    async with channel.open_session(backend, configured={"era": "auto"}) as session:
        ask = partial(session.call_tool, "b_ask", answer_rounds=False, client_capabilities=ELICITS)
        first = await ask()
        backend.era = "legacy"
        with pytest.raises(BackendRejected, match="handshake era") as caught:
            await ask(input_responses=ACCEPT, request_state=first.request_state)
        assert not caught.value.may_have_executed
    sent = backend.received("tools/call")
    assert 2 == len(sent)  # the second was refused by the server's rules of the other era
    assert SessionState.CLOSED == session.state


@EVERY_MODERN_CHANNEL
async def test_a_timeout_is_of_one_round(channel: Channel, autojump_clock: MockClock) -> None:
    """The time between two calls belongs to neither."""
    backend = asking(channel)
    backend.latency = 3
    async with channel.open_session(backend) as session:
        ask = partial(session.call_tool, "b_echo", answer_rounds=False, client_capabilities=ELICITS)
        first = await ask(timeout=4)
        await trio.sleep(100)
        begun_at = trio.current_time()
        await ask(timeout=4, input_responses=ACCEPT, request_state=first.request_state)
        assert 3 == trio.current_time() - begun_at
        with pytest.raises(BackendTimeout, match=r"within 2 s \(timeout=\)"):
            await ask(timeout=2)


@EVERY_MODERN_CHANNEL
async def test_a_question_is_an_answer_to_what_counts_calls(channel: Channel, autojump_clock: MockClock) -> None:
    """The call has ended: it is in flight no more, no error, and observers are told that it asked."""
    told: list[Event] = []

    class Watcher:
        def on_event(self, event: Event) -> None:
            told.append(event)

    backend = asking(channel)
    async with channel.open_session(backend, observers=[Watcher()]) as session:
        ask = partial(session.call_tool, "b_echo", answer_rounds=False, client_capabilities=ELICITS)
        first = await ask()
        status = session.backends["b"]
        assert (0, 0, 1, 0) == (session.in_flight, status.in_flight, status.calls, status.errors)
        await ask(input_responses=ACCEPT, request_state=first.request_state)
    ended = [(event.outcome, event.may_have_executed) for event in told if isinstance(event, CallEnded)]
    assert [("input_required", True), ("ok", True)] == ended


@EVERY_MODERN_CHANNEL
async def test_progress_has_a_token_for_each_round(channel: Channel, autojump_clock: MockClock) -> None:
    """Each of the two calls has progress of its own."""
    heard: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    async def asks(arguments: JSON, context: CallContext) -> str:
        await context.progress(len(context.answered))
        await context.elicit("?")
        return "done"

    backend = asking(channel, times=0)
    backend.add_tool("ask", asks)
    async with channel.open_session(backend) as session:
        ask = partial(session.call_tool, "b_ask", answer_rounds=False, client_capabilities=ELICITS)
        first = await ask(on_progress=on_progress)
        await ask(on_progress=on_progress, input_responses=ACCEPT, request_state=first.request_state)
    assert [0, 1] == heard
    first_token, second_token = (exchange.meta["progressToken"] for exchange in backend.received("tools/call"))
    assert first_token != second_token


@EVERY_KIND
@pytest.mark.parametrize("caller", [None, BOB], ids=["none", "other"])
async def test_an_answer_is_its_callers(kind: str, caller: Identity | None, autojump_clock: MockClock) -> None:
    """On a bound session an answer needs the identity like any call; it carries the credentials of that identity."""
    channel = MODERN_CHANNELS[0]
    backend = asking(channel)
    async with channel.open_way(backend) as (transport, entry), open_session_factory(transport=transport) as factory:
        async with factory.open_session([entry], identity=ALICE) as session:
            view = session.as_caller(ALICE)
            first = await caller_of(view, kind)(answer_rounds=False, client_capabilities=ELICITS)
            keywords = {"input_responses": ACCEPT, "request_state": first.request_state}
            with pytest.raises(NilCaller if caller is None else UnauthorizedCaller):
                await caller_of(session, kind)(caller=caller, **keywords)
            assert 1 == len(backend.received(METHOD_OF[kind]))
            await caller_of(view, kind)(client_capabilities=ELICITS, **keywords)


@EVERY_MODERN_CHANNEL
async def test_a_handler_that_calls_hands_out_its_own_call_alone(channel: Channel, autojump_clock: MockClock) -> None:
    """Calls inside of calls have options of their own."""
    backend = asking(channel, times=0)
    backend.add_tool("ask", confirm)
    handed_out: list[ToolResult] = []

    async def nested(request: ServerRequest) -> JSON:
        if not handed_out:
            handed_out.append(await session.call_tool("b_ask", answer_rounds=False))
        return {"action": "accept", "content": {}}

    async with channel.open_session(backend, handlers=ClientHandlers(elicitation=nested)) as session:
        answer = await session.call_tool("b_ask")
    assert answer.input_required is None
    assert [True] == [each.input_required is not None for each in handed_out]


@EVERY_MODERN_CHANNEL
async def test_messages_over_a_limit_are_not_handed_out(channel: Channel, autojump_clock: MockClock) -> None:
    """A question is an answer like any other to `max_json_values`."""
    backend = asking(channel, times=0)
    backend.fail("tools/call", question({"k": {"method": "elicitation/create", "params": {"x": [0] * 2000}}}), times=1)
    settings = FactorySettings(max_json_values=1000)
    async with channel.open_session(backend, settings=settings) as session:
        with pytest.raises(MessageTooLarge, match="max_json_values"):
            await session.call_tool("b_echo", answer_rounds=False, client_capabilities=ELICITS)
        await session.call_tool("b_echo")


@EVERY_MODERN_CHANNEL
async def test_no_state_is_in_the_log(
    channel: Channel, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A state may hold what the backend must get back alone."""
    caplog.set_level(logging.DEBUG)
    backend = asking(channel, times=0)
    backend.fail("tools/call", question(requestState="hunter2"), times=1)
    backend.fail("tools/call", Error(-32602, "no such state"))
    async with channel.open_session(backend) as session:
        ask = partial(session.call_tool, "b_echo", answer_rounds=False, client_capabilities=ELICITS)
        first = await ask()
        assert "hunter2" == first.request_state
        with pytest.raises(BackendRejected) as caught:
            await ask(input_responses={"k": {"content": "hunter2"}}, request_state=first.request_state)
    assert "hunter2" not in caplog.text + str(caught.value) + repr(caught.value)


# The results


@pytest.mark.parametrize("kind", [ToolResult, ResourceResult, PromptResult])
@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))])
def test_a_question_can_be_carried_to_another_process(kind: type[Answer], how: Callable[[Answer], Answer]) -> None:
    """By `pickle`, and as the JSON of `raw`."""
    raw = {"resultType": "input_required", "inputRequests": CONFIRM, "requestState": "s"}
    carried = how(kind(raw, "b"))
    assert (CONFIRM, "s", "b") == (carried.input_required, carried.request_state, carried.backend_id)


@pytest.mark.parametrize("kind", [ToolResult, ResourceResult, PromptResult])
@pytest.mark.parametrize("raw", [{}, {"resultType": "complete"}, {"resultType": None}], ids=str)
def test_a_complete_result_asks_nothing(kind: type[Answer], raw: JSON) -> None:
    """Whatever else is in it: "absent means complete" (2026-07-28, results)."""
    result = kind(raw | {"inputRequests": CONFIRM, "requestState": "s"}, "b")
    assert (None, None) == (result.input_required, result.request_state)


# The example for a web page


async def test_the_example_of_a_web_page_runs(autojump_clock: MockClock) -> None:
    """As `help(Session)` shows it: what the page keeps is JSON, and another session takes the answer."""
    assert Session.__doc__ is not None
    (example,) = re.findall(r"```python\n(.*?)```", inspect.cleandoc(Session.__doc__), re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)

    async def greet(arguments: JSON, context: CallContext) -> str:
        form = await context.elicit("Your name?")
        return f"{arguments['word']} {form['content']['name']}"

    channel = MODERN_CHANNELS[0]
    backend = asking(channel, times=0)
    backend.add_tool("greet", greet)
    async with channel.open_session(backend) as session:
        page = json.loads(json.dumps(await names["turn"](session, "b_greet", {"word": "Hello"})))
    (key,) = page["ask"]
    assert "Your name?" == page["ask"][key]["params"]["message"]
    async with channel.open_session(backend) as session:
        last = await names["submit"](session, page["keep"], {key: {"name": "Ada"}})
    assert "Hello Ada" == last["result"]["content"][0]["text"]
