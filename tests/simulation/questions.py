"""Requests and log messages that backends send to their clients during a call, and the handlers that answer them. The
handlers record the session, backend and caller that they were called for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import attrs
import trio

from simulation import history
from simulation.history import Given
from simulation.trace import Event, HandlerCalled, HandlerReturned, LogReceived
from trio_vmcp import JSON, ClientHandlers, Identity, ServerRequest, ToolResult
from trio_vmcp.testing import CallContext, ScriptedBackend

__all__ = [
    "HandedOut",
    "HandlerError",
    "Handlers",
    "Question",
    "answered_by",
    "declared_to",
    "handed_out",
    "log_message",
    "question",
]

NOTE = "simulation/question"  # in `_meta`: tells a handler which question or log message it got
METHODS: dict[history.Question, str] = {
    "ping": "ping",
    "sampling": "sampling/createMessage",
    "elicitation": "elicitation/create",
    "roots": "roots/list",
}
PARAMS: dict[history.Question, JSON] = {
    "ping": {},
    "sampling": {"messages": [{"role": "user", "content": {"type": "text", "text": "?"}}], "maxTokens": 1},
    "elicitation": {
        "message": "?",
        "requestedSchema": {"type": "object", "properties": {"answer": {"type": "string"}}},
    },
    "roots": {},
}
CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"


class HandlerError(Exception):
    """Raised by a handler."""


@attrs.frozen
class Question:
    """One request of a tool to its client.

    Attributes:
        key: The call that it belongs to.
        number: Its number within the call.
    """

    kind: history.Question
    key: int
    number: int
    thinks: float
    reply: str

    @property
    def method(self) -> str:
        return METHODS[self.kind]

    @property
    def params(self) -> JSON:
        return PARAMS[self.kind] | {"_meta": {NOTE: attrs.asdict(self)}}

    def answer(self) -> JSON:
        text = f"{self.key}/{self.number}"
        match self.kind:
            case "sampling":
                return {"role": "assistant", "model": "m", "content": {"type": "text", "text": text}}
            case "elicitation":
                return {"action": "accept", "content": {"answer": text}}
            case "roots":
                return {"roots": [{"uri": f"file:///{text}"}]}
            case _:
                return {}

    def judge(self, result: object) -> Literal["right", "wrong"]:
        told = (
            {name: value for name, value in result.items() if name != "_meta"} if isinstance(result, dict) else result
        )
        return "right" if told == self.answer() else "wrong"


@attrs.frozen
class HandedOut:
    """A question that was handed out, and all that it takes to answer it, in whatever process.

    Attributes:
        name, arguments: Of the call that asked.
        inputs: The questions of the round, by the backend's keys.
    """

    key: int
    name: str
    arguments: JSON
    inputs: dict[str, Question]
    state: str | None

    @property
    def number(self) -> int:
        return max(asked.number for asked in self.inputs.values())

    def answers(self, op: int) -> dict[str, JSON]:
        """The responses. They say which operation gives them."""
        return {at: asked.answer() | {"_meta": {NOTE: op}} for at, asked in self.inputs.items()}


def handed_out(key: int, name: str, arguments: JSON, result: ToolResult) -> HandedOut | None:
    """The question in the result of a call; None: the result is complete."""
    if result.input_required is None:
        return None
    inputs = {at: Question(**each["params"]["_meta"][NOTE]) for at, each in result.input_required.items()}
    return HandedOut(key, name, arguments, inputs, result.request_state)


def answered_by(response: JSON) -> int | None:
    """The operation that gave an answer; None: a handler did."""
    by: int | None = response.get("_meta", {}).get(NOTE)
    return by


def question(key: int, number: int, arguments: JSON) -> Question:
    """The question that the arguments of a call describe."""
    return Question(arguments["question"], key, number, arguments["thinks"], arguments["reply"])


def log_message(key: int, number: int) -> JSON:
    """The params of `notifications/message`."""
    return {"level": "info", "data": "said in the middle of a call", "_meta": {NOTE: {"key": key, "number": number}}}


def declared_to(context: CallContext, backend: ScriptedBackend, kind: history.Question) -> bool | None:
    """Whether the client declared the capability; None: the backend cannot know which client called."""
    if context.is_modern:
        return kind in context.meta[CAPABILITIES]
    session_id = context.exchange.session_id
    greeting = backend.sessions.get(session_id or "")
    if not greeting:  # the session is its connection
        greetings = (each for each in backend.received("initialize") if each.session_id == session_id is not None)
        greeting = next((each.params for each in greetings), None)
    return None if greeting is None else kind in greeting["capabilities"]


@attrs.define(eq=False)
class Handlers:
    """The handlers given to a factory.

    Attributes:
        act: Calls a tool or closes the session before the answer; gets the session's id, the question, the caller.
        number_of: A session's number, from its id.
    """

    note: Callable[[Event], None]
    act: Callable[[str, Question, Identity | None], Awaitable[None]]
    number_of: Callable[[str], int]

    def given(self, kinds: Sequence[Given]) -> ClientHandlers:
        given: dict[str, Any] = {kind: self._log if kind == "log" else self._answer for kind in kinds}
        return ClientHandlers(**given)

    async def _answer(self, request: ServerRequest) -> JSON:
        asked = Question(**request.params["_meta"][NOTE])
        who: dict[str, Any] = {"key": asked.key, "number": asked.number}
        self.note(
            HandlerCalled(
                at=trio.current_time(),
                session=self.number_of(request.session_id),
                backend_id=request.backend_id,
                caller=None if request.caller is None else request.caller.subject,
                kind=asked.kind,
                **who,
            )
        )
        try:
            await trio.sleep(asked.thinks)
            match asked.reply:
                case "fail":
                    raise HandlerError
                case "hang":
                    await trio.sleep_forever()
                case "call" | "close":
                    await self.act(request.session_id, asked, request.caller)
                case _:
                    pass
            return asked.answer()
        finally:
            self.note(HandlerReturned(at=trio.current_time(), **who))

    async def _log(self, request: ServerRequest) -> None:
        said = request.params["_meta"][NOTE]
        await trio.lowlevel.checkpoint()
        self.note(
            LogReceived(
                at=trio.current_time(),
                session=self.number_of(request.session_id),
                backend_id=request.backend_id,
                caller=None if request.caller is None else request.caller.subject,
                **said,
            )
        )
