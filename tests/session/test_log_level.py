"""`Session.set_log_level`: which log messages the backends of a session send."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from support.channels import EVERY_CHANNEL, EVERY_LEGACY_CHANNEL, EVERY_MODERN_CHANNEL, Channel
from support.harness import ALICE, BOB, echo_backend, open_world
from support.plain_connector import PlainConnector, plain_backends
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    BearerAuth,
    ClientHandlers,
    FactorySettings,
    ManagerSettings,
    NilCaller,
    ServerRequest,
    Session,
    SessionClosed,
    UnauthorizedCaller,
    open_session_factory,
    open_session_manager,
)
from trio_vmcp._session.log_levels import PATIENCE
from trio_vmcp.testing import CallContext, Delay, Error, Hang, Rewrite, ScriptedBackend, Status

LEVEL = "io.modelcontextprotocol/logLevel"
LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
LOGS: JSON = {"tools": {}, "logging": {}}
SET = "logging/setLevel"


async def hear(request: ServerRequest) -> None:
    await trio.lowlevel.checkpoint()


def logging_backend(channel: Channel) -> ScriptedBackend:
    return channel.backend(capabilities=LOGS)


async def level_of(channel: Channel, session: Session, backend: ScriptedBackend, backend_id: str = "b") -> str | None:
    """What the backend would send of its log in a call that is made now; None: it was told nothing."""
    await session.call_tool(f"{backend_id}_echo")
    await wait_all_tasks_blocked()
    latest = backend.received("tools/call")[-1]
    if channel.is_modern:
        return latest.meta.get(LEVEL)
    return backend.log_levels.get(latest.session_id)


@EVERY_CHANNEL
@pytest.mark.parametrize("level", LEVELS)
async def test_backends_are_told_the_level(channel: Channel, level: str, autojump_clock: MockClock) -> None:
    """In the handshake era with one request, in the stateless era with each from now on; also the next level."""
    backend = logging_backend(channel)
    async with channel.open_session(backend) as session:
        assert await level_of(channel, session, backend) is None
        await session.set_log_level(level)
        assert level == await level_of(channel, session, backend)
        await session.set_log_level("notice")
        assert "notice" == await level_of(channel, session, backend)
    assert not (channel.is_modern and backend.received(SET))


@EVERY_CHANNEL
@pytest.mark.parametrize("level", [None, "debug"])
async def test_a_session_wakes_with_its_level(channel: Channel, level: str | None, autojump_clock: MockClock) -> None:
    """A session that hibernates is the same for its caller afterwards, on backends that know no session, too."""
    backend = logging_backend(channel)
    limits = ManagerSettings(hibernate_after=60)
    async with (
        channel.open_way(backend) as (transport, entry),
        open_session_factory(transport=transport) as factory,
        open_session_manager(factory, [entry], settings=limits) as manager,
    ):
        session = await manager.create()
        if level is not None:
            await session.set_log_level(level)
        for _ in range(2):
            await trio.sleep(100)
            assert 1 == manager.statistics.hibernated
            session = await manager.get(session.id)
            assert level == await level_of(channel, session, backend)


@EVERY_CHANNEL
async def test_messages_of_the_level_reach_the_handler(channel: Channel, autojump_clock: MockClock) -> None:
    """The level wins over the "info" that a log handler asks backends of the stateless era for."""
    heard: list[Any] = []

    async def note(request: ServerRequest) -> None:
        heard.append(request.params["data"])

    async def talk(arguments: JSON, context: CallContext) -> str:
        wanted = context.meta.get(LEVEL) or next(iter(backend.log_levels.values()), "info")
        for level in LEVELS[LEVELS.index(wanted) :]:
            await context.notify("notifications/message", {"level": level, "data": level})
        return "done"

    backend = logging_backend(channel)
    backend.add_tool("talk", talk)
    async with channel.open_session(backend, handlers=ClientHandlers(log=note)) as session:
        for level in (None, "critical", "debug"):
            if level is not None:
                await session.set_log_level(level)
            await session.call_tool("b_talk")
            await wait_all_tasks_blocked()
    assert [*LEVELS[1:], *LEVELS[5:], *LEVELS] == heard


@EVERY_MODERN_CHANNEL
async def test_the_level_of_one_call_wins_for_that_call(channel: Channel, autojump_clock: MockClock) -> None:
    """`log_level=`; the next call has the session's again."""
    backend = logging_backend(channel)
    async with channel.open_session(backend) as session:
        await session.set_log_level("error")
        await session.call_tool("b_echo", log_level="debug")
        await session.call_tool("b_echo")
    assert ["debug", "error"] == [exchange.meta[LEVEL] for exchange in backend.received("tools/call")]


