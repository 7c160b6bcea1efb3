"""Streams of calls, when connections break at the worst moment."""

from __future__ import annotations

import pytest
import trio
from support.front import FrontWorld, LegacyClient, Received, front_world
from support.harness import echo_backend, slow_backend
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON
from trio_vmcp.serve import ServeSettings
from trio_vmcp.testing import CallContext, ScriptedBackend


def telling_backend(seconds: float) -> ScriptedBackend:
    """A backend with a tool that reports progress at once, and ends after so long."""
    backend = echo_backend("legacy", "sse", listens=True)

    async def tell(arguments: JSON, context: CallContext) -> str:
        await context.progress(1)
        await trio.sleep(seconds)
        return "told"

    backend.add_tool("tell", tell)
    return backend


async def begin_call(world: FrontWorld) -> tuple[LegacyClient, Received]:
    """A call whose stream is open, and has an id to resume from."""
    client = await world.initialize()
    call = client.start("tools/call", {"name": "a_tell", "_meta": {"progressToken": 1}}, request_id=5)
    await call.wait_messages(1)
    assert call.events[0][0] is not None
    return client, call


def text_of(received: Received) -> str:
    assert 5 == received.answer["id"]
    text: str = received.answer["result"]["content"][0]["text"]
    return text


@pytest.mark.parametrize("seconds", [0.1, 0.2, 0.3, 1.0])
async def test_a_response_that_a_dead_connection_swallowed_is_sent_again(
    seconds: float, autojump_clock: MockClock
) -> None:
    """The server had no reason yet to notice that the connection is dead, and has written the response to it."""
    async with front_world(telling_backend(seconds)) as world:
        client, call = await begin_call(world)
        call.leave()
        await trio.sleep(2)
        resumed = client.listen(call.events[0][0])
        await resumed.done.wait()
        assert "told" == text_of(resumed)


async def test_the_death_of_the_old_connection_does_not_end_the_new_one(autojump_clock: MockClock) -> None:
    """A client may come back before its old connection is known to be dead; then the call is not abandoned."""
    settings = ServeSettings(abandoned_after=5.0)
    async with front_world(telling_backend(20.0), settings=settings) as world:
        client, call = await begin_call(world)
        await trio.sleep(1)
        resumed = client.listen(call.events[0][0])
        await trio.sleep(1)
        call.leave()
        await resumed.done.wait()
        assert "told" == text_of(resumed)


async def test_the_last_of_several_connections_gets_the_response(autojump_clock: MockClock) -> None:
    """Each resume takes the place of the one before, whose end does not count as the client's."""
    settings = ServeSettings(abandoned_after=5.0)
    async with front_world(telling_backend(20.0), settings=settings) as world:
        client, call = await begin_call(world)
        connections = [call]
        for _ in range(3):
            connections.append(client.listen(call.events[0][0]))
            await trio.sleep(1)
        for connection in connections[:-1]:
            connection.leave()
        await connections[-1].done.wait()
        assert "told" == text_of(connections[-1])


@pytest.mark.parametrize("resumes", [0, 1, 2])
async def test_a_call_is_not_abandoned_while_the_head_of_its_new_stream_is_written(
    resumes: int, autojump_clock: MockClock
) -> None:
    """The connection before may end in that moment: the first one, which sent the call, or one that resumed it."""
    settings = ServeSettings(abandoned_after=5.0)
    async with front_world(telling_backend(20.0), settings=settings) as world:
        client, old = await begin_call(world)
        event_id = old.events[0][0]
        for _ in range(resumes):
            old.leave()
            old = client.listen(event_id)
            await trio.sleep(1)
        new = client.listen(event_id)
        new.blocked = trio.Event()
        await wait_all_tasks_blocked()
        old.leave()
        await trio.sleep(1)
        new.blocked.set()
        await new.done.wait()
        assert "told" == text_of(new)


@pytest.mark.parametrize("later", ["first", "second"])
async def test_of_two_connections_whose_heads_wait_the_newer_one_reads(later: str, autojump_clock: MockClock) -> None:
    """Whichever head is written first."""
    async with front_world(telling_backend(20.0)) as world:
        client, call = await begin_call(world)
        call.leave()
        connections = {}
        for name in ("first", "second"):
            connections[name] = client.listen(call.events[0][0])
            connections[name].blocked = trio.Event()
            await wait_all_tasks_blocked()
        for connection in sorted(connections.values(), key=lambda each: each is connections[later]):
            assert connection.blocked is not None
            connection.blocked.set()
            await wait_all_tasks_blocked()
        await connections["second"].done.wait()
        assert "told" == text_of(connections["second"])
        assert [] == connections["first"].messages


async def test_a_resumed_stream_begins_with_an_id(autojump_clock: MockClock) -> None:
    """Of its own: clients forget the id that they came with, and would come back without one if this connection breaks
    as well (typescript-sdk#2499). A client that is behind gets the ids of its events.
    """
    async with front_world(telling_backend(20.0)) as world:
        client, call = await begin_call(world)
        seen = [event_id for event_id, _ in call.events]
        connection = call
        for _ in range(3):
            connection.leave()
            await trio.sleep(1)
            connection = client.listen(seen[-1])
            await trio.sleep(1)
            ((event_id, message),) = connection.events
            assert (None, False) == (message, event_id in seen)
            seen.append(event_id)
        behind = client.listen(seen[0])
        await trio.sleep(1)
        assert seen[1:] == [event_id for event_id, _ in behind.events]
        await behind.done.wait()
        assert "told" == text_of(behind)


