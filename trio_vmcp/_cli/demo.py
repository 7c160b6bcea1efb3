"""`trio-vmcp demo`: five MCP servers behind one session, from opening to drain. All of it stays on this machine."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import attrs
import httpx
import trio

from trio_vmcp._cli.texts import duration
from trio_vmcp._cli.view import SessionReport, View
from trio_vmcp._cli.watch import WatchedCall, open_watched_session, run_watched_calls, watch_tool
from trio_vmcp.errors import SessionClosed
from trio_vmcp.models import JSON, Backend, FailureReason, SessionState, ToolResult
from trio_vmcp.session import Session
from trio_vmcp.settings import FactorySettings
from trio_vmcp.testing import CallContext, Hang, ScriptedBackend, open_loopback

__all__ = ["build_servers", "run_demo"]

# s. The backend that hangs takes all of it; the others need 50 ms, and more only on a very busy machine. Without
# reconnecting, so that the missing backends are still missing in the last picture.
SETTINGS = FactorySettings(backend_init_timeout=1.5, reconnect_delay=math.inf, reconnect_max_delay=math.inf)
EXPECTED_FAILURES = {"hangs": FailureReason.TIMEOUT.value, "refuses": FailureReason.UNREACHABLE.value}
INTRODUCTION = (
    ("weather", "legacy era, answers in JSON"),
    ("notes", "legacy era, answers in event streams"),
    ("search", "modern era, answers in event streams"),
    ("hangs", "takes requests and never answers"),
    ("refuses", "takes no connections"),
)
CALLS: tuple[tuple[str, str, JSON], ...] = (  # label, tool, arguments
    ("weather_forecast Oslo", "weather_forecast", {"city": "Oslo"}),
    ("weather_forecast Lima", "weather_forecast", {"city": "Lima"}),
    ("notes_summarize 8 pages", "notes_summarize", {"pages": 8, "seconds": 0.8}),
    ("notes_summarize 5 pages", "notes_summarize", {"pages": 5, "seconds": 1.0}),
    ("search_crawl 10 pages", "search_crawl", {"pages": 10, "seconds": 1.2}),
    ("search_crawl 4 pages", "search_crawl", {"pages": 4, "seconds": 0.6}),
)
LATE = 0.1  # s between the beginning of the close and one more call, which is refused
LAST_TOOL, LAST_ARGUMENTS = "search_crawl", {"pages": 8, "seconds": 0.8}


async def run_demo(
    view: View,
    open_backends: Callable[[], AbstractAsyncContextManager[Sequence[Backend]]] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> JSON:
    """Run the demo in `view`, and return what happened as a JSON object; its `ok` says whether all went as expected.

    Args:
        open_backends: Opens other backends than `build_servers()` on loopback.
        transport: Reaches the backends of `open_backends`.
    """
    began_at = trio.current_time()
    view.show_heading("Five MCP servers start on this machine")
    for backend_id, about in INTRODUCTION:
        view.show_line(f"{backend_id}: {about}")
    view.show_heading("One session opens over all of them, in parallel")
    open_backends = open_backends or _open_on_loopback
    async with (
        open_backends() as backends,
        open_watched_session(backends, SETTINGS, view, transport=transport) as (session, report),
    ):
        view.show_session(report)

        calls = [watch_tool(tool, arguments, label) for label, tool, arguments in CALLS]
        view.show_heading(f"{len(calls)} calls at once")
        calls_took = await run_watched_calls(session, calls, view)
        view.show_line(
            f"{duration(calls_took)} together; one after another {duration(sum(call.elapsed for call in calls))}"
        )

        view.show_heading("The session closes while a call is in flight")
        drain = await _close_under_a_call(session, view)
    problems = _problems(report, calls, drain)
    total = trio.current_time() - began_at

    view.show_heading("What took how long")
    view.show_line(
        f"opening: {duration(report.opened_in)}, all of it for the backend that hangs (backend_init_timeout)"
    )
    view.show_line(f"calls: {duration(calls_took)}, as long as the longest of them")
    view.show_line(f"closing: {duration(drain.took)}, until the call in flight had its answer")
    view.show_line(f"altogether: {duration(total)}")
    for problem in problems:
        view.show_problem(f"not as expected: {problem}")
    return {
        "ok": not problems,
        "problems": problems,
        "session": report.document(),
        "calls": [
            {"tool": tool, "state": call.status.state, "elapsed": round(call.elapsed, 6)}
            for call, (_, tool, _) in zip(calls, CALLS, strict=True)
        ],
        "calls_took": round(calls_took, 6),
        "closing_took": round(drain.took, 6),
        "took": round(total, 6),
    }


# --- the backends


def build_servers() -> list[ScriptedBackend]:
    """The four servers; "refuses" is a port at which no server listens."""
    weather = ScriptedBackend(name="weather", era="legacy", answers="json")
    weather.add_tool("forecast", _forecast, description="The weather of the next days")
    weather.add_resource("weather://stations", "Oslo, Lima", description="Where it is measured")
    notes = ScriptedBackend(name="notes", era="legacy", answers="sse")
    notes.add_tool("summarize", _work, description="Reads every note and says how far it is")
    notes.add_resource_template("note:///{title}", description="One note")
    notes.add_prompt("proofread", "Proofread: {text}", description="Asks for corrections", arguments=[{"name": "text"}])
    search = ScriptedBackend(name="search", era="modern", answers="sse")
    search.add_tool("crawl", _work, description="Follows links and says how far it is")
    search.add_tool("find", description="Looks a word up")
    hangs = ScriptedBackend(name="hangs")
    hangs.fail("POST", Hang())
    return [weather, notes, search, hangs]


@asynccontextmanager
async def _open_on_loopback() -> AsyncIterator[Sequence[Backend]]:
    with trio.socket.socket() as refuses:  # bound and not listening: no other program can take the port
        await refuses.bind(("127.0.0.1", 0))
        async with AsyncExitStack() as stack:
            urls = {"refuses": f"http://127.0.0.1:{refuses.getsockname()[1]}/mcp"}
            for server in build_servers():
                urls[server.name] = await stack.enter_async_context(open_loopback(server))
            yield [Backend(id=backend_id, url=urls[backend_id]) for backend_id, _ in INTRODUCTION]


async def _forecast(arguments: JSON, context: CallContext) -> str:
    await trio.sleep(0.3)  # as long as a small query to a server far away takes
    return f"{arguments.get('city')}: sun, then rain"


async def _work(arguments: JSON, context: CallContext) -> str:
    pages, seconds = int(arguments["pages"]), float(arguments["seconds"])
    for page in range(pages):
        await context.progress(page, pages, "pages")
        await trio.sleep(seconds / pages)
    await context.progress(pages, pages, "pages")
    return f"{pages} pages read"


# --- the close


@attrs.define(eq=False)
class _Drain:
    """Measurements of a close with one call in flight. Times are seconds since `aclose` was called."""

    call: WatchedCall[ToolResult]
    in_flight: int = 0
    refusal: SessionClosed | None = None
    refused_after: float = 0.0
    answered_after: float = 0.0
    took: float = 0.0
    closed: bool = False


async def _close_under_a_call(session: Session, view: View) -> _Drain:
    call = watch_tool(LAST_TOOL, LAST_ARGUMENTS, LAST_TOOL)
    drain = _Drain(call)
    closing_at = trio.current_time()

    async def close_soon() -> None:
        nonlocal closing_at
        await call.at_work.wait()
        drain.in_flight, closing_at = session.in_flight, trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_late)
            await session.aclose()
        drain.took = trio.current_time() - closing_at
        drain.closed = session.state is SessionState.CLOSED

    async def call_late() -> None:
        await trio.sleep(LATE)
        try:
            await session.call_tool(LAST_TOOL, LAST_ARGUMENTS)
        except SessionClosed as error:
            drain.refusal, drain.refused_after = error, trio.current_time() - closing_at

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close_soon)
        await run_watched_calls(session, [call], view)
        drain.answered_after = trio.current_time() - closing_at
    view.show_line(f"after 0 ms: aclose() is called with {drain.in_flight} call in flight")
    view.show_line(f"after {duration(drain.refused_after)}: a new call is refused ({drain.refusal})")
    view.show_line(f"after {duration(drain.answered_after)}: the call in flight has its answer")
    view.show_line(f"after {duration(drain.took)}: the session is closed, and every backend session with it")
    return drain


# --- the verdict


def _problems(report: SessionReport, calls: Sequence[WatchedCall[ToolResult]], drain: _Drain) -> list[str]:
    statuses = [backend.status for backend in report.backends]
    missing = {status.id: status.reason for status in statuses if status.state == "failed"}
    unanswered = [f"{call.label}: {call.error}" for call in calls if call.status.state != "done"]
    claims = {
        f"{EXPECTED_FAILURES} are missing (it is {missing})": missing == EXPECTED_FAILURES,
        f"every call is answered (not so {'; '.join(unanswered)})": not unanswered,
        "one call was in flight when the session closed": drain.in_flight == 1,
        "a new call was refused": drain.refusal is not None,
        "the call in flight had its answer": drain.call.status.state == "done",
        "the session closed, and not before that": drain.closed and drain.took >= drain.answered_after,
    }
    return [f"it does not hold that {claim}" for claim, holds in claims.items() if not holds]
