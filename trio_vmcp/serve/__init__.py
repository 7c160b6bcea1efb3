"""The front: one MCP endpoint for real clients, over a `SessionManager`. Map:

- `app.py`: the ASGI application: edges, authentication, the era of a request; `settings.py`: its limits
- `_legacy.py`, `_client_session.py`, `_wanted.py`: the handshake era: over HTTP, and one client whatever carries it
- `_modern.py`, `_stateless.py`, `_rounds.py`, `_listening.py`: the stateless era: over HTTP, and whatever carries it;
  its questions, and its streams of changes
- `_batches.py`: several messages at once
- `_requests.py`, `_lists.py`, `_errors.py`, `_messages.py`: what requests of both eras mean, and their answers as bytes
- `_exchange.py`, `_streams.py`, `_asgi.py`: one request on its way, its event stream, HTTP
- `_backlog.py`: messages that wait for a slow client, or for one that comes back
- `_edges.py`, `_cors.py`: which hosts and origins may reach it, and what browsers are told
- `_operator.py`, `_health.py`, `_status.py`, `_page.py`, `_metrics.py`: what operators ask: readiness, states, counts
- `authenticator.py`, `jwt.py`, `sealing.py`: principals of requests, and sealed state
- `_resource.py`: where clients are told to get a token
- `server.py`: the application on a port of its own; `_stdio.py`: one client over two streams, without HTTP
"""

import typing as _typing

from trio_vmcp.serve.app import asgi_app
from trio_vmcp.serve.authenticator import Authenticator, AuthenticatorUnavailable, Unauthenticated
from trio_vmcp.serve.settings import ServeSettings

if _typing.TYPE_CHECKING:
    from trio_vmcp.serve.jwt import JwtAuthenticator
    from trio_vmcp.serve.server import serve
else:

    def __getattr__(name: str) -> object:
        """Loaded when they are used: an application under another server needs no hypercorn, and others no PyJWT."""
        from importlib import import_module

        if name == "serve":
            return import_module("trio_vmcp.serve.server").serve
        if name == "JwtAuthenticator":
            return import_module("trio_vmcp.serve.jwt").JwtAuthenticator
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Authenticator",
    "AuthenticatorUnavailable",
    "JwtAuthenticator",
    "ServeSettings",
    "Unauthenticated",
    "asgi_app",
    "serve",
]
