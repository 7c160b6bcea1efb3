"""The clients of the histories of a front, of either era: calls whose connections break, questions, and lists that are
read again when they have changed. A broken promise is an AssertionError.
"""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from collections import Counter
from typing import Any

import attrs
import trio
from support.front import FrontWorld, LegacyClient, Received, modern_request

from simulation.front_backends import WorkingBackend
from trio_vmcp import JSON

__all__ = ["Client", "HandshakeClient", "Plan", "StatelessClient"]

PATIENCE = 200.0  # s, for a response: over all timeouts of a call
SHORT = (0.0, 0.05, 0.2, 0.5, 1.5, 4.0)  # s


@attrs.frozen
class Plan:
    """A call: how long it works, and how often it reports and asks.

    Attributes:
        breaks: s after each of which the connection breaks.
        withdrawn_after: s after which the client withdraws the call; None: it does not.
    """

    key: str
    number: int
    backend: WorkingBackend
    seconds: float
    reports: int
    asks: int
    breaks: tuple[float, ...]
    withdrawn_after: float | None

    @property
    def params(self) -> JSON:
        arguments = {"key": self.key, "seconds": self.seconds, "reports": self.reports, "asks": self.asks}
        return {"name": f"{self.backend.name}_work", "arguments": arguments}


@attrs.define
class _Followed:
    """What has arrived of a call, over all its connections.

    Attributes:
        last_id: Of the last event.
    """

    reports: list[float] = attrs.field(factory=list)
    last_id: str | None = None


def answer_to(client: str, question: JSON) -> JSON:
    return {"action": "accept", "content": {"client": client, "question": question["params"]["message"]}}


async def next_events(received: Received, seen: int) -> list[tuple[str | None, Any]]:
    """Id and message of the events behind those that were seen; none: the reply has ended."""
    while len(received.events if received.is_stream else ()) <= seen and not received.done.is_set():
        received._news = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_done, received, nursery.cancel_scope)
            await received._news.wait()
            nursery.cancel_scope.cancel()
    if received.is_stream:
        return received.events[seen:]
    return [(None, received.json)] if received.body and not seen else []


async def _cancel_when_done(received: Received, scope: trio.CancelScope) -> None:
    await received.done.wait()
    scope.cancel()


