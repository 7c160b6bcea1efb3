"""The front over a pair of streams: one client, a message in each line, requests of both eras."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support.front import LEGACY, MODERN, front_world, modern_request
from support.front_clients import EVERY_BACKEND, EVERY_ERA, stdio_client
from support.harness import echo_backend
from trio.testing import MockClock, memory_stream_one_way_pair, wait_all_tasks_blocked

from trio_vmcp import JSON
from trio_vmcp._protocol.reading import MOST_SKIPPED
from trio_vmcp.serve import ServeSettings
from trio_vmcp.serve._stdio import serve_stdio
from trio_vmcp.testing import CallContext, Delay, Hang, RpcError, ScriptedBackend


@attrs.define(eq=False)
class Waiting:
    """A backend with a tool that waits.

    Attributes:
        cancelled: The backend was told that the client has withdrawn the call.
    """

    era: str = "legacy"
    backend: ScriptedBackend = attrs.field(init=False)
    begun: trio.Event = attrs.field(factory=trio.Event, init=False)
    go_on: trio.Event = attrs.field(factory=trio.Event, init=False)
    cancelled: trio.Event = attrs.field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self.backend = echo_backend(self.era, answers="sse")
        self.backend.add_tool("wait", self._wait)

    async def _wait(self, arguments: JSON, context: CallContext) -> str:
        self.begun.set()
        await context.progress(1, 2, "half")
        try:
            await self.go_on.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return "waited"


WAIT = {"name": "a_wait", "arguments": {}}


async def test_both_eras_on_one_stream(autojump_clock: MockClock) -> None:
    """The era is that of each request, whatever came before: a client may probe, or change its mind."""
    async with front_world() as world, stdio_client(world, "modern") as client:
        assert MODERN in (await client.result("server/discover"))["supportedVersions"]
        assert LEGACY == (await client.initialize())["protocolVersion"]
        client.era = "legacy"
        assert {} == await client.result("ping", request_id=2)
        client.era = "modern"
        assert "resultType" in await client.result("tools/list", request_id=3)


async def test_before_and_behind_initialize(autojump_clock: MockClock) -> None:
    """A request that comes too early is refused, but for ping; so is a second initialize."""
    async with front_world() as world, stdio_client(world, opens=False) as client:
        await client.ask("tools/list", request_id=1)
        assert -32600 == (await client.response(1))["error"]["code"]
        assert {} == await client.result("ping", request_id=2)
        await client.ask("initialize", {"protocolVersion": 1}, 3)
        assert -32602 == (await client.response(3))["error"]["code"]
        assert LEGACY == (await client.initialize())["protocolVersion"]
        await client.ask("initialize", {"protocolVersion": LEGACY, "capabilities": {}}, 4)
        assert -32600 == (await client.response(4))["error"]["code"]


async def test_a_client_that_does_not_wait_for_the_response_to_initialize(autojump_clock: MockClock) -> None:
    """Its requests wait for the session, and can be withdrawn while they do."""
    hangs = ScriptedBackend()
    hangs.fail("POST", Hang())
    async with front_world(echo_backend(), hangs) as world, stdio_client(world, opens=False) as client:
        params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "t"}}
        await client.ask("initialize", params, 1)
        await client.ask("tools/call", {"name": "a_echo", "arguments": {}}, 2)
        await client.ask("tools/call", {"name": "a_echo", "arguments": {}}, 3)
        await client.notify("notifications/cancelled", {"requestId": 3})
        assert "result" in await client.response(2)
        assert {1, 2} == {message["id"] for message in client.received}


async def test_what_a_request_must_say_of_itself(autojump_clock: MockClock) -> None:
    """A version that is not served, and no capabilities: the errors that HTTP has for them."""
    async with front_world() as world, stdio_client(world, "modern") as client:
        for version, code in (("2027-01-01", -32022), (7, -32602)):
            message, _ = modern_request("tools/list", request_id=str(version))
            message["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = version
            await client.send(message)
            assert code == (await client.response(str(version)))["error"]["code"]
        message, _ = modern_request("tools/list", request_id="none")
        del message["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"]
        await client.send(message)
        assert -32602 == (await client.response("none"))["error"]["code"]


@EVERY_BACKEND
@EVERY_ERA
async def test_responses_come_when_they_are_ready(era: str, backend_era: str, autojump_clock: MockClock) -> None:
    """A later request may be answered first; progress has the client's token and comes before the response."""
    waiting = Waiting(backend_era)
    async with front_world(waiting.backend) as world, stdio_client(world, era) as client:
        params = dict(WAIT) if era == "modern" else {**WAIT, "_meta": {"progressToken": "t"}}
        await client.ask("tools/call", params, 1, **({"progressToken": "t"} if era == "modern" else {}))
        await waiting.begun.wait()
        await client.result("tools/call", {"name": "a_echo", "arguments": {}}, 2)
        waiting.go_on.set()
        await client.response(1)
        kinds = [message.get("method") or message["id"] for message in client.received if message.get("id") != "init"]
        assert ["notifications/progress", 2, 1] == kinds
        (progress,) = (message["params"] for message in client.received if "progress" in message.get("method", ""))
        assert {"progressToken": "t", "progress": 1, "total": 2, "message": "half"} == progress


