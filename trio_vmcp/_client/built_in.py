"""The built-in connector: every transport, the era probe, and what is left behind when connecting fails: nothing."""

from __future__ import annotations

import ssl
from functools import cached_property, partial

import attrs
import httpx
import trio

from trio_vmcp._client.cache import ResponseCache
from trio_vmcp._client.channels.duplex import DuplexClient
from trio_vmcp._client.channels.http_sse import connect_sse
from trio_vmcp._client.channels.stdio import connect_stdio
from trio_vmcp._client.channels.streamable import HttpRefusal, Interrupted, Outcome, StreamableHttp, refusal
from trio_vmcp._client.eras import MODERN_VERSION, EraCache, Verdict, is_modern_error, judge
from trio_vmcp._client.handlers import Handling
from trio_vmcp._client.handshake import InitializeRefused, LegacyClient
from trio_vmcp._client.http.link import HttpLink, calls_within
from trio_vmcp._client.server_requests import ServerRequests
from trio_vmcp._client.stateless import ModernClient
from trio_vmcp._http.transport import Http11Transport
from trio_vmcp._nursery import start_clean
from trio_vmcp._protocol.jsonrpc import Result
from trio_vmcp.connector import BackendClient, BackendConnector, ClientHandlers, EventSink, OutgoingAuth
from trio_vmcp.errors import BackendError, BackendProtocolError, BackendRejected, BackendUnavailable, MessageTooLarge
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord, endpoint_digest
from trio_vmcp.models import JSON, Backend
from trio_vmcp.settings import FactorySettings

__all__ = ["HttpConnector"]

# s. A server of the older HTTP+SSE transport may leave a POST hanging; the SDKs wait this long for a discovery. A third
# of the time to connect, if that is less, so that the handshake still has its turn.
PROBE_TIMEOUT = 10.0
PROBE_SHARE = 1 / 3
NOTICE_TIMEOUT = 1.0  # s, for a message that nobody waits for
PENDING_MESSAGES = 2  # of the largest size: what a backend may have handlers at, in memory and not on the wire
_SSE_ONLY = (400, 404, 405)  # how a server of 2024-11-05 refuses a POST to its stream's URL


