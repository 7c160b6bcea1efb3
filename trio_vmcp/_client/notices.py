"""Messages that nobody waits for, each in a task of its own: bounded in time and number, and waited for by a close."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import attrs
import trio

from trio_vmcp._nursery import start_if_open
from trio_vmcp.errors import BackendError

__all__ = ["Notices"]

logger = logging.getLogger("trio_vmcp.client")

MOST = 64  # on their way at once; a backend that does not take them may not make us keep more


@attrs.define(eq=False)
class Notices:
    """Those of one connection."""

    _nursery: trio.Nursery = attrs.field(alias="nursery", repr=False)
    _timeout: float = attrs.field(alias="timeout")  # s, for one
    _on_their_way: int = attrs.field(default=0, init=False)
    _closing: bool = attrs.field(default=False, init=False)
    # Set only while closing, with nothing on its way.
    _quiet: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)

    def start(self, tell: Callable[[], Awaitable[object]]) -> None:
        """Have `tell` run, unless too much is on its way already, or the connection has broken by now."""
        if not self._closing and self._on_their_way < MOST and start_if_open(self._nursery, self._tell, tell):
            self._on_their_way += 1

    async def aclose(self) -> None:
        """Start no more, and wait for what is on its way."""
        self._closing = True
        if not self._on_their_way:
            self._quiet.set()
        await self._quiet.wait()

    async def _tell(self, tell: Callable[[], Awaitable[object]]) -> None:
        # Shielded: the session's nursery may be cancelled right behind the call that this is about.
        with trio.move_on_after(self._timeout, shield=True):
            try:
                await tell()
            except BackendError as error:
                logger.debug("%s, on a message that nobody waits for", error)
            finally:
                self._on_their_way -= 1
                if self._closing and not self._on_their_way:
                    self._quiet.set()
