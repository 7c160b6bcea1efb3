"""Who hears of what becomes of a session's backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

from trio_vmcp._session.listing import Listing
from trio_vmcp._session.member import Member

__all__ = ["EVERYTHING", "Change", "Observer"]

Change: TypeAlias = Literal["backend", "tools", "resources", "prompts"]
EVERYTHING: tuple[Change, ...] = ("backend", "tools", "resources", "prompts")


class Observer(Protocol):
    """Who advertises, writes down and tells what changes. Never waits."""

    def check_names(self, member: Member, listing: Listing) -> None:
        """
        Raises:
            MessageTooLarge: Names stay bound for the session's life, and this backend has had too many by now.
        """
        ...

    def member_changed(self, member: Member, changes: Sequence[Change]) -> None:
        """It joined, was lost, or lists something else. Of what happens before the opening is over, nobody is told."""
        ...

    def resource_updated(self, member: Member, uri: str) -> None:
        """A resource that was subscribed to has new content, or may have."""
        ...
