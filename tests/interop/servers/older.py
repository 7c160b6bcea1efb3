"""A small server on an older SDK.

Usage: older.py PORT fastmcp|mcp streamable-http|sse
"""

import sys
from urllib.parse import urlsplit

import anyio

port, sdk, transport = int(sys.argv[1]), sys.argv[2], sys.argv[3]

if sdk == "fastmcp":
    from fastmcp import FastMCP

    server = FastMCP("interop-older")
else:
    from mcp.server.fastmcp import FastMCP

    server = FastMCP("interop-older", host="127.0.0.1", port=port)


@server.tool()
async def visit(url: str) -> str:
    """Fetch a page, once."""
    page = urlsplit(url)
    async with await anyio.connect_tcp(page.hostname or "", page.port or 80) as stream:
        await stream.send(f"GET {page.path} HTTP/1.0\r\n\r\n".encode())
        return (await stream.receive()).decode()


@server.tool()
def echo(message: str) -> str:
    """Say the message again."""
    return message


if sdk == "fastmcp":
    server.run(transport, host="127.0.0.1", port=port, show_banner=False)
else:
    server.run(transport)
