"""`trio-vmcp serve`: the servers of a file behind one endpoint, or for one client on stdin and stdout."""

from __future__ import annotations

import json
import math
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import httpx
import trio

from trio_vmcp._cli.collector import patient_collector
from trio_vmcp._cli.file_changes import FileChanges
from trio_vmcp._cli.output import write_log
from trio_vmcp._cli.plain_view import PlainView
from trio_vmcp._cli.requests import FAILED, OK, CommandOutcome
from trio_vmcp._cli.sanitizer import Sanitizer
from trio_vmcp._cli.serve_options import KEYS_VARIABLE, ServeOptions, read_keys
from trio_vmcp._cli.sources import Found, InputError
from trio_vmcp._cli.standard_streams import Streams, open_standard_streams
from trio_vmcp.default_manager import open_session_manager
from trio_vmcp.factory import open_session_factory
from trio_vmcp.manager import SessionManager
from trio_vmcp.observe import Observer
from trio_vmcp.settings import FactorySettings, ManagerSettings
from trio_vmcp.storage import Storage

try:
    from trio_vmcp._cli.backend_lines import BackendLines, announce
    from trio_vmcp.serve._stdio import serve_stdio
    from trio_vmcp.serve.app import asgi_app
    from trio_vmcp.serve.authenticator import Authenticator
    from trio_vmcp.serve.server import allowing_host, serve_front
    from trio_vmcp.serve.settings import ServeSettings
except ImportError as _error:  # an extra is missing; its text names it
    raise InputError("UsageError", str(_error)) from None

__all__ = ["Setup", "prepare", "run_server"]


@attrs.frozen(kw_only=True)
class Setup:
    """What a server is made of, checked."""

    options: ServeOptions
    factory: FactorySettings
    manager: ManagerSettings
    front: ServeSettings
    authenticator: Authenticator | None
    storage: AbstractAsyncContextManager[Storage | None]


def prepare(options: ServeOptions, environment: Mapping[str, str]) -> Setup:
    """
    Raises:
        InputError: Something that the options name cannot be used.
    """
    if options.stdio and sys.stdin is None:  # another file may have its number
        raise _misused("--stdio needs stdin, which is closed")
    keys = _find_keys(options, environment)
    if options.redis and options.has_authenticator and not keys:
        raise _misused(
            f"--redis with an authenticator needs --keys FILE or {KEYS_VARIABLE}: by these keys another instance knows "
            "whose a session is"
        )
    # A client of stdio has no means to open another session when its own has ended.
    limits, lifetimes = FactorySettings(), ManagerSettings()
    if options.stdio:
        limits, lifetimes = FactorySettings(idle_timeout=math.inf), ManagerSettings(max_lifetime=math.inf)
    try:
        return Setup(
            options=options,
            factory=attrs.evolve(
                limits,
                conflict_resolution=options.conflict_resolution,
                identity_keys=keys,
                on_exit="suspend" if options.redis else "terminate",
            ),
            manager=attrs.evolve(lifetimes, instance=options.instance),
            front=_front_settings(options),
            authenticator=_authenticator(options),
            storage=_storage(options.redis),
        )
    except (ValueError, ImportError) as error:
        raise _misused(str(error)) from None


async def run_server(
    setup: Setup,
    found: Found,
    view: PlainView,
    *,
    transport: httpx.AsyncBaseTransport | None = None,
    streams: Callable[[], Streams] = open_standard_streams,
) -> CommandOutcome:
    """Serve until this is cancelled, or the client of --stdio is gone; or return at once, since the port cannot be
    bound.

    Args:
        transport: Replaces the built-in one for backends, which uses the proxies of the environment.
        streams: From and to the client of --stdio.
    """
    lines = BackendLines(partial(_tell, view))
    async with (
        setup.storage as storage,
        open_session_factory(
            storage=storage, settings=setup.factory, transport=transport, proxy="env", observers=[lines, *_counters()]
        ) as factory,
        open_session_manager(factory, found.backends, settings=setup.manager) as manager,
        trio.open_nursery() as nursery,
    ):
        lines.factory = factory
        if setup.options.watch:
            nursery.start_soon(_watching(setup.options.watch, found, manager, view).follow)
        if setup.options.stdio:
            receive, send = streams()
            for entry in found.skipped:
                lines.tell_once(entry.id, f"skipped, {entry.why}")
            with patient_collector():
                await serve_stdio(manager, receive, send, settings=setup.front)
            outcome = CommandOutcome(OK, {"ok": True})
        else:
            outcome = await _serve_http(setup, found, view, manager, lines)
        nursery.cancel_scope.cancel(reason="the server has ended")
    return outcome