@attrs.define(eq=False)
class HttpConnector:
    """Connects to backends over whatever transport they have, in whichever era they speak. One for all sessions of a
    factory, which have it by `for_session`: handlers are told whose backend asks.
    """

    _settings: FactorySettings = attrs.field(alias="settings")
    _handlers: ClientHandlers = attrs.field(factory=ClientHandlers, alias="handlers", kw_only=True, repr=False)
    _auth: OutgoingAuth | None = attrs.field(default=None, alias="auth", kw_only=True, repr=False)
    _transport: httpx.AsyncBaseTransport | None = attrs.field(default=None, alias="transport", kw_only=True)
    _ssl_context: ssl.SSLContext | None = attrs.field(default=None, alias="ssl_context", kw_only=True, repr=False)
    _built_in: Http11Transport = attrs.field(init=False, repr=False)
    _eras: EraCache = attrs.field(factory=EraCache, init=False, repr=False)
    _cache: ResponseCache = attrs.field(factory=ResponseCache, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._built_in = Http11Transport(ssl_context=self._ssl_context)

    def for_session(self, session_id: str) -> BackendConnector:
        """The same, for the backends of one session."""
        return partial(self, session_id=session_id)

    async def __call__(
        self,
        backend: Backend,
        *,
        identity: Identity | None,
        resume: BackendRecord | None,
        nursery: trio.Nursery,
        events: EventSink,
        session_id: str = "",
    ) -> BackendClient:
        if backend.transport == "stdio":  # no identity: a process has no credentials but its environment
            return await connect_stdio(
                backend,
                settings=self._settings,
                eras=self._eras,
                probe_timeout=self.probe_timeout,
                nursery=nursery,
                events=events,
                requests=self.requests_of(backend, session_id, nursery),
            )
        if backend.transport == "sse":
            limit = self._settings.backend_init_timeout
            return await self.connect_sse(backend, identity, nursery, events, session_id, endpoint_timeout=limit)
        return await _Attempt(self, backend, identity, nursery, events, session_id).connect(resume)

    def requests_of(self, backend: Backend, session_id: str, nursery: trio.Nursery) -> ServerRequests:
        """What answers one backend of one session. Its tasks run in `nursery`."""
        most = PENDING_MESSAGES * self._settings.max_message_bytes
        return ServerRequests(Handling(self._handlers, session_id, backend.id), nursery, most)

    async def connect_sse(
        self,
        backend: Backend,
        identity: Identity | None,
        nursery: trio.Nursery,
        events: EventSink,
        session_id: str,
        *,
        endpoint_timeout: float,
    ) -> DuplexClient:
        return await connect_sse(
            backend,
            settings=self._settings,
            make_link=self.link,
            notice_timeout=self.notice_timeout,
            endpoint_timeout=endpoint_timeout,
            identity=identity,
            nursery=nursery,
            events=events,
            requests=self.requests_of(backend, session_id, nursery),
        )

    def link(self, backend: Backend) -> HttpLink:
        transport = self._transport or self._built_in  # one for all sessions: a second one finds warm connections
        slots = trio.CapacityLimiter(calls_within(self._settings.max_connections_per_backend))
        try:
            return HttpLink(
                backend,
                transport,
                auth=self._auth,
                slots=slots,
                max_message_bytes=self._settings.max_message_bytes,
            )
        except (httpx.InvalidURL, UnicodeError):  # from None: either quotes what it chokes on
            raise BackendUnavailable(backend.id, "has a url or a header that HTTP cannot carry") from None

    async def tidy(self) -> None:
        """Close connections that idle for too long. Runs until it is cancelled."""
        await self._built_in.tidy()

    def close(self) -> None:
        """Close the built-in transport. One that was passed belongs to whoever passed it."""
        self._built_in.close()

    @property
    def probe_timeout(self) -> float:
        """s, for a question that the backend may not know."""
        return min(PROBE_TIMEOUT, self._settings.backend_init_timeout * PROBE_SHARE)

    @property
    def notice_timeout(self) -> float:
        """s, for a message that nobody waits for."""
        return min(NOTICE_TIMEOUT, self._settings.teardown_timeout / 2)

    @property
    def settings(self) -> FactorySettings:
        return self._settings

    @property
    def eras(self) -> EraCache:
        return self._eras

    @property
    def cache(self) -> ResponseCache:
        return self._cache


@attrs.define(eq=False)
class _Attempt:
    """One connection to one backend on its way to a client."""

    connector: HttpConnector
    backend: Backend
    identity: Identity | None
    nursery: trio.Nursery
    events: EventSink
    session_id: str = attrs.field(repr=False)
    http: StreamableHttp = attrs.field(init=False)
    requests: ServerRequests = attrs.field(init=False)
    legacy: LegacyClient = attrs.field(init=False)
    endpoint: str = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        settings = self.connector.settings
        self.endpoint = endpoint_digest(self.backend)
        self.http = StreamableHttp(
            self.connector.link(self.backend), settings.max_message_bytes, settings.max_json_depth
        )
        self.requests = self.connector.requests_of(self.backend, self.session_id, self.nursery)
        self.legacy = LegacyClient(
            record=BackendRecord(self.backend.id, None, "legacy", "", {}, self.endpoint),
            http=self.http,
            events=self.events,
            requests=self.requests,
            identity=self.identity,
            nursery=self.nursery,
            notice_timeout=self.connector.notice_timeout,
            listens=self.backend.listen,
            retries=(settings.reconnect_delay, settings.reconnect_max_delay),
        )

    @cached_property
    def modern(self) -> ModernClient:
        """Where the legacy era is pinned there is none."""
        settings = self.connector.settings
        return ModernClient(
            record=BackendRecord(self.backend.id, None, "modern", MODERN_VERSION, {}, self.endpoint),
            http=self.http,
            events=self.events,
            requests=self.requests,
            max_pages=settings.max_pages,
            max_tools=settings.max_items_per_backend,
            cache=self.connector.cache.of(self.backend, MODERN_VERSION),
            identity=self.identity,
            nursery=self.nursery,
            listens=self.backend.listen,
            retries=(settings.reconnect_delay, settings.reconnect_max_delay),
        )

    async def connect(self, resume: BackendRecord | None) -> BackendClient:
        try:
            if resume is not None and resume.era == "legacy" and self.backend.era != "modern":  # what is pinned wins
                return self.legacy.resume(resume)
            match self.backend.era:
                case "legacy":
                    return await self._initialize()
                case "modern":
                    return await self._discover()
                case _:
                    return await self._probe(resume)
        except BaseException:
            # Whatever we have read of it so far, the backend's session ends with the attempt. In a task of its own,
            # since the attempt may have been cut off by its deadline, and its slot belongs to the next.
            start_clean(self.nursery, self._abandon)
            raise

    async def _abandon(self) -> None:
        with trio.move_on_after(self.connector.settings.teardown_timeout, shield=True):
            await self.legacy.aclose(terminate=True)

    async def _probe(self, resume: BackendRecord | None) -> BackendClient:
        eras = self.connector.eras
        discovered: JSON | None = None
        probed = False

        async def probe() -> Verdict:
            nonlocal discovered, probed
            probed = True
            verdict, discovered = await self._ask_for_era()
            return verdict

        if resume is not None:  # modern: its metadata is as good a hint as the cache's
            eras.correct(self.endpoint, Verdict.MODERN)
        verdict = await eras.verdict(self.endpoint, probe)
        if verdict is Verdict.SSE:
            try:
                return await self._open_stream()
            except (BackendProtocolError, BackendRejected, MessageTooLarge):  # the verdict is out of date
                verdict = await probe()
                eras.correct(self.endpoint, verdict)
        if verdict is Verdict.MODERN and discovered is None:  # somebody else's probe, perhaps long ago
            verdict = await probe()
            eras.correct(self.endpoint, verdict)
        if verdict is Verdict.MODERN and discovered is not None:
            self.modern.adopt(discovered)
            return self.modern
        try:
            return await self._handshake()
        except InitializeRefused as error:
            refused = error
        if is_modern_error(refused.outcome) or not probed:  # the verdict is wrong, or may be out of date
            verdict = await probe()
            eras.correct(self.endpoint, verdict)
            if verdict is Verdict.MODERN and discovered is not None:
                self.modern.adopt(discovered)
                return self.modern
        return await self._fall_back(refused)

    async def _ask_for_era(self) -> tuple[Verdict, JSON | None]:
        """The verdict, and what a modern server declared of itself."""
        with trio.move_on_after(self.connector.probe_timeout):
            try:
                answer = await self.modern.discover(self.identity)
                if is_modern_error(answer.outcome):  # "retry with a mutual version, once"
                    answer = await self.modern.discover(self.identity)
            except (BackendProtocolError, BackendRejected, MessageTooLarge):
                return Verdict.LEGACY, None  # what it answers is not MCP of this era: plain text, 204, a redirect
            verdict = judge(answer)
            result = answer.outcome.result if isinstance(answer.outcome, Result) else None
            if verdict is Verdict.MODERN and result is None:
                raise self._refused("server/discover", answer.outcome)
            return verdict, result
        return Verdict.INCONCLUSIVE, None

    async def _discover(self) -> ModernClient:
        answer = await self.modern.discover(self.identity)
        if is_modern_error(answer.outcome):
            answer = await self.modern.discover(self.identity)
        if not isinstance(answer.outcome, Result):
            raise self._refused("server/discover", answer.outcome)
        versions = answer.outcome.result.get("supportedVersions")
        if not isinstance(versions, list) or MODERN_VERSION not in versions:
            raise BackendProtocolError(self.backend.id, f"does not list {MODERN_VERSION} among its supported versions")
        self.modern.adopt(answer.outcome.result)
        return self.modern

    async def _initialize(self) -> LegacyClient:
        try:
            return await self._handshake()
        except InitializeRefused as refused:
            raise refusal(self.backend.id, "initialize", refused.outcome) from None

    async def _handshake(self) -> LegacyClient:
        await self.legacy.initialize(self.identity)
        return self.legacy

    async def _fall_back(self, refused: InitializeRefused) -> BackendClient:
        """Neither `server/discover` nor `initialize` got an answer of its era; so answers a server of HTTP+SSE."""
        status = refused.status
        if status not in _SSE_ONLY or not isinstance(refused.outcome, HttpRefusal):
            raise refusal(self.backend.id, "initialize", refused.outcome)
        try:
            client = await self._open_stream()
        except (BackendProtocolError, BackendRejected, MessageTooLarge) as error:
            detail = f"answered 'initialize' with HTTP {status}, and over HTTP+SSE (2024-11-05) it {error.detail}"
            raise BackendRejected(self.backend.id, detail, code=status, message=f"HTTP {status}") from error
        self.connector.eras.correct(self.endpoint, Verdict.SSE)
        return client

    async def _open_stream(self) -> BackendClient:
        client = await self.connector.connect_sse(
            self.backend,
            self.identity,
            self.nursery,
            self.events,
            self.session_id,
            endpoint_timeout=self.connector.probe_timeout,
        )
        start_clean(self.nursery, self._abandon)  # the link that streamable HTTP would have gone over
        return client

    def _refused(self, method: str, outcome: Outcome) -> BackendError:
        if isinstance(outcome, Interrupted | Result):
            return BackendUnavailable(self.backend.id, f"closed the stream before it answered {method!r}")
        return refusal(self.backend.id, method, outcome)
