"""The identity that a session is bound to, and the keyed digest of it that the metadata keeps.

A session is bound to `(issuer, subject)`, never to token bytes: a refreshed token is still the same principal. The
metadata holds an HMAC of the two, so that a stolen row neither names the user nor lets a guess be tested.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence

import attrs

__all__ = ["Identity", "bind", "is_bound_to", "process_keys", "same_principal"]

_SCHEME = "v1:"  # HMAC-SHA256 over `_principal`; another digest or another encoding takes another prefix
_LENGTH_BYTES = 8
_PROCESS_KEYS = (secrets.token_bytes(32),)


def _check_text(name: str, value: object) -> None:
    # The message has no value: it may be a token, or claims passed in place of a string, and must not reach a log.
    if not isinstance(value, str):
        raise ValueError(f"identity {name} is {type(value).__name__}, not str")
    try:
        value.encode()
    except UnicodeEncodeError:
        surrogates = True
    else:
        surrogates = False
    if surrogates:  # raised out here: UnicodeEncodeError carries the whole string
        raise ValueError(f"identity {name} holds lone surrogates and cannot be encoded as UTF-8")


@attrs.frozen(kw_only=True)
class Identity:
    """A verified principal.

    Attributes:
        issuer, subject: The claims `iss` and `sub` (RFC 7519 §4.1.1, §4.1.2). Together they are the principal.
        token: A credential for requests to backends, which `auth` may use. Neither in the repr nor in `==`.

    Raises:
        ValueError: `issuer` or `subject` is empty or holds NUL; one of the three is no str, or not encodable as UTF-8.
    """

    issuer: str
    subject: str
    token: str = attrs.field(default="", repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        for name in ("issuer", "subject", "token"):
            _check_text(name, getattr(self, name))
        for name in ("issuer", "subject"):
            value = getattr(self, name)
            if not value:
                raise ValueError(f"identity {name} is empty")
            if "\0" in value:
                raise ValueError(f"identity {name} {value!r} holds NUL")


def _principal(identity: Identity | None) -> bytes:
    """Bytes that no other principal has; empty for an anonymous caller."""
    if identity is None:
        return b""
    # Length-prefixed, so that ("ab", "c") and ("a", "bc") differ.
    parts = (identity.issuer.encode(), identity.subject.encode())
    return b"".join(len(part).to_bytes(_LENGTH_BYTES, "big") + part for part in parts)


def _digest(key: bytes, principal: bytes) -> str:
    return _SCHEME + hmac.new(key, principal, hashlib.sha256).hexdigest()


def process_keys() -> tuple[bytes, ...]:
    """One random key per process, for factories without `identity_keys`; no other process can verify its bindings."""
    return _PROCESS_KEYS


def bind(identity: Identity | None, keys: Sequence[bytes]) -> str | None:
    """The binding that the metadata keeps of an identity; None for an anonymous session.

    Args:
        keys: The first makes the digest.

    Raises:
        ValueError: There is no key.
    """
    if not keys:
        raise ValueError("no key to bind an identity with (identity_keys)")
    return None if identity is None else _digest(keys[0], _principal(identity))


def is_bound_to(binding: str | None, identity: Identity | None, keys: Sequence[bytes]) -> bool:
    """Whether `bind` made this binding of this principal, with any of the keys. None is bound to None alone.

    The work does not depend on the outcome: every key is tried, for an anonymous caller too, so that the time taken
    tells a caller nothing about the stored identity.
    """
    # Bytes: compare_digest raises TypeError for a str that is not ASCII, and a stored row may hold anything.
    stored = (binding or "").encode("utf-8", "surrogatepass")
    principal = _principal(identity)
    matches = False
    for key in keys:
        matches |= hmac.compare_digest(stored, _digest(key, principal).encode())
    both_anonymous = (binding is None) & (identity is None)
    return both_anonymous | (matches & (binding is not None) & (identity is not None))


def same_principal(a: Identity | None, b: Identity | None) -> bool:
    """Whether two callers are the same principal: the check of every call. None equals None alone."""
    return a is b or hmac.compare_digest(_principal(a), _principal(b))
