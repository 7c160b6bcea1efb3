"""The question in an `input_required` result: is it one that a client can answer?

Source: MCP 2026-07-28, multi round-trip requests.
"""

from __future__ import annotations

import attrs

from trio_vmcp._protocol.jsonrpc import encode_result
from trio_vmcp._protocol.methods import REQUEST_STATE
from trio_vmcp.models import JSON

__all__ = ["INPUT_REQUIRED", "BadRound", "Round", "read_round"]

INPUT_REQUIRED = "input_required"  # as `resultType`
MOST_INPUTS = 16  # of one round; each runs a handler
MOST_SENT_BACK = 1024 * 1024  # characters of a round's state and of its keys together, which are encoded in one step


class BadRound(Exception):
    """Completes the sentence "backend 'x' answered … with a question …"."""


@attrs.frozen
class Round:
    """The input that one answer asks for.

    Attributes:
        inputs: Method and params, by the backend's key.
        state: Sent back unchanged with the next round; None: there is none.
    """

    inputs: dict[str, tuple[str, JSON]]
    state: str | None = attrs.field(repr=False)


def read_round(answer: JSON) -> Round:
    """
    Raises:
        BadRound: It is malformed, over a limit, or could not be sent back.
    """
    requests, state = answer.get("inputRequests"), answer.get(REQUEST_STATE)
    if requests is None:
        requests = {}
    if not isinstance(requests, dict) or not (state is None or isinstance(state, str)):
        raise BadRound("for input in a form that is not MCP's")
    if not requests and state is None:
        raise BadRound("for input, and named none")
    if len(requests) > MOST_INPUTS:
        raise BadRound(f"for {len(requests)} inputs at once; {MOST_INPUTS} are the most")
    if len(state or "") + sum(map(len, requests)) > MOST_SENT_BACK:
        raise BadRound(f"for input with over {MOST_SENT_BACK} characters of state and names")
    try:
        encode_result(0, {"state": state, "keys": list(requests)})
    except ValueError:  # a lone surrogate, which is the backend's mistake and not the caller's
        raise BadRound("for input under a name or state that cannot be sent back") from None
    return Round({key: _read_input(request) for key, request in requests.items()}, state)


def _read_input(request: object) -> tuple[str, JSON]:
    match request:
        case {"method": str(wanted), "params": dict(given)}:
            return wanted, given
        case {"method": str(wanted), **rest} if rest.get("params") is None:
            return wanted, {}
        case _:
            raise BadRound("for input in a form that is not MCP's")
