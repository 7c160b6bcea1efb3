"""How long an idle connection is used again: what the servers of one origin say about it, and what they do.

A server closes a connection that was idle for some time, and a request that is written meanwhile is lost (RFC 9112
§9.5). Many servers name that time in `Keep-Alive: timeout=` (RFC 2068 §19.7.1.1). A client must stop earlier, since the
server counts from when it has sent its response, and until it has read the next request.
"""

from __future__ import annotations

import math
import re

import attrs

__all__ = ["ASSUMED_EXPIRY", "LEAST_FOUND", "KeepAlive"]

ASSUMED = 5.0  # s; common servers (uvicorn, hypercorn, Node, Apache) close an idle connection after this time
MOST = 60.0  # s; routers and balancers on the way forget idle connections, whatever the server says
MARGIN = 1.0  # s
LEAST_FOUND = 0.5  # s; no server has an idle timeout under this: the connection ended for another reason
BELIEVED = 600.0  # s; servers are configured anew

_TIMEOUT = re.compile(rb'(?:^|[,;\s])timeout\s*=\s*"?(\d{1,9})(?!\d)', re.IGNORECASE)


def _expiry_for(timeout: float) -> float:
    """s that a connection is used again, if its server closes it after `timeout` s."""
    return timeout - min(MARGIN, timeout / 2)


ASSUMED_EXPIRY = _expiry_for(ASSUMED)  # s, for an origin of which nothing is known


@attrs.define(eq=False)
class KeepAlive:
    """What is known about the idle connections of one origin. Pure: the time is passed in."""

    _told: float = attrs.field(default=ASSUMED, init=False)  # s
    _header: bytes = attrs.field(default=b"", init=False)  # the last one
    _found: float = attrs.field(default=math.inf, init=False)  # s, the age at which an idle connection had ended
    _found_at: float = attrs.field(default=-math.inf, init=False)
    _survived: float = attrs.field(default=0.0, init=False)  # s, the greatest age of one that was used again

    def expiry(self, now: float) -> float:
        """s from the end of its last response on that a connection is used again."""
        if now - self._found_at > BELIEVED:
            self._found = math.inf
        return _expiry_for(min(self._told, self._found, MOST))

    def note_header(self, value: bytes) -> None:
        """A response had the header `Keep-Alive`. The last one holds; one without a timeout says nothing."""
        if value != self._header:
            self._header = value
            named = _TIMEOUT.search(value)
            if named is not None:
                self._told = float(named[1])

    def note_survived(self, age: float) -> None:
        """A connection that had been idle for `age` s was used again, and answered."""
        self._survived = max(self._survived, age)

    def note_ended(self, age: float, now: float) -> None:
        """A connection that had been idle for `age` s was found closed. If others were idle for longer and answered,
        then this once it was no timeout, but a restart, say.
        """
        if age < LEAST_FOUND:
            return
        if age < self._survived:
            self._survived = 0.0
        else:
            self._found, self._found_at = min(self._found, age), now
