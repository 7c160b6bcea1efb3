"""The network carries bytes, ends connections as TCP does and counts them, and no peer can break it."""

from __future__ import annotations

import contextvars
import gc
import socket
import ssl
from functools import partial

import httpx
import pytest
import trio
from support.raw_mcp import RawClient, open_client_on, open_raw_client
from trio.testing import MockClock, check_two_way_stream, wait_all_tasks_blocked

from trio_vmcp.models import JSON
from trio_vmcp.testing import (
    CONNECT,
    CallContext,
    MemoryNetwork,
    Refuse,
    Reply,
    Request,
    Reset,
    ScriptedBackend,
    open_loopback,
    open_memory_network,
    serve_http,
)
from trio_vmcp.testing.streams import MemoryStream, memory_connection, reset


async def test_memory_streams_keep_trios_contract() -> None:
    """Trio's own checks for two-way streams pass."""

    async def make() -> tuple[MemoryStream, MemoryStream]:
        return memory_connection()

    await check_two_way_stream(make, None)


async def test_a_reset_breaks_the_peer_after_what_was_sent() -> None:
    """Bytes before the reset arrive; after them, reads and writes fail."""
    client, server = memory_connection()
    await server.send_all(b"last words")
    reset(server)
    assert client.has_news
    assert b"last words" == await client.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await server.receive_some()
    await client.aclose()


async def test_only_connections_can_be_reset() -> None:
    """The error names a stream of another kind. A pair of pipes has no reset, and stays as it is."""
    pipes = trio.StapledStream(*trio.testing.memory_stream_one_way_pair())
    with pytest.raises(TypeError, match="SSLStream"):
        reset(trio.SSLStream(pipes, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), server_hostname="b.test"))
    reset(pipes)
    await pipes.send_all(b"x")
    assert b"x" == await pipes.receive_some(1)


# Hosts


async def test_unknown_hosts_and_ports_are_os_errors(autojump_clock: MockClock) -> None:
    """An unknown host does not resolve; a port without a server refuses."""
    async with open_memory_network() as network:
        assert "http://a.test/mcp" == network.attach("a.test", ScriptedBackend())
        assert "https://a.test:8443/x" == network.attach("https://a.test:8443/x", ScriptedBackend())
        with pytest.raises(socket.gaierror, match=r"b\.test"):
            await network.connect("b.test", 80)
        with pytest.raises(ConnectionRefusedError, match="81"):
            await network.connect("a.test", 81)
        for port in 80, 8443:
            await (await network.connect("a.test", port)).aclose()
        async with httpx.AsyncClient(transport=network.transport()) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get("http://b.test/")
            assert 405 == (await client.get("https://a.test:8443/x")).status_code
    with pytest.raises(ConnectionRefusedError, match="closed"):
        await network.connect("a.test", 80)


async def test_connecting_may_time_out(autojump_clock: MockClock) -> None:
    """`connect_latency` can exceed httpx's connect timeout, on the mock clock."""
    async with open_memory_network(connect_latency=10.0) as network:
        url = network.attach("a.test", ScriptedBackend())
        async with httpx.AsyncClient(transport=network.transport(), timeout=2.0) as client:
            with pytest.raises(httpx.ConnectTimeout):
                await client.get(url)
    assert 2.0 == trio.current_time()


async def test_an_error_in_the_block_comes_out_as_itself() -> None:
    """An exception of the block comes out without an ExceptionGroup around it."""
    with pytest.raises(KeyError):
        async with open_memory_network():
            raise KeyError("mine")


async def test_leaving_the_network_ends_its_servers(autojump_clock: MockClock) -> None:
    """Task, handler and connection of a server end with the block; the client reads the end of file."""
    backend = ScriptedBackend(latency=3600.0)
    async with open_memory_network() as network:
        url = network.attach("a.test", backend)
        stream = await network.connect("a.test", 80)
        await stream.send_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        await wait_all_tasks_blocked()
        assert (1, 1, 1) == (backend.in_flight, backend.open_connections, network.open_connections)
    assert (0, 0, 1) == (backend.in_flight, backend.open_connections, network.open_connections)
    assert b"" == await stream.receive_some()
    await stream.aclose()
    assert 0 == network.open_connections
    assert ["aborted"] == [exchange.outcome for exchange in backend.exchanges]
    assert "http://a.test/mcp" == url


