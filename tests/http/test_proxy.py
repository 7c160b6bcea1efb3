"""Proxies: which one is used, what it is sent, and what is told when it is in the way."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import attrs
import httpx
import pytest
import trio
from support.proxy import CREDENTIALS, open_proxy
from support.raw_http import (
    CLOSE,
    HANG,
    OK,
    RESET,
    Kind,
    Piece,
    RawServer,
    answer,
    client_context,
    open_tls_loopback,
    server_context,
    until,
)
from trio.testing import MockClock

from trio_vmcp._http.origin import Origin
from trio_vmcp._http.proxy import ProxyProblem, choose_proxies
from trio_vmcp._http.transport import Http11Transport
from trio_vmcp.testing import MemoryNetwork, open_loopback, open_memory_network

HTTP, HTTPS = Origin("http", "b.test", 80), Origin("https", "b.test", 443)
BASIC = "Basic " + base64.b64encode(CREDENTIALS.encode()).decode()

kinds = pytest.mark.parametrize("kind", ["memory", "tcp", "tls"])


def chosen(setting: str | None, origin: Origin = HTTPS, **environment: str) -> str | None:
    """The proxy for an origin, without credentials."""
    proxies = choose_proxies(setting, environment)
    found = None if proxies is None else proxies.of(origin)
    return None if found is None else found.name.split("'")[1]


# The setting


@pytest.mark.parametrize(
    ("setting", "shown", "authorization"),
    [
        ("http://p.test:3128", "http://p.test:3128", b""),
        ("http://p.test", "http://p.test:80", b""),
        ("HTTPS://P.test/", "https://p.test:443", b""),
        ("http://[::1]:3128", "http://[::1]:3128", b""),
        ("http://u:p@p.test:3128", "http://p.test:3128", b"u:p"),
        ("http://u%40x:p%3A%2F@p.test:1", "http://p.test:1", b"u@x:p:/"),
        ("http://u:a@b@p.test:1", "http://p.test:1", b"u:a@b"),
        ("http://token@p.test:1", "http://p.test:1", b"token:"),
    ],
)
def test_a_url_is_the_proxy_of_every_origin(setting: str, shown: str, authorization: bytes) -> None:
    """Userinfo becomes Basic credentials (RFC 7617 §2), and is shown nowhere."""
    proxies = choose_proxies(setting, {"NO_PROXY": "*", "HTTPS_PROXY": "http://other.test"})
    assert proxies is not None
    for origin in (HTTP, HTTPS):
        proxy = proxies.of(origin)
        assert proxy is not None
        assert f"the proxy {shown!r} (proxy)" == proxy.name
        assert authorization == base64.b64decode(proxy.authorization.removeprefix(b"Basic "))
        assert "'u" not in repr(proxies)
        assert "Basic" not in repr(proxies)


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("", "'…'"),
        ("p.test:3128", "'p.test:3128'"),
        ("socks5://canary:canary@p.test:1080", "'socks5://p.test:1080'"),
        ("canary:canary@p.test:1080", "'p.test:1080'"),
        ("http://canary:canary@p.test:99999", "'http://p.test:99999'"),
        ("http://canary:canary@p.test:0", "'http://p.test:0'"),
        ("http://user:canary", "'http://user'"),
        ("http://p.test/?canary", "'http://p.test'"),
        ("http://p.test/canary", "'http://p.test'"),
        ("http://p.test\r\ncanary", "'http://p.test'"),
        ("http://", "'http://…'"),
        ("ENV", "'ENV'"),
    ],
)
def test_what_is_no_proxy_is_a_value_error(setting: str, shown: str) -> None:
    """The error shows neither userinfo nor what could be some."""
    with pytest.raises(ValueError, match="proxy") as caught:
        choose_proxies(setting, {})
    assert f"proxy {shown} is neither 'env' nor http://host:port or https://host:port" == str(caught.value)


def test_a_proxy_of_another_type_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="proxy is bytes, not str"):
        choose_proxies(b"http://canary@p.test", {})  # type: ignore[arg-type]  # which is what is tested


def test_no_setting_is_no_proxy() -> None:
    """Whatever the environment says."""
    assert choose_proxies(None, {"HTTPS_PROXY": "http://p.test", "ALL_PROXY": "http://p.test"}) is None


# The environment


@pytest.mark.parametrize(
    ("environment", "http", "https"),
    [
        ({}, None, None),
        ({"HTTP_PROXY": "http://a.test:1"}, "http://a.test:1", None),
        ({"https_proxy": "http://a.test:1"}, None, "http://a.test:1"),
        ({"HTTPS_PROXY": "a.test:1"}, None, "http://a.test:1"),
        ({"ALL_PROXY": "https://a.test"}, "https://a.test:443", "https://a.test:443"),
        ({"all_proxy": "http://a.test:1", "HTTP_PROXY": "http://b.test:2"}, "http://b.test:2", "http://a.test:1"),
        ({"HTTPS_PROXY": "http://a.test:1", "https_proxy": "http://b.test:2"}, None, "http://b.test:2"),
        ({"HTTPS_PROXY": "http://a.test:1", "https_proxy": ""}, None, None),
        ({"HTTP_PROXY": " "}, None, None),
    ],
)
def test_the_environment(environment: dict[str, str], http: str | None, https: str | None) -> None:
    """By scheme, then ALL_PROXY; a name in lower case wins, and an empty value is none."""
    assert (http, https) == (chosen("env", HTTP, **environment), chosen("env", HTTPS, **environment))


def test_a_variable_that_names_no_proxy_costs_the_origins_that_need_it() -> None:
    """SOCKS is not spoken here: the error names the variable, and shows no credentials."""
    environment = {"ALL_PROXY": "socks5://canary:canary@s.test:1080", "HTTP_PROXY": "http://a.test:1"}
    assert "http://a.test:1" == chosen("env", HTTP, **environment)
    with pytest.raises(ProxyProblem) as caught:
        chosen("env", HTTPS, **environment)
    assert "the proxy 'socks5://s.test:1080' (ALL_PROXY) is neither of http nor of https" == str(caught.value)
    assert chosen("env", HTTPS, NO_PROXY="b.test", **environment) is None


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "is_direct"),
    [
        ("", "b.test", 443, False),
        ("*", "b.test", 443, True),
        ("b.test", "b.test", 443, True),
        ("B.Test", "b.test", 443, True),
        ("b.test", "a.b.test", 443, True),
        (".b.test", "a.b.test", 443, True),
        (".b.test", "b.test", 443, True),
        ("*.b.test", "a.b.test", 443, True),
        ("b.test", "ab.test", 443, False),
        ("b.test", "b.test.example", 443, False),
        ("b.test:443", "b.test", 443, True),
        ("b.test:443", "b.test", 8443, False),
        ("b.test", "b.test.", 443, True),
        ("x, b.test", "b.test", 443, True),
        ("x b.test", "b.test", 443, True),
        ("x,,b.test,", "b.test", 443, True),
        (",.,*.", "b.test", 443, False),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.0.0.7/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8:80", "10.1.2.3", 443, False),
        ("10.1.2.3", "10.1.2.3", 443, True),
        ("10.1.2.3:443", "10.1.2.3", 443, True),
        ("1.2.3", "10.1.2.3", 443, False),
        ("2.3", "10.1.2.3", 443, False),
        ("10.0.0.0/8", "10.test", 443, False),
        ("fd00::/8", "fd00::1", 443, True),
        ("fd00::/8", "10.1.2.3", 443, False),
        ("::1", "::1", 443, True),
        ("0:0:0:0:0:0:0:1", "::1", 443, True),
        ("[::1]", "::1", 443, True),
        ("[::1]:80", "::1", 443, False),
        ("fe80::1", "fe80::1%eth0", 443, True),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_hosts_without_a_proxy(name: str, no_proxy: str, host: str, port: int, is_direct: bool) -> None:
    """Names with all below them, addresses, networks (RFC 4632), each with a port or without, and "*" for all."""
    environment = {"HTTPS_PROXY": "http://p.test:1", name: no_proxy}
    expected = None if is_direct else "http://p.test:1"
    assert expected == chosen("env", Origin("https", host, port), **environment)


# Over a connection


@attrs.define(eq=False)
class Proxied:
    """A transport, and the server that it takes for its proxy."""

    transport: Http11Transport
    server: RawServer
    proxy_url: str

    async def send(self, origin: Origin = HTTP, verb: str = "POST", body: bytes = b"{}") -> tuple[int, bytes]:
        """Status and body of the answer."""
        head = b"%s /mcp?x=1 HTTP/1.1\r\nHost: b.test\r\nContent-Length: %d\r\n\r\n" % (verb.encode(), len(body))
        response = await self.transport.send(origin, verb, head, body, lambda: None)
        try:
            pieces = []
            while (piece := await response.receive()) is not None:
                pieces.append(piece)
            return response.status, b"".join(pieces)
        finally:
            response.close()

    async def problem(self, origin: Origin = HTTP, body: bytes = b"{}") -> str:
        """The text of the error, without the part that names the proxy."""
        with pytest.raises(httpx.ProxyError) as caught:
            await self.send(origin, body=body)
        assert "canary" not in repr(caught.value)
        assert BASIC.split()[1] not in repr(caught.value)
        before, _, after = str(caught.value).partition(repr(self.proxy_url))
        assert "the proxy " == before
        return after.removeprefix(" (proxy) ")


@asynccontextmanager
async def open_proxied(kind: Kind, *answers: Piece | tuple[Piece, ...], reads: bool = True) -> AsyncIterator[Proxied]:
    """Of "tls": TLS to the proxy itself. At its end no connection is left on either side."""
    server = RawServer([one if isinstance(one, tuple) else (one,) for one in answers], reads_bodies=reads)
    async with AsyncExitStack() as stack:
        network: MemoryNetwork | None = None
        if kind == "memory":
            network = await stack.enter_async_context(open_memory_network())
            url = network.attach("http://p.test:3128/", server)
        elif kind == "tcp":
            url = await stack.enter_async_context(open_loopback(server))
        else:
            url = await stack.enter_async_context(open_tls_loopback(server, server_context()))
        parts = urlsplit(url)
        proxies = choose_proxies(f"{parts.scheme}://{CREDENTIALS}@{parts.netloc}", {})
        dial = None if network is None else network.dial
        transport = Http11Transport(ssl_context=client_context(), dial=dial, proxies=proxies)
        try:
            yield Proxied(transport, server, f"{parts.scheme}://{parts.netloc}")
        finally:
            transport.close()
        assert 0 == transport.busy_connections
        assert network is None or 0 == network.open_connections
        await until(lambda: not server.open_connections)


@kinds
async def test_a_request_over_http_names_its_whole_url(kind: Kind) -> None:
    """In absolute form (RFC 9112 §3.2.2), with the credentials in every request; the connection is kept."""
    async with open_proxied(kind, OK) as proxied:
        assert [(200, b"ok")] * 2 == [await proxied.send(), await proxied.send(verb="GET", body=b"")]
        assert 1 == proxied.server.connections
        for verb, (head, _) in zip((b"POST", b"GET"), proxied.server.requests, strict=True):
            line, *headers = head.split(b"\r\n")
            assert b"%s http://b.test/mcp?x=1 HTTP/1.1" % verb == line
            assert [f"Proxy-Authorization: {BASIC}".encode(), b"Host: b.test"] == headers[:2]


async def test_connections_are_kept_for_each_origin() -> None:
    """A connection to the proxy serves one origin, with a port or without, an address in brackets and without zone."""
    origins = [HTTP, Origin("http", "b.test", 81), Origin("http", "fe80::1%eth0", 80), Origin("http", "::1", 81)]
    async with open_proxied("memory", OK) as proxied:
        for origin in origins * 2:
            await proxied.send(origin)
        assert 4 == proxied.server.connections == proxied.transport.idle_connections
        urls = [head.split(b" ")[1].decode() for head, _ in proxied.server.requests]
        shown = ["http://b.test", "http://b.test:81", "http://[fe80::1]", "http://[::1]:81"]
        assert [f"{url}/mcp?x=1" for url in shown * 2] == urls


@kinds
async def test_the_proxys_own_refusal_of_a_request(kind: Kind) -> None:
    """407 comes from the proxy whatever was asked (RFC 9110 §15.5.8): its words are told, bounded, without the
    credentials; the next request finds a new connection.
    """
    words = f"you are {BASIC} or {BASIC.split()[1]}, canary-password! ".encode() + b"x" * 20_000
    refusal = answer(words, b"Content-Type: text/plain", status=b"407 Proxy Authentication Required")
    async with open_proxied(kind, refusal, OK) as proxied:
        problem = await proxied.problem()
        assert (200, b"ok") == await proxied.send()
    told = "you are [proxy-authorization] or [proxy-authorization], [proxy-authorization]! xxx"
    assert problem.startswith(f"answered 'POST' with HTTP 407: '{told}")
    assert len(problem) < 400


@pytest.mark.parametrize("status", [403, 502, 504])
async def test_any_other_answer_of_a_request_is_passed_on(status: int) -> None:
    """Nothing tells a proxy's refusal of a request over http from the origin's own."""
    async with open_proxied("memory", answer(b"no", status=b"%d No" % status)) as proxied:
        assert (status, b"no") == await proxied.send()


@pytest.mark.parametrize(
    ("pieces", "problem"),
    [
        ((answer(b"no such user", status=b"407 P"),), "answered 'CONNECT' with HTTP 407: 'no such user'"),
        ((answer(b"<title>Denied</title>", status=b"403 F"),), "answered 'CONNECT' with HTTP 403: 'Denied'"),
        ((answer(b"", status=b"502 Bad"),), "answered 'CONNECT' with HTTP 502"),
        ((answer(b"\0\1", b"Content-Type: image/png", status=b"503 X"),), "answered 'CONNECT' with HTTP 503"),
        ((b"HTTP/1.1 302 Found\r\nContent-Length: 9\r\n\r\nhalf", CLOSE), "answered 'CONNECT' with HTTP 302: 'half'"),
        ((b"HTTP/1.0 200 OK\r\n\r\nearly",), "sent a body with its answer to 'CONNECT'"),
        ((b"SSH-2.0-OpenSSH\r\n",), "gave no answer to 'CONNECT'"),
        ((CLOSE,), "gave no answer to 'CONNECT'"),
        ((RESET,), "gave no answer to 'CONNECT'"),
    ],
)
@kinds
async def test_a_tunnel_that_is_refused(kind: Kind, pieces: tuple[Piece, ...], problem: str) -> None:
    """The proxy's answer is told, with its words. Nothing of the request was sent, and no connection is left."""
    async with open_proxied(kind, pieces) as proxied:
        assert problem == await proxied.problem(HTTPS)
        assert 0 == proxied.transport.idle_connections
    ((head, body),) = proxied.server.requests
    assert b"CONNECT b.test:443 HTTP/1.1\r\nHost: b.test:443\r\nUser-Agent: trio-vmcp/" in head
    assert head.endswith(f"\r\nProxy-Authorization: {BASIC}".encode())
    assert b"" == body


