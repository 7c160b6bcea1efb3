"""Clients of the handshake era that come back: to another process, by another connection, or later than a question."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import trio
from support.front import LEGACY, LegacyClient, front_world, full_backend
from support.harness import echo_backend, slow_backend
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON, FactorySettings, LocalStorage, ManagerSettings
from trio_vmcp.serve import ServeSettings
from trio_vmcp.serve._wanted import PROTOCOL_VERSION, SUBSCRIBED, WANTED_LEVEL, News, Wanted
from trio_vmcp.testing import CallContext, Delay, RpcError, ScriptedBackend

EVERY_ERA = pytest.mark.parametrize("era", ["legacy", "modern"])
ASKABLE: JSON = {"sampling": {}, "elicitation": {}, "roots": {}}
SHARED = FactorySettings(identity_keys=(b"k" * 32,), on_exit="suspend")
CHANGED = "notifications/tools/list_changed"


# Another process


@EVERY_ERA
async def test_an_event_id_of_an_earlier_process_names_no_stream(era: str, autojump_clock: MockClock) -> None:
    """The client has the id of an event of a process that has ended. It must get neither the response of another
    request, whose reader would lose it, nor be taken for a reader that has all events up to that number.
    """
    backend, storage = slow_backend(20, era, "sse", listens=True), LocalStorage()
    async with front_world(backend, storage=storage, factory=SHARED) as one:
        client = await one.initialize()
        listening = client.listen()
        for number in range(5):
            backend.add_tool(f"t{number}")
            backend.notify(CHANGED)
            await trio.sleep(5)
        old_call = client.start("tools/call", {"name": "a_slow"})
        await trio.sleep(1)
        last_call, last_listened = old_call.events[0][0], listening.events[-1][0]
        assert None not in (last_call, last_listened)
        one.nursery.cancel_scope.cancel()
    async with front_world(backend, storage=storage, factory=SHARED) as two:
        client = LegacyClient(two, client.session_id, {})
        call = client.start("tools/call", {"name": "a_slow"}, request_id="second")
        await trio.sleep(1)
        returned = [client.listen(last_call), client.listen(last_listened)]
        await trio.sleep(1)
        backend.add_tool("late")
        backend.notify(CHANGED)
        await call.done.wait()
        assert "second" == call.answer["id"]
        told = [each["method"] for stream in returned for each in stream.messages]
        assert CHANGED in told
        assert not any("id" in each for stream in returned for each in stream.messages)


@EVERY_ERA
async def test_lists_that_changed_between_two_processes_are_told(era: str, autojump_clock: MockClock) -> None:
    """The new process does not know what the client saw, so each list counts as changed that it has not asked for."""
    backend, storage = echo_backend(era), LocalStorage()
    async with front_world(backend, storage=storage, factory=SHARED) as one:
        session_id = (await one.initialize()).session_id
    backend.add_tool("new")
    async with front_world(backend, storage=storage, factory=SHARED) as two:
        client = LegacyClient(two, session_id, {})
        await client.result("prompts/list")
        listening = client.listen()
        await trio.sleep(1)
        told = {each["method"] for each in listening.messages}
        assert {CHANGED, "notifications/resources/list_changed"} == told


@EVERY_ERA
async def test_an_answer_to_an_earlier_process_answers_no_question_of_this_one(
    era: str, autojump_clock: MockClock
) -> None:
    """A user answers late: consent to one thing must not be taken for consent to another."""

    async def ask(arguments: JSON, context: CallContext) -> str:
        return json.dumps(await context.elicit(arguments["what"]))

    backend, storage = echo_backend(era, "sse"), LocalStorage()
    backend.add_tool("ask", ask)
    async with front_world(backend, storage=storage, factory=SHARED) as one:
        client = await one.initialize(ASKABLE)
        call = client.start("tools/call", {"name": "a_ask", "arguments": {"what": "may I read?"}})
        (old,) = await call.wait_messages(1)
        one.nursery.cancel_scope.cancel()
    async with front_world(backend, storage=storage, factory=SHARED) as two:
        client = LegacyClient(two, client.session_id, {})
        call = client.start("tools/call", {"name": "a_ask", "arguments": {"what": "may I delete?"}})
        (new,) = await call.wait_messages(1)
        await client.reply(old["id"], {"action": "accept", "content": {}})
        await trio.sleep(1)
        assert 1 == len(call.messages)
        await client.reply(new["id"], {"action": "decline"})
        await call.done.wait()
        assert "decline" in call.answer["result"]["content"][0]["text"]


@EVERY_ERA
@pytest.mark.parametrize("moved", [True, False], ids=["to another process", "asleep meanwhile"])
async def test_what_a_client_wants_of_backends_outlives_the_runtime_of_its_session(
    moved: bool, era: str, autojump_clock: MockClock
) -> None:
    """The level of log messages, and its subscriptions: a backend of the stateless era knows nothing of sessions."""
    backend, storage = full_backend(era), LocalStorage()
    backend.listens = True
    backend.capabilities = {"tools": {}, "logging": {}, "resources": {"subscribe": True}}
    limits = ManagerSettings(hibernate_after=10)
    async with front_world(backend, storage=storage, factory=SHARED, limits=limits) as one:
        client = await one.initialize()
        await client.result("logging/setLevel", {"level": "debug"})
        if moved:
            await client.result("resources/subscribe", {"uri": "file:///a"})
            await client.result("resources/subscribe", {"uri": "file:///b/x"})
            await client.result("resources/unsubscribe", {"uri": "file:///a"})
        else:
            await trio.sleep(60)
            assert 1 == one.manager.statistics.hibernated
            await check_level(client, backend)
    if moved:
        async with front_world(backend, storage=storage, factory=SHARED) as two:
            client = LegacyClient(two, client.session_id, {})
            await check_level(client, backend)
            listening = client.listen()
            await trio.sleep(2)
            before = len(listening.messages)
            for uri in ("file:///a", "file:///b/x"):
                backend.notify("notifications/resources/updated", {"uri": uri})
            await trio.sleep(2)
            assert ["file:///b/x"] == [each["params"]["uri"] for each in listening.messages[before:]]


@EVERY_ERA
@pytest.mark.parametrize("sleeps", [False, True], ids=["live", "asleep"])
async def test_a_client_that_comes_back_from_another_instance_wants_what_it_wanted_there(
    sleeps: bool, era: str, autojump_clock: MockClock
) -> None:
    """The first instance has the session all the while, or lets it sleep, and knows what the client wanted before."""
    backend, storage = full_backend(era), LocalStorage()
    backend.listens = True
    backend.capabilities = {"tools": {}, "logging": {}, "resources": {"subscribe": True}}
    limits = ManagerSettings(hibernate_after=10 if sleeps else math.inf)
    async with (
        front_world(backend, storage=storage, factory=SHARED, limits=limits) as one,
        front_world(backend, storage=storage, factory=SHARED) as two,
    ):
        here = await one.initialize()
        there = LegacyClient(two, here.session_id, {})
        for uri in ("file:///a", "file:///b/old"):
            await here.result("resources/subscribe", {"uri": uri})
        if sleeps:  # a subscription keeps it awake
            await here.result("resources/unsubscribe", {"uri": "file:///b/old"})
            await here.result("resources/unsubscribe", {"uri": "file:///a"})
            await trio.sleep(60)
            assert 1 == one.manager.statistics.hibernated
        else:
            await there.result("resources/unsubscribe", {"uri": "file:///b/old"})
        await there.result("resources/subscribe", {"uri": "file:///b/new"})
        await there.result("logging/setLevel", {"level": "error"})
        await trio.sleep(20)
        listening = here.listen()
        await trio.sleep(2)
        await here.result("tools/call", {"name": "a_echo"})
        if era == "modern":
            assert "error" == backend.received("tools/call")[-1].meta["io.modelcontextprotocol/logLevel"]
        before = len(listening.messages)
        for uri in ("file:///a", "file:///b/old", "file:///b/new"):
            backend.notify("notifications/resources/updated", {"uri": uri})
        await trio.sleep(2)
        wanted = ["file:///b/new"] if sleeps else ["file:///a", "file:///b/new"]
        assert wanted == [each["params"]["uri"] for each in listening.messages[before:]]
        await here.result("resources/subscribe", {"uri": "file:///b/more"})
        row = await storage.load(here.session_id)
        assert sorted([*wanted, "file:///b/more"]) == json.loads(row.attributes["mcp.subscribed"])


def test_what_one_instance_has_stored_is_no_news_to_it() -> None:
    """Though the storage takes its writes late."""
    attributes = {PROTOCOL_VERSION: LEGACY}
    wanted = Wanted.of(attributes)
    wanted.subscribed.add("a")
    first = wanted.put_into(attributes)
    wanted.subscribed.discard("a")
    wanted.level = "error"
    second = wanted.put_into(attributes)
    assert [None, None, None] == [wanted.take_over(each) for each in (attributes, first, second)]
    assert (set(), "error") == (wanted.subscribed, wanted.level)


@pytest.mark.parametrize("is_told", [True, False], ids=["of its writes", "by reading the row"])
def test_what_this_instance_has_stored_before_may_be_of_another_one(is_told: bool) -> None:
    """The same list as some time ago: the client has unsubscribed on the other instance, and here, earlier, too."""
    wanted = Wanted.of({PROTOCOL_VERSION: LEGACY, SUBSCRIBED: "[]"})
    for uris in ({"a"}, set[str](), {"a"}):
        wanted.subscribed = set(uris)
        sent = wanted.put_into({PROTOCOL_VERSION: LEGACY})
        if is_told:
            wanted.note_stored(sent)
        else:
            assert wanted.take_over(sent) is None
    assert News(None, frozenset(), frozenset("a")) == wanted.take_over({PROTOCOL_VERSION: LEGACY, SUBSCRIBED: "[]"})


def test_what_another_instance_has_stored_is_taken_over() -> None:
    """What could not be stored here stays; attributes of an application's own say nothing."""
    wanted = Wanted.of({PROTOCOL_VERSION: LEGACY, SUBSCRIBED: '["a", "b"]'})
    wanted.subscribed.add("unstored")
    theirs = {PROTOCOL_VERSION: LEGACY, SUBSCRIBED: '["b", "c"]', WANTED_LEVEL: "info"}
    assert News("info", frozenset("c"), frozenset("a")) == wanted.take_over(theirs)
    assert ({"b", "c", "unstored"}, "info") == (wanted.subscribed, wanted.level)
    assert wanted.take_over(theirs) is None
    assert wanted.take_over({"theme": "dark"}) is None
    assert {"b", "c", "unstored"} == wanted.subscribed


