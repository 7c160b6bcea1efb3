"""Credentials are asked for with every request, and once more after a 401; calls share the answer, and no question is
asked in vain.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from functools import partial
from typing import Any

import attrs
import httpx
import pytest
import trio
from support.clients import ALICE, BOB, Chunks, Handler, call, echo_backend, open_bench, open_client
from support.issuer import CHALLENGE, SlowOnce
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendError,
    BackendUnauthorized,
    BackendUnavailable,
    BearerAuth,
    Identity,
    OutgoingAuth,
    open_session_factory,
)
from trio_vmcp._request_note import RequestNote, current_note
from trio_vmcp.testing import (
    CallContext,
    Disconnect,
    Exchange,
    Reset,
    ScriptedBackend,
    Status,
    open_loopback,
    open_memory_network,
)

MANY = 96  # as many calls as one backend is sent at a time


@attrs.define(eq=False)
class Tokens:
    """An `OutgoingAuth` of a user; the token is renewed from outside.

    Attributes:
        after: After so many questions it gives the next token.
    """

    now: str = "old"
    next: str = "new"
    after: float = 0
    asked: list[Identity | None] = attrs.field(factory=list)

    def __call__(self, backend: Backend, identity: Identity | None) -> httpx.Auth | None:
        self.asked.append(identity)
        return BearerAuth(self.now if len(self.asked) <= self.after else self.next)(backend, identity)

    def renew_after(self, more: int) -> None:
        """The next `more` questions still get the present token."""
        self.after = len(self.asked) + more


def protected(era: str = "modern", *, takes: tuple[str, ...] = ("new",), answers: str = "json") -> ScriptedBackend:
    """A backend that answers calls with any other token 401."""
    backend = echo_backend(era, answers)
    refuse(backend, "tools/call", takes)
    return backend


def refuse(backend: ScriptedBackend, method: str, takes: tuple[str, ...]) -> None:
    def is_refused(exchange: Exchange) -> bool:
        token = exchange.headers.get("authorization", "Bearer ").removeprefix("Bearer ")
        return method in (exchange.method, exchange.verb) and token not in takes

    backend.fail(is_refused, Status(401, b"why", {"www-authenticate": CHALLENGE}))


def sent(backend: ScriptedBackend, method: str = "tools/call") -> list[tuple[str | None, int | None]]:
    exchanges = [e for e in backend.exchanges if method in (e.method, e.verb)]
    return [(e.headers.get("authorization"), e.status) for e in exchanges]


@pytest.mark.parametrize(("era", "answers"), [("legacy", "json"), ("modern", "sse")])
async def test_a_401_asks_again_and_sends_once_more(era: str, answers: str, autojump_clock: MockClock) -> None:
    """The second request carries the caller's identity. A `tools/call` is sent again, too: with a 401 it did
    not run.
    """
    backend, tokens = protected(era, answers=answers), Tokens()
    async with open_client(backend, auth=tokens) as client:
        tokens.renew_after(1)
        begun = len(tokens.asked)
        assert "{}" == (await call(client, identity=BOB))["content"][0]["text"]
        assert [BOB, BOB] == tokens.asked[begun:]
    assert [("Bearer old", 401), ("Bearer new", 200)] == sent(backend)
    assert 1 == backend.executed["echo"]


@pytest.mark.parametrize("method", ["initialize", "notifications/initialized", "DELETE"])
async def test_every_kind_of_request_is_sent_once_more(method: str, autojump_clock: MockClock) -> None:
    """The handshake, a notification and the DELETE of the session are sent once more, too."""
    backend, tokens = echo_backend(), Tokens()
    refuse(backend, method, ("new",))
    async with open_client(backend, identity=ALICE, auth=tokens) as client:
        await call(client)
        tokens.renew_after(1)
        if method != "DELETE":
            tokens.now = "new"
    if method != "DELETE":
        tokens.asked.clear()
        tokens.renew_after(1 if method == "initialize" else 2)
        tokens.now = "old"
        async with open_client(backend, identity=ALICE, auth=tokens):
            pass
    assert [("Bearer old", 401), ("Bearer new", 202 if "notif" in method else 200)] == sent(backend, method)[-2:]
    assert ALICE == tokens.asked[-1]


async def test_a_resumption_carries_the_callers_credentials(autojump_clock: MockClock) -> None:
    """The GET that resumes a stream carries the caller's credentials, and is sent once more after a 401."""

    async def detaching(arguments: JSON, context: CallContext) -> str:
        await context.detach()
        return "done"

    backend, tokens = echo_backend(answers="sse", resumable=True), Tokens(next="old")
    backend.add_tool("detaching", detaching)
    refuse(backend, "GET", ("new",))
    async with open_client(backend, identity=ALICE, auth=tokens) as client:
        tokens.next = "new"
        tokens.renew_after(2)  # for the call and the GET
        begun = len(tokens.asked)
        await call(client, "detaching", identity=BOB)
        assert [BOB] * 3 == tokens.asked[begun:]
    assert [("Bearer old", 401), ("Bearer new", 200)] == sent(backend, "GET")
    assert 1 == backend.executed["detaching"]


