"""HTTP to one backend: the connection limit, credentials, redirects, raw bytes, and one kind of error."""

from __future__ import annotations

import base64
import gc
import logging
import math
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from importlib import metadata
from typing import Any, Literal

import httpx
import pytest
import trio
from support.cancel_sweep import cancel_at
from support.clients import (
    ALICE,
    BOB,
    Chunks,
    Handler,
    HeardEvents,
    call,
    echo_backend,
    event,
    in_json,
    in_sse,
    message_of,
    no_progress,
    open_bench,
    open_client,
    open_scripted,
    result,
)
from support.raw_http import HANG, Kind, answer, open_served, until
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    Backend,
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnauthorized,
    BackendUnavailable,
    FactorySettings,
    Identity,
    MessageTooLarge,
    SessionClosed,
    open_session_factory,
)
from trio_vmcp._client.built_in import NOTICE_TIMEOUT, BuiltInConnector
from trio_vmcp._client.http.connection_limit import MOST_ASIDE, ConnectionLimit, calls_within
from trio_vmcp._client.http.link import HttpLink
from trio_vmcp._http.dial import ConnectedStream
from trio_vmcp._http.origin import Origin
from trio_vmcp._request_note import RequestNote, current_note
from trio_vmcp.testing import (
    CONNECT,
    Delay,
    Disconnect,
    Hang,
    Raw,
    Refuse,
    Reset,
    Status,
    open_loopback,
    open_memory_network,
)

KIB = 1024

ONE_SLOT = FactorySettings(max_connections_per_backend=1)


def link_over(
    handler: Handler | httpx.AsyncBaseTransport,
    *,
    auth: Callable[[Backend, Identity | None], Any] | None = None,
    slots: int = 2,
    **configured: Any,
) -> HttpLink:
    transport = handler if isinstance(handler, httpx.AsyncBaseTransport) else httpx.MockTransport(handler)
    return HttpLink(
        Backend(**{"id": "b", "url": "http://b.test/mcp", **configured}),
        transport,
        auth=auth,
        limit=ConnectionLimit(slots),
        max_message_bytes=1000,
    )


async def get(
    link: HttpLink,
    verb: str = "POST",
    *,
    data: bytes = b"{}",
    identity: Identity | None = None,
    on_head: Callable[[], None] = lambda: None,
) -> bytes | bytearray:
    async with link.exchange(verb, [], data, identity=identity) as reply:
        on_head()
        return await reply.read(1000)


class Seen:
    """A handler that records requests and answers 200."""

    def __init__(self, *answers: httpx.Response) -> None:
        self.requests: list[httpx.Request] = []
        self.answers = list(answers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answers.pop(0) if self.answers else httpx.Response(200, content=b"ok")

    def headers(self, name: str) -> list[str | None]:
        return [request.headers.get(name) for request in self.requests]


# The limit


async def test_no_more_requests_than_the_limit_are_on_their_way(autojump_clock: MockClock) -> None:
    """The others wait, and all are answered: seven requests of 1 s each, two at a time, take 4 s."""
    backend = echo_backend(latency=0)
    async with open_client(backend, settings=FactorySettings(max_connections_per_backend=2)) as client:
        backend.fail("tools/call", Delay(1))
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(7):
                nursery.start_soon(call, client)
            await trio.testing.wait_all_tasks_blocked()
            assert 2 == len(backend.received("tools/call"))
        assert 4 == trio.current_time() - started
    assert 7 == backend.executed["echo"]


async def test_the_wait_for_a_connection_is_part_of_the_deadline(autojump_clock: MockClock) -> None:
    """A call that waits too long for a connection gets a timeout that says it was not sent."""
    backend = echo_backend()
    async with open_client(backend, settings=ONE_SLOT) as client, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: call(client, "hang"))
        await wait_all_tasks_blocked()
        with pytest.raises(BackendTimeout, match="within 3 s") as caught:
            await call(client, timeout=3)
        assert not caught.value.may_have_executed
        assert 0 == backend.executed["echo"]
        nursery.cancel_scope.cancel()


async def test_a_cancelled_waiter_loses_no_slot(autojump_clock: MockClock) -> None:
    """Requests that are cancelled while they wait or while they are served leave the limit whole."""
    backend = echo_backend()
    async with open_client(backend, settings=FactorySettings(max_connections_per_backend=2)) as client:
        backend.fail("tools/call", Delay(1), times=20)
        async with trio.open_nursery() as nursery:

            async def give_up_after(seconds: float) -> None:
                with trio.move_on_after(seconds):
                    await call(client)

            for step in range(20):
                nursery.start_soon(give_up_after, step / 4)
        backend.heal()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(call, client, "hang")
            await wait_all_tasks_blocked()
            assert 2 == len([e for e in backend.received("tools/call") if e.params["name"] == "hang"])
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_progress_callback_may_call_the_same_backend(autojump_clock: MockClock, era: str) -> None:
    """Even if the call itself holds the only connection: otherwise the callback would wait for its own call."""
    backend = echo_backend(era, "sse")
    heard: list[float] = []

    async with open_client(backend, settings=ONE_SLOT) as client:

        async def nested(progress: float, total: float | None, message: str | None) -> None:
            await call(client, "steps", on_progress=innermost)
            heard.append(progress)

        async def innermost(progress: float, total: float | None, message: str | None) -> None:
            await call(client)

        await call(client, "steps", on_progress=nested, timeout=5)
    assert [1, 2, 3] == heard
    assert 9 == backend.executed["echo"]


async def test_a_task_left_behind_by_a_callback_queues_again(autojump_clock: MockClock) -> None:
    """A task of a callback shares the call's connection only while that call runs; then it waits for one of its own."""
    backend = echo_backend("modern", "sse")
    async with open_client(backend, settings=ONE_SLOT) as client, trio.open_nursery() as nursery:
        over = trio.Event()

        async def later() -> None:
            await over.wait()
            await call(client)

        async def leave_behind(progress: float, total: float | None, message: str | None) -> None:
            nursery.start_soon(later)

        await call(client, "steps", on_progress=leave_behind)
        async with trio.open_nursery() as hanging:
            hanging.start_soon(call, client, "hang")
            await wait_all_tasks_blocked()
            over.set()
            await wait_all_tasks_blocked()
            assert 0 == backend.executed["echo"]
            hanging.cancel_scope.cancel()
    assert 3 == backend.executed["echo"]


