"""The front on a port: the url that it gives, TLS, how it ends, and that one connection harms no other."""

from __future__ import annotations

import importlib
import json
import logging
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import attrs
import pytest
import trio
import trustme
from hypercorn.config import Config
from support.front import LEGACY, modern_request
from support.front_http import INITIALIZE, JSON_TYPE, Answer, call, connect, encode, post, read_whole
from support.harness import echo_backend

from trio_vmcp import (
    JSON,
    Backend,
    FactorySettings,
    SessionManager,
    open_session_factory,
    open_session_manager,
)
from trio_vmcp._http.transport import Http11Transport
from trio_vmcp.serve import ServeSettings, asgi_app, serve, server
from trio_vmcp.testing import CallContext, MemoryNetwork, ScriptedBackend, open_memory_network


@attrs.define(eq=False)
class Called:
    """A backend whose tool "wait" tells that it runs, and waits until it may answer; "large" answers with much."""

    backend: ScriptedBackend = attrs.field(factory=lambda: echo_backend(answers="sse"))
    begun: trio.Event = attrs.field(factory=trio.Event)
    go_on: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.backend.add_tool("wait", self._wait)
        self.backend.add_tool("large", self._large)

    async def _wait(self, arguments: JSON, context: CallContext) -> str:
        await context.progress(1)
        self.begun.set()
        await self.go_on.wait()
        return "waited"

    async def _large(self, arguments: JSON, context: CallContext) -> str:
        self.begun.set()
        return "x" * 3_000_000  # more than the buffers of a connection on loopback take


@asynccontextmanager
async def open_manager(backend: ScriptedBackend) -> AsyncIterator[SessionManager]:
    async with open_memory_network() as network, open_manager_in(network, backend) as manager:
        yield manager


@asynccontextmanager
async def open_manager_in(network: MemoryNetwork, backend: ScriptedBackend) -> AsyncIterator[SessionManager]:
    url = network.attach("http://a.test/mcp", backend)
    transport = Http11Transport(dial=network.dial)
    settings = FactorySettings(drain_timeout=0.1)
    async with open_session_factory(transport=transport, settings=settings) as factory:
        async with open_session_manager(factory, [Backend("a", url)]) as manager:
            yield manager


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("0.0.0.0", "0.0.0.0"),
    ],
)
async def test_started_gives_a_url_that_works(host: str, shown: str, nursery: trio.Nursery) -> None:
    """With port 0 the url has the real port, and requests of both eras that name the host of the url are taken."""
    async with open_manager(echo_backend()) as manager:
        url = await nursery.start(partial(serve, manager, host=host, port=0))
        parts = urlsplit(url)
        assert (f"{shown}:{parts.port}", "http", "/mcp") == (parts.netloc, parts.scheme, parts.path)
        assert LEGACY == (await post(url, INITIALIZE)).result["protocolVersion"]
        assert "resultType" in (await call(url, "a_echo")).result
        nursery.cancel_scope.cancel()


async def test_a_port_that_is_taken(nursery: trio.Nursery) -> None:
    """OSError before `started()`, as itself."""
    async with open_manager(echo_backend()) as manager:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            with pytest.raises(OSError, match="in use"):
                await nursery.start(partial(serve, manager, port=taken.getsockname()[1]))
        with pytest.raises(OSError, match=r"\[Errno -"):
            await nursery.start(partial(serve, manager, host="no such host"))
        nursery.cancel_scope.cancel()