@pytest.mark.parametrize("renewed", ["same", "none", "fails"])
async def test_without_other_credentials_nothing_is_sent_again(renewed: str, autojump_clock: MockClock) -> None:
    """If `auth` gives the same credentials again, or none, the request is not repeated, and the error has the backend's
    challenge.
    """
    backend = protected()
    calls = itertools.count()

    def auth(configured: Backend, identity: Identity | None) -> httpx.Auth | None:
        if identity is BOB and next(calls):
            if renewed == "fails":
                raise RuntimeError("no token")
            if renewed == "none":
                return None
        return BearerAuth("old")(configured, identity)

    async with open_client(backend, auth=auth) as client:
        with pytest.raises(BackendUnauthorized) as caught:
            await call(client, identity=BOB)
    assert [("Bearer old", 401)] == sent(backend)
    assert ("credentials failed: RuntimeError" if renewed == "fails" else repr(CHALLENGE)) in str(caught.value)
    assert not caught.value.may_have_executed


async def test_a_second_401_is_the_callers(autojump_clock: MockClock) -> None:
    """A second 401 is the caller's error; there is no third request."""
    backend = protected(takes=())
    tokens = (BearerAuth(f"token-{n}") for n in itertools.count())
    async with open_client(backend, auth=lambda b, i: next(tokens)(b, i)) as client:
        with pytest.raises(BackendUnauthorized, match=r"HTTP 401 \('Bearer error"):
            await call(client)
    assert [401, 401] == [status for _, status in sent(backend)]


async def test_credentials_may_turn_up_late(autojump_clock: MockClock) -> None:
    """`auth` is asked again after a 401 even if it gave no credentials at first."""
    backend = protected()
    known: list[httpx.Auth | None] = []

    def auth(configured: Backend, identity: Identity | None) -> httpx.Auth | None:
        known.append(BearerAuth("new")(configured, identity) if len(sent(backend)) else None)
        return known[-1]

    async with open_client(backend, auth=auth) as client:
        await call(client)
    assert [(None, 401), ("Bearer new", 200)] == sent(backend)


async def test_what_the_first_credentials_wrote_is_gone_from_the_second_request(autojump_clock: MockClock) -> None:
    """The second request starts from the original headers, without those that the first credentials added."""
    backend = echo_backend("modern")
    backend.fail(lambda e: e.method == "tools/call" and "x-second" not in e.headers, Status(401))
    kinds: list[httpx.Auth] = [Signing("x-first"), Signing("x-second")]

    async with open_client(backend, auth=lambda b, i: kinds.pop(0) if i else None) as client:
        await call(client, identity=ALICE)
    last = backend.exchanges[-1]
    assert (None, f"size {len(last.body)}") == (last.headers.get("x-first"), last.headers["x-second"])


class Signing(httpx.Auth):
    """Writes the size of the body into a header."""

    requires_request_body = True

    def __init__(self, header: str) -> None:
        self.header = header

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers[self.header] = f"size {len(request.content)}"
        yield request


async def test_a_wrong_password_is_not_tried_for_ever(autojump_clock: MockClock) -> None:
    """Digest sends two requests by itself. Asked again, it would begin with a request that was refused already, so it
    is not sent.
    """
    backend = echo_backend("modern")
    challenge = 'Digest realm="r", nonce="n", qop="auth"'
    backend.fail("tools/call", Status(401, headers={"www-authenticate": challenge}))
    async with open_client(backend, auth=lambda b, i: httpx.DigestAuth("user", "wrong")) as client:
        with pytest.raises(BackendUnauthorized):
            await call(client)
    assert 2 == len(sent(backend))


