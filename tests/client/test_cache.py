"""Cached results: for how long, for which identity, until which notification, how many; and that no caller changes
another's copy.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
from support.clients import ALICE, BOB, Bench, ask, call, echo_backend, open_scripted
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    BearerAuth,
    ClientCredentials,
    HeaderAuth,
    Identity,
    OutgoingAuth,
    PerBackend,
)
from trio_vmcp._client import cache as result_cache
from trio_vmcp._client.cache import (
    LONGEST,
    MOST_BYTES_EACH,
    MOST_RESULTS_EACH,
    BackendCache,
    Fetch,
    ResponseCache,
)
from trio_vmcp.auth._tokens import TokenGrant
from trio_vmcp.testing import Delay, Disconnect, Error, Hang, Reset, Rewrite, ScriptedBackend, Status

MODERN = "2026-07-28"
LISTS = ("tools/list", "resources/list", "resources/templates/list", "prompts/list")


def of(
    cache: ResponseCache,
    url: str = "http://b.test/mcp",
    version: str = MODERN,
    auth: OutgoingAuth | None = None,
    **more: Any,
) -> BackendCache:
    return cache.of(Backend(**{"id": "b", "url": url, **more}), version, auth)


def keep(
    kept: BackendCache, method: str, result: JSON, params: JSON | None = None, identity: Identity | None = None
) -> None:
    fetch = kept.begin_fetch(method, params or {}, identity)
    assert fetch is not None
    keep_result(fetch, result)
    fetch.close()


def keep_result(fetch: Fetch, result: JSON) -> None:
    for _ in fetch.keep_in_steps(result):
        pass


def lasting(seconds: float, **fields: Any) -> JSON:
    return {"ttlMs": seconds * 1000, "cacheScope": "private", **fields}


def find(kept: BackendCache, method: str, params: JSON | None = None, identity: Identity | None = None) -> JSON | None:
    steps = kept.find_in_steps(method, params or {}, identity)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: JSON | None = end.value
            return found


# Time to live


async def test_fresh_until_the_very_end(autojump_clock: MockClock) -> None:
    """MCP 2026-07-28: a result is fresh while now < received + ttl."""
    kept = of(ResponseCache())
    keep(kept, "tools/list", lasting(5, tools=[]))
    await trio.sleep(4.999)
    assert lasting(5, tools=[]) == find(kept, "tools/list")
    await trio.sleep(0.001)
    assert None is find(kept, "tools/list")


@pytest.mark.parametrize("ttl", [None, 0, -1, -0.0, "5000", True, [5000], math.nan, -math.inf])
async def test_no_time_to_live_is_none(ttl: Any) -> None:
    """A ttl that is absent, zero, negative or no number: the result is not cached."""
    cache = ResponseCache()
    keep(of(cache), "tools/list", {"ttlMs": ttl, "cacheScope": "public"})
    keep(of(cache), "prompts/list", {"cacheScope": "public"})
    assert (0, 0) == (len(cache), cache.size)


@pytest.mark.parametrize("ttl", [1e300, 10**400, math.inf, 24 * 3600 * 1000 + 1], ids=["float", "int", "inf", "near"])
async def test_nothing_is_kept_longer_than_a_day(autojump_clock: MockClock, ttl: float) -> None:
    """A longer ttl counts as a day."""
    kept = of(ResponseCache())
    keep(kept, "tools/list", {"ttlMs": ttl})
    await trio.sleep(LONGEST - 1)
    assert None is not find(kept, "tools/list")
    await trio.sleep(1)
    assert 24 * 3600 == LONGEST
    assert None is find(kept, "tools/list")


async def test_each_page_has_a_clock_of_its_own(autojump_clock: MockClock) -> None:
    """A page is found with all pages behind it or not at all: cursors of a list that is half old may be invalid."""
    kept = of(ResponseCache())
    keep(kept, "tools/list", lasting(10, nextCursor="", tools=[1]))
    assert None is find(kept, "tools/list")
    keep(kept, "tools/list", lasting(5, nextCursor=2, tools=[2]), {"cursor": ""})
    assert None is find(kept, "tools/list")
    keep(kept, "tools/list", lasting(20, tools=[3]), {"cursor": 2})
    pages = [find(kept, "tools/list", params) for params in ({}, {"cursor": ""}, {"cursor": 2})]
    assert [[1], [2], [3]] == [page and page["tools"] for page in pages]
    await trio.sleep(5)
    pages = [find(kept, "tools/list", params) for params in ({}, {"cursor": ""}, {"cursor": 2})]
    assert [None, None, [3]] == [page and page["tools"] for page in pages]


async def test_cursors_in_a_circle_are_no_list() -> None:
    """A list with cursors in a circle is not cached: a reader would follow them for ever."""
    kept = of(ResponseCache())
    keep(kept, "tools/list", lasting(10, nextCursor="a"))
    keep(kept, "tools/list", lasting(10, nextCursor="a"), {"cursor": "a"})
    assert None is find(kept, "tools/list")


# Identities and endpoints


IDENTITIES = [
    None,
    ALICE,
    BOB,
    Identity(issuer="https://issuer.test", subject="alice2"),
    Identity(issuer="i", subject="alice"),
]


@pytest.mark.parametrize("scope", ["private", None, "Public", "shared", 1])
async def test_what_is_not_public_is_its_owner_s(scope: Any) -> None:
    """Two principals do not see each other's private results; calls without identity are a principal, too."""
    for owner in IDENTITIES:
        kept = of(ResponseCache())
        keep(kept, "tools/list", {"ttlMs": 5000, "cacheScope": scope}, identity=owner)
        found = [find(kept, "tools/list", identity=identity) is not None for identity in IDENTITIES]
        assert [identity == owner for identity in IDENTITIES] == found