async def test_a_notification_does_not_queue_behind_the_calls_it_is_about(autojump_clock: MockClock) -> None:
    """With every connection taken and more calls waiting, a cancelled call is still reported to the backend."""
    backend = echo_backend()
    async with open_client(backend, settings=ONE_SLOT) as client, trio.open_nursery() as nursery:
        doomed = trio.CancelScope()

        async def be_doomed() -> None:
            with doomed:
                await call(client, "hang")

        nursery.start_soon(be_doomed)
        await wait_all_tasks_blocked()
        for _ in range(3):
            nursery.start_soon(call, client, "hang")
        await wait_all_tasks_blocked()
        doomed.cancel()
        await trio.sleep(0.5)
        assert 1 == backend.cancelled["hang"]
        assert 1 == backend.in_flight  # the next call
        nursery.cancel_scope.cancel()


# Redirects


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize("location", ["/mcp/", "http://b.test:80/mcp/", "//b.test/mcp/", "http://u:p@B.test/mcp/#part"])
async def test_redirects_on_one_origin_are_followed_with_method_and_body(status: int, location: str) -> None:
    """Servers redirect /mcp to /mcp/ (307 and 308 keep method and body, RFC 9110 §15.4.8, §15.4.9)."""
    seen = Seen(httpx.Response(status, headers={"location": location}))
    assert b"ok" == await get(link_over(seen), data=b'{"a":1}')
    assert ["http://b.test/mcp", "http://b.test/mcp/"] == [str(request.url) for request in seen.requests]
    assert [b'{"a":1}', b'{"a":1}'] == [request.content for request in seen.requests]
    assert ["POST", "POST"] == [request.method for request in seen.requests]


async def test_three_redirects_are_followed_and_no_more() -> None:
    """A server that redirects for ever gets four requests."""
    around = [httpx.Response(307, headers={"location": f"/{step}"}) for step in range(5)]
    assert b"ok" == await get(link_over(Seen(*around[:3])))
    seen = Seen(*around)
    with pytest.raises(BackendProtocolError, match="redirects more than 3 times") as caught:
        await get(link_over(seen))
    assert 4 == len(seen.requests)
    assert not caught.value.may_have_executed


@pytest.mark.parametrize("auth", [None, lambda backend, identity: httpx.BasicAuth("user", "pass")])
async def test_a_permanent_redirect_is_remembered(auth: Any) -> None:
    """308 says where the backend is from now on (RFC 9110 §15.4.9): the next request of the link goes there, of
    whatever verb. 307 says where it is this once, and so does a 308 behind a 307.
    """
    steps = [(308, "/v2"), (308, "/v2/mcp?k=1"), None, None, None, (307, "/busy"), (308, "/busy/2"), None, None]
    answers = [httpx.Response(*step[:1], headers={"location": step[1]}) if step else None for step in steps]
    seen = Seen(*[answer or httpx.Response(200, content=b"ok") for answer in answers])
    link = link_over(seen, auth=auth)
    for verb in ("POST", "GET", "DELETE", "POST", "POST"):
        assert b"ok" == await get(link, verb)
    targets = [f"{request.method} {request.url.raw_path.decode()}" for request in seen.requests]
    assert ["POST /mcp", "POST /v2", *[f"{verb} /v2/mcp?k=1" for verb in ("POST", "GET", "DELETE", "POST")]] == targets[
        :6
    ]
    assert ["POST /busy", "POST /busy/2", "POST /v2/mcp?k=1"] == targets[6:]


async def test_a_permanent_redirect_is_remembered_over_the_built_in_transport() -> None:
    """There, too, where the head of a request is kept encoded for the next one."""
    moved = answer(b"", b"Location: /v2", status=b"308 Permanent Redirect")
    async with open_served("memory", answer(b"ok"), moved, answer(b"ok")) as served:
        link = link_over(served.transport, url=served.url)
        for _ in range(3):
            assert b"ok" == await get(link)
    assert [b"POST /mcp", b"POST /mcp", b"POST /v2", b"POST /v2"] == [
        head.partition(b" HTTP")[0] for head, _ in served.server.requests
    ]


async def test_the_secrets_of_a_permanent_redirect_are_in_no_error() -> None:
    """The query of the new address may be a credential, as that of the old one."""
    moved = httpx.Response(308, headers={"location": "/v2?key=another-secret"})
    words = httpx.Response(500, text="bad keys: first-secret, another-secret")
    link = link_over(Seen(moved, words), url="http://b.test/mcp?key=first-secret")
    async with link.exchange("POST", [], b"{}", identity=None) as reply:
        refusal = await link.read_refusal(reply)
    assert refusal.is_signed
    assert "secret" not in str(refusal.words)
    assert "bad keys" in str(refusal.words)


@pytest.mark.parametrize("auth", [None, lambda backend, identity: httpx.BasicAuth("user", "pass")])
@pytest.mark.parametrize("built_in", [True, False])
@pytest.mark.parametrize(("verb", "size"), [("POST", "2"), ("GET", None), ("DELETE", "0")])
async def test_a_get_tells_no_size(built_in: bool, verb: str, size: str | None, auth: Any) -> None:
    """GET has no body and says no size (RFC 9110 §8.6). DELETE says 0: some servers wait for a body otherwise."""
    backend, foreign = echo_backend(), Seen()
    async with open_memory_network() as network:
        url = network.attach("b.test", backend)
        transport = network.transport()
        link = link_over(transport, url=url, auth=auth) if built_in else link_over(foreign, auth=auth)
        async with link.exchange(verb, [], b"{}" if size == "2" else b"", identity=None):
            pass
        transport.close()
    if built_in:
        assert [size] == [exchange.headers.get("content-length") for exchange in backend.exchanges]
    else:
        assert [size] == foreign.headers("content-length")


