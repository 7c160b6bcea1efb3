"""A session and its requests, watched by the command while they open and run. Watching does not change them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, Literal, TypeVar

import attrs
import httpx
import trio

from trio_vmcp._cli.view import BackendStatus, CallState, CallStatus, SessionReport, View, report_session
from trio_vmcp._client.built_in import BuiltInConnector
from trio_vmcp._http.proxy import choose_proxies
from trio_vmcp.connector import BackendClient, BackendConnector, EventSink, OnProgress
from trio_vmcp.errors import BackendError, VmcpError
from trio_vmcp.factory import open_session_factory
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord
from trio_vmcp.models import JSON, Backend, ToolResult
from trio_vmcp.session import Session
from trio_vmcp.settings import FactorySettings

__all__ = ["WatchedCall", "WatchedConnector", "open_watched_session", "run_watched_calls", "watch_tool"]

FRAME_SECONDS = 0.08  # smooth enough for a spinner

T = TypeVar("T")


@attrs.define(eq=False)
class _Connecting:
    """The times and the result of connecting one backend."""

    began_at: float | None = None
    ended_at: float | None = None
    connected: bool = False
    detail: str = ""

    def status(self, backend_id: str) -> BackendStatus:
        if self.began_at is None:
            return BackendStatus(backend_id, "connecting", 0.0)
        if self.ended_at is None:
            return BackendStatus(backend_id, "connecting", trio.current_time() - self.began_at)
        state: Literal["connected", "failed"] = "connected" if self.connected else "failed"
        return BackendStatus(backend_id, state, self.ended_at - self.began_at, detail=self.detail)


@attrs.define(eq=False)
class WatchedConnector:
    """A connector that records when each backend began to connect, and with what result that ended."""

    connector: BackendConnector
    _connecting: dict[str, _Connecting] = attrs.field(factory=dict, init=False)

    def statuses(self, backends: Sequence[Backend]) -> list[BackendStatus]:
        return [self._connecting.get(backend.id, _Connecting()).status(backend.id) for backend in backends]

    async def __call__(
        self,
        backend: Backend,
        *,
        identity: Identity | None,
        resume: BackendRecord | None,
        nursery: trio.Nursery,
        events: EventSink,
    ) -> BackendClient:
        attempt = self._connecting[backend.id] = _Connecting(trio.current_time())
        try:
            client = await self.connector(backend, identity=identity, resume=resume, nursery=nursery, events=events)
            attempt.connected = True
            return client
        except BackendError as error:
            attempt.detail = error.detail
            raise
        finally:  # also when cancelled because backend_init_timeout ran out
            attempt.ended_at = trio.current_time()


@asynccontextmanager
async def open_watched_session(
    backends: Sequence[Backend],
    settings: FactorySettings,
    view: View,
    *,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[tuple[Session, SessionReport]]:
    """Open a session, and report on each of its backends. The view shows them while they connect. Proxies are those of
    the environment.
    """
    connector = WatchedConnector(
        BuiltInConnector(settings, transport=transport, proxies=choose_proxies("env", os.environ))
    )
    async with open_session_factory(settings=settings, connector=connector) as factory:
        began_at = trio.current_time()
        session = await _while_drawing(
            lambda: view.show_backends(connector.statuses(backends)), lambda: factory.make_session(backends)
        )
        opened_in = trio.current_time() - began_at
        view.settle_drawing()
        yield session, report_session(session, backends, connector.statuses(backends), opened_in)


@attrs.define(eq=False)
class WatchedCall(Generic[T]):
    """One request. `run` keeps a `VmcpError` instead of raising it: afterwards there is a `result` or an `error`.

    Attributes:
        label: Tells this request from others.
        ask: Makes the request, in a session.
        at_work: Set with the first progress that the backend reports, and at the latest when the call is over.
    """

    label: str
    ask: Callable[[Session, OnProgress], Awaitable[T]]
    at_work: trio.Event = attrs.field(factory=trio.Event, init=False)
    result: T | None = attrs.field(default=None, init=False)
    error: VmcpError | None = attrs.field(default=None, init=False)
    _began_at: float | None = attrs.field(default=None, init=False)
    _ended_at: float | None = attrs.field(default=None, init=False)
    _progress: tuple[float | None, float | None, str] = attrs.field(default=(None, None, ""), init=False)

    @property
    def elapsed(self) -> float:
        """s since the call began, until now or until its end."""
        if self._began_at is None:
            return 0.0
        return (trio.current_time() if self._ended_at is None else self._ended_at) - self._began_at

    @property
    def status(self) -> CallStatus:
        progress, total, message = self._progress
        state: CallState = "running"
        if self.error is not None:
            state, message = "failed", str(self.error)
        elif self.result is not None:
            state = "error" if isinstance(self.result, ToolResult) and self.result.is_error else "done"
        return CallStatus(self.label, state, self.elapsed, progress, total, message)

    async def run(self, session: Session) -> None:
        self._began_at = trio.current_time()
        try:
            self.result = await self.ask(session, self._take_progress)
        except VmcpError as error:
            self.error = error
        finally:
            self._ended_at = trio.current_time()
            self.at_work.set()

    async def _take_progress(self, progress: float, total: float | None, message: str | None) -> None:
        self._progress = (progress, total, message or "")
        self.at_work.set()
        await trio.lowlevel.checkpoint()


def watch_tool(tool: str, arguments: JSON, label: str) -> WatchedCall[ToolResult]:
    return WatchedCall(label, lambda session, progress: session.call_tool(tool, arguments, on_progress=progress))


async def run_watched_calls(session: Session, calls: Sequence[WatchedCall[T]], view: View) -> float:
    """Run all calls at once, shown by the view, and return how many seconds they took."""

    async def run_all() -> None:
        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(call.run, session)

    began_at = trio.current_time()
    await _while_drawing(lambda: view.show_calls([call.status for call in calls]), run_all)
    view.settle_drawing()
    return trio.current_time() - began_at


async def _while_drawing(draw: Callable[[], None], work: Callable[[], Awaitable[T]]) -> T:
    """Run `work`. Draw before it, about twelve times a second while it runs, and once after it."""

    async def redraw() -> None:
        while True:
            draw()
            await trio.sleep(FRAME_SECONDS)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(redraw)
        outcome = await work()
        nursery.cancel_scope.cancel()
    draw()
    return outcome
