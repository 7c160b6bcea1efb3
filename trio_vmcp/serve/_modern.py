"""The stateless era over streamable HTTP (MCP 2026-07-28): each request says all that the server needs to know.

The checks are in the order of the specification's ladder; the first that fails answers. All requests of a principal run
on one session (`SessionManager.shared`).
"""

from __future__ import annotations

from typing import Any

import attrs

from trio_vmcp._protocol.eras import HEADER_MISMATCH, LEGACY_VERSIONS, MODERN_VERSION, UNSUPPORTED_VERSION
from trio_vmcp._protocol.headers import BadParamHeader, ParamHeaders, decode_header_value, param_headers
from trio_vmcp._protocol.jsonrpc import Message, Notification, Request
from trio_vmcp._protocol.methods import (
    CLIENT_CAPABILITIES,
    COMPLETE,
    DISCOVER,
    INPUT_RESPONSES,
    LISTEN,
    LOG_LEVEL,
    LOG_LEVELS,
    MESSAGE,
    METHODS,
    REQUEST_STATE,
    TOOLS_CALL,
)
from trio_vmcp._protocol.rounds import INPUT_REQUIRED
from trio_vmcp.connector import ClientHandlers, ServerRequest
from trio_vmcp.identity import Identity
from trio_vmcp.manager import SessionManager
from trio_vmcp.models import JSON, Tool
from trio_vmcp.serve._asgi import HttpReply, HttpRequest
from trio_vmcp.serve._errors import INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND, Refusal, refusal_of
from trio_vmcp.serve._exchange import JSON_BODY, Exchanges, HttpExchange, notify, progress_of
from trio_vmcp.serve._legacy import accepts
from trio_vmcp.serve._listening import Listeners
from trio_vmcp.serve._lists import LIST_METHODS
from trio_vmcp.serve._messages import encode_answer, encode_refusal
from trio_vmcp.serve._requests import CALLS, CAPABILITIES, MARK, Call, perform
from trio_vmcp.serve._rounds import RoundSeal, owner_of
from trio_vmcp.serve._version import SERVER_INFO
from trio_vmcp.serve.settings import ServeSettings
from trio_vmcp.session import Session

__all__ = ["PROTOCOL_VERSION", "ModernFront", "meta_of"]

# 2024-11-05 has another transport.
SUPPORTED = [MODERN_VERSION, *LEGACY_VERSIONS[:-1]]

PROTOCOL_VERSION = "io.modelcontextprotocol/protocolVersion"
_SERVER_INFO = "io.modelcontextprotocol/serverInfo"
_OFFERED = frozenset([DISCOVER, LISTEN, COMPLETE, *LIST_METHODS, *CALLS])
_SINGLE = ("mcp-protocol-version", "mcp-method", "mcp-name")


MOST_INDEXED = 64  # sessions, of which the arguments that tools repeat in headers are kept


@attrs.define(eq=False)
class _Mirrored:
    """Which arguments the tools of one list repeat in headers, found when a tool is called."""

    tools: tuple[Tool, ...] = attrs.field(repr=False)
    _by_name: dict[str, Tool] = attrs.field(init=False, repr=False)
    _found: dict[str, ParamHeaders] = attrs.field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._by_name = {tool.name: tool for tool in self.tools}

    def of(self, name: str) -> ParamHeaders | None:
        """None: there is no such tool."""
        if name not in self._found and name in self._by_name:
            try:
                self._found[name] = param_headers(self._by_name[name].input_schema)
            except BadParamHeader:  # a client must not call such a tool; its backend may be of the other era
                self._found[name] = ParamHeaders()
        return self._found.get(name)


def meta_of(params: JSON) -> JSON:
    meta = params.get("_meta")
    return meta if isinstance(meta, dict) else {}


