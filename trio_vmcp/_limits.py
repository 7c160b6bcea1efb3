"""Which time limit holds for a backend, and the knob that it comes from: an error names that knob. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

from trio_vmcp.models import Backend
from trio_vmcp.settings import FactorySettings

__all__ = ["OWN_TIMEOUT", "SLOW_HANDSHAKE", "TimeLimit", "init_limit", "progress_limit", "request_limit"]

OWN_TIMEOUT = "timeout="  # the knob of one call
# s. If connecting takes longer, the backend is far away, and asking for all lists at once saves round trips. Nearby
# that would save nothing and use more connections.
SLOW_HANDSHAKE = 0.02


class TimeLimit(NamedTuple):
    """s that something may take, and the knob that says so. A tuple: some calls make one."""

    seconds: float
    knob: str

    def __str__(self) -> str:
        return f"{self.seconds} s ({self.knob})"


def init_limit(backend: Backend, settings: FactorySettings) -> TimeLimit:
    """The limit of one attempt to connect: probe, handshake and lists."""
    if backend.init_timeout is None:
        return TimeLimit(settings.backend_init_timeout, "backend_init_timeout")
    return TimeLimit(backend.init_timeout, "Backend.init_timeout")


def request_limit(backend: Backend | None, settings: FactorySettings) -> TimeLimit:
    """The limit of a call that has no `timeout=`. `backend` None: it is not configured."""
    if backend is None or backend.request_timeout is None:
        return TimeLimit(settings.request_timeout, "request_timeout")
    return TimeLimit(backend.request_timeout, "Backend.request_timeout")


def progress_limit(backend: Backend | None, settings: FactorySettings) -> TimeLimit | None:
    """The time that a backend may let pass without progress of a call; None: any."""
    if backend is None or backend.progress_timeout is None:
        limit = TimeLimit(settings.progress_timeout, "progress_timeout")
    else:
        limit = TimeLimit(backend.progress_timeout, "Backend.progress_timeout")
    return limit if limit.seconds < math.inf else None
