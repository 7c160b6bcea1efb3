"""The handshake era (2025-03-26 to 2025-11-25): `initialize`, `Mcp-Session-Id`, and a notification to cancel."""

from __future__ import annotations

import logging

import attrs
import trio

from trio_vmcp._client.channels.streamable import (
    Answer,
    HttpRefusal,
    Interrupted,
    OnOther,
    ignore_other,
    names_session,
    refusal,
)
from trio_vmcp._client.client import CLIENT_INFO, StreamableClient, negotiated
from trio_vmcp._client.eras import LEGACY_VERSIONS, is_modern_error
from trio_vmcp._client.http.link import Headers
from trio_vmcp._client.http.reply import Reply
from trio_vmcp._client.listening import (
    LEAST_RETRY,
    MOST_RETRY,
    MOST_SUBSCRIPTIONS,
    SUBSCRIBE,
    UNSUBSCRIBE,
    USEFUL,
    Listening,
    Patience,
    declares_subscriptions,
    listed_as_changing,
    tell_missed,
    too_many_subscriptions,
)
from trio_vmcp._client.standalone import StandaloneStream
from trio_vmcp._nursery import start_if_open
from trio_vmcp._protocol.headers import check_session_id
from trio_vmcp._protocol.jsonrpc import (
    ErrorReply,
    Message,
    Notification,
    Request,
    RequestId,
    Result,
    encode_notification,
    encode_request,
)
from trio_vmcp._request_note import begin_request, current_note, note_session_lost, note_written
from trio_vmcp.connector import SessionSink
from trio_vmcp.errors import BackendError, BackendProtocolError, BackendRejected, BackendUnavailable
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord
from trio_vmcp.models import JSON

__all__ = ["InitializeRefused", "LegacyClient"]

logger = logging.getLogger("trio_vmcp.client")

METHOD_NOT_FOUND = -32601
SERVICE_UNAVAILABLE = 503
_MAY_SAY_GONE = (400, 404)
RETRY = 1.0  # s between a broken stream and the GET that resumes it, where the server asks for nothing else
MOST_RESUMPTIONS = 5  # in a row without a new event id
# s that requests wait for the head of the stream on which the backend may have to ask back: what it asks while there is
# none is lost, and the request with it. Some servers send no head before they have something to say.
HEAD_PATIENCE = 1.0
_MAY_ASK_BACK = frozenset({"tools/call", "prompts/get", "resources/read"})


class InitializeRefused(Exception):
    """`initialize` got an error for an answer: the connector looks at it before it becomes a `BackendError`."""

    def __init__(self, outcome: ErrorReply | HttpRefusal, status: int) -> None:
        super().__init__(status)
        self.outcome = outcome
        self.status = status


@attrs.define(eq=False)
class _Waiting:
    """A request in flight, while its answer may come by the standalone stream as well."""

    answer: Result | ErrorReply | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    in_callback: bool = False  # of the caller's, which is not to be cut off

    def take(self, answer: Result | ErrorReply) -> None:
        self.answer = answer
        self.stop_waiting()

    def stop_waiting(self) -> None:
        if self.answer is not None and not self.in_callback:
            self.scope.cancel(reason="the answer came by another stream")


