"""`mcp` 2.x: the handshake of the legacy era and the stateless requests of the modern one, on the same endpoint.

Usage: mcp2.py PORT sse|json
"""

import sys

from mcp.server.mcpserver import Context, Image, MCPServer
from mcp_types import Completion
from offer import offer_everything, port_argument

server = MCPServer("interop-mcp2", instructions="Be kind to this server.")
offer_everything(server, Context, Image)


@server.completion()
async def complete(_ref: object, argument: object, _context: object) -> Completion:
    begun = argument.value  # type: ignore[attr-defined]
    return Completion(values=[style for style in ("kind", "keen", "strict") if style.startswith(begun)], total=3)


server.run("streamable-http", port=port_argument(), json_response=sys.argv[2] == "json")
