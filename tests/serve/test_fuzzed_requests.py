"""Scripts of mutated requests, by two principals and a stranger, against the front in memory; `nox -s sweeps` runs
more. And defects that the checks of the scripts must notice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fuzz.front_draw import draw_script
from fuzz.front_judge import violations
from fuzz.front_steps import CANARY, STATE, Delete, Get, Initialize, Legacy, Modern, Pause, Reply, Step
from support.harness import ALICE

from trio_vmcp import JSON
from trio_vmcp.serve import _client_session, _legacy, _rounds
from trio_vmcp.serve._exchange import Exchanges, HttpExchange
from trio_vmcp.serve._legacy import LegacyFront
from trio_vmcp.serve._stateless import Stateless
from trio_vmcp.serve._streams import EventStream

ASKED: JSON = {"elicitation": {}}
ACCEPTED = {"elicitation/create": {"action": "accept", "content": {"said": CANARY}}}


@pytest.mark.parametrize("seed", range(8))
def test_mutated_requests_break_no_promise(seed: int) -> None:
    """No crash, no undocumented status, a response for each request, no text of another principal, nothing left."""
    assert [] == violations(draw_script(seed, steps=16), seed)


def begin(principal: int = 0) -> Initialize:
    return Initialize(as_principal=principal, session=None, capabilities=ASKED)


def call(name: str, session: int = 0, request_id: Any = 7, **more: Any) -> Legacy:
    params = {"name": name, "arguments": {"say": CANARY}, "_meta": {"progressToken": 1}}
    return Legacy(method="tools/call", params=params, request_id=request_id, session=session, **more)


def modern(name: str, principal: int, arguments: JSON, **more: Any) -> Modern:
    params = {"name": name, "arguments": arguments, **more}
    return Modern(method="tools/call", params=params, session=None, as_principal=principal, capabilities=ASKED)


Defect = tuple[Any, str, Callable[[Any], Any], list[Step], str]

DEFECTS: dict[str, Defect] = {
    "the identity of a session's client is not asked": (
        LegacyFront,
        "_client",
        lambda original: known_client_of(original),
        [begin(), call("a_echo"), call("a_echo", as_principal=1)],
        "got 200 for a session of alice",
    ),
    "another principal ends a session": (
        LegacyFront,
        "delete",
        lambda original: lambda self, request, reply, identity: original(self, request, reply, ALICE),
        [begin(), Delete(session=0, as_principal=1)],
        "got 204 for a session of alice",
    ),
    "the id of another request": (
        _legacy,
        "encode_answer",
        lambda original: lambda request_id, result: original(1, result),
        [begin(), call("a_echo")],
        "a response with the id 1 to the requests [0]",
    ),
    "an exchange that is not removed": (
        Exchanges,
        "discard",
        lambda original: lambda self, exchange: None,
        [begin(), call("a_echo")],
        "left at the end: 1 exchanges",
    ),
    "a session that is not forgotten": (
        LegacyFront,
        "_end",
        lambda original: lambda self, client: self._clients.update({client.state.session.id: client}),
        [begin()],
        "left at the end: 1 clients",
    ),
    "a question to another client": (
        LegacyFront,
        "client_of",
        lambda original: lambda self, session_id: next(iter(self._clients.values())).state,
        [begin(0), begin(1), Get(session=0), call("a_ask", session=1), Pause(1.0)],
        "request 2 (alice): got 'bob-3.' of bob",
    ),
    "a crash on a type": (
        _client_session,
        "progress_of",
        lambda original: lambda exchange, params: {}[params["_meta"]["progressToken"]],
        [begin(), call("a_echo")],
        "a request has crashed",
    ),
    "one session for all principals": (
        Stateless,
        "shared",
        lambda original: lambda self, identity: original(self, ALICE),
        [modern("a_recall", 0, {"say": CANARY}), Pause(1.0), modern("a_recall", 1, {"say": CANARY})],
        "request 1 (bob): got 'alice-0.' of alice",
    ),
    "sealed state that is good for any principal": (
        _rounds,
        "_binding",
        lambda original: lambda identity, method, params: original(None, method, params),
        [
            modern("b_ask", 0, {}),
            Pause(1.0),
            modern("b_ask", 0, {}, requestState=STATE, inputResponses=ACCEPTED),
            Pause(1.0),
            modern("b_ask", 1, {}, requestState=STATE, inputResponses=ACCEPTED),
        ],
        "(bob): got 'alice-",
    ),
    "a response that is lost on its stream": (
        HttpExchange,
        "respond",
        lambda original: lambda self, status, body: self.respond_nothing(),
        [begin(), call("a_chat"), Pause(1.0)],
        "no response to 7",
    ),
    "a response that is lost on a resumed stream": (
        LegacyFront,
        "_resume",
        lambda original: ends_at_once,
        [begin(), call("a_chat"), Pause(0.05), Get(session=0, last_event_id=0), Pause(1.0)],
        "no response to 7",
    ),
    "a response that is lost where another of its id came by a resumed stream": (
        HttpExchange,
        "respond",
        lambda original: lost_unless_resumed(original),
        [
            *(begin(), call("a_chat"), Pause(0.05), Get(session=0, last_event_id=0), Pause(1.0)),
            *(call("a_chat"), Pause(1.0)),
        ],
        "request 3 (alice): no response to 7",
    ),
    "two messages with the id of one event": (
        EventStream,
        "_next_id",
        lambda original: lambda self: f"{self.name}-1",
        [begin(), call("a_chat"), Pause(1.0)],
        ".1-1 came",
    ),
    "an answer that any client may give": (
        LegacyFront,
        "_take",
        lambda original: take_for_all,
        [
            begin(0),
            begin(1),
            call("a_ask", 0),
            Pause(0.1),
            Reply(question=-1, result=ACCEPTED["elicitation/create"], session=1),
            Pause(0.1),
            Reply(question=-1, result=ACCEPTED["elicitation/create"], session=1),
            Pause(1.0),
        ],
        "request 2 (alice): got 'bob-3.' of bob",
    ),
}


def known_client_of(original: Any) -> Any:
    async def client_of(self: Any, request: Any, identity: Any) -> Any:
        return self._clients.get(request.headers.get("mcp-session-id")) or await original(self, request, identity)

    return client_of


async def ends_at_once(self: Any, exchange: Any, stream: Any, request: Any, reply: Any, after: Any) -> None:
    with stream.read_by(reply):
        await reply.start(200, [(b"content-type", b"text/event-stream")])
        await reply.end()


def lost_unless_resumed(original: Any) -> Any:
    async def respond(self: Any, status: int, body: bytes) -> None:
        if self.stream is None or self.stream.is_read_elsewhere(self._reply):
            await original(self, status, body)
        else:
            await self.respond_nothing()

    return respond


async def take_for_all(self: Any, client: Any, message: Any) -> None:
    for each in self._clients.values():
        each.state.on_reply(message)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same script finds nothing without the defect."""
    owner, attribute, broken, script, expected = DEFECTS[name]
    assert [] == violations(script)
    monkeypatch.setattr(owner, attribute, broken(getattr(owner, attribute)))
    found = violations(script)
    assert any(expected in problem for problem in found), found
