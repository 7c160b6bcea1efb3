"""Callers with JWTs at the front: which requests need a token, and which sessions a token reaches."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import pytest
from support.front import LEGACY, FrontWorld, LegacyClient, Received, front_world, full_backend, modern_request
from support.jwt_issuer import KeyServer, make_key, make_token
from trio.testing import MockClock

from trio_vmcp import Identity, LocalStorage
from trio_vmcp.serve.jwt import JwtAuthenticator
from trio_vmcp.testing import open_memory_network

ISSUER, AUDIENCE = "https://issuer.test", "http://localhost:8000/mcp"
NOW = 1_785_000_000.0
KEY = make_key()
ERAS = pytest.mark.parametrize("era", ["legacy", "modern"])


@attrs.define
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


def token_for(subject: str, **changes: Any) -> dict[str, str]:
    """The headers of a request."""
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "exp": NOW + 600, **changes}
    return {"authorization": f"Bearer {make_token(KEY, claims)}"}


def jwt_authenticator(**options: Any) -> JwtAuthenticator:
    given = {"jwks": {"keys": [KEY.jwk()]}, "clock": lambda: NOW, **options}
    return JwtAuthenticator(issuer=ISSUER, audience=AUDIENCE, **given)


Ask = Callable[[FrontWorld, dict[str, str]], Awaitable[Received]]


async def initialize(world: FrontWorld, headers: dict[str, str]) -> Received:
    params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "t"}}
    return await world.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}, headers)


def ask_modern(method: str, params: Any = None) -> Ask:
    async def ask(world: FrontWorld, headers: dict[str, str]) -> Received:
        message, own = modern_request(method, params)
        return await world.post(message, own | headers)

    return ask


def ask_plain(verb: str, path: str = "/mcp", **more: str) -> Ask:
    async def ask(world: FrontWorld, headers: dict[str, str]) -> Received:
        return await world.request(verb, headers=more | headers, path=path)

    return ask


REQUESTS: dict[str, Ask] = {
    "initialize": initialize,
    "server/discover": ask_modern("server/discover"),
    "tools/call": ask_modern("tools/call", {"name": "a_echo", "arguments": {}}),
    "subscriptions/listen": ask_modern("subscriptions/listen", {"notifications": {"toolsListChanged": True}}),
    "GET": ask_plain("GET", accept="text/event-stream", **{"mcp-session-id": "x"}),
    "DELETE": ask_plain("DELETE", **{"mcp-session-id": "x"}),
    "PUT": ask_plain("PUT"),
    "/status": ask_plain("GET", "/status"),
    "/metrics": ask_plain("GET", "/metrics"),
}
EVERY_REQUEST = pytest.mark.parametrize("ask", REQUESTS.values(), ids=REQUESTS.keys())


@EVERY_REQUEST
async def test_every_request_needs_a_token(ask: Ask, autojump_clock: MockClock) -> None:
    """Without one: 401 and a plain challenge; with a bad one the challenge says why. Nothing is opened or sent."""
    async with front_world(authenticator=jwt_authenticator()) as world:
        reply = await ask(world, {})
        assert (401, "Bearer") == (reply.status, reply.headers["www-authenticate"])
        reply = await ask(world, token_for("alice", exp=NOW))
        challenge = 'Bearer error="invalid_token", error_description="the token has expired"'
        assert (401, challenge) == (reply.status, reply.headers["www-authenticate"])
        assert 0 == world.manager.statistics.created
        assert [] == world.backends["a"].exchanges


@EVERY_REQUEST
async def test_without_keys_every_request_is_told_to_come_back(ask: Ask, autojump_clock: MockClock) -> None:
    """503 and Retry-After while the issuer is away: the token may be good. Its url is not shown."""
    async with open_memory_network() as network:
        network.attach("https://issuer.test/keys", KeyServer([], answer="refuse"))
        by = jwt_authenticator(jwks="https://issuer.test/keys", transport=network.transport())
        async with front_world(authenticator=by) as world:
            reply = await ask(world, token_for("alice"))
            assert (503, "5") == (reply.status, reply.headers["retry-after"])
            assert b"issuer.test" not in reply.body
            assert [] == world.backends["a"].exchanges


async def test_two_authorization_headers_are_none(autojump_clock: MockClock) -> None:
    """A proxy before the front could have looked at the other one."""
    async with front_world(authenticator=jwt_authenticator()) as world:
        message, headers = modern_request("server/discover")
        good = token_for("alice")["authorization"]
        pairs = [*headers.items(), ("authorization", good), ("authorization", good)]
        reply = await world.request("POST", json.dumps(message).encode(), pairs)
        assert (401, "Bearer") == (reply.status, reply.headers["www-authenticate"])


async def test_a_session_is_its_principals(autojump_clock: MockClock) -> None:
    """Another token of the same principal serves; for another principal the session is as unknown as any."""
    async with front_world(authenticator=jwt_authenticator(), storage=LocalStorage()) as world:
        alice = await world.initialize(headers=token_for("alice"))
        for headers, status in (
            (token_for("alice"), 200),
            (token_for("alice", exp=NOW + 1), 200),
            (token_for("bob"), 404),
            (token_for("Alice"), 404),
        ):
            client = LegacyClient(world, alice.session_id, headers)
            assert status == (await client.ask("tools/list")).status
        unknown = await LegacyClient(world, "unknown", token_for("bob")).ask("ping")
        foreign = await LegacyClient(world, alice.session_id, token_for("bob")).ask("ping")
        assert (unknown.status, unknown.json["error"]) == (foreign.status, foreign.json["error"])
        assert 404 == (await LegacyClient(world, alice.session_id, token_for("bob")).delete()).status
        assert {} == await alice.result("ping")


async def test_a_session_outlives_the_token_that_it_began_with(autojump_clock: MockClock) -> None:
    """A token that expires is refused with the next request; a new one goes on with the session."""
    clock = Clock()
    async with front_world(authenticator=jwt_authenticator(clock=clock)) as world:
        client = await world.initialize(headers=token_for("alice"))
        clock.now += 600
        assert 401 == (await client.ask("ping")).status
        client.headers.update(token_for("alice", exp=clock.now + 600))
        assert {} == await client.result("ping")


@ERAS
async def test_no_token_of_a_caller_reaches_a_backend(era: str, autojump_clock: MockClock) -> None:
    """Neither in headers nor in bodies, from clients of both eras; `auth` alone decides what backends get."""
    async with front_world(full_backend(era), authenticator=jwt_authenticator()) as world:
        headers = token_for("alice")
        client = await world.initialize(headers=headers)
        call = {"name": "a_echo", "arguments": {"x": 1}}
        await client.result("tools/call", call)
        assert 200 == (await ask_modern("tools/call", call)(world, headers)).status
        exchanges = world.backends["a"].exchanges
        assert 2 == world.backends["a"].executed["echo"]
        assert [] == [each for each in exchanges if "authorization" in each.headers]
        token = headers["authorization"].removeprefix("Bearer ")
        assert token not in repr([(dict(each.headers), each.message) for each in exchanges])


@EVERY_REQUEST
async def test_an_authenticator_that_crashes_lets_no_request_in(
    ask: Ask, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """503, and a record without the text of the error, which may quote credentials."""

    class Crashing:
        async def authenticate(self, headers: Mapping[str, str]) -> Identity:
            raise KeyError(headers["authorization"])

    async with front_world(authenticator=Crashing()) as world:
        reply = await ask(world, {"authorization": "Bearer s3cret"})
        assert 503 == reply.status
        assert 0 < int(reply.headers["retry-after"])
        assert b"s3cret" not in reply.body
        assert [] == world.backends["a"].exchanges
    assert "KeyError" in caplog.text
    assert "s3cret" not in caplog.text
