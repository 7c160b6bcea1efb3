"""One instance of a small server of sessions: what several instances behind a balancer need, in one file.

    python instance.py --name=a --port=8001 --redis=unix:///run/redis.sock --backend=time=http://127.0.0.1:9001/mcp

- POST /sessions makes a session for the user in `X-User`, and answers with its id in `Mcp-Session-Id`.
- POST /call calls a tool, {"tool": "time_now", "arguments": {}}, of the session in `Mcp-Session-Id`.
- POST /attributes replaces the attributes of the session.
- DELETE /session terminates it. GET /health answers as soon as sessions are served.
- Each answer names the instance in `X-Instance`.

A real server takes the user from a verified token. `X-User` is only as good as the network that it comes from.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Awaitable, Callable
from functools import partial

import attrs
import trio

from trio_vmcp import (
    Backend,
    BackendError,
    FactorySettings,
    Identity,
    InvalidSessionId,
    ManagerSettings,
    Session,
    SessionClosed,
    SessionLimitReached,
    SessionManager,
    SessionNotFound,
    StorageError,
    ToolResult,
    open_session_factory,
    open_session_manager,
)
from trio_vmcp.storage.redis import open_redis_storage
from trio_vmcp.testing import Reply, Request, serve_http

# Every instance has the same keys: else none can restore another's sessions. They are secrets: read them from a file.
IDENTITY_KEYS = (b"only for a demonstration, 32 by.",)
STATUS = {SessionNotFound: 404, InvalidSessionId: 404, SessionClosed: 404, SessionLimitReached: 503, StorageError: 503}

Handler = Callable[[Request, Identity], Awaitable[tuple[int, dict[str, object], str]]]


@attrs.define(eq=False)
class Server:
    """The requests of clients, answered by a manager of sessions."""

    name: str
    manager: SessionManager

    async def answer(self, request: Request, reply: Reply) -> None:
        handlers: dict[tuple[str, str], Handler] = {
            ("POST", "/sessions"): self.create,
            ("POST", "/call"): self.call,
            ("POST", "/attributes"): self.set_attributes,
            ("DELETE", "/session"): self.terminate,
            ("GET", "/health"): self.tell_health,
        }
        handler = handlers.get((request.verb, request.target))
        if handler is None:
            await reply.respond(404)
            return
        user = Identity(issuer="demonstration", subject=request.headers.get("x-user", "anonymous"))
        try:
            status, body, session_id = await handler(request, user)
        except (SessionNotFound, InvalidSessionId, SessionClosed, SessionLimitReached, StorageError) as error:
            status, body, session_id = STATUS[type(error)], {"error": str(error)}, ""
        except BackendError as error:
            status, body, session_id = 502, {"error": str(error)}, ""
        headers = [("content-type", "application/json"), ("x-instance", self.name)]
        headers += [("mcp-session-id", session_id)] if session_id else []
        await reply.respond(status, json.dumps(body).encode(), headers)

    async def session_of(self, request: Request, user: Identity) -> Session:
        return await self.manager.get(request.headers.get("mcp-session-id", ""), caller=user)

    async def create(self, request: Request, user: Identity) -> tuple[int, dict[str, object], str]:
        session = await self.manager.create(identity=user)
        return 201, {}, session.id

    async def call(self, request: Request, user: Identity) -> tuple[int, dict[str, object], str]:
        asked = json.loads(request.body)
        session = await self.session_of(request, user)
        result: ToolResult = await session.call_tool(asked["tool"], asked["arguments"])
        return 200, {"content": result.content, "is_error": result.is_error}, session.id

    async def set_attributes(self, request: Request, user: Identity) -> tuple[int, dict[str, object], str]:
        session = await self.session_of(request, user)
        await session.set_attributes(json.loads(request.body))
        return 200, {}, session.id

    async def terminate(self, request: Request, user: Identity) -> tuple[int, dict[str, object], str]:
        await self.manager.terminate(request.headers.get("mcp-session-id", ""), caller=user)
        return 200, {}, ""

    async def tell_health(self, request: Request, user: Identity) -> tuple[int, dict[str, object], str]:
        return 200, {"live": self.manager.statistics.live}, ""


async def serve(name: str, port: int, redis: str, backends: list[Backend]) -> None:
    """Serve until SIGTERM, which moves the sessions to whichever instance is asked for them next."""
    settings = FactorySettings(identity_keys=IDENTITY_KEYS, on_exit="suspend")
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with (
            open_redis_storage(redis) as storage,
            open_session_factory(storage=storage, settings=settings) as factory,
            open_session_manager(factory, backends, settings=ManagerSettings(instance=name)) as manager,
            trio.open_nursery() as connections,
        ):
            listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
            handle = partial(serve_http, application=Server(name, manager).answer)
            connections.start_soon(trio.serve_listeners, handle, listeners)
            print("ready", listeners[0].socket.getsockname()[1], flush=True)  # noqa: T201  # to what has started it
            await anext(signals)
            connections.cancel_scope.cancel(reason="SIGTERM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--backend", action="append", default=[], metavar="ID=URL")
    given = parser.parse_args()
    pairs = (text.partition("=") for text in given.backend)
    backends = [Backend(id=backend_id, url=url, era="legacy") for backend_id, _, url in pairs]
    trio.run(serve, given.name, given.port, given.redis, backends)


if __name__ == "__main__":
    main()
