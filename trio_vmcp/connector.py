"""What a session knows of a backend: the connector that makes a client, and the client. Neither names a transport."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias

import attrs
import httpx
import trio

from trio_vmcp import _request_note
from trio_vmcp.errors import BackendError
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord
from trio_vmcp.models import JSON, Backend

__all__ = [
    "BackendClient",
    "BackendConnector",
    "ClientHandlers",
    "EventSink",
    "Handler",
    "OnProgress",
    "OutgoingAuth",
    "ServerRequest",
    "note_written",
]

OnProgress: TypeAlias = Callable[[float, float | None, str | None], Awaitable[None]]
"""`(progress, total, message)`; runs in the caller's task, and what it raises cancels the request and comes out as
itself.
"""

OutgoingAuth: TypeAlias = Callable[[Backend, Identity | None], httpx.Auth | None]
"""`(backend, identity)`: the credentials of one HTTP request. Asked for every one, GET and DELETE too, so what it
returns may change at any time. It must not block; whatever takes time belongs into the `httpx.Auth`, whose flow may
await, and may send requests of its own over the backend's transport.

- `identity` is the caller's; for what no caller asked for, the one that the session was opened with.
- The flow sees every response, a 401 too: whoever holds a token drops it there, if it is still the one that he holds.
- After a 401, which proves that the request did not run, this is asked once more, and the request sent once more with
  what it returns, unless that signs it as before or is None. Callers that were refused meanwhile share that one answer,
  so it must be good for several requests, as the classes of httpx are. A second 401 is `BackendUnauthorized`.
- What it raises, or the flow, becomes `BackendUnauthorized` without its text; a `BackendError` comes out as itself.
"""


class EventSink(Protocol):
    """Takes what a client has to tell outside of its requests. Nothing here blocks."""

    def __call__(self, method: str, params: JSON, /) -> None:
        """A notification of the backend's: its method and its params."""
        ...

    def session_lost(self, error: BackendError) -> None:
        """The connection, or the backend's session, is gone. To be called once. The client stays as it is: requests on
        it may still be answered.
        """
        ...


def note_written() -> None:
    """For a `BackendClient` of your own: the bytes of the current request are out. Called in the task of `request`.

    From then on a call that is cut off says `may_have_executed`, and one that was not written yet does not. A call
    through a client that never calls this counts as possibly executed.
    """
    _request_note.note_written(True)


class BackendClient(Protocol):
    """One backend, connected: the live connection that never leaves the process."""

    @property
    def record(self) -> BackendRecord:
        """What the metadata keeps of this connection; changes when the backend assigns another session id."""
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
            identity: Whose credentials the request carries.
            timeout: s, the whole exchange, the wait for a connection included; `math.inf`: none.

        Raises:
            BackendError: A subclass says what went wrong and whether the request may have run.
        """
        ...

    async def aclose(self, *, terminate: bool) -> None:
        """Let go of every connection; `terminate` also ends the backend's session. Bounded by whoever calls."""
        ...


class BackendConnector(Protocol):
    """Makes a `BackendClient`. Cancelled or failing, it leaves nothing behind, at the backend neither."""

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
            identity: Whose credentials the handshake carries.
            resume: The record of an earlier connection, whose backend session is used as it is while the endpoint is
                the same.
            nursery: The session's, for what must outlive this call; what runs in it is behind an error boundary of its
                own.
            events: Takes the backend's notifications.

        Raises:
            BackendError: Becomes the backend's entry in `session.failures`.
        """
        ...


@attrs.frozen
class ServerRequest:
    """What a backend asks of its client, or tells it.

    Attributes:
        caller: Whose call the request belongs to; None outside of one, and on anonymous sessions.
        params: As received: untrusted, like everything of a backend's.
    """

    session_id: str = attrs.field(repr=False)
    backend_id: str
    caller: Identity | None
    params: JSON


Handler: TypeAlias = Callable[[ServerRequest], Awaitable[Any]]


@attrs.frozen
class ClientHandlers:
    """What this client can do for backends. Only what is given is declared to them.

    Each handler runs in a task of its own, in a clean context, beside the call that it belongs to and not in its
    caller's task. It is cancelled when the backend takes its request back, when that call is given up, and when the
    session closes. It may call tools of its own session, and close it: `aclose()` asks and returns at once. What it
    raises is logged by its kind and never told to the backend.

    Attributes:
        sampling: Answers `sampling/createMessage` with a CreateMessageResult.
        elicitation: Answers `elicitation/create` with an ElicitResult: `{"action": "accept", "content": {…}}`,
            `"decline"` or `"cancel"`. What an accepted form leaves out has its schema's defaults filled in. With
            `params["mode"] == "url"` the backend wants the user to open `params["url"]`; the library never does.
        roots: Answers `roots/list` with a ListRootsResult.
        log: Is told of `notifications/message`, in order, one at a time; of a backend that is told of faster than the
            handler takes it, the oldest messages are dropped.
    """

    sampling: Handler | None = None
    elicitation: Handler | None = None
    roots: Handler | None = None
    log: Handler | None = None
