"""What random histories found, each as the smallest case that shows it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import httpx
import pytest
import trio
from support.harness import PlainConnector, echo_backend, open_world, plain_backends, slow_backend
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    BackendTimeout,
    BackendUnavailable,
    ClientHandlers,
    FactorySettings,
    ServerRequest,
    SessionClosed,
    open_session_factory,
)
from trio_vmcp._client.handlers import Handling
from trio_vmcp._client.notices import Notices
from trio_vmcp._client.server_requests import ServerRequests
from trio_vmcp._protocol.jsonrpc import Request
from trio_vmcp.testing import CallContext, Delay, Drip, Hang, Raw, Status


async def test_waiting_for_the_end_of_a_stream_is_over_with_the_deadline(autojump_clock: MockClock) -> None:
    """An answer that came in time counts, and what its backend still has to send may not take longer than the call."""
    async with open_world({"a": echo_backend(answers="sse")}) as world, world.open_session() as session:
        world["a"].fail("tools/call", Drip(bytes_per_step=64, step_seconds=0.4))
        for _ in range(2):
            began_at = trio.current_time()
            await session.call_tool("a_echo", timeout=1.65)  # the answer is whole after 1.6 s, the stream after 2.0 s
            assert 1.65 == pytest.approx(trio.current_time() - began_at)


async def test_a_scripted_backend_hangs_up_on_a_cancel_in_the_middle_of_its_answer(autojump_clock: MockClock) -> None:
    """Half an answer cannot be taken back: told to while it sent the end of one, a scripted backend broke."""
    async with open_world({"a": echo_backend(answers="sse")}) as world, world.open_session() as session:
        world["a"].fail("tools/call", Drip(bytes_per_step=64, step_seconds=0.4), times=1)
        world["a"].latency = 0.3
        with pytest.raises(BackendTimeout):  # the answer is whole after 1.9 s, the stream after 2.3 s
            await session.call_tool("a_echo", timeout=1.8)
        await session.call_tool("a_echo")
        assert ["cancelled", "answered"] == [exchange.outcome for exchange in world["a"].received("tools/call")]


async def test_an_opening_does_not_wait_for_the_goodbyes_of_an_attempt(autojump_clock: MockClock) -> None:
    """Who has missed its time is told so, and may be slow to hear it: its slot is free, and the opening over."""
    settings = FactorySettings(backend_init_timeout=1.0, max_backend_init_concurrency=1)
    backends = {"a": echo_backend(), "b": echo_backend()}
    for method in ("tools/list", "notifications/cancelled", "DELETE"):
        backends["a"].fail(method, Hang())
    async with open_world(backends, settings=settings) as world:
        world.leaves_sessions = True
        began_at = trio.current_time()
        async with world.open_session() as session:
            assert 1.0 == trio.current_time() - began_at
            assert ["a"] == [failure.backend_id for failure in session.failures]


async def test_a_stored_backend_session_that_is_replaced_gets_its_delete(autojump_clock: MockClock) -> None:
    """HTTP 503 does not say that it is gone, and the row knows only of the one that took its place."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world:
        session = await world.make_session(session_id="kept")
        await session.suspend()
        (stored,) = backend.sessions
        backend.fail("tools/list", Status(503), times=1)
        async with await world.restore_session("kept") as session:
            assert stored != session.backend_sessions["a"]
            await wait_all_tasks_blocked()
            assert [stored] == backend.deleted_sessions


