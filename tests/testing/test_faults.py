"""Every fault changes one response as it says, and not the next one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.raw_mcp import RawClient, messages, open_client_on, open_raw_client
from trio.testing import MockClock

from trio_vmcp.testing import (
    CONNECT,
    Delay,
    Disconnect,
    Drip,
    Error,
    Fault,
    Flip,
    Hang,
    MemoryNetwork,
    Raw,
    Refuse,
    Reset,
    Rewrite,
    ScriptedBackend,
    Stall,
    Status,
    WireFault,
    open_memory_network,
)
from trio_vmcp.testing.faults import Cut

PING = b"POST /mcp HTTP/1.1\r\nhost: x\r\naccept: */*\r\ncontent-type: application/json\r\ncontent-length: 40\r\n\r\n"
PING += b'{"jsonrpc":"2.0","id":1,"method":"ping"}'

WHOLE = b'{"jsonrpc":"2.0","id":1,"result":{}}'
RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 36\r\n\r\n" + WHOLE


def pong(fault: Fault | None = None, **options: Any) -> ScriptedBackend:
    backend = ScriptedBackend(session_ids=False, **options)
    if fault is not None:
        backend.fail("ping", fault, times=1)
    return backend


async def exchange(network: MemoryNetwork, backend: ScriptedBackend, patience: float = 10.0) -> tuple[bytes, str]:
    """The raw bytes of the answer to a ping, and how they end; "open": a pause of `patience` s."""
    network.attach("x", backend)
    stream = await network.connect("x", 80)
    received = bytearray()
    async with stream:
        await stream.send_all(PING)
        while True:
            with trio.move_on_after(patience) as pause:
                try:
                    data = await stream.receive_some()
                except trio.BrokenResourceError:
                    return bytes(received), "reset"
            if pause.cancelled_caught:
                return bytes(received), "open"
            if not data:
                return bytes(received), "eof"
            received += data


async def test_without_a_fault_the_connection_stays_open(autojump_clock: MockClock) -> None:
    """The reference for all that follows: these bytes, and the connection stays open. Their number is recorded."""
    backend = pong()
    async with open_memory_network() as network:
        assert (RESPONSE, "open") == await exchange(network, backend)
    assert [len(RESPONSE)] == [received.response_bytes for received in backend.exchanges]


@pytest.mark.parametrize(("kind", "ending"), [(Disconnect, "eof"), (Reset, "reset"), (Stall, "open")])
def test_a_response_can_be_cut_at_every_byte(kind: type[WireFault], ending: str) -> None:
    """After exactly `after_bytes` raw bytes the response ends as scripted; the recorded size is that of the whole
    response.
    """

    async def sweep() -> None:
        async with open_memory_network() as network:
            for after in range(len(RESPONSE) + 1):
                backend = pong(kind(after))  # type: ignore[call-arg]
                assert (RESPONSE[:after], ending) == await exchange(network, backend)
                assert 0 == network.open_connections
                await trio.testing.wait_all_tasks_blocked()
                assert (0, 0) == (backend.in_flight, backend.open_connections)
                (received,) = backend.exchanges
                expected = "disconnected" if kind is Stall else "cut"
                assert expected == received.outcome
                assert len(RESPONSE) == received.response_bytes or kind is Stall

    trio.run(sweep, clock=MockClock(autojump_threshold=0))


async def test_a_cut_beyond_the_end_is_none(autojump_clock: MockClock) -> None:
    """A response shorter than `after_bytes` is sent whole."""
    async with open_memory_network() as network:
        assert (RESPONSE, "open") == await exchange(network, pong(Reset(len(RESPONSE) + 1)))


class Endless(WireFault):
    """Bytes without a pause, more of them than a sender that misses the closed connection could send in the time of a
    test.
    """

    def steps(self, sent: int, data: bytes) -> Iterator[bytes]:
        for _ in range(100_000):
            yield b" "
        raise AssertionError("nobody had been there for a long time")


async def test_what_has_no_end_can_be_cancelled(autojump_clock: MockClock) -> None:
    """Also after the client has gone, when the request outlives it: other tasks run, and the network can end."""
    backend = pong(Endless())
    async with open_memory_network() as network:
        network.attach("x", backend)
        async with await network.connect("x", 80) as stream:
            await stream.send_all(PING)
            await stream.receive_some()
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        assert 1 == backend.in_flight
    assert [] == backend.errors
    assert 0 == backend.in_flight


async def test_a_drip_arrives_step_by_step(autojump_clock: MockClock) -> None:
    """So many bytes each `step_seconds`, and every step is one read."""
    backend = pong(Drip(bytes_per_step=1, step_seconds=0.5))
    async with open_memory_network() as network:
        network.attach("x", backend)
        async with await network.connect("x", 80) as stream:
            await stream.send_all(PING)
            for index in range(len(RESPONSE)):
                assert RESPONSE[index : index + 1] == await stream.receive_some()
    # h11 writes head, body and end separately; the end of a sized body has no bytes.
    assert 0.5 * len(RESPONSE) == trio.current_time()


def test_any_bit_can_be_flipped() -> None:
    """Exactly one bit differs, anywhere."""

    async def sweep() -> None:
        async with open_memory_network() as network:
            for byte in range(len(RESPONSE)):
                received, ending = await exchange(network, pong(Flip(byte, bit=7)))
                assert "open" == ending
                pairs = enumerate(zip(RESPONSE, received, strict=True))
                assert {byte: 128} == {at: right ^ wrong for at, (right, wrong) in pairs if right != wrong}

    trio.run(sweep, clock=MockClock(autojump_threshold=0))


@given(st.binary(max_size=50), st.lists(st.integers(0, 50)), st.integers(0, 60))
def test_cuts_do_not_depend_on_how_a_response_is_written(data: bytes, splits: list[int], after: int) -> None:
    """However the server slices the bytes of a response, the same bytes are sent."""
    edges = [0, *sorted(min(split, len(data)) for split in splits), len(data)]
    out: list[Any] = []
    for start, end in pairwise(edges):
        out += Disconnect(after).steps(start, data[start:end])
        if Cut.EOF in out:
            break
    assert data[:after] == b"".join(step for step in out if isinstance(step, bytes))
    assert (Cut.EOF in out) == (after <= len(data))


async def test_a_hang_at_the_head_takes_the_request_and_says_nothing(autojump_clock: MockClock) -> None:
    """No byte is sent, the request is not handled, and the client's close ends it."""
    backend = ScriptedBackend()
    backend.add_tool("a")
    async with open_raw_client(backend) as client:
        backend.fail("tools/call", Hang(), times=1)
        with trio.move_on_after(3600) as patience:
            await client.request("tools/call", {"name": "a"})
        assert patience.cancelled_caught
        assert {} == backend.executed
        await client.result("tools/call", {"name": "a"})
    assert ["disconnected", "answered"] == [call.outcome for call in backend.received("tools/call")]


