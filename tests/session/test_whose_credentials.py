"""Whose credentials each request of a session carries: those of its caller, with the token of that call, else those of
the opener.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from support.channels import CHANNELS, Channel
from support.endpoint import Endpoint, open_endpoint
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON, Backend, BearerAuth, ClientHandlers, FactorySettings, Identity, ServerRequest, Session
from trio_vmcp.testing import CallContext, Error, ScriptedBackend

OPENER = Identity(issuer="https://issuer.test", subject="alice", token="opened")
CALLER = attrs.evolve(OPENER, token="renewed")  # the same principal, later
SETTINGS = FactorySettings(reconnect_delay=0.1, reconnect_max_delay=0.1)

EVERY_HTTP_CHANNEL = pytest.mark.parametrize("channel", [c for c in CHANNELS if c.transport != "stdio"], ids=str)
LEGACY = [c for c in CHANNELS if c.transport != "stdio" and not c.is_modern]


async def hang(arguments: JSON, context: CallContext) -> str:
    await trio.sleep_forever()
    raise AssertionError


async def curious(arguments: JSON, context: CallContext) -> str:
    return str(await context.request("roots/list", {}))


async def roots(request: ServerRequest) -> JSON:
    return {"roots": []}


def whose(backend: Backend, identity: Identity | None) -> str | None:
    return None if identity is None else identity.token


@asynccontextmanager
async def open_renewed(channel: Channel) -> AsyncIterator[tuple[Endpoint, ScriptedBackend, Session]]:
    """A session that was opened with one token, and a view of it with a newer one."""
    handlers = ClientHandlers(roots=roots)
    async with open_endpoint(channel, settings=SETTINGS, handlers=handlers, auth=BearerAuth(whose)) as endpoint:
        backend = endpoint.backends[OPENER.subject]
        backend.listens = True
        backend.add_tool("curious", curious)
        backend.add_tool("hang", hang)
        backend.add_resource("file:///x")
        backend.add_prompt("p")
        backend.completions = {"n": ["one"]}
        async with endpoint.factory.open_session([endpoint.configured(OPENER)], identity=OPENER) as session:
            await wait_all_tasks_blocked()
            assert () == session.failures
            yield endpoint, backend, session.as_caller(CALLER)


def signed(backend: ScriptedBackend, since: int = 0) -> dict[str, set[str]]:
    """Whose tokens came with which kinds of requests: by method, "answer", or HTTP verb."""
    found: dict[str, set[str]] = {}
    for exchange in backend.exchanges[since:]:
        message = exchange.message if isinstance(exchange.message, dict) else {}
        kind = message.get("method", "answer" if message else exchange.verb)
        if "last-event-id" in exchange.headers:
            kind = "resumption"
        found.setdefault(kind, set()).add(exchange.headers["authorization"].removeprefix("Bearer "))
    return found


def expected(callers: str, openers: str = "") -> dict[str, set[str]]:
    return {kind: {CALLER.token} for kind in callers.split()} | {kind: {OPENER.token} for kind in openers.split()}


def without_lists(found: dict[str, set[str]]) -> dict[str, set[str]]:
    """Lists that the session reads again by itself, which are the opener's."""
    lists = {kind: tokens for kind, tokens in found.items() if kind.endswith("/list")}
    assert [{OPENER.token}] * len(lists) == list(lists.values())
    return {kind: tokens for kind, tokens in found.items() if kind not in lists}


@EVERY_HTTP_CHANNEL
async def test_an_opening_and_its_end_are_the_openers(channel: Channel, autojump_clock: MockClock) -> None:
    """Probe, handshake, lists, streams and goodbye, whichever caller has called in between."""
    async with open_renewed(channel) as (_, backend, view):
        await view.call_tool("b_echo")
    found = signed(backend)
    assert {CALLER.token} == found.pop("tools/call")
    lists = "tools/list resources/list resources/templates/list prompts/list"
    own = {
        "http-legacy": "initialize notifications/initialized GET DELETE",
        "http+sse-legacy": "initialize notifications/initialized GET",
        "http-modern": "server/discover subscriptions/listen",
    }
    assert expected("", f"{lists} {own[str(channel)]}") == found


@EVERY_HTTP_CHANNEL
async def test_a_call_and_what_belongs_to_it_are_the_callers(channel: Channel, autojump_clock: MockClock) -> None:
    """Every kind of call; the answer to a question in it; its cancellation; a subscription. Over HTTP+SSE a question
    names no call, so its answer is the opener's.
    """
    async with open_renewed(channel) as (_, backend, view):
        since = len(backend.exchanges)
        await view.call_tool("b_curious")
        await view.read_resource("file:///x")
        await view.get_prompt("b_p")
        await view.complete({"type": "ref/prompt", "name": "b_p"}, {"name": "n", "value": ""})
        with trio.move_on_after(1):
            await view.call_tool("b_hang")
        with pytest.raises(Exception, match="did not answer"):
            await view.call_tool("b_hang", timeout=1)
        await view.subscribe_resource("file:///x")
        await wait_all_tasks_blocked()
        await view.unsubscribe_resource("file:///x")
        await wait_all_tasks_blocked()
        found = without_lists(signed(backend, since))
    own = {
        "legacy": "notifications/cancelled resources/subscribe resources/unsubscribe",
        "modern": "subscriptions/listen",
    }
    answers = {"http-legacy": {"answer": {CALLER.token}}, "http+sse-legacy": {"answer": {OPENER.token}}}
    calls = expected(f"tools/call resources/read prompts/get completion/complete {own[channel.era]}")
    assert calls | answers.get(str(channel), {}) == found


