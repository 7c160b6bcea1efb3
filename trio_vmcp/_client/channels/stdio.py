"""The channel to a child process: `Backend(transport="stdio", command=…)`.

The process belongs to the nursery that the connector is given, and ends with the connection. A session cannot be
resumed: a new connection starts a new process. See `process` (start and end of the process), `lines` (its stdin and
stdout) and `stderr`.
"""

from __future__ import annotations

import attrs
import trio

from trio_vmcp._client.channels.inbox import new_inbox
from trio_vmcp._client.channels.lines import LineChannel
from trio_vmcp._client.channels.process import ChildProcess
from trio_vmcp._nursery import start_clean
from trio_vmcp.models import Backend
from trio_vmcp.settings import FactorySettings

__all__ = ["ProcessChannel", "build_process_channel"]


@attrs.define(eq=False, kw_only=True)
class ProcessChannel(LineChannel):
    """The lines to and from one child process."""

    child: ChildProcess = attrs.field(init=False)

    async def start(self, nursery: trio.Nursery) -> None:
        start_clean(nursery, self.child.serve)
        try:
            await self.child.started.wait()
        except BaseException:
            self.close()
            raise
        if self.inbox.loss is not None:
            raise self.inbox.loss.error(self.backend_id)

    def mark_connected(self) -> None:
        self.child.mark_connected()

    async def wait_gone(self) -> None:
        await self.child.gone.wait()

    def close(self) -> None:
        self.child.close()

    async def aclose(self, *, terminate: bool) -> None:
        self.child.close(trio.current_effective_deadline() - trio.current_time())
        try:
            await self.child.gone.wait()
        finally:
            self.child.kill()  # if this was cancelled, no time is left; else the process is gone already


def build_process_channel(backend: Backend, settings: FactorySettings) -> ProcessChannel:
    """The channel to a process that is not started yet."""
    channel = ProcessChannel(inbox=new_inbox(backend, settings))
    channel.child = ChildProcess(backend=backend, channel=channel, teardown_timeout=settings.teardown_timeout)
    return channel
