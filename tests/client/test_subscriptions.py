"""Subscriptions to changes: what they ask for and deliver, how they end and begin anew. The same over every channel."""

from __future__ import annotations

import pytest
import trio
from support.channels import EVERY_CHANNEL, EVERY_MODERN_CHANNEL, Channel
from support.clients import ASKED, ask, call, listening
from support.subscribed import LISTEN, TOOLS_CHANGED, UPDATED, asked_for, heard, listens, silence
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON, BackendError, BackendRejected, BackendTimeout, BackendUnavailable
from trio_vmcp._client.listening import MAX_SILENCE, MOST_FRUITLESS
from trio_vmcp.testing import Delay, Error, Fault, Hang, ScriptedBackend

HOUR = 3600.0
RESOURCES_CHANGED = "notifications/resources/list_changed"


def telling(channel: Channel, **options: object) -> ScriptedBackend:
    """A backend that notifies of changes, with one resource."""
    backend = channel.backend(**{"listens": True, **options})
    backend.add_resource("memo://one")
    return backend


# What is asked for


@EVERY_MODERN_CHANNEL
async def test_declared_changes_are_asked_for_and_heard(channel: Channel, autojump_clock: MockClock) -> None:
    """By one request for as long as the connection lasts; calls go on beside it."""
    backend = telling(channel)
    async with channel.open_bench(backend) as bench:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        assert ("open", 1) == (listening(client), backend.listening)
        await silence(MAX_SILENCE - 1)
        assert (await call(client))["content"]
        backend.notify(TOOLS_CHANGED)
        backend.notify(RESOURCES_CHANGED)
        backend.notify("notifications/prompts/list_changed")  # not declared, so not subscribed to
        await wait_all_tasks_blocked()
        assert [(TOOLS_CHANGED, {}), (RESOURCES_CHANGED, {})] == heard(bench)
    (listen,) = listens(backend)
    assert {"toolsListChanged": True, "resourcesListChanged": True} == asked_for(listen)
    assert "2026-07-28" == listen.meta["io.modelcontextprotocol/protocolVersion"]


@EVERY_MODERN_CHANNEL
@pytest.mark.parametrize(
    ("capabilities", "options"),
    [
        ({"tools": {}, "resources": {"subscribe": True}}, {}),
        ({"tools": {"listChanged": 1}}, {}),
        ({"tools": {"listChanged": True}}, {"listen": False}),
        ({"tools": {}}, {"handlers": ASKED}),
    ],
    ids=["no changes declared", "no flag", "not wanted", "handlers only"],
)
async def test_without_a_need_nothing_is_asked_for(
    channel: Channel, capabilities: JSON, options: JSON, autojump_clock: MockClock
) -> None:
    """Modern backends send no requests, so handlers are no need."""
    backend = telling(channel, capabilities=capabilities)
    async with channel.open_client(backend, **options) as client:
        await silence(HOUR)
        assert ("none", []) == (listening(client), listens(backend))


@EVERY_MODERN_CHANNEL
@pytest.mark.parametrize("status", [200, 404])
async def test_a_backend_without_subscriptions_is_asked_once(
    channel: Channel, status: int, autojump_clock: MockClock
) -> None:
    """-32601, whatever it declares. Calls work, and a subscription is refused with the backend's words."""
    backend = telling(channel)
    backend.fail(LISTEN, Error(-32601, "method not found", status=status))
    async with channel.open_client(backend) as client:
        await silence(HOUR)
        assert ("none", 1) == (listening(client), len(listens(backend)))
        assert (await call(client))["content"]
        with pytest.raises(BackendRejected, match="rejected 'subscriptions/listen'"):
            await ask(client, "resources/subscribe", {"uri": "memo://one"})


# The acknowledgement


@EVERY_MODERN_CHANNEL
async def test_only_what_was_acknowledged_is_heard(channel: Channel, autojump_clock: MockClock) -> None:
    """The backend acknowledges a part of the set, and notifies of more: only the part is delivered."""
    backend = telling(channel, honours=lambda wanted: {"toolsListChanged": True})
    async with channel.open_bench(backend) as bench:
        await bench.connect()
        await wait_all_tasks_blocked()
        backend.send({"jsonrpc": "2.0", "method": RESOURCES_CHANGED, "params": {}})
        backend.send({"jsonrpc": "2.0", "method": TOOLS_CHANGED, "params": {}})
        await wait_all_tasks_blocked()
        assert [(TOOLS_CHANGED, {})] == heard(bench)


