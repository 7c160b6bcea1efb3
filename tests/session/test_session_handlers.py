"""`handlers` and `prefer_era` of one session: by every way that makes a session, over every channel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from support.channels import CHANNELS, EVERY_CHANNEL, EVERY_MODERN_CHANNEL, Channel
from support.clients import echo_backend
from support.opened import EVERY_WAY, MADE, open_by
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendError,
    ClientHandlers,
    ServerRequest,
    SessionFactory,
    open_session_factory,
)
from trio_vmcp.testing import CallContext, ScriptedBackend

CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
FORMS: JSON = {"form": {}, "url": {}}


class User:
    """Answers questions under a name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[str] = []

    async def answer(self, request: ServerRequest) -> JSON:
        self.asked.append(request.backend_id)
        return {"action": "accept", "content": {"name": self.name}}

    async def list_roots(self, request: ServerRequest) -> JSON:
        return {"roots": []}


async def ask(arguments: JSON, context: CallContext) -> str:
    return str((await context.elicit("?"))["content"]["name"])


def asking(channel: Channel, **options: Any) -> ScriptedBackend:
    """Beside "echo" a tool "ask", which answers the name of the user that it has asked."""
    backend = channel.backend(**options)
    backend.add_tool("ask", ask)
    return backend


@asynccontextmanager
async def open_factory(
    channel: Channel, backend: ScriptedBackend, handlers: ClientHandlers | None = None, **configured: Any
) -> AsyncIterator[tuple[SessionFactory, Backend]]:
    """At the end no connection, process or backend session is left."""
    async with (
        channel.open_way(backend, configured) as (transport, entry),
        open_session_factory(transport=transport, handlers=handlers) as factory,
    ):
        yield factory, entry
    await wait_all_tasks_blocked()
    assert [] == backend.errors
    assert {} == backend.sessions


def declared(backend: ScriptedBackend) -> list[JSON]:
    """Each different set of client capabilities that the backend was told, in order."""
    told: list[JSON] = []
    for exchange in backend.exchanges:
        if exchange.method == "initialize":
            capabilities = exchange.params["capabilities"]
        elif CAPABILITIES in exchange.meta:
            capabilities = exchange.meta[CAPABILITIES]
        else:
            continue
        if capabilities not in told:
            told.append(capabilities)
    return told


def text_of(result: Any) -> str:
    return str(result.content[0]["text"])


# handlers


@EVERY_CHANNEL
@EVERY_WAY
async def test_the_handlers_of_a_session_take_the_place_of_the_factorys(
    channel: Channel, way: str, autojump_clock: MockClock
) -> None:
    """They alone are declared and asked, also by a backend that is added later, and after a new connection."""
    others, own, backend = User("factory"), User("session"), asking(channel)
    of_factory = ClientHandlers(sampling=others.answer, elicitation=others.answer)
    of_session = ClientHandlers(elicitation=own.answer, roots=own.list_roots)
    async with (
        open_factory(channel, backend, of_factory) as (factory, entry),
        open_by(way, factory, [entry], handlers=of_session) as session,
    ):
        assert "session" == text_of(await session.call_tool("b_ask"))
        await session.add_backend(attrs.evolve(entry, id="c"))
        assert "session" == text_of(await session.call_tool("c_ask"))
        backend.crash()
        await trio.sleep(1)
        backend.restart()
        await trio.sleep(10)
        assert "session" == text_of(await session.call_tool("b_ask"))
    assert ["b", "c", "b"] == own.asked
    assert [] == others.asked
    assert [{"elicitation": FORMS, "roots": {}}] == declared(backend)


