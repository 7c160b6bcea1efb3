"""FastMCP, listing two capabilities a page.

Usage: fastmcp_pages.py PORT
"""

from fastmcp import Context, FastMCP
from fastmcp.utilities.types import Image
from offer import offer_everything, port_argument

server = FastMCP("interop-fastmcp", list_page_size=2)
offer_everything(server, Context, Image)
server.run("http", host="127.0.0.1", port=port_argument(), show_banner=False)