async def check_level(client: LegacyClient, backend: ScriptedBackend) -> None:
    told = len(backend.received("logging/setLevel"))
    await client.result("tools/call", {"name": "a_echo"})
    if backend.era == "modern":
        assert "debug" == backend.received("tools/call")[-1].meta["io.modelcontextprotocol/logLevel"]
    else:
        await trio.sleep(1)
        assert told < len(backend.received("logging/setLevel"))


async def test_wishes_that_are_too_many_to_store_work_until_the_process_ends(autojump_clock: MockClock) -> None:
    """The attributes of a session are limited to 16 KiB."""
    backend = full_backend("legacy")
    backend.listens = True
    async with front_world(backend) as world:
        client = await world.initialize({"sampling": {"x": "y" * 8000}})
        uris = [f"file:///b/{number}{'z' * 900}" for number in range(10)]
        for uri in uris:
            assert {} == await client.result("resources/subscribe", {"uri": uri})
        listening = client.listen()
        await trio.sleep(1)
        before = len(listening.messages)
        for uri in uris:
            backend.notify("notifications/resources/updated", {"uri": uri})
        told = await listening.wait_messages(before + 10)
        assert set(uris) == {each["params"]["uri"] for each in told[before:]}
        (session,) = world.manager.live_sessions
        assert 0 < len(json.loads(session.metadata.attributes["mcp.subscribed"])) < 10


