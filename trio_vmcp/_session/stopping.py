"""End the connection of a backend that is not used: `Backend.stop_after`. The next call connects it again."""

from __future__ import annotations

import math

import trio

from trio_vmcp._session.connection import Connection
from trio_vmcp._session.life import Life, Phase
from trio_vmcp._session.member import Member

__all__ = ["asked_at_of", "stop_when_unused"]

LEAST_PAUSE = 0.1  # s between two looks at a backend that is in use


async def stop_when_unused(member: Member, connection: Connection, stop_after: float, life: Life) -> None:
    """Stop a backend `stop_after` s after its last use, unless its connection ends before. A use that has not ended is
    looked at again after as long: it ends no earlier than now. What is stopped is retired.
    """
    await life.reached(Phase.OPEN)
    opened_at = trio.current_time()
    while not connection.retired.is_set() and life.phase is Phase.OPEN:
        now = trio.current_time()
        used_at = now if member.is_in_use(connection) else max(opened_at, member.used_at, asked_at_of(connection))
        if used_at + stop_after <= now and not member.is_in_use(connection):
            member.stop(connection, f"no call for {stop_after} s (Backend.stop_after)")
        with trio.move_on_at(max(used_at + stop_after, now + LEAST_PAUSE)):
            await connection.retired.wait()


def asked_at_of(connection: Connection) -> float:
    """`trio.current_time()` when handlers last answered the backend: now, while one does; -inf: never, or unknown.

    A client that wraps one of ours may pass on its attributes by `__getattr__`, which `isinstance` of a Protocol does
    not ask from Python 3.12 on.
    """
    asked_at: float = getattr(connection.client, "last_asked_at", -math.inf)
    return asked_at
