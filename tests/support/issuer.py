"""An OAuth token endpoint, and a backend that requires its tokens."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

import attrs
import httpx
import trio
from support.clients import Bench, echo_backend, open_bench
from trio.testing import wait_all_tasks_blocked

from trio_vmcp import ClientCredentials, OutgoingAuth
from trio_vmcp.connector import BackendClient
from trio_vmcp.testing import Exchange, ScriptedBackend, Status, open_memory_network

TOKEN_URL = "https://issuer.test/oauth/token"
CLIENT_ID, CLIENT_SECRET = "robot", "CANARY-secret"
CHALLENGE = 'Bearer error="invalid_token"'


@attrs.define(eq=False, repr=False)
class Issuer(httpx.AsyncBaseTransport):
    """A transport that answers requests to a token endpoint itself, and passes on all others.

    Attributes:
        latency: s, for every token.
        more: Members of the answers, besides the token.
        answers: Given instead of a token, in order; an exception is raised.
        asked: The requests for tokens.
        valid: Tokens that a backend behind `protect` accepts: all that were issued, until a test removes them.
    """

    behind: httpx.AsyncBaseTransport
    latency: float = 1.0
    more: dict[str, Any] = attrs.field(factory=lambda: {"token_type": "Bearer", "expires_in": 3600})
    answers: list[httpx.Response | Exception] = attrs.field(factory=list)
    asked: list[httpx.Request] = attrs.field(factory=list)
    valid: set[str] = attrs.field(factory=set)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.host != "issuer.test":
            return await self.behind.handle_async_request(request)
        await request.aread()
        self.asked.append(request)
        await trio.sleep(self.latency)
        if not self.answers:
            token = f"CANARY-token-{len(self.asked)}"
            self.valid.add(token)
            return httpx.Response(200, json={"access_token": token, **self.more})
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def aclose(self) -> None:
        await self.behind.aclose()

    def forms(self) -> list[dict[str, list[str]]]:
        return [parse_qs(request.content.decode(), strict_parsing=True) for request in self.asked]

    def protect(self, backend: ScriptedBackend) -> None:
        """Let the backend answer 401 to a request without a valid token."""

        def is_refused(exchange: Exchange) -> bool:
            return exchange.headers.get("authorization", "").removeprefix("Bearer ") not in self.valid

        backend.fail(is_refused, Status(401, headers={"www-authenticate": CHALLENGE}))


class SlowOnce(httpx.AsyncBaseTransport):
    """Answers one request itself, after a while.

    Attributes:
        passing: So many requests pass before that one.
    """

    def __init__(self, behind: httpx.AsyncBaseTransport, seconds: float, answer: httpx.Response) -> None:
        self.behind = behind
        self.seconds = seconds
        self.answer: httpx.Response | None = answer
        self.passing = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.passing > 0 or self.answer is None:
            self.passing -= 1
            return await self.behind.handle_async_request(request)
        answer, self.answer = self.answer, None
        await trio.sleep(self.seconds)
        return answer

    async def aclose(self) -> None:
        await self.behind.aclose()


def basic(request: httpx.Request) -> str:
    """Client id and secret in the Basic credentials of a request."""
    return base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode()


@attrs.define(eq=False)
class Protected:
    """A backend that requires tokens, its issuer, and a client."""

    backend: ScriptedBackend
    issuer: Issuer
    bench: Bench

    async def connect(self, **options: Any) -> BackendClient:
        return await self.bench.connect(**options)


@asynccontextmanager
async def open_protected(
    auth: OutgoingAuth | None = None,
    *,
    era: str = "modern",
    answers: str = "json",
    change: Callable[[Issuer], object] = lambda issuer: None,
    **configured: Any,
) -> AsyncIterator[Protected]:
    """At its end no connection and no backend session is left.

    Args:
        auth: None: client credentials of the issuer.
    """
    backend = echo_backend(era, answers)
    async with open_memory_network() as network:
        url = network.attach("b.test", backend)
        issuer = Issuer(network.transport())
        issuer.protect(backend)
        change(issuer)
        auth = auth or ClientCredentials(TOKEN_URL, CLIENT_ID, CLIENT_SECRET)
        async with open_bench(issuer, auth=auth, **{"url": url, "era": era, **configured}) as bench:
            yield Protected(backend, issuer, bench)
        await issuer.aclose()
        await wait_all_tasks_blocked()
        assert 0 == network.open_connections
        assert [] == backend.errors
        assert {} == backend.sessions
