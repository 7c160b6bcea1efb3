"""The backends of the histories of a front: a tool that works, reports, asks and keeps account; their troubles."""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict

import attrs
import trio

from trio_vmcp import JSON
from trio_vmcp.testing import CallContext, ScriptedBackend

__all__ = ["GRACE", "TROUBLES", "WorkingBackend"]

GRACE = 30.0  # s that sessions have to come back to a backend after its trouble
TROUBLES = ("crash", "hang", "expire", "change", "change")


@attrs.define(eq=False)
class WorkingBackend:
    """
    Attributes:
        executed: How often the work of each call began, by the call's key.
        answered: The answers to the questions of each call, by its key.
        longest_hang: s that each answer waits while the backend hangs, at most.
        troubles: Since when and until when the backend had one, recovery included.
    """

    name: str
    scripted: ScriptedBackend
    chance: random.Random
    longest_hang: float = 30.0
    executed: Counter[str] = attrs.field(factory=Counter, init=False)
    answered: defaultdict[str, list[JSON]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    troubles: list[tuple[float, float]] = attrs.field(factory=list, init=False)
    _extra: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.scripted.add_tool("work", self.work)

    async def work(self, arguments: JSON, context: CallContext) -> str:
        key = arguments["key"]
        if not context.answered:  # else this is a further round of the same call
            self.executed[key] += 1
            for number in range(arguments["reports"]):
                await context.progress(number + 1)
                await trio.sleep(arguments["seconds"] / arguments["reports"])
        answers = [await context.elicit(f"{key} {number}") for number in range(arguments["asks"])]
        self.answered[key] = answers
        return json.dumps({"key": key, "answers": [answer["content"] for answer in answers]})

    def was_troubled(self, since: float, until: float) -> bool:
        return any(begin <= until and since <= end for begin, end in self.troubles)

    async def trouble(self, kind: str) -> None:
        """One trouble and its end."""
        began = trio.current_time()
        self.troubles.append((began, math.inf))
        if kind == "crash":
            self.scripted.crash()
            await trio.sleep(self.chance.choice((0.0, 1.0, 10.0)))
            self.scripted.restart()
        elif kind == "hang":
            self.scripted.latency = self.chance.choice((2.0, self.longest_hang))
            await trio.sleep(self.chance.choice((1.0, 5.0)))
            self.scripted.latency = 0.0
        elif kind == "expire":
            self.scripted.sessions.clear()
        else:
            self._extra += 1
            self.scripted.add_tool(f"extra{self._extra}")
            self.scripted.notify("notifications/tools/list_changed", {})
        if kind == "change":
            self.troubles.pop()  # calls go on
        else:
            self.troubles[-1] = (began, trio.current_time() + GRACE)
