"""The requests of one backend, answered beside the stream that they came on. Whatever carries them: a request comes in,
`send` takes the answer out.

- A handler has a task of its own in the backend's nursery, in a clean context. It ends with its answer, with the
  backend's `notifications/cancelled`, with the call on whose stream the request came when that is given up, or with the
  connection.
- At most MOST_ANSWERS handlers run at a time, and what they were asked takes `max_pending_bytes` at most. What comes
  over that is refused. Of refusals and pings as many are on their way at most; a flood of them is dropped.
- Streams of calls are read by their callers, who may still be at it when the connection has broken and its nursery has
  ended: what they hear then is nobody's any more.
- Ids are the backend's: integers and strings of its own number space, 0 and "" among them.
"""

from __future__ import annotations

import logging

import attrs
import trio

from trio_vmcp._client.channels.channel import Send
from trio_vmcp._client.complaints import Complaints
from trio_vmcp._client.handlers import MOST_QUOTED, Declined, Handling
from trio_vmcp._client.log_feed import LogFeed
from trio_vmcp._client.slots import Slot
from trio_vmcp._client.weight import weigh
from trio_vmcp._nursery import start_if_open
from trio_vmcp._protocol.jsonrpc import Request, RequestId, encode_error, encode_result
from trio_vmcp._protocol.methods import PING
from trio_vmcp._request_note import RequestNote, current_note
from trio_vmcp.errors import BackendError
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON

__all__ = ["MOST_ANSWERS", "ServerRequests"]

logger = logging.getLogger("trio_vmcp.client")

MOST_ANSWERS = 16  # to the backend's own requests, at the same time
ANSWER_TIMEOUT = 30.0  # s, to send one
UNAVAILABLE = -32000  # of the codes that JSON-RPC leaves to servers, here the one that answers


@attrs.define(eq=False)
class _Asked:
    """A request that a handler is at."""

    message: Request
    caller: Identity | None
    send: Send
    outer: RequestNote | None
    weight: int
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)


