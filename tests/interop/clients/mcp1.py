"""What the official client 1.x sees on a server.

Usage: mcp1.py URL|COMMAND < CALLS, where COMMAND is an array of JSON.
"""

import json
import os
import sys
from typing import Any

import anyio
from mcp import ClientSession, McpError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamablehttp_client
from mcp.types import PromptReference


def as_received(model: Any) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_unset=True)


async def answer(session: ClientSession, call: dict[str, Any]) -> Any:
    match call["method"]:
        case "tools/call":
            progress: list[Any] = []

            async def note_progress(*report: Any) -> None:
                progress.append(list(report))

            result = await session.call_tool(call["name"], call["arguments"], progress_callback=note_progress)
            return as_received(result) | {"progress": progress}
        case "resources/read":
            return as_received(await session.read_resource(call["uri"]))
        case "prompts/get":
            return as_received(await session.get_prompt(call["name"], call["arguments"]))
        case "completion/complete":
            ref = PromptReference(type="ref/prompt", name=call["name"])
            return as_received(await session.complete(ref, call["argument"]))


def streams_of(target: str) -> Any:
    if not target.startswith("["):
        return streamablehttp_client(target)
    command, *args = json.loads(target)
    return stdio_client(StdioServerParameters(command=command, args=args, env=dict(os.environ)))


async def look_at(target: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    async with streams_of(target) as (read, write, *_), ClientSession(read, write) as session:
        await session.initialize()
        seen: dict[str, Any] = {
            "tools": [as_received(each) for each in (await session.list_tools()).tools],
            "resources": [as_received(each) for each in (await session.list_resources()).resources],
            "resource_templates": [
                as_received(each) for each in (await session.list_resource_templates()).resourceTemplates
            ],
            "prompts": [as_received(each) for each in (await session.list_prompts()).prompts],
            "answers": [],
        }
        for call in calls:
            try:
                seen["answers"].append(await answer(session, call))
            except McpError as error:
                seen["answers"].append({"error": {"code": error.error.code, "message": error.error.message}})
    return seen


if __name__ == "__main__":
    print(json.dumps(anyio.run(look_at, sys.argv[1], json.load(sys.stdin))))