async def test_without_sessions_a_cancel_reaches_nobody_elses_call(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Both clients number their requests alike, and this backend could not tell whose is to be cancelled."""
    backend = slow_backend(seconds=2.0)
    backend.session_ids = False
    async with open_world({"a": backend}) as world, world.open_session() as mine, world.open_session() as another:

        async def call() -> None:
            await another.call_tool("a_slow")

        nursery.start_soon(call)
        with pytest.raises(BackendTimeout):
            await mine.call_tool("a_slow", timeout=1.0)
        await trio.sleep(2.0)
        assert 0 == another.in_flight
        assert [] == backend.received("notifications/cancelled")


async def test_a_recovery_counts_against_the_deadline_of_the_call(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """A call that has to wait for the connection to be made anew has that much less time for its answer."""
    backend = slow_backend(seconds=60.0)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.sessions.clear()
        backend.fail("initialize", Delay(0.6))

        async def notice() -> None:
            await session.call_tool("a_echo")

        nursery.start_soon(notice)
        await wait_all_tasks_blocked()
        began_at = trio.current_time()
        with pytest.raises(BackendTimeout):
            await session.call_tool("a_slow", timeout=1.0)
        assert 1.0 == pytest.approx(trio.current_time() - began_at)


async def test_a_refusal_that_comes_after_a_recovery_has_failed(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Of two calls that hear of a lost session, the second hears of it when all is over: it says what is known."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.sessions.clear()
        backend.fail("tools/call", Delay(1.0), times=1)
        backend.fail("initialize", Status(500))

        async def call() -> None:
            with pytest.raises(BackendUnavailable, match="is not connected: it answered 'initialize' with HTTP 500"):
                await session.call_tool("a_echo")

        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        await call()
        assert 0.0 == trio.current_time()  # and the first one has yet to be refused
        await trio.sleep(2.0)
        assert 0 == session.in_flight


async def test_backends_come_and_go_while_others_still_connect(autojump_clock: MockClock) -> None:
    """Who waits for a slot when the opening ends still has its turn, whatever becomes of the members meanwhile."""
    settings = FactorySettings(max_backend_init_concurrency=1, backend_init_timeout=1.0, session_init_timeout=0.5)
    backends = {"a": echo_backend(), "b": echo_backend(), "c": echo_backend()}
    backends["a"].fail("POST", Hang())
    async with open_world(backends, settings=settings) as world:
        async with world.factory.open_session(world.configured[:2]) as session:
            await session.add_backend(world.configured[2])
            await session.remove_backend("a")
            await trio.sleep(1.0)
            assert ["b_echo", "c_echo"] == [tool.name for tool in session.tools]


async def test_sessions_close_while_a_backend_is_to_be_added_again(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """What is added waits for its predecessor to be gone, and then finds the session closed. Of ten sessions some meet
    the moment in between.
    """
    backend = echo_backend()
    backend.fail("DELETE", Delay(1.0))
    async with open_world({"a": backend}) as world:
        sessions = [await world.make_session() for _ in range(10)]
        for session in sessions:
            nursery.start_soon(session.remove_backend, "a")
        await wait_all_tasks_blocked()
        for session in sessions:
            nursery.start_soon(session.add_backend, world.configured[0])
        await wait_all_tasks_blocked()
        for session in sessions:
            nursery.start_soon(session.aclose)


@pytest.mark.parametrize("moment", range(12))
async def test_a_connection_that_breaks_at_the_end_of_the_drain_is_let_go_of(
    autojump_clock: MockClock, moment: int
) -> None:
    """What ends the last call may be what ends its connection: the client is closed all the same, once."""
    broken = trio.Event()

    async def crash() -> None:
        await trio.sleep(3)
        broken.set()
        for _ in range(moment):
            await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    connector = PlainConnector(services={"b0": crash}, on_request={"b0": broken.wait})
    async with open_session_factory(connector=connector) as factory, trio.open_nursery() as nursery:
        session = await factory.make_session(plain_backends(1))
        nursery.start_soon(session.call_tool, "b0_echo")
        await wait_all_tasks_blocked()
        await session.aclose()
    assert 1 == len(connector.clients["b0"].closed)


async def test_whoever_says_goodbye_first_is_bound_by_the_close(autojump_clock: MockClock) -> None:
    """A connection's own task may be quicker than the session's goodbye to it, and takes no time of its own, even where
    a caller who shields himself has cost half of it already.
    """

    async def hold_on() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(30)

    backends = plain_backends(8)  # for each of them it is chance who is quicker
    connector = PlainConnector(on_close={each.id: trio.sleep_forever for each in backends}, on_request={"b0": hold_on})
    limits = FactorySettings(drain_timeout=0, teardown_timeout=2)
    async with open_session_factory(connector=connector, settings=limits) as factory, trio.open_nursery() as nursery:
        session = await factory.make_session(backends)
        nursery.start_soon(session.call_tool, "b0_echo")
        await wait_all_tasks_blocked()
        began_at = trio.current_time()
        await session.aclose()
        assert 2.0 == trio.current_time() - began_at
        nursery.cancel_scope.cancel()


async def test_a_scripted_backend_takes_a_cancel_in_the_middle_of_raw_bytes(autojump_clock: MockClock) -> None:
    """They are half an answer, too: told to, at whatever moment, it does not try to end them as a stream."""
    backend = echo_backend(answers="sse")
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("tools/call", Raw(head=b""))
        backend.latency = 0.3  # of the answer, and of the notice that it is not wanted

        async def call(scope: trio.CancelScope) -> None:
            with scope, pytest.raises(BackendUnavailable):
                await session.call_tool("a_echo")

        for turns in range(30):
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()
                nursery.start_soon(call, scope)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
            await trio.sleep(1.0)
        assert [] == backend.errors


class SlowToken(httpx.Auth):
    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:  # noqa: ASYNC900  # httpx's interface
        await trio.sleep(2.0)
        yield request  # noqa: ASYNC119  # whoever sends for us closes this generator


async def test_an_answer_over_http_sse_may_take_its_time(autojump_clock: MockClock) -> None:
    """The backend waits for it, so it is not given up as early as a message that nobody waits for."""

    async def ask(arguments: JSON, context: CallContext) -> str:
        return str((await context.elicit("?"))["action"])

    async def accept(request: ServerRequest) -> JSON:
        await trio.lowlevel.checkpoint()
        return {"action": "accept", "content": {}}

    backend = echo_backend(transport="sse")
    backend.add_tool("ask", ask)
    handlers = ClientHandlers(elicitation=accept)
    async with open_world({"a": backend}, handlers=handlers, auth=lambda *_: SlowToken()) as world:
        async with world.open_session() as session:
            result = await session.call_tool("a_ask")
    assert "accept" == result.content[0]["text"]


@pytest.mark.parametrize("moment", range(12))
async def test_a_call_that_is_cut_off_while_its_connection_breaks_ends_in_one_of_both(
    autojump_clock: MockClock, moment: int
) -> None:
    """Its backend cannot be told of that any more, since who would tell it is gone, too."""
    backend = slow_backend()
    backend.transport = "sse"
    async with open_world({"a": backend}) as world, trio.open_nursery() as nursery:
        session = await world.make_session()

        async def call() -> None:
            with pytest.raises((SessionClosed, BackendUnavailable)):
                await session.call_tool("a_slow")

        async def crash() -> None:
            await trio.sleep(1.0)
            for _ in range(moment):
                await trio.lowlevel.checkpoint()
            backend.crash()

        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        nursery.start_soon(crash)
        await session.aclose(drain_timeout=1.0)


async def test_nothing_is_started_for_a_connection_that_has_broken(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A caller may still read its own stream when the tasks of its connection have ended: what comes is dropped."""

    async def never(request: ServerRequest) -> JSON:
        raise AssertionError

    async def send(data: bytes) -> None:
        raise AssertionError

    handling = Handling(ClientHandlers(elicitation=never, log=never), "s", "b")
    async with trio.open_nursery() as nursery:
        requests = ServerRequests(handling, nursery, 1000)
        notices = Notices(nursery=nursery, timeout=1.0)
    requests.take(Request(1, "elicitation/create", {}), None, send)
    requests.take(Request(2, "ping", {}), None, send)
    requests.log({"level": "info", "data": "?"}, None)
    notices.start(trio.sleep_forever)
    await notices.aclose()  # and nothing is waited for