@attrs.define(eq=False)
class Client(ABC):
    """
    Attributes:
        outcomes: How many calls ended how.
        tools: As the client last read them; None: it does not listen.
        stream: By which the client hears of changes; None: it does not listen.
        is_stopping: The server drains: calls may be refused.
    """

    world: FrontWorld
    name: str
    backends: list[WorkingBackend]
    chance: random.Random
    principal: str
    outcomes: Counter[str] = attrs.field(factory=Counter, init=False)
    tools: list[str] | None = attrs.field(default=None, init=False)
    stream: Received | None = attrs.field(default=None, init=False)
    is_stopping: bool = attrs.field(default=False, init=False)
    _number: int = attrs.field(default=0, init=False)

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.principal}"}

    def plan(self, *, is_calm: bool = False) -> Plan:
        self._number += 1
        one_of = self.chance.choice
        return Plan(
            key=f"{self.name}-{self._number}",
            number=self._number,
            backend=one_of(self.backends),
            seconds=0.0 if is_calm else one_of(SHORT),
            reports=one_of((0, 1, 4)),
            asks=0 if is_calm else one_of((0, 0, 1, 2)),
            breaks=() if is_calm else one_of(((), (), (one_of(SHORT),), (one_of(SHORT), one_of(SHORT)))),
            withdrawn_after=one_of(SHORT) if not is_calm and self.chance.random() < 0.1 else None,
        )

    def tools_in(self, reply: Received) -> list[str]:
        if self.is_stopping and reply.status == 503:
            return self.tools or []
        return [tool["name"] for tool in reply.answer["result"]["tools"]]

    async def call(self, plan: Plan) -> None:
        began = trio.current_time()
        outcome = await self.outcome_of(plan)
        assert plan.backend.executed[plan.key] <= 1, f"{plan.key} was executed twice"
        self.outcomes[self.judge(plan, began, outcome)] += 1

    @abstractmethod
    async def outcome_of(self, plan: Plan) -> JSON | None:
        """The response; None: the client has left or withdrawn the call."""

    @abstractmethod
    async def listen(self, listening: trio.Nursery) -> None:
        """Keep `tools` as they are from now on."""

    @abstractmethod
    async def read_tools(self) -> list[str]: ...

    def judge(self, plan: Plan, began: float, response: JSON | None) -> str:
        """The outcome in a word."""
        if response is None:
            return "left"
        assert plan.number == response["id"], f"{plan.key} got the response to {response['id']}"
        result = response.get("result", {})
        if "content" in result and not result.get("isError"):
            told = json.loads(result["content"][0]["text"])
            asked = [{"client": self.name, "question": f"{plan.key} {number}"} for number in range(plan.asks)]
            assert {"key": plan.key, "answers": asked} == told, f"{plan.key} got {told}"
            assert 1 == plan.backend.executed[plan.key], f"{plan.key} has a result, and was not executed"
            return "ok"
        is_excused = self.is_stopping or plan.backend.was_troubled(began, trio.current_time())
        assert is_excused or self.may_fail(plan), f"{plan.key} on a healthy backend: {response}"
        return "error"

    def may_fail(self, plan: Plan) -> bool:
        """Such a call cannot be made, whatever the state of its backend."""
        return False

    async def check_calm(self) -> None:
        """After all troubles: what the client has read is as it is, and a call succeeds."""
        tools = await self.read_tools()
        assert self.tools is None or tools == self.tools, f"{self.name} was not told: {self.tools}, {tools}"
        before = self.outcomes["ok"]
        await self.call(self.plan(is_calm=True))
        assert before + 1 == self.outcomes["ok"]


@attrs.define(eq=False)
class HandshakeClient(Client):
    session: LegacyClient = attrs.field(init=False)

    async def open(self) -> None:
        self.session = await self.world.initialize({"elicitation": {}}, self.headers)

    async def read_tools(self) -> list[str]:
        return self.tools_in(await self.session.ask("tools/list"))

    async def listen(self, listening: trio.Nursery) -> None:
        self.stream = received = self.session.listen()
        self.tools = await self.read_tools()
        listening.start_soon(self._keep_tools, received)

    async def _keep_tools(self, received: Received) -> None:
        seen, last_id = 0, None
        while events := await next_events(received, seen):
            seen += len(events)
            for event_id, message in events:
                last_id = event_id
                if message["method"] == "notifications/cancelled":  # a question of a call that is over
                    continue
                assert "notifications/tools/list_changed" == message["method"], message
                self.tools = await self.read_tools()
            if self.chance.random() < 0.3:  # the connection breaks
                received.leave()
                await trio.sleep(self.chance.choice((0.0, 1.0, 50.0)))
                self.stream = received = self.session.listen(last_id)
                seen = 0
        assert self.is_stopping, "the stream for changes ended"

    async def outcome_of(self, plan: Plan) -> JSON | None:
        params = plan.params | {"_meta": {"progressToken": plan.key}}
        async with trio.open_nursery() as nursery:
            received = self.session.start("tools/call", params, request_id=plan.number)
            if plan.withdrawn_after is not None:
                nursery.start_soon(self._withdraw, plan)
            response = await self._follow(plan, received)
            nursery.cancel_scope.cancel()
        return response

    async def _withdraw(self, plan: Plan) -> None:
        assert plan.withdrawn_after is not None
        await trio.sleep(plan.withdrawn_after)
        await self.session.notify("notifications/cancelled", {"requestId": plan.number})

    async def _follow(self, plan: Plan, received: Received) -> JSON | None:
        """Through all its connections, to the response."""
        followed = _Followed()
        for seconds in (*plan.breaks, None):
            response: JSON | None = None
            with trio.move_on_after(PATIENCE if seconds is None else seconds):
                response = await self._read(plan, received, followed)
                if response is None:  # ended without a response
                    assert plan.withdrawn_after is not None, f"{plan.key}: no response"
                    return None
            if response is not None:
                if "result" in response:
                    assert [*range(1, plan.reports + 1)] == followed.reports, f"{plan.key}: {followed}"
                return response
            assert seconds is not None, f"{plan.key}: neither a response nor an end"
            received.leave()
            if followed.last_id is None:
                return None
            await trio.sleep(self.chance.choice((0.0, 0.1, 2.0)))
            received = self.session.listen(followed.last_id)
        return None

    async def _read(self, plan: Plan, received: Received, followed: _Followed) -> JSON | None:
        seen = 0
        while events := await next_events(received, seen):
            seen += len(events)
            for event_id, message in events:
                followed.last_id = event_id or followed.last_id
                if message is None:  # a priming event
                    continue
                if received.status == 400 and plan.withdrawn_after is not None:  # it has ended without a response
                    return None
                if "method" not in message:
                    assert 400 != received.status, f"{plan.key}: its stream was not kept"
                    found: JSON = message
                    return found
                if message["method"] == "elicitation/create":
                    asked = message["params"]["message"].partition(" ")[0]
                    assert asked == plan.key, f"{plan.key} was asked for {asked}"
                    await self.session.reply(message["id"], answer_to(self.name, message))
                elif message["method"] == "notifications/progress":
                    assert plan.key == message["params"]["progressToken"]
                    followed.reports.append(message["params"]["progress"])
        return None


