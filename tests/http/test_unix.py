"""HTTP over unix sockets: `unix:///path/to/socket#/mcp`, as VS Code writes them."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
from support.harness import echo_backend
from support.raw_http import OK, RawServer, answer, until

from trio_vmcp import Backend, BearerAuth, FailureReason, open_session_factory
from trio_vmcp._http.origin import Origin, host_header, http_url, origin_of, shown_origin, within_origin
from trio_vmcp.testing import ScriptedBackend
from trio_vmcp.testing._servers import open_servers
from trio_vmcp.testing.network import StreamServer

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no unix sockets on this system")


@asynccontextmanager
async def open_socket(server: StreamServer) -> AsyncIterator[str]:
    """The path of a socket that the server listens on. Not in `tmp_path`: a path may have 107 bytes (unix(7))."""
    with tempfile.TemporaryDirectory() as place:
        path = f"{place}/My server.sock"
        async with open_servers() as nursery:
            listening = trio.socket.socket(socket.AF_UNIX)
            await listening.bind(path)
            listening.listen()
            await nursery.start(
                partial(trio.serve_listeners, server.serve_connection, [trio.SocketListener(listening)])
            )
            yield path


def test_a_url_of_a_socket() -> None:
    """The path is percent-decoded, and may have letters of either case; behind the sign is the path of requests."""
    for text, path, target in (
        ("unix:///tmp/My%20s.sock#/mcp?x=1", "/tmp/My s.sock", b"/mcp?x=1"),
        ("unix:///tmp/é#mcp", "/tmp/é", b"/mcp"),
        ("unix:/tmp/s", "/tmp/s", b"/"),
    ):
        url = http_url(text)
        assert (Origin("unix", path, 0), target) == (origin_of(url), url.raw_path)
        assert b"localhost" == host_header(url)
        assert f"unix://{path}" == shown_origin(url)
    assert httpx.URL("http://b.test/mcp") == http_url("http://b.test/mcp")
    assert "xyz.unix-socket.invalid" == origin_of(httpx.URL("http://xyz.unix-socket.invalid")).host


def test_what_a_server_on_a_socket_calls_itself() -> None:
    """It knows the `Host` that it was sent, and no path of a socket."""
    url = http_url("unix:///tmp/s#/sse")
    for reference in ("/messages?s=1", "messages?s=1", "http://localhost/messages?s=1"):
        target = within_origin(url, reference)
        assert target is not None
        assert (Origin("unix", "/tmp/s", 0), b"/messages?s=1") == (origin_of(target), target.raw_path)
    for reference in (
        "http://b.test/messages",
        "http://localhost:81/",
        "https://localhost/",
        str(http_url("unix:///t")),
    ):
        assert within_origin(url, reference) is None


@pytest.mark.parametrize("url", ["unix://tmp/s", "unix:///", "unix:", "unix:s.sock", "unix:///tmp/s?x=canary"])
def test_a_url_that_names_no_socket(url: str) -> None:
    with pytest.raises(ValueError, match="is not unix:///path/to/socket#/mcp") as caught:
        Backend(id="b", url=url)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("era", "transport"),
    [("modern", "streamable-http"), ("legacy", "streamable-http"), ("legacy", "sse"), ("both", "sse")],
)
@pytest.mark.parametrize("auth", [None, BearerAuth("token")], ids=["", "auth"])
async def test_a_session_over_a_socket(era: str, transport: str, auth: BearerAuth | None) -> None:
    """In both eras, over both transports, with an httpx.Auth and without; no proxy is between."""
    backend: ScriptedBackend = echo_backend(era, "sse", transport=transport)
    async with open_socket(backend) as path:
        configured = Backend(id="b", url=f"unix://{path}#/mcp", transport=transport)
        async with open_session_factory(auth=auth, proxy="http://127.0.0.1:9") as factory:
            async with factory.open_session([configured]) as session:
                assert () == session.failures
                await session.call_tool("b_echo", {"text": "x" * 100_000})
        await until(lambda: not backend.open_connections)
    assert {"localhost"} == {exchange.headers["host"] for exchange in backend.exchanges}
    assert {"Bearer token" if auth else None} == {
        exchange.headers.get("authorization") for exchange in backend.exchanges
    }


async def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    """With the reason of the operating system's; a redirect that is not followed shows the socket and the path."""
    server = RawServer([(answer(b"", b"Location: /other?x=canary", status=b"303 See Other"),), (OK,)])
    async with open_socket(server) as path, open_session_factory() as factory:
        backends = [
            Backend(id="gone", url=f"unix://{tmp_path}/s#/mcp"),
            Backend(id="moves", url=f"unix://{path}#/mcp", era="modern"),
        ]
        async with factory.open_session(backends) as session:
            gone, moves = session.failures
    assert (FailureReason.UNREACHABLE, "could not be reached: No such file or directory") == (gone.reason, gone.detail)
    assert f"to 'unix://{path}/other', which is not followed" in moves.detail
