"""What several tests ask of a server, or read from its results."""

from __future__ import annotations

import httpx

from trio_vmcp import ToolResult

__all__ = ["only_text", "ping"]


def only_text(result: ToolResult) -> str:
    """The text of a result that has one block of content."""
    (content,) = result.content
    text: str = content["text"]
    return text


async def ping(url: str, session_id: str) -> int:
    """The HTTP status of a ping in that session, from outside of any client."""
    headers = {
        "Accept": "application/json, text/event-stream",
        "Mcp-Session-Id": session_id,
        "MCP-Protocol-Version": "2025-11-25",
    }
    async with httpx.AsyncClient() as client:
        response = await client.post(url, headers=headers, json={"jsonrpc": "2.0", "id": "ping", "method": "ping"})
        return response.status_code
