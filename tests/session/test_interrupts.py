"""KeyboardInterrupt and SystemExit come out as themselves, out of every place where the library calls code of the
user's; and a real Ctrl-C is kept away from the library's tasks.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import attrs
import httpx
import pytest
import trio
from support.channels import EVERY_CHANNEL, EVERY_LEGACY_CHANNEL, Channel
from support.harness import library_tasks
from support.plain_connector import PlainConnector, PropertyConnector, plain_backends
from support.processes import PYTHON_OPTIONS, Children
from support.scripted_storage import ScriptedStorage
from trio.testing import MockClock

import trio_vmcp
from trio_vmcp import (
    JSON,
    Backend,
    BackendUnavailable,
    ClientHandlers,
    FactorySettings,
    Identity,
    LocalStorage,
    ServerRequest,
    Session,
    open_session_factory,
)
from trio_vmcp._interrupts import closed_in_order, exit_in, plain_exit, run_interruptible
from trio_vmcp._nursery import start_task
from trio_vmcp.testing import CallContext, ScriptedBackend, open_memory_network

SETTINGS = FactorySettings()
BOUND = SETTINGS.drain_timeout + SETTINGS.teardown_timeout

both_exits = pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=["ctrl-c", "sys.exit"])


@attrs.define(eq=False)
class Trap:
    """Raises `error` once: the first time that it is stepped on while it is set."""

    error: BaseException
    is_set: bool = True
    sprung_at: float | None = None

    def step(self) -> None:
        if self.is_set and self.sprung_at is None:
            self.sprung_at = trio.current_time()
            raise self.error

    async def astep(self) -> None:
        await trio.lowlevel.checkpoint()
        self.step()


async def comes_out(trap: Trap, program: Callable[[], Awaitable[object]]) -> None:
    """The program ends with this very error, within the bounds of a close, and nothing of it is left. A scope of the
    user's around it that was cancelled swallows no stray Cancelled.
    """

    async def in_a_scope() -> None:
        with trio.CancelScope() as scope:
            try:
                await program()
            finally:
                scope.cancel()

    with pytest.raises(type(trap.error)) as caught:
        await in_a_scope()
    assert trap.error is caught.value
    assert trap.sprung_at is not None
    assert trio.current_time() <= trap.sprung_at + BOUND
    assert [] == library_tasks()


async def comes_out_of_session(
    trap: Trap,
    channel: Channel,
    backend: ScriptedBackend,
    body: Callable[[Session], Awaitable[object]],
    **options: Any,
) -> None:
    """Likewise, of a session over one backend."""

    async def program() -> None:
        async with (
            open_session_factory(transport=transport, **options) as factory,
            factory.open_session([configured]) as session,
        ):
            await body(session)

    async with channel.open_way(backend) as (transport, configured):
        await comes_out(trap, program)


async def rest() -> None:
    """What the body of a program does while something else fails."""
    await trio.sleep(3600)


# --- code of the user's: a connector and its client


@attrs.define(eq=False)
class Plain:
    """A program over a connector of the user's. The scripts raise."""

    trap: Trap
    connector: PlainConnector = attrs.field(factory=PlainConnector)
    storage: ScriptedStorage = attrs.field(factory=lambda: ScriptedStorage(LocalStorage(ttl=30)))
    backends: list[Backend] = attrs.field(factory=lambda: plain_backends(2))

    async def run(self, body: Callable[[Plain, Session], Awaitable[object]]) -> None:
        async with (
            open_session_factory(connector=self.connector, storage=self.storage) as factory,
            factory.open_session(self.backends) as session,
        ):
            await body(self, session)


PlainPlace: TypeAlias = Callable[[Plain], Awaitable[None]]
PLAIN_PLACES: dict[str, PlainPlace] = {}


def plain_place(function: PlainPlace) -> PlainPlace:
    PLAIN_PLACES[function.__name__] = function
    return function


async def resting(plain: Plain, session: Session) -> None:
    await rest()


async def calling(plain: Plain, session: Session) -> None:
    await session.call_tool("b0_echo")


async def telling(plain: Plain, session: Session) -> None:
    with pytest.raises(type(plain.trap.error)) as caught:
        await session.set_log_level("error")
    assert plain.trap.error is caught.value  # as itself, in the caller's task
    raise caught.value


async def leaving(plain: Plain, session: Session) -> None:
    pass


def leaving_after(seconds: float) -> Callable[[Plain, Session], Awaitable[object]]:
    async def body(plain: Plain, session: Session) -> None:
        await trio.sleep(seconds)

    return body


async def suspending(plain: Plain, session: Session) -> None:
    await session.suspend()


