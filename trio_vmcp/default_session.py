"""DefaultSession: what callers hold. It is a view, made of the session's parts (`_core`) and one caller.

Where things live, under `_session/`:
- The owner task with the session's nursery (`services`) and the order of a close: `owner.py`. Its phases: `life.py`.
- The calls in flight, and `drained`, the event that a close waits for: `admission.py`.
- The limiter of `max_backend_init_concurrency`: `members.py`. `backend_init_timeout`, for each backend:
  `connecting.py`; `session_init_timeout`, for the whole opening: `owner.py`; `request_timeout`: `call.py`.
- A call, from admission to its result: `calls.py`; on the way through one backend, with recovery and retry: `call.py`.
- Names and lists: `directory.py`. The state of each backend: `member.py`.
- The two layers. Metadata (`TransportSession`) is plain data, which `row.py` alone writes and another process may read.
  Everything else (`Session`) is runtime: connections, tasks, names. It never leaves the process and is never stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from functools import partial
from types import MappingProxyType

import attrs
import trio

from trio_vmcp._protocol.methods import COMPLETE, GET_PROMPT, READ_RESOURCE, TOOLS_CALL
from trio_vmcp._session.call_options import call_options
from trio_vmcp._session.owner import SessionOwner
from trio_vmcp.connector import OnProgress
from trio_vmcp.errors import session_tag
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import SessionMetadata
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
from trio_vmcp.routing import RoutingTable
from trio_vmcp.session import Session

__all__ = ["DefaultSession"]


@attrs.define(eq=False)
class DefaultSession(trio.abc.AsyncResource, Session):
    """A session over live backends, made by a factory. Docstrings are inherited from `Session`."""

    _core: SessionOwner = attrs.field(alias="core", repr=False)
    _caller: Identity | None = attrs.field(default=None, alias="caller", repr=False)  # of calls without `caller`

    def __repr__(self) -> str:
        backends = len(self._core.membership.members)
        return f"<{session_tag(self.id)} {self.state.value}, {backends} backends, {self.in_flight} in flight>"

    # --- what it is

    @property
    def id(self) -> str:
        return self._core.row.metadata.session_id

    @property
    def created_at(self) -> datetime:
        return self._core.row.metadata.created_at

    @property
    def updated_at(self) -> datetime:
        return self._core.row.metadata.updated_at

    @property
    def metadata(self) -> SessionMetadata:
        return self._core.row.metadata

    @property
    def tools(self) -> tuple[Tool, ...]:
        return self._core.directory.tools

    @property
    def resources(self) -> tuple[Resource, ...]:
        return self._core.directory.resources

    @property
    def resource_templates(self) -> tuple[ResourceTemplate, ...]:
        return self._core.directory.resource_templates

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return self._core.directory.prompts

    @property
    def routing_table(self) -> RoutingTable:
        return self._core.directory.table

    @property
    def conflicts(self) -> tuple[NameConflict, ...]:
        return self._core.directory.conflicts

    @property
    def backend_sessions(self) -> Mapping[str, str]:
        members = [member for member in self._core.membership.members.values() if member.connection is not None]
        records = [record for record in (member.record for member in members) if record is not None]
        assigned = {record.backend_id: record.session_id for record in records}
        return MappingProxyType({backend_id: given for backend_id, given in assigned.items() if given is not None})

    @property
    def failures(self) -> tuple[BackendFailure, ...]:
        return self._core.membership.failures

    @property
    def backends(self) -> Mapping[str, BackendStatus]:
        return MappingProxyType(self._core.membership.statuses)

    @property
    def state(self) -> SessionState:
        return self._core.life.state

    @property
    def in_flight(self) -> int:
        return self._core.admission.in_flight

    @property
    def tag(self) -> str:
        return session_tag(self.id)

    def as_caller(self, identity: Identity | None) -> DefaultSession:
        self._core.calls.check_caller(identity)
        return DefaultSession(self._core, identity)

    def changes(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[SessionChange]]:
        return self._core.feed.subscribe(self._core.services)

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
        answer_rounds: bool = True,
        input_responses: Mapping[str, JSON] | None = None,
        request_state: str | None = None,
        client_capabilities: Mapping[str, object] | None = None,
        log_level: str | None = None,
    ) -> ToolResult:
        route = partial(self._core.calls.route_tool, name, arguments)
        options = call_options(answer_rounds, input_responses, request_state, client_capabilities, log_level)
        member, raw = await self._core.calls.call(
            TOOLS_CALL, name, route, caller or self._caller, meta, timeout, on_progress, options
        )
        return ToolResult(raw, member.backend_id)

    async def read_resource(
        self,
        uri: str,
        *,
        caller: Identity | None = None,
        meta: JSON | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        answer_rounds: bool = True,
        input_responses: Mapping[str, JSON] | None = None,
        request_state: str | None = None,
        client_capabilities: Mapping[str, object] | None = None,
        log_level: str | None = None,
    ) -> ResourceResult:
        route = partial(self._core.calls.route_resource, uri)
        options = call_options(answer_rounds, input_responses, request_state, client_capabilities, log_level)
        member, raw = await self._core.calls.call(
            READ_RESOURCE, uri, route, caller or self._caller, meta, timeout, on_progress, options
        )
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
        answer_rounds: bool = True,
        input_responses: Mapping[str, JSON] | None = None,
        request_state: str | None = None,
        client_capabilities: Mapping[str, object] | None = None,
        log_level: str | None = None,
    ) -> PromptResult:
        route = partial(self._core.calls.route_prompt, name, arguments)
        options = call_options(answer_rounds, input_responses, request_state, client_capabilities, log_level)
        member, raw = await self._core.calls.call(
            GET_PROMPT, name, route, caller or self._caller, meta, timeout, on_progress, options
        )
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
        route = partial(self._core.calls.route_completion, ref, argument, context)
        name = str(ref.get("name", ref.get("uri")))
        member, raw = await self._core.calls.call(COMPLETE, name, route, caller or self._caller, meta, timeout, None)
        return CompletionResult(raw, member.backend_id)

    async def subscribe_resource(
        self, uri: str, *, caller: Identity | None = None, timeout: float | None = None
    ) -> None:
        await self._core.calls.subscribe(uri, caller or self._caller, timeout)

    async def unsubscribe_resource(
        self, uri: str, *, caller: Identity | None = None, timeout: float | None = None
    ) -> None:
        await self._core.calls.unsubscribe(uri, caller or self._caller, timeout)

    async def set_log_level(self, level: str, *, caller: Identity | None = None) -> None:
        await self._core.calls.set_log_level(level, caller or self._caller)

    async def tell_roots_changed(self, *, caller: Identity | None = None) -> None:
        await self._core.calls.tell_roots_changed(caller or self._caller)

    def public_ttl(self, method: str) -> float | None:
        return self._core.directory.public_ttl(method)

    # --- members that come and go, and the end

    async def add_backend(self, backend: Backend) -> None:
        await self._core.add_backend(backend, self._caller)

    async def remove_backend(self, backend_id: str, *, drain_timeout: float | None = None) -> None:
        await self._core.remove_backend(backend_id, drain_timeout=drain_timeout)

    async def set_attributes(self, attributes: Mapping[str, str]) -> None:
        await self._core.set_attributes(attributes)

    async def aclose(self, *, drain_timeout: float | None = None) -> None:
        await self._core.close(terminate=True, drain_timeout=drain_timeout)

    aclose.__doc__ = Session.aclose.__doc__  # else that of trio.abc.AsyncResource, the first base

    async def wait_closed(self) -> None:
        await self._core.wait_closed()

    async def wait_draining(self) -> None:
        await self._core.wait_draining()

    async def suspend(self, *, drain_timeout: float | None = None) -> None:
        await self._core.close(terminate=False, drain_timeout=drain_timeout)
