"""The simulated backends: their tools, the steps that disturb them, and whether each is healthy at the moment."""

from __future__ import annotations

import itertools
import json
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import trio
from support.memory_processes import MemoryProcess, ProcessTable, Program

from simulation.history import (
    BackendSpec,
    ChangeList,
    Disturb,
    ExpireSession,
    GrantTokens,
    InjectFault,
    RotateTokens,
    WithholdTokens,
)
from simulation.questions import Question, answered_by, declared_to, log_message, question
from simulation.tokens import CANARY, TokenGate
from simulation.trace import (
    AnswerTaken,
    Event,
    HealthChanged,
    ProgressSent,
    QuestionAsked,
    ResourcesUpdated,
    ToolExecuted,
    ToolsOffered,
)
from trio_vmcp import JSON, Backend, ToolOverride
from trio_vmcp.testing import CallContext, Exchange, MemoryNetwork, RpcError, ScriptedBackend, Status
from trio_vmcp.testing.faults import FaultRule
from trio_vmcp.testing.script import BackendEra, BackendTransport

__all__ = ["CANARY", "SimulatedBackend"]

PATIENCE = 5.0  # s, for an answer of the client to a tool's question
SESSION_ERROR = -32000

NEXT_TRANSPORT: dict[BackendTransport, BackendTransport] = {"sse": "streamable-http", "streamable-http": "sse"}
OTHER_ERA: dict[BackendEra, BackendEra] = {"legacy": "modern", "modern": "legacy", "both": "legacy"}
CHANGED = {
    "tool": "notifications/tools/list_changed",
    "resource": "notifications/resources/list_changed",
    "prompt": "notifications/prompts/list_changed",
}


