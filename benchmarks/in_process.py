"""What the front adds to a call of its session: the application in process, with no server and no sockets of clients.

Requests come as a server hands them over: with the headers of the official client. The sessions of the front and the
session that is called directly have backends of their own sockets, and take turns, since other load of the machine
slows all within a turn.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs
import trio
from gateway_client import HEADERS, INITIALIZE, LEGACY, Headers, call, modern_headers
from worker import Measures
from workloads import ARGUMENTS, TOOL

from trio_vmcp import Backend, Session, open_session_factory, open_session_manager
from trio_vmcp.serve import asgi_app

USUAL = {"host": "127.0.0.1:8000", "accept-encoding": "gzip, deflate", "user-agent": "python-httpx2/2.16.2", **HEADERS}


@attrs.frozen
class Post:
    """A request as a server hands it over; made beforehand, as clients are not measured."""

    scope: Mapping[str, Any]
    body: bytes

    @classmethod
    def of(cls, headers: Headers, message: object) -> Post:
        body = json.dumps(message).encode()
        fields = {**USUAL, **headers, "content-length": str(len(body))}
        pairs = [(name.encode(), value.encode()) for name, value in fields.items()]
        return cls({"type": "http", "method": "POST", "path": "/mcp", "scheme": "http", "headers": pairs}, body)

    async def send_to(self, app: Any) -> list[Any]:
        """What the application sends."""
        sent: list[Any] = []

        pieces = [{"type": "http.request", "body": self.body}]

        async def receive() -> Mapping[str, Any]:
            if not pieces:
                await trio.sleep_forever()
            return pieces.pop()

        async def send(message: Mapping[str, Any]) -> None:
            sent.append(message)

        await app(self.scope, receive, send)
        return sent


async def open_client(app: Any) -> Headers:
    """The headers of a client of the handshake era."""
    start, _ = await Post.of({}, {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": INITIALIZE}).send_to(app)
    return {"mcp-session-id": dict(start["headers"])[b"mcp-session-id"].decode(), "mcp-protocol-version": LEGACY}


async def in_process(urls: list[str], spare: str, terms: dict[str, Any], calls: int, turns: int) -> Measures:
    """s of CPU of a call: "call" of the session, "legacy" and "modern" through the application, and what those take
    over that of the session in the same turn: "legacy_over", "modern_over".
    """
    backends = [Backend(id=f"b{at}", url=url, era="legacy", listen=False) for at, url in enumerate(urls)]
    tools = [f"b{at}_{TOOL}" for at in range(len(urls))]
    found: dict[str, list[float]] = {}
    async with (
        open_session_factory() as factory,
        open_session_manager(factory, backends) as manager,
        factory.open_session(backends) as session,
    ):
        app = asgi_app(manager)
        session_headers = await open_client(app)
        order = [tools[index % len(tools)] for index in range(calls)]
        legacy = [Post.of(session_headers, call(index, tool, "legacy")) for index, tool in enumerate(order)]
        modern = [Post.of(modern_headers(tool), call(index, tool, "modern")) for index, tool in enumerate(order)]
        ways = {
            "call": partial(_call_all, session, order),
            "legacy": partial(_send_all, app, legacy),
            "modern": partial(_send_all, app, modern),
        }
        for turn in range(turns + 1):
            for name, make_calls in ways.items():
                begun = time.thread_time()
                await make_calls()
                if turn:  # the first warms up
                    found.setdefault(name, []).append((time.thread_time() - begun) / calls)
    for name in ("legacy", "modern"):
        found[f"{name}_over"] = [one / direct for one, direct in zip(found[name], found["call"], strict=True)]
    return {name: statistics.median(values) for name, values in found.items()}


async def _call_all(session: Session, tools: list[str]) -> None:
    for tool in tools:
        assert not (await session.call_tool(tool, ARGUMENTS)).is_error


async def _send_all(app: Any, posts: list[Post]) -> None:
    for post in posts:
        start, rest = await post.send_to(app)
        assert start["status"] == 200
        assert b'"result"' in rest["body"], rest