async def test_a_proxy_that_hangs(autojump_clock: MockClock) -> None:
    """CONNECT is given up after 20 s, and before that with the request; a refusal whose body never ends is told after
    1 s.
    """
    async with open_proxied("memory", (HANG,)) as proxied:
        assert "did not answer 'CONNECT' within 20.0 s" == await proxied.problem(HTTPS)
        assert 20 == trio.current_time()
        with trio.move_on_after(5) as limit:
            await proxied.send(HTTPS)
        assert limit.cancelled_caught
        await until(lambda: not proxied.server.open_connections)
        proxied.server.answers[:] = [(b"HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\nnever", HANG)]
        begun_at = trio.current_time()
        assert "answered 'CONNECT' with HTTP 403: 'never'" == await proxied.problem(HTTPS)
        assert 1 == trio.current_time() - begun_at


async def test_a_proxy_that_is_not_there() -> None:
    """The error names the proxy, not the origin."""
    async with open_memory_network() as network:
        proxies = choose_proxies(f"http://{CREDENTIALS}@gone.test:1", {})
        transport = Http11Transport(dial=network.dial, proxies=proxies)
        for origin in (HTTP, HTTPS):
            with pytest.raises(httpx.ProxyError) as caught:
                await transport.connect(origin)
            assert "the proxy 'http://gone.test:1' (proxy) could not be reached" == str(caught.value)
        transport.close()


