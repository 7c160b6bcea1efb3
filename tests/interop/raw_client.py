"""Requests of either era over HTTP, without a client: the answers as they were written."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import attrs
import httpx
import trio
from interop.fleet import Era
from support.verbatim import Written, as_written, member

from trio_vmcp import JSON

__all__ = ["RawClient", "open_raw_client"]

VERSIONS: dict[Era, str] = {"legacy": "2025-11-25", "modern": "2026-07-28"}
META = "io.modelcontextprotocol/"
NAMED_BY = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
LIMIT = 30.0  # s


@attrs.define(eq=False)
class RawClient:
    """One client.

    Attributes:
        headers: Of each request.
    """

    url: str
    era: Era
    headers: dict[str, str]
    _http: httpx.AsyncClient
    _ids: Any = attrs.field(factory=lambda: itertools.count(1))

    async def ask(self, method: str, params: JSON) -> Written:
        """The whole response, whose members are `result` or `error`."""
        message, headers = self.request(method, params)
        response = await self._http.post(self.url, json=message, headers=headers)
        return _response(response, message["id"])

    async def notify(self, method: str) -> None:
        await self._http.post(self.url, json={"jsonrpc": "2.0", "method": method}, headers=self.headers)

    def request(self, method: str, params: JSON) -> tuple[JSON, dict[str, str]]:
        message: JSON = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}
        headers = dict(self.headers)
        if self.era == "modern":
            stamp = {f"{META}protocolVersion": VERSIONS["modern"], f"{META}clientCapabilities": {}}
            message["params"] = {**params, "_meta": {**params.get("_meta", {}), **stamp}}
            headers["Mcp-Method"] = method
            if method in NAMED_BY:
                headers["Mcp-Name"] = params[NAMED_BY[method]]
        return message, headers

    @asynccontextmanager
    async def open_stream(self, method: str, params: JSON) -> AsyncIterator[OpenStream]:
        """A response while it arrives, on a connection of its own."""
        message, headers = self.request(method, params)
        body, target = json.dumps(message).encode(), urlsplit(self.url)
        fields = {**headers, "Host": target.netloc, "Content-Type": "application/json", "Content-Length": len(body)}
        head = f"POST {target.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        async with await trio.open_tcp_stream(str(target.hostname), target.port or 80) as stream:
            await stream.send_all(head.encode() + b"\r\n" + body)
            yield OpenStream(stream)


@attrs.define(eq=False)
class OpenStream:
    """The bytes of a response so far."""

    _stream: trio.SocketStream
    received: bytes = b""

    async def wait_for(self, mark: bytes) -> None:
        while mark not in self.received:
            data = await self._stream.receive_some()
            assert data, f"the connection ended after {self.received!r}"
            self.received += data


def _response(response: httpx.Response, request_id: int) -> Written:
    if not response.headers["content-type"].startswith("text/event-stream"):
        return as_written(response.content)
    lines = response.content.replace(b"\r\n", b"\n").split(b"\n")
    messages = [as_written(line[5:]) for line in lines if line.startswith(b"data:") and line[5:].strip()]
    (answer,) = [message for message in messages if ("id", ("number", str(request_id))) in message[1]]
    assert ("method",) not in answer[1]
    return answer


@asynccontextmanager
async def open_raw_client(url: str, era: Era) -> AsyncIterator[RawClient]:
    headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": VERSIONS[era]}
    async with httpx.AsyncClient(timeout=LIMIT, trust_env=False) as http:
        client = RawClient(url, era, headers, http)
        if era == "legacy":
            info = {"name": "raw", "version": "1"}
            params = {"protocolVersion": VERSIONS[era], "capabilities": {}, "clientInfo": info}
            message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
            started = await http.post(url, json=message, headers={"Accept": headers["Accept"]})
            assert member(member(_response(started, 0), "result"), "protocolVersion") == VERSIONS[era]
            if "mcp-session-id" in started.headers:
                headers["Mcp-Session-Id"] = started.headers["mcp-session-id"]
            await client.notify("notifications/initialized")
        yield client
        if "Mcp-Session-Id" in headers:
            await http.delete(url, headers=headers)
