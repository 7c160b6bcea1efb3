"""A question of a backend of the stateless era, and the backend's state, which the client keeps until it answers.

Source: MCP 2026-07-28, multi round-trip requests. The client gets a `requestState` of ours, which holds the backend's
id and state: sealed, and good for the same request of the same principal alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import attrs

from trio_vmcp._protocol.methods import GET_PROMPT, INPUT_RESPONSES, REQUEST_STATE, TOOLS_CALL
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON
from trio_vmcp.routing import Target
from trio_vmcp.serve._errors import INTERNAL_ERROR, INVALID_PARAMS, Refusal
from trio_vmcp.serve.sealing import BadSeal, Sealer
from trio_vmcp.session import Session

__all__ = ["LIFETIME", "RoundSeal", "owner_of"]

LIFETIME = 3600.0  # s that a client has to answer
_ENVELOPE = ("_meta", INPUT_RESPONSES, REQUEST_STATE)  # members of the params that differ between rounds
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


@attrs.frozen
class RoundSeal:
    """Seals the state of a round, and opens it in the next."""

    _sealer: Sealer = attrs.field(alias="sealer", repr=False)

    def close_round(
        self, result: JSON, backend_id: str | None, identity: Identity | None, method: str, params: JSON
    ) -> JSON:
        """The question of a backend, with the state that the client is to give back."""
        payload = json.dumps([backend_id, result.get(REQUEST_STATE)]).encode()
        try:
            state = self._sealer.seal(payload, bound_to=_binding(identity, method, params), lifetime=LIFETIME)
        except ValueError:
            raise Refusal(INTERNAL_ERROR, f"the requestState of backend {backend_id!r} is too large") from None
        return {**result, REQUEST_STATE: state}

    def open_round(
        self, state: object, session: Session, identity: Identity | None, method: str, params: JSON
    ) -> str | None:
        """The backend's own state; None: it gave none.

        Raises:
            Refusal: The state is not of this request, this principal and the backend that the request goes to now.
        """
        if not isinstance(state, str):
            raise Refusal(INVALID_PARAMS, "'requestState' is not a string")
        try:
            payload = self._sealer.unseal(state, bound_to=_binding(identity, method, params))
        except BadSeal as bad:
            raise Refusal(INVALID_PARAMS, f"'requestState' is not of this request: {bad}") from None
        backend_id, own = json.loads(payload)
        owner = owner_of(session, method, params)
        if owner not in (None, backend_id):
            raise Refusal(INVALID_PARAMS, "another backend than the one that asked has this name now")
        found: str | None = own
        return found


def owner_of(session: Session, method: str, params: JSON) -> str | None:
    """The backend that a request goes to; None: no list says it, as for a resource that a template matches."""
    table = session.routing_table
    targets: Mapping[str, Target] = table.resources
    if method == TOOLS_CALL:
        targets = table.tools
    elif method == GET_PROMPT:
        targets = table.prompts
    target = targets.get(_name(method, params))
    return None if target is None else target.backend_id


def _name(method: str, params: JSON) -> Any:
    return params.get("name" if method in (TOOLS_CALL, GET_PROMPT) else "uri")


def _binding(identity: Identity | None, method: str, params: JSON) -> bytes:
    """Bytes that no other request, and no other principal, has."""
    principal = None if identity is None else [identity.issuer, identity.subject]
    asked = {key: value for key, value in params.items() if key not in _ENVELOPE}
    return hashlib.sha256(_canonical.encode([principal, method, asked]).encode("utf-8", "surrogatepass")).digest()