@EVERY_BACKEND
@EVERY_ERA
async def test_a_withdrawn_request_has_no_response(era: str, backend_era: str, autojump_clock: MockClock) -> None:
    """`notifications/cancelled`, in both eras; its id is free then. Unknown ids and `initialize` are left alone."""
    waiting = Waiting(backend_era)
    async with front_world(waiting.backend) as world, stdio_client(world, era) as client:
        await client.ask("tools/call", WAIT, 1)
        await waiting.begun.wait()
        others: list[object] = [2, "1", True, None, [], {}]
        for other in others:
            await client.notify("notifications/cancelled", {"requestId": other})
        await wait_all_tasks_blocked()
        assert not waiting.cancelled.is_set()
        await client.ask("tools/call", WAIT, 1)
        assert -32600 == (await client.response(1))["error"]["code"]  # the id is in use
        client.received.clear()
        await client.notify("notifications/cancelled", {"requestId": 1})
        await waiting.cancelled.wait()
        await trio.sleep(1)
        assert not [message for message in client.received if message.get("id") == 1]
        assert (await client.result("tools/call", {"name": "a_echo", "arguments": {}}, 1))["content"]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{\n", -32700),
        (b"\xff\n", -32700),
        (b"1\n", -32600),
        (b'{"jsonrpc": "2.0"}\n', -32600),
        (b'[{"jsonrpc": "2.0", "id": 7, "method": "ping"}]\n', -32600),
        (b'"' + b"x" * 5000 + b'"\n', -32600),
        (b'{"a":' * 500 + b"\n", -32700),
    ],
    ids=["no JSON", "no UTF-8", "no object", "no method", "batch", "long", "deep"],
)
async def test_a_bad_line_is_refused_and_the_next_is_read(line: bytes, code: int, autojump_clock: MockClock) -> None:
    """An error without an id (JSON-RPC 2.0 §5). Empty lines are none."""
    async with front_world() as world, stdio_client(world, max_body_bytes=4096) as client:
        client.received.clear()
        await client.send(b"\n\r\n" + line)
        await client.result("ping")
        (refused,) = (message for message in client.received if message["id"] is None)
        assert code == refused["error"]["code"]


def unreadable(written_id: bytes, value: bytes) -> list[bytes]:
    """A call as programs write it: the id first, or behind the params as in the official SDKs."""
    params = b'"method":"tools/call","params":{"name":"a_echo","arguments":{"id":1,"v":%s}}' % value
    return [
        b'{"jsonrpc":"2.0","id":%s,%s}\n' % (written_id, params),
        b'{%s,"jsonrpc":"2.0","id":%s}\n' % (params, written_id),
    ]


@pytest.mark.parametrize(
    "value",
    [b"NaN", b"1e999", b"\xff", b"[}", b"[" * 200 + b"]" * 200, b"1" * 5000, b'"' + b"x" * 20_000 + b'"'],
    ids=["NaN", "1e999", "no UTF-8", "no JSON", "deep", "digits", "long"],
)
async def test_an_unreadable_request_is_answered(value: bytes, autojump_clock: MockClock) -> None:
    """Under its id, if that can be found: else the client would wait for its own timeout."""
    async with front_world() as world, stdio_client(world, max_body_bytes=16_384) as client:
        for at, written in enumerate((b"7", b'"seven"')):
            for line in unreadable(written, value):
                client.received.clear()
                await client.send(line)
                with trio.fail_after(1):
                    assert (await client.response((7, "seven")[at]))["error"]["code"] in (-32700, -32600)
        bad_params = {"jsonrpc": "2.0", "id": 8, "method": "ping", "params": []}
        await client.send(bad_params)
        assert -32600 == (await client.response(8))["error"]["code"]