async def test_servers_do_not_share_their_clients_context() -> None:
    """A handler sees none of the context variables of the task that connected."""
    who = contextvars.ContextVar("who", default="nobody")

    async def look(arguments: JSON, context: CallContext) -> str:
        return who.get()

    backend = ScriptedBackend()
    backend.add_tool("look", look)
    who.set("alice")
    async with open_raw_client(backend) as client:
        assert "nobody" == (await client.result("tools/call", {"name": "look"}))["content"][0]["text"]


# Connections


async def test_connections_are_kept_alive_and_replaced_when_they_end() -> None:
    """One connection serves many requests; a connection that its server has closed is not used again."""
    backend = ScriptedBackend()
    async with open_memory_network() as network, open_client_on(network, backend) as client:
        await client.shake_hands()
        for _ in range(3):
            await client.request("ping")
        assert 1 == network.connection_attempts
        backend.crash()
        backend.restart()
        await wait_all_tasks_blocked()
        await client.shake_hands()
        assert 2 == network.connection_attempts


async def test_a_response_left_early_closes_its_connection(autojump_clock: MockClock) -> None:
    """Closing a half-read body leaves no connection open."""

    async def talk(arguments: JSON, context: CallContext) -> str:
        await context.progress(1)
        await context.progress(2)
        await trio.sleep(60)
        return "done"

    backend = ScriptedBackend(era="modern", answers="sse")
    backend.add_tool("talk", talk)
    async with open_memory_network() as network, open_client_on(network, backend) as client:
        transport = network.transport()
        response = await transport.handle_async_request(client.build("tools/call", {"name": "talk"}, token=1))
        assert isinstance(response.stream, httpx.AsyncByteStream)
        assert b"notifications/progress" in await anext(aiter(response.stream))
        await response.stream.aclose()
        await wait_all_tasks_blocked()
        assert {"talk": 1} == backend.cancelled
        assert 0 == network.open_connections
        await transport.aclose()
        del response
        gc.collect()  # an unfinished async generator would warn here, and warnings are errors


# Peers that misbehave


async def say(network: MemoryNetwork, *parts: bytes) -> bytes:
    """The whole answer to these bytes."""
    stream = await network.connect("a.test", 80)
    async with stream:
        for part in parts:
            await stream.send_all(part)
            await wait_all_tasks_blocked()
        data = bytearray()
        while chunk := await stream.receive_some():
            data += chunk
    return bytes(data)


CLOSING = b"POST /mcp HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


