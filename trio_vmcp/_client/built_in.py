"""The built-in connector, for the transports that `Backend.transport` names.

An *opening* makes a channel and the clients of both eras on it; the probe finds out which of the two is needed. When
connecting fails or is cancelled, the opening closes the channel: nothing is left of it.
"""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from weakref import WeakValueDictionary

import attrs
import httpx
import trio

from trio_vmcp._client.cache import BackendCache, ResponseCache
from trio_vmcp._client.channels.channel import Ask, Channel, SessionChannel, StartedChannel, ignore_other
from trio_vmcp._client.channels.http_sse import EventStream
from trio_vmcp._client.channels.inbox import new_inbox
from trio_vmcp._client.channels.stdio import build_process_channel
from trio_vmcp._client.channels.streamable import Streamable
from trio_vmcp._client.channels.streamable_session import StreamableSession
from trio_vmcp._client.handlers import BoundHandlers
from trio_vmcp._client.handshake import HandshakeClient, InitializeRefused
from trio_vmcp._client.http.connection_limit import ConnectionLimit, calls_within
from trio_vmcp._client.http.credentials import Renewals
from trio_vmcp._client.http.link import HttpLink
from trio_vmcp._client.probe import NOT_OF_THIS_ERA, Opening, Probe, VerdictCache
from trio_vmcp._client.server_requests import ServerRequests
from trio_vmcp._client.stateless import StatelessClient
from trio_vmcp._client.unawaited import UnawaitedMessages
from trio_vmcp._http.proxy import Proxies
from trio_vmcp._http.transport import Http11Transport
from trio_vmcp._limits import init_limit
from trio_vmcp._nursery import start_clean, start_task
from trio_vmcp._principal import principal_key
from trio_vmcp._protocol.eras import MODERN_VERSION, Verdict
from trio_vmcp._protocol.methods import INITIALIZE, PING
from trio_vmcp._protocol.outcomes import Loss, Refusal, RequestOutcome, rejection
from trio_vmcp._request_note import RequestNote
from trio_vmcp.connector import (
    BackendClient,
    BackendConnector,
    ClientHandlers,
    EventSink,
    OutgoingAuth,
    PreferredEra,
)
from trio_vmcp.errors import BackendError, BackendRejected, BackendUnavailable
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord, endpoint_digest
from trio_vmcp.models import JSON, Backend
from trio_vmcp.settings import FactorySettings

__all__ = ["BuiltInConnector"]

# s for `server/discover`, as in the official SDKs: a server of HTTP+SSE may never answer a POST. If a third of the time
# to connect is less, that third, so that there is time left for the handshake.
PROBE_TIMEOUT = 10.0
PROBE_SHARE = 1 / 3
SILENCE = 1.0  # s after which a process that has not answered is sent a second line
NOTICE_TIMEOUT = 1.0  # s for a message that no task waits for
PENDING_MESSAGES = 2  # of the largest size: the memory that the requests which handlers work on may take
_SSE_ONLY = (400, 404, 405)  # the answers of a server of 2024-11-05 to a POST to the URL of its stream


@attrs.frozen
class SessionOptions:
    """What the sessions of one factory differ in, as far as their connections depend on it.

    Attributes:
        session_id: Handlers are told it.
        handlers: In place of the connector's; None: the connector's.
        prefer_era: What the probe of an `era="auto"` backend tries first; None: as the handlers need it.
    """

    session_id: str = attrs.field(default="", repr=False)
    handlers: ClientHandlers | None = attrs.field(default=None, repr=False)
    prefer_era: PreferredEra | None = None


