"""The modern era (2026-07-28): no handshake, no session; each request says who asks, and closing its response cancels
it.
"""

from __future__ import annotations

import logging

import attrs
import trio

from trio_vmcp._client.cache import CACHEABLE, DISCOVER, BackendCache
from trio_vmcp._client.carriers import HttpCarrier
from trio_vmcp._client.channels.streamable import (
    Answer,
    HttpRefusal,
    Interrupted,
    OnOther,
    ignore_other,
    names_session,
    refusal,
)
from trio_vmcp._client.client import CLIENT_INFO, StreamableClient, declared_capabilities
from trio_vmcp._client.eras import HEADER_MISMATCH, MODERN_VERSION, is_modern_error
from trio_vmcp._client.http.link import Headers
from trio_vmcp._client.listening import LIST_CHANGED, SUBSCRIBE, UNSUBSCRIBE, Listening, listed_as_changing
from trio_vmcp._client.rounds import finish_rounds, is_complete
from trio_vmcp._client.server_requests import ServerRequests
from trio_vmcp._client.subscriptions import Subscriptions
from trio_vmcp._protocol.headers import BadParamHeader, ParamHeaders, encode_header_value, param_headers
from trio_vmcp._protocol.jsonrpc import ErrorReply, Request, Result, encode_request
from trio_vmcp._request_note import begin_request, note_session_lost, note_written, preparing
from trio_vmcp.connector import OnProgress
from trio_vmcp.errors import BackendProtocolError, BackendRejected, BackendTimeout, BackendUnavailable
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON

__all__ = ["ModernClient", "reserved_meta"]

logger = logging.getLogger("trio_vmcp.client")

# Of log messages, where somebody takes them; without it "the server MUST NOT send" any.
LOG_LEVEL = "info"
_NO_LONGER_MODERN = (400, 404)  # how servers of the other era refuse a request of this one
# Which member of `params` a gateway on the way may route by (2026-07-28, transports: standard headers).
_NAMED_BY = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}


def reserved_meta(requests: ServerRequests) -> JSON:
    """What every request says of its sender, in `_meta`."""
    reserved: JSON = {
        "io.modelcontextprotocol/protocolVersion": MODERN_VERSION,
        "io.modelcontextprotocol/clientCapabilities": requests.capabilities,
        "io.modelcontextprotocol/clientInfo": CLIENT_INFO,
    }
    return reserved | {"io.modelcontextprotocol/logLevel": LOG_LEVEL} if requests.handling.has_log else reserved


def _is_complete(result: JSON) -> bool:
    kind: object = result.get("resultType", "complete")  # "absent means complete"
    return kind == "complete"


