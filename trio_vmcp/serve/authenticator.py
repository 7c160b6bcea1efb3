"""Which principal a request to the front comes from: the interface that an application may implement in its own way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import attrs

from trio_vmcp.errors import VmcpError
from trio_vmcp.identity import Identity

__all__ = ["Authenticator", "AuthenticatorUnavailable", "Unauthenticated"]


class Authenticator(Protocol):
    """Finds the principal of a request by its headers. One object serves any number of requests at a time.

    It may also have an attribute `resource_metadata`: the members of the OAuth protected resource metadata of the front
    (RFC 9728 §2), `resource` among them, a url. The front serves them without credentials, at
    `/.well-known/oauth-protected-resource` and with the path of the endpoint behind it, and names their url in the
    challenges for bearer tokens, so that clients find out where to get a token (MCP, authorization).
    """

    async def authenticate(self, headers: Mapping[str, str]) -> Identity:
        """The principal of one request. The front asks before it reads the body.

        Args:
            headers: Names in lower case.

        Raises:
            Unauthenticated: The front answers 401.
            AuthenticatorUnavailable: The front answers 503; also to anything else that is raised, or returned.
        """
        ...


@attrs.define(eq=False)
class Unauthenticated(VmcpError):
    """The request has no credentials, or bad ones: HTTP 401.

    Attributes:
        detail: What is wrong, for logs and the response's body. Never quotes credentials.
        challenge: The value of `WWW-Authenticate` (RFC 9110 §11.6.1).
    """

    detail: str
    challenge: str = "Bearer"

    def __str__(self) -> str:
        return self.detail


@attrs.define(eq=False)
class AuthenticatorUnavailable(VmcpError):
    """No credentials can be verified now, say since the issuer's keys could not be fetched: HTTP 503.

    Attributes:
        detail: What is away. Never quotes credentials.
        retry_after: s, over 0, after which asking again is worth it: `Retry-After` (RFC 9110 §10.2.3).
    """

    detail: str
    retry_after: float = attrs.field(default=5.0, kw_only=True)

    def __str__(self) -> str:
        return self.detail