ZONES = ["%25eth0", "%eth0", "%25wlp3s0.1"]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("auth", [None, lambda backend, identity: httpx.BasicAuth("user", "pass")])
async def test_the_zone_of_an_address_is_not_sent(zone: str, auth: Any) -> None:
    """An IPv6 address with a zone is connected to with the zone; `Host` is without (RFC 6874 §4)."""
    async with open_served("memory", answer(b"ok")) as served:
        dialled: list[Origin] = []
        dial = served.transport._dial

        async def note(origin: Origin) -> ConnectedStream:
            dialled.append(origin)
            return await dial(served.origin)

        served.transport._dial = note
        assert b"ok" == await get(link_over(served.transport, auth=auth, url=f"http://[fe80::1{zone}]:81/mcp"))
    (head, _) = served.server.requests[0]
    assert [Origin("http", "fe80::1" + zone.replace("%25", "%"), 81)] == dialled
    assert b"host: [fe80::1]:81\r\n" in head.lower() + b"\r\n"


@pytest.mark.parametrize("location", ["/v2", "http://[fe80::1]:81/v2", "http://[fe80::1%25eth0]:81/v2"])
async def test_a_redirect_keeps_the_zone(location: str) -> None:
    """The server does not know the zone by which it is reached, so its address without one is the same origin."""
    seen = Seen(httpx.Response(308, headers={"location": location}))
    assert b"ok" == await get(link_over(seen, url="http://[fe80::1%25eth0]:81/mcp"))
    assert ["http://[fe80::1%25eth0]:81/mcp", "http://[fe80::1%25eth0]:81/v2"] == [str(r.url) for r in seen.requests]


@pytest.mark.parametrize("location", ["http://[fe80::2]:81/v2", "http://[fe80::1%25eth1]:81/v2", "http://[fe80::1]/v2"])
async def test_no_redirect_crosses_a_zone(location: str) -> None:
    """Another zone is another machine."""
    seen = Seen(httpx.Response(308, headers={"location": location}))
    with pytest.raises(BackendProtocolError, match="another origin"):
        await get(link_over(seen, url="http://[fe80::1%25eth0]:81/mcp"))


@pytest.mark.parametrize(
    "location",
    [
        "http://other.test/mcp",
        "https://b.test/mcp",
        "http://b.test:8080/mcp",
        "//other.test/mcp",
        "http://b.test@other.test/",
        "ftp://b.test/mcp",
    ],
)
async def test_no_redirect_crosses_an_origin(location: str) -> None:
    """Headers, credentials and the backend's session id would be sent to another server."""
    seen = Seen(httpx.Response(307, headers={"location": location}))
    link = link_over(seen, headers={"x-api-key": "secret"}, auth=lambda b, i: httpx.BasicAuth("user", "pass"))
    with pytest.raises(BackendProtocolError, match="another origin") as caught:
        await get(link)
    assert 1 == len(seen.requests)
    assert not caught.value.may_have_executed


@pytest.mark.parametrize("location", ["http://b.test:port/", "http://b\x7f.test/", "http://b.test/" * 9000])
async def test_a_location_that_is_no_url_is_a_protocol_error(location: str) -> None:
    """Whatever `Location` holds, no error of httpx comes out."""
    with pytest.raises(BackendProtocolError, match="no URL"):
        await get(link_over(Seen(httpx.Response(308, headers={"location": location}))))


@pytest.mark.parametrize(
    ("status", "headers", "executed"),
    [
        (301, {"location": "/mcp/"}, False),
        (302, {"location": "/mcp/"}, False),
        (303, {"location": "/mcp/"}, True),
        (300, {}, False),
        (304, {}, False),
        (307, {}, False),
    ],
)
async def test_other_redirects_are_refused(status: int, headers: dict[str, str], executed: bool) -> None:
    """They change the method or have no target. 303 answers a request that was applied (RFC 9110 §15.4.4)."""
    target = " to 'http://b.test/mcp/'" if headers else ""
    with pytest.raises(BackendRejected, match=f"HTTP {status}{target}, which is not followed") as caught:
        await get(link_over(Seen(httpx.Response(status, headers=headers))))
    assert (status, executed) == (caught.value.code, caught.value.may_have_executed)


# Credentials


async def test_auth_is_asked_for_every_request_with_the_right_identity(autojump_clock: MockClock) -> None:
    """The handshake and DELETE carry the opener's credentials, calls and their cancellation the caller's."""
    backend = echo_backend()

    def bearer(configured: Backend, identity: Identity | None) -> httpx.Auth:
        assert "b" == configured.id
        return _Bearer(identity.token if identity else "nobody")

    async with open_client(backend, identity=ALICE, auth=bearer) as client:
        await call(client, identity=BOB)
        await call(client)
        with pytest.raises(BackendTimeout):
            await call(client, "hang", identity=BOB, timeout=1)
    carried = [(e.method or e.verb, e.headers["authorization"]) for e in backend.exchanges]
    assert [
        ("initialize", "Bearer alice-token"),
        ("notifications/initialized", "Bearer alice-token"),
        ("tools/call", "Bearer bob-token"),
        ("tools/call", "Bearer nobody"),
        ("tools/call", "Bearer bob-token"),
        ("notifications/cancelled", "Bearer bob-token"),
        ("DELETE", "Bearer alice-token"),
    ] == carried


class _Bearer(httpx.Auth):
    def __init__(self, token: str) -> None:
        self.token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self.token}"
        yield request


async def test_no_auth_leaves_the_request_alone() -> None:
    """`auth` returns None: no credentials are added."""
    seen = Seen()
    await get(link_over(seen, auth=lambda backend, identity: None))
    assert [None] == seen.headers("authorization")


async def test_every_hop_of_a_redirect_is_authorized_anew() -> None:
    """A redirect asks `auth` again: a signature covers the path."""

    class Sign(httpx.Auth):
        def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
            request.headers["x-signature"] = request.url.path
            yield request

    seen = Seen(httpx.Response(307, headers={"location": "/mcp/"}))
    await get(link_over(seen, auth=lambda backend, identity: Sign()))
    assert ["/mcp", "/mcp/"] == seen.headers("x-signature")


async def test_an_auth_may_sign_the_body() -> None:
    """With `requires_request_body` an Auth sees every byte that is sent."""

    class SignBody(httpx.Auth):
        requires_request_body = True

        def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
            request.headers["x-signature"] = request.content.decode()
            yield request

    backend = echo_backend(session_ids=False)
    async with open_client(backend, auth=lambda configured, identity: SignBody()) as client:
        assert "{}" == (await call(client))["content"][0]["text"]
    assert [e.body.decode() for e in backend.exchanges] == [e.headers["x-signature"] for e in backend.exchanges]


