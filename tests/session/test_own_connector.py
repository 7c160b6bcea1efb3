"""What a connector of an application's own can report through the public seam, as the built-in clients do."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from support.plain_connector import PlainClient, PlainConnector, plain_backends
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    Backend,
    BackendUnavailable,
    EventSink,
    FactorySettings,
    SessionClosed,
    note_written,
    open_session_factory,
)


async def never_answers() -> None:
    await trio.sleep_forever()


async def reports_at_once() -> None:
    note_written()
    await trio.sleep_forever()


async def reports_and_answers() -> None:
    note_written()
    await trio.lowlevel.checkpoint()


async def cut_off(connector: PlainConnector, *, calls_before: int = 0) -> bool:
    """Whether a call that the drain ends says that it may have run."""
    told: list[bool] = []
    async with open_session_factory(connector=connector) as factory, trio.open_nursery() as nursery:
        session = await factory.make_session(plain_backends(1))
        for _ in range(calls_before):
            await session.call_tool("b0_echo")
        if calls_before:
            connector.clients["b0"].on_request = never_answers

        async def call() -> None:
            with pytest.raises(SessionClosed, match="drain_timeout") as caught:
                await session.call_tool("b0_echo")
            told.append(caught.value.may_have_executed)

        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        await session.aclose(drain_timeout=1)
    (may_have_executed,) = told
    return may_have_executed


async def test_a_client_that_reports_nothing_may_have_sent_the_call(autojump_clock: MockClock) -> None:
    """Without a report the library cannot know: "send it again" would run a tool twice."""
    assert await cut_off(PlainConnector(on_request={"b0": never_answers}))


async def test_a_reported_call_may_have_run(autojump_clock: MockClock) -> None:
    """`note_written` in the task of `request` counts for that request."""
    assert await cut_off(PlainConnector(on_request={"b0": reports_at_once}))


async def test_a_client_that_reports_has_not_sent_what_it_did_not_report(autojump_clock: MockClock) -> None:
    """Once a client has reported one request, a later request without a report was not written."""
    assert not await cut_off(PlainConnector(on_request={"b0": reports_and_answers}), calls_before=1)


async def test_a_lost_session_is_reported_by_the_connector(autojump_clock: MockClock) -> None:
    """`events.session_lost` has the backend connected anew, once, without a call that meets the loss."""
    sinks: list[EventSink] = []
    inner = PlainConnector()

    async def connect(backend: Backend, **wanted: Any) -> PlainClient:
        sinks.append(wanted["events"])
        return await inner(backend, **wanted)

    settings = FactorySettings(reconnect_delay=0.5)
    async with open_session_factory(connector=connect, settings=settings) as factory:
        async with factory.open_session(plain_backends(1)) as session:
            sinks[0].session_lost(BackendUnavailable("b0", "has gone away"))
            await trio.sleep(10)
            assert 2 == len(sinks)
            await session.call_tool("b0_echo")
            assert 2 == len(sinks)


async def test_a_session_may_be_lost_while_its_client_is_made(autojump_clock: MockClock) -> None:
    """A reader that a connector has started may find out before the connector returns: the report is not lost."""
    made: list[PlainClient] = []
    inner = PlainConnector()

    async def connect(backend: Backend, **wanted: Any) -> PlainClient:
        if not made:
            wanted["events"].session_lost(BackendUnavailable("b0", "has gone away"))
        await trio.sleep(0.1)
        made.append(await inner(backend, **wanted))
        return made[-1]

    async with open_session_factory(connector=connect) as factory:
        async with factory.open_session(plain_backends(1)) as session:
            await trio.sleep(10)
            assert 2 == len(made)
            assert [True] == made[0].closed
            await session.call_tool("b0_echo")
