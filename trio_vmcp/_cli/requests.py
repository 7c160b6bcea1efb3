"""What the command does with its servers: check them, or make one request in a session over them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import httpx

from trio_vmcp._cli.arguments import Plan
from trio_vmcp._cli.conditions import watch_backends
from trio_vmcp._cli.definitions import definition_text
from trio_vmcp._cli.sources import Found, InputError
from trio_vmcp._cli.texts import Result, name_knobs, result_text, with_knobs
from trio_vmcp._cli.view import SessionReport, View
from trio_vmcp._cli.watch import WatchedCall, open_watched_session, run_watched_calls
from trio_vmcp._routing.table import closest_names
from trio_vmcp.connector import OnProgress
from trio_vmcp.errors import CapabilityNotFound, ToolNotFound, VmcpError
from trio_vmcp.models import JSON, Backend, CompletionResult, Prompt, Tool, ToolResult
from trio_vmcp.routing import Bare
from trio_vmcp.session import Session
from trio_vmcp.settings import FactorySettings

__all__ = ["FAILED", "OK", "CommandOutcome", "run_plan"]

OK, FAILED = 0, 1


@attrs.frozen
class CommandOutcome:
    """The exit status of a command, and the document that --json prints."""

    status: int
    document: JSON


async def run_plan(
    plan: Plan, found: Found, view: View, *, transport: httpx.AsyncBaseTransport | None = None
) -> CommandOutcome:
    """Run one command, after its servers and arguments were read.

    Args:
        transport: Replaces the built-in HTTP transport.

    Raises:
        InputError: An argument does not fit the schema of its tool.
    """
    try:
        if plan.command == "demo":
            # Imported here: its servers are a quarter of the modules, which other commands would wait for.
            from trio_vmcp._cli.demo import run_demo

            document = await run_demo(view)
            return CommandOutcome(OK if document["ok"] else FAILED, document)
        if plan.watch:
            await watch_backends(_in_a_hurry(found.backends, plan), _watch_settings(plan), view, transport=transport)
        run = _check if plan.command == "check" else _request
        outcome = await run(plan, found, view, transport)
        unused = {"skipped": [each.why for each in found.skipped]} if found.skipped else {}
        return attrs.evolve(outcome, document=outcome.document | unused)
    finally:
        view.settle_drawing()  # when cancelled, too: else the terminal's cursor stays hidden


async def _check(plan: Plan, found: Found, view: View, transport: httpx.AsyncBaseTransport | None) -> CommandOutcome:
    backends = _in_a_hurry(_possible_owners(plan, found.backends), plan)
    async with open_watched_session(backends, _settings(plan), view, transport=transport) as (session, seen):
        if plan.name:
            return _explain(plan.name, session, seen, view)
        report = attrs.evolve(with_knobs(seen), skipped=found.skipped)
        view.show_session(report)
    return CommandOutcome(OK if report.complete else FAILED, report.document())


def _explain(name: str, session: Session, report: SessionReport, view: View) -> CommandOutcome:
    """Show one tool or prompt; a tool, where both have the name."""
    items: dict[str, Tool | Prompt] = {prompt.name: prompt for prompt in session.prompts}
    items |= {tool.name: tool for tool in session.tools}
    item = items.get(name)
    if item is None:
        return _failed(ToolNotFound(name, closest_names(name, items)), {}, report, view)
    view.show_text(definition_text(item, view.width))
    kind = "tool" if isinstance(item, Tool) else "prompt"
    return CommandOutcome(OK, {"ok": True, kind: name, "backend_id": item.backend_id, "definition": item.raw})


async def _request(plan: Plan, found: Found, view: View, transport: httpx.AsyncBaseTransport | None) -> CommandOutcome:
    backends = _in_a_hurry(_possible_owners(plan, found.backends), plan)
    async with open_watched_session(backends, _settings(plan), view, transport=transport) as (session, report):
        call = _watched(plan, session)
        await run_watched_calls(session, [call], view)
    document: JSON = {
        "ok": call.status.state == "done",
        _NOUNS[plan.command]: plan.name,
        "elapsed": round(call.elapsed, 6),
    }
    if call.result is not None:
        _show(call.result, plan, view)
        document |= {"backend_id": call.result.backend_id, "result": call.result.raw}
        return CommandOutcome(OK if document["ok"] else FAILED, document)
    assert call.error is not None
    return _failed(call.error, document, report, view)


def _failed(error: VmcpError, document: JSON, report: SessionReport, view: View) -> CommandOutcome:
    message = name_knobs(str(error))
    if isinstance(error, CapabilityNotFound):
        message += _ways_out(error, report)
    view.show_problem(message)
    failure = {"ok": False, "error": {"type": type(error).__name__, "message": message}}
    return CommandOutcome(FAILED, document | failure)


_NOUNS = {"call": "tool", "read": "uri", "prompt": "prompt", "complete": "name"}


def _show(result: Result, plan: Plan, view: View) -> None:
    if not isinstance(result, CompletionResult) or result.values:
        view.show_text(result_text(result))
    if isinstance(result, ToolResult) and result.is_error:
        view.show_problem(f"{plan.name} reported an error")
    if isinstance(result, CompletionResult) and result.has_more:
        view.show_problem(f"these are {len(result.values)} of {result.total or 'more'} values")


def _ways_out(error: CapabilityNotFound, report: SessionReport) -> str:
    """The name may belong to a backend that is missing; else, without a name that is close, to none."""
    missing = [backend.status for backend in with_knobs(report).backends if backend.status.state == "failed"]
    if missing:
        return "; missing: " + "; ".join(f"{status.id!r} {status.detail}" for status in missing)
    return "" if error.closest else "; `trio-vmcp check` lists them"


def _arguments(plan: Plan, session: Session) -> JSON:
    """The arguments as JSON, by what the session says about the tool.

    Raises:
        InputError: They do not fit.
    """
    tool = next((tool for tool in session.tools if plan.command == "call" and tool.name == plan.name), None)
    try:
        arguments = plan.given.fill_in(tool.input_schema if tool else {})
    except ValueError as error:
        raise InputError("UsageError", str(error)) from None
    if plan.command == "prompt":
        for key, value in arguments.items():
            if not isinstance(value, str):
                raise InputError("UsageError", f"argument {key}: is no string, as prompts take them")
    return arguments


def _watched(plan: Plan, session: Session) -> WatchedCall[Result]:
    name, timeout, arguments = plan.name, plan.timeout, _arguments(plan, session)

    async def ask(session: Session, progress: OnProgress) -> Result:
        match plan.command:
            case "call":
                return await session.call_tool(name, arguments, timeout=timeout, on_progress=progress)
            case "read":
                return await session.read_resource(name, timeout=timeout, on_progress=progress)
            case "prompt":
                return await session.get_prompt(name, arguments, timeout=timeout, on_progress=progress)
            case _:
                ((key, value),) = arguments.items()
                return await session.complete(_reference(name, session), {"name": key, "value": value}, timeout=timeout)

    return WatchedCall(name, ask)


def _reference(name: str, session: Session) -> JSON:
    """What `complete` is about: a prompt, or a resource template (MCP 2025-11-25, server/utilities/completion)."""
    prompts = {prompt.name for prompt in session.prompts}
    if name not in prompts and ("{" in name or "://" in name):
        return {"type": "ref/resource", "uri": name}
    return {"type": "ref/prompt", "name": name}


# --- servers and settings


def _possible_owners(plan: Plan, backends: Sequence[Backend]) -> Sequence[Backend]:
    """Names begin with their backend's id (Prefix), so only that backend is connected; if no id fits, all are."""
    if plan.command == "read" or not plan.servers.file:
        return backends
    return [backend for backend in backends if plan.name.startswith(f"{backend.id}_")] or backends


def _in_a_hurry(backends: Sequence[Backend], plan: Plan) -> Sequence[Backend]:
    """With --timeout, what an entry of the file says about its time to start does not count."""
    return backends if plan.timeout is None else [attrs.evolve(backend, init_timeout=None) for backend in backends]


def _settings(plan: Plan) -> FactorySettings:
    """No limit for the whole opening: a check ends when every backend has connected or failed.

    No reconnecting: a command reports the first failure of a backend and ends.
    """
    once = FactorySettings(session_init_timeout=math.inf, reconnect_delay=math.inf, reconnect_max_delay=math.inf)
    return _for_plan(once, plan)


def _watch_settings(plan: Plan) -> FactorySettings:
    """What is to be seen is seen from the start, and for as long as the command runs, without any call."""
    return _for_plan(FactorySettings(session_init_timeout=0.0, idle_timeout=math.inf), plan)


def _for_plan(settings: FactorySettings, plan: Plan) -> FactorySettings:
    """With the timeout. The only server of a plan without a file has no name of its own, so its tools keep theirs."""
    if plan.timeout is not None:
        settings = attrs.evolve(settings, backend_init_timeout=plan.timeout)
    return settings if plan.servers.file else attrs.evolve(settings, conflict_resolution=Bare())
