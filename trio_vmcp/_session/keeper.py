"""Keeps a live session's row in the storage as it should be, off the calls' path."""

from __future__ import annotations

import logging
from collections.abc import Callable

import attrs
import trio

from trio_vmcp._session.row import Stored
from trio_vmcp.errors import SessionExists, VmcpError, session_tag
from trio_vmcp.metadata import BackendRecord
from trio_vmcp.routing import Bindings

__all__ = ["Keeper"]

logger = logging.getLogger("trio_vmcp.session")

TOUCHES_PER_TTL = 3  # "touched at least every ttl/3" (design: metadata and storage)


@attrs.define(eq=False)
class Keeper:
    """Writes what changed and puts the TTL off. While the storage is away the session goes on; the next turn tries."""

    _row: Stored
    _state: Callable[[], tuple[tuple[BackendRecord, ...], Bindings]]  # what the row should say
    _unsaved: bool = attrs.field(default=False, init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)
    _keeping: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _ended: trio.Event | None = attrs.field(default=None, init=False)  # None: not begun

    def note_change(self) -> None:
        """The row no longer says what it should."""
        self._unsaved = True
        self._changed.set()

    async def keep(self, on_terminated: Callable[[], None]) -> None:
        """Until `stop`. Calls `on_terminated` and ends where the session turns out to be terminated elsewhere."""
        every = self._row.ttl / TOUCHES_PER_TTL
        touch_at = trio.current_time() + every
        self._ended = trio.Event()
        try:
            with self._keeping:
                while True:
                    with trio.move_on_at(touch_at):
                        await self._changed.wait()
                    self._changed = trio.Event()
                    try:
                        if trio.current_time() >= touch_at:
                            await self._row.touch()  # first: it brings back a row that vanished
                        await self._save()
                    except SessionExists:  # its tombstone
                        logger.warning("%s was terminated elsewhere", session_tag(self._row.metadata.session_id))
                        on_terminated()
                        return
                    except VmcpError as error:
                        logger.warning("%s: %s", session_tag(self._row.metadata.session_id), error)
                    if trio.current_time() >= touch_at:
                        touch_at = trio.current_time() + every
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Give up what `keep` is at, and wait until it has: two writes at once would not know of each other."""
        self._keeping.cancel(reason="session closed")
        if self._ended is not None:
            await self._ended.wait()

    async def leave(self, *, terminate: bool) -> None:
        """The last thing done to the row. Raises for no storage: the TTL ends the row."""
        try:
            if terminate:
                await self._row.delete()
            else:
                await self._save()
        except VmcpError as error:
            logger.warning("%s: %s", session_tag(self._row.metadata.session_id), error)

    async def _save(self) -> None:
        if self._unsaved:
            self._unsaved = False  # before the write: what changes meanwhile is in none of it
            try:
                await self._row.write(*self._state())
            except BaseException:
                self._unsaved = True
                raise