async def test_connections_that_are_made_ahead_of_their_requests() -> None:
    """A proxy that refuses one of them costs its request the attempt, and tells it why."""
    async with open_proxied("memory", answer(b"no", status=b"403 No")) as proxied, trio.open_nursery() as nursery:
        proxied.transport.open_ahead(HTTPS, 2, nursery)
        assert "answered 'CONNECT' with HTTP 403: 'no'" == await proxied.problem(HTTPS)


async def test_only_some_origins_have_a_proxy() -> None:
    """An origin that NO_PROXY exempts is reached directly, by a request as ever."""
    async with open_memory_network() as network:
        direct, proxied = RawServer([(OK,)]), RawServer([(OK,)])
        network.attach("b.test", direct)
        network.attach("http://p.test:1/", proxied)
        variables = {
            "HTTP_PROXY": f"http://{CREDENTIALS}@p.test:1",
            "ALL_PROXY": "gone.test:1",
            "NO_PROXY": "b.test:80",
        }
        transport = Http11Transport(dial=network.dial, proxies=choose_proxies("env", variables))
        for host in ("b.test", "c.test"):
            assert 200 == (await Proxied(transport, direct, "").send(Origin("http", host, 80)))[0]
        with pytest.raises(httpx.ProxyError, match=re.escape("the proxy 'http://gone.test:1' (ALL_PROXY) could not")):
            await transport.connect(HTTPS)
        transport.close()
    assert [b"POST /mcp?x=1 HTTP/1.1"] == [head.split(b"\r\n")[0] for head, _ in direct.requests]
    assert [b"POST http://c.test/mcp?x=1 HTTP/1.1"] == [head.split(b"\r\n")[0] for head, _ in proxied.requests]
    assert b"Proxy" not in direct.requests[0][0]