async def test_an_unreadable_request_ends_no_other(autojump_clock: MockClock) -> None:
    """Its id is in use, so the error has none."""
    waiting = Waiting()
    async with front_world(waiting.backend) as world, stdio_client(world) as client:
        await client.ask("tools/call", WAIT, 7)
        await waiting.begun.wait()
        await client.send(unreadable(b"7", b"NaN")[0])
        await client.wait(lambda message: "error" in message and message["id"] is None)
        waiting.go_on.set()
        assert "waited" in str(await client.response(7))


@pytest.mark.parametrize("value", [b"NaN", b'"' + b"x" * 20_000 + b'"'], ids=["no JSON", "long"])
@EVERY_BACKEND
async def test_an_unreadable_answer_fails_its_question(
    value: bytes, backend_era: str, autojump_clock: MockClock
) -> None:
    """At once: the backend would wait for the deadline of its call."""

    async def ask(arguments: JSON, context: CallContext) -> str:
        return str(await context.request_all({"r": ("roots/list", {})}))

    backend = echo_backend(backend_era, answers="sse")
    backend.add_tool("ask", ask)
    async with (
        front_world(backend) as world,
        stdio_client(world, capabilities={"roots": {}}, max_body_bytes=16_384) as client,
    ):
        await client.ask("tools/call", {"name": "a_ask", "arguments": {}}, "call")
        question = await client.wait(lambda message: message.get("method") == "roots/list")
        await client.send(b'{"jsonrpc":"2.0","id":%d,"result":{"roots":%s}}\n' % (question["id"], value))
        with trio.fail_after(1):
            await client.response("call")


