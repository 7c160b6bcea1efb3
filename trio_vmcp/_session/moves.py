"""Subscriptions that move: when a backend no longer offers a resource that is subscribed to, or has left, its owner is
another backend, and the subscription goes there. "A subscription and the reads of a URI go to one owner."
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import trio

from trio_vmcp._nursery import start_if_open
from trio_vmcp._session.directory import Directory
from trio_vmcp._session.member import Member

__all__ = ["SubscriptionMoves"]


@attrs.define(eq=False)
class SubscriptionMoves:
    """Of one session. Its task runs only while there is something to look at: one search for an owner may take 10 ms,
    and callers choose how many resources they subscribe to.
    """

    _members: Mapping[str, Member]
    _directory: Directory
    _removed: list[Member] = attrs.field(factory=list, init=False)
    _is_due: bool = attrs.field(default=False, init=False)
    _is_running: bool = attrs.field(default=False, init=False)

    def start(self, nursery: trio.Nursery, member: Member) -> None:
        """A backend lists other resources than before, or was removed."""
        if member.is_removed and member.subscriptions:
            self._removed.append(member)
        if self._removed or any(known.subscriptions for known in self._members.values()):
            self._is_due = True
            self._is_running = self._is_running or start_if_open(nursery, self._run)

    async def _run(self) -> None:
        while self._is_due:
            self._is_due = False
            removed, self._removed = self._removed, []
            for holder in (*removed, *self._members.values()):
                for uri in sorted(holder.subscriptions):
                    self._move(holder, uri)
                    await trio.lowlevel.checkpoint()
        self._is_running = False

    def _move(self, holder: Member, uri: str) -> None:
        count = holder.subscriptions[uri]  # 0: it was unsubscribed from meanwhile
        if count <= 0 or (not holder.is_removed and self._directory.offers(holder.backend_id, uri)):
            return
        target = self._directory.find_owner(uri)
        owner = None if target is None else self._members.get(target.backend_id)
        if owner is None or owner is holder:
            return
        del holder.subscriptions[uri]
        owner.subscriptions[uri] += count
        if holder.connection is not None:
            holder.connection.subscriber.unsubscribe(uri)
        if owner.connection is not None:  # else its next connection subscribes
            owner.connection.subscriber.subscribe(uri)
