"""`subscriptions/listen` of the stateless era: one stream for the changes that a client asks for.

Source: MCP 2026-07-28, subscriptions. The first message acknowledges what is honoured, every message names the request,
and a result ends the stream.
"""

from __future__ import annotations

from collections import Counter

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
from trio_vmcp.serve._errors import INVALID_PARAMS, Refusal
from trio_vmcp.serve._exchange import Exchange
from trio_vmcp.serve._messages import encode_notice
from trio_vmcp.session import Session

__all__ = ["Listeners"]

MOST_STREAMS = 16  # of one principal
MOST_RESOURCES = 1000  # of one stream
_KINDS: dict[str, Kind] = {key: kind for kind, key in LIST_KEYS.items()}  # type: ignore[misc]  # its keys are kinds


@attrs.define(eq=False)
class _Interest:
    """What the streams of one principal, and so of one session, listen for.

    Attributes:
        resources: How many streams want to hear of each.
    """

    streams: int = 0
    resources: Counter[str] = attrs.field(factory=Counter)


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
        interest = self._interests.setdefault(session.id, _Interest())
        if interest.streams >= MOST_STREAMS:
            raise Refusal(INVALID_PARAMS, f"{MOST_STREAMS} streams are open, and there may be no more")
        interest.streams += 1
        honoured: list[str] = []
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
            await self._unsubscribe(session, interest, honoured)
            interest.streams -= 1
            if not interest.streams:
                self._interests.pop(session.id, None)
        return {"_meta": tag}

    async def _subscribe(self, session: Session, interest: _Interest, uris: list[str], honoured: list[str]) -> None:
        for uri in uris:
            interest.resources[uri] += 1
            honoured.append(uri)
            try:
                await session.subscribe_resource(uri)
            except VmcpError:  # it is not acknowledged
                honoured.remove(uri)
                interest.resources[uri] -= 1

    async def _unsubscribe(self, session: Session, interest: _Interest, honoured: list[str]) -> None:
        with trio.move_on_after(GOODBYE, shield=True):
            for uri in honoured:
                interest.resources[uri] -= 1
                if not interest.resources[uri]:
                    del interest.resources[uri]
                    try:
                        await session.unsubscribe_resource(uri)
                    except VmcpError:  # the session or its backend has ended
                        continue


GOODBYE = 1.0  # s, for ending the subscriptions of one stream


def _tell(exchange: Exchange, method: str, params: JSON) -> None:
    exchange.send(encode_notice(method, params), may_drop=True)


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel(reason="the server shuts down")


def _resources(uris: list[str], honoured: list[str]) -> JSON:
    return {"resourceSubscriptions": honoured} if uris else {}


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
