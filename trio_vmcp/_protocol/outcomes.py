"""The outcomes of a request: an answer, a refusal by HTTP, or the loss of the stream that was to bring the answer.

Channels make them, and the clients of the eras judge them. Pure.
"""

from __future__ import annotations

import re
from typing import TypeAlias

import attrs

from trio_vmcp._protocol.jsonrpc import ErrorReply, Result
from trio_vmcp.errors import BackendError, BackendRejected, BackendUnauthorized, BackendUnavailable

__all__ = [
    "GATEWAY_STATUSES",
    "MOST_QUOTED",
    "MOST_WORDS",
    "Answer",
    "Loss",
    "Refusal",
    "RequestOutcome",
    "in_words_of_a_lost_session",
    "names_session",
    "proves_not_run",
    "rejection",
    "tells_session_lost",
]

MOST_WORDS = 8 * 1024  # characters of an error's text that are read for its meaning
MOST_QUOTED = 300  # characters of a backend's error text in ours


@attrs.frozen
class Answer:
    """A JSON-RPC reply, and the status of its HTTP response (200 if there is no HTTP).

    Attributes:
        www_authenticate: The header, as received.
        challenge: The header without secrets of the request, for error texts and logs; None: there are none in it.
        words: The message of an error, likewise. The message itself goes to the caller as it is.
    """

    reply: Result | ErrorReply
    status: int = 200
    www_authenticate: str | None = None
    retry_after: float | None = None
    is_signed: bool = True  # the request carried what may be credentials
    challenge: str | None = attrs.field(default=None, kw_only=True)
    words: str | None = attrs.field(default=None, kw_only=True)


@attrs.frozen
class Refusal:
    """An HTTP error without a JSON-RPC error in its body.

    Attributes:
        www_authenticate, challenge: As in `Answer`.
        names_session: The body mentions a session.
        tells_session_lost: The body says in words of `tells_session_lost` that the session is gone.
        retry_after: s, of the header `Retry-After`; None: absent or unreadable.
        words: The text in the body, short and without secrets; empty: there was none.
        via: Names the proxy that may have answered in place of the backend, with the comma before it; empty: none.
        is_signed: The request carried what may be credentials.
    """

    status: int
    www_authenticate: str | None = None
    names_session: bool = False
    tells_session_lost: bool = False
    retry_after: float | None = None
    words: str = ""
    via: str = ""
    is_signed: bool = True
    challenge: str | None = attrs.field(default=None, kw_only=True)


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
    last_event_id: str | None = attrs.field(default=None, repr=False)  # servers put the session's id there
    retry: float | None = None

    def error(self, backend_id: str, method: str | None = None) -> BackendError:
        """The error for a request of this method, or with None for the connection."""
        before = "" if method is None else f" before it answered {method!r}"
        return self.kind(backend_id, f"{self.what}{before}{self.why}")


RequestOutcome: TypeAlias = Answer | Refusal | Loss

# JSON-RPC and MCP errors which prove that the request did not run.
_NOT_RUN = frozenset({-32700, -32600, -32601, -32602, -32020, -32021, -32022})
_UNAUTHORIZED = frozenset({401, 403})
_NOT_TAKEN = frozenset({401, 403, 413, 429})
GATEWAY_STATUSES = frozenset({502, 503, 504})  # from what stands in front of a backend that is away
# JSON-RPC errors about the params of a request, or about its execution.
_ABOUT_THE_REQUEST = frozenset({-32602, -32603})


def names_session(outcome: Answer | Refusal) -> bool:
    """Whether a refusal is about the session and not about the request, as restarted servers answer. Only the beginning
    of its text is read.
    """
    if isinstance(outcome, Refusal):
        return outcome.names_session
    reply = outcome.reply
    if not isinstance(reply, ErrorReply) or reply.code in _ABOUT_THE_REQUEST:
        return False
    return "session" in reply.message[:MOST_WORDS].lower()


_LOST = re.compile(r"not found|unknown|invalid|no valid|expired|mismatch|missing|required|terminated", re.IGNORECASE)
_NOT_INITIALIZED = re.compile(r"not initiali[sz]ed|expected initialize", re.IGNORECASE)


def in_words_of_a_lost_session(text: str) -> bool:
    """Whether a backend's own text says that it does not know our session. Servers agree on no status for it: 400, 401,
    409, 422, 500 and a JSON-RPC error under 200 are all in use. Only the beginning is read.
    """
    text = text[:MOST_WORDS]
    return bool("session" in text.lower() and _LOST.search(text)) or _NOT_INITIALIZED.search(text) is not None


def tells_session_lost(outcome: Answer | Refusal) -> bool:
    """Whether a refusal says in words that the session is gone."""
    if isinstance(outcome, Refusal):
        return outcome.tells_session_lost
    return isinstance(outcome.reply, ErrorReply) and in_words_of_a_lost_session(outcome.reply.message)


def proves_not_run(outcome: Answer | Refusal) -> bool:
    """Whether the status proves that the request was not taken, whatever the body says: RFC 9110 §15.5.2 (401),
    §15.5.4 (403), §15.5.14 (413); RFC 6585 §4 (429).
    """
    return outcome.status in _NOT_TAKEN


def _said(outcome: Answer | Refusal) -> str:
    words = outcome.words
    if words is None:
        words = getattr(outcome.reply, "message", "") if isinstance(outcome, Answer) else ""
    return words[:MOST_QUOTED]


def rejection(backend_id: str, method: str, outcome: Answer | Refusal) -> BackendError:
    """The `BackendError` for a JSON-RPC error or a refusal."""
    if isinstance(outcome, Answer) and outcome.status not in _UNAUTHORIZED:
        reply = outcome.reply
        assert isinstance(reply, ErrorReply)
        text = _said(outcome)
        return BackendRejected(
            backend_id,
            f"rejected {method!r}: {text!r} ({reply.code})",
            code=reply.code,
            message=reply.message,
            data=reply.data,
            may_have_executed=reply.code not in _NOT_RUN and not proves_not_run(outcome),
            retry_after=outcome.retry_after,
        )
    status = outcome.status
    said = _said(outcome)
    words = f": {said!r}" if said else ""
    if isinstance(outcome, Refusal):
        words += outcome.via
    if status in _UNAUTHORIZED:
        refused = "refused the credentials for {!r}" if outcome.is_signed else "refused {!r} without credentials"
        shown = outcome.challenge or outcome.www_authenticate
        challenge = f" ({shown[:MOST_QUOTED]!r})" if shown else ""
        return BackendUnauthorized(
            backend_id,
            f"{refused.format(method)}: HTTP {status}{challenge}{words}",
            retry_after=outcome.retry_after,
            status=status,
            challenge=outcome.www_authenticate,
        )
    return BackendRejected(
        backend_id,
        f"answered {method!r} with HTTP {status}{words}",
        code=status,
        status=status,
        message=said or f"HTTP {status}",
        retry_after=outcome.retry_after,
        may_have_executed=status >= 500 or status == 408,  # the other 4xx say that the request was not taken
    )