@attrs.define(eq=False, kw_only=True)
class LegacyClient(StreamableClient):
    """One backend of the handshake era. It has one session with its backend; who loses it needs a new client."""

    _identity: Identity | None = attrs.field(alias="identity", repr=False)  # whose session it is: for its DELETE
    _nursery: trio.Nursery = attrs.field(alias="nursery", repr=False)
    _notice_timeout: float = attrs.field(alias="notice_timeout")  # s, for what nobody waits for
    _listens: bool = attrs.field(alias="listens")  # Backend.listen
    _retries: tuple[float, float] = attrs.field(alias="retries")  # s, the first and the longest between two streams
    _stream: StandaloneStream | None = attrs.field(default=None, init=False, repr=False)
    _waiting: dict[RequestId | None, _Waiting] = attrs.field(factory=dict, init=False, repr=False)  # by request id
    _subscribed: dict[str, None] = attrs.field(factory=dict, init=False, repr=False)  # URIs, in order
    # Taken up from metadata and not yet known to be alive: the first answer shows.
    _unproven: bool = attrs.field(default=False, init=False)
    _last_headers: tuple[BackendRecord | None, Headers] = attrs.field(default=(None, []), init=False, repr=False)
    _notices: int = attrs.field(default=0, init=False)
    _closing: bool = attrs.field(default=False, init=False)
    _quiet: trio.Event = attrs.field(
        factory=trio.Event, init=False, repr=False
    )  # set only while closing, with no notice on its way

    def resume(self, record: BackendRecord) -> LegacyClient:
        """Take a stored backend session up as it is; the first answer shows whether it is still alive."""
        self.record, self._unproven = record, True
        return self

    async def initialize(self, identity: Identity | None) -> None:
        """The handshake.

        Raises:
            InitializeRefused: The backend answered with an error.
            BackendError: It did not answer, or not with MCP.
        """
        backend_id = self._http.backend_id
        begin_request("initialize")
        self._requests.forget()
        if self.record.protocol_version or self.record.session_id is not None:
            self.record = attrs.evolve(self.record, session_id=None, protocol_version="")
        message_id = next(self._ids)
        params = {
            "protocolVersion": LEGACY_VERSIONS[0],
            "capabilities": self._requests.capabilities,
            "clientInfo": CLIENT_INFO,
        }
        data = encode_request(message_id, "initialize", params)
        session_ids: list[str] = []

        def note_id(reply: Reply) -> None:
            """As soon as there is a head: whatever goes wrong from here on, the backend's session gets its DELETE."""
            session_ids[:] = reply.header_values("mcp-session-id")
            if 200 <= reply.status < 300 and len(session_ids) == 1 and check_session_id(session_ids[0]):
                self.record = attrs.evolve(self.record, session_id=session_ids[0])

        answer = await self._http.ask(message_id, data, [], identity=identity, on_other=ignore_other, on_head=note_id)
        if isinstance(answer.outcome, Interrupted):
            raise BackendUnavailable(backend_id, "closed the stream before it answered 'initialize'")
        if not isinstance(answer.outcome, Result):
            self.record = attrs.evolve(self.record, session_id=None)
            raise InitializeRefused(answer.outcome, answer.status)
        result = answer.outcome.result
        self.record = attrs.evolve(self.record, session_id=self._assigned_id(session_ids))
        version, capabilities = negotiated(backend_id, result)
        self.record = attrs.evolve(self.record, protocol_version=version, server_capabilities=capabilities)
        # Awaited: two POSTs have no order, and some servers refuse a request that overtakes this. Any answer will do.
        initialized = encode_notification("notifications/initialized", None)
        await self._http.tell(initialized, self._headers(), identity=identity)
        self._listen_anew()

    @property
    def listening(self) -> Listening:
        return "none" if self._stream is None else self._stream.listening

    def listen_again(self) -> None:
        if self.listening == "given up":
            self._listen_anew()

    async def wait_listening(self) -> None:
        """Until the standalone stream is open or is known not to be, at most HEAD_PATIENCE s from when it was asked
        for. Whoever answers requests of the backend's waits for this before it sends what makes a backend ask.
        """
        stream = self._stream
        if stream is not None:
            with trio.move_on_at(stream.started_at + HEAD_PATIENCE):
                await stream.settled.wait()

    def _assigned_id(self, session_ids: list[str]) -> str | None:
        """The id in the head of a successful InitializeResult: the only response that it is taken from."""
        match session_ids:
            case []:
                return None
            case [session_id] if check_session_id(session_id):
                return session_id
        raise BackendProtocolError(
            self._http.backend_id, "assigned a session id that is repeated, too long or not visible ASCII"
        )

    async def aclose(self, *, terminate: bool) -> None:
        self._closing = True
        self._stop_listening()
        self._requests.close()
        if not self._notices:
            self._quiet.set()
        try:
            await self._quiet.wait()
            if terminate and self.record.session_id is not None:
                # 405: it does not allow that; 404: already gone. Nobody would act on the others.
                status = await self._http.delete(self._headers(), identity=self._identity)
                logger.debug("backend %r: DELETE of its session: HTTP %d", self._http.backend_id, status)
        except BackendError as error:
            logger.debug("%s, on DELETE of its session", error)
        finally:
            if self._http.link.is_in_use:
                with trio.move_on_after(self._notice_timeout, shield=True):
                    await self._http.link.aclose()

    def _headers(self) -> Headers:
        """The same list as long as the record is the same."""
        record = self.record
        if record is self._last_headers[0]:
            return self._last_headers[1]
        headers: Headers = []
        if record.protocol_version:
            headers.append((b"MCP-Protocol-Version", record.protocol_version.encode()))
        if record.session_id is not None:
            headers.append((b"Mcp-Session-Id", record.session_id.encode()))
        self._last_headers = record, headers
        return headers

    async def _exchange(
        self, message_id: int, method: str, params: JSON, identity: Identity | None, on_other: OnOther
    ) -> JSON:
        if method in (SUBSCRIBE, UNSUBSCRIBE):
            self._require_subscriptions(method, params["uri"])
        self._unwatched.note(method, self.listening)
        data = encode_request(message_id, method, params)
        unproven = self._unproven
        if self._stream is None or not self._stream.is_running:
            answer = await self._answered(message_id, method, data, identity, on_other)
        else:
            if self._requests.are_wanted and method in _MAY_ASK_BACK and not self._stream.settled.is_set():
                await self.wait_listening()
            answer = await self._answered_anywhere(message_id, method, data, identity, on_other)
        outcome = answer.outcome
        if isinstance(outcome, Result):
            if method == SUBSCRIBE:
                self._subscribed[params["uri"]] = None
            elif method == UNSUBSCRIBE:
                self._subscribed.pop(params["uri"], None)
            return outcome.result
        assert not isinstance(outcome, Interrupted)
        note_written(False)
        self._look_lost(answer.status, outcome, method, unproven)
        raise refusal(self._http.backend_id, method, outcome)

    def _look_lost(self, status: int, outcome: ErrorReply | HttpRefusal, method: str, unproven: bool) -> None:
        """Whether this refusal says that the backend's session is gone. "When a client receives HTTP 404 in response to
        a request containing an Mcp-Session-Id, it MUST start a new session" (2025-11-25, transports); restarted servers
        also answer 400, what stands before them 503, and a server of the other era in its own way.

        Raises:
            BackendUnavailable: It does, and the request was not looked at.
        """
        if self._says_gone(status, outcome, unproven=unproven):
            note_session_lost()
            raise BackendUnavailable(
                self._http.backend_id, f"no longer knows our session (HTTP {status} to {method!r})"
            )
        if status == SERVICE_UNAVAILABLE:
            note_session_lost()

    def _says_gone(self, status: int, outcome: ErrorReply | HttpRefusal, *, unproven: bool) -> bool:
        had_one = self.record.session_id is not None
        gone = (status == 404 and had_one) or (status == 400 and (unproven or names_session(outcome)))
        return gone or is_modern_error(outcome)

    def _stream_is_gone(self, status: int, outcome: ErrorReply | HttpRefusal) -> bool:
        """The standalone stream was there, and is refused. Whether its session is gone; whoever can replace it is told.
        A stream that never was says nothing: there are servers that work, and answer 404 because they have none.
        """
        if not self._says_gone(status, outcome, unproven=False):
            return False
        detail = f"no longer knows our session (HTTP {status} to its stream for changes)"
        if isinstance(self._events, SessionSink):
            self._events.session_lost(BackendUnavailable(self._http.backend_id, detail))
        return True

    async def _answered_anywhere(
        self, message_id: int, method: str, data: bytes, identity: Identity | None, on_other: OnOther
    ) -> Answer:
        """The answer on the request's own stream, or on the standalone one: whichever comes first."""
        waiting = self._waiting[message_id] = _Waiting()

        async def uncut(message: Request | Notification) -> None:
            waiting.in_callback = True
            await on_other(message)
            waiting.in_callback = False
            waiting.stop_waiting()

        try:
            with waiting.scope:
                return await self._answered(message_id, method, data, identity, uncut)
        finally:
            del self._waiting[message_id]
        assert waiting.answer is not None
        return Answer(waiting.answer, 200)

    async def _answered(
        self, message_id: int, method: str, data: bytes, identity: Identity | None, on_other: OnOther
    ) -> Answer:
        """The answer on the request's own stream, in as many pieces as it has."""
        answer = await self._http.ask(message_id, data, self._headers(), identity=identity, on_other=on_other)
        if self._unproven and answer.status not in _MAY_SAY_GONE:
            self._unproven = False  # it is alive
            self._listen_anew()
        if isinstance(answer.outcome, Interrupted):
            answer = await self._resumed(answer.outcome, message_id, method, identity, on_other)
        return answer

    async def _resumed(
        self, broken: Interrupted, message_id: int, method: str, identity: Identity | None, on_other: OnOther
    ) -> Answer:
        """The rest of an answer whose stream broke. The request is never sent again: it may have run."""
        last_event_id, retry, fruitless = broken.last_event_id, broken.retry, 0
        while last_event_id is not None and fruitless < MOST_RESUMPTIONS:
            await trio.sleep(RETRY if retry is None else min(max(retry, LEAST_RETRY), MOST_RETRY))
            fruitless += 1
            answer = await self._http.resume(
                message_id, last_event_id, self._headers(), identity=identity, on_other=on_other
            )
            if not isinstance(answer.outcome, Interrupted):
                if 200 <= answer.status < 300:
                    return answer
                break  # it offers no such stream
            if answer.outcome.last_event_id not in (None, last_event_id):
                last_event_id, fruitless = answer.outcome.last_event_id, 0
            retry = retry if answer.outcome.retry is None else answer.outcome.retry
        raise BackendUnavailable(
            self._http.backend_id, f"closed the stream before it answered {method!r}", may_have_executed=True
        )

    def _listen_anew(self) -> None:
        """Ask for the standalone stream of this backend session, if anything needs it."""
        self._stop_listening()
        capabilities = self.server_capabilities
        needed = (
            self._requests.are_wanted
            or "logging" in capabilities
            or declares_subscriptions(capabilities)
            or bool(listed_as_changing(capabilities))
        )
        if not self._listens or self._closing or self.record.session_id is None or not needed:
            return
        stream = StandaloneStream(
            http=self._http,
            headers=self._headers(),
            identity=self._identity,
            patience=Patience(*self._retries),
            take=self._take,
            first=self._tell_first,
            missed=self._tell_missed,
            is_gone=self._stream_is_gone,
        )
        if start_if_open(self._nursery, stream.run):
            self._stream = stream

    def _stop_listening(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _take(self, message: Message) -> bool:
        """One message of the standalone stream. Whether it was of use."""
        if isinstance(message, Request):
            self._on_request(message, None)
            return True
        if isinstance(message, Notification):
            if message.method != "notifications/progress":  # whose request it is about has a stream of its own for it
                self._on_notification(message, None)
            return message.method in USEFUL
        waiting = self._waiting.get(message.id)  # an int or a str: True and 1.0 were no ids to the parser
        if waiting is None or waiting.answer is not None:  # nobody's, or the second
            logger.debug("backend %r: dropped an answer to a request that is not waiting", self._http.backend_id)
            return False
        waiting.take(message)
        return True

    def _tell_first(self) -> None:
        self._watched(listed_as_changing(self.server_capabilities))

    def _tell_missed(self) -> None:
        tell_missed(self._heard, listed_as_changing(self.server_capabilities), tuple(self._subscribed))

    def _require_subscriptions(self, method: str, uri: str) -> None:
        backend_id = self._http.backend_id
        if not declares_subscriptions(self.server_capabilities):
            raise BackendRejected(
                backend_id,
                f"does not offer {method!r}: it declares no resources.subscribe",
                code=METHOD_NOT_FOUND,
                message="not declared",
            )
        if method == SUBSCRIBE and uri not in self._subscribed and len(self._subscribed) >= MOST_SUBSCRIPTIONS:
            raise too_many_subscriptions(backend_id)

    def _give_up(self, message_id: int, identity: Identity | None, reason: str) -> None:
        self._requests.give_up_on(current_note.get())
        if self.record.session_id is None:
            # Nothing but the number would say whose request it is, and every other client begins to count at 1, too.
            return
        # "Disconnection SHOULD NOT be interpreted as the client cancelling its request" (2025-11-25, transports).
        notice = encode_notification("notifications/cancelled", {"requestId": message_id, "reason": reason})
        self._start_notice(notice, identity)

    def _on_request(self, message: Request, identity: Identity | None) -> None:
        headers = self._headers()  # of the session that asks, whatever becomes of it until there is an answer
        whose = self._identity if identity is None else identity

        async def send(data: bytes) -> None:
            status = await self._http.tell(data, headers, identity=whose)
            if status >= 400:
                text = "backend %r: answered our answer with HTTP %d"
                self._http.complaints.make(text, self._http.backend_id, status)

        self._requests.take(message, identity, send)

    def _start_notice(self, data: bytes, identity: Identity | None) -> None:
        if not self._closing and start_if_open(self._nursery, self._notify, data, identity):
            self._notices += 1

    async def _notify(self, data: bytes, identity: Identity | None) -> None:
        # Shielded: the session's nursery may be cancelled right behind the call that this is about.
        with trio.move_on_after(self._notice_timeout, shield=True):
            try:
                await self._http.tell(data, self._headers(), identity=identity)
            except BackendError as error:
                logger.debug("%s, on a message that nobody waits for", error)
            finally:
                self._notices -= 1
                if self._closing and not self._notices:
                    self._quiet.set()
