"""The stream of the handshake era for messages outside of requests: the response to a GET, which stays open.

Source: MCP 2025-11-25, basic/transports, "Listening for Messages from the Server".
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

import attrs
import trio

from trio_vmcp._client.channels.channel import Headers, StreamWatcher
from trio_vmcp._client.channels.streamable import Streamable, is_stream
from trio_vmcp._client.http.reply import HttpReply
from trio_vmcp._client.listening import MAX_SILENCE, HeldStream
from trio_vmcp._protocol.jsonrpc import Message
from trio_vmcp._protocol.outcomes import Answer, Refusal
from trio_vmcp._protocol.sse import SseDecoder
from trio_vmcp.errors import BackendError, BackendRejected
from trio_vmcp.identity import Identity

__all__ = ["StandaloneStream"]

logger = logging.getLogger("trio_vmcp.client")

# 405 means "no such stream" in the specification; working servers also answer with the others.
_NOT_OFFERED = frozenset({400, 404, 405, 406, 501})
_MAY_SAY_GONE = frozenset({400, 404})  # to a GET that was accepted before


@attrs.define(eq=False, kw_only=True)
class StandaloneStream(HeldStream):
    """The stream of one backend session.

    Attributes:
        started_at: When the stream was asked for, by `trio.current_time()`.
    """

    _http: Streamable = attrs.field(alias="http")
    _headers: Headers = attrs.field(alias="headers", repr=False)
    identity: Identity | None = attrs.field(repr=False)
    _watcher: StreamWatcher = attrs.field(alias="watcher", repr=False)
    # Returns whether the message was of use.
    _dispatch: Callable[[Message], bool] = attrs.field(alias="dispatch", repr=False)
    # Returns whether a refusal, after the stream was open before, says that the session is gone.
    _is_gone: Callable[[Answer | Refusal], bool] = attrs.field(alias="is_gone", repr=False)
    started_at: float = attrs.field(factory=trio.current_time, init=False)
    _last_event_id: str | None = attrs.field(default=None, init=False, repr=False)

    async def open_once(self) -> bool:
        decoder = SseDecoder(max_event_bytes=self._http.max_message_bytes)
        decoder.last_event_id = asked_after = self._last_event_id
        headers = self._headers
        if asked_after is not None:
            headers = [*headers, (b"Last-Event-ID", asked_after.encode())]
        asked_at, opened_at = trio.current_time(), None
        try:
            async with AsyncExitStack() as stack:
                exchange = self._http.open_stream("GET", headers, identity=self.identity)
                reply: HttpReply | None = None
                with trio.move_on_after(MAX_SILENCE):
                    reply = await stack.enter_async_context(exchange)
                if reply is None:
                    self.settled.set()
                    return True
                if not is_stream(reply):
                    return await self._refused(reply, asked_at)
                opened_at = trio.current_time()
                self._opened(asked_after)
                self.note_attempt(asked_at, None)
                await self._http.follow(reply, decoder, self._accept)
        except BackendRejected as refused:  # a redirect that is not followed
            self.note_attempt(asked_at, refused)
            return False
        except BackendError as error:
            self.backoff.note_error(error)
            if opened_at is None:
                self.note_attempt(asked_at, error)
            logger.debug("%s, on its stream for changes", error)
        self.settled.set()
        if opened_at is not None:
            self._last_event_id = decoder.last_event_id
            if decoder.retry is not None:
                self.backoff.retry = decoder.retry
            self.note_ended(opened_at)
        return True

    def _opened(self, asked_after: str | None) -> None:
        again = self.listening == "retrying"
        self.listening, self.was_open = "open", True
        self.settled.set()
        if not again:
            self._watcher.on_first()
        elif asked_after is None:
            self._watcher.on_missed()

    async def _refused(self, reply: HttpReply, asked_at: float) -> bool:
        """Whether to open the stream again. A short body is read, so that the connection can be used again."""
        status, outcome = reply.status, None
        if self.was_open and status in _MAY_SAY_GONE:
            outcome = await self._http.refusal_in(reply)
        else:
            await self._http.link.drain(reply)
        logger.debug("backend %r: answered its stream for changes with HTTP %d", self.backend_id, status)
        self.settled.set()
        self.backoff.note_retry_after(reply.retry_after)
        if self.was_open:
            self.backoff.note_status(status)
        text = f"answered its stream for changes with HTTP {status}"
        refused = BackendRejected(self.backend_id, text, code=status, status=status, message=f"HTTP {status}")
        self.note_attempt(asked_at, refused)
        if self._last_event_id is not None and status in _NOT_OFFERED:
            self._last_event_id = None  # the server may have refused the id: try once without
            return True
        if outcome is not None and self._is_gone(outcome):
            self._watcher.on_session_lost(f"no longer knows our session (HTTP {status} to its stream for changes)")
            return False
        return status not in _NOT_OFFERED and not 200 <= status < 300

    def _accept(self, message: Message) -> bool:
        if self._dispatch(message):
            self.backoff.note_use()
        return True
