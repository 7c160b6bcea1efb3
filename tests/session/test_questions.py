"""Questions of backends, as the handlers of a session see them."""

from __future__ import annotations

from functools import partial
from typing import Any

import trio
from support.channels import EVERY_CHANNEL, Channel
from trio.testing import MockClock

from trio_vmcp import JSON, CallInfo, ClientHandlers, ServerRequest
from trio_vmcp.testing import CallContext

META = {"stream": 7, "io.modelcontextprotocol/x": 1}


def knows_its_call(channel: Channel) -> bool:
    """Over stdio and HTTP+SSE the calls of the handshake era share one stream, which names no call."""
    return channel.is_modern or channel.transport == "streamable-http"


async def confirm(arguments: JSON, context: CallContext) -> str:
    return str((await context.elicit("Are you sure?"))["action"])


@EVERY_CHANNEL
async def test_a_question_names_its_call(channel: Channel, autojump_clock: MockClock) -> None:
    """Of two calls at the same time each question says which one it belongs to, with the `meta` of that call."""
    asked: list[CallInfo | None] = []

    async def answer(request: ServerRequest) -> JSON:
        asked.append(request.call)
        await trio.sleep(1)
        return {"action": "accept", "content": {}}

    backend = channel.backend()
    backend.add_tool("wipe", confirm)
    backend.add_tool("pay", confirm)
    async with channel.open_session(backend, handlers=ClientHandlers(elicitation=answer)) as session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call_tool, "b_wipe")
            nursery.start_soon(partial(session.call_tool, "b_pay", meta=META))
    expected = [CallInfo("b_pay", META), CallInfo("b_wipe")]
    assert (expected if knows_its_call(channel) else [None, None]) == sorted(asked, key=repr)


@EVERY_CHANNEL
async def test_a_log_message_names_its_call(channel: Channel, autojump_clock: MockClock) -> None:
    """A message in the stream of a call names that call, and one outside of any call names none."""
    heard: list[tuple[Any, CallInfo | None]] = []

    async def note(request: ServerRequest) -> None:
        heard.append((request.params["data"], request.call))

    async def talk(arguments: JSON, context: CallContext) -> str:
        await context.notify("notifications/message", {"level": "info", "data": "inside"})
        return "done"

    backend = channel.backend()
    backend.add_tool("talk", talk)
    async with channel.open_session(backend, handlers=ClientHandlers(log=note)) as session:
        await session.call_tool("b_talk", meta={"stream": 1})
        await trio.sleep(1)
    inside = CallInfo("b_talk", {"stream": 1}) if channel.transport == "streamable-http" else None
    assert [("inside", inside)] == heard


def test_the_repr_of_a_call_does_not_show_its_meta() -> None:
    """Callers put tokens and traces there."""
    assert "canary" not in repr(ServerRequest("s", "b", None, {}, CallInfo("tool", {"token": "canary"})))
