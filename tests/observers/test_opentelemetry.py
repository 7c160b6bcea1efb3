"""Traces of sessions over every channel, read from the exporter in memory: parents and children, and no secrets."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import attrs
import pytest
import trio
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from support.channels import EVERY_CHANNEL, EVERY_MODERN_CHANNEL, Channel
from support.plain_connector import PlainConnector, plain_backends
from trio.testing import MockClock

from trio_vmcp import JSON, BackendError, FactorySettings, NoBackends, ToolNotFound, open_session_factory
from trio_vmcp.errors import session_tag
from trio_vmcp.observers import opentelemetry
from trio_vmcp.observers.opentelemetry import OpenTelemetryObserver
from trio_vmcp.testing import CallContext, Error, ScriptedBackend

W3C = TraceContextTextMapPropagator()
OPENING = "trio_vmcp open session"


@attrs.define(eq=False)
class Traced:
    """The client's observer and spans, and a backend that makes a span for each call by what `_meta` says."""

    provider: TracerProvider
    exporter: InMemorySpanExporter
    metas: list[JSON] = attrs.field(factory=list)

    @property
    def observer(self) -> OpenTelemetryObserver:
        return OpenTelemetryObserver(self.provider)

    @property
    def tracer(self) -> trace.Tracer:
        return self.provider.get_tracer("test")

    def backend(self, channel: Channel) -> ScriptedBackend:
        async def look(arguments: JSON, context: CallContext) -> str:
            self.metas.append(context.meta)
            with self.tracer.start_as_current_span("backend", W3C.extract(context.meta), kind=SpanKind.SERVER):
                return "CANARY-result"

        async def broken(arguments: JSON, context: CallContext) -> str:
            raise ValueError("CANARY")

        backend = channel.backend()
        backend.add_tool("look", look)
        backend.add_tool("broken", broken)
        backend.add_prompt("p")
        backend.add_resource_template("memo:///{name}")
        return backend

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span


@pytest.fixture
def traced() -> Iterator[Traced]:
    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Traced(provider, exporter)
    provider.shutdown()


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


@EVERY_CHANNEL
async def test_one_trace_shows_opening_call_and_backend(
    channel: Channel, autojump_clock: MockClock, traced: Traced
) -> None:
    """Opening and call are children of the span that is current where they are asked for, and the backend's span is a
    child of the call's.
    """
    with traced.tracer.start_as_current_span("request"):
        async with channel.open_session(traced.backend(channel), observers=[traced.observer]) as session:
            await session.call_tool("b_look", {})
    opening, call = traced.span(OPENING), traced.span("tools/call b_look")
    request, backend = traced.span("request"), traced.span("backend")
    assert [id_of(request)] * 2 == [parent_of(opening), parent_of(call)]
    assert id_of(call) == parent_of(backend)
    assert 1 == len({span.context.trace_id for span in traced.exporter.get_finished_spans() if span.context})
    assert (SpanKind.CLIENT, StatusCode.UNSET) == (call.kind, call.status.status_code)
    assert {
        "mcp.method.name": "tools/call",
        "gen_ai.tool.name": "b_look",
        "trio_vmcp.backend.id": "b",
        "trio_vmcp.session.tag": session_tag(session.id),
    } == call.attributes
    assert opening.start_time is not None
    assert call.start_time is not None
    assert opening.start_time <= call.start_time


@EVERY_CHANNEL
async def test_each_call_has_its_own_span(channel: Channel, autojump_clock: MockClock, traced: Traced) -> None:
    """Also of calls side by side."""
    async with channel.open_session(traced.backend(channel), observers=[traced.observer]) as session:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(session.call_tool, "b_look", {})
    calls = [id_of(span) for span in traced.spans("tools/call b_look")]
    assert sorted(calls) == sorted(parent or 0 for parent in map(parent_of, traced.spans("backend")))
    assert 5 == len(set(calls))


@pytest.mark.parametrize("has_current", [False, True])
async def test_a_trace_that_only_meta_tells_of_goes_on(
    has_current: bool, autojump_clock: MockClock, traced: Traced
) -> None:
    """A gateway that passes its client's `_meta` on is one hop of that client's trace. A span that is current knows
    more.
    """
    given = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "vendor=1"}
    channel = Channel("streamable-http", "modern")
    async with channel.open_session(traced.backend(channel), observers=[traced.observer]) as session:
        span = traced.tracer.start_span("request") if has_current else trace.INVALID_SPAN
        with trace.use_span(span, end_on_exit=has_current):
            await session.call_tool("b_look", {}, meta=given)
    call = traced.span("tools/call b_look")
    assert id_of(call) == parent_of(traced.span("backend"))
    (meta,) = traced.metas
    assert given["traceparent"] != meta["traceparent"]
    if has_current:
        assert id_of(traced.span("request")) == parent_of(call)
        assert "tracestate" not in meta
    else:
        assert int("b" * 16, 16) == parent_of(call)
        assert "vendor=1" == meta["tracestate"]


