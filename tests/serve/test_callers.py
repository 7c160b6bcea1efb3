"""Callers with JWTs at the front: which requests need a token, and which sessions a token reaches."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import pytest
from support.front import LEGACY, FrontWorld, LegacyClient, Received, front_world, full_backend, modern_request
from support.jwt_issuer import KeyServer, make_key, make_token
from trio.testing import MockClock

from trio_vmcp import Identity, LocalStorage
from trio_vmcp.serve import AuthenticatorUnavailable, ServeSettings, Unauthenticated
from trio_vmcp.serve.jwt import JwtAuthenticator
from trio_vmcp.testing import open_memory_network

ISSUER, AUDIENCE = "https://issuer.test", "http://localhost:8000/mcp"
WELL_KNOWN = "/.well-known/oauth-protected-resource"
WHERE = f'resource_metadata="http://localhost:8000{WELL_KNOWN}/mcp"'
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
    given = {"issuer": ISSUER, "audience": AUDIENCE, "jwks": {"keys": [KEY.jwk()]}, "clock": lambda: NOW, **options}
    return JwtAuthenticator(**given)


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
        assert (401, f"Bearer {WHERE}") == (reply.status, reply.headers["www-authenticate"])
        reply = await ask(world, token_for("alice", exp=NOW))
        challenge = f'Bearer error="invalid_token", error_description="the token has expired", {WHERE}'
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
        assert (401, f"Bearer {WHERE}") == (reply.status, reply.headers["www-authenticate"])


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


@pytest.mark.parametrize("gives", [None, "alice", {"sub": "alice"}, ("i", "s")], ids=repr)
@EVERY_REQUEST
async def test_an_authenticator_that_gives_no_identity_lets_no_request_in(
    ask: Ask, gives: Any, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as one that has forgotten to return it: else all principals would be one, without a name."""

    class Forgetful:
        async def authenticate(self, headers: Mapping[str, str]) -> Any:
            return gives

    async with front_world(authenticator=Forgetful()) as world:
        reply = await ask(world, {"authorization": "Bearer s3cret"})
        assert (503, "5") == (reply.status, reply.headers["retry-after"])
        assert [] == world.backends["a"].exchanges
    assert f"it gave {type(gives).__name__}, and no Identity" in caplog.text
    assert "alice" not in caplog.text


@pytest.mark.parametrize(
    ("error", "status", "header"),
    [
        (AuthenticatorUnavailable("away", retry_after=math.inf), 503, ("retry-after", "5")),
        (AuthenticatorUnavailable("away", retry_after=math.nan), 503, ("retry-after", "5")),
        (AuthenticatorUnavailable("away", retry_after=-1), 503, ("retry-after", "5")),
        (AuthenticatorUnavailable("away", retry_after=90), 503, ("retry-after", "90")),
        (Unauthenticated("no", 'Bearer realm="a\r\nX: y\0"'), 401, ("www-authenticate", 'Bearer realm="a X: y "')),
        (Unauthenticated("no", 'Bearer realm="日本"'), 401, ("www-authenticate", 'Bearer realm="??"')),
    ],
)
async def test_what_an_authenticator_says_is_made_to_fit_a_header(
    error: Exception, status: int, header: tuple[str, str], autojump_clock: MockClock
) -> None:
    """A reply that no server can send would be a connection that ends."""

    class Refusing:
        async def authenticate(self, headers: Mapping[str, str]) -> Identity:
            raise error

    async with front_world(authenticator=Refusing()) as world:
        reply = await initialize(world, {})
        assert (status, header[1]) == (reply.status, reply.headers[header[0]])


