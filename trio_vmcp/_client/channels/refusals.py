"""When a backend that refuses everything is asked whether it still knows its session. Pure."""

from __future__ import annotations

import attrs

from trio_vmcp._client.channels.channel import Ask
from trio_vmcp._protocol.jsonrpc import ErrorReply
from trio_vmcp._protocol.methods import TOOLS_CALL
from trio_vmcp._protocol.outcomes import GATEWAY_STATUSES, Answer, Refusal

__all__ = ["RefusalsInARow", "may_be_about_session"]

MOST_IN_A_ROW = 3
METHOD_NOT_FOUND = -32601  # JSON-RPC 2.0
# Of the credentials (401, 403, 407), the size (413), the pace (429), or from a gateway.
_NOT_ABOUT_SESSION = frozenset({401, 403, 407, 413, 429}) | GATEWAY_STATUSES


def may_be_about_session(outcome: Answer | Refusal) -> bool:
    """Whether the backend may refuse because it lost the session, though it does not say so."""
    if outcome.status in _NOT_ABOUT_SESSION:
        return False
    return not (
        isinstance(outcome, Answer)
        and isinstance(outcome.reply, ErrorReply)
        and outcome.reply.code == METHOD_NOT_FOUND  # about the method
    )


@attrs.define(eq=False)
class RefusalsInARow:
    """The refusals of one session since its last result, by method, and by tool for `tools/call`: a backend that
    refuses one tool over and over has lost nothing.
    """

    _asked: frozenset[tuple[str, object]] = attrs.field(default=frozenset(), init=False, repr=False)

    def __bool__(self) -> bool:
        return bool(self._asked)

    def reset(self) -> None:
        """A result came, or the backend is asked."""
        self._asked = frozenset()

    def add(self, ask: Ask) -> bool:
        """Count a refusal. Returns whether there are `MOST_IN_A_ROW` of different requests."""
        self._asked |= {(ask.method, ask.params.get("name") if ask.method == TOOLS_CALL else None)}
        return len(self._asked) >= MOST_IN_A_ROW
