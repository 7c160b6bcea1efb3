"""Requests to a front over real sockets, each over a connection of its own."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import attrs
import trio
from support.front import BOTH, LEGACY, modern_request

from trio_vmcp import JSON

__all__ = ["INITIALIZE", "JSON_TYPE", "Answer", "call", "connect", "encode", "get", "post", "read_whole"]

JSON_TYPE = {"content-type": "application/json", "accept": BOTH}


@attrs.define(eq=False)
class Answer:
    """A response that was read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def result(self) -> Any:
        return json.loads(self.body)["result"]


async def connect(url: str) -> trio.SocketStream:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return await trio.open_tcp_stream(parts.hostname, parts.port)


def encode(url: str, verb: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    given = {"host": urlsplit(url).netloc, "content-length": str(len(body)), **headers}
    lines = [f"{verb} {urlsplit(url).path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
    return "\r\n".join(lines).encode() + body


async def read_whole(stream: trio.abc.Stream) -> Answer:
    """The rest of what a connection brings, as one response."""
    data = b"".join([piece async for piece in stream])
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    pairs = (line.split(": ", 1) for line in lines)
    return Answer(int(first.split()[1]), {name.lower(): value for name, value in pairs}, body)


async def get(url: str, headers: dict[str, str] | None = None) -> Answer:
    async with await connect(url) as stream:
        await stream.send_all(encode(url, "GET", {"connection": "close", **(headers or {})}))
        return await read_whole(stream)


async def post(url: str, message: JSON, headers: dict[str, str] | None = None) -> Answer:
    body = json.dumps(message).encode()
    async with await connect(url) as stream:
        await stream.send_all(encode(url, "POST", {**JSON_TYPE, "connection": "close", **(headers or {})}, body))
        return await read_whole(stream)


async def call(url: str, tool: str) -> Answer:
    """A call of the stateless era."""
    message, headers = modern_request("tools/call", {"name": tool, "arguments": {}})
    return await post(url, message, headers)


INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}
