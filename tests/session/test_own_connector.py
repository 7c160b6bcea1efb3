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
    BackendState,
    BackendUnavailable,
    EventSink,
    FactorySettings,
    FailureReason,
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


async def cut_off(connector: PlainConnector, *, calls_before: int = 0, cancelled_before: int = 0) -> bool:
    """Whether a call that the drain ends says that it may have run; after calls that were answered, and calls that
    their callers cancelled.
    """
    told: list[bool] = []
    async with open_session_factory(connector=connector) as factory, trio.open_nursery() as nursery:
        session = await factory.make_session(plain_backends(1))
        for _ in range(calls_before):
            await session.call_tool("b0_echo")
        if calls_before:
            connector.clients["b0"].on_request = never_answers
        for _ in range(cancelled_before):
            with trio.move_on_after(1):
                await session.call_tool("b0_echo")

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


async def test_calls_that_were_not_reported_prove_nothing(autojump_clock: MockClock) -> None:
    """A client that has answered requests without a report does not report."""
    assert await cut_off(PlainConnector(), calls_before=2)


async def test_a_reported_call_may_have_run(autojump_clock: MockClock) -> None:
    """`note_written` in the task of `request` counts for that request."""
    assert await cut_off(PlainConnector(on_request={"b0": reports_at_once}))


async def test_a_client_that_reports_has_not_sent_what_it_did_not_report(autojump_clock: MockClock) -> None:
    """Once a client has reported one request, a later request without a report was not written; nor are those after
    it.
    """
    assert not await cut_off(PlainConnector(on_request={"b0": reports_and_answers}), calls_before=1)
    reporting = PlainConnector(on_request={"b0": reports_and_answers})
    assert not await cut_off(reporting, calls_before=1, cancelled_before=1)


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


@pytest.mark.parametrize("attempt", ["the first", "a later one"])
async def test_a_lost_session_is_replaced_before_a_call_finds_out(attempt: str, autojump_clock: MockClock) -> None:
    """Also of a backend that is added, whose report comes while its client is being made."""
    made: list[str] = []
    inner = PlainConnector()

    async def connect(backend: Backend, **wanted: Any) -> PlainClient:
        if backend.id not in made:
            wanted["events"].session_lost(BackendUnavailable(backend.id, "has gone away"))
        await trio.sleep(0.1)
        made.append(backend.id)
        return await inner(backend, **wanted)

    first, added = plain_backends(2)
    async with open_session_factory(connector=connect) as factory:
        async with factory.open_session([first] if attempt == "the first" else []) as session:
            if attempt != "the first":
                await session.add_backend(added)
            await trio.sleep(10)
            assert 2 == len(made)


ENDS = pytest.mark.parametrize("end", ["close", "suspend", "removal", "loss", "stop"])


async def end_connection(session: Session, sinks: list[EventSink], end: str) -> None:
    """By the time that this returns, a goodbye that takes a second is over."""
    match end:
        case "close":
            await session.aclose()
        case "suspend":
            await session.suspend()
        case "removal":
            await session.remove_backend("b0")
        case "loss":
            sinks[0].session_lost(BackendUnavailable("b0", "has gone away"))
            await trio.sleep(5)
        case _:
            await trio.sleep(15)


@ENDS
async def test_the_tasks_of_a_client_live_until_its_goodbye_is_over(end: str, autojump_clock: MockClock) -> None:
    """The goodbye may need them: those that read from a process or stream run in the nursery of the connection."""
    sinks: list[EventSink] = []
    done: list[str] = []

    async def serve() -> None:
        try:
            await trio.sleep_forever()
        finally:
            done.append("tasks")

    async def say_goodbye() -> None:
        await trio.sleep(1)
        done.append("goodbye")

    inner = PlainConnector(services={"b0": serve}, on_close={"b0": say_goodbye})

    async def connect(backend: Backend, **wanted: Any) -> PlainClient:
        sinks.append(wanted["events"])
        return await inner(backend, **wanted)

    configured = [attrs.evolve(backend, stop_after=10 if end == "stop" else None) for backend in plain_backends(1)]
    async with open_session_factory(connector=connect) as factory, factory.open_session(configured) as session:
        await end_connection(session, sinks, end)
        assert ["goodbye", "tasks"] == done


async def test_a_goodbye_that_hangs_has_its_time(autojump_clock: MockClock) -> None:
    """A removal waits for it for `teardown_timeout`, and so does the close of a session."""
    inner = PlainConnector(on_close={"b0": trio.sleep_forever, "b1": trio.sleep_forever})
    settings = FactorySettings(teardown_timeout=3)
    async with open_session_factory(connector=inner, settings=settings) as factory:
        session = await factory.make_session(plain_backends(2))
        with trio.fail_after(60):
            await session.remove_backend("b0")
        assert 3.0 == trio.current_time()
        await session.aclose()
        assert 6.0 == trio.current_time()


@attrs.define(eq=False)
class AskingClient(PlainClient):
    """It passes on what its backend asks, and remembers the params of calls. It has a prompt, too."""

    question: JSON = attrs.field(factory=dict)
    asked: list[JSON] = attrs.field(factory=list)

    async def request(self, method: str, params: JSON, **more: Any) -> JSON:
        if method == "tools/list":
            return await super().request(method, params, **more)
        if method == "prompts/list":
            return {"prompts": [{"name": "p"}]}
        await trio.lowlevel.checkpoint()
        self.asked.append(params)
        return self.question | {"resultType": "input_required"}


@asynccontextmanager
async def open_asking(era: Literal["modern", "legacy"], question: JSON) -> AsyncIterator[tuple[AskingClient, Session]]:
    capabilities: JSON = {"tools": {}, "prompts": {}, "completions": {}}
    record = BackendRecord("b0", None, era, "2026-07-28", capabilities, "digest")
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


