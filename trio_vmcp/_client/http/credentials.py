"""The credentials of one backend's requests: asked of `OutgoingAuth`, run as an `httpx.Auth`, asked again after a 401.

With a 401 (RFC 9110 §15.5.2) the request was not applied, so it can be sent once more, a `tools/call`, too.
"""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeAlias, TypeVar

import attrs
import httpx

from trio_vmcp._http.origin import shown_origin
from trio_vmcp.connector import OutgoingAuth
from trio_vmcp.errors import BackendError, BackendUnauthorized
from trio_vmcp.identity import Identity
from trio_vmcp.models import Backend

__all__ = ["Body", "Credentials", "Renewals"]

_UNAUTHORIZED = 401


class ClosableReply(Protocol):
    """A reply that holds a connection until it is closed."""

    @property
    def status(self) -> int: ...

    async def aclose(self) -> None: ...


class Body(httpx.AsyncByteStream):
    """A request's body. `written`: some of it may have been sent."""

    written: bool


R = TypeVar("R", bound=ClosableReply)
B = TypeVar("B", bound=Body)
Signed: TypeAlias = tuple[httpx.URL, httpx.Headers]


@attrs.define(eq=False)
class _Renewals:
    """Credentials that were asked for again while requests of one identity are in flight.

    Attributes:
        count: How often `auth` was asked again for one of these requests.
        newest: The answer to the last of these questions. Requests that were signed before it share it: a thousand 401s
            at once ask `auth` once.
    """

    count: int = 0
    newest: httpx.Auth | None = None


# Of one connection, over all its links, by identity and token. An entry lives as long as a request in flight refers to
# it.
Renewals: TypeAlias = weakref.WeakValueDictionary[tuple[Identity | None, str], _Renewals]


@attrs.define(eq=False)
class Credentials(Generic[R, B]):
    """Sends requests with the credentials that `auth` gives for them.

    Attributes:
        transmit: Sends one request, given with the body that it is sent for: an `httpx.Auth` may send other requests on
            the way, which mark the same body.
        read: Returns the reply with its body read.
    """

    _backend: Backend
    _auth: OutgoingAuth = attrs.field(alias="auth", repr=False)
    _transmit: Callable[[httpx.Request, B], Awaitable[tuple[R, httpx.Response]]] = attrs.field(
        alias="transmit", kw_only=True, repr=False
    )
    _read: Callable[[R, httpx.Response], Awaitable[tuple[R, httpx.Response]]] = attrs.field(
        alias="read", kw_only=True, repr=False
    )
    _renewals: Renewals = attrs.field(alias="renewals", kw_only=True, repr=False)

    async def send(self, request: httpx.Request, body: B, identity: Identity | None) -> R:
        """Send with the credentials of `identity`; after a 401 once more, if `auth` then gives others.

        Raises:
            BackendUnauthorized: `auth` failed or sent nothing.
            BackendError: From `transmit` and `read`; for a request that fetches credentials it names their origin.
        """
        # With the token: `Identity.__eq__` ignores it, and the same principal may come with another one.
        key = (identity, identity.token if identity else "")
        renewals = self._renewals.get(key) or self._renewals.setdefault(key, _Renewals())
        asked_after = renewals.count
        unsigned = list(request.headers.raw)  # an Auth writes into the request
        sent: list[Signed] = []
        auth = self._ask_auth(identity)
        reply = await self._run_auth(httpx.Auth() if auth is None else auth, request, body, sent, None)
        if reply.status != _UNAUTHORIZED:
            return reply
        try:
            renewed = renewals.newest if renewals.count > asked_after else None
            if renewed is None:
                renewed = self._ask_auth(identity)
                renewals.count, renewals.newest = renewals.count + 1, renewed
        except BaseException:
            await reply.aclose()
            raise
        if renewed is None:
            return reply
        again = httpx.Request(request.method, request.url, headers=unsigned, stream=body, extensions=request.extensions)
        last = await self._run_auth(renewed, again, body, sent, reply)
        if last is reply and renewals.newest is renewed:
            renewals.newest = None  # the same credentials as before: let the next 401 ask `auth` again
        return last

    def _ask_auth(self, identity: Identity | None) -> httpx.Auth | None:
        with self._errors():
            return self._auth(self._backend, identity)

    async def _run_auth(
        self, auth: httpx.Auth, request: httpx.Request, body: B, sent: list[Signed], refused: R | None
    ) -> R:
        """Run one `httpx.Auth`. Source of the loop: httpx, `Auth.async_auth_flow`.

        Args:
            sent: URL and headers of every attempt so far; each attempt is added.
            refused: The 401 to the attempt before, if there was one. Returned if `auth` signs in the same way again,
                else closed.
        """
        target = (request.method, request.url)
        try:
            with self._errors():
                flow = auth.async_auth_flow(request)
            try:
                if auth.requires_request_body:
                    await request.aread()  # replaces the stream: from here on a copy of the body is sent
                    body.written = False
                try:
                    with self._errors():
                        wanted = await anext(flow)
                except StopAsyncIteration:
                    raise BackendUnauthorized(
                        self._backend.id, "cannot be asked: its credentials sent nothing"
                    ) from None
                while True:
                    ours = wanted.stream is body or (wanted.method, wanted.url) == target
                    if ours:
                        signed = (wanted.url, httpx.Headers(wanted.headers))
                        if refused is not None:
                            reply, refused = refused, None
                            if signed in sent:
                                return reply
                            await reply.aclose()
                        sent.append(signed)
                        if wanted.stream is not body:
                            body.written = True  # a copy of the body leaves, which cannot set it
                    reply, shown = await self._fetch(auth, wanted, body, ours=ours)
                    if ours and reply.status == _UNAUTHORIZED:
                        body.written = False
                    try:
                        with self._errors():
                            wanted = await flow.asend(shown)
                    except StopAsyncIteration:
                        return reply
                    except BaseException:
                        await reply.aclose()
                        raise
                    await reply.aclose()
            finally:
                await flow.aclose()
        finally:
            if refused is not None:
                await refused.aclose()

    async def _fetch(self, auth: httpx.Auth, wanted: httpx.Request, body: B, *, ours: bool) -> tuple[R, httpx.Response]:
        """Send one request of an `httpx.Auth`. Returns the reply, and the response that the Auth is shown."""
        try:
            reply, head = await self._transmit(wanted, body)
            if not auth.requires_response_body:
                return reply, head
            if ours and head.is_success:
                # The answer to the call may be a stream, so its body is not read ahead: the Auth sees the head only.
                return reply, httpx.Response(reply.status, headers=head.headers, request=wanted)
            try:
                return await self._read(reply, head)
            except BaseException:
                await reply.aclose()
                raise
        except BackendError as error:
            if not ours:
                error.in_credentials = True
                error.detail = f"cannot be asked: {shown_origin(wanted.url)} {error.detail}"
                error.may_have_executed = body.written
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except StopAsyncIteration:
            raise
        except BackendError as error:
            error.in_credentials = True
            raise
        except Exception as exc:
            raise BackendUnauthorized(
                self._backend.id, f"cannot be asked: its credentials failed: {type(exc).__name__}"
            ) from exc
