"""The two interfaces of a session: what storage and transports see of it, and what callers do with it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

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

__all__ = ["Session", "TransportSession"]


class TransportSession(Protocol):
    """The serialisable layer: plain data that a storage keeps and another process may read."""

    @property
    def id(self) -> str:
        """A bearer token: it restores the session."""
        ...

    @property
    def created_at(self) -> datetime:
        """Wall time in UTC."""
        ...

    @property
    def updated_at(self) -> datetime:
        """When the metadata was last written: wall time in UTC."""
        ...

    @property
    def metadata(self) -> SessionMetadata:
        """What the storage holds of this session."""
        ...


class Session(TransportSession, Protocol):
    """The live layer: one client's view over its backends. Never leaves the process.

    A `trio.abc.AsyncResource`. Calls run in their callers' tasks. Every call may raise, besides what its own docstring
    says:

    Raises:
        SessionClosed: Not admitted, or cut off when `drain_timeout` ran out.
        NilCaller, UnauthorizedCaller: `caller` is not the identity that the session is bound to.
        BackendError: A subclass names the backend and says whether the call may have executed.
    """

    @property
    def tools(self) -> tuple[Tool, ...]:
        """In configured order, backends that are away included: their tools are listed as last seen."""
        ...

    @property
    def resources(self) -> tuple[Resource, ...]:
        """As `tools`. A URI that several backends list is there once."""
        ...

    @property
    def resource_templates(self) -> tuple[ResourceTemplate, ...]:
        """As `tools`. A template that several backends list is there once."""
        ...

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """As `tools`."""
        ...

    @property
    def routing_table(self) -> RoutingTable:
        """Which backend a name or URI belongs to."""
        ...

    @property
    def backend_sessions(self) -> Mapping[str, str]:
        """Backend id → the session id that the backend assigned: a bearer token."""
        ...

    @property
    def failures(self) -> tuple[BackendFailure, ...]:
        """Which backends are missing and why; an entry goes when its backend joins."""
        ...

    @property
    def conflicts(self) -> tuple[NameConflict, ...]:
        """Names that several backends claim: tools, then prompts, then URIs."""
        ...

    @property
    def backends(self) -> Mapping[str, BackendStatus]:
        """How each backend is, by its id; the latest 100 that were removed included."""
        ...

    @property
    def state(self) -> SessionState:
        """OPEN, DRAINING from the request to close on, then CLOSED."""
        ...

    @property
    def in_flight(self) -> int:
        """Calls that were admitted and have not ended."""
        ...

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
        """Call a tool by its advertised name. Executed at most once. Source: MCP server/tools.

        Args:
            arguments: JSON object fitting the tool's input schema; not validated here.
            meta: Forwarded as `_meta`, without the keys that MCP reserves.
            timeout: s, the whole exchange; None: the backend's or the factory's `request_timeout`; `math.inf`: none.

        Raises:
            ToolNotFound: No such name; no backend was contacted.
        """
        ...

    async def read_resource(
        self,
        uri: str,
        *,
        caller: Identity | None = None,
        meta: JSON | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> ResourceResult:
        """Read a listed resource, or one that a listed template matches (RFC 6570).

        Raises:
            ResourceNotFound: Neither; no backend was contacted.
        """
        ...

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
        """Fill in a prompt by its advertised name.

        Raises:
            PromptNotFound: No such name; no backend was contacted.
        """
        ...

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
        """Ask what could come next in an argument.

        Args:
            ref: `{"type": "ref/prompt", "name": advertised name}` or `{"type": "ref/resource", "uri": uri or
                template}`.
            argument: `{"name": …, "value": …}`.

        Raises:
            PromptNotFound, ResourceNotFound: `ref` names nothing here.
            ValueError: `ref` is of neither form.
        """
        ...

    async def subscribe_resource(
        self, uri: str, *, caller: Identity | None = None, timeout: float | None = None
    ) -> None:
        """Be told of updates of a resource, as `SessionChange`s of kind "resource_updated", until the session closes.

        A backend that is connected anew is subscribed to again, and may have missed updates: one is told for each URI.

        Raises:
            ResourceNotFound: Neither listed nor matched by a template.
            BackendRejected: Its backend offers no subscriptions.
        """
        ...

    async def unsubscribe_resource(
        self, uri: str, *, caller: Identity | None = None, timeout: float | None = None
    ) -> None:
        """The reverse of `subscribe_resource`."""
        ...

    async def add_backend(self, backend: Backend) -> None:
        """Take another backend into the live session. Returns once it has joined or failed (then it is in `failures`,
        and tried again in the background), within `backend_init_timeout`. Names that are taken stay with their owners.

        A cancelled caller stops waiting and does not undo it. A backend that was removed may be added again, also while
        its last calls end; and so may a member of a restored session that was not passed to `restore_session`.

        Raises:
            ValueError: A backend of this id is in the session.
            SessionClosed: The session is closing or closed, or closed first.
        """
        ...

    async def remove_backend(self, backend_id: str, *, drain_timeout: float | None = None) -> None:
        """Let one backend go: its names and its part of the metadata are gone at once, calls that it is at may end for
        `drain_timeout` s (None: the factory's) and are then cut off with `BackendUnavailable`. The others do not
        notice. Returns when all is let go of.

        A cancelled caller stops waiting, and does not undo it. From inside one of the session's own calls this asks and
        returns at once. Names stay bound: should the backend be added again, they come back to it.

        Raises:
            ValueError: There is no such backend.
            SessionClosed: The session is closing or closed.
        """
        ...

    def as_caller(self, identity: Identity | None) -> Session:
        """This session with `caller` filled in: what a server hands to a request.

        Raises:
            NilCaller, UnauthorizedCaller: `identity` is not the identity that the session is bound to.
        """
        ...

    def changes(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[SessionChange]]:
        """What changes from here on. Coalescing and bounded; ends with EndOfChannel when the session closes.

        A list that a backend announces as changed is fetched again, and is a change only if it differs.
        """
        ...

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """`aclose`."""
        ...

    async def aclose(self, *, drain_timeout: float | None = None) -> None:
        """Terminate: refuse new calls at once, wait for those in flight, end the backends' sessions, delete the
        metadata.

        Any number of closers may come, and a cancelled one does not undo the close; all return together. A shorter
        `drain_timeout` (s; None: the factory's) shortens the drain. From inside one of the session's own calls this
        asks and returns at once.
        """
        ...

    async def suspend(self, *, drain_timeout: float | None = None) -> None:
        """Let go here: like `aclose`, but metadata and the backends' sessions stay, so that the session can be
        restored.
        """
        ...
