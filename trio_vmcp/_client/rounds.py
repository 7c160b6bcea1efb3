"""Requests in several rounds: an answer may ask for input, and then the request is sent again with the input.

Source: MCP 2026-07-28, multi round-trip requests. The state of a round belongs to one request, so it is kept in local
variables only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from trio_vmcp._client.channels.channel import Ask
from trio_vmcp._client.handlers import (
    INTERNAL_ERROR,
    MOST_QUOTED,
    SAMPLING_TOOLS,
    BoundHandlers,
)
from trio_vmcp._client.http.connection_limit import current_slot
from trio_vmcp._nursery import start_clean
from trio_vmcp._protocol.methods import CLIENT_CAPABILITIES, INPUT_RESPONSES, QUESTIONS, REQUEST_STATE, Method
from trio_vmcp._protocol.rounds import INPUT_REQUIRED, BadRound, Round, read_round
from trio_vmcp._request_note import answering_on, current_note, note_written
from trio_vmcp.connector import ServerRequestError
from trio_vmcp.errors import BackendError, BackendProtocolError, BackendRejected
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON

__all__ = ["MOST_ROUNDS", "AskAgain", "check_question", "finish_rounds", "is_complete"]

MOST_ROUNDS = 10  # as in the official SDKs; the next question is an error
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.25  # s before the next round if this one asked nothing
AskAgain: TypeAlias = Callable[[JSON], Awaitable[JSON]]
"""Sends the same request with these params, under a new id, and returns its result."""


def is_complete(backend_id: str, method: Method, result: JSON) -> bool:
    """Whether this result ends its request; False: it asks for input.

    Raises:
        BackendProtocolError: The result is neither.
    """
    kind = result.get("resultType")
    if kind is None:
        kind = "complete"  # "absent means complete"
    if kind == "complete":
        return True
    if kind == INPUT_REQUIRED and method.may_ask_back:
        return False
    # "Servers MUST NOT send InputRequiredResult responses on any other client requests."
    what = "for input, which this method has no place for" if kind == INPUT_REQUIRED else "with an unknown resultType"
    raise BackendProtocolError(backend_id, f"answered {method.name!r} {what}", may_have_executed=True)


async def finish_rounds(first: JSON, ask: Ask, method: Method, ask_again: AskAgain, handlers: BoundHandlers) -> JSON:
    """Run rounds until the request has a result. Its first answer, `first`, asks for input. The request itself may have
    been the next round of an earlier one: its caller gave input, and the rounds from here on are answered by handlers.

    The deadline and the cancellation of the call include all rounds and their handlers.

    Raises:
        BackendProtocolError: The backend asks for input that was not declared or is malformed, or for more than
            MOST_ROUNDS rounds.
        BackendRejected: A handler failed. This era has no message that says so to the backend.
        BackendError: A round failed. `may_have_executed` is True, since the backend has acted on the rounds before.
    """
    backend_id, name, answer, pause = handlers.backend_id, ask.method, first, FIRST_PAUSE
    params = {key: value for key, value in ask.params.items() if key not in (INPUT_RESPONSES, REQUEST_STATE)}
    for _ in range(MOST_ROUNDS):
        round_ = _read(answer, ask, handlers)
        more: JSON = {} if round_.state is None else {REQUEST_STATE: round_.state}
        with answering_on((ask.note,)):
            if round_.inputs:
                more[INPUT_RESPONSES] = await _fulfil(round_.inputs, name, handlers, ask.identity)
            else:
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        try:
            answer = await ask_again(params | more)
        except BackendError as error:
            error.may_have_executed = True
            raise
        finally:
            note_written(True)
        if is_complete(backend_id, method, answer):
            return answer
    raise _protocol_error(backend_id, name, f"for input over {MOST_ROUNDS} times")


def check_question(answer: JSON, ask: Ask, handlers: BoundHandlers) -> None:
    """Check an answer that asks for input, before it is handed out.

    Raises:
        BackendProtocolError: It asks for input that this request did not declare, or is malformed.
    """
    _read(answer, ask, handlers)


def _read(answer: JSON, ask: Ask, handlers: BoundHandlers) -> Round:
    try:
        round_ = read_round(answer)
    except BadRound as bad:
        raise _protocol_error(handlers.backend_id, ask.method, str(bad)) from None
    for wanted, given in round_.inputs.values():
        refused = _refusal(ask, handlers, wanted, given)
        if refused is not None:
            what = f"for the input {wanted[:MOST_QUOTED]!r}, which is not given: {refused}"
            raise _protocol_error(handlers.backend_id, ask.method, what)
    return round_


def _refusal(ask: Ask, handlers: BoundHandlers, wanted: str, given: JSON) -> str | None:
    """Why this input is not given; None: there is a handler for it, or the caller gives it."""
    refused = None if ask.note.hands_out_rounds else handlers.refuse_request(wanted, given)
    if refused is not None:
        return refused.message
    capabilities = ask.params.get("_meta", {}).get(CLIENT_CAPABILITIES, handlers.capabilities)
    return None if _is_declared(capabilities, wanted, given) else "the request did not declare it (client_capabilities)"


def _is_declared(capabilities: JSON, method: str, params: JSON) -> bool:
    """Whether these client capabilities let a backend ask for this. A server "MUST NOT" ask for what its client has not
    declared (2026-07-28, multi round-trip requests).
    """
    kind = QUESTIONS.get(method)
    declared = None if kind is None else capabilities.get(kind)
    if not isinstance(declared, dict):
        return False
    if kind == "elicitation":
        mode = params.get("mode") or "form"
        # An empty object declares form mode alone (2025-11-25, elicitation, "Capabilities").
        return mode in [*declared] or (mode == "form" and "url" not in declared)
    # "The client MUST return an error if this field is provided but sampling.tools is not declared" (schema).
    asks_for_tools = any(params.get(name) is not None for name in SAMPLING_TOOLS)
    return kind != "sampling" or not asks_for_tools or "tools" in declared


async def _fulfil(
    inputs: dict[str, tuple[str, JSON]], method: str, handlers: BoundHandlers, caller: Identity | None
) -> dict[str, JSON]:
    """Run all handlers in parallel. Returns the responses by the same keys."""
    responses: dict[str, JSON] = {}
    failed: list[str] = []
    # No exchange of this call is open now, so its handlers hold a slot only if the call itself runs inside another one.
    outer, slot = current_note.get(), current_slot.get()

    async def answer(key: str, wanted: str, given: JSON) -> None:
        try:
            responses[key] = await handlers.answer_request(wanted, given, caller, outer=outer, slot=slot)
        except ServerRequestError:
            failed.append(wanted)
            nursery.cancel_scope.cancel(reason="another handler failed")

    async with trio.open_nursery() as nursery:
        for key, (wanted, given) in inputs.items():
            start_clean(nursery, answer, key, wanted, given)
    if failed:
        raise BackendRejected(
            handlers.backend_id,
            f"asked for the input {failed[0]!r} on {method!r}, and the handler for it failed: see the log",
            code=INTERNAL_ERROR,
            message="the client failed to answer",
            may_have_executed=True,
        )
    return {key: responses[key] for key in inputs}


def _protocol_error(backend_id: str, method: str, what: str) -> BackendProtocolError:
    return BackendProtocolError(backend_id, f"answered {method!r} with a question {what}", may_have_executed=True)
