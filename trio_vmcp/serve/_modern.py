"""The stateless era over streamable HTTP (MCP 2026-07-28): headers that repeat the body, and the status of a response.

The checks are in the order of the specification's ladder; the first that fails answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from functools import partial

import attrs
import trio

from trio_vmcp._protocol.eras import HEADER_MISMATCH, MODERN_VERSION
from trio_vmcp._protocol.headers import BadParamHeader, ParamHeaders, decode_header_value, param_headers_in_steps
from trio_vmcp._protocol.jsonrpc import Message, Notification, Request
from trio_vmcp._protocol.methods import (
    LOG_LEVEL,
    METHODS,
    TOOLS_CALL,
)
from trio_vmcp._steps import take_steps
from trio_vmcp.identity import Identity
from trio_vmcp.manager import SessionManager
from trio_vmcp.models import JSON, Tool
from trio_vmcp.serve._accept import accepts
from trio_vmcp.serve._asgi import HttpReply, HttpRequest
from trio_vmcp.serve._errors import INVALID_PARAMS, INVALID_REQUEST, Refusal, refusal_of
from trio_vmcp.serve._exchange import JSON_BODY, Exchanges, HttpExchange
from trio_vmcp.serve._messages import encode_answer, encode_refusal
from trio_vmcp.serve._stateless import PROTOCOL_VERSION, Stateless, check_meta, check_offered, meta_of, require_served
from trio_vmcp.serve.settings import ServeSettings
from trio_vmcp.session import Session

__all__ = ["ModernFront"]

_INTEGER = re.compile(r"-?\d+", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,400}(\.\d{1,400})?([eE][+-]?\d{1,4})?", re.ASCII)
_BLANKS = " \t"  # that may stand around a value: RFC 9110 §5.6.3
_SINGLE = ("mcp-protocol-version", "mcp-method", "mcp-name")
MOST_INDEXED = 64  # sessions, of which the arguments that tools repeat in headers are kept


@attrs.define(eq=False)
class _Mirrored:
    """Which arguments the tools of one list repeat in headers, found when a tool is called.

    Attributes:
        found: By the name of the tool, as far as it is known.
    """

    tools: tuple[Tool, ...] = attrs.field(repr=False)
    _by_name: dict[str, Tool] = attrs.field(init=False, repr=False)
    found: dict[str, ParamHeaders] = attrs.field(factory=dict, init=False, repr=False)
    _turn: trio.Lock = attrs.field(factory=trio.Lock, init=False, repr=False)  # calls of one tool may be many at once

    def __attrs_post_init__(self) -> None:
        self._by_name = {tool.name: tool for tool in self.tools}

    async def find(self, name: str) -> ParamHeaders | None:
        """None: there is no such tool."""
        if name not in self.found and name in self._by_name:
            async with self._turn:
                if name not in self.found:
                    self.found[name] = await _headers_of(self._by_name[name])
        return self.found.get(name)


async def _headers_of(tool: Tool) -> ParamHeaders:
    try:
        return await take_steps(param_headers_in_steps(tool.input_schema))
    except BadParamHeader:  # a client must not call such a tool; its backend may be of the other era
        return ParamHeaders()


@attrs.define(eq=False)
class ModernFront:
    """Answers the requests of clients of this era."""

    _manager: SessionManager = attrs.field(alias="manager")
    _settings: ServeSettings = attrs.field(alias="settings")
    _exchanges: Exchanges = attrs.field(alias="exchanges")
    stateless: Stateless = attrs.field(init=False)
    _mirrored: dict[str, _Mirrored] = attrs.field(factory=dict, init=False, repr=False)  # by the id of the session

    def __attrs_post_init__(self) -> None:
        self.stateless = Stateless(self._manager, self._exchanges.find)

    async def post(self, request: HttpRequest, reply: HttpReply, identity: Identity | None, message: Message) -> None:
        """
        Raises:
            Refusal: The message was not taken.
        """
        require_both_forms(request)
        if isinstance(message, Notification):
            said = request.headers.get("mcp-protocol-version", MODERN_VERSION)
            require_served(meta_of(message.params).get(PROTOCOL_VERSION, said))
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
            scope=request.scope,
        )
        self._exchanges.add(exchange)
        try:
            status, body = await self._outcome(request, identity, message, exchange)
            await exchange.respond(status, body)
        finally:
            exchange.stop_watching()
            self._exchanges.discard(exchange)

    async def _outcome(
        self, request: HttpRequest, identity: Identity | None, message: Request, exchange: HttpExchange
    ) -> tuple[int, bytes]:
        check = partial(self._check_mirrored, request, message.params) if message.method == TOOLS_CALL else None
        try:
            result = await self.stateless.answer(identity, message, exchange, check)
        except Exception as error:  # noqa: BLE001  # `refusal_of` logs what is none of ours
            refusal = refusal_of(error, is_modern=True)
            exchange.headers = refusal.headers
            return refusal.status, encode_refusal(message.id, refusal)
        return 200, encode_answer(message.id, result)

    async def _check_mirrored(self, request: HttpRequest, params: JSON, session: Session) -> None:
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
        wanted = None
        if isinstance(name, str):
            wanted = held.found.get(name) or await held.find(name)
        if wanted is not None and wanted.paths:
            check_mirrored(wanted, request, arguments if isinstance(arguments, dict) else {})


def _cancel(exchange: HttpExchange) -> None:
    exchange.scope.cancel(reason="the client is gone")


def require_both_forms(request: HttpRequest) -> None:
    """A response may be an object or a stream, so a client must take both.

    Raises:
        Refusal: It does not.
    """
    if not accepts(request, "application/json", "text/event-stream"):
        raise Refusal(INVALID_REQUEST, "Accept must take application/json and text/event-stream", status=406)


def check_request(request: HttpRequest, message: Request) -> None:
    """The ladder of a request (`protocol`, 2026-07-28, transports and versioning).

    Raises:
        Refusal: The first rule that does not hold.
    """
    headers, params = request.headers, message.params
    if not request.repeated.isdisjoint(_SINGLE):
        repeated = ", ".join(sorted(request.repeated.intersection(_SINGLE)))
        raise Refusal(HEADER_MISMATCH, f"the header {repeated} is repeated", status=400)
    meta = check_meta(message)
    if headers.get("mcp-protocol-version") != meta[PROTOCOL_VERSION]:  # else there are no blanks to look for
        _require_same("mcp-protocol-version", _stripped(headers, "mcp-protocol-version"), meta[PROTOCOL_VERSION])
    if headers.get("mcp-method") != message.method:
        _require_same("mcp-method", _stripped(headers, "mcp-method"), message.method)
    named_by = METHODS[message.method].named_by if message.method in METHODS else None
    if named_by is not None:
        given = _stripped(headers, "mcp-name")
        try:
            _require_same("mcp-name", None if given is None else decode_header_value(given), params.get(named_by))
        except ValueError:
            raise Refusal(HEADER_MISMATCH, "the header mcp-name is no Base64 of UTF-8", status=400) from None
    check_offered(message, meta)


def _stripped(headers: Mapping[str, str], name: str) -> str | None:
    """A header as sent, without the blanks around it; those of a name or URI are encoded, and belong to it."""
    given = headers.get(name)
    return None if given is None else given.strip(_BLANKS)


def _require_same(name: str, given: str | None, wanted: object) -> None:
    if given is None:
        raise Refusal(HEADER_MISMATCH, f"the header {name} is missing", status=400)
    if given != wanted:
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
        expected, received = decode_header_value(value), decode_header_value(given.strip(_BLANKS))
    except ValueError:
        return False
    if expected == received:
        return True
    # Integers are compared as numbers, exactly: two that differ may be one float.
    return (
        _NUMBER.fullmatch(received) is not None
        and _INTEGER.fullmatch(expected) is not None
        and Decimal(expected) == Decimal(received)
    )