async def adding(plain: Plain, session: Session) -> None:
    await session.add_backend(Backend(id="more", url="http://more.test/mcp"))
    await rest()


async def removing(plain: Plain, session: Session) -> None:
    await session.remove_backend("b0")
    await rest()


@plain_place
async def the_connector_while_opening(plain: Plain) -> None:
    plain.connector.on_connect["b0"] = plain.trap.astep
    await plain.run(resting)


@plain_place
async def the_connector_of_a_backend_that_is_added(plain: Plain) -> None:
    plain.connector.on_connect["more"] = plain.trap.astep
    await plain.run(adding)


@plain_place
async def the_connector_while_it_connects_anew(plain: Plain) -> None:
    async def broken() -> None:
        await trio.sleep(5)
        raise OSError

    async def connect() -> None:
        plain.trap.is_set = "b0" in plain.connector.clients
        await plain.trap.astep()

    plain.connector.services["b0"], plain.connector.on_connect["b0"] = broken, connect
    await plain.run(resting)


@plain_place
async def a_task_of_the_connector(plain: Plain) -> None:
    async def live() -> None:
        await trio.sleep(5)
        plain.trap.step()

    plain.connector.services["b0"] = live
    await plain.run(resting)


@plain_place
async def a_task_of_the_connector_beside_a_call(plain: Plain) -> None:
    async def live() -> None:
        await trio.sleep(5)
        plain.trap.step()

    plain.connector.services["b0"], plain.connector.on_request["b0"] = live, trio.sleep_forever
    await plain.run(calling)


@plain_place
async def a_request_of_the_client(plain: Plain) -> None:
    plain.connector.on_request["b0"] = plain.trap.astep
    await plain.run(calling)


@plain_place
async def a_message_to_all_backends(plain: Plain) -> None:
    plain.connector.capabilities, plain.connector.on_request["b0"] = {"tools": {}, "logging": {}}, plain.trap.astep
    await plain.run(telling)


@plain_place
async def a_goodbye_of_the_client(plain: Plain) -> None:
    finished: list[str] = []

    async def take_long() -> None:
        await trio.sleep(1)
        finished.append("b1")

    plain.connector.on_close |= {"b0": plain.trap.astep, "b1": take_long}
    try:
        await plain.run(leaving)
    finally:
        assert ["b1"] == finished


@plain_place
async def a_goodbye_of_a_backend_that_is_removed(plain: Plain) -> None:
    plain.connector.on_close["b0"] = plain.trap.astep
    await plain.run(removing)


# --- a storage of the user's


@plain_place
async def the_storage_creates(plain: Plain) -> None:
    plain.storage.before["create"] = plain.trap.astep
    await plain.run(resting)


@plain_place
async def the_storage_has_created(plain: Plain) -> None:
    plain.storage.after["create"] = plain.trap.astep
    await plain.run(resting)


@plain_place
async def the_storage_touches(plain: Plain) -> None:
    plain.storage.before["touch"] = plain.trap.astep
    await plain.run(resting)


@plain_place
async def the_storage_replaces(plain: Plain) -> None:
    plain.storage.before["replace"] = plain.trap.astep
    await plain.run(adding)


@plain_place
async def the_storage_replaces_at_the_end(plain: Plain) -> None:
    async def change_and_suspend(plain: Plain, session: Session) -> None:
        plain.trap.is_set = False
        await session.add_backend(Backend(id="more", url="http://more.test/mcp"))
        await trio.sleep(0.5)  # the row is being written
        plain.trap.is_set = True
        await session.suspend()

    async def be_slow() -> None:
        await trio.sleep(0 if plain.trap.is_set else 1)
        plain.trap.step()

    plain.storage.before["replace"] = be_slow
    await plain.run(change_and_suspend)


@plain_place
async def the_storage_unwinds_from_a_cancel(plain: Plain) -> None:
    async def hold() -> None:
        try:
            await trio.sleep_forever()
        finally:
            plain.trap.step()

    plain.storage.before["touch"] = hold
    await plain.run(leaving_after(11))


@plain_place
async def the_storage_when_it_was_left_behind(plain: Plain) -> None:
    async def be_deaf() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(6)  # over storage_timeout
        plain.trap.step()

    plain.storage.before["touch"] = be_deaf
    await plain.run(leaving_after(17))


@plain_place
async def the_storage_deletes(plain: Plain) -> None:
    plain.storage.before["delete"] = plain.trap.astep
    await plain.run(leaving)