async def test_a_peer_that_does_not_speak_http_is_told_so() -> None:
    """The answer is 400 and the end of the connection; other connections are served."""
    backend = ScriptedBackend()
    async with open_memory_network() as network:
        network.attach("a.test", backend)
        assert (await say(network, b"\x16\x03\x01 hello\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        too_long = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n" + bytes(17 * 1024 * 1024)
        assert (await say(network, too_long)).startswith(b"HTTP/1.1 413 ")
        async with await network.connect("a.test", 80) as silent:
            await silent.send_all(b"POST / HTTP/1.1\r\nhost:")
        assert (await say(network, CLOSING)).startswith(b"HTTP/1.1 415 ")
    assert [] == backend.errors
    assert ["POST"] == [exchange.verb for exchange in backend.exchanges]


async def test_requests_sent_ahead_are_answered_in_order() -> None:
    """Pipelining (RFC 9112 §9.3.2): the second request waits while the first is handled."""
    backend = ScriptedBackend()
    async with open_memory_network() as network:
        network.attach("a.test", backend)
        first = b"GET /mcp HTTP/1.1\r\nhost: x\r\n\r\n"
        answers = await say(network, first + CLOSING[:10], CLOSING[10:])
    assert 1 == answers.count(b"HTTP/1.1 405 ")
    assert answers.index(b" 405 ") < answers.index(b" 415 ")


async def test_a_bug_in_an_application_ends_its_connection_only() -> None:
    """The exception is in `errors`, and the next connection is served."""

    async def fall(arguments: JSON, context: CallContext) -> JSON:
        return {"content": [object()]}  # not JSON

    backend = ScriptedBackend()
    backend.add_tool("fall", fall)
    async with open_memory_network() as network, open_client_on(network, backend) as client:
        await client.shake_hands()
        with pytest.raises(httpx.RemoteProtocolError):
            await client.request("tools/call", {"name": "fall"})
        assert 200 == (await client.request("ping")).status_code
    assert [TypeError] == [type(error) for error in backend.errors]


async def test_an_application_of_ones_own_can_be_served(nursery: trio.Nursery) -> None:
    """`serve_http` takes any application, streams its response, and limits request bodies."""

    async def shout(request: Request, reply: Reply) -> None:
        await reply.start(200, [("content-type", "text/plain")])
        for word in request.body.split():
            await reply.send(word.upper())
        await reply.end()

    class Shouting:
        async def accept(self) -> None:
            await trio.lowlevel.checkpoint()

        async def serve_connection(self, stream: trio.abc.Stream) -> None:
            await serve_http(stream, shout, max_body_bytes=8)

    async with open_memory_network() as network:
        url = network.attach("shout.test", Shouting())
        async with httpx.AsyncClient(transport=network.transport()) as client:
            assert "HIYOU" == (await client.post(url, content=b"hi you")).text
            assert 413 == (await client.post(url, content=b"hello you")).status_code


async def test_what_a_peer_sends_ahead_is_bounded() -> None:
    """A peer that goes on sending during a request loses its connection, and the application is cancelled."""
    ended: list[str] = []

    async def wait(request: Request, reply: Reply) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(request.verb)

    client, server = memory_connection()
    async with trio.open_nursery() as nursery, client:
        nursery.start_soon(partial(serve_http, server, wait, max_body_bytes=8))
        await client.send_all(b"PUT / HTTP/1.1\r\nhost: x\r\n\r\n")
        await wait_all_tasks_blocked()
        await client.send_all(b"GET / HT")
        await wait_all_tasks_blocked()
        assert [] == ended
        await client.send_all(b"TP/1.1")
        assert b"" == await client.receive_some()
    assert ["PUT"] == ended


# Loopback


async def test_a_backend_is_served_over_tcp() -> None:
    """Over real sockets, too: calls, cancellation by disconnection, reset, refusal, crash."""

    async def wait(arguments: JSON, context: CallContext) -> str:
        await trio.sleep_forever()
        raise AssertionError

    backend = ScriptedBackend(era="modern", answers="sse")
    backend.add_tool("echo")
    backend.add_tool("wait", wait)
    async with open_loopback(backend) as url, httpx.AsyncClient(trust_env=False, timeout=None) as http:
        client = RawClient(http, url, modern=True)
        called = await client.result("tools/call", {"name": "echo", "arguments": {"a": 1}})
        assert '{"a": 1}' == called["content"][0]["text"]

        async with trio.open_nursery() as calls:
            calls.start_soon(client.request, "tools/call", {"name": "wait"})
            await until(lambda: backend.executed["wait"] == 1)
            calls.cancel_scope.cancel()
        await until(lambda: backend.in_flight == 0)
        assert {"wait": 1} == backend.cancelled

        backend.fail("server/discover", Reset(20), times=1)
        with pytest.raises(httpx.ReadError):
            await client.request("server/discover")
        backend.crash()
        await until(lambda: backend.open_connections == 0)
        with pytest.raises((httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)):
            await client.request("server/discover")
        backend.restart()
        backend.fail(CONNECT, Refuse(), times=1)
        with pytest.raises((httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)):
            await client.request("server/discover")
        assert 200 == (await client.request("server/discover")).status_code
    assert [] == backend.errors


async def until(condition: object) -> None:
    """Wait until the other side of a real socket has noticed."""
    assert callable(condition)
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110
            await trio.lowlevel.checkpoint()
