"""OAuth client credentials: one request for a token that all calls share, and how long a token is used."""

from __future__ import annotations

import gc
import gzip
import itertools
import json
import logging
import sys
import traceback
from typing import Any

import httpx
import pytest
import trio
from support.cancel_sweep import CancelAtMoment
from support.clients import ALICE, BOB, Chunks, call
from support.issuer import CHALLENGE, CLIENT_ID, CLIENT_SECRET, TOKEN_URL, Issuer, SlowOnce, basic, open_protected
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    Backend,
    BackendError,
    BackendProtocolError,
    BackendUnauthorized,
    BackendUnavailable,
    ClientCredentials,
    FactorySettings,
    MessageTooLarge,
)
from trio_vmcp._request_note import RequestNote, current_note
from trio_vmcp.connector import BackendClient
from trio_vmcp.testing import Reset, Status

MANY = 96  # as many calls as one backend is sent at a time
CANARY = "CANARY"


async def call_many(client: BackendClient, count: int = MANY) -> list[BackendError]:
    """Make so many calls at once; returns the errors of those that failed."""
    errors: list[BackendError] = []

    async def one() -> None:
        try:
            await call(client)
        except BackendError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    return errors


# What is asked


async def test_every_request_carries_a_token_that_was_asked_for_once(autojump_clock: MockClock) -> None:
    """The handshake, calls of any caller, a notification and the DELETE carry one token, for this program and not for a
    user.
    """
    async with open_protected(era="legacy") as protected:
        client = await protected.connect(identity=ALICE)
        for identity in (ALICE, BOB, None):
            await call(client, identity=identity)
    carried = {(e.method or e.verb, e.headers["authorization"]) for e in protected.backend.exchanges}
    names = ("initialize", "notifications/initialized", "tools/call", "DELETE")
    assert {(name, "Bearer CANARY-token-1") for name in names} == carried
    (form,) = protected.issuer.forms()
    assert {"grant_type": ["client_credentials"], "resource": ["http://b.test/mcp"]} == form
    assert f"{CLIENT_ID}:{CLIENT_SECRET}" == basic(protected.issuer.asked[0])


async def test_the_token_endpoint_gets_nothing_that_is_the_backends(autojump_clock: MockClock) -> None:
    """The token endpoint gets no header of the user, no session id, no token of a caller and no secret part of
    the url.
    """
    configured: dict[str, Any] = {
        "headers": {"X-Api-Key": "CANARY-header"},
        "url": "http://user:CANARY@b.test/mcp?key=CANARY",
    }
    async with open_protected(era="legacy", **configured) as protected:
        client = await protected.connect(identity=ALICE)
        protected.issuer.valid.clear()
        await call(client, identity=ALICE)  # with a session id, this time
    assert 2 == len(protected.issuer.asked)
    for request in protected.issuer.asked:
        assert {
            "host",
            "accept",
            "accept-encoding",
            "content-type",
            "content-length",
            "user-agent",
            "authorization",
        } == set(request.headers)
        assert "issuer.test" == request.headers["host"]
        assert CANARY not in request.content.decode()


@pytest.mark.parametrize(
    ("options", "form", "credentials"),
    [
        ({"scope": "a b", "resource": None}, {"scope": ["a b"]}, True),
        ({"audience": "them", "resource": "urn:x"}, {"audience": ["them"], "resource": ["urn:x"]}, True),
        ({"resource": lambda backend: backend.id}, {"resource": ["b"]}, True),
        (
            {"secret_in": "body", "resource": None},
            {"client_id": ["robot"], "client_secret": ["s:/+ %é"]},
            False,
        ),
    ],
)
async def test_the_form_says_what_was_configured(
    options: dict[str, Any], form: dict[str, list[str]], credentials: bool, autojump_clock: MockClock
) -> None:
    """Scope, audience and resource; the secret as HTTP Basic in the encoding of RFC 6749 §2.3.1, or in the form."""
    async with open_protected(ClientCredentials(TOKEN_URL, "robot", "s:/+ %é", **options)) as protected:
        await protected.connect()
    (request,) = protected.issuer.asked
    assert [{"grant_type": ["client_credentials"], **form}] == protected.issuer.forms()
    assert (basic(request) if credentials else None) == ("robot:s%3A%2F%2B+%25%C3%A9" if credentials else None)
    assert credentials == ("authorization" in request.headers)