async def test_a_question_ends_when_another_process_ends_its_session(autojump_clock: MockClock) -> None:
    """As soon as this process hears of that, and long before the drain is over: no answer can come any more, and no
    user is kept busy with the question.
    """

    async def ask(arguments: JSON, context: CallContext) -> str:
        return str(await context.elicit("may I?"))

    backend, storage = echo_backend("legacy", "sse"), LocalStorage()
    backend.add_tool("ask", ask)
    limits = ManagerSettings(storage_check_interval=3)
    async with (
        front_world(backend, storage=storage, factory=SHARED, limits=limits) as one,
        front_world(backend, storage=storage, factory=SHARED, limits=limits) as two,
    ):
        client = await one.initialize(ASKABLE)
        call = client.start("tools/call", {"name": "a_ask"})
        (question,) = await call.wait_messages(1)
        assert 204 == (await LegacyClient(two, client.session_id, {}).delete()).status
        with trio.fail_after(4):
            _, cancel = await call.wait_messages(2)
        assert ("notifications/cancelled", question["id"]) == (cancel["method"], cancel["params"]["requestId"])


# A question before there is a stream


@pytest.mark.parametrize(
    ("made_in", "listens_after"),
    [(0.0, 4.0), (3.0, 0.0), (3.0, 4.0)],
)
async def test_a_question_waits_for_a_client_that_has_just_come(
    made_in: float, listens_after: float, autojump_clock: MockClock
) -> None:
    """Servers like to ask for roots as soon as they are initialized: before the client has its session, and its stream.

    Args:
        made_in: s that its session takes, as another backend is slow.
        listens_after: s until it opens its stream.
    """
    asking, slow = echo_backend("legacy", listens=True), echo_backend("legacy")
    slow.fail("initialize", Delay(made_in))
    answers: list[Any] = []

    async def ask_at_once() -> None:
        await trio.sleep(0.5)
        answers.append(await asking.ask("roots/list", {}))

    async with front_world(asking, slow) as world:
        world.nursery.start_soon(ask_at_once)
        client = await world.initialize(ASKABLE)
        await trio.sleep(listens_after)
        (question,) = await client.listen().wait_messages(1)
        await client.reply(question["id"], {"roots": []})
        await trio.sleep(1)
        assert [{"roots": []}] == answers


