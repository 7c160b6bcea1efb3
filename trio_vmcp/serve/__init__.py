"""The front: one MCP endpoint for real clients, over a `SessionManager`."""

from trio_vmcp.serve.authenticator import Authenticator, AuthenticatorUnavailable, Unauthenticated

__all__ = ["Authenticator", "AuthenticatorUnavailable", "Unauthenticated"]