@EVERY_CHANNEL
@pytest.mark.parametrize("capabilities", [{"tools": {}}, {"tools": {}, "logging": None}], ids=["absent", "null"])
async def test_a_backend_that_does_not_log_is_not_told(
    channel: Channel, capabilities: JSON, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """ "Use only negotiated capabilities" (2025-11-25, lifecycle), without a warning."""
    backend = channel.backend(capabilities=capabilities)
    async with channel.open_session(backend, handlers=ClientHandlers(log=hear)) as session:
        await session.set_log_level("debug")
        assert ("info" if channel.is_modern else None) == await level_of(channel, session, backend)
    assert [] == backend.received(SET)
    assert "log level" not in caplog.text


@EVERY_CHANNEL
async def test_backends_that_come_later_are_told(
    channel: Channel, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is added, and one that is connected again."""
    backend = logging_backend(channel)
    async with (
        channel.open_way(backend) as (transport, entry),
        open_session_factory(transport=transport) as factory,
        factory.open_session([entry]) as session,
    ):
        await session.set_log_level("debug")
        await session.add_backend(attrs.evolve(entry, id="c"))
        assert "debug" == await level_of(channel, session, backend, "c")
        backend.log_levels.clear()
        backend.crash()
        await trio.sleep(1)
        backend.restart()
        await trio.sleep(10)
        for backend_id in ("b", "c"):
            await session.call_tool(f"{backend_id}_echo")  # finds the backend session lost
            assert "debug" == await level_of(channel, session, backend, backend_id)
    assert "log level" not in caplog.text


@EVERY_CHANNEL
async def test_a_stopped_backend_is_told_when_it_is_used_again(channel: Channel, autojump_clock: MockClock) -> None:
    """The level alone does not connect it."""
    backend = logging_backend(channel)
    async with channel.open_session(backend, configured={"stop_after": 5.0}) as session:
        await trio.sleep(6)
        seen = len(backend.exchanges)
        await session.set_log_level("error")
        assert seen == len(backend.exchanges)
        assert "error" == await level_of(channel, session, backend)


@EVERY_CHANNEL
async def test_a_level_that_is_set_while_a_backend_connects(channel: Channel, autojump_clock: MockClock) -> None:
    """The backend is told once it has joined, if not before."""
    backend = logging_backend(channel)
    backend.fail("tools/list", Delay(5))
    async with (
        channel.open_way(backend) as (transport, entry),
        open_session_factory(transport=transport) as factory,
        factory.open_session([]) as session,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(session.add_backend, entry)
        await trio.sleep(1)
        await session.set_log_level("alert")
        await trio.sleep(9)
        assert "alert" == await level_of(channel, session, backend)


REFUSALS: dict[str, Any] = {
    "error": Error(-32603, "no"),
    "no such method": Error(-32601, "no"),
    "hangs": Hang(),
    "server error": Status(500),
}


@EVERY_LEGACY_CHANNEL
@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_refusal_costs_a_warning(
    channel: Channel, refusal: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Within the time of a call; the other backend is told at once, and the level is set where it can be."""
    if refusal == "server error" and channel.transport == "stdio":
        refusal = "error"  # there is no status
    backend = logging_backend(channel)
    configured = {"request_timeout": 3.0}
    async with (
        channel.open_way(backend, configured) as (transport, entry),
        open_session_factory(transport=transport) as factory,
        factory.open_session([entry, attrs.evolve(entry, id="c")]) as session,
    ):
        backend.fail(SET, REFUSALS[refusal], times=1)
        began = trio.current_time()
        await session.set_log_level("debug")
        assert trio.current_time() - began == (3 if refusal == "hangs" else 0)
        told = [await level_of(channel, session, backend, backend_id) for backend_id in ("b", "c")]
        assert {"debug", None} == set(told)
        (warning,) = [record.message for record in caplog.records if "log level" in record.message]
        assert "'debug'" in warning
        await session.set_log_level("debug")  # once more: to the one that was not told
        assert ["debug"] * 2 == [await level_of(channel, session, backend, each) for each in ("b", "c")]


@EVERY_LEGACY_CHANNEL
async def test_a_backend_that_does_not_answer_joins_all_the_same(
    channel: Channel, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is waited for before its first call, though not for long."""
    backend = logging_backend(channel)
    backend.fail(SET, Hang())
    async with (
        channel.open_way(backend, {"request_timeout": 3.0}) as (transport, entry),
        open_session_factory(transport=transport) as factory,
        factory.open_session([]) as session,
    ):
        await session.set_log_level("debug")
        began = trio.current_time()
        await session.add_backend(entry)
        assert PATIENCE == trio.current_time() - began
        await session.call_tool("b_echo")
        assert "log level" not in caplog.text
        await trio.sleep(3)
        assert "'debug': it did not answer 'logging/setLevel' within 3.0 s (Backend.request_timeout)" in caplog.text


@EVERY_LEGACY_CHANNEL
async def test_of_two_levels_the_later_one_stays(channel: Channel, autojump_clock: MockClock) -> None:
    """Two requests at once could arrive in either order."""
    backend = logging_backend(channel)
    async with channel.open_session(backend) as session, trio.open_nursery() as nursery:
        backend.fail(SET, Delay(5), times=1)
        nursery.start_soon(session.set_log_level, "debug")
        await wait_all_tasks_blocked()
        await session.set_log_level("error")
        await trio.sleep(10)
        assert "error" == await level_of(channel, session, backend)


@EVERY_LEGACY_CHANNEL
async def test_a_level_whose_fate_is_unknown_is_set_again(channel: Channel, autojump_clock: MockClock) -> None:
    """A backend may have taken a level that it has refused: the level before is sent once more."""

    def refuse(answer: JSON) -> JSON:
        return {"jsonrpc": "2.0", "id": answer["id"], "error": {"code": -32603, "message": "taken all the same"}}

    backend = logging_backend(channel)
    async with channel.open_session(backend) as session:
        await session.set_log_level("info")
        backend.fail(SET, Rewrite(refuse), times=1)
        await session.set_log_level("debug")
        await session.set_log_level("info")
        assert "info" == await level_of(channel, session, backend)


@EVERY_CHANNEL
@pytest.mark.parametrize("level", ["warn", "INFO", "", None, 3, ["info"], "trace"])
async def test_no_other_level_is_taken(channel: Channel, level: Any, autojump_clock: MockClock) -> None:
    """A ValueError that names the eight, and nothing is sent."""
    backend = logging_backend(channel)
    async with channel.open_session(backend) as session:
        with pytest.raises(ValueError, match=r"level=.*debug, info, notice"):
            await session.set_log_level(level)
        assert await level_of(channel, session, backend) is None


# Who may, and when


@asynccontextmanager
async def alices_session(era: str) -> AsyncIterator[tuple[Session, ScriptedBackend]]:
    backend = echo_backend(era, capabilities=LOGS)
    auth = BearerAuth(lambda backend, caller: caller.token if caller else None)
    async with open_world({"b": backend}, auth=auth) as world, world.open_session(identity=ALICE) as session:
        yield session, backend


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_stranger_sets_no_level(era: str, autojump_clock: MockClock) -> None:
    """Checked as for a call; nothing is sent, and no connection later has the level."""
    async with alices_session(era) as (session, backend):
        with pytest.raises(NilCaller):
            await session.set_log_level("debug")
        for act in (session.set_log_level, session.as_caller(ALICE).set_log_level):
            with pytest.raises(UnauthorizedCaller):
                await act("debug", caller=BOB)
        await session.call_tool("b_echo", caller=ALICE)
        assert [None] == [exchange.meta.get(LEVEL) for exchange in backend.received("tools/call")]
        assert {} == backend.log_levels


async def test_the_level_is_set_with_the_credentials_of_the_caller(autojump_clock: MockClock) -> None:
    """Through a view, and by the keyword."""
    async with alices_session("legacy") as (session, backend):
        later = attrs.evolve(ALICE, token="later")
        await session.set_log_level("debug", caller=ALICE)
        await session.as_caller(later).set_log_level("info")
    told = [exchange.headers["authorization"] for exchange in backend.received(SET)]
    assert ["Bearer alice-token", "Bearer later"] == told


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_closed_session_takes_no_level(era: str, autojump_clock: MockClock) -> None:
    """As every call; one that is under way is drained, and cut off in the end."""
    backend = echo_backend(era, capabilities=LOGS)
    async with open_world({"b": backend}, settings=FactorySettings(drain_timeout=2)) as world:
        session = await world.make_session()
        async with trio.open_nursery() as nursery:
            if era == "legacy":
                backend.fail(SET, Hang())

                async def set_level() -> None:
                    with pytest.raises(SessionClosed):
                        await session.set_log_level("debug")

                nursery.start_soon(set_level)
                await wait_all_tasks_blocked()
                assert 1 == session.in_flight
            began = trio.current_time()
            await session.aclose()
            assert (2 if era == "legacy" else 0) == trio.current_time() - began
        with pytest.raises(SessionClosed):
            await session.set_log_level("debug")


async def test_setting_a_level_is_use(autojump_clock: MockClock) -> None:
    """The idle timeout begins anew."""
    async with open_world({"b": echo_backend()}, settings=FactorySettings(idle_timeout=10)) as world:
        session = await world.make_session()
        await trio.sleep(8)
        await session.set_log_level("debug")
        await trio.sleep(8)
        await session.call_tool("b_echo")
        await session.aclose()


@pytest.mark.parametrize("crash", [RuntimeError("boom"), KeyError()])
async def test_a_client_of_ones_own_is_told_like_any_other(
    crash: Exception, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """If it declares logging; whatever it raises costs a warning."""
    connector = PlainConnector()
    asked: list[str] = []

    async def fail() -> None:
        asked.append("asked")
        raise crash

    connector.on_request["b0"] = connector.on_request["b1"] = fail
    async with open_session_factory(connector=connector) as factory:
        async with factory.open_session(plain_backends(2)) as session:
            connector.clients["b0"].server_capabilities["logging"] = {}
            await session.set_log_level("debug")
    assert ["asked"] == asked
    assert type(crash).__name__ in caplog.text
    assert "boom" not in caplog.text
