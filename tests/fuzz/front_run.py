"""Replays a script of clients' steps on a front in memory, in virtual time. What is wrong with the outcome is listed by
`judge`; an exception that leaves the application fails the run itself.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import trio
from support.front import BOTH, FrontWorld, Received, front_world, modern_request
from support.harness import ALICE, BOB

from fuzz.front_steps import (
    CANARY,
    PRINCIPALS,
    STATE,
    Delete,
    Get,
    Happen,
    HeaderChange,
    Initialize,
    Leave,
    Legacy,
    Modern,
    Pause,
    Raw,
    Reply,
    Step,
    changed,
    written,
)
from trio_vmcp import JSON, FactorySettings, Identity
from trio_vmcp.serve import Unauthenticated
from trio_vmcp.testing import CallContext, ScriptedBackend

__all__ = ["Outcome", "Sent", "events", "messages", "replay", "stream_of"]

LEGACY = "2025-11-25"
MIRRORED = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
_IDENTITIES: dict[str, Identity] = {"alice": ALICE, "bob": BOB}
SETTLING = 100.0  # s: over `abandoned_after`, and every timeout of the tools


class Tokens:
    """An authenticator of two tokens."""

    async def authenticate(self, headers: Mapping[str, str]) -> Identity:
        identity = _IDENTITIES.get(headers.get("authorization", "").removeprefix("Bearer "))
        if identity is None:
            raise Unauthenticated("no token of ours")
        return identity


@attrs.define(eq=False)
class Sent:
    """One request, and what came of it.

    Attributes:
        session_id: As the step chose; the owner of that session, if the front had made one.
        resumes: The streams of the events that `Last-Event-ID` names.
        left: The client closed its connection before the end.
    """

    step: Step
    principal: str
    canary: str
    session_id: str | None
    owner: str | None
    body: bytes
    received: Received
    resumes: frozenset[str] = frozenset()
    left: bool = False
    message: Any = attrs.field(init=False)

    @message.default
    def _message(self) -> Any:
        try:
            return json.loads(self.body.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return None

    @property
    def asked(self) -> list[Any]:
        """The ids of the JSON-RPC requests in the body."""
        message = self.message
        each = message if isinstance(message, list) else [message]
        found = [one.get("id") for one in each if isinstance(one, dict) and isinstance(one.get("method"), str)]
        return [request_id for request_id in found if type(request_id) in (int, str)]

    @property
    def is_plain(self) -> bool:
        """The step was sent as it is, with no mutation."""
        step = self.step
        return not getattr(step, "changes", ()) and not getattr(step, "headers", ()) and self.body_is_whole

    @property
    def body_is_whole(self) -> bool:
        change = getattr(self.step, "body", None)
        return change is None or change.kind in ("none", "bom")


@attrs.define
class Outcome:
    """
    Attributes:
        left: What the front still held after all clients had left and all sessions had ended.
        crashes: Log records of tasks that crashed.
    """

    sent: list[Sent]
    left: list[str]
    crashes: list[str]


def backends() -> list[ScriptedBackend]:
    """One of each era and one over HTTP+SSE, which does not say what call a message belongs to. They tell of their
    changes, and ask, log and keep what was said in a session.
    """
    scripted = [
        ScriptedBackend(era="legacy", answers="sse", listens=True),
        ScriptedBackend(era="modern", answers="sse", listens=True),
        ScriptedBackend(era="legacy", transport="sse", latency=0.05),
    ]
    return [_with_tools(backend) for backend in scripted]


def _with_tools(backend: ScriptedBackend) -> ScriptedBackend:
    said: defaultdict[str, list[str]] = defaultdict(list)

    async def echo(arguments: JSON, context: CallContext) -> str:
        return str(arguments.get("say"))

    async def hold(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(1)
        return str(arguments.get("say"))

    async def ask(arguments: JSON, context: CallContext) -> str:
        answers = [await context.elicit(f"{number}: {arguments.get('say')}") for number in range(2)]
        return json.dumps([arguments.get("say"), answers])

    async def chat(arguments: JSON, context: CallContext) -> str:
        await context.progress(1, 2, str(arguments.get("say")))
        await context.notify("notifications/message", {"level": "error", "data": str(arguments.get("say"))})
        await trio.sleep(0.1)
        return str(arguments.get("say"))

    async def recall(arguments: JSON, context: CallContext) -> str:
        """All that was said in this session of the backend."""
        held = said[context.exchange.headers.get("mcp-session-id", str(len(said)))]
        held.append(str(arguments.get("say")))
        return " ".join(held)

    for tool in (echo, hold, ask, chat, recall):
        backend.add_tool(tool.__name__, tool)
    backend.add_tool("region", echo, inputSchema=MIRRORED)
    backend.add_resource("file:///x", "x")
    backend.add_prompt("p", "hello")
    backend.completions = {"n": ["value"]}
    lists: JSON = {kind: {"listChanged": True} for kind in ("tools", "prompts", "resources")}
    backend.capabilities = {
        **lists,
        "resources": {"listChanged": True, "subscribe": True},
        "completions": {},
        "logging": {},
    }
    return backend


@attrs.define(eq=False)
class _Replay:
    world: FrontWorld
    sent: list[Sent] = attrs.field(factory=list)
    sessions: dict[str, str] = attrs.field(factory=dict)  # id: principal
    _resources: int = 0

    async def step(self, step: Step) -> None:
        match step:
            case Pause(seconds=seconds):
                await trio.sleep(seconds)
            case Leave(request=number):
                is_open = [each for each in self.sent if not each.received.done.is_set()]
                if is_open:
                    self.leave(is_open[number % len(is_open)])
            case Happen(what=what):
                await self.happen(what)
            case _:
                await self.send(step)

    def leave(self, sent: Sent) -> None:
        if not sent.received.done.is_set():
            sent.left = True
            sent.received.leave()

    async def happen(self, what: str) -> None:
        a, *others = self.world.backends.values()
        if what == "crash":
            a.crash()
            await trio.sleep(0.5)
            a.restart()
            return
        self._resources += 1
        for backend in (a, *others):
            if what == "tools changed":
                backend.add_tool(f"more{self._resources}")
                backend.notify("notifications/tools/list_changed", {})
            else:
                backend.notify("notifications/resources/updated", {"uri": "file:///x"})

    async def send(self, step: Initialize | Legacy | Reply | Modern | Get | Delete | Raw) -> None:
        session_id = self._session_id(step.session)
        owner = self.sessions.get(session_id or "")
        principal = owner or PRINCIPALS[0] if step.as_principal is None else PRINCIPALS[step.as_principal]
        canary = f"{principal}-{len(self.sent)}."
        verb, path, body, headers = self._request(step, principal, canary)
        if session_id is not None:
            headers["mcp-session-id"] = session_id
        if principal in _IDENTITIES:
            headers["authorization"] = f"Bearer {principal}"
        pairs = _pairs(headers, step.headers)
        goes_in_body = isinstance(step, Initialize | Legacy | Reply | Modern) and step.body.kind == "gone"
        received = Received()
        resumes = frozenset(stream_of(value) for name, value in pairs if name == "last-event-id" and verb == "GET")
        sent = Sent(step, principal, canary, session_id, owner, body, received, resumes)
        self.sent.append(sent)
        self.world.nursery.start_soon(self._run, verb, path, pairs, sent, goes_in_body)
        if step.leaves_after is None:
            await trio.lowlevel.checkpoint()
            with trio.move_on_after(5.0 if isinstance(step, Initialize) else 0.01):
                await received.done.wait()
        else:
            with trio.move_on_after(step.leaves_after):
                await received.done.wait()
            self.leave(sent)
        self._note_sessions()

    def _note_sessions(self) -> None:
        for sent in self.sent:
            if made := sent.received.headers.get("mcp-session-id"):
                self.sessions[made] = sent.principal

    def _session_id(self, chosen: int | str | None) -> str | None:
        if isinstance(chosen, int):
            return list(self.sessions)[chosen % len(self.sessions)] if self.sessions else None
        return chosen

    def _request(self, step: Any, principal: str, canary: str) -> tuple[str, str, bytes, dict[str, str]]:
        headers = {"host": "localhost:8000", "accept": BOTH, "content-type": "application/json"}
        match step:
            case Raw(verb=verb, path=path, data=data):
                return verb, path, data, headers
            case Get(last_event_id=event_id):
                if event_id is not None:
                    headers["last-event-id"] = self._event_id(event_id)
                return "GET", "/mcp", b"", headers | {"mcp-protocol-version": LEGACY}
            case Delete():
                return "DELETE", "/mcp", b"", headers | {"mcp-protocol-version": LEGACY}
        message, more = self._message(step)
        filled = json.loads(json.dumps(message).replace(CANARY, canary))
        return "POST", "/mcp", written(changed(filled, step.changes), step.body), headers | more

    def _message(self, step: Any) -> tuple[JSON, dict[str, str]]:
        legacy = {"mcp-protocol-version": LEGACY}
        match step:
            case Initialize(capabilities=capabilities, version=version):
                params = {"protocolVersion": version, "capabilities": capabilities, "clientInfo": {"name": "t"}}
                return {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}, {}
            case Legacy():
                message = {"jsonrpc": "2.0", "method": step.method, "params": step.params}
                return message | ({} if step.request_id is None else {"id": step.request_id}), legacy
            case Reply(result=result, error=error):
                answer = {"result": result} if error is None else {"error": error}
                return {"jsonrpc": "2.0", "id": self._question(step.question), **answer}, legacy
            case Modern():
                params = dict(step.params)
                if params.get("requestState") == STATE:
                    params["requestState"] = self._state(params)
                meta = {"logLevel": step.log_level, "progressToken": step.token}
                message, headers = modern_request(
                    step.method,
                    params,
                    capabilities=step.capabilities,
                    request_id=step.request_id,
                    **{key: value for key, value in meta.items() if value is not None},
                )
                region = (params.get("arguments") or {}).get("region")
                if isinstance(region, str):
                    headers["mcp-param-region"] = region
                return message, {name: str(value) for name, value in headers.items()}
        raise AssertionError(step)

    def _question(self, chosen: int | str) -> Any:
        asked = [message["id"] for message in self._messages() if "method" in message and "id" in message]
        return asked[chosen % len(asked)] if isinstance(chosen, int) and asked else chosen

    def _state(self, params: JSON) -> str:
        """The last state that was handed out for such a call, whatever its principal."""
        for sent in reversed(self.sent):
            if isinstance(sent.step, Modern) and sent.step.params.get("arguments") == params.get("arguments"):
                for message in messages(sent.received):
                    if has_state(message):
                        return str(message["result"]["requestState"])
        return STATE

    def _event_id(self, chosen: int | str) -> str:
        ids = [event_id for sent in self.sent for event_id, _ in events(sent.received) if event_id]
        if isinstance(chosen, str):
            stream = ids[-1].rpartition("-")[0] if ids else "0"
            return f"{stream}-{chosen[1:]}" if chosen.startswith("~") else chosen
        return ids[chosen % len(ids)] if ids else "0-0"

    def _messages(self) -> list[JSON]:
        return [message for sent in self.sent for message in messages(sent.received)]

    async def _run(self, verb: str, path: str, pairs: list[tuple[str, str]], sent: Sent, goes_in_body: bool) -> None:
        scope = {
            "type": "http",
            "method": verb,
            "path": path,
            "scheme": "http",
            "headers": [(name.encode(), value.encode("utf-8", "replace")) for name, value in pairs],
        }
        half = len(sent.body) // 2
        pieces = [
            {"type": "http.request", "body": sent.body[:half], "more_body": True},
            {"type": "http.request", "body": sent.body[half:], "more_body": goes_in_body},
        ]
        received = sent.received
        reads_at = trio.current_time() + getattr(sent.step, "reads_after", 0.0)
        if goes_in_body:
            sent.left = True
            received.leave()

        async def receive() -> Mapping[str, Any]:
            await trio.lowlevel.checkpoint()
            if pieces:
                return pieces.pop(0)
            await received.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            await trio.lowlevel.checkpoint()
            if trio.current_time() < reads_at:
                with trio.move_on_at(reads_at):
                    await received.gone.wait()
            if not received.gone.is_set():  # a server throws away what a client that is gone would have got
                received.take(message)

        with received.scope:
            await self.world.app(scope, receive, send)
        received.done.set()

    async def end(self) -> list[str]:
        """All clients leave, all sessions are ended; what the front holds then."""
        await trio.sleep(5)  # what has an answer gets it
        for sent in self.sent:
            self.leave(sent)
        await trio.sleep(SETTLING)
        self._note_sessions()
        for session_id, principal in self.sessions.items():
            headers = {"mcp-session-id": session_id, "authorization": f"Bearer {principal}"}
            status = (await self.world.request("DELETE", headers=headers)).status
            assert status in (204, 404), status
        await trio.sleep(SETTLING)
        return held(self.world)


def held(world: FrontWorld) -> list[str]:
    """What a front holds of its clients."""
    app, live = world.app, {session.id for session in world.manager.live_sessions}
    counts = {
        "exchanges": len(app._exchanges),
        "clients": len(app._legacy._clients.keys() - live),
        "streams to resume": len(app._legacy._expiring),
        "listeners": len(app._modern.stateless.listeners._interests),
        "calls in flight": world.manager.statistics.in_flight,
        "requests that are not over": sum(1 for task in world.nursery.child_tasks),
    }
    return [f"{count} {name}" for name, count in counts.items() if count]


def stream_of(event_id: str) -> str:
    return event_id.rpartition("-")[0]


def events(received: Received) -> list[tuple[str | None, Any]]:
    return received.events if received.is_stream else []


def messages(received: Received) -> list[JSON]:
    """Every JSON-RPC message of a reply."""
    if received.is_stream:
        return [message for message in received.messages if isinstance(message, dict)]
    try:
        message = json.loads(received.body)
    except ValueError:
        return []
    return [one for one in (message if isinstance(message, list) else [message]) if isinstance(one, dict)]


def has_state(message: JSON) -> bool:
    return isinstance(message.get("result"), dict) and isinstance(message["result"].get("requestState"), str)


def _pairs(headers: dict[str, str], changes: Sequence[HeaderChange]) -> list[tuple[str, str]]:
    dropped = {name for name, _ in changes}
    pairs = [(name, value) for name, value in headers.items() if name not in dropped]
    for name, value in changes:
        values = () if value is None else (value,) if isinstance(value, str) else value
        pairs += [(name, each) for each in values]
    return pairs


class _Crashes(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


@contextmanager
def _crashes() -> Iterator[list[str]]:
    handler, logger = _Crashes(), logging.getLogger("trio_vmcp")
    logger.addHandler(handler)
    try:
        yield handler.found
    finally:
        logger.removeHandler(handler)


async def replay(script: Sequence[Step]) -> Outcome:
    """Run a script to its end.

    Raises:
        BaseException: The application raised.
    """
    factory = FactorySettings(reconnect_delay=1.0, reconnect_max_delay=1.0)
    with _crashes() as crashes:
        async with front_world(*backends(), authenticator=Tokens(), factory=factory) as world:
            replaying = _Replay(world)
            for step in script:
                await replaying.step(step)
            left = await replaying.end()
    return Outcome(replaying.sent, left, crashes)