async def test_an_auth_may_sign_a_copy() -> None:
    """A copy of the request that was sent counts as written."""

    class SignCopy(httpx.Auth):
        requires_request_body = True

        def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
            yield httpx.Request(request.method, request.url, headers=request.headers, content=request.content)

    backend = echo_backend(session_ids=False)
    async with open_client(backend, auth=lambda configured, identity: SignCopy()) as client:
        await call(client)
        backend.fail("tools/call", Reset(0))
        with pytest.raises(BackendUnavailable) as caught:
            await call(client)
        assert caught.value.may_have_executed
    assert 2 == backend.executed["echo"]


async def test_digest_auth_of_httpx_works() -> None:
    """Digest looks at the response's cookies, and sends the same body a second time; the 401 is closed."""
    refusal = Chunks(b"no")
    challenge = httpx.Response(
        401,
        headers={"www-authenticate": 'Digest realm="r", nonce="n", qop="auth"', "set-cookie": "a=b"},
        stream=refusal,
    )
    seen = Seen(challenge)
    link = link_over(seen, auth=lambda backend, identity: httpx.DigestAuth("user", "pass"))
    assert b"ok" == await get(link, data=b"body")
    assert [b"body", b"body"] == [request.content for request in seen.requests]
    assert str(seen.headers("authorization")[1]).startswith("Digest ")
    assert refusal.closed


class Refreshing(httpx.Auth):
    """Fetches a token when it is told to, as in httpx's documentation."""

    requires_response_body = True
    token = "old"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = self.token
        response = yield request
        if response.status_code == 401:
            fetched = yield httpx.Request("POST", "http://issuer.test/token")
            self.token = fetched.json()["token"]
            request.headers["Authorization"] = self.token
            yield request


@pytest.mark.parametrize("answers", ["json", "sse"])
async def test_an_auth_may_read_what_refuses_it_and_fetch_a_token(answers: str) -> None:
    """With `requires_response_body` refusals and tokens are read for the Auth; the answer to the call is not read
    ahead.
    """
    backend, issuer = echo_backend("modern", answers), echo_backend()
    issuer.fail("POST", Status(200, b'{"token": "new"}'))
    auth = Refreshing()
    heard: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    async with open_memory_network() as network:
        network.attach("issuer.test", issuer)
        backend.fail(lambda exchange: exchange.headers.get("authorization") != "new", Status(401, b'{"why": "old"}'))
        async with open_client(backend, network=network, auth=lambda configured, identity: auth) as client:
            await call(client, "steps", on_progress=on_progress)
    assert 1 == len(issuer.exchanges)
    assert ["old", "new", "new"] == [e.headers["authorization"] for e in backend.exchanges]
    assert ([1, 2, 3] if answers == "sse" else []) == heard


async def test_what_is_read_for_an_auth_is_bounded_and_not_inflated() -> None:
    """A token endpoint can be as hostile as a backend."""
    refused = httpx.Response(401, content=b"x" * 1001)
    with pytest.raises(MessageTooLarge, match="over 1000 bytes"):
        await get(link_over(Seen(refused), auth=lambda backend, identity: Refreshing()))
    zipped = httpx.Response(401, headers={"content-encoding": "gzip"}, stream=Chunks(b"\x1f\x8b"))
    with pytest.raises(BackendProtocolError, match="Content-Encoding"):
        await get(link_over(Seen(zipped), auth=lambda backend, identity: Refreshing()))


class Broken(httpx.Auth):
    def __init__(self, *, after: bool) -> None:
        self.after = after

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self.after:
            yield request
        raise RuntimeError("token alice-token is broken")


class Silent(httpx.Auth):
    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:  # noqa: ASYNC900  # httpx's interface
        if request.url.host == "nowhere.test":
            yield request


@pytest.mark.parametrize(
    "auth",
    [
        lambda backend, identity: Broken(after=False),
        lambda backend, identity: Broken(after=True),
        lambda backend, identity: Silent(),
        lambda backend, identity: ("user", "pass"),
        lambda backend, identity: 1 / 0,
    ],
)
async def test_credentials_that_fail_are_a_typed_error(auth: Callable[[Backend, Identity | None], Any]) -> None:
    """The error says that credentials failed, without the error's text, which may hold a token."""
    with pytest.raises(BackendUnauthorized, match="credentials") as caught:
        await get(link_over(Seen(), auth=auth))
    assert "alice-token" not in str(caught.value)


async def test_an_error_of_ours_in_auth_comes_out_as_itself() -> None:
    """An `auth` may raise BackendUnavailable itself."""

    def away(backend: Backend, identity: Identity | None) -> httpx.Auth:
        raise BackendUnavailable(backend.id, "waits for its token")

    with pytest.raises(BackendUnavailable, match="waits for its token"):
        await get(link_over(Seen(), auth=away))


async def test_a_cancelled_auth_leaves_nothing(autojump_clock: MockClock, recwarn: pytest.WarningsRecorder) -> None:
    """Cancelled before its request or after the response, an Auth's generator is closed."""

    class Slow(httpx.Auth):
        async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:  # noqa: ASYNC900  # httpx's interface
            await trio.sleep(1)
            yield request
            await trio.sleep(1)

    body = Chunks(b"x")
    link = link_over(Seen(httpx.Response(200, stream=body)), auth=lambda backend, identity: Slow(), slots=1)
    for patience in (0.5, 1.5):
        with trio.move_on_after(patience):
            await get(link)
    assert body.closed
    assert b"ok" == await get(link)
    gc.collect()
    assert [] == [str(warning.message) for warning in recwarn]


async def test_userinfo_becomes_basic_credentials() -> None:
    """Userinfo is percent-decoded once; an `Authorization` header of the user replaces it."""
    seen = Seen()
    await get(link_over(seen, url="http://us%40er:p%3Ass@b.test/mcp"))
    await get(link_over(seen, url="http://user:pass@b.test/mcp", headers={"Authorization": "Bearer mine"}))
    basic = "Basic " + base64.b64encode(b"us@er:p:ss").decode()
    assert [basic, "Bearer mine"] == seen.headers("authorization")
    assert ["b.test", "b.test"] == seen.headers("host")
    assert ["", ""] == [request.url.userinfo.decode() for request in seen.requests]


# Headers, environment, cookies


