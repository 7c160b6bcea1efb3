"""`ToolResult.backend_state_lost`: what callers are told of a backend session that is gone, whatever noticed it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import attrs
import pytest
import trio
from support.channels import EVERY_LEGACY_CHANNEL, EVERY_MODERN_CHANNEL, Channel
from support.harness import ALICE, echo_backend, open_world, slow_backend
from support.plain_connector import PlainClient, plain_backends
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    Backend,
    BackendRecord,
    BackendRejected,
    BackendState,
    BackendUnavailable,
    EventSink,
    Session,
    open_session_factory,
)
from trio_vmcp._session.session_use import RESTORED, SessionUse, continues
from trio_vmcp.metadata import endpoint_digest
from trio_vmcp.testing import Delay, Error, Fault, Hang, ScriptedBackend, Status

SOON = 5.0  # s: enough for a stream to be opened or refused, and for a handshake


async def lose(backend: ScriptedBackend) -> None:
    """End the backend's sessions while no call runs, and give the session time to notice."""
    backend.crash()
    await trio.sleep(0.1)
    backend.restart()
    await trio.sleep(SOON)


async def told(session: Session, name: str = "b_echo") -> bool:
    return (await session.call_tool(name)).backend_state_lost


# Every channel


@EVERY_LEGACY_CHANNEL
async def test_the_first_answer_after_a_loss_between_calls_says_so(channel: Channel, autojump_clock: MockClock) -> None:
    """A stream or the end of a process was first to notice. The first answer says so, and no later one; each time."""
    backend = channel.backend(listens=True)
    async with channel.open_session(backend) as session:
        await trio.sleep(SOON)
        assert not await told(session)
        for losses in (1, 2):
            await lose(backend)
            assert 1 + losses == len(backend.received("initialize"))
            assert [True, False, False] == [await told(session) for _ in range(3)]


@EVERY_LEGACY_CHANNEL
async def test_a_backend_session_without_calls_is_no_loss(channel: Channel, autojump_clock: MockClock) -> None:
    """No call ever ran in it, so there is nothing to miss."""
    backend = channel.backend(listens=True)
    async with channel.open_session(backend) as session:
        await trio.sleep(SOON)
        await lose(backend)
        await lose(backend)
        assert 3 == len(backend.received("initialize"))
        assert not await told(session)


@EVERY_MODERN_CHANNEL
async def test_the_stateless_era_has_nothing_to_lose(channel: Channel, autojump_clock: MockClock) -> None:
    """Its requests depend on no session."""
    backend = channel.backend(listens=True)
    async with channel.open_session(backend) as session:
        await trio.sleep(SOON)
        assert not await told(session)
        await lose(backend)
        assert not await told(session)


@EVERY_LEGACY_CHANNEL
async def test_losses_that_no_answer_has_told_of_are_told_together(channel: Channel, autojump_clock: MockClock) -> None:
    """Lost twice without a call in between: said once."""
    backend = channel.backend(listens=True)
    async with channel.open_session(backend) as session:
        await trio.sleep(SOON)
        await told(session)
        await lose(backend)
        await lose(backend)
        assert 3 == len(backend.received("initialize"))
        assert [True, False] == [await told(session) for _ in range(2)]


@EVERY_LEGACY_CHANNEL
async def test_calls_that_run_together_are_told_once(channel: Channel, autojump_clock: MockClock) -> None:
    """The news goes with the first of their answers."""
    backend = channel.backend(listens=True)
    async with channel.open_session(backend) as session:
        await trio.sleep(SOON)
        await told(session)
        await lose(backend)
        backend.fail("tools/call", Delay(1), times=2)
        outcomes: list[bool] = []

        async def call() -> None:
            outcomes.append(await told(session))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(call)
        assert [True, False, False, False, False] == outcomes


