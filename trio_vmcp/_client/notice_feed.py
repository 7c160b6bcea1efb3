"""Notifications of one backend on their way to a handler: in order, one at a time, with a limit."""

from __future__ import annotations

import logging
from typing import TypeAlias

import attrs
import trio

from trio_vmcp._client.handlers import BoundHandlers
from trio_vmcp._client.http.connection_limit import ConnectionSlot
from trio_vmcp._nursery import start_if_open
from trio_vmcp.connector import CallInfo, ServerRequestError
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON

__all__ = ["MOST_WAITING_BYTES", "NoticeFeed"]

logger = logging.getLogger("trio_vmcp.client")

MOST_WAITING = 100  # messages
MOST_WAITING_BYTES = 1024 * 1024  # of memory, for all of them together

_SHOWN = {"log": "log messages", "elicitation_complete": "notices of completed elicitations"}

_Message: TypeAlias = tuple[JSON, Identity | None, CallInfo | None, int]  # params, caller, call, size in bytes


@attrs.define(eq=False)
class NoticeFeed:
    """A queue between the tasks that read streams, which do not wait for the handler, and the task that calls it.

    If the handler is too slow, the oldest messages are dropped, with a warning in our own log. The task exists only
    while messages wait.

    Attributes:
        kind: Of the handler, as `ClientHandlers` names it.
    """

    kind: str
    _handlers: BoundHandlers = attrs.field(alias="handlers")
    _nursery: trio.Nursery = attrs.field(alias="nursery", repr=False)
    _waiting: list[_Message] = attrs.field(factory=list, init=False, repr=False)  # short, and nearly always empty
    _waiting_bytes: int = attrs.field(default=0, init=False)
    _dropped: int = attrs.field(default=0, init=False)
    _is_running: bool = attrs.field(default=False, init=False)  # the task that calls the handler
    _closed: bool = attrs.field(default=False, init=False)
    _scope: trio.CancelScope | None = attrs.field(default=None, init=False, repr=False)  # of the task

    def put(self, params: JSON, caller: Identity | None, call: CallInfo | None, size: int) -> None:
        """Queue a message of `size` bytes."""
        if self._closed:
            return
        self._waiting.append((params, caller, call, size))
        self._waiting_bytes += size
        while len(self._waiting) > MOST_WAITING or self._waiting_bytes > MOST_WAITING_BYTES:
            self._waiting_bytes -= self._waiting.pop(0)[3]
            self._count_dropped()
        if not self._is_running:
            self._scope = trio.CancelScope()
            self._is_running = start_if_open(self._nursery, self._run, self._scope)

    def close(self) -> None:
        """Cancel the handler and discard the messages that wait."""
        self._closed = True
        self._waiting.clear()
        if self._scope is not None:
            self._scope.cancel(reason="the connection is closed")

    async def _run(self, scope: trio.CancelScope) -> None:
        try:
            with scope:
                while self._waiting:
                    params, caller, call, size = self._waiting.pop(0)
                    self._waiting_bytes -= size
                    slot = ConnectionSlot()
                    try:
                        await self._handlers.run_handler(self.kind, params, caller, call, outer=None, slot=slot)
                    except ServerRequestError as error:
                        logger.debug("a message for the %s handler is lost: %s", self.kind, error)
                    finally:
                        slot.is_held = False
                    await trio.lowlevel.checkpoint()  # the handler need not have one, and a flood has no end
        finally:
            self._is_running = False
            if self._dropped:
                logger.info("backend %r: dropped %d %s", self._handlers.backend_id, self._dropped, _SHOWN[self.kind])
                self._dropped = 0

    def _count_dropped(self) -> None:
        if not self._dropped:  # the first one is logged at once: the handler may never return
            logger.warning(
                "backend %r: drops %s: over %d, or %d bytes, wait for the %s handler",
                self._handlers.backend_id,
                _SHOWN[self.kind],
                MOST_WAITING,
                MOST_WAITING_BYTES,
                self.kind,
            )
        self._dropped += 1