@plain_place
async def the_storage_loads(plain: Plain) -> None:
    plain.storage.before["load"] = plain.trap.astep
    async with open_session_factory(connector=plain.connector, storage=plain.storage) as factory:
        session = await factory.make_session(plain.backends)
        await session.suspend()
        await factory.restore_session(session.id, plain.backends)
        await rest()


KEEP_THE_ROW = ("the_storage_loads", "the_storage_replaces_at_the_end")


@both_exits
@pytest.mark.parametrize("place", PLAIN_PLACES)
async def test_out_of_a_connector_or_storage_of_the_users(
    place: str, error: BaseException, autojump_clock: MockClock
) -> None:
    """Wherever it is raised, in a task of the session's or in the caller's. The session closes in order, as at a cancel
    from outside: each client is closed once, and the row is deleted, or kept by a suspend.
    """
    plain = Plain(Trap(error))
    await comes_out(plain.trap, lambda: PLAIN_PLACES[place](plain))
    assert dict.fromkeys(plain.connector.clients, 1) == {
        name: len(client.closed) for name, client in plain.connector.clients.items()
    }
    assert int(place in KEEP_THE_ROW) == len(await plain.storage.rows())


@attrs.define(eq=False)
class Counted:
    """Steps on the trap at one of its steps.

    Attributes:
        at: The number of that step; the first is 1.
        steps: So many there were.
    """

    trap: Trap
    at: int
    steps: int = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.at:
            self.trap.step()


async def go_through_everything(connector: PropertyConnector, *, suspends: bool) -> None:
    """Open, call, lose the backend session, change a list, call again, and close."""
    async with (
        open_session_factory(connector=connector) as factory,
        factory.open_session(plain_backends(1)) as session,
    ):
        await session.call_tool("b0_echo")
        assert "b0" in session.backends
        connector.sinks[-1].session_lost(BackendUnavailable("b0", "no longer knows us"))
        await trio.sleep(5)
        connector.sinks[-1]("notifications/tools/list_changed", {})
        await trio.sleep(5)
        await session.call_tool("b0_echo")
        if suspends:
            await session.suspend()


@both_exits
@pytest.mark.parametrize("suspends", [False, True], ids=["close", "suspend"])
@pytest.mark.parametrize("name", ["record", "server_capabilities"])
async def test_out_of_an_attribute_of_a_client(
    name: str, suspends: bool, error: BaseException, autojump_clock: MockClock
) -> None:
    """At each time that the session reads it. Every client is closed."""
    everything = Counted(Trap(error), 0)
    await go_through_everything(PropertyConnector(name, everything.step), suspends=suspends)
    assert everything.steps >= 3
    for at in range(1, everything.steps + 1):
        trap = Trap(error)
        connector = PropertyConnector(name, Counted(trap, at).step)
        await comes_out(trap, partial(go_through_everything, connector, suspends=suspends))
        assert [1] == [len(client.closed) for client in connector.inner.clients.values()], at


# --- code of the user's that the built-in client calls


class Signing(httpx.Auth):
    """Steps on the trap in the flow for one request."""

    def __init__(self, trap: Trap) -> None:
        self.trap = trap

    async def async_auth_flow(self, request: httpx.Request) -> Any:  # noqa: ASYNC900  # httpx's interface
        await self.trap.astep()
        yield request


# A stateless backend and one of HTTP+SSE are sent no goodbye, and the stream of the latter is its connection.
CREDENTIALS = [
    *((Channel("streamable-http", "legacy"), moment) for moment in ("opening", "calling", "hearing", "leaving")),
    *((Channel("streamable-http", "modern"), moment) for moment in ("opening", "calling", "hearing")),
    *((Channel("sse", "legacy"), moment) for moment in ("opening", "calling")),
]


async def go_through(session: Session, backend: ScriptedBackend, trap: Trap, moment: str) -> None:
    """Set the trap at the moment, if it is later than the opening."""
    if moment == "calling":
        trap.is_set = True
        await session.call_tool("b_echo")
    elif moment == "hearing":
        await trio.sleep(1)
        trap.is_set = True
        backend.end_streams()  # the next one carries credentials, too
        await rest()
    trap.is_set = True


@both_exits
@pytest.mark.parametrize(("channel", "moment"), CREDENTIALS, ids=str)
@pytest.mark.parametrize("in_flow", [False, True], ids=["auth", "flow"])
async def test_out_of_credentials(
    channel: Channel, in_flow: bool, moment: str, error: BaseException, autojump_clock: MockClock
) -> None:
    """`auth` is asked for every HTTP request: in the caller's task, in one of the session's, and at the goodbye."""
    trap, backend = Trap(error, is_set=moment == "opening"), channel.backend(listens=True)

    def auth(backend: Backend, identity: Identity | None) -> httpx.Auth | None:
        if in_flow:
            return Signing(trap)
        trap.step()
        return None

    async def body(session: Session) -> None:
        await go_through(session, backend, trap, moment)

    await comes_out_of_session(trap, channel, backend, body, auth=auth)


