"""What all clients share: ids, the deadline, progress, and what becomes of a request that is given up."""

from __future__ import annotations

import abc
import itertools
import json
import logging
import math
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import metadata as distribution

import attrs
import trio

from trio_vmcp._client.channels.streamable import OnOther, StreamableHttp
from trio_vmcp._client.eras import LEGACY_VERSIONS
from trio_vmcp._client.listening import Listening, Unwatched, tell_unwatched
from trio_vmcp._client.server_requests import ServerRequests
from trio_vmcp._protocol.jsonrpc import Notification, Request
from trio_vmcp._request_note import begin_request
from trio_vmcp.connector import EventSink, OnProgress
from trio_vmcp.errors import BackendError, BackendProtocolError, BackendTimeout, MessageTooLarge
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord
from trio_vmcp.models import JSON

__all__ = ["CLIENT_INFO", "CallingClient", "StreamableClient", "declared_capabilities", "negotiated"]

logger = logging.getLogger("trio_vmcp.client")

CLIENT_INFO = {"name": "trio-vmcp", "version": distribution.version("trio-vmcp")}
# As JSON. They go into the metadata, and a row that one backend made too large could not be written for any.
MAX_CAPABILITIES_BYTES = 64 * 1024


_UNLIMITED = nullcontext()  # a scope costs a listing as much as its answer's parsing


@attrs.define(eq=False, kw_only=True)
class CallingClient(abc.ABC):
    """A `BackendClient`, whatever carries its messages."""

    record: BackendRecord
    _events: EventSink = attrs.field(alias="events", repr=False)
    _requests: ServerRequests = attrs.field(alias="requests", repr=False)  # the backend's own
    _ids: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False, repr=False)
    _unwatched: Unwatched = attrs.field(factory=Unwatched, init=False, repr=False)

    @property
    def server_capabilities(self) -> JSON:
        return self.record.server_capabilities

    async def request(
        self,
        method: str,
        params: JSON,
        *,
        identity: Identity | None,
        timeout: float,
        on_progress: OnProgress | None,
    ) -> JSON:
        message_id = next(self._ids)
        note = begin_request(method)
        if on_progress is not None:
            params = params | {"_meta": params.get("_meta", {}) | {"progressToken": message_id}}

        in_callback = False

        async def on_other(message: Request | Notification) -> None:
            nonlocal in_callback
            in_callback = True
            await self._on_other(message, message_id, identity, on_progress)
            in_callback = False

        try:
            # Not fail_after: a TooSlowError of the caller's callback must not pass for this deadline.
            with trio.move_on_after(timeout) if timeout < math.inf else _UNLIMITED:
                await trio.lowlevel.checkpoint_if_cancelled()  # a timeout of 0 sends nothing
                return await self._exchange(message_id, method, params, identity, on_other)
        except BaseException as error:
            # An error of the backend's own is the end of the request. Else the caller was cancelled, or its callback
            # raised, which may be some other backend's error.
            if note.written and (in_callback or not isinstance(error, BackendError)):
                self._give_up(message_id, identity, "the caller gave up")
            raise
        if note.written:
            self._give_up(message_id, identity, "timed out")
        raise BackendTimeout(
            self.record.backend_id,
            f"did not answer {method!r} within {timeout} s (request_timeout)",
            may_have_executed=note.written,
        )

    @abc.abstractmethod
    async def _exchange(
        self, message_id: int, method: str, params: JSON, identity: Identity | None, on_other: OnOther
    ) -> JSON:
        """Send the request in this era's way, until its result."""

    @abc.abstractmethod
    def _give_up(self, message_id: int, identity: Identity | None, reason: str) -> None:
        """Nobody waits for this request any more, though it was written: tell the backend, without waiting."""

    @abc.abstractmethod
    def _on_request(self, message: Request, identity: Identity | None) -> None:
        """The backend asks something of us; answered without holding up the stream that it came on.

        Args:
            identity: Whose request the stream belongs to; None: no request's.
        """

    def _on_notification(self, message: Notification, identity: Identity | None) -> None:
        """The backend tells something, other than progress, on any stream."""
        if message.method == "notifications/cancelled":
            self._requests.cancel(message.params)
            return
        if message.method == "notifications/message":
            self._requests.log(message.params, identity)
        self._heard(message.method, message.params)

    def _heard(self, method: str, params: JSON) -> None:
        """A notification that is about more than one request, on whatever stream it came."""
        self._events(method, params)

    def _watched(self, kinds: tuple[str, ...]) -> None:
        """From now on changes of these kinds of lists are heard of."""
        taken = self._unwatched.take(kinds)
        if taken:
            self._doubt(taken)

    def _doubt(self, kinds: tuple[str, ...]) -> None:
        """What was listed of these kinds may be old."""
        tell_unwatched(self._events, kinds)

    async def _on_other(
        self,
        message: Request | Notification,
        message_id: int,
        identity: Identity | None,
        on_progress: OnProgress | None,
    ) -> None:
        if isinstance(message, Request):
            self._on_request(message, identity)
        elif message.method != "notifications/progress":
            self._on_notification(message, identity)
        elif on_progress is not None:
            progress = _progress_of(message.params, message_id)
            if progress is not None:
                await on_progress(*progress)


@attrs.define(eq=False, kw_only=True)
class StreamableClient(CallingClient):
    """A `BackendClient` over streamable HTTP."""

    _http: StreamableHttp = attrs.field(alias="http", repr=False)

    @property
    @abc.abstractmethod
    def listening(self) -> Listening:
        """Whether changes are heard of that no request brought."""

    @abc.abstractmethod
    def listen_again(self) -> None:
        """Open the stream for changes anew, if there should be one and it was given up; without waiting."""


def negotiated(backend_id: str, result: JSON) -> tuple[str, JSON]:
    """The version that an answer to `initialize` settles on, and the capabilities it declares.

    Raises:
        BackendProtocolError: A version that we do not speak, or capabilities that are no object.
        MessageTooLarge: As in `declared_capabilities`.
    """
    version = result.get("protocolVersion")
    if version not in LEGACY_VERSIONS:
        shown = repr(version[:40]) if isinstance(version, str) else "no version"
        raise BackendProtocolError(backend_id, f"answered 'initialize' with {shown}; we speak {LEGACY_VERSIONS}")
    return version, declared_capabilities(backend_id, "initialize", result)


def declared_capabilities(backend_id: str, method: str, result: JSON) -> JSON:
    """What a server declared of itself in its answer to `method`.

    Raises:
        BackendProtocolError: It is no object.
        MessageTooLarge: Over MAX_CAPABILITIES_BYTES.
    """
    capabilities = result.get("capabilities", {})
    if not isinstance(capabilities, dict):
        raise BackendProtocolError(backend_id, f"answered {method!r} with capabilities that are no object")
    if len(json.dumps(capabilities)) > MAX_CAPABILITIES_BYTES:
        raise MessageTooLarge(backend_id, f"declares capabilities of over {MAX_CAPABILITIES_BYTES} bytes")
    return capabilities


def _progress_of(params: JSON, token: int) -> tuple[float, float | None, str | None] | None:
    """The three values of a progress notification; None when it is somebody else's or makes no sense."""
    received, text = params.get("progressToken"), params.get("message")
    progress, total = _number(params.get("progress")), _number(params.get("total"))
    if type(received) is not int or received != token or progress is None:
        return None
    return progress, total, text if isinstance(text, str) else None


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
