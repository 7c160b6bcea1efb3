"""The credentials of one backend's requests: asked of `OutgoingAuth`, run as an `httpx.Auth`, asked again after a 401.

A 401 proves that the request did not run, so it can be sent once more, a `tools/call` too.
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

__all__ = ["Body", "Credentials"]

_UNAUTHORIZED = 401


class Held(Protocol):
    """A reply that somebody has to let go of."""

    @property
    def status(self) -> int: ...

    async def aclose(self) -> None: ...


class Body(httpx.AsyncByteStream):
    """A request's body, and whether any of it may have left."""

    written: bool


R = TypeVar("R", bound=Held)
B = TypeVar("B", bound=Body)
Signed: TypeAlias = tuple[httpx.URL, httpx.Headers]


@attrs.define(eq=False)
class _InFlight:
    """The requests of one identity that are on their way.

    Attributes:
        renewals: How often `auth` was asked again for one of them.
        renewed: What it gave the last time; good for all whose credentials are older.
    """

    renewals: int = 0
    renewed: httpx.Auth | None = None


@attrs.define(eq=False)
class Credentials(Generic[R, B]):
    """Sends requests with what `auth` gives for them.

    Attributes:
        transmit: Sends one request; the body says whose it is.
        read: The same reply with its body read.
    """

    _backend: Backend
    _auth: OutgoingAuth = attrs.field(alias="auth", repr=False)
    _transmit: Callable[[httpx.Request, B], Awaitable[tuple[R, httpx.Response]]] = attrs.field(
        alias="transmit", kw_only=True, repr=False
    )
    _read: Callable[[R, httpx.Response], Awaitable[tuple[R, httpx.Response]]] = attrs.field(
        alias="read", kw_only=True, repr=False
    )
    # Held by the requests themselves.
    _in_flight: weakref.WeakValueDictionary[tuple[Identity | None, str], _InFlight] = attrs.field(
        factory=weakref.WeakValueDictionary, init=False, repr=False
    )

    async def send(self, request: httpx.Request, body: B, identity: Identity | None) -> R:
        """Send with the credentials of `identity`; after a 401 once more, if `auth` has others by now.

        Raises:
            BackendUnauthorized: There are no credentials to send.
            BackendError: From `transmit` and `read`; on the way to credentials it names the origin that was asked.
        """
        # Not the identity alone: the same principal may come with another token.
        key = (identity, identity.token if identity else "")
        others = self._in_flight.get(key) or self._in_flight.setdefault(key, _InFlight())
        asked_after = others.renewals
        unsigned = list(request.headers.raw)  # an Auth writes into the request
        sent: list[Signed] = []
        auth = self._ask(identity)
        reply = await self._run(httpx.Auth() if auth is None else auth, request, body, sent, None)
        if reply.status != _UNAUTHORIZED:
            return reply
        try:
            renewed = others.renewed if others.renewals > asked_after else None
            if renewed is None:
                renewed = self._ask(identity)
                others.renewals, others.renewed = others.renewals + 1, renewed
        except BaseException:
            await reply.aclose()
            raise
        if renewed is None:
            return reply
        again = httpx.Request(request.method, request.url, headers=unsigned, stream=body)
        last = await self._run(renewed, again, body, sent, reply)
        if last is reply and others.renewed is renewed:
            others.renewed = None  # the same as before: there may be others when the next one asks
        return last

    def _ask(self, identity: Identity | None) -> httpx.Auth | None:
        with self._errors():
            return self._auth(self._backend, identity)

    async def _run(self, auth: httpx.Auth, request: httpx.Request, body: B, sent: list[Signed], refused: R | None) -> R:
        """Run one `httpx.Auth`. Source of the loop: httpx, `Auth.async_auth_flow`.

        Args:
            sent: What was sent in this way so far; grows.
            refused: The reply to it: returned as it is if `auth` only has the same again, let go of otherwise.
        """
        target = (request.method, request.url)
        try:
            with self._errors():
                flow = auth.async_auth_flow(request)
            try:
                if auth.requires_request_body:
                    await request.aread()  # replaces the stream: from here on it is sent as a copy
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
                            body.written = True  # a copy, signed perhaps: nobody sees when it leaves
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
        """Send what an `httpx.Auth` wants sent. Returns the reply, and what of it the Auth is shown."""
        try:
            reply, head = await self._transmit(wanted, body)
            if not auth.requires_response_body:
                return reply, head
            if ours and head.is_success:
                # The answer itself, which may be a stream, is not read ahead: the flow sees its head.
                return reply, httpx.Response(reply.status, headers=head.headers, request=wanted)
            try:
                return await self._read(reply, head)
            except BaseException:
                await reply.aclose()
                raise
        except BackendError as error:
            if not ours:
                error.detail = f"cannot be asked: {shown_origin(wanted.url)} {error.detail}"
                error.may_have_executed = body.written
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (BackendError, StopAsyncIteration):
            raise
        except Exception as exc:
            raise BackendUnauthorized(
                self._backend.id, f"cannot be asked: its credentials failed: {type(exc).__name__}"
            ) from exc
