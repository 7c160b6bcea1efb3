"""One backend's client, whatever its era and its channel: the deadline, progress, giving up, what was declared.

The clients of both eras (`handshake`, `stateless`) add how a request is sent in their era; a channel carries it.
"""

from __future__ import annotations

import abc
import math
from collections import Counter
from contextlib import nullcontext
from typing import Generic, TypeVar

import attrs
import trio

from trio_vmcp._client.channels.channel import Ask, Channel, OnOther, ignore_other
from trio_vmcp._client.listening import Listening
from trio_vmcp._client.server_requests import ServerRequests
from trio_vmcp._protocol.jsonrpc import Notification, Request
from trio_vmcp._protocol.methods import (
    CANCELLED,
    LIST_CHANGED,
    MESSAGE,
    METHODS,
    PROGRESS,
    SUBSCRIBE,
    UNKNOWN,
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
# Resource subscriptions to one backend: in the modern era all of them go out with each new stream, in the handshake era
# each of them with each new session.
MOST_SUBSCRIPTIONS = 1000

ChannelT = TypeVar("ChannelT", bound=Channel)

_UNLIMITED = nullcontext()  # a scope costs a listing as much as parsing its answer


@attrs.define(eq=False, kw_only=True)
class Client(abc.ABC, Generic[ChannelT]):
    """A `BackendClient`."""

    record: BackendRecord
    _channel: ChannelT = attrs.field(alias="channel", repr=False)
    _events: EventSink = attrs.field(alias="events", repr=False)
    _requests: ServerRequests = attrs.field(alias="requests", repr=False)  # the backend's own
    # Kinds of lists that were asked for while their changes were not heard of.
    _listed_unheard: set[Kind] = attrs.field(factory=set, init=False, repr=False)
    _subscribing: Counter[str] = attrs.field(factory=Counter, init=False, repr=False)  # URIs that are being asked for

    @property
    def server_capabilities(self) -> JSON:
        return self.record.server_capabilities

    @property
    @abc.abstractmethod
    def listening(self) -> Listening:
        """Whether changes are heard of that no request brought."""

    @abc.abstractmethod
    def listen_again(self) -> None:
        """Open the stream for changes anew, if there should be one and it was given up; without waiting."""

    @property
    @abc.abstractmethod
    def subscribed(self) -> tuple[str, ...]:
        """URIs of the resources whose updates are told of."""

    async def request(
        self,
        method: str,
        params: JSON,
        *,
        identity: Identity | None,
        timeout: float,
        on_progress: OnProgress | None,
    ) -> JSON:
        known = METHODS.get(method, UNKNOWN)
        message_id = next(self._channel.ids)
        note = begin_request(method)
        if on_progress is not None:
            params = params | {"_meta": params.get("_meta", {}) | {"progressToken": message_id}}
        in_callback = False

        async def on_other(message: Request | Notification) -> None:
            nonlocal in_callback
            in_callback = True
            await self._on_other(message, ask, on_progress)
            in_callback = False

        token = None if on_progress is None else message_id
        ask = Ask(message_id, method, params, identity, on_other, note, token)
        try:
            # Not fail_after: a TooSlowError of the caller's callback must not pass for this deadline.
            with trio.move_on_after(timeout) if timeout < math.inf else _UNLIMITED:
                await trio.lowlevel.checkpoint_if_cancelled()  # a timeout of 0 sends nothing
                self._check(known)
                if method == SUBSCRIBE:
                    return await self._subscribe(ask, known)
                return await self.exchange(ask, known)
        except BaseException as error:
            # An error of the backend's own is the end of the request. Else the caller was cancelled, or its callback
            # raised, which may be another backend's error.
            if note.written and (in_callback or not isinstance(error, BackendError)):
                self._cancel_request(ask, "the caller gave up")
            if isinstance(error, BackendError):
                self.on_error(error)
            raise
        if note.written:
            self._cancel_request(ask, "timed out")
        late = BackendTimeout(
            self.record.backend_id,
            f"did not answer {method!r} within {timeout} s (request_timeout)",
            may_have_executed=note.written,
        )
        self.on_error(late)
        raise late

    @abc.abstractmethod
    async def exchange(self, ask: Ask, method: Method) -> JSON:
        """Send the request in this era's way, until its result."""

    @abc.abstractmethod
    def on_request(self, message: Request, identity: Identity | None) -> None:
        """The backend asks something of us; answered without holding up the stream that it came on.

        Args:
            identity: The caller of the request whose stream that is; None: the stream is no request's.
        """

    def on_error(self, error: BackendError) -> None:
        """A request failed. What is known of the backend without asking may be out of date."""

    def on_message(self, message: Request | Notification) -> None:
        """The backend says something outside of any request; see `Listener`."""
        if isinstance(message, Request):
            self.on_request(message, None)
        else:
            self.on_notification(message, None)

    def on_notification(self, message: Notification, identity: Identity | None) -> None:
        """The backend tells something, other than progress, on any stream."""
        if message.method == CANCELLED:
            self._requests.cancel_answer(message.params)
            return
        if message.method == MESSAGE:
            self._requests.put_log_message(message.params, identity)
        self.on_event(message.method, message.params)

    def on_event(self, method: str, params: JSON) -> None:
        """A notification that is about more than one request, on whatever stream it came."""
        self._events(method, params)

    def on_heard(self, kinds: tuple[Kind, ...]) -> None:
        """From now on changes of these kinds of lists are heard of. A change between the first listing and this moment
        was told by nothing, so what was listed before is reported as changed: it is asked for once more.
        """
        for kind in kinds:
            if kind in self._listed_unheard:
                self._listed_unheard.discard(kind)
                self.on_event(LIST_CHANGED[kind], {})

    def _check(self, method: Method) -> None:
        """
        Raises:
            BackendRejected: The backend does not declare what the request needs: "use only negotiated capabilities"
                (2025-11-25, lifecycle).
        """
        if isinstance(method, ListMethod):
            if self.listening != "open":
                self._listed_unheard.add(method.kind)
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
            MessageTooLarge: One subscription too many, those that are being asked for included.
        """
        uri = ask.params["uri"]
        wanted = {*self.subscribed, *self._subscribing, uri}
        if len(wanted) > MOST_SUBSCRIPTIONS:
            raise MessageTooLarge(
                self.record.backend_id, f"has {MOST_SUBSCRIPTIONS} resource subscriptions, and there may be no more"
            )
        self._subscribing[uri] += 1
        try:
            return await self.exchange(ask, method)
        finally:
            self._subscribing[uri] -= 1
            if not self._subscribing[uri]:
                del self._subscribing[uri]

    def _cancel_request(self, ask: Ask, reason: str) -> None:
        """The caller waits no more for a request that was written: tell the backend, and end what it asks meanwhile."""
        self._requests.cancel_answers_for(ask.note)
        self._channel.cancel(ask, reason)

    async def _on_other(self, message: Request | Notification, ask: Ask, on_progress: OnProgress | None) -> None:
        if isinstance(message, Request):
            self.on_request(message, ask.identity)
        elif message.method != PROGRESS:
            self.on_notification(message, ask.identity)
        elif on_progress is not None:
            progress = _progress_of(message.params, ask.id)
            if progress is not None:
                await on_progress(*progress)

    def _ask(self, method: str, params: JSON, identity: Identity | None, on_other: OnOther = ignore_other) -> Ask:
        """A request of the client's own, or one more of a caller's."""
        return Ask(next(self._channel.ids), method, params, identity, on_other, begin_request(method))


def _progress_of(params: JSON, token: int) -> tuple[float, float | None, str | None] | None:
    """The three values of a progress notification; None: it is another request's, or makes no sense."""
    received, text = params.get("progressToken"), params.get("message")
    progress, total = _number(params.get("progress")), _number(params.get("total"))
    if type(received) is not int or received != token or progress is None:
        return None
    return progress, total, text if isinstance(text, str) else None


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
