"""Clients that read slowly, or not at all: what waits for them is bounded, and nothing of the server waits for them."""

from __future__ import annotations

import attrs
import pytest
import trio
from support.front import front_world
from support.front_clients import EVERY_BACKEND, EVERY_CARRIER, EVERY_ERA, Gate, front_client
from support.harness import echo_backend
from trio.testing import MockClock, memory_stream_one_way_pair

from trio_vmcp import JSON
from trio_vmcp.serve import ServeSettings, _backlog
from trio_vmcp.serve._backlog import Backlog
from trio_vmcp.serve._stdio import serve_stdio
from trio_vmcp.testing import CallContext

MOST_BYTES = 64 * 1024


@pytest.fixture(autouse=True)
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backlog, "MOST_BYTES", MOST_BYTES)


@pytest.mark.parametrize(("count", "length"), [(400, 10), (40, 16 * 1024)], ids=["many", "large"])
@EVERY_BACKEND
@EVERY_ERA
@EVERY_CARRIER
async def test_what_waits_for_a_client_is_bounded(
    carrier: str, era: str, backend_era: str, count: int, length: int, autojump_clock: MockClock
) -> None:
    """In number and in bytes: progress is dropped, the oldest first; the result is not, and other calls go on."""

    async def work(arguments: JSON, context: CallContext) -> str:
        await context.progress(0)
        await trio.sleep(1)
        for number in range(1, count):
            await context.progress(number, None, "x" * length)
        return "done"

    backend = echo_backend(backend_era, "sse")
    backend.add_tool("work", work)
    async with front_client(carrier, era, backend, settings={"stream_buffer": 16}) as client:
        token = {"_meta": {"progressToken": 1}} if era == "legacy" else {}
        meta = {"progressToken": 1} if era == "modern" else {}
        await client.ask("tools/call", {"name": "a_work", **token}, "call", **meta)
        await client.wait(lambda message: message.get("method") == "notifications/progress")
        client.stop_reading()
        await trio.sleep(30)
        client.go_on_reading()
        assert "done" == (await client.response("call"))["result"]["content"][0]["text"]
        told = client.told("notifications/progress")
        assert count - 1 == told[-1]["progress"]
        assert 20 >= len(told)
        assert 2 * MOST_BYTES >= sum(len(each.get("message", "")) for each in told)


@pytest.mark.parametrize("keeps_sent", [False, True])
def test_a_backlog_keeps_a_bounded_number_of_bytes(keeps_sent: bool) -> None:
    """Beside the newest message and those that must not be dropped; a result is always kept."""
    backlog = Backlog(256, keeps_sent=keeps_sent)
    backlog.add(b"question", may_drop=False)
    for _ in range(20):
        backlog.add(b"x" * (MOST_BYTES // 3), may_drop=True)
        assert MOST_BYTES >= backlog.size
    backlog.add(b"y" * MOST_BYTES, may_drop=True)
    backlog.add(b"z" * 2 * MOST_BYTES, may_drop=False)
    kept = b"".join(backlog.waiting()[0])
    assert (b"question" in kept, b"xx" in kept, b"yy" in kept, b"zz" in kept) == (True, False, False, True)
    assert len(kept) == backlog.size
    assert backlog.is_full


def test_what_was_sent_is_discarded_first() -> None:
    """It is kept for a client that comes back, while there is room; what was not sent is needed more."""
    backlog = Backlog(3, keeps_sent=True)
    for number in range(3):
        backlog.add(b"%d" % number, may_drop=number == 1)
    backlog.mark_sent(1)
    backlog.add(b"3", may_drop=False)
    backlog.mark_sent(0)  # the client says that it has none
    assert ([b"1", b"2", b"3"], 4) == backlog.waiting()
    backlog.add(b"4", may_drop=False)
    assert ([b"2", b"3", b"4"], 5) == backlog.waiting()


@attrs.define(eq=False)
class Pings(trio.abc.ReceiveStream):
    """Requests without an end, from a client that wants to see no response."""

    most: int
    sent: int = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.sent == self.most:
            await trio.sleep_forever()
        self.sent += 1
        return b'{"jsonrpc": "2.0", "id": %d, "method": "ping"}\n' % self.sent

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("buffer", [16, 10**9], ids=["many", "large"])
async def test_a_client_that_reads_no_response_is_asked_for_no_request(buffer: int, autojump_clock: MockClock) -> None:
    """Over stdio nothing else bounds the results that wait; over HTTP each has a connection. All come when it reads."""
    pings = Pings(3000)
    send, from_server = memory_stream_one_way_pair()
    gate = Gate(send)
    async with front_world() as world, trio.open_nursery() as nursery:
        settings = ServeSettings(stream_buffer=buffer, shutdown_timeout=0)
        nursery.start_soon(lambda: serve_stdio(world.manager, pings, gate, settings=settings))
        await trio.sleep(10)
        most = 200 if buffer == 16 else MOST_BYTES // 30
        assert most > pings.sent
        gate.opened.set()
        await trio.sleep(10)
        assert 3000 == pings.sent
        received = await from_server.receive_some()
        assert 3000 == received.count(b"\n")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("length", "told"), [(1024, 3), (1025, 0)])
@EVERY_ERA
@EVERY_CARRIER
async def test_what_a_client_has_repeated_is_short(
    carrier: str, era: str, length: int, told: int, autojump_clock: MockClock
) -> None:
    """A long token is as none, and a stream with a long id is refused: each message would cost all clients time."""

    async def work(arguments: JSON, context: CallContext) -> str:
        for number in range(told):
            await context.progress(number)
        return "done"

    backend, token = echo_backend("modern", "sse"), "x" * length
    backend.add_tool("work", work)
    async with front_client(carrier, era, backend) as client:
        params = {"_meta": {"progressToken": token}} if era == "legacy" else {}
        meta = {"progressToken": token} if era == "modern" else {}
        await client.result("tools/call", {"name": "a_work", **params}, "call", **meta)
        assert [token] * told == [each["progressToken"] for each in client.told("notifications/progress")]
        assert (told > 0) is ("progressToken" in backend.received("tools/call")[-1].meta)
        if era == "modern":
            await client.ask("subscriptions/listen", {"notifications": {"toolsListChanged": True}}, token)
            await trio.sleep(1)
            acknowledged = client.told("notifications/subscriptions/acknowledged")
            assert (1 if told else 0) == len(acknowledged)
            if not told:
                assert -32600 == (await client.response(token))["error"]["code"]