@attrs.define(eq=False)
class TrappedTransport(httpx.AsyncBaseTransport):
    inner: httpx.AsyncBaseTransport
    trap: Trap

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await self.trap.astep()
        return await self.inner.handle_async_request(request)


@both_exits
@pytest.mark.parametrize("moment", ["opening", "calling", "leaving"])
async def test_out_of_a_transport(moment: str, error: BaseException, autojump_clock: MockClock) -> None:
    """A transport of the user's, at each moment that it is used."""
    trap, backend = Trap(error, is_set=moment == "opening"), Channel("streamable-http", "legacy").backend()

    async def program(transport: TrappedTransport, url: str) -> None:
        async with (
            open_session_factory(transport=transport) as factory,
            factory.open_session([Backend(id="b", url=url)]) as session,
        ):
            await go_through(session, backend, trap, moment)

    async with open_memory_network() as network:
        url = network.attach("b.test", backend)
        async with network.transport() as inner:
            await comes_out(trap, lambda: program(TrappedTransport(inner, trap), url))


@EVERY_CHANNEL
@both_exits
async def test_out_of_a_progress_callback(channel: Channel, error: BaseException, autojump_clock: MockClock) -> None:
    """It runs in the caller's task."""
    trap, backend = Trap(error), channel.backend()

    async def steps(arguments: JSON, context: CallContext) -> str:
        await context.progress(1, 2)
        await trio.sleep(3600)
        return "done"

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        await trap.astep()

    backend.add_tool("steps", steps)

    async def body(session: Session) -> None:
        await session.call_tool("b_steps", on_progress=on_progress)

    await comes_out_of_session(trap, channel, backend, body)


@EVERY_CHANNEL
@both_exits
async def test_out_of_a_handler(channel: Channel, error: BaseException, autojump_clock: MockClock) -> None:
    """In the handshake era it runs in a task of the session's, in the stateless era in one of the call's."""
    trap, backend = Trap(error), channel.backend()

    async def ask(arguments: JSON, context: CallContext) -> str:
        await context.elicit("sure?")
        return "done"

    async def elicitation(request: ServerRequest) -> JSON:
        await trap.astep()
        return {"action": "decline"}

    async def body(session: Session) -> None:
        await session.call_tool("b_ask")

    backend.add_tool("ask", ask)
    await comes_out_of_session(trap, channel, backend, body, handlers=ClientHandlers(elicitation=elicitation))


@EVERY_LEGACY_CHANNEL
@both_exits
async def test_out_of_a_log_handler(channel: Channel, error: BaseException, autojump_clock: MockClock) -> None:
    """It runs in a task of the session's."""
    trap, backend = Trap(error), channel.backend()

    async def say(arguments: JSON, context: CallContext) -> str:
        await context.notify("notifications/message", {"level": "info", "data": "x"})
        return "said"

    async def log(request: ServerRequest) -> None:
        await trap.astep()

    async def body(session: Session) -> None:
        await session.call_tool("b_say")
        await rest()

    backend.add_tool("say", say)
    await comes_out_of_session(trap, channel, backend, body, handlers=ClientHandlers(log=log))


# --- the body


