"""Real connections: addresses, TLS with its checks, and how the end of an idle connection is seen without waiting."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import httpx
import pytest
import trio
import trio.testing
from support.raw_http import (
    OK,
    Kind,
    RawServer,
    Served,
    answer,
    authority,
    client_context,
    open_served,
    open_tls_loopback,
    server_context,
    until,
)

from trio_vmcp import Backend, BackendUnavailable, FactorySettings, FailureReason, open_session_factory
from trio_vmcp._client.http.connection_limit import ConnectionLimit
from trio_vmcp._client.http.link import HttpLink
from trio_vmcp._http.dial import ConnectedStream, TcpDial
from trio_vmcp._http.origin import Origin
from trio_vmcp._http.tls import TlsStream
from trio_vmcp._http.transport import Http11Transport
from trio_vmcp.testing import ScriptedBackend
from trio_vmcp.testing._servers import open_servers
from trio_vmcp.testing.streams import reset


async def ask(transport: Http11Transport, url: str) -> bytes:
    async with httpx.AsyncClient(transport=transport) as client:
        return (await client.get(url)).content


def link_over(transport: Http11Transport, url: str) -> HttpLink:
    return HttpLink(
        Backend(id="b", url=url),
        transport,
        auth=None,
        limit=ConnectionLimit(1),
        max_message_bytes=1000,
    )


async def refusal(transport: Http11Transport, url: str) -> str:
    """The error text of a backend that could not be reached."""
    with pytest.raises(BackendUnavailable) as caught:
        async with link_over(transport, url).exchange("GET", [], identity=None):
            pass
    transport.close()
    assert not caught.value.may_have_executed
    return str(caught.value)


# Addresses


async def test_ipv6_literals() -> None:
    """The address is dialled without brackets; the Host header has them (RFC 9110 §7.2)."""
    server = RawServer([(OK,)])
    try:
        (listener,) = await trio.open_tcp_listeners(0, host="::1")
    except OSError:
        pytest.skip("no IPv6 on this machine")
    port = listener.socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_listeners, server.serve_connection, [listener]))
        assert b"ok" == await ask(Http11Transport(), f"http://[::1]:{port}/")
        ((head, _),) = server.requests
        assert b"host: [::1]:%d\r\n" % port in head.lower() + b"\r\n"
        nursery.cancel_scope.cancel()


class Resolver(trio.abc.HostnameResolver):
    """Every host is 127.0.0.1."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    async def getaddrinfo(self, host: object, port: int | str | None, *rest: int) -> list[object]:  # type: ignore[override]  # fewer kinds
        await trio.lowlevel.checkpoint()
        self.asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:
        raise AssertionError("not asked for")


async def test_an_address_with_a_zone() -> None:
    """The resolver is given the zone, which is a name of this machine's; the certificate is checked without."""
    resolver = Resolver()
    async with open_tls_loopback(RawServer([(OK,)]), server_context("fe80::1")) as url:
        trio.socket.set_custom_hostname_resolver(resolver)
        try:
            transport = Http11Transport(ssl_context=client_context())
            assert b"ok" == await ask(transport, url.replace("localhost", "[fe80::1%25nowhere]"))
        finally:
            trio.socket.set_custom_hostname_resolver(None)
        transport.close()
    assert [b"fe80::1%nowhere"] == resolver.asked


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_a_silent_peer_is_probed(kind: Kind) -> None:
    """A connection to a machine that is gone ends after two minutes (RFC 9293 §3.8.4), where the system can do it."""
    async with open_served(kind, OK) as served:
        await served.ask()
        (idle,) = served.transport._idle[served.origin]
        stream = idle._connected.stream
        connected = (stream.below if isinstance(stream, TlsStream) else stream)._socket  # type: ignore[attr-defined]  # no public way to it
        assert 1 == connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for name, value in {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}.items():
            if hasattr(socket, name):
                assert value == connected.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))


