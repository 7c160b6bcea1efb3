"""The seam between what a message means and what carries it: a `Channel` to one backend.

Two kinds exist. Over streamable HTTP each request has a response of its own. Over HTTP+SSE and stdio all messages share
one stream in each direction (`duplex`). The clients of both eras speak through this interface alone, so that a rule
about messages exists once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol, TypeAlias

import attrs

from trio_vmcp._client.complaints import Complaints
from trio_vmcp._client.listening import Listening
from trio_vmcp._protocol.jsonrpc import Message, Notification, Request, encode_request
from trio_vmcp._protocol.outcomes import Answer, Refusal, RequestOutcome
from trio_vmcp._request_note import RequestNote
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON

__all__ = [
    "Ask",
    "Channel",
    "Headers",
    "Listener",
    "OnOther",
    "Send",
    "SessionChannel",
    "SessionListener",
    "ignore_other",
]

Headers: TypeAlias = list[tuple[bytes, bytes]]

OnOther: TypeAlias = Callable[[Request | Notification], Awaitable[None]]
"""Takes what belongs to a request and is not its answer, in the task of the request."""

Send: TypeAlias = Callable[[bytes], Awaitable[None]]
"""Takes one message out. Its `BackendError` is logged."""


async def ignore_other(message: Request | Notification) -> None:
    """For requests during which nothing but the answer is of use."""


@attrs.frozen
class Ask:
    """One request, from the task of its caller to the wire.

    Attributes:
        id: The JSON-RPC id, never used before on this channel.
        identity: Whose credentials the request carries; None: the session's opener had none.
        on_other: Takes what comes for this request beside its answer.
        progress_token: In its `_meta`, the same in all rounds of a request; None: no progress is asked for.
        note: Says afterwards whether the request was written.
    """

    id: int
    method: str
    params: JSON = attrs.field(repr=False)
    identity: Identity | None
    on_other: OnOther = attrs.field(repr=False)
    note: RequestNote = attrs.field(repr=False)
    progress_token: int | None = None

    def encode(self) -> bytes:
        """
        Raises:
            NotJson: The params cannot be sent; names the method.
        """
        return encode_request(self.id, self.method, self.params)


class Listener(Protocol):
    """Takes what a backend says outside of any request; never waits."""

    def on_message(self, message: Request | Notification) -> None: ...


class Channel(Protocol):
    """What carries messages to and from one backend."""

    @property
    def backend_id(self) -> str: ...

    @property
    def ids(self) -> Iterator[int]:
        """Ids for requests. One number is never used twice on a channel: a late answer must not pass for another."""
        ...

    @property
    def complaints(self) -> Complaints: ...

    @property
    def has_headers(self) -> bool:
        """Requests have HTTP headers, in which parts of them are repeated."""
        ...

    @property
    def is_lost(self) -> bool:
        """The connection is over: no request will be answered. Always False where each request has its own."""
        ...

    def attach(self, listener: Listener) -> None:
        """From now on `listener` takes what is said outside of requests."""
        ...

    async def exchange(self, ask: Ask, data: bytes, headers: Headers) -> RequestOutcome:
        """Send a request and wait for what becomes of it.

        Args:
            data: The request as it goes out.
            headers: For channels of HTTP; not changed any more by the caller.

        Raises:
            BackendError: There is no answer, and there will be none.
        """
        ...

    async def tell(self, data: bytes, identity: Identity | None) -> None:
        """Send what has no answer, so that whatever is sent afterwards comes behind it.

        Raises:
            BackendError: It could not be sent.
        """
        ...

    def send_for(self, identity: Identity | None) -> Send:
        """The way back for an answer to a request of the backend's.

        Args:
            identity: Whose call the backend's request belongs to; None: no call's.
        """
        ...

    def cancel(self, ask: Ask, reason: str) -> None:
        """The request was written, and its caller has given up: tell the backend, without waiting."""
        ...

    async def hold(
        self,
        ask: Ask,
        data: bytes,
        headers: Headers,
        accept: Callable[[Message], bool],
        on_retry: Callable[[float], None],
    ) -> Answer | Refusal | None:
        """Send a request that stays open, such as `subscriptions/listen`, and hand over what comes by its stream until
        the stream ends or `take` returns False. Cancelled, it cancels the request.

        Args:
            take: Takes one message of this stream; what it raises ends the stream.
            on_retry: Told how many s the stream asks to wait before it is opened again.

        Returns:
            An answer that `take` has not seen.

        Raises:
            BackendError: There was no stream, or it broke.
        """
        ...

    def retire(self) -> None:
        """Open no new stream. Streams and messages that are under way go on until `aclose`."""
        ...

    async def aclose(self, *, terminate: bool) -> None:
        """End the connection; `terminate` also ends the backend's session. Cancelled, it is over at once all the
        same.
        """
        ...


class SessionChannel(Channel, Protocol):
    """A channel that can carry the handshake era, in which the connection has a session."""

    @property
    def session_id(self) -> str | None:
        """The id that the backend assigned; None: it assigned none."""
        ...

    async def greet(self, ask: Ask, data: bytes) -> RequestOutcome:
        """Send `initialize`, outside of any session; what the answer assigns is the session from then on.

        Raises:
            BackendError: As `exchange`; also where the assigned id is none.
        """
        ...

    def agree(self, version: str) -> None:
        """The protocol version was negotiated: it goes out with every message from now on."""
        ...

    def resume(self, session_id: str | None, version: str) -> None:
        """Go on with a session of an earlier connection; the first answer shows whether it is alive."""
        ...

    def listen(self, listener: SessionListener | None, *, is_asked: bool) -> None:
        """Hear what the backend says outside of requests: hold a stream open for it, where that takes one.

        Args:
            listener: None: nothing needs such a stream.
            is_asked: Handlers answer the backend's requests, which come by that stream.
        """
        ...

    async def wait_listening(self) -> None:
        """Until what is said outside of requests is heard, or will not be for now."""
        ...

    @property
    def listening(self) -> Listening:
        """Whether what the backend says outside of requests is heard."""
        ...


class SessionListener(Protocol):
    """Hears how the stream stands by which a session's changes come."""

    def on_first(self) -> None:
        """The stream is open for the first time."""
        ...

    def on_missed(self) -> None:
        """The stream is open again, and nothing of what was said meanwhile is sent again."""
        ...

    def on_session_lost(self, detail: str) -> None:
        """The stream was refused in words that say that the session is gone."""
        ...
