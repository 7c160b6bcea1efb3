"""Whose requests are alike: a key for what sessions may share with each other and with no other principal."""

from __future__ import annotations

import hashlib
import secrets

from trio_vmcp.identity import Identity
from trio_vmcp.models import Backend

__all__ = ["principal_key"]

_NONE = secrets.token_bytes(16)  # the key without an identity, headers and environment; other keys are digests
_SALT = secrets.token_bytes(32)  # tokens, headers and environments are secrets: a key is of no use elsewhere


def principal_key(backend: Backend, identity: Identity | None, *, by_token: bool = False) -> bytes:
    """Equal for sessions that come to a backend as the same principal: the identity, and the headers and environment
    that the backend is configured with, which may be credentials. The endpoint is not part of it.

    Args:
        by_token: Other tokens of the same identity are another principal.
    """
    if identity is None and not (backend.headers or backend.env or backend.inherit_env):
        return _NONE
    parts = [text for given in (backend.headers, backend.env) for pair in sorted(given.items()) for text in (*pair, "")]
    parts += sorted(backend.inherit_env)
    parts.append("\0" if identity is None else f"{identity.issuer}\0{identity.subject}")  # neither may hold NUL
    if by_token and identity is not None:
        parts.append(identity.token)
    digest = hashlib.blake2b(key=_SALT, digest_size=16)
    for part in (str(len(backend.headers)), str(len(backend.env)), *parts):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()
