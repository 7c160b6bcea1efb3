"""Ready-made credentials for `open_session_factory(auth=…)`: each is an `OutgoingAuth`.

Secrets are in no repr, no log and no error.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Literal, TypeAlias
from urllib.parse import quote_plus

import attrs
import httpx
import trio

from trio_vmcp._http.origin import shown_origin
from trio_vmcp._protocol.headers import header_name_problem, header_value_problem
from trio_vmcp.auth._tokens import SharedToken, TokenRefusal
from trio_vmcp.connector import OutgoingAuth
from trio_vmcp.errors import BackendUnauthorized, BackendUnavailable
from trio_vmcp.identity import Identity
from trio_vmcp.models import Backend, public_url

__all__ = ["BearerAuth", "ClientCredentials", "HeaderAuth", "PerBackend", "Secret"]

Secret: TypeAlias = str | Callable[[Backend, Identity | None], str | None]
"""A text, or a function that returns one for each request; None: send nothing."""

_MOST_CACHED = 4096  # tokens of one ClientCredentials, one per resource; over it the oldest is discarded
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _read_only_secrets(mapping: Mapping[str, Secret]) -> Mapping[str, Secret]:
    return MappingProxyType(dict(mapping))


def _read_only_auths(mapping: Mapping[str, OutgoingAuth]) -> Mapping[str, OutgoingAuth]:
    return MappingProxyType(dict(mapping))


def _names_only(mapping: Mapping[str, object]) -> str:
    return "{" + ", ".join(f"{name!r}: …" for name in mapping) + "}"


def _public_url_repr(url: str) -> str:
    return repr(public_url(url))


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


def _token_problem(token: object) -> str | None:
    if not isinstance(token, str):
        return f"is {type(token).__name__}, not str"
    if token and all("\x21" <= char <= "\x7e" for char in token):
        return None
    return "is not visible ASCII" if token else "is empty"


class _Headers(httpx.Auth):
    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = [(name.encode("ascii"), value.encode("latin-1")) for name, value in pairs]

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        # As bytes, in Latin-1: httpx would write text in UTF-8.
        replaced = {name.lower() for name, _ in self._pairs}
        kept = [pair for pair in request.headers.raw if pair[0].lower() not in replaced]
        request.headers = httpx.Headers([*kept, *self._pairs])
        yield request


def _own_url(backend: Backend) -> str:
    # Without userinfo, query and fragment: RFC 8707 §2; MCP 2025-11-25, basic/authorization, "Canonical Server URI".
    return public_url(backend.url)


@attrs.frozen(eq=False)
class ClientCredentials:
    """Tokens for this program itself, the same for every caller: OAuth 2.0's client credentials grant (RFC 6749 §4.4).
    Needs the extra `oauth`.

    When a request needs a token, one is fetched. It is kept until shortly before it expires, and discarded when a
    backend refuses it (HTTP 401). All requests that wait for a token share one fetch. The fetch uses the transport of
    the backend that the token is for, within the deadline of the call that needs it.

    Attributes:
        token_url: The token endpoint, https:// or on this machine.
        scope: Blank-separated; empty: the server's default.
        audience: Sent as `audience`, which some servers want.
        resource: The server that the token is for (RFC 8707), or a function that returns it. By default the backend's
            own url, as MCP demands, so that no backend can use its token at another server. None: not sent, and one
            token for all backends.
        secret_in: "header" sends the secret as HTTP Basic, "body" in the form (RFC 6749 §2.3.1).
        allow_http: `token_url` may be http:// on another machine, so that the secret can be read on the way.

    Raises:
        ImportError: `oauthlib` is not installed.
        ValueError: Names the argument.
    """

    token_url: str = attrs.field(repr=_public_url_repr)
    client_id: str
    client_secret: str = attrs.field(repr=False)
    scope: str = attrs.field(default="", kw_only=True)
    audience: str | None = attrs.field(default=None, kw_only=True)
    resource: str | Callable[[Backend], str | None] | None = attrs.field(default=_own_url, kw_only=True)
    secret_in: Literal["header", "body"] = attrs.field(default="header", kw_only=True)
    allow_http: bool = attrs.field(default=False, kw_only=True)
    # By run: times on Trio's clock and events are of no use in another run.
    _tokens: trio.lowlevel.RunVar[dict[str | None, SharedToken]] = attrs.field(
        factory=lambda: trio.lowlevel.RunVar("trio_vmcp_tokens"), init=False, repr=False
    )

    def __attrs_post_init__(self) -> None:
        _need_oauthlib()
        shown = public_url(self.token_url)
        try:
            url = httpx.URL(self.token_url)
        except (httpx.InvalidURL, UnicodeError):  # from None: the error quotes the url, which may hold a secret
            raise ValueError(f"token_url {shown!r} is no URL") from None
        if url.scheme not in ("http", "https") or not url.host or url.userinfo:
            raise ValueError(f"token_url {shown!r} is not http:// or https:// with a host and without userinfo")
        if url.scheme == "http" and url.host not in _LOOPBACK and not self.allow_http:
            raise ValueError(f"token_url {shown!r} is not https://, so the secret could be read (allow_http)")
        if self.secret_in not in ("header", "body"):
            raise ValueError(f"secret_in {self.secret_in!r} is neither 'header' nor 'body'")
        for name in ("client_id", "client_secret"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty")

    def __call__(self, backend: Backend, identity: Identity | None) -> httpx.Auth | None:
        resource = self.resource(backend) if callable(self.resource) else self.resource
        return _ClientCredentialsFlow(self, backend.id, resource, self._shared(resource))

    def _shared(self, resource: str | None) -> SharedToken:
        try:
            tokens = self._tokens.get()
        except LookupError:
            tokens = {}
            self._tokens.set(tokens)
        if resource not in tokens:
            if len(tokens) >= _MOST_CACHED:
                del tokens[next(iter(tokens))]
            tokens[resource] = SharedToken()
        return tokens[resource]

    def build_request(self, resource: str | None) -> httpx.Request:
        """The request for a token."""
        from trio_vmcp.auth._oauth import token_request_body

        in_body = self.secret_in == "body"
        body = token_request_body(
            self.client_id,
            self.client_secret if in_body else None,
            scope=self.scope,
            audience=self.audience,
            resource=resource,
        )
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        request = httpx.Request("POST", self.token_url, headers=headers, content=body)
        if not in_body:  # RFC 6749 §2.3.1: encoded as in a form, before Basic encodes it again
            basic = httpx.BasicAuth(quote_plus(self.client_id), quote_plus(self.client_secret))
            request = next(basic.sync_auth_flow(request))
        return request


class _ClientCredentialsFlow(httpx.Auth):
    requires_response_body = True

    def __init__(
        self, credentials: ClientCredentials, backend_id: str, resource: str | None, shared: SharedToken
    ) -> None:
        self._credentials = credentials
        self._backend_id = backend_id
        self._resource = resource
        self._shared = shared

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:  # noqa: ASYNC900  # httpx's interface
        from trio_vmcp.auth._oauth import read_token_response

        token = self._shared.current()
        while token is None:
            pending = self._shared.pending
            if pending is not None:
                await pending.done.wait()
            else:
                with self._shared.begin_request() as pending:
                    # No nursery or cancel scope is open here, and the sender closes this generator.
                    response = yield self._credentials.build_request(self._resource)  # noqa: ASYNC119
                    pending.outcome = read_token_response(response.status_code, response.content)
            if isinstance(pending.outcome, TokenRefusal):
                raise self._token_error(pending.outcome)
            if pending.outcome is not None:  # else the task that asked was cancelled: ask again
                token = pending.outcome.token
        request.headers["Authorization"] = f"Bearer {token}"
        response = yield request
        if response.status_code == httpx.codes.UNAUTHORIZED:
            self._shared.discard_refused(token, self._backend_id)  # the next flow fetches another one
        elif response.is_success:
            self._shared.note_accepted(self._backend_id)

    def _token_error(self, refusal: TokenRefusal) -> BackendUnauthorized | BackendUnavailable:
        kind = BackendUnavailable if refusal.is_temporary else BackendUnauthorized
        issuer = shown_origin(httpx.URL(self._credentials.token_url))
        return kind(self._backend_id, f"cannot be asked: {issuer} {refusal.detail}")


def _need_oauthlib() -> None:
    try:
        import_module("trio_vmcp.auth._oauth")
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "oauthlib":
            raise
        raise ImportError("ClientCredentials needs oauthlib: pip install 'trio-vmcp[oauth]'", name="oauthlib") from None
