"""Questions of backends, as the handlers of a session see them."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
from support.channels import EVERY_CHANNEL, EVERY_LEGACY_CHANNEL, Channel
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON, BackendTimeout, CallInfo, ClientHandlers, ServerRequest
from trio_vmcp._client.server_requests import MOST_ANSWERS
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
@pytest.mark.parametrize("ends", ["timeout", "cancel"])
async def test_a_question_ends_with_its_call(channel: Channel, ends: str, autojump_clock: MockClock) -> None:
    """A call that is given up takes its question along, also where the channel does not say whose question it is: else
    the handlers of sixteen such calls would keep a backend from asking for as long as the session lasts.
    """
    at_work = asked = 0

    async def answer(request: ServerRequest) -> JSON:
        nonlocal at_work, asked
        at_work, asked = at_work + 1, asked + 1
        try:
            await trio.sleep_forever()
        finally:
            at_work -= 1
        raise AssertionError

    backend = channel.backend()
    backend.add_tool("wipe", confirm)
    async with channel.open_session(backend, handlers=ClientHandlers(elicitation=answer)) as session:
        for _ in range(MOST_ANSWERS + 1):
            with trio.move_on_after(1 if ends == "cancel" else math.inf), suppress(BackendTimeout):
                await session.call_tool("b_wipe", timeout=None if ends == "cancel" else 1)
            await wait_all_tasks_blocked()
            assert 0 == at_work
        assert MOST_ANSWERS + 1 == asked


@EVERY_LEGACY_CHANNEL
async def test_a_question_goes_on_for_the_other_calls(channel: Channel, autojump_clock: MockClock) -> None:
    """Of two calls in flight one is given up: over a shared stream the question may be that of the other one."""
    backend = channel.backend()
    backend.add_tool("pay", confirm)

    async def nap(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(20)
        return "rested"

    async def answer(request: ServerRequest) -> JSON:
        await trio.sleep(5)
        return {"action": "accept", "content": {}}

    backend.add_tool("nap", nap)
    async with channel.open_session(backend, handlers=ClientHandlers(elicitation=answer)) as session:
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                with suppress(BackendTimeout):
                    await session.call_tool("b_nap", timeout=2)

            nursery.start_soon(give_up)
            await trio.sleep(1)
            assert "accept" == (await session.call_tool("b_pay")).content[0]["text"]


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
