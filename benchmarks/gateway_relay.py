"""A hand-written ASGI relay on hypercorn, over the h11 floor: the least that forwards calls. As a process:
`python gateway_relay.py URLS`, as JSON.

It reads the message, finds the backend by the prefix of the tool's name, forwards the message and passes the bytes of
the answer on. It checks nothing, and knows no requests but calls. A client of the handshake era has a session over all
backends; requests without a session share one.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs
import trio
from h11_floor import Backend
from hand_written import Host, Session
from hypercorn.config import Config
from hypercorn.trio import serve
from worker import raise_descriptor_limit
from workloads import Terms

JSON = (b"content-type", b"application/json")


@attrs.define
class Relay:
    urls: list[str]
    host: Host = attrs.field(factory=lambda: Host(Backend, Terms()))
    sessions: dict[bytes, Session] = attrs.field(factory=dict)
    ids: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1))

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        assert scope["type"] == "http"  # ASGI 3.0, lifespan: an application that raises has no such events
        body = b""
        more = True
        while more:
            event = await receive()
            body += event["body"]
            more = event["more_body"]
        status, headers, answer = await self.answer(scope["method"], dict(scope["headers"]), body)
        headers.append((b"content-length", b"%d" % len(answer)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def answer(
        self, verb: str, headers: dict[bytes, bytes], body: bytes
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        session_id = headers.get(b"mcp-session-id", b"")
        if verb == "DELETE":
            await self.sessions.pop(session_id).close()
            return 204, [], b""
        message = json.loads(body)
        if message["method"] == "initialize":
            session_id = b"%d" % next(self.ids)
            self.sessions[session_id] = await self.host.open(self.urls)
            result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "relay"}}
            answer = {"jsonrpc": "2.0", "id": message["id"], "result": result}
            return 200, [JSON, (b"mcp-session-id", session_id)], json.dumps(answer).encode()
        if "id" not in message:
            return 202, [], b""
        if session_id not in self.sessions:
            self.sessions[session_id] = await self.host.open(self.urls)
        prefix, _, name = message["params"]["name"].partition("_")
        message["params"]["name"] = name
        backend = self.sessions[session_id].backends[int(prefix[1:])]
        return 200, [JSON], await backend.post(json.dumps(message).encode())

    async def close(self) -> None:
        for session in self.sessions.values():
            await session.close()


async def main(urls: list[str]) -> None:
    relay, config = Relay(urls), Config()
    config.bind = ["127.0.0.1:0"]
    config.loglevel = "ERROR"
    config.include_server_header = False  # as `trio_vmcp.serve`
    wait_closed = partial(trio.to_thread.run_sync, sys.stdin.read, abandon_on_cancel=True)
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(partial(serve, relay, config, shutdown_trigger=wait_closed, mode="asgi"))
        print(f"{url}/mcp", flush=True)
    await relay.close()


if __name__ == "__main__":
    raise_descriptor_limit()
    trio.run(main, json.loads(sys.argv[1]))