async def test_tls(nursery: trio.Nursery, tmp_path: Any) -> None:
    """`certfile` and `keyfile` of hypercorn's options make it https."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    config = Config.from_mapping(certfile=str(tmp_path / "server.pem"), keyfile=str(tmp_path / "server.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with open_manager(echo_backend()) as manager:
        url = await nursery.start(partial(serve, manager, host="localhost", port=0, config=config))
        assert url.startswith("https://localhost:")
        async with open_session_factory(ssl_context=context) as clients:
            async with clients.open_session([Backend("front", url)]) as session:
                assert "a" in (await session.call_tool("front_a_echo", {"x": "a"})).raw["content"][0]["text"]
        missing = Config.from_mapping(certfile="no-such-file", keyfile="no-such-file")
        with pytest.raises(FileNotFoundError):
            await nursery.start(partial(serve, manager, port=0, config=missing))
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def served(called: Called, **settings: Any) -> AsyncIterator[tuple[str, trio.CancelScope, trio.Event]]:
    """The url of a server, the scope that ends the server and the manager, and what is set when they have ended."""
    ended, scope = trio.Event(), trio.CancelScope()

    async def run(task_status: trio.TaskStatus[str]) -> None:  # noqa: ASYNC114, ASYNC128  # `serve` calls it
        with scope:
            async with open_manager_in(network, called.backend) as manager:
                await serve(manager, port=0, settings=ServeSettings(**settings), task_status=task_status)
        ended.set()

    async with open_memory_network() as network, trio.open_nursery() as nursery:
        yield await nursery.start(run), scope, ended
        scope.cancel()


async def test_a_cancelled_server_answers_what_it_has_taken(nursery: trio.Nursery) -> None:
    """Running calls are answered, one in JSON and one on its stream. Meanwhile no other request is taken, streams that
    would stay open end, and connections without a request end with the server.
    """
    called, answers = Called(), list[Answer]()

    async def call_and_keep(message: JSON, headers: dict[str, str]) -> None:
        answers.append(await post(url, message, headers))

    async with served(called) as (url, scope, ended):
        session = {"mcp-session-id": (await post(url, INITIALIZE)).headers["mcp-session-id"]}
        idle, legacy, modern = await connect(url), await connect(url), await connect(url)
        await idle.send_all(encode(url, "POST", JSON_TYPE, json.dumps(INITIALIZE).encode()))
        await legacy.send_all(encode(url, "GET", {"accept": "text/event-stream", **session}))
        message, headers = modern_request("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        await modern.send_all(encode(url, "POST", {**JSON_TYPE, **headers}, json.dumps(message).encode()))
        for stream in (idle, legacy, modern):
            assert b"HTTP/1.1 200" in await stream.receive_some()
        params: JSON = {"name": "a_wait", "arguments": {}}
        nursery.start_soon(call_and_keep, *modern_request("tools/call", params))
        await called.begun.wait()
        called.begun = trio.Event()
        streamed = {
            "jsonrpc": "2.0",
            "id": 7,
            "method": "tools/call",
            "params": {**params, "_meta": {"progressToken": 1}},
        }
        nursery.start_soon(call_and_keep, streamed, session)
        await called.begun.wait()
        scope.cancel()
        refused = await call(url, "a_echo")
        assert 503 == refused.status
        assert "retry-after" in refused.headers
        assert not ended.is_set()
        called.go_on.set()
        began_at = trio.current_time()
        await ended.wait()
        assert 1.5 > trio.current_time() - began_at
        assert b'"result"' in b"".join([piece async for piece in modern])
        for stream in (idle, legacy):
            assert b"error" not in b"".join([piece async for piece in stream])
        for stream in (idle, legacy, modern):
            await stream.aclose()
    assert ["application/json", "text/event-stream"] == sorted(answer.headers["content-type"] for answer in answers)
    assert all(b"waited" in answer.body for answer in answers)


@pytest.mark.parametrize("tool", ["wait", "large"])
async def test_the_end_is_bounded(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that does not end is cut `shutdown_timeout` s after the cancel; a client that does not read its answer
    holds nothing up either.
    """
    monkeypatch.setattr(server, "GRACE", 0.05)
    called = Called()
    async with served(called, shutdown_timeout=0.05) as (url, scope, ended):
        message, headers = modern_request("tools/call", {"name": f"a_{tool}", "arguments": {}})
        async with await connect(url) as stream:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            await stream.send_all(encode(url, "POST", {**JSON_TYPE, **headers}, json.dumps(message).encode()))
            await called.begun.wait()
            if tool == "large":
                assert b"200" in await stream.receive_some(100)
            began_at = trio.current_time()
            scope.cancel()
            await ended.wait()
            assert 0.1 <= trio.current_time() - began_at < 0.6


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_requests_that_a_client_has_left_behind(how: str, nursery: trio.Nursery) -> None:
    """Requests may be sent ahead of the responses. Once the client is gone, the rest of them is not carried out."""
    async with open_manager(echo_backend()) as manager:
        url = await nursery.start(partial(serve, manager, port=0))
        request = encode(url, "POST", JSON_TYPE, json.dumps(INITIALIZE).encode())
        stream = await connect(url)
        await stream.send_all(request * 60)
        assert b"HTTP/1.1 200" in await stream.receive_some(100)
        if how == "reset":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()
        created = -1
        while created != manager.statistics.created or manager.statistics.opening:
            created = manager.statistics.created
            await trio.sleep(0.05)  # a real socket, and no event tells that a server will open no further session
        assert created < 30
        assert 200 == (await post(url, INITIALIZE)).status
        nursery.cancel_scope.cancel()


