"""Log records about mistakes of a backend, limited in number: a mistake may be repeated with every message."""

from __future__ import annotations

import logging

import attrs

__all__ = ["Complaints"]

logger = logging.getLogger("trio_vmcp.client")

MOST_COMPLAINTS = 100  # of one kind that are logged


@attrs.define(eq=False)
class Complaints:
    """The complaints about one connection. Of each kind, the first is a warning, and later ones are debug records."""

    _made: dict[str, int] | None = attrs.field(default=None, init=False)  # by text; None: none yet, as with most

    def make(self, text: str, *args: object) -> None:
        """
        Args:
            text: With places for `args`, as in logging. Each text is a kind of complaint.
        """
        if self._made is None:
            self._made = {}
        made = self._made[text] = self._made.get(text, 0) + 1
        if made <= MOST_COMPLAINTS:
            logger.log(logging.WARNING if made == 1 else logging.DEBUG, text, *args)
