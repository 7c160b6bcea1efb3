"""The keys of a JWT's issuer: fetched once for all, renewed, looked for anew, and kept while the issuer is away."""

from __future__ import annotations

import json
import logging
import math
import sys
import traceback
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import httpx
import pytest
import trio
from support.cancel_sweep import CancelAtMoment
from support.jwt_issuer import KeyServer, SigningKey, make_key, make_token
from support.proxy import open_proxy
from support.raw_http import client_context, open_tls_loopback, server_context
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp.serve import AuthenticatorUnavailable, Unauthenticated
from trio_vmcp.serve.jwt import JwtAuthenticator
from trio_vmcp.testing import open_loopback, open_memory_network

ISSUER, AUDIENCE = "https://issuer.test", "https://front.test/mcp"
KEYS_URL = "https://issuer.test/CANARY/keys?key=CANARY"
NOW = 1_785_000_000.0
OLD, NEW = make_key(key_id="old"), make_key(key_id="new")
LATENCY = 0.5  # s, of the issuer
UNKNOWN = "is signed with a key that is unknown"


def token(key: SigningKey = OLD, subject: str = "alice", **header: Any) -> str:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "exp": NOW + 1e6}
    return make_token(key, claims, header=header)


@attrs.define(eq=False)
class World:
    """An issuer, and an authenticator that asks it for keys."""

    server: KeyServer
    by: JwtAuthenticator
    tokens: dict[tuple[object, ...], str] = attrs.field(factory=dict)

    async def ask(self, key: SigningKey = OLD, subject: str = "alice", **header: Any) -> str:
        """The subject of a request, or what it was told. Equal requests have the same token."""
        asked = (key, subject, str(header))
        if asked not in self.tokens:
            self.tokens[asked] = token(key, subject, **header)
        try:
            return (await self.by.authenticate({"authorization": f"Bearer {self.tokens[asked]}"})).subject
        except Unauthenticated as error:
            return error.detail.removeprefix("the token ")
        except AuthenticatorUnavailable as error:
            return f"unavailable, try again in {error.retry_after:g} s"

    async def ask_many(self, *asked: Mapping[str, Any]) -> list[tuple[str, float]]:
        """Requests at once, their answers and how many s each took."""
        answers: list[tuple[str, float]] = [("", 0.0)] * len(asked)

        async def one(place: int, arguments: Mapping[str, Any]) -> None:
            began_at = trio.current_time()
            answers[place] = (await self.ask(**arguments), trio.current_time() - began_at)

        async with trio.open_nursery() as nursery:
            for place, arguments in enumerate(asked):
                nursery.start_soon(one, place, arguments)
        return answers

    @property
    def fetches(self) -> int:
        return len(self.server.requests)


@asynccontextmanager
async def open_world(*keys: SigningKey, **changed: Any) -> AsyncIterator[World]:
    """At its end no connection is open."""
    server = KeyServer([key.jwk() for key in keys or (OLD,)], latency=LATENCY)
    for name in changed.keys() & {"answer", "headers"}:
        setattr(server, name, changed.pop(name))
    async with open_memory_network() as network:
        network.attach(KEYS_URL, server)
        transport = network.transport()
        options = {"issuer": ISSUER, "audience": AUDIENCE, "jwks": KEYS_URL, "transport": transport, **changed}
        yield World(server, JwtAuthenticator(clock=lambda: NOW, **options))
        assert 0 == transport.busy_connections
        await transport.aclose()
        await wait_all_tasks_blocked()
        assert 0 == network.open_connections


# Fetching


async def test_the_first_requests_share_one_fetch(autojump_clock: MockClock) -> None:
    """A hundred requests wait for one fetch, and all later ones for none."""
    async with open_world() as world:
        assert 0 == world.fetches  # nothing is asked before it is needed
        answers = await world.ask_many(*({"subject": f"user {number}"} for number in range(100)))
        assert [(f"user {number}", LATENCY) for number in range(100)] == answers
        assert [("bob", 0.0)] * 100 == await world.ask_many(*[{"subject": "bob"}] * 100)
        assert 1 == world.fetches


