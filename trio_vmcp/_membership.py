"""The backends of one session: connected side by side, each behind a boundary of its own, let go all at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import attrs
import trio

from trio_vmcp._listing import list_backend
from trio_vmcp._member import Member
from trio_vmcp._nursery import describe_crash, start_clean
from trio_vmcp._outbound import Outbound, outbound
from trio_vmcp._stored import Stored
from trio_vmcp.client.interface import BackendClient, BackendConnector
from trio_vmcp.errors import BackendError, NoBackends, session_tag
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord
from trio_vmcp.models import JSON, Backend, BackendFailure, FailureReason
from trio_vmcp.settings import FactorySettings

__all__ = ["Membership"]

logger = logging.getLogger("trio_vmcp.session")


# s. Two answers that take longer come from afar: then round trips are what an opening waits for, and all lists at once
# save some. Nearby they would cost three connections more, and gain nothing.
SLOW_HANDSHAKE = 0.02


@attrs.define(eq=False)
class Membership:
    """Who belongs to a session, and who of them is connected.

    Attributes:
        members: By backend id, in configured order. Nobody leaves because they are missing.
        all_settled: Every backend has connected or failed.
    """

    members: Mapping[str, Member]
    _connector: BackendConnector
    _identity: Identity | None
    _row: Stored
    _settings: FactorySettings
    _on_change: Callable[[Member], None]  # a member joined after the opening, or was lost
    all_settled: trio.Event = attrs.field(factory=trio.Event, init=False)
    _unsettled: int = attrs.field(init=False)
    _opening: bool = attrs.field(default=True, init=False)
    _stopped: bool = attrs.field(default=False, init=False)
    _terminating: bool = attrs.field(default=False, init=False)
    _connecting: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    def __attrs_post_init__(self) -> None:
        self._unsettled = sum(member.backend is not None for member in self.members.values())
        if not self._unsettled:
            self.all_settled.set()

    @property
    def failures(self) -> tuple[BackendFailure, ...]:
        return tuple(member.failure for member in self.members.values() if member.failure is not None)

    @property
    def records(self) -> tuple[BackendRecord, ...]:
        return tuple(member.record for member in self.members.values() if member.record is not None)

    async def connect_all(self, services: trio.Nursery) -> None:
        """Hand the slots out, one task for all of them: their order is the caller's, and Trio starts tasks in any."""
        slots = trio.CapacityLimiter(self._settings.max_backend_init_concurrency)
        with self._connecting:
            for member in self.members.values():
                if member.backend is not None:
                    await slots.acquire_on_behalf_of(member)
                    services.start_soon(self._serve, member, member.backend, slots)

    def end_opening(self) -> None:
        """The opening is over: who is not here is missing, for a reason. Who comes later is a change.

        Raises:
            NoBackends: Fewer than `min_backends` are connected.
        """
        self._opening = False
        for member in self.members.values():
            if member.backend is None:
                member.fail(FailureReason.UNREACHABLE, "was not among the backends that the session was restored with")
            elif member.client is None and member.failure is None:
                limit = self._settings.session_init_timeout
                detail = f"is still connecting after {limit} s (session_init_timeout)"
                self._warn(member.fail(FailureReason.PENDING, detail))
        connected = sum(member.client is not None for member in self.members.values())
        if connected < self._settings.min_backends:
            raise NoBackends(self.failures, connected, self._settings.min_backends)

    def stop_connecting(self) -> None:
        """Nobody joins any more."""
        self._stopped = True
        self._connecting.cancel(reason="session closed")
        for member in self.members.values():
            member.attempt.cancel(reason="session closed")

    async def say_goodbye(self, *, terminate: bool) -> None:
        """Let every connection go, side by side. Bounded by whoever calls; raises for nobody."""
        self._terminating = terminate
        async with trio.open_nursery() as goodbyes:
            for member in self.members.values():
                if member.client is not None:
                    goodbyes.start_soon(self._part, member, member.client)

    async def _serve(self, member: Member, backend: Backend, slots: trio.CapacityLimiter) -> None:
        """One backend's task: connect, then hold the nursery that its client's services run in."""
        detail = ""
        try:
            async with trio.open_nursery() as nursery:
                try:
                    await self._connect(member, backend, nursery)
                finally:
                    slots.release_on_behalf_of(member)
                    self._settle(member)
                if member.client is None:
                    nursery.cancel_scope.cancel()  # its goodbyes are shielded, and bounded
                else:
                    await trio.sleep_forever()
        except* Exception as crash:  # noqa: BLE001  # the boundary of one backend: the others must not notice
            # `except Exception` would not do: a nursery's group may mix a crash with Cancelled, and that slips past it.
            detail = f"crashed in its connection: {describe_crash(crash)}"
        if detail:
            await self._lose(member, detail)

    async def _connect(self, member: Member, backend: Backend, nursery: trio.Nursery) -> None:
        """Connect and list. At the end the member has joined, or has a failure."""
        member.begun_at = trio.current_time()
        limit = self._settings.backend_init_timeout
        member.attempt.deadline = member.begun_at + limit
        note = Outbound()
        outbound.set(note)  # in this task's own context
        client = None
        try:
            with member.attempt:
                client = await self._connector(
                    backend, identity=self._identity, resume=member.resume, nursery=nursery, events=_no_events
                )
                slow = trio.current_time() - member.begun_at > SLOW_HANDSHAKE
                listing = await list_backend(
                    backend,
                    client,
                    identity=self._identity,
                    settings=self._settings,
                    overlap=slow,
                )
                if not self._stopped:  # else it got ready without noticing that it was given up
                    member.joined(client, listing)
                    return
        except BackendError as error:
            failure = member.fail_with(error)
        except Exception as crash:  # noqa: BLE001  # a connector of the user's may raise anything
            failure = member.fail(FailureReason.UNREACHABLE, f"could not be connected: {describe_crash(crash)}")
        else:  # only a cancelled attempt comes here
            step = f"did not answer {note.method!r}" if note.method else "was not ready"
            failure = member.fail(FailureReason.TIMEOUT, f"{step} within {limit} s (backend_init_timeout)")
        finally:  # also where a crash beside us cancelled this nursery
            if client is not None and member.client is None:  # connected, but not listed
                start_clean(nursery, self._let_go, member, client)
        if self._stopped:
            member.fail(FailureReason.PENDING, "was still connecting when the session closed")
        else:
            self._warn(failure)

    def _settle(self, member: Member) -> None:
        self._unsettled -= 1
        if not self._unsettled:
            self.all_settled.set()
        if member.client is not None and not self._opening and not self._stopped:
            self._on_change(member)

    async def _lose(self, member: Member, detail: str) -> None:
        client, member.client = member.client, None
        self._warn(member.fail(FailureReason.UNREACHABLE, detail))
        if client is not None:
            self._on_change(member)
            await self._let_go(member, client)

    def _warn(self, failure: BackendFailure) -> None:
        logger.warning(
            "%s: backend %r is missing (%s): it %s",
            session_tag(self._row.metadata.session_id),
            failure.backend_id,
            failure.reason.value,
            failure.detail,
        )

    async def _let_go(self, member: Member, client: BackendClient) -> None:
        """Close one connection apart from the others: outside of a close nobody else bounds that."""
        with trio.move_on_after(self._settings.teardown_timeout, shield=True):
            await self._part(member, client)

    async def _part(self, member: Member, client: BackendClient) -> None:
        """Close one connection. Its backend session ends too, unless it is in the row and may be restored."""
        stored = self._row.record(member.backend_id)
        kept = stored is not None and stored.session_id == client.record.session_id
        try:
            await client.aclose(terminate=self._terminating or not kept)
        except* Exception as crash:  # noqa: BLE001  # a close raises for no backend
            logger.warning(
                "%s: backend %r: goodbye failed: %s",
                session_tag(self._row.metadata.session_id),
                member.backend_id,
                describe_crash(crash),
            )


def _no_events(method: str, params: JSON) -> None:
    """Notifications outside of a call are of use once lists stay current; until then they are dropped here."""
