"""Clients of a gateway, of both eras, as a program of the least: HTTP/1.1 on asyncio's streams, connections kept.

Needs the standard library only, so that the load on every gateway is the same, in whichever environment it lives.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any
from urllib.parse import urlsplit

from workloads import ARGUMENTS

LEGACY, MODERN = "2025-11-25", "2026-07-28"
META = "io.modelcontextprotocol/"
INITIALIZE: dict[str, Any] = {
    "protocolVersion": LEGACY,
    "capabilities": {},
    "clientInfo": {"name": "load", "version": "1"},
}
MODERN_META = {
    f"{META}protocolVersion": MODERN,
    f"{META}clientInfo": {"name": "load", "version": "1"},
    f"{META}clientCapabilities": {},
}
HEADERS = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
Headers = dict[str, str]


def call(request_id: int, tool: str, era: str) -> dict[str, Any]:
    params: dict[str, Any] = {"name": tool, "arguments": ARGUMENTS}
    if era == "modern":
        params["_meta"] = MODERN_META
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


def modern_headers(tool: str) -> Headers:
    return {"mcp-protocol-version": MODERN, "mcp-method": "tools/call", "mcp-name": tool}


class Http:
    """One server, and the connections to it: one for each request that is under way."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.path = parts.hostname, parts.port, parts.path
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def request(self, verb: str, headers: Headers, message: object = None) -> tuple[Headers, bytes]:
        body = b"" if message is None else json.dumps(message).encode()
        fields = {"host": f"{self.host}:{self.port}", **HEADERS, **headers, "content-length": str(len(body))}
        head = "".join([f"{verb} {self.path} HTTP/1.1\r\n", *(f"{name}: {at}\r\n" for name, at in fields.items())])
        while self.idle and self.idle[-1][0].at_eof():  # uvicorn ends connections after 5 s
            self.idle.pop()[1].close()
        connection = self.idle.pop() if self.idle else await asyncio.open_connection(self.host, self.port)
        reader, writer = connection
        writer.write(head.encode() + b"\r\n" + body)
        status, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].decode().split("\r\n")
        assert status.split()[1] in ("200", "202", "204"), status
        received = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        answer = await _read_body(reader, received)
        self.idle.append(connection)
        return received, answer

    async def close(self) -> None:
        for _, writer in self.idle:
            writer.close()


async def _read_body(reader: asyncio.StreamReader, headers: Headers) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    pieces: list[bytes] = []
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        piece = await reader.readexactly(size + 2)
        if not size:
            return b"".join(pieces)
        pieces.append(piece[:-2])


class Client:
    """One client. Of the handshake era, it has a session."""

    def __init__(self, url: str, era: str) -> None:
        self.http = Http(url)
        self.era = era
        self.session: Headers = {}
        self.ids = itertools.count(1)

    async def open(self) -> None:
        if self.era == "modern":
            return
        message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": INITIALIZE}
        headers, _ = await self.http.request("POST", {}, message)
        self.session = {"mcp-session-id": headers["mcp-session-id"], "mcp-protocol-version": LEGACY}
        await self.http.request("POST", self.session, {"jsonrpc": "2.0", "method": "notifications/initialized"})

    async def call(self, tool: str) -> None:
        request_id = next(self.ids)
        headers = self.session or modern_headers(tool)
        received, body = await self.http.request("POST", headers, call(request_id, tool, self.era))
        if received["content-type"].startswith("text/event-stream"):
            body = body[body.rindex(b"data: ") + 6 :]
        answer = json.loads(body)
        assert answer["id"] == request_id, answer
        assert answer["result"]["content"][0]["text"], answer

    async def close(self) -> None:
        if self.session:
            await self.http.request("DELETE", self.session)
        await self.http.close()
