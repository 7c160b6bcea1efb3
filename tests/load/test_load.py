"""The server under load: backends crash, clients vanish, connections break, and SIGTERM comes in the middle."""

from __future__ import annotations

import random
import signal
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from simulation.front_backends import TROUBLES, WorkingBackend
from simulation.front_clients import Client, HandshakeClient, StatelessClient

from load.server import LoopbackWorld, ServerProcess, open_server
from trio_vmcp.testing import ScriptedBackend, open_loopback

CLIENTS = 12
CALLS = 6  # of one session of a client
KEPT = 32.0  # s: a bit over `abandoned_after`, for which the streams of answered requests are kept
MORE_TASKS, MORE_DESCRIPTORS, MORE_MEMORY = 8, 8, 60  # than after the first calls; memory in MiB
ENDING = 20.0  # s: shutdown_timeout, and the bounds of the sessions


@attrs.define(eq=False)
class Load:
    world: LoopbackWorld
    server: ServerProcess
    backends: list[WorkingBackend]
    chance: random.Random
    outcomes: Counter[str] = attrs.field(factory=Counter)
    _numbers: int = 0

    async def client(self) -> Client:
        self._numbers += 1
        kind = self.chance.choice((HandshakeClient, StatelessClient))
        client = kind(self.world, f"c{self._numbers}", self.backends, self.chance, "alice")
        if isinstance(client, HandshakeClient):
            await client.open()
        return client

    async def act(self, seconds: float) -> None:
        """Sessions of one client, one after the other."""
        ends_at = trio.current_time() + seconds
        while trio.current_time() < ends_at:
            client = await self.client()
            async with trio.open_nursery() as listening:
                if self.chance.random() < 0.3:
                    await client.listen(listening)
                async with trio.open_nursery() as calls:
                    for _ in range(CALLS):
                        calls.start_soon(client.call, client.plan())
                        await trio.sleep(self.chance.choice((0.0, 0.05, 0.2)))
                listening.cancel_scope.cancel()
            if client.stream is not None:
                client.stream.leave()
            if isinstance(client, HandshakeClient):
                await client.session.delete()
            self.outcomes.update(client.outcomes)

    async def trouble(self) -> None:
        while True:
            await trio.sleep(self.chance.choice((1.0, 3.0)))
            await self.chance.choice(self.backends).trouble(self.chance.choice(TROUBLES))

    async def run(self, seconds: float, *, is_calm: bool = False) -> None:
        async with trio.open_nursery() as troubles:
            if not is_calm:
                troubles.start_soon(self.trouble)
            async with trio.open_nursery() as acting:
                for _ in range(CLIENTS):
                    acting.start_soon(self.act, seconds)
            troubles.cancel_scope.cancel()

    async def stop(self) -> None:
        """SIGTERM while calls are under way, each of which gets its result."""
        for backend in self.backends:
            backend.scripted.latency = 0.0
            backend.scripted.restart()
        await trio.sleep(5)
        clients = [await self.client() for _ in range(CLIENTS)]
        plans = [attrs.evolve(client.plan(is_calm=True), seconds=2.0, reports=1) for client in clients]
        async with trio.open_nursery() as calls:
            for client, plan in zip(clients, plans, strict=True):
                calls.start_soon(client.call, plan)
            while not all(plan.backend.executed[plan.key] for plan in plans):  # noqa: ASYNC110  # a count
                await trio.sleep(0.05)
            self.server.process.send_signal(signal.SIGTERM)
        assert [Counter(ok=1)] * CLIENTS == [client.outcomes for client in clients]
        with trio.fail_after(ENDING):
            assert 0 == await self.server.process.wait()


async def test_a_server_under_load_leaks_nothing_and_cuts_nothing(
    seconds: float, tmp_path: Path, record_property: Any
) -> None:
    """Each call has its own outcome and is executed at most once, questions come to the client whose call asks, no
    status is undocumented, nothing stays, and SIGTERM cuts no request.
    """
    chance = random.Random(14)
    scripted = [ScriptedBackend(era=era, answers="sse", listens=True) for era in ("legacy", "modern", "legacy")]
    backends = [
        WorkingBackend(name, each, chance, longest_hang=3.0) for name, each in zip("abc", scripted, strict=True)
    ]
    async with AsyncExitStack() as stack:
        urls = {each.name: await stack.enter_async_context(open_loopback(each.scripted)) for each in backends}
        server = await stack.enter_async_context(open_server(urls, tmp_path))
        nursery = await stack.enter_async_context(trio.open_nursery())
        nothing: Any = None  # of the parts of a front in memory
        world = LoopbackWorld(nothing, nothing, nothing, {}, nursery, host=server.host, port=server.port)
        load = Load(world, server, backends, chance)
        await load.run(min(seconds, 5.0), is_calm=True)
        await trio.sleep(2)  # the sessions end behind the replies to DELETE
        before = await server.tasks(), server.descriptors, server.resident
        await load.run(seconds)
        await trio.sleep(KEPT)
        after = await server.tasks(), server.descriptors, server.resident
        print(before, after, load.outcomes, world.statuses)  # noqa: T201  # the figures of the run
        for was, now, more in zip(before, after, (MORE_TASKS, MORE_DESCRIPTORS, MORE_MEMORY), strict=True):
            assert now <= was + more, f"tasks, descriptors and MiB went from {before} to {after}"
        assert [] == world.unexpected
        assert load.outcomes["ok"] > CLIENTS
        await load.stop()
        nursery.cancel_scope.cancel()


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    return float(request.config.getoption("--seconds"))
