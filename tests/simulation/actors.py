"""The scripted backends of a simulated world: what they do when a tool is called, what befalls them, how they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import attrs
import trio

from simulation.history import BackendSpec, Disturb, Expire, Relent, Relist, Rotate, Strike, Withhold
from simulation.tokens import CANARY, Gate
from simulation.trace import Asked, Event, Executed, Felt, Offered
from trio_vmcp import JSON, Backend
from trio_vmcp.testing import CallContext, Exchange, MemoryNetwork, RpcError, ScriptedBackend, Status
from trio_vmcp.testing.faults import FaultRule

__all__ = ["CANARY", "Actor"]

PATIENCE = 5.0  # s, for an answer of the client to a tool's question
SESSION_ERROR = -32000

OTHER_ERA = {"legacy": "modern", "modern": "legacy", "both": "legacy"}
CHANGED = {
    "tool": "notifications/tools/list_changed",
    "resource": "notifications/resources/list_changed",
    "prompt": "notifications/prompts/list_changed",
}


@attrs.define(eq=False)
class Actor:
    """One scripted backend, and how a user configures it.

    Attributes:
        configured: Pass copies of it on, so that it can be told whom each was passed to.
        well: As last felt.
    """

    spec: BackendSpec
    network: MemoryNetwork
    note: Callable[[Event], None]
    scripted: ScriptedBackend = attrs.field(init=False)
    configured: Backend = attrs.field(init=False)
    gate: Gate | None = attrs.field(default=None, init=False)
    well: bool = attrs.field(default=False, init=False)
    _is_up: bool = attrs.field(default=True, init=False)
    _faults: list[FaultRule] = attrs.field(factory=list, init=False)  # that make it ill
    _struck: int = attrs.field(default=0, init=False)
    _ill_until: list[Exchange] = attrs.field(factory=list, init=False)  # these have ended
    _calls: dict[CallContext, None] = attrs.field(factory=dict, init=False)
    _changed: dict[str, None] = attrs.field(factory=dict, init=False)  # notifications, for every call from now on

    def __attrs_post_init__(self) -> None:
        spec = self.spec
        self.scripted = ScriptedBackend(
            name=spec.id,
            era=spec.era,
            answers=spec.answers,
            resumable=spec.resumable,
            listens=spec.listens,
            latency=spec.latency,
            session_ids=spec.session_ids,
            server_info={"name": spec.id, "version": "1"},
            page_size=spec.page_size,
        )
        if spec.guard is not None:
            self.gate = Gate(spec, self.note)
            self.gate.stand_before(self.scripted)
        for kind, names in (("tool", spec.tools), ("resource", spec.resources), ("prompt", spec.prompts)):
            for name in names:
                self._offer(kind, name, "")
        self.configured = Backend(
            id=spec.id,
            url=self.network.attach(f"{spec.id}.test", self.scripted),
            era=spec.configured_era,
            headers={"authorization": f"Bearer {CANARY}-header"},
        )
        self._note_offer()
        self.feel()

    def _offer(self, kind: str, name: str, description: str) -> None:
        match kind:
            case "tool":
                self.scripted.add_tool(name, self._work, description=description)
            case "resource":
                self.scripted.add_resource(name, json.dumps({"backend": self.spec.id}), description=description)
            case _:
                text = '{"key": {key}, "backend": "' + self.spec.id + '"}'
                self.scripted.add_prompt(name, text, description=description)

    async def _work(self, arguments: JSON, context: CallContext) -> str:
        """What every tool does, as its arguments say."""
        key, name = arguments["key"], str(context.params["name"])
        self.note(Executed(at=trio.current_time(), backend_id=self.spec.id, name=name, key=key))
        self._calls[context] = None
        try:
            for method in list(self._changed):
                await context.notify(method, {})
            for count in range(arguments["progress"]):
                await context.progress(count)
            if not context.is_modern and self.spec.answers == "sse":
                for _ in range(arguments["asks"]):
                    await self._ask(key, context)
            await trio.sleep(arguments["seconds"])
        finally:
            del self._calls[context]
        return json.dumps({"key": key, "backend": self.spec.id})

    async def _ask(self, key: int, context: CallContext) -> None:
        answered = False
        with trio.move_on_after(PATIENCE):
            try:
                await context.request("ping", {})
                answered = True
            except RpcError:
                pass
        self.note(Asked(at=trio.current_time(), backend_id=self.spec.id, key=key, answered=answered))

    # --- what befalls it

    def disturb(self, step: Disturb) -> None:
        match step.what:
            case "crash":
                self._crash()
            case "return":
                self._return()
            case "restart" | "flip":
                self._crash()
                self.feel()
                if step.what == "flip":
                    self.scripted.era = OTHER_ERA[self.scripted.era]  # type: ignore[assignment]
                self._return()
            case "forget":
                self.scripted.sessions.clear()
            case "heal":
                self.scripted.heal()
                self._faults.clear()
                if self.gate is not None:
                    self.gate.stand_before(self.scripted)
            case "update":
                for uri in self.spec.resources:
                    self.scripted.notify("notifications/resources/updated", {"uri": uri})
        self.feel()

    def strike(self, step: Strike) -> None:
        self._faults.append(self.scripted.fail(step.matches, step.fault, times=step.times, skip=step.skip))
        self.feel()

    def guard(self, step: Rotate | Withhold | Relent) -> None:
        assert self.gate is not None
        self.gate.obey(step)
        self.feel()

    def expire(self, step: Expire) -> None:
        """One that it has given out no id for has nothing to expire."""
        session_id = next(iter(self.scripted.sessions), None)
        if session_id is None:
            return
        del self.scripted.sessions[session_id]

        def is_its(exchange: Exchange) -> bool:
            return exchange.session_id == session_id

        match step.how:
            case "404":
                pass
            case "400":
                error = {"code": SESSION_ERROR, "message": "Bad Request: No valid session ID provided"}
                body = json.dumps({"jsonrpc": "2.0", "id": None, "error": error}).encode()
                self.scripted.fail(is_its, Status(400, body, {"content-type": "application/json"}))
            case "page":
                page = b"<html><body>Not Found</body></html>"
                self.scripted.fail(is_its, Status(404, page, {"content-type": "text/html"}))
            case "503":  # says nothing of whether the call ran: until it is over, this backend is not well
                self._faults.append(self.scripted.fail(is_its, Status(503), times=1))
        self.feel()

    async def relist(self, step: Relist) -> None:
        kept: list[JSON] = []
        match step.kind:
            case "tool":
                self.scripted.tools = kept
            case "resource":
                self.scripted.resources = kept
            case _:
                self.scripted.prompts = kept
        for name in step.names:
            self._offer(step.kind, name, step.description)
        self._note_offer()
        method = CHANGED[step.kind]
        self._changed[method] = None
        self.scripted.notify(method)
        for context in list(self._calls):
            await context.notify(method, {})

    def _crash(self) -> None:
        self._is_up = False
        self.scripted.crash()

    def _return(self) -> None:
        self._is_up = True
        self.scripted.restart()

    def _note_offer(self) -> None:
        tools = tuple(tool["name"] for tool in self.scripted.tools)
        self.note(Offered(at=trio.current_time(), backend_id=self.spec.id, tools=tools))

    # --- how it is

    def feel(self) -> None:
        """Note it if it is well again, or no longer."""
        well = self._is_well()
        if well is not self.well:
            self.well = well
            self.note(Felt(at=trio.current_time(), backend_id=self.spec.id, well=well))

    def _is_well(self) -> bool:
        struck = sum(rule.struck for rule in self._faults)
        if struck != self._struck:  # whatever is under way may be what was struck
            self._struck = struck
            self._ill_until = [exchange for exchange in self.scripted.exchanges if exchange.outcome == "running"]
        self._ill_until = [exchange for exchange in self._ill_until if exchange.outcome == "running"]
        is_there = self._is_up and self._speaks_as_configured and (self.gate is None or self.gate.is_passable)
        return is_there and not self._ill_until and not any(self._still_to_come())

    def _still_to_come(self) -> Iterator[FaultRule]:
        return (rule for rule in self._faults if rule.times > 0)

    @property
    def _speaks_as_configured(self) -> bool:
        return "auto" == self.configured.era or self.scripted.era in ("both", self.configured.era)