async def test_a_question_to_a_client_that_opens_no_stream_is_an_error(autojump_clock: MockClock) -> None:
    """After a few seconds: never silence."""
    backend = echo_backend("legacy", listens=True)
    async with front_world(backend) as world:
        await world.initialize(ASKABLE)
        await trio.sleep(1)
        with trio.fail_after(10), pytest.raises(RpcError, match="no stream"):
            await backend.ask("roots/list", {})


# Connections


@EVERY_ERA
async def test_a_new_stream_outlasts_the_end_of_the_one_before(era: str, autojump_clock: MockClock) -> None:
    """Its head is still on its way when the old connection ends."""
    async with front_world(echo_backend(era, listens=True), settings=ServeSettings(abandoned_after=10)) as world:
        client = await world.initialize()
        old = client.listen()
        await trio.sleep(1)
        new = client.listen()
        new.blocked = trio.Event()
        await wait_all_tasks_blocked()
        old.leave()
        await trio.sleep(1)
        new.blocked.set()
        await trio.sleep(60)
        world.backends["a"].add_tool("late")
        world.backends["a"].notify(CHANGED)
        await trio.sleep(5)
        assert [CHANGED] == [each["method"] for each in new.messages]


@EVERY_ERA
async def test_a_server_that_tells_of_a_closed_connection_when_it_sends(era: str, autojump_clock: MockClock) -> None:
    """ASGI servers may raise OSError: the client is gone then, and its call is answered when it resumes."""

    async def work(arguments: JSON, context: CallContext) -> str:
        await context.progress(1)
        await trio.sleep(1)
        await context.progress(2)
        return "done"

    backend = echo_backend(era, "sse")
    backend.add_tool("work", work)
    async with front_world(backend) as world:
        client = await world.initialize()
        ids: list[str] = []

        async def raises(message: Mapping[str, Any]) -> None:
            await trio.lowlevel.checkpoint()
            if ids:
                raise OSError("closed")
            if b"id: " in message.get("body", b""):
                ids.append(message["body"].split(b"id: ")[1].split(b"\n")[0].decode())

        async def receive() -> Mapping[str, Any]:
            if pieces:
                return {"type": "http.request", "body": pieces.pop()}
            await trio.sleep_forever()
            raise AssertionError

        for method, params in (("tools/call", {"name": "a_work", "_meta": {"progressToken": 1}}), ("ping", {})):
            request = {"jsonrpc": "2.0", "id": 9, "method": method, "params": params}
            pieces = [json.dumps(request).encode()]
            headers = {
                "host": "localhost",
                "mcp-session-id": client.session_id,
                "mcp-protocol-version": LEGACY,
                "content-type": "application/json",
            }
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": raw}
            await world.app(scope, receive, raises)
        resumed = client.listen(ids[0])
        await resumed.done.wait()
        assert "done" == resumed.answer["result"]["content"][0]["text"]


async def test_a_notification_that_its_session_does_not_outlive_is_answered_once(autojump_clock: MockClock) -> None:
    """202 is on its way when another request ends the session."""
    async with front_world() as world:
        client = await world.initialize(ASKABLE)
        headers = {"mcp-session-id": client.session_id}
        message = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}
        told = world.start_post(message, headers)
        told.blocked = trio.Event()
        await wait_all_tasks_blocked()
        await client.delete()
        told.blocked.set()
        await told.done.wait()
        await trio.sleep(1)  # a second response would raise
        assert (202, b"") == (told.status, told.body)
