"""What a backend does wrong at the pace of its wire, in a log that must not fill at that pace."""

from __future__ import annotations

import logging

import attrs

__all__ = ["Complaints"]

logger = logging.getLogger("trio_vmcp.client")

MOST_COMPLAINTS = 100  # of one kind that are worth a record each


@attrs.define(eq=False)
class Complaints:
    """About one connection. The first of a kind is a warning: servers that do such a thing do it without end."""

    _made: dict[str, int] = attrs.field(factory=dict, init=False)  # by text: ours, so there are few

    def make(self, text: str, *args: object) -> None:
        """
        Args:
            text: With places for `args`, as in logging. One text is one kind.
        """
        made = self._made[text] = self._made.get(text, 0) + 1
        if made <= MOST_COMPLAINTS:
            logger.log(logging.WARNING if made == 1 else logging.DEBUG, text, *args)