async def test_the_users_headers_are_sent_unchanged() -> None:
    """They come behind those of the connection, each once."""
    seen = Seen()
    await get(link_over(seen, headers={"X-Mine": "yes"}))
    (request,) = seen.requests
    assert [
        ("host", "b.test"),
        ("accept-encoding", "identity"),
        ("x-mine", "yes"),
        ("user-agent", f"trio-vmcp/{metadata.version('trio-vmcp')}"),
        ("accept", "application/json, text/event-stream"),
        ("content-type", "application/json"),
        ("content-length", "2"),
    ] == [*request.headers.multi_items()]


async def test_a_user_agent_of_the_user_replaces_ours() -> None:
    """One `User-Agent`, whatever the case of its name (RFC 9110 §10.1.5)."""
    seen = Seen()
    await get(link_over(seen, headers={"user-agent": "mine/1"}))
    assert ["mine/1"] == seen.headers("user-agent")


async def test_proxies_netrc_and_foreign_cookies_are_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """The built-in transport reads neither the process's environment nor `.netrc`, and a new connection to a backend
    sends no cookie that an earlier one was given.
    """
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password pass")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    backend = echo_backend(session_ids=False)
    backend.fail("initialize", Status(200, headers={"set-cookie": "a=b", "content-type": "text/plain"}), times=1)
    async with open_loopback(backend) as url:
        connector = BuiltInConnector(FactorySettings())
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                try:
                    client = await connector(
                        Backend(id="b", url=url, era="legacy"),
                        identity=None,
                        resume=None,
                        nursery=nursery,
                        events=HeardEvents(),
                    )
                except BackendProtocolError:
                    continue
                await call(client)
                await client.aclose(terminate=True)
        connector.close()
    assert 4 == len(backend.exchanges)
    assert [] == [e for e in backend.exchanges if "cookie" in e.headers or "authorization" in e.headers]


async def test_the_built_in_transport_survives_cancellation_at_every_step(recwarn: pytest.WarningsRecorder) -> None:
    """Over real sockets: the next call works, and no connection is left when the client has closed."""
    backend = echo_backend("modern", "sse")
    async with open_loopback(backend) as url, trio.open_nursery() as nursery:
        connector = BuiltInConnector(FactorySettings(max_connections_per_backend=1))
        client = await connector(
            Backend(id="b", url=url, era="modern"),
            identity=None,
            resume=None,
            nursery=nursery,
            events=HeardEvents(),
        )
        for step in range(1, 100):
            if not await cancel_at(step, lambda: call(client, "steps", on_progress=no_progress)):
                break
            await call(client, timeout=5)
        assert 2 < step < 99  # it waits for the write, for the head, and for events, as often as these arrive apart
        await client.aclose(terminate=True)
        connector.close()
        with trio.fail_after(5):
            while backend.open_connections:  # noqa: ASYNC110  # no event tells when a real socket's peer has ended
                await trio.sleep(0.001)
    gc.collect()
    assert [] == [str(warning.message) for warning in recwarn]


# Raw bytes


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate", "x-unknown", "identity, gzip"])
@pytest.mark.parametrize("media_type", ["application/json", "text/event-stream"])
async def test_encoded_answers_are_refused(encoding: str, media_type: str) -> None:
    """A compressed answer might inflate to a million times its size."""

    def answer(request: httpx.Request) -> httpx.Response:
        headers = {"content-type": media_type, "content-encoding": encoding}
        return httpx.Response(200, headers=headers, stream=Chunks(b"\x1f\x8b\x08 not read"))

    async with open_bench(httpx.MockTransport(answer), era="legacy") as bench:
        with pytest.raises(BackendProtocolError, match="Content-Encoding although identity was asked for"):
            await bench.connect()


async def test_identity_is_no_encoding() -> None:
    """In any case, and with blanks around it."""
    assert b"ok" == await get(
        link_over(Seen(httpx.Response(200, headers={"content-encoding": " Identity "}, stream=Chunks(b"o", b"k"))))
    )


# Errors


class Failing(httpx.AsyncBaseTransport):
    """Raises before or after it has read the request's body, or in the middle of its own."""

    def __init__(self, error: Exception, *, takes_body: bool) -> None:
        self.error, self.takes_body = error, takes_body

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.takes_body:
            await request.aread()
        raise self.error


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (httpx.ReadError("secret"), BackendUnavailable, "lost its connection: ReadError"),
        (httpx.WriteError("secret"), BackendUnavailable, "lost its connection"),
        (httpx.ReadTimeout("secret"), BackendUnavailable, "lost its connection"),
        (httpx.PoolTimeout("secret"), BackendUnavailable, "lost its connection"),
        (httpx.RemoteProtocolError("Server disconnected"), BackendUnavailable, "before its answer was whole"),
        (httpx.RemoteProtocolError("secret"), BackendProtocolError, "does not speak HTTP/1.1"),
        (OSError(104, "Connection reset by peer"), BackendUnavailable, "Connection reset by peer"),
        (RuntimeError("secret"), BackendUnavailable, "lost its connection: RuntimeError"),
    ],
)
async def test_foreign_errors_are_translated(
    error: Exception, expected: type[BackendError], text: str, written: bool
) -> None:
    """The error has the cause but not its text, and `may_have_executed` is right."""
    with pytest.raises(BackendError, match=text) as caught:
        await get(link_over(Failing(error, takes_body=written)))
    assert expected is type(caught.value)
    assert written is caught.value.may_have_executed
    assert error is caught.value.__cause__
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("x"), httpx.ConnectTimeout("x"), httpx.ProxyError("x"), httpx.UnsupportedProtocol("x")]
)
async def test_a_failed_connection_executed_nothing(error: Exception) -> None:
    """Whatever the transport did with the body before the error."""
    with pytest.raises(BackendUnavailable, match="could not be reached") as caught:
        await get(link_over(Failing(error, takes_body=True)))
    assert not caught.value.may_have_executed


async def test_the_operating_systems_word_is_kept() -> None:
    """A name that does not resolve: the error has the operating system's text."""
    error = httpx.ConnectError("x")
    error.__cause__ = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with pytest.raises(BackendUnavailable, match="Name or service not known"):
        await get(link_over(Failing(error, takes_body=False)))


