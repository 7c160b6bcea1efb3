"""Modern requests that a scripted backend answers in several rounds (MCP 2026-07-28, `input_required`), and the checks
of each retry.
"""

from __future__ import annotations

from typing import Any

import attrs

from trio_vmcp.models import JSON
from trio_vmcp.testing.context import Requests
from trio_vmcp.testing.exchange import Exchange
from trio_vmcp.testing.modern import CAPABILITIES_KEY
from trio_vmcp.testing.rpc import INVALID_PARAMS, MISSING_CAPABILITY, RpcError

__all__ = ["Rounds", "check_inputs"]

KINDS = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}
OF_A_ROUND = ("inputResponses", "requestState")
# In `_meta`, of each request anew: the description of its sender, its progress, its trace (SEP-414).
OF_A_SENDER = "io.modelcontextprotocol/"
OF_A_REQUEST = ("progressToken", "traceparent", "tracestate", "baggage")


@attrs.frozen
class _Round:
    """A request that waits for its retry."""

    exchange: Exchange
    asked: JSON
    requests: Requests
    answered: list[dict[str, Any]]


@attrs.define(eq=False)
class Rounds:
    """Requests between two rounds, by the `requestState` that the client sends back. Each is good for one retry."""

    _waiting: dict[str, _Round] = attrs.field(factory=dict, init=False)
    _begun: int = attrs.field(default=0, init=False)

    def resume(self, exchange: Exchange) -> list[dict[str, Any]]:
        """The client's answers so far; empty for a first request.

        Raises:
            RpcError: The request has input of a round, but is no proper retry.
        """
        if not any(key in exchange.params for key in OF_A_ROUND):
            return []
        state, responses = (exchange.params.get(key) for key in OF_A_ROUND[::-1])
        before = self._waiting.pop(state, None) if isinstance(state, str) else None
        if before is None:
            raise RpcError(INVALID_PARAMS, f"no request waits for {state!r}", status=400)
        if before.asked != _asked_by(exchange) or _ids_are_equal(before.exchange, exchange):
            raise RpcError(INVALID_PARAMS, "a retry is the same request under another id", status=400)
        if not isinstance(responses, dict) or responses.keys() != before.requests.keys():
            raise RpcError(INVALID_PARAMS, f"inputResponses for other keys than {list(before.requests)}", status=400)
        return [*before.answered, responses]

    def suspend(self, exchange: Exchange, requests: Requests, answered: list[dict[str, Any]]) -> JSON:
        """The answer that asks for input."""
        self._begun += 1
        # JSON that changes when a client parses it and writes it again, although MCP says that the state is opaque.
        state = f'{{"round" : {self._begun}, "\u00e9":1.0}} '
        self._waiting[state] = _Round(exchange, _asked_by(exchange), requests, answered)
        inputs = {key: {"method": method, "params": params} for key, (method, params) in requests.items()}
        return {"resultType": "input_required", "inputRequests": inputs, "requestState": state}


def check_inputs(exchange: Exchange, requests: Requests) -> None:
    """
    Raises:
        RpcError: The client has not declared the capability.
        RuntimeError: No client can be asked for this method.
    """
    declared = exchange.meta[CAPABILITIES_KEY]
    for method, _ in requests.values():
        if method not in KINDS:
            raise RuntimeError(f"cannot ask for {method!r}: a modern backend can ask for {', '.join(KINDS)}")
        if KINDS[method] not in declared:
            needed: JSON = {"requiredCapabilities": {KINDS[method]: {}}}
            raise RpcError(MISSING_CAPABILITY, f"{method} needs a capability", needed, status=400)


def _asked_by(exchange: Exchange) -> JSON:
    """The request without its round, and without what each request of a round says anew."""
    own = {key: value for key, value in exchange.params.items() if key not in OF_A_ROUND}
    meta = exchange.meta.items()
    own["_meta"] = {key: value for key, value in meta if key not in OF_A_REQUEST and not key.startswith(OF_A_SENDER)}
    return {"method": exchange.method, "params": own}


def _ids_are_equal(before: Exchange, exchange: Exchange) -> bool:
    """The ids of one sender differ. Another sender may use the same ids, and has another connection."""
    return before.connection == exchange.connection and before.request_id == exchange.request_id