def own_token(backend: Backend, identity: Identity | None) -> str | None:
    return identity.token if identity else None


def own_auth(backend: Backend, identity: Identity | None) -> httpx.Auth | None:
    return httpx.BasicAuth("user", own_token(backend, identity) or "")


def failing_token(backend: Backend, identity: Identity | None) -> str | None:
    raise LookupError("no token")


class ChoosyAuth(PerBackend):
    def __call__(self, backend: Backend, identity: Identity | None) -> httpx.Auth | None:
        return own_auth(backend, identity)


BEARER = BearerAuth(own_token)
KNOWN = {
    "none": None,
    "bearer": BEARER,
    "header": HeaderAuth({"X-Key": own_token}),
    "static": BearerAuth("for-all"),
    "by backend": PerBackend({"b": BEARER}),
    "not this backend": PerBackend({"c": own_auth}),
    "nested": PerBackend({"b": PerBackend({"b": BEARER})}),
}
UNKNOWN = {
    "function": own_auth,
    "by backend": PerBackend({"b": own_auth}),
    "subclass": ChoosyAuth({}),
    "failing": BearerAuth(failing_token),
    "no token yet": ClientCredentials("https://issuer.test/token", "id", "secret"),
}
ANOTHER = Identity(issuer=ALICE.issuer, subject=ALICE.subject, token="another")
SCOPES = ("private", None, "Public", "shared", 1)


@pytest.mark.parametrize("auth", KNOWN.values(), ids=KNOWN)
@pytest.mark.parametrize("scope", SCOPES)
async def test_another_token_is_another_context(auth: OutgoingAuth | None, scope: Any) -> None:
    """MCP 2026-07-28, caching: "a different access token requires a different cache", also for one principal."""
    kept = of(ResponseCache(), auth=auth)
    keep(kept, "tools/list", {"ttlMs": 5000, "cacheScope": scope}, identity=ALICE)
    same = Identity(issuer=ALICE.issuer, subject=ALICE.subject, token=ALICE.token)
    found = [find(kept, "tools/list", identity=identity) is not None for identity in (same, ANOTHER, BOB, None)]
    assert [True, False, False, False] == found


@pytest.mark.parametrize("auth", UNKNOWN.values(), ids=UNKNOWN)
async def test_of_an_unknown_context_only_public_results_are_kept(auth: OutgoingAuth) -> None:
    """An `auth` of the user's does not tell what it will send: nothing private is kept, for no caller."""
    cache = ResponseCache()
    kept = of(cache, auth=auth)
    for scope in SCOPES:
        keep(kept, "tools/list", {"ttlMs": 5000, "cacheScope": scope}, identity=ALICE)
    assert 0 == len(cache)
    keep(kept, "tools/list", {"ttlMs": 5000, "cacheScope": "public"}, identity=ALICE)
    assert all(find(kept, "tools/list", identity=identity) for identity in (ALICE, ANOTHER, BOB, None))