@EVERY_CHANNEL
async def test_a_call_that_fails_says_how(channel: Channel, autojump_clock: MockClock, traced: Traced) -> None:
    """`error.type`, by the conventions; the text of an error may say anything and is left out."""
    backend = traced.backend(channel)
    async with channel.open_session(backend, observers=[traced.observer]) as session:
        assert (await session.call_tool("b_broken", {"password": "CANARY"})).is_error
        backend.fail("tools/call", Error(-32603, "CANARY"), times=1)
        with pytest.raises(BackendError):
            await session.call_tool("b_look", {}, meta={"mine": "CANARY"})
        with pytest.raises(ToolNotFound):
            await session.call_tool("b_CANARY")
        await session.read_resource("memo:///CANARY")
        await session.get_prompt("b_p", {"x": "CANARY"})
        with trio.CancelScope() as scope:
            scope.cancel()
            await session.call_tool("b_look", {})
    spans = [span for span in traced.exporter.get_finished_spans() if span.name not in (OPENING, "backend")]
    assert [
        ("tools/call b_broken", "tool_error", StatusCode.ERROR),
        ("tools/call b_look", "BackendRejected", StatusCode.ERROR),
        ("tools/call", "ToolNotFound", StatusCode.ERROR),
        ("resources/read", None, StatusCode.UNSET),
        ("prompts/get b_p", None, StatusCode.UNSET),
        ("tools/call b_look", "cancelled", StatusCode.UNSET),
    ] == [(span.name, (span.attributes or {}).get("error.type"), span.status.status_code) for span in spans]
    assert "CANARY" not in "".join(span.to_json() for span in traced.exporter.get_finished_spans())


async def test_an_opening_that_fails_is_a_span(autojump_clock: MockClock, traced: Traced) -> None:
    """As long as the opening was."""

    async def slow() -> None:
        await trio.sleep(3)
        raise OSError

    connector = PlainConnector(on_connect={"b0": slow})
    settings = FactorySettings(min_backends=1)
    async with open_session_factory(connector=connector, observers=[traced.observer], settings=settings) as factory:
        with pytest.raises(NoBackends):
            await factory.make_session(plain_backends(1))
    opening = traced.span(OPENING)
    assert StatusCode.ERROR == opening.status.status_code
    assert "NoBackends" == (opening.attributes or {})["error.type"]
    assert opening.start_time is not None
    assert opening.end_time is not None
    assert 3_000_000_000 == opening.end_time - opening.start_time


async def test_without_a_provider_nothing_is_sent(autojump_clock: MockClock) -> None:
    """An application that sets up no tracing pays next to nothing, and backends see no trace."""
    connector = PlainConnector()
    async with open_session_factory(connector=connector, observers=[OpenTelemetryObserver()]) as factory:
        session = await factory.make_session(plain_backends(1))
        result = await session.call_tool("b0_echo")
    assert "_meta" not in (result.structured_content or {})


def test_without_opentelemetry_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else works without it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, opentelemetry.__name__)
    with pytest.raises(ImportError) as caught:
        __import__(opentelemetry.__name__)
    assert "OpenTelemetryObserver needs opentelemetry-api: pip install 'trio-vmcp[otel]'" == str(caught.value)


@EVERY_MODERN_CHANNEL
async def test_a_question_that_is_handed_out_is_no_error(
    channel: Channel, traced: Traced, autojump_clock: MockClock
) -> None:
    """The backend has answered, and the call that answers it is another span."""

    async def confirm(arguments: JSON, context: CallContext) -> str:
        return str(await context.elicit("?"))

    backend = traced.backend(channel)
    backend.add_tool("ask", confirm)
    async with channel.open_session(backend, observers=[traced.observer]) as session:
        await session.call_tool("b_ask", answer_rounds=False, client_capabilities={"elicitation": {}})
    span = traced.span("tools/call b_ask")
    assert StatusCode.UNSET == span.status.status_code
    assert span.attributes is not None
    assert (True, None) == (span.attributes["trio_vmcp.input_required"], span.attributes.get("error.type"))
