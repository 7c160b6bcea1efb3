"""The channel to a child process: `Backend(transport="stdio", command=…)`.

The process belongs to the nursery that the connector is given, and ends with the connection. A session cannot be
resumed: a new connection starts a new process. See `process` (start and end of the process), `lines` (its stdin and
stdout) and `stderr`.
"""

from __future__ import annotations

import attrs
import trio

from trio_vmcp._client.channels.inbox import Inbox
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
        """Start the process in `nursery`, which owns it even if this call is cancelled. Attach a sink before: the
        process may write a message as soon as it runs.

        Raises:
            BackendUnavailable: The process could not be started.
        """
        start_clean(nursery, self.child.serve)
        try:
            await self.child.started.wait()
        except BaseException:
            self.close()
            raise
        if self.inbox.loss is not None:
            raise self.inbox.loss.error(self.backend_id)

    def mark_connected(self) -> None:
        """The client is connected. From now on the end of the process is an error of its task.

        Raises:
            BackendUnavailable: The process has ended.
        """
        self.child.mark_connected()

    def close(self) -> None:
        """End the process, without waiting."""
        self.child.close()

    async def aclose(self, *, terminate: bool) -> None:
        self.child.close()
        try:
            await self.child.gone.wait()
        finally:
            self.child.kill()  # if this was cancelled, no time is left; else the process is gone already


def build_process_channel(backend: Backend, settings: FactorySettings) -> ProcessChannel:
    """The channel to a process that is not started yet."""
    inbox = Inbox(
        backend_id=backend.id,
        max_message_bytes=settings.max_message_bytes,
        max_json_depth=settings.max_json_depth,
    )
    channel = ProcessChannel(inbox=inbox)
    channel.child = ChildProcess(backend=backend, channel=channel, teardown_timeout=settings.teardown_timeout)
    return channel