async def test_a_hang_at_the_body_sends_the_head(autojump_clock: MockClock) -> None:
    """Only the head is sent."""
    async with open_memory_network() as network:
        assert (RESPONSE.removesuffix(WHOLE), "open") == await exchange(network, pong(Hang(at="body")))


async def test_a_hanging_legacy_call_can_be_cancelled(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """`notifications/cancelled` reaches a request that hangs, and the record says so."""
    backend = ScriptedBackend(answers="sse")
    backend.fail("tools/call", Hang())
    async with open_raw_client(backend) as client:
        nursery.start_soon(client.request, "tools/call", {"name": "a"})
        await trio.testing.wait_all_tasks_blocked()
        await client.post(method="notifications/cancelled", params={"requestId": 2})
        await trio.testing.wait_all_tasks_blocked()
        assert {"a": 1} == backend.cancelled


async def test_a_delay_is_virtual(autojump_clock: MockClock) -> None:
    """The request is handled later by that much virtual time."""
    async with open_raw_client(pong(Delay(90.0))) as client:
        await client.request("ping")
        assert 90.0 == trio.current_time()


async def test_a_status_replaces_the_answer() -> None:
    """Any status, body and headers, repeated headers included; the request is not handled."""
    fault = Status(503, b"later", [("retry-after", "3"), ("mcp-session-id", "one"), ("mcp-session-id", "two")])
    backend = ScriptedBackend()
    backend.fail("initialize", fault, times=1)
    async with open_memory_network() as network, open_client_on(network, backend) as client:
        response = await client.request("initialize")
        assert (503, b"later", "3") == (response.status_code, response.content, response.headers["retry-after"])
        assert ["one", "two"] == response.headers.get_list("mcp-session-id")
        assert {} == backend.sessions
        assert 200 == (await client.request("initialize")).status_code


async def test_raw_bytes_need_not_be_http(autojump_clock: MockClock) -> None:
    """Exactly these bytes are sent, then end of file."""
    async with open_memory_network() as network:
        assert (b"SSH-2.0-x\r\n", "eof") == await exchange(network, pong(Raw(b"SSH-2.0-x\r\n")))
    async with open_raw_client(pong(Raw(body=WHOLE))) as client:
        assert {} == await client.result("ping")


async def test_an_error_replaces_the_result() -> None:
    """The JSON-RPC error has the request's id and the given HTTP status."""
    async with open_raw_client(pong(Error(-32000, "no", {"why": "x"}, status=400))) as client:
        response = await client.request("ping")
    assert 400 == response.status_code
    error = {"code": -32000, "message": "no", "data": {"why": "x"}}
    assert [{"jsonrpc": "2.0", "id": 2, "error": error}] == messages(response)


@pytest.mark.parametrize("answers", ["json", "sse"])
async def test_a_response_can_be_rewritten(answers: str) -> None:
    """The result of `change` is sent, as JSON or as an event."""
    backend = pong(Rewrite(lambda response: {**response, "id": str(response["id"])}), answers=answers)
    async with open_raw_client(backend) as client:
        assert ["2"] == [message["id"] for message in messages(await client.request("ping"))]


# When they strike


async def status_of_pings(client: RawClient, count: int) -> list[int]:
    return [(await client.request("ping")).status_code for _ in range(count)]


async def test_rules_strike_as_often_as_they_say() -> None:
    """`skip` lets matches pass, `times` limits the strikes, `heal` ends all faults; the rule counts its strikes."""
    backend = pong()
    rule = backend.fail("ping", Status(500), times=2, skip=2)
    async with open_raw_client(backend) as client:
        assert [200, 200, 500, 500, 200] == await status_of_pings(client, 5)
        assert 2 == rule.struck
        backend.fail("POST", Status(501))
        assert [501, 501] == await status_of_pings(client, 2)
        backend.heal()
        assert [200] == await status_of_pings(client, 1)


async def test_rules_can_look_at_the_request_and_the_first_one_wins() -> None:
    """A predicate sees verb, headers and message."""
    backend = pong()
    backend.fail(lambda request: request.headers.get("x-who") == "me", Status(418), times=1)
    backend.fail("ping", Status(500), times=1)
    async with open_raw_client(backend) as client:
        client.headers["x-who"] = "me"
        assert [418, 500, 200] == await status_of_pings(client, 3)


# Connections


async def test_connections_can_be_refused_held_up_or_swallowed(autojump_clock: MockClock) -> None:
    """`CONNECT` matches the attempt itself; requests are not matched."""
    backend = pong()
    backend.fail(CONNECT, Refuse(), times=1)
    backend.fail(CONNECT, Delay(5.0), times=1)
    backend.fail(CONNECT, Hang(), times=1)
    async with open_memory_network(connect_latency=1.0) as network:
        network.attach("x", backend)
        with pytest.raises(ConnectionRefusedError, match="refuses"):
            await network.connect("x", 80)
        assert 1.0 == trio.current_time()
        await (await network.connect("x", 80)).aclose()
        assert 7.0 == trio.current_time()
        with trio.move_on_after(math.exp(5)) as patience:
            await network.connect("x", 80)
        assert patience.cancelled_caught
        assert (3, 0) == (network.connection_attempts, network.open_connections)


async def test_the_client_sees_a_fault_as_over_tcp(autojump_clock: MockClock) -> None:
    """Over httpx, a reset is a ReadError, an early end a RemoteProtocolError, a stall a ReadTimeout."""
    backend = ScriptedBackend(session_ids=False, answers="sse")
    expected: list[tuple[Fault, type[Exception]]] = [
        (Reset(0), httpx.ReadError),
        (Reset(150), httpx.ReadError),
        (Disconnect(0), httpx.RemoteProtocolError),
        (Disconnect(150), httpx.RemoteProtocolError),
        (Stall(20), httpx.ReadTimeout),
    ]
    async with open_raw_client(backend) as client:
        client.http.timeout = httpx.Timeout(5.0)
        for fault, error in expected:
            backend.fail("ping", fault, times=1)
            with pytest.raises(error):
                await client.request("ping")
        assert [200] == await status_of_pings(client, 1)


def test_what_hangs_in_its_body_sends_nothing_more() -> None:
    """Also when the handler goes on: a tool may have waited with a limit of its own."""
    hang = Hang(at="body")
    assert [b"HTTP/1.1 200 OK\r\n\r\n", Cut.STALL] == list(hang.steps(0, b"HTTP/1.1 200 OK\r\n\r\nmore"))
    assert [Cut.STALL] == list(hang.steps(19, b"more"))
