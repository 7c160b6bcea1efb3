"""What observers are told of sessions, over every channel and in both eras; and that they do no harm."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import attrs
import pytest
import trio
from support.channels import EVERY_CHANNEL, Channel
from support.endpoint import open_endpoint
from support.harness import ALICE, BOB
from support.plain_connector import PlainConnector, plain_backends
from support.scripted_storage import ScriptedStorage
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendError,
    BackendState,
    BackendUnavailable,
    BearerAuth,
    FactorySettings,
    Identity,
    MetadataConflict,
    NilCaller,
    NoBackends,
    Session,
    SessionExists,
    StorageError,
    ToolNotFound,
    UnauthorizedCaller,
    VmcpError,
    open_session_factory,
)
from trio_vmcp import SessionClosed as SessionClosedError
from trio_vmcp._session import observed_calls, observing
from trio_vmcp._session.row_storage import RowStorage
from trio_vmcp.errors import session_tag
from trio_vmcp.observe import (
    BackendStateChanged,
    CallEnded,
    CallStarted,
    Event,
    ListChanged,
    OpeningFailed,
    Recovered,
    SessionClosed,
    SessionOpened,
    StorageFailed,
)
from trio_vmcp.testing import CallContext, Delay, Error, Hang, ScriptedBackend

E = TypeVar("E")


@attrs.define(eq=False)
class Recorder:
    """Keeps each record, and may do something with it."""

    then: Callable[[Event], None] = lambda event: None
    events: list[Event] = attrs.field(factory=list)

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        self.then(event)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]


def raising(error: BaseException, kind: type[Event] | None = None) -> Recorder:
    def then(event: Event) -> None:
        if kind is None or isinstance(event, kind):
            raise error

    return Recorder(then)


@asynccontextmanager
async def open_plain(
    *observers: Recorder, connector: PlainConnector | None = None, backends: int = 1, **options: Any
) -> AsyncIterator[Session]:
    async with (
        open_session_factory(connector=connector or PlainConnector(), observers=observers, **options) as factory,
        factory.open_session(plain_backends(backends)) as session,
    ):
        yield session


def outcomes(recorder: Recorder) -> list[tuple[str, str, str | None]]:
    return [(ended.outcome, ended.name, ended.backend_id) for ended in recorder.of(CallEnded)]


async def hang(arguments: JSON, context: CallContext) -> str:
    await trio.sleep_forever()
    raise AssertionError


def backend_of(channel: Channel) -> ScriptedBackend:
    async def broken(arguments: JSON, context: CallContext) -> str:
        raise ValueError("no such thing")

    backend = channel.backend()
    backend.add_tool("broken", broken)
    backend.add_tool("hang", hang)
    backend.add_resource("file:///x")
    backend.add_prompt("p")
    return backend


# --- sessions and calls


@EVERY_CHANNEL
async def test_a_session_and_its_calls_are_told(channel: Channel, autojump_clock: MockClock) -> None:
    """One record for the opening, two for each call, one for the end, in this order, and all with one tag."""
    recorder = Recorder()
    async with channel.open_session(backend_of(channel), observers=[recorder]) as session:
        tag = session_tag(session.id)
        await session.call_tool("b_echo", {"x": 1})
        await session.read_resource("file:///x")
        await session.get_prompt("b_p")
    calls = [(event.method, event.name) for event in recorder.of(CallStarted)]
    assert [("tools/call", "b_echo"), ("resources/read", "file:///x"), ("prompts/get", "b_p")] == calls
    assert calls == [(event.method, event.name) for event in recorder.of(CallEnded)]
    assert ["ok"] * 3 == [event.outcome for event in recorder.of(CallEnded)]
    assert [event.call for event in recorder.of(CallStarted)] == [event.call for event in recorder.of(CallEnded)]
    assert {"b"} == {event.backend_id for event in recorder.of(CallEnded)}
    assert all(event.may_have_executed and not event.retried for event in recorder.of(CallEnded))
    (opened,), (closed,) = recorder.of(SessionOpened), recorder.of(SessionClosed)
    assert (1, 0, False) == (opened.backends, opened.missing, opened.restored)
    assert "terminated" == closed.how
    assert {tag} == {event.session for event in recorder.events}
    kinds = [type(event) for event in recorder.events if not isinstance(event, BackendStateChanged)]
    assert [SessionOpened, *[CallStarted, CallEnded] * 3, SessionClosed] == kinds


@EVERY_CHANNEL
async def test_every_admitted_call_has_one_end(channel: Channel, autojump_clock: MockClock) -> None:
    """Whatever its outcome; a call that was not admitted is none."""
    recorder = Recorder()
    backend = backend_of(channel)
    async with channel.open_session(
        backend, observers=[recorder], settings=FactorySettings(drain_timeout=1)
    ) as session:
        assert (await session.call_tool("b_broken")).is_error
        with pytest.raises(ToolNotFound):
            await session.call_tool("b_nothing")
        with pytest.raises(BackendError):
            await session.call_tool("b_hang", timeout=3)
        with trio.move_on_after(2):
            await session.call_tool("b_hang")
        backend.fail("tools/call", Error(-32603, "no"), times=1)
        with pytest.raises(BackendError):
            await session.call_tool("b_echo")
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(SessionClosedError):
                    await session.call_tool("b_hang")

            nursery.start_soon(call)
            await wait_all_tasks_blocked()
            await session.aclose()
        with pytest.raises(SessionClosedError):
            await session.call_tool("b_echo")
    assert [
        ("tool_error", "b_broken", "b"),
        ("ToolNotFound", "b_nothing", None),
        ("BackendTimeout", "b_hang", "b"),
        ("cancelled", "b_hang", "b"),
        ("BackendRejected", "b_echo", "b"),
        ("SessionClosed", "b_hang", "b"),
    ] == outcomes(recorder)
    assert Counter({ended.call: 1 for ended in recorder.of(CallStarted)}) == Counter(
        ended.call for ended in recorder.of(CallEnded)
    )
    assert [0, 0, 3, 2, 0, 1] == [round(ended.seconds, 6) for ended in recorder.of(CallEnded)]
    assert [True, False, True, True, True, True] == [ended.may_have_executed for ended in recorder.of(CallEnded)]
    assert isinstance(recorder.events[-1], SessionClosed)


async def test_a_call_that_is_refused_to_its_caller_has_an_end_and_no_start(autojump_clock: MockClock) -> None:
    """No trace of a stranger is begun; the refusal is counted."""
    recorder = Recorder()
    async with open_session_factory(connector=PlainConnector(), observers=[recorder]) as factory:
        session = await factory.make_session(plain_backends(1), identity=ALICE)
        for caller in (None, BOB):
            with pytest.raises(NilCaller if caller is None else UnauthorizedCaller):
                await session.call_tool("b0_echo", caller=caller)
    assert [] == recorder.of(CallStarted)
    assert [("NilCaller", "", None), ("UnauthorizedCaller", "", None)] == outcomes(recorder)


async def test_the_uri_of_a_resource_that_is_not_listed_is_an_argument(autojump_clock: MockClock) -> None:
    """A listed one is shown without userinfo and query."""
    channel = Channel("streamable-http", "modern")
    backend = channel.backend()
    listed = "https://user:CANARY@x.test/a?key=CANARY#CANARY"
    backend.add_resource(listed)
    backend.add_resource_template("memo:///{name}")
    recorder = Recorder()
    async with channel.open_session(backend, observers=[recorder]) as session:
        for uri in (listed, "memo:///CANARY", "nothing:///CANARY"):
            with suppress(Exception):
                await session.read_resource(uri)
        with suppress(Exception):
            await session.complete({"type": "ref/resource", "uri": "memo:///{name}"}, {"name": "name", "value": "CAN"})
    assert ["https://x.test/a", "", "", "memo:///{name}"] == [ended.name for ended in recorder.of(CallEnded)]
    assert "CANARY" not in str(recorder.events)


async def test_the_wait_for_a_place_is_told_apart(autojump_clock: MockClock) -> None:
    """`waiting` is the wait under `max_connections_per_backend`, `at_backend` the rest."""
    channel = Channel("streamable-http", "modern")

    async def slow(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(2)
        return "done"

    backend = channel.backend()
    backend.add_tool("slow", slow)
    recorder = Recorder()
    settings = FactorySettings(max_connections_per_backend=1)
    async with channel.open_session(
        backend, observers=[recorder], settings=settings, configured={"listen": False}
    ) as session:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(session.call_tool, "b_slow")
    assert [(2, 0, 2), (4, 2, 2)] == [
        (round(ended.seconds), round(ended.waiting), round(ended.at_backend)) for ended in recorder.of(CallEnded)
    ]


@pytest.mark.parametrize("was", ["lost", "stopped"])
async def test_the_wait_for_a_new_connection_is_told_apart(was: str, autojump_clock: MockClock) -> None:
    """Of a backend that has lost our session, or that was stopped: `waiting` is the time until it was connected."""
    channel = Channel("streamable-http", "legacy")
    backend = channel.backend()
    recorder = Recorder()
    configured: JSON = {"stop_after": 5 if was == "stopped" else None}
    async with channel.open_session(backend, observers=[recorder], configured=configured) as session:
        await trio.sleep(10)
        if was == "lost":
            backend.restart()
        backend.fail("initialize", Delay(3), times=1)
        await session.call_tool("b_echo")
    (ended,) = recorder.of(CallEnded)
    assert (3, 3, 0) == (round(ended.seconds), round(ended.waiting), round(ended.at_backend))


# --- openings that fail, sessions that come back, the storage


async def test_an_opening_that_fails_is_told_once(autojump_clock: MockClock) -> None:
    """It has neither `SessionOpened` nor `SessionClosed`."""

    async def fail() -> None:
        await trio.sleep(1)
        raise BackendUnavailable("b0", "is not there")

    recorder = Recorder()
    connector = PlainConnector(on_connect={"b0": fail})
    settings = FactorySettings(min_backends=1)
    async with open_session_factory(connector=connector, observers=[recorder], settings=settings) as factory:
        with pytest.raises(NoBackends):
            await factory.make_session(plain_backends(1))
    (failed,) = recorder.of(OpeningFailed)
    assert ("NoBackends", 1.0) == (failed.outcome, failed.seconds)
    assert [] == [*recorder.of(SessionOpened), *recorder.of(SessionClosed)]


async def test_a_cancelled_opening_is_told(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    connector = PlainConnector(on_connect={"b0": trio.sleep_forever})
    async with open_session_factory(connector=connector, observers=[recorder]) as factory:
        with trio.move_on_after(3):
            await factory.make_session(plain_backends(1))
    assert [("SessionClosed", 3.0)] == [(event.outcome, event.seconds) for event in recorder.of(OpeningFailed)]
    assert [] == [*recorder.of(SessionOpened), *recorder.of(SessionClosed)]


async def test_a_session_that_is_suspended_and_restored_keeps_its_tag(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    async with open_session_factory(connector=PlainConnector(), observers=[recorder]) as factory:
        session = await factory.make_session(plain_backends(1))
        await session.suspend()
        session = await factory.restore_session(session.id, plain_backends(1))
        await session.aclose()
    assert [False, True] == [event.restored for event in recorder.of(SessionOpened)]
    assert ["suspended", "terminated"] == [event.how for event in recorder.of(SessionClosed)]
    assert {session_tag(session.id)} == {event.session for event in recorder.events}


async def test_failures_of_the_storage_are_told(autojump_clock: MockClock) -> None:
    """With the operation; that the id is taken is none."""

    async def fail() -> None:
        raise OSError("CANARY")

    storage, recorder = ScriptedStorage(), Recorder()
    async with open_session_factory(storage=storage, connector=PlainConnector(), observers=[recorder]) as factory:
        storage.before["load"] = fail
        with pytest.raises(StorageError):
            await factory.make_session([], session_id="one")
        del storage.before["load"]
        session = await factory.make_session([], session_id="one")
        with pytest.raises(SessionExists):
            await factory.make_session([], session_id="one")
        storage.before["delete"] = fail
        await session.aclose()
    assert ["load", "delete"] == [event.operation for event in recorder.of(StorageFailed)]
    assert {session_tag("one")} == {event.session for event in recorder.of(StorageFailed)}
    assert "CANARY" not in str(recorder.events)


# --- backends


def states(recorder: Recorder) -> list[BackendState]:
    """The states that were told, each with the one before."""
    told = recorder.of(BackendStateChanged)
    assert [event.new for event in told[:-1]] == [event.old for event in told[1:]]
    return [told[0].old, *(event.new for event in told)] if told else []


@EVERY_CHANNEL
async def test_a_backend_that_is_lost_and_back_is_told(channel: Channel, autojump_clock: MockClock) -> None:
    """The states as `session.backends` shows them, and `Recovered` with the length of the outage. What the modern era
    of HTTP loses with a restart is nothing.
    """
    recorder = Recorder()
    async with open_endpoint(channel, observers=[recorder]) as endpoint:
        session = await endpoint.factory.make_session([endpoint.configured(ALICE)])
        assert [BackendState.CONNECTING, BackendState.READY] == states(recorder)
        recorder.events.clear()
        await endpoint.lose(ALICE)
        loses = not (channel.is_modern and channel.transport == "streamable-http")
        if channel.transport == "streamable-http":
            await session.call_tool("b_echo", {})
            (ended,) = recorder.of(CallEnded)
            assert loses == ended.retried
        await trio.sleep(5)
        assert BackendState.READY == session.backends["b"].state
        if not loses:
            assert [] == states(recorder)
            return
        lost, *others = states(recorder)
        assert BackendState.READY == lost == others[-1]
        assert {BackendState.DEGRADED, BackendState.RECOVERING} >= set(others[:-1]) != set()
        (recovered,) = recorder.of(Recovered)
        assert 0 <= recovered.seconds < 5
        last = recorder.of(BackendStateChanged)[-1]
        assert last.since == session.backends["b"].since
        await session.remove_backend("b")
        assert BackendState.REMOVED == states(recorder)[-1]
    assert [] == recorder.of(ListChanged)  # the same lists as before, and then none that anything can be done with


async def test_an_outage_is_as_long_as_the_backend_was_not_ready(autojump_clock: MockClock) -> None:
    """From the call that opens the circuit to the answer that closes it."""
    is_back = trio.Event()
    recorder = Recorder(lambda event: is_back.set() if isinstance(event, Recovered) else None)
    channel = Channel("streamable-http", "modern")
    async with open_endpoint(channel, observers=[recorder]) as endpoint:
        session = await endpoint.factory.make_session([endpoint.configured(ALICE)])
        endpoint.backends[ALICE.subject].crash()
        for _ in range(6):
            with pytest.raises(BackendUnavailable):
                await session.call_tool("b_echo")
        assert [BackendState.CONNECTING, BackendState.READY, BackendState.DEGRADED] == states(recorder)
        lost_at = trio.current_time()
        await trio.sleep(7)
        endpoint.backends[ALICE.subject].restart()
        await is_back.wait()
        (recovered,) = recorder.of(Recovered)
        assert 7 < recovered.seconds == trio.current_time() - lost_at


@EVERY_CHANNEL
async def test_a_backend_that_was_stopped_has_not_recovered(channel: Channel, autojump_clock: MockClock) -> None:
    """Its states are told, and that a call wakes it up is no end of an outage."""
    recorder = Recorder()
    async with channel.open_session(channel.backend(), observers=[recorder], configured={"stop_after": 5}) as session:
        await session.call_tool("b_echo", {})
        await trio.sleep(10)
        await session.call_tool("b_echo", {})
    assert BackendState.STOPPED in states(recorder)
    assert BackendState.READY == states(recorder)[-1]
    assert [] == recorder.of(Recovered)
    assert ["ok", "ok"] == [ended.outcome for ended in recorder.of(CallEnded)]


@EVERY_CHANNEL
async def test_a_list_that_changes_is_told(channel: Channel, autojump_clock: MockClock) -> None:
    """Not for the lists of the opening, and not for a list that is announced and the same."""
    recorder = Recorder()
    backend = backend_of(channel)
    backend.listens = True
    async with channel.open_session(backend, observers=[recorder]) as session:
        await wait_all_tasks_blocked()
        await trio.sleep(1)
        assert [] == recorder.of(ListChanged)
        backend.add_tool("new")
        backend.notify("notifications/tools/list_changed")
        await trio.sleep(5)
        assert "b_new" in [tool.name for tool in session.tools]
    assert [("b", "tools")] == [(event.backend_id, event.kind) for event in recorder.of(ListChanged)]


# --- the trace context


def start_trace(event: Event) -> None:
    if isinstance(event, CallStarted):
        event.trace.clear()
        event.trace.update(traceparent=f"00-{'a' * 32}-{event.call:016x}-01", baggage="CANARY")


@EVERY_CHANNEL
async def test_the_trace_context_of_an_observer_goes_to_the_backend(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """In `_meta` (SEP-414), beside what the caller gave there and in place of the caller's own trace context."""
    recorder = Recorder(start_trace)
    got: list[JSON] = []

    async def look(arguments: JSON, context: CallContext) -> str:
        got.append(context.meta)
        return "seen"

    backend = channel.backend()
    backend.add_tool("look", look)
    async with channel.open_session(backend, observers=[recorder]) as session:
        await session.call_tool("b_look")
        await session.call_tool("b_look", meta={"mine": 1, "traceparent": "00-b", "tracestate": "c=d"})
    for started, meta in zip(recorder.of(CallStarted), got, strict=True):
        assert started.trace["traceparent"] == meta["traceparent"]
        assert {"baggage", "tracestate"} & meta.keys() == set()
    assert 1 == got[1]["mine"]