async def _serve_http(
    setup: Setup, found: Found, view: PlainView, manager: SessionManager, lines: BackendLines
) -> CommandOutcome:
    front = asgi_app(manager, settings=setup.front, authenticator=setup.authenticator)
    front.is_starting = True
    host, port = setup.options.host, setup.options.port
    problem = ""
    async with trio.open_nursery() as nursery:
        try:
            url = await nursery.start(partial(serve_front, front, setup.front, host=host, port=port))
        except OSError as error:
            problem = f"cannot listen on {host}, port {port}: {_why(error)}"
        else:
            for entry in found.skipped:
                lines.tell_once(entry.id, f"skipped, {entry.why}")
            ids = [backend.id for backend in found.backends]
            await announce(front, manager, lines, ids, keep=setup.authenticator is None)
            front.is_starting = False
            view.show_problem(f"for the file of a client: {_snippet(url, setup)}")
            with patient_collector():
                _tell(view, f"listening on {url}")
                await trio.sleep_forever()
    view.show_problem(problem)
    return CommandOutcome(FAILED, {"ok": False, "error": {"type": "OSError", "message": problem}})


def _counters() -> list[Observer]:
    """What `/metrics` shows of the sessions and the process; empty without the extra `prometheus`."""
    try:
        from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

        from trio_vmcp.observers.prometheus import PrometheusObserver
    except ImportError:
        return []
    registry = CollectorRegistry()  # not the default one, which another server of this process may have
    for collector in (GCCollector, PlatformCollector, ProcessCollector):
        collector(registry=registry)
    return [PrometheusObserver(registry)]


def _tell(view: PlainView, text: str) -> None:
    write_log(view.out, view.safe.line(text) + "\n")


def _watching(path: str, found: Found, manager: SessionManager, view: PlainView) -> FileChanges:
    known = list(found.backends)

    async def take_over(changed: Found) -> None:
        known.extend(changed.backends)
        view.safe = Sanitizer.of(known)  # a backend that is removed may still be heard of
        await manager.set_backends(changed.backends)

    return FileChanges(path, found, os.environ, take_over, view.show_problem)


def _why(error: OSError) -> str:
    """The words for its number: those of the error repeat the address. The numbers of unknown hosts are others."""
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)


def _snippet(url: str, setup: Setup) -> str:
    """An entry as most clients read it."""
    parts = urlsplit(url)
    if parts.hostname in ("0.0.0.0", "::"):
        url = f"{parts.scheme}://localhost:{parts.port}{parts.path}"
    entry: dict[str, object] = {"type": "http", "url": url}
    if setup.authenticator is not None:
        entry["headers"] = {"Authorization": "Bearer ${TOKEN}"}
    return json.dumps({"mcpServers": {"trio-vmcp": entry}})


# --- what the options name


def _misused(text: str) -> InputError:
    return InputError("UsageError", text)


def _find_keys(options: ServeOptions, environment: Mapping[str, str]) -> tuple[bytes, ...]:
    if not options.keys and not environment.get(KEYS_VARIABLE):
        return ()
    place = f"--keys {options.keys}" if options.keys else KEYS_VARIABLE
    try:
        text = Path(options.keys).read_text("utf-8") if options.keys else environment[KEYS_VARIABLE]
        return read_keys(text, in_lines=bool(options.keys))
    except OSError as error:
        raise _misused(f"{place}: cannot be read: {error.strerror or type(error).__name__}") from None
    except UnicodeDecodeError:
        raise _misused(f"{place}: is not UTF-8") from None
    except ValueError as error:
        raise _misused(f"{place}: {error}") from None


def _front_settings(options: ServeOptions) -> ServeSettings:
    settings = allowing_host(ServeSettings(path=options.path), options.host)
    return attrs.evolve(settings, allowed_hosts=(*settings.allowed_hosts, *options.allowed_hosts))


def _authenticator(options: ServeOptions) -> Authenticator | None:
    if not options.has_authenticator:
        return None
    from trio_vmcp.serve.jwt import JwtAuthenticator

    return JwtAuthenticator(issuer=options.jwt_issuer, audience=options.jwt_audience, jwks=options.jwks, proxy="env")


def _storage(redis: str) -> AbstractAsyncContextManager[Storage | None]:
    if not redis:
        return nullcontext()
    from trio_vmcp.storage.redis import open_redis_storage

    return open_redis_storage(redis)
