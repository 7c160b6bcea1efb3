"""The seam between the client of an era, which knows what messages mean, and the channel that carries them.

There are two kinds of channels. Over streamable HTTP each request has a response of its own. Over HTTP+SSE and stdio
all messages share one stream in each direction (`duplex`). The clients of both eras use this interface alone, so each
rule about messages exists once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol, TypeAlias

import attrs
import trio

from trio_vmcp._client.complaints import Complaints
from trio_vmcp._client.listening import Listening
from trio_vmcp._known_results import KnownResults
from trio_vmcp._protocol.jsonrpc import Message, Notification, Request, encode_request
from trio_vmcp._protocol.methods import INPUT_RESPONSES, REQUEST_STATE, may_repeat
from trio_vmcp._protocol.outcomes import Answer, Refusal, RequestOutcome
from trio_vmcp._request_note import RequestNote
from trio_vmcp.errors import BackendError
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON

__all__ = [
    "Ask",
    "Channel",
    "Headers",
    "MessageSink",
    "NoSink",
    "OnOther",
    "Send",
    "SessionChannel",
    "StartedChannel",
    "StreamWatcher",
    "ignore_other",
]

Headers: TypeAlias = list[tuple[bytes, bytes]]

OnOther: TypeAlias = Callable[[Request | Notification], Awaitable[None]]
"""Called in the request's task with each message that comes for it before the answer: progress, logs, questions."""

Send: TypeAlias = Callable[[bytes], Awaitable[None]]
"""Sends one message. The caller logs a `BackendError` that it raises."""


async def ignore_other(message: Request | Notification) -> None:
    """For requests of which only the answer is of use."""


@attrs.frozen
class Ask:
    """One request, from the task of its caller to the wire.

    Attributes:
        id: The JSON-RPC id, never used before on this channel.
        identity: The request carries its credentials; None: the session is anonymous.
        on_other: Takes the messages of this request before its answer.
        progress_token: In `_meta`, the same in all rounds of a request; None: no progress is asked for.
        note: Tells afterwards whether the request was written.
        on_again: Takes the request that replaces this one, under a new id, in its next round: the one to cancel.
        known: Results that need not be parsed again; None: the caller knows none.
    """

    id: int
    method: str
    params: JSON = attrs.field(repr=False)
    identity: Identity | None
    on_other: OnOther = attrs.field(repr=False)
    note: RequestNote = attrs.field(repr=False)
    progress_token: int | None = None
    on_again: Callable[[Ask], None] = attrs.field(default=lambda again: None, repr=False)
    known: KnownResults | None = attrs.field(default=None, repr=False)

    @property
    def may_repeat(self) -> bool:
        """Whether this may be sent again although it may have been applied. The answer to a question may not: its state
        may be good for one request (2026-07-28, multi round-trip requests).
        """
        return may_repeat(self.method) and not self.params.keys() & (INPUT_RESPONSES, REQUEST_STATE)

    def encode(self) -> bytes:
        """
        Raises:
            ValueError: The params cannot be sent; names the method and the place.
        """
        return encode_request(self.id, self.method, self.params)


class MessageSink(Protocol):
    """Takes the messages of a backend that belong to no request; never waits."""

    def on_message(self, message: Request | Notification) -> None: ...


class NoSink(MessageSink):
    """That of a client which is closed: a channel must not keep the client alive, nor the client's session."""

    def on_message(self, message: Request | Notification) -> None:
        pass