@attrs.define(eq=False)
class BuiltInConnector:
    """Connects to backends over the built-in transports, in both eras. One connector serves all sessions of a factory;
    `for_session` binds it to one of them.
    """

    settings: FactorySettings
    _handlers: ClientHandlers = attrs.field(factory=ClientHandlers, alias="handlers", kw_only=True, repr=False)
    _auth: OutgoingAuth | None = attrs.field(default=None, alias="auth", kw_only=True, repr=False)
    _transport: httpx.AsyncBaseTransport | None = attrs.field(default=None, alias="transport", kw_only=True)
    _ssl_context: ssl.SSLContext | None = attrs.field(default=None, alias="ssl_context", kw_only=True, repr=False)
    _proxies: Proxies | None = attrs.field(default=None, alias="proxies", kw_only=True, repr=False)
    _built_in: Http11Transport = attrs.field(init=False, repr=False)
    verdicts: VerdictCache = attrs.field(factory=VerdictCache, init=False, repr=False)
    cache: ResponseCache = attrs.field(factory=ResponseCache, init=False, repr=False)
    # Of all stateless requests over HTTP: a later round must have another id than the one before (MCP 2026-07-28, multi
    # round-trip requests), and may be sent by another client over the same warm connection.
    stateless_ids: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._built_in = Http11Transport(ssl_context=self._ssl_context, proxies=self._proxies)

    def for_session(
        self, session_id: str, handlers: ClientHandlers | None = None, prefer_era: PreferredEra | None = None
    ) -> BackendConnector:
        """This connector, for the backends of one session. The arguments: see `SessionOptions`."""
        return partial(self, options=SessionOptions(session_id, handlers, prefer_era))

    async def __call__(
        self,
        backend: Backend,
        *,
        identity: Identity | None,
        resume: BackendRecord | None,
        nursery: trio.Nursery,
        events: EventSink,
        options: SessionOptions = SessionOptions(),
    ) -> BackendClient:
        parts = Parts(self, backend, identity, nursery, events, options)
        if backend.transport == "stdio":
            return await LinesOpening(parts, build_process_channel).connect()
        if backend.transport == "sse":
            return await connect_event_stream(parts, init_limit(backend, self.settings).seconds)
        return await HttpOpening(parts).connect(resume)

    def connection_limit(self) -> ConnectionLimit:
        """Of one backend of one session."""
        return ConnectionLimit(calls_within(self.settings.max_connections_per_backend))

    def renewals(self) -> Renewals | None:
        """Of one connection; None: its requests carry no credentials of `auth`."""
        return None if self._auth is None else WeakValueDictionary()

    def link(self, backend: Backend, renewals: Renewals | None, limit: ConnectionLimit | None = None) -> HttpLink:
        """
        Args:
            renewals: Shared with the other links of the same connection.
            limit: Shared with another link to the same backend; None: no other link has it.
        """
        transport = self._transport or self._built_in  # one for all sessions: a second one finds warm connections
        try:
            return HttpLink(
                backend,
                transport,
                auth=self._auth,
                limit=limit or self.connection_limit(),
                max_message_bytes=self.settings.max_message_bytes,
                renewals=renewals,
            )
        except (httpx.InvalidURL, UnicodeError):  # from None: both quote the value, which may be secret
            raise BackendUnavailable(backend.id, "has a url or a header that HTTP cannot carry") from None

    def backend_cache(self, backend: Backend, client_capabilities: JSON) -> BackendCache:
        return self.cache.of(backend, MODERN_VERSION, self._auth, client_capabilities)

    def requests(self, backend: Backend, options: SessionOptions, nursery: trio.Nursery) -> ServerRequests:
        """The answers to one backend of one session. Their tasks run in `nursery`."""
        most = PENDING_MESSAGES * self.settings.max_message_bytes
        handlers = self._handlers if options.handlers is None else options.handlers
        return ServerRequests(BoundHandlers(handlers, options.session_id, backend.id), nursery, most)

    async def tidy(self) -> None:
        """Close connections that have been idle for too long. Runs until it is cancelled."""
        await self._built_in.tidy()

    def close(self) -> None:
        """Close the built-in transport. A transport that was passed belongs to the caller."""
        self._built_in.close()

    def probe_timeout(self, backend: Backend) -> float:
        """s for `server/discover`, which the backend may not know."""
        return min(PROBE_TIMEOUT, init_limit(backend, self.settings).seconds * PROBE_SHARE)

    @property
    def notice_timeout(self) -> float:
        """s for a message that no task waits for."""
        return min(NOTICE_TIMEOUT, self.settings.teardown_timeout / 2)