# Shared


async def test_a_stampede_asks_again_once(autojump_clock: MockClock) -> None:
    """After a hundred 401s at once `auth` is asked once more, and its answer serves all of them."""
    backend, tokens = protected(), Tokens(after=MANY + 1)
    async with open_client(backend, auth=tokens) as client:
        begun = len(tokens.asked)
        tokens.renew_after(MANY)
        async with trio.open_nursery() as nursery:
            for _ in range(MANY):
                nursery.start_soon(call, client)
        assert MANY + 1 == len(tokens.asked) - begun
    assert MANY == backend.executed["echo"]
    assert 2 * MANY == len(sent(backend))


async def test_identities_do_not_share(autojump_clock: MockClock) -> None:
    """Another identity, or the same with another token, gets an answer of its own."""
    backend = protected(takes=("bob+", "alice+", "later+"))
    later = attrs.evolve(ALICE, token="later")
    callers = {"alice": ALICE, "bob": BOB, "later": later}
    refused: set[str] = set()

    def auth(configured: Backend, identity: Identity | None) -> httpx.Auth | None:
        if identity is None:
            return None
        name = next(name for name, caller in callers.items() if caller is identity)
        token = name + "+" * (name in refused)
        refused.add(name)
        return BearerAuth(token)(configured, identity)

    async with open_client(backend, auth=auth) as client:
        async with trio.open_nursery() as nursery:
            for caller in callers.values():
                nursery.start_soon(partial(call, client, identity=caller))
    accepted = [token for token, status in sent(backend) if status == 200]
    assert ["Bearer alice+", "Bearer bob+", "Bearer later+"] == sorted(map(str, accepted))


async def test_an_answer_that_changed_nothing_is_not_shared(autojump_clock: MockClock) -> None:
    """A 401 that arrives later asks again if the last answer was the old token: by then there may be a new one."""
    backend, tokens = protected(), Tokens(after=4)
    async with open_memory_network() as network:
        url = network.attach("b.test", backend)
        transport = SlowOnce(network.transport(), 5, httpx.Response(401))
        async with open_bench(transport, auth=tokens, url=url, era="modern") as bench:
            transport.passing = 1  # the discovery
            client = await bench.connect()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, client)
                await wait_all_tasks_blocked()
                with pytest.raises(BackendUnauthorized):
                    await call(client)
        await transport.aclose()
    assert 5 == len(tokens.asked)
    assert 1 == backend.executed["echo"]


async def test_the_newest_answer_is_the_one_that_is_shared(autojump_clock: MockClock) -> None:
    """The newest answer serves calls that were signed before it; not a call that was signed with it already."""
    backend = echo_backend("modern")
    takes = ["one"]
    backend.fail(lambda e: e.headers["authorization"] != f"Bearer {takes[-1]}", Status(401))
    shown = iter(["one", "one", "one", "two", "two", "three"])

    def auth(configured: Backend, identity: Identity | None) -> httpx.Auth | None:
        return BearerAuth(next(shown))(configured, identity)

    async with open_memory_network() as network:
        url = network.attach("b.test", backend)
        transport = SlowOnce(network.transport(), 5, httpx.Response(401))
        async with open_bench(transport, auth=auth, url=url, era="modern") as bench:
            transport.passing = 1  # the discovery
            client = await bench.connect()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, client)
                await wait_all_tasks_blocked()
                for newest in ("two", "three"):
                    takes.append(newest)
                    await call(client)
        await transport.aclose()
    assert [] == [*shown]
    accepted = [token for token, status in sent(backend) if status == 200]
    assert ["Bearer two", "Bearer three", "Bearer three"] == accepted


# What may have run