@EVERY_HTTP_CHANNEL
async def test_what_a_session_does_by_itself_is_the_openers(channel: Channel, autojump_clock: MockClock) -> None:
    """A list that is read again after `list_changed`, in the middle of a caller's call."""
    async with open_renewed(channel) as (_, backend, view):
        with trio.move_on_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(view.call_tool, "b_hang")
                await wait_all_tasks_blocked()
                since = len(backend.exchanges)
                backend.add_tool("new")
                backend.notify("notifications/tools/list_changed")
        assert "b_new" in [tool.name for tool in view.tools]
        found = signed(backend, since)
    assert {OPENER.token} == found["tools/list"]
    assert without_lists(found).keys() <= {"notifications/cancelled"}


@pytest.mark.parametrize("channel", LEGACY, ids=str)
async def test_a_new_connection_and_what_it_restores_are_the_openers(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """A call meets a lost session: the handshake, the lists and the subscriptions so far are the opener's, and only the
    call is the caller's.
    """
    async with open_renewed(channel) as (_, backend, view):
        await view.subscribe_resource("file:///x")
        since = len(backend.exchanges)
        backend.restart()
        await trio.sleep(1)
        await view.call_tool("b_echo")
        await trio.sleep(1)
        found = signed(backend, since)
    assert {OPENER.token} == found.pop("DELETE", {OPENER.token})  # of the session before
    own = "initialize notifications/initialized GET tools/list resources/list resources/templates/list prompts/list"
    assert expected("tools/call", f"{own} resources/subscribe") == found


async def test_a_resumed_stream_is_the_callers(autojump_clock: MockClock) -> None:
    """The rest of an answer that broke off is fetched with the credentials of its call."""

    async def detached(arguments: JSON, context: CallContext) -> str:
        await context.detach()
        return "late"

    channel = Channel("streamable-http", "legacy")
    async with open_renewed(channel) as (_, backend, view):
        backend.resumable = True
        backend.add_tool("detached", detached)
        backend.notify("notifications/tools/list_changed")
        await trio.sleep(5)
        since = len(backend.exchanges)
        assert "late" in str((await view.call_tool("b_detached")).content)
        assert expected("tools/call resumption") == signed(backend, since)


async def test_a_stream_for_subscriptions_is_opened_again_as_it_was(autojump_clock: MockClock) -> None:
    """The stream of the stateless era carries the token of the call that changed it last, also when it was cut."""
    channel = Channel("streamable-http", "modern")
    async with open_renewed(channel) as (_, backend, view):
        await view.subscribe_resource("file:///x")
        since = len(backend.exchanges)
        backend.crash()
        backend.restart()
        await trio.sleep(5)
        assert expected("subscriptions/listen") == without_lists(signed(backend, since))


@EVERY_HTTP_CHANNEL
async def test_a_backend_that_a_view_adds_is_the_views(channel: Channel, autojump_clock: MockClock) -> None:
    """Handshake, lists, streams, reconnects and goodbye of a backend carry the token of the view that added it; what
    the session itself adds, the opener's.
    """
    async with open_endpoint(channel, settings=SETTINGS, auth=BearerAuth(whose)) as endpoint:
        backend = endpoint.backends[OPENER.subject]
        backend.listens = True
        async with endpoint.factory.open_session([], identity=OPENER) as session:
            for by, token in ((session.as_caller(CALLER), CALLER.token), (session, OPENER.token)):
                since = len(backend.exchanges)
                await by.add_backend(endpoint.configured(OPENER))
                await wait_all_tasks_blocked()
                assert () == session.failures
                backend.restart()
                await trio.sleep(1)
                await by.remove_backend("b")
                assert [{token}] * len(signed(backend, since)) == list(signed(backend, since).values())


@EVERY_HTTP_CHANNEL
async def test_a_call_that_is_sent_again_stays_the_callers(channel: Channel, autojump_clock: MockClock) -> None:
    """Also after an attempt that failed."""
    async with open_renewed(channel) as (_, backend, view):
        since = len(backend.exchanges)
        backend.fail("tools/call", Error(-32000, "once more"), times=1)
        with pytest.raises(Exception, match="once more"):
            await view.call_tool("b_echo")
        await view.call_tool("b_echo")
        assert expected("tools/call") == signed(backend, since)


async def test_a_silent_stream_is_asked_by_the_opener(autojump_clock: MockClock) -> None:
    """The ping that finds out whether a stream of HTTP+SSE is still there belongs to no call."""
    async with open_renewed(Channel("sse", "legacy")) as (_, backend, view):
        await view.call_tool("b_echo")
        since = len(backend.exchanges)
        await trio.sleep(1000)
        assert expected("", "ping") == signed(backend, since)
