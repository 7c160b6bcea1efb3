"""The requests that one backend sends to its client, and their answers, over any channel.

- Each handler runs in a task of its own in the backend's nursery, in a clean context. The task ends with its answer. It
  is cancelled when the backend sends `notifications/cancelled`, when the call that the request belongs to is
  cancelled, and when the connection closes.
- At most MOST_ANSWERS handlers run at a time, for requests of `max_pending_bytes` together; other requests are refused.
  At most as many refusals and answers to pings are on their way; the requests beyond that get no answer.
- The streams of calls are read in the tasks of their callers, which may go on after the connection has broken and its
  nursery has ended: a request that arrives then is ignored.
- The ids are numbers and strings that the backend chooses, 0 and "" among them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import attrs
import trio

from trio_vmcp._client.channels.channel import Send
from trio_vmcp._client.complaints import Complaints
from trio_vmcp._client.handlers import BoundHandlers, call_info
from trio_vmcp._client.http.connection_limit import ConnectionSlot
from trio_vmcp._client.notice_feed import MOST_WAITING_BYTES, NoticeFeed
from trio_vmcp._nursery import start_if_open
from trio_vmcp._protocol.json_cost import memory_size
from trio_vmcp._protocol.jsonrpc import Request, RequestId, encode_error, encode_result
from trio_vmcp._protocol.methods import CANCELLED, PING, QUESTIONS
from trio_vmcp._request_note import RequestNote, answering_on, current_note
from trio_vmcp.connector import ServerRequestError
from trio_vmcp.errors import BackendError
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON

__all__ = ["MOST_ANSWERS", "ServerRequests"]

logger = logging.getLogger("trio_vmcp.client")

MOST_ANSWERS = 16  # to the backend's own requests, at the same time
ANSWER_TIMEOUT = 30.0  # s, to send one
UNAVAILABLE = -32000  # from the range that JSON-RPC 2.0 §5.1 leaves to implementations


@attrs.define(eq=False)
class _RunningHandler:
    """A handler that works on a request.

    Attributes:
        outer: The note of the call that the request belongs to.
        among: Where the channel does not say which call that is: the notes of those that were in flight.
        is_given_up: One of these calls was given up.
        size: Of the request in memory, in bytes.
    """

    message: Request
    caller: Identity | None
    send: Send
    outer: RequestNote | None
    size: int
    among: frozenset[RequestNote] = frozenset()
    is_given_up: bool = False
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)


_NO_FEEDS: Mapping[str, NoticeFeed] = {}


@attrs.define(eq=False)
class ServerRequests:
    """The requests of one backend, and its notifications that a handler receives.

    Attributes:
        are_wanted: There is a handler, so the client needs a stream that these can come by.
    """

    handlers: BoundHandlers
    _nursery: trio.Nursery = attrs.field(alias="nursery", repr=False)
    _max_pending_bytes: int = attrs.field(alias="max_pending_bytes")
    are_wanted: bool = attrs.field(init=False)
    # By the methods of the notifications that there are handlers for.
    _feeds: Mapping[str, NoticeFeed] = attrs.field(default=_NO_FEEDS, init=False, repr=False)
    _by_id: dict[RequestId, _RunningHandler] = attrs.field(factory=dict, init=False, repr=False)
    # All handlers that have not ended, so also those that were cancelled and have left `_by_id`.
    _running: dict[_RunningHandler, None] = attrs.field(factory=dict, init=False, repr=False)
    _pending_bytes: int = attrs.field(default=0, init=False)
    _replies: dict[trio.CancelScope, None] = attrs.field(factory=dict, init=False, repr=False)
    _flooded: bool = attrs.field(default=False, init=False)
    _complaints: Complaints = attrs.field(factory=Complaints, init=False, repr=False)
    _closed: bool = attrs.field(default=False, init=False)
    _answered_at: float = attrs.field(default=-math.inf, init=False)  # when the latest handler ended

    def __attrs_post_init__(self) -> None:
        kinds = self.handlers.notice_kinds
        if kinds:
            self._feeds = {method: NoticeFeed(kind, self.handlers, self._nursery) for method, kind in kinds.items()}
        self.are_wanted = bool(self.capabilities or kinds)

    @property
    def capabilities(self) -> JSON:
        """The client capabilities that are declared to the backend."""
        return self.handlers.capabilities

    @property
    def last_asked_at(self) -> float:
        """`trio.current_time()` when a handler was last at work: now, while one is; -inf: never."""
        return trio.current_time() if self._running else self._answered_at

    def start_answer(
        self, message: Request, caller: Identity | None, send: Send, among: frozenset[RequestNote] = frozenset()
    ) -> None:
        """Answer a request in another task. Called in the task that reads the stream.

        Args:
            caller: The identity of the call that the request belongs to; None outside of a call.
            send: Sends the answer to the backend session that asked; the backend may have a new session by then.
            among: The notes of the calls in flight, where the channel does not say which of them the request belongs
                to.
        """
        if self._closed:
            return
        method, backend_id = message.method, self.handlers.backend_id
        if message.id in self._by_id:
            # No error either: the backend would take it for the answer to its first request. A replay comes here, too.
            self._complaints.make("backend %r: ignored a request whose id is in use", backend_id)
            return
        if method == PING:
            self._reply(encode_result(message.id, {}), send)
            return
        self._cancel_answers_for_ended(among)
        size = memory_size(message.params, self._max_pending_bytes)
        refused = self.handlers.refuse_request(method, message.params) or self._refuse_for_room(size)
        if refused is not None:
            shown = repr(method) if method in QUESTIONS else "a method of its own"  # which may hold anything
            logger.debug("backend %r: refused %s: %s", backend_id, shown, refused)
            self._reply(encode_error(message.id, refused.code, refused.message), send)
            return
        running = _RunningHandler(message, caller, send, current_note.get(), size, among)
        if start_if_open(self._nursery, self._run_handler, running):
            self._by_id[message.id] = running
            self._running[running] = None
            self._pending_bytes += size

    def cancel_answer(self, params: JSON) -> None:
        """`notifications/cancelled`: cancel the handler and send no answer."""
        request_id = params.get("requestId")
        if isinstance(request_id, int | str) and not isinstance(request_id, bool):  # `True == 1` in Python
            running = self._by_id.pop(request_id, None)
            if running is not None:
                running.scope.cancel(reason=CANCELLED)

    def cancel_answers_for(self, note: RequestNote, in_flight: frozenset[RequestNote]) -> None:
        """The call with this note was cancelled: cancel the handlers that run for it, and refuse their requests.

        Args:
            in_flight: As `among` of `start_answer`.
        """
        for running in list(self._by_id.values()):
            if running.outer is note:
                self._cancel_running(running)
            elif note in running.among:
                running.is_given_up = True
        self._cancel_answers_for_ended(in_flight - {note})

    def _cancel_answers_for_ended(self, in_flight: frozenset[RequestNote]) -> None:
        """Cancel the handlers whose call was given up, by all that is known: all calls that it may be have ended."""
        for running in list(self._by_id.values()):
            if running.is_given_up and running.among.isdisjoint(in_flight):
                self._cancel_running(running)

    def _cancel_running(self, running: _RunningHandler) -> None:
        del self._by_id[running.message.id]
        running.scope.cancel(reason="the call that this belongs to was given up")
        data = encode_error(running.message.id, UNAVAILABLE, "the call that this belongs to was given up")
        self._reply(data, running.send)

    def cancel_all_answers(self) -> None:
        """The backend's session is gone, and its requests with it. The ids of the next session begin anew."""
        for running in self._by_id.values():
            running.scope.cancel(reason="the backend's session is gone")
        self._by_id.clear()

    def put_notice(self, method: str, params: JSON, caller: Identity | None) -> None:
        """Hand a notification to its handler, if there is one, without waiting."""
        feed = self._feeds.get(method)
        if feed is not None:
            size = memory_size(params, MOST_WAITING_BYTES)
            feed.put(params, caller, call_info(current_note.get()), size)

    def close(self) -> None:
        """The connection ends: cancel every handler and every answer."""
        self._closed = True
        self.cancel_all_answers()
        for scope in self._replies:
            scope.cancel(reason="the connection is closed")
        for feed in self._feeds.values():
            feed.close()

    def _refuse_for_room(self, size: int) -> ServerRequestError | None:
        if len(self._running) >= MOST_ANSWERS:
            return ServerRequestError(UNAVAILABLE, f"this client is answering {MOST_ANSWERS} requests already")
        if self._pending_bytes + size > self._max_pending_bytes:
            return ServerRequestError(UNAVAILABLE, "this client has no room for a request of this size")
        return None

    async def _run_handler(self, running: _RunningHandler) -> None:
        message = running.message
        slot = ConnectionSlot()
        notes = running.among if running.outer is None else (running.outer,)
        try:
            with answering_on(notes), running.scope:
                try:
                    result = await self.handlers.answer_request(
                        message.method, message.params, running.caller, outer=running.outer, slot=slot
                    )
                except ServerRequestError as refused:
                    data = encode_error(message.id, refused.code, refused.message, refused.data)
                else:
                    data = encode_result(message.id, result)
                await trio.lowlevel.checkpoint_if_cancelled()  # the handler may have been shielded from the cancel
                await self._send(data, running.send)
        finally:
            slot.is_held = False
            self._running.pop(running, None)
            self._answered_at = trio.current_time()
            self._pending_bytes -= running.size
            if self._by_id.get(message.id) is running:
                del self._by_id[message.id]

    def _reply(self, data: bytes, send: Send) -> None:
        """Send an answer that needs no handler."""
        if self._closed:
            return
        if len(self._replies) >= MOST_ANSWERS:
            if not self._flooded:
                self._flooded = True
                backend_id = self.handlers.backend_id
                logger.warning("backend %r: drops requests: %d answers are on their way", backend_id, MOST_ANSWERS)
            return
        scope = trio.CancelScope()
        if start_if_open(self._nursery, self._send_reply, scope, data, send):
            self._replies[scope] = None

    async def _send_reply(self, scope: trio.CancelScope, data: bytes, send: Send) -> None:
        try:
            with scope:
                await self._send(data, send)
        finally:
            self._replies.pop(scope, None)
            self._flooded = self._flooded and bool(self._replies)

    async def _send(self, data: bytes, send: Send) -> None:
        backend_id = self.handlers.backend_id
        with trio.move_on_after(ANSWER_TIMEOUT) as timeout:
            try:
                await send(data)
            except BackendError as error:
                logger.warning("%s, on an answer to a request of its own", error)
        if timeout.cancelled_caught:
            logger.warning("backend %r: did not take an answer within %s s", backend_id, ANSWER_TIMEOUT)