@EVERY_CHANNEL
async def test_the_callers_trace_context_is_shown_and_sent(channel: Channel, autojump_clock: MockClock) -> None:
    """Of what is in `meta` an observer sees that, and nothing else."""
    recorder = Recorder()
    got: list[JSON] = []

    async def look(arguments: JSON, context: CallContext) -> str:
        got.append(context.meta)
        return "seen"

    backend = channel.backend()
    backend.add_tool("look", look)
    trace = {"traceparent": "00-b", "tracestate": "c=d"}
    async with channel.open_session(backend, observers=[recorder]) as session:
        await session.call_tool("b_look", meta={"mine": "CANARY", **trace})
    (started,) = recorder.of(CallStarted)
    assert trace == started.trace
    assert trace | {"mine": "CANARY"} == {key: got[0].get(key) for key in ("mine", *trace)}


async def test_a_traced_read_finds_what_is_in_the_cache(autojump_clock: MockClock) -> None:
    """The trace context is another in each request: as part of the key, nothing would ever be found."""
    channel = Channel("streamable-http", "modern")
    backend = channel.backend()
    backend.add_resource("file:///x", "text")
    backend.ttl_ms, backend.cache_scope = 60_000, "public"
    async with channel.open_session(backend, observers=[Recorder(start_trace)]) as session:
        for _ in range(3):
            await session.read_resource("file:///x")
    assert 1 == sum(exchange.method == "resources/read" for exchange in backend.exchanges)


