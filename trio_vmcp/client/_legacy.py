"""The handshake era (2025-03-26 to 2025-11-25): `initialize`, `Mcp-Session-Id`, and a notification to cancel."""

from __future__ import annotations

import logging

import attrs
import trio

from trio_vmcp._nursery import start_clean
from trio_vmcp._outbound import begin_request, note_written, outbound, preparing
from trio_vmcp.client._client import CLIENT_INFO, StreamableClient, declared_capabilities
from trio_vmcp.client._era import LEGACY_VERSIONS
from trio_vmcp.client._headers import check_session_id
from trio_vmcp.client._http import Headers, Reply
from trio_vmcp.client._jsonrpc import (
    ErrorReply,
    Request,
    Result,
    encode_notification,
    encode_request,
)
from trio_vmcp.client._streamable import Answer, HttpRefusal, Interrupted, OnOther, ignore_other, refusal
from trio_vmcp.errors import BackendError, BackendProtocolError, BackendUnavailable
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord
from trio_vmcp.models import JSON

__all__ = ["InitializeRefused", "LegacyClient"]

logger = logging.getLogger("trio_vmcp.client")

# s between a broken stream and the GET that resumes it: the server's `retry` within these bounds, else the default.
RETRY, LEAST_RETRY, MOST_RETRY = 1.0, 0.1, 60.0
MOST_RESUMPTIONS = 5  # in a row without a new event id


class InitializeRefused(Exception):
    """`initialize` got an error for an answer: the connector looks at it before it becomes a `BackendError`."""

    def __init__(self, outcome: ErrorReply | HttpRefusal, status: int) -> None:
        super().__init__(status)
        self.outcome = outcome
        self.status = status


@attrs.define(eq=False, kw_only=True)
class LegacyClient(StreamableClient):
    """One backend of the handshake era."""

    _identity: Identity | None = attrs.field(alias="identity", repr=False)  # whose session it is: for its DELETE
    _nursery: trio.Nursery = attrs.field(alias="nursery", repr=False)
    _notice_timeout: float = attrs.field(alias="notice_timeout")  # s, for what nobody waits for
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
        version = result.get("protocolVersion")
        if version not in LEGACY_VERSIONS:
            shown = repr(version[:40]) if isinstance(version, str) else "no version"
            raise BackendProtocolError(backend_id, f"answered 'initialize' with {shown}; we speak {LEGACY_VERSIONS}")
        capabilities = declared_capabilities(backend_id, "initialize", result)
        self.record = attrs.evolve(self.record, protocol_version=version, server_capabilities=capabilities)
        self._unproven = False
        # Awaited: two POSTs have no order, and some servers refuse a request that overtakes this. Any answer will do.
        initialized = encode_notification("notifications/initialized", None)
        await self._http.tell(initialized, self._headers(), identity=identity)

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
        data = encode_request(message_id, method, params)
        answer = await self._http.ask(message_id, data, self._headers(), identity=identity, on_other=on_other)
        if self._unproven and answer.status in (400, 404):
            # The stored session is gone, and the request with it: "start a new session by sending a new
            # InitializeRequest".
            with preparing(method):
                await self._initialize_again(identity)
            answer = await self._http.ask(message_id, data, self._headers(), identity=identity, on_other=on_other)
        self._unproven = False
        if isinstance(answer.outcome, Interrupted):
            answer = await self._resumed(answer.outcome, message_id, method, identity, on_other)
        outcome = answer.outcome
        if isinstance(outcome, Result):
            return outcome.result
        note_written(False)
        if answer.status == 404 and self.record.session_id is not None:
            raise BackendUnavailable(self._http.backend_id, f"no longer knows our session (HTTP 404 to {method!r})")
        assert not isinstance(outcome, Interrupted)
        raise refusal(self._http.backend_id, method, outcome)

    async def _initialize_again(self, identity: Identity | None) -> None:
        try:
            await self.initialize(identity)
        except InitializeRefused as refused:
            raise refusal(self._http.backend_id, "initialize", refused.outcome) from None

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

    def _give_up(self, message_id: int, identity: Identity | None, reason: str) -> None:
        # "Disconnection SHOULD NOT be interpreted as the client cancelling its request" (2025-11-25, transports).
        notice = encode_notification("notifications/cancelled", {"requestId": message_id, "reason": reason})
        self._start_notice(notice, identity)
        self._requests.give_up_on(outbound.get())

    def _on_request(self, message: Request, identity: Identity | None) -> None:
        headers = self._headers()  # of the session that asks, whatever becomes of it until there is an answer
        whose = self._identity if identity is None else identity

        async def send(data: bytes) -> None:
            status = await self._http.tell(data, headers, identity=whose)
            if status >= 400:
                logger.warning("backend %r: answered our answer with HTTP %d", self._http.backend_id, status)

        self._requests.take(message, identity, send)

    def _start_notice(self, data: bytes, identity: Identity | None) -> None:
        if not self._closing:
            self._notices += 1
            start_clean(self._nursery, self._notify, data, identity)

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
