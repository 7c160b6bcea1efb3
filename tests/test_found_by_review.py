"""What a review of the whole library found wrong, each as small as it gets."""

from __future__ import annotations

import math
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import attrs
import httpx
import pytest
import trio
from support.harness import PlainConnector, ScriptedStorage, echo_backend, open_world, plain_backends
from trio.testing import MockClock

from trio_vmcp import (
    JSON,
    Backend,
    BackendProtocolError,
    BackendUnavailable,
    ClientHandlers,
    FactorySettings,
    FailureReason,
    Prefix,
    Session,
    SessionClosed,
    StorageError,
    open_session_factory,
)
from trio_vmcp._client.http.link import HttpLink
from trio_vmcp.cli import main
from trio_vmcp.routing import Offer, build_routing
from trio_vmcp.testing import Delay, Rewrite, ScriptedBackend, open_loopback

KIB = 1024


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_huge_capabilities_cost_their_backend_alone(era: str, autojump_clock: MockClock) -> None:
    """Capabilities go into the row of the session, so one backend cannot fill it: it is missing, LIMIT."""
    greedy = echo_backend(era)
    greedy.capabilities = {"tools": {}, "experimental": {"x": "y" * 64 * KIB}}
    async with open_world({"greedy": greedy, "good": echo_backend(era)}) as world, world.open_session() as session:
        (failure,) = session.failures
        assert ["good_echo"] == [tool.name for tool in session.tools]
    assert ("greedy", FailureReason.LIMIT) == (failure.backend_id, failure.reason)
    assert "declares capabilities of over 65536 bytes" == failure.detail


async def test_all_lists_of_a_backend_share_one_limit_of_bytes(autojump_clock: MockClock) -> None:
    """What is listed is kept for the life of the session: pages cannot add up to more than `max_message_bytes`."""
    backend = ScriptedBackend(page_size=1)
    for number in range(8):
        backend.add_tool(f"t{number}", description="x" * 40 * KIB)
    settings = FactorySettings(max_message_bytes=256 * KIB)
    async with open_world({"a": backend}, settings=settings) as world, world.open_session() as session:
        (failure,) = session.failures
    assert FailureReason.LIMIT is failure.reason
    assert "lists more than 262144 bytes (max_message_bytes)" == failure.detail


