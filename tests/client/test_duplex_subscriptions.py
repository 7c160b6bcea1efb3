"""`subscriptions/listen` on a stream that carries everything else, too: as over HTTP, and beside calls."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import trio
from support.clients import ask, call, echo_backend
from support.duplex import LIMIT, Pair, open_pair
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON, BackendError, BackendProtocolError, BackendRejected, BackendTimeout, BackendUnavailable
from trio_vmcp.testing import Exchange, Hang, ScriptedBackend

HOUR = 3600.0
TOOLS_CHANGED, UPDATED = "notifications/tools/list_changed", "notifications/resources/updated"
RESOURCES_CHANGED = "notifications/resources/list_changed"
CANCELLED = "notifications/cancelled"
LISTEN = "subscriptions/listen"
TAG = "io.modelcontextprotocol/subscriptionId"


def telling(**more: Any) -> ScriptedBackend:
    backend = echo_backend("modern", listens=True, **more)
    backend.add_resource("memo://one")
    return backend


async def greet(pair: Pair) -> None:
    await pair.greet("modern")
    await wait_all_tasks_blocked()


async def silence(seconds: float) -> None:
    await trio.sleep(seconds)
    await wait_all_tasks_blocked()


def listens(backend: ScriptedBackend) -> list[Exchange]:
    return backend.received(LISTEN)


def told(pair: Pair) -> list[tuple[str, JSON]]:
    """The notifications received, without their tags."""
    return [(method, {key: value for key, value in params.items() if key != "_meta"}) for method, params in pair.events]


# What is asked for, and what comes


async def test_the_handshake_era_hears_without_asking(autojump_clock: MockClock) -> None:
    """A legacy backend notifies without a request, and a tag in its notifications is ignored."""
    backend = echo_backend("legacy", listens=True)
    async with open_pair(backend=backend, listens=True) as pair:
        await pair.greet("legacy")
        backend.notify(TOOLS_CHANGED)
        backend.send(note(TOOLS_CHANGED, 1))
        await wait_all_tasks_blocked()
        assert ([(TOOLS_CHANGED, {})] * 2, []) == (told(pair), listens(backend))


async def test_what_was_listed_before_is_in_doubt(autojump_clock: MockClock) -> None:
    """After the acknowledgement, lists that were fetched before it count as changed; those that are fetched later do
    not.
    """
    async with open_pair(listens=True) as pair:
        listen = await listened(pair, {"tools": {"listChanged": True}, "prompts": {"listChanged": True}})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, pair.client, "tools/list")
            await pair.server.answer(await pair.server.receive(), tools=[])
        assert [] == pair.events
        await pair.server.send(ack(listen, toolsListChanged=True, promptsListChanged=True))
        await wait_all_tasks_blocked()
        assert [(TOOLS_CHANGED, {})] == pair.events


# The end of a subscription


async def test_it_ends_with_the_connection(autojump_clock: MockClock) -> None:
    """The subscription ends with its connection, at once, and no further request is sent."""
    backend = telling()
    async with open_pair(backend=backend, listens=True) as pair:
        await greet(pair)
        await trio.aclose_forcefully(pair.server.stream)
        await wait_all_tasks_blocked()
        assert "none" == pair.client.listening
        with pytest.raises(BackendUnavailable, match="is not connected: it closed its stream"):
            await ask(pair.client, "resources/subscribe", {"uri": "memo://one"})
        await silence(HOUR)
    assert 1 == len(listens(backend))


async def test_a_loss_while_it_waits_to_come_back_is_an_end_too(autojump_clock: MockClock) -> None:
    """If the connection ends during a pause, the attempt that was due ends it."""
    backend = telling()
    async with open_pair(backend=backend, listens=True) as pair:
        await greet(pair)
        backend.end_streams()
        await wait_all_tasks_blocked()
        await trio.aclose_forcefully(pair.server.stream)
        await silence(HOUR)
        assert ("none", 1) == (pair.client.listening, len(listens(backend)))


# A new set


async def test_a_resource_that_was_subscribed_to_is_heard_of(autojump_clock: MockClock) -> None:
    """The new set is a new request; the old one is cancelled when the new one is acknowledged."""
    backend = telling()
    async with open_pair(backend=backend, listens=True) as pair:
        await greet(pair)
        assert {} == await ask(pair.client, "resources/subscribe", {"uri": "memo://one"})
        await wait_all_tasks_blocked()
        assert 1 == backend.listening
        backend.notify(UPDATED, {"uri": "memo://one"})
        backend.notify(UPDATED, {"uri": "memo://two"})
        backend.notify(TOOLS_CHANGED)
        await wait_all_tasks_blocked()
        assert [(UPDATED, {"uri": "memo://one"}), (TOOLS_CHANGED, {})] == told(pair)
        assert {} == await ask(pair.client, "resources/unsubscribe", {"uri": "memo://one"})
        backend.notify(UPDATED, {"uri": "memo://one"})
        await wait_all_tasks_blocked()
        assert 2 == len(pair.events)
    first, second, third = listens(backend)
    assert ["memo://one"] == second.params["notifications"]["resourceSubscriptions"]
    assert first.params["notifications"] == third.params["notifications"]
    taken_back = [exchange.params["requestId"] for exchange in backend.received(CANCELLED)]
    assert [first.request_id, second.request_id] == taken_back
    assert ("cancelled", "cancelled") == (first.outcome, second.outcome)
    assert [] == backend.errors


async def test_a_subscription_that_is_given_up_leaves_the_one_before(autojump_clock: MockClock) -> None:
    """A new subscription that its caller gives up is cancelled, acknowledged or not, and the old one stays."""
    backend = telling()
    async with open_pair(backend=backend, listens=True) as pair:
        await greet(pair)
        backend.fail(LISTEN, Hang())
        with pytest.raises(BackendTimeout, match=r"did not answer 'resources/subscribe' within 5 s"):
            await ask(pair.client, "resources/subscribe", {"uri": "memo://one"}, timeout=5)
        await wait_all_tasks_blocked()
        first, second = listens(backend)
        assert [second.request_id] == [exchange.params["requestId"] for exchange in backend.received(CANCELLED)]
        backend.notify(TOOLS_CHANGED)
        await wait_all_tasks_blocked()
        assert ([(TOOLS_CHANGED, {})], "running") == (told(pair), first.outcome)


# Wrong answers


async def listened(pair: Pair, capabilities: JSON | None = None) -> JSON:
    """The `subscriptions/listen` request of a client; the test is its server."""
    pair.adopt({"capabilities": {"tools": {"listChanged": True}} if capabilities is None else capabilities})
    listen = await pair.server.receive()
    assert LISTEN == listen["method"]
    return listen


def note(method: str, tag: object, **params: Any) -> JSON:
    return {"jsonrpc": "2.0", "method": method, "params": params | {"_meta": {TAG: tag}}}


def ack(listen: JSON, **wanted: Any) -> JSON:
    return note("notifications/subscriptions/acknowledged", listen["id"], notifications=wanted)


async def test_what_has_no_place_there_is_not_heard(autojump_clock: MockClock) -> None:
    """A notification before the acknowledgement: the subscription is cancelled, another is opened, and the reader goes
    on.
    """
    async with open_pair(listens=True) as pair:
        listen = await listened(pair)
        await pair.server.send(note(TOOLS_CHANGED, listen["id"]), note(TOOLS_CHANGED, listen["id"]))
        taken_back, again = await pair.server.receive(), await pair.server.receive()
        assert (CANCELLED, listen["id"]) == (taken_back["method"], taken_back["params"]["requestId"])
        await pair.server.send(ack(again, toolsListChanged=True), note(TOOLS_CHANGED, again["id"]))
        await wait_all_tasks_blocked()
        assert ("open", (TOOLS_CHANGED, {})) == (pair.client.listening, told(pair)[-1])


@pytest.mark.parametrize("tag", ["1", 1.0, 99, None, True, [], {}])
async def test_an_unknown_tag_is_ignored(autojump_clock: MockClock, tag: object) -> None:
    """A tag of another type or value is ignored. A notification without a tag belongs to no subscription, and is
    delivered.
    """
    async with open_pair(listens=True) as pair:
        listen = await listened(pair)
        assert 1 == listen["id"]
        await pair.server.send(ack(listen, toolsListChanged=True), note(TOOLS_CHANGED, tag))
        await pair.server.send({"jsonrpc": "2.0", "method": CANCELLED, "params": {"requestId": tag}})
        await wait_all_tasks_blocked()
        assert ("open", []) == (pair.client.listening, pair.events)
        await pair.server.send({"jsonrpc": "2.0", "method": RESOURCES_CHANGED})
        await wait_all_tasks_blocked()
        assert [(RESOURCES_CHANGED, {})] == told(pair)


async def test_what_is_not_honoured_is_taken_back(autojump_clock: MockClock) -> None:
    """If nothing of the set is acknowledged, the subscription is cancelled and not asked for again."""
    async with open_pair(listens=True) as pair:
        listen = await listened(pair)
        await pair.server.send(ack(listen), note(TOOLS_CHANGED, listen["id"]))
        taken_back = await pair.server.receive()
        assert (CANCELLED, listen["id"]) == (taken_back["method"], taken_back["params"]["requestId"])
        await silence(HOUR)
        assert ("none", []) == (pair.client.listening, pair.events)


async def test_behind_its_end_nothing_is_heard(autojump_clock: MockClock) -> None:
    """Notifications behind the end of a subscription are ignored, even in the same piece of bytes."""
    async with open_pair(listens=True) as pair:
        listen = await listened(pair)
        end: JSON = {"jsonrpc": "2.0", "method": CANCELLED, "params": {"requestId": listen["id"]}}
        lines = ack(listen, toolsListChanged=True), end, note(TOOLS_CHANGED, listen["id"])
        await pair.server.send(b"\n".join(json.dumps(line).encode() for line in lines))
        await wait_all_tasks_blocked()
        assert ("retrying", []) == (pair.client.listening, pair.events)


async def test_what_was_never_sent_is_not_taken_back(autojump_clock: MockClock) -> None:
    """The backend does not read: a subscription that is still queued is removed without a cancel, and other queued
    lines stay.
    """
    async with open_pair(listens=True) as pair:
        await pair.clog()
        pair.adopt({"capabilities": {"tools": {"listChanged": True}}})
        await wait_all_tasks_blocked()
        assert [LISTEN] == [json.loads(outgoing.data)["method"] for outgoing in pair.channel._queue]
        await silence(31)  # not acknowledged in time
        assert [LISTEN] == [json.loads(outgoing.data)["method"] for outgoing in pair.channel._queue]


async def asked(pair: Pair, errors: list[BackendError]) -> None:
    try:
        await call(pair.client)
    except BackendError as error:
        errors.append(error)


async def test_an_error_without_an_id_is_a_call_s(autojump_clock: MockClock) -> None:
    """An error without an id fails the waiting call, not the subscription; with no call waiting it ends the
    subscription.
    """
    async with open_pair(listens=True) as pair, trio.open_nursery() as nursery:
        listen = await listened(pair)
        await pair.server.send(ack(listen, toolsListChanged=True))
        errors: list[BackendError] = []
        nursery.start_soon(asked, pair, errors)
        await pair.server.receive()
        no_id = {"jsonrpc": "2.0", "error": {"code": -32000, "message": "broken"}}
        await pair.server.send(no_id)
        await wait_all_tasks_blocked()
        assert ([BackendRejected], "open") == ([type(error) for error in errors], pair.client.listening)
        await pair.server.send(no_id)
        await wait_all_tasks_blocked()
        assert "retrying" == pair.client.listening


async def test_a_line_over_the_limit_is_a_call_s(autojump_clock: MockClock) -> None:
    """A line over the limit fails the waiting call, and the subscription goes on."""
    async with open_pair(listens=True) as pair, trio.open_nursery() as nursery:
        listen = await listened(pair)
        await pair.server.send(ack(listen, toolsListChanged=True))
        errors: list[BackendError] = []
        nursery.start_soon(asked, pair, errors)
        await pair.server.receive()
        await pair.server.send(b'{"x": "' + b"x" * LIMIT + b'"}')
        await wait_all_tasks_blocked()
        assert (["MessageTooLarge"], "open") == ([type(error).__name__ for error in errors], pair.client.listening)


async def test_a_bad_answer_says_nothing_of_the_subscription(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """After a malformed answer the subscription may go on at the backend, so it is cancelled before another is
    opened.
    """
    caplog.set_level(logging.DEBUG)
    async with open_pair(listens=True) as pair:
        listen = await listened(pair)
        await pair.server.send({"jsonrpc": "2.0", "id": listen["id"], "result": 5})
        taken_back, again = await pair.server.receive(), await pair.server.receive()
        assert (CANCELLED, listen["id"]) == (taken_back["method"], taken_back["params"]["requestId"])
        assert LISTEN == again["method"]
    assert BackendProtocolError("b", "sent a message that").detail in caplog.text