@attrs.define(eq=False)
class SimulatedBackend:
    """One scripted backend with its configuration.

    Attributes:
        configured: Pass a copy to each session: the copy tells which opening or adding an attempt belongs to.
        well: Healthy when last noted.
    """

    spec: BackendSpec
    network: MemoryNetwork
    processes: ProcessTable
    note: Callable[[Event], None]
    scripted: ScriptedBackend = attrs.field(init=False)
    configured: Backend = attrs.field(init=False)
    gate: TokenGate | None = attrs.field(default=None, init=False)
    well: bool = attrs.field(default=False, init=False)
    _is_up: bool = attrs.field(default=True, init=False)
    _faults: list[FaultRule] = attrs.field(
        factory=list, init=False
    )  # while one has strikes left, the backend is not healthy
    _version: int = attrs.field(default=0, init=False)  # of its resources
    _struck: int = attrs.field(default=0, init=False)
    _ill_until: list[Exchange] = attrs.field(factory=list, init=False)  # not healthy before these exchanges have ended
    _calls: dict[CallContext, None] = attrs.field(factory=dict, init=False)
    _changed: dict[str, None] = attrs.field(factory=dict, init=False)  # notifications, for every call from now on

    def __attrs_post_init__(self) -> None:
        spec = self.spec
        self.scripted = ScriptedBackend(
            name=spec.id,
            era=spec.era,
            transport="sse" if spec.transport == "sse" else "streamable-http",
            holds_posts=spec.holds_posts,
            answers=spec.answers,
            resumable=spec.resumable,
            listens=spec.listens,
            latency=spec.latency,
            session_ids=spec.session_ids,
            ttl_ms=int(1000 * spec.ttl),
            cache_scope=spec.cache_scope,
            server_info={"name": spec.id, "version": "1"},
            page_size=spec.page_size,
            completions={"backend": (spec.id,)},
        )
        if spec.guard is not None:
            self.gate = TokenGate(spec, self.note)
            self.gate.stand_before(self.scripted)
        for kind, names in (("tool", spec.tools), ("resource", spec.resources), ("prompt", spec.prompts)):
            for name in names:
                self._offer(kind, name, "")
        if spec.logs:
            self.scripted.capabilities = {**self.scripted.declared_capabilities(), "logging": {}}
        self.configured = self._program() if spec.transport == "stdio" else self._service()
        self._note_offer()
        self.note_health()

    def _service(self) -> Backend:
        return Backend(
            id=self.spec.id,
            url=self.network.attach(f"{self.spec.id}.test", self.scripted),
            transport=self.spec.transport if self.spec.is_named else "streamable-http",
            era=self.spec.configured_era,
            headers={"authorization": f"Bearer {CANARY}-header"},
            **self._options,
        )

    def _program(self) -> Backend:
        def says(env: Mapping[str, str]) -> str:
            return f"{self.spec.id} begins with {env['TOKEN']}\n"

        command = f"{self.spec.id}-server"
        is_there = itertools.cycle([False, True])  # while it is down: cannot be started, or ends at once
        self.processes.programs[command] = Program(
            main=self._run, manners=self.spec.manners, is_there=lambda: self._is_up or next(is_there), says=says
        )
        return Backend(
            id=self.spec.id,
            transport="stdio",
            command=command,
            era=self.spec.configured_era,
            env={"TOKEN": f"{CANARY}-environment"},
            **self._options,
        )

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "listen": self.spec.is_listened_to,
            "stop_after": self.spec.stop_after,
            "progress_timeout": self.spec.progress_timeout,
            "overrides": {own_name: ToolOverride(name=name) for own_name, name in self.spec.renamed},
        }

    async def _run(self, process: MemoryProcess, pipes: trio.abc.Stream) -> int:
        """One process."""
        if not self._is_up:
            return 1
        self.note_health()
        try:
            manners, process.manners = process.manners, "deaf"
            await self.scripted.accept()
            if not process.is_ending:
                process.manners = manners
            await self.scripted.serve_lines(_WatchedStream(pipes, self.note_health))
        except ConnectionRefusedError:  # a fault
            return 1
        finally:
            self.note_health()
        return 0

    def _offer(self, kind: str, name: str, description: str) -> None:
        match kind:
            case "tool":
                self.scripted.add_tool(name, self._work, description=description)
            case "resource":
                self.scripted.add_resource(name, self._content(), description=description)
            case _:
                text = '{"key": {key}, "backend": "' + self.spec.id + '"}'
                self.scripted.add_prompt(name, text, description=description)

    def _content(self) -> str:
        return json.dumps({"backend": self.spec.id, "version": self._version})

    async def _work(self, arguments: JSON, context: CallContext) -> str:
        """The handler of every tool; the arguments of the call say what it does. A modern tool that asks its client
        runs anew with every answer.
        """
        key, name = arguments["key"], str(context.params["name"])
        if not context.answered:
            self.note(ToolExecuted(at=trio.current_time(), backend_id=self.spec.id, name=name, key=key))
        self._calls[context] = None
        self._note_answer(key, context)
        try:
            if not context.answered:
                for method in list(self._changed):
                    await context.notify(method, {})
                for count in range(arguments["progress"]):
                    if self.spec.can_ask:
                        self.note(ProgressSent(at=trio.current_time(), backend_id=self.spec.id, key=key))
                    await context.progress(count)
                    await trio.sleep(arguments["pace"])
            if self.spec.can_ask:
                for number in range(arguments["asks"]):
                    await self._ask(question(key, number, arguments), context)
            for number in range(arguments["logs"]):
                await context.notify("notifications/message", log_message(key, number))
            await trio.sleep(arguments["seconds"])
        finally:
            del self._calls[context]
        return json.dumps({"key": key, "backend": self.spec.id})

    def _note_answer(self, key: int, context: CallContext) -> None:
        """Of the latest round, unless a handler gave it."""
        for response in context.answered[-1].values() if context.answered else ():
            by = answered_by(response)
            if by is not None:
                number = len(context.answered) - 1
                taken = AnswerTaken(at=trio.current_time(), backend_id=self.spec.id, key=key, number=number, by=by)
                self.note(taken)

    async def _ask(self, asked: Question, context: CallContext) -> None:
        """Ask even for an undeclared capability (the client must refuse), except where that would fail the call."""
        declared = asked.kind == "ping" or declared_to(context, self.scripted, asked.kind)
        if context.is_modern and (asked.kind == "ping" or not declared):
            return  # a modern tool cannot ask for it: the call would end in an error
        result: Any = None
        refused = False
        with trio.move_on_after(math.inf if context.is_modern else PATIENCE):
            try:
                result = await context.request(asked.method, asked.params)
            except RpcError:
                refused = True
        self.note(
            QuestionAsked(
                at=trio.current_time(),
                backend_id=self.spec.id,
                key=asked.key,
                number=asked.number,
                kind=asked.kind,
                declared=declared,
                outcome="refused" if refused else "silence" if result is None else asked.judge(result),
            )
        )

    # --- steps that disturb it

    def disturb(self, step: Disturb) -> None:
        match step.what:
            case "crash":
                self._crash()
            case "return":
                self._return()
            case "restart" | "flip":
                self._crash()
                self.note_health()
                if step.what == "flip" and self.spec.transport == "sse":
                    self.scripted.transport = NEXT_TRANSPORT[self.scripted.transport]
                elif step.what == "flip":
                    self.scripted.era = OTHER_ERA[self.scripted.era]
                self._return()
            case "lose_sessions":
                for lost in self._sessions():
                    self._lose(lost)
            case "heal":
                self.scripted.heal()
                self._faults.clear()
                if self.gate is not None:
                    self.gate.stand_before(self.scripted)
            case "update":
                self._version += 1
                self.note(ResourcesUpdated(at=trio.current_time(), backend_id=self.spec.id, version=self._version))
                for uri in self.scripted.texts:
                    self.scripted.texts[uri] = self._content()
                    self.scripted.notify("notifications/resources/updated", {"uri": uri})
            case "end_streams":
                with self._out_of_order():
                    self.scripted.end_streams()
        self.note_health()

    def inject_fault(self, step: InjectFault) -> None:
        self._faults.append(self.scripted.fail(step.matches, step.fault, times=step.times, skip=step.skip))
        self.note_health()

    def change_tokens(self, step: RotateTokens | WithholdTokens | GrantTokens) -> None:
        assert self.gate is not None
        self.gate.obey(step)
        self.note_health()

    def expire_session(self, step: ExpireSession) -> None:
        """Lose the oldest session, if there is one."""
        session_id = next(iter(self._sessions()), None)
        if session_id is None:
            return
        self._lose(session_id)
        if isinstance(session_id, MemoryProcess) or self.scripted.transport == "sse":
            return

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
            case "503":  # does not say whether the call ran: before it has struck, this backend is not healthy
                self._faults.append(self.scripted.fail(is_its, Status(503), times=1))
        self.note_health()

    async def change_list(self, step: ChangeList) -> None:
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

    def _lose(self, session: str | MemoryProcess) -> None:
        """End one session. Where the session is a stream or a process, requests that are running on it fail."""
        if isinstance(session, MemoryProcess):
            with self._out_of_order():
                session.end(0)
        elif self.scripted.transport == "sse":
            with self._out_of_order():
                self.scripted.end_session(session)
        else:
            self.scripted.end_session(session)

    @contextmanager
    def _out_of_order(self) -> Iterator[None]:
        was_up, self._is_up = self._is_up, False
        self.note_health()
        yield
        self._is_up = was_up
        self.note_health()

    def _sessions(self) -> list[str | MemoryProcess]:
        return [*self.scripted.sessions, *self._living()]

    def _living(self) -> list[MemoryProcess]:
        return self.processes.running(self.configured.command)

    def _crash(self) -> None:
        self._is_up = False
        if self.spec.transport != "stdio":
            self.scripted.crash()
        for process in self._living():
            process.end(-signal.SIGSEGV)

    def _return(self) -> None:
        for lost in list(self.scripted.sessions) if self._is_up and self.scripted.transport == "sse" else ():
            self._lose(lost)  # "return" without a crash before: another process takes over, and streams end
        self._is_up = True
        self.scripted.restart()

    def _note_offer(self) -> None:
        tools = tuple(tool["name"] for tool in self.scripted.tools)
        self.note(ToolsOffered(at=trio.current_time(), backend_id=self.spec.id, tools=tools))

    # --- health

    def note_health(self) -> None:
        """Note a change of health."""
        well = self._is_healthy()
        if well is not self.well:
            self.well = well
            self.note(HealthChanged(at=trio.current_time(), backend_id=self.spec.id, well=well))

    def _is_healthy(self) -> bool:
        struck = sum(rule.struck for rule in self._faults)
        if struck != self._struck:  # any of the running exchanges may be the one that was struck
            self._struck = struck
            self._ill_until = [exchange for exchange in self.scripted.exchanges if exchange.outcome == "running"]
        self._ill_until = [exchange for exchange in self._ill_until if exchange.outcome == "running"]
        is_there = self._is_up and self._speaks_as_configured and (self.gate is None or self.gate.is_passable)
        return is_there and not self._ill_until and not any(self._still_to_come())

    def _still_to_come(self) -> Iterator[FaultRule]:
        return (rule for rule in self._faults if rule.times > 0)

    @property
    def _speaks_as_configured(self) -> bool:
        if self.spec.transport == "sse" and self.spec.is_named:
            return self.scripted.transport == "sse"
        return "auto" == self.configured.era or self.scripted.era in ("both", self.configured.era)


@attrs.define(eq=False)
class _WatchedStream(trio.abc.Stream):
    """A process's end of its pipes. It notes health whenever it is used: no transport does so for a process."""

    inner: trio.abc.Stream
    note_health: Callable[[], None]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.note_health()
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        self.note_health()
        return await self.inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        self.note_health()
        await self.inner.aclose()
