"""Handlers in a session: which session and caller they are told, what they may call, and how a close ends them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
from support.harness import ALICE, echo_backend, open_world, state_of
from support.plain_connector import PlainConnector, plain_backends
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    ClientHandlers,
    FactorySettings,
    ServerRequest,
    Session,
    SessionClosed,
    SessionState,
    open_session_factory,
)
from trio_vmcp.testing import CallContext, ScriptedBackend

ACCEPT: JSON = {"action": "accept", "content": {}}
ONE_CONNECTION = FactorySettings(max_connections_per_backend=1)

both_eras = pytest.mark.parametrize("era", ["legacy", "modern"])


def asking_backend(era: str) -> ScriptedBackend:
    """Beside "echo" a tool "ask", which asks the user."""

    async def ask(arguments: JSON, context: CallContext) -> str:
        return str((await context.elicit("?"))["action"])

    backend = echo_backend(era, "sse")
    backend.add_tool("ask", ask)
    return backend


class User:
    """The handlers of a factory; its sessions are made later.

    Attributes:
        session: The session that handlers use.
        act: Run before each answer.
    """

    session: Session

    def __init__(self) -> None:
        self.asked: list[ServerRequest] = []
        self.acted = 0
        self.act: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint

    async def answer(self, request: ServerRequest) -> JSON:
        self.asked.append(request)
        await self.act()
        self.acted += 1
        return ACCEPT

    def world(self, backends: dict[str, ScriptedBackend], **options: Any) -> Any:
        handlers = ClientHandlers(elicitation=self.answer, log=self.answer)
        return open_world(backends, handlers=handlers, **options)


def text_of(result: Any) -> str:
    return str(result.content[0]["text"])


@both_eras
async def test_a_handler_is_told_its_session_and_caller(autojump_clock: MockClock, era: str) -> None:
    """Two sessions of one factory share the handlers; the caller of an anonymous session is None."""
    user = User()
    async with user.world({"a": asking_backend(era)}) as world:
        async with world.open_session(identity=ALICE) as hers, world.open_session() as nobodys:
            assert "accept" == text_of(await hers.call_tool("a_ask", caller=ALICE))
            assert "accept" == text_of(await nobodys.call_tool("a_ask"))
            expected = [(hers.id, "a", ALICE), (nobodys.id, "a", None)]
    assert expected == [(asked.session_id, asked.backend_id, asked.caller) for asked in user.asked]


async def test_a_connector_of_ones_own_is_called_as_ever(autojump_clock: MockClock) -> None:
    """A user's connector is called without the handlers: it has its own access to them."""
    connector = PlainConnector()
    async with (
        open_session_factory(connector=connector, handlers=ClientHandlers(roots=User().answer)) as factory,
        factory.open_session(plain_backends(1)) as session,
    ):
        assert ["b0_echo"] == [tool.name for tool in session.tools]


@both_eras
@pytest.mark.parametrize("how", ["aclose", "suspend"])
async def test_a_handler_may_close_its_session(autojump_clock: MockClock, era: str, how: str) -> None:
    """`aclose` in a handler only requests the close and returns: the call that waits for the handler is drained."""
    user = User()
    async with user.world({"a": asking_backend(era)}) as world:
        world.leaves_rows = world.leaves_sessions = how == "suspend"
        user.session = session = await world.make_session()
        user.act = getattr(session, how)
        started = trio.current_time()
        assert "accept" == text_of(await session.call_tool("a_ask"))
        with pytest.raises(SessionClosed):
            await session.call_tool("a_echo")
        await session.aclose()
        assert 0 == trio.current_time() - started
        assert SessionState.CLOSED is state_of(session)
    assert 1 == user.acted


@both_eras
async def test_a_task_that_a_handler_started_waits_for_the_close(autojump_clock: MockClock, era: str) -> None:
    """A task that the handler started is no part of the call, so it may wait for the close."""
    user, states = User(), []

    async def later() -> None:
        await trio.sleep(5)
        await user.session.aclose()
        states.append(state_of(user.session))

    async with trio.open_nursery() as nursery:

        async def start() -> None:
            nursery.start_soon(later)

        user.act = start
        async with user.world({"a": asking_backend(era)}) as world:
            user.session = await world.make_session()
            await user.session.call_tool("a_ask")
            await trio.sleep(10)
    assert [SessionState.CLOSED] == states


async def test_a_handler_outside_of_a_call_may_close_its_session(autojump_clock: MockClock) -> None:
    """A log message belongs to no call; the close, once requested, ends its handler."""
    user = User()

    async def says(arguments: JSON, context: CallContext) -> str:
        await context.notify("notifications/message", {"level": "info", "data": "x"})
        return "said"

    backend = echo_backend("legacy", "sse")
    backend.add_tool("says", says)

    async def close_later() -> None:
        await trio.sleep(1)
        started = trio.current_time()
        await user.session.aclose()
        assert 0 == trio.current_time() - started
        closed.set()

    closed = trio.Event()
    user.act = close_later
    async with user.world({"a": backend}) as world:
        user.session = await world.make_session()
        await user.session.call_tool("a_says")
        await closed.wait()
        await user.session.aclose()


