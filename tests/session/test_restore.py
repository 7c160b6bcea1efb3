"""Suspend and restore: a session outlives its process, belongs to one identity, and never lets a name drift."""

from __future__ import annotations

from collections import Counter
from functools import partial

import attrs
import httpx
import pytest
import trio
from support.harness import ALICE, BOB, World, echo_backend, library_tasks, open_world, slow_backend, state_of
from support.plain_connector import PlainConnector, plain_backends
from support.scripted_storage import ScriptedStorage
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    Backend,
    BackendUnavailable,
    Bare,
    DefaultSession,
    FactorySettings,
    FailureReason,
    Identity,
    LocalStorage,
    NilCaller,
    NoBackends,
    NotAuthorized,
    Session,
    SessionClosed,
    SessionExists,
    SessionMetadata,
    SessionNotFound,
    SessionState,
    StorageError,
    ToolNotFound,
    UnauthorizedCaller,
    open_session_factory,
)
from trio_vmcp._http.keep_alive import ASSUMED_EXPIRY
from trio_vmcp.testing import CONNECT, Delay, Error, Hang, Refuse, ScriptedBackend, Status

BOTH_ERAS = pytest.mark.parametrize("era", ["legacy", "modern"])


async def make_and_suspend(world: World, identity: Identity | None = None) -> SessionMetadata:
    session = await world.make_session(session_id="one", identity=identity)
    await session.suspend()
    assert SessionState.CLOSED is session.state
    return session.metadata


# There and back


@BOTH_ERAS
async def test_a_restored_session_is_the_same_session(era: str, autojump_clock: MockClock) -> None:
    """Id, age and backend sessions are kept; a legacy backend session goes on without `initialize`."""
    backend = echo_backend(era)
    async with open_world({"a": backend}) as world:
        stored = await make_and_suspend(world)
        assert [] == library_tasks()
        await trio.sleep(100)
        handshakes = len(backend.received("initialize"))
        session = await world.restore_session("one")
        assert (stored.session_id, stored.created_at) == (session.id, session.created_at)
        assert stored.version + 1 == session.metadata.version
        assert {r.backend_id: r.session_id for r in stored.backends if r.session_id} == session.backend_sessions
        assert ["a_echo"] == [tool.name for tool in session.tools]
        await session.call_tool("a_echo")
        assert handshakes == len(backend.received("initialize"))
        await session.aclose()
        assert [*session.backend_sessions.values()] == [] or [
            *session.backend_sessions.values()
        ] == backend.deleted_sessions


async def test_another_factory_restores_from_the_same_storage(autojump_clock: MockClock) -> None:
    """With the same identity keys; with others, a bound session is SessionNotFound."""
    keys = FactorySettings(identity_keys=(b"key of both",))
    async with open_world({"a": echo_backend()}, settings=keys) as world:
        await make_and_suspend(world, ALICE)
        options = {"storage": world.storage, "transport": world.transport}
        async with open_session_factory(settings=FactorySettings(identity_keys=(b"other",)), **options) as other:  # type: ignore[arg-type]
            with pytest.raises(SessionNotFound):
                await other.restore_session("one", world.configured, identity=ALICE)
        async with open_session_factory(settings=keys, **options) as other:  # type: ignore[arg-type]
            session = await other.restore_session("one", world.configured, identity=ALICE)
            await session.call_tool("a_echo", caller=ALICE)


async def test_leaving_the_factory_may_suspend(autojump_clock: MockClock) -> None:
    """on_exit="suspend": rows and backend sessions stay for another instance."""
    async with open_world({"a": echo_backend()}) as world:
        settings = FactorySettings(on_exit="suspend")
        async with open_session_factory(storage=world.storage, transport=world.transport, settings=settings) as leaving:
            await leaving.make_session(world.configured, session_id="one")
        assert 1 == len(world["a"].sessions)
        restored = await world.restore_session("one")
        await restored.call_tool("a_echo")