@attrs.define(eq=False)
class ModernFront:
    """Answers the requests of clients of this era."""

    _manager: SessionManager = attrs.field(alias="manager")
    _settings: ServeSettings = attrs.field(alias="settings")
    _exchanges: Exchanges = attrs.field(alias="exchanges")
    _seal: RoundSeal = attrs.field(alias="seal", repr=False)
    listeners: Listeners = attrs.field(factory=Listeners, init=False)
    _handlers: ClientHandlers = attrs.field(init=False, repr=False)
    _mirrored: dict[str, _Mirrored] = attrs.field(factory=dict, init=False, repr=False)  # by the id of the session

    def __attrs_post_init__(self) -> None:
        # A client of this era is never asked by a request, so backends are told of no capability but its own.
        self._handlers = ClientHandlers(log=self._pass_log_message, log_level=None)

    async def post(self, request: HttpRequest, reply: HttpReply, identity: Identity | None, message: Message) -> None:
        """
        Raises:
            Refusal: The message was not taken.
        """
        if not accepts(request, "application/json", "text/event-stream"):
            raise Refusal(INVALID_REQUEST, "Accept must take application/json and text/event-stream", status=406)
        if isinstance(message, Notification):
            _require_served(meta_of(message.params).get(PROTOCOL_VERSION, MODERN_VERSION))
            await reply.respond(202)
            return
        if not isinstance(message, Request):
            raise Refusal(INVALID_REQUEST, "a response belongs to no request of this era", status=400)
        try:
            check_request(request, message)
        except Refusal as refusal:
            await reply.respond(refusal.status, encode_refusal(message.id, refusal), (JSON_BODY,))
            return
        await self._answer(request, reply, identity, message)

    async def shared(self, identity: Identity | None) -> Session:
        """The session that all requests of a principal run on."""
        return await self._manager.shared(identity, handlers=self._handlers)

    async def _answer(
        self, request: HttpRequest, reply: HttpReply, identity: Identity | None, message: Request
    ) -> None:
        exchange = HttpExchange(
            message.id,
            message.method,
            message.params,
            request,
            reply,
            self._manager.start_task,
            True,
            self._settings.keep_alive_interval,
            self._settings.stream_buffer,
            on_gone=_cancel,
            log_level=meta_of(message.params).get(LOG_LEVEL),
        )
        self._exchanges.add(exchange)
        try:
            with exchange.scope:
                status, body = await self._outcome(request, identity, message, exchange)
                await exchange.respond(status, body)
        finally:
            exchange.stop_watching()
            self._exchanges.discard(exchange)

    async def _outcome(
        self, request: HttpRequest, identity: Identity | None, message: Request, exchange: HttpExchange
    ) -> tuple[int, bytes]:
        try:
            result = await self._perform(request, identity, message, exchange)
        except Exception as error:  # noqa: BLE001  # `refusal_of` raises what is none of ours
            refusal = refusal_of(error, is_modern=True)
            exchange.headers = refusal.headers
            return refusal.status, encode_refusal(message.id, refusal)
        return 200, encode_answer(message.id, result)

    async def _perform(
        self, request: HttpRequest, identity: Identity | None, message: Request, exchange: HttpExchange
    ) -> JSON:
        method, params = message.method, message.params
        if method == DISCOVER:
            return _finished(method, discovered())
        session = await self.shared(identity)
        if method == LISTEN:
            return _finished(method, await self.listeners.serve(session, identity, message, exchange))
        if method == TOOLS_CALL:
            self._check_mirrored(request, session, params)
        options: dict[str, Any] = {}
        if method in CALLS:
            options = self._options(identity, session, method, params)
        call = Call(exchange.mark, progress_of(exchange, params), options)
        result = await perform(session, method, params, call)
        if method in LIST_METHODS and identity is None:  # the backends of a principal may be its own
            ttl = session.public_ttl(method)
            result |= {} if ttl is None else {"ttlMs": ttl, "cacheScope": "public"}
        if result.get("resultType") == INPUT_REQUIRED:
            owner = owner_of(session, method, params)
            result = self._seal.close_round(result, owner, identity, method, params)
        return _finished(method, result)

    def _options(self, identity: Identity | None, session: Session, method: str, params: JSON) -> dict[str, Any]:
        """What the session is told of this request beside name and arguments."""
        meta = meta_of(params)
        options: dict[str, Any] = {"answer_rounds": False, "client_capabilities": meta[CLIENT_CAPABILITIES]}
        if meta.get(LOG_LEVEL) is not None:
            options["log_level"] = meta[LOG_LEVEL]
        responses, state = params.get(INPUT_RESPONSES), params.get(REQUEST_STATE)
        if responses is not None:
            if not isinstance(responses, dict) or not all(isinstance(each, dict) for each in responses.values()):
                raise Refusal(INVALID_PARAMS, "'inputResponses' is not an object of objects")
            options["input_responses"] = responses
        if state is not None:
            options["request_state"] = self._seal.open_round(state, session, identity, method, params)
        return options

    async def _pass_log_message(self, request: ServerRequest) -> None:
        """To the request that the message belongs to, if its client has asked for log messages."""
        call = request.call
        exchange = None if call is None else self._exchanges.find((call.meta or {}).get(MARK))
        if exchange is not None and exchange.log_level is not None:
            level, least = request.params.get("level"), LOG_LEVELS.index(exchange.log_level)
            if level not in LOG_LEVELS or LOG_LEVELS.index(str(level)) >= least:
                notify(exchange, MESSAGE, request.params)

    def _check_mirrored(self, request: HttpRequest, session: Session, params: JSON) -> None:
        """
        Raises:
            Refusal: A header `Mcp-Param-*` does not say what the arguments say.
        """
        name, arguments = params.get("name"), params.get("arguments")
        held = self._mirrored.get(session.id)
        if held is None or held.tools is not session.tools:
            if len(self._mirrored) >= MOST_INDEXED:
                self._mirrored.clear()
            held = self._mirrored[session.id] = _Mirrored(session.tools)
        wanted = held.of(name) if isinstance(name, str) else None
        if wanted is not None and wanted.paths:
            check_mirrored(wanted, request, arguments if isinstance(arguments, dict) else {})


