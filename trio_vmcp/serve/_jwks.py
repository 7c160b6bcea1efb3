"""A JSON Web Key Set (RFC 7517 §5) as the keys that may verify tokens, without I/O.

Left out is a key that is not for signatures (`use`, `key_ops`: §4.2, §4.3), one for an algorithm that is not allowed
(`alg`: §4.4), one that cannot be read, an RSA key under 2048 bits (RFC 7518 §3.3), and every symmetric key: a set of
public keys is no place for a secret.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

if TYPE_CHECKING:  # older releases of PyJWT have it for type checkers alone
    from jwt.algorithms import AllowedPublicKeys

__all__ = ["ALGORITHMS", "KeySet", "VerificationKey", "read_key_set"]

MOST_KEYS = 100  # to read one takes up to 0.1 ms
LEAST_RSA_BITS = 2048

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
# By `kty` and `crv`: the algorithms (RFC 7518 §3.1, RFC 8037 §3.1), and the members that make up the
# public key. Other members, those of a private key among them, are not read.
_FAMILIES: Final[Mapping[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]]] = {
    ("RSA", ""): (_RSA, ("kty", "n", "e")),
    ("EC", "P-256"): (("ES256",), ("kty", "crv", "x", "y")),
    ("EC", "P-384"): (("ES384",), ("kty", "crv", "x", "y")),
    ("EC", "P-521"): (("ES512",), ("kty", "crv", "x", "y")),
    ("OKP", "Ed25519"): (("EdDSA",), ("kty", "crv", "x")),
    ("OKP", "Ed448"): (("EdDSA",), ("kty", "crv", "x")),
}
_READERS: Final[Mapping[str, Callable[[dict[str, Any]], Any]]] = {
    "RSA": RSAAlgorithm.from_jwk,
    "EC": ECAlgorithm.from_jwk,
    "OKP": OKPAlgorithm.from_jwk,
}

ALGORITHMS: Final = tuple(dict.fromkeys(name for names, _ in _FAMILIES.values() for name in names))
"""The asymmetric signature algorithms. Never "none" or an HMAC."""


@attrs.frozen(eq=False)
class VerificationKey:
    """A public key.

    Attributes:
        key_id: `kid`; None: the key has none.
        algorithms: Those that the key may verify.
    """

    key_id: str | None
    algorithms: frozenset[str]
    public_key: AllowedPublicKeys = attrs.field(repr=False)


@attrs.frozen(eq=False)
class KeySet:
    """The keys of an issuer that may verify tokens."""

    keys: tuple[VerificationKey, ...]

    def fitting(self, algorithm: str, key_id: str | None) -> tuple[VerificationKey, ...]:
        """The keys that may have signed a token with this header. Several may have the same `kid` (RFC 7517 §4.5).

        Args:
            key_id: None: the token has no `kid`, so exactly one key must fit.
        """
        fitting = tuple(key for key in self.keys if algorithm in key.algorithms)
        if key_id is None:
            return fitting if len(fitting) == 1 else ()
        return tuple(key for key in fitting if key.key_id == key_id)


def read_key_set(source: bytes | Mapping[str, Any], algorithms: Collection[str]) -> KeySet:
    """The keys that verify one of `algorithms`; there may be none.

    Raises:
        ValueError: It is no key set. The text quotes nothing of it, and completes the sentence "… is no key set: …".
    """
    document: Any = source
    if isinstance(source, bytes):
        try:
            document = json.loads(source)
        except (ValueError, RecursionError):
            document = None
    entries = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(entries, list | tuple):
        raise ValueError("it is no JSON object with an array 'keys'")
    if len(entries) > MOST_KEYS:
        raise ValueError(f"it has {len(entries)} keys, and the limit is {MOST_KEYS}")
    read = (_read_key(entry, algorithms) for entry in entries)
    return KeySet(tuple(key for key in read if key is not None))


def _read_key(entry: Any, allowed: Collection[str]) -> VerificationKey | None:
    if not isinstance(entry, Mapping) or entry.get("use", "sig") != "sig":
        return None
    operations = entry.get("key_ops", ("verify",))
    if not isinstance(operations, list | tuple) or "verify" not in operations:
        return None
    kty, curve = str(entry.get("kty")), str(entry.get("crv", ""))
    family = _FAMILIES.get((kty, "" if kty == "RSA" else curve))
    if family is None:
        return None
    possible, members = family
    algorithms = frozenset(name for name in possible if name in allowed and entry.get("alg", name) == name)
    public_key = _public_key(kty, {name: entry.get(name) for name in members}) if algorithms else None
    if public_key is None:
        return None
    key_id = entry.get("kid")
    return VerificationKey(key_id if isinstance(key_id, str) else None, algorithms, public_key)


def _public_key(kty: str, members: dict[str, Any]) -> Any:
    """None: the members are no key."""
    try:
        key: Any = _READERS[kty](members)
    except Exception:  # noqa: BLE001  # whatever base64, integers and OpenSSL make of an issuer's text
        return None
    if kty == "RSA" and key.key_size < LEAST_RSA_BITS:
        return None
    return key