@both_exits
@pytest.mark.parametrize("drain_timeout", [SETTINGS.drain_timeout, math.inf])
@pytest.mark.parametrize("way", ["make", "open"])
async def test_out_of_the_body(
    way: str, error: BaseException, drain_timeout: float, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Calls of other tasks have the drain of a cancel, and not `math.inf`: the program ends."""
    trap, connector = Trap(error), PlainConnector(on_request={"b0": trio.sleep_forever})
    settings = FactorySettings(drain_timeout=drain_timeout)

    async def body(session: Session) -> None:
        nursery.start_soon(_call_to_its_end, session)
        await trio.sleep(1)
        trap.step()

    async def program() -> None:
        async with open_session_factory(connector=connector, settings=settings) as factory:
            if way == "make":
                await body(await factory.make_session(plain_backends(1)))
            else:
                async with factory.open_session(plain_backends(1)) as session:
                    await body(session)

    await comes_out(trap, program)


async def _call_to_its_end(session: Session) -> None:
    with pytest.raises(trio_vmcp.SessionClosed):
        await session.call_tool("b0_echo")


@both_exits
async def test_it_wins_over_an_error_of_the_body(error: BaseException, autojump_clock: MockClock) -> None:
    """The body has failed already, and the goodbye of its session raises."""
    plain = Plain(Trap(error))

    async def fail(plain: Plain, session: Session) -> None:
        raise KeyError

    async def program() -> None:
        plain.connector.on_close["b0"] = plain.trap.astep
        await plain.run(fail)

    await comes_out(plain.trap, program)


class OwnerOfTasks:
    async def close(self, *, is_exit: bool) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()


@pytest.mark.parametrize("body", ["rests", "has its own nursery", "is cancelled", "raises"])
def test_a_crash_of_an_own_task_is_not_swallowed(body: str) -> None:
    """It cancels the block, and comes out in place of that cancellation, also when the block is cancelled from outside
    by then. An error of the block comes out as itself.
    """  # not a task of pytest-trio, which takes a stray Cancelled for the end of the test

    async def crash() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        raise LookupError("a bug")

    def make(nursery: trio.Nursery) -> OwnerOfTasks:
        start_task(nursery, crash)
        return OwnerOfTasks()

    async def main() -> None:
        with trio.move_on_after(1 if body == "is cancelled" else 10):
            await rest()

    async def rest() -> None:
        async with closed_in_order(make):
            if body == "raises":
                with trio.CancelScope(shield=True):
                    await trio.sleep(3)
                raise OSError("of the block")
            if body == "has its own nursery":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)
                    await trio.sleep_forever()
            await trio.sleep_forever()

    crashed = pytest.RaisesGroup(pytest.RaisesExc(LookupError, match="a bug"))
    with pytest.raises(OSError, match="of the block") if body == "raises" else crashed:
        trio.run(main, clock=MockClock(autojump_threshold=0))


def test_what_ends_the_program_is_found_in_a_group() -> None:
    """Errors and cancellations are not; an error beside it keeps the group."""
    stop, error = KeyboardInterrupt(), ValueError()
    mixed = BaseExceptionGroup("", [error, BaseExceptionGroup("", [GeneratorExit(), stop])])
    assert (stop, None, None) == (exit_in(mixed), exit_in(ExceptionGroup("", [error])), exit_in(None))
    assert mixed is plain_exit(mixed)
    assert stop is plain_exit(BaseExceptionGroup("", [GeneratorExit(), stop]))


# --- a real Ctrl-C


@EVERY_CHANNEL
async def test_no_task_of_the_library_is_struck(channel: Channel, autojump_clock: MockClock) -> None:
    """Trio gives it to the main task instead, at its next checkpoint: Trio says so of every task of a live session."""
    backend = channel.backend(listens=True)
    backend.add_resource("memo://one")
    async with channel.open_session(backend) as session, session.changes():
        await session.call_tool("b_echo")
        unprotected = {task.name for task in _tasks_of_the_library() if not _is_protected(task)}
    assert set() == unprotected


def _tasks_of_the_library() -> Iterator[trio.lowlevel.Task]:
    names = set(library_tasks())
    root = trio.lowlevel.current_root_task()
    assert root is not None
    waiting = [root]
    while waiting:
        task = waiting.pop()
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        if task.name in names:
            yield task


def _is_protected(task: trio.lowlevel.Task) -> bool:
    return "_run_protected" == getattr(task.coro, "__name__", "")


async def test_what_a_started_task_runs_is_protected(nursery: trio.Nursery) -> None:
    """With what it calls; but not a handler or progress callback, which may compute for ever."""
    found: list[bool] = []

    async def look() -> None:
        found.append(trio.lowlevel.currently_ki_protected())

    async def run() -> None:
        await look()
        await run_interruptible(look)

    async with trio.open_nursery() as tasks:
        start_task(tasks, run)
    assert [True, False] == found


@pytest.mark.parametrize("moment", ["opening", "open"])
def test_a_ctrl_c_leaves_no_process(moment: str) -> None:
    """A real process and a real signal: the server sends one when it starts, or one comes while the session is open."""
    children = Children()
    configured = children.backend()
    if moment == "opening":
        code = "import os, signal, sys; os.kill(os.getppid(), signal.SIGINT); sys.stdin.read()"
        configured = attrs.evolve(configured, args=(*PYTHON_OPTIONS, "-c", code))

    async def program() -> None:
        async with open_session_factory() as factory, factory.open_session([configured]):
            assert moment == "open"
            signal.raise_signal(signal.SIGINT)
            await rest()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            trio.run(program)
        assert [] == children.alive()
    finally:
        signal.signal(signal.SIGINT, before)
        children.kill_all()
