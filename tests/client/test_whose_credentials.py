"""Whose credentials a request carries: those of the caller that it belongs to, else those of the opener."""

from __future__ import annotations

import trio
from support.clients import ALICE, ASKED, BOB, ask, call, open_scripted
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON, BearerAuth
from trio_vmcp.testing import CallContext, ScriptedBackend

OPENER, CALLER = "Bearer alice-token", "Bearer bob-token"
COMPLETED: JSON = {"ref": {"type": "ref/prompt", "name": "p"}, "argument": {"name": "n", "value": ""}}


async def test_every_request_carries_the_credentials_of_its_own(autojump_clock: MockClock) -> None:
    """The opener opens, listens and says goodbye; a call, the answer to a question in it, a cancellation, a
    completion and a refetch are the caller's.
    """

    async def curious(arguments: JSON, context: CallContext) -> str:
        return str(await context.request("roots/list", {}))

    async def hang(arguments: JSON, context: CallContext) -> str:
        await trio.sleep_forever()
        raise AssertionError

    backend = ScriptedBackend(era="legacy", answers="sse", listens=True)
    backend.add_tool("curious", curious)
    backend.add_tool("hang", hang)
    backend.add_prompt("p")
    backend.completions = {"n": ["one"]}
    auth = BearerAuth(lambda backend, identity: identity.token if identity else None)
    async with open_scripted(backend, auth=auth, handlers=ASKED) as bench:
        client = await bench.connect(identity=ALICE)
        await wait_all_tasks_blocked()
        await call(client, "curious", identity=BOB)
        await ask(client, "tools/list", identity=BOB)
        await ask(client, "completion/complete", COMPLETED, identity=BOB)
        with trio.move_on_after(1):
            await call(client, "hang", identity=BOB)
        await wait_all_tasks_blocked()
        await client.aclose(terminate=True)
    sent: dict[str, set[str]] = {}
    for exchange in backend.exchanges:
        message = exchange.message if isinstance(exchange.message, dict) else {}
        kind = message.get("method", "answer" if message else exchange.verb)
        sent.setdefault(kind, set()).add(exchange.headers["authorization"])
    callers = ("tools/call", "answer", "notifications/cancelled", "tools/list", "completion/complete")
    openers = ("initialize", "notifications/initialized", "GET", "DELETE")
    assert {kind: {CALLER} for kind in callers} | {kind: {OPENER} for kind in openers} == sent
