"""One client of the handshake era, over HTTP or stdio: its requests, questions of backends to it, and changes."""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, cast

import attrs
import trio

from trio_vmcp._nursery import start_task
from trio_vmcp._protocol.eras import LEGACY_VERSIONS
from trio_vmcp._protocol.jsonrpc import ErrorReply, Notification, RequestId, Result, check_sendable
from trio_vmcp._protocol.methods import (
    CANCELLED,
    ELICITATION_COMPLETE,
    GET_PROMPT,
    INITIALIZE,
    LIST_CHANGED,
    LOG_LEVELS,
    MESSAGE,
    PING,
    QUESTIONS,
    RESOURCE_UPDATED,
    ROOTS_CHANGED,
    SET_LEVEL,
    SUBSCRIBE,
    TOOLS_CALL,
    UNSUBSCRIBE,
    Kind,
    is_severe,
)
from trio_vmcp.connector import ClientHandlers, ServerRequest, ServerRequestError
from trio_vmcp.errors import VmcpError
from trio_vmcp.models import JSON, SessionChange
from trio_vmcp.routing import Target
from trio_vmcp.serve._errors import INVALID_PARAMS, INVALID_REQUEST, Refusal
from trio_vmcp.serve._exchange import Exchange, progress_of
from trio_vmcp.serve._lists import LIST_METHODS
from trio_vmcp.serve._messages import encode_notice, encode_question
from trio_vmcp.serve._requests import CAPABILITIES, MARK, Call, perform
from trio_vmcp.serve._version import SERVER_INFO
from trio_vmcp.serve._wanted import PROTOCOL_VERSION, WANTED_LEVEL, News, Wanted
from trio_vmcp.session import Session

__all__ = ["ClientSession", "Outlet", "attributes_of", "handlers_for", "initialize_result", "negotiate"]

UNAVAILABLE = -32000  # from the range that JSON-RPC 2.0 §5.1 leaves to implementations
CLIENT_CAPABILITIES = "mcp.clientCapabilities"  # an attribute: another instance must declare the same to backends
MOST_CAPABILITIES = 8 * 1024  # bytes, as they are stored with each session
STORED_WITHIN = 2.0  # s that a client waits for the storage to take what it wants


def negotiate(params: JSON) -> tuple[str, JSON]:
    """The version to speak with a client, and what it declares.

    Raises:
        Refusal: The params are not those of `initialize`.
    """
    version, capabilities = params.get("protocolVersion"), params.get("capabilities")
    if not isinstance(version, str):
        raise Refusal(INVALID_PARAMS, "'protocolVersion' is not a string")
    if capabilities is None:
        capabilities = {}
    if not isinstance(capabilities, dict):
        raise Refusal(INVALID_PARAMS, "'capabilities' is not an object")
    declared = {kind: capabilities[kind] for kind in QUESTIONS.values() if capabilities.get(kind) is not None}
    if not all(isinstance(each, dict) for each in declared.values()):
        raise Refusal(INVALID_PARAMS, f"'capabilities': one of {', '.join(declared)} is not an object")
    try:
        check_sendable(declared, "capabilities")  # every backend is told
    except ValueError as bad:
        raise Refusal(INVALID_PARAMS, str(bad)) from None
    if len(json.dumps(declared)) > MOST_CAPABILITIES:
        raise Refusal(INVALID_PARAMS, f"'capabilities' is over {MOST_CAPABILITIES} bytes")
    return version if version in LEGACY_VERSIONS else LEGACY_VERSIONS[0], declared


def initialize_result(version: str) -> JSON:
    return {"protocolVersion": version, "capabilities": CAPABILITIES, "serverInfo": SERVER_INFO}


def attributes_of(version: str, capabilities: JSON) -> dict[str, str]:
    return {PROTOCOL_VERSION: version, CLIENT_CAPABILITIES: json.dumps(capabilities, separators=(",", ":"))}


MOST_TELLINGS = 4  # of changed roots at a time: while one backend takes long, others should hear of the next change
STREAM_PATIENCE = 5.0  # s that a question waits for a client to be there, and for its stream outside of requests


class Clients(Protocol):
    """Finds the client that a session belongs to."""

    def client_of(self, session_id: str) -> ClientSession | None: ...

    async def wait_client(self, session_id: str) -> ClientSession | None:
        """Like `client_of`, but waits a moment: a backend may ask while its session is being made."""
        return self.client_of(session_id)


