"""Requests that met a connection which the backend had closed: all but tool calls are sent again."""

from __future__ import annotations

import pytest
from support.channels import Channel
from support.clients import ALICE, ask, call
from trio.testing import MockClock

from trio_vmcp import BackendUnavailable, BearerAuth
from trio_vmcp._protocol.methods import LISTS, METHODS, may_repeat
from trio_vmcp.testing import Disconnect, Reset

CHANNELS = [
    Channel("streamable-http", "legacy"),
    Channel("streamable-http", "legacy", "json"),
    Channel("streamable-http", "modern"),
    Channel("sse", "legacy"),
]
OVER_HTTP = pytest.mark.parametrize("channel", CHANNELS, ids=str)
WITH_AUTH = pytest.mark.parametrize("auth", [None, BearerAuth(lambda backend, identity: "t")], ids=["", "auth"])
FAULT = pytest.mark.parametrize("fault", [Disconnect(0), Reset(0)], ids=["eof", "reset"])


@OVER_HTTP
@WITH_AUTH
@FAULT
async def test_a_list_is_asked_for_again(
    channel: Channel, auth: BearerAuth | None, fault: Disconnect | Reset, autojump_clock: MockClock
) -> None:
    """The caller does not notice."""
    backend = channel.backend()
    async with channel.open_client(backend, auth=auth, identity=ALICE) as client:
        backend.fail("tools/list", fault, times=1)
        before = len(backend.received("tools/list"))
        assert "echo" in str(await ask(client, "tools/list", identity=ALICE))
        if channel.transport != "sse":  # over HTTP+SSE the answer may come by the stream before the POST has failed
            assert 2 == len(backend.received("tools/list")) - before


@OVER_HTTP
@WITH_AUTH
@FAULT
async def test_a_tool_is_not_called_again(
    channel: Channel, auth: BearerAuth | None, fault: Disconnect | Reset, autojump_clock: MockClock
) -> None:
    """The tool may have run, and the error says so."""
    backend = channel.backend()
    async with channel.open_client(backend, auth=auth, identity=ALICE) as client:
        await call(client, identity=ALICE)
        backend.fail("tools/call", fault, times=1)
        name = "hang" if channel.transport == "sse" else "echo"  # else the answer may come by the stream
        with pytest.raises(BackendUnavailable) as caught:
            await call(client, name, identity=ALICE)
        assert caught.value.may_have_executed
        assert 2 == len(backend.received("tools/call"))


def test_every_method_but_a_tool_call_may_be_sent_again() -> None:
    """And one that the table does not know is not: nothing is known about what it does."""
    assert {"tools/call"} == {name for name in METHODS if not may_repeat(name)}
    assert all(may_repeat(method.name) for method in LISTS)
    assert not may_repeat("x/unknown")
