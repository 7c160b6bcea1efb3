"""Sessions behind a proxy: `proxy=` of the factory, and what a session tells when the proxy is in the way."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from support.harness import echo_backend
from support.proxy import CREDENTIALS, HttpProxy, open_proxy
from support.raw_http import HANG, RawServer, answer, client_context, open_tls_loopback, server_context
from trio.testing import MockClock

from trio_vmcp import (
    Backend,
    BackendError,
    BackendFailure,
    FactorySettings,
    FailureReason,
    Session,
    VmcpError,
    open_session_factory,
)
from trio_vmcp._http.proxy import choose_proxies
from trio_vmcp._http.transport import Http11Transport
from trio_vmcp.testing import MemoryNetwork, ScriptedBackend, open_loopback, open_memory_network


def live_reprs() -> list[str]:
    """The repr of each live object of the library. Those of `trio_vmcp.testing` are no part of it."""
    modules = ((thing, type(thing).__module__) for thing in gc.get_objects())
    return [
        repr(thing)
        for thing, name in modules
        if name.startswith("trio_vmcp.") and not name.startswith("trio_vmcp.testing")
    ]


PROXY = "http://p.test:3128"
QUICK = FactorySettings(backend_init_timeout=3.0)


def proxied(network: MemoryNetwork) -> Http11Transport:
    """The built-in transport over a network, as `proxy=` makes it."""
    proxies = choose_proxies(f"http://{CREDENTIALS}@p.test:3128", {})
    return Http11Transport(dial=network.dial, proxies=proxies)


@asynccontextmanager
async def open_served(scheme: str, backend: ScriptedBackend) -> AsyncIterator[str]:
    """The URL of a backend on this machine."""
    opened = open_loopback(backend) if scheme == "http" else open_tls_loopback(backend, server_context())
    async with opened as url:
        yield url


@pytest.mark.parametrize(("scheme", "proxy_scheme"), [("http", "http"), ("https", "http"), ("https", "https")])
@pytest.mark.parametrize(
    ("era", "transport"), [("modern", "streamable-http"), ("legacy", "sse"), ("both", "streamable-http")]
)
async def test_a_session_behind_a_proxy(scheme: str, proxy_scheme: str, era: str, transport: str) -> None:
    """All of its requests go through the proxy, with credentials that the backend does not see."""
    backend = echo_backend(era, "sse", transport=transport)
    async with open_served(scheme, backend) as url, open_proxy(proxy_scheme, CREDENTIALS) as (proxy, proxy_url):
        async with open_session_factory(proxy=proxy_url, ssl_context=client_context()) as factory:
            async with factory.open_session([Backend(id="b", url=url, transport=transport)]) as session:
                assert () == session.failures
                await session.call_tool("b_echo", {"text": "x" * 100_000})
                assert [] == [text for text in live_reprs() if "canary" in text or "Basic " in text]
        assert len(backend.exchanges) == len(proxy.asked) or scheme == "https"
        assert {"CONNECT"} == {line.split()[0] for line in proxy.asked} or scheme == "http"
    assert not [name for exchange in backend.exchanges for name in exchange.headers if "proxy" in name.lower()]


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_a_session_with_the_proxy_of_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only with "env", and as the environment is when the factory opens."""
    backend = echo_backend("modern")
    async with open_loopback(backend) as url, open_proxy() as (proxy, proxy_url):
        monkeypatch.setenv(name, proxy_url)
        for setting, most in ((None, 0), ("env", 10)):
            async with open_session_factory(proxy=setting) as factory:
                monkeypatch.setenv("NO_PROXY", "*")
                async with factory.open_session([Backend(id="b", url=url)]) as session:
                    assert () == session.failures
                monkeypatch.delenv("NO_PROXY")
            assert bool(most) == bool(proxy.asked)
        monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
        before = len(proxy.asked)
        async with open_session_factory(proxy="env") as factory, factory.open_session([Backend(id="b", url=url)]):
            assert before == len(proxy.asked)


@pytest.mark.parametrize("setting", ["", "ENV", "p.test:3128", f"socks5://{CREDENTIALS}@p.test:1080"])
async def test_what_is_no_proxy_opens_no_factory(setting: str) -> None:
    """A `ValueError` that shows no credentials."""
    with pytest.raises(ValueError, match="neither 'env' nor http") as caught:
        async with open_session_factory(proxy=setting):
            pass
    assert "canary" not in str(caught.value)