async def test_a_token_that_rotates_behind_one_identity_is_another_context() -> None:
    """The token that is sent counts, not only that of the identity: a function may give another one at any time. A
    result whose request may have carried either token is not kept.
    """
    tokens = ["first"]
    cache = ResponseCache()
    kept = of(cache, auth=BearerAuth(lambda backend, identity: tokens[0]))
    keep(kept, "tools/list", lasting(5), identity=ALICE)
    assert None is not find(kept, "tools/list", identity=ALICE)
    tokens[0] = "second"
    assert None is find(kept, "tools/list", identity=ALICE)
    fetch = kept.begin_fetch("prompts/list", {}, ALICE)
    assert fetch is not None
    tokens[0] = "third"
    keep_result(fetch, lasting(5))
    fetch.close()
    assert 1 == len(cache)


async def test_a_new_token_of_this_program_is_another_context() -> None:
    """Client credentials: results of one access token are not found with the next."""
    auth = ClientCredentials("https://issuer.test/token", "id", "secret", resource=None)
    kept = of(ResponseCache(), auth=auth)
    for token in ("first", "second"):
        with auth._shared(None).begin_request() as request:
            request.outcome = TokenGrant(token, None)
        assert None is find(kept, "tools/list")
        keep(kept, "tools/list", lasting(5))
        assert None is not find(kept, "tools/list")


async def test_no_token_is_kept() -> None:
    """The keys of the cache hold digests, not tokens."""
    cache = ResponseCache()
    kept = of(cache, auth=BEARER)
    fetch = kept.begin_fetch("prompts/list", {}, ALICE)
    keep(kept, "tools/list", lasting(5), identity=ALICE)
    assert ALICE.token not in repr((cache, kept, fetch, cache._shelves))


CACHED: list[tuple[str, JSON]] = [(method, {}) for method in ("server/discover", *LISTS)] + [
    ("resources/read", {"uri": "memo://one"})
]


@pytest.mark.parametrize(("method", "params"), CACHED, ids=lambda value: value if isinstance(value, str) else "")
async def test_every_result_is_asked_for_once_a_token(method: str, params: JSON) -> None:
    """Whatever can be cached is asked for again with another token, with that token, and then found with it."""
    backend = offering()
    async with open_scripted(backend, auth=BEARER) as bench:
        for identity in (ALICE, ANOTHER, ALICE, ANOTHER):
            client = await bench.connect(identity=identity)
            if method != "server/discover":
                await ask(client, method, params, identity=identity)
    sent = [exchange.headers["authorization"] for exchange in backend.received(method)]
    assert ["Bearer alice-token", "Bearer another"] == sent


async def test_a_public_result_is_shared_by_all_identities() -> None:
    """A public result is shared by all identities, for the same backend."""
    kept = of(ResponseCache())
    keep(kept, "tools/list", {"ttlMs": 5000, "cacheScope": "public"}, identity=ALICE)
    assert all(find(kept, "tools/list", identity=identity) for identity in IDENTITIES)


@pytest.mark.parametrize(
    "other",
    [
        {"url": "http://b.test/other"},
        {"url": "https://b.test/mcp"},
        {"id": "c"},
        {"headers": {"X-Tenant": "b"}},
        {"headers": {"X-Tenant": "a", "X-More": ""}},
        {"headers": {}},
        {"headers": {"X-Tenan": "ta"}},
        {"version": "2027-01-01"},
    ],
    ids=str,
)
@pytest.mark.parametrize("scope", ["private", "public"])
async def test_another_way_to_ask_is_another_result(other: JSON, scope: str) -> None:
    """Other headers or another backend id are another entry: headers may be credentials or choose the result, and the
    id may choose the credentials.
    """
    cache = ResponseCache()
    usual: JSON = {"headers": {"X-Tenant": "a"}}
    keep(of(cache, **usual), "tools/list", {"ttlMs": 5000, "cacheScope": scope})
    assert None is not find(of(cache, **usual), "tools/list")
    assert None is find(of(cache, **{**usual, **other}), "tools/list")


