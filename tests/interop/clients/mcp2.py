"""What the official client sees on a server: every list and the answers to some calls, printed as JSON.

Runs in an environment of its own. Usage: mcp2.py URL|COMMAND legacy|modern < CALLS, where COMMAND is an array of JSON.
"""

import json
import os
import sys
from typing import Any

import anyio
from mcp import Client, MCPError, StdioServerParameters
from mcp_types import ElicitResult, PromptReference


def as_received(model: Any) -> Any:
    """The fields that were on the wire, under their names there."""
    return model.model_dump(mode="json", by_alias=True, exclude_unset=True)


async def every_page(fetch: Any, items: str) -> list[Any]:
    page = await fetch()
    found = list(getattr(page, items))
    while page.next_cursor is not None:
        page = await fetch(cursor=page.next_cursor)
        found += getattr(page, items)
    return [as_received(item) for item in found]


async def answer(client: Client, call: dict[str, Any]) -> Any:
    match call["method"]:
        case "tools/call":
            progress: list[Any] = []

            async def note_progress(*report: Any) -> None:
                progress.append(list(report))

            result = await client.call_tool(call["name"], call["arguments"], progress_callback=note_progress)
            return as_received(result) | {"progress": progress}
        case "resources/read":
            return as_received(await client.read_resource(call["uri"]))
        case "prompts/get":
            return as_received(await client.get_prompt(call["name"], call["arguments"]))
        case "completion/complete":
            return as_received(await client.complete(PromptReference(name=call["name"]), call["argument"]))


def server_of(target: str) -> Any:
    if not target.startswith("["):
        return target
    command, *args = json.loads(target)
    return StdioServerParameters(command=command, args=args, env=dict(os.environ))


async def give_name(_context: Any, _params: Any) -> ElicitResult:
    """The user's answer to each form."""
    return ElicitResult(action="accept", content={"name": "Ada"})


async def look_at(target: str, mode: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    async with Client(server_of(target), mode=mode, elicitation_callback=give_name) as client:
        seen: dict[str, Any] = {"protocol_version": client.protocol_version}
        declared = client.server_capabilities
        if declared.tools:
            seen["tools"] = await every_page(client.list_tools, "tools")
        if declared.resources:
            seen["resources"] = await every_page(client.list_resources, "resources")
            seen["resource_templates"] = await every_page(client.list_resource_templates, "resource_templates")
        if declared.prompts:
            seen["prompts"] = await every_page(client.list_prompts, "prompts")
        seen["answers"] = []
        for call in calls:
            try:
                seen["answers"].append(await answer(client, call))
            except MCPError as error:
                seen["answers"].append({"error": {"code": error.code, "message": error.message}})
    return seen


if __name__ == "__main__":
    target, era = sys.argv[1:]
    # Pinned to the modern version it would not ask what the server offers; probing, it ends there too.
    mode = "legacy" if era == "legacy" else "auto"
    print(json.dumps(anyio.run(look_at, target, mode, json.load(sys.stdin))))
