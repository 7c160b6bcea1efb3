"""A backend's log messages on their way to the handler: in order, one at a time, and never more than a few waiting."""

from __future__ import annotations

import logging
from collections import deque

import attrs
import trio

from trio_vmcp._client.handlers import Declined, Handling
from trio_vmcp._client.slots import Slot
from trio_vmcp._client.weight import weigh
from trio_vmcp._nursery import start_if_open
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON

__all__ = ["LogFeed"]

logger = logging.getLogger("trio_vmcp.client")

MOST_WAITING = 100  # messages
MOST_WAITING_BYTES = 1024 * 1024  # as they are weighed, all of them together


@attrs.define(eq=False)
class LogFeed:
    """Whoever reads a stream never waits for the handler. One that is too slow misses the oldest, and our own log
    says so. The task that calls it lives for as long as there is something to tell.
    """

    _handling: Handling = attrs.field(alias="handling")
    _nursery: trio.Nursery = attrs.field(alias="nursery", repr=False)
    _waiting: deque[tuple[JSON, Identity | None, int]] = attrs.field(factory=deque, init=False, repr=False)
    _weight: int = attrs.field(default=0, init=False)
    _dropped: int = attrs.field(default=0, init=False)
    _telling: bool = attrs.field(default=False, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)  # of the task

    def put(self, params: JSON, caller: Identity | None) -> None:
        """Tell the handler, if there is one, some time soon."""
        if self._closed or not self._handling.has_log:
            return
        weight = weigh(params, MOST_WAITING_BYTES)
        self._waiting.append((params, caller, weight))
        self._weight += weight
        while len(self._waiting) > MOST_WAITING or self._weight > MOST_WAITING_BYTES:
            self._weight -= self._waiting.popleft()[2]
            self._drop_one()
        if not self._telling:
            self._scope = trio.CancelScope()
            self._telling = start_if_open(self._nursery, self._tell)

    def close(self) -> None:
        """Nobody is told any more."""
        self._closed = True
        self._waiting.clear()
        self._scope.cancel(reason="the connection is closed")

    async def _tell(self) -> None:
        try:
            with self._scope:
                while self._waiting:
                    params, caller, weight = self._waiting.popleft()
                    self._weight -= weight
                    slot = Slot()
                    try:
                        await self._handling.run("log", params, caller, outer=None, slot=slot)
                    except Declined as refused:
                        logger.debug("a log message is lost: %s", refused)
                    finally:
                        slot.held = False
                    await trio.lowlevel.checkpoint()  # a handler need not wait, and a flood has no end
        finally:
            self._telling = False
            if self._dropped:
                logger.info("backend %r: dropped %d log messages", self._handling.backend_id, self._dropped)
                self._dropped = 0

    def _drop_one(self) -> None:
        if not self._dropped:  # at once, since the handler may never come to its end
            logger.warning(
                "backend %r: drops log messages: over %d, or %d bytes, wait for the log handler",
                self._handling.backend_id,
                MOST_WAITING,
                MOST_WAITING_BYTES,
            )
        self._dropped += 1
