"""The client of the handshake era: MCP 2025-03-26 to 2025-11-25, and 2024-11-05 over HTTP+SSE.

A connection begins with `initialize` and has a session. The server may send requests of its own.
"""

from __future__ import annotations

import attrs
import trio

from trio_vmcp._client.channels.channel import Ask, SessionChannel
from trio_vmcp._client.client import Client
from trio_vmcp._client.listening import Listening, report_missed
from trio_vmcp._client.negotiate import CLIENT_INFO, negotiated
from trio_vmcp._limits import SLOW_HANDSHAKE
from trio_vmcp._protocol.eras import LEGACY_VERSIONS
from trio_vmcp._protocol.jsonrpc import Request, Result, encode_notification
from trio_vmcp._protocol.methods import (
    INITIALIZE,
    INITIALIZED,
    LISTS,
    ROOTS_CHANGED,
    SUBSCRIBE,
    TOOLS_CALL,
    UNSUBSCRIBE,
    Method,
    changing_kinds,
    declares,
)
from trio_vmcp._protocol.outcomes import GATEWAY_STATUSES, Answer, Loss, Refusal, rejection
from trio_vmcp._request_note import current_note
from trio_vmcp.errors import BackendUnavailable
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord
from trio_vmcp.models import JSON

__all__ = ["HandshakeClient", "InitializeRefused"]


class InitializeRefused(Exception):
    """The backend answered `initialize` with an error. The probe decides from it whether to try another era."""

    def __init__(self, outcome: Answer | Refusal) -> None:
        super().__init__(outcome.status)
        self.outcome = outcome


@attrs.define(eq=False, kw_only=True)
class HandshakeClient(Client[SessionChannel]):
    """A client with one session. When the backend loses the session, a new client is needed."""

    _listens: bool = attrs.field(alias="listens")  # Backend.listen
    _subscribed: dict[str, None] = attrs.field(factory=dict, init=False, repr=False)  # URIs, in order

    def __attrs_post_init__(self) -> None:
        self._channel.attach(self)  # a server may send a ping or a log message before it is asked anything

    def resume(self, record: BackendRecord) -> HandshakeClient:
        """Use a stored backend session without a handshake. The first answer shows whether the session is alive."""
        self.record = record
        self._channel.resume(record.session_id, record.protocol_version)
        self._listen_when_needed()
        return self

    async def initialize(self, identity: Identity | None) -> None:
        """The handshake.

        Raises:
            InitializeRefused: The backend answered with an error.
            BackendError: It did not answer, or not with MCP.
        """
        self._requests.cancel_all_answers()
        if self.record.session_id is not None or self.record.protocol_version:  # of an earlier session
            self.record = attrs.evolve(self.record, era="legacy", session_id=None, protocol_version="")
        params = {
            "protocolVersion": LEGACY_VERSIONS[0],
            "capabilities": self._requests.capabilities,
            "clientInfo": CLIENT_INFO,
        }
        ask = self._ask(INITIALIZE, params, identity)
        begun_at = trio.current_time()
        outcome = await self._channel.greet(ask, ask.encode())
        if isinstance(outcome, Loss):
            raise outcome.error(self.record.backend_id, INITIALIZE)
        if not isinstance(outcome, Answer) or not isinstance(outcome.reply, Result):
            raise InitializeRefused(outcome)
        version, capabilities = negotiated(self._channel, outcome.reply.result)
        self.record = attrs.evolve(
            self.record,
            session_id=self._channel.session_id,
            protocol_version=version,
            server_capabilities=capabilities,
        )
        self._channel.agree(version)
        note = current_note.get()
        if note is not None and note.lists_follow and trio.current_time() - begun_at > SLOW_HANDSHAKE:
            # Then all lists are asked for at once.
            lists = sum(declares(capabilities, (each.kind,)) for each in LISTS)
            self._channel.expect_requests(lists, and_stream=self._listens_to_changes)
        # Wait until the server has taken this: POSTs on two connections have no order, and some servers refuse a
        # request that arrives before it. Any HTTP status will do.
        await self._channel.tell(encode_notification(INITIALIZED, None), identity)
        self._listen_when_needed()

    @property
    def listening(self) -> Listening:
        return self._channel.listening

    def listen_again(self) -> None:
        if self.listening == "ended":
            self._listen_when_needed()

    async def wait_listening(self) -> None:
        """Wait until the backend's requests can reach us. If handlers are given, await this before sending a request
        that may cause one.
        """
        await self._channel.wait_listening()

    @property
    def subscribed(self) -> tuple[str, ...]:
        return tuple(self._subscribed)

    def renew_identity(self, identity: Identity) -> None:
        """What belongs to no call carries the newer token of this identity from now on."""
        self._channel.renew_identity(identity)

    async def tell_roots_changed(self, identity: Identity | None) -> None:
        """Send `notifications/roots/list_changed`, if `roots.listChanged` was declared to the backend.

        Raises:
            BackendError: It could not be sent.
        """
        if declares(self._requests.capabilities, ("roots", "listChanged")):
            await self._channel.tell(encode_notification(ROOTS_CHANGED, None), identity)

    async def exchange(self, ask: Ask, method: Method) -> JSON:
        outcome = await self._channel.exchange(ask, ask.encode(), [])
        if isinstance(outcome, Answer) and isinstance(outcome.reply, Result):
            if method.name == SUBSCRIBE:
                self._subscribed[ask.params["uri"]] = None
            elif method.name == UNSUBSCRIBE:
                self._subscribed.pop(ask.params["uri"], None)
            return outcome.reply.result
        if isinstance(outcome, Loss):
            error = outcome.error(self.record.backend_id, ask.method)
            error.may_have_executed = ask.note.written
            raise error
        # An error answer proves that the request was not left without an answer: no cancel of the caller, and no
        # cut-off, may say of it that it may have run.
        ask.note.written = False
        ask.note.is_unreached = outcome.status in GATEWAY_STATUSES
        refused = rejection(self.record.backend_id, ask.method, outcome)
        if ask.note.lost_by_words and ask.note.may_resend and method.name == TOOLS_CALL:
            refused.may_have_executed = False  # whatever the code: the backend did not know the session
        raise refused

    def on_request(self, message: Request, identity: Identity | None) -> None:
        among = self._channel.notes_in_flight
        self._requests.start_answer(message, identity, self._channel.send_for(identity), among)

    def close(self) -> None:
        """Act on no further message of this connection."""
        self._channel.retire()
        self._requests.close()

    # --- the stream for notifications outside of requests; see `StreamWatcher`

    def on_first(self) -> None:
        self.on_listening(changing_kinds(self.server_capabilities))

    def on_missed(self) -> None:
        report_missed(self.on_event, changing_kinds(self.server_capabilities), self.subscribed)

    def on_session_lost(self, detail: str) -> None:
        self._events.session_lost(BackendUnavailable(self.record.backend_id, detail))

    @property
    def _listens_to_changes(self) -> bool:
        capabilities = self.server_capabilities
        return self._listens and (
            self._requests.are_wanted
            or declares(capabilities, ("logging",))
            or declares(capabilities, ("resources", "subscribe"))
            or bool(changing_kinds(capabilities))
        )

    def _listen_when_needed(self) -> None:
        watcher = self if self._listens_to_changes else None
        self._channel.watch(watcher, is_asked=self._requests.are_wanted)
