"""A script from a seed: mostly valid requests of both eras, and mutations of each part of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import attrs

from fuzz.front_steps import (
    CANARY,
    STATE,
    BodyChange,
    Change,
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
)
from trio_vmcp import JSON

__all__ = ["draw_script"]

T = TypeVar("T")

# Few, so that most are used again while they are in flight.
IDS = (1, 2, 3, 4, 5, 6, "1", "two", 0, -1, 2**63, 10**40, "x" * 1000, "")
ODD_IDS: Sequence[Any] = (1.0, 1.5, True, [], {}, "\ud800")
ODD: Sequence[Any] = (
    *(None, True, 0, -1, 1.5, 10**400, "", "x", "\x00", "\ud800", "é" * 300, [], [[]], {}, {"": None}, ["a"], "a_echo"),
)
SECONDS = (0.0, 0.01, 0.1, 0.3, 1.0, 3.0, 20.0)
HEADERS = (
    *("mcp-protocol-version", "mcp-method", "mcp-name", "mcp-param-region", "mcp-session-id", "accept"),
    *("content-type", "host", "origin", "authorization", "content-length", "last-event-id"),
)
VALUES: Sequence[str | tuple[str, ...] | None] = (
    *(None, "", "x", "2025-06-18", "2026-07-28", "2099-01-01", "application/json", "*/*", "text/event-stream"),
    *("tools/call", "=?base64?!!?=", "=?base64?/w==?=", "http://evil.test", "Bearer none", "99999999999", "\xff"),
    *(("a", "b"), ("application/json", "text/event-stream"), ("2026-07-28", "2026-07-28")),
)
STRANGE_SESSIONS = (None, "", "unknown", "a, b", "\xff", "x" * 5000)
EVENT_IDS = ("~0", "~1", "~999", "~", "0-0", "1-999", "x", "", "٣-1")
EVERYTHING: JSON = {"elicitation": {}, "sampling": {}, "roots": {}}
ODD_CAPABILITIES: Sequence[Any] = (
    *({"elicitation": {}}, {}, {"sampling": {"tools": []}, "x": {}}, {"elicitation": None}, {"x": True}),
    *({"roots": {"x": "é" * 9000}}, {"roots": {"x": "\ud800"}}, [], None),
)
TOOLS = ("echo", "hold", "ask", "ask", "ask", "chat", "recall", "region")
LISTS = ("tools/list", "resources/list", "resources/templates/list", "prompts/list")
URIS = ("file:///x", "file:///x", "file:///y", "none:", "", "\ud800", 7, None)
CURSORS = ("", "x", "WyJ0b29scyIsImFfZWNobyJd", "WyJ0b29scyIsImEiXQ", 7)
LISTENING: Sequence[JSON] = (
    *[{"notifications": {"toolsListChanged": True, "resourceSubscriptions": ["file:///x"]}}] * 3,
    {"notifications": {"promptsListChanged": True}},
    {"notifications": {"resourceSubscriptions": ["none:", "\ud800"]}},
    {"notifications": {"toolsListChanged": 1, "resourceSubscriptions": [7]}},
    {"notifications": []},
    {},
)
ACCEPTED: JSON = {"action": "accept", "content": {"said": CANARY}}
RESPONSES: Sequence[Any] = (*[{"elicitation/create": ACCEPTED}] * 4, {}, {"x": 7}, [], None)


def draw_script(seed: int, steps: int = 40) -> list[Step]:
    """Two clients of one principal and one of another begin; then anything."""
    draw = _Draw(random.Random(f"{seed} front"))
    clients = ((0, "2025-11-25"), (0, "2025-03-26"), (1, "2025-11-25"))
    begun = [
        Initialize(as_principal=principal, session=None, capabilities=EVERYTHING, version=version)
        for principal, version in clients
    ]
    return [*begun, *(draw.step() for _ in range(draw.random.randrange(10, steps)))]


@attrs.frozen
class _Draw:
    random: random.Random

    def one_of(self, *choices: T) -> T:
        return self.random.choice(choices)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def step(self) -> Step:
        kinds: dict[Callable[[], Step], int] = {
            self.ask: 30,
            self.modern: 30,
            self.reply: 14,
            self.get: 10,
            self.notify: 6,
            self.pause: 8,
            self.leave: 4,
            self.delete: 3,
            self.initialize: 3,
            self.raw: 3,
            self.happen: 4,
        }
        return self.random.choices(list(kinds), weights=list(kinds.values()))[0]()

    # --- requests

    def request(self, *, of_session: bool = True, has_body: bool = True) -> dict[str, Any]:
        """The fields that all requests have. Half of the requests are as they should be."""
        session = self.random.randrange(3) if of_session else None
        fields: dict[str, Any] = {"session": session, "as_principal": None}
        mutations = ["headers", "session", "principal", "leaves", "leaves", "slow"] + ["changes", "body"] * has_body
        for kind in self.random.choices(mutations, k=self.one_of(0, 0, 0, 1, 1, 2)):
            match kind:
                case "headers":
                    fields["headers"] = tuple(self.header() for _ in range(self.one_of(1, 1, 2)))
                case "session":
                    fields["session"] = self.one_of(*STRANGE_SESSIONS)
                case "principal":
                    fields["as_principal"] = self.one_of(0, 1, 2)
                case "leaves":
                    fields["leaves_after"] = self.one_of(*SECONDS)
                case "slow":
                    fields["reads_after"] = self.one_of(*SECONDS)
                case "changes":
                    fields["changes"] = tuple(self.change() for _ in range(self.one_of(1, 1, 2)))
                case "body":
                    fields["body"] = self.body_change()
        return fields

    def header(self) -> HeaderChange:
        return self.one_of(*HEADERS), self.one_of(*VALUES)

    def change(self) -> Change:
        kind: Literal["replace", "remove", "add"] = self.one_of("replace", "replace", "remove", "add")
        return Change(self.random.randrange(13), kind, self.one_of(*ODD))

    def body_change(self) -> BodyChange:
        kind: Any = self.one_of("cut", "batch", "twice", "deep", "nan", "utf-8", "empty", "bom", "gone", "many")
        return BodyChange(kind, self.random.randrange(400))

    def request_id(self) -> Any:
        return self.one_of(*ODD_IDS) if self.chance(0.05) else self.one_of(*IDS)

    def capabilities(self) -> Any:
        return self.one_of(*ODD_CAPABILITIES) if self.chance(0.3) else EVERYTHING

    # --- what is asked

    def call(self) -> JSON:
        params: JSON = {"name": f"{self.one_of(*'abc')}_{self.one_of(*TOOLS)}", "arguments": {"say": CANARY}}
        if self.chance(0.3):
            params["arguments"]["region"] = self.one_of("west", "west", 7, None)
        if self.chance(0.5):
            params["_meta"] = {"progressToken": self.request_id()}
        return params

    def common(self) -> tuple[str, Any]:
        """A request of both eras."""
        match self.one_of(*["call"] * 5, "read", "prompt", "complete", "list"):
            case "read":
                return "resources/read", {"uri": self.one_of(*URIS)}
            case "prompt":
                return "prompts/get", self.one_of(
                    {"name": "a_p", "arguments": {}}, {"name": "none"}, {"name": []}, {"name": "a_p", "arguments": []}
                )
            case "complete":
                ref: Any = self.one_of(
                    {"type": "ref/prompt", "name": "c_p"}, {"type": "ref/prompt", "name": "a_p"}, {}, 7
                )
                argument: Any = self.one_of({"name": "n", "value": "v"}, {"name": "n", "value": "v"}, {"name": 7}, None)
                more: JSON = self.one_of({}, {}, {"uri": []}, {"name": {}})
                return "completion/complete", {"ref": ref, "argument": argument, **more}
            case "list":
                return self.one_of(*LISTS), self.one_of({}, {}, {"cursor": self.one_of(*CURSORS)})
        return "tools/call", self.call()

    def ask(self) -> Step:
        asked: tuple[str, Any] = self.common()
        if self.chance(0.25):
            asked = self.one_of(
                ("ping", self.one_of({}, None, [])),
                (self.one_of("resources/subscribe", "resources/unsubscribe"), {"uri": self.one_of(*URIS)}),
                ("resources/subscribe", {"uri": "file:///x"}),
                ("logging/setLevel", {"level": self.one_of("debug", "debug", "emergency", "x", [], None)}),
                (self.one_of("nothing", "", "server/discover", "initialize", "x" * 70_000), {}),
            )
        return Legacy(method=asked[0], params=asked[1], request_id=self.request_id(), **self.request())

    def notify(self) -> Step:
        if self.chance(0.7):
            told: tuple[str, Any] = ("notifications/cancelled", {"requestId": self.request_id()})
        else:
            told = self.one_of("notifications/initialized", "notifications/roots/list_changed", "x"), self.one_of(*ODD)
        return Legacy(method=told[0], params=told[1], **self.request())

    def reply(self) -> Step:
        error: Any = None
        if self.chance(0.2):
            error = self.one_of({"code": -1, "message": CANARY}, {"code": "x"}, "x", {"code": 10**40, "message": ""})
        result: Any = self.one_of(ACCEPTED, ACCEPTED, ACCEPTED, ACCEPTED, {}, None, [], {"\ud800": 1})
        question: Any = self.one_of(-1, -1, self.random.randrange(6), self.one_of("1", "x"))
        return Reply(question=question, result=result, error=error, **self.request())

    def modern(self) -> Step:
        asked: tuple[str, Any] = self.common()
        if self.chance(0.5):
            again = {"requestState": self.one_of(STATE, STATE, STATE, STATE, "x", "", 7, None)}
            asked = self.one_of(
                ("server/discover", {}),
                ("subscriptions/listen", self.one_of(*LISTENING)),
                ("subscriptions/listen", self.one_of(*LISTENING)),
                ("tools/call", {"name": "b_ask", "arguments": {}}),
                ("tools/call", {"name": "b_ask", "arguments": {}, **again, "inputResponses": self.one_of(*RESPONSES)}),
                ("tools/call", {"name": "b_ask", "arguments": {}, **again, "inputResponses": self.one_of(*RESPONSES)}),
                (self.one_of("initialize", "ping", "nothing", "logging/setLevel"), {}),
            )
        return Modern(
            method=asked[0],
            params=asked[1],
            request_id=None if self.chance(0.03) else self.request_id(),
            capabilities=self.capabilities(),
            log_level=self.one_of("x", 7, []) if self.chance(0.05) else self.one_of(None, "debug", "alert"),
            token=self.request_id() if self.chance(0.5) else None,
            **self.request(of_session=self.chance(0.1)),
        )

    # --- the other steps

    def initialize(self) -> Step:
        version = self.one_of("2025-11-25", "2025-03-26", "2024-11-05", "2099-01-01")
        return Initialize(
            capabilities=self.capabilities(), version=version, **self.request(of_session=self.chance(0.3))
        )

    def get(self) -> Step:
        event_id = self.one_of(None, None, -1, self.random.randrange(30), self.one_of(*EVENT_IDS))
        return Get(last_event_id=event_id, **self.request(has_body=False))

    def delete(self) -> Step:
        return Delete(**self.request(has_body=False))

    def raw(self) -> Step:
        verb = self.one_of("GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS", "BREW")
        path = self.one_of("/mcp", "/mcp/", "/", "/other", "", "//mcp", "/healthz", "/readyz", "/status", "/metrics")
        return Raw(verb=verb, path=path, data=self.random.randbytes(20), **self.request(has_body=False))

    def leave(self) -> Step:
        return Leave(self.random.randrange(8))

    def pause(self) -> Step:
        return Pause(self.one_of(*SECONDS))

    def happen(self) -> Step:
        return Happen(self.one_of("tools changed", "resource updated", "crash"))
