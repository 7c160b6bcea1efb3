"""The calls of one session: admission, then the caller, then the route, then the backend that owns the name."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, TypeGuard

import attrs
import trio

from trio_vmcp._interrupts import plain_exit
from trio_vmcp._limits import OWN_TIMEOUT, TimeLimit
from trio_vmcp._nursery import start_task
from trio_vmcp._protocol.methods import LOG_LEVELS, METHODS, SUBSCRIBE, UNSUBSCRIBE, declares
from trio_vmcp._protocol.rounds import INPUT_REQUIRED, BadRound, read_round
from trio_vmcp._session.admission import Admission
from trio_vmcp._session.call import CallRequest, request_member
from trio_vmcp._session.call_options import CallOptions
from trio_vmcp._session.directory import Directory
from trio_vmcp._session.log_levels import LogLevel
from trio_vmcp._session.member import Member
from trio_vmcp._session.offered_tools import is_filtered_out
from trio_vmcp.connector import OnProgress
from trio_vmcp.errors import (
    BackendProtocolError,
    BackendRejected,
    CapabilityNotFound,
    NilCaller,
    PromptNotFound,
    ResourceNotFound,
    ToolNotFound,
    UnauthorizedCaller,
)
from trio_vmcp.identity import Identity, same_principal
from trio_vmcp.models import JSON
from trio_vmcp.observe import TRACE_KEYS
from trio_vmcp.routing import Target

__all__ = ["Calls"]

METHOD_NOT_FOUND = -32601  # JSON-RPC 2.0
# Keys of `_meta` that belong to one hop: MCP's own, and the token that ties progress to a request of ours.
_RESERVED_META = "io.modelcontextprotocol/"
_PROGRESS_TOKEN = "progressToken"


@attrs.define(eq=False)
class _Asking:
    """A subscription that is asked for.

    Attributes:
        counted_in: The subscriptions of the backend. None: it is not counted yet, or no longer, since its resource was
            unsubscribed from: what is counted there by now was asked for later.
    """

    uri: str
    counted_in: Counter[str] | None = None


@attrs.define(eq=False)
class Calls:
    """What callers ask of a session's backends, each in its caller's task.

    Attributes:
        last_call_at: `trio.current_time()` when the latest call ended, or the opening did.
    """

    _members: Mapping[str, Member]
    _directory: Directory
    _admission: Admission
    _identity: Identity | None
    _note_use: Callable[[float], None]
    _log_level: LogLevel
    last_call_at: float = attrs.field(default=0.0, init=False)
    _asking: list[_Asking] = attrs.field(factory=list, init=False, repr=False)

    @trio.lowlevel.enable_ki_protection
    async def call(
        self,
        method: str,
        name: str,
        route: Callable[[], tuple[Target, JSON]],
        caller: Identity | None,
        meta: JSON | None,
        timeout: float | None,
        on_progress: OnProgress | None,
        options: CallOptions | None = None,
    ) -> tuple[Member, JSON]:
        """Make one call, and return the backend that answered and its answer.

        Args:
            name: The advertised name or URI that the caller named.
            route: Finds the backend and the params; runs once the call is admitted and its caller is known.
        """
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout={timeout!r} is not 0 s or more")
        async with self._admission.admit() as call:
            self.check_caller(caller)
            now = trio.current_time()
            self._note_use(now)
            try:
                target, params = route()
                member = self._members[target.backend_id]
                call.call_name, call.call_meta = name, meta
                forwarded = _forwarded_meta(meta) if meta else None
                if forwarded:
                    params["_meta"] = _with_trace(forwarded, params.get("_meta"))
                limit = member.request_limit if timeout is None else TimeLimit(timeout, OWN_TIMEOUT)
                if options is not None:
                    call.hands_out_rounds = options.hands_out_rounds
                asked = CallRequest(method, params, caller, now, limit, on_progress, options)
                raw = await request_member(member, call, asked)
            except BaseExceptionGroup as group:  # of a nursery on the way, in which a Ctrl-C was delivered
                raise plain_exit(group) from None
            finally:  # after the check of the caller: a stranger's call keeps no session alive
                self.last_call_at = trio.current_time()
        answer = METHODS[method]
        if answer.may_ask_back and raw.get("resultType") == INPUT_REQUIRED:
            _check_question(target.backend_id, method, raw)
        if answer.array and not isinstance(raw.get(answer.array), list | None):
            missing = f"an array {answer.array!r}"
        elif answer.object and not isinstance(raw.get(answer.object), dict | None):
            missing = f"an object {answer.object!r}"
        else:
            return member, raw
        raise BackendProtocolError(target.backend_id, f"answered {method!r} without {missing}", may_have_executed=True)

    def check_caller(self, caller: Identity | None) -> None:
        """
        Raises:
            NilCaller, UnauthorizedCaller: The session is not bound to this identity.
        """
        if not same_principal(caller, self._identity):
            raise NilCaller if caller is None else UnauthorizedCaller

    @trio.lowlevel.enable_ki_protection
    async def subscribe(self, uri: str, caller: Identity | None, timeout: float | None) -> None:
        asking = _Asking(uri)

        def route() -> tuple[Target, JSON]:
            target = self._find_resource(uri)
            counts = asking.counted_in = self._members[target.backend_id].subscriptions
            counts[uri] += 1  # before the request: a new connection subscribes again to what is counted here
            return target, {"uri": target.name}

        self._asking.append(asking)
        try:
            await self.call(SUBSCRIBE, uri, route, caller, None, timeout, None)
        except BaseException:
            counts = asking.counted_in
            if counts is not None:
                holder = self._find_subscribed(uri)  # another backend by now, if the subscription has moved
                counts = counts if holder is None else self._members[holder.backend_id].subscriptions
                counts[uri] -= 1
                if counts[uri] <= 0:  # no other call has asked for it
                    del counts[uri]
            raise
        finally:
            self._asking.remove(asking)

    @trio.lowlevel.enable_ki_protection
    async def unsubscribe(self, uri: str, caller: Identity | None, timeout: float | None) -> None:
        route = partial(self._route_unsubscription, uri)
        told, _ = await self.call(UNSUBSCRIBE, uri, route, caller, None, timeout, None)
        for asking in self._asking:
            if asking.uri == uri:
                asking.counted_in = None
        for member in self._members.values():  # the subscription may have moved meanwhile
            has_moved_here = member is not told and uri in member.subscriptions
            del member.subscriptions[uri]
            if has_moved_here and member.connection is not None:
                member.connection.subscriber.unsubscribe(uri)

    @trio.lowlevel.enable_ki_protection
    async def set_log_level(self, level: str, caller: Identity | None) -> None:
        if level not in LOG_LEVELS:
            raise ValueError(f"level={level!r} is none of {', '.join(LOG_LEVELS)}")
        async with self._telling_all(caller) as nursery:
            self._log_level.wanted = level
            for member in self._members.values():
                if member.connection is not None:
                    start_task(nursery, member.connection.log_level.tell, caller)

    @trio.lowlevel.enable_ki_protection
    async def tell_roots_changed(self, caller: Identity | None) -> None:
        async with self._telling_all(caller) as nursery:
            for member in self._members.values():
                if member.connection is not None:
                    start_task(nursery, member.connection.tell_roots_changed, caller, member.request_limit)

    @asynccontextmanager
    @trio.lowlevel.enable_ki_protection
    async def _telling_all(self, caller: Identity | None) -> AsyncIterator[trio.Nursery]:
        """Around a message to all backends that are connected, which is a call of this caller: its tasks."""
        async with self._admission.admit():
            self.check_caller(caller)
            self._note_use(trio.current_time())
            try:
                async with trio.open_nursery() as nursery:
                    yield nursery
            except BaseExceptionGroup as group:
                raise plain_exit(group) from None
            finally:
                self.last_call_at = trio.current_time()

    # --- routes: where a call goes, and with which params

    def route_tool(self, name: str, arguments: JSON | None) -> tuple[Target, JSON]:
        target = self._find("tools", name, ToolNotFound)
        return target, {"name": target.name, "arguments": {} if arguments is None else arguments}

    def route_prompt(self, name: str, arguments: Mapping[str, str] | None) -> tuple[Target, JSON]:
        target = self._find("prompts", name, PromptNotFound)
        return target, {"name": target.name} | ({} if arguments is None else {"arguments": dict(arguments)})

    def route_resource(self, uri: str) -> tuple[Target, JSON]:
        target = self._find_resource(uri)
        return target, {"uri": target.name}

    def route_completion(self, ref: JSON, argument: JSON, context: JSON | None) -> tuple[Target, JSON]:
        match ref:
            case {"type": "ref/prompt", "name": str(name)}:
                target = self._find("prompts", name, PromptNotFound)
                translated = ref | {"name": target.name}
            case {"type": "ref/resource", "uri": str(uri)}:
                template = self._directory.find_template(uri)
                target = template if self._is_there(template) else self._listed_resource(uri)
                translated = ref
            case _:
                raise ValueError(
                    "ref is neither {'type': 'ref/prompt', 'name': …} nor {'type': 'ref/resource', 'uri': …}"
                )
        member = self._members[target.backend_id]
        # "Use only negotiated capabilities" (lifecycle): of this connection, or of the latest where it is missing.
        if member.record is not None and not declares(member.record.server_capabilities, ("completions",)):
            raise BackendRejected(
                target.backend_id,
                "does not offer completions",
                code=METHOD_NOT_FOUND,
                message="completions were not advertised",
            )
        return target, {"ref": translated, "argument": argument} | ({} if context is None else {"context": context})

    def _route_unsubscription(self, uri: str) -> tuple[Target, JSON]:
        target = self._find_subscribed(uri) or self._listed_resource(uri)
        return target, {"uri": target.name}

    def _find_resource(self, uri: str) -> Target:
        """Where a URI is read and subscribed to: while it is subscribed to, at the backend that has the subscription,
        for as long as that offers the URI. A subscriber that reads elsewhere would not hear of changes.
        """
        target = self._listed_resource(uri)
        holder = self._find_subscribed(uri)
        if holder is not None and self._directory.offers(holder.backend_id, uri):
            return holder
        return target  # a subscription that another backend has is about to move there, too

    def _listed_resource(self, uri: str) -> Target:
        target = self._directory.find_resource(uri)
        if not self._is_there(target):
            raise ResourceNotFound(uri, ())
        return target

    def _find_subscribed(self, uri: str) -> Target | None:
        owners = (member.backend_id for member in self._members.values() if uri in member.subscriptions)
        return next((Target(backend_id, uri) for backend_id in owners), None)

    def _find(self, kind: Literal["tools", "prompts"], name: str, not_found: type[CapabilityNotFound]) -> Target:
        target = self._directory.find(kind, name)
        if self._is_there(target):
            return target
        owner = self._directory.owner_of(kind, name)
        if owner is not None and owner in self._members and not self._is_left_out(kind, self._members[owner], name):
            self._members[owner].require_reachable()  # bound to a backend that is missing: say that
        raise self._directory.not_found(kind, name, not_found)

    def _is_there(self, target: Target | None) -> TypeGuard[Target]:
        """Whether the directory has found it. The directory may still hold a backend that was removed, while it is
        updated in steps.
        """
        return target is not None and target.backend_id in self._members

    def _is_left_out(self, kind: Literal["tools", "prompts"], member: Member, name: str) -> bool:
        """Whether it is known, although the owner may be missing, that the owner does not offer a bound name: the row
        knows names, but neither what the user chooses nor how the user calls it.
        """
        if self._directory.has_listing_of(member.backend_id):
            return True
        if kind != "tools" or member.backend is None:
            return False
        own_names = self._directory.own_names(member.backend, name)
        return own_names is not None and all(is_filtered_out(member.backend, own) for own in own_names)


def _check_question(backend_id: str, method: str, raw: JSON) -> None:
    """A client of the user's may pass on any question, and callers rely on its form."""
    try:
        read_round(raw)
    except BadRound as bad:
        detail = f"answered {method!r} with a question {bad}"
        raise BackendProtocolError(backend_id, detail, may_have_executed=True) from None


def _with_trace(forwarded: JSON, trace: JSON | None) -> JSON:
    """What observers give as trace context takes the place of the caller's, as a whole."""
    if trace is None:
        return forwarded
    return {key: value for key, value in forwarded.items() if key not in TRACE_KEYS} | trace


def _forwarded_meta(meta: JSON) -> JSON:
    return {key: value for key, value in meta.items() if not key.startswith(_RESERVED_META) and key != _PROGRESS_TOKEN}
