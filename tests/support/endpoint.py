"""One endpoint over any channel, a factory over it, and principals that the endpoint treats differently.

Over HTTP all principals meet one scripted backend, which knows them by a header. Over stdio each has a process of its
own, of the same command, which knows its principal by its environment.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from support.channels import COMMAND, URL, Channel
from support.memory_processes import MemoryProcess, ProcessTable, Program, memory_processes
from trio.testing import wait_all_tasks_blocked

from trio_vmcp import Backend, Identity, SessionFactory, open_session_factory
from trio_vmcp._http.transport import Http11Transport
from trio_vmcp.testing import Exchange, Fault, ScriptedBackend, open_memory_network

__all__ = ["Endpoint", "open_endpoint"]


@attrs.define(eq=False)
class _Processes(ProcessTable):
    """Each principal's processes speak to a backend of its own."""

    backends: Mapping[str, ScriptedBackend] = attrs.field(kw_only=True)

    async def open_process(self, command: Sequence[str], *, env: Mapping[str, str], **options: object) -> MemoryProcess:
        async def main(process: MemoryProcess, pipes: trio.abc.Stream) -> int:
            await self.backends[env["WHO"]].serve_lines(pipes)
            return 0

        self.programs[COMMAND] = Program(main=main, manners="polite", is_there=lambda: True, says=lambda env: "")
        return await super().open_process(command, env=env, **options)


@attrs.define(eq=False)
class Endpoint:
    """
    Attributes:
        backends: By the subject of the principal; over HTTP one for all.
    """

    channel: Channel
    factory: SessionFactory
    backends: Mapping[str, ScriptedBackend]
    _table: _Processes | None = None

    def configured(self, who: Identity, **options: Any) -> Backend:
        """The backend "b" as this principal configures it."""
        where: dict[str, Any] = {"url": URL, "headers": {"X-Who": who.subject}}
        if self._table is not None:
            where = {"command": COMMAND, "env": {"WHO": who.subject}}
        return Backend(**{"id": "b", "transport": self.channel.transport, "era": self.channel.era} | where | options)

    def fail(self, who: Identity, fault: Fault, **options: Any) -> None:
        """Requests of this principal meet the fault."""

        def matches(exchange: Exchange) -> bool:
            return self._table is not None or exchange.headers.get("x-who") == who.subject

        self.backends[who.subject].fail(matches, fault, **options)

    async def lose(self, who: Identity) -> None:
        """What the principal's connection stands on ends: the backend session, the stream or the process."""
        if self._table is None:
            self.backends[who.subject].restart()
        else:
            for stream in list(self.backends[who.subject]._connections):
                await stream.aclose()  # its program ends
        await wait_all_tasks_blocked()

    def times_of(self, who: Identity, method: str) -> list[float]:
        """When requests of a method, or of an HTTP verb, came from a principal."""
        return [
            exchange.received_at
            for exchange in self.backends[who.subject].exchanges
            if method in (exchange.method, exchange.verb)
            and (self._table is not None or exchange.headers.get("x-who") == who.subject)
        ]


@asynccontextmanager
async def open_endpoint(channel: Channel, **options: Any) -> AsyncIterator[Endpoint]:
    """
    Args:
        options: For `open_session_factory`.
    """
    if channel.transport == "stdio":
        backends: Mapping[str, ScriptedBackend] = defaultdict(channel.backend)
        table = _Processes(backends=backends)
        with memory_processes(table):
            async with table.running_in_virtual_time(on_end=lambda process: None):
                async with open_session_factory(**options) as factory:
                    yield Endpoint(channel, factory, backends, table)
                await wait_all_tasks_blocked()
                assert () == table.alive
        return
    backend = channel.backend()
    async with open_memory_network() as network:
        network.attach(URL, backend)
        transport = Http11Transport(dial=network.dial)
        async with open_session_factory(transport=transport, **options) as factory:
            yield Endpoint(channel, factory, defaultdict(lambda: backend), None)
        await transport.aclose()
        await wait_all_tasks_blocked()
        assert 0 == network.open_connections
