"""The seam between a session and its backends: the connector, which makes a client, and the client. Neither names a
transport.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import attrs
import httpx
import trio

from trio_vmcp import _request_note
from trio_vmcp._protocol.methods import LOG_LEVELS
from trio_vmcp.errors import BackendError
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord
from trio_vmcp.models import JSON, Backend

__all__ = [
    "BackendClient",
    "BackendConnector",
    "ClientHandlers",
    "ContextualAuth",
    "EventSink",
    "Handler",
    "OnProgress",
    "OutgoingAuth",
    "PreferredEra",
    "ServerRequest",
    "ServerRequestError",
    "note_written",
]

OnProgress: TypeAlias = Callable[[float, float | None, str | None], Awaitable[None]]
"""`(progress, total, message)`. It runs in the caller's task; an error that it raises cancels the request and comes out
as itself.
"""

OutgoingAuth: TypeAlias = Callable[[Backend, Identity | None], httpx.Auth | None]
"""`(backend, identity)` → the credentials of one HTTP request, or None. Called before every request, GET and DELETE
included, so its result may change at any time. It must not block: work that takes time belongs into the `httpx.Auth`
that it returns. The flow of that Auth may await, and may send requests of its own over the backend's transport.

- `identity` is the caller's. For requests that no caller made (opening, listing, closing) it is the one that the
  session was opened with.
- The flow sees every response, a 401 included: a flow that caches a token discards the token there, if it still is the
  token of that request.
- A 401 proves that the request did not run (RFC 9110 §15.5.2). So this function is called once more, and the request is
  sent once more with the new credentials, unless they are None or sign the request as before. Requests that are refused
  at the same time share the new credentials, so these must be good for several requests, as the classes of httpx are. A
  second 401 is `BackendUnauthorized`.
- An error that this function or the flow raises becomes `BackendUnauthorized` without its text; a `BackendError` comes
  out as itself.
"""


PreferredEra: TypeAlias = Literal["modern", "legacy"]
"""What the probe of an `era="auto"` backend tries first: `server/discover` of the stateless era, or `initialize`."""


@runtime_checkable
class ContextualAuth(Protocol):
    """An `OutgoingAuth` that can tell, without a request, which credentials the next request will carry."""

    def __call__(self, backend: Backend, identity: Identity | None) -> httpx.Auth | None: ...

    def authorization_context(self, backend: Backend, identity: Identity | None) -> bytes | None:
        """Bytes that two requests have in common only if they carry the same credentials; None: unknown. They are as
        secret as the credentials.
        """
        ...


class EventSink(Protocol):
    """The part of a session that a client reports to, outside of its requests. No method blocks."""

    def __call__(self, method: str, params: JSON, /) -> None:
        """The backend sent a notification with this method and these params."""
        ...

    def session_lost(self, error: BackendError) -> None:
        """The connection broke, or the backend no longer knows its session. To be called once. The client stays as it
        is: requests that run on it may still be answered.
        """
        ...


def note_written() -> None:
    """Report that the current request was written. A `BackendClient` of your own calls this in the task of `request`,
    as soon as some bytes of the request may have left.

    If a call is cut off afterwards, its error has `may_have_executed=True`; if a call is cut off before, the error has
    False. Every call that is cut off in a client that never reports this has True.
    """
    _request_note.note_written(True)


class BackendClient(Protocol):
    """One backend, connected: the live connection that never leaves the process."""

    @property
    def record(self) -> BackendRecord:
        """The part of this connection that the metadata keeps; another session id of the backend changes it."""
        ...

    @property
    def server_capabilities(self) -> JSON:
        """The JSON object that the server declared."""
        ...

    async def request(
        self,
        method: str,
        params: JSON,
        *,
        identity: Identity | None,
        timeout: float,
        on_progress: OnProgress | None,
    ) -> JSON:
        """Send one request in the caller's task and return its result, a JSON object.

        Args:
            params: As MCP has them. If `record.era` is "modern", they hold what the caller gave for rounds:
                `inputResponses`, `requestState`, and in `_meta` `io.modelcontextprotocol/clientCapabilities` and
                `…/logLevel`, which are for this request. An `input_required` result goes to the caller as it is.
            identity: The request carries the credentials of this identity.
            timeout: s, the whole exchange, the wait for a connection included; `math.inf`: none.
            on_progress: Called in the caller's task for each progress notification of this request; None: the backend
                is not asked for any.

        Raises:
            BackendError: A subclass says what went wrong and whether the request may have run. If something else comes
                out, the caller of the session gets a BackendError that names the type.
        """
        ...

    async def aclose(self, *, terminate: bool) -> None:
        """Close every connection; `terminate` also ends the backend's session. The caller bounds the time."""
        ...


class BackendConnector(Protocol):
    """Makes a `BackendClient`. If it fails or is cancelled, nothing is left: no task, no connection, and no session at
    the backend.
    """

    async def __call__(
        self,
        backend: Backend,
        *,
        identity: Identity | None,
        resume: BackendRecord | None,
        nursery: trio.Nursery,
        events: EventSink,
    ) -> BackendClient:
        """Connect.

        Args:
            identity: The handshake carries the credentials of this identity.
            resume: The record of an earlier connection to the same endpoint: go on with its backend session, without a
                handshake. None: open a new one.
            nursery: For tasks that outlive this call. It belongs to this connection: if a task in it crashes, the
                connection is lost, and other backends are not affected.
            events: Takes the backend's notifications.

        Raises:
            BackendError: Becomes the backend's entry in `session.failures`.
        """
        ...