async def test_the_issuer_gets_nothing_but_the_request(autojump_clock: MockClock) -> None:
    """A GET for the configured url, and no header of the caller."""
    async with open_world() as world:
        await world.ask()
        (request,) = world.server.requests
    assert ("GET", "/CANARY/keys?key=CANARY", b"") == (request.verb, request.target, request.body)
    assert {"host", "accept", "accept-encoding", "user-agent"} == set(request.headers)


@pytest.mark.parametrize(
    ("cache_control", "lifetime"),
    [
        (None, 300),
        ("no-cache", 300),
        ("s-maxage=900", 300),
        ("max-age=120", 120),
        ("public, Max-Age=600, must-revalidate", 600),
        ('private,max-age="90"', 90),
        ("max-age=0", 60),
        ("max-age=86400", 3600),
        ("max-age=99999999999999999999", 300),
        ("max-age=soon", 300),
    ],
)
async def test_keys_are_used_as_long_as_their_response_says(
    cache_control: str | None, lifetime: float, autojump_clock: MockClock
) -> None:
    """`max-age`, from 1 min to 1 h; 5 min without."""
    headers = [] if cache_control is None else [("cache-control", cache_control)]
    async with open_world(headers=headers) as world:
        began_at = trio.current_time()
        await world.ask()
        await trio.sleep_until(began_at + lifetime - 0.1)
        await world.ask()
        assert 1 == world.fetches
        await trio.sleep_until(began_at + lifetime)
        await world.ask()
        assert 2 == world.fetches


async def test_one_request_renews_old_keys_and_the_others_do_not_wait(autojump_clock: MockClock) -> None:
    """They go on with the old keys meanwhile."""
    async with open_world() as world:
        await world.ask()
        await trio.sleep(300)
        took = [seconds for _, seconds in await world.ask_many(*[{}] * 10)]
        assert [0.0] * 9 + [LATENCY] == sorted(took)
        assert 2 == world.fetches


async def test_a_key_that_was_withdrawn_is_used_no_longer(autojump_clock: MockClock) -> None:
    """When the keys are renewed, also tokens that were verified before are refused; an empty set refuses all."""
    async with open_world(OLD, NEW) as world:
        assert ["alice", "bob"] == [await world.ask(), await world.ask(NEW, "bob")]
        world.server.keys = [NEW.jwk()]
        assert "alice" == await world.ask()
        await trio.sleep(300)
        assert [UNKNOWN, "bob"] == [await world.ask(), await world.ask(NEW, "bob")]
        world.server.keys = []
        await trio.sleep(300)
        assert [UNKNOWN, UNKNOWN] == [await world.ask(), await world.ask(NEW, "bob")]


class Switched(httpx.AsyncBaseTransport):
    """A transport that passes requests on to another one."""

    behind: httpx.AsyncBaseTransport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self.behind.handle_async_request(request)


def test_keys_of_another_run_are_fetched_again() -> None:
    """Trio's clock starts anew in each run, and an authenticator may be kept in a module."""
    switched = Switched()
    by = JwtAuthenticator(issuer=ISSUER, audience=AUDIENCE, jwks=KEYS_URL, transport=switched, clock=lambda: NOW)

    async def main() -> tuple[str, int]:
        async with open_memory_network() as network:
            server = KeyServer([OLD.jwk()])
            network.attach(KEYS_URL, server)
            switched.behind = network.transport()
            await World(server, by).ask()
            answer = await World(server, by).ask()
            await switched.behind.aclose()
            return answer, len(server.requests)

    for _ in range(2):
        assert ("alice", 1) == trio.run(main, clock=MockClock(autojump_threshold=0))


# Keys that are new


