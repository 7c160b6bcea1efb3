"""What went wrong is in the error, in the backend's own words, short and without secrets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio
from support.channels import CHANNELS, EVERY_ANSWER, LEGACY_CHANNELS, Channel
from support.clients import call, echo_backend, open_bench, open_client, open_scripted
from trio.testing import MockClock

from trio_vmcp import BackendError, BackendProtocolError, BackendRejected, BackendUnauthorized, BearerAuth
from trio_vmcp._protocol.words import MOST_WORDS, secrets_of, words_in
from trio_vmcp.testing import Error, Raw, Status, open_memory_network

WORDS = "the disk is full"
CANARY = "c4nary-s3cret"


def refusal(error_id: object, **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": error_id, "error": {"code": -32603, "message": WORDS}, **more}


def event(message: object) -> bytes:
    return f"data: {json.dumps(message)}\n\n".encode()


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("error_id", ["server-error", "5f0c", 99, None, ""])
@pytest.mark.parametrize(("status", "kind"), [(200, "json"), (200, "sse"), (400, "json"), (500, "json"), (503, "json")])
async def test_an_error_under_any_id_is_that_of_the_request(
    autojump_clock: MockClock, status: int, kind: str, error_id: Any, era: str
) -> None:
    """The answer to a POST can be about nothing but its request: code and words are the error's."""
    backend = echo_backend(era)
    body = event(refusal(error_id)) if kind == "sse" else json.dumps(refusal(error_id)).encode()
    media = "text/event-stream" if kind == "sse" else "application/json"
    async with open_client(backend) as client:
        backend.fail("tools/call", Status(status, body, headers={"content-type": media}), times=1)
        with pytest.raises(BackendRejected, match=WORDS) as caught:
            await call(client)
        assert (-32603, WORDS) == (caught.value.code, caught.value.message)
        await call(client)


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_an_answer_in_a_stream_wins_over_a_stray_error(autojump_clock: MockClock, era: str) -> None:
    """An error under the id of another request ends the call only if the stream brings no answer."""
    backend = echo_backend(era)
    whole: dict[str, Any] = {"jsonrpc": "2.0", "id": 2, "result": {"content": [], "resultType": "complete"}}
    async with open_client(backend) as client:
        for answer_id in range(2, 9):
            whole["id"] = answer_id
            body = event(refusal(99)) + event(whole)
            backend.fail("tools/call", Status(200, body, headers={"content-type": "text/event-stream"}), times=1)
            try:
                await call(client)
            except BackendRejected:
                continue  # the request has another id
            return
    raise AssertionError("no answer was taken")


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize(
    ("body", "media", "words"),
    [
        (b"the disk is full", "text/plain", WORDS),
        (b" the\r\n  disk is\tfull ", "text/plain; charset=utf-8", WORDS),
        (b'{"detail": "the disk is full"}', "application/json", WORDS),
        (b'{"title": "the disk is full"}', "application/problem+json", WORDS),
        (b"<html><head><TITLE>the disk is full</title></head><p>sorry", "text/html", WORDS),
        (b"<h1>the disk</h1> is full", "text/html", WORDS),
        (b"the disk is full", "", WORDS),
        (b"x" * 10_000, "text/plain", "x" * (MOST_WORDS - 1) + "…"),
        (b"the disk is full", "image/png", ""),
        (b"", "text/plain", ""),
    ],
)
@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 503])
async def test_a_refusal_is_quoted(
    autojump_clock: MockClock, status: int, body: bytes, media: str, words: str, era: str
) -> None:
    """The text of an HTTP error is in the error, in one short line."""
    backend = echo_backend(era)
    async with open_client(backend) as client:
        backend.fail("tools/call", Status(status, body, headers={"content-type": media}), times=1)
        with pytest.raises((BackendRejected, BackendUnauthorized), match=f"HTTP {status}") as caught:
            await call(client)
        assert words in caught.value.detail
        assert len(caught.value.detail) < MOST_WORDS + 200
        if isinstance(caught.value, BackendRejected) and words:
            assert words in caught.value.message