class Channel(Protocol):
    """Carries messages to and from one backend."""

    @property
    def backend_id(self) -> str: ...

    @property
    def ids(self) -> Iterator[int]:
        """Ids for requests. No number is used twice on a channel, else a late answer would be taken for the answer to a
        newer request.
        """
        ...

    @property
    def complaints(self) -> Complaints: ...

    @property
    def has_headers(self) -> bool:
        """Requests have HTTP headers, which repeat parts of the body."""
        ...

    @property
    def notes_in_flight(self) -> frozenset[RequestNote]:
        """The notes of the requests that wait for an answer, where they share a stream. Empty over streamable HTTP,
        where each request has a stream of its own.
        """
        ...

    @property
    def is_lost(self) -> bool:
        """The connection has ended, so no request will be answered. Always False over streamable HTTP, where each
        request has a connection of its own.
        """
        ...

    def attach(self, sink: MessageSink) -> None:
        """From now on `sink` takes the messages that belong to no request."""
        ...

    async def exchange(self, ask: Ask, data: bytes, headers: Headers) -> RequestOutcome:
        """Send a request and wait for its outcome.

        Args:
            data: The encoded request.
            headers: For channels of HTTP. The caller must not change the list afterwards.

        Returns:
            The answer, or the refusal by HTTP. `Loss`: the request was sent, and the stream that was to bring its
            answer ended.

        Raises:
            BackendError: The request could not be sent, the connection broke before a response began, or the answer
                cannot be read: it is not MCP, or over a limit.
        """
        ...

    async def tell(self, data: bytes, identity: Identity | None) -> None:
        """Send a message that has no answer. Messages that are sent afterwards arrive after it.

        Raises:
            BackendError: The message could not be sent.
        """
        ...

    def send_for(self, identity: Identity | None) -> Send:
        """A function that sends the answer to a request of the backend.

        Args:
            identity: The caller of the call that the request belongs to; None: it belongs to no call.
        """
        ...

    def cancel(self, ask: Ask, reason: str) -> None:
        """The caller no longer waits for a request that was written: tell the backend, without waiting."""
        ...

    async def hold(
        self,
        ask: Ask,
        data: bytes,
        headers: Headers,
        accept: Callable[[Message], bool],
        on_retry: Callable[[float], None],
    ) -> Answer | Refusal | None:
        """Send a request that stays open, such as `subscriptions/listen`, and hand over the messages of its stream,
        until the stream ends or `accept` returns False. If this is cancelled, the request is cancelled, too.

        Args:
            accept: Takes one message of this stream; returns whether more are wanted. An error that it raises ends the
                stream.
            on_retry: Called with the delay in s that the server asks for before the stream is opened again.

        Returns:
            The reply, if one came in place of a stream or ended it; None: the stream just ended.

        Raises:
            BackendError: There was no stream, or it broke.
        """
        ...

    def blot(self, text: str) -> str:
        """A text of the backend without the secrets that it was given: headers, credentials, ids of sessions, parts of
        the url, the environment. For logs and error texts.
        """
        ...

    def retire(self) -> None:
        """Open no new stream. Streams and messages that are under way go on until `aclose`."""
        ...

    async def aclose(self, *, terminate: bool) -> None:
        """End the connection; `terminate` also ends the backend's session. If cancelled, the connection is dropped at
        once, without waiting for the goodbye.
        """
        ...


class SessionChannel(Channel, Protocol):
    """A channel for the handshake era, in which the connection has a session."""

    @property
    def session_id(self) -> str | None:
        """The id that the backend assigned; None: it assigned none."""
        ...

    async def greet(self, ask: Ask, data: bytes) -> RequestOutcome:
        """Send `initialize`, outside of any session. The answer may assign the id of the new session.

        Raises:
            BackendError: As `exchange`. Also if the backend assigned an id that is not valid.
        """
        ...

    def agree(self, version: str) -> None:
        """The protocol version was negotiated: send it with every message from now on, if this channel has a place."""
        ...

    def expect_requests(self, count: int, *, and_stream: bool) -> None:
        """So many requests follow at once, and the stream of `watch`: if this channel needs a connection for each of
        them, begin to make those connections.
        """
        ...

    def resume(self, session_id: str | None, version: str) -> None:
        """Go on with a session of an earlier connection. The first answer shows whether the session is alive."""
        ...

    def renew_identity(self, identity: Identity) -> None:
        """What belongs to no call carries the newer token of this identity from now on."""
        ...

    def watch(self, watcher: StreamWatcher | None, *, is_asked: bool) -> None:
        """Receive the messages that belong to no request; if the channel needs a stream for them, hold it open.

        Args:
            watcher: Told about that stream; None: no stream is needed.
            is_asked: Handlers are given. The backend's requests come by that stream, so calls that may cause one wait
                for it.
        """
        ...

    async def wait_listening(self) -> None:
        """Wait until the stream for messages outside of requests is open, or opening it has failed for now."""
        ...

    @property
    def listening(self) -> Listening:
        """Whether messages that belong to no request are received."""
        ...


class StartedChannel(SessionChannel, Protocol):
    """A channel with something to start at the other end, such as a child process."""

    async def start(self, nursery: trio.Nursery) -> None:
        """Start it in `nursery`, which owns it even if this call is cancelled. Attach a sink before: a message may
        come as soon as it runs.

        Raises:
            BackendUnavailable: It could not be started.
        """
        ...

    def mark_connected(self) -> None:
        """The client is connected: from now on the end of the connection is an error of its task.

        Raises:
            BackendUnavailable: The connection has ended.
        """
        ...

    def close(self) -> None:
        """End it, without waiting."""
        ...

    async def wait_gone(self) -> None:
        """Until nothing of it is left."""
        ...


class StreamWatcher(Protocol):
    """Told about the stream that brings messages outside of requests."""

    def on_first(self) -> None:
        """The stream is open for the first time."""
        ...

    def on_missed(self) -> None:
        """The stream is open again, and messages of the meantime are lost."""
        ...

    def on_reached(self, error: BackendError | None) -> None:
        """See `OnReached`."""
        ...

    def on_session_lost(self, detail: str) -> None:
        """The refusal of the stream says that the session is gone."""
        ...
