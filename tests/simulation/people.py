"""Who opens sessions and calls."""

from __future__ import annotations

import attrs

from simulation.tokens import CANARY
from simulation.trace import Whose
from trio_vmcp import Identity

__all__ = ["ALICE", "BOB", "calling", "whose"]

ALICE = Identity(issuer="https://issuer.test", subject="alice", token=f"{CANARY}-token")
BOB = Identity(issuer="https://issuer.test", subject="bob")

_ALICE_LATER = attrs.evolve(ALICE, token=f"{CANARY}-token-of-the-call")


def calling(opener: Identity | None) -> Identity | None:
    """The same as whoever opened the session, with the token of another day."""
    return None if opener is None else _ALICE_LATER


def whose(identity: Identity | None) -> Whose:
    if identity is None:
        return "nobody"
    known: dict[str, Whose] = {ALICE.token: "opener", _ALICE_LATER.token: "caller"}
    return known.get(identity.token, "stranger")