async def test_a_flood_of_unreadable_lines(autojump_clock: MockClock) -> None:
    """Other tasks run between a few lines, also if the client writes thousands of them at once."""
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with front_world() as world, stdio_client(world) as client, trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        await client.send(b"x\n" * 8000 + b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
        await client.response(1)
        nursery.cancel_scope.cancel()
    assert turns >= 8000 / 16


async def test_errors_for_a_client_that_does_not_read(autojump_clock: MockClock) -> None:
    """Those that answer no request are dropped, the oldest first, as notifications are."""
    read = ReadLater()
    to_server, receive = memory_stream_one_way_pair()
    async with front_world() as world, trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve_stdio, world.manager, receive, read, settings=ServeSettings(stream_buffer=64)))
        await to_server.send_all(b"x\n" * 1000 + b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
        await wait_all_tasks_blocked()
        read.may_read.set()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    received = [json.loads(line) for line in read.data.splitlines()]
    assert 1 == received[-1]["id"]
    assert 64 <= len(received) <= 64 + 2 * 16  # what was being written already, of two turns of the reader


async def test_a_line_that_does_not_end(autojump_clock: MockClock) -> None:
    """It ends the server: what follows cannot be told apart."""
    async with front_world() as world, stdio_client(world, max_body_bytes=1000) as client:
        await client.send(b"x" * (MOST_SKIPPED + 1) * 1000)
        await client.ended.wait()
        assert "does not end" in client.received[-1]["error"]["message"]


@EVERY_BACKEND
@EVERY_ERA
async def test_the_requests_under_way_are_bounded(era: str, backend_era: str, autojump_clock: MockClock) -> None:
    """The next one is refused under its id. Lines are read on: a request that is withdrawn makes room, `ping` and the
    answers to questions are taken.
    """
    waiting = Waiting(backend_era)
    async with front_world(waiting.backend) as world, stdio_client(world, era, stream_buffer=8) as client:
        for number in range(8):
            await client.ask("tools/call", WAIT, number)
        await waiting.begun.wait()
        for one_more in (8, "nine"):
            await client.ask("tools/call", WAIT, one_more)
            error = (await client.response(one_more))["error"]
            assert (-32000, "8 requests are under way, and there may be no more (stream_buffer)") == (
                error["code"],
                error["message"],
            )
        await client.send({"jsonrpc": "2.0", "id": "ping", "method": "ping"})
        assert {} == (await client.response("ping"))["result"]
        await client.withdraw(3)
        await waiting.cancelled.wait()
        await client.ask("tools/call", WAIT, "again")
        await client.ask("tools/call", WAIT, "too many")
        await client.response("too many")
        waiting.go_on.set()
        for request_id in (0, 1, 2, 4, 5, 6, 7, "again"):
            assert "waited" in str(await client.response(request_id))
        await client.result("tools/call", {"name": "a_echo", "arguments": {}}, "room again")
        assert all(message.get("id") != 3 for message in client.received)


async def test_requests_that_wait_for_answers_of_their_client(autojump_clock: MockClock) -> None:
    """As many as may be under way: the answers are read, so none of them waits for its deadline."""

    async def ask(arguments: JSON, context: CallContext) -> str:
        return str(await context.request_all({"r": ("roots/list", {})}))

    backend = echo_backend(answers="sse")
    backend.add_tool("ask", ask)
    async with (
        front_world(backend) as world,
        stdio_client(world, capabilities={"roots": {}}, stream_buffer=4) as client,
    ):
        for number in range(6):
            await client.ask("tools/call", {"name": "a_ask", "arguments": {}}, f"call {number}")
        for question in await client.questions(4):
            await client.reply(question["id"], {"roots": []})
        with trio.fail_after(1):
            for number in range(6):
                assert (number >= 4) == ("error" in await client.response(f"call {number}"))


async def test_the_requests_of_batches_are_under_way_too(autojump_clock: MockClock) -> None:
    """Each of them counts, and those that are too many are refused in the batch."""
    waiting = Waiting()
    async with (
        front_world(waiting.backend) as world,
        stdio_client(world, opens=False, stream_buffer=3) as client,
    ):
        await client.initialize(version="2025-03-26")
        call = {"jsonrpc": "2.0", "method": "tools/call", "params": WAIT}
        await client.ask("tools/call", WAIT, "alone")
        await client.send([{**call, "id": number} for number in range(4)])
        await waiting.begun.wait()
        waiting.go_on.set()
        answers = await client.wait(lambda message: isinstance(message, list))
        assert [False, False, True, True] == sorted("error" in answer for answer in answers)
        assert "waited" in str(await client.wait(lambda message: "alone" in str(message)))


async def test_batches_of_the_version_that_has_them(autojump_clock: MockClock) -> None:
    """One array of responses, to a client of 2025-03-26."""
    async with front_world() as world, stdio_client(world, opens=False) as client:
        await client.initialize(version="2025-03-26")
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        await client.send([ping, {"jsonrpc": "2.0", "method": "notifications/x"}, {**ping, "id": 2}, 5])
        first, second, bad = await client.wait(lambda message: isinstance(message, list))
        assert (1, 2, None) == (first["id"], second["id"], bad["id"])


@EVERY_BACKEND
@EVERY_ERA
async def test_the_end_of_the_stream_ends_the_last_line(era: str, backend_era: str, autojump_clock: MockClock) -> None:
    """A client that writes one message without a line end, and closes, gets its answer."""
    async with front_world(echo_backend(backend_era)) as world, stdio_client(world, era) as client:
        if era == "modern":
            message, _ = modern_request("tools/call", {"name": "a_echo", "arguments": {"v": 5}})
        else:
            message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
            message["params"] = {"name": "a_echo", "arguments": {"v": 5}}
        await client.send(json.dumps(message).encode())
        await client.to_server.aclose()
        await client.ended.wait()
        assert "result" in await client.response(1)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"a_ec', (7, -32700)),
        (b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"' + b"x" * 5000, (7, -32600)),
        (b"  ", None),
    ],
    ids=["cut off", "long", "blank"],
)
async def test_a_last_line_that_cannot_be_read(
    line: bytes, answer: tuple[int, int] | None, autojump_clock: MockClock
) -> None:
    """It is refused as if it had a line end: the client may have closed its writing end alone."""
    async with front_world() as world, stdio_client(world, "modern", max_body_bytes=4096) as client:
        await client.send(line)
        await client.to_server.aclose()
        await client.ended.wait()
        assert [answer] * (answer is not None) == [(each["id"], each["error"]["code"]) for each in client.received]