@EVERY_MODERN_CHANNEL
@pytest.mark.parametrize("agreed", [{}, {"toolsListChanged": False}, {"promptsListChanged": True}, {"x": 1}], ids=str)
async def test_a_backend_that_honours_nothing_is_left_alone(
    channel: Channel, agreed: JSON, autojump_clock: MockClock
) -> None:
    """The request is cancelled, since it can bring no notification."""
    backend = telling(channel, honours=lambda wanted: agreed)
    async with channel.open_client(backend) as client:
        await silence(HOUR)
        assert ("none", 1, 0) == (listening(client), len(listens(backend)), backend.listening)


@EVERY_MODERN_CHANNEL
async def test_an_acknowledgement_has_thirty_seconds(channel: Channel, autojump_clock: MockClock) -> None:
    """It must be the first message; after it a stream may be silent. Without it the request is cancelled and
    sent anew.
    """
    backend = telling(channel)
    backend.fail(LISTEN, Hang(), times=1)
    async with channel.open_client(backend) as client:
        await silence(29.9)
        assert ("none", 1) == (listening(client), len(listens(backend)))
        await silence(1)
        assert ("open", 2, 1) == (listening(client), len(listens(backend)), backend.listening)


# The end


@EVERY_MODERN_CHANNEL
@pytest.mark.parametrize("how", ["result", "without a result", "cancelled"])
async def test_a_subscription_that_ends_begins_anew(channel: Channel, how: str, autojump_clock: MockClock) -> None:
    """After the new acknowledgement everything in it counts as changed: missed notifications are not sent again."""
    backend = telling(channel, graceful=how != "without a result")
    async with channel.open_bench(backend) as bench:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        assert {} == await ask(client, "resources/subscribe", {"uri": "memo://one"})
        await wait_all_tasks_blocked()
        given_up = len(backend.received("notifications/cancelled"))
        assert [] == bench.events
        if how == "cancelled":
            _, listen = listens(backend)
            backend.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 99}})
            await wait_all_tasks_blocked()
            assert "open" == listening(client)
            params = {"requestId": listen.request_id}
            backend.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
        else:
            backend.end_streams()
        await wait_all_tasks_blocked()
        assert ("retrying", []) == (listening(client), bench.events)
        await silence(1)
        assert "open" == listening(client)
        assert [(TOOLS_CHANGED, {}), (RESOURCES_CHANGED, {}), (UPDATED, {"uri": "memo://one"})] == heard(bench)
        assert given_up == len(backend.received("notifications/cancelled"))
    assert ["memo://one"] == asked_for(listens(backend)[-1])["resourceSubscriptions"]