# --- observers that fail


@EVERY_CHANNEL
async def test_an_observer_that_raises_costs_itself(
    channel: Channel, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """All else is as without it, another observer included. It is logged once, however often it raises."""
    recorder, broken = Recorder(), raising(ValueError("I am broken"))
    async with channel.open_session(backend_of(channel), observers=[broken, recorder]) as session:
        for _ in range(3):
            assert not (await session.call_tool("b_echo", {})).is_error
    assert broken.events == recorder.events
    assert 3 == len(recorder.of(CallEnded))
    (logged,) = [record for record in caplog.records if "I am broken" in record.getMessage()]
    assert logging.ERROR == logged.levelno


async def test_what_was_being_handled_is_not_in_the_log_of_an_observers_error(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The error of a caller's progress callback may quote anything."""
    channel = Channel("streamable-http", "modern")

    async def progress(arguments: JSON, context: CallContext) -> str:
        await context.progress(1)
        return "done"

    async def quote(progress: float, total: float | None, message: str | None) -> None:
        raise RuntimeError("CANARY")

    backend = channel.backend()
    backend.add_tool("progress", progress)
    async with channel.open_session(backend, observers=[raising(ValueError("broken"), CallEnded)]) as session:
        with pytest.raises(RuntimeError):
            await session.call_tool("b_progress", on_progress=quote)
    assert "broken" in caplog.text
    assert "CANARY" not in caplog.text


KINDS: tuple[type[Event], ...] = (
    SessionOpened,
    SessionClosed,
    BackendStateChanged,
    CallStarted,
    CallEnded,
    ListChanged,
    Recovered,
    StorageFailed,
    OpeningFailed,
)


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_an_exit_comes_out_as_itself(
    kind: type[Event], end: type[BaseException], autojump_clock: MockClock
) -> None:
    """From whatever record it comes; the other observers are told, and the sessions close."""
    recorder, ending = Recorder(), raising(end("now"), kind)
    storage = ScriptedStorage()

    async def fail() -> None:
        raise OSError

    ended = trio.Event()
    lists = [{"name": "echo", "inputSchema": {"type": "object"}}]

    async def lose() -> None:
        if not ended.is_set():
            await ended.wait()
            raise BackendUnavailable("b0", "ended")
        await trio.sleep_forever()

    connector = PlainConnector(services={"b0": lose}, tools=lists)
    settings = FactorySettings(min_backends=0 if kind is not OpeningFailed else 2)

    async def run() -> None:
        async with open_session_factory(
            storage=storage, connector=connector, observers=[ending, recorder], settings=settings
        ) as factory:
            session = await factory.make_session(plain_backends(1))
            await session.call_tool("b0_echo")
            lists.append({"name": "new", "inputSchema": {"type": "object"}})
            ended.set()
            await trio.sleep(10)
            storage.before["touch"] = storage.before["delete"] = fail
            await session.aclose()
            await trio.sleep(1)

    with pytest.raises(end, match="now"):
        await run()
    assert recorder.of(kind)
    assert [True] == connector.clients["b0"].closed  # in order: with its goodbye
    assert len(recorder.of(SessionOpened)) == len(recorder.of(SessionClosed))


# --- no secrets, no cost


@EVERY_CHANNEL
async def test_no_record_holds_a_secret(
    channel: Channel, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a token, a header value, a session id, an argument, a `meta` nor a result, in whatever outcome."""
    caplog.set_level(logging.DEBUG)
    recorder = Recorder()

    async def reveal(arguments: JSON, context: CallContext) -> str:
        return "CANARY-result"

    def whose(backend: Backend, identity: Identity | None) -> str | None:
        return None if identity is None else identity.token

    owner = Identity(issuer="i", subject="alice", token="CANARY-token")
    async with open_endpoint(channel, observers=[recorder, raising(ValueError())], auth=BearerAuth(whose)) as endpoint:
        backend = endpoint.backends["alice"]
        backend.name = "CANARY-backend-session"
        backend.add_tool("reveal", reveal)
        backend.add_resource_template("memo:///{name}")
        where: dict[str, Any] = {"headers": {"X-Who": "alice", "X-Api-Key": "CANARY-header"}}
        if channel.transport == "stdio":
            where = {"env": {"WHO": "alice", "SECRET": "CANARY-env"}}
        session = await endpoint.factory.make_session(
            [endpoint.configured(owner, **where)], identity=owner, session_id="CANARY-session"
        )
        assert () == session.failures
        view = session.as_caller(owner)
        secret: JSON = {"password": "CANARY-argument"}
        for fault in (None, Error(-32603, "no"), Hang()):
            if fault is not None:
                endpoint.fail(owner, fault, times=1)
            for call in (
                partial(view.call_tool, "b_reveal", secret),
                partial(view.read_resource, "memo:///CANARY"),
                partial(view.get_prompt, "b_p", {"x": "CANARY"}),
            ):
                with suppress(VmcpError):
                    await call(meta={"mine": "CANARY-meta"}, timeout=2)
        await endpoint.lose(owner)
        await trio.sleep(5)
        await session.aclose()
    assert {SessionOpened, CallStarted, CallEnded, SessionClosed} <= {type(event) for event in recorder.events}
    assert "CANARY" not in str(recorder.events)
    assert [] == [event for event in recorder.events if pickle.loads(pickle.dumps(event)) != event]
    records = [record for record in caplog.records if record.name.startswith("trio_vmcp")]
    assert [] == [record.getMessage() for record in records if "CANARY" in record.getMessage()]


async def test_without_observers_no_record_is_made(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for a call nor for anything else: that is how an absent observer costs nothing."""
    made: list[str] = []
    for module in (observing, observed_calls):
        for kind in KINDS:
            if hasattr(module, kind.__name__):
                monkeypatch.setattr(module, kind.__name__, lambda **fields: made.append(str(fields)))

    async def fail() -> None:
        raise OSError

    storage = ScriptedStorage()
    async with open_session_factory(connector=PlainConnector(), storage=storage) as factory:
        session = await factory.make_session(plain_backends(1))
        await session.call_tool("b0_echo")
        storage.before["delete"] = fail
        await session.remove_backend("b0")
        await session.aclose()
    assert [] == made


async def test_that_the_row_is_at_another_version_is_no_failure(autojump_clock: MockClock) -> None:
    """Several instances write it."""
    told: list[str] = []

    async def conflict() -> None:
        raise MetadataConflict("one")

    storage = ScriptedStorage(before={"touch": conflict})
    row = RowStorage(storage, 5.0, lambda operation, error: told.append(operation))
    with pytest.raises(MetadataConflict):
        await row.touch("one", expected_version=1)
    assert [] == told


async def test_the_opening_is_told_in_the_context_of_its_opener(autojump_clock: MockClock) -> None:
    """A tracer finds the opener's span there; nothing later is told in that context."""
    current: ContextVar[str] = ContextVar("current", default="nothing")
    seen: list[tuple[type[Event], str]] = []
    recorder = Recorder(lambda event: seen.append((type(event), current.get())))
    async with open_session_factory(connector=PlainConnector(), observers=[recorder]) as factory:
        current.set("opener")
        session = await factory.make_session(plain_backends(1))
        current.set("caller")
        await session.call_tool("b0_echo")
        await session.aclose()
    assert [
        (BackendStateChanged, "nothing"),
        (SessionOpened, "opener"),
        (CallStarted, "caller"),
        (CallEnded, "caller"),
        (SessionClosed, "nothing"),
    ] == seen