@EVERY_LEGACY_CHANNEL
async def test_a_call_that_gets_no_result_leaves_the_news(channel: Channel, autojump_clock: MockClock) -> None:
    """Refused, failed and given up: a later answer says it."""
    backend = channel.backend(listens=True)
    async with channel.open_session(backend) as session:
        await trio.sleep(SOON)
        await told(session)
        await lose(backend)
        for code in (-32602, -32603):
            backend.fail("tools/call", Error(code, "no"), times=1)
            with pytest.raises(BackendRejected):
                await told(session)
        backend.fail("tools/call", Hang(), times=1)
        with trio.move_on_after(1):
            await told(session)
        assert [True, False] == [await told(session) for _ in range(2)]


@EVERY_LEGACY_CHANNEL
async def test_an_answer_that_cannot_say_it_leaves_the_news(channel: Channel, autojump_clock: MockClock) -> None:
    """Only the result of a tool call has `backend_state_lost`."""
    backend = channel.backend(listens=True)
    backend.add_resource("file:///x", "text")
    backend.add_prompt("p")
    async with channel.open_session(backend) as session:
        await trio.sleep(SOON)
        await told(session)
        await lose(backend)
        assert "_meta" not in (await session.read_resource("file:///x")).raw
        await session.get_prompt("b_p")
        await session.subscribe_resource("file:///x")
        await session.unsubscribe_resource("file:///x")
        assert [True, False] == [await told(session) for _ in range(2)]


@EVERY_LEGACY_CHANNEL
@pytest.mark.parametrize("fault", [Hang(), Error(-32603, "broke")], ids=repr)
async def test_a_call_without_a_result_counts_as_use(channel: Channel, fault: Fault, autojump_clock: MockClock) -> None:
    """It was given up or broke: it may have run in the session that is lost."""
    backend = channel.backend(listens=True)
    async with channel.open_session(backend) as session:
        await trio.sleep(SOON)
        backend.fail("tools/call", fault, times=1)
        with trio.move_on_after(1), suppress(BackendRejected):
            await told(session)
        await lose(backend)
        assert [True, False] == [await told(session) for _ in range(2)]


@EVERY_LEGACY_CHANNEL
async def test_a_call_that_did_not_run_is_no_use(channel: Channel, autojump_clock: MockClock) -> None:
    """The backend refused its params: the session has nothing to lose."""
    backend = channel.backend(listens=True)
    async with channel.open_session(backend) as session:
        await trio.sleep(SOON)
        backend.fail("tools/call", Error(-32602, "no such thing"), times=1)
        with pytest.raises(BackendRejected):
            await told(session)
        await lose(backend)
        assert not await told(session)


@EVERY_LEGACY_CHANNEL
async def test_the_news_waits_for_a_backend_that_is_away(channel: Channel, autojump_clock: MockClock) -> None:
    """Attempts that fail, and calls that find the backend missing, leave it to the first answer."""
    backend = channel.backend(listens=True)
    async with channel.open_session(backend) as session:
        await trio.sleep(SOON)
        await told(session)
        backend.fail("initialize", Error(-32000, "not yet"))
        await lose(backend)
        with pytest.raises(BackendUnavailable, match="is not connected"):
            await told(session)
        backend.heal()
        await trio.sleep(80)
        assert BackendState.READY is session.backends["b"].state
        assert [True, False] == [await told(session) for _ in range(2)]


# Calls beside it


