"""One access token, shared by all requests that need it: fetched once, kept until shortly before it expires, discarded
when a backend refuses it.

The module knows neither HTTP nor OAuth. Times are on Trio's clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

__all__ = ["SharedToken", "TokenGrant", "TokenRefusal"]

# A token is not used in the last `_MARGIN` s (or `_MARGIN_SHARE` of its lifetime, if that is less): a request takes a
# while to arrive, and clocks differ.
_MARGIN = 30.0
_MARGIN_SHARE = 0.1
_REFUSAL_INTERVAL = 10.0  # s; a backend that refuses two tokens within this time does not get a third one


@attrs.frozen
class TokenGrant:
    """A token.

    Attributes:
        lifetime: s; None: the issuer did not say.
    """

    token: str = attrs.field(repr=False)
    lifetime: float | None


@attrs.frozen
class TokenRefusal:
    """The issuer gave no token.

    Attributes:
        detail: Completes the sentence "https://issuer.example …", and quotes nothing that may be secret.
        is_temporary: A later request may succeed.
    """

    detail: str
    is_temporary: bool


@attrs.define(eq=False)
class TokenRequest:
    """One request for a token.

    Attributes:
        done: Set when the request has ended.
        outcome: None after `done`: the task of the request was cancelled, and another one has to ask.
    """

    done: trio.Event = attrs.field(factory=trio.Event)
    outcome: TokenGrant | TokenRefusal | None = None


@attrs.define(eq=False)
class SharedToken:
    """A token, or the request for one that is in flight.

    Attributes:
        pending: The request in flight; None: there is none.
    """

    pending: TokenRequest | None = attrs.field(default=None, init=False)
    _token: str | None = attrs.field(default=None, init=False, repr=False)
    _good_until: float = attrs.field(default=-math.inf, init=False)
    _refused_at: dict[str, float] = attrs.field(factory=dict, init=False)  # by backend id; removed when it accepts one

    def current(self) -> str | None:
        """The token, unless it has expired or is about to."""
        return self._token if trio.current_time() < self._good_until else None

    @contextmanager
    def begin_request(self) -> Iterator[TokenRequest]:
        """Around the one request, in the flow of an `httpx.Auth`. When the block is left, however that happens, `done`
        is set: the tasks that wait for the request go on.
        """
        request = self.pending = TokenRequest()
        asked_at = trio.current_time()
        try:
            yield request
        except GeneratorExit:
            # The sender closes the flow while its request is out. If the request failed, all tasks that wait for the
            # request fail, too: else each would repeat it, one after the other. If the task was cancelled, the next
            # task asks.
            if trio.current_effective_deadline() > -math.inf:
                request.outcome = TokenRefusal("could not be asked for a token", is_temporary=True)
            raise
        finally:
            self.pending = None
            if isinstance(request.outcome, TokenGrant):
                self._keep_token(request.outcome, asked_at)
            request.done.set()

    def _keep_token(self, grant: TokenGrant, asked_at: float) -> None:
        lifetime = math.inf if grant.lifetime is None else grant.lifetime
        self._token = grant.token
        self._good_until = asked_at + lifetime - min(_MARGIN, lifetime * _MARGIN_SHARE)

    def note_accepted(self, backend_id: str) -> None:
        """This backend accepted a token."""
        self._refused_at.pop(backend_id, None)

    def discard_refused(self, token: str, backend_id: str) -> None:
        """This backend refused this token (HTTP 401). Discard the token, unless it was replaced meanwhile.

        Not twice within `_REFUSAL_INTERVAL` for one backend: a backend that refuses every token must not cause a token
        request for each call.
        """
        now = trio.current_time()
        if token != self._token or now - self._refused_at.get(backend_id, -math.inf) < _REFUSAL_INTERVAL:
            return
        self._refused_at[backend_id] = now
        self._token, self._good_until = None, -math.inf