async def test_a_token_with_a_new_key_is_accepted_at_once(autojump_clock: MockClock) -> None:
    """The keys are fetched anew, once for all requests that wait; requests with known keys do not wait."""
    async with open_world() as world:
        await world.ask()
        world.server.keys = [OLD.jwk(), NEW.jwk()]
        answers = await world.ask_many(*[{"key": NEW}] * 50, *[{"subject": "bob"}] * 50)
        assert [("alice", LATENCY)] * 50 + [("bob", 0.0)] * 50 == answers
        assert 2 == world.fetches


async def test_a_flood_of_unknown_keys_costs_one_fetch_in_thirty_seconds(autojump_clock: MockClock) -> None:
    """Whatever their ids are, or without one. In between each is refused at once."""
    async with open_world(OLD, NEW) as world:
        await world.ask()
        began_at = trio.current_time()
        waited = 0
        while trio.current_time() - began_at < 61:
            answers = await world.ask_many(*({"kid": kid} for kid in (f"k{trio.current_time()}", "k", "", None)))
            assert {UNKNOWN} == {answer for answer, _ in answers}
            waited += any(seconds for _, seconds in answers)
            await trio.sleep(0.25)
        assert 3 == waited  # at 0, 30 and 60 s
        assert 1 + 3 == world.fetches
        assert "alice" == await world.ask()


async def test_a_new_key_is_found_thirty_seconds_after_the_last_look(autojump_clock: MockClock) -> None:
    """Counted from look to look: what was fetched for another reason does not count."""
    async with open_world() as world:
        await world.ask()
        began_at = trio.current_time()
        assert UNKNOWN == await world.ask(NEW)
        world.server.keys = [NEW.jwk()]
        await trio.sleep_until(began_at + 29.9)
        assert UNKNOWN == await world.ask(NEW)
        await trio.sleep_until(began_at + 30)
        assert "alice" == await world.ask(NEW)
        assert 3 == world.fetches


async def test_keys_that_were_fetched_for_a_token_are_not_looked_at_again(autojump_clock: MockClock) -> None:
    """A token with an unknown key that comes first, or when the keys are old, causes one fetch, not two."""
    async with open_world() as world:
        assert [(UNKNOWN, LATENCY)] * 3 == await world.ask_many(*[{"key": NEW}] * 3)
        assert 1 == world.fetches
        await trio.sleep(300)
        assert (UNKNOWN, LATENCY) == (await world.ask_many({"key": NEW}))[0]
        assert 2 == world.fetches


@pytest.mark.parametrize("is_new", [True, False])
async def test_an_unknown_key_waits_for_a_fetch_that_is_under_way(is_new: bool, autojump_clock: MockClock) -> None:
    """The keys are being renewed: a token with an unknown key causes no fetch of its own, and is accepted if its key is
    a new one.
    """
    async with open_world() as world:
        await world.ask()
        world.server.keys += [NEW.jwk()] if is_new else []
        await trio.sleep(300)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.ask)
            await wait_all_tasks_blocked()
            answer = "alice" if is_new else UNKNOWN
            assert [(answer, LATENCY)] * 2 == await world.ask_many({"key": NEW}, {"key": NEW})
        assert 2 == world.fetches


async def test_a_look_renews_old_keys_too(autojump_clock: MockClock) -> None:
    """Keys that become old during a look are not fetched once more; requests with known keys do not wait."""
    async with open_world() as world:
        began_at = trio.current_time()
        await world.ask()
        await trio.sleep_until(began_at + 300 - LATENCY / 2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.ask, NEW)
            await trio.sleep_until(began_at + 300)
            assert ("alice", 0.0) == (await world.ask_many({}))[0]
        assert ("alice", 0.0) == (await world.ask_many({}))[0]
        assert 2 == world.fetches


async def test_a_token_that_is_no_good_in_another_way_causes_no_look(autojump_clock: MockClock) -> None:
    """Nor does it wait for keys that are not there yet."""
    async with open_world(answer="hang") as world:
        for header in ({"alg": "none"}, {"alg": "HS256"}, {"crit": ["exp"]}, {"kid": 7}):
            ((_, seconds),) = await world.ask_many(header)
            assert 0.0 == seconds
        assert 0 == world.fetches
        world.server.answer = None
        await world.ask()
        assert "has a wrong signature" == await world.ask(attrs.evolve(NEW, key_id="old"))
        assert 1 == world.fetches


