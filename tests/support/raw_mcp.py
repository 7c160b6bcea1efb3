"""A minimal MCP client over httpx, for the tests of `trio_vmcp.testing`."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import httpx

from trio_vmcp.testing import MODERN_VERSION, MemoryNetwork, ScriptedBackend, open_memory_network

ACCEPT = {"accept": "application/json, text/event-stream"}
NAMED_BY = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}


def messages(response: httpx.Response) -> list[Any]:
    """Every JSON-RPC message of an answer, JSON or SSE."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        return [json.loads(response.content)]
    data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in data if line]


@attrs.define(eq=False)
class RawClient:
    """One client of one backend."""

    http: httpx.AsyncClient
    url: str
    modern: bool
    headers: dict[str, str] = attrs.field(factory=lambda: dict(ACCEPT))
    capabilities: dict[str, Any] = attrs.field(factory=dict)  # declared by a modern client
    ids: Iterator[int] = attrs.field(factory=lambda: itertools.count(1))

    def build(self, method: str, params: dict[str, Any] | None = None, *, token: Any = None) -> httpx.Request:
        params, headers = dict(params or {}), dict(self.headers)
        meta: dict[str, Any] = {} if token is None else {"progressToken": token}
        if self.modern:
            meta["io.modelcontextprotocol/protocolVersion"] = MODERN_VERSION
            meta["io.modelcontextprotocol/clientCapabilities"] = self.capabilities
            headers |= {"mcp-protocol-version": MODERN_VERSION, "mcp-method": method}
            if method in NAMED_BY:
                headers["mcp-name"] = params[NAMED_BY[method]]
        if meta:
            params["_meta"] = meta
        message = {"jsonrpc": "2.0", "id": next(self.ids), "method": method, "params": params}
        return self.http.build_request("POST", self.url, headers=headers, json=message)

    async def request(self, method: str, params: dict[str, Any] | None = None, *, token: Any = None) -> httpx.Response:
        return await self.http.send(self.build(method, params, token=token))

    async def result(self, method: str, params: dict[str, Any] | None = None) -> Any:
        return messages(await self.request(method, params))[-1]["result"]

    async def error(self, method: str, params: dict[str, Any] | None = None) -> tuple[int, int]:
        """The HTTP status and the JSON-RPC code."""
        response = await self.request(method, params)
        return response.status_code, messages(response)[-1]["error"]["code"]

    async def post(self, **message: Any) -> httpx.Response:
        """Send a notification or a response."""
        return await self.http.post(self.url, headers=self.headers, json={"jsonrpc": "2.0", **message})

    async def shake_hands(self) -> Any:
        """Both steps of the legacy handshake, or `server/discover`."""
        if self.modern:
            return await self.result("server/discover")
        response = await self.request("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}})
        if "mcp-session-id" in response.headers:
            self.headers["mcp-session-id"] = response.headers["mcp-session-id"]
        assert 202 == (await self.post(method="notifications/initialized")).status_code
        return messages(response)[-1]["result"]


@asynccontextmanager
async def open_raw_client(backend: ScriptedBackend, *, modern: bool | None = None) -> AsyncIterator[RawClient]:
    """A client that has shaken hands; at the end no connection may be open, and the backend must have no errors."""
    async with open_memory_network() as network:
        async with open_client_on(network, backend) as client:
            client.modern = backend.era == "modern" if modern is None else modern
            await client.shake_hands()
            yield client
        assert 0 == network.open_connections
    assert [] == backend.errors
    assert 0 == backend.open_connections
    assert 0 == backend.in_flight


@asynccontextmanager
async def open_client_on(network: MemoryNetwork, backend: ScriptedBackend) -> AsyncIterator[RawClient]:
    """A client on a network that the test opened."""
    url = network.attach("backend.test", backend)
    async with httpx.AsyncClient(transport=network.transport(), timeout=None) as http:
        yield RawClient(http, url, backend.era == "modern")