@pytest.mark.parametrize("end", [b"", b"\n"], ids=["no line end", "line end"])
async def test_all_that_came_before_the_end_is_answered(end: bytes, autojump_clock: MockClock) -> None:
    """Also by a client that has not waited for its session, and a batch that has come last."""
    opening = {"protocolVersion": "2025-03-26", "capabilities": {}, "clientInfo": {"name": "t"}}
    call = {"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "a_echo", "arguments": {}}}
    lines: list[Any] = [
        {"jsonrpc": "2.0", "id": "init", "method": "initialize", "params": opening},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {**call, "id": 1},
        [{**call, "id": 2}, {**call, "id": 3}],
    ]
    async with front_world() as world, stdio_client(world, opens=False) as client:
        await client.send(b"\n".join(json.dumps(line).encode() for line in lines) + end)
        await client.to_server.aclose()
        await client.ended.wait()
        answers = [
            each for message in client.received for each in (message if isinstance(message, list) else [message])
        ]
        assert {"init", 1, 2, 3} == {answer["id"] for answer in answers if "result" in answer}


async def test_a_batch_before_the_end_is_answered(autojump_clock: MockClock) -> None:
    """Also if nothing else is under way."""
    async with front_world() as world, stdio_client(world, opens=False) as client:
        await client.initialize(version="2025-03-26")
        call = {"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "a_echo", "arguments": {}}}
        await client.send([{**call, "id": number} for number in range(3)])
        await client.to_server.aclose()
        await client.ended.wait()
        (batch,) = (message for message in client.received if isinstance(message, list))
        assert [0, 1, 2] == [answer["id"] for answer in batch if "result" in answer]


async def test_a_line_of_a_client_that_broke_off(autojump_clock: MockClock) -> None:
    """A stream that breaks ends no line: the rest of the message is missing."""
    async with front_world() as world:
        send, from_server = memory_stream_one_way_pair()
        await serve_stdio(world.manager, Breaks([b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}']), send)
        await send.aclose()
        assert b"" == await from_server.receive_some()


@attrs.define(eq=False)
class Breaks(trio.abc.ReceiveStream):
    """From a client whose stream breaks behind these chunks."""

    chunks: list[bytes]

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self.chunks:
            raise trio.BrokenResourceError
        return self.chunks.pop(0)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


ANSWER: JSON = {"action": "accept", "content": {"name": "eve"}}


async def test_a_question_that_is_open_at_the_end(autojump_clock: MockClock) -> None:
    """No answer can come any more, so the backend gets an error at once, and the call its response."""
    failed: list[str] = []

    async def ask(arguments: JSON, context: CallContext) -> str:
        try:
            await context.request_all({"r": ("roots/list", {})})
        except RpcError as error:
            failed.append(str(error))
        return "without"

    backend = echo_backend(answers="sse")
    backend.add_tool("ask", ask)
    async with front_world(backend) as world, stdio_client(world, capabilities={"roots": {}}) as client:
        await client.ask("tools/call", {"name": "a_ask", "arguments": {}}, "call")
        await client.wait(lambda message: message.get("method") == "roots/list")
        await client.to_server.aclose()
        with trio.fail_after(5):
            assert "without" in str(await client.response("call"))
            await client.ended.wait()
    assert 1 == len(failed)


async def test_changes_are_told(autojump_clock: MockClock) -> None:
    """A list that changes, to clients of both eras: to the one without asking, to the other on its stream."""
    backend = echo_backend()
    backend.listens = True
    async with front_world(backend) as world, stdio_client(world) as client:
        client.era = "modern"
        await client.ask("subscriptions/listen", {"notifications": {"toolsListChanged": True}}, "listen")
        await client.wait(lambda message: message.get("method") == "notifications/subscriptions/acknowledged")
        await trio.sleep(5)
        backend.add_tool("more")
        backend.notify("notifications/tools/list_changed")
        await trio.sleep(5)
        told = [each for each in client.received if each.get("method") == "notifications/tools/list_changed"]
        assert [False, True] == sorted("_meta" in each.get("params", {}) for each in told)
        await client.notify("notifications/cancelled", {"requestId": "listen"})
        await client.to_server.aclose()
        await client.ended.wait()


@pytest.mark.parametrize("how", ["end of the stream", "signal"])
@EVERY_ERA
async def test_the_end_waits_for_what_is_under_way(era: str, how: str, autojump_clock: MockClock) -> None:
    """A running request is answered, a stream of changes gets its result, and then the server returns."""
    waiting = Waiting()
    async with front_world(waiting.backend) as world, stdio_client(world, era) as client:
        await client.ask("tools/call", WAIT, 1)
        if era == "modern":
            await client.ask("subscriptions/listen", {"notifications": {}}, "listen")
        await waiting.begun.wait()
        if how == "signal":
            client.stopped.cancel()
            await client.ask("tools/call", {"name": "a_echo", "arguments": {}}, 2)
            assert -32000 == (await client.response(2))["error"]["code"]
        else:
            await client.to_server.aclose()
        await trio.sleep(5)
        assert not client.ended.is_set()
        waiting.go_on.set()
        assert "waited" in str(await client.response(1))
        await client.ended.wait()
        assert (era == "modern") == any(message.get("id") == "listen" for message in client.received)


@pytest.mark.parametrize("how", ["end of the stream", "signal"])
@EVERY_ERA
async def test_the_end_is_bounded(era: str, how: str, autojump_clock: MockClock) -> None:
    """A request that does not end is cut after `shutdown_timeout`."""
    waiting = Waiting()
    async with front_world(waiting.backend) as world, stdio_client(world, era, shutdown_timeout=3.0) as client:
        await client.ask("tools/call", WAIT, 1)
        await waiting.begun.wait()
        began_at = trio.current_time()
        if how == "signal":
            client.stopped.cancel()
        else:
            await client.to_server.aclose()
        await client.ended.wait()
        assert 3.0 == pytest.approx(trio.current_time() - began_at, abs=0.6)
        with trio.fail_after(1):
            await waiting.cancelled.wait()


class ReadLater(trio.abc.SendStream):
    """To a client that reads once `may_read` is set."""

    def __init__(self) -> None:
        self.may_read = trio.Event()
        self.data = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.may_read.wait()
        self.data += data

    async def wait_send_all_might_not_block(self) -> None:
        await self.may_read.wait()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class NeverRead(trio.abc.SendStream):
    """To a client that does not read, or (`is_gone`) that has closed its end."""

    def __init__(self, is_gone: bool) -> None:
        self.is_gone = is_gone
        self.begun = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.begun.set()
        await trio.lowlevel.checkpoint()
        if self.is_gone:
            raise trio.BrokenResourceError
        await trio.sleep_forever()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("is_gone", [False, True])
async def test_a_client_that_does_not_read(is_gone: bool, autojump_clock: MockClock) -> None:
    """It holds the end up for a moment at most; one that has closed its end is gone, and the server returns."""
    send = NeverRead(is_gone)
    to_server, receive = memory_stream_one_way_pair()
    async with front_world() as world, trio.open_nursery() as nursery:
        scope, ended = trio.CancelScope(), trio.Event()

        async def serve() -> None:
            with scope:
                await serve_stdio(world.manager, receive, send)
            ended.set()

        nursery.start_soon(serve)
        await to_server.send_all(b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n' * 3)
        await send.begun.wait()
        if not is_gone:
            scope.cancel()
        with trio.fail_after(1):
            await ended.wait()


@pytest.mark.parametrize("made_in", [0.0, 3.0])
async def test_a_question_waits_until_the_client_is_initialized(made_in: float, autojump_clock: MockClock) -> None:
    """Servers like to ask for roots as soon as they are initialized, be it while another backend is slow."""
    asking, slow = echo_backend("legacy", listens=True), echo_backend("legacy")
    slow.fail("initialize", Delay(made_in))
    answers: list[Any] = []

    async def ask_at_once() -> None:
        await trio.sleep(0.5)
        answers.append(await asking.ask("roots/list", {}))

    async with front_world(asking, slow) as world, stdio_client(world, opens=False) as client:
        world.nursery.start_soon(ask_at_once)
        params = {"protocolVersion": LEGACY, "capabilities": {"roots": {}}, "clientInfo": {"name": "t"}}
        await client.send({"jsonrpc": "2.0", "id": "init", "method": "initialize", "params": params})
        await client.response("init")
        await trio.sleep(1)
        assert 1 == len(client.received)
        await client.notify("notifications/initialized")
        question = await client.wait(lambda message: message.get("method") == "roots/list")
        await client.send({"jsonrpc": "2.0", "id": question["id"], "result": {"roots": []}})
        await trio.sleep(1)
        assert [{"roots": []}] == answers


async def test_changed_roots_hold_up_no_line(autojump_clock: MockClock) -> None:
    """A backend that is told of them does not answer; and the session may end."""
    backend = echo_backend("legacy")
    backend.fail("notifications/roots/list_changed", Hang())
    async with front_world(backend) as world, stdio_client(world, capabilities={"roots": {}}) as client:
        await client.notify("notifications/roots/list_changed")
        before = trio.current_time()
        await client.result("ping")
        assert before == trio.current_time()
        (session,) = world.manager.live_sessions
        await world.manager.terminate(session.id)
        await client.notify("notifications/roots/list_changed")
        assert {} == await client.result("ping", request_id=2)
