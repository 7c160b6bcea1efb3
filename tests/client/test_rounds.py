"""Modern requests in several rounds: what is asked, what goes back, and when it ends. The same over every channel."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from support.channels import ANSWERS, EVERY_CHANNEL, EVERY_MODERN_ANSWER, EVERY_MODERN_CHANNEL, Channel
from support.clients import ALICE, SESSION_ID, ask, call
from support.handlers import Handler, everything
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
from trio_vmcp._request_note import begin_request
from trio_vmcp.testing import CallContext, Error, Fault, Raw, Reset, Rewrite, ScriptedBackend

ACCEPT = {"action": "accept", "content": {"yes": True}}
FORM: JSON = {"message": "?", "requestedSchema": {"properties": {"yes": {"type": "boolean"}}}}
ELICIT: tuple[str, JSON] = ("elicitation/create", FORM)
ROOTS: tuple[str, JSON] = ("roots/list", {})
CONFIRM = {"confirm": {"method": "elicitation/create", "params": FORM}}


def asking(channel: Channel, *rounds: dict[str, tuple[str, JSON]]) -> ScriptedBackend:
    """A tool "ask" that asks round by round and answers with what it was told, as JSON text."""

    async def asks(arguments: JSON, context: CallContext) -> str:
        return json.dumps([await context.request_all(requests) for requests in rounds])

    backend = channel.backend()
    backend.add_tool("ask", asks)
    return backend


def told(answer: JSON) -> Any:
    return json.loads(answer["content"][0]["text"])


def question(requests: Any = CONFIRM, **more: Any) -> Rewrite:
    """A result that asks for input."""
    fields = {"resultType": "input_required", "inputRequests": requests} | more
    return Rewrite(lambda message: message | {"result": fields})


# Rounds that end well


@EVERY_MODERN_ANSWER
async def test_a_question_is_answered_and_the_request_sent_again(channel: Channel, autojump_clock: MockClock) -> None:
    """The caller gets the result alone. The scripted backend compares method, params, keys, state and ids."""
    handler = Handler(ACCEPT)
    backend = asking(channel, {"a": ELICIT, "b": ROOTS}, {"c": ("sampling/createMessage", {})})
    async with channel.open_client(backend, handlers=everything(handler)) as client:
        answer = await call(client, "ask", {"x": 1}, identity=ALICE)
    assert [{"a": ACCEPT, "b": ACCEPT}, {"c": ACCEPT}] == told(answer)
    assert "inputRequests" not in answer
    assert {"ask": 1} == backend.executed
    expected = [ServerRequest(SESSION_ID, "b", ALICE, params) for params in (FORM, {}, {})]
    assert sorted(expected, key=repr) == sorted(handler.requests, key=repr)
    assert [2, 3, 4] == [exchange.request_id for exchange in backend.received("tools/call")]


@EVERY_MODERN_ANSWER
async def test_a_round_goes_into_no_other_request(channel: Channel, autojump_clock: MockClock) -> None:
    """Neither while it waits nor afterwards; a handler holds up no other call, also with one connection."""
    settings = FactorySettings(max_connections_per_backend=1)
    backend = asking(channel, {"a": ELICIT})
    async with channel.open_client(
        backend, handlers=everything(Handler(ACCEPT, seconds=5)), settings=settings
    ) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, client, "ask")
            await wait_all_tasks_blocked()
            await call(client, "echo", timeout=1)
            assert 0 == trio.current_time()
        assert 5 == trio.current_time()
        await call(client, "echo")
    sent = [(e.params["name"], "requestState" in e.params) for e in backend.received("tools/call")]
    assert [("ask", False), ("echo", False), ("ask", True), ("echo", False)] == sent


@EVERY_MODERN_ANSWER
async def test_the_handlers_of_a_round_run_side_by_side(channel: Channel, autojump_clock: MockClock) -> None:
    """Sixteen of them take as long as one, and their answers keep the order of the keys."""
    backend = asking(channel, {str(number): ELICIT for number in range(16)})
    async with channel.open_client(backend, handlers=everything(Handler(ACCEPT, seconds=3))) as client:
        await call(client, "ask")
        assert 3 == trio.current_time()
    second = backend.received("tools/call")[1]
    assert [str(number) for number in range(16)] == list(second.params["inputResponses"])


@EVERY_MODERN_ANSWER
async def test_accepted_forms_have_their_defaults(channel: Channel, autojump_clock: MockClock) -> None:
    """What the handler left out, and nothing else."""
    form = {"requestedSchema": {"properties": {"a": {"default": 1}, "b": {"default": 2}}}}
    backend = asking(channel, {"f": ("elicitation/create", form)})
    handler = Handler({"action": "accept", "content": {"b": 3}})
    async with channel.open_client(backend, handlers=everything(handler)) as client:
        assert [{"f": {"action": "accept", "content": {"a": 1, "b": 3}}}] == told(await call(client, "ask"))


@EVERY_MODERN_CHANNEL
async def test_progress_comes_in_every_round(channel: Channel, autojump_clock: MockClock) -> None:
    """By the token of the first request."""
    heard: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    async def asks(arguments: JSON, context: CallContext) -> str:
        await context.progress(len(context.answered))
        await context.elicit("one")
        await context.elicit("two")
        return "done"

    backend = channel.backend()
    backend.add_tool("ask", asks)
    async with channel.open_client(backend, handlers=everything(Handler(ACCEPT))) as client:
        await call(client, "ask", on_progress=on_progress)
    assert [0, 1, 2] == heard
    assert [2, 2, 2] == [exchange.meta["progressToken"] for exchange in backend.received("tools/call")]


# Rounds that do not


def of(method: Any = "elicitation/create", **more: Any) -> JSON:
    return {"k": {"method": method} | more}


@EVERY_MODERN_ANSWER
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (question(None), "named none"),
        (question({}), "named none"),
        (question([], requestState="s"), "a form that is not MCP's"),
        (question(requestState=1), "a form that is not MCP's"),
        (question(requestState={"a": 1}), "a form that is not MCP's"),
        (question({"k": "elicitation/create"}), "a form that is not MCP's"),
        (question(of(7)), "a form that is not MCP's"),
        (question(of(params=[1])), "a form that is not MCP's"),
        (question(of("tools/call")), "for the input 'tools/call', which is not given: this client offers no such"),
        (question(of("roots/list")), "for the input 'roots/list', which is not given: this client offers no such"),
        (question(CONFIRM | of("roots/list")), "'roots/list', which is not given"),
        (question(of(params={"mode": "voice"})), "the modes 'form' and 'url'"),
        (question({str(n): of()["k"] for n in range(17)}), "for 17 inputs at once; 16 are the most"),
        (question(requestState="s" * 1_048_577), "over 1048576 characters of state and names"),
        (
            question({"k" * 600_000: of()["k"]}, requestState="s" * 600_000),
            "over 1048576 characters of state and names",
        ),
        (question({"\ud800": of()["k"]}), "cannot be sent back"),
        (question(requestState="\ud800"), "cannot be sent back"),
    ],
)
async def test_a_question_that_makes_no_sense_is_an_error(
    channel: Channel, answer: Rewrite, text: str, autojump_clock: MockClock
) -> None:
    """No handler is asked and nothing is sent; the call may have run. The next one works."""
    handler = Handler(ACCEPT)
    backend = channel.backend()
    backend.fail("tools/call", answer, times=1)
    async with channel.open_client(backend, handlers=ClientHandlers(elicitation=handler)) as client:
        with pytest.raises(BackendProtocolError, match=text) as caught:
            await call(client)
        assert caught.value.may_have_executed
        assert 1 == len(backend.received("tools/call"))
        await call(client)
    assert [] == handler.requests


@EVERY_MODERN_ANSWER
@pytest.mark.parametrize("method", ["tools/list", "completion/complete"])
async def test_other_methods_have_no_rounds(channel: Channel, method: str, autojump_clock: MockClock) -> None:
    """MCP 2026-07-28: "Servers MUST NOT send InputRequiredResult responses on any other client requests"."""
    backend = channel.backend(completions={"city": ["Oslo"]})
    backend.fail(method, question())
    async with channel.open_client(backend, handlers=everything(Handler(ACCEPT))) as client:
        with pytest.raises(BackendProtocolError, match="no place for"):
            await ask(client, method)
    assert 1 == len(backend.received(method))


@EVERY_MODERN_ANSWER
async def test_ten_rounds_are_enough(channel: Channel, autojump_clock: MockClock) -> None:
    """The tenth answer may be the last; an eleventh question is an error."""
    handler = Handler(ACCEPT)
    backend = asking(channel, *[{"a": ELICIT}] * 10)
    async with channel.open_client(backend, handlers=everything(handler)) as client:
        await call(client, "ask")
        assert (11, 10) == (len(backend.received("tools/call")), len(handler.requests))
    backend = asking(channel, *[{"a": ELICIT}] * 11)
    async with channel.open_client(backend, handlers=everything(handler)) as client:
        with pytest.raises(BackendProtocolError, match="over 10 times") as caught:
            await call(client, "ask")
        assert caught.value.may_have_executed
        await call(client)
    assert 20 == len(handler.requests)


@EVERY_MODERN_ANSWER
@pytest.mark.parametrize(
    "answer", [ValueError("hunter2"), [], [1], {"a": float("nan")}, {"a": "\ud800"}], ids=lambda answer: repr(answer)
)
async def test_a_handler_that_fails_ends_the_call(
    channel: Channel, answer: Any, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """This era has no way to tell the backend. The other handlers of the round are cancelled; no text gets out."""
    slow, failing = Handler(ACCEPT, seconds=10), Handler(answer, seconds=1)
    backend = asking(channel, {"a": ELICIT, "b": ROOTS})
    async with channel.open_client(backend, handlers=ClientHandlers(roots=slow, elicitation=failing)) as client:
        with pytest.raises(BackendRejected, match="'elicitation/create' on 'tools/call', and the handler") as caught:
            await call(client, "ask")
        assert 1 == trio.current_time()
        assert (-32603, True) == (caught.value.code, caught.value.may_have_executed)
        await call(client)
    assert 1 == slow.cancelled
    assert 2 == len(backend.received("tools/call"))
    assert 1 == len(caplog.messages)
    assert "hunter2" not in caplog.text + str(caught.value)


@EVERY_MODERN_ANSWER
@pytest.mark.parametrize("code", [-32602, -32020])
async def test_a_refusal_in_a_later_round_may_have_run(channel: Channel, code: int, autojump_clock: MockClock) -> None:
    """Whatever its code proves of this round: the rounds before were acted on."""
    backend = asking(channel, {"a": ELICIT})
    backend.fail("tools/call", Error(code, "no such state", status=400), skip=1)
    note = begin_request("tools/call")
    async with channel.open_client(backend, handlers=everything(Handler(ACCEPT))) as client:
        with pytest.raises(BackendRejected) as caught:
            await call(client, "ask")
        assert code == caught.value.code
        assert caught.value.may_have_executed
        assert note.written


@pytest.mark.parametrize("channel", [c for c in ANSWERS if c.closes_streams], ids=str)
@pytest.mark.parametrize(
    ("fault", "error"), [(Reset(0), BackendUnavailable), (Raw(b"nonsense"), BackendProtocolError)], ids=["reset", "raw"]
)
async def test_a_response_that_breaks_in_a_later_round_may_have_run(
    channel: Channel, fault: Fault, error: type[BackendError], autojump_clock: MockClock
) -> None:
    """Also where nothing of the response came: the rounds before were acted on."""
    backend = asking(channel, {"a": ELICIT})
    backend.fail("tools/call", fault, skip=1, times=1)
    async with channel.open_client(backend, handlers=everything(Handler(ACCEPT))) as client:
        with pytest.raises(error) as caught:
            await call(client, "ask")
        assert caught.value.may_have_executed
        await call(client)


# Deadlines and cancels


@EVERY_MODERN_ANSWER
async def test_the_deadline_holds_over_all_rounds(channel: Channel, autojump_clock: MockClock) -> None:
    """Handlers included: at its end they are cancelled, and the error says that the call may have run."""
    handler = Handler(ACCEPT, seconds=3)
    backend = asking(channel, *[{"a": ELICIT}] * 10)
    async with channel.open_client(backend, handlers=everything(handler)) as client:
        with pytest.raises(BackendTimeout, match=r"within 10 s \(request_timeout\)") as caught:
            await call(client, "ask", timeout=10)
        assert 10 == trio.current_time()
        assert caught.value.may_have_executed
        await call(client)
    assert (4, 1) == (len(handler.requests), handler.cancelled)


@EVERY_MODERN_ANSWER
async def test_a_cancelled_call_cancels_its_handlers(channel: Channel, autojump_clock: MockClock) -> None:
    """At once, and the request is not sent again."""
    handler = Handler(ACCEPT, seconds=10)
    backend = asking(channel, {"a": ELICIT, "b": ROOTS})
    async with channel.open_client(backend, handlers=everything(handler)) as client:
        with trio.move_on_after(1) as scope:
            await call(client, "ask")
        assert scope.cancelled_caught
        assert (1, 2, 2) == (trio.current_time(), len(handler.requests), handler.cancelled)
        await trio.sleep(20)
    assert 1 == len(backend.received("tools/call"))


@pytest.mark.parametrize("channel", [c for c in ANSWERS if c.is_modern and not c.closes_streams], ids=str)
async def test_a_cancel_names_the_request_of_the_round(channel: Channel, autojump_clock: MockClock) -> None:
    """Each round is a request with an id of its own; the request that runs now is the one to cancel."""

    async def ask_and_hang(arguments: JSON, context: CallContext) -> str:
        await context.request_all({"a": ELICIT})
        await trio.sleep_forever()
        raise AssertionError

    backend = channel.backend()
    backend.add_tool("ask", ask_and_hang)
    async with channel.open_client(backend, handlers=everything(Handler(ACCEPT))) as client:
        with pytest.raises(BackendTimeout):
            await call(client, "ask", timeout=1)
        await wait_all_tasks_blocked()
        (cancel,) = backend.received("notifications/cancelled")
        _, second = backend.received("tools/call")
        assert second.message["id"] == cancel.params["requestId"]


@EVERY_CHANNEL
async def test_endless_progress_extends_no_deadline(channel: Channel, autojump_clock: MockClock) -> None:
    """The whole exchange has one limit, and progress is no answer."""
    heard: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    async def ticks(arguments: JSON, context: CallContext) -> str:
        for step in range(1000):
            await context.progress(step)
            await trio.sleep(1)
        return "never"

    backend = channel.backend()
    backend.add_tool("ticks", ticks)
    async with channel.open_client(backend) as client:
        with pytest.raises(BackendTimeout):
            await call(client, "ticks", timeout=7.5, on_progress=on_progress)
        assert 7.5 == trio.current_time()
    assert [0, 1, 2, 3, 4, 5, 6, 7] == heard
