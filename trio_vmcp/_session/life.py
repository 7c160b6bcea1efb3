"""The life of one session: which phase it is in, and what its end is to be.

Every part of a session asks here and nowhere else. The phases come in one order; a phase may be skipped (an opening
that fails is never OPEN, a crash goes from anywhere to CLOSED), and none comes back.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping

import attrs
import trio

from trio_vmcp.models import SessionState

__all__ = ["TRANSITIONS", "Cause", "Life", "Phase"]


class Phase(enum.IntEnum):
    """In the order in which a session goes through them."""

    OPENING = 0  # backends connect for the first time; no caller has the session yet
    OPEN = 1  # calls are admitted
    DRAINING = 2  # calls in flight may end; only a connection that such a call waits for is still made
    PARTING = 3  # no call is left that counts; every connection is closed
    CLOSED = 4  # nothing is left


class Cause(enum.Enum):
    """Why a session closes."""

    ASKED = "`aclose` or `suspend`"
    IDLE = "idle_timeout"
    TOO_OLD = "max_lifetime"
    HIBERNATION = "hibernate_after"
    ELSEWHERE = "it was terminated elsewhere"
    LEFT = "what it was opened in has ended, or the opening failed"


TRANSITIONS: Mapping[Phase, frozenset[Phase]] = {
    Phase.OPENING: frozenset({Phase.OPEN, Phase.DRAINING, Phase.CLOSED}),
    Phase.OPEN: frozenset({Phase.DRAINING, Phase.CLOSED}),
    Phase.DRAINING: frozenset({Phase.PARTING, Phase.CLOSED}),
    Phase.PARTING: frozenset({Phase.CLOSED}),
    Phase.CLOSED: frozenset(),
}

_DRAINING = Phase.DRAINING  # every call asks for it, and a member of an enum costs more to look up than a global

_SHOWN: Mapping[Phase, SessionState] = {
    Phase.OPENING: SessionState.OPEN,
    Phase.OPEN: SessionState.OPEN,
    Phase.DRAINING: SessionState.DRAINING,
    Phase.PARTING: SessionState.DRAINING,
    Phase.CLOSED: SessionState.CLOSED,
}


@attrs.define(eq=False)
class Life:
    """Where a session is in its life.

    Attributes:
        phase: Written by `to` alone.
        terminates: The session ends for good: backend sessions end with it. Decided by the first request to close.
        cause: Why it closes; None: it does not. Decided by the same request.
        close_by: Each connection is closed by this time, by `trio.current_time()`; `math.inf`: as its own bounds say.
    """

    phase: Phase = attrs.field(default=Phase.OPENING, init=False)
    terminates: bool = attrs.field(default=False, init=False)
    cause: Cause | None = attrs.field(default=None, init=False)
    close_by: float = attrs.field(default=math.inf, init=False)
    # Of phases that are waited for.
    _reached: dict[Phase, trio.Event] = attrs.field(factory=dict, init=False, repr=False)

    @property
    def state(self) -> SessionState:
        """What the public property says."""
        return _SHOWN[self.phase]

    @property
    def is_closing(self) -> bool:
        """From the first request to close on, and after it."""
        return self.phase >= _DRAINING

    def to(self, phase: Phase) -> None:
        """Enter a phase. Synchronous: what asks in the same task step knows.

        Raises:
            RuntimeError: There is no such transition, which is a bug of ours.
        """
        if phase not in TRANSITIONS[self.phase]:
            raise RuntimeError(f"a session does not go from {self.phase.name} to {phase.name}")
        self.phase = phase
        for reached, event in self._reached.items():
            if reached <= phase:
                event.set()

    async def reached(self, phase: Phase) -> None:
        """Wait until the session is in this phase, or in a later one."""
        if self.phase >= phase:
            await trio.lowlevel.checkpoint()
            return
        if phase not in self._reached:
            self._reached[phase] = trio.Event()
        await self._reached[phase].wait()