async def test_a_connection_that_crashes_hypercorn(caplog: pytest.LogCaptureFixture) -> None:
    """A bad `HTTP2-Settings` is an error that hypercorn 0.18 does not expect. One connection ends, and no other."""
    bad = {"upgrade": "h2c", "http2-settings": "a", "connection": "Upgrade, HTTP2-Settings"}
    async with served(Called()) as (url, _, _):
        async with await connect(url) as stream:
            request = encode(url, "GET", bad).replace(b"content-length: 0\r\n", b"")
            await stream.send_all(request)
            await read_whole(stream)
        assert 200 == (await call(url, "a_echo")).status
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert ["a connection has crashed: Error"] == told


@pytest.mark.parametrize("name", ["hypercorn.trio", "anycorn"])
async def test_the_application_under_another_server(name: str) -> None:
    """`asgi_app` alone: both eras are answered, a held stream ends with `drain`, and a WebSocket is refused."""
    module = importlib.import_module(name)
    config = importlib.import_module(f"{name.partition('.')[0]}.config").Config()
    config.bind, config.errorlog, config.graceful_timeout = ["127.0.0.1:0"], None, 1.0
    stopped = trio.Event()
    async with open_manager(echo_backend()) as manager, trio.open_nursery() as nursery:
        app = asgi_app(manager)
        run = partial(module.serve, app, config, shutdown_trigger=stopped.wait)
        (origin,) = await nursery.start(run)
        url = f"{origin}/mcp"
        assert 200 == (await post(url, INITIALIZE)).status
        assert "resultType" in (await call(url, "a_echo")).result
        async with await connect(url) as stream:
            await stream.send_all(encode(url, "GET", UPGRADE))
            assert 403 == (await read_whole(stream)).status
        message, headers = modern_request("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        async with await connect(url) as stream:
            await stream.send_all(encode(url, "POST", {**JSON_TYPE, **headers}, json.dumps(message).encode()))
            assert b"200" in await stream.receive_some()
            await app.drain()
            stopped.set()
            assert b'"result"' in b"".join([piece async for piece in stream])


UPGRADE = {
    "upgrade": "websocket",
    "connection": "upgrade",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


async def test_websockets_are_refused() -> None:
    """403, and no error in the log."""
    async with served(Called()) as (url, _, _), await connect(url) as stream:
        await stream.send_all(encode(url, "GET", UPGRADE))
        assert 403 == (await read_whole(stream)).status


async def test_nothing_is_said_of_requests(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """There is no access log, and hypercorn writes nothing of its own."""
    async with served(Called()) as (url, _, _):
        assert 200 == (await call(url, "a_echo")).status
        assert "server" not in (await post(url, INITIALIZE)).headers
    assert ("", "") == capfd.readouterr()
    assert not [record for record in caplog.records if record.name.startswith("hypercorn")]


def test_without_hypercorn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application is there without it, and `serve` says which extra it needs."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "hypercorn"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "hypercorn", None)
    monkeypatch.delitem(sys.modules, "trio_vmcp.serve.server")
    import trio_vmcp.serve

    assert trio_vmcp.serve.asgi_app is asgi_app
    with pytest.raises(ImportError, match=r"trio-vmcp\[serve\]"):
        getattr(trio_vmcp.serve, "serve")  # noqa: B009  # as an import does