async def test_a_refused_request_did_not_run_whatever_comes_then(autojump_clock: MockClock) -> None:
    """Cancelled while new credentials are fetched, a call counts as not written; after a reset of its second request,
    as written.
    """
    backend = protected()

    class Slow(httpx.Auth):
        async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:  # noqa: ASYNC900  # httpx's interface
            await trio.sleep(1)
            request.headers["Authorization"] = "Bearer new"
            yield request

    async with open_client(backend, auth=once_then(Slow())) as client:
        note = RequestNote()
        current_note.set(note)
        with trio.move_on_after(0.5) as patience:
            await call(client)
        assert patience.cancelled_caught
        assert ("tools/call", False) == (note.method, note.written)
    backend = protected()
    backend.fail(lambda e: e.headers.get("authorization") == "Bearer new", Reset(0))
    async with open_client(backend, auth=once_then(BearerAuth("new")(Backend(id="b", url="http://b"), None))) as client:
        with pytest.raises(BackendUnavailable) as caught:
            await call(client)
        assert caught.value.may_have_executed


def once_then(later: httpx.Auth | None) -> OutgoingAuth:
    """Gives no credentials until a call was refused."""
    asked = itertools.count()
    return lambda backend, identity: None if next(asked) < 2 else later


async def test_a_401_that_breaks_off_is_a_401(autojump_clock: MockClock) -> None:
    """A 401 with a body that breaks off is still a 401: the head decides."""
    backend, tokens = protected(), Tokens(after=2)
    backend.fail(lambda e: e.headers["authorization"] == "Bearer old" and e.method == "tools/call", Disconnect(70))
    async with open_client(backend, auth=tokens) as client:
        await call(client)
    assert 1 == backend.executed["echo"]


# What an Auth asks on its way


async def test_a_failing_token_endpoint_is_named(autojump_clock: MockClock) -> None:
    """The error names the origin of the token endpoint, without its path and query, and does not say that the call may
    have run.
    """

    class Fetching(httpx.Auth):
        requires_response_body = True

        def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
            yield httpx.Request("POST", "https://user:CANARY@issuer.test:8443/CANARY?CANARY")
            yield request

    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("gone")

    with pytest.raises(BackendUnavailable) as caught:
        await discover(answer, lambda backend, identity: Fetching())
    assert "backend 'b' cannot be asked: https://issuer.test:8443 lost its connection: ReadError" == str(caught.value)
    assert not caught.value.may_have_executed


async def discover(handler: Handler, auth: Callable[[Backend, Identity | None], Any]) -> None:
    async with open_bench(httpx.MockTransport(handler), auth=auth, era="modern") as bench:
        await bench.connect()


async def test_every_401_is_closed(autojump_clock: MockClock) -> None:
    """After each of these paths no response stays open."""
    for renewed in (
        lambda: BearerAuth("new"),
        lambda: BearerAuth("old"),
        lambda: None,
        lambda: 1 / 0,
        lambda: lambda b, i: ("no", "auth"),
    ):
        bodies: list[Chunks] = []
        asked = itertools.count()

        def answer(request: httpx.Request, bodies: list[Chunks] = bodies) -> httpx.Response:
            bodies.append(Chunks(b"no"))
            return httpx.Response(401, stream=bodies[-1])

        def auth(
            backend: Backend, identity: Identity | None, asked: Any = asked, renewed: Callable[[], Any] = renewed
        ) -> Any:
            strategy = renewed() if next(asked) else BearerAuth("old")
            return strategy and strategy(backend, identity)

        with pytest.raises(BackendError):
            await discover(answer, auth)
        assert {True} == {body.closed for body in bodies}


class BadToken(httpx.Auth):
    """Leaves the line end of a token file in the header."""

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        request.headers["Authorization"] = "Bearer canary\n"
        yield request


async def test_a_token_that_no_header_can_carry_is_in_no_traceback() -> None:
    """A token with a line end is refused before the request is written, and no error of the chain quotes it."""
    auth: list[httpx.Auth | None] = [None]
    async with open_loopback(echo_backend()) as url, open_session_factory(auth=lambda backend, who: auth[0]) as factory:
        async with factory.open_session([Backend(id="a", url=url, era="legacy")]) as session:
            auth[0] = BadToken()
            with pytest.raises(BackendUnavailable, match="a header that HTTP cannot carry") as caught:
                await session.call_tool("a_echo")
            auth[0] = None
    assert not caught.value.may_have_executed
    assert "canary" not in "".join(traceback.format_exception(caught.value))
