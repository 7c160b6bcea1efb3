"""`mcp` 2.x: the handshake of the legacy era and the stateless requests of the modern one, on the same endpoint.

Usage: mcp2.py PORT sse|json
"""

import sys
from functools import partial

from mcp.server import NotificationOptions
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp_types import Completion, ElicitRequest, ElicitRequestFormParams, InputRequiredResult
from offer import offer_everything, offer_toggle, port_argument

server = MCPServer("interop-mcp2", instructions="Be kind to this server.")
offer_everything(server, Context, Image)
offer_toggle(server, Context, server.remove_tool, Context.notify_tools_changed)
# In the legacy era it declares no listChanged by itself, and has no public way to.
lowlevel = server._lowlevel_server
lowlevel.create_initialization_options = partial(  # type: ignore[method-assign]
    lowlevel.create_initialization_options, NotificationOptions(tools_changed=True)
)


def asked_for_a_name(context: Context) -> InputRequiredResult | str:
    """In the modern era: the name that the client gave, or the question for it."""
    if context.input_responses:
        return str(context.input_responses["who"].content["name"])  # type: ignore[union-attr,index]  # the form above
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    form = ElicitRequestFormParams(message="Your name?", requested_schema=schema)
    return InputRequiredResult(input_requests={"who": ElicitRequest(params=form)}, request_state="asked")


@server.tool()
async def greet(ctx: Context) -> str | InputRequiredResult:
    """Ask for a name, and say it."""
    return asked_for_a_name(ctx)


@server.prompt()
async def introduction(ctx: Context) -> str | InputRequiredResult:
    """Ask for a name, and say it."""
    return asked_for_a_name(ctx)


@server.resource("name://{of}")
async def name_of(of: str, ctx: Context) -> str | InputRequiredResult:
    """Ask for a name, and say it."""
    return asked_for_a_name(ctx)


@server.completion()
async def complete(_ref: object, argument: object, _context: object) -> Completion:
    begun = argument.value  # type: ignore[attr-defined]
    return Completion(values=[style for style in ("kind", "keen", "strict") if style.startswith(begun)], total=3)


server.run("streamable-http", port=port_argument(), json_response=sys.argv[2] == "json")
