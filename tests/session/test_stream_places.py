"""A stream that is held open for as long as its backend is connected takes no call's place."""

from __future__ import annotations

import trio
from support.channels import EVERY_CHANNEL, Channel
from trio.testing import MockClock

from trio_vmcp import JSON, FactorySettings, SessionChange
from trio_vmcp.testing import CallContext


@EVERY_CHANNEL
async def test_a_held_stream_does_not_count_under_the_connection_limit(
    channel: Channel, autojump_clock: MockClock
) -> None:
    """`max_connections_per_backend=1`: calls are served one after another, and changes are heard of meanwhile."""

    async def be_slow(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(1)
        return "done"

    backend = channel.backend(listens=True)
    backend.add_tool("slow", be_slow)
    async with channel.open_session(backend, settings=FactorySettings(max_connections_per_backend=1)) as session:
        await trio.sleep(5)
        async with session.changes() as changes:
            with trio.fail_after(3.5):
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(session.call_tool, "b_slow")
                    await trio.sleep(0.5)
                    backend.add_tool("late")
                    backend.notify("notifications/tools/list_changed")
            with trio.fail_after(5):
                assert SessionChange("tools", "b") == await changes.receive()
