"""Histories of a front in memory: clients of both eras over backends that crash, hang, lose sessions and change lists,
and a drain at the end.

Each call has one outcome, which is its own, and is executed at most once; a stream that is resumed has lost nothing;
a changed list is told; questions are answered to the call that asked; a call on a healthy backend succeeds; a drain
cuts no request; and nothing is left.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

import attrs
import trio
from support.deterministic import ending, seeded
from support.front import FrontWorld, front_world, modern_request
from support.harness import ALICE, BOB
from trio.testing import MockClock

from simulation.front_backends import GRACE, TROUBLES, WorkingBackend
from simulation.front_clients import Client, HandshakeClient, StatelessClient
from trio_vmcp import FactorySettings, Identity, ManagerSettings
from trio_vmcp.serve import ServeSettings, Unauthenticated
from trio_vmcp.testing import ScriptedBackend
from trio_vmcp.testing.script import BackendEra

__all__ = ["run_front"]

STEPS = 8
PAUSES = (0.0, 0.0, 0.1, 1.0, 4.0, 20.0)
ABANDONED = 10.0  # s: longer than any client is away
LONGEST = 60.0  # s, of any call that is under way when the front drains
FACTORY = FactorySettings(request_timeout=40.0, reconnect_delay=0.5, reconnect_max_delay=2.0)


class _Tokens:
    async def authenticate(self, headers: Mapping[str, str]) -> Identity:
        found = {"Bearer alice": ALICE, "Bearer bob": BOB}.get(headers.get("authorization", ""))
        if found is None:
            raise Unauthenticated("no token of ours")
        return found


@attrs.define(eq=False)
class FrontHistory:
    world: FrontWorld
    backends: list[WorkingBackend]
    chance: random.Random
    steps: int
    clients: list[Client] = attrs.field(factory=list, init=False)

    async def run(self) -> None:
        await self._begin()
        async with trio.open_nursery() as listening:
            for client in self.clients:
                if self.chance.random() < 0.6:
                    await client.listen(listening)
            async with trio.open_nursery() as acting:
                for client in self.clients:
                    acting.start_soon(self._act, client, acting)
                acting.start_soon(self._trouble)
            await trio.sleep(GRACE + 2 * ABANDONED)
            for client in self.clients:
                await client.check_calm()
            await self._drain()
        await trio.sleep(3 * ABANDONED)
        left = held(self.world)
        assert not left, f"left at the end: {left}"

    async def _begin(self) -> None:
        for number in range(4):
            kind = (HandshakeClient, StatelessClient)[number % 2]
            principal = self.chance.choice(("alice", "bob"))
            client = kind(self.world, f"c{number}", self.backends, self.chance, principal)
            if isinstance(client, HandshakeClient):
                await client.open()
            self.clients.append(client)

    async def _act(self, client: Client, acting: trio.Nursery) -> None:
        for _ in range(self.steps):
            await trio.sleep(self.chance.choice(PAUSES))
            if self.chance.random() < 0.5:
                acting.start_soon(client.call, client.plan())
            else:
                await client.call(client.plan())

    async def _trouble(self) -> None:
        for _ in range(self.chance.choice((0, 2, 4))):
            await trio.sleep(self.chance.choice(PAUSES))
            await self.chance.choice(self.backends).trouble(self.chance.choice(TROUBLES))

    async def _drain(self) -> None:
        """Requests that are under way get their responses, and no further one is taken."""
        async with trio.open_nursery() as calls:
            for client in self.clients:
                calls.start_soon(client.call, client.plan())
            await trio.sleep(0.01)
            for client in self.clients:
                client.is_stopping = True
            with trio.fail_after(LONGEST):
                await self.world.app.drain()
            message, headers = modern_request("tools/list")
            refused = await self.world.post(message, {**headers, "authorization": "Bearer alice"})
            assert (503, "1") == (refused.status, refused.headers.get("retry-after"))


def held(world: FrontWorld) -> list[str]:
    """What a front holds of requests that are over."""
    app = world.app
    clients = app._legacy._clients.values()
    counts = {
        "exchanges": len(app._exchanges),
        "listeners": len(app._modern.stateless.listeners._interests),
        "streams to resume": len(app._legacy._expiring) + sum(len(client.finished) for client in clients),
        "requests of clients": sum(len(client.exchanges) for client in clients),
        "questions": sum(len(client.state._questions) for client in clients),
        "calls in flight": world.manager.statistics.in_flight,
    }
    return [f"{count} {name}" for name, count in counts.items() if count]


def _backends(chance: random.Random) -> list[WorkingBackend]:
    eras: tuple[BackendEra, BackendEra] = chance.choice(
        (("legacy", "modern"), ("modern", "legacy"), ("legacy", "legacy"), ("both", "modern"))
    )
    scripted = [ScriptedBackend(era=era, answers="sse", listens=True, resumable=chance.random() < 0.3) for era in eras]
    return [WorkingBackend(name, each, chance) for name, each in zip("ab", scripted, strict=True)]


def run_front(seed: int, steps: int = STEPS) -> Counter[str]:
    """Run the history of a seed, and count its outcomes. A broken promise is an exception.

    Args:
        steps: Of each client; a test of the suite takes few.
    """
    outcomes: Counter[str] = Counter()

    async def main() -> None:
        chance = random.Random(seed)
        backends = _backends(chance)
        limits = ManagerSettings(hibernate_after=chance.choice((5.0, 1e5)))
        settings = ServeSettings(abandoned_after=ABANDONED)
        scripted = [backend.scripted for backend in backends]
        async with front_world(
            *scripted, settings=settings, limits=limits, factory=FACTORY, authenticator=_Tokens()
        ) as world:
            history = FrontHistory(world, backends, chance, steps)
            await history.run()
        for client in history.clients:
            outcomes.update(client.outcomes)
        assert [] == [error for each in scripted for error in each.errors]

    with seeded(seed):
        trio.run(main, clock=ending(MockClock(autojump_threshold=0), longest=1e5))
    return outcomes
