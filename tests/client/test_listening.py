"""The GET stream of the handshake era for messages outside of calls: when it is opened, held, opened again, and given
up.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import attrs
import httpx
import pytest
import trio
from support.cancel_sweep import CancelAtMoment
from support.clients import (
    ASKED,
    STREAM_HEAD,
    HeardEvents,
    ask,
    call,
    echo_backend,
    event,
    in_json,
    listen_again,
    listening,
    message_of,
    open_bench,
    open_client,
    open_scripted,
    result,
    streamed,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON, BackendError, BackendRejected, BackendTimeout, BackendUnavailable, FactorySettings
from trio_vmcp._client.built_in import BuiltInConnector
from trio_vmcp._client.channels.pace import (
    LINE_COST,
    MESSAGES_AHEAD,
    MESSAGES_PER_SECOND,
    PIECE_COST,
    REQUEST_COST,
)
from trio_vmcp._client.handshake import HandshakeClient
from trio_vmcp._client.http.connection_limit import MOST_ASIDE
from trio_vmcp._client.listening import MAX_SILENCE, MOST_FRUITLESS, HeldStream, StreamBackoff
from trio_vmcp._client.server_requests import MOST_ANSWERS
from trio_vmcp.models import Backend
from trio_vmcp.testing import (
    Delay,
    Disconnect,
    Exchange,
    Fault,
    Hang,
    Raw,
    Reset,
    ScriptedBackend,
    Status,
    open_memory_network,
)

TOOLS_CHANGED = "notifications/tools/list_changed"
HOUR = 3600.0


def gets(backend: ScriptedBackend) -> list[Exchange]:
    return backend.received("GET")


def listening_backend(**more: Any) -> ScriptedBackend:
    return echo_backend(listens=True, **more)


async def silence(seconds: float) -> None:
    """Let virtual time pass, and every task act on it."""
    await trio.sleep(seconds)
    await wait_all_tasks_blocked()


# Pauses between attempts


def test_attempts_come_at_doubled_intervals_and_end() -> None:
    """Ten attempts, with pauses of 0.5, 1, 2 … 60 s, each changed by up to 20 %."""
    backoff = StreamBackoff(0.5, 60)
    delays = list(iter(backoff.next_delay, None))
    assert MOST_FRUITLESS == len(delays) == 10
    expected = [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert all(0.8 * wanted <= delay <= 1.2 * wanted for wanted, delay in zip(expected, delays, strict=True))
    assert len({delay / wanted for wanted, delay in zip(expected, delays, strict=True)}) > 5  # the pauses are random


@pytest.mark.parametrize("was_sent", [False, True])
def test_a_backend_that_takes_no_connection_is_asked_for_ever(was_sent: bool) -> None:
    """That is no verdict on the stream, also if the stream was never open; a connection that breaks is."""
    backoff = StreamBackoff(0.5, 60)
    delays: list[float | None] = []
    for _ in range(30):
        backoff.note_error(BackendUnavailable("b", "is away", may_have_executed=was_sent))
        delays.append(backoff.next_delay())
    assert was_sent is (None in delays)


def test_a_reward_makes_patience_new() -> None:
    """After a useful message the pauses begin anew."""
    backoff = StreamBackoff(0.5, 60)
    for _ in range(9):
        backoff.next_delay()
    backoff.note_use()
    assert 0.6 >= (backoff.next_delay() or 9)


@pytest.mark.parametrize(("asked", "waited"), [(0.0, 0.1), (2.5, 2.5), (1e15, 60.0), (float("inf"), 60.0)])
def test_a_server_may_say_when_within_bounds(asked: float, waited: float) -> None:
    """The first pause is the server's `retry`, within bounds; a server that keeps closing its streams is asked at
    growing pauses.
    """
    backoff = StreamBackoff(0.5, 60, asked)
    delays = [delay for delay in iter(backoff.next_delay, None) if delay is not None]
    assert waited == delays[0]
    assert min(delays) >= waited
    assert delays[7] >= 48
    assert 10 == len(delays)


@pytest.mark.parametrize(("asked", "waited"), [(20.0, 20.0), (1e9, 3600.0), (0.0, 0.5), (None, 0.5)])
def test_a_refusal_may_ask_for_a_pause(asked: float | None, waited: float) -> None:
    """`Retry-After` holds for the next attempt, up to an hour, and not for those after it; also in an error."""
    rejected = BackendRejected("b", "refuses", code=503, status=503, message="", retry_after=asked)
    for in_an_error in (False, True):
        backoff = StreamBackoff(0.5, 60)
        if in_an_error:
            backoff.note_error(rejected)
        else:
            backoff.note_retry_after(asked)
        assert 0.8 * waited <= (backoff.next_delay() or 0) <= 1.2 * waited
        assert 0.8 <= (backoff.next_delay() or 0) <= 1.2


@pytest.mark.parametrize("settings", [(0.0, 0.0), (0.0, 60.0)])
def test_no_setting_makes_a_busy_loop(settings: tuple[float, float]) -> None:
    """With `reconnect_delay=0` the pause is a tenth of a second."""
    backoff = StreamBackoff(*settings)
    assert 0.1 == backoff.next_delay() == backoff.next_delay()


# When a stream is opened


class _NoStream(HeldStream):
    async def open_once(self) -> bool:
        raise AssertionError("this test opens none")


@pytest.mark.parametrize(
    ("error", "seconds", "told"),
    [
        (None, 60.0, "answered"),
        (BackendUnavailable("b", "could not be reached"), 60.0, "not reached"),
        (BackendUnavailable("b", "lost its connection", may_have_executed=True), 4.9, "not reached"),
        (BackendUnavailable("b", "lost its connection", may_have_executed=True), 5.0, None),
        (BackendTimeout("b", "was silent"), 0.0, None),
        (BackendRejected("b", "refuses", code=503, status=503, message=""), 60.0, "not reached"),
        (BackendRejected("b", "refuses", code=500, status=500, message=""), 60.0, "answered"),
    ],
    ids=str,
)
@pytest.mark.parametrize("was_open", [False, True])
async def test_what_an_attempt_to_open_a_stream_again_tells_of_the_backend(
    was_open: bool, error: BackendError | None, seconds: float, told: str | None, autojump_clock: MockClock
) -> None:
    """A response that ends after some seconds without a head may be the work of a platform. A stream that was never
    open tells nothing.
    """
    heard: list[str] = []

    def hear(failure: BackendError | None) -> None:
        heard.append("answered" if failure is None else "not reached")

    stream = _NoStream(backend_id="b", backoff=StreamBackoff(0.5, 60), on_reached=hear)
    stream.was_open = was_open
    asked_at = trio.current_time()
    await trio.sleep(seconds)
    stream.note_attempt(asked_at, error)
    assert ([told] if told is not None and was_open else []) == heard


async def test_a_stream_is_opened_behind_the_handshake(autojump_clock: MockClock) -> None:
    """The stream has the session's headers, does not count under the connection limit, and its messages are events."""
    backend = listening_backend()
    async with open_scripted(backend, settings=FactorySettings(max_connections_per_backend=1)) as bench:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        assert ("open", 1) == (listening(client), backend.listening)
        backend.notify(TOOLS_CHANGED)
        backend.notify("notifications/message", {"level": "info", "data": "hello"})
        await call(client)
        assert [(TOOLS_CHANGED, {}), ("notifications/message", {"level": "info", "data": "hello"})] == bench.events
        await silence(MAX_SILENCE - 1)  # so long, silence is no evidence
        backend.notify(TOOLS_CHANGED)
        await wait_all_tasks_blocked()
        assert 3 == len(bench.events)
    (get,) = gets(backend)
    assert ("text/event-stream", "scripted-session-1", "2025-11-25") == (
        get.headers["accept"],
        get.session_id,
        get.headers["mcp-protocol-version"],
    )
    assert "last-event-id" not in get.headers
    methods = [exchange.method or exchange.verb for exchange in backend.exchanges]
    assert methods.index("notifications/initialized") < methods.index("GET") < methods.index("DELETE")
    assert "disconnected" == get.outcome