async def test_suspend_drains_like_a_close(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Calls in flight end or are cut off; new ones are refused."""
    async with open_world({"a": slow_backend(60)}) as world:

        async def call() -> None:
            with pytest.raises(SessionClosed, match="drain_timeout=4"):
                await session.call_tool("a_slow")

        session = await world.make_session(session_id="one")
        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        await session.suspend(drain_timeout=4)
        assert 4.0 == trio.current_time()
        with pytest.raises(SessionClosed):
            await session.call_tool("a_echo")
        await (await world.restore_session("one")).aclose()


@pytest.mark.parametrize("fate", ["unknown", "terminated", "expired"])
async def test_what_is_not_stored_is_not_found(fate: str, autojump_clock: MockClock) -> None:
    """Unknown, terminated or expired: SessionNotFound, and no backend is contacted."""
    async with open_world({"a": echo_backend()}) as world:
        if fate != "unknown":
            await make_and_suspend(world)
        if fate == "terminated":
            await (await world.restore_session("one")).aclose()
        if fate == "expired":
            await trio.sleep(world.storage.ttl)
            world.leaves_sessions = True
        requests = len(world["a"].exchanges)
        with pytest.raises(SessionNotFound):
            await world.restore_session("one")
        assert requests == len(world["a"].exchanges)


async def test_a_live_session_is_not_restored(autojump_clock: MockClock) -> None:
    """SessionExists, and of several restores at once one wins."""
    async with open_world({"a": echo_backend()}) as world:
        session = await world.make_session(session_id="one")
        with pytest.raises(SessionExists):
            await world.restore_session("one")
        await session.suspend()
        outcomes: list[object] = []

        async def restore() -> None:
            try:
                outcomes.append((await world.restore_session("one")).id)
            except SessionExists:
                outcomes.append("exists")

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(restore)
        assert Counter(["one", "exists", "exists", "exists"]) == Counter(outcomes)
        assert 1 == len(world["a"].received("initialize"))


async def test_a_restore_that_fails_loses_nothing(autojump_clock: MockClock) -> None:
    """Too few backends, or a storage that fails: the stored session stays, and can be restored later."""
    storage = ScriptedStorage()
    async with open_world({"a": echo_backend()}, settings=FactorySettings(min_backends=1), storage=storage) as world:
        stored = await make_and_suspend(world)
        world["a"].fail("POST", Error(-32603, "not now"))
        with pytest.raises(NoBackends):
            await world.restore_session("one")
        world["a"].heal()
        for operation in ("load", "replace"):
            storage.before[operation] = trio.sleep_forever
            with pytest.raises(StorageError, match="storage_timeout"):
                await world.restore_session("one")
            del storage.before[operation]
        assert [stored] == await storage.rows()
        session = await world.restore_session("one")
        await session.call_tool("a_echo")
        assert 1 == len(world["a"].received("initialize"))


# Backends that changed


async def test_a_backend_session_that_is_gone_is_initialized_anew(autojump_clock: MockClock) -> None:
    """404 on the first listing: one new handshake, and the row learns the new id."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world:
        stored = await make_and_suspend(world)
        backend.restart()
        session = await world.restore_session("one")
        assert () == session.failures
        assert stored.backends[0].session_id != session.backend_sessions["a"]
        assert session.metadata.backends[0].session_id == session.backend_sessions["a"]
        await session.call_tool("a_echo")
        assert 2 == len(backend.received("initialize"))


async def test_a_stored_id_is_sent_only_to_its_own_endpoint(autojump_clock: MockClock) -> None:
    """The url changed: a session id is a bearer token of the old endpoint, and is not sent to the new one."""
    elsewhere = ScriptedBackend(name="elsewhere")
    elsewhere.add_tool("echo")
    async with open_world({"a": echo_backend(), "b": elsewhere}) as world:
        async with open_session_factory(
            storage=world.storage, transport=world.transport, settings=FactorySettings(on_exit="suspend")
        ) as first:
            session = await first.make_session(world.configured[:1], session_id="one")
            (secret,) = session.backend_sessions.values()
        moved = attrs.evolve(world.configured[0], url="http://b.test/mcp")
        restored = await world.factory.restore_session("one", [moved])
        await restored.call_tool("a_echo")
        assert 1 == len(elsewhere.received("initialize"))
        assert [] == [e for e in elsewhere.exchanges if secret in str(e.headers.multi_items())]
        world.leaves_sessions = True


async def test_a_member_that_is_not_passed_stays_a_member(autojump_clock: MockClock) -> None:
    """Its names answer BackendUnavailable, its record stays, and a later restore with it connects it."""
    async with open_world({"a": echo_backend(), "b": echo_backend()}) as world:
        stored = await make_and_suspend(world)
        without = await world.factory.restore_session("one", world.configured[:1])
        assert ["a_echo"] == [tool.name for tool in without.tools]
        (failure,) = without.failures
        assert ("b", FailureReason.UNREACHABLE) == (failure.backend_id, failure.reason)
        assert "was not among the backends that the session was restored with" == failure.detail
        with pytest.raises(BackendUnavailable, match="backend 'b' is not connected: it was not among"):
            await without.call_tool("b_echo")
        with pytest.raises(ToolNotFound):
            await without.call_tool("b_other")
        await without.suspend()
        assert stored.backends == without.metadata.backends
        again = await world.restore_session("one")
        await again.call_tool("b_echo")
        assert 1 == len(world["b"].received("initialize"))


async def test_a_backend_that_was_not_stored_joins_as_new(autojump_clock: MockClock) -> None:
    """Restored with one backend more: that one is initialised, gets names, and is written to the row."""
    async with open_world({"a": echo_backend(), "b": echo_backend()}) as world:
        first = await world.factory.make_session(world.configured[:1], session_id="one")
        await first.suspend()
        session = await world.restore_session("one")
        await session.call_tool("b_echo")
        assert ["a", "b"] == [record.backend_id for record in session.metadata.backends]


@BOTH_ERAS
async def test_a_name_is_never_bound_again(era: str, autojump_clock: MockClock) -> None:
    """A's bare name stays A's while A is down at the restore: B, which has the same one, never gets the call."""
    settings = FactorySettings(conflict_resolution=Bare())
    backends = {"a": echo_backend(era), "b": echo_backend(era)}
    async with open_world(backends, settings=settings) as world:
        await make_and_suspend(world)
        backends["a"].fail("POST", Error(-32603, "not now"))
        session = await world.restore_session("one")
        with pytest.raises(BackendUnavailable, match="backend 'a'"):
            await session.call_tool("echo")
        assert 0 == backends["b"].executed["echo"]
        assert [("echo", "a")] == [(conflict.name, conflict.owner) for conflict in session.conflicts]
        assert () == session.tools
        await session.suspend()
        assert {"echo": "a"} == session.metadata.bindings["tools"]
        backends["a"].heal()
        back = await world.restore_session("one")
        assert "a" == (await back.call_tool("echo")).backend_id


# Identities


async def test_another_identity_gets_session_not_found_and_changes_nothing(autojump_clock: MockClock) -> None:
    """The same answer as for an unknown id, before any backend is contacted, and without a touch of the TTL."""
    async with open_world({"a": echo_backend()}) as world:
        stored = await make_and_suspend(world, ALICE)
        requests, calls = len(world["a"].exchanges), Counter(world.storage.calls)
        answers: list[tuple[type, int]] = []
        await trio.sleep(world.storage.ttl - 1)
        for session_id, identity in (("one", BOB), ("one", None), ("unknown", BOB)):
            with pytest.raises(SessionNotFound, match=r"^session #[0-9a-f]{8} is unknown, expired or terminated$") as e:
                await world.restore_session(session_id, identity=identity)
            answers.append((type(e.value), len(str(e.value))))
        assert 1 == len(set(answers))
        assert requests == len(world["a"].exchanges)
        assert Counter(load=3) == world.storage.calls - calls
        assert [stored] == await world.storage.rows()
        await trio.sleep(1)
        assert [] == await world.storage.rows()
        world.leaves_sessions = True


async def test_another_identity_does_not_learn_that_the_session_is_live(autojump_clock: MockClock) -> None:
    """The identity is checked before SessionExists."""
    async with open_world({"a": echo_backend()}) as world:
        session = await world.make_session(session_id="one", identity=ALICE)
        with pytest.raises(SessionNotFound):
            await world.restore_session("one", identity=BOB)
        with pytest.raises(SessionExists):
            await world.restore_session("one", identity=ALICE)
        await session.call_tool("a_echo", caller=ALICE)


async def test_an_anonymous_session_is_not_taken_over(autojump_clock: MockClock) -> None:
    """A session that was opened without an identity is SessionNotFound for any identity."""
    async with open_world({"a": echo_backend()}) as world:
        await make_and_suspend(world)
        with pytest.raises(SessionNotFound):
            await world.restore_session("one", identity=ALICE)
        await (await world.restore_session("one")).aclose()


async def test_the_same_principal_may_come_with_another_token(autojump_clock: MockClock) -> None:
    """Bound to (issuer, subject), never to token bytes."""
    refreshed = attrs.evolve(ALICE, token="refreshed")
    async with open_world({"a": echo_backend()}) as world:
        stored = await make_and_suspend(world, ALICE)
        assert "alice" not in (stored.identity_binding or "")
        session = await world.restore_session("one", identity=refreshed)
        await session.call_tool("a_echo", caller=ALICE)
        await session.call_tool("a_echo", caller=refreshed)


async def test_keys_rotate(autojump_clock: MockClock) -> None:
    """Every key verifies, the first one binds: after a restore the old key may go."""
    storage = ScriptedStorage()
    bindings: list[str | None] = []
    for keys in ((b"old",), (b"new", b"old"), (b"new",)):
        settings = FactorySettings(identity_keys=keys, on_exit="suspend")
        async with open_session_factory(connector=PlainConnector(), storage=storage, settings=settings) as factory:
            if bindings:
                session = await factory.restore_session("one", plain_backends(1), identity=ALICE)
            else:
                session = await factory.make_session(plain_backends(1), identity=ALICE, session_id="one")
            bindings.append(session.metadata.identity_binding)
    assert bindings[0] != bindings[1] == bindings[2]
    async with open_session_factory(storage=storage, settings=FactorySettings(identity_keys=(b"old",))) as factory:
        with pytest.raises(SessionNotFound):
            await factory.restore_session("one", plain_backends(1), identity=ALICE)


async def test_every_call_is_checked(autojump_clock: MockClock) -> None:
    """A bound session requires its caller: None is NilCaller, also for the opener, another identity is
    UnauthorizedCaller, and no backend is contacted.
    """
    async with open_world({"a": echo_backend()}) as world, world.open_session(identity=ALICE) as session:
        requests = len(world["a"].exchanges)
        calls = (
            partial(session.call_tool, "a_echo"),
            partial(session.read_resource, "memo://1"),
            partial(session.get_prompt, "a_greet"),
            partial(session.complete, {}, {}),
        )
        for call in calls:  # before routing: another identity must not learn which names exist
            with pytest.raises(NilCaller, match=r"caller= or use as_caller\(\)"):
                await call()
            with pytest.raises(UnauthorizedCaller):
                await call(caller=BOB)
        assert requests == len(world["a"].exchanges)
        assert ["a_echo"] == [tool.name for tool in session.tools]  # properties are not checked


async def test_an_anonymous_session_takes_no_caller(autojump_clock: MockClock) -> None:
    """Any identity is UnauthorizedCaller."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        with pytest.raises(UnauthorizedCaller):
            await session.call_tool("a_echo", caller=ALICE)
        await session.call_tool("a_echo")


async def test_admission_comes_before_the_caller(autojump_clock: MockClock) -> None:
    """A closed session raises SessionClosed for every caller."""
    async with open_world({"a": echo_backend()}) as world:
        async with world.open_session(identity=ALICE) as session:
            pass
        with pytest.raises(SessionClosed):
            await session.call_tool("a_echo", caller=BOB)


async def test_as_caller_fills_the_caller_in(autojump_clock: MockClock) -> None:
    """A view is the same session; a `caller` given to a call takes the place of the view's."""
    backend = echo_backend(completions={"who": ["Ada"]})
    backend.add_resource("memo://1")
    backend.add_prompt("greet")
    async with open_world({"a": backend}) as world:
        session = await world.make_session(identity=ALICE, session_id="one")
        view: Session = session.as_caller(ALICE)
        assert isinstance(view, DefaultSession)
        await view.call_tool("a_echo")
        await view.read_resource("memo://1")
        await view.get_prompt("a_greet")
        await view.complete({"type": "ref/prompt", "name": "a_greet"}, {"name": "who", "value": ""})
        await view.as_caller(ALICE).call_tool("a_echo", caller=ALICE)
        with pytest.raises(UnauthorizedCaller):
            await view.call_tool("a_echo", caller=BOB)
        with pytest.raises(NilCaller):
            await session.call_tool("a_echo")
        await view.suspend()
        assert SessionState.CLOSED is state_of(session)
        restored = await world.restore_session("one", identity=ALICE)
        await restored.as_caller(ALICE).aclose()
        assert SessionState.CLOSED is state_of(restored)


@pytest.mark.parametrize(
    ("bound_to", "asked_for", "error"),
    [(ALICE, BOB, UnauthorizedCaller), (ALICE, None, NilCaller), (None, ALICE, UnauthorizedCaller)],
)
async def test_a_view_is_for_the_sessions_identity_alone(
    bound_to: Identity | None, asked_for: Identity | None, error: type[NotAuthorized], autojump_clock: MockClock
) -> None:
    """`as_caller` refuses at once, so that no other identity gets hold of what adds, removes and closes."""
    async with open_world({"a": echo_backend()}) as world, world.open_session(identity=bound_to) as session:
        for holder in (session, session.as_caller(bound_to)):
            with pytest.raises(error):
                holder.as_caller(asked_for)
        renewed = bound_to and Identity(issuer=bound_to.issuer, subject=bound_to.subject, token="renewed")
        await session.as_caller(renewed).call_tool("a_echo")


async def test_refused_callers_do_not_reset_the_idle_time(autojump_clock: MockClock) -> None:
    """A call that is refused for its caller is no use of the session."""
    async with open_world({"a": echo_backend()}, settings=FactorySettings(idle_timeout=10)) as world:
        session = await world.make_session(identity=ALICE)
        for _ in range(3):
            await trio.sleep(4)
            with pytest.raises((UnauthorizedCaller, SessionClosed)):
                await session.call_tool("a_echo", caller=BOB)
        assert SessionState.CLOSED is session.state


async def test_credentials_are_asked_for_per_request(autojump_clock: MockClock) -> None:
    """With the caller's identity in a call, and with the one that opened the session for handshake and DELETE."""
    asked: list[str] = []

    def auth(backend: Backend, identity: Identity | None) -> httpx.Auth | None:
        asked.append(identity.token if identity else "-")
        return httpx.BasicAuth("user", identity.token) if identity else None

    backend = echo_backend()
    async with open_world({"a": backend}, auth=auth) as world:
        async with world.open_session(identity=ALICE) as session:
            await session.call_tool("a_echo", caller=attrs.evolve(ALICE, token="refreshed"))
        assert ["alice-token"] * 3 + ["refreshed"] + ["alice-token"] == asked
    sent = [exchange.headers.get("authorization") for exchange in backend.exchanges]
    assert 2 == len(set(sent))
    assert sent[0] == sent[1] == sent[2] == sent[4] != sent[3]


# The row of a live session


async def test_a_live_session_keeps_its_row(autojump_clock: MockClock) -> None:
    """Touched at least every ttl / 3; calls never ask the storage."""
    limits = FactorySettings(idle_timeout=100_000)
    async with open_world({"a": echo_backend()}, settings=limits) as world, world.open_session() as session:
        for _ in range(20):
            await session.call_tool("a_echo")
        assert Counter(create=1) == world.storage.calls
        await trio.sleep(3 * world.storage.ttl + 1)
        assert Counter(create=1, touch=9) == world.storage.calls
        assert [session.metadata] == await world.storage.rows()


async def test_a_row_that_vanished_is_created_anew(autojump_clock: MockClock) -> None:
    """The storage lost the row: the session writes it again, with all changes."""
    storage = ScriptedStorage()
    connector = PlainConnector(on_connect={"b1": partial(trio.sleep, 700)})
    limits = FactorySettings(session_init_timeout=5, backend_init_timeout=1000)
    async with open_session_factory(storage=storage, connector=connector, settings=limits) as factory:
        session = await factory.make_session(plain_backends(2))
        storage.inner = LocalStorage()
        await trio.sleep(650)
        (row,) = await storage.rows()
        assert ["b0"] == [record.backend_id for record in row.backends]
        storage.inner = LocalStorage()
        await trio.sleep(1250 - trio.current_time())
        (row,) = await storage.rows()
        assert ["b0", "b1"] == [record.backend_id for record in row.backends]
        assert session.metadata == row


async def test_a_session_that_was_terminated_elsewhere_closes(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A tombstone in place of its row: another instance terminated the session."""
    async with open_world({"a": echo_backend()}) as world:
        session = await world.make_session()
        await world.storage.inner.delete(session.id)
        await trio.sleep(world.storage.ttl / 3 + 1)
        assert SessionState.CLOSED is session.state
        assert 1 == len(world["a"].deleted_sessions)
    assert 1 == sum("was terminated elsewhere" in message for message in caplog.messages)


async def test_live_sessions_serve_while_the_storage_is_away(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Touching fails or hangs: a warning, calls go on, and the row is kept again once the storage is back."""
    limits = FactorySettings(idle_timeout=100_000)
    storage = ScriptedStorage()
    async with open_world({"a": echo_backend()}, settings=limits, storage=storage) as world:
        async with world.open_session() as session:
            storage.before["touch"] = trio.sleep_forever
            await trio.sleep(610)
            await session.call_tool("a_echo")
            assert 1 == len(caplog.messages)
            assert "the storage did not touch the session within 5.0 s (storage_timeout)" in caplog.messages[0]
            del storage.before["touch"]
            await trio.sleep(10_000)
            assert [session.metadata] == await storage.rows()


async def test_a_change_that_could_not_be_written_is_written_later(autojump_clock: MockClock) -> None:
    """A backend joined while the storage was away: the next write, or the suspend, has it."""
    storage = ScriptedStorage()
    connector = PlainConnector(on_connect={"b1": partial(trio.sleep, 8)})
    limits = FactorySettings(session_init_timeout=5)
    async with open_session_factory(storage=storage, connector=connector, settings=limits) as factory:
        session = await factory.make_session(plain_backends(2), session_id="one")
        storage.before["replace"] = trio.sleep_forever
        await trio.sleep(20)
        assert [1] == [len(row.backends) for row in await storage.rows()]
        del storage.before["replace"]
        await session.suspend()
        assert [2] == [len(row.backends) for row in await storage.rows()]
        await (await factory.restore_session("one", plain_backends(2))).aclose()


async def test_a_suspended_session_says_no_goodbye_to_kept_backend_sessions(autojump_clock: MockClock) -> None:
    """Backend sessions in the row stay; any other gets its DELETE, since no restore could find it."""
    backends = {"a": echo_backend(), "late": echo_backend()}
    backends["late"].fail("tools/list", Hang())
    async with open_world(backends, settings=FactorySettings(session_init_timeout=1)) as world:
        session = await world.make_session(session_id="one")
        await session.suspend()
        assert [] == backends["a"].deleted_sessions
        assert 1 == len(backends["late"].deleted_sessions)
        world.leaves_rows = world.leaves_sessions = True


async def test_a_backend_that_is_down_at_the_restore_keeps_its_session(autojump_clock: MockClock) -> None:
    """Its id stays in the row and works at the next restore."""
    backends = {"a": echo_backend()}
    async with open_world(backends) as world:
        stored = await make_and_suspend(world)
        await trio.sleep(ASSUMED_EXPIRY)  # kept-alive connections would not be refused
        backends["a"].fail(CONNECT, Refuse())
        session = await world.restore_session("one")
        assert [FailureReason.UNREACHABLE] == [failure.reason for failure in session.failures]
        await session.suspend()
        assert stored.backends == session.metadata.backends
        backends["a"].heal()
        session = await world.restore_session("one")
        await session.call_tool("a_echo")
        assert 1 == len(backends["a"].received("initialize"))


async def test_suspend_writes_a_late_joiner_before_closing_it(autojump_clock: MockClock) -> None:
    """However slow the storage: every backend session that the row names is alive."""
    backends = {"a": echo_backend(), "late": echo_backend()}
    backends["late"].fail("tools/list", Delay(2))
    storage = ScriptedStorage()
    async with open_world(backends, settings=FactorySettings(session_init_timeout=1), storage=storage) as world:
        session = await world.make_session()
        storage.before["replace"] = partial(trio.sleep, 0.3)
        async with session.changes() as changes:
            assert "late" == (await changes.receive()).backend_id
            await session.suspend()
        (row,) = await storage.rows()
        assert {"a", "late"} == {record.backend_id for record in row.backends}
        assert [] == backends["late"].deleted_sessions
        world.leaves_rows = world.leaves_sessions = True


async def test_a_pinned_era_wins_over_the_stored_one(autojump_clock: MockClock) -> None:
    """A backend that was stored as legacy and is restored with `era="modern"` is connected as modern."""
    async with open_world({"a": echo_backend("both")}) as world:
        world.leaves_sessions = True  # the legacy session: the modern client cannot resume it
        (backend,) = world.configured
        session = await world.factory.make_session([attrs.evolve(backend, era="legacy")])
        await session.suspend()
        restored = await world.factory.restore_session(session.id, [attrs.evolve(backend, era="modern")])
        assert ["modern"] == [record.era for record in restored.metadata.backends]
        await restored.aclose()


async def test_a_write_whose_answer_was_lost_is_no_conflict(autojump_clock: MockClock) -> None:
    """After a StorageError the row may have been written all the same: the next write goes on from that version."""
    storage = ScriptedStorage()
    late, later = echo_backend(), echo_backend()
    late.fail("initialize", Delay(2), times=1)
    later.fail("initialize", Delay(4), times=1)

    async def lose_the_answer() -> None:
        del storage.after["replace"]
        raise StorageError("the connection broke")

    storage.after["replace"] = lose_the_answer
    backends = {"a": echo_backend(), "late": late, "later": later}
    settings = FactorySettings(session_init_timeout=1)
    async with open_world(backends, storage=storage, settings=settings) as world, world.open_session() as session:
        await trio.sleep(5)
        (row,) = await storage.rows()
        assert ["a", "late", "later"] == [record.backend_id for record in row.backends]
        assert row == session.metadata


async def test_a_stored_backend_session_that_is_replaced_gets_its_delete(autojump_clock: MockClock) -> None:
    """HTTP 503 does not say that the stored session is gone. After a new `initialize` the row names only the new one,
    so the old one is DELETEd.
    """
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