async def failure_behind(server: RawServer | HttpProxy, url: str, transport: str) -> BackendFailure:
    async with open_memory_network() as network:
        network.attach(f"{PROXY}/", server)
        through = proxied(network)
        async with open_session_factory(transport=through, settings=QUICK) as factory:
            backend = Backend(id="b", url=url, transport=transport)
            async with factory.open_session([backend]) as session:
                (failure,) = session.failures
                texts = [repr(session), repr(session.backends), repr(factory), failure.detail]
        assert not [text for text in texts if "canary" in text]
        through.close()
        assert 0 == network.open_connections
    return failure


REFUSAL = answer(b"canary-password is no password", b"Content-Type: text/plain", status=b"407 No")
NEVER = RawServer([(HANG,)])


@pytest.mark.parametrize("transport", ["streamable-http", "sse"])
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("pieces", "http", "https"),
    [
        (
            (REFUSAL,),
            "HTTP 407: '[proxy-authorization] is no password'",
            "'CONNECT' with HTTP 407: '[proxy-authorization] is no password'",
        ),
        ((answer(b"denied", status=b"502 No"),), "HTTP 502: 'denied', through", "'CONNECT' with HTTP 502: 'denied'"),
        ((answer(b"denied", status=b"403 No"),), "HTTP 403: 'denied', through", "'CONNECT' with HTTP 403: 'denied'"),
        ((HANG,), "within 3.0 s", "within 3.0 s"),
    ],
    ids=["407", "502", "403", "hangs"],
)
async def test_a_proxy_in_the_way_is_the_backends_failure(
    pieces: tuple[bytes | str, ...],
    http: str,
    https: str,
    scheme: str,
    transport: str,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The detail names the proxy without its credentials and says what it said; no log shows them either."""
    caplog.set_level(logging.DEBUG)
    failure = await failure_behind(RawServer([pieces]), f"{scheme}://b.test/mcp", transport)
    assert repr(PROXY) in failure.detail
    assert "(proxy)" in failure.detail
    assert (http if scheme == "http" else https) in failure.detail
    assert "canary" not in caplog.text
    if HANG in pieces and transport != "sse":
        assert FailureReason.TIMEOUT is failure.reason
    if pieces == (REFUSAL,):
        assert FailureReason.UNREACHABLE is failure.reason


async def test_a_proxy_that_is_not_there_is_named(autojump_clock: MockClock) -> None:
    """With the reason of the operating system's."""
    async with open_memory_network() as network:
        network.attach("http://p.test:1/", RawServer([(HANG,)]))
        async with open_session_factory(transport=proxied(network)) as factory:
            async with factory.open_session([Backend(id="b", url="https://b.test/mcp")]) as session:
                (failure,) = session.failures
    assert f"could not be reached: the proxy {PROXY!r} (proxy) could not be reached: " in failure.detail


async def call_error(session: Session, **options: float) -> VmcpError:
    with pytest.raises(VmcpError) as caught:
        await session.call_tool("b_echo", **options)  # type: ignore[arg-type]  # only timeout
    return caught.value


async def test_a_proxy_that_fails_under_a_session(autojump_clock: MockClock) -> None:
    """A call that the proxy refuses did not run; one that it does not answer names the proxy; the backend is back when
    the proxy is.
    """
    async with open_memory_network() as network:
        backend = echo_backend("modern")
        network.attach("b.test", backend)
        proxy = HttpProxy(network.connect, CREDENTIALS)
        network.attach(f"{PROXY}/", proxy)
        transport = proxied(network)
        async with open_session_factory(transport=transport) as factory:
            async with factory.open_session([Backend(id="b", url="http://b.test/mcp")]) as session:
                await session.call_tool("b_echo")
                proxy.credentials = "other:password"
                refused = await call_error(session)
                assert isinstance(refused, BackendError)
                assert not refused.may_have_executed
                assert "(proxy) answered 'POST' with HTTP 407: 'no such user Proxy-Authorization: [proxy" in str(
                    refused
                )
                proxy.credentials = CREDENTIALS
                await trio.sleep(120)
                await session.call_tool("b_echo")
                network.attach(f"{PROXY}/", NEVER)
                transport._idle.clear()
                late = await call_error(session, timeout=2.0)
                assert f"within 2.0 s (timeout=), through the proxy {PROXY!r} (proxy)" in str(late)
    assert 2 == backend.executed["echo"]