async def test_each_backend_gets_a_token_of_its_own(autojump_clock: MockClock) -> None:
    """By default each backend gets a token of its own, so that it cannot use the token elsewhere; with `resource=None`
    all share one.
    """
    own = ClientCredentials(TOKEN_URL, CLIENT_ID, CLIENT_SECRET)
    shared = ClientCredentials(TOKEN_URL, CLIENT_ID, CLIENT_SECRET, resource=None)
    for auth, expected in ((own, 2), (shared, 1)):
        async with open_protected(auth) as protected:
            for path in ("/mcp", "/other", "/mcp"):
                await protected.connect(backend=Backend(id="b", url=f"http://b.test{path}", era="modern"))
            assert expected == len(protected.issuer.asked)
            assert expected == len({e.headers["authorization"] for e in protected.backend.exchanges})


async def test_tokens_do_not_pile_up(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of endless resources the token of the oldest is discarded."""
    monkeypatch.setattr("trio_vmcp.auth.client_credentials._MOST_CACHED", 2)
    async with open_protected() as protected:
        for path in ("/1", "/2", "/3", "/2", "/1"):
            await protected.connect(backend=Backend(id="b", url=f"http://b.test{path}", era="modern"))
    assert [[f"http://b.test/{path}"] for path in "1231"] == [form["resource"] for form in protected.issuer.forms()]


# How long a token is used


@pytest.mark.parametrize(
    ("lifetime", "good_for"), [(3600, 3570), (100, 90), ("100", 90), (None, 10**9), (10**30, 366 * 86400 - 30)]
)
async def test_a_token_is_used_until_shortly_before_its_end(
    lifetime: object, good_for: float, autojump_clock: MockClock
) -> None:
    """A token is used until 30 s before its end, or a tenth of its lifetime, counted from the request for it. Without a
    lifetime: until it is refused.
    """

    def change(issuer: Issuer) -> None:
        issuer.more["expires_in"] = lifetime

    async with open_protected(change=change) as protected:
        asked_at = trio.current_time()
        client = await protected.connect()
        await trio.sleep_until(asked_at + good_for - 0.5)
        await call(client)
        assert 1 == len(protected.issuer.asked)
        if lifetime is not None:
            await trio.sleep_until(asked_at + good_for)
            await call(client)
            assert 2 == len(protected.issuer.asked)


async def test_a_token_that_ends_at_once_is_used_by_the_requests_that_waited(autojump_clock: MockClock) -> None:
    """A token of lifetime 0 is used by the requests that waited for it, and by no later ones; there is no
    endless loop.
    """
    async with open_protected() as protected:
        client = await protected.connect()
        protected.issuer.valid.clear()
        protected.issuer.more["expires_in"] = -5
        assert [] == await call_many(client, 3)
        assert 2 == len(protected.issuer.asked)
        await call(client)
        assert 3 == len(protected.issuer.asked)


async def test_the_end_of_a_token_causes_one_request(autojump_clock: MockClock) -> None:
    """A hundred calls that find the token expired wait for one request, and no longer than that takes."""
    async with open_protected() as protected:
        client = await protected.connect()
        await trio.sleep(3600)
        started = trio.current_time()
        assert [] == await call_many(client)
        assert 1.0 == trio.current_time() - started
        assert 2 == len(protected.issuer.asked)
        assert [] == [e for e in protected.backend.exchanges if e.status == 401]


def test_a_token_of_another_run_is_not_used() -> None:
    """Trio's clock starts anew in each run, and a strategy that is kept in a module must not use the token of another
    run.
    """
    auth = ClientCredentials(TOKEN_URL, CLIENT_ID, CLIENT_SECRET)

    async def main() -> list[int]:
        async with open_protected(auth) as protected:
            await call(await protected.connect())
            return [len(protected.issuer.asked)]

    for _ in range(2):
        assert [1] == trio.run(main, clock=MockClock(autojump_threshold=0))


# A token that is refused


@pytest.mark.parametrize(("era", "answers"), [("legacy", "json"), ("legacy", "sse"), ("modern", "sse")])
async def test_a_refused_token_is_replaced_and_the_call_sent_again(
    era: str, answers: str, autojump_clock: MockClock
) -> None:
    """The caller sees the result, and the tool ran once."""
    async with open_protected(era=era, answers=answers) as protected:
        client = await protected.connect()
        protected.issuer.valid.clear()
        await call(client)
    sent = [(e.headers["authorization"], e.status) for e in protected.backend.received("tools/call")]
    assert [("Bearer CANARY-token-1", 401), ("Bearer CANARY-token-2", 200)] == sent
    assert 1 == protected.backend.executed["echo"]


async def test_a_stampede_of_refused_callers_causes_one_refresh(autojump_clock: MockClock) -> None:
    """A hundred calls, a hundred refusals, one new token, a hundred results."""
    async with open_protected() as protected:
        client = await protected.connect()
        protected.issuer.valid.clear()
        assert [] == await call_many(client)
        assert 2 == len(protected.issuer.asked)
        statuses = [e.status for e in protected.backend.received("tools/call")]
        assert (MANY, MANY) == (statuses.count(401), statuses.count(200))
        assert MANY == protected.backend.executed["echo"]


async def test_a_late_refusal_does_not_drop_the_next_token(autojump_clock: MockClock) -> None:
    """The refused token was replaced already, so the new one stays."""
    async with open_protected() as protected:
        client = await protected.connect()
        backend = protected.backend
        async with trio.open_nursery() as nursery:
            late = httpx.Response(401)
            protected.issuer.behind = SlowOnce(protected.issuer.behind, 5, late)
            nursery.start_soon(call, client)
            await wait_all_tasks_blocked()
            protected.issuer.valid.clear()
            await call(client)
        assert 2 == len(protected.issuer.asked)
        assert 2 == backend.executed["echo"]


async def test_a_second_refusal_is_the_callers(autojump_clock: MockClock) -> None:
    """A second 401 is the caller's error, with the backend's challenge, after two requests."""
    async with open_protected() as protected:
        client = await protected.connect()
        protected.backend.fail("tools/call", Status(401, headers={"www-authenticate": CHALLENGE}))
        with pytest.raises(BackendUnauthorized, match="refused the credentials for 'tools/call': HTTP 401") as caught:
            await call(client)
    assert repr(CHALLENGE) in str(caught.value)
    assert not caught.value.may_have_executed
    assert 2 == len(protected.backend.received("tools/call"))


async def test_a_backend_that_refuses_every_token_does_not_storm_the_issuer(autojump_clock: MockClock) -> None:
    """There is one refresh in 10 s, however often the backend is called, and the token of another backend stays."""
    async with open_protected() as protected:
        client = await protected.connect()
        protected.backend.fail("tools/call", Status(401))
        for second in range(30):
            await trio.sleep_until(trio.current_time() // 1 + 1)
            with pytest.raises(BackendUnauthorized):
                await call(client)
            assert len(protected.issuer.asked) <= 2 + second // 9
        assert len(protected.issuer.asked) >= 3
        protected.backend.heal()
        protected.issuer.protect(protected.backend)
        await call(client)


async def test_a_token_that_was_accepted_meanwhile_may_be_refused_again(autojump_clock: MockClock) -> None:
    """Two revocations in short order cause two refreshes, since the token was accepted in between."""
    async with open_protected() as protected:
        client = await protected.connect()
        for _ in range(3):
            protected.issuer.valid.clear()
            await call(client)
        assert 4 == len(protected.issuer.asked)


# The request for a token, and cancels


async def test_a_cancelled_caller_passes_the_turn_on(autojump_clock: MockClock) -> None:
    """The call that requests the token may be cancelled at any time: another call requests one, and none hangs."""
    async with open_protected() as protected:
        client = await protected.connect()
        protected.issuer.valid.clear()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for patience in (0.5, 100, 100):

                async def one(patience: float = patience) -> None:
                    with trio.move_on_after(patience):
                        await call(client)

                nursery.start_soon(one)
                await wait_all_tasks_blocked()
        assert 1.5 == trio.current_time() - started
        assert 1 + 2 == len(protected.issuer.asked)
        assert 2 == protected.backend.executed["echo"]


async def test_a_cancelled_wait_does_not_disturb_the_others(autojump_clock: MockClock) -> None:
    """A cancelled call only stops waiting; the others get their token."""
    async with open_protected() as protected:
        client = await protected.connect()
        protected.issuer.valid.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, client)
            await wait_all_tasks_blocked()
            with trio.move_on_after(0.5):
                await call(client)
        assert 2 == len(protected.issuer.asked)
        assert 1 == protected.backend.executed["echo"]


async def test_a_call_cut_off_while_it_waits_for_a_token_did_not_run(autojump_clock: MockClock) -> None:
    """A call that is cut off before its first request, or after a 401, did not run, and its error says so."""
    async with open_protected() as protected:
        client = await protected.connect()
        for seconds in (0, 4000):
            protected.issuer.valid.clear()
            autojump_clock.jump(seconds)
            note = RequestNote()
            current_note.set(note)
            with trio.move_on_after(0.5) as patience:
                await call(client)
            assert patience.cancelled_caught
            assert ("tools/call", False) == (note.method, note.written)


@pytest.mark.parametrize("share", range(4))  # of the moments: one test for all would take a second
def test_a_caller_cancelled_at_any_moment_costs_the_others_nothing(share: int) -> None:
    """A call is cancelled after every step of any task: the calls that wait with it get their token, and so does the
    next call.
    """

    async def main(cut: CancelAtMoment) -> None:
        async with open_protected() as protected:
            client = await protected.connect()
            protected.issuer.valid.clear()

            async def cancelled() -> None:
                with cut.block():
                    await call(client)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancelled)
                await wait_all_tasks_blocked()
                nursery.start_soon(call, client)
                nursery.start_soon(call, client)
            await call(client)
            assert protected.issuer.asked[1:3] == protected.issuer.asked[1:]
            assert 3 <= protected.backend.executed["echo"] <= 4

    for moment in itertools.count(share, 4):
        cut = CancelAtMoment(moment)
        trio.run(main, cut, clock=MockClock(autojump_threshold=0))
        if cut.struck is None:
            break
    assert moment > 30


async def test_a_cancelled_flow_leaves_nothing(autojump_clock: MockClock, recwarn: pytest.WarningsRecorder) -> None:
    """A cancelled flow leaves no async generator to be collected."""
    async with open_protected() as protected:
        with trio.move_on_after(0.5):
            await protected.connect()
        await protected.connect()
    gc.collect()
    assert [] == [str(warning.message) for warning in recwarn]


# A token endpoint that fails


@pytest.mark.parametrize(
    ("answer", "error", "detail"),
    [
        ((400, {"error": "invalid_scope"}), BackendUnauthorized, "refused a token: 'invalid_scope', HTTP 400"),
        ((401, {"error": "invalid_client"}), BackendUnauthorized, "refused a token: 'invalid_client', HTTP 401"),
        ((200, {"error": "unauthorized_client"}), BackendUnauthorized, "'unauthorized_client', HTTP 200"),
        ((400, {"error": "CANARY"}), BackendUnauthorized, "answered HTTP 400 and no token"),
        ((400, {"error": ["CANARY"]}), BackendUnauthorized, "answered HTTP 400 and"),
        ((403, "<html>CANARY"), BackendUnauthorized, "answered HTTP 403 and no token"),
        ((404, {"access_token": "CANARY"}), BackendUnauthorized, "answered HTTP 404 where a token"),
        ((302, ""), BackendUnauthorized, "answered HTTP 302 and no token"),
        ((200, ""), BackendUnauthorized, "answered HTTP 200 and no token"),
        ((200, b"\xff\xfe"), BackendUnauthorized, "answered HTTP 200 and what is no token"),
        ((200, [1]), BackendUnauthorized, "answered HTTP 200 and what is no token"),
        ((200, "[" * 60_000), BackendUnauthorized, "answered HTTP 200 and what is no token"),
        ((200, {"access_token": "CANARY", "expires_in": "soon"}), BackendUnauthorized, "what is no token"),
        ((200, '{"access_token": "CANARY", "expires_in": 1e999}'), BackendUnauthorized, "what is no token"),
        ((200, {"access_token": ["CANARY"]}), BackendUnauthorized, "a token that no header can carry"),
        ((200, {"access_token": "CANARY\r\nX: y"}), BackendUnauthorized, "a token that no header can carry"),
        ((200, {"access_token": ""}), BackendUnauthorized, "a token that no header can carry"),
        ((200, {"access_token": "CANARY", "token_type": "mac"}), BackendUnauthorized, "no bearer token"),
        ((200, {"access_token": "CANARY" * 20_000}), BackendUnauthorized, "over 65536 bytes"),
        ((200, {"access_token": "CANARY" * 200_000}), MessageTooLarge, "over 1000000 bytes (max_message_bytes)"),
        ((429, ""), BackendUnavailable, "answered HTTP 429 and no token"),
        ((503, "CANARY"), BackendUnavailable, "answered HTTP 503 and no token"),
        ((400, {"error": "temporarily_unavailable"}), BackendUnavailable, "'temporarily_unavailable'"),
        (httpx.ConnectError("CANARY"), BackendUnavailable, "could not be reached: ConnectError"),
        (httpx.ReadError("CANARY"), BackendUnavailable, "lost its connection: ReadError"),
        (httpx.RemoteProtocolError("odd"), BackendProtocolError, "does not speak HTTP/1.1"),
    ],
)
async def test_what_the_token_endpoint_answers_instead_is_a_plain_error(
    answer: Any, error: type[BackendError], detail: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The error names the endpoint's origin, and quotes only the error codes of the standards. The next call works."""
    caplog.set_level(logging.DEBUG)
    async with open_protected(settings=FactorySettings(max_message_bytes=1_000_000)) as protected:
        client = await protected.connect()
        protected.issuer.valid.clear()
        protected.issuer.answers.append(response(answer))
        with pytest.raises(error) as caught:
            await call(client)
        assert "backend 'b' cannot be asked: https://issuer.test " in str(caught.value)
        assert detail in str(caught.value)
        assert not caught.value.may_have_executed
        await call(client)
    texts = [str(caught.value), repr(caught.value), *(record.getMessage() for record in caplog.records)]
    shown = isinstance(answer, Exception)  # the message of an exception of the user's transport may be shown
    texts += [] if shown else traceback.format_exception(caught.value)
    assert [] == [text for text in texts if CANARY in text]


def response(answer: Any) -> httpx.Response | Exception:
    if isinstance(answer, Exception):
        return answer
    status, body = answer
    content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return httpx.Response(status, stream=Chunks(content))


async def test_a_compressed_token_is_refused(autojump_clock: MockClock) -> None:
    """A compressed answer is refused, not inflated."""
    bomb = gzip.compress(b'{"access_token": "x"}')
    async with open_protected() as protected:
        protected.issuer.answers.append(httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Chunks(bomb)))
        with pytest.raises(BackendProtocolError, match=r"https://issuer\.test answered with a Content-Encoding"):
            await protected.connect()


