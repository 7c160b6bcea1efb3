"""The library, through its public names only; and the workloads on endurance, in which it runs alone."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import attrs
import trio
from changing import costs_and_growth
from hand_written import side_by_side
from sleeping import hibernated, wake
from stopped import stopped
from through_gateway import relayed
from worker import Measures, raise_descriptor_limit, serve, stopwatch
from workloads import ARGUMENTS, TOOL, Terms, Workloads

import trio_vmcp
from trio_vmcp import Backend, FactorySettings, SessionFactory, VmcpError, open_session_factory
from trio_vmcp.models import Era

STUCK = 20.0  # s; an answer usually takes some ms


@attrs.frozen
class Session:
    session: trio_vmcp.Session
    tools: list[str]
    listed: int

    async def call(self, index: int) -> int:
        result = await self.session.call_tool(self.tools[index % len(self.tools)], ARGUMENTS)
        assert not result.is_error
        return len(result.content[0]["text"])

    async def close(self) -> None:
        await self.session.aclose()


@attrs.frozen
class Host:
    factory: SessionFactory
    terms: Terms

    async def open(self, urls: list[str]) -> Session:
        era = cast(Era, self.terms.era)
        session = await self.factory.make_session(
            [Backend(id=f"b{at}", url=url, era=era, listen=self.terms.listen) for at, url in enumerate(urls)]
        )
        assert not session.failures, session.failures
        # Read here, so that lists that the session builds on first use are part of the opening, as for all contenders.
        lists = (session.tools, session.resources, session.resource_templates, session.prompts)
        return Session(session, [f"b{at}_{TOOL}" for at in range(len(urls))], sum(map(len, lists)))


@asynccontextmanager
async def open_host(terms: Terms) -> AsyncIterator[Host]:
    settings = FactorySettings(
        max_backend_init_concurrency=terms.opening,
        max_connections_per_backend=terms.connections,
        request_timeout=STUCK,
    )
    async with open_session_factory(settings=settings) as factory:
        yield Host(factory, terms)


async def open_many(urls: list[str], spare: str, terms: dict[str, Any], sessions: int) -> Measures:
    """Per link: many sessions are opened side by side, then closed. "failed": sessions that did not open."""
    raise_descriptor_limit(needed=sessions * len(urls) + 1000)
    measures: Measures = {"failed": 0}
    opened: list[Session] = []
    async with open_host(Terms(**terms)) as host:
        with stopwatch(measures, per=sessions * len(urls)):
            for _ in range(sessions):
                try:
                    opened.append(await host.open(urls))
                except (VmcpError, AssertionError) as exc:
                    measures["failed"] += 1
                    print(f"a session failed: {exc}", file=sys.stderr)
            for session in opened:
                await session.close()
    return measures


@attrs.define
class Churn:
    """Callers that cancel most of their calls, at moments that a seed decides."""

    session: Session
    backends: int
    share: float  # of calls to be cancelled
    rng: random.Random
    usual: float = 0.005  # s that a call takes; measured as we go
    begun: int = 0
    ended: int = 0
    cancelled: int = 0
    failed: int = 0

    async def call(self, calls: int) -> None:
        """Run one of the callers that together make `calls`."""
        while self.begun < calls:
            self.begun += 1
            # Some answers arrive before their cancel, so the share is corrected by the result so far; where all calls
            # are to be cancelled, by cancelling them sooner.
            wanted = self.share + (self.share * self.ended - self.cancelled) / 50
            doomed = self.rng.random() < wanted
            began = trio.current_time()
            with trio.CancelScope() as scope:
                if doomed:
                    scope.deadline = began + self.rng.random() * self.usual / max(1.0, wanted)
                try:
                    await self.session.call(self.rng.randrange(self.backends))
                except VmcpError as exc:
                    self.failed += 1
                    print(f"a call failed: {exc}", file=sys.stderr)
                else:
                    self.usual += (trio.current_time() - began - self.usual) / 50
            self.cancelled += scope.cancelled_caught
            self.ended += 1


async def churn(
    urls: list[str], spare: str, terms: dict[str, Any], callers: int, calls: int, share: float, then: int, seed: int
) -> Measures:
    """Per call: `calls`, of which a `share` is cancelled; afterwards `then` calls, of which none is. Adds "failed", the
    calls that failed without being cancelled, and "off", the difference to `share`.
    """
    measures: Measures = {}
    async with open_host(Terms(**terms)) as host:
        session = await host.open(urls)
        before = Churn(session, len(urls), share, random.Random(seed))
        with stopwatch(measures, per=calls):
            await side_by_side([lambda: before.call(calls)] * callers)
        after = Churn(session, len(urls), 0.0, random.Random(seed))
        await side_by_side([lambda: after.call(then)] * callers)
        assert after.ended == then
        await session.close()
    measures["failed"] = before.failed + after.failed
    measures["off"] = abs(before.cancelled / before.ended - share)
    return measures


async def change(urls: list[str], spare: str, terms: dict[str, Any], backends: int, fewer: int, tools: int) -> Measures:
    """See `changing.py`. In a thread, since it has a clock of its own."""
    return await trio.to_thread.run_sync(costs_and_growth, backends, fewer, tools)


async def steps(urls: list[str], spare: str, terms: dict[str, Any], rounds: int) -> Measures:
    """See `stepping.py`. In a thread, since it has a clock of its own. Imported here: it makes 200 MiB of messages, and
    what Python keeps of them would hide what large results and sessions take in the other workloads.
    """
    from stepping import longest_steps

    return await trio.to_thread.run_sync(longest_steps, rounds)


async def storm(urls: list[str], spare: str, terms: dict[str, Any], settled_after: float, window: float) -> Measures:
    """The backends announce changes without end, and their lists stay as they are. "core": CPU s for each s."""
    async with open_host(Terms(**terms)) as host:
        session = await host.open(urls)
        listed = session.session.tools
        await trio.sleep(settled_after)
        cpu, wall = time.process_time(), time.perf_counter()
        await trio.sleep(window)
        measures = {"core": (time.process_time() - cpu) / (time.perf_counter() - wall)}
        assert listed is session.session.tools
        await session.close()
    return measures


async def observed(urls: list[str], spare: str, terms: dict[str, Any], **options: Any) -> Measures:
    """See `observing.py`. Imported here: the other workloads are measured without the observers' packages."""
    from observing import observed

    return await observed(urls, spare, terms, **options)


async def gateway(urls: list[str], spare: str, terms: dict[str, Any], **options: Any) -> Measures:
    """See `through_gateway.py`. In a thread, since clients run on asyncio, as those of all gateways."""
    return await trio.to_thread.run_sync(lambda: asyncio.run(relayed("library", urls, **options)))


async def in_process(urls: list[str], spare: str, terms: dict[str, Any], **options: Any) -> Measures:
    """See `in_process.py`. Imported here: the other workloads are measured without the packages of the front."""
    from in_process import in_process

    return await in_process(urls, spare, terms, **options)


if __name__ == "__main__":
    more = {"open_many": open_many, "churn": churn, "change": change, "storm": storm}
    more |= {"stopped": stopped, "observed": observed, "steps": steps, "hibernated": hibernated, "wake": wake}
    more |= {"gateway": gateway, "in_process": in_process}
    serve(trio.run, Workloads(open_host, side_by_side).by_name() | more)
