"""The two interfaces of a session: `TransportSession`, its plain data, and `Session`, for calls."""

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
        """The metadata that the storage holds of this session."""
        ...


class Session(TransportSession, Protocol):
    """One client's view over its backends: the live layer, which never leaves the process. A `trio.abc.AsyncResource`.

    A call runs in the task of its caller. Cancelling the caller's scope cancels the call and tells the backend: with
    `notifications/cancelled` in the handshake era and over stdio, in the stateless era over HTTP by closing the
    response stream (MCP 2025-11-25 and 2026-07-28, basic/utilities/cancellation).

    A request is sent again only if it provably did not run: the backend refused it before reading it (HTTP 401), or the
    backend session that it was for is lost (HTTP 404, or a 400 that says so). A lost backend session is replaced once
    for all calls that find it lost, in the era that the backend then speaks; calls that still run on the old connection
    end there. The first result of a tool call in the new session has `backend_state_lost`. After a timeout, a reset or
    a broken stream nothing is sent again: the error has `may_have_executed=True`, and the caller decides whether to try
    again.

    With `answer_rounds=False` a question of a stateless backend is handed out, and another call takes the answer (MCP
    2026-07-28, multi round-trip requests). Neither the session nor its process keeps anything in between: the second
    call may come minutes later and from another process. Each of the two is a call of its own, with its own timeout;
    how many of them follow each other is for the caller to limit. The second may fail like any other call, and is not
    sent again after a timeout, a reset or a broken stream either. Its name or URI must still belong to the backend that
    asked (`backend_id` of the result). A web page that shows the question as a form:

    ```python
    async def turn(session, name, arguments, answers=None, state=None):
        # One request of the page. Returns the result, or what to show and what to keep until the next request.
        result = await session.call_tool(
            name,
            arguments,
            answer_rounds=False,
            client_capabilities={"elicitation": {}},  # forms alone
            input_responses=answers,
            request_state=state,
        )
        if result.input_required is None:
            return {"result": result.raw}
        return {"ask": result.input_required, "keep": [name, arguments, result.request_state]}


    async def submit(session, kept, contents):
        # The user has filled in the forms. contents: the fields of each form, by its key in "ask".
        name, arguments, state = kept
        answers = {key: {"action": "accept", "content": content} for key, content in contents.items()}
        return await turn(session, name, arguments, answers, state)
    ```

    What is kept belongs to the caller whose call it was: keep it on the server, or sealed.

    A session that was made with an identity is bound to its issuer and subject: every call needs that identity as
    `caller`, or goes through `as_caller`.

    Besides the errors in its own docstring, every call may raise:

    Raises:
        SessionClosed: Not admitted, or cut off when `drain_timeout` ran out.
        ValueError: `arguments`, `meta` or the like hold what JSON has not, such as NaN or a set. Names the place.
            Nothing was sent.
        NilCaller, UnauthorizedCaller: `caller` is not the identity that the session is bound to.
        BackendError: A subclass names the backend and says whether the call may have executed.
    """

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The advertised tools, in configured order of the backends. While a backend is away, its tools stay as last
        seen.

        When a backend says that a list changed, the list is fetched again: at once, then at most once a second for each
        backend and list. A list that was read before the backend's stream for changes was open is read once more after
        that.
        """
        ...

    @property
    def resources(self) -> tuple[Resource, ...]:
        """The advertised resources, as `tools`. A URI that several backends list is included once."""
        ...

    @property
    def resource_templates(self) -> tuple[ResourceTemplate, ...]:
        """The advertised templates, as `tools`. A template that several backends list is included once."""
        ...

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The advertised prompts, as `tools`."""
        ...

    @property
    def routing_table(self) -> RoutingTable:
        """The backend that each advertised name and URI belongs to."""
        ...

    @property
    def backend_sessions(self) -> Mapping[str, str]:
        """Backend id → the session id that the backend assigned, a bearer token; absent if it assigned none."""
        ...

    @property
    def failures(self) -> tuple[BackendFailure, ...]:
        """The backends that are missing, with the reason. An entry is removed when its backend joins."""
        ...

    @property
    def conflicts(self) -> tuple[NameConflict, ...]:
        """Names that several backends claim: tools, then prompts, then URIs. See `NameConflict`."""
        ...

    @property
    def backends(self) -> Mapping[str, BackendStatus]:
        """The condition of each backend, by its id, from the calls so far and without a probe; the latest 100 removed
        backends included.
        """
        ...

    @property
    def state(self) -> SessionState:
        """OPEN, DRAINING from the request to close on, then CLOSED."""
        ...

    @property
    def in_flight(self) -> int:
        """Calls that were admitted and have not ended."""
        ...

    @property
    def tag(self) -> str:
        """The short keyed name of this session in log records, events and its repr. It does not tell the id."""
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
        answer_rounds: bool = True,
        input_responses: Mapping[str, JSON] | None = None,
        request_state: str | None = None,
        client_capabilities: Mapping[str, object] | None = None,
        log_level: str | None = None,
    ) -> ToolResult:
        """Call a tool by its advertised name. The call is executed at most once (see `Session`).

        Source: MCP 2025-11-25, server/tools.

        Args:
            arguments: JSON object fitting the tool's input schema; not validated here.
            caller: The identity that calls; needed if the session is bound to one.
            meta: Forwarded as `_meta`, without the keys that MCP reserves (`io.modelcontextprotocol/*`).
            timeout: s, the whole exchange from admission on; None: the backend's or the factory's `request_timeout`;
                `math.inf`: none. The exchange includes up to ten rounds in which the backend asks a question and the
                call is sent again with the answer.
            on_progress: `async (progress, total, message)`, run in the caller's task; an error that it raises cancels
                the request and comes out as itself.
            answer_rounds: False: what a backend of the stateless era asks is not answered by handlers. It comes back as
                `input_required` and `request_state` of the result. A backend of the handshake era has no such rounds:
                its questions go to the handlers as ever.
            input_responses: Answers the questions of an earlier result: for each key of its `input_required` the result
                object that MCP defines for that method, such as ElicitResult. All other arguments are those of the
                earlier call.
            request_state: The `request_state` of that earlier result, unchanged.
            client_capabilities: The client capabilities to declare for this request, in place of those that the
                handlers imply, such as `{"elicitation": {}}`. A backend may ask for nothing else.
            log_level: "debug", "info", "notice", "warning", "error", "critical", "alert" or "emergency": the backend
                may send log messages of this request from this severity on; they go to `ClientHandlers.log`.

        The last two are sent to backends of the stateless era alone.

        Raises:
            ToolNotFound: No tool has this name; no backend was contacted.
            TypeError, ValueError: One of these keywords has a value of another type, or one that cannot be sent.
                Nothing was sent.
            BackendRejected: With `input_responses` or `request_state`: also where the backend has no rounds, since it
                speaks the handshake era. Nothing was sent.
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
        answer_rounds: bool = True,
        input_responses: Mapping[str, JSON] | None = None,
        request_state: str | None = None,
        client_capabilities: Mapping[str, object] | None = None,
        log_level: str | None = None,
    ) -> ResourceResult:
        """Read a resource that is listed, or that a listed template matches (RFC 6570). Arguments as for `call_tool`.

        Raises:
            ResourceNotFound: The URI is not listed, and no template matches; no backend was contacted.
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
        answer_rounds: bool = True,
        input_responses: Mapping[str, JSON] | None = None,
        request_state: str | None = None,
        client_capabilities: Mapping[str, object] | None = None,
        log_level: str | None = None,
    ) -> PromptResult:
        """Fill in a prompt by its advertised name. Arguments as for `call_tool`.

        Raises:
            PromptNotFound: No prompt has this name; no backend was contacted.
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
        """Ask for completions of an argument of a prompt or resource template.

        Args:
            ref: `{"type": "ref/prompt", "name": advertised name}` or `{"type": "ref/resource", "uri": uri or
                template}`.
            argument: `{"name": …, "value": …}`.

        Raises:
            PromptNotFound, ResourceNotFound: No backend has what `ref` names.
            ValueError: `ref` is of neither form.
        """
        ...

    async def subscribe_resource(
        self, uri: str, *, caller: Identity | None = None, timeout: float | None = None
    ) -> None:
        """Have updates of one resource reported by `changes()`, as kind "resource_updated", until the session closes.

        A backend has up to 1000 subscriptions. After a new connection to the backend, its resources are subscribed to
        again; updates may be missing, so one is reported for each URI. If two callers subscribe to one resource and one
        of them is cancelled, the other's subscription stays.

        Raises:
            ResourceNotFound: The URI is not listed, and no template matches.
            BackendRejected: Its backend offers no subscriptions.
            MessageTooLarge: The backend has 1000 subscriptions already.
        """
        ...

    async def unsubscribe_resource(
        self, uri: str, *, caller: Identity | None = None, timeout: float | None = None
    ) -> None:
        """End a subscription that `subscribe_resource` made."""
        ...

    async def set_log_level(self, level: str, *, caller: Identity | None = None) -> None:
        """Say from which level on backends send log messages, which `ClientHandlers.log` receives: MCP 2025-11-25,
        server/utilities/logging.

        It holds for every backend that declares `logging`, also for those that join or are connected again later, until
        the session ends in this process; a session that hibernates wakes there with its level. In the handshake era
        each backend is told with `logging/setLevel`; in the stateless era each request from now on says it
        (`io.modelcontextprotocol/logLevel`). Before the first call a backend of the handshake era sends what it likes,
        and one of the stateless era is asked for "info" if there is a handler. Returns when all of them have answered,
        within the `request_timeout` of each. One that refuses costs a warning in the log.

        Args:
            level: "debug", "info", "notice", "warning", "error", "critical", "alert" or "emergency".
            caller: As for `call_tool`.

        Raises:
            ValueError: `level` is none of these.
        """
        ...

    async def tell_roots_changed(self, *, caller: Identity | None = None) -> None:
        """Tell the backends that the answer to `roots/list` is another one now: `notifications/roots/list_changed` (MCP
        2025-11-25, client/roots).

        It is sent to connected backends of the handshake era, and only where `ClientHandlers(capabilities=…)` declares
        `{"roots": {"listChanged": True}}`. Returns when they have taken it, within the `request_timeout` of each. A
        backend that does not take it costs a warning in the log.
        """
        ...

    def public_ttl(self, method: str) -> float | None:
        """How long the list of a method, such as "tools/list", may be kept and shown to any principal, in ms: the least
        `ttlMs` of its backends. None: not all of them say `cacheScope: "public"` of it (MCP 2026-07-28, caching).
        """
        ...

    async def add_backend(self, backend: Backend) -> None:
        """Connect another backend to the live session.

        Returns when the backend has joined, or is in `failures` and tried again in the background; within
        `backend_init_timeout`. Names that are taken stay with their owners (see `conflicts`). Cancelling the caller
        ends its wait and does not undo the addition.

        The connection carries the credentials of the identity of the view that this is called on (`as_caller`), else
        those of the identity that the session was opened with.

        An id that was removed may be added again, also while its last calls end. So may a member of a restored session
        that was not passed to `restore_session`.

        Raises:
            ValueError: A backend of this id is in the session.
            SessionClosed: The session is closing or closed, or closed first.
        """
        ...

    async def remove_backend(self, backend_id: str, *, drain_timeout: float | None = None) -> None:
        """Remove one backend. Its names and its part of the metadata are gone at once.

        Calls that run on the backend have `drain_timeout` s to end (None: the factory's) and are then cut off with
        `BackendUnavailable`. Other backends are not affected. Returns when the connections are closed. Cancelling the
        caller ends its wait and does not undo the removal. From inside one of the session's own calls, this asks and
        returns at once.

        Names stay bound: if the backend is added again, they are its names again.

        Raises:
            ValueError: There is no such backend.
            SessionClosed: The session is closing or closed.
        """
        ...

    async def set_attributes(self, attributes: Mapping[str, str]) -> None:
        """Replace the attributes of the session, all of them: `metadata.attributes`, strings of the application's own.

        Returns when the row in the storage has them. If several instances have the session, the latest of their
        `set_attributes` wins as a whole. Of those that wait at the same time here, the latest is written. Cancelling
        the caller ends its wait; what is on its way to the storage by then may still be written.

        Args:
            attributes: Up to 16 KiB in UTF-8, keys and values together; copied.

        Raises:
            ValueError: They are no mapping of str to str, or too large.
            StorageError: The row was not written, and the attributes are as before. If the storage took the row without
                an answer, the next write sets the row back.
            SessionClosed: The session is closing or closed, or closed first.
        """
        ...

    def as_caller(self, identity: Identity | None) -> Session:
        """This session with `caller` filled in: what a server hands to a request.

        Raises:
            NilCaller, UnauthorizedCaller: `identity` is not the identity that the session is bound to.
        """
        ...

    def changes(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[SessionChange]]:
        """Changes from here on, each reported once. Coalescing and bounded: the session never waits for a slow reader.
        Ends with `trio.EndOfChannel` when the session closes.

        A list that a backend announces as changed is fetched again, and reported only if it differs.
        """
        ...

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """`aclose`."""
        ...

    async def aclose(self, *, drain_timeout: float | None = None) -> None:
        """Terminate the session.

        1. New calls are refused at once with `SessionClosed`.
        2. Calls in flight have `drain_timeout` s to end; nothing is closed under them.
        3. Calls that are left are cut off: they raise `SessionClosed`. The scopes of their callers are not cancelled.
        4. Within `teardown_timeout` s, in parallel: the sessions and processes of the backends are ended, and the
           metadata is deleted. Errors there are warnings in the log.
        5. The session's nursery is cancelled, and all closers return together.

        Any number of tasks may close a session; cancelling one of them does not undo the close. The first decides
        between `aclose` and `suspend`; a later, shorter `drain_timeout` (s; None: the factory's) shortens the drain.
        From inside one of the session's own calls, this asks and returns at once. If the code around the session is
        cancelled, the session closes in the same way, with a shielded drain of at most 10 s.
        """
        ...

    async def wait_closed(self) -> None:
        """Wait until the session is CLOSED, however it ends: closed, idle, hibernating, or terminated elsewhere."""
        ...

    async def wait_draining(self) -> None:
        """Wait until the session takes no more calls: it is DRAINING, or CLOSED, for whatever reason."""
        ...

    async def suspend(self, *, drain_timeout: float | None = None) -> None:
        """End the session in this process only: as `aclose`, but the metadata and the backends' sessions stay.

        `restore_session` can open the session again, here or in another process. The metadata is saved before any
        connection is closed.
        """
        ...
