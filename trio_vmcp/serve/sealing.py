"""State that a client carries for the front, such as `requestState` of MCP 2026-07-28: a client can neither read nor
change it, nor use it for anything but what it was sealed for, nor after its time.

Sealed is by AES-256-GCM (NIST SP 800-38D), with keys that HKDF-SHA256 (RFC 5869) derives. A text is, in base64url
without padding (RFC 4648 §5):

    version (1 byte) | nonce (12) | ciphertext of: expiry (8, ms since 1970) and the payload | tag (16)
"""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from collections.abc import Callable, Sequence

import attrs

from trio_vmcp.errors import VmcpError

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
except ModuleNotFoundError as _error:
    if (_error.name or "").partition(".")[0] != "cryptography":
        raise
    _text = "serve needs cryptography: pip install 'trio-vmcp[serve]'"
    raise ImportError(_text, name="cryptography") from None

__all__ = ["MAX_SEALED_LENGTH", "BadSeal", "Sealer"]

MAX_SEALED_LENGTH = 64 * 1024  # characters of a sealed text

_VERSION = b"\x01"
_LABEL = b"trio_vmcp.serve.sealing 1"  # keys for another purpose or version take another label (RFC 5869 §3.2)
# Random: with 96 bits one key may seal 2**32 texts (NIST SP 800-38D §8.3).
_NONCE_BYTES = 12
_EXPIRY_BYTES = 8
_TAG_BYTES = 16
_MOST_PAYLOAD = MAX_SEALED_LENGTH * 3 // 4 - len(_VERSION) - _NONCE_BYTES - _EXPIRY_BYTES - _TAG_BYTES
_MOST_LIFETIME = 366 * 86400.0  # s
_PROCESS_KEY = secrets.token_bytes(32)


@attrs.define(eq=False)
class BadSeal(VmcpError):
    """A text that has expired, or that no instance with these keys has sealed for this use.

    Attributes:
        detail: Completes the sentence "the sealed text …".
    """

    detail: str

    def __str__(self) -> str:
        return f"the sealed text {self.detail}"


class Sealer:
    """Seals payloads into texts, and opens them again.

    Args:
        keys: The first seals, all open, so that keys can be replaced one after the other. Each at least 32 random
            bytes. Empty: a random key of this process, so that no other process can open the texts.
        clock: The wall clock, in s since 1970. Those of instances that share keys should agree to a second or so.

    Raises:
        ValueError: A key is not non-empty bytes.
    """

    def __init__(self, keys: Sequence[bytes] = (), *, clock: Callable[[], float] = time.time) -> None:
        if not all(isinstance(key, bytes) and key for key in keys):
            raise ValueError("a key for sealing is not non-empty bytes")
        self._ciphers = [AESGCM(_derived(key)) for key in keys or (_PROCESS_KEY,)]
        self._clock = clock

    def seal(self, payload: bytes, *, bound_to: bytes, lifetime: float) -> str:
        """A text of URL-safe characters, at most `MAX_SEALED_LENGTH`. No two are equal.

        Args:
            bound_to: The text opens with the same bytes only: the principal, say, and a digest of the request. They are
                not part of the text. If they are put together of several parts, no two lists of parts may give the same
                bytes: put the length before each.
            lifetime: s, over 0 and at most 366 days.

        Raises:
            ValueError: The payload is too large, or the lifetime is none.
        """
        if len(payload) > _MOST_PAYLOAD:
            raise ValueError(f"{len(payload)} bytes are too many to seal; the limit is {_MOST_PAYLOAD}")
        if not 0 < lifetime <= _MOST_LIFETIME:
            raise ValueError(f"lifetime={lifetime!r} is not over 0 s and at most {_MOST_LIFETIME:g} s")
        expiry = int((self._clock() + lifetime) * 1000).to_bytes(_EXPIRY_BYTES, "big")
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._ciphers[0].encrypt(nonce, expiry + payload, bound_to)
        return _encoded(_VERSION + nonce + sealed)

    def unseal(self, text: str, *, bound_to: bytes) -> bytes:
        """The payload of a text from `seal`. The work is bounded, whatever the text.

        Raises:
            BadSeal: It was changed, sealed with other keys or bound to something else, or its lifetime is over.
        """
        data = _decoded(text)
        nonce, sealed = data[1 : 1 + _NONCE_BYTES], data[1 + _NONCE_BYTES :]
        if data[:1] == _VERSION and len(sealed) >= _EXPIRY_BYTES + _TAG_BYTES:
            for cipher in self._ciphers:
                try:
                    opened = cipher.decrypt(nonce, sealed, bound_to)
                except InvalidTag:
                    continue
                if int.from_bytes(opened[:_EXPIRY_BYTES], "big") <= self._clock() * 1000:
                    raise BadSeal("has expired")
                return opened[_EXPIRY_BYTES:]
        raise BadSeal("was not sealed here for this use")


def _derived(key: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=_LABEL).derive(key)


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decoded(text: str) -> bytes:
    """The bytes of a text of `_encoded`; empty for any other text."""
    if len(text) > MAX_SEALED_LENGTH:
        return b""
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (ValueError, binascii.Error):
        return b""
    # Some texts decode alike: Python skips characters that are not of the alphabet, and the last one has unused bits.
    return data if _encoded(data) == text else b""
