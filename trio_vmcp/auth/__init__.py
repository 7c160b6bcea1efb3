"""Credentials for backends."""

from trio_vmcp.auth.client_credentials import ClientCredentials
from trio_vmcp.auth.strategies import BearerAuth, HeaderAuth, PerBackend

__all__ = ["BearerAuth", "ClientCredentials", "HeaderAuth", "PerBackend"]
