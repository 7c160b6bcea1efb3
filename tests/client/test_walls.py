"""Walls around the conversation with one backend: what a hostile or broken one can cost is bounded on every channel."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time

import attrs
import pytest
import trio
from support.channels import (
    ANSWERS,
    CHANNELS,
    EVERY_ANSWER,
    EVERY_CHANNEL,
    EVERY_LEGACY_CHANNEL,
    LEGACY_CHANNELS,
    Channel,
    Meter,
    notification,
)
from support.clients import ask, call, no_progress
from support.harness import library_tasks
from support.processes import PYTHON_OPTIONS
from support.untraced import untraced
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendProtocolError,
    BackendRejected,
    BackendUnavailable,
    FactorySettings,
    MessageTooLarge,
    Session,
    open_session_factory,
)
from trio_vmcp._client import client as client_of_any_era
from trio_vmcp._client.channels.pace import (
    BYTES_AHEAD,
    BYTES_PER_SECOND,
    LINE_COST,
    MESSAGES_AHEAD,
    MESSAGES_AT_ONCE,
    MESSAGES_PER_SECOND,
    REQUEST_COST,
    Pace,
)
from trio_vmcp._client.channels.parsing import parse
from trio_vmcp._protocol.jsonrpc import BadMessage, Request
from trio_vmcp.testing import CallContext, Hang, Raw, Rewrite, ScriptedBackend, WireFault, open_memory_network
from trio_vmcp.testing.faults import Cut, Step

EVERY_STREAMABLE_ANSWER = pytest.mark.parametrize(
    "channel", [channel for channel in ANSWERS if channel.transport == "streamable-http"], ids=str
)
TOOLS_CHANGED = "notifications/tools/list_changed"
HOUR = 3600.0

# The pace of a flood


@EVERY_STREAMABLE_ANSWER
async def test_an_answer_of_its_own_is_no_piece_of_a_flood(channel: Channel, autojump_clock: MockClock) -> None:
    """A request waits for it. (On a stream for all, nothing tells a piece of an answer from a flood.)"""
    async with channel.open_client(channel.backend()) as client:
        pace: Pace = client._channel.pace  # type: ignore[attr-defined]  # what is left of it shows after 1000 calls
        left = pace._messages
        for _ in range(9):
            await call(client)
        assert left - pace._messages <= 9 * LINE_COST  # a blank line after the answer
        assert pace._since_checkpoint <= 10 * LINE_COST


@pytest.mark.parametrize(
    ("charge", "seconds"),
    [
        (lambda pace: [pace.charge_message(None, 0) for _ in range(501)], 17 / 2000),
        (lambda pace: [pace.charge_message(Request(1, "ping", {}), 0) for _ in range(63)], 20 / 2000),
        (lambda pace: pace.charge_lines(8016, 0), 17 / 2000),
        (lambda pace: pace.charge_message(None, 0, more_lines=8000), 17 / 2000),
        (lambda pace: [pace.charge_piece(b"x") for _ in range(1002)], 17 / 2000),
        (lambda pace: pace.charge_crumbs(8016, 8016 * 64 - 1), 17 / 2000),
        (lambda pace: pace.charge_crumbs(8016, 8016 * 64), 0.0),
        (lambda pace: pace.charge_message(None, 17 * 1024 * 1024), 1.0),
    ],
    ids=["messages", "requests", "lines", "lines of a message", "pieces", "crumbs", "no crumbs", "bytes"],
)
async def test_the_pace_in_numbers(charge: Callable[[Pace], object], seconds: float, autojump_clock: MockClock) -> None:
    """500 messages and 16 MiB at once, then 2 000 messages and 1 MiB a second, 16 messages at a time. A request counts
    as 8, a line as a sixteenth, a small piece as half a message.
    """
    pace = Pace()
    charge(pace)
    await pace.wait()
    assert seconds == pytest.approx(trio.current_time())


@attrs.frozen
class Flood:
    """One piece over and over.

    Attributes:
        piece: What the backend sends as one message.
        cost: Messages that the piece counts for.
    """

    piece: bytes
    cost: float
    SECONDS = 0.6  # that the flood lasts at the pace

    def pieces_within(self, seconds: float) -> float:
        """How many may be read in so many seconds."""
        by_cost = (MESSAGES_AHEAD + seconds * MESSAGES_PER_SECOND) / self.cost
        by_size = (BYTES_AHEAD + seconds * BYTES_PER_SECOND) / len(self.piece)
        return min(by_cost, by_size)

    @property
    def pieces(self) -> int:
        """How many of them the flood has."""
        return int(self.pieces_within(self.SECONDS)) + self.in_buffers

    @property
    def in_buffers(self) -> int:
        """How many may be read and not yet counted: what one read returns."""
        return 2 * BUFFER_BYTES // len(self.piece) + 2 + int(2 * MESSAGES_AT_ONCE / self.cost)

    def assert_paced(self, taken: int, seconds: float, *, each: float) -> None:
        """So many bytes have been read so many seconds after the beginning, `each` of them a piece."""
        most = self.pieces_within(seconds)
        assert taken / each <= 1.05 * most + self.in_buffers, "read too fast"
        assert taken / each >= 0.4 * most - self.in_buffers, "read too slowly"


BUFFER_BYTES = 2048
PADDING = "x" * 120_000
FLOODS: dict[str, Flood] = {
    "messages": Flood(json.dumps(notification("notifications/x")).encode(), 1),
    "large messages": Flood(json.dumps(notification("notifications/x", padding=PADDING)).encode(), 1),
    "progress": Flood(json.dumps(notification("notifications/progress", progressToken=10**6, progress=1)).encode(), 1),
    "pings": Flood(b'{"jsonrpc":"2.0","id":7,"method":"ping"}', REQUEST_COST),
    "stray answers": Flood(b'{"jsonrpc":"2.0","id":1000000,"result":{}}', 1),
    "empty lines": Flood(b"\n" * 1000, 1000 * LINE_COST),
    "lines that are no JSON": Flood(b"not JSON, " * 5, 1),
}
LIMITED = FactorySettings(max_message_bytes=150_000)
TOO_LARGE = Flood(b'{"jsonrpc":"2.0","id":1000000,"result":"%s"}' % (b"x" * 160_000), 1)
EVERY_FLOOD = pytest.mark.parametrize("name", FLOODS)


def answered(backend: ScriptedBackend) -> int:
    """Bytes of the responses to our answers: they are no part of the flood."""
    return sum(exchange.response_bytes for exchange in backend.exchanges if not exchange.method)


def bytes_of(channel: Channel, flood: Flood) -> float:
    """How many bytes one piece is on its way to the client."""
    if channel.transport == "stdio":
        return len(flood.piece) + 1
    event = len(b"event: message\ndata: \n\n") + len(flood.piece)
    return event + len(b"%x\r\n\r\n" % event)  # in a chunk of its own: RFC 9112, section 7.1


@EVERY_CHANNEL
@pytest.mark.parametrize("name", [*FLOODS, "too large stray answers"])
async def test_a_flood_on_a_held_stream_is_read_at_a_pace(
    channel: Channel, name: str, autojump_clock: MockClock
) -> None:
    """The pace of one backend is the same whatever it sends, and wherever. Calls go on beside the flood."""
    flood, meter = FLOODS.get(name, TOO_LARGE), Meter(BUFFER_BYTES)
    backend = channel.backend(listens=True)
    async with channel.open_client(backend, meter=meter, settings=LIMITED) as client:
        await wait_all_tasks_blocked()
        before = meter.taken
        for _ in range(flood.pieces):
            backend.send(flood.piece)
        started = trio.current_time()
        for seconds in (0.01, 0.3):
            await trio.sleep_until(started + seconds)
            flood.assert_paced(meter.taken - before - answered(backend), seconds, each=bytes_of(channel, flood))
        await trio.sleep(HOUR)
        await call(client)


@EVERY_CHANNEL
@EVERY_FLOOD
async def test_a_flood_before_an_answer_is_read_at_the_same_pace(
    channel: Channel, name: str, autojump_clock: MockClock
) -> None:
    """The answer comes behind it, and counts."""
    flood, meter = FLOODS[name], Meter(BUFFER_BYTES)

    async def flooding(arguments: JSON, context: CallContext) -> str:
        for _ in range(flood.pieces):
            await context.send(flood.piece)
        return "done"

    async def one() -> None:
        answers.append(await call(client, "flood", on_progress=no_progress))

    answers: list[JSON] = []
    backend = channel.backend()
    backend.add_tool("flood", flooding)
    async with channel.open_client(backend, meter=meter) as client, trio.open_nursery() as nursery:
        before = meter.taken
        started = trio.current_time()
        nursery.start_soon(one)
        for seconds in (0.01, 0.3):
            await trio.sleep_until(started + seconds)
            flood.assert_paced(meter.taken - before - answered(backend), seconds, each=bytes_of(channel, flood))
        assert [] == answers
        await trio.sleep(HOUR)
        assert ["done"] == [answer["content"][0]["text"] for answer in answers]


STREAMED = pytest.mark.parametrize("channel", [c for c in CHANNELS if c.transport != "stdio"], ids=str)


def in_crumbs(text: bytes, size: int) -> bytes:
    """The body of a chunked response (RFC 9112 §7.1), in chunks of `size` bytes."""
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    return b"".join([b"%x\r\n%s\r\n" % (len(part), part) for part in parts])


@STREAMED
@pytest.mark.parametrize(("size", "seconds"), [(1, 1.0), (1000, 0.0)])
async def test_chunks_of_a_byte_count_for_themselves(
    channel: Channel, size: int, seconds: float, autojump_clock: MockClock
) -> None:
    """One event in chunks of a byte is read at the pace of as many lines: each costs as much. In chunks of a common
    size, its bytes alone count.
    """
    count = int((MESSAGES_AHEAD + MESSAGES_PER_SECOND) / LINE_COST)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    begin = b"event: endpoint\ndata: /messages\n\n" if channel.transport == "sse" else b""
    flood = Raw(head, in_crumbs(begin, 1000) + in_crumbs(b"data: " + b"x" * count, size))
    backend = channel.backend()
    if channel.transport == "sse":  # the stream is the session
        backend.fail("GET", flood)
        backend.fail("POST", Hang())
        async with channel.open_bench(backend) as bench:
            started = trio.current_time()
            with pytest.raises(BackendUnavailable):
                await bench.connect()
    else:
        backend.fail("tools/call", flood)
        async with channel.open_client(backend) as client:
            started = trio.current_time()
            with pytest.raises(BackendUnavailable):
                await call(client)
    assert seconds == pytest.approx(trio.current_time() - started, abs=0.1)


@STREAMED
async def test_an_event_of_many_lines_counts_for_its_lines(channel: Channel, autojump_clock: MockClock) -> None:
    """Each `data` line of an event takes time to decode, however short it is."""
    lines = 1000
    flood, meter = Flood(b"\ndata:" * lines, 1 + lines * LINE_COST), Meter(BUFFER_BYTES)
    backend = channel.backend(listens=True)
    async with channel.open_client(backend, meter=meter) as client:
        await wait_all_tasks_blocked()
        before = meter.taken
        for _ in range(flood.pieces):
            backend.send(flood.piece)
        started = trio.current_time()
        for seconds in (0.01, 0.6):
            await trio.sleep_until(started + seconds)
            flood.assert_paced(meter.taken - before - answered(backend), seconds, each=bytes_of(channel, flood))
        await trio.sleep(HOUR)
        await call(client)


@STREAMED
async def test_an_answer_of_many_lines_is_not_slowed_down(channel: Channel, autojump_clock: MockClock) -> None:
    """A server may print its JSON prettily, each line in a `data` line of its own. The call sets the pace."""
    lines = 99_990  # nearly as many values and digits as a message may have

    async def print_prettily(arguments: JSON, context: CallContext) -> str:
        text: JSON = {"content": [], "structuredContent": {"n": [7] * lines}}
        if channel.is_modern:
            text["resultType"] = "complete"
        answer = {"jsonrpc": "2.0", "id": context.exchange.message["id"], "result": text}
        await context.send(json.dumps(answer, indent=1).replace("\n", "\ndata: ").encode())
        await trio.sleep_forever()
        raise AssertionError

    backend = channel.backend()
    backend.add_tool("print", print_prettily)
    async with channel.open_client(backend) as client:
        begun = trio.current_time()
        assert lines == len((await call(client, "print"))["structuredContent"]["n"])
        assert trio.current_time() - begun <= 0.2


class LongestStep(trio.abc.Instrument):
    """CPU seconds of the longest task step: what another task may have to wait, on however busy a machine."""

    def __init__(self) -> None:
        self.seconds, self._begun = 0.0, thread_time()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._begun = thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.seconds = max(self.seconds, thread_time() - self._begun)


async def usual_cost(session: Session, seconds: float) -> float:
    """CPU seconds of this process from the beginning of a call to its end: the median over so many seconds."""
    took: list[float] = []
    end = perf_counter() + seconds
    while perf_counter() < end:
        begun = thread_time()
        await session.call_tool("healthy_echo")
        took.append(thread_time() - begun)
        await trio.sleep(0.002)
    return median(took)


TEXTS = {
    "message": (json.dumps(notification("notifications/x")) + "\n", 1.0),
    "empty line": ("\n", LINE_COST),
    "line that is no JSON": ("x\n", 1.0),
}


@pytest.mark.parametrize("name", TEXTS)
async def test_a_program_that_floods_costs_another_backend_little(name: str, tmp_path: Path) -> None:
    """Over a real pipe, in real time: a call to the other backend costs at most twice what it cost before, no task step
    takes over 50 ms, and the pipe is read at the pace of a backend. In CPU time, since the machine may be busy.
    """
    text, cost = TEXTS[name]
    counter = tmp_path / "written"
    counter.write_text("0")
    healthy = ScriptedBackend()
    healthy.add_tool("echo")
    script = Path(__file__).parents[1] / "support" / "children" / "flooding.py"
    arguments = (*PYTHON_OPTIONS, str(script), str(counter), text.encode("unicode_escape").decode())
    noisy = Backend(id="noisy", transport="stdio", era="legacy", command=sys.executable, args=arguments)
    settings = FactorySettings(teardown_timeout=0.1)  # the program does not read, and so has to be killed
    async with (
        open_memory_network() as network,
        open_session_factory(transport=network.transport(), settings=settings) as factory,
    ):
        configured = Backend(id="healthy", url=network.attach("healthy.test", healthy), era="legacy")
        async with factory.open_session([configured]) as session:
            alone = await usual_cost(session, 0.1)
            begun = perf_counter()
            await session.add_backend(noisy)
            assert () == session.failures
            step = LongestStep()
            with untraced():
                trio.lowlevel.add_instrument(step)
                beside = await usual_cost(session, 0.4)
                trio.lowlevel.remove_instrument(step)
            taken = int(counter.read_text())
            lasted = perf_counter() - begun
    assert step.seconds < 0.05
    in_pipe = 3 * 64 * 1024  # what a pipe holds, what one read returns, and what one write brings
    assert (taken - in_pipe) / len(text) * cost <= MESSAGES_AHEAD + lasted * MESSAGES_PER_SECOND
    assert beside <= 2 * alone + 0.0005


MANY_VALUES = b"[" + b"[]," * 200_000 + b"[]]"
COSTLY = {
    "empty arrays": b'{"a":' + MANY_VALUES + b"}",
    "empty objects": b'{"a":' + MANY_VALUES.replace(b"[]", b"{}") + b"}",
    "members": b'{"a":{' + b'"":0,' * 200_000 + b'"":0}}',
    "digits": b'{"a":[' + b"7" * 4000 + (b"," + b"7" * 4000) * 200 + b"]}",
}
EVERY_COSTLY = pytest.mark.parametrize("name", COSTLY)


@EVERY_CHANNEL
@EVERY_COSTLY
async def test_a_costly_message_before_an_answer_is_skipped(
    channel: Channel, name: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A message with more values or digits than allowed is skipped, asked for or not. The answer behind it counts."""

    async def babble(arguments: JSON, context: CallContext) -> str:
        await context.send(b'{"jsonrpc":"2.0","method":"notifications/x","params":%s}' % COSTLY[name])
        return "done"

    backend = channel.backend()
    backend.add_tool("babble", babble)
    async with channel.open_client(backend) as client:
        step = LongestStep()
        trio.lowlevel.add_instrument(step)
        assert "done" == (await call(client, "babble", timeout=60))["content"][0]["text"]
        trio.lowlevel.remove_instrument(step)
    (warning,) = warnings(caplog)
    assert "digits" in warning if name == "digits" else "100000 values (max_json_values)" in warning
    assert step.seconds < 0.05


