"""One flaw costs itself, over every channel: an optional list, a subscription on a new connection."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from support.channels import EVERY_CHANNEL, EVERY_LEGACY_CHANNEL, Channel
from support.plain_connector import PropertyConnector, plain_backends
from trio.testing import MockClock

from trio_vmcp import (
    JSON,
    BackendError,
    BackendState,
    BackendUnavailable,
    FactorySettings,
    Session,
    SessionChange,
    open_session_factory,
)
from trio_vmcp.testing import Disconnect, Error, Fault, Rewrite, ScriptedBackend

ARRAYS = {
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
    "prompts/list": "prompts",
}
KEYS = {"resources": "uri", "resourceTemplates": "uriTemplate", "prompts": "name"}
URI = "mem://x"
SETTINGS = FactorySettings(max_pages=7, reconnect_max_delay=5, idle_timeout=10_000)


def offering(channel: Channel, *, listens: bool = False) -> ScriptedBackend:
    backend = channel.backend(listens=listens)
    backend.add_resource(URI, "1")
    backend.add_resource_template("mem://{a}/{b}")
    backend.add_prompt("p")
    return backend


def counts(session: Session) -> dict[str, int]:
    return {
        "resources": len(session.resources),
        "resourceTemplates": len(session.resource_templates),
        "prompts": len(session.prompts),
    }


def with_result(make: Callable[[JSON], object]) -> Rewrite:
    return Rewrite(lambda message: {**message, "result": make(message["result"])})


def never_ends(array: str) -> Rewrite:
    """Each page has a new entry, and the cursor of a next one."""
    numbers = itertools.count()
    return with_result(
        lambda result: {**result, array: [{KEYS[array]: f"mem://new/{next(numbers)}"}], "nextCursor": "after 0"}
    )


FLAWS: dict[str, Callable[[str], Fault]] = {
    "fails": lambda array: Error(-32603, "broken"),
    "a null result": lambda array: with_result(lambda result: None),
    "a null array": lambda array: with_result(lambda result: {**result, array: None}),
    "no array": lambda array: with_result(lambda result: {k: v for k, v in result.items() if k != array}),
    "never ends": never_ends,
}


@EVERY_CHANNEL
@pytest.mark.parametrize("method", ARRAYS)
@pytest.mark.parametrize("flaw", FLAWS)
async def test_an_optional_list_with_a_flaw_costs_that_list(
    channel: Channel, method: str, flaw: str, autojump_clock: MockClock
) -> None:
    """Calls are served and the other lists are there. The backend is degraded and says why, and nothing is missing.
    That list alone is asked for again; once the flaw is gone, the backend is ready.
    """
    array = ARRAYS[method]
    backend = offering(channel)
    backend.fail(method, FLAWS[flaw](array), times=14)
    async with channel.open_session(backend, settings=SETTINGS) as session:
        status = session.backends["b"]
        assert (BackendState.DEGRADED, ()) == (status.state, session.failures)
        assert status.last_failure is not None
        assert (flaw == "never ends") is (status.last_failure.reason.name == "LIMIT")
        assert dict.fromkeys(KEYS, 1) | {array: 0} == counts(session)
        await session.call_tool("b_echo")
        await trio.sleep(200)
        assert BackendState.READY is session.backends["b"].state
        assert dict.fromkeys(KEYS, 1) == counts(session)
        others = [each for each in ("tools/list", *ARRAYS) if each != method]
        assert [1, 1, 1] == [len(backend.received(each)) for each in others]


@EVERY_CHANNEL
@pytest.mark.parametrize("method", ARRAYS)
@pytest.mark.parametrize("flaw", ["is not there", "is stuck"])
async def test_an_optional_list_that_is_not_there_or_stuck_is_what_came(
    channel: Channel, method: str, flaw: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """-32601 is an empty list. A cursor that is stuck ends after three pages that bring nothing new. With a warning."""
    array = ARRAYS[method]
    backend = offering(channel)
    stuck = with_result(lambda result: {**result, array: [{KEYS[array]: "mem://1"}], "nextCursor": "after 0"})
    backend.fail(method, Error(-32601, "no such method") if flaw == "is not there" else stuck)
    async with channel.open_session(backend, settings=SETTINGS) as session:
        assert (BackendState.READY, ()) == (session.backends["b"].state, session.failures)
        assert dict.fromkeys(KEYS, 1) | {array: int(flaw == "is stuck")} == counts(session)
        await session.call_tool("b_echo")
        await trio.sleep(100)
    assert (1 if flaw == "is not there" else 4) == len(backend.received(method))
    (warning,) = [record.getMessage() for record in caplog.records if method in record.getMessage()]
    assert "backend 'b'" in warning


async def restart(session: Session, backend: ScriptedBackend) -> None:
    """The backend is a new process, and the session has a new connection to it."""
    backend.restart()
    backend.fail("tools/call", Disconnect(0), times=1)  # over stdio this is what ends the process
    for _ in range(5):
        with suppress(BackendError):
            await session.call_tool("b_echo")
        await trio.sleep(1)
    assert BackendState.READY is session.backends["b"].state


@EVERY_LEGACY_CHANNEL
@pytest.mark.parametrize("times", [1, 3])
async def test_a_subscription_that_fails_on_a_new_connection_is_tried_again(
    channel: Channel, times: int, autojump_clock: MockClock
) -> None:
    """The session goes on until the backend has it; then updates are heard of again."""
    backend = offering(channel, listens=True)
    async with channel.open_session(backend, settings=SETTINGS) as session:
        await session.subscribe_resource(URI)
        await trio.sleep(100)
        backend.fail("resources/subscribe", Error(-32603, "busy"), times=times)
        await restart(session, backend)
        await trio.sleep(60)
        assert 2 + times == len(backend.received("resources/subscribe"))
        async with session.changes() as changes:
            backend.notify("notifications/resources/updated", {"uri": URI})
            with trio.fail_after(5):
                assert SessionChange("resource_updated", "b", URI) == await changes.receive()


@EVERY_LEGACY_CHANNEL
async def test_what_was_unsubscribed_from_meanwhile_is_not_subscribed_to_again(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """While one of two is subscribed to on the new connection, the subscriber of the other leaves."""
    backend = offering(channel, listens=True)
    backend.add_resource("mem://y", "1")
    asked: list[Any] = []
    async with channel.open_session(backend, settings=SETTINGS) as session:
        await session.subscribe_resource(URI)
        await session.subscribe_resource("mem://y")
        backend.fail("resources/subscribe", Error(-32603, "busy"))
        await restart(session, backend)
        await session.unsubscribe_resource("mem://y")
        before = len(backend.received("resources/subscribe"))
        await trio.sleep(60)
        asked = [exchange.params["uri"] for exchange in backend.received("resources/subscribe")[before:]]
    assert {URI} == set(asked)


# A client of the user's


@pytest.mark.parametrize("at", range(1, 13))
@pytest.mark.parametrize("name", ["record", "server_capabilities"])
async def test_an_attribute_of_a_client_that_raises_costs_its_backend(
    name: str, at: int, autojump_clock: MockClock
) -> None:
    """Once, at any time that it is read: the session and the other backend go on, and every client is closed."""
    reads = itertools.count(1)

    def on_read() -> None:
        if next(reads) == at:
            raise ZeroDivisionError

    connector = PropertyConnector(name, on_read)
    async with (
        open_session_factory(connector=connector) as factory,
        factory.open_session(plain_backends(2)) as session,
    ):
        for sink in list(connector.sinks):
            sink.session_lost(BackendUnavailable("b", "no longer knows us"))
            await trio.sleep(5)
            sink("notifications/tools/list_changed", {})
        await trio.sleep(60)
        assert {BackendState.READY} == {status.state for status in session.backends.values()}
        assert {"b0": "s", "b1": "s"} == session.backend_sessions
        assert ["b0", "b1"] == [record.backend_id for record in session.metadata.backends]
        for backend_id in ("b0", "b1"):
            await session.call_tool(f"{backend_id}_echo")
        if at % 2:
            await session.suspend()
    assert {1} == {len(client.closed) for client in connector.inner.clients.values()}
    assert next(reads) > at


async def test_a_client_whose_record_never_can_be_read(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Its calls are answered, and the metadata has nothing of it. One warning for each connection."""

    def on_read() -> None:
        raise ZeroDivisionError

    connector = PropertyConnector("record", on_read)
    async with open_session_factory(connector=connector) as factory:
        async with factory.open_session(plain_backends(1)) as session:
            for losses in (0, 1, 2):
                await session.call_tool("b0_echo")
                assert ((), {}) == (session.metadata.backends, session.backend_sessions)
                assert 1 + losses == caplog.text.count("a client raises from its record: ZeroDivisionError")
                connector.sinks[-1].session_lost(BackendUnavailable("b0", "no longer knows us"))
                await trio.sleep(20)
    assert [1] == [len(client.closed) for client in connector.inner.clients.values()]
