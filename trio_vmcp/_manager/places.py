"""The caps on live sessions: one place for each, taken before anything else is done for it, and kept until it is
CLOSED.

A session that drains makes room for another one: a client that ends its session and opens a new one at once is not to
be refused because a call of the old one goes on. As many may drain as may be live, and no more: else a client could
have ever more by ending them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import attrs

from trio_vmcp.errors import SessionLimitReached
from trio_vmcp.identity import Identity

__all__ = ["RETRY_AFTER", "Places", "Principal", "principal_of"]

RETRY_AFTER = 5.0  # s; sessions come and go all the time, and no earlier end of one is known

Principal = tuple[str, str] | None


def principal_of(identity: Identity | None) -> Principal:
    """What sessions of one user have in common: the issuer and the subject, never the token."""
    return None if identity is None else (identity.issuer, identity.subject)


@attrs.define(eq=False)
class Places:
    """Counts places. Nothing waits for one, and no method has a checkpoint, so that a cap holds however many ask.

    Attributes:
        max_sessions: Places in all.
        max_per_principal: Of these, for one principal. Anonymous sessions together are no principal.
        refused: How often there was no place.
    """

    max_sessions: float
    max_per_principal: float
    refused: int = attrs.field(default=0, init=False)
    _taken: int = attrs.field(default=0, init=False)
    _by_principal: Counter[Principal] = attrs.field(factory=Counter, init=False, repr=False)

    @property
    def taken(self) -> int:
        return self._taken

    def take(self, principal: Principal, draining: Callable[[], Iterable[Principal]]) -> None:
        """
        Args:
            draining: The principals of the sessions that have a place and drain. Asked for where no place is free.

        Raises:
            SessionLimitReached: There is no place left, in all or for this principal.
        """
        taken: float = self._taken
        own: float = self._by_principal[principal] if principal is not None else 0
        if taken >= self.max_sessions or own >= self.max_per_principal:
            drains = Counter(draining())
            taken -= min(drains.total(), self.max_sessions)
            own -= min(drains[principal], self.max_per_principal)
            if taken >= self.max_sessions or own >= self.max_per_principal:
                self.refused += 1
                raise SessionLimitReached(RETRY_AFTER)
        self._taken += 1
        self._by_principal[principal] += 1

    def give_back(self, principal: Principal) -> None:
        self._taken -= 1
        self._by_principal[principal] -= 1
        if not self._by_principal[principal]:
            del self._by_principal[principal]  # else there would be an entry for each user that ever came
