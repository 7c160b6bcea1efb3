"""The front as an ASGI application: its edges, the callers of requests, the era of each, and what each path is for."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import attrs
import trio

from trio_vmcp._nursery import describe_crash
from trio_vmcp._protocol.eras import is_modern_version
from trio_vmcp._protocol.jsonrpc import Message, Notification, Request
from trio_vmcp._protocol.methods import INITIALIZE
from trio_vmcp.errors import SessionClosed, VmcpError
from trio_vmcp.identity import Identity
from trio_vmcp.manager import SessionManager
from trio_vmcp.serve._asgi import (
    BodyTooLarge,
    ClientGone,
    HttpReply,
    HttpRequest,
    Receive,
    Send,
)
from trio_vmcp.serve._cors import cors_headers, preflight_headers
from trio_vmcp.serve._edges import host_problem, origin_problem
from trio_vmcp.serve._errors import INVALID_REQUEST, Refusal, crashed, refusal_of
from trio_vmcp.serve._exchange import BODY_TIMEOUT, JSON_BODY, Exchanges
from trio_vmcp.serve._legacy import LegacyFront
from trio_vmcp.serve._messages import COSTLY, begins_batch, encode_refusal, read_message, split_batch
from trio_vmcp.serve._modern import ModernFront, require_both_forms
from trio_vmcp.serve._operator import PROBES, FrontState, OperatorPaths, for_reading
from trio_vmcp.serve._resource import ProtectedResource, protected_resource
from trio_vmcp.serve._stateless import PROTOCOL_VERSION, meta_of
from trio_vmcp.serve.authenticator import Authenticator, AuthenticatorUnavailable, Unauthenticated
from trio_vmcp.serve.settings import ServeSettings
from trio_vmcp.session import Session

__all__ = ["Front", "asgi_app"]

_logger = logging.getLogger("trio_vmcp.serve")
AUTHENTICATOR_DELAY = 5.0  # s, after which a request is worth sending again for which the authenticator has crashed
MOST_DELAY = 3600.0  # s; an authenticator of the user's may say anything
UNAVAILABLE = -32000  # from the range that JSON-RPC 2.0 §5.1 leaves to implementations
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]+")  # of which none may stand in a header: RFC 9110 §5.5
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)  # what is none is no version of either era: 400, also for GET
_Handler: TypeAlias = Callable[[HttpRequest, HttpReply, Identity | None], Awaitable[None]]


def asgi_app(
    manager: SessionManager,
    *,
    settings: ServeSettings | None = None,
    authenticator: Authenticator | None = None,
) -> Front:
    """One MCP endpoint over the sessions of a manager, as an ASGI 3 application.

    For operators it has more paths, for GET and HEAD:

    - `/healthz`: 200 while the process answers.
    - `/readyz`: 200 if requests should come here; 503 while the server starts or drains, or a shared storage is away,
      which is asked at most once a second. Backends that are away do not count.
    - `/status`: the sessions and the states of their backends; as JSON (`trio_vmcp.serve._status`), or as a page for
      browsers (`Accept: text/html`), whose files are `/status.css` and `/status.js`.
    - `/metrics`: of `PrometheusObserver` (extra `prometheus`), and counts of the manager and the front.

    All but the first two need the authenticator, where there is one, and an allowed Host. They show the sessions of all
    principals, without a session id, token, header or url.

    With an authenticator that has `resource_metadata`, such as `JwtAuthenticator`, this is served at
    `/.well-known/oauth-protected-resource`, alone and followed by the path of the endpoint, without credentials.

    It needs no lifespan events: its tasks live in the manager's nursery. Run it by a server on Trio, alone or mounted
    under another application. Clients look for `resource_metadata` at the root of the host, with the path of the
    resource behind the well-known path (RFC 9728 §3.1), which an application below `/tools` does not see. Mount the
    same application there, too; with Starlette:

    ```python
    tools = asgi_app(manager, settings=settings, authenticator=authenticator)  # audience="https://example.org/tools/mcp"
    metadata = Mount("/.well-known/oauth-protected-resource", app=tools)
    application = Starlette(routes=[metadata, Mount("/tools", app=tools)])
    ```

    Args:
        manager: Of `open_session_manager`; it must outlive the application.
        settings: None: the defaults of `ServeSettings`.
        authenticator: None: every client is anonymous.

    Raises:
        ValueError: The `resource_metadata` of the authenticator has no url for `resource`.
    """
    return Front(manager, settings or ServeSettings(), authenticator)


@attrs.define(eq=False)
class Front:
    """The application. Built by `asgi_app` alone.

    Attributes:
        is_starting: A balancer should wait: the server is not as it will be. Requests are taken all the same.
        is_draining: The server shuts down, and takes no more requests.
    """

    _manager: SessionManager = attrs.field(alias="manager")
    _settings: ServeSettings = attrs.field(alias="settings")
    _authenticator: Authenticator | None = attrs.field(alias="authenticator", repr=False)
    is_starting: bool = attrs.field(default=False, init=False)
    is_draining: bool = attrs.field(default=False, init=False)
    _exchanges: Exchanges = attrs.field(init=False, repr=False)
    _legacy: LegacyFront = attrs.field(init=False, repr=False)
    _modern: ModernFront = attrs.field(init=False, repr=False)
    _paths: dict[str, _Handler] = attrs.field(init=False, repr=False)
    _resource: ProtectedResource | None = attrs.field(init=False, repr=False)
    _refused: int = attrs.field(default=0, init=False)
    # Of principals whose bodies are being read, or wait for that.
    _turns: WeakValueDictionary[Identity | None, trio.Lock] = attrs.field(
        factory=WeakValueDictionary, init=False, repr=False
    )

    def __attrs_post_init__(self) -> None:
        self._exchanges = Exchanges(self._manager.start_task)
        self._legacy = LegacyFront(self._manager, self._settings, self._exchanges)
        self._modern = ModernFront(self._manager, self._settings, self._exchanges)
        path = self._settings.path.rstrip("/")
        operator = OperatorPaths(self._manager, self._state).handlers()
        self._paths = {**operator, path: self._serve_mcp, f"{path}/": self._serve_mcp}
        self._resource = protected_resource(getattr(self._authenticator, "resource_metadata", None), path)
        if self._resource is not None:
            self._paths |= dict.fromkeys(self._resource.paths, for_reading(self._tell_resource))

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _answer_other(scope["type"], receive, send)
            return
        request, reply = HttpRequest.of(scope, receive), HttpReply(send, is_to_head=scope["method"] == "HEAD")
        if self._resource is not None and scope.get("root_path"):
            request.path = self._resource.path_on_host(scope["root_path"], request.path)
        try:
            with request.scope:
                await self._route(request, reply)
            if request.scope.cancelled_caught and request.is_late:
                raise Refusal(INVALID_REQUEST, f"the body took over {BODY_TIMEOUT:g} s", status=408)
        except ClientGone:
            pass
        except Refusal as refusal:
            await self._refuse(reply, refusal)
        except VmcpError as error:
            await self._refuse(reply, refusal_of(error, is_modern=False))
        except Exception as error:
            if reply.has_started:
                raise  # the server ends the connection, so that the client does not wait for the rest
            await self._refuse(reply, crashed(error))

    @property
    def is_ready(self) -> bool:
        """Whether a balancer should send requests."""
        return self._state().unready is None

    async def open_anonymous(self) -> Session:
        """The session that the stateless requests of anonymous clients share; made when there is none.

        Raises:
            VmcpError: As `SessionManager.shared`.
        """
        return await self._modern.stateless.shared(None)

    async def drain(self) -> None:
        """Take no further requests, end the streams that would stay open, and return when no request is under way. The
        caller bounds the time.
        """
        self.is_draining = True
        self._legacy.close()
        self._modern.stateless.listeners.close()
        await self._exchanges.under_way.wait_none()

    async def _route(self, request: HttpRequest, reply: HttpReply) -> None:
        handler = self._paths.get(request.path)
        if handler is None:
            raise Refusal(INVALID_REQUEST, "there is nothing at this path", status=404)
        identity = None
        if request.path not in PROBES:
            self._check_edges(request)
            origin = request.headers.get("origin")
            if origin is not None:
                reply.more_headers = cors_headers(origin)
                preflight = preflight_headers(request)
                if preflight is not None:
                    await reply.respond(204, headers=preflight)
                    return
            if self._authenticator is not None and not self._is_resource(request.path):
                identity = await self._authenticate(self._authenticator, request)
        await handler(request, reply, identity)

    def _state(self) -> FrontState:
        unready = "the server is starting" if self.is_starting else None
        unready = "the server is shutting down" if self.is_draining else unready
        return FrontState(unready=unready, in_flight=len(self._exchanges), refused=self._refused)

    async def _refuse(self, reply: HttpReply, refusal: Refusal, message: Message | None = None) -> None:
        self._refused += 1
        request_id = message.id if isinstance(message, Request) else None
        status = 400 if request_id is None and refusal.status == 200 else refusal.status
        await reply.respond(status, encode_refusal(request_id, refusal), (JSON_BODY, *refusal.headers))

    def _check_edges(self, request: HttpRequest) -> None:
        host = None if "host" in request.repeated else request.headers.get("host")
        problem = host_problem(host, self._settings.allowed_hosts)
        if problem is None and host is not None:
            origin = request.headers.get("origin")
            if origin is not None:
                problem = origin_problem(origin, host, self._settings.allowed_origins)
        if problem is not None:
            raise Refusal(INVALID_REQUEST, problem, status=403)

    def _is_resource(self, path: str) -> bool:
        """A client reads there how to get credentials."""
        return self._resource is not None and path in self._resource.paths

    async def _authenticate(self, authenticator: Authenticator, request: HttpRequest) -> Identity:
        try:
            identity = await authenticator.authenticate(request.headers)
        except Unauthenticated as error:
            text = _CONTROLS.sub(" ", error.challenge)
            text = text if self._resource is None else self._resource.challenge(text)
            challenge = ((b"www-authenticate", text.encode("latin-1", "replace")),)
            raise Refusal(UNAVAILABLE, error.detail, status=401, headers=challenge) from None
        except AuthenticatorUnavailable as error:
            raise _unverifiable(error.retry_after) from None
        except Exception as crash:  # noqa: BLE001  # an authenticator of the user's may raise anything
            # The text may quote credentials. That a service which it asks is away is the likeliest reason.
            _logger.error("the authenticator failed: %s", describe_crash(crash))
            raise _unverifiable(AUTHENTICATOR_DELAY) from None
        if not isinstance(identity, Identity):  # None would be a caller like any other that is not known
            _logger.error("the authenticator failed: it gave %s, and no Identity", type(identity).__name__)
            raise _unverifiable(AUTHENTICATOR_DELAY)
        return identity

    async def _tell_resource(self, request: HttpRequest, reply: HttpReply, identity: Identity | None) -> None:
        assert self._resource is not None  # else there are no such paths
        await reply.respond(200, self._resource.document, (JSON_BODY,))

    def _serve_mcp(self, request: HttpRequest, reply: HttpReply, identity: Identity | None) -> Awaitable[None]:
        if request.verb == "POST":
            return self._post(request, reply, identity)
        version = request.headers.get("mcp-protocol-version", "")
        is_modern = is_modern_version(version) and _DATE.fullmatch(version) is not None
        match request.verb:
            case "GET" | "DELETE" if is_modern:
                raise _wrong_verb("POST")
            case "GET":
                return self._legacy.get(request, reply, identity)
            case "DELETE":
                return self._legacy.delete(request, reply, identity)
            case _:
                raise _wrong_verb("POST" if is_modern else "GET, POST, DELETE")

    def _require_open(self) -> None:
        if self.is_draining:
            raise _shuts_down()

    async def _read(self, request: HttpRequest, identity: Identity | None, body: bytes) -> Message | list[bytes]:
        """The message in a body, or those of a batch. Of each principal one that takes long to read is read at a time:
        with many connections it would have as many shares of the processor.

        Raises:
            Refusal: There is none.
        """
        if len(body) < COSTLY:
            return await _message_in(request, body)
        turn = self._turns.setdefault(identity, trio.Lock())
        async with turn:
            return await _message_in(request, body)

    async def _post(self, request: HttpRequest, reply: HttpReply, identity: Identity | None) -> None:
        if not _is_json(request.headers.get("content-type", "")):
            raise Refusal(INVALID_REQUEST, "the Content-Type is not application/json", status=415)
        try:
            body = await self._exchanges.read_body(request, self._settings.max_body_bytes)
        except BodyTooLarge:
            limit = self._settings.max_body_bytes
            raise Refusal(INVALID_REQUEST, f"the body is over {limit} bytes (max_body_bytes)", status=413) from None
        except SessionClosed:  # the manager has ended, and so has what bounds the time of a body
            raise _shuts_down() from None
        message = await self._read(request, identity, body)
        if isinstance(message, list):
            self._require_open()
            with self._exchanges.under_way:
                await self._legacy.post_batch(request, reply, identity, message)
            return
        is_modern = is_of_modern_era(message, request)
        era = self._modern if is_modern else self._legacy
        try:
            if isinstance(message, Request):  # what runs may still need other messages: answers, and cancels
                self._require_open()
                with self._exchanges.under_way:
                    await era.post(request, reply, identity, message)
            else:
                await era.post(request, reply, identity, message)
        except (Refusal, VmcpError) as error:
            await self._refuse(reply, refusal_of(error, is_modern=is_modern), message)
        except ClientGone:
            raise
        except Exception as error:
            if reply.has_started:
                raise
            await self._refuse(reply, crashed(error), message)


@functools.lru_cache(maxsize=64)  # clients send the same few texts with every request
def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "application/json"


async def _message_in(request: HttpRequest, body: bytes) -> Message | list[bytes]:
    """See `Front._read`."""
    try:
        if begins_batch(body):
            return await split_batch(body)
        return await read_message(body)
    except Refusal:
        if is_modern_version(request.headers.get("mcp-protocol-version")):
            require_both_forms(request)  # the ladder of the stateless era has this rule before the body
        raise


def is_of_modern_era(message: Message, request: HttpRequest) -> bool:
    """The era of one request: its body decides before its headers, since proxies and clients keep old headers."""
    if isinstance(message, Request | Notification):
        version = meta_of(message.params).get(PROTOCOL_VERSION)
        if version is not None and (not isinstance(version, str) or is_modern_version(version)):
            return True
        if message.method == INITIALIZE:
            return False
    return is_modern_version(request.headers.get("mcp-protocol-version"))


def _shuts_down() -> Refusal:
    return Refusal(UNAVAILABLE, "the server shuts down", status=503, headers=((b"retry-after", b"1"),))


def _unverifiable(seconds: float) -> Refusal:
    delay = ((b"retry-after", b"%d" % (round(seconds) if 1 <= seconds <= MOST_DELAY else AUTHENTICATOR_DELAY)),)
    return Refusal(UNAVAILABLE, "no credentials can be verified now", status=503, headers=delay)


def _wrong_verb(allowed: str) -> Refusal:
    headers = ((b"allow", allowed.encode()),)
    return Refusal(INVALID_REQUEST, f"the verb is none of {allowed}", status=405, headers=headers)


async def _answer_other(kind: str, receive: Receive, send: Send) -> None:
    """What is no HTTP request: the events of a lifespan need nothing, and WebSockets are refused (403)."""
    if kind == "websocket":
        await receive()
        await send({"type": "websocket.close"})
        return
    if kind != "lifespan":
        raise RuntimeError(f"trio_vmcp.serve answers HTTP, not {kind!r}")
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
