"""Cookies go back to the backend that set them, within limits, over the built-in transport and over any other."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from support.raw_http import OK, answer, open_served

from trio_vmcp import Backend
from trio_vmcp._client.http.connection_limit import ConnectionLimit
from trio_vmcp._client.http.cookies import LONGEST_COOKIE, MOST_COOKIES, BackendCookies
from trio_vmcp._client.http.link import HttpLink
from trio_vmcp._protocol.words import secrets_of

Send = Callable[[dict[str, str]], Awaitable[str | None]]


@asynccontextmanager
async def open_sender(transport: str, **configured: Any) -> AsyncGenerator[Send, None]:
    """A function that sends one request, whose answer has the given headers. It returns the `Cookie` header sent."""

    def link_over(over: httpx.AsyncBaseTransport, url: str) -> HttpLink:
        return HttpLink(
            Backend(id="b", url=url, **configured),
            over,
            auth=None,
            limit=ConnectionLimit(1),
            max_message_bytes=1000,
        )

    async def post(link: HttpLink) -> None:
        async with link.exchange("POST", [], b"{}", identity=None) as reply:
            await reply.read(1000)

    if transport == "built-in":
        async with open_served("memory", OK) as served:
            link = link_over(served.transport, f"{served.url}/mcp")

            async def send(headers: dict[str, str]) -> str | None:
                lines = [f"{name}: {value}".encode() for name, value in headers.items()]
                served.server.answers = [(answer(b"ok", *lines),)]
                await post(link)
                head, _ = served.server.requests[-1]
                found = re.search(rb"(?im)^cookie: (.*?)\r$", head)
                return found[1].decode() if found else None

            yield send
    else:
        requests: list[httpx.Request] = []
        answers: list[httpx.Response] = []

        def handle(request: httpx.Request) -> httpx.Response:
            requests.append(request)
            return answers.pop()

        link = link_over(httpx.MockTransport(handle), "http://b.test/mcp")

        async def send_foreign(headers: dict[str, str]) -> str | None:
            answers.append(httpx.Response(200, headers=headers, content=b"ok"))
            await post(link)
            sent: str | None = requests[-1].headers.get("cookie")
            return sent

        yield send_foreign


every_transport = pytest.mark.parametrize("transport", ["built-in", "foreign"])


@every_transport
async def test_a_cookie_goes_back_with_the_next_request(transport: str) -> None:
    """As a balancer expects that keeps a client to one instance; `Max-Age=0` takes it away (RFC 6265 §5.3)."""
    async with open_sender(transport) as send:
        assert await send({"Set-Cookie": "node=1; Path=/; HttpOnly"}) is None
        assert "node=1" == await send({})
        assert "node=1" == await send({"Set-Cookie": "node=1; Max-Age=0; Path=/"})
        assert await send({}) is None


@every_transport
@pytest.mark.parametrize("refused", ["node=1; Domain=other.test", "node=1; Path=/elsewhere", "node=1; Secure"])
async def test_a_cookie_for_somewhere_else_is_not_sent(transport: str, refused: str) -> None:
    """Another domain, another path, and https only where the url is http (RFC 6265 §5.4)."""
    async with open_sender(transport) as send:
        await send({"Set-Cookie": refused})
        assert await send({}) is None


@every_transport
async def test_a_cookie_joins_those_of_the_user(transport: str) -> None:
    """One `Cookie` header (RFC 6265 §5.4), the user's own cookies first."""
    async with open_sender(transport, headers={"Cookie": "mine=1; also=2"}) as send:
        assert "mine=1; also=2" == await send({"Set-Cookie": "node=1"})
        assert "mine=1; also=2; node=1" == await send({})


URL = httpx.URL("http://b.test/mcp")


def test_cookies_are_kept_within_limits() -> None:
    """No more than a browser keeps; one that is replaced or taken away needs no room."""
    cookies = BackendCookies()
    cookies.keep(URL, [(b"set-cookie", b"long=" + b"x" * LONGEST_COOKIE)])
    for n in range(2 * MOST_COOKIES):
        cookies.keep(URL, [(b"set-cookie", b"c%d=1" % n)])
    cookies.keep(URL, [(b"set-cookie", b"c0=2"), (b"set-cookie", b"c1=; Max-Age=0")])
    ((_, value),) = cookies.headers(URL)
    kept = value.split(b"; ")
    assert MOST_COOKIES - 1 == len(kept)
    assert b"c0=2" in kept


@pytest.mark.parametrize(
    "value",
    [b"", b"=", b";", b"a", b"a=\xff", b"=;=", b"a=b; expires=never", b'a="b;c"', b"a=b; max-age=" + b"9" * 400],
)
def test_an_unreadable_cookie_costs_nothing(value: bytes, recwarn: pytest.WarningsRecorder) -> None:
    """Whatever a backend sends as a cookie, requests go on, without a warning."""
    cookies = BackendCookies()
    cookies.keep(URL, [(b"set-cookie", value), (b"set-cookie", b"node=1")])
    ((_, sent),) = cookies.headers(URL)
    assert b"node=1" in sent
    assert not recwarn.list


def test_no_text_shows_a_cookie() -> None:
    """Neither the whole header nor one value of it, and not the repr of what keeps them."""
    cookies = BackendCookies(b"mine=CANARY-of-user")
    cookies.keep(URL, [(b"set-cookie", b"node=CANARY-of-balancer")])
    assert "CANARY" not in repr(cookies)
    ((_, value),) = cookies.headers(URL)
    secrets = secrets_of([("cookie", value.decode())], "")
    assert {"CANARY-of-user", "CANARY-of-balancer", value.decode()} <= set(secrets)
