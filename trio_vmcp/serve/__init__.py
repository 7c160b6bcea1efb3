"""The front: one MCP endpoint for real clients, over a `SessionManager`. Map:

- `app.py`: the ASGI application: edges, authentication, the era of a request; `settings.py`: its limits
- `_legacy.py`, `_client_session.py`: the handshake era: over HTTP, and one client whatever carries it
- `_modern.py`, `_rounds.py`, `_listening.py`: the stateless era: its checks, questions, and streams of changes
- `_requests.py`, `_lists.py`, `_errors.py`, `_messages.py`: what requests of both eras mean, and their answers as bytes
- `_exchange.py`, `_streams.py`, `_asgi.py`: one request on its way, its event stream, HTTP
- `authenticator.py`, `jwt.py`, `sealing.py`: principals of requests, and sealed state
"""

from trio_vmcp.serve.app import asgi_app
from trio_vmcp.serve.authenticator import Authenticator, AuthenticatorUnavailable, Unauthenticated
from trio_vmcp.serve.settings import ServeSettings

__all__ = ["Authenticator", "AuthenticatorUnavailable", "ServeSettings", "Unauthenticated", "asgi_app"]
