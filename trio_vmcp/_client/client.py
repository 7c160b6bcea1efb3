"""A client of one backend, the part that both eras and all channels share: the deadline of a request, its progress, its
cancellation, and the check that the server declares what the request needs.

The clients of the two eras (`handshake`, `stateless`) add how a request is sent in their era; a channel carries it.
"""

from __future__ import annotations

import abc
import math
from contextlib import nullcontext
from typing import ClassVar, Generic, TypeVar

import attrs
import trio

from trio_vmcp._client.channels.channel import Ask, Channel, NoSink, OnOther, ignore_other
from trio_vmcp._client.listening import Listening
from trio_vmcp._client.progress import progress_of
from trio_vmcp._client.server_requests import ServerRequests
from trio_vmcp._interrupts import run_interruptible
from trio_vmcp._known_results import KnownResults
from trio_vmcp._protocol.jsonrpc import Notification, Request
from trio_vmcp._protocol.methods import (
    CANCELLED,
    LIST_CHANGED,
    METHODS,
    PROGRESS,
    SUBSCRIBE,
    Kind,
    ListMethod,
    Method,
    declares,
)
from trio_vmcp._request_note import begin_request
from trio_vmcp.connector import EventSink, OnProgress
from trio_vmcp.errors import BackendError, BackendRejected, BackendTimeout, MessageTooLarge
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord
from trio_vmcp.models import JSON

__all__ = ["Client"]

METHOD_NOT_FOUND = -32601  # JSON-RPC 2.0
# Resource subscriptions to one backend. All are sent again: in the modern era with each new stream, in the handshake
# era with each new session.
MOST_SUBSCRIPTIONS = 1000

ChannelT = TypeVar("ChannelT", bound=Channel)

_UNLIMITED = nullcontext()  # a scope takes as long as parsing the answer to a listing


