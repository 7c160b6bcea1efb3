"""Which era a backend speaks: the verdict on every answer to the probe, and how a wrong verdict is corrected."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
from support.channels import notification
from support.clients import Bench, Chunks, call, echo_backend, event, message_of, open_bench, open_scripted, result
from support.duplex import Raw as RawLines
from support.memory_processes import MemoryProcess, ProcessTable, Program, memory_processes
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendUnauthorized,
    BackendUnavailable,
    ClientHandlers,
    FactorySettings,
    ServerRequest,
)
from trio_vmcp._client.probe import VerdictCache
from trio_vmcp._protocol.eras import Verdict, is_modern_error, judge
from trio_vmcp._protocol.jsonrpc import ErrorReply, Result
from trio_vmcp._protocol.outcomes import Answer, Refusal
from trio_vmcp.connector import BackendClient
from trio_vmcp.testing import CONNECT, Delay, Disconnect, Error, Fault, Hang, Raw, Refuse, Reset, Rewrite, Status

VERSION = "2026-07-28"
MODERN, LEGACY, INCONCLUSIVE = Verdict.MODERN, Verdict.LEGACY, Verdict.INCONCLUSIVE


def discovered(**fields: Any) -> Answer:
    return Answer(Result(1, fields), 200)


def error(code: int, data: Any = None, status: int = 400) -> Answer:
    return Answer(ErrorReply(1, code, "no", data), status)


def refused(status: int) -> Refusal:
    return Refusal(status)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (discovered(supportedVersions=[VERSION]), MODERN),
        (discovered(supportedVersions=["2025-11-25", VERSION], resultType="complete"), MODERN),
        (discovered(supportedVersions=[VERSION, 7, None]), MODERN),
        (discovered(resultType="input_required", inputRequests={}), MODERN),
        # go-sdk's stateful servers list legacy versions only
        (discovered(supportedVersions=["2025-11-25", "2025-06-18"]), LEGACY),
        (discovered(supportedVersions=[]), LEGACY),
        (discovered(supportedVersions=VERSION), LEGACY),
        (discovered(supportedVersions={VERSION: 1}), LEGACY),
        (discovered(), LEGACY),
        (discovered(resultType="complete"), LEGACY),
        (error(-32020), MODERN),
        (error(-32021, {"requiredCapabilities": {"roots": {}}}), MODERN),
        (error(-32020, status=200), MODERN),
        (error(-32022, {"supported": [VERSION], "requested": "x"}), MODERN),
        # -32022 counts only if its list has a version of ours
        (error(-32022, {"supported": ["2027-01-01"]}), LEGACY),
        (error(-32022, {"supported": ["2025-11-25"]}), LEGACY),
        (error(-32022, {"supported": VERSION}), LEGACY),
        (error(-32022, [VERSION]), LEGACY),
        (error(-32022), LEGACY),
        (error(-32601, status=404), LEGACY),
        (error(-32601, status=200), LEGACY),
        # go-sdk 1.7 refuses any _meta version; sessions are missed with 400 -32000
        (error(-32602), LEGACY),
        (error(-32000, status=400), LEGACY),
        (error(-32600, status=406), LEGACY),
        (error(-32603, status=200), LEGACY),
        (refused(400), LEGACY),
        (refused(404), LEGACY),
        (refused(405), LEGACY),
        (refused(406), LEGACY),
        (refused(415), LEGACY),
        (refused(422), LEGACY),
        (refused(401), INCONCLUSIVE),
        (refused(403), INCONCLUSIVE),
        (refused(407), INCONCLUSIVE),
        (refused(408), INCONCLUSIVE),
        (refused(429), INCONCLUSIVE),
        (refused(500), INCONCLUSIVE),
        (refused(503), INCONCLUSIVE),
        (error(-32603, status=500), INCONCLUSIVE),
        (error(-32000, status=401), INCONCLUSIVE),
    ],
)
def test_every_answer_to_the_probe_has_a_verdict(answer: Answer | Refusal, verdict: Verdict) -> None:
    """An outage, an overload, 401 and 403 prove nothing; only a modern server sends modern errors."""
    assert verdict is judge(answer)


def test_only_errors_are_modern_errors() -> None:
    """Neither a refusal over HTTP nor a result counts as a modern error."""
    assert not is_modern_error(Refusal(400))
    assert not is_modern_error(Answer(Result(1, {})))


# The probe over the wire: what comes back, and what is spoken then


async def connect_to(bench: Bench, fault: Fault, backend: Any) -> BackendClient:
    backend.fail("server/discover", fault)
    return await bench.connect()


def rewritten(**fields: Any) -> Rewrite:
    return Rewrite(lambda message: {**message, "result": fields})


SSE = {"content-type": "text/event-stream"}


@pytest.mark.parametrize(
    ("fault", "remembered"),
    [
        (Status(202), True),
        (Status(204), True),
        (Status(200), True),
        (Status(200, b"hello", {"content-type": "text/plain"}), True),
        (Status(200, b"<html>", {"content-type": "text/html"}), True),
        (Status(200, b"{", {"content-type": "application/json"}), True),
        (Status(200, b"[]", {"content-type": "application/json"}), True),
        (Status(200, b"", SSE), True),
        (Status(200, b": only a comment\n\n", SSE), True),
        (Status(301, headers={"location": "/elsewhere"}), True),
        (Status(400), True),
        (Status(404, b"x" * 100_000), True),
        (Status(400, b'{"error":"Missing session ID"}'), True),
        (Error(-32601, "unknown"), True),
        (Error(-32000, "Bad Request: Server not initialized", status=400), True),
        (Raw(b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"), True),
        (rewritten(supportedVersions=["2025-11-25"]), True),
        (rewritten(), True),
        (Status(401), False),
        (Status(429), False),
        (Status(503, b"starting"), False),
    ],
)
async def test_an_answer_that_is_not_modern_falls_back_to_the_handshake(
    autojump_clock: MockClock, fault: Fault, remembered: bool
) -> None:
    """The handshake follows at once, and the next session probes again only if the answer proved nothing."""
    backend = echo_backend("both")
    async with open_scripted(backend) as bench:
        first = await connect_to(bench, fault, backend)
        await call(first)
        second = await bench.connect()
        assert ["legacy", "legacy"] == [client.record.era for client in (first, second)]
    assert (1 if remembered else 2) == len(backend.received("server/discover"))


async def test_a_modern_backend_is_discovered_once_per_session() -> None:
    """The second session knows the era, but needs the capabilities."""
    backend = echo_backend("both")
    async with open_scripted(backend) as bench:
        for _ in range(2):
            client = await bench.connect()
            assert ("modern", {"tools": {}}) == (client.record.era, client.server_capabilities)
    assert ["server/discover"] * 2 == [e.method for e in backend.exchanges]


async def test_modern_by_the_list_although_the_result_type_is_missing() -> None:
    """github-mcp-server leaves `resultType` out: "absent means complete"."""
    backend = echo_backend("modern")
    async with open_scripted(backend, era="auto") as bench:
        client = await connect_to(bench, rewritten(supportedVersions=[VERSION], capabilities={"tools": {}}), backend)
        assert "modern" == client.record.era


@pytest.mark.parametrize("supported", [[VERSION], ["2025-11-25", VERSION]])
async def test_unsupported_version_is_retried_once(supported: list[str]) -> None:
    """Retried with the version that both know, which is the same; no handshake, since the server is modern."""
    backend = echo_backend("both")
    backend.fail("server/discover", Error(-32022, "no", {"supported": supported}, status=400), times=1)
    async with open_scripted(backend) as bench:
        assert "modern" == (await bench.connect()).record.era
    assert ["server/discover"] * 2 == [e.method for e in backend.exchanges]


@pytest.mark.parametrize("code", [-32020, -32021, -32022])
async def test_a_modern_server_that_goes_on_refusing_is_an_error(code: int) -> None:
    """The server has proved its era, so no handshake is tried."""
    backend = echo_backend("both")
    async with open_scripted(backend) as bench:
        with pytest.raises(BackendRejected, match="rejected 'server/discover'") as caught:
            await connect_to(bench, Error(code, "no", {"supported": [VERSION]}, status=400), backend)
        assert code == caught.value.code
    assert ["server/discover"] * 2 == [e.method for e in backend.exchanges]


async def test_a_modern_error_once_and_then_none() -> None:
    """The second answer counts: the server is legacy."""
    backend = echo_backend("both")
    backend.fail("server/discover", Error(-32021, "no", status=400), times=1)
    async with open_scripted(backend) as bench:
        assert "legacy" == (await connect_to(bench, Status(404), backend)).record.era


@pytest.mark.parametrize("fault", [Reset(0), Reset(30)])
async def test_a_lost_connection_is_no_verdict(fault: Fault) -> None:
    """A lost connection is reported as an outage, and no verdict is cached."""
    backend = echo_backend("both")
    backend.fail("server/discover", fault, times=1)
    async with open_scripted(backend) as bench:
        with pytest.raises(BackendUnavailable):
            await bench.connect()
        assert "modern" == (await bench.connect()).record.era
    assert [] == backend.received("initialize")


async def test_a_refused_connection_is_no_verdict() -> None:
    """A refused connection is reported without a second attempt in the other era."""
    backend = echo_backend("both")
    backend.fail(CONNECT, Refuse(), times=1)
    async with open_scripted(backend) as bench:
        with pytest.raises(BackendUnavailable, match="could not be reached"):
            await bench.connect()
        assert "modern" == (await bench.connect()).record.era


@pytest.mark.parametrize(("init_timeout", "waited"), [(60.0, 10.0), (6.0, 2.0)])
async def test_a_probe_that_hangs_leaves_time_for_the_handshake(
    autojump_clock: MockClock, init_timeout: float, waited: float
) -> None:
    """The probe gets 10 s or a third of the time to connect, then comes `initialize`. Silence before a handshake that
    works is remembered as legacy, until `initialize` is refused.
    """
    backend = echo_backend("both")
    backend.fail("server/discover", Hang(), times=1)
    settings = FactorySettings(backend_init_timeout=init_timeout)
    async with open_scripted(backend, settings=settings) as bench:
        started = trio.current_time()
        assert "legacy" == (await bench.connect()).record.era
        assert waited == pytest.approx(trio.current_time() - started)
        assert "legacy" == (await bench.connect()).record.era
        assert waited == pytest.approx(trio.current_time() - started)
        backend.fail("initialize", Error(-32601, "no such method"))
        assert "modern" == (await bench.connect()).record.era


@pytest.mark.parametrize(("fault", "kind"), [(Status(401), BackendUnauthorized), (Status(503), BackendRejected)])
async def test_a_closed_door_is_reported_by_the_handshake(fault: Fault, kind: type[BackendError]) -> None:
    """401 to the probe and to `initialize`: the failure is UNAUTHORIZED."""
    backend = echo_backend("both")
    backend.fail("POST", fault)
    async with open_scripted(backend) as bench:
        with pytest.raises(kind, match="'initialize'"):
            await bench.connect()
    assert ["server/discover", "initialize"] == [e.method for e in backend.exchanges]


# Wrong verdicts


async def test_a_backend_that_became_modern_is_found_out() -> None:
    """The cached verdict is legacy and `initialize` is answered -32022: the backend is probed again, and the verdict
    corrected.
    """
    backend = echo_backend("legacy")
    async with open_scripted(backend, era="auto", leaves_sessions=True) as bench:
        assert "legacy" == (await bench.connect()).record.era
        backend.era = "modern"
        assert "modern" == (await bench.connect()).record.era
        seen = len(backend.exchanges)
        assert "modern" == (await bench.connect()).record.era
        assert ["server/discover"] == [e.method for e in backend.exchanges[seen:]]


@pytest.mark.parametrize(
    "fault", [Error(-32601, "method not found", status=404), Status(404), Status(400), Status(405)]
)
async def test_a_modern_server_that_does_not_know_initialize_is_found_out(fault: Fault) -> None:
    """Any server could refuse `initialize` like this: with a cached verdict, the probe decides."""
    backend = echo_backend("legacy")
    async with open_scripted(backend, era="auto", leaves_sessions=True) as bench:
        await bench.connect()
        backend.era = "modern"
        backend.fail("initialize", fault)
        assert "modern" == (await bench.connect()).record.era


async def test_a_backend_that_became_legacy_is_found_out() -> None:
    """The cached verdict is modern and `server/discover` fails: the handshake follows, and the verdict is corrected."""
    backend = echo_backend("modern")
    async with open_scripted(backend, era="auto") as bench:
        assert "modern" == (await bench.connect()).record.era
        backend.era = "legacy"
        assert "legacy" == (await bench.connect()).record.era
        seen = len(backend.exchanges)
        assert "legacy" == (await bench.connect()).record.era
        assert "initialize" == backend.exchanges[seen].method


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Disconnect(0), "closed the connection"),
        (Error(-32022, "no", {"supported": [VERSION]}, status=400), "rejected 'server/discover'"),  # asked twice
    ],
)
async def test_a_question_that_fails_explains_more_than_a_refusal(
    fault: Fault, text: str, autojump_clock: MockClock
) -> None:
    """`server/discover` was not answered, `initialize` is refused, and the second question fails before HTTP+SSE does,
    or after it.
    """
    backend = echo_backend("both", latency=0.1)
    backend.fail("server/discover", Hang(), times=1)
    backend.fail("server/discover", fault)
    backend.fail("initialize", Status(400))
    async with open_scripted(backend) as bench:
        with pytest.raises((BackendUnavailable, BackendRejected), match=text):
            await bench.connect()


async def test_contradictions_end(autojump_clock: MockClock) -> None:
    """A server that refuses each era and points to the other gets a few requests, and the session an error."""
    backend = echo_backend("both")
    backend.fail("server/discover", Error(-32601, "no", status=404))
    backend.fail("initialize", Error(-32022, "no", {"supported": [VERSION]}, status=400))
    async with open_scripted(backend) as bench:
        for _ in range(2):
            with pytest.raises(BackendRejected, match="rejected 'initialize'"):
                await bench.connect()
    methods = [e.method for e in backend.exchanges]
    assert ["server/discover", "initialize", "server/discover"] * 2 == methods


@pytest.mark.parametrize(
    "refusal",
    [
        Status(400, b"bad tenant"),
        Status(402, b"pay"),
        Status(200, b"<html>", {"content-type": "text/html"}),
        Error(-32001, "tenant suspended"),
    ],
    ids=["400", "402", "page", "error"],
)
async def test_a_refused_session_decides_no_era(refusal: Fault, autojump_clock: MockClock) -> None:
    """A session whose credentials are refused in both eras, in whatever way, leaves no verdict to the next session."""
    backend = echo_backend("both")
    for method in ("server/discover", "initialize"):
        backend.fail(method, refusal, times=1)
    async with open_scripted(backend) as bench:
        with pytest.raises(BackendError):
            await bench.connect()
        assert "modern" == (await bench.connect()).record.era


async def test_a_stored_modern_record_is_a_hint_and_no_more() -> None:
    """A restored session probes in the stored era first, and corrects it."""
    backend = echo_backend("modern")
    async with open_scripted(backend, era="auto") as bench:
        record = (await bench.connect()).record
        assert "modern" == (await bench.connect(resume=record)).record.era
        backend.era = "legacy"
        assert "legacy" == (await bench.connect(resume=record)).record.era


async def test_capabilities_that_are_no_object_are_an_error() -> None:
    """Malformed capabilities of a modern server are an error."""
    backend = echo_backend("both")
    async with open_scripted(backend) as bench:
        with pytest.raises(BackendProtocolError, match="no object"):
            await connect_to(bench, rewritten(supportedVersions=[VERSION], capabilities=[]), backend)


# The cache


@pytest.mark.parametrize("answer", [Status(404), Hang()], ids=str)
async def test_sessions_that_connect_together_share_one_probe(answer: Fault, autojump_clock: MockClock) -> None:
    """Of ten at once one probes, and nine wait for its verdict. Silence is shared, too."""
    backend = echo_backend("both")
    backend.fail("server/discover", answer)
    backend.latency = 1
    async with open_scripted(backend) as bench, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(bench.connect)
    assert 1 == len(backend.received("server/discover"))
    assert 10 == len(backend.received("initialize"))


async def test_a_cancelled_prober_passes_its_turn_on(autojump_clock: MockClock) -> None:
    """When a probe is cancelled, a waiting session probes at once."""
    backend = echo_backend("both")
    backend.fail("server/discover", Hang(), times=1)
    async with open_scripted(backend) as bench, trio.open_nursery() as nursery:
        prober = trio.CancelScope(deadline=trio.current_time() + 1)

        async def probe() -> None:
            with prober:
                await bench.connect()

        nursery.start_soon(probe)
        await wait_all_tasks_blocked()
        for _ in range(3):
            nursery.start_soon(bench.connect)
        await trio.sleep(1.5)
        assert ["modern"] * 3 == [client.record.era for client in bench.clients]
    # One probe that hung, one that was shared, and one each for the two that then knew the era, but not the
    # capabilities.
    assert 4 == len(backend.received("server/discover"))


async def test_a_probe_that_fails_passes_its_turn_on(autojump_clock: MockClock) -> None:
    """The error is that session's own; a waiting session probes itself."""
    cache = VerdictCache()
    asked: list[str] = []

    async def fail() -> Verdict:
        asked.append("first")
        await trio.sleep(1)
        raise BackendUnavailable("b", "is away")

    async def succeed() -> Verdict:
        asked.append("second")
        return LEGACY

    async with trio.open_nursery() as nursery:

        async def first() -> None:
            with pytest.raises(BackendUnavailable):
                await cache.find_verdict("e", b"", fail)

        nursery.start_soon(first)
        await wait_all_tasks_blocked()
        assert LEGACY is await cache.find_verdict("e", b"", succeed)
    assert ["first", "second"] == asked