NEEDS: list[JSON] = [
    {"tools": {"listChanged": True}},
    {"prompts": {"listChanged": True}},
    {"resources": {"listChanged": True}},
    {"resources": {"subscribe": True}},
    {"tools": {}, "logging": {}},
]


@pytest.mark.parametrize("capabilities", NEEDS, ids=json.dumps)
async def test_a_declared_need_opens_it(capabilities: JSON) -> None:
    """The stream is opened if the backend declares changes of lists, updates of resources, or log messages."""
    backend = listening_backend(capabilities=capabilities)
    async with open_client(backend) as client:
        await wait_all_tasks_blocked()
        assert "open" == listening(client)


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        (ScriptedBackend(capabilities={"tools": {}}), {}),
        (ScriptedBackend(capabilities={"tools": True, "prompts": [], "resources": {"listChanged": "yes"}}), {}),
        (ScriptedBackend(listens=True, tools=[{"name": "t"}]), {"listen": False}),
        (ScriptedBackend(listens=True, tools=[{"name": "t"}], session_ids=False), {}),
        (ScriptedBackend(listens=True, session_ids=False), {"handlers": ASKED}),
        (ScriptedBackend(listens=True, capabilities={}), {"handlers": ASKED, "listen": False}),
    ],
)
async def test_without_a_need_or_a_session_there_is_none(
    autojump_clock: MockClock, backend: ScriptedBackend, options: JSON
) -> None:
    """No stream without such a declaration, without a session id, or with `Backend(listen=False)`."""
    async with open_client(backend, **options) as client:
        await silence(HOUR)
        assert ("none", []) == (listening(client), gets(backend))