@pytest.mark.parametrize("number", [3, 999, 10**17])
async def test_an_event_id_that_never_was_hides_no_later_event(number: int, autojump_clock: MockClock) -> None:
    """The stream goes on behind its newest event."""
    async with front_world(telling_backend(1.0)) as world:
        client, call = await begin_call(world)
        stream, _, _ = str(call.events[0][0]).rpartition("-")
        resumed = client.listen(f"{stream}-{number}")
        await resumed.done.wait()
        assert "told" == text_of(resumed)


async def test_a_client_keeps_few_answered_streams_and_for_a_while(autojump_clock: MockClock) -> None:
    """Their number and time are bounded: each holds a whole response."""
    settings = ServeSettings(abandoned_after=5.0)
    async with front_world(telling_backend(0.0), settings=settings) as world:
        client = await world.initialize()
        calls = [await client.ask("tools/call", {"name": "a_tell", "_meta": {"progressToken": 1}}) for _ in range(20)]
        for call, is_kept in ((calls[0], False), (calls[4], True), (calls[-1], True)):
            resumed = client.listen(call.events[0][0])
            await resumed.done.wait()
            assert (200 if is_kept else 400) == resumed.status
            assert is_kept == resumed.is_stream
        await trio.sleep(6)
        resumed = client.listen(calls[-1].events[0][0])
        await resumed.done.wait()
        assert 400 == resumed.status


@pytest.mark.parametrize("event_id", ["expired", "00000000.1-1", "00000000.7-999", "x", "\xe9", "1" * 5000])
async def test_a_stream_that_is_not_kept_is_refused(event_id: str, autojump_clock: MockClock) -> None:
    """400, and the stream outside of requests is left to its reader: "the server MUST NOT replay messages that would
    have been delivered on a different stream" (2025-11-25, transports). 404 would say that the session is gone.
    """
    settings = ServeSettings(abandoned_after=5.0)
    async with front_world(telling_backend(0.0), settings=settings) as world:
        client, call = await begin_call(world)
        listening = client.listen()
        await trio.sleep(6)
        refused = client.listen(call.events[0][0] if event_id == "expired" else event_id)
        with trio.fail_after(1):
            await refused.done.wait()
        assert (400, -32600) == (refused.status, refused.json["error"]["code"])
        assert not listening.done.is_set()


@pytest.mark.parametrize("ended", ["withdrawn", "answered"])
async def test_a_stream_that_the_client_has_to_its_end_is_refused(ended: str, autojump_clock: MockClock) -> None:
    """400. Clients of the SDKs resume a stream that ended without a response, and would do so again and again, or go on
    with the stream outside of requests, where the response of a withdrawn request comes just as little.
    """
    async with front_world(telling_backend(3.0)) as world:
        client, call = await begin_call(world)
        listening = client.listen()
        if ended == "withdrawn":
            await client.notify("notifications/cancelled", {"requestId": 5})
        await call.done.wait()
        before_the_end, at_the_end = call.events[-2][0], call.events[-1][0]
        refused = client.listen(at_the_end)
        with trio.fail_after(1):
            await refused.done.wait()
        assert (400, -32600) == (refused.status, refused.json["error"]["code"])
        rest = client.listen(before_the_end)
        with trio.fail_after(1):
            await rest.done.wait()
        assert call.events[-1:] == rest.events
        assert not listening.done.is_set()


@pytest.mark.parametrize("event_id", [None, "", "00000000.0-9"])
async def test_the_stream_outside_of_requests_begins_anew_for_a_client_of_another_process(
    event_id: str | None, autojump_clock: MockClock
) -> None:
    """It has no end, so the client goes on listening, and what it may have missed counts as changed."""
    async with front_world(telling_backend(0.0)) as world:
        client, _ = await begin_call(world)
        listening = client.listen(event_id)
        await trio.sleep(5)
        world.backends["a"].add_tool("late")
        world.backends["a"].notify("notifications/tools/list_changed")
        await listening.wait_messages(1)


@pytest.mark.parametrize("kind", ["initialize", "batch", "call"])
async def test_a_drain_waits_for_each_kind_of_request(kind: str, autojump_clock: MockClock) -> None:
    """`initialize` and a batch have no stream, and are requests under way all the same."""
    backend = slow_backend(3.0)
    async with front_world(backend) as world:
        client = await world.initialize(version="2025-03-26")
        call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "a_slow"}}
        backend.latency = 3.0
        params = {"protocolVersion": "2025-11-25", "capabilities": {}}
        begin = {"jsonrpc": "2.0", "id": 7, "method": "initialize", "params": params}
        message = {"initialize": begin, "batch": [call], "call": call}[kind]
        headers = {} if kind == "initialize" else {"mcp-session-id": client.session_id}
        reply = world.start_post(message, headers)
        await trio.sleep(1)
        await world.app.drain()
        assert reply.done.is_set()
        assert 200 == reply.status
        refused = await world.post(message, headers)
        assert (503, None if kind == "batch" else 7) == (refused.status, refused.json["id"])
