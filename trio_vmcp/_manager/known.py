"""What a manager knows of one session."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Literal, TypeAlias

import attrs
import trio

from trio_vmcp._manager.places import Principal, principal_of
from trio_vmcp._session.life import Cause
from trio_vmcp._session.log_levels import LogLevel
from trio_vmcp._session.owner import SessionOwner
from trio_vmcp.connector import ClientHandlers, PreferredEra
from trio_vmcp.identity import Identity, same_principal
from trio_vmcp.metadata import BackendRecord
from trio_vmcp.models import Backend

__all__ = ["Asleep", "Ending", "Known", "Live", "Opening", "State"]


@attrs.define(eq=False)
class Opening:
    """It is being made, restored or woken, in a task of the manager. Any number of callers wait for the outcome.

    Attributes:
        done: Set when the outcome is known.
        scope: Of that task.
        error: It failed; None while `done` is not set, and afterwards: the session is live.
    """

    done: trio.Event = attrs.field(factory=trio.Event, init=False)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    error: Exception | None = attrs.field(default=None, init=False)


@attrs.frozen(eq=False)
class Live:
    """It is open here, or closing."""

    owner: SessionOwner


@attrs.define(eq=False)
class Asleep:
    """It hibernates: only its row is left, and the backends' sessions that the row names.

    Attributes:
        mark: `SessionMetadata.used_at` in the row: with another one, the session was used on another instance since.
        used_at: `trio.current_time()` when the session was last used here.
        touch_at: The row is to be touched at this time.
    """

    mark: datetime
    used_at: float
    touch_at: float


@attrs.define(eq=False)
class Ending:
    """It has ended for good, but its row may still be in the storage. The manager serves the id no more.

    Attributes:
        mark: As in `Asleep`: only a row with this mark is ended. None: any.
        records: The backends' sessions that the row names, as last read: they end with it. Another instance may have
            begun some of them after the session had ended here.
        count: Which count it adds to, once the first attempt has found that it was not another instance's.
        tried: Set when the first attempt is over.
        delay: s until the next attempt; 0: the first one is under way.
    """

    mark: datetime | None
    count: Literal["terminated", "expired"] | None = None
    delay: float = 0.0
    records: tuple[BackendRecord, ...] = attrs.field(default=(), init=False, repr=False)
    tried: trio.Event = attrs.field(factory=trio.Event, init=False)
    _taken: set[tuple[str, str | None]] = attrs.field(factory=set, init=False, repr=False)

    def take_records(self) -> list[BackendRecord]:
        """Those whose backends were not told yet: an attempt to delete the row may fail after its goodbyes."""
        records = [record for record in self.records if (record.backend_id, record.session_id) not in self._taken]
        self._taken.update((record.backend_id, record.session_id) for record in records)
        return records


State: TypeAlias = Opening | Live | Asleep | Ending


@attrs.define(eq=False)
class Known:
    """One session that the manager has opened or restored, from then until its end.

    Attributes:
        session_id: A bearer token.
        identity: What the session is bound to; verified.
        born_at: `trio.current_time()` at which `created_at` was, as far as the wall clock could tell when the session
            was made or restored here; None: it was not yet.
        backends: Those that it was opened, restored or last changed with.
        generation: Of the configuration that `backends` are from.
        handlers, prefer_era: What it was opened with, and wakes with.
        log_level: What it wakes with: what its callers had set when it hibernated.
        checked_at: `trio.current_time()` when the storage was last asked whether the session was terminated elsewhere.
        due_at: For the agenda.
        tag: Its name in notices of the storage; None: the storage gives none.
    """

    session_id: str = attrs.field(repr=False)
    identity: Identity | None = attrs.field(repr=False)
    state: State
    handlers: ClientHandlers | None = attrs.field(default=None, repr=False)
    prefer_era: PreferredEra | None = None
    born_at: float | None = attrs.field(default=None, kw_only=True)
    log_level: LogLevel = attrs.field(factory=LogLevel, kw_only=True)
    backends: tuple[Backend, ...] = attrs.field(default=(), kw_only=True, repr=False)
    generation: int = attrs.field(default=0, kw_only=True)
    checked_at: float = attrs.field(default=-math.inf, init=False)
    due_at: float = attrs.field(default=math.inf, init=False)
    tag: str | None = attrs.field(default=None, init=False, repr=False)

    @property
    def principal(self) -> Principal:
        return principal_of(self.identity)

    @property
    def is_ending(self) -> bool:
        """It gets no further requests, and will not come back."""
        match self.state:
            case Live(owner):
                return owner.life.is_closing and owner.life.cause is not Cause.HIBERNATION
            case state:
                return isinstance(state, Ending)

    def is_for(self, caller: Identity | None) -> bool:
        """Whether the manager serves it to this caller."""
        return same_principal(caller, self.identity) and not isinstance(self.state, Ending)
