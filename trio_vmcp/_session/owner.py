"""The owner of one session: its task runs the session from OPENING to CLOSED, and it alone closes.

The owner task is shielded: a cancelled opener or closer tears nothing down. A close is requested (`request_close`), and
the owner goes through the phases of `life.py` in one order:

- DRAINING: no call is admitted; calls in flight have `drain_timeout` s (`math.inf`: for ever) and are then cut off.
- PARTING: every connection is closed and the row is saved or deleted, all within `teardown_timeout` s.
- CLOSED: after the session's nursery was cancelled and has ended. Trio cannot end a task that shields itself, such as a
  handler of the user's. If one is left, the session is CLOSED `MOST_LATE` s later all the same, and the nursery goes on
  waiting; so does the factory's, when the factory is left.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

import attrs
import trio

from trio_vmcp._interrupts import EXITS, forwarding_exits
from trio_vmcp._nursery import describe_crash, start_task
from trio_vmcp._request_note import is_inside_handler_of
from trio_vmcp._session.admission import Admission
from trio_vmcp._session.calls import Calls
from trio_vmcp._session.change_feed import ChangeFeed
from trio_vmcp._session.connecting import SessionParts
from trio_vmcp._session.directory import Directory, new_directory
from trio_vmcp._session.directory_updates import DirectoryUpdates
from trio_vmcp._session.life import Cause, Life, Phase
from trio_vmcp._session.listing import Listing
from trio_vmcp._session.log_levels import LogLevel
from trio_vmcp._session.member import Change, Member, new_member
from trio_vmcp._session.members import Membership
from trio_vmcp._session.moves import SubscriptionMoves
from trio_vmcp._session.observed_calls import ObservedCalls
from trio_vmcp._session.observing import SessionReporter
from trio_vmcp._session.reconnects import Endpoints
from trio_vmcp._session.row import RowContents, SessionRow
from trio_vmcp._session.shared_lists import SharedLists
from trio_vmcp._session.stopping import asked_at_of
from trio_vmcp.connector import BackendConnector
from trio_vmcp.errors import SessionClosed, VmcpError, session_tag
from trio_vmcp.identity import Identity, same_principal
from trio_vmcp.metadata import checked_attributes
from trio_vmcp.models import Backend, SessionChange
from trio_vmcp.settings import FactorySettings

__all__ = ["SessionOwner"]

logger: logging.Logger = logging.getLogger("trio_vmcp.session")

MOST_LATE = 1.0  # s, for tasks of the session to end after its connections were closed and the tasks cancelled


@attrs.define(eq=False)
class SessionOwner:
    """One session: what it is made of, and its life.

    Attributes:
        row: The session's metadata in the storage.
        membership: The backends.
        directory: What they offer, and under which names.
        life: Which phase the session is in.
        admission: The calls in flight.
        calls: What callers ask of the backends.
        feed: The subscribers of `Session.changes()`.
        services: The session's nursery; None while no nursery runs or it takes no more tasks.
        reporter: Tells the factory's observers.
        raise_exit: Takes a KeyboardInterrupt or SystemExit that came out of code of the user's: it comes out of the
            factory.
        log_level: Which log messages callers want. A session that woke goes on with that of before.
        check_backend: Raises a ValueError for a backend that no connector is for.
        on_closed: Is called once, when the session is CLOSED.
    """

    _members: dict[str, Member] = attrs.field(alias="members", repr=False)
    row: SessionRow = attrs.field(repr=False)
    identity: Identity | None = attrs.field(repr=False)
    _connector: BackendConnector = attrs.field(alias="connector", repr=False)
    settings: FactorySettings = attrs.field(repr=False)
    _endpoints: Endpoints = attrs.field(alias="endpoints", repr=False)
    reporter: SessionReporter = attrs.field(repr=False)
    raise_exit: Callable[[BaseException], None] = attrs.field(repr=False)
    _check_backend: Callable[[Backend], None] = attrs.field(alias="check_backend", repr=False)
    _shared: SharedLists = attrs.field(alias="shared", repr=False)
    log_level: LogLevel = attrs.field(factory=LogLevel, repr=False)

    life: Life = attrs.field(factory=Life, init=False, repr=False)
    membership: Membership = attrs.field(init=False, repr=False)
    directory: Directory = attrs.field(init=False, repr=False)
    admission: Admission = attrs.field(init=False, repr=False)
    calls: Calls = attrs.field(init=False, repr=False)
    _moves: SubscriptionMoves = attrs.field(init=False, repr=False)
    _updates: DirectoryUpdates = attrs.field(init=False, repr=False)
    feed: ChangeFeed = attrs.field(factory=ChangeFeed, init=False, repr=False)
    services: trio.Nursery | None = attrs.field(default=None, init=False, repr=False)
    on_closed: Callable[[], None] | None = attrs.field(default=None, init=False, repr=False)

    _opening: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    # The close that was requested terminates the session if no other instance has it: the row tells, at the end.
    _terminates_own: bool = attrs.field(default=False, init=False, repr=False)
    _opening_error: VmcpError | None = attrs.field(default=None, init=False, repr=False)
    _drain: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _drain_limit: float = attrs.field(default=math.inf, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.admission = Admission(self.life)
        self.membership = Membership(
            self._members,
            SessionParts(
                self._connector,
                self.settings,
                self.row,
                self.life,
                self,
                self.reporter,
                self.raise_exit,
                self.log_level,
                self._shared,
            ),
        )
        self.directory = new_directory(self.row.bindings, self.settings, self.row.foreign_names, self._shared)
        parts = (self._members, self.directory, self.admission, self.identity, self.row.note_use, self.log_level)
        self.calls = ObservedCalls(*parts, reporter=self.reporter) if self.reporter.observers else Calls(*parts)
        self._moves = SubscriptionMoves(self._members, self.directory)
        self._updates = DirectoryUpdates(self._members, self.directory, self._tell_change)

    @property
    def id(self) -> str:
        return self.row.metadata.session_id

    def renew_identity(self, identity: Identity | None) -> None:
        """The principal that the session is bound to has come back, perhaps with a newer token: handshakes, lists,
        streams and goodbyes carry that one from now on. The older one may expire long before the session ends.
        """
        if identity is None or self.identity is None or identity.token == self.identity.token:
            return
        self.identity = identity
        for member in self._members.values():
            if same_principal(member.identity, identity):
                member.renew_identity(identity)

    # --- members that come and go

    @trio.lowlevel.enable_ki_protection
    async def add_backend(self, backend: Backend, caller: Identity | None) -> None:
        """
        Args:
            caller: The backend is connected with this identity's credentials; None: with the opener's.
        """
        await self._require_open()
        self._check_backend(backend)
        identity = self.identity if caller is None else caller
        member = new_member(backend.id, backend, self.settings, self._endpoints, identity=identity)
        await self.membership.add(member, backend)
        await self._updates.wait()

    @trio.lowlevel.enable_ki_protection
    async def remove_backend(self, backend_id: str, *, drain_timeout: float | None = None) -> None:
        if drain_timeout is not None and not drain_timeout >= 0:
            raise ValueError(f"drain_timeout={drain_timeout!r} is not 0 s or more")
        await self._require_open()
        member = self.retire_backend(backend_id, drain_timeout)
        if self.admission.holds_current_task():
            await (
                trio.lowlevel.checkpoint()
            )  # this task is inside a call that the removal waits for, so waiting would deadlock
        else:
            await member.gone.wait()
            await self._updates.wait()

    def retire_backend(self, backend_id: str, drain_timeout: float | None = None) -> Member:
        """`remove_backend` without waiting for the calls that the backend has.

        Raises:
            ValueError: There is none of this id.
        """
        return self.membership.remove(
            backend_id, self.settings.drain_timeout if drain_timeout is None else drain_timeout
        )

    @trio.lowlevel.enable_ki_protection
    async def set_attributes(self, attributes: Mapping[str, str]) -> None:
        kept = checked_attributes(attributes)
        await self._require_open()
        await self.row.set_attributes(kept)

    async def _require_open(self) -> None:
        if self.life.is_closing:
            # If the cancel that closed the session also cancels this caller, raise Cancelled and not SessionClosed.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise SessionClosed("the session is closing or closed: its backends stay as they are")

    # --- the owner task

    async def serve(self) -> None:
        """The session's life. Run once, in the factory's nursery."""
        with trio.CancelScope(shield=True):
            try:
                async with trio.open_nursery() as watch:
                    async with trio.open_nursery() as services:
                        self.services = services
                        await self._open(services)
                        await self.life.reached(Phase.DRAINING)
                        await self._shut_down()
                        self.services = None  # a nursery that ends takes no new subscriber's task
                        services.cancel_scope.cancel(reason="session closed")
                        start_task(watch, self._close_late)
                    watch.cancel_scope.cancel()
            except* Exception as bug:  # a bug of ours must not end other sessions
                logger.error("%s crashed: %s", session_tag(self.id), describe_crash(bug), exc_info=bug)
                self._opening_error = self._opening_error or SessionClosed("the session crashed: see the log")
            finally:
                self._end_life()

    async def _close_late(self) -> None:
        """A task that shields itself holds the nursery up, and must not hold the closers up as well. All other tasks
        have ended by `life.close_by`.
        """
        await trio.sleep_until(self.life.close_by + MOST_LATE)
        logger.warning(
            "%s: closed, but a task of it that shields itself from cancellation goes on", session_tag(self.id)
        )
        self._end_life()

    def _end_life(self) -> None:
        if self.life.phase is not Phase.CLOSED:
            self.life.to(Phase.CLOSED)
            self.reporter.report_closed(terminated=self.life.terminates)
            self.admission.discard_calls()
            self.membership.close()
            self._updates.close()
            self.services = None
            on_closed, self.on_closed = self.on_closed, None  # it may hold this owner: no cycle is to be left
            if on_closed is not None:
                on_closed()

    async def wait_open(self) -> None:
        """Wait until the opening has ended.

        Raises:
            NoBackends, SessionExists, StorageError: It failed, and nothing of it is left.
            SessionClosed: It was closed meanwhile.
        """
        await self.life.reached(Phase.OPEN)
        if self.life.is_closing:
            await self.life.reached(Phase.CLOSED)
        if self._opening_error is not None:
            raise self._opening_error

    def request_close(
        self,
        *,
        terminate: bool,
        everywhere: bool = False,
        drain_timeout: float | None = None,
        cause: Cause = Cause.LEFT,
    ) -> None:
        """Ask the owner to close: from now on nothing is admitted. The first request decides whether it terminates.

        Args:
            everywhere: It terminates also if another instance has the session by now. Only a request for the end of
                this very session does: a copy that is idle, or whose factory is left, must not end one that is in use.
        """
        limit = self.settings.drain_timeout if drain_timeout is None else drain_timeout
        if not limit >= 0:
            raise ValueError(f"drain_timeout={drain_timeout!r} is not 0 s or more")
        is_opening = self.life.phase is Phase.OPENING
        if not self.life.is_closing:
            # A failed or interrupted restore leaves the stored row untouched.
            terminates = terminate and not (is_opening and self.row.restored)
            self.life.cause = cause
            self.life.terminates = terminates and everywhere
            self._terminates_own = terminates and not everywhere
        elif terminate and everywhere and self._terminates_own:
            self.life.terminates, self._terminates_own, self.life.cause = True, False, cause
        if is_opening:
            self._opening.cancel(reason="session closed while opening")
        self.admission.refuse()
        self.shorten_drain(limit)

    def shorten_drain(self, limit: float) -> None:
        """Calls in flight have at most `limit` s from now."""
        deadline = trio.current_time() + limit
        if deadline < self._drain.deadline:
            self._drain.deadline, self._drain_limit = deadline, limit

    async def wait_draining(self) -> None:
        """Wait until the session is DRAINING, or CLOSED."""
        await self.life.reached(Phase.DRAINING)

    async def wait_closed(self) -> None:
        """Wait until the session is CLOSED."""
        await self.life.reached(Phase.CLOSED)

    @trio.lowlevel.enable_ki_protection
    async def close(self, *, terminate: bool, drain_timeout: float | None) -> None:
        self.request_close(terminate=terminate, everywhere=True, drain_timeout=drain_timeout, cause=Cause.ASKED)
        if self.admission.holds_current_task() or is_inside_handler_of(self.id):
            # Called from inside a call or handler of this session: the close waits for that call or cancels that
            # handler, so it must not wait for the close.
            await trio.lowlevel.checkpoint()
        else:
            await self.life.reached(Phase.CLOSED)  # a cancelled waiter does not undo the close

    async def _open(self, services: trio.Nursery) -> None:
        try:
            with self._opening:
                start_task(services, self.membership.connect_all, services)
                with trio.move_on_after(self.settings.session_init_timeout):
                    await self.membership.all_reported.wait()
                self.membership.note_opening_over()
                await self._updates.open()
                await self.row.write(self._row_contents(), marks=True)
            if self._opening.cancelled_caught:
                raise SessionClosed("the session was closed while it was opening")
        except (VmcpError, *EXITS) as error:
            if isinstance(error, VmcpError):
                self._opening_error = error
            else:
                self.raise_exit(error)
                self._opening_error = SessionClosed(f"the opening was ended by {type(error).__name__}")
            self.reporter.report_opening_failed(type(error).__name__)
            self.request_close(terminate=True, drain_timeout=0)
            # The session was handed to no caller: terminate even if a suspend was requested, unless the row existed
            # before.
            self.life.terminates, self._terminates_own = False, not self.row.restored
        if not self.life.is_closing:  # else the opening failed, or a close was requested after its last checkpoint
            self.calls.last_call_at = trio.current_time()
            start_task(services, self._keep_row)
            start_task(services, self._close_when_idle)
            self.life.to(Phase.OPEN)
            members = self._members.values()
            missing = sum(member.failure is not None for member in members)
            self.reporter.report_opened(len(members), missing, restored=self.row.restored)

    async def _shut_down(self) -> None:
        """Drain, cut off, close the connections: at most the drain plus `teardown_timeout`."""
        self.membership.cancel_connecting()
        with self._drain:
            await self.admission.drained.wait()
        self.admission.cut_off(f"the session closed under this call, after drain_timeout={self._drain_limit:g} s")
        budget = self.settings.teardown_timeout
        self.life.close_by = trio.current_time() + budget
        self.life.to(Phase.PARTING)
        self.membership.cancel_replacing()
        with trio.move_on_after(budget):
            # A caller that shields itself from the cut-off would otherwise use up the time for the DELETEs.
            with trio.move_on_after(budget / 2):
                await self.admission.drained.wait()
            await self.row.stop_keeping()
            if self._terminates_own:
                await self._terminate_own(budget / 4)
            elif not self.life.terminates:
                # Save first: closing a connection DELETEs every backend session that the row does not name.
                with forwarding_exits(self.raise_exit), trio.move_on_after(budget / 4):
                    await self.row.write_last(self._row_contents)
            async with trio.open_nursery() as goodbyes:
                start_task(goodbyes, self.membership.close_connections)
                if self.life.terminates:
                    start_task(goodbyes, self._discard_row)

    async def _terminate_own(self, timeout: float) -> None:
        """Terminate, unless another instance has the session by now: then its row and what that names stay."""
        # The row first: only the storage can tell, and once it is deleted no other instance can take the session over.
        with forwarding_exits(self.raise_exit), trio.move_on_after(timeout):
            self.life.terminates = await self._discard_own()
            return
        # A storage without an answer costs no backend its goodbye.
        self.life.terminates = not self.row.is_needed_elsewhere(self.calls.last_call_at, is_idle=self._is_idle)

    @property
    def _is_idle(self) -> bool:
        return self.life.cause is Cause.IDLE

    async def _discard_own(self) -> bool:
        return await self.row.discard_own(self.calls.last_call_at, is_idle=self._is_idle)

    async def _keep_row(self) -> None:
        with forwarding_exits(self.raise_exit):
            await self.row.keep(
                self._row_contents,
                self._terminated_elsewhere,
                idle_timeout=self.settings.idle_timeout,
                used_at=self._used_at,
            )

    def _used_at(self) -> float:
        return trio.current_time() if self.admission.in_flight else self.calls.last_call_at

    async def _discard_row(self) -> None:
        with forwarding_exits(self.raise_exit):
            if self._terminates_own:
                await self._discard_own()
            else:
                await self.row.discard()

    async def _close_when_idle(self) -> None:
        while True:
            idle_at = max(self._used_at(), self.row.marks.overruled_at) + self.settings.idle_timeout
            if idle_at <= trio.current_time():
                break
            await trio.sleep_until(idle_at)
        logger.info("%s: no call for %s s (idle_timeout)", session_tag(self.id), self.settings.idle_timeout)
        self.request_close(terminate=True, cause=Cause.IDLE)

    def _terminated_elsewhere(self) -> None:
        self.request_close(terminate=True, everywhere=True, cause=Cause.ELSEWHERE)

    # --- what a manager of sessions asks for

    def note_use(self) -> None:
        """The session was asked for: its clocks move as by a call."""
        self.calls.last_call_at = trio.current_time()
        self.row.note_use(self.calls.last_call_at)

    async def wait_advertised(self) -> None:
        """Wait until what is advertised is up to date with the backends."""
        await self._updates.wait()

    @property
    def worked_at(self) -> float:
        """`trio.current_time()` when the latest call, handler or reader of changes ended; now while there is one of
        them, or a subscription to a resource.
        """
        now, members = trio.current_time(), self._members.values()
        if self.admission.in_flight or any(member.subscriptions for member in members):
            return now
        asked_at = (asked_at_of(connection) for member in members for connection in member.connections)
        return max(self.calls.last_call_at, self.feed.read_at, *asked_at)

    # --- what the membership tells

    def member_changed(self, member: Member, changes: Sequence[Change]) -> None:
        """Advertise what it lists now, write the row, tell subscribers."""
        self._updates.note(member, changes, self.services)

    def _tell_change(self, member: Member, changes: Sequence[Change]) -> None:
        self.row.note_change()
        for kind in changes:
            self.feed.publish(SessionChange(kind, member.backend_id))
        if not member.is_removed:
            self.reporter.report_lists(member.backend_id, [kind for kind in changes if kind != "backend"])
        if "resources" in changes and self.services is not None:
            self._moves.start(self.services, member)

    def check_names(self, member: Member, listing: Listing) -> None:
        self.directory.check_names(member.backend_id, member.listing, listing)

    def resource_updated(self, member: Member, uri: str) -> None:
        self.feed.publish(SessionChange("resource_updated", member.backend_id, uri))

    def _row_contents(self) -> RowContents:
        return self.membership.records, self.directory.bindings
