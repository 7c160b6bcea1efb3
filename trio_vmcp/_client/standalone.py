"""The stream of the handshake era on which a server speaks without having been asked: a GET that stays open.

Source: MCP 2025-11-25, transports, "Listening for Messages from the Server".
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import attrs
import trio

from trio_vmcp._client.channels.streamable import HttpRefusal, StreamableHttp, is_stream
from trio_vmcp._client.http.link import Headers
from trio_vmcp._client.http.reply import Reply
from trio_vmcp._client.listening import HELD_LONG, Listening, Patience
from trio_vmcp._protocol.jsonrpc import ErrorReply, Message
from trio_vmcp._protocol.sse import SseDecoder
from trio_vmcp.errors import BackendError, BackendRejected
from trio_vmcp.identity import Identity

__all__ = ["StandaloneStream"]

logger = logging.getLogger("trio_vmcp.client")

# 405 is what the specification has for "no such stream"; the others are what servers answer that work all the same.
_NOT_OFFERED = frozenset({400, 404, 405, 406, 501})
_MAY_SAY_GONE = frozenset({400, 404})  # where there was such a stream before


@attrs.define(eq=False, kw_only=True)
class StandaloneStream:
    """One for each backend session. It fails nobody: without it, changes are not heard of.

    Attributes:
        listening: How it stands.
        settled: It is open, or will not be at once: whoever waited for it can go on.
        started_at: When it was asked for, by `trio.current_time()`.
        is_running: Something may still come by it.
    """

    _http: StreamableHttp = attrs.field(alias="http")
    _headers: Headers = attrs.field(alias="headers", repr=False)
    _identity: Identity | None = attrs.field(alias="identity", repr=False)
    _patience: Patience = attrs.field(alias="patience")
    _take: Callable[[Message], bool] = attrs.field(alias="take", repr=False)  # returns whether it was of use
    _first: Callable[[], None] = attrs.field(alias="first", repr=False)  # open for the first time
    _missed: Callable[[], None] = attrs.field(alias="missed", repr=False)  # open again, with a gap
    # Asked about a refusal of what was open before: whether the backend's session is gone, and nobody need ask again.
    _is_gone: Callable[[int, ErrorReply | HttpRefusal], bool] = attrs.field(alias="is_gone", repr=False)
    listening: Listening = attrs.field(default="none", init=False)
    settled: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    started_at: float = attrs.field(factory=trio.current_time, init=False)
    is_running: bool = attrs.field(default=True, init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _last_event_id: str | None = attrs.field(default=None, init=False, repr=False)
    _was_open: bool = attrs.field(default=False, init=False)

    def close(self) -> None:
        """End it, without waiting."""
        self.listening = "none"
        self._scope.cancel(reason="this backend session is not listened to any more")

    async def run(self) -> None:
        """Hold it open, until it is closed, not offered, or given up."""
        try:
            with self._scope:
                await self._keep()
        finally:
            self.is_running = False
            self.settled.set()

    async def _keep(self) -> None:
        while await self._once():
            self.settled.set()
            delay = self._patience.next_delay()
            if delay is None:
                self.listening = "given up"
                logger.warning(
                    "backend %r: its stream for changes ended too often without use; not listening any more",
                    self._http.backend_id,
                )
                return
            self.listening = "retrying"
            await trio.sleep(delay)
        self.listening = "none"

    async def _once(self) -> bool:
        """One GET and what comes by it. False: there is no such stream."""
        decoder = SseDecoder(max_event_bytes=self._http.max_message_bytes)
        decoder.last_event_id = asked_after = self._last_event_id
        headers = self._headers
        if asked_after is not None:
            headers = [*headers, (b"Last-Event-ID", asked_after.encode())]
        opened_at: float | None = None
        try:
            async with self._http.hold("GET", headers, identity=self._identity) as reply:
                if not is_stream(reply):
                    return await self._refused(reply)
                opened_at = trio.current_time()
                self._opened(asked_after)
                await self._http.follow(reply, decoder, self._rewarding)
        except BackendRejected:  # a redirect that is not followed
            return False
        except BackendError as error:
            self._patience.note(error)
            logger.debug("%s, on its stream for changes", error)
        if opened_at is not None:
            self._last_event_id = decoder.last_event_id
            if decoder.retry is not None:
                self._patience.retry = decoder.retry
            if trio.current_time() - opened_at >= HELD_LONG:
                self._patience.reward()
        return True

    def _opened(self, asked_after: str | None) -> None:
        again = self.listening == "retrying"
        self.listening, self._was_open = "open", True
        self.settled.set()
        if not again:
            self._first()
        elif asked_after is None:
            self._missed()

    async def _refused(self, reply: Reply) -> bool:
        """Whether to ask again. A body that is short leaves the connection to others."""
        status, outcome = reply.status, None
        if self._was_open and status in _MAY_SAY_GONE:
            outcome = await self._http.refusal_in(reply)
        else:
            await self._http.drain(reply)
        logger.debug("backend %r: answered its stream for changes with HTTP %d", self._http.backend_id, status)
        if self._was_open:
            self._patience.note_status(status)
        if self._last_event_id is not None and status in _NOT_OFFERED:
            self._last_event_id = None  # it may be the id that it knows nothing of
            return True
        if outcome is not None and self._is_gone(status, outcome):
            return False
        return status not in _NOT_OFFERED and not 200 <= status < 300

    def _rewarding(self, message: Message) -> bool:
        if self._take(message):
            self._patience.reward()
        return True
