"""The outcomes of a request: an answer, a refusal by HTTP, or the loss of the stream that was to bring the answer.

Channels make them, and the clients of the eras judge them. Pure.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs

from trio_vmcp._protocol.jsonrpc import ErrorReply, Result
from trio_vmcp.errors import BackendError, BackendRejected, BackendUnauthorized, BackendUnavailable

__all__ = ["MOST_QUOTED", "Answer", "Loss", "Refusal", "RequestOutcome", "names_session", "rejection"]

MOST_QUOTED = 300  # characters of a backend's error text in ours


@attrs.frozen
class Answer:
    """A JSON-RPC reply, and the status of its HTTP response (200 if there is no HTTP)."""

    reply: Result | ErrorReply
    status: int = 200


@attrs.frozen
class Refusal:
    """An HTTP error without a JSON-RPC error in its body.

    Attributes:
        www_authenticate: The header, as received.
        names_session: The body mentions a session.
    """

    status: int
    www_authenticate: str | None = None
    names_session: bool = False


@attrs.frozen
class Loss:
    """The stream that was to bring the answer ended.

    Attributes:
        what: Completes the sentence "backend 'x' …", and "it …".
        why: Follows `what`, and begins with its own punctuation.
        kind: The class of the error for a request that waits.
        last_event_id: The newest event id; None: the stream cannot be resumed.
        retry: s that the server asks to wait before the stream is resumed; None: it does not ask.
    """

    what: str
    why: str = ""
    kind: type[BackendError] = BackendUnavailable
    last_event_id: str | None = None
    retry: float | None = None

    def error(self, backend_id: str, method: str | None = None) -> BackendError:
        """The error for a request of this method, or with None for the connection."""
        before = "" if method is None else f" before it answered {method!r}"
        return self.kind(backend_id, f"{self.what}{before}{self.why}")


RequestOutcome: TypeAlias = Answer | Refusal | Loss

# JSON-RPC and MCP errors which prove that the request did not run.
_NOT_RUN = frozenset({-32700, -32600, -32601, -32602, -32020, -32021, -32022})
# JSON-RPC errors about the params of a request, or about its execution.
_ABOUT_THE_REQUEST = frozenset({-32602, -32603})


def names_session(outcome: Answer | Refusal) -> bool:
    """Whether a refusal is about the session and not about the request, as restarted servers answer."""
    if isinstance(outcome, Refusal):
        return outcome.names_session
    reply = outcome.reply
    return isinstance(reply, ErrorReply) and "session" in reply.message.lower() and reply.code not in _ABOUT_THE_REQUEST


def rejection(backend_id: str, method: str, outcome: Answer | Refusal) -> BackendError:
    """The `BackendError` for a JSON-RPC error or a refusal."""
    if isinstance(outcome, Answer):
        reply = outcome.reply
        assert isinstance(reply, ErrorReply)
        text = reply.message[:MOST_QUOTED]
        return BackendRejected(
            backend_id,
            f"rejected {method!r}: {text!r} ({reply.code})",
            code=reply.code,
            message=reply.message,
            data=reply.data,
            may_have_executed=reply.code not in _NOT_RUN,
        )
    status = outcome.status
    if status in (401, 403):
        challenge = f" ({outcome.www_authenticate[:MOST_QUOTED]!r})" if outcome.www_authenticate else ""
        return BackendUnauthorized(backend_id, f"refused the credentials for {method!r}: HTTP {status}{challenge}")
    return BackendRejected(
        backend_id,
        f"answered {method!r} with HTTP {status}",
        code=status,
        message=f"HTTP {status}",
        may_have_executed=status >= 500 or status == 408,  # the other 4xx say that the request was not taken
    )