@pytest.mark.parametrize("answer", [(401, {"error": "invalid_client"}), httpx.ConnectError("refused")])
async def test_a_failure_is_shared_by_the_calls_that_waited(answer: Any, autojump_clock: MockClock) -> None:
    """A hundred calls do not ask a dead token endpoint one after the other. The next call asks again."""
    async with open_protected() as protected:
        client = await protected.connect()
        await trio.sleep(3600)
        protected.issuer.answers.append(response(answer))
        started = trio.current_time()
        errors = await call_many(client)
        assert MANY == len(errors)
        assert {False} == {error.may_have_executed for error in errors}
        assert ["https://issuer.test" in str(error) for error in errors] == [True] * MANY
        assert (1.0, 2) == (trio.current_time() - started, len(protected.issuer.asked))
        await call(client)
        assert 3 == len(protected.issuer.asked)


async def test_what_was_sent_again_may_have_run(autojump_clock: MockClock) -> None:
    """The 401 proves only of the first request that it did not run."""
    async with open_protected() as protected:
        client = await protected.connect()
        protected.issuer.valid.clear()
        protected.backend.fail(lambda e: e.headers["authorization"].endswith("-2"), Reset(0))
        with pytest.raises(BackendUnavailable) as caught:
            await call(client)
        assert caught.value.may_have_executed


