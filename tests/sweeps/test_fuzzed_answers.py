"""10 000 answers that are nearly right: each is taken, or is a typed error, and the next call works.

The short form takes a third of them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Literal, TypeVar

import httpx
import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.channels import CHANNELS, Channel
from support.clients import call

from sweeps.answers import ID, Answer, answers, bodies
from sweeps.judge import judge
from trio_vmcp import JSON, Backend, BackendError, FactorySettings, ToolResult, open_session_factory
from trio_vmcp._client.channels import parsing, streamable
from trio_vmcp._protocol import jsonrpc
from trio_vmcp.testing import Rewrite

# Hypothesis warns when the example that it reports is long: as an error, this warning would take the finding's place.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr:hypothesis.errors.HypothesisWarning")

T = TypeVar("T")
Era = Literal["legacy", "modern"]

DRAWN = 4  # answers of one example, for one session after another
SLICED = 4  # ways that each of them arrives
CALLS, OPENINGS, CALLS_ON_ONE_STREAM = 250, 44, 150  # examples of each test, without --short
ON_ONE_STREAM = [channel for channel in CHANNELS if channel.transport != "streamable-http"]
TIMEOUT = 120.0  # s
SETTINGS = FactorySettings(max_message_bytes=64 * 1024, max_connections_per_backend=1)

INTRODUCTION = {"capabilities": {"tools": {}}, "serverInfo": {"name": "fuzz", "version": "1"}}
RESULTS: dict[str, JSON] = {
    "initialize": {"protocolVersion": "2025-11-25", **INTRODUCTION},
    "server/discover": {"supportedVersions": ["2026-07-28"], **INTRODUCTION},
    "tools/list": {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]},
    "tools/call": {"content": []},
}


class Body(httpx.AsyncByteStream):
    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.chunks = iter(chunks)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        for chunk in self.chunks:
            return chunk
        raise StopAsyncIteration


class Server:
    """Right in all but the answers to one method.

    Attributes:
        wrong: What requests of `method` get, and where it is cut; None: what is right.
    """

    def __init__(self, method: str) -> None:
        self.method = method
        self.wrong: tuple[Answer, Sequence[int]] | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        message = json.loads(request.content or b"{}")
        method, message_id = message.get("method"), message.get("id")
        if self.wrong is not None and (method == self.method or request.method == "GET"):
            answer, cuts = self.wrong
            body = Body(answer.chunks(cuts, message_id or 3))
            return httpx.Response(answer.status, headers=answer.headers, stream=body)
        if message_id is None:
            return httpx.Response(202, stream=Body([]))
        right = json.dumps({"jsonrpc": "2.0", "id": message_id, "result": RESULTS[method]}).encode()
        return httpx.Response(200, headers={"content-type": "application/json"}, stream=Body([right]))


async def call_through(era: Era, wrong: list[Answer]) -> None:
    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        assert isinstance(progress, int | float)
        await trio.lowlevel.checkpoint()

    server = Server("tools/call")
    backend = Backend(id="a", url="http://a.test/mcp", era=era)
    async with (
        open_session_factory(transport=httpx.MockTransport(server), settings=SETTINGS) as factory,
        factory.open_session([backend]) as session,
    ):
        for server.wrong in ((answer, cuts) for answer in wrong for cuts in answer.sliced()):
            begun = trio.current_time()
            try:
                result = await session.call_tool("a_echo", on_progress=on_progress)
            except BackendError as error:
                str(error).encode()  # fit for any log
            else:
                assert isinstance(result, ToolResult)
                assert isinstance(result.content, tuple)
                json.dumps(result.raw, allow_nan=False)
            assert trio.current_time() - begun <= SETTINGS.request_timeout + 1e-6
            server.wrong = None
            await session.call_tool("a_echo")


async def open_through(era: Era, method: str, wrong: list[Answer]) -> None:
    server = Server(method)
    backend = Backend(id="a", url="http://a.test/mcp", era=era)
    async with open_session_factory(transport=httpx.MockTransport(server), settings=SETTINGS) as factory:
        for server.wrong in ((answer, cuts) for answer in wrong for cuts in answer.sliced()):
            async with factory.open_session([backend]) as session:
                for failure in session.failures:
                    assert "could not be connected" not in failure.detail, failure  # said of untranslated errors
                    failure.detail.encode()
            server.wrong = None
            async with factory.open_session([backend]) as session:
                await session.call_tool("a_echo")


async def call_over(channel: Channel, wrong: list[bytes]) -> None:
    """Calls whose responses are these, over a channel that goes on after each of them."""
    backend = channel.backend()
    async with channel.open_client(backend, settings=SETTINGS) as client:
        for body in wrong:

            def change(response: JSON, body: bytes = body) -> bytes:
                return body.replace(ID.encode(), b"%d" % response["id"])

            rule = backend.fail("tools/call", Rewrite(change), times=1)
            begun = trio.current_time()
            try:
                result = await call(client, timeout=TIMEOUT)
            except BackendError as error:
                str(error).encode()
            else:
                json.dumps(result, allow_nan=False)
            assert trio.current_time() - begun <= TIMEOUT + 1e-6
            assert 1 == rule.struck
            following = await call(client, arguments={"after": rule.struck})
            assert [{"type": "text", "text": '{"after": 1}'}] == following["content"]


def fuzz(
    exchange: Callable[[list[T]], Awaitable[None]],
    drawn: st.SearchStrategy[T],
    examples: int,
    *,
    shrink: bool = True,
) -> None:
    """`exchange` with drawn answers, every example in a run of its own."""

    # No database: examples that fail with a planted defect must not be replayed later.
    @settings(
        max_examples=examples,
        database=None,
        phases=list(Phase) if shrink else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(drawn, min_size=DRAWN, max_size=DRAWN))
    def example(wrong: list[T]) -> None:
        problem = judge(partial(exchange, wrong))
        assert problem is None, problem

    example()


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_fuzzed_answers_to_a_call(era: Era, every: int, record_property: Callable[[str, object], None]) -> None:
    """A call ends in its result or one of the errors of the contract, whatever its answer is like."""
    fuzz(partial(call_through, era), answers(), CALLS // every)
    record_property("cases", CALLS // every * DRAWN * SLICED)


@pytest.mark.parametrize("channel", ON_ONE_STREAM, ids=str)
def test_fuzzed_answers_on_a_stream_that_all_calls_share(
    channel: Channel, every: int, record_property: Callable[[str, object], None]
) -> None:
    """A call ends in its result or one of the errors of the contract, and the call after it gets its own answer."""
    fuzz(partial(call_over, channel), bodies(), CALLS_ON_ONE_STREAM // every)
    record_property("cases", CALLS_ON_ONE_STREAM // every * DRAWN)


@pytest.mark.parametrize("method", ["initialize", "server/discover", "tools/list"])
def test_fuzzed_answers_to_an_opening(method: str, every: int, record_property: Callable[[str, object], None]) -> None:
    """An opening session has the backend, or a failure with a reason."""
    era: Era = "modern" if method == "server/discover" else "legacy"
    fuzz(partial(open_through, era, method), answers(), OPENINGS // every)
    record_property("cases", OPENINGS // every * DRAWN * SLICED)


def crooked(parse: Callable[..., jsonrpc.Message]) -> Callable[..., jsonrpc.Message]:
    def refuse(data: object, **limits: float) -> jsonrpc.Message:
        try:
            return parse(data, **limits)
        except jsonrpc.BadMessage as exc:
            raise KeyError("id") from exc

    return refuse


def test_an_unexpected_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the answers are wrong enough to come to every refusal."""
    for module, parse in ((streamable, "parse_message"), (parsing, "parse_cheap")):
        monkeypatch.setattr(module, parse, crooked(getattr(jsonrpc, parse)))
    with pytest.raises(AssertionError, match="KeyError"):
        fuzz(partial(call_through, "modern"), answers(), 20, shrink=False)
    with pytest.raises(AssertionError, match="could not be connected"):
        fuzz(partial(open_through, "legacy", "tools/list"), answers(), 20, shrink=False)
    with pytest.raises(AssertionError, match="KeyError"):
        fuzz(partial(call_over, ON_ONE_STREAM[0]), bodies(), 20, shrink=False)


def test_a_number_that_is_none_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """And right enough to come through where they should not."""
    monkeypatch.setattr(jsonrpc, "_decoder", json.JSONDecoder())
    with pytest.raises(AssertionError, match="not JSON compliant"):
        fuzz(partial(call_through, "modern"), answers(), 200, shrink=False)
