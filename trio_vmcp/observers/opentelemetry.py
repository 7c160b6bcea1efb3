"""Traces of sessions for OpenTelemetry, by `opentelemetry-api` (extra `otel`).

One span for each opening and each call, children of the span that is current where they were asked for. The span of a
call goes to the backend in `_meta` as W3C Trace Context (`traceparent`, `tracestate`: SEP-414), so that the backend's
own spans are its children. If no span is current, the trace context that the caller gave in `meta` is its parent.

Names and attributes follow the semantic conventions for MCP where there is one (`mcp.method.name`, `gen_ai.tool.name`,
`gen_ai.prompt.name`, `error.type`). There is none for a session id, an argument, a result or the URI of a resource.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from trio_vmcp.observe import CallEnded, CallStarted, Event, OpeningFailed, SessionOpened

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as _error:
    if (_error.name or "").partition(".")[0] != "opentelemetry":
        raise
    text = "OpenTelemetryObserver needs opentelemetry-api: pip install 'trio-vmcp[otel]'"
    raise ImportError(text, name="opentelemetry") from None

__all__ = ["OpenTelemetryObserver"]

_METHOD, _BACKEND, _SESSION = "mcp.method.name", "trio_vmcp.backend.id", "trio_vmcp.session.tag"
_ERROR = "error.type"
_NAMES = {"tools/call": "gen_ai.tool.name", "prompts/get": "gen_ai.prompt.name"}
_W3C = TraceContextTextMapPropagator()
_GOOD = frozenset({"ok", "input_required", "cancelled"})  # a caller that cancels has changed its mind


class OpenTelemetryObserver:
    """An observer of one or more factories that makes spans: `open_session_factory(observers=[…])`.

    The spans are named "trio_vmcp open session" and, by the conventions, after method and tool: "tools/call time_now".
    """

    def __init__(self, tracer_provider: trace.TracerProvider | None = None) -> None:
        """
        Args:
            tracer_provider: Makes the tracer; None: the global one.
        """
        self._tracer = trace.get_tracer("trio_vmcp", tracer_provider=tracer_provider)
        self._calls: dict[int, trace.Span] = {}

    def on_event(self, event: Event) -> None:
        match event:
            case CallStarted():
                self._start_call(event)
            case CallEnded():
                self._end_call(event)
            case SessionOpened():
                counts = {"trio_vmcp.backends": event.backends, "trio_vmcp.backends.missing": event.missing}
                self._make_opening(event.session, event.seconds, counts | {"trio_vmcp.restored": event.restored})
            case OpeningFailed():
                self._make_opening(event.session, event.seconds, {_ERROR: event.outcome})
            case _:
                pass

    def _start_call(self, started: CallStarted) -> None:
        parent = None  # the current span
        if started.trace and not trace.get_current_span().get_span_context().is_valid:
            parent = _W3C.extract(started.trace)
        name, attributes = started.method, {_METHOD: started.method, _SESSION: started.session}
        if started.backend_id is not None:  # else the name is whatever the caller has made up
            attributes[_BACKEND] = started.backend_id
            if started.method in _NAMES:
                name = f"{started.method} {started.name}"
                attributes[_NAMES[started.method]] = started.name
        span = self._tracer.start_span(name, parent, trace.SpanKind.CLIENT, attributes)
        self._calls[started.call] = span
        own = span.get_span_context()
        if own.is_valid:
            started.trace.clear()  # a `tracestate` of the caller's belongs to its own `traceparent`
            _inject(own, started.trace)

    def _end_call(self, ended: CallEnded) -> None:
        span = self._calls.pop(ended.call, None)
        if span is None:
            return  # refused to its caller
        if span.is_recording():
            if ended.waiting:
                span.set_attribute("trio_vmcp.waiting", ended.waiting)
            if ended.retried:
                span.set_attribute("trio_vmcp.retried", True)
            if ended.outcome == "input_required":
                span.set_attribute("trio_vmcp.input_required", True)
            elif ended.outcome != "ok":
                span.set_attribute(_ERROR, ended.outcome)
            if ended.outcome not in _GOOD:
                span.set_status(trace.StatusCode.ERROR)
        span.end()

    def _make_opening(self, session: str, seconds: float, attributes: Mapping[str, str | int | bool]) -> None:
        now = time.time_ns()
        span = self._tracer.start_span(
            "trio_vmcp open session",
            kind=trace.SpanKind.INTERNAL,
            attributes={_SESSION: session, **attributes},
            start_time=now - int(seconds * 1e9),
        )
        if _ERROR in attributes:
            span.set_status(trace.StatusCode.ERROR)
        span.end(now)


def _inject(own: trace.SpanContext, carrier: dict[str, str]) -> None:
    """W3C Trace Context §3.2. As the propagator does, which wants a context, and with that takes four times as long."""
    carrier["traceparent"] = f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"
    if own.trace_state:
        carrier["tracestate"] = own.trace_state.to_header()
