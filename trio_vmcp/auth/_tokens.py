"""One access token for all who need it: fetched once for all who wait, kept while it is good, dropped when refused.

How it is fetched is not known here. Times are on Trio's clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import attrs
import trio

__all__ = ["Granted", "Refused", "SharedToken"]

_MARGIN = 30.0  # s before its end that a token is not used any more: it takes a while on its way, and clocks differ …
_MARGIN_SHARE = 0.1  # … or of its lifetime, if that is less
_PATIENCE = 10.0  # s, in which a backend that refused a token and then its successor gets no third one


@attrs.frozen
class Granted:
    """A token.

    Attributes:
        lifetime: s; None: not told.
    """

    token: str = attrs.field(repr=False)
    lifetime: float | None


@attrs.frozen
class Refused:
    """There is none.

    Attributes:
        detail: Completes the sentence "https://issuer.example …", and quotes nothing that may be secret.
        is_temporary: Asking again later may help.
    """

    detail: str
    is_temporary: bool


Outcome: TypeAlias = Granted | Refused


@attrs.define(eq=False)
class Flight:
    """One request for a token.

    Attributes:
        outcome: None when it is done: it was given up, and somebody else may have to ask.
    """

    done: trio.Event = attrs.field(factory=trio.Event)
    outcome: Outcome | None = None


@attrs.define(eq=False)
class SharedToken:
    """A token, or the request for it that is on its way."""

    flight: Flight | None = attrs.field(default=None, init=False)
    _token: str | None = attrs.field(default=None, init=False, repr=False)
    _good_until: float = attrs.field(default=-math.inf, init=False)
    _refused_at: dict[str, float] = attrs.field(factory=dict, init=False)  # by backend; until it accepts one

    def current(self) -> str | None:
        """The token, if it is good for a while."""
        return self._token if trio.current_time() < self._good_until else None

    @contextmanager
    def fly(self) -> Iterator[Flight]:
        """Around the one request, in an `httpx.Auth`'s flow: whatever becomes of it, nobody waits for it any longer."""
        flight = self.flight = Flight()
        asked_at = trio.current_time()
        try:
            yield flight
        except GeneratorExit:
            # The flow is closed at its request. If that failed, it would fail for the others, one after the other; if
            # its task was cancelled, the turn passes on.
            if trio.current_effective_deadline() > -math.inf:
                flight.outcome = Refused("could not be asked for a token", is_temporary=True)
            raise
        finally:
            self.flight = None
            if isinstance(flight.outcome, Granted):
                self._keep(flight.outcome, asked_at)
            flight.done.set()

    def _keep(self, granted: Granted, asked_at: float) -> None:
        lifetime = math.inf if granted.lifetime is None else granted.lifetime
        self._token = granted.token
        self._good_until = asked_at + lifetime - min(_MARGIN, lifetime * _MARGIN_SHARE)

    def accept(self, backend_id: str) -> None:
        """This backend took a token."""
        self._refused_at.pop(backend_id, None)

    def refuse(self, token: str, backend_id: str) -> None:
        """This backend did not take this token. Drops it, if it was not replaced meanwhile; but a backend that refuses
        whatever it is given does not make us fetch a token for every request.
        """
        now = trio.current_time()
        if token != self._token or now - self._refused_at.get(backend_id, -math.inf) < _PATIENCE:
            return
        self._refused_at[backend_id] = now
        self._token, self._good_until = None, -math.inf
