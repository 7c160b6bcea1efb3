"""Calls, what their callbacks and handlers do, and the close of a session."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs
import trio

from simulation.ground import UNKNOWN_NAME, Ground, Life, state_of
from simulation.history import Call, Close
from simulation.identities import BOB, identity_of_calls
from simulation.inspections import Inspections
from simulation.operations import Operations
from simulation.questions import HandedOut, HandlerError, Question, handed_out
from simulation.summary import KEY, number_of
from simulation.trace import Began, Outcome, Shielded
from trio_vmcp import Identity, Target

__all__ = ["Calls"]

SHIELDED = 2.0  # s, that a callback shields itself


class CallbackError(Exception):
    """Raised by a caller's progress callback."""


@attrs.define(eq=False)
class Calls:
    ground: Ground
    operations: Operations
    inspections: Inspections

    def begin_call(
        self, step: Call, life: Life, *, is_inside: bool, nested: bool = False, answers: HandedOut | None = None
    ) -> Began:
        session, table = life.session, life.session.routing_table
        offered: Mapping[str, Target]
        match step.kind:
            case "tool":
                offered = table.tools
            case "resource":
                offered = table.resources
            case _:
                offered = table.prompts
        names = sorted(offered)
        name = UNKNOWN_NAME if step.pick is None or not names else names[step.pick % len(names)]
        if answers is not None:
            name = answers.name
        target = offered.get(name)
        found = "" if target is None else state_of(session, target.backend_id)
        return self.ground.begin(
            "call",
            step=step,
            life=life.op,
            instance=life.instance if is_inside else None,
            state=session.state.name,
            name=name,
            target=None if target is None else (target.backend_id, target.name),
            nested=nested,
            found=found,
            answers=None if answers is None else answers.key,
        )

    async def call(self, step: Call, life: Life, doing: list[Began], *, answers: HandedOut | None = None) -> Outcome:
        op, name = doing[-1].op, doing[-1].name
        acted = False

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            nonlocal acted
            if acted:
                return
            acted = True
            match step.on_progress:
                case "note":
                    await trio.lowlevel.checkpoint()
                case "raise":
                    raise CallbackError
                case "shield":
                    self.ground.note(Shielded(at=trio.current_time(), op=op))
                    self.ground.shielded += 1
                    with trio.CancelScope(shield=True):
                        await trio.sleep(SHIELDED)
                    self.ground.shielded -= 1
                case closing:
                    await self._close_within(life, terminate=closing == "aclose")

        right = identity_of_calls(life.identity)
        caller = right if step.caller == "right" else BOB
        options: dict[str, Any] = {"caller": caller, "timeout": step.timeout}
        if step.kind != "resource" or not step.plain:
            options["meta"] = {KEY: op}
        if step.progress and step.hears_progress:
            options["on_progress"] = on_progress
        match step.kind:
            case "tool":
                asked = {"asks": step.asks, "question": step.question, "thinks": step.thinks, "reply": step.reply}
                said = {"progress": step.progress, "pace": step.pace, "logs": step.logs}
                arguments: dict[str, Any] = {"key": op, "seconds": step.seconds, **asked, **said}
                if answers is not None:
                    arguments, options["meta"] = answers.arguments, {KEY: answers.key}
                    options |= {"input_responses": answers.answers(op), "request_state": answers.state}
                options["answer_rounds"] = step.rounds == "handlers"
                called = await life.session.call_tool(name, arguments, **options)
                asks = handed_out(arguments["key"], name, arguments, called)
                if asks is not None:
                    self.ground.handed_out[life.of_session].append(asks)
                    return Outcome(kind="ok", backend_id=called.backend_id, key=asks.key, asked=asks.number)
                texts = [block["text"] for block in called.content]
            case "resource":
                read = await life.session.read_resource(name, **options)
                texts = [content["text"] for content in read.contents]
            case "completion":
                options.pop("on_progress", None)
                ref = {"type": "ref/prompt", "name": name}
                completed = await life.session.complete(ref, {"name": "backend", "value": ""}, **options)
                texts = [json.dumps({"backend": value}) for value in completed.values]
            case _:
                prompt = await life.session.get_prompt(name, {"key": str(op)}, **options)
                texts = [message["content"]["text"] for message in prompt.messages]
        (answer,) = map(json.loads, texts)
        return Outcome(kind="ok", backend_id=answer["backend"], key=answer.get("key"), version=answer.get("version"))

    async def act(self, instance: int, session_id: str, asked: Question, caller: Identity | None) -> None:
        """Call a tool of the same session, or close the session, from inside a handler."""
        its = (life for life in reversed(self.ground.every_life) if life.number == number_of(session_id))
        life = next(life for life in its if life.instance == instance)
        if asked.reply == "close":
            await self._close_within(life, terminate=True)
            return
        step = Call(session=life.number, pick=asked.number)
        doing = [self.begin_call(step, life, is_inside=False, nested=True)]
        outcome = Outcome(kind="cancelled")
        try:
            outcome = await self.operations.outcome_of(partial(self.call, step, life), doing)
        finally:
            self.ground.end(doing[0].op, outcome)
        if outcome.kind == "error":
            raise HandlerError

    async def _close_within(self, life: Life, *, terminate: bool) -> None:
        """Close the session from inside one of its own calls."""
        close = Close(session=life.number, terminate=terminate)
        inner = [self.begin_close(close, life, nested=True)]
        outcome = Outcome(kind="cancelled")
        try:
            outcome = await self.operations.outcome_of(partial(self.close, close, life), inner)
        finally:
            self.ground.end(inner[0].op, outcome)

    def begin_close(self, step: Close, life: Life, *, nested: bool = False) -> Began:
        return self.ground.begin("close", step=step, life=life.op, state=life.session.state.name, nested=nested)

    async def close(self, step: Close, life: Life, doing: list[Began]) -> Outcome:
        self.ground.ask_to_close(doing[-1].op, life, step.terminate, step.drain_timeout)
        close = life.session.aclose if step.terminate else life.session.suspend
        await close(drain_timeout=step.drain_timeout)
        if not doing[-1].nested:
            await self.inspections.look_around()
        return Outcome(kind="ok")