@attrs.define(eq=False)
class StatelessClient(Client):
    async def post(self, method: str, params: JSON, **more: Any) -> Received:
        message, headers = modern_request(method, params, capabilities={"elicitation": {}}, **more)
        return self.world.start_post(message, {**headers, **self.headers})

    async def read_tools(self) -> list[str]:
        reply = await self.post("tools/list", {})
        await reply.done.wait()
        return self.tools_in(reply)

    async def listen(self, listening: trio.Nursery) -> None:
        wanted = {"notifications": {"toolsListChanged": True}}
        self.stream = received = await self.post("subscriptions/listen", wanted)
        await received.wait_messages(1)
        self.tools = await self.read_tools()
        listening.start_soon(self._keep_tools, received)

    async def _keep_tools(self, received: Received) -> None:
        seen = 1
        while events := await next_events(received, seen):
            seen += len(events)
            if "method" in events[-1][1]:
                self.tools = await self.read_tools()
        assert self.is_stopping, "a subscription ended"

    async def outcome_of(self, plan: Plan) -> JSON | None:
        rounds: JSON = {}
        breaks = [*plan.breaks]
        while True:
            received = await self.post(
                "tools/call", plan.params | rounds, request_id=plan.number, progressToken=plan.key
            )
            response = None
            with trio.move_on_after(breaks.pop(0) if breaks else PATIENCE):
                response = await self._read(plan, received)
                assert response is not None, f"{plan.key}: no response"
            if response is None:  # the client closes its connection, which withdraws the call
                received.leave()
                return None
            result = response.get("result", {})
            if result.get("resultType") != "input_required":
                return response
            ((key, question),) = result["inputRequests"].items()
            rounds = {"inputResponses": {key: answer_to(self.name, question)}, "requestState": result["requestState"]}

    async def _read(self, plan: Plan, received: Received) -> JSON | None:
        seen = 0
        while events := await next_events(received, seen):
            seen += len(events)
            for _, message in events:
                if received.status == 400 and plan.withdrawn_after is not None:  # it has ended without a response
                    return None
                if "method" not in message:
                    assert 400 != received.status, f"{plan.key}: its stream was not kept"
                    found: JSON = message
                    return found
                assert (plan.key, "notifications/progress") == (message["params"]["progressToken"], message["method"])
        return None

    def may_fail(self, plan: Plan) -> bool:
        return plan.asks > 0 and plan.backend.scripted.era == "legacy"  # which cannot ask a client of this era
