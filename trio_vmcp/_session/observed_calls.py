"""The calls of a session that has observers: the same calls, and two records of each (`trio_vmcp.observe`)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import trio

from trio_vmcp._protocol.methods import COMPLETE, GET_PROMPT, TOOLS_CALL
from trio_vmcp._protocol.rounds import INPUT_REQUIRED
from trio_vmcp._request_note import current_note
from trio_vmcp._session.admission import Call
from trio_vmcp._session.call_options import CallOptions
from trio_vmcp._session.calls import Calls
from trio_vmcp._session.member import Member
from trio_vmcp._session.observing import SessionReporter
from trio_vmcp.connector import OnProgress
from trio_vmcp.errors import BackendError, NotAuthorized
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON
from trio_vmcp.observe import TRACE_KEYS, CallEnded, CallStarted
from trio_vmcp.routing import Target

__all__ = ["ObservedCalls"]

_numbers = itertools.count(1)
_USERINFO = re.compile(r"(?<=://)[^/?#]*@")  # RFC 3986 §3.2.1


@attrs.define(eq=False)
class _Observed:
    """One call, as far as it has come.

    Attributes:
        name: What the records call it.
        call: Its note; None: it was not admitted, or refused to its caller.
        backend_id: None: no backend has the name.
    """

    begun_at: float
    number: int = attrs.field(factory=_numbers.__next__, init=False)
    name: str = attrs.field(default="", init=False)
    call: Call | None = attrs.field(default=None, init=False)
    backend_id: str | None = attrs.field(default=None, init=False)


@attrs.define(eq=False)
class ObservedCalls(Calls):
    """Its observers are told in the caller's task and context, where a tracer finds the caller's current span."""

    _reporter: SessionReporter = attrs.field(alias="reporter", kw_only=True, repr=False)

    @trio.lowlevel.enable_ki_protection
    async def call(
        self,
        method: str,
        name: str,
        route: Callable[[], tuple[Target, JSON]],
        caller: Identity | None,
        meta: JSON | None,
        timeout: float | None,
        on_progress: OnProgress | None,
        options: CallOptions | None = None,
    ) -> tuple[Member, JSON]:
        seen = _Observed(trio.current_time())

        def observed_route() -> tuple[Target, JSON]:
            seen.call = _current_call()
            try:
                target, params = route()
            except BaseException as exc:
                if isinstance(exc, BackendError):
                    seen.backend_id = exc.backend_id  # the name is bound to it, and it is missing
                self._start(seen, method, name, meta)
                raise
            seen.backend_id = target.backend_id
            trace = self._start(seen, method, name, meta)
            if trace:
                params["_meta"] = trace
            return target, params

        try:
            member, raw = await super().call(method, name, observed_route, caller, meta, timeout, on_progress, options)
        except BaseException as error:
            if seen.call is not None or isinstance(error, NotAuthorized):
                may_have_executed = getattr(error, "may_have_executed", seen.call is not None and seen.call.written)
                self._end(seen, method, _outcome(error), may_have_executed=may_have_executed)
            raise
        self._end(seen, method, _outcome_in(raw), may_have_executed=True)
        return member, raw

    def _start(self, seen: _Observed, method: str, name: str, meta: JSON | None) -> dict[str, str]:
        """The trace context to send."""
        seen.name = self._shown_name(method, name)
        trace = _trace_in(meta) if meta else {}
        started = CallStarted(
            session=self._reporter.tag,
            call=seen.number,
            method=method,
            name=seen.name,
            backend_id=seen.backend_id,
            trace=trace,
        )
        self._reporter.observers.notify(started)
        return _trace_in(trace)

    def _end(self, seen: _Observed, method: str, outcome: str, *, may_have_executed: bool) -> None:
        call = seen.call
        seconds = trio.current_time() - seen.begun_at
        waiting = 0.0 if call is None else call.waited
        ended = CallEnded(
            session=self._reporter.tag,
            call=seen.number,
            method=method,
            name=seen.name,
            backend_id=seen.backend_id,
            outcome=outcome,
            seconds=seconds,
            waiting=waiting,
            at_backend=0.0 if seen.backend_id is None else seconds - waiting,
            may_have_executed=may_have_executed,
            retried=call is not None and call.is_sent_again,
        )
        self._reporter.observers.notify(ended)

    def _shown_name(self, method: str, name: str) -> str:
        """The name that observers see. A URI that no backend lists holds what the caller has put in: an argument."""
        if method in (TOOLS_CALL, GET_PROMPT) or (method == COMPLETE and self._directory.find("prompts", name)):
            return name
        if self._directory.lists_resource(name) or self._directory.find_template(name) is not None:
            return _USERINFO.sub("", re.split("[?#]", name, maxsplit=1)[0])
        return ""


def _current_call() -> Call:
    """Of the call that the current task makes."""
    note = current_note.get()
    assert isinstance(note, Call)
    return note


def _trace_in(meta: Mapping[str, Any]) -> dict[str, str]:
    return {key: meta[key] for key in TRACE_KEYS if isinstance(meta.get(key), str)}


def _outcome_in(raw: JSON) -> str:
    """As in `CallEnded.outcome`, of a call with this result."""
    if raw.get("resultType") == INPUT_REQUIRED:
        return INPUT_REQUIRED
    return "tool_error" if raw.get("isError") is True else "ok"


def _outcome(error: BaseException) -> str:
    """As in `CallEnded.outcome`, of a call that raised this."""
    if isinstance(error, BaseExceptionGroup):  # of a nursery on the way
        is_cancelled = error.split(trio.Cancelled)[1] is None
    else:
        is_cancelled = isinstance(error, trio.Cancelled)
    return "cancelled" if is_cancelled else type(error).__name__
