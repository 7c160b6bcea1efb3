"""The official client of the `mcp` package, 2.x: one `Client` per backend, on asyncio or on trio.

python official.py asyncio | trio
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import anyio.abc
from mcp import Client
from worker import serve
from workloads import ARGUMENTS, TOOL, Functions, Terms, Workloads


class Backend:
    """A client in a task of its own: anyio's cancel scopes must be closed in the task that opened them."""

    def __init__(self, url: str) -> None:
        self.client = Client(url, mode="legacy")
        self.lists: list[list[Any]] = []
        self.ready = anyio.Event()
        self.close = anyio.Event()
        self.closed = anyio.Event()

    async def run(self, slots: anyio.CapacityLimiter) -> None:
        # No `async with slots`: the slot is released after opening, while the client lives on.
        await slots.acquire_on_behalf_of(self)
        try:
            await self.client.__aenter__()
            await self.list_all()
        finally:
            slots.release_on_behalf_of(self)
        self.ready.set()
        try:
            await self.close.wait()
        finally:
            await self.client.__aexit__(None, None, None)  # noqa: ASYNC102  # a hang ends with the answer's timeout
            self.closed.set()

    async def list_all(self) -> None:
        offered = self.client.server_capabilities
        if offered.tools:
            self.lists.append((await self.client.list_tools()).tools)
        if offered.resources:
            self.lists.append((await self.client.list_resources()).resources)
            self.lists.append((await self.client.list_resource_templates()).resource_templates)
        if offered.prompts:
            self.lists.append((await self.client.list_prompts()).prompts)


@dataclass(frozen=True)
class Session:
    backends: list[Backend]

    @property
    def listed(self) -> int:
        return sum(len(items) for backend in self.backends for items in backend.lists)

    async def call(self, index: int) -> int:
        result = await self.backends[index % len(self.backends)].client.call_tool(TOOL, ARGUMENTS)
        assert not result.is_error
        return len(result.content[0].text)

    async def close(self) -> None:
        for backend in self.backends:
            backend.close.set()
        for backend in self.backends:
            await backend.closed.wait()


@dataclass(frozen=True)
class Host:
    tasks: anyio.abc.TaskGroup
    terms: Terms

    async def open(self, urls: list[str]) -> Session:
        slots = anyio.CapacityLimiter(self.terms.opening)
        backends = [Backend(url) for url in urls]
        for backend in backends:
            self.tasks.start_soon(backend.run, slots)
        for backend in backends:
            await backend.ready.wait()
        return Session(backends)


@asynccontextmanager
async def open_host(terms: Terms) -> AsyncIterator[Host]:
    assert terms.era == "legacy", f"not asked to speak {terms.era!r}"
    async with anyio.create_task_group() as tasks:
        yield Host(tasks, terms)


async def side_by_side(functions: Functions) -> None:
    async with anyio.create_task_group() as tasks:
        for function in functions:
            tasks.start_soon(function)


if __name__ == "__main__":
    serve(partial(anyio.run, backend=sys.argv[1]), Workloads(open_host, side_by_side).by_name())