async def test_handlers_need_it() -> None:
    """A server may send requests outside of calls without declaring it, so handlers need the stream."""
    backend = listening_backend(capabilities={"tools": {}})
    async with open_client(backend, handlers=ASKED) as client:
        await wait_all_tasks_blocked()
        assert "open" == listening(client)


@pytest.mark.parametrize(
    "answer",
    [
        *(Status(code) for code in (400, 404, 405, 406, 501)),
        Status(405, b"x" * 100_000),
        Status(404, b"<html>"),
        Status(302, headers={"location": "http://b.test/login"}),
        Status(200, b"{}", {"content-type": "application/json"}),
        Status(200, b"<html>", {"content-type": "text/html"}),
        Status(202),
        Status(204),
    ],
    ids=str,
)
async def test_no_stream_is_an_answer(autojump_clock: MockClock, answer: Status) -> None:
    """A server that answers 405 is asked once, and calls work."""
    backend = listening_backend()
    backend.fail("GET", answer)
    async with open_client(backend) as client:
        await silence(HOUR)
        assert ("none", 1) == (listening(client), len(gets(backend)))
        listen_again(client)
        assert "echo" == (await ask(client, "tools/list"))["tools"][0]["name"]
        await silence(HOUR)
    assert 1 == len(gets(backend))


async def test_a_restored_session_listens_once_it_is_known_to_live() -> None:
    """The stream is opened after the first answer, which proves that the session lives; before it, the GET might be
    refused.
    """
    backend = listening_backend()
    async with open_scripted(backend) as bench:
        first = await bench.connect()
        await wait_all_tasks_blocked()
        await first.aclose(terminate=False)
        await wait_all_tasks_blocked()
        assert 0 == backend.listening
        second = await bench.connect(resume=first.record)
        await wait_all_tasks_blocked()
        assert 0 == backend.listening
        await call(second)
        await call(second)
        await wait_all_tasks_blocked()
        assert (1, "open") == (backend.listening, listening(second))
    assert 2 == len(gets(backend))


# Ends and resumptions


