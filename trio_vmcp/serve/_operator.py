"""What an operator asks of the front, by path: is it alive and ready, how are its sessions, and metrics."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import attrs
import trio

from trio_vmcp.identity import Identity
from trio_vmcp.manager import SessionManager
from trio_vmcp.models import JSON
from trio_vmcp.serve._accept import prefers_page
from trio_vmcp.serve._asgi import HttpReply, HttpRequest
from trio_vmcp.serve._errors import INVALID_REQUEST, Refusal
from trio_vmcp.serve._exchange import JSON_BODY
from trio_vmcp.serve._health import Readiness
from trio_vmcp.serve._metrics import metrics_text
from trio_vmcp.serve._page import PAGE_PATH, PageFile, page_files
from trio_vmcp.serve._status import status_document

__all__ = ["PROBES", "FrontState", "OperatorPaths", "for_reading"]

# Paths for balancers, which have no credentials and send what they like as Host. They tell nothing of sessions.
PROBES = frozenset({"/healthz", "/readyz"})

_Handler: TypeAlias = Callable[[HttpRequest, HttpReply, Identity | None], Awaitable[None]]
_FRESH = (b"cache-control", b"no-store")
_RETRY = (b"retry-after", b"1")
_VARY = (b"vary", b"accept")


@attrs.frozen(kw_only=True)
class FrontState:
    """The front, as of now.

    Attributes:
        unready: Why a balancer should send no requests; None: it may.
        in_flight: MCP requests that are under way.
        refused: HTTP requests that were refused before a session saw them, since the front was made.
    """

    unready: str | None
    in_flight: int
    refused: int

    def counts(self) -> dict[str, float]:
        return {"in_flight": self.in_flight, "refused": self.refused}


@attrs.define(eq=False)
class OperatorPaths:
    """The handlers of these paths. Each takes GET and HEAD."""

    _manager: SessionManager = attrs.field(alias="manager")
    _front: Callable[[], FrontState] = attrs.field(alias="front", repr=False)
    _readiness: Readiness = attrs.field(init=False, repr=False)
    _page: dict[str, PageFile] = attrs.field(factory=page_files, init=False, repr=False)
    _begun_at: float = attrs.field(factory=trio.current_time, init=False)

    def __attrs_post_init__(self) -> None:
        self._readiness = Readiness(self._manager)

    def handlers(self) -> dict[str, _Handler]:
        by_path = {
            **dict.fromkeys(self._page, self._send_file),
            "/healthz": self._tell_alive,
            "/readyz": self._tell_ready,
            PAGE_PATH: self._tell_status,
            "/metrics": self._tell_metrics,
        }
        return {path: for_reading(handler) for path, handler in by_path.items()}

    async def _tell_alive(self, request: HttpRequest, reply: HttpReply, identity: Identity | None) -> None:
        await _respond_json(reply, 200, {"alive": True})

    async def _tell_ready(self, request: HttpRequest, reply: HttpReply, identity: Identity | None) -> None:
        problem = self._front().unready or await self._readiness.problem()
        if problem is None:
            await _respond_json(reply, 200, {"ready": True})
        else:
            await _respond_json(reply, 503, {"ready": False, "why": problem}, _RETRY)

    async def _tell_status(self, request: HttpRequest, reply: HttpReply, identity: Identity | None) -> None:
        if prefers_page(request.headers.get("accept")):
            await self._send_file(request, reply, identity)
            return
        front = self._front()
        uptime = trio.current_time() - self._begun_at
        document = await status_document(self._manager, front.counts(), ready=front.unready is None, uptime=uptime)
        await _respond_json(reply, 200, document, _VARY)

    async def _send_file(self, request: HttpRequest, reply: HttpReply, identity: Identity | None) -> None:
        file = self._page[request.path]
        await reply.respond(200, file.body, (*file.headers, _FRESH, _VARY))

    async def _tell_metrics(self, request: HttpRequest, reply: HttpReply, identity: Identity | None) -> None:
        try:
            text, media_type = await metrics_text(self._manager, self._front().counts())
        except ImportError as error:
            if (error.name or "").partition(".")[0] != "prometheus_client":
                raise
            needed = "metrics need prometheus_client: pip install 'trio-vmcp[prometheus]'"
            raise Refusal(INVALID_REQUEST, needed, status=404) from None
        await reply.respond(200, text, ((b"content-type", media_type.encode()), _FRESH))


def for_reading(handler: _Handler) -> _Handler:
    """The handler for GET and HEAD; other verbs are refused."""

    async def checked(request: HttpRequest, reply: HttpReply, identity: Identity | None) -> None:
        if request.verb not in ("GET", "HEAD"):
            allowed = ((b"allow", b"GET, HEAD"),)
            raise Refusal(INVALID_REQUEST, "the verb is neither GET nor HEAD", status=405, headers=allowed)
        await handler(request, reply, identity)

    return checked


async def _respond_json(reply: HttpReply, status: int, document: JSON, *headers: tuple[bytes, bytes]) -> None:
    # In ASCII: the words of a backend may hold half a surrogate pair, which has no UTF-8.
    body = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    await reply.respond(status, body, (JSON_BODY, _FRESH, *headers))
