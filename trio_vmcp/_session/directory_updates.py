"""When the directory takes over what backends list: at once if that is little, else in steps between which other tasks
run.

Callers read what was before until the last step. A change that comes meanwhile has its turn next; subscribers are told
of each change when callers can read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import trio

from trio_vmcp._nursery import start_if_open
from trio_vmcp._session.directory import Directory
from trio_vmcp._session.listing import Listing
from trio_vmcp._session.member import Change, Member

__all__ = ["DirectoryUpdates"]


@attrs.define(eq=False)
class DirectoryUpdates:
    """Of one session. Its task runs only while a long update is made."""

    _members: Mapping[str, Member]
    _directory: Directory
    _tell: Callable[[Member, Sequence[Change]], None]
    _is_open: bool = attrs.field(default=False, init=False)
    _waiting: list[tuple[Member, Sequence[Change]]] = attrs.field(factory=list, init=False)  # to be told
    _over: trio.Event | None = attrs.field(
        default=None, init=False
    )  # set when an update ends; None: none is being made

    async def open(self) -> None:
        """The opening has ended: bind names, by the configured order of the backends. Changes before are not told."""
        self._is_open = True
        self._over = trio.Event()
        await self._update()

    def note(self, member: Member, changes: Sequence[Change], nursery: trio.Nursery | None) -> None:
        """A backend joined, was lost, or lists something else.

        Args:
            nursery: Where a long update is made; None: the session closes.
        """
        if not self._is_open:
            return
        if self._over is not None:
            self._waiting.append((member, changes))
            return
        listings = self._listings()
        if nursery is not None and self._directory.is_long(listings):
            self._over = trio.Event()
            if start_if_open(nursery, self._update):
                self._waiting.append((member, changes))
                return
            self._over = None
        self._directory.update(listings)
        self._tell(member, changes)

    def close(self) -> None:
        """The session is CLOSED: changes are told no more."""
        self._is_open, self._waiting = False, []
        self._tell = _ignore

    async def wait(self) -> None:
        """Wait until callers read all changes so far."""
        if self._over is not None:
            await self._over.wait()

    async def _update(self) -> None:
        try:
            while True:
                waiting, self._waiting = self._waiting, []
                listings = self._listings()
                if self._directory.is_long(listings):
                    for _ in self._directory.update_in_steps(listings):
                        await trio.lowlevel.checkpoint()
                else:
                    self._directory.update(listings)
                for member, changes in waiting:
                    self._tell(member, changes)
                if not self._waiting:
                    return
        finally:
            over, self._over = self._over, None
            if over is not None:
                over.set()

    def _listings(self) -> dict[str, Listing | None]:
        return {member.backend_id: member.listing for member in self._members.values()}


def _ignore(member: Member, changes: Sequence[Change]) -> None:
    pass
