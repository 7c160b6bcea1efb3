"""`subscriptions/listen` of the stateless era: one stream for the changes that a client asks for.

Source: MCP 2026-07-28, subscriptions. The first message acknowledges what is honoured, every message names the request,
and a result ends the stream.
"""

from __future__ import annotations

from contextlib import suppress

import attrs
import trio

from trio_vmcp._nursery import start_task
from trio_vmcp._protocol.jsonrpc import Request
from trio_vmcp._protocol.methods import (
    ACKNOWLEDGED,
    LIST_CHANGED,
    LIST_KEYS,
    RESOURCE_UPDATED,
    SUBSCRIPTION_ID,
    Kind,
)
from trio_vmcp.errors import VmcpError
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON
from trio_vmcp.serve._errors import INVALID_PARAMS, INVALID_REQUEST, UNAVAILABLE, Refusal
from trio_vmcp.serve._exchange import MOST_REPEATED, Exchange, is_long
from trio_vmcp.serve._messages import encode_notice
from trio_vmcp.session import Session

__all__ = ["Listeners"]

MOST_STREAMS = 16  # of one principal
MOST_RESOURCES = 1000  # of one stream
ACKNOWLEDGED_WITHIN = 10.0  # s, for subscribing to all of them; what takes longer is not honoured
GOODBYE = 1.0  # s, for ending the subscriptions of one stream
STREAMS_DELAY = 5  # s, after which a stream is worth asking for again that was one too many
_KINDS: dict[str, Kind] = {key: kind for kind, key in LIST_KEYS.items()}  # type: ignore[misc]  # its keys are kinds


@attrs.define(eq=False)
class _Resource:
    """A resource that streams of one session want to hear of.

    Attributes:
        streams: How many.
        turn: Held while the session subscribes or unsubscribes: else the end of one stream, which is on its way, would
            end the subscription that another stream has just begun.
    """

    streams: int = 0
    turn: trio.Lock = attrs.field(factory=trio.Lock)


@attrs.define(eq=False)
class _Interest:
    """What the streams of one principal, and so of one session, listen for."""

    streams: int = 0
    resources: dict[str, _Resource] = attrs.field(factory=dict)

    async def add(self, session: Session, uri: str) -> None:
        """One more stream wants to hear of a resource.

        Raises:
            VmcpError: As `Session.subscribe_resource`; the stream does not hear of it then.
        """
        resource = self.resources.setdefault(uri, _Resource())
        resource.streams += 1
        try:
            async with resource.turn:
                await session.subscribe_resource(uri)
        except BaseException:
            resource.streams -= 1
            self._discard_unused(uri)
            raise

    async def remove(self, session: Session, uri: str) -> None:
        """One stream less wants to hear of it."""
        resource = self.resources[uri]
        resource.streams -= 1
        try:
            async with resource.turn:
                if not resource.streams:
                    await session.unsubscribe_resource(uri)
        except VmcpError:  # the session or its backend has ended
            pass
        finally:
            self._discard_unused(uri)

    def _discard_unused(self, uri: str) -> None:
        resource = self.resources.get(uri)
        if resource is not None and not resource.streams:
            del self.resources[uri]


@attrs.define(eq=False)
class Listeners:
    """The open streams of all clients."""

    _interests: dict[str, _Interest] = attrs.field(factory=dict, init=False, repr=False)  # by the id of the session
    _closing: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)

    def close(self) -> None:
        """The server shuts down: every stream gets its result."""
        self._closing.set()

    async def serve(self, session: Session, identity: Identity | None, message: Request, exchange: Exchange) -> JSON:
        """Tell of changes until the client leaves, the session ends or the server shuts down; then the result.

        Raises:
            Refusal: The params are not those of this request, or the principal has too many streams.
        """
        kinds, uris = _wanted(message.params)
        if is_long(message.id):
            raise Refusal(INVALID_REQUEST, f"the id of a stream is over {MOST_REPEATED} characters")
        interest = self._interests.setdefault(session.id, _Interest())
        if interest.streams >= MOST_STREAMS:
            retry_after = ((b"retry-after", b"%d" % STREAMS_DELAY),)
            problem = f"{MOST_STREAMS} streams are open, and there may be no more"
            raise Refusal(UNAVAILABLE, problem, status=503, headers=retry_after)
        interest.streams += 1
        honoured: dict[str, None] = {}
        tag = {SUBSCRIPTION_ID: message.id}
        try:
            async with session.changes() as changes:
                await self._subscribe(session, interest, uris, honoured)
                told = {"notifications": {**{LIST_KEYS[kind]: True for kind in kinds}, **_resources(uris, honoured)}}
                exchange.send(encode_notice(ACKNOWLEDGED, {**told, "_meta": tag}), may_drop=False)
                async with trio.open_nursery() as nursery:
                    start_task(nursery, _cancel_when, self._closing, nursery.cancel_scope)
                    async for change in changes:
                        if change.kind == "resource_updated" and change.uri in honoured:
                            _tell(exchange, RESOURCE_UPDATED, {"uri": change.uri, "_meta": tag})
                        elif change.kind in kinds:
                            _tell(exchange, LIST_CHANGED[change.kind], {"_meta": tag})
                    nursery.cancel_scope.cancel(reason="the session has ended")
        finally:
            try:
                await self._unsubscribe(session, interest, honoured)  # noqa: ASYNC102  # it has a shield of its own
            finally:
                interest.streams -= 1
                if not interest.streams:
                    self._interests.pop(session.id, None)
        return {"_meta": tag}

    async def _subscribe(
        self, session: Session, interest: _Interest, uris: list[str], honoured: dict[str, None]
    ) -> None:
        async def subscribe(uri: str) -> None:
            with suppress(VmcpError, ValueError):  # it is not acknowledged
                await interest.add(session, uri)
                honoured[uri] = None

        with trio.move_on_after(ACKNOWLEDGED_WITHIN):  # noqa: ASYNC100  # the end of the nursery is a checkpoint
            async with trio.open_nursery() as nursery:
                for uri in uris:
                    start_task(nursery, subscribe, uri)

    async def _unsubscribe(self, session: Session, interest: _Interest, honoured: dict[str, None]) -> None:
        with trio.move_on_after(GOODBYE, shield=True):  # noqa: ASYNC100  # as above
            async with trio.open_nursery() as nursery:
                for uri in honoured:
                    start_task(nursery, interest.remove, session, uri)


def _tell(exchange: Exchange, method: str, params: JSON) -> None:
    exchange.send(encode_notice(method, params), may_drop=True)


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel(reason="the server shuts down")


def _resources(uris: list[str], honoured: dict[str, None]) -> JSON:
    return {"resourceSubscriptions": [uri for uri in uris if uri in honoured]} if uris else {}


def _wanted(params: JSON) -> tuple[frozenset[Kind], list[str]]:
    wanted = params.get("notifications")
    if not isinstance(wanted, dict):
        raise Refusal(INVALID_PARAMS, "'notifications' is not an object")
    uris = wanted.get("resourceSubscriptions") or []
    if not isinstance(uris, list) or not all(isinstance(uri, str) for uri in uris):
        raise Refusal(INVALID_PARAMS, "'resourceSubscriptions' is not an array of strings")
    if len(uris) > MOST_RESOURCES:
        raise Refusal(INVALID_PARAMS, f"'resourceSubscriptions' has over {MOST_RESOURCES} entries")
    return frozenset(kind for key, kind in _KINDS.items() if wanted.get(key) is True), list(dict.fromkeys(uris))
