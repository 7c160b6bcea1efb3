"""The identities that open sessions and call."""

from __future__ import annotations

import attrs

from simulation.tokens import CANARY
from simulation.trace import Principal
from trio_vmcp import Identity

__all__ = ["ALICE", "BOB", "identity_of_calls", "principal_of"]

ALICE = Identity(issuer="https://issuer.test", subject="alice", token=f"{CANARY}-token")
BOB = Identity(issuer="https://issuer.test", subject="bob")

_ALICE_LATER = attrs.evolve(ALICE, token=f"{CANARY}-token-of-the-call")


def identity_of_calls(opener: Identity | None) -> Identity | None:
    """The identity that opened the session, with a newer token: calls carry this one."""
    return None if opener is None else _ALICE_LATER


def principal_of(identity: Identity | None) -> Principal:
    if identity is None:
        return "anonymous"
    known: dict[str, Principal] = {ALICE.token: "opener", _ALICE_LATER.token: "caller"}
    return known.get(identity.token, "stranger")
