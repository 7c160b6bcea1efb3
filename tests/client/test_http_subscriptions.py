"""`subscriptions/listen` over streamable HTTP: what its responses, heads and ends mean."""

from __future__ import annotations

from typing import Any

import pytest
from support.clients import (
    ALICE,
    ask,
    call,
    echo_backend,
    event,
    listen_again,
    listening,
    open_client,
    open_scripted,
    streamed,
)
from support.subscribed import LISTEN, TOOLS_CHANGED, UPDATED, asked_for, heard, listens, silence
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    FactorySettings,
)
from trio_vmcp._client.listening import MAX_SILENCE, MOST_FRUITLESS
from trio_vmcp.testing import (
    Disconnect,
    Error,
    Fault,
    Hang,
    Raw,
    Reset,
    ScriptedBackend,
    Stall,
    Status,
)

HOUR = 3600.0
TAG = "io.modelcontextprotocol/subscriptionId"


def modern(**more: Any) -> ScriptedBackend:
    backend = echo_backend("modern", listens=True, **more)
    backend.add_resource("memo://one")
    return backend


# What is asked for


async def test_what_is_declared_is_asked_for(autojump_clock: MockClock) -> None:
    """One POST with the modern headers, not counted under the connection limit; no GET."""
    backend = modern()
    async with open_scripted(backend, settings=FactorySettings(max_connections_per_backend=1)) as bench:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        assert ("open", 1) == (listening(client), backend.listening)
        await call(client)
        await silence(MAX_SILENCE - 1)
        backend.notify(TOOLS_CHANGED)
        backend.notify("notifications/resources/list_changed")
        backend.notify("notifications/prompts/list_changed")  # not declared, so not subscribed to
        await wait_all_tasks_blocked()
        assert [(TOOLS_CHANGED, {}), ("notifications/resources/list_changed", {})] == heard(bench)
    (listen,) = listens(backend)
    assert {"toolsListChanged": True, "resourcesListChanged": True} == asked_for(listen)
    assert ("2026-07-28", LISTEN) == (listen.headers["mcp-protocol-version"], listen.headers["mcp-method"])
    assert {"mcp-name", "mcp-session-id"}.isdisjoint(listen.headers)
    assert listen.meta["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
    assert ("cancelled", []) == (listen.outcome, backend.received("GET"))


@pytest.mark.parametrize(
    "fault",
    [Error(-32601, "method not found"), Error(-32601, "method not found", status=404), *map(Status, (404, 405, 501))],
    ids=str,
)
async def test_a_backend_without_subscriptions_is_asked_once(autojump_clock: MockClock, fault: Fault) -> None:
    """A backend that answers -32601 is not asked again, whatever it declares."""
    backend = modern()
    backend.fail(LISTEN, fault)
    async with open_client(backend) as client:
        await silence(HOUR)
        listen_again(client)
        await silence(HOUR)
        assert ("none", 1) == (listening(client), len(listens(backend)))
        assert (await call(client))["content"]


async def test_the_session_s_identity_is_what_it_listens_with() -> None:
    """The subscription has the credentials of the session's opener, since it belongs to no call."""
    asked: list[object] = []
    backend = modern()

    def auth(configured: object, identity: object) -> None:
        asked.append(identity)

    async with open_scripted(backend, auth=auth) as bench:
        await bench.connect(identity=ALICE)
        await wait_all_tasks_blocked()
        assert [ALICE, ALICE] == asked  # discovery and subscription


# The acknowledgement


def note(method: str, tag: object = None, **params: Any) -> JSON:
    meta = {} if tag is None else {"_meta": {TAG: tag}}
    return {"jsonrpc": "2.0", "method": method, "params": params | meta}


def ack(tag: object, **wanted: Any) -> JSON:
    return note("notifications/subscriptions/acknowledged", tag, notifications=wanted)


FIRST_MESSAGES: list[JSON] = [
    note(TOOLS_CHANGED, 2),
    note(TOOLS_CHANGED),
    ack("2", toolsListChanged=True),
    ack(2.0, toolsListChanged=True),
    ack(3, toolsListChanged=True),
    ack(None, toolsListChanged=True),
    {"jsonrpc": "2.0", "id": 1, "method": "ping"},
    {"jsonrpc": "2.0", "id": 99, "result": {}},
    note("notifications/message", 2, data="x"),
]


@pytest.mark.parametrize("first", FIRST_MESSAGES, ids=str)
async def test_the_acknowledgement_comes_first(autojump_clock: MockClock, first: JSON) -> None:
    """The acknowledgement has the request's id as its tag, type included. Any other first message is ignored, and the
    subscription is opened anew.
    """
    backend = modern()
    backend.fail(LISTEN, streamed(event(first), event(note(TOOLS_CHANGED, 2))), times=1)
    async with open_scripted(backend) as bench:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        assert ("retrying", []) == (listening(client), bench.events)
        await silence(2)
        assert "open" == listening(client)


async def test_what_is_not_honoured_is_not_heard(autojump_clock: MockClock) -> None:
    """MCP: "Only requested kinds"; of these, only the kinds that were acknowledged are delivered."""
    methods = ["notifications/resources/list_changed", UPDATED, "notifications/message", TOOLS_CHANGED]
    backend = modern()
    first = event(ack(2, toolsListChanged=True, promptsListChanged=True))
    backend.fail(LISTEN, streamed(first, *(event(note(method, 2)) for method in methods)), times=1)
    async with open_scripted(backend) as bench:
        await bench.connect()
        await wait_all_tasks_blocked()
        assert [(TOOLS_CHANGED, {})] == heard(bench)


async def test_every_message_has_to_carry_the_tag(autojump_clock: MockClock) -> None:
    """A notification without the tag, or with another one, is ignored, and the stream goes on."""
    messages = [note(TOOLS_CHANGED, tag) for tag in (None, "2", 2.0, True, 3)]
    last = note(TOOLS_CHANGED, 2, last=True)
    backend = modern()
    backend.fail(LISTEN, streamed(event(ack(2, toolsListChanged=True)), *map(event, [*messages, last])), times=1)
    async with open_scripted(backend) as bench:
        await bench.connect()
        await wait_all_tasks_blocked()
        assert [(TOOLS_CHANGED, {"last": True})] == heard(bench)


@pytest.mark.parametrize("fault", [Hang(), Hang("body"), Stall(200)])
async def test_the_acknowledgement_has_thirty_seconds(autojump_clock: MockClock, fault: Fault) -> None:
    """The acknowledgement must be the first message and come within 30 s; after it the stream may be silent."""
    backend = modern()
    backend.fail(LISTEN, fault, times=1)
    async with open_client(backend) as client:
        await silence(29.9)
        assert ("none", 1) == (listening(client), len(listens(backend)))
        await silence(1)
        assert ("open", 2) == (listening(client), len(listens(backend)))


# The end


@pytest.mark.parametrize("how", ["result", "without a word", "reset", "cancelled"])
async def test_however_it_ends_it_is_opened_again(autojump_clock: MockClock, how: str) -> None:
    """Notifications are not sent again, so after the new acknowledgement every kind in it counts as changed."""
    backend = modern(graceful=how != "without a word")
    async with open_scripted(backend) as bench:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        assert {} == await ask(client, "resources/subscribe", {"uri": "memo://one"})
        assert [] == bench.events
        (_, listen) = listens(backend)
        if how == "cancelled":
            backend.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 99}})
            await wait_all_tasks_blocked()
            assert "open" == listening(client)
            params = {"requestId": listen.request_id}
            backend.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
        elif how == "reset":
            backend.crash()
            backend._crashed = False
        else:
            backend.end_streams()
        await wait_all_tasks_blocked()
        assert ("retrying", []) == (listening(client), bench.events)
        await silence(1)
        assert "open" == listening(client)
        assert [
            (TOOLS_CHANGED, {}),
            ("notifications/resources/list_changed", {}),
            (UPDATED, {"uri": "memo://one"}),
        ] == bench.events
    assert ["memo://one"] == asked_for(listens(backend)[-1])["resourceSubscriptions"]


