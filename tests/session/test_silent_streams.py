"""A held stream whose connection is forgotten on the way, without a word to either end, is noticed; so is a stream that
is cut again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import attrs
import pytest
import trio
from support.channels import LEGACY_CHANNELS, MODERN_CHANNELS, Channel
from support.clients import ask, listening
from support.harness import echo_backend, open_world
from trio.testing import MockClock

from trio_vmcp import BackendState, BackendUnavailable, FactorySettings, Session
from trio_vmcp._client.channels.http_sse import PING_TIMEOUT
from trio_vmcp._client.listening import MAX_SILENCE
from trio_vmcp.testing import CallContext, Exchange, Hang, ScriptedBackend, Status
from trio_vmcp.testing.faults import Cut, Fault, Step, WireFault

HOUR = 3600.0
TOOLS_CHANGED = "notifications/tools/list_changed"
AWAKE = FactorySettings(idle_timeout=float("inf"))
Held = Literal["GET", "subscriptions/listen", "http+sse"]
EVERY_HELD_STREAM = pytest.mark.parametrize("held", ["GET", "subscriptions/listen", "http+sse"])
REOPENED = pytest.mark.parametrize("held", ["GET", "subscriptions/listen"])


@attrs.define(eq=False)
class Freeze(WireFault):
    """From some moment on, nothing more comes on an open connection."""

    is_frozen: bool = False

    def steps(self, sent: int, data: bytes) -> Iterator[Step]:
        yield Cut.STALL if self.is_frozen else data


@attrs.define(eq=False)
class Beat(WireFault):
    """From some moment on, nothing but comments: one in each nine tenths of the time of silence."""

    is_on: bool = False

    def steps(self, sent: int, data: bytes) -> Iterator[Step]:
        yield data
        while self.is_on:
            yield 0.9 * MAX_SILENCE
            yield b"3\r\n:\n\n\r\n"


def holding(held: Held, **more: Any) -> ScriptedBackend:
    if held == "http+sse":
        return echo_backend(transport="sse", listens=True, protocol_version="2024-11-05", **more)
    era = "modern" if held == "subscriptions/listen" else "legacy"
    return echo_backend(era, "sse", listens=True, **more)


def streams(backend: ScriptedBackend) -> list[Exchange]:
    return backend.received("subscriptions/listen" if backend.era == "modern" else "GET")


def freeze_first(backend: ScriptedBackend) -> Freeze:
    freeze = Freeze()
    fail_first(backend, freeze)
    return freeze


def fail_first(backend: ScriptedBackend, fault: Fault) -> None:
    """Of the held streams only the first has this fault."""
    backend.fail("subscriptions/listen" if backend.era == "modern" else "GET", fault, times=1)


def names(session: Session) -> list[str]:
    return sorted(tool.name for tool in session.tools)


def state_of(session: Session) -> BackendState:
    return session.backends["a"].state


@EVERY_HELD_STREAM
async def test_a_change_behind_a_dead_stream_is_noticed(held: Held, autojump_clock: MockClock) -> None:
    """Nothing comes on a stream any more, and a tool is added: the session lists it within the time of silence, and
    hears of the next one at once.
    """
    backend = holding(held)
    freeze = freeze_first(backend)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        await trio.sleep(60)
        freeze.is_frozen = True
        backend.add_tool("new")
        backend.notify(TOOLS_CHANGED)
        await trio.sleep(MAX_SILENCE + PING_TIMEOUT + 5)
        assert ["a_echo", "a_new"] == names(session)
        assert (BackendState.READY, 2) == (state_of(session), len(streams(backend)))
        backend.add_tool("newer")
        backend.notify(TOOLS_CHANGED)
        await trio.sleep(1.5)
        assert ["a_echo", "a_new", "a_newer"] == names(session)


@EVERY_HELD_STREAM
async def test_a_comment_is_a_sign_of_life(held: Held, autojump_clock: MockClock) -> None:
    """A server that keeps its stream alive with comments is neither asked nor left."""
    backend, beat = holding(held), Beat()
    fail_first(backend, beat)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session():
        await trio.sleep(2)
        beat.is_on, before = True, len(backend.exchanges)
        backend.send({"jsonrpc": "2.0", "method": "notifications/of/nothing"})
        await trio.sleep(2 * HOUR)
        assert (1, before) == (len(streams(backend)), len(backend.exchanges))


async def test_a_silent_stream_of_http_sse_is_asked(autojump_clock: MockClock) -> None:
    """Its server answers a `ping` on the stream, so the connection and its session stay."""
    backend = holding("http+sse")
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        await trio.sleep(HOUR)
        assert (1, 11) == (len(streams(backend)), len(backend.received("ping")))
        assert BackendState.READY is state_of(session)
        assert session.backends["a"].last_failure is None


async def test_a_dead_stream_of_http_sse_says_what_ended_it(autojump_clock: MockClock) -> None:
    """Also where the server cannot be reached any more, and its POSTs hang."""
    backend = holding("http+sse")
    freeze = freeze_first(backend)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        freeze.is_frozen = True
        backend.fail("ping", Hang())
        await trio.sleep(MAX_SILENCE + PING_TIMEOUT - 1)
        assert BackendState.READY is state_of(session)
        await trio.sleep(3)
        failure = session.backends["a"].last_failure
        assert failure is not None
        assert "said nothing on its event stream for 300.0 s, and did not answer a ping" in failure.detail


async def test_a_server_that_is_busy_with_a_call_is_not_taken_for_dead(autojump_clock: MockClock) -> None:
    """A tool that blocks its server for nine minutes: the ping is answered after it, and so is the call."""
    backend = holding("http+sse")
    busy = trio.Event()

    async def block(arguments: object, context: CallContext) -> str:
        await trio.sleep(540)
        busy.set()
        return "done"

    backend.add_tool("block", block)
    backend.fail("ping", Hang())
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        assert not (await session.call_tool("a_block", timeout=HOUR)).is_error
        assert (1, 1) == (len(streams(backend)), len(backend.received("ping")))


async def test_calls_that_wait_on_a_dead_stream_end(autojump_clock: MockClock) -> None:
    """A call without a timeout on a dead HTTP+SSE stream fails after twice the time of silence."""
    backend = holding("http+sse")
    freeze = freeze_first(backend)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        freeze.is_frozen = True
        began = trio.current_time()
        with pytest.raises(BackendUnavailable, match="did not answer a ping"):
            await session.call_tool("a_echo", timeout=float("inf"))
        assert 2 * MAX_SILENCE + 1 > trio.current_time() - began > MAX_SILENCE


async def test_a_stream_without_a_head_is_opened_anew(autojump_clock: MockClock) -> None:
    """The GET hangs before its head, as behind a connection that a balancer forgot."""
    backend = holding("GET")
    backend.fail("GET", Hang(), times=1)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        await trio.sleep(MAX_SILENCE + 5)
        backend.add_tool("new")
        backend.notify(TOOLS_CHANGED)
        await trio.sleep(1.5)
        assert ["a_echo", "a_new"] == names(session)


@pytest.mark.parametrize(
    "channel", [channel for channel in (*LEGACY_CHANNELS, *MODERN_CHANNELS) if channel.transport == "stdio"], ids=str
)
async def test_a_silent_process_is_left_in_peace(channel: Channel, autojump_clock: MockClock) -> None:
    """A pipe ends with its process, so the silence of a process is no evidence: nothing is sent in a day."""
    backend = channel.backend(listens=True)
    async with channel.open_client(backend) as client:
        await trio.sleep(2)
        before = len(backend.exchanges)
        await trio.sleep(24 * HOUR)
        assert ("open", before) == (listening(client), len(backend.exchanges))
        await ask(client, "tools/list")


@REOPENED
@pytest.mark.parametrize("seconds", [10, 15, 29])
async def test_a_stream_that_is_cut_again_and_again_is_opened_for_ever(
    held: Held, seconds: float, autojump_clock: MockClock
) -> None:
    """Serverless platforms end every response after some seconds. Long after, changes are still heard of."""
    backend = holding(held, stream_seconds=seconds)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        await trio.sleep(HOUR / 4)
        assert HOUR / 4 / (seconds + 1) - 1 <= len(streams(backend)) <= HOUR / 4 / seconds + 1
        backend.add_tool("new")
        backend.notify(TOOLS_CHANGED)
        await trio.sleep(2 * seconds)
        assert BackendState.READY is state_of(session)
        await trio.sleep(60)
        assert ["a_echo", "a_new"] == names(session)


@REOPENED
@pytest.mark.parametrize("status", [409, 429, 502, 503, 504])
async def test_a_stream_that_is_refused_for_now_is_asked_for_until_it_opens(
    held: Held, status: int, autojump_clock: MockClock
) -> None:
    """It was open before. 409: the server has not noticed the end of the stream before it."""
    backend = holding(held)
    async with open_world({"a": backend}, settings=AWAKE) as world, world.open_session() as session:
        await trio.sleep(10)
        refusing = backend.fail("GET" if held == "GET" else held, Status(status))
        backend.end_streams()
        await trio.sleep(HOUR)
        assert 55 <= refusing.struck <= 90
        refusing.times = 0
        backend.add_tool("new")
        await trio.sleep(75)
        assert ["a_echo", "a_new"] == names(session)
