"""Messages of ours that nothing waits for, such as `notifications/cancelled`. Each is sent in a task of its own. Their
number and time are limited, and a close waits for them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import attrs
import trio

from trio_vmcp._light_event import LightEvent
from trio_vmcp._nursery import start_if_open
from trio_vmcp.errors import BackendError

__all__ = ["UnawaitedMessages"]

logger = logging.getLogger("trio_vmcp.client")

MOST = 64  # on their way at once; more are dropped, so that a backend that reads nothing costs limited memory


@attrs.define(eq=False)
class UnawaitedMessages:
    """Those of one connection."""

    _nursery: trio.Nursery = attrs.field(alias="nursery", repr=False)
    _timeout: float = attrs.field(alias="timeout")  # s for each
    _on_their_way: int = attrs.field(default=0, init=False)
    # Of a close: set once no notice is on its way.
    _idle: LightEvent | None = attrs.field(default=None, init=False, repr=False)

    def start(self, tell: Callable[[], Awaitable[object]]) -> None:
        """Run `tell` in a task. Dropped if MOST are on their way, or if the connection has ended."""
        if self._idle is None and self._on_their_way < MOST and start_if_open(self._nursery, self._tell, tell):
            self._on_their_way += 1

    async def aclose(self) -> None:
        """Start no more, and wait for those that are on their way."""
        if self._idle is None:
            self._idle = LightEvent()
        if not self._on_their_way:
            self._idle.set()
        await self._idle.wait()

    async def _tell(self, tell: Callable[[], Awaitable[object]]) -> None:
        # Shielded: the session's nursery may be cancelled directly after the call that this notice is about.
        with trio.move_on_after(self._timeout, shield=True):
            try:
                await tell()
            except BackendError as error:
                logger.debug("%s, on a message that no request waits for", error)
            finally:
                self._on_their_way -= 1
                if self._idle is not None and not self._on_their_way:
                    self._idle.set()
