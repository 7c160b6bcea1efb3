"""Tokens for this program itself: OAuth 2.0's client credentials grant (RFC 6749 §4.4), and its flow through httpx.

Secrets are in no repr, no log and no error.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from importlib import import_module
from typing import Literal
from urllib.parse import quote_plus

import attrs
import httpx
import trio

from trio_vmcp._http.origin import shown_origin
from trio_vmcp._http.user_agent import USER_AGENT
from trio_vmcp.auth._tokens import SharedToken, TokenRefusal
from trio_vmcp.errors import BackendUnauthorized, BackendUnavailable
from trio_vmcp.identity import Identity
from trio_vmcp.models import Backend, public_url

__all__ = ["ClientCredentials"]

_MOST_CACHED = 4096  # tokens of one ClientCredentials, one per resource; over it the oldest is discarded
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _public_url_repr(url: str) -> str:
    return repr(public_url(url))


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

    def authorization_context(self, backend: Backend, identity: Identity | None) -> bytes | None:
        given = self(backend, identity)
        return given.context() if type(given) is _ClientCredentialsFlow else None

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
        from trio_vmcp.auth._token_messages import token_request_body

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
            "User-Agent": USER_AGENT.decode(),
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

    def context(self) -> bytes | None:
        token = self._shared.current()
        return None if token is None else token.encode("utf-8", "surrogatepass")  # None: one is still to be fetched

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:  # noqa: ASYNC900  # httpx's interface
        from trio_vmcp.auth._token_messages import read_token_response

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
        import_module("trio_vmcp.auth._token_messages")
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "oauthlib":
            raise
        raise ImportError("ClientCredentials needs oauthlib: pip install 'trio-vmcp[oauth]'", name="oauthlib") from None
