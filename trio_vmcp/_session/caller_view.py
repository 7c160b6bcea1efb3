"""A session with the caller filled in: what a server hands to one request."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TYPE_CHECKING

import attrs
import trio

from trio_vmcp.connector import OnProgress
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

if TYPE_CHECKING:  # the session makes its views, so one of the two must not import the other
    from trio_vmcp.session import Session

__all__ = ["CallerView"]


@attrs.frozen(eq=False)
class CallerView(trio.abc.AsyncResource):
    """Everything is the session's own; calls without a `caller` of their own get this one."""

    _session: Session = attrs.field(repr=False)
    _caller: Identity | None

    @property
    def id(self) -> str:
        return self._session.id

    @property
    def created_at(self) -> datetime:
        return self._session.created_at

    @property
    def updated_at(self) -> datetime:
        return self._session.updated_at

    @property
    def metadata(self) -> SessionMetadata:
        return self._session.metadata

    @property
    def tools(self) -> tuple[Tool, ...]:
        return self._session.tools

    @property
    def resources(self) -> tuple[Resource, ...]:
        return self._session.resources

    @property
    def resource_templates(self) -> tuple[ResourceTemplate, ...]:
        return self._session.resource_templates

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return self._session.prompts

    @property
    def routing_table(self) -> RoutingTable:
        return self._session.routing_table

    @property
    def backend_sessions(self) -> Mapping[str, str]:
        return self._session.backend_sessions

    @property
    def failures(self) -> tuple[BackendFailure, ...]:
        return self._session.failures

    @property
    def backends(self) -> Mapping[str, BackendStatus]:
        return self._session.backends

    @property
    def conflicts(self) -> tuple[NameConflict, ...]:
        return self._session.conflicts

    @property
    def state(self) -> SessionState:
        return self._session.state

    @property
    def in_flight(self) -> int:
        return self._session.in_flight

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
        return await self._session.call_tool(
            name, arguments, caller=caller or self._caller, meta=meta, timeout=timeout, on_progress=on_progress
        )

    async def read_resource(
        self,
        uri: str,
        *,
        caller: Identity | None = None,
        meta: JSON | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> ResourceResult:
        return await self._session.read_resource(
            uri, caller=caller or self._caller, meta=meta, timeout=timeout, on_progress=on_progress
        )

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
        return await self._session.get_prompt(
            name, arguments, caller=caller or self._caller, meta=meta, timeout=timeout, on_progress=on_progress
        )

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
        return await self._session.complete(
            ref, argument, context=context, caller=caller or self._caller, meta=meta, timeout=timeout
        )

    async def subscribe_resource(
        self, uri: str, *, caller: Identity | None = None, timeout: float | None = None
    ) -> None:
        await self._session.subscribe_resource(uri, caller=caller or self._caller, timeout=timeout)

    async def unsubscribe_resource(
        self, uri: str, *, caller: Identity | None = None, timeout: float | None = None
    ) -> None:
        await self._session.unsubscribe_resource(uri, caller=caller or self._caller, timeout=timeout)

    async def add_backend(self, backend: Backend) -> None:
        await self._session.add_backend(backend)

    async def remove_backend(self, backend_id: str, *, drain_timeout: float | None = None) -> None:
        await self._session.remove_backend(backend_id, drain_timeout=drain_timeout)

    def as_caller(self, identity: Identity | None) -> Session:
        return self._session.as_caller(identity)

    def changes(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[SessionChange]]:
        return self._session.changes()

    async def aclose(self, *, drain_timeout: float | None = None) -> None:
        await self._session.aclose(drain_timeout=drain_timeout)

    async def suspend(self, *, drain_timeout: float | None = None) -> None:
        await self._session.suspend(drain_timeout=drain_timeout)