async def test_a_response_that_cannot_be_closed_costs_nothing() -> None:
    """The answer has arrived, so an error of the transport at the close is ignored."""

    class Sticky(Chunks):
        async def aclose(self) -> None:
            raise RuntimeError("already closed")

    assert b"ok" == await get(link_over(Seen(httpx.Response(200, stream=Sticky(b"ok")))))
    async with link_over(Seen(httpx.Response(200, stream=Sticky(b"ok")))).exchange("GET", [], identity=None):
        pass  # not read


async def test_a_body_that_fails_when_it_is_left_costs_nothing() -> None:
    """The body's generator raises when it is closed."""
    body = Chunks(RuntimeError("torn"))
    async with link_over(Seen(httpx.Response(200, stream=body))).exchange("GET", [], identity=None):
        pass
    assert body.closed


async def test_reading_after_the_end_is_harmless() -> None:
    """After the end, `receive` keeps returning None."""
    async with link_over(Seen()).exchange("GET", [], identity=None) as reply:
        assert b"ok" == await reply.read(2)
        assert b"" == await reply.read(2)


# What was executed, over real HTTP


async def written_after(wait: Any) -> tuple[BackendError, bool]:
    """The error of a call, and whether its note says that it was written."""
    note = RequestNote()
    current_note.set(note)
    with pytest.raises(BackendError) as caught:
        await wait
    return caught.value, note.written


async def test_refused_connections_executed_nothing(autojump_clock: MockClock) -> None:
    """Refused, unknown or unresolved: the call did not run."""
    backend = echo_backend("modern")
    async with open_scripted(backend) as bench:
        client = await bench.connect()
        backend.crash()
        error, _ = await written_after(call(client))
        assert (BackendUnavailable, False) == (type(error), error.may_have_executed)
        backend.restart()
        backend.fail(CONNECT, Refuse(), times=1)
        error, _ = await written_after(call(client))
        assert (BackendUnavailable, False) == (type(error), error.may_have_executed)
        backend.fail(CONNECT, Delay(60), times=1)
        error, written = await written_after(call(client, timeout=5))
        assert (BackendTimeout, False, False) == (type(error), error.may_have_executed, written)
    assert 0 == backend.executed["echo"]


@pytest.mark.parametrize("answers", ["json", "sse"])
@pytest.mark.parametrize("fault", [Reset(0), Disconnect(0), Reset(20), Disconnect(80), Raw(b"SSH-2.0-x\r\n")])
async def test_a_written_request_may_have_executed(answers: str, fault: Any) -> None:
    """However the answer is lost, the call may have run."""
    backend = echo_backend("modern", answers)
    async with open_client(backend) as client:
        backend.fail("tools/call", fault, times=1)
        error, _ = await written_after(call(client))
        assert error.may_have_executed
        await call(client)


async def test_a_timeout_after_writing_may_have_executed(autojump_clock: MockClock) -> None:
    """The backend has the request, and nothing tells whether it ran."""
    backend = echo_backend("modern")
    async with open_client(backend) as client:
        error, written = await written_after(call(client, "hang", timeout=5))
        assert (BackendTimeout, True, True) == (type(error), error.may_have_executed, written)
        error, written = await written_after(call(client, timeout=0))
        assert (BackendTimeout, False, False) == (type(error), error.may_have_executed, written)


# Connections


async def test_a_stream_is_read_to_its_end_so_that_its_connection_is_used_again() -> None:
    """Twenty calls that are answered in SSE use one connection."""
    async with open_memory_network() as network:
        async with open_client(echo_backend("modern", "sse"), network=network) as client:
            for _ in range(20):
                await call(client, "steps", on_progress=no_progress)
        assert 1 == network.connection_attempts


async def test_a_stream_that_is_left_early_costs_its_connection(autojump_clock: MockClock) -> None:
    """Only that connection is lost: the next call makes a new one."""
    async with open_memory_network() as network:
        async with open_client(echo_backend("modern", "sse"), network=network) as client:
            with trio.move_on_after(1):
                await call(client, "hang")
            await wait_all_tasks_blocked()
            assert 0 == network.open_connections
            await call(client)
        assert 2 == network.connection_attempts


async def test_a_server_that_keeps_streams_open_is_waited_for_ever_less(autojump_clock: MockClock) -> None:
    """The client waits a tenth of a second for the end of the first stream, half as long for the next, and so on: two
    tenths in all. Then streams are closed right after the answer.
    """

    def answer(request: httpx.Request) -> httpx.Response:
        reply = result(message_of(request)["id"], supportedVersions=["2026-07-28"], capabilities={}, content=[])
        return in_sse(event(reply), 60.0)

    async with open_bench(httpx.MockTransport(answer), era="modern") as bench:
        started = trio.current_time()
        client = await bench.connect()
        assert 0.1 == pytest.approx(trio.current_time() - started)
        for _ in range(20):
            await call(client)
        assert 0.2 == pytest.approx(trio.current_time() - started, abs=0.002)


@pytest.mark.parametrize("at_once", [1, 10])
async def test_a_late_end_of_a_stream_costs_its_own_connection(at_once: int, autojump_clock: MockClock) -> None:
    """A server whose streams end late once, also of several answers at the same time, costs one connection each. The
    next calls use their connections again.
    """
    pause, streams = 0.0, []

    def answer(request: httpx.Request) -> httpx.Response:
        reply = result(message_of(request)["id"], supportedVersions=["2026-07-28"], capabilities={}, content=[])
        body = Chunks(event(reply), pause)
        streams.append(body)
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=body)

    async with open_bench(httpx.MockTransport(answer), era="modern") as bench:
        client = await bench.connect()
        for late in (0.15, 0.15, 0.15):
            pause = late
            async with trio.open_nursery() as nursery:
                for _ in range(at_once):
                    nursery.start_soon(call, client)
        pause = 0.002
        streams.clear()
        for _ in range(20):
            await call(client)
        assert [True] * 20 == [next(stream.pieces, "read") == "read" for stream in streams]


