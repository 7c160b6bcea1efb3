"""The built-in transport: when connections are reused or closed, and what faults, limits and cancels cost."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
import trio
from support.cancel_sweep import cancel_at
from support.raw_http import (
    CLOSE,
    HANG,
    OK,
    RESET,
    Kind,
    RawServer,
    Served,
    answer,
    client_context,
    open_served,
    read,
    server_context,
    until,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp._http.connection import READ_BYTES
from trio_vmcp._http.dial import ConnectedStream
from trio_vmcp._http.keep_alive import ASSUMED_EXPIRY
from trio_vmcp._http.origin import Origin
from trio_vmcp._http.response import MAX_HEAD_BYTES, encode_head
from trio_vmcp._http.transport import MAY_REPEAT, MOST_IDLE, Http11Transport
from trio_vmcp.testing import MemoryNetwork, ScriptedBackend, open_memory_network

KIB, MIB = 1 << 10, 1 << 20
LINE = b"HTTP/1.1 200 OK\r\n"
CHUNKED = LINE + b"Transfer-Encoding: chunked\r\n\r\n"

kinds = pytest.mark.parametrize("kind", ["memory", "tcp", "tls"])


async def many(served: Served, count: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(served.ask)


# Connections that are made ahead

AHEAD = Origin("http", "b.test", 80)
REFUSED = Origin("http", "b.test", 81)


@asynccontextmanager
async def open_ahead(origin: Origin, count: int) -> AsyncIterator[tuple[Http11Transport, MemoryNetwork, trio.Nursery]]:
    """A transport that has begun to make `count` connections, and the nursery that does so. Each takes a second."""

    async def own(*, task_status: trio.TaskStatus[trio.Nursery]) -> None:  # noqa: ASYNC114  # used below
        async with trio.open_nursery() as owner:
            task_status.started(owner)
            await trio.sleep_forever()

    async with open_memory_network(connect_latency=1.0) as network, trio.open_nursery() as nursery:
        network.attach(AHEAD.host, ScriptedBackend(latency=1.0))
        transport = network.transport()
        owner = await nursery.start(own)
        transport.open_ahead(origin, count, owner)
        await wait_all_tasks_blocked()
        yield transport, network, owner
        owner.cancel_scope.cancel(reason="the end of the test")
        await transport.aclose()
        assert 0 == network.open_connections


async def ping(transport: Http11Transport, origin: Origin = AHEAD) -> None:
    head = encode_head("POST", b"/mcp", [(b"Host", b"b.test")])
    body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    response = await transport.send(origin, "POST", head, body, lambda: None)
    await read(response)
    response.close()


@pytest.mark.parametrize("requests", [1, 3, 5])
async def test_requests_wait_for_connections_that_are_being_made(requests: int, autojump_clock: MockClock) -> None:
    """Each of the first three takes one of the three, and only further requests make connections of their own."""
    async with open_ahead(AHEAD, 3) as (transport, network, _):
        await trio.sleep(0.5)
        began_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(requests):
                nursery.start_soon(ping, transport)
        assert max(3, requests) == network.connection_attempts
        assert (1.5 if requests <= 3 else 2.0) == pytest.approx(trio.current_time() - began_at)
        assert max(3, requests) == transport.idle_connections


async def test_only_missing_connections_are_made_ahead(autojump_clock: MockClock) -> None:
    """Those that are being made count, and those that are idle."""
    async with open_ahead(AHEAD, 2) as (transport, network, owner):
        transport.open_ahead(AHEAD, 3, owner)
        await trio.sleep(2)
        assert (3, 3) == (network.connection_attempts, transport.idle_connections)
        transport.open_ahead(AHEAD, 4, owner)
        transport.open_ahead(AHEAD, 4, owner)
        await trio.sleep(2)
        assert (4, 4) == (network.connection_attempts, transport.idle_connections)


async def test_an_idle_connection_is_taken_before_one_that_is_being_made(autojump_clock: MockClock) -> None:
    """A request that finds one does not wait for the other."""
    async with open_ahead(AHEAD, 1) as (transport, network, owner):
        await trio.sleep(2)
        transport.open_ahead(AHEAD, 2, owner)
        begun_at = trio.current_time()
        await ping(transport)
        assert 1.0 == pytest.approx(trio.current_time() - begun_at)  # the latency of the server
        await trio.sleep(1)
        assert (2, 2) == (network.connection_attempts, transport.idle_connections)


async def test_one_connection_ahead_that_is_made_leaves_the_others_to_be_waited_for(autojump_clock: MockClock) -> None:
    """The second is there half a second after the first: a second request waits for it, and makes none."""
    async with open_ahead(AHEAD, 1) as (transport, network, owner):
        await trio.sleep(0.5)
        transport.open_ahead(AHEAD, 2, owner)
        await trio.sleep(0.7)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ping, transport)
            nursery.start_soon(ping, transport)
        assert (2, 2) == (network.connection_attempts, transport.idle_connections)


async def test_a_connection_that_cannot_be_made_ahead_is_tried_by_its_request(autojump_clock: MockClock) -> None:
    """The request reports why there is no connection."""
    async with open_ahead(REFUSED, 2) as (transport, network, _):
        with pytest.raises(httpx.ConnectError, match="nothing listens"):
            await ping(transport, REFUSED)
        assert 3 == network.connection_attempts
        await trio.sleep(10)
        with pytest.raises(httpx.ConnectError, match="nothing listens"):
            await ping(transport, REFUSED)


async def test_requests_of_others_outlive_the_owner_of_connections_ahead(autojump_clock: MockClock) -> None:
    """The session that had them made is cancelled: a request of another one that waited makes its own."""
    async with open_ahead(AHEAD, 2) as (transport, network, owner), trio.open_nursery() as nursery:
        nursery.start_soon(ping, transport)
        await wait_all_tasks_blocked()
        owner.cancel_scope.cancel(reason="the test")
        await trio.sleep(3)
        assert 3 == network.connection_attempts
        assert (0, 1) == (transport.busy_connections, transport.idle_connections)


async def test_a_request_that_is_cancelled_leaves_the_connection_ahead_to_the_next(autojump_clock: MockClock) -> None:
    """A connection that was made for a request that is gone serves the next one."""
    async with open_ahead(AHEAD, 1) as (transport, network, _):
        with trio.move_on_after(0.5):
            await ping(transport)
        await trio.sleep(1)
        await ping(transport)
        assert 1 == network.connection_attempts


async def test_a_closed_transport_keeps_no_connection_ahead(autojump_clock: MockClock) -> None:
    """A transport that closes meanwhile closes what comes late; a request that waited fails."""
    async with open_ahead(AHEAD, 2) as (transport, network, _):
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                with pytest.raises(httpx.ConnectError, match="closed"):
                    await ping(transport)

            nursery.start_soon(fail)
            await wait_all_tasks_blocked()
            transport.close()
        await trio.sleep(2)
        assert (0, 0) == (network.open_connections, transport.idle_connections)


# What is reused


@kinds
async def test_a_connection_is_used_again(kind: Kind) -> None:
    """One request after another uses one connection; requests side by side use one each."""
    async with open_served(kind, OK) as served:
        for _ in range(3):
            assert b"ok" == await served.ask()
        assert (1, 1) == (served.server.connections, served.transport.idle_connections)
        together = trio.Event()
        served.server.answers = [(together, OK)]
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(served.ask)
            await until(lambda: len(served.server.requests) == 7)
            assert (4, 4, 0) == (
                served.server.connections,
                served.transport.busy_connections,
                served.transport.idle_connections,
            )
            together.set()
        assert (0, 4) == (served.transport.busy_connections, served.transport.idle_connections)


async def test_the_newest_idle_connection_is_used_first(autojump_clock: MockClock) -> None:
    """The newest idle connection is used first, so that surplus connections expire and the next request closes them."""
    async with open_served("memory", (1.0, OK)) as served:
        await many(served, 3)
        for _ in range(int(ASSUMED_EXPIRY)):
            await served.ask()
            assert 3 == served.server.open_connections
        await served.ask()
        await wait_all_tasks_blocked()
        assert (1, 3) == (served.server.open_connections, served.server.connections)


async def test_idle_connections_are_closed_in_the_background(autojump_clock: MockClock) -> None:
    """`tidy` closes each connection when it has been idle long enough, without any request; later ones, too."""
    async with open_served("memory", OK) as served, trio.open_nursery() as nursery:
        nursery.start_soon(served.transport.tidy)
        for _ in range(2):
            await served.ask()
            async with trio.open_nursery() as inner:
                inner.start_soon(served.ask)
                inner.start_soon(trio.sleep, 1)
                inner.start_soon(served.ask)
            await wait_all_tasks_blocked()
            assert 2 == served.server.open_connections
            await trio.sleep(ASSUMED_EXPIRY - 1.5)
            await served.ask()
            await trio.sleep(1)
            assert 1 == served.server.open_connections
            await trio.sleep(ASSUMED_EXPIRY)
            assert 0 == served.server.open_connections
        nursery.cancel_scope.cancel()


async def test_no_more_than_twenty_connections_idle() -> None:
    """Of more idle connections to one origin, the oldest are closed."""
    async with open_served("memory", OK) as served:
        responses = [await served.send() for _ in range(MOST_IDLE + 5)]
        for response in responses:
            await read(response)
            response.close()
        await wait_all_tasks_blocked()
        assert MOST_IDLE == served.server.open_connections == served.transport.idle_connections
        alive = [response._connection.is_alive for response in responses]
        assert [False] * 5 + [True] * MOST_IDLE == alive


async def test_each_origin_is_tidied_in_its_time(autojump_clock: MockClock) -> None:
    """The oldest connection is closed first, whichever origin it belongs to."""
    async with open_memory_network() as network, trio.open_nursery() as nursery:
        server = RawServer([(OK,)])
        transport = network.transport()
        nursery.start_soon(transport.tidy)
        for second in range(3):
            await trio.sleep_until(second)
            await Served(transport, server, network.attach(f"{second}.test", server)).ask()
        left = []
        for second in range(3):
            for edge in (-0.1, 0.1):
                await trio.sleep_until(second + ASSUMED_EXPIRY + edge)
                left.append(transport.idle_connections)
        assert [3, 2, 2, 1, 1, 0] == left
        nursery.cancel_scope.cancel()
        transport.close()


async def test_origins_do_not_share_connections() -> None:
    """Other hosts, ports and schemes get other connections; a URL that names the default port does not."""
    async with open_memory_network() as network:
        server = RawServer([(OK,)])
        urls = ["http://a.test/", "http://b.test/", "http://a.test:81/", "https://a.test/", "http://a.test:80/x"]
        async with network.transport() as transport, httpx.AsyncClient(transport=transport) as client:
            for url in urls:
                network.attach(url, server)
                await client.get(url)
            assert (4, 4) == (network.connection_attempts, transport.idle_connections)


async def test_a_connection_made_beforehand_is_used() -> None:
    """`connect` makes an idle connection, or does nothing if there is one."""
    async with open_served("memory", OK) as served:
        for _ in range(2):
            await served.transport.connect(served.origin)
            assert 1 == served.transport.idle_connections
        await served.ask()
        assert 1 == served.server.connections


# Connections that the server closes

GONE = pytest.mark.parametrize("end", [CLOSE, RESET])


async def test_an_idle_connection_is_not_used_for_longer_than_servers_keep_theirs(autojump_clock: MockClock) -> None:
    """Common servers close after 5 s, and the news may be on its way: with nothing said, 4 s are enough."""
    async with open_served("memory", OK) as served:
        for pause, connections in [(0.0, 1), (3.9, 1), (4.1, 2), (40.0, 3)]:
            await trio.sleep(pause)
            await served.ask()
            assert connections == served.server.connections


@pytest.mark.parametrize(
    ("timeout", "kept", "given_up"), [(b"1", 0.4, 0.6), (b"2", 0.9, 1.1), (b"5", 3.9, 4.1), (b"30", 28.9, 29.1)]
)
async def test_the_time_that_a_server_names_is_kept_to(
    timeout: bytes, kept: float, given_up: float, autojump_clock: MockClock
) -> None:
    """`Keep-Alive: timeout=`, less a margin, whether longer or shorter than what is assumed; also in the background."""
    async with open_served("memory", answer(b"ok", b"Keep-Alive: timeout=" + timeout)) as served:
        for pause, connections in [(0.0, 1), (kept, 1), (given_up, 2), (kept, 2)]:
            await trio.sleep(pause)
            await served.ask()
            assert connections == served.server.connections
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.transport.tidy)
            for pause, idle in [(kept, 1), (given_up - kept, 0)]:
                await trio.sleep(pause)
                assert idle == served.transport.idle_connections
            nursery.cancel_scope.cancel()


async def test_a_connection_that_expires_sooner_is_closed_sooner(autojump_clock: MockClock) -> None:
    """A connection that is kept for long does not delay the end of one to another origin that becomes idle later."""
    async with open_memory_network() as network, trio.open_nursery() as nursery:
        transport = network.transport()
        nursery.start_soon(transport.tidy)
        for host, headers in (("long", [b"Keep-Alive: timeout=60"]), ("short", [])):
            server = RawServer([(answer(b"ok", *headers),)])
            await Served(transport, server, network.attach(f"{host}.test", server)).ask()
            await trio.sleep(1)
        await trio.sleep(ASSUMED_EXPIRY)
        assert 1 == transport.idle_connections
        nursery.cancel_scope.cancel()
        transport.close()


async def test_the_age_at_which_a_server_closes_is_learnt(autojump_clock: MockClock) -> None:
    """A connection that is found closed after 3 s shows that this server does not wait for 5 s."""
    async with open_served("memory", (OK, 2.5, CLOSE), OK) as served:
        await trio.sleep(10)
        await served.ask()
        await trio.sleep(3)
        for pause, connections in [(0.0, 2), (1.9, 2), (2.1, 3), (1.9, 3)]:
            await trio.sleep(pause)
            await served.ask()
            assert connections == served.server.connections


@pytest.mark.parametrize(("survived", "is_learnt"), [(0.6, True), (3.0, False)])
async def test_a_restart_teaches_nothing(survived: float, is_learnt: bool, autojump_clock: MockClock) -> None:
    """A connection is found closed after 2 s. If one was idle for longer before and answered, that was no timeout."""
    async with open_served("memory", OK, (OK, 1.5, CLOSE), OK) as served:
        await trio.sleep(10)
        for pause, connections in [(0.0, 1), (survived, 1), (2.0, 2), (1.5, 3 if is_learnt else 2)]:
            await trio.sleep(pause)
            await served.ask()
            assert connections == served.server.connections


async def test_of_several_closed_connections_the_youngest_teaches_the_age(autojump_clock: MockClock) -> None:
    """Two are found closed, after 1.5 and 2.5 s: from now on, one of 1 s is not used again."""
    gone = trio.Event()
    async with open_served("memory", (OK, gone, CLOSE), OK, (OK, gone, CLOSE), OK) as served:
        responses = [await served.send(), await served.send()]
        for response in responses:
            await read(response)
            response.close()
        await trio.sleep(1)
        await served.ask()  # over the one that became idle last
        gone.set()
        await trio.sleep(1.5)
        for pause, connections in [(0.0, 3), (0.7, 3), (1.0, 4)]:
            await trio.sleep(pause)
            await served.ask()
            assert connections == served.server.connections


@GONE
async def test_a_request_that_is_lost_teaches_the_age(end: str, autojump_clock: MockClock) -> None:
    """A request met a connection that the server was closing after 2 s: from now on, one of 1 s is not used again."""
    async with open_served("memory", OK, (end,), OK) as served:
        await served.ask()
        await trio.sleep(2)
        with pytest.raises(httpx.TransportError):
            await served.ask()
        for pause, connections in [(0.0, 2), (0.9, 2), (1.1, 3)]:
            await trio.sleep(pause)
            await served.ask()
            assert connections == served.server.connections


async def test_a_response_that_never_comes_teaches_nothing(autojump_clock: MockClock) -> None:
    """A connection that ends long after its request was written was not closed for being idle."""
    async with open_served("memory", OK, (10.0, CLOSE), OK) as served:
        await served.ask()
        await trio.sleep(2)
        with pytest.raises(httpx.TransportError):
            await served.ask()
        await served.ask()
        await trio.sleep(3)
        await served.ask()
        assert 2 == served.server.connections


@kinds
@GONE
@pytest.mark.parametrize(
    ("verb", "may_repeat"), [("POST", True), ("GET", False), ("DELETE", False), ("HEAD", False), ("PUT", False)]
)
async def test_a_request_that_changes_nothing_is_sent_again(kind: Kind, end: str, verb: str, may_repeat: bool) -> None:
    """The connection that it used again ended before the first byte of a response: another one is made for it."""
    async with open_served(kind, OK, OK, (end,), OK, OK) as served:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.ask)
            nursery.start_soon(served.ask)
        assert 2 == served.server.connections
        response = await served.send(verb, may_repeat=may_repeat)
        assert (b"" if verb == "HEAD" else b"ok") == await read(response)
        response.close()
        assert (3, 4) == (served.server.connections, len(served.server.requests))


@kinds
@GONE
async def test_any_other_request_is_not_sent_again(kind: Kind, end: str) -> None:
    """A POST may have been applied although its connection ended."""
    async with open_served(kind, OK, (end,), OK) as served:
        await served.ask()
        with pytest.raises(httpx.TransportError):
            await served.ask()
        assert 2 == len(served.server.requests)
        assert b"ok" == await served.ask()


@kinds
@GONE
async def test_a_request_is_sent_again_once_and_for_a_reason(kind: Kind, end: str) -> None:
    """A new connection that ends, and a response that has begun, are no sign of a connection that was closed before."""
    async with open_served(kind, (end,), OK, (b"H", end), OK, (end,), (end,), OK) as served:
        for requests, answered in [(1, False), (2, True), (3, False), (4, True), (6, False), (7, True)]:
            if answered:
                assert b"ok" == await served.ask("GET")
            else:
                with pytest.raises(httpx.TransportError):
                    await served.ask("GET")
            assert requests == len(served.server.requests)


@kinds
@GONE
async def test_a_request_over_a_connection_made_beforehand_is_not_sent_again(kind: Kind, end: str) -> None:
    """That connection has answered nothing: its end does not say that the server closes idle connections."""
    async with open_served(kind, (end,), OK) as served:
        await served.transport.connect(served.origin)
        with pytest.raises(httpx.TransportError):
            await served.send("GET", may_repeat=True)
        assert 1 == served.server.connections


async def test_a_request_of_httpx_says_whether_it_may_be_sent_again() -> None:
    """By an extension; without that, a POST is not."""
    async with open_served("memory", OK, (CLOSE,), OK, (CLOSE,), OK) as served:
        async with httpx.AsyncClient(transport=served.transport) as client:
            await client.post(served.url)
            assert "ok" == (await client.post(served.url, extensions={MAY_REPEAT: True})).text
            with pytest.raises(httpx.TransportError):
                await client.post(served.url)


async def test_a_request_is_not_sent_again_after_the_close_of_its_transport() -> None:
    """The connection was closed here, so no other is made."""
    async with open_served("memory", OK, (HANG,)) as served:
        await served.ask()

        async def ask() -> None:
            with pytest.raises(httpx.ReadError, match="closed here"):
                await served.ask("GET")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            served.transport.close()
        assert 1 == served.server.connections


# What is noticed


@kinds
@pytest.mark.parametrize("news", [CLOSE, RESET, answer(b"unasked"), b"x"])
async def test_what_happens_to_an_idle_connection_is_noticed(kind: Kind, news: str | bytes) -> None:
    """On an idle connection that ended, or received bytes without a request, no request is written, and none fails."""
    more = trio.Event()
    async with open_served(kind, (OK, more, news), OK) as served:
        assert b"ok" == await served.ask()
        (idle,) = served.transport._idle[served.origin]
        assert idle.is_alive
        more.set()
        await until(lambda: not idle.is_alive)
        assert b"ok" == await served.ask()
        assert (2, 2) == (served.server.connections, len(served.server.requests))


@kinds
@pytest.mark.parametrize(
    "surplus",
    [
        answer(b"unasked"),
        b"x",
        # The transport reads this many bytes at once: `poll` does not see bytes that it has read already.
        b"",
    ],
)
async def test_a_wrong_length_does_not_poison_the_next_request(kind: Kind, surplus: bytes) -> None:
    """Bytes behind a response are discarded with their connection, whether they are read already or not."""
    whole = answer(b"ok")
    if not surplus:
        surplus = answer(b"unasked")
        whole = answer(b"o" * (READ_BYTES - len(answer(b"o" * 60_000)) + 60_000))
        assert READ_BYTES == len(whole)
    async with open_served(kind, (whole + surplus,), OK) as served:
        assert whole.endswith(await served.ask())
        for _ in range(3):
            assert b"ok" == await served.ask()
        assert 2 == served.server.connections


@kinds
@pytest.mark.parametrize(
    "response",
    [
        LINE + b"Content-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        LINE + b"\r\nok",
    ],
)
async def test_a_server_that_closes(kind: Kind, response: bytes) -> None:
    """After `Connection: close`, a response of HTTP/1.0, or a body that ends with the connection, the connection is not
    reused.
    """
    async with open_served(kind, (response, CLOSE)) as served:
        for number in range(1, 4):
            assert b"ok" == await served.ask()
            assert (number, 0) == (served.server.connections, served.transport.idle_connections)


async def test_an_unread_response_keeps_its_connection_if_it_has_arrived() -> None:
    """A response that is closed unread keeps its connection if it has arrived whole (a short error or redirect), else
    not.
    """
    async with open_served("memory", OK, LINE + b"Content-Length: 3\r\n\r\nok", OK) as served:
        (await served.send()).close()
        assert 1 == served.transport.idle_connections
        (await served.send()).close()
        assert 0 == served.transport.idle_connections
        assert b"ok" == await served.ask()
        assert 2 == served.server.connections


async def test_a_second_close_of_a_response_changes_nothing() -> None:
    """Closing a response twice does no harm: by then another request may use the connection, and goes on."""
    async with open_served("memory", OK) as served:
        first = await served.send()
        first.close()
        second = await served.send()
        first.close()
        await first.close_connection()
        await first.aclose()
        assert 1 == served.transport.busy_connections
        assert b"ok" == await read(second)
        second.close()


# Bodies


@kinds
async def test_bodies_stream(kind: Kind) -> None:
    """Each piece of a body is returned as soon as it arrives."""
    more = trio.Event()
    async with open_served(kind, (CHUNKED + b"3\r\none\r\n", more, b"3\r\ntwo\r\n0\r\n\r\n")) as served:
        response = await served.send()
        assert b"one" == await response.receive()
        assert not response.is_ended
        more.set()
        assert b"two" == await response.receive()
        assert None is await response.receive() is await response.receive()
        assert response.is_ended
        response.close()
        assert 1 == served.transport.idle_connections


@kinds
@pytest.mark.parametrize("size", [0, 1, READ_BYTES - 1, READ_BYTES, READ_BYTES + 1, 3 * MIB + 7])
async def test_bodies_of_any_size(kind: Kind, size: int) -> None:
    """Bodies of any size arrive in both directions, and the connection is used again."""
    body = bytes(range(256)) * (size // 256 + 1)
    async with open_served(kind, answer(body[:size])) as served:
        for _ in range(2):
            assert body[:size] == await served.ask(body=body[:size])
        assert [body[:size]] * 2 == [sent for _, sent in served.server.requests]
        assert 1 == served.server.connections


@kinds
@pytest.mark.parametrize("end", [CLOSE, RESET])
@pytest.mark.parametrize(
    "response",
    [b"HTTP/1.1 2", LINE + b"Content-Length: 100000\r\n\r\nok", CHUNKED + b"2\r\nok\r\n", CHUNKED + b"5\r\nok"],
)
async def test_an_end_in_the_middle(kind: Kind, end: str, response: bytes) -> None:
    """A response that ends in the middle is an error."""
    async with open_served(kind, (response, end), OK) as served:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await served.ask()
        assert b"ok" == await served.ask()


@pytest.mark.parametrize("verb", ["HEAD", "GET", "DELETE", "POST"])
@pytest.mark.parametrize("status", [b"200 OK", b"204 No Content", b"304 Not Modified"])
async def test_responses_without_a_body(verb: str, status: bytes) -> None:
    """Responses to HEAD, and 204 and 304, have no body (RFC 9112 §6.3): the length that they name is not waited for."""
    response = b"HTTP/1.1 " + status + b"\r\nContent-Length: 300000\r\n\r\n"
    if verb != "HEAD" and status == b"200 OK":
        response += b"x" * 300_000
    async with open_served("memory", response) as served:
        for _ in range(2):
            assert len(response.partition(b"\r\n\r\n")[2]) == len(await served.ask(verb))


@pytest.mark.parametrize("kind", ["tcp", "tls"])  # memory streams buffer the whole body
@pytest.mark.parametrize("status", [b"413 Content Too Large", b"401 Unauthorized", b"503 Service Unavailable"])
@pytest.mark.parametrize("end", [CLOSE, RESET, HANG])
async def test_an_answer_that_comes_before_the_body_is_written(kind: Kind, status: bytes, end: str) -> None:
    """A server answers before it has read the body (RFC 9112 §9.5), and then closes, or neither reads nor closes: its
    answer is read at once, and the rest of the body is not written.
    """
    refusal = b"HTTP/1.1 102 Processing\r\n\r\n" + answer(b"no", status=status)
    read_on = trio.Event()
    async with open_served(
        kind, (refusal, read_on if end == HANG else 0.01, CLOSE if end == HANG else end), OK, reads_bodies=False
    ) as served:
        with trio.fail_after(5):
            response = await served.send(body=bytes(16 * MIB))
        assert (int(status[:3]), b"no") == (response.status, await read(response))
        assert response.is_ended
        response.close()
        assert 0 == served.transport.idle_connections
        read_on.set()
        assert b"ok" == await served.ask(body=b"")


class SpawnedTasks(trio.abc.Instrument):
    def __init__(self) -> None:
        self.count = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


@kinds
@pytest.mark.parametrize(("size", "tasks"), [(100, 0), (16 * KIB, 0), (16 * KIB + 1, 1), (MIB, 1)])
async def test_a_request_of_common_size_starts_no_task(kind: Kind, size: int, tasks: int) -> None:
    """What every send buffer takes whole, 16 KiB, is written before the response is read; only a larger request is
    written by a task of its own beside the reading.
    """
    head = b"POST /mcp HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
    body = bytes(size - len(head % size))
    async with open_served(kind, OK) as served:
        await served.ask()
        spawned = SpawnedTasks()
        trio.lowlevel.add_instrument(spawned)
        assert b"ok" == await served.ask(body=body)
        trio.lowlevel.remove_instrument(spawned)
        assert (tasks, 1) == (spawned.count, served.server.connections)


@kinds
async def test_an_answer_to_a_large_body_that_was_read(kind: Kind) -> None:
    """A connection is used again after a large body, also if interim responses came while the body was written."""
    early, whole = b"HTTP/1.1 103 Early Hints\r\n\r\n", bytes(3 * MIB)
    async with open_served(kind, (early, OK), OK) as served:
        for _ in range(3):
            assert b"ok" == await served.ask(body=whole)
        assert (1, 1) == (served.server.connections, served.transport.idle_connections)
        assert [whole] * 3 == [body for _, body in served.server.requests]


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_a_bad_answer_while_the_body_is_written(kind: Kind) -> None:
    """Bytes that are no HTTP, in answer to half a body, are told as what they are."""
    unread = trio.Event()
    async with open_served(kind, (b"SSH-2.0-x\r\n", unread, CLOSE), reads_bodies=False) as served:
        with pytest.raises(httpx.RemoteProtocolError, match="xpected HTTP"):
            await served.ask(body=bytes(16 * MIB))
        unread.set()


async def test_tls_that_breaks_while_the_body_is_written() -> None:
    """A record that is none, in answer to half a body, is a connection that broke. The alert about it (RFC 8446 §6.2)
    does not get into the record that is being written.
    """

    async def serve(tcp: trio.SocketStream) -> None:
        async with tcp:
            stream = trio.SSLStream(tcp, server_context(), server_side=True)
            await stream.receive_some(100)
            await tcp.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
            await unread.wait()

    unread = trio.Event()
    transport = Http11Transport(ssl_context=client_context())
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        origin = Origin("https", "localhost", listener.socket.getsockname()[1])
        with pytest.raises(httpx.WriteError, match="the connection broke"):
            await transport.send(origin, "POST", b"POST / HTTP/1.1\r\nHost: h\r\n\r\n", bytes(16 * MIB), lambda: None)
        unread.set()
        nursery.cancel_scope.cancel()
    transport.close()


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_an_early_answer_is_read_whole(kind: Kind) -> None:
    """The answer to half a body comes in pieces, and the last of them with a reset."""
    refusal = answer(b"too large", status=b"413 Content Too Large")
    pieces = (refusal[:9], 0.005, refusal[9:-4], 0.005, refusal[-4:], 0.005, RESET)
    async with open_served(kind, pieces, reads_bodies=False) as served:
        assert b"too large" == await served.ask(body=bytes(16 * MIB))


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_a_reset_while_the_body_is_written(kind: Kind) -> None:
    """A reset without an answer is `httpx.WriteError`."""
    async with open_served(kind, (RESET,), OK, reads_bodies=False) as served:
        with pytest.raises(httpx.WriteError, match="the connection broke"):
            await served.ask(body=bytes(32 * MIB))
        assert b"ok" == await served.ask(body=b"")


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_closing_while_a_body_is_written(kind: Kind) -> None:
    """The request that is writing fails with `httpx.WriteError`."""
    unread = trio.Event()
    async with open_served(kind, (unread, CLOSE), reads_bodies=False) as served:

        async def write() -> None:
            with pytest.raises(httpx.WriteError, match="closed here"):
                await served.ask(body=bytes(32 * MIB))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await until(lambda: served.server.requests != [])
            await wait_all_tasks_blocked(0.01)
            served.transport.close()
        unread.set()


async def test_a_body_is_at_its_end_when_all_of_it_was_taken() -> None:
    """A response has ended when its body was handed out, not when it has arrived."""
    async with open_served("memory", OK) as served:
        response = await served.send()
        assert not response.is_ended
        assert b"ok" == await response.receive()
        assert response.is_ended
        response.close()


async def test_a_connection_that_was_cut_is_not_alive() -> None:
    """A closed connection counts as dead, also if its descriptor belongs to another socket by now."""
    async with open_served("memory", OK) as served:
        await served.ask()
        (idle,) = served.transport._idle[served.origin]
        assert idle.is_alive
        idle.close()
        idle._connected = ConnectedStream(idle._connected.stream, lambda: False, lambda: None)
        assert not idle.is_alive
        assert b"ok" == await served.ask()
        assert 2 == served.server.connections


# Limits


@kinds
@pytest.mark.parametrize("piece", [b"x: y\r\n", b"x", b"\r\n"])
async def test_an_endless_head(kind: Kind, piece: bytes) -> None:
    """A head of over 64 KiB is refused."""
    async with open_served(kind, (LINE, piece * (2 * MAX_HEAD_BYTES // len(piece)), HANG), OK) as served:
        if piece == b"\r\n":
            served.server.answers[0] = (piece * MAX_HEAD_BYTES, HANG)
        with pytest.raises(httpx.RemoteProtocolError):
            await served.ask()
        assert b"ok" == await served.ask()


@pytest.mark.parametrize("apart", [False, True])
async def test_a_flood_of_informational_responses(apart: bool) -> None:
    """Too many 1xx responses are refused, in one piece or one by one."""
    hints = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    flood = (hints,) * 1000 if apart else (hints * 1000,)
    async with open_served("memory", (*flood, HANG), OK) as served:
        with pytest.raises(httpx.RemoteProtocolError, match="16 informational"):
            await served.ask()
        assert b"ok" == await served.ask()


class LongestStep(trio.abc.Instrument):
    """The longest step of any task, in s of CPU."""

    def __init__(self) -> None:
        self.seconds, self._begun = 0.0, math.inf  # the step that adds this instrument does not count

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._begun = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.seconds = max(self.seconds, time.thread_time() - self._begun)


async def test_crumbs_cost_little() -> None:
    """64 KiB in chunks of one byte do not keep other tasks waiting, and are handed out in large pieces."""
    async with open_served("memory", CHUNKED + b"1\r\nx\r\n" * (64 * KIB) + b"0\r\n\r\n") as served:
        watch = LongestStep()
        trio.lowlevel.add_instrument(watch)
        response = await served.send()
        pieces = []
        while (piece := await response.receive()) is not None:
            pieces.append(len(piece))
        trio.lowlevel.remove_instrument(watch)
        response.close()
        assert 64 * KIB == sum(pieces)
        assert len(pieces) < 10
        assert watch.seconds < 0.05


@pytest.mark.parametrize(
    "broken",
    [
        LINE + b"Mcp-Session-Id: s3cret\x01\r\n\r\n",
        b"s3cret\r\n\r\n",
        LINE + b"Mcp-Session-Id: s3cret\r\nContent-Length: x\r\n\r\n",
        CHUNKED + b"s3cret",
        CHUNKED + b"6\r\ns3cret\r\nx",
    ],
)
async def test_no_error_quotes_what_came(broken: bytes) -> None:
    """Errors quote neither received nor sent bytes, in their text or traceback: a header may be a session id."""
    body = b"".join([b"p4ss", b"word"])  # in two parts, since a traceback shows source lines
    async with open_served("memory", (broken, CLOSE)) as served:
        with pytest.raises(httpx.RemoteProtocolError) as caught:
            await served.ask(body=body)
        said = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert "s3cret" not in said
        assert "p4ssword" not in said


# Cancels


@kinds
@pytest.mark.parametrize("fresh", [False, True])
async def test_cancelled_at_every_step(kind: Kind, fresh: bool) -> None:
    """A request that is cancelled while it connects, shakes hands, writes or reads costs its own connection and no
    other.
    """
    response = CHUNKED + b"3\r\none\r\n"
    async with open_served(kind, (response, 0.001, b"3\r\ntwo\r\n0\r\n\r\n")) as served:
        other = await served.send()
        for behind in (False, True):
            for step in range(1, 100):
                if fresh:
                    for idle in served.transport._idle.pop(served.origin, []):
                        idle.close()
                if not await cancel_at(step, served.ask, behind=behind):
                    break
                assert (1, 0) == (served.transport.busy_connections, served.transport.idle_connections)
                assert b"onetwo" == await served.ask()
            assert 2 < step < 99
        assert b"onetwo" == await read(other)
        other.close()


async def test_a_handshake_that_hangs_leaves_no_socket() -> None:
    """A server accepts and says nothing: when the request is cancelled, no socket is left (checked after every
    test).
    """
    heard: list[bytes] = []

    async def never_answer(stream: trio.SocketStream) -> None:
        heard.append(bytes(await stream.receive_some(4096)))
        scope.cancel()
        assert b"" == await stream.receive_some()  # the client has closed
        heard.append(b"")

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, never_answer, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        transport = Http11Transport()
        with trio.CancelScope() as scope:
            async with httpx.AsyncClient(transport=transport) as client:
                await client.get(f"https://127.0.0.1:{port}/")
        assert scope.cancelled_caught
        await until(lambda: len(heard) == 2)
        nursery.cancel_scope.cancel()


@kinds
async def test_fifty_cancelled_for_one_that_is_answered(kind: Kind) -> None:
    """However many requests are cancelled at any moment, the next one works, and no connection is left over."""
    async with open_served(kind, OK) as served:
        for round_ in range(20):
            async with trio.open_nursery() as nursery:
                for step in range(1, 6):
                    nursery.start_soon(cancel_at, step + round_ % 3, served.ask)
        assert 0 == served.transport.busy_connections
        assert b"ok" == await served.ask()


# Closing


@kinds
async def test_closing_takes_everything_along(kind: Kind) -> None:
    """`close` closes idle connections and those in use: their requests fail, no connection is kept, and no new one is
    made.
    """
    hanging = (CHUNKED, HANG)
    async with open_served(kind, hanging, hanging, OK) as served, trio.open_nursery() as nursery:
        errors: list[Exception] = []

        async def fail(work: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(httpx.TransportError) as caught:
                await work()
            errors.append(caught.value)

        response = await served.send()
        nursery.start_soon(fail, response.receive)
        nursery.start_soon(fail, served.ask)
        await until(lambda: served.transport.busy_connections == 2 == len(served.server.requests))
        await served.ask()
        assert (1, 2) == (served.transport.idle_connections, served.transport.busy_connections)
        await served.transport.aclose()
        await until(lambda: len(errors) == 2)
        response.close()
        assert (0, 0) == (served.transport.idle_connections, served.transport.busy_connections)
        with pytest.raises(httpx.ConnectError, match="the transport is closed"):
            await served.ask()
        assert 3 == served.server.connections
        await served.transport.aclose()


async def test_a_connection_that_comes_after_the_close(autojump_clock: MockClock) -> None:
    """A connection that is made after the close is closed, and its request fails before anything is written."""
    async with open_memory_network(connect_latency=1) as network:
        server = RawServer([(OK,)])
        url = network.attach("b.test", server)
        transport = network.transport()
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(httpx.ConnectError, match="the transport was closed meanwhile"):
                    await Served(transport, server, url).ask()

            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            transport.close()
        assert 1 == network.connection_attempts
        assert 0 == network.open_connections
        assert [] == server.requests


async def test_closing_a_response_needs_no_time(autojump_clock: MockClock) -> None:
    """Closing a response of a server that hangs returns at once, also in a cancelled task."""
    async with open_served("memory", (CHUNKED, HANG)) as served:
        response = await served.send()
        with trio.CancelScope() as scope:
            scope.cancel()
            await response.aclose()
        assert 0 == trio.current_time()
        assert 0 == served.transport.busy_connections


# As a transport of httpx's client


@contextlib.asynccontextmanager
async def open_client(served: Served, **options: float | None) -> AsyncIterator[httpx.AsyncClient]:
    timeout = httpx.Timeout(options.pop("timeout", None), **options) if options else httpx.Timeout(5)
    async with httpx.AsyncClient(transport=served.transport, timeout=timeout) as client:
        yield client


@kinds
async def test_httpxs_client_uses_it(kind: Kind) -> None:
    """`httpx.AsyncClient` works over the transport: whole and streamed, with and without a body, with httpx's own
    headers.
    """
    async with open_served(kind, answer(b"body", b"X-Answer: 1")) as served, open_client(served) as client:
        response = await client.post(served.url, json={"a": 1}, params={"b": "c d"})
        assert (200, b"body", "1") == (response.status_code, response.content, response.headers["x-answer"])
        assert "HTTP/1.1" == response.http_version
        async with client.stream("GET", served.url) as streamed:
            assert [b"body"] == [piece async for piece in streamed.aiter_raw()]
        async with client.stream("GET", served.url):
            pass
        (head, body), (get, nothing), _ = served.server.requests
        assert b'{"a":1}' == body
        assert head.startswith(b"POST /mcp?b=c+d HTTP/1.1\r\nHost: ")
        assert b"\r\nContent-Length: 7" in head
        assert b"" == nothing
        assert b"content-length" not in get.lower()
        assert 1 == served.server.connections


async def test_httpxs_client_may_stream_a_body() -> None:
    """A streamed request body is sent whole, with its length."""

    async def pieces() -> AsyncIterator[bytes]:  # noqa: ASYNC900  # httpx's interface
        for piece in (b"one", b"two"):
            await trio.lowlevel.checkpoint()
            yield piece

    async with open_served("memory", OK) as served, open_client(served) as client:
        await client.post(served.url, content=pieces())
        ((head, body),) = served.server.requests
        assert b"onetwo" == body
        assert b"transfer-encoding" not in head.lower()


async def test_a_body_that_fails_was_not_sent() -> None:
    """If reading the request body fails, nothing was sent, and the connection is kept."""

    async def broken() -> AsyncIterator[bytes]:  # noqa: ASYNC900  # httpx's interface
        yield b"one"
        raise ZeroDivisionError

    async with open_served("memory", OK) as served, open_client(served) as client:
        with pytest.raises(ZeroDivisionError):
            await client.post(served.url, content=broken())
        await client.post(served.url)
        assert [b""] == [body for _, body in served.server.requests]
        assert 1 == served.server.connections


async def test_no_connection_no_body() -> None:
    """If no connection can be made, the body is not read: an unread body proves that the request did not run."""
    taken = False

    async def body() -> AsyncIterator[bytes]:  # noqa: ASYNC900  # httpx's interface
        nonlocal taken
        taken = True
        yield b"one"

    async with open_memory_network() as network, httpx.AsyncClient(transport=network.transport()) as client:
        with pytest.raises(httpx.ConnectError):
            await client.post("http://b.test/", content=body())
    assert not taken


@pytest.mark.parametrize("limits", [{"connect": 3.0}, {"connect": 3.0, "read": 1.0, "write": 1.0}])
async def test_a_connection_that_takes_too_long(limits: dict[str, float], autojump_clock: MockClock) -> None:
    async with open_memory_network(connect_latency=10) as network:
        url = network.attach("b.test", RawServer([(OK,)]))
        timeout = httpx.Timeout(None, **limits)
        async with httpx.AsyncClient(transport=network.transport(), timeout=timeout) as client:
            with pytest.raises(httpx.ConnectTimeout, match=r"3.0 s \(connect\)"):
                await client.get(url)
        assert 3 == trio.current_time()
        assert 0 == network.open_connections


async def test_a_head_that_takes_too_long(autojump_clock: MockClock) -> None:
    """The limit is `read` and `write` together, from the first byte written."""
    async with open_served("memory", HANG) as served, open_client(served, read=2, write=1) as client:
        with pytest.raises(httpx.ReadTimeout, match="within 3"):
            await client.get(served.url)
        assert 3 == trio.current_time()
        assert 0 == served.transport.idle_connections


async def test_a_body_that_takes_too_long(autojump_clock: MockClock) -> None:
    """`read` is the limit for each piece, so a long body in quick pieces is no timeout."""
    slow = tuple(piece for byte in b"ok" for piece in (1.5, b"%c" % byte))
    head = LINE + b"Content-Length: 2\r\n\r\n"
    async with (
        open_served("memory", (head, *slow), (head, b"o", HANG)) as served,
        open_client(served, read=2) as client,
    ):
        assert b"ok" == (await client.get(served.url)).content
        assert 3 == trio.current_time()
        with pytest.raises(httpx.ReadTimeout, match="within 2"):
            await client.get(served.url)
        assert 5 == trio.current_time()
        assert (0, 0) == (served.transport.idle_connections, served.transport.busy_connections)


async def test_a_body_that_is_taken_slowly_is_no_timeout(autojump_clock: MockClock) -> None:
    """The time in which the caller's body yields no chunk counts under no timeout."""

    async def slow() -> AsyncIterator[bytes]:  # noqa: ASYNC900  # httpx's interface
        await trio.sleep(60)
        yield b"one"

    async with open_served("memory", OK) as served, open_client(served, connect=1, read=1, write=1) as client:
        assert 200 == (await client.post(served.url, content=slow())).status_code