def handlers_for(clients: Clients, attributes: Mapping[str, str]) -> ClientHandlers:
    """Handlers that pass the questions of backends on to the client of their session: those kinds that it declared."""
    capabilities: JSON = json.loads(attributes.get(CLIENT_CAPABILITIES, "{}"))

    async def relay(method: str, request: ServerRequest) -> Any:
        client = await clients.wait_client(request.session_id)
        if client is None:
            raise ServerRequestError(UNAVAILABLE, "the client of this session is not connected")
        return await client.ask(method, request)

    async def log(request: ServerRequest) -> None:
        client = clients.client_of(request.session_id)
        if client is not None:
            client.pass_log_message(request)

    async def complete(request: ServerRequest) -> None:
        client = clients.client_of(request.session_id)
        if client is not None:
            client.pass_completion(request)

    relays: dict[str, Any] = {}
    relays |= {kind: partial(relay, method) for method, kind in QUESTIONS.items() if kind in capabilities}
    if "url" in capabilities.get("elicitation", {}):  # of no use to a client that knows forms alone
        relays["elicitation_complete"] = complete
    takes_tools = "tools" in capabilities.get("sampling", {})
    return ClientHandlers(
        **relays,
        log=log,
        sampling_tools=takes_tools,
        capabilities=capabilities,
        log_level=attributes.get(WANTED_LEVEL),
    )


class Outlet(Protocol):
    """The stream for messages that belong to no request."""

    @property
    def is_open(self) -> bool:
        """The client reads it, or did a moment ago."""
        ...

    def send(self, data: bytes, *, may_drop: bool) -> None: ...


@attrs.define(eq=False)
class _Question:
    """A question of a backend, until the client has answered."""

    answered: trio.Event = attrs.field(factory=trio.Event)
    reply: Result | ErrorReply | None = None


