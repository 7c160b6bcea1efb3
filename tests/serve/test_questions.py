"""Questions of backends to clients, and changes that clients are told of: what holds over HTTP holds over stdio."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
from support.front import full_backend
from support.front_clients import EVERY_BACKEND, EVERY_CARRIER, FrontClient, HttpClient, front_client, shut_down
from support.harness import echo_backend
from trio.testing import MockClock

from trio_vmcp import JSON, FactorySettings
from trio_vmcp.serve._client_session import MOST_TELLINGS
from trio_vmcp.serve._listening import ACKNOWLEDGED_WITHIN, MOST_STREAMS
from trio_vmcp.testing import CallContext, Delay, Hang, RpcError, ScriptedBackend

META = "io.modelcontextprotocol/"
ASKABLE: JSON = {"sampling": {}, "elicitation": {"form": {}}, "roots": {}}
CHANGED, UPDATED = "notifications/tools/list_changed", "notifications/resources/updated"
QUESTIONS: dict[str, tuple[str, JSON]] = {
    "e": ("elicitation/create", {"message": "name?", "requestedSchema": {"type": "object", "properties": {}}}),
    "s": ("sampling/createMessage", {"messages": [], "maxTokens": 1}),
    "r": ("roots/list", {}),
}
ANSWERS: dict[str, JSON] = {
    "elicitation/create": {"action": "accept", "content": {"name": "eve"}},
    "sampling/createMessage": {"role": "assistant", "content": {"type": "text", "text": "hi"}, "model": "m"},
    "roots/list": {"roots": [{"uri": "file:///r"}]},
}


async def ask_all(arguments: JSON, context: CallContext) -> str:
    return json.dumps(await context.request_all(QUESTIONS))


def asking_backend(era: str, ask: Callable[[JSON, CallContext], Any] = ask_all) -> ScriptedBackend:
    backend = echo_backend(era, "sse")
    backend.add_tool("ask", ask)
    return backend


def stream_of(client: FrontClient, request_id: Any) -> list[Any]:
    """The messages of a request; over stdio those of all."""
    return client.replies[request_id].messages if isinstance(client, HttpClient) else client.received


def text_of(result: JSON) -> str:
    return str(result["content"][0]["text"])


# Questions to a client of the handshake era: requests


@EVERY_BACKEND
@EVERY_CARRIER
async def test_questions_are_requests_to_their_client(
    carrier: str, backend_era: str, autojump_clock: MockClock
) -> None:
    """Sampling, elicitation and roots, and the answers reach the backend; over HTTP on the stream of the call. Another
    client is not asked.
    """
    backend = asking_backend(backend_era)
    async with front_client(carrier, "legacy", backend, capabilities=ASKABLE) as client:
        other = await client.world.initialize(ASKABLE)
        listening = other.listen()
        await client.ask("tools/call", {"name": "a_ask"}, "call")
        for question in await client.questions(3):
            assert question in stream_of(client, "call")
            await client.reply(question["id"], ANSWERS[question["method"]])
        answered = json.loads(text_of((await client.response("call"))["result"]))
        assert {key: ANSWERS[method] for key, (method, _) in QUESTIONS.items()} == answered
        assert [] == listening.messages


@EVERY_BACKEND
@EVERY_CARRIER
async def test_a_client_that_declared_nothing_is_not_asked(
    carrier: str, backend_era: str, autojump_clock: MockClock
) -> None:
    """Its backends are told of no capability, and the call ends with an error."""
    backend = asking_backend(backend_era)
    async with front_client(carrier, "legacy", backend) as client:
        await client.ask("tools/call", {"name": "a_ask"}, "call")
        answer = await client.response("call")
        assert "error" in answer or answer["result"]["isError"]
        assert not [message for message in client.received if "method" in message]


@EVERY_CARRIER
async def test_backends_are_told_what_the_client_declares_to_the_letter(
    carrier: str, autojump_clock: MockClock
) -> None:
    """Forms alone, say, are not forms and URLs; sampling with tools is told; kinds unknown here are not."""
    declared = {"elicitation": {}, "sampling": {"tools": {}, "x": 1}, "roots": {"listChanged": True}, "future": {}}
    async with front_client(carrier, "legacy", capabilities=declared) as client:
        (initialize,) = client.world.backends["a"].received("initialize")
        assert {key: value for key, value in declared.items() if key != "future"} == initialize.params["capabilities"]


@EVERY_CARRIER
async def test_the_error_of_a_client_reaches_the_backend(carrier: str, autojump_clock: MockClock) -> None:
    """With its code, message and data; what answers no question is ignored."""
    failed: list[RpcError] = []

    async def ask(arguments: JSON, context: CallContext) -> str:
        try:
            await context.elicit("name?")
        except RpcError as error:
            failed.append(error)
        return "over"

    async with front_client(carrier, "legacy", asking_backend("legacy", ask), capabilities=ASKABLE) as client:
        await client.ask("tools/call", {"name": "a_ask"}, "call")
        (question,) = await client.questions()
        await client.reply("no question of ours", {})
        await client.reply(question["id"], error={"code": -1, "message": "user rejected", "data": 7})
        assert "over" == text_of((await client.response("call"))["result"])
        (error,) = failed
        assert (-1, "user rejected", 7) == (error.code, error.message, error.data)


@EVERY_CARRIER
async def test_a_withdrawn_question_is_cancelled_at_the_client(carrier: str, autojump_clock: MockClock) -> None:
    """Under the id that the client knows, and before the response of its call."""

    async def ask(arguments: JSON, context: CallContext) -> str:
        with trio.move_on_after(3):
            await context.elicit("name?")
        await context.notify("notifications/cancelled", {"requestId": 0})  # its first question
        await trio.sleep(1)
        return "went on"

    async with front_client(carrier, "legacy", asking_backend("legacy", ask), capabilities=ASKABLE) as client:
        await client.ask("tools/call", {"name": "a_ask"}, "call")
        (question,) = await client.questions()
        await client.wait(lambda message: message.get("method") == "notifications/cancelled")
        assert [question["id"]] == [params["requestId"] for params in client.told("notifications/cancelled")]
        assert {"notifications/cancelled"} <= {message.get("method") for message in stream_of(client, "call")}
        assert not [message for message in client.received if message.get("id") == "call"]
        assert "went on" == text_of((await client.response("call"))["result"])


@EVERY_CARRIER
async def test_a_question_of_a_call_that_is_over_is_cancelled(carrier: str, autojump_clock: MockClock) -> None:
    """The call ends by its timeout, and no user must be kept busy with its question."""
    factory = FactorySettings(request_timeout=5)
    async with front_client(
        carrier, "legacy", asking_backend("legacy"), capabilities=ASKABLE, factory=factory
    ) as client:
        await client.ask("tools/call", {"name": "a_ask"}, "call")
        questions = await client.questions(3)
        assert "error" in await client.response("call")
        await client.wait(lambda message: message.get("method") == "notifications/cancelled", 3)
        cancelled = {params["requestId"] for params in client.told("notifications/cancelled")}
        assert {question["id"] for question in questions} == cancelled


@EVERY_CARRIER
async def test_a_question_of_an_ended_session_is_answered_with_an_error(
    carrier: str, autojump_clock: MockClock
) -> None:
    """At once: no answer of the client can come any more. The call that asked drains."""
    failed: list[float] = []

    async def ask(arguments: JSON, context: CallContext) -> str:
        try:
            await context.elicit("name?")
        except RpcError:
            failed.append(trio.current_time())
        return "over"

    async with front_client(carrier, "legacy", asking_backend("legacy", ask), capabilities=ASKABLE) as client:
        await client.ask("tools/call", {"name": "a_ask"}, "call")
        await client.questions()
        began_at = trio.current_time()
        (session,) = client.world.manager.live_sessions
        await client.world.manager.terminate(session.id, wait=False)
        await trio.sleep(2)
        (failed_at,) = failed
        assert 0.5 > failed_at - began_at
        assert "over" == text_of((await client.response("call"))["result"])


@EVERY_CARRIER
async def test_a_question_finds_its_call_beside_odd_requests(carrier: str, autojump_clock: MockClock) -> None:
    """Over HTTP+SSE a backend does not say which call its question belongs to. A completion may hold any members."""
    backend = ScriptedBackend(transport="sse")

    async def ask(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(1)
        return str(await context.elicit("sure?"))

    backend.add_tool("ask", ask)
    backend.add_prompt("p")
    backend.completions = {"n": ["value"]}
    async with front_client(carrier, "legacy", backend, capabilities=ASKABLE) as client:
        backend.latency = 3.0
        argument = {"ref": {"type": "ref/prompt", "name": "a_p"}, "argument": {"name": "n", "value": ""}, "uri": []}
        await client.ask("completion/complete", argument, "odd")
        await trio.sleep(0.5)
        backend.latency = 0.0
        await client.ask("tools/call", {"name": "a_ask"}, "call")
        (question,) = await client.questions()
        await client.reply(question["id"], {"action": "decline"})
        assert "decline" in text_of((await client.response("call"))["result"])
        assert "result" in await client.response("odd")


@EVERY_BACKEND
@pytest.mark.parametrize(("declared", "count"), [({"roots": {}}, 0), ({"roots": {"listChanged": True}}, 1), ({}, 0)])
@EVERY_CARRIER
async def test_roots_that_changed_are_told_to_backends(
    carrier: str, declared: JSON, count: int, backend_era: str, autojump_clock: MockClock
) -> None:
    """To those of the handshake era that were told of the capability."""
    async with front_client(carrier, "legacy", echo_backend(backend_era), capabilities=declared) as client:
        await client.result("tools/list")
        await client.notify("notifications/roots/list_changed")
        await trio.sleep(1)
        expected = count if backend_era == "legacy" else 0
        assert expected == len(client.world.backends["a"].received("notifications/roots/list_changed"))


@EVERY_CARRIER
async def test_roots_that_change_again_and_again_are_told_in_few_messages(
    carrier: str, autojump_clock: MockClock
) -> None:
    """While a backend takes long for them: a few at a time, and once for all the others. None is told that is no
    news.
    """
    backend, roots = echo_backend("legacy"), "notifications/roots/list_changed"
    backend.fail(roots, Delay(10))
    async with front_client(carrier, "legacy", backend, capabilities={"roots": {"listChanged": True}}) as client:
        await client.result("tools/list")
        for _ in range(50):
            await client.notify(roots)
        await trio.sleep(5)
        assert MOST_TELLINGS == len(backend.received(roots))
        await trio.sleep(30)
        assert MOST_TELLINGS + 1 == len(backend.received(roots))
        await client.notify(roots)
        await trio.sleep(30)
        assert MOST_TELLINGS + 2 == len(backend.received(roots))


COMPLETE = "notifications/elicitation/complete"


@pytest.mark.parametrize(("modes", "is_told"), [({"url": {}}, True), ({"form": {}, "url": {}}, True), ({}, False)])
@EVERY_CARRIER
async def test_a_completed_elicitation_is_told_to_its_client(
    carrier: str, modes: JSON, is_told: bool, autojump_clock: MockClock
) -> None:
    """During the call and after it, to a client that opens URLs; and to that client alone."""

    async def ask(arguments: JSON, context: CallContext) -> str:
        await context.notify(COMPLETE, {"elicitationId": "one", "x": 1.5})
        return ""

    backend = asking_backend("legacy", ask)
    backend.listens = True
    async with front_client(carrier, "legacy", backend, capabilities={"elicitation": modes}) as client:
        other = await client.world.initialize({"elicitation": {"url": {}}})
        await client.result("tools/call", {"name": "a_ask"})
        await trio.sleep(1)
        assert ([{"elicitationId": "one", "x": 1.5}] if is_told else []) == client.told(COMPLETE)
        backend.notify(COMPLETE, {"elicitationId": "two"})
        await trio.sleep(1)
        assert ([{"elicitationId": "two"}] if is_told else []) == client.told(COMPLETE)[1:]
        listening = other.listen()  # waits for a client that was away
        await trio.sleep(1)
        told = [message["params"] for message in listening.messages if message["method"] == COMPLETE]
        assert [{"elicitationId": "two"}] == told


# Questions to a client of the stateless era: rounds


async def ask_twice(arguments: JSON, context: CallContext) -> str:
    first = await context.elicit("name?")
    second = await context.elicit("age?")
    return f"{first['content']['x']} {second['content']['x']}"


@EVERY_CARRIER
async def test_questions_are_answered_in_rounds(carrier: str, autojump_clock: MockClock) -> None:
    """`requestState` is ours, and the backend gets its own to the letter."""
    backend = asking_backend("modern", ask_twice)
    async with front_client(carrier, "modern", backend) as client:
        params: JSON = {"name": "a_ask", "arguments": {}}
        for number, text in enumerate(("eve", "7")):
            result = await client.result("tools/call", params, f"r{number}", capabilities=ASKABLE)
            assert "input_required" == result["resultType"]
            assert "round" not in result["requestState"]
            params |= {"inputResponses": accepting(result, text), "requestState": result["requestState"]}
        assert "eve 7" == text_of(await client.result("tools/call", params, "last", capabilities=ASKABLE))
        assert 1 == backend.executed["ask"]


def accepting(result: JSON, text: str) -> JSON:
    return {key: {"action": "accept", "content": {"x": text}} for key in result["inputRequests"]}


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": {"n": 2}},
        {"name": "a_ask2"},
        {"requestState": "AAAA"},
        {"requestState": 7},
        {"inputResponses": 7},
        {"inputResponses": {"x": 7}},
    ],
)
@EVERY_CARRIER
async def test_a_state_is_good_for_its_request_alone(carrier: str, change: JSON, autojump_clock: MockClock) -> None:
    """-32602 to another request, and the backend is not asked."""
    backend = asking_backend("modern", ask_twice)
    backend.add_tool("ask2", ask_twice)
    async with front_client(carrier, "modern", backend) as client:
        call = {"name": "a_ask", "arguments": {"n": 1}}
        result = await client.result("tools/call", call, "first", capabilities=ASKABLE)
        before = len(backend.received("tools/call"))
        given = {"inputResponses": accepting(result, "y"), "requestState": result["requestState"]}
        await client.ask("tools/call", {**call, **given, **change}, "bad", capabilities=ASKABLE)
        assert -32602 == (await client.response("bad"))["error"]["code"]
        assert before == len(backend.received("tools/call"))
        assert await client.result("tools/call", {**call, **given}, "good", capabilities=ASKABLE)


@EVERY_CARRIER
async def test_a_missing_capability_is_told(carrier: str, autojump_clock: MockClock) -> None:
    """-32021, with the data of the backend; over HTTP with the status 400."""
    async with front_client(carrier, "modern", asking_backend("modern", ask_twice)) as client:
        await client.ask("tools/call", {"name": "a_ask"})
        error = (await client.response())["error"]
        assert (-32021, {"elicitation": {}}) == (error["code"], error["data"]["requiredCapabilities"])
        assert not isinstance(client, HttpClient) or 400 == client.replies[1].status


@EVERY_CARRIER
async def test_a_backend_of_the_handshake_era_cannot_ask_a_stateless_client(
    carrier: str, autojump_clock: MockClock
) -> None:
    """Its question is answered -32601 at once, and its call goes on."""
    failed: list[int] = []

    async def ask(arguments: JSON, context: CallContext) -> str:
        try:
            await context.elicit("name?")
        except RpcError as error:
            failed.append(error.code)
        return "went on"

    async with front_client(carrier, "modern", asking_backend("legacy", ask)) as client:
        result = await client.result("tools/call", {"name": "a_ask"}, capabilities=ASKABLE)
        assert ("went on", [-32601]) == (text_of(result), failed)


# Changes


def offering(era: str) -> ScriptedBackend:
    backend = full_backend(era)
    backend.add_resource("file:///c", "c")
    backend.listens = True
    return backend


async def listen(client: FrontClient, *uris: str, request_id: Any = "listen", **kinds: bool) -> None:
    wanted = {"notifications": {"resourceSubscriptions": list(uris), **kinds}}
    await client.ask("subscriptions/listen", wanted, request_id)


async def acknowledged(client: FrontClient, request_id: Any = "listen") -> Any:
    """What a stream is told that it will hear of."""
    name = "notifications/subscriptions/acknowledged"
    tag = f"{META}subscriptionId"
    found = await client.wait(
        lambda message: message.get("method") == name and message["params"]["_meta"][tag] == request_id
    )
    return found["params"]["notifications"]


@EVERY_BACKEND
@EVERY_CARRIER
async def test_changed_lists_are_told(carrier: str, backend_era: str, autojump_clock: MockClock) -> None:
    """To a client of the handshake era without asking; each change once."""
    backend = offering(backend_era)
    async with front_client(carrier, "legacy", backend) as client:
        await client.result("tools/list")
        await trio.sleep(5)
        before = len(client.told(CHANGED))
        for name in ("early", "late"):
            backend.add_tool(name)
            backend.notify(CHANGED)
            await trio.sleep(5)
        names = [tool["name"] for tool in (await client.result("tools/list", {}, 2))["tools"]]
        assert ["a_echo", "a_early", "a_late"] == names
        await trio.sleep(10)
        assert before + 2 == len(client.told(CHANGED))


@EVERY_BACKEND
@EVERY_CARRIER
async def test_updates_of_subscribed_resources_alone_are_told(
    carrier: str, backend_era: str, autojump_clock: MockClock
) -> None:
    """Until the client unsubscribes."""
    backend = offering(backend_era)
    async with front_client(carrier, "legacy", backend) as client:
        assert {} == await client.result("resources/subscribe", {"uri": "file:///a"}, 1)
        await trio.sleep(5)
        before = len(client.told(UPDATED))
        for uri in ("file:///c", "file:///a"):
            backend.notify(UPDATED, {"uri": uri})
        await trio.sleep(5)
        assert [{"uri": "file:///a"}] == client.told(UPDATED)[before:]
        assert {} == await client.result("resources/unsubscribe", {"uri": "file:///a"}, 2)
        backend.notify(UPDATED, {"uri": "file:///a"})
        await trio.sleep(5)
        assert before + 1 == len(client.told(UPDATED))


@EVERY_BACKEND
@EVERY_CARRIER
async def test_a_stream_of_changes(carrier: str, backend_era: str, autojump_clock: MockClock) -> None:
    """First what is honoured; then the changes that were asked for, each with the id of the request; a result when the
    server shuts down.
    """
    backend = offering(backend_era)
    async with front_client(carrier, "modern", backend) as client:
        await listen(client, "file:///a", "file:///none", request_id="sub", toolsListChanged=True)
        honoured = {"toolsListChanged": True, "resourceSubscriptions": ["file:///a"]}
        assert honoured == await acknowledged(client, "sub")
        await trio.sleep(5)
        before = len(client.received)
        backend.add_tool("late")
        backend.add_prompt("late")
        backend.notify("notifications/prompts/list_changed")
        backend.notify(CHANGED)
        for uri in ("file:///c", "file:///a"):
            backend.notify(UPDATED, {"uri": uri})
        await trio.sleep(5)
        told = [(each["method"], each["params"].get("uri")) for each in client.received[before:]]
        assert {(CHANGED, None), (UPDATED, "file:///a")} == set(told)
        assert {"sub"} == {each["params"]["_meta"][f"{META}subscriptionId"] for each in client.received}
        await shut_down(client)
        assert "complete" == (await client.response("sub"))["result"]["resultType"]


@EVERY_BACKEND
@EVERY_CARRIER
async def test_streams_of_one_principal_share_subscriptions(
    carrier: str, backend_era: str, autojump_clock: MockClock
) -> None:
    """The end of one stream does not end what another listens for."""
    backend = offering(backend_era)
    async with front_client(carrier, "modern", backend) as client:
        for request_id in ("one", "two"):
            await listen(client, "file:///a", request_id=request_id)
            assert ["file:///a"] == (await acknowledged(client, request_id))["resourceSubscriptions"]
        await trio.sleep(1)
        await client.withdraw("one")
        await trio.sleep(5)
        before = len(client.told(UPDATED))
        backend.notify(UPDATED, {"uri": "file:///a"})
        await trio.sleep(5)
        told = client.told(UPDATED)[before:]
        assert {"two"} == {params["_meta"][f"{META}subscriptionId"] for params in told}
        assert [] == backend.received("resources/unsubscribe")
        await client.withdraw("two")
        await trio.sleep(5)
        assert (1 if backend_era == "legacy" else 0) == len(backend.received("resources/unsubscribe"))


@EVERY_BACKEND
@EVERY_CARRIER
async def test_a_backend_that_is_silent_does_not_keep_the_stream_from_beginning(
    carrier: str, backend_era: str, autojump_clock: MockClock
) -> None:
    """What is not subscribed to in time is not acknowledged; resources of other backends are, and changes are told."""
    silent, other = offering(backend_era), full_backend("legacy")
    silent.fail("resources/subscribe" if backend_era == "legacy" else "subscriptions/listen", Hang())
    other.listens = True
    other.resources[0]["uri"] = "file:///other"
    async with front_client(carrier, "modern", silent, other) as client:
        await listen(client, *(f"file:///b/{number}" for number in range(40)), "file:///other", toolsListChanged=True)
        with trio.fail_after(ACKNOWLEDGED_WITHIN + 1):
            assert ["file:///other"] == (await acknowledged(client))["resourceSubscriptions"]
        other.notify(UPDATED, {"uri": "file:///other"})
        await client.wait(lambda message: message.get("method") == UPDATED)


@EVERY_CARRIER
async def test_the_end_of_a_stream_does_not_end_the_subscription_of_the_next(
    carrier: str, autojump_clock: MockClock
) -> None:
    """It begins while the backend is told that the first one has ended."""
    backend = offering("legacy")
    backend.fail("resources/unsubscribe", Delay(0.5), times=1)
    async with front_client(carrier, "modern", backend) as client:
        await listen(client, "file:///a", request_id="one")
        await acknowledged(client, "one")
        await client.withdraw("one")
        while not backend.received("resources/unsubscribe"):
            await trio.sleep(0.05)
            assert 10 > trio.current_time()
        await listen(client, "file:///a", request_id="two")
        assert ["file:///a"] == (await acknowledged(client, "two"))["resourceSubscriptions"]
        await trio.sleep(2)
        backend.notify(UPDATED, {"uri": "file:///a"})
        await client.wait(lambda message: message.get("method") == UPDATED)


@EVERY_CARRIER
async def test_one_stream_too_many_is_to_be_asked_for_later(carrier: str, autojump_clock: MockClock) -> None:
    """-32000, over HTTP with the status 503 and Retry-After; the place of a stream that ends is free."""
    async with front_client(carrier, "modern") as client:
        for number in range(MOST_STREAMS):
            await listen(client, request_id=number, toolsListChanged=True)
            await acknowledged(client, number)
        await listen(client, request_id="refused")
        assert -32000 == (await client.response("refused"))["error"]["code"]
        if isinstance(client, HttpClient):
            refused = client.replies["refused"]
            assert 503 == refused.status
            assert 0 < int(refused.headers["retry-after"])
        await client.withdraw(0)
        await trio.sleep(2)
        await listen(client, request_id="more")
        assert {} == await acknowledged(client, "more")