async def test_no_header_is_kept() -> None:
    """The cache keeps neither a header nor a digest that could be tried against guesses elsewhere."""
    cache = ResponseCache()
    kept = of(cache, headers={"Authorization": "Bearer canary"})
    keep(kept, "tools/list", lasting(5))
    assert "canary" not in repr((cache, kept, cache._shelves))


# Methods and params


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tools/call", {"name": "t"}),
        ("prompts/get", {"name": "p"}),
        ("completion/complete", {}),
        ("resources/read", {"uri": "memo://one", "inputResponses": {"a": {}}}),
        ("resources/read", {"uri": "memo://one", "requestState": "s"}),
        ("tools/list", {"_meta": {"traceparent": "00-1", "mine": 1}}),
        ("tools/list", {"cursor": {1, 2}}),
    ],
    ids=str,
)
async def test_what_is_not_for_keeping(method: str, params: JSON) -> None:
    """Calls, rounds of input, and params that the cache does not understand are not cached."""
    kept = of(ResponseCache())
    assert (None, None) == (kept.begin_fetch(method, params, None), find(kept, method, params))


@pytest.mark.parametrize("meta", [{"traceparent": "00-1"}, {"traceparent": "00-2", "tracestate": "a=b"}], ids=str)
async def test_a_trace_is_no_part_of_the_question(meta: JSON) -> None:
    """Each call has a trace of its own, and its answer is that of the request without one."""
    kept = of(ResponseCache())
    keep(kept, "tools/list", lasting(5))
    assert find(kept, "tools/list", {}) is not None
    assert find(kept, "tools/list", {"_meta": meta}) == find(kept, "tools/list", {})


async def test_a_progress_token_changes_no_result() -> None:
    """A progress token is set by the library and does not change the result."""
    kept = of(ResponseCache())
    keep(kept, "resources/read", lasting(5), {"uri": "memo://one", "_meta": {"progressToken": 7}})
    assert None is not find(kept, "resources/read", {"_meta": {"progressToken": 8}, "uri": "memo://one"})
    assert None is find(kept, "resources/read", {"uri": "memo://two"})


async def test_each_caller_gets_a_copy() -> None:
    """Each caller gets a copy: changing it, or the received message, changes no other copy."""
    kept = of(ResponseCache())
    received = lasting(5, tools=[{"name": "t\ud800", "n": 0.1, "big": 10**30, "text": "é"}])
    keep(kept, "tools/list", received)
    wanted = json.loads(json.dumps(received))
    received["tools"].clear()
    for _ in range(2):
        found = find(kept, "tools/list") or {}
        assert wanted == found
        found["tools"][0]["name"] = "changed"


# Notifications


@pytest.mark.parametrize(
    ("notification", "gone"),
    [
        ("notifications/tools/list_changed", {"tools/list"}),
        ("notifications/prompts/list_changed", {"prompts/list"}),
        ("notifications/resources/list_changed", {"resources/list", "resources/templates/list"}),
        ("notifications/message", set()),
    ],
)
async def test_a_change_ends_what_it_is_about(notification: str, gone: set[str]) -> None:
    """`list_changed` removes every page of that list, for every identity and all headers."""
    cache = ResponseCache()
    for identity in (None, ALICE):
        for params in ({}, {"cursor": "a"}):
            for method in LISTS:
                keep(of(cache), method, lasting(60), params, identity)
    keep(of(cache), "server/discover", lasting(60))
    of(cache, headers={"a": "b"}).note_change(notification, {})
    left = {method for method in LISTS if find(of(cache), method) is not None}
    assert {*LISTS} - gone == left
    assert 17 - 4 * len(gone) == len(cache)
    of(cache, url="http://other.test/").note_change(notification, {})
    assert 17 - 4 * len(gone) == len(cache)