async def test_what_proves_nothing_is_not_remembered() -> None:
    """A verdict that proves nothing is shared by the sessions that waited for it, and not cached."""
    cache = VerdictCache()

    async def unknown() -> Verdict:
        await trio.lowlevel.checkpoint()
        return INCONCLUSIVE

    async def modern() -> Verdict:
        return MODERN

    assert INCONCLUSIVE is await cache.find_verdict("e", b"", unknown)
    assert MODERN is await cache.find_verdict("e", b"", modern)
    assert MODERN is await cache.find_verdict("e", b"", unknown)
    cache.record_verdict("e", INCONCLUSIVE)
    assert INCONCLUSIVE is await cache.find_verdict("e", b"", unknown)


async def test_the_cache_is_bounded() -> None:
    """4096 endpoints, and the oldest is removed; a corrected verdict counts as new."""
    cache = VerdictCache()

    async def never() -> Verdict:
        raise AssertionError

    async def probed() -> Verdict:
        return INCONCLUSIVE

    for number in range(4096):
        cache.record_verdict(str(number), LEGACY)
    cache.record_verdict("0", MODERN)
    cache.record_verdict("new", LEGACY)
    assert MODERN is await cache.find_verdict("0", b"", never)
    assert LEGACY is await cache.find_verdict("2", b"", never)
    assert INCONCLUSIVE is await cache.find_verdict("1", b"", probed)