async def test_a_name_with_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a name has several addresses and one of them refuses, another one is used, as with `trio.open_tcp_stream`."""

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host: object, port: int | str | None, *rest: int) -> list[object]:  # type: ignore[override]
            await trio.lowlevel.checkpoint()
            return [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1")
            ]

        async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:
            raise NotImplementedError

    async with open_served("tcp", OK) as served:
        trio.socket.set_custom_hostname_resolver(Resolver())
        try:
            assert b"ok" == await ask(served.transport, served.url.replace("127.0.0.1", "many.test"))
        finally:
            trio.socket.set_custom_hostname_resolver(None)


async def free_port() -> int:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        return int(listener.socket.getsockname()[1])


async def test_a_port_without_a_listener_is_unreachable() -> None:
    """Over http and https, the error is "unreachable" with the operating system's text."""
    port = await free_port()
    for scheme in ("http", "https"):
        said = await refusal(Http11Transport(), f"{scheme}://127.0.0.1:{port}/")
        assert "backend 'b' could not be reached: Connection refused" == said


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full queue takes more, or refuses")
async def test_cancelled_on_the_way_to_an_address() -> None:
    """A connection attempt that is cancelled while it waits to be accepted leaves no socket open."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)  # one connection fits into the backlog, the others wait
        origin = Origin("http", "127.0.0.1", listener.getsockname()[1])
        dial, wires = TcpDial(), list[ConnectedStream]()

        async def connect() -> None:
            wires.append(await dial(origin))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(connect)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        assert len(wires) < 8
        for wire in wires:
            wire.close()


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "a..test", ".test"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_hosts_that_cannot_be_one(scheme: str, host: str) -> None:
    """A host that is no possible name is `httpx.ConnectError`, not an error of Python's codecs."""
    transport = Http11Transport(ssl_context=client_context())
    assert "no name that DNS can have" in await refusal(transport, f"{scheme}://{host}/")
    assert "no name that DNS can have" in await refusal(Http11Transport(), f"{scheme}://{host}/")


# TLS


async def test_one_context_for_all_built_once_and_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The context is built once, in a thread: it takes 20 ms, and only requests over https wait for it."""
    built: list[bool] = []

    def build() -> ssl.SSLContext:
        built.append(threading.current_thread() is threading.main_thread())
        return client_context()

    monkeypatch.setattr(ssl, "create_default_context", build)
    async with open_served("tls", OK) as served:
        transport = Http11Transport()
        origins = [served.origin] * 5
        async with trio.open_nursery() as nursery:
            for origin in origins:
                nursery.start_soon(transport.connect, origin)
        assert 5 == transport.idle_connections
        await transport.connect(Origin("https", "127.0.0.1", served.origin.port))
        transport.close()
    assert [False] == built


async def test_http_needs_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssl, "create_default_context", None)
    async with open_served("tcp", OK) as served:
        assert b"ok" == await served.ask()


async def test_a_context_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the context cannot be built, the request fails with that error, its connection is closed, and the next
    request tries again.
    """
    failing = True

    def build() -> ssl.SSLContext:
        if failing:
            raise ssl.SSLError(1, "no trust store")
        return client_context()

    monkeypatch.setattr(ssl, "create_default_context", build)
    async with open_served("tls", OK) as served:
        transport = Http11Transport()
        with pytest.raises(httpx.ConnectError, match="no trust store"):
            await transport.connect(served.origin)
        failing = False
        await transport.connect(served.origin)
        transport.close()


@pytest.mark.parametrize("listens", [True, False])
async def test_cancelled_while_the_context_is_built(monkeypatch: pytest.MonkeyPatch, listens: bool) -> None:
    """A request that is cancelled meanwhile, connected already or refused, leaves no socket; the next request uses the
    context.
    """
    go_on = threading.Event()

    def build() -> ssl.SSLContext:
        assert go_on.wait(5)
        return client_context()

    monkeypatch.setattr(ssl, "create_default_context", build)
    async with open_served("tls", OK) as served:
        dial = TcpDial()
        port = served.origin.port if listens else await free_port()

        async def connect() -> None:
            with suppress(OSError):
                await dial(Origin("https", "127.0.0.1", port))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
            go_on.set()
        assert dial.ssl_context is not None
        wire = await dial(served.origin)
        wire.close()


async def test_the_servers_name_is_sent_and_checked() -> None:
    """The name is sent as SNI (RFC 6066 §3) and checked against the certificate; an address is checked as an
    address.
    """
    named: list[str | None] = []

    def note(tls: object, name: str | None, context: ssl.SSLContext) -> None:
        named.append(name)

    context = server_context()
    context.sni_callback = note
    server = RawServer([(OK,)])
    async with open_tls_loopback(server, context) as url:
        for host in ("localhost", "127.0.0.1"):
            transport = Http11Transport(ssl_context=client_context())
            assert b"ok" == await ask(transport, url.replace("localhost", host))
    assert ["localhost", None] == named  # RFC 6066 §3: literal addresses are not sent


async def test_another_name_is_refused() -> None:
    """A certificate for another name: the error says so, and the server gets no request."""
    server = RawServer([(OK,)])
    async with open_tls_loopback(server, server_context("other.test")) as url:
        said = await refusal(Http11Transport(ssl_context=client_context()), url)
        assert "could not be reached: its certificate is refused: Hostname mismatch" in said
        assert "'localhost'" in said
    assert 0 == server.connections


