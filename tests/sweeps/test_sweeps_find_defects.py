"""Each sweep is fed a library with one defect, and reports it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio
from support.leaks import WATCH

from sweeps import bytewise, cancel, ctrl_c
from sweeps.report import EVERY, first_case
from trio_vmcp import JSON, BackendUnavailable, factory
from trio_vmcp._client.channels.channel import Ask, Channel
from trio_vmcp._client.channels.streamable_session import StreamableSession
from trio_vmcp._client.client import Client
from trio_vmcp._client.handshake import HandshakeClient
from trio_vmcp._client.http import link, reply
from trio_vmcp._client.http.foreign import RequestBody
from trio_vmcp._client.http.link import HttpExchange
from trio_vmcp._client.http.reply import HttpReply
from trio_vmcp._http.connection import Connection
from trio_vmcp._http.transport import RawResponse
from trio_vmcp._nursery import _run_protected, start_clean
from trio_vmcp._protocol.outcomes import RequestOutcome
from trio_vmcp._request_note import current_note
from trio_vmcp._session.admission import Admission, Call
from trio_vmcp._session.calls import Calls
from trio_vmcp._session.owner import SessionOwner
from trio_vmcp._session.row import SessionRow
from trio_vmcp.default_session import DefaultSession
from trio_vmcp.factory import DefaultSessionFactory


@pytest.fixture(autouse=True)
def leaks_are_wanted(request: pytest.FixtureRequest) -> Iterator[None]:
    """The check that follows every test reports none of what a sweep has found."""
    yield
    request.config.stash[WATCH].found = []


def first_finding(problems: Iterable[str | None]) -> str:
    return next((problem for problem in problems if problem is not None), "")


def cancel_sweep(name: str) -> str:
    (scenario,) = (scenario for scenario in cancel.SCENARIOS if scenario.name == name)
    return first_finding(problem for _, problem in cancel.sweep(scenario))


def byte_sweep(name: str) -> str:
    (scenario,) = (scenario for scenario in bytewise.SCENARIOS if scenario.name == name)
    return first_finding(problem for _, problem in bytewise.sweep(scenario))


def ctrl_c_sweep(name: str, *, every: int) -> str:
    (scenario,) = (scenario for scenario in ctrl_c.SCENARIOS if scenario.name == name)
    lines = range(0, ctrl_c.count_lines(scenario), every)
    return first_finding(ctrl_c.run_case(scenario, line)[0] for line in lines)


# The short form


@pytest.mark.parametrize("step", [EVERY, 100])
def test_the_short_forms_of_some_days_take_every_case(step: int) -> None:
    """A case that the short form of today leaves out is in that of another day."""
    for scenario in range(len(cancel.SCENARIOS)):
        assert {*range(step)} == {first_case(step, scenario, day=day) for day in range(20_000, 20_000 + step)}


def test_a_finding_of_the_short_form_has_the_number_that_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are those of the whole sweep, as `--case` takes them."""
    monkeypatch.setattr(RequestBody, "mark_written", lambda body: None)
    (scenario,) = (scenario for scenario in bytewise.SCENARIOS if scenario.name == "tools.call-modern-json")
    found = next(case for case in bytewise.sweep(scenario, every=EVERY) if case[1] is not None)
    assert [found] == [*bytewise.sweep(scenario, found[0])]


# The Ctrl-C sweep


@contextmanager
def unprotected(function: Any) -> Iterator[None]:
    trio.lowlevel.disable_ki_protection(function)
    try:
        yield
    finally:
        trio.lowlevel.enable_ki_protection(function)


def test_tasks_that_a_ctrl_c_strikes() -> None:
    with unprotected(_run_protected):
        assert "struck " in ctrl_c_sweep("ctrl-c-closing-http-legacy", every=5)


def test_a_call_that_a_ctrl_c_strikes_before_it_is_counted_out() -> None:
    with unprotected(Calls.call):
        assert "struck " in ctrl_c_sweep("ctrl-c-calling-stdio-legacy", every=2)


# The cancel sweep


