"""A connection that takes calls, from the moment it joined until the last call on it has ended."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Protocol

import attrs
import trio

from trio_vmcp._light_event import LightEvent
from trio_vmcp._limits import TimeLimit
from trio_vmcp._nursery import describe_crash
from trio_vmcp._protocol.methods import Kind
from trio_vmcp._session.admission import Call
from trio_vmcp._session.log_levels import LevelTeller
from trio_vmcp._session.session_use import SessionUse
from trio_vmcp.connector import BackendClient
from trio_vmcp.errors import BackendError
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord

__all__ = ["Connection", "NoSubscriber", "Subscriber"]

logger = logging.getLogger("trio_vmcp.session")


class Subscriber(Protocol):
    """Changes what a connection is subscribed to, in tasks of its own."""

    def subscribe(self, uri: str) -> None: ...

    def unsubscribe(self, uri: str) -> None: ...


class NoSubscriber(Subscriber):
    """That of a connection which is over."""

    def subscribe(self, uri: str) -> None:
        pass

    def unsubscribe(self, uri: str) -> None:
        pass


@attrs.define(eq=False)
class Connection:
    """A backend has one at a time that takes calls; those before it may still have calls to end.

    Attributes:
        new_lists: The lists that were fetched through this connection before it joined, and differ from those known.
        reports_writes: Its client has said of a request that it was written. Otherwise a call that is cut off counts as
            possibly executed.
        log_level: Tells the backend which log messages the session wants.
        retired: Set when it takes no more calls; it is closed once the calls on it have ended.
        terminate: Its backend session is known to be gone, so no restore will resume it.
        is_closing: The close has begun.
        closed: Set once it was closed.
        use: Of its backend session, by the calls that have ended.
        used_at: `trio.current_time()` when the latest call ended; before that, when it joined; -inf before that.
    """

    client: BackendClient
    new_lists: tuple[Kind, ...]
    subscriber: Subscriber = attrs.field(repr=False)
    reports_writes: bool
    log_level: LevelTeller = attrs.field(repr=False)
    retired: LightEvent = attrs.field(factory=LightEvent, init=False)
    terminate: bool = attrs.field(default=False, init=False)
    is_closing: bool = attrs.field(default=False, init=False)
    closed: LightEvent = attrs.field(factory=LightEvent, init=False)
    use: SessionUse = attrs.field(default=SessionUse(), init=False)
    used_at: float = attrs.field(default=-math.inf, init=False)
    _record: BackendRecord | None = attrs.field(default=None, init=False)
    _is_unreadable: bool = attrs.field(default=False, init=False)
    _calls: dict[Call, None] = attrs.field(factory=dict, init=False, repr=False)
    # Of `drain`: set once the last call has ended.
    _idle: LightEvent | None = attrs.field(default=None, init=False, repr=False)
    _drain_by: float = attrs.field(default=math.inf, init=False)  # when the calls on it are cut off
    _draining: trio.CancelScope | None = attrs.field(default=None, init=False, repr=False)

    @property
    def in_flight(self) -> int:
        return len(self._calls)

    @property
    def record(self) -> BackendRecord | None:
        """What the metadata keeps of this connection, as last read: a client of the user's may raise any error. None:
        it has done so each time.
        """
        try:
            self._record = self.client.record
        except Exception as crash:  # noqa: BLE001  # logged, once
            level = logging.DEBUG if self._is_unreadable else logging.WARNING
            self._is_unreadable = True
            logger.log(level, "a client raises from its record: %s", describe_crash(crash))
        return self._record

    @property
    def use_so_far(self) -> SessionUse:
        """Of its backend session, by the calls in flight as well, except those that did not run there."""
        if any(not call.session_lost for call in self._calls):
            return attrs.evolve(self.use, is_used=True)
        return self.use

    def note_use(self) -> None:
        """A call ran in its backend session, or may have."""
        if not self.use.is_used:
            self.use = attrs.evolve(self.use, is_used=True)

    def take_loss(self) -> bool:
        """Whether an answer has to say that an earlier backend session is gone. No later answer has to."""
        if not self.use.is_loss_untold:
            return False
        self.use = attrs.evolve(self.use, is_loss_untold=False)
        return True

    def renew_identity(self, identity: Identity) -> None:
        """What the connection does by itself, such as its goodbye, carries the newer token of this identity from now
        on. A client of the user's own has such a method if it wraps one of ours, or by chance.
        """
        renew = getattr(self.client, "renew_identity", None)
        if renew is None:
            return
        try:
            renew(identity)
        except Exception as crash:  # noqa: BLE001  # it must not cost the request that has brought the token
            logger.warning("a client did not take a newer token: %s", describe_crash(crash))

    async def tell_roots_changed(self, identity: Identity | None, limit: TimeLimit) -> None:
        """See `Session.tell_roots_changed`. A failure is logged, and raises nothing."""
        tell = getattr(self.client, "tell_roots_changed", None)  # clients of the stateless era have no such message
        if tell is None:
            return
        failure = ""
        try:
            with trio.move_on_after(limit.seconds) as timeout:
                await tell(identity)
            if timeout.cancelled_caught:
                failure = f"timeout of {limit}"
        except* Exception as crash:  # noqa: BLE001  # a client of the user's may raise anything
            failure = describe_crash(crash)
        if failure:
            logger.warning("a backend was not told that the roots have changed: %s", failure)

    def add_call(self, call: Call) -> None:
        self._calls[call] = None

    def remove_call(self, call: Call) -> None:
        self._calls.pop(call, None)
        self.used_at = trio.current_time()
        if call.written:
            self.note_use()
        if self._idle is not None and not self._calls:
            self._idle.set()

    def retire(self, drain_by: float = math.inf) -> None:
        """Take no more calls. Those on it are cut off at `drain_by`, by `trio.current_time()`."""
        self._drain_by = min(self._drain_by, drain_by)
        if self._draining is not None:
            self._draining.deadline = self._drain_by
        self.retired.set()

    async def drain(self, verdict: Callable[[], BackendError], unwind_timeout: float) -> None:
        """Once retired: wait for the calls on it until they are to be cut off. Then end each with a `verdict` of its
        own and give them `unwind_timeout` s: a call inside a shield must not hold up the rest.
        """
        if not self._calls:
            return
        idle = self._idle = LightEvent()
        with trio.CancelScope(deadline=self._drain_by) as self._draining:
            await idle.wait()
        for call in list(self._calls):
            call.cut_off(verdict())
        with trio.move_on_after(unwind_timeout):
            await idle.wait()
