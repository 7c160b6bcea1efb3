"""Who waits at a connection limit, and who must not."""

from __future__ import annotations

from contextvars import ContextVar

import attrs

__all__ = ["Slot", "current_slot"]


@attrs.define(eq=False)
class Slot:
    """One under the connection limit. What a progress callback asks for shares its task's slot, of whatever backend:
    with a slot of its own it could wait for itself. So does a handler, whose answer a call waits for that holds a slot.
    """

    held: bool = True


current_slot: ContextVar[Slot | None] = ContextVar("trio_vmcp_slot", default=None)