async def test_an_unknown_authority_is_refused() -> None:
    """A certificate of an unknown authority is refused, by the platform's trust store, too."""
    server = RawServer([(OK,)])
    async with open_tls_loopback(server, server_context()) as url:
        for context in (None, ssl.create_default_context()):
            said = await refusal(Http11Transport(ssl_context=context), url)
            assert "could not be reached: its certificate is refused: unable to get local issuer certificate" in said
    assert 0 == server.connections


async def test_an_expired_certificate_is_refused() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    authority.issue_cert("localhost", not_after=yesterday).configure_cert(context)
    async with open_tls_loopback(RawServer([(OK,)]), context) as url:
        said = await refusal(Http11Transport(ssl_context=client_context()), url)
    assert "its certificate is refused: certificate has expired" in said


@asynccontextmanager
async def open_plain(says: bytes | None) -> AsyncIterator[str]:
    """A server without TLS, reached by https: answers anything with plain text and closes; None: resets the
    connection.
    """

    async def say(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            if says is None:
                reset(stream)
            elif says:
                await stream.send_all(says)

    async with open_servers() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, say, 0, host="127.0.0.1"))
        yield f"https://127.0.0.1:{listener.socket.getsockname()[1]}/"


async def test_a_server_without_tls_is_refused() -> None:
    """The error says that TLS failed."""
    async with open_plain(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url:
        said = await refusal(Http11Transport(ssl_context=client_context()), url)
    assert "could not be reached: TLS failed: wrong version number" in said


async def test_a_server_that_closes_in_the_handshake() -> None:
    async with open_plain(b"") as url:
        said = await refusal(Http11Transport(ssl_context=client_context()), url)
    assert "could not be reached: TLS failed: " in said


async def test_a_reset_in_the_handshake() -> None:
    async with open_plain(None) as url:
        with pytest.raises(httpx.ConnectError, match="Connection reset by peer"):
            await ask(Http11Transport(ssl_context=client_context()), url)
        said = await refusal(Http11Transport(ssl_context=client_context()), url)
        assert "could not be reached: Connection reset by peer" in said


def insisting_context() -> ssl.SSLContext:
    """The context of a server that requires client certificates."""
    context = server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    return context


async def test_client_certificates() -> None:
    """A certificate in `ssl_context` is shown to a server that requires one."""
    async with open_tls_loopback(RawServer([(OK,)]), insisting_context()) as url:
        context = client_context()
        authority.issue_cert("client.test").configure_cert(context)
        assert b"ok" == await ask(Http11Transport(ssl_context=context), url)


def refuse_client(listener: socket.socket, context: ssl.SSLContext, heard: threading.Event) -> None:
    plain, _ = listener.accept()
    with context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False) as tls:
        with suppress(ssl.SSLError):
            tls.do_handshake()
        heard.wait(5)  # else a reset for the unread bytes would overtake the alert


async def test_a_missing_client_certificate() -> None:
    """In TLS 1.3 the server refuses after the client's handshake has succeeded and its request is written (RFC 8446
    §4.4.2.4).
    """
    heard = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, refuse_client, listener, insisting_context(), heard)
            link = link_over(Http11Transport(ssl_context=client_context()), url)
            with pytest.raises(BackendUnavailable, match=r"lost its connection: TLS failed: .*certificate required"):
                async with link.exchange("GET", [], identity=None):
                    pass
            heard.set()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_both_versions_of_tls(version: ssl.TLSVersion) -> None:
    context = server_context()
    context.maximum_version = context.minimum_version = version
    body = bytes(200_000)
    async with open_tls_loopback(RawServer([(answer(body),)]), context) as url:
        transport = Http11Transport(ssl_context=client_context())
        async with httpx.AsyncClient(transport=transport) as client:
            for _ in range(3):
                assert body == (await client.post(url, content=body)).content
            assert 1 == transport.idle_connections


async def test_older_versions_are_refused() -> None:
    """Without a version that both sides accept, the error says TLS. The platform's OpenSSL and Python decide which they
    accept; here the server insists on TLS 1.3.
    """
    context, older = server_context(), client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    async with open_tls_loopback(RawServer([(OK,)]), context) as url:
        assert "could not be reached: TLS failed: " in await refusal(Http11Transport(ssl_context=older), url)


def blocking_server(listener: socket.socket, context: ssl.SSLContext, shook: threading.Event) -> int:
    """Serves one connection like servers over OpenSSL: they send session tickets right after the handshake."""
    plain, _ = listener.accept()
    with context.wrap_socket(plain, server_side=True) as tls:
        shook.set()
        requests = 0
        while tls.recv(65536):
            requests += 1
            tls.sendall(OK)
    return requests


