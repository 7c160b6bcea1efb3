"""What FastMCP's client sees on a server.

Usage: fastmcp_client.py URL|COMMAND < CALLS, where COMMAND is an array of JSON.
"""

import json
import os
import sys
from typing import Any

import anyio
from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from mcp import MCPError
from mcp_types import PromptReference


def as_received(model: Any) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_unset=True)


async def answer(client: Client[Any], call: dict[str, Any]) -> Any:
    match call["method"]:
        case "tools/call":
            progress: list[Any] = []

            async def note_progress(*report: Any) -> None:
                progress.append(list(report))

            result = await client.call_tool_mcp(call["name"], call["arguments"], progress_handler=note_progress)
            return as_received(result) | {"progress": progress}
        case "resources/read":
            return as_received(await client.read_resource_mcp(call["uri"]))
        case "prompts/get":
            return as_received(await client.get_prompt_mcp(call["name"], call["arguments"]))
        case "completion/complete":
            ref = PromptReference(name=call["name"])
            return as_received(await client.complete_mcp(ref, call["argument"]))


def server_of(target: str) -> Any:
    if not target.startswith("["):
        return target
    command, *args = json.loads(target)
    return StdioTransport(command=command, args=args, env=dict(os.environ))


async def look_at(target: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    async with Client(server_of(target)) as client:
        seen: dict[str, Any] = {
            "tools": [as_received(each) for each in await client.list_tools()],
            "resources": [as_received(each) for each in await client.list_resources()],
            "resource_templates": [as_received(each) for each in await client.list_resource_templates()],
            "prompts": [as_received(each) for each in await client.list_prompts()],
            "answers": [],
        }
        for call in calls:
            try:
                seen["answers"].append(await answer(client, call))
            except MCPError as error:
                seen["answers"].append({"error": {"code": error.code, "message": error.message}})
    return seen


if __name__ == "__main__":
    print(json.dumps(anyio.run(look_at, sys.argv[1], json.load(sys.stdin))))
