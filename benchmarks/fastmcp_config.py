"""FastMCP's client over a configuration of many servers, which runs a proxy for them in the same process."""

from __future__ import annotations

import os
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

os.environ["FASTMCP_LOG_LEVEL"] = "ERROR"  # read at import
warnings.simplefilter("ignore")  # FastMCP calls functions that it deprecates

from fastmcp import Client  # noqa: E402
from worker import serve  # noqa: E402
from workloads import ARGUMENTS, TOOL, Functions, Terms, Workloads  # noqa: E402


@dataclass(frozen=True)
class Session:
    client: Client
    tools: list[str]
    lists: list[list[object]]

    @property
    def listed(self) -> int:
        return sum(map(len, self.lists))

    async def call(self, index: int) -> int:
        result = await self.client.call_tool(self.tools[index % len(self.tools)], ARGUMENTS)
        return len(result.content[0].text)

    async def close(self) -> None:
        await self.client.__aexit__(None, None, None)


class Host:
    async def open(self, urls: list[str]) -> Session:
        """Backends open one after the other; FastMCP has no setting for it."""
        servers = {f"b{at}": {"url": url, "transport": "http"} for at, url in enumerate(urls)}
        client = Client({"mcpServers": servers}, mode="legacy")
        await client.__aenter__()
        lists = [
            await client.list_tools(),
            await client.list_resources(),
            await client.list_resource_templates(),
            await client.list_prompts(),
        ]
        alone = len(urls) == 1  # FastMCP then uses no proxy and no prefix
        return Session(client, [TOOL if alone else f"b{at}_{TOOL}" for at in range(len(urls))], lists)


@asynccontextmanager
async def open_host(terms: Terms) -> AsyncIterator[Host]:
    assert terms.era == "legacy", f"not asked to speak {terms.era!r}"
    yield Host()


async def side_by_side(functions: Functions) -> None:
    async with anyio.create_task_group() as tasks:
        for function in functions:
            tasks.start_soon(function)


if __name__ == "__main__":
    serve(anyio.run, Workloads(open_host, side_by_side).by_name())
