"""The client of the modern era (MCP 2026-07-28): no handshake and no session; each request describes its sender.

Source: MCP 2026-07-28, basic/transports, caching, subscriptions, multi round-trip requests.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Generator, Iterator

import attrs
import trio

from trio_vmcp._client.cache import BackendCache, Fetch
from trio_vmcp._client.channels.channel import Ask, Channel, Headers
from trio_vmcp._client.client import Client
from trio_vmcp._client.listening import Listening
from trio_vmcp._client.negotiate import CLIENT_INFO, declared_capabilities
from trio_vmcp._client.rounds import check_question, finish_rounds, is_complete
from trio_vmcp._client.server_requests import ServerRequests
from trio_vmcp._client.subscriptions import Subscriptions
from trio_vmcp._protocol.eras import HEADER_MISMATCH, MODERN_VERSION, is_modern_error
from trio_vmcp._protocol.headers import (
    VALUES_AT_ONCE,
    BadParamHeader,
    ParamHeaders,
    encode_header_value,
    param_headers_in_steps,
)
from trio_vmcp._protocol.jsonrpc import ErrorReply, Request, Result, encode_request
from trio_vmcp._protocol.methods import (
    CLIENT_CAPABILITIES,
    DISCOVER,
    LOG_LEVEL,
    METHODS,
    MOST_STALE_PAGES,
    SET_LEVEL,
    SUBSCRIBE,
    TOOLS_CALL,
    TOOLS_LIST,
    UNKNOWN,
    UNSUBSCRIBE,
    Method,
    changing_kinds,
)
from trio_vmcp._protocol.outcomes import (
    GATEWAY_STATUSES,
    MOST_WORDS,
    Answer,
    Loss,
    Refusal,
    RequestOutcome,
    names_session,
    rejection,
)
from trio_vmcp._request_note import note_session_lost, preparing
from trio_vmcp._steps import take_steps
from trio_vmcp.errors import BackendError, BackendProtocolError, BackendRejected, BackendTimeout, BackendUnavailable
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON

__all__ = ["StatelessClient"]

logger = logging.getLogger("trio_vmcp.client")

_NO_LONGER_MODERN = (400, 404)  # the answers of servers of the handshake era to a request of this era


def _stamp(requests: ServerRequests) -> JSON:
    """The description of the sender that is in `_meta` of every request."""
    stamp: JSON = {
        "io.modelcontextprotocol/protocolVersion": MODERN_VERSION,
        CLIENT_CAPABILITIES: requests.capabilities,
        "io.modelcontextprotocol/clientInfo": CLIENT_INFO,
    }
    handlers = requests.handlers.client_handlers
    # Without a level "the server MUST NOT send" log messages (2026-07-28, logging).
    has_level = handlers.log is not None and handlers.log_level is not None
    return stamp | {LOG_LEVEL: handlers.log_level} if has_level else stamp


def _own_part_of_stamp(meta: JSON) -> JSON:
    """What one request says of its sender in place of the stamp."""
    return {key: meta[key] for key in (CLIENT_CAPABILITIES, LOG_LEVEL) if key in meta}


@attrs.define(eq=False, kw_only=True)
class StatelessClient(Client[Channel]):
    """A client without a session: each request holds all that the server needs."""

    _max_pages: int = attrs.field(alias="max_pages")
    _max_tools: int = attrs.field(alias="max_tools")
    # None: no result is kept. A child process belongs to one session, so its results are not shared.
    _cache: BackendCache | None = attrs.field(alias="cache", repr=False)
    _identity: Identity | None = attrs.field(alias="identity", repr=False)  # the session was opened with it
    _nursery: trio.Nursery = attrs.field(alias="nursery", repr=False)
    _listens: bool = attrs.field(alias="listens")  # Backend.listen
    _retries: tuple[float, float] = attrs.field(alias="retries")  # s, the first and the longest, between two streams
    _stamp: JSON = attrs.field(init=False, repr=False)
    # For tools of the last listing that repeat arguments in headers.
    _param_headers: dict[str, ParamHeaders] = attrs.field(factory=dict, init=False, repr=False)
    _subscriptions: Subscriptions | None = attrs.field(default=None, init=False, repr=False)
    _closed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._stamp = _stamp(self._requests)

    async def discover(self, identity: Identity | None) -> RequestOutcome:
        """Send `server/discover` and return its outcome; a good answer is for `adopt`."""
        ask = self._ask(DISCOVER, {}, identity)
        if self._cache is None:
            return await self._channel.exchange(ask, *self._compose(ask, UNKNOWN))
        known = await take_steps(self._cache.find_in_steps(DISCOVER, {}, identity))
        if known is not None:
            await trio.lowlevel.checkpoint()
            return Answer(Result(ask.id, known))
        fetch = self._cache.begin_fetch(DISCOVER, {}, identity)
        try:
            outcome = await self._channel.exchange(ask, *self._compose(ask, UNKNOWN))
            reply = outcome.reply if isinstance(outcome, Answer) else None
            # "Absent means complete" (2026-07-28, results).
            if fetch is not None and isinstance(reply, Result) and reply.result.get("resultType") in (None, "complete"):
                await _keep(fetch, reply.result)
            return outcome
        finally:
            if fetch is not None:
                fetch.close()

    def adopt(self, result: JSON) -> None:
        """Use the capabilities that the server declared, and subscribe to the changes that it offers.

        Raises:
            BackendProtocolError, MessageTooLarge: The capabilities are malformed or too large.
        """
        capabilities = declared_capabilities(self.record.backend_id, DISCOVER, result)
        self._channel.attach(self)
        self.record = attrs.evolve(
            self.record, era="modern", protocol_version=MODERN_VERSION, server_capabilities=capabilities
        )
        self.listen_again()

    @property
    def listening(self) -> Listening:
        return "none" if self._subscriptions is None else self._subscriptions.listening

    def listen_again(self) -> None:
        kinds = changing_kinds(self.server_capabilities) if self._listens else ()
        if self._subscriptions is not None:
            if self.listening == "ended":
                self._subscriptions.open(kinds)
        elif kinds:
            self._all_subscriptions().open(kinds)

    @property
    def subscribed(self) -> tuple[str, ...]:
        return () if self._subscriptions is None else self._subscriptions.uris

    def on_error(self, error: BackendError) -> None:
        if self._cache is None:
            return
        if isinstance(error, BackendTimeout):
            # The next connection must find out whether the backend can be reached.
            self._cache.discard_results(DISCOVER)
        elif isinstance(error, BackendUnavailable | BackendProtocolError):
            self._cache.discard_all()  # the backend may come back as another server

    def close(self) -> None:
        """Act on no further message of this connection, and end its streams for changes."""
        self._closed = True
        if self._subscriptions is not None:
            self._subscriptions.close()
        self._channel.retire()
        self._requests.close()

    async def exchange(self, ask: Ask, method: Method) -> JSON:
        if method.name in (SUBSCRIBE, UNSUBSCRIBE):
            return await self._change_subscriptions(method.name, ask.params["uri"], ask.identity)
        if method.name == SET_LEVEL:  # this era has no such request: each later one says it
            self._stamp = self._stamp | {LOG_LEVEL: ask.params["level"]}
            await trio.lowlevel.checkpoint()
            return {}
        if self._cache is None or not method.may_be_kept:
            result = await self._result(ask, method)
            if not is_complete(self.record.backend_id, method, result):
                result = await self._finished(result, ask, method)
        else:
            kept = await take_steps(self._cache.find_in_steps(method.name, ask.params, ask.identity))
            if kept is None:
                result = await self._fetched(ask, method, self._cache)
            else:
                result = kept
                await trio.lowlevel.checkpoint()
        if method.name == TOOLS_LIST and self._channel.has_headers:
            return await self._with_usable_tools(result)
        return result

    async def _fetched(self, ask: Ask, method: Method, cache: BackendCache) -> JSON:
        """A result from the backend, kept in the cache if it says so and no round with input led to it."""
        fetch = cache.begin_fetch(method.name, ask.params, ask.identity)
        try:
            result = await self._result(ask, method)
            if is_complete(self.record.backend_id, method, result):
                if fetch is not None:
                    await _keep(fetch, result)
                return result
        except BackendRejected:
            if "cursor" in ask.params:  # it may be out of date, and with it the pages before
                cache.discard_results(method.name)
            raise
        finally:
            if fetch is not None:
                fetch.close()
        return await self._finished(result, ask, method)

    async def _finished(self, first: JSON, ask: Ask, method: Method) -> JSON:
        """The result of a request; `first` is its first answer, which asks for input. If the caller answers rounds, the
        question is the result.
        """
        if ask.note.hands_out_rounds:
            check_question(first, ask, self._requests.handlers)
            return first

        async def ask_again(more: JSON) -> JSON:
            return await self._result(self._under_new_id(attrs.evolve(ask, params=more)), method)

        return await finish_rounds(first, ask, method, ask_again, self._requests.handlers)

    async def _result(self, ask: Ask, method: Method) -> JSON:
        """Send one request, and return its result as received."""
        backend_id = self.record.backend_id
        outcome = await self._channel.exchange(ask, *self._compose(ask, method))
        if method.name == TOOLS_CALL and _is_header_mismatch(outcome):
            # Our copy of the tool's schema is old: "refetch and retry once". The error proves that the call did not
            # run.
            with preparing(method.name):
                await self._list_tools_again(ask.identity)
            again = self._under_new_id(ask)
            outcome = await self._channel.exchange(again, *self._compose(again, method))
        if isinstance(outcome, Answer) and isinstance(outcome.reply, Result):
            return outcome.reply.result
        if isinstance(outcome, Loss):
            error = outcome.error(backend_id, ask.method)
            error.may_have_executed = ask.note.written
            raise error
        ask.note.written = False
        ask.note.is_unreached = outcome.status in GATEWAY_STATUSES
        if outcome.status >= 400 and self._cache is not None:
            # The backend may have been replaced by another server: let the next connection ask.
            self._cache.discard_results(DISCOVER)
        refused = rejection(backend_id, ask.method, outcome)
        if outcome.status in _NO_LONGER_MODERN and _is_of_the_other_era(outcome):
            note_session_lost()
            refused.may_have_executed = False  # whatever the code: the server did not understand it
        raise refused

    def _under_new_id(self, ask: Ask) -> Ask:
        again = attrs.evolve(ask, id=next(self._channel.ids))
        ask.on_again(again)
        return again

    def _compose(self, ask: Ask, method: Method) -> tuple[bytes, Headers]:
        """The body and the headers of a request."""
        params = ask.params
        meta = params.get("_meta")
        stamp = self._stamp if meta is None else meta | self._stamp | _own_part_of_stamp(meta)
        data = encode_request(ask.id, ask.method, params | {"_meta": stamp})
        headers = [(b"MCP-Protocol-Version", MODERN_VERSION.encode()), (b"Mcp-Method", ask.method.encode())]
        if method.named_by is not None:  # after `encode_request`, which raises for a name that is no text
            name = params[method.named_by]
            headers.append((b"Mcp-Name", encode_header_value(name).encode()))
            if name in self._param_headers and method.name == TOOLS_CALL:
                encoded = self._param_headers[name].encode(params.get("arguments", {}))
                headers += [(header.encode(), value.encode()) for header, value in encoded]
        return data, headers

    # --- changes

    def _all_subscriptions(self) -> Subscriptions:
        """Made on first use: few backends have any."""
        if self._subscriptions is None:
            self._subscriptions = Subscriptions(
                channel=self._channel,
                compose=self._compose_listen,
                on_event=self.on_event,
                on_listening=self.on_listening,
                on_reached=self.on_reached,
                nursery=self._nursery,
                retries=self._retries,
                identity=self._identity,
            )
            if self._closed:
                self._subscriptions.close()
        return self._subscriptions

    def renew_identity(self, identity: Identity) -> None:
        """What belongs to no call carries the newer token of this identity from now on."""
        self._identity = identity
        if self._subscriptions is not None:
            self._subscriptions.renew_identity(identity)

    def _compose_listen(self, method: str, params: JSON, identity: Identity | None) -> tuple[Ask, bytes, Headers]:
        ask = self._ask(method, params, identity)
        return ask, *self._compose(ask, UNKNOWN)

    async def _change_subscriptions(self, method: str, uri: str, identity: Identity | None) -> JSON:
        """This era has no request for one subscription: change the set that `subscriptions/listen` names."""
        if method == SUBSCRIBE:
            await self._all_subscriptions().subscribe(uri, identity)
        elif self._subscriptions is not None:
            await self._subscriptions.unsubscribe(uri, identity)
        return {}

    def on_event(self, method: str, params: JSON) -> None:
        if self._cache is not None:
            self._cache.note_change(method, params)  # first: the session reads the list again at once
        super().on_event(method, params)

    def on_request(self, message: Request, identity: Identity | None) -> None:
        # "Servers MUST NOT send requests" in this era (2026-07-28, transports).
        self._channel.complaints.make(
            "backend %r: ignored a request, which this era's servers do not send", self.record.backend_id
        )

    # --- tools that mirror arguments in headers

    async def _with_usable_tools(self, page: JSON) -> JSON:
        """Leave out tools with an invalid `x-mcp-header` annotation: clients MUST NOT call those (2026-07-28,
        transports, "Custom Headers from Tool Parameters").
        """
        tools = page.get("tools")
        if not isinstance(tools, list):
            return page
        bad: list[str] = []
        usable = await take_steps(self._usable_in_steps(tools, bad))
        if not bad:
            return page
        more = f", and {len(bad) - 1} more" if bad[1:] else ""
        logger.warning("backend %r: dropped tool %s%s", self.record.backend_id, self._channel.blot(bad[0]), more)
        return page | {"tools": usable}

    def _usable_in_steps(self, tools: list[object], bad: list[str]) -> Generator[None, None, list[object]]:
        usable: list[object] = []
        seen = itertools.count(1)
        for tool in tools:
            if next(seen) % VALUES_AT_ONCE == 0:
                yield
            if (yield from self._learn_headers(tool, bad, seen)):
                usable.append(tool)
        return usable

    def _learn_headers(self, tool: object, bad: list[str], seen: Iterator[int]) -> Generator[None, None, bool]:
        """Note the headers of one tool. False, and an entry in `bad`: the tool has to be dropped."""
        schema = tool.get("inputSchema") if isinstance(tool, dict) else None
        name = tool.get("name") if isinstance(tool, dict) else None
        if not isinstance(schema, dict) or not isinstance(name, str):
            return True  # the listing reports any other fault of the tool
        try:
            mirrored = yield from param_headers_in_steps(schema, seen)
        except BadParamHeader as exc:
            bad.append(f"{name[:128]!r}: its input schema {exc}")
            return False
        # `_list_tools_again` does not count the tools, so this is the limit there.
        if mirrored.paths and (name in self._param_headers or len(self._param_headers) < self._max_tools):
            self._param_headers[name] = mirrored
        else:
            self._param_headers.pop(name, None)
        return True

    async def _list_tools_again(self, identity: Identity | None) -> None:
        if self._cache is not None:
            self._cache.discard_results(TOOLS_LIST)
        cursor: object = None
        pages = stale = 0
        names: set[str] = set()
        while pages < self._max_pages and stale < MOST_STALE_PAGES and len(names) <= self._max_tools:
            pages += 1
            params = {} if cursor is None else {"cursor": cursor}
            page = await self.exchange(self._ask(TOOLS_LIST, params, identity), METHODS[TOOLS_LIST])
            cursor = page.get("nextCursor")
            if cursor is None:
                return
            known = len(names)
            names.update(_names_of_tools(page))
            stale = 0 if len(names) > known else stale + 1


async def _keep(fetch: Fetch, result: JSON) -> None:
    for _ in fetch.keep_in_steps(result):
        await trio.lowlevel.checkpoint()


def _names_of_tools(page: JSON) -> Iterator[str]:
    tools = page.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        name = tool.get("name") if isinstance(tool, dict) else None
        if isinstance(name, str):
            yield name


def _is_header_mismatch(outcome: RequestOutcome) -> bool:
    reply = outcome.reply if isinstance(outcome, Answer) else None
    return isinstance(reply, ErrorReply) and reply.code == HEADER_MISMATCH


def _is_of_the_other_era(outcome: Answer | Refusal) -> bool:
    """Whether this refusal comes from a server of the handshake era that has replaced the backend, or from a proxy. A
    server of this era refuses with a JSON-RPC error that has one of its codes.
    """
    if isinstance(outcome, Refusal):
        return True
    reply = outcome.reply
    if not isinstance(reply, ErrorReply) or is_modern_error(outcome):
        return False
    return names_session(outcome) or "protocol version" in reply.message[:MOST_WORDS].lower()
