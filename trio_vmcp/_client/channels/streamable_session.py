"""Streamable HTTP in the handshake era, which adds a session id, answers that can be resumed, and a DELETE.

Source: MCP 2025-11-25, basic/transports, "Session Management" and "Resumability and Redelivery".
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack, suppress
from functools import partial

import attrs
import trio

from trio_vmcp._client.channels.channel import Ask, Headers, MessageSink, OnOther, Send, StreamWatcher, ignore_other
from trio_vmcp._client.channels.refusals import RefusalsInARow, may_be_about_session
from trio_vmcp._client.channels.standalone import StandaloneStream
from trio_vmcp._client.channels.streamable import Streamable
from trio_vmcp._client.http.reply import HttpReply
from trio_vmcp._client.listening import LEAST_RETRY, MOST_RETRY, Listening, StreamBackoff
from trio_vmcp._client.unawaited import UnawaitedMessages
from trio_vmcp._nursery import start_if_open
from trio_vmcp._protocol.eras import BATCH_VERSION, is_modern_error
from trio_vmcp._protocol.headers import is_valid_session_id
from trio_vmcp._protocol.jsonrpc import (
    ErrorReply,
    Message,
    Notification,
    Request,
    RequestId,
    Result,
    encode_notification,
)
from trio_vmcp._protocol.methods import CANCELLED, METHODS, PING, PROGRESS, UNKNOWN, USEFUL
from trio_vmcp._protocol.outcomes import Answer, Loss, Refusal, RequestOutcome, names_session, tells_session_lost
from trio_vmcp._request_note import RequestNote, note_session_lost, note_written
from trio_vmcp.errors import BackendError, BackendProtocolError, BackendUnavailable
from trio_vmcp.identity import Identity

__all__ = ["StreamableSession"]

logger = logging.getLogger("trio_vmcp.client")

SERVICE_UNAVAILABLE = 503
_GONE = (404, 410)
_MAY_SAY_GONE = (400, 404, 410)
# Statuses that go with words about the session, and prove that a call did not run.
_DID_NOT_RUN = frozenset({400, 401, 404, 409, 410, 422})
PING_TIMEOUT = 5.0  # s at most; the call that was refused waits for it
RETRY = 1.0  # s between a broken stream and the GET that resumes it, unless the server asks for another delay
MOST_RESUMPTIONS = 5  # in a row that bring no new event id
# s that a request waits for the stream by which the backend may ask a question: a question before the stream is open is
# lost, and the request never answered. Not longer, since some servers send no response head before the first event.
HEAD_TIMEOUT = 1.0


@attrs.define(eq=False)
class _RequestInFlight:
    """A request that the standalone stream may also bring the answer to."""

    answer: Result | ErrorReply | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    in_callback: bool = False  # the progress callback runs, which must not be cancelled

    def settle(self, answer: Result | ErrorReply) -> None:
        self.answer = answer
        self.cancel_if_answered()

    def cancel_if_answered(self) -> None:
        if self.answer is not None and not self.in_callback:
            self.scope.cancel(reason="the answer came by another stream")


@attrs.define(eq=False)
class StreamableSession(Streamable):
    """A `SessionChannel` with one session. If the backend loses the session, a new channel is needed.

    Attributes:
        session_id: The id that the backend assigned; None: it assigned none.
    """

    # The session was opened with it.
    _identity: Identity | None = attrs.field(alias="identity", kw_only=True, repr=False)
    _nursery: trio.Nursery = attrs.field(alias="nursery", kw_only=True, repr=False)
    _unawaited: UnawaitedMessages = attrs.field(alias="unawaited", kw_only=True, repr=False)
    _retries: tuple[float, float] = attrs.field(alias="retries", kw_only=True)  # s, first and longest between streams
    session_id: str | None = attrs.field(default=None, init=False, repr=False)
    _version: str = attrs.field(default="", init=False)
    # Resumed from the metadata: the first answer shows whether the session is alive.
    _is_unproven: bool = attrs.field(default=False, init=False)
    _session_headers: Headers = attrs.field(factory=list, init=False, repr=False)  # the same list while unchanged
    _outside: MessageSink = attrs.field(init=False, repr=False)
    _watcher: StreamWatcher | None = attrs.field(default=None, init=False, repr=False)
    _is_asked: bool = attrs.field(default=False, init=False)  # handlers answer requests of the backend
    _stream: StandaloneStream | None = attrs.field(default=None, init=False, repr=False)
    # By request id.
    _in_flight: dict[RequestId | None, _RequestInFlight] = attrs.field(factory=dict, init=False, repr=False)
    _is_closing: bool = attrs.field(default=False, init=False)
    _refusals: RefusalsInARow = attrs.field(factory=RefusalsInARow, init=False, repr=False)

    # --- the session

    def resume(self, session_id: str | None, version: str) -> None:
        self.session_id, self._version, self._is_unproven = session_id, version, True
        self.takes_batches = version == BATCH_VERSION
        self._compose_headers()

    async def greet(self, ask: Ask, data: bytes) -> RequestOutcome:
        async with self.ask(ask, data, []) as reply:
            assigned = self._note_assigned(reply)
            outcome = await self.outcome(reply, ask, None)
        if isinstance(outcome, Answer) and isinstance(outcome.reply, Result):
            # Only a successful answer to `initialize` assigns an id.
            if assigned and self.session_id is None:
                raise BackendProtocolError(
                    self.backend_id, "assigned a session id that is repeated, too long or not visible ASCII"
                )
        elif not isinstance(outcome, Loss):
            self.session_id = None
        return outcome

    def _note_assigned(self, reply: HttpReply) -> list[str]:
        """Keep the id as soon as the head is here: if the rest of the answer fails, a DELETE still ends the session."""
        assigned = reply.header_values("mcp-session-id")
        if len(assigned) == 1 and is_valid_session_id(assigned[0]):
            self.session_id = assigned[0]
            self._compose_headers()
        return assigned

    def expect_requests(self, count: int, *, and_stream: bool) -> None:
        self.link.open_ahead(count, self._nursery, and_stream=and_stream)

    def agree(self, version: str) -> None:
        self._version, self.takes_batches = version, version == BATCH_VERSION
        self._compose_headers()

    async def aclose(self, *, terminate: bool) -> None:
        try:
            await self._unawaited.aclose()
            if terminate:
                await self.terminate()
        finally:
            await self.link.aclose()  # noqa: ASYNC102  # shielded and bounded

    async def terminate(self) -> None:
        """End the backend's session. The link stays open."""
        if self.session_id is None:
            return
        try:
            # Any status will do. 405: the backend does not allow a DELETE; 404: the session is gone already.
            status = await self._delete()
        except BackendError as error:
            logger.debug("%s, on DELETE of its session", error)
        else:
            logger.debug("backend %r: DELETE of its session: HTTP %d", self.backend_id, status)

    def retire(self) -> None:
        self._is_closing = True
        if self._stream is not None:
            self._stream.close()

    async def _delete(self) -> int:
        async with self.link.exchange("DELETE", self._session_headers, identity=self._identity, limited=False) as reply:
            await self.link.drain(reply)
            return reply.status

    def _compose_headers(self) -> None:
        headers: Headers = []
        if self._version:
            headers.append((b"MCP-Protocol-Version", self._version.encode()))
        if self.session_id is not None:
            headers.append((b"Mcp-Session-Id", self.session_id.encode()))
        self._session_headers = headers

    # --- requests

    async def exchange(self, ask: Ask, data: bytes, headers: Headers) -> RequestOutcome:
        stream, was_unproven = self._stream, self._is_unproven
        if stream is None or not stream.is_running:
            async with self.ask(ask, data, self._session_headers) as reply:
                outcome = await self.outcome(reply, ask, None)
            outcome = await self._completed(outcome, reply.status, ask)
        else:
            if self._is_asked and not stream.settled.is_set() and METHODS.get(ask.method, UNKNOWN).may_ask_back:
                await self.wait_listening()
            outcome = await self._answered_anywhere(ask, data)
        if isinstance(outcome, Answer) and isinstance(outcome.reply, Result):
            if self._refusals:
                self._refusals.reset()
        elif not isinstance(outcome, Loss):
            await self._check_session(outcome, ask, was_unproven)
        return outcome

    async def tell(self, data: bytes, identity: Identity | None) -> None:
        await self.post(data, self._session_headers, identity)

    def send_for(self, identity: Identity | None) -> Send:
        headers = self._session_headers  # of the session that asks; there may be a new one when the answer is sent
        whose = self._identity if identity is None else identity

        async def send(data: bytes) -> None:
            status = await self.post(data, headers, whose)
            if status >= 400:
                self.complaints.make("backend %r: answered our answer with HTTP %d", self.backend_id, status)

        return send

    def cancel(self, ask: Ask, reason: str) -> None:
        # "Disconnection SHOULD NOT be interpreted as the client cancelling its request" (2025-11-25, transports).
        # Without a session id the request id alone would identify the request, and all clients count from 1.
        if self.session_id is not None:
            notice = encode_notification(CANCELLED, {"requestId": ask.id, "reason": reason})
            self._unawaited.start(partial(self.post, notice, self._session_headers, ask.identity))

    async def _completed(self, outcome: RequestOutcome, status: int, ask: Ask) -> RequestOutcome:
        """The answer by the request's own response, in as many pieces as it has; the first is here."""
        if self._is_unproven and status not in _MAY_SAY_GONE:
            self._is_unproven = False
            self._open_stream()
        return await self._resumed(outcome, ask) if isinstance(outcome, Loss) else outcome

    async def _answered_anywhere(self, ask: Ask, data: bytes) -> RequestOutcome:
        """The answer in the request's own response or by the standalone stream, whichever comes first."""
        request = self._in_flight[ask.id] = _RequestInFlight()
        on_other: OnOther = ask.on_other

        async def uncut(message: Request | Notification) -> None:
            request.in_callback = True
            await on_other(message)
            request.in_callback = False
            request.cancel_if_answered()

        try:
            with request.scope:
                own = attrs.evolve(ask, on_other=uncut)
                async with self.ask(ask, data, self._session_headers) as reply:
                    outcome = await self.outcome(reply, own, None)
                return await self._completed(outcome, reply.status, own)
        finally:
            del self._in_flight[ask.id]
        assert request.answer is not None
        found = request.answer
        return Answer(found, words=self.blot(found.message) if isinstance(found, ErrorReply) else None)

    def blot(self, text: str) -> str:
        return self.link.given.blot(text, self._session_headers)

    async def _resumed(self, broken: Loss, ask: Ask) -> RequestOutcome:
        """Resume a broken stream to get the rest of the answer. The request is never sent again: it may have run."""
        last_event_id, retry, fruitless = broken.last_event_id, broken.retry, 0
        while last_event_id is not None and fruitless < MOST_RESUMPTIONS:
            await trio.sleep(RETRY if retry is None else min(max(retry, LEAST_RETRY), MOST_RETRY))
            fruitless += 1
            outcome = await self._resume(ask, last_event_id)
            if isinstance(outcome, Answer) and outcome.status < 400:
                return outcome
            if not isinstance(outcome, Loss):
                break  # the backend does not resume streams
            if outcome.last_event_id not in (None, last_event_id):
                last_event_id, fruitless = outcome.last_event_id, 0
            retry = retry if outcome.retry is None else outcome.retry
        return Loss(broken.what)

    async def _resume(self, ask: Ask, last_event_id: str) -> RequestOutcome:
        """Resume a broken stream once. "Resumption is always via HTTP GET" (2025-11-25, transports)."""
        headers = [*self._session_headers, (b"Last-Event-ID", last_event_id.encode())]
        try:
            async with AsyncExitStack() as stack:
                try:
                    exchange = self.link.exchange("GET", headers, identity=ask.identity)
                    reply = await stack.enter_async_context(exchange)
                except BackendUnavailable:  # as if the stream had ended once more
                    return Loss("closed the stream", last_event_id=last_event_id)
                except BackendError as error:
                    error.may_have_executed = True
                    raise
                reply.body.written = True
                return await self.outcome(reply, ask, last_event_id)
        finally:
            note_written(True)  # about the request, not about this GET

    async def _check_session(self, outcome: Answer | Refusal, ask: Ask, was_unproven: bool) -> None:
        """Find out whether a refusal says that the backend's session is gone. "When a client receives HTTP 404 in
        response to a request containing an Mcp-Session-Id, it MUST start a new session" (2025-11-25, transports).
        Restarted servers also answer 400 or any other status with words about the session, gateways in front of them
        503, and a server of the modern era with its own errors. One that refuses without such words is asked.

        Raises:
            BackendUnavailable: The session is gone, so the request did not run.
        """
        is_lost = self._tells_lost(outcome, was_unproven)
        if not is_lost and not self._says_gone(outcome, was_unproven):
            is_lost = await self._refuses_everything(outcome, ask)
        note_written(False)
        if is_lost:
            note_session_lost(by_words=True, may_resend=ask.may_repeat or outcome.status in _DID_NOT_RUN)
        elif self._says_gone(outcome, was_unproven):
            note_session_lost()
            raise BackendUnavailable(
                self.backend_id, f"no longer knows our session (HTTP {outcome.status} to {ask.method!r})"
            )
        elif outcome.status == SERVICE_UNAVAILABLE:
            note_session_lost()

    async def _refuses_everything(self, outcome: Answer | Refusal, ask: Ask) -> bool:
        """After three refusals in a row of different requests: whether a `ping`, which a live session answers, is
        refused, too. Silence is no refusal.
        """
        if self.session_id is None or not may_be_about_session(outcome) or not self._refusals.add(ask):
            return False
        self._refusals.reset()
        ping = Ask(next(self.ids), PING, {}, ask.identity, ignore_other, RequestNote())
        data = ping.encode()
        # Half of the time that the call has left: the refusal is here, and must not become a timeout of the call. The
        # deadline of a call that is cancelled is in the past.
        now, ends_at = trio.current_time(), trio.current_effective_deadline()
        with suppress(BackendError), trio.move_on_at(min(now + PING_TIMEOUT, (now + ends_at) / 2)):
            async with self.link.exchange(
                "POST", self._session_headers, data, identity=ask.identity, limited=False
            ) as reply:
                answer = await self.outcome(reply, ping, None)
            is_result = isinstance(answer, Answer) and isinstance(answer.reply, Result)
            return not isinstance(answer, Loss) and not is_result and may_be_about_session(answer)
        return False

    def _tells_lost(self, outcome: Answer | Refusal, was_unproven: bool) -> bool:
        """Whether words alone say that the session is gone."""
        is_proven = outcome.status in _GONE or (was_unproven and outcome.status in _MAY_SAY_GONE)
        return self.session_id is not None and not is_proven and tells_session_lost(outcome)

    def _says_gone(self, outcome: Answer | Refusal, was_unproven: bool = False) -> bool:
        status = outcome.status
        gone = status in _GONE and self.session_id is not None
        gone = gone or (status == 400 and (was_unproven or names_session(outcome)))
        # "MUST return 400 Bad Request" with such an error (2026-07-28, transports). In HTTP 200 the code is one that a
        # backend chose for an error of its own.
        return gone or (status != 200 and is_modern_error(outcome))

    # --- messages outside of requests

    def attach(self, sink: MessageSink) -> None:
        self._outside = sink

    def watch(self, watcher: StreamWatcher | None, *, is_asked: bool) -> None:
        self._watcher, self._is_asked = watcher, is_asked
        if not self._is_unproven:
            self._open_stream()

    @property
    def listening(self) -> Listening:
        return "none" if self._stream is None else self._stream.listening

    async def wait_listening(self) -> None:
        """Wait until the standalone stream is open or has failed; at most HEAD_TIMEOUT s from when it was requested."""
        stream = self._stream
        if stream is not None:
            with trio.move_on_at(stream.started_at + HEAD_TIMEOUT):
                await stream.settled.wait()

    def renew_identity(self, identity: Identity) -> None:
        self._identity = identity
        if self._stream is not None:
            self._stream.identity = identity

    def _open_stream(self) -> None:
        """Listen, if that is wanted and possible. A stream of before has ended."""
        if self._watcher is None or self._is_closing or self.session_id is None:
            return
        stream = StandaloneStream(
            backend_id=self.backend_id,
            backoff=StreamBackoff(*self._retries),
            on_reached=self._watcher.on_reached,
            http=self,
            headers=self._session_headers,
            identity=self._identity,
            watcher=self._watcher,
            dispatch=self._dispatch,
            is_gone=self._says_gone,
        )
        if start_if_open(self._nursery, stream.run):
            self._stream = stream

    def _dispatch(self, message: Message) -> bool:
        """Take one message of the standalone stream. Returns whether the message was of use."""
        if isinstance(message, Request | Notification):
            # The progress of a request comes by the request's own response.
            if isinstance(message, Request) or message.method != PROGRESS:
                self._outside.on_message(message)
            return isinstance(message, Request) or message.method in USEFUL
        request = self._in_flight.get(message.id)  # an int or a str: the parser refuses True and 1.0
        if request is None or request.answer is not None:
            logger.debug("backend %r: dropped an answer to a request that is not waiting", self.backend_id)
            return False
        request.settle(message)
        return True