@EVERY_CHANNEL
async def test_a_resumed_backend_session_asks_the_handlers_of_the_restored_one(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """`handlers` are not stored: what a backend asks after a restore goes to those of the restore."""
    before, after, backend = User("before"), User("after"), asking(channel)
    async with open_factory(channel, backend) as (factory, entry):
        session = await factory.make_session([entry], handlers=ClientHandlers(elicitation=before.answer))
        await session.suspend()
        handlers = ClientHandlers(elicitation=after.answer)
        async with await factory.restore_session(session.id, [entry], handlers=handlers) as restored:
            assert "after" == text_of(await restored.call_tool("b_ask"))
    assert [] == before.asked


@EVERY_WAY
@pytest.mark.parametrize("preferred", ["legacy", "modern", None])
async def test_handlers_over_a_channel_that_was_fallen_back_to(
    way: str, preferred: Any, autojump_clock: MockClock
) -> None:
    """A backend that is configured for streamable HTTP and speaks HTTP+SSE alone is told of the session's handlers."""
    channel = Channel("sse", "legacy")
    others, own, backend = User("factory"), User("session"), asking(channel)
    configured = {"transport": "streamable-http", "era": "auto"}
    async with (
        open_factory(channel, backend, ClientHandlers(sampling=others.answer), **configured) as (factory, entry),
        open_by(
            way, factory, [entry], handlers=ClientHandlers(elicitation=own.answer), prefer_era=preferred
        ) as session,
    ):
        assert "session" == text_of(await session.call_tool("b_ask"))
    assert {"elicitation": FORMS} == declared(backend)[-1]


@EVERY_CHANNEL
@EVERY_WAY
async def test_a_session_may_have_no_handlers_at_all(channel: Channel, way: str, autojump_clock: MockClock) -> None:
    """`ClientHandlers()` declares nothing, though the factory has handlers; None is the factory's."""
    user, backend = User("factory"), asking(channel)
    of_factory = ClientHandlers(elicitation=user.answer)
    async with open_factory(channel, backend, of_factory) as (factory, entry):
        async with open_by(way, factory, [entry], handlers=ClientHandlers()) as session:
            with pytest.raises(BackendError):
                await session.call_tool("b_ask")
        assert [{}] == declared(backend)
        async with open_by(way, factory, [entry], handlers=None) as session:
            assert "factory" == text_of(await session.call_tool("b_ask"))
    assert [{}, {"elicitation": FORMS}] == declared(backend)


@EVERY_CHANNEL
async def test_sessions_of_one_factory_have_handlers_of_their_own(channel: Channel, autojump_clock: MockClock) -> None:
    """Side by side over one backend: each is asked about its own calls."""
    users, backend = [User("one"), User("two")], asking(channel)
    async with open_factory(channel, backend) as (factory, entry):
        sessions = [
            await factory.make_session([entry], handlers=ClientHandlers(elicitation=user.answer)) for user in users
        ]
        for _ in range(2):
            assert ["one", "two"] == [text_of(await session.call_tool("b_ask")) for session in sessions]
        for session in sessions:
            await session.aclose()


@EVERY_MODERN_CHANNEL
async def test_results_are_not_shared_between_sessions_that_declare_different_things(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """A backend may offer tools that ask only to a client that answers: its list is kept for clients alike."""
    backend = asking(channel, ttl_ms=60_000, cache_scope="public")
    async with open_factory(channel, backend) as (factory, entry):
        for handlers in (ClientHandlers(), ClientHandlers(elicitation=User("one").answer), ClientHandlers()):
            await (await factory.make_session([entry], handlers=handlers, prefer_era="modern")).aclose()
    listed = [exchange.meta[CAPABILITIES] for exchange in backend.received("tools/list")]
    repeats: list[JSON] = [{}] if channel.transport == "stdio" else []  # no result of a child process is kept
    assert [{}, {"elicitation": FORMS}, *repeats] == listed


# prefer_era


AUTO = tuple(channel for channel in CHANNELS if channel.is_modern)  # over which a backend may speak both eras
EVERY_AUTO = pytest.mark.parametrize("channel", AUTO, ids=str)
QUESTIONS = {
    "none": ClientHandlers(),
    "sampling": ClientHandlers(sampling=User("x").answer),
}


def probed(backend: ScriptedBackend) -> list[str]:
    """The methods by which eras are told apart, in the order in which they came."""
    return [exchange.method for exchange in backend.exchanges if exchange.method in ("initialize", "server/discover")]


@EVERY_AUTO
@EVERY_WAY
@pytest.mark.parametrize("given", QUESTIONS)
@pytest.mark.parametrize("preferred", ["modern", "legacy", None])
async def test_the_preferred_era_is_tried_first(
    channel: Channel, way: str, given: str, preferred: Any, autojump_clock: MockClock
) -> None:
    """Whatever the handlers are; without a preference the handlers for questions want the handshake first. The same
    holds for a backend that is added later.
    """
    expected = preferred or ("legacy" if given == "sampling" else "modern")
    backend = echo_backend("both", "sse")
    async with (
        open_factory(channel, backend, era="auto") as (factory, entry),
        open_by(way, factory, [entry], handlers=QUESTIONS[given], prefer_era=preferred) as session,
    ):
        await session.add_backend(attrs.evolve(entry, id="c"))
        assert [expected] * 2 == [status.era for status in session.backends.values()]
    first = "initialize" if expected == "legacy" else "server/discover"
    assert [first] * 2 == probed(backend)


@EVERY_AUTO
@EVERY_WAY
@pytest.mark.parametrize("speaks", ["legacy", "modern"])
@pytest.mark.parametrize("preferred", ["legacy", "modern"])
async def test_a_backend_of_the_other_era_is_found_all_the_same(
    channel: Channel, way: str, speaks: str, preferred: Any, autojump_clock: MockClock
) -> None:
    """A preference is no pin."""
    backend = echo_backend(speaks, "sse")
    async with (
        open_factory(channel, backend, era="auto") as (factory, entry),
        open_by(way, factory, [entry], prefer_era=preferred) as session,
    ):
        assert speaks == session.backends["b"].era
        await session.call_tool("b_echo")


@EVERY_AUTO
@pytest.mark.parametrize("order", [("legacy", "modern", None), ("modern", "legacy", None), (None, "legacy", "modern")])
async def test_sessions_of_different_preferences_do_not_share_a_verdict(
    channel: Channel, order: tuple[Any, ...], autojump_clock: MockClock
) -> None:
    """A verdict belongs to the backend and the order: twice each, so that the second finds the verdict of the first."""
    backend = echo_backend("both", "sse")
    async with open_factory(channel, backend, era="auto") as (factory, entry):
        for preferred in (*order, *order):
            async with factory.open_session([entry], prefer_era=preferred) as session:
                assert (preferred or "modern") == session.backends["b"].era


@EVERY_CHANNEL
@EVERY_WAY
@pytest.mark.parametrize("preferred", ["legacy", "modern"])
async def test_a_pinned_era_wins_over_a_preference(
    channel: Channel, way: str, preferred: Any, autojump_clock: MockClock
) -> None:
    """`Backend.era` is of the user's own."""
    backend = channel.backend()
    async with (
        open_factory(channel, backend) as (factory, entry),
        open_by(way, factory, [entry], prefer_era=preferred) as session,
    ):
        assert channel.era == session.backends["b"].era
    assert ["server/discover" if channel.is_modern else "initialize"] == probed(backend)


@pytest.mark.parametrize("preferred", ["auto", "Modern", "", 0, False, ["modern"]])
@EVERY_WAY
async def test_no_other_preference_is_taken(way: str, preferred: Any, autojump_clock: MockClock) -> None:
    """A ValueError that names the keyword, before a backend is contacted or the id is taken."""
    backend = CHANNELS[0].backend()
    async with open_factory(CHANNELS[0], backend) as (factory, entry):
        keywords = {"session_id": "s"} if way in MADE else {}
        with pytest.raises(ValueError, match="prefer_era="):
            async with open_by(way, factory, [entry], prefer_era=preferred, **keywords):
                raise AssertionError
        assert [] == backend.exchanges
        await (await factory.make_session([], session_id="s")).aclose()
