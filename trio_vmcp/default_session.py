"""DefaultSession: one task owns a session from its opening to CLOSED, and callers' tasks do the calls.

The owner task is shielded: nothing under it is torn down because somebody outside was cancelled. Whoever wants the
session gone asks (`request_close`), and the owner does it in one order: refuse, drain, cut off, say goodbye, cancel the
session's nursery, CLOSED. Every step of that is bounded, so the shield is, too.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import Literal

import attrs
import trio

from trio_vmcp._nursery import describe_crash
from trio_vmcp._request_note import is_inside_handler_of
from trio_vmcp._session.admission import Admission
from trio_vmcp._session.advertised import Advertised, advertise
from trio_vmcp._session.caller_view import CallerView
from trio_vmcp._session.changes import ChangeFeed
from trio_vmcp._session.keeper import Keeper
from trio_vmcp._session.listing import MOST_NAME_BYTES, Listing
from trio_vmcp._session.member import Member, new_member
from trio_vmcp._session.members import Membership
from trio_vmcp._session.observer import Change
from trio_vmcp._session.reconnects import Reconnects
from trio_vmcp._session.row import Stored
from trio_vmcp.connector import BackendConnector, OnProgress
from trio_vmcp.errors import (
    BackendProtocolError,
    BackendRejected,
    CapabilityNotFound,
    MessageTooLarge,
    NilCaller,
    PromptNotFound,
    ResourceNotFound,
    SessionClosed,
    ToolNotFound,
    UnauthorizedCaller,
    VmcpError,
    session_tag,
)
from trio_vmcp.identity import Identity, same_principal
from trio_vmcp.metadata import BackendRecord, SessionMetadata
from trio_vmcp.models import (
    JSON,
    Backend,
    BackendFailure,
    BackendStatus,
    CompletionResult,
    NameConflict,
    Prompt,
    PromptResult,
    Resource,
    ResourceResult,
    ResourceTemplate,
    SessionChange,
    SessionState,
    Tool,
    ToolResult,
)
from trio_vmcp.routing import Bindings, Routing, RoutingTable, Target, build_routing
from trio_vmcp.settings import FactorySettings

__all__ = ["DefaultSession"]

logger: logging.Logger = logging.getLogger("trio_vmcp.session")

# s. However long a user lets a close wait, a close that was caused by a cancel must end soon (design: ownership).
MOST_CANCELLED_DRAIN = 10.0
METHOD_NOT_FOUND = -32601  # JSON-RPC 2.0
# Of one backend: names stay bound, and are in the row, even when their backend no longer lists them. Twice what one
# listing may have, prefixes included.
MOST_BOUND_BYTES = 2 * MOST_NAME_BYTES
# Keys of `_meta` that belong to one hop: MCP's own, and the token that ties progress to a request of ours.
_RESERVED_META = "io.modelcontextprotocol/"
_PROGRESS_TOKEN = "progressToken"


@attrs.define(eq=False)
class DefaultSession(trio.abc.AsyncResource):
    """A session over live backends. Made by a factory; see `Session` for what each method promises."""

    _members: dict[str, Member] = attrs.field(alias="members", repr=False)
    _row: Stored = attrs.field(alias="row", repr=False)
    _identity: Identity | None = attrs.field(alias="identity", repr=False)
    _connector: BackendConnector = attrs.field(alias="connector", repr=False)
    _settings: FactorySettings = attrs.field(alias="settings", repr=False)
    _reconnects: Reconnects = attrs.field(alias="reconnects", repr=False)

    _membership: Membership = attrs.field(init=False, repr=False)
    _keeper: Keeper = attrs.field(init=False, repr=False)
    _admission: Admission = attrs.field(factory=Admission, init=False, repr=False)
    _changes: ChangeFeed = attrs.field(factory=ChangeFeed, init=False, repr=False)
    _routing: Routing = attrs.field(init=False, repr=False)
    _advertised: Advertised = attrs.field(factory=Advertised, init=False, repr=False)

    _services: trio.Nursery | None = attrs.field(default=None, init=False, repr=False)
    _opening: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _opening_error: VmcpError | None = attrs.field(default=None, init=False, repr=False)
    _is_open: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)  # the opening has ended, well or not
    _last_call_at: float = attrs.field(default=0.0, init=False, repr=False)
    _close_requested: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _terminate: bool = attrs.field(default=True, init=False, repr=False)
    _drain: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _drain_limit: float = attrs.field(default=math.inf, init=False, repr=False)
    _closed: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._membership = Membership(
            self._members, self._connector, self._identity, self._row, self._settings, self._reconnects, self
        )
        self._keeper = Keeper(self._row, self._row_state)
        self._routing = build_routing((), self._settings.conflict_resolution, bindings=self._row.bindings)

    def __repr__(self) -> str:
        backends = len(self._members)
        return f"<{session_tag(self.id)} {self.state.value}, {backends} backends, {self.in_flight} in flight>"

    # --- what it is

    @property
    def id(self) -> str:
        return self._row.metadata.session_id

    @property
    def created_at(self) -> datetime:
        return self._row.metadata.created_at

    @property
    def updated_at(self) -> datetime:
        return self._row.metadata.updated_at

    @property
    def metadata(self) -> SessionMetadata:
        return self._row.metadata

    @property
    def tools(self) -> tuple[Tool, ...]:
        return self._advertised.tools

    @property
    def resources(self) -> tuple[Resource, ...]:
        return self._advertised.resources

    @property
    def resource_templates(self) -> tuple[ResourceTemplate, ...]:
        return self._advertised.resource_templates

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return self._advertised.prompts

    @property
    def routing_table(self) -> RoutingTable:
        return self._routing.table

    @property
    def conflicts(self) -> tuple[NameConflict, ...]:
        return self._routing.conflicts

    @property
    def backend_sessions(self) -> Mapping[str, str]:
        clients = [member.client for member in self._members.values() if member.client is not None]
        assigned = {client.record.backend_id: client.record.session_id for client in clients}
        return MappingProxyType({backend_id: given for backend_id, given in assigned.items() if given is not None})

    @property
    def failures(self) -> tuple[BackendFailure, ...]:
        return self._membership.failures

    @property
    def backends(self) -> Mapping[str, BackendStatus]:
        return MappingProxyType(self._membership.statuses)

    @property
    def state(self) -> SessionState:
        if self._closed.is_set():
            return SessionState.CLOSED
        return SessionState.DRAINING if self._close_requested.is_set() else SessionState.OPEN

    @property
    def in_flight(self) -> int:
        return self._admission.in_flight

    def as_caller(self, identity: Identity | None) -> CallerView:
        return CallerView(self, identity)

    def changes(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[SessionChange]]:
        return self._changes.subscribe(None if self._closed.is_set() else self._services)

    # --- calls, in their callers' tasks

    async def call_tool(
        self,
        name: str,
        arguments: JSON | None = None,
        *,
        caller: Identity | None = None,
        meta: JSON | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> ToolResult:
        def route() -> tuple[Target, JSON]:
            target = self._find("tools", name, ToolNotFound)
            return target, {"name": target.name, "arguments": {} if arguments is None else arguments}

        member, raw = await self._call("tools/call", route, "content", caller, meta, timeout, on_progress)
        return ToolResult(raw, member.backend_id)

    async def read_resource(
        self,
        uri: str,
        *,
        caller: Identity | None = None,
        meta: JSON | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> ResourceResult:
        def route() -> tuple[Target, JSON]:
            target = self._find_resource(uri)
            return target, {"uri": target.name}

        member, raw = await self._call("resources/read", route, "contents", caller, meta, timeout, on_progress)
        return ResourceResult(raw, member.backend_id)

    async def get_prompt(
        self,
        name: str,
        arguments: Mapping[str, str] | None = None,
        *,
        caller: Identity | None = None,
        meta: JSON | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> PromptResult:
        def route() -> tuple[Target, JSON]:
            target = self._find("prompts", name, PromptNotFound)
            return target, {"name": target.name} | ({} if arguments is None else {"arguments": dict(arguments)})

        member, raw = await self._call("prompts/get", route, "messages", caller, meta, timeout, on_progress)
        return PromptResult(raw, member.backend_id)

    async def complete(
        self,
        ref: JSON,
        argument: JSON,
        *,
        context: JSON | None = None,
        caller: Identity | None = None,
        meta: JSON | None = None,
        timeout: float | None = None,
    ) -> CompletionResult:
        def route() -> tuple[Target, JSON]:
            match ref:
                case {"type": "ref/prompt", "name": str(name)}:
                    target = self._find("prompts", name, PromptNotFound)
                    translated = ref | {"name": target.name}
                case {"type": "ref/resource", "uri": str(uri)}:
                    target = self._find_template(uri) or self._find_resource(uri)
                    translated = ref
                case _:
                    raise ValueError(
                        "ref is neither {'type': 'ref/prompt', 'name': …} nor {'type': 'ref/resource', 'uri': …}"
                    )
            member = self._members[target.backend_id]
            member.require_reachable()
            # "Use only negotiated capabilities" (lifecycle): of this connection, or of the one that is being replaced.
            if member.record is not None and "completions" not in member.record.server_capabilities:
                raise BackendRejected(
                    target.backend_id,
                    "does not offer completions",
                    code=METHOD_NOT_FOUND,
                    message="completions were not advertised",
                )
            return target, {"ref": translated, "argument": argument} | ({} if context is None else {"context": context})

        owner, raw = await self._call("completion/complete", route, None, caller, meta, timeout, None)
        if not isinstance(raw.get("completion", {}), dict):
            raise BackendProtocolError(
                owner.backend_id,
                "answered 'completion/complete' without an object 'completion'",
                may_have_executed=True,
            )
        return CompletionResult(raw, owner.backend_id)

    async def _call(
        self,
        method: str,
        route: Callable[[], tuple[Target, JSON]],
        array_field: str | None,
        caller: Identity | None,
        meta: JSON | None,
        timeout: float | None,
        on_progress: OnProgress | None,
    ) -> tuple[Member, JSON]:
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout={timeout!r} is not 0 s or more")
        async with self._admission.admit() as call:
            self._check_caller(caller)
            try:
                target, params = route()
                member = self._members[target.backend_id]
                forwarded = _forwarded_meta(meta) if meta else None
                if forwarded:
                    params["_meta"] = forwarded
                raw = await member.request(call, method, params, caller, self._timeout(member, timeout), on_progress)
            finally:  # however it ends; but a stranger's call keeps no session alive
                self._last_call_at = trio.current_time()
        if array_field is not None and not isinstance(raw.get(array_field, []), list):
            raise BackendProtocolError(
                target.backend_id, f"answered {method!r} without an array {array_field!r}", may_have_executed=True
            )
        return member, raw

    def _check_caller(self, caller: Identity | None) -> None:
        if not same_principal(caller, self._identity):
            raise NilCaller if caller is None else UnauthorizedCaller

    def _timeout(self, member: Member, timeout: float | None) -> float:
        if timeout is not None:
            return timeout
        assert member.backend is not None  # a member that is connected was configured
        configured = member.backend.request_timeout
        return self._settings.request_timeout if configured is None else configured

    def _find(self, kind: Literal["tools", "prompts"], name: str, not_found: type[CapabilityNotFound]) -> Target:
        target: Target | None = getattr(self._routing.table, kind).get(name)
        if target is not None:
            return target
        owner = getattr(self._routing.bindings, kind).get(name)
        if owner is not None and owner in self._members:
            self._members[owner].require_reachable()  # bound to a backend that is missing: say that
        raise not_found(name, self._routing.table.closest(kind, name))

    def _find_resource(self, uri: str) -> Target:
        target = self._routing.table.find_resource(uri)
        if target is None:
            raise ResourceNotFound(uri, self._routing.table.closest("resources", uri))
        return target

    def _find_template(self, uri: str) -> Target | None:
        return next((target for target in self._routing.table.templates if target.name == uri), None)

    async def subscribe_resource(
        self, uri: str, *, caller: Identity | None = None, timeout: float | None = None
    ) -> None:
        wanted: Counter[str] | None = None

        def route() -> tuple[Target, JSON]:
            nonlocal wanted
            target = self._find_resource(uri)
            wanted = self._members[target.backend_id].subscriptions
            wanted[uri] += 1  # before it is asked: should it be connected anew meanwhile, it is asked again
            return target, {"uri": target.name}

        try:
            await self._call("resources/subscribe", route, None, caller, None, timeout, None)
        except BaseException:
            if wanted is not None:
                wanted[uri] -= 1
                if wanted[uri] <= 0:  # nobody else has asked for it; below: it was unsubscribed from meanwhile
                    del wanted[uri]
            raise

    async def unsubscribe_resource(
        self, uri: str, *, caller: Identity | None = None, timeout: float | None = None
    ) -> None:
        def route() -> tuple[Target, JSON]:
            # Whoever lists it by now: the subscription is with whom it was made.
            owners = [member for member in self._members.values() if uri in member.subscriptions]
            target = Target(owners[0].backend_id, uri) if owners else self._find_resource(uri)
            return target, {"uri": target.name}

        member, _ = await self._call("resources/unsubscribe", route, None, caller, None, timeout, None)
        del member.subscriptions[uri]

    # --- members that come and go

    async def add_backend(self, backend: Backend) -> None:
        await self._require_open()
        await self._membership.add(new_member(backend.id, backend, self._settings), backend)

    async def remove_backend(self, backend_id: str, *, drain_timeout: float | None = None) -> None:
        limit = self._settings.drain_timeout if drain_timeout is None else drain_timeout
        if not limit >= 0:
            raise ValueError(f"drain_timeout={drain_timeout!r} is not 0 s or more")
        await self._require_open()
        member = self._membership.remove(backend_id, limit)
        if self._admission.holds_current_task():
            await trio.lowlevel.checkpoint()  # what is waited for may be this very call
        else:
            await member.gone.wait()

    async def _require_open(self) -> None:
        if self._close_requested.is_set():
            await trio.lowlevel.checkpoint_if_cancelled()  # one cancel may both close the session and hit this caller
            raise SessionClosed("the session is closing or closed: its backends stay as they are")

    # --- the owner task

    async def serve(self) -> None:
        """The session's life. Run once, in the factory's nursery."""
        with trio.CancelScope(shield=True):
            try:
                async with trio.open_nursery() as services:
                    self._services = services
                    await self._open(services)
                    await self._close_requested.wait()
                    await self._shut_down()
                    self._services = None  # a nursery that ends takes nobody in
                    services.cancel_scope.cancel(reason="session closed")
            except* Exception as bug:  # a bug of ours must not take other sessions along
                logger.error("%s crashed: %s", session_tag(self.id), describe_crash(bug), exc_info=bug)
                self._opening_error = self._opening_error or SessionClosed("the session crashed: see the log")
            finally:
                self._close_requested.set()
                self._admission.refuse()
                self._admission.abandon()
                self._membership.abandon()
                self._is_open.set()
                self._closed.set()

    async def wait_open(self) -> None:
        """Until the opening has ended.

        Raises:
            NoBackends, SessionExists, StorageError: It failed, and nothing of it is left.
            SessionClosed: It was closed meanwhile.
        """
        await self._is_open.wait()
        if self._opening_error is not None:
            await self._closed.wait()
            raise self._opening_error

    def request_close(self, *, terminate: bool, drain_timeout: float | None = None) -> None:
        """Ask the owner to close: from now on nothing is admitted. The first to ask decides whether it terminates."""
        limit = self._settings.drain_timeout if drain_timeout is None else drain_timeout
        if not limit >= 0:
            raise ValueError(f"drain_timeout={drain_timeout!r} is not 0 s or more")
        self._admission.refuse()
        self.shorten_drain(limit)
        if not self._close_requested.is_set():
            # A restore that does not come to its end leaves what was stored as it was, whatever ended it.
            self._terminate = terminate and (self._is_open.is_set() or not self._row.restored)
            self._close_requested.set()
        if not self._is_open.is_set():
            self._opening.cancel(reason="session closed while opening")

    def shorten_drain(self, limit: float) -> None:
        """Calls in flight have at most `limit` s from now."""
        deadline = trio.current_time() + limit
        if deadline < self._drain.deadline:
            self._drain.deadline, self._drain_limit = deadline, limit

    async def wait_closed(self) -> None:
        """Until CLOSED."""
        await self._closed.wait()

    async def aclose(self, *, drain_timeout: float | None = None) -> None:
        await self._close(terminate=True, drain_timeout=drain_timeout)

    async def suspend(self, *, drain_timeout: float | None = None) -> None:
        await self._close(terminate=False, drain_timeout=drain_timeout)

    async def _close(self, *, terminate: bool, drain_timeout: float | None) -> None:
        self.request_close(terminate=terminate, drain_timeout=drain_timeout)
        if self._admission.holds_current_task() or is_inside_handler_of(self.id):
            # The close waits for this very call, and ends this very handler: neither must wait for it.
            await trio.lowlevel.checkpoint()
        else:
            await self._closed.wait()  # a cancelled waiter does not undo the close

    async def _open(self, services: trio.Nursery) -> None:
        try:
            with self._opening:
                services.start_soon(self._membership.connect_all, services)
                with trio.move_on_after(self._settings.session_init_timeout):
                    await self._membership.all_settled.wait()
                self._membership.end_opening()
                self._reroute()
                await self._row.write(*self._row_state())
            if self._opening.cancelled_caught:
                raise SessionClosed("the session was closed while it was opening")
            services.start_soon(self._keeper.keep, self._terminated_elsewhere)
            services.start_soon(self._end_when_idle)
        except VmcpError as error:
            self._opening_error = error
            self.request_close(terminate=True, drain_timeout=0)
            self._terminate = not self._row.restored  # whoever asked first: nobody ever had this session
        # Not in a `finally`: after a crash there is nothing to hand out, and `serve` says so first.
        self._last_call_at = trio.current_time()
        self._is_open.set()

    async def _shut_down(self) -> None:
        """Drain, cut off, say goodbye: at most the drain plus `teardown_timeout`."""
        self._membership.stop_connecting()
        with self._drain:
            await self._admission.drained.wait()
        self._admission.cut_off(f"the session closed under this call, after drain_timeout={self._drain_limit:g} s")
        budget = self._settings.teardown_timeout
        self._membership.stop_recovering(trio.current_time() + budget)  # now that nobody hears of it
        with trio.move_on_after(budget):
            # Half, so that a caller who shields himself cannot take everybody's goodbye along.
            with trio.move_on_after(budget / 2):
                await self._admission.drained.wait()
            await self._keeper.stop()
            if not self._terminate:
                # First of all: a backend session that the row names stays, and one that it does not name yet would go.
                with trio.move_on_after(budget / 4):
                    await self._keeper.leave(terminate=False)
            async with trio.open_nursery() as goodbyes:
                goodbyes.start_soon(partial(self._membership.say_goodbye, terminate=self._terminate))
                if self._terminate:
                    goodbyes.start_soon(partial(self._keeper.leave, terminate=True))

    async def _end_when_idle(self) -> None:
        while True:
            since = trio.current_time() if self.in_flight else self._last_call_at
            idle_at = since + self._settings.idle_timeout
            if idle_at <= trio.current_time():
                break
            await trio.sleep_until(idle_at)
        logger.info("%s: no call for %s s (idle_timeout)", session_tag(self.id), self._settings.idle_timeout)
        self.request_close(terminate=True)

    def _terminated_elsewhere(self) -> None:
        self.request_close(terminate=True)

    # --- what the membership tells

    def member_changed(self, member: Member, changes: Sequence[Change]) -> None:
        """Advertise what it lists now, write it down, tell who listens."""
        if not self._membership.is_opened:
            return  # names are bound when the opening ends, by the configured order and not by who was the first
        self._reroute()
        self._keeper.note_change()
        for kind in changes:
            self._changes.publish(SessionChange(kind, member.backend_id))

    def check_names(self, member: Member, listing: Listing) -> None:
        known, bindings = member.listing or Listing(), self._routing.bindings
        new = (listing.tools.keys() - known.tools.keys()) | (listing.prompts.keys() - known.prompts.keys())
        if not new:
            return
        bound = (bindings.tools, bindings.prompts)
        owned = (name for names in bound for name, owner in names.items() if owner == member.backend_id)
        if sum(len(name.encode()) for names in (owned, new) for name in names) > MOST_BOUND_BYTES:
            raise MessageTooLarge(
                member.backend_id,
                f"lists ever new names: over {MOST_BOUND_BYTES} bytes of them in the life of this session",
            )

    def resource_updated(self, member: Member, uri: str) -> None:
        self._changes.publish(SessionChange("resource_updated", member.backend_id, uri))

    def _reroute(self) -> None:
        """Names from scratch: a pure function of what everybody offers, in configured order, and what is bound."""
        listings = {member.backend_id: member.listing or Listing() for member in self._members.values()}
        self._routing = build_routing(
            [listing.offer(backend_id) for backend_id, listing in listings.items()],
            self._settings.conflict_resolution,
            bindings=self._routing.bindings,
            max_name_length=self._settings.max_name_length,
        )
        self._advertised = advertise(self._routing, listings)

    def _row_state(self) -> tuple[tuple[BackendRecord, ...], Bindings]:
        return self._membership.records, self._routing.bindings


def _forwarded_meta(meta: JSON | None) -> JSON:
    return {
        key: value
        for key, value in (meta or {}).items()
        if not key.startswith(_RESERVED_META) and key != _PROGRESS_TOKEN
    }