@pytest.mark.parametrize(
    ("params", "left"),
    [
        ({"uri": "memo://a"}, {"memo://a/b", "memo://b"}),
        ({"uri": "memo://a/b"}, {"memo://b"}),
        ({"uri": "memo://c"}, {"memo://a", "memo://a/b", "memo://b"}),
        ({}, set()),
        ({"uri": 1}, set()),
    ],
)
async def test_an_updated_resource_is_read_again(params: JSON, left: set[str]) -> None:
    """`resources/updated` removes the resource and its parents; without a URI, all resources."""
    kept = of(ResponseCache())
    uris = ("memo://a", "memo://a/b", "memo://b")
    for uri in uris:
        keep(kept, "resources/read", lasting(60), {"uri": uri})
    keep(kept, "resources/list", lasting(60))
    kept.note_change("notifications/resources/updated", params)
    assert left == {uri for uri in uris if find(kept, "resources/read", {"uri": uri})}
    assert find(kept, "resources/list")


async def test_what_was_on_its_way_when_it_changed_is_not_kept() -> None:
    """A result that was requested before the change may be older than the change, so it is not cached; one requested
    after it is.
    """
    cache = ResponseCache()
    kept = of(cache)
    before, other = kept.begin_fetch("tools/list", {}, None), kept.begin_fetch("prompts/list", {}, None)
    kept.note_change("notifications/tools/list_changed", {})
    after = kept.begin_fetch("tools/list", {"cursor": "a"}, None)
    for fetch in (before, other, after):
        assert fetch is not None
        keep_result(fetch, lasting(60))
        fetch.close()
    assert (False, True, True) == (
        find(kept, "tools/list") is not None,
        find(kept, "prompts/list") is not None,
        find(kept, "tools/list", {"cursor": "a"}) is not None,
    )
    kept.discard_all()
    assert (0, 0, {}) == (len(cache), cache.size, cache._shelves)


# Limits


