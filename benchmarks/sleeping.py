"""Sessions of a manager that hibernate: what one of them holds, and how long it takes to wake one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import attrs
import trio
from memory import Allocated
from worker import Measures, stopwatch
from workloads import Terms

from trio_vmcp import (
    Backend,
    FactorySettings,
    LocalStorage,
    ManagerSettings,
    Session,
    SessionManager,
    open_session_factory,
    open_session_manager,
)
from trio_vmcp.metadata import metadata_to_json
from trio_vmcp.models import Era

HIBERNATE_AFTER = 0.05  # s
AT_ONCE = 8  # sessions that are made, or ended, at a time
TIMEOUT = 250.0  # s
TTL = 3600.0  # s


@attrs.frozen
class Managed:
    manager: SessionManager
    storage: LocalStorage

    async def make_asleep(self, count: int) -> list[str]:
        """The ids of so many sessions; all sessions hibernate then."""
        ids: list[str] = []
        before = self.manager.statistics.hibernated
        wanted = iter(range(count))

        async def make() -> None:
            for _ in wanted:
                session = await self.manager.create()
                assert not session.failures, session.failures
                ids.append(session.id)

        await _together(make)
        with trio.fail_after(TIMEOUT):
            while self.manager.statistics.hibernated < before + count:  # noqa: ASYNC110  # there is no event to wait for
                await trio.sleep(HIBERNATE_AFTER)
        return ids

    async def end(self, ids: list[str]) -> None:
        left = list(ids)

        async def end() -> None:
            while left:
                await self.manager.terminate(left.pop())

        await _together(end)

    async def row_bytes(self, session_id: str) -> int:
        return len(metadata_to_json(await self.storage.load(session_id)))


async def _together(function: Callable[[], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(function)


@asynccontextmanager
async def open_managed(urls: list[str], terms: Terms) -> AsyncIterator[Managed]:
    backends = [
        Backend(id=f"b{at}", url=url, era=cast(Era, terms.era), listen=terms.listen) for at, url in enumerate(urls)
    ]
    storage = LocalStorage(ttl=TTL)
    settings = FactorySettings(
        max_backend_init_concurrency=terms.opening, max_connections_per_backend=terms.connections
    )
    async with (
        open_session_factory(settings=settings, storage=storage) as factory,
        open_session_manager(factory, backends, settings=ManagerSettings(hibernate_after=HIBERNATE_AFTER)) as manager,
    ):
        yield Managed(manager, storage)


async def hibernated(urls: list[str], spare: str, terms: dict[str, Any], sessions: int) -> Measures:
    """Per session: "wall", the time to make it and to lay it down; "held", bytes without those of the row; "row", bytes
    of the row, which is in memory here.

    The first half is timed. The second half is weighed by what Python allocates for it and does not free: resident
    memory grows by less than that, since open sessions of the first half leave free memory behind.
    """
    measures: Measures = {}
    async with open_managed(urls, Terms(**terms)) as managed:
        half = sessions // 2
        with stopwatch(measures, per=half):
            first = await managed.make_asleep(half)
        tasks = trio.lowlevel.current_statistics().tasks_living
        with Allocated() as allocated:
            ids = await managed.make_asleep(sessions - half)
        with trio.fail_after(TIMEOUT):  # sessions that sleep have no tasks: the last ones may be about to end
            while trio.lowlevel.current_statistics().tasks_living > tasks:  # noqa: ASYNC110  # no event tells
                await trio.sleep(HIBERNATE_AFTER)
        measures["row"] = float(await managed.row_bytes(ids[0]))
        measures["held"] = allocated.bytes / len(ids) - measures["row"]
        await managed.end([*first, *ids])
    return measures


async def wake(urls: list[str], spare: str, terms: dict[str, Any]) -> Measures:
    """The time from asking for a session that hibernates to all lists of all its backends."""
    measures: Measures = {}
    async with open_managed(urls, Terms(**terms)) as managed:
        (session_id,) = await managed.make_asleep(1)
        with stopwatch(measures):
            session = await managed.manager.get(session_id)
            lists = _lists(session)
        assert not session.failures, session.failures
        measures["listed"] = lists
        await managed.end([session_id])
    return measures


def _lists(session: Session) -> int:
    return sum(map(len, (session.tools, session.resources, session.resource_templates, session.prompts)))
