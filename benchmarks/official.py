"""The official client of the `mcp` package, 2.x: one `Client` per backend, on asyncio or on trio.

python official.py asyncio | trio
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial

import anyio
from mcp import Client
from worker import Measures, serve, stopwatch

UNTIMED = nullcontext()


class Opened:
    """A client in a task of its own, since it has to be closed in the task that opened it."""

    def __init__(self, url: str) -> None:
        self.client = Client(url, mode="legacy")
        self.listed = 0
        self.ready = anyio.Event()
        self.close = anyio.Event()

    async def run(self, slots: anyio.CapacityLimiter) -> None:
        # Not `async with slots`: the slot is for opening, the client stays.
        await slots.acquire_on_behalf_of(self)
        try:
            await self.client.__aenter__()
            await self.list_all()
        finally:
            slots.release_on_behalf_of(self)
        self.ready.set()
        await self.close.wait()
        await self.client.__aexit__(None, None, None)

    async def list_all(self) -> None:
        offered = self.client.server_capabilities
        if offered.tools:
            self.listed += len((await self.client.list_tools()).tools)
        if offered.resources:
            self.listed += len((await self.client.list_resources()).resources)
            self.listed += len((await self.client.list_resource_templates()).resource_templates)
        if offered.prompts:
            self.listed += len((await self.client.list_prompts()).prompts)


@asynccontextmanager
async def open_clients(
    urls: list[str], limit: int, timed: AbstractContextManager[None] = UNTIMED
) -> AsyncIterator[list[Opened]]:
    """Open and list them, `timed`; then yield them; then end their sessions side by side."""
    async with anyio.create_task_group() as tasks:
        with timed:
            slots = anyio.CapacityLimiter(limit)
            opened = [Opened(url) for url in urls]
            for one in opened:
                tasks.start_soon(one.run, slots)
            for one in opened:
                await one.ready.wait()
        yield opened
        for one in opened:
            one.close.set()


async def open_and_list(urls: list[str], spare: str, limit: int, era: str) -> Measures:
    assert era == "legacy", f"not asked to speak {era!r}"
    async with open_clients([spare], limit):
        pass
    measures: Measures = {}
    async with open_clients(urls, limit, timed=stopwatch(measures)) as opened:
        measures["listed"] = sum(one.listed for one in opened)
    return measures


async def call(urls: list[str], limit: int, callers: int, calls: int) -> Measures:
    async def caller(first: int, count: int) -> None:
        for index in range(first, first + count):
            client = opened[index % len(opened)].client
            result = await client.call_tool("tool_0", {"query": "anything", "limit": 3})
            assert not result.is_error

    async def all_callers(count: int) -> None:
        async with anyio.create_task_group() as tasks:
            for first in range(callers):
                tasks.start_soon(caller, first, count)

    measures: Measures = {}
    async with open_clients(urls, limit) as opened:
        await all_callers(len(urls))  # connections as warm as they get
        with stopwatch(measures, per=callers * calls):
            await all_callers(calls)
    return measures


if __name__ == "__main__":
    serve(partial(anyio.run, backend=sys.argv[1]), {"open": open_and_list, "call": call})