@pytest.mark.parametrize("kind", ["tcp", "tls"])
@pytest.mark.parametrize("status", [b"407 Proxy Authentication Required", b"413 Content Too Large"])
async def test_an_early_answer_of_a_proxy_is_heard(kind: Kind, status: bytes) -> None:
    """A proxy may refuse a request before it has read the body, and read no more (RFC 9112 §9.5)."""
    async with open_proxied(kind, (answer(b"too early", status=status), HANG), reads=False) as proxied:
        with trio.fail_after(5):
            if status.startswith(b"407"):
                assert "answered 'POST' with HTTP 407: 'too early'" == await proxied.problem(body=bytes(16 << 20))
            else:
                assert (413, b"too early") == await proxied.send(body=bytes(16 << 20))


# Tunnels


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_tunnel_is_a_connection_like_any_other(scheme: str) -> None:
    """TLS goes through it to the origin, whose certificate is checked; the proxy sees the host's name alone. The
    connection is kept, also over TLS to the proxy, and its end is seen without waiting.
    """
    origin_server = RawServer([(OK,)])
    async with (
        open_tls_loopback(origin_server, server_context()) as url,
        open_proxy(scheme, CREDENTIALS) as (
            proxy,
            proxy_url,
        ),
    ):
        origin = Origin("https", "localhost", urlsplit(url).port or 0)
        transport = Http11Transport(ssl_context=client_context(), proxies=choose_proxies(proxy_url, {}))
        proxied = Proxied(transport, origin_server, "")
        for _ in range(3):
            assert (200, b"ok") == await proxied.send(origin, body=bytes(1 << 20))
        assert [f"CONNECT localhost:{origin.port} HTTP/1.1"] == proxy.asked
        assert 1 == origin_server.connections
        origin_server.answers[:] = [(OK, CLOSE), (OK,)]
        await proxied.send(origin)
        (idle,) = transport._idle[origin]
        await until(lambda: not idle.is_alive)
        assert (200, b"ok") == await proxied.send(origin)
        assert 2 == origin_server.connections == len(proxy.asked)
        transport.close()
        await until(lambda: not origin_server.open_connections)
    assert not any(b"roxy-" in head for head, _ in origin_server.requests)


