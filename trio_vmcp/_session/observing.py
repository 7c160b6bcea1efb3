"""What the observers of a factory are told of its sessions (`trio_vmcp.observe`). Without observers nothing is made.

The records of calls are made in `observed_calls.py`.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from datetime import datetime
from typing import Literal

import attrs
import trio

from trio_vmcp._interrupts import EXITS, exit_in, forwarding_exits
from trio_vmcp.errors import StorageError
from trio_vmcp.models import BackendState
from trio_vmcp.observe import (
    BackendStateChanged,
    Event,
    ListChanged,
    Observer,
    OpeningFailed,
    Recovered,
    SessionClosed,
    SessionOpened,
    StorageFailed,
)

__all__ = ["Observers", "SessionReporter"]

logger = logging.getLogger("trio_vmcp.observe")

_MISSING = (BackendState.DEGRADED, BackendState.RECOVERING)


@attrs.define(eq=False)
class Observers:
    """The observers of one factory, in the order in which they were passed. False: there are none."""

    _observers: tuple[Observer, ...] = attrs.field(default=(), repr=False)  # the user's, secrets and all
    _failed: set[int] = attrs.field(factory=set, init=False)  # the places of those that have raised

    def __bool__(self) -> bool:
        return bool(self._observers)

    def all(self) -> tuple[Observer, ...]:
        return self._observers

    def notify(self, event: Event) -> None:
        """Tell all of them; what one raises keeps the record from none of the others.

        Raises:
            KeyboardInterrupt, SystemExit: An observer raised it; every observer was told.
        """
        ends_program: BaseException | None = None
        for place, observer in enumerate(self._observers):
            try:
                observer.on_event(event)
            except EXITS as error:  # raised below
                ends_program = ends_program or error
            except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001  # code of the user's
                found = exit_in(error)
                if isinstance(found, EXITS):
                    ends_program = ends_program or found
                else:
                    self._log_once(place, observer, error)
        if ends_program is not None:
            raise ends_program

    def _log_once(self, place: int, observer: Observer, error: BaseException) -> None:
        if place in self._failed:
            return
        self._failed.add(place)
        # Without the chain: what was being handled at that moment may quote what no log may hold.
        text = "".join(traceback.format_exception(error, chain=False))
        logger.error(
            "observer %s raised (it goes on being told, and this is not logged again): %s", type(observer), text
        )


@attrs.define(eq=False)
class SessionReporter:
    """Tells the observers of one session, from whatever task: nothing that they raise gets into that task.

    Attributes:
        observers: Those of the factory.
        tag: The session's name in records.
        raise_exit: Takes a KeyboardInterrupt or SystemExit that came out of an observer.
    """

    observers: Observers
    tag: str
    raise_exit: Callable[[BaseException], None] = attrs.field(repr=False)
    # The opening is told in the context of the task that asked for it: a tracer finds its current span there. Dropped
    # once the opening is over, since no request's context may live on in a session.
    _opener: Context | None = attrs.field(init=False, repr=False)
    _begun_at: float = attrs.field(init=False, repr=False)
    _opened_at: float | None = attrs.field(default=None, init=False, repr=False)
    _missing_since: dict[str, float] = attrs.field(factory=dict, init=False, repr=False)  # by backend id

    def __attrs_post_init__(self) -> None:
        self._opener = copy_context() if self.observers else None
        self._begun_at = trio.current_time()

    def report_opened(self, backends: int, missing: int, *, restored: bool) -> None:
        now = trio.current_time()
        self._opened_at = now
        seconds = now - self._begun_at
        self._tell_opener(
            lambda: SessionOpened(
                session=self.tag, seconds=seconds, backends=backends, missing=missing, restored=restored
            )
        )

    def report_opening_failed(self, outcome: str) -> None:
        seconds = trio.current_time() - self._begun_at
        self._tell_opener(lambda: OpeningFailed(session=self.tag, outcome=outcome, seconds=seconds))

    def report_closed(self, *, terminated: bool) -> None:
        """The session is CLOSED. If it was never open, and that was not told yet, its opening has failed."""
        if self._opened_at is None:
            self.report_opening_failed("SessionClosed")
        elif self.observers:
            how: Literal["terminated", "suspended"] = "terminated" if terminated else "suspended"
            self._tell(SessionClosed(session=self.tag, how=how, seconds=trio.current_time() - self._opened_at))

    def report_state(self, backend_id: str, old: BackendState, new: BackendState, why: str, since: datetime) -> None:
        """A backend went from one state to another; `session.backends` may show the same for both."""
        if old is new or not self.observers:
            return
        changed = BackendStateChanged(session=self.tag, backend_id=backend_id, old=old, new=new, why=why, since=since)
        self._tell(changed)
        if new in _MISSING and old is not BackendState.STOPPED:  # a backend that a call wakes up was not missing
            self._missing_since.setdefault(backend_id, trio.current_time())
            return
        began = self._missing_since.pop(backend_id, None)
        if new is BackendState.READY and began is not None:
            self._tell(Recovered(session=self.tag, backend_id=backend_id, seconds=trio.current_time() - began))

    def report_lists(self, backend_id: str, kinds: Sequence[Literal["tools", "resources", "prompts"]]) -> None:
        if self.observers:
            for kind in kinds:
                self._tell(ListChanged(session=self.tag, backend_id=backend_id, kind=kind))

    def report_storage(self, operation: str, error: StorageError) -> None:
        if self.observers:
            self._tell(StorageFailed(session=self.tag, operation=operation, detail=str(error)))

    def _tell_opener(self, make: Callable[[], Event]) -> None:
        opener, self._opener = self._opener, None
        if opener is not None:
            opener.run(self._tell, make())

    def _tell(self, event: Event) -> None:
        with forwarding_exits(self.raise_exit):
            self.observers.notify(event)
