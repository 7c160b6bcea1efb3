"""`serve`: the front on a port of its own, by hypercorn's protocols on Trio (extra `serve`).

Accepting and ending are done here. What hypercorn has for them (0.18, `trio/run.py` and `trio/tcp_server.py`) ends all
connections when one of them crashes, and a client that does not read what it is sent would hold up the end for ever:
writes are shielded from cancellation.
"""

from __future__ import annotations

import copy
import logging
import socket
import ssl
from typing import Any

import attrs
import trio

from trio_vmcp._nursery import describe_crash, start_clean
from trio_vmcp.manager import SessionManager
from trio_vmcp.serve.app import Front, asgi_app
from trio_vmcp.serve.authenticator import Authenticator
from trio_vmcp.serve.settings import ServeSettings

try:
    from hypercorn.config import Config
    from hypercorn.trio.worker_context import WorkerContext

    from trio_vmcp.serve._connection import Connection
except ImportError as _error:
    if (_error.name or "").partition(".")[0] != "hypercorn":
        raise
    _text = "serve needs hypercorn: pip install 'trio-vmcp[serve]'"
    raise ImportError(_text, name="hypercorn") from None

__all__ = ["allowing_host", "serve", "serve_front"]

_logger = logging.getLogger("trio_vmcp.serve")

GRACE = 0.5  # s, for connections to end once no request is under way; then they are cut
# s that a connection stays open without a request. A client that sends one at the moment of the close cannot know
# whether it was taken (RFC 9112 §9.3.1), so these moments should be rare.
KEEP_ALIVE = 75.0


async def serve(  # noqa: ASYNC128  # `serve_front` calls `started`
    manager: SessionManager,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: ServeSettings | None = None,
    authenticator: Authenticator | None = None,
    config: Config | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the sessions of a manager until this is cancelled: `url = await nursery.start(partial(serve, manager))`.

    `started()` gives the url of the endpoint, such as "http://127.0.0.1:8000/mcp". Cancelled, the server takes no new
    requests, answers those under way within `settings.shutdown_timeout` s, and returns at most 1 s after that. Leave
    the manager afterwards: then sessions end when no client waits for them any more.

    In a process that does nothing else, `gc.freeze()` once it is started and `gc.set_threshold(5000)` spare clients the
    pauses of the garbage collector, which are 60 ms long with thirty clients over ten backends. The command
    `trio-vmcp serve` does so.

    Args:
        manager: Of `open_session_manager`; it must outlive this.
        host: A name or address; a request may name it in `Host`, beside `settings.allowed_hosts`.
        port: 0: any that is free.
        settings, authenticator: As of `asgi_app`.
        config: Hypercorn's own options, such as `certfile` and `keyfile` for TLS. `bind`, and what is about workers and
            shutting down, have no effect. None: HTTP without TLS, no access log, errors to the logger
            `trio_vmcp.serve.http`.

    Raises:
        OSError: The port cannot be bound, or a file of `config` cannot be read; before `started()`.
    """
    settings = settings or ServeSettings()
    settings = allowing_host(settings, host)
    front = asgi_app(manager, settings=settings, authenticator=authenticator)
    await serve_front(front, settings, host=host, port=port, config=config, task_status=task_status)


def allowing_host(settings: ServeSettings, host: str) -> ServeSettings:
    """Settings with which requests may name this host: the url that the server gives must work."""
    return attrs.evolve(settings, allowed_hosts=(*settings.allowed_hosts, _in_url(host)))


async def serve_front(
    front: Front,
    settings: ServeSettings,
    *,
    host: str,
    port: int,
    config: Config | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """`serve` of an application that was made before, with these settings."""
    config = _default_config() if config is None else copy.copy(config)
    ssl_context = config.create_ssl_context()
    listening = await _bind(host, port, config.backlog)
    bound_port = listening.getsockname()[1]
    connections = _Connections(front, config)
    async with trio.open_nursery() as nursery:
        start_clean(nursery, connections.accept, _listener(listening, ssl_context))
        try:
            scheme = "http" if ssl_context is None else "https"
            task_status.started(f"{scheme}://{_in_url(host)}:{bound_port}{settings.path}")
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(settings.shutdown_timeout, shield=True):
                await front.drain()
            with trio.CancelScope(shield=True):
                await connections.end()


@attrs.define(eq=False)
class _Connections:
    """The connections of clients: from accepting the first to the end of the last."""

    _front: Front = attrs.field(alias="front")
    _config: Config = attrs.field(alias="config")
    _context: WorkerContext = attrs.field(factory=lambda: WorkerContext(None), init=False)
    _open: set[Connection] = attrs.field(factory=set, init=False)
    _accepting: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    # Shielded: the cancel that ends the server must not end a request that is under way.
    _serving: trio.CancelScope = attrs.field(factory=lambda: trio.CancelScope(shield=True), init=False)
    _ended: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def accept(self, listener: trio.abc.Listener[Any]) -> None:
        """Serve clients until `end`."""
        try:
            with self._serving:
                async with trio.open_nursery() as nursery:
                    with self._accepting:
                        await trio.serve_listeners(self._serve, [listener], handler_nursery=nursery)
        finally:
            self._ended.set()

    async def end(self) -> None:
        """Accept no more. Idle connections end at once, the others after `GRACE` s at the latest."""
        self._accepting.cancel(reason="the server shuts down")
        await self._context.terminated.set()
        for connection in self._open:
            connection.end_if_idle()
        with trio.move_on_after(GRACE):
            await self._ended.wait()
        self._serving.cancel(reason="the server has shut down")
        for connection in list(self._open):  # a write that waits for its client fails with that
            await trio.aclose_forcefully(connection.stream)
        await self._ended.wait()

    async def _answer(self, scope: Any, receive: Any, send: Any, sync_spawn: object, call_soon: object) -> None:
        await self._front(scope, receive, send)

    async def _serve(self, stream: Any) -> None:  # a SocketStream or SSLStream, which hypercorn tells apart
        connection = Connection(self._answer, self._config, self._context, stream)
        self._open.add(connection)
        try:
            await connection
        except* Exception as crash:  # noqa: BLE001  # of one connection; the others go on
            _logger.warning("a connection has crashed: %s", describe_crash(crash))
        finally:
            self._open.discard(connection)


def _default_config() -> Config:
    config = Config()
    config.errorlog = logging.getLogger("trio_vmcp.serve.http")
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE
    return config


async def _bind(host: str, port: int, backlog: int) -> socket.socket:
    """
    Raises:
        OSError: The host is unknown, or the port cannot be bound.
    """
    name = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    found = await trio.socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # "localhost" is both; clients that prefer the other try this one as well (RFC 8305).
    family, _, _, _, address = min(found, key=lambda each: each[0] is not socket.AF_INET)
    listening = socket.create_server(address, family=family, backlog=backlog)
    listening.setblocking(False)
    return listening


def _listener(listening: socket.socket, ssl_context: ssl.SSLContext | None) -> trio.abc.Listener[Any]:
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    return listener if ssl_context is None else trio.SSLListener(listener, ssl_context, https_compatible=True)


def _in_url(host: str) -> str:
    """An IPv6 address stands in brackets (RFC 3986 §3.2.2)."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