async def test_a_response_can_end_its_connection() -> None:
    """The "network_stream" in a response's extensions closes the connection, as httpx documents; after the response is
    closed, it does nothing.
    """
    async with open_served("memory", OK) as served:
        for number in range(1, 3):
            response = await served.transport.handle_async_request(httpx.Request("GET", served.url))
            stream = response.extensions["network_stream"]
            if number == 1:
                await response.aread()  # closes the response
                await stream.aclose()
                assert 1 == served.transport.idle_connections
            else:
                await stream.aclose()
                await response.aclose()
                assert 0 == served.transport.idle_connections


@pytest.mark.parametrize("url", ["ftp://b.test/", "ws://b.test/"])
async def test_other_schemes_are_refused(url: str) -> None:
    async with Http11Transport() as transport:
        with pytest.raises(httpx.UnsupportedProtocol, match="neither"):
            await transport.handle_async_request(httpx.Request("GET", url))


@pytest.mark.parametrize("port", [0, 65536, 99999])
async def test_ports_that_are_none_are_refused(port: int) -> None:
    """A port over 65535 is refused: the system's resolver would take it modulo 65536."""
    async with Http11Transport() as transport:
        with pytest.raises(httpx.InvalidURL, match=f"port {port} is not in"):
            await transport.handle_async_request(httpx.Request("GET", f"http://127.0.0.1:{port}/"))


async def test_what_http_cannot_carry_is_not_quoted() -> None:
    """The error does not quote the header, which may be a credential."""
    async with Http11Transport() as transport:
        request = httpx.Request("GET", "http://b.test/", headers=[(b"Authorization", b"s3cret\r\n")])
        with pytest.raises(httpx.LocalProtocolError) as caught:
            await transport.handle_async_request(request)
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))


async def test_scripted_backends_speak_it(autojump_clock: MockClock) -> None:
    """The memory network's transport is this one, over streams in memory."""
    async with open_memory_network() as network:
        url = network.attach("b.test", ScriptedBackend(era="modern"))
        async with network.transport() as transport, httpx.AsyncClient(transport=transport) as client:
            assert 400 <= (await client.post(url, json={})).status_code < 500
        assert isinstance(transport, Http11Transport)
        assert math.inf > trio.current_time()
