"""The common part of the hand-written floors: MCP in the fewest lines that a careful program needs.

Ids are not checked and answers are not validated; there are no deadlines and no notices of cancellation. Each floor has
its own way of sending a message.
"""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import trio
from worker import Measures, serve, stopwatch
from workloads import ARGUMENTS, TOOL, Functions, Terms, Workloads

HEADERS = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
VERSION = "2025-11-25"
CLIENT: dict[str, Any] = {
    "protocolVersion": VERSION,
    "capabilities": {},
    "clientInfo": {"name": "floor", "version": "1"},
}
LISTS = {
    "tools": ("tools/list",),
    "resources": ("resources/list", "resources/templates/list"),
    "prompts": ("prompts/list",),
}


class Backend(ABC):
    """One backend and its connections."""

    def __init__(self) -> None:
        self.ids = itertools.count(1)
        self.capabilities: dict[str, Any] = {}
        self.lists: list[list[Any]] = []  # kept, as every contender keeps its lists

    @abstractmethod
    async def post(self, message: bytes) -> bytes:
        """Send a message with the session's headers, and return the JSON of the answer."""

    @abstractmethod
    async def close(self) -> None:
        """Send DELETE, close the connections."""

    async def request(self, method: str, params: dict[str, Any]) -> Any:
        message = {"jsonrpc": "2.0", "id": next(self.ids), "method": method, "params": params}
        return json.loads(await self.post(json.dumps(message).encode()))["result"]

    async def open(self, slots: trio.CapacityLimiter) -> None:
        async with slots:
            self.capabilities = (await self.request("initialize", CLIENT))["capabilities"]
            await self.post(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
            await self._list()

    async def list_again(self, slots: trio.CapacityLimiter) -> None:
        async with slots:
            self.lists = []
            await self._list()

    async def _list(self) -> None:
        for capability, methods in LISTS.items():
            if capability in self.capabilities:
                for method in methods:
                    (items,) = (await self.request(method, {})).values()
                    self.lists.append(items)


@attrs.frozen
class Session:
    backends: list[Backend]

    @property
    def listed(self) -> int:
        return sum(len(items) for backend in self.backends for items in backend.lists)

    async def call(self, index: int) -> int:
        backend = self.backends[index % len(self.backends)]
        result = await backend.request("tools/call", {"name": TOOL, "arguments": ARGUMENTS})
        assert not result["isError"]
        return len(result["content"][0]["text"])

    async def close(self) -> None:
        await side_by_side([backend.close for backend in self.backends])


@attrs.frozen
class Host:
    make_backend: Callable[[str, Terms], Backend]
    terms: Terms

    async def open(self, urls: list[str]) -> Session:
        backends = [self.make_backend(url, self.terms) for url in urls]
        slots = trio.CapacityLimiter(self.terms.opening)
        async with trio.open_nursery() as nursery:
            for backend in backends:
                nursery.start_soon(backend.open, slots)
        return Session(backends)


async def wake(host: Host, urls: list[str]) -> Measures:
    """The time to ask for all lists of backends whose sessions are open, as one that wakes does."""
    measures: Measures = {}
    session = await host.open(urls)
    slots = trio.CapacityLimiter(host.terms.opening)
    with stopwatch(measures):
        await side_by_side([partial(backend.list_again, slots) for backend in session.backends])
    measures["listed"] = session.listed
    await session.close()
    return measures


async def side_by_side(functions: Functions) -> None:
    async with trio.open_nursery() as nursery:
        for function in functions:
            nursery.start_soon(function)


def serve_floor(make_backend: Callable[[str, Terms], Backend]) -> None:
    @asynccontextmanager
    async def open_host(terms: Terms) -> AsyncIterator[Host]:
        assert terms.era == "legacy", f"the floors do not speak {terms.era!r}"
        yield Host(make_backend, terms)

    async def waking(urls: list[str], spare: str, terms: dict[str, Any]) -> Measures:
        async with open_host(Terms(**terms)) as host:
            return await wake(host, urls)

    serve(trio.run, Workloads(open_host, side_by_side).by_name() | {"wake": waking})