@attrs.define(eq=False)
class Parts:
    """The parts of one connection that do not depend on its channel.

    Attributes:
        identity: The session was opened with it.
        nursery: Owns the tasks that outlive the call to the connector.
        renewals: Of all links of the connection: what `auth` gave for a refused request serves the others, too.
    """

    connector: BuiltInConnector
    backend: Backend
    identity: Identity | None = attrs.field(repr=False)
    nursery: trio.Nursery = attrs.field(repr=False)
    events: EventSink = attrs.field(repr=False)
    options: SessionOptions
    renewals: Renewals | None = attrs.field(
        default=attrs.Factory(lambda parts: parts.connector.renewals(), takes_self=True), repr=False
    )
    requests: ServerRequests = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.requests = self.connector.requests(self.backend, self.options, self.nursery)

    @property
    def greets_first(self) -> bool:
        """The probe sends `initialize` before `server/discover`."""
        if self.options.prefer_era is not None:
            return self.options.prefer_era == "legacy"
        return self.requests.handlers.answer_questions

    @property
    def principal(self) -> bytes:
        """The key of sessions whose requests the backend answers alike."""
        return principal_key(self.backend, self.identity, by_token=True)

    @property
    def retries(self) -> tuple[float, float]:
        """s, the first and the longest delay between two streams for changes."""
        settings = self.connector.settings
        return settings.reconnect_delay, settings.reconnect_max_delay

    def unawaited(self) -> UnawaitedMessages:
        return UnawaitedMessages(nursery=self.nursery, timeout=self.connector.notice_timeout)

    def handshake(self, channel: SessionChannel, endpoint: str) -> HandshakeClient:
        return HandshakeClient(
            record=BackendRecord(self.backend.id, None, "legacy", "", {}, endpoint),
            channel=channel,
            events=self.events,
            requests=self.requests,
            listens=self.backend.listen,
        )

    def stateless(self, channel: Channel, endpoint: str, cache: BackendCache | None) -> StatelessClient:
        settings = self.connector.settings
        return StatelessClient(
            record=BackendRecord(self.backend.id, None, "modern", MODERN_VERSION, {}, endpoint),
            channel=channel,
            events=self.events,
            requests=self.requests,
            max_pages=settings.max_pages,
            max_tools=settings.max_items_per_backend,
            cache=cache,
            identity=self.identity,
            nursery=self.nursery,
            listens=self.backend.listen,
            retries=self.retries,
        )