@EVERY_MODERN_CHANNEL
@pytest.mark.parametrize("graceful", [True, False])
async def test_subscriptions_that_end_at_once_are_given_up(
    channel: Channel, graceful: bool, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Eleven in ten hours, then none: an acknowledgement alone does not reset the pauses. Calls work."""
    backend = telling(channel, stream_seconds=0, graceful=graceful)
    async with channel.open_bench(backend) as bench:
        client = await bench.connect()
        await silence(10 * HOUR)
        assert ("ended", 1 + MOST_FRUITLESS) == (listening(client), len(listens(backend)))
        assert 2 * MOST_FRUITLESS == len(bench.events)
        assert "not listening any more" in caplog.text
        assert (await call(client))["content"]


@EVERY_MODERN_CHANNEL
@pytest.mark.parametrize("fault", [Error(-32602, "no"), Error(-32603, "no")], ids=str)
async def test_refusals_are_asked_again_ten_times(
    channel: Channel, fault: Fault, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal may be temporary; calls work meanwhile."""
    backend = telling(channel)
    backend.fail(LISTEN, fault)
    async with channel.open_client(backend) as client:
        await silence(10 * HOUR)
        assert ("ended", 1 + MOST_FRUITLESS) == (listening(client), len(listens(backend)))
        assert "not listening any more" in caplog.text
        assert (await call(client))["content"]


@EVERY_MODERN_CHANNEL
async def test_subscriptions_that_end_after_a_minute_begin_anew_for_ever(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """Gateways end idle streams."""
    backend = telling(channel, stream_seconds=60)
    async with channel.open_client(backend) as client:
        await silence(HOUR)
        assert 58 <= len(listens(backend)) <= 60
        await silence(5)
        assert "open" == listening(client)


@EVERY_MODERN_CHANNEL
async def test_a_closed_client_subscribes_no_more(channel: Channel, autojump_clock: MockClock) -> None:
    """Neither by itself nor for a caller."""
    backend = telling(channel)
    async with channel.open_client(backend) as client:
        await wait_all_tasks_blocked()
        await client.aclose(terminate=True)
        await silence(HOUR)
        assert (0, "none") == (backend.listening, listening(client))
        with pytest.raises(BackendUnavailable):
            await ask(client, "resources/subscribe", {"uri": "memo://one"})
        await silence(HOUR)
    assert 1 == len(listens(backend))


# Resources


@EVERY_CHANNEL
async def test_a_subscribed_resource_is_heard_of(channel: Channel, autojump_clock: MockClock) -> None:
    """By a request of its own in the legacy era, by a new set in `subscriptions/listen` in the modern one."""
    backend = telling(channel)
    async with channel.open_bench(backend) as bench:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        assert {} == await ask(client, "resources/subscribe", {"uri": "memo://one"})
        await wait_all_tasks_blocked()
        backend.notify(UPDATED, {"uri": "memo://one"})
        backend.notify(TOOLS_CHANGED)
        await wait_all_tasks_blocked()
        assert [(UPDATED, {"uri": "memo://one"}), (TOOLS_CHANGED, {})] == heard(bench)
        assert {} == await ask(client, "resources/unsubscribe", {"uri": "memo://one"})
    requests = len(backend.received("resources/subscribe")), len(backend.received("resources/unsubscribe"))
    assert ((0, 0) if channel.is_modern else (1, 1)) == requests


@EVERY_MODERN_CHANNEL
async def test_a_new_set_is_acknowledged_before_the_old_one_ends(channel: Channel, autojump_clock: MockClock) -> None:
    """So no change is missed in between, and none is delivered twice."""
    backend = telling(channel)
    backend.fail(lambda exchange: "resourceSubscriptions" in (exchange.params.get("notifications") or {}), Delay(5))
    async with channel.open_bench(backend) as bench, trio.open_nursery() as nursery:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        nursery.start_soon(lambda: ask(client, "resources/subscribe", {"uri": "memo://one"}))
        await silence(4)
        assert (1, "open") == (backend.listening, listening(client))
        backend.notify(TOOLS_CHANGED)
        await silence(2)
        assert (1, "open") == (backend.listening, listening(client))
        backend.notify(TOOLS_CHANGED)
        backend.notify(UPDATED, {"uri": "memo://one"})
        backend.notify(UPDATED, {"uri": "memo://two"})
        await wait_all_tasks_blocked()
        assert [(TOOLS_CHANGED, {}), (TOOLS_CHANGED, {}), (UPDATED, {"uri": "memo://one"})] == heard(bench)
        assert {} == await ask(client, "resources/unsubscribe", {"uri": "memo://one"})
        await wait_all_tasks_blocked()
        assert 1 == backend.listening
        backend.notify(UPDATED, {"uri": "memo://one"})
        await wait_all_tasks_blocked()
        assert 3 == len(bench.events)
    first, second, third = listens(backend)
    assert {**asked_for(first), "resourceSubscriptions": ["memo://one"]} == asked_for(second)
    assert asked_for(first) == asked_for(third)
    assert ("cancelled", "cancelled") == (first.outcome, second.outcome)


@EVERY_MODERN_CHANNEL
async def test_only_what_changes_the_set_is_sent(channel: Channel, autojump_clock: MockClock) -> None:
    """A second subscription to the same resource, or the end of one that does not exist, changes nothing."""
    backend = telling(channel)
    async with channel.open_client(backend) as client:
        await wait_all_tasks_blocked()
        for uri in ("memo://one", "memo://one", "memo://two"):
            assert {} == await ask(client, "resources/subscribe", {"uri": uri})
        assert {} == await ask(client, "resources/unsubscribe", {"uri": "memo://three"})
    wanted = [asked_for(listen).get("resourceSubscriptions") for listen in listens(backend)]
    assert [None, ["memo://one"], ["memo://one", "memo://two"]] == wanted


@EVERY_MODERN_CHANNEL
async def test_resources_alone_are_a_need(channel: Channel, autojump_clock: MockClock) -> None:
    """`Backend(listen=False)` is about changes of lists; the last unsubscription ends the request."""
    backend = telling(channel)
    async with channel.open_client(backend, listen=False) as client:
        await ask(client, "resources/subscribe", {"uri": "memo://one"})
        await wait_all_tasks_blocked()
        assert (1, "open") == (backend.listening, listening(client))
        await ask(client, "resources/unsubscribe", {"uri": "memo://one"})
        await wait_all_tasks_blocked()
        assert (0, "none") == (backend.listening, listening(client))
    assert [{"resourceSubscriptions": ["memo://one"]}] == [asked_for(listen) for listen in listens(backend)]


@EVERY_MODERN_CHANNEL
async def test_many_subscriptions_at_once_follow_each_other(channel: Channel, autojump_clock: MockClock) -> None:
    """None of them is lost."""
    backend = telling(channel, latency=0.1)
    async with channel.open_client(backend) as client, trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(ask, client, "resources/subscribe", {"uri": f"memo://{number}"})
        await silence(2)
        assert 1 == backend.listening
        assert {f"memo://{n}" for n in range(5)} == {*asked_for(listens(backend)[-1])["resourceSubscriptions"]}


@EVERY_MODERN_CHANNEL
async def test_a_resource_that_is_not_honoured_is_refused(channel: Channel, autojump_clock: MockClock) -> None:
    """The subscription as it was goes on."""
    backend = telling(channel, honours=lambda wanted: {name: value for name, value in wanted.items() if value is True})
    async with channel.open_client(backend) as client:
        await wait_all_tasks_blocked()
        with pytest.raises(BackendRejected, match="does not tell of changes of the resource 'memo://one'"):
            await ask(client, "resources/subscribe", {"uri": "memo://one"})
        await wait_all_tasks_blocked()
        assert (1, "open") == (backend.listening, listening(client))
        assert "resourceSubscriptions" not in asked_for(listens(backend)[0])
    assert 2 == len(listens(backend))


@EVERY_MODERN_CHANNEL
@pytest.mark.parametrize(
    ("fault", "error", "timeout"),
    [
        (Error(-32601, "method not found"), BackendRejected, 40.0),
        (Error(-32603, "broken"), BackendRejected, 40.0),
        (Hang(), BackendTimeout, 40.0),
        (Hang(), BackendTimeout, 5.0),
    ],
    ids=["no such method", "broken", "no acknowledgement", "timeout"],
)
async def test_a_subscription_that_fails_changes_nothing(
    channel: Channel, fault: Fault, error: type[BackendError], timeout: float, autojump_clock: MockClock
) -> None:
    """The caller gets the error of the first attempt; the subscription as it was goes on."""
    backend = telling(channel)
    async with channel.open_bench(backend) as bench:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        backend.fail(LISTEN, fault)
        with pytest.raises(error) as caught:
            await ask(client, "resources/subscribe", {"uri": "memo://one"}, timeout=timeout)
        assert ("did not answer 'resources/subscribe' within 5" in str(caught.value)) == (timeout == 5)
        await wait_all_tasks_blocked()
        assert (1, "open", 2) == (backend.listening, listening(client), len(listens(backend)))
        await silence(MAX_SILENCE / 2)
        backend.notify(TOOLS_CHANGED)
        await wait_all_tasks_blocked()
        assert ([(TOOLS_CHANGED, {})], 2) == (heard(bench), len(listens(backend)))
        backend.heal()
        assert {} == await ask(client, "resources/subscribe", {"uri": "memo://one"})


@EVERY_MODERN_CHANNEL
async def test_a_cancelled_subscriber_leaves_everything_as_it_was(channel: Channel, autojump_clock: MockClock) -> None:
    """The request that was to replace the other is cancelled."""
    backend = telling(channel)
    async with channel.open_client(backend) as client:
        await wait_all_tasks_blocked()
        backend.fail(LISTEN, Hang())
        with trio.move_on_after(1):
            await ask(client, "resources/subscribe", {"uri": "memo://one"})
        await wait_all_tasks_blocked()
        assert (1, "open", 1) == (backend.listening, listening(client), backend.in_flight)


@EVERY_CHANNEL
async def test_a_uri_that_is_no_text_is_the_callers_error(channel: Channel, autojump_clock: MockClock) -> None:
    """A URI with a lone surrogate cannot be sent. The subscription as it was goes on."""
    backend = telling(channel)
    async with channel.open_bench(backend) as bench:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        with pytest.raises(ValueError, match=r"params of '.*' cannot be sent as JSON: params.* holds a lone"):
            await ask(client, "resources/subscribe", {"uri": "memo://\ud800"})
        backend.notify(TOOLS_CHANGED)
        await wait_all_tasks_blocked()
        assert [(TOOLS_CHANGED, {})] == heard(bench)
