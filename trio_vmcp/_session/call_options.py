"""What one call asks for besides its arguments: rounds that are handed out and continued, capabilities, a log level.

All of it is of the modern era (MCP 2026-07-28, multi round-trip requests; per-request capabilities; logging), and is
written into the request as that era says: into its params, and into `_meta` under MCP's own keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from trio_vmcp._protocol.jsonrpc import check_sendable
from trio_vmcp._protocol.methods import CLIENT_CAPABILITIES, INPUT_RESPONSES, LOG_LEVEL, LOG_LEVELS, REQUEST_STATE
from trio_vmcp.errors import BackendRejected
from trio_vmcp.metadata import BackendRecord
from trio_vmcp.models import JSON

__all__ = ["CallOptions", "call_options"]

INVALID_PARAMS = -32602  # JSON-RPC 2.0


@attrs.frozen
class CallOptions:
    """The options of one call.

    Attributes:
        hands_out_rounds: What the backend asks goes back to the caller, and no handler answers.
        round: The members of the params that continue an earlier call; empty: a new call.
        meta: The members of `_meta`, under keys that MCP reserves.
    """

    hands_out_rounds: bool
    round: JSON = attrs.field(repr=False)
    meta: JSON = attrs.field(repr=False)

    def params_for(self, backend_id: str, record: BackendRecord | None, method: str, params: JSON) -> JSON:
        """The params to send over a connection.

        Args:
            record: Of the connection; None: it has none, so its era is not known.

        Raises:
            BackendRejected: The call continues an earlier one, and the backend has no rounds: nothing was sent.
        """
        if record is not None and record.era == "modern":
            params = params | self.round
            return params | {"_meta": params.get("_meta", {}) | self.meta} if self.meta else params
        if not self.round:
            return params
        # Without its input the call would begin anew, and a tool might act twice.
        raise BackendRejected(
            backend_id,
            f"has no rounds that {method!r} could go on with: it speaks the handshake era "
            "(input_responses, request_state)",
            code=INVALID_PARAMS,
            message="the handshake era has no rounds",
        )


def call_options(
    answer_rounds: bool,
    input_responses: Mapping[str, JSON] | None,
    request_state: str | None,
    client_capabilities: Mapping[str, object] | None,
    log_level: str | None,
) -> CallOptions | None:
    """The options of a call, as its caller gave them; None: all are left as they are.

    Raises:
        TypeError, ValueError: Names the keyword, and the type of its value.
    """
    has_round = input_responses is not None or request_state is not None
    if answer_rounds is True and not has_round and client_capabilities is None and log_level is None:
        return None
    _require("answer_rounds", answer_rounds, bool, "a bool")
    round_: JSON = {}
    meta: JSON = {}
    if input_responses is not None:
        round_[INPUT_RESPONSES] = responses = _object("input_responses", input_responses)
        for response in responses.values():
            _require("a value in input_responses", response, dict, "a dict, the result object for one question")
    if request_state is not None:
        round_[REQUEST_STATE] = _require("request_state", request_state, str, "a str")
        check_sendable(request_state, "request_state")
    if client_capabilities is not None:
        meta[CLIENT_CAPABILITIES] = _object("client_capabilities", client_capabilities)
    if log_level is not None:
        meta[LOG_LEVEL] = _require("log_level", log_level, str, "a str")
        if log_level not in LOG_LEVELS:
            raise ValueError(f"log_level={log_level[:32]!r} is a str, and none of {', '.join(LOG_LEVELS)}")
    return CallOptions(not answer_rounds, round_, meta)


def _object(keyword: str, value: object) -> JSON:
    given: Mapping[str, object] = _require(keyword, value, _MAPPINGS, "a mapping")
    taken = dict(given)
    for key in taken:
        _require(f"a key in {keyword}", key, str, "a str")
    if taken:  # most clients declare nothing
        check_sendable(taken, keyword)
    return taken


_MAPPINGS = (dict, Mapping)  # a dict is told in a twentieth of the time, if it comes first


def _require(what: str, value: object, kind: type | tuple[type, ...], name: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{what} is {type(value).__name__}, not {name}")
    return value