@both_eras
async def test_a_handler_may_call_its_own_backend_at_the_limit(autojump_clock: MockClock, era: str) -> None:
    """With a limit of one connection, a call in a handler does not wait for the connection that the handler's answer
    would free.
    """
    user = User()
    user.act = lambda: user.session.call_tool("a_echo")
    async with user.world({"a": asking_backend(era)}, settings=ONE_CONNECTION) as world:
        async with world.open_session() as user.session:
            started = trio.current_time()
            assert "accept" == text_of(await user.session.call_tool("a_ask"))
            assert 0 == trio.current_time() - started
    assert {"ask": 1, "echo": 1} == world["a"].executed


@pytest.mark.parametrize("outer", ["legacy", "modern"])
@pytest.mark.parametrize("inner", ["legacy", "modern"])
async def test_handlers_within_handlers_wait_for_no_connection(
    autojump_clock: MockClock, outer: str, inner: str
) -> None:
    """A asks, the handler calls B, which asks, and that handler calls A and closes: one connection each is enough."""
    user = User()

    async def act() -> None:
        if user.asked[-1].backend_id == "a":
            await user.session.call_tool("b_ask")
        else:
            await user.session.call_tool("a_echo")
            await user.session.aclose()

    user.act = act
    async with user.world({"a": asking_backend(outer), "b": asking_backend(inner)}, settings=ONE_CONNECTION) as world:
        user.session = await world.make_session()
        started = trio.current_time()
        assert "accept" == text_of(await user.session.call_tool("a_ask"))
        await user.session.aclose()
        assert 0 == trio.current_time() - started
    assert 2 == user.acted


@both_eras
async def test_a_handler_deep_in_anothers_session_may_close_the_outer_one(autojump_clock: MockClock, era: str) -> None:
    """The outer call waits for the handler of the inner session, so `aclose` of the outer session must not
    wait there.
    """
    user = User()
    async with user.world({"a": asking_backend(era)}) as world:
        outer, inner = await world.make_session(), await world.make_session()

        async def act() -> None:
            if user.asked[-1].session_id == outer.id:
                await inner.call_tool("a_ask")
            else:
                await outer.aclose()

        user.act = act
        started = trio.current_time()
        await outer.call_tool("a_ask")
        await outer.aclose()
        await inner.aclose()
        assert 0 == trio.current_time() - started
    assert 2 == user.acted


@both_eras
async def test_a_close_waits_for_a_call_that_waits_for_its_user(autojump_clock: MockClock, era: str) -> None:
    """The answer reaches the backend while the session drains."""
    user = User()
    user.act = partial(trio.sleep, 5)
    async with user.world({"a": asking_backend(era)}) as world:
        session = await world.make_session()
        async with trio.open_nursery() as nursery:
            results: list[str] = []

            async def ask() -> None:
                results.append(text_of(await session.call_tool("a_ask")))

            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            started = trio.current_time()
            await session.aclose()
            assert 5 == trio.current_time() - started
        assert ["accept"] == results


@both_eras
async def test_a_cut_off_call_takes_its_handler_along(autojump_clock: MockClock, era: str) -> None:
    """The handler ends with its call after `drain_timeout`, and the error says that the call may have run."""
    user = User()
    user.act = trio.sleep_forever
    async with user.world({"a": asking_backend(era)}) as world:
        session = await world.make_session()

        async def ask() -> None:
            with pytest.raises(SessionClosed, match="drain_timeout=3") as caught:
                await session.call_tool("a_ask")
            assert caught.value.may_have_executed

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            started = trio.current_time()
            await session.aclose(drain_timeout=3)
            assert 3 == trio.current_time() - started
    assert 0 == user.acted


@pytest.mark.parametrize("session_ids", [True, False])
@both_eras
async def test_cancelling_the_callers_scope_ends_the_handler(
    autojump_clock: MockClock, era: str, session_ids: bool
) -> None:
    """The handler ends at once, and the session and its other calls go on, also if the backend gave out no
    session id.
    """
    user = User()
    ended = trio.Event()

    async def act() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    user.act = act
    backend = asking_backend(era)
    backend.session_ids = session_ids
    async with user.world({"a": backend}) as world, world.open_session() as session:
        with trio.move_on_after(2):
            await session.call_tool("a_ask")
        with trio.fail_after(0.5):
            await ended.wait()
        await session.call_tool("a_echo")


async def test_a_crash_in_a_handler_costs_its_answer_alone(autojump_clock: MockClock) -> None:
    """An exception in a handler is an error answer: the backend stays connected, and other calls go on."""
    user = User()

    async def crash() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 5)
            raise RuntimeError

    user.act = crash
    backends = {"a": asking_backend("legacy"), "b": asking_backend("modern")}
    async with user.world(backends) as world, world.open_session() as session:
        for name in ("a_ask", "b_ask"):
            with pytest.raises(Exception, match="failed"):
                await session.call_tool(name)
        user.act = trio.lowlevel.checkpoint
        for name in ("a_ask", "b_ask"):
            assert "accept" == text_of(await session.call_tool(name))
        assert () == session.failures


async def test_no_session_id_is_shown() -> None:
    """A request that is logged shows no session id, which is a bearer token."""
    assert "secret" not in repr(ServerRequest("secret", "a", ALICE, {}))


def test_handlers_can_be_given_by_position() -> None:
    """`ClientHandlers(sampling, elicitation, roots, log)`, the order of the documented signature."""

    async def sample(request: object) -> object:
        return request

    assert ClientHandlers(sampling=sample) == ClientHandlers(sample)
