"""The `auth` of a factory, as an application would write it: a token is kept until a backend refuses it.

Each call of `auth` has a number. A header on every request tells for which call of `auth` it got its credentials.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextvars import ContextVar

import attrs
import httpx
import trio

from simulation.identities import principal_of
from simulation.recording_connector import NumberedBackend
from simulation.tokens import TokenGate, written
from simulation.trace import AuthCalled, Event, Principal, RequestSigned, Token, TokenFetched
from trio_vmcp import Backend, Identity

__all__ = ["RequestStamps", "SimulatedAuth", "read_stamp"]

STAMP = "x-simulation"
UNAUTHORIZED = 401

_asked: ContextVar[int | None] = ContextVar("asked", default=None)  # the call of `auth` for this task's next request
_refused: ContextVar[int | None] = ContextVar("refused", default=None)  # that of its last request, if it was refused
_signed: ContextVar[bool] = ContextVar("signed", default=False)  # a flow will see the response
_again: ContextVar[bool] = ContextVar("again", default=False)  # the request was sent a second time


class NoToken(Exception):
    """No new token is to be had."""


@attrs.define(eq=False)
class SimulatedAuth:
    """An `OutgoingAuth`.

    Attributes:
        gates: By backend id; a backend without one gets no credentials.
        numbers: Numbers for the calls of `auth`, shared by all instances.
    """

    gates: Mapping[str, TokenGate]
    note: Callable[[Event], None]
    numbers: Iterator[int]
    held: dict[tuple[str, Principal], Token] = attrs.field(factory=dict, init=False)

    def __call__(self, backend: Backend, identity: Identity | None) -> httpx.Auth | None:
        assert isinstance(backend, NumberedBackend)
        gate, principal, number = self.gates.get(backend.id), principal_of(identity), next(self.numbers)
        gives = gate is not None and not (gate.has_none and (backend.id, principal) not in self.held)
        after = _refused.get()
        _refused.set(None)
        _asked.set(number)
        _signed.set(False)
        self.note(
            AuthCalled(
                at=trio.current_time(),
                number=number,
                attempt=backend.attempt,
                backend_id=backend.id,
                principal=principal,
                gives=gives,
                after=after,
            )
        )
        return _Flow(self, gate, principal, number) if gate is not None and gives else None


class _Flow(httpx.Auth):
    """Takes the token that is held when it runs, so one object may serve several requests."""

    def __init__(self, wallet: SimulatedAuth, gate: TokenGate, principal: Principal, number: int) -> None:
        assert gate.spec.guard is not None
        self.requires_response_body = gate.spec.guard.reads_refusals
        self._wallet = wallet
        self._gate = gate
        self._seconds = gate.spec.guard.seconds
        self._key = gate.spec.id, principal
        self._number = number

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:  # noqa: ASYNC900  # httpx's interface
        held, note = self._wallet.held, self._wallet.note
        _refused.set(None)  # these credentials were shared after the refusal of another request
        token = held.get(self._key) or await self._fetch()
        request.headers["Authorization"] = f"Bearer {written(token)}"
        _asked.set(self._number)
        _signed.set(True)
        note(RequestSigned(at=trio.current_time(), auth_call=self._number, token=token))
        response = yield request  # noqa: ASYNC119  # the library closes this generator
        if response.status_code == UNAUTHORIZED:
            if held.get(self._key) == token:
                del held[self._key]
            _refused.set(None if _again.get() else self._number)

    async def _fetch(self) -> Token:
        since, token = trio.current_time(), None
        try:
            await trio.sleep(self._seconds)
            token = self._gate.issue(self._key[1])
        finally:
            self._wallet.note(TokenFetched(at=trio.current_time(), since=since, auth_call=self._number, token=token))
        if token is None:
            raise NoToken
        self._wallet.held[self._key] = token
        return token


@attrs.define(eq=False)
class RequestStamps:
    """Numbers requests; a request that is sent again keeps its number."""

    _numbers: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False)
    _known: weakref.WeakKeyDictionary[object, int] = attrs.field(factory=weakref.WeakKeyDictionary, init=False)

    def stamp(self, request: httpx.Request) -> tuple[int | None, int]:
        """The call of `auth` for this request, if there was one, and the request's own number."""
        auth_call, number = _asked.get(), self._known.get(request.stream)
        _asked.set(None)
        _again.set(number is not None)
        if number is None:
            number = self._known[request.stream] = next(self._numbers)
        request.headers[STAMP] = f"{auth_call or ''}/{number}"
        return auth_call, number

    def note_answer(self, auth_call: int | None, status: int) -> None:
        """Note a 401 to a request without credentials: no flow sees that response."""
        _refused.set(auth_call if status == UNAUTHORIZED and not _again.get() and not _signed.get() else None)


def read_stamp(headers: httpx.Headers) -> tuple[int | None, int | None]:
    """The call of `auth` and the request's number."""
    auth_call, _, number = headers.get(STAMP, "").partition("/")
    return int(auth_call) if auth_call else None, int(number) if number else None
