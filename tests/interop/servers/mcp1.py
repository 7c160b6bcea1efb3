"""`mcp` 1.x: the legacy era only.

Usage: mcp1.py PORT sse|json
"""

import sys

from mcp.server.fastmcp import Context, FastMCP, Image
from mcp.types import Completion
from offer import offer_everything, port_argument

server = FastMCP("interop-mcp1", port=port_argument(), json_response=sys.argv[2] == "json")
offer_everything(server, Context, Image)


@server.completion()
async def complete(_ref: object, argument: object, _context: object) -> Completion:
    begun = argument.value  # type: ignore[attr-defined]
    return Completion(values=[style for style in ("kind", "keen", "strict") if style.startswith(begun)], total=3)


server.run("streamable-http")
