"""Rounds of servers by other authors, handed out by one session and answered by another. Their states are sealed: one
that is not given back as it came, or with another request, is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from interop.conftest import UrlOf
from interop.fleet import SERVERS, Server

from trio_vmcp import (
    Backend,
    BackendRejected,
    PromptResult,
    ResourceResult,
    Session,
    ToolResult,
    open_session_factory,
)

ASKING = [pytest.param(server, id=server.name) for server in SERVERS if server.home == "mcp2"]
ANSWER = {"who": {"action": "accept", "content": {"name": "Ada"}}}
Ask = Callable[..., Awaitable[ToolResult | ResourceResult | PromptResult]]


def asks_of(session: Session) -> dict[str, Ask]:
    calls: dict[str, Ask] = {
        "tool": partial(session.call_tool, "it_greet"),
        "prompt": partial(session.get_prompt, "it_introduction"),
        "resource": partial(session.read_resource, "name://you"),
    }
    return {
        kind: partial(call, answer_rounds=False, client_capabilities={"elicitation": {}})
        for kind, call in calls.items()
    }


@pytest.mark.parametrize("kind", ["tool", "prompt", "resource"])
@pytest.mark.parametrize("server", ASKING)
async def test_a_question_is_answered_by_another_session(server: Server, kind: str, url_of: UrlOf) -> None:
    """Each session has connections of its own, as in another process."""
    backend = Backend(id="it", url=url_of(server), era="modern")
    async with open_session_factory() as factory, factory.open_session([backend]) as session:
        first = await asks_of(session)[kind]()
    assert first.input_required is not None
    assert ("elicitation/create", "Your name?") == (
        first.input_required["who"]["method"],
        first.input_required["who"]["params"]["message"],
    )
    async with open_session_factory() as factory, factory.open_session([backend]) as session:
        answer = partial(asks_of(session)[kind], input_responses=ANSWER)
        with pytest.raises(BackendRejected):
            await answer(request_state=f"{first.request_state}x")
        last = await answer(request_state=first.request_state)
    assert last.input_required is None
    assert "Ada" in str(last.raw)
