"""Credentials for backends."""

from trio_vmcp.auth.strategies import BearerAuth, ClientCredentials, HeaderAuth, PerBackend

__all__ = ["BearerAuth", "ClientCredentials", "HeaderAuth", "PerBackend"]
