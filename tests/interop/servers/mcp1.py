"""`mcp` 1.x: the legacy era only.

Usage: mcp1.py PORT sse|json
"""

import sys
from functools import partial

from mcp.server import NotificationOptions
from mcp.server.fastmcp import Context, FastMCP, Image
from mcp.types import Completion
from offer import offer_everything, offer_toggle, port_argument

server = FastMCP("interop-mcp1", port=port_argument(), json_response=sys.argv[2] == "json")
offer_everything(server, Context, Image)


async def tell_nobody_else(_ctx: object) -> None:
    """Sessions are all there is."""


offer_toggle(server, Context, server.remove_tool, tell_nobody_else)
# It declares no listChanged by itself, and has no public way to.
lowlevel = server._mcp_server
lowlevel.create_initialization_options = partial(  # type: ignore[method-assign]
    lowlevel.create_initialization_options, NotificationOptions(tools_changed=True)
)


@server.completion()
async def complete(_ref: object, argument: object, _context: object) -> Completion:
    begun = argument.value  # type: ignore[attr-defined]
    return Completion(values=[style for style in ("kind", "keen", "strict") if style.startswith(begun)], total=3)


server.run("streamable-http")