@attrs.frozen
class CallInfo:
    """The call that a question of a backend belongs to.

    Attributes:
        name: The advertised name of the tool or prompt, or the URI of the resource.
        meta: The `meta` that the caller gave; None: none.
    """

    name: str
    meta: JSON | None = attrs.field(default=None, repr=False)


@attrs.frozen
class ServerRequest:
    """One request of a backend to its client, or a notification that a handler receives.

    Attributes:
        session_id: The session that the backend belongs to.
        backend_id: The backend that asks.
        caller: The identity of the call that the request belongs to; None outside of a call, and on anonymous sessions.
        params: As received: untrusted text of the backend.
        call: The call that the request belongs to. None outside of a call, and where the channel does not say which
            call a request belongs to: over stdio and HTTP+SSE all calls share one stream.
    """

    session_id: str = attrs.field(repr=False)
    backend_id: str
    caller: Identity | None
    params: JSON
    call: CallInfo | None = None


@attrs.define(eq=False)
class ServerRequestError(Exception):
    """The JSON-RPC error that a request of a backend is answered with. A handler may raise it. All of it is sent to the
    backend, so it must hold no secrets.

    Attributes:
        data: Any JSON; None: absent.
    """

    code: int
    message: str
    data: Any = attrs.field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"


Handler: TypeAlias = Callable[[ServerRequest], Awaitable[Any]]


@attrs.frozen
class ClientHandlers:
    """The requests of backends that this client answers, and the notifications that it receives.

    The capabilities of the handlers that are given are declared to every backend, and no others. A backend of the
    handshake era sends requests of its own. A stateless backend answers a call with a question, and the call is sent
    again with the answer, for up to ten rounds (MCP 2026-07-28, multi round-trip requests); the call's timeout covers
    all rounds.

    Each handler runs in a task of its own, in a clean context, beside the call that it belongs to; up to 16 at a time
    for each backend. It is cancelled when the backend withdraws its request, when the call is cancelled or times out,
    and when the session closes. It may call tools of its own session and close the session (`aclose()` asks and returns
    at once). If it raises `ServerRequestError`, that is the backend's answer. If it raises another error, the type of
    the error is logged, and the backend learns only that there is no answer.

    Do not shield a handler from cancellation for long. A shielded handler that is still running when its session closes
    does not delay `aclose()` (which then waits for a second more), but its call, and at the latest the end of the
    factory, wait until the handler has ended.

    Attributes:
        sampling: Answers `sampling/createMessage` with a CreateMessageResult.
        elicitation: Answers `elicitation/create` with an ElicitResult: `{"action": "accept", "content": {…}}`,
            `"decline"` or `"cancel"`. Fields that an accepted form leaves out get the defaults of its schema. With
            `params["mode"] == "url"` the backend asks for the user to open `params["url"]`; the library never opens
            that URL.
        roots: Answers `roots/list` with a ListRootsResult.
        log: Receives `notifications/message` in order, one at a time. If messages of a backend arrive faster than the
            handler takes them, the oldest are dropped.
        elicitation_complete: Receives `notifications/elicitation/complete`, like `log`: the user has done at the URL of
            an elicitation what the backend waits for (MCP 2025-11-25, elicitation, "Completion Notifications").
            `params["elicitationId"]` may be unknown here.
        sampling_tools: `sampling` takes requests with `tools` and `toolChoice` in their params, and may answer with
            `tool_use` content (MCP 2025-11-25, client/sampling, "Tool Use in Sampling"): `sampling.tools` is declared.
            Otherwise a backend that sends such a request is answered -32602, without the handler.
        capabilities: The client capabilities to declare in place of those that the handlers imply, such as
            `{"elicitation": {}}` for forms alone: for code that passes on the questions to a client of its own. Kinds
            without a handler are left out. With `sampling.tools` in it, `sampling_tools` is True.
        log_level: From which severity on a stateless backend is asked to send log messages of each request, where there
            is a handler for them and neither the call nor `Session.set_log_level` says another; None: it is not asked.

    Raises:
        ValueError: `sampling_tools` without `sampling`; `log_level` is no level of MCP.
    """

    sampling: Handler | None = None
    elicitation: Handler | None = None
    roots: Handler | None = None
    log: Handler | None = None
    elicitation_complete: Handler | None = attrs.field(default=None, kw_only=True)
    sampling_tools: bool = attrs.field(default=False, kw_only=True)
    capabilities: JSON | None = attrs.field(default=None, kw_only=True, hash=False)
    log_level: str | None = attrs.field(default="info", kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.log_level is not None and self.log_level not in LOG_LEVELS:
            raise ValueError(f"log_level={self.log_level!r} is none of {', '.join(LOG_LEVELS)}")
        if self.sampling_tools and self.sampling is None:
            raise ValueError("sampling_tools=True says of the handler for sampling that it takes tools: there is none")