async def test_session_tickets_are_no_news() -> None:
    """Session tickets arrive on a new idle connection (RFC 8446 §4.6.1), and the connection is still used."""
    context, shook = server_context(), threading.Event()
    served: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)

        async def serve() -> None:
            served.append(await trio.to_thread.run_sync(blocking_server, listener, context, shook))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            transport = Http11Transport(ssl_context=client_context())
            origin = Origin("https", "127.0.0.1", listener.getsockname()[1])
            await transport.connect(origin)
            (idle,) = transport._idle[origin]
            await trio.to_thread.run_sync(shook.wait, 5)
            stream = idle._connected.stream
            assert isinstance(stream, TlsStream)
            await until(stream.is_readable)
            for _ in range(3):
                assert idle.is_alive
                served_over = Served(transport, RawServer([]), f"https://127.0.0.1:{origin.port}/")
                assert b"ok" == await served_over.ask()
            assert [idle] == transport._idle[origin]
            transport.close()
    assert [3] == served


async def test_a_tls_record_in_the_socket_counts_as_unread() -> None:
    """Bytes that nothing asked for, and that no read has taken from the socket, make a connection unfit; a whole answer
    that was read does not.
    """

    async def serve(tcp: trio.SocketStream) -> None:
        async with tcp:
            stream = trio.SSLStream(tcp, server_context(), server_side=True)
            for answer in (b"ok", b"unasked"):
                await stream.receive_some(100)
                await stream.send_all(answer)
            await stream.receive_some(100)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(partial(trio.serve_listeners, serve, [listener]))
        connected = await TcpDial(client_context())(Origin("https", "localhost", listener.socket.getsockname()[1]))
        try:
            stream = connected.stream
            assert isinstance(stream, TlsStream)
            await stream.send_all(b"?")
            assert b"ok" == await stream.receive_some(100)
            assert not connected.has_unread()
            await stream.send_all(b"?")
            await trio.lowlevel.wait_readable(stream.below._socket)  # type: ignore[attr-defined]  # no public way to it
            assert connected.has_unread()
            assert b"un" == await stream.receive_some(2)
            assert connected.has_unread()
            assert b"asked" == stream.receive_nowait(100)
            assert not connected.has_unread()
            with pytest.raises(BlockingIOError):
                stream.receive_nowait(100)
        finally:
            connected.close()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("records", "size"), [([b"x" * 100, b"y"], 100), ([b"x" * 100], 60), ([b"x" * 100, b"y" * 60], 120)]
)
async def test_what_tls_has_taken_from_the_socket_counts_as_unread(records: list[bytes], size: int) -> None:
    """Bytes that no read has taken, behind an answer, make a connection unfit also if the socket holds no more of them:
    they are in a record that was received, or in the rest of one.
    """
    sent = trio.Event()

    async def serve(tcp: trio.SocketStream) -> None:
        async with tcp:
            stream = trio.SSLStream(tcp, server_context(), server_side=True)
            await stream.receive_some(100)
            for record in records:
                await stream.send_all(record)
            sent.set()
            await stream.receive_some(100)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(partial(trio.serve_listeners, serve, [listener]))
        connected = await TcpDial(client_context())(Origin("https", "localhost", listener.socket.getsockname()[1]))
        try:
            assert not connected.has_unread()
            await connected.stream.send_all(b"?")
            await sent.wait()
            assert size == len(await connected.stream.receive_some(size))
            assert isinstance(connected.stream, TlsStream)
            assert not connected.stream.is_readable()
            assert connected.has_unread()
            assert connected.has_unread()
        finally:
            connected.close()
        nursery.cancel_scope.cancel()


async def test_a_session_over_tls() -> None:
    """`ssl_context` of a factory is used for its backends. With a context that does not trust a backend the session
    opens, and its failure says so.
    """
    backend = ScriptedBackend(era="modern")
    backend.add_tool("echo")
    settings = FactorySettings(min_backends=0)
    async with open_tls_loopback(backend, server_context()) as url:
        configured = [Backend(id="b", url=url)]
        async with open_session_factory(ssl_context=client_context(), settings=settings) as factory:
            async with factory.open_session(configured) as session:
                assert () == session.failures
                await session.call_tool("b_echo")
        async with open_session_factory(ssl_context=ssl.create_default_context(), settings=settings) as factory:
            async with factory.open_session(configured) as session:
                (failure,) = session.failures
        assert FailureReason.UNREACHABLE is failure.reason
        assert "certificate is refused: unable to get local issuer certificate" in failure.detail