@pytest.mark.parametrize(
    ("audience", "path"),
    [
        ("http://localhost:8000/mcp", "/mcp"),
        ("https://tools.example", ""),
        ("https://tools.example/", ""),
        ("https://tools.example/team/mcp?x=1", "/team/mcp"),
        ("https://tools.example/a%20b", "/a b"),
    ],
)
async def test_clients_are_told_where_to_get_a_token(audience: str, path: str, autojump_clock: MockClock) -> None:
    """Without credentials, at the url that the challenge names (RFC 9728 §3.1, §5.1), and where clients look that were
    told none: with the path of the endpoint behind it, and alone (MCP 2025-11-25, authorization).
    """
    settings = ServeSettings(allowed_origins=("https://page.example",))
    async with front_world(authenticator=jwt_authenticator(audience=audience), settings=settings) as world:
        expected = {
            "resource": audience,
            "authorization_servers": [ISSUER],
            "bearer_methods_supported": ["header"],
        }
        for where in (WELL_KNOWN, f"{WELL_KNOWN}/mcp", WELL_KNOWN + path):
            reply = await world.request("GET", path=where, headers={"origin": "https://page.example"})
            assert (200, expected) == (reply.status, reply.json)
            assert "https://page.example" == reply.headers["access-control-allow-origin"]
        assert 405 == (await world.request("POST", path=WELL_KNOWN)).status
        assert 403 == (await world.request("GET", path=WELL_KNOWN, headers={"host": "evil.example"})).status
        challenge = (await world.post({})).headers["www-authenticate"]
        assert f"{WELL_KNOWN}{path.replace(' ', '%20')}" in challenge
        assert ("?x=1" in audience) == ("?x=1" in challenge)


@pytest.mark.parametrize("before", ["", "/proxy"], ids=["at the root", "below a path"])
@pytest.mark.parametrize("passes_all", [True, False], ids=["whole path", "rest of it"])
@pytest.mark.parametrize("behind", ["", "/", "/tools/mcp"])
async def test_a_mounted_application_is_told_of_at_the_root(
    before: str, passes_all: bool, behind: str, autojump_clock: MockClock
) -> None:
    """Mounted at the well-known path of the host, too, where the url of a resource with a path is (RFC 9728 §3.1), it
    serves nothing else there.
    """
    authenticator = jwt_authenticator(audience="https://example.org/tools/mcp")
    async with front_world(authenticator=authenticator) as world:

        async def get(rest: str) -> Received:
            return await world.request("GET", path=world.root_path + rest if passes_all else rest)

        world.root_path = before + WELL_KNOWN
        reply = await get(behind)
        assert (200, "https://example.org/tools/mcp") == (reply.status, reply.json["resource"])
        assert [404, 404] == [(await get("/other")).status, (await get("/healthz")).status]
        world.root_path = f"{before}/tools"
        reply = await get("/mcp")
        assert f"https://example.org{WELL_KNOWN}/tools/mcp" in reply.headers["www-authenticate"]


@pytest.mark.parametrize(
    "audience",
    ["tools", "urn:tools", "https://", "https://a:b@tools", "https://tools/#x", 'https://tools/"', "http://["],
)
async def test_an_audience_that_is_no_url_tells_nothing(audience: str, autojump_clock: MockClock) -> None:
    """There is no such path then, and the challenge is plain."""
    async with front_world(authenticator=jwt_authenticator(audience=audience)) as world:
        assert 404 == (await world.request("GET", path=WELL_KNOWN)).status
        reply = await world.post({})
        assert (401, "Bearer") == (reply.status, reply.headers["www-authenticate"])


class Described:
    """An authenticator of an application."""

    def __init__(self, resource: object, challenge: str) -> None:
        self.resource_metadata = {"resource": resource, "scopes_supported": ["x"]}
        self.challenge = challenge

    async def authenticate(self, headers: Mapping[str, str]) -> Identity:
        raise Unauthenticated("no", self.challenge)


@pytest.mark.parametrize(
    ("given", "challenge"),
    [
        ("Bearer", 'Bearer resource_metadata="https://x.example/.well-known/oauth-protected-resource/y"'),
        (
            'bearer realm="r"',
            'bearer realm="r", resource_metadata="https://x.example/.well-known/oauth-protected-resource/y"',
        ),
        ('Bearer resource_metadata="own"', 'Bearer resource_metadata="own"'),
        ("Basic", "Basic"),
    ],
)
async def test_an_authenticator_of_an_application_may_describe_the_resource(
    given: str, challenge: str, autojump_clock: MockClock
) -> None:
    """Its members pass as they are; only challenges for bearer tokens get the url."""
    async with front_world(authenticator=Described("https://x.example/y", given)) as world:
        assert challenge == (await world.post({})).headers["www-authenticate"]
        reply = await world.request("GET", path=WELL_KNOWN)
        assert {"resource": "https://x.example/y", "scopes_supported": ["x"]} == reply.json


@pytest.mark.parametrize("resource", [None, "x", 7])
async def test_metadata_without_a_url_are_an_error(resource: object, autojump_clock: MockClock) -> None:
    """When the application is made, and not with the first request."""
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="resource="), flatten_subgroups=True):
        async with front_world(authenticator=Described(resource, "Bearer")):
            raise AssertionError
