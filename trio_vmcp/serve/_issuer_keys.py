"""The keys of an issuer, fetched when they are needed: once for all requests that wait, and not for each token.

- A set is used for as long as its response says (`Cache-Control: max-age`, RFC 9111 §5.2.2.1), within limits. Then one
  request fetches the set again, while the others go on with the old one.
- A token with an unknown key makes one request look again, at most every `LOOK_INTERVAL` s, whatever the tokens are.
- While the issuer is away, the old keys stay in use.
- No task is left behind: the request that needs the keys fetches them, and if it is cancelled, the next one does.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Awaitable, Callable

import attrs
import trio

from trio_vmcp.serve._jwks import KeySet
from trio_vmcp.serve.authenticator import AuthenticatorUnavailable

__all__ = ["Fetched", "IssuerKeys", "KeysUnavailable", "lifetime_of"]

logger = logging.getLogger("trio_vmcp.serve")

LOOK_INTERVAL = 30.0  # s between looks for unknown keys, and between attempts while old keys are in use
FIRST_INTERVAL = 5.0  # s between attempts to fetch the first keys
LIFETIME = 300.0  # s, of a set without max-age in its response
LEAST_LIFETIME, MOST_LIFETIME = 60.0, 3600.0  # s; a key that was withdrawn is used for at most the second
# Fetches in a row that may be cancelled and begun anew at once. More, and requests that are cancelled on purpose would
# make the front ask the issuer without end.
MOST_CANCELLED = 3

_MAX_AGE = re.compile(r'(?:^|[,\s])max-age\s*=\s*"?(\d{1,9})(?!\d)', re.IGNORECASE)


class KeysUnavailable(Exception):
    """The keys cannot be fetched now. The text names where they are, and holds no secret."""


@attrs.frozen
class Fetched:
    """A key set as it arrived.

    Attributes:
        lifetime: s for which it is used without asking again.
    """

    keys: KeySet
    lifetime: float


def lifetime_of(cache_control: str) -> float:
    """s for which a key set is used, by the header of its response."""
    found = _MAX_AGE.search(cache_control)
    return LIFETIME if found is None else min(max(float(found[1]), LEAST_LIFETIME), MOST_LIFETIME)


@attrs.define(eq=False)
class IssuerKeys:
    """The keys of one issuer, within one run of Trio. Times are on its clock.

    Attributes:
        known: The keys in use; None: none were fetched yet.
    """

    _fetch: Callable[[], Awaitable[Fetched]]  # bounded in time; raises KeysUnavailable
    known: KeySet | None
    _due_at: float = attrs.field(default=-math.inf, init=False)  # fetch the set anew from this time on
    _look_at: float = attrs.field(default=-math.inf, init=False)  # look for an unknown key from this time on
    _turn: trio.Lock = attrs.field(factory=trio.Lock, init=False, repr=False)  # of the task that fetches
    _begun: int = attrs.field(default=0, init=False)  # fetches since the last one that ended
    _ended: int = attrs.field(default=0, init=False)  # fetches, whatever came of them
    _failure: str = attrs.field(default="", init=False)  # of the last fetch; empty: it succeeded

    async def current(self) -> KeySet:
        """The keys in use. Waits for a fetch if there are none, or if they are old and no other task fetches them.

        Raises:
            AuthenticatorUnavailable: There are none.
        """
        if trio.current_time() >= self._due_at and (self.known is None or not self._turn.locked()):
            await self._fetch_in_turn(looking=False)
        if self.known is None:
            wait = max(self._due_at - trio.current_time(), 1.0)
            raise AuthenticatorUnavailable(self._failure or "the keys of the issuer are not known", retry_after=wait)
        return self.known

    async def look_again(self) -> None:
        """Renew `known` for a token that no key of it fits, if the issuer may be asked."""
        if trio.current_time() >= self._look_at:
            await self._fetch_in_turn(looking=True)

    async def _fetch_in_turn(self, *, looking: bool) -> None:
        """Fetch the keys, unless another task does so meanwhile, or it is too early.

        Args:
            looking: For an unknown key.
        """
        ended = self._ended
        async with self._turn:
            began_at = trio.current_time()
            if self._ended != ended or began_at < (self._look_at if looking else self._due_at):
                return
            self._begun += 1
            outcome: Fetched | str = ""
            try:
                outcome = await self._try_to_fetch()
            finally:
                if outcome or self._begun > MOST_CANCELLED:
                    if looking:
                        self._look_at = began_at + LOOK_INTERVAL
                    self._settle(outcome or "the keys were asked for by requests that were given up", began_at)

    async def _try_to_fetch(self) -> Fetched | str:
        try:
            return await self._fetch()
        except KeysUnavailable as error:
            return str(error)

    def _settle(self, outcome: Fetched | str, began_at: float) -> None:
        self._begun, self._ended = 0, self._ended + 1
        if isinstance(outcome, Fetched):
            if self._failure:
                logger.info("the keys of the issuer were fetched again")
            self.known, self._failure, self._due_at = outcome.keys, "", began_at + outcome.lifetime
        else:
            if not self._failure:
                in_use = "no request can be authenticated" if self.known is None else "the old ones stay in use"
                logger.warning("%s; %s", outcome, in_use)
            self._failure = outcome
            self._due_at = trio.current_time() + (FIRST_INTERVAL if self.known is None else LOOK_INTERVAL)