def test_a_task_that_outlives_its_cancelled_opener(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(
        self: Any, members: Any, row: SessionRow, identity: Any, connector: Any, reporter: Any
    ) -> tuple[SessionOwner, DefaultSession]:
        parts = (connector, self._settings, self._endpoints, reporter, self._raise_exit, self._check_backend)
        owner = SessionOwner(members, row, identity, *parts, self._shared)
        self._live[owner.id] = owner
        session = DefaultSession(owner)
        start_clean(self._nursery, self._own, owner, session)
        await owner.wait_open()  # and no `except BaseException`
        return owner, session

    monkeypatch.setattr(DefaultSessionFactory, "_run", run)
    assert "library_tasks()" in cancel_sweep("opening-modern-json-pinned")


def test_a_lost_delete(monkeypatch: pytest.MonkeyPatch) -> None:
    greet, note_assigned = StreamableSession.greet, StreamableSession._note_assigned
    replies: list[HttpReply] = []

    async def late(self: StreamableSession, ask: Ask, data: bytes) -> RequestOutcome:
        """Leaves the id to the end of the answer."""
        outcome = await greet(self, ask, data)
        note_assigned(self, replies.pop())
        return outcome

    def keep(self: StreamableSession, reply: HttpReply) -> list[str]:
        replies.append(reply)
        return []

    monkeypatch.setattr(StreamableSession, "_note_assigned", keep)
    monkeypatch.setattr(StreamableSession, "greet", late)
    assert "scripted-session-" in cancel_sweep("opening-legacy-json-pinned")


def test_an_in_flight_count_without_a_finally(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def admit(self: Any) -> AsyncIterator[Call]:
        call = Call(admission=self, outer=current_note.get())
        self._calls.add(call)
        yield call
        self._calls.discard(call)
        self._check_drained()

    monkeypatch.setattr(Admission, "admit", admit)
    assert "in_flight" in cancel_sweep("calling-modern-json-pinned")


def test_a_limiter_token_without_a_finally(monkeypatch: pytest.MonkeyPatch) -> None:
    aexit = HttpExchange.__aexit__

    async def forgetful(self: HttpExchange, kind: Any, exc: BaseException | None, traceback: Any) -> None:
        if isinstance(exc, trio.Cancelled):
            self._slot = None
        await aexit(self, kind, exc, traceback)

    monkeypatch.setattr(HttpExchange, "__aexit__", forgetful)
    assert "tokens of the limiter" in cancel_sweep("opening-modern-json-pinned")


def test_a_response_that_is_not_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def close_if_ended(self: RawResponse) -> None:
        if self._connection.is_ended:  # a request that is cancelled in the middle of its body keeps its connection
            close(self)

    close = RawResponse.close
    monkeypatch.setattr(RawResponse, "close", close_if_ended)
    assert "busy_connections" in cancel_sweep("calling-legacy-sse-pinned")


def test_a_row_that_a_cancelled_restore_takes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    request_close = SessionOwner.request_close

    def always_for_good(
        self: SessionOwner, *, terminate: bool, drain_timeout: float | None = None, **more: Any
    ) -> None:
        request_close(self, terminate=terminate or drain_timeout == 0, drain_timeout=drain_timeout, **more)

    monkeypatch.setattr(SessionOwner, "request_close", always_for_good)
    assert "SessionNotFound" in cancel_sweep("restoring-modern-json")


def test_a_close_that_its_cancelled_closer_undoes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait_closed(owners: Sequence[SessionOwner]) -> None:
        for owner in owners:
            await owner.wait_closed()  # and not shielded, once that is cancelled

    monkeypatch.setattr(factory, "wait_closed", wait_closed)
    assert "library_tasks()" in cancel_sweep("holding-legacy-sse")


# The byte sweep


def test_a_deadline_that_is_a_second_off(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Client.request

    async def late(self: Client[Channel], method: str, params: JSON, *, timeout: float, **more: Any) -> JSON:
        return await request(self, method, params, timeout=timeout + 1, **more)

    monkeypatch.setattr(Client, "request", late)
    assert "request_timeout + INEXACT" in byte_sweep("tools.call-modern-sse")


def test_an_error_of_the_http_stack_that_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (link, reply):
        monkeypatch.setattr(module, "translated", lambda exc, backend_id, *, written: exc)
    assert "RemoteProtocolError" in byte_sweep("tools.call-legacy-json")
    assert "could not be connected" in byte_sweep("initialize-legacy-json")


def test_a_call_that_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = HandshakeClient.exchange

    async def twice(self: HandshakeClient, *args: Any) -> JSON:
        try:
            return await exchange(self, *args)
        except BackendUnavailable:
            return await exchange(self, *args)

    monkeypatch.setattr(HandshakeClient, "exchange", twice)
    assert 'assert 1 == scripted.executed["echo"]' in byte_sweep("tools.call-legacy-sse")


def test_a_call_that_claims_not_to_have_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RequestBody, "mark_written", lambda body: None)
    assert "may_have_executed" in byte_sweep("tools.call-modern-json")


def test_a_connection_that_died_and_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "is_alive", True)
    assert "lost its connection" in byte_sweep("tools.call-modern-json")
