"""The steps of a close, in detail: promises that only a surviving mutant of `nox -s mutation` showed to be untested."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest
import trio
from support.harness import echo_backend, open_world, slow_backend, state_of
from support.plain_connector import PlainConnector, plain_backends
from support.scripted_storage import ScriptedStorage
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from trio_vmcp import (
    BackendUnavailable,
    FactorySettings,
    LocalStorage,
    SessionClosed,
    SessionState,
    StorageError,
    open_session_factory,
)
from trio_vmcp.testing import Delay, Hang


@pytest.mark.parametrize("attempt", range(7))  # Trio runs the tasks of one round in any order
@pytest.mark.parametrize("restored", [False, True])
async def test_a_close_that_comes_with_the_last_step_of_an_opening(
    restored: bool, attempt: int, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """The factory is left while the row is written: a new session leaves no row, a stored one stays."""
    stored = trio.Event()
    operation = "replace" if restored else "create"

    async def open_it() -> None:
        with suppress(SessionClosed):
            session = await (world.restore_session("s") if restored else world.make_session(session_id="s"))
            await session.aclose()

    async with open_world({"a": echo_backend()}) as world:
        if restored:
            await (await world.make_session(session_id="s")).suspend()
        world.storage.after[operation] = stored.wait
        nursery.start_soon(open_it)
        await wait_all_tasks_blocked()
        world.leaves_rows = world.leaves_sessions = restored
        stored.set()
        if attempt > 0:
            await trio.lowlevel.checkpoint()
    assert int(restored) == len(await world.storage.rows())
    assert int(restored) == len(world["a"].sessions)


async def test_goodbyes_begin_at_half_of_the_teardown(autojump_clock: MockClock) -> None:
    """A caller that shields itself costs the others half of `teardown_timeout`, to the instant."""
    backends = {"a": slow_backend(60, "legacy", "sse"), "b": echo_backend()}

    async def stubborn_call() -> None:
        with pytest.raises(SessionClosed):
            await session.call_tool("a_chat", on_progress=linger)

    async def linger(progress: float, total: float | None, message: str | None) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(30)

    async def chat(arguments: object, context: object) -> str:
        await context.progress(1)  # type: ignore[attr-defined]
        await trio.sleep(60)
        return "done"

    backends["a"].add_tool("chat", chat)
    async with open_world(backends, settings=FactorySettings(drain_timeout=3, teardown_timeout=4)) as world:
        async with trio.open_nursery() as stubborn:
            session = await world.make_session()
            stubborn.start_soon(stubborn_call)
            await wait_all_tasks_blocked()
            await session.aclose()
            assert [3.0 + 4.0 / 2] == [request.received_at for request in backends["b"].received("DELETE")]


async def test_a_connection_that_breaks_during_the_teardown_has_the_rest_of_it(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A shielded caller holds up the goodbyes. A connection that breaks then is closed at once, bounded by the end of
    the teardown, and is not reported.
    """

    async def hold_on() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(30)

    async def crash() -> None:
        await trio.sleep(0.5)
        raise ZeroDivisionError

    connector = PlainConnector(services={"b0": crash}, on_request={"b1": hold_on}, on_close={"b0": trio.sleep_forever})
    limits = FactorySettings(drain_timeout=0, teardown_timeout=2)
    async with open_session_factory(connector=connector, settings=limits) as factory, trio.open_nursery() as nursery:
        session = await factory.make_session(plain_backends(2))
        nursery.start_soon(session.call_tool, "b1_echo")
        await wait_all_tasks_blocked()
        await session.aclose()
        assert 2.0 == trio.current_time()
        nursery.cancel_scope.cancel()
    assert [1, 1] == [len(client.closed) for client in connector.clients.values()]
    assert [] == caplog.messages


async def test_a_suspend_waits_for_its_row_for_a_quarter_of_the_teardown(autojump_clock: MockClock) -> None:
    """A hanging storage delays the goodbyes by exactly that time, and every goodbye is still said."""
    closed_at: list[float] = []

    async def note() -> None:
        await trio.lowlevel.checkpoint()
        closed_at.append(trio.current_time())

    storage = ScriptedStorage()
    connector = PlainConnector(on_connect={"b0": partial(trio.sleep, 2)}, on_close={"b0": note})
    limits = FactorySettings(session_init_timeout=1, teardown_timeout=4)
    async with open_session_factory(connector=connector, storage=storage, settings=limits) as factory:
        session = await factory.make_session(plain_backends(1))
        storage.before["replace"] = trio.sleep_forever
        await trio.sleep(5)  # b0 has joined, and the row does not name it yet
        await session.suspend()
        assert [6.0 + 4.0 / 4] == closed_at