async def test_tools_that_must_not_be_called_share_one_warning(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A page of bad `x-mcp-header` annotations is one line of the log, not one for each."""

    def spoil(response: JSON) -> JSON:
        response["result"]["tools"] += [{"name": f"bad{n}", "inputSchema": {"x-mcp-header": 1}} for n in range(500)]
        return response

    backend = echo_backend("modern")
    backend.fail("tools/list", Rewrite(spoil))
    async with open_world({"a": backend}) as world, world.open_session() as session:
        assert ["a_echo"] == [tool.name for tool in session.tools]
    (warning,) = caplog.records
    assert "dropped tool 'bad0'" in warning.getMessage()
    assert "499 more" in warning.getMessage()


async def test_bad_entries_share_one_warning(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """So is a page of malformed entries."""

    def spoil(response: JSON) -> JSON:
        response["result"]["tools"] += [None] * 500
        return response

    backend = echo_backend("legacy")
    backend.fail("tools/list", Rewrite(spoil))
    async with open_world({"a": backend}) as world, world.open_session() as session:
        assert ["a_echo"] == [tool.name for tool in session.tools]
    (warning,) = caplog.records
    assert "dropped entry 1: it is not an object, and 499 more" in warning.getMessage()


async def test_no_limit_on_pages(autojump_clock: MockClock) -> None:
    """`math.inf` means no limit of ours, for every limit."""
    backend = ScriptedBackend(page_size=1)
    for number in range(3):
        backend.add_tool(f"t{number}")
    settings = FactorySettings(max_pages=math.inf)  # type: ignore[arg-type]
    async with open_world({"a": backend}, settings=settings) as world, world.open_session() as session:
        assert () == session.failures
        assert ["a_t0", "a_t1", "a_t2"] == [tool.name for tool in session.tools]


@pytest.mark.parametrize("name", ["max_backend_init_concurrency", "max_pages", "max_connections_per_backend"])
def test_counts_are_whole_numbers(name: str) -> None:
    """5.0 is refused where it is written: later it would be a TypeError in the middle of an opening."""
    with pytest.raises(ValueError, match=f"{name}=5.0 is not a whole number, 1 or more"):
        FactorySettings(**{name: 5.0})  # type: ignore[arg-type]


def test_templates_of_one_backend_have_a_limit_together() -> None:
    """Matching a URI costs a bounded time, however many templates a backend lists; the ones of others still match."""
    costly = tuple("{?" + ",".join(f"v{n}_{m}" for m in range(64)) + "}" for n in range(2000))
    table = build_routing(
        [Offer("hostile", templates=costly), Offer("good", templates=("note:///{x}",))], Prefix()
    ).table
    assert sum(len(target.name) for target in table.templates if target.backend_id == "hostile") <= 64 * KIB
    found = table.find_resource("note:///1")
    assert found is not None
    assert "good" == found.backend_id


@pytest.mark.parametrize("line", [b"\n", b":\n", b"\r", b"id:1\n"])
async def test_tiny_lines_cost_more_than_their_bytes(line: bytes) -> None:
    """A stream of empty lines and comments ends long before it has kept the loop busy for 4 x `max_message_bytes`."""
    taken = 0

    class Flood(httpx.AsyncByteStream):
        def __aiter__(self) -> Flood:
            return self

        async def __anext__(self) -> bytes:
            nonlocal taken
            taken += 1
            await trio.lowlevel.checkpoint()
            return line * (KIB // len(line))

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Flood())

    backend = Backend(id="a", url="http://a.test/mcp", era="modern")
    settings = FactorySettings(max_message_bytes=256 * KIB)
    async with open_session_factory(transport=httpx.MockTransport(answer), settings=settings) as factory:
        async with factory.open_session([backend]) as session:
            (failure,) = session.failures
    assert FailureReason.LIMIT is failure.reason
    assert taken < 4 * 256 / 16


class BadToken(httpx.Auth):
    """Reads its token from a file, and leaves the line end on."""

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        request.headers["Authorization"] = "Bearer canary\n"
        yield request


async def test_a_token_that_is_no_header_is_in_no_traceback() -> None:
    """h11 quotes the header that it refuses."""
    auth: list[httpx.Auth | None] = [None]
    async with open_loopback(echo_backend()) as url, open_session_factory(auth=lambda backend, who: auth[0]) as factory:
        async with factory.open_session([Backend(id="a", url=url, era="legacy")]) as session:
            auth[0] = BadToken()
            with pytest.raises(BackendUnavailable, match="a header that HTTP cannot carry") as caught:
                await session.call_tool("a_echo")
            auth[0] = None
    assert not caught.value.may_have_executed
    assert "canary" not in "".join(traceback.format_exception(caught.value))


async def test_a_redirect_to_a_host_that_is_no_name() -> None:
    """httpx takes it for a URL, and raises an error of `idna` when asked for its host."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(307, headers={"location": "http://xn--/"})

    link = HttpLink(
        Backend(id="a", url="http://a.test/mcp"),
        httpx.MockTransport(answer),
        auth=None,
        slots=trio.CapacityLimiter(1),
        max_message_bytes=KIB,
    )
    with pytest.raises(BackendProtocolError, match="to another origin"):
        async with link.exchange("POST", [], b"{}", identity=None):
            raise AssertionError


async def test_a_crash_in_the_opening_hands_no_session_out() -> None:
    """Who waits for a session that crashed while it opened gets an error, and not a session that closes on its own."""

    class BadRecord(PlainConnector):
        async def __call__(self, *args: object, **options: object) -> object:  # type: ignore[override]
            client = await super().__call__(*args, **options)  # type: ignore[arg-type]
            client.record = {}  # type: ignore[assignment]
            return client

    async with open_session_factory(connector=BadRecord()) as factory:  # type: ignore[arg-type]
        with pytest.raises(SessionClosed, match="crashed"):
            await factory.make_session(plain_backends(1))


async def test_a_pinned_era_wins_over_the_stored_one(autojump_clock: MockClock) -> None:
    """Whoever pins a backend to the modern era after it was stored as a legacy one has a reason."""
    async with open_world({"a": echo_backend("both")}) as world:
        world.leaves_sessions = True  # the legacy one, which nobody goes on with
        (backend,) = world.configured
        session = await world.factory.make_session([attrs.evolve(backend, era="legacy")])
        await session.suspend()
        restored = await world.factory.restore_session(session.id, [attrs.evolve(backend, era="modern")])
        assert ["modern"] == [record.era for record in restored.metadata.backends]
        await restored.aclose()


async def test_a_write_whose_answer_was_lost_is_no_conflict(autojump_clock: MockClock) -> None:
    """A storage may have done what it says it could not: the next write goes on from there."""
    storage = ScriptedStorage()
    late, later = echo_backend(), echo_backend()
    late.fail("initialize", Delay(2), times=1)
    later.fail("initialize", Delay(4), times=1)

    async def lose_the_answer() -> None:
        del storage.after["replace"]
        raise StorageError("the connection broke")

    storage.after["replace"] = lose_the_answer
    backends = {"a": echo_backend(), "late": late, "later": later}
    settings = FactorySettings(session_init_timeout=1)
    async with open_world(backends, storage=storage, settings=settings) as world, world.open_session() as session:
        await trio.sleep(5)
        (row,) = await storage.rows()
        assert ["a", "late", "later"] == [record.backend_id for record in row.backends]
        assert row == session.metadata


async def test_a_session_is_an_async_resource(autojump_clock: MockClock) -> None:
    """`async with` over what `make_session` returned closes it: for a type checker, too."""

    async def close_behind(session: Session) -> None:
        async with session as same:
            assert session is same

    async with open_world({"a": echo_backend()}) as world:
        session = await world.make_session()
        await close_behind(session)
        with pytest.raises(SessionClosed):
            await session.call_tool("a_echo")


def test_handlers_by_position() -> None:
    """`ClientHandlers(sampling, elicitation, roots, log)`, as the contract writes it."""

    async def sample(request: object) -> object:
        return request

    assert ClientHandlers(sampling=sample) == ClientHandlers(sample)


@pytest.mark.parametrize("closed", ["<&- >&-", "2>&-", ">&- 2>&-"])
def test_the_command_without_a_stream(closed: str, tmp_path: Path) -> None:
    """A stream that the shell has closed is no reason for a traceback: what goes there goes nowhere."""
    config = tmp_path / "mcp.json"
    config.write_text('{"off": {"url": "http://a.test/", "disabled": true}}')
    program = "from trio_vmcp.cli import main; raise SystemExit(main())"
    command = f'"{sys.executable}" -c "{program}" check --config "{config}" {closed}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert 2 == done.returncode
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ['{"a": 1e999}', '{"a": "\\ud800"}', '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"])
def test_arguments_that_cannot_be_sent(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They are bad usage, one line and status 2, before any server is asked."""
    with pytest.raises(SystemExit) as caught:
        main(["call", "a_echo", text, "--config", "no such file"])
    assert 2 == caught.value.code
    assert "not JSON that can be sent" in capsys.readouterr().err