PAGES = pytest.mark.parametrize(
    ("body", "media", "words"),
    [
        (
            b"<html><head><title>Sign in to Example</title></head><body>...",
            "text/html; charset=utf-8",
            "Sign in to Exam",
        ),
        (b"<!doctype html><h1>the disk</h1> is full" + b" " * 200_000, "text/html", WORDS),
        (b"the disk is full", "text/plain", WORDS),
        (b"the disk is full", "", WORDS),
        (b'{"message": "the disk is full"}', "application/json", WORDS),
        (b"<html><body>the disk is full</body></html>", "application/json", WORDS),
        (b"\xff" * 30, "image/png", ""),
        (b"", "text/html", ""),
        (b"x" * 100_000, "text/plain", "x" * (MOST_WORDS - 1) + "…"),
    ],
)


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("method", ["greeting", "tools/list", "tools/call"])
@PAGES
async def test_a_page_that_is_no_mcp_is_quoted(
    autojump_clock: MockClock, body: bytes, media: str, words: str, method: str, era: str
) -> None:
    """An HTTP 200 with a login page, or with what a gateway says in JSON: in one short line. The next call works."""
    greeting = "initialize" if era == "legacy" else "server/discover"
    backend = echo_backend(era)
    page = Status(200, body, headers={"content-type": media})
    if method == "greeting":
        backend.fail(greeting, page)
        async with open_scripted(backend) as bench:
            with pytest.raises(BackendProtocolError) as caught:
                await bench.connect()
    else:
        async with open_client(backend) as client:
            backend.fail(method, page, times=1)
            with pytest.raises(BackendProtocolError) as caught:
                await client.request(method, {"name": "echo"}, identity=None, timeout=9, on_progress=None)
            await call(client)
    assert words in caught.value.detail
    assert bool(words) is (": '" in caught.value.detail)
    assert len(caught.value.detail) < MOST_WORDS + 200


async def test_a_page_instead_of_an_event_stream_is_quoted() -> None:
    """Over HTTP+SSE, whose stream is a GET."""
    answer = httpx.MockTransport(lambda request: httpx.Response(200, html="<title>Sign in</title>"))
    async with open_bench(answer, transport_name="sse") as bench:
        with pytest.raises(BackendProtocolError, match="answered a GET with what is no event stream: 'Sign in'"):
            await bench.connect()


class EndlessPage(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:  # noqa: ASYNC900  # httpx's interface
        yield b"<title>the disk is full</title>"
        await trio.sleep_forever()


async def test_a_page_that_never_ends_is_quoted_in_time(autojump_clock: MockClock) -> None:
    """What has come within a second is enough."""
    page = httpx.MockTransport(
        lambda request: httpx.Response(200, headers={"content-type": "text/html"}, stream=EndlessPage())
    )
    async with open_bench(page, era="legacy") as bench:
        with pytest.raises(BackendProtocolError, match=f"HTTP 200 and 'text/html': '{WORDS}'"):
            await bench.connect()
        assert 1.0 == trio.current_time()


async def test_a_page_shows_no_secret_of_the_request() -> None:
    """What a page repeats of the credentials is blotted out."""
    page = httpx.MockTransport(lambda request: httpx.Response(200, html=f"<title>no {CANARY} here</title>"))
    async with open_bench(page, era="legacy", headers={"X-Api-Key": CANARY}) as bench:
        with pytest.raises(BackendProtocolError, match=r"'no \[x-api-key\] here'"):
            await bench.connect()


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_broken_message_is_not_quoted(autojump_clock: MockClock, era: str) -> None:
    """It may be half of a result, which is nothing to explain anything with."""
    backend = echo_backend(era)
    async with open_client(backend) as client:
        broken = Status(
            200, b'{"jsonrpc": "2.0", "id": 3, "result": {"x": 1e999}}', {"content-type": "application/json"}
        )
        backend.fail("tools/call", broken, times=1)
        with pytest.raises(BackendProtocolError) as caught:
            await call(client)
        assert "result" not in caught.value.detail


@pytest.mark.parametrize("channel", [channel for channel in CHANNELS if channel.transport == "stdio"], ids=str)
async def test_an_error_under_a_foreign_id_ends_the_only_request(channel: Channel, autojump_clock: MockClock) -> None:
    """On a shared stream an error whose id is none of ours is that of the request that waits, if there is only one."""
    backend = channel.backend()
    async with channel.open_client(backend) as client:
        backend.fail("tools/call", Raw(json.dumps(refusal("server-error")).encode() + b"\n"))
        with pytest.raises(BackendRejected, match=WORDS):
            await call(client, timeout=5.0)


@pytest.mark.parametrize("channel", [channel for channel in LEGACY_CHANNELS if channel.transport != "stdio"], ids=str)
async def test_a_refused_post_is_quoted(channel: Channel, autojump_clock: MockClock) -> None:
    """Over HTTP+SSE, too, where the answer would come on the stream."""
    backend = channel.backend()
    async with channel.open_client(backend) as client:
        backend.fail("tools/call", Status(503, WORDS.encode(), headers={"content-type": "text/plain"}), times=1)
        with pytest.raises(BackendRejected, match=f"HTTP 503: '{WORDS}'"):
            await call(client, timeout=5.0)


@pytest.mark.parametrize("signed", ["header", "query", "userinfo", "auth", ""])
@pytest.mark.parametrize("status", [401, 403])
async def test_credentials_are_refused_only_where_some_were_sent(signed: str, status: int) -> None:
    """Without credentials the error says so; the status and the challenge are fields."""
    challenge = 'Bearer error="invalid_token", resource_metadata="https://rs.test/x"'

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers={"www-authenticate": challenge}, text=f"no {CANARY} here")

    ways: dict[str, dict[str, Any]] = {
        "header": {"headers": {"X-Api-Key": CANARY}},
        "query": {"url": f"http://b.test/mcp?key={CANARY}"},
        "userinfo": {"url": f"http://user:{CANARY}@b.test/mcp"},
        "auth": {"auth": lambda backend, identity: httpx.BasicAuth("user", CANARY)},
        "": {},
    }
    async with open_bench(httpx.MockTransport(answer), era="legacy", **ways[signed]) as bench:
        with pytest.raises(BackendUnauthorized) as caught:
            await bench.connect()
    error = caught.value
    said = "refused the credentials for 'initialize'" if signed else "refused 'initialize' without credentials"
    assert said in error.detail
    assert (status, challenge) == (error.status, error.challenge)
    if signed in ("header", "query"):
        assert CANARY not in str(error)