TROUBLE: list[Fault] = [
    Status(500),
    Status(503),
    Status(401),
    Status(409),
    Disconnect(0),
    Reset(0),
    Raw(STREAM_HEAD),
    Raw(b"not HTTP"),
    streamed(b"id: 1\ndata: \n\n"),
    streamed(b": alive\n\n"),
    streamed(b"retry: 0\n\n"),
    streamed(b"retry: 999999999999999\n\n"),
    streamed(event({"jsonrpc": "2.0", "method": "notifications/whatever"})),
    streamed(event({"jsonrpc": "2.0", "id": 7, "result": {}})),
    streamed(b"data: {not json\n\n"),
    streamed(event([])),
    Status(307, headers={"location": "http://elsewhere.test/"}),
    Raw(STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n"), b"\x1f\x8b"),
]


@pytest.mark.parametrize("fault", TROUBLE, ids=lambda fault: repr(fault)[:60])
async def test_a_storm_of_closes_ends(
    autojump_clock: MockClock, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream that brings nothing is opened eleven times within hours, then given up; calls work. If a connection that
    was used before ends without a byte, that is no attempt: the request is sent once more.
    """
    again = 1 if isinstance(fault, Disconnect | Reset) and not fault.after_bytes else 0
    backend = listening_backend()
    rule = backend.fail("GET", fault)
    async with open_client(backend) as client:
        await silence(0.05)
        assert "retrying" == listening(client)
        await silence(10 * HOUR)
        assert ("ended", again + 1 + MOST_FRUITLESS) == (listening(client), len(gets(backend)))
        assert "not listening any more" in caplog.text
        assert "scripted-session" not in caplog.text
        assert {"content"} <= (await call(client)).keys()
        rule.times = 0
        listen_again(client)
        await wait_all_tasks_blocked()
        assert "open" == listening(client)
    assert again + 2 + MOST_FRUITLESS == len(gets(backend))


async def test_ids_alone_are_no_progress(autojump_clock: MockClock) -> None:
    """New event ids alone are no progress: such a stream is given up, too."""
    backend = listening_backend(resumable=True, retry_ms=100, stream_seconds=0)
    async with open_client(backend) as client:
        await silence(10 * HOUR)
        assert ("ended", 1 + MOST_FRUITLESS) == (listening(client), len(gets(backend)))


async def test_proxies_that_end_idle_streams_cost_one_get_each(autojump_clock: MockClock) -> None:
    """A minute of silence is no failure: the stream is opened again, for ever."""
    backend = listening_backend(stream_seconds=60)
    async with open_client(backend) as client:
        await silence(5 * HOUR)
        backend.notify(TOOLS_CHANGED)
        assert "open" == listening(client)
    assert 290 < len(gets(backend)) <= 300


async def test_what_is_useful_counts_again(autojump_clock: MockClock) -> None:
    """Some servers end the stream behind every message: each message makes the pauses begin anew."""
    backend = listening_backend()
    backend.fail("GET", streamed(b"retry: 200\n", event({"jsonrpc": "2.0", "method": TOOLS_CHANGED})), times=100)
    async with open_client(backend) as client:
        await silence(30)
        assert "open" == listening(client)
    assert 101 == len(gets(backend))


async def test_a_stream_is_resumed_behind_its_last_event(autojump_clock: MockClock) -> None:
    """With `Last-Event-ID`, events of the meantime arrive once, and `retry` is kept."""
    backend = listening_backend(resumable=True, retry_ms=2500)
    async with open_scripted(backend) as bench:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        backend.notify("notifications/message", {"data": 1})
        await wait_all_tasks_blocked()
        backend.end_streams()
        await wait_all_tasks_blocked()
        assert "retrying" == listening(client)
        backend.notify("notifications/message", {"data": 2})
        ended_at = trio.current_time()
        await silence(3)
        assert [1, 2] == [params["data"] for _, params in bench.events]
    _, second = gets(backend)
    assert "stream-3/2" == second.headers["last-event-id"]
    assert 2.5 == pytest.approx(second.received_at - ended_at)


@pytest.mark.parametrize("fault", [Disconnect(150), Reset(150)])
async def test_what_was_missed_without_ids_is_taken_for_changed(autojump_clock: MockClock, fault: Fault) -> None:
    """Without ids missed events are not sent again, so every declared list and every subscribed resource counts as
    changed.
    """
    backend = listening_backend()
    backend.add_resource("memo://one")
    async with open_scripted(backend) as bench:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        await ask(client, "resources/subscribe", {"uri": "memo://one"})
        await ask(client, "resources/subscribe", {"uri": "memo://two"})
        await ask(client, "resources/unsubscribe", {"uri": "memo://two"})
        assert [] == bench.events
        backend.fail("GET", Status(500), times=2)
        backend.end_streams()
        await silence(10)
        assert "open" == listening(client)
        assert [
            (TOOLS_CHANGED, {}),
            ("notifications/resources/list_changed", {}),
            ("notifications/resources/updated", {"uri": "memo://one"}),
        ] == bench.events


async def test_an_id_that_is_not_known_any_more_is_dropped(autojump_clock: MockClock) -> None:
    """If a server refuses an event id, the stream is opened without one; the refusal is no verdict on streams."""
    backend = listening_backend(resumable=True)
    async with open_scripted(backend) as bench:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        backend._logs.clear()
        backend.end_streams()
        await silence(10)
        assert "open" == listening(client)
        assert [(TOOLS_CHANGED, {})] == bench.events  # without the id, events may be missing
    assert ["stream-3/1", None] == [get.headers.get("last-event-id") for get in gets(backend)[1:]]


@pytest.mark.parametrize(
    ("odd", "sent"),
    [
        (b"x" * 1025, None),
        (b" a", "a"),
        (b"  a", None),
        (b"a\0b", None),
        (b"", None),
        (b"a b", "a b"),
        ("é".encode(), "é"),
    ],
)
async def test_odd_event_ids(autojump_clock: MockClock, odd: bytes, sent: str | None) -> None:
    """An id that a header can carry is sent back to the last byte, in UTF-8; any other is not sent."""
    backend = listening_backend()
    backend.fail("GET", streamed(b"id:" + odd + b"\n", event({"jsonrpc": "2.0", "method": TOOLS_CHANGED})), times=1)
    async with open_client(backend):
        await silence(1)
    given = [value for get in gets(backend) for name, value in get.headers.raw if name.lower() == b"last-event-id"]
    assert given == ([] if sent is None else [sent.encode()])


async def test_a_crash_is_survived(autojump_clock: MockClock) -> None:
    """The stream comes back after a crash, with refused connections in between."""
    backend = listening_backend()
    async with open_client(backend) as client:
        await wait_all_tasks_blocked()
        backend.crash()
        await silence(20)
        assert "retrying" == listening(client)
        backend._crashed = False  # the network is back, and the session is still there
        await silence(30)
        assert "open" == listening(client)


async def test_a_backend_that_is_away_is_no_verdict_on_the_stream(autojump_clock: MockClock) -> None:
    """While a backend cannot be reached the stream is tried for hours, at least once in 72 s."""
    backend = listening_backend()
    async with open_client(backend) as client:
        await wait_all_tasks_blocked()
        backend.crash()
        await silence(3 * HOUR)
        assert "retrying" == listening(client)
        backend._crashed = False  # the network is back, and the session is still there
        await silence(72)
        assert "open" == listening(client)


async def test_a_stream_that_is_offered_no_more_is_none(autojump_clock: MockClock) -> None:
    """A stream that was open, broke, and is then answered with 405 is not opened again."""
    backend = listening_backend()
    async with open_client(backend) as client:
        await wait_all_tasks_blocked()
        backend.fail("GET", Status(405))
        backend.end_streams()
        await silence(HOUR)
        assert ("none", 2) == (listening(client), len(gets(backend)))


async def test_a_closed_client_listens_no_more(autojump_clock: MockClock) -> None:
    """A closed client opens no stream, whatever state the stream was in."""
    for fault in (None, Hang(), Hang("body"), Status(500)):
        backend = listening_backend()
        if fault is not None:
            backend.fail("GET", fault)
        async with open_client(backend) as client:
            await wait_all_tasks_blocked()
            started = trio.current_time()
            await client.aclose(terminate=True)
            listen_again(client)
            await silence(HOUR)
            assert (HOUR, 0, "none") == (trio.current_time() - started, backend.listening, listening(client))
            assert 1 == len(gets(backend))


async def test_a_restored_client_that_is_closed_before_its_first_answer_listens_never(
    autojump_clock: MockClock,
) -> None:
    """The answer shows that the session lives, and comes to a client that is no longer used."""
    backend = listening_backend()
    async with open_scripted(backend) as bench, trio.open_nursery() as nursery:
        first = await bench.connect()
        await wait_all_tasks_blocked()
        await first.aclose(terminate=False)
        client = await bench.connect(resume=first.record)
        backend.fail("tools/call", Delay(5), times=1)
        nursery.start_soon(call, client)
        await silence(1)
        assert isinstance(client, HandshakeClient)
        client.close()
        await silence(HOUR)
        assert ("none", 1) == (listening(client), len(gets(backend)))


# Messages of the stream


@pytest.mark.parametrize("way", ["hung", "resumed"])
async def test_an_answer_may_come_by_the_other_stream(autojump_clock: MockClock, way: str) -> None:
    """An answer may come on the GET stream before the call's response has a head, or while the call's stream is
    resumed.
    """
    backend = listening_backend(answers="sse")
    backend.fail("tools/call", Hang() if way == "hung" else streamed(b"id: 1\nretry: 60000\ndata:\n\n"), times=1)
    async with open_scripted(backend) as bench, trio.open_nursery() as nursery:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        answers: list[JSON] = []

        async def asking() -> None:
            answers.append(await call(client))

        nursery.start_soon(asking)
        await silence(1)
        request_id = backend.received("tools/call")[0].request_id
        for wrong in (str(request_id), float(str(request_id)), True, 99, None):
            backend.send({"jsonrpc": "2.0", "id": wrong, "result": {"content": ["wrong"]}} if wrong else event_only())
        await silence(1)
        assert [] == answers
        backend.send(result(request_id, content=["right"]))
        backend.send(result(request_id, content=["late"]))
        await silence(1)
        assert [{"content": ["right"]}] == answers
        assert "open" == listening(client)
        assert (await call(client))["content"]


def event_only() -> JSON:
    return {"jsonrpc": "2.0", "method": "notifications/whatever", "params": {}}


async def test_an_answer_to_a_call_that_has_ended_is_dropped(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is kept of a call behind its end, and the stream goes on."""
    caplog.set_level("DEBUG", "trio_vmcp.client")
    backend = listening_backend()
    async with open_client(backend) as client:
        await wait_all_tasks_blocked()
        await call(client)
        assert "not waiting" not in caplog.text
        backend.send(result(backend.received("tools/call")[0].request_id, content=["late"]))
        await silence(1)
        assert 1 == sum("dropped an answer to a request that is not waiting" in told for told in caplog.messages)
        assert "open" == listening(client)


async def test_an_error_by_the_other_stream_is_the_answer(autojump_clock: MockClock) -> None:
    """An error on the GET stream is the call's error."""
    backend = listening_backend()
    backend.fail("tools/call", Hang(), times=1)
    async with open_client(backend) as client, trio.open_nursery() as nursery:
        await wait_all_tasks_blocked()
        refusals: list[BackendRejected] = []

        async def asking() -> None:
            with pytest.raises(BackendRejected, match="no such tool") as caught:
                await call(client)
            refusals.append(caught.value)

        nursery.start_soon(asking)
        await silence(1)
        request_id = backend.received("tools/call")[0].request_id
        backend.send({"jsonrpc": "2.0", "id": request_id, "error": {"code": -32602, "message": "no such tool"}})
        await silence(1)
        assert [False] == [refused.may_have_executed for refused in refusals]


async def test_an_answer_cuts_no_callback_off(autojump_clock: MockClock) -> None:
    """An answer on the GET stream waits for the `on_progress` callback that runs."""
    backend = listening_backend(answers="sse")
    finished: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        await trio.sleep(5)
        finished.append(progress)

    async with open_client(backend) as client, trio.open_nursery() as nursery:
        await wait_all_tasks_blocked()
        answers: list[JSON] = []

        async def asking() -> None:
            answers.append(await call(client, "hang", on_progress=on_progress))

        nursery.start_soon(asking)
        await silence(1)
        backend.send(result(backend.received("tools/call")[0].request_id, content=["right"]))
        await silence(1)
        backend.send(result(backend.received("tools/call")[0].request_id, content=["the second"]))
        await silence(1)
        assert ([], []) == (finished, answers)
        await silence(3)
        assert ([0], [{"content": ["right"]}]) == (finished, answers)
        backend.end_streams()


async def test_a_call_that_is_not_answered_still_times_out(autojump_clock: MockClock) -> None:
    """The call times out, and a later answer is ignored."""
    backend = listening_backend()
    backend.fail("tools/call", Hang(), times=1)
    async with open_client(backend) as client:
        await wait_all_tasks_blocked()
        with pytest.raises(BackendTimeout):
            await call(client, timeout=3)
        backend.send(result(backend.received("tools/call")[0].request_id, content=[]))
        await silence(1)
        assert (await call(client))["content"]


async def test_a_flood_of_questions_is_bounded(autojump_clock: MockClock) -> None:
    """No more than sixteen answers are on their way at a time, four of them sent; questions that come meanwhile get no
    answer. The stream has a connection of its own beside those four.
    """

    def answers() -> int:
        return sum("result" in (exchange.message or {}) for exchange in backend.exchanges)

    backend = listening_backend()
    backend.fail(lambda exchange: "result" in (exchange.message or {}), Delay(0.2))
    async with open_client(backend):
        await wait_all_tasks_blocked()
        for number in range(1000):
            backend.send({"jsonrpc": "2.0", "id": number, "method": "ping"})
        await wait_all_tasks_blocked()
        assert MOST_ASIDE == answers()
        await silence(HOUR)
        # Four answers each 0.2 s, for as long as the flood is read.
        flood_lasts = (1000 * REQUEST_COST - MESSAGES_AHEAD) / MESSAGES_PER_SECOND
        before = answers()
        assert MOST_ANSWERS <= before <= MOST_ANSWERS + MOST_ASIDE * (flood_lasts / 0.2 + 1)
        backend.send({"jsonrpc": "2.0", "id": "later", "method": "ping"})
        await silence(HOUR)
        assert before + 1 == answers()


async def test_progress_of_a_call_is_no_event() -> None:
    """Progress of a call belongs on the call's own stream: on the GET stream it is ignored."""
    backend = listening_backend()
    async with open_scripted(backend) as bench:
        await bench.connect()
        await wait_all_tasks_blocked()
        backend.notify("notifications/progress", {"progressToken": 3, "progress": 1})
        await wait_all_tasks_blocked()
        assert [] == bench.events


# Calls wait for the head if there are handlers


async def test_calls_wait_for_the_head_and_the_opening_does_not(autojump_clock: MockClock) -> None:
    """With handlers, calls wait for the head of the GET stream: a question that the backend sends earlier is lost, and
    the call with it.
    """
    backend = listening_backend(capabilities={"tools": {}})
    backend.fail("GET", Delay(0.4))
    async with open_client(backend, handlers=ASKED) as client:
        assert 0 == trio.current_time()
        await ask(client, "tools/list")
        assert 0 == trio.current_time()
        await call(client)
        assert 0.4 == pytest.approx(trio.current_time())
        await call(client)
        assert 0.4 == pytest.approx(trio.current_time())


@pytest.mark.parametrize("fault", [Hang(), Status(405), Status(500)])
async def test_a_head_that_does_not_come_is_waited_for_once(autojump_clock: MockClock, fault: Fault) -> None:
    """All calls together wait a second at most: servers may send no head before the first event."""
    backend = listening_backend()
    backend.fail("GET", fault)
    async with open_client(backend, handlers=ASKED) as client:
        await call(client)
        waited = trio.current_time()
        await call(client)
        assert waited == pytest.approx(1.0 if fault == Hang() else 0.0)
        assert waited == trio.current_time()


async def test_without_handlers_no_call_waits(autojump_clock: MockClock) -> None:
    """Without handlers no call waits: the stream only brings changes."""
    backend = listening_backend()
    backend.fail("GET", Hang())
    async with open_client(backend) as client:
        await call(client)
        assert 0 == trio.current_time()


# Hostile streams


@attrs.define(eq=False)
class Endless(httpx.AsyncByteStream):
    """The same piece for ever, as fast as it is read."""

    piece: bytes
    taken: int = 0

    def __aiter__(self) -> Endless:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        self.taken += 1
        return self.piece

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def server_with(stream: Endless) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=stream)
        asked = message_of(request)
        if asked.get("method") == "initialize":
            fields = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {"listChanged": True}}}
            return in_json(result(asked["id"], **fields), headers={"Mcp-Session-Id": "s-1"})
        return in_json(result(asked["id"], content=[])) if "id" in asked else httpx.Response(202)

    return httpx.MockTransport(answer)


