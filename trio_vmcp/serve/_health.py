"""Whether this instance should get requests, for balancers: what `/readyz` says."""

from __future__ import annotations

import math
import secrets

import attrs
import trio

from trio_vmcp.errors import SessionClosed, SessionNotFound, StorageError
from trio_vmcp.manager import SessionManager

__all__ = ["Readiness"]

ASK_INTERVAL = 1.0  # s from one question to the storage to the next, however many probes ask
ASK_TIMEOUT = 2.0  # s


@attrs.define(eq=False)
class Readiness:
    """Whether the storage of sessions answers. Backends do not count: sessions serve what is left of them, and an
    instance that is taken out of a balancer for a backend that is away would be missing for all others.
    """

    _manager: SessionManager = attrs.field(alias="manager")
    # No session has this id, so the storage must say that there is none.
    _absent_id: str = attrs.field(factory=secrets.token_urlsafe, init=False, repr=False)
    _asked_at: float = attrs.field(default=-math.inf, init=False)
    _asking: trio.Event | None = attrs.field(default=None, init=False, repr=False)
    _problem: str | None = attrs.field(default=None, init=False)

    async def problem(self) -> str | None:
        """Why no request should come here; None: it may. Known after ASK_TIMEOUT s at the latest, and up to
        ASK_INTERVAL s old.
        """
        if self._asking is None and trio.current_time() >= self._asked_at + ASK_INTERVAL:
            asking = trio.Event()
            try:
                # Not in the task of this probe: others may wait for the same answer.
                self._manager.start_task(self._ask, asking)
            except SessionClosed:
                return "the sessions of this server have ended"
            self._asking, self._asked_at = asking, trio.current_time()
        if self._asking is not None:
            await self._asking.wait()
        return self._problem

    async def _ask(self, asking: trio.Event) -> None:
        problem: str | None = f"the storage of sessions gave no answer within {ASK_TIMEOUT} s"
        try:
            with trio.move_on_after(ASK_TIMEOUT):
                problem = await self._load()
        finally:
            self._problem, self._asking = problem, None
            asking.set()

    async def _load(self) -> str | None:
        try:
            await self._manager.get(self._absent_id)
        except SessionNotFound:
            pass
        except StorageError:  # without its text, which may name the place of the storage to strangers
            return "the storage of sessions is away"
        except SessionClosed:
            return "the sessions of this server have ended"
        return None
