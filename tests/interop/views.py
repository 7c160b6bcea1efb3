"""What two clients see of one server, in the same form: the official one and ours."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence

import trio
from interop.fleet import HERE, Era, homes

from trio_vmcp import (
    JSON,
    Backend,
    BackendRejected,
    Bare,
    ClientHandlers,
    FactorySettings,
    ServerRequest,
    Session,
    open_session_factory,
)

PATIENCE = 60.0  # s, for a client to look at everything; real servers on a busy machine


async def official_view(url: str, era: Era, calls: Sequence[JSON]) -> JSON:
    command = [str(homes() / "mcp2" / "bin" / "python"), str(HERE / "clients" / "mcp2.py"), url, era]
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            command, stdin=json.dumps(list(calls)).encode(), capture_stdout=True, stderr=subprocess.STDOUT, check=False
        )
    assert 0 == done.returncode, done.stdout.decode()[-4000:]
    view: JSON = json.loads(done.stdout)
    return view


async def give_name(_request: ServerRequest) -> JSON:
    """As the official client's: some servers offer tools only to clients that declare this."""
    return {"action": "accept", "content": {"name": "Ada"}}


async def our_view(url: str, era: Era, calls: Sequence[JSON]) -> JSON:
    settings = FactorySettings(conflict_resolution=Bare())
    with trio.fail_after(PATIENCE):
        async with (
            open_session_factory(settings=settings, handlers=ClientHandlers(elicitation=give_name)) as factory,
            factory.open_session([Backend(id="server", url=url, era=era)]) as session,
        ):
            assert () == session.failures
            (record,) = session.metadata.backends
            view: JSON = {"protocol_version": record.protocol_version}
            declared = record.server_capabilities
            if "tools" in declared:
                view["tools"] = [tool.raw for tool in session.tools]
            if "resources" in declared:
                view["resources"] = [resource.raw for resource in session.resources]
                view["resource_templates"] = [template.raw for template in session.resource_templates]
            if "prompts" in declared:
                view["prompts"] = [prompt.raw for prompt in session.prompts]
            view["answers"] = [await our_answer(session, call) for call in calls]
            return view


async def our_answer(session: Session, call: JSON) -> JSON:
    try:
        match call["method"]:
            case "tools/call":
                progress: list[list[float | str | None]] = []

                async def note_progress(*report: float | str | None) -> None:
                    progress.append(list(report))

                tool = await session.call_tool(call["name"], call["arguments"], on_progress=note_progress)
                return tool.raw | {"progress": progress}
            case "resources/read":
                return (await session.read_resource(call["uri"])).raw
            case "prompts/get":
                return (await session.get_prompt(call["name"], call["arguments"])).raw
            case "completion/complete":
                ref = {"type": "ref/prompt", "name": call["name"]}
                return (await session.complete(ref, call["argument"])).raw
            case other:
                raise ValueError(f"no such call: {other!r}")
    except BackendRejected as error:
        return {"error": {"code": error.code, "message": error.message}}