async def test_what_follows_an_answer_is_read_within_bounds(autojump_clock: MockClock) -> None:
    """A stream that breaks or never ends after the answer does not change the result."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked = message_of(request)
        reply = result(asked["id"], supportedVersions=["2026-07-28"], capabilities={}, content=[])
        noise = [b": noise\n"] * 1000 if asked["method"] == "server/discover" else [httpx.ReadError("reset")]
        return in_sse(event(reply), *noise)

    async with open_bench(httpx.MockTransport(answer), era="modern") as bench:
        assert [] == (await call(await bench.connect()))["content"]


# Cancellation


@pytest.mark.parametrize("answers", ["json", "sse"])
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_call_can_be_cancelled_at_every_step(
    autojump_clock: MockClock, recwarn: pytest.WarningsRecorder, era: str, answers: str
) -> None:
    """No slot, connection, generator or task is lost, and the next call works."""
    backend = echo_backend(era, answers)
    cancelled = 0
    async with open_memory_network() as network:
        async with open_client(backend, network=network, settings=ONE_SLOT) as client:
            for fresh in (False, True):  # over a kept connection, then over a new one
                for step in range(1, 60):
                    if fresh:
                        backend.crash()
                        sessions = dict(backend.sessions)
                        backend.restart()
                        backend.sessions |= sessions
                    was_cancelled = await cancel_at(step, lambda: call(client, "steps", on_progress=no_progress))
                    cancelled += was_cancelled
                    await call(client, timeout=5)
                    if not was_cancelled:
                        break
                else:
                    raise AssertionError("a call takes 60 steps")
    gc.collect()
    assert [] == [str(warning.message) for warning in recwarn]
    assert cancelled > 10
    assert 0 == backend.in_flight


async def test_connecting_can_be_cancelled_at_every_step(
    autojump_clock: MockClock, recwarn: pytest.WarningsRecorder
) -> None:
    """The backend session is ended if the head with its id has arrived."""
    for answers in ("json", "sse"):
        backend = echo_backend("both", answers)
        backend.fail("server/discover", Status(404))
        async with open_scripted(backend) as bench:
            for step in range(1, 120):
                if not await cancel_at(step, bench.connect):
                    break
                await wait_all_tasks_blocked()
                known = {e.session_id for e in backend.received("notifications/initialized")}
                assert set() == known & backend.sessions.keys()
            else:
                raise AssertionError("connecting takes 120 steps")
            assert step > 10
            backend.sessions = {client.record.session_id: {} for client in bench.clients}  # type: ignore[misc]
    gc.collect()
    assert [] == [str(warning.message) for warning in recwarn]


async def test_an_id_in_the_head_of_a_stalled_handshake_is_given_back(autojump_clock: MockClock) -> None:
    """The head has a session id, and the body never comes: the session is DELETEd."""
    backend = echo_backend()
    backend.fail("initialize", Hang(at="body"))
    async with open_scripted(backend) as bench:
        with trio.move_on_after(1):
            await bench.connect()
        await wait_all_tasks_blocked()
        assert ["scripted-session-1"] == backend.deleted_sessions


def test_no_secret_is_in_a_repr() -> None:
    """Neither credentials nor session ids are in a repr."""
    link = link_over(Seen(), url="http://user:pass@b.test/mcp", headers={"x-api-key": "secret"})
    assert "pass" not in repr(link)
    assert "secret" not in repr(link)


async def test_json_answers_use_one_connection() -> None:
    """The calls use the connection of the handshake."""
    async with open_memory_network() as network:
        async with open_client(echo_backend(), network=network) as client:
            for _ in range(5):
                await call(client)
        assert 1 == network.connection_attempts


async def test_a_bad_chunk_in_json_is_told_apart() -> None:
    """A reset in the middle of a JSON body is a lost connection, not a protocol error."""

    def answer(request: httpx.Request) -> httpx.Response:
        if message_of(request)["method"] != "tools/call":
            return in_json(result(message_of(request)["id"], supportedVersions=["2026-07-28"], capabilities={}))
        return httpx.Response(
            200, headers={"content-type": "application/json"}, stream=Chunks(b"{", httpx.ReadError("reset"))
        )

    async with open_bench(httpx.MockTransport(answer), era="modern") as bench:
        with pytest.raises(BackendUnavailable, match="lost its connection") as caught:
            await call(await bench.connect())
        assert caught.value.may_have_executed


async def test_a_protocol_error_costs_its_connection() -> None:
    """An answer that breaks the protocol may have a wrong length, too: its rest would be read as the next response."""
    backend = echo_backend("modern")
    async with open_memory_network() as network:
        async with open_client(backend, network=network) as client:
            backend.fail("tools/call", Status(200, b"{", {"content-type": "application/json"}), times=1)
            with pytest.raises(BackendProtocolError):
                await call(client)
            await call(client)
        assert 2 == network.connection_attempts


async def test_the_first_of_several_addresses_stands_for_all() -> None:
    """Trio tries each address and raises a group; the error text has the first."""
    error = httpx.ConnectError("x")
    error.__cause__ = OSError("all failed")
    error.__cause__.__cause__ = ExceptionGroup("", [ConnectionRefusedError(111, "secret address"), OSError(101, "x")])
    with pytest.raises(BackendUnavailable, match="could not be reached: Connection refused"):
        await get(link_over(Failing(error, takes_body=False)))


# Beside the calls


async def test_what_counts_as_no_call_is_bounded_too(autojump_clock: MockClock) -> None:
    """Ten notifications at once use four connections; the others wait, and all arrive."""
    backend = echo_backend()
    limit = FactorySettings(max_connections_per_backend=10)
    async with open_memory_network() as network, open_client(backend, network=network, settings=limit) as client:
        backend.fail("notifications/cancelled", Delay(0.3))
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(call, client, "hang")
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        for waited in (4, 8, 10):
            await wait_all_tasks_blocked()
            assert waited == len(backend.received("notifications/cancelled"))
            assert network.open_connections <= MOST_ASIDE
            await trio.sleep(0.3)
        await wait_all_tasks_blocked()
        assert 10 == backend.cancelled["hang"]


async def test_a_notification_gives_up_waiting_for_a_connection_in_time(autojump_clock: MockClock) -> None:
    """Four notifications that hang delay the others up to the time limit of a notification; then the backend session is
    ended.
    """
    backend = echo_backend()
    async with open_client(backend, settings=FactorySettings(max_connections_per_backend=10)) as client:
        backend.fail("notifications/cancelled", Hang())
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(call, client, "hang")
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await trio.sleep(NOTICE_TIMEOUT)
        await wait_all_tasks_blocked()
        assert 4 == len(backend.received("notifications/cancelled"))
        started = trio.current_time()
        await client.aclose(terminate=True)
        assert started == trio.current_time()


# Connections that must not be used again


async def find_wrong(link: HttpLink) -> None:
    async with link.exchange("POST", [], b"{}", identity=None) as reply:
        await reply.read(1000)
        raise reply.protocol_error("answered wrongly")


class _Signed(httpx.Auth):
    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        yield request


@pytest.mark.parametrize("auth", [None, lambda backend, identity: _Signed()])
async def test_a_wrong_answer_costs_the_connection(
    auth: Callable[[Backend, Identity | None], httpx.Auth] | None,
) -> None:
    """Also after the response's end, since its length may be wrong, too; and with an Auth, which sees httpx's
    response.
    """
    async with open_served("memory", answer(b"ok")) as served:
        link = link_over(served.transport, url=served.url, auth=auth)
        assert b"ok" == await get(link)
        assert 1 == served.transport.idle_connections
        with pytest.raises(BackendProtocolError):
            await find_wrong(link)
        assert 0 == served.transport.idle_connections


class _Stubborn:
    """A network stream of a user's transport."""

    async def aclose(self) -> None:
        raise ZeroDivisionError


