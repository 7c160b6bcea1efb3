"""`/status` as JSON: the sessions and their backends, which callers may see it, and what it never holds."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

import pytest
import trio
from support.front import FrontWorld, Received, front_world, modern_request
from support.harness import echo_backend, slow_backend
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import Backend, FactorySettings, Identity, ManagerSettings
from trio_vmcp.serve import Unauthenticated, _status
from trio_vmcp.testing import Error, Status

EVERY_GUARDED = pytest.mark.parametrize("path", ["/status", "/status.js", "/metrics"])


class Tokens:
    """An authenticator to which the token of a request names its subject."""

    async def authenticate(self, headers: Mapping[str, str]) -> Identity:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme != "Bearer":
            raise Unauthenticated("the request has no credentials")
        return Identity(issuer="https://issuer.test", subject=token, token=token)


async def status(world: FrontWorld, headers: Mapping[str, str] = {}) -> Any:
    found = await world.request("GET", headers=headers, path="/status")
    assert 200 == found.status, found.body
    return found.json


async def call_modern(world: FrontWorld, name: str, headers: Mapping[str, str] = {}) -> Any:
    message, stamps = modern_request("tools/call", {"name": name, "arguments": {}})
    return (await world.post(message, {**stamps, **headers})).answer


def is_recent(instant: str) -> bool:
    return datetime.now(UTC) - datetime.fromisoformat(instant) < timedelta(minutes=1)


async def test_it_shows_sessions_and_their_backends(autojump_clock: MockClock) -> None:
    """The whole document of one session with one backend, after one call."""
    async with front_world() as world:
        client = await world.initialize()
        await client.result("tools/call", {"name": "a_echo", "arguments": {}})
        await trio.sleep(5)
        found = await status(world)
    (session,) = found.pop("sessions")
    (backend,) = session.pop("backends")
    assert is_recent(found.pop("at"))
    assert {
        "name": "trio-vmcp",
        "version": version("trio-vmcp"),
        "ready": True,
        "uptime": 5.0,
        "manager": {"live": 1, "hibernated": 0, "opening": 0, "in_flight": 0, "created": 1}
        | dict.fromkeys(("restored", "terminated", "expired", "refused"), 0),
        "front": {"in_flight": 0, "refused": 0},
        "sessions_omitted": 0,
    } == found
    assert is_recent(session.pop("created_at"))
    assert session.pop("tag").startswith("session #")
    assert {"client_era": "legacy", "state": "open", "in_flight": 0} == session
    assert is_recent(backend.pop("since"))
    assert {
        "id": "a",
        "state": "ready",
        "era": "legacy",
        "protocol_version": "2025-11-25",
        "in_flight": 0,
        "calls": 1,
        "errors": 0,
        "latency": {"p50": 0.0, "p90": 0.0, "p99": 0.0},
        "last_failure": None,
    } == backend


async def test_it_tells_the_eras_of_clients_apart(autojump_clock: MockClock) -> None:
    """A session that another part of the application has made has none. The newest is first."""
    async with front_world(echo_backend("both")) as world:
        legacy = await world.initialize()
        assert "error" not in await call_modern(world, "a_echo")
        own = await world.manager.create()
        await legacy.result("ping")
        found = await status(world)
        assert [None, "modern", "legacy"] == [session["client_era"] for session in found["sessions"]]
        assert own.tag == found["sessions"][0]["tag"]
        assert 3 == found["manager"]["live"]


async def test_a_backend_that_dies_shows_why(autojump_clock: MockClock) -> None:
    """Its state, since when, and its latest failure; the other backend is ready. A failure stays when it is over."""
    backends = [echo_backend(), echo_backend()]
    async with front_world(*backends) as world:
        client = await world.initialize()
        backends[0].crash()
        await client.ask("tools/call", {"name": "a_echo", "arguments": {}})
        a, _ = (await status(world))["sessions"][0]["backends"]
        assert ("ready", "unreachable") == (a["state"], a["last_failure"]["reason"])
        assert is_recent(a["failing_since"])
        for _ in range(4):  # then calls fail at once, until it is back
            await client.ask("tools/call", {"name": "a_echo", "arguments": {}})
        a, b = (await status(world))["sessions"][0]["backends"]
        assert ("ready", None) == (b["state"], b["last_failure"])
        assert "a" == a["id"]
        assert a["state"] in ("degraded", "recovering")
        assert 5 == a["errors"]
        assert "unreachable" == a["last_failure"]["reason"]
        assert "could not be reached" in a["last_failure"]["detail"]
        backends[0].restart()
        await trio.sleep(60)
        a, b = (await status(world))["sessions"][0]["backends"]
        assert "ready" == a["state"]
        assert a["last_failure"] is not None
        assert "failing_since" not in a


async def test_calls_in_flight_are_counted(autojump_clock: MockClock) -> None:
    """By backend, by session, and for the front; and what a cap or an edge refused."""
    async with front_world(slow_backend(), limits=ManagerSettings(max_sessions=1)) as world:
        client = await world.initialize()
        client.start("tools/call", {"name": "a_slow", "arguments": {}})
        await wait_all_tasks_blocked()
        assert 403 == (await world.request("GET", headers={"host": "elsewhere.test"}, path="/status")).status
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t"}}
        refused = await world.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})
        assert 503 == refused.status
        found = await status(world)
        session = found["sessions"][0]
        assert [1, 1, 1, 1] == [
            found["front"]["in_flight"],
            found["manager"]["in_flight"],
            session["in_flight"],
            session["backends"][0]["in_flight"],
        ]
        assert (2, 1) == (found["front"]["refused"], found["manager"]["refused"])


async def test_it_answers_while_the_server_drains(autojump_clock: MockClock) -> None:
    """And says so: that is when an operator looks."""
    async with front_world(slow_backend(5)) as world:
        client = await world.initialize()
        client.start("tools/call", {"name": "a_slow", "arguments": {}})
        await wait_all_tasks_blocked()
        world.nursery.start_soon(world.app.drain)
        await wait_all_tasks_blocked()
        found = await status(world)
        assert (False, 1) == (found["ready"], found["front"]["in_flight"])


async def test_many_backends_are_shown_in_part(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out is counted. The newest session is always shown."""
    async with front_world(echo_backend(), echo_backend(), limits=ManagerSettings(max_sessions=9)) as world:
        newest = [(await world.manager.create()).tag for _ in range(4)][::-1]
        for most, shown in ((1, 1), (2, 1), (3, 1), (4, 2), (7, 3), (8, 4)):
            monkeypatch.setattr(_status, "MOST_BACKENDS", most)
            found = await status(world)
            assert newest[:shown] == [session["tag"] for session in found["sessions"]]
            assert 4 - shown == found["sessions_omitted"]