@pytest.mark.parametrize(
    ("piece", "cost"),
    [
        (b":\n", PIECE_COST + LINE_COST),
        (b": a\n" * 4000, 4000 * LINE_COST),
        (b"\n", PIECE_COST + LINE_COST),
        (b"x", PIECE_COST),
        (event({"jsonrpc": "2.0", "method": TOOLS_CHANGED}) * 1000, 1000),
    ],
    ids=["comment", "comments", "blank", "byte", "notifications"],
)
async def test_a_flood_is_read_at_a_pace(autojump_clock: MockClock, piece: bytes, cost: float) -> None:
    """So many messages at once, and so many a second from then on, lines and pieces counted; calls go on beside it."""
    seconds = 8
    stream = Endless(piece)
    async with open_bench(server_with(stream), era="legacy") as bench:
        client = await bench.connect()
        with trio.move_on_after(seconds):
            while True:
                await call(client)
                await trio.sleep(1)
        assert MESSAGES_AHEAD + (seconds - 1) * MESSAGES_PER_SECOND <= (stream.taken + 1) * cost
        assert (stream.taken - 1) * cost <= MESSAGES_AHEAD + (seconds + 1) * MESSAGES_PER_SECOND
        await client.aclose(terminate=True)


@pytest.mark.parametrize(
    "piece", [b"data: " + b"x" * 5000, b"data\n" * 5000, b": " + b"x" * 5000], ids=["line", "lines", "comment"]
)
async def test_an_endless_event_ends_the_stream(autojump_clock: MockClock, piece: bytes) -> None:
    """`max_message_bytes` is the limit for each event of the stream."""
    backend = listening_backend()
    backend.fail("GET", streamed(piece), times=1)
    async with open_client(backend, settings=FactorySettings(max_message_bytes=4000)) as client:
        await silence(2)
        assert "open" == listening(client)
    assert 2 == len(gets(backend))