# Configuration


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"token_url": "http://issuer.test/token?CANARY"},
            r"'http://issuer.test/token' is not https://.*\(allow_http\)",
        ),
        ({"token_url": "ftp://issuer.test"}, "is not http:// or https:// with a host"),
        ({"token_url": "https://"}, "is not http:// or https:// with a host"),
        ({"token_url": "https://u:CANARY@issuer.test"}, "'https://issuer.test' is not .* without userinfo"),
        ({"token_url": "https://issuer.test:port"}, "is no URL"),
        ({"client_id": ""}, "client_id is empty"),
        ({"client_secret": ""}, "client_secret is empty"),
        ({"secret_in": "cookie"}, "secret_in 'cookie' is neither 'header' nor 'body'"),
    ],
)
def test_what_is_configured_wrongly_is_refused_at_construction(changed: dict[str, Any], message: str) -> None:
    """The error names the argument and quotes nothing that may be secret."""
    # Not in the call itself: Python 3.13 shows its whole source in the traceback.
    given = {"token_url": TOKEN_URL, "client_id": CLIENT_ID, "client_secret": "CANARY-secret", **changed}
    with pytest.raises(ValueError, match=message) as caught:
        ClientCredentials(**given)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("token_url", "options"),
    [
        ("http://localhost:9100/token", {}),
        ("http://127.0.0.1/token", {}),
        ("http://[::1]/token", {}),
        ("http://issuer.test", {"allow_http": True}),
    ],
)
def test_a_secret_goes_in_clear_only_within_this_machine_or_as_told(token_url: str, options: dict[str, Any]) -> None:
    """RFC 6749 §3.2 requires TLS for the token endpoint."""
    ClientCredentials(token_url, CLIENT_ID, CLIENT_SECRET, **options)


async def test_no_repr_shows_secret_or_token(autojump_clock: MockClock) -> None:
    """No repr shows them: of the strategy, of the flow for a request, of the shared token."""
    auth = ClientCredentials(f"{TOKEN_URL}?CANARY", CLIENT_ID, CLIENT_SECRET, scope="a")
    async with open_protected(auth) as protected:
        await protected.connect()
        (configured,) = (protected.bench.backend,)
        flow = auth(configured, ALICE)
        assert CANARY not in f"{auth!r} {flow!r} {protected.bench.connector!r} {vars(flow)!r}"
    assert "ClientCredentials(token_url='https://issuer.test/oauth/token', client_id='robot', scope='a'" in repr(auth)


def test_without_oauthlib_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes at construction, not in the middle of a call; everything else works without `oauthlib`."""
    for name in ("oauthlib", "oauthlib.oauth2"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "trio_vmcp.auth._token_messages", raising=False)
    with pytest.raises(ImportError) as caught:
        ClientCredentials(TOKEN_URL, CLIENT_ID, CLIENT_SECRET)
    assert "ClientCredentials needs oauthlib: pip install 'trio-vmcp[oauth]'" == str(caught.value)
    assert caught.value.__suppress_context__