async def test_a_running_call_counts_as_use_of_the_session_that_it_runs_in(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Its own answer, from the old session, tells nothing; that of the first call in the new session does."""
    backend = slow_backend(30, listens=True)
    answers: list[bool] = []
    async with open_world({"b": backend}) as world, world.open_session() as session:

        async def call() -> None:
            answers.append(await told(session, "b_slow"))

        await trio.sleep(SOON)
        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        backend.restart()
        backend.end_streams()
        await trio.sleep(SOON)
        assert [True, False] == [await told(session) for _ in range(2)]
        await trio.sleep(60)
        assert [False] == answers
        assert not await told(session)


async def test_a_call_that_was_sent_again_counts_as_use_of_the_new_session(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """It met a loss in a session without calls, and runs in the next one when that is lost, too."""
    backend = slow_backend(30, listens=True)
    async with open_world({"b": backend}) as world, world.open_session() as session:
        await trio.sleep(SOON)
        backend.fail("tools/call", Status(404), times=1)
        nursery.start_soon(told, session, "b_slow")
        await trio.sleep(SOON)
        assert 2 == len(backend.received("tools/call"))
        backend.restart()
        backend.end_streams()
        await trio.sleep(SOON)
        assert 3 == len(backend.received("initialize"))
        assert [True, False] == [await told(session) for _ in range(2)]
        await trio.sleep(30)


async def test_calls_that_waited_have_told_it(autojump_clock: MockClock) -> None:
    """A call that was sent again, and one that waited for the new session, both say so; a later one does not."""
    backend = echo_backend()
    async with open_world({"b": backend}) as world, world.open_session() as session:
        assert not await told(session)
        for _ in range(2):
            outcomes: list[bool] = []
            backend.restart()
            backend.fail("initialize", Delay(3), times=1)

            async def call(outcomes: list[bool] = outcomes) -> None:
                outcomes.append(await told(session))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await trio.sleep(1)
                nursery.start_soon(call)
            assert [True, True] == outcomes
            assert not await told(session)


async def test_a_read_that_was_sent_again_leaves_the_news_to_a_tool_call(autojump_clock: MockClock) -> None:
    """The session of earlier tool calls is gone, whatever kind of call has noticed."""
    backend = echo_backend()
    backend.add_resource("file:///x", "text")
    async with open_world({"b": backend}) as world, world.open_session() as session:
        await told(session)
        backend.restart()
        await session.read_resource("file:///x")
        assert 2 == len(backend.received("initialize"))
        assert [True, False] == [await told(session) for _ in range(2)]


@pytest.mark.parametrize("fault", [Status(503), Error(-32001, "Session not found", status=500)], ids=repr)
async def test_a_loss_that_a_call_met_without_being_sent_again(fault: Fault, autojump_clock: MockClock) -> None:
    """It may have run, so it ends with its error; the next answer says that the session of earlier calls is gone."""
    backend = echo_backend()
    async with open_world({"b": backend}) as world, world.open_session() as session:
        await told(session)
        backend.fail("tools/call", fault, times=1)
        with pytest.raises(BackendRejected):
            await told(session)
        await trio.sleep(SOON)
        assert 2 == len(backend.received("initialize"))
        assert [True, False] == [await told(session) for _ in range(2)]


async def test_a_call_that_fails_when_it_is_sent_again_leaves_the_news(autojump_clock: MockClock) -> None:
    """An error cannot say it, so the next result does."""
    backend = echo_backend()
    async with open_world({"b": backend}) as world, world.open_session() as session:
        await told(session)
        backend.restart()
        backend.fail("tools/call", Error(-32602, "no"), skip=1, times=1)
        with pytest.raises(BackendRejected, match="'no'"):
            await told(session)
        assert [True, False] == [await told(session) for _ in range(2)]


async def test_a_loss_that_a_trial_has_met_is_told(autojump_clock: MockClock) -> None:
    """The circuit was open, and the backend was asked without a call."""
    backend = echo_backend()
    async with open_world({"b": backend}) as world, world.open_session() as session:
        await told(session)
        backend.crash()
        for _ in range(5):
            with pytest.raises(BackendUnavailable):
                await told(session)
        backend.restart()
        await trio.sleep(120)
        assert 2 == len(backend.received("initialize"))
        assert BackendState.READY is session.backends["b"].state
        assert [True, False] == [await told(session) for _ in range(2)]


async def test_each_session_hears_of_its_own_loss(autojump_clock: MockClock) -> None:
    """Sessions of several principals at one backend: each is told once, and only one that had calls there."""
    backend = echo_backend(listens=True)
    async with (
        open_world({"b": backend}) as world,
        world.open_session() as one,
        world.open_session(identity=ALICE) as two,
        world.open_session() as idle,
    ):
        await trio.sleep(SOON)
        of_alice = two.as_caller(ALICE)
        await told(one)
        await told(of_alice)
        await lose(backend)
        assert [True, False] == [await told(one) for _ in range(2)]
        assert [True, False] == [await told(of_alice) for _ in range(2)]
        assert not await told(idle)


# Restored sessions


@pytest.mark.parametrize("transport", ["streamable-http", "sse"])
@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_restored_session_tells_of_what_it_could_not_resume(
    transport: str, is_lost: bool, autojump_clock: MockClock
) -> None:
    """A resumed backend session has kept its state. One that is gone has not; nor has HTTP+SSE, which resumes none."""
    backend = echo_backend(transport=transport)
    async with open_world({"b": backend}) as world:
        session = await world.make_session(session_id="one")
        await told(session)
        await session.suspend()
        if is_lost:
            backend.restart()
        async with await world.restore_session("one") as restored:
            expected = is_lost or transport == "sse"
            assert [expected, False] == [await told(restored) for _ in range(2)]
        assert 1 + expected == len(backend.received("initialize"))


async def test_a_server_without_session_ids_loses_nothing(autojump_clock: MockClock) -> None:
    """Over streamable HTTP a server "MAY assign a session ID" (MCP 2025-11-25, transports); this one does not."""
    backend = echo_backend(session_ids=False)
    async with open_world({"b": backend}) as world:
        session = await world.make_session(session_id="one")
        await told(session)
        await session.suspend()
        backend.restart()
        async with await world.restore_session("one") as restored:
            assert not await told(restored)


@EVERY_LEGACY_CHANNEL
async def test_a_restored_session_tells_of_later_losses(channel: Channel, autojump_clock: MockClock) -> None:
    """As one that was opened here does."""
    backend = channel.backend(listens=True)
    async with channel.open_way(backend) as (transport, entry), open_session_factory(transport=transport) as factory:
        session = await factory.make_session([entry], session_id="one")
        await told(session)
        await session.suspend()
        async with await factory.restore_session("one", [entry]) as restored:
            await trio.sleep(SOON)
            is_new = channel.transport != "streamable-http"
            assert [is_new, False] == [await told(restored) for _ in range(2)]
            await lose(backend)
            assert [True, False] == [await told(restored) for _ in range(2)]


@pytest.mark.parametrize("moves", [1, 2])
@pytest.mark.parametrize("is_away", [False, True], ids=["connected", "away"])
async def test_news_that_no_answer_has_told_moves_with_the_session(
    is_away: bool, moves: int, autojump_clock: MockClock
) -> None:
    """Suspended before or after the backend was connected anew, and however often without a call. Told once."""
    backend = echo_backend(listens=True)
    async with open_world({"b": backend}) as world:
        session = await world.make_session(session_id="one")
        await told(session)
        if is_away:
            backend.fail("initialize", Status(503))
        await lose(backend)
        assert (session.backends["b"].state is BackendState.READY) is not is_away
        for _ in range(moves):
            await session.suspend()
            backend.heal()
            session = await world.restore_session("one")
        assert [True, False] == [await told(session) for _ in range(2)]
        await session.suspend()
        async with await world.restore_session("one") as restored:
            assert not await told(restored)


async def test_news_of_a_backend_that_was_not_passed_to_a_restore(autojump_clock: MockClock) -> None:
    """It stays in the row, and is told once the backend is added."""
    backend = echo_backend(listens=True)
    async with open_world({"b": backend}) as world:
        session = await world.make_session(session_id="one")
        await told(session)
        await lose(backend)
        await session.suspend()
        session = await world.factory.restore_session("one", [])
        await session.suspend()
        async with await world.factory.restore_session("one", []) as restored:
            await restored.add_backend(world.configured[0])
            assert [True, False] == [await told(restored) for _ in range(2)]


# A connector of a user's own


@attrs.define(eq=False)
class OwnConnector:
    """Connections with a backend session each, or with one that all resume.

    Attributes:
        resumes: The backend has kept its sessions.
        sinks: The event sink of each connection, in order.
        crash: Set to crash the connection; a new event for each connection.
    """

    resumes: bool = False
    sinks: list[EventSink] = attrs.field(factory=list)
    crash: trio.Event = attrs.field(factory=trio.Event)

    async def __call__(self, backend: Backend, **wanted: Any) -> PlainClient:
        self.sinks.append(wanted["events"])
        resume: BackendRecord | None = wanted["resume"]
        session_id = f"s{len(self.sinks)}" if resume is None or not self.resumes else resume.session_id
        self.crash = trio.Event()
        wanted["nursery"].start_soon(self._serve, self.crash)
        record = BackendRecord(backend.id, session_id, "legacy", "2025-11-25", {"tools": {}}, endpoint_digest(backend))
        return PlainClient(record, {"tools": {}})

    async def _serve(self, crash: trio.Event) -> None:
        await crash.wait()
        raise BackendUnavailable("b0", "has crashed")


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize("reports", [False, True])
async def test_a_connection_of_a_users_own_is_lost(reports: bool, resumes: bool, autojump_clock: MockClock) -> None:
    """It reports the loss, or it crashes. Only after a crash the backend session may be resumed: nothing is lost."""
    connector = OwnConnector(resumes)
    async with open_session_factory(connector=connector) as factory, factory.open_session(plain_backends(1)) as session:
        await told(session, "b0_echo")
        if reports:
            connector.sinks[-1].session_lost(BackendUnavailable("b0", "no longer knows us"))
        else:
            connector.crash.set()
        await trio.sleep(10)
        assert 2 == len(connector.sinks)
        is_lost = reports or not resumes
        assert [is_lost, False] == [await told(session, "b0_echo") for _ in range(2)]


async def test_news_goes_on_with_a_resumed_backend_session(autojump_clock: MockClock) -> None:
    """The session before it was lost, and no answer has said so when its connection crashes."""
    connector = OwnConnector(resumes=True)
    async with open_session_factory(connector=connector) as factory, factory.open_session(plain_backends(1)) as session:
        await told(session, "b0_echo")
        connector.sinks[-1].session_lost(BackendUnavailable("b0", "no longer knows us"))
        await trio.sleep(10)
        connector.crash.set()
        await trio.sleep(10)
        assert 3 == len(connector.sinks)
        assert [True, False] == [await told(session, "b0_echo") for _ in range(2)]


# What a new connection continues

HTTP = Backend("b", url="http://b.test/mcp")
LINES = Backend("b", transport="stdio", command="b")


def record_of(backend: Backend, session_id: str | None = None, era: Any = "legacy") -> BackendRecord:
    return BackendRecord(backend.id, session_id, era, "2025-11-25", {}, endpoint_digest(backend))


@pytest.mark.parametrize(
    ("expected", "backend", "before", "now"),
    [
        (True, HTTP, record_of(HTTP, "s"), record_of(HTTP, "s")),
        (False, HTTP, record_of(HTTP, "s"), record_of(HTTP, "t")),
        (False, HTTP, record_of(HTTP, "s"), record_of(HTTP)),
        (False, HTTP, record_of(HTTP, "s"), record_of(HTTP, era="modern")),
        (True, HTTP, record_of(HTTP), record_of(HTTP, "s")),
        (True, HTTP, record_of(HTTP, era="modern"), record_of(HTTP, "s")),
        (True, LINES, record_of(LINES, era="modern"), record_of(LINES)),
        (False, LINES, record_of(LINES), record_of(LINES)),
        # The url fell back to HTTP+SSE, whose records are of an endpoint of their own.
        (False, HTTP, record_of(attrs.evolve(HTTP, transport="sse")), record_of(attrs.evolve(HTTP, transport="sse"))),
    ],
)
def test_what_a_new_connection_continues(
    expected: bool, backend: Backend, before: BackendRecord, now: BackendRecord
) -> None:
    """A backend session with an id is the same under the same id; one without an id ends with its connection."""
    assert expected is continues(before, now, backend)


def test_the_use_of_a_session_after_a_loss() -> None:
    """A loss is to be told if the session was used, or an earlier loss was not told."""
    assert SessionUse() == SessionUse().after_loss()
    assert SessionUse(is_loss_untold=True) == RESTORED.after_loss() == RESTORED.after_loss().after_loss()
    assert SessionUse(is_loss_untold=True) == SessionUse(is_used=True, is_loss_untold=True).after_loss()