async def test_a_tunnel_checks_the_origins_name() -> None:
    """A proxy that answers in place of the origin is found out by its certificate."""
    async with (
        open_tls_loopback(RawServer([(OK,)]), server_context("other.test")) as url,
        open_proxy() as (_, proxy_url),
    ):
        transport = Http11Transport(ssl_context=client_context(), proxies=choose_proxies(proxy_url, {}))
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            await transport.connect(Origin("https", "localhost", urlsplit(url).port or 0))
        transport.close()


async def test_an_early_answer_through_a_tunnel_is_heard() -> None:
    """As over a direct connection."""
    server = RawServer([(answer(b"too large", status=b"413 Content Too Large"), HANG)], reads_bodies=False)
    async with open_tls_loopback(server, server_context()) as url, open_proxy() as (_, proxy_url):
        transport = Http11Transport(ssl_context=client_context(), proxies=choose_proxies(proxy_url, {}))
        with trio.fail_after(5):
            origin = Origin("https", "localhost", urlsplit(url).port or 0)
            assert (413, b"too large") == await Proxied(transport, server, "").send(origin, body=bytes(16 << 20))
        transport.close()


async def test_a_cancelled_tunnel_leaves_nothing(autojump_clock: MockClock) -> None:
    """However far it got."""
    async with open_memory_network(connect_latency=1) as network:
        network.attach("http://p.test:3128/", RawServer([(1.0, answer(b"no", status=b"403 No"))]))
        transport = Http11Transport(dial=network.dial, proxies=choose_proxies("http://p.test:3128", {}))
        for patience in (0.5, 1.5):
            with trio.move_on_after(patience):
                await transport.connect(HTTPS)
            assert 0 == network.open_connections
        transport.close()