@attrs.define(eq=False)
class HttpOpening(Opening):
    """Streamable HTTP, with HTTP+SSE to fall back to."""

    _parts: Parts = attrs.field(alias="parts")
    endpoint: str = attrs.field(init=False)
    greets_first: bool = attrs.field(init=False)
    principal: bytes = attrs.field(init=False, repr=False)
    _link: HttpLink = attrs.field(init=False, repr=False)
    _session: StreamableSession = attrs.field(init=False, repr=False)
    _handshake: HandshakeClient | None = attrs.field(default=None, init=False, repr=False)
    _stateless: StatelessClient | None = attrs.field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        parts, settings = self._parts, self._parts.connector.settings
        self.endpoint, self.principal = endpoint_digest(parts.backend), parts.principal
        self.greets_first = parts.greets_first
        self._link = parts.connector.link(parts.backend, parts.renewals)
        self._session = StreamableSession(
            self._link,
            settings.max_message_bytes,
            settings.max_json_depth,
            settings.max_json_values,
            identity=parts.identity,
            nursery=parts.nursery,
            unawaited=parts.unawaited(),
            retries=parts.retries,
        )

    @property
    def backend(self) -> Backend:
        return self._parts.backend

    @property
    def handshake(self) -> HandshakeClient:
        if self._handshake is None:
            self._handshake = self._parts.handshake(self._session, self.endpoint)
        return self._handshake

    @property
    def stateless(self) -> StatelessClient:
        if self._stateless is None:
            parts, settings = self._parts, self._parts.connector.settings
            channel = Streamable(
                self._link,
                settings.max_message_bytes,
                settings.max_json_depth,
                settings.max_json_values,
                parts.connector.stateless_ids,
            )
            cache = parts.connector.backend_cache(parts.backend, parts.requests.capabilities)
            self._stateless = parts.stateless(channel, self.endpoint, cache)
        return self._stateless

    async def connect(self, resume: BackendRecord | None) -> BackendClient:
        connector = self._parts.connector
        try:
            # An era that the user has set wins.
            if resume is not None and resume.era == "legacy" and self.backend.era != "modern":
                return self.handshake.resume(resume)
            if resume is not None and self.backend.era == "auto" and not self.greets_first:  # the record was modern
                connector.verdicts.record_verdict(self.verdict_key, Verdict.MODERN)
            return await Probe(self, connector.verdicts, connector.probe_timeout(self.backend)).connect()
        except BaseException:
            self._close()
            raise

    async def discover(self) -> RequestOutcome:
        return await self.stateless.discover(self._parts.identity)

    async def greet(self, *, was_probed: bool) -> HandshakeClient:
        await self.handshake.initialize(self._parts.identity)
        return self.handshake

    async def fall_back(self, refused: InitializeRefused) -> BackendClient:
        """The refusals of `server/discover` and `initialize` may be those of a server of HTTP+SSE: try that."""
        outcome = refused.outcome
        if outcome.status not in _SSE_ONLY or not isinstance(outcome, Refusal):
            raise rejection(self.backend.id, INITIALIZE, outcome)
        status = outcome.status
        try:
            return await self.open_older_stream()
        except NOT_OF_THIS_ERA as error:
            detail = f"answered {INITIALIZE!r} with HTTP {status}, and over HTTP+SSE (2024-11-05) it {error.detail}"
            words = f"HTTP {status}"
            raise BackendRejected(self.backend.id, detail, code=status, message=words, status=status) from error

    async def open_event_stream(self) -> BackendClient:
        parts = self._parts
        # Parts of its own, since `_close` ends the server requests of this opening.
        own = Parts(
            parts.connector,
            parts.backend,
            parts.identity,
            parts.nursery,
            parts.events,
            parts.options,
            parts.renewals,
        )
        client = await connect_event_stream(own, parts.connector.probe_timeout(self.backend))
        self._close()
        return client

    async def open_older_stream(self) -> BackendClient:
        client = await self.open_event_stream()
        self._parts.connector.verdicts.record_verdict(self.verdict_key, Verdict.SSE)
        return client

    def discard_handshake(self, client: BackendClient) -> None:
        if client is self._stateless:  # else `open_event_stream` has closed it
            start_clean(self._parts.nursery, self._session.terminate)

    def _close(self) -> None:
        # End the backend's session as well. In a task of its own: the attempt may have run out of time, and the next
        # one waits for its slot.
        start_clean(self._parts.nursery, self._close_session)

    async def _close_session(self) -> None:
        with trio.move_on_after(self._parts.connector.settings.teardown_timeout, shield=True):
            await self.handshake.aclose(terminate=True)