# An issuer that is away

WAYS_TO_BE_AWAY = [
    ("refuse", "could not be reached: Connection refused"),
    ("hang", "did not answer within 5 s"),
    ((500, b"CANARY"), "answered HTTP 500"),
    ((404, b"{}"), "answered HTTP 404"),
    ((204, b""), "answered HTTP 204"),
    ((302, b""), "answered HTTP 302"),
    ((200, b""), "answered with what is no key set: it is no JSON object with an array 'keys'"),
    ((200, b"<html>CANARY"), "answered with what is no key set: it is no JSON object with an array 'keys'"),
    ((200, b"\xff\xfe"), "answered with what is no key set: it is no JSON object with an array 'keys'"),
    ((200, b"[" * 100_000), "answered with what is no key set: it is no JSON object with an array 'keys'"),
    ((200, b"[]"), "answered with what is no key set: it is no JSON object with an array 'keys'"),
    ((200, b'{"keys": {}}'), "answered with what is no key set: it is no JSON object with an array 'keys'"),
    (
        (200, b'{"keys": [%s1]}' % (b"1," * 100)),
        "answered with what is no key set: it has 101 keys, and the limit is 100",
    ),
    ((200, b" " * 600_000), "answered with over 524288 bytes"),
]
AWAY = pytest.mark.parametrize(
    ("answer", "detail"), [pytest.param(*way, id=f"{number}: {way[1]}") for number, way in enumerate(WAYS_TO_BE_AWAY)]
)