@EVERY_CHANNEL
@EVERY_COSTLY
async def test_a_costly_message_on_a_held_stream_is_skipped(
    channel: Channel, name: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The stream goes on being read, and calls go on."""
    backend = channel.backend(listens=True)
    async with channel.open_client(backend) as client:
        await wait_all_tasks_blocked()
        backend.send(b'{"jsonrpc":"2.0","method":"notifications/x","params":%s}' % COSTLY[name])
        await trio.sleep(HOUR)
        await call(client)
    assert 1 == len(warnings(caplog))


MIB = 1024 * 1024
LARGE = {
    "values": "[" + "[]," * 99_980 + "[]]",
    "members": "{" + ",".join(f'"{n:x}":[]' for n in range(50_000)) + "}",
    "text": json.dumps("abc " * (4 * MIB)),
    "escapes": '"' + "\\n" * (8 * MIB - 50) + '"',
    "white space": "[" + " " * (16 * MIB - 100) + "]",
    "too many values": "[" + "[]," * (5 * MIB) + "[]]",
    "open brackets": "[" * (16 * MIB - 100),
}


@pytest.mark.parametrize("name", LARGE)
async def test_no_step_of_a_parse_is_long(name: str, autojump_clock: MockClock) -> None:
    """Whatever a message within `max_message_bytes` is made of, other tasks run between its steps."""
    text = '{"jsonrpc":"2.0","id":1,"result":{"a":' + LARGE[name] + "}}"
    step = LongestStep()
    with untraced():
        trio.lowlevel.add_instrument(step)
        with suppress(BadMessage):
            await parse(text, max_depth=128, max_values=100_000)
        await trio.lowlevel.checkpoint()
        trio.lowlevel.remove_instrument(step)
    assert step.seconds < 0.05


# What is no message


NOISE = (b'{"type":"heartbeat"}', b"ping", b"{}", b"[DONE]", b"[]", b"7", b'{"jsonrpc":"2.0","id":2.5,"result":{}}')
EVERY_NOISE = pytest.mark.parametrize("noise", NOISE, ids=bytes.decode)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@EVERY_CHANNEL
@EVERY_NOISE
async def test_noise_before_an_answer_is_skipped(
    channel: Channel, noise: bytes, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer behind it counts. One warning, without the text."""

    async def babble(arguments: JSON, context: CallContext) -> str:
        for _ in range(3):
            await context.send(noise)
        return "done"

    backend = channel.backend()
    backend.add_tool("babble", babble)
    async with channel.open_client(backend) as client:
        for _ in range(2):
            assert "done" == (await call(client, "babble", timeout=5))["content"][0]["text"]
    (warning,) = warnings(caplog)
    assert warning.startswith("backend 'b': ")
    assert noise.decode() not in warning


@EVERY_CHANNEL
@EVERY_NOISE
async def test_noise_on_a_held_stream_is_skipped(
    channel: Channel, noise: bytes, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The stream is not opened again for it, and changes go on being heard of."""
    backend = channel.backend(listens=True)
    async with channel.open_bench(backend) as bench:
        await bench.connect()
        await wait_all_tasks_blocked()
        before = len(backend.exchanges)
        for _ in range(20):
            backend.send(noise)
            await trio.sleep(30)
        backend.notify(TOOLS_CHANGED)
        await trio.sleep(1)
        assert [TOOLS_CHANGED] == [method for method, _ in bench.events]
        assert before == len(backend.exchanges)
        assert 1 == len(warnings(caplog))


# What cannot be read, and is an answer


UNREADABLE: dict[str, Callable[[JSON], object]] = {
    "not UTF-8": lambda m: json.dumps({**m, "result": {"a": "@"}}).encode().replace(b"@", b"caf\xe9"),
    "not UTF-8, id last": lambda m: b'{"jsonrpc":"2.0","result":{"a":"caf\xe9"},"id":%d}' % m["id"],
    "id as a string": lambda m: {**m, "id": str(m["id"])},
    "half": lambda m: b'{"jsonrpc":"2.0","id":%d,"result":{"a":' % m["id"],
    "two in one": lambda m: json.dumps(m).encode() * 2,
}


@EVERY_ANSWER
@pytest.mark.parametrize("name", UNREADABLE)
async def test_an_unreadable_answer_ends_its_call_at_once(
    channel: Channel, name: str, autojump_clock: MockClock
) -> None:
    """Its id can be read at one of its ends. The call may have run, another one goes on, and the next one works."""

    async def slow(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(5)
        return "rested"

    backend = channel.backend()
    backend.add_tool("slow", slow)
    backend.fail(lambda exchange: exchange.params.get("name") == "echo", Rewrite(UNREADABLE[name]), times=1)
    async with channel.open_client(backend) as client:
        async with trio.open_nursery() as calls:
            calls.start_soon(call, client, "slow")
            await wait_all_tasks_blocked()
            with pytest.raises(BackendProtocolError) as caught:
                await call(client, timeout=20)
            assert trio.current_time() < 1
        assert caught.value.may_have_executed
        await call(client)


@EVERY_CHANNEL
async def test_an_unreadable_answer_that_no_call_waits_for_is_warned_of(
    channel: Channel, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, and without its text."""

    async def stray(arguments: JSON, context: CallContext) -> str:
        for number in range(3):
            await context.send({"jsonrpc": "2.0", "id": str(10**6 + number), "result": {}})
        return "done"

    backend = channel.backend()
    backend.add_tool("stray", stray)
    async with channel.open_client(backend) as client:
        assert "done" == (await call(client, "stray"))["content"][0]["text"]
    assert 1 == len(warnings(caplog))


# What was not declared


@EVERY_LEGACY_CHANNEL
@pytest.mark.parametrize("method", ["resources/subscribe", "resources/unsubscribe"])
async def test_an_undeclared_subscription_is_not_sent(channel: Channel, method: str, autojump_clock: MockClock) -> None:
    """MCP 2025-11-25, lifecycle: "Only use capabilities that were successfully negotiated"."""
    backend = channel.backend(listens=True, capabilities={"resources": {"listChanged": True}})
    backend.add_resource("memo://one")
    async with channel.open_client(backend) as client:
        await wait_all_tasks_blocked()
        before = len(backend.exchanges)
        with pytest.raises(BackendRejected, match=r"declares no resources\.subscribe") as caught:
            await ask(client, method, {"uri": "memo://one"}, timeout=5)
        assert (-32601, False) == (caught.value.code, caught.value.may_have_executed)
        await wait_all_tasks_blocked()
        assert before == len(backend.exchanges)


@EVERY_CHANNEL
async def test_subscriptions_are_bounded(
    channel: Channel, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A caller's loop must not fill the memory of the backend, nor ours. One that is given up makes room."""
    assert 1000 == client_of_any_era.MOST_SUBSCRIPTIONS
    monkeypatch.setattr(client_of_any_era, "MOST_SUBSCRIPTIONS", 3)
    backend = channel.backend(listens=True)
    backend.add_resource("memo://one")

    async def change(number: int, method: str = "resources/subscribe") -> None:
        assert {} == await ask(client, method, {"uri": f"memo://{number}"})

    async with channel.open_client(backend) as client:
        for number in (1, 2, 3, 2):
            await change(number)
        with pytest.raises(MessageTooLarge, match="has 3 resource subscriptions, and there may be no more"):
            await change(4)
        await change(1, "resources/unsubscribe")
        await change(4)


# What is told, and not taken


class _OpenBody(WireFault):
    """A response of this status with a body that does not end."""

    def __init__(self, status: int = 202) -> None:
        self.status = status

    def steps(self, sent: int, data: bytes) -> Iterator[Step]:
        yield b"HTTP/1.1 %d Accepted\r\ntransfer-encoding: chunked\r\n\r\n" % self.status
        yield Cut.STALL


POSTED = [channel for channel in LEGACY_CHANNELS if channel.transport != "stdio"]
HTTP_CHANNELS = pytest.mark.parametrize("channel", POSTED, ids=str)


@HTTP_CHANNELS
async def test_a_202_with_an_open_body_costs_a_moment(channel: Channel, autojump_clock: MockClock) -> None:
    """MCP 2025-11-25, transports: a notification is answered with 202 "with no body"; one that stays open is left."""
    backend = channel.backend()
    backend.fail(lambda exchange: exchange.method.startswith("notifications/"), _OpenBody())
    async with channel.open_client(backend) as client:
        assert trio.current_time() <= 0.2
        await call(client)
        with trio.move_on_after(1):
            await call(client, "hang")
        await call(client)
        started = trio.current_time()
        await client.aclose(terminate=True)
        assert trio.current_time() - started <= 1


@HTTP_CHANNELS
async def test_cancels_that_are_not_taken_are_bounded(channel: Channel, autojump_clock: MockClock) -> None:
    """At most 64 wait at once: a backend that answers none of them fills no memory. The next call works."""
    backend = channel.backend()
    backend.fail("notifications/cancelled", Hang())
    async with channel.open_client(backend, settings=FactorySettings(max_connections_per_backend=1000)) as client:
        await wait_all_tasks_blocked()
        before = len(library_tasks())
        with trio.move_on_after(1):
            async with trio.open_nursery() as calls:
                for _ in range(200):
                    calls.start_soon(call, client, "hang")
        await wait_all_tasks_blocked()
        assert 1 <= len(library_tasks()) - before <= 64
        assert 1 <= len(backend.received("notifications/cancelled")) <= 64
        await call(client)
