"""What a connector of an application's own can report through the public seam, as the built-in clients do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import attrs
import pytest
import trio
from support.plain_connector import PlainClient, PlainConnector, plain_backends
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendProtocolError,
    BackendRecord,
    BackendUnavailable,
    EventSink,
    FactorySettings,
    Session,
    SessionClosed,
    note_written,
    open_session_factory,
)

CAPABILITIES, LOG_LEVEL = "io.modelcontextprotocol/clientCapabilities", "io.modelcontextprotocol/logLevel"


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


@attrs.define(eq=False)
class AskingClient(PlainClient):
    """It passes on what its backend asks, and remembers the params of calls."""

    question: JSON = attrs.field(factory=dict)
    asked: list[JSON] = attrs.field(factory=list)

    async def request(self, method: str, params: JSON, **more: Any) -> JSON:
        if method == "tools/list":
            return await super().request(method, params, **more)
        await trio.lowlevel.checkpoint()
        self.asked.append(params)
        return self.question | {"resultType": "input_required"}


@asynccontextmanager
async def open_asking(era: Literal["modern", "legacy"], question: JSON) -> AsyncIterator[tuple[AskingClient, Session]]:
    record = BackendRecord("b0", None, era, "2026-07-28", {"tools": {}}, "digest")
    client = AskingClient(record, record.server_capabilities, question=question)

    async def connect(backend: Backend, **wanted: Any) -> AskingClient:
        await trio.lowlevel.checkpoint()
        return client

    async with (
        open_session_factory(connector=connect) as factory,
        factory.open_session(plain_backends(1)) as session,
    ):
        yield client, session


async def test_questions_of_an_own_client_are_handed_out(autojump_clock: MockClock) -> None:
    """It gets all that belongs to a round in its params, as MCP has it."""
    question = {"inputRequests": {"k": {"method": "roots/list"}}, "requestState": "s"}
    async with open_asking("modern", question) as (client, session):
        first = await session.call_tool("b0_echo", answer_rounds=False, client_capabilities={"roots": {}})
        assert ({"k": {"method": "roots/list", "params": {}}}, "s") == (first.input_required, first.request_state)
        await session.call_tool("b0_echo", input_responses={"k": {"roots": []}}, request_state="s", log_level="debug")
    begun, continued = client.asked
    assert {"name": "echo", "arguments": {}, "_meta": {CAPABILITIES: {"roots": {}}}} == begun
    assert ({"k": {"roots": []}}, "s") == (continued["inputResponses"], continued["requestState"])
    assert {LOG_LEVEL: "debug"} == continued["_meta"]


@pytest.mark.parametrize(
    "question", [{}, {"inputRequests": []}, {"inputRequests": {"k": "?"}}, {"requestState": 1}], ids=str
)
@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_a_question_of_no_form_is_an_error(
    era: Literal["modern", "legacy"], question: JSON, autojump_clock: MockClock
) -> None:
    """Of whatever client: callers rely on `input_required`."""
    async with open_asking(era, question) as (_, session):
        with pytest.raises(BackendProtocolError, match=r"answered 'tools/call' with a question") as caught:
            await session.call_tool("b0_echo", answer_rounds=False)
    assert caught.value.may_have_executed