async def test_endpoints_do_not_share_verdicts() -> None:
    """One host may serve both eras on two paths."""
    backend = echo_backend("both")
    async with open_scripted(backend) as bench:
        await bench.connect()
        other = Backend(id="c", url="http://b.test/other", era="auto")
        backend.fail("server/discover", Status(404))
        assert "legacy" == (await bench.connect(backend=other)).record.era
        backend.heal()
        assert "modern" == (await bench.connect()).record.era


async def test_a_refusal_in_json_rpc_is_not_taken_for_the_older_transport() -> None:
    """HTTP+SSE servers do not answer this in JSON-RPC."""
    backend = echo_backend("both")
    backend.fail("POST", Error(-32602, "client too old", status=400))
    async with open_scripted(backend) as bench:
        with pytest.raises(BackendRejected, match="rejected 'initialize': 'client too old'"):
            await bench.connect()


async def test_a_probe_answered_in_a_stream_that_stays_open_is_answered(autojump_clock: MockClock) -> None:
    """The verdict does not wait for the end of the stream."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked: JSON = message_of(request)
        fields = {"supportedVersions": [VERSION], "capabilities": {}}
        return httpx.Response(200, headers=SSE, stream=Chunks(event(result(asked["id"], **fields)), 1000.0))

    async with open_bench(httpx.MockTransport(answer)) as bench:
        started = trio.current_time()
        assert "modern" == (await bench.connect()).record.era
        assert trio.current_time() - started < 1


async def test_a_late_probe_answer_changes_nothing(autojump_clock: MockClock) -> None:
    """After the probe timed out, a late answer is ignored: the handshake uses another connection."""
    backend = echo_backend("both")
    backend.fail("server/discover", Delay(15), times=1)
    async with open_scripted(backend) as bench:
        client = await bench.connect()
        await trio.sleep(10)
        await call(client)
        assert "legacy" == client.record.era


# What a process says before its era is known

LOGGED = notification("notifications/message", level="info", data="starting")


@asynccontextmanager
async def open_processes(
    main: Callable[[MemoryProcess, trio.abc.Stream], Awaitable[int]], **options: Any
) -> AsyncIterator[Bench]:
    """A connector for a program whose every process runs `main`."""
    table = ProcessTable()
    table.programs["b"] = Program(main=main, manners="polite", is_there=lambda: True, says=lambda env: "")
    with memory_processes(table):
        async with table.running_in_virtual_time(on_end=lambda process: None):
            async with open_bench(None, url="", command="b", transport_name="stdio", **options) as bench:
                yield bench


async def test_a_process_may_write_while_another_one_is_probed(autojump_clock: MockClock) -> None:
    """Two sessions start the same program, and one probe serves both. The process that is not asked writes a message
    meanwhile, which costs its connection nothing.
    """
    backend = echo_backend("legacy")
    pauses = iter([3.0, 0.0])

    async def main(process: MemoryProcess, pipes: trio.abc.Stream) -> int:
        await RawLines(pipes).send(LOGGED)
        await trio.sleep(next(pauses))
        await backend.serve_lines(pipes)
        return 0

    async with open_processes(main) as bench, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(bench.connect)
        await trio.sleep(5)
        for client in bench.clients:
            assert "{}" == (await call(client))["content"][0]["text"]
    assert 2 == len(bench.clients)
    assert 1 == len(backend.received("server/discover"))


async def test_a_process_that_ignores_the_probe_may_send_a_ping_and_log_meanwhile(autojump_clock: MockClock) -> None:
    """MCP 2025-11-25, lifecycle: before `initialized` a server may send pings and log messages."""
    received: list[JSON] = []
    logged: list[JSON] = []

    async def log(request: ServerRequest) -> None:
        logged.append(request.params)

    async def main(process: MemoryProcess, pipes: trio.abc.Stream) -> int:
        lines = RawLines(pipes)
        await lines.send({"jsonrpc": "2.0", "id": "p", "method": "ping"}, LOGGED)
        while (message := await lines.receive()).get("method") != "initialize":
            received.append(message)
        await lines.answer(message, protocolVersion="2025-11-25", capabilities={})
        while await pipes.receive_some():
            pass
        return 0

    async with open_processes(main, handlers=ClientHandlers(log=log)) as bench:
        await bench.connect()
    assert {"jsonrpc": "2.0", "id": "p", "result": {}} in received
    assert "server/discover" in [message.get("method") for message in received]
    assert [LOGGED["params"]] == logged


@pytest.mark.parametrize("dies", [True, False])
async def test_a_second_line_tells_a_dead_process_from_a_slow_one(dies: bool, autojump_clock: MockClock) -> None:
    """The read loop of some servers ends with `server/discover`, and the process with the next line. After a second of
    silence it is sent a ping. A slow process answers late, and keeps its era.
    """
    backend = echo_backend("legacy" if dies else "modern")
    started: list[float] = []

    async def main(process: MemoryProcess, pipes: trio.abc.Stream) -> int:
        started.append(trio.current_time())
        if len(started) > 1:
            await backend.serve_lines(pipes)
            return 0
        if dies:
            lines = RawLines(pipes)
            assert "server/discover" == (await lines.receive())["method"]
            assert "ping" == (await lines.receive())["method"]
            return 1
        await trio.sleep(5)
        await backend.serve_lines(pipes)
        return 0

    async with open_processes(main) as bench:
        client = await bench.connect()
        assert ("legacy" if dies else "modern") == client.record.era
        assert (1.0 if dies else 5.0) == pytest.approx(trio.current_time(), abs=0.5)
        await call(client)
        begun = trio.current_time()
        await bench.connect()
        assert begun == pytest.approx(trio.current_time(), abs=0.5)
    assert [] == backend.errors