async def test_a_server_that_is_away_has_not_changed_yet(autojump_clock: MockClock) -> None:
    """The lists count as changed only after the new acknowledgement: fetched earlier, they might miss a change in
    between.
    """
    backend = modern()
    async with open_scripted(backend) as bench:
        await bench.connect()
        await wait_all_tasks_blocked()
        backend.fail(LISTEN, Status(503), times=3)
        backend.end_streams()
        await silence(2)
        assert [] == bench.events
        await silence(20)
        assert 2 == len(bench.events)


TROUBLE: list[Fault] = [
    Status(500),
    Status(429),
    Status(400),
    Status(401),
    Error(-32602, "no"),
    Error(-32603, "no"),
    Disconnect(0),
    Reset(0),
    Raw(b"not HTTP"),
    Status(200, b'{"jsonrpc":"2.0","id":2,"result":{"resultType":"complete"}}', {"content-type": "application/json"}),
    Status(200, b"hello", {"content-type": "text/plain"}),
    Status(202),
    streamed(),
    streamed(b": alive\n\n"),
    streamed(b"retry: 0\ndata: \n\n"),
    streamed(b"data: nonsense\n\n"),
    streamed(event(note(TOOLS_CHANGED, 2))),
]


@pytest.mark.parametrize("fault", TROUBLE, ids=lambda fault: repr(fault)[:60])
async def test_a_storm_ends(autojump_clock: MockClock, fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    """Eleven requests in ten virtual hours, then none; calls work, and `listen_again` starts anew. If a connection that
    was used before ends without a byte, the request is sent once more.
    """
    again = 1 if isinstance(fault, Disconnect | Reset) and not fault.after_bytes else 0
    backend = modern()
    rule = backend.fail(LISTEN, fault)
    async with open_client(backend) as client:
        await silence(10 * HOUR)
        assert ("ended", again + 1 + MOST_FRUITLESS) == (listening(client), len(listens(backend)))
        assert "not listening any more" in caplog.text
        assert (await call(client))["content"]
        rule.times = 0
        listen_again(client)
        await wait_all_tasks_blocked()
        assert "open" == listening(client)


# The set of resources


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Error(-32601, "method not found"), BackendRejected),
        (Status(503), BackendRejected),
        (Disconnect(0), BackendUnavailable),
        (streamed(), BackendUnavailable),
        (streamed(event(note(TOOLS_CHANGED, 2))), BackendProtocolError),
        (Hang(), BackendTimeout),
    ],
)
async def test_a_subscription_that_fails_changes_nothing(
    autojump_clock: MockClock, fault: Fault, error: type[BackendError]
) -> None:
    """The caller gets the error of the first attempt; the old stream goes on with the old set."""
    backend = modern()
    async with open_client(backend) as client:
        await wait_all_tasks_blocked()
        backend.fail(LISTEN, fault)
        for timeout in (40.0, 5.0) if error is BackendTimeout else (40.0,):
            with pytest.raises(error) as caught:
                await ask(client, "resources/subscribe", {"uri": "memo://one"}, timeout=timeout)
            assert "request_timeout" in str(caught.value) or timeout == 40
        await wait_all_tasks_blocked()
        assert (1, "open") == (backend.listening, listening(client))
        attempts = len(listens(backend))
        await silence(MAX_SILENCE / 2)
        assert attempts == len(listens(backend))
        backend.heal()
        assert {} == await ask(client, "resources/subscribe", {"uri": "memo://one"})


async def test_a_closed_client_opens_no_stream(autojump_clock: MockClock) -> None:
    """A closed client opens no stream, neither by itself nor for a subscriber."""
    backend = modern()
    async with open_client(backend) as client:
        await wait_all_tasks_blocked()
        await client.aclose(terminate=True)
        await silence(HOUR)
        assert (0, "none") == (backend.listening, listening(client))
        with pytest.raises(BackendUnavailable, match="its connection is closed"):
            await ask(client, "resources/subscribe", {"uri": "memo://one"})
        listen_again(client)
        await silence(HOUR)
    assert 1 == len(listens(backend))