async def test_one_endpoint_pushes_out_its_own_alone() -> None:
    """Over the limit of an endpoint its own oldest entry is removed, so that one backend does not displace the
    others.
    """
    cache = ResponseCache()
    keep(of(cache, url="http://quiet.test/"), "tools/list", lasting(60))
    for number in range(MOST_RESULTS_EACH + 10):
        keep(of(cache), "resources/read", lasting(60), {"uri": f"memo://{number}"})
    assert MOST_RESULTS_EACH + 1 == len(cache)
    found = [find(of(cache), "resources/read", {"uri": f"memo://{number}"}) for number in (0, 9, 10, 521)]
    assert [False, False, True, True] == [each is not None for each in found]
    large = "x" * (MOST_BYTES_EACH // 3)
    for number in range(6):
        keep(of(cache), "resources/read", lasting(60, text=large), {"uri": f"large://{number}"})
    assert MOST_BYTES_EACH * 2 // 3 < cache.size <= MOST_BYTES_EACH + 2000
    keep(of(cache), "tools/list", lasting(60, text="x" * MOST_BYTES_EACH))
    assert None is find(of(cache), "tools/list")
    assert None is not find(of(cache, url="http://quiet.test/"), "tools/list")


async def test_all_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the limit of all endpoints, the largest endpoint loses entries."""
    monkeypatch.setattr(result_cache, "MOST_RESULTS", 20)
    monkeypatch.setattr(result_cache, "MOST_BYTES", 40_000)
    cache = ResponseCache()
    keep(of(cache, url="http://quiet.test/"), "tools/list", lasting(60))
    for number in range(50):
        keep(of(cache, url=f"http://{number % 5}.test/"), "resources/read", lasting(60), {"uri": f"memo://{number}"})
        assert len(cache) <= 20
    for number in range(50):
        keep(of(cache), "resources/read", lasting(60, text="x" * 5000), {"uri": f"memo://{number}"})
        assert cache.size <= 40_000
    assert None is not find(of(cache, url="http://quiet.test/"), "tools/list")


async def test_the_same_again_takes_the_place_of_what_there_was() -> None:
    """The same result again replaces the entry, and counts once."""
    cache = ResponseCache()
    for text in ("x" * 1000, "y"):
        keep(of(cache), "tools/list", lasting(60, text=text))
    assert (1, "y") == (len(cache), (find(of(cache), "tools/list") or {})["text"])
    assert cache.size < 1000


async def test_what_has_ended_makes_room(autojump_clock: MockClock) -> None:
    """An expired entry is removed when it is looked up."""
    cache = ResponseCache()
    keep(of(cache), "tools/list", lasting(1))
    await trio.sleep(1)
    find(of(cache), "tools/list")
    assert (0, 0, {}) == (len(cache), cache.size, cache._shelves)


# In a client


def offering(**more: Any) -> ScriptedBackend:
    backend = echo_backend(**{"era": "modern", "ttl_ms": 60_000, **more})
    backend.add_resource("memo://one", "first")
    backend.add_prompt("greet")
    return backend


@asynccontextmanager
async def two_clients(backend: ScriptedBackend, **options: Any) -> AsyncIterator[Bench]:
    """Two sessions' clients of one backend; the first has listed everything."""
    async with open_scripted(backend, **options) as bench:
        client = await bench.connect()
        await list_all(client)
        yield bench


async def list_all(client: Any) -> list[JSON]:
    pages = [await ask(client, method) for method in LISTS]
    return [*pages, await ask(client, "resources/read", {"uri": "memo://one"})]


async def test_a_second_session_asks_for_nothing_that_is_fresh(autojump_clock: MockClock) -> None:
    """Discovery, lists and reads are not sent again while they are fresh."""
    backend = offering()
    async with two_clients(backend) as bench:
        before = len(backend.exchanges)
        again = await bench.connect()
        assert await list_all(bench.clients[0]) == await list_all(again)
        assert before == len(backend.exchanges) == 6
        assert bench.clients[0].server_capabilities == again.server_capabilities
        await call(again)
        assert before + 1 == len(backend.exchanges)
        await trio.sleep(60)
        await list_all(await bench.connect())
        assert before + 7 == len(backend.exchanges)


async def test_the_probe_asks_for_nothing_that_is_fresh() -> None:
    """The second client knows the era from the factory, and the capabilities from the cache."""
    backend = offering(era="both")
    async with two_clients(backend) as bench:
        before = len(backend.exchanges)
        assert "modern" == (await bench.connect()).record.era
        assert before == len(backend.exchanges)


async def test_one_identity_s_lists_are_not_another_s() -> None:
    """Lists that the server does not call public are fetched for each identity."""
    for scope, asked in (("private", 12), ("public", 6)):
        backend = offering(cache_scope=scope)
        async with open_scripted(backend) as bench:
            for identity in (ALICE, BOB):
                client = await bench.connect(identity=identity)
                for method in LISTS:
                    await ask(client, method, identity=identity)
                await ask(client, "resources/read", {"uri": "memo://one"}, identity=identity)
        assert asked == len(backend.exchanges)


async def test_what_is_found_in_the_cache_is_looked_at_all_the_same() -> None:
    """Cached lists are processed like fetched ones: the second session sends the headers of a tool's schema, and
    withholds a malformed tool.
    """
    backend = offering()
    schema = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
    backend.add_tool("located", inputSchema=schema)
    backend.add_tool("bad", inputSchema={"properties": {"a": {"type": "object", "x-mcp-header": "A"}}})
    async with two_clients(backend) as bench:
        again = await bench.connect()
        tools = [tool["name"] for tool in (await ask(again, "tools/list"))["tools"]]
        assert ["echo", "steps", "hang", "located"] == tools
        await call(again, "located", {"region": "eu"})
    assert "eu" == backend.received("tools/call")[0].headers["mcp-param-region"]


async def test_a_notification_makes_every_client_ask_again() -> None:
    """A notification on one client's stream removes the lists for all clients."""
    backend = offering(listens=True)
    async with two_clients(backend) as bench:
        other = await bench.connect()
        await wait_all_tasks_blocked()
        backend.add_tool("new")
        backend.notify("notifications/tools/list_changed")
        await wait_all_tasks_blocked()
        assert "new" == (await ask(other, "tools/list"))["tools"][-1]["name"]
        assert 2 == len(backend.received("tools/list"))


async def test_a_change_during_a_fetch_is_not_lost(autojump_clock: MockClock) -> None:
    """A list that changes during its fetch is given to the caller, which is notified of the change, and is not
    cached.
    """
    backend = offering(listens=True)
    async with open_scripted(backend) as bench, trio.open_nursery() as nursery:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        backend.fail("tools/list", Delay(2), times=1)
        nursery.start_soon(lambda: ask(client, "tools/list"))
        await trio.sleep(1)
        backend.notify("notifications/tools/list_changed")
        await trio.sleep(2)
        await ask(client, "tools/list")
        await ask(client, "tools/list")
    assert 2 == len(backend.received("tools/list"))


async def test_a_schema_that_proved_old_is_fetched_whatever_is_fresh() -> None:
    """After -32020 (HeaderMismatch) the schema is fetched again, even if the cached one is fresh."""
    backend = offering()
    async with two_clients(backend) as bench:
        backend.fail("tools/call", Error(-32020, "header mismatch", status=400), times=1)
        await call(bench.clients[0])
    assert 2 == len(backend.received("tools/list"))


async def test_a_dead_cursor_drops_every_page() -> None:
    """If a cursor is refused, the pages before it are removed: they belong to a list that is gone."""
    backend = offering(page_size=1)
    async with open_scripted(backend) as bench:
        client = await bench.connect()
        await ask(client, "tools/list")
        await ask(client, "tools/list", {"cursor": "after 1"})
        await ask(client, "tools/list", {"cursor": "after 2"})
        await ask(client, "tools/list")
        assert 3 == len(backend.received("tools/list"))
        with pytest.raises(BackendRejected):
            await ask(client, "tools/list", {"cursor": "after 9"})
        await ask(client, "tools/list")
        await ask(client, "tools/list", {"cursor": "after 2"})
    assert 6 == len(backend.received("tools/list"))


@pytest.mark.parametrize("kind", ["input_required", "unknown"])
async def test_what_is_no_whole_result_is_not_kept(kind: str) -> None:
    """A result of another `resultType` than "complete" is not cached, whatever its ttl."""
    backend = offering()
    change = Rewrite(lambda response: {**response, "result": {**response["result"], "resultType": kind}})
    backend.fail("resources/read", change, times=1)
    async with open_scripted(backend) as bench:
        client = await bench.connect()
        with pytest.raises(Exception, match="answered 'resources/read'"):
            await ask(client, "resources/read", {"uri": "memo://one"})
        assert await ask(client, "resources/read", {"uri": "memo://one"})
    assert 2 == len(backend.received("resources/read"))


@pytest.mark.parametrize("fault", [Disconnect(0), Reset(0)])
async def test_after_a_lost_connection_the_backend_is_discovered_again(autojump_clock: MockClock, fault: Any) -> None:
    """After a lost connection a backend may come back as another version, so it is discovered again."""
    backend = offering()
    async with two_clients(backend) as bench:
        backend.fail("tools/call", fault, times=1)
        with pytest.raises(BackendUnavailable):
            await call(bench.clients[0])
        await list_all(await bench.connect())
    assert (2, 2, 2) == tuple(len(backend.received(m)) for m in ("server/discover", "tools/list", "resources/read"))


@pytest.mark.parametrize("fault", [Hang(), Status(404)])
async def test_a_backend_that_does_not_answer_is_discovered_again(autojump_clock: MockClock, fault: Any) -> None:
    """After a timeout or a 404 the backend is discovered again, and its lists stay cached."""
    backend = offering()
    async with two_clients(backend) as bench:
        backend.fail("tools/call", fault, times=1)
        with pytest.raises((BackendTimeout, BackendRejected)):
            await call(bench.clients[0], timeout=5)
        await list_all(await bench.connect())
    assert (2, 1) == tuple(len(backend.received(m)) for m in ("server/discover", "tools/list"))


async def test_a_cancelled_fetch_leaves_nothing(autojump_clock: MockClock) -> None:
    """A cancelled fetch leaves no entry, and the next call fetches again."""
    backend = offering()
    backend.fail("tools/list", Hang(), times=1)
    async with open_scripted(backend) as bench:
        client = await bench.connect()
        with trio.move_on_after(1):
            await ask(client, "tools/list")
        (shelf,) = bench.connector.cache._shelves.values()
        assert set() == shelf.fetches
        assert await ask(client, "tools/list")


async def test_a_result_from_the_cache_is_a_checkpoint(autojump_clock: MockClock) -> None:
    """A cached result takes a checkpoint, so that a loop over fresh results lets other tasks run and can be
    cancelled.
    """
    async with two_clients(offering()) as bench:
        with assert_checkpoints():
            await ask(bench.clients[0], "tools/list")
        with trio.CancelScope() as scope:
            scope.cancel()
            await ask(bench.clients[0], "tools/list")
        assert scope.cancelled_caught