# Secrets


async def texts(world: FrontWorld, headers: Mapping[str, str]) -> list[str]:
    """All that an operator can read."""
    found: list[Received] = [
        await world.request("GET", headers={**headers, "accept": accept}, path=path)
        for path in ("/status", "/metrics", "/readyz", "/healthz")
        for accept in ("application/json", "text/html")
    ]
    assert {200} == {each.status for each in found}
    return [f"{each.headers} {each.body.decode()}" for each in found]


@pytest.mark.parametrize("how", ["page", "error"])
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_no_secret_is_shown(era: str, how: str, autojump_clock: MockClock) -> None:
    """No session id, ours or a backend's; no token, header, argument, attribute or principal; nothing of a url behind
    its host. Also where a backend quotes in a failure what it was sent.
    """
    echoing, broken = echo_backend(era), echo_backend(era)
    said = "x-key: CANARY-header was sent for key=CANARY-query"
    refusal = Status(500, said.encode(), {"content-type": "text/plain"}) if how == "page" else Error(-32603, said)
    for method in ("initialize", "server/discover"):
        broken.fail(method, refusal)

    def configure(name: str) -> Backend:
        headers = {"x-key": "CANARY-header"}
        return Backend(name, f"http://{name}.test/CANARY-path?key=CANARY-query", headers=headers)

    arguments = {"x": "CANARY-argument"}
    headers = {"authorization": "Bearer CANARY-caller", "cookie": "CANARY-cookie"}
    async with front_world(
        echoing,
        broken,
        configure=configure,
        authenticator=Tokens(),
        factory=FactorySettings(identity_keys=(b"CANARY-" + b"k" * 32,)),
    ) as world:
        client = await world.initialize(headers=headers)
        await client.result("tools/call", {"name": "a_echo", "arguments": arguments})
        assert "x-key" in (await status(world, headers))["sessions"][0]["backends"][1]["last_failure"]["detail"]
        await call_modern(world, "a_echo", headers)
        ids = {session.id for session in world.manager.live_sessions}
        ids |= {each for session in world.manager.live_sessions for each in session.backend_sessions.values()}
        for text in await texts(world, headers):
            assert "CANARY" not in text
            assert [] == [each for each in ids if each in text or base64.b64encode(each.encode()).decode() in text]


async def test_half_a_surrogate_pair_is_shown(autojump_clock: MockClock) -> None:
    """A backend may say in its failure what has no UTF-8."""
    backend = echo_backend()
    backend.fail("initialize", Error(-32603, "broken \ud800"))
    async with front_world(backend, echo_backend()) as world:
        await world.initialize()
        failure = (await status(world))["sessions"][0]["backends"][0]["last_failure"]
        assert "broken" in json.dumps(failure)


# Edges


@EVERY_GUARDED
async def test_it_needs_the_authenticator(path: str, autojump_clock: MockClock) -> None:
    """Without credentials 401 with the challenge; with them the sessions of all principals."""
    async with front_world(authenticator=Tokens()) as world:
        await world.initialize(headers={"authorization": "Bearer alice"})
        found = await world.request("GET", path=path)
        assert (401, "Bearer") == (found.status, found.headers["www-authenticate"])
        assert b"session" not in found.body
        assert 200 == (await world.request("GET", headers={"authorization": "Bearer bob"}, path=path)).status


@EVERY_GUARDED
@pytest.mark.parametrize(
    "headers",
    [
        [("host", "attacker.test")],
        [("host", "localhost"), ("host", "localhost")],
        [("host", "localhost"), ("origin", "https://attacker.test")],
        [("host", "localhost"), ("origin", "null")],
    ],
    ids=["host", "two hosts", "origin", "no origin"],
)
async def test_pages_of_other_sites_cannot_read_it(
    path: str, headers: list[tuple[str, str]], autojump_clock: MockClock
) -> None:
    """403, before anything is asked of the authenticator."""
    async with front_world(authenticator=Tokens()) as world:
        assert 403 == (await world.request("GET", headers=headers, path=path)).status
