"""Each sweep is fed a library with one defect, and reports it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sweeps import cancel
from trio_vmcp import factory
from trio_vmcp._admission import Admission, Call
from trio_vmcp._nursery import start_clean
from trio_vmcp._outbound import outbound
from trio_vmcp._stored import Stored
from trio_vmcp.client._http import HttpLink, Reply, _Slot
from trio_vmcp.client._legacy import LegacyClient
from trio_vmcp.default_session import DefaultSession
from trio_vmcp.factory import DefaultSessionFactory


def first_finding(problems: Iterable[str | None]) -> str:
    return next((problem for problem in problems if problem is not None), "")


def cancel_sweep(name: str) -> str:
    (scenario,) = (scenario for scenario in cancel.SCENARIOS if scenario.name == name)
    return first_finding(cancel.sweep(scenario))


def test_a_task_that_outlives_its_cancelled_opener(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(self: Any, members: Any, row: Stored, identity: Any) -> DefaultSession:
        session = DefaultSession(members, row, identity, self._connector, self._settings)
        self._live[session.id] = session
        start_clean(self._nursery, self._own, session)
        await session.wait_open()  # and no `except BaseException`
        return session

    monkeypatch.setattr(DefaultSessionFactory, "_run", run)
    assert "library_tasks()" in cancel_sweep("opening-modern-json-pinned")


def test_a_lost_delete(monkeypatch: pytest.MonkeyPatch) -> None:
    def note_id(self: LegacyClient, reply: Reply) -> None:
        """Leaves it to the end of the answer."""

    monkeypatch.setattr(LegacyClient, "_note_id", note_id)
    assert "scripted-session-" in cancel_sweep("opening-legacy-json-pinned")


def test_an_in_flight_count_without_a_finally(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def admit(self: Any) -> AsyncIterator[Call]:
        call = Call(admission=self, outer=outbound.get())
        self._calls.add(call)
        yield call
        self._calls.discard(call)
        self._look_drained()

    monkeypatch.setattr(Admission, "admit", admit)
    assert "in_flight" in cancel_sweep("calling-modern-json-pinned")


def test_a_limiter_token_without_a_finally(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def under_limit(self: Any, limited: bool) -> AsyncIterator[None]:
        slot = _Slot()
        if limited:
            await self._slots.acquire_on_behalf_of(slot)
        yield
        if limited:
            self._slots.release_on_behalf_of(slot)

    monkeypatch.setattr(HttpLink, "_under_limit", under_limit)
    assert "limiter tokens are still borrowed" in cancel_sweep("opening-modern-json-pinned")


def test_a_response_that_is_not_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async def aclose(self: Reply) -> None:
        """Awaits under the caller's cancel, and so does nothing."""
        await self._response.aclose()  # type: ignore[attr-defined]

    monkeypatch.setattr(Reply, "aclose", aclose)
    assert "" != cancel_sweep("calling-legacy-sse-pinned")


def test_a_row_that_a_cancelled_restore_takes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    request_close = DefaultSession.request_close

    def always_for_good(self: DefaultSession, *, terminate: bool, drain_timeout: float | None = None) -> None:
        request_close(self, terminate=terminate or drain_timeout == 0, drain_timeout=drain_timeout)

    monkeypatch.setattr(DefaultSession, "request_close", always_for_good)
    assert "SessionNotFound" in cancel_sweep("restoring-modern-json")


def test_a_close_that_its_cancelled_closer_undoes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait_closed(sessions: Sequence[DefaultSession]) -> None:
        for session in sessions:
            await session.wait_closed()  # and not shielded, once that is cancelled

    monkeypatch.setattr(factory, "_wait_closed", wait_closed)
    assert "library_tasks()" in cancel_sweep("holding-legacy-sse")
