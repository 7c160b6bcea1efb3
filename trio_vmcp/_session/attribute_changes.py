"""Attributes that callers of `Session.set_attributes` wait for to be in the row. The task that keeps the row writes
them, since of two writes at once one would be a conflict.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Mapping

import attrs
import trio

from trio_vmcp.errors import SessionClosed, SessionExists, StorageError, VmcpError

__all__ = ["AttributeChanges"]

CLOSED = "the session closed before its attributes were written"


@attrs.define(eq=False)
class _Change:
    attributes: Mapping[str, str] = attrs.field(repr=False)
    done: trio.Event = attrs.field(factory=trio.Event, init=False)
    error: VmcpError | None = attrs.field(default=None, init=False)


@attrs.define(eq=False)
class AttributeChanges:
    """Of one session. Of those that wait at the same time the latest is written, once: it would take the place of the
    others at once.
    """

    _waiting: list[_Change] = attrs.field(factory=list, init=False, repr=False)
    _closed: bool = attrs.field(default=False, init=False)

    @property
    def are_due(self) -> bool:
        """There is something to write."""
        return bool(self._waiting)

    async def wait_written(self, attributes: Mapping[str, str], wake: Callable[[], object]) -> None:
        """Have these attributes written, and wait for that. Cancelled before they are on their way, they are not.

        Raises:
            SessionClosed: It closed first.
            StorageError: As the writer says.
        """
        change = _Change(attributes)
        if self._closed:
            raise SessionClosed(CLOSED)
        self._waiting.append(change)
        wake()
        try:
            await change.done.wait()
        finally:
            if change in self._waiting:
                self._waiting.remove(change)
        if change.error is not None:
            raise copy.copy(change.error) from change.error  # other callers raise the same one

    async def write_latest(self, write: Callable[[Mapping[str, str]], Awaitable[None]]) -> None:
        """Write what waits, and tell the callers.

        Raises:
            VmcpError: As `write` does; the callers get a StorageError or SessionClosed.
        """
        changes, self._waiting = self._waiting, []
        error: VmcpError | None = SessionClosed(CLOSED)  # if the write is cancelled
        try:
            await write(changes[-1].attributes)
            error = None
        except SessionExists:  # its tombstone
            error = SessionClosed("the session was terminated elsewhere")
            raise
        except VmcpError as failure:
            error = failure if isinstance(failure, StorageError) else StorageError(f"{failure}, when it was written")
            raise
        finally:
            for change in changes:
                change.error = error
                change.done.set()

    def close(self) -> None:
        """Nothing is written any more."""
        self._closed = True
        changes, self._waiting = self._waiting, []
        for change in changes:
            change.error = SessionClosed(CLOSED)
            change.done.set()