@attrs.define(eq=False)
class LinesOpening(Opening):
    """A connection of lines, such as those of a child process. Its requests carry no identity: a process has no
    credentials but its environment.
    """

    verdict_on_loss = Verdict.INCONCLUSIVE  # the connection has ended, perhaps because of the question
    _parts: Parts = attrs.field(alias="parts")
    _build: Callable[[Backend, FactorySettings], StartedChannel] = attrs.field(alias="build")
    endpoint: str = attrs.field(init=False)
    greets_first: bool = attrs.field(init=False)
    principal: bytes = attrs.field(init=False, repr=False)
    _channel: StartedChannel = attrs.field(init=False, repr=False)
    _handshake: HandshakeClient = attrs.field(init=False, repr=False)
    _stateless: StatelessClient | None = attrs.field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.endpoint, self.principal = endpoint_digest(self._parts.backend), self._parts.principal
        self.greets_first = self._parts.greets_first
        self._prepare()

    @property
    def backend(self) -> Backend:
        return self._parts.backend

    @property
    def stateless(self) -> StatelessClient:
        if self._stateless is None:
            self._stateless = self._parts.stateless(self._channel, self.endpoint, None)
        return self._stateless

    async def connect(self) -> BackendClient:
        parts = self._parts
        try:
            await self._channel.start(parts.nursery)
            connector = parts.connector
            client = await Probe(self, connector.verdicts, connector.probe_timeout(self.backend)).connect()
            self._channel.mark_connected()
            return client
        except BaseException:
            if self._stateless is not None:
                self._stateless.close()
            parts.requests.close()
            self._channel.close()  # its task ends the process, within the teardown time
            raise

    def survives(self, error: BackendError) -> bool:
        return True  # `discover` starts another process

    async def discover(self) -> RequestOutcome:
        if self._channel.is_lost:
            await self._start_another()
        outcome: RequestOutcome | None = None
        failure: BackendError | None = None
        async with trio.open_nursery() as nursery:
            start_task(nursery, self._send_second_line)
            try:
                outcome = await self.stateless.discover(None)
            except BackendUnavailable as error:  # the process has exited
                outcome = Loss(error.detail)
            except BackendError as error:  # raised below: the nursery would group it
                failure = error
            nursery.cancel_scope.cancel(reason="the question was answered")
        if failure is not None:
            raise failure
        assert outcome is not None
        return outcome

    async def _send_second_line(self) -> None:
        """Tell a process that is dead from one that is slow: the read loop of some servers ends with the first request
        that they do not know, and the process exits only when it is sent another line. "Either party may ping at any
        time" (2025-11-25, ping); a slow process answers when it can.
        """
        await trio.sleep(SILENCE)
        ping = Ask(next(self._channel.ids), PING, {}, None, ignore_other, RequestNote())
        with suppress(BackendError):
            await self._channel.exchange(ping, ping.encode(), [])

    async def greet(self, *, was_probed: bool) -> HandshakeClient:
        """If the process exited when it was asked `server/discover`, as some servers do, use a new one."""
        if not self._channel.is_lost:
            try:
                return await self._initialize()
            except BackendUnavailable:
                if not was_probed:
                    raise
        await self._start_another()
        client = await self._initialize()
        # Remember it: this server exits when it is asked `server/discover`.
        self._parts.connector.verdicts.record_verdict(self.verdict_key, Verdict.LEGACY)
        return client

    async def _start_another(self) -> None:
        """The process has exited, perhaps because of a question that it does not know: start a new one."""
        await self._channel.wait_gone()
        self._parts.requests.cancel_all_answers()
        self._prepare()
        await self._channel.start(self._parts.nursery)

    async def _initialize(self) -> HandshakeClient:
        await self._handshake.initialize(None)
        return self._handshake

    def _prepare(self) -> None:
        """Make the channel to the next process. Until the era is known, the client of the handshake era takes what the
        process says: it may log, and it may send a ping, before it is asked anything.
        """
        self._channel = self._build(self.backend, self._parts.connector.settings)
        self._handshake = self._parts.handshake(self._channel, self.endpoint)
        self._stateless = None


async def connect_event_stream(parts: Parts, endpoint_timeout: float) -> HandshakeClient:
    """Open the stream of an HTTP+SSE backend and shake hands.

    Args:
        endpoint_timeout: s, until the stream has named the url to POST to.

    Raises:
        BackendError: There is no such stream, or the backend does not speak MCP on it.
    """
    backend, connector = parts.backend, parts.connector
    limit = connector.connection_limit()
    channel = EventStream(
        inbox=new_inbox(backend, connector.settings),
        backend=backend,
        link=connector.link(backend, parts.renewals, limit),
        make_link=partial(connector.link, renewals=parts.renewals, limit=limit),
        identity=parts.identity,
        unawaited=parts.unawaited(),
        close_timeout=connector.notice_timeout,
    )
    # Another transport to the same url is another endpoint: else a session that is restored over streamable HTTP would
    # resume the record of this one as a backend session without an id.
    client = parts.handshake(channel, endpoint_digest(attrs.evolve(backend, transport="sse")))
    start_clean(parts.nursery, channel.serve)
    try:
        await channel.wait_endpoint(endpoint_timeout)
        try:
            await client.initialize(parts.identity)
        except InitializeRefused as refused:
            raise rejection(backend.id, INITIALIZE, refused.outcome) from None
        channel.mark_connected()
        return client
    except BaseException:
        parts.requests.close()
        channel.close()
        raise
