"""Credentials that are headers, for `open_session_factory(auth=…)`: each class is an `OutgoingAuth`.

Secrets are in no repr, no log and no error.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from types import MappingProxyType
from typing import TypeAlias

import attrs
import httpx

from trio_vmcp._header_rules import header_name_problem, header_value_problem
from trio_vmcp.connector import ContextualAuth, OutgoingAuth
from trio_vmcp.errors import BackendUnauthorized
from trio_vmcp.identity import Identity
from trio_vmcp.models import Backend

__all__ = ["BearerAuth", "HeaderAuth", "PerBackend", "Secret"]

NO_CREDENTIALS = b""

Secret: TypeAlias = str | Callable[[Backend, Identity | None], str | None]
"""A text, or a function that returns one for each request; None: send nothing."""


def _read_only_secrets(mapping: Mapping[str, Secret]) -> Mapping[str, Secret]:
    return MappingProxyType(dict(mapping))


def _read_only_auths(mapping: Mapping[str, OutgoingAuth]) -> Mapping[str, OutgoingAuth]:
    return MappingProxyType(dict(mapping))


def _names_only(mapping: Mapping[str, object]) -> str:
    return "{" + ", ".join(f"{name!r}: …" for name in mapping) + "}"


def _given(secret: Secret, backend: Backend, identity: Identity | None) -> str | None:
    return secret(backend, identity) if callable(secret) else secret


@attrs.frozen(eq=False)
class PerBackend:
    """Credentials by backend. A backend that is not named gets none: it could use a token that is for another server.

    Attributes:
        by_id: Backend id → its credentials.
    """

    by_id: Mapping[str, OutgoingAuth] = attrs.field(converter=_read_only_auths, repr=_names_only)

    def __call__(self, backend: Backend, identity: Identity | None) -> httpx.Auth | None:
        auth = self.by_id.get(backend.id)
        return None if auth is None else auth(backend, identity)

    def authorization_context(self, backend: Backend, identity: Identity | None) -> bytes | None:
        auth = self.by_id.get(backend.id)
        if type(self) is not PerBackend:  # a subclass may choose in another way
            return None
        if auth is None:
            return NO_CREDENTIALS
        return auth.authorization_context(backend, identity) if isinstance(auth, ContextualAuth) else None


@attrs.frozen(eq=False)
class HeaderAuth:
    """Headers for every request; they replace headers of the same name in `Backend.headers`.

    Attributes:
        headers: Name → value.

    Raises:
        ValueError: Names the header: it belongs to the protocol (`Mcp-Session-Id`) or the connection (`Connection`), or
            HTTP cannot carry its value. If a function returns such a value, the call raises `BackendUnauthorized`.
    """

    headers: Mapping[str, Secret] = attrs.field(converter=_read_only_secrets, repr=_names_only)

    def __attrs_post_init__(self) -> None:
        seen: set[str] = set()
        for name, value in self.headers.items():
            problem = header_name_problem(name)
            if problem is None and name.lower() in seen:
                problem = "is there twice, upper and lower case being the same"
            if problem is None and not callable(value):
                problem = header_value_problem(value)
            if problem is not None:
                raise ValueError(f"header {name!r} {problem}")
            seen.add(name.lower())

    def __call__(self, backend: Backend, identity: Identity | None) -> httpx.Auth | None:
        pairs: list[tuple[str, str]] = []
        for name, secret in self.headers.items():
            value = _given(secret, backend, identity)
            if value is None:
                continue
            if (problem := header_value_problem(value)) is not None:
                raise BackendUnauthorized(backend.id, f"cannot be asked: header {name!r} {problem}")
            pairs.append((name, value))
        return _Headers(pairs) if pairs else None

    def authorization_context(self, backend: Backend, identity: Identity | None) -> bytes | None:
        return _context(self(backend, identity))


@attrs.frozen(eq=False)
class BearerAuth:
    """`Authorization: Bearer …` for every request (RFC 6750 §2.1).

    Attributes:
        token: Visible ASCII. A function may also return the empty string, which `Identity.token` is by default: like
            None, it sends nothing.

    Raises:
        ValueError: A token that is empty or not visible ASCII. If a function returns one that is not visible ASCII, the
            call raises `BackendUnauthorized`.
    """

    token: Secret = attrs.field(repr=False)

    def __attrs_post_init__(self) -> None:
        if not callable(self.token) and (problem := _token_problem(self.token)) is not None:
            raise ValueError(f"bearer token {problem}")

    def __call__(self, backend: Backend, identity: Identity | None) -> httpx.Auth | None:
        token = _given(self.token, backend, identity)
        if token is None or token == "":
            return None
        if (problem := _token_problem(token)) is not None:
            raise BackendUnauthorized(backend.id, f"cannot be asked: its bearer token {problem}")
        return _Headers([("Authorization", f"Bearer {token}")])

    def authorization_context(self, backend: Backend, identity: Identity | None) -> bytes | None:
        return _context(self(backend, identity))


def _token_problem(token: object) -> str | None:
    if not isinstance(token, str):
        return f"is {type(token).__name__}, not str"
    if token and all("\x21" <= char <= "\x7e" for char in token):
        return None
    return "is not visible ASCII" if token else "is empty"


def _context(given: httpx.Auth | None) -> bytes | None:
    if given is None:
        return NO_CREDENTIALS
    return given.context() if type(given) is _Headers else None  # else: of a subclass of the user's


class _Headers(httpx.Auth):
    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = [(name.encode("ascii"), value.encode("latin-1")) for name, value in pairs]

    def context(self) -> bytes:
        # No header holds a line break.
        return b"".join(name + b":" + value + b"\n" for name, value in self._pairs)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        # As bytes, in Latin-1: httpx would write text in UTF-8.
        replaced = {name.lower() for name, _ in self._pairs}
        kept = [pair for pair in request.headers.raw if pair[0].lower() not in replaced]
        request.headers = httpx.Headers([*kept, *self._pairs])
        yield request