SAID = f"no {CANARY} here, nor for Bearer {CANARY}"


def given_a_secret(channel: Channel) -> tuple[dict[str, Any], str]:
    """How a session gives its backend the canary, and what stands in its place."""
    if channel.transport == "stdio":
        return {"configured": {"env": {"API_KEY": CANARY}}}, "$API_KEY"
    return {"auth": BearerAuth(CANARY)}, "[authorization]"


@EVERY_ANSWER
async def test_an_error_shows_no_secret_that_the_backend_was_given(channel: Channel, autojump_clock: MockClock) -> None:
    """Its text has the name in the place of the value. The message itself goes to the caller as it is."""
    backend = channel.backend()
    options, name = given_a_secret(channel)
    async with channel.open_session(backend, **options) as session:
        backend.fail("tools/call", Error(-32603, SAID), times=1)
        with pytest.raises(BackendRejected) as caught:
            await session.call_tool("b_echo")
        assert f"no {name} here" in str(caught.value)
        assert CANARY not in str(caught.value)
        assert SAID == caught.value.message


@EVERY_ANSWER
@pytest.mark.parametrize("status", [200, 400, 403, 500])
async def test_a_failure_shows_no_secret_that_the_backend_was_given(
    status: int, channel: Channel, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does the log, when a backend refuses to begin a session."""
    backend = channel.backend()
    options, name = given_a_secret(channel)
    for method in ("initialize", "server/discover"):
        backend.fail(method, Error(-32603, SAID, status=status))
    async with channel.open_session(backend, **options) as session:
        (failure,) = session.failures
    assert name in failure.detail
    assert CANARY not in failure.detail + caplog.text


def test_secrets_are_replaced_before_the_text_is_cut() -> None:
    """A backend that repeats a token, the id of its session or a query shows none of them."""
    sent = [("authorization", f"Bearer {CANARY}"), ("mcp-session-id", "s-123456"), ("host", "b.test.example")]
    secrets = secrets_of(sent, "key=qu3ry-k3y")
    said = f"session s-123456 of {CANARY} (Bearer {CANARY}) at b.test.example has no qu3ry-k3y".encode()
    expected = "session [mcp-session-id] of [authorization] ([authorization]) at b.test.example has no [query]"
    assert expected == words_in(said, "text/plain", secrets)
    assert CANARY[:6] not in words_in(b"x" * (MOST_WORDS - 8) + CANARY.encode(), "text/plain", secrets)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("http://internal.test:8000/mcp/", "http://internal.test:8000, another origin"),
        (f"https://user:{CANARY}@internal.test/?key={CANARY}#{CANARY}", "https://internal.test, another origin"),
    ],
)
async def test_a_redirect_says_where_to(location: str, shown: str) -> None:
    """The error names the target, without userinfo and query."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(307, headers={"location": location})

    async with open_bench(httpx.MockTransport(answer), era="legacy") as bench:
        with pytest.raises(BackendProtocolError) as caught:
            await bench.connect()
    assert f"redirects (HTTP 307) to {shown}, which is not followed" in caught.value.detail
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", "duplicate Content-Length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "a transfer coding other than"),
        (b"HTTP/1.1 102 Processing\r\n\r\n" * 17, "over 16 informational responses"),
        (b"HTTP/1.1 200 OK\r\nA: 1\r\n 2\r\n\r\n", "unexpected whitespace after header value"),
        (b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", "another version of HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: %s\r\n" % (b"x" * 1000) * 200, "over 65536 bytes of headers"),
        (b"SSH-2.0-OpenSSH_9\r\n", "expected HTTP/"),
        (b"HTTP/1.1 abc\r\n\r\n", "invalid status code"),
    ],
)
async def test_what_is_no_http_is_told(autojump_clock: MockClock, data: bytes, why: str) -> None:
    """The error says what is wrong with the response, and quotes none of it."""
    backend = echo_backend()
    async with open_memory_network() as network, open_client(backend, network=network) as client:
        backend.fail("tools/call", Raw(data), times=1)
        with pytest.raises(BackendError, match=f"does not speak HTTP/1.1: {why}"):
            await call(client)
