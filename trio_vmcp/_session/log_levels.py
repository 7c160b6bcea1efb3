"""The level of log messages that a session wants of its backends (`Session.set_log_level`), and which of them know it.

A backend session keeps its level, so each new connection is told: "Log level belongs to the session" (MCP 2025-11-25,
server/utilities/logging). Clients of the stateless era send it along with each request.
"""

from __future__ import annotations

import logging
from typing import Protocol

import attrs
import trio

from trio_vmcp._limits import TimeLimit
from trio_vmcp._nursery import describe_crash, start_clean
from trio_vmcp._protocol.methods import SET_LEVEL, declares
from trio_vmcp._request_note import RequestNote, current_note
from trio_vmcp.connector import BackendClient
from trio_vmcp.errors import BackendError
from trio_vmcp.identity import Identity

__all__ = ["LevelTeller", "LogLevel"]

logger = logging.getLogger("trio_vmcp.session")

PATIENCE = 1.0  # s that a connection waits for its backend to take the level, before calls begin


@attrs.define(eq=False)
class LogLevel:
    """Of one session. `wanted` None: each backend has the level of its own choice."""

    wanted: str | None = None


class _Watched(Protocol):
    """The connection, as far as this needs it."""

    @property
    def is_over(self) -> bool:
        """It takes no more calls."""
        ...


@attrs.define(eq=False)
class LevelTeller:
    """Tells the backend of one connection. One request at a time: two on their way at once may arrive in either order,
    and the older level would stay.
    """

    _level: LogLevel
    _client: BackendClient = attrs.field(repr=False)
    _backend_id: str
    _connection: _Watched | None = attrs.field(repr=False)  # None: it is closed
    _limit: TimeLimit
    _told: str | None = attrs.field(default=None, init=False)  # the backend has this level
    _line: trio.Lock | None = attrs.field(default=None, init=False, repr=False)  # made when it is needed: few are
    _started: trio.Event | None = attrs.field(
        default=None, init=False, repr=False
    )  # set when `start` has done its work

    def start(self, nursery: trio.Nursery, identity: Identity | None) -> None:
        """`tell` in the nursery of the connection, if the session wants another level than the backend has."""
        if self._level.wanted not in (None, self._told):
            self._started = trio.Event()
            start_clean(nursery, self._tell_and_report, identity, self._started)

    async def wait_told(self) -> None:
        """Wait for what was started: the first call is then logged as the session wants. A backend that does not answer
        is waited for no longer than PATIENCE.
        """
        if self._started is not None:
            with trio.move_on_after(PATIENCE):
                await self._started.wait()

    def close(self) -> None:
        """The connection is closed."""
        self._connection = None

    async def _tell_and_report(self, identity: Identity | None, done: trio.Event) -> None:
        try:
            await self.tell(identity)
        finally:
            done.set()

    async def tell(self, identity: Identity | None) -> None:
        """Set the level that the session wants, if the backend logs. A failure is logged, and raises nothing.

        Call this in a task of its own, since it changes the context of the task.

        Args:
            identity: The request carries the credentials of this identity.
        """
        note = RequestNote(outer=current_note.get())
        current_note.set(note)
        wanted, failure = self._level.wanted, ""
        self._line = line = self._line or trio.Lock()
        try:
            with trio.move_on_after(self._limit.seconds) as timeout:
                async with line:
                    await self._set(identity)
            if timeout.cancelled_caught:
                failure = f"did not answer {SET_LEVEL!r} within {self._limit}"
        except* BackendError as refused:
            failure = "; ".join(error.detail for error in refused.exceptions if isinstance(error, BackendError))
        except* Exception as crash:  # noqa: BLE001  # a client of the user's may raise anything
            failure = f"raised {describe_crash(crash)}"
        if failure and self._connection is not None and not self._connection.is_over:
            # A new connection, which has yet to come if the session is lost, is told in its turn.
            level = logging.DEBUG if note.session_lost else logging.WARNING
            logger.log(
                level, "backend %r: its log level could not be set to %r: it %s", self._backend_id, wanted, failure
            )

    async def _set(self, identity: Identity | None) -> None:
        wanted = self._level.wanted
        if wanted is None or wanted == self._told or not declares(self._client.server_capabilities, ("logging",)):
            return
        self._told = None  # until there is an answer, the backend may have either level
        await self._client.request(
            SET_LEVEL, {"level": wanted}, identity=identity, timeout=self._limit.seconds, on_progress=None
        )
        self._told = wanted
