"""What comes first: `server/discover`, or with handlers for what servers ask, `initialize`; and the ways beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
import trio
from support.clients import ASKED, Bench, call, echo_backend, open_bench, open_scripted
from support.duplex import Raw as RawLines
from support.memory_processes import MemoryProcess, ProcessTable, Program, memory_processes
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    BackendProtocolError,
    BackendRecord,
    BackendRejected,
    BackendUnavailable,
    ClientHandlers,
    ServerRequest,
)
from trio_vmcp._client.channels.http_sse import EventStream
from trio_vmcp._client.client import Client
from trio_vmcp.connector import BackendClient
from trio_vmcp.testing import (
    CallContext,
    Delay,
    Disconnect,
    Error,
    Exchange,
    Fault,
    Hang,
    Raw,
    Rewrite,
    ScriptedBackend,
    Status,
)
from trio_vmcp.testing.faults import Cut, Step, WireFault

Transport = Literal["streamable-http", "stdio"]
EVERY_TRANSPORT = pytest.mark.parametrize("transport", ["streamable-http", "stdio"])
DISCOVER = "server/discover"


async def sample(request: ServerRequest) -> JSON:
    return {"role": "assistant", "content": {"type": "text", "text": "hello"}, "model": "m"}


async def elicit(request: ServerRequest) -> JSON:
    return {"action": "decline"}


SAMPLING, ELICITATION = ClientHandlers(sampling=sample), ClientHandlers(elicitation=elicit)
BOTH_ORDERS = pytest.mark.parametrize("handlers", [ClientHandlers(), SAMPLING], ids=["modern first", "handshake first"])


@asynccontextmanager
async def open_one(
    transport: Transport, backend: ScriptedBackend, *, exits_at: str = "", **options: Any
) -> AsyncIterator[Bench]:
    """A connector for one backend.

    Args:
        exits_at: Its first process exits when it reads a request of this method.
    """
    if transport == "streamable-http":
        async with open_scripted(backend, era="auto", **options) as bench:
            yield bench
        return
    started: list[MemoryProcess] = []

    async def main(process: MemoryProcess, pipes: trio.abc.Stream) -> int:
        started.append(process)
        if exits_at and len(started) == 1:
            assert exits_at == (await RawLines(pipes).receive())["method"]
            return 1
        await backend.serve_lines(pipes)
        return 0

    table = ProcessTable()
    table.programs["b"] = Program(main=main, manners="polite", is_there=lambda: True, says=lambda env: "")
    with memory_processes(table):
        async with table.running_in_virtual_time(on_end=lambda process: None):
            async with open_bench(None, url="", command="b", transport_name="stdio", **options) as bench:
                yield bench


def asked(backend: ScriptedBackend) -> list[str]:
    """The methods by which eras are told apart, in the order in which they came."""
    return [exchange.method for exchange in backend.exchanges if exchange.method in ("initialize", DISCOVER)]


def over_event_stream(client: BackendClient) -> bool:
    assert isinstance(client, Client)
    return isinstance(client._channel, EventStream)


@EVERY_TRANSPORT
@pytest.mark.parametrize("handlers", [SAMPLING, ELICITATION], ids=["sampling", "elicitation"])
async def test_with_handlers_the_handshake_comes_first(
    transport: Transport, handlers: ClientHandlers, autojump_clock: MockClock
) -> None:
    """A server that speaks both eras is not asked for the modern one, neither by the first connection nor later."""
    backend = echo_backend("both", "sse")
    async with open_one(transport, backend, handlers=handlers) as bench:
        for _ in range(2):
            client = await bench.connect()
            assert "legacy" == client.record.era
            await call(client)
    assert ["initialize"] * 2 == asked(backend)


@EVERY_TRANSPORT
@pytest.mark.parametrize("handlers", [ClientHandlers(), ASKED], ids=["none", "roots"])
async def test_without_handlers_for_questions_the_modern_era_comes_first(
    transport: Transport, handlers: ClientHandlers, autojump_clock: MockClock
) -> None:
    """Roots and log messages are no questions to a user."""
    backend = echo_backend("both", "sse")
    async with open_one(transport, backend, handlers=handlers) as bench:
        assert "modern" == (await bench.connect()).record.era
    assert [DISCOVER] == asked(backend)


@EVERY_TRANSPORT
async def test_a_verdict_belongs_to_its_order(transport: Transport, autojump_clock: MockClock) -> None:
    """Sessions with and without handlers are at one endpoint: neither takes the verdict of the other."""
    backend = echo_backend("both", "sse")
    async with open_one(transport, backend) as bench:
        for handlers, era in [(ClientHandlers(), "modern"), (SAMPLING, "legacy")] * 2:
            bench.connector._handlers = handlers
            assert era == (await bench.connect()).record.era
    assert [DISCOVER, "initialize"] * 2 == asked(backend)


@EVERY_TRANSPORT
async def test_a_server_of_both_eras_asks_its_client(transport: Transport, autojump_clock: MockClock) -> None:
    """Such a server has no way to ask in the modern era: the handler is asked, in the handshake era."""
    backend = echo_backend("both", "sse")

    async def question(arguments: JSON, context: CallContext) -> str:
        assert not context.is_modern
        return str((await context.sample("hi"))["model"])

    backend.add_tool("question", question)
    async with open_one(transport, backend, handlers=SAMPLING) as bench:
        client = await bench.connect()
        assert "m" == (await call(client, "question"))["content"][0]["text"]


REFUSALS = [Error(-32601, "no such method"), Error(-32602, "bad"), Error(-32022, "no", {"supported": ["2026-07-28"]})]


@EVERY_TRANSPORT
@pytest.mark.parametrize("fault", REFUSALS, ids=str)
async def test_a_modern_server_is_found_behind_its_refusal(
    transport: Transport, fault: Error, autojump_clock: MockClock
) -> None:
    """And from then on asked for its own era first: the verdict is that of this order."""
    backend = echo_backend("modern", "sse")
    backend.fail("initialize", fault)
    async with open_one(transport, backend, handlers=SAMPLING) as bench:
        for _ in range(2):
            client = await bench.connect()
            assert "modern" == client.record.era
            await call(client)
    assert ["initialize", DISCOVER, DISCOVER] == asked(backend)


NO_ANSWERS = [*map(Status, (400, 404, 405)), Status(307, headers={"location": "http://elsewhere.test/"}), Raw()]


@pytest.mark.parametrize("fault", NO_ANSWERS, ids=str)
async def test_a_modern_server_is_found_behind_any_refusal_of_http(fault: Any, autojump_clock: MockClock) -> None:
    """Whatever it answers to `initialize`."""
    backend = echo_backend("modern")
    backend.fail("initialize", fault)
    async with open_one("streamable-http", backend, handlers=SAMPLING) as bench:
        assert "modern" == (await bench.connect()).record.era
    assert ["initialize", DISCOVER] == asked(backend)


UNREADABLE = Rewrite(lambda message: message | {"result": None})


@pytest.mark.parametrize("fault", [UNREADABLE, Hang("body")], ids=["unreadable", "no body"])
async def test_a_session_named_by_an_unreadable_answer_is_ended(fault: Fault, autojump_clock: MockClock) -> None:
    """`initialize` made a session, and its answer cannot be read or never ends. The client of the modern era is used,
    and the session gets its DELETE.
    """
    backend = echo_backend("both")
    backend.fail("initialize", fault, times=1)
    async with open_one("streamable-http", backend, handlers=SAMPLING) as bench:
        client = await bench.connect()
        assert "modern" == client.record.era
        await wait_all_tasks_blocked()
        assert {} == backend.sessions
        assert 1 == sum("DELETE" == exchange.verb for exchange in backend.exchanges)


@EVERY_TRANSPORT
async def test_an_unreadable_answer_of_no_modern_server_is_reported(
    transport: Transport, autojump_clock: MockClock
) -> None:
    """The server is asked for the modern era once, and the failure is that of the handshake."""
    backend = echo_backend("legacy", "sse")
    backend.fail("initialize", UNREADABLE)
    async with open_one(transport, backend, handlers=SAMPLING) as bench:
        with pytest.raises(BackendProtocolError, match="null for a result"):
            await bench.connect()
    assert ["initialize", DISCOVER] == asked(backend)


@EVERY_TRANSPORT
async def test_an_unreadable_answer_of_a_known_server_is_reported(
    transport: Transport, autojump_clock: MockClock
) -> None:
    """Modern first, and the server is known to be of the handshake era: the answer is no verdict."""
    backend = echo_backend("legacy", "sse")
    async with open_one(transport, backend) as bench:
        await bench.connect()
        backend.fail("initialize", UNREADABLE)
        with pytest.raises(BackendProtocolError, match="null for a result"):
            await bench.connect()
    assert [DISCOVER, "initialize", "initialize"] == asked(backend)


class LatePage(WireFault):
    """After 25 s, what is no answer."""

    def steps(self, sent: int, data: bytes) -> Iterator[Step]:
        if not sent:
            yield 25.0
            yield b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>"
            yield Cut.EOF


async def test_a_late_unreadable_answer_is_reported_at_once(autojump_clock: MockClock) -> None:
    """The other era was asked for beside the handshake, without an answer, and is not asked for again."""
    backend = echo_backend("both")
    backend.fail("initialize", LatePage())
    backend.fail(DISCOVER, Hang())
    async with open_one("streamable-http", backend, handlers=SAMPLING, leaves_sessions=True) as bench:
        with pytest.raises(BackendProtocolError, match="'text/html'"):
            await bench.connect()
        assert 26 > trio.current_time()
    assert ["initialize", DISCOVER] == asked(backend)


async def test_a_connection_that_breaks_at_the_handshake_is_no_verdict(autojump_clock: MockClock) -> None:
    """Over HTTP the other era is not tried."""
    backend = echo_backend("both")
    backend.fail("initialize", Disconnect(0))
    async with open_one("streamable-http", backend, handlers=SAMPLING, leaves_sessions=True) as bench:
        with pytest.raises(BackendUnavailable, match="closed the connection"):
            await bench.connect()
    assert ["initialize"] == asked(backend)


@EVERY_TRANSPORT
async def test_a_modern_server_that_ignores_the_handshake_is_found(
    transport: Transport, autojump_clock: MockClock
) -> None:
    """After ten seconds it is asked for the other era beside it."""
    backend = echo_backend("modern", "sse")
    backend.fail("initialize", Hang())
    async with open_one(transport, backend, handlers=SAMPLING) as bench:
        client = await bench.connect()
        assert "modern" == client.record.era
        assert 11 > trio.current_time() >= 10
        await call(client)
        await bench.connect()
        assert 11 > trio.current_time()


async def test_a_modern_process_that_exits_at_the_handshake_is_started_again(autojump_clock: MockClock) -> None:
    """As one of the handshake era is that exits at `server/discover`."""
    backend = echo_backend("modern")
    async with open_one("stdio", backend, exits_at="initialize", handlers=SAMPLING) as bench:
        client = await bench.connect()
        assert "modern" == client.record.era
        await call(client)


async def test_a_slow_modern_process_is_asked_again(autojump_clock: MockClock) -> None:
    """A server that was silent while it started answers `initialize` with "method not found" once it is up: the same
    process is asked for the modern era again.
    """
    backend = echo_backend("modern")
    backend.fail("server/discover", Delay(12), times=1)
    backend.fail("initialize", Delay(2), times=1)
    backend.fail("initialize", Error(-32601, "Method not found"))
    async with open_one("stdio", backend) as bench:
        client = await bench.connect()
        assert "modern" == client.record.era
        await call(client)
    assert [DISCOVER, "initialize", DISCOVER] == asked(backend)


@EVERY_TRANSPORT
async def test_a_modern_server_that_was_silent_once_is_asked_again(
    transport: Transport, autojump_clock: MockClock
) -> None:
    """Its refusal of `initialize` says that it answers by now."""
    backend = echo_backend("modern", "sse")
    backend.fail(DISCOVER, Hang(), times=1)
    backend.fail("initialize", Error(-32601, "Method not found"))
    async with open_one(transport, backend) as bench:
        assert "modern" == (await bench.connect()).record.era
    assert [DISCOVER, "initialize", DISCOVER] == asked(backend)


async def test_an_unreachable_backend_is_tried_once(autojump_clock: MockClock) -> None:
    """That it cannot be reached is no verdict: the other era is not tried."""
    backend = echo_backend("both")
    backend.crash()
    async with open_one("streamable-http", backend, handlers=SAMPLING) as bench:
        with pytest.raises(BackendUnavailable, match="could not be reached"):
            await bench.connect()
    assert [] == backend.exchanges


@EVERY_TRANSPORT
@BOTH_ORDERS
async def test_a_refusal_in_both_eras_is_that_of_the_handshake(
    transport: Transport, handlers: ClientHandlers, autojump_clock: MockClock
) -> None:
    """A server that refuses everything."""
    backend = echo_backend("both")
    backend.fail(lambda exchange: True, Error(-32000, "go away"))
    async with open_one(transport, backend, handlers=handlers) as bench:
        with pytest.raises(BackendRejected, match="rejected 'initialize': 'go away'"):
            await bench.connect()
    assert {"initialize", DISCOVER} == set(asked(backend))
    assert 2 == len(asked(backend))


async def test_a_stored_modern_record_is_no_hint_with_handlers(autojump_clock: MockClock) -> None:
    """A session that was modern is restored with handlers: they are asked from now on."""
    backend = echo_backend("both")
    record = BackendRecord("b", None, "modern", "2026-07-28", {}, "")
    async with open_one("streamable-http", backend, handlers=SAMPLING) as bench:
        assert "legacy" == (await bench.connect(resume=record)).record.era
    assert ["initialize"] == asked(backend)


# A server that does not answer


def older_backend() -> ScriptedBackend:
    return echo_backend(transport="sse", protocol_version="2024-11-05")


def posted_to_the_stream(exchange: Exchange) -> bool:
    """A POST to the url of the stream, and not to the one that the stream names."""
    return exchange.verb == "POST" and "session=" not in exchange.target


@BOTH_ORDERS
@pytest.mark.parametrize("fault", [Status(404), Status(405), Hang()], ids=str)
async def test_a_server_of_http_sse_is_found(handlers: ClientHandlers, fault: Any, autojump_clock: MockClock) -> None:
    """Whether it refuses a POST to its stream or never answers; the second connection goes there at once. Silence is
    waited for once, ten seconds, and a second more where `server/discover` came first.
    """
    backend = older_backend()
    backend.fail(posted_to_the_stream, fault)
    async with open_one("streamable-http", backend, handlers=handlers) as bench:
        client = await bench.connect()
        assert over_event_stream(client)
        assert 11.5 > trio.current_time()
        await call(client)
        begun, posts = trio.current_time(), len(backend.received("POST"))
        assert over_event_stream(await bench.connect())
        assert begun == trio.current_time()
        assert posts + 2 == len(backend.received("POST"))  # its own handshake


@BOTH_ORDERS
@EVERY_TRANSPORT
async def test_a_slow_server_of_the_handshake_era_is_waited_for(
    transport: Transport, handlers: ClientHandlers, autojump_clock: MockClock
) -> None:
    """It ignores `server/discover`, and answers `initialize` after 15 s: no other way is taken meanwhile, and
    `initialize` is sent once.
    """
    backend = echo_backend("legacy", "sse", listens=True)
    backend.fail(DISCOVER, Hang())
    backend.fail("initialize", Delay(15))
    async with open_one(transport, backend, handlers=handlers) as bench:
        client = await bench.connect()
        assert "legacy" == client.record.era
        assert not over_event_stream(client)
        await call(client)
    assert 1 == len(backend.received("initialize"))


@BOTH_ORDERS
@EVERY_TRANSPORT
async def test_no_other_way_is_tried_beside_the_handshake_of_a_known_server(
    transport: Transport, handlers: ClientHandlers, autojump_clock: MockClock
) -> None:
    """The server did a handshake before, and is slow now."""
    backend = echo_backend("legacy", "sse", listens=True)
    async with open_one(transport, backend, handlers=handlers) as bench:
        await bench.connect()
        before = asked(backend)
        backend.fail("initialize", Delay(15))
        assert "legacy" == (await bench.connect()).record.era
    assert [*before, "initialize"] == asked(backend)


@BOTH_ORDERS
async def test_a_server_that_never_answers_takes_its_whole_time(
    handlers: ClientHandlers, autojump_clock: MockClock
) -> None:
    """The other ways end without an error of their own, and leave nothing."""
    backend = echo_backend("both")
    backend.fail("POST", Hang())
    backend.fail("GET", Hang())
    async with open_one("streamable-http", backend, handlers=handlers) as bench:
        with trio.move_on_after(60) as patience:
            await bench.connect()
        assert patience.cancelled_caught
    assert 0 == backend.open_connections
