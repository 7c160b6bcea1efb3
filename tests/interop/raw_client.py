"""Requests of either era over HTTP, without a client: the answers as they were written."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import attrs
import httpx
import trio
from interop.fleet import Era
from support.verbatim import Written, as_written, member

from trio_vmcp import JSON

__all__ = ["Asks", "RawClient", "open_raw_client", "open_raw_program"]

VERSIONS: dict[Era, str] = {"legacy": "2025-11-25", "modern": "2026-07-28"}
META = "io.modelcontextprotocol/"
NAMED_BY = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
LIMIT = 30.0  # s


class Asks(Protocol):
    """Anything that can be asked for answers as they are written."""

    async def ask(self, method: str, params: JSON) -> Written:
        """The whole response, whose members are `result` or `error`."""
        ...


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


@attrs.define(eq=False)
class RawProgram:
    """A program that speaks the handshake era by lines."""

    _process: trio.Process
    _rest: bytes = b""
    _ids: Any = attrs.field(factory=lambda: itertools.count(1))

    async def ask(self, method: str, params: JSON) -> Written:
        request_id = next(self._ids)
        await self.send({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
        while True:
            message = as_written(await self._read_line())
            if ("id", ("number", str(request_id))) in message[1] and "method" not in dict(message[1]):
                return message

    async def send(self, message: JSON) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps(message).encode() + b"\n")

    async def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            data = await self._process.stdout.receive_some()
            assert data, "the program has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line


@asynccontextmanager
async def open_raw_program(command: list[str], environment: dict[str, str]) -> AsyncIterator[RawProgram]:
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    process = await trio.lowlevel.open_process(
        command, stdin=pipe, stdout=pipe, stderr=nothing, env=os.environ | environment, start_new_session=True
    )
    try:
        program = RawProgram(process)
        info = {"name": "raw", "version": "1"}
        params = {"protocolVersion": VERSIONS["legacy"], "capabilities": {}, "clientInfo": info}
        member(await program.ask("initialize", params), "result")
        await program.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        yield program
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            await trio.aclose_forcefully(stream)
