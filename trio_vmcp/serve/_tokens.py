"""Whether a bearer token is a JWT of the issuer, for the audience, and valid now. Without I/O.

Sources: RFC 6750 (bearer tokens), RFC 7519 (JWT), RFC 7515 (signatures), RFC 8725 (best current practice). No text of a
token is in an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import attrs
import jwt

from trio_vmcp.identity import Identity
from trio_vmcp.serve._jwks import VerificationKey
from trio_vmcp.serve.authenticator import Unauthenticated

if TYPE_CHECKING:
    from jwt.types import Options

__all__ = ["MAX_TOKEN_BYTES", "TokenHeader", "TokenRules", "Verified", "bearer_token", "read_header", "refused"]

MAX_TOKEN_BYTES = 16 * 1024

_BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE)  # RFC 9110 §11.1: the scheme in any case
_WRONG_SIGNATURE = "has a wrong signature"
_OPTIONS: Final[Options] = {
    "require": ["exp", "iss", "aud", "sub"],
    # Times are checked in `_accept`, by the clock that also says for how long a token is kept as verified.
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
}
_COMPACT = re.compile(r"[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]+")  # RFC 7515 §7.1


class TokenHeader(NamedTuple):
    """What the header of a token says of its signature; not verified.

    Attributes:
        key_id: None: the header has no `kid`.
    """

    algorithm: str
    key_id: str | None


@attrs.frozen
class Verified:
    """A token that was verified.

    Attributes:
        expires_at: s since 1970, by the wall clock, leeway included.
    """

    identity: Identity
    expires_at: float


def refused(problem: str) -> Unauthenticated:
    """The error for a token that is present and no good (RFC 6750 §3.1).

    Args:
        problem: Of printable ASCII without quotes and backslashes (§3). Completes the sentence "the token …".
    """
    detail = f"the token {problem}"
    return Unauthenticated(detail, f'Bearer error="invalid_token", error_description="{detail}"')


def bearer_token(headers: Mapping[str, str]) -> str:
    """The token of a request, within the limits of size and alphabet.

    Raises:
        Unauthenticated: There is none, or what there is can be no JWT.
    """
    value = headers.get("authorization", "")
    if len(value) > MAX_TOKEN_BYTES:
        raise refused(f"is over {MAX_TOKEN_BYTES} bytes")
    found = _BEARER.fullmatch(value)
    if found is None:
        raise Unauthenticated("the request has no bearer token")
    if not _COMPACT.fullmatch(found[1]):
        raise refused("is no signed JWT")
    return found[1]


def read_header(token: str, algorithms: Collection[str]) -> TokenHeader:
    """The header of a token, by which its key is found.

    Raises:
        Unauthenticated: It is unreadable, or does not allow to verify the signature.
    """
    header: Any = None
    try:
        header = jwt.get_unverified_header(token)
    except Exception:  # noqa: BLE001  # a token is any text: PyJWT lets a RecursionError through, say
        header = None  # raised out here: the error quotes the token
    # None of the parameters that `crit` may name is understood (RFC 7515 §4.1.11, RFC 7797 §6). PyJWT before 2.12 does
    # not look for it.
    if not isinstance(header, dict) or "crit" in header or "b64" in header:
        raise refused("is no signed JWT")
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in algorithms:
        raise refused("is signed with an algorithm that is not allowed")
    return TokenHeader(algorithm, header.get("kid"))


@attrs.frozen
class TokenRules:
    """What a token must say.

    Attributes:
        leeway: s by which the clocks of the issuer and of this machine may differ.
    """

    issuer: str
    audience: str
    leeway: float

    def verify(self, token: str, algorithm: str, keys: Collection[VerificationKey], now: float) -> Verified:
        """Check the signature, by any of the keys, and then the claims.

        Raises:
            Unauthenticated: It is wrong.
        """
        problem = "is signed with a key that is unknown"
        for key in keys:
            claims, problem = self._decode(token, algorithm, key)
            if claims is not None:
                return self._accept(token, claims, now)
            if problem != _WRONG_SIGNATURE:  # else another key of the same id may have signed it
                break
        raise refused(problem)

    def _decode(self, token: str, algorithm: str, key: VerificationKey) -> tuple[dict[str, Any] | None, str]:
        """The claims, or None and the problem. An error of PyJWT quotes the token: raise none out of an `except`."""
        try:
            return jwt.decode(
                token,
                key.public_key,
                algorithms=[algorithm],
                issuer=self.issuer,
                audience=self.audience,
                options=_OPTIONS,
            ), ""
        except jwt.InvalidSignatureError:
            return None, _WRONG_SIGNATURE
        except jwt.MissingRequiredClaimError as error:
            return None, f"has no claim '{error.claim}'"
        except jwt.InvalidIssuerError:
            return None, "is of another issuer"
        except jwt.InvalidAudienceError:
            return None, "is for another audience"
        except Exception:  # noqa: BLE001  # a token is any text: PyJWT lets a RecursionError through, say
            return None, "is no valid JWT"

    def _accept(self, token: str, claims: Mapping[str, Any], now: float) -> Verified:
        expires_at, not_before = (_seconds(claims.get(name, default)) for name, default in (("exp", None), ("nbf", 0)))
        if expires_at is None or not_before is None:
            raise refused("has a time that is no number")
        if expires_at + self.leeway <= now:  # RFC 7519 §4.1.4
            raise refused("has expired")
        if not_before - self.leeway > now:  # §4.1.5
            raise refused("is not valid yet")
        identity: Identity | None = None
        try:
            identity = Identity(issuer=self.issuer, subject=claims["sub"], token=token)
        except ValueError:
            identity = None  # raised out here: the error may quote the subject
        if identity is None:
            raise refused("has a subject that names no principal")
        return Verified(identity, expires_at + self.leeway)


def _seconds(value: object) -> float | None:
    """A NumericDate (RFC 7519 §2); None: it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) else None
