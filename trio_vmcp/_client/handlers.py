"""The handlers of a session, for one backend: which handler answers a request, and how its answer is checked."""

from __future__ import annotations

import logging
from typing import Any

import attrs

from trio_vmcp._client.http.connection_limit import ConnectionSlot, current_slot
from trio_vmcp._interrupts import run_interruptible
from trio_vmcp._nursery import describe_crash
from trio_vmcp._protocol.jsonrpc import encode_result
from trio_vmcp._protocol.methods import ELICITATION_COMPLETE, MESSAGE, QUESTIONS
from trio_vmcp._request_note import HandlerNote, RequestNote, current_note
from trio_vmcp.connector import CallInfo, ClientHandlers, Handler, ServerRequest, ServerRequestError
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON

__all__ = ["INTERNAL_ERROR", "MOST_QUOTED", "SAMPLING_TOOLS", "BoundHandlers", "call_info"]

logger = logging.getLogger("trio_vmcp.client")

METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL_ERROR = -32601, -32602, -32603
MOST_QUOTED = 128  # characters of a method that a backend made up

# `form` and `url` since 2025-11-25; servers of earlier versions ignore the members of this object.
_DECLARED: JSON = {"sampling": {}, "elicitation": {"form": {}, "url": {}}, "roots": {}}
_NOTICES = {MESSAGE: "log", ELICITATION_COMPLETE: "elicitation_complete"}
# "The client MUST return an error if this field is provided but sampling.tools is not declared" (schema, 2025-11-25).
SAMPLING_TOOLS = ("tools", "toolChoice")


@attrs.define(eq=False)
class BoundHandlers:
    """The handlers of one session, for one of its backends.

    Attributes:
        capabilities: The client capabilities that are declared to the backend: one for each handler that was given.
    """

    client_handlers: ClientHandlers
    session_id: str = attrs.field(repr=False)
    backend_id: str
    capabilities: JSON = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        given = self.client_handlers.capabilities
        declared = _DECLARED if given is None else {kind: given[kind] for kind in _DECLARED if kind in given}
        self.capabilities = {kind: value for kind, value in declared.items() if self._handler(kind) is not None}
        if given is None and self.client_handlers.sampling_tools:
            self.capabilities["sampling"] = {"tools": {}}

    @property
    def answer_questions(self) -> bool:
        """There is a handler for what servers ask: for sampling or elicitation."""
        return not self.capabilities.keys().isdisjoint(("sampling", "elicitation"))

    @property
    def notice_kinds(self) -> dict[str, str]:
        """The methods of the notifications that there are handlers for, and which handlers."""
        return {method: kind for method, kind in _NOTICES.items() if self._handler(kind) is not None}

    def refuse_request(self, method: str, params: JSON) -> ServerRequestError | None:
        """The error for a request that no handler can answer; None: there is a handler for it."""
        kind = QUESTIONS.get(method)
        if kind is None or self._handler(kind) is None:
            return ServerRequestError(METHOD_NOT_FOUND, "this client offers no such capability")
        if kind == "elicitation" and params.get("mode") not in (None, "form", "url"):
            return ServerRequestError(INVALID_PARAMS, "this client knows the modes 'form' and 'url'")
        has_tools = kind == "sampling" and any(params.get(name) is not None for name in SAMPLING_TOOLS)
        if has_tools and "tools" not in self.capabilities["sampling"]:
            return ServerRequestError(INVALID_PARAMS, "this client does not declare sampling.tools")
        return None

    async def answer_request(
        self,
        method: str,
        params: JSON,
        caller: Identity | None,
        *,
        outer: RequestNote | None,
        slot: ConnectionSlot | None,
    ) -> JSON:
        """Run the handler for a request. Call this in a new task, since it changes the context of the task.

        Args:
            outer: The note of the call that the request belongs to: the handler runs inside of that call.
            slot: The connection slot that requests of the handler share while the slot is held.

        Returns:
            A JSON object that can be sent.

        Raises:
            ServerRequestError: There is no answer. If the handler raised an error, its type is in the log.
        """
        refused = self.refuse_request(method, params)
        if refused is not None:
            raise refused
        kind = QUESTIONS[method]
        result = await self.run_handler(kind, params, caller, call_info(outer), outer=outer, slot=slot)
        if not isinstance(result, dict):
            raise self._useless(kind, f"returned {type(result).__name__}, not a JSON object")
        if kind == "elicitation":
            result = _with_defaults(params, result)
        try:
            encode_result(0, result)
        except ValueError as exc:
            raise self._useless(kind, f"returned what is not JSON: {exc}") from None
        return dict(result)

    async def run_handler(
        self,
        kind: str,
        params: JSON,
        caller: Identity | None,
        call: CallInfo | None,
        *,
        outer: RequestNote | None,
        slot: ConnectionSlot | None,
    ) -> Any:
        """Run the handler of this kind, and return its result.

        Raises:
            ServerRequestError: The handler raised this, or another error.
        """
        handler = self._handler(kind)
        assert handler is not None
        note = HandlerNote(session_id=self.session_id, outer=outer)
        current_note.set(note)
        current_slot.set(slot)
        crash, result, refused = "", None, None
        try:
            result = await run_interruptible(
                handler, ServerRequest(self.session_id, self.backend_id, caller, params, call)
            )
        except* Exception as group:  # noqa: BLE001  # a handler is the user's; a nursery of its own may mix in a Cancelled
            crash, refused = describe_crash(group), _only_refusal(group)
        finally:
            note.running = False
        if refused is not None:
            raise refused
        if crash:
            raise self._useless(kind, f"raised {crash}")
        return result

    def _handler(self, kind: str) -> Handler | None:
        handler: Handler | None = getattr(self.client_handlers, kind)
        return handler

    def _useless(self, kind: str, what: str) -> ServerRequestError:
        logger.warning("backend %r: the %s handler %s", self.backend_id, kind, what)
        return ServerRequestError(INTERNAL_ERROR, "the client failed to answer")


def _only_refusal(group: BaseExceptionGroup[Exception]) -> ServerRequestError | None:
    """The error that a handler raised on purpose; None: it raised something else, or several errors."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, ServerRequestError) else None


def call_info(note: RequestNote | None) -> CallInfo | None:
    """The call whose note this is; None: the note of no call."""
    return None if note is None or note.call_name is None else CallInfo(note.call_name, note.call_meta)


def _with_defaults(params: JSON, result: JSON) -> JSON:
    """If a form was accepted, fill in the defaults of its schema for the fields that were left out.

    Source: MCP 2025-11-25, elicitation (SEP-1034). A form has one level: properties of primitive types.
    """
    content = result.get("content")
    if result.get("action") != "accept" or params.get("mode") not in (None, "form"):
        return result
    if content is None:
        content = {}
    schema = params.get("requestedSchema")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(content, dict) or not isinstance(properties, dict):
        return result
    defaults = {
        name: form["default"]
        for name, form in properties.items()
        if isinstance(form, dict) and form.get("default") is not None
    }
    return result | {"content": defaults | content}
