"""FastMCP in front of backends, as a process: `python gateway_fastmcp.py proxy | mounts URLS`, as JSON.

`proxy`: what FastMCP makes of a configuration of many servers. `mounts`: one server, on which a proxy of a connected
client is mounted for each backend, so that no call connects anew.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import warnings
from contextlib import AsyncExitStack

os.environ["FASTMCP_LOG_LEVEL"] = "ERROR"  # read at import
warnings.simplefilter("ignore")  # FastMCP calls functions that it deprecates

from fastmcp import Client, FastMCP  # noqa: E402  # it reads what is set above
from fastmcp.server import create_proxy  # noqa: E402  # likewise


async def main(kind: str, urls: list[str]) -> None:
    async with AsyncExitStack() as stack:
        if kind == "proxy":
            servers = {f"b{at}": {"url": url, "transport": "http"} for at, url in enumerate(urls)}
            server: FastMCP = create_proxy({"mcpServers": servers}, name="gateway")
        else:
            server = FastMCP("gateway")
            for at, url in enumerate(urls):
                client = await stack.enter_async_context(Client(url, mode="legacy"))
                server.mount(create_proxy(client), namespace=f"b{at}")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            print(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
            threading.Thread(target=_end_with_stdin, daemon=True).start()
            await server.run_http_async(
                show_banner=False, path="/mcp", log_level="error", json_response=True, sockets=[listener]
            )


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)  # uvicorn reports an end by any other way as an error


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