@attrs.define(eq=False)
class ClientSession:
    """The state of one client here. All that must outlive the process is in the metadata of the session.

    Attributes:
        session: The view of the client's identity; another one after the session hibernated.
        version: As negotiated.
        outlet: For messages outside of requests.
        wanted: Of backends.
    """

    session: Session
    version: str
    outlet: Outlet
    wanted: Wanted = attrs.field(init=False, repr=False)
    _running: dict[RequestId, Exchange] = attrs.field(factory=dict, init=False, repr=False)
    _by_mark: dict[str, tuple[Exchange, str, JSON]] = attrs.field(factory=dict, init=False, repr=False)
    _questions: dict[RequestId, _Question] = attrs.field(factory=dict, init=False, repr=False)
    # Of questions. A client may still answer one of an earlier process: that must not be taken for an answer to ours.
    _ids: itertools.count[int] = attrs.field(init=False, repr=False)
    _opened: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False, repr=False)
    # The lists as the client last saw them, or was told of. A session makes another tuple where a list has changed.
    _seen: dict[Kind, tuple[object, ...]] = attrs.field(factory=dict, init=False, repr=False)
    _is_ended: bool = attrs.field(default=False, init=False)
    _tellings: int = attrs.field(default=0, init=False)  # of changed roots, that are under way
    _is_change_untold: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.wanted = Wanted.of(self.session.metadata.attributes)
        self._ids = itertools.count(secrets.randbelow(2**48))
        self._seen = self._lists()

    @property
    def is_busy(self) -> bool:
        return bool(self._running)

    # --- requests

    async def answer(self, request_id: RequestId, method: str, params: JSON, exchange: Exchange) -> JSON | None:
        """The result of one request; None: the client has withdrawn it.

        Raises:
            Refusal: It is none that can be made.
            VmcpError, ValueError, TypeError: As the methods of `Session`.
        """
        if request_id in self._running:
            raise Refusal(INVALID_REQUEST, "the id of this request is in use by another request of this session")
        self._running[request_id] = exchange
        self._by_mark[exchange.mark] = (exchange, method, params)
        result: JSON | None = None
        try:
            with exchange.scope:
                result = await self._perform(method, params, exchange)
        finally:
            del self._running[request_id]
            del self._by_mark[exchange.mark]
        return result

    async def _perform(self, method: str, params: JSON, exchange: Exchange) -> JSON:
        if method == PING:
            return {}
        if method == SET_LEVEL:
            await self._set_level(params)
            return {}
        if method in (SUBSCRIBE, UNSUBSCRIBE):
            await self._subscribe(method, params)
            return {}
        if method == INITIALIZE:
            raise Refusal(INVALID_REQUEST, "this session is initialized already")
        if method in LIST_METHODS:
            kind = LIST_METHODS[method].kind
            self._seen[kind] = self._lists()[kind]
        return await perform(self.session, method, params, Call(exchange.mark, progress_of(exchange, params)))

    async def _set_level(self, params: JSON) -> None:
        level = params.get("level")
        if level not in LOG_LEVELS:
            raise Refusal(INVALID_PARAMS, f"'level' is none of {', '.join(LOG_LEVELS)}")
        await self.session.set_log_level(level)
        self.wanted.level = level
        await self._store_wanted()

    async def _subscribe(self, method: str, params: JSON) -> None:
        uri = params.get("uri")
        if not isinstance(uri, str):
            raise Refusal(INVALID_PARAMS, "'uri' is not a string")
        if method == SUBSCRIBE:
            await self.session.subscribe_resource(uri)
            self.wanted.subscribed.add(uri)
        else:
            await self.session.unsubscribe_resource(uri)
            self.wanted.subscribed.discard(uri)
        await self._store_wanted()

    async def _store_wanted(self) -> None:
        """Store what the client wants of backends. Without the storage it is lost with the process, and no sooner."""
        attributes = self.wanted.put_into(self.session.metadata.attributes)
        with suppress(VmcpError), trio.move_on_after(STORED_WITHIN):
            await self.session.set_attributes(attributes)
            self.wanted.note_stored(attributes)

    async def tell_wanted(self) -> None:
        """The session was restored, or woke: tell its backends what the client wants of them."""
        await self.tell_news(News(self.wanted.level, frozenset(self.wanted.subscribed), frozenset()))

    async def tell_news(self, news: News) -> None:
        """Tell the backends what the client wants of them. It may want something else by the time that this begins."""

        async def tell(request: Callable[[str], Awaitable[None]], what: str) -> None:
            with suppress(VmcpError):  # that backend is away, or offers it no longer
                await request(what)

        async with trio.open_nursery() as nursery:
            if news.level is not None and news.level == self.wanted.level:
                start_task(nursery, tell, self.session.set_log_level, news.level)
            for uri in news.added & self.wanted.subscribed:
                start_task(nursery, tell, self.session.subscribe_resource, uri)
            for uri in news.removed - self.wanted.subscribed:
                start_task(nursery, tell, self.session.unsubscribe_resource, uri)

    # --- messages of the client that have no answer

    async def on_notification(self, message: Notification) -> None:
        """Take a notification. Backends are told of changed roots, which may take long."""
        if message.method == ROOTS_CHANGED:
            if self._tellings < MOST_TELLINGS:
                await self._tell_roots_changed()
            else:
                self._is_change_untold = True
        elif message.method == CANCELLED:
            request_id = message.params.get("requestId")
            if type(request_id) in (int, str):
                exchange = self._running.get(cast("RequestId", request_id))
                if exchange is not None:
                    exchange.scope.cancel(reason="the client has withdrawn the request")

    async def _tell_roots_changed(self) -> None:
        """Also of the changes that come while no more tellings may run: once."""
        self._tellings += 1
        try:
            is_untold = True
            while is_untold:
                self._is_change_untold = False
                with suppress(VmcpError):  # the session has ended meanwhile, and a notification has no answer
                    await self.session.tell_roots_changed()
                is_untold = self._is_change_untold
        finally:
            self._tellings -= 1

    def on_reply(self, reply: Result | ErrorReply) -> None:
        """The answer to a question; one that belongs to none is ignored."""
        question = None if reply.id is None else self._questions.get(reply.id)
        if question is not None and question.reply is None:
            question.reply = reply
            question.answered.set()

    # --- messages of backends

    async def ask(self, method: str, request: ServerRequest) -> JSON:
        """Ask the client on the stream of the call that the question belongs to, and return its result.

        Raises:
            ServerRequestError: The client answers with an error, has and opens no stream, or its session has ended.
        """
        exchange = self._exchange_of(request)
        send = await self._sender(exchange)
        question_id, question = next(self._ids), _Question()
        self._questions[question_id] = question
        try:
            send(encode_question(question_id, method, _without_token(request.params)), may_drop=False)
            async with trio.open_nursery() as nursery:
                start_task(nursery, _cancel_when_draining, self.session, nursery.cancel_scope)
                await question.answered.wait()
                nursery.cancel_scope.cancel(reason="the question is answered")
        finally:
            del self._questions[question_id]
            if question.reply is None and not self._is_ended:
                self._tell_withdrawn(question_id, exchange)
        match question.reply:
            case Result(result=result):
                return result
            case ErrorReply(code=code, message=message, data=data):
                raise ServerRequestError(code, message, data)
        raise ServerRequestError(UNAVAILABLE, "the session of the client has ended")

    def _tell_withdrawn(self, question_id: int, exchange: Exchange | None) -> None:
        """The backend has withdrawn it, or its session has ended."""
        data = encode_notice(CANCELLED, {"requestId": question_id, "reason": "the backend waits for it no longer"})
        if exchange is not None and exchange.takes_messages:
            exchange.send(data, may_drop=True)
        elif self.outlet.is_open:  # the call was answered meanwhile: its timeout is over, say
            self.outlet.send(data, may_drop=True)

    def pass_log_message(self, request: ServerRequest) -> None:
        """A backend may send more than the level that the client has set, as backends without levels do."""
        if self.wanted.level is not None and not is_severe(request.params.get("level"), self.wanted.level):
            return
        data = encode_notice(MESSAGE, request.params)
        exchange = self._exchange_of(request)
        if exchange is not None and exchange.takes_messages:
            exchange.send(data, may_drop=True)
        elif self.outlet.is_open:
            self.outlet.send(data, may_drop=True)

    def pass_completion(self, request: ServerRequest) -> None:
        """An elicitation by URL outlives its call, so this comes by the stream outside of requests, and waits for a
        client that does not listen now.
        """
        self.outlet.send(encode_notice(ELICITATION_COMPLETE, request.params), may_drop=True)

    def end(self) -> None:
        """The session takes no more requests: what a backend waits for is answered with an error."""
        self._is_ended = True
        self._opened.unpark_all()
        for question in self._questions.values():
            question.answered.set()

    async def _sender(self, exchange: Exchange | None) -> Any:
        if exchange is not None and exchange.takes_messages:
            return exchange.send
        if exchange is None:  # servers like to ask as soon as they are initialized, before the client has its stream
            with trio.move_on_after(STREAM_PATIENCE):
                while not self.outlet.is_open and not self._is_ended:
                    await self._opened.park()
        if self.outlet.is_open and not self._is_ended:
            return self.outlet.send
        raise ServerRequestError(UNAVAILABLE, "the client has no stream that a question can come by")

    def _exchange_of(self, request: ServerRequest) -> Exchange | None:
        """The request that a message belongs to. Where the channel does not say which one that is, the oldest that runs
        on the backend.
        """
        if request.call is not None:
            found = self._by_mark.get((request.call.meta or {}).get(MARK, ""))
            return None if found is None else found[0]
        for exchange, method, params in self._by_mark.values():
            if self._backend_of(method, params) == request.backend_id:
                return exchange
        return None

    def _backend_of(self, method: str, params: JSON) -> str | None:
        table = self.session.routing_table
        targets: Mapping[str, Target] = table.resources
        if method == TOOLS_CALL:
            targets = table.tools
        elif method == GET_PROMPT:
            targets = table.prompts
        name = params.get("name" if method in (TOOLS_CALL, GET_PROMPT) else "uri")
        target = targets.get(name) if isinstance(name, str) else None  # `completion/complete` may have any member
        return None if target is None else target.backend_id

    # --- changes

    def on_change(self, change: SessionChange) -> None:
        """A change in the session, for the stream outside of requests."""
        if change.kind == "resource_updated":
            if change.uri in self.wanted.subscribed:
                self._tell(RESOURCE_UPDATED, {"uri": change.uri})
            return
        self.tell_changed_lists()

    def tell_missed(self) -> None:
        """The client hears of changes from now on. Those of the meantime were not told, so all that it may have missed
        counts as changed.
        """
        self._opened.unpark_all()
        self.tell_changed_lists()
        for uri in self.wanted.subscribed:
            self._tell(RESOURCE_UPDATED, {"uri": uri})

    def forget_seen(self) -> None:
        """The client saw its lists in another process, or before its session slept: they may have changed since."""
        self._seen = {}

    def tell_changed_lists(self) -> None:
        """Tell of each list that is not as the client last saw it."""
        for kind, entries in self._lists().items():
            seen = self._seen.get(kind)
            if seen is None or any(now is not before for now, before in zip(entries, seen, strict=True)):
                self._seen[kind] = entries
                self._tell(LIST_CHANGED[kind], {})

    def _tell(self, method: str, params: JSON) -> None:
        self.outlet.send(encode_notice(method, params), may_drop=True)

    def _lists(self) -> dict[Kind, tuple[object, ...]]:
        session = self.session
        return {
            "tools": (session.tools,),
            "resources": (session.resources, session.resource_templates),
            "prompts": (session.prompts,),
        }


async def _cancel_when_draining(session: Session, scope: trio.CancelScope) -> None:
    """A session that drains takes no more messages of its client, so no answer can come. Another instance may have
    ended it.
    """
    await session.wait_draining()
    scope.cancel(reason="the session of the client has ended")


def _without_token(params: JSON) -> JSON:
    """Progress tokens belong to one hop."""
    meta = params.get("_meta")
    if not isinstance(meta, dict) or "progressToken" not in meta:
        return params
    return {**params, "_meta": {key: value for key, value in meta.items() if key != "progressToken"}}