# Subscriptions


async def test_subscriptions_are_requests() -> None:
    """In this era a subscription is a request, and its updates come on the GET stream."""
    backend = listening_backend()
    backend.add_resource("memo://one")
    async with open_scripted(backend) as bench:
        client = await bench.connect()
        await wait_all_tasks_blocked()
        assert {} == await ask(client, "resources/subscribe", {"uri": "memo://one"})
        for uri in ("memo://one", "memo://two"):
            backend.notify("notifications/resources/updated", {"uri": uri})
        await wait_all_tasks_blocked()
        assert {} == await ask(client, "resources/unsubscribe", {"uri": "memo://one"})
        backend.notify("notifications/resources/updated", {"uri": "memo://one"})
        await wait_all_tasks_blocked()
        assert [("notifications/resources/updated", {"uri": "memo://one"})] == bench.events


# Cancelled anywhere


async def live_and_die(cut: CancelAtMoment, era: str) -> None:
    """Connect, listen, call, subscribe, reconnect, close: cancelled at one moment."""
    backend = echo_backend(era, "sse", listens=True)
    backend.add_resource("memo://one")
    async with open_memory_network() as network:
        url = network.attach("b.test", backend)
        transport = network.transport()
        connector = BuiltInConnector(FactorySettings(), transport=transport, handlers=ASKED)
        configured = Backend("b", url, era="legacy" if era == "legacy" else "modern")
        with cut.block():
            async with trio.open_nursery() as nursery:
                client = await connector(configured, identity=None, resume=None, nursery=nursery, events=HeardEvents())
                await call(client)
                await ask(client, "resources/subscribe", {"uri": "memo://one"})
                backend.notify(TOOLS_CHANGED)
                backend.end_streams()
                await trio.sleep(1)
                await ask(client, "resources/unsubscribe", {"uri": "memo://one"})
                await client.aclose(terminate=True)
        await wait_all_tasks_blocked()
        assert (0, 0) == (transport.busy_connections, backend.listening)
        await transport.aclose()
        await wait_all_tasks_blocked()
        assert 0 == network.open_connections
        assert [] == backend.errors


@pytest.mark.parametrize("first", range(3))
@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_a_cancel_at_any_moment_leaves_nothing(era: str, first: int) -> None:
    """No task, connection or stream is left, and the backend sees no more than a client that disconnects. Each case
    takes every third moment.
    """

    def moments() -> Iterator[int]:
        for moment in itertools.count(first, 3):
            cut = CancelAtMoment(moment)
            trio.run(live_and_die, cut, era, clock=MockClock(autojump_threshold=0))
            yield moment
            if cut.struck is None:
                return

    assert len(list(moments())) > 17