@AWAY
async def test_without_any_keys_requests_are_told_to_come_back(
    answer: Any, detail: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Not 401, since the token may be good. The issuer is asked again after 5 s; the log says it once."""
    caplog.set_level(logging.INFO)
    async with open_world(answer=answer) as world:
        with pytest.raises(AuthenticatorUnavailable) as caught:
            await world.by.authenticate({"authorization": f"Bearer {token()}"})
        assert f"https://issuer.test/CANARY/keys (jwks) {detail}" == str(caught.value)
        failed_at = trio.current_time()
        await trio.sleep(2)
        assert [("unavailable, try again in 3 s", 0.0)] * 3 == await world.ask_many({}, {}, {"key": NEW})
        await trio.sleep_until(failed_at + 5)
        asked = world.fetches
        world.server.answer = None
        assert [("alice", LATENCY)] * 2 == await world.ask_many({}, {})
        assert asked + 1 == world.fetches
    assert [
        ("WARNING", f"{caught.value}; no request can be authenticated"),
        ("INFO", "the keys of the issuer were fetched again"),
    ] == [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "trio_vmcp.serve"]


@AWAY
async def test_known_keys_stay_in_use_while_the_issuer_is_away(
    answer: Any, detail: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """For as long as it takes. It is asked every 30 s, by one request each time; the log says it once."""
    caplog.set_level(logging.INFO)
    async with open_world() as world:
        await world.ask()
        world.server.answer = answer
        began_at = trio.current_time()
        waited: list[float] = []
        while trio.current_time() - began_at < 900:
            await trio.sleep(10)
            ((subject, seconds),) = await world.ask_many({})
            assert "alice" == subject
            waited += [seconds] if seconds else []
        assert max(waited, default=0.0) <= 5.0
        if answer != "refuse":
            assert 1 + 16 <= world.fetches <= 1 + 20
        world.server.answer, world.server.keys = None, [NEW.jwk()]
        await trio.sleep(30)
        assert [UNKNOWN, "bob"] == [await world.ask(), await world.ask(NEW, "bob")]
    messages = [record.getMessage() for record in caplog.records if record.name == "trio_vmcp.serve"]
    url = "https://issuer.test/CANARY/keys (jwks)"
    assert [f"{url} {detail}; the old ones stay in use", "the keys of the issuer were fetched again"] == messages


@pytest.mark.parametrize(("encoding", "answer"), [("gzip", "unavailable, try again in 5 s"), ("Identity", "alice")])
async def test_a_compressed_key_set_is_refused(encoding: str, answer: str, autojump_clock: MockClock) -> None:
    """Not inflated: 1 KiB may become 1 MiB. Identity was asked for, and may be named."""
    async with open_world(headers=[("content-encoding", encoding)]) as world:
        assert answer == await world.ask()


async def test_a_redirect_is_not_followed(autojump_clock: MockClock) -> None:
    """Not even within the origin: the operator has configured this url and no other."""
    async with open_world(answer=(302, b""), headers=[("location", "/keys")]) as world:
        assert "unavailable, try again in 5 s" == await world.ask()
        assert 1 == world.fetches


async def test_a_host_that_does_not_exist_is_an_outage(autojump_clock: MockClock) -> None:
    """As every failure to connect."""
    async with open_world(jwks="https://nowhere.test/keys") as world:
        assert "unavailable, try again in 5 s" == await world.ask()


# Requests that are cancelled


async def test_another_request_fetches_when_the_one_that_did_is_cancelled(autojump_clock: MockClock) -> None:
    """A client that goes away does not take the others' keys along: one of them begins anew at once."""
    async with open_world() as world, trio.open_nursery() as nursery:
        leaving = trio.CancelScope()

        async def leave() -> None:
            with leaving:
                await world.ask()

        nursery.start_soon(leave)
        await wait_all_tasks_blocked()
        leaving.deadline = trio.current_time() + LATENCY / 2
        assert [("alice", LATENCY * 1.5)] * 3 == await world.ask_many({}, {}, {})
        assert 2 == world.fetches


@pytest.mark.parametrize("cold", [True, False])
async def test_requests_that_are_cancelled_on_purpose_cause_few_fetches(cold: bool, autojump_clock: MockClock) -> None:
    """After four in a row the issuer is left alone as if it had not answered: 5 s without any keys, else 30 s."""
    async with open_world() as world:
        if not cold:
            await world.ask()
        before, began_at = world.fetches, trio.current_time()
        for number in range(100):
            with trio.move_on_after(0.01):
                await world.ask(NEW, kid=f"k{number}")
        assert trio.current_time() - began_at < 1.0
        assert 4 == world.fetches - before
        await trio.sleep(5)
        assert "alice" == await world.ask()
        assert 4 + cold == world.fetches - before


def test_a_cancel_at_any_moment_leaves_the_keys_to_be_fetched() -> None:
    """Whatever the fetch has come to, the next request is answered, and no connection is left open."""

    async def main(cut: CancelAtMoment) -> None:
        async with open_world() as world:
            with cut.block():
                await world.ask()
            assert "bob" == await world.ask(subject="bob")
            assert world.fetches <= 2

    for moment in range(500):
        cut = CancelAtMoment(moment)
        trio.run(main, cut, clock=MockClock(autojump_threshold=0))
        if cut.struck is None:
            break
    assert moment > 5


# Files


@pytest.mark.parametrize("given_as", [str, Path])
async def test_a_file_is_read_again(given_as: type, tmp_path: Path, autojump_clock: MockClock) -> None:
    """For a new key at once, and every five minutes; a file that is gone stays in use."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [OLD.jwk()]}))
    async with open_world(jwks=given_as(path)) as world:
        assert "alice" == await world.ask()
        path.write_text(json.dumps({"keys": [NEW.jwk()]}))
        assert ["alice", "bob"] == [await world.ask(), await world.ask(NEW, "bob")]
        assert UNKNOWN == await world.ask()
        path.unlink()
        await trio.sleep(1000)
        assert "bob" == await world.ask(NEW, "bob")


# Configuration


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"issuer": ""}, "issuer is not a non-empty str"),
        ({"issuer": None}, "issuer is not a non-empty str"),
        ({"issuer": "a\0"}, "identity issuer 'a\\x00' holds NUL"),
        ({"audience": ""}, "audience is not a non-empty str"),
        ({"audience": [AUDIENCE]}, "audience is not a non-empty str"),
        ({"algorithms": "RS256"}, "algorithms is not several names"),
        ({"algorithms": []}, "algorithms is not several names"),
        *(
            ({"algorithms": ["ES256", name]}, f"algorithms has {name!r}, which is none of RS256")
            for name in ("none", "HS256")
        ),
        ({"leeway": -1}, "leeway=-1 is not from 0 to 600 s"),
        ({"leeway": math.nan}, "leeway=nan is not from 0 to 600 s"),
        ({"leeway": "5"}, "leeway='5' is not from 0 to 600 s"),
        (
            {"jwks": "http://issuer.test/keys?key=CANARY"},
            "jwks 'http://issuer.test/keys' is not https://, which keys need",
        ),
        ({"jwks": "http://10.0.0.1/"}, "jwks 'http://10.0.0.1/' is not https://, which"),
        ({"jwks": "http://127.0.0.1.issuer.test/"}, "is not https://, which"),
        ({"jwks": "http://localhost.issuer.test/"}, "is not https://, which"),
        ({"jwks": "https://CANARY:CANARY@issuer.test/"}, "jwks 'https://issuer.test/' is not https:// with a host"),
        ({"jwks": "ftp://issuer.test/"}, "jwks 'ftp://issuer.test/' is not https:// with a host"),
        ({"jwks": "file:///etc/keys"}, "jwks 'file:///etc/keys' is not https:// with a host"),
        ({"jwks": "https://"}, "jwks 'https://' is not https:// with a host"),
        ({"jwks": "https://issuer.test:x/"}, "jwks 'https://issuer.test:x/' is no URL"),
        ({"jwks": "/no/such/file"}, "the file '/no/such/file' (jwks) cannot be read: No such file or directory"),
        ({"jwks": "/"}, "the file '/' (jwks) cannot be read: Is a directory"),
        ({"jwks": ""}, "the file '' (jwks) cannot be read: No such file or directory"),
        ({"jwks": __file__}, "(jwks) holds what is no key set: it is no JSON object with an array 'keys'"),
        ({"jwks": "/dev/zero"}, "the file '/dev/zero' (jwks) has over 524288 bytes"),
        ({"jwks": {}}, "jwks is no key set: it is no JSON object with an array 'keys'"),
        ({"jwks": {"keys": []}}, "jwks has no key for any of RS256"),
        ({"jwks": {"keys": [OLD.jwk()]}, "algorithms": ["RS256"]}, "jwks has no key for any of RS256"),
        ({"jwks": None}, "jwks is NoneType, neither a str nor a mapping"),
        ({"proxy": "ftp://proxy.test"}, "proxy 'ftp://proxy.test' is neither 'env' nor http://host:port"),
    ],
)
def test_what_cannot_work_is_an_error_at_once(changed: dict[str, Any], text: str) -> None:
    """A ValueError that names the argument, and shows no part of a url that may be secret."""
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        JwtAuthenticator(**{"issuer": ISSUER, "audience": AUDIENCE, "jwks": KEYS_URL, **changed})
    assert text in str(caught.value)
    assert "CANARY" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url",
    ["http://localhost:1/k", "http://127.0.0.1/k", "http://127.9.9.9/k", "http://[::1]:1/k", "HTTPS://issuer.test"],
)
def test_keys_come_over_tls_or_from_this_machine(url: str) -> None:
    """Others could change them on the way, and then sign tokens."""
    JwtAuthenticator(issuer=ISSUER, audience=AUDIENCE, jwks=url)


async def test_the_librarys_own_transport_fetches_over_tcp() -> None:
    """One connection, which is closed behind the fetch."""
    server = KeyServer([OLD.jwk()], latency=0)
    async with open_loopback(server) as url:
        by = JwtAuthenticator(issuer=ISSUER, audience=AUDIENCE, jwks=url, clock=lambda: NOW)
        assert ["alice", UNKNOWN] == [await World(server, by).ask(key) for key in (OLD, NEW)]
        assert 2 == len(server.requests)


async def test_keys_come_through_tls_and_a_proxy_as_configured() -> None:
    """`ssl_context` is trusted, `proxy` is used; without the former the certificate is refused."""
    server = KeyServer([OLD.jwk()], latency=0)
    async with (
        open_tls_loopback(server, server_context()) as url,
        open_proxy(credentials="user:CANARY") as (proxy, via),
    ):
        given: dict[str, Any] = {
            "issuer": ISSUER,
            "audience": AUDIENCE,
            "jwks": url,
            "clock": lambda: NOW,
            "proxy": via,
        }
        trusting = JwtAuthenticator(**given, ssl_context=client_context())
        assert "alice" == await World(server, trusting).ask()
        assert [f"CONNECT {urlsplit(url).netloc} HTTP/1.1"] == proxy.asked
        with pytest.raises(
            AuthenticatorUnavailable, match="could not be reached: its certificate is refused: "
        ) as caught:
            await JwtAuthenticator(**given).authenticate({"authorization": f"Bearer {token()}"})
        assert "CANARY" not in "".join(traceback.format_exception(caught.value))
        assert "CANARY" not in repr(trusting._fetch)
    assert 1 == len(server.requests)


# Secrets


async def test_no_text_of_a_token_is_shown(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in errors with all their causes, nor in logs and reprs."""
    caplog.set_level(logging.DEBUG)
    good = token(subject="CANARY", typ="CANARY")
    parts = good.split(".")
    bad = [
        token(NEW, "CANARY", kid="CANARY"),
        token(attrs.evolve(NEW, key_id="old"), "CANARY"),
        token(OLD, "CANARY", alg="CANARY"),
        make_token(OLD, {"iss": "CANARY", "aud": AUDIENCE, "sub": "CANARY", "exp": NOW + 1}),
        make_token(OLD, {"iss": ISSUER, "aud": "CANARY", "sub": "CANARY", "exp": NOW + 1}),
        make_token(OLD, {"iss": ISSUER, "aud": AUDIENCE, "sub": "CANARY\0", "exp": NOW + 1}),
        make_token(OLD, {"iss": ISSUER, "aud": AUDIENCE, "sub": "CANARY", "exp": "CANARY"}),
        make_token(OLD, '{"sub": "CANARY'),
        make_token(OLD, {}, header='{"alg": "ES256", "kid": "CANARY'),
        make_token(OLD, {}, header='{"alg": "ES256", "kid": "CANARY\xff'.encode("latin-1").decode("latin-1")),
        *("CANARY", "CANARY.CANARY.CANARY", f"{parts[0]}.CANARY.{parts[2]}", f"CANARY.{parts[1]}.x", "CANARY" * 5000),
    ]
    texts: list[str] = []
    async with open_world() as world:
        identity = await world.by.authenticate({"authorization": f"Bearer {good}"})
        for each in bad:
            with pytest.raises(Unauthenticated) as caught:
                await world.by.authenticate({"authorization": f"Bearer {each}"})
            error: BaseException | None = caught.value
            texts += traceback.format_exception(caught.value)
            while error is not None:
                texts += [str(error), repr(error), repr(vars(error)), getattr(error, "challenge", "")]
                error = error.__cause__ or error.__context__
        texts += [repr(world.by), repr(vars(world.by)), *(record.getMessage() for record in caplog.records)]
    shown = [text for text in texts if "CANARY" in text.replace("/CANARY/keys", "") or parts[2] in text]
    assert [] == shown
    assert "CANARY" == identity.subject


@pytest.mark.parametrize(("missing", "module"), [("jwt", "jwt"), ("cryptography", "sealing")])
def test_the_extra_is_named_if_it_is_missing(missing: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import error says what to install."""
    for name in [name for name in sys.modules if name.startswith("trio_vmcp.serve._")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, f"trio_vmcp.serve.{module}", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'trio-vmcp\[serve\]'"):
        __import__(f"trio_vmcp.serve.{module}")
