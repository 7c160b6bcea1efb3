"""Callers with JSON Web Tokens (RFC 7519) as bearer tokens (RFC 6750), verified by PyJWT (extra `serve`)."""

from __future__ import annotations

import hashlib
import math
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import httpx
import trio

from trio_vmcp._http.proxy import choose_proxies
from trio_vmcp.identity import Identity
from trio_vmcp.serve._resource import is_identifier
from trio_vmcp.serve.authenticator import Authenticator

try:
    from trio_vmcp.serve._issuer_keys import Fetched, IssuerKeys, KeysUnavailable
    from trio_vmcp.serve._jwks import ALGORITHMS, KeySet, read_key_set
    from trio_vmcp.serve._key_sources import KeyFile, KeyUrl, check_url
    from trio_vmcp.serve._tokens import TokenRules, Verified, bearer_token, read_header
except ModuleNotFoundError as _error:
    if (_error.name or "").partition(".")[0] not in ("jwt", "cryptography"):
        raise
    _text = "JwtAuthenticator needs PyJWT and cryptography: pip install 'trio-vmcp[serve]'"
    raise ImportError(_text, name=_error.name) from None

__all__ = ["JwtAuthenticator"]

MOST_VERIFIED = 1000  # tokens that are kept as verified; over it, the one that was used longest ago is discarded
_MOST_LEEWAY = 600.0  # s


class JwtAuthenticator(Authenticator):
    """Callers with a JWT of one issuer. Its `iss` and `sub` are the principal; `Identity.token` is the token. Needs the
    extra `serve`.

    A token must be signed with a key of the issuer and name its issuer, this audience, a subject and an expiry. The
    keys are fetched with the first request, for all that wait for them, and again every few minutes
    (`Cache-Control: max-age`, 1 min to 1 h; without, 5 min); a file is read again likewise. A token with an unknown
    key makes the front look again at once, at most every 30 s. While the issuer is away, known keys stay in use.

    Args:
        issuer: `iss`, compared exactly (RFC 8725 §3.8).
        audience: What `aud` is or holds (§3.9): as a rule the url of the front, as clients know it. Then clients
            without a token are told where the issuer is (RFC 9728, `resource_metadata`).
        jwks: The key set (RFC 7517 §5): its url (https, or http on this machine), the path of a file, or the set
            itself.
        algorithms: Those that a token may be signed with (§3.1). Asymmetric ones: `none` and HMAC are never allowed.
        leeway: s by which the clocks of the issuer and of this machine may differ, for `exp` and `nbf`.
        transport: Fetches from a url; None: the library's own, with the two that follow.
        ssl_context: For private CAs. None: the platform's trust store.
        proxy: As of `open_session_factory`.
        clock: The wall clock, in s since 1970.

    Raises:
        ValueError: Names the argument. A file or a set that has no key for any of `algorithms` is an error, too.
    """

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        jwks: str | os.PathLike[str] | Mapping[str, Any],
        algorithms: Sequence[str] = ALGORITHMS,
        leeway: float = 0.0,
        transport: httpx.AsyncBaseTransport | None = None,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        for name, value in (("issuer", issuer), ("audience", audience)):
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name} is not a non-empty str")
        Identity(issuer=issuer, subject="any")  # checks the issuer
        if isinstance(leeway, bool) or not isinstance(leeway, (int, float)) or not 0 <= leeway <= _MOST_LEEWAY:
            raise ValueError(f"leeway={leeway!r} is not from 0 to {_MOST_LEEWAY:g} s")
        self._algorithms = _checked(algorithms)
        self._rules = TokenRules(issuer, audience, leeway)
        self._clock = clock
        self._verified = _VerifiedTokens()
        self._first: KeySet | None = None
        self._fetch: Callable[[], Awaitable[Fetched]]
        if isinstance(jwks, os.PathLike):
            jwks = os.fspath(jwks)
        if isinstance(jwks, str) and "://" in jwks:
            check_url(jwks)
            proxies = choose_proxies(proxy, os.environ)
            self._fetch = KeyUrl(jwks, self._algorithms, transport, ssl_context, proxies).fetch
        else:
            self._first, self._fetch = _given(jwks, self._algorithms)
        # By run: times on Trio's clock and locks are of no use in another run.
        self._state: trio.lowlevel.RunVar[IssuerKeys] = trio.lowlevel.RunVar("trio_vmcp_issuer_keys")

    def __repr__(self) -> str:
        return f"<JwtAuthenticator of {self._rules.issuer!r} for {self._rules.audience!r}>"

    @property
    def resource_metadata(self) -> Mapping[str, Any] | None:
        """What clients are told of the front (RFC 9728 §2); None: the audience or the issuer is no url."""
        issuer, audience = self._rules.issuer, self._rules.audience
        if not is_identifier(audience) or not is_identifier(issuer):
            return None
        return {"resource": audience, "authorization_servers": [issuer], "bearer_methods_supported": ["header"]}

    async def authenticate(self, headers: Mapping[str, str]) -> Identity:
        """The principal of a request by its header `authorization`.

        Raises:
            Unauthenticated: There is no token (challenge `Bearer`), or it is no good (`error="invalid_token"`, with a
                description: RFC 6750 §3). No text of the token is in the error.
            AuthenticatorUnavailable: The keys were never fetched, and cannot be now.
        """
        token = bearer_token(headers)
        digest = hashlib.sha256(token.encode()).digest()
        header = None if digest in self._verified else read_header(token, self._algorithms)
        issuer_keys = self._issuer_keys()
        before = issuer_keys.known
        keys = await issuer_keys.current()
        identity = self._verified.find(digest, keys, self._clock())
        if identity is not None:
            return identity
        header = header or read_header(token, self._algorithms)
        fitting = keys.fitting(*header)
        if not fitting and keys is before:  # else they were fetched just now
            await issuer_keys.look_again()
            keys = issuer_keys.known or keys
            fitting = keys.fitting(*header)
        verified = self._rules.verify(token, header.algorithm, fitting, self._clock())
        self._verified.keep(digest, keys, verified)
        return verified.identity

    def _issuer_keys(self) -> IssuerKeys:
        try:
            return self._state.get()
        except LookupError:
            self._state.set(IssuerKeys(self._fetch, self._first))
            return self._state.get()


