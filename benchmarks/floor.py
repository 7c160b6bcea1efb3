"""The hand-written httpx loop: what a careful program without a library would do, and nothing else.

One `AsyncClient` per backend, one TLS context for all, no environment, the standard json. No ids are checked, nothing
is validated, no deadline and no cancellation is kept track of.
"""

from __future__ import annotations

import itertools
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

import httpx
import trio
from worker import Measures, serve, stopwatch

TLS = ssl.create_default_context()  # 20 ms and 0.8 MiB: once
UNTIMED = nullcontext()
HEADERS = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
LIMITS = httpx.Limits(
    max_connections=100, max_keepalive_connections=100
)  # as the library's max_connections_per_backend
LISTS = {
    "tools": ("tools/list",),
    "resources": ("resources/list", "resources/templates/list"),
    "prompts": ("prompts/list",),
}
CLIENT: dict[str, Any] = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "floor", "version": "1"},
}


class Backend:
    """One backend and its connections."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.ids = itertools.count(1)
        self.client = httpx.AsyncClient(verify=TLS, trust_env=False, timeout=None, limits=LIMITS, headers=HEADERS)
        self.listed = 0

    async def post(self, message: dict[str, Any]) -> httpx.Response:
        return await self.client.post(self.url, content=json.dumps(message))

    async def request(self, method: str, params: dict[str, Any]) -> Any:
        response = await self.post({"jsonrpc": "2.0", "id": next(self.ids), "method": method, "params": params})
        body = response.content
        if response.headers["content-type"] == "text/event-stream":
            body = body[body.index(b"data: ") + 6 :]
        if method == "initialize":
            self.client.headers["mcp-session-id"] = response.headers["mcp-session-id"]
            self.client.headers["mcp-protocol-version"] = CLIENT["protocolVersion"]
        return json.loads(body)["result"]

    async def open(self, slots: trio.CapacityLimiter) -> None:
        async with slots:
            offered = await self.request("initialize", CLIENT)
            await self.post({"jsonrpc": "2.0", "method": "notifications/initialized"})
            for capability, methods in LISTS.items():
                if capability in offered["capabilities"]:
                    for method in methods:
                        (items,) = (await self.request(method, {})).values()
                        self.listed += len(items)

    async def close(self) -> None:
        await self.client.delete(self.url)
        await self.client.aclose()


@asynccontextmanager
async def open_backends(
    urls: list[str], limit: int, timed: AbstractContextManager[None] = UNTIMED
) -> AsyncIterator[list[Backend]]:
    """Open and list them, `timed`; then yield them; then end their sessions side by side."""
    with timed:
        backends = [Backend(url) for url in urls]
        slots = trio.CapacityLimiter(limit)
        async with trio.open_nursery() as nursery:
            for backend in backends:
                nursery.start_soon(backend.open, slots)
    yield backends
    async with trio.open_nursery() as nursery:
        for backend in backends:
            nursery.start_soon(backend.close)


async def open_and_list(urls: list[str], spare: str, limit: int, era: str) -> Measures:
    assert era == "legacy", f"the loop does not speak {era!r}"
    async with open_backends([spare], limit):
        pass
    measures: Measures = {}
    async with open_backends(urls, limit, timed=stopwatch(measures)) as backends:
        measures["listed"] = sum(backend.listed for backend in backends)
    return measures


async def call(urls: list[str], limit: int, callers: int, calls: int) -> Measures:
    async def caller(first: int, count: int) -> None:
        for index in range(first, first + count):
            result = await backends[index % len(backends)].request(
                "tools/call", {"name": "tool_0", "arguments": {"query": "anything", "limit": 3}}
            )
            assert not result["isError"]

    async def all_callers(count: int) -> None:
        async with trio.open_nursery() as nursery:
            for first in range(callers):
                nursery.start_soon(caller, first, count)

    measures: Measures = {}
    async with open_backends(urls, limit) as backends:
        await all_callers(len(urls))  # connections as warm as they get
        with stopwatch(measures, per=callers * calls):
            await all_callers(calls)
    return measures


if __name__ == "__main__":
    serve(trio.run, {"open": open_and_list, "call": call})