async def test_members_without_a_meaning_are_passed_on(autojump_clock: MockClock) -> None:
    """A completion is no question, whatever a backend adds to it: results may have more members than MCP knows."""
    answer: JSON = {"completion": {"values": ["x"]}, "inputRequests": 7, "": 8}
    async with open_asking("legacy", answer) as (_, session):
        completion = await session.complete({"type": "ref/prompt", "name": "b0_p"}, {"name": "a", "value": ""})
    assert answer | {"resultType": "input_required"} == completion.raw
    assert ("x",) == completion.values


EVERYTHING: JSON = {"tools": {}, "resources": {}, "prompts": {}}
OPTIONAL: dict[str, JSON] = {
    "resources/list": {"resources": [{"uri": "mem://a", "name": "a"}]},
    "resources/templates/list": {"resourceTemplates": [{"uriTemplate": "mem://{a}", "name": "a"}]},
    "prompts/list": {"prompts": [{"name": "a"}]},
}


@attrs.define(eq=False)
class CrashingClient(PlainClient):
    """Lists something of everything, and raises an error of its own for the methods in `crashes`."""

    crashes: set[str] = attrs.field(factory=set)

    async def request(self, method: str, params: JSON, **more: Any) -> JSON:
        if method in self.crashes:
            await trio.lowlevel.checkpoint()
            raise RuntimeError("secret-7")
        return OPTIONAL.get(method) or await super().request(method, params, **more)


@pytest.mark.parametrize("method", OPTIONAL)
@pytest.mark.parametrize("connects_in", [0.0, 1.0], ids=["in turn", "side by side"])
async def test_a_client_that_crashes_at_an_optional_list(
    method: str, connects_in: float, autojump_clock: MockClock
) -> None:
    """It costs that list, as an error of the backend does: calls are served, and the list alone is asked for again,
    when the session opens and when the list has changed. The failure names the type of the error alone.
    """
    clients: list[CrashingClient] = []
    sinks: list[EventSink] = []
    crashes = {method}

    async def connect(backend: Backend, *, events: EventSink, **wanted: Any) -> CrashingClient:
        await trio.sleep(connects_in)
        record = BackendRecord(backend.id, None, "modern", "2026-07-28", EVERYTHING, "digest")
        clients.append(CrashingClient(record, EVERYTHING, crashes=crashes))
        sinks.append(events)
        return clients[-1]

    def sizes(session: Session) -> list[int]:
        lists = (session.tools, session.resources, session.resource_templates, session.prompts)
        return [len(each) for each in lists]

    async with open_session_factory(connector=connect) as factory:
        async with factory.open_session(plain_backends(1)) as session:
            assert () == session.failures
            assert 3 == sum(sizes(session))
            status = session.backends["b0"]
            assert (BackendState.DEGRADED, 1) == (status.state, len(clients))
            assert status.last_failure is not None
            assert status.last_failure.detail == f"could not be asked {method!r}: its client raised RuntimeError"
            await session.call_tool("b0_echo")
            crashes.clear()
            await trio.sleep(60)
            assert (BackendState.READY, [1] * 4) == (session.backends["b0"].state, sizes(session))
            crashes.add(method)
            sinks[-1](f"notifications/{method.partition('/')[0]}/list_changed", {})
            await trio.sleep(0.1)
            assert (BackendState.DEGRADED, [1] * 4) == (session.backends["b0"].state, sizes(session))
            crashes.clear()
            await trio.sleep(60)
            assert (BackendState.READY, 1) == (session.backends["b0"].state, len(clients))


@attrs.define(eq=False)
class TornClient(PlainClient):
    """Has no answer to one method, and crashes when it gives up."""

    silent: str = ""

    async def request(self, method: str, params: JSON, **more: Any) -> JSON:
        async with trio.open_nursery() as nursery:
            if method == self.silent:
                nursery.start_soon(self.tear)
                await trio.sleep_forever()
        return await super().request(method, params, **more)

    async def tear(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("closing failed")


@pytest.mark.parametrize("connects_in", [0.0, 1.0], ids=["in turn", "side by side"])
@pytest.mark.parametrize("silent", ["prompts/list", "tools/list"])
async def test_a_client_that_crashes_as_a_list_is_given_up(
    silent: str, connects_in: float, autojump_clock: MockClock
) -> None:
    """The list is late, whatever a nursery of the client adds to the cancel: without prompts, calls are served."""

    async def connect(backend: Backend, **wanted: Any) -> TornClient:
        await trio.sleep(connects_in)
        capabilities: JSON = {"tools": {}, "prompts": {}}
        record = BackendRecord(backend.id, None, "modern", "2026-07-28", capabilities, "digest")
        return TornClient(record, capabilities, silent=silent)

    async with open_session_factory(connector=connect) as factory:
        async with factory.open_session(plain_backends(1)) as session:
            failure = session.backends["b0"].last_failure
            assert failure is not None
            assert failure.reason is FailureReason.TIMEOUT
            if silent == "prompts/list":
                assert () == session.failures
                await session.call_tool("b0_echo")


async def test_a_client_that_crashes_at_its_tools_is_not_connected(autojump_clock: MockClock) -> None:
    """Tools are needed where they are declared."""

    async def connect(backend: Backend, **wanted: Any) -> CrashingClient:
        plain = await PlainConnector()(backend, **wanted)
        return CrashingClient(plain.record, plain.server_capabilities, crashes={"tools/list"})

    async with open_session_factory(connector=connect) as factory:
        async with factory.open_session(plain_backends(1)) as session:
            (failure,) = session.failures
            assert "could not be connected: RuntimeError" == failure.detail
