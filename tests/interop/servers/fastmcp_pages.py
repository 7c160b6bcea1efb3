"""FastMCP, listing two capabilities a page.

Usage: fastmcp_pages.py PORT
"""

from fastmcp import Context, FastMCP
from fastmcp.utilities.types import Image
from mcp_types import ToolListChangedNotification
from offer import offer_everything, offer_toggle, port_argument

server = FastMCP("interop-fastmcp", list_page_size=2)
offer_everything(server, Context, Image)


async def tell_caller(ctx: Context) -> None:
    """On the answer's own stream: it offers no subscriptions in the modern era."""
    await ctx.send_notification(ToolListChangedNotification())


offer_toggle(server, Context, server.local_provider.remove_tool, tell_caller)
server.run("http", host="127.0.0.1", port=port_argument(), show_banner=False)
