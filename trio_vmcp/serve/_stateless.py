"""The stateless era (MCP 2026-07-28): what each request says of itself, and its result, whatever carries it.

All requests of a principal run on one session (`SessionManager.shared`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs

from trio_vmcp._protocol.eras import LEGACY_VERSIONS, MODERN_VERSION, UNSUPPORTED_VERSION
from trio_vmcp._protocol.jsonrpc import Request
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
    is_severe,
)
from trio_vmcp._protocol.rounds import INPUT_REQUIRED
from trio_vmcp.connector import ClientHandlers, ServerRequest
from trio_vmcp.identity import Identity
from trio_vmcp.manager import SessionManager
from trio_vmcp.models import JSON
from trio_vmcp.serve._errors import INVALID_PARAMS, METHOD_NOT_FOUND, Refusal, opened
from trio_vmcp.serve._exchange import Exchange, notify, progress_of
from trio_vmcp.serve._listening import Listeners
from trio_vmcp.serve._lists import LIST_METHODS
from trio_vmcp.serve._requests import CALLS, CAPABILITIES, MARK, Call, perform
from trio_vmcp.serve._rounds import RoundSeal, owner_of
from trio_vmcp.serve._version import SERVER_INFO
from trio_vmcp.serve.sealing import Sealer
from trio_vmcp.session import Session

__all__ = ["PROTOCOL_VERSION", "Stateless", "check_meta", "check_offered", "meta_of", "require_served"]

# 2024-11-05 has another transport.
SUPPORTED = [MODERN_VERSION, *LEGACY_VERSIONS[:-1]]

PROTOCOL_VERSION = "io.modelcontextprotocol/protocolVersion"
_SERVER_INFO = "io.modelcontextprotocol/serverInfo"
_OFFERED = frozenset([DISCOVER, LISTEN, COMPLETE, *LIST_METHODS, *CALLS])


def meta_of(params: JSON) -> JSON:
    meta = params.get("_meta")
    return meta if isinstance(meta, dict) else {}


@attrs.define(eq=False)
class Stateless:
    """Answers the requests of clients of this era."""

    _manager: SessionManager = attrs.field(alias="manager")
    _find: Callable[[object], Exchange | None] = attrs.field(alias="find", repr=False)  # a request by its mark
    _seal: RoundSeal = attrs.field(init=False, repr=False)
    listeners: Listeners = attrs.field(factory=Listeners, init=False)
    _handlers: ClientHandlers = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._seal = RoundSeal(Sealer(self._manager.derive_keys("requestState")))
        # A client of this era is never asked by a request, so backends are told of no capability but its own.
        self._handlers = ClientHandlers(log=self._pass_log_message, log_level=None)

    def shared(self, identity: Identity | None) -> Awaitable[Session]:
        """The session that all requests of a principal run on."""
        return opened(self._manager.shared(identity, handlers=self._handlers))

    async def answer(
        self,
        identity: Identity | None,
        message: Request,
        exchange: Exchange,
        check: Callable[[Session], Awaitable[object]] | None = None,
    ) -> JSON:
        """The result of a request that `check_meta` and `check_offered` have passed.

        Args:
            check: Is called before the request is made, and may refuse.

        Raises:
            Refusal: It is none that can be made.
            VmcpError, ValueError, TypeError: As the methods of `Session`.
        """
        method, params = message.method, message.params
        if method == DISCOVER:
            return _finished(method, discovered())
        session = await self.shared(identity)
        if method == LISTEN:
            return _finished(method, await self.listeners.serve(session, identity, message, exchange))
        if check is not None:
            await check(session)
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
        exchange = None if call is None else self._find((call.meta or {}).get(MARK))
        if exchange is None or exchange.log_level is None:
            return
        if is_severe(request.params.get("level"), exchange.log_level):
            notify(exchange, MESSAGE, request.params)


def check_meta(message: Request) -> JSON:
    """What a request says of itself, in `_meta`.

    Raises:
        Refusal: It does not say all that it must.
    """
    meta = message.params.get("_meta")
    if not isinstance(meta, dict) or not isinstance(meta.get(PROTOCOL_VERSION), str):
        raise Refusal(INVALID_PARAMS, f"'_meta' needs {PROTOCOL_VERSION!r}", status=400)
    if not isinstance(meta.get(CLIENT_CAPABILITIES), dict):
        raise Refusal(INVALID_PARAMS, f"'_meta' needs the object {CLIENT_CAPABILITIES!r}", status=400)
    return meta


def check_offered(message: Request, meta: JSON) -> None:
    """
    Raises:
        Refusal: The version or the method is none that is served here.
    """
    require_served(meta[PROTOCOL_VERSION])
    level = meta.get(LOG_LEVEL)
    if level is not None and level not in LOG_LEVELS:
        raise Refusal(INVALID_PARAMS, f"{LOG_LEVEL!r} is none of {', '.join(LOG_LEVELS)}", status=400)
    if message.method not in _OFFERED:
        raise Refusal(METHOD_NOT_FOUND, f"no method {message.method[:128]!r} is offered here", status=404)


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


def require_served(version: object) -> None:
    if version != MODERN_VERSION:
        data = {"supported": SUPPORTED, "requested": version}
        raise Refusal(UNSUPPORTED_VERSION, f"the version is none of {', '.join(SUPPORTED)}", data, status=400)
