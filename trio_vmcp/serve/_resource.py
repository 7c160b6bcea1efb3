"""Where the clients of the front get their tokens: OAuth 2.0 protected resource metadata (RFC 9728).

"MCP servers MUST implement the OAuth 2.0 Protected Resource Metadata specification to indicate the locations of
authorization servers" (MCP 2025-06-18 and later, authorization). Pure functions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs

__all__ = ["ProtectedResource", "is_identifier", "protected_resource"]

WELL_KNOWN = "/.well-known/oauth-protected-resource"


@attrs.frozen
class ProtectedResource:
    """The metadata of the front.

    Attributes:
        document: JSON.
        url: Of the document (§3.1), for challenges.
        paths: At which the front serves it: that of `url`, and those where clients look that were told no url.
    """

    document: bytes = attrs.field(repr=False)
    url: str
    paths: frozenset[str]

    def challenge(self, challenge: str) -> str:
        """A challenge for bearer tokens with the url of the metadata (§5.1); another one as it is."""
        scheme, _, parameters = challenge.partition(" ")
        if scheme.lower() != "bearer" or "resource_metadata" in parameters:
            return challenge
        return f'{scheme} {parameters}{", " if parameters.strip() else ""}resource_metadata="{self.url}"'

    def path_on_host(self, root_path: str, path: str) -> str:
        """The path of a request as `paths` has it, where the application is mounted at the well-known path and `path`
        is the rest; mounted elsewhere, the path as it is.
        """
        return (WELL_KNOWN + path).rstrip("/") if root_path.rstrip("/").endswith(WELL_KNOWN) else path


def protected_resource(metadata: Mapping[str, Any] | None, path: str) -> ProtectedResource | None:
    """
    Args:
        metadata: Its members (§2); None: there is none.
        path: Of the MCP endpoint, without a trailing slash.

    Raises:
        ValueError: `resource` is no url.
    """
    if metadata is None:
        return None
    resource = metadata.get("resource")
    if not isinstance(resource, str) or not is_identifier(resource):
        raise ValueError(f"resource_metadata of the authenticator: resource={resource!r} is no http(s) url")
    parts = urlsplit(resource)
    own = WELL_KNOWN + parts.path.rstrip("/")
    url = f"{parts.scheme}://{parts.netloc}{own}" + (f"?{parts.query}" if parts.query else "")
    return ProtectedResource(
        json.dumps(metadata).encode(), url, frozenset({unquote(own), WELL_KNOWN, WELL_KNOWN + path})
    )


def is_identifier(text: str) -> bool:
    """Whether a text can be a resource identifier or an issuer: an http(s) url without a fragment (§1.2), and without
    credentials.
    """
    if not text.isascii() or not text.isprintable() or set(text) & set(' "\\#'):
        return False
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