@attrs.define(eq=False, kw_only=True)
class Client(abc.ABC, Generic[ChannelT]):
    """A `BackendClient`, and a `RecallingClient`."""

    recalls: ClassVar[bool] = True
    record: BackendRecord
    _channel: ChannelT = attrs.field(alias="channel", repr=False)
    _events: EventSink = attrs.field(alias="events", repr=False)
    _requests: ServerRequests = attrs.field(alias="requests", repr=False)  # the backend's own
    # Kinds of lists that were read while the backend could not report changes.
    _listed_too_early: tuple[Kind, ...] = attrs.field(default=(), init=False, repr=False)
    _subscribing: tuple[str, ...] = attrs.field(default=(), init=False, repr=False)  # URIs of requests in flight

    @property
    def server_capabilities(self) -> JSON:
        return self.record.server_capabilities

    @property
    def last_asked_at(self) -> float:
        """`trio.current_time()` when a question of the backend was last answered: now, while one is; -inf: never."""
        return self._requests.last_asked_at

    @property
    @abc.abstractmethod
    def listening(self) -> Listening:
        """Whether the client receives notifications that belong to no request."""

    @abc.abstractmethod
    def listen_again(self) -> None:
        """If the stream for changes has ended for good, open it again, without waiting."""

    @abc.abstractmethod
    def close(self) -> None:
        """Act on no further message of this connection."""

    def on_reached(self, error: BackendError | None) -> None:
        """See `OnReached`. Only the sink of a session takes it: `EventSink` has no such method."""
        tell = getattr(self._events, "stream_reached", None)
        if tell is not None:
            tell(error)

    async def aclose(self, *, terminate: bool) -> None:
        self.close()
        try:
            await self._channel.aclose(terminate=terminate)
        finally:
            self._channel.attach(NoSink())

    @property
    @abc.abstractmethod
    def subscribed(self) -> tuple[str, ...]:
        """URIs of the resources that the backend reports updates of."""

    async def request(
        self,
        method: str,
        params: JSON,
        *,
        identity: Identity | None,
        timeout: float,
        on_progress: OnProgress | None,
        known: KnownResults | None = None,
    ) -> JSON:
        what = METHODS.get(method) or Method(name=method)
        message_id = next(self._channel.ids)
        note = begin_request(method)
        if on_progress is not None:
            params = params | {"_meta": params.get("_meta", {}) | {"progressToken": message_id}}
        in_callback = False
        latest: Ask | None = None

        async def on_other(message: Request | Notification) -> None:
            nonlocal in_callback
            in_callback = True
            await self._on_other(message, identity, message_id, on_progress)
            in_callback = False

        def on_again(again: Ask) -> None:
            nonlocal latest
            latest = again

        token = None if on_progress is None else message_id
        ask = Ask(message_id, method, params, identity, on_other, note, token, on_again, known)
        try:
            # Not fail_after: a TooSlowError of the caller's callback must not pass for this deadline.
            with trio.move_on_after(timeout) if timeout < math.inf else _UNLIMITED:
                await trio.lowlevel.checkpoint_if_cancelled()  # a timeout of 0 sends nothing
                self._check(what)
                if method == SUBSCRIBE:
                    return await self._subscribe(ask, what)
                return await self.exchange(ask, what)
        except BaseException as error:
            # After a `BackendError` of this request, the backend expects no cancel notice. Any other error is the
            # caller's cancellation or comes from its callback, which may raise the `BackendError` of another backend.
            if note.written and (in_callback or not isinstance(error, BackendError)):
                self._cancel_request(latest or ask, "the caller gave up")
            if isinstance(error, BackendError):
                if not in_callback:
                    error.detail = self._channel.blot(error.detail)
                self.on_error(error)
            raise
        if note.written:
            self._cancel_request(latest or ask, "timed out")
        late = BackendTimeout(
            self.record.backend_id,
            f"did not answer {method!r} within {timeout} s ({note.knob}){note.via}",
            may_have_executed=note.written,
        )
        self.on_error(late)
        raise late

    @abc.abstractmethod
    async def exchange(self, ask: Ask, method: Method) -> JSON:
        """Send the request as this era does, and return its result."""

    @abc.abstractmethod
    def on_request(self, message: Request, identity: Identity | None) -> None:
        """The backend sent a request. Answer it in another task, so that its stream is read on meanwhile.

        Args:
            identity: The caller of the request that the stream belongs to; None: the stream belongs to no request.
        """

    def on_error(self, error: BackendError) -> None:
        """A request failed, so cached facts about the backend may be out of date."""

    def on_message(self, message: Request | Notification) -> None:
        """A message that belongs to no request of ours; see `MessageSink`."""
        if isinstance(message, Request):
            self.on_request(message, None)
        else:
            self.on_notification(message, None)

    def on_notification(self, message: Notification, identity: Identity | None) -> None:
        """A notification other than progress, on any stream."""
        if message.method == CANCELLED:
            self._requests.cancel_answer(message.params)
            return
        self._requests.put_notice(message.method, message.params, identity)
        self.on_event(message.method, message.params)

    def on_event(self, method: str, params: JSON) -> None:
        """A notification that the session may act on, on any stream."""
        self._events(method, params)

    def on_listening(self, kinds: tuple[Kind, ...]) -> None:
        """From now on the backend reports changes of these kinds of lists. A change between the first listing and this
        moment was not reported, so lists that were read before are reported as changed: the session reads them again.
        """
        early: tuple[Kind, ...] = tuple(kind for kind in kinds if kind in self._listed_too_early)
        self._listed_too_early = tuple(kind for kind in self._listed_too_early if kind not in early)
        for kind in early:
            self.on_event(LIST_CHANGED[kind], {})

    def _check(self, method: Method) -> None:
        """
        Raises:
            BackendRejected: The backend does not declare what the request needs: "use only negotiated capabilities"
                (2025-11-25, lifecycle).
        """
        if isinstance(method, ListMethod):
            if method.kind not in self._listed_too_early and self.listening != "open":
                self._listed_too_early += (method.kind,)
        elif method.needs and not declares(self.server_capabilities, method.needs):
            raise BackendRejected(
                self.record.backend_id,
                f"does not offer {method.name!r}: it declares no {'.'.join(method.needs)}",
                code=METHOD_NOT_FOUND,
                message="not declared",
            )

    async def _subscribe(self, ask: Ask, method: Method) -> JSON:
        """
        Raises:
            MessageTooLarge: Over MOST_SUBSCRIPTIONS, those in flight included.
        """
        uri = ask.params["uri"]
        wanted = {*self.subscribed, *self._subscribing, uri}
        if len(wanted) > MOST_SUBSCRIPTIONS:
            raise MessageTooLarge(
                self.record.backend_id, f"has {MOST_SUBSCRIPTIONS} resource subscriptions, and there may be no more"
            )
        self._subscribing += (uri,)
        try:
            return await self.exchange(ask, method)
        finally:
            at = self._subscribing.index(uri)
            self._subscribing = self._subscribing[:at] + self._subscribing[at + 1 :]

    def _cancel_request(self, ask: Ask, reason: str) -> None:
        """The caller no longer waits for a request that was written: cancel it, and the handlers that run for it."""
        self._requests.cancel_answers_for(ask.note, self._channel.notes_in_flight)
        self._channel.cancel(ask, reason)

    async def _on_other(
        self,
        message: Request | Notification,
        identity: Identity | None,
        request_id: int,
        on_progress: OnProgress | None,
    ) -> None:
        if isinstance(message, Request):
            self.on_request(message, identity)
        elif message.method != PROGRESS:
            self.on_notification(message, identity)
        elif on_progress is not None:
            progress = progress_of(message.params, request_id)
            if progress is not None:
                await run_interruptible(on_progress, *progress)

    def _ask(self, method: str, params: JSON, identity: Identity | None, on_other: OnOther = ignore_other) -> Ask:
        """A new request: one that no caller made, or another one for the request of a caller."""
        return Ask(next(self._channel.ids), method, params, identity, on_other, begin_request(method))