@attrs.define(eq=False)
class _VerifiedTokens:
    """Tokens that were verified, by a digest of the whole token, until they expire or other keys are in use."""

    _kept: dict[bytes, tuple[KeySet, Verified]] = attrs.field(factory=dict, init=False, repr=False)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._kept

    def find(self, digest: bytes, keys: KeySet, now: float) -> Identity | None:
        kept = self._kept.pop(digest, None)
        if kept is None or kept[0] is not keys or kept[1].expires_at <= now:
            return None
        self._kept[digest] = kept  # the last one now
        return kept[1].identity

    def keep(self, digest: bytes, keys: KeySet, verified: Verified) -> None:
        if len(self._kept) >= MOST_VERIFIED:
            del self._kept[next(iter(self._kept))]
        self._kept[digest] = (keys, verified)


def _checked(algorithms: Sequence[str]) -> tuple[str, ...]:
    if isinstance(algorithms, str) or not algorithms:
        raise ValueError("algorithms is not several names")
    for name in algorithms:
        if name not in ALGORITHMS:
            raise ValueError(f"algorithms has {name!r}, which is none of {', '.join(ALGORITHMS)}")
    return tuple(algorithms)


def _given(jwks: str | Mapping[str, Any], algorithms: Sequence[str]) -> tuple[KeySet, Callable[[], Awaitable[Fetched]]]:
    """The keys of a file or set, and what fetches them again."""
    if isinstance(jwks, Mapping):
        try:
            keys = read_key_set(jwks, algorithms)
        except ValueError as error:
            raise ValueError(f"jwks is no key set: {error}") from None
        fetch: Callable[[], Awaitable[Fetched]] = partial(_never_changes, keys)
    elif isinstance(jwks, str):
        file = KeyFile(jwks, algorithms)
        try:
            keys, fetch = file.read(), file.fetch
        except KeysUnavailable as error:
            raise ValueError(str(error)) from None
    else:
        raise ValueError(f"jwks is {type(jwks).__name__}, neither a str nor a mapping")
    if not keys.keys:
        raise ValueError(f"jwks has no key for any of {', '.join(algorithms)}")
    return keys, fetch


async def _never_changes(keys: KeySet) -> Fetched:
    return Fetched(keys, math.inf)