async def test_a_close_of_a_connection_that_fails_costs_nothing_else() -> None:
    """The response is closed in any case, and the call's own error comes out."""
    body = Chunks(b"x")
    extensions = {"network_stream": _Stubborn(), "http_version": b"HTTP/1.1"}
    link = link_over(Seen(httpx.Response(200, stream=body, extensions=extensions)), slots=1)
    with pytest.raises(BackendProtocolError, match="wrongly"):
        await find_wrong(link)
    assert body.closed
    assert b"ok" == await get(link)


async def test_a_redirect_costs_no_connection() -> None:
    """The body of a redirect is short and has arrived, so its connection is kept."""
    moved = answer(b"over there", b"Location: /other", status=b"307 Temporary Redirect")
    async with open_served("memory", moved, answer(b"ok"), moved, answer(b"ok")) as served:
        link = link_over(served.transport, url=served.url)
        for _ in range(2):
            assert b"ok" == await get(link)
        assert (1, 4) == (served.server.connections, len(served.server.requests))


@pytest.mark.parametrize("kind", ["memory", "tcp", "tls"])
async def test_closing_a_link_ends_what_its_callers_hold(kind: Kind) -> None:
    """A call that is shielded in the middle of a response fails, and no socket is left."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"
    async with open_served(kind, (head, HANG)) as served, trio.open_nursery() as nursery:
        link = link_over(served.transport, url=served.url)
        has_head = trio.Event()

        async def hold() -> None:
            with trio.CancelScope(shield=True):
                with pytest.raises(BackendUnavailable, match="lost its connection") as caught:
                    await get(link, on_head=has_head.set)
                assert caught.value.may_have_executed

        nursery.start_soon(hold)
        await has_head.wait()
        nursery.cancel_scope.cancel()
        await link.aclose()
        with trio.CancelScope(shield=True):
            await until(lambda: not served.server.open_connections)


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_shielded_callback_keeps_no_connection(
    era: Literal["legacy", "modern"], autojump_clock: MockClock
) -> None:
    """A closing session does not wait for a callback that is shielded, and closes its socket."""
    backend = echo_backend(era, "sse")
    released = trio.Event()

    async def dawdle(progress: float, total: float | None, message: str | None) -> None:
        with trio.CancelScope(shield=True):
            await released.wait()

    async with open_memory_network() as network:
        url = network.attach("b.test", backend)
        transport = network.transport()
        async with open_session_factory(transport=transport) as factory, trio.open_nursery() as nursery:
            session = await factory.make_session([Backend(id="b", url=url, era=era)])

            async def dawdling_call() -> None:
                with pytest.raises(SessionClosed):
                    await session.call_tool("b_steps", on_progress=dawdle)

            nursery.start_soon(dawdling_call)
            await wait_all_tasks_blocked()
            await session.aclose(drain_timeout=1)
            await wait_all_tasks_blocked()
            assert transport.idle_connections == network.open_connections
            released.set()
        await transport.aclose()


async def test_nothing_of_a_session_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG, over the built-in transport, neither the backend's session id nor the user's headers are logged by any
    logger.
    """
    caplog.set_level(logging.DEBUG)
    backend = echo_backend()
    async with open_loopback(backend) as url:
        async with open_session_factory() as factory:
            configured = Backend(id="b", url=url, headers={"x-api-key": "s3cret"})
            async with factory.open_session([configured]) as session:
                await session.call_tool("b_echo")
    assert 1 == len(backend.deleted_sessions)
    assert not [record for record in caplog.messages if "s3cret" in record or backend.deleted_sessions[0] in record]


@pytest.mark.parametrize(("limit", "calls"), [(1, 1), (15, 15), (16, 12), (100, 96), (math.inf, math.inf)])
def test_a_limit_that_can_be_shared_is_for_everything(limit: float, calls: float) -> None:
    """Four connections are for requests that are no calls; they are part of the limit, unless it is small."""
    assert calls == calls_within(limit)


async def test_cancelled_calls_stay_within_the_limit(autojump_clock: MockClock) -> None:
    """Forty cancelled calls and their notifications never use more than the 16 connections together."""
    backend = echo_backend()
    limit = FactorySettings(max_connections_per_backend=16)
    most = 0
    async with open_memory_network() as network, open_client(backend, network=network, settings=limit) as client:
        backend.fail("notifications/cancelled", Delay(0.05))

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, network.open_connections)
                await trio.sleep(0.01)

        async def give_up_after(seconds: float) -> None:
            with trio.move_on_after(seconds):
                await call(client, "hang")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as callers:
                for number in range(40):
                    callers.start_soon(give_up_after, 0.1 + number / 50)
            nursery.cancel_scope.cancel()
    assert 12 < most <= 16


async def test_a_redirect_to_a_host_that_idna_refuses_is_a_protocol_error() -> None:
    """httpx parses `http://xn--/` and raises an error of `idna` only when asked for the host."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(307, headers={"location": "http://xn--/"})

    link = HttpLink(
        Backend(id="a", url="http://a.test/mcp"),
        httpx.MockTransport(answer),
        auth=None,
        limit=ConnectionLimit(1),
        max_message_bytes=KIB,
    )
    with pytest.raises(BackendProtocolError, match="to http://xn--, another origin"):
        async with link.exchange("POST", [], b"{}", identity=None):
            raise AssertionError