def _cancel(exchange: HttpExchange) -> None:
    exchange.scope.cancel(reason="the client is gone")


def discovered() -> JSON:
    """The result of `server/discover`."""
    return {"supportedVersions": SUPPORTED, "capabilities": CAPABILITIES}


def _finished(method: str, result: JSON) -> JSON:
    """The result with what this era demands of a server, behind what the backend said."""
    meta = result.get("_meta")
    finished = {
        **result,
        "resultType": result.get("resultType") or "complete",
        "_meta": {**(meta if isinstance(meta, dict) else {}), _SERVER_INFO: SERVER_INFO},
    }
    if METHODS[method].may_be_kept:
        ttl, scope = result.get("ttlMs"), result.get("cacheScope")
        is_known = isinstance(ttl, int | float) and ttl >= 0 and scope in ("public", "private")
        finished["ttlMs"], finished["cacheScope"] = (ttl, scope) if is_known else (0, "private")
    return finished


def _require_served(version: object) -> None:
    if version != MODERN_VERSION:
        data = {"supported": SUPPORTED, "requested": version}
        raise Refusal(UNSUPPORTED_VERSION, f"the version is none of {', '.join(SUPPORTED)}", data, status=400)


def check_request(request: HttpRequest, message: Request) -> None:
    """The ladder of a request (`protocol`, 2026-07-28, transports and versioning).

    Raises:
        Refusal: The first rule that does not hold.
    """
    headers, params = request.headers, message.params
    for name in _SINGLE:
        if name in request.repeated:
            raise Refusal(HEADER_MISMATCH, f"the header {name} is repeated", status=400)
    meta = params.get("_meta")
    if not isinstance(meta, dict) or not isinstance(meta.get(PROTOCOL_VERSION), str):
        raise Refusal(INVALID_PARAMS, f"'_meta' needs {PROTOCOL_VERSION!r}", status=400)
    if not isinstance(meta.get(CLIENT_CAPABILITIES), dict):
        raise Refusal(INVALID_PARAMS, f"'_meta' needs the object {CLIENT_CAPABILITIES!r}", status=400)
    _require_same("mcp-protocol-version", headers.get("mcp-protocol-version"), meta[PROTOCOL_VERSION])
    _require_same("mcp-method", headers.get("mcp-method"), message.method)
    named_by = METHODS[message.method].named_by if message.method in METHODS else None
    if named_by is not None:
        given = headers.get("mcp-name")
        try:
            _require_same("mcp-name", None if given is None else decode_header_value(given), params.get(named_by))
        except ValueError:
            raise Refusal(HEADER_MISMATCH, "the header mcp-name is no Base64 of UTF-8", status=400) from None
    _require_served(meta[PROTOCOL_VERSION])
    level = meta.get(LOG_LEVEL)
    if level is not None and level not in LOG_LEVELS:
        raise Refusal(INVALID_PARAMS, f"{LOG_LEVEL!r} is none of {', '.join(LOG_LEVELS)}", status=400)
    if message.method not in _OFFERED:
        raise Refusal(METHOD_NOT_FOUND, f"no method {message.method[:128]!r} is offered here", status=404)


def _require_same(name: str, given: str | None, wanted: object) -> None:
    if given is None:
        raise Refusal(HEADER_MISMATCH, f"the header {name} is missing", status=400)
    if given.strip() != wanted:
        raise Refusal(HEADER_MISMATCH, f"the header {name} does not say what the body says", status=400)


def check_mirrored(wanted: ParamHeaders, request: HttpRequest, arguments: JSON) -> None:
    """
    Raises:
        Refusal: An annotated argument and its header differ, or only one of them is there.
    """
    try:
        expected = {name.lower(): value for name, value in wanted.encode(arguments)}
    except ValueError:
        raise Refusal(INVALID_PARAMS, "an argument is no text", status=400) from None
    for name, _ in wanted.paths:
        header = f"mcp-param-{name}".lower()
        value, given = expected.get(header), request.headers.get(header)
        if (value is None) != (given is None) or header in request.repeated:
            raise Refusal(HEADER_MISMATCH, f"the header {name} and its argument are not both there", status=400)
        if value is not None and given is not None and not _are_same(value, given):
            raise Refusal(HEADER_MISMATCH, f"the header {name} does not say what its argument says", status=400)


def _are_same(value: str, given: str) -> bool:
    try:
        expected, received = decode_header_value(value), decode_header_value(given.strip())
    except ValueError:
        return False
    if expected == received:
        return True
    try:
        return float(expected) == float(received) and expected.lstrip("-").isdigit()
    except ValueError:
        return False