@attrs.define(eq=False)
class ServerRequests:
    """What one backend asks of its client, and tells it.

    Attributes:
        are_wanted: There is a handler, so there has to be a stream that they can come by.
    """

    handling: Handling
    _nursery: trio.Nursery = attrs.field(alias="nursery", repr=False)
    _max_pending_bytes: int = attrs.field(alias="max_pending_bytes")
    are_wanted: bool = attrs.field(init=False)
    _log: LogFeed = attrs.field(init=False, repr=False)
    _asked: dict[RequestId, _Asked] = attrs.field(factory=dict, init=False, repr=False)
    _running: set[_Asked] = attrs.field(factory=set, init=False, repr=False)  # also who was cancelled and unwinds
    _pending_bytes: int = attrs.field(default=0, init=False)
    _replies: set[trio.CancelScope] = attrs.field(factory=set, init=False, repr=False)
    _flooded: bool = attrs.field(default=False, init=False)
    _complaints: Complaints = attrs.field(factory=Complaints, init=False, repr=False)
    _closed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.are_wanted = bool(self.capabilities) or self.handling.has_log
        self._log = LogFeed(self.handling, self._nursery)

    @property
    def capabilities(self) -> JSON:
        """What is declared to the backend."""
        return self.handling.capabilities

    def take(self, message: Request, caller: Identity | None, send: Send) -> None:
        """Answer a request, some time soon. Called in the task that heard it, which it does not hold up.

        Args:
            caller: Whose call the request belongs to; None outside of one.
            send: Takes the answer to where the request came from, though the backend may have another session by then.
        """
        if self._closed:
            return
        method, backend_id = message.method, self.handling.backend_id
        if message.id in self._asked:
            # No answer: it would pass for the answer to the first of that id. A replay comes here, too.
            self._complaints.make("backend %r: ignored a request whose id is in use", backend_id)
            return
        if method == PING:
            self._reply(encode_result(message.id, {}), send)
            return
        weight = weigh(message.params, self._max_pending_bytes)
        refused = self.handling.refusal(method, message.params) or self._no_room(weight)
        if refused is not None:
            logger.debug("backend %r: refused %r: %s", backend_id, method[:MOST_QUOTED], refused)
            self._reply(encode_error(message.id, refused.code, refused.message), send)
            return
        asked = _Asked(message, caller, send, current_note.get(), weight)
        if start_if_open(self._nursery, self._handle, asked):
            self._asked[message.id] = asked
            self._running.add(asked)
            self._pending_bytes += weight

    def cancel(self, params: JSON) -> None:
        """`notifications/cancelled`: the backend does not wait for this answer any more, and gets none."""
        request_id = params.get("requestId")
        if isinstance(request_id, int | str) and not isinstance(request_id, bool):  # Python takes True for 1
            asked = self._asked.pop(request_id, None)
            if asked is not None:
                asked.scope.cancel(reason="notifications/cancelled")

    def give_up_on(self, note: RequestNote | None) -> None:
        """The call that left this note is given up: nobody is to be asked on its behalf any more."""
        for asked in list(self._asked.values()):
            if note is not None and asked.outer is note:
                del self._asked[asked.message.id]
                asked.scope.cancel(reason="the call that this belongs to was given up")
                data = encode_error(asked.message.id, UNAVAILABLE, "the call that this belongs to was given up")
                self._reply(data, asked.send)

    def forget(self) -> None:
        """The backend's session is gone, and who asked with it. Its next one counts from the beginning."""
        for asked in self._asked.values():
            asked.scope.cancel(reason="the backend's session is gone")
        self._asked.clear()

    def log(self, params: JSON, caller: Identity | None) -> None:
        """`notifications/message`: tell the handler for log messages, if there is one."""
        self._log.put(params, caller)

    def close(self) -> None:
        """The connection ends: nothing is answered any more."""
        self._closed = True
        self.forget()
        for scope in self._replies:
            scope.cancel(reason="the connection is closed")
        self._log.close()

    def _no_room(self, weight: int) -> Declined | None:
        if len(self._running) >= MOST_ANSWERS:
            return Declined(UNAVAILABLE, f"this client is answering {MOST_ANSWERS} requests already")
        if self._pending_bytes + weight > self._max_pending_bytes:
            return Declined(UNAVAILABLE, "this client has no room for a request of this size")
        return None

    async def _handle(self, asked: _Asked) -> None:
        message = asked.message
        slot = Slot()  # the call that waits for this answer may hold the last one
        try:
            with asked.scope:
                try:
                    result = await self.handling.answer(
                        message.method, message.params, asked.caller, outer=asked.outer, slot=slot
                    )
                except Declined as refused:
                    data = encode_error(message.id, refused.code, refused.message)
                else:
                    data = encode_result(message.id, result)
                await trio.lowlevel.checkpoint_if_cancelled()  # a handler may have shielded itself from it
                await self._send(data, asked.send)
        finally:
            slot.held = False
            self._running.discard(asked)
            self._pending_bytes -= asked.weight
            if self._asked.get(message.id) is asked:
                del self._asked[message.id]

    def _reply(self, data: bytes, send: Send) -> None:
        """Send what needs no handler."""
        if self._closed:
            return
        if len(self._replies) >= MOST_ANSWERS:
            if not self._flooded:
                self._flooded = True
                backend_id = self.handling.backend_id
                logger.warning("backend %r: drops requests: %d answers are on their way", backend_id, MOST_ANSWERS)
            return
        scope = trio.CancelScope()
        if start_if_open(self._nursery, self._send_reply, scope, data, send):
            self._replies.add(scope)

    async def _send_reply(self, scope: trio.CancelScope, data: bytes, send: Send) -> None:
        try:
            with scope:
                await self._send(data, send)
        finally:
            self._replies.discard(scope)
            self._flooded = self._flooded and bool(self._replies)

    async def _send(self, data: bytes, send: Send) -> None:
        backend_id = self.handling.backend_id
        with trio.move_on_after(ANSWER_TIMEOUT) as patience:
            try:
                await send(data)
            except BackendError as error:
                logger.warning("%s, on an answer to a request of its own", error)
        if patience.cancelled_caught:
            logger.warning("backend %r: did not take an answer within %s s", backend_id, ANSWER_TIMEOUT)
