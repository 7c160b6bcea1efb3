"""A backend that breaks the protocol without end does not fill the log at the same pace."""

from __future__ import annotations

import logging
from collections.abc import Callable

import attrs
import httpx
import pytest
import trio
from support.channels import EVERY_CHANNEL, Channel
from support.clients import call, event, in_json, in_sse, message_of, open_bench, result
from support.duplex import open_pair
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON, BackendTimeout, ClientHandlers, ServerRequest
from trio_vmcp._client.complaints import MOST_COMPLAINTS
from trio_vmcp.testing import Delay

MANY = 5 * MOST_COMPLAINTS
LEVELS = ["WARNING"] + ["DEBUG"] * (MOST_COMPLAINTS - 1)


def levels(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    return [record.levelname for record in caplog.records if what in record.getMessage()]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"Listening for requests", "skipped a message that is not JSON"),
        (b"{}", "skipped a message that is not marked"),
        (b'{"jsonrpc":"2.0","id":7,"method":"ping"}', "ignored a request, which this era's servers do not send"),
        (b'{"method":"x","params":"' + b"x" * 10_000 + b'"}', "it was no answer"),
    ],
)
async def test_a_flood_of_lines(
    line: bytes, what: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, a few more records at DEBUG, and the waiting call is answered."""
    caplog.set_level(logging.DEBUG)
    async with open_pair() as pair, trio.open_nursery() as nursery:
        pair.adopt({"capabilities": {}})
        nursery.start_soon(call, pair.client)
        request = await pair.server.receive()
        await pair.server.send(*[line] * MANY)
        await trio.sleep(60)  # they are read at a pace
        assert LEVELS == levels(caplog, what)
        await pair.server.answer(request, content=[])


def flood(era: str, message: JSON) -> httpx.MockTransport:
    """A server that sends so many copies of one message before its answer to a call."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked = message_of(request)
        match asked.get("method"):
            case "server/discover":
                return in_json(result(asked["id"], supportedVersions=["2026-07-28"], capabilities={}))
            case "initialize":
                return in_json(result(asked["id"], protocolVersion="2025-11-25", capabilities={}))
            case "tools/call":
                return in_sse(*[event(message)] * MANY, event(result(asked["id"], content=[])))
        return httpx.Response(202)

    return httpx.MockTransport(answer)


PING: JSON = {"jsonrpc": "2.0", "id": 7, "method": "ping"}
QUESTION: JSON = {"jsonrpc": "2.0", "id": 7, "method": "roots/list"}


@pytest.mark.parametrize(
    ("era", "message", "what"),
    [
        ("modern", PING, "ignored a request, which this era's servers do not send"),
        ("modern", result(99), "dropped an answer to a request that is not waiting here"),
        ("legacy", result(99), "dropped an answer to a request that is not waiting here"),
    ],
)
async def test_a_flood_on_a_response(
    era: str, message: JSON, what: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The same over HTTP, where a connection outlives the response."""
    caplog.set_level(logging.DEBUG)
    async with open_bench(flood(era, message), era=era) as bench:
        client = await bench.connect()
        for _ in range(2):
            assert {"content": []} == await call(client)
    assert LEVELS == levels(caplog, what)


async def test_a_flood_of_one_question(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """While the first request with an id is being answered, further ones with that id are ignored."""
    caplog.set_level(logging.DEBUG)

    async def roots(request: ServerRequest) -> JSON:
        await trio.sleep_forever()

    async with open_bench(flood("legacy", QUESTION), era="legacy", handlers=ClientHandlers(roots=roots)) as bench:
        assert {"content": []} == await call(await bench.connect())
    assert LEVELS == levels(caplog, "ignored a request whose id is in use")


@EVERY_CHANNEL
async def test_a_late_answer_is_no_mistake(
    channel: Channel, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The backend answers a call that was given up, as it may: no warning."""
    backend = channel.backend()
    backend.fail("tools/call", Delay(3), times=1)
    async with channel.open_client(backend) as client:
        with pytest.raises(BackendTimeout):
            await call(client, timeout=1)
        await trio.sleep(5)
        await call(client)
    assert [] == [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("written", [int, str, lambda own: None], ids=["as sent", "str", "null"])
async def test_a_late_answer_is_known_however_its_id_is_written(
    written: Callable[[int], object], autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Once: another answer to the same request is a mistake, and so is one to a request that nothing has sent."""
    caplog.set_level(logging.DEBUG, "trio_vmcp.client")
    async with open_pair() as pair:
        pair.adopt({"capabilities": {}})
        with trio.move_on_after(1):
            await call(pair.client)
        request = await pair.server.receive()
        refusal = {"jsonrpc": "2.0", "id": written(request["id"]), "error": {"code": -32601, "message": "unknown"}}
        await pair.server.send(refusal, refusal)
        await wait_all_tasks_blocked()
    assert ["DEBUG"] == levels(caplog, "answered a request that was given up")
    assert ["WARNING"] == levels(caplog, "dropped an answer to a request that is not waiting here")


async def test_an_error_for_no_request_is_a_mistake_while_another_waits(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Two calls wait, and one was given up: which of them it answers cannot be known."""
    async with open_pair() as pair, trio.open_nursery() as nursery:
        pair.adopt({"capabilities": {}})
        with trio.move_on_after(1):
            await call(pair.client)
        nursery.start_soon(call, pair.client)
        nursery.start_soon(call, pair.client)
        await wait_all_tasks_blocked()
        await pair.server.send({"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "what?"}})
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert ["WARNING"] == levels(caplog, "dropped an answer to a request that is not waiting here")


async def elicit(request: ServerRequest) -> JSON:
    return {"action": "decline"}


@pytest.mark.parametrize(
    ("first", "era"),
    [
        ("server/discover", "legacy"),
        ("server/discover", "both"),
        ("server/discover", "modern"),
        ("initialize", "both"),
        ("initialize", "modern"),
    ],
)
async def test_a_late_answer_to_the_probe_is_no_mistake(
    first: str, era: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A program that is slow at first answers the first question after it was given up, with a result or an error."""
    caplog.set_level(logging.DEBUG, "trio_vmcp.client")
    handlers = ClientHandlers(elicitation=elicit if first == "initialize" else None)
    channel = Channel("stdio", "modern" if era == "modern" else "legacy")
    backend = channel.backend()
    backend.era = era  # type: ignore[assignment]  # parametrized: plain str
    backend.fail(first, Delay(12), times=1)
    async with channel.open_bench(backend, handlers=handlers) as bench:
        bench.backend = attrs.evolve(bench.backend, era="auto")
        await call(await bench.connect())
        await trio.sleep(60)
    late = "backend 'b': answered a request that was given up"
    assert [("DEBUG", late)] == [(record.levelname, record.getMessage()) for record in caplog.records]


async def test_kinds_are_counted_apart(caplog: pytest.LogCaptureFixture) -> None:
    """A new kind of complaint is a warning, whatever came before."""
    async with open_pair() as pair:
        pair.adopt({"capabilities": {}})
        await pair.server.send(b"{}", b'{"jsonrpc":"2.0","id":7,"method":"ping"}', b"{}")
        await wait_all_tasks_blocked()
    assert ["WARNING", "WARNING"] == [record.levelname for record in caplog.records if record.levelname != "DEBUG"]