async def test_an_exit_waits_for_its_row_for_a_quarter_of_the_teardown(autojump_clock: MockClock) -> None:
    """A factory that is left deletes the row of its copy first; a hanging storage delays the goodbyes by that time."""
    closed_at: list[float] = []

    async def note() -> None:
        await trio.lowlevel.checkpoint()
        closed_at.append(trio.current_time())

    storage = ScriptedStorage(before={"delete": trio.sleep_forever})
    connector = PlainConnector(on_close={"b0": note})
    limits = FactorySettings(teardown_timeout=4)
    async with open_session_factory(connector=connector, storage=storage, settings=limits) as factory:
        await factory.make_session(plain_backends(1))
    assert [4.0 / 4] == closed_at


async def test_the_row_is_left_alone_once_goodbyes_are_said(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A touch that falls due during a slow goodbye does not happen, and no warning is written."""
    backend = echo_backend()
    backend.fail("DELETE", Delay(1.5))
    async with open_world({"a": backend}, storage=ScriptedStorage(LocalStorage(ttl=3))) as world:
        session = await world.make_session()
        await session.aclose()
        assert 1.5 == trio.current_time()
        assert 0 == world.storage.calls["touch"]
    assert [] == caplog.messages


async def test_a_close_gives_no_more_places_out(autojump_clock: MockClock) -> None:
    """A backend that waits for a place when the session closes is never contacted."""
    connector = PlainConnector(on_connect={"b0": trio.sleep_forever})
    limits = FactorySettings(session_init_timeout=1, max_backend_init_concurrency=1)
    async with open_session_factory(connector=connector, settings=limits) as factory:
        session = await factory.make_session(plain_backends(3))
        await session.aclose()
    assert {"b0": 0.0} == connector.started


async def test_changes_may_be_asked_for_at_every_moment_of_a_close(autojump_clock: MockClock) -> None:
    """Also between the end of the session's tasks and CLOSED: the channel has ended."""

    async def linger() -> None:
        with trio.CancelScope(shield=True):
            await let_go.wait()

    connector = PlainConnector(services={"b0": linger})
    async with open_session_factory(connector=connector) as factory:
        for _ in range(10):  # Trio runs the tasks of one round in any order
            let_go = trio.Event()
            session = await factory.make_session(plain_backends(1))
            with trio.CancelScope() as at_once:
                at_once.cancel()
                await session.aclose()
            await wait_all_tasks_blocked()
            let_go.set()
            while state_of(session) is not SessionState.CLOSED:
                async with session.changes():
                    pass
                await trio.lowlevel.checkpoint()


async def test_asking_for_a_close_from_inside_is_a_checkpoint(autojump_clock: MockClock) -> None:
    """`aclose` inside a call does not wait, but a loop of such calls must not starve other tasks."""
    answered: list[bool] = []

    async def ask() -> None:
        with assert_checkpoints():
            await session.aclose()
        answered.append(True)

    connector = PlainConnector(on_request={"b0": ask})
    async with open_session_factory(connector=connector) as factory:
        session = await factory.make_session(plain_backends(1))
        await session.call_tool("b0_echo")
        await session.aclose()
    assert [True] == answered


@pytest.fixture
def broken_log() -> Iterator[None]:
    """A log filter of the user's raises on every warning."""

    def break_on_warnings(record: logging.LogRecord) -> bool:
        if record.levelno == logging.WARNING:
            raise ZeroDivisionError
        return True

    logger = logging.getLogger("trio_vmcp.session")
    logger.addFilter(break_on_warnings)
    yield
    logger.removeFilter(break_on_warnings)


async def test_an_opening_that_crashes_raises_that(
    autojump_clock: MockClock, broken_log: None, caplog: pytest.LogCaptureFixture
) -> None:
    """SessionClosed; the crash is logged."""
    connector, limits = PlainConnector(on_connect={"b0": trio.sleep_forever}), FactorySettings(session_init_timeout=1)
    async with open_session_factory(connector=connector, settings=limits) as factory:
        with pytest.raises(SessionClosed, match="crashed: see the log"):
            await factory.make_session(plain_backends(1))
    assert any("crashed: ZeroDivisionError" in message for message in caplog.messages)


async def test_an_opening_that_fails_and_then_crashes_raises_the_failure(
    autojump_clock: MockClock, broken_log: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The first error is raised; the crash during the clean-up is logged."""

    async def be_away() -> None:
        await trio.lowlevel.checkpoint()
        raise StorageError("the storage is away")

    storage = ScriptedStorage(before={"create": be_away, "load": be_away})
    async with open_session_factory(connector=PlainConnector(), storage=storage) as factory:
        with pytest.raises(StorageError, match="the storage is away"):
            await factory.make_session(plain_backends(1))
    assert any("crashed: ZeroDivisionError" in message for message in caplog.messages)


class BadStorage(ScriptedStorage):
    """Whose `ttl` is no number from some moment on, which no boundary expects."""

    is_bad = False

    @property
    def ttl(self) -> float:
        return "soon" if self.is_bad else self.inner.ttl  # type: ignore[return-value]  # the point


async def test_a_session_that_crashes_lets_its_waiters_go(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """A call that waits for a new connection ends with the session, and `changes` has ended."""
    backend, storage = echo_backend(), BadStorage(LocalStorage(ttl=30))
    ended: list[BaseException] = []

    async def call() -> None:
        with pytest.raises(BackendUnavailable) as caught:
            await session.call_tool("a_echo", timeout=100)
        ended.append(caught.value)

    async with open_world({"a": backend}, storage=storage) as world:
        world.leaves_rows = True
        session = await world.make_session()
        backend.restart()
        backend.fail("initialize", Hang())
        nursery.start_soon(call)
        await trio.sleep(1)
        assert [] == ended
        storage.is_bad = True
        await trio.sleep(20)
        assert SessionState.CLOSED is session.state
        assert 1 == len(ended)
        async with session.changes() as changes:
            with pytest.raises(trio.EndOfChannel):
                await changes.receive()


async def test_a_removal_ends_with_the_session(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Though the client that is removed shields its goodbye and goes on: `remove_backend` returns."""
    returned: list[float] = []

    async def linger() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(100)

    async def remove() -> None:
        await session.remove_backend("b0")
        returned.append(trio.current_time())

    connector = PlainConnector(on_close={"b0": linger})
    async with open_session_factory(connector=connector) as factory:
        session = await factory.make_session(plain_backends(1))
        nursery.start_soon(remove)
        await wait_all_tasks_blocked()
        await session.aclose()
        closed_at = trio.current_time()
        await wait_all_tasks_blocked()
        assert [closed_at] == returned
        assert closed_at < 10


async def test_a_recovery_that_outlasts_the_drain_gets_its_goodbye_with_the_others(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """The new backend session is ended at the end of the drain, not after other backends have used up the teardown."""
    backends = {"a": echo_backend(), "b": echo_backend()}

    async def call() -> None:
        with pytest.raises(SessionClosed):
            await session.call_tool("a_echo")

    async with open_world(backends) as world:
        session = await world.make_session()
        backends["b"].fail("DELETE", Hang())
        backends["a"].restart()
        backends["a"].fail("notifications/initialized", Hang())  # the id of the new session has been read
        nursery.start_soon(call)
        await trio.sleep(1)
        await session.aclose(drain_timeout=2)
        assert [1.0 + 2.0] == [request.received_at for request in backends["a"].received("DELETE")][-1:]
        world.leaves_sessions = True


@pytest.mark.parametrize("way", ["aclose", "exit"])
async def test_a_connection_that_breaks_in_the_drain_of_a_close_for_good_ends_its_backend_session(
    way: str, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """The row names that backend session, but the row goes, too: no restore would ever end it. Where the factory is
    left, only the row can tell whether another instance has the session by now, so the backend session stays.
    """
    connector = PlainConnector()

    async def crash() -> None:
        await trio.sleep(1)
        raise RuntimeError("planted")

    async def call() -> None:
        await session.call_tool("b1_echo")
        assert [way == "aclose"] == connector.clients["b0"].closed
        assert SessionState.DRAINING is session.state

    connector.services["b0"] = crash
    connector.on_request["b1"] = partial(trio.sleep, 5)
    async with open_session_factory(connector=connector) as factory:
        session = await factory.make_session(plain_backends(2))
        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        if way == "aclose":
            await session.aclose()