@attrs.define(eq=False, kw_only=True)
class ModernClient(StreamableClient):
    """One backend of the modern era."""

    _max_pages: int = attrs.field(alias="max_pages")
    _max_tools: int = attrs.field(alias="max_tools")
    _reserved: JSON = attrs.field(init=False, repr=False)  # what every request says of its sender, in `_meta`
    _cache: BackendCache = attrs.field(alias="cache", repr=False)
    _identity: Identity | None = attrs.field(alias="identity", repr=False)  # whose session it is: for what it hears
    _nursery: trio.Nursery = attrs.field(alias="nursery", repr=False)
    _listens: bool = attrs.field(alias="listens")  # Backend.listen
    _retries: tuple[float, float] = attrs.field(alias="retries")  # s, the first and the longest between two streams
    # Of the tools in the last listing that mirror arguments in headers.
    _param_headers: dict[str, ParamHeaders] = attrs.field(factory=dict, init=False, repr=False)
    _subscriptions: Subscriptions | None = attrs.field(default=None, init=False, repr=False)
    _closed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._reserved = reserved_meta(self._requests)

    async def discover(self, identity: Identity | None) -> Answer:
        """`server/discover`, whatever the answer; `adopt` takes a good one."""
        begin_request(DISCOVER)
        message_id = next(self._ids)
        known = self._cache.find(DISCOVER, {}, identity)
        if known is not None:
            await trio.lowlevel.checkpoint()
            return Answer(Result(message_id, known), 200)
        fetch = self._cache.fetch(DISCOVER, {}, identity)
        try:
            answer = await self._send(message_id, DISCOVER, {}, identity, ignore_other)
            if fetch is not None and isinstance(answer.outcome, Result) and _is_complete(answer.outcome.result):
                fetch.keep(answer.outcome.result)
            return answer
        finally:
            if fetch is not None:
                fetch.end()

    def adopt(self, result: JSON) -> None:
        """Take over what the server declared, and listen to what it says it will tell of.

        Raises:
            BackendProtocolError, MessageTooLarge: Its capabilities cannot be kept.
        """
        capabilities = declared_capabilities(self._http.backend_id, DISCOVER, result)
        self.record = attrs.evolve(self.record, server_capabilities=capabilities)
        self.listen_again()

    @property
    def listening(self) -> Listening:
        return "none" if self._subscriptions is None else self._subscriptions.listening

    def listen_again(self) -> None:
        kinds = listed_as_changing(self.server_capabilities) if self._listens else ()
        if self._subscriptions is not None:
            if self.listening == "given up":
                self._subscriptions.open(kinds)
        elif kinds:
            self._all_subscriptions().open(kinds)

    async def request(
        self,
        method: str,
        params: JSON,
        *,
        identity: Identity | None,
        timeout: float,
        on_progress: OnProgress | None,
    ) -> JSON:
        try:
            return await super().request(method, params, identity=identity, timeout=timeout, on_progress=on_progress)
        except BackendTimeout:
            self._cache.drop(DISCOVER)  # whoever connects again has to find out whether it is there
            raise
        except (BackendUnavailable, BackendProtocolError):
            self._cache.drop_all()  # and what else it once said: it may come back as another
            raise

    async def aclose(self, *, terminate: bool) -> None:
        self._closed = True
        if self._subscriptions is not None:
            self._subscriptions.close()
        self._requests.close()
        await self._http.link.aclose()

    async def _exchange(
        self, message_id: int, method: str, params: JSON, identity: Identity | None, on_other: OnOther
    ) -> JSON:
        if method in (SUBSCRIBE, UNSUBSCRIBE):
            return await self._subscribed(method, params["uri"])
        if method not in CACHEABLE:
            result = await self._ask(message_id, method, params, identity, on_other)
            if is_complete(self._http.backend_id, method, result):
                return result
            return await self._finish(result, method, params, identity, on_other)
        self._unwatched.note(method, self.listening)
        kept = self._cache.find(method, params, identity)
        if kept is None:
            result = await self._fetched(message_id, method, params, identity, on_other)
        else:
            result = kept
            await trio.lowlevel.checkpoint()
        return self._with_usable_tools(result) if method == "tools/list" else result

    async def _fetched(
        self, message_id: int, method: str, params: JSON, identity: Identity | None, on_other: OnOther
    ) -> JSON:
        """A result from the backend itself, kept for others if it says so and came of this request alone."""
        fetch = self._cache.fetch(method, params, identity)
        try:
            result = await self._ask(message_id, method, params, identity, on_other)
            if is_complete(self._http.backend_id, method, result):
                if fetch is not None:
                    fetch.keep(result)
                return result
        except BackendRejected:
            if "cursor" in params:  # it may be a dead one, and then the pages before it are of another list
                self._cache.drop(method)
            raise
        finally:
            if fetch is not None:
                fetch.end()
        return await self._finish(result, method, params, identity, on_other)

    async def _finish(
        self, first: JSON, method: str, params: JSON, identity: Identity | None, on_other: OnOther
    ) -> JSON:
        """The result of a request whose first answer asks for input."""

        async def ask_again(more: JSON) -> JSON:
            return await self._ask(next(self._ids), method, more, identity, on_other)

        return await finish_rounds(first, method, params, ask_again, self._requests.handling, identity)

    async def _ask(
        self, message_id: int, method: str, params: JSON, identity: Identity | None, on_other: OnOther
    ) -> JSON:
        """One request, and its result as it came."""
        answer = await self._send(message_id, method, params, identity, on_other)
        if method == "tools/call" and getattr(answer.outcome, "code", None) == HEADER_MISMATCH:
            # Our copy of the schema is old. "Refetch and retry once": the error proves that the call did not run.
            with preparing(method):
                await self._list_tools_again(identity)
            answer = await self._send(next(self._ids), method, params, identity, on_other)
        outcome = answer.outcome
        if isinstance(outcome, Interrupted):
            raise BackendUnavailable(
                self._http.backend_id, f"closed the stream before it answered {method!r}", may_have_executed=True
            )
        if not isinstance(outcome, Result):
            note_written(False)
            if answer.status >= 400:  # it may have become another, and whoever connects again has to look
                self._cache.drop(DISCOVER)
            refused = refusal(self._http.backend_id, method, outcome)
            if answer.status in _NO_LONGER_MODERN and _is_of_the_other_era(outcome):
                note_session_lost()
                refused.may_have_executed = False  # whatever its code: it was not understood
            raise refused
        return outcome.result

    async def _send(
        self, message_id: int, method: str, params: JSON, identity: Identity | None, on_other: OnOther
    ) -> Answer:
        data, headers = self._composed(message_id, method, params)
        return await self._http.ask(message_id, data, headers, identity=identity, on_other=on_other)

    def _composed(self, message_id: int, method: str, params: JSON) -> tuple[bytes, Headers]:
        """A request as it goes out: its body, and its headers."""
        data = encode_request(message_id, method, params | {"_meta": params.get("_meta", {}) | self._reserved})
        headers = [
            (b"MCP-Protocol-Version", MODERN_VERSION.encode()),
            (b"Mcp-Method", method.encode()),
            *self._mirrored(method, params),  # after the encoding, which refuses what is no text
        ]
        return data, headers

    def _compose(self, method: str, params: JSON) -> tuple[int, bytes, Headers]:
        message_id = next(self._ids)
        return message_id, *self._composed(message_id, method, params)

    def _all_subscriptions(self) -> Subscriptions:
        """Made when they are needed: few backends have any."""
        if self._subscriptions is None:
            self._subscriptions = Subscriptions(
                carrier=HttpCarrier(self._http, self._compose, self._identity),
                events=self._heard,
                watched=self._watched,
                nursery=self._nursery,
                retries=self._retries,
            )
            if self._closed:
                self._subscriptions.close()
        return self._subscriptions

    async def _subscribed(self, method: str, uri: str) -> JSON:
        """What were requests of their own in the handshake era changes the set that `subscriptions/listen` names."""
        if method == SUBSCRIBE:
            await self._all_subscriptions().subscribe(uri)
        elif self._subscriptions is not None:
            await self._subscriptions.unsubscribe(uri)
        return {}

    def _heard(self, method: str, params: JSON) -> None:
        self._cache.note_change(method, params)  # first: whoever hears of it asks anew
        super()._heard(method, params)

    def _doubt(self, kinds: tuple[str, ...]) -> None:
        for kind in kinds:  # however fresh it is called, and whoever asked for it: nobody may have listened since
            self._cache.note_change(LIST_CHANGED[kind], {})
        super()._doubt(kinds)

    def _mirrored(self, method: str, params: JSON) -> Headers:
        headers: Headers = []
        if method in _NAMED_BY:
            name = params[_NAMED_BY[method]]
            headers.append((b"Mcp-Name", encode_header_value(name).encode()))
            if method == "tools/call" and name in self._param_headers:
                encoded = self._param_headers[name].encode(params.get("arguments", {}))
                headers += [(header.encode(), value.encode()) for header, value in encoded]
        return headers

    def _with_usable_tools(self, page: JSON) -> JSON:
        """Without the tools whose `x-mcp-header` annotation is invalid: clients MUST NOT call those; the others
        stay.
        """
        tools = page.get("tools")
        if not isinstance(tools, list):
            return page
        bad: list[str] = []
        usable = [tool for tool in tools if self._learn(tool, bad)]
        if bad:
            more = f", and {len(bad) - 1} more" if bad[1:] else ""
            logger.warning("backend %r: dropped tool %s%s", self._http.backend_id, bad[0], more)
        return page | {"tools": usable}

    def _learn(self, tool: object, bad: list[str]) -> bool:
        """Note the headers of one tool. False, and an entry in `bad`: it has to be dropped."""
        schema = tool.get("inputSchema") if isinstance(tool, dict) else None
        name = tool.get("name") if isinstance(tool, dict) else None
        if not isinstance(schema, dict) or not isinstance(name, str):
            return True  # whatever else is wrong with it is for the listing to say
        try:
            mirrored = param_headers(schema)
        except BadParamHeader as exc:
            bad.append(f"{name[:128]!r}: its input schema {exc}")
            return False
        # Limited here, too: unlike a listing, the lists that are fetched again are counted by nobody.
        if mirrored.paths and (name in self._param_headers or len(self._param_headers) < self._max_tools):
            self._param_headers[name] = mirrored
        else:
            self._param_headers.pop(name, None)
        return True

    async def _list_tools_again(self, identity: Identity | None) -> None:
        self._cache.drop("tools/list")
        cursor: object = None
        pages = 0
        while pages < self._max_pages:
            pages += 1
            params = {} if cursor is None else {"cursor": cursor}
            page = await self._exchange(next(self._ids), "tools/list", params, identity, ignore_other)
            cursor = page.get("nextCursor")
            if cursor is None:
                return

    def _give_up(self, message_id: int, identity: Identity | None, reason: str) -> None:
        """Nothing to send: the response stream was closed, and "closing the stream is the cancellation"."""

    def _on_request(self, message: Request, identity: Identity | None) -> None:
        # "Servers MUST NOT send requests" on a response stream of this era.
        self._http.complaints.make("backend %r: ignored a request on a response stream", self._http.backend_id)


def _is_of_the_other_era(outcome: ErrorReply | HttpRefusal) -> bool:
    """Whether this refusal comes from a server that was exchanged for one of the handshake era, or from a proxy. A
    server of this era refuses in JSON-RPC, and in words of their own.
    """
    if isinstance(outcome, HttpRefusal):
        return True
    return not is_modern_error(outcome) and (names_session(outcome) or "protocol version" in outcome.message.lower())
